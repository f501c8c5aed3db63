//! Freeze, thaw, kill and CPU speed: one write each, to files of the cgroup that the launcher opened.
//!
//! The server may neither signal nor wait (uid kiln); these descriptors are all its power over a container.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use tracing::warn;

use crate::function::{CPU_PERIOD, Memory};
use crate::wire::launcher::{CgroupLayout, ONE_CPU_V1, ONE_CPU_V2};

/// The open control files of one container's cgroups.
pub struct Cgroup {
    layout: CgroupLayout,
    kill: File,
    freeze: File,
    quota: File,
    burst: Option<File>,
    weight: File,
}

/// Where a container's CPU time is set.
pub struct CpuFiles {
    pub quota: OwnedFd,
    /// Absent where the kernel has none.
    pub burst: Option<OwnedFd>,
    pub weight: OwnedFd,
}

impl Cgroup {
    pub fn new(layout: CgroupLayout, kill: OwnedFd, freeze: OwnedFd, cpu: CpuFiles) -> Self {
        Self {
            layout,
            kill: kill.into(),
            freeze: freeze.into(),
            quota: cpu.quota.into(),
            burst: cpu.burst.map(File::from),
            weight: cpu.weight.into(),
        }
    }

    /// Ends every process of the container, frozen or not.
    pub fn kill(&self) {
        // The directory is gone (ENODEV) when the launcher has removed it: then there is nothing to kill.
        if let Err(error) = write(&self.kill, "1").or_else(gone) {
            warn!(%error, "kill a container");
        }
    }

    /// Not waited for: the last one to notice is a CPU away (waiting costs 10 ms).
    pub fn freeze(&self) -> io::Result<()> {
        write(&self.freeze, "1")
    }

    pub fn thaw(&self) {
        if let Err(error) = write(&self.freeze, "0").or_else(gone) {
            warn!(%error, "thaw a container");
        }
    }

    /// From the speed of the init phase to what the function's memory buys. Downwards, the burst has to go
    /// first: a burst above the quota is EINVAL.
    pub fn slow_down(&self, memory: Memory) -> io::Result<()> {
        let quota = memory.cpu_quota().as_micros();
        if let Some(burst) = &self.burst {
            write(burst, &quota.to_string())?;
        }
        let (quota, weight) = match self.layout {
            CgroupLayout::Unified => (format!("{quota} {}", CPU_PERIOD.as_micros()), memory.cpu_weight(ONE_CPU_V2)),
            CgroupLayout::Split => (quota.to_string(), memory.cpu_weight(ONE_CPU_V1)),
        };
        write(&self.quota, &quota)?;
        write(&self.weight, &weight.to_string())
    }
}

fn gone(error: io::Error) -> io::Result<()> {
    if error.raw_os_error() == Some(libc::ENODEV) { Ok(()) } else { Err(error) }
}

/// Kernel control files take a value in one write.
fn write(mut file: &File, value: &str) -> io::Result<()> {
    match file.write(value.as_bytes())? {
        all if all == value.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}
