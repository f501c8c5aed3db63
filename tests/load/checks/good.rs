//! A good run: all that is judged, with nothing wrong in it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::books::{Entry, Ledger};
use crate::heard::{Container, Counts, Heard, Life, Server};
use crate::kinds::KINDS;
use crate::record::{Call, Change, Fate, Function, Loss, Record, Reply, State, Told, Victim};
use crate::standing::{Course, Disk, Held, Standing};

/// All that is judged.
#[derive(Clone)]
pub struct Seen {
    pub record: Record,
    pub ledger: Ledger,
    pub pools: [Value; 2],
    pub last: Value,
    pub heard: Heard,
    pub booked: u64,
    /// Before, after, and at the end.
    pub counts: [Counts; 3],
    pub standings: [Standing; 2],
    pub course: Course,
    pub disk: Disk,
    pub left: Vec<String>,
}

impl Seen {
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = answers(&self.record);
        rows.extend(containers(&self.record));
        rows.extend(ledger(&self.record, &self.ledger));
        rows.extend([adds_up(&self.record, 0, &self.pools[0], &self.pools[1]), empty(&self.last)]);
        rows.extend(events(&self.record, &self.ledger, &self.heard));
        rows.extend(counts(&self.record, 0, self.booked, &self.counts[0], &self.counts[1], &self.counts[2]));
        rows.extend(growth(&self.standings[0], &self.standings[1]));
        rows.push(trend(&self.course));
        rows.extend(afterwards(&self.disk, self.ledger.rows.len() as u64, self.left.clone()));
        rows
    }

    pub fn broken(&self) -> Vec<&'static str> {
        self.rows().iter().filter(|row| !row.ok()).map(|row| row.invariant).collect()
    }

    pub fn reply(&mut self, call: usize) -> &mut Reply {
        match &mut self.record.calls[call].fate {
            Fate::Answered(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    pub fn told(&mut self, call: usize) -> &mut Told {
        self.reply(call).told.as_mut().expect("a success")
    }

    /// What was told of a request.
    pub fn life(&mut self, request: &str) -> &mut Life {
        self.heard.servers[0].requests.get_mut(request).expect("it was told")
    }

    pub fn container(&mut self, id: &str) -> &mut Container {
        self.heard.servers[0].containers.get_mut(id).expect("it was told")
    }

    /// A kill of the server in these seconds.
    pub fn server_killed(&mut self, begun: u64, ended: u64) {
        self.record.losses.push(Loss { what: Victim::Server, begun: s(begun), ended: s(ended) });
    }
}

pub fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub fn kind(name: &str) -> usize {
    KINDS.iter().position(|kind| kind.name == name).expect("a kind")
}

pub const FAST: usize = 0;
pub const ONCE: usize = 1;
pub const RESERVED: usize = 2;
pub const CRASHING: usize = 3;

/// Four functions; from the tenth second on each is called three times, a second each and one after the other, and once when all
/// is calm.
pub fn good() -> Seen {
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
            pad: 0,
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
    let mut server = Server { first: 100, last: 299, events: 200, starting: 7, started: 7, ..Server::default() };
    for row in &ledger.rows {
        let cold = row.init.is_some();
        let life = Life {
            starting: u64::from(cold),
            cold,
            invoked: 1,
            ended: vec![Entry { start_ms: 0, ..row.clone() }],
            ..Life::default()
        };
        server.requests.insert(row.request.clone(), life);
    }
    // A runtime had died before it read the event.
    let taken_back = server.requests.get_mut("request-7").expect("it was told");
    (taken_back.invoked, taken_back.taken_back) = (2, 1);
    server.requests.insert("throttled".into(), Life { throttled: vec!["memory".into()], ..Life::default() });
    for number in 0..6 {
        let (id, request) = (format!("1-{number}"), format!("request-{number}"));
        server.containers.insert(
            id.clone(),
            Container { function: "fast".into(), ready: vec![request.clone()], retired: vec!["idle".into()] },
        );
        ledger.history.insert((id, request), Some("idle".into()));
    }
    let heard = Heard { servers: vec![server], strange: Vec::new() };
    let booked = ledger.rows.len() as u64;
    let counted = |invocations: u64, throttles: u64| {
        let function = |metric: &str, value: u64| (format!("{metric}{{function=\"fast\"}}"), value as f64);
        let mut counts = BTreeMap::from([
            function("kiln_invocations_total", invocations),
            function("kiln_invocation_duration_seconds_count", invocations),
            function("kiln_throttles_total", throttles),
            ("kiln_invocations_in_flight".into(), 0.0),
        ]);
        for kind in ["cgroup", "staging", "code"] {
            counts.insert(format!("kiln_swept_total{{kind=\"{kind}\",when=\"running\"}}"), 0.0);
            counts.insert(format!("kiln_swept_total{{kind=\"{kind}\",when=\"death\"}}"), 3.0);
        }
        counts.extend(
            ["kiln_containers_not_cleared_total", "kiln_books_rows_lost_total", "kiln_history_rows_lost_total"]
                .map(|name| (name.to_owned(), 0.0)),
        );
        Counts(counts)
    };
    let counts = [counted(5, 3), counted(5 + booked, 4), counted(5 + booked, 4)];
    // Bursts come and go.
    let held = |at: u64| Held { memory_kib: 10_000 + at * 7919 % 5000, descriptors: 20 + at * 31 % 50 };
    let course: Course = (0..100).map(|at| (s(4 * at), BTreeMap::from([("server", held(at))]))).collect();
    let standing = Standing {
        processes: BTreeMap::from([("server", Held { memory_kib: 10_000, descriptors: 20 })]),
        things: BTreeMap::from([("cgroups", 8)]),
    };
    let code = BTreeSet::from(["aa".to_owned(), "aa.zip".to_owned()]);
    let disk = Disk { code_named: code.clone(), code, logs_bound: 1 << 20, ..Disk::default() };
    let (pools, standings) = ([pool(3, 5), pool(4, 20)], [standing.clone(), standing]);
    Seen { record, ledger, pools, last, heard, booked, counts, standings, course, disk, left: Vec::new() }
}
