//! Cgroups: which hierarchies there are, which controllers, whether kilnd's group is its own, and what the kernel can do beyond the least.
//!
//! What is broken here the supervisor refuses to start with, by the same reason.

use std::path::{Path, PathBuf};

use super::finding::{Finding, broken, ok, warn};
use super::host::Host;
use crate::hierarchy::optional::{OPTIONAL, Optional};
use crate::hierarchy::{Controller, DELEGATED, Hierarchies, HierarchyError};
use crate::wire::launcher::CgroupLayout;

const SCOPE: &str =
    "start kilnd as a service with Delegate=yes, or by hand: systemd-run --scope -p Delegate=yes kilnd --config FILE";

pub fn checks(host: &Host) -> Vec<Finding> {
    let (mounts, groups) = texts(host);
    let seen = Hierarchies::detect(&mounts, &groups);
    let of_host = |found: &Hierarchies| [swap(host, found), optional(host, found), pressure(host, found)];
    match seen {
        Ok(found) => {
            let mut findings = match found.layout() {
                CgroupLayout::Unified => unified(host, &found.unified, &mounts),
                CgroupLayout::Split => {
                    let shown = format!("hybrid: limits in v1, births and ends in cgroup2 at {}", found.unified.display());
                    split(host, &found, shown)
                }
            };
            findings.extend(of_host(&found));
            findings
        }
        Err(HierarchyError::NoUnified) => match hierarchies(host) {
            Some(found) => {
                let mut findings = split(host, &found, "v1; kilnd mounts cgroup2 for itself".into());
                findings.extend(of_host(&found));
                findings
            }
            None => vec![without_unified(&mounts)],
        },
        // What was found, then its cure, in the supervisor's words.
        Err(error) => {
            let text = error.to_string();
            let (found, cure) = text.split_once("; ").unwrap_or((&text, SCOPE));
            vec![broken("cgroups", found, cure)]
        }
    }
}

/// Where containers' groups are, or would be if kilnd were started from here.
pub fn hierarchies(host: &Host) -> Option<Hierarchies> {
    let (mut mounts, groups) = texts(host);
    match Hierarchies::detect(&mounts, &groups) {
        Err(HierarchyError::NoUnified) => {
            // As kilnd has it, where nobody else sees it.
            mounts += "0 0 0:0 / /kilnd rw - cgroup2 none rw\n";
            Hierarchies::detect(&mounts, &groups).ok().filter(|found| found.layout() == CgroupLayout::Split)
        }
        found => found.ok(),
    }
}

/// Mounts, and the groups of kilnd where it runs, else our own.
fn texts(host: &Host) -> (String, String) {
    let read = |file: &str| host.text(file).unwrap_or_default();
    let groups = match kilnd(host) {
        Some(pid) => read(&format!("/proc/{pid}/cgroup")),
        None => read("/proc/self/cgroup"),
    };
    (read("/proc/self/mountinfo"), groups)
}

fn split(host: &Host, found: &Hierarchies, shown: String) -> Vec<Finding> {
    let mut findings = vec![ok("cgroups", shown), ok("controllers", "memory, cpu and pids, in v1")];
    for group in found.of(Controller::Cpu).ancestors() {
        let number = |file: &str| host.text(group.join(file)).ok()?.trim().parse::<i64>().ok();
        if let (Some(quota @ 0..), Some(period)) = (number("cpu.cfs_quota_us"), number("cpu.cfs_period_us")) {
            if quota < period {
                let found = format!("{} leaves less than one CPU: v1 then refuses each container its own quota", group.display());
                findings.push(broken("cpu-quota", found, "raise CPUQuota= of kilnd's unit or slice to 100% at least"));
            }
        }
    }
    findings
}

/// A function must not use more memory than it has by way of the swap.
fn swap(host: &Host, found: &Hierarchies) -> Finding {
    if host.text("/proc/swaps").unwrap_or_default().lines().count() < 2 {
        return ok("swap", "this host has none");
    }
    let group = found.of(Controller::Memory);
    let (file, limit) = match found.layout() {
        CgroupLayout::Unified => ("memory.swap.max", "memory.max"),
        CgroupLayout::Split => ("memory.memsw.limit_in_bytes", "memory.limit_in_bytes"),
    };
    let cure = "boot without swapaccount=0, or swapoff -a";
    match found.layout() {
        _ if host.exists(group.join(file)) || !host.exists(group.join(limit)) => {
            ok("swap", "the host's; functions get none of it")
        }
        CgroupLayout::Unified => {
            broken("swap", format!("the host has some, and no {file}: a function could use more memory than it has"), cure)
        }
        CgroupLayout::Split => {
            warn("swap", format!("the host has some, and no {file}: only swappiness 0 keeps functions out of it"), cure)
        }
    }
}

/// What Kiln uses where it is there.
fn optional(host: &Host, found: &Hierarchies) -> Finding {
    let (mut there, mut lacking) = (Vec::new(), Vec::new());
    for row in OPTIONAL {
        match has(host, found, &row) {
            Some(true) => there.push(row.what),
            Some(false) => lacking.push(row),
            None => {}
        }
    }
    if lacking.is_empty() {
        return ok("optional", there.join(", "));
    }
    let words: Vec<String> = lacking.iter().map(|row| format!("no {} ({})", row.what, row.without)).collect();
    let since: Vec<String> = lacking.iter().map(|row| format!("{} ({}.{})", row.what, row.since.0, row.since.1)).collect();
    let cure = format!("Kiln works without; to have it, boot a kernel with {}, not switched off", since.join(", "));
    warn("optional", words.join("; "), cure)
}

/// `None`: it cannot be seen from here, or there is no such thing in this layout.
fn has(host: &Host, found: &Hierarchies, row: &Optional) -> Option<bool> {
    if let Some((file, word)) = row.host {
        return match host.text(file) {
            Ok(text) => Some(text.trim().split(',').any(|found| word.is_empty() || found == word)),
            Err(_) => word.is_empty().then_some(false),
        };
    }
    let file = row.file(found.layout())?;
    // A group without the controller (the root's, and a login's) has none of its files.
    let (controller, always) = match (file.split('.').next()?, found.layout()) {
        ("cpu", CgroupLayout::Unified) => (Controller::Cpu, "cpu.max"),
        ("cpu", CgroupLayout::Split) => (Controller::Cpu, "cpu.cfs_quota_us"),
        (_, CgroupLayout::Unified) => (Controller::Memory, "memory.max"),
        (_, CgroupLayout::Split) => (Controller::Memory, "memory.limit_in_bytes"),
    };
    let group = found.of(controller);
    host.exists(group.join(always)).then(|| host.exists(group.join(file)))
}

/// In the last minute, per cent of the time in which somebody waited; from here on functions take longer for want of memory.
const SHORT_OF_MEMORY: f64 = 10.0;

/// Our group's where it has its own, else the host's.
fn pressure(host: &Host, found: &Hierarchies) -> Finding {
    let read = |what: &str| {
        let own = (kilnd(host).is_some() && found.layout() == CgroupLayout::Unified)
            .then(|| host.text(found.unified.join(format!("{what}.pressure"))).ok())
            .flatten();
        let whose = if own.is_some() { "in kilnd's group" } else { "on the host" };
        some_avg60(&own.or_else(|| host.text(format!("/proc/pressure/{what}")).ok())?).map(|share| (share, whose))
    };
    let (Some((memory, whose)), Some((cpu, _))) = (read("memory"), read("cpu")) else {
        return ok("pressure", "this kernel does not tell (CONFIG_PSI, psi=1)");
    };
    let found = format!("{whose} somebody waits for memory {memory:.1} % of the time, for a CPU {cpu:.1} % (last minute)");
    if memory < SHORT_OF_MEMORY {
        return ok("pressure", found);
    }
    warn("pressure", found, "a lower memory_budget_mib, or more memory; kiln pool --sort memory shows who holds it")
}

/// proc_pressure: `some avg10=0.00 avg60=0.12 avg300=0.05 total=1234`
fn some_avg60(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    line.split(' ').find_map(|field| field.strip_prefix("avg60="))?.parse().ok()
}

fn kilnd(host: &Host) -> Option<u32> {
    host.kilnd.status.as_ref().map(|status| status.server_pid).filter(|pid| *pid > 0)
}

/// Neither cgroup2 nor all of v1.
fn without_unified(mounts: &str) -> Finding {
    let v1 = |name: &str| {
        let has = |options: &str| options.split(',').any(|option| option == name);
        mounts.lines().filter_map(|line| line.split_once(" - cgroup ")).any(|(_, rest)| rest.rsplit(' ').next().is_some_and(has))
    };
    let lacking: Vec<&str> = Controller::ALL.iter().map(|controller| controller.name()).filter(|name| !v1(name)).collect();
    if lacking.len() == Controller::ALL.len() {
        return broken("cgroups", "none are mounted", "mount -t cgroup2 none /sys/fs/cgroup");
    }
    broken(
        "cgroups",
        format!("v1 without {}", lacking.join(", ")),
        "mount the missing controllers, or boot with systemd.unified_cgroup_hierarchy=1",
    )
}

/// `own` is the group below which containers get theirs: kilnd's where it runs, else the one that we are in.
fn unified(host: &Host, own: &Path, mounts: &str) -> Vec<Finding> {
    let mut found = vec![ok("cgroups", format!("unified (cgroup2), kilnd's group would be {}", own.display()))];
    let runs = kilnd(host).is_some();
    if runs {
        found[0].found = format!("unified (cgroup2), kilnd's group is {}", own.display());
    } else if host.systemd.as_ref().is_some_and(|systemd| systemd.service().is_installed()) {
        found[0].found = "unified (cgroup2)".into();
    }
    let controllers = |group: &Path, file: &str| host.text(group.join(file)).unwrap_or_default();
    let lacking = |text: &str| -> Vec<&'static str> {
        let has = |name: &str| text.split_whitespace().any(|found| found == name);
        Controller::ALL.iter().map(|controller| controller.name()).filter(|name| !has(name)).collect()
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
    let kind = host.text(own.join("cgroup.type")).unwrap_or_default();
    let left_to_us = host.systemd.is_none() || own.ancestors().any(|group| is_delegated(host, group));
    let unit = host
        .systemd
        .as_ref()
        .map(|systemd| (systemd.service.as_str(), systemd.service()))
        .filter(|(_, unit)| unit.is_installed());
    let others = host.text(own.join("cgroup.procs")).unwrap_or_default().lines().count();
    if kind.contains("threaded") || kind.contains("invalid") {
        let seen = format!("{} is {:?}, where neither memory nor processes can be limited", own.display(), kind.trim());
        found.push(if runs { broken("delegation", seen, SCOPE) } else { warn("delegation", seen, SCOPE) });
        return found;
    }
    found.push(if runs {
        let enabled = lacking(&controllers(own, "cgroup.subtree_control"));
        if !enabled.is_empty() {
            let seen = format!("{} does not pass {} on: functions run without these limits", own.display(), enabled.join(", "));
            broken("delegation", seen, SCOPE)
        } else if left_to_us {
            ok("delegation", format!("{} passes memory, cpu and pids on", own.display()))
        } else {
            let seen =
                format!("systemd does not leave {} to kilnd, and may take the limits of running functions back", own.display());
            broken("delegation", seen, SCOPE)
        }
    } else if let Some((name, unit)) = unit {
        match unit.get("Delegate") {
            "no" => warn("delegation", format!("{name} has no group of its own"), SCOPE),
            _ => ok("delegation", format!("{name} will have a group of its own")),
        }
    } else if left_to_us && (is_root || handed.is_empty() && others <= 1) {
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

fn is_delegated(host: &Host, group: &Path) -> bool {
    DELEGATED.iter().any(|mark| rustix::fs::getxattr(host.path(group), *mark, &mut [0; 8][..]).is_ok())
}
