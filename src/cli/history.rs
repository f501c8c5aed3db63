//! `kiln history`: environments that have ended, and why.

use std::time::Duration;

use hyper::Method;
use jiff::Timestamp;
use serde_json::Value;

use super::args::History;
use super::client::{Client, Socket};
use super::events::{end, ms};
use super::failure::Failure;
use super::function::encoded;
use super::logs::since_ms;
use super::output;

const HEADINGS: &[&str] = &["ENDED", "FUNCTION", "CONTAINER", "COLD", "START", "LIVED", "RAN", "PEAK", "WHY"];

pub async fn execute(client: &Client, asked: History, as_json: bool) -> Result<(), Failure> {
    let mut query = format!("limit={}&living={}", asked.limit, u8::from(asked.living || asked.container.is_some()));
    if let Some(since) = &asked.since {
        query += &format!("&since_ms={}", since_ms(since, Timestamp::now())?);
    }
    for (key, value) in [("function", &asked.function), ("container", &asked.container)] {
        if let Some(value) = value {
            query += &format!("&{key}={}", encoded(value));
        }
    }
    let said = client.request(Socket::Control, Method::GET, &format!("/v1/history?{query}"), &[], "").await?.json()?;
    if as_json {
        return output::print_json(&said);
    }
    let environments = said["environments"].as_array().map(Vec::as_slice).unwrap_or_default();
    if environments.is_empty() {
        return output::print_line("no such environment has ended, as far as is kept");
    }
    output::print_line(&table(environments, Timestamp::now()))
}

fn table(environments: &[Value], now: Timestamp) -> String {
    let rows = environments.iter().map(|row| {
        let text = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
        let number = |key: &str| row[key].as_u64();
        let started = row["started_ms"].as_i64().unwrap_or_default();
        let ended = row["ended_ms"].as_i64();
        let time = |ms| Timestamp::from_millisecond(ms).unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let lived = ended.unwrap_or(now.as_millisecond()).saturating_sub(started);
        let lived = output::duration(Duration::from_millis(u64::try_from(lived).unwrap_or_default()));
        let start = match (number("build_us"), number("init_us")) {
            (None, None) => "-".into(),
            (build, init) => ms(build.unwrap_or(0) + init.unwrap_or(0)),
        };
        vec![
            ended.map_or_else(|| "lives".into(), time),
            text("function"),
            text("container"),
            text("cold"),
            start,
            lived,
            number("invocations").map_or_else(|| "-".into(), |count| count.to_string()),
            number("peak_mib").map_or_else(|| "-".into(), |mib| format!("{mib} MB")),
            if ended.is_some() { end(row) } else { "-".into() },
        ]
    });
    output::table(HEADINGS, rows.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_says_why_it_was_started_and_why_it_ended() {
        let rows = [
            json!({
                "function": "hello", "container": "1-17", "cold": "first", "started_ms": 0, "ended_ms": 75_000, "build_us": 12_000,
                "init_us": 100_000, "why": "failed", "cause": "Sandbox.Timedout", "text": "Task timed out after 3.00 seconds",
                "invocations": 2, "peak_mib": 36,
            }),
            json!({ "function": "hello", "container": "1-18", "cold": "failed", "started_ms": 1000, "ended_ms": null }),
            json!({ "function": "a", "container": null, "cold": "busy", "started_ms": 0, "ended_ms": 9, "why": "with_kilnd" }),
        ];
        let text = table(&rows, Timestamp::from_millisecond(4000).unwrap());
        let lines: Vec<String> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(lines[0], "ENDED FUNCTION CONTAINER COLD START LIVED RAN PEAK WHY");
        let why = "its invocation failed: Sandbox.Timedout (Task timed out after 3.00 seconds)";
        assert_eq!(lines[1], format!("1970-01-01T00:01:15Z hello 1-17 first 112.00 ms 1m15s 2 36 MB {why}"));
        assert_eq!(lines[2], "lives hello 1-18 failed - 3s - - -");
        assert_eq!(lines[3], "1970-01-01T00:00:00Z a - busy - 0s - - it ended with kilnd");
    }
}
