//! How an invocation ended, and the words that Lambda has for it.
//!
//! Every text here is what today's service sends (payload) or prints (log line, REPORT fields).

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::RequestId;

/// What the caller gets with status 200.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The runtime's response, byte for byte.
    Success(Bytes),
    /// `X-Amz-Function-Error: Unhandled`, and why.
    Failed(FunctionFailure),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionFailure {
    pub cause: Cause,
    /// The payload as the caller gets it.
    pub body: Bytes,
}

/// Why a function failed. Decides payload, log lines, REPORT fields and the metrics' label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The runtime reported the handler's error; its body goes to the caller verbatim.
    /// The type is from the request header, checked; it never reaches the caller.
    Reported {
        error_type: String,
    },
    /// The runtime reported an error of its initialisation (twice).
    Init {
        error_type: String,
    },
    Timeout(Duration),
    OutOfMemory,
    /// The runtime process ended without an answer.
    Exit(ProcessEnd),
    /// There is nothing to start, or it cannot be started.
    InvalidEntrypoint {
        text: String,
    },
    /// Over 6 MiB + 100 bytes.
    ResponseTooLarge,
    InvalidResponseMode,
    /// Kiln was stopped, and it still ran when the drain, so long, was over.
    Cut(Duration),
    /// Kiln's own fault, not the function's.
    Sandbox {
        text: String,
    },
}

/// How a process ended, as `waitid` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessEnd {
    Exited(i32),
    Killed { signal: i32, core: bool },
}

/// Lambda's limit on a response: 6 MiB and 100 bytes.
/// <https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>
pub const MAX_RESPONSE: usize = (6 << 20) + 100;

impl Outcome {
    pub fn body(&self) -> &Bytes {
        match self {
            Self::Success(body) | Self::Failed(FunctionFailure { body, .. }) => body,
        }
    }

    pub fn cause(&self) -> Option<&Cause> {
        match self {
            Self::Success(_) => None,
            Self::Failed(failure) => Some(&failure.cause),
        }
    }
}

impl FunctionFailure {
    /// A failure that the runtime reported itself: its body passes unchanged.
    pub fn reported(cause: Cause, body: Bytes) -> Self {
        Self { cause, body }
    }

    /// A failure that Kiln found: the body is made here.
    pub fn found(cause: Cause, request: RequestId) -> Self {
        let body = match &cause {
            Cause::ResponseTooLarge => error_json("Function.ResponseSizeTooLarge", &cause.text()),
            _ => error_json(cause.payload_type(), &format!("RequestId: {request} Error: {}", cause.text())),
        };
        Self { cause, body: body.into() }
    }
}

fn error_json(error_type: &str, message: &str) -> String {
    // The key order is Lambda's: errorType first.
    format!(r#"{{"errorType":{},"errorMessage":{}}}"#, quoted(error_type), quoted(message))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

impl Cause {
    /// `errorType` in the payload.
    pub fn payload_type(&self) -> &str {
        match self {
            // To the caller an out-of-memory kill looks like any other; the REPORT line tells.
            Self::OutOfMemory => "Runtime.ExitError",
            other => other.report_type(),
        }
    }

    /// `Error Type` in the REPORT line, and the label in the metrics.
    pub fn report_type(&self) -> &str {
        match self {
            Self::Reported { error_type } | Self::Init { error_type } => error_type,
            Self::Timeout(_) => "Sandbox.Timedout",
            Self::OutOfMemory => "Runtime.OutOfMemory",
            Self::Exit(_) => "Runtime.ExitError",
            Self::InvalidEntrypoint { .. } => "Runtime.InvalidEntrypoint",
            Self::ResponseTooLarge => "Function.ResponseSizeTooLarge",
            Self::InvalidResponseMode => "Runtime.InvalidResponseModeHeader",
            Self::Cut(_) => "Sandbox.Stopped",
            Self::Sandbox { .. } => "Sandbox.Failure",
        }
    }

    /// What follows `RequestId: <id> Error: `.
    pub fn text(&self) -> String {
        match self {
            Self::Reported { error_type } | Self::Init { error_type } => error_type.clone(),
            Self::Timeout(after) => format!("Task timed out after {:.2} seconds", after.as_secs_f64()),
            Self::OutOfMemory => "Runtime exited with error: signal: killed".into(),
            Self::Exit(end) => end.to_string(),
            Self::InvalidEntrypoint { text } | Self::Sandbox { text } => text.clone(),
            Self::ResponseTooLarge => {
                format!("Response payload size exceeded maximum allowed payload size ({MAX_RESPONSE} bytes).")
            }
            Self::InvalidResponseMode => "Invalid function response mode".into(),
            Self::Cut(drain) => {
                format!("Invocation was cut: Kiln was stopped, and waited {:.2} seconds for it", drain.as_secs_f64())
            }
        }
    }

    /// Whether an environment that ended an invocation so may serve another one.
    pub fn leaves_environment_usable(&self) -> bool {
        matches!(self, Self::Reported { .. } | Self::ResponseTooLarge | Self::InvalidResponseMode)
    }
}

impl fmt::Display for ProcessEnd {
    /// As the reference implementation (in Go) prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exited(0) => f.write_str("Runtime exited without providing a reason"),
            Self::Exited(code) => write!(f, "Runtime exited with error: exit status {code}"),
            Self::Killed { signal, core } => {
                f.write_str("Runtime exited with error: signal: ")?;
                match signal_name(signal) {
                    Some(name) => f.write_str(name)?,
                    None => write!(f, "signal {signal}")?,
                }
                if core { f.write_str(" (core dumped)") } else { Ok(()) }
            }
        }
    }
}

/// Go's names of signals (`syscall/zerrors_linux_amd64.go`).
fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        libc::SIGHUP => "hangup",
        libc::SIGINT => "interrupt",
        libc::SIGQUIT => "quit",
        libc::SIGILL => "illegal instruction",
        libc::SIGTRAP => "trace/breakpoint trap",
        libc::SIGABRT => "aborted",
        libc::SIGBUS => "bus error",
        libc::SIGFPE => "floating point exception",
        libc::SIGKILL => "killed",
        libc::SIGUSR1 => "user defined signal 1",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGUSR2 => "user defined signal 2",
        libc::SIGPIPE => "broken pipe",
        libc::SIGALRM => "alarm clock",
        libc::SIGTERM => "terminated",
        libc::SIGSYS => "bad system call",
        libc::SIGXCPU => "CPU time limit exceeded",
        libc::SIGXFSZ => "file size limit exceeded",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(cause: Cause) -> (RequestId, String) {
        let request = RequestId::new();
        let failure = FunctionFailure::found(cause, request);
        (request, String::from_utf8(failure.body.to_vec()).unwrap())
    }

    #[test]
    fn a_timeout_reads_as_lambda_writes_it() {
        let (id, body) = body(Cause::Timeout(Duration::from_secs(1)));
        assert_eq!(
            body,
            format!(
                r#"{{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: {id} Error: Task timed out after 1.00 seconds"}}"#
            )
        );
    }

    #[test]
    fn out_of_memory_is_a_kill_to_the_caller_and_named_in_the_report() {
        let (id, body) = body(Cause::OutOfMemory);
        assert_eq!(
            body,
            format!(
                r#"{{"errorType":"Runtime.ExitError","errorMessage":"RequestId: {id} Error: Runtime exited with error: signal: killed"}}"#
            )
        );
        assert_eq!(Cause::OutOfMemory.report_type(), "Runtime.OutOfMemory");
    }

    #[test]
    fn ends_are_spelled_as_go_spells_them() {
        let text = |end: ProcessEnd| end.to_string();
        assert_eq!(text(ProcessEnd::Exited(0)), "Runtime exited without providing a reason");
        assert_eq!(text(ProcessEnd::Exited(7)), "Runtime exited with error: exit status 7");
        assert_eq!(
            text(ProcessEnd::Killed { signal: 11, core: true }),
            "Runtime exited with error: signal: segmentation fault (core dumped)"
        );
        assert_eq!(text(ProcessEnd::Killed { signal: 40, core: false }), "Runtime exited with error: signal: signal 40");
    }

    #[test]
    fn a_response_too_large_has_no_request_id() {
        let (_, body) = body(Cause::ResponseTooLarge);
        assert_eq!(
            body,
            r#"{"errorType":"Function.ResponseSizeTooLarge","errorMessage":"Response payload size exceeded maximum allowed payload size (6291556 bytes)."}"#
        );
    }
}
