//! What Kiln tells meanwhile: its events, as somebody hears them who listens all the time, and its counts.
//!
//! A thread of its own, which blocks on `kiln events -f`'s door. When the server dies it goes on with the next one, from the last
//! event that it has heard. Judges nothing but what only the stream itself shows: numbers that go back or are missing.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::Deserialize;

use crate::books::Entry;
use crate::host::Api;

/// Servers, in the order in which they were heard. The last one is heard to its end, of those before the end may be missing.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    pub servers: Vec<Server>,
    pub strange: Vec<String>,
}

/// What one server has told.
#[derive(Clone, Debug, Default)]
pub struct Server {
    pub first: u64,
    pub last: u64,
    pub events: u64,
    /// Those that it says to have come faster than they were read.
    pub lost: u64,
    /// By request.
    pub requests: BTreeMap<String, Life>,
    /// Environments that were begun, and those that were ready or failed.
    pub starting: u64,
    pub started: u64,
    pub containers: BTreeMap<String, Container>,
}

/// Of one container.
#[derive(Clone, Debug, Default)]
pub struct Container {
    pub function: String,
    /// The requests for which it was made; one.
    pub ready: Vec<String>,
    /// Why it ended; once.
    pub retired: Vec<String>,
}

/// Of one request.
#[derive(Clone, Debug, Default)]
pub struct Life {
    /// Environments that were begun for it, each with its reason.
    pub starting: u64,
    pub invoked: u64,
    pub taken_back: u64,
    /// Once, with the figures that it was told with.
    pub ended: Vec<Entry>,
    pub cold: bool,
    /// Reasons.
    pub throttled: Vec<String>,
}

#[derive(Deserialize)]
struct Event {
    event: String,
    seq: Option<u64>,
    lost: Option<u64>,
    function: Option<String>,
    container: Option<String>,
    request: Option<String>,
    duration_us: Option<u64>,
    billed_ms: Option<u64>,
    memory_mib: Option<u64>,
    max_memory_mib: Option<u64>,
    init_us: Option<u64>,
    cause: Option<String>,
    reason: Option<String>,
    why: Option<String>,
    cold: Option<bool>,
}

/// Somebody who listens.
pub struct Ear {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Heard>,
}

impl Ear {
    pub fn open(socket: PathBuf) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let until = over.clone();
        let listen = move || {
            let mut heard = Heard::default();
            loop {
                // Whatever ends it: if the server lives, it goes on.
                let _ = heard.listen(&socket);
                if until.load(Ordering::Relaxed) {
                    return heard;
                }
                thread::sleep(Duration::from_millis(20)); // the pace of trying again
            }
        };
        Self { over, thread: thread::spawn(listen) }
    }

    /// The server that is heard now is the last one.
    pub fn last_server(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// When that one has ended: all that it has told.
    pub fn close(self) -> Heard {
        self.thread.join().expect("the listener's thread")
    }
}

impl Heard {
    /// Until the connection ends.
    fn listen(&mut self, socket: &Path) -> io::Result<()> {
        let mut stream = UnixStream::connect(socket)?;
        let since = self.servers.last().map_or(String::new(), |server| format!("&since_seq={}", server.last + 1));
        write!(stream, "GET /v1/events?follow=1{since} HTTP/1.1\r\nHost: kiln\r\nConnection: close\r\n\r\n")?;
        let mut pieces = Pieces { stream, bytes: Vec::new() };
        let head = pieces.until(b"\r\n\r\n")?;
        if !head.starts_with(b"HTTP/1.1 200 ") {
            self.strange.push(format!("/v1/events: {:.300}", String::from_utf8_lossy(&head)));
            return Ok(());
        }
        let (mut continued, mut lines) = (false, Vec::new());
        loop {
            let size = pieces.until(b"\r\n")?;
            let size = std::str::from_utf8(&size).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
            let Some(size) = size else { return Err(io::ErrorKind::InvalidData.into()) };
            lines.extend(pieces.take(size)?);
            pieces.until(b"\r\n")?;
            if size == 0 {
                return Ok(());
            }
            while let Some(at) = lines.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = lines.drain(..=at).collect();
                self.hear(&line, &mut continued);
            }
        }
    }

    /// `continued`: this connection has told something before. Else a number that is not the next one is another server's.
    pub fn hear(&mut self, line: &[u8], continued: &mut bool) {
        let event: Event = match serde_json::from_slice(line) {
            Ok(event) => event,
            Err(error) => {
                return self.strange.push(format!("no event ({error}): {:.300}", String::from_utf8_lossy(line)));
            }
        };
        let Some(seq) = event.seq else {
            match (event.lost, self.servers.last_mut()) {
                (Some(lost), Some(server)) => {
                    server.lost += lost;
                    *continued = true;
                }
                _ => self.strange.push(format!("without a number: {}", String::from_utf8_lossy(line))),
            }
            return;
        };
        let goes_on = |server: &Server| *continued || seq == server.last + 1;
        match self.servers.last_mut().filter(|server| goes_on(server)) {
            Some(server) => server.hear(seq, event, &mut self.strange),
            None => {
                let mut server = Server { first: seq, last: seq - 1, ..Server::default() };
                server.hear(seq, event, &mut self.strange);
                self.servers.push(server);
            }
        }
        *continued = true;
    }
}

impl Server {
    /// Numbers of which nothing was told.
    pub fn missing(&self) -> u64 {
        (self.last + 1 - self.first).saturating_sub(self.events)
    }

    fn hear(&mut self, seq: u64, event: Event, strange: &mut Vec<String>) {
        if seq <= self.last && self.events > 0 {
            strange.push(format!("event {seq} came after {}", self.last));
        }
        self.last = self.last.max(seq);
        self.events += 1;
        match (event.event.as_str(), &event.request, &event.container) {
            ("starting", Some(request), _) => {
                self.starting += 1;
                self.life(request).starting += u64::from(event.why.is_some());
            }
            ("init_failed", ..) => self.started += 1,
            ("ready", _, Some(container)) => {
                self.started += 1;
                let known = self.container(container);
                known.function = event.function.unwrap_or_default();
                known.ready.push(event.request.unwrap_or_default());
            }
            ("retired", _, Some(container)) => self.container(container).retired.push(event.why.unwrap_or_default()),
            ("invoked", Some(request), _) => self.life(request).invoked += 1,
            ("taken_back", Some(request), _) => self.life(request).taken_back += 1,
            ("throttled", Some(request), _) => self.life(request).throttled.push(event.reason.unwrap_or_default()),
            ("ended", Some(request), _) => {
                let hundredths = |us: u64| (us + 5) / 10;
                let ended = Entry {
                    function: event.function.unwrap_or_default(),
                    request: request.clone(),
                    start_ms: 0,
                    duration: hundredths(event.duration_us.unwrap_or(u64::MAX / 2)),
                    billed_ms: event.billed_ms.unwrap_or(u64::MAX),
                    memory_mib: event.memory_mib.unwrap_or(u64::MAX),
                    max_memory_mib: event.max_memory_mib.unwrap_or(u64::MAX),
                    init: event.init_us.map(hundredths),
                    error: event.cause,
                };
                let life = self.life(request);
                life.cold = event.cold.unwrap_or(true);
                life.ended.push(ended);
            }
            _ => {}
        }
    }

    fn container(&mut self, id: &str) -> &mut Container {
        self.containers.entry(id.to_owned()).or_default()
    }

    fn life(&mut self, request: &str) -> &mut Life {
        self.requests.entry(request.to_owned()).or_default()
    }
}

/// An answer in chunks, read as it comes.
struct Pieces {
    stream: UnixStream,
    bytes: Vec<u8>,
}

impl Pieces {
    fn more(&mut self) -> io::Result<()> {
        let mut piece = [0; 16 << 10];
        match self.stream.read(&mut piece)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            length => {
                self.bytes.extend_from_slice(&piece[..length]);
                Ok(())
            }
        }
    }

    /// What is before it; it is read, too.
    fn until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = self.bytes.windows(end.len()).position(|window| window == end) {
                let mut taken: Vec<u8> = self.bytes.drain(..at + end.len()).collect();
                taken.truncate(at);
                return Ok(taken);
            }
            self.more()?;
        }
    }

    fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.bytes.len() < length {
            self.more()?;
        }
        Ok(self.bytes.drain(..length).collect())
    }
}

/// What `/v1/metrics` says: each series with its labels, and its value.
#[derive(Clone, Debug, Default)]
pub struct Counts(pub BTreeMap<String, f64>);

impl Counts {
    pub fn of(control: &Api) -> Self {
        let answer = control.request("GET", "/v1/metrics", &[], b"").text();
        let samples = answer.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        Self(samples.filter_map(|(series, value)| Some((series.to_owned(), value.parse().ok()?))).collect())
    }

    /// All series of a metric, added up.
    pub fn sum(&self, metric: &str) -> f64 {
        self.of_metric(metric).map(|(_, value)| value).sum()
    }

    pub fn of_metric<'a>(&'a self, metric: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        let named = move |series: &str| series.strip_prefix(metric).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'));
        self.0.iter().filter(move |(series, _)| named(series)).map(|(series, value)| (series.as_str(), *value))
    }
}
