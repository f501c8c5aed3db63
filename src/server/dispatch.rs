//! To come.
use std::sync::Arc;

use crate::config::Config;
use crate::function::FunctionName;
use crate::invocation::{Answer, Invocation, Refusal};
use crate::meter::Meter;
use crate::registry::Functions;
use crate::server::environment::Launchers;
use crate::server::pool::Snapshot;

/// Cheap to clone: all clones are one.
pub struct Dispatch<F, M, L = Launchers> {
    _parts: Arc<(F, M, L)>,
}

impl<F, M, L> Clone for Dispatch<F, M, L> {
    fn clone(&self) -> Self {
        Self { _parts: self._parts.clone() }
    }
}

impl<F: Functions, M: Meter> Dispatch<F, M> {
    /// Must be called inside the runtime.
    pub fn new(_config: &Config, _functions: Arc<F>, _meter: Arc<M>, _launchers: Launchers) -> Self {
        todo!()
    }

    /// Runs one invocation. It goes on if the caller goes away.
    pub async fn invoke(&self, _invocation: Invocation) -> Result<Answer, Refusal> {
        todo!()
    }

    pub fn snapshot(&self) -> Snapshot {
        todo!()
    }

    /// The last output of a function, platform lines included (at most 256 KiB).
    pub fn recent_log(&self, _name: &FunctionName) -> Vec<u8> {
        todo!()
    }

    /// Call after a function was changed or deleted in the registry: idle environments of older stamps end now,
    /// busy ones when their invocation ends.
    pub fn function_changed(&self, _name: &FunctionName) {
        todo!()
    }

    /// Takes no new invocation, waits until the running ones have ended, ends all environments.
    /// Drop the future to stop waiting; then [`Self::kill`].
    pub async fn drain(&self) {
        todo!()
    }
}
