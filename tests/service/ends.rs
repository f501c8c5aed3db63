//! Ends of life: of the service, of each of its processes, of the memory, of the machine.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::machine::{self, Answer, Kiln, drop_in, eventually, property, run};

/// Something that runs until it is told otherwise, on threads of its own.
fn callers(kiln: &Kiln, count: usize, function: &str, event: &Value) -> Vec<thread::JoinHandle<std::io::Result<Answer>>> {
    let path = format!("/2015-03-31/functions/{function}/invocations");
    let caller = |_| {
        let (api, path, event) = (kiln.api(), path.clone(), event.to_string());
        thread::spawn(move || api.try_request("POST", &path, &[], event.as_bytes()))
    };
    (0..count).map(caller).collect()
}

#[track_caller]
fn answers(callers: Vec<thread::JoinHandle<std::io::Result<Answer>>>) -> Vec<Answer> {
    let answer =
        |caller: thread::JoinHandle<std::io::Result<Answer>>| caller.join().unwrap().expect("an answer, not a closed connection");
    callers.into_iter().map(answer).collect()
}

#[test]
fn a_function_runs_in_an_installed_kiln() {
    let Some(kiln) = machine::enter() else { return };
    kiln.create_probe("echo", json!({}));
    assert_eq!(kiln.call("echo", &json!({ "hello": 1 })), json!({ "hello": 1 }));
    kiln.leave();
}

#[test]
fn a_stop_lets_twenty_invocations_finish() {
    let Some(kiln) = machine::enter() else { return };
    kiln.create_probe("slow", json!({ "Timeout": 60 }));
    let callers = callers(&kiln, 20, "slow", &json!({ "do": "sleep", "ms": 8000 }));
    eventually("twenty invocations run", || kiln.environments("busy") == 20);
    run("systemctl", &["stop", "kilnd"]);
    for answer in answers(callers) {
        assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"slept_ms":8000}"#));
    }
    kiln.leave();
}

#[test]
fn a_stop_names_what_it_cuts_to_callers_and_in_the_journal() {
    let Some(kiln) = machine::enter_with("drain_s = 3\n") else { return };
    kiln.create_probe("endless", json!({ "Timeout": 900 }));
    let callers = callers(&kiln, 20, "endless", &json!({ "do": "sleep", "ms": 600_000 }));
    eventually("twenty invocations run", || kiln.environments("busy") == 20);
    run("systemctl", &["stop", "kilnd"]);
    for answer in answers(callers) {
        assert_eq!((answer.status, answer.header("x-amz-function-error")), (200, Some("Unhandled")), "{}", answer.text());
        assert_eq!(answer.json()["errorType"], "Sandbox.Stopped");
        kiln.await_journal(answer.request_id());
    }
    assert_eq!(property("kilnd", "Result"), "success", "{}", kiln.journal());
    kiln.leave();
}
