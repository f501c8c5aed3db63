//! Carries out what [`super::core`] decides: keeps the idle environments, hands out leases, wakes who waits.
//!
//! Server process. The clock is tokio's. One mutex holds everything; nothing is awaited, dropped or sent under it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};

use super::core::{Core, Limits, Order, Retire, Slot, SlotId, State, Ticket, Usage, Want};
use super::snapshot::{Reserve, Seen, SeenState, Snapshot};
use crate::function::{FunctionName, Stamp};
use crate::invocation::Throttle;

/// How long people wait at most for the memory of all environments.
const MEASURE: Duration = Duration::from_millis(500);

/// What can be pooled. Dropping it must end it.
pub trait Pooled: Send + 'static {
    /// Looked at in the last moment before it is lent: cheap, and never waits.
    fn is_alive(&self) -> bool;
    fn facts(&self) -> Arc<dyn Facts>;
}

/// What a snapshot tells of something pooled, also while it is on loan.
pub trait Facts: Send + Sync {
    fn name(&self) -> &str;
    /// Bytes in use when last looked at.
    fn used(&self) -> u64;
    /// Looks now, and wakes nobody. `None`: it is gone.
    fn measure(&self) -> Option<u64>;
    /// The most so far.
    fn peak(&self) -> u64;
}

pub struct Pool<E: Pooled>(Arc<Shared<E>>);

struct Shared<E: Pooled> {
    /// All slots. Taken for a few map operations by every call below; no other lock is taken inside, and no
    /// environment, lease or permit is dropped inside (their ends take it).
    inner: Mutex<Inner<E>>,
}

struct Inner<E: Pooled> {
    core: Core,
    idle: HashMap<SlotId, E>,
    facts: HashMap<SlotId, Arc<dyn Facts>>,
    waiting: HashMap<Ticket, Waiter<E>>,
}

struct Waiter<E: Pooled> {
    want: Want,
    turn: oneshot::Sender<Result<Turn<E>, Throttle>>,
}

/// A request's turn has come.
#[derive(Debug)]
pub enum Turn<E: Pooled> {
    Warm(Lease<E>),
    /// Room for one more: build it, then [`Permit::install`].
    Cold(Permit<E>),
}

/// An environment on loan to one request.
///
/// Dropping a lease *retires* the environment; reuse takes an explicit [`Lease::give_back`]. So a panic, a timeout
/// or a forgotten branch costs a cold start, never a dirty reuse.
#[must_use]
pub struct Lease<E: Pooled> {
    reserved: Reserved<E>,
    /// `None` only while the lease ends.
    environment: Option<E>,
}

/// The right to build one environment: memory and a start are reserved. Dropping it frees both.
#[must_use]
#[derive(Debug)]
pub struct Permit<E: Pooled>(Reserved<E>);

/// A slot of the core that ends with this value.
struct Reserved<E: Pooled> {
    slot: SlotId,
    /// `None` once the slot is no longer ours to end.
    pool: Option<Arc<Shared<E>>>,
}

/// Done after the lock is released, since each may take it again.
enum Effect<E: Pooled> {
    Tell(oneshot::Sender<Result<Turn<E>, Throttle>>, Result<Turn<E>, Throttle>),
    End(E, Retire),
}

impl<E: Pooled> Clone for Pool<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E: Pooled> Pool<E> {
    pub fn new(limits: Limits) -> Self {
        let inner = Inner { core: Core::new(limits), idle: HashMap::new(), facts: HashMap::new(), waiting: HashMap::new() };
        Self(Arc::new(Shared { inner: Mutex::new(inner) }))
    }

    /// Waits for a turn, at most until `want.until`. Dropping the future leaves the queue.
    pub async fn acquire(&self, want: Want) -> Result<Turn<E>, Throttle> {
        let (turn, mut told) = oneshot::channel();
        let until = want.until;
        let (ticket, settle) = self.0.change(|inner, now| {
            let (ticket, orders) = inner.core.request(want.clone(), now);
            inner.waiting.insert(ticket, Waiter { want, turn });
            ((ticket, inner.core.limits().settle), orders)
        });
        let _place = Place { pool: &self.0, ticket };
        let mut look_again = (Instant::now() + settle).min(until);
        loop {
            tokio::select! {
                biased;
                turn = &mut told => return turn.unwrap_or(Err(Throttle::Starts)),
                () = sleep_until(look_again) => {
                    self.tick();
                    // Past `until` the tick has refused us, and `told` is ready.
                    look_again = until.max(look_again + Duration::from_millis(1));
                }
            }
        }
    }

    /// Recycles what is idle too long. To be called every second or so.
    pub fn tick(&self) {
        self.0.change(|inner, now| ((), inner.core.tick(now)));
    }

    /// An environment that noticed its own death says so. Nothing happens to one on loan: its holder finds out.
    pub fn died(&self, slot: SlotId) {
        let ended = self.0.change(|inner, now| {
            let idle = inner.core.slot(slot).is_some_and(|slot| matches!(slot.state, State::Idle { .. }));
            if !idle {
                return (None, Vec::new());
            }
            inner.facts.remove(&slot);
            (inner.idle.remove(&slot), inner.core.remove(slot, now))
        });
        if ended.is_some() {
            info!(slot = slot.0, "an idle environment died");
        }
    }

    pub fn function_changed(&self, function: &FunctionName, current: Option<Stamp>) {
        self.0.change(|inner, now| ((), inner.core.function_changed(function, current, now)));
    }

    /// The function has reserved so many requests at once; `None`: none.
    pub fn reserve(&self, function: &FunctionName, reserve: Option<usize>) {
        self.0.change(|inner, now| ((), inner.core.reserve(function, reserve, now)));
    }

    pub fn bound(&self, limits: Limits) {
        self.0.change(|inner, now| ((), inner.core.bound(limits, now)));
    }

    /// Ends all idle environments.
    pub fn stop(&self) {
        self.0.change(|inner, _| ((), inner.core.stop()));
    }

    /// What is known at this moment; quick.
    pub fn snapshot(&self) -> Snapshot {
        self.look().0
    }

    /// The same with every environment's memory as it is now, for people. Costs some twenty microseconds for each, so it
    /// runs on a thread that may take them; past [`MEASURE`] the rest is told as last seen.
    pub fn measured(&self) -> Snapshot {
        let (mut snapshot, facts) = self.look();
        let until = std::time::Instant::now() + MEASURE;
        for (seen, facts) in snapshot.environments.iter_mut().zip(facts) {
            if std::time::Instant::now() >= until {
                break;
            }
            if let Some(used) = facts.and_then(|facts| facts.measure()) {
                seen.used_mib = mib(used);
                seen.peak_mib = seen.peak_mib.max(seen.used_mib);
            }
        }
        snapshot
    }

    fn look(&self) -> (Snapshot, Vec<Option<Arc<dyn Facts>>>) {
        let now = Instant::now();
        let inner = self.0.lock();
        let (core, limits) = (&inner.core, inner.core.limits());
        let facts = core.slots().map(|(id, _)| inner.facts.get(&id).cloned()).collect();
        let snapshot = Snapshot {
            budget_mib: limits.budget >> 20,
            charged_mib: core.charged() >> 20,
            in_flight: core.in_flight(),
            concurrency: limits.concurrency,
            unreserved: core.unreserved(),
            reserves: core
                .reserves()
                .map(|(function, reserved, in_flight)| Reserve { function: function.clone(), reserved, in_flight })
                .collect(),
            starting: core.starting(),
            parallel_starts: limits.starts,
            waiting: core.waiting(),
            environments: core.slots().map(|(id, slot)| seen(slot, inner.facts.get(&id), now)).collect(),
        };
        (snapshot, facts)
    }
}

fn seen(slot: &Slot, facts: Option<&Arc<dyn Facts>>, now: Instant) -> Seen {
    let (state, idle_s) = match slot.state {
        State::Initialising => (SeenState::Initialising, None),
        State::Busy { .. } => (SeenState::Busy, None),
        State::Idle { since, .. } => (SeenState::Idle, Some((now - since).as_secs_f64())),
    };
    Seen {
        function: slot.function.clone(),
        version: "$LATEST".into(),
        state,
        age_s: (now - slot.born).as_secs_f64(),
        idle_s,
        memory_mib: slot.memory.mib(),
        charged_mib: slot.charge() >> 20,
        used_mib: facts.map_or(0, |facts| mib(facts.used())),
        peak_mib: facts.map_or(0, |facts| mib(facts.peak())),
        invocations: slot.loans,
        container: facts.map(|facts| facts.name().to_owned()),
    }
}

/// To the nearest, as REPORT does.
fn mib(bytes: u64) -> u64 {
    (bytes + (1 << 19)) >> 20
}

impl<E: Pooled> Shared<E> {
    fn lock(&self) -> MutexGuard<'_, Inner<E>> {
        // A panic under this lock is a bug in the core; its maps are still maps, and going on beats stopping.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the core decide, and carries its orders out.
    fn change<R>(self: &Arc<Self>, decide: impl FnOnce(&mut Inner<E>, Instant) -> (R, Vec<Order>)) -> R {
        let now = Instant::now();
        let mut inner = self.lock();
        let (result, orders) = decide(&mut inner, now);
        let effects = self.carry_out(&mut inner, orders, now);
        drop(inner);
        for effect in effects {
            match effect {
                // The receiver may be gone: then the lease or permit in the message ends right here.
                Effect::Tell(turn, what) => drop(turn.send(what)),
                Effect::End(environment, why) => {
                    debug!(container = environment.facts().name(), ?why, "environment retired");
                    drop(environment);
                }
            }
        }
        result
    }

    fn carry_out(self: &Arc<Self>, inner: &mut Inner<E>, orders: Vec<Order>, now: Instant) -> Vec<Effect<E>> {
        let mut orders = VecDeque::from(orders);
        let mut effects = Vec::new();
        while let Some(order) = orders.pop_front() {
            match order {
                Order::Lend { ticket, slot } => {
                    let Some(waiter) = inner.waiting.remove(&ticket) else { continue };
                    let environment = inner.idle.remove(&slot);
                    if environment.as_ref().is_some_and(Pooled::is_alive) {
                        let reserved = Reserved { slot, pool: Some(self.clone()) };
                        effects.push(Effect::Tell(waiter.turn, Ok(Turn::Warm(Lease { reserved, environment }))));
                    } else {
                        effects.extend(environment.map(|dead| Effect::End(dead, Retire::Dead)));
                        inner.facts.remove(&slot);
                        orders.extend(inner.core.replace(slot, ticket, waiter.want.clone(), now));
                        inner.waiting.insert(ticket, waiter);
                    }
                }
                Order::Start { ticket, slot } => {
                    let Some(waiter) = inner.waiting.remove(&ticket) else { continue };
                    let reserved = Reserved { slot, pool: Some(self.clone()) };
                    effects.push(Effect::Tell(waiter.turn, Ok(Turn::Cold(Permit(reserved)))));
                }
                Order::Refuse { ticket, why } => {
                    let waiter = inner.waiting.remove(&ticket);
                    effects.extend(waiter.map(|waiter| Effect::Tell(waiter.turn, Err(why))));
                }
                Order::Retire { slot, why } => {
                    inner.facts.remove(&slot);
                    effects.extend(inner.idle.remove(&slot).map(|environment| Effect::End(environment, why)));
                }
            }
        }
        effects
    }
}

/// A place in the queue; leaving it is dropping it.
struct Place<'a, E: Pooled> {
    pool: &'a Arc<Shared<E>>,
    ticket: Ticket,
}

impl<E: Pooled> Drop for Place<'_, E> {
    fn drop(&mut self) {
        let waiter = self.pool.change(|inner, now| match inner.waiting.remove(&self.ticket) {
            Some(waiter) => (Some(waiter), inner.core.abandon(self.ticket, now)),
            None => (None, Vec::new()),
        });
        drop(waiter);
    }
}

impl<E: Pooled> Permit<E> {
    /// For [`Pool::died`].
    pub fn slot(&self) -> SlotId {
        self.0.slot
    }

    /// The environment uses so many bytes of /tmp. `false`: the budget has no room for them.
    pub fn grow(&self, tmp: u64) -> bool {
        self.0.grow(tmp)
    }

    /// It goes on inside of its request's own time, which nobody else has to wait for: the start is over,
    /// the memory stays reserved.
    pub fn start_is_over(&self) {
        if let Some(pool) = &self.0.pool {
            pool.change(|inner, now| ((), inner.core.started(self.0.slot, now)));
        }
    }

    /// It is ready; it is lent to the request that it was built for.
    pub fn install(self, environment: E) -> Lease<E> {
        let slot = self.0.slot;
        if let Some(pool) = &self.0.pool {
            let facts = environment.facts();
            pool.change(|inner, now| {
                inner.facts.insert(slot, facts);
                ((), inner.core.started(slot, now))
            });
        }
        Lease { reserved: self.0, environment: Some(environment) }
    }
}

impl<E: Pooled> Lease<E> {
    pub fn grow(&self, tmp: u64) -> bool {
        self.reserved.grow(tmp)
    }

    /// The environment, and what [`Self::grow`] needs, at once.
    pub fn parts(&mut self) -> (&mut E, impl Fn(u64) -> bool + Send + Sync + '_) {
        let reserved = &self.reserved;
        (self.environment.as_mut().expect(HELD), move |tmp| reserved.grow(tmp))
    }

    /// The request has its answer, and the environment will be back soon: the next request waits a little for it.
    pub fn answered(&self) {
        if let Some(pool) = &self.reserved.pool {
            pool.lock().core.answered(self.reserved.slot);
        }
    }

    /// It is clean and frozen. It goes back unless it is dead or its function has changed (`current`).
    pub fn give_back(mut self, usage: Usage, current: Option<Stamp>) {
        let Some(environment) = self.environment.take_if(|environment| environment.is_alive()) else { return };
        let Some(pool) = self.reserved.pool.take() else { return };
        let slot = self.reserved.slot;
        pool.change(|inner, now| {
            // Before the core decides, since it may lend it at once.
            inner.idle.insert(slot, environment);
            ((), inner.core.give_back(slot, usage, current, now))
        });
    }
}

const HELD: &str = "only give_back and drop take it, and both end the lease";

impl<E: Pooled> Deref for Lease<E> {
    type Target = E;

    fn deref(&self) -> &E {
        self.environment.as_ref().expect(HELD)
    }
}

impl<E: Pooled> DerefMut for Lease<E> {
    fn deref_mut(&mut self) -> &mut E {
        self.environment.as_mut().expect(HELD)
    }
}

impl<E: Pooled> Reserved<E> {
    fn grow(&self, tmp: u64) -> bool {
        let Some(pool) = &self.pool else { return true };
        pool.change(|inner, _| inner.core.grow(self.slot, tmp))
    }
}

impl<E: Pooled> Drop for Lease<E> {
    fn drop(&mut self) {
        // The kill comes before the slot's memory counts as free.
        drop(self.environment.take());
    }
}

impl<E: Pooled> Drop for Reserved<E> {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.change(|inner, now| {
                inner.facts.remove(&self.slot);
                ((), inner.core.remove(self.slot, now))
            });
        }
    }
}

impl<E: Pooled> fmt::Debug for Reserved<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reserved({})", self.slot.0)
    }
}

impl<E: Pooled> fmt::Debug for Lease<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({})", self.reserved.slot.0)
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
