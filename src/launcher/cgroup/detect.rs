//! Which hierarchies there are, and which group in each is our parent.
//!
//! Pure: the texts of `/proc/self/mountinfo` and `/proc/self/cgroup` are arguments.

use std::path::{Path, PathBuf};

use crate::wire::launcher::CgroupLayout;

/// The group that our containers' groups are made in, in each hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parents {
    /// In cgroup2: birth, freeze, kill, events; on unified hosts limits and statistics too.
    pub unified: PathBuf,
    pub split: Option<SplitParents>,
}

/// Version 1 hierarchies, which have the limits and statistics where they are mounted. Two of these are the same
/// directory where controllers are mounted together (`cpu,cpuacct`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitParents {
    pub memory: PathBuf,
    pub cpu: PathBuf,
    pub cpuacct: PathBuf,
    pub pids: PathBuf,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DetectError {
    #[error("cgroup2 is not mounted")]
    NoCgroup2,
    #[error("controller {0} is in no version 1 hierarchy, though others are: kiln wants all in one version")]
    ControllerMissing(&'static str),
    #[error("our group {group} of {hierarchy} lies outside of what is mounted at {mount}")]
    Outside { hierarchy: String, group: String, mount: PathBuf },
}

/// On unified hosts kilnd has moved itself here, since a group with controllers may hold no processes of its own.
const OWN_GROUP: &str = "supervisor";

impl Parents {
    pub fn detect(mountinfo: &str, own_groups: &str) -> Result<Self, DetectError> {
        let mounts: Vec<Mounted> = mountinfo.lines().filter_map(Mounted::parse).collect();
        let cgroup2 = mounts.iter().find(|mount| mount.version2()).ok_or(DetectError::NoCgroup2)?;
        let own = |hierarchy: &str| own_group(own_groups, hierarchy);
        let unified = cgroup2.directory("", own("").unwrap_or("/"))?;

        let v1 = |controller: &'static str| {
            let mount = mounts.iter().find(|mount| mount.controls(controller));
            mount.map(|mount| mount.directory(controller, own(controller).unwrap_or("/"))).transpose()
        };
        let found = [v1("memory")?, v1("cpu")?, v1("cpuacct")?, v1("pids")?];
        let [memory, cpu, cpuacct, pids] = match found {
            [None, None, None, None] => return Ok(Self { unified: above_own_group(unified), split: None }),
            found => found,
        };
        let missing = DetectError::ControllerMissing;
        let split = SplitParents {
            memory: memory.ok_or(missing("memory"))?,
            cpu: cpu.ok_or(missing("cpu"))?,
            cpuacct: cpuacct.ok_or(missing("cpuacct"))?,
            pids: pids.ok_or(missing("pids"))?,
        };
        Ok(Self { unified, split: Some(split) })
    }

    pub fn layout(&self) -> CgroupLayout {
        if self.split.is_some() { CgroupLayout::Split } else { CgroupLayout::Unified }
    }
}

fn above_own_group(group: PathBuf) -> PathBuf {
    match group.parent() {
        Some(parent) if group.ends_with(OWN_GROUP) => parent.to_owned(),
        _ => group,
    }
}

/// Our group in the hierarchy of `controller` (version 2: the empty name): `id:controllers:path`.
fn own_group<'a>(own_groups: &'a str, controller: &str) -> Option<&'a str> {
    own_groups.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|name| name == controller).then_some(path)
    })
}

/// One cgroup mount of mountinfo: proc_pid_mountinfo(5).
struct Mounted<'a> {
    /// The group that is seen at `point`; not `/` inside of containers.
    root: PathBuf,
    point: PathBuf,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mounted<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, point) = (before.next()?, before.next()?);
        let mut after = after.split(' ');
        let (kind, options) = (after.next()?, after.nth(1)?);
        matches!(kind, "cgroup" | "cgroup2").then(|| Self { root: unescape(root), point: unescape(point), kind, options })
    }

    fn version2(&self) -> bool {
        self.kind == "cgroup2"
    }

    fn controls(&self, controller: &str) -> bool {
        self.kind == "cgroup" && self.options.split(',').any(|option| option == controller)
    }

    fn directory(&self, controller: &str, group: &str) -> Result<PathBuf, DetectError> {
        match Path::new(group).strip_prefix(&self.root) {
            Ok(below) if below.as_os_str().is_empty() => Ok(self.point.clone()),
            Ok(below) if !group.contains("/../") => Ok(self.point.join(below)),
            _ => {
                let hierarchy = if controller.is_empty() { "cgroup2" } else { controller }.to_owned();
                Err(DetectError::Outside { hierarchy, group: group.to_owned(), mount: self.point.clone() })
            }
        }
    }
}

/// mountinfo writes blanks, tabs, line ends and backslashes as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut path = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('\\') {
        path.push_str(before);
        let code = behind.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => path.push(code.into()),
            None => path.push('\\'),
        }
        rest = if code.is_some() { &behind[3..] } else { behind };
    }
    path.push_str(rest);
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn a_hybrid_host_has_limits_in_version_1_and_the_rest_in_version_2() {
        let own = "8:pids:/\n4:memory:/jobs/7\n2:cpu,cpuacct:/system.slice/kiln.service\n0::/system.slice/kiln.service";
        let parents = Parents::detect(HYBRID, own).unwrap();
        assert_eq!(parents.layout(), CgroupLayout::Split);
        assert_eq!(parents.unified, Path::new("/sys/fs/cgroup/unified/system.slice/kiln.service"));
        let split = parents.split.unwrap();
        assert_eq!(split.memory, Path::new("/sys/fs/cgroup/memory/jobs/7"));
        assert_eq!(split.cpu, split.cpuacct);
        assert_eq!(split.pids, Path::new("/sys/fs/cgroup/pids"));
    }

    #[test]
    fn on_a_unified_host_the_parent_is_above_the_supervisors_own_group() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        let own = "0::/system.slice/kiln.service/supervisor";
        let parents = Parents::detect(mounts, own).unwrap();
        assert_eq!(parents, Parents { unified: "/sys/fs/cgroup/system.slice/kiln.service".into(), split: None });
    }

    #[test]
    fn version_1_alone_is_told_apart() {
        let without_v2 = HYBRID.lines().filter(|line| !line.contains("cgroup2")).collect::<Vec<_>>().join("\n");
        assert_eq!(Parents::detect(&without_v2, "").unwrap_err(), DetectError::NoCgroup2);
    }

    #[test]
    fn a_controller_that_is_nowhere_is_named() {
        let without_memory = HYBRID.lines().filter(|line| !line.contains("memory")).collect::<Vec<_>>().join("\n");
        assert_eq!(Parents::detect(&without_memory, "").unwrap_err(), DetectError::ControllerMissing("memory"));
    }

    #[test]
    fn a_group_is_sought_below_the_mounted_one() {
        let mounts = "30 23 0:26 /docker/1 /sys/fs/cg\\040roup rw - cgroup2 cgroup2 rw";
        let at = |own| Parents::detect(mounts, own).map(|parents| parents.unified);
        assert_eq!(at("0::/docker/1/a").unwrap(), Path::new("/sys/fs/cg roup/a"));
        assert!(matches!(at("0::/elsewhere").unwrap_err(), DetectError::Outside { .. }));
    }
}
