//! The function's door: a runtime that sends anything, in any order, on two connections, cut anywhere.
//!
//! Time is paused: what waits for a limit gets to it at once, and what waits for ever is found.

#![no_main]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use kiln::invocation::{MAX_RESPONSE, RequestId};
use kiln::server::runtime_api::{AfterWrite, Desk, Event, Init, Reply, serve_io};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

#[derive(Debug, Arbitrary)]
struct Play<'a> {
    /// So many events come at once; the others when the runtime has said its last word.
    events: u8,
    steps: Vec<Step<'a>>,
}

#[derive(Debug, Arbitrary)]
struct Step<'a> {
    /// Which of the two connections.
    second: bool,
    act: Act<'a>,
}

#[derive(Debug, Arbitrary)]
enum Act<'a> {
    /// As it is.
    Bytes(&'a [u8]),
    /// A call with what it takes to get through, and a body.
    Next,
    Answer {
        error: bool,
        headers: Vec<Header<'a>>,
        body: Body<'a>,
    },
    InitError {
        headers: Vec<Header<'a>>,
        body: Body<'a>,
    },
    Pause(u8),
    Close,
}

#[derive(Debug, Arbitrary)]
enum Header<'a> {
    Mode(&'a str),
    ErrorType(&'a str),
    WithCause,
    Expect,
    Raw(&'a str),
}

#[derive(Debug, Arbitrary)]
enum Body<'a> {
    Whole(&'a [u8]),
    /// Says another length than it has.
    Wrong(u32, &'a [u8]),
    Chunked(Vec<&'a [u8]>, Option<(&'a str, &'a str)>),
}

/// More than any limit of the door: whatever still waits after it waits for ever.
const FOR_EVER: Duration = Duration::from_secs(3600);

fuzz_target!(|play: Play| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("start tokio");
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, perform(&play));
});

async fn perform(play: &Play<'_>) {
    let (desk, request, said_all) = (Arc::new(Desk::default()), RequestId::new(), Arc::new(Notify::new()));
    let environment = tokio::task::spawn_local(environment(desk.clone(), request, play.events % 4, said_all.clone()));
    let mut connections = [Connection::open(&desk), Connection::open(&desk)];
    for step in play.steps.iter().take(50) {
        let connection = &mut connections[usize::from(step.second)];
        match &step.act {
            Act::Bytes(bytes) => connection.write(bytes).await,
            Act::Next => connection.write(b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n").await,
            Act::Answer { error, headers, body } => {
                let verb = if *error { "error" } else { "response" };
                connection.post(&format!("invocation/{request}/{verb}"), headers, body).await;
            }
            Act::InitError { headers, body } => connection.post("init/error", headers, body).await,
            Act::Pause(seconds) => sleep(Duration::from_secs((*seconds).into())).await,
            Act::Close => *connection = Connection::open(&desk),
        }
        yield_now().await;
    }
    // hyper does not see that a client is gone whose next request lies in its buffer; with an event, it gets that far.
    said_all.notify_one();
    for connection in connections {
        connection.end().await;
    }
    environment.abort();
    assert!(environment.await.is_err_and(|error| error.is_cancelled()), "the environment goes on as long as it is wanted");
}

/// The house's side of the desk.
async fn environment(desk: Arc<Desk>, request: RequestId, events: u8, said_all: Arc<Notify>) {
    match desk.init().await {
        Init::Ready => {}
        Init::Error { error_type, body } => {
            check_error(&error_type, &body);
            return std::future::pending().await;
        }
    }
    for number in 0.. {
        if number == events {
            said_all.notified().await;
        }
        let mut headers = HeaderMap::new();
        let id = HeaderValue::try_from(request.to_string()).expect("a request id is a header");
        headers.insert(HeaderName::from_static("lambda-runtime-aws-request-id"), id);
        let event = Event { request, headers, payload: Bytes::from_static(b"{\"an\":\"event\"}") };
        desk.deliver(event, AfterWrite::new(|| ())).expect("a runtime that asked for an event may have one");
        match desk.reply().await {
            Reply::Response(body) => assert!(body.len() <= MAX_RESPONSE),
            Reply::Error { error_type, body } => check_error(&error_type, &body),
            Reply::TooLarge | Reply::InvalidMode => {}
        }
        desk.asked_again().await;
    }
}

/// What goes into REPORT and metrics is one of ours or looks like one.
fn check_error(error_type: &str, body: &[u8]) {
    let name = error_type.strip_prefix("Runtime.").or_else(|| error_type.strip_prefix("Function."));
    assert!(name.is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_alphabetic())), "{error_type:?}");
    assert!(error_type.len() <= 140 && body.len() <= MAX_RESPONSE);
}

struct Connection {
    stream: DuplexStream,
    served: tokio::task::JoinHandle<()>,
}

impl Connection {
    fn open(desk: &Arc<Desk>) -> Self {
        let (stream, theirs) = tokio::io::duplex(1 << 20);
        let desk = desk.clone();
        // Whatever it ends with is the function's own affair.
        let served = tokio::task::spawn_local(async move { drop(serve_io(theirs, desk).await) });
        Self { stream, served }
    }

    async fn write(&mut self, bytes: &[u8]) {
        // Refused when the door has closed the connection, or does not read: both are its good right.
        let _ = timeout(Duration::from_secs(1), self.stream.write_all(bytes)).await;
    }

    async fn post(&mut self, path: &str, headers: &[Header<'_>], body: &Body<'_>) {
        let mut head = format!("POST /2018-06-01/runtime/{path} HTTP/1.1\r\nHost: x\r\n").into_bytes();
        for header in headers {
            let line = match header {
                Header::Mode(mode) => format!("Lambda-Runtime-Function-Response-Mode: {mode}\r\n"),
                Header::ErrorType(kind) => format!("Lambda-Runtime-Function-Error-Type: {kind}\r\n"),
                Header::WithCause => "Content-Type: application/vnd.aws.lambda.error.cause+json\r\n".to_owned(),
                Header::Expect => "Expect: 100-continue\r\n".to_owned(),
                Header::Raw(line) => format!("{line}\r\n"),
            };
            head.extend(line.as_bytes());
        }
        match body {
            Body::Whole(body) => head.extend([format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()),
            Body::Wrong(length, body) => head.extend([format!("Content-Length: {length}\r\n\r\n").as_bytes(), body].concat()),
            Body::Chunked(pieces, trailer) => {
                head.extend(b"Transfer-Encoding: chunked\r\nTrailer: x\r\n\r\n");
                for piece in pieces {
                    head.extend([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
                }
                let trailer = trailer.map(|(name, value)| format!("{name}: {value}\r\n")).unwrap_or_default();
                head.extend(format!("0\r\n{trailer}\r\n").as_bytes());
            }
        }
        self.write(&head).await;
    }

    /// The client hangs up: the door must, too. Until then, what it said was HTTP.
    async fn end(self) {
        let (mut reader, mut writer) = tokio::io::split(self.stream);
        let _ = writer.shutdown().await;
        let mut answers = Vec::new();
        // A `next` that waits for its event waits on, as it should: for that, the client has to be gone.
        let _ = timeout(Duration::from_secs(600), reader.read_to_end(&mut answers)).await;
        drop((reader, writer));
        check_answers(&answers);
        timeout(FOR_EVER, self.served).await.expect("a connection without a client ends").expect("serving does not panic");
    }
}

/// Statuses that Lambda's Runtime API has; 500 would make every client exit.
fn check_answers(bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let text = String::from_utf8_lossy(bytes);
    let status = text.strip_prefix("HTTP/1.1 ").or_else(|| text.strip_prefix("HTTP/1.0 "));
    let status = status.unwrap_or_else(|| panic!("not HTTP: {text}"));
    assert!(["100", "200", "202", "400", "403", "404", "405", "413", "414", "431"].contains(&&status[..3]), "{text}");
    // No body of ours holds such words.
    assert!(!text.contains("HTTP/1.1 5"), "{text}");
}
