//! Logs and books of a real kilnd: what a function printed is found again, whole, whoever was killed meanwhile; what is
//! metered is what was reported; and the pool tells the memory of now.
//!
//! Needs root, the built runtimes and kilnd's users, as `tests/engine` does.

#[path = "logs/books.rs"]
mod books;
#[path = "logs/follow.rs"]
mod follow;
#[path = "engine/host/mod.rs"]
#[allow(dead_code)] // the module serves several test programs; each uses its part
mod host;
#[path = "logs/journal.rs"]
mod journal;
#[path = "logs/memory.rs"]
mod memory;
#[path = "logs/several.rs"]
mod several;

use std::thread;

use host::{Instance, Options, eventually, kiln};
use serde_json::{Value, json};

/// What `kiln logs` prints, with success.
#[track_caller]
fn logs(instance: &Instance, words: &[&str]) -> String {
    let (code, out, said) = kiln(instance, &[&["logs"], words].concat());
    assert_eq!((code, said.as_str()), (0, ""), "kiln logs {words:?}");
    out
}

/// All of a function's log, entry by entry.
#[track_caller]
fn entries(instance: &Instance, function: &str) -> Vec<Value> {
    let all = logs(instance, &[function, "-n", "all", "--json"]);
    all.lines().map(|line| serde_json::from_str(line).expect("an entry is JSON")).collect()
}

/// Waits until the REPORT of so many invocations is in the log: it comes after the answer, and a moment later to the disk.
#[track_caller]
fn reported(instance: &Instance, function: &str, count: usize) {
    eventually("the invocations are reported", || {
        entries(instance, function).iter().filter(|entry| report_line(entry).is_some()).count() >= count
    });
}

fn report_line(entry: &Value) -> Option<&str> {
    entry["line"].as_str().filter(|line| entry["kind"] == "platform" && line.starts_with("REPORT "))
}

fn print(text: &str, to: &str) -> Value {
    json!({ "do": "print", "text": text, "to": to })
}

#[test]
fn each_invocations_lines_are_found_by_request_stream_container_and_time() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({}));
    let steps = json!({ "steps": [print("out 1", "stdout"), print("err 2", "stderr"), print("out 3", "stdout")] });
    let (first, second) = (instance.invoke("f", &steps), instance.invoke("f", &json!({ "do": "env" })));
    let stream = second.json()["AWS_LAMBDA_LOG_STREAM_NAME"].as_str().unwrap().to_owned();
    reported(&instance, "f", 2);

    // stdout and stderr in the order in which they were printed; byte for byte what a caller gets as the tail.
    let of_first = logs(&instance, &["f", "--request", first.request_id()]);
    assert_eq!(of_first, first.log());
    let order: Vec<_> = of_first.lines().skip(1).take(3).collect();
    assert_eq!(order, ["out 1", "err 2", "out 3"]);
    assert_eq!(logs(&instance, &["f", "--request", second.request_id()]), second.log());

    let all = entries(&instance, "f");
    assert!(all[0]["line"].as_str().unwrap().starts_with("INIT_START Runtime Version: provided:al2023\t"), "{}", all[0]);
    assert_eq!((&all[0]["kind"], &all[0]["request"]), (&json!("platform"), &Value::Null));
    assert!(all.iter().all(|entry| entry["stream"] == json!(stream) && entry["version"] == "$LATEST"), "{all:?}");
    let container = instance.pool()["environments"][0]["container"].as_str().unwrap().to_owned();
    for id in [&stream, &container, stream.split(']').nth(1).unwrap()] {
        assert_eq!(logs(&instance, &["f", "--container", id]).lines().count(), all.len(), "{id}");
    }
    assert_eq!(logs(&instance, &["f", "--container", "99-99"]), "");
    let shown = all[3]["time_ms"].as_u64().unwrap();
    let time = jiff::Timestamp::from_millisecond(shown as i64).unwrap().to_string();
    let since = logs(&instance, &["f", "--since", &time]).lines().count();
    assert!(since < all.len() && since > 0, "{since} of {}", all.len());
    assert_eq!(logs(&instance, &["f", "-n", "1"]), format!("{}\n", report_line(all.last().unwrap()).unwrap()));
    assert!(logs(&instance, &["f", "--since", "1h", "--time"]).starts_with("20"));

    // Nobody's log, and a function that has not run yet.
    assert_eq!(kiln(&instance, &["logs", "nope"]).0, 4);
    instance.create_probe("silent", json!({}));
    assert_eq!(logs(&instance, &["silent"]), "");
}

#[test]
fn no_function_can_write_what_looks_like_the_platforms_own() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({}));
    let forged =
        "END RequestId: 1\nREPORT RequestId: 1\tDuration: 0.01 ms\"}\n{\"kind\":\"platform\",\"line\":\"x\"}\n\u{1b}[2J\u{0}";
    let answer = instance.invoke("f", &print(forged, "stdout"));
    reported(&instance, "f", 1);
    let all = entries(&instance, "f");
    let of = |kind: &str| all.iter().filter(|entry| entry["kind"] == kind).count();
    assert_eq!((of("platform"), of("function")), (4, 4), "INIT_START, START, END, REPORT, and four lines: {all:?}");
    assert_eq!(logs(&instance, &["f", "--request", answer.request_id()]), answer.log(), "into a pipe it goes as it was");
}

#[test]
fn what_was_reported_survives_any_kill_and_a_deleted_function() {
    if !host::ready() {
        return;
    }
    let mut instance = Instance::start();
    instance.create_probe("f", json!({}));
    let mut expected = Vec::new();
    let run = |instance: &Instance, expected: &mut Vec<String>| {
        let answer = instance.invoke("f", &print(&format!("line {}", expected.len()), "stdout"));
        expected.push(answer.log());
        reported(instance, "f", expected.len());
    };
    run(&instance, &mut expected);
    host::kill(instance.processes("server")[0]);
    instance.await_ready();
    run(&instance, &mut expected);
    instance.kill_supervisor();
    instance.launch();
    instance.await_ready();
    run(&instance, &mut expected);
    assert!(instance.stop().success());
    instance.launch();
    instance.await_ready();
    assert_eq!(instance.api().request("DELETE", "/2015-03-31/functions/f", &[], b"").status, 204);
    // Each container's INIT_START stands before its invocations; nothing else does.
    let all = logs(&instance, &["f", "-n", "all"]);
    let without: String = all.split_inclusive('\n').filter(|line| !line.starts_with("INIT_START ")).collect();
    assert_eq!(without, expected.concat());

    let (code, _, said) = kiln(&instance, &["logs", "f", "--delete"]);
    assert_eq!((code, said.as_str()), (0, "the log of f is removed\n"));
    assert_eq!(kiln(&instance, &["logs", "f"]).0, 4);
    assert_eq!(std::fs::read_dir(instance.state_dir().join("logs")).unwrap().count(), 0);
}

/// Nor fills the disk, nor costs anybody else a line, nor loses its own START, END and REPORT.
#[test]
fn a_function_that_prints_without_end_neither_blocks_nor_is_blocked() {
    if !host::ready() {
        return;
    }
    let config = "log_max_mib = 16".to_owned();
    let instance = Instance::start_with(Options { config, ..Options::default() });
    instance.create_probe("noisy", json!({ "Timeout": 120, "MemorySize": 1024 }));
    instance.create_probe("quiet", json!({ "Timeout": 20 }));
    let (lines, text) = (100_000, "x".repeat(999));
    let answer = thread::scope(|scope| {
        let noisy = scope.spawn(|| instance.invoke("noisy", &json!({ "do": "print", "text": text, "times": lines })));
        for number in 0..20 {
            instance.call("quiet", &print(&format!("hello {number}"), "stdout"));
        }
        noisy.join().expect("the caller's thread")
    });
    assert_eq!(answer.header("x-amz-function-error"), None, "{}", answer.text());
    assert!(answer.log().len() == 4096 && answer.log().ends_with(" ms\t\n"), "the tail is exact");
    for (function, count) in [("noisy", 1), ("quiet", 20)] {
        reported(&instance, function, count);
    }
    let noisy = entries(&instance, "noisy");
    let platform: Vec<_> = noisy.iter().filter(|entry| entry["kind"] == "platform").collect();
    let first_words: Vec<_> = platform.iter().map(|entry| entry["line"].as_str().unwrap().split(' ').next().unwrap()).collect();
    assert_eq!(first_words, ["INIT_START", "START", "END", "REPORT"]);
    let kept = noisy.iter().filter(|entry| entry["kind"] == "function").count();
    let notices: Vec<_> = noisy.iter().filter(|entry| entry["kind"] == "notice").collect();
    let number = |notice: &&Value| notice["line"].as_str().unwrap().split(' ').nth(1).unwrap().parse::<usize>().unwrap();
    assert_eq!(kept + notices.iter().map(number).sum::<usize>(), lines, "every line is there, or told to be missing");
    assert!((3000..20_000).contains(&kept), "{kept}");
    let quiet = entries(&instance, "quiet");
    let hellos: Vec<_> = quiet.iter().filter(|entry| entry["kind"] == "function").map(|entry| entry["line"].clone()).collect();
    assert_eq!(hellos, (0..20).map(|number| json!(format!("hello {number}"))).collect::<Vec<_>>());
    let on_disk: u64 = files(&instance.state_dir().join("logs/noisy")).iter().sum();
    assert!(on_disk <= 18 << 20, "{on_disk}");
}

/// Until it is killed: that is the only end which it cannot choose.
#[test]
fn a_function_that_prints_until_its_time_is_up_has_its_report_and_the_limit_is_said() {
    if !host::ready() {
        return;
    }
    let config = "log_max_mib = 16".to_owned();
    let instance = Instance::start_with(Options { config, ..Options::default() });
    instance.create_probe("endless", json!({ "Timeout": 4, "MemorySize": 1024 }));
    let text = "x".repeat(999);
    for count in 1..=2 {
        let answer = instance.invoke("endless", &json!({ "do": "print", "text": text, "times": u32::MAX }));
        assert_eq!(answer.header("x-amz-function-error"), Some("Unhandled"), "{}", answer.text());
        assert!(answer.text().contains("Task timed out after 4.00 seconds"), "{}", answer.text());
        reported(&instance, "endless", count);
    }
    let all = entries(&instance, "endless");
    let lines = |kind: &str, words: &str| {
        all.iter()
            .filter(|entry| entry["kind"] == kind && entry["line"].as_str().is_some_and(|line| line.contains(words)))
            .count()
    };
    assert_eq!([lines("platform", "START Req"), lines("platform", "END Req"), lines("platform", "Task timed out")], [2, 2, 2]);
    assert!(lines("notice", "one invocation may fill 4096 KiB of the log (a quarter of log_max_mib)") >= 2, "each is told");
    assert!(files(&instance.state_dir().join("logs/endless")).iter().sum::<u64>() <= 18 << 20);
}

/// Sizes of the files in a directory.
fn files(directory: &std::path::Path) -> Vec<u64> {
    std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).collect()
}

/// On a disk of its own, so that it can be filled.
#[test]
fn a_full_disk_costs_log_lines_and_says_how_many_and_costs_no_answer() {
    if !host::ready() {
        return;
    }
    let mut instance = Instance::prepare(Options::default());
    let disk = Disk::mount(&instance.state_dir());
    instance.launch();
    instance.await_ready();
    instance.create_probe("f", json!({}));
    instance.call("f", &print("before", "stdout"));
    reported(&instance, "f", 1);
    let filler = instance.state_dir().join("filler");
    // All but half a MiB, which is the database's.
    std::fs::write(&filler, vec![b'x'; disk.free() - (512 << 10)]).expect("fill the disk");
    let mut invocations = 1;
    eventually("the function's lines are dropped, and the platform's are not", || {
        let answer = instance.invoke("f", &print("in vain\nin vain", "stdout"));
        assert!(answer.log().contains("in vain\nin vain\nEND"), "the caller's tail is whole: {}", answer.log());
        invocations += 1;
        reported(&instance, "f", invocations);
        !logs(&instance, &["f", "--request", answer.request_id()]).contains("in vain")
    });
    std::fs::remove_file(&filler).unwrap();
    eventually("a line is taken again, and the missing ones are counted", || {
        instance.call("f", &print("after", "stdout"));
        let all = entries(&instance, "f");
        let notice = all.iter().position(|entry| entry["kind"] == "notice");
        let after = all.iter().rposition(|entry| entry["line"] == "after");
        notice.is_some_and(|notice| after.is_some_and(|after| after > notice))
    });
    let all = entries(&instance, "f");
    let notice = all.iter().find(|entry| entry["kind"] == "notice").unwrap()["line"].as_str().unwrap();
    assert!(notice.starts_with("KILN: ") && notice.contains("the disk is full"), "{notice}");
    assert!(instance.stop().success());
}

/// A tmpfs of 64 MiB.
struct Disk(std::path::PathBuf);

impl Disk {
    fn mount(at: &std::path::Path) -> Self {
        use nix::mount::{MsFlags, mount};
        std::fs::create_dir_all(at).unwrap();
        mount(Some("kiln-test"), at, Some("tmpfs"), MsFlags::empty(), Some("size=64m,mode=750")).expect("mount a tmpfs");
        Self(at.to_owned())
    }

    fn free(&self) -> usize {
        let disk = nix::sys::statvfs::statvfs(&self.0).unwrap();
        (disk.blocks_available() * disk.fragment_size()) as usize
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a panic may leave the instance running in it for a moment.
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}
