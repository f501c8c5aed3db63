//! Reports on their way to the server. It may be slow, or may read nothing at all: nobody waits for it.
//!
//! Runs in a launcher. While anything is in here, the launcher takes no further order, so it cannot grow without end.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::packet;
use crate::wire;
use crate::wire::launcher::Report;

#[derive(Debug, Default)]
pub struct Outbox(VecDeque<Outgoing>);

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Outbox {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn put(&mut self, report: &Report, descriptors: Vec<OwnedFd>) {
        match wire::encode(report) {
            Ok(bytes) => self.0.push_back(Outgoing { bytes, descriptors }),
            // Every text in a report is bounded where it is made.
            Err(error) => tracing::error!(%error, "a report is lost"),
        }
    }

    /// Sends what the server takes now. An error: it is gone.
    pub fn flush(&mut self, server: BorrowedFd<'_>) -> io::Result<()> {
        while let Some(next) = self.0.front() {
            let descriptors: Vec<BorrowedFd<'_>> = next.descriptors.iter().map(AsFd::as_fd).collect();
            match packet::send(server, &next.bytes, &descriptors) {
                Ok(()) => drop(self.0.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
