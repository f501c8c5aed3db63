//! The program kiln-init: pid 1 of a container, between the launcher's exec and the container's end.
//!
//! Runs as the function's own user behind its seccomp filter, so it can do nothing that the function cannot; what
//! it has more is the control socket to the server, and it is not dumpable, lest the function take that away.
//!
//! ```text
//! not dumpable ─▶ "resting" ─▶ START ─▶ starts the runtime ─▶ "started" + pidfd ─▶ reaps ─▶ "exited" ─▶ ends
//!                                │  └─▶ "no bootstrap", "exec failed" ─▶ ends
//!                                └─ the server is gone ─▶ ends, and the kernel kills all that is left
//! ```
//!
//! When pid 1 ends, the kernel ends everything in its pid namespace: init never kills anybody.

pub mod start;

use core::ffi::CStr;

use crate::sys::bare::{self, Errno, Fd, Fork, Words};
use crate::wire::init::{BROKEN, CONTROL_FD, EXEC_FAILED, EXITED, MAX_WORDS, MESSAGE, NO_BOOTSTRAP, RESTING, STARTED};
use start::{Line, Start};

/// A whole packet, as large as any message of ours may be (`wire::MAX_MESSAGE`).
const MAX_MESSAGE: usize = 64 << 10;
/// Where a function begins its life.
const TASK_ROOT: &CStr = c"/var/task";
/// EPROTO: the server's message is malformed.
const MALFORMED: Errno = Errno(71);

const CONTROL: Fd = Fd(CONTROL_FD);
const STDIN: Fd = Fd(0);

/// The runtime's process, the only child whose end ends the container.
struct Runtime {
    pid: i32,
    candidate: u8,
}

pub fn run() -> ! {
    let mut message = [0; MAX_MESSAGE];
    let ended = prepare()
        .and_then(|()| rest(&mut message))
        .and_then(|length| Start::parse(&message[..length]).ok_or(MALFORMED))
        .and_then(|start| start_runtime(&start))
        .and_then(|runtime| reap_until_it_ends(&runtime));
    match ended {
        Ok(()) => bare::exit(0),
        Err(Errno(errno)) => {
            let _ = tell(BROKEN, 0, errno, None);
            bare::exit(1)
        }
    }
}

fn prepare() -> Result<(), Errno> {
    // First: from the runtime's first instruction on, it has the same uid as we have.
    bare::set_not_dumpable()?;
    bare::set_close_on_exec(CONTROL)?;
    bare::set_name(c"kiln-init");
    // The launcher's handling of signals is inherited; the runtime must not see it.
    bare::reset_signals();
    bare::umask(0o022);
    bare::chdir(TASK_ROOT)
}

/// Says "resting" and waits for the one message that there is.
fn rest(message: &mut [u8]) -> Result<usize, Errno> {
    tell(RESTING, 0, 0, None)?;
    match bare::recv(CONTROL, message)? {
        0 => bare::exit(0),
        length if length > message.len() => Err(MALFORMED),
        length => Ok(length),
    }
}

/// Starts the first candidate that is a regular file.
fn start_runtime(start: &Start<'_>) -> Result<Runtime, Errno> {
    let is_file = |line: &Line<'_>| line.words().next().is_some_and(bare::is_regular_file);
    let Some((candidate, line)) = (0..).zip(start.candidates()).find(|(_, line)| is_file(line)) else {
        tell(NO_BOOTSTRAP, 0, 0, None)?;
        bare::exit(0)
    };
    let (mut argv, mut envp) = (Words::<{ MAX_WORDS + 1 }>::new(), Words::<{ MAX_WORDS + 1 }>::new());
    let all = line.words().all(|word| argv.push(word)) && start.vars().all(|var| envp.push(var));
    let Some(program) = line.words().next().filter(|_| all) else { return Err(MALFORMED) };

    // Closed by a successful exec, else it brings the errno.
    let (failure, failed) = bare::pipe()?;
    bare::block_only_sigchld(true)?;
    match bare::fork()? {
        Fork::Child => {
            // A session of its own: a signal to its process group must not reach pid 1's.
            let _ = bare::setsid();
            // A runtime has none; who entered the container may.
            bare::take_terminal(STDIN);
            let _ = bare::block_only_sigchld(false);
            let Errno(errno) = bare::execve(program, &argv, &envp);
            let _ = bare::write(failed, &errno.to_le_bytes());
            bare::exit(127)
        }
        Fork::Parent { child, pidfd } => {
            bare::close(failed);
            let mut errno = [0; 4];
            if bare::read(failure, &mut errno)? != 0 {
                tell(EXEC_FAILED, candidate, i32::from_le_bytes(errno), None)?;
                bare::exit(0)
            }
            bare::close(failure);
            tell(STARTED, candidate, 0, Some(pidfd))?;
            bare::close(pidfd);
            Ok(Runtime { pid: child, candidate })
        }
    }
}

/// Reaps every process that ends here, until the runtime itself does or the server closes the control socket.
fn reap_until_it_ends(runtime: &Runtime) -> Result<(), Errno> {
    let children = bare::signalfd_sigchld()?;
    loop {
        // Before the first wait: a runtime that ended at once has raised its signal already.
        while let Some((pid, status)) = bare::reap() {
            if pid == runtime.pid {
                return tell(EXITED, runtime.candidate, status, None);
            }
        }
        let (child_ended, server_spoke) = bare::poll(children, CONTROL)?;
        if server_spoke {
            // There is no second message: it is the end of the socket, or somebody's mistake.
            return match bare::recv(CONTROL, &mut [0; 1])? {
                0 => Ok(()),
                _ => Err(MALFORMED),
            };
        }
        if child_ended {
            // One signalfd_siginfo has 128 bytes; only that there is one matters.
            let _ = bare::read(children, &mut [0; 128]);
        }
    }
}

/// One message to the server: `[kind, detail, 0, 0, value]`.
fn tell(kind: u8, detail: u8, value: i32, pidfd: Option<Fd>) -> Result<(), Errno> {
    let [a, b, c, d] = value.to_le_bytes();
    let message: [u8; MESSAGE] = [kind, detail, 0, 0, a, b, c, d];
    bare::send(CONTROL, &message, pidfd)
}
