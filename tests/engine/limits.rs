//! Limits are real: memory with its two walls, /tmp, processes, descriptors, time, freeze. CPU is tests/cpu.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::host::{self, Answer, Instance, Options, snapshot};

#[track_caller]
fn assert_out_of_memory(answer: &Answer) {
    assert_eq!(
        (answer.status, answer.header("x-amz-function-error")),
        (200, Some("Unhandled")),
        "{}\n{}",
        answer.text(),
        answer.log()
    );
    let expected = format!(
        r#"{{"errorType":"Runtime.ExitError","errorMessage":"RequestId: {} Error: Runtime exited with error: signal: killed"}}"#,
        answer.request_id()
    );
    assert_eq!(answer.text(), expected);
    assert_eq!(answer.report("Error Type").as_deref(), Some("Runtime.OutOfMemory"), "{}", answer.log());
}

/// The inner wall: a 128 MB function has 640 MB until the kernel's, and must die at its own.
#[test]
fn a_heap_of_200_mb_is_killed_at_128() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "MemorySize": 128, "Timeout": 30 }));
    let answer = instance.invoke("f", &json!({ "steps": [{ "hold_mib": 200 }, { "sleep": 5000 }] }));
    assert_out_of_memory(&answer);
    let peak = answer.report_number("Max Memory Used");
    assert!((128.0..=300.0).contains(&peak), "noticed at {peak} MB");
}

#[test]
fn a_heap_of_1500_mb_is_killed_too() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "MemorySize": 128, "Timeout": 30 }));
    assert_out_of_memory(&instance.invoke("f", &json!({ "hold_mib": 1500 })));
}

#[test]
fn four_children_that_share_the_heap_are_killed_together() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "MemorySize": 128, "Timeout": 30 }));
    assert_out_of_memory(&instance.invoke("f", &json!({ "steps": [{ "children_mib": [60, 60, 60, 60] }, { "sleep": 5000 }] })));
    assert_out_of_memory(&instance.invoke("f", &json!({ "children_mib": [400, 400, 400, 400] })));
}

/// The kernel's wall alone: the server, which keeps the inner one, rests until the kernel has killed.
#[test]
fn at_the_outer_wall_the_kernel_kills_and_the_cause_is_named() {
    if !host::ready() {
        return;
    }
    // A server that rests for too long is replaced by the supervisor, and nobody is left to tell: then once more.
    let answer = (0..5).find_map(|_| at_the_outer_wall());
    assert_out_of_memory(&answer.expect("the same server tells what it found"));
}

/// What the caller got; `None` where the server was replaced meanwhile.
fn at_the_outer_wall() -> Option<Answer> {
    let instance = Instance::start();
    instance.create_probe("f", json!({ "MemorySize": 512, "Timeout": 60 }));
    // Most of the way is gone before, with a full /tmp, which the inner wall does not count, and a heap just below that wall: the
    // server is to rest for a moment only.
    assert_eq!(instance.call("f", &json!({ "fill_tmp_mib": 500 }))["written_mib"], 500);
    instance.call("f", &json!({ "hold_mib": 400 }));
    host::eventually("it rests", || instance.busy() == 0);
    let server = instance.processes("server")[0];
    let answer = std::thread::scope(|scope| {
        let event = json!({ "steps": [{ "sleep": 500 }, { "hold_mib": 2000 }, { "sleep": 30_000 }] });
        let instance = &instance;
        let path = "/2015-03-31/functions/f/invocations";
        let body = event.to_string();
        let caller =
            scope.spawn(move || instance.api().try_request("POST", path, &[("X-Amz-Log-Type", "Tail")], body.as_bytes()));
        host::eventually("it runs", || instance.busy() == 1);
        host::signal(server, Signal::SIGSTOP);
        host::eventually("the kernel has killed", || kernel_kills(instance) > 0 || instance.processes("server") != [server]);
        // With its memory: what the server then finds is the kernel's count and nothing else.
        let first = instance.first_id;
        let ids = first..first + 4096;
        host::eventually("it is gone", || {
            !snapshot::processes().iter().any(|process| process.comm != "kiln-init" && ids.contains(&process.uid))
        });
        host::signal(server, Signal::SIGCONT);
        caller.join().expect("the caller's thread")
    });
    (instance.processes("server") == [server]).then(|| answer.expect("an answer of the server"))
}

/// The kernel's own count, of all containers of the instance, in either version's file.
fn kernel_kills(instance: &Instance) -> u64 {
    let groups = snapshot::cgroups(&format!("kiln-{}-", instance.name));
    let files = groups.iter().flat_map(|group| ["memory.oom_control", "memory.events"].map(|file| format!("{group}/{file}")));
    let texts: Vec<_> = files.filter_map(|file| std::fs::read_to_string(file).ok()).collect();
    let counts = texts.iter().flat_map(|text| text.lines()).filter_map(|line| line.strip_prefix("oom_kill "));
    counts.filter_map(|count| count.parse::<u64>().ok()).sum()
}

#[test]
fn a_full_tmp_does_not_count_as_memory() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "MemorySize": 128, "Timeout": 60 }));
    let answer = instance.invoke("f", &json!({ "fill_tmp_mib": 300 }));
    assert_eq!(answer.json()["written_mib"], 300, "{}\n{}", answer.text(), answer.log());
    let peak = answer.report_number("Max Memory Used");
    assert!(peak <= 128.0, "300 MB in /tmp are no memory, yet {peak} MB are reported");
    // All of it, and a heap beside it.
    let both = instance.call("f", &json!({ "steps": [{ "fill_tmp_mib": 300 }, { "touch_mib": 100 }] }));
    let (written, error) = (&both[0]["written_mib"], &both[0]["error"]);
    assert!((200..=212).contains(&written.as_u64().unwrap()) && error == "ENOSPC", "/tmp ends at 512 MB: {both}");
    assert_eq!(both[1]["touched_mib"], 100);
}

#[test]
fn max_memory_used_is_what_was_touched() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "MemorySize": 512, "Timeout": 30 }));
    let base = instance.invoke("f", &json!({ "do": "echo" })).report_number("Max Memory Used");
    // Touched and freed; held for a moment, as a peak that nobody can have seen is none.
    let answer = instance.invoke("f", &json!({ "steps": [{ "do": "touch_mib", "mib": 200, "hold_ms": 50 }, { "do": "echo" }] }));
    let peak = answer.report_number("Max Memory Used");
    assert!((peak - base - 200.0).abs() <= 10.0, "base {base} MB, then {peak} MB");
    let later = instance.invoke("f", &json!({ "do": "echo" })).report_number("Max Memory Used");
    assert_eq!(later, peak, "the peak is the environment's and never falls");
}

#[test]
fn files_in_tmp_are_bounded_in_number() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "Timeout": 60 }));
    let told = instance.call("f", &json!({ "tmp_files": 40_000 }));
    assert_eq!(told["error"], "ENOSPC", "{told}");
    assert!((32_000..=32_768).contains(&told["made"].as_u64().unwrap()), "512 MB / 16 KiB: {told}");
}

#[test]
fn descriptors_threads_and_processes_end_at_1024() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "MemorySize": 3008, "Timeout": 60 }));
    let threads = instance.call("f", &json!({ "threads": 2000 }));
    assert_eq!(threads["error"], "EAGAIN");
    assert!((1000..=1024).contains(&threads["started"].as_u64().unwrap()), "{threads}");
    let processes = instance.call("f", &json!({ "processes": 2000 }));
    assert_eq!(processes["error"], "EAGAIN");
    assert!((1000..=1024).contains(&processes["started"].as_u64().unwrap()), "{processes}");
    // Last: the probe keeps them open.
    let files = instance.call("f", &json!({ "fds": 2000 }));
    assert_eq!(files["error"], "EMFILE");
    assert!((1000..=1024).contains(&files["opened"].as_u64().unwrap()), "{files}");
}

/// Seen from inside by a counting thread, from outside by the kernel's own word and by CPU time.
#[test]
fn a_frozen_environment_makes_no_progress() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "MemorySize": 1792 }));
    let before = instance.call("f", &json!({ "do": "count" }))["counter"].as_u64().expect("a number");
    let groups = snapshot::cgroups(&format!("kiln-{}-", instance.name));
    let unified: Vec<_> = groups.iter().filter(|group| std::path::Path::new(group).join("cgroup.freeze").exists()).collect();
    let frozen =
        |group: &str| std::fs::read_to_string(format!("{group}/cgroup.events")).is_ok_and(|text| text.contains("frozen 1"));
    host::eventually("the kernel says frozen", || unified.iter().any(|group| frozen(group)));
    let group = unified.iter().find(|group| frozen(group)).expect("just seen").as_str();
    let usage = |group: &str| {
        let text = std::fs::read_to_string(format!("{group}/cpu.stat")).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("usage_usec ").map(str::to_owned)).expect("CPU usage")
    };
    let at_freeze = usage(group);
    std::thread::sleep(std::time::Duration::from_secs(2)); // the promise is about time going by
    assert_eq!(usage(group), at_freeze, "CPU used while frozen");
    let after = instance.call("f", &json!({ "do": "count" }))["counter"].as_u64().expect("a number");
    // What it counts between thaw and answer is a few milliseconds' worth; two seconds would be thousands.
    let per_ms = instance.call("f", &json!({ "steps": [{ "do": "count" }, { "sleep": 100 }, { "do": "count" }] }));
    let rate = (per_ms[2]["counter"].as_u64().unwrap() - per_ms[0]["counter"].as_u64().unwrap()) as f64 / 100.0;
    assert!(rate > 0.0, "the thread counts while it runs");
    let progress = (after - before) as f64 / rate;
    assert!(progress < 500.0, "it counted {progress:.0} ms' worth in 2 s of frost");
}

#[test]
fn a_timeout_is_answered_in_time_and_takes_every_process_along() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    let slower = host::slower();
    instance.create_probe("f", json!({ "Timeout": slower }));
    instance.call("f", &json!({ "do": "echo" }));
    let begin = std::time::Instant::now();
    let answer = instance.invoke("f", &json!({ "steps": [{ "do": "daemon" }, { "sleep": 60_000 }] }));
    let took = begin.elapsed();
    assert!(answer.text().contains(&format!("Task timed out after {slower}.00 seconds")), "{}", answer.text());
    assert!((1000..1500).contains(&(took.as_millis() as u32 / slower)), "answered after {took:?}");
    let ids = instance.first_id..instance.first_id + 4096;
    host::eventually("its processes are gone", || !snapshot::processes().iter().any(|process| ids.contains(&process.uid)));
}

#[test]
fn a_function_that_prints_without_end_neither_blocks_nor_loses_its_report() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start_with(Options::default());
    instance.create_probe("f", json!({ "Timeout": 60, "MemorySize": 1792 }));
    let event: Value = json!({ "do": "print", "text": "x".repeat(200), "times": 50_000 });
    let answer = instance.invoke("f", &event);
    assert_eq!(answer.json()["printed"], 50_000, "{}", answer.text());
    let log = answer.log();
    assert_eq!(log.len(), 4096, "the tail is exactly the last 4096 bytes");
    assert!(log.contains("REPORT RequestId: "), "{log}");
}
