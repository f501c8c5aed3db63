//! What a container is and uses at this moment, for people: from its plan, its groups and /proc. Wakes nobody.
//!
//! Runs in a launcher between two orders, so it is bounded: the files of /proc are a few, and of processes with open files only
//! the first [`MOST_LOOKED_AT`] are counted.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::Resource;

use crate::launcher::cgroup::Groups;
use crate::launcher::plan::{Content, Mount, Plan, oci};
use crate::wire::launcher::{CgroupPath, Description, MappedId, Mounted, Namespace, Usage};

/// Each costs as much as it has files open, of which the limit is 1,024.
const MOST_LOOKED_AT: usize = 32;

/// The description, and the OCI runtime configuration in a file without a name.
pub fn describe(plan: &Plan, groups: &Groups, init: u32) -> io::Result<(Description, OwnedFd)> {
    let usage = usage(plan, groups);
    let cgroups = cgroups(init)?;
    let text = memfd_create(c"config.json", MFdFlags::MFD_CLOEXEC)?;
    let spec = oci::spec(&as_it_is(plan, &usage, &cgroups)).map_err(io::Error::other)?;
    // oci-spec writes JSON by itself, but only to a path.
    spec.save(format!("/proc/self/fd/{}", text.as_raw_fd())).map_err(io::Error::other)?;
    let ids = plan.maps.uids.iter().zip(&plan.maps.gids);
    let description = Description {
        init,
        namespaces: namespaces(init)?,
        ids: ids.map(|(uid, gid)| MappedId { uid_inside: uid.inside, gid_inside: gid.inside, outside: uid.outside }).collect(),
        cgroups,
        mounts: plan.mounts.iter().map(mounted).collect(),
        usage,
    };
    Ok((description, text))
}

/// The plan with what has changed since: the server slows the CPU down after the init. And the whole path of the group.
fn as_it_is(plan: &Plan, usage: &Usage, cgroups: &[CgroupPath]) -> Plan {
    let mut plan = plan.clone();
    if let Some(quota) = usage.cpu_quota_us {
        plan.limits.cpu_quota = Duration::from_micros(quota);
        plan.limits.cpu_burst = plan.limits.cpu_burst.min(plan.limits.cpu_quota);
    }
    if let Some(CgroupPath { path, .. }) = cgroups.iter().find(|group| group.hierarchy == UNIFIED) {
        plan.cgroup.clone_from(path);
    }
    plan
}

/// As the links of /proc/PID/ns say.
fn namespaces(init: u32) -> io::Result<Vec<Namespace>> {
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
    let inode = |kind: &str| -> io::Result<u64> {
        let link = fs::read_link(format!("/proc/{init}/ns/{kind}"))?;
        let text = link.to_string_lossy();
        let number = text.rsplit_once('[').and_then(|(_, number)| number.strip_suffix(']')?.parse().ok());
        number.ok_or_else(|| io::ErrorKind::InvalidData.into())
    };
    kinds.into_iter().map(|kind| Ok(Namespace { kind: kind.to_owned(), inode: inode(kind)? })).collect()
}

const UNIFIED: &str = "unified";
/// What is ours among the hierarchies of version 1; the others are the host's own affair.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// `4:cpu,cpuacct:/path`, a line each; cgroup2 has no name.
fn cgroups(init: u32) -> io::Result<Vec<CgroupPath>> {
    let text = fs::read_to_string(format!("/proc/{init}/cgroup"))?;
    let line = |line: &str| {
        let (names, path) = line.split_once(':')?.1.split_once(':')?;
        let ours = names.is_empty() || names.split(',').any(|name| CONTROLLERS.contains(&name));
        let hierarchy = if names.is_empty() { UNIFIED } else { names }.to_owned();
        ours.then(|| CgroupPath { hierarchy, path: path.to_owned() })
    };
    Ok(text.lines().filter_map(line).collect())
}

fn mounted(mount: &Mount) -> Mounted {
    let (kind, what) = match &mount.content {
        Content::Root(tree) => ("tree", tree.to_string()),
        Content::Devices => ("devices", String::new()),
        Content::Code(code) => ("code", code.to_string()),
        Content::Layers(layers) => ("layers", layers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
        Content::Tmp(size) => ("tmp", format!("{} MiB", size.bytes() >> 20)),
        Content::Processes => ("proc", String::new()),
    };
    let options = oci::options(mount.attributes).join(",");
    Mounted { at: mount.at.to_owned(), kind: kind.to_owned(), what, options }
}

fn usage(plan: &Plan, groups: &Groups) -> Usage {
    let processes = groups.processes();
    let open = |pid: &u32| Some(fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")).ok()?.count() as u64);
    let limit = plan.rlimits.iter().find(|limit| limit.resource == Resource::RLIMIT_NOFILE).and_then(|limit| limit.soft);
    Usage {
        processes: u32::try_from(processes.len()).unwrap_or(u32::MAX),
        open_files: processes.iter().take(MOST_LOOKED_AT).filter_map(open).max(),
        open_files_limit: limit,
        ..groups.usage()
    }
}
