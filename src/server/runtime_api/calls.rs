//! The calls of the Runtime API: paths, headers, bodies; Lambda's statuses and texts.

use std::time::Duration;

use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::desk::{AfterWrite, Desk, Handed, Reply, Turn};
use super::session::{Answering, Illegal};
use crate::invocation::{MAX_RESPONSE, RequestId};

/// Between two pieces of a body. (An invocation's deadline bounds the whole.)
const BODY_PAUSE: Duration = Duration::from_secs(30);
/// So much of a body that is too large is read to its end and thrown away, so that the client is able to
/// read the 413; a client that sends even more loses its connection.
const MAX_DISCARDED: usize = 64 << 20;

const MODE: &str = "lambda-runtime-function-response-mode";
const ERROR_TYPE: &str = "lambda-runtime-function-error-type";
const ERROR_BODY: &str = "lambda-runtime-function-error-body";
const WITH_CAUSE: &str = "application/vnd.aws.lambda.error.cause+json";

pub(super) struct Answer {
    pub response: Response<Full<Bytes>>,
    /// The event that it brings for the first time, and what is to be done once its first bytes are written.
    pub event: Option<(RequestId, AfterWrite)>,
}

/// Answers one request.
pub(super) async fn answer<B>(desk: &Desk, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes> + Unpin,
{
    let (head, body) = request.into_parts();
    let (path, get, post) = (head.uri.path(), head.method == Method::GET, head.method == Method::POST);
    let plain = |response| Answer { response, event: None };
    match path {
        "/2018-06-01/ping" if get => plain(text(StatusCode::OK, "pong")),
        "/2018-06-01/runtime/invocation/next" if get => next(desk).await,
        "/2018-06-01/runtime/init/error" if post => plain(init_error(desk, &head.headers, body).await),
        "/2018-06-01/ping" | "/2018-06-01/runtime/invocation/next" | "/2018-06-01/runtime/init/error" => {
            plain(text(StatusCode::METHOD_NOT_ALLOWED, ""))
        }
        _ => match answer_path(path) {
            Some(_) if !post => plain(text(StatusCode::METHOD_NOT_ALLOWED, "")),
            Some((id, Answering::Response)) => plain(response(desk, id, &head.headers, body).await),
            Some((id, Answering::Error)) => plain(error(desk, id, &head.headers, body).await),
            None => plain(text(StatusCode::NOT_FOUND, "404 page not found\n")),
        },
    }
}

fn answer_path(path: &str) -> Option<(&str, Answering)> {
    let (id, verb) = path.strip_prefix("/2018-06-01/runtime/invocation/")?.split_once('/')?;
    match verb {
        "response" => Some((id, Answering::Response)),
        "error" => Some((id, Answering::Error)),
        _ => None,
    }
}

async fn next(desk: &Desk) -> Answer {
    let (event, then) = match desk.next() {
        Ok(Turn::Again(event)) => (event, None),
        Ok(Turn::Wait(turn)) => match turn.await.ok().and_then(Handed::take) {
            Some((event, then)) => (event, Some(then)),
            // The environment ends; its connections end with it.
            None => {
                let response = refused(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", "Internal Server Error");
                return Answer { response, event: None };
            }
        },
        Err(illegal) => return Answer { response: not_legal(illegal), event: None },
    };
    let mut response = Response::new(Full::new(event.payload));
    *response.headers_mut() = event.headers;
    Answer { response, event: then.map(|then| (event.request, then)) }
}

async fn response<B>(desk: &Desk, id: &str, headers: &HeaderMap, body: B) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes> + Unpin,
{
    if let Err(illegal) = desk.names_request(id) {
        return not_legal(illegal);
    }
    let streaming = match headers.get(MODE).map(HeaderValue::as_bytes) {
        None | Some(b"") => false,
        Some(b"streaming") => true,
        Some(_) => {
            if desk.answer(Answering::Response).is_ok() {
                desk.answered(Reply::InvalidMode);
            }
            return refused(StatusCode::BAD_REQUEST, "InvalidFunctionResponseMode", "Invalid function response mode");
        }
    };
    if let Err(illegal) = desk.answer(Answering::Response) {
        return not_legal(illegal);
    }
    let pending = Pending { desk, undo: Some(Desk::broken) };
    let (received, rest) = receive(body).await;
    match received {
        Received::Whole(body, trailers) => {
            crate::kill_point!("response-received");
            pending.done(match trailers.filter(|_| streaming).and_then(|trailers| failed_midway(&trailers)) {
                Some(failure) => failure,
                None => Reply::Response(body),
            });
            accepted()
        }
        Received::TooLarge => {
            pending.done(Reply::TooLarge);
            too_large(rest).await
        }
        Received::Broken => truncated(),
    }
}

async fn error<B>(desk: &Desk, id: &str, headers: &HeaderMap, body: B) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes> + Unpin,
{
    if let Err(illegal) = desk.names_request(id).and_then(|()| desk.answer(Answering::Error)) {
        return not_legal(illegal);
    }
    let pending = Pending { desk, undo: Some(Desk::broken) };
    let (received, rest) = receive(body).await;
    match received {
        Received::Whole(body, _) => {
            pending.done(Reply::Error { error_type: error_type(headers), body: error_body(headers, body) });
            accepted()
        }
        Received::TooLarge => {
            pending.done(Reply::TooLarge);
            too_large(rest).await
        }
        Received::Broken => truncated(),
    }
}

async fn init_error<B>(desk: &Desk, headers: &HeaderMap, body: B) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes> + Unpin,
{
    if let Err(illegal) = desk.init_error() {
        return not_legal(illegal);
    }
    let mut pending = Pending { desk, undo: Some(Desk::init_error_broken) };
    let (received, rest) = receive(body).await;
    match received {
        Received::Whole(body, _) => {
            pending.undo = None;
            desk.init_failed(error_type(headers), error_body(headers, body));
            accepted()
        }
        Received::TooLarge => {
            pending.undo = None;
            desk.init_failed(error_type(headers), Bytes::from_static(b"\"Invalid error body\""));
            too_large(rest).await
        }
        Received::Broken => truncated(),
    }
}

/// A state that holds while a body is received. If the connection goes away meanwhile, this is dropped and takes
/// the state back.
struct Pending<'a> {
    desk: &'a Desk,
    undo: Option<fn(&Desk)>,
}

impl Pending<'_> {
    fn done(mut self, reply: Reply) {
        self.undo = None;
        self.desk.answered(reply);
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(undo) = self.undo {
            undo(self.desk);
        }
    }
}

enum Received {
    Whole(Bytes, Option<HeaderMap>),
    TooLarge,
    Broken,
}

/// Reads a body up to Lambda's limit; also returns what was not read.
async fn receive<B>(mut body: B) -> (Received, B)
where
    B: Body<Data = Bytes> + Unpin,
{
    if body.size_hint().lower() > MAX_RESPONSE as u64 {
        return (Received::TooLarge, body);
    }
    let mut pieces = Pieces::None;
    let mut trailers = None;
    loop {
        match timeout(BODY_PAUSE, body.frame()).await {
            Ok(None) => return (Received::Whole(pieces.into_bytes(), trailers), body),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) if pieces.len() + data.len() > MAX_RESPONSE => return (Received::TooLarge, body),
                Ok(data) => pieces = pieces.with(data, body.size_hint().lower()),
                Err(frame) => trailers = frame.into_trailers().ok(),
            },
            Ok(Some(Err(_))) | Err(_) => return (Received::Broken, body),
        }
    }
}

/// A body as it comes: one piece is kept as it is, more are joined.
enum Pieces {
    None,
    One(Bytes),
    Joined(BytesMut),
}

impl Pieces {
    fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(piece) => piece.len(),
            Self::Joined(all) => all.len(),
        }
    }

    /// `rest`: how much is known to follow (bounded by the caller).
    fn with(self, data: Bytes, rest: u64) -> Self {
        match self {
            Self::None => Self::One(data),
            Self::One(first) => {
                let room = (first.len() + data.len()).saturating_add(rest as usize).min(MAX_RESPONSE);
                let mut all = BytesMut::with_capacity(room);
                all.extend_from_slice(&first);
                all.extend_from_slice(&data);
                Self::Joined(all)
            }
            Self::Joined(mut all) => {
                all.extend_from_slice(&data);
                Self::Joined(all)
            }
        }
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::None => Bytes::new(),
            Self::One(piece) => piece,
            Self::Joined(all) => all.freeze(),
        }
    }
}

/// A streamed response that failed says so in its trailers.
fn failed_midway(trailers: &HeaderMap) -> Option<Reply> {
    trailers.get(ERROR_TYPE)?;
    let body = trailers.get(ERROR_BODY).and_then(|text| base64::engine::general_purpose::STANDARD.decode(text.as_bytes()).ok());
    Some(Reply::Error { error_type: error_type(trailers), body: body.unwrap_or_default().into() })
}

/// The error type, for REPORT and metrics only. What does not look like one is not repeated anywhere.
fn error_type(headers: &HeaderMap) -> String {
    let text = headers.get(ERROR_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name = text.strip_prefix("Runtime.").or_else(|| text.strip_prefix("Function."));
    let good = name.is_some_and(|name| {
        (2..=128).contains(&name.len())
            && name.as_bytes()[0].is_ascii_uppercase()
            && name.bytes().all(|byte| byte.is_ascii_alphabetic())
    });
    match good {
        true => text.to_owned(),
        false if text.starts_with("Function.") => "Function.Unknown".into(),
        false => "Runtime.Unknown".into(),
    }
}

/// The body as the caller gets it: verbatim, but for the one content type that carries a cause for X-Ray.
fn error_body(headers: &HeaderMap, body: Bytes) -> Bytes {
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape<'a> {
        #[serde(borrow, skip_serializing_if = "Option::is_none")]
        error_message: Option<&'a RawValue>,
        #[serde(borrow, skip_serializing_if = "Option::is_none")]
        error_type: Option<&'a RawValue>,
        #[serde(borrow, skip_serializing_if = "Option::is_none")]
        stack_trace: Option<&'a RawValue>,
    }
    let with_cause = headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().eq_ignore_ascii_case(WITH_CAUSE.as_bytes()));
    if !with_cause {
        return body;
    }
    let stripped = serde_json::from_slice::<Shape<'_>>(&body).ok().and_then(|shape| serde_json::to_vec(&shape).ok());
    stripped.map_or(Bytes::from_static(b"\"Invalid error body\""), Bytes::from)
}

fn accepted() -> Response<Full<Bytes>> {
    json(StatusCode::ACCEPTED, "{\"status\":\"OK\"}\n".into())
}

fn not_legal(illegal: Illegal) -> Response<Full<Bytes>> {
    match illegal {
        Illegal::RequestId => refused(StatusCode::BAD_REQUEST, "InvalidRequestID", &illegal.to_string()),
        Illegal::Transition { .. } => refused(StatusCode::FORBIDDEN, "InvalidStateTransition", &illegal.to_string()),
    }
}

fn truncated() -> Response<Full<Bytes>> {
    refused(StatusCode::BAD_REQUEST, "TruncatedHTTPRequest", "HTTP request detected as truncated")
}

/// 413, once the client has sent what it wanted to send.
async fn too_large<B>(mut rest: B) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut discarded = 0;
    while let Ok(Some(Ok(frame))) = timeout(BODY_PAUSE, rest.frame()).await {
        discarded += frame.data_ref().map_or(0, Bytes::len);
        if discarded > MAX_DISCARDED {
            break;
        }
    }
    let message = format!("Exceeded maximum allowed payload size ({MAX_RESPONSE} bytes).");
    refused(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", &message)
}

/// Neither text has a character that JSON escapes.
fn refused(status: StatusCode, error_type: &str, message: &str) -> Response<Full<Bytes>> {
    json(status, format!("{{\"errorMessage\":\"{message}\",\"errorType\":\"{error_type}\"}}\n"))
}

fn json(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    response
}
