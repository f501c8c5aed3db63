//! Room for payloads: all callers together may have only so many bytes in the server's memory.
//!
//! Without a bound, whoever may invoke could make the server the host's largest process, with bodies that are being
//! read and with events that wait for capacity. Small payloads are free, so that nobody waits behind large ones.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Of all payloads over [`FREE`] at once, in KiB: 85 of Lambda's largest.
pub const ROOM_KIB: usize = 512 << 10;
/// With the bound on connections, these can never be much.
const FREE: usize = 64 << 10;

#[derive(Clone)]
pub struct Payloads {
    /// In KiB. Taken before a body is read; given back when the last holder of the payload drops it.
    room: Arc<Semaphore>,
}

impl Default for Payloads {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(ROOM_KIB)) }
    }
}

/// Place for one payload.
pub struct Room(Option<OwnedSemaphorePermit>);

/// A payload, and the room that ends with it.
struct Held {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl Payloads {
    /// Room for a body of at most so many bytes; `None` when there was none in time.
    pub async fn room(&self, bytes: usize, wait: Duration) -> Option<Room> {
        if bytes <= FREE {
            return Some(Room(None));
        }
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let taken = timeout(wait, self.room.clone().acquire_many_owned(kib)).await.ok()?;
        taken.ok().map(|room| Room(Some(room)))
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
    use super::*;

    const MIB: usize = 1 << 20;

    #[tokio::test(start_paused = true)]
    async fn large_payloads_wait_for_room_and_small_ones_never() {
        let payloads = Payloads::default();
        let wait = Duration::from_secs(5);
        let mut held = Vec::new();
        while let Some(room) = payloads.room(6 * MIB, wait).await {
            held.push(room.hold(Bytes::from_static(b"a large one")));
        }
        assert_eq!(held.len(), 85, "512 MiB, and not one more after five seconds");
        assert!(payloads.room(FREE, wait).await.is_some());
        // A slice of a payload holds it too: the room is free with the last of them.
        let slice = held.pop().map(|payload| payload.slice(2..7)).unwrap();
        assert!(payloads.room(6 * MIB, wait).await.is_none());
        assert_eq!(&slice[..], b"large");
        drop(slice);
        assert!(payloads.room(6 * MIB, wait).await.is_some());
    }
}
