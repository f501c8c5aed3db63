//! How much memory there is for us: the smallest limit above our groups, whoever set it (a unit, a slice, a container engine).
//!
//! Pure as its room: the caller reads the files. The server settles its budget by this, `kiln doctor` says what it will be.

use std::path::{Path, PathBuf};

use super::{Controller, Hierarchies};
use crate::wire::launcher::CgroupLayout;

/// A limit on memory, and the file that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ceiling {
    pub bytes: u64,
    pub file: PathBuf,
}

/// Nobody means a number like these: version 1's "unlimited" is i64::MAX in whole pages.
const UNLIMITED: u64 = 1 << 60;

impl Hierarchies {
    /// The smallest limit on our parent or above it. Above `memory.high` the kernel makes everybody crawl, so it counts like the wall
    /// itself. `read` answers `None` for what is not there: the hierarchy's root has no limits, and above its mount is none of it.
    pub fn memory_ceiling(&self, read: impl Fn(&Path) -> Option<String>) -> Option<Ceiling> {
        let names: &[&str] = match self.layout() {
            CgroupLayout::Unified => &["memory.max", "memory.high"],
            CgroupLayout::Split => &["memory.limit_in_bytes"],
        };
        let files = self.of(Controller::Memory).ancestors().flat_map(|group| names.iter().map(|name| group.join(name)));
        let limits = files.filter_map(|file| {
            let bytes: u64 = read(&file)?.trim().parse().ok()?; // "max" is no number, and no limit
            (bytes < UNLIMITED).then_some(Ceiling { bytes, file })
        });
        limits.min_by_key(|limit| limit.bytes)
    }
}

/// What functions get of `host` bytes when nobody says how much: the rest is everybody else's, kilnd's own processes included.
pub fn four_fifths(host: u64, ceiling: Option<&Ceiling>) -> u64 {
    ceiling.map_or(host, |ceiling| ceiling.bytes.min(host)) / 5 * 4
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of groups as files, of which only limits are there.
    fn ceiling(v1: bool, files: &[(&str, &str)]) -> Option<(u64, String)> {
        let tree = tempfile::tempdir().unwrap();
        let parent = tree.path().join("kiln.slice/kilnd.service");
        std::fs::create_dir_all(&parent).unwrap();
        for (file, text) in files {
            std::fs::write(tree.path().join(file), text).unwrap();
        }
        let v1 = if v1 { Controller::ALL.map(|controller| (controller, parent.clone())).to_vec() } else { vec![] };
        let found = Hierarchies { unified: parent, v1 }.memory_ceiling(|file| std::fs::read_to_string(file).ok());
        found.map(|found| (found.bytes, found.file.strip_prefix(tree.path()).unwrap().display().to_string()))
    }

    #[test]
    fn the_smallest_limit_above_us_counts_wherever_it_is() {
        let own = ("kiln.slice/kilnd.service/memory.max", "max\n");
        assert_eq!(ceiling(false, &[own, ("kiln.slice/memory.max", "max\n")]), None);
        let slice = ("kiln.slice/memory.max", "2147483648\n");
        assert_eq!(ceiling(false, &[own, slice]), Some((2 << 30, "kiln.slice/memory.max".into())));
        let smaller = ("kiln.slice/kilnd.service/memory.high", "1073741824\n");
        assert_eq!(ceiling(false, &[own, slice, smaller]), Some((1 << 30, smaller.0.into())));
        // A container engine's limit is on the root of what we see.
        assert_eq!(ceiling(false, &[slice, ("memory.max", "4096\n")]), Some((4096, "memory.max".into())));
    }

    #[test]
    fn version_1_says_no_limit_by_a_number() {
        let none = ("kiln.slice/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(ceiling(true, &[none]), None);
        let own = ("kiln.slice/kilnd.service/memory.limit_in_bytes", "1073741824\n");
        assert_eq!(ceiling(true, &[none, own]), Some((1 << 30, own.0.into())));
    }

    #[test]
    fn functions_get_four_fifths_of_the_host_or_of_the_limit_below_it() {
        let limit = |bytes| Ceiling { bytes, file: "/x".into() };
        assert_eq!(four_fifths(1000, None), 800);
        assert_eq!(four_fifths(1000, Some(&limit(500))), 400);
        assert_eq!(four_fifths(1000, Some(&limit(5000))), 800);
    }
}
