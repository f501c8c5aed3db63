//! HTTP/1.1 on a Unix listener: what both doors of the host share.
//!
//! Knows who is on the other side and bounds what they may cost: connections, bytes of headers and body, and
//! time. Knows no path and no status; that is the doors' own ([`super::api`], [`super::control`]).

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, EXPECT, HeaderValue};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::io::ioctl_fionread;
use rustix::net::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep};
use tracing::{debug, warn};

use crate::sys::peer;

/// Connections of one door at once. Whoever comes next waits in the listener's queue; who has more than all others could
/// still have is not let in ([`Callers`]).
pub const MAX_CONNECTIONS: usize = 2048;
/// Room for the largest header Lambda takes (3,583 bytes of client context) and all others.
const MAX_HEADER_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
/// For a request's head, and for the next request on a connection that is kept open.
const HEADER_TIME: Duration = Duration::from_secs(30);
/// A caller that takes nothing of its answer for so long will not take it. Its connection, one of a bounded number, would
/// be held for ever.
const WRITE_TIME: Duration = Duration::from_secs(60);
/// When the door is told to stop: for the request of a caller that has connected and not asked yet. Who has asked before is
/// told by an end of the connection that its next request was not read.
const FIRST_REQUEST_TIME: Duration = Duration::from_secs(2);
/// For what is left of a body that nobody wants.
const DISCARD_TIME: Duration = Duration::from_secs(10);
/// After an error of accept(2) (no descriptors left, as a rule) before the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is on the other side, as the kernel tells it; it cannot be forged.
#[derive(Clone, Debug)]
pub struct Peer {
    pub uid: u32,
    /// The primary group and all supplementary ones, as they were when the peer connected.
    pub groups: Vec<u32>,
}

/// One door: answers requests, always.
pub trait Door: Send + Sync + 'static {
    /// Whole, or in pieces for as long as it takes. Dropped when the caller goes away; it has to end when the door is told to
    /// stop, or the drain waits for it.
    type Answer: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static;

    /// What is left of the body afterwards is thrown away.
    fn answer(&self, peer: &Peer, head: &Parts, body: &mut Incoming) -> impl Future<Output = Response<Self::Answer>> + Send;
}

/// Goes on with the connection itself behind an answer that says so (101): what a door puts into its answer's extensions. It has to end
/// when the door is told to stop, like an answer.
#[derive(Clone)]
pub struct Talk(Arc<Mutex<Option<Begin>>>);

type Begin = Box<dyn FnOnce(Upgraded) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

impl Talk {
    pub fn new(begin: impl FnOnce(Upgraded) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(begin)))))
    }

    fn take(&self) -> Option<Begin> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Says when to take no more requests.
pub type Stop = watch::Receiver<bool>;

/// Serves until told to stop; then lets the requests that run finish. Drop the future to stop waiting for them.
///
/// Whoever is not accepted by then stays in the listener's queue, for whoever has the listener next. Whoever is accepted and
/// has asked is answered, whether or not its bytes had been read; that answer is the connection's last.
pub async fn serve(name: &'static str, listener: UnixListener, door: Arc<impl Door>, stop: Stop) {
    serve_at_most(MAX_CONNECTIONS, name, listener, door, stop).await;
}

async fn serve_at_most(most: usize, name: &'static str, listener: UnixListener, door: Arc<impl Door>, mut stop: Stop) {
    let (room, callers) = (Arc::new(Semaphore::new(most)), Arc::new(Callers::new(most)));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            // Never closed, so there is always a permit to wait for.
            let permit = room.clone().acquire_owned().await.ok();
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            accepted = accepted => accepted,
            Some(_) = connections.join_next() => continue,
            () = told(&mut stop) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let (door, stop, callers) = (door.clone(), stop.clone(), callers.clone());
                connections.spawn(async move {
                    connection(name, stream, door, stop, &callers).await;
                    drop(permit);
                });
            }
            Err(error) => {
                warn!(door = name, %error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Whoever could have told us to stop is gone: that is being told, too.
async fn told(stop: &mut Stop) {
    let _ = stop.wait_for(|stop| *stop).await.is_ok();
}

async fn connection(name: &'static str, stream: UnixStream, door: Arc<impl Door>, mut stop: Stop, callers: &Callers) {
    let peer = match identify(&stream) {
        Ok(peer) => Arc::new(peer),
        Err(error) => return debug!(door = name, %error, "a peer could not be identified"),
    };
    let Some(_place) = callers.enter(name, peer.uid) else { return };
    let line = Arc::new(Line::new(stream));
    let (stopping, of_service) = (stop.clone(), line.clone());
    let talks = Arc::new(Mutex::new(None));
    let begun = talks.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (door, peer, stopping, line) = (door.clone(), peer.clone(), stopping.clone(), of_service.clone());
        let begun = begun.clone();
        line.is(Stage::Answering);
        async move {
            let upgrade = hyper::upgrade::on(&mut request);
            let (head, mut body) = request.into_parts();
            let mut response = door.answer(&peer, &head, &mut body).await;
            discard(&head, body).await;
            if let Some(begin) = response.extensions_mut().remove::<Talk>().and_then(|talk| talk.take()) {
                *begun.lock().unwrap_or_else(PoisonError::into_inner) = Some((upgrade, begin));
                line.patient.store(true, Ordering::Relaxed);
                return Ok::<_, Infallible>(response);
            }
            if *stopping.borrow() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            line.is(Stage::Between);
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(Timed { line: line.clone(), stuck: None }), service)
        .with_upgrades();
    tokio::pin!(connection);
    let until_last = async {
        told(&mut stop).await;
        if line.stage() == Stage::Fresh {
            sleep(FIRST_REQUEST_TIME).await;
        }
    };
    let ended = tokio::select! {
        biased;
        ended = &mut connection => ended,
        () = until_last => {
            if !line.expects_more() {
                connection.as_mut().graceful_shutdown();
            }
            connection.await
        }
    };
    let talk = talks.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((upgrade, begin)) = talk {
        match upgrade.await {
            Ok(connection) => begin(connection).await,
            Err(error) => debug!(door = name, %error, "a connection could not be taken over"),
        }
    }
    if let Err(error) = ended {
        // A caller that went away or wrote no HTTP: its own affair.
        debug!(door = name, %error, "connection ended");
    }
}

/// What a connection is at, seen from its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Stage {
    /// Not one byte has come.
    Fresh,
    /// A request has begun to come.
    Asking,
    /// It is answered.
    Answering,
    /// It was, and the next one has not begun; the answer may be on its way still.
    Between,
}

/// A caller's stream, and what it is at: hyper does not tell, and drops what it has not read when it is asked to end.
struct Line {
    /// `std` lock: held for one call, never across an await; only the connection's own task takes it.
    stream: Mutex<UnixStream>,
    stage: AtomicU8,
    /// Nothing more can come.
    closed: AtomicBool,
    /// It is a conversation, whose reader may stop reading as long as they like.
    patient: AtomicBool,
}

impl Line {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream: Mutex::new(stream),
            stage: AtomicU8::new(Stage::Fresh as u8),
            closed: AtomicBool::new(false),
            patient: AtomicBool::new(false),
        }
    }

    // A poisoned lock: a panic aborts the process, so nobody has ever seen one.
    fn stream(&self) -> MutexGuard<'_, UnixStream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Relaxed);
    }

    fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Relaxed) {
            0 => Stage::Fresh,
            1 => Stage::Asking,
            2 => Stage::Answering,
            _ => Stage::Between,
        }
    }

    fn has_read(&self) {
        if matches!(self.stage(), Stage::Fresh | Stage::Between) {
            self.is(Stage::Asking);
        }
    }

    /// The door closes. Whether a request is there that is not answered yet: its answer will end the connection.
    fn expects_more(&self) -> bool {
        match self.stage() {
            Stage::Asking => true,
            Stage::Answering => false,
            Stage::Fresh | Stage::Between => {
                // First, so that no request comes after the look: its caller's write fails, and says so.
                self.closed.store(true, Ordering::Relaxed);
                let stream = self.stream();
                let _ = shutdown(&*stream, Shutdown::Read);
                ioctl_fionread(&*stream).is_ok_and(|bytes| bytes > 0)
            }
        }
    }
}

/// Who has how many connections to a door. No user may have more than are left for all others, so that one who opens
/// connections without end, and leaves them open, never shuts the door for anybody else.
struct Callers {
    most: usize,
    /// Of each user that has any. `std` lock: held for a few map operations; no other lock is taken inside.
    held: Mutex<HashMap<u32, Held>>,
}

#[derive(Default)]
struct Held {
    connections: usize,
    /// That it was refused one is said once, until it has left with all.
    told: bool,
}

/// One connection of a user's, until it is dropped.
struct Place<'a> {
    callers: &'a Callers,
    uid: u32,
}

impl Callers {
    fn new(most: usize) -> Self {
        Self { most, held: Mutex::default() }
    }

    fn enter(&self, door: &'static str, uid: u32) -> Option<Place<'_>> {
        let mut held = self.lock();
        let all: usize = held.values().map(|held| held.connections).sum();
        let own = held.entry(uid).or_default();
        if own.connections >= self.most - all {
            if !std::mem::replace(&mut own.told, true) {
                let connections = own.connections;
                warn!(door, uid, connections, "a user has more connections than are left for all others: it gets no more");
            }
            if own.connections == 0 {
                held.remove(&uid);
            }
            return None;
        }
        own.connections += 1;
        Some(Place { callers: self, uid })
    }

    // A poisoned lock: a panic aborts the process, so nobody has ever seen one.
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut held = self.callers.lock();
        if let Some(own) = held.get_mut(&self.uid) {
            own.connections -= 1;
            if own.connections == 0 {
                held.remove(&self.uid);
            }
        }
    }
}

/// A connection whose writes end in time.
struct Timed {
    line: Arc<Line>,
    /// Runs while a write cannot go on.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl Timed {
    fn written<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() || self.line.patient.load(Ordering::Relaxed) {
            self.stuck = None;
            return written;
        }
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(sleep(WRITE_TIME)));
        stuck.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Timed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut *self.line.stream()).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            self.line.has_read();
        } else if self.line.closed.load(Ordering::Relaxed) {
            // Our own end of it, not the caller's, who may be waiting for its answer.
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Timed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut *self.line.stream()).poll_write(cx, bytes);
        self.written(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = Pin::new(&mut *self.line.stream()).poll_flush(cx);
        self.written(cx, written)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = Pin::new(&mut *self.line.stream()).poll_shutdown(cx);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut *self.line.stream()).poll_write_vectored(cx, pieces);
        self.written(cx, written)
    }
}

fn identify(stream: &UnixStream) -> io::Result<Peer> {
    let credentials = stream.peer_cred()?;
    let mut groups = peer::groups(stream)?;
    groups.push(credentials.gid());
    Ok(Peer { uid: credentials.uid(), groups })
}

/// Why a body was not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyError {
    TooLarge,
    TooSlow,
    Broken,
}

/// The whole body, at most `limit` bytes, within `time`.
pub async fn read_body(body: &mut Incoming, limit: usize, time: Duration) -> Result<Bytes, BodyError> {
    let declared = body.size_hint().exact();
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(BodyError::TooLarge);
    }
    let reading = async {
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else { continue };
            if whole.len() + data.len() > limit {
                return Err(BodyError::TooLarge);
            }
            if whole.is_empty() {
                // As a rule a small body is one frame: then it is not copied.
                if Some(data.len() as u64) == declared {
                    return Ok(data);
                }
                whole.reserve(declared.unwrap_or(0) as usize);
            }
            whole.extend_from_slice(&data);
        }
        Ok(whole.freeze())
    };
    tokio::time::timeout(time, reading).await.unwrap_or(Err(BodyError::TooSlow))
}

/// A caller that is still writing when the connection is closed sees a broken pipe instead of the answer.
async fn discard(head: &Parts, mut body: Incoming) {
    // Whoever waits for "100 Continue" has sent nothing yet, and would begin to if we read.
    if !body.is_end_stream() && !head.headers.contains_key(EXPECT) {
        let _ = tokio::time::timeout(DISCARD_TIME, async { while let Some(Ok(_)) = body.frame().await {} }).await;
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const LARGE: usize = 8 << 20;

    struct Talkative;

    impl Door for Talkative {
        type Answer = Full<Bytes>;

        async fn answer(&self, _: &Peer, _: &Parts, _: &mut Incoming) -> Response<Full<Bytes>> {
            Response::new(Full::from(vec![b'x'; LARGE]))
        }
    }

    async fn asked(reads_after: Duration) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("door.sock");
        let (_stop, stopping) = watch::channel(false);
        let door = tokio::spawn(serve("door", UnixListener::bind(&path).unwrap(), Arc::new(Talkative), stopping));
        let mut caller = UnixStream::connect(&path).await.unwrap();
        caller.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        sleep(reads_after).await;
        let mut answer = Vec::new();
        caller.read_to_end(&mut answer).await.unwrap();
        door.abort();
        answer
    }

    #[test]
    fn whoever_holds_all_they_can_get_leaves_as_many_to_others() {
        let callers = Callers::new(MAX_CONNECTIONS);
        let all = |uid: u32| std::iter::from_fn(|| callers.enter("door", uid)).collect::<Vec<_>>();
        let greedy = all(1000);
        assert_eq!(greedy.len(), MAX_CONNECTIONS / 2);
        let more: Vec<_> = (1001..1005).map(all).collect();
        assert!(more.iter().all(|places| !places.is_empty()), "four more of that kind");
        assert!(callers.enter("door", 0).is_some());
        drop((greedy, more));
        assert!(callers.lock().is_empty());
        assert_eq!(all(1000).len(), MAX_CONNECTIONS / 2);
    }

    #[tokio::test]
    async fn one_user_gets_half_of_a_doors_connections_and_another_one_for_each_that_it_closes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("door.sock");
        let (_stop, stopping) = watch::channel(false);
        let listener = UnixListener::bind(&path).unwrap();
        let door = tokio::spawn(serve_at_most(8, "door", listener, Arc::new(Talkative), stopping));
        // As long as it is kept open, one request after the other.
        let connect = async || {
            let mut caller = UnixStream::connect(&path).await.unwrap();
            let asked = caller.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.is_ok();
            let mut first = [0; 1];
            let answered = asked && caller.read(&mut first).await.is_ok_and(|read| read == 1);
            answered.then_some(caller)
        };
        let mut held = Vec::new();
        // One more than it may get.
        for _ in 0..5 {
            held.extend(connect().await);
        }
        assert_eq!(held.len(), 4);
        held.pop();
        let again = async {
            while connect().await.is_none() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), again).await.expect("who leaves makes room");
        door.abort();
    }

    /// A door whose listener its holder keeps, as the supervisor does.
    struct Held {
        _directory: tempfile::TempDir,
        path: std::path::PathBuf,
        _listener: std::os::unix::net::UnixListener,
        stop: watch::Sender<bool>,
        door: tokio::task::JoinHandle<()>,
    }

    struct Polite;

    impl Door for Polite {
        type Answer = Full<Bytes>;

        async fn answer(&self, _: &Peer, _: &Parts, body: &mut Incoming) -> Response<Full<Bytes>> {
            let read = read_body(body, 100, HEADER_TIME).await;
            Response::new(Full::from(format!("heard {:?}", read.map(|bytes| bytes.len()))))
        }
    }

    impl Held {
        fn open() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("door.sock");
            let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
            listener.set_nonblocking(true).unwrap();
            let served = UnixListener::from_std(listener.try_clone().unwrap()).unwrap();
            let (stop, stopping) = watch::channel(false);
            let door = tokio::spawn(serve("door", served, Arc::new(Polite), stopping));
            Self { _directory: directory, path, _listener: listener, stop, door }
        }

        /// Connected and let in. Blocks where it reads and writes, so that nothing else runs meanwhile.
        async fn let_in(&self) -> std::os::unix::net::UnixStream {
            let caller = std::os::unix::net::UnixStream::connect(&self.path).unwrap();
            turns().await;
            caller
        }
    }

    /// Everybody else does all that there is to do.
    async fn turns() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    const ASKED: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    /// All that comes until the other end closes.
    async fn heard(caller: std::os::unix::net::UnixStream) -> String {
        caller.set_nonblocking(true).unwrap();
        let mut text = String::new();
        UnixStream::from_std(caller).unwrap().read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn who_has_asked_before_the_stop_is_answered_though_nobody_has_read_it() {
        use std::io::{Read, Write};
        let held = Held::open();
        let mut first = held.let_in().await;
        let mut second = held.let_in().await;
        second.write_all(ASKED).unwrap();
        turns().await;
        let mut answer = [0; 12];
        second.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        // Both at once with the stop, so that no byte of these has been read when it is told.
        first.write_all(ASKED).unwrap();
        second.write_all(ASKED).unwrap();
        held.stop.send_replace(true);
        for (caller, answers) in [(first, 1), (second, 2)] {
            let heard = heard(caller).await;
            assert_eq!(heard.matches("heard Ok(0)").count(), answers, "{heard}");
            assert_eq!(heard.matches("connection: close").count(), 1, "{heard}");
        }
        held.door.await.unwrap();
    }

    #[tokio::test]
    async fn who_was_let_in_and_asks_after_the_stop_or_in_two_parts_is_answered() {
        use std::io::Write;
        let held = Held::open();
        let mut silent = held.let_in().await;
        let mut halfway = held.let_in().await;
        // Its second one, for which hyper would not wait.
        halfway.write_all(ASKED).unwrap();
        turns().await;
        halfway.write_all(b"POST / HTTP/1.1\r\nHost: x\r\n").unwrap();
        turns().await;
        held.stop.send_replace(true);
        turns().await;
        silent.write_all(ASKED).unwrap();
        halfway.write_all(b"Content-Length: 3\r\n\r\na").unwrap();
        turns().await;
        halfway.write_all(b"bc").unwrap();
        let (silent, halfway) = (heard(silent).await, heard(halfway).await);
        assert!(silent.contains("heard Ok(0)") && silent.contains("connection: close"), "{silent}");
        assert!(halfway.contains("heard Ok(3)") && halfway.contains("connection: close"), "{halfway}");
        held.door.await.unwrap();
    }

    #[tokio::test]
    async fn who_waits_between_two_requests_is_let_go_at_once_and_who_comes_later_stays_in_the_queue() {
        use std::io::Write;
        let held = Held::open();
        let mut idle = held.let_in().await;
        idle.write_all(ASKED).unwrap();
        turns().await;
        held.stop.send_replace(true);
        // Within the time for a first request, which this one has had.
        tokio::time::timeout(FIRST_REQUEST_TIME / 2, held.door).await.expect("nobody is waited for").unwrap();
        assert!(heard(idle).await.ends_with("heard Ok(0)"));
        let mut queued = std::os::unix::net::UnixStream::connect(&held.path).unwrap();
        queued.write_all(ASKED).unwrap();
        queued.set_nonblocking(true).unwrap();
        let unheard = std::io::Read::read(&mut queued, &mut [0; 1]).unwrap_err();
        assert_eq!(unheard.kind(), io::ErrorKind::WouldBlock, "neither answered nor refused");
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_asks_holds_up_the_stop_for_a_moment_only() {
        let held = Held::open();
        let _silent = held.let_in().await;
        held.stop.send_replace(true);
        tokio::time::timeout(2 * FIRST_REQUEST_TIME, held.door).await.expect("it is not waited for any longer").unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_does_not_read_its_answer_loses_its_connection() {
        assert!(asked(WRITE_TIME + Duration::from_secs(1)).await.len() < LARGE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_reads_late_has_its_answer() {
        assert!(asked(WRITE_TIME - Duration::from_secs(1)).await.len() > LARGE);
    }
}
