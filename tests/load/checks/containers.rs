//! A container is of one function in one version, runs one invocation at a time, and is clean when it is new.

use std::collections::{BTreeMap, BTreeSet};

use super::Row;
use crate::record::{Fate, Record, State, Told};

pub fn containers(record: &Record) -> Vec<Row> {
    vec![not_shared(record), one_at_a_time(record), always_fresh(record), reserves(record)]
}

fn told(record: &Record) -> impl Iterator<Item = (usize, &Told)> {
    record.calls.iter().filter_map(|call| match &call.fate {
        Fate::Answered(reply) => reply.told.as_ref().map(|told| (call.function, told)),
        _ => None,
    })
}

fn not_shared(record: &Record) -> Row {
    let mut owners: BTreeMap<&str, BTreeSet<(&str, Option<State>)>> = BTreeMap::new();
    let mut processes: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut found = Vec::new();
    for (function, told) in told(record) {
        let name = record.functions[function].name.as_str();
        let state = told.code.zip(told.round).map(|(code, round)| State { code, round });
        owners.entry(&told.container).or_default().insert((name, state));
        processes.entry(&told.container).or_default().insert(&told.start);
        let own = format!("marked-{}", told.start);
        let expected: &[&str] = if told.count == 1 { &[] } else { &[&own] };
        let strange: Vec<&String> = told.found.iter().filter(|name| !expected.contains(&name.as_str())).collect();
        if !strange.is_empty() || told.found.len() != expected.len() {
            found.push(format!("{name}, {} of {}: found {:?} in /tmp", told.count, told.start, told.found));
        }
    }
    let of_two = |(container, of): (&&str, &BTreeSet<(&str, Option<State>)>)| format!("{container} served {of:?}");
    found.extend(owners.iter().filter(|(_, of)| of.len() > 1).map(of_two));
    let restarted = processes.iter().filter(|(_, of)| of.len() > 1).map(|(container, of)| format!("{container} had {of:?}"));
    found.extend(restarted);
    Row::new("no container has two functions or versions", format!("{} containers", owners.len()), "each has one", found)
}

/// By the functions' own clocks, which are one, and by their counts.
fn one_at_a_time(record: &Record) -> Row {
    let mut by: BTreeMap<&str, Vec<&Told>> = BTreeMap::new();
    told(record).for_each(|(_, told)| by.entry(&told.start).or_default().push(told));
    let (mut runs, mut found) = (0, Vec::new());
    for (start, of) in &mut by {
        of.sort_by_key(|told| told.began_us);
        runs += of.len();
        for pair in of.windows(2) {
            let (before, after) = (pair[0], pair[1]);
            if after.began_us < before.done_us || after.count <= before.count {
                found.push(format!(
                    "{} of {start}: number {} began before number {} ended",
                    after.function, after.count, before.count
                ));
            }
        }
    }
    Row::new("no container runs two invocations at once", format!("{runs} invocations"), "one after the other", found)
}

fn always_fresh(record: &Record) -> Row {
    let of_once = told(record).filter(|(function, _)| record.functions[*function].kind().once);
    let all: Vec<(usize, &Told)> = of_once.collect();
    let used = all.iter().filter(|(_, told)| told.count != 1 || !told.found.is_empty());
    let found = used.map(|(function, told)| format!("{}: {} was used before", record.functions[*function].name, told.container));
    Row::new("reuse=never is always a fresh container", format!("{} invocations", all.len()), "each the first", found.collect())
}

/// How many of a function run at once, by their own clock.
fn reserves(record: &Record) -> Row {
    let mut moments: BTreeMap<usize, Vec<(u64, i64)>> = BTreeMap::new();
    for (function, told) in told(record).filter(|(function, _)| record.functions[*function].kind().reserve.is_some()) {
        moments.entry(function).or_default().extend([(told.began_us, 1), (told.done_us, -1)]);
    }
    let (mut most, mut found) = (0, Vec::new());
    for (function, of) in &mut moments {
        // Who ends in the moment in which another begins is not beside it.
        of.sort_unstable();
        let mut running = 0;
        let peak = of
            .iter()
            .map(|(_, change)| {
                running += change;
                running
            })
            .max()
            .unwrap_or(0);
        most = most.max(peak);
        let function = &record.functions[*function];
        if peak > function.kind().reserve.map_or(i64::MAX, |reserve| reserve as i64) {
            found.push(format!("{} ran {peak} times at once", function.name));
        }
    }
    Row::new("reserved concurrency is never exceeded", format!("at most {most} at once"), "2 of each at most", found)
}
