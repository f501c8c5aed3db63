//! The supervisor's own cgroups: finds the parents of all groups, records them, and moves out of the way.
//!
//! Groups of containers are made by launchers, below the parents found here ([`crate::hierarchy`]).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::mount::{MsFlags, mount, umount};

use crate::hierarchy::{Controller, Hierarchies, HierarchyError, OWN_GROUP};
use crate::wire::launcher::CgroupLayout;

/// Printed with every refusal that a delegated scope cures.
const CURE: &str = "start kilnd in a group of its own: systemd-run --scope -p Delegate=yes kilnd …";

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
    #[error("the controller {controller} is not available in {group}; {CURE}")]
    ControllerMissing { controller: Controller, group: PathBuf },
    #[error("another process ({pid}) lives in our group {group}, so no limits can be set below it; {CURE}")]
    NotAlone { pid: String, group: PathBuf },
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

/// On unified hosts: moves this process into `supervisor/` and hands the controllers to the groups beside it.
pub fn step_aside(hierarchies: &Hierarchies) -> Result<(), GroupsError> {
    if hierarchies.layout() == CgroupLayout::Split {
        return Ok(());
    }
    let parent = &hierarchies.unified;
    let available = read(&parent.join("cgroup.controllers"))?;
    if let Some(controller) =
        Controller::UNIFIED.into_iter().find(|controller| !available.split_whitespace().any(|name| name == controller.name()))
    {
        return Err(GroupsError::ControllerMissing { controller, group: parent.clone() });
    }
    let own = parent.join(OWN_GROUP);
    if let Err(source) = fs::create_dir(&own).or_else(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Ok(()),
        _ => Err(error),
    }) {
        return Err(GroupsError::Write { file: own, value: "mkdir".into(), source });
    }
    write(own.join("cgroup.procs"), "0")?;
    // The hierarchy's real root alone has no type, and may hold processes beside groups with controllers.
    let is_root = !parent.join("cgroup.type").exists();
    let left = read(&parent.join("cgroup.procs"))?;
    if let Some(pid) = left.lines().next().filter(|_| !is_root) {
        return Err(GroupsError::NotAlone { pid: pid.to_owned(), group: parent.clone() });
    }
    let enable: Vec<String> = Controller::UNIFIED.iter().map(|controller| format!("+{controller}")).collect();
    write(parent.join("cgroup.subtree_control"), &enable.join(" "))
}

/// At a clean stop: leaves the groups as they were found, as far as others let us.
pub fn step_back(run_dir: &Path, hierarchies: &Hierarchies) {
    if hierarchies.layout() == CgroupLayout::Unified {
        let parent = &hierarchies.unified;
        let disable: Vec<String> = Controller::UNIFIED.iter().map(|controller| format!("-{controller}")).collect();
        // Each fails where another instance or systemd uses the same group; then it is theirs to clean.
        let _ = write(parent.join("cgroup.subtree_control"), &disable.join(" "))
            .and_then(|()| write(parent.join("cgroup.procs"), "0"))
            .map(|()| fs::remove_dir(parent.join(OWN_GROUP)));
    }
    let _ = umount(&private_mount(run_dir));
    let _ = fs::remove_dir(private_mount(run_dir));
    let _ = fs::remove_file(record_path(run_dir));
}
