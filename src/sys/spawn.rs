//! fork(2) and execveat(2): how the supervisor starts a child of its own.
//!
//! Between the two the child runs the caller's list of steps. A step that fails is told to the parent by name and
//! errno, through a pipe that the exec closes; a child never ends in a silent 127.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid};

/// What a child becomes.
pub struct Exec<'a> {
    /// Executed by descriptor: the path may be out of the child's reach, or be another file by now.
    pub program: BorrowedFd<'a>,
    pub arguments: &'a [CString],
    pub environment: &'a [CString],
    /// The child's descriptors 3, 4, 5, … in this order. It inherits 0 to 2 as they are, and no other.
    pub descriptors: &'a [BorrowedFd<'a>],
}

/// A step of the child's that failed.
#[derive(Debug)]
pub struct StepError {
    pub step: &'static str,
    pub source: io::Error,
}

#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("start a process from one with {0} threads")]
    Threads(usize),
    #[error("fork")]
    Fork(#[source] io::Error),
    #[error("start a process: step {step:?}")]
    Step { step: String, source: io::Error },
}

/// Longer than any exec from a slow disk; a child that is not through by then is killed.
const EXEC_DEADLINE: Duration = Duration::from_secs(30);

/// Where descriptors wait while 3, 4, 5, … are filled: above every number that a child is given.
const PARKED: RawFd = 64;

/// Forks; the child runs `prepare` and becomes `exec`. Returns when the exec has happened.
pub fn spawn(exec: &Exec<'_>, prepare: impl FnOnce() -> Result<(), StepError>) -> Result<Pid, SpawnError> {
    let threads = fs::read_dir("/proc/self/task").map_err(SpawnError::Fork)?.count();
    if threads != 1 {
        return Err(SpawnError::Threads(threads));
    }
    let (told, tell) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| SpawnError::Fork(errno.into()))?;
    // SAFETY: after fork(2) a child may do whatever it likes only if no other thread of the parent can have held a
    // lock (malloc's, say); the parent has exactly one thread, counted above.
    match unsafe { nix::unistd::fork() }.map_err(|errno| SpawnError::Fork(errno.into()))? {
        ForkResult::Parent { child } => {
            drop(tell);
            listen(child, told).map(|()| child)
        }
        ForkResult::Child => {
            // A panic in here aborts (Cargo.toml); it cannot unwind into the copy of the parent's code.
            if let Ok(tell) = park(tell.as_fd()) {
                let Err(error) = prepare().and_then(|()| become_program(exec));
                let mut text = error.source.raw_os_error().unwrap_or(libc::EINVAL).to_le_bytes().to_vec();
                text.extend_from_slice(error.step.as_bytes());
                let _ = nix::unistd::write(&tell, &text);
            }
            // SAFETY: _exit(2) takes any value and does not return; the parent's atexit handlers and buffers, which
            // this copy of it also has, must not run twice.
            unsafe { libc::_exit(127) }
        }
    }
}

/// Waits until the child's exec has closed the pipe, or reads why there will be none.
fn listen(child: Pid, told: OwnedFd) -> Result<(), SpawnError> {
    let until = Instant::now() + EXEC_DEADLINE;
    let mut pipe = File::from(told);
    loop {
        let left = PollTimeout::try_from(until.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) => {
                let _ = kill(child, Signal::SIGKILL);
                let _ = waitpid(child, None);
                return Err(SpawnError::Step { step: "exec".into(), source: io::ErrorKind::TimedOut.into() });
            }
            Err(nix::errno::Errno::EINTR) => continue,
            Ok(_) | Err(_) => break,
        }
    }
    // The child writes once and less than PIPE_BUF: whole or not at all.
    let mut text = Vec::new();
    pipe.read_to_end(&mut text).map_err(SpawnError::Fork)?;
    let Some((errno, step)) = text.split_first_chunk() else {
        return Ok(());
    };
    let _ = waitpid(child, None);
    let source = io::Error::from_raw_os_error(i32::from_le_bytes(*errno));
    Err(SpawnError::Step { step: String::from_utf8_lossy(step).into_owned(), source })
}

/// The last two steps of every child.
fn become_program(exec: &Exec<'_>) -> Result<std::convert::Infallible, StepError> {
    let failed = |step| move |source| StepError { step, source };
    let program = park(exec.program).map_err(failed("descriptors"))?;
    let parked: Vec<OwnedFd> =
        exec.descriptors.iter().map(|fd| park(*fd)).collect::<io::Result<_>>().map_err(failed("descriptors"))?;
    for (descriptor, number) in parked.iter().zip(3..) {
        // SAFETY: whatever owned `number` in this copy of the parent is never used again: there is only the exec
        // ahead, or _exit. dup2 clears close-on-exec, which is the point.
        if unsafe { libc::dup2(descriptor.as_raw_fd(), number) } < 0 {
            return Err(failed("descriptors")(io::Error::last_os_error()));
        }
    }
    // Also what came from whoever started the supervisor and lacks close-on-exec.
    let first = 3 + parked.len() as libc::c_uint;
    // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC closes nothing now; it only marks the numbers.
    if unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) } < 0 {
        return Err(failed("descriptors")(io::Error::last_os_error()));
    }
    // The supervisor reads its signals from a descriptor and so blocks them; a mask survives exec.
    SigSet::empty().thread_set_mask().map_err(|errno| failed("signals")(errno.into()))?;
    let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
    let Err(errno) = nix::unistd::execveat(&program, c"", exec.arguments, exec.environment, flags);
    Err(failed("exec")(errno.into()))
}

/// A copy out of the way of 3, 4, 5, …, which closes at exec.
fn park(descriptor: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: fcntl(2) with F_DUPFD_CLOEXEC makes a new descriptor, which nobody else knows.
    match unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, PARKED) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: see above: new, valid, owned once.
        number => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
    }
}

/// Descriptors 3, 4, 5, … as the parent placed them, close-on-exec from now on. To be taken before this process
/// opens anything; a second call is refused.
pub fn inherited<const N: usize>() -> io::Result<[OwnedFd; N]> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    for number in 3..3 + N as RawFd {
        // SAFETY: fcntl(2) with F_SETFD checks the number and touches no memory.
        if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: all are open (above), and this is the first and only place in the process that takes ownership of
    // descriptors it has not opened itself (`TAKEN`).
    Ok(std::array::from_fn(|at| unsafe { OwnedFd::from_raw_fd(3 + at as RawFd) }))
}

/// Whether the write end of a life pipe has been closed, which only its holder's death does.
pub fn life_is_over(life: BorrowedFd<'_>) -> io::Result<bool> {
    let mut looked = [PollFd::new(life, PollFlags::empty())];
    poll(&mut looked, PollTimeout::ZERO)?;
    Ok(looked[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)))
}
