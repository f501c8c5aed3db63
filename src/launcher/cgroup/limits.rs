//! The numbers of a container's limits, and writing them.
//!
//! The files are written through cgroups-rs's controllers, each pointed at one group: one interface for both versions, and
//! its single setters tell their errors (its builder does not: a limit that the kernel refuses stays unset without a word). What it has no
//! word for is written here. Every limit is read back: a group without its limit must not run a function.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;

use super::{CgroupError, Groups};
use crate::function::{CPU_PERIOD, Memory, TmpSize};
use crate::hierarchy::Controller;
use crate::wire::launcher::{CgroupLayout, ONE_CPU_V1, ONE_CPU_V2};

/// What the kernel is told about one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The outer wall: configured memory and a full /tmp (whose pages are charged to whoever writes them). The inner one is the server's.
    pub memory_max: u64,
    pub pids_max: u32,
    pub cpu_period: Duration,
    /// CPU time in a period, at first: at least one whole CPU, since 128 MB's share makes an init of 250 ms one of
    /// 1,780. When init is over the server writes the share.
    pub cpu_quota: Duration,
    pub cpu_burst: Duration,
    /// Version 1's weight, likewise at first: one CPU's, [`ONE_CPU_V1`], at least.
    pub cpu_shares: u64,
    /// Version 2's.
    pub cpu_weight: u64,
}

/// Lambda's 1,024 processes and threads, and kiln-init.
const PIDS_MAX: u32 = 1025;

impl Limits {
    pub fn of(memory: Memory, tmp: TmpSize) -> Self {
        let quota = memory.cpu_quota().max(CPU_PERIOD);
        Self {
            memory_max: memory.bytes() + tmp.bytes(),
            pids_max: PIDS_MAX,
            cpu_period: CPU_PERIOD,
            cpu_quota: quota,
            cpu_burst: quota,
            cpu_shares: memory.cpu_weight(ONE_CPU_V1).max(ONE_CPU_V1),
            cpu_weight: memory.cpu_weight(ONE_CPU_V2).max(ONE_CPU_V2),
        }
    }
}

/// Where one controller's files are, in which version of the interface.
struct Place<'a> {
    directory: &'a Path,
    v2: bool,
}

impl Place<'_> {
    fn directory(&self) -> PathBuf {
        self.directory.to_owned()
    }

    fn file(&self, v1: &str, v2: &str) -> PathBuf {
        self.directory.join(if self.v2 { v2 } else { v1 })
    }
}

pub fn apply(groups: &Groups, limits: &Limits) -> Result<(), CgroupError> {
    let v2 = groups.layout() == CgroupLayout::Unified;
    let place = |controller| Place { directory: groups.of(controller), v2 };
    memory(&place(Controller::Memory), limits)?;
    pids(&place(Controller::Pids), limits)?;
    cpu(&place(Controller::Cpu), limits)
}

pub fn weigh(groups: &Groups, limits: &Limits) -> Result<(), CgroupError> {
    let place = Place { directory: groups.of(Controller::Cpu), v2: groups.layout() == CgroupLayout::Unified };
    let weight = if place.v2 { limits.cpu_weight } else { limits.cpu_shares };
    let controller = CpuController::new(place.directory(), PathBuf::new(), place.v2);
    controller.set_shares(weight).map_err(CgroupError::limit(place.directory, "cpu weight"))?;
    expect(&place.file("cpu.shares", "cpu.weight"), weight)
}

fn memory(place: &Place<'_>, limits: &Limits) -> Result<(), CgroupError> {
    let controller = MemController::new(place.directory(), PathBuf::new(), place.v2);
    let max = limits.memory_max;
    controller.set_limit(signed(max)).map_err(CgroupError::limit(place.directory, "memory"))?;
    expect(&place.file("memory.limit_in_bytes", "memory.max"), max)?;

    // No swap. Version 1 counts memory and swap together, version 2 swap alone; kernels without swap accounting have
    // neither file, and then version 1 has at least swappiness.
    let swap = place.file("memory.memsw.limit_in_bytes", "memory.swap.max");
    if swap.exists() {
        let value = if place.v2 { 0 } else { max };
        controller.set_memswap_limit(signed(value)).map_err(CgroupError::limit(place.directory, "swap"))?;
        expect(&swap, value)?;
    } else if !place.v2 {
        controller.set_swappiness(0).map_err(CgroupError::limit(place.directory, "swappiness"))?;
    }
    // At the outer wall everything goes at once, as with Lambda; version 1's killer knows single processes only.
    if place.v2 { set(&place.directory.join("memory.oom.group"), 1) } else { Ok(()) }
}

fn pids(place: &Place<'_>, limits: &Limits) -> Result<(), CgroupError> {
    let controller = PidController::new(place.directory(), PathBuf::new(), place.v2);
    let max = MaxValue::Value(limits.pids_max.into());
    controller.set_pid_max(max).map_err(CgroupError::limit(place.directory, "pids"))?;
    expect(&place.directory.join("pids.max"), limits.pids_max.into())
}

fn cpu(place: &Place<'_>, limits: &Limits) -> Result<(), CgroupError> {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let (period, quota) = (micros(limits.cpu_period), micros(limits.cpu_quota));
    let controller = CpuController::new(place.directory(), PathBuf::new(), place.v2);
    controller
        .set_cfs_quota_and_period(Some(signed(quota)), Some(period))
        .map_err(CgroupError::limit(place.directory, "cpu quota"))?;
    // cpu.max reads "quota period"; the quota comes first in either version.
    expect(&place.file("cpu.cfs_quota_us", "cpu.max"), quota)?;
    // After the quota: a burst may not exceed it.
    let burst = place.file("cpu.cfs_burst_us", "cpu.max.burst");
    if burst.exists() { set(&burst, micros(limits.cpu_burst)) } else { Ok(()) }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn set(file: &Path, value: u64) -> Result<(), CgroupError> {
    let written = fs::write(file, value.to_string());
    written.map_err(|source| CgroupError::Write { file: file.to_owned(), value: value.to_string(), source })?;
    expect(file, value)
}

/// The file's first word must be `value`.
fn expect(file: &Path, value: u64) -> Result<(), CgroupError> {
    let text = fs::read_to_string(file).map_err(|source| CgroupError::Read { file: file.to_owned(), source })?;
    if text.split_ascii_whitespace().next() == Some(value.to_string().as_str()) {
        return Ok(());
    }
    let source = io::Error::from_raw_os_error(libc::ERANGE);
    Err(CgroupError::NotTaken { file: file.to_owned(), value, found: text.trim().to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(mib: u32) -> Limits {
        Limits::of(Memory::from_mib(mib).unwrap(), TmpSize::DEFAULT)
    }

    #[test]
    fn the_outer_wall_is_memory_and_tmp_together() {
        assert_eq!(limits(128).memory_max, 640 << 20);
    }

    #[test]
    fn init_has_one_cpu_at_least() {
        let (small, large) = (limits(128), limits(3008));
        assert_eq!([small.cpu_quota, large.cpu_quota].map(|quota| quota.as_micros()), [100_000, 170_039]);
        assert_eq!([small.cpu_shares, large.cpu_shares], [1024, 1741]);
        assert_eq!([small.cpu_weight, large.cpu_weight], [100, 170]);
    }

    #[test]
    fn a_limit_that_reads_back_otherwise_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "max 100000\n").unwrap();
        assert!(matches!(expect(file.path(), 100_000).unwrap_err(), CgroupError::NotTaken { .. }));
        fs::write(file.path(), "7235 100000\n").unwrap();
        expect(file.path(), 7235).unwrap();
    }
}
