//! Server ⇄ launcher: orders and reports.
//!
//! Each launcher has its own socket pair to the server. Reports carry the order's id and may come in any order.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::code::Digest;
use crate::function::{Memory, TmpSize};
use crate::invocation::ProcessEnd;
use crate::runtime::TreeId;

/// Chosen by the server, unique on one socket pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OrderId(pub u64);

impl OrderId {
    /// The report on a packet that could not be read bears this id; no order may.
    pub const UNREADABLE: Self = Self(0);
}

/// Chosen by the launcher. Unique for the life of the supervisor: no launcher gets a number twice.
/// Written `3-17`; its cgroup is `kiln-<instance>-3-17`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerId {
    pub launcher: u32,
    pub number: u32,
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.launcher, self.number)
    }
}

/// A directory below `staging/`, written as 32 hexadecimal digits. Chosen by the server, at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StagingId(pub u128);

impl fmt::Display for StagingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// How the names below `staging/` begin of what launcher `number` is at work on. When it is dead, they are the supervisor's
/// to remove.
pub fn workbench(number: u32) -> String {
    format!("launcher-{number}-")
}

/// Server → launcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Build a container; its init then waits for "start".
    Build(Build),
    /// Check the tree that `unpack` left in `staging/<staging>/`, own it, rename it to `code/<code>`.
    /// One descriptor: the zip (a sealed memfd), kept as `code/<code>.zip`.
    AdoptCode { order: OrderId, staging: StagingId, code: Digest },
    /// Remove `code/<code>` and `code/<code>.zip`.
    ForgetCode { order: OrderId, code: Digest },
    /// Kill what is left of a container, reap its init, remove its cgroups.
    End { order: OrderId, container: ContainerId },
    /// Say what a container is and uses at this moment; its OCI runtime configuration comes along in a memfd.
    Describe { order: OrderId, container: ContainerId },
    /// Put one more kiln-init into a running container, beside its own, for people who look into it. It rests like every other.
    Enter(Enter),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    pub order: OrderId,
    pub tree: TreeId,
    pub code: Digest,
    pub layers: Vec<Digest>,
    pub memory: Memory,
    pub tmp: TmpSize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enter {
    pub order: OrderId,
    pub container: ContainerId,
    /// As root of the container's user namespace, not as the function's user.
    pub root: bool,
    /// On a terminal of this size; otherwise on three pipes.
    pub terminal: Option<TerminalSize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub rows: u16,
    pub columns: u16,
}

/// Lambda's limit on layers of a function.
pub const MAX_LAYERS: usize = 5;

/// Launcher → server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The container rests. One descriptor for each of `handles`, in that order.
    Built {
        order: OrderId,
        container: ContainerId,
        cgroups: CgroupLayout,
        handles: Vec<Handle>,
        steps: Vec<StepTime>,
    },
    Adopted {
        order: OrderId,
    },
    Forgotten {
        order: OrderId,
    },
    Ended {
        order: OrderId,
        container: ContainerId,
    },
    /// One descriptor: the OCI runtime configuration, a JSON text.
    Described {
        order: OrderId,
        description: Box<Description>,
    },
    /// Somebody rests in the container who waits for "start". One descriptor for each of `handles`, in that order.
    Entered {
        order: OrderId,
        handles: Vec<Handle>,
    },
    /// The order breaks a rule, and nothing was done.
    Refused {
        order: OrderId,
        why: String,
    },
    /// A step failed, and what had been done was undone.
    Failed {
        order: OrderId,
        failure: StepFailure,
    },
    /// A container's init has ended and was reaped; the server may not know yet. Its cgroups are still there.
    InitEnded {
        container: ContainerId,
        how: ProcessEnd,
    },
}

/// Which descriptors come with a container. "v1" and "v2" are cgroup versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Handle {
    /// pidfd of kiln-init: for noticing its end (as uid kiln it can neither signal nor wait).
    InitPidfd,
    /// The listening socket of the Runtime API, made inside the container's network namespace.
    Listener,
    /// Read end of the pipe that is the function's stdout and stderr.
    Log,
    /// Control socket to kiln-init ([`super::init`]).
    Control,
    /// The mount of /tmp (O_PATH), for fstatfs.
    Tmp,
    /// The container's cgroup2 directory (O_PATH). Its `cpu.stat` counts CPU time in either layout.
    CgroupDir,
    /// Its `cgroup.kill`, open for writing. Of who entered: that of a group of their own, below the container's.
    CgroupKill,
    /// Its `cgroup.freeze`, open for writing.
    CgroupFreeze,
    /// v2: `cpu.max`; v1: `cpu.cfs_quota_us`; open for writing.
    CpuQuota,
    /// v2: `cpu.max.burst`; v1: `cpu.cfs_burst_us`; open for writing. Absent where the kernel has none.
    CpuBurst,
    /// v2: `cpu.weight`; v1: `cpu.shares`; open for writing.
    CpuWeight,
    /// v1 only: the directory (O_PATH) in the memory hierarchy. On unified hosts `CgroupDir` serves.
    MemoryDir,
    /// Only of who entered: the other end of their terminal, or of the pipes that are their 0, 1 and 2.
    Terminal,
    Stdin,
    Stdout,
    Stderr,
}

/// A container as its launcher sees it at one moment. Nothing in it is woken for that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Its init, as the host numbers it.
    pub init: u32,
    /// In the order of /proc/PID/ns.
    pub namespaces: Vec<Namespace>,
    /// The host's ids behind the two that exist inside.
    pub ids: Vec<MappedId>,
    /// Its group in each hierarchy, as a path of the host's.
    pub cgroups: Vec<CgroupPath>,
    pub mounts: Vec<Mounted>,
    pub usage: Usage,
}

/// `pid:[4026531836]`, in two parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    pub kind: String,
    pub inode: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedId {
    pub uid_inside: u32,
    pub gid_inside: u32,
    /// One number for the user and for the group.
    pub outside: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPath {
    /// `unified`, or a controller of version 1.
    pub hierarchy: String,
    pub path: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    pub at: String,
    /// `tree`, `devices`, `code`, `layers`, `tmp` or `proc`; and which.
    pub kind: String,
    pub what: String,
    /// As mount(8) spells them.
    pub options: String,
}

/// What the kernel counts of a container, and where it stops. `None`: this kernel does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub frozen: bool,
    /// All that is charged to it, page cache and /tmp included, in bytes; the most so far; the kernel's own wall.
    pub memory: Option<u64>,
    pub memory_peak: Option<u64>,
    pub memory_limit: Option<u64>,
    /// Processes that the kernel has killed there for want of memory.
    pub oom_kills: Option<u64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
    pub tasks_limit: Option<u64>,
    pub processes: u32,
    /// CPU time so far, and how much of it may be used in each period now.
    pub cpu_us: Option<u64>,
    pub cpu_quota_us: Option<u64>,
    pub cpu_period_us: Option<u64>,
    /// Periods in which the quota ran out, and for how long.
    pub throttled: Option<u64>,
    pub throttled_us: Option<u64>,
    /// Of the process that has the most: its open files, and how many it may have.
    pub open_files: Option<u64>,
    pub open_files_limit: Option<u64>,
}

/// What one CPU's worth of memory weighs, as `cpu.shares` (v1) and `cpu.weight` (v2) have it by default.
pub const ONE_CPU_V1: u64 = 1024;
pub const ONE_CPU_V2: u64 = 100;

/// Where limits and statistics are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupLayout {
    /// All controllers in cgroup2.
    Unified,
    /// Limits and statistics in v1 hierarchies; birth, freeze and kill in cgroup2 (hybrid and v1 hosts).
    Split,
}

/// What a launch step took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTime {
    pub step: String,
    pub micros: u32,
}

/// A step of a launch (or of adopting code) that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("step {step:?}: {what}: {}", std::io::Error::from_raw_os_error(*errno))]
pub struct StepFailure {
    /// The step's name, as in the list in `launcher::launch`.
    pub step: String,
    /// The operation and its object.
    pub what: String,
    pub errno: i32,
}
