//! Control groups: where a container is born, limited, counted, frozen and killed.
//!
//! Only this room makes them, below the parents that [`crate::hierarchy`] names, and only it removes them (the supervisor's sweep
//! does for a launcher that was killed). cgroup2 is always there: birth, freeze, kill and events go
//! through it on every host, and it counts CPU time. On hybrid and version 1 hosts the version 1 hierarchies give limits and
//! statistics of memory, and the child joins them itself.
//!
//! A group that was killed is never used again: after one write to `cgroup.kill`, newer kernels kill every later child that is
//! born into it by CLONE_INTO_CGROUP.

mod limits;
mod usage;

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

pub use limits::Limits;

use crate::hierarchy::{Controller, Hierarchies};
use crate::kill_point;
use crate::wire::launcher::{CgroupLayout, ContainerId, Handle, Usage};

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("create cgroup {path}", path = path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("open {path}", path = path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("read {file}", file = file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("write {value:?} to {file}", file = file.display())]
    Write { file: PathBuf, value: String, source: io::Error },
    #[error("limit {what} in {group}", group = group.display())]
    Limit { group: PathBuf, what: &'static str, source: Box<cgroups_rs::fs::error::Error> },
    #[error("{file} is {found:?} after {value} was written", file = file.display())]
    NotTaken { file: PathBuf, value: u64, found: String, source: io::Error },
    #[error("{MOST_VISITS} have entered this container, and are in it still")]
    Visits { source: io::Error },
    #[error("a cgroup stays busy")]
    Busy { source: io::Error },
    #[error("remove cgroup {path}", path = path.display())]
    Remove { path: PathBuf, source: io::Error },
}

impl CgroupError {
    fn limit(group: &Path, what: &'static str) -> impl FnOnce(cgroups_rs::fs::error::Error) -> Self {
        move |source| Self::Limit { group: group.to_owned(), what, source: Box::new(source) }
    }
}

/// The groups of one container, one in each hierarchy.
#[derive(Debug)]
pub struct Groups {
    unified: PathBuf,
    /// As in [`Hierarchies`]: empty on unified hosts; a directory appears twice where controllers are mounted together.
    v1: Vec<(Controller, PathBuf)>,
    /// Groups below `unified` for those who entered; gone with the rest, or when there are too many.
    visits: Vec<PathBuf>,
    /// How many there were.
    entered: u32,
}

/// The group of somebody who entered: the container's own below which it lies counts and limits them, this one ends them alone.
#[derive(Debug)]
pub struct Visit {
    /// For CLONE_INTO_CGROUP.
    pub birthplace: OwnedFd,
    /// `cgroup.kill`, open for writing.
    pub kill: File,
}

/// At once. Each has a process at least, which counts as one of the function's.
const MOST_VISITS: usize = 16;

/// `kiln-<instance>-<container>`: what the supervisor's sweep looks for.
pub fn name(instance: &str, container: ContainerId) -> String {
    format!("kiln-{instance}-{container}")
}

/// What [`Groups::remove`] could do.
#[derive(Debug, PartialEq, Eq)]
pub enum Removed {
    All,
    /// Something in there has not quite ended; once more, later.
    NotYet,
}

impl Groups {
    pub fn create(parents: &Hierarchies, name: &str) -> Result<Self, CgroupError> {
        let v1 = parents.v1.iter().map(|(controller, parent)| (*controller, parent.join(name))).collect();
        let groups = Self { unified: parents.unified.join(name), v1, visits: Vec::new(), entered: 0 };
        let mut made = Vec::new();
        for path in groups.directories() {
            if let Err(source) = fs::create_dir(path) {
                // Nobody is in these yet. What cannot be removed all the same is the next sweep's.
                made.iter().for_each(|path: &&PathBuf| drop(fs::remove_dir(path)));
                return Err(CgroupError::Create { path: path.clone(), source });
            }
            made.push(path);
        }
        Ok(groups)
    }

    pub fn layout(&self) -> CgroupLayout {
        if self.v1.is_empty() { CgroupLayout::Unified } else { CgroupLayout::Split }
    }

    /// The group that has `controller`'s files.
    fn of(&self, controller: Controller) -> &Path {
        self.v1.iter().find(|(found, _)| *found == controller).map_or(&self.unified, |(_, path)| path)
    }

    /// All limits but the weight.
    pub fn limit(&self, limits: &Limits) -> Result<(), CgroupError> {
        limits::apply(self, limits)
    }

    /// The weight against others when the CPUs are busy; groups are made with one CPU's.
    pub fn weigh(&self, limits: &Limits) -> Result<(), CgroupError> {
        limits::weigh(self, limits)
    }

    /// The cgroup2 directory, for CLONE_INTO_CGROUP.
    pub fn birthplace(&self) -> Result<OwnedFd, CgroupError> {
        open_path(&self.unified)
    }

    /// `tasks` of each version 1 hierarchy, for [`join`]; opened by the launcher, since in the child the host's files
    /// are about to go away.
    pub fn tasks(&self) -> Result<Vec<File>, CgroupError> {
        self.v1_directories().into_iter().map(|group| open_for_writing(group.join("tasks"))).collect()
    }

    /// Everything that the server freezes, kills, feeds and reads this container with.
    pub fn handles(&self) -> Result<Vec<(Handle, OwnedFd)>, CgroupError> {
        let unified = |file: &str| open_for_writing(self.unified.join(file)).map(OwnedFd::from);
        let mut handles = vec![
            (Handle::CgroupDir, open_path(&self.unified)?),
            (Handle::CgroupKill, unified("cgroup.kill")?),
            (Handle::CgroupFreeze, unified("cgroup.freeze")?),
        ];
        let (quota, burst, weight) = match self.layout() {
            CgroupLayout::Unified => ("cpu.max", "cpu.max.burst", "cpu.weight"),
            CgroupLayout::Split => ("cpu.cfs_quota_us", "cpu.cfs_burst_us", "cpu.shares"),
        };
        let cpu = self.of(Controller::Cpu);
        handles.push((Handle::CpuQuota, open_for_writing(cpu.join(quota))?.into()));
        handles.push((Handle::CpuWeight, open_for_writing(cpu.join(weight))?.into()));
        if cpu.join(burst).exists() {
            handles.push((Handle::CpuBurst, open_for_writing(cpu.join(burst))?.into()));
        }
        if self.layout() == CgroupLayout::Split {
            handles.push((Handle::MemoryDir, open_path(self.of(Controller::Memory))?));
        }
        Ok(handles)
    }

    /// A group for somebody who enters. It has no controller, so that the container's own limits hold, and its processes may stay
    /// where they are: a group without controllers may have processes beside groups (cgroups(7)).
    pub fn visit(&mut self) -> Result<Visit, CgroupError> {
        if self.visits.len() >= MOST_VISITS {
            // Who has left has left an empty group.
            self.visits.retain(|path| fs::remove_dir(path).is_err_and(|error| error.kind() != io::ErrorKind::NotFound));
        }
        if self.visits.len() >= MOST_VISITS {
            return Err(CgroupError::Visits { source: io::Error::from_raw_os_error(libc::EUSERS) });
        }
        self.entered += 1;
        let path = self.unified.join(format!("visit-{}", self.entered));
        fs::create_dir(&path).map_err(|source| CgroupError::Create { path: path.clone(), source })?;
        self.visits.push(path.clone());
        Ok(Visit { birthplace: open_path(&path)?, kill: open_for_writing(path.join("cgroup.kill"))? })
    }

    pub fn usage(&self) -> Usage {
        usage::read(self)
    }

    /// Processes of the host's numbering that are in there, those who entered included.
    pub fn processes(&self) -> Vec<u32> {
        let members = |group: &PathBuf| fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        let groups = std::iter::once(&self.unified).chain(&self.visits);
        groups.map(members).flat_map(|text| text.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()).collect()
    }

    /// Kills everything inside, frozen or not.
    pub fn kill(&self) -> Result<(), CgroupError> {
        let file = self.unified.join("cgroup.kill");
        fs::write(&file, "1").map_err(|source| CgroupError::Write { file, value: "1".into(), source })
    }

    /// Removes what is there. A group is busy until the last of its processes is gone for good.
    pub fn remove(&self) -> Result<Removed, CgroupError> {
        let mut removed = Removed::All;
        // Inner ones first: a group with groups below it is busy.
        for path in self.visits.iter().chain(self.directories()) {
            match fs::remove_dir(path) {
                Ok(()) => {
                    kill_point!("after-rmdir-one");
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => removed = Removed::NotYet,
                Err(source) => return Err(CgroupError::Remove { path: path.clone(), source }),
            }
        }
        Ok(removed)
    }

    fn directories(&self) -> Vec<&PathBuf> {
        let mut all = self.v1_directories();
        all.push(&self.unified);
        all
    }

    /// Each once, though controllers may be mounted together.
    fn v1_directories(&self) -> Vec<&PathBuf> {
        let mut all: Vec<_> = self.v1.iter().map(|(_, path)| path).collect();
        all.sort();
        all.dedup();
        all
    }
}

/// Child: joins the version 1 groups. "0" is the writer itself: a single thread that moves itself waits for nobody, while a pid written from
/// outside costs a grace period of 5 to 15 ms.
pub fn join(tasks: &[File]) -> Result<(), CgroupError> {
    for file in tasks {
        rustix::io::write(file, b"0").map_err(|errno| CgroupError::Write {
            file: "tasks".into(),
            value: "0".into(),
            source: errno.into(),
        })?;
    }
    Ok(())
}

fn open_path(path: &Path) -> Result<OwnedFd, CgroupError> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| CgroupError::Open { path: path.to_owned(), source: errno.into() })
}

fn open_for_writing(path: PathBuf) -> Result<File, CgroupError> {
    fs::OpenOptions::new().write(true).open(&path).map_err(|source| CgroupError::Open { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::function::{Memory, TmpSize};

    /// A directory that behaves like a cgroup file system as far as limits are concerned: files that keep what was written.
    fn host(layout: CgroupLayout) -> (tempfile::TempDir, Hierarchies) {
        let root = tempfile::tempdir().unwrap();
        let parent = |name: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let v1 = match layout {
            CgroupLayout::Unified => Vec::new(),
            CgroupLayout::Split => vec![
                (Controller::Memory, parent("memory")),
                // Some host's pids controller is mounted together with another.
                (Controller::Cpu, parent("cpu,pids")),
                (Controller::Pids, parent("cpu,pids")),
            ],
        };
        let parents = Hierarchies { unified: parent("unified"), v1 };
        (root, parents)
    }

    fn files(directory: &Path, files: &[(&str, &str)]) {
        for (name, content) in files {
            fs::write(directory.join(name), content).unwrap();
        }
    }

    fn limits() -> Limits {
        Limits::of(Memory::from_mib(256).unwrap(), TmpSize::DEFAULT)
    }

    fn read(path: PathBuf) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn version_2_gets_its_limits_in_its_own_words() {
        let (_root, parents) = host(CgroupLayout::Unified);
        let groups = Groups::create(&parents, "kiln-test-1-1").unwrap();
        let group = parents.unified.join("kiln-test-1-1");
        files(&group, &[("memory.swap.max", "max"), ("cpu.max", "max 100000"), ("cpu.max.burst", "0")]);
        groups.limit(&limits()).unwrap();
        groups.weigh(&limits()).unwrap();
        let found = ["memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max", "cpu.max.burst", "cpu.weight"]
            .map(|file| read(group.join(file)));
        assert_eq!(found, ["805306368", "0", "1", "1025", "100000 100000", "100000", "100"]);
    }

    #[test]
    fn version_1_gets_its_limits_in_its_own_words() {
        let (_root, parents) = host(CgroupLayout::Split);
        let groups = Groups::create(&parents, "kiln-test-1-2").unwrap();
        let (memory, cpu, pids) = (groups.of(Controller::Memory), groups.of(Controller::Cpu), groups.of(Controller::Pids));
        files(memory, &[("memory.memsw.limit_in_bytes", "9223372036854771712")]);
        files(cpu, &[("cpu.cfs_burst_us", "0")]);
        groups.limit(&limits()).unwrap();
        groups.weigh(&limits()).unwrap();
        assert_eq!(read(memory.join("memory.limit_in_bytes")), "805306368");
        assert_eq!(read(memory.join("memory.memsw.limit_in_bytes")), "805306368");
        assert_eq!(read(pids.join("pids.max")), "1025");
        assert_eq!(read(cpu.join("cpu.shares")), "1024");
        assert_eq!(read(cpu.join("cpu.cfs_quota_us")), "100000");
        assert!(!memory.join("memory.oom.group").exists());
    }

    #[test]
    fn controllers_mounted_together_have_one_group() {
        let (_root, parents) = host(CgroupLayout::Split);
        let groups = Groups::create(&parents, "kiln-test-1-3").unwrap();
        assert_eq!(groups.directories().len(), 3);
        assert_eq!(groups.remove().unwrap(), Removed::All);
        assert!(groups.directories().iter().all(|group| !group.exists()));
    }

    #[test]
    fn groups_of_those_who_entered_are_removed_before_the_containers_and_are_not_without_number() {
        let (_root, parents) = host(CgroupLayout::Split);
        let mut groups = Groups::create(&parents, "kiln-test-1-5").unwrap();
        for number in 1..=MOST_VISITS {
            // As the kernel does with the directory; but a file is no group, and a directory with one cannot be removed.
            let entered = groups.visit();
            assert!(matches!(entered, Err(CgroupError::Open { .. })), "there is no cgroup.kill here: {entered:?}");
            // Somebody is in it: what is not empty cannot be removed.
            fs::create_dir(groups.unified.join(format!("visit-{number}/somebody"))).unwrap();
        }
        assert!(matches!(groups.visit(), Err(CgroupError::Visits { .. })));
        // One has left, and another comes; the group is a new one, since nobody is born into one that was killed.
        fs::remove_dir(groups.unified.join("visit-3/somebody")).unwrap();
        assert!(matches!(groups.visit(), Err(CgroupError::Open { .. })));
        assert!(!groups.unified.join("visit-3").exists() && groups.unified.join("visit-17").exists());
        assert!(matches!(groups.visit(), Err(CgroupError::Open { .. })), "the one before was empty");
        for number in (1..=MOST_VISITS).filter(|number| *number != 3) {
            fs::remove_dir(groups.unified.join(format!("visit-{number}/somebody"))).unwrap();
        }
        assert_eq!(groups.remove().unwrap(), Removed::All);
        assert!(!groups.unified.exists());
    }

    #[test]
    fn what_is_used_is_read_in_the_words_of_either_version() {
        let (_root, parents) = host(CgroupLayout::Unified);
        let groups = Groups::create(&parents, "kiln-test-1-6").unwrap();
        let v2 = [
            ("cgroup.events", "populated 1\nfrozen 1\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.events", "oom 3\noom_kill 2\n"),
            ("pids.current", "7\n"),
            ("cpu.max", "7235 100000\n"),
            ("cpu.stat", "usage_usec 55\nnr_throttled 4\nthrottled_usec 9\n"),
        ];
        files(&parents.unified.join("kiln-test-1-6"), &v2);
        let used = groups.usage();
        assert!(used.frozen);
        assert_eq!((used.memory, used.memory_limit, used.oom_kills, used.tasks), (Some(4096), None, Some(2), Some(7)));
        assert_eq!((used.cpu_us, used.cpu_quota_us, used.cpu_period_us), (Some(55), Some(7235), Some(100_000)));
        assert_eq!((used.throttled, used.throttled_us), (Some(4), Some(9)));

        let (_root, parents) = host(CgroupLayout::Split);
        let groups = Groups::create(&parents, "kiln-test-1-7").unwrap();
        files(groups.of(Controller::Memory), &[("memory.usage_in_bytes", "8192"), ("memory.oom_control", "oom_kill 1")]);
        let v1 = [("cpu.cfs_quota_us", "-1"), ("cpu.stat", "nr_throttled 1\nthrottled_time 2000\n")];
        files(groups.of(Controller::Cpu), &v1);
        files(&groups.unified, &[("cpu.stat", "usage_usec 70\n")]);
        let used = groups.usage();
        assert_eq!((used.frozen, used.memory, used.oom_kills), (false, Some(8192), Some(1)));
        assert_eq!((used.cpu_us, used.cpu_quota_us, used.throttled_us), (Some(70), None, Some(2)));
    }

    #[test]
    fn a_group_that_cannot_be_made_leaves_none_behind() {
        let (_root, parents) = host(CgroupLayout::Split);
        fs::create_dir(parents.unified.join("kiln-test-1-4")).unwrap();
        // The last of the three exists already, as if another launcher had our number.
        let error = Groups::create(&parents, "kiln-test-1-4").unwrap_err();
        assert!(matches!(error, CgroupError::Create { .. }), "{error}");
        assert!(!parents.of(Controller::Memory).join("kiln-test-1-4").exists());
        assert!(parents.unified.join("kiln-test-1-4").exists(), "not ours to remove");
    }
}
