//! What a function prints, and the platform's lines around it.
//!
//! Server process, floor 1. The bytes come from the function, hostile: nothing here grows with them. Each environment
//! has one [`Output`], which alone reads its log pipe, always at once, so that the function never blocks on it. Lines go
//! to a [`LogSink`] and, during an invocation, into its tail.
//!
//! What is printed between two invocations (by a thread that runs on until the freeze) belongs to the later one.

pub mod lines;
mod recent;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::unix::pipe::Receiver;

use crate::function::FunctionName;

pub use recent::Recent;

/// `X-Amz-Log-Result` has so many bytes, cut by bytes.
/// <https://docs.aws.amazon.com/lambda/latest/api/API_Invoke.html>
pub const TAIL: usize = 4096;
/// A longer line is split.
/// <https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/cloudwatch_limits_cwl.html>
const MAX_LINE: usize = 256 << 10;
/// The most that is read at once when an invocation ends: what the pipe held, and some more.
const MAX_DRAIN: usize = 1 << 20;

/// Where lines end up. Called under an output's lock: quick, and never calls back.
pub trait LogSink: Send + Sync + 'static {
    /// Whole lines (a partial one only where [`MAX_LINE`] cut it).
    fn append(&self, function: &FunctionName, lines: &[u8]);
}

/// A function's log as one environment (or one failed start) writes it, and the tail of the running invocation.
pub struct Journal {
    function: FunctionName,
    sink: Arc<dyn LogSink>,
    /// The end of the invocation's log, at most twice [`TAIL`].
    tail: Option<Vec<u8>>,
    /// START, until something follows it: an invocation that never reached its runtime leaves no line here.
    start: Option<String>,
}

impl Journal {
    pub fn new(function: FunctionName, sink: Arc<dyn LogSink>) -> Self {
        Self { function, sink, tail: None, start: None }
    }

    /// An invocation begins: its tail starts with `line`.
    pub fn begin(&mut self, line: String) {
        self.tail = Some(Vec::new());
        self.start = Some(line).filter(|line| !line.is_empty());
    }

    /// It did not begin after all.
    pub fn take_back(&mut self) {
        (self.tail, self.start) = (None, None);
    }

    pub fn write(&mut self, lines: &[u8]) {
        self.write_start();
        self.append(lines);
    }

    /// Into the tail only: lines that the function's log has already, from the init that ran inside this invocation.
    pub fn quote(&mut self, lines: &[u8]) {
        self.write_start();
        self.keep(lines);
    }

    fn write_start(&mut self) {
        if let Some(start) = self.start.take() {
            self.append(start.as_bytes());
        }
    }

    fn append(&mut self, lines: &[u8]) {
        self.sink.append(&self.function, lines);
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

    /// The invocation is over: its last [`TAIL`] bytes.
    pub fn end(&mut self) -> Vec<u8> {
        let tail = self.tail.take().unwrap_or_default();
        tail[tail.len().saturating_sub(TAIL)..].to_vec()
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
    pub fn begin(&self, line: String) {
        self.lock().journal.begin(line);
    }

    /// As [`Journal::take_back`].
    pub fn take_back(&self) {
        self.lock().journal.take_back();
    }

    /// A line of the platform's.
    pub fn platform(&self, line: &str) {
        self.lock().journal.write(line.as_bytes());
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
            inner.journal.write(&line);
        }
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
                inner.journal.write(&bytes[..whole]);
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
                inner.journal.write(&line);
            } else if inner.partial.last() == Some(&b'\n') {
                let line = std::mem::take(&mut inner.partial);
                inner.journal.write(&line);
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
mod tests {
    use std::io::Write;

    use super::*;

    fn output() -> (Arc<Output>, std::fs::File, Arc<Recent>, FunctionName) {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        let (recent, name) = (Arc::new(Recent::default()), FunctionName::parse("f").unwrap());
        (Output::new(Journal::new(name.clone(), recent.clone()), read).unwrap(), write.into(), recent, name)
    }

    #[tokio::test]
    async fn a_tail_is_start_to_end_and_a_partial_line_is_ended() {
        let (output, mut function, recent, name) = output();
        function.write_all(b"between\nhal").unwrap();
        output.begin("START\n".into());
        output.drain();
        function.write_all(b"one\npart").unwrap();
        output.drain();
        output.platform("END\n");
        assert_eq!(output.end(), b"START\nbetween\nhal\none\npart\nEND\n");
        assert_eq!(recent.of(&name), b"START\nbetween\nhal\none\npart\nEND\n");
    }

    #[tokio::test]
    async fn a_tail_has_exactly_the_last_4096_bytes() {
        let (output, mut function, ..) = output();
        output.begin("START\n".into());
        for n in 0..3000 {
            writeln!(function, "{n:9}").unwrap();
            output.drain();
        }
        output.platform("REPORT\t\n");
        let tail = output.end();
        assert_eq!(tail.len(), TAIL);
        assert!(tail.ends_with(b"     2999\nREPORT\t\n"));
    }

    #[tokio::test]
    async fn a_function_that_prints_without_end_is_read_and_costs_nothing() {
        let (output, mut function, recent, name) = output();
        output.begin("START\n".into());
        let reader = tokio::spawn(output.clone().read());
        let piece = [b'x'; 4096];
        for _ in 0..1000 {
            while function.write(&piece).is_err() {
                tokio::task::yield_now().await;
            }
        }
        drop(function);
        reader.await.unwrap();
        output.drain();
        assert!(output.lock().partial.is_empty());
        assert!(recent.of(&name).len() <= 64 << 10);
        assert_eq!(output.end().len(), TAIL);
    }
}
