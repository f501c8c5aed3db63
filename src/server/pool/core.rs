//! Who is warm, who is next, who must go: decides, does nothing.
//!
//! No clock (`now` is passed in), no lock, no I/O. It knows functions by name and [`Stamp`], sizes in bytes, and
//! numbers of its own for slots and tickets; it could pool umbrellas. [`super::driver`] carries out its orders; its numbers
//! are in [`super::policy`].
//!
//! ```text
//!              start                 give_back   enter
//!  (ticket) ────────▶ Initialising ──▶ Busy ⇄ Idle ──▶ Held ──▶ gone
//!                         │              │ lend │               ▲
//!                         └──────────────┴──────┴───────────────┘ each end with its reason: [`Retire`]
//! ```
//!
//! **The budget.** Charged are: initialising and busy slots with *configured memory + /tmp in use* (in steps of
//! [`super::slot::TMP_STEP`]), idle ones, being frozen, with what they really use. So a loan may cost memory, and idle slots,
//! the least recently used first, are evicted for it; busy ones never are. A victim's memory counts as free from the
//! decision on: its kill is one write away.
//!
//! **Reserves.** A function with a reserve may have so many requests at once and no more, and nobody else can use them up:
//! all functions without one share what is left of the limit. Who comes too many is refused at once; who only finds the
//! reserve's slots *settling* (see below) waits for one of them, so that never more slots run than are reserved.
//!
//! **Who waits** has a place in its function's queue, first come, first served, and never longer than it has patience for.
//! Among functions the one is next that holds the least memory with what runs; one that lacks memory may hold the others
//! up for a moment (a *claim*), so that a large one fits some time. A request that finds a slot of its function *settling*
//! (answered, not yet back) waits for it a moment before it costs a cold start.
//!
//! **Starts.** So many at once; one that takes too long is *late* and gives its place to others, but its function starts
//! no more until that is over. A function whose last init failed gets half of the places; one that fails again and again
//! is started once in a while, and its requests are told the last failure meanwhile.

mod serving;

use std::collections::{BTreeMap, HashMap};

use tokio::time::Instant;

use super::ends::Ends;
use super::failing::Failing;
use super::policy::{self, Limits};
use super::slot::{Gone, Order, Retire, Slot, SlotId, State, TMP_STEP, Ticket, Usage, Want};
use super::waiting::Waiting;
use crate::function::{FunctionName, Reuse, Stamp};
use crate::invocation::Throttle;

#[derive(Debug)]
pub struct Core {
    limits: Limits,
    slots: BTreeMap<SlotId, Slot>,
    /// Idle slots of each function, the most recently used last.
    idle: HashMap<FunctionName, Vec<SlotId>>,
    waiting: Waiting,
    /// Requests at once of the functions that have a bound of their own.
    reserves: BTreeMap<FunctionName, usize>,
    failing: Failing,
    /// Who may hold others up until when.
    claim: Option<(FunctionName, Instant)>,
    /// Nobody may before.
    next_claim: Option<Instant>,
    ends: Ends,
    /// Since [`Self::take_gone`].
    gone: Vec<Gone>,
    tally: Tally,
    next: u64,
}

/// What somebody finds who wants to look into a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It was idle, and is theirs.
    Held,
    /// It is at work, and ends with that.
    Beside,
    /// It will be idle, or gone, in a moment.
    Settling,
    /// Somebody has it already.
    Occupied,
    /// No memory is left for its thaw.
    NoRoom,
    Gone,
}

/// What was decided so far, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub retired: BTreeMap<Retire, u64>,
    pub refused: BTreeMap<Throttle, u64>,
    pub told_again: u64,
}

impl Core {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            slots: BTreeMap::new(),
            idle: HashMap::new(),
            waiting: Waiting::default(),
            reserves: BTreeMap::new(),
            failing: Failing::default(),
            claim: None,
            next_claim: None,
            ends: Ends::default(),
            gone: Vec::new(),
            tally: Tally::default(),
            next: 0,
        }
    }

    /// A new request. It is served, refused, or waits, and then hears by a later call's orders.
    pub fn request(&mut self, want: Want, now: Instant) -> (Ticket, Vec<Order>) {
        let ticket = Ticket(self.number());
        let mut orders = Vec::new();
        let (in_flight, most, why) = self.share(&want.function);
        if in_flight >= most {
            self.refuse(ticket, why, &mut orders);
            return (ticket, orders);
        }
        if want.memory.bytes() > self.limits.budget {
            self.refuse(ticket, Throttle::Memory, &mut orders);
            return (ticket, orders);
        }
        let function = want.function.clone();
        self.enqueue(ticket, want, now);
        self.serve(now, &mut orders);
        let queue = self.waiting.of(&function);
        if queue.len() > self.limits.waiters && queue.last().is_some_and(|last| last.ticket == ticket) {
            let short = self.waiting.remove(&function, ticket).map(|last| last.short);
            let why = if short == Some(Throttle::Reserved) { Throttle::Reserved } else { Throttle::Queue };
            self.refuse(ticket, why, &mut orders);
        }
        (ticket, orders)
    }

    /// The slot that was just lent to `ticket` turned out to be dead: the request keeps its place.
    pub fn replace(&mut self, slot: SlotId, ticket: Ticket, want: Want, now: Instant) -> Vec<Order> {
        let mut orders = Vec::new();
        self.end(slot, Retire::Died);
        self.enqueue(ticket, want, now);
        self.shed(&mut orders);
        self.serve(now, &mut orders);
        orders
    }

    /// A request that waited has gone away.
    pub fn abandon(&mut self, ticket: Ticket, now: Instant) -> Vec<Order> {
        self.waiting.abandon(ticket);
        self.served(now)
    }

    /// Its init goes on inside of its request's time: it needs no place for starts any more.
    pub fn start_is_over(&mut self, slot: SlotId, now: Instant) -> Vec<Order> {
        if let Some(slot) = self.slots.get_mut(&slot) {
            slot.state = State::Busy { answered: false };
            slot.loans = 1;
        }
        self.served(now)
    }

    /// An initialising slot is ready, and busy with the request that it was started for.
    pub fn started(&mut self, slot: SlotId, now: Instant) -> Vec<Order> {
        if let Some(slot) = self.slots.get_mut(&slot) {
            slot.proved = true;
            self.failing.succeeded(&slot.function, slot.stamp);
        }
        self.start_is_over(slot, now)
    }

    /// The init of a slot has failed for good, by the function's own fault. `current` is the function's stamp now.
    pub fn init_failed(&mut self, id: SlotId, current: Option<Stamp>, now: Instant) -> Vec<Order> {
        if let Some(slot) = self.slots.get(&id).filter(|slot| current == Some(slot.stamp)) {
            self.failing.failed(&slot.function, slot.stamp, slot.born, now);
        }
        self.remove(id, Retire::Init, now)
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
        let why = slot.leaving.or(stale(slot.stamp, current)).or(self.used_up(id, slot, now));
        let why = why.or_else(|| (!self.grow_into(id, usage.tmp, &mut orders)).then_some(Retire::Tmp));
        if let Some(why) = why {
            self.retire(id, why, &mut orders);
        } else if let Some(slot) = self.slots.get_mut(&id) {
            slot.tmp_steps = usage.tmp.div_ceil(TMP_STEP);
            // What is above the loan's charge is page cache, which the kernel takes back by itself.
            slot.state = State::Idle { since: now, charge: usage.now.min(slot.loan_charge()) };
            self.idle.entry(slot.function.clone()).or_default().push(id);
            self.fit(&mut orders);
        }
        self.serve(now, &mut orders);
        orders
    }

    /// Who wanted to look into the slot has not been in it, and it rests again: it is idle as before, unless it is to end for another
    /// reason.
    pub fn not_entered(&mut self, id: SlotId, usage: Usage, current: Option<Stamp>, now: Instant) -> Vec<Order> {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.leaving = slot.leaving.filter(|why| *why != Retire::Entered);
        }
        self.give_back(id, usage, current, now)
    }

    /// A slot has ended by itself, or could not be given back.
    pub fn remove(&mut self, slot: SlotId, why: Retire, now: Instant) -> Vec<Order> {
        self.end(slot, why);
        self.served(now)
    }

    /// An initialising or busy slot uses so many bytes of /tmp. `false`: no room is left, it has to end.
    pub fn grow(&mut self, slot: SlotId, tmp: u64) -> (bool, Vec<Order>) {
        let mut orders = Vec::new();
        let granted = self.grow_into(slot, tmp, &mut orders);
        if let (false, Some(slot)) = (granted, self.slots.get_mut(&slot)) {
            slot.leaving.get_or_insert(Retire::Tmp);
        }
        (granted, orders)
    }

    /// The function has a new stamp, or none any more: idle slots of other stamps go now, busy ones at return.
    pub fn function_changed(&mut self, function: &FunctionName, current: Option<Stamp>, now: Instant) -> Vec<Order> {
        self.failing.changed(function, current);
        let mut orders = Vec::new();
        for id in self.idle.get(function).cloned().unwrap_or_default() {
            if let Some(why) = self.slots.get(&id).and_then(|slot| stale(slot.stamp, current)) {
                self.retire(id, why, &mut orders);
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
        // What is not there is not short, also for those who are not looked at now, as another one's claim holds them up.
        if reserve.is_none() {
            let of_reserve = self.waiting.of_mut(function).iter_mut().filter(|waiter| waiter.short == Throttle::Reserved);
            of_reserve.for_each(|waiter| waiter.short = Throttle::Starts);
        }
        let mut orders = Vec::new();
        self.shed(&mut orders);
        self.serve(now, &mut orders);
        orders
    }

    /// Other limits from now on. What is idle gives way to a smaller budget; what runs is not touched.
    pub fn bound(&mut self, limits: Limits, now: Instant) -> Vec<Order> {
        self.limits = limits;
        let mut orders = Vec::new();
        self.fit(&mut orders);
        self.shed(&mut orders);
        for waiter in self.waiting.all().filter(|waiter| waiter.want.memory.bytes() > self.limits.budget) {
            orders.push(Order::Refuse { ticket: waiter.ticket, why: Throttle::Memory });
        }
        self.take_refused(&orders);
        self.serve(now, &mut orders);
        orders
    }

    /// All slots of the function end: those that no request needs now, the others with their invocation. Requests get new ones meanwhile.
    /// Tells how many end later.
    pub fn drain(&mut self, function: &FunctionName, now: Instant) -> (usize, Vec<Order>) {
        let slots: Vec<SlotId> = self.slots.iter().filter(|(_, slot)| slot.function == *function).map(|(id, _)| *id).collect();
        let mut orders = Vec::new();
        let later = slots.into_iter().filter(|id| !self.leave(*id, Retire::Drained, &mut orders)).count();
        self.serve(now, &mut orders);
        (later, orders)
    }

    /// The slot ends: now if no request needs it, which is told, else with its invocation.
    pub fn dismiss(&mut self, slot: SlotId, why: Retire, now: Instant) -> (bool, Vec<Order>) {
        let mut orders = Vec::new();
        let at_once = self.leave(slot, why, &mut orders);
        self.serve(now, &mut orders);
        (at_once, orders)
    }

    /// Somebody wants to look into the slot. An idle one is theirs from now on, if its thaw can be paid for, and serves nobody after
    /// that; one at work ends with its request. One that has answered is `patiently` waited for.
    pub fn enter(&mut self, id: SlotId, patiently: bool, now: Instant) -> (Entry, Vec<Order>) {
        let mut orders = Vec::new();
        let Some(slot) = self.slots.get(&id) else { return (Entry::Gone, orders) };
        let (state, more, function) = (slot.state, slot.loan_charge() - slot.charge(), slot.function.clone());
        let entry = match state {
            State::Held => Entry::Occupied,
            State::Initialising => Entry::Settling,
            State::Busy { answered: true } if patiently => Entry::Settling,
            State::Busy { .. } => Entry::Beside,
            State::Idle { .. } if !self.make_room(more, Some(id), &function, &mut orders) => Entry::NoRoom,
            State::Idle { .. } => Entry::Held,
        };
        if let (Entry::Held | Entry::Beside, Some(slot)) = (entry, self.slots.get_mut(&id)) {
            slot.leaving.get_or_insert(Retire::Entered);
            if entry == Entry::Held {
                slot.state = State::Held;
                self.unlist(&function, id);
            }
        }
        self.serve(now, &mut orders);
        (entry, orders)
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) -> Vec<Order> {
        let mut orders = Vec::new();
        for (id, since, _) in self.least_recently_used() {
            // Asked for each: those that have just gone make the load lighter.
            if since + policy::idle_time(&self.limits, self.charged()) <= now {
                self.retire(id, Retire::Idle, &mut orders);
            } else if self.slots.get(&id).is_some_and(|slot| self.is_old(id, slot, now)) {
                self.retire(id, Retire::Age, &mut orders);
            }
        }
        self.serve(now, &mut orders);
        let before = orders.len();
        for waiter in self.waiting.all().filter(|waiter| waiter.want.until <= now) {
            orders.push(Order::Refuse { ticket: waiter.ticket, why: waiter.short });
        }
        // Others may have waited only for their turn behind one of these.
        if orders.len() > before {
            self.take_refused(&orders[before..]);
            self.serve(now, &mut orders);
        }
        orders
    }

    /// Retires every slot that no request needs.
    pub fn stop(&mut self) -> Vec<Order> {
        let mut orders = Vec::new();
        let resting: Vec<SlotId> = self.slots.iter().filter(|(_, slot)| !slot.works()).map(|(id, _)| *id).collect();
        for slot in resting {
            self.retire(slot, Retire::Stopping, &mut orders);
        }
        orders
    }

    /// The slots that have ended since this was asked the last time, in their order. To be asked after each call.
    pub fn take_gone(&mut self) -> Vec<Gone> {
        std::mem::take(&mut self.gone)
    }

    /// How much is in use of what was short for a request of the function, and how much there is: MiB of memory, starts or
    /// requests at once, requests in its queue.
    pub fn shortage(&self, function: &FunctionName, short: Throttle) -> (u64, u64) {
        let (in_use, limit) = match short {
            Throttle::Memory => return (self.charged() >> 20, self.limits.budget >> 20),
            Throttle::Starts => (self.starting(), self.limits.starts),
            Throttle::Concurrency | Throttle::Reserved => {
                let (in_flight, most, _) = self.share(function);
                (in_flight, most)
            }
            Throttle::Queue => (self.waiting.of(function).len(), self.limits.waiters),
            // The door's, which refuses before anybody asks here, and knows.
            Throttle::Payloads => return (0, 0),
        };
        (in_use as u64, limit as u64)
    }

    /// Somebody was refused before they came here.
    pub fn refused_before(&mut self, why: Throttle) {
        *self.tally.refused.entry(why).or_default() += 1;
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

    pub fn tally(&self) -> &Tally {
        &self.tally
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

    /// Functions whose last init failed.
    pub fn failing(&self) -> usize {
        self.failing.len()
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
            + self.waiting.all().filter(|waiter| counts(&waiter.want.function)).count()
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
        let runs = |slot: &&Slot| slot.function == *function && slot.works();
        self.reserves.get(function).is_some_and(|reserve| self.slots.values().filter(runs).count() >= *reserve)
    }

    /// Refuses those who wait beyond their share, the latest first.
    fn shed(&mut self, orders: &mut Vec<Order>) {
        let mut latest: Vec<(Ticket, FunctionName)> =
            self.waiting.all().map(|waiter| (waiter.ticket, waiter.want.function.clone())).collect();
        latest.sort_by(|a, b| b.cmp(a));
        for (ticket, function) in latest {
            let (in_flight, most, why) = self.share(&function);
            if in_flight > most {
                self.waiting.remove(&function, ticket);
                self.refuse(ticket, why, orders);
            }
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn grow_into(&mut self, id: SlotId, tmp: u64, orders: &mut Vec<Order>) -> bool {
        let steps = tmp.div_ceil(TMP_STEP);
        let Some(granted) = self.slots.get(&id).map(|slot| slot.tmp_steps) else { return true };
        if steps <= granted {
            return true;
        }
        let Some(function) = self.slots.get(&id).map(|slot| slot.function.clone()) else { return true };
        let room = self.make_room((steps - granted) * TMP_STEP, Some(id), &function, orders);
        if let (true, Some(slot)) = (room, self.slots.get_mut(&id)) {
            slot.tmp_steps = steps;
        }
        room
    }

    /// Evicts idle slots, least recently used first and never `keep`, until so many bytes are free, which `function` needs.
    /// Evicts none if all of them together would not be enough.
    fn make_room(&mut self, bytes: u64, keep: Option<SlotId>, function: &FunctionName, orders: &mut Vec<Order>) -> bool {
        let charged = self.charged();
        let Some(mut missing) = (charged + bytes).checked_sub(self.limits.budget).filter(|missing| *missing > 0) else {
            return true;
        };
        let mut victims = self.least_recently_used();
        victims.retain(|(id, ..)| Some(*id) != keep);
        if victims.iter().map(|(_, _, charge)| charge).sum::<u64>() < missing {
            return false;
        }
        for (id, _, charge) in victims {
            self.retire(id, Retire::Memory, orders);
            self.gone.iter_mut().filter(|gone| gone.id == id).for_each(|gone| gone.needed_by = Some(function.clone()));
            missing = missing.saturating_sub(charge);
            if missing == 0 {
                break;
            }
        }
        true
    }

    /// Where the budget was lowered below what runs, nobody may be idle.
    fn fit(&mut self, orders: &mut Vec<Order>) {
        for (id, ..) in self.least_recently_used() {
            if self.charged() <= self.limits.budget {
                break;
            }
            self.retire(id, Retire::Memory, orders);
        }
    }

    /// Idle slots, since when, and what they are charged.
    fn least_recently_used(&self) -> Vec<(SlotId, Instant, u64)> {
        let idle = |(id, slot): (&SlotId, &Slot)| match slot.state {
            State::Idle { since, charge } => Some((*id, since, charge)),
            State::Initialising | State::Busy { .. } | State::Held => None,
        };
        let mut idle: Vec<_> = self.slots.iter().filter_map(idle).collect();
        idle.sort_by_key(|(id, since, _)| (*since, *id));
        idle
    }

    /// A slot that shall serve nobody after this.
    fn used_up(&self, id: SlotId, slot: &Slot, now: Instant) -> Option<Retire> {
        match slot.reuse {
            Reuse::Never => Some(Retire::Once),
            Reuse::Always => self.is_old(id, slot, now).then_some(Retire::Age),
        }
    }

    fn is_old(&self, id: SlotId, slot: &Slot, now: Instant) -> bool {
        policy::life_time(&self.limits, id).is_some_and(|life| slot.born + life <= now)
    }

    /// `true`: it is gone; `false`: it will go.
    fn leave(&mut self, id: SlotId, why: Retire, orders: &mut Vec<Order>) -> bool {
        match self.slots.get_mut(&id) {
            Some(slot) if slot.works() => {
                slot.leaving = Some(why);
                false
            }
            Some(slot) => {
                // Of one that is held, too: who ends it is not who is in it.
                slot.leaving = Some(why);
                self.retire(id, why, orders);
                true
            }
            None => true,
        }
    }

    fn refuse(&mut self, ticket: Ticket, why: Throttle, orders: &mut Vec<Order>) {
        self.refused_before(why);
        orders.push(Order::Refuse { ticket, why });
    }

    /// Takes out of the queues, and counts, who is refused by these orders.
    fn take_refused(&mut self, orders: &[Order]) {
        for order in orders {
            if let Order::Refuse { ticket, why } = order {
                let before = self.waiting.len();
                self.waiting.abandon(*ticket);
                *self.tally.refused.entry(*why).or_default() += u64::from(self.waiting.len() < before);
            }
        }
    }

    fn retire(&mut self, slot: SlotId, why: Retire, orders: &mut Vec<Order>) {
        self.end(slot, why);
        orders.push(Order::Retire { slot, why });
    }

    /// Forgets the slot. What was decided about it before is the better reason.
    fn end(&mut self, id: SlotId, why: Retire) {
        if let Some(slot) = self.slots.remove(&id) {
            self.unlist(&slot.function, id);
            let why = slot.leaving.unwrap_or(why);
            *self.tally.retired.entry(why).or_default() += 1;
            self.ends.ended(&slot.function, why);
            self.gone.push(Gone { id, slot, why, needed_by: None });
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

fn stale(stamp: Stamp, current: Option<Stamp>) -> Option<Retire> {
    match current {
        None => Some(Retire::Deleted),
        Some(current) => (current != stamp).then_some(Retire::Updated),
    }
}

#[cfg(test)]
#[path = "core_cases.rs"]
mod cases;
#[cfg(test)]
#[path = "core_reserves.rs"]
mod reserves;
#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
