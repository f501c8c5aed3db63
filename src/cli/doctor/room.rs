//! Room: disk and inodes below the directories, descriptors and memory for what the configuration promises.

use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};

use super::finding::{Finding, broken, needs_root, ok, warn};
use super::host::Host;
use super::systemd::{Systemd, Unit};
use crate::config::Config;
use crate::hierarchy::{Ceiling, four_fifths};

const MIB: u64 = 1 << 20;

/// A function of Lambda's largest size is 50 MB of zip and 250 MB unpacked.
const ENOUGH: Need = Need { bytes: 1024 * MIB, inodes: 20_000 };
/// Below this, not even a small one can be stored.
const LEAST: Need = Need { bytes: 64 * MIB, inodes: 1000 };
/// Sockets, locks, two short texts.
const FOR_RUN: Need = Need { bytes: MIB / 4, inodes: 32 };

/// What one environment costs the server, callers' connections, and everything else it has open.
const DESCRIPTORS_EACH: u64 = 16;
const DESCRIPTORS_BESIDE: u64 = 2048 + 256;
/// What the supervisor asks for where it was given less.
const DESCRIPTORS_ASKED: u64 = 65_536;

struct Need {
    bytes: u64,
    inodes: u64,
}

pub fn checks(host: &Host, config: &Config) -> Vec<Finding> {
    vec![
        directory(host, "run-dir", "run_dir", &config.run_dir, &FOR_RUN, &FOR_RUN),
        directory(host, "state-dir", "state_dir", &config.state_dir, &LEAST, &ENOUGH),
        descriptors(host, config),
        memory(host, config),
    ]
}

fn directory(host: &Host, check: &'static str, key: &'static str, path: &Path, least: &Need, enough: &Need) -> Finding {
    let there = nearest(host, path);
    let shown = path.display();
    let on_host = |found: &Path| Path::new("/").join(found.strip_prefix(&host.root).unwrap_or(found));
    let finding = match std::fs::metadata(&there) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => needs_root(check, shown.to_string()),
        Err(error) => {
            broken(check, format!("{} cannot be looked at: {error}", on_host(&there).display()), "mend that, or choose another")
        }
        Ok(about) if !about.is_dir() => {
            let found = format!("{} is no directory", on_host(&there).display());
            broken(check, found, format!("move it away, or set {key} in the configuration to another path"))
        }
        Ok(_) => {
            let made = if there == host.path(path) { "" } else { " (will be made)" };
            space(check, key, &format!("{shown}{made}"), &there, least, enough)
        }
    };
    finding.about(key)
}

fn space(check: &'static str, key: &str, shown: &str, at: &Path, least: &Need, enough: &Need) -> Finding {
    let Ok(room) = statvfs(at) else {
        return broken(check, format!("{shown}: its file system does not answer"), "mount it again, or choose another");
    };
    if room.f_flag.contains(StatVfsMountFlags::RDONLY) {
        let found = format!("{shown} is on a file system that is mounted read-only");
        return broken(check, found, format!("mount it writable, or set {key} in the configuration to another path"));
    }
    let bytes = room.f_bavail.saturating_mul(room.f_frsize);
    // Some file systems make inodes as they need them, and count none.
    let inodes = if room.f_files == 0 { u64::MAX } else { room.f_favail };
    let fits = |need: &Need| bytes >= need.bytes && inodes >= need.inodes;
    let counted = if inodes == u64::MAX { String::new() } else { format!(" and {inodes} inodes") };
    let found = format!("{shown}, {}{counted} free", size(bytes));
    let cure = || format!("make room there (df -h, df -i), or set {key} in the configuration to a larger disk");
    match (fits(enough), fits(least)) {
        (true, _) => ok(check, found),
        (false, true) => warn(check, format!("{found}: one function may need 300 MB"), cure()),
        (false, false) => broken(check, format!("{found}: nothing can be stored"), cure()),
    }
}

fn size(bytes: u64) -> String {
    match bytes / MIB {
        mib @ 10_240.. => format!("{} GB", mib / 1024),
        0 => format!("{} KB", bytes / 1024),
        mib => format!("{mib} MB"),
    }
}

/// The path itself, or the nearest directory above it that is there.
fn nearest(host: &Host, path: &Path) -> PathBuf {
    let mut at = host.path(path);
    while std::fs::symlink_metadata(&at).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) && at != host.root {
        if !at.pop() {
            break;
        }
    }
    at
}

/// A running server tells its own; one that is started raises what it is given as far as the kernel lets root.
fn descriptors(host: &Host, config: &Config) -> Finding {
    let running = host.kilnd.status.as_ref().and_then(|status| status.descriptors);
    let most = host.text("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok()).unwrap_or(u64::MAX);
    // The unit's where there is one: it starts kilnd, and not this shell.
    let unit = host.systemd.as_ref().map(Systemd::service).filter(Unit::is_installed);
    let given = unit.map_or(host.descriptors, |unit| unit.number("LimitNOFILE").unwrap_or(most));
    let limit = running.unwrap_or_else(|| given.max(DESCRIPTORS_ASKED).min(most));
    let needed = u64::from(config.concurrency) * DESCRIPTORS_EACH + DESCRIPTORS_BESIDE;
    let room = limit.saturating_sub(DESCRIPTORS_BESIDE) / DESCRIPTORS_EACH;
    let found = format!("{limit} descriptors: room for {room} environments; concurrency is {}", config.concurrency);
    let cure = format!(
        "LimitNOFILE={needed} in kilnd's unit (by hand: ulimit -n {needed}; and sysctl -w fs.nr_open={needed} where that is lower), or a lower concurrency"
    );
    let finding = if limit >= needed {
        ok("descriptors", found)
    } else if room >= u64::from(config.parallel_starts) {
        warn("descriptors", found, cure)
    } else {
        broken("descriptors", found, cure)
    };
    finding.about("concurrency")
}

fn memory(host: &Host, config: &Config) -> Finding {
    let text = host.text("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    let Some(total) = kib.map(|kib| kib / 1024) else {
        return warn("memory", "/proc/meminfo tells no MemTotal", "mount /proc").about("memory_budget_mib");
    };
    let ceiling = ceiling(host).filter(|ceiling| ceiling.bytes >> 20 < total);
    let room = ceiling.as_ref().map_or(total, |ceiling| ceiling.bytes >> 20);
    let budget = match config.memory_budget_mib {
        0 => four_fifths(total << 20, ceiling.as_ref()) >> 20,
        mib => mib,
    };
    let found = match &ceiling {
        None => format!("{budget} of the host's {total} MiB for functions"),
        Some(limit) => format!("{budget} of the {room} MiB that {} allows, for functions", limit.file.display()),
    };
    let finding = if budget > room {
        let cure = format!("set memory_budget_mib to at most {}: the kernel would kill what it finds", room / 5 * 4);
        warn("memory", found, cure)
    } else if budget < 256 {
        warn("memory", found, "more memory: a function of 128 MB may need twice as much while its /tmp fills")
    } else {
        ok("memory", found)
    };
    finding.about("memory_budget_mib")
}

/// The limit on whatever kilnd runs in or will be started in: its group, its unit, or else our own group.
fn ceiling(host: &Host) -> Option<Ceiling> {
    let unit = host.systemd.as_ref().filter(|systemd| systemd.service().is_installed() && host.kilnd.status.is_none());
    if let Some(systemd) = unit {
        return systemd.memory_limit().map(|(bytes, file)| Ceiling { bytes, file: file.into() });
    }
    super::cgroups::hierarchies(host)?.memory_ceiling(|file| host.text(file).ok())
}
