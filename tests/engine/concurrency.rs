//! One request in one container, however many come at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};

use crate::host::{self, Answer, Instance, Options};

/// All at once; the answers in the order of the events.
fn all_at_once(instance: &Instance, function: &str, events: Vec<Value>) -> Vec<Answer> {
    let callers: Vec<_> = events
        .into_iter()
        .map(|event| {
            let (api, path) = (instance.api(), format!("/2015-03-31/functions/{function}/invocations"));
            thread::spawn(move || api.request("POST", &path, &[("X-Amz-Log-Type", "Tail")], event.to_string().as_bytes()))
        })
        .collect();
    callers.into_iter().map(|caller| caller.join().expect("a caller's thread")).collect()
}

#[test]
fn twenty_at_once_run_in_twenty_containers() {
    if !host::ready() {
        return;
    }
    let instance =
        Instance::start_with(Options { config: "parallel_starts = 20\ncapacity_wait_s = 60".into(), ..Options::default() });
    instance.create_probe("f", json!({ "Timeout": 60 }));
    let events = (0..20).map(|n| json!({ "steps": [{ "do": "global" }, { "sleep": 3000 + n }] })).collect();
    let answers = all_at_once(&instance, "f", events);
    let mut containers = HashMap::new();
    for answer in &answers {
        assert_eq!((answer.status, answer.header("x-amz-function-error")), (200, None), "{}", answer.text());
        let seen = answer.json();
        *containers.entry(seen[0]["start"].as_str().expect("a start id").to_owned()).or_insert(0) += 1;
        assert_eq!(seen[0]["invocations"], 1, "each was its container's first");
    }
    assert_eq!(containers.len(), 20, "{containers:?}");
}

#[test]
fn late_starts_are_refused_with_their_reason_and_never_too_many_initialise() {
    if !host::ready() {
        return;
    }
    let config = "parallel_starts = 4\ncapacity_wait_s = 1".to_owned();
    let instance = Instance::start_with(Options { config, ..Options::default() });
    instance.create_probe("f", json!({ "Timeout": 60, "Environment": { "Variables": { "PROBE_INIT": "slow:2500" } } }));
    let done = Arc::new(AtomicBool::new(false));
    let (watching, control) = (done.clone(), instance.control());
    let watcher = thread::spawn(move || {
        let mut most = 0;
        while !watching.load(Ordering::Relaxed) {
            let pool = control.request("GET", "/v1/pool", &[], b"").json();
            let all = pool["environments"].as_array().cloned().unwrap_or_default();
            most = most.max(all.iter().filter(|environment| environment["state"] == "initialising").count());
            thread::yield_now();
        }
        most
    });
    let answers = all_at_once(&instance, "f", (0..40).map(|_| json!({ "do": "echo" })).collect());
    done.store(true, Ordering::Relaxed);
    assert_eq!(watcher.join().unwrap(), 4, "the bound is reached and held");
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert!(!refused.is_empty() && refused.len() < 40, "{} of 40 refused", refused.len());
    for answer in refused {
        assert_eq!(answer.header("x-amzn-errortype"), Some("TooManyRequestsException"));
        assert_eq!(answer.json()["Reason"], "ConcurrentInvocationLimitExceeded");
    }
    // The caller is told Lambda's one reason only.
    assert!(instance.log().contains("no capacity: starts"), "the log says what was short:\n{}", instance.log());
}

#[test]
fn an_updated_function_never_runs_old_code_and_no_request_is_lost() {
    if !host::ready() {
        return;
    }
    let instance =
        Instance::start_with(Options { config: "parallel_starts = 20\ncapacity_wait_s = 60".into(), ..Options::default() });
    let probe = host::code::probe_program();
    let version = |n: u32| host::code::zip(&[("bootstrap", 0o755, &probe), ("version.txt", 0o644, n.to_string().as_bytes())]);
    instance.create("f", "provided.al2023", "x", &version(0), json!({ "Timeout": 60 }));
    for round in 1..=5 {
        let (api, events) = (instance.api(), 8);
        let callers = thread::scope(|scope| {
            let instance = &instance;
            let running = scope.spawn(move || {
                all_at_once(
                    instance,
                    "f",
                    (0..events).map(|_| json!({ "do": "read", "path": "/var/task/version.txt" })).collect(),
                )
            });
            let body = json!({ "ZipFile": host::code::base64(&version(round)) }).to_string();
            let answer = api.request("PUT", "/2015-03-31/functions/f/code", &[], body.as_bytes());
            assert_eq!(answer.status, 200, "{}", answer.text());
            host::eventually("the update is finished", || instance.configuration("f")["LastUpdateStatus"] == "Successful");
            running.join().unwrap()
        });
        for answer in callers {
            assert_eq!(answer.status, 200, "{}", answer.text());
            let ran: u32 = answer.json().as_str().and_then(|text| text.parse().ok()).expect("a version");
            assert!(ran == round || ran + 1 == round, "version {ran} while {round} was put in its place");
        }
        let now = instance.call("f", &json!({ "do": "read", "path": "/var/task/version.txt" }));
        assert_eq!(now, json!(round.to_string()), "after the update is answered, only new code runs");
    }
}

#[test]
fn a_deleted_function_lets_its_running_invocations_finish() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "Timeout": 60 }));
    let api = instance.api();
    let caller =
        thread::spawn(move || api.request("POST", "/2015-03-31/functions/f/invocations", &[], br#"{"do":"sleep","ms":1500}"#));
    host::eventually("it runs", || instance.busy() == 1);
    assert_eq!(instance.api().request("DELETE", "/2015-03-31/functions/f", &[], b"").status, 204);
    assert_eq!(instance.invoke("f", &json!({ "do": "echo" })).status, 404);
    let answer = caller.join().unwrap();
    assert_eq!((answer.status, answer.header("x-amz-function-error")), (200, None), "{}", answer.text());
    host::eventually("its environments are gone", || instance.pool()["environments"].as_array().is_some_and(Vec::is_empty));
}

#[test]
fn a_warm_container_is_reused_most_recently_used_first() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "Timeout": 60 }));
    all_at_once(&instance, "f", (0..3).map(|_| json!({ "do": "sleep", "ms": 1000 })).collect());
    let last = instance.call("f", &json!({ "do": "global" }));
    for n in 1..=3 {
        let again = instance.call("f", &json!({ "do": "global" }));
        assert_eq!(again["start"], last["start"]);
        assert_eq!(again["invocations"].as_u64(), last["invocations"].as_u64().map(|before| before + n));
    }
}

/// PutFunctionConcurrency.
fn reserve(instance: &Instance, function: &str, number: u32) {
    let path = format!("/2017-10-31/functions/{function}/concurrency");
    let body = json!({ "ReservedConcurrentExecutions": number }).to_string();
    let answer = instance.api().request("PUT", &path, &[], body.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[track_caller]
fn throttled(answer: &Answer, reason: &str) {
    assert_eq!((answer.status, answer.header("x-amzn-errortype")), (429, Some("TooManyRequestsException")), "{}", answer.text());
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(answer.json(), json!({ "Type": "User", "Reason": reason, "message": "Rate Exceeded." }));
}

const RESERVED: &str = "ReservedFunctionConcurrentInvocationLimitExceeded";

#[test]
fn a_reserve_bounds_its_function_at_once_and_one_after_the_other_never_exceeds_it() {
    if !host::ready() {
        return;
    }
    let mut instance = Instance::start();
    instance.create_probe("f", json!({ "Timeout": 60 }));
    reserve(&instance, "f", 1);
    let first = instance.call("f", &json!({ "do": "global" }));
    // Each call comes as soon as the one before is answered, when its environment may not be back yet.
    for n in 1..=20 {
        let next = instance.call("f", &json!({ "do": "global" }));
        assert_eq!(
            (&next["start"], next["invocations"].as_u64()),
            (&first["start"], Some(n + 1)),
            "one environment runs them all"
        );
    }
    thread::scope(|scope| {
        let running = scope.spawn(|| instance.invoke("f", &json!({ "sleep": 3000 })));
        host::eventually("it runs", || instance.busy() == 1);
        let before = std::time::Instant::now();
        throttled(&instance.invoke("f", &json!({ "do": "echo" })), RESERVED);
        assert!(before.elapsed().as_secs() < 2, "refused at once, not after waiting for capacity");
        // While it runs, the reserve is taken away from it.
        reserve(&instance, "f", 0);
        assert_eq!(running.join().unwrap().status, 200, "who runs goes on");
    });
    throttled(&instance.invoke("f", &json!({ "do": "echo" })), RESERVED);
    instance.kill_supervisor();
    instance.launch();
    instance.await_ready();
    throttled(&instance.invoke("f", &json!({ "do": "echo" })), RESERVED);
    assert_eq!(instance.pool()["reserves"], json!([{ "function": "f", "reserved": 0, "in_flight": 0 }]));
    assert_eq!(instance.api().request("DELETE", "/2017-10-31/functions/f/concurrency", &[], b"").status, 204);
    instance.call("f", &json!({ "do": "echo" }));
}

#[test]
fn a_reserve_is_kept_from_all_other_functions_until_its_own_is_deleted() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start_with(Options { config: "concurrency = 2".into(), ..Options::default() });
    for name in ["f", "g"] {
        instance.create_probe(name, json!({ "Timeout": 60 }));
    }
    reserve(&instance, "f", 1);
    thread::scope(|scope| {
        let running = scope.spawn(|| instance.invoke("g", &json!({ "sleep": 4000 })));
        host::eventually("it runs", || instance.busy() == 1);
        throttled(&instance.invoke("g", &json!({ "do": "echo" })), "ConcurrentInvocationLimitExceeded");
        instance.call("f", &json!({ "do": "echo" }));
        assert_eq!(instance.api().request("DELETE", "/2015-03-31/functions/f", &[], b"").status, 204);
        instance.call("g", &json!({ "do": "echo" }));
        assert_eq!(running.join().unwrap().status, 200);
    });
}
