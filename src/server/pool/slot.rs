//! The words of the pool: slots, and what requests want. They decide nothing. The reasons for starts and ends are everybody's
//! who hears of them, so they are [`crate::server::events`]'.

use tokio::time::Instant;

use crate::function::{FunctionName, Memory, Reuse, Stamp};
use crate::invocation::Throttle;
pub use crate::server::events::{Cold, Retire};

/// /tmp is charged in such steps, so that its growth rarely needs a decision.
pub const TMP_STEP: u64 = 64 << 20;

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
    pub reuse: Reuse,
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

/// What the driver has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Lend {
        ticket: Ticket,
        slot: SlotId,
    },
    Start {
        ticket: Ticket,
        slot: SlotId,
    },
    Refuse {
        ticket: Ticket,
        why: Throttle,
    },
    /// Its function's init keeps failing: it is told so again.
    TellAgain {
        ticket: Ticket,
    },
    Retire {
        slot: SlotId,
        why: Retire,
    },
}

#[derive(Clone, Debug)]
pub struct Slot {
    pub function: FunctionName,
    pub stamp: Stamp,
    pub memory: Memory,
    pub reuse: Reuse,
    pub state: State,
    pub born: Instant,
    pub loans: u64,
    /// Its init is over, and was good.
    pub proved: bool,
    /// It ends when its invocation does.
    pub leaving: Option<Retire>,
    /// Why it was started.
    pub why: Cold,
    /// Granted steps of /tmp.
    pub(super) tmp_steps: u64,
}

/// A slot that has ended.
#[derive(Clone, Debug)]
pub struct Gone {
    pub id: SlotId,
    pub slot: Slot,
    pub why: Retire,
    /// The function that its memory was needed for.
    pub needed_by: Option<FunctionName>,
}

/// What is true of a slot; see the drawing in [`super::core`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Reserved; being built for one request.
    Initialising,
    /// Lent to one request. Once answered, it is expected back any moment: *settling*.
    Busy { answered: bool },
    /// Frozen.
    Idle { since: Instant, charge: u64 },
    /// Thawed for somebody who looks into it: lent to nobody, and to nobody any more.
    Held,
}

impl Slot {
    pub(super) fn reserved(want: &Want, why: Cold, now: Instant) -> Self {
        Self {
            function: want.function.clone(),
            stamp: want.stamp,
            memory: want.memory,
            reuse: want.reuse,
            state: State::Initialising,
            born: now,
            loans: 0,
            proved: false,
            leaving: None,
            why,
            tmp_steps: 0,
        }
    }

    /// What it is charged now.
    pub fn charge(&self) -> u64 {
        match self.state {
            State::Idle { charge, .. } => charge,
            State::Initialising | State::Busy { .. } | State::Held => self.loan_charge(),
        }
    }

    /// What it is charged while it runs.
    pub(super) fn loan_charge(&self) -> u64 {
        self.memory.bytes() + self.tmp_steps * TMP_STEP
    }

    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle { .. })
    }

    /// For a request, which it may not be taken from.
    pub fn works(&self) -> bool {
        matches!(self.state, State::Initialising | State::Busy { .. })
    }

    /// Answered, and coming back to be lent again.
    pub(super) fn settles_for(&self, want: &Want) -> bool {
        self.state == State::Busy { answered: true }
            && (self.stamp, self.leaving, self.reuse) == (want.stamp, None, Reuse::Always)
            && self.function == want.function
    }
}
