//! A cause is always named: cause × { payload bytes, log lines, REPORT fields }, alone and eight at once.

use std::thread;

use serde_json::{Value, json};

use crate::host::{self, Answer, Instance, Options, code};

/// One cause and what the caller must see. `<id>` stands for the request's id.
struct Case {
    name: &'static str,
    settings: Value,
    event: Value,
    payload: &'static str,
    /// Lines that the log must hold, whole.
    lines: &'static [&'static str],
    /// REPORT's `Status` and `Error Type`: of what ended the environment, not of what its runtime reported.
    status: Option<&'static str>,
    error_type: Option<&'static str>,
}

fn cases() -> Vec<Case> {
    let init = |what: &str| json!({ "Timeout": 10, "Environment": { "Variables": { "PROBE_INIT": what } } });
    let case = |name, settings, event, payload, lines, status, error_type| Case {
        name,
        settings,
        event,
        payload,
        lines,
        status,
        error_type,
    };
    vec![
        case(
            "timeout",
            json!({ "Timeout": 1 }),
            json!({ "sleep": 30_000 }),
            r#"{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: <id> Error: Task timed out after 1.00 seconds"}"#,
            &["<time> <id> Task timed out after 1.00 seconds"],
            Some("timeout"),
            None,
        ),
        case(
            "out of memory, slowly",
            json!({ "MemorySize": 128, "Timeout": 20 }),
            json!({ "steps": [{ "hold_mib": 200 }, { "sleep": 10_000 }] }),
            r#"{"errorType":"Runtime.ExitError","errorMessage":"RequestId: <id> Error: Runtime exited with error: signal: killed"}"#,
            &["RequestId: <id> Error: Runtime exited with error: signal: killed", "Runtime.ExitError"],
            Some("error"),
            Some("Runtime.OutOfMemory"),
        ),
        // Seen by the inner wall long before the kernel's is reached; that one is met alone in `limits`.
        case(
            "out of memory, by far",
            json!({ "MemorySize": 128, "Timeout": 20 }),
            json!({ "hold_mib": 2000 }),
            r#"{"errorType":"Runtime.ExitError","errorMessage":"RequestId: <id> Error: Runtime exited with error: signal: killed"}"#,
            &["RequestId: <id> Error: Runtime exited with error: signal: killed", "Runtime.ExitError"],
            Some("error"),
            Some("Runtime.OutOfMemory"),
        ),
        case(
            "SIGSEGV",
            json!({}),
            json!({ "signal": 11 }),
            r#"{"errorType":"Runtime.ExitError","errorMessage":"RequestId: <id> Error: Runtime exited with error: signal: segmentation fault"}"#,
            &["RequestId: <id> Error: Runtime exited with error: signal: segmentation fault", "Runtime.ExitError"],
            Some("error"),
            Some("Runtime.ExitError"),
        ),
        case(
            "exit(0)",
            json!({}),
            json!({ "exit": 0 }),
            r#"{"errorType":"Runtime.ExitError","errorMessage":"RequestId: <id> Error: Runtime exited without providing a reason"}"#,
            &["RequestId: <id> Error: Runtime exited without providing a reason", "Runtime.ExitError"],
            Some("error"),
            Some("Runtime.ExitError"),
        ),
        case(
            "exit(7)",
            json!({}),
            json!({ "exit": 7 }),
            r#"{"errorType":"Runtime.ExitError","errorMessage":"RequestId: <id> Error: Runtime exited with error: exit status 7"}"#,
            &["RequestId: <id> Error: Runtime exited with error: exit status 7", "Runtime.ExitError"],
            Some("error"),
            Some("Runtime.ExitError"),
        ),
        case(
            "the handler's own error",
            json!({}),
            json!({ "do": "error", "type": "My.Error", "message": "because" }),
            r#"{"errorMessage":"because","errorType":"My.Error","stackTrace":[]}"#,
            &[],
            None,
            None,
        ),
        case(
            "an init that exits",
            init("exit:3"),
            json!({}),
            r#"{"errorType":"Runtime.ExitError","errorMessage":"RequestId: <id> Error: Runtime exited with error: exit status 3"}"#,
            &["RequestId: <id> Error: Runtime exited with error: exit status 3", "Runtime.ExitError"],
            Some("error"),
            Some("Runtime.ExitError"),
        ),
        case(
            "an init that reports an error",
            init("error"),
            json!({}),
            r#"{"errorMessage":"the probe was told to fail its init","errorType":"Probe.Init","stackTrace":[]}"#,
            &[],
            Some("error"),
            Some("Runtime.Unknown"),
        ),
    ]
}

#[test]
fn every_cause_is_named_to_the_caller_in_the_log_and_in_the_report() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    for case in cases() {
        let function = function_name(case.name);
        instance.create_probe(&function, case.settings.clone());
        let answer = instance.invoke(&function, &case.event);
        check(&case, &answer);
        // What ended so is never lent again.
        if case.payload.contains("ExitError") && !case.name.contains("init") || case.name == "timeout" {
            let next = instance.call(&function, &json!({ "do": "global" }));
            assert_eq!(next["invocations"], 1, "{}: a fresh container", case.name);
        }
    }
}

#[test]
fn every_cause_is_named_with_eight_at_once() {
    if !host::ready() {
        return;
    }
    let config = "parallel_starts = 8\ncapacity_wait_s = 60".to_owned();
    let instance = Instance::start_with(Options { config, ..Options::default() });
    let cases: Vec<_> = cases().into_iter().take(8).collect();
    for case in &cases {
        instance.create_probe(&function_name(case.name), case.settings.clone());
    }
    thread::scope(|scope| {
        let instance = &instance;
        let running: Vec<_> = cases
            .iter()
            .map(|case| scope.spawn(move || (case, instance.invoke(&function_name(case.name), &case.event))))
            .collect();
        for one in running {
            let (case, answer) = one.join().expect("a caller's thread");
            check(case, &answer);
        }
    });
}

fn function_name(case: &str) -> String {
    case.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

#[track_caller]
fn check(case: &Case, answer: &Answer) {
    let (name, log) = (case.name, answer.log());
    assert_eq!(
        (answer.status, answer.header("x-amz-function-error")),
        (200, Some("Unhandled")),
        "{name}: {}\n{log}",
        answer.text()
    );
    assert_eq!(answer.text(), case.payload.replace("<id>", answer.request_id()), "{name}\n{log}");
    for line in case.lines {
        let wanted = line.replace("<id>", answer.request_id());
        let found = log.lines().any(|line| match wanted.strip_prefix("<time> ") {
            None => line == wanted,
            Some(rest) => {
                line.split_once(' ').is_some_and(|(time, found)| found == rest && time.ends_with('Z') && time.len() == 24)
            }
        });
        assert!(found, "{name}: no line {wanted:?} in\n{log}");
    }
    assert_eq!(answer.report("Status").as_deref(), case.status, "{name}\n{log}");
    assert_eq!(answer.report("Error Type").as_deref(), case.error_type, "{name}\n{log}");
    let order: Vec<_> =
        ["START ", "END ", "REPORT "].iter().map(|word| log.find(&format!("{word}RequestId: {}", answer.request_id()))).collect();
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{name}: START, END, REPORT in\n{log}");
}

#[test]
fn sigkill_from_outside_is_an_exit_error() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "Timeout": 30 }));
    for victim in ["the runtime", "init"] {
        let answer = thread::scope(|scope| {
            let caller = scope.spawn(|| instance.invoke("f", &json!({ "sleep": 20_000 })));
            let mut target = None;
            host::eventually("it runs", || {
                let init = instance.processes("init").last().copied();
                let runtime =
                    init.and_then(|init| host::snapshot::processes().into_iter().find(|process| process.parent == init));
                target = if victim == "init" { init } else { runtime.map(|process| process.pid) };
                instance.busy() == 1 && target.is_some()
            });
            host::kill(target.expect("just seen"));
            caller.join().expect("the caller's thread")
        });
        let expected = format!(
            r#"{{"errorType":"Runtime.ExitError","errorMessage":"RequestId: {} Error: Runtime exited with error: signal: killed"}}"#,
            answer.request_id()
        );
        assert_eq!(answer.text(), expected, "{victim}\n{}", answer.log());
        assert_eq!(answer.report("Error Type").as_deref(), Some("Runtime.ExitError"), "{victim}");
        instance.call("f", &json!({ "do": "echo" }));
    }
}

/// Ten seconds, then once more inside the invocation, under the function's own timeout.
#[test]
fn an_init_that_hangs_is_tried_twice_and_reported() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "Timeout": 2, "Environment": { "Variables": { "PROBE_INIT": "hang" } } }));
    let begin = std::time::Instant::now();
    let answer = instance.invoke("f", &json!({}));
    let took = begin.elapsed().as_secs_f64();
    assert!((12.0..14.0).contains(&took), "10 s of init and 2 s of invocation, not {took}");
    let case = Case {
        name: "an init that hangs",
        settings: Value::Null,
        event: Value::Null,
        payload: r#"{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: <id> Error: Task timed out after 2.00 seconds"}"#,
        lines: &["<time> <id> Task timed out after 2.00 seconds"],
        status: Some("timeout"),
        error_type: None,
    };
    check(&case, &answer);
}

#[test]
fn a_bad_bootstrap_is_named() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    let rows: [(&str, Vec<u8>, &str); 4] = [
        (
            "none",
            code::zip(&[("main.txt", 0o644, b"x")]),
            "Couldn't find valid bootstrap(s): [/var/task/bootstrap /opt/bootstrap]",
        ),
        (
            "not-executable",
            code::zip(&[("bootstrap", 0o644, b"#!/bin/sh\n")]),
            "fork/exec /var/task/bootstrap: permission denied",
        ),
        (
            "no-program",
            code::zip(&[("bootstrap", 0o755, b"\x00\x01\x02\x03")]),
            "fork/exec /var/task/bootstrap: exec format error",
        ),
        (
            "no-interpreter",
            code::zip(&[("bootstrap", 0o755, b"#!/no/such\n")]),
            "fork/exec /var/task/bootstrap: no such file or directory",
        ),
    ];
    for (name, zip, text) in rows {
        instance.create(name, "provided.al2023", "x", &zip, json!({}));
        let answer = instance.invoke(name, &json!({}));
        let line = format!("RequestId: {} Error: {text}", answer.request_id());
        assert_eq!(answer.text(), format!(r#"{{"errorType":"Runtime.InvalidEntrypoint","errorMessage":"{line}"}}"#), "{name}");
        let log = answer.log();
        for wanted in [line.as_str(), "Runtime.InvalidEntrypoint"] {
            assert!(log.lines().any(|line| line == wanted), "{name}: no line {wanted:?} in\n{log}");
        }
        assert_eq!(answer.report("Error Type").as_deref(), Some("Runtime.InvalidEntrypoint"), "{name}\n{log}");
        assert_eq!(answer.report("Status").as_deref(), Some("error"), "{name}\n{log}");
    }
}

/// Found out by the runtime, which says so itself and ends.
#[test]
fn no_such_handler_is_named() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    let zip = code::zip(&[("index.js", 0o644, b"exports.handler = async () => 1;")]);
    let rows = [
        ("index.nope", "Runtime.HandlerNotFound", "index.nope is undefined or not exported"),
        ("nope.handler", "Runtime.ImportModuleError", "Error: Cannot find module '/var/task/nope'"),
    ];
    for (handler, kind, message) in rows {
        let name = function_name(handler);
        instance.create(&name, "nodejs8.10", handler, &zip, json!({ "Timeout": 10 }));
        let answer = instance.invoke(&name, &json!({}));
        let body = answer.json();
        assert_eq!((&body["errorType"], &body["errorMessage"]), (&json!(kind), &json!(message)), "{handler}");
        assert_eq!(answer.header("x-amz-function-error"), Some("Unhandled"), "{handler}");
        assert_eq!(answer.report("Status").as_deref(), Some("error"), "{handler}\n{}", answer.log());
        assert_eq!(answer.report("Error Type").as_deref(), Some(kind), "{handler}\n{}", answer.log());
        let said = answer.log().lines().any(|line| line.contains(&format!(r#""errorType":"{kind}""#)));
        assert!(said, "{handler}: what the runtime said of it is in the log:\n{}", answer.log());
    }
}
