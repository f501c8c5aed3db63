//! The inner memory wall: what the function uses, /tmp not counted.
//!
//! tmpfs pages are charged to whoever writes them, but Lambda's /tmp is a disk. So the kernel's limit is configured
//! memory *and* /tmp, and the configured memory alone is watched here: every [`EVERY`] while the environment initialises
//! or is busy.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::statfs::fstatfs;

use crate::function::Memory;
use crate::wire::launcher::CgroupLayout;

/// Between two looks; also before the first, so that most invocations are never looked at while they run.
pub const EVERY: Duration = Duration::from_millis(10);

/// Where the numbers come from.
pub struct Gauge {
    layout: CgroupLayout,
    current: File,
    stat: File,
    /// Counts of the kernel's own out-of-memory kills.
    events: File,
    tmp: OwnedFd,
}

/// One look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Everything that is charged to the container.
    pub current: u64,
    /// What counts against the function's memory.
    pub used: u64,
    /// Blocks in /tmp.
    pub tmp: u64,
}

/// The wall of one environment.
pub struct Wall {
    gauge: Arc<Gauge>,
    limit: u64,
    /// The largest `used` so far: Max Memory Used.
    peak: u64,
    /// oom_kill as it was in the beginning.
    kills: u64,
}

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Fine,
    /// /tmp may have grown to so many bytes.
    Tmp(u64),
    OutOfMemory,
}

impl Wall {
    pub fn new(gauge: Arc<Gauge>, memory: Memory) -> Self {
        let kills = gauge.kills().unwrap_or(0);
        Self { gauge, limit: memory.bytes(), peak: 0, kills }
    }

    /// A quick look. Below the largest `used` so far there can be no new maximum, nor /tmp above what its budget has.
    pub fn look(&mut self) -> io::Result<Verdict> {
        // v1's killer takes one process only; the function may live on, broken.
        if self.gauge.layout == CgroupLayout::Split && self.kernel_killed() {
            return Ok(Verdict::OutOfMemory);
        }
        let current = self.gauge.current()?;
        if current <= self.peak {
            return Ok(Verdict::Fine);
        }
        self.sample_at(current).map(|(_, verdict)| verdict)
    }

    /// The whole look, whatever was before.
    pub fn sample(&mut self) -> io::Result<(Sample, Verdict)> {
        let current = self.gauge.current()?;
        self.sample_at(current)
    }

    /// Whether the kernel's own wall was hit. It stands at memory and /tmp together: the memory was full, whatever the
    /// last look has seen of it.
    pub fn kernel_killed(&mut self) -> bool {
        let killed = self.gauge.kills().is_ok_and(|kills| kills > self.kills);
        if killed {
            self.peak = self.limit;
        }
        killed
    }

    /// What was in use at the most, in bytes.
    pub fn peak(&self) -> u64 {
        self.peak
    }

    fn sample_at(&mut self, current: u64) -> io::Result<(Sample, Verdict)> {
        let sample = self.gauge.sample_at(current)?;
        self.peak = self.peak.max(sample.used.min(self.limit));
        let verdict = if sample.used > self.limit { Verdict::OutOfMemory } else { Verdict::Tmp(sample.tmp) };
        Ok((sample, verdict))
    }
}

/// REPORT's Max Memory Used.
pub fn max_memory_used_mib(peak: u64) -> u64 {
    ((peak + (1 << 19)) >> 20).max(1)
}

/// What counts against the function's memory: all but page cache (which the kernel takes back by itself; `file`
/// includes `shmem`, which it cannot take back) and but /tmp. The numbers are not read at one instant, so none of
/// the differences may be trusted to be positive. `current` is read before and after the others: what was freed in
/// between (a file deleted from /tmp) is in the first, and in nothing that is subtracted.
fn sample(current: [u64; 2], file: u64, shmem: u64, tmp: u64) -> Sample {
    let current = current[0].min(current[1]);
    let used = current.saturating_sub(file.saturating_sub(shmem)).saturating_sub(tmp);
    Sample { current, used, tmp }
}

impl Gauge {
    /// `memory`: the directory of the memory controller.
    pub fn open(layout: CgroupLayout, memory: impl AsFd, tmp: OwnedFd) -> io::Result<Self> {
        let open = |name: &str| -> io::Result<File> {
            let fd = openat(memory.as_fd(), name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
            Ok(File::from(fd))
        };
        let [current, stat, events] = match layout {
            CgroupLayout::Unified => ["memory.current", "memory.stat", "memory.events"],
            CgroupLayout::Split => ["memory.usage_in_bytes", "memory.stat", "memory.oom_control"],
        };
        Ok(Self { layout, current: open(current)?, stat: open(stat)?, events: open(events)?, tmp })
    }

    /// What counts against the function's memory at this moment, for whoever asks.
    pub fn used(&self) -> io::Result<u64> {
        Ok(self.sample_at(self.current()?)?.used)
    }

    fn sample_at(&self, current: u64) -> io::Result<Sample> {
        let (file, shmem) = self.file_and_shmem()?;
        let tmp = self.tmp()?;
        Ok(sample([current, self.current()?], file, shmem, tmp))
    }

    fn current(&self) -> io::Result<u64> {
        let mut buffer = [0; 32];
        let text = text(&self.current, &mut buffer)?;
        text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
    }

    fn file_and_shmem(&self) -> io::Result<(u64, u64)> {
        let mut buffer = [0; 8192];
        let text = text(&self.stat, &mut buffer)?;
        let [file, shmem] = match self.layout {
            CgroupLayout::Unified => ["file", "shmem"],
            CgroupLayout::Split => ["total_cache", "total_shmem"],
        };
        Ok((row(text, file).unwrap_or(0), row(text, shmem).unwrap_or(0)))
    }

    /// Whether the kernel has ever ended anything in it for want of memory: its own, or a group's above.
    pub fn kernel_killed(&self) -> bool {
        self.kills().is_ok_and(|kills| kills > 0)
    }

    fn kills(&self) -> io::Result<u64> {
        let mut buffer = [0; 512];
        Ok(row(text(&self.events, &mut buffer)?, "oom_kill").unwrap_or(0))
    }

    /// Bytes in use in /tmp.
    pub fn tmp(&self) -> io::Result<u64> {
        let stat = fstatfs(&self.tmp)?;
        Ok(stat.blocks().saturating_sub(stat.blocks_free()) * stat.block_size() as u64)
    }
}

pub(super) fn text<'a>(file: &File, buffer: &'a mut [u8]) -> io::Result<&'a str> {
    let length = file.read_at(buffer, 0)?;
    std::str::from_utf8(&buffer[..length]).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// `name 123`, a line.
pub(super) fn row(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn tmp_and_page_cache_do_not_count_and_heap_and_shared_memory_do() {
        let (heap, cache, shm, tmp) = (100 * MIB, 50 * MIB, 7 * MIB, 300 * MIB);
        let all = heap + cache + shm + tmp;
        assert_eq!(sample([all, all], cache + shm + tmp, shm + tmp, tmp).used, heap + shm);
    }

    #[test]
    fn what_is_deleted_from_tmp_during_a_look_is_not_the_functions_memory() {
        let (heap, tmp) = (50 * MIB, 300 * MIB);
        assert_eq!(sample([heap + tmp, heap], 0, 0, 0).used, heap);
        assert_eq!(sample([heap + tmp, heap], tmp, tmp, 0).used, heap);
    }

    #[test]
    fn whom_the_kernel_ended_for_want_of_memory_is_known_in_each_layout() {
        for (layout, events) in [(CgroupLayout::Unified, "memory.events"), (CgroupLayout::Split, "memory.oom_control")] {
            let dir = tempfile::tempdir().unwrap();
            for name in ["memory.current", "memory.usage_in_bytes", "memory.stat"] {
                std::fs::write(dir.path().join(name), "0\n").unwrap();
            }
            let events = dir.path().join(events);
            std::fs::write(&events, "oom 3\noom_kill 0\n").unwrap();
            let open = || File::open(dir.path()).unwrap();
            let gauge = Gauge::open(layout, open(), open().into()).unwrap();
            assert!(!gauge.kernel_killed());
            std::fs::write(&events, "oom 3\noom_kill 2\n").unwrap();
            assert!(gauge.kernel_killed());
        }
    }

    #[test]
    fn max_memory_used_is_rounded_and_never_zero() {
        assert_eq!([0, 1, MIB * 3 / 2, 36 * MIB].map(max_memory_used_mib), [1, 1, 2, 36]);
    }

    #[test]
    fn rows_are_found_by_their_whole_name() {
        let stat = "cache 1\ntotal_cache 77\ntotal_shmem 5\nfile_mapped 9\nfile 3\n";
        assert_eq!((row(stat, "total_cache"), row(stat, "file"), row(stat, "shmem")), (Some(77), Some(3), None));
    }

    proptest! {
        /// The numbers are read one after the other while the function runs: no mix of them may wrap around.
        #[test]
        fn no_mix_of_numbers_is_more_than_everything(numbers: [u64; 5]) {
            let [before, after, file, shmem, tmp] = numbers;
            prop_assert!(sample([before, after], file, shmem, tmp).used <= before.min(after));
        }

        /// Numbers that fit together, as of a function that rests: what is used is heap and shared memory, exactly, whatever
        /// lies in /tmp and in the page cache beside it.
        #[test]
        fn what_fits_together_is_counted_exactly(parts in proptest::array::uniform4(0..1u64 << 40)) {
            let [heap, cache, shared, tmp] = parts;
            let (current, shmem) = (heap + cache + shared + tmp, shared + tmp);
            prop_assert_eq!(sample([current; 2], cache + shmem, shmem, tmp).used, heap + shared);
        }

        /// Half a MiB is the most that rounding takes or gives.
        #[test]
        fn max_memory_used_is_the_nearest_mib(bytes in MIB / 2..1 << 50) {
            prop_assert!((max_memory_used_mib(bytes) * MIB).abs_diff(bytes) <= MIB / 2);
        }
    }
}
