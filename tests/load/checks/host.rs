//! Nothing grows, and nothing is left.

use super::Row;
use crate::standing::{Disk, Held, Standing};

/// Allocators keep some of what they once had; no invocation may cost any.
const MEMORY_MARGIN_KIB: u64 = 8 << 10;
/// Connections and files that a moment may hold open.
const DESCRIPTORS_MARGIN: u64 = 8;
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
