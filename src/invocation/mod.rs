//! One invocation: what the caller asked for and what came out, in Lambda's own words.
//!
//! A word, known to the server's rooms and the CLI. Two kinds of failure never share a type: the function
//! failed ([`Outcome`], the caller gets 200), or we did not run it ([`Refusal`]).

mod outcome;

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use outcome::{Cause, FunctionFailure, MAX_RESPONSE, Outcome, ProcessEnd};

use crate::function::FunctionName;

/// A UUID v4, in lower case: `x-amzn-RequestId` outside, `Lambda-Runtime-Aws-Request-Id` inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(uuid::Uuid);

impl RequestId {
    pub fn new() -> Self {
        Self(uuid::Uuid::new_v4())
    }
}

impl Default for RequestId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A synchronous invocation, as a door hands it to `dispatch`.
#[derive(Clone, Debug)]
pub struct Invocation {
    pub request: RequestId,
    pub function: FunctionName,
    /// Exactly the caller's bytes; `{}` for an empty body.
    pub payload: Bytes,
    /// The decoded `X-Amz-Client-Context`.
    pub client_context: Option<String>,
    /// The ARN as the caller used it, qualifier included.
    pub invoked_arn: String,
    /// `Root=…;Parent=…;Sampled=0`
    pub trace: String,
    pub log_type: LogType,
}

/// `X-Amz-Log-Type`: whether the caller wants the end of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogType {
    /// The answer goes out as soon as the runtime has posted it.
    #[default]
    None,
    /// The answer waits for the REPORT line, which the tail ends with.
    Tail,
}

/// What a caller of `dispatch` gets for an invocation that ran.
#[derive(Clone, Debug)]
pub struct Answer {
    pub outcome: Outcome,
    /// The last 4096 bytes of this invocation's log, START to REPORT; empty unless [`LogType::Tail`] was asked for.
    pub log_tail: Vec<u8>,
}

/// Why an invocation did not run. The door spells it as a status and an error type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("function {0} does not exist")]
    UnknownFunction(FunctionName),
    #[error("no capacity: {0}")]
    Throttled(Throttle),
    #[error("{0}")]
    Internal(String),
    #[error("kilnd is stopping")]
    Stopping,
}

impl Refusal {
    /// One word, for the log.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::UnknownFunction(_) => "UnknownFunction",
            Self::Throttled(Throttle::Memory) => "Throttled.Memory",
            Self::Throttled(Throttle::Starts) => "Throttled.Starts",
            Self::Throttled(Throttle::Concurrency) => "Throttled.Concurrency",
            Self::Throttled(Throttle::Reserved) => "Throttled.Reserved",
            Self::Throttled(Throttle::Queue) => "Throttled.Queue",
            Self::Throttled(Throttle::Payloads) => "Throttled.Payloads",
            Self::Internal(_) => "Sandbox.Failure",
            Self::Stopping => "Stopping",
        }
    }
}

/// What was short. Lambda's `Reason` is one of few; the log and the metrics say which of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Throttle {
    /// The host's memory budget, after waiting for `capacity_wait_s`.
    Memory,
    /// The bound on parallel starts, after waiting for `capacity_wait_s`.
    Starts,
    /// The account's bound on concurrent invocations.
    Concurrency,
    /// The function's reserved concurrency.
    Reserved,
    /// So many of the function wait already that one more could not be served in time.
    Queue,
    /// The server's memory for payloads, or the part of it that one user may have, after waiting for `capacity_wait_s`.
    Payloads,
}

impl Throttle {
    pub const ALL: [Self; 6] = [Self::Memory, Self::Starts, Self::Concurrency, Self::Reserved, Self::Queue, Self::Payloads];
}

impl fmt::Display for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Starts => "starts",
            Self::Concurrency => "concurrency",
            Self::Reserved => "reserved concurrency",
            Self::Queue => "room in the function's queue",
            Self::Payloads => "room for payloads",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_what_may_be_short_has_everything() {
        let unknown = serde_json::from_value::<Throttle>("nothing".into()).unwrap_err().to_string();
        let named: Vec<&str> = unknown.split('`').skip(3).step_by(2).collect();
        assert_eq!(serde_json::json!(named), serde_json::json!(Throttle::ALL));
    }
}
