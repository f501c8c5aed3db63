//! Functions whose init fails, and when each may be tried again. Decides with the clock it is given.
//!
//! One entry for each function that exists and whose last init failed; a success, another stamp or its deletion ends it.

use std::collections::HashMap;

use tokio::time::Instant;

use super::policy;
use crate::function::{FunctionName, Stamp};

#[derive(Debug, Default)]
pub struct Failing(HashMap<FunctionName, Failed>);

#[derive(Debug)]
struct Failed {
    stamp: Stamp,
    /// Invocations in a row; those that were started before the one before had failed are one with it.
    times: u32,
    last: Instant,
}

/// What a function without a free slot may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    /// Its last init was good, or it is new.
    Free,
    /// Its last init failed: not in all places at once.
    InDoubt,
    /// It may try, with one slot.
    Once,
    /// Not now.
    Not,
}

impl Failing {
    pub fn failed(&mut self, function: &FunctionName, stamp: Stamp, born: Instant, now: Instant) {
        let failed = self.0.entry(function.clone()).or_insert(Failed { stamp, times: 0, last: now });
        if failed.stamp != stamp {
            *failed = Failed { stamp, times: 0, last: now };
        }
        if failed.times == 0 || born >= failed.last {
            (failed.times, failed.last) = (failed.times.saturating_add(1), now);
        }
    }

    pub fn succeeded(&mut self, function: &FunctionName, stamp: Stamp) {
        if self.0.get(function).is_some_and(|failed| failed.stamp == stamp) {
            self.0.remove(function);
        }
    }

    pub fn changed(&mut self, function: &FunctionName, current: Option<Stamp>) {
        if self.0.get(function).is_some_and(|failed| Some(failed.stamp) != current) {
            self.0.remove(function);
        }
    }

    pub fn trial(&self, function: &FunctionName, stamp: Stamp, now: Instant) -> Trial {
        match self.0.get(function).filter(|failed| failed.stamp == stamp) {
            None => Trial::Free,
            Some(failed) => match policy::pause(failed.times) {
                None => Trial::InDoubt,
                Some(pause) if now < failed.last + pause => Trial::Not,
                Some(_) => Trial::Once,
            },
        }
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn name() -> FunctionName {
        FunctionName::parse("f").unwrap()
    }

    #[test]
    fn each_failure_in_a_row_makes_the_next_pause_longer_and_a_success_ends_them() {
        let (mut failing, mut now) = (Failing::default(), Instant::now());
        let mut trials = Vec::new();
        for pause in [0, 1, 2, 4] {
            failing.failed(&name(), Stamp(1), now, now);
            let last = Duration::from_secs(pause).saturating_sub(Duration::from_millis(1));
            trials.push((failing.trial(&name(), Stamp(1), now + last), failing.trial(&name(), Stamp(1), now + last * 2)));
            now += Duration::from_secs(60);
        }
        let paused = (Trial::Not, Trial::Once);
        assert_eq!(trials, [(Trial::InDoubt, Trial::InDoubt), paused, paused, paused]);
        failing.succeeded(&name(), Stamp(1));
        assert_eq!((failing.trial(&name(), Stamp(1), now), failing.len()), (Trial::Free, 0));
    }

    #[test]
    fn those_that_were_started_together_fail_as_one() {
        let (mut failing, now) = (Failing::default(), Instant::now());
        for n in 0..40 {
            failing.failed(&name(), Stamp(1), now, now + Duration::from_secs(1) + Duration::from_millis(n));
        }
        assert_eq!(failing.trial(&name(), Stamp(1), now + Duration::from_secs(2)), Trial::InDoubt);
    }

    #[test]
    fn new_code_is_tried_at_once_and_nothing_is_kept_of_the_old() {
        let (mut failing, now) = (Failing::default(), Instant::now());
        for n in 0..5 {
            failing.failed(&name(), Stamp(1), now + Duration::from_secs(n), now + Duration::from_secs(n));
        }
        assert_eq!(failing.trial(&name(), Stamp(2), now), Trial::Free);
        failing.changed(&name(), Some(Stamp(2)));
        assert_eq!(failing.len(), 0);
    }
}
