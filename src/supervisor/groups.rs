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
    // The hierarchy's real root alone has no type, and may hold processes beside groups with controllers. Looked at before
    // anything is made, so that a refusal leaves nothing; whoever comes later makes the last write fail.
    let is_root = !parent.join("cgroup.type").exists();
    if let Some(pid) = another_in(parent)?.filter(|_| !is_root) {
        return Err(GroupsError::NotAlone { pid, group: parent.clone() });
    }
    let own = parent.join(OWN_GROUP);
    if let Err(source) = fs::create_dir(&own).or_else(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Ok(()),
        _ => Err(error),
    }) {
        return Err(GroupsError::Write { file: own, value: "mkdir".into(), source });
    }
    write(own.join("cgroup.procs"), "0")?;
    let enable: Vec<String> = Controller::UNIFIED.iter().map(|controller| format!("+{controller}")).collect();
    write(parent.join("cgroup.subtree_control"), &enable.join(" "))
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
        let disable: Vec<String> = Controller::UNIFIED.iter().map(|controller| format!("-{controller}")).collect();
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

    #[test]
    fn a_group_with_somebody_else_in_it_is_left_as_it_was() {
        let files = [("cgroup.controllers", "cpu memory pids\n"), ("cgroup.type", "domain\n"), ("cgroup.procs", "1\n")];
        let (parent, hierarchies) = unified(&files);
        fs::remove_dir(parent.path().join(OWN_GROUP)).unwrap();
        assert!(matches!(step_aside(&hierarchies), Err(GroupsError::NotAlone { pid, .. }) if pid == "1"));
        assert!(!parent.path().join(OWN_GROUP).exists());
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
