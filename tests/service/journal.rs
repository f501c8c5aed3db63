//! The machine's journal: what a function printed, how it ended and what kilnd said of it is found by its fields, and a journal
//! that does not read holds nobody up.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::machine::{self, Kiln, eventually, patience, property, run};

/// Entries of the unit, since the test began, that have all these values.
#[track_caller]
fn find(kiln: &Kiln, wanted: &[&str]) -> Vec<Value> {
    run("journalctl", &["--sync"]);
    // Not --after-cursor: systemd 252 leaves out the first of those wanted, where the cursor's entry is none of them.
    let fixed = ["--quiet", "--no-pager", "--all", "--output=json", "--cursor", &kiln.cursor, "--unit", kiln.unit];
    let out = run("journalctl", &[&fixed[..], wanted].concat());
    let entries = out.lines().map(|line| serde_json::from_str::<Value>(line).expect("an entry is JSON"));
    entries.filter(|entry| entry["__CURSOR"] != json!(kiln.cursor)).collect()
}

/// Waits until so many are there.
#[track_caller]
fn await_some(kiln: &Kiln, wanted: &[&str], count: usize) -> Vec<Value> {
    let end = Instant::now() + patience();
    loop {
        let found = find(kiln, wanted);
        if found.len() >= count {
            return found;
        }
        assert!(Instant::now() < end, "{} instead of {count} entries with {wanted:?}:\n{}", found.len(), kiln.journal());
        std::thread::sleep(Duration::from_millis(200)); // the pace of looking
    }
}

fn print(text: &str) -> Value {
    json!({ "do": "print", "text": text, "to": "stdout" })
}

#[test]
fn a_functions_lines_and_its_ends_are_found_in_the_journal_by_their_fields() {
    let Some(kiln) = machine::enter() else { return };
    kiln.create_probe("hello", json!({ "Timeout": 20 }));
    let answer = kiln.invoke("hello", &print("one\ntwo \u{e9}\t\u{1b}[2J"));
    let request = format!("KILN_REQUEST={}", answer.request_id());
    let lines = await_some(&kiln, &["KILN_FUNCTION=hello", &request], 5);
    // To a person, what `kiln logs` shows; journalctl itself takes care of control characters.
    let said: String = lines.iter().map(|entry| message(entry) + "\n").collect();
    assert_eq!(said, answer.log());
    for entry in &lines {
        assert_eq!((&entry["PRIORITY"], &entry["SYSLOG_IDENTIFIER"]), (&json!("6"), &json!("kiln/hello")), "{entry}");
        assert_eq!((&entry["_SYSTEMD_UNIT"], &entry["_TRANSPORT"]), (&json!(kiln.unit), &json!("journal")), "{entry}");
        assert_eq!(entry["KILN_VERSION"], "$LATEST");
    }
    let container = lines[0]["KILN_CONTAINER"].as_str().expect("a container").to_owned();
    assert_eq!(kiln.pool()["environments"][0]["container"], json!(container));
    assert_eq!(find(&kiln, &["KILN_FUNCTION=hello", "KILN_STREAM=function"]).len(), 2);

    // How it ended, if badly, is a warning of kilnd's.
    let crash = kiln.invoke("hello", &json!({ "signal": 11 }));
    let request = format!("KILN_REQUEST={}", crash.request_id());
    let events = await_some(&kiln, &["KILN_CAUSE=Runtime.ExitError", &request], 1);
    assert_eq!((events[0]["PRIORITY"].as_str(), events[0]["SYSLOG_IDENTIFIER"].as_str()), (Some("4"), Some("kilnd")));
    assert_eq!((&events[0]["KILN_FUNCTION"], &events[0]["KILN_CONTAINER"]), (&json!("hello"), &json!(container)));
    let warnings = find(&kiln, &["--priority=warning", "KILN_FUNCTION=hello"]);
    assert_eq!(warnings.len(), 1, "{warnings:?}");

    // All processes of kilnd's write natively, as the unit's.
    for words in ["supervisor started", "launcher ready"] {
        let own = find(&kiln, &["SYSLOG_IDENTIFIER=kilnd", "PRIORITY=6", "_TRANSPORT=journal"]);
        assert!(own.iter().any(|entry| message(entry).starts_with(words)), "{words}:\n{}", kiln.journal());
    }
    kiln.leave();
}

fn message(entry: &Value) -> String {
    match &entry["MESSAGE"] {
        Value::String(text) => text.clone(),
        // What has control characters is told as numbers.
        Value::Array(bytes) => {
            let bytes: Vec<u8> = bytes.iter().map(|byte| byte.as_u64().unwrap() as u8).collect();
            String::from_utf8(bytes).expect("the test prints UTF-8")
        }
        other => panic!("a message is a text: {other}"),
    }
}

#[test]
fn a_flood_is_bounded_by_kiln_and_not_by_systemd_and_the_longest_line_goes_whole() {
    let Some(kiln) = machine::enter() else { return };
    kiln.create_probe("noisy", json!({ "Timeout": 300, "MemorySize": 1024 }));
    let lines = 20_000;
    let begin = Instant::now();
    let answer = kiln.invoke("noisy", &json!({ "do": "print", "text": "x".repeat(99), "times": lines }));
    assert_eq!(answer.header("x-amz-function-error"), None, "{}", answer.text());
    let of = |stream: &str| find(&kiln, &["KILN_FUNCTION=noisy", &format!("KILN_STREAM={stream}")]);
    let number = |notice: &Value| message(notice).split(' ').nth(1).unwrap().parse::<usize>().unwrap();
    eventually("every line is there, or told to be missing", || {
        let (kept, missing) = (of("function").len(), of("notice").iter().map(number).sum::<usize>());
        eprintln!("{kept} lines are there, and {missing} told to be missing");
        kept + missing == lines
    });
    let (kept, bound) = (of("function").len(), 1000 + (begin.elapsed().as_secs() as usize + 1) * 100);
    assert!((1000..=bound).contains(&kept), "{kept}, and at most {bound}");
    let platform: Vec<String> = of("platform").iter().map(|entry| message(entry)[..5].to_owned()).collect();
    assert_eq!(platform, ["INIT_", "START", "END R", "REPOR"]);
    let suppressed =
        run("journalctl", &["--quiet", "--no-pager", "--output=cat", "--after-cursor", &kiln.cursor, "_COMM=systemd-journal"]);
    assert!(!suppressed.contains("Suppressed"), "{suppressed}");

    let long = "y".repeat((256 << 10) - 1);
    kiln.create_probe("long", json!({ "Timeout": 60 }));
    kiln.call("long", &print(&long));
    let found = await_some(&kiln, &["KILN_FUNCTION=long", "KILN_STREAM=function"], 1);
    assert!(message(&found[0]) == long, "{} bytes", message(&found[0]).len());
    kiln.leave();
}

/// With systemd's own bound on its queue; a blocking socket would stop the server at it, and then everybody.
#[test]
fn a_journal_that_is_stopped_delays_no_answer_and_what_is_missing_is_told() {
    let Some(kiln) = machine::enter() else { return };
    kiln.create_probe("f", json!({ "Timeout": 60 }));
    kiln.call("f", &print("before"));
    await_some(&kiln, &["KILN_FUNCTION=f", "KILN_STREAM=function"], 1);
    let journal = Stopped::stop(property("systemd-journald.service", "MainPID").parse().expect("a process id"));
    // More than systemd's queue and a socket's buffer hold, and for longer than the writer of functions' lines waits.
    let (begin, mut calls) = (Instant::now(), 0);
    while begin.elapsed() < Duration::from_secs(10) || calls < 50 {
        kiln.call("f", &print(&"line\n".repeat(20)));
        calls += 1;
    }
    drop(journal);
    let notice = await_some(&kiln, &["KILN_FUNCTION=f", "KILN_STREAM=notice", "PRIORITY=4"], 1).remove(0);
    assert!(message(&notice).contains(" are missing in the journal"), "{notice}");
    kiln.call("f", &print("after"));
    eventually("it goes on", || {
        find(&kiln, &["KILN_FUNCTION=f", "KILN_STREAM=function"]).iter().any(|entry| message(entry) == "after")
    });
    kiln.leave();
}

/// Goes on when the test ends, however it ends.
struct Stopped(Pid);

impl Stopped {
    fn stop(pid: i32) -> Self {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("stop the journal");
        Self(Pid::from_raw(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}
