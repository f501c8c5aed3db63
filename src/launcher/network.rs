//! Network namespaces: one for each container, with nothing in it but lo.
//!
//! They have no name; the launcher holds them by descriptor until a child has entered. They belong to the host's user
//! namespace, so root inside of a container could not reconfigure them. A namespace is never used for a second container (a dead
//! container's sockets may linger in it), and it is made ahead of orders: making one takes half a millisecond, at times four.
//!
//! The Runtime API's socket is made inside and handed to the server outside: a socket belongs to the namespace
//! that it was made in, whoever accepts on it.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, socket};

use crate::sys::interface;

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("open {0}")]
    Open(&'static str, #[source] io::Error),
    #[error("make a network namespace")]
    Create(#[source] io::Error),
    #[error("set lo up")]
    LoopbackUp(#[source] io::Error),
    #[error("enter a network namespace")]
    Enter(#[source] io::Error),
    #[error("listen on {LISTEN}:{RUNTIME_API_PORT}")]
    Listen(#[source] io::Error),
}

/// Where a function finds its Runtime API, as `AWS_LAMBDA_RUNTIME_API` says.
const LISTEN: Ipv4Addr = Ipv4Addr::LOCALHOST;
const RUNTIME_API_PORT: u16 = 9001;
/// As many connections as the server keeps for one container; more wait in the function's own connect().
const BACKLOG: i32 = 32;

const OWN: &str = "/proc/self/ns/net";

/// The host's network namespace, which the launcher always comes back to.
#[derive(Debug)]
pub struct Host {
    namespace: File,
}

/// A container's network namespace.
#[derive(Debug)]
pub struct Network {
    namespace: File,
}

impl Host {
    pub fn open() -> Result<Self, NetworkError> {
        Ok(Self { namespace: open_own()? })
    }

    pub fn create_network(&self) -> Result<Network, NetworkError> {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| NetworkError::Create(errno.into()))?;
        let made = set_loopback_up().and_then(|()| open_own());
        self.come_back();
        Ok(Network { namespace: made? })
    }

    /// A new listening socket inside of `network`, not blocking.
    pub fn listen_in(&self, network: &Network) -> Result<OwnedFd, NetworkError> {
        enter(network)?;
        let listener = listen_here();
        self.come_back();
        listener.map_err(NetworkError::Listen)
    }

    /// A launcher lost in a container's network would make all later sockets there: better none at all.
    fn come_back(&self) {
        if let Err(errno) = setns(&self.namespace, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%errno, "cannot return to the host's network namespace");
            std::process::abort();
        }
    }
}

/// Child, or launcher on a visit.
pub fn enter(network: &Network) -> Result<(), NetworkError> {
    setns(&network.namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| NetworkError::Enter(errno.into()))
}

fn open_own() -> Result<File, NetworkError> {
    File::open(OWN).map_err(|source| NetworkError::Open(OWN, source))
}

fn set_loopback_up() -> Result<(), NetworkError> {
    socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(io::Error::from)
        .and_then(|any| interface::set_up(any.as_fd(), "lo"))
        .map_err(NetworkError::LoopbackUp)
}

fn listen_here() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    let [a, b, c, d] = LISTEN.octets();
    bind(listener.as_raw_fd(), &SockaddrIn::new(a, b, c, d, RUNTIME_API_PORT))?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener)
}
