//! One case for each rule of who starts, who waits and who goes, on a clock of its own.

use std::time::Duration;

use super::*;
use crate::function::Memory;
use crate::server::pool::policy::{CLAIM, NO_CLAIM, PLACE};

const MIB: u64 = 1 << 20;
const SMALL: Usage = Usage { now: 20 * MIB, tmp: 0 };

pub(super) fn limits() -> Limits {
    Limits {
        budget: 1024 * MIB,
        starts: 2,
        concurrency: 8,
        waiters: 3,
        idle_min: Duration::from_millis(20),
        idle_max: Duration::from_millis(60),
        max_age: Some(Duration::from_millis(400)),
        settle: Duration::from_millis(5),
    }
}

pub(super) fn want(name: &str, mib: u32, now: Instant) -> Want {
    Want {
        function: FunctionName::parse(name).unwrap(),
        stamp: Stamp(1),
        memory: Memory::from_mib(mib).unwrap(),
        reuse: Reuse::Always,
        until: now + Duration::from_secs(5),
    }
}

/// Starts one and gives it back, using so much.
#[track_caller]
pub(super) fn warm(core: &mut Core, want: &Want, usage: Usage, now: Instant) -> SlotId {
    let (ticket, orders) = core.request(want.clone(), now);
    let [Order::Start { ticket: served, slot }] = orders[..] else { panic!("{orders:?}") };
    assert_eq!(served, ticket);
    core.started(slot, now);
    assert_eq!(core.give_back(slot, usage, Some(want.stamp), now), []);
    slot
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn roomy() -> Limits {
    let (idle_min, idle_max) = (secs(300), secs(900));
    Limits { starts: 8, concurrency: 100, waiters: 20, idle_min, idle_max, max_age: None, ..limits() }
}

/// Starts one for the request that comes now.
#[track_caller]
fn start(core: &mut Core, want: &Want, now: Instant) -> SlotId {
    let (ticket, orders) = core.request(want.clone(), now);
    match orders.last() {
        Some(Order::Start { ticket: served, slot }) if *served == ticket => *slot,
        _ => panic!("{orders:?}"),
    }
}

#[track_caller]
fn run(core: &mut Core, want: &Want, now: Instant) -> SlotId {
    let slot = start(core, want, now);
    core.started(slot, now);
    slot
}

fn started(orders: &[Order]) -> Vec<Ticket> {
    let start = |order: &Order| match order {
        Order::Start { ticket, .. } => Some(*ticket),
        _ => None,
    };
    orders.iter().filter_map(start).collect()
}

#[test]
fn idle_slots_go_the_later_the_lighter_the_load_and_no_more_than_the_load_asks_for() {
    let now = Instant::now();
    let mut core = Core::new(roomy());
    let slots: Vec<SlotId> = (0..2)
        .map(|n| warm(&mut core, &want(&format!("f{n}"), 512, now), Usage { now: 480 * MIB, tmp: 0 }, now + secs(n)))
        .collect();
    assert_eq!(core.tick(now + secs(299)), []);
    let gone = core.tick(now + secs(330));
    assert_eq!(gone, [Order::Retire { slot: slots[0], why: Retire::Idle }], "with the first, the load is gone");
    assert_eq!(core.tick(now + secs(899)), []);
    assert_eq!(core.tick(now + secs(901)), [Order::Retire { slot: slots[1], why: Retire::Idle }]);
}

#[test]
fn an_old_slot_goes_when_it_is_idle_or_comes_back_and_never_while_it_runs() {
    let now = Instant::now();
    let mut core = Core::new(Limits { max_age: Some(secs(100)), ..roomy() });
    let (a, b) = (want("a", 128, now), want("b", 128, now));
    let idle = warm(&mut core, &a, SMALL, now);
    let busy = run(&mut core, &b, now);
    assert_eq!(core.tick(now + secs(87)), []);
    assert_eq!(core.tick(now + secs(100)), [Order::Retire { slot: idle, why: Retire::Age }]);
    assert_eq!(core.give_back(busy, SMALL, Some(b.stamp), now + secs(500)), [Order::Retire { slot: busy, why: Retire::Age }]);
    assert_eq!(core.tally().retired, BTreeMap::from([(Retire::Age, 2)]));
}

#[test]
fn who_holds_least_is_next_however_many_of_another_function_came_before() {
    let now = Instant::now();
    let mut core = Core::new(Limits { starts: 1, ..roomy() });
    let (flood, quiet) = (want("flood", 128, now), want("quiet", 128, now));
    let first = start(&mut core, &flood, now);
    let waiting: Vec<Ticket> = (0..10).map(|_| core.request(flood.clone(), now).0).collect();
    let (quiet, orders) = core.request(quiet, now);
    assert_eq!(orders, []);
    assert_eq!(started(&core.started(first, now)), [quiet]);
    let second = core.slots().find(|(_, slot)| slot.state == State::Initialising).unwrap().0;
    assert_eq!(started(&core.started(second, now)), [waiting[0]], "within a function, in order of arrival");
}

#[test]
fn who_lacks_memory_holds_others_up_for_a_moment_and_then_not_for_a_while() {
    let now = Instant::now();
    let mut core = Core::new(roomy());
    let small: Vec<SlotId> = (0..7).map(|n| run(&mut core, &want(&format!("s{n}"), 128, now), now)).collect();
    // Two hundred and fifty-six more than there are.
    let (large, orders) = core.request(want("large", 384, now), now);
    assert_eq!(orders, []);
    // A warm one cannot take what the large one collects.
    let (again, _) = core.request(want("s0", 128, now), now);
    assert_eq!(core.give_back(small[0], SMALL, Some(Stamp(1)), now), [], "its function's next request gives way");
    let orders = core.give_back(small[1], SMALL, Some(Stamp(1)), now);
    assert!(started(&orders).contains(&large), "{orders:?}");
    assert!(!started(&orders).contains(&again));
}

#[test]
fn a_claim_that_comes_to_nothing_costs_others_a_second_and_no_second_one_follows_at_once() {
    let now = Instant::now();
    let mut core = Core::new(roomy());
    let busy: Vec<SlotId> = (0..7).map(|n| run(&mut core, &want(&format!("s{n}"), 128, now), now)).collect();
    core.request(want("large", 1024, now), now);
    let (small, orders) = core.request(want("small", 128, now), now);
    assert_eq!(orders, [], "the last 128 MB are kept for who came first");
    assert_eq!(core.tick(now + CLAIM / 2), []);
    assert_eq!(started(&core.tick(now + CLAIM)), [small]);
    let after = now + CLAIM;
    assert_eq!(core.give_back(busy[0], SMALL, Some(Stamp(1)), after), []);
    let (ticket, orders) = core.request(want("s0", 128, after), after);
    assert_eq!(orders, [Order::Lend { ticket, slot: busy[0] }], "nobody is held up now");
    core.give_back(busy[0], SMALL, Some(Stamp(1)), after);
    core.tick(now + CLAIM + NO_CLAIM - Duration::from_millis(1));
    assert_eq!(core.claim, None);
}

#[test]
fn one_large_function_after_the_other_leaves_room_for_small_ones() {
    let now = Instant::now();
    let mut core = Core::new(roomy());
    run(&mut core, &want("long", 512, now), now);
    // As many as may wait, each for less time than a claim lasts; whenever one goes away another comes.
    let (mut at, mut served) = (now, 0);
    for round in 0..100 {
        at = now + Duration::from_millis(100 * round);
        let impatient = |name: &str| Want { until: at + Duration::from_millis(250), ..want(name, 1024, at) };
        core.request(impatient(&format!("large{}", round % 3)), at);
        let (ticket, mut orders) = core.request(Want { until: at + Duration::from_millis(90), ..want("small", 128, at) }, at);
        orders.extend(core.tick(at + Duration::from_millis(95)));
        let slot = orders.iter().find_map(|order| match order {
            Order::Start { ticket: one, slot } | Order::Lend { ticket: one, slot } if *one == ticket => Some(*slot),
            _ => None,
        });
        if let Some(slot) = slot {
            core.started(slot, at);
            core.give_back(slot, SMALL, Some(Stamp(1)), at);
            served += 1;
        }
    }
    assert!(served > 70, "{served} of 100 within {:?}", at - now);
}

#[test]
fn a_start_that_hangs_gives_its_place_away_and_its_function_starts_no_more() {
    let now = Instant::now();
    let mut core = Core::new(Limits { starts: 2, ..roomy() });
    let (hangs, good) = (want("hangs", 128, now), want("good", 128, now));
    let stuck = [start(&mut core, &hangs, now), start(&mut core, &hangs, now)];
    let (own, _) = core.request(hangs.clone(), now);
    let (other, orders) = core.request(good.clone(), now);
    assert_eq!(orders, []);
    assert_eq!(started(&core.tick(now + PLACE - Duration::from_millis(1))), []);
    let late = now + PLACE;
    assert_eq!(started(&core.tick(late)), [other]);
    // There is a second free place, but not for this function.
    assert_eq!(core.remove(stuck[0], Retire::Init, late), []);
    assert_eq!(started(&core.remove(stuck[1], Retire::Init, late)), [own]);
}

#[test]
fn whose_init_failed_gets_half_of_the_places_and_after_two_failures_is_told_again() {
    let now = Instant::now();
    let mut core = Core::new(Limits { starts: 4, ..roomy() });
    let bad = want("bad", 128, now);
    let slot = start(&mut core, &bad, now);
    assert_eq!(core.init_failed(slot, Some(bad.stamp), now), []);
    // Tried again at once: with two of four places.
    let two = [start(&mut core, &bad, now), start(&mut core, &bad, now)];
    let (third, orders) = core.request(bad.clone(), now);
    assert_eq!(orders, []);
    assert_eq!(core.init_failed(two[0], Some(bad.stamp), now), [Order::TellAgain { ticket: third }]);
    core.init_failed(two[1], Some(bad.stamp), now);
    let (ticket, orders) = core.request(bad.clone(), now);
    assert_eq!(orders, [Order::TellAgain { ticket }], "not in a tight loop");
    // A second later one may try; the next one hears of the last failure meanwhile, not of this one's.
    let later = now + secs(10);
    let trial = start(&mut core, &bad, later);
    core.start_is_over(trial, later);
    let (ticket, orders) = core.request(bad.clone(), later);
    assert_eq!(orders, [Order::TellAgain { ticket }]);
    core.started(trial, later);
    start(&mut core, &bad, later);
    assert_eq!((core.failing(), core.tally().told_again), (0, 3));
}

#[test]
fn a_warm_slot_is_lent_whatever_fails_beside_it_and_new_code_is_tried_at_once() {
    let now = Instant::now();
    let mut core = Core::new(roomy());
    let f = want("f", 128, now);
    let slot = warm(&mut core, &f, SMALL, now);
    for n in 0..4 {
        let (_, orders) = core.request(f.clone(), now);
        assert!(matches!(orders[..], [Order::Lend { .. }]), "{orders:?}");
        let bad = core.request(f.clone(), now + secs(n * 100)).1;
        let [Order::Start { slot: bad, .. }] = bad[..] else { panic!("{bad:?}") };
        core.init_failed(bad, Some(f.stamp), now + secs(n * 100));
        core.give_back(slot, SMALL, Some(f.stamp), now);
    }
    core.function_changed(&f.function, Some(Stamp(2)), now + secs(300));
    start(&mut core, &Want { stamp: Stamp(2), ..f }, now + secs(300));
}

#[test]
fn who_finds_the_warm_slot_busy_waits_for_it_and_is_not_told_of_another_slots_failed_init() {
    let now = Instant::now();
    let mut core = Core::new(roomy());
    let f = want("f", 128, now);
    let slot = warm(&mut core, &f, SMALL, now);
    assert!(matches!(core.request(f.clone(), now).1[..], [Order::Lend { .. }]));
    for _ in 0..2 {
        let bad = start(&mut core, &f, now);
        core.init_failed(bad, Some(f.stamp), now);
    }
    let (ticket, orders) = core.request(f.clone(), now);
    assert_eq!(orders, [], "nobody is told, and nothing is started");
    assert_eq!(core.give_back(slot, SMALL, Some(f.stamp), now), [Order::Lend { ticket, slot }]);
}

#[test]
fn a_slot_of_a_function_without_reuse_serves_once_and_nobody_waits_for_it() {
    let now = Instant::now();
    let mut core = Core::new(roomy());
    let once = Want { reuse: Reuse::Never, ..want("f", 128, now) };
    let slot = run(&mut core, &once, now);
    core.answered(slot);
    let next = start(&mut core, &once, now);
    assert_ne!(next, slot);
    assert_eq!(core.give_back(slot, SMALL, Some(once.stamp), now), [Order::Retire { slot, why: Retire::Once }]);
}

#[test]
fn a_drained_function_loses_its_idle_slots_now_and_its_busy_ones_when_they_come_back() {
    let now = Instant::now();
    let mut core = Core::new(roomy());
    let f = want("f", 128, now);
    let busy = run(&mut core, &f, now);
    let idle = run(&mut core, &f, now);
    core.give_back(idle, SMALL, Some(f.stamp), now);
    let other = warm(&mut core, &want("g", 128, now), SMALL, now);
    assert_eq!(core.drain(&f.function, now), (1, vec![Order::Retire { slot: idle, why: Retire::Drained }]));
    // Who comes meanwhile gets a new one, and that one stays.
    let new = run(&mut core, &f, now);
    assert_eq!(core.give_back(busy, SMALL, Some(f.stamp), now), [Order::Retire { slot: busy, why: Retire::Drained }]);
    assert_eq!(core.give_back(new, SMALL, Some(f.stamp), now), []);
    assert_eq!(core.slots().map(|(id, _)| id).collect::<Vec<_>>(), [other, new]);
}

#[test]
fn a_dismissed_slot_that_fails_meanwhile_is_gone_for_the_reason_it_was_dismissed_for() {
    let now = Instant::now();
    let mut core = Core::new(roomy());
    let slot = run(&mut core, &want("f", 128, now), now);
    assert_eq!(core.dismiss(slot, Retire::Killed, now), (false, vec![]));
    core.remove(slot, Retire::Failed, now);
    assert_eq!(core.tally().retired, BTreeMap::from([(Retire::Killed, 1)]));
    assert_eq!(core.dismiss(slot, Retire::Recycled, now), (true, vec![]), "who is gone cannot go twice");
}

#[test]
fn a_smaller_budget_takes_the_least_recently_used_at_once_and_nobody_who_runs() {
    let now = Instant::now();
    let mut core = Core::new(roomy());
    let old = warm(&mut core, &want("a", 512, now), Usage { now: 300 * MIB, tmp: 0 }, now);
    let young = warm(&mut core, &want("b", 512, now), Usage { now: 100 * MIB, tmp: 0 }, now + secs(1));
    let busy = run(&mut core, &want("c", 512, now), now);
    let lowered = |mib| Limits { budget: mib * MIB, ..roomy() };
    assert_eq!(core.bound(lowered(640), now), [Order::Retire { slot: old, why: Retire::Memory }]);
    assert_eq!(core.bound(lowered(128), now), [Order::Retire { slot: young, why: Retire::Memory }]);
    assert_eq!(core.charged(), 512 * MIB);
    assert!(core.slot(busy).is_some());
}

#[test]
fn a_frozen_one_is_charged_what_it_uses_and_a_busy_one_what_it_may() {
    let now = Instant::now();
    let mut core = Core::new(limits());
    warm(&mut core, &want("a", 512, now), Usage { now: 40 * MIB, tmp: 0 }, now);
    assert_eq!(core.charged(), 40 * MIB);
    core.request(want("a", 512, now), now);
    assert_eq!(core.charged(), 512 * MIB);
}

#[test]
fn tmp_in_use_is_charged_in_steps_beside_the_memory() {
    let now = Instant::now();
    let mut core = Core::new(limits());
    let (_, orders) = core.request(want("a", 128, now), now);
    let [Order::Start { slot, .. }] = orders[..] else { panic!("{orders:?}") };
    core.started(slot, now);
    assert_eq!(core.grow(slot, 1), (true, vec![]));
    assert_eq!(core.charged(), (128 + 64) * MIB);
    assert_eq!(core.grow(slot, 65 * MIB), (true, vec![]));
    assert_eq!(core.charged(), (128 + 128) * MIB);
    assert!(!core.grow(slot, 900 * MIB).0);
}

#[test]
fn the_least_recently_used_goes_first_and_no_more_than_needed() {
    let now = Instant::now();
    let mut core = Core::new(limits());
    let old = warm(&mut core, &want("a", 512, now), Usage { now: 300 * MIB, tmp: 0 }, now);
    warm(&mut core, &want("b", 512, now), Usage { now: 300 * MIB, tmp: 0 }, now + Duration::from_millis(1));
    let (_, orders) = core.request(want("c", 512, now), now);
    assert!(
        matches!(orders[..], [Order::Retire { slot, why: Retire::Memory }, Order::Start { .. }] if slot == old),
        "{orders:?}"
    );
}

#[test]
fn a_thaw_evicts_others_but_never_itself_or_a_busy_one() {
    let now = Instant::now();
    let mut core = Core::new(limits());
    let mine = warm(&mut core, &want("a", 512, now), Usage { now: 100 * MIB, tmp: 0 }, now);
    core.request(want("b", 512, now), now);
    let other = warm(&mut core, &want("c", 256, now), Usage { now: 100 * MIB, tmp: 0 }, now);
    let (ticket, orders) = core.request(want("a", 512, now), now);
    assert_eq!(orders, [Order::Retire { slot: other, why: Retire::Memory }, Order::Lend { ticket, slot: mine }]);
}

#[test]
fn what_can_never_fit_is_refused_at_once() {
    let now = Instant::now();
    let (ticket, orders) = Core::new(limits()).request(want("a", 2048, now), now);
    assert_eq!(orders, [Order::Refuse { ticket, why: Throttle::Memory }]);
}

#[test]
fn the_concurrency_limit_refuses_at_once_and_does_not_count_the_answered() {
    let now = Instant::now();
    let mut core = Core::new(Limits { concurrency: 1, ..limits() });
    let (_, orders) = core.request(want("a", 128, now), now);
    let [Order::Start { slot, .. }] = orders[..] else { panic!("{orders:?}") };
    core.started(slot, now);
    let (ticket, orders) = core.request(want("a", 128, now), now);
    assert_eq!(orders, [Order::Refuse { ticket, why: Throttle::Concurrency }]);
    core.answered(slot);
    let (_, orders) = core.request(want("a", 128, now), now);
    assert_eq!(orders, [], "it waits for the one that is about to come back");
}

#[test]
fn the_queue_of_a_function_is_bounded() {
    let now = Instant::now();
    let mut core = Core::new(Limits { starts: 1, ..limits() });
    core.request(want("a", 128, now), now);
    for _ in 0..limits().waiters {
        assert_eq!(core.request(want("a", 128, now), now).1, []);
    }
    let (ticket, orders) = core.request(want("a", 128, now), now);
    assert_eq!(orders, [Order::Refuse { ticket, why: Throttle::Queue }]);
}

#[test]
fn who_wants_the_changed_function_does_not_wait_for_the_memory_that_the_old_one_would_need() {
    let now = Instant::now();
    let mut core = Core::new(Limits { budget: 512 * MIB, ..limits() });
    let slot = start(&mut core, &want("a", 128, now), now);
    core.started(slot, now);
    let large = |n| Want { stamp: Stamp(n), ..want("a", 512, now) };
    // Their claim is over, and nobody may make another for a while.
    let (ticket, _) = core.request(large(2), now);
    core.abandon(ticket, now);
    assert_eq!(core.request(large(2), now).1, [], "it waits for the first one's end");
    core.function_changed(&want("a", 128, now).function, Some(Stamp(3)), now);
    start(&mut core, &Want { stamp: Stamp(3), ..want("a", 128, now) }, now);
}

#[test]
fn who_waits_is_not_refused_for_a_reserve_that_has_gone_while_another_holds_it_up() {
    let now = Instant::now();
    let mut core = Core::new(Limits { starts: 10, budget: 512 << 20, ..limits() });
    let reserved = want("reserved", 128, now);
    core.reserve(&reserved.function, Some(1), now);
    let slot = run(&mut core, &reserved, now);
    core.answered(slot);
    let until = now + CLAIM / 2;
    let (late, orders) = core.request(Want { until, ..reserved.clone() }, now);
    assert_eq!(orders, [], "it waits for the slot that has answered");
    run(&mut core, &want("other", 256, now), now);
    core.request(Want { until: now + secs(60), ..want("large", 512, now) }, now);
    core.reserve(&reserved.function, None, now);
    assert_eq!(core.tick(until), [Order::Refuse { ticket: late, why: Throttle::Starts }]);
}
