//! Who is warm, who is next, who must go: decides, does nothing.
//!
//! No clock (`now` is passed in), no lock, no I/O. It knows functions by name and [`Stamp`], sizes in bytes, and
//! numbers of its own for slots and tickets; it could pool umbrellas. [`super::driver`] carries out its orders.
//!
//! ```text
//!              start                 give_back
//!  (ticket) ────────▶ Initialising ──▶ Busy ⇄ Idle ──▶ gone
//!                         │              │     lend     ▲
//!                         └──────────────┴──────────────┘ remove: failed, dirty, dead; Retire: idle, stale, memory
//! ```
//!
//! **The budget.** Charged are: initialising and busy slots with *configured memory + /tmp in use* (in steps of
//! [`TMP_STEP`]), idle ones, being frozen, with what they really use. So a loan may cost memory, and idle slots, the
//! least recently used first, are evicted for it; busy ones never are. A victim's memory counts as free from the
//! decision on: its kill is one write away.
//!
//! **Reserves.** A function with a reserve may have so many requests at once and no more, and nobody else can use them up:
//! all functions without one share what is left of the limit. Who comes too many is refused at once; who only finds the
//! reserve's slots *settling* (see below) waits for one of them, so that never more slots run than are reserved.
//!
//! **Who waits.** One queue in order of arrival. A warm slot goes to the first who can use it. Starts are strictly
//! first come, first served: were small functions let past, a large one would never fit. A request that finds a
//! slot of its function *settling* (answered, not yet back) waits for it a moment before it costs a cold start.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::function::{FunctionName, Memory, Stamp};
use crate::invocation::Throttle;

/// /tmp is charged in such steps, so that its growth rarely needs a decision.
pub const TMP_STEP: u64 = 64 << 20;

#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes that all slots together may be charged.
    pub budget: u64,
    /// Slots that may initialise at once.
    pub starts: usize,
    /// Requests at once: running and waiting. Who has its answer does not count. Reserves are parts of it.
    pub concurrency: usize,
    /// Requests that may wait, for each function.
    pub waiters: usize,
    /// A slot idle for so long is retired.
    pub idle: Duration,
    /// How long a request waits for a settling slot.
    pub settle: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u64);

/// A request's place in the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    pub function: FunctionName,
    pub stamp: Stamp,
    pub memory: Memory,
    /// Refused if not served by then.
    pub until: Instant,
}

/// What a slot uses when it is given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All of it, /tmp included, in bytes.
    pub now: u64,
    /// /tmp alone.
    pub tmp: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retire {
    IdleTooLong,
    /// The function has changed or is gone.
    Stale,
    /// Its memory is needed.
    Evicted,
    Stopping,
    /// It died while idle.
    Dead,
}

/// What the driver has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Lend { ticket: Ticket, slot: SlotId },
    Start { ticket: Ticket, slot: SlotId },
    Refuse { ticket: Ticket, why: Throttle },
    Retire { slot: SlotId, why: Retire },
}

#[derive(Clone, Debug)]
pub struct Slot {
    pub function: FunctionName,
    pub stamp: Stamp,
    pub memory: Memory,
    pub state: State,
    pub born: Instant,
    pub loans: u64,
    /// Granted steps of /tmp.
    tmp_steps: u64,
}

/// What is true of a slot; see the drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Reserved; being built for one request.
    Initialising,
    /// Lent to one request. Once answered, it is expected back any moment: *settling*.
    Busy { answered: bool },
    /// Frozen.
    Idle { since: Instant, charge: u64 },
}

#[derive(Debug)]
struct Waiter {
    ticket: Ticket,
    want: Want,
    /// Waits for a settling slot until then, and only then for a start.
    hold_until: Instant,
    /// What was missing when last looked at.
    short: Throttle,
}

#[derive(Debug)]
pub struct Core {
    limits: Limits,
    slots: BTreeMap<SlotId, Slot>,
    /// Idle slots of each function, the most recently used last.
    idle: HashMap<FunctionName, Vec<SlotId>>,
    /// In order of tickets.
    waiting: Vec<Waiter>,
    /// Requests at once of the functions that have a bound of their own.
    reserves: BTreeMap<FunctionName, usize>,
    next: u64,
}

impl Core {
    pub fn new(limits: Limits) -> Self {
        let (slots, reserves) = (BTreeMap::new(), BTreeMap::new());
        Self { limits, slots, idle: HashMap::new(), waiting: Vec::new(), reserves, next: 0 }
    }

    /// A new request. It is served, refused, or waits, and then hears by a later call's orders.
    pub fn request(&mut self, want: Want, now: Instant) -> (Ticket, Vec<Order>) {
        let ticket = Ticket(self.number());
        let (in_flight, most, why) = self.share(&want.function);
        if in_flight >= most {
            return (ticket, vec![Order::Refuse { ticket, why }]);
        }
        if want.memory.bytes() > self.limits.budget {
            return (ticket, vec![Order::Refuse { ticket, why: Throttle::Memory }]);
        }
        let function = want.function.clone();
        let mut orders = Vec::new();
        self.enqueue(ticket, want, now);
        self.serve(now, &mut orders);
        let waiters = self.waiting.iter().filter(|waiter| waiter.want.function == function).count();
        if waiters > self.limits.waiters && self.waiting.last().is_some_and(|last| last.ticket == ticket) {
            let why = self.waiting.pop().map_or(Throttle::Starts, |last| last.short);
            orders.push(Order::Refuse { ticket, why });
        }
        (ticket, orders)
    }

    /// The slot that was just lent to `ticket` turned out to be dead: the request keeps its place.
    pub fn replace(&mut self, slot: SlotId, ticket: Ticket, want: Want, now: Instant) -> Vec<Order> {
        let mut orders = Vec::new();
        self.forget(slot);
        self.enqueue(ticket, want, now);
        self.shed(&mut orders);
        self.serve(now, &mut orders);
        orders
    }

    /// A request that waited has gone away.
    pub fn abandon(&mut self, ticket: Ticket, now: Instant) -> Vec<Order> {
        self.waiting.retain(|waiter| waiter.ticket != ticket);
        self.served(now)
    }

    /// An initialising slot is ready, and busy with the request that it was started for.
    pub fn started(&mut self, slot: SlotId, now: Instant) -> Vec<Order> {
        if let Some(slot) = self.slots.get_mut(&slot) {
            slot.state = State::Busy { answered: false };
            slot.loans = 1;
        }
        self.served(now)
    }

    /// The request has its answer; the slot will be given back or removed soon.
    pub fn answered(&mut self, slot: SlotId) {
        if let Some(Slot { state: State::Busy { answered }, .. }) = self.slots.get_mut(&slot) {
            *answered = true;
        }
    }

    /// A busy slot comes back, clean and frozen. `current` is its function's stamp now; `None`: deleted.
    pub fn give_back(&mut self, id: SlotId, usage: Usage, current: Option<Stamp>, now: Instant) -> Vec<Order> {
        let mut orders = Vec::new();
        let Some(slot) = self.slots.get(&id) else { return orders };
        let why = if current != Some(slot.stamp) {
            Some(Retire::Stale)
        } else if !self.grow_into(id, usage.tmp, &mut orders) {
            Some(Retire::Evicted)
        } else {
            None
        };
        if let Some(why) = why {
            self.retire(id, why, &mut orders);
        } else if let Some(slot) = self.slots.get_mut(&id) {
            slot.tmp_steps = usage.tmp.div_ceil(TMP_STEP);
            // What is above the loan's charge is page cache, which the kernel takes back by itself.
            slot.state = State::Idle { since: now, charge: usage.now.min(slot.loan_charge()) };
            self.idle.entry(slot.function.clone()).or_default().push(id);
        }
        self.serve(now, &mut orders);
        orders
    }

    /// A slot has ended: failed to start, was dirtied by its request, or died while idle.
    pub fn remove(&mut self, slot: SlotId, now: Instant) -> Vec<Order> {
        self.forget(slot);
        self.served(now)
    }

    /// An initialising or busy slot uses so many bytes of /tmp. `false`: no room is left, it has to end.
    pub fn grow(&mut self, slot: SlotId, tmp: u64) -> (bool, Vec<Order>) {
        let mut orders = Vec::new();
        let granted = self.grow_into(slot, tmp, &mut orders);
        (granted, orders)
    }

    /// The function has a new stamp, or none any more: idle slots of other stamps go now, busy ones at return.
    pub fn function_changed(&mut self, function: &FunctionName, current: Option<Stamp>, now: Instant) -> Vec<Order> {
        let idle = self.idle.get(function).cloned().unwrap_or_default();
        let mut orders = Vec::new();
        for slot in idle {
            if self.slots.get(&slot).map(|slot| slot.stamp) != current {
                self.retire(slot, Retire::Stale, &mut orders);
            }
        }
        self.serve(now, &mut orders);
        orders
    }

    /// From now on so many requests at once are the function's own; `None`: it has no reserve, and shares what nobody
    /// has reserved. Those that wait and are too many now are refused; those that run are not.
    pub fn reserve(&mut self, function: &FunctionName, reserve: Option<usize>, now: Instant) -> Vec<Order> {
        match reserve {
            Some(reserve) => self.reserves.insert(function.clone(), reserve),
            None => self.reserves.remove(function),
        };
        let mut orders = Vec::new();
        self.shed(&mut orders);
        self.serve(now, &mut orders);
        orders
    }

    /// Other limits from now on. What is idle gives way to a smaller budget; what runs is not touched.
    pub fn bound(&mut self, limits: Limits, now: Instant) -> Vec<Order> {
        self.limits = limits;
        let mut orders = Vec::new();
        let idle: u64 = self.idle_slots().map(|(_, _, charge)| charge).sum();
        let over = self.charged().saturating_sub(self.limits.budget).min(idle);
        if over > 0 {
            self.evict(over, None, &mut orders);
        }
        self.shed(&mut orders);
        self.serve(now, &mut orders);
        orders
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) -> Vec<Order> {
        let mut orders = Vec::new();
        let tired: Vec<SlotId> =
            self.idle_slots().filter(|(_, since, _)| *since + self.limits.idle <= now).map(|s| s.0).collect();
        for slot in tired {
            self.retire(slot, Retire::IdleTooLong, &mut orders);
        }
        self.serve(now, &mut orders);
        let before = self.waiting.len();
        self.waiting.retain(|waiter| {
            let late = waiter.want.until <= now;
            if late {
                orders.push(Order::Refuse { ticket: waiter.ticket, why: waiter.short });
            }
            !late
        });
        // Others may have waited only for their turn behind one of these.
        if self.waiting.len() < before {
            self.serve(now, &mut orders);
        }
        orders
    }

    /// Retires every idle slot.
    pub fn stop(&mut self) -> Vec<Order> {
        let mut orders = Vec::new();
        for slot in self.idle_slots().map(|slot| slot.0).collect::<Vec<_>>() {
            self.retire(slot, Retire::Stopping, &mut orders);
        }
        orders
    }

    pub fn slot(&self, slot: SlotId) -> Option<&Slot> {
        self.slots.get(&slot)
    }

    pub fn slots(&self) -> impl Iterator<Item = (SlotId, &Slot)> {
        self.slots.iter().map(|(id, slot)| (*id, slot))
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub fn charged(&self) -> u64 {
        self.slots.values().map(Slot::charge).sum()
    }

    pub fn starting(&self) -> usize {
        self.slots.values().filter(|slot| slot.state == State::Initialising).count()
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight_of(|_| true)
    }

    /// Functions with a reserve, how large it is, and their requests at this moment.
    pub fn reserves(&self) -> impl Iterator<Item = (&FunctionName, usize, usize)> {
        self.reserves.iter().map(|(function, reserve)| (function, *reserve, self.in_flight_of(|other| other == function)))
    }

    /// Requests at once that nobody has reserved.
    pub fn unreserved(&self) -> usize {
        self.limits.concurrency.saturating_sub(self.reserves.values().sum())
    }

    fn in_flight_of(&self, counts: impl Fn(&FunctionName) -> bool) -> usize {
        let in_flight = |slot: &&Slot| matches!(slot.state, State::Initialising | State::Busy { answered: false });
        self.slots.values().filter(in_flight).filter(|slot| counts(&slot.function)).count()
            + self.waiting.iter().filter(|waiter| counts(&waiter.want.function)).count()
    }

    /// Requests at this moment in what the function draws on (its reserve, or what nobody has reserved), how many it
    /// allows, and what is short when it is used up.
    fn share(&self, function: &FunctionName) -> (usize, usize, Throttle) {
        match self.reserves.get(function) {
            Some(reserve) => (self.in_flight_of(|other| other == function), *reserve, Throttle::Reserved),
            None => (self.in_flight_of(|other| !self.reserves.contains_key(other)), self.unreserved(), Throttle::Concurrency),
        }
    }

    /// All slots of the function's reserve run, settling ones included. Never true of a function without one.
    fn is_used_up(&self, function: &FunctionName) -> bool {
        let runs = |slot: &&Slot| slot.function == *function && !matches!(slot.state, State::Idle { .. });
        self.reserves.get(function).is_some_and(|reserve| self.slots.values().filter(runs).count() >= *reserve)
    }

    /// Refuses those who wait beyond their share, the latest first.
    fn shed(&mut self, orders: &mut Vec<Order>) {
        for at in (0..self.waiting.len()).rev() {
            let (in_flight, most, why) = self.share(&self.waiting[at].want.function);
            if in_flight > most {
                orders.push(Order::Refuse { ticket: self.waiting.remove(at).ticket, why });
            }
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn idle_slots(&self) -> impl Iterator<Item = (SlotId, Instant, u64)> + '_ {
        self.slots.iter().filter_map(|(id, slot)| match slot.state {
            State::Idle { since, charge } => Some((*id, since, charge)),
            _ => None,
        })
    }

    fn enqueue(&mut self, ticket: Ticket, want: Want, now: Instant) {
        let alike = |function: &FunctionName, stamp| *function == want.function && stamp == want.stamp;
        let settling = (self.slots.values())
            .filter(|slot| slot.state == State::Busy { answered: true } && alike(&slot.function, slot.stamp))
            .count();
        let before = self.waiting.iter().filter(|waiter| alike(&waiter.want.function, waiter.want.stamp)).count();
        let hold_until = if settling > before { now + self.limits.settle } else { now };
        let place = self.waiting.partition_point(|waiter| waiter.ticket < ticket);
        self.waiting.insert(place, Waiter { ticket, want, hold_until, short: Throttle::Starts });
    }

    fn served(&mut self, now: Instant) -> Vec<Order> {
        let mut orders = Vec::new();
        self.serve(now, &mut orders);
        orders
    }

    /// Gives what there is to those who wait.
    fn serve(&mut self, now: Instant, orders: &mut Vec<Order>) {
        let mut short: Option<Throttle> = None;
        let mut at = 0;
        while let Some(waiter) = self.waiting.get(at) {
            let (ticket, want, held) = (waiter.ticket, waiter.want.clone(), waiter.hold_until > now);
            // Holds up nobody else: what it waits for, nobody else could use.
            if self.is_used_up(&want.function) {
                self.waiting[at].short = Throttle::Reserved;
                at += 1;
                continue;
            }
            if let Some(slot) = self.thaw(&want, orders) {
                self.waiting.remove(at);
                orders.push(Order::Lend { ticket, slot });
                continue;
            }
            if held {
                at += 1;
                continue;
            }
            match short.map_or_else(|| self.start(&want, now, orders), Err) {
                Ok(slot) => {
                    let first = self.first_alike(&want, at);
                    let hold_until = self.waiting[first].hold_until;
                    self.waiting[at].hold_until = hold_until;
                    let ticket = self.waiting.remove(first).ticket;
                    orders.push(Order::Start { ticket, slot });
                }
                Err(missing) => {
                    short = Some(missing);
                    self.waiting[at].short = missing;
                    at += 1;
                }
            }
        }
    }

    /// The first in the queue who wants the same: it gets the start, and who asked takes over its hope
    /// for a settling slot. Else the later one would overtake.
    fn first_alike(&self, want: &Want, at: usize) -> usize {
        let alike = |waiter: &Waiter| waiter.want.function == want.function && waiter.want.stamp == want.stamp;
        self.waiting[..at].iter().position(alike).unwrap_or(at)
    }

    /// Lends the most recently used idle slot of this very stamp, if its loan can be paid for.
    fn thaw(&mut self, want: &Want, orders: &mut Vec<Order>) -> Option<SlotId> {
        let idle = self.idle.get(&want.function)?;
        let id = idle.iter().rev().copied().find(|id| self.slots.get(id).is_some_and(|slot| slot.stamp == want.stamp))?;
        let slot = self.slots.get(&id)?;
        let more = slot.loan_charge() - slot.charge();
        if !self.make_room(more, Some(id), orders) {
            return None;
        }
        self.unlist(&want.function, id);
        let slot = self.slots.get_mut(&id)?;
        slot.state = State::Busy { answered: false };
        slot.loans += 1;
        Some(id)
    }

    fn start(&mut self, want: &Want, now: Instant, orders: &mut Vec<Order>) -> Result<SlotId, Throttle> {
        if self.starting() >= self.limits.starts {
            return Err(Throttle::Starts);
        }
        if !self.make_room(want.memory.bytes(), None, orders) {
            return Err(Throttle::Memory);
        }
        let id = SlotId(self.number());
        let slot = Slot {
            function: want.function.clone(),
            stamp: want.stamp,
            memory: want.memory,
            state: State::Initialising,
            born: now,
            loans: 0,
            tmp_steps: 0,
        };
        self.slots.insert(id, slot);
        Ok(id)
    }

    fn grow_into(&mut self, id: SlotId, tmp: u64, orders: &mut Vec<Order>) -> bool {
        let steps = tmp.div_ceil(TMP_STEP);
        let Some(granted) = self.slots.get(&id).map(|slot| slot.tmp_steps) else { return true };
        if steps <= granted {
            return true;
        }
        let room = self.make_room((steps - granted) * TMP_STEP, Some(id), orders);
        if let (true, Some(slot)) = (room, self.slots.get_mut(&id)) {
            slot.tmp_steps = steps;
        }
        room
    }

    /// Evicts idle slots, least recently used first and never `keep`, until so many bytes are free.
    /// Evicts none if all of them together would not be enough.
    fn make_room(&mut self, bytes: u64, keep: Option<SlotId>, orders: &mut Vec<Order>) -> bool {
        let free = self.limits.budget.saturating_sub(self.charged());
        let Some(missing) = bytes.checked_sub(free).filter(|missing| *missing > 0) else { return true };
        self.evict(missing, keep, orders)
    }

    fn evict(&mut self, mut missing: u64, keep: Option<SlotId>, orders: &mut Vec<Order>) -> bool {
        let mut victims: Vec<_> = self.idle_slots().filter(|(id, ..)| Some(*id) != keep).collect();
        if victims.iter().map(|(_, _, charge)| charge).sum::<u64>() < missing {
            return false;
        }
        victims.sort_by_key(|(id, since, _)| (*since, *id));
        for (id, _, charge) in victims {
            self.retire(id, Retire::Evicted, orders);
            missing = missing.saturating_sub(charge);
            if missing == 0 {
                break;
            }
        }
        true
    }

    fn retire(&mut self, slot: SlotId, why: Retire, orders: &mut Vec<Order>) {
        self.forget(slot);
        orders.push(Order::Retire { slot, why });
    }

    fn forget(&mut self, id: SlotId) {
        if let Some(slot) = self.slots.remove(&id) {
            self.unlist(&slot.function, id);
        }
    }

    fn unlist(&mut self, function: &FunctionName, id: SlotId) {
        if let Some(idle) = self.idle.get_mut(function) {
            idle.retain(|other| *other != id);
            if idle.is_empty() {
                self.idle.remove(function);
            }
        }
    }
}

impl Slot {
    /// What it is charged now.
    pub fn charge(&self) -> u64 {
        match self.state {
            State::Idle { charge, .. } => charge,
            State::Initialising | State::Busy { .. } => self.loan_charge(),
        }
    }

    /// What it is charged while it runs.
    fn loan_charge(&self) -> u64 {
        self.memory.bytes() + self.tmp_steps * TMP_STEP
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
