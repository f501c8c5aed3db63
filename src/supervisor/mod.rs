//! The supervisor: root, one thread, the parent of all others. Opens both doors, starts and replaces server and
//! launchers, runs unpacks, and removes what the dead have left.
//!
//! Reads the configuration, messages of the server (as if it had been taken over) and the kernel. Knows neither tokio nor
//! HTTP nor JSON nor SQL, and no byte of a caller's or a function's.
//!
//! ```text
//! block      signals, which wait for the loop of [`watch`]
//! take       the doors that systemd passes, if it does                           [`given`]
//! check      root, kernel, user and groups; or the cure is printed               [`check`]
//! lock       run_dir, state_dir, the range of ids: one instance each             [`locks`]
//! hide       a mount namespace of its own
//! find       the parents of all cgroups, and whether every limit can be set there [`groups`]
//! sweep      what a predecessor that was killed left                             [`sweep`]
//! record     the parents, before the first mkdir; step aside on unified hosts    [`groups`]
//! open       directories, and the doors that were not passed                     [`premises`]; metrics' own [`listen`]
//! watch      until told to stop                                                  [`watch`], [`course`], [`children`], [`spawn`], [`unpacking`]
//! leave      everything but the state, and doors that were passed, removed
//! ```

mod check;
mod children;
mod course;
mod given;
mod groups;
mod listen;
mod locks;
mod notify;
mod premises;
mod spawn;
mod sweep;
mod unpacking;
mod watch;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signalfd::SignalFd;
use nix::sys::stat::{Mode, umask};
use tracing::{info, warn};

use self::children::Children;
use self::course::{Course, Finish, Rules};
use self::given::Given;
use self::locks::Locks;
use self::notify::Notify;
use self::sweep::SweepError;
use self::watch::{Ended, Watch, block_signals};
use crate::config::{self, Config};
use crate::hierarchy::Hierarchies;
use crate::kill_point;
use crate::wire::supervisor::Swept;

/// What the server needs after the last invocation: to tell those whom it cuts, to let people on duty see the end, to write
/// its books and go.
const DRAIN_MARGIN: Duration = Duration::from_secs(12);

/// Nobody takes so long over what is in `staging/`: unpacking has a minute, and adopting what was unpacked two.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// The configuration in force, and the file that it came from.
pub struct Settings {
    path: Option<PathBuf>,
    config: Config,
}

/// Where things of this instance are that a SIGKILL leaves behind.
pub struct Places {
    instance: String,
    hierarchies: Hierarchies,
    /// As recorded by a predecessor that was killed; it may have been started in another group.
    earlier: Option<Hierarchies>,
    code: PathBuf,
    staging: PathBuf,
}

/// Runs until SIGTERM or SIGINT. Without a path, the default file is read if there is one.
pub fn run(config_path: Option<&Path>) -> anyhow::Result<()> {
    let mut notify = Notify::from_environment();
    run_and_tell(config_path, &mut notify).inspect_err(|error| notify.failed(error))
}

fn run_and_tell(config_path: Option<&Path>, notify: &mut Notify) -> anyhow::Result<()> {
    // Before anything is made that somebody would have to remove, and before a reload could be asked for: SIGHUP's default is death.
    let signals = block_signals().context("block signals")?;
    let given = Given::take()?;
    // Of all processes that come from this one. Whoever starts us may have one that hides from the server what launchers make for
    // it (a unit's UMask=0077 and containers' cgroups); what nobody may see has a mode of its own that says so.
    umask(Mode::from_bits_truncate(0o022));
    let config = read_config(config_path)?;
    let ids = check::host(&config)?;
    premises::outer_directories(&config, &ids)?;
    let locks = Locks::take(&config)?;
    hide_mounts()?;
    let hierarchies = groups::find(&config.run_dir)?;
    groups::check(&hierarchies, groups::Surroundings::look())?;
    premises::inner_directories(&config, &ids)?;
    let places = Places {
        instance: config.instance.clone(),
        code: premises::code(&config),
        staging: premises::staging(&config),
        hierarchies,
        earlier: groups::recorded(&config.run_dir)?,
    };
    notify.status("starting: removing what an earlier kilnd left, if anything");
    notify.alive(Instant::now());
    let at_start = places.sweep_all().context("sweep what an earlier kilnd left")?;
    groups::record(&config.run_dir, &places.hierarchies)?;
    groups::step_aside(&places.hierarchies)?;
    let doors = premises::open_doors(&config, &ids, given)?;
    let (run_dir, own_doors) = (config.run_dir.clone(), doors.own.clone());
    info!(instance = config.instance, run_dir = %run_dir.display(), pid = std::process::id(), "supervisor started");

    let settings = Settings { path: config_path.map(Path::to_owned), config };
    let ended = watch(signals, settings, &ids, doors, places, at_start, notify)?;
    premises::clear_run_dir(&run_dir, &own_doors)?;
    locks.remove()?;
    // Somebody else's file in it keeps it.
    let _ = std::fs::remove_dir(&run_dir);
    match ended {
        Ended { how: Finish::NeverServed, .. } => {
            bail!("the server ended again and again before it was ready; its reasons are above")
        }
        Ended { clean: false, .. } => bail!("stopped, but something could not be removed; it is named above"),
        Ended { how: Finish::Stopped, .. } => info!("stopped"),
    }
    notify.status("stopped; nothing is left behind");
    Ok(())
}

/// Whether the configuration, the unit, or the host's users or cgroups are wrong, so that a new try without a new hand would end in
/// the same way.
pub fn is_for_people(error: &anyhow::Error) -> bool {
    let of_host = error.downcast_ref::<check::CheckError>();
    matches!(error.downcast_ref(), Some(config::ConfigError::Wrong { .. }))
        || of_host.is_some_and(|error| !matches!(error, check::CheckError::LookUp { .. }))
        || error.downcast_ref::<groups::GroupsError>().is_some_and(groups::GroupsError::is_lasting)
}

fn watch(
    signals: SignalFd,
    settings: Settings,
    ids: &check::Identities,
    doors: premises::Doors,
    places: Places,
    at_start: Swept,
    notify: &mut Notify,
) -> anyhow::Result<Ended> {
    let config = &settings.config;
    let course = Course::new(Rules { launchers: config.launchers, drain: drain(config), cut: DRAIN_MARGIN }, Instant::now());
    let children = Children::new(config, ids).context("prepare to start children")?;
    let run_dir = config.run_dir.clone();
    let mut watch = Watch::new(signals, course, children, doors, places, settings, notify);
    watch.upkeep.at_start = at_start;
    let ended = watch.run()?;
    groups::step_back(&run_dir, &watch.places.hierarchies);
    Ok(ended)
}

/// From the order to drain until the server is killed.
fn drain(config: &Config) -> Duration {
    config.drain().saturating_add(DRAIN_MARGIN)
}

/// What the file says; the number of launchers is settled here, once for all processes.
fn read_config(path: Option<&Path>) -> anyhow::Result<Config> {
    let default = Path::new(config::DEFAULT_PATH);
    let config = match path {
        Some(path) => Config::read(path)?,
        None if default.exists() => Config::read(default)?,
        None => Config::default(),
    };
    Ok(config.settled())
}

/// Mounts of ours are seen by nobody else; the host's unmounts get through, so that we never keep a disk busy.
fn hide_mounts() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .context("make all mounts slaves of the host's")
}

impl Places {
    /// Nothing of ours runs: removes everything that is not state. Tells how much there was.
    fn sweep_all(&self) -> anyhow::Result<Swept> {
        kill_point!("sweep-begin");
        let parents: BTreeSet<&Path> =
            [Some(&self.hierarchies), self.earlier.as_ref()].into_iter().flatten().flat_map(Hierarchies::parents).collect();
        let groups = sweep::groups(parents, &format!("kiln-{}-", self.instance))?;
        let staging = sweep::staging(&self.staging)?;
        let code = sweep::code(&self.code)?;
        if groups + staging + code > 0 {
            info!(groups, staging, code, "leftovers removed");
        }
        Ok(Swept { cgroups: groups as u64, staging: staging as u64, code: code as u64 })
    }

    /// What belongs to nobody though all of ours live, removed: groups of launchers that are gone by `lives`, and old staging
    /// directories.
    fn sweep_strays(&self, lives: impl Fn(u32) -> bool) -> Result<Swept, SweepError> {
        let prefix = format!("kiln-{}-", self.instance);
        let mut swept = Swept::default();
        for name in sweep::strays(self.hierarchies.parents(), &prefix, lives)? {
            sweep::groups_named(self.hierarchies.parents(), &name)?;
            warn!(name, "a cgroup of nobody's was removed: please report it");
            swept.cgroups += 1;
        }
        swept.staging = sweep::forgotten(&self.staging, FORGOTTEN)? as u64;
        if swept.staging > 0 {
            warn!(count = swept.staging, "staging directories of nobody's were removed: please report it");
        }
        Ok(swept)
    }
}
