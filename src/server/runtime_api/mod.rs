//! The function's door: the Runtime API (version 2018-06-01) of one environment.
//!
//! Server process, floor 1. On the other side stands the function, **hostile from its first instruction**: it may send
//! anything, in any order, as slowly as it likes. Bounded here are its connections ([`MAX_CONNECTIONS`]), the heads of
//! its requests (size and time), bodies (size, and the time between two pieces; altogether an invocation's deadline
//! bounds them, since its end ends the environment) and, by [`session`], what it can say when.
//!
//! A waiting `next` and a kept-alive connection between two requests are never timed out: the function may be frozen.
//!
//! ```text
//! connection  bytes: one write for head and body, what trickles is cut, the thaw follows the event's first bytes
//! calls       requests: paths, headers, bodies, Lambda's statuses and texts
//! desk        where the environment hands events over and picks answers up
//! session     which call is legal when (pure)
//! ```

mod calls;
mod connection;
mod desk;
pub mod session;

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::debug;

pub use connection::serve_io;
pub use desk::{AfterWrite, Desk, Event, Init, Reply};

/// A container's connections at once. A client has two or three.
pub const MAX_CONNECTIONS: usize = 32;

/// Serves one environment until it is dropped; every connection ends with it.
pub async fn serve(listener: TcpListener, desk: Arc<Desk>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // The peer's own failure (ECONNABORTED), or we are out of descriptors: neither may spin.
                debug!(%error, "accept a function's connection");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        // One too many is closed at once, which the function can see; left in the queue it could not.
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let desk = desk.clone();
        connections.spawn(async move {
            if let Err(error) = connection::serve(stream, desk).await {
                debug!(%error, "a function's connection ended");
            }
            drop(place);
        });
    }
}

#[cfg(test)]
pub(in crate::server) mod client;
#[cfg(test)]
mod tests;
