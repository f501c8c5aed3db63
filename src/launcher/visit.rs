//! People enter a container: one more kiln-init in it, which starts their program as the container's own starts the runtime.
//!
//! Runs in a launcher, and in two children that it makes for this. It is the launcher's work, and not that of `kiln`, because here
//! are the right to do it, one thread, the system-call filter and the steps of every launch; and because so nothing of the operator's
//! (descriptors, terminal, directory, limits) gets into a container at all. What to run, and with which variables, never passes
//! here: the server tells kiln-init, as always.
//!
//! ```text
//! launcher                          guide                                    kiln-init
//! makes a group, pipes or a terminal
//! clone3 into the group ─────────▶  joins; enters all namespaces of the
//!                                   container's init, the user's last;
//!                                   drops everything
//!                                   clones a sibling, ends ───────────────▶  born inside, powerless; dies with the launcher;
//!                                                                            filter; execs, and waits for "start"
//! descriptors → server  ◀───────────────────────────────────────────────────  the pipe's end; or step name and errno
//! ```
//!
//! The function is awake, and hostile. It can stop kiln-init on its way (SIGSTOP: it has the same user), or leave it no CPU time, so
//! the launcher waits for neither of the two ([`Entering`]). The guide stays in the launcher's pid namespace: a process that the function could see in
//! its /proc while it still has the host's mounts would show them (mountinfo is anybody's to read). It is not dumpable from its first
//! step on, and no file of the container's is executed, opened or resolved before everything is dropped: only kiln-init is, by a
//! descriptor of the host's file, which nobody inside may write to (CVE-2019-5736).
//!
//! Whoever entered has no more rights than the function: the same filter, limits and groups. As root of the container's user namespace
//! they have [`identity::ROOT_INSIDE`] over the function's files and processes besides.
//!
//! A group of their own, below the container's, ends them alone: by its open `cgroup.kill`, which the server gets.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::fcntl::{AtFlags, FcntlArg, OFlag, fcntl};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_dumpable;
use nix::sys::signal::SigSet;
use nix::unistd::{Gid, Uid, close, execveat, fchown, pipe2};
use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::launcher::cgroup::{self, Groups};
use crate::launcher::identity;
use crate::launcher::launch::{Pipe, Workshop, set_rlimit};
use crate::launcher::plan::Plan;
use crate::launcher::steps::{self, Hearing, Steps, failure};
use crate::sys::descriptor::lay_out;
use crate::sys::packet;
use crate::sys::process::{Child, InChild, clone_sibling, clone3, go_first_when_memory_is_short};
use crate::sys::seccomp;
use crate::wire::launcher::{Enter, Handle, OrderId, StepFailure, TerminalSize};

/// The container that is entered.
#[derive(Debug)]
pub struct Hosts<'a> {
    pub plan: &'a Plan,
    pub groups: &'a mut Groups,
    pub init: &'a Child,
}

/// What the server gets: kiln-init's control socket, the group's `cgroup.kill`, and the other ends of 0, 1 and 2.
pub type Handles = Vec<(Handle, OwnedFd)>;

/// All namespaces but the user's, which would take the right to enter the others.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWCGROUP);

/// Somebody on their way in.
#[derive(Debug)]
pub struct Entering {
    order: OrderId,
    hearing: Hearing,
    group: File,
    handles: Handles,
}

/// What is known of somebody who was on their way.
pub enum Heard {
    /// They still are.
    Nothing(Entering),
    Inside(OrderId, Handles),
    Failed(OrderId, StepFailure),
}

pub fn enter(workshop: &Workshop, hosts: Hosts<'_>, asked: &Enter) -> Result<Entering, StepFailure> {
    let Hosts { plan, groups, init } = hosts;
    let mut steps = Steps::default();
    // The one with the id of the user, whoever enters: its own output must open.
    let user = plan.maps.uids.iter().find(|id| (id.inside == 0) == asked.root).map_or(u32::MAX, |id| id.outside);
    let ends = steps.step("ends", || Ends::make(user, asked.terminal))?;
    let (control, control_end) = steps.step("control", packet::pair)?;
    let (reports, report) = steps.step("pipes", || pipe2(OFlag::O_CLOEXEC))?;
    let hearing = steps.step("pipes", || Hearing::new(reports))?;
    let tasks = steps.step("cgroup tasks", || groups.tasks())?;
    let visit = steps.step("cgroup", || groups.visit())?;

    let gear = Gear { workshop, plan, init, root: asked.root, ends: &ends, control: control_end.as_fd(), tasks: &tasks };
    let birthplace = Some(visit.birthplace.as_fd());
    // Reaped with all others.
    let _guide = steps.step("clone", || {
        clone3(&workshop.alone, CloneFlags::empty(), birthplace, |proof| be_the_guide(proof, &gear, report.as_fd()))
    })?;
    // Our own copies would outlive theirs.
    drop((control_end, report, ends.inside));
    let mut handles = vec![(Handle::Control, control)];
    handles.extend(ends.servers);
    let entering = Entering { order: asked.order, hearing, group: visit.kill, handles };
    let set = entering.handles.iter().try_for_each(|(_, end)| fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop));
    match set {
        Ok(()) => Ok(entering),
        Err(errno) => Err(entering.turn_back(failure("non-blocking", &errno))),
    }
}

impl Entering {
    pub fn hearing(&self) -> &Hearing {
        &self.hearing
    }

    /// Takes what they have said, without waiting.
    pub fn hear(mut self, now: Instant) -> Heard {
        match self.hearing.hear(now) {
            None => Heard::Nothing(self),
            Some(Ok(_times)) => {
                let Self { order, group, mut handles, .. } = self;
                handles.push((Handle::CgroupKill, group.into()));
                Heard::Inside(order, handles)
            }
            Some(Err(failure)) => Heard::Failed(self.order, self.turn_back(failure)),
        }
    }

    fn turn_back(self, why: StepFailure) -> StepFailure {
        self.end();
        why
    }

    /// Ends whoever has come so far.
    pub fn end(self) {
        // An error: the group is gone, and they with it.
        let _ = nix::unistd::write(&self.group, b"1");
    }
}

/// What becomes 0, 1 and 2 inside, and the other ends of it.
struct Ends {
    inside: [OwnedFd; 3],
    servers: Handles,
}

impl Ends {
    fn make(user: u32, terminal: Option<TerminalSize>) -> io::Result<Self> {
        let own = |end: &OwnedFd| fchown(end, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)));
        if let Some(size) = terminal {
            let (ours, inside) = make_terminal(size)?;
            own(&inside)?;
            return Ok(Self {
                inside: [inside.try_clone()?, inside.try_clone()?, inside],
                servers: vec![(Handle::Terminal, ours)],
            });
        }
        let (stdin, write) = pipe2(OFlag::O_CLOEXEC)?;
        let (out, stdout) = pipe2(OFlag::O_CLOEXEC)?;
        let (err, stderr) = pipe2(OFlag::O_CLOEXEC)?;
        let inside = [stdin, stdout, stderr];
        inside.iter().try_for_each(own)?;
        Ok(Self { inside, servers: vec![(Handle::Stdin, write), (Handle::Stdout, out), (Handle::Stderr, err)] })
    }
}

/// Of a devpts of its own, which has no mount point: the host's terminals have nothing to do with it.
fn make_terminal(size: TerminalSize) -> io::Result<(OwnedFd, OwnedFd)> {
    let context = fsopen("devpts", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let terminals = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC)?;
    let ours = openat(&terminals, "ptmx", OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    unlockpt(&ours)?;
    let inside = ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    let TerminalSize { rows, columns } = size;
    tcsetwinsize(&ours, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?;
    Ok((ours, inside))
}

// ------------------------------------------------------------------------------------------------------------------
// The guide, and behind its last step kiln-init. Each has a copy of the launcher's memory and descriptors, and leaves only by exec
// or by ending.

struct Gear<'a> {
    workshop: &'a Workshop,
    plan: &'a Plan,
    init: &'a Child,
    root: bool,
    ends: &'a Ends,
    control: BorrowedFd<'a>,
    tasks: &'a [File],
}

fn be_the_guide(proof: &InChild, gear: &Gear<'_>, report: BorrowedFd<'_>) -> i32 {
    match lead_in(proof, gear, report) {
        Ok(()) => 0,
        Err(failed) => {
            let _ = steps::tell_failure(Pipe(report), failed);
            1
        }
    }
}

fn lead_in(proof: &InChild, gear: &Gear<'_>, report: BorrowedFd<'_>) -> Result<(), StepFailure> {
    let Gear { workshop, plan, init, .. } = gear;
    let mut steps = Steps::default();
    // Our own copy, and the sibling's, would keep the pipe from ending, for others too who are on their way.
    let _ = close(workshop.life.write.as_raw_fd());
    steps.step("version 1 cgroups", || cgroup::join(gear.tasks))?;
    // Before the host's /proc is out of reach.
    steps.step("memory shortage", go_first_when_memory_is_short)?;
    steps.step("undumpable", || set_dumpable(false))?;
    // At once: past this line the host's files are gone. The pid namespace is for the sibling only.
    steps.step("namespaces", || setns(&init.pidfd, NAMESPACES))?;
    // Last of the namespaces, as in a launch.
    steps.step("user namespace", || identity::follow_into_user_namespace(init.pidfd.as_fd()))?;
    let (uid, gid, kept) = match gear.root {
        true => (0, 0, identity::ROOT_INSIDE),
        false => (plan.uid, plan.gid, rustix::thread::CapabilitySet::empty()),
    };
    steps.step("ids", || identity::become_user(uid, gid))?;
    steps.step("capabilities", || identity::keep_capabilities(kept))?;
    // Once more: a change of ids sets it as the host's fs.suid_dumpable says.
    steps.step("undumpable", || set_dumpable(false))?;
    steps.step("no new privileges", || rustix::thread::set_no_new_privs(true))?;
    let steps = ManuallyDrop::new(steps);
    clone_sibling(proof, |proof| {
        let mut report = report;
        let steps = ManuallyDrop::into_inner(steps);
        let Err(failed) = become_init(proof, gear, steps, &mut report);
        let _ = steps::tell_failure(Pipe(report), failed);
        1
    })
    .map_err(|error| failure("clone inside", &error))
}

fn become_init(
    proof: &InChild,
    gear: &Gear<'_>,
    mut steps: Steps,
    report: &mut BorrowedFd<'_>,
) -> Result<Infallible, StepFailure> {
    let Gear { workshop, plan, .. } = gear;
    // The launcher is the sibling's parent, too.
    steps.step("die with the launcher", || identity::die_with_launcher(workshop.life.read.as_fd()))?;
    let [stdin, stdout, stderr] = &gear.ends.inside;
    let kept = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd(), gear.control];
    let moved = steps.step("descriptors", || lay_out(proof, &kept, &[*report, workshop.init.as_fd()]))?;
    let [moved_report, init] = moved[..] else { return Err(failure("descriptors", &io::Error::from_raw_os_error(libc::EBADF))) };
    *report = moved_report;
    steps.step("resource limits", || plan.rlimits.iter().try_for_each(set_rlimit))?;
    steps.step("signals", || SigSet::empty().thread_set_mask())?;
    // Last, so that the filter need not allow anything above; only the exec is left.
    steps.step("seccomp", || seccomp::install(&workshop.filter))?;
    steps::tell_times(Pipe(*report), std::mem::take(&mut steps)).map_err(|error| failure("tell times", &error))?;
    let nothing: [CString; 0] = [];
    steps.step("exec kiln-init", || execveat(init, c"", &[c"kiln-init"], &nothing, AtFlags::AT_EMPTY_PATH))
}
