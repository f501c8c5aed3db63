//! `kiln` against a whole instance: the README's lines, and the exit code of each kind of end.

use std::os::unix::net::UnixStream;
use std::thread;

use serde_json::{Value, json};

use crate::host::{self, Instance, Options, kiln};

const TUTORIAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/node-tutorial");

#[test]
fn the_tutorial_is_made_invoked_and_seen_in_the_pool() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    let words = ["function", "create", "hello", "--runtime", "nodejs8.10", "--handler", "index.handler", "--dir", TUTORIAL];
    let (code, _, said) = kiln(&instance, &[&words[..], &["--memory", "256", "--timeout", "10"]].concat());
    assert_eq!(code, 0, "{said}");

    let mut connections = Vec::new();
    for queries in 1..=2 {
        let (code, result, log) = kiln(&instance, &["invoke", "hello", "--payload", r#"{"name": "World"}"#, "--log"]);
        assert_eq!(code, 0, "{log}");
        let result: Value = serde_json::from_str(&result).expect("only the result is on stdout");
        assert_eq!((&result["greeting"], &result["queriesOnThisConnection"]), (&json!("Hello, World!"), &json!(queries)));
        assert!(log.contains("REPORT RequestId: ") && log.contains("Memory Size: 256 MB"), "{log}");
        assert_eq!(log.contains("Init Duration: "), queries == 1, "only the first is cold:\n{log}");
        connections.push(result["connectionOpened"].clone());
    }
    assert_eq!(connections[0], connections[1], "what is made outside of the handler is made once");

    let mut table = String::new();
    host::eventually("the pool shows it idle", || {
        let (code, out, said) = kiln(&instance, &["pool"]);
        assert_eq!(code, 0, "{said}");
        table = out;
        table.lines().filter(|line| line.contains("hello") && line.contains("idle")).count() == 1
    });
    let (_, out, _) = kiln(&instance, &["pool", "--json"]);
    let pool: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&pool["environments"][0]["function"], &pool["environments"][0]["invocations"]), (&json!("hello"), &json!(2)));
}

#[test]
fn each_end_of_an_invocation_has_its_exit_code() {
    if !host::ready() {
        return;
    }
    let mut instance = Instance::start_with(Options { config: "concurrency = 1".into(), ..Options::default() });
    instance.create_probe("f", json!({ "Timeout": 30 }));
    let invoke = |instance: &Instance, name: &str, event: &str| kiln(instance, &["invoke", name, "--payload", event]);

    let (code, out, _) = invoke(&instance, "f", r#"{"do":"echo","x":1}"#);
    assert_eq!((code, out.as_str()), (0, r#"{"do":"echo","x":1}"#));
    assert_eq!(invoke(&instance, "f", "{").0, 1);
    assert_eq!(kiln(&instance, &["invoke"]).0, 2);
    assert_eq!(invoke(&instance, "nope", "{}").0, 4);
    let (code, out, _) = invoke(&instance, "f", r#"{"exit":7}"#);
    assert_eq!(code, 6);
    assert!(out.contains("Runtime exited with error: exit status 7"), "what the function said is on stdout: {out}");
    thread::scope(|scope| {
        let running = scope.spawn(|| instance.invoke("f", &json!({ "sleep": 3000 })));
        host::eventually("it runs", || instance.busy() == 1);
        let (code, _, said) = invoke(&instance, "f", "{}");
        assert_eq!(code, 5, "{said}");
        assert_eq!(running.join().expect("the caller's thread").status, 200);
    });

    assert!(instance.stop().success());
    assert_eq!((invoke(&instance, "f", "{}").0, kiln(&instance, &["pool"]).0), (3, 3));
}

/// The doctor's findings of a running instance, and of the same configuration.
fn findings(instance: &Instance, words: &[&str]) -> (i32, Vec<Value>) {
    let (code, out, said) = kiln(instance, words);
    let whole: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{said}"));
    (code, whole["checks"].as_array().expect("a list").clone())
}

#[test]
fn the_doctor_finds_a_running_instance_well_and_a_killed_one_not() {
    if !host::ready() {
        return;
    }
    let mut instance = Instance::start();
    let config = instance.config_path();
    let by_file = ["doctor", "--json", "--config", config.to_str().expect("a plain path")];
    for words in [&["doctor", "--json"][..], &by_file] {
        let (code, found) = findings(&instance, words);
        let broken: Vec<&Value> = found.iter().filter(|finding| finding["state"] == "broken").collect();
        assert!(code == 0 && broken.is_empty(), "{broken:#?}");
        // What is another test's may be left over at this moment; all else is this instance's own.
        let told = |check: &str| found.iter().filter(|finding| finding["check"] == check).collect::<Vec<_>>();
        for check in ["kilnd", "kiln.sock", "control.sock", "versions", "delegation", "controllers"] {
            let absent_on_hybrid = check == "delegation" && told("delegation").is_empty();
            assert!(absent_on_hybrid || told(check).iter().any(|finding| finding["state"] == "ok"), "{check}: {found:#?}");
        }
        assert!(told("runtime").len() >= 2, "{found:#?}");
        assert_eq!(told("in-force").len(), usize::from(words.len() > 2), "{found:#?}");
    }

    instance.kill_supervisor();
    // The server, which holds the sockets too, dies of it a moment later.
    host::eventually("nobody listens", || {
        ["kiln.sock", "control.sock"].iter().all(|socket| UnixStream::connect(instance.run_dir().join(socket)).is_err())
    });
    let (code, found) = findings(&instance, &by_file);
    let dead = found.iter().filter(|finding| {
        finding["state"] == "broken" && finding["cure"].as_str().is_some_and(|cure| cure.contains("start kilnd again"))
    });
    assert_eq!((code, dead.count()), (1, 2), "both sockets: {found:#?}");
    assert!(found.iter().any(|finding| finding["check"] == "leftovers" && finding["state"] == "warn"), "{found:#?}");
    // Its successor cleans up.
    instance.launch();
    instance.await_ready();
}
