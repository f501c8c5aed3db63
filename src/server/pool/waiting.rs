//! Who waits: a queue for each function, first come, first served within it; and in which order functions are looked at.

use std::collections::{BTreeMap, HashMap};

use tokio::time::Instant;

use super::slot::{Ticket, Want};
use crate::function::FunctionName;
use crate::invocation::Throttle;

#[derive(Debug)]
pub struct Waiter {
    pub ticket: Ticket,
    pub want: Want,
    /// Waits for a settling slot until then, and only then for a start.
    pub hold_until: Instant,
    /// What was missing when last looked at.
    pub short: Throttle,
}

#[derive(Debug, Default)]
pub struct Waiting {
    /// None of them is empty.
    queues: BTreeMap<FunctionName, Queue>,
    next_turn: u64,
}

#[derive(Debug)]
struct Queue {
    /// Grows whenever it was the function's turn; among functions that hold equally much the smallest is next.
    turn: u64,
    /// In order of tickets.
    waiters: Vec<Waiter>,
}

impl Waiting {
    pub fn push(&mut self, waiter: Waiter) {
        self.next_turn += 1;
        let fresh = Queue { turn: self.next_turn, waiters: Vec::new() };
        let queue = self.queues.entry(waiter.want.function.clone()).or_insert(fresh);
        let place = queue.waiters.partition_point(|other| other.ticket < waiter.ticket);
        queue.waiters.insert(place, waiter);
    }

    /// Takes one out of its queue, which has had its turn.
    pub fn take(&mut self, function: &FunctionName, ticket: Ticket) -> Option<Waiter> {
        let waiter = self.remove(function, ticket)?;
        self.next_turn += 1;
        if let Some(queue) = self.queues.get_mut(function) {
            queue.turn = self.next_turn;
        }
        Some(waiter)
    }

    /// Takes one out that goes with nothing: its function's turn is still to come.
    pub fn remove(&mut self, function: &FunctionName, ticket: Ticket) -> Option<Waiter> {
        let queue = self.queues.get_mut(function)?;
        let at = queue.waiters.iter().position(|waiter| waiter.ticket == ticket)?;
        let waiter = queue.waiters.remove(at);
        if queue.waiters.is_empty() {
            self.queues.remove(function);
        }
        Some(waiter)
    }

    pub fn abandon(&mut self, ticket: Ticket) {
        let function = self.all().find(|waiter| waiter.ticket == ticket).map(|waiter| waiter.want.function.clone());
        if let Some(function) = function {
            self.remove(&function, ticket);
        }
    }

    pub fn of(&self, function: &FunctionName) -> &[Waiter] {
        self.queues.get(function).map_or(&[], |queue| &queue.waiters)
    }

    pub fn of_mut(&mut self, function: &FunctionName) -> &mut [Waiter] {
        self.queues.get_mut(function).map_or(&mut [], |queue| &mut queue.waiters)
    }

    pub fn all(&self) -> impl Iterator<Item = &Waiter> {
        self.queues.values().flat_map(|queue| &queue.waiters)
    }

    pub fn functions(&self) -> usize {
        self.queues.len()
    }

    pub fn len(&self) -> usize {
        self.queues.values().map(|queue| queue.waiters.len()).sum()
    }

    /// The functions that wait: who holds the least memory first, and among equals who had a turn the longest ago. So a
    /// function that floods the host gets what is left when all others that want something have as much.
    pub fn in_turn(&self, held: &HashMap<&FunctionName, u64>) -> Vec<FunctionName> {
        let mut order: Vec<_> = self.queues.iter().collect();
        order.sort_by_key(|(function, queue)| (held.get(function).copied().unwrap_or(0), queue.turn));
        order.into_iter().map(|(function, _)| function.clone()).collect()
    }
}
