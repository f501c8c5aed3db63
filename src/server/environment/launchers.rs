//! To come.
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use crate::code::Digest;
use crate::wire::launcher::{StagingId, StepFailure};

/// The launchers that live now. Cheap to clone.
#[derive(Clone)]
pub struct Launchers {}

/// An order that was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("launcher refused the order: {0}")]
    Refused(String),
    #[error("launch failed in {0}")]
    Step(#[from] StepFailure),
    #[error("no launcher is there")]
    NoLauncher,
    #[error("launcher {0} died over the order")]
    Died(u32),
    #[error("launcher {launcher} said nothing for {seconds} s")]
    Silent { launcher: u32, seconds: u64 },
    #[error("talk to a launcher")]
    Io(#[from] io::Error),
    #[error("launcher sent a container without {0}")]
    Incomplete(&'static str),
}

impl Launchers {
    /// None at first. Must be called inside the runtime.
    pub fn new() -> Self {
        todo!()
    }

    /// A launcher has come (or comes back under a new number): `socket` is the server's end of its pair.
    pub fn add(&self, _number: u32, _socket: OwnedFd) -> io::Result<()> {
        todo!()
    }

    /// The supervisor says that this launcher is dead, and its containers with it.
    pub fn gone(&self, _number: u32) {
        todo!()
    }

    pub async fn adopt(&self, _staging: StagingId, _code: Digest, _zip: BorrowedFd<'_>) -> Result<(), LaunchError> {
        todo!()
    }

    pub async fn forget(&self, _code: Digest) -> Result<(), LaunchError> {
        todo!()
    }
}
