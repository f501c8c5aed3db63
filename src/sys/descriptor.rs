//! Descriptors by number: those that a parent leaves to us, and those that we leave to a program we become.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use super::process::InChild;

/// Takes over the descriptor that our parent promised to leave at `number` (3 to 63), and makes it close-on-exec.
/// Each number can be taken once.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    if !(3..64).contains(&number) || TAKEN.fetch_or(1 << number, Ordering::Relaxed) & 1 << number != 0 {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: only numbers; a closed one answers EBADF.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, the command line says that it is ours, and TAKEN hands each number out once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Becomes the owner of exactly these descriptors, numbered from 0: `kept` survive the exec, `until_exec` do not.
/// Everything else is closed. Gives back `until_exec` under their new numbers.
///
/// Values that own other descriptors own nothing any more: that is why only a child may call this, which ends by
/// exec or `_exit` and runs no destructor of its parent's.
pub fn lay_out(_: &InChild, kept: &[BorrowedFd<'_>], until_exec: &[BorrowedFd<'_>]) -> io::Result<Vec<BorrowedFd<'static>>> {
    let count = kept.len() + until_exec.len();
    let sources = kept.iter().chain(until_exec).map(|fd| duplicate_above(fd, count)).collect::<io::Result<Vec<_>>>()?;
    for (target, source) in sources.into_iter().enumerate() {
        let flags = if target < kept.len() { 0 } else { libc::O_CLOEXEC };
        // SAFETY: only numbers. What was at `target` is replaced; see above who may still think to own it. A source
        // lies above every target, so none is replaced before its turn.
        if unsafe { libc::dup3(source, target as RawFd, flags) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: only numbers: all from `count` up.
    if unsafe { libc::syscall(libc::SYS_close_range, count, libc::c_uint::MAX, 0) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: dup3 has just opened these; nobody closes them before the exec does.
    Ok((kept.len()..count).map(|number| unsafe { BorrowedFd::borrow_raw(number as RawFd) }).collect())
}

/// A number and no owner: `close_range` ends it.
fn duplicate_above(fd: &BorrowedFd<'_>, lowest: usize) -> io::Result<RawFd> {
    // SAFETY: only numbers; the source is borrowed, thus open.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest as libc::c_int) } {
        -1 => Err(io::Error::last_os_error()),
        number => Ok(number),
    }
}
