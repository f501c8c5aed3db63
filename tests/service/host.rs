//! What befalls the host: no memory, no disk, another time, a journal and a directory that are gone.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::machine::{self, answers, command, eventually, invoke_at_once, property, run};

/// As the comment in kiln.slice says, until this is dropped.
struct Limited;

impl Limited {
    fn to(memory: &str) -> Self {
        run("systemctl", &["set-property", "--runtime", "kiln.slice", &format!("MemoryMax={memory}")]);
        Self
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = command("systemctl", &["set-property", "--runtime", "kiln.slice", "MemoryMax=infinity"]);
    }
}

/// The functions together want more than the slice has, though each is within its own limit and the budget says yes.
#[test]
fn out_of_memory_in_the_slice_ends_functions_by_that_name_and_nobody_else() {
    let Some(kiln) = machine::enter_with("memory_budget_mib = 8000\n") else { return };
    let _limited = Limited::to("400M");
    kiln.create_probe("greedy", json!({ "MemorySize": 512, "Timeout": 120 }));
    let processes = || ["supervisor", "server", "launcher"].map(|role| kiln.processes(role));
    let before = processes();
    // Kept after the answer: it does not matter who is first, nor whether one container gets both. Nor whom the kernel ends: one that
    // works, whose caller is told, or one that has answered and is frozen.
    let callers = invoke_at_once(&kiln, 2, "greedy", &json!({ "hold_mib": 230 }));
    for answer in answers(callers) {
        assert_eq!(answer.status, 200, "{}", answer.text());
        if answer.header("x-amz-function-error").is_some() {
            assert_eq!(answer.json()["errorType"], "Runtime.ExitError", "{}", answer.text());
            let log = kiln.function_log("greedy");
            let report =
                log.lines().find(|line| line.contains("REPORT") && line.contains(answer.request_id())).unwrap_or_default();
            assert!(report.contains("Error Type: Runtime.OutOfMemory"), "{report}\n{log}");
        }
    }
    let history = ["--run", &kiln.run_dir.display().to_string(), "history", "--function", "greedy", "--json"].map(str::to_owned);
    eventually("the slice's limit was felt, and is named", || {
        let told: Value = serde_json::from_str(&run("kiln", &history.each_ref().map(String::as_str))).expect("JSON");
        told["environments"].as_array().is_some_and(|ended| ended.iter().any(|row| row["cause"] == "Runtime.OutOfMemory"))
    });
    assert_eq!(processes(), before, "{}", kiln.journal());
    assert_eq!(property("kilnd", "NRestarts"), "0");
    kiln.call("greedy", &json!({ "do": "touch_mib", "mib": 50 }));
    kiln.leave();
}

/// An hour forward and back, while a function runs and another rests.
#[test]
fn a_jump_of_the_clock_ends_nothing_and_bills_nothing() {
    let Some(kiln) = machine::enter() else { return };
    kiln.create_probe("resting", json!({}));
    kiln.create_probe("running", json!({ "Timeout": 120 }));
    let born = kiln.call("resting", &json!({ "do": "global" }))["start"].clone();
    let callers = invoke_at_once(&kiln, 1, "running", &json!({ "do": "sleep", "ms": 10_000 }));
    eventually("it runs", || kiln.environments("busy") == 1);
    for jump in ["+1 hour", "-1 hour"] {
        run("date", &["--set", jump]);
        // As long as the pool needs to look for what has been idle for too long, and more.
        kiln.await_looks(3);
        let answer = kiln.invoke("resting", &json!({ "do": "global" }));
        assert_eq!(answer.json()["start"], born, "it was recycled at {jump}");
        let (took, billed) = (answer.report_number("Duration"), answer.report_number("Billed Duration"));
        assert!((0.0..60_000.0).contains(&took) && (100.0..60_000.0).contains(&billed), "{jump}: {}", answer.log());
    }
    for answer in answers(callers) {
        assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"slept_ms":10000}"#));
    }
    let log = kiln.function_log("running");
    let at = |word: &str| log.find(word).unwrap_or_else(|| panic!("no {word} in\n{log}"));
    assert!(at("START ") < at("END ") && at("END ") < at("REPORT "), "{log}");
    kiln.leave();
}

/// Whoever is not there any more when kilnd says something.
#[test]
fn the_end_of_the_journal_is_not_kilns() {
    let Some(kiln) = machine::enter() else { return };
    kiln.create_probe("f", json!({}));
    kiln.call("f", &json!({ "do": "echo" }));
    let before = kiln.main_pid();
    run("systemctl", &["kill", "--signal=KILL", "systemd-journald"]);
    // A deletion is worth a line.
    kiln.create_probe("g", json!({}));
    assert_eq!(kiln.call("g", &json!({ "do": "echo", "n": 1 }))["n"], 1);
    assert_eq!(kiln.main_pid(), before);
    eventually("the journal is back", || property("systemd-journald", "SubState") == "running");
    kiln.create_probe("h", json!({}));
    kiln.leave();
}

#[test]
fn doors_that_somebody_has_removed_come_back_by_the_cure_that_is_named() {
    let Some(kiln) = machine::enter() else { return };
    kiln.create_probe("f", json!({}));
    fs::remove_dir_all("/run/kiln").unwrap();
    let restarted = command("systemctl", &["restart", "kilnd"]);
    assert!(!restarted.status.success(), "nobody could reach it");
    let said = String::from_utf8_lossy(&command("systemctl", &["status", "kilnd"]).stdout).into_owned();
    assert!(said.contains("systemctl restart kilnd.socket"), "{said}\n{}", kiln.journal());
    run("systemctl", &["restart", "kilnd.socket", "kilnd-control.socket", "kilnd.service"]);
    kiln.await_ready();
    kiln.call("f", &json!({ "do": "echo" }));
    kiln.leave();
}

/// The state on a file system of two megabytes, filled to its end before kilnd starts.
#[test]
fn a_full_disk_at_the_start_is_named_and_over_when_there_is_room() {
    let Some(kiln) = machine::enter() else { return };
    run("systemctl", &["stop", "kilnd"]);
    fs::create_dir_all("/var/lib/kiln").unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=2m,mode=750", "small", "/var/lib/kiln"]);
    let mut filling =
        Command::new("dd").args(["if=/dev/zero", "of=/var/lib/kiln/filling", "bs=4k"]).stderr(Stdio::null()).spawn().unwrap();
    filling.wait().unwrap();
    let _ = command("systemctl", &["start", "--no-block", "kilnd"]);
    kiln.await_journal("database or disk is full");
    fs::remove_file("/var/lib/kiln/filling").unwrap();
    eventually("it starts by itself", || property("kilnd", "SubState") == "running");
    kiln.await_ready();
    run("systemctl", &["stop", "kilnd"]);
    run("umount", &["/var/lib/kiln"]);
    assert!(Path::new("/var/lib/kiln/db").exists(), "the state that was there before");
    kiln.leave();
}
