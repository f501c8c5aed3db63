//! Carries out what [`super::core`] decides: keeps the idle environments, hands out leases, wakes who waits.
//!
//! Server process. The clock is tokio's. One mutex holds everything; nothing is awaited, dropped or sent under it.

mod lease;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info};

use self::lease::Reserved;
pub use self::lease::{Lease, Permit};
use super::core::{Core, Entry};
use super::policy::Limits;
use super::slot::{Cold, Gone, Order, Retire, Slot, SlotId, State, Ticket, Want};
use super::snapshot::{Dismissed, Drained, Reserve, Seen, SeenState, Snapshot};
use crate::function::{FunctionName, Stamp};
use crate::invocation::Throttle;
use crate::server::events::{Detail, Events, Subject, What};

/// How long somebody who wants to look into an environment waits for it to come back after its answer, and between two looks.
const SETTLES: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How long people wait at most for the memory of all environments.
const MEASURE: Duration = Duration::from_millis(500);

/// What can be pooled. Dropping it must end it.
pub trait Pooled: Send + 'static {
    type Facts: Facts;

    /// Looked at in the last moment before it is lent: cheap, and never waits.
    fn is_alive(&self) -> bool;
    fn facts(&self) -> Arc<Self::Facts>;
}

/// What a snapshot tells of something pooled, also while it is on loan.
pub trait Facts: Send + Sync + 'static {
    fn name(&self) -> &str;
    /// Bytes in use when last looked at.
    fn used(&self) -> u64;
    /// Looks now, and wakes nobody. `None`: it is gone.
    fn measure(&self) -> Option<u64>;
    /// The CPU time that it has used so far, likewise. `None`: nobody counts it.
    fn cpu(&self) -> Option<Duration>;
    /// The most so far.
    fn peak(&self) -> u64;
    /// Ends it at once, whoever it is on loan to; its holder notices. `by` is who wants so, for the function's log.
    fn kill(&self, by: &str);
    /// Somebody wants it to end, now or soon.
    fn unwanted(&self, by: &str);
    /// What is known of its end.
    fn ending(&self) -> Ending;
}

/// What the pool does not know of an end, and passes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    pub cause: Option<String>,
    pub text: Option<String>,
    pub by: Option<String>,
}

pub struct Pool<E: Pooled>(Arc<Shared<E>>);

struct Shared<E: Pooled> {
    /// All slots. Taken for a few map operations by every call below; no other lock is taken inside, and no
    /// environment, lease or permit is dropped inside (their ends take it).
    inner: Mutex<Inner<E>>,
    events: Events,
}

struct Inner<E: Pooled> {
    core: Core,
    idle: HashMap<SlotId, E>,
    facts: HashMap<SlotId, Arc<E::Facts>>,
    /// The same of what has not been installed yet: for people, who may look at it, and no more.
    building: HashMap<SlotId, Arc<E::Facts>>,
    /// Who looks into a slot, to be told that it ends.
    visitors: HashMap<SlotId, oneshot::Sender<Retire>>,
    waiting: HashMap<Ticket, Waiter<E>>,
}

struct Waiter<E: Pooled> {
    want: Want,
    turn: oneshot::Sender<Told<E>>,
}

/// A request's turn has come.
#[derive(Debug)]
pub enum Turn<E: Pooled> {
    Warm(Lease<E>),
    /// Room for one more: build it, then [`Permit::install`].
    Cold(Permit<E>),
}

/// Why no turn has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTurn {
    Throttled(Throttle),
    /// The function's init keeps failing, and is not tried again yet.
    TellAgain,
}

/// What somebody has who looks into an environment.
#[derive(Debug)]
pub enum Entered<E: Pooled> {
    /// It was idle. Nobody else gets it, and it ends when this is dropped.
    Held(Held<E>),
    /// It works, and ends with that.
    Beside(Arc<E::Facts>),
}

#[must_use]
#[derive(Debug)]
pub struct Held<E: Pooled> {
    pub lease: Lease<E>,
    /// That it is to end now, and why.
    pub told: oneshot::Receiver<Retire>,
}

/// Why nobody can look into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotEntered {
    Gone,
    Occupied,
    NoRoom,
}

type Told<E> = Result<Turn<E>, NoTurn>;

/// Done after the lock is released, since each may take it again.
enum Effect<E: Pooled> {
    Tell(oneshot::Sender<Told<E>>, Told<E>),
    End(E, Retire),
    Leave(oneshot::Sender<Retire>, Retire),
}

impl<E: Pooled> Clone for Pool<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E: Pooled> Pool<E> {
    /// `events` hear of each end of what was installed.
    pub fn new(limits: Limits, events: Events) -> Self {
        let (core, idle, facts) = (Core::new(limits), HashMap::new(), HashMap::new());
        let (building, visitors, waiting) = (HashMap::new(), HashMap::new(), HashMap::new());
        let inner = Inner { core, idle, facts, building, visitors, waiting };
        Self(Arc::new(Shared { inner: Mutex::new(inner), events }))
    }

    /// Waits for a turn, at most until `want.until`. Dropping the future leaves the queue.
    pub async fn acquire(&self, want: Want) -> Result<Turn<E>, NoTurn> {
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
                turn = &mut told => return turn.unwrap_or(Err(NoTurn::Throttled(Throttle::Starts))),
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
            (inner.idle.remove(&slot), inner.core.remove(slot, Retire::Died, now))
        });
        if let Some(ended) = ended {
            told_end(&ended, Retire::Died);
        }
    }

    /// Ends all environments of the function: idle ones now, the others when their invocation ends.
    pub fn drain(&self, function: &FunctionName, by: &str) -> Drained {
        self.0.change(|inner, now| {
            let own = inner.core.slots().filter(|(_, slot)| slot.function == *function);
            own.filter_map(|(id, _)| inner.facts.get(&id).or(inner.building.get(&id))).for_each(|facts| facts.unwanted(by));
            let (leaving, orders) = inner.core.drain(function, now);
            let ended = orders.iter().filter(|order| matches!(order, Order::Retire { why: Retire::Drained, .. })).count();
            (Drained { function: function.clone(), ended, leaving }, orders)
        })
    }

    /// Ends one environment: now if it is idle, else when its invocation ends. `None`: there is none of this name.
    pub fn recycle(&self, container: &str, by: &str) -> Option<Dismissed> {
        self.dismiss(container, Retire::Recycled, by).map(|(dismissed, _)| dismissed)
    }

    /// Ends one environment now, and the invocation that it runs.
    pub fn kill(&self, container: &str, by: &str) -> Option<Dismissed> {
        let (dismissed, facts) = self.dismiss(container, Retire::Killed, by)?;
        facts.kill(by);
        Some(Dismissed { ended: true, ..dismissed })
    }

    fn dismiss(&self, container: &str, why: Retire, by: &str) -> Option<(Dismissed, Arc<E::Facts>)> {
        self.0.change(|inner, now| {
            let named = inner.facts.iter().chain(&inner.building).find(|(_, facts)| facts.name() == container);
            let Some((id, facts)) = named.map(|(id, facts)| (*id, facts.clone())) else { return (None, Vec::new()) };
            let Some(slot) = inner.core.slot(id) else { return (None, Vec::new()) };
            let (function, (state, _)) = (slot.function.clone(), seen_state(slot, now));
            facts.unwanted(by);
            // Its init fails by the kill, and the one that is tried then is another's end.
            if why == Retire::Killed && inner.building.contains_key(&id) {
                return (Some((Dismissed { container: container.to_owned(), function, state, ended: true }, facts)), Vec::new());
            }
            let (ended, orders) = inner.core.dismiss(id, why, now);
            (Some((Dismissed { container: container.to_owned(), function, state, ended }, facts)), orders)
        })
    }

    /// One environment, why it was started, and what can be told of it. `None`: there is none of this name.
    pub fn find(&self, container: &str) -> Option<(Seen, Cold, Arc<E::Facts>)> {
        let (now, inner) = (Instant::now(), self.0.lock());
        let (id, facts) = inner.facts.iter().chain(&inner.building).find(|(_, facts)| facts.name() == container)?;
        let slot = inner.core.slot(*id)?;
        Some((seen(slot, Some(facts), now), slot.why, facts.clone()))
    }

    /// Somebody wants to look into one environment. One that has just answered is waited for, a little.
    pub async fn enter(&self, container: &str) -> Result<Entered<E>, NotEntered> {
        let until = Instant::now() + SETTLES;
        loop {
            let entered = self.try_enter(container, Instant::now() < until);
            match entered {
                Ok(Some(entered)) => return Ok(entered),
                Ok(None) => sleep(LOOK_AGAIN).await,
                Err(not) => return Err(not),
            }
        }
    }

    fn try_enter(&self, container: &str, patiently: bool) -> Result<Option<Entered<E>>, NotEntered> {
        let pool = &self.0;
        let (entered, dead) = pool.change(|inner, now| {
            let named = inner.facts.iter().find(|(_, facts)| facts.name() == container);
            let Some((slot, facts)) = named.map(|(id, facts)| (*id, facts.clone())) else {
                // Its init is bounded, and what comes of it is found then.
                let is_built = inner.building.values().any(|facts| facts.name() == container);
                let entered = if is_built { Ok(None) } else { Err(NotEntered::Gone) };
                return ((entered, None), Vec::new());
            };
            let (entry, mut orders) = inner.core.enter(slot, patiently, now);
            let entered = match entry {
                Entry::Held => match inner.idle.remove(&slot) {
                    Some(environment) if environment.is_alive() => {
                        let (tell, told) = oneshot::channel();
                        inner.visitors.insert(slot, tell);
                        let reserved = Reserved { slot, pool: Some(pool.clone()) };
                        let lease = Lease { reserved, environment: Some(environment) };
                        Ok(Some(Entered::Held(Held { lease, told })))
                    }
                    dead => {
                        orders.extend(inner.core.remove(slot, Retire::Died, now));
                        return ((Err(NotEntered::Gone), dead), orders);
                    }
                },
                Entry::Beside => Ok(Some(Entered::Beside(facts))),
                Entry::Settling => Ok(None),
                Entry::Occupied => Err(NotEntered::Occupied),
                Entry::NoRoom => Err(NotEntered::NoRoom),
                Entry::Gone => Err(NotEntered::Gone),
            };
            ((entered, None), orders)
        });
        drop(dead);
        entered
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

    /// Ends all environments that no invocation needs.
    pub fn stop(&self) {
        self.0.change(|inner, _| ((), inner.core.stop()));
    }

    /// As [`Core::shortage`].
    pub fn shortage(&self, function: &FunctionName, short: Throttle) -> (u64, u64) {
        self.0.lock().core.shortage(function, short)
    }

    /// A request was refused before it came here: it is counted with the others.
    pub fn refused_before(&self, why: Throttle) {
        self.0.lock().core.refused_before(why);
    }

    /// What is known at this moment; quick.
    pub fn snapshot(&self) -> Snapshot {
        self.look().0
    }

    /// The same with every environment's memory and CPU time as they are now, for people. Costs some twenty microseconds for each, so it
    /// runs on a thread that may take them; past [`MEASURE`] the rest is told as last seen.
    pub fn measured(&self) -> Snapshot {
        let (mut snapshot, facts) = self.look();
        let until = std::time::Instant::now() + MEASURE;
        for (seen, facts) in snapshot.environments.iter_mut().zip(facts) {
            if std::time::Instant::now() >= until {
                break;
            }
            let Some(facts) = facts else { continue };
            if let Some(used) = facts.measure() {
                seen.used_mib = mib(used);
                seen.peak_mib = seen.peak_mib.max(seen.used_mib);
            }
            seen.cpu_ms = facts.cpu().map(|cpu| u64::try_from(cpu.as_millis()).unwrap_or(u64::MAX));
        }
        snapshot
    }

    fn look(&self) -> (Snapshot, Vec<Option<Arc<E::Facts>>>) {
        let now = Instant::now();
        let inner = self.0.lock();
        let (core, limits) = (&inner.core, inner.core.limits());
        let facts = core.slots().map(|(id, _)| inner.known(id).cloned()).collect();
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
            failing: core.failing(),
            retired: core.tally().retired.clone(),
            refused: core.tally().refused.clone(),
            told_again: core.tally().told_again,
            environments: core.slots().map(|(id, slot)| seen(slot, inner.known(id), now)).collect(),
        };
        (snapshot, facts)
    }
}

/// An end is as rare as a cold start, but where each invocation has its own, or nothing has happened.
fn told_end(environment: &impl Pooled, why: Retire) {
    let facts = environment.facts();
    let container = facts.name();
    match why {
        Retire::Once | Retire::Stopping => debug!(container, %why, "environment retired"),
        _ => info!(container, %why, "environment retired"),
    }
}

/// And for how long it has been idle, if it is.
fn seen_state(slot: &Slot, now: Instant) -> (SeenState, Option<f64>) {
    match slot.state {
        State::Initialising => (SeenState::Initialising, None),
        State::Busy { .. } => (SeenState::Busy, None),
        State::Idle { since, .. } => (SeenState::Idle, Some((now - since).as_secs_f64())),
        State::Held => (SeenState::Held, None),
    }
}

fn seen(slot: &Slot, facts: Option<&Arc<impl Facts>>, now: Instant) -> Seen {
    let (state, idle_s) = seen_state(slot, now);
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
        cpu_ms: None,
        invocations: slot.loans,
        container: facts.map(|facts| facts.name().to_owned()),
        leaving: slot.leaving,
    }
}

/// To the nearest, as REPORT does.
fn mib(bytes: u64) -> u64 {
    (bytes + (1 << 19)) >> 20
}

impl<E: Pooled> Inner<E> {
    fn known(&self, slot: SlotId) -> Option<&Arc<E::Facts>> {
        self.facts.get(&slot).or_else(|| self.building.get(&slot))
    }
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
        // What was installed has facts; of the others nobody has heard.
        let gone = inner.core.take_gone();
        gone.iter().for_each(|gone| drop(inner.visitors.remove(&gone.id)));
        let unbuilt: Vec<_> = gone.iter().filter_map(|gone| inner.building.remove(&gone.id)).collect();
        let gone = gone.into_iter();
        let gone: Vec<_> = gone.filter_map(|gone| Some((inner.facts.remove(&gone.id)?, gone))).collect();
        drop(inner);
        drop(unbuilt);
        for (facts, gone) in gone {
            self.told_gone(&facts, gone, now);
        }
        for effect in effects {
            match effect {
                // The receiver may be gone: then the lease or permit in the message ends right here.
                Effect::Tell(turn, what) => drop(turn.send(what)),
                Effect::End(environment, why) => {
                    told_end(&environment, why);
                    drop(environment);
                }
                Effect::Leave(visitor, why) => drop(visitor.send(why)),
            }
        }
        result
    }

    fn told_gone(&self, facts: &E::Facts, gone: Gone, now: Instant) {
        let Gone { slot, why, needed_by, .. } = gone;
        let Ending { cause, text, by } = facts.ending();
        let retired = What::Retired {
            why,
            detail: Detail { cause, text, by, needed_by },
            age_s: (now - slot.born).as_secs_f64(),
            invocations: slot.loans,
            peak_mib: mib(facts.peak()),
        };
        self.events.emit(&Subject::environment(&slot.function, facts.name()), None, retired);
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
                        effects.extend(environment.map(|dead| Effect::End(dead, Retire::Died)));
                        orders.extend(inner.core.replace(slot, ticket, waiter.want.clone(), now));
                        inner.waiting.insert(ticket, waiter);
                    }
                }
                Order::Start { ticket, slot } => {
                    let Some(waiter) = inner.waiting.remove(&ticket) else { continue };
                    let why = inner.core.slot(slot).map_or(Cold::Busy, |slot| slot.why);
                    let reserved = Reserved { slot, pool: Some(self.clone()) };
                    effects.push(Effect::Tell(waiter.turn, Ok(Turn::Cold(Permit { reserved, why }))));
                }
                Order::Refuse { ticket, why } => {
                    let waiter = inner.waiting.remove(&ticket);
                    effects.extend(waiter.map(|waiter| Effect::Tell(waiter.turn, Err(NoTurn::Throttled(why)))));
                }
                Order::TellAgain { ticket } => {
                    let waiter = inner.waiting.remove(&ticket);
                    effects.extend(waiter.map(|waiter| Effect::Tell(waiter.turn, Err(NoTurn::TellAgain))));
                }
                Order::Retire { slot, why } => {
                    effects.extend(inner.visitors.remove(&slot).map(|visitor| Effect::Leave(visitor, why)));
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

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
