//! Books, REPORT lines, answers and bill tell the same.

use std::collections::{BTreeMap, BTreeSet};

use super::Row;
use crate::CONCURRENCY;
use crate::books::{Entry, Ledger};
use crate::record::{Fate, Record};

/// No busy host lets a line wait for so long.
const LATEST_MS: u64 = 10_000;

pub fn ledger(record: &Record, ledger: &Ledger) -> Vec<Row> {
    vec![rows_are_reports(record, ledger), rows_are_answers(record, ledger), bill(ledger)]
}

/// The server that ran what began then: how many were killed before it, and whether that is sure (between a kill and the successor's
/// first answer it may have been either). `None`: the last one, which was not killed.
fn killed_server(record: &Record, start_ms: u64) -> Option<(usize, bool)> {
    let ms = |time: std::time::Duration| record.origin_ms + time.as_millis() as u64;
    let mut kills = record.losses.iter().filter(|loss| loss.what.cuts()).enumerate();
    kills.find(|(_, loss)| start_ms <= ms(loss.ended) + 1).map(|(number, loss)| (number, start_ms < ms(loss.begun)))
}

/// Field by field. A row is older than its REPORT: so a server's kill may cost the line, never the row.
fn rows_are_reports(record: &Record, ledger: &Ledger) -> Row {
    let mut found = ledger.strange.clone();
    let (mut same, mut cut, mut rotated) = (0, 0, 0);
    let mut rows: BTreeMap<&str, &Entry> = BTreeMap::new();
    for row in &ledger.rows {
        if rows.insert(&row.request, row).is_some() {
            found.push(format!("{} {} is in the books twice", row.function, row.request));
        }
    }
    let mut reported = BTreeSet::new();
    for report in &ledger.reports {
        if !reported.insert(report.request.as_str()) {
            found.push(format!("{} {} is reported twice", report.function, report.request));
        }
        match rows.get(report.request.as_str()) {
            None => found.push(format!("{} {} is reported, and not in the books", report.function, report.request)),
            Some(row) if row.agrees(report) => same += 1,
            Some(row) => found.push(format!("the books have {row:?}, the log {report:?}")),
        }
    }
    // The newest first: of a function's lines a kill costs the last ones only. Those of two at once come in any order, some time after
    // their rows.
    let mut later: BTreeMap<(&str, usize), u64> = BTreeMap::new();
    for row in ledger.rows.iter().rev() {
        let server = killed_server(record, row.start_ms);
        if reported.contains(row.request.as_str()) {
            if let Some((number, true)) = server {
                let began = later.entry((row.function.as_str(), number)).or_default();
                *began = row.start_ms.max(*began);
            }
            continue;
        }
        match ledger.kept_since_ms.get(&row.function) {
            // What was before is rotated away.
            Some(since) if row.start_ms <= *since => rotated += 1,
            _ if server.is_some_and(|(number, sure)| {
                let began = later.get(&(row.function.as_str(), number)).copied().unwrap_or(0);
                !sure || began <= row.start_ms + row.duration / 100 + LATEST_MS
            }) =>
            {
                cut += 1;
            }
            since => {
                let (function, request, at) = (&row.function, &row.request, row.start_ms - record.origin_ms);
                let log = since.map_or("there is no log".into(), |since| {
                    format!("the log begins {} ms later", *since as i64 - row.start_ms as i64)
                });
                found.push(format!("{function} {request} began after {at} ms, is in the books, and has no REPORT ({log})"));
            }
        }
    }
    let seen = format!("{same} alike, {rotated} rotated away, {cut} cut by kills");
    Row::new("books equal REPORT lines", seen, format!("{} rows", ledger.rows.len()), found)
}

/// Who was answered is in the books. Of those who were not, nobody knows the request's id; they may be there.
fn rows_are_answers(record: &Record, ledger: &Ledger) -> Row {
    let rows: BTreeMap<&str, &Entry> = ledger.rows.iter().map(|row| (row.request.as_str(), row)).collect();
    let mut answered = BTreeSet::new();
    let (mut unknown, mut cut, mut found) = (0, 0, Vec::new());
    for call in &record.calls {
        let name = &record.functions[call.function].name;
        match &call.fate {
            Fate::Answered(reply) if reply.is_invocation() => {
                answered.insert(reply.request.as_str());
                match rows.get(reply.request.as_str()) {
                    Some(row) if row.function == *name => {}
                    Some(row) => found.push(format!("{} of {name} is in the books as {}", reply.request, row.function)),
                    // The answer goes out before the books are written, to who does not ask for the log.
                    None if record.losses.iter().any(|loss| loss.what.cuts() && call.sent <= loss.ended) => cut += 1,
                    None => found.push(format!("{name} {} was answered, and is not in the books", reply.request)),
                }
            }
            Fate::Answered(_) => {}
            _ => unknown += 1,
        }
    }
    let most = CONCURRENCY * record.losses.iter().filter(|loss| loss.what.cuts()).count();
    if cut > most {
        found.push(format!("{cut} answers are not in the books: more than {most}, which so many kills can have cut"));
    }
    let others = ledger.rows.iter().filter(|row| !answered.contains(row.request.as_str())).count();
    if others > unknown {
        found.push(format!("{others} rows are of no answer, and only {unknown} were cut or hung up"));
    }
    let seen = format!("{} rows, {others} of those who left", ledger.rows.len());
    let expected = format!("{} invocations, {cut} cut by kills", answered.len());
    Row::new("books equal answers", seen, expected, found)
}

fn bill(ledger: &Ledger) -> Row {
    let mut sums: BTreeMap<&str, (u64, u64, f64)> = BTreeMap::new();
    for row in &ledger.rows {
        let (requests, cold, gb_s) = sums.entry(&row.function).or_default();
        *requests += 1;
        *cold += u64::from(row.init.is_some());
        *gb_s += (row.memory_mib * row.billed_ms) as f64 / 1_024_000.0;
    }
    let mut found = Vec::new();
    let names: BTreeSet<&str> = sums.keys().copied().chain(ledger.bill.keys().map(String::as_str)).collect();
    for name in names {
        let (booked, billed) = (sums.get(name).copied().unwrap_or_default(), ledger.bill.get(name).copied().unwrap_or_default());
        if (booked.0, booked.1) != (billed.0, billed.1) || (booked.2 - billed.2).abs() > 1e-6 * booked.2.max(1.0) {
            found.push(format!("{name}: the books have {booked:?} (requests, cold starts, GB-s), kiln usage says {billed:?}"));
        }
    }
    let whole: u64 = ledger.bill.values().map(|(requests, ..)| requests).sum();
    Row::new("kiln usage is the sum of the books", format!("{whole} requests"), format!("{} rows", ledger.rows.len()), found)
}
