//! What people see who look at running containers: here the CPU time. Memory is `tests/logs/memory.rs`'s.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::host::snapshot::processes;
use crate::host::{self, Instance, PATIENCE, eventually, kiln, slower};

fn environment(instance: &Instance) -> Value {
    instance.pool()["environments"][0].clone()
}

fn cpu_ms(instance: &Instance) -> u64 {
    environment(instance)["cpu_ms"].as_u64().expect("this kernel counts CPU time")
}

/// What the scheduler says of the container's processes, all of their threads together, in milliseconds.
fn scheduled_ms(instance: &Instance) -> u64 {
    let ids = instance.first_id..instance.first_id + 4096;
    let inside = processes().into_iter().filter(|process| ids.contains(&process.uid));
    let tasks = inside.flat_map(|process| fs::read_dir(format!("/proc/{}/task", process.pid)).into_iter().flatten().flatten());
    let nanos = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    nanos.sum::<u64>() / 1_000_000
}

#[test]
fn the_cpu_time_of_a_container_is_what_its_processes_had_and_stands_still_while_it_is_frozen() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "MemorySize": 1792, "Timeout": 60 }));
    // On a busy host spinning is mostly waiting.
    eventually("it has had a tenth of a second", || {
        instance.call("f", &json!({ "spin": 500 }));
        cpu_ms(&instance) >= 100
    });
    eventually("it is idle", || environment(&instance)["state"] == "idle");
    // The last tick of a process may be counted a moment after it was frozen.
    eventually("its CPU time stands still", || {
        let before = cpu_ms(&instance);
        thread::sleep(Duration::from_millis(200)); // time must pass: that nothing happens is the point
        cpu_ms(&instance) == before
    });
    let (idle, scheduled) = (cpu_ms(&instance), scheduled_ms(&instance));
    // Of what has ended inside, and of the building itself, only the group still tells.
    let beside = 300 * u64::from(slower());
    assert!(idle + 50 >= scheduled && idle <= scheduled + beside, "{idle} ms by the group, {scheduled} by the scheduler");

    let (code, text, said) = kiln(&instance, &["pool", "--json"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["environments"][0]["cpu_ms"], idle);

    let seen_at_work = AtomicBool::new(false);
    thread::scope(|scope| {
        let (instance, seen_at_work) = (&instance, &seen_at_work);
        let caller = scope.spawn(move || {
            // Not for ever: where it is never seen, the test has to end, too.
            let end = Instant::now() + 2 * PATIENCE * slower();
            while !seen_at_work.load(Ordering::Relaxed) && Instant::now() < end {
                instance.call("f", &json!({ "spin": 1000 }));
            }
        });
        // Between two calls it may be counted as well; within one it must have been when its state is busy.
        let mut before = None;
        eventually("the busy one's CPU time grows while it runs", || {
            let seen = environment(instance);
            let (cpu, invocations) = (seen["cpu_ms"].as_u64(), seen["invocations"].as_u64());
            let grown = before.is_some_and(|(then, same)| cpu > then && invocations == same && seen["state"] == "busy");
            if before.is_none_or(|(_, same)| invocations != same) {
                before = (seen["state"] == "busy").then_some((cpu, invocations));
            }
            grown
        });
        seen_at_work.store(true, Ordering::Relaxed);
        caller.join().expect("the caller's thread");
    });
}
