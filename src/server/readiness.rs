//! Descriptors that the server owns, as tokio waits for them.

use std::io;
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::unix::AsyncFd;

/// Its readiness. Must be called inside the runtime; reads and writes must not block ([`set_nonblocking`]), where there are any.
pub fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(
        deprecated,
        reason = "unsound for types whose descriptor can become another while it is registered; an OwnedFd's cannot. Its \
                  successor is an unsafe function."
    )]
    AsyncFd::new(descriptor)
}

/// For all who share the open file.
pub fn set_nonblocking(descriptor: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(descriptor, FcntlArg::F_GETFL)?);
    fcntl(descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
