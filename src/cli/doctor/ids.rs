//! The host ids of containers and unpacks: nobody else may have one of them, now or by a promise of /etc/subuid.

use std::ops::Range;
use std::path::Path;

use super::finding::{Finding, broken, ok, warn};
use super::host::Host;
use crate::config::{self, Config, reading};
use crate::runtime::OWNER;

/// Ranges that we propose begin at multiples of this.
const STEP: u64 = 65_536;

/// Who has a part of the range, or of R.
struct Neighbour {
    who: String,
    ids: Range<u64>,
    /// How to make room, if not by another `first_id`.
    instead: Option<&'static str>,
}

pub fn checks(host: &Host, config: &Config) -> Vec<Finding> {
    let (neighbours, planned) = (neighbours(host, config), planned(host, config));
    vec![range(config, &neighbours, &planned, owner(host, config)), of_owner(&neighbours, owner(host, config))]
}

/// R, as recorded by the builder of the trees.
pub fn owner(host: &Host, config: &Config) -> u32 {
    let recorded = host.text(config.runtimes_dir.join("owner")).ok();
    recorded.and_then(|text| text.trim().parse().ok()).unwrap_or(OWNER)
}

fn range(config: &Config, neighbours: &[Neighbour], planned: &[Neighbour], owner: u32) -> Finding {
    let ours = u64::from(config.first_id)..u64::from(config.first_id) + u64::from(config.id_count);
    let shown = format!("{} to {}", ours.start, ours.end.saturating_sub(1));
    let key = "first_id";
    let free = || match free(u64::from(config.id_count), neighbours.iter().chain(planned), owner) {
        Some(first) => format!("set first_id = {first} in the configuration, which is free"),
        None => "set first_id in the configuration to a free range".into(),
    };
    if ours.contains(&u64::from(owner)) {
        let found = format!("{shown} contain {owner}, the owner of all trees, as whom nobody may run");
        return broken("ids", found, free()).about(key);
    }
    if let Some(other) = neighbours.iter().find(|other| overlap(&other.ids, &ours)) {
        let or = other.instead.map(|instead| format!("; or {instead}")).unwrap_or_default();
        let found = format!("{shown} overlap with {}", other.who);
        return broken("ids", found, free() + &or).about(key);
    }
    match planned.iter().find(|other| overlap(&other.ids, &ours)) {
        None => ok("ids", format!("{shown} are nobody else's")).about(key),
        Some(other) => warn("ids", format!("{shown} overlap with {}: only one of the two can run", other.who), free()).about(key),
    }
}

fn of_owner(neighbours: &[Neighbour], owner: u32) -> Finding {
    let id = u64::from(owner)..u64::from(owner) + 1;
    match neighbours.iter().find(|other| overlap(&other.ids, &id)) {
        None => ok("owner", format!("{owner}, the owner of all trees, is nobody's id")).about("runtimes_dir"),
        Some(other) => broken(
            "owner",
            format!("{owner}, the owner of all trees, is also {}: they could change every function's files", other.who),
            other.instead.map_or_else(|| "give that user another id (usermod -u)".into(), str::to_owned),
        )
        .about("runtimes_dir"),
    }
}

fn neighbours(host: &Host, config: &Config) -> Vec<Neighbour> {
    let mut found = Vec::new();
    for (kind, list) in [("user", &host.users), ("group", &host.groups)] {
        for account in list.iter() {
            let ids = u64::from(account.id)..u64::from(account.id) + 1;
            found.push(Neighbour { who: format!("the {kind} {} ({})", account.name, account.id), ids, instead: None });
        }
    }
    for (file, instead) in
        [("/etc/subuid", "take that line out of /etc/subuid"), ("/etc/subgid", "take that line out of /etc/subgid")]
    {
        for line in host.text(file).unwrap_or_default().lines() {
            let mut fields = line.split(':').map(str::trim);
            let (name, first, count) = (fields.next(), number(fields.next()), number(fields.next()));
            if let (Some(name), Some(first), Some(count)) = (name, first, count) {
                let who = format!("what {file} promises {name} ({line})");
                found.push(Neighbour { who, ids: first..first.saturating_add(count), instead: Some(instead) });
            }
        }
    }
    // Root's file; others see the rest.
    for line in host.text(super::leftovers::INSTANCES).unwrap_or_default().lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [name, first, count, run_dir, ..] = fields[..] else { continue };
        let (Some(first), Some(count)) = (number(Some(first)), number(Some(count))) else { continue };
        if name != config.instance && config.run_dir.to_str() != Some(run_dir) {
            let who = format!("the instance {name:?} of Kiln, in {run_dir}");
            found.push(Neighbour { who, ids: first..first.saturating_add(count), instead: None });
        }
    }
    found
}

/// What other configurations of this host are for, whether or not anybody runs by them now.
fn planned(host: &Host, config: &Config) -> Vec<Neighbour> {
    let Some(directory) = Path::new(config::DEFAULT_PATH).parent() else { return Vec::new() };
    let files = std::fs::read_dir(host.path(directory)).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let other = |file: std::ffi::OsString| {
        let path = directory.join(file);
        path.extension().filter(|extension| *extension == "toml")?;
        // As far as it is right: of what is not, the default.
        let (other, _) = reading::read(&host.text(&path).ok()?);
        let first = u64::from(other.first_id);
        let ids = first..first + u64::from(other.id_count);
        let is_another = other.instance != config.instance && other.run_dir != config.run_dir;
        is_another.then(|| Neighbour { who: format!("those of {}", path.display()), ids, instead: None })
    };
    files.filter_map(other).collect()
}

fn number(field: Option<&str>) -> Option<u64> {
    field?.parse().ok()
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// The first range above the owner of the trees that nobody has a part of.
fn free<'a>(count: u64, neighbours: impl Iterator<Item = &'a Neighbour>, owner: u32) -> Option<u64> {
    let neighbours: Vec<&Neighbour> = neighbours.collect();
    let first = (u64::from(owner) / STEP + 1) * STEP;
    let end = u64::from(i32::MAX as u32) - count;
    let is_free = |first: &u64| !neighbours.iter().any(|other| overlap(&other.ids, &(*first..*first + count)));
    (first..=end).step_by(STEP as usize).find(is_free)
}
