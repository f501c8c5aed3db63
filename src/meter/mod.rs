//! The books: one durable row for each invocation.
//!
//! A word of the server. The row is written before the REPORT line, and both are made from the same [`Row`].

pub mod sqlite;

use std::future::Future;
use std::time::{Duration, SystemTime};

use crate::function::{FunctionName, Memory};
use crate::invocation::RequestId;

/// Lambda's billing unit of 2018: every started 100 ms counts.
pub const BILLING_STEP: Duration = Duration::from_millis(100);

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

/// What is billed for a duration: rounded up to the step, at least one step, at most the timeout.
pub fn billed(duration: Duration, timeout: Duration) -> Duration {
    let step = BILLING_STEP.as_micros();
    let steps = duration.min(timeout).as_micros().div_ceil(step).max(1);
    Duration::from_micros((steps * step) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_started_step_is_billed_up_to_the_timeout() {
        let of = |ms| billed(Duration::from_micros((ms * 1000.0) as u64), Duration::from_secs(3)).as_millis();
        assert_eq!([of(0.0), of(0.2), of(100.0), of(100.1), of(2_999.0), of(3_017.0)], [100, 100, 100, 200, 3000, 3000]);
    }
}
