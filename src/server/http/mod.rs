//! HTTP/1.1 on a Unix listener: what both doors of the host share.
//!
//! Knows who is on the other side and bounds what they may cost: connections ([`callers`]), bytes of headers and body
//! ([`body`]), and time ([`line`]). Knows no path and no status; that is the doors' own ([`super::api`], [`super::control`]).

mod body;
mod callers;
mod line;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{debug, warn};

pub use self::body::{BodyError, read_body};
use self::callers::Callers;
use self::line::{Line, Stage, Timed};
use crate::sys::peer;

/// Connections of one door at once. Whoever comes next waits in the listener's queue; who has more than all others could
/// still have is not let in ([`Callers`]).
pub const MAX_CONNECTIONS: usize = 2048;
/// Room for the largest header Lambda takes (3,583 bytes of client context) and all others.
const MAX_HEADER_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
/// For a request's head, and for the next request on a connection that is kept open.
const HEADER_TIME: Duration = Duration::from_secs(30);
/// When the door is told to stop: for the request of a caller that has connected and not asked yet. Who has asked before is
/// told by an end of the connection that its next request was not read.
const FIRST_REQUEST_TIME: Duration = Duration::from_secs(2);
/// The same, for whatever of a request's head has not come yet: whoever sends it byte by byte would hold up the stop.
const LAST_HEAD_TIME: Duration = Duration::from_secs(10);
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
            body::discard(&head, body).await;
            if let Some(begin) = response.extensions_mut().remove::<Talk>().and_then(|talk| talk.take()) {
                *begun.lock().unwrap_or_else(PoisonError::into_inner) = Some((upgrade, begin));
                line.be_patient();
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
        .serve_connection(TokioIo::new(Timed::new(line.clone())), service)
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
            tokio::select! {
                biased;
                ended = &mut connection => ended,
                () = too_long_at_its_head(&line) => {
                    return debug!(door = name, "a request had not come in full when the door closed: it was not waited for");
                }
            }
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

/// From the stop on. Whoever has its head answered late, as one that asks ahead, is looked at again.
async fn too_long_at_its_head(line: &Line) {
    loop {
        sleep(LAST_HEAD_TIME).await;
        if line.is_at_its_head() {
            return;
        }
    }
}

fn identify(stream: &UnixStream) -> io::Result<Peer> {
    let credentials = stream.peer_cred()?;
    let mut groups = peer::groups(stream)?;
    groups.push(credentials.gid());
    Ok(Peer { uid: credentials.uid(), groups })
}

#[cfg(test)]
mod tests;
