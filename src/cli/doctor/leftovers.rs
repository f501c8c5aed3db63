//! What a dead instance has left: a count. `scripts/leftovers` names each, and the instance's next start removes them.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::finding::{Finding, needs_root, ok, warn};
use super::host::Host;
use crate::config::Config;

/// The supervisors' list: `<instance> <first_id> <id_count> <run_dir> <state_dir>`, a line each. Root's own.
pub const INSTANCES: &str = "/run/lock/kiln-ids.lock";

const FILES: [&str; 7] = ["kiln.sock", "control.sock", "cgroups", "cgroups.new", "cgroup2", "trees", "lock"];

#[derive(Default)]
struct Instances {
    /// Of those whose lock is held.
    live_names: Vec<String>,
    live_supervisors: Vec<u32>,
    dead: Vec<(PathBuf, PathBuf)>,
}

pub fn check(host: &Host, config: &Config) -> Finding {
    if !host.is_root() {
        return needs_root("leftovers", "processes and directories of others were not searched");
    }
    let instances = instances(host, config);
    let mut counts = Vec::new();
    let mut count = |number: usize, what: &str| {
        if number > 0 {
            counts.push(format!("{what}: {number}"));
        }
    };
    count(processes(host, &instances), "processes");
    count(groups(host, &instances), "cgroups");
    count(files(host, &instances), "files");
    if counts.is_empty() {
        return ok("leftovers", "nothing of a dead instance");
    }
    let cure = "sudo scripts/leftovers names each; start and stop their instance once: it removes what it left";
    warn("leftovers", format!("of dead instances: {}", counts.join(", ")), cure)
}

fn instances(host: &Host, config: &Config) -> Instances {
    let locks = host.text("/proc/locks").unwrap_or_default();
    let mut places = vec![(config.instance.clone(), config.run_dir.clone(), config.state_dir.clone())];
    for line in host.text(INSTANCES).unwrap_or_default().lines() {
        if let [name, _, _, run, state] = line.split(' ').collect::<Vec<_>>()[..] {
            places.push((name.to_owned(), run.into(), state.into()));
        }
    }
    places.sort();
    places.dedup();
    let mut found = Instances::default();
    for (name, run, state) in places {
        match holder(host, &locks, &run) {
            Some(pid) => {
                found.live_names.push(name);
                found.live_supervisors.push(pid);
            }
            None => found.dead.push((run, state)),
        }
    }
    found
}

/// Who runs the instance of this run_dir, by the text of /proc/locks: `1: FLOCK  ADVISORY  WRITE 77 00:1a:5 0 EOF`.
pub fn holder(host: &Host, locks: &str, run_dir: &Path) -> Option<u32> {
    let inode = fs::metadata(host.path(run_dir.join("lock"))).ok()?.ino();
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let ours = fields.get(1) == Some(&"FLOCK") && fields.get(5)?.rsplit(':').next()?.parse() == Ok(inode);
        ours.then(|| fields.get(4)?.parse().ok()).flatten()
    })
}

/// kilnd's and kiln-init's whose ancestors are no supervisor that holds its lock.
fn processes(host: &Host, instances: &Instances) -> usize {
    let mut parents = HashMap::new();
    let mut suspects = Vec::new();
    for entry in fs::read_dir(host.path("/proc")).into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t")).unwrap_or_default();
        parents.insert(pid, field("PPid").trim().parse::<u32>().unwrap_or(0));
        if matches!(field("Name"), "kilnd" | "kiln-init") && !field("State").starts_with('Z') {
            suspects.push(pid);
        }
    }
    let belongs = |mut pid: u32| {
        // A bound: what we read is not of one moment.
        for _ in 0..64 {
            if instances.live_supervisors.contains(&pid) {
                return true;
            }
            pid = parents.get(&pid).copied().unwrap_or(0);
        }
        false
    };
    suspects.into_iter().filter(|pid| !belongs(*pid)).count()
}

/// `kiln-<instance>-<launcher>-<number>`, wherever cgroups are mounted.
fn groups(host: &Host, instances: &Instances) -> usize {
    let mounts = host.text("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    let dead = |name: &str| {
        let rest = name.strip_prefix("kiln-").and_then(|rest| rest.split_once('-'));
        rest.is_some_and(|(instance, _)| !instances.live_names.iter().any(|live| live == instance))
    };
    let mut found = 0;
    let mut open: Vec<PathBuf> = points.map(|point| host.path(point)).collect();
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            match entry.file_name().to_str() {
                Some(name) if name.starts_with("kiln-") && name.matches('-').count() >= 2 => found += usize::from(dead(name)),
                _ => open.push(entry.path()),
            }
        }
    }
    found
}

fn files(host: &Host, instances: &Instances) -> usize {
    let entries = |path: &Path| -> Vec<PathBuf> {
        let listed = fs::read_dir(host.path(path)).into_iter().flatten();
        listed.filter_map(|entry: io::Result<fs::DirEntry>| Some(entry.ok()?.path())).collect()
    };
    let sockets = host.text("/proc/net/unix").unwrap_or_default();
    let mut found = 0;
    for (run, state) in &instances.dead {
        found += FILES.iter().filter(|name| host.exists(run.join(name)) && !is_listened_to(&sockets, &run.join(name))).count();
        found += entries(&state.join("staging")).len();
    }
    found
}

/// Somebody is at this door: systemd, as a rule, which keeps it open while kilnd is stopped. By /proc/net/unix:
/// `0000000000000000: 00000002 00000000 00010000 0001 01 12345 /run/kiln/kiln.sock`, where 10000 is a listener's flag.
fn is_listened_to(sockets: &str, path: &Path) -> bool {
    sockets.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(3) == Some(&"00010000") && fields.get(7).is_some_and(|found| Path::new(found) == path)
    })
}
