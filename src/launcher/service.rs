//! The launcher's loop: one order at a time; reports; reaping; and, while no order waits, the work that nobody waits for.
//! What takes long is done by helpers ([`super::errand`]), which are children like the containers.
//!
//! ```text
//!            Build            its init rests     init ends, reaped
//!  (nothing) ─────▶ launching ───────────▶ running ─────────────────▶ ended
//!                                             │ End: killed             │ End
//!                                             ▼    init ends, reaped    ▼
//!                                           ending ────────────────▶ removing ─────▶ (nothing), "ended"
//! ```
//!
//! Nothing here waits for a child, which may hang, or for the server: reports that it does not take are kept, and until they are gone no further order is read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::invocation::ProcessEnd;
use crate::kill_point;
use crate::launcher::cgroup::{CgroupError, Removed};
use crate::launcher::describe::describe;
use crate::launcher::errand::{Errand, Errands, Office};
use crate::launcher::launch::{self, LaunchFailure, Launched, Launching, Remains, Workshop, launch};
use crate::launcher::order::{self, Checked};
use crate::launcher::outbox::Outbox;
use crate::launcher::plan::Plan;
use crate::launcher::steps::{Hearing, failure};
use crate::launcher::visit::{self, Entering, Hosts};
use crate::sys::packet;
use crate::sys::process::Child;
use crate::wire::launcher::{Build, ContainerId, Enter, Order, OrderId, Report, StepFailure};

pub struct Service {
    workshop: Workshop,
    server: OwnedFd,
    life: OwnedFd,
    /// Readable when a child has ended.
    children: SignalFd,
    /// Containers whose init does not rest yet.
    launching: Vec<Launching>,
    residents: BTreeMap<ContainerId, Resident>,
    /// People on their way into containers.
    entering: Vec<Entering>,
    removals: Vec<Removal>,
    errands: Errands,
    /// Reports that the server has not taken yet.
    outbox: Outbox,
    /// Containers that may live here at once.
    most: usize,
    /// When the stock may be refilled: later, after a failure.
    refill_at: Instant,
}

/// A container that the server has not ended.
struct Resident {
    plan: Plan,
    remains: Remains,
    child: Child,
    life: Life,
}

/// See the drawing in the module's documentation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Running,
    Ending(OrderId),
    /// Its init was reaped, and with it everything inside; its cgroups are the server's to read until it says "end".
    Ended,
}

/// Cgroups on their way out.
struct Removal {
    remains: Remains,
    /// Who waits for it.
    order: Option<(OrderId, ContainerId)>,
    next: Instant,
    pause: Duration,
    give_up: Instant,
}

/// Why the loop ends.
struct ServerGone;

/// Children that have not ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Some,
    None,
}

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// A group that is busy for longer holds a process that the kernel cannot end; the supervisor's sweep comes back to it.
const GIVE_UP: Duration = Duration::from_secs(10);
const OVERDUE: Duration = Duration::from_millis(100);
const REFILL_AGAIN: Duration = Duration::from_secs(1);
/// Each holds a few descriptors, and for as long as the function likes.
const MOST_ENTERING: usize = 16;

impl Service {
    pub fn new(workshop: Workshop, server: OwnedFd, life: OwnedFd, most: usize) -> anyhow::Result<Self> {
        fcntl(&server, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("make the server's socket non-blocking")?;
        let children = SigSet::from(Signal::SIGCHLD);
        // SIGTERM and SIGINT are the supervisor's: it lets running invocations finish, and then the server's socket ends.
        let mut blocked = children;
        blocked.add(Signal::SIGTERM);
        blocked.add(Signal::SIGINT);
        blocked.thread_block().context("block signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let children = SignalFd::with_flags(&children, flags).context("make a signalfd")?;
        Ok(Self {
            workshop,
            server,
            life,
            children,
            launching: Vec::new(),
            residents: BTreeMap::new(),
            entering: Vec::new(),
            removals: Vec::new(),
            errands: Errands::default(),
            outbox: Outbox::default(),
            most,
            refill_at: Instant::now(),
        })
    }

    pub fn run(mut self) -> anyhow::Result<()> {
        while let Ok(()) = self.turn() {}
        self.close_down()
    }

    /// Waits for one thing and does it.
    fn turn(&mut self) -> Result<(), ServerGone> {
        let server_events = if self.outbox.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLOUT };
        let mut ready = vec![
            PollFd::new(self.server.as_fd(), server_events),
            PollFd::new(self.children.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.life.as_fd(), PollFlags::POLLIN),
        ];
        ready.extend(self.hearings().map(|hearing| PollFd::new(hearing.pipe(), PollFlags::POLLIN)));
        match poll(&mut ready, self.until_idle_work(Instant::now())) {
            Ok(_) => {}
            Err(nix::Error::EINTR) => return Ok(()),
            Err(errno) => {
                tracing::error!(%errno, "poll");
                return Err(ServerGone);
            }
        }
        let happened = |fd: &PollFd<'_>| fd.revents().is_none_or(|events| !events.is_empty());
        let (server, children, life) = (happened(&ready[0]), happened(&ready[1]), happened(&ready[2]));
        let spoken = ready[3..].iter().any(happened);
        if life {
            return Err(ServerGone);
        }
        self.hear(Instant::now());
        if children {
            self.reap();
        }
        if server {
            if self.outbox.is_empty() { self.receive()? } else { self.flush()? }
        }
        let now = Instant::now();
        if !(server || children || spoken) || self.is_overdue(now) {
            self.idle_work(now);
        }
        // What was done may have something to tell.
        self.flush()
    }

    fn hearings(&self) -> impl Iterator<Item = &Hearing> {
        let launching = self.launching.iter().map(Launching::hearing);
        launching.chain(self.entering.iter().map(Entering::hearing))
    }

    /// Takes what children on their way have said.
    fn hear(&mut self, now: Instant) {
        for launching in std::mem::take(&mut self.launching) {
            match launching.hear(now) {
                launch::Heard::Nothing(launching) => self.launching.push(launching),
                launch::Heard::Rests(launched) => self.launched(launched),
                launch::Heard::Failed(order, failed) => self.not_launched(order, *failed),
            }
        }
        for entering in std::mem::take(&mut self.entering) {
            match entering.hear(now) {
                visit::Heard::Nothing(entering) => self.entering.push(entering),
                visit::Heard::Inside(order, handles) => {
                    let (handles, descriptors) = handles.into_iter().unzip();
                    self.report(&Report::Entered { order, handles }, descriptors);
                }
                visit::Heard::Failed(order, failure) => self.fail(order, failure),
            }
        }
    }

    fn receive(&mut self) -> Result<(), ServerGone> {
        let packet = match packet::receive(self.server.as_fd()) {
            Ok(Some(packet)) => packet,
            Ok(None) => return Err(ServerGone),
            Err(error) => {
                return match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
                    io::ErrorKind::InvalidData => {
                        self.refuse(OrderId::UNREADABLE, error);
                        Ok(())
                    }
                    _ => Err(ServerGone),
                };
            }
        };
        kill_point!("order-received");
        match order::check(packet) {
            Ok(checked) => self.obey(checked),
            Err((order, error)) => self.refuse(order, error),
        }
        Ok(())
    }

    fn obey(&mut self, Checked { order, zip }: Checked) {
        let id = order::id(&order);
        match (order, zip) {
            (Order::Build(build), _) => self.build(&build),
            (Order::End { container, .. }, _) => self.end(id, container),
            (Order::Describe { container, .. }, _) => self.describe(id, container),
            (Order::Enter(asked), _) => self.enter(&asked),
            (Order::AdoptCode { staging, code, .. }, Some(zip)) => {
                self.send_out(id, Errand::Adopt { staging, code, zip: File::from(zip) });
            }
            (Order::AdoptCode { .. }, None) => self.refuse(id, "no zip came along"),
            (Order::ForgetCode { code, .. }, _) => {
                let launching = self.launching.iter().map(|launching| &launching.plan);
                let mut plans = launching.chain(self.residents.values().map(|resident| &resident.plan));
                if plans.any(|plan| plan.uses(code)) {
                    return self.refuse(id, "a container uses this code");
                }
                self.send_out(id, Errand::Forget { code });
            }
        }
    }

    fn send_out(&mut self, order: OrderId, errand: Errand) {
        if !self.errands.take(order, errand) {
            return self.refuse(order, "too many trees wait to be adopted or removed");
        }
        self.start_errands();
    }

    fn start_errands(&mut self) {
        let Workshop { alone, store, life, .. } = &self.workshop;
        let office = Office { alone, store, life, launcher: self.workshop.stock.launcher() };
        for report in self.errands.start(&office) {
            self.report(&report, Vec::new());
        }
    }

    fn build(&mut self, build: &Build) {
        if self.launching.len() + self.residents.len() + self.removals.len() >= self.most {
            let why = format!("{} containers live here: that is the most", self.most);
            return self.refuse(build.order, why);
        }
        if build.layers.iter().chain([&build.code]).any(|code| self.errands.forgets(*code)) {
            return self.refuse(build.order, "this code is being removed");
        }
        match launch(&mut self.workshop, build) {
            Ok(launching) => self.launching.push(launching),
            Err(failed) => self.not_launched(build.order, *failed),
        }
    }

    fn launched(&mut self, launched: Launched) {
        let Launched { order, plan, remains, child, handles, steps } = launched;
        let container = plan.container;
        let (handles, descriptors) = handles.into_iter().unzip();
        let cgroups = remains.groups.layout();
        self.residents.insert(container, Resident { plan, remains, child, life: Life::Running });
        kill_point!("before-built");
        self.report(&Report::Built { order, container, cgroups, handles, steps }, descriptors);
    }

    fn not_launched(&mut self, order: OrderId, (failure, remains): LaunchFailure) {
        if let Some(remains) = remains {
            self.kill_and_remove(remains);
        }
        self.fail(order, failure);
    }

    fn end(&mut self, order: OrderId, container: ContainerId) {
        let Some(resident) = self.residents.get_mut(&container) else {
            return self.refuse(order, format_args!("there is no container {container}"));
        };
        kill_point!("before-end");
        match resident.life {
            Life::Ending(_) => self.refuse(order, format_args!("container {container} is being ended")),
            Life::Running => match resident.remains.groups.kill() {
                Ok(()) => resident.life = Life::Ending(order),
                Err(error) => self.fail(order, failure("kill", &error)),
            },
            Life::Ended => {
                if let Some(resident) = self.residents.remove(&container) {
                    self.remove(resident.remains, Some((order, container)));
                }
            }
        }
    }

    fn describe(&mut self, order: OrderId, container: ContainerId) {
        // Of one whose init was reaped the kernel knows nothing; and the number of its process may be another's by now.
        let Some(resident) = self.residents.get(&container).filter(|resident| resident.life != Life::Ended) else {
            return self.refuse(order, format_args!("there is no container {container}"));
        };
        match describe(&resident.plan, &resident.remains.groups, resident.child.pid.as_raw().unsigned_abs()) {
            Ok((description, text)) => self.report(&Report::Described { order, description: Box::new(description) }, vec![text]),
            Err(error) => self.fail(order, failure("describe", &error)),
        }
    }

    fn enter(&mut self, asked: &Enter) {
        let order = asked.order;
        if self.entering.len() >= MOST_ENTERING {
            return self.refuse(order, format_args!("{MOST_ENTERING} people are on their way into containers: that is the most"));
        }
        let Some(resident) = self.residents.get_mut(&asked.container).filter(|resident| resident.life == Life::Running) else {
            return self.refuse(order, format_args!("there is no container {}", asked.container));
        };
        let hosts = Hosts { plan: &resident.plan, groups: &mut resident.remains.groups, init: &resident.child };
        match visit::enter(&self.workshop, hosts, asked) {
            Ok(entering) => self.entering.push(entering),
            Err(failure) => self.fail(order, failure),
        }
    }

    /// All children that have ended. Helpers were waited for where they were started, and a child whose launch failed is
    /// nobody's resident. Says whether any child is left.
    fn reap(&mut self) -> Left {
        while let Ok(Some(_)) = self.children.read_signal() {}
        loop {
            let (pid, how) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, ProcessEnd::Exited(code)),
                Ok(WaitStatus::Signaled(pid, signal, core)) => (pid, ProcessEnd::Killed { signal: signal as i32, core }),
                Ok(WaitStatus::StillAlive) => return Left::Some,
                Err(_) => return Left::None,
                Ok(_) => continue,
            };
            // Its end of the pipe has ended before it could be reaped: if it came to rest, it is a resident now, whose end is told.
            if self.launching.iter().any(|launching| launching.pid() == pid) {
                self.hear(Instant::now());
            }
            if let Some(reports) = self.errands.ended(pid, how) {
                reports.iter().for_each(|report| self.report(report, Vec::new()));
                self.start_errands();
                continue;
            }
            let ended = self.residents.iter_mut().find(|(_, resident)| resident.child.pid == pid && resident.life != Life::Ended);
            let Some((&container, resident)) = ended else { continue };
            let life = std::mem::replace(&mut resident.life, Life::Ended);
            self.report(&Report::InitEnded { container, how }, Vec::new());
            let Life::Ending(order) = life else { continue };
            if let Some(resident) = self.residents.remove(&container) {
                self.remove(resident.remains, Some((order, container)));
            }
        }
    }

    fn kill_and_remove(&mut self, remains: Remains) {
        if let Err(error) = remains.groups.kill() {
            tracing::warn!(error = &error as &dyn std::error::Error, "kill what a failed launch left");
        }
        self.remove(remains, None);
    }

    fn remove(&mut self, remains: Remains, order: Option<(OrderId, ContainerId)>) {
        let now = Instant::now();
        self.removals.push(Removal { remains, order, next: now, pause: FIRST_PAUSE, give_up: now + GIVE_UP });
    }

    /// Until there is something to do that no order asked for: no time at all, or the next removal's.
    fn until_idle_work(&self, now: Instant) -> PollTimeout {
        let refill = self.refill_from();
        let hearings = self.hearings().map(Hearing::until);
        let next = self.removals.iter().map(|removal| removal.next).chain(refill).chain(hearings).min();
        let Some(next) = next else { return PollTimeout::NONE };
        // Rounded up: a poll that ends a fraction too early would turn idly.
        let left = next.saturating_duration_since(now).as_nanos().div_ceil(1_000_000);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }

    /// When the stock may be refilled. A seat takes milliseconds, which who waits for a launch should not wait, too; but a launch that
    /// hangs does not come sooner.
    fn refill_from(&self) -> Option<Instant> {
        let launches = self.launching.iter().map(|launching| launching.hearing().begun() + OVERDUE);
        (!self.workshop.stock.is_full()).then(|| launches.chain([self.refill_at]).max()).flatten()
    }

    /// Orders come first, but not for ever: somebody waits for a removal.
    fn is_overdue(&self, now: Instant) -> bool {
        self.removals.iter().any(|removal| removal.next + OVERDUE < now)
    }

    /// One piece, so that an order which comes meanwhile waits for one piece at most.
    fn idle_work(&mut self, now: Instant) {
        if let Some(due) = self.removals.iter().position(|removal| removal.next <= now) {
            let removal = self.removals.swap_remove(due);
            self.try_removal(removal, now);
        } else if self.refill_from().is_some_and(|from| from <= now) {
            if let Err(error) = self.workshop.stock.refill(&self.workshop.alone) {
                tracing::warn!(error = &error as &dyn std::error::Error, "make a seat ahead");
                self.refill_at = now + REFILL_AGAIN;
            }
        }
    }

    fn try_removal(&mut self, mut removal: Removal, now: Instant) {
        let busy = || CgroupError::Busy { source: io::Error::from_raw_os_error(libc::EBUSY) };
        let error = match removal.remains.groups.remove() {
            Ok(Removed::All) => {
                self.workshop.stock.give_back(removal.remains.user);
                if let Some((order, container)) = removal.order {
                    self.report(&Report::Ended { order, container }, Vec::new());
                }
                return;
            }
            Ok(Removed::NotYet) if now < removal.give_up => {
                removal.next = now + removal.pause;
                removal.pause = (removal.pause * 2).min(LONGEST_PAUSE);
                return self.removals.push(removal);
            }
            Ok(Removed::NotYet) => busy(),
            Err(error) => error,
        };
        // Its id stays taken: something may still run as it.
        match removal.order {
            Some((order, _)) => self.fail(order, failure("remove cgroups", &error)),
            None => tracing::warn!(error = &error as &dyn std::error::Error, "remove what a failed launch left"),
        }
    }

    fn refuse(&mut self, order: OrderId, why: impl ToString) {
        self.report(&Report::Refused { order, why: why.to_string() }, Vec::new());
    }

    fn fail(&mut self, order: OrderId, failure: StepFailure) {
        self.report(&Report::Failed { order, failure }, Vec::new());
    }

    fn report(&mut self, report: &Report, descriptors: Vec<OwnedFd>) {
        self.outbox.put(report, descriptors);
    }

    fn flush(&mut self) -> Result<(), ServerGone> {
        self.outbox.flush(self.server.as_fd()).map_err(|_| ServerGone)
    }

    /// Kills everything, reaps it, removes it.
    fn close_down(mut self) -> anyhow::Result<()> {
        self.outbox.clear();
        self.errands.kill();
        // Who was on their way into one that is being removed would not die with it.
        std::mem::take(&mut self.entering).into_iter().for_each(Entering::end);
        for launching in std::mem::take(&mut self.launching) {
            self.kill_and_remove(launching.remains);
        }
        for seat in self.workshop.stock.empty() {
            self.remove(Remains { groups: seat.groups, user: seat.user }, None);
        }
        for (_, resident) in std::mem::take(&mut self.residents) {
            self.kill_and_remove(resident.remains);
        }
        let give_up = Instant::now() + GIVE_UP;
        // A group may be removed while its dead are not yet reaped; whoever looks after us must not find them.
        while self.reap() == Left::Some || !self.removals.is_empty() {
            if Instant::now() > give_up {
                break;
            }
            for removal in std::mem::take(&mut self.removals) {
                self.try_removal(removal, Instant::now());
            }
            // Either an end, or the time for the next try.
            let mut ended = [PollFd::new(self.children.as_fd(), PollFlags::POLLIN)];
            poll(&mut ended, PollTimeout::from(1u8)).context("wait for children")?;
        }
        match self.removals.len() {
            0 => Ok(()),
            left => anyhow::bail!("{left} containers' cgroups are still busy"),
        }
    }
}
