//! What TCP knows of the other end.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Bytes that were sent and that the other end has not acknowledged: tcp(7), SIOCOUTQ.
pub fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ writes one int there. (It has the number of TIOCOUTQ: include/uapi/linux/sockios.h.)
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) } {
        0 => Ok(usize::try_from(bytes).unwrap_or(0)),
        _ => Err(io::Error::last_os_error()),
    }
}
