//! Named steps: each is timed, and each failure becomes step name, operation and errno ([`StepFailure`]).
//!
//! Used on both sides of clone3. The child's half travels through a close-on-exec pipe: its times just before the
//! exec, or the failure that ended it. The exec closes the pipe, so the end of the pipe is the launch's success.

use std::error::Error;
use std::io::{self, Read, Write};
use std::time::Instant;

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
        let micros = u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX);
        self.times.push(StepTime { step: name.to_owned(), micros });
        Ok(done)
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

/// Launcher: everything the child says, until it execs or ends. The outer error is the pipe's own.
pub fn listen(mut pipe: impl Read) -> io::Result<Result<Vec<StepTime>, StepFailure>> {
    let mut bytes = Vec::new();
    pipe.read_to_end(&mut bytes)?;
    let (mut rest, mut times) = (&bytes[..], None);
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
        assert_eq!(listen(&pipe[..]).unwrap().unwrap()[0].step, "pivot");

        let failed = StepFailure { step: "exec".into(), what: "exec kiln-init".into(), errno: libc::EACCES };
        tell_failure(&mut pipe, failed.clone()).unwrap();
        assert_eq!(listen(&pipe[..]).unwrap(), Err(failed));
    }

    #[test]
    fn a_child_that_says_nothing_was_killed() {
        assert_eq!(listen(&[][..]).unwrap().unwrap_err().errno, libc::EINTR);
    }
}
