//! What people are told, by `kiln events` and `kiln history` alone: why a function was cold, why somebody was refused, why an
//! environment ended, whatever ended it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;

use serde_json::{Value, json};

use crate::host::{self, Instance, Options, kiln};

/// What `kiln events --json` prints.
fn events(instance: &Instance, words: &[&str]) -> Vec<Value> {
    let words: Vec<&str> = ["events", "--json", "-n", "60000"].iter().chain(words).copied().collect();
    let (code, out, said) = kiln(instance, &words);
    assert_eq!(code, 0, "{said}");
    out.lines().map(|line| serde_json::from_str(line).expect("an object")).collect()
}

fn history(instance: &Instance, words: &[&str]) -> Vec<Value> {
    let words: Vec<&str> = ["history", "--json"].iter().chain(words).copied().collect();
    let (code, out, said) = kiln(instance, &words);
    assert_eq!(code, 0, "{said}");
    let said: Value = serde_json::from_str(&out).expect("JSON");
    said["environments"].as_array().expect("a list").clone()
}

/// The end of the function's only environment, when it is in the history, which is the same as in the events.
#[track_caller]
fn end(instance: &Instance, function: &str) -> Value {
    let ended = || history(instance, &["--function", function]);
    host::eventually("its end is in the history", || !ended().is_empty());
    let row = ended().remove(0);
    let retired = events(instance, &["--function", function, "--kind", "retired"]);
    assert_eq!(retired.len(), 1, "{retired:?}");
    for name in ["why", "cause", "text", "by", "needed_by", "invocations", "peak_mib", "container", "function", "version"] {
        assert_eq!(retired[0][name], row[name], "{name} of {row}");
    }
    row
}

#[track_caller]
fn is(row: &Value, expected: Value) {
    for (name, value) in expected.as_object().expect("names") {
        assert_eq!(row[name], *value, "{name} of {row}");
    }
}

#[test]
fn whatever_ends_an_environment_is_told_with_its_cause_and_who_did_it() {
    if !host::ready() {
        return;
    }
    let config = "memory_budget_mib = 1024\ncapacity_wait_s = 60".to_owned();
    let mut instance = Instance::start_with(Options { config, ..Options::default() });
    for name in ["oom", "slow", "crash", "drained", "killed", "fresh", "small", "updated"] {
        let settings = json!({ "Timeout": if name == "slow" { 3 } else { 300 }, "MemorySize": 128 });
        instance.create_probe(name, settings);
    }
    instance.create_probe("large", json!({ "Timeout": 300, "MemorySize": 1024 }));
    assert_eq!(kiln(&instance, &["function", "update", "fresh", "--reuse", "never"]).0, 0);

    instance.invoke("oom", &json!({ "hold_mib": 2000 }));
    is(&end(&instance, "oom"), json!({ "why": "failed", "cause": "Runtime.OutOfMemory", "invocations": 1 }));

    instance.invoke("slow", &json!({ "sleep": 200_000 }));
    let timeout = json!({ "why": "failed", "cause": "Sandbox.Timedout", "text": "Task timed out after 3.00 seconds" });
    is(&end(&instance, "slow"), timeout);

    instance.invoke("crash", &json!({ "exit": 7 }));
    let exit = json!({ "why": "failed", "cause": "Runtime.ExitError", "text": "Runtime exited with error: exit status 7" });
    is(&end(&instance, "crash"), exit);

    instance.call("drained", &json!({ "do": "echo" }));
    assert_eq!(kiln(&instance, &["function", "drain", "drained"]).0, 0);
    is(&end(&instance, "drained"), json!({ "why": "drained", "by": "uid 0 (kiln function drain)", "cause": null }));

    instance.call("updated", &json!({ "do": "echo" }));
    assert_eq!(kiln(&instance, &["function", "update", "updated", "--timeout", "299"]).0, 0);
    is(&end(&instance, "updated"), json!({ "why": "updated", "by": null }));

    instance.call("fresh", &json!({ "do": "echo" }));
    is(&end(&instance, "fresh"), json!({ "why": "once", "invocations": 1, "cold": "once" }));

    thread::scope(|scope| {
        let running = scope.spawn(|| instance.invoke("killed", &json!({ "sleep": 200_000 })));
        host::eventually("it runs", || instance.busy() == 1);
        let environments = instance.pool()["environments"].clone();
        let busy = environments.as_array().into_iter().flatten().find(|one| one["function"] == "killed");
        let container = busy.and_then(|one| one["container"].as_str()).expect("a container").to_owned();
        assert_eq!(kiln(&instance, &["container", "kill", &container]).0, 0);
        running.join().expect("the caller's thread");
    });
    is(&end(&instance, "killed"), json!({ "why": "killed", "by": "uid 0 (kiln container kill)", "cause": "Runtime.ExitError" }));

    // One that needs all of the memory there is.
    instance.call("small", &json!({ "do": "echo" }));
    host::eventually("it is idle", || instance.busy() == 0);
    instance.call("large", &json!({ "do": "echo" }));
    is(&end(&instance, "small"), json!({ "why": "memory", "needed_by": "large" }));
    let last = |function| events(&instance, &["--function", function, "--kind", "starting"]).pop().expect("a start");
    is(&last("large"), json!({ "why": "first" }));
    instance.call("small", &json!({ "do": "echo" }));
    is(&last("small"), json!({ "why": "retired", "last_end": "memory" }));
    instance.call("crash", &json!({ "do": "echo" }));
    is(&last("crash"), json!({ "why": "retired", "last_end": "failed" }));

    // The life of one of them, and nobody else's.
    let container = history(&instance, &["--function", "drained"])[0]["container"].as_str().expect("an id").to_owned();
    let life: Vec<Value> = events(&instance, &["--container", &container]);
    let names: Vec<&str> = life.iter().filter_map(|event| event["event"].as_str()).collect();
    assert_eq!(names, ["ready", "invoked", "frozen", "ended", "retired"]);

    // All that still lives ends with kilnd, which says so.
    assert!(instance.stop().success());
    instance.launch();
    instance.await_ready();
    is(&history(&instance, &["--function", "crash"])[1], json!({ "why": "stopping" }));
    is(&history(&instance, &["--function", "oom"])[0], json!({ "why": "failed", "cause": "Runtime.OutOfMemory" }));
    assert_eq!(history(&instance, &["--living", "--function", "small"]).len(), 2);
}

#[test]
fn who_is_refused_is_told_what_was_short_and_what_there_is_of_it() {
    if !host::ready() {
        return;
    }
    let config = "memory_budget_mib = 256\ncapacity_wait_s = 1".to_owned();
    let instance = Instance::start_with(Options { config, ..Options::default() });
    instance.create_probe("holds", json!({ "Timeout": 300, "MemorySize": 256 }));
    instance.create_probe("wants", json!({ "Timeout": 300, "MemorySize": 128 }));
    thread::scope(|scope| {
        let holding = scope.spawn(|| instance.invoke("holds", &json!({ "sleep": 200_000 })));
        host::eventually("it runs", || instance.busy() == 1);
        let refused = instance.invoke("wants", &json!({ "do": "echo" }));
        assert_eq!(refused.status, 429, "{}", refused.text());
        let told = events(&instance, &["--kind", "throttled"]);
        assert_eq!(told.len(), 1, "{told:?}");
        is(&told[0], json!({ "function": "wants", "reason": "memory", "in_use": 256, "limit": 256, "container": null }));
        assert!(told[0]["waited_us"].as_u64() >= Some(1_000_000), "{told:?}");
        assert_eq!(told[0]["request"], json!(refused.request_id()), "it can be found by what its caller has");
        assert_eq!(kiln(&instance, &["function", "concurrency", "holds", "--reserve", "1"]).0, 0);
        assert_eq!(instance.invoke("holds", &json!({ "do": "echo" })).status, 429);
        let told = events(&instance, &["--kind", "throttled", "--function", "holds"]);
        is(&told[0], json!({ "reason": "reserved", "in_use": 1, "limit": 1 }));
        let (code, lines, _) = kiln(&instance, &["events", "--kind", "throttled"]);
        assert_eq!(code, 0);
        assert!(lines.contains("memory: 256 of 256 MB are charged (kiln pool says to whom); refused after 1."), "{lines}");
        assert!(lines.contains("reserved concurrency: 1 of 1 invocations at once"), "{lines}");
        assert_eq!(kiln(&instance, &["function", "drain", "holds", "--no-wait"]).0, 0);
        let busy = instance.pool()["environments"][0]["container"].as_str().expect("an id").to_owned();
        assert_eq!(kiln(&instance, &["container", "kill", &busy]).0, 0);
        holding.join().expect("the caller's thread");
    });
}

#[test]
fn large_events_of_one_user_are_refused_past_half_of_the_room_with_a_reason_of_their_own() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start_with(Options { config: "capacity_wait_s = 1".into(), ..Options::default() });
    instance.create_probe("f", json!({}));
    let path = "/2015-03-31/functions/f/invocations";
    // Room is taken for what is announced.
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 6 << 20);
    let hold = || {
        let mut caller = UnixStream::connect(instance.run_dir().join("kiln.sock")).expect("connect");
        caller.write_all(head.as_bytes()).expect("write");
        caller
    };
    let _held: Vec<UnixStream> = (0..42).map(|_| hold()).collect();
    let large = format!("\"{}\"", "x".repeat((6 << 20) - 2));
    let dry_run = [("x-amz-invocation-type", "DryRun")];
    host::eventually("one more is refused", || instance.api().request("POST", path, &dry_run, large.as_bytes()).status == 429);
    // Small ones are not.
    instance.call("f", &json!({ "do": "echo" }));
    let told = events(&instance, &["--kind", "throttled"]).pop().expect("an event");
    is(&told, json!({ "function": "f", "reason": "payloads", "in_use": 252, "limit": 256, "container": null }));
    let (_, lines, _) = kiln(&instance, &["events", "--kind", "throttled"]);
    assert!(lines.contains("payloads over 64 KiB: 252 of 256 MB are in use, by one user or by all; refused after 1."), "{lines}");
    let (_, pool, _) = kiln(&instance, &["pool"]);
    assert!(pool.contains(" for payloads (kiln events --kind throttled)"), "{pool}");
    let (_, metrics, _) = kiln(&instance, &["metrics"]);
    assert!(metrics.contains("\nkiln_throttles_total{function=\"f\",reason=\"payloads\"} "), "{metrics}");
}

#[test]
fn what_lived_when_the_server_was_killed_ended_with_it_and_nothing_told_before_is_lost() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "Timeout": 60 }));
    instance.create_probe("g", json!({ "Timeout": 60 }));
    instance.call("g", &json!({ "do": "echo" }));
    assert_eq!(kiln(&instance, &["function", "drain", "g"]).0, 0);
    instance.call("f", &json!({ "do": "echo" }));
    host::eventually("both are written", || {
        history(&instance, &["--function", "g"]).len() == 1 && history(&instance, &["--living", "--function", "f"]).len() == 1
    });
    let server = instance.processes("server")[0];
    host::kill(server);
    let there = || instance.processes("server").first().is_some_and(|pid| *pid != server);
    host::eventually("another is there", there);
    instance.call("f", &json!({ "do": "echo" }));
    let rows = history(&instance, &["--function", "f"]);
    assert_eq!(rows.len(), 1, "{rows:?}");
    is(&rows[0], json!({ "why": "with_kilnd", "invocations": null }));
    is(&history(&instance, &["--function", "g"])[0], json!({ "why": "drained", "invocations": 1 }));
    is(&events(&instance, &["--kind", "starting"])[0], json!({ "function": "f", "why": "first" }));
}

/// A `kiln events -f` under way. What it prints goes into files.
struct Follower {
    kiln: Child,
    place: tempfile::TempDir,
}

impl Follower {
    fn start(instance: &Instance, words: &[&str]) -> Self {
        let place = tempfile::tempdir().expect("a directory");
        let file = |name: &str| Stdio::from(File::create(place.path().join(name)).expect("a file"));
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        kiln.arg("--run").arg(instance.run_dir()).args(["events", "-f", "--json"]).args(words);
        let kiln = kiln.stdin(Stdio::null()).stdout(file("out")).stderr(file("err")).spawn().expect("run kiln");
        Self { kiln, place }
    }

    fn printed(&self, name: &str) -> String {
        fs::read_to_string(self.place.path().join(name)).expect("what it printed")
    }

    #[track_caller]
    fn sees(&self, what: &str) {
        host::eventually("the follower sees it", || self.printed("out").contains(what));
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.kiln.kill();
        let _ = self.kiln.wait();
    }
}

#[test]
fn a_follower_of_events_goes_on_with_the_next_server_and_is_told_when_the_last_one_was_killed() {
    if !host::ready() {
        return;
    }
    let mut instance = Instance::start();
    instance.create_probe("f", json!({}));
    let call = |instance: &Instance| instance.invoke("f", &json!({ "do": "echo" })).request_id().to_owned();
    let mut requests = vec![call(&instance)];
    let follower = Follower::start(&instance, &["--kind", "ended"]);
    follower.sees(&requests[0]);
    const KILLED: &str =
        "kiln: the kilnd before this one ended before it had told all: events of its last moments may be missing here";
    let told = || follower.printed("err").lines().filter(|line| *line == KILLED).count();

    host::kill(instance.processes("server")[0]);
    host::eventually("it is told that events may be missing", || told() == 1);
    instance.await_ready();
    requests.push(call(&instance));
    follower.sees(&requests[1]);

    // One that is stopped tells everything before it goes.
    assert!(instance.stop().success());
    instance.launch();
    instance.await_ready();
    requests.push(call(&instance));
    follower.sees(&requests[2]);
    let events: Vec<Value> = follower.printed("out").lines().map(|line| serde_json::from_str(line).expect("whole")).collect();
    assert_eq!(events.iter().map(|event| event["request"].as_str().unwrap()).collect::<Vec<_>>(), requests);
    assert!(events.windows(2).all(|two| two[0]["seq"].as_u64() < two[1]["seq"].as_u64()), "{events:?}");
    assert_eq!(told(), 1, "{}", follower.printed("err"));
}
