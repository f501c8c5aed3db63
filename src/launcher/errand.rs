//! Errands: code taken into `code/` and out of it, by a helper beside the launcher's one thread.
//!
//! To check, own and sync a tree of 250 MB takes seconds on a busy disk, and to remove one as well. A launcher that did it
//! itself would build nothing meanwhile, so each errand is a child, forked for it: the same root, one thread, nothing open
//! but `code/`, `staging/`, the zip, and the pipe through which it tells how it went. It dies with its launcher.
//!
//! ```text
//!   order ──▶ waiting ──▶ running (at most AT_ONCE) ── ends with a word ─────▶ that is the report
//!                               └──────────────────── ends without a word ──▶ what it took out of staging/ is cleared
//!                                                                             by another errand; "failed"
//! ```
//!
//! Nobody waits for an errand but the server that ordered it: no launch, no kill, no deadline. One that the disk holds up
//! holds up at most those behind it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};
use serde::{Deserialize, Serialize};

use crate::code::Digest;
use crate::invocation::ProcessEnd;
use crate::launcher::adopt::{self, AdoptError, Shelves};
use crate::launcher::identity;
use crate::launcher::launch::LifePipe;
use crate::launcher::steps::failure;
use crate::launcher::store::Store;
use crate::sys::descriptor::lay_out;
use crate::sys::process::{Child, InChild, SingleThreaded, clone3};
use crate::wire;
use crate::wire::launcher::{OrderId, Report, StagingId, StepFailure};

/// They share one disk; more of them are not faster.
const AT_ONCE: usize = 2;
/// The server orders as many as it has zips in memory, and removes one tree after the other: this many only a server sends
/// that was taken over.
const WAITING: usize = 64;
/// Of a refusal, in characters of at most 3 bytes (a path may hold any). [`failure`] bounds its own.
const LONGEST_WORD: usize = 1000;

/// What to do.
#[derive(Debug)]
pub enum Errand {
    Adopt {
        staging: StagingId,
        code: Digest,
        zip: File,
    },
    Forget {
        code: Digest,
    },
    /// After a helper that ended without a word.
    Clear {
        taken: String,
    },
}

/// How it went.
#[derive(Debug, Serialize, Deserialize)]
enum Told {
    Done,
    Refused(String),
    Failed(StepFailure),
}

#[derive(Debug, Default)]
pub struct Errands {
    waiting: VecDeque<Ordered>,
    running: Vec<Running>,
}

#[derive(Debug)]
struct Ordered {
    /// Who waits for it. Nobody waits for [`Errand::Clear`].
    order: Option<OrderId>,
    errand: Errand,
}

#[derive(Debug)]
struct Running {
    order: Option<OrderId>,
    pid: Pid,
    told: OwnedFd,
    kind: Kind,
}

/// What is left to know of an errand while its helper runs.
#[derive(Debug)]
enum Kind {
    Adopt { taken: String },
    Forget { code: Digest, taken: String },
    Clear,
}

/// What a helper is started with.
#[derive(Debug)]
pub struct Office<'a> {
    pub alone: &'a SingleThreaded,
    pub store: &'a Store,
    pub life: &'a LifePipe,
    /// The launcher's number, by which the supervisor knows what is its.
    pub launcher: u32,
}

impl Errands {
    /// `false`: too many wait already.
    #[must_use]
    pub fn take(&mut self, order: OrderId, errand: Errand) -> bool {
        let room = self.waiting.len() < WAITING;
        if room {
            self.waiting.push_back(Ordered { order: Some(order), errand });
        }
        room
    }

    /// Whether this code is on its way out.
    pub fn forgets(&self, code: Digest) -> bool {
        let waits = |ordered: &Ordered| matches!(&ordered.errand, Errand::Forget { code: found } if *found == code);
        let runs = |running: &Running| matches!(&running.kind, Kind::Forget { code: found, .. } if *found == code);
        self.waiting.iter().any(waits) || self.running.iter().any(runs)
    }

    /// Starts what may start. Those that cannot be started are answered at once.
    pub fn start(&mut self, office: &Office<'_>) -> Vec<Report> {
        let mut failed = Vec::new();
        while self.running.len() < AT_ONCE {
            let Some(Ordered { order, errand }) = self.waiting.pop_front() else { break };
            match start(office, order, errand) {
                Ok(running) => self.running.push(running),
                Err(error) => failed.extend(order.map(|order| fail(order, failure("start a helper", &error)))),
            }
        }
        failed
    }

    /// A child was reaped. `None`: not one of these.
    pub fn ended(&mut self, pid: Pid, how: ProcessEnd) -> Option<Vec<Report>> {
        let at = self.running.iter().position(|running| running.pid == pid)?;
        let Running { order, told, kind, .. } = self.running.swap_remove(at);
        let told = listen(told);
        if told.is_none() {
            if let Kind::Adopt { taken } | Kind::Forget { taken, .. } = &kind {
                // Before those that wait: what they do may depend on it.
                self.waiting.push_front(Ordered { order: None, errand: Errand::Clear { taken: taken.clone() } });
            }
        }
        let Some(order) = order else {
            if let Some(Told::Failed(failure)) = told {
                tracing::warn!(%failure, "what a helper left is still in staging");
            }
            return Some(Vec::new());
        };
        Some(vec![match (told, kind) {
            (Some(Told::Done), Kind::Forget { .. }) => Report::Forgotten { order },
            (Some(Told::Done), _) => Report::Adopted { order },
            (Some(Told::Refused(why)), _) => Report::Refused { order, why },
            (Some(Told::Failed(failure)), _) => fail(order, failure),
            (None, _) => {
                let what = match how {
                    ProcessEnd::Exited(code) => format!("the helper ended with code {code} and without a word"),
                    ProcessEnd::Killed { signal, .. } => format!("the helper was killed by signal {signal}"),
                };
                fail(order, StepFailure { step: "code".into(), what, errno: libc::EINTR })
            }
        }])
    }

    /// The launcher ends. Whoever is cut short leaves files in staging only.
    pub fn kill(&mut self) {
        self.waiting.clear();
        for running in &self.running {
            // Our child, and not reaped: the number is still its.
            let _ = kill(running.pid, Signal::SIGKILL);
        }
    }
}

fn fail(order: OrderId, failure: StepFailure) -> Report {
    Report::Failed { order, failure }
}

fn start(office: &Office<'_>, order: Option<OrderId>, errand: Errand) -> io::Result<Running> {
    let kind = match &errand {
        Errand::Adopt { staging, .. } => Kind::Adopt { taken: adopt::taken(office.launcher, *staging) },
        Errand::Forget { code } => Kind::Forget { code: *code, taken: adopt::forgotten(office.launcher, *code) },
        Errand::Clear { .. } => Kind::Clear,
    };
    let (told, tell) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let child = clone3(office.alone, CloneFlags::empty(), None, |proof| match run(proof, office, errand, tell.as_fd()) {
        Ok(()) => 0,
        // It could tell nothing: the launcher sees the pipe end without a word.
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO) & 0xff,
    })?;
    let Child { pid, .. } = child;
    Ok(Running { order, pid, told, kind })
}

/// The helper's whole life.
fn run(proof: &InChild, office: &Office<'_>, errand: Errand, tell: BorrowedFd<'_>) -> io::Result<()> {
    // Never dropped: once the descriptors are laid out, its zip's number is another's.
    let errand = ManuallyDrop::new(errand);
    // Nothing of the launcher's but these: it holds sockets, containers and namespaces that must end with it.
    let (input, output, errors) = (io::stdin(), io::stdout(), io::stderr());
    let standard = [input.as_fd(), output.as_fd(), errors.as_fd()];
    let mut own = vec![tell, office.life.read.as_fd(), office.store.code.as_fd(), office.store.staging.as_fd()];
    if let Errand::Adopt { zip, .. } = &*errand {
        own.push(zip.as_fd());
    }
    let moved = lay_out(proof, &standard, &own)?;
    let [tell, life, code_dir, staging_dir, zip @ ..] = &moved[..] else { return Err(io::ErrorKind::InvalidData.into()) };
    identity::die_with_launcher(*life).map_err(io::Error::other)?;
    let shelves = Shelves { code: *code_dir, staging: *staging_dir, owner: office.store.owner, launcher: office.launcher };
    let done = match (&*errand, zip) {
        (Errand::Adopt { staging, code, .. }, [zip]) => {
            adopt::adopt(&shelves, *staging, *code, File::from(zip.try_clone_to_owned()?))
        }
        (Errand::Forget { code }, []) => adopt::forget(&shelves, *code),
        (Errand::Clear { taken }, []) => adopt::clear(&shelves, taken),
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    let step = if matches!(*errand, Errand::Adopt { .. }) { "adopt code" } else { "forget code" };
    let word = match done {
        Ok(()) => Told::Done,
        Err(AdoptError::Refused(why)) => Told::Refused(why.to_string().chars().take(LONGEST_WORD).collect()),
        Err(error) => Told::Failed(failure(step, &error)),
    };
    // Below PIPE_BUF, so one write says all or nothing.
    let bytes = wire::encode(&word).map_err(io::Error::other)?;
    rustix::io::write(tell, &bytes)?;
    Ok(())
}

/// What a helper told before it ended. Its end of the pipe is closed, so this does not wait.
fn listen(told: OwnedFd) -> Option<Told> {
    let mut bytes = Vec::new();
    File::from(told).take(wire::MAX_MESSAGE as u64).read_to_end(&mut bytes).ok()?;
    wire::decode(&bytes).ok()
}
