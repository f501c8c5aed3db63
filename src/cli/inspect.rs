//! `kiln container inspect`: everything of one container on a page.

use std::time::Duration;

use hyper::Method;
use jiff::Timestamp;
use serde_json::Value;

use super::args::Inspect;
use super::client::{Client, Socket};
use super::failure::Failure;
use super::function::encoded;
use super::output;

pub async fn execute(client: &Client, which: Inspect, as_json: bool) -> Result<(), Failure> {
    let path = format!("/v1/containers/{}{}", encoded(&which.id), if which.oci { "/oci" } else { "" });
    let found = client.request(Socket::Control, Method::GET, &path, &[], "").await?.json()?;
    if which.oci || as_json {
        return output::print_json(&found);
    }
    output::print_line(&page(&found))
}

/// A heading at the margin, and what belongs to it below.
struct Page(String);

impl Page {
    fn section(&mut self, name: &str) {
        self.0 += &format!("\n{name}\n");
    }

    fn row(&mut self, name: &str, value: &str) {
        self.0 += &format!("  {name:<11} {}\n", output::plain(value));
    }
}

fn page(found: &Value) -> String {
    let mut page = Page(String::new());
    let state = match (&found["leaving"], &found["idle_s"]) {
        (Value::String(why), _) => format!("{}, {why}", word(&found["state"])),
        (_, Value::Number(idle)) => format!("{} for {}", word(&found["state"]), time(idle.as_f64())),
        _ => word(&found["state"]).to_owned(),
    };
    page.0 +=
        &output::plain(&format!("{} of {} {}", word(&found["container"]), word(&found["function"]), word(&found["version"])));
    page.0 += "\n";
    let frozen = if found["frozen"] == true { ", frozen" } else { "" };
    page.row("state", &format!("{state}{frozen}"));
    page.row("age", &time(found["age_s"].as_f64()));
    page.row("invocations", &shown(&found["invocations"]));
    page.row("cold", &cold(&found["why_cold"]));
    if let Some(why) = found["unknown"].as_str() {
        page.row("unknown", &format!("the rest, which its launcher does not tell: {why}"));
    } else {
        sighted(&mut page, found);
    }
    page.section("life");
    for line in life(found["timeline"].as_array().map_or(&[], Vec::as_slice)) {
        page.0 += &format!("  {}\n", output::plain(&line));
    }
    page.0.trim_end().to_owned()
}

fn sighted(page: &mut Page, found: &Value) {
    page.row("runtime", &format!("{}, {}", word(&found["runtime"]), word(&found["handler"])));
    page.section("use");
    let (memory, tmp, cpu) = (&found["memory"], &found["tmp"], &found["cpu"]);
    let mib = |name: &str| shown(&memory[name]);
    let of = format!("{} of {} MiB, {} at the most", mib("used_mib"), mib("limit_mib"), mib("peak_mib"));
    page.row("memory", &format!("{of}; {} against the budget", mib("charged_mib")));
    let kernel =
        format!("{} of {}, with page cache and /tmp", bytes(&memory["kernel_bytes"]), bytes(&memory["kernel_limit_bytes"]));
    page.row("", &format!("the kernel counts {kernel}"));
    page.row("/tmp", &format!("{} of {}", bytes(&tmp["used_bytes"]), bytes(&tmp["size_bytes"])));
    let share = match (cpu["quota_us"].as_f64(), cpu["period_us"].as_f64()) {
        (Some(quota), Some(period)) if period > 0.0 => format!("{:.2} of a CPU", quota / period),
        _ => "no limit".to_owned(),
    };
    let used = Duration::from_micros(cpu["used_us"].as_u64().unwrap_or(0)).as_secs_f64();
    let throttled = Duration::from_micros(cpu["throttled_us"].as_u64().unwrap_or(0)).as_secs_f64();
    page.row("cpu", &format!("{used:.3} s so far, may use {share}; waited {throttled:.3} s for more"));
    let (tasks, files) = (&found["tasks"], &found["open_files"]);
    let threads = format!("{} of {} with their threads", shown(&tasks["now"]), shown(&tasks["limit"]));
    page.row("processes", &format!("{}, {threads}", shown(&tasks["processes"])));
    page.row("open files", &format!("{} of {}, of the process that has the most", shown(&files["most"]), shown(&files["limit"])));
    page.section("on the host");
    page.row("processes", &format!("kiln-init {}, runtime {}", shown(&found["init_pid"]), shown(&found["runtime_pid"])));
    for id in found["ids"].as_array().into_iter().flatten() {
        page.row("user", &format!("{} is {} inside", shown(&id["host_id"]), shown(&id["uid"])));
    }
    for group in found["cgroups"].as_array().into_iter().flatten() {
        page.row("cgroup", &format!("{} {}", word(&group["hierarchy"]), word(&group["path"])));
    }
    let namespaces = found["namespaces"].as_object();
    let namespaces = namespaces.into_iter().flatten().map(|(kind, inode)| format!("{kind} {inode}"));
    page.row("namespaces", &namespaces.collect::<Vec<_>>().join(", "));
    page.section("mounts");
    for mount in found["mounts"].as_array().into_iter().flatten() {
        let what = [word(&mount["kind"]), word(&mount["what"])].join(" ");
        page.row(word(&mount["at"]), &format!("{} ({})", what.trim_end(), word(&mount["options"])));
    }
}

/// Of `why_cold`.
fn cold(why: &Value) -> String {
    match (word(&why["why"]), word(&why["last_end"])) {
        ("first", _) => "its function had none before, since kilnd's start".into(),
        ("busy", _) => "all others were busy".into(),
        ("retired", end) => format!("the last one before it had ended ({end})"),
        ("once", _) => "its function's serve one invocation each".into(),
        ("again", _) => "the first init for its request had failed".into(),
        _ => "why it was started is not remembered".into(),
    }
}

/// One line for each event, but one for many invocations in a row.
fn life(events: &[Value]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut rest = events;
    while let [event, later @ ..] = rest {
        let of_invocations = rest.iter().take_while(|event| is_of_invocations(event)).count();
        if of_invocations > 0 {
            let (run, behind) = rest.split_at(of_invocations);
            lines.push(format!("{}  {}", at(event), invocations(run)));
            rest = behind;
            continue;
        }
        lines.push(format!("{}  {}", at(event), told(event)));
        rest = later;
    }
    if lines.is_empty() {
        lines.push("nothing is remembered of it".into());
    }
    lines
}

fn is_of_invocations(event: &Value) -> bool {
    ["thawed", "invoked", "taken_back", "ended", "frozen"].contains(&word(&event["event"]))
}

fn invocations(run: &[Value]) -> String {
    let count = |name: &str| run.iter().filter(|event| event["event"] == name).count();
    let causes = run.iter().filter(|event| event["event"] == "ended").filter_map(|event| event["cause"].as_str());
    let failed: Vec<&str> = causes.collect();
    let mut line = match count("invoked") {
        // Woken for something else, or frozen after it.
        0 => run.iter().map(|event| word(&event["event"])).collect::<Vec<_>>().join(", "),
        times => format!("invoked ×{times}"),
    };
    if let Some(last) = failed.last() {
        line += &format!(", {} failed (the last by {last})", failed.len());
    }
    match run.last().map(|event| word(&event["event"])) {
        Some("frozen" | "ended") if count("frozen") > 0 && count("invoked") > 0 => line + ", then frozen",
        Some("invoked") => line + ", the last one runs",
        _ => line,
    }
}

fn told(event: &Value) -> String {
    let ms = |name: &str| format!("{:.1} ms", event[name].as_f64().unwrap_or(0.0) / 1e3);
    match word(&event["event"]) {
        "starting" => "starting".into(),
        "ready" => format!("ready: built in {}, init took {}", ms("build_us"), ms("init_us")),
        "init_failed" => format!("init failed: {}", word(&event["cause"])),
        "entered" => format!("entered by {}", word(&event["by"])),
        "left" => format!("left by {}", word(&event["by"])),
        "retired" => format!("retired: {}", word(&event["why"])),
        other => other.replace('_', " "),
    }
}

fn at(event: &Value) -> String {
    let time = Timestamp::from_millisecond(event["time_ms"].as_i64().unwrap_or(0)).unwrap_or_default();
    time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

fn time(secs: Option<f64>) -> String {
    output::duration(Duration::try_from_secs_f64(secs.unwrap_or(0.0)).unwrap_or_default())
}

fn bytes(number: &Value) -> String {
    match number.as_u64() {
        Some(bytes) if bytes < 1 << 20 => format!("{} KiB", bytes.div_ceil(1 << 10)),
        Some(bytes) => format!("{} MiB", (bytes + (1 << 19)) >> 20),
        None => "?".into(),
    }
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

/// A number as it is, and a question mark where this host does not say.
fn shown(number: &Value) -> String {
    if number.is_null() { "?".into() } else { number.to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn events(names: &[&str]) -> Vec<Value> {
        names.iter().map(|name| json!({ "event": name, "time_ms": 1_000 })).collect()
    }

    #[test]
    fn invocations_in_a_row_are_one_line_and_what_interrupts_them_is_another() {
        let round = ["thawed", "invoked", "frozen", "ended"];
        let life =
            life(&events(&[&["starting", "ready"], &round[1..], &round, &["entered", "left"], &["thawed", "invoked"]].concat()));
        let told: Vec<&str> = life.iter().filter_map(|line| line.split_once("  ").map(|(_, told)| told)).collect();
        assert_eq!(told.len(), 6, "{life:#?}");
        assert_eq!((told[2], told[5]), ("invoked ×2, then frozen", "invoked ×1, the last one runs"));
        assert!(life[0].starts_with("1970-01-01T00:00:01.000Z  starting"), "{life:#?}");
    }

    #[test]
    fn failures_are_counted_and_the_last_is_named() {
        let mut run = events(&["invoked", "ended", "invoked", "ended"]);
        run[1]["cause"] = "Function.Error".into();
        run[3]["cause"] = "Sandbox.Timedout".into();
        assert_eq!(invocations(&run), "invoked ×2, 2 failed (the last by Sandbox.Timedout)");
    }

    #[test]
    fn what_the_launcher_does_not_tell_is_not_made_up() {
        let text =
            page(&json!({ "container": "1-1", "function": "f\u{1b}[2J", "version": "$LATEST", "state": "busy", "age_s": 75,
            "invocations": 1, "leaving": "entered", "unknown": "launcher 1 died over the order" }));
        assert!(text.starts_with("1-1 of f·[2J $LATEST\n  state       busy, entered\n"), "{text}");
        assert!(text.contains("launcher 1 died") && !text.contains("namespaces") && text.contains("not remembered"), "{text}");
    }
}
