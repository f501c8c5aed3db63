//! Unpacks one zip into one directory. The zip is hostile, and so may this process be a moment later.
//!
//! Started by the supervisor for each CreateFunction and UpdateFunctionCode, under a user id of its own, with no
//! capability, no network and no environment. It locks itself further ([`confine`]) before it reads the first byte.
//!
//! ```text
//! descriptor  3  the zip, a sealed memfd      5  life pipe: hangs up when the supervisor dies
//!             4  the staging directory        6  on success: 8 bytes, little-endian, the unpacked size
//! exit code   0  staging/tree is complete     64 + place in `ZipRefusal::ALL`  the zip is at fault
//!             1  we are at fault; the reason is on stderr
//!             2  the disk has no room
//! ```
//!
//! A launcher checks the tree again before anybody uses it: what is here keeps honest zips honest, and a hostile one
//! in this process only.

pub mod confine;
mod directory;
mod extract;
mod local;
mod name;

pub use extract::extract;
pub use name::{Ending, Place};

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::Signal;

use crate::sys::descriptor::inherited;
use crate::wire::supervisor::{NO_ROOM, ZipRefusal};

/// What stands between a zip and its tree.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("the zip is refused: {0:?}")]
    Refused(ZipRefusal),
    #[error("the disk has no room for what the zip holds")]
    NoRoom,
    #[error("{what}")]
    Ours { what: &'static str, source: io::Error },
}

impl UnpackError {
    fn ours<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| match source.into() {
            source if matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => Self::NoRoom,
            source => Self::Ours { what, source },
        }
    }
}

impl From<ZipRefusal> for UnpackError {
    fn from(refusal: ZipRefusal) -> Self {
        Self::Refused(refusal)
    }
}

/// The whole life of the process.
pub fn run() -> ExitCode {
    match unpack() {
        Ok(()) => ExitCode::SUCCESS,
        Err(UnpackError::Refused(refusal)) => {
            let place = ZipRefusal::ALL.iter().position(|listed| *listed == refusal);
            // As the wire says; `ALL` has nine.
            ExitCode::from(place.map_or(1, |place| 64 + place as u8))
        }
        Err(UnpackError::NoRoom) => ExitCode::from(NO_ROOM),
        Err(UnpackError::Ours { what, source }) => {
            eprintln!("kilnd unpack: {what}: {source}");
            ExitCode::FAILURE
        }
    }
}

fn unpack() -> Result<(), UnpackError> {
    let take = |number| inherited(number).map_err(UnpackError::ours("take a descriptor"));
    let (zip, staging, life, size) = (take(3)?, take(4)?, take(5)?, take(6)?);
    // The parent has asked for the same before the exec; whoever starts this by hand has not.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(UnpackError::ours("die with parent"))?;
    // It may have died before: then nobody holds the pipe's other end.
    let mut looked = [PollFd::new(life.as_fd(), PollFlags::empty())];
    poll(&mut looked, PollTimeout::ZERO).map_err(UnpackError::ours("look at the life pipe"))?;
    if looked[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)) {
        return Err(UnpackError::Ours { what: "look at the life pipe", source: io::ErrorKind::BrokenPipe.into() });
    }
    confine::this_process(staging.as_fd())?;
    let bytes = extract(File::from(zip), staging.as_fd())?;
    File::from(size).write_all(&bytes.to_le_bytes()).map_err(UnpackError::ours("tell the size"))
}
