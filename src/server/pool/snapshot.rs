//! What people on duty see of the pool: a copy, made under the lock, free of it afterwards.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::slot::Retire;
use crate::function::FunctionName;
use crate::invocation::Throttle;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The host's memory that environments may use, and what they are charged now.
    pub budget_mib: u64,
    pub charged_mib: u64,
    /// Invocations accepted and not yet answered, and their bound.
    pub in_flight: usize,
    pub concurrency: usize,
    /// The part of that bound which no function has reserved.
    pub unreserved: usize,
    pub reserves: Vec<Reserve>,
    /// Environments that initialise now, and their bound.
    pub starting: usize,
    pub parallel_starts: usize,
    /// Invocations that wait for capacity.
    pub waiting: usize,
    /// Functions whose last init failed.
    pub failing: usize,
    /// Since the start of this server: environments that ended, and invocations that were refused, by reason.
    pub retired: BTreeMap<Retire, u64>,
    pub refused: BTreeMap<Throttle, u64>,
    /// Invocations that were told their function's last init failure, which was too recent to try again.
    pub told_again: u64,
    pub environments: Vec<Seen>,
}

/// A function with reserved concurrency.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reserve {
    pub function: FunctionName,
    pub reserved: usize,
    /// Its invocations accepted and not yet answered.
    pub in_flight: usize,
}

/// One environment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    pub function: FunctionName,
    /// `$LATEST` or a number.
    pub version: String,
    pub state: SeenState,
    pub age_s: f64,
    /// Since when it is idle, for idle ones.
    pub idle_s: Option<f64>,
    /// Configured memory.
    pub memory_mib: u32,
    /// What it is charged against the budget.
    pub charged_mib: u64,
    /// What the function used when last looked at, and the most so far.
    pub used_mib: u64,
    pub peak_mib: u64,
    /// The CPU time that its processes have used so far; none where it was not looked at.
    pub cpu_ms: Option<u64>,
    /// Invocations handed over so far, the running one included.
    pub invocations: u64,
    /// The container's id; none while it is being built.
    pub container: Option<String>,
    /// Why it ends when its invocation does; none if it may serve another.
    pub leaving: Option<Retire>,
}

/// What a drain of a function did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    pub function: FunctionName,
    /// Environments that were idle, and are gone.
    pub ended: usize,
    /// Those that end when their invocation does.
    pub leaving: usize,
}

/// What became of one environment that somebody wants to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dismissed {
    pub container: String,
    pub function: FunctionName,
    /// As it was.
    pub state: SeenState,
    /// It is gone, or being killed; otherwise it goes when its invocation ends.
    pub ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SeenState {
    Initialising,
    Idle,
    Busy,
    /// Somebody looks into it, and nobody else gets it.
    Held,
}

impl SeenState {
    /// With their names, as JSON and metrics have them.
    pub const ALL: [(Self, &str); 4] =
        [(Self::Initialising, "initialising"), (Self::Idle, "idle"), (Self::Busy, "busy"), (Self::Held, "held")];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_states_has_every_state() {
        let unknown = serde_json::from_value::<SeenState>("nothing".into()).unwrap_err().to_string();
        let named: Vec<&str> = unknown.split('`').skip(3).step_by(2).collect();
        assert_eq!(named, SeenState::ALL.map(|(_, name)| name));
        assert_eq!(serde_json::json!(named), serde_json::json!(SeenState::ALL.map(|(state, _)| state)));
    }
}
