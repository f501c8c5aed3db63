//! One caller's connection, byte by byte: what it is at, and writes that end in time.
//!
//! hyper tells neither: it drops what it has not read when it is asked to end, and waits for ever for a caller that does not
//! read its answer. So this lies between it and the socket, and knows of HTTP only what [`super::connection`] tells it.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::ioctl_fionread;
use rustix::net::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Sleep, sleep};

/// A caller that takes nothing of its answer for so long will not take it. Its connection, one of a bounded number, would
/// be held for ever.
pub const WRITE_TIME: Duration = Duration::from_secs(60);

/// What a connection is at, seen from its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Not one byte has come.
    Fresh,
    /// A request has begun to come.
    Asking,
    /// It is answered.
    Answering,
    /// It was, and the next one has not begun; the answer may be on its way still.
    Between,
}

/// A caller's stream, and what it is at.
pub struct Line {
    /// `std` lock: held for one call, never across an await; only the connection's own task takes it.
    stream: Mutex<UnixStream>,
    stage: AtomicU8,
    /// Nothing more can come.
    closed: AtomicBool,
    /// An answer waits for its caller to read.
    writing: AtomicBool,
    /// It is a conversation, whose reader may stop reading as long as they like.
    patient: AtomicBool,
}

impl Line {
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream: Mutex::new(stream),
            stage: AtomicU8::new(Stage::Fresh as u8),
            closed: AtomicBool::new(false),
            writing: AtomicBool::new(false),
            patient: AtomicBool::new(false),
        }
    }

    // A poisoned lock: a panic aborts the process, so nobody has ever seen one.
    fn stream(&self) -> MutexGuard<'_, UnixStream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is a conversation from now on.
    pub fn be_patient(&self) {
        self.patient.store(true, Ordering::Relaxed);
    }

    pub fn is(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Relaxed);
    }

    pub fn stage(&self) -> Stage {
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

    /// Whether nothing holds it but a request whose head has not come in full. An answer may still be on its way to a caller
    /// that has begun to ask for more.
    pub fn is_at_its_head(&self) -> bool {
        matches!(self.stage(), Stage::Fresh | Stage::Asking) && !self.writing.load(Ordering::Relaxed)
    }

    /// The door closes. Whether a request is there that is not answered yet: its answer will end the connection.
    pub fn expects_more(&self) -> bool {
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

/// A connection whose writes end in time.
pub struct Timed {
    line: Arc<Line>,
    /// Runs while a write cannot go on.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl Timed {
    pub fn new(line: Arc<Line>) -> Self {
        Self { line, stuck: None }
    }

    fn written<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.line.writing.store(written.is_pending(), Ordering::Relaxed);
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
