//! How an environment's processes end: one task for each environment, which waits for nothing else.
//!
//! The word of kiln-init counts (it alone knows the exit code). Where it cannot speak, being dead or frozen with the
//! runtime, the pidfds tell: they become readable at once. The first cause wins.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::timeout;

use super::container::Lost;
use crate::invocation::ProcessEnd;
use crate::server::readiness::{set_nonblocking, watched};
use crate::sys::packet::{self, Packet};
use crate::wire::init;

/// How an environment ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Runtime(ProcessEnd),
    /// No candidate of the start command is a file.
    NoBootstrap,
    /// execve of a candidate failed.
    NotStarted {
        candidate: u8,
        errno: i32,
    },
    /// kiln-init itself failed.
    Broken {
        errno: i32,
    },
    /// The launcher died, and the container with it.
    Launcher,
}

/// kiln-init speaks right after the runtime's end; slower than this only if it cannot.
const INIT_HAS_THE_WORD: Duration = Duration::from_secs(1);
/// One of two words always comes: a launcher that lives tells of an init's end, and of one that is dead the socket closes, when
/// the last of its children that it had not yet let go has died, too; the supervisor sees to that. On a busy host that takes a
/// while, and who does not wait for it takes a launcher's death for a kill by somebody else. Only a launcher that hangs says
/// neither.
const LAUNCHER_HAS_THE_WORD: Duration = Duration::from_secs(5);

/// What ends with its process.
const KILLED: Ended = Ended::Runtime(ProcessEnd::Killed { signal: libc::SIGKILL, core: false });

/// The processes of a container, to be looked at without waiting.
pub struct Pulse {
    init: AsyncFd<OwnedFd>,
    /// Known once kiln-init has started it.
    runtime: OnceLock<AsyncFd<OwnedFd>>,
}

impl Pulse {
    pub fn new(init: OwnedFd) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { init: watched(init)?, runtime: OnceLock::new() }))
    }

    /// Whether neither process has ended, at this very moment.
    pub fn beats(&self) -> bool {
        let mut fds = vec![PollFd::new(self.init.get_ref().as_fd(), PollFlags::POLLIN)];
        fds.extend(self.runtime.get().map(|runtime| PollFd::new(runtime.get_ref().as_fd(), PollFlags::POLLIN)));
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready == 0)
    }

    /// As this process' /proc numbers it. `None`: it has not been started, or has ended.
    pub fn runtime_pid(&self) -> Option<u32> {
        let pidfd = self.runtime.get()?.get_ref().as_raw_fd();
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{pidfd}")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok().filter(|pid| *pid > 0)
    }

    async fn runtime_ended(&self) {
        match self.runtime.get() {
            Some(runtime) => wait(runtime).await,
            None => std::future::pending().await,
        }
    }
}

/// Waits for the end, tells it once, and calls `then`.
pub async fn watch(
    control: Arc<Control>,
    pulse: Arc<Pulse>,
    mut lost: watch::Receiver<Option<Lost>>,
    told: watch::Sender<Option<Ended>>,
    then: impl FnOnce(),
) {
    let mut lost_first = lost.clone();
    let ended = loop {
        tokio::select! {
            biased;
            word = control.word() => match word {
                Ok(Some(Word::Started(runtime))) => {
                    if let Some(runtime) = runtime.and_then(|fd| watched(fd).ok()) {
                        let _ = pulse.runtime.set(runtime);
                    }
                }
                Ok(Some(Word::Ended(ended))) => break ended,
                Ok(Some(Word::Resting)) => {}
                Ok(None) | Err(_) => break silent_end(&mut lost).await,
            },
            () = pulse.runtime_ended() => break last_word(&control, INIT_HAS_THE_WORD, &mut lost).await,
            () = wait(&pulse.init) => break last_word(&control, Duration::ZERO, &mut lost).await,
            () = is_lost(&mut lost_first) => break last_word(&control, Duration::ZERO, &mut lost).await,
        }
    };
    told.send_replace(Some(ended));
    then();
}

async fn is_lost(lost: &mut watch::Receiver<Option<Lost>>) {
    // A sender that is gone without a word belongs to an environment that is just being dropped.
    let _ = lost.wait_for(Option::is_some).await;
}

/// Something has ended: what kiln-init says about it, if it comes to that.
async fn last_word(control: &Control, patience: Duration, lost: &mut watch::Receiver<Option<Lost>>) -> Ended {
    let word = async {
        loop {
            match control.word().await {
                Ok(Some(Word::Ended(ended))) => return Some(ended),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return None,
            }
        }
    };
    // What has arrived counts, also if tokio has not noticed it yet.
    while let Ok(Some(word)) = control.word_now() {
        if let Word::Ended(ended) = word {
            return ended;
        }
    }
    match timeout(patience, word).await {
        Ok(Some(ended)) => ended,
        Ok(None) | Err(_) => silent_end(lost).await,
    }
}

/// kiln-init is gone without a word: killed from outside or by the kernel, or because its launcher died.
async fn silent_end(lost: &mut watch::Receiver<Option<Lost>>) -> Ended {
    let told = timeout(LAUNCHER_HAS_THE_WORD, lost.wait_for(Option::is_some)).await;
    match told.ok().and_then(Result::ok).and_then(|lost| *lost) {
        Some(Lost::Launcher) => Ended::Launcher,
        // An init that was killed is all that the function's caller has to know of it.
        Some(Lost::Init(_)) | None => KILLED,
    }
}

/// The control socket of a container's kiln-init.
pub struct Control(AsyncFd<OwnedFd>);

/// What kiln-init says.
#[derive(Debug)]
pub enum Word {
    Resting,
    Started(Option<OwnedFd>),
    Ended(Ended),
}

impl Control {
    pub fn new(socket: OwnedFd) -> io::Result<Arc<Self>> {
        set_nonblocking(&socket)?;
        Ok(Arc::new(Self(watched(socket)?)))
    }

    /// START. It fits into an empty socket buffer.
    pub fn start(&self, message: &[u8]) -> io::Result<()> {
        packet::send(self.0.get_ref().as_fd(), message, &[])
    }

    fn word_now(&self) -> io::Result<Option<Word>> {
        Ok(packet::receive(self.0.get_ref().as_fd())?.map(word))
    }

    pub async fn word(&self) -> io::Result<Option<Word>> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|socket| packet::receive(socket.get_ref().as_fd())) {
                Ok(packet) => return Ok(packet?.map(word)),
                Err(_not_yet) => {}
            }
        }
    }
}

/// One packet of kiln-init, which runs beside the function: whatever it is, it means something.
pub fn word(packet: Packet) -> Word {
    let Ok([kind, detail, _, _, value @ ..]) = <[u8; init::MESSAGE]>::try_from(packet.bytes.as_slice()) else {
        return Word::Ended(Ended::Broken { errno: libc::EPROTO });
    };
    let value = i32::from_le_bytes(value);
    match kind {
        init::RESTING => Word::Resting,
        init::STARTED => Word::Started(packet.descriptors.into_iter().next()),
        init::NO_BOOTSTRAP => Word::Ended(Ended::NoBootstrap),
        init::EXEC_FAILED => Word::Ended(Ended::NotStarted { candidate: detail, errno: value }),
        init::EXITED => Word::Ended(Ended::Runtime(process_end(value))),
        init::BROKEN => Word::Ended(Ended::Broken { errno: value }),
        _ => Word::Ended(Ended::Broken { errno: libc::EPROTO }),
    }
}

/// A wait status, as wait4(2) gives it.
fn process_end(status: i32) -> ProcessEnd {
    if libc::WIFSIGNALED(status) {
        ProcessEnd::Killed { signal: libc::WTERMSIG(status), core: libc::WCOREDUMP(status) }
    } else {
        ProcessEnd::Exited(libc::WEXITSTATUS(status))
    }
}

async fn wait(process: &AsyncFd<OwnedFd>) {
    // An error means that the reactor is gone, and with it everything.
    let _ = process.readable().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses_are_read_as_wait4_writes_them() {
        assert_eq!(process_end(7 << 8), ProcessEnd::Exited(7));
        assert_eq!(process_end(9), ProcessEnd::Killed { signal: 9, core: false });
        assert_eq!(process_end(11 | 0x80), ProcessEnd::Killed { signal: 11, core: true });
    }
}
