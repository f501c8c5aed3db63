//! Holds the dashboard and the alert rules to the code: they name metrics, labels and values that kilnd has, their expressions are
//! PromQL, and the metrics keep to Prometheus' conventions.
//!
//! Reads files, and asks [`Tally`] itself; needs no privileges. Where promtool (Debian's package prometheus) is installed, it is
//! asked for its opinion, too.

#[path = "monitoring/promql.rs"]
mod promql;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use kiln::function::FunctionName;
use kiln::invocation::{Cause, ProcessEnd, Throttle};
use kiln::server::events::{Cold, Event, Observer, What};
use kiln::server::tally::{Reading, Tally};
use serde_json::Value;

use promql::{Selector, parse};

/// What Prometheus adds to each series by itself.
const OF_PROMETHEUS: [&str; 2] = ["instance", "job"];

fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo").into()
}

fn file(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

// ---- What there is ---------------------------------------------------------------------------------------------------

#[derive(Debug, Default)]
struct Metric {
    help: String,
    kind: String,
    /// Each with all values that were seen.
    labels: BTreeMap<String, BTreeSet<String>>,
}

/// With a sample of everything that happens to one function or to all.
fn exposition() -> String {
    let tally = Tally::new("default", |_| true);
    let throttled = Throttle::ALL.map(|reason| What::Throttled { reason, waited_us: 5_000_000, in_use: 1, limit: 1 });
    let causes = [
        Cause::Reported { error_type: "My.Error".into() },
        Cause::Timeout(Duration::from_secs(1)),
        Cause::OutOfMemory,
        Cause::Exit(ProcessEnd::Exited(1)),
        Cause::Sandbox { text: "the launcher of the container died".into() },
    ];
    let causes = causes.iter().map(|cause| Some(cause.report_type().to_owned()));
    let ended = causes.chain([None]).map(|cause| What::Ended {
        duration_us: 1500,
        billed_ms: 100,
        memory_mib: 128,
        max_memory_mib: 30,
        init_us: None,
        cold: true,
        cause,
    });
    let once = [
        What::Starting { why: Cold::First },
        What::Ready { build_us: 900, init_us: 40_000 },
        What::InitFailed {
            cause: "Runtime.ExitError".into(),
            text: String::new(),
            by: None,
            again: true,
            init_us: 0,
            peak_mib: 1,
        },
        What::Invoked { cold: true, waited_us: 10 },
    ];
    for what in throttled.into_iter().chain(ended).chain(once) {
        let function = FunctionName::parse("hello").unwrap();
        let (at, function) = (SystemTime::UNIX_EPOCH, Some(function));
        tally.see(&Event { seq: 1, at, function, version: None, container: None, request: None, what });
    }
    tally.text(&Reading::default())
}

/// Reads an exposition: samples come right after their family's HELP and TYPE.
fn metrics(text: &str) -> BTreeMap<String, Metric> {
    let mut found = BTreeMap::<String, Metric>::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
            family = name.to_owned();
            assert!(!found.contains_key(name), "{name} comes twice");
            found.entry(family.clone()).or_default().help = help.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, ""));
            assert_eq!(name, family, "HELP comes first");
            found.entry(family.clone()).or_default().kind = kind.to_owned();
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
            assert!(value.parse::<f64>().is_ok(), "{line}");
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let metric = found.get_mut(&family).unwrap_or_else(|| panic!("no family before {line}"));
            let suffixes: &[&str] = if metric.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.iter().any(|suffix| format!("{family}{suffix}") == name), "{line} in the family {family}");
            for pair in labels.trim_end_matches('}').split(',').filter(|pair| !pair.is_empty()) {
                let (label, value) = pair.split_once('=').unwrap_or_else(|| panic!("no label: {line}"));
                metric.labels.entry(label.to_owned()).or_default().insert(value.trim_matches('"').to_owned());
            }
        }
    }
    found
}

/// What is wrong with an expression.
fn objections(expression: &str, metrics: &BTreeMap<String, Metric>) -> Vec<String> {
    let parsed = match parse(expression) {
        Ok(parsed) => parsed,
        Err(why) => return vec![why],
    };
    let mut wrong = Vec::new();
    let mut labels: BTreeSet<&str> = OF_PROMETHEUS.into();
    for Selector { name, matchers } in &parsed.selectors {
        // Prometheus' own.
        if name == "up" {
            continue;
        }
        let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let family = metrics.get(name).filter(|metric| metric.kind != "histogram");
        let family = family.or_else(|| metrics.get(histogram?).filter(|metric| metric.kind == "histogram"));
        let Some(family) = family else {
            wrong.push(format!("there is no {name}"));
            continue;
        };
        labels.extend(family.labels.keys().map(String::as_str).filter(|label| *label != "le" || name.ends_with("_bucket")));
        for (label, operator, value) in matchers {
            match family.labels.get(label) {
                None if OF_PROMETHEUS.contains(&label.as_str()) => {}
                None => wrong.push(format!("{name} has no label {label}")),
                // Functions are called as people like, and a dashboard's variables are filled in by people.
                Some(_) if label == "function" || value.contains('$') => {}
                Some(known) => {
                    let values: Vec<&str> = if operator.ends_with('~') { value.split('|').collect() } else { vec![value] };
                    let unknown = values.into_iter().filter(|value| !known.contains(*value));
                    wrong.extend(unknown.map(|value| format!("{label} of {name} is never {value:?}: {known:?}")));
                }
            }
        }
    }
    wrong.extend(
        parsed.grouped.iter().filter(|label| !labels.contains(label.as_str())).map(|label| format!("nothing has {label}")),
    );
    wrong
}

// ---- Metrics ---------------------------------------------------------------------------------------------------------

#[test]
fn each_metric_says_what_it_is_and_is_called_by_convention() {
    let metrics = metrics(&exposition());
    assert!(metrics.len() >= 40, "{}", metrics.len());
    for (name, metric) in &metrics {
        assert!(metric.help.len() > 10 || metric.help == "Always 1.", "{name}: {:?}", metric.help);
        assert!(name.starts_with("kiln_") && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        // Base units only, and the unit last.
        for unit in ["ms", "millis", "milliseconds", "us", "minutes", "hours", "mib", "mb", "kib", "percent", "ratio"] {
            assert!(!name.split('_').any(|word| word == unit), "{name}: {unit} is no base unit");
        }
        match metric.kind.as_str() {
            "counter" => assert!(name.ends_with("_total"), "{name} only grows"),
            "histogram" => {
                assert!(name.ends_with("_duration_seconds"), "{name}");
                assert!(metric.labels["le"].contains("+Inf"), "{name}");
            }
            "gauge" => {
                assert!(!name.ends_with("_total"), "{name} may shrink");
                let measured = [("memory", "_bytes"), ("time", "_seconds"), ("duration", "_seconds")];
                for (what, unit) in measured {
                    assert!(!name.contains(what) || name.ends_with(unit), "{name}: in {unit}");
                }
            }
            other => panic!("{name} is a {other}"),
        }
    }
}

#[test]
fn a_node_exporter_can_have_them_beside_its_own() {
    for name in metrics(&exposition()).keys() {
        assert!(!["process_", "go_", "node_", "scrape_"].iter().any(|theirs| name.starts_with(theirs)), "{name}");
    }
}

// ---- Alerts ----------------------------------------------------------------------------------------------------------

/// Our own file's few shapes of YAML: `key: value` on one line, in `- alert:` blocks.
fn alerts() -> Vec<(String, BTreeMap<String, String>)> {
    let mut found: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    for line in file("scripts/monitoring/alerts.yml").lines() {
        let Some((key, value)) = line.trim().split_once(": ") else { continue };
        match (key, found.last_mut()) {
            ("- alert", _) => found.push((value.to_owned(), BTreeMap::new())),
            (key, Some((_, alert))) => assert!(alert.insert(key.to_owned(), value.to_owned()).is_none(), "{line} twice"),
            (_, None) => {}
        }
    }
    found
}

#[test]
fn each_alert_asks_for_what_there_is_and_says_what_to_do() {
    let metrics = metrics(&exposition());
    let alerts = alerts();
    assert!(alerts.len() >= 15, "{}", alerts.len());
    let readme = file("README.md");
    for (name, alert) in alerts {
        assert_eq!(objections(&alert["expr"], &metrics), Vec::<String>::new(), "{name}: {}", alert["expr"]);
        assert!(["{ severity: page }", "{ severity: ticket }"].contains(&alert["labels"].as_str()), "{name}");
        assert!(alert["summary"].contains("$labels.instance") && alert["action"].len() > 40, "{name}: {alert:?}");
        assert!(readme.contains(&format!("`{name}`")), "README does not tell what to do for {name}");
        // A label that the expression has dropped would be empty in its words.
        for text in [&alert["summary"], &alert["action"]] {
            for label in text.split("$labels.").skip(1).filter_map(|rest| rest.split(' ').next()) {
                assert!(label == "instance" || alert["expr"].contains(label), "{name}: $labels.{label}");
            }
        }
    }
}

// ---- The dashboard ---------------------------------------------------------------------------------------------------

#[test]
fn each_panel_asks_for_what_there_is() {
    let metrics = metrics(&exposition());
    let dashboard: Value = serde_json::from_str(&file("scripts/monitoring/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let (mut ids, mut places, mut asked) = (BTreeSet::new(), BTreeSet::new(), 0);
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64()), "{title}: its id comes twice");
        assert!(places.insert((panel["gridPos"]["y"].as_u64(), panel["gridPos"]["x"].as_u64())), "{title}: another is there");
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap();
            assert_eq!(objections(expression, &metrics), Vec::<String>::new(), "{title}: {expression}");
            for label in target["legendFormat"].as_str().unwrap().split("{{").skip(1).filter_map(|rest| rest.split("}}").next()) {
                assert!(expression.contains(label), "{title}: its legend has {label}");
            }
            asked += 1;
        }
    }
    assert!(asked >= 25, "{asked}");
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    for query in variables.iter().filter_map(|variable| variable["definition"].as_str()) {
        let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')).unwrap();
        let (selector, label) = inner.rsplit_once(", ").unwrap();
        assert_eq!(objections(&format!("sum by ({label}) ({selector})"), &metrics), Vec::<String>::new(), "{query}");
    }
}

#[test]
fn a_mistake_in_an_expression_is_found() {
    let metrics = metrics(&exposition());
    let found = |expression: &str| objections(expression, &metrics).join("; ");
    assert_eq!(found("sum by (function) (rate(kiln_invocations_total{function=~\"$function\"}[5m])) > 0"), "");
    assert_eq!(found("histogram_quantile(0.9, sum by (le) (rate(kiln_invocation_duration_seconds_bucket[5m])))"), "");
    for (expression, what) in [
        ("kiln_no_such_thing > 0", "there is no kiln_no_such_thing"),
        ("kiln_invocation_duration_seconds > 0", "there is no kiln_invocation_duration_seconds"),
        ("kiln_invocations_total{cause=\"x\"}", "has no label cause"),
        ("kiln_throttles_total{reason=\"tired\"}", "is never \"tired\""),
        ("kiln_environments_retired_total{reason=~\"memory|tired\"}", "is never \"tired\""),
        ("sum by (cause) (kiln_invocations_total)", "nothing has cause"),
        ("sum by (le) (kiln_invocation_duration_seconds_sum)", "nothing has le"),
        ("rate(kiln_invocations_total)", "wants a range"),
        ("kiln_invocations_total[5m] > 0", "range"),
        ("rate(kiln_invocations_total[5 minutes])", "duration"),
        ("sum(kiln_invocations_total", "expected"),
        ("sum(kiln_invocations_total))", "after the end"),
        ("kiln_invocations_total > > 0", "expected"),
        ("avarage(kiln_invocations_total)", "no function avarage"),
        ("kiln_invocations_total{function=hello}", "expected"),
    ] {
        assert!(found(expression).contains(what), "{expression}: {:?}", found(expression));
    }
}

// ---- Another opinion -------------------------------------------------------------------------------------------------

#[test]
fn promtool_has_nothing_against_them_where_it_is_installed() {
    let promtool = |words: &[&str]| {
        let mut command = Command::new("promtool");
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    };
    let Ok(mut checked) = promtool(&["check", "metrics"]) else {
        return println!("promtool is not installed, so nobody asks it");
    };
    checked.stdin.take().unwrap().write_all(exposition().as_bytes()).unwrap();
    let rules = root().join("scripts/monitoring/alerts.yml");
    for checked in [checked, promtool(&["check", "rules", &rules.display().to_string()]).unwrap()] {
        let output = checked.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }
}
