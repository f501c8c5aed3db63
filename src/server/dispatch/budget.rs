//! How much of the host's memory environments get, all together.
//!
//! Server process. Reads what the kernel says of our own groups, once for each configuration; a limit that somebody changes later
//! counts from the next start or reload on.

use std::fs;
use std::path::Path;

use nix::unistd::{SysconfVar, sysconf};
use tracing::{info, warn};

use crate::config::Config;
use crate::hierarchy::{Ceiling, Hierarchies, four_fifths};

/// What all environments together may use, in bytes.
pub fn of(config: &Config) -> u64 {
    let number = |name| sysconf(name).ok().flatten().and_then(|number| u64::try_from(number).ok()).unwrap_or(0);
    let host = number(SysconfVar::_PHYS_PAGES) * number(SysconfVar::PAGE_SIZE);
    let ceiling = ceiling().filter(|ceiling| ceiling.bytes < host);
    let budget = match config.memory_budget_mib {
        0 => four_fifths(host, ceiling.as_ref()),
        mib => mib << 20,
    };
    if let Some(Ceiling { bytes, file }) = &ceiling {
        let (limit, budget_mib, file) = (bytes >> 20, budget >> 20, file.display());
        match budget > *bytes {
            false => info!(budget_mib, "memory budget, below the {limit} MiB of {file}"),
            true => {
                warn!(budget_mib, "memory_budget_mib is more than the {limit} MiB of {file}: the kernel will kill what it finds")
            }
        }
    }
    budget
}

/// The smallest limit above our groups. Whoever started us may have set one; containers are in it with us.
fn ceiling() -> Option<Ceiling> {
    let read = |file: &Path| fs::read_to_string(file).ok();
    let found = Hierarchies::detect(&read(Path::new("/proc/self/mountinfo"))?, &read(Path::new("/proc/self/cgroup"))?);
    found.ok()?.memory_ceiling(read)
}
