//! Doors as callers meet them: who is let in, who is answered at a stop, and who is not waited for.

use std::io;

use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::line::WRITE_TIME;
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

#[tokio::test(start_paused = true)]
async fn whose_head_comes_byte_by_byte_holds_up_the_stop_for_some_seconds_only() {
    use std::io::Write;
    let held = Held::open();
    let mut slow = held.let_in().await;
    let mut asking = held.let_in().await;
    slow.write_all(&ASKED[..1]).unwrap();
    asking.write_all(&ASKED[..1]).unwrap();
    turns().await;
    held.stop.send_replace(true);
    let told = tokio::time::Instant::now();
    let trickle = tokio::spawn(async move {
        // Less often than the header's own time would allow, and never to the end.
        for byte in &ASKED[1..20] {
            sleep(Duration::from_secs(1)).await;
            if slow.write_all(&[*byte]).is_err() {
                return;
            }
        }
        panic!("it is still listened to");
    });
    // In time.
    sleep(LAST_HEAD_TIME - Duration::from_secs(1)).await;
    asking.write_all(&ASKED[1..]).unwrap();
    assert!(heard(asking).await.ends_with("heard Ok(0)"));
    held.door.await.unwrap();
    assert!(told.elapsed() <= LAST_HEAD_TIME + Duration::from_secs(1), "{:?}", told.elapsed());
    trickle.await.unwrap();
}

/// Takes longer than a head may during a stop.
struct Thoughtful;

impl Door for Thoughtful {
    type Answer = Full<Bytes>;

    async fn answer(&self, _: &Peer, _: &Parts, _: &mut Incoming) -> Response<Full<Bytes>> {
        sleep(3 * LAST_HEAD_TIME).await;
        Response::new(Full::from(vec![b'x'; LARGE]))
    }
}

#[tokio::test(start_paused = true)]
async fn whose_answer_is_in_the_making_or_on_its_way_when_the_time_for_heads_is_over_gets_it_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("door.sock");
    let (stop, stopping) = watch::channel(false);
    let door = tokio::spawn(serve("door", UnixListener::bind(&path).unwrap(), Arc::new(Thoughtful), stopping));
    let mut caller = UnixStream::connect(&path).await.unwrap();
    caller.write_all(ASKED).await.unwrap();
    // One byte of its next one, which is read when the answer is on its way.
    sleep(3 * LAST_HEAD_TIME + Duration::from_secs(1)).await;
    caller.write_all(b"G").await.unwrap();
    stop.send_replace(true);
    sleep(2 * LAST_HEAD_TIME).await;
    let mut answer = Vec::new();
    caller.read_to_end(&mut answer).await.unwrap();
    assert!(answer.len() > LARGE, "{} bytes", answer.len());
    door.await.unwrap();
}
