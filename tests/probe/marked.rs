//! Who serves this invocation, and what it finds of those before it: a container tells its story in /tmp. Judges nothing;
//! that is `scripts/load`'s.

use std::{env, fs};

use serde_json::{Value, json};

/// Names in /tmp that begin so are of this file.
const MARK: &str = "marked-";
/// There while an invocation runs.
const RUNNING: &str = "marked-running";

/// What an invocation finds at its beginning.
pub struct Began {
    found: Vec<String>,
    at_us: u64,
}

pub fn begin(start: &str) -> Began {
    let entries = fs::read_dir("/tmp").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let found = names.filter(|name| name.starts_with(MARK)).collect();
    // A full /tmp still takes empty files.
    for name in [RUNNING, &format!("{MARK}{start}")] {
        if let Err(error) = fs::write(format!("/tmp/{name}"), "") {
            eprintln!("probe: mark /tmp/{name}: {error}");
        }
    }
    Began { found, at_us: now_us() }
}

/// `code` is what the package says in its file `version`, `round` what the configuration says in a variable.
pub fn end(event: &Value, began: Began, start: &str, count: u64, steps: Value) -> Value {
    let done_us = now_us();
    let _ = fs::remove_file(format!("/tmp/{RUNNING}"));
    let var = |name: &str| env::var(name).unwrap_or_default();
    let number = |text: String| text.trim().parse::<u64>().ok();
    json!({
        "nonce": event["nonce"],
        "pad": event["pad"],
        "function": var("AWS_LAMBDA_FUNCTION_NAME"),
        "container": var("AWS_LAMBDA_LOG_STREAM_NAME"),
        "start": start,
        "count": count,
        "found": began.found,
        "began_us": began.at_us,
        "done_us": done_us,
        "code": fs::read_to_string("/var/task/version").ok().and_then(number),
        "round": number(var("ROUND")),
        "steps": steps,
    })
}

/// Since the host's start: all containers have the same clock.
fn now_us() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills the structure given.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}
