//! One child from fork to exec: runs a list of steps, takes its descriptors, becomes a program.
//!
//! A step that fails is told to the parent by name and errno, through a pipe that the exec closes; a child never ends
//! in a silent 127.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::{AtFlags, OFlag};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, execveat, pipe2, write};

use crate::sys::descriptor::lay_out;
use crate::sys::process::{InChild, SingleThreaded, clone3};

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
    #[error("fork")]
    Fork(#[source] io::Error),
    #[error("start a process: step {step:?}")]
    Step { step: String, source: io::Error },
}

/// Longer than any exec from a slow disk; a child that is not through by then is killed.
const EXEC_DEADLINE: Duration = Duration::from_secs(30);

/// Forks; the child runs `prepare` and becomes `exec`. Returns when the exec has happened.
pub fn spawn(exec: &Exec<'_>, prepare: impl FnOnce() -> Result<(), StepError>) -> Result<Pid, SpawnError> {
    let alone = SingleThreaded::check().map_err(SpawnError::Fork)?;
    let (told, tell) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| SpawnError::Fork(errno.into()))?;
    let child = clone3(&alone, CloneFlags::empty(), None, |in_child| {
        let error = match prepare() {
            Ok(()) => match become_program(in_child, exec, &tell) {
                Ok(never) => match never {},
                Err((error, tell)) => return report(&error, tell),
            },
            Err(error) => error,
        };
        report(&error, tell.as_fd())
    });
    let child = child.map_err(SpawnError::Fork)?;
    drop(tell);
    listen(child.pid, told).map(|()| child.pid)
}

fn report(error: &StepError, tell: BorrowedFd<'_>) -> i32 {
    let mut text = error.source.raw_os_error().unwrap_or(libc::EINVAL).to_le_bytes().to_vec();
    text.extend_from_slice(error.step.as_bytes());
    let _ = write(tell, &text);
    127
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

/// The last steps of every child. Where the descriptors have been laid out, only the new number of `tell` is good.
fn become_program<'a>(in_child: &InChild, exec: &Exec<'_>, tell: &'a OwnedFd) -> Result<Infallible, (StepError, BorrowedFd<'a>)> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let mut kept = vec![stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    kept.extend(exec.descriptors);
    let laid_out = lay_out(in_child, &kept, &[exec.program, tell.as_fd()]);
    let laid_out = laid_out.map_err(|source| (StepError { step: "descriptors", source }, tell.as_fd()))?;
    let [program, tell] = laid_out[..] else {
        return Err((StepError { step: "descriptors", source: io::ErrorKind::InvalidData.into() }, tell.as_fd()));
    };
    let failed = |step| move |errno: nix::Error| (StepError { step, source: errno.into() }, tell);
    // The supervisor reads its signals from a descriptor and so blocks them; a mask survives exec.
    SigSet::empty().thread_set_mask().map_err(failed("signals"))?;
    execveat(program, c"", exec.arguments, exec.environment, AtFlags::AT_EMPTY_PATH).map_err(failed("exec"))
}
