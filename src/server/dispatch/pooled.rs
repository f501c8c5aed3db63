//! What makes an environment something to pool: the pool knows none, and environments know no pool.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::server::environment::{self, Environment, Frozen};
use crate::server::pool::{Facts, Pooled, Usage};

impl Pooled for Environment {
    fn is_alive(&self) -> bool {
        Environment::is_alive(self)
    }

    fn facts(&self) -> Arc<dyn Facts> {
        Environment::facts(self).clone()
    }
}

impl Facts for environment::Facts {
    fn name(&self) -> &str {
        &self.container
    }

    fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn measure(&self) -> Option<u64> {
        environment::Facts::measure(self)
    }

    fn cpu(&self) -> Option<Duration> {
        environment::Facts::cpu(self)
    }

    fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    fn kill(&self, by: &str) {
        environment::Facts::kill(self, by);
    }
}

impl From<Frozen> for Usage {
    fn from(frozen: Frozen) -> Self {
        Self { now: frozen.memory, tmp: frozen.tmp }
    }
}
