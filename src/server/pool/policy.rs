//! The numbers of the pool's decisions, as functions of what they are given: no state, no clock.

use std::time::Duration;

use super::slot::SlotId;

#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Bytes that all slots together may be charged.
    pub budget: u64,
    /// Slots that may initialise at once.
    pub starts: usize,
    /// Requests at once: running and waiting. Who has its answer does not count. Reserves are parts of it.
    pub concurrency: usize,
    /// Requests that may wait, for each function.
    pub waiters: usize,
    /// A slot idle for so long is retired: the shorter time when memory is scarce, the longer one when it is not.
    pub idle_min: Duration,
    pub idle_max: Duration,
    /// A slot so old is retired when it is idle, or when it is given back; `None`: never.
    pub max_age: Option<Duration>,
    /// How long a request waits for a settling slot.
    pub settle: Duration,
}

/// Load, in parts of a thousand of the budget, up to which idle slots have the longer time, and from which the shorter.
const RELAXED: u64 = 500;
const TIGHT: u64 = 900;

/// A start that takes longer is *late*: it holds its place no more, or an init that hangs for its ten seconds would keep
/// everybody else waiting for longer than they do.
pub const PLACE: Duration = Duration::from_secs(2);

/// For so long who lacks memory may hold others up, so that memory which they give back comes together; then, if it was
/// not enough, nobody may for a while. So a large function fits where invocations are short, and where they are long it
/// costs the others a fifth of the time and no more.
pub const CLAIM: Duration = Duration::from_secs(1);
pub const NO_CLAIM: Duration = Duration::from_secs(4);

/// A function's invocations whose inits failed, one after the other, before it is not tried again at once.
pub const FAILURES_FREE: u32 = 2;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Somebody may have mended meanwhile what the init needs.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long a slot may be idle when so much of the budget is charged.
pub fn idle_time(limits: &Limits, charged: u64) -> Duration {
    let load = if limits.budget == 0 { 1000 } else { u128::from(charged) * 1000 / u128::from(limits.budget) };
    let load = u64::try_from(load).unwrap_or(u64::MAX).clamp(RELAXED, TIGHT);
    let (min, max) = (limits.idle_min.min(limits.idle_max), limits.idle_max);
    let spread = (max - min).as_nanos() * u128::from(load - RELAXED) / u128::from(TIGHT - RELAXED);
    max - Duration::from_nanos(u64::try_from(spread).unwrap_or(u64::MAX))
}

/// How old a slot may be. Up to an eighth less than `max_age`, each slot another part of it: those that were born together,
/// in a storm of requests, do not all end together.
pub fn life_time(limits: &Limits, slot: SlotId) -> Option<Duration> {
    limits.max_age.map(|most| most - most / 8 * (slot.0.wrapping_mul(0x9E37_79B9) % 1024) as u32 / 1024)
}

/// Of the places for starts, how many a function may have whose last init failed.
pub fn places_in_doubt(starts: usize) -> usize {
    (starts / 2).max(1)
}

/// How long a function is not started again when so many of its invocations in a row ended with a failed init.
pub fn pause(failures: u32) -> Option<Duration> {
    let doublings = failures.checked_sub(FAILURES_FREE)?;
    Some(FIRST_PAUSE.saturating_mul(1 << doublings.min(16)).min(LONGEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(budget: u64, idle_min: u64, idle_max: u64) -> Limits {
        Limits {
            budget,
            starts: 8,
            concurrency: 100,
            waiters: 10,
            idle_min: Duration::from_secs(idle_min),
            idle_max: Duration::from_secs(idle_max),
            max_age: Some(Duration::from_secs(14_400)),
            settle: Duration::from_millis(10),
        }
    }

    #[test]
    fn idle_time_is_fifteen_minutes_up_to_half_of_the_budget_and_five_from_nine_tenths_on() {
        let minutes = |percent: u64| idle_time(&limits(1000 << 20, 300, 900), (percent * 10) << 20).as_secs_f64() / 60.0;
        assert_eq!([0, 50, 70, 90, 100, 130].map(minutes), [15.0, 15.0, 10.0, 5.0, 5.0, 5.0]);
    }

    proptest! {
        #[test]
        fn more_load_never_means_more_idle_time_and_it_stays_between_its_bounds(
            budget in 0..1u64 << 50, less: u64, more: u64, min in 0..100_000u64, max in 0..100_000u64,
        ) {
            let limits = limits(budget, min.min(max), min.max(max));
            let (long, short) = (idle_time(&limits, less.min(more)), idle_time(&limits, less.max(more)));
            prop_assert!(limits.idle_min <= short && short <= long && long <= limits.idle_max);
        }

        #[test]
        fn a_life_time_is_the_slots_own_and_at_most_an_eighth_shorter(slot: u64, seconds in 1..10_000_000u64) {
            let limits = Limits { max_age: Some(Duration::from_secs(seconds)), ..limits(1, 1, 1) };
            let life = life_time(&limits, SlotId(slot)).unwrap();
            prop_assert!(Duration::from_secs(seconds) * 7 / 8 <= life && life <= Duration::from_secs(seconds));
            prop_assert_eq!(life_time(&limits, SlotId(slot)), Some(life));
            prop_assert_eq!(life_time(&Limits { max_age: None, ..limits }, SlotId(slot)), None);
        }

        #[test]
        fn pauses_grow_and_are_bounded(failures: u32) {
            let pause_of = |failures| pause(failures).unwrap_or_default();
            prop_assert!(pause_of(failures) <= pause_of(failures.saturating_add(1)));
            prop_assert!(pause_of(failures) <= LONGEST_PAUSE);
        }
    }

    #[test]
    fn slots_of_one_moment_end_at_many() {
        let lives: std::collections::BTreeSet<_> = (1..=20).map(|n| life_time(&limits(1, 1, 1), SlotId(n))).collect();
        assert!(lives.len() >= 18, "{lives:?}");
    }

    #[test]
    fn who_failed_once_is_tried_again_at_once() {
        assert_eq!([0, 1].map(pause), [None, None]);
        assert_eq!([2, 3, 4, 8, 9].map(|n| pause(n).unwrap().as_secs()), [1, 2, 4, 60, 60]);
        assert_eq!([1, 2, 3, 8].map(places_in_doubt), [1, 1, 1, 4]);
    }
}
