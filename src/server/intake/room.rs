//! Whether there is room for more code: on paper (the budget, counted as Lambda counts) and on the disk.
//!
//! The budget is a promise to people on duty: `state_dir` never holds more code than this. The disk is asked too, since
//! others fill it as well; some of it is kept for the books and for changes, deletions above all ([`crate::code::room`]).

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::code::room::Disk;

/// See the module docs.
#[derive(Debug)]
pub struct Room {
    state_dir: PathBuf,
    /// Bytes.
    budget: AtomicU64,
    /// Zips on their way that no row names yet. `std` lock: for one addition.
    pledged: Arc<Mutex<u64>>,
}

/// A zip's bytes, counted until this is dropped.
#[derive(Debug)]
pub struct Pledge {
    bytes: u64,
    pledged: Arc<Mutex<u64>>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct OverBudget {
    pub wanted: u64,
    pub used: u64,
    pub budget: u64,
}

impl Room {
    pub fn new(state_dir: PathBuf, budget_mib: u64) -> Self {
        Self { state_dir, budget: AtomicU64::new(bytes(budget_mib)), pledged: Arc::default() }
    }

    /// Another budget from now on. What is there stays, if it is more.
    pub fn bound(&self, budget_mib: u64) {
        self.budget.store(bytes(budget_mib), Ordering::Relaxed);
    }

    /// In bytes.
    pub fn budget(&self) -> u64 {
        self.budget.load(Ordering::Relaxed)
    }

    /// Takes `size` bytes of the budget for a row that stops naming `freed` of the `used` ones.
    pub fn pledge(&self, size: u64, freed: u64, used: u64) -> Result<Pledge, OverBudget> {
        let mut pledged = lock(&self.pledged);
        let budget = self.budget();
        let bytes = size.saturating_sub(freed);
        let total = used.saturating_add(*pledged);
        // Who becomes smaller is never refused, also where the budget was made smaller than what is there.
        if bytes > 0 && total.saturating_add(bytes) > budget {
            return Err(OverBudget { wanted: bytes, used: total, budget });
        }
        *pledged += bytes;
        Ok(Pledge { bytes, pledged: self.pledged.clone() })
    }

    /// Whether the disk has room for a zip, and for as much again: what is in it is at least about as large.
    pub fn has_for(&self, zip: u64) -> bool {
        // What cannot be asked is found out by whoever writes.
        self.disk().is_none_or(|disk| disk.has_room(zip.saturating_mul(2), 8))
    }

    /// What to tell whoever found no room.
    pub fn full(&self) -> String {
        let seen = self.disk().map_or_else(String::new, |disk| format!(" ({disk})"));
        format!(
            "the disk of {} is full{seen}: nothing was stored. Delete functions that are not needed, or free space there, and try \
             again",
            self.state_dir.display()
        )
    }

    fn disk(&self) -> Option<Disk> {
        rustix::fs::statvfs(&self.state_dir).ok().map(Disk::from)
    }
}

fn bytes(mib: u64) -> u64 {
    mib.saturating_mul(1 << 20)
}

impl Drop for Pledge {
    fn drop(&mut self) {
        *lock(&self.pledged) -= self.bytes;
    }
}

impl fmt::Display for OverBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, used, budget } = self;
        write!(f, "{wanted} bytes more than the {used} that are used, of {budget} (code_budget_mib)")
    }
}

// A poisoned lock: a panic aborts the process, so nobody has ever seen one.
fn lock(pledged: &Mutex<u64>) -> MutexGuard<'_, u64> {
    pledged.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn another_budget_counts_at_once_and_takes_nothing_back() {
        let room = Room::new("/".into(), 2);
        let _held = room.pledge(2 * MIB, 0, 0).unwrap();
        room.bound(1);
        assert!(room.pledge(1, 0, 0).is_err());
        assert!(room.pledge(1, 2, 0).is_ok(), "who becomes smaller is never refused");
        room.bound(3);
        assert!(room.pledge(MIB, 0, 0).is_ok());
        assert_eq!(room.budget(), 3 * MIB);
    }

    #[test]
    fn the_budget_is_used_to_its_last_byte_and_not_beyond() {
        let room = Room::new("/".into(), 2);
        let first = room.pledge(MIB, 0, 0).unwrap();
        assert!(room.pledge(MIB, 0, 0).is_ok(), "to the last byte");
        assert_eq!(room.pledge(MIB + 1, 0, 0).unwrap_err(), OverBudget { wanted: MIB + 1, used: MIB, budget: 2 * MIB });
        drop(first);
        assert!(room.pledge(2 * MIB, 0, 0).is_ok(), "given back when it is dropped");
        assert!(room.pledge(1, 0, 2 * MIB).is_err());
    }

    #[test]
    fn an_update_counts_what_it_frees() {
        let room = Room::new("/".into(), 2);
        assert!(room.pledge(2 * MIB, MIB, MIB).is_ok());
        assert!(room.pledge(2 * MIB, MIB, MIB + 1).is_err());
        // The budget was made smaller meanwhile.
        assert!(room.pledge(MIB, MIB, 100 * MIB).is_ok());
    }

    #[test]
    fn a_full_disk_is_named_with_its_cure() {
        let text = Room::new("/proc".into(), 1).full();
        assert!(text.contains("/proc") && text.contains("free") && text.contains("try again"), "{text}");
    }
}
