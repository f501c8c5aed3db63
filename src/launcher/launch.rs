//! Launches one container: one checked order in, one resting kiln-init out.
//!
//! Runs in a launcher: root, one thread; nothing is read here that a caller or a function wrote. The child's half
//! is in this file too, below the line; past its exec it is kiln-init (`inside::init`).
//!
//! ```text
//!   launcher                          child (new namespaces, born in its cgroup)
//!   takes a seat, prepares mounts
//!   clone3                ────────▶   joins, takes a copy of the root, attaches trees,
//!                                     enters its user namespace, drops everything,
//!                                     execs kiln-init, which waits for "start"
//!   descriptors → server  ◀────────   the pipe's end; or step name and errno, through it
//! ```
//!
//! The launcher does not wait for the child ([`Launching`]): it serves others meanwhile.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::fcntl::{AtFlags, FcntlArg, OFlag, fcntl};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{getrlimit, rlim_t, setrlimit};
use nix::sys::signal::SigSet;
use nix::unistd::{Gid, Pid, Uid, close, execveat, fchown, pipe2, sethostname};

use crate::kill_point;
use crate::kill_point::Carried;
use crate::launcher::cgroup::{self, Groups};
use crate::launcher::container::{self, Prepared, Trees};
use crate::launcher::identity;
use crate::launcher::network;
use crate::launcher::plan::{Plan, Rlimit};
use crate::launcher::steps::{self, Hearing, Steps, failure};
use crate::launcher::stock::{Seat, Stock};
use crate::launcher::store::Store;
use crate::sys::descriptor::lay_out;
use crate::sys::packet;
use crate::sys::process::{Child, InChild, SingleThreaded, clone3, go_first_when_memory_is_short};
use crate::sys::seccomp::{self, Instruction};
use crate::wire::launcher::{Build, Handle, OrderId, StepFailure, StepTime};

/// What a launcher needs for every launch.
#[derive(Debug)]
pub struct Workshop {
    pub alone: SingleThreaded,
    pub stock: Stock,
    pub trees: Trees,
    pub store: Store,
    /// kiln-init (O_PATH).
    pub init: OwnedFd,
    pub life: LifePipe,
    pub filter: Vec<Instruction>,
    pub instance: String,
}

/// Nobody ever writes into it: it ends when the launcher does.
#[derive(Debug)]
pub struct LifePipe {
    pub read: OwnedFd,
    pub write: OwnedFd,
}

/// A container whose child is on its way.
#[derive(Debug)]
pub struct Launching {
    pub order: OrderId,
    pub plan: Plan,
    /// Not to be forgotten: it has names.
    pub remains: Remains,
    child: Child,
    hearing: Hearing,
    handles: Vec<(Handle, OwnedFd)>,
    steps: Steps,
}

/// What is known of one that was on its way.
pub enum Heard {
    /// It still is.
    Nothing(Launching),
    Rests(Launched),
    Failed(OrderId, Box<LaunchFailure>),
}

/// A container that rests.
#[derive(Debug)]
pub struct Launched {
    pub order: OrderId,
    pub plan: Plan,
    pub remains: Remains,
    pub child: Child,
    pub handles: Vec<(Handle, OwnedFd)>,
    pub steps: Vec<StepTime>,
}

/// What a container leaves when its processes are gone, and what a failed launch leaves. The caller removes it.
#[derive(Debug)]
pub struct Remains {
    pub groups: Groups,
    pub user: u32,
}

/// The failed step; and what it leaves, if it came so far.
pub type LaunchFailure = (StepFailure, Option<Remains>);

pub fn launch(workshop: &mut Workshop, order: &Build) -> Result<Launching, Box<LaunchFailure>> {
    let mut steps = Steps::default();
    let taken = steps.step("seat", || workshop.stock.take(&workshop.alone));
    let seat = taken.map_err(|failure| Box::new((failure, None)))?;
    let plan = Plan::new(order, seat.container, cgroup::name(&workshop.instance, seat.container), seat.maps.clone());
    let begun = begin(workshop, &plan, &seat, &mut steps);
    // The seat's namespaces live on in the processes that are in them, or end here.
    let remains = Remains { groups: seat.groups, user: seat.user };
    match begun {
        Ok(Begun { child, hearing, handles }) => {
            Ok(Launching { order: order.order, plan, remains, child, hearing, handles, steps })
        }
        Err(failure) => Err(Box::new((failure, Some(remains)))),
    }
}

/// A child, and what the server gets when it rests.
struct Begun {
    child: Child,
    hearing: Hearing,
    handles: Vec<(Handle, OwnedFd)>,
}

fn begin(workshop: &mut Workshop, plan: &Plan, seat: &Seat, steps: &mut Steps) -> Result<Begun, StepFailure> {
    let Workshop { trees, store, stock, .. } = workshop;
    let prepared = steps.step("mounts", || trees.prepare(store, plan))?;
    steps.step("cgroup limits", || seat.groups.limit(&plan.limits))?;
    let birthplace = steps.step("cgroup birthplace", || seat.groups.birthplace())?;
    let tasks = steps.step("cgroup tasks", || seat.groups.tasks())?;
    let cgroup_handles = steps.step("cgroup handles", || seat.groups.handles())?;
    let listener = steps.step("listener", || stock.host().listen_in(&seat.network))?;
    let (ours, theirs) = steps.step("pipes", || pipes(seat.user))?;

    // Not CLONE_NEWNS: a copy of the launcher's own mounts would have to be unmounted again.
    let namespaces = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    let gear = Gear { workshop, plan, seat, prepared: &prepared, tasks: &tasks, pipes: &theirs };
    let child = steps
        .step("clone", || clone3(&workshop.alone, namespaces, Some(birthplace.as_fd()), |proof| be_the_child(proof, &gear)))?;
    kill_point!("after-clone");
    // From here on, what fails ends the child too: whoever removes the remains kills what is left in them.
    // Its ends of the pipes go first, else our own would outlive it, or get into the next child.
    drop(theirs);
    let mut handles =
        vec![(Handle::Listener, listener), (Handle::Log, ours.log), (Handle::Control, ours.control), (Handle::Tmp, prepared.tmp)];
    handles.extend(cgroup_handles);
    Ok(Begun { child, hearing: ours.hearing, handles })
}

impl Launching {
    pub fn hearing(&self) -> &Hearing {
        &self.hearing
    }

    pub fn pid(&self) -> Pid {
        self.child.pid
    }

    /// Takes what its child has said, without waiting.
    pub fn hear(mut self, now: Instant) -> Heard {
        let Some(told) = self.hearing.hear(now) else { return Heard::Nothing(self) };
        let order = self.order;
        let Self { plan, remains, child, mut handles, mut steps, .. } = self;
        let finished = told.and_then(|told| {
            steps.took("child", self.hearing.begun());
            steps.append(told);
            // Not before: on a busy host a small function's weight would make its launch wait in every step.
            steps.step("cpu weight", || remains.groups.weigh(&plan.limits))?;
            steps.step("pidfd", || child.pidfd.try_clone())
        });
        match finished {
            Ok(pidfd) => {
                handles.push((Handle::InitPidfd, pidfd));
                Heard::Rests(Launched { order, plan, remains, child, handles, steps: steps.into_times() })
            }
            Err(failure) => Heard::Failed(order, Box::new((failure, Some(remains)))),
        }
    }
}

/// The launcher's ends; the first two go to the server.
struct Ours {
    log: OwnedFd,
    control: OwnedFd,
    hearing: Hearing,
}

/// The child's ends.
struct Theirs {
    log: OwnedFd,
    control: OwnedFd,
    report: OwnedFd,
}

fn pipes(user: u32) -> io::Result<(Ours, Theirs)> {
    let (log, log_end) = pipe2(OFlag::O_CLOEXEC)?;
    // Else the function could not open its own output: `echo x > /dev/stderr`.
    fchown(&log_end, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)))?;
    let (control, control_end) = packet::pair()?;
    for server in [&log, &control] {
        fcntl(server, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    let (reports, report) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((Ours { log, control, hearing: Hearing::new(reports)? }, Theirs { log: log_end, control: control_end, report }))
}

// ------------------------------------------------------------------------------------------------------------------
// The child. It has a copy of the launcher's memory and descriptors, and leaves only by exec or by ending.

/// All that the child uses.
struct Gear<'a> {
    workshop: &'a Workshop,
    plan: &'a Plan,
    seat: &'a Seat,
    prepared: &'a Prepared,
    tasks: &'a [File],
    pipes: &'a Theirs,
}

fn be_the_child(proof: &InChild, gear: &Gear<'_>) -> i32 {
    let mut report = gear.pipes.report.as_fd();
    let Err(failed) = become_init(proof, gear, &mut report);
    // If even this fails, the launcher sees the pipe end without a word, and says so.
    let _ = steps::tell_failure(Pipe(report), failed);
    1
}

/// `report` is where a failure goes: it changes its number on the way.
fn become_init(proof: &InChild, gear: &Gear<'_>, report: &mut BorrowedFd<'_>) -> Result<Infallible, StepFailure> {
    let Gear { workshop, plan, seat, .. } = gear;
    let mut steps = Steps::default();
    let (before_ids, before_exec) = (Carried::connect("child-before-ids"), Carried::connect("child-before-exec"));
    // Our own copy would keep the pipe from ending, for ourselves and for others who are on their way.
    let _ = close(workshop.life.write.as_raw_fd());

    steps.step("version 1 cgroups", || cgroup::join(gear.tasks))?;
    steps.step("network", || network::enter(&seat.network))?;
    // After the last cgroup is joined: what is our own group now is the root of all that can be seen.
    steps.step("cgroup namespace", || unshare(CloneFlags::CLONE_NEWCGROUP))?;
    steps.step("host name", || sethostname(plan.host_name))?;
    // Before the host's /proc is out of reach, and while CAP_SYS_RESOURCE makes it last: functions go first.
    steps.step("memory shortage", go_first_when_memory_is_short)?;
    // Past this line the host's files are gone: failures leave only through the pipe.
    steps.step("root", || container::enter_root(gear.prepared))?;
    steps.step("attach trees", || container::attach_trees(gear.prepared))?;
    // Not the launcher's: that is the host's file, which could be watched (inotify), and one offset and lock for all.
    // Never dropped: once the descriptors are laid out, its number is another's.
    let null = ManuallyDrop::new(steps.step("null", container::open_null)?);
    // Last of the namespaces, so that all others belong to the host's user namespace.
    steps.step("user namespace", || identity::enter_user_namespace(&seat.user_namespace))?;
    before_ids.reached();
    steps.step("ids", || identity::become_user(plan.uid, plan.gid))?;
    // After setns(user), which refills them; the last use of CAP_SETPCAP.
    steps.step("capabilities", identity::drop_all_capabilities)?;
    // After the last change of ids, which clears it silently.
    steps.step("die with the launcher", || identity::die_with_launcher(workshop.life.read.as_fd()))?;
    steps.step("no new privileges", || rustix::thread::set_no_new_privs(true).map_err(io::Error::from))?;
    before_exec.reached();
    let kept = [null.as_fd(), gear.pipes.log.as_fd(), gear.pipes.log.as_fd(), gear.pipes.control.as_fd()];
    let moved = steps.step("descriptors", || lay_out(proof, &kept, &[*report, workshop.init.as_fd()]))?;
    let [moved_report, init] = moved[..] else { return Err(failure("descriptors", &io::Error::from_raw_os_error(libc::EBADF))) };
    *report = moved_report;
    // After the descriptors: until they are in place, they have numbers as high as a launcher of many containers has.
    steps.step("resource limits", || plan.rlimits.iter().try_for_each(set_rlimit))?;
    // Signals that the launcher blocks would stay blocked across the exec.
    steps.step("signals", || SigSet::empty().thread_set_mask())?;
    // Last, so that the filter need not allow anything above; only the exec is left.
    steps.step("seccomp", || seccomp::install(&workshop.filter))?;
    steps::tell_times(Pipe(*report), std::mem::take(&mut steps)).map_err(|error| failure("tell times", &error))?;
    let nothing: [CString; 0] = [];
    steps.step("exec kiln-init", || execveat(init, c"", &[c"kiln-init"], &nothing, AtFlags::AT_EMPTY_PATH))
}

/// A limit is never raised above what the launcher has: it may lack CAP_SYS_RESOURCE.
pub fn set_rlimit(limit: &Rlimit) -> nix::Result<()> {
    let (_, hardest) = getrlimit(limit.resource)?;
    let at_most = |value: Option<rlim_t>| value.unwrap_or(hardest).min(hardest);
    setrlimit(limit.resource, at_most(limit.soft), at_most(limit.hard))
}

/// Writes to a descriptor that somebody else owns.
pub struct Pipe<'a>(pub BorrowedFd<'a>);

impl io::Write for Pipe<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
