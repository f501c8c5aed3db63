//! The CPU time that a container has used, for people who look.
//!
//! Server process. From `cpu.stat` of the container's cgroup2 group, in either layout: the kernel counts there on every host,
//! whether the group has the cpu controller or not, so hybrid and version 1 hosts need no cpuacct. Reading it wakes nobody.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::wall::{row, text};

/// Counts on while the container lives.
pub struct Clock(File);

impl Clock {
    /// `group`: the container's directory in cgroup2.
    pub fn open(group: impl AsFd) -> io::Result<Self> {
        let fd = openat(group.as_fd(), "cpu.stat", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Self(fd.into()))
    }

    /// All processes of the container together, those that have ended too.
    pub fn used(&self) -> io::Result<Duration> {
        let mut buffer = [0; 1024];
        let micros = row(text(&self.0, &mut buffer)?, "usage_usec").ok_or(io::ErrorKind::InvalidData)?;
        Ok(Duration::from_micros(micros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(stat: &str) -> Clock {
        let group = tempfile::tempdir().unwrap();
        std::fs::write(group.path().join("cpu.stat"), stat).unwrap();
        Clock::open(File::open(group.path()).unwrap()).unwrap()
    }

    #[test]
    fn the_time_is_that_of_user_and_kernel_together() {
        let found = clock("usage_usec 841847\nuser_usec 837913\nsystem_usec 3934\nnice_usec 0\n").used();
        assert_eq!(found.unwrap(), Duration::from_micros(841_847));
    }

    #[test]
    fn a_file_without_the_number_is_no_time_of_zero() {
        assert_eq!(clock("user_usec 1\nsystem_usec 1\n").used().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
