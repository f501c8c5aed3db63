//! Lines that are not where somebody may look for them, counted since the server's start, whosever they were.
//!
//! Counted where they are lost: on the event loop, in the writer's thread and in the mirror's. What is told in the logs
//! themselves says of which function; this says whether it happens at all.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Lost;

/// Why a line is missing, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// In its function's log: more than one invocation may print.
    Excess,
    /// They came faster than they could be written.
    Queue,
    /// The disk is full, or fails.
    Disk,
    /// In the journal: more than a function may write there.
    JournalExcess,
    /// The journal did not take it.
    JournalUntaken,
}

/// How many lines, so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    pub excess: u64,
    pub queue: u64,
    pub disk: u64,
    pub journal_excess: u64,
    pub journal_untaken: u64,
}

#[derive(Debug, Default)]
pub struct Count([AtomicU64; 5]);

impl Count {
    pub fn add(&self, why: Why, lost: Lost) {
        self.0[why as usize].fetch_add(lost.lines, Ordering::Relaxed);
    }

    pub fn now(&self) -> Missing {
        let of = |why: Why| self.0[why as usize].load(Ordering::Relaxed);
        Missing {
            excess: of(Why::Excess),
            queue: of(Why::Queue),
            disk: of(Why::Disk),
            journal_excess: of(Why::JournalExcess),
            journal_untaken: of(Why::JournalUntaken),
        }
    }
}
