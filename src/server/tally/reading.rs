//! What others know at the moment that somebody asks, and how it is shown.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::{SysconfVar, sysconf};

use super::catalogue::Catalogue;
use super::follow;
use crate::invocation::Throttle;
use crate::server::events::Cold;
use crate::server::logs::Missing;
use crate::server::pool::{Retire, SeenState, Snapshot};
use crate::wire::supervisor::{Swept, Upkeep};

/// See the module docs.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    pub pool: Snapshot,
    pub upkeep: Upkeep,
    pub launchers: usize,
    pub launchers_wanted: u32,
    /// Containers whose cgroups could not be removed.
    pub not_cleared: u64,
    /// Lines that are not in the logs, or not in the journal.
    pub missing: Missing,
    pub lost_rows: u64,
    pub lost_environments: u64,
    /// Keys for the next start.
    pub waiting_keys: usize,
    pub draining: bool,
    pub process: Process,
}

/// What the kernel says of the server.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    pub cpu: Duration,
    pub resident: u64,
    pub descriptors: u64,
    pub descriptor_limit: u64,
}

impl Process {
    /// Reads /proc/self; what cannot be read is 0.
    pub fn look() -> Self {
        let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
        let pages = fs::read_to_string("/proc/self/statm").ok();
        let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok()).unwrap_or(0);
        let spent = getrusage(UsageWho::RUSAGE_SELF).map(|usage| usage.user_time() + usage.system_time());
        Self {
            cpu: spent.map_or(Duration::ZERO, |time| Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap_or(0))),
            resident: pages * page,
            // The look has one open itself.
            descriptors: fs::read_dir("/proc/self/fd").map_or(0, |open| (open.count() as u64).saturating_sub(1)),
            descriptor_limit: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
        }
    }
}

impl Catalogue {
    /// What there is from the start, so that the first of a kind is seen as an increase, and what never changes.
    pub(super) fn begin(&self, instance: &str) {
        self.build.with_label_values(&[env!("CARGO_PKG_VERSION"), instance]).set(1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.started.set(now.as_secs_f64());
        for step in ["build", "init"] {
            self.cold_start.with_label_values(&[step]);
        }
        for why in [Cold::First, Cold::Busy, Cold::Once, Cold::Again].into_iter().chain(Retire::ALL.map(Cold::Retired)) {
            self.starts.with_label_values(&[why.to_string()]);
        }
        for outcome in ["served", "throttled"] {
            self.wait.with_label_values(&[outcome]);
        }
        self.take_over(&Reading::default());
    }

    pub(super) fn take_over(&self, reading: &Reading) {
        let pool = &reading.pool;
        for (state, name) in SeenState::ALL {
            let count = pool.environments.iter().filter(|seen| seen.state == state).count();
            self.environments.with_label_values(&[name]).set(count as i64);
        }
        for why in Retire::ALL {
            let total = pool.retired.get(&why).copied().unwrap_or(0);
            follow(&self.retired.with_label_values(&[why.to_string()]), total);
        }
        self.budget.set(bytes(pool.budget_mib));
        self.charged.set(bytes(pool.charged_mib));
        self.in_flight.set(pool.in_flight as i64);
        self.concurrency.set(pool.concurrency as i64);
        self.unreserved.set(pool.unreserved as i64);
        self.waiting.set(pool.waiting as i64);
        self.parallel_starts.set(pool.parallel_starts as i64);
        self.failing.set(pool.failing as i64);
        follow(&self.told_again, pool.told_again);

        let upkeep = &reading.upkeep;
        for (when, swept) in [("start", upkeep.at_start), ("death", upkeep.after_deaths), ("running", upkeep.while_running)] {
            let Swept { cgroups, staging, code } = swept;
            for (kind, total) in [("cgroup", cgroups), ("staging", staging), ("code", code)] {
                follow(&self.swept.with_label_values(&[when, kind]), total);
            }
        }
        follow(&self.servers_restarted, upkeep.servers_restarted);
        follow(&self.launchers_restarted, upkeep.launchers_restarted);
        follow(&self.reloads.with_label_values(&["taken"]), upkeep.reloads);
        follow(&self.reloads.with_label_values(&["refused"]), upkeep.reloads_refused);
        self.reload_good.set(i64::from(!upkeep.reload_refused));
        self.waiting_keys.set(reading.waiting_keys as i64);
        self.draining.set(i64::from(reading.draining));
        self.launchers.set(reading.launchers as i64);
        self.launchers_wanted.set(i64::from(reading.launchers_wanted));
        follow(&self.not_cleared, reading.not_cleared);

        let missing = &reading.missing;
        for (reason, lines) in [("excess", missing.excess), ("queue", missing.queue), ("disk", missing.disk)] {
            follow(&self.log_lines.with_label_values(&[reason]), lines);
        }
        for (reason, lines) in [("excess", missing.journal_excess), ("untaken", missing.journal_untaken)] {
            follow(&self.journal_lines.with_label_values(&[reason]), lines);
        }
        follow(&self.lost_rows, reading.lost_rows);
        follow(&self.lost_environments, reading.lost_environments);

        let process = &reading.process;
        self.cpu.inc_by((process.cpu.as_secs_f64() - self.cpu.get()).max(0.0));
        self.resident.set(process.resident as i64);
        self.descriptors.set(process.descriptors as i64);
        self.descriptor_limit.set(i64::try_from(process.descriptor_limit).unwrap_or(i64::MAX));
    }
}

/// As the pool's own words have it, which `serde` spells the same.
pub(super) fn throttle(why: Throttle) -> &'static str {
    match why {
        Throttle::Memory => "memory",
        Throttle::Starts => "starts",
        Throttle::Concurrency => "concurrency",
        Throttle::Reserved => "reserved",
        Throttle::Queue => "queue",
        Throttle::Payloads => "payloads",
    }
}

pub(super) fn bytes(mib: u64) -> i64 {
    i64::try_from(mib << 20).unwrap_or(i64::MAX)
}
