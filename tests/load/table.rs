//! What people see: a bar while it runs, then figures, and the invariants as a table; or all of it as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::books::Ledger;
use crate::checks::Row;
use crate::mischief::Done;
use crate::record::{Fate, Record};
use crate::standing::{Held, Standing};
use crate::traffic::Scene;

/// So many of what breaks an invariant are shown.
const SHOWN: usize = 10;

/// Terminals of fewer columns have no room for all that is said on wider ones.
const NARROW: u16 = 120;

/// On a terminal; elsewhere nothing is drawn.
pub fn bar(length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length);
    let columns = columns(std::io::stderr()).unwrap_or(80);
    let template = format!("{{prefix:>9}} [{{bar:{}}}] {{pos}}/{{len}} {{wide_msg}}", if columns < NARROW { 10 } else { 24 });
    let style = ProgressStyle::with_template(&template);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar
}

/// Of a terminal.
fn columns(of: impl rustix::fd::AsFd) -> Option<u16> {
    rustix::termios::tcgetwinsize(of).ok().map(|size| size.ws_col.max(60))
}

/// What the bar says beside itself.
pub fn rates(scene: &Scene, since: (usize, Duration)) -> String {
    let in_flight = scene.in_flight.load(std::sync::atomic::Ordering::Relaxed);
    let record = scene.record();
    let throttled = record.calls.iter().filter(|call| status(&call.fate) == Some(429)).count();
    let rate = (record.calls.len() - since.0) as f64 / (record.now() - since.1).as_secs_f64().max(0.001);
    let (requests, changes) = (record.calls.len(), record.changes.len());
    drop(record);
    said([requests, in_flight, throttled, changes], rate, columns(std::io::stderr()).unwrap_or(80))
}

/// The less important is left out where there is no room, rather than cut.
fn said([requests, in_flight, throttled, changes]: [usize; 4], rate: f64, columns: u16) -> String {
    let said = format!("{requests} requests, {rate:.0}/s, {in_flight} running");
    match columns {
        ..NARROW => said,
        _ => format!("{said}, {throttled} throttled, {changes} changes"),
    }
}

fn status(fate: &Fate) -> Option<u16> {
    match fate {
        Fate::Answered(reply) => Some(reply.status),
        _ => None,
    }
}

/// What the load was, and how Kiln bore it.
pub struct Figures {
    pub seed: u64,
    pub seconds: f64,
    pub rate: f64,
    pub held_back: usize,
    pub done: Done,
    /// By the pool's own words, since the last server began.
    pub refused: Value,
    pub retired: Value,
    pub steady: Steady,
}

/// The part of the load in which nothing of Kiln's own died.
pub struct Steady {
    pub requests: u64,
    pub before: Standing,
    pub after: Standing,
}

impl Steady {
    /// By role: KiB of memory and descriptors that a thousand requests have cost.
    fn grown(&self) -> Vec<(&'static str, f64, f64)> {
        let per_thousand = |before: u64, after: u64| (after as f64 - before as f64) * 1000.0 / self.requests.max(1) as f64;
        let roles = self.before.processes.iter().filter_map(|(role, held)| Some((*role, held, self.after.processes.get(role)?)));
        let grown = |(role, before, after): (_, &Held, &Held)| {
            (role, per_thousand(before.memory_kib, after.memory_kib), per_thousand(before.descriptors, after.descriptors))
        };
        roles.map(grown).collect()
    }
}

/// `kind`, requests, successes, latencies and waits as quantiles in milliseconds.
pub struct Line {
    kind: &'static str,
    requests: usize,
    good: usize,
    throttled: usize,
    cold: f64,
    latency: [f64; 2],
    wait: [f64; 2],
}

/// The value below which so much of all lies.
pub fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * part).ceil() as usize;
    values.get(at.saturating_sub(1).min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

fn by_kind(record: &Record, ledger: &Ledger) -> Vec<Line> {
    let rows: BTreeMap<&str, _> = ledger.rows.iter().map(|row| (row.request.as_str(), row)).collect();
    let mut kinds: BTreeMap<usize, Vec<&crate::record::Call>> = BTreeMap::new();
    for call in record.calls.iter().filter(|call| !call.roll_call) {
        kinds.entry(record.functions[call.function].kind).or_default().push(call);
    }
    let line = |(_, calls): (usize, Vec<&crate::record::Call>)| {
        let (mut latency, mut wait, mut cold, mut ran) = (Vec::new(), Vec::new(), 0_usize, 0_usize);
        for call in &calls {
            let Fate::Answered(reply) = &call.fate else { continue };
            if let Some(row) = rows.get(reply.request.as_str()).filter(|_| reply.is_invocation()) {
                latency.push((call.ended - call.sent).as_secs_f64() * 1000.0);
                let sent_ms = record.origin_ms as f64 + call.sent.as_secs_f64() * 1000.0;
                wait.push((row.start_ms as f64 - sent_ms).max(0.0));
                ran += 1;
                cold += usize::from(row.init.is_some());
            }
        }
        let good = calls.iter().filter(|call| matches!(&call.fate, Fate::Answered(reply) if reply.is_success())).count();
        Line {
            kind: calls.first().map_or("", |call| record.functions[call.function].kind().name),
            requests: calls.len(),
            good,
            throttled: calls.iter().filter(|call| status(&call.fate) == Some(429)).count(),
            cold: cold as f64 * 100.0 / ran.max(1) as f64,
            latency: [0.5, 0.99].map(|part| quantile(&mut latency, part)),
            wait: [0.5, 0.99].map(|part| quantile(&mut wait, part)),
        }
    };
    kinds.into_iter().map(line).collect()
}

fn plain(padding: u16, columns: Option<u16>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    // Whole lines where nobody looks on.
    if let Some(columns) = columns {
        // The last column's padding is cut off again.
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(columns + padding);
    }
    table
}

fn shown(mut table: Table, padding: u16) -> String {
    table.column_iter_mut().for_each(|column| _ = column.set_padding((0, padding)));
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

pub fn print(record: &Record, ledger: &Ledger, figures: &Figures, rows: &[Row]) {
    print!("{}", text(record, ledger, figures, rows, columns(std::io::stdout())));
}

fn text(record: &Record, ledger: &Ledger, figures: &Figures, rows: &[Row], columns: Option<u16>) -> String {
    let mut text =
        format!("{}\n{}\n{}", kinds(record, ledger, columns), load(record, ledger, figures, columns), held(rows, columns));
    for row in rows.iter().filter(|row| !row.ok()) {
        text += &format!("\n{}: {} times\n", row.invariant, row.found.len());
        row.found.iter().take(SHOWN).for_each(|found| text += &format!("  {found:.2000}\n"));
    }
    text
}

fn kinds(record: &Record, ledger: &Ledger, columns: Option<u16>) -> String {
    let padding = if columns.is_some_and(|columns| columns < NARROW) { 1 } else { 2 };
    let mut table = plain(padding, None);
    table.set_header(["kind", "requests", "good", "throttled", "cold %", "p50 ms", "p99 ms", "waited p50", "p99"]);
    for line in by_kind(record, ledger) {
        let numbers =
            [line.cold, line.latency[0], line.latency[1], line.wait[0], line.wait[1]].map(|number| format!("{number:.0}"));
        let counts = [line.requests, line.good, line.throttled].map(|count| count.to_string());
        table.add_row([line.kind.to_owned()].into_iter().chain(counts).chain(numbers));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    shown(table, padding)
}

/// What it was, and what it has cost.
fn load(record: &Record, ledger: &Ledger, figures: &Figures, columns: Option<u16>) -> String {
    let list = |counts: Vec<(String, String)>| match counts.is_empty() {
        true => "none".to_owned(),
        false => counts.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", "),
    };
    let of =
        |value: &Value| list(value.as_object().into_iter().flatten().map(|(name, n)| (name.clone(), n.to_string())).collect());
    let a_second = |count: usize| format!("{:.1} a second", count as f64 / figures.seconds);
    let (requests, booked) = (record.calls.len(), ledger.rows.len());
    let grown =
        figures.steady.grown().into_iter().map(|(role, kib, files)| format!("{role} {kib:+.0} KiB, {files:+.2} descriptors"));
    let lines = [
        ("requests", format!("{requests} in {:.0} s, {}", figures.seconds, a_second(requests))),
        ("invocations", format!("{booked}, {}", a_second(booked))),
        ("aimed at", format!("{:.1} requests a second and bursts; {} held back", figures.rate, figures.held_back)),
        ("throttled", format!("by the pool: {}", of(&figures.refused))),
        ("ended", format!("environments, by the pool: {}", of(&figures.retired))),
        ("meanwhile", list(figures.done.iter().map(|(name, n)| ((*name).to_owned(), n.to_string())).collect())),
        ("grown", format!("per 1000 of the last {} requests: {}", figures.steady.requests, grown.collect::<Vec<_>>().join("; "))),
        ("seed", figures.seed.to_string()),
    ];
    let mut table = plain(2, columns);
    lines.into_iter().for_each(|(name, text)| _ = table.add_row([name.to_owned(), text]));
    shown(table, 2)
}

/// The invariants; on a narrow terminal below each other.
fn held(rows: &[Row], columns: Option<u16>) -> String {
    let mut table = plain(2, columns);
    let ok = |row: &Row| if row.ok() { "ok" } else { "BROKEN" };
    if columns.is_some_and(|columns| columns < NARROW) {
        table.set_header(["holds", "invariant: seen (expected)"]);
        for row in rows {
            table.add_row([ok(row).to_owned(), format!("{}: {} ({})", row.invariant, row.seen, row.expected)]);
        }
    } else {
        table.set_header(["invariant", "seen", "expected", "holds"]);
        rows.iter().for_each(|row| _ = table.add_row([row.invariant, &row.seen, &row.expected, ok(row)]));
    }
    shown(table, 2)
}

pub fn print_json(record: &Record, ledger: &Ledger, figures: &Figures, rows: &[Row]) {
    let kinds: Vec<Value> = by_kind(record, ledger)
        .iter()
        .map(|line| {
            json!({
                "kind": line.kind, "requests": line.requests, "good": line.good, "throttled": line.throttled, "cold_percent": line.cold,
                "p50_ms": line.latency[0], "p99_ms": line.latency[1], "waited_p50_ms": line.wait[0], "waited_p99_ms": line.wait[1],
            })
        })
        .collect();
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| json!({ "invariant": row.invariant, "seen": row.seen, "expected": row.expected, "ok": row.ok(), "found": row.found }))
        .collect();
    let grown: Vec<Value> = figures
        .steady
        .grown()
        .into_iter()
        .map(|(role, kib, files)| json!({ "role": role, "memory_kib": kib, "descriptors": files }))
        .collect();
    let whole = json!({
        "seed": figures.seed, "seconds": figures.seconds, "requests": record.calls.len(), "invocations": ledger.rows.len(),
        "held_back": figures.held_back, "refused": figures.refused, "retired": figures.retired, "done": figures.done,
        "grown_per_1000": grown, "kinds": kinds, "invariants": rows,
    });
    println!("{whole:#}");
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
