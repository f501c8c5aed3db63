//! What people end by hand: containers recycled and killed, functions drained; and functions that reuse nothing.

use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use crate::host::{self, Answer, Instance, Options, kiln};

/// The only environment that there is.
#[track_caller]
fn the_container(instance: &Instance) -> String {
    let pool = instance.pool();
    let all = pool["environments"].as_array().expect("a list");
    assert_eq!(all.len(), 1, "{pool}");
    all[0]["container"].as_str().expect("an id").to_owned()
}

fn retired(instance: &Instance, why: &str) -> u64 {
    instance.pool()["retired"][why].as_u64().unwrap_or(0)
}

#[test]
fn a_container_that_is_killed_ends_at_once_and_its_caller_and_both_logs_are_told_why() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "Timeout": 300 }));
    let (answer, took) = thread::scope(|scope| {
        let running = scope.spawn(|| instance.invoke("f", &json!({ "sleep": 200_000 })));
        host::eventually("it runs", || instance.busy() == 1);
        let container = the_container(&instance);
        let asked = Instant::now();
        let (code, _, said) = kiln(&instance, &["container", "kill", &container]);
        assert_eq!((code, said), (0, format!("container {container} of f killed, and the invocation that it ran\n")));
        let answer: Answer = running.join().expect("the caller's thread");
        (answer, asked.elapsed())
    });
    assert!(took < host::patience(), "it waited for the end of its sleep: {took:?}");
    assert_eq!((answer.status, answer.header("x-amz-function-error")), (200, Some("Unhandled")), "{}", answer.text());
    let body = answer.json();
    assert_eq!(body["errorType"], "Runtime.ExitError");
    assert!(body["errorMessage"].as_str().is_some_and(|text| text.ends_with("Runtime exited with error: signal: killed")));
    assert!(answer.log().contains(" was killed by uid 0 (kiln container kill)\n"), "{}", answer.log());
    assert!(instance.log().contains("audit: a container was killed by hand uid=0"), "{}", instance.log());
    assert_eq!((retired(&instance, "killed"), retired(&instance, "failed")), (1, 0));
    assert_eq!(instance.pool()["environments"], json!([]));

    // A frozen one, too.
    instance.call("f", &json!({ "do": "echo" }));
    host::eventually("it is idle", || instance.pool()["environments"][0]["state"] == "idle");
    let container = the_container(&instance);
    assert_eq!(kiln(&instance, &["container", "kill", &container]).0, 0);
    assert_eq!((retired(&instance, "killed"), instance.pool()["environments"].clone()), (2, json!([])));
    host::eventually("its processes are gone", || instance.processes("init").is_empty());
    let (code, _, said) = kiln(&instance, &["container", "kill", &container]);
    assert!(code == 4 && said.contains("or it has ended"), "{said}");
}

#[test]
fn a_container_that_is_recycled_serves_its_invocation_and_no_other() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "Timeout": 60 }));
    let first = thread::scope(|scope| {
        let running = scope.spawn(|| instance.call("f", &json!({ "steps": [{ "do": "global" }, { "sleep": 6000 }] })));
        host::eventually("it runs", || instance.busy() == 1);
        let (code, _, said) = kiln(&instance, &["container", "recycle", &the_container(&instance)]);
        assert!(code == 0 && said.contains("ends when its invocation does"), "{said}");
        assert_eq!(instance.pool()["environments"][0]["leaving"], "recycled");
        running.join().expect("the caller's thread")
    });
    let second = instance.call("f", &json!({ "do": "global" }));
    assert_ne!(first[0]["start"], second["start"]);
    host::eventually("it is idle", || instance.pool()["environments"][0]["state"] == "idle");
    assert_eq!(kiln(&instance, &["container", "recycle", &the_container(&instance)]).0, 0);
    assert_eq!((retired(&instance, "recycled"), instance.pool()["environments"].clone()), (2, json!([])));
}

#[test]
fn a_function_that_is_drained_under_load_loses_no_request_and_goes_on_in_new_containers() {
    if !host::ready() {
        return;
    }
    let config = "parallel_starts = 8\ncapacity_wait_s = 60".to_owned();
    let instance = Instance::start_with(Options { config, ..Options::default() });
    instance.create_probe("f", json!({ "Timeout": 60 }));
    instance.create_probe("other", json!({ "Timeout": 60 }));
    let untouched = instance.call("other", &json!({ "do": "global" }));
    let event = json!({ "steps": [{ "do": "global" }, { "sleep": 300 }] });
    thread::scope(|scope| {
        let callers: Vec<_> = (0..4)
            .map(|_| {
                let (instance, event) = (&instance, &event);
                scope.spawn(move || (0..10).map(|_| instance.call("f", event)[0]["start"].clone()).collect::<Vec<_>>())
            })
            .collect();
        host::eventually("they run", || instance.busy() >= 2);
        let before: Vec<Value> = instance.pool()["environments"].as_array().cloned().unwrap_or_default();
        let (code, out, said) = kiln(&instance, &["function", "drain", "f", "--json"]);
        assert_eq!(code, 0, "{said}");
        let told: Value = serde_json::from_str(&out).expect("JSON");
        assert!(told["leaving"] == 0 && told["ended"].as_u64() >= Some(1), "{told}");
        let now = instance.pool();
        let now: Vec<&Value> = now["environments"].as_array().into_iter().flatten().map(|one| &one["container"]).collect();
        let own = before.iter().filter(|one| one["function"] == "f" && !one["container"].is_null());
        let left: Vec<_> = own.filter(|one| now.contains(&&one["container"])).collect();
        assert!(left.is_empty(), "{left:?} are of before the drain");
        let starts: Vec<Vec<Value>> = callers.into_iter().map(|caller| caller.join().expect("a caller's thread")).collect();
        assert_eq!(starts.concat().len(), 40, "each had its answer");
    });
    assert_eq!(instance.call("other", &json!({ "do": "global" }))["start"], untouched["start"]);
    assert!(retired(&instance, "drained") >= 1);
    assert!(instance.log().contains("audit: a function was drained by hand uid=0"), "{}", instance.log());
}

#[test]
fn a_function_without_reuse_never_meets_what_another_invocation_left() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "Timeout": 60, "Tags": { "kiln:reuse": "never" } }));
    let event = json!({ "steps": [{ "do": "global" }, { "read": "/tmp/left" }, { "write": "/tmp/left", "text": "here" }] });
    let mut starts = Vec::new();
    for _ in 0..4 {
        let answer = instance.invoke("f", &event);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.report("Init Duration").is_some(), "each is a cold start:\n{}", answer.log());
        let seen = answer.json();
        assert_eq!(seen[0]["invocations"], 1);
        assert_ne!(seen[1], "here", "{seen}");
        starts.push(seen[0]["start"].as_str().expect("a start id").to_owned());
        assert_eq!(instance.pool()["environments"], json!([]), "it went before its log was whole");
    }
    starts.sort();
    starts.dedup();
    assert_eq!((starts.len(), retired(&instance, "once")), (4, 4));

    // And back again, by the command.
    let (code, _, said) = kiln(&instance, &["function", "update", "f", "--reuse", "always"]);
    assert_eq!(code, 0, "{said}");
    let (one, two) = (instance.call("f", &json!({ "do": "global" })), instance.call("f", &json!({ "do": "global" })));
    assert_eq!(one["start"], two["start"]);
    assert_eq!(kiln(&instance, &["function", "update", "f", "--reuse", "never"]).0, 0);
    assert_eq!(instance.pool()["environments"], json!([]), "what was warm is not used again");
}

#[test]
fn an_init_that_fails_again_and_again_is_told_the_same_and_costs_no_more_containers() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("crashes", json!({ "Environment": { "Variables": { "PROBE_INIT": "exit:7" } } }));
    let tried = || instance.pool()["retired"]["init"].as_u64().unwrap_or(0);
    let first = instance.invoke("crashes", &json!({})).json();
    let mut told = Vec::new();
    host::eventually("it is not tried any more", || {
        told.push(instance.invoke("crashes", &json!({})).json());
        instance.pool()["told_again"].as_u64() >= Some(3)
    });
    let message = |body: &Value| {
        body["errorMessage"].as_str().and_then(|text| text.split_once(" Error: ")).map(|(_, text)| text.to_owned())
    };
    for body in &told {
        assert_eq!((&body["errorType"], message(body)), (&first["errorType"], message(&first)), "the same error each time");
    }
    assert!(tried() < told.len() as u64, "{} of {} were tried", tried(), told.len() + 1);
    // Who changes it is not held up by its past.
    let body = json!({ "Environment": { "Variables": {} } }).to_string();
    let answer = instance.api().request("PUT", "/2015-03-31/functions/crashes/configuration", &[], body.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    instance.call("crashes", &json!({ "do": "echo" }));
}
