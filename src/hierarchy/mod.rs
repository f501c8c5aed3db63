//! Where our cgroups go: which hierarchies this host has, and which directory in each is our parent.
//!
//! A word, used by the supervisor (records the parents, sweeps below them) and by the launchers (make containers'
//! groups there). Pure: texts of the kernel in, paths out; nothing here opens a file.
//!
//! Our parent in each hierarchy is the group that the supervisor was started in, so that whoever started us (a
//! systemd unit, a scope, a container engine) keeps its limits on everything that is ours.
//!
//! ```text
//! unified   every controller in cgroup2                                       parent: own group (supervisor/ stepped out of)
//! split     limits and statistics in v1 (memory, cpu, pids);                  parents: own group of each hierarchy
//!           birth, freeze, kill and CPU time in cgroup2, which carries no controller
//! ```
//!
//! `run_dir/cgroups` holds the same as text, one line per controller: `<controller or "unified"> <absolute directory>`.
//! It is written before the first mkdir, so that a sweep after SIGKILL knows every place to look at.

mod ceiling;
pub mod optional;

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

pub use self::ceiling::{Ceiling, four_fifths};
use crate::wire::launcher::CgroupLayout;

/// The group below ours where kilnd's own processes live on unified hosts, since a group with controllers enabled for
/// its children must hold no process itself (cgroups(7), "no internal processes").
/// The same name as systemd's usual `DelegateSubgroup=`.
pub const OWN_GROUP: &str = "supervisor";

/// What systemd writes on a group that it leaves to others (`Delegate=yes`), as an extended attribute; the second one since 253,
/// readable without privilege. From a group without it systemd takes controllers back, and their limits with them: 252 does so
/// at its next daemon-reload (seen: `cgroup.subtree_control` of a scope was empty afterwards).
pub const DELEGATED: [&str; 2] = ["trusted.delegate", "user.delegate"];

/// What Kiln needs to limit and to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    Memory,
    Cpu,
    Pids,
}

impl Controller {
    /// On unified hosts what `cgroup.subtree_control` has to name. cpuacct is not among them: cgroup2 counts the CPU time of its
    /// groups on every host, controllers or not.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Cpu, Self::Pids];

    /// As the kernel spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The parents of our groups. A directory appears twice where v1 controllers are mounted together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchies {
    /// Our parent in cgroup2.
    pub unified: PathBuf,
    /// Our parents in v1; empty on unified hosts, all of [`Controller::ALL`] on others.
    pub v1: Vec<(Controller, PathBuf)>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HierarchyError {
    /// The supervisor cures this by mounting it privately.
    #[error("cgroup2 is not mounted")]
    NoUnified,
    #[error("the v1 cgroup controller {0} is not mounted, although others are; {MISSING_V1}")]
    ControllerMissing(Controller),
    #[error("our own cgroup {group:?} of {hierarchy} is not visible below any of its mounts; {OUTSIDE}")]
    GroupOutside { hierarchy: String, group: String },
    #[error("{hierarchy} is mounted read-only at {point}, so no group can be made there; {READ_ONLY}")]
    ReadOnly { hierarchy: String, point: PathBuf },
    #[error("line {0:?} of the record of cgroups is wrong")]
    Record(String),
}

const MISSING_V1: &str =
    "boot with systemd.unified_cgroup_hierarchy=1, or mount it, or boot without cgroup_disable= on the kernel's command line";
const OUTSIDE: &str =
    "start kilnd where its own group can be seen: on the host itself, or in a container with a cgroup namespace of its own";
const READ_ONLY: &str = "no ProtectControlGroups= in kilnd's unit; in somebody else's container have it mounted writable, \
                         with a cgroup namespace of its own";

impl Hierarchies {
    /// From the texts of `/proc/self/mountinfo` and `/proc/self/cgroup`, read by the supervisor.
    pub fn detect(mountinfo: &str, own_groups: &str) -> Result<Self, HierarchyError> {
        let mounts = visible(mountinfo);
        let unified = parent(&mounts, own_groups, Hierarchy::Unified)?.ok_or(HierarchyError::NoUnified)?;
        let mut v1 = Vec::new();
        let mut missing = None;
        for controller in Controller::ALL {
            match parent(&mounts, own_groups, Hierarchy::V1(controller))? {
                Some(path) => v1.push((controller, path)),
                None => missing = missing.or(Some(controller)),
            }
        }
        match missing {
            Some(_) if v1.is_empty() => Ok(Self { unified: out_of_own_group(unified), v1 }),
            Some(controller) => Err(HierarchyError::ControllerMissing(controller)),
            None => Ok(Self { unified, v1 }),
        }
    }

    pub fn layout(&self) -> CgroupLayout {
        if self.v1.is_empty() { CgroupLayout::Unified } else { CgroupLayout::Split }
    }

    /// The parent of the groups that carry `controller`'s limits and statistics.
    pub fn of(&self, controller: Controller) -> &Path {
        self.v1.iter().find(|(found, _)| *found == controller).map_or(&self.unified, |(_, path)| path)
    }

    /// Every parent once, cgroup2's first.
    pub fn parents(&self) -> Vec<&Path> {
        let mut parents = vec![self.unified.as_path()];
        for (_, path) in &self.v1 {
            if !parents.contains(&path.as_path()) {
                parents.push(path);
            }
        }
        parents
    }

    /// The text of `run_dir/cgroups`.
    pub fn record(&self) -> String {
        let mut text = format!("unified {}\n", self.unified.display());
        for (controller, path) in &self.v1 {
            text += &format!("{controller} {}\n", path.display());
        }
        text
    }

    /// From the text of `run_dir/cgroups`.
    pub fn from_record(text: &str) -> Result<Self, HierarchyError> {
        let mut unified = None;
        let mut v1 = Vec::new();
        for line in text.lines() {
            let wrong = || HierarchyError::Record(line.to_owned());
            let (name, path) = line.split_once(' ').filter(|(_, path)| path.starts_with('/')).ok_or_else(wrong)?;
            match Controller::ALL.into_iter().find(|controller| controller.name() == name) {
                Some(controller) => v1.push((controller, PathBuf::from(path))),
                None if name == "unified" => unified = Some(PathBuf::from(path)),
                // Of a kilnd that counted CPU time there; nothing that runs is in those groups once cgroup2's are killed.
                None if name == "cpuacct" => {}
                None => return Err(wrong()),
            }
        }
        Ok(Self { unified: unified.ok_or(HierarchyError::NoUnified)?, v1 })
    }
}

/// The mounts of hierarchies that a path can still lead to: what was mounted over one of them (a read-only copy of itself, as
/// sandboxes do) hides it.
fn visible(mountinfo: &str) -> Vec<Mount> {
    let all: Vec<Place> = mountinfo.lines().filter_map(Place::parse).collect();
    let is_hidden = |place: &Place| {
        let mut chain = vec![place.id];
        let mut above = place.parent;
        while let Some(parent) = all.iter().find(|other| other.id == above).filter(|_| !chain.contains(&above)) {
            chain.push(parent.id);
            above = parent.parent;
        }
        // Mounted before `place`, it would be among those that `place` is mounted on.
        let covers =
            |other: &Place| chain.contains(&other.parent) && !chain.contains(&other.id) && place.point.starts_with(&other.point);
        all.iter().any(covers)
    };
    mountinfo.lines().filter(|line| Place::parse(line).is_some_and(|place| !is_hidden(&place))).filter_map(Mount::parse).collect()
}

/// Where a mount of any kind is, and on which other.
struct Place {
    id: u32,
    parent: u32,
    point: PathBuf,
}

impl Place {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(' ');
        let (id, parent) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Self { id, parent, point: unescape(fields.nth(2)?) })
    }
}

/// One mounted hierarchy of either version.
struct Mount {
    /// The group that is seen at `point` (`/` unless a container engine or a bind mount shows a part only).
    root: PathBuf,
    point: PathBuf,
    read_only: bool,
    /// `None` is cgroup2; else v1's controllers.
    controllers: Option<Vec<String>>,
}

impl Mount {
    /// One line of mountinfo, proc_pid_mountinfo(5): `id parent dev root point options [tags…] - type source super`.
    fn parse(line: &str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point) = (unescape(left.next()?), unescape(left.next()?));
        let of_mount = left.next()?;
        let mut right = right.split(' ');
        let (kind, of_superblock) = (right.next()?, right.nth(1)?);
        let controllers = match kind {
            "cgroup2" => None,
            "cgroup" => Some(of_superblock.split(',').map(str::to_owned).collect()),
            _ => return None,
        };
        let read_only = [of_mount, of_superblock].iter().any(|options| options.split(',').any(|option| option == "ro"));
        Some(Self { root, point, read_only, controllers })
    }
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[derive(Clone, Copy)]
enum Hierarchy {
    Unified,
    V1(Controller),
}

impl Hierarchy {
    fn is(self, controllers: Option<&[&str]>) -> bool {
        match (self, controllers) {
            (Self::Unified, None) => true,
            (Self::V1(controller), Some(names)) => names.contains(&controller.name()),
            _ => false,
        }
    }
}

/// Our own group of one hierarchy as a directory; `None` where the hierarchy is not mounted.
fn parent(mounts: &[Mount], own_groups: &str, hierarchy: Hierarchy) -> Result<Option<PathBuf>, HierarchyError> {
    let shows = |mount: &&Mount| {
        let names = mount.controllers.as_ref().map(|names| names.iter().map(String::as_str).collect::<Vec<_>>());
        hierarchy.is(names.as_deref())
    };
    let mounts: Vec<&Mount> = mounts.iter().filter(shows).collect();
    if mounts.is_empty() {
        return Ok(None);
    }
    // A hierarchy without a line has never had a group but its root.
    let group = own_groups.lines().find_map(|line| own_group(line, hierarchy)).unwrap_or("/");
    let visible = |mount: &&Mount| {
        let below = Path::new(group).strip_prefix(&mount.root).ok()?;
        // A group outside of our cgroup namespace is written with "..".
        let plain = below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        // `join("")` would add a slash at the end.
        plain.then(|| if below.as_os_str().is_empty() { mount.point.clone() } else { mount.point.join(below) })
    };
    let name = || match hierarchy {
        Hierarchy::Unified => "cgroup2".to_owned(),
        Hierarchy::V1(controller) => controller.to_string(),
    };
    if let Some(found) = mounts.iter().filter(|mount| !mount.read_only).find_map(visible) {
        return Ok(Some(found));
    }
    match mounts.iter().find(|mount| visible(mount).is_some()) {
        Some(mount) => Err(HierarchyError::ReadOnly { hierarchy: name(), point: mount.point.clone() }),
        None => Err(HierarchyError::GroupOutside { hierarchy: name(), group: group.to_owned() }),
    }
}

/// One line of `/proc/self/cgroup`, `number:controllers:group`, if it is of this hierarchy.
fn own_group(line: &str, hierarchy: Hierarchy) -> Option<&str> {
    let mut fields = line.splitn(3, ':');
    let (number, controllers, group) = (fields.next()?, fields.next()?, fields.next()?);
    let names: Vec<&str> = controllers.split(',').collect();
    let controllers = if number == "0" { None } else { Some(names.as_slice()) };
    hierarchy.is(controllers).then_some(group)
}

/// systemd (254 and newer, `DelegateSubgroup=supervisor`) has already put us one group further down, and so has an earlier start of ours.
fn out_of_own_group(group: PathBuf) -> PathBuf {
    match group.parent() {
        Some(parent) if group.ends_with(OWN_GROUP) => parent.to_owned(),
        _ => group,
    }
}

#[cfg(test)]
mod tests;
