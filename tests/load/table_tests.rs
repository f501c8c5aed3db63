//! What people see, as it is stored in `tables/`: read it there. After a change that is meant, KILN_NEW_SCREENS=1 stores it anew, and
//! `git diff` shows what has changed.

use std::path::PathBuf;
use std::{env, fs};

use super::*;
use crate::books::Entry;
use crate::kinds::KINDS;
use crate::record::{Call, Function, Reply};

#[track_caller]
fn stored(name: &str, columns: u16, found: &str) {
    for line in found.lines() {
        assert!(line.chars().count() <= columns.into() && line.trim_end() == line, "{columns} columns: {line:?}");
    }
    let file = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo"))
        .join(format!("tests/load/tables/{name}-{columns}.txt"));
    if env::var_os("KILN_NEW_SCREENS").is_some() {
        fs::write(&file, found).unwrap();
    }
    let stored = fs::read_to_string(&file).unwrap_or_default();
    assert!(found == stored, "{} is now (KILN_NEW_SCREENS=1 stores it, if that is right):\n{found}", file.display());
}

/// Each kind was called some hundred times; every third request was refused.
fn half_an_hour() -> (Record, Ledger, Figures) {
    let functions = (0..KINDS.len()).map(|kind| Function { name: format!("{}-0", KINDS[kind].name), kind });
    let mut record = Record::new(functions.collect());
    record.origin_ms = 1_700_000_000_000;
    let mut ledger = Ledger::default();
    for at in 0..KINDS.len() * 600 {
        let (function, sent) = (at % KINDS.len(), Duration::from_millis(at as u64 * 170));
        let refused = at % 3 == 0;
        let took = Duration::from_micros(900 + (at as u64 % 97) * 41_003);
        let error = (!KINDS[function].succeeds).then(|| "Load.Error".to_owned());
        let reply = Reply { status: if refused { 429 } else { 200 }, request: format!("{at}"), error, ..Reply::default() };
        let fate = Fate::Answered(reply);
        record.calls.push(Call { function, nonce: at as u64, pad: 0, sent, ended: sent + took, fate, roll_call: false });
        if !refused {
            let start_ms = record.origin_ms + sent.as_millis() as u64 + at as u64 % 13;
            let (function, request) = (record.functions[function].name.clone(), format!("{at}"));
            let init = (at % 7 == 0).then_some(1);
            ledger.rows.push(Entry { function, request, start_ms, init, ..Entry::default() });
        }
    }
    let done = ["code updated", "configuration updated", "container killed", "deleted and created", "drained", "launcher killed"];
    let standing = |kib: u64, descriptors: u64| Standing {
        processes: ["launchers", "server", "supervisor"].map(|role| (role, Held { memory_kib: kib, descriptors })).into(),
        ..Standing::default()
    };
    let steady = Steady { requests: 4321, before: standing(9000, 30), after: standing(7000, 31) };
    let figures = Figures {
        seed: 271_828,
        seconds: 1834.2,
        rate: 12.5,
        held_back: 17,
        done: done.iter().enumerate().map(|(at, what)| (*what, 900 + at as u64 * 37)).collect(),
        refused: json!({ "concurrency": 310, "memory": 1200, "queue": 40, "reserved": 77, "starts": 901 }),
        retired: json!({ "age": 100, "deleted": 200, "drained": 300, "failed": 4000, "idle": 500, "killed": 60, "memory": 70, "once": 800 }),
        steady,
    };
    (record, ledger, figures)
}

fn rows(broken: bool) -> Vec<Row> {
    let found = if broken {
        (0..12).map(|at| format!("fast-{at} request-{at} was answered, and is not in the books")).collect()
    } else {
        vec![]
    };
    let memory = "launchers 3.1, server 12.7, supervisor 1.2";
    vec![
        Row::new("each request has one whole answer", "17201 answered, 31 cut by kills, 550 hung up", "17201 answered", vec![]),
        Row::new("books equal answers", "12345 rows, 31 of those who left", "12314 invocations, 12 cut by kills", found),
        Row::new("kilnd's memory (MiB) is as before", memory, format!("{memory}; 8 more at most"), vec![]),
        Row::new("nothing is left when Kiln has stopped", "0 things", "0 things", vec![]),
    ]
}

#[test]
fn on_80_and_on_200_columns_each_line_fits_and_is_as_stored() {
    let (record, ledger, figures) = half_an_hour();
    for columns in [80, 200] {
        stored("held", columns, &text(&record, &ledger, &figures, &rows(false), Some(columns)));
        stored("broken", columns, &text(&record, &ledger, &figures, &rows(true), Some(columns)));
    }
}

#[test]
fn in_a_pipe_each_invariant_is_one_line_that_ends_with_ok() {
    let (record, ledger, figures) = half_an_hour();
    let text = text(&record, &ledger, &figures, &rows(true), None);
    // As scripts/test counts them.
    assert_eq!(text.lines().filter(|line| line.ends_with(" ok")).count(), 3, "{text}");
    assert_eq!(text.lines().filter(|line| line.ends_with(" BROKEN")).count(), 1, "{text}");
}

#[test]
fn what_the_bar_says_fits_beside_it() {
    let numbers = [123_456, 400, 12_345, 1_234];
    for columns in [80, 200] {
        let bar = format!("{:>9} [{}] 1800/1800 ", "roll call", " ".repeat(if columns < NARROW { 10 } else { 24 }));
        let line = bar + &said(numbers, 123.4, columns);
        assert!(line.len() <= columns.into(), "{line}");
        assert_eq!(line.contains("throttled"), columns == 200);
    }
}

#[test]
fn quantiles_are_of_what_was_seen() {
    let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
    assert_eq!([0.0, 0.5, 0.99, 1.0].map(|part| quantile(&mut values, part)), [1.0, 50.0, 99.0, 100.0]);
    assert_eq!(quantile(&mut [], 0.5), 0.0);
}
