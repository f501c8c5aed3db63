//! The invariants: from what was seen to what is wrong with it. Pure, and none depends on how fast the host was.

mod answers;
mod containers;
#[cfg(test)]
mod good;
mod host;
mod ledger;
mod pool;
#[cfg(test)]
mod tests;
mod told;

pub use answers::answers;
pub use containers::containers;
pub use host::{afterwards, growth, trend};
pub use ledger::ledger;
pub use pool::{adds_up, empty, pool_contradicts_itself};
pub use told::{counts, events};

/// A line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    pub invariant: &'static str,
    pub seen: String,
    pub expected: String,
    /// Everything that breaks it.
    pub found: Vec<String>,
}

impl Row {
    pub fn new(invariant: &'static str, seen: impl ToString, expected: impl ToString, found: Vec<String>) -> Self {
        Self { invariant, seen: seen.to_string(), expected: expected.to_string(), found }
    }

    pub fn ok(&self) -> bool {
        self.found.is_empty()
    }
}
