//! Nothing grows, and nothing is left.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Row;
use crate::standing::{Course, Disk, Held, Standing};

/// Allocators keep some of what they once had; no invocation may cost any.
const MEMORY_MARGIN_KIB: u64 = 8 << 10;
/// Connections and files that a moment may hold open.
const DESCRIPTORS_MARGIN: u64 = 8;
/// An environment has a dozen, and how many are warm goes up and down; what is left of them at rest is judged by itself.
const TREND_DESCRIPTORS: f64 = 1000.0;
/// For less, what was under way by chance is more than what a leak would be.
const LEAST_COURSE: Duration = Duration::from_secs(240);
/// A row of the books with its index, and the write-ahead log.
const ROW_BYTES: u64 = 600;
const LOG_AHEAD: u64 = 32 << 20;

/// The same processes, before and after much load, with nothing under way both times.
pub fn growth(before: &Standing, after: &Standing) -> Vec<Row> {
    let mut rows = Vec::new();
    let pairs =
        || before.processes.iter().map(|(role, held)| (role, held, after.processes.get(role).copied().unwrap_or_default()));
    let told = |of: &dyn Fn(&Held) -> String, standing: &Standing| -> String {
        let each = standing.processes.iter().map(|(role, held)| format!("{role} {}", of(held)));
        each.collect::<Vec<_>>().join(", ")
    };

    let memory = |held: &Held| format!("{:.1}", held.memory_kib as f64 / 1024.0);
    let grown = pairs().filter(|(_, before, after)| after.memory_kib > before.memory_kib + MEMORY_MARGIN_KIB);
    let found = grown.map(|(role, before, after)| format!("{role}: {} KiB, after {} KiB", after.memory_kib, before.memory_kib));
    let expected = format!("{}; {} more at most", told(&memory, before), MEMORY_MARGIN_KIB >> 10);
    rows.push(Row::new("kilnd's memory (MiB) is as before", told(&memory, after), expected, found.collect()));

    let descriptors = |held: &Held| held.descriptors.to_string();
    let grown = pairs().filter(|(_, before, after)| after.descriptors > before.descriptors + DESCRIPTORS_MARGIN);
    let found =
        grown.map(|(role, before, after)| format!("{role}: {} descriptors, after {}", after.descriptors, before.descriptors));
    let expected = format!("{}; {DESCRIPTORS_MARGIN} more at most", told(&descriptors, before));
    rows.push(Row::new("kilnd's descriptors are as before", told(&descriptors, after), expected, found.collect()));

    let found = before.things.iter().filter_map(|(what, count)| {
        let now = after.things.get(what).copied().unwrap_or(0);
        (now > *count).then(|| format!("{what}: {now}, after {count}"))
    });
    let told =
        |standing: &Standing| -> Vec<String> { standing.things.iter().map(|(what, count)| format!("{count} {what}")).collect() };
    rows.push(Row::new(
        "processes, groups, mounts are as before",
        told(after).join(", "),
        told(before).join(", "),
        found.collect(),
    ));
    rows
}

/// While there was load: how much more each had at the end than in the beginning, by the middle one of all slopes between two looks
/// (Theil and Sen), so that no single burst counts. The first quarter is left out: until then caches fill and stocks grow.
pub fn trend(course: &Course) -> Row {
    let settled = &course[course.len() / 4..];
    let span = settled.last().map_or(Duration::ZERO, |(at, _)| *at - settled[0].0);
    let judged = span >= LEAST_COURSE;
    let roles: BTreeSet<&str> = settled.iter().flat_map(|(_, held)| held.keys().copied()).collect();
    let (mut seen, mut found) = (Vec::new(), Vec::new());
    for role in roles {
        let grown = |of: fn(&Held) -> u64| {
            let values = settled.iter().filter_map(|(at, held)| Some((at.as_secs_f64(), of(held.get(role)?) as f64)));
            slope(&values.collect::<Vec<_>>()) * span.as_secs_f64()
        };
        let (kib, descriptors) = (grown(|held| held.memory_kib), grown(|held| held.descriptors));
        seen.push(format!("{role} {:+.1} MiB, {descriptors:+.0} descriptors", kib / 1024.0));
        if judged && (kib > MEMORY_MARGIN_KIB as f64 || descriptors > TREND_DESCRIPTORS) {
            found.push(format!("{role}: {kib:+.0} KiB, {descriptors:+.0} descriptors in {} s", span.as_secs()));
        }
    }
    let seen = format!("in {} s {}", span.as_secs(), seen.join("; "));
    let expected = match judged {
        true => format!("{} MiB, {TREND_DESCRIPTORS} descriptors at most", MEMORY_MARGIN_KIB >> 10),
        false => format!("too short: from {} s on", LEAST_COURSE.as_secs()),
    };
    Row::new("under load nothing grows on and on", seen, expected, found)
}

/// The middle one of all slopes between two points.
fn slope(points: &[(f64, f64)]) -> f64 {
    let pairs = points.iter().enumerate().flat_map(|(at, one)| points[at + 1..].iter().map(move |other| (one, other)));
    let mut slopes: Vec<f64> = pairs.map(|(one, other)| (other.1 - one.1) / (other.0 - one.0).max(1e-9)).collect();
    slopes.sort_by(f64::total_cmp);
    slopes.get(slopes.len() / 2).copied().unwrap_or(0.0)
}

/// What lies on the disk, against what it is for; and what is on the host when Kiln has stopped.
pub fn afterwards(disk: &Disk, rows: u64, left: Vec<String>) -> Vec<Row> {
    let mut found = Vec::new();
    if disk.code != disk.code_named {
        let strange: Vec<_> = disk.code.symmetric_difference(&disk.code_named).collect();
        found.push(format!("code/ and the functions differ by {strange:?}"));
    }
    if disk.staging > 0 {
        found.push(format!("{} things are left in staging/", disk.staging));
    }
    let (books, logs) = (rows * ROW_BYTES + LOG_AHEAD, disk.logs_bound);
    for (what, bytes, bound) in [("books", disk.books_bytes, books), ("logs", disk.logs_bytes, logs)] {
        if bytes > bound {
            found.push(format!("the {what} have {} MiB, and may have {}", bytes >> 20, bound >> 20));
        }
    }
    let seen = format!("code {}, logs {} MiB, books {} MiB", disk.code.len(), disk.logs_bytes >> 20, disk.books_bytes >> 20);
    let expected = format!("code {}, logs {} MiB, books {} MiB", disk.code_named.len(), logs >> 20, books >> 20);
    vec![
        Row::new("the state on the disk is bounded", seen, expected, found),
        Row::new("nothing is left when Kiln has stopped", format!("{} things", left.len()), "0 things", left),
    ]
}
