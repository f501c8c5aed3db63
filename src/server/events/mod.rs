//! What happens in the engine, told as it happens: starts and their reasons, inits, invocations, freezes, refusals, ends.
//!
//! Server process, floor 1. `dispatch`, `environment` and the pool's driver emit; they decide nothing by what is here, and wait
//! for nobody who listens:
//!
//! ```text
//!                         ┌─▶ observers   see each event at once, in order: counts, [`history`]
//! emit(of, request, what) ┤
//!                         └─▶ [`ring`]    the last some thousand, bounded; listeners read from it at their own pace, and one that
//!                                         is too slow is told how many it has missed
//! ```
//!
//! Names and ids are shared, so that an event of a warm invocation costs no allocation.

mod history;
mod ring;
mod swept;
mod what;

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use tokio::sync::Notify;

pub use self::history::Historian;
use self::ring::Ring;
pub use self::ring::{Filter, Heard, Listener};
pub use self::swept::swept;
pub use self::what::{Cold, Detail, Retire, What, When};
use crate::function::FunctionName;
use crate::invocation::RequestId;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// Grows with each event, over restarts of the server too (unless the host's clock is set back meanwhile).
    pub seq: u64,
    #[serde(rename = "time_ms", serialize_with = "millis")]
    pub at: SystemTime,
    pub function: Option<FunctionName>,
    #[serde(serialize_with = "text")]
    pub version: Option<Arc<str>>,
    #[serde(serialize_with = "text")]
    pub container: Option<Arc<str>>,
    pub request: Option<RequestId>,
    #[serde(flatten)]
    pub what: What,
}

/// Whom events are about: a function, or one environment of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    pub function: Option<FunctionName>,
    pub version: Option<Arc<str>>,
    pub container: Option<Arc<str>>,
}

impl Subject {
    /// No function: of the instance.
    pub const NOBODY: Self = Self { function: None, version: None, container: None };

    pub fn function(name: &FunctionName) -> Self {
        static LATEST: LazyLock<Arc<str>> = LazyLock::new(|| "$LATEST".into());
        Self { function: Some(name.clone()), version: Some(LATEST.clone()), container: None }
    }

    pub fn environment(name: &FunctionName, container: &str) -> Self {
        Self { container: Some(container.into()), ..Self::function(name) }
    }
}

/// Sees each event, in their order, before anybody else. Called under the ring's lock: quick, never waits, never emits.
pub trait Observer: Send + Sync + 'static {
    fn see(&self, event: &Event);
}

/// Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Events(Arc<Shared>);

struct Shared {
    observers: Vec<Arc<dyn Observer>>,
    /// Taken to emit one event and to read some. Observers' locks may be taken inside.
    ring: Mutex<Ring>,
    more: Notify,
}

impl Events {
    pub fn new(observers: Vec<Arc<dyn Observer>>) -> Self {
        // Microseconds: fewer events than that happen on the average, so the next server begins above them all; and as a JSON
        // number it stays exact until 2255.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let first = u64::try_from(since.as_micros()).unwrap_or(1);
        Self(Arc::new(Shared { observers, ring: Mutex::new(Ring::new(first)), more: Notify::new() }))
    }

    /// Never blocks, and never fails.
    pub fn emit(&self, of: &Subject, request: Option<RequestId>, what: What) {
        let Subject { function, version, container } = of.clone();
        let mut ring = self.ring();
        let event = Event { seq: ring.next(), at: SystemTime::now(), function, version, container, request, what };
        for observer in &self.0.observers {
            observer.see(&event);
        }
        ring.push(event);
        drop(ring);
        self.0.more.notify_waiters();
    }

    /// What happens from now on.
    pub fn listen(&self, filter: Filter) -> Listener {
        let next = self.ring().next();
        Listener::new(self.clone(), filter, next, next)
    }

    /// What is kept, from event `since` on where that is known, and then what happens.
    pub fn listen_since(&self, since: Option<u64>, filter: Filter) -> Listener {
        let ring = self.ring();
        match since.filter(|since| ring.knows(*since)) {
            // Whoever goes on from the last event that they saw shall know what is missing.
            Some(since) => Listener::new(self.clone(), filter, since, since),
            None => Listener::new(self.clone(), filter, ring.first(), ring.next()),
        }
    }

    /// The last so many that are kept, and then what happens.
    pub fn listen_tail(&self, tail: usize, filter: Filter) -> Listener {
        let kept = self.kept(filter.clone());
        let ring = self.ring();
        let place = kept.len().checked_sub(tail).map_or(ring.first(), |at| kept.get(at).map_or(ring.next(), |event| event.seq));
        Listener::new(self.clone(), filter, place, ring.next())
    }

    /// The number that the first one bore, or will bear, and the next one will.
    pub fn seqs(&self) -> (u64, u64) {
        let ring = self.ring();
        (ring.first(), ring.next())
    }

    /// What is kept now, the oldest first.
    pub fn kept(&self, filter: Filter) -> Vec<Event> {
        let mut listener = self.listen_since(None, filter);
        let mut kept = Vec::new();
        while let Some(heard) = listener.heard() {
            kept.extend(heard.events);
        }
        kept
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Events {
    /// Nobody observes.
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

fn millis<S: Serializer>(at: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    to.serialize_u64(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn text<S: Serializer>(text: &Option<Arc<str>>, to: S) -> Result<S::Ok, S::Error> {
    text.as_deref().serialize(to)
}

#[cfg(test)]
pub(in crate::server) mod tests;
