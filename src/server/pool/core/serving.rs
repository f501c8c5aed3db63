//! Who is served next, and with what: the half of [`Core`] that looks at those who wait.

use std::collections::HashMap;

use tokio::time::Instant;

use super::Core;
use crate::function::{FunctionName, Reuse};
use crate::invocation::Throttle;
use crate::server::pool::failing::Trial;
use crate::server::pool::policy::{self, CLAIM, NO_CLAIM, PLACE};
use crate::server::pool::slot::{Cold, Order, Retire, Slot, SlotId, State, Ticket, Want};
use crate::server::pool::waiting::Waiter;

impl Core {
    pub(super) fn enqueue(&mut self, ticket: Ticket, want: Want, now: Instant) {
        let settling = self.slots.values().filter(|slot| slot.settles_for(&want)).count();
        let alike = self.waiting.of(&want.function).iter().filter(|waiter| waiter.want.stamp == want.stamp).count();
        let hold_until = if settling > alike { now + self.limits.settle } else { now };
        self.waiting.push(Waiter { ticket, want, hold_until, short: Throttle::Starts });
    }

    pub(super) fn served(&mut self, now: Instant) -> Vec<Order> {
        let mut orders = Vec::new();
        self.serve(now, &mut orders);
        orders
    }

    /// Gives what there is to those who wait. One at a time, since each changes who is next.
    pub(super) fn serve(&mut self, now: Instant, orders: &mut Vec<Order>) {
        self.end_claim(now);
        while self.serve_one(now, orders) {}
    }

    /// `false`: nobody can have anything more now.
    fn serve_one(&mut self, now: Instant, orders: &mut Vec<Order>) -> bool {
        let mut held = HashMap::new();
        if self.waiting.functions() > 1 {
            for slot in self.slots.values().filter(|slot| slot.works()) {
                *held.entry(&slot.function).or_insert(0) += slot.charge();
            }
        }
        for function in self.waiting.in_turn(&held) {
            // Holds up nobody else: what it waits for, nobody else could use.
            if self.is_used_up(&function) {
                self.waiting.of_mut(&function).iter_mut().for_each(|waiter| waiter.short = Throttle::Reserved);
                continue;
            }
            match self.serve_first_of(&function, now, orders) {
                Ok(true) => return true,
                Err(Throttle::Memory) if self.claims(&function, now) => return false,
                Ok(false) | Err(_) => {}
            }
        }
        false
    }

    /// Serves the first who waits for the function. An error: what it lacks; `Ok(false)`: nobody wants to start now.
    fn serve_first_of(&mut self, function: &FunctionName, now: Instant, orders: &mut Vec<Order>) -> Result<bool, Throttle> {
        // Of whom wants the same; who came before or after a change of the function may need more memory, or less.
        let mut lacks = None;
        for at in 0..self.waiting.of(function).len() {
            let Some(waiter) = self.waiting.of(function).get(at) else { break };
            let (ticket, want, held) = (waiter.ticket, waiter.want.clone(), waiter.hold_until > now);
            if let Some(slot) = self.thaw(&want, orders) {
                self.take(function, ticket);
                orders.push(Order::Lend { ticket, slot });
                return Ok(true);
            }
            if held {
                continue;
            }
            if self.comes_back(&want, now) {
                self.waiting.of_mut(function)[at].short = Throttle::Starts;
                continue;
            }
            let start = match lacks {
                Some((stamp, missing)) if stamp == want.stamp => Err(missing),
                _ => self.start(&want, now, orders),
            };
            match start {
                Ok(Some(slot)) => {
                    // The first who wants the same gets the start, and who asked takes over its hope for a settling slot.
                    // Else the later one would overtake.
                    let queue = self.waiting.of_mut(function);
                    let first = queue[..at].iter().position(|waiter| waiter.want.stamp == want.stamp).unwrap_or(at);
                    let hold_until = queue[first].hold_until;
                    queue[at].hold_until = hold_until;
                    let ticket = queue[first].ticket;
                    self.take(function, ticket);
                    orders.push(Order::Start { ticket, slot });
                    return Ok(true);
                }
                Ok(None) => {
                    self.take(function, ticket);
                    self.tally.told_again += 1;
                    orders.push(Order::TellAgain { ticket });
                    return Ok(true);
                }
                Err(missing) => {
                    lacks = Some((want.stamp, missing));
                    self.waiting.of_mut(function)[at].short = missing;
                }
            }
        }
        lacks.map_or(Ok(false), |(_, missing)| Err(missing))
    }

    /// It is served: what it held others up for is over.
    fn take(&mut self, function: &FunctionName, ticket: Ticket) {
        self.waiting.take(function, ticket);
        if self.claim.as_ref().is_some_and(|(of, _)| of == function) {
            self.claim = None;
        }
    }

    /// Whether the function, which lacks memory, may hold up those that come after it.
    fn claims(&mut self, function: &FunctionName, now: Instant) -> bool {
        if self.claim.is_none() && self.next_claim.is_none_or(|next| next <= now) {
            self.claim = Some((function.clone(), now + CLAIM));
        }
        self.claim.as_ref().is_some_and(|(of, _)| of == function)
    }

    fn end_claim(&mut self, now: Instant) {
        let over = |(function, until): &(FunctionName, Instant)| *until <= now || self.waiting.of(function).is_empty();
        if self.claim.as_ref().is_some_and(over) {
            self.claim = None;
            self.next_claim = Some(now + NO_CLAIM);
        }
    }

    /// Lends the most recently used idle slot of this very stamp, if its loan can be paid for.
    fn thaw(&mut self, want: &Want, orders: &mut Vec<Order>) -> Option<SlotId> {
        let idle = self.idle.get(&want.function)?;
        let id = idle.iter().rev().copied().find(|id| self.slots.get(id).is_some_and(|slot| slot.stamp == want.stamp))?;
        let slot = self.slots.get(&id)?;
        let more = slot.loan_charge() - slot.charge();
        if !self.make_room(more, Some(id), &want.function, orders) {
            return None;
        }
        self.unlist(&want.function, id);
        let slot = self.slots.get_mut(&id)?;
        slot.state = State::Busy { answered: false };
        slot.loans += 1;
        Some(id)
    }

    /// Whether no start is tried now since the last one's init failed, and a slot that has served will be idle again: that is to be
    /// waited for, and not to be told of another's failed init.
    fn comes_back(&self, want: &Want, now: Instant) -> bool {
        let own = || self.slots.values().filter(|slot| slot.function == want.function && slot.stamp == want.stamp);
        let paused = match self.failing.trial(&want.function, want.stamp, now) {
            Trial::Not => true,
            Trial::Once => own().any(|slot| !slot.proved),
            Trial::InDoubt | Trial::Free => false,
        };
        paused && own().any(|slot| slot.proved && slot.leaving.is_none() && slot.reuse == Reuse::Always)
    }

    /// `None`: it is not started, but told again why that fails.
    fn start(&mut self, want: &Want, now: Instant, orders: &mut Vec<Order>) -> Result<Option<SlotId>, Throttle> {
        let own = || self.slots.values().filter(|slot| slot.function == want.function);
        let late = |slot: &Slot| slot.state == State::Initialising && slot.born + PLACE <= now;
        let own_starts = own().filter(|slot| slot.state == State::Initialising).count();
        match self.failing.trial(&want.function, want.stamp, now) {
            Trial::Not => return Ok(None),
            Trial::Once if own().any(|slot| !slot.proved && slot.stamp == want.stamp) => return Ok(None),
            Trial::InDoubt if own_starts >= policy::places_in_doubt(self.limits.starts) => return Err(Throttle::Starts),
            Trial::Once | Trial::InDoubt | Trial::Free => {}
        }
        let places = self.slots.values().filter(|slot| slot.state == State::Initialising && !late(slot)).count();
        if places >= self.limits.starts || own().any(late) {
            return Err(Throttle::Starts);
        }
        if !self.make_room(want.memory.bytes(), None, &want.function, orders) {
            return Err(Throttle::Memory);
        }
        // After room was made: an own idle one, with much in /tmp, may have been too dear to thaw, and have gone for it.
        let why = self.why_cold(want);
        let id = SlotId(self.number());
        self.slots.insert(id, Slot::reserved(want, why, now));
        Ok(Some(id))
    }

    /// Why no slot of the function can serve this.
    fn why_cold(&self, want: &Want) -> Cold {
        if want.reuse == Reuse::Never {
            return Cold::Once;
        }
        let own = || self.slots.values().filter(|slot| slot.function == want.function);
        let current = || own().filter(|slot| slot.stamp == want.stamp);
        if current().any(|slot| slot.leaving.is_none() && !slot.is_idle()) {
            Cold::Busy
        } else if current().any(Slot::is_idle) {
            Cold::Retired(Retire::Memory)
        } else if let Some(why) = current().find_map(|slot| slot.leaving) {
            Cold::Retired(why)
        } else if own().next().is_some() {
            Cold::Retired(Retire::Updated)
        } else {
            self.ends.last(&want.function).map_or(Cold::First, Cold::Retired)
        }
    }
}
