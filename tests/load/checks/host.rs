//! Nothing grows, and nothing is left.

use super::Row;
use crate::standing::{Disk, Standing};

/// Allocators keep what they once had: a burst larger than any before costs so much, and no invocation does.
const MEMORY_MARGIN_KIB: u64 = 16 << 10;
/// Connections and files that a moment may hold open.
const DESCRIPTORS_MARGIN: u64 = 8;
/// A row of the books with its index, and the write-ahead log.
const ROW_BYTES: u64 = 600;
const LOG_AHEAD: u64 = 32 << 20;

/// The same processes, before and after so many invocations, with nothing under way both times.
pub fn growth(before: &Standing, after: &Standing, invocations: u64) -> Vec<Row> {
    let mut rows = Vec::new();
    let per_thousand = |grown: f64| grown * 1000.0 / invocations.max(1) as f64;
    let pairs =
        || before.processes.iter().map(|(role, held)| (role, held, after.processes.get(role).copied().unwrap_or_default()));
    let list = |of: &dyn Fn(&Standing) -> Vec<String>| of(after).join(", ");

    let mut found = Vec::new();
    let mut grown = Vec::new();
    for (role, before, after) in pairs() {
        let more = after.memory_kib as f64 - before.memory_kib as f64;
        grown.push(format!("{role} {:+.1} KiB", per_thousand(more)));
        if after.memory_kib > before.memory_kib + MEMORY_MARGIN_KIB {
            found.push(format!("{role}: {} KiB, after {} KiB", after.memory_kib, before.memory_kib));
        }
    }
    let expected = format!("at most {} MiB more; per 1000: {}", MEMORY_MARGIN_KIB >> 10, grown.join(", "));
    let seen = |standing: &Standing| {
        standing.processes.iter().map(|(role, held)| format!("{role} {} MiB", held.memory_kib >> 10)).collect()
    };
    rows.push(Row::new("memory of kilnd's processes does not grow", list(&seen), expected, found));

    let mut found = Vec::new();
    let mut grown = Vec::new();
    for (role, before, after) in pairs() {
        grown.push(format!("{role} {:+.2}", per_thousand(after.descriptors as f64 - before.descriptors as f64)));
        if after.descriptors > before.descriptors + DESCRIPTORS_MARGIN {
            found.push(format!("{role}: {} descriptors, after {}", after.descriptors, before.descriptors));
        }
    }
    let expected = format!("at most {DESCRIPTORS_MARGIN} more; per 1000: {}", grown.join(", "));
    let seen =
        |standing: &Standing| standing.processes.iter().map(|(role, held)| format!("{role} {}", held.descriptors)).collect();
    rows.push(Row::new("nor do their descriptors", list(&seen), expected, found));

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
