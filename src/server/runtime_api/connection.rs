//! The bytes of one connection.
//!
//! hyper parses; this file wraps its socket to know three things that hyper does not tell: when the first bytes of an
//! event are written (then comes the thaw: the event first), when a request's head trickles, and when a
//! runtime was dead before it read its event.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::calls;
use super::desk::{AfterWrite, Desk};
use crate::invocation::RequestId;
use crate::sys::socket;

/// From a head's first byte to its last.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Clients may send an X-Ray cause of up to 1 MiB in a header. hyper may have read twice of it before it looks.
const MAX_HEAD: usize = 2 << 20;

pub(super) async fn serve(stream: TcpStream, desk: Arc<Desk>) -> Result<(), hyper::Error> {
    // Best effort: without it an answer may only come later.
    let _ = stream.set_nodelay(true);
    serve_watched(stream, sent_in_vain, desk).await
}

/// Over any stream: for tests that count writes, and for fuzzers.
pub async fn serve_io<S>(stream: S, desk: Arc<Desk>) -> Result<(), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    serve_watched(stream, |_| false, desk).await
}

/// Of a connection whose other end is closed: whether that end has not read everything that was sent.
///
/// A TCP that is closed with bytes unread sends RST, not FIN; and what comes after its FIN it answers with RST, and never
/// acknowledges. So whatever it has not acknowledged, nobody has read.
fn sent_in_vain(stream: &TcpStream) -> bool {
    matches!(stream.take_error(), Ok(Some(_)) | Err(_)) || socket::unacknowledged(stream.as_fd()).is_ok_and(|bytes| bytes > 0)
}

async fn serve_watched<S>(stream: S, in_vain: fn(&S) -> bool, desk: Arc<Desk>) -> Result<(), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let watch = Arc::new(Watch::default());
    let io = TokioIo::new(Watched { inner: stream, in_vain, watch: watch.clone(), head: None });
    let (its_desk, its_watch) = (desk.clone(), watch.clone());
    let service = service_fn(move |request| {
        let (desk, watch) = (its_desk.clone(), its_watch.clone());
        // It has read what came before, the event too.
        if let Some(event) = watch.serving() {
            desk.was_read(event);
        }
        async move {
            let calls::Answer { response, event } = calls::answer(&desk, request).await;
            watch.served(event);
            Ok::<_, Infallible>(response)
        }
    });
    let end = http1::Builder::new()
        .header_read_timeout(None) // it would also cut a connection that only rests
        .max_buf_size(MAX_HEAD)
        .max_headers(256)
        .serve_connection(io, service)
        .await;
    if let (Some(event), unread) = watch.change(|inner| (inner.event, inner.unread || inner.then.is_some())) {
        desk.connection_over(event, unread);
    }
    end
}

/// What service and socket of one connection tell each other.
#[derive(Default)]
struct Watch {
    /// Taken for one assignment each; both sides run in the connection's own task.
    inner: Mutex<Watching>,
}

#[derive(Default)]
struct Watching {
    /// A request is with the service, so what is read is not a head.
    serving: bool,
    then: Option<AfterWrite>,
    /// The event that was last sent here.
    event: Option<RequestId>,
    /// The other end was closed before it had read all.
    unread: bool,
}

impl Watch {
    fn change<T>(&self, act: impl FnOnce(&mut Watching) -> T) -> T {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A request has come; with the event that was sent here before it.
    fn serving(&self) -> Option<RequestId> {
        self.change(|inner| {
            inner.serving = true;
            inner.event.take()
        })
    }

    fn served(&self, event: Option<(RequestId, AfterWrite)>) {
        let former = self.change(|inner| {
            inner.serving = false;
            let (event, then) = event.unzip();
            inner.event = event;
            std::mem::replace(&mut inner.then, then)
        });
        drop(former);
    }

    fn wrote(&self, outcome: &io::Result<usize>) {
        self.met(outcome.as_ref().err());
        if outcome.is_ok() {
            let then = self.change(|inner| inner.then.take());
            drop(then);
        }
    }

    /// A reader meets ECONNRESET; who writes after it, EPIPE.
    fn met(&self, error: Option<&io::Error>) {
        if error.is_some_and(|error| matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)) {
            self.change(|inner| inner.unread = true);
        }
    }
}

struct Watched<S> {
    inner: S,
    /// See [`sent_in_vain`].
    in_vain: fn(&S) -> bool,
    watch: Arc<Watch>,
    /// Runs from a head's first byte until the service has it.
    head: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.remaining();
        let read = Pin::new(&mut self.inner).poll_read(cx, buffer);
        let some = buffer.remaining() < before;
        match &read {
            Poll::Ready(Err(error)) => self.watch.met(Some(error)),
            Poll::Ready(Ok(())) if !some && before > 0 && (self.in_vain)(&self.inner) => {
                self.watch.change(|inner| inner.unread = true)
            }
            _ => {}
        }
        if self.watch.change(|inner| inner.serving) {
            self.head = None;
        } else if some && self.head.is_none() {
            self.head = Some(Box::pin(sleep(HEAD_LIMIT)));
        }
        if let Some(head) = &mut self.head {
            if head.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        if let Poll::Ready(outcome) = &written {
            self.watch.wrote(outcome);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, pieces);
        if let Poll::Ready(outcome) = &written {
            self.watch.wrote(outcome);
        }
        written
    }
}
