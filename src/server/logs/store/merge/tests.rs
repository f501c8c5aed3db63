//! Several logs as one, against what was written into them.

use super::super::segments::{Bounds, Segments};
use super::super::tests::{WIDE, append, name, record, text};
use super::*;

/// A look at one or several: `function text`.
fn merged(merge: &mut Merge) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..10_000 {
        let found = merge.read().unwrap();
        all.extend(found.items.iter().map(|item| match &item.what {
            What::Entry(entry) => format!("{} {}", item.function, text(entry)),
            What::Gap(_) => format!("{} gap", item.function),
        }));
        if found.at_end {
            return all;
        }
    }
    panic!("it never comes to an end");
}

fn merge_of(segments: &Segments, whose: Whose, query: Query) -> Merge {
    Merge::new(segments.catalogue(), whose, query, HashMap::new())
}

fn these(names: &[&str]) -> Whose {
    Whose::These(names.iter().map(|text| name(text)).collect())
}

#[test]
fn several_logs_are_read_as_one_in_order_of_time_and_new_ones_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let mut segments = Segments::open(directory.path(), Bounds { segment: 1000, ..WIDE }).unwrap();
    let write = |segments: &mut Segments, function: &str, at_ms: u64| {
        append(segments, &name(function), &record(at_ms, None, &at_ms.to_string()), at_ms).unwrap();
    };
    for at_ms in 1..100 {
        write(&mut segments, ["f", "g", "h"][at_ms as usize * 7 % 5 % 3], at_ms);
    }
    let all = merged(&mut merge_of(&segments, Whose::All, Query::default()));
    let times = |lines: &[String]| lines.iter().map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(times(&all), (1..100).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(["f ", "g ", "h "].iter().all(|function| all.iter().any(|line| line.starts_with(function))));
    let some = merged(&mut merge_of(&segments, these(&["f", "h"]), Query::default()));
    assert_eq!(some, all.iter().filter(|line| !line.starts_with('g')).cloned().collect::<Vec<_>>());

    for tail in [0, 1, 7, 98, 99, 500] {
        let query = Query { tail: Some(tail), ..Query::default() };
        assert_eq!(merged(&mut merge_of(&segments, Whose::All, query)), all[99_usize.saturating_sub(tail)..], "{tail}");
    }
    let since = Query { filter: Filter { since_ms: Some(50), ..Filter::default() }, ..Query::default() };
    assert_eq!(times(&merged(&mut merge_of(&segments, Whose::All, since.clone()))), times(&all[49..]));
    assert_eq!(times(&merged(&mut merge_of(&segments, Whose::All, Query { tail: Some(5), ..since }))), times(&all[94..]));

    // Who follows.
    let mut merge = merge_of(&segments, Whose::All, Query { tail: Some(2), ..Query::default() });
    let mut some = merge_of(&segments, these(&["f", "later"]), Query { tail: Some(0), ..Query::default() });
    assert_eq!((times(&merged(&mut merge)), merged(&mut some).len()), (vec!["98".into(), "99".into()], 0));
    assert_eq!(merged(&mut merge), Vec::<String>::new());
    for (function, at_ms) in [("later", 100), ("g", 101), ("f", 102), ("later", 103)] {
        write(&mut segments, function, at_ms);
    }
    assert_eq!(merged(&mut merge), ["later 100", "g 101", "f 102", "later 103"]);
    assert_eq!(merged(&mut some), ["later 100", "f 102", "later 103"]);
    // One that is removed, and begins anew.
    segments.remove(&name("later"));
    assert_eq!(merged(&mut merge), Vec::<String>::new());
    write(&mut segments, "later", 104);
    assert_eq!(merged(&mut merge), ["later 104"]);
}

#[test]
fn whoever_goes_on_where_they_were_in_each_log_gets_what_came_behind_that_whatever_the_clock_did() {
    let directory = tempfile::tempdir().unwrap();
    let mut segments = Segments::open(directory.path(), WIDE).unwrap();
    let write = |segments: &mut Segments, function: &str, at_ms: u64, line: &str| {
        append(segments, &name(function), &record(at_ms, None, line), at_ms).unwrap();
    };
    for (function, at_ms) in [("f", 90_000), ("g", 95_000), ("f", 100_000)] {
        write(&mut segments, function, at_ms, "old");
    }
    let places = ["f", "g"].map(|function| (name(function), segments.catalogue().end(&name(function)).unwrap()));
    // An hour back, if it had been an hour.
    for (function, at_ms) in [("f", 10_000), ("g", 11_000), ("new", 12_000), ("new", 100_000), ("f", 101_000)] {
        write(&mut segments, function, at_ms, &at_ms.to_string());
    }
    let since = Query { filter: Filter { since_ms: Some(40_000), ..Filter::default() }, ..Query::default() };
    let mut merge = Merge::new(segments.catalogue(), Whose::All, since, places.into());
    // Of a log in which they never were, the time is all that there is to go by.
    assert_eq!(merged(&mut merge), ["f 10000", "g 11000", "new 100000", "f 101000"]);
    assert_eq!(merged(&mut merge), Vec::<String>::new());
}

/// What is half written in the middle of a batch is nobody's yet: its earlier lines may be another function's.
#[test]
fn a_batch_of_several_functions_is_seen_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let mut segments = Segments::open(directory.path(), WIDE).unwrap();
    let mut merge = merge_of(&segments, Whose::All, Query::default());
    segments.append(&name("f"), &record(7, None, "second"), 7).unwrap();
    assert_eq!(merged(&mut merge), Vec::<String>::new());
    segments.append(&name("g"), &record(5, None, "first"), 7).unwrap();
    segments.over();
    assert_eq!(merged(&mut merge), ["g first", "f second"]);
}

#[test]
fn a_follower_of_several_logs_is_told_of_what_was_removed_before_it_was_read() {
    let directory = tempfile::tempdir().unwrap();
    let bounds = Bounds { segment: 1000, function: 4000, ..WIDE };
    let mut segments = Segments::open(directory.path(), bounds).unwrap();
    append(&mut segments, &name("f"), &record(1, None, "1"), 1).unwrap();
    append(&mut segments, &name("g"), &record(1, None, "1"), 1).unwrap();
    let mut merge = merge_of(&segments, Whose::All, Query::default());
    assert_eq!(merged(&mut merge).len(), 2);
    for number in 2..200 {
        append(&mut segments, &name("f"), &record(number, None, &number.to_string()), number).unwrap();
    }
    let found = merged(&mut merge);
    assert_eq!(found.iter().filter(|line| *line == "f gap").count(), 1, "{found:?}");
    assert_eq!((found[0].as_str(), found.last().unwrap().as_str()), ("f gap", "f 199"));
}

#[test]
fn many_logs_of_long_lines_are_read_a_piece_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let mut segments = Segments::open(directory.path(), WIDE).unwrap();
    let long = "x".repeat(100 << 10);
    for function in 0..30 {
        for at_ms in 1..4 {
            append(&mut segments, &name(&format!("f{function}")), &record(at_ms, None, &long), at_ms).unwrap();
        }
    }
    let mut merge = merge_of(&segments, Whose::All, Query::default());
    let (mut entries, mut looks) = (0, 0);
    loop {
        let found = merge.read().unwrap();
        let lines: usize = found.items.iter().map(|item| usize::from(matches!(item.what, What::Entry(_)))).sum();
        assert!(lines <= 4, "{lines} lines of 100 KiB at once");
        (entries, looks) = (entries + lines, looks + 1);
        if found.at_end {
            break;
        }
    }
    assert_eq!((entries, looks > 20), (90, true), "{looks}");
}
