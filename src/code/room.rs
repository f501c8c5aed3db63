//! How much of a disk code may take. Pure: whoever asks brings what the kernel says about the file system.
//!
//! Asked twice: by the server before a zip is unpacked, and by `unpack` while it writes, since only then is it known what a
//! zip holds.

use std::fmt;

/// Kept free for what must be written when there is little room: books, changes of functions, their deletion (the
/// cure). As much as the database's write-ahead log and a merge of it take, many times over.
const RESERVE: u64 = 64 << 20;
/// Staging directories, journals.
const RESERVE_FILES: u64 = 1024;
/// Of a small disk no more than this part is kept.
const SHARE: u64 = 16;

/// What statvfs(3) says about a file system. `files` is 0 where they are not counted (btrfs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    pub size: u64,
    pub free: u64,
    pub files: u64,
    pub free_files: u64,
}

impl From<rustix::fs::StatVfs> for Disk {
    /// What is left for everybody: root's own share of an ext4 is not for code.
    fn from(seen: rustix::fs::StatVfs) -> Self {
        let bytes = |blocks: u64| blocks.saturating_mul(seen.f_frsize);
        Self { size: bytes(seen.f_blocks), free: bytes(seen.f_bavail), files: seen.f_files, free_files: seen.f_favail }
    }
}

impl Disk {
    /// Whether so many bytes in so many files leave the reserve as it is.
    pub fn has_room(&self, bytes: u64, files: u64) -> bool {
        let uncounted = self.files == 0;
        self.free >= self.reserve().saturating_add(bytes)
            && (uncounted || self.free_files >= RESERVE_FILES.min(self.files / SHARE).saturating_add(files))
    }

    pub fn reserve(&self) -> u64 {
        RESERVE.min(self.size / SHARE)
    }
}

/// For whoever is refused: "3.1 MiB and 512 files are free on it, of which 2 MiB are kept for the books".
impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        write!(f, "{:.1} MiB", mib(self.free))?;
        if self.files > 0 {
            write!(f, " and {} files", self.free_files)?;
        }
        write!(f, " are free on it, {:.0} MiB are kept for the books", mib(self.reserve()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_large_disk_keeps_64_mib_and_a_small_one_a_sixteenth() {
        let large = Disk { size: 1 << 40, free: 164 * MIB, files: 0, free_files: 0 };
        assert!(large.has_room(100 * MIB, 1) && !large.has_room(100 * MIB + 1, 1));
        let small = Disk { size: 32 * MIB, free: 3 * MIB, files: 0, free_files: 0 };
        assert!(small.has_room(MIB, 1) && !small.has_room(MIB + 1, 1));
    }

    #[test]
    fn a_disk_without_files_has_no_room_whatever_its_bytes() {
        let disk = Disk { size: 1 << 40, free: 1 << 40, files: 1 << 20, free_files: 1034 };
        assert!(disk.has_room(1, 10) && !disk.has_room(1, 11));
        assert!(!Disk { free_files: 0, ..disk }.has_room(0, 0));
    }

    #[test]
    fn no_number_overflows() {
        let disk = Disk { size: u64::MAX, free: u64::MAX, files: u64::MAX, free_files: u64::MAX };
        assert!(disk.has_room(u64::MAX - (65 << 20), u64::MAX - 2000));
        assert!(!Disk { free: 0, ..disk }.has_room(u64::MAX, 0));
    }
}
