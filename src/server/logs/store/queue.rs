//! What waits to be written: bounded, and never waited for by who prints.
//!
//! Filled by the event loop, for which it is one lock and one copy; emptied by the writer's thread. What does not fit is
//! refused, and who offered it counts it. No function may take more than it leaves to all others: one that prints without end
//! takes half of the room, two of them a third each, and who prints a line now and then finds room however many they are. What
//! the platform says has room where a function's lines have none left.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::time::SystemTime;

use super::segments::Bounds;
use crate::function::FunctionName;
use crate::invocation::RequestId;
use crate::server::logs::{Kind, Origin, Piece};

/// Bytes that may wait. A writer that is woken within [`LINGER`] empties it before a function that prints 400 MB a second
/// fills it.
const ROOM: usize = 8 << 20;
/// On top of it, for the platform's lines: 30,000 of them.
const PLATFORM: usize = 4 << 20;
/// How long the writer lets pieces gather, so that a warm call costs no wake-up of another thread for each line.
pub const LINGER: Duration = Duration::from_millis(10);
/// What a piece costs beside its bytes.
const OVERHEAD: usize = 128;

/// A [`Piece`] with its bytes.
pub struct Waiting {
    pub origin: Arc<Origin>,
    pub request: Option<RequestId>,
    pub kind: Kind,
    pub time: SystemTime,
    pub lines: Vec<u8>,
}

impl Waiting {
    pub fn piece(&self) -> Piece<'_> {
        Piece { origin: &self.origin, request: self.request, kind: self.kind, time: self.time, lines: &self.lines }
    }
}

/// What the writer has to do.
#[derive(Default)]
pub struct Work {
    pub pieces: Vec<Waiting>,
    /// Functions whose logs go, after the pieces.
    pub removals: Vec<Removal>,
    /// How much is kept from now on, if that has changed.
    pub bounds: Option<Bounds>,
    /// Nothing more will come.
    pub closed: bool,
}

pub struct Removal {
    pub function: FunctionName,
    pub done: tokio::sync::oneshot::Sender<()>,
}

#[derive(Default)]
pub struct Queue {
    /// Taken for each piece, for one push; no other lock is taken inside.
    inner: Mutex<Inner>,
    /// The writer waits for its first piece, or for many.
    filled: Condvar,
}

#[derive(Default)]
struct Inner {
    work: Work,
    bytes: usize,
    shares: HashMap<FunctionName, usize>,
}

impl Queue {
    /// `false`: there is no room.
    pub fn push(&self, piece: &Piece<'_>) -> bool {
        let cost = piece.lines.len() + OVERHEAD;
        let reserve = if piece.kind == Kind::Function { 0 } else { PLATFORM };
        let mut inner = self.lock();
        let share = inner.shares.get(&piece.origin.function).copied().unwrap_or(0);
        let left = (ROOM + reserve).saturating_sub(inner.bytes);
        if share + cost > left {
            return false;
        }
        let before = inner.bytes;
        inner.bytes += cost;
        // Without a copy of the name for every piece but the first.
        match inner.shares.get_mut(&piece.origin.function) {
            Some(share) => *share += cost,
            None => drop(inner.shares.insert(piece.origin.function.clone(), cost)),
        }
        let &Piece { origin, request, kind, time, lines } = piece;
        inner.work.pieces.push(Waiting { origin: origin.clone(), request, kind, time, lines: lines.to_vec() });
        let wake = before == 0 || before < ROOM / 4 && inner.bytes >= ROOM / 4;
        drop(inner);
        if wake {
            self.filled.notify_one();
        }
        true
    }

    pub fn remove(&self, removal: Removal) {
        self.lock().work.removals.push(removal);
        self.filled.notify_one();
    }

    pub fn bound(&self, bounds: Bounds) {
        self.lock().work.bounds = Some(bounds);
        self.filled.notify_one();
    }

    pub fn close(&self) {
        self.lock().work.closed = true;
        self.filled.notify_one();
    }

    /// For the writer: waits for work, at most so long.
    pub fn take(&self, at_most: Duration) -> Work {
        let wait = |inner, time, until: fn(&Inner) -> bool| {
            let waited = self.filled.wait_timeout_while(inner, time, |inner| !until(inner));
            waited.unwrap_or_else(PoisonError::into_inner).0
        };
        let inner = wait(self.lock(), at_most, |inner| inner.is_urgent() || inner.bytes > 0);
        let mut inner = match inner.bytes {
            0 => inner,
            _ => wait(inner, LINGER, |inner| inner.is_urgent() || inner.bytes >= ROOM / 4),
        };
        inner.bytes = 0;
        inner.shares.clear();
        let closed = inner.work.closed;
        mem::replace(&mut inner.work, Work { closed, ..Work::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn is_urgent(&self) -> bool {
        self.work.closed || !self.work.removals.is_empty() || self.work.bounds.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::logs::tests::origin;

    fn push(queue: &Queue, function: &str, kind: Kind, bytes: usize) -> bool {
        let lines = vec![b'x'; bytes];
        queue.push(&Piece { origin: &origin(function), request: None, kind, time: SystemTime::UNIX_EPOCH, lines: &lines })
    }

    #[test]
    fn who_prints_without_end_is_refused_and_costs_nobody_else_a_line() {
        let queue = Queue::default();
        let taken = (0..1000).filter(|_| push(&queue, "noisy", Kind::Function, 16 << 10)).count();
        assert!((200..=256).contains(&taken), "half of the room, and no more: {taken}");
        assert!(push(&queue, "quiet", Kind::Function, 100));
        assert!(push(&queue, "noisy", Kind::Platform, 100), "END and REPORT have room of their own");
        let work = queue.take(Duration::ZERO);
        assert_eq!(work.pieces.len(), taken + 2);
        assert!(push(&queue, "noisy", Kind::Function, 100), "there is room again");
    }

    #[test]
    fn however_many_print_without_end_a_quiet_one_finds_room() {
        let queue = Queue::default();
        let noisy: Vec<String> = (0..50).map(|number| format!("noisy{number}")).collect();
        let taken =
            |rounds: usize| (0..rounds).flat_map(|_| &noisy).filter(|f| push(&queue, f, Kind::Function, 16 << 10)).count();
        assert!(taken(1000) * (16 << 10) > ROOM * 4 / 5, "the room is there to be used");
        for _ in 0..100 {
            assert!(push(&queue, "quiet", Kind::Function, 100));
        }
        assert!(push(&queue, "noisy0", Kind::Platform, 100));
    }

    #[test]
    fn platform_lines_are_bounded_too() {
        let queue = Queue::default();
        let taken = (0..1_000_000).take_while(|_| push(&queue, "f", Kind::Platform, 100)).count();
        assert!(taken * (100 + OVERHEAD) <= (ROOM + PLATFORM) / 2, "{taken}");
    }

    #[test]
    fn a_closed_queue_gives_what_is_in_it_first() {
        let queue = Queue::default();
        push(&queue, "f", Kind::Function, 1);
        queue.close();
        let work = queue.take(Duration::from_secs(3600));
        assert_eq!((work.pieces.len(), work.closed), (1, true));
    }
}
