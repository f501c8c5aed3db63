//! Histories with a given clock.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const RULES: Rules = Rules { launchers: 2, drain: Duration::from_secs(30), cut: Duration::from_secs(12) };

/// A course that serves, two launchers (1 and 2) running.
fn serving(now: Instant) -> Course {
    let mut course = Course::new(RULES, now);
    let orders = course.tick(now);
    assert_eq!(orders[0], Order::StartServer);
    assert_eq!(orders[1..], [start(1, 0), start(2, 1)]);
    assert_eq!(course.happened(Event::ServerReady, now), [Order::SayReady]);
    course
}

fn start(number: u32, slot: u32) -> Order {
    Order::StartLauncher { number, slot }
}

fn ended(number: u32) -> Event {
    Event::LauncherEnded { number }
}

#[test]
fn a_dead_launcher_is_buried_before_its_slot_is_filled_under_a_new_number() {
    let now = Instant::now();
    let mut course = serving(now);
    assert_eq!(course.happened(ended(2), now + QUICK), [Order::BuryLauncher { number: 2 }, start(3, 1)]);
}

#[test]
fn a_server_that_died_is_replaced_only_when_all_launchers_are_gone_and_swept() {
    let now = Instant::now();
    let mut course = serving(now);
    assert_eq!(course.happened(Event::ServerEnded, now), []);
    assert_eq!(course.happened(ended(1), now), []);
    assert_eq!(course.happened(ended(2), now), [Order::SweepAll]);
    assert_eq!(course.tick(now), [Order::StartServer, start(3, 0), start(4, 1)]);
}

#[test]
fn launchers_that_linger_without_a_server_are_killed_once() {
    let now = Instant::now();
    let mut course = serving(now);
    course.happened(Event::ServerEnded, now);
    let late = course.next_deadline().unwrap();
    assert_eq!(course.tick(late), [Order::KillLaunchers { why: KillReason::Lingered }]);
    assert_eq!(course.tick(late + CLEAR_WITHIN), []);
}

#[test]
fn five_missed_heartbeats_kill_the_server() {
    let now = Instant::now();
    let mut course = serving(now);
    let heard = now + Duration::from_secs(8);
    course.happened(Event::Heartbeat, heard);
    assert_eq!(course.tick(now + SILENCE), []);
    assert_eq!(course.next_deadline(), Some(heard + SILENCE));
    assert_eq!(course.tick(heard + SILENCE), [Order::KillServer { why: KillReason::Silent }]);
    assert_eq!(course.tick(heard + 2 * SILENCE), [], "once is enough");
}

#[test]
fn a_stop_drains_then_clears_then_sweeps() {
    let now = Instant::now();
    let mut course = serving(now);
    assert_eq!(course.happened(Event::StopAsked, now), [Order::Drain]);
    course.happened(Event::ServerEnded, now);
    course.happened(ended(1), now);
    assert_eq!(course.happened(ended(2), now), [Order::SweepAll, Order::Finish(Finish::Stopped)]);
}

#[test]
fn a_drain_ends_at_its_limit_is_cut_at_a_second_signal_and_killed_at_a_third() {
    let now = Instant::now();
    let why = KillReason::DrainedTooLong;
    let mut course = serving(now);
    course.happened(Event::StopAsked, now);
    assert_eq!(course.tick(now + RULES.drain), [Order::KillServer { why }]);

    let mut course = serving(now);
    course.happened(Event::StopAsked, now);
    assert_eq!(course.happened(Event::StopAsked, now), [Order::Cut]);
    assert_eq!(course.next_deadline(), Some(now + RULES.cut));
    assert_eq!(course.tick(now + RULES.cut), [Order::KillServer { why }], "it did not tell its callers in time");

    let mut course = serving(now);
    course.happened(Event::StopAsked, now);
    let late = now + RULES.drain - Duration::from_secs(1);
    assert_eq!(course.happened(Event::StopAsked, late), [Order::Cut]);
    assert_eq!(course.next_deadline(), Some(now + RULES.drain), "no signal makes it longer");
    let why = KillReason::Impatient;
    assert_eq!(course.happened(Event::StopAsked, late), [Order::KillServer { why }, Order::KillLaunchers { why }]);
}

#[test]
fn a_second_signal_kills_when_the_server_cannot_be_told() {
    let now = Instant::now();
    let mut course = serving(now);
    course.happened(Event::StopAsked, now);
    course.happened(Event::ServerHungUp, now);
    let why = KillReason::Impatient;
    assert_eq!(course.happened(Event::StopAsked, now), [Order::KillServer { why }, Order::KillLaunchers { why }]);
}

#[test]
fn a_launcher_that_dies_during_the_drain_is_replaced() {
    let now = Instant::now();
    let mut course = serving(now);
    course.happened(Event::StopAsked, now);
    assert_eq!(course.happened(ended(1), now), [Order::BuryLauncher { number: 1 }, start(3, 0)]);
}

#[test]
fn launchers_that_follow_a_leaving_server_are_not_replaced() {
    let now = Instant::now();
    let mut course = serving(now);
    course.happened(Event::StopAsked, now);
    assert_eq!(course.happened(Event::ServerHungUp, now), []);
    assert_eq!(course.happened(ended(1), now), []);
    assert_eq!(course.happened(ended(2), now), []);
    assert_eq!(course.happened(Event::ServerEnded, now), [Order::SweepAll, Order::Finish(Finish::Stopped)]);
}

#[test]
fn quick_deaths_wait_longer_and_longer_but_never_over_five_seconds() {
    let mut backoff = Backoff::default();
    let waits: Vec<u64> = (0..9).map(|_| backoff.after_a_life_of(Duration::ZERO).as_millis() as u64).collect();
    assert_eq!(waits, [0, 0, 0, 500, 1000, 2000, 4000, 5000, 5000]);
    assert_eq!(backoff.after_a_life_of(QUICK), Duration::ZERO, "a long life forgives");
}

#[test]
fn a_server_that_is_never_ready_is_given_up() {
    let mut now = Instant::now();
    let mut course = Course::new(Rules { launchers: 0, ..RULES }, now);
    for _ in 1..HOPELESS {
        now = course.next_deadline().unwrap();
        assert_eq!(course.tick(now), [Order::StartServer]);
        assert_eq!(course.happened(Event::ServerEnded, now), [Order::SweepAll]);
    }
    now = course.next_deadline().unwrap();
    course.tick(now);
    assert_eq!(course.happened(Event::ServerEnded, now), [Order::SweepAll, Order::Finish(Finish::NeverServed)]);
}

#[test]
fn a_stop_while_nothing_runs_finishes_at_once() {
    let now = Instant::now();
    let mut course = Course::new(RULES, now);
    assert_eq!(course.happened(Event::StopAsked, now), [Order::Finish(Finish::Stopped)]);
    assert_eq!(course.next_deadline(), None);
}

/// A world that believes every order and where anything may happen at any time.
#[derive(Default)]
struct World {
    server: bool,
    launchers: BTreeSet<u32>,
    slots: BTreeSet<(u32, u32)>,
    ever: u32,
    finished: bool,
}

impl World {
    fn carry_out(&mut self, orders: &[Order]) {
        for order in orders {
            assert!(!self.finished, "{order:?} after the end");
            match *order {
                Order::StartServer => {
                    assert!(!self.server && self.launchers.is_empty());
                    self.server = true;
                }
                Order::StartLauncher { number, slot } => {
                    assert!(self.server, "a launcher without a server");
                    assert!(number > self.ever, "a number came twice");
                    assert!(self.slots.iter().all(|(_, taken)| *taken != slot), "two launchers in one slot");
                    self.ever = number;
                    self.launchers.insert(number);
                    self.slots.insert((number, slot));
                }
                Order::SweepAll => assert!(!self.server && self.launchers.is_empty(), "swept the living"),
                Order::BuryLauncher { number } => assert!(!self.launchers.contains(&number), "buried alive"),
                Order::Finish(_) => {
                    assert!(!self.server && self.launchers.is_empty());
                    self.finished = true;
                }
                _ => {}
            }
        }
    }
}

proptest! {
    #[test]
    fn no_history_breaks_the_rules(steps in prop::collection::vec((0..8u8, 0..20_000u64), 1..200)) {
        let mut now = Instant::now();
        let mut course = Course::new(RULES, now);
        let mut world = World::default();
        for (kind, millis) in steps {
            now += Duration::from_millis(millis);
            world.carry_out(&course.tick(now));
            let event = match kind {
                0 if world.server => Event::ServerReady,
                1 if world.server => {
                    world.server = false;
                    Event::ServerEnded
                }
                2..=4 => match world.launchers.pop_first() {
                    Some(number) => {
                        world.slots.retain(|(found, _)| *found != number);
                        Event::LauncherEnded { number }
                    }
                    None => Event::Heartbeat,
                },
                6 if world.server && millis > 10_000 => Event::ServerHungUp,
                5 if millis > 19_000 => Event::StopAsked,
                _ => Event::Heartbeat,
            };
            world.carry_out(&course.happened(event, now));
        }
        // From wherever it is, a stop and the end of everybody finish it.
        if !world.finished {
            world.carry_out(&course.happened(Event::StopAsked, now));
        }
        if std::mem::take(&mut world.server) {
            world.carry_out(&course.happened(Event::ServerEnded, now));
        }
        while let Some(number) = world.launchers.pop_first() {
            world.slots.retain(|(found, _)| *found != number);
            world.carry_out(&course.happened(Event::LauncherEnded { number }, now));
        }
        prop_assert!(world.finished);
    }
}
