//! Names and kinds: what an entry may be called, and what it may claim to be.

use std::fs;
use std::os::unix::fs::MetadataExt;

use kiln::wire::supervisor::ZipRefusal;

use super::zips::{Entry, crc32, extra, file, link, with_mode, zip};
use super::{refusal, unpack};

#[test]
fn names_that_mean_a_place_inside_are_taken() {
    for (name, place) in [
        ("./a", "a"),
        ("b//c", "b/c"),
        ("d/./e", "d/e"),
        ("..f", "..f"),
        ("C:g", "C:g"),
        ("-rf", "-rf"),
        ("with space", "with space"),
        ("line\nend", "line\nend"),
        ("%2e%2e%2fx", "%2e%2e%2fx"),
        ("…/日本語", "…/日本語"),
    ] {
        let unpacked = unpack(&zip(&[file(".", ""), file("./", ""), file(name, "x")])).succeeded();
        assert_eq!(fs::read(unpacked.tree().join(place)).unwrap(), b"x", "{name:?}");
        assert_eq!(fs::read_dir(unpacked.tree()).unwrap().count(), 1, "{name:?}");
        assert_eq!(fs::read_dir(unpacked.directory.path().join("staging")).unwrap().count(), 1, "{name:?}");
    }
}

#[test]
fn names_longer_than_a_path_may_be_are_refused() {
    let part = "n".repeat(255);
    let four_parts = [&part[..]; 4].join("/");
    assert_eq!(four_parts.len(), 1023);
    let deep = format!("{}f", "d/".repeat(63));
    for good in [&part, &four_parts, &deep] {
        let unpacked = unpack(&zip(&[file(good, "x")])).succeeded();
        assert_eq!(fs::read(unpacked.tree().join(good)).unwrap(), b"x");
    }
    let long = format!("{four_parts}/{part}/{part}");
    for bad in [format!("{part}n"), format!("d/{part}n/f"), long, "a/".repeat(3000), format!("d/{deep}"), "n".repeat(65_535)] {
        assert_eq!(refusal(&[file(&bad, "x")]), ZipRefusal::BadName, "{} bytes", bad.len());
    }
}

#[test]
fn names_that_differ_by_case_or_unicode_form_are_two_files() {
    // One letter, and a letter with an accent.
    let names = ["Index.js", "index.js", "caf\u{e9}", "cafe\u{301}"];
    let entries: Vec<Entry> = names.iter().map(|name| file(name, name)).collect();
    let unpacked = unpack(&zip(&entries)).succeeded();
    for name in names {
        assert_eq!(fs::read(unpacked.tree().join(name)).unwrap(), name.as_bytes());
    }
}

/// Info-ZIP's Unicode path: it replaces the name, for those who know it.
#[test]
fn a_name_in_an_extra_field_is_a_name_like_any() {
    let with = |raw: &str, unicode: &str| {
        let field = [&[1][..], &crc32(raw.as_bytes()).to_le_bytes(), unicode.as_bytes()].concat();
        Entry { extra: extra(0x7075, &field), ..file(raw, "x") }
    };
    assert_eq!(refusal(&[with("good", "../bad")]), ZipRefusal::BadName);
    assert_eq!(refusal(&[with("good", "/bad")]), ZipRefusal::BadName);
    let unpacked = unpack(&zip(&[with("#U00e9", "é")])).succeeded();
    assert_eq!(fs::read_dir(unpacked.tree()).unwrap().count(), 1);
    assert_eq!(fs::read(unpacked.tree().join("é")).unwrap(), b"x");
}

#[test]
fn links_that_lead_nowhere_are_taken() {
    let mut entries = vec![link("ring/a", "b"), link("ring/b", "a"), link("self", "self"), link("dangling", "not/there")];
    // Longer than the kernel follows for anybody.
    entries.extend((0..60).map(|at| link(&format!("chain/{at}"), format!("{}", at + 1))));
    entries.push(file("through/a/file", ""));
    entries.push(link("through/link", "a/file/x"));
    let unpacked = unpack(&zip(&entries)).succeeded();
    assert_eq!(fs::read_link(unpacked.tree().join("chain/7")).unwrap().to_str(), Some("8"));
}

/// The format has none but in PKWARE's Unix field, which holds the other name.
#[test]
fn a_hard_link_is_a_file_of_its_own() {
    let field = [&[0; 12][..], b"/etc/passwd"].concat();
    let entries = [file("a", "1"), Entry { extra: extra(0x000d, &field), ..file("b", "2") }];
    let unpacked = unpack(&zip(&entries)).succeeded();
    let about = fs::metadata(unpacked.tree().join("b")).unwrap();
    assert_eq!((about.nlink(), about.len()), (1, 1));
}

/// The library reads Unix modes out of every zip, and so do others: what is no file there is none here.
#[test]
fn a_device_is_one_whatever_system_the_zip_names() {
    for system in [0, 10, 19, 255] {
        let entry = |mode| Entry { system, ..with_mode(file("x", "data"), mode) };
        assert_eq!(refusal(&[entry(libc::S_IFCHR | 0o644)]), ZipRefusal::BadKind, "{system}");
        let unpacked = unpack(&zip(&[entry(libc::S_IFREG | 0o4755)])).succeeded();
        assert_eq!(fs::metadata(unpacked.tree().join("x")).unwrap().mode() & 0o7777, 0o755, "{system}");
    }
}
