//! Which of Lambda's limits hold: those of 2018, or today's.
//!
//! A word. Chosen once for an instance (`profile` in the configuration) and told apart nowhere but here: the door asks
//! for its bounds, the books for what is billed. A function that was stored under the other profile goes on as it is;
//! the bounds are looked at when somebody sets a value.

use std::time::Duration;

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Profile {
    /// As in 2018: 128 to 3008 MB in steps of 64, 512 MB of /tmp, every started 100 ms billed, init free.
    #[default]
    #[serde(rename = "2018")]
    Of2018,
    /// As today: 128 to 10240 MB, 512 to 10240 MB of /tmp, every started millisecond billed, init included.
    #[serde(rename = "current")]
    Current,
}

/// What a profile decides. <https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub memory_max_mib: u32,
    /// Memory is a multiple of it.
    pub memory_step_mib: u32,
    pub tmp_max_mib: u32,
    /// Every started one is billed.
    pub billing_step: Duration,
    pub init: Init,
}

/// Whether the time of an init outside of the invocation is billed; since August 2025 it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    Free,
    Billed,
}

impl Profile {
    pub const fn limits(self) -> Limits {
        match self {
            Self::Of2018 => Limits {
                memory_max_mib: 3008,
                memory_step_mib: 64,
                tmp_max_mib: 512,
                billing_step: Duration::from_millis(100),
                init: Init::Free,
            },
            Self::Current => Limits {
                memory_max_mib: 10_240,
                memory_step_mib: 1,
                tmp_max_mib: 10_240,
                billing_step: Duration::from_millis(1),
                init: Init::Billed,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::function::{Memory, TmpSize};

    #[test]
    fn no_profile_allows_what_no_environment_could_have() {
        for profile in [Profile::Of2018, Profile::Current] {
            let limits = profile.limits();
            assert_eq!(Memory::from_mib(limits.memory_max_mib).unwrap().mib() % limits.memory_step_mib, 0, "{profile:?}");
            assert_eq!(Memory::MIN % limits.memory_step_mib, 0, "{profile:?}");
            assert!(TmpSize::from_mib(limits.tmp_max_mib).is_ok(), "{profile:?}");
        }
    }
}
