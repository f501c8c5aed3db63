//! What kilnd's own log says of invocations that ended badly: one event each, with its cause, found in the journal by
//! `KILN_FUNCTION`, `KILN_REQUEST`, `KILN_CONTAINER` and `KILN_CAUSE`.
//!
//! A warning is the function's author's to look at, an error is Kiln's own fault. What the handler reported itself is in the
//! function's log and nobody else's affair.

use tracing::{debug, error, info, warn};

use crate::invocation::{Cause, RequestId};
use crate::server::logs::Origin;

macro_rules! say {
    ($level:ident, $origin:expr, $request:expr, $cause:expr, $message:literal) => {
        $level!(
            function = %$origin.function,
            version = $origin.version,
            request = %$request,
            container = $origin.container,
            cause = $cause.report_type(),
            reason = $cause.text(),
            $message
        )
    };
}

pub fn invocation_failed(origin: &Origin, request: RequestId, cause: &Cause) {
    match cause {
        Cause::Reported { .. } => say!(debug, origin, request, cause, "the function reported an error"),
        Cause::Sandbox { .. } => say!(error, origin, request, cause, "an invocation failed by Kiln's own fault"),
        _ => say!(warn, origin, request, cause, "an invocation failed"),
    }
}

/// The first time: it is tried once more, and if that fails too, so does the invocation.
pub fn init_failed(origin: &Origin, request: RequestId, cause: &Cause) {
    match cause {
        Cause::Sandbox { .. } => say!(warn, origin, request, cause, "an environment could not be built; once more"),
        _ => say!(info, origin, request, cause, "init failed; once more"),
    }
}
