//! Headers that lie: what a zip says twice, in two ways.

use std::fs;

use kiln::wire::supervisor::ZipRefusal;

use super::zips::{Entry, Local, deflated_text, end, extra, file, zip};
use super::{Unpacked, refusal, unpack};

fn with_local(local: Local) -> Entry {
    Entry { local, ..file("name", "data") }
}

fn names(unpacked: &Unpacked) -> Vec<String> {
    let entries = fs::read_dir(unpacked.tree()).unwrap().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_local_header_that_says_something_else_is_refused() {
    for (what, local) in [
        ("another name", Local { name: Some(b"evil".to_vec()), ..Local::default() }),
        ("a climbing name", Local { name: Some(b"../e".to_vec()), ..Local::default() }),
        ("a longer name", Local { name: Some(b"name2".to_vec()), ..Local::default() }),
        ("a shorter name", Local { name: Some(b"nam".to_vec()), ..Local::default() }),
        ("another method", Local { method: Some(8), ..Local::default() }),
        ("encryption", Local { flags: Some(1), ..Local::default() }),
        ("another length", Local { length: Some(3), ..Local::default() }),
    ] {
        let refused = unpack(&zip(&[with_local(local)])).refusal();
        assert!(matches!(refused, ZipRefusal::Overlapping | ZipRefusal::Unreadable), "{what}: {refused:?}");
    }
    let deflated = deflated_text(&[("a", "aaaaaaaaaaaaaaaa")]);
    unpack(&deflated).succeeded();
    let mut stored_locally = deflated;
    stored_locally[8] = 0;
    assert_eq!(unpack(&stored_locally).refusal(), ZipRefusal::Overlapping);
}

/// As streaming writers make them: nothing in the local header, and what was left out behind the data.
#[test]
fn a_data_descriptor_is_not_believed() {
    let streamed = Local { flags: Some(8), crc: Some(0), length: Some(0), size: Some(0), ..Local::default() };
    let descriptor = |crc: u32, length: u32, size: u32| {
        [b"PK\x07\x08", &crc.to_le_bytes()[..], &length.to_le_bytes(), &size.to_le_bytes()].concat()
    };
    for behind in [descriptor(file("", "data").crc, 4, 4), descriptor(7, 0xffff_fffe, 9), vec![], b"PK\x03\x04junk".to_vec()] {
        let entry = Entry { flags: 8, local: streamed.clone(), behind, ..file("name", "data") };
        let unpacked = unpack(&zip(&[entry, file("next", "")])).succeeded();
        assert_eq!(fs::read(unpacked.tree().join("name")).unwrap(), b"data");
        assert_eq!((names(&unpacked).len(), unpacked.size), (2, Some(4)));
    }
}

#[test]
fn sizes_of_zip64_are_refused_where_they_lie() {
    let sizes = |size: u64, length: u64| extra(1, &[size.to_le_bytes(), length.to_le_bytes()].concat());
    let entry =
        |extra| Entry { size: u32::MAX, local: Local { length: Some(u32::MAX), ..Local::default() }, extra, ..file("a", "data") };
    for lie in [sizes(1 << 62, 4), sizes(u64::MAX, u64::MAX), sizes(4, 1 << 40), sizes(300 << 20, 4), extra(1, &[1, 2, 3])] {
        let mut bytes = zip(&[entry(lie)]);
        // The length, too, stands in the extra field.
        let directory = bytes.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
        bytes[directory + 20..directory + 24].copy_from_slice(&u32::MAX.to_le_bytes());
        let refused = unpack(&bytes).refusal();
        assert!(matches!(refused, ZipRefusal::Unreadable | ZipRefusal::TooLarge), "{refused:?}");
    }
    let mut honest = zip(&[entry(sizes(4, 4))]);
    let directory = honest.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    honest[directory + 20..directory + 24].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(unpack(&honest).succeeded().size, Some(4));
}

#[test]
fn what_is_encrypted_in_any_way_is_refused() {
    for flags in [1, 0x41, 0x2041] {
        let entry = Entry { flags, ..file("a", "0123456789abcdef") };
        assert_eq!(refusal(&[entry]), ZipRefusal::BadMethod, "{flags:x}");
    }
}

#[test]
fn of_two_directories_the_last_counts() {
    let both = [zip(&[file("first", "1")]), zip(&[file("second", "2")])].concat();
    assert_eq!(names(&unpack(&both).succeeded()), ["second"]);
}

/// Some readers take the outer one, some the inner.
#[test]
fn a_directory_in_a_comment_is_refused() {
    let inner = zip(&[file("inner", "2")]);
    let with_comment = |comment: &[u8]| {
        let mut outer = zip(&[file("outer", "1")]);
        let at = outer.len() - 2;
        outer[at..].copy_from_slice(&(comment.len() as u16).to_le_bytes());
        [&outer, comment].concat()
    };
    assert_eq!(unpack(&with_comment(&inner)).refusal(), ZipRefusal::Unreadable);
    // A comment is no directory as long as it holds none.
    assert_eq!(names(&unpack(&with_comment(b"hello")).succeeded()), ["outer"]);
}

/// As self-extracting archives have them.
#[test]
fn bytes_before_a_zip_change_nothing_and_bytes_behind_it_are_refused() {
    let whole = zip(&[file("a", "1"), file("b/c", "2")]);
    for before in [&b"#!/bin/sh\nexec unzip\n"[..], &[0; 5000]] {
        let unpacked = unpack(&[before, &whole].concat()).succeeded();
        assert_eq!((names(&unpacked), unpacked.size), (vec!["a".to_owned(), "b".to_owned()], Some(2)));
    }
    for behind in [&b"\n"[..], b"</html>", &[0; 5000]] {
        assert_eq!(unpack(&[&whole, behind].concat()).refusal(), ZipRefusal::Unreadable);
    }
}

#[test]
fn one_disk_of_several_is_refused() {
    let whole = zip(&[file("a", "1")]);
    let (body, record) = whole.split_at(whole.len() - 22);
    for field in [4, 6] {
        let mut record = record.to_vec();
        record[field] = 1;
        assert_eq!(unpack(&[body, &record].concat()).refusal(), ZipRefusal::Unreadable, "field at {field}");
    }
    // The number of entries of this disk and of all.
    let mut record = end(1, 0, 0);
    record[10..12].copy_from_slice(&2u16.to_le_bytes());
    record[12..20].copy_from_slice(&whole[whole.len() - 10..whole.len() - 2]);
    unpack(&[body, &record].concat()).refusal();
}
