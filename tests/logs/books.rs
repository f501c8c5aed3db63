//! What is metered is what was reported: every REPORT line against the rows of the books, field by field.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use crate::host::{self, Instance, Options, eventually, kiln};
use crate::{entries, report_line};

/// A REPORT line and a row have these in common. Times in hundredths of a millisecond, as the line has them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reported {
    duration: u64,
    billed_ms: u64,
    memory_mib: u64,
    max_memory_used_mib: u64,
    init: Option<u64>,
    /// As REPORT tells it: the handler's own errors are not in it.
    error_type: Option<String>,
}

/// By request; a request that is there twice fails the test.
type Book = BTreeMap<String, Reported>;

#[track_caller]
fn enter(book: &mut Book, request: String, reported: Reported) {
    assert_eq!(book.insert(request.clone(), reported), None, "{request} is there twice");
}

/// All REPORT lines of these functions' logs.
fn reports(instance: &Instance, functions: &[&str]) -> Book {
    let mut book = Book::new();
    for function in functions {
        for entry in entries(instance, function) {
            let Some(line) = report_line(&entry) else { continue };
            let (request, reported) = parse(line);
            assert_eq!(entry["request"], json!(request), "the entry belongs to the request that it reports");
            enter(&mut book, request, reported);
        }
    }
    book
}

fn parse(line: &str) -> (String, Reported) {
    let fields: BTreeMap<&str, &str> =
        line.strip_prefix("REPORT ").unwrap().split('\t').filter_map(|field| field.split_once(": ")).collect();
    let number = |name: &str, unit: &str| fields.get(name).map(|text| text.strip_suffix(unit).expect(line));
    let whole = |name, unit| number(name, unit).unwrap_or_else(|| panic!("no {name} in {line}")).parse::<u64>().expect(line);
    let hundredths = |text: &str| {
        let (whole, rest) = text.split_once('.').expect(line);
        assert_eq!(rest.len(), 2, "{line}");
        whole.parse::<u64>().unwrap() * 100 + rest.parse::<u64>().unwrap()
    };
    let error_type = match (fields.get("Status"), fields.get("Error Type")) {
        (None, None) => None,
        (Some(&"timeout"), None) => Some("Sandbox.Timedout".to_owned()),
        (Some(&"error"), Some(kind)) => Some((*kind).to_owned()),
        other => panic!("{other:?} in {line}"),
    };
    let reported = Reported {
        duration: hundredths(number("Duration", " ms").expect(line)),
        billed_ms: whole("Billed Duration", " ms"),
        memory_mib: whole("Memory Size", " MB"),
        max_memory_used_mib: whole("Max Memory Used", " MB"),
        init: number("Init Duration", " ms").map(hundredths),
        error_type,
    };
    (fields["RequestId"].to_owned(), reported)
}

/// All rows, as another process sees them.
fn rows(instance: &Instance) -> Book {
    let path = instance.state_dir().join("db/kiln.db");
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("open the books");
    let mut statement = db
        .prepare(
            "SELECT request, function, duration_us, billed_ms, memory_mib, max_memory_used_mib, init_us, error_type \
             FROM invocations",
        )
        .expect("read the books");
    let mut book = Book::new();
    let hundredths = |us: i64| (us as u64 + 5) / 10;
    let mut found = statement.query([]).unwrap();
    while let Some(row) = found.next().unwrap() {
        let (request, function): (String, String) = (row.get(0).unwrap(), row.get(1).unwrap());
        let error_type: Option<String> = row.get(7).unwrap();
        // What a handler reports of itself is in the books only; see `logs::lines`.
        let own = function == "handler-error";
        assert!(!own || error_type.is_some(), "{function} failed");
        let reported = Reported {
            duration: hundredths(row.get(2).unwrap()),
            billed_ms: row.get::<_, i64>(3).unwrap() as u64,
            memory_mib: row.get::<_, i64>(4).unwrap() as u64,
            max_memory_used_mib: row.get::<_, i64>(5).unwrap() as u64,
            init: row.get::<_, Option<i64>>(6).unwrap().map(hundredths),
            error_type: error_type.filter(|_| !own),
        };
        enter(&mut book, request, reported);
    }
    book
}

/// Function, settings, event, and the error type of REPORT.
fn cases() -> Vec<(&'static str, Value, Value, Option<&'static str>)> {
    let init = |what: &str| json!({ "Timeout": 3, "Environment": { "Variables": { "PROBE_INIT": what } } });
    vec![
        ("success", json!({ "MemorySize": 192 }), json!({ "sleep": 120 }), None),
        ("handler-error", json!({}), json!({ "do": "error" }), None),
        ("timeout", json!({ "Timeout": 1 }), json!({ "sleep": 30_000 }), Some("Sandbox.Timedout")),
        ("late", json!({ "Timeout": 1 }), json!({ "do": "never_next" }), Some("Sandbox.Timedout")),
        (
            "out-of-memory",
            json!({ "Timeout": 20 }),
            json!({ "steps": [{ "hold_mib": 200 }, { "sleep": 10_000 }] }),
            Some("Runtime.OutOfMemory"),
        ),
        ("signal", json!({}), json!({ "signal": 11 }), Some("Runtime.ExitError")),
        ("exit", json!({}), json!({ "exit": 7 }), Some("Runtime.ExitError")),
        ("too-large", json!({}), json!({ "respond_bytes": 6_291_557 }), Some("Function.ResponseSizeTooLarge")),
        ("init-exits", init("exit:3"), json!({}), Some("Runtime.ExitError")),
        ("init-error", init("error"), json!({}), Some("Runtime.Unknown")),
    ]
}

#[test]
fn each_reported_invocation_has_one_row_with_the_same_numbers_whatever_its_end() {
    if !host::ready() {
        return;
    }
    let config = "capacity_wait_s = 60\nprice_million_requests_usd = 1e6\nprice_gb_s_usd = 2\nfree_requests = 5\nfree_gb_s = 1\n";
    let instance = Instance::start_with(Options { config: config.into(), ..Options::default() });
    let cases = cases();
    for (function, settings, ..) in &cases {
        instance.create_probe(function, settings.clone());
    }
    // Cold and warm, with the tail and without it, and for somebody who does not wait for the answer.
    thread::scope(|scope| {
        for (function, _, event, _) in &cases {
            let (instance, body) = (&instance, event.to_string());
            scope.spawn(move || {
                let path = format!("/2015-03-31/functions/{function}/invocations");
                instance.invoke(function, event);
                assert_eq!(instance.api().request("POST", &path, &[], body.as_bytes()).status, 200, "{function}");
                let mut gone = UnixStream::connect(instance.run_dir().join("kiln.sock")).unwrap();
                let head = format!("POST {path} HTTP/1.1\r\nHost: kiln\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                gone.write_all(head.as_bytes()).unwrap();
                // Their own third: that somebody's is in flight says nothing about theirs.
                eventually(&format!("{function}: the request of the one who goes away has begun"), || {
                    let begun = |entry: &Value| entry["line"].as_str().is_some_and(|line| line.starts_with("START RequestId: "));
                    entries(instance, function).iter().filter(|entry| entry["kind"] == "platform" && begun(entry)).count() == 3
                });
            });
        }
    });
    let functions: Vec<_> = cases.iter().map(|(function, ..)| *function).collect();
    eventually("all are reported", || reports(&instance, &functions).len() >= 3 * cases.len());
    assert_eq!(reports(&instance, &functions), rows(&instance));
    for (function, _, _, error_type) in &cases {
        let of: Vec<_> = reports(&instance, &[function]).into_values().collect();
        assert_eq!(of.len(), 3, "{function}");
        assert!(of.iter().all(|report| report.error_type.as_deref() == *error_type), "{function}: {of:?}");
    }
    bill_adds_up_with_the_reports(&instance, &functions);
}

/// `kiln usage` against the sums of what REPORT lines say, at prices that are easily seen through.
fn bill_adds_up_with_the_reports(instance: &Instance, functions: &[&str]) {
    let asked = |words: &[&str]| {
        let (code, out, said) = kiln(instance, words);
        assert_eq!(code, 0, "{said}");
        out
    };
    let bill: Value = serde_json::from_str(&asked(&["usage", "--json"])).unwrap();
    let close = |value: &Value, wanted: f64| {
        let found = value.as_f64().unwrap();
        assert!((found - wanted).abs() < 1e-9, "{found} is not {wanted} in {bill:#}");
    };
    let mb_ms = |reports: &[Reported]| reports.iter().map(|report| report.memory_mib * report.billed_ms).sum::<u64>() as f64;
    let lines = bill["functions"].as_array().unwrap();
    assert_eq!(lines.len(), functions.len());
    let mut whole = 0.0;
    for line in lines {
        let of: Vec<_> = reports(instance, &[line["function"].as_str().unwrap()]).into_values().collect();
        assert_eq!(line["requests"], of.len(), "{line}");
        assert_eq!(line["cold_starts"], of.iter().filter(|report| report.init.is_some()).count(), "{line}");
        close(&line["gb_s"], mb_ms(&of) / 1_024_000.0);
        // A dollar a request, two a GB-second.
        close(&line["cost_usd"], of.len() as f64 + 2.0 * mb_ms(&of) / 1_024_000.0);
        whole += mb_ms(&of) / 1_024_000.0;
    }
    // Five requests and one GB-second are free.
    close(&bill["due_usd"], (3 * functions.len() - 5) as f64 + 2.0 * (whole - 1.0));
    assert_eq!(asked(&["usage", "--csv"]).lines().count(), functions.len() + 1);
    let one = asked(&["usage", "--function", "timeout"]);
    assert!(one.contains("\ntimeout  ") && !one.contains("\nsignal  "), "{one}");
}

/// A row is in the books before its REPORT is written, so every REPORT that anybody has seen has one.
#[test]
fn the_books_lose_no_reported_invocation_when_the_server_is_killed_under_load() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    let functions = ["a", "b"];
    functions.iter().for_each(|function| instance.create_probe(function, json!({ "Timeout": 20 })));
    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let told = thread::scope(|scope| {
        let callers: Vec<_> = (0..4)
            .map(|number| {
                let (instance, over, answered) = (&instance, &over, &answered);
                scope.spawn(move || {
                    let path = format!("/2015-03-31/functions/{}/invocations", functions[number % 2]);
                    let mut told = Vec::new();
                    while !over.load(Ordering::SeqCst) {
                        let tail = [("X-Amz-Log-Type", "Tail")];
                        // Whose server dies has no answer.
                        let Ok(answer) = instance.api().try_request("POST", &path, &tail, b"{}") else { continue };
                        if let Some(line) = answer.log().lines().find(|line| line.starts_with("REPORT ")) {
                            told.push(parse(line));
                            answered.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                    told
                })
            })
            .collect();
        for kill in 1..=4 {
            eventually("some are answered", || answered.load(Ordering::SeqCst) >= kill * 40);
            if let Some(server) = instance.processes("server").first() {
                host::kill(*server);
            }
        }
        eventually("some more are answered", || answered.load(Ordering::SeqCst) >= 200);
        over.store(true, Ordering::SeqCst);
        callers.into_iter().flat_map(|caller| caller.join().expect("a caller's thread")).collect::<Vec<_>>()
    });
    let (reports, rows) = (reports(&instance, &functions), rows(&instance));
    assert!(told.len() >= 200 && reports.len() >= 150, "{} told, {} reported", told.len(), reports.len());
    for (request, reported) in reports.iter().chain(told.iter().map(|(request, reported)| (request, reported))) {
        assert_eq!(rows.get(request), Some(reported), "{request}");
    }
}
