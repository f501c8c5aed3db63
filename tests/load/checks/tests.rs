//! Each invariant can be broken: a good run, with one thing wrong at a time.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::good::{ONCE, RESERVED, Seen, good, kind, s};
use super::*;
use crate::books::{Entry, report};
use crate::heard::{Heard, Life, Server};
use crate::record::{Call, Change, Fate, Function, Kill, Reply, State, Told};
use crate::standing::Course;

#[test]
fn a_good_run_breaks_nothing() {
    let broken: Vec<_> = good().rows().into_iter().filter(|row| !row.ok()).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

type Breaks = fn(&mut Seen);

/// What goes wrong, and what it breaks.
const CASES: &[(&str, &[&str], Breaks)] = &[
    ("an answer never comes", &["each request has one whole answer"], |seen| seen.record.calls[16].fate = Fate::Silent),
    ("an answer comes twice", &["each request has one whole answer"], |seen| {
        seen.record.calls[16].fate = Fate::Garbled("two".into())
    }),
    ("a connection ends by itself", &["each request has one whole answer"], |seen| {
        seen.server_killed(16, 18);
        seen.record.calls[16].fate = Fate::Cut("ended".into());
    }),
    ("an answer is another's", &["an answer belongs to its request"], |seen| seen.told(4).nonce = 5),
    ("an answer is another function's", &["an answer belongs to its request"], |seen| seen.told(4).function = "once".into()),
    ("half of what was sent comes back", &["an answer belongs to its request"], |seen| seen.record.calls[4].pad = 7),
    ("a success says nothing", &["an answer belongs to its request"], |seen| seen.reply(4).told = None),
    (
        "a request id is there twice",
        &["an answer belongs to its request", "each end and refusal is told once, as booked"],
        |seen| {
            seen.reply(17).request = "request-4".into();
        },
    ),
    ("old code runs after an update", &["after an update nobody meets what was before"], |seen| {
        // As a container of its own, which is new.
        *seen.told(8) =
            Told { code: Some(0), count: 1, found: vec![], start: "old".into(), container: "old".into(), ..seen.told(8).clone() };
    }),
    ("a fast one times out", &["each ends as its kind can"], |seen| {
        let reply = seen.reply(4);
        (reply.error, reply.told) = (Some("Sandbox.Timedout".into()), None);
    }),
    ("killed by nobody", &["each ends as its kind can"], |seen| {
        seen.record.kills.push(Kill { function: ONCE, begun: s(14), ended: s(15) });
        let reply = seen.reply(4);
        (reply.error, reply.message, reply.told) = (Some("Runtime.ExitError".into()), "x: signal: killed".into(), None);
    }),
    ("a launcher dies unasked", &["each ends as its kind can"], |seen| {
        let reply = seen.reply(4);
        (reply.error, reply.told) = (Some("Sandbox.Failure".into()), None);
    }),
    ("who has no reserve is told of one", &["each ends as its kind can"], |seen| {
        seen.reply(17).reason = Some("ReservedFunctionConcurrentInvocationLimitExceeded".into());
    }),
    ("a function that is there is not found", &["each ends as its kind can"], |seen| {
        let reply = seen.reply(17);
        (reply.status, reply.refusal) = (404, Some("ResourceNotFoundException".into()));
        seen.pools[1] = seen.pools[0].clone();
        seen.pools[1]["retired"] = json!({ "idle": 20 });
    }),
    ("a kind is always refused", &["no kind of function starves", "afterwards every function works"], |seen| {
        for call in seen.record.calls.iter_mut().filter(|call| call.function == RESERVED) {
            call.fate = Fate::HungUp;
        }
    }),
    ("one does not work afterwards", &["afterwards every function works"], |seen| seen.record.calls[12].roll_call = false),
    ("a container serves two functions", &["no container has two functions or versions"], |seen| {
        seen.told(5).container = "stream-fast-1".into();
    }),
    ("a container serves two versions", &["no container has two functions or versions"], |seen| {
        let container = seen.told(0).container.clone();
        seen.told(4).container = container;
    }),
    ("a new container is used already", &["no container has two functions or versions"], |seen| {
        seen.told(4).found = vec!["marked-other".into()];
    }),
    ("somebody else runs there", &["no container has two functions or versions"], |seen| {
        seen.told(8).found.push("marked-running".into());
    }),
    ("two at once in one container", &["no container runs two invocations at once"], |seen| seen.told(8).began_us = 14_000_500),
    ("one number twice", &["no container runs two invocations at once"], |seen| {
        let told = seen.told(12);
        (told.count, told.found) = (2, vec!["marked-fast-1".into()]);
    }),
    ("reuse=never is reused", &["reuse=never is always a fresh container"], |seen| {
        let told = seen.told(5);
        (told.count, told.found) = (2, vec![format!("marked-{}", told.start)]);
    }),
    ("three at once of two", &["reserved concurrency is never exceeded"], |seen| {
        for call in [2, 6, 10] {
            let told = seen.told(call);
            (told.start, told.container) = (format!("r{call}"), format!("r{call}"));
            (told.count, told.found) = (1, vec![]);
            (told.began_us, told.done_us) = (1000 + call as u64, 2000);
        }
    }),
    ("a REPORT is missing", &["books equal REPORT lines"], |seen| drop(seen.ledger.reports.remove(5))),
    ("a REPORT is missing in the middle, and a kill is no excuse", &["books equal REPORT lines"], |seen| {
        seen.server_killed(21, 22);
        seen.ledger.reports.remove(5);
        // And a later one, which began long after this one's end, is there.
        seen.ledger.rows[5].start_ms -= 12_000;
    }),
    ("a REPORT is there twice", &["books equal REPORT lines"], |seen| seen.ledger.reports.push(seen.ledger.reports[5].clone())),
    ("a REPORT says something else", &["books equal REPORT lines"], |seen| seen.ledger.reports[5].billed_ms = 200),
    ("a REPORT cannot be read", &["books equal REPORT lines"], |seen| seen.ledger.strange.push("x".into())),
    ("an answer is not in the books", &["books equal answers"], |seen| {
        let row = seen.ledger.rows.remove(5);
        seen.heard.servers[0].requests.remove(&row.request);
        seen.ledger.reports.retain(|report| report.request != row.request);
        let (requests, cold, gb_s) = seen.ledger.bill.get_mut("once").expect("a bill");
        (*requests, *cold, *gb_s) = (3, 3, 3.0 * 12_800.0 / 1_024_000.0);
    }),
    ("the books know of a call that nobody made", &["books equal answers"], |seen| {
        seen.record.calls.remove(16);
        seen.pools[1]["retired"] = json!({ "idle": 20 });
    }),
    ("a bill is too high", &["kiln usage is the sum of the books"], |seen| {
        seen.ledger.bill.get_mut("once").expect("a bill").0 += 1
    }),
    ("GB-seconds are missing", &["kiln usage is the sum of the books"], |seen| {
        seen.ledger.bill.get_mut("once").expect("a bill").2 -= 0.001
    }),
    ("a refusal is not counted", &["/v1/pool adds up"], |seen| seen.pools[1] = seen.pools[0].clone()),
    ("environments are not counted", &["/v1/pool adds up"], |seen| seen.pools[1]["retired"] = json!({ "idle": 6 })),
    ("one look was wrong", &["/v1/pool adds up"], |seen| seen.record.contradictions.push("x".into())),
    ("memory stays charged", &["when all is drained nothing is charged"], |seen| seen.last["charged_mib"] = json!(1)),
    ("an environment stays", &["when all is drained nothing is charged"], |seen| seen.last["environments"] = json!([{}])),
    ("an event is missing", &["no event is missing untold"], |seen| seen.heard.servers[0].events -= 1),
    ("an event comes late", &["no event is missing untold"], |seen| seen.heard.strange.push("event 7 came after 8".into())),
    ("numbers jump, and no server was killed", &["no event is missing untold"], |seen| {
        seen.heard.servers.insert(0, Server { first: 1, last: 9, events: 9, ..Server::default() });
    }),
    ("an end is not told", &["each end and refusal is told once, as booked"], |seen| {
        seen.heard.servers[0].requests.remove("request-5");
    }),
    ("an end is told otherwise", &["each end and refusal is told once, as booked"], |seen| {
        seen.life("request-5").ended[0].billed_ms = 200
    }),
    ("an end is told twice", &["each end and refusal is told once, as booked"], |seen| {
        let life = seen.life("request-5");
        life.ended.push(life.ended[0].clone());
        life.invoked = 2;
    }),
    ("a refusal is not told", &["each end and refusal is told once, as booked"], |seen| seen.life("throttled").throttled.clear()),
    ("an environment's end is not told", &["whose beginning is told, their end is"], |seen| {
        seen.container("1-3").retired.clear();
    }),
    ("a start neither succeeds nor fails", &["whose beginning is told, their end is"], |seen| {
        seen.heard.servers[0].starting += 1
    }),
    ("an invocation is handed over and never ends", &["whose beginning is told, their end is"], |seen| {
        seen.life("request-5").invoked = 2
    }),
    ("a cold start has no reason", &["whose beginning is told, their end is"], |seen| seen.life("request-0").starting = 0),
    ("an end is in the history for another reason", &["the history has each end as it was told"], |seen| {
        seen.container("1-3").retired[0] = "memory".into();
    }),
    ("an end is not in the history", &["the history has each end as it was told"], |seen| {
        seen.ledger.history.remove(&("1-3".into(), "request-3".into()));
    }),
    ("a container lives on in the history", &["the history has each end as it was told"], |seen| {
        seen.ledger.history.insert(("1-9".into(), "request-9".into()), None);
    }),
    ("an invocation is not counted", &["what is counted is what happened"], |seen| seen.booked += 1),
    ("a throttle is counted for nobody", &["what is counted is what happened"], |seen| {
        seen.counts[1].0.insert("kiln_throttles_total{function=\"other\"}".into(), 2.0);
    }),
    ("a gauge stays", &["what is counted is what happened"], |seen| {
        seen.counts[1].0.insert("kiln_environments{state=\"idle\"}".into(), 1.0);
    }),
    ("a leak was found", &["nothing was found leaked or lost"], |seen| {
        seen.counts[2].0.insert("kiln_swept_total{kind=\"cgroup\",when=\"running\"}".into(), 1.0);
    }),
    ("a leak is not counted any more", &["nothing was found leaked or lost"], |seen| {
        seen.counts[2].0.remove("kiln_containers_not_cleared_total");
    }),
    ("memory grows while there is load", &["under load nothing grows on and on"], |seen| {
        for (at, held) in &mut seen.course {
            held.get_mut("server").expect("a server").memory_kib += at.as_secs() * 40;
        }
    }),
    ("descriptors leak while there is load", &["under load nothing grows on and on"], |seen| {
        for (at, held) in &mut seen.course {
            held.get_mut("server").expect("a server").descriptors += at.as_secs() * 10;
        }
    }),
    ("memory grows", &["kilnd's memory (MiB) is as before"], |seen| grow(seen, 9 << 10, 0)),
    ("descriptors leak", &["kilnd's descriptors are as before"], |seen| grow(seen, 0, 9)),
    ("a cgroup stays", &["processes, groups, mounts are as before"], |seen| {
        seen.standings[1].things.insert("cgroups", 9);
    }),
    ("code stays", &["the state on the disk is bounded"], |seen| _ = seen.disk.code.insert("bb".into())),
    ("code is gone", &["the state on the disk is bounded"], |seen| _ = seen.disk.code.remove("aa")),
    ("logs are not bounded", &["the state on the disk is bounded"], |seen| seen.disk.logs_bytes = 2 << 20),
    ("something is left", &["nothing is left when Kiln has stopped"], |seen| seen.left.push("cgroup x".into())),
];

fn grow(seen: &mut Seen, memory_kib: u64, descriptors: u64) {
    let held = seen.standings[1].processes.get_mut("server").expect("a server");
    held.memory_kib += memory_kib;
    held.descriptors += descriptors;
}

#[test]
fn what_goes_wrong_breaks_what_it_is_about_and_nothing_else() {
    for (what, invariants, breaks) in CASES {
        let mut seen = good();
        breaks(&mut seen);
        assert_eq!(seen.broken(), *invariants, "{what}");
    }
}

#[test]
fn every_invariant_has_a_case_that_breaks_it() {
    let all: BTreeSet<_> = good().rows().iter().map(|row| row.invariant).collect();
    let broken: BTreeSet<_> = CASES.iter().flat_map(|(_, invariants, _)| *invariants).copied().collect();
    assert_eq!(all, broken);
}

#[test]
fn what_the_history_keeps_no_longer_breaks_nothing() {
    let mut seen = good();
    seen.ledger.history.remove(&("1-3".into(), "request-3".into()));
    seen.ledger.full.insert("fast".into());
    assert_eq!(seen.broken(), [""; 0]);
}

#[test]
fn what_a_killed_server_takes_with_it_breaks_nothing() {
    let mut seen = good();
    seen.server_killed(24, 26);
    // On its way, answered and not yet booked, booked and not yet reported.
    seen.record.calls[16] = Call { ended: s(25), fate: Fate::Cut("ended".into()), ..seen.record.calls[16].clone() };
    let booked = seen.ledger.rows.remove(15);
    seen.ledger.reports.remove(15);
    seen.heard.servers[0].requests.remove(&booked.request);
    // Booked, and its end not heard any more; and of a container that died with its server.
    seen.heard.servers[0].requests.remove("request-14");
    seen.container("1-5").retired.clear();
    // And one whose end was told, and not written.
    *seen.ledger.history.get_mut(&("1-4".into(), "request-4".into())).expect("it was there") = Some("stopping".into());
    let (requests, _, gb_s) = seen.ledger.bill.get_mut(&booked.function).expect("a bill");
    (*requests, *gb_s) = (*requests - 1, *gb_s - 12_800.0 / 1_024_000.0);
    seen.ledger.reports.remove(13);
    // The successor runs the same function before anybody has seen that it is there: that line is behind the one that was cut.
    let cut = seen.ledger.rows[13].clone();
    let next = Entry { request: "next".into(), start_ms: seen.record.origin_ms + 25_500, ..cut };
    let (requests, cold, gb_s) = seen.ledger.bill.get_mut(&next.function).expect("a bill");
    (*requests, *cold, *gb_s) = (*requests + 1, *cold + 1, *gb_s + 12_800.0 / 1_024_000.0);
    seen.ledger.reports.push(Entry { start_ms: 0, ..next.clone() });
    let life = Life { invoked: 1, ended: vec![Entry { start_ms: 0, ..next.clone() }], ..Life::default() };
    let requests = BTreeMap::from([("next".to_owned(), life)]);
    seen.heard.servers.push(Server { first: 9000, last: 9009, events: 10, requests, ..Server::default() });
    seen.ledger.rows.push(next);
    seen.record.calls.push(Call {
        function: ONCE,
        sent: s(25),
        ended: s(27),
        fate: Fate::HungUp,
        ..seen.record.calls[16].clone()
    });
    let broken = seen.broken();
    // The last call of each was before that kill: it says nothing of what works afterwards.
    assert_eq!(broken, ["afterwards every function works"]);
}

#[test]
fn a_function_that_changes_may_be_what_it_was_and_what_it_becomes_and_nothing_older() {
    let state = |code| Some(State { code, round: 0 });
    let change = |begun, ended, to| Change { function: 0, begun: s(begun), ended: s(ended), to };
    let changes = [change(1, 2, state(0)), change(10, 12, state(1)), change(20, 21, None), change(21, 23, state(2))];
    let may = |sent, ended| answers::may_have_been(&changes, s(sent), s(ended));
    assert_eq!(may(3, 9), [state(0)]);
    assert_eq!(may(3, 11), [state(0), state(1)]);
    assert_eq!(may(11, 11), [state(0), state(1)]);
    assert_eq!(may(12, 13), [state(1)]);
    assert_eq!(may(13, 40), [state(1), None, state(2)]);
    assert_eq!(may(22, 22), [None, state(2)]);
    assert_eq!(may(0, 1), [None, state(0)]);
}

#[test]
fn an_init_that_was_killed_is_told_again_for_who_comes_before_the_next_try_and_nothing_else_is() {
    for (name, excused) in [("init-fails", true), ("fast", false)] {
        let mut seen = good();
        seen.record.functions.push(Function { name: name.into(), kind: kind(name) });
        seen.record.kills.push(Kill { function: 4, begun: s(3), ended: s(4) });
        let error = Some("Runtime.ExitError".into());
        let reply = Reply { status: 200, request: "late".into(), error, message: "x: signal: killed".into(), ..Reply::default() };
        seen.record.calls.push(Call {
            function: 4,
            nonce: 100,
            pad: 0,
            sent: s(20),
            ended: s(21),
            fate: Fate::Answered(reply),
            roll_call: false,
        });
        let possible = answers(&seen.record).into_iter().find(|row| row.invariant == "each ends as its kind can").expect("a row");
        assert_eq!(possible.ok(), excused, "{name}");
    }
}

#[test]
fn a_short_load_is_too_short_for_a_trend() {
    let mut seen = good();
    seen.course.truncate(60);
    seen.course.iter_mut().for_each(|(at, held)| held.get_mut("server").expect("a server").memory_kib += at.as_secs() * 300);
    assert!(trend(&seen.course).ok() && trend(&Course::new()).ok());
}

#[test]
fn a_listener_knows_its_servers_apart_and_what_it_has_missed() {
    let mut heard = Heard::default();
    let mut hear = |continued: &mut bool, lines: &[Value]| {
        lines.iter().for_each(|line| heard.hear(line.to_string().as_bytes(), continued));
        let of = |server: &Server| [server.first, server.last, server.events, server.lost, server.missing()];
        (heard.servers.iter().map(of).collect::<Vec<_>>(), heard.strange.len())
    };
    let frozen = |seq: u64| json!({ "event": "frozen", "seq": seq, "request": "r", "container": "1-1" });
    let lost = |lost: u64| json!({ "event": "lost", "lost": lost });
    let (mut first, mut again, mut next) = (false, false, false);
    assert_eq!(hear(&mut first, &[frozen(7), frozen(8)]), (vec![[7, 8, 2, 0, 0]], 0));
    assert_eq!(hear(&mut first, &[lost(2), frozen(11)]), (vec![[7, 11, 3, 2, 2]], 0));
    assert_eq!(hear(&mut again, &[frozen(12), frozen(14)]), (vec![[7, 14, 5, 2, 3]], 0), "one is missing untold");
    assert_eq!(hear(&mut next, &[frozen(100), frozen(101)]), (vec![[7, 14, 5, 2, 3], [100, 101, 2, 0, 0]], 0));
    assert_eq!(hear(&mut next, &[frozen(101)]).1, 1, "it was told before");
    assert_eq!(hear(&mut next, &[json!({ "seq": "x" })]).1, 2);
}

#[test]
fn a_pool_that_contradicts_itself_is_found() {
    let environment = json!({ "state": "busy", "charged_mib": 128, "container": "1-1" });
    let pool = json!({ "budget_mib": 200, "charged_mib": 128, "concurrency": 5, "in_flight": 1, "starting": 0, "waiting": 0,
        "reserves": [{ "function": "f", "reserved": 1, "in_flight": 1 }], "environments": [environment] });
    assert_eq!(pool_contradicts_itself(&pool), Vec::<String>::new());
    let broken = [
        ("budget_mib", json!(100)),
        ("charged_mib", json!(130)),
        ("charged_mib", json!(127)),
        ("starting", json!(1)),
        ("in_flight", json!(2)),
        ("concurrency", json!(0)),
        ("reserves", json!([{ "function": "f", "reserved": 0, "in_flight": 1 }])),
        ("environments", Value::Null),
    ];
    for (name, value) in broken {
        let mut pool = pool.clone();
        pool[name] = value;
        assert_eq!(pool_contradicts_itself(&pool).len(), 1, "{name}");
    }
}

#[test]
fn report_lines_are_read_field_by_field() {
    let line = "REPORT RequestId: r\tDuration: 3.01 ms\tBilled Duration: 100 ms\tMemory Size: 128 MB\tMax Memory Used: 36 MB\t\
                Init Duration: 110.10 ms\tStatus: error\tError Type: Runtime.OutOfMemory\n";
    let entry = Entry {
        function: "f".into(),
        request: "r".into(),
        start_ms: 0,
        duration: 301,
        billed_ms: 100,
        memory_mib: 128,
        max_memory_mib: 36,
        init: Some(11_010),
        error: Some("Runtime.OutOfMemory".into()),
    };
    assert_eq!(report("f", line), Some(entry.clone()));
    assert_eq!(report("f", &line.replace("3.01", "3")), None);
    assert!(Entry { start_ms: 7, ..entry.clone() }.agrees(&entry));
    assert!(!Entry { billed_ms: 7, ..entry.clone() }.agrees(&entry));
    // A handler's own error is in the books only.
    let (booked, reported) = (Entry { error: Some("Runtime.Unknown".into()), ..entry.clone() }, Entry { error: None, ..entry });
    assert!(booked.agrees(&reported) && !reported.agrees(&booked));
}
