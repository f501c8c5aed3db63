//! Cgroups: which hierarchies there are, which controllers, and whether kilnd's group is its own.

use std::path::{Path, PathBuf};

use super::finding::{Finding, broken, ok, warn};
use super::host::Host;
use crate::hierarchy::{Controller, Hierarchies, HierarchyError};
use crate::wire::launcher::CgroupLayout;

const SCOPE: &str =
    "start kilnd as a service with Delegate=yes, or by hand: systemd-run --scope -p Delegate=yes kilnd --config FILE";

pub fn checks(host: &Host) -> Vec<Finding> {
    let read = |file: &str| host.text(file).unwrap_or_default();
    let mounts = read("/proc/self/mountinfo");
    let groups = match kilnd(host) {
        Some(pid) => read(&format!("/proc/{pid}/cgroup")),
        None => read("/proc/self/cgroup"),
    };
    match Hierarchies::detect(&mounts, &groups) {
        Ok(found) if found.layout() == CgroupLayout::Unified => unified(host, &found.unified, &mounts),
        Ok(found) => vec![
            ok("cgroups", format!("hybrid: limits in v1, births and ends in cgroup2 at {}", found.unified.display())),
            ok("controllers", "memory, cpu, cpuacct and pids, in v1"),
        ],
        Err(HierarchyError::NoUnified) => without_unified(&mounts),
        Err(error @ HierarchyError::ControllerMissing(_)) => vec![broken(
            "cgroups",
            error.to_string(),
            "mount it, or boot with systemd.unified_cgroup_hierarchy=1, or without cgroup_disable= on the kernel's command line",
        )],
        Err(error) => vec![broken(
            "cgroups",
            error.to_string(),
            "start kilnd where its own group can be seen: on the host itself, or in a container with a cgroup namespace of its own",
        )],
    }
}

fn kilnd(host: &Host) -> Option<u32> {
    host.kilnd.status.as_ref().map(|status| status.server_pid).filter(|pid| *pid > 0)
}

fn without_unified(mounts: &str) -> Vec<Finding> {
    let v1 = |name: &str| {
        let has = |options: &str| options.split(',').any(|option| option == name);
        mounts.lines().filter_map(|line| line.split_once(" - cgroup ")).any(|(_, rest)| rest.rsplit(' ').next().is_some_and(has))
    };
    let lacking: Vec<&str> = Controller::ALL.iter().map(|controller| controller.name()).filter(|name| !v1(name)).collect();
    match lacking.len() {
        0 => {
            vec![ok("cgroups", "v1; kilnd mounts cgroup2 for itself"), ok("controllers", "memory, cpu, cpuacct and pids, in v1")]
        }
        4 => vec![broken("cgroups", "none are mounted", "mount -t cgroup2 none /sys/fs/cgroup")],
        _ => vec![broken(
            "cgroups",
            format!("v1 without {}", lacking.join(", ")),
            "mount the missing controllers, or boot with systemd.unified_cgroup_hierarchy=1",
        )],
    }
}

/// `own` is the group below which containers get theirs: kilnd's where it runs, else the one that we are in.
fn unified(host: &Host, own: &Path, mounts: &str) -> Vec<Finding> {
    let mut found = vec![ok("cgroups", format!("unified (cgroup2), kilnd's group would be {}", own.display()))];
    let runs = kilnd(host).is_some();
    if runs {
        found[0].found = format!("unified (cgroup2), kilnd's group is {}", own.display());
    }
    let controllers = |group: &Path, file: &str| host.text(group.join(file)).unwrap_or_default();
    let lacking = |text: &str| -> Vec<&'static str> {
        let has = |name: &str| text.split_whitespace().any(|found| found == name);
        Controller::UNIFIED.iter().map(|controller| controller.name()).filter(|name| !has(name)).collect()
    };

    let top = root(mounts);
    let kernel = lacking(&controllers(&top, "cgroup.controllers"));
    if !kernel.is_empty() {
        found.push(broken(
            "controllers",
            format!("the kernel offers no {} in {}", kernel.join(", "), top.display()),
            "boot without cgroup_disable= on the kernel's command line; where v1 has them mounted, unmount them there",
        ));
        return found;
    }
    found.push(ok("controllers", "memory, cpu and pids"));
    let (handed, is_root) = (lacking(&controllers(own, "cgroup.controllers")), !host.exists(own.join("cgroup.type")));
    let others = host.text(own.join("cgroup.procs")).unwrap_or_default().lines().count();
    found.push(if runs {
        let enabled = lacking(&controllers(own, "cgroup.subtree_control"));
        match enabled.is_empty() {
            true => ok("delegation", format!("{} passes memory, cpu and pids on", own.display())),
            false => broken("delegation", format!("{} does not pass {} on", own.display(), enabled.join(", ")), SCOPE),
        }
    } else if is_root || handed.is_empty() && others <= 1 {
        ok("delegation", format!("kilnd can be started from {}", own.display()))
    } else {
        // Nothing is wrong with the host: a login's group is no place for a service.
        warn("delegation", format!("kilnd cannot be started from this shell: {} is not its own", own.display()), SCOPE)
    });
    found
}

/// Where cgroup2 is mounted.
fn root(mounts: &str) -> PathBuf {
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    mount.and_then(|line| line.split(' ').nth(4)).unwrap_or("/sys/fs/cgroup").into()
}
