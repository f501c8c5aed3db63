//! What is counted, under which names, and how many of them there can be.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use super::*;
use crate::invocation::{Cause, ProcessEnd, RequestId, Throttle};
use crate::server::events::{Events, Retire, Subject};
use crate::server::pool::{Seen, SeenState, Snapshot};

fn name(text: &str) -> FunctionName {
    FunctionName::parse(text).unwrap()
}

fn event(function: &str, what: What) -> Event {
    let (at, function) = (SystemTime::UNIX_EPOCH, Some(name(function)));
    Event { seq: 1, at, function, version: None, container: None, request: None, what }
}

fn ended(duration_us: u64, cold: bool, cause: Option<&str>) -> What {
    let cause = cause.map(str::to_owned);
    What::Ended { duration_us, billed_ms: 100, memory_mib: 512, max_memory_mib: 30, init_us: None, cold, cause }
}

fn throttled(reason: Throttle) -> What {
    What::Throttled { reason, waited_us: 5_000_000, in_use: 1, limit: 1 }
}

/// The value of a series, which must be there.
#[track_caller]
fn value(text: &str, series: &str) -> f64 {
    let found = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
    found.unwrap_or_else(|| panic!("no {series} in\n{text}"))
}

fn functions_in(text: &str) -> BTreeSet<&str> {
    text.lines().filter_map(|line| line.split("function=\"").nth(1)?.split('"').next()).collect()
}

#[test]
fn each_event_counts_once_and_for_its_function() {
    let tally = Tally::new("test", |_| true);
    for what in [ended(500, true, None), ended(20_000, false, None), ended(2_000_000, false, Some("Sandbox.Timedout"))] {
        tally.see(&event("a", what));
    }
    tally.see(&event("b", throttled(Throttle::Reserved)));
    tally.see(&event("b", What::Ready { build_us: 2000, init_us: 50_000 }));
    let text = tally.text(&Reading::default());
    for (series, expected) in [
        ("kiln_invocations_total{function=\"a\"}", 3.0),
        ("kiln_invocations_total{function=\"b\"}", 0.0),
        ("kiln_cold_starts_total{function=\"a\"}", 1.0),
        ("kiln_invocation_errors_total{cause=\"Sandbox.Timedout\",function=\"a\"}", 1.0),
        ("kiln_throttles_total{function=\"b\",reason=\"reserved\"}", 1.0),
        ("kiln_billed_byte_seconds_total{function=\"a\"}", 512.0 * MIB * 0.3),
        ("kiln_invocation_duration_seconds_count{function=\"a\"}", 3.0),
        ("kiln_cold_start_duration_seconds_sum{step=\"build\"}", 0.002),
        ("kiln_cold_start_duration_seconds_sum{step=\"init\"}", 0.05),
        ("kiln_capacity_wait_duration_seconds_sum{outcome=\"throttled\"}", 5.0),
    ] {
        assert!((value(&text, series) - expected).abs() < 1e-9 * expected.max(1.0), "{series}\n{text}");
    }
    let totals = tally.functions();
    let of = |of: &FunctionTotals| (of.function.clone(), of.invocations, of.errors, of.throttles, of.cold_starts);
    assert_eq!(totals.iter().map(of).collect::<Vec<_>>(), [("a".into(), 3, 1, 0, 1), ("b".into(), 0, 0, 1, 0)]);
    assert!((totals[0].duration_ms - 2020.5).abs() < 1e-6 && (totals[0].billed_gb_s - 0.15).abs() < 1e-9);
}

#[test]
fn a_duration_is_in_every_bucket_that_is_not_below_it() {
    let tally = Tally::new("test", |_| true);
    // On a bound, just above it, and above them all.
    for us in [1000, 1001, 300_000, 900_000_000, 2_000_000_000] {
        tally.see(&event("f", ended(us, false, None)));
    }
    let text = tally.text(&Reading::default());
    let bucket = |le: &str| value(&text, &format!("kiln_invocation_duration_seconds_bucket{{function=\"f\",le=\"{le}\"}}"));
    let found = ["0.001", "0.003", "0.1", "0.3", "1", "300", "1000", "+Inf"].map(bucket);
    assert_eq!(found, [1.0, 2.0, 2.0, 3.0, 3.0, 3.0, 4.0, 5.0]);
}

#[test]
fn past_so_many_functions_the_rest_share_one_name_and_nothing_is_lost() {
    let tally = Tally::bounded(3, "test", |_| true);
    for number in 0..20 {
        for _ in 0..=number {
            tally.see(&event(&format!("f{number}"), ended(1000, false, Some("Runtime.ExitError"))));
        }
        tally.see(&event(&format!("f{number}"), throttled(Throttle::Queue)));
    }
    let text = tally.text(&Reading::default());
    assert_eq!(functions_in(&text), BTreeSet::from(["f0", "f1", "f2", OTHERS]));
    let all: u64 = tally.functions().iter().map(|of| of.invocations).sum();
    assert_eq!(all, (1..=20).sum::<u64>());
    let others = tally.functions().pop().unwrap();
    assert_eq!((others.function.as_str(), others.errors, others.throttles), (OTHERS, all - 6, 17));
    assert_eq!(value(&text, &format!("kiln_throttles_total{{function=\"{OTHERS}\",reason=\"queue\"}}")), 17.0);
}

#[test]
fn what_a_function_calls_its_errors_is_no_label() {
    let tally = Tally::new("test", |_| true);
    for number in 0..1000 {
        tally.see(&event("f", ended(1000, false, Some(&format!("My.Error{number}\"}}\nkiln_fake 1")))));
        let cause = format!("Mine.{number}");
        tally.see(&event("f", What::InitFailed { cause, text: String::new(), by: None, again: false, init_us: 0, peak_mib: 0 }));
    }
    let text = tally.text(&Reading::default());
    assert_eq!(value(&text, "kiln_invocation_errors_total{cause=\"Runtime.Unknown\",function=\"f\"}"), 1000.0);
    assert_eq!(value(&text, "kiln_init_failures_total{cause=\"Runtime.Unknown\",function=\"f\"}"), 1000.0);
    assert!(!text.contains("kiln_fake") && !text.contains("My.") && !text.contains("Mine."));
}

#[test]
fn every_cause_that_kiln_finds_itself_has_a_name_of_its_own() {
    for cause in [
        Cause::Timeout(Duration::ZERO),
        Cause::OutOfMemory,
        Cause::Exit(ProcessEnd::Exited(1)),
        Cause::InvalidEntrypoint { text: String::new() },
        Cause::ResponseTooLarge,
        Cause::InvalidResponseMode,
        Cause::Cut(Duration::ZERO),
        Cause::Sandbox { text: String::new() },
    ] {
        assert_eq!(known_cause(cause.report_type()), cause.report_type());
    }
    assert_eq!(known_cause(Cause::Reported { error_type: "Oops".into() }.report_type()), OWN_ERROR);
}

#[test]
fn reasons_are_spelled_as_people_know_them() {
    for why in Throttle::ALL {
        assert_eq!(serde_json::json!(why), reading::throttle(why));
    }
    let text = Tally::new("test", |_| true).text(&Reading::default());
    for why in Retire::ALL {
        assert_eq!(value(&text, &format!("kiln_environments_retired_total{{reason=\"{why}\"}}")), 0.0);
        // The first of a kind is an increase only where there was a 0 before.
        assert_eq!(value(&text, &format!("kiln_environment_starts_total{{why=\"{why}\"}}")), 0.0);
    }
}

#[test]
fn a_deleted_functions_numbers_stay_for_a_while_and_make_room_then() {
    let there = Arc::new(AtomicBool::new(true));
    let known = there.clone();
    let tally = Tally::bounded(2, "test", move |function| function.as_str() != "old" || known.load(Ordering::SeqCst));
    for function in ["old", "kept", "new"] {
        tally.see(&event(function, ended(1000, false, Some("Runtime.ExitError"))));
        tally.see(&event(function, throttled(Throttle::Memory)));
    }
    let (now, text) = (Instant::now(), |tally: &Tally| tally.text(&Reading::default()));
    there.store(false, Ordering::SeqCst);
    tally.forget_gone(now);
    tally.forget_gone(now + KEPT - Duration::from_secs(1));
    assert!(functions_in(&text(&tally)).contains("old"));
    // Who makes it again meanwhile goes on with its numbers.
    there.store(true, Ordering::SeqCst);
    tally.forget_gone(now + KEPT);
    there.store(false, Ordering::SeqCst);
    tally.forget_gone(now + KEPT);
    assert!(functions_in(&text(&tally)).contains("old"));
    tally.forget_gone(now + 2 * KEPT);
    let left = text(&tally);
    assert_eq!(functions_in(&left), BTreeSet::from(["kept", OTHERS]), "not one line of it is left");
    tally.see(&event("new", ended(1000, false, None)));
    assert_eq!(value(&text(&tally), "kiln_invocations_total{function=\"new\"}"), 1.0);
}

#[test]
fn what_others_keep_is_taken_over_and_never_goes_back() {
    let tally = Tally::bounded(1, "test", |_| true);
    let seen = |function: &str, state, charged_mib| Seen {
        function: name(function),
        version: "$LATEST".into(),
        state,
        age_s: 1.0,
        idle_s: None,
        memory_mib: 128,
        charged_mib,
        used_mib: 20,
        peak_mib: 30,
        cpu_ms: None,
        invocations: 1,
        container: None,
        leaving: None,
    };
    let pool = Snapshot {
        budget_mib: 1024,
        charged_mib: 330,
        retired: [(Retire::Memory, 3)].into(),
        environments: vec![
            seen("f", SeenState::Busy, 128),
            seen("f", SeenState::Idle, 30),
            seen("g", SeenState::Initialising, 128),
            seen("h", SeenState::Idle, 44),
            seen("h", SeenState::Held, 128),
        ],
        ..Snapshot::default()
    };
    let mut reading = Reading { pool, ..Reading::default() };
    reading.upkeep.while_running.cgroups = 2;
    reading.missing.queue = 7;
    reading.lost_environments = 5;
    let text = tally.text(&reading);
    for (series, expected) in [
        ("kiln_environments{state=\"busy\"}", 1.0),
        ("kiln_environments{state=\"idle\"}", 2.0),
        ("kiln_environments{state=\"initialising\"}", 1.0),
        ("kiln_environments{state=\"held\"}", 1.0),
        ("kiln_memory_budget_bytes", (1024_u64 << 20) as f64),
        ("kiln_environments_retired_total{reason=\"memory\"}", 3.0),
        ("kiln_swept_total{kind=\"cgroup\",when=\"running\"}", 2.0),
        ("kiln_log_lines_dropped_total{reason=\"queue\"}", 7.0),
        ("kiln_history_rows_lost_total", 5.0),
        ("kiln_function_environments{function=\"f\"}", 2.0),
        ("kiln_function_memory_charged_bytes{function=\"f\"}", (158_u64 << 20) as f64),
        ("kiln_function_environments{function=\"(others)\"}", 3.0),
        ("kiln_function_memory_charged_bytes{function=\"(others)\"}", (300_u64 << 20) as f64),
    ] {
        assert_eq!(value(&text, series), expected, "{series}\n{text}");
    }
    // Told twice it is the same, and an older word takes nothing back.
    assert_eq!(value(&tally.text(&reading), "kiln_log_lines_dropped_total{reason=\"queue\"}"), 7.0);
    let earlier = tally.text(&Reading::default());
    assert_eq!(value(&earlier, "kiln_log_lines_dropped_total{reason=\"queue\"}"), 7.0);
    assert_eq!(value(&earlier, "kiln_function_environments{function=\"f\"}"), 0.0);
}

#[test]
fn many_threads_count_and_many_ask_and_nothing_is_lost() {
    const THREADS: usize = 4;
    const EACH: usize = 2000;
    let tally = Tally::bounded(8, "test", |_| true);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let tally = &tally;
            scope.spawn(move || {
                for number in 0..EACH {
                    let function = format!("f{}", (thread + number) % 10);
                    tally.see(&event(&function, ended(1000, number % 2 == 0, (number % 4 == 0).then_some("Runtime.ExitError"))));
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..20 {
                let text = tally.text(&Reading::default());
                // A histogram's own numbers agree at every moment.
                for function in functions_in(&text) {
                    let count = format!("kiln_invocation_duration_seconds_count{{function=\"{function}\"}}");
                    let all = format!("kiln_invocation_duration_seconds_bucket{{function=\"{function}\",le=\"+Inf\"}}");
                    assert_eq!(value(&text, &count), value(&text, &all));
                }
            }
        });
    });
    let sum = |of: fn(&FunctionTotals) -> u64| tally.functions().iter().map(of).sum::<u64>();
    let all = (THREADS * EACH) as u64;
    assert_eq!((sum(|of| of.invocations), sum(|of| of.cold_starts), sum(|of| of.errors)), (all, all / 2, all / 4));
}

/// Holds no limit, which a busy host would break: it prints the figures, and checks that they are of all that happened.
#[test]
fn what_telling_and_counting_costs_an_invocation_is_printed() {
    const ROUNDS: usize = 51;
    const EACH: u64 = 500;
    let tally = Arc::new(Tally::new("t", |_| true));
    let houses = [("told", Events::default()), ("told and counted", Events::new(vec![tally.clone()]))];
    let subject = Subject::environment(&name("hello"), "1-17");
    let mut took: [Vec<Duration>; 2] = Default::default();
    // Side by side, so that what else the host does is in both.
    for _ in 0..ROUNDS {
        for ((_, events), took) in houses.iter().zip(&mut took) {
            let began = Instant::now();
            for number in 0..EACH {
                let request = Some(RequestId::new());
                events.emit(&subject, request, What::Thawed);
                events.emit(&subject, request, What::Invoked { cold: false, waited_us: number });
                events.emit(&subject, request, What::Frozen);
                events.emit(&subject, request, ended(800 + number, false, None));
            }
            took.push(began.elapsed() / EACH as u32);
        }
    }
    for ((what, _), took) in houses.iter().zip(&mut took) {
        took.sort_unstable();
        println!(
            "the four events of a warm invocation, {what}: {:.2} us, the median of {ROUNDS}",
            took[ROUNDS / 2].as_nanos() as f64 / 1e3
        );
    }
    assert_eq!(tally.functions()[0].invocations, ROUNDS as u64 * EACH);
}
