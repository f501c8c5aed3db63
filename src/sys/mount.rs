//! mount_setattr(2), which neither nix nor rustix has.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Attributes that a mount can be given. Never taken away here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountAttributes(u64);

impl MountAttributes {
    pub const READ_ONLY: Self = Self(libc::MOUNT_ATTR_RDONLY);
    pub const NO_SUID: Self = Self(libc::MOUNT_ATTR_NOSUID);
    pub const NO_DEV: Self = Self(libc::MOUNT_ATTR_NODEV);
    pub const NO_EXEC: Self = Self(libc::MOUNT_ATTR_NOEXEC);

    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Sets attributes of the mount that `mount` is the root of.
pub fn mount_setattr(mount: BorrowedFd<'_>, attributes: MountAttributes) -> io::Result<()> {
    let change = libc::mount_attr { attr_set: attributes.0, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let size = size_of::<libc::mount_attr>();
    // SAFETY: an empty NUL-terminated path (AT_EMPTY_PATH: the descriptor itself); `change` outlives the call and its
    // size goes with it.
    let done = unsafe {
        libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, &raw const change, size)
    };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
