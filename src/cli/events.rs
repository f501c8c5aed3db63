//! `kiln events`: what happens in the engine, a line for each, as it was and as it comes.
//!
//! kilnd says what happened and why; this puts it into words. `-f` goes on behind the last event that it saw when the connection is
//! cut, and with the first of another server when that is replaced. A server that drains tells everything before it goes; one that
//! was killed may have had more to tell, which is said.

use std::io::{self, IsTerminal};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::args::Events;
use super::client::{Client, Stream};
use super::failure::Failure;
use super::follow::{Followed, Over, follow};
use super::function::encoded;
use super::logs::since_ms;
use super::output;

/// How many there are unless something says otherwise.
const LINES: u32 = 100;
const NOTHING: &str = "kiln: nothing of that kind is kept: kilnd remembers some thousand events since its start; kiln history and kiln logs go \
                       further back";
const CUT: &str = "kiln: the kilnd before this one ended before it had told all: events of its last moments may be missing here";

pub async fn execute(client: &Client, asked: Events, as_json: bool) -> Result<(), Failure> {
    let question = format!("/v1/events?{}", query(&asked)?);
    let mut lines = Lines { question, begin: begin(&asked), next: None, first: None, cut: None, shown: Shown::new(as_json) };
    if let Over::Whole = follow(client, "events", asked.follow, &mut lines).await? {
        if lines.shown.is_nothing && !as_json {
            output::say(NOTHING);
        }
    }
    Ok(())
}

/// The events, from where one is.
struct Lines {
    /// Path and query, without where it begins.
    question: String,
    begin: String,
    /// The number to go on with.
    next: Option<u64>,
    /// The first number of the server that tells.
    first: Option<String>,
    /// That of the one before, if it has not told all.
    cut: Option<String>,
    shown: Shown,
}

impl Followed for Lines {
    const MAX_LINE: usize = 1 << 20;

    fn question(&self) -> String {
        let from = self.next.map_or_else(|| self.begin.clone(), |next| format!("&since_seq={next}"));
        format!("{}{from}", self.question)
    }

    fn was_answered(&self) -> bool {
        self.next.is_some()
    }

    fn begins(&mut self, stream: &Stream) {
        self.first = stream.header("x-kiln-first-seq").map(str::to_owned);
        if self.cut.take().is_some_and(|cut| Some(cut) != self.first) {
            output::say(CUT);
        }
        self.next = self.next.or_else(|| stream.header("x-kiln-seq")?.parse().ok());
    }

    fn line(&mut self, json: &[u8], to: &mut Vec<u8>) -> serde_json::Result<()> {
        let event: Value = serde_json::from_slice(json)?;
        self.shown.event(&event, json, to);
        self.next = event["seq"].as_u64().map(|seq| seq + 1).or(self.next);
        Ok(())
    }

    fn is_cut(&mut self) {
        self.cut = self.first.take();
    }
}

fn query(asked: &Events) -> Result<String, Failure> {
    let mut query = format!("follow={}", u8::from(asked.follow));
    if let Some(since) = &asked.since {
        query += &format!("&since_ms={}", since_ms(since, Timestamp::now())?);
    }
    let named = |key, values: &[String]| values.iter().map(|value| format!("&{key}={}", encoded(value))).collect::<String>();
    query += &named("function", &asked.function);
    query += &named("kind", &asked.kind);
    query += &named("container", asked.container.as_slice());
    query += &named("request", asked.request.as_slice());
    Ok(query)
}

/// Where it begins, as long as nothing has been shown.
fn begin(asked: &Events) -> String {
    match (asked.lines, &asked.since) {
        (Some(lines), _) => format!("&tail={lines}"),
        (None, Some(_)) => String::new(),
        (None, None) => format!("&tail={LINES}"),
    }
}

const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const PLAIN: &str = "\x1b[0m";

/// How events are printed: in columns, which grow with what they hold.
struct Shown {
    as_json: bool,
    colours: bool,
    function: usize,
    container: usize,
    /// So far.
    is_nothing: bool,
}

impl Shown {
    fn new(as_json: bool) -> Self {
        let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { as_json, colours, function: 12, container: 5, is_nothing: true }
    }

    fn event(&mut self, event: &Value, json: &[u8], to: &mut Vec<u8>) {
        self.is_nothing = false;
        if self.as_json {
            return to.extend_from_slice(json);
        }
        let text = |key: &str| output::plain(event[key].as_str().unwrap_or("-"));
        let kind = text("event");
        let (on, off) = match self.colours {
            true => (dress(event), PLAIN),
            false => ("", ""),
        };
        let line = if kind == "lost" {
            format!("{on}KILN: {} events are missing here: they came faster than they could be told{off}", event["lost"])
        } else {
            let (function, container) = (text("function"), text("container"));
            self.function = self.function.max(function.len());
            self.container = self.container.max(container.len());
            let time = Timestamp::from_millisecond(event["time_ms"].as_i64().unwrap_or_default()).unwrap_or_default();
            let time = time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ");
            let words = output::plain(&words(event));
            format!("{time}  {function:0$}  {container:1$}  {on}{kind:11}{off}  {words}", self.function, self.container)
        };
        to.extend_from_slice(line.trim_end().as_bytes());
        to.push(b'\n');
    }
}

fn dress(event: &Value) -> &'static str {
    let bad = |key: &str| event[key].is_string();
    match event["event"].as_str() {
        Some("init_failed" | "throttled" | "launcher_lost") => RED,
        Some("swept") if event["when"] == "running" => RED,
        Some("ended") if bad("cause") => RED,
        Some("retired") if matches!(event["why"].as_str(), Some("failed" | "died" | "tmp" | "killed")) => RED,
        Some("lost" | "draining" | "retired" | "taken_back") => YELLOW,
        Some("frozen" | "thawed") => DIM,
        _ => "",
    }
}

/// What an event says beside its name.
fn words(event: &Value) -> String {
    let text = |key: &str| event[key].as_str().unwrap_or_default();
    let number = |key: &str| event[key].as_u64().unwrap_or_default();
    let told = match text("event") {
        "starting" => match text("why") {
            "first" => "cold: the first since kilnd's start".to_owned(),
            "busy" => "cold: all others are busy".to_owned(),
            "once" => "cold: its function reuses none".to_owned(),
            "again" => "cold: once more, as its first init failed".to_owned(),
            _ => format!("cold: the last one ended: {}", reason(text("last_end"))),
        },
        "ready" => format!("built in {}, init {}", ms(number("build_us")), ms(number("init_us"))),
        "init_failed" => {
            let again = if event["again"] == true { "; it is tried once more" } else { "" };
            let by = event["by"].as_str().map(|by| format!(", by {by}")).unwrap_or_default();
            format!("{}: {}{by}{again}", text("cause"), text("text"))
        }
        "invoked" => {
            let waited = number("waited_us");
            let waited = if waited < 1000 { String::new() } else { format!(", after {} of waiting for capacity", ms(waited)) };
            format!("{}{waited}", if event["cold"] == true { "cold" } else { "warm" })
        }
        "taken_back" => "the runtime had died before it read the event, which goes to another".to_owned(),
        "ended" => {
            let cause = event["cause"].as_str().map(|cause| format!("{cause}, ")).unwrap_or_default();
            format!("{cause}{}, billed {} ms, {} MB", ms(number("duration_us")), number("billed_ms"), number("max_memory_mib"))
        }
        "throttled" => {
            let (in_use, limit) = (number("in_use"), number("limit"));
            let short = match text("reason") {
                "memory" => format!("memory: {in_use} of {limit} MB are charged (kiln pool says to whom)"),
                "starts" => format!("starts: {in_use} of {limit} places are taken (parallel_starts)"),
                "concurrency" => format!("concurrency: {in_use} of {limit} invocations at once, over all functions"),
                "reserved" => format!("reserved concurrency: {in_use} of {limit} invocations at once"),
                "payloads" => format!("payloads over 64 KiB: {in_use} of {limit} MB are in use, by one user or by all"),
                _ => format!("queue: {in_use} of {limit} of the function wait already"),
            };
            format!("{short}; refused after {}", ms(number("waited_us")))
        }
        "retired" => {
            let seconds = Duration::try_from_secs_f64(event["age_s"].as_f64().unwrap_or_default()).unwrap_or_default();
            let ran = output::duration(seconds);
            format!("{}; {} invocations in {ran}, peak {} MB", end(event), number("invocations"), number("peak_mib"))
        }
        "entered" | "left" => format!("by {}", text("by")),
        "launcher_started" => format!("launcher {}", number("launcher")),
        "launcher_lost" => format!("launcher {}: it is dead, and its containers with it", number("launcher")),
        "swept" => swept(event),
        "draining" => "kilnd stops: no new invocations".to_owned(),
        _ => String::new(),
    };
    match event["request"].as_str() {
        Some(request) if told.is_empty() => request.to_owned(),
        Some(request) => format!("{told}  {request}"),
        None => told,
    }
}

/// What was removed, and what that means.
fn swept(event: &Value) -> String {
    let removed = [("cgroups", "cgroups"), ("staging", "staging directories"), ("code", "code half stored")]
        .into_iter()
        .filter_map(|(key, what)| event[key].as_u64().filter(|count| *count > 0).map(|count| format!("{what} ({count})")));
    let removed = removed.collect::<Vec<_>>().join(", ");
    let whose = match event["when"].as_str() {
        Some("start") => "left by a kilnd that was killed",
        Some("death") => "of a process of kilnd's that died",
        _ => "of nobody's, though nobody had died: a bug, please report it",
    };
    format!("removed {removed}, {whose}")
}

/// Why an environment ended, with what is known beside it: `failed: Runtime.OutOfMemory`.
pub fn end(event: &Value) -> String {
    let text = |key: &str| event[key].as_str();
    let mut told = reason(text("why").unwrap_or("-")).to_owned();
    if let Some(function) = text("needed_by") {
        told += &format!(", by {function}");
    }
    if let Some(cause) = text("cause") {
        told += &format!(": {cause}");
        // The name of an out-of-memory kill says more than its words.
        if let Some(words) = text("text").filter(|words| !words.is_empty() && !["Runtime.OutOfMemory", *words].contains(&cause)) {
            told += &format!(" ({words})");
        }
    }
    if let Some(who) = text("by") {
        told += &format!(", by {who}");
    }
    told
}

/// A reason in words; those that are words already stay.
fn reason(why: &str) -> &str {
    match why {
        "idle" => "idle too long",
        "age" => "too old",
        "memory" => "its memory was needed",
        "tmp" => "no memory left for its /tmp",
        "entered" => "somebody was in its container",
        "updated" => "its function was updated",
        "deleted" => "its function was deleted",
        "once" => "its function reuses none",
        "drained" => "its function was drained",
        "died" => "died while idle",
        "init" => "its init failed",
        "failed" => "its invocation failed",
        "stopping" => "kilnd stopped",
        "with_kilnd" => "it ended with kilnd",
        other => other,
    }
}

pub fn ms(us: u64) -> String {
    match us {
        0..1_000_000 => format!("{}.{:02} ms", us / 1000, us % 1000 / 10),
        _ => format!("{}.{:02} s", us / 1_000_000, us % 1_000_000 / 10_000),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(colours: bool, events: &[Value]) -> String {
        let mut shown = Shown { as_json: false, colours, function: 5, container: 4, is_nothing: true };
        let mut text = Vec::new();
        for event in events {
            shown.event(event, event.to_string().as_bytes(), &mut text);
        }
        String::from_utf8(text).unwrap()
    }

    fn some(what: Value) -> Value {
        let mut event = json!({ "seq": 1, "time_ms": 1_000, "function": "hello", "container": "1-17", "request": null });
        event.as_object_mut().unwrap().extend(what.as_object().unwrap().clone());
        event
    }

    #[test]
    fn lines_are_aligned_and_say_what_happened_and_why() {
        let text = shown(
            false,
            &[
                some(json!({ "event": "starting", "why": "retired", "last_end": "memory", "container": null, "request": "r" })),
                some(json!({ "event": "ready", "build_us": 12_000, "init_us": 1_110_100 })),
                some(json!({ "event": "frozen", "request": "r" })),
                some(
                    json!({ "event": "throttled", "reason": "reserved", "in_use": 2, "limit": 2, "waited_us": 30, "container": null }),
                ),
                some(
                    json!({ "event": "retired", "why": "memory", "needed_by": "big", "age_s": 75.0, "invocations": 2, "peak_mib": 36 }),
                ),
                some(json!({ "event": "retired", "why": "failed", "cause": "Runtime.OutOfMemory", "text": "signal: killed" })),
                some(json!({ "event": "retired", "why": "killed", "by": "uid 0 (kiln container kill)" })),
                json!({ "time_ms": 1_000, "event": "swept", "when": "running", "cgroups": 2, "staging": 0, "code": 1 }),
                some(json!({ "event": "throttled", "reason": "payloads", "in_use": 250, "limit": 256, "waited_us": 5_000_000 })),
                json!({ "event": "lost", "lost": 7 }),
            ],
        );
        let lines: Vec<&str> = text.lines().collect();
        let expected = [
            "1970-01-01T00:00:01.000Z  hello  -     starting     cold: the last one ended: its memory was needed  r",
            "1970-01-01T00:00:01.000Z  hello  1-17  ready        built in 12.00 ms, init 1.11 s",
            "1970-01-01T00:00:01.000Z  hello  1-17  frozen       r",
            "1970-01-01T00:00:01.000Z  hello  -     throttled    reserved concurrency: 2 of 2 invocations at once; refused after 0.03 ms",
            "1970-01-01T00:00:01.000Z  hello  1-17  retired      its memory was needed, by big; 2 invocations in 1m15s, peak 36 MB",
            "1970-01-01T00:00:01.000Z  hello  1-17  retired      its invocation failed: Runtime.OutOfMemory; 0 invocations in 0s, peak 0 MB",
            "1970-01-01T00:00:01.000Z  hello  1-17  retired      killed, by uid 0 (kiln container kill); 0 invocations in 0s, peak 0 MB",
            "1970-01-01T00:00:01.000Z  -      -     swept        removed cgroups (2), code half stored (1), of nobody's, though \
             nobody had died: a bug, please report it",
            "1970-01-01T00:00:01.000Z  hello  1-17  throttled    payloads over 64 KiB: 250 of 256 MB are in use, by one user or by \
             all; refused after 5.00 s",
            "KILN: 7 events are missing here: they came faster than they could be told",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn only_a_terminal_gets_colours_and_none_gets_a_functions_control_characters() {
        let event = some(json!({ "event": "ended", "cause": "Evil\u{1b}[2J" }));
        assert!(!shown(false, std::slice::from_ref(&event)).contains('\x1b'));
        let coloured = shown(true, &[event]);
        assert!(coloured.contains("\x1b[31mended      \x1b[0m") && coloured.contains("Evil·[2J"), "{coloured:?}");
    }
}
