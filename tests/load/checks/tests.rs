//! Each invariant can be broken: a good run, with one thing wrong at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::books::{Entry, Ledger, report};
use crate::kinds::KINDS;
use crate::record::{Call, Change, Fate, Function, Kill, Loss, Record, Reply, State, Told, Victim};
use crate::standing::{Disk, Held, Standing};

/// All that is judged.
#[derive(Clone)]
struct Seen {
    record: Record,
    ledger: Ledger,
    pools: [Value; 2],
    last: Value,
    standings: [Standing; 2],
    disk: Disk,
    left: Vec<String>,
}

impl Seen {
    fn rows(&self) -> Vec<Row> {
        let mut rows = answers(&self.record);
        rows.extend(containers(&self.record));
        rows.extend(ledger(&self.record, &self.ledger));
        rows.extend([adds_up(&self.record, 0, &self.pools[0], &self.pools[1]), empty(&self.last)]);
        rows.extend(growth(&self.standings[0], &self.standings[1]));
        rows.extend(afterwards(&self.disk, self.ledger.rows.len() as u64, self.left.clone()));
        rows
    }

    fn broken(&self) -> Vec<&'static str> {
        self.rows().iter().filter(|row| !row.ok()).map(|row| row.invariant).collect()
    }

    fn reply(&mut self, call: usize) -> &mut Reply {
        match &mut self.record.calls[call].fate {
            Fate::Answered(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    fn told(&mut self, call: usize) -> &mut Told {
        self.reply(call).told.as_mut().expect("a success")
    }

    /// A kill of the server in these seconds.
    fn server_killed(&mut self, begun: u64, ended: u64) {
        self.record.losses.push(Loss { what: Victim::Server, begun: s(begun), ended: s(ended) });
    }
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn kind(name: &str) -> usize {
    KINDS.iter().position(|kind| kind.name == name).expect("a kind")
}

const FAST: usize = 0;
const ONCE: usize = 1;
const RESERVED: usize = 2;
const CRASHING: usize = 3;

/// Four functions; from the tenth second on each is called three times, a second each and one after the other, and once when all
/// is calm.
fn good() -> Seen {
    let functions = ["fast", "once", "reserved", "crashing"].map(|name| Function { name: name.into(), kind: kind(name) });
    let mut record = Record::new(functions.to_vec());
    record.origin_ms = 1_000_000;
    for function in 0..4 {
        let to = Some(State { code: 0, round: 0 });
        record.changes.push(Change { function, begun: s(1), ended: s(2), to });
    }
    record.changes.push(Change { function: FAST, begun: s(13), ended: s(14), to: Some(State { code: 1, round: 0 }) });
    let mut ledger = Ledger::default();
    for nonce in 0..16 {
        let (function, round) = ((nonce % 4) as usize, nonce / 4);
        let name = record.functions[function].name.clone();
        let (sent, ended) = (s(10 + nonce), s(11 + nonce));
        let new = function == ONCE || round == 0;
        // The update of the fast one made a second container.
        let start = match function {
            ONCE => format!("once-{round}"),
            FAST => format!("fast-{}", u64::from(round > 0)),
            _ => format!("{name}-0"),
        };
        let count = match function {
            ONCE => 1,
            FAST => round.max(1),
            _ => round + 1,
        };
        let found = if count == 1 { Vec::new() } else { vec![format!("marked-{start}")] };
        let code = u64::from(function == FAST && round > 0);
        let told = Told {
            nonce,
            function: name.clone(),
            container: format!("stream-{start}"),
            start,
            count,
            found,
            began_us: sent.as_micros() as u64 + 100,
            done_us: sent.as_micros() as u64 + 900,
            code: Some(code),
            round: Some(0),
            pad: None,
        };
        let crashed = function == CRASHING;
        let reply = Reply {
            status: 200,
            request: format!("request-{nonce}"),
            error: crashed.then(|| "Runtime.ExitError".into()),
            told: (!crashed).then_some(told),
            ..Reply::default()
        };
        record.calls.push(Call { function, nonce, pad: 0, sent, ended, fate: Fate::Answered(reply), roll_call: round == 3 });
        let row = Entry {
            function: name,
            request: format!("request-{nonce}"),
            start_ms: record.origin_ms + sent.as_millis() as u64 + 1,
            duration: 301,
            billed_ms: 100,
            memory_mib: 128,
            max_memory_mib: 3,
            init: new.then_some(2_000),
            error: crashed.then(|| "Runtime.ExitError".into()),
        };
        ledger.reports.push(Entry { start_ms: 0, ..row.clone() });
        let (requests, cold, gb_s) = ledger.bill.entry(row.function.clone()).or_default();
        (*requests, *cold, *gb_s) = (*requests + 1, *cold + u64::from(new), *gb_s + 12_800.0 / 1_024_000.0);
        ledger.rows.push(row);
    }
    // A caller who left is in the books.
    let row = Entry { request: "unknown".into(), ..ledger.rows[4].clone() };
    ledger.reports.push(Entry { start_ms: 0, ..row.clone() });
    let (requests, _, gb_s) = ledger.bill.get_mut("fast").expect("it was called");
    (*requests, *gb_s) = (*requests + 1, *gb_s + 12_800.0 / 1_024_000.0);
    ledger.rows.push(row);
    let left = Call { function: FAST, nonce: 99, pad: 0, sent: s(14), ended: s(15), fate: Fate::HungUp, roll_call: false };
    record.calls.push(left);
    let throttled = Reply {
        status: 429,
        request: "throttled".into(),
        refusal: Some("TooManyRequestsException".into()),
        reason: Some("ConcurrentInvocationLimitExceeded".into()),
        ..Reply::default()
    };
    let left =
        Call { function: FAST, nonce: 98, pad: 0, sent: s(16), ended: s(17), fate: Fate::Answered(throttled), roll_call: false };
    record.calls.push(left);

    let pool =
        |refused: u64, retired: u64| json!({ "refused": { "memory": refused }, "retired": { "idle": retired }, "told_again": 0 });
    let last = json!({ "charged_mib": 0, "in_flight": 0, "waiting": 0, "starting": 0, "environments": [] });
    let standing = Standing {
        processes: BTreeMap::from([("server", Held { memory_kib: 10_000, descriptors: 20 })]),
        things: BTreeMap::from([("cgroups", 8)]),
    };
    let code = BTreeSet::from(["aa".to_owned(), "aa.zip".to_owned()]);
    let disk = Disk { code_named: code.clone(), code, logs_bound: 1 << 20, ..Disk::default() };
    let (pools, standings) = ([pool(3, 5), pool(4, 20)], [standing.clone(), standing]);
    Seen { record, ledger, pools, last, standings, disk, left: Vec::new() }
}

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
    ("a request id is there twice", &["an answer belongs to its request"], |seen| seen.reply(17).request = "request-4".into()),
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
    }),
    ("a REPORT is there twice", &["books equal REPORT lines"], |seen| seen.ledger.reports.push(seen.ledger.reports[5].clone())),
    ("a REPORT says something else", &["books equal REPORT lines"], |seen| seen.ledger.reports[5].billed_ms = 200),
    ("a REPORT cannot be read", &["books equal REPORT lines"], |seen| seen.ledger.strange.push("x".into())),
    ("an answer is not in the books", &["books equal answers"], |seen| {
        let row = seen.ledger.rows.remove(5);
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
fn what_a_killed_server_takes_with_it_breaks_nothing() {
    let mut seen = good();
    seen.server_killed(24, 26);
    // On its way, answered and not yet booked, booked and not yet reported.
    seen.record.calls[16] = Call { ended: s(25), fate: Fate::Cut("ended".into()), ..seen.record.calls[16].clone() };
    let booked = seen.ledger.rows.remove(15);
    seen.ledger.reports.remove(15);
    let (requests, _, gb_s) = seen.ledger.bill.get_mut(&booked.function).expect("a bill");
    (*requests, *gb_s) = (*requests - 1, *gb_s - 12_800.0 / 1_024_000.0);
    seen.ledger.reports.remove(13);
    // The successor runs the same function before anybody has seen that it is there: that line is behind the one that was cut.
    let cut = seen.ledger.rows[13].clone();
    let next = Entry { request: "next".into(), start_ms: seen.record.origin_ms + 25_500, ..cut };
    let (requests, cold, gb_s) = seen.ledger.bill.get_mut(&next.function).expect("a bill");
    (*requests, *cold, *gb_s) = (*requests + 1, *cold + 1, *gb_s + 12_800.0 / 1_024_000.0);
    seen.ledger.reports.push(Entry { start_ms: 0, ..next.clone() });
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
