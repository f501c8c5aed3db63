//! One execution environment: a container with a runtime session in it, from its init to its end.
//!
//! Server process, floor 2; called by `dispatch`. Everything that a function can do to time and memory is met here.
//! It kills by the container's open `cgroup.kill` only, and never waits for a launcher to do so.
//!
//! ```text
//!          START           next              event, thaw
//! resting ──────▶ initialising ──▶ idle (frozen) ⇄ busy ──▶ answered ──┐
//!                     │              ▲                 │        │ next: │ drain the log, sample, freeze
//!                     │              └─────────────────┼────────┼───────┘
//!                     ▼                                ▼        ▼
//!                   ended ◀── exit, timeout, memory, init or launcher gone: killed, never reused
//! ```
//!
//! [`init`] START and the init phase · [`invoke`] one invocation · [`wall`] the inner memory wall · [`cpu`] CPU time · [`freeze`] the cgroup's
//! controls · [`watch`] how processes end · [`vars`] the runtime's variables · [`container`] what a launcher gives ·
//! [`launchers`] the real launchers, behind the trait [`Launcher`] · [`visit`] people in a container.
//!
//! An environment is a value: dropping it kills the container and orders its end.

mod container;
mod cpu;
mod freeze;
mod init;
mod invoke;
mod launchers;
mod recipes;
mod vars;
mod visit;
mod wall;
mod watch;

#[cfg(test)]
pub(super) mod fake;

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::errno::Errno;
use tokio::sync::watch as told;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};

use crate::function::Function;
use crate::invocation::{Cause, ProcessEnd};
use crate::runtime::Recipe;
use crate::server::events::{Events, Subject};
use crate::server::logs::{Output, lines};
use crate::server::runtime_api::Desk;

pub use container::{Container, LaunchError, Launcher, Plan, Promise};
pub use init::{InitFailure, Starter, encode_start};
pub use invoke::{Frozen, Invoked, Run, Settled};
pub use launchers::Launchers;
pub use visit::{Over, Sight, Visit, VisitError};
pub use wall::max_memory_used_mib;
pub use watch::{Ended, Word, word};

use container::{End, Keeper};
use cpu::Clock;
use freeze::Cgroup;
use wall::{Gauge, Verdict, Wall};
use watch::{Control, Pulse};

/// Asks the pool whether so many bytes of /tmp fit into the host's memory budget.
pub type Grow<'a> = &'a (dyn Fn(u64) -> bool + Send + Sync);

/// An invocation that runs for so many looks (a tenth of a second) has begun: whoever follows the log sees its START.
const LOOKS_UNTIL_BEGUN: u32 = 10;
/// What a runtime said last may still be on its way when its end is known already.
const LAST_WORDS: Duration = Duration::from_millis(5);

pub struct Environment {
    /// First, so that a dropped environment is killed before its tasks stop.
    _end: End,
    facts: Arc<Facts>,
    /// The start command's candidates.
    programs: Vec<String>,
    cgroup: Arc<Cgroup>,
    wall: Wall,
    desk: Arc<Desk>,
    output: Arc<Output>,
    control: Arc<Control>,
    pulse: Arc<Pulse>,
    ended: told::Receiver<Option<Ended>>,
    /// The drain is over, so long it was.
    cut: told::Receiver<Option<Duration>>,
    /// How long the container's build took, and the init phase, for the first REPORT.
    build: Duration,
    init: Duration,
    reported_init: bool,
    frozen: bool,
    events: Events,
    subject: Arc<Subject>,
    /// Runtime API, log reader and watcher; they end with the environment.
    _tasks: JoinSet<()>,
}

/// What can be told of an environment while somebody else uses it.
pub struct Facts {
    /// The container's id.
    pub container: String,
    /// Bytes in use when last looked at, and the most so far.
    pub used: AtomicU64,
    pub peak: AtomicU64,
    /// What made it unfit for another invocation.
    unfit: OnceLock<Cause>,
    /// Who wanted it to end.
    by: OnceLock<String>,
    /// Who has killed it.
    killer: OnceLock<String>,
    /// Who was the first in its container.
    visitor: OnceLock<String>,
    ended: told::Receiver<Option<Ended>>,
    /// What its variables are made of.
    function: Arc<Function>,
    recipe: Arc<Recipe>,
    region: String,
    stream: String,
    keeper: Arc<dyn Keeper>,
    pulse: Arc<Pulse>,
    gauge: Arc<Gauge>,
    clock: Option<Clock>,
    cgroup: Arc<Cgroup>,
    output: Arc<Output>,
}

impl Facts {
    /// Kills the container, and says in the function's log who wanted it. Who holds the environment notices, as if the kernel
    /// had done it.
    pub fn kill(&self, by: &str) {
        let _ = self.killer.set(by.to_owned());
        self.output.platform(&lines::killed(&self.container, by));
        self.cgroup.kill();
    }

    pub fn killed_by(&self) -> Option<&str> {
        self.killer.get().map(String::as_str)
    }

    /// Somebody wants it to end; the first is remembered.
    pub fn unwanted(&self, by: &str) {
        let _ = self.by.set(by.to_owned());
    }

    /// Somebody looks into its container, which makes it fit for nobody.
    pub fn visited(&self, by: &str) {
        let _ = self.visitor.set(by.to_owned());
    }

    pub fn visitor(&self) -> Option<&str> {
        self.visitor.get().map(String::as_str)
    }

    pub fn unwanted_by(&self) -> Option<&str> {
        self.by.get().map(String::as_str)
    }

    /// What ended it, or made it unfit, as far as that is known.
    pub fn cause(&self) -> Option<Cause> {
        let noticed = || match *self.ended.borrow() {
            // An idle one may be whom the kernel ends for another's sake.
            Some(Ended::Runtime(ProcessEnd::Killed { signal: libc::SIGKILL, .. })) if self.gauge.kernel_killed() => {
                Some(Cause::OutOfMemory)
            }
            Some(Ended::Runtime(end)) => Some(Cause::Exit(end)),
            Some(Ended::Launcher) => Some(lost()),
            _ => None,
        };
        self.unfit.get().cloned().or_else(noticed)
    }

    /// Looks at the memory now. Wakes nobody: reading the cgroup's files thaws nothing. `None`: the container is gone.
    pub fn measure(&self) -> Option<u64> {
        let used = self.gauge.used().ok()?;
        self.used.store(used, Ordering::Relaxed);
        Some(used)
    }

    /// The CPU time so far. Wakes nobody either.
    pub fn cpu(&self) -> Option<Duration> {
        self.clock.as_ref()?.used().ok()
    }
}

/// What came first.
enum Perform<T> {
    Done(T),
    Trouble(Cause),
}

impl Environment {
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// Looks, at this very moment; never waits.
    pub fn is_alive(&self) -> bool {
        self.ended.borrow().is_none() && self.pulse.beats()
    }

    pub fn facts(&self) -> &Arc<Facts> {
        &self.facts
    }

    /// The most memory it has used, in bytes.
    pub fn peak(&self) -> u64 {
        self.wall.peak()
    }

    /// How long its container's build took, and its init phase.
    pub fn started_within(&self) -> (Duration, Duration) {
        (self.build, self.init)
    }

    /// What its events are about.
    pub fn subject(&self) -> &Arc<Subject> {
        &self.subject
    }

    /// How long its init phase took; told once, and not at all if it ran inside of an invocation.
    pub fn init_to_report(&mut self) -> Option<Duration> {
        let first = !std::mem::replace(&mut self.reported_init, true);
        first.then_some(self.init)
    }

    /// The init phase ran inside of an invocation, whose time it was.
    pub fn init_was_inside(&mut self) {
        self.reported_init = true;
    }

    fn kill(&self) {
        self.cgroup.kill();
    }

    /// Waits for `what`, at most until `until` (which is `limit` after something began), and for anything
    /// that ends the environment meanwhile.
    async fn perform<T>(&mut self, what: impl Future<Output = T>, until: Instant, limit: Duration, grow: Grow<'_>) -> Perform<T> {
        let mut what = pin!(what);
        let cause = tokio::select! {
            biased;
            done = &mut what => return Perform::Done(done),
            cause = self.trouble(until, limit, grow) => cause,
        };
        if self.ended.borrow().is_some() {
            if let Ok(done) = timeout(LAST_WORDS, what).await {
                return Perform::Done(done);
            }
        }
        Perform::Trouble(cause)
    }

    /// Waits for the first cause that ends the environment.
    async fn trouble(&mut self, until: Instant, limit: Duration, grow: Grow<'_>) -> Cause {
        let mut deadline = pin!(sleep_until(until));
        let mut ticks = interval_at(Instant::now() + wall::EVERY, wall::EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut ended, mut cut) = (self.ended.clone(), self.cut.clone());
        let mut looks = 0_u32;
        loop {
            tokio::select! {
                biased;
                end = ended.wait_for(Option::is_some) => {
                    let end = end.ok().and_then(|end| *end);
                    return self.cause_of(end);
                }
                () = &mut deadline => return Cause::Timeout(limit),
                Ok(Some(drain)) = async { cut.wait_for(Option::is_some).await.map(|drain| *drain) } => return Cause::Cut(drain),
                _ = ticks.tick() => {
                    looks = looks.saturating_add(1);
                    if looks == LOOKS_UNTIL_BEGUN {
                        self.output.begun();
                    }
                    // Unreadable when the launcher clears the cgroup away: then the end is on its way here too.
                    let verdict = self.wall.look().unwrap_or(Verdict::Fine);
                    if let Some(cause) = self.judge(verdict, grow) {
                        return cause;
                    }
                }
            }
        }
    }

    fn judge(&self, verdict: Verdict, grow: Grow<'_>) -> Option<Cause> {
        self.facts.peak.store(self.wall.peak(), Ordering::Relaxed);
        match verdict {
            Verdict::Fine => None,
            Verdict::Tmp(bytes) if grow(bytes) => None,
            Verdict::Tmp(_) => Some(Cause::Sandbox { text: "no memory of the host is left for /tmp".into() }),
            Verdict::OutOfMemory => Some(Cause::OutOfMemory),
        }
    }

    fn cause_of(&mut self, ended: Option<Ended>) -> Cause {
        match ended {
            Some(Ended::Runtime(ProcessEnd::Killed { signal: libc::SIGKILL, .. })) if self.wall.kernel_killed() => {
                Cause::OutOfMemory
            }
            Some(Ended::Runtime(end)) => Cause::Exit(end),
            Some(Ended::NoBootstrap) => {
                let text = format!("Couldn't find valid bootstrap(s): [{}]", self.programs.join(" "));
                Cause::InvalidEntrypoint { text }
            }
            Some(Ended::NotStarted { candidate, errno }) => {
                let program = self.programs.get(usize::from(candidate)).map_or("", String::as_str);
                // As Go prints it: the same words as strerror(3), in lower case.
                let reason = Errno::from_raw(errno).desc().to_lowercase();
                Cause::InvalidEntrypoint { text: format!("fork/exec {program}: {reason}") }
            }
            Some(Ended::Broken { errno }) => {
                Cause::Sandbox { text: format!("kiln-init failed: {}", std::io::Error::from_raw_os_error(errno)) }
            }
            Some(Ended::Launcher) => lost(),
            // The watcher cannot end without a word; if it did, nobody watches.
            None => Cause::Sandbox { text: "the environment is not watched any more".into() },
        }
    }
}

fn lost() -> Cause {
    Cause::Sandbox { text: "the launcher of the container died".into() }
}
