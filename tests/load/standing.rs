//! What Kiln holds of the host at a moment, looked at from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::Value;

use crate::host::snapshot::{self, Process, processes};
use crate::host::{self, Instance};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// By role: supervisor, server, launchers.
    pub processes: BTreeMap<&'static str, Held>,
    /// How many of what else there are.
    pub things: BTreeMap<&'static str, u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub memory_kib: u64,
    pub descriptors: u64,
}

/// What each role held, again and again while there was load.
pub type Course = Vec<(Duration, BTreeMap<&'static str, Held>)>;

/// What lies in `state_dir`.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// Names in `code/`, and those that there should be.
    pub code: BTreeSet<String>,
    pub code_named: BTreeSet<String>,
    pub staging: usize,
    pub logs_bytes: u64,
    pub logs_bound: u64,
    pub books_bytes: u64,
}

impl Standing {
    pub fn of(instance: &Instance) -> Self {
        let all = processes();
        let supervisor = instance.supervisor_pid();
        let own = descendants(&all, supervisor);
        let mut standing = Self::default();
        let mut namespaces = BTreeSet::new();
        let mut mounts = 0;
        for process in &own {
            let Some(role) = role(process, supervisor) else { continue };
            let held = standing.processes.entry(role).or_default();
            let pid = process.pid;
            held.memory_kib += status_kib(pid, "RssAnon:");
            for descriptor in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
                held.descriptors += 1;
                let target = fs::read_link(descriptor.path()).unwrap_or_default().display().to_string();
                if target.starts_with("net:[") {
                    namespaces.insert(target);
                }
            }
            mounts += lines(&format!("/proc/{pid}/mountinfo")).len() as u64;
        }
        let dir = instance.dir.path().display().to_string();
        let on_host = lines("/proc/self/mountinfo").iter().filter(|line| line.contains(&dir)).count();
        let ids = instance.first_id..instance.first_id + host::ID_COUNT;
        let in_range = all.iter().filter(|process| ids.contains(&process.uid)).count();
        standing.things = BTreeMap::from([
            ("processes", own.len() as u64),
            ("with our ids", in_range as u64),
            ("cgroups", snapshot::cgroups(&format!("kiln-{}-", instance.name)).len() as u64),
            ("mounts", mounts + on_host as u64),
            ("network namespaces", namespaces.len() as u64),
        ]);
        standing
    }

    /// When nothing changes any more: launchers clear away, and fill their stock, a moment after the last request. Memory is given
    /// back some seconds later; `as_wanted` looks whether it is.
    pub fn at_rest(instance: &Instance, as_wanted: impl Fn(&Self) -> bool) -> Self {
        let end = Instant::now() + host::PATIENCE * host::slower();
        let quiet =
            |standing: &Self| (standing.things.clone(), standing.processes.values().map(|held| held.descriptors).sum::<u64>());
        let mut last = Self::of(instance);
        let mut same = 0;
        // Two seconds, as a launcher on a busy host may pause while it fills its stock.
        while (same < 20 || !as_wanted(&last)) && Instant::now() < end {
            thread::sleep(Duration::from_millis(100)); // the pace of looking
            let now = Self::of(instance);
            same = if quiet(&now) == quiet(&last) { same + 1 } else { 0 };
            last = now;
        }
        last
    }
}

/// Without what only a moment of rest can tell; takes little time.
pub fn held_now(supervisor: u32) -> BTreeMap<&'static str, Held> {
    let mut all: BTreeMap<&'static str, Held> = BTreeMap::new();
    for process in processes() {
        let Some(role) = role(&process, supervisor) else { continue };
        let held = all.entry(role).or_default();
        held.memory_kib += status_kib(process.pid, "RssAnon:");
        held.descriptors += fs::read_dir(format!("/proc/{}/fd", process.pid)).map_or(0, |open| open.count() as u64);
    }
    all
}

fn role(process: &Process, supervisor: u32) -> Option<&'static str> {
    match process.cmdline.get(1).map(String::as_str) {
        _ if process.pid == supervisor => Some("supervisor"),
        Some("server") if process.parent == supervisor => Some("server"),
        // Not its helpers and the children that are a container in a moment: those have another parent.
        Some("launcher") if process.parent == supervisor => Some("launchers"),
        _ => None,
    }
}

fn descendants(all: &[Process], of: u32) -> Vec<Process> {
    let mut found: BTreeSet<u32> = BTreeSet::from([of]);
    loop {
        let more = all.iter().filter(|process| found.contains(&process.parent) && !found.contains(&process.pid));
        let more: Vec<u32> = more.map(|process| process.pid).collect();
        if more.is_empty() {
            return all.iter().filter(|process| found.contains(&process.pid)).cloned().collect();
        }
        found.extend(more);
    }
}

fn lines(path: &str) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn status_kib(pid: u32, name: &str) -> u64 {
    let status = lines(&format!("/proc/{pid}/status"));
    let value = status.iter().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse().ok());
    value.unwrap_or(0)
}

impl Disk {
    /// Of a running instance with nothing under way.
    pub fn of(instance: &Instance, log_total_mib: u64) -> Self {
        let state = instance.state_dir();
        let names = |directory: &str| -> BTreeSet<String> {
            let entries = fs::read_dir(state.join(directory)).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        let end = Instant::now() + host::PATIENCE * host::slower();
        loop {
            let disk = Self {
                code: names("code"),
                code_named: code_named(instance),
                staging: names("staging").len(),
                logs_bytes: bytes_below(&state.join("logs")),
                // The last segment of each function may be a little larger than it should.
                logs_bound: (log_total_mib + 64) << 20,
                books_bytes: bytes_below(&state.join("db")),
            };
            // Unused code goes a moment after the function.
            if disk.code == disk.code_named && disk.staging == 0 || Instant::now() > end {
                return disk;
            }
            thread::sleep(Duration::from_millis(50)); // the pace of looking
        }
    }
}

/// What `code/` should hold, by the list of functions.
fn code_named(instance: &Instance) -> BTreeSet<String> {
    let (mut found, mut marker) = (BTreeSet::new(), String::new());
    loop {
        let page = instance.api().request("GET", &format!("/2015-03-31/functions{marker}"), &[], b"").json();
        for function in page["Functions"].as_array().into_iter().flatten() {
            let digest = function["CodeSha256"].as_str().unwrap_or_default();
            let digest = base64::engine::general_purpose::STANDARD.decode(digest).unwrap_or_default();
            let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            found.extend([format!("{name}.zip"), name]);
        }
        match &page["NextMarker"] {
            Value::String(next) => {
                marker = format!("?Marker={}", next.replace('=', "%3D").replace('+', "%2B").replace('/', "%2F"))
            }
            _ => return found,
        }
    }
}

fn bytes_below(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

/// What a stopped instance has left on the host: by `scripts/leftovers`, and by its processes, cgroups and mounts.
pub fn left_by(instance: &Instance) -> Vec<String> {
    let dir = instance.dir.path().display().to_string();
    let ids = instance.first_id..instance.first_id + host::ID_COUNT;
    let mut left: Vec<String> = snapshot::cgroups(&format!("kiln-{}-", instance.name));
    left.extend(lines("/proc/self/mountinfo").into_iter().filter(|line| line.contains(&dir)));
    let config = instance.config_path().display().to_string();
    for process in processes() {
        if ids.contains(&process.uid) || process.cmdline.contains(&config) {
            left.push(format!("process {} {} {:?}", process.pid, process.comm, process.cmdline));
        }
    }
    // Others may run beside; of what it prints only ours counts here.
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/leftovers");
    match Command::new(script).arg("--run").arg(instance.run_dir()).arg("--state").arg(instance.state_dir()).output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            left.extend(
                text.lines()
                    .filter(|line| line.contains(&dir) || line.contains(&format!("kiln-{}-", instance.name)))
                    .map(str::to_owned),
            );
        }
        Err(error) => left.push(format!("run {script}: {error}")),
    }
    left
}
