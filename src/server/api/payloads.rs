//! Room for payloads: all callers together may have only so many bytes in the server's memory, and none more than half of it.
//!
//! Without a bound, whoever may invoke could make the server the host's largest process, with bodies that are being
//! read and with events that wait for capacity. Without a share, one user's would keep all others' out. Small payloads are free, so
//! that nobody waits behind large ones.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// Of all payloads over [`FREE`] at once, in KiB: 85 of Lambda's largest.
const ROOM_KIB: usize = 512 << 10;
/// Of one user's.
const SHARE_KIB: usize = ROOM_KIB / 2;
/// With the bound on connections, these can never be much.
const FREE: usize = 64 << 10;

#[derive(Clone)]
pub struct Payloads {
    /// In KiB. Taken before a body is read; given back when the last holder of the payload drops it.
    room: Arc<Semaphore>,
    /// The same of each user who has, or waits for, any. `std` lock: held for a few map operations; no other lock is taken inside.
    shares: Arc<Mutex<HashMap<u32, Weak<Semaphore>>>>,
}

impl Default for Payloads {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(ROOM_KIB)), shares: Arc::default() }
    }
}

/// Place for one payload.
#[derive(Debug)]
pub struct Room(Option<[OwnedSemaphorePermit; 2]>);

/// A payload, and the room that ends with it.
struct Held {
    bytes: Bytes,
    _room: [OwnedSemaphorePermit; 2],
}

/// So many MiB of payloads are there, of so many that there may be: of one user's, or of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    pub in_use_mib: u64,
    pub limit_mib: u64,
}

impl Payloads {
    /// Room for a body of at most so many bytes of this user's.
    pub async fn room(&self, uid: u32, bytes: usize, wait: Duration) -> Result<Room, NoRoom> {
        if bytes <= FREE {
            return Ok(Room(None));
        }
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let until = Instant::now() + wait;
        let take = async |of: Arc<Semaphore>, limit: usize| {
            let taken = timeout_at(until, of.clone().acquire_many_owned(kib)).await;
            taken.ok().and_then(Result::ok).ok_or_else(|| NoRoom {
                in_use_mib: (limit.saturating_sub(of.available_permits()) >> 10) as u64,
                limit_mib: (limit >> 10) as u64,
            })
        };
        // The share first: nobody waits in the queue of all for more than they may have.
        let share = take(self.share(uid), SHARE_KIB).await?;
        let room = take(self.room.clone(), ROOM_KIB).await?;
        Ok(Room(Some([share, room])))
    }

    fn share(&self, uid: u32) -> Arc<Semaphore> {
        let mut shares = self.lock();
        if let Some(share) = shares.get(&uid).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(SHARE_KIB));
        shares.insert(uid, Arc::downgrade(&share));
        share
    }

    // A poisoned lock: a panic aborts the process, so nobody has ever seen one.
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Weak<Semaphore>>> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    /// The payload, which takes its room along.
    pub fn hold(self, bytes: Bytes) -> Bytes {
        match self.0 {
            Some(room) => Bytes::from_owner(Held { bytes, _room: room }),
            None => bytes,
        }
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    const MIB: usize = 1 << 20;
    const WAIT: Duration = Duration::from_secs(5);

    async fn all_that_fits(payloads: &Payloads, uid: u32) -> (Vec<Bytes>, NoRoom) {
        let mut held = Vec::new();
        loop {
            match payloads.room(uid, 6 * MIB, WAIT).await {
                Ok(room) => held.push(room.hold(Bytes::from_static(b"a large one"))),
                Err(none) => return (held, none),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn large_payloads_wait_for_room_and_small_ones_never() {
        let payloads = Payloads::default();
        let mut held = Vec::new();
        let full = |in_use_mib, limit_mib| NoRoom { in_use_mib, limit_mib };
        for (uid, fits, why) in [(1, 42, full(252, 256)), (2, 42, full(252, 256)), (3, 1, full(510, 512)), (4, 0, full(510, 512))]
        {
            let (more, none) = all_that_fits(&payloads, uid).await;
            assert_eq!((more.len(), none), (fits, why), "512 MiB, and not one more after five seconds");
            held.extend(more);
        }
        assert!(payloads.room(4, FREE, WAIT).await.is_ok());
        // A slice of a payload holds it too: the room is free with the last of them.
        let slice = held.pop().map(|payload| payload.slice(2..7)).unwrap();
        assert!(payloads.room(4, 6 * MIB, WAIT).await.is_err());
        assert_eq!(&slice[..], b"large");
        drop(slice);
        assert!(payloads.room(4, 6 * MIB, WAIT).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_all_they_can_get_leaves_as_much_to_others_and_nothing_is_kept_of_who_went() {
        let payloads = Payloads::default();
        let (greedy, _) = all_that_fits(&payloads, 1000).await;
        // Those who wait for more of the share take nobody's place in the queue of all.
        let mut more = JoinSet::new();
        for _ in 0..50 {
            let payloads = payloads.clone();
            more.spawn(async move { payloads.room(1000, 6 * MIB, WAIT).await.is_err() });
        }
        tokio::task::yield_now().await;
        let began = Instant::now();
        assert!(payloads.room(1001, 6 * MIB, WAIT).await.is_ok());
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        assert!(more.join_all().await.into_iter().all(|refused| refused));
        drop(greedy);
        let _last = payloads.room(1002, 6 * MIB, WAIT).await;
        assert_eq!(payloads.lock().len(), 1);
    }
}
