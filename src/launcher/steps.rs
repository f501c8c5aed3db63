//! Named steps: each is timed, and each failure becomes step name, operation and errno ([`StepFailure`]).
//!
//! Used on both sides of clone3. The child's half travels through a close-on-exec pipe: its times just before the
//! exec, or the failure that ended it. The exec closes the pipe, so the end of the pipe is the launch's success.
//!
//! Nobody waits for a child: one that hangs in the kernel, or that the function which is entered has stopped, would hold up all
//! others. What it says is taken as it comes ([`Hearing`]).

use std::error::Error;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::{Deserialize, Serialize};

use crate::wire::launcher::{StepFailure, StepTime};

/// Steps done so far, with what each took.
#[derive(Debug, Default)]
pub struct Steps {
    times: Vec<StepTime>,
}

impl Steps {
    pub fn step<T, E>(&mut self, name: &str, act: impl FnOnce() -> Result<T, E>) -> Result<T, StepFailure>
    where
        E: Error + 'static,
    {
        let begun = Instant::now();
        let done = act().map_err(|error| failure(name, &error))?;
        self.took(name, begun);
        Ok(done)
    }

    /// A step that began then, and is over now.
    pub fn took(&mut self, name: &str, begun: Instant) {
        let micros = u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX);
        self.times.push(StepTime { step: name.to_owned(), micros });
    }

    pub fn into_times(self) -> Vec<StepTime> {
        self.times
    }

    pub fn append(&mut self, times: Vec<StepTime>) {
        self.times.extend(times);
    }
}

/// Longest text of a failure: with its frame it stays below PIPE_BUF, so the child's one write is atomic.
const MAX_WHAT: usize = 1024;

/// A failed step, with the errno from the bottom of the error's chain of sources.
pub fn failure(step: &str, error: &(dyn Error + 'static)) -> StepFailure {
    let mut what: String = error.to_string();
    if what.len() > MAX_WHAT {
        let end = (0..=MAX_WHAT).rev().find(|i| what.is_char_boundary(*i)).unwrap_or(0);
        what.truncate(end);
    }
    StepFailure { step: step.to_owned(), what, errno: errno(error) }
}

fn errno(error: &(dyn Error + 'static)) -> i32 {
    let mut link = Some(error);
    while let Some(error) = link {
        if let Some(code) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return code;
        }
        if let Some(errno) = error.downcast_ref::<nix::Error>() {
            return *errno as i32;
        }
        link = error.source();
    }
    // No system call has failed: something did not come out as it must (a limit read back, a file's owner).
    libc::EIO
}

/// What the child says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Told {
    Times(Vec<StepTime>),
    Failed(StepFailure),
}

/// Child: nothing but the exec is left.
pub fn tell_times(mut pipe: impl Write, steps: Steps) -> io::Result<()> {
    tell(&mut pipe, &Told::Times(steps.into_times()))
}

/// Child: it ends here.
pub fn tell_failure(mut pipe: impl Write, failure: StepFailure) -> io::Result<()> {
    tell(&mut pipe, &Told::Failed(failure))
}

fn tell(pipe: &mut impl Write, told: &Told) -> io::Result<()> {
    pipe.write_all(&postcard::to_stdvec(told).map_err(io::Error::other)?)
}

/// A child is in its last step long before this; one that is not hangs in the kernel, or was stopped.
const CHILD_DEADLINE: Duration = Duration::from_secs(10);

/// Launcher: what a child says until it execs or ends, taken as it comes.
#[derive(Debug)]
pub struct Hearing {
    pipe: OwnedFd,
    bytes: Vec<u8>,
    begun: Instant,
}

impl Hearing {
    /// `pipe` is the read end; the launcher has closed its own copy of the other, which would outlive the child's.
    pub fn new(pipe: OwnedFd) -> io::Result<Self> {
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { pipe, bytes: Vec::new(), begun: Instant::now() })
    }

    /// Readable when there is something to hear.
    pub fn pipe(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// When it is given up.
    pub fn until(&self) -> Instant {
        self.begun + CHILD_DEADLINE
    }

    /// Everything that it has said, once that is everything. `None`: there may be more.
    pub fn hear(&mut self, now: Instant) -> Option<Result<Vec<StepTime>, StepFailure>> {
        let late = || io::Error::from_raw_os_error(libc::ETIMEDOUT);
        match self.read() {
            Ok(Said::All) => Some(understand(&self.bytes).unwrap_or_else(|error| Err(failure("child", &error)))),
            Ok(Said::NotAll) if now < self.until() => None,
            Ok(Said::NotAll) => Some(Err(failure("child", &late()))),
            Err(error) => Some(Err(failure("child", &error))),
        }
    }

    fn read(&mut self) -> io::Result<Said> {
        let mut piece = [0; 4096];
        loop {
            match nix::unistd::read(&self.pipe, &mut piece) {
                Ok(0) => return Ok(Said::All),
                Ok(length) => self.bytes.extend_from_slice(&piece[..length]),
                Err(nix::Error::EAGAIN) => return Ok(Said::NotAll),
                Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

enum Said {
    NotAll,
    All,
}

/// The outer error: these are not a child's words.
fn understand(bytes: &[u8]) -> io::Result<Result<Vec<StepTime>, StepFailure>> {
    let (mut rest, mut times) = (bytes, None);
    while !rest.is_empty() {
        let (told, behind) = postcard::take_from_bytes(rest).map_err(io::Error::other)?;
        rest = behind;
        match told {
            Told::Times(told) => times = Some(told),
            Told::Failed(failure) => return Ok(Err(failure)),
        }
    }
    // Neither times nor a failure: it was killed on its way.
    let killed = || StepFailure { step: "launch".into(), what: "the child was killed on its way".into(), errno: libc::EINTR };
    Ok(times.ok_or_else(killed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("open {0:?}")]
    struct Wrapped(&'static str, #[source] io::Error);

    #[test]
    fn a_failure_names_step_object_and_errno() {
        let mut steps = Steps::default();
        let act = || Err::<(), _>(Wrapped("/x", io::Error::from_raw_os_error(libc::ENOENT)));
        let failed = steps.step("code", act).unwrap_err();
        assert_eq!((failed.step.as_str(), failed.what.as_str(), failed.errno), ("code", "open \"/x\"", libc::ENOENT));
        assert!(failed.to_string().contains("No such file"), "{failed}");
    }

    #[test]
    fn what_the_child_says_arrives() {
        let mut pipe = Vec::new();
        let mut steps = Steps::default();
        steps.step("pivot", || Ok::<_, io::Error>(())).unwrap();
        tell_times(&mut pipe, steps).unwrap();
        assert_eq!(understand(&pipe).unwrap().unwrap()[0].step, "pivot");

        let failed = StepFailure { step: "exec".into(), what: "exec kiln-init".into(), errno: libc::EACCES };
        tell_failure(&mut pipe, failed.clone()).unwrap();
        assert_eq!(understand(&pipe).unwrap(), Err(failed));
    }

    #[test]
    fn a_child_that_says_nothing_was_killed() {
        assert_eq!(understand(&[]).unwrap().unwrap_err().errno, libc::EINTR);
    }

    #[test]
    fn a_child_is_not_waited_for_and_is_given_up_in_the_end() {
        let (ours, theirs) = nix::unistd::pipe().unwrap();
        let mut hearing = Hearing::new(ours).unwrap();
        let now = Instant::now();
        assert_eq!(hearing.hear(now), None);
        let mut said = Vec::new();
        tell_times(&mut said, Steps { times: vec![StepTime { step: "pivot".into(), micros: 1 }] }).unwrap();
        let (first, second) = said.split_at(2);
        nix::unistd::write(&theirs, first).unwrap();
        assert_eq!(hearing.hear(now), None, "half a word");
        nix::unistd::write(&theirs, second).unwrap();
        assert_eq!(hearing.hear(now), None, "it has not become kiln-init yet");
        assert_eq!(hearing.hear(hearing.until()).unwrap().unwrap_err().errno, libc::ETIMEDOUT);
        drop(theirs);
        assert_eq!(hearing.hear(hearing.until()).unwrap().unwrap()[0].step, "pivot", "it came, if late");
    }
}
