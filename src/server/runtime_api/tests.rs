//! Bytes through the socket: statuses, texts, bounds.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::client::read_response;
use super::*;
use crate::invocation::RequestId;

struct Door {
    desk: Arc<Desk>,
    address: SocketAddr,
    _serving: tokio::task::JoinHandle<()>,
}

impl Door {
    async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (desk, address) = (Arc::new(Desk::default()), listener.local_addr().unwrap());
        Self { desk: desk.clone(), address, _serving: tokio::spawn(serve(listener, desk)) }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// On a connection of its own: status and body.
    async fn call(&self, method: &str, path: &str, more: &str, body: &str) -> (u16, String) {
        let mut connection = self.connect().await;
        let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n{more}\r\n{body}", body.len());
        connection.write_all(head.as_bytes()).await.unwrap();
        let response = read_response(&mut connection).await;
        (response.status, String::from_utf8(response.body).unwrap())
    }

    /// Sends these very bytes; returns status and body.
    async fn raw(&self, bytes: &[u8]) -> (u16, String) {
        let mut connection = self.connect().await;
        connection.write_all(bytes).await.unwrap();
        let response = read_response(&mut connection).await;
        (response.status, String::from_utf8(response.body).unwrap())
    }

    /// A runtime that has fetched an event.
    async fn running(&self) -> RequestId {
        let request = RequestId::new();
        let (_, ()) = tokio::join!(self.call("GET", NEXT, "", ""), async {
            self.desk.init().await;
            self.desk.deliver(event(request), AfterWrite::new(|| ())).unwrap();
        });
        request
    }
}

const NEXT: &str = "/2018-06-01/runtime/invocation/next";
const OK: &str = "{\"status\":\"OK\"}\n";

fn response_path(request: RequestId) -> String {
    format!("/2018-06-01/runtime/invocation/{request}/response")
}

fn error_path(request: RequestId) -> String {
    format!("/2018-06-01/runtime/invocation/{request}/error")
}

fn event(request: RequestId) -> Event {
    let mut headers = HeaderMap::new();
    let id = HeaderValue::from_str(&request.to_string()).unwrap();
    headers.insert(HeaderName::from_static("lambda-runtime-aws-request-id"), id);
    Event { request, headers, payload: Bytes::from_static(b"{\"an\":\"event\"}") }
}

fn refusal(kind: &str, message: &str) -> String {
    format!("{{\"errorMessage\":\"{message}\",\"errorType\":\"{kind}\"}}\n")
}

fn transition(from: &str, to: &str) -> (u16, String) {
    let message = format!("State transition from {from} to {to} failed for runtime. Error: State transition is not allowed");
    (403, refusal("InvalidStateTransition", &message))
}

#[tokio::test]
async fn unknown_paths_are_404_and_wrong_methods_405() {
    let door = Door::open().await;
    assert_eq!(door.call("GET", "/2018-06-01/ping", "", "").await, (200, "pong".into()));
    for (method, path, status) in [
        ("GET", "/", 404),
        ("GET", "/2020-01-01/extension/register", 404),
        ("POST", "/2018-06-01/runtime/invocation/x/y/response", 404),
        ("POST", "/2018-06-01/ping", 405),
        ("POST", NEXT, 405),
        ("GET", "/2018-06-01/runtime/init/error", 405),
        ("GET", "/2018-06-01/runtime/invocation/x/response", 405),
    ] {
        assert_eq!(door.call(method, path, "", "").await.0, status, "{method} {path}");
    }
}

#[tokio::test]
async fn every_wrong_call_is_refused_with_the_reference_implementations_words() {
    let door = Door::open().await;
    let unknown = (400, refusal("InvalidRequestID", "Invalid request ID"));
    assert_eq!(door.call("POST", &response_path(RequestId::new()), "", "1").await, unknown);
    let request = door.running().await;
    let path = response_path(request);
    assert_eq!(door.call("POST", "/2018-06-01/runtime/init/error", "", "{}").await, transition("Running", "InitError"));
    assert_eq!(door.call("POST", &response_path(RequestId::new()), "", "1").await, unknown);
    assert_eq!(door.call("GET", NEXT, "", "").await, (200, "{\"an\":\"event\"}".into()), "the same event again");
    assert_eq!(door.call("POST", &path, "", "1").await, (202, OK.into()));
    assert_eq!(door.desk.reply().await, Reply::Response(Bytes::from_static(b"1")));
    assert_eq!(door.call("POST", &path, "", "2").await, transition("RuntimeResponseSent", "InvocationResponse"));
    assert_eq!(
        door.call("POST", &error_path(request), "", "{}").await,
        transition("RuntimeResponseSent", "InvocationErrorResponse")
    );
    let mut waiting = door.connect().await;
    waiting.write_all(format!("GET {NEXT} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    door.desk.asked_again().await;
    assert_eq!(door.call("POST", &path, "", "3").await, unknown);
    assert_eq!(door.call("GET", NEXT, "", "").await, transition("Ready", "Ready"));
}

#[tokio::test]
async fn a_client_that_gave_its_next_up_may_ask_anew() {
    let door = Door::open().await;
    let mut first = door.connect().await;
    first.write_all(format!("GET {NEXT} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    door.desk.init().await;
    drop(first);
    let request = RequestId::new();
    // Its end is noticed a little later than it happens.
    let (got, ()) = tokio::join!(
        async {
            loop {
                match door.call("GET", NEXT, "", "").await {
                    (403, _) => tokio::task::yield_now().await,
                    answer => return answer,
                }
            }
        },
        async {
            door.desk.asked_again().await;
            while door.desk.deliver(event(request), AfterWrite::new(|| ())).is_err() {
                tokio::task::yield_now().await;
            }
        }
    );
    assert_eq!(got.0, 200);
}

#[tokio::test]
async fn an_init_error_is_kept_verbatim_with_its_checked_type() {
    let door = Door::open().await;
    let kind = "Lambda-Runtime-Function-Error-Type: Runtime.ImportModuleError\r\n";
    assert_eq!(door.call("POST", "/2018-06-01/runtime/init/error", kind, "{ }").await, (202, OK.into()));
    let expected = Init::Error { error_type: "Runtime.ImportModuleError".into(), body: Bytes::from_static(b"{ }") };
    assert_eq!(door.desk.init().await, expected);
    assert_eq!(door.call("GET", NEXT, "", "").await, transition("InitError", "Ready"));
}

#[tokio::test]
async fn an_error_type_is_never_repeated_unchecked() {
    for (sent, kept) in [
        ("Function.MyError", "Function.MyError"),
        ("Runtime.Unknown<script>", "Runtime.Unknown"),
        ("Function.<script>", "Function.Unknown"),
        ("<script>", "Runtime.Unknown"),
        ("xRuntime.Good", "Runtime.Unknown"),
        ("unhandled", "Runtime.Unknown"),
    ] {
        let door = Door::open().await;
        let request = door.running().await;
        let header = format!("lambda-runtime-function-error-type: {sent}\r\n");
        assert_eq!(door.call("POST", &error_path(request), &header, "{}").await.0, 202);
        assert_eq!(door.desk.reply().await, Reply::Error { error_type: kept.into(), body: Bytes::from_static(b"{}") }, "{sent}");
    }
}

#[tokio::test]
async fn a_cause_for_x_ray_is_taken_out_of_the_body() {
    let kind = "Content-Type: application/vnd.aws.lambda.error.cause+json\r\n";
    for (sent, kept) in [
        (
            r#"{"errorCause":{"a":1},"stackTrace":["x"],"errorMessage":"m","errorType":"T"}"#,
            r#"{"errorMessage":"m","errorType":"T","stackTrace":["x"]}"#,
        ),
        ("no JSON", "\"Invalid error body\""),
    ] {
        let door = Door::open().await;
        let request = door.running().await;
        door.call("POST", &error_path(request), kind, sent).await;
        let Reply::Error { body, .. } = door.desk.reply().await else { panic!("an error was posted") };
        assert_eq!(body, kept);
    }
}

#[tokio::test]
async fn chunks_with_trailers_an_expectation_and_a_header_of_a_mebibyte_are_accepted() {
    let door = Door::open().await;
    let path = response_path(door.running().await);
    let chunked = format!(
        "POST {path} HTTP/1.1\r\nhOST: x\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nT: v\r\n\r\n"
    );
    assert_eq!(door.raw(chunked.as_bytes()).await.0, 202);
    assert_eq!(door.desk.reply().await, Reply::Response(Bytes::from_static(b"abc")));

    let door = Door::open().await;
    let path = response_path(door.running().await);
    let mut connection = door.connect().await;
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut interim = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
    connection.read_exact(&mut interim).await.unwrap();
    assert!(interim.starts_with(b"HTTP/1.1 100 "));
    connection.write_all(b"ok").await.unwrap();
    assert_eq!(read_response(&mut connection).await.status, 202);

    let door = Door::open().await;
    let path = error_path(door.running().await);
    let cause = format!("Lambda-Runtime-Function-XRay-Error-Cause: {}\r\n", "x".repeat(1 << 20));
    assert_eq!(door.call("POST", &path, &cause, "{}").await.0, 202);
}

#[tokio::test]
async fn a_stream_that_failed_says_so_in_its_trailers() {
    let door = Door::open().await;
    let path = response_path(door.running().await);
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nLambda-Runtime-Function-Response-Mode: streaming\r\nTransfer-Encoding: chunked\r\n"
    );
    let body = "Trailer: Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body\r\n\r\n1\r\na\r\n0\r\n\
                Lambda-Runtime-Function-Error-Type: Runtime.Broken\r\nLambda-Runtime-Function-Error-Body: e30=\r\n\r\n";
    assert_eq!(door.raw((head + body).as_bytes()).await.0, 202);
    let expected = Reply::Error { error_type: "Runtime.Broken".into(), body: Bytes::from_static(b"{}") };
    assert_eq!(door.desk.reply().await, expected);
}

#[tokio::test]
async fn a_bad_mode_is_refused_and_is_the_callers_answer() {
    let door = Door::open().await;
    let path = response_path(door.running().await);
    let answer = door.call("POST", &path, "Lambda-Runtime-Function-Response-Mode: Streaming\r\n", "1").await;
    assert_eq!(answer, (400, refusal("InvalidFunctionResponseMode", "Invalid function response mode")));
    assert_eq!(door.desk.reply().await, Reply::InvalidMode);
}

#[tokio::test]
async fn a_body_too_large_is_413_declared_or_not() {
    let message = "Exceeded maximum allowed payload size (6291556 bytes).";
    let too_large = (413, refusal("RequestEntityTooLarge", message));
    let door = Door::open().await;
    let path = response_path(door.running().await);
    let body = "1".repeat(6_291_557);
    assert_eq!(door.call("POST", &path, "", &body).await, too_large);
    assert_eq!(door.desk.reply().await, Reply::TooLarge);
    assert_eq!(door.call("POST", &path, "", "1").await.0, 403, "the invocation is over");

    let door = Door::open().await;
    let path = response_path(door.running().await);
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    assert_eq!(door.raw(head.as_bytes()).await, too_large);
    assert_eq!(door.desk.reply().await, Reply::TooLarge);
}

#[tokio::test]
async fn a_truncated_answer_is_no_answer_and_may_be_repeated() {
    let door = Door::open().await;
    let request = door.running().await;
    let path = response_path(request);
    let mut connection = door.connect().await;
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf");
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.shutdown().await.unwrap();
    let response = read_response(&mut connection).await;
    assert_eq!(response.status, 400);
    assert_eq!(response.body, refusal("TruncatedHTTPRequest", "HTTP request detected as truncated").as_bytes());
    assert_eq!(door.call("POST", &path, "", "whole").await.0, 202);
    assert_eq!(door.desk.reply().await, Reply::Response(Bytes::from_static(b"whole")));
}

#[tokio::test(start_paused = true)]
async fn a_head_that_trickles_is_cut_and_a_resting_connection_is_not() {
    let door = Door::open().await;
    let mut resting = door.connect().await;
    resting.write_all(b"GET /2018-06-01/ping HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(read_response(&mut resting).await.status, 200);
    let mut slow = door.connect().await;
    let cut = async {
        loop {
            if slow.write_all(b"G").await.is_err() {
                return;
            }
            if let Ok(Ok(0) | Err(_)) = timeout(Duration::from_secs(1), slow.read(&mut [0; 512])).await {
                return;
            }
        }
    };
    timeout(Duration::from_secs(15), cut).await.expect("a trickling head was not cut");
    sleep(Duration::from_secs(1200)).await;
    resting.write_all(b"GET /2018-06-01/ping HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(read_response(&mut resting).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stands_still_is_cut() {
    let door = Door::open().await;
    let path = response_path(door.running().await);
    let mut slow = door.connect().await;
    slow.write_all(format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1").as_bytes()).await.unwrap();
    let response =
        timeout(Duration::from_secs(60), read_response(&mut slow)).await.expect("a body that stands still was not cut");
    assert_eq!(response.status, 400);
}

#[tokio::test(start_paused = true)]
async fn next_waits_for_hours() {
    let door = Door::open().await;
    let request = RequestId::new();
    let (answer, ()) = tokio::join!(door.call("GET", NEXT, "", ""), async {
        door.desk.init().await;
        sleep(Duration::from_secs(7200)).await;
        door.desk.deliver(event(request), AfterWrite::new(|| ())).unwrap();
    });
    assert_eq!(answer, (200, "{\"an\":\"event\"}".into()));
}

#[tokio::test]
async fn one_connection_too_many_is_closed_and_a_freed_place_is_used() {
    let door = Door::open().await;
    let mut all = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut connection = door.connect().await;
        connection.write_all(b"GET /2018-06-01/ping HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert_eq!(read_response(&mut connection).await.status, 200);
        all.push(connection);
    }
    let mut one_more = door.connect().await;
    assert!(matches!(one_more.read(&mut [0; 16]).await, Ok(0) | Err(_)));
    all.clear();
    loop {
        let mut connection = door.connect().await;
        let _ = connection.write_all(b"GET /2018-06-01/ping HTTP/1.1\r\nHost: x\r\n\r\n").await;
        if matches!(connection.read(&mut [0; 16]).await, Ok(1..)) {
            break;
        }
    }
}

/// Counts the writes to the socket below.
struct Counted(TcpStream, Arc<AtomicUsize>);

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.1.fetch_add(1, Ordering::SeqCst);
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.1.fetch_add(1, Ordering::SeqCst);
        Pin::new(&mut self.0).poll_write_vectored(cx, pieces)
    }
    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn an_event_is_one_write_and_is_in_the_socket_before_the_thaw() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut runtime = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (desk, writes) = (Arc::new(Desk::default()), Arc::new(AtomicUsize::new(0)));
    let stream = Counted(listener.accept().await.unwrap().0, writes.clone());
    let served = tokio::spawn(connection::serve_io(stream, desk.clone()));
    runtime.write_all(format!("GET {NEXT} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    desk.init().await;

    let frozen = runtime.into_std().unwrap();
    let (peeked, arrived) = (frozen.try_clone().unwrap(), Arc::new(AtomicBool::new(false)));
    let (thawed, after) = (Arc::new(tokio::sync::Notify::new()), arrived.clone());
    let tell = thawed.clone();
    let thaw = AfterWrite::new(move || {
        after.store(matches!(peeked.peek(&mut [0; 4096]), Ok(1..)), Ordering::SeqCst);
        tell.notify_one();
    });
    let mut event = event(RequestId::new());
    event.payload = Bytes::from(vec![b'x'; 60_000]);
    desk.deliver(event, thaw).unwrap();
    thawed.notified().await;
    assert!(arrived.load(Ordering::SeqCst), "thawed before the event was in the socket");
    let mut runtime = TcpStream::from_std(frozen).unwrap();
    assert_eq!(read_response(&mut runtime).await.body.len(), 60_000);
    assert_eq!(writes.load(Ordering::SeqCst), 1, "head and body are one write");
    served.abort();
}

#[tokio::test]
async fn an_event_that_was_never_read_is_told_from_one_that_was() {
    for reads in [false, true] {
        let door = Door::open().await;
        let mut runtime = door.connect().await;
        runtime.write_all(format!("GET {NEXT} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        door.desk.init().await;
        let written = Arc::new(tokio::sync::Notify::new());
        let tell = written.clone();
        door.desk.deliver(event(RequestId::new()), AfterWrite::new(move || tell.notify_one())).unwrap();
        written.notified().await;
        if reads {
            read_response(&mut runtime).await;
        }
        // Whoever asks early waits for the end of the connection.
        assert!(timeout(Duration::from_millis(1), door.desk.never_read()).await.is_err());
        drop(runtime);
        assert_eq!(door.desk.never_read().await, !reads);
    }
}

#[tokio::test]
async fn an_event_was_read_when_its_connection_has_said_something_else_whatever_becomes_of_that() {
    let door = Door::open().await;
    let mut runtime = door.connect().await;
    runtime.write_all(format!("GET {NEXT} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    door.desk.init().await;
    let request = RequestId::new();
    door.desk.deliver(event(request), AfterWrite::new(|| ())).unwrap();
    read_response(&mut runtime).await;
    let head = format!("POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf", response_path(request));
    runtime.write_all(head.as_bytes()).await.unwrap();
    drop(runtime);
    let never_read = timeout(Duration::from_secs(60), door.desk.never_read()).await;
    assert_eq!(never_read, Ok(false), "known at once");
}

#[tokio::test]
async fn an_event_for_a_runtime_that_has_hung_up_was_never_read() {
    for noticed in [false, true] {
        let door = Door::open().await;
        let mut gone = door.connect().await;
        gone.write_all(format!("GET {NEXT} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        door.desk.init().await;
        drop(gone);
        // Desk, `serve` and the connection have it; the latter lets go when it has seen its end.
        while noticed && Arc::strong_count(&door.desk) > 2 {
            tokio::task::yield_now().await;
        }
        door.desk.deliver(event(RequestId::new()), AfterWrite::new(|| ())).unwrap();
        assert!(door.desk.never_read().await, "noticed: {noticed}");
        assert_eq!(door.call("GET", NEXT, "", "").await, (200, "{\"an\":\"event\"}".into()));
        assert!(!door.desk.never_read().await, "it has asked again, and had it");
    }
}

#[tokio::test]
async fn without_a_waiting_next_the_thaw_happens_at_once_and_the_event_waits() {
    let door = Door::open().await;
    let mut gone = door.connect().await;
    gone.write_all(format!("GET {NEXT} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    door.desk.init().await;
    drop(gone);
    while Arc::strong_count(&door.desk) > 2 {
        tokio::task::yield_now().await;
    }
    let thawed = Arc::new(AtomicBool::new(false));
    let thaw = thawed.clone();
    door.desk.deliver(event(RequestId::new()), AfterWrite::new(move || thaw.store(true, Ordering::SeqCst))).unwrap();
    assert!(thawed.load(Ordering::SeqCst));
    assert_eq!(door.call("GET", NEXT, "", "").await, (200, "{\"an\":\"event\"}".into()));
}
