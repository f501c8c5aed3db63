//! What the last failed init of a function said, for callers who come before it is tried again.
//!
//! When that is, is the pool's to decide; here is only what to tell. One entry for each function whose init fails, of at most
//! [`MOST`] bytes: a failure that says more is not kept, and its function is tried each time.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::function::{Function, FunctionName, Stamp};
use crate::invocation::Cause;
use crate::server::environment::InitFailure;

const MOST: usize = 64 << 10;

#[derive(Default)]
pub struct Remembered(Mutex<HashMap<FunctionName, Kept>>);

struct Kept {
    stamp: Stamp,
    failure: InitFailure,
    at: Instant,
}

impl Remembered {
    /// `false`: not kept. Kiln's own faults never are, nor what was killed by hand: they say nothing about the function. Nor is what an
    /// init says late, of a function that has another stamp now.
    pub fn keep(&self, function: &Function, failure: &InitFailure, current: Option<Stamp>) -> bool {
        let ours = failure.by.is_some() || matches!(failure.cause, Cause::Sandbox { .. } | Cause::Cut(_));
        if ours || current != Some(function.stamp) || failure.body.as_ref().is_some_and(|body| body.len() > MOST) {
            return false;
        }
        // A body may be a slice of much more.
        let body = failure.body.as_ref().map(|body| body.to_vec().into());
        let failure = InitFailure { body, ..failure.clone() };
        let kept = Kept { stamp: function.stamp, failure, at: Instant::now() };
        self.lock().insert(function.name.clone(), kept);
        true
    }

    /// The failure, and how long ago it was.
    pub fn recall(&self, function: &Function) -> Option<(InitFailure, Duration)> {
        let held = self.lock();
        let kept = held.get(&function.name).filter(|kept| kept.stamp == function.stamp)?;
        Some((kept.failure.clone(), kept.at.elapsed()))
    }

    /// Its init was good. What was kept of another stamp is not this one's to forget.
    pub fn forget(&self, function: &Function) {
        let mut held = self.lock();
        if held.get(&function.name).is_some_and(|kept| kept.stamp == function.stamp) {
            held.remove(&function.name);
        }
    }

    /// What was kept of other stamps than this one.
    pub fn forget_other(&self, function: &FunctionName, current: Option<Stamp>) {
        let mut held = self.lock();
        if held.get(function).is_some_and(|kept| Some(kept.stamp) != current) {
            held.remove(function);
        }
    }

    // Taken for a few map operations; no other lock is taken inside.
    fn lock(&self) -> MutexGuard<'_, HashMap<FunctionName, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
