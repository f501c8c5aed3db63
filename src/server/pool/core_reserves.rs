//! One case for each rule of limits that are a function's own, or that change while somebody runs or waits.

use super::cases::{limits, want, warm};
use super::*;

const MIB: u64 = 1 << 20;

#[test]
fn a_reserve_is_refused_beyond_at_once_and_none_of_it_goes_to_others() {
    let now = Instant::now();
    let mut core = Core::new(Limits { concurrency: 3, starts: 8, ..limits() });
    core.reserve(&want("mine", 128, now).function, Some(2), now);
    assert!(matches!(core.request(want("other", 128, now), now).1[..], [Order::Start { .. }]));
    let (ticket, orders) = core.request(want("other", 128, now), now);
    assert_eq!(orders, [Order::Refuse { ticket, why: Throttle::Concurrency }], "one of three is unreserved");
    for _ in 0..2 {
        assert!(matches!(core.request(want("mine", 128, now), now).1[..], [Order::Start { .. }]));
    }
    let (ticket, orders) = core.request(want("mine", 128, now), now);
    assert_eq!(orders, [Order::Refuse { ticket, why: Throttle::Reserved }]);
}

#[test]
fn a_reserve_of_nothing_refuses_everything() {
    let now = Instant::now();
    let mut core = Core::new(limits());
    warm(&mut core, &want("a", 128, now), Usage { now: 20 * MIB, tmp: 0 }, now);
    core.reserve(&want("a", 128, now).function, Some(0), now);
    let (ticket, orders) = core.request(want("a", 128, now), now);
    assert_eq!(orders, [Order::Refuse { ticket, why: Throttle::Reserved }]);
    core.reserve(&want("a", 128, now).function, None, now);
    assert!(matches!(core.request(want("a", 128, now), now).1[..], [Order::Lend { .. }]));
}

#[test]
fn the_next_request_of_a_reserve_of_one_waits_for_the_slot_that_has_answered() {
    let now = Instant::now();
    let mut core = Core::new(limits());
    let wanted = want("a", 128, now);
    core.reserve(&wanted.function, Some(1), now);
    let (_, orders) = core.request(wanted.clone(), now);
    let [Order::Start { slot, .. }] = orders[..] else { panic!("{orders:?}") };
    core.started(slot, now);
    core.answered(slot);
    let (ticket, orders) = core.request(wanted.clone(), now);
    assert_eq!(orders, []);
    let late = now + limits().settle * 2;
    assert_eq!(core.tick(late), [], "no second slot starts, however long the first one settles");
    assert_eq!(core.give_back(slot, Usage::default(), Some(Stamp(1)), late), [Order::Lend { ticket, slot }]);
}

#[test]
fn a_lowered_reserve_refuses_the_latest_of_those_who_wait_and_none_who_runs() {
    let now = Instant::now();
    let mut core = Core::new(Limits { starts: 1, ..limits() });
    let wanted = want("a", 128, now);
    core.request(wanted.clone(), now);
    let tickets: Vec<Ticket> = (0..3).map(|_| core.request(wanted.clone(), now).0).collect();
    let refused = |ticket| Order::Refuse { ticket, why: Throttle::Reserved };
    assert_eq!(core.reserve(&wanted.function, Some(2), now), [refused(tickets[2]), refused(tickets[1])]);
    assert_eq!(core.reserve(&wanted.function, Some(0), now), [refused(tickets[0])]);
    assert_eq!(core.in_flight(), 1);
}

#[test]
fn a_smaller_budget_evicts_what_idles_and_touches_nothing_that_runs() {
    let now = Instant::now();
    let mut core = Core::new(limits());
    for function in ["a", "b"] {
        warm(&mut core, &want(function, 128, now), Usage { now: 100 * MIB, tmp: 0 }, now);
    }
    let (_, orders) = core.request(want("c", 128, now), now);
    assert!(matches!(orders[..], [Order::Start { .. }]));
    let orders = core.bound(Limits { budget: 250 * MIB, ..limits() }, now);
    assert!(matches!(orders[..], [Order::Retire { why: Retire::Memory, .. }]), "the one that idles longest: {orders:?}");
    let orders = core.bound(Limits { budget: 128 * MIB, ..limits() }, now);
    assert!(matches!(orders[..], [Order::Retire { why: Retire::Memory, .. }]), "{orders:?}");
    assert_eq!((core.bound(Limits { budget: 1, ..limits() }, now), core.starting()), (vec![], 1));
}

#[test]
fn who_waits_feels_other_limits_at_once() {
    let now = Instant::now();
    let tight = Limits { starts: 1, concurrency: 3, ..limits() };
    let mut core = Core::new(tight.clone());
    core.request(want("a", 128, now), now);
    let (second, third) = (core.request(want("a", 128, now), now).0, core.request(want("a", 128, now), now).0);
    let orders = core.bound(Limits { concurrency: 2, ..tight.clone() }, now);
    assert_eq!(orders, [Order::Refuse { ticket: third, why: Throttle::Concurrency }]);
    let orders = core.bound(Limits { starts: 2, ..tight }, now);
    assert!(matches!(orders[..], [Order::Start { ticket, .. }] if ticket == second), "{orders:?}");
}

#[test]
fn who_waits_for_its_reserve_holds_up_nobody_else() {
    let now = Instant::now();
    let mut core = Core::new(limits());
    let mine = want("mine", 128, now);
    core.reserve(&mine.function, Some(1), now);
    let (_, orders) = core.request(mine.clone(), now);
    let [Order::Start { slot, .. }] = orders[..] else { panic!("{orders:?}") };
    core.started(slot, now);
    core.answered(slot);
    assert_eq!(core.request(mine, now).1, []);
    let late = now + limits().settle * 2;
    assert!(matches!(core.request(want("other", 128, now), late).1[..], [Order::Start { .. }]));
}
