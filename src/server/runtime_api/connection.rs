//! The bytes of one connection.
//!
//! hyper parses; this file wraps its socket to know three things that hyper does not tell: when the first bytes of an
//! event are written (then comes the thaw: the event first), when a request's head trickles, and when a
//! runtime was dead before it read its event.

use std::convert::Infallible;
use std::future::Future;
use std::io;
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

/// From a head's first byte to its last.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Clients may send an X-Ray cause of up to 1 MiB in a header. hyper may have read twice of it before it looks.
const MAX_HEAD: usize = 2 << 20;

pub(super) async fn serve(stream: TcpStream, desk: Arc<Desk>) -> Result<(), hyper::Error> {
    // Best effort: without it an answer may only come later.
    let _ = stream.set_nodelay(true);
    serve_io(stream, desk).await
}

/// Over any stream: for tests that count writes, and for fuzzers.
pub async fn serve_io<S>(stream: S, desk: Arc<Desk>) -> Result<(), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let watch = Arc::new(Watch::default());
    let io = TokioIo::new(Watched { inner: stream, watch: watch.clone(), head: None, desk: desk.clone() });
    let service = service_fn(move |request| {
        let (desk, watch) = (desk.clone(), watch.clone());
        watch.serving();
        async move {
            let calls::Answer { response, event } = calls::answer(&desk, request).await;
            watch.served(event);
            Ok::<_, Infallible>(response)
        }
    });
    http1::Builder::new()
        .header_read_timeout(None) // it would also cut a connection that only rests
        .max_buf_size(MAX_HEAD)
        .max_headers(256)
        .serve_connection(io, service)
        .await
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
}

impl Watch {
    fn change<T>(&self, act: impl FnOnce(&mut Watching) -> T) -> T {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn serving(&self) {
        self.change(|inner| inner.serving = true);
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

    fn wrote(&self) {
        let then = self.change(|inner| inner.then.take());
        drop(then);
    }
}

struct Watched<S> {
    inner: S,
    watch: Arc<Watch>,
    /// Runs from a head's first byte until the service has it.
    head: Option<Pin<Box<Sleep>>>,
    desk: Arc<Desk>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.remaining();
        let read = Pin::new(&mut self.inner).poll_read(cx, buffer);
        if matches!(&read, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset) {
            if let Some(event) = self.watch.change(|inner| inner.event) {
                self.desk.reset_before_read(event);
            }
        }
        let some = buffer.remaining() < before;
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
        if written.is_ready() {
            self.watch.wrote();
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
        if written.is_ready() {
            self.watch.wrote();
        }
        written
    }
}
