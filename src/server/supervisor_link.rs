//! The server's end of the socket to the supervisor.
//!
//! Sends whole packets, and matches the supervisor's answers to the orders they belong to. What the other messages
//! mean is decided by [`super`].

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tracing::warn;

use crate::config::Config;
use crate::server::readiness::{set_nonblocking, watched};
use crate::sys::packet;
use crate::wire;
use crate::wire::launcher::{OrderId, StagingId};
use crate::wire::supervisor::{ToServer, ToSupervisor, Unpacked, Upkeep};

/// For unpacking 250 MB onto a slow disk; the supervisor has a shorter deadline of its own.
const UNPACK_TIME: Duration = Duration::from_secs(300);

pub struct SupervisorLink {
    socket: AsyncFd<OwnedFd>,
    next: AtomicU64,
    /// `std` mutex: held for one map operation, never across an await; no other lock is taken inside.
    waiting: Mutex<HashMap<OrderId, oneshot::Sender<Unpacked>>>,
}

/// What the supervisor said, other than answers to orders.
#[derive(Debug)]
pub enum Event {
    Launcher {
        number: u32,
        socket: OwnedFd,
    },
    LauncherGone {
        number: u32,
    },
    Reload {
        config: Box<Config>,
        waiting: Vec<String>,
    },
    /// Where metrics are to be served, with the address in words; `None`: nowhere but on control.sock.
    Metrics {
        listener: Option<(String, OwnedFd)>,
    },
    Upkeep(Upkeep),
    Drain,
    Cut,
}

impl SupervisorLink {
    /// Must be called inside the runtime.
    pub fn new(socket: OwnedFd) -> io::Result<Arc<Self>> {
        set_nonblocking(&socket)?;
        let socket = watched(socket)?;
        Ok(Arc::new(Self { socket, next: AtomicU64::new(1), waiting: Mutex::default() }))
    }

    pub async fn send(&self, message: &ToSupervisor, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = wire::encode(message).map_err(io::Error::other)?;
        self.socket.async_io(Interest::WRITABLE, |socket| packet::send(socket.as_fd(), &bytes, descriptors)).await
    }

    /// The next thing that the server has to act upon; `None` when the supervisor is gone.
    pub async fn event(&self) -> io::Result<Option<Event>> {
        loop {
            let packet = self.socket.async_io(Interest::READABLE, |socket| packet::receive(socket.as_fd())).await?;
            let Some(packet) = packet else { return Ok(None) };
            match wire::decode(&packet.bytes).map_err(io::Error::other)? {
                ToServer::Launcher { launcher } => match packet.descriptors.into_iter().next() {
                    Some(socket) => return Ok(Some(Event::Launcher { number: launcher, socket })),
                    None => warn!(launcher, "a launcher came without its socket"),
                },
                ToServer::LauncherGone { launcher } => return Ok(Some(Event::LauncherGone { number: launcher })),
                ToServer::Reload { config, waiting } => return Ok(Some(Event::Reload { config, waiting })),
                ToServer::Metrics { listen } => {
                    let listener = listen.zip(packet.descriptors.into_iter().next());
                    return Ok(Some(Event::Metrics { listener }));
                }
                ToServer::Upkeep(upkeep) => return Ok(Some(Event::Upkeep(upkeep))),
                ToServer::Drain => return Ok(Some(Event::Drain)),
                ToServer::Cut => return Ok(Some(Event::Cut)),
                ToServer::Unpacked { order, result } => {
                    if let Some(waiting) = self.waiting().remove(&order) {
                        // Whoever asked may have gone; then the staging directory is the supervisor's to sweep.
                        let _ = waiting.send(result);
                    }
                }
            }
        }
    }

    /// Has a zip unpacked into `staging/<staging>/`.
    pub async fn unpack(&self, staging: StagingId, zip: BorrowedFd<'_>) -> Result<Unpacked, String> {
        let order = OrderId(self.next.fetch_add(1, Ordering::Relaxed));
        let (answer, answered) = oneshot::channel();
        self.waiting().insert(order, answer);
        let outcome = async {
            self.send(&ToSupervisor::Unpack { order, staging }, &[zip]).await.map_err(|error| error.to_string())?;
            let answered = tokio::time::timeout(UNPACK_TIME, answered).await;
            answered.map_err(|_| "unpack took too long".to_owned())?.map_err(|_| "the supervisor is gone".to_owned())
        };
        let outcome = outcome.await;
        self.waiting().remove(&order);
        outcome
    }

    // A poisoned lock: a panic aborts the process, so nobody has ever seen one.
    fn waiting(&self) -> MutexGuard<'_, HashMap<OrderId, oneshot::Sender<Unpacked>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer(supervisor: &SupervisorLink, message: &ToServer) {
        let bytes = wire::encode(message).unwrap();
        supervisor.socket.async_io(Interest::WRITABLE, |socket| packet::send(socket.as_fd(), &bytes, &[])).await.unwrap();
    }

    async fn order(supervisor: &SupervisorLink) -> (OrderId, StagingId, usize) {
        let packet = supervisor.socket.async_io(Interest::READABLE, |socket| packet::receive(socket.as_fd())).await;
        let packet = packet.unwrap().unwrap();
        match wire::decode(&packet.bytes).unwrap() {
            ToSupervisor::Unpack { order, staging } => (order, staging, packet.descriptors.len()),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn answers_find_their_orders_in_any_order() {
        let (ours, theirs) = packet::pair().unwrap();
        let (link, supervisor) = (SupervisorLink::new(ours).unwrap(), SupervisorLink::new(theirs).unwrap());
        let zip = std::fs::File::open("/dev/null").unwrap();
        let both = async { tokio::join!(link.unpack(StagingId(1), zip.as_fd()), link.unpack(StagingId(2), zip.as_fd())) };
        let other_side = async {
            let (first, second) = (order(&supervisor).await, order(&supervisor).await);
            for (order, StagingId(staging), descriptors) in [second, first] {
                assert_eq!(descriptors, 1);
                let result = Unpacked::Done { bytes: staging as u64 };
                answer(&supervisor, &ToServer::Unpacked { order, result }).await;
            }
            answer(&supervisor, &ToServer::Drain).await;
        };
        let (results, (), event) = tokio::join!(both, other_side, link.event());
        assert_eq!(results, (Ok(Unpacked::Done { bytes: 1 }), Ok(Unpacked::Done { bytes: 2 })));
        assert!(matches!(event, Ok(Some(Event::Drain))));
        assert!(link.waiting().is_empty());
    }

    #[tokio::test]
    async fn the_supervisors_end_is_told() {
        let (ours, theirs) = packet::pair().unwrap();
        let link = SupervisorLink::new(ours).unwrap();
        drop(theirs);
        assert!(link.event().await.unwrap().is_none());
    }
}
