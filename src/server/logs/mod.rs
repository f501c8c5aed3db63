//! What a function prints, and the platform's lines around it.
//!
//! Server process, floor 1. The bytes come from the function, hostile: nothing here grows with them. Each environment
//! has one [`Output`], which alone reads its log pipe, always at once, so that the function never blocks on it. Lines go
//! to a [`LogSink`], which is the [`store`] (and has them [`mirror`]ed in systemd's journal), and, during an invocation, into
//! its tail. stdout and stderr are one pipe, as on
//! Lambda: so their lines keep the order in which they were printed, and nobody can tell which was which.
//!
//! What is printed between two invocations (by a thread that runs on until the freeze) belongs to the later one.

pub mod lines;
pub mod mirror;
pub mod missing;
pub mod store;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::net::unix::pipe::Receiver;
use tokio::time::Instant;

use crate::function::FunctionName;
use crate::invocation::RequestId;
use crate::telemetry::bucket::Bucket;

pub use missing::Missing;
pub use store::{LogStore, LogThread};

/// `X-Amz-Log-Result` has so many bytes, cut by bytes.
/// <https://docs.aws.amazon.com/lambda/latest/api/API_Invoke.html>
pub const TAIL: usize = 4096;
/// A longer line is split.
/// <https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/cloudwatch_limits_cwl.html>
const MAX_LINE: usize = 256 << 10;
/// The most that is read at once when an invocation ends: what the pipe held, and some more.
const MAX_DRAIN: usize = 1 << 20;
/// An invocation that has used its allowance gets so much of it again in each second: of 16 MiB, 16 KiB. In 900 seconds that
/// is less than the allowance itself, so what is before the invocation stays in the log.
const REFILL: u64 = 1024;

/// Where lines end up. Called under an output's lock: quick, and never calls back.
pub trait LogSink: Send + Sync + 'static {
    /// Whole lines (a partial one only where [`MAX_LINE`] cut it). `false`: there was no room for them.
    fn append(&self, piece: &Piece<'_>) -> bool;

    /// How much of the log one invocation may fill at once, in bytes.
    fn allowance(&self) -> u64;

    /// How much of the log a piece fills: never less than its own bytes.
    fn weight(&self, piece: &Piece<'_>) -> u64;

    /// Lines were offered and not taken, or not offered at all since there were too many; for who counts.
    fn missed(&self, _why: missing::Why, _lost: Lost) {}
}

/// Lines of one kind, printed at one moment.
#[derive(Clone, Copy)]
pub struct Piece<'a> {
    pub origin: &'a Arc<Origin>,
    pub request: Option<RequestId>,
    pub kind: Kind,
    pub time: SystemTime,
    pub lines: &'a [u8],
}

/// Whose lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub function: FunctionName,
    /// `$LATEST` or a number.
    pub version: String,
    /// The environment, as the function sees it in AWS_LAMBDA_LOG_STREAM_NAME.
    pub stream: String,
    /// Its container; none where none could be built.
    pub container: Option<String>,
}

/// Who wrote a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Function,
    /// Lambda's own: START, END, REPORT, INIT_START, causes.
    Platform,
    /// Kiln's, which Lambda has not: that lines are missing here.
    Notice,
}

/// Lines that are not in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    pub lines: u64,
    pub bytes: u64,
}

impl Lost {
    pub fn of(lines: &[u8]) -> Self {
        let ends = lines.iter().filter(|byte| **byte == b'\n').count();
        Self { lines: ends as u64, bytes: lines.len() as u64 }
    }

    pub fn add(&mut self, other: Self) {
        self.lines += other.lines;
        self.bytes += other.bytes;
    }

    /// What stands in the log instead.
    pub fn notice(self, why: &str) -> String {
        let Self { lines, bytes } = self;
        format!("KILN: {lines} lines ({bytes} bytes) were dropped here: {why}\n")
    }
}

/// A function's log as one environment (or one failed start) writes it, and the tail of the running invocation.
pub struct Journal {
    origin: Arc<Origin>,
    sink: Arc<dyn LogSink>,
    /// The invocation that runs.
    request: Option<RequestId>,
    /// The end of the invocation's log, at most twice [`TAIL`].
    tail: Option<Vec<u8>>,
    /// START, until something follows it: an invocation that never reached its runtime leaves no line here.
    start: Option<(SystemTime, String)>,
    allowance: Allowance,
    /// Since the last line that the sink took, and whether the allowance was the reason.
    lost: Lost,
    too_much: bool,
}

/// How much of the log an invocation may still fill.
struct Allowance {
    bytes: Bucket,
    of: u64,
}

impl Journal {
    pub fn new(origin: Arc<Origin>, sink: Arc<dyn LogSink>) -> Self {
        let of = sink.allowance();
        let allowance = Allowance::whole(of);
        Self { origin, sink, request: None, tail: None, start: None, allowance, lost: Lost::default(), too_much: false }
    }

    pub fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }

    /// An environment begins, perhaps inside of an invocation, with `line`. The end of what its init prints is kept, in case
    /// that it fails.
    pub fn init(&mut self, request: Option<RequestId>, line: &str) {
        self.request = request;
        self.platform(line);
        self.tail = Some(Vec::new());
    }

    /// An invocation begins: its tail starts with `line`.
    pub fn begin(&mut self, request: RequestId, line: String) {
        self.request = Some(request);
        self.tail = Some(Vec::new());
        self.start = Some((SystemTime::now(), line));
        let of = self.sink.allowance();
        self.allowance = Allowance::whole(of);
    }

    /// It did not begin after all.
    pub fn take_back(&mut self) {
        (self.request, self.tail, self.start) = (None, None, None);
    }

    /// It did: START is not held back any longer.
    pub fn begun(&mut self) {
        if let Some((time, start)) = self.start.take() {
            self.append(Kind::Platform, time, start.as_bytes());
        }
    }

    /// A line of the platform's.
    pub fn platform(&mut self, lines: &str) {
        if !lines.is_empty() {
            self.begun();
            self.append(Kind::Platform, SystemTime::now(), lines.as_bytes());
        }
    }

    /// Lines of the function's.
    pub fn function(&mut self, lines: &[u8]) {
        self.begun();
        self.append(Kind::Function, SystemTime::now(), lines);
    }

    /// Into the tail only: lines that the function's log has already, from the init that ran inside this invocation.
    pub fn quote(&mut self, lines: &[u8]) {
        self.begun();
        self.keep(lines);
    }

    fn keep(&mut self, lines: &[u8]) {
        if let Some(tail) = &mut self.tail {
            tail.extend_from_slice(&lines[lines.len().saturating_sub(TAIL)..]);
            if tail.len() > 2 * TAIL {
                tail.drain(..tail.len() - TAIL);
            }
        }
    }

    fn append(&mut self, kind: Kind, time: SystemTime, lines: &[u8]) {
        self.keep(lines);
        let piece = Piece { origin: &self.origin, request: self.request, kind, time, lines };
        let allowed = kind != Kind::Function || self.allowance.take(lines.len() as u64, || self.sink.weight(&piece));
        let told = allowed && self.tell_losses(time);
        let piece = Piece { origin: &self.origin, request: self.request, kind, time, lines };
        // The platform's own words are tried even where a notice found no room.
        let taken = (told || allowed && kind != Kind::Function) && self.sink.append(&piece);
        if !taken {
            let lost = Lost::of(lines);
            self.sink.missed(if allowed { missing::Why::Queue } else { missing::Why::Excess }, lost);
            self.lost.add(lost);
            self.too_much = !allowed;
        }
    }

    /// That lines are missing is told where they are missing. `false`: there is no room even for that.
    fn tell_losses(&mut self, time: SystemTime) -> bool {
        if self.lost == Lost::default() {
            return true;
        }
        let why = match self.too_much {
            true => {
                let kib = self.allowance.of >> 10;
                format!(
                    "one invocation may fill {kib} KiB of the log (a quarter of log_max_mib), then {} KiB a second",
                    kib / REFILL
                )
            }
            false => "they came faster than they could be written".to_owned(),
        };
        let notice = self.lost.notice(&why);
        let piece = Piece { origin: &self.origin, request: self.request, kind: Kind::Notice, time, lines: notice.as_bytes() };
        let told = self.sink.append(&piece);
        if told {
            self.lost = Lost::default();
        }
        told
    }

    /// The invocation is over: its last [`TAIL`] bytes.
    pub fn end(&mut self) -> Vec<u8> {
        let tail = self.said();
        self.request = None;
        tail
    }

    /// The end of what was printed since [`Self::init`] or [`Self::begin`].
    pub fn said(&mut self) -> Vec<u8> {
        let tail = self.tail.take().unwrap_or_default();
        tail[tail.len().saturating_sub(TAIL)..].to_vec()
    }
}

impl Allowance {
    fn whole(of: u64) -> Self {
        Self { bytes: Bucket::full(of as f64, (of / REFILL) as f64, Instant::now().into_std()), of }
    }

    /// `weight` is at least `least`, and is asked for only where that much is left: who prints without end is not counted
    /// for ever.
    fn take(&mut self, least: u64, weight: impl FnOnce() -> u64) -> bool {
        let now = Instant::now().into_std();
        self.bytes.holds(least as f64, now) && self.bytes.take(weight() as f64, now)
    }
}

/// The output of one environment.
pub struct Output {
    pipe: Receiver,
    /// Taken by the reader for each piece and by the environment for each platform line. `sink` is called inside.
    inner: Mutex<Inner>,
}

struct Inner {
    /// A line that has no end yet.
    partial: Vec<u8>,
    journal: Journal,
}

impl Output {
    pub fn new(journal: Journal, pipe: OwnedFd) -> io::Result<Arc<Self>> {
        let pipe = Receiver::from_owned_fd(pipe)?;
        Ok(Arc::new(Self { pipe, inner: Mutex::new(Inner { partial: Vec::new(), journal }) }))
    }

    /// Reads until the pipe's writers are gone.
    pub async fn read(self: Arc<Self>) {
        while self.pipe.readable().await.is_ok() {
            match self.take_all(|buffer| self.pipe.try_read(buffer)) {
                Ok(End::Empty) => {}
                Ok(End::More) => tokio::task::yield_now().await,
                Ok(End::Closed) | Err(_) => return,
            }
        }
    }

    /// As [`Journal::begin`].
    pub fn begin(&self, request: RequestId, line: String) {
        self.lock().journal.begin(request, line);
    }

    /// As [`Journal::begun`].
    pub fn begun(&self) {
        self.lock().journal.begun();
    }

    pub fn origin(&self) -> Arc<Origin> {
        self.lock().journal.origin().clone()
    }

    /// As [`Journal::take_back`].
    pub fn take_back(&self) {
        self.lock().journal.take_back();
    }

    /// A line of the platform's.
    pub fn platform(&self, line: &str) {
        self.lock().journal.platform(line);
    }

    /// Takes in what the function has written so far; ends its partial line.
    pub fn drain(&self) {
        // Past tokio, whose reactor may not have heard yet of what is in the pipe. If it cannot be read there is
        // nothing to take in; the reader has seen the same error.
        let _ = self.take_all(|buffer| Ok(nix::unistd::read(&self.pipe, buffer)?));
        let mut inner = self.lock();
        if !inner.partial.is_empty() {
            let mut line = std::mem::take(&mut inner.partial);
            line.push(b'\n');
            inner.journal.function(&line);
        }
    }

    /// As [`Journal::said`].
    pub fn said(&self) -> Vec<u8> {
        self.lock().journal.said()
    }

    /// As [`Journal::end`].
    pub fn end(&self) -> Vec<u8> {
        self.lock().journal.end()
    }

    fn take_all(&self, mut read: impl FnMut(&mut [u8]) -> io::Result<usize>) -> io::Result<End> {
        let mut buffer = [0; 16 << 10];
        let mut taken = 0;
        while taken < MAX_DRAIN {
            match read(&mut buffer) {
                Ok(0) => return Ok(End::Closed),
                Ok(length) => {
                    self.take_in(&buffer[..length]);
                    taken += length;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(End::Empty),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(End::More)
    }

    fn take_in(&self, mut bytes: &[u8]) {
        let mut inner = self.lock();
        // Whole lines go through without a copy of their own.
        if inner.partial.is_empty() {
            let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            if whole > 0 {
                inner.journal.function(&bytes[..whole]);
                bytes = &bytes[whole..];
            }
        }
        while !bytes.is_empty() {
            let end = bytes.iter().position(|byte| *byte == b'\n').map(|end| end + 1);
            let room = MAX_LINE - inner.partial.len();
            let length = end.unwrap_or(bytes.len()).min(room);
            inner.partial.extend_from_slice(&bytes[..length]);
            bytes = &bytes[length..];
            if inner.partial.len() == MAX_LINE && inner.partial.last() != Some(&b'\n') {
                let mut line = std::mem::take(&mut inner.partial);
                line.push(b'\n');
                inner.journal.function(&line);
            } else if inner.partial.last() == Some(&b'\n') {
                let line = std::mem::take(&mut inner.partial);
                inner.journal.function(&line);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum End {
    /// Nothing is left for now.
    Empty,
    /// The bound was reached first.
    More,
    Closed,
}

#[cfg(test)]
pub(in crate::server) mod tests;
