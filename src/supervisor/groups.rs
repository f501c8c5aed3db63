//! The supervisor's own cgroups: finds the parents of all groups, records them, and moves out of the way.
//!
//! Groups of containers are made by launchers, below the parents found here ([`crate::hierarchy`]). Whatever keeps a limit from being
//! set there, or from staying set, is refused here by name ([`check`]), before anything is made: a function never runs half limited.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::mount::{MsFlags, mount, umount};
use tracing::warn;

use crate::hierarchy::{Controller, DELEGATED, Hierarchies, HierarchyError, OWN_GROUP};
use crate::wire::launcher::CgroupLayout;

/// Printed with every refusal that a delegated scope cures.
const CURE: &str = "Delegate=yes in kilnd's unit; by hand: systemd-run --scope -p Delegate=yes kilnd …";

#[derive(Debug, thiserror::Error)]
pub enum GroupsError {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Hierarchies(#[from] HierarchyError),
    #[error("the host has no cgroup2 mounted, and it cannot be mounted at {path} either")]
    Mount { path: PathBuf, source: io::Error },
    #[error("write {value:?} to {file}")]
    Write { file: PathBuf, value: String, source: io::Error },
    #[error("the controller {controller} is not available in {group}: {why}")]
    ControllerMissing { controller: Controller, group: PathBuf, why: String },
    #[error("another process ({pid}) lives in our group {group}, so no limits can be set below it; {CURE}")]
    NotAlone { pid: String, group: PathBuf },
    #[error("our group {group} is {kind:?}, where neither memory nor processes can be limited; {CURE}")]
    Threaded { group: PathBuf, kind: String },
    #[error("systemd does not leave our group {group} to us: it would take the limits of running functions back; {CURE}")]
    Undelegated { group: PathBuf },
    #[error(
        "this host has swap, and no {file}: a function could use more memory than it has; boot without swapaccount=0, or swapoff -a"
    )]
    UncountedSwap { file: PathBuf },
    #[error(
        "{file} leaves less than one CPU, and version 1 then refuses each container its own quota; raise CPUQuota= to 100% at least"
    )]
    SmallQuota { file: PathBuf },
    #[error("hand the controllers to the groups below {group}: {why}")]
    Enable { group: PathBuf, why: &'static str, source: io::Error },
}

impl GroupsError {
    /// Whether it is the host or the unit that is wrong, and not a moment.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Read { .. } | Self::Mount { .. } | Self::Write { .. } => false,
            // Others are the kernel's own shortage, of memory or of numbers for groups.
            Self::Enable { source, .. } => {
                matches!(
                    source.kind(),
                    io::ErrorKind::ResourceBusy | io::ErrorKind::InvalidInput | io::ErrorKind::ReadOnlyFilesystem
                )
            }
            _ => true,
        }
    }
}

/// Finds our parents. Mounts cgroup2 at `run_dir/cgroup2`, in our own mount namespace, where the host has not.
pub fn find(run_dir: &Path) -> Result<Hierarchies, GroupsError> {
    match detect() {
        Err(GroupsError::Hierarchies(HierarchyError::NoUnified)) => {
            let path = private_mount(run_dir);
            let mounted = fs::create_dir_all(&path)
                .and_then(|()| Ok(mount(Some("none"), &path, Some("cgroup2"), MsFlags::empty(), None::<&str>)?));
            mounted.map_err(|source| GroupsError::Mount { path, source })?;
            detect()
        }
        found => found,
    }
}

fn private_mount(run_dir: &Path) -> PathBuf {
    run_dir.join("cgroup2")
}

fn detect() -> Result<Hierarchies, GroupsError> {
    Ok(Hierarchies::detect(&read(Path::new("/proc/self/mountinfo"))?, &read(Path::new("/proc/self/cgroup"))?)?)
}

fn read(path: &Path) -> Result<String, GroupsError> {
    fs::read_to_string(path).map_err(|source| GroupsError::Read { path: path.to_owned(), source })
}

/// One of the kernel's files, which is never created.
fn write(file: PathBuf, value: &str) -> Result<(), GroupsError> {
    let open = fs::OpenOptions::new().write(true).open(&file);
    open.and_then(|mut file| file.write_all(value.as_bytes())).map_err(|source| GroupsError::Write {
        file,
        value: value.to_owned(),
        source,
    })
}

fn record_path(run_dir: &Path) -> PathBuf {
    run_dir.join("cgroups")
}

/// Where a predecessor that was killed had its groups. One that never wrote its record has made none.
pub fn recorded(run_dir: &Path) -> Result<Option<Hierarchies>, GroupsError> {
    let path = record_path(run_dir);
    match fs::read_to_string(&path) {
        // On a disk, and not in /run, a power cut may leave it without its text: nothing of before runs any more.
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => Ok(Some(Hierarchies::from_record(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(GroupsError::Read { path, source }),
    }
}

/// Before the first mkdir of anybody. Whole or not at all: a half-written record would hide groups from the next sweep.
pub fn record(run_dir: &Path, hierarchies: &Hierarchies) -> Result<(), GroupsError> {
    let (path, new) = (record_path(run_dir), run_dir.join("cgroups.new"));
    let written = fs::write(&new, hierarchies.record()).and_then(|()| fs::rename(&new, &path));
    written.map_err(|source| GroupsError::Write { file: path, value: "the record".into(), source })
}

/// What the host says beside its cgroup files.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings {
    pub systemd: bool,
    /// Whether systemd's marks could be seen if there were any: they are root's, before 253, and not a container's root.
    pub sees_marks: bool,
    pub swap: bool,
}

impl Surroundings {
    pub fn look() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            systemd: Path::new("/run/systemd/system").is_dir(),
            sees_marks: text("/proc/self/uid_map").split_whitespace().eq(["0", "0", "4294967295"]),
            swap: text("/proc/swaps").lines().count() > 1,
        }
    }
}

/// Whether every limit can be set below our parents, and stays. Makes and changes nothing.
pub fn check(hierarchies: &Hierarchies, host: Surroundings) -> Result<(), GroupsError> {
    match hierarchies.layout() {
        CgroupLayout::Unified => check_unified(&hierarchies.unified, host),
        CgroupLayout::Split => check_quota(hierarchies.of(Controller::Cpu)),
    }
}

fn check_unified(parent: &Path, host: Surroundings) -> Result<(), GroupsError> {
    // The hierarchy's real root alone has no type, and may hold processes beside groups with controllers.
    let kind = fs::read_to_string(parent.join("cgroup.type")).ok();
    if let Some(kind) = kind.as_deref().map(str::trim).filter(|kind| *kind != "domain") {
        return Err(GroupsError::Threaded { group: parent.to_owned(), kind: kind.to_owned() });
    }
    let available = read(&parent.join("cgroup.controllers"))?;
    if let Some(controller) = Controller::ALL.into_iter().find(|controller| !names(&available, *controller)) {
        return Err(GroupsError::ControllerMissing { controller, group: parent.to_owned(), why: withheld(parent, controller) });
    }
    // Whoever comes later makes the last write of `step_aside` fail.
    if let Some(pid) = another_in(parent)?.filter(|_| kind.is_some()) {
        return Err(GroupsError::NotAlone { pid, group: parent.to_owned() });
    }
    if host.systemd && !parent.ancestors().any(is_delegated) {
        let refused = GroupsError::Undelegated { group: parent.to_owned() };
        if host.sees_marks {
            return Err(refused);
        }
        warn!("{refused} (not sure: in a user namespace its mark cannot be seen)");
    }
    let file = parent.join("memory.swap.max");
    if host.swap && kind.is_some() && !file.exists() {
        return Err(GroupsError::UncountedSwap { file });
    }
    Ok(())
}

fn names(controllers: &str, controller: Controller) -> bool {
    controllers.split_whitespace().any(|name| name == controller.name())
}

/// Who above does not pass a controller on, and what to do about it.
fn withheld(parent: &Path, controller: Controller) -> String {
    let has =
        |group: &&Path| fs::read_to_string(group.join("cgroup.controllers")).is_ok_and(|available| names(&available, controller));
    match parent.ancestors().skip(1).find(has) {
        Some(above) => format!("{} does not pass it on; {CURE}", above.display()),
        None => "the kernel does not offer it in cgroup2; boot without cgroup_disable= on its command line, and where v1 has it \
                 mounted unmount it there"
            .to_owned(),
    }
}

fn is_delegated(group: &Path) -> bool {
    DELEGATED.iter().any(|mark| rustix::fs::getxattr(group, *mark, &mut [0; 8][..]).is_ok())
}

/// In version 1 no group may have a larger share than one above it, and each container begins with one CPU.
fn check_quota(parent: &Path) -> Result<(), GroupsError> {
    for group in parent.ancestors() {
        let number = |file: &str| fs::read_to_string(group.join(file)).ok()?.trim().parse::<i64>().ok();
        let file = "cpu.cfs_quota_us";
        if let (Some(quota @ 0..), Some(period)) = (number(file), number("cpu.cfs_period_us")) {
            if quota < period {
                return Err(GroupsError::SmallQuota { file: group.join(file) });
            }
        }
    }
    Ok(())
}

/// On unified hosts: moves this process into `supervisor/` and hands the controllers to the groups beside it.
pub fn step_aside(hierarchies: &Hierarchies) -> Result<(), GroupsError> {
    if hierarchies.layout() == CgroupLayout::Split {
        return Ok(());
    }
    let parent = &hierarchies.unified;
    let own = parent.join(OWN_GROUP);
    if let Err(source) = fs::create_dir(&own).or_else(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Ok(()),
        _ => Err(error),
    }) {
        return Err(GroupsError::Write { file: own, value: "mkdir".into(), source });
    }
    write(own.join("cgroup.procs"), "0")?;
    let enable: Vec<String> = Controller::ALL.iter().map(|controller| format!("+{controller}")).collect();
    write(parent.join("cgroup.subtree_control"), &enable.join(" ")).map_err(|error| match error {
        GroupsError::Write { source, .. } => {
            let why = match source.raw_os_error() {
                Some(libc::EBUSY) => "another process lives in it",
                Some(libc::EINVAL) => {
                    "the kernel refuses; with CONFIG_RT_GROUP_SCHED it does while real-time processes are elsewhere"
                }
                _ => "the kernel refuses",
            };
            GroupsError::Enable { group: parent.clone(), why, source }
        }
        error => error,
    })
}

/// A process in `group` itself that is not this one.
fn another_in(group: &Path) -> Result<Option<String>, GroupsError> {
    let own = std::process::id().to_string();
    Ok(read(&group.join("cgroup.procs"))?.lines().find(|pid| **pid != own).map(str::to_owned))
}

/// Whether nobody else has a process or a group below `parent`.
fn is_alone(parent: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && entry.file_name() != OWN_GROUP {
            return Ok(false);
        }
    }
    Ok(another_in(&parent.join(OWN_GROUP)).is_ok_and(|another| another.is_none()))
}

/// At a clean stop: leaves the groups as they were found, as far as others let us.
pub fn step_back(run_dir: &Path, hierarchies: &Hierarchies) {
    let parent = &hierarchies.unified;
    // Another instance may have been started in the same group, and at the root everybody was: whoever takes the controllers
    // away takes the limits of all groups there, and the kernel lets us. Then it is theirs to clean.
    if hierarchies.layout() == CgroupLayout::Unified && is_alone(parent).unwrap_or(false) {
        let disable: Vec<String> = Controller::ALL.iter().map(|controller| format!("-{controller}")).collect();
        let _ = write(parent.join("cgroup.subtree_control"), &disable.join(" "))
            .and_then(|()| write(parent.join("cgroup.procs"), "0"))
            .map(|()| fs::remove_dir(parent.join(OWN_GROUP)));
    }
    let _ = umount(&private_mount(run_dir));
    let _ = fs::remove_dir(private_mount(run_dir));
    let _ = fs::remove_file(record_path(run_dir));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that behaves like our parent on a unified host, as far as it is written to.
    fn unified(files: &[(&str, &str)]) -> (tempfile::TempDir, Hierarchies) {
        let parent = tempfile::tempdir().unwrap();
        fs::create_dir(parent.path().join(OWN_GROUP)).unwrap();
        for (name, content) in files {
            fs::write(parent.path().join(name), content).unwrap();
        }
        let hierarchies = Hierarchies { unified: parent.path().to_owned(), v1: vec![] };
        (parent, hierarchies)
    }

    /// No systemd, no swap.
    const PLAIN: Surroundings = Surroundings { systemd: false, sees_marks: true, swap: false };
    const WELL: [(&str, &str); 4] = [
        ("cgroup.controllers", "cpu memory pids\n"),
        ("cgroup.type", "domain\n"),
        ("cgroup.procs", ""),
        ("memory.swap.max", "max\n"),
    ];

    /// The refusal of a parent where one file is otherwise.
    fn refusal(name: &str, content: &str, host: Surroundings) -> String {
        let mut files = WELL.to_vec();
        files.retain(|(other, _)| *other != name);
        files.push((name, content));
        let (_parent, hierarchies) = unified(&files);
        check(&hierarchies, host).unwrap_err().to_string()
    }

    #[test]
    fn a_group_in_which_limits_cannot_be_set_or_would_not_stay_is_refused_by_its_reason() {
        let (parent, hierarchies) = unified(&WELL);
        check(&hierarchies, PLAIN).unwrap();
        let systemd = Surroundings { systemd: true, ..PLAIN };
        let unseen = Surroundings { sees_marks: false, ..systemd };
        check(&hierarchies, unseen).unwrap();
        assert!(check(&hierarchies, systemd).unwrap_err().to_string().contains("Delegate=yes"));
        rustix::fs::setxattr(parent.path(), DELEGATED[1], b"1", rustix::fs::XattrFlags::empty()).unwrap();
        check(&hierarchies, systemd).unwrap();
        let swap = Surroundings { swap: true, ..PLAIN };
        check(&hierarchies, swap).unwrap();
        fs::remove_file(parent.path().join("memory.swap.max")).unwrap();
        assert!(check(&hierarchies, swap).unwrap_err().to_string().contains("swapaccount"));

        assert!(refusal("cgroup.procs", "1\n", PLAIN).contains("another process (1)"));
        for kind in ["threaded", "domain threaded", "domain invalid"] {
            assert!(refusal("cgroup.type", &format!("{kind}\n"), PLAIN).contains(&format!("is {kind:?}")));
        }
        for lacking in Controller::ALL {
            let rest = Controller::ALL.map(Controller::name).join(" ").replace(lacking.name(), "io");
            assert!(refusal("cgroup.controllers", &rest, PLAIN).contains(&format!("the controller {lacking} is not available")));
        }
    }

    #[test]
    fn who_withholds_a_controller_is_named() {
        let (above, _) = unified(&[("cgroup.controllers", "cpu memory pids\n")]);
        let parent = above.path().join("slice/unit");
        fs::create_dir_all(&parent).unwrap();
        fs::write(above.path().join("slice/cgroup.controllers"), "cpu pids\n").unwrap();
        let told = withheld(&parent, Controller::Memory);
        assert!(told.starts_with(&format!("{} does not pass it on", above.path().display())), "{told}");
        assert!(withheld(&parent, Controller::Pids).starts_with(&format!("{}/slice does not", above.path().display())));
        assert!(withheld(Path::new("/nowhere/at/all"), Controller::Cpu).contains("cgroup_disable="));
    }

    #[test]
    fn a_quota_of_less_than_one_cpu_is_refused_where_the_kernel_would_refuse_each_containers() {
        let (above, _) = unified(&[("cpu.cfs_period_us", "100000\n"), ("cpu.cfs_quota_us", "-1\n")]);
        let unit = above.path().join("unit");
        fs::create_dir(&unit).unwrap();
        check_quota(&unit).unwrap();
        fs::write(above.path().join("cpu.cfs_quota_us"), "50000\n").unwrap();
        assert!(matches!(check_quota(&unit), Err(GroupsError::SmallQuota { file }) if file.starts_with(above.path())));
        fs::write(above.path().join("cpu.cfs_quota_us"), "100000\n").unwrap();
        check_quota(&unit).unwrap();
    }

    #[test]
    fn controllers_that_another_one_needs_stay() {
        let run_dir = tempfile::tempdir().unwrap();
        let own = std::process::id().to_string();
        for (procs, other_group, taken) in [(&*own, None, true), (&*own, Some("kiln-b-1-1"), false), ("1", None, false)] {
            let (parent, hierarchies) = unified(&[("cgroup.subtree_control", "cpu memory pids"), ("cgroup.procs", "")]);
            fs::write(parent.path().join(OWN_GROUP).join("cgroup.procs"), procs).unwrap();
            other_group.iter().for_each(|name| fs::create_dir(parent.path().join(name)).unwrap());
            step_back(run_dir.path(), &hierarchies);
            let left = fs::read_to_string(parent.path().join("cgroup.subtree_control")).unwrap();
            assert_eq!(left.contains("-memory"), taken, "{procs} {other_group:?}");
        }
    }
}
