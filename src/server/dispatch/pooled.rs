//! What makes an environment something to pool: the pool knows none, and environments know no pool.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::server::environment::{self, Environment, Frozen};
use crate::server::pool::{Ending, Facts, Pooled, Usage};

impl Pooled for Environment {
    fn is_alive(&self) -> bool {
        Environment::is_alive(self)
    }

    type Facts = environment::Facts;

    fn facts(&self) -> Arc<environment::Facts> {
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

    fn unwanted(&self, by: &str) {
        environment::Facts::unwanted(self, by);
    }

    fn ending(&self) -> Ending {
        let cause = self.cause();
        Ending {
            cause: cause.as_ref().map(|cause| cause.report_type().to_owned()),
            text: cause.map(|cause| cause.text()),
            by: self.unwanted_by().or(self.visitor()).map(str::to_owned),
        }
    }
}

impl From<Frozen> for Usage {
    fn from(frozen: Frozen) -> Self {
        Self { now: frozen.memory, tmp: frozen.tmp }
    }
}
