//! Hostile zips against the real `kilnd unpack`: a row of the table is a test.
//!
//! ```text
//! attack                                   what comes of it   test
//! name climbs, is absolute, NUL, \\,
//!   not UTF-8                              refused            names_that_leave_the_tree_are_refused
//! `.`, empty components, odd letters       taken, plain       names::names_that_mean_a_place_inside_are_taken
//! long names, deep directories             255, 1024, 64      names::names_longer_than_a_path_may_be_are_refused
//! names that differ by case or by
//!   Unicode form                           both kept          names::names_that_differ_by_case_or_unicode_form_are_two_files
//! name in an extra field                   as any name        names::a_name_in_an_extra_field_is_a_name_like_any
//! two entries of one name                  refused            two_entries_of_one_name_are_refused
//! file and directory of one name           refused            a_file_and_a_directory_of_one_name_are_refused
//! link out of the tree                     refused            links_that_leave_the_tree_are_refused
//! link out by way of another link          refused            a_link_that_leaves_by_way_of_another_is_refused
//! link, then a file written through it     refused            nothing_is_written_through_a_link
//! links in a ring, or in a chain           taken              names::links_that_lead_nowhere_are_taken
//! hard link, in an extra field             a file of its own  names::a_hard_link_is_a_file_of_its_own
//! device, pipe, socket                     refused            devices_pipes_and_sockets_are_refused
//! device in a zip that names DOS           refused            names::a_device_is_one_whatever_system_the_zip_names
//! setuid, setgid, sticky, writable         bits are dropped   modes_keep_their_x_bits_and_nothing_else
//! readable for its author only             readable for all   modes_keep_their_x_bits_and_nothing_else
//! bomb: one file, many files               refused            bombs_are_refused_by_what_they_write
//! bomb: overlapping entries                refused            entries_that_share_bytes_are_refused
//! bomb: a zip in a zip                     stays a file       sizes::a_zip_in_a_zip_stays_one_file
//! 250 MB                                   must be smaller    sizes::what_is_unpacked_is_smaller_than_262144000_bytes
//! size in the header is a lie, also zip64  refused            a_header_that_lies_about_the_size_is_refused, headers::sizes_of_zip64_…
//! 100,000 entries                          at most 50,000     too_many_entries_are_refused, sizes::fifty_thousand_files_…
//! few entries, many directories            count too          directories_that_only_names_mention_count_too
//! four billion entries claimed             refused            a_directory_that_claims_four_billion_entries_is_refused
//! a directory of 50 MB                     in 1 GiB           sizes::a_directory_of_names_takes_no_endless_memory
//! encrypted, unknown method                refused            only_stored_and_deflated_are_taken, headers::what_is_encrypted_…
//! local header says something else         refused            headers::a_local_header_that_says_something_else_is_refused
//! data descriptor says something else      not looked at      headers::a_data_descriptor_is_not_believed
//! two central directories                  the last           headers::of_two_directories_the_last_counts
//! directory in the archive's comment       refused            headers::a_directory_in_a_comment_is_refused
//! bytes before; bytes behind               taken; refused     headers::bytes_before_a_zip_change_nothing_…
//! several disks                            refused            headers::one_disk_of_several_is_refused
//! no entry at all                          refused            sizes::an_empty_zip_is_refused
//! cut off anywhere                         refused            a_zip_cut_off_anywhere_is_refused
//! any byte changed                         an answer          a_zip_with_any_byte_changed_ends_in_an_answer
//! code that runs in the process            killed             calls::every_other_call_ends_the_process
//! disk full while it writes                refused, our text  tests/disk.rs
//! ```
//!
//! What surrounds the process (user id, capabilities, filter) is looked at in tests/supervisor.rs, where the supervisor
//! starts it. What comes of a refusal at the door: tests/api/zips.rs; of a program for another machine: tests/engine/code.rs.

#[path = "unpack/calls.rs"]
mod calls;
#[path = "unpack/headers.rs"]
mod headers;
#[path = "unpack/names.rs"]
mod names;
#[path = "unpack/sizes.rs"]
mod sizes;
#[path = "unpack/zips.rs"]
#[allow(dead_code)] // serves two test programs; each uses its part
mod zips;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kiln::wire::supervisor::ZipRefusal;
use zips::{Entry, end, end_64, file, link, with_mode, zip};

/// How one `kilnd unpack` ended.
struct Unpacked {
    code: i32,
    size: Option<u64>,
    directory: tempfile::TempDir,
    stderr: String,
}

impl Unpacked {
    fn tree(&self) -> PathBuf {
        self.directory.path().join("staging/tree")
    }

    #[track_caller]
    fn succeeded(self) -> Self {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self
    }

    #[track_caller]
    fn refusal(&self) -> ZipRefusal {
        let place = usize::try_from(self.code - 64).ok().and_then(|place| ZipRefusal::ALL.get(place));
        assert_eq!(self.size, None, "a refused zip has no size");
        *place.unwrap_or_else(|| panic!("no refusal but code {}: {}", self.code, self.stderr))
    }
}

/// In memory, where there is some: a busy disk takes minutes for the 50,000 directories of one test here.
fn room() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// Descriptors as the supervisor places them: 3 zip, 4 staging, 5 life pipe (our end of stdin), 6 size.
fn unpack(zip: &[u8]) -> Unpacked {
    let directory = room();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("zip"), zip).unwrap();
    fs::create_dir(path("staging")).unwrap();
    // One that hangs is killed: 137.
    // As much memory as the supervisor allows.
    let script = r#"ulimit -v 1048576; exec timeout -s KILL 60 "$0" unpack 3<"$1/zip" 4<"$1/staging" 5<&0 6>"$1/size""#;
    let mut child = Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_kilnd")])
        .arg(directory.path())
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let alive = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(alive);
    let size = fs::read(path("size")).unwrap();
    Unpacked {
        code: output.status.code().unwrap_or(-1),
        size: size.try_into().ok().map(u64::from_le_bytes),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        directory,
    }
}

#[track_caller]
fn refusal(entries: &[Entry]) -> ZipRefusal {
    unpack(&zip(entries)).refusal()
}

#[test]
fn an_ordinary_zip_becomes_its_tree() {
    let unpacked = unpack(&zip(&[
        file("index.js", "exports.handler"),
        file("lib/", ""),
        file("lib/deep/er/a.txt", "abc"),
        with_mode(file("bootstrap", "#!"), 0o100_755),
        link("lib/link", "../index.js"),
        file("ReadMe", "1"),
        file("readme", "2"),
    ]))
    .succeeded();
    assert_eq!(unpacked.size, Some(15 + 3 + 2 + 11 + 1 + 1));
    let tree = unpacked.tree();
    assert_eq!(fs::read(tree.join("lib/deep/er/a.txt")).unwrap(), b"abc");
    assert_eq!(fs::read(tree.join("lib/link")).unwrap(), b"exports.handler");
    assert_eq!(fs::read(tree.join("readme")).unwrap(), b"2", "names differ by case only");
}

#[test]
fn what_is_deflated_is_inflated() {
    let unpacked = unpack(&zips::deflated(&[("zeros", 3)])).succeeded();
    assert_eq!(unpacked.size, Some(3 << 20));
    assert_eq!(fs::metadata(unpacked.tree().join("zeros")).unwrap().len(), 3 << 20);
}

#[test]
fn names_that_leave_the_tree_are_refused() {
    for name in [&b"../x"[..], b"a/../../x", b"/etc/x", b"a\\..\\..\\x", b"a\0b", b"\xff\xfe", b"a/../b"] {
        assert_eq!(refusal(&[file(name, "x")]), ZipRefusal::BadName, "{}", String::from_utf8_lossy(name));
    }
}

#[test]
fn links_that_leave_the_tree_are_refused() {
    for target in ["/etc/passwd", "..", "../../x", "a/../../x", "", &"a/".repeat(2100)] {
        assert_eq!(refusal(&[link("l", target)]), ZipRefusal::BadLink, "{target:.20}");
    }
}

#[test]
fn a_link_that_leaves_by_way_of_another_is_refused() {
    // Read as words, `x` is d1/d2. Followed, it is the parent of the tree.
    let entries = [file("d1/d2/f", ""), link("d1/d2/up", "../.."), link("x", "d1/d2/up/..")];
    assert_eq!(refusal(&entries), ZipRefusal::BadLink);
}

#[test]
fn nothing_is_written_through_a_link() {
    let through_directory = [file("d/f", ""), link("l", "d"), file("l/g", "x")];
    let unpacked = unpack(&zip(&through_directory));
    assert_eq!(unpacked.refusal(), ZipRefusal::BadLink);
    assert!(!unpacked.tree().join("d/g").exists());

    let through_file = [file("f", "kept"), link("l", "f"), file("./l", "lost")];
    let unpacked = unpack(&zip(&through_file));
    assert_eq!(unpacked.refusal(), ZipRefusal::Overlapping);
    assert_eq!(fs::read(unpacked.tree().join("f")).unwrap(), b"kept");
}

#[test]
fn devices_pipes_and_sockets_are_refused() {
    for kind in [libc::S_IFCHR, libc::S_IFBLK, libc::S_IFIFO, libc::S_IFSOCK, 0o170_000] {
        assert_eq!(refusal(&[with_mode(file("x", ""), kind | 0o644)]), ZipRefusal::BadKind, "{kind:o}");
    }
    assert_eq!(refusal(&[with_mode(file("x/", "t"), 0o120_777)]), ZipRefusal::BadKind, "a link that is a directory");
}

#[test]
fn modes_keep_their_x_bits_and_nothing_else() {
    let rows = [
        (0o104_755, 0o755),
        (0o102_777, 0o755),
        (0o101_777, 0o755),
        (0o107_000, 0o644),
        (0o100_000, 0o644),
        (0o100_700, 0o744),
        (0, 0o644),
        (0o100_666, 0o644),
    ];
    for (zipped, expected) in rows {
        let unpacked = unpack(&zip(&[with_mode(file("d/x", ""), zipped), with_mode(file("e", ""), 0o040_700)])).succeeded();
        let mode = |path: &str| fs::symlink_metadata(unpacked.tree().join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("d/x"), mode("d"), mode("e"), mode("")), (expected, 0o755, 0o755, 0o755), "{zipped:o}");
    }
}

#[test]
fn bombs_are_refused_by_what_they_write() {
    assert_eq!(unpack(&zips::deflated(&[("one", 300)])).refusal(), ZipRefusal::TooLarge);
    let names: Vec<String> = (0..30).map(|number| format!("{number}")).collect();
    let many: Vec<(&str, usize)> = names.iter().map(|name| (name.as_str(), 10)).collect();
    assert_eq!(unpack(&zips::deflated(&many)).refusal(), ZipRefusal::TooLarge);
}

#[test]
fn entries_that_share_bytes_are_refused() {
    let first = file("a", "data");
    // Its own header nowhere, its data the other's.
    let second = Entry { name: b"b".to_vec(), offset: Some(0), ..first.clone() };
    assert_eq!(refusal(&[first, second]), ZipRefusal::Overlapping);
}

#[test]
fn a_header_that_lies_about_the_size_is_refused() {
    // The library stops where the data stops; what it then has, has the wrong checksum.
    let short = Entry { size: 1 << 30, crc: 7, ..file("a", "data") };
    assert_eq!(refusal(&[short]), ZipRefusal::Unreadable);
    let mut bomb = zips::deflated(&[("bomb", 300)]);
    let size = (300u32 << 20).to_le_bytes();
    while let Some(at) = bomb.windows(4).position(|window| window == size) {
        bomb[at..at + 4].copy_from_slice(&10u32.to_le_bytes());
    }
    assert!(matches!(unpack(&bomb).refusal(), ZipRefusal::TooLarge | ZipRefusal::Unreadable));
}

#[test]
fn two_entries_of_one_name_are_refused() {
    assert_eq!(refusal(&[file("a", "1"), file("a", "2")]), ZipRefusal::Overlapping);
    assert_eq!(refusal(&[file("a", "1"), file("./a", "2")]), ZipRefusal::Overlapping);
}

#[test]
fn a_file_and_a_directory_of_one_name_are_refused() {
    for entries in [
        [file("a", ""), file("a/b", "")],
        [file("a/b", ""), file("a", "")],
        [file("a", ""), file("a/", "")],
        [file("a/", ""), file("a", "")],
    ] {
        assert_eq!(refusal(&entries), ZipRefusal::Overlapping);
    }
}

#[test]
fn too_many_entries_are_refused() {
    let entries: Vec<Entry> = (0..100_000).map(|number| file(format!("{number}"), "")).collect();
    let mut bytes = zip(&entries);
    // More than 16 bits can say: the same with zip64's records.
    let start = bytes.windows(4).position(|window| window == b"PK\x01\x02").unwrap() as u64;
    bytes.truncate(bytes.len() - 22);
    let at = bytes.len() as u64;
    bytes.extend(end_64(100_000, at - start, start, at));
    bytes.extend(end(0xffff, 0xffff_ffff, 0xffff_ffff));
    assert_eq!(unpack(&bytes).refusal(), ZipRefusal::TooManyEntries);
    assert_eq!(refusal(&entries[..50_001]), ZipRefusal::TooManyEntries);
}

#[test]
fn directories_that_only_names_mention_count_too() {
    let entries: Vec<Entry> = (0..1000).map(|number| file(format!("{number}/{}x", "d/".repeat(60)), "")).collect();
    assert_eq!(refusal(&entries), ZipRefusal::TooManyEntries);
}

#[test]
fn a_directory_that_claims_four_billion_entries_is_refused() {
    let mut bytes = zip(&[file("a", "1")]);
    let start = bytes.windows(4).position(|window| window == b"PK\x01\x02").unwrap() as u64;
    bytes.truncate(bytes.len() - 22);
    let at = bytes.len() as u64;
    bytes.extend(end_64(4_000_000_000, at - start, start, at));
    bytes.extend(end(0xffff, 0xffff_ffff, 0xffff_ffff));
    assert_eq!(unpack(&bytes).refusal(), ZipRefusal::TooManyEntries);
    // Where the last record is sane and an earlier one is not, they do not agree.
    bytes.extend(end(2, 10, 0));
    unpack(&bytes).refusal();
}

#[test]
fn only_stored_and_deflated_are_taken() {
    for method in [1, 9, 12, 14, 93, 95, 98, 0xffff] {
        assert_eq!(refusal(&[Entry { method, ..file("a", "x") }]), ZipRefusal::BadMethod, "{method}");
    }
    // WinZip's AES, of which there is nothing but the number.
    assert_eq!(refusal(&[Entry { method: 99, ..file("a", "x") }]), ZipRefusal::Unreadable);
    assert_eq!(refusal(&[Entry { flags: 1, ..file("a", "0123456789abcdef") }]), ZipRefusal::BadMethod, "encrypted");
}

#[test]
fn a_bad_checksum_is_refused() {
    assert_eq!(refusal(&[Entry { crc: 1, ..file("a", "data") }]), ZipRefusal::Unreadable);
}

#[test]
fn a_central_directory_somewhere_else_is_refused() {
    let mut bytes = zip(&[file("a", "1"), file("b", "2")]);
    let at = bytes.len() - 6;
    for start in [0u32, 7, 0x7fff_ffff] {
        bytes[at..at + 4].copy_from_slice(&start.to_le_bytes());
        let code = unpack(&bytes).code;
        assert!(code == 0 || (64..64 + ZipRefusal::ALL.len() as i32).contains(&code), "{code}");
    }
    let pointing_nowhere = Entry { offset: Some(0x7fff_ffff), ..file("a", "1") };
    assert_eq!(refusal(&[pointing_nowhere]), ZipRefusal::Unreadable);
}

#[test]
fn a_zip_cut_off_anywhere_is_refused() {
    let stored = zip(&[file("a/b.txt", "some data"), link("a/l", "b.txt")]);
    for whole in [stored, zips::deflated_text(&[("d.txt", "some data, some data, some data"), ("e/f", "g")])] {
        for length in 0..whole.len() {
            assert_eq!(unpack(&whole[..length]).refusal(), ZipRefusal::Unreadable, "cut at {length} of {}", whole.len());
        }
        unpack(&whole).succeeded();
    }
}

#[test]
fn a_zip_with_any_byte_changed_ends_in_an_answer() {
    let whole = zip(&[file("a/b.txt", "some data"), link("a/l", "b.txt")]);
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 0xff;
        let unpacked = unpack(&changed);
        assert!(
            unpacked.code == 0 || (64..64 + ZipRefusal::ALL.len() as i32).contains(&unpacked.code),
            "byte {at}: code {}, {}",
            unpacked.code,
            unpacked.stderr
        );
    }
}

#[test]
fn an_unpack_whose_supervisor_is_gone_does_not_start() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("zip"), zip(&[file("a", "1")])).unwrap();
    // `true | …`: the pipe's only writer is gone.
    let script = r#"sleep 0 | { while read -r _; do :; done; exec "$0" unpack 3<"$1/zip" 4<"$1" 5<&0 6>"$1/size"; }"#;
    let status = Command::new("bash").args(["-c", script, env!("CARGO_BIN_EXE_kilnd")]).arg(directory.path()).status().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(!directory.path().join("tree").exists());
}
