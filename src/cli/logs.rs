//! `kiln logs`: what a function printed, and the platform's lines around it, as they were and as they come.
//!
//! On a terminal the platform's lines are dim, and nothing that a function printed reaches the terminal as a command: control
//! characters are spelled out, and a carriage return (as Lambda's clients write a line break within one event) begins an
//! indented line, which is none of the platform's. Into a pipe or a file goes exactly what was printed.
//!
//! Of several functions each line begins with its function. `-f` goes on where it was when the server is replaced ([`place`]).

mod place;

use std::collections::BTreeSet;
use std::io::{self, IsTerminal};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use jiff::Timestamp;
use serde::Deserialize;

use self::place::Place;
use super::args::Logs;
use super::client::{Client, Socket, Stream};
use super::failure::Failure;
use super::follow::{Followed, follow};
use super::function::encoded;
use super::output;

/// How many lines there are unless something says otherwise: a few screens.
const LINES: usize = 100;

/// An entry, as far as it is shown.
#[derive(Deserialize)]
struct Entry {
    function: String,
    cursor: String,
    time_ms: i64,
    kind: Kind,
    line: Option<String>,
    base64: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Function,
    Platform,
    Notice,
}

pub async fn execute(client: &Client, logs: Logs, as_json: bool) -> Result<(), Failure> {
    let functions: BTreeSet<String> = logs.name.iter().chain(&logs.functions).map(|text| name(text)).collect();
    if logs.delete {
        let function = functions.iter().next().map(String::as_str).unwrap_or_default();
        let deleted = client.request(Socket::Control, Method::DELETE, &of_one(function), &[], "").await;
        deleted.map_err(|failure| named(failure, &logs))?;
        output::say(&format!("the log of {function} is removed"));
        return Ok(());
    }
    let (path, place) = match functions.iter().collect::<Vec<_>>()[..] {
        [function] => (of_one(function), Place::One(None)),
        _ => ("/v1/logs".to_owned(), Place::Several(place::Several::default())),
    };
    let several = matches!(place, Place::Several(_));
    let question = format!("{path}?{}", query(&logs, several.then_some(&functions)));
    // How long ago that is counts from now on, and not from each try.
    let shown = Shown::new(&logs, several, as_json);
    let begin = begin(&logs)?;
    let mut lines = Lines { question, begin, place, shown };
    follow(client, "log", logs.follow, &mut lines).await.map_err(|failure| named(failure, &logs))?;
    Ok(())
}

/// The entries, from where one is.
struct Lines {
    /// Path and query, without where it begins.
    question: String,
    begin: String,
    place: Place,
    shown: Shown,
}

impl Followed for Lines {
    /// A line of 256 KiB, escaped.
    const MAX_LINE: usize = 4 << 20;

    fn question(&self) -> String {
        let from = self.place.query(self.question.len()).unwrap_or_else(|| self.begin.clone());
        format!("{}&{from}", self.question)
    }

    fn was_answered(&self) -> bool {
        self.place.is_known()
    }

    fn begins(&mut self, stream: &Stream) {
        self.place.begins(stream);
    }

    fn line(&mut self, json: &[u8], to: &mut Vec<u8>) -> serde_json::Result<()> {
        let entry: Entry = serde_json::from_slice(json)?;
        if self.place.takes(&entry) {
            self.shown.entry(&entry, json, to);
        }
        Ok(())
    }
}

/// The name is percent-encoded.
fn of_one(function: &str) -> String {
    format!("/v1/functions/{function}/logs")
}

/// A name, or the one in an ARN, whole or in part, as kilnd's door takes it. A qualifier has no log of its own.
pub fn name(text: &str) -> String {
    let name = text.split_once(":function:").map_or(text, |(_, name)| name);
    encoded(name.split(':').next().unwrap_or_default())
}

/// As it was asked for: kilnd saw a part of it, and that percent-encoded.
fn named(failure: Failure, logs: &Logs) -> Failure {
    match failure {
        Failure::NotFound(text) => Failure::NotFound(match (&logs.name, &logs.functions[..]) {
            (Some(name), []) => format!("there is no function {name}, and no log of one"),
            _ => text,
        }),
        other => other,
    }
}

/// What is wanted, wherever it begins. `functions` are those of several, or none for all.
fn query(logs: &Logs, functions: Option<&BTreeSet<String>>) -> String {
    let mut query = format!("follow={}", u8::from(logs.follow));
    for function in functions.into_iter().flatten() {
        query += &format!("&function={function}");
    }
    if let Some(request) = &logs.request {
        query += &format!("&request={}", encoded(request));
    }
    if let Some(container) = &logs.container {
        query += &format!("&container={}", encoded(container));
    }
    query
}

/// Where it begins, as long as nothing has been shown.
fn begin(logs: &Logs) -> Result<String, Failure> {
    let searched = logs.since.is_some() || logs.request.is_some() || logs.container.is_some();
    let mut begin = match logs.lines.as_deref() {
        Some("all") => String::new(),
        Some(lines) => format!("tail={lines}"),
        None if searched => String::new(),
        None => format!("tail={LINES}"),
    };
    if let Some(since) = &logs.since {
        begin += &format!("&since_ms={}", since_ms(since, Timestamp::now())?);
    }
    Ok(begin)
}

/// `90s`, `10m`, `2h`, `3d` ago, or a time of RFC 3339.
pub(super) fn since_ms(text: &str, now: Timestamp) -> Result<i64, Failure> {
    let unit = |text: &str| match text {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        "d" => Some(86_400),
        _ => None,
    };
    let number = text.find(|c: char| !c.is_ascii_digit()).map(|end| text.split_at(end));
    let ago = number.and_then(|(number, rest)| number.parse::<i64>().ok()?.checked_mul(unit(rest)?)?.checked_mul(1000));
    let then = ago.map(|ago| now.as_millisecond().saturating_sub(ago).max(0));
    let exact = || text.parse::<Timestamp>().ok().map(|time| time.as_millisecond().max(0));
    then.or_else(exact).ok_or_else(|| {
        Failure::Usage(format!("--since {text}: write 90s, 10m, 2h or 3d, or a time such as 2026-05-04T12:00:00Z"))
    })
}

/// How entries are printed.
struct Shown {
    as_json: bool,
    /// Each line begins with its function.
    functions: bool,
    time: bool,
    /// The reader is a person at a terminal.
    careful: bool,
    colours: bool,
}

const DIM: &str = "\x1b[2m";
const CYAN: &str = "\x1b[36m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const PLAIN: &str = "\x1b[0m";

impl Shown {
    fn new(logs: &Logs, functions: bool, as_json: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { as_json, functions, time: logs.time, careful: terminal && !logs.raw, colours }
    }

    fn entry(&self, entry: &Entry, json: &[u8], to: &mut Vec<u8>) {
        if self.as_json {
            return to.extend_from_slice(json);
        }
        let bytes = match (&entry.line, &entry.base64) {
            (Some(line), _) => line.clone().into_bytes(),
            (None, Some(base64)) => STANDARD.decode(base64).unwrap_or_default(),
            (None, None) => Vec::new(),
        };
        let dress = self.dress(entry.kind, &bytes);
        if self.time {
            let time = Timestamp::from_millisecond(entry.time_ms).unwrap_or_default();
            let (on, off) = if self.colours { (DIM, PLAIN) } else { ("", "") };
            to.extend_from_slice(format!("{on}{}{off} ", time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ")).as_bytes());
        }
        if self.functions {
            let (on, off) = if self.colours { (CYAN, PLAIN) } else { ("", "") };
            to.extend_from_slice(format!("{on}{}{off} ", entry.function).as_bytes());
        }
        to.extend_from_slice(dress.as_bytes());
        match (self.careful, entry.kind) {
            (true, Kind::Function) => to.extend_from_slice(output::careful(&bytes).as_bytes()),
            // Written by kilnd; what is a function's in it (a file's name) is spelled out too, line by line.
            (true, _) => to.extend_from_slice(output::careful_lines(&bytes).as_bytes()),
            (false, _) => to.extend_from_slice(&bytes),
        }
        to.extend_from_slice(if dress.is_empty() { "" } else { PLAIN }.as_bytes());
        to.push(b'\n');
    }

    fn dress(&self, kind: Kind, line: &[u8]) -> &'static str {
        let holds = |text: &str| line.windows(text.len()).any(|part| part == text.as_bytes());
        match kind {
            _ if !self.colours => "",
            Kind::Function => "",
            Kind::Notice => YELLOW,
            Kind::Platform if ["\tStatus: ", " Task timed out after ", " Error: "].into_iter().any(holds) => RED,
            Kind::Platform => DIM,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(terminal: bool, kind: &str, line: &str) -> String {
        let shown = Shown { as_json: false, functions: false, time: false, careful: terminal, colours: terminal };
        written(&shown, kind, line)
    }

    fn written(shown: &Shown, kind: &str, line: &str) -> String {
        let json = serde_json::json!({ "function": "f", "cursor": "1:2", "time_ms": 0, "kind": kind, "line": line }).to_string();
        let mut text = Vec::new();
        shown.entry(&serde_json::from_str(&json).unwrap(), json.as_bytes(), &mut text);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn of_several_each_line_begins_with_its_function_and_behind_its_time() {
        let mut shown = Shown { as_json: false, functions: true, time: false, careful: false, colours: false };
        assert_eq!(written(&shown, "function", "hello"), "f hello\n");
        shown.time = true;
        assert_eq!(written(&shown, "function", "hello"), "1970-01-01T00:00:00.000Z f hello\n");
        shown = Shown { colours: true, careful: true, time: false, ..shown };
        assert_eq!(written(&shown, "platform", "END 1"), "\x1b[36mf\x1b[0m \x1b[2mEND 1\x1b[0m\n");
    }

    #[test]
    fn what_a_function_printed_is_no_command_to_a_terminal_and_untouched_in_a_pipe() {
        let hostile = "\x1b]0;title\x07 \x1b[2J\u{9b}31m\ta\rEND RequestId: 1\u{202e}";
        assert_eq!(shown(false, "function", hostile), format!("{hostile}\n"));
        assert_eq!(shown(true, "function", hostile), "\\x1b]0;title\\x07 \\x1b[2J\\x9b31m\ta\n    END RequestId: 1\\u{202e}\n");
        assert_eq!(output::careful(b"\xff ok"), "\\xff ok");
    }

    #[test]
    fn only_the_platforms_lines_are_dressed() {
        assert_eq!(shown(true, "platform", "END RequestId: 1"), "\x1b[2mEND RequestId: 1\x1b[0m\n");
        assert_eq!(shown(true, "platform", "REPORT 1\tStatus: timeout"), "\x1b[31mREPORT 1\tStatus: timeout\x1b[0m\n");
        assert_eq!(shown(true, "function", "END RequestId: 1"), "END RequestId: 1\n");
        assert_eq!(shown(false, "platform", "END RequestId: 1"), "END RequestId: 1\n");
    }

    #[test]
    fn a_time_is_so_long_ago_or_exact() {
        let now: Timestamp = "2026-05-04T12:00:00Z".parse().unwrap();
        let ms = |text: &str| since_ms(text, now).map(|ms| now.as_millisecond() - ms);
        assert_eq!((ms("90s"), ms("10m"), ms("1h"), ms("3d")), (Ok(90_000), Ok(600_000), Ok(3_600_000), Ok(259_200_000)));
        assert_eq!(ms("2026-05-04T13:59:00+02:00"), Ok(60_000));
        for wrong in ["10", "m", "10w", "yesterday", "-5m", "99999999999999999d"] {
            assert!(matches!(ms(wrong), Err(Failure::Usage(_))), "{wrong}");
        }
    }

    #[test]
    fn a_function_is_named_by_its_name_or_its_arn() {
        assert_eq!(name("arn:aws:lambda:us-east-1:000000000000:function:hello:$LATEST"), "hello");
        assert_eq!((name("hello").as_str(), name("a b?").as_str()), ("hello", "a%20b%3F"));
        assert_eq!((name("hello:$LATEST").as_str(), name("000000000000:function:hello").as_str()), ("hello", "hello"));
    }
}
