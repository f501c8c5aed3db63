//! The books: one durable row for each invocation, and one for each execution environment ([`history`]).
//!
//! A word of the server. The row is written before the REPORT line, and both are made from the same [`Row`].

pub mod history;
pub mod month;
pub mod sqlite;

use std::future::Future;
use std::time::{Duration, SystemTime};

use crate::function::{FunctionName, Init, Memory, Profile};
use crate::invocation::RequestId;

/// What an invocation used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub request: RequestId,
    pub function: FunctionName,
    /// `$LATEST` or a number.
    pub version: String,
    /// When the event was handed over.
    pub start: SystemTime,
    pub duration: Duration,
    pub billed: Duration,
    pub memory: Memory,
    pub max_memory_used_mib: u64,
    /// Only where an init ran outside of the invocation.
    pub init: Option<Duration>,
    /// `None` for success, else REPORT's `Error Type`.
    pub error_type: Option<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("write the row of request {request} to the books: {why}")]
pub struct MeterError {
    pub request: RequestId,
    pub why: String,
}

/// Keeps rows. When `record` returns, the row survives SIGKILL.
pub trait Meter: Send + Sync + 'static {
    fn record(&self, row: Row) -> impl Future<Output = Result<(), MeterError>> + Send;
}

/// What is billed: the duration, at most the timeout, and the init before it where the profile says so; rounded up to
/// the profile's step, at least one.
pub fn billed(profile: Profile, duration: Duration, timeout: Duration, init: Option<Duration>) -> Duration {
    let limits = profile.limits();
    let init = match limits.init {
        Init::Free => Duration::ZERO,
        Init::Billed => init.unwrap_or_default(),
    };
    let step = limits.billing_step.as_micros();
    let steps = (duration.min(timeout) + init).as_micros().div_ceil(step).max(1);
    Duration::from_micros((steps * step) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: f64) -> Duration {
        Duration::from_micros((ms * 1000.0) as u64)
    }

    #[test]
    fn every_started_step_is_billed_up_to_the_timeout() {
        let of = |profile, duration| billed(profile, ms(duration), Duration::from_secs(3), None).as_millis();
        let durations = [0.0, 0.2, 100.0, 100.1, 2_999.0, 3_017.0];
        assert_eq!(durations.map(|ms| of(Profile::Of2018, ms)), [100, 100, 100, 200, 3000, 3000]);
        assert_eq!(durations.map(|ms| of(Profile::Current, ms)), [1, 1, 100, 101, 2999, 3000]);
    }

    /// The second row is one of Lambda's own: Duration 600000.00, Init 476.75, Billed 600477.
    #[test]
    fn init_is_billed_on_top_of_the_timeout_and_only_today() {
        let of = |profile, duration, init| billed(profile, ms(duration), Duration::from_secs(600), Some(ms(init))).as_millis();
        assert_eq!((of(Profile::Current, 10.2, 5.5), of(Profile::Of2018, 10.2, 95.5)), (16, 100));
        assert_eq!((of(Profile::Current, 600_000.0, 476.75), of(Profile::Of2018, 600_000.0, 476.75)), (600_477, 600_000));
    }
}
