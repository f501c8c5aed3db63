//! Processes made straight from this one: clone3(2).
//!
//! Only single-threaded processes may: [`SingleThreaded`] is the proof that each call asks for.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;
use nix::unistd::Pid;

/// Proof that this process has one thread, so that no lock is held by a thread which would not exist in a child.
/// It stays true as long as nobody starts a thread; a process that holds one must not.
#[derive(Debug)]
pub struct SingleThreaded {
    /// Not `Send`: it speaks for the thread that looked.
    this_thread: PhantomData<*const ()>,
}

/// A thread that has been joined is counted until the kernel has done with it, which is a moment later.
const PARTING: Duration = Duration::from_millis(500);

impl SingleThreaded {
    /// Looks into `/proc/self/status`.
    pub fn check() -> io::Result<Self> {
        let until = Instant::now() + PARTING;
        loop {
            let status = std::fs::read_to_string("/proc/self/status")?;
            match status.lines().find_map(|line| line.strip_prefix("Threads:")).map(str::trim) {
                Some("1") => return Ok(Self { this_thread: PhantomData }),
                Some(_) if Instant::now() < until => thread::sleep(Duration::from_millis(1)),
                _ => return Err(io::Error::other("this process has more than one thread")),
            }
        }
    }
}

/// What the kernel adds to this process when the host's memory is short and somebody has to end: half of all memory, so that
/// nobody else's program ends first. A service's `OOMScoreAdjust=` protects who starts it, and would be inherited otherwise.
const GOES_FIRST: i32 = 500;

/// With CAP_SYS_RESOURCE on the host it is for good, without it could be taken back (proc_pid_oom_score_adj(5)). Everybody may raise it.
pub fn go_first_when_memory_is_short() -> io::Result<()> {
    let file = "/proc/self/oom_score_adj";
    match std::fs::read_to_string(file)?.trim().parse::<i32>() {
        Ok(inherited) if inherited >= GOES_FIRST => Ok(()),
        Ok(_) => std::fs::write(file, GOES_FIRST.to_string()),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

/// Given to code that runs in a child of [`clone3`]: behind it there is only an exec or the end.
#[derive(Debug)]
pub struct InChild(());

/// A child as its parent sees it.
#[derive(Debug)]
pub struct Child {
    pub pid: Pid,
    pub pidfd: OwnedFd,
}

/// `libc` declares these two as ints, which they overflow.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// clone3(2) without CLONE_VM: a child in new `namespaces`, born into `cgroup` (a cgroup2 directory), that runs `child`
/// and ends with the status it returns. The child has the parent's signal mask, and default handlers.
pub fn clone3(
    _: &SingleThreaded,
    namespaces: CloneFlags,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce(&InChild) -> i32,
) -> io::Result<Child> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all-zero is a valid `clone_args`: no flags, no pointers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces.bits() as u64 | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` and `pidfd` outlive the call, and the size of `args` goes with it. Without CLONE_VM and a stack of
    // its own the child returns on a copy of this stack. There is one thread (`SingleThreaded`), so memory is copied
    // in a state that no other thread was changing.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // Not even a panic may carry the child back into its parent's frames.
            let _end = EndProcess;
            let status = child(&InChild(()));
            // SAFETY: ends the process; nothing after it runs, no destructor, no exit handler.
            unsafe { libc::_exit(status) }
        }
        pid => {
            // SAFETY: the kernel has just written the child's pidfd there; nothing else knows the number.
            let pidfd = unsafe { OwnedFd::from_raw_fd(std::ptr::read_volatile(&raw const pidfd)) };
            Ok(Child { pid: Pid::from_raw(pid as i32), pidfd })
        }
    }
}

/// The same in a child: one more child of this one's parent (CLONE_PARENT), which hears of its end as of this one's. Born where
/// this one may not go itself: into the pid namespace that it has chosen for its children.
pub fn clone_sibling(_: &InChild, child: impl FnOnce(&InChild) -> i32) -> io::Result<()> {
    // SAFETY: all-zero is a valid `clone_args`.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    // With CLONE_PARENT the signal at its end is this process's own.
    args.flags = libc::CLONE_PARENT as u64 | CLONE_CLEAR_SIGHAND;
    // SAFETY: as in `clone3`. A child of `clone3` (`InChild`) has one thread.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let _end = EndProcess;
            let status = child(&InChild(()));
            // SAFETY: as in `clone3`.
            unsafe { libc::_exit(status) }
        }
        _ => Ok(()),
    }
}

struct EndProcess;

impl Drop for EndProcess {
    fn drop(&mut self) {
        // SAFETY: as above; reached only while a panic unwinds.
        unsafe { libc::_exit(101) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_two_threads_gets_no_proof() {
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let second = std::thread::spawn(move || held.recv());
        assert!(SingleThreaded::check().is_err());
        drop(hold);
        let _ = second.join();
    }
}
