//! Memory, time and /tmp, as Lambda counts them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Configured memory in MiB (Lambda writes "MB"): what some [`super::Profile`] allows.
/// <https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Memory(u32);

/// Size of /tmp in MiB: 512, today up to 10240.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct TmpSize(u32);

/// A function's timeout in seconds: 1 to 900.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Timeout(u32);

/// Refused, with the nearest bound in Lambda's grammar ("Member must …").
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{constraint}")]
pub struct NotALimit {
    pub value: u32,
    pub constraint: &'static str,
}

/// The scheduler's period of a container. A shorter one costs latency: a 128 MB function with 12 ms of work takes
/// 141 ms with a period of 20 ms, 43 with this one.
pub const CPU_PERIOD: Duration = Duration::from_millis(100);

/// MiB of memory that come with one whole CPU.
/// <https://docs.aws.amazon.com/lambda/latest/dg/configuration-function-common.html>
const MIB_PER_CPU: u64 = 1769;

impl Memory {
    pub const MIN: u32 = 128;
    /// The most that any profile allows (today's limit).
    pub const MAX: u32 = 10240;

    /// Any size that some profile allows. Steps and the profile's own maximum are checked at the door.
    pub fn from_mib(mib: u32) -> Result<Self, NotALimit> {
        match mib {
            0..Self::MIN => Err(NotALimit { value: mib, constraint: "Member must have value greater than or equal to 128" }),
            Self::MIN..=Self::MAX => Ok(Self(mib)),
            _ => Err(NotALimit { value: mib, constraint: "Member must have value less than or equal to 10240" }),
        }
    }

    pub fn mib(self) -> u32 {
        self.0
    }

    pub fn bytes(self) -> u64 {
        u64::from(self.0) << 20
    }

    /// CPU time that this memory buys in a [`CPU_PERIOD`].
    pub fn cpu_quota(self) -> Duration {
        let micros = CPU_PERIOD.as_micros() as u64 * u64::from(self.0) / MIB_PER_CPU;
        Duration::from_micros(micros)
    }

    /// What this memory weighs against others when the CPUs are busy, where one CPU's worth weighs `one_cpu`.
    pub fn cpu_weight(self, one_cpu: u64) -> u64 {
        one_cpu * u64::from(self.0) / MIB_PER_CPU
    }
}

impl TmpSize {
    pub const DEFAULT: Self = Self(512);

    pub fn from_mib(mib: u32) -> Result<Self, NotALimit> {
        match mib {
            0..512 => Err(NotALimit { value: mib, constraint: "Member must have value greater than or equal to 512" }),
            512..=10240 => Ok(Self(mib)),
            _ => Err(NotALimit { value: mib, constraint: "Member must have value less than or equal to 10240" }),
        }
    }

    pub fn mib(self) -> u32 {
        self.0
    }

    pub fn bytes(self) -> u64 {
        u64::from(self.0) << 20
    }

    /// As many files as a disk of this size would hold with its usual 16 KiB for each inode;
    /// without a bound, empty files would eat kernel memory that no size counts.
    pub fn inodes(self) -> u64 {
        self.bytes() / (16 << 10)
    }
}

impl Timeout {
    pub fn from_secs(secs: u32) -> Result<Self, NotALimit> {
        match secs {
            0 => Err(NotALimit { value: secs, constraint: "Member must have value greater than or equal to 1" }),
            1..=900 => Ok(Self(secs)),
            _ => Err(NotALimit { value: secs, constraint: "Member must have value less than or equal to 900" }),
        }
    }

    pub fn secs(self) -> u32 {
        self.0
    }

    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0.into())
    }
}

macro_rules! as_u32 {
    ($($type:ident, $parse:ident;)*) => {$(
        impl TryFrom<u32> for $type {
            type Error = NotALimit;
            fn try_from(value: u32) -> Result<Self, NotALimit> { Self::$parse(value) }
        }
        impl From<$type> for u32 {
            fn from(limit: $type) -> u32 { limit.0 }
        }
    )*};
}
as_u32! { Memory, from_mib; TmpSize, from_mib; Timeout, from_secs; }

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// More memory never buys less CPU, and each MiB buys its share to the microsecond.
        #[test]
        fn more_memory_is_never_less_of_anything(mib in Memory::MIN..Memory::MAX) {
            let (less, more) = (Memory::from_mib(mib).unwrap(), Memory::from_mib(mib + 1).unwrap());
            let quota = less.cpu_quota();
            prop_assert!(quota <= more.cpu_quota() && less.cpu_weight(1024) <= more.cpu_weight(1024) && less.bytes() < more.bytes());
            let exact = CPU_PERIOD.as_secs_f64() * f64::from(mib) / MIB_PER_CPU as f64;
            prop_assert!((quota.as_secs_f64() - exact).abs() <= 1e-6, "{:?} for {} MiB", quota, mib);
        }

        /// A number is either the limit that it says, or refused with itself and the bound that it breaks.
        #[test]
        fn every_number_is_itself_or_refused(number: u32) {
            match Memory::from_mib(number % 20_000) {
                Ok(memory) => prop_assert_eq!((memory.mib(), memory.bytes() >> 20), (number % 20_000, u64::from(number % 20_000))),
                Err(refused) => prop_assert!(refused.value < Memory::MIN || refused.value > Memory::MAX),
            }
            match TmpSize::from_mib(number % 20_000) {
                Ok(tmp) => prop_assert_eq!((tmp.mib(), tmp.inodes() * (16 << 10)), (number % 20_000, tmp.bytes())),
                Err(refused) => prop_assert!(refused.value < 512 || refused.value > 10_240),
            }
            match Timeout::from_secs(number % 2_000) {
                Ok(timeout) => prop_assert_eq!(timeout.duration().as_secs(), u64::from(number % 2_000)),
                Err(refused) => prop_assert!(refused.value < 1 || refused.value > 900),
            }
        }
    }

    #[test]
    fn a_quota_is_in_proportion_to_memory() {
        let quota = |mib| Memory::from_mib(mib).unwrap().cpu_quota().as_micros();
        assert_eq!([quota(128), quota(512), quota(1769), quota(3008)], [7_235, 28_942, 100_000, 170_039]);
        let weight = |mib| Memory::from_mib(mib).unwrap().cpu_weight(1024);
        assert_eq!([weight(128), weight(1769), weight(3008)], [74, 1024, 1741]);
    }

    #[test]
    fn limits_end_where_lambda_says() {
        assert!(Memory::from_mib(127).is_err() && Memory::from_mib(128).is_ok());
        assert!(Timeout::from_secs(0).is_err() && Timeout::from_secs(900).is_ok() && Timeout::from_secs(901).is_err());
        assert!(TmpSize::from_mib(511).is_err() && TmpSize::from_mib(10241).is_err());
    }

    #[test]
    fn a_limit_cannot_be_smuggled_in_through_the_wire() {
        assert!(postcard::from_bytes::<Memory>(&postcard::to_stdvec(&1u32).unwrap()).is_err());
    }
}
