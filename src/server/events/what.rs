//! The words of events: what may happen, and every reason that the pool has for a start and for an end. They decide nothing.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::function::FunctionName;
use crate::invocation::Throttle;

/// What happened. People, programs and metrics know these by their names in snake case.
///
/// ```text
/// Starting ─┬─▶ Ready ─▶ ( [Thawed] Invoked ─┬─▶ [Frozen] Ended )* ─▶ Retired     one environment
///           └─▶ InitFailed                   └─▶ TakenBack
/// ```
///
/// Each `Starting` is followed by exactly one `Ready` or `InitFailed`, each `Ready` by exactly one `Retired`, each `Invoked` by
/// exactly one `Ended`, or by `TakenBack` and another `Invoked` of the same request.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// An environment is being built for a request.
    Starting {
        /// Why no warm one could serve it.
        #[serde(flatten)]
        why: Cold,
    },
    /// Its container is there, and its init is over.
    Ready {
        build_us: u64,
        init_us: u64,
    },
    /// It could not be built, or its init failed.
    InitFailed {
        /// As REPORT names it.
        cause: String,
        text: String,
        /// Who has killed it by hand, if anybody.
        #[serde(skip_serializing_if = "Option::is_none")]
        by: Option<String>,
        /// It is tried once more, within the request.
        again: bool,
        init_us: u64,
        peak_mib: u64,
    },
    /// The event was handed over (START).
    Invoked {
        cold: bool,
        /// How long the request waited for capacity.
        waited_us: u64,
    },
    /// The runtime had died before it read the event, which goes to another environment.
    TakenBack,
    Frozen,
    Thawed,
    /// The invocation is over, and in the books (REPORT).
    Ended {
        duration_us: u64,
        billed_ms: u64,
        /// As configured.
        memory_mib: u32,
        max_memory_mib: u64,
        /// Only where an init ran outside of the invocation.
        init_us: Option<u64>,
        cold: bool,
        /// As the books have it: what the handler reported, or what ended its environment. `None`: success.
        cause: Option<String>,
    },
    /// Refused, as something was short.
    Throttled {
        reason: Throttle,
        waited_us: u64,
        /// How much of it was in use, and how much there is: MiB of memory, starts at once, requests at once, or requests in the
        /// function's queue.
        in_use: u64,
        limit: u64,
    },
    /// Somebody looks into the container, and has left it.
    Entered {
        by: String,
    },
    Left {
        by: String,
    },
    /// The environment is gone.
    Retired {
        why: Retire,
        #[serde(flatten)]
        detail: Detail,
        age_s: f64,
        invocations: u64,
        peak_mib: u64,
    },
    LauncherStarted {
        launcher: u32,
    },
    /// It is dead, and its containers with it.
    LauncherLost {
        launcher: u32,
    },
    /// The supervisor has removed what nobody had any more.
    Swept {
        when: When,
        cgroups: u64,
        staging: u64,
        code: u64,
    },
    /// kilnd takes no new invocations.
    Draining,
}

/// When something was found that nobody had any more. People and metrics know these by their names in snake case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// At the supervisor's start: of a kilnd that was killed.
    Start,
    /// A process of kilnd's had died.
    Death,
    /// Nobody had died: a leak, and a bug.
    Running,
}

/// What is known beside the reason of an environment's end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Detail {
    /// What ended its last invocation, or its processes, as REPORT names it, and in words.
    pub cause: Option<String>,
    pub text: Option<String>,
    /// Who wanted it to end.
    pub by: Option<String>,
    /// The function that its memory was needed for.
    pub needed_by: Option<FunctionName>,
}

impl What {
    pub const NAMES: [&str; 16] = [
        "starting",
        "ready",
        "init_failed",
        "invoked",
        "taken_back",
        "frozen",
        "thawed",
        "ended",
        "throttled",
        "entered",
        "left",
        "retired",
        "launcher_started",
        "launcher_lost",
        "swept",
        "draining",
    ];

    /// One of [`Self::NAMES`], as in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting { .. } => "starting",
            Self::Ready { .. } => "ready",
            Self::InitFailed { .. } => "init_failed",
            Self::Invoked { .. } => "invoked",
            Self::TakenBack => "taken_back",
            Self::Frozen => "frozen",
            Self::Thawed => "thawed",
            Self::Ended { .. } => "ended",
            Self::Throttled { .. } => "throttled",
            Self::Entered { .. } => "entered",
            Self::Left { .. } => "left",
            Self::Retired { .. } => "retired",
            Self::LauncherStarted { .. } => "launcher_started",
            Self::LauncherLost { .. } => "launcher_lost",
            Self::Swept { .. } => "swept",
            Self::Draining => "draining",
        }
    }

    /// Of an invocation, so there may be thousands a second; the others are rare.
    pub fn is_frequent(&self) -> bool {
        matches!(
            self,
            Self::Invoked { .. } | Self::TakenBack | Self::Frozen | Self::Thawed | Self::Ended { .. } | Self::Throttled { .. }
        )
    }
}

/// Why no warm environment could serve a request. In JSON `why`, and with `retired` beside it `last_end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(tag = "why", content = "last_end", rename_all = "snake_case")]
pub enum Cold {
    /// Nothing is known of an earlier one: kilnd has not started any for this function yet.
    First,
    /// There are some, and all are busy or starting.
    Busy,
    /// There is none: the last one ended so, or ends so when its invocation does.
    Retired(Retire),
    /// The function's environments serve one invocation each.
    Once,
    /// The first init for this request failed.
    Again,
}

impl fmt::Display for Cold {
    /// One word, for columns and labels: a reason of [`Retire`], or its own name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => f.write_str("first"),
            Self::Busy => f.write_str("busy"),
            Self::Retired(why) => why.fmt(f),
            Self::Once => f.write_str("once"),
            Self::Again => f.write_str("again"),
        }
    }
}

/// Why an environment ends. Logs, metrics and people know these by their names in snake case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retire {
    /// Idle for longer than the load allows.
    Idle,
    /// Older than `max_age_s`.
    Age,
    /// Its memory was needed by others.
    Memory,
    /// The host had no memory left for its /tmp.
    Tmp,
    /// Its function has other code or another configuration now.
    Updated,
    /// Its function is gone.
    Deleted,
    /// Its function's environments serve one invocation each.
    Once,
    /// Its function was drained by hand.
    Drained,
    /// It was recycled by hand.
    Recycled,
    /// It was killed by hand.
    Killed,
    /// Somebody was in its container.
    Entered,
    /// It died while idle.
    Died,
    /// Its init failed.
    Init,
    /// Its invocation ended so that it cannot be used again: timeout, crash, out of memory.
    Failed,
    /// kilnd stops.
    Stopping,
}

impl Retire {
    pub const ALL: [Self; 15] = [
        Self::Idle,
        Self::Age,
        Self::Memory,
        Self::Tmp,
        Self::Updated,
        Self::Deleted,
        Self::Once,
        Self::Drained,
        Self::Recycled,
        Self::Killed,
        Self::Entered,
        Self::Died,
        Self::Init,
        Self::Failed,
        Self::Stopping,
    ];
}

impl fmt::Display for Retire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_ends_has_every_end() {
        let unknown = serde_json::from_value::<Retire>("nothing".into()).unwrap_err().to_string();
        let named: Vec<&str> = unknown.split('`').skip(3).step_by(2).collect();
        assert_eq!(named, Retire::ALL.map(|why| why.to_string()));
    }
}
