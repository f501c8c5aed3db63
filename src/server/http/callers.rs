//! Who may come in: how many connections each user has to a door.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::warn;

/// Who has how many connections to a door. No user may have more than are left for all others, so that one who opens
/// connections without end, and leaves them open, never shuts the door for anybody else.
pub struct Callers {
    most: usize,
    /// Of each user that has any. `std` lock: held for a few map operations; no other lock is taken inside.
    held: Mutex<HashMap<u32, Held>>,
}

#[derive(Default)]
struct Held {
    connections: usize,
    /// That it was refused one is said once, until it has left with all.
    told: bool,
}

/// One connection of a user's, until it is dropped.
pub struct Place<'a> {
    callers: &'a Callers,
    uid: u32,
}

impl Callers {
    pub fn new(most: usize) -> Self {
        Self { most, held: Mutex::default() }
    }

    pub fn enter(&self, door: &'static str, uid: u32) -> Option<Place<'_>> {
        let mut held = self.lock();
        let all: usize = held.values().map(|held| held.connections).sum();
        let own = held.entry(uid).or_default();
        if own.connections >= self.most - all {
            if !std::mem::replace(&mut own.told, true) {
                let connections = own.connections;
                warn!(door, uid, connections, "a user has more connections than are left for all others: it gets no more");
            }
            if own.connections == 0 {
                held.remove(&uid);
            }
            return None;
        }
        own.connections += 1;
        Some(Place { callers: self, uid })
    }

    // A poisoned lock: a panic aborts the process, so nobody has ever seen one.
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut held = self.callers.lock();
        if let Some(own) = held.get_mut(&self.uid) {
            own.connections -= 1;
            if own.connections == 0 {
                held.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::MAX_CONNECTIONS;
    use super::*;

    #[test]
    fn whoever_holds_all_they_can_get_leaves_as_many_to_others() {
        let callers = Callers::new(MAX_CONNECTIONS);
        let all = |uid: u32| std::iter::from_fn(|| callers.enter("door", uid)).collect::<Vec<_>>();
        let greedy = all(1000);
        assert_eq!(greedy.len(), MAX_CONNECTIONS / 2);
        let more: Vec<_> = (1001..1005).map(all).collect();
        assert!(more.iter().all(|places| !places.is_empty()), "four more of that kind");
        assert!(callers.enter("door", 0).is_some());
        drop((greedy, more));
        assert!(callers.lock().is_empty());
        assert_eq!(all(1000).len(), MAX_CONNECTIONS / 2);
    }
}
