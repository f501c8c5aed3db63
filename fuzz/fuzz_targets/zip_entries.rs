//! Zips by their parts: entries with names, kinds and lies of the fuzzer's choice, put together with right checksums.
//!
//! Random bytes hardly ever get past a zip's offsets and checksums; these do, and reach what makes files.

#![no_main]

mod staging;

use kiln::inside::unpack::{Ending, Place};
use kiln::wire::supervisor::ZipRefusal;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Entry<'a> {
    name: Name<'a>,
    kind: Kind,
    data: Data<'a>,
    lie: Lie,
}

/// Short words collide with each other, which is where it becomes interesting.
#[derive(Debug, Arbitrary)]
enum Name<'a> {
    Parts(Vec<Part>),
    Raw(&'a [u8]),
}

#[derive(Debug, Arbitrary)]
enum Part {
    A,
    B,
    Empty,
    Dot,
    Up,
    Long(u8),
}

#[derive(Debug, Arbitrary)]
enum Kind {
    /// Made on a system without modes.
    None,
    File(u16),
    Directory,
    Link,
    Any(u16),
}

#[derive(Debug, Arbitrary)]
enum Data<'a> {
    Raw(&'a [u8]),
    /// Mostly the target of a link.
    Name(Name<'a>),
}

#[derive(Debug, Arbitrary)]
enum Lie {
    None,
    Method(u16),
    Flags(u16),
    Checksum(u32),
    Size(u32),
    CompressedSize(u32),
    Offset(u32),
    OtherNameInside,
}

impl Name<'_> {
    fn bytes(&self) -> Vec<u8> {
        let part = |part: &Part| match part {
            Part::A => "a".to_owned(),
            Part::B => "b".to_owned(),
            Part::Empty => String::new(),
            Part::Dot => ".".to_owned(),
            Part::Up => "..".to_owned(),
            Part::Long(length) => "l".repeat(usize::from(*length) + 1),
        };
        match self {
            Self::Parts(parts) => parts.iter().map(part).collect::<Vec<_>>().join("/").into_bytes(),
            Self::Raw(bytes) => bytes.to_vec(),
        }
    }
}

impl Entry<'_> {
    fn data(&self) -> Vec<u8> {
        match &self.data {
            Data::Raw(bytes) => bytes.to_vec(),
            Data::Name(name) => name.bytes(),
        }
    }

    /// "Version made by", and the external attributes.
    fn attributes(&self) -> (u16, u32) {
        let unix = |mode: u32| (3 << 8 | 20, mode << 16);
        match self.kind {
            Kind::None => (20, 0),
            Kind::File(mode) => unix(libc::S_IFREG | u32::from(mode) & 0o7777),
            Kind::Directory => unix(libc::S_IFDIR | 0o755),
            Kind::Link => unix(libc::S_IFLNK | 0o777),
            Kind::Any(mode) => unix(mode.into()),
        }
    }
}

/// As APPNOTE has it: local headers with their data, the directory, the end record.
fn zip(entries: &[Entry]) -> Vec<u8> {
    let (mut zip, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let (name, data, (made_by, attributes)) = (entry.name.bytes(), entry.data(), entry.attributes());
        let lie = |honest: u32, lie: Option<u32>| lie.unwrap_or(honest);
        let length = data.len() as u32;
        let of = |pick: fn(&Lie) -> Option<u32>| pick(&entry.lie);
        let flags = lie(1 << 11, of(|lie| if let Lie::Flags(flags) = lie { Some((*flags).into()) } else { None })) as u16;
        let method = lie(0, of(|lie| if let Lie::Method(method) = lie { Some((*method).into()) } else { None })) as u16;
        let checksum = lie(crc32(&data), of(|lie| if let Lie::Checksum(sum) = lie { Some(*sum) } else { None }));
        let packed = lie(length, of(|lie| if let Lie::CompressedSize(size) = lie { Some(*size) } else { None }));
        let size = lie(length, of(|lie| if let Lie::Size(size) = lie { Some(*size) } else { None }));
        let offset = lie(zip.len() as u32, of(|lie| if let Lie::Offset(offset) = lie { Some(*offset) } else { None }));
        let mut common = Vec::new();
        for number in [20, flags, method, 0, 0x21] {
            common.extend(number.to_le_bytes());
        }
        for number in [checksum, packed, size] {
            common.extend(number.to_le_bytes());
        }
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);

        zip.extend(b"PK\x03\x04");
        zip.extend(&common);
        let inner: &[u8] = if matches!(entry.lie, Lie::OtherNameInside) { b"../../x" } else { &name };
        // The length is the directory's, so that the data begins where an honest reader looks for it.
        zip.extend(inner.iter().copied().chain(std::iter::repeat(b'x')).take(name.len()));
        zip.extend(&data);

        directory.extend(b"PK\x01\x02");
        directory.extend(made_by.to_le_bytes());
        directory.extend(&common);
        directory.extend([0; 6]);
        directory.extend(attributes.to_le_bytes());
        directory.extend(offset.to_le_bytes());
        directory.extend(&name);
    }
    let (start, length, count) = (zip.len() as u32, directory.len() as u32, entries.len() as u16);
    zip.extend(directory);
    zip.extend(b"PK\x05\x06\0\0\0\0");
    zip.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    zip.extend([length.to_le_bytes(), start.to_le_bytes()].concat());
    zip.extend([0, 0]);
    zip
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| if sum & 1 == 1 { 0xedb8_8320 ^ sum >> 1 } else { sum >> 1 })
    })
}

fuzz_target!(|entries: Vec<Entry>| {
    for entry in &entries {
        check_name(&entry.name.bytes(), &entry.data());
    }
    let result = staging::extract(&zip(&entries));
    // A zip whose parts agree with each other is refused for what it says, if at all, never for how it is written. (But a
    // name may look like the locator of a zip64, right where that one would be: such a zip has two meanings.)
    let looks_otherwise = |entry: &Entry| entry.name.bytes().windows(4).any(|bytes| bytes == b"PK\x06\x07");
    if entries.iter().all(|entry| matches!(entry.lie, Lie::None) && !looks_otherwise(entry)) {
        assert!(!matches!(result, Err(ZipRefusal::Unreadable | ZipRefusal::BadMethod)), "{result:?}");
    }
    // And one with a name that leaves the tree is never taken, whatever else it says.
    if entries.iter().any(|entry| entry.name.bytes().split(|byte| *byte == b'/').any(|part| part == b"..")) {
        assert!(result.is_err(), "a name with `..` was taken");
    }
});

/// What a name is turned into says only one thing; where it lies, links may not point out.
fn check_name(name: &[u8], target: &[u8]) {
    let Ok(Some((place, ending))) = Place::parse(name) else { return };
    let parts: Vec<&str> = place.as_str().split('/').collect();
    assert!(parts.iter().all(|part| !matches!(*part, "" | "." | "..")), "{place:?} out of {name:?}");
    assert!(parts.len() <= 64 && !place.as_str().contains(['\0', '\\']), "{place:?}");
    assert_eq!(Place::parse(place.as_str().as_bytes()), Ok(Some((place.clone(), Ending::Plain))), "parsed twice");
    assert!(ending == Ending::Slash || !name.ends_with(b"/"));
    if place.may_point_at(target) {
        let mut depth = parts.len() as i64 - 1;
        for part in target.split(|byte| *byte == b'/') {
            depth += match part {
                b"" | b"." => 0,
                b".." => -1,
                _ => 1,
            };
            assert!(depth >= 0, "a link at {place:?} to {target:?} leaves the tree");
        }
        assert!(!target.starts_with(b"/"));
    }
}
