//! The store against a model: whatever is appended, rotated, torn, reopened and removed, readers see what they should.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proptest::prelude::*;

use super::reader::{Entry, Filter};
use super::record::{Record, encode};
use super::*;
use crate::invocation::RequestId;
use crate::server::logs::tests::origin;
use crate::server::logs::{Journal, Kind, Origin};

const DAY_MS: u64 = 24 * 3600 * 1000;
pub(super) const WIDE: Bounds =
    Bounds { segment: 1 << 20, function: 16 << 20, total: 1 << 30, age: Duration::from_secs(14 * 24 * 3600) };

pub(super) fn name(text: &str) -> FunctionName {
    FunctionName::parse(text).unwrap()
}

pub(super) fn record(at_ms: u64, request: Option<RequestId>, text: &str) -> Vec<u8> {
    let time = UNIX_EPOCH + Duration::from_millis(at_ms);
    let mut to = Vec::new();
    let lines = format!("{text}\n");
    encode(&Piece { origin: &origin("f"), request, kind: Kind::Function, time, lines: lines.as_bytes() }, &mut to);
    to
}

/// A batch of one.
pub(super) fn append(segments: &mut Segments, function: &FunctionName, records: &[u8], now_ms: u64) -> io::Result<()> {
    let appended = segments.append(function, records, now_ms);
    segments.over();
    appended
}

fn reader(catalogue: &Catalogue, query: Query) -> Reader {
    Reader::open(catalogue.clone(), name("f"), query).unwrap()
}

/// Everything that there is to read now.
fn rest(reader: &mut Reader) -> Vec<Entry> {
    let mut all = Vec::new();
    for _ in 0..10_000 {
        let found = reader.read().unwrap();
        all.extend(found.entries);
        if found.at_end {
            return all;
        }
    }
    panic!("it never comes to an end");
}

pub(super) fn text(entry: &Entry) -> String {
    Record::parse(&entry.json).unwrap().line.unwrap().into_owned()
}

fn texts(catalogue: &Catalogue, query: Query) -> Vec<String> {
    rest(&mut reader(catalogue, query)).iter().map(text).collect()
}

#[derive(Clone, Debug)]
enum Act {
    /// So many lines of such a length at once, so much later.
    Append { lines: usize, length: usize, later_ms: u64 },
    /// The process is killed, and leaves so many bytes of a record behind; another one begins.
    Crash { torn: usize },
    /// The follower reads on.
    Read,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let append = (1..20_usize, 0..2000_usize, 0..2 * DAY_MS / 10).prop_map(|(lines, length, later_ms)| Act::Append {
        lines,
        length,
        later_ms,
    });
    let act = prop_oneof![6 => append, 1 => (0..300_usize).prop_map(|torn| Act::Crash { torn }), 3 => Just(Act::Read)];
    prop::collection::vec(act, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// The model is a list of numbered lines. What is kept is always an end of it, within the bounds; a follower sees each
    /// line once and in order, unless it was told of a gap; and whoever asks for the last N gets them.
    #[test]
    fn what_is_appended_is_read_once_in_order_and_within_bounds(acts in acts(), tail in 0..50_usize) {
        let directory = tempfile::tempdir().unwrap();
        let bounds = Bounds { segment: 8 << 10, function: 64 << 10, total: 1 << 30, age: Duration::from_secs(1 << 40) };
        let mut segments = Segments::open(directory.path(), bounds).unwrap();
        let (mut now, mut written, mut seen) = (1_700_000_000_000, 0_usize, Vec::<usize>::new());
        let mut at = Position::default();
        let mut gaps = false;
        for act in acts {
            match act {
                Act::Append { lines, length, later_ms } => {
                    now += later_ms;
                    let mut records = Vec::new();
                    for _ in 0..lines {
                        records.extend(record(now, None, &format!("{written} {}", "x".repeat(length))));
                        written += 1;
                    }
                    append(&mut segments, &name("f"), &records, now).unwrap();
                }
                Act::Crash { torn } => {
                    if let Some(end) = segments.catalogue().end(&name("f")) {
                        let file = fs::File::options().write(true).open(segments.catalogue().path(&name("f"), end.segment)).unwrap();
                        let record = record(now, None, &"torn ".repeat(100));
                        file.write_all_at(&record[..torn], end.offset).unwrap();
                    }
                    segments = Segments::open(directory.path(), bounds).unwrap();
                }
                Act::Read => {
                    let mut follower = reader(&segments.catalogue(), Query { after: Some(at), ..Query::default() });
                    loop {
                        let found = follower.read().unwrap();
                        gaps |= found.gap;
                        seen.extend(found.entries.iter().map(number));
                        if found.at_end {
                            break;
                        }
                    }
                    at = follower.position();
                }
            }
            let kept: Vec<_> = rest(&mut reader(&segments.catalogue(), Query::default())).iter().map(number).collect();
            prop_assert_eq!(&kept, &(written - kept.len()..written).collect::<Vec<_>>(), "an end of what was written");
            let size: u64 = segments.catalogue().extents(&name("f")).iter().map(|extent| extent.size).sum();
            prop_assert!(size <= bounds.function + bounds.segment + (44 << 10), "{}", size);
            prop_assert!(kept.len() == written || size + bounds.segment + (44 << 10) > bounds.function, "no more is removed than must be: {}", size);
            let last = rest(&mut reader(&segments.catalogue(), Query { tail: Some(tail), ..Query::default() }));
            let wanted = kept.len().saturating_sub(tail);
            prop_assert_eq!(last.iter().map(number).collect::<Vec<_>>(), &kept[wanted..]);
        }
        prop_assert!(seen.is_sorted_by(|a, b| a < b), "none twice");
        // Where nothing was kept of the beginning when it was first looked at, it has not missed that.
        let first = seen.first().copied().unwrap_or(0);
        prop_assert!(gaps || seen == (first..first + seen.len()).collect::<Vec<_>>(), "none missing");
    }
}

fn number(entry: &Entry) -> usize {
    text(entry).split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn the_last_lines_are_found_however_long_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let mut segments = Segments::open(directory.path(), Bounds { segment: 8 << 20, ..WIDE }).unwrap();
    // Around what is read at once on the way back, and many times it.
    let lengths = [0, 100, (64 << 10) - 200, 64 << 10, 3, 256 << 10, 1 << 20, 0, 70 << 10, 1];
    let numbered: Vec<String> = lengths.iter().enumerate().map(|(n, length)| format!("{n} {}", "x".repeat(*length))).collect();
    for line in &numbered {
        append(&mut segments, &name("f"), &record(1, None, line), 1).unwrap();
    }
    for tail in 0..=lengths.len() + 1 {
        let found = texts(&segments.catalogue(), Query { tail: Some(tail), ..Query::default() });
        assert_eq!(found, numbered[lengths.len().saturating_sub(tail)..], "{tail}");
    }
}

#[test]
fn a_torn_end_is_skipped_and_cut_off_before_the_next_line() {
    let directory = tempfile::tempdir().unwrap();
    let mut segments = Segments::open(directory.path(), WIDE).unwrap();
    append(&mut segments, &name("f"), &record(1, None, "whole"), 1).unwrap();
    let path = segments.catalogue().path(&name("f"), 1);
    fs::write(&path, [fs::read(&path).unwrap(), b"{\"time_ms\":1,\"kind\":\"plat".to_vec()].concat()).unwrap();

    let mut segments = Segments::open(directory.path(), WIDE).unwrap();
    assert_eq!(texts(&segments.catalogue(), Query::default()), ["whole"]);
    append(&mut segments, &name("f"), &record(2, None, "next"), 2).unwrap();
    assert_eq!(texts(&segments.catalogue(), Query::default()), ["whole", "next"]);
    assert_eq!(fs::read(&path).unwrap(), [record(1, None, "whole"), record(2, None, "next")].concat());
}

#[test]
fn a_line_that_is_no_record_is_skipped_wherever_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let mut segments = Segments::open(directory.path(), WIDE).unwrap();
    append(&mut segments, &name("f"), &record(1, None, "one"), 1).unwrap();
    append(&mut segments, &name("f"), b"\0\0\0\xff{}\n\n", 1).unwrap();
    append(&mut segments, &name("f"), &record(1, None, "two"), 1).unwrap();
    assert_eq!(texts(&segments.catalogue(), Query::default()), ["one", "two"]);
    assert_eq!(texts(&segments.catalogue(), Query { tail: Some(2), ..Query::default() }), ["one", "two"]);
}

#[test]
fn who_removes_files_under_us_costs_lines_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let mut segments = Segments::open(directory.path(), WIDE).unwrap();
    append(&mut segments, &name("f"), &record(1, None, "gone"), 1).unwrap();
    let mut follower = reader(&segments.catalogue(), Query::default());
    rest(&mut follower);
    fs::remove_dir_all(directory.path().join("f")).unwrap();
    assert_eq!(texts(&segments.catalogue(), Query::default()), Vec::<String>::new());
    append(&mut segments, &name("f"), &record(1, None, "new"), 1).unwrap();
    assert_eq!(texts(&segments.catalogue(), Query::default()), ["new"]);
    assert_eq!(rest(&mut follower).iter().map(text).collect::<Vec<_>>(), ["new"]);
}

#[test]
fn a_request_a_container_a_stream_and_a_time_find_their_lines() {
    let directory = tempfile::tempdir().unwrap();
    let mut segments = Segments::open(directory.path(), Bounds { segment: 200, ..WIDE }).unwrap();
    let (one, other) = (RequestId::new(), RequestId::new());
    for (at_ms, request, text) in [(5, None, "init"), (10, Some(one), "a"), (20, Some(other), "b"), (30, Some(one), "c")] {
        append(&mut segments, &name("f"), &record(at_ms, request, text), at_ms).unwrap();
    }
    let find = |filter: Filter, tail| texts(&segments.catalogue(), Query { filter, tail, after: None });
    let request = |id: RequestId| Filter { request: Some(id.to_string()), ..Filter::default() };
    assert_eq!(find(request(one), None), ["a", "c"]);
    assert_eq!(find(request(one), Some(1)), ["c"]);
    assert_eq!(find(request(RequestId::new()), Some(1)), Vec::<String>::new());
    assert_eq!(find(Filter { since_ms: Some(20), ..Filter::default() }, None), ["b", "c"]);
    assert_eq!(find(Filter { since_ms: Some(15), ..Filter::default() }, Some(5)), ["b", "c"]);
    let stream = &origin("f").stream;
    for container in ["3-17", stream, "0123456789abcdef0123456789abcdef"] {
        let filter = Filter { container: Some(container.into()), ..Filter::default() };
        assert_eq!(find(filter, None).len(), 4, "{container}");
    }
    assert_eq!(find(Filter { container: Some("3-1".into()), ..Filter::default() }, None).len(), 0);
}

#[test]
fn what_is_too_old_goes_also_when_nobody_writes() {
    let directory = tempfile::tempdir().unwrap();
    let mut segments = Segments::open(directory.path(), WIDE).unwrap();
    for day in 0..20 {
        append(&mut segments, &name("f"), &record(day * DAY_MS, None, &day.to_string()), day * DAY_MS).unwrap();
    }
    segments.expire(19 * DAY_MS);
    assert_eq!(texts(&segments.catalogue(), Query::default()).first().unwrap(), "5");
    segments.expire(34 * DAY_MS);
    assert!(segments.catalogue().end(&name("f")).is_none());
    assert!(!directory.path().join("f").exists(), "no empty directory stays");
}

#[test]
fn where_all_have_too_much_the_largest_gives() {
    let directory = tempfile::tempdir().unwrap();
    let bounds = Bounds { segment: 4 << 10, function: 1 << 20, total: 100 << 10, ..WIDE };
    let mut segments = Segments::open(directory.path(), bounds).unwrap();
    append(&mut segments, &name("quiet"), &record(1, None, "kept"), 1).unwrap();
    for number in 2..1000 {
        append(&mut segments, &name("noisy"), &record(number, None, &"x".repeat(300)), number).unwrap();
    }
    let size = |function| segments.catalogue().extents(&name(function)).iter().map(|extent| extent.size).sum::<u64>();
    assert!(size("noisy") <= 100 << 10 && size("noisy") > 90 << 10, "{}", size("noisy"));
    assert!(size("quiet") > 0, "and no other");
}

#[test]
fn bounds_that_become_smaller_count_for_what_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let mut segments = Segments::open(directory.path(), Bounds { segment: 4 << 10, function: 1 << 20, ..WIDE }).unwrap();
    for function in ["f", "g"] {
        for number in 1..300 {
            append(&mut segments, &name(function), &record(number, None, &"x".repeat(300)), number).unwrap();
        }
    }
    let size = |segments: &Segments, function| -> u64 {
        segments.catalogue().extents(&name(function)).iter().map(|extent| extent.size).sum()
    };
    assert!(size(&segments, "f") > 64 << 10);
    segments.bound(Bounds { segment: 2 << 10, function: 32 << 10, ..WIDE });
    for function in ["f", "g"] {
        let size = size(&segments, function);
        assert!(size <= 32 << 10 && size > 24 << 10, "{size}");
    }
    segments.bound(Bounds { segment: 2 << 10, function: 32 << 10, total: 40 << 10, ..WIDE });
    assert!(size(&segments, "f") + size(&segments, "g") <= 40 << 10);
}

#[tokio::test]
async fn the_thread_takes_other_bounds_without_anything_to_write() {
    let directory = tempfile::tempdir().unwrap();
    let config =
        |log_max_mib, log_days| Config { state_dir: directory.path().into(), log_max_mib, log_days, ..Config::default() };
    let root = config(64, 1).logs_dir();
    fs::create_dir(&root).unwrap();
    let day_ago = record::millis(SystemTime::now()) - 2 * DAY_MS;
    {
        let mut segments = Segments::open(&root, WIDE).unwrap();
        append(&mut segments, &name("f"), &record(day_ago, None, "old"), day_ago).unwrap();
        let file = fs::read_dir(root.join("f")).unwrap().next().unwrap().unwrap().path();
        let time = UNIX_EPOCH + Duration::from_millis(day_ago);
        fs::File::options().write(true).open(file).unwrap().set_modified(time).unwrap();
    }
    let (store, thread) = LogStore::open(&config(64, 14)).unwrap();
    assert!(store.has(&name("f")));
    let before = store.allowance();
    store.reload(&config(32, 1));
    assert_eq!(store.allowance(), before / 2);
    let gone = async {
        while store.has(&name("f")) {
            tokio::time::sleep(Duration::from_millis(5)).await; // the pace of looking
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("kept for fourteen days, but not for one");
    drop(store);
    thread.join();
}

fn waiting(origin: &Arc<Origin>, kind: Kind, lines: &[u8], store: &LogStore) -> bool {
    store.append(&Piece { origin, request: None, kind, time: SystemTime::now(), lines })
}

#[tokio::test]
async fn what_was_appended_is_on_the_disk_when_the_store_has_ended() {
    let directory = tempfile::tempdir().unwrap();
    let (store, thread) = LogStore::open_with(directory.path(), WIDE).unwrap();
    for n in 0..1000 {
        assert!(waiting(&origin("f"), Kind::Function, format!("{n}\n").as_bytes(), &store));
    }
    drop(store);
    thread.join();
    let segments = Segments::open(directory.path(), WIDE).unwrap();
    assert_eq!(texts(&segments.catalogue(), Query::default()), (0..1000).map(|n| n.to_string()).collect::<Vec<_>>());
}

/// The directory cannot be written: as with a full disk, the lines are lost, counted, and told once there is room again.
#[tokio::test]
async fn a_disk_that_takes_nothing_costs_lines_and_says_how_many() {
    let directory = tempfile::tempdir().unwrap();
    let (store, thread) = LogStore::open_with(directory.path(), WIDE).unwrap();
    // In the place of the function's directory lies a file: nothing can be made in it, root or not.
    fs::write(directory.path().join("f"), "").unwrap();
    let mut written = store.written();
    let mut append = async |lines: &[u8]| {
        assert!(waiting(&origin("f"), Kind::Function, lines, &store));
        written.changed().await.unwrap();
    };
    append(b"1\n2\n").await;
    append(b"3\n").await;
    fs::remove_file(directory.path().join("f")).unwrap();
    append(b"4\n").await;
    append(b"5\n").await;
    let mut reader = store.read(&name("f"), Query::default()).unwrap();
    let found: Vec<_> = rest(&mut reader).iter().map(text).collect();
    let notice = "KILN: 3 lines (6 bytes) were dropped here: the log could not be written: the disk is full, or fails";
    assert_eq!(found, [notice, "4", "5"]);
    drop(store);
    thread.join();
}

#[tokio::test]
async fn a_removed_log_is_gone_and_begins_anew() {
    let directory = tempfile::tempdir().unwrap();
    let (store, thread) = LogStore::open_with(directory.path(), WIDE).unwrap();
    waiting(&origin("f"), Kind::Function, b"old\n", &store);
    store.remove(&name("f")).await;
    assert!(!store.has(&name("f")) && !directory.path().join("f").exists());
    let mut written = store.written();
    waiting(&origin("f"), Kind::Function, b"new\n", &store);
    written.changed().await.unwrap();
    assert_eq!(rest(&mut store.read(&name("f"), Query::default()).unwrap()).iter().map(text).collect::<Vec<_>>(), ["new"]);
    drop(store);
    thread.join();
}

#[test]
fn a_segment_that_could_not_be_begun_leaves_no_file_that_nobody_counts() {
    let directory = tempfile::tempdir().unwrap();
    let mut segments = Segments::open(directory.path(), WIDE).unwrap();
    fs::create_dir(directory.path().join("f")).unwrap();
    let begun = |ms: u64| directory.path().join(format!("f/{ms:013}.jsonl"));
    // Takes no byte, as a disk does that has room for a name and none for what is in the file.
    std::os::unix::fs::symlink("/dev/full", begun(1000)).unwrap();
    assert!(append(&mut segments, &name("f"), &record(1000, None, "lost"), 1000).is_err());
    assert!(fs::symlink_metadata(begun(1000)).is_err(), "what could not be written is not left behind");
    append(&mut segments, &name("f"), &record(1001, None, "kept"), 1001).unwrap();
    assert_eq!(texts(&segments.catalogue(), Query::default()), ["kept"]);
    assert_eq!(fs::read_dir(directory.path().join("f")).unwrap().count(), 1);
}

#[test]
fn an_invocation_of_many_short_lines_leaves_those_before_it_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let bounds = Bounds { segment: 64 << 10, function: 1 << 20, ..WIDE };
    let (logs, thread) = LogStore::open_with(directory.path(), bounds).unwrap();
    let mut journal = Journal::new(origin("f"), Arc::new(logs.clone()));
    journal.begin(RequestId::new(), "START of an earlier one\n".into());
    journal.begun();
    journal.begin(RequestId::new(), "START\n".into());
    // Half of what may be printed, and a hundred times of it on the disk.
    let (lines, pieces) = (b"\n".repeat(1 << 10), 128);
    for _ in 0..pieces {
        journal.function(&lines);
    }
    journal.platform("END\n");
    let catalogue = logs.0.catalogue.clone();
    drop((journal, logs));
    thread.join();
    let all = texts(&catalogue, Query::default());
    assert_eq!((&*all[0], &*all[1], &*all[all.len() - 1]), ("START of an earlier one", "START", "END"));
    let printed = all.iter().filter(|line| line.is_empty()).count();
    assert!(printed >= 1 << 10, "it may print nevertheless: {printed}");
}
