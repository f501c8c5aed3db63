//! Who is at the other end of a Unix socket: unix(7), SO_PEERGROUPS.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The supplementary groups of the peer when it connected. SO_PEERCRED has the primary one only.
pub fn groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut length = size_of_val(groups.as_slice()) as libc::socklen_t;
        // SAFETY: `groups` is writable for the `length` bytes that are passed with it, and the kernel writes no more
        // than that; `length` is a valid socklen_t that it writes back to. The descriptor is borrowed for the call.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &mut length,
            )
        };
        let count = length as usize / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // ERANGE: the kernel has written how much room it needs. Linux allows 65536 groups.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_pair_within_one_process_has_the_groups_of_this_process() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        let mut seen = groups(&socket).unwrap();
        let mut own: Vec<u32> = nix::unistd::getgroups().unwrap().into_iter().map(|gid| gid.as_raw()).collect();
        seen.sort_unstable();
        own.sort_unstable();
        assert_eq!(seen, own);
    }
}
