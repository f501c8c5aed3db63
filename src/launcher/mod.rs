//! A launcher: takes orders from the server, builds containers, is their parent, and ends them.
//!
//! Root, one thread, no listening socket. It reads nothing that a caller or a function wrote; what the server sends it
//! checks as if the server had been taken over. There are as many launchers as CPUs, since one stall of the kernel's must not hold
//! up all starts, and nobody needs one for a kill or a deadline.
//!
//! ```text
//! service      the loop: order in, report out ([`outbox`]); reaps; refills and removes while no order waits
//!   launch     one order → one container, a flat list of steps in launcher and child, told as they come ([`steps`])
//!     plan     what a launch will do, as a value (and as OCI)
//!     stock    seats: namespaces and cgroups made ahead
//!     container  cgroup  network  identity  seccomp      one kind of resource each
//!   visit      people enter a container; describe: what one is and uses
//!   errand     code in and out, by helpers beside the loop
//!     adopt    an unpacked zip → code/<sha256>
//!     store    where trees are
//! ```
//!
//! Dies with the supervisor. When the server's socket ends, it kills its containers, removes their cgroups, exits 0.

pub mod adopt;
pub mod cgroup;
pub mod container;
mod describe;
pub mod errand;
pub mod identity;
pub mod launch;
pub mod network;
pub mod order;
mod outbox;
pub mod plan;
pub mod seccomp;
mod service;
pub mod steps;
pub mod stock;
pub mod store;
mod visit;

use std::fs::{self, Permissions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use caps::{CapSet, Capability};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::pipe2;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::config::Config;
use crate::hierarchy::Hierarchies;
use crate::sys::descriptor::inherited;
use crate::sys::process::SingleThreaded;
use identity::Ids;
use launch::{LifePipe, Workshop};
use service::Service;
use stock::Stock;
use store::Store;

/// Descriptors that the supervisor leaves to us.
const CONFIG: i32 = 3;
const LIFE: i32 = 4;
const SERVER: i32 = 5;

/// What a launch needs; to find one missing at the first order would be late.
const NEEDED: [Capability; 9] = [
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_MKNOD,
    Capability::CAP_CHOWN,
    Capability::CAP_FOWNER,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_NET_ADMIN,
];

/// `kilnd launcher --number NUMBER --slot SLOT`, until the server's socket ends.
pub fn run(number: u32, slot: u32) -> anyhow::Result<()> {
    let alone = SingleThreaded::check().context("start a launcher")?;
    let (text, life, server) = (inherited(CONFIG)?, inherited(LIFE)?, inherited(SERVER)?);
    die_with_parent(&life)?;
    let config = Config::read(Path::new(&format!("/proc/self/fd/{CONFIG}")))?;
    drop(text);
    for capability in NEEDED {
        if !caps::has_cap(None, CapSet::Effective, capability)? {
            bail!("a launcher needs {capability}");
        }
    }
    raise_descriptor_limit()?;
    leave_host_mounts()?;
    let workshop = workshop(alone, &config, number, slot)?;
    tracing::info!(number, slot, cgroups = ?workshop.stock.parents().layout(), "launcher ready");
    Service::new(workshop, server, life, most_containers(&config))?.run()
}

/// As many as may be busy at once, and as many again that are idle; should the server be taken over, the kernel's own memory
/// (about 400 KiB for each container) is what this protects.
fn most_containers(config: &Config) -> usize {
    config.concurrency as usize * 2
}

/// The signal first, then one look: the parent may have died between our birth and the signal's being set.
fn die_with_parent(life: &OwnedFd) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("die with the supervisor")?;
    if poll(&mut [PollFd::new(life.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO)? != 0 {
        bail!("the supervisor is gone");
    }
    Ok(())
}

/// Each container costs a few descriptors here.
fn raise_descriptor_limit() -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise the limit of open files")
}

/// Our mounts shall not reach the host; the host's unmounts shall still reach us, else we would keep its devices busy.
fn leave_host_mounts() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("leave the host's mount namespace")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>).context("make mounts slaves")
}

fn workshop(alone: SingleThreaded, config: &Config, number: u32, slot: u32) -> anyhow::Result<Workshop> {
    let owner = identity::owner(&config.runtimes_dir)?;
    let ids = Ids::of_slot(config, slot, number)?;
    let parents = recorded_parents(config)?;
    let (read, write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("make the life pipe")?;
    let bench = config.run_dir.join("trees");
    let trees = container::Trees::open(&bench, owner)?;
    let init = open_init(&bench)?;
    Ok(Workshop {
        stock: Stock::new(config.instance.clone(), number, ids, owner, parents)?,
        trees,
        store: Store::open(&config.state_dir, &config.runtimes_dir, owner)?,
        init,
        life: LifePipe { read, write },
        filter: seccomp::filter(),
        instance: config.instance.clone(),
        alone,
    })
}

/// As the supervisor recorded them, and not as we would find them ourselves: its sweep must look where we have made groups.
fn recorded_parents(config: &Config) -> anyhow::Result<Hierarchies> {
    let path = config.run_dir.join("cgroups");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(Hierarchies::from_record(&text)?)
}

/// kiln-init lies beside kilnd. What is executed is a copy, on the launcher's own tmpfs, which nobody may read: so the kernel makes
/// it not dumpable before its first instruction (execve(2)), and not only it itself in its first. Who enters a container starts it
/// beside the function, which has the same user, and would have that moment to get hold of it (as it has where fs.suid_dumpable is
/// 1, which is for debugging only: then the kernel asks nobody).
fn open_init(bench: &Path) -> anyhow::Result<OwnedFd> {
    let path = fs::read_link("/proc/self/exe").context("find kilnd")?.with_file_name("kiln-init");
    let copy = bench.join("kiln-init");
    let copied = fs::copy(&path, &copy).and_then(|_| {
        let executable = fs::metadata(&path)?.permissions().mode() & 0o111;
        fs::set_permissions(&copy, Permissions::from_mode(executable))
    });
    copied.with_context(|| format!("copy {} to {}", path.display(), copy.display()))?;
    openat(CWD, &copy, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).with_context(|| format!("open {}", copy.display()))
}
