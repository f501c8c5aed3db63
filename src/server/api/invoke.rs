//! Invoke: from a request to an [`Invocation`], and from its outcome to a response.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Response, StatusCode};
use serde::de::IgnoredAny;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::error::{ApiError, Kind};
use super::payloads::NoRoom;
use super::route::Named;
use super::target::{LATEST, Target};
use super::validation::Validation;
use super::{Answer, Api, INVOKE_BODY_TIME, body_error};
use crate::invocation::{Invocation, LogType, Outcome, Refusal, RequestId, Throttle};
use crate::server::http::read_body;

/// Lambda's limit for a synchronous payload.
/// <https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>
const MAX_PAYLOAD: usize = 6 << 20;
/// Lambda's limit on the client context, as it comes (base64).
const MAX_CLIENT_CONTEXT: usize = 3583;

/// How a caller wants to be answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum InvocationType {
    RequestResponse,
    Event,
    DryRun,
}

impl Api {
    pub(super) async fn invoke(
        &self,
        (id, uid): (RequestId, u32),
        named: Named,
        headers: &HeaderMap,
        body: &mut Incoming,
    ) -> Answer {
        // The order of these checks is Lambda's: whoever makes several mistakes is told the same one first.
        let target = Target::parse(&named.function, named.qualifier.as_deref(), &self.home)?;
        let wanted = Wanted::read(headers)?;
        let known = self.registry.function(&target.name).is_some() && target.is_latest();
        if !known {
            return Err(ApiError::no_function(&target.arn_resolved(&self.home)));
        }
        let announced = body.size_hint().upper().and_then(|bytes| usize::try_from(bytes).ok());
        let wait = self.in_force.now().capacity_wait();
        let room = match self.payloads.room(uid, announced.unwrap_or(MAX_PAYLOAD).min(MAX_PAYLOAD), wait).await {
            Ok(room) => room,
            Err(none) => {
                let (refusal, NoRoom { in_use_mib, limit_mib }) = (Refusal::Throttled(Throttle::Payloads), none);
                let cause = refusal.cause();
                warn!(function = %target.name, request = %id, cause, uid, in_use_mib, limit_mib, "invocation refused: no room for its payload");
                self.engine.no_room_for_payload(&target.name, id, wait, none);
                return Err(ApiError::refused(refusal, &target.arn_resolved(&self.home)));
            }
        };
        let payload = read_body(body, MAX_PAYLOAD, INVOKE_BODY_TIME).await;
        let payload = payload.map_err(|error| body_error(error, Kind::RequestTooLarge, MAX_PAYLOAD, "InvokeFunction"))?;
        let payload = if payload.is_empty() { Bytes::from_static(b"{}") } else { room.hold(payload) };
        check_json(&payload)?;
        match wanted.invocation_type {
            InvocationType::RequestResponse => {}
            InvocationType::DryRun => {
                let mut response = empty(StatusCode::NO_CONTENT);
                response.headers_mut().insert("x-amzn-trace-id", header(wanted.trace)?);
                return Ok(response);
            }
            InvocationType::Event => {
                return Err(Kind::InvalidParameterValue.with("Kiln does not support this yet: InvocationType Event"));
            }
        }
        let log_type = wanted.log_type;
        let trace = wanted.trace;
        let invocation = Invocation {
            request: id,
            function: target.name.clone(),
            payload,
            client_context: wanted.client_context,
            invoked_arn: target.arn_as_asked(&self.home),
            trace: trace.clone(),
            log_type,
        };
        let answer = self.engine.invoke(invocation).await.map_err(|refusal| {
            let (function, cause) = (&target.name, refusal.cause());
            match &refusal {
                Refusal::Internal(_) => error!(%function, request = %id, cause, reason = %refusal, "invocation refused"),
                // The function's own bound, or a moment that passes: nobody has to act.
                Refusal::Throttled(Throttle::Reserved) | Refusal::Stopping | Refusal::UnknownFunction(_) => {
                    info!(%function, request = %id, cause, reason = %refusal, "invocation refused")
                }
                Refusal::Throttled(_) => warn!(%function, request = %id, cause, reason = %refusal, "invocation refused"),
            }
            ApiError::refused(refusal, &target.arn_resolved(&self.home))
        })?;
        let failed = matches!(answer.outcome, Outcome::Failed(_));
        let mut response = Response::new(Full::from(answer.outcome.body().clone()));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, super::JSON);
        headers.insert("x-amz-executed-version", HeaderValue::from_static(LATEST));
        headers.insert("x-amzn-remapped-content-length", HeaderValue::from_static("0"));
        if failed {
            headers.insert("x-amz-function-error", HeaderValue::from_static("Unhandled"));
        }
        if log_type == LogType::Tail {
            headers.insert("x-amz-log-result", header(STANDARD.encode(&answer.log_tail))?);
        }
        headers.insert("x-amzn-trace-id", header(trace)?);
        Ok(response)
    }
}

/// What the request's headers ask for.
struct Wanted {
    invocation_type: InvocationType,
    log_type: LogType,
    client_context: Option<String>,
    trace: String,
}

impl Wanted {
    fn read(headers: &HeaderMap) -> Result<Self, ApiError> {
        let text = |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
        let mut validation = Validation::default();
        let invocation_type = match text("x-amz-invocation-type").as_deref() {
            None | Some("RequestResponse") => InvocationType::RequestResponse,
            Some("Event") => InvocationType::Event,
            Some("DryRun") => InvocationType::DryRun,
            Some(other) => {
                let constraint = "Member must satisfy enum value set: [Event, RequestResponse, DryRun]";
                validation.fail("invocationType", other, constraint);
                InvocationType::RequestResponse
            }
        };
        let log_type = match text("x-amz-log-type").as_deref() {
            None | Some("None") => LogType::None,
            Some("Tail") => LogType::Tail,
            Some(other) => {
                validation.fail("logType", other, "Member must satisfy enum value set: [None, Tail]");
                LogType::None
            }
        };
        validation.finish()?;
        let client_context = text("x-amz-client-context").map(|context| client_context(&context)).transpose()?;
        let trace = trace(text("x-amzn-trace-id").as_deref());
        Ok(Self { invocation_type, log_type, client_context, trace })
    }
}

/// Base64 of JSON, as one line of ASCII: it becomes a header of the Runtime API, where line breaks between JSON's tokens mean
/// nothing. Some clients (lambda_runtime) refuse a header of other letters, so within strings these are escaped.
fn client_context(text: &str) -> Result<String, ApiError> {
    if text.len() > MAX_CLIENT_CONTEXT {
        return Err(Kind::InvalidRequestContent.with(format!("Client context must be at most {MAX_CLIENT_CONTEXT} bytes")));
    }
    let wrong = || Kind::InvalidRequestContent.with("Client context must be a valid Base64-encoded JSON object.");
    let json = STANDARD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(wrong)?;
    serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&json).map_err(|_| wrong())?;
    let mut line = String::with_capacity(json.len());
    for letter in json.chars() {
        match letter {
            '\n' | '\r' | '\t' => line.push(' '),
            ' '..='~' => line.push(letter),
            // Only a string has such letters, DEL among them.
            _ => letter.encode_utf16(&mut [0; 2]).iter().for_each(|unit| line.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    Ok(line)
}

/// The caller's root and parent, or new ones. Nothing is sampled: there is nowhere to send a trace to.
fn trace(given: Option<&str>) -> String {
    let part = |key: &str| given.into_iter().flat_map(|text| text.split(';')).find_map(|part| part.trim().strip_prefix(key));
    let hex = |text: &str, digits: usize| text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    let is_root = |root: &&str| {
        let parts: Vec<&str> = root.split('-').collect();
        matches!(parts[..], ["1", time, id] if hex(time, 8) && hex(id, 24))
    };
    let random = Uuid::new_v4().simple().to_string();
    let root = part("Root=")
        .filter(is_root)
        .map_or_else(|| format!("1-{:08x}-{}", jiff::Timestamp::now().as_second() as u32, &random[..24]), str::to_owned);
    let parent = part("Parent=").filter(|parent| hex(parent, 16)).unwrap_or(&random[16..]).to_owned();
    format!("Root={root};Parent={parent};Sampled=0")
}

/// The payload goes to the function byte for byte; that it is JSON is only looked at.
fn check_json(payload: &[u8]) -> Result<(), ApiError> {
    let problem = match std::str::from_utf8(payload) {
        Ok(text) => serde_json::from_str::<IgnoredAny>(text).err().map(|error| error.to_string()),
        Err(error) => Some(error.to_string()),
    };
    match problem {
        None => Ok(()),
        Some(problem) => Err(Kind::InvalidRequestContent
            .with(format!("Could not parse request body into json: Could not parse payload into json: {problem}"))),
    }
}

fn header(text: String) -> Result<HeaderValue, ApiError> {
    HeaderValue::try_from(text).map_err(|_| Kind::Service.with("a header could not be made"))
}

pub(super) fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_context_becomes_one_line() {
        assert_eq!(client_context(&STANDARD.encode("{\"a\":\r\n\t1}")).unwrap(), "{\"a\":   1}");
        let letters = "{\"ü\":\"\u{7f} 🦀\"}";
        assert_eq!(client_context(&STANDARD.encode(letters)).unwrap(), r#"{"\u00fc":"\u007f \ud83e\udd80"}"#);
        for bad in [STANDARD.encode("[1]"), STANDARD.encode("nope"), "§".into(), STANDARD.encode(b"{\"a\":\"\xff\"}")] {
            assert_eq!(client_context(&bad).unwrap_err().kind, Kind::InvalidRequestContent, "{bad}");
        }
        assert!(client_context(&"A".repeat(3584)).is_err());
    }

    #[test]
    fn a_callers_trace_is_continued_and_a_malformed_one_replaced() {
        let given = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1";
        assert_eq!(trace(Some(given)), "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=0");
        for bad in [None, Some("Root=1-x-y"), Some("Root=1-5759e988-bd862e3fe1be46a994272793\r\nX: y")] {
            let new = trace(bad);
            assert_ne!(new, given);
            assert_eq!(new.len(), given.len(), "{new}");
            assert!(trace(Some(&new)) == new, "a new trace is well formed: {new}");
        }
    }

    #[test]
    fn any_json_value_is_a_payload_and_nothing_else_is() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for good in ["1", "null", "\"x\"", " {\"a\": [1, 2]} ", &deep] {
            assert!(check_json(good.as_bytes()).is_ok());
        }
        for bad in [&b"{"[..], b"{}{}", b"nil", b"\"\xff\"", b"{'a':1}", &deep.as_bytes()[1..]] {
            let error = check_json(bad).unwrap_err();
            assert_eq!(error.kind, Kind::InvalidRequestContent);
            assert!(error.message.starts_with("Could not parse request body into json: Could not parse payload into json: "));
        }
    }
}
