//! A token bucket: so much at once, then so much a second. Pure: the clock is given.
//!
//! Whoever bounds what others write has one: kilnd's events, functions' lines in the journal, and what one invocation may fill of
//! its function's log.

use std::time::Instant;

/// See the module docs. What it counts is its owner's affair: events, lines, bytes.
#[derive(Clone, Debug)]
pub struct Bucket {
    tokens: f64,
    most: f64,
    a_second: f64,
    filled: Instant,
}

impl Bucket {
    /// A full one of `most` tokens, which gets `a_second` of them again in each second.
    pub fn full(most: f64, a_second: f64, now: Instant) -> Self {
        Self { tokens: most, most, a_second, filled: now }
    }

    /// Whether so many are in it now.
    pub fn holds(&mut self, tokens: f64, now: Instant) -> bool {
        // A clock that was read earlier on another thread refills nothing, and takes nothing back.
        let since = now.saturating_duration_since(self.filled);
        self.tokens = (self.tokens + since.as_secs_f64() * self.a_second).min(self.most);
        self.filled = self.filled.max(now);
        self.tokens >= tokens
    }

    /// Takes so many, or none. More than it can ever hold it never gives.
    pub fn take(&mut self, tokens: f64, now: Instant) -> bool {
        let enough = self.holds(tokens, now);
        if enough {
            self.tokens -= tokens;
        }
        enough
    }

    /// Whether nothing of it is used.
    pub fn is_full(&mut self, now: Instant) -> bool {
        self.holds(self.most, now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn so_many_at_once_then_so_many_a_second_and_never_more_than_it_holds() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let mut bucket = Bucket::full(10.0, 2.0, begin);
        assert!(bucket.is_full(begin));
        assert_eq!((0..100).filter(|_| bucket.take(1.0, begin)).count(), 10);
        assert!(!bucket.is_full(begin));
        assert_eq!((0..100).filter(|_| bucket.take(1.0, at(1500))).count(), 3);
        assert!(!bucket.take(1.0, at(0)), "an earlier clock gives nothing");
        assert!(!bucket.take(1.0, at(1999)) && bucket.take(1.0, at(2000)), "nor does it take anything back");
        assert_eq!((0..100).filter(|_| bucket.take(1.0, at(3_600_000))).count(), 10);
        assert!(!bucket.take(10.5, at(7_200_000)) && bucket.take(10.0, at(7_200_000)));
    }

    proptest! {
        /// Whoever asks whenever for whatever never gets more than what was there and what came since.
        #[test]
        fn no_history_gives_more_than_the_first_fill_and_the_time(asked in prop::collection::vec((0..5_000u64, 0.0..20.0f64), 1..200)) {
            let begin = Instant::now();
            let (mut bucket, mut at, mut given) = (Bucket::full(10.0, 2.0, begin), begin, 0.0);
            for (ms, tokens) in asked {
                at += Duration::from_millis(ms);
                if bucket.take(tokens, at) {
                    given += tokens;
                }
                prop_assert!(given <= 10.0 + 2.0 * (at - begin).as_secs_f64() + 1e-6, "{given}");
            }
        }
    }
}
