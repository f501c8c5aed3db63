//! The memory of now, of frozen and of running environments, in `kiln pool`.

use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use crate::host::{self, Instance, eventually};
use crate::kiln;

fn environment(instance: &Instance) -> Value {
    instance.pool()["environments"][0].clone()
}

#[test]
fn an_idle_environment_shows_what_it_holds_and_a_busy_one_what_it_takes_at_that_moment() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "MemorySize": 256, "Timeout": 60 }));
    instance.call("f", &json!({ "hold_mib": 50 }));
    eventually("it is idle", || environment(&instance)["state"] == "idle");
    let idle = environment(&instance);
    assert!((50..60).contains(&idle["used_mib"].as_u64().unwrap()), "{idle}");
    assert!(idle["peak_mib"].as_u64() >= idle["used_mib"].as_u64(), "{idle}");

    thread::scope(|scope| {
        let (instance, steps) = (&instance, json!({ "steps": [{ "hold_mib": 60 }, { "sleep": 3000 }] }));
        let caller = scope.spawn(move || instance.invoke("f", &steps));
        eventually("the busy one shows what it has just taken", || {
            let seen = environment(instance);
            seen["state"] == "busy" && seen["used_mib"].as_u64().is_some_and(|used| (110..120).contains(&used))
        });
        // What is only noted when it comes to rest would be seen a moment before the answer.
        let seen = Instant::now();
        assert_eq!(caller.join().expect("the caller's thread").status, 200);
        assert!(seen.elapsed().as_millis() > 500, "it was seen while it ran: {:?}", seen.elapsed());
    });
    // /tmp is a disk, not memory.
    instance.call("f", &json!({ "fill_tmp_mib": 100 }));
    eventually("it is idle", || environment(&instance)["state"] == "idle");
    let idle = environment(&instance);
    assert!((110..120).contains(&idle["used_mib"].as_u64().unwrap()), "{idle}");

    let (code, table, said) = kiln(&instance, &["pool", "--sort", "memory"]);
    assert_eq!(code, 0, "{said}");
    let memory = format!("{}/256 MB", idle["used_mib"]);
    assert!(table.contains(&memory) && table.contains("0 busy, 0 initialising, 1 idle"), "{table}");
}

#[test]
fn being_looked_at_wakes_nobody() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({}));
    let ticks = || instance.call("f", &json!({ "do": "count" }))["counter"].as_u64().unwrap();
    let before = ticks();
    eventually("it is idle", || environment(&instance)["state"] == "idle");
    let begin = Instant::now();
    let mut looks = 0;
    while begin.elapsed().as_millis() < 1000 {
        assert_eq!(environment(&instance)["state"], "idle");
        looks += 1;
    }
    let after = ticks();
    // A thread of the probe counts every few milliseconds, as long as it runs.
    assert!(after - before < 100, "{before}, {after} after {looks} looks");
}
