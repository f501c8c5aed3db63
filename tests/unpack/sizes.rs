//! How much: bytes, files, memory; each limit at its edge.

use std::fs;

use kiln::wire::supervisor::ZipRefusal;

use super::zips::{Entry, deflated, file, megabytes, zip};
use super::{refusal, unpack};

#[test]
fn what_is_unpacked_is_smaller_than_262144000_bytes() {
    let mut entries = megabytes(262);
    entries.push(file("rest", vec![0; 143_999]));
    assert_eq!(unpack(&zip(&entries)).succeeded().size, Some(262_143_999));
    entries.push(file("one more", "1"));
    assert_eq!(refusal(&entries), ZipRefusal::TooLarge);
}

#[test]
fn an_empty_zip_is_refused() {
    assert_eq!(refusal(&[]), ZipRefusal::Empty);
    assert_eq!(refusal(&[file("./", "")]), ZipRefusal::Empty, "the tree itself is nothing in it");
    let unpacked = unpack(&zip(&[file("empty/", "")])).succeeded();
    assert_eq!((unpacked.size, fs::read_dir(unpacked.tree()).unwrap().count()), (Some(0), 1));
}

#[test]
fn fifty_thousand_files_are_unpacked_and_not_one_more() {
    let mut entries: Vec<Entry> = (0..49_999).map(|number| file(format!("d/{number}"), "")).collect();
    let unpacked = unpack(&zip(&entries)).succeeded();
    assert_eq!(fs::read_dir(unpacked.tree().join("d")).unwrap().count(), 49_999);
    // The directory counts: it is the 50,000th.
    entries.push(file("e/", ""));
    assert_eq!(refusal(&entries), ZipRefusal::TooManyEntries);
}

#[test]
fn a_zip_in_a_zip_stays_one_file() {
    let inner = deflated(&[("zeros", 200)]);
    let unpacked = unpack(&zip(&[file("a.zip", &inner), file("b.zip", &inner)])).succeeded();
    assert_eq!(unpacked.size, Some(2 * inner.len() as u64));
    assert_eq!(fs::read(unpacked.tree().join("a.zip")).unwrap(), inner);
}

/// As large as the API takes one, and all of it names.
#[test]
fn a_directory_of_names_takes_no_endless_memory() {
    let name = |number: usize| format!("{number:0>65000}");
    let entries: Vec<Entry> = (0..400).map(|number| file(name(number), "")).collect();
    let bytes = zip(&entries);
    assert!(bytes.len() > 50_000_000);
    assert_eq!(unpack(&bytes).refusal(), ZipRefusal::BadName);
}
