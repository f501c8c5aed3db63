//! A network interface's flags: netdevice(7).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sets `name` up, in the network namespace that `socket` (any IP socket) was made in.
pub fn set_up(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    // SAFETY: all-zero is a valid `ifreq`: an empty name and no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte fewer than there is room: the kernel wants it ended by NUL.
    let room = request.ifr_name.len() - 1;
    if name.len() > room {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads name and flags of one `ifreq`, which lives through the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
