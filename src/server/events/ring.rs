//! The last events, and who reads them.
//!
//! Two bounded queues: of the frequent ones (invocations), and of the rare ones, so that thousands of invocations a second do not
//! wash away why an environment started or ended. Listeners hold a place, and no queue: who falls behind loses what is gone.

use std::collections::VecDeque;
use std::time::SystemTime;

use super::{Event, Events};
use crate::function::FunctionName;
use crate::invocation::RequestId;

/// Events of invocations, and others: together some 4 MB at the most.
const FREQUENT: usize = 8192;
const RARE: usize = 8192;
/// Events looked at, and told, under the lock at once.
const LOOKS: usize = 2048;
const TOLD: usize = 256;

pub struct Ring {
    first: u64,
    next: u64,
    /// Each in the order of `seq`.
    frequent: VecDeque<Event>,
    rare: VecDeque<Event>,
}

/// Which events somebody wants; by default all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub functions: Vec<FunctionName>,
    pub container: Option<String>,
    pub request: Option<RequestId>,
    /// Names of [`super::What`].
    pub kinds: Vec<String>,
    pub since: Option<SystemTime>,
}

impl Filter {
    pub fn lets(&self, event: &Event) -> bool {
        (self.functions.is_empty() || event.function.as_ref().is_some_and(|function| self.functions.contains(function)))
            && self.container.as_deref().is_none_or(|container| event.container.as_deref() == Some(container))
            && self.request.is_none_or(|request| event.request == Some(request))
            && (self.kinds.is_empty() || self.kinds.iter().any(|kind| kind == event.what.name()))
            && self.since.is_none_or(|since| event.at >= since)
    }
}

impl Ring {
    pub fn new(first: u64) -> Self {
        Self { first, next: first, frequent: VecDeque::new(), rare: VecDeque::new() }
    }

    pub fn next(&self) -> u64 {
        self.next
    }

    pub fn first(&self) -> u64 {
        self.first
    }

    /// Whether this number is one of this ring's, or its next.
    pub fn knows(&self, seq: u64) -> bool {
        (self.first..=self.next).contains(&seq)
    }

    pub fn push(&mut self, event: Event) {
        self.next = event.seq + 1;
        let (queue, most) = if event.what.is_frequent() { (&mut self.frequent, FREQUENT) } else { (&mut self.rare, RARE) };
        if queue.len() == most {
            queue.pop_front();
        }
        queue.push_back(event);
    }

    /// Reads on from `place`, in order, both queues as one. `None`: there is no more.
    fn read(&self, place: &mut u64, counted_from: u64, filter: &Filter) -> Option<Heard> {
        if *place >= self.next {
            return None;
        }
        let after = |queue: &VecDeque<Event>| queue.partition_point(|event| event.seq < *place);
        let (mut frequent, mut rare) = (after(&self.frequent), after(&self.rare));
        let mut heard = Heard::default();
        for _ in 0..LOOKS {
            let event = match (self.frequent.get(frequent), self.rare.get(rare)) {
                (Some(one), Some(other)) if one.seq < other.seq => one,
                (Some(one), None) => one,
                (_, Some(other)) => other,
                // The newest is always there: nothing is missing behind the last one.
                (None, None) => {
                    *place = self.next;
                    break;
                }
            };
            *(if event.what.is_frequent() { &mut frequent } else { &mut rare }) += 1;
            heard.lost += event.seq.saturating_sub((*place).max(counted_from));
            *place = event.seq + 1;
            if filter.lets(event) {
                heard.events.push(event.clone());
            }
            if heard.events.len() == TOLD {
                break;
            }
        }
        Some(heard)
    }
}

/// Some events, in their order.
#[derive(Debug, Default, PartialEq)]
pub struct Heard {
    pub events: Vec<Event>,
    /// So many others, of anybody, are missing before or among them: they came faster than this listener has read.
    pub lost: u64,
}

/// A place in the stream of events.
pub struct Listener {
    events: Events,
    filter: Filter,
    place: u64,
    /// What is missing before this was gone before the listener came.
    counted_from: u64,
}

impl Listener {
    pub(super) fn new(events: Events, filter: Filter, place: u64, counted_from: u64) -> Self {
        Self { events, filter, place, counted_from }
    }

    /// What there is already, perhaps nothing that the filter lets through. `None`: no more for now.
    pub fn heard(&mut self) -> Option<Heard> {
        self.events.ring().read(&mut self.place, self.counted_from, &self.filter)
    }

    /// Waits for events, or for the loss of some.
    pub async fn next(&mut self) -> Heard {
        loop {
            let events = self.events.clone();
            let mut more = std::pin::pin!(events.0.more.notified());
            // Before the look, so that what comes after it is noticed.
            more.as_mut().enable();
            match self.heard() {
                Some(heard) if heard.lost > 0 || !heard.events.is_empty() => return heard,
                // Not for us; others may want the thread.
                Some(_) => tokio::task::yield_now().await,
                None => more.await,
            }
        }
    }
}
