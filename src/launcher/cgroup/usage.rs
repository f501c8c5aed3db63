//! What the kernel counts of a container at this moment. Reading wakes nobody, and what this kernel does not count is not there.

use std::fs;
use std::path::Path;

use super::Groups;
use crate::hierarchy::Controller;
use crate::wire::launcher::{CgroupLayout, Usage};

/// All but the open files, which no group counts.
pub fn read(groups: &Groups) -> Usage {
    let v2 = groups.layout() == CgroupLayout::Unified;
    let (memory, cpu) = (groups.of(Controller::Memory), groups.of(Controller::Cpu));
    let pids = groups.of(Controller::Pids);
    let number = |directory: &Path, v1: &str, v2_name: &str| number(&directory.join(if v2 { v2_name } else { v1 }));
    let row = |directory: &Path, file: &str, name: &str| row(&text(&directory.join(file)), name);
    let (quota, period) = if v2 {
        let max = text(&cpu.join("cpu.max"));
        let mut words = max.split_ascii_whitespace().map(|word| word.parse().ok());
        (words.next().flatten(), words.next().flatten())
    } else {
        (number(cpu, "cpu.cfs_quota_us", ""), number(cpu, "cpu.cfs_period_us", ""))
    };
    let micros = |nanos: u64| nanos / 1000;
    Usage {
        frozen: row(&groups.unified, "cgroup.events", "frozen") == Some(1),
        memory: number(memory, "memory.usage_in_bytes", "memory.current"),
        memory_peak: number(memory, "memory.max_usage_in_bytes", "memory.peak"),
        memory_limit: number(memory, "memory.limit_in_bytes", "memory.max"),
        oom_kills: row(memory, if v2 { "memory.events" } else { "memory.oom_control" }, "oom_kill"),
        tasks: number(pids, "pids.current", "pids.current"),
        tasks_limit: number(pids, "pids.max", "pids.max"),
        // cgroup2 counts the CPU time of its groups with or without the controller.
        cpu_us: row(&groups.unified, "cpu.stat", "usage_usec"),
        cpu_quota_us: quota,
        cpu_period_us: period,
        throttled: row(cpu, "cpu.stat", "nr_throttled"),
        throttled_us: if v2 {
            row(cpu, "cpu.stat", "throttled_usec")
        } else {
            row(cpu, "cpu.stat", "throttled_time").map(micros)
        },
        ..Usage::default()
    }
}

fn text(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_default()
}

/// `None` also for `max`.
fn number(file: &Path) -> Option<u64> {
    text(file).trim().parse().ok()
}

/// `name 123`, a line.
fn row(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}
