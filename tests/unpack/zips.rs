//! Zips byte by byte, so that they can lie in every field.

/// One entry, as honest as its fields.
#[derive(Clone)]
pub struct Entry {
    pub name: Vec<u8>,
    /// As stored, compressed if `method` says so.
    pub data: Vec<u8>,
    /// Unix mode with its type bits; 0 is a zip without modes.
    pub mode: u32,
    pub method: u16,
    pub flags: u16,
    pub crc: u32,
    pub size: u32,
    /// Where the central directory says that the local header is, if not where it is.
    pub offset: Option<u32>,
}

pub fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Entry {
    let data = data.as_ref().to_vec();
    Entry {
        name: name.as_ref().to_vec(),
        mode: 0o100_644,
        method: 0,
        flags: 0,
        crc: crc32(&data),
        size: data.len() as u32,
        offset: None,
        data,
    }
}

pub fn with_mode(mut entry: Entry, mode: u32) -> Entry {
    entry.mode = mode;
    entry
}

pub fn link(name: &str, target: impl AsRef<[u8]>) -> Entry {
    with_mode(file(name, target), 0o120_777)
}

/// Files `1`, `2`, … of a million bytes each.
pub fn megabytes(count: usize) -> Vec<Entry> {
    let one = file("", vec![0; 1_000_000]);
    (1..=count).map(|number| Entry { name: number.to_string().into_bytes(), ..one.clone() }).collect()
}

/// The whole zip.
pub fn zip(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut directory = Vec::new();
    for entry in entries {
        let offset = entry.offset.unwrap_or(bytes.len() as u32);
        let mut common = Vec::new();
        common.extend(entry.flags.to_le_bytes());
        common.extend(entry.method.to_le_bytes());
        common.extend([0, 0, 0x21, 0x28]); // midnight, 1 January 2000
        common.extend(entry.crc.to_le_bytes());
        common.extend((entry.data.len() as u32).to_le_bytes());
        common.extend(entry.size.to_le_bytes());
        common.extend((entry.name.len() as u16).to_le_bytes());
        common.extend([0, 0]);

        if entry.offset.is_none() {
            bytes.extend(b"PK\x03\x04\x14\0");
            bytes.extend(&common);
            bytes.extend(&entry.name);
            bytes.extend(&entry.data);
        }
        directory.extend(b"PK\x01\x02\x14\x03\x14\0");
        directory.extend(&common);
        directory.extend([0; 6]);
        directory.extend((entry.mode << 16).to_le_bytes());
        directory.extend(offset.to_le_bytes());
        directory.extend(&entry.name);
    }
    let start = bytes.len() as u32;
    bytes.extend(&directory);
    bytes.extend(end(entries.len() as u16, directory.len() as u32, start));
    bytes
}

/// The record at the end of a zip.
pub fn end(entries: u16, length: u32, start: u32) -> Vec<u8> {
    let mut record = b"PK\x05\x06\0\0\0\0".to_vec();
    record.extend(entries.to_le_bytes());
    record.extend(entries.to_le_bytes());
    record.extend(length.to_le_bytes());
    record.extend(start.to_le_bytes());
    record.extend([0, 0]);
    record
}

/// What goes before the end record of a zip64.
pub fn end_64(entries: u64, length: u64, start: u64, at: u64) -> Vec<u8> {
    let mut record = b"PK\x06\x06".to_vec();
    record.extend(44u64.to_le_bytes());
    record.extend([45, 3, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for number in [entries, entries, length, start] {
        record.extend(number.to_le_bytes());
    }
    record.extend(b"PK\x06\x07\0\0\0\0");
    record.extend(at.to_le_bytes());
    record.extend(1u32.to_le_bytes());
    record
}

/// Deflated by the library that also reads it.
pub fn deflated(entries: &[(&str, usize)]) -> Vec<u8> {
    use std::io::Write;
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let zeros = vec![0; 1 << 20];
    for (name, mebibytes) in entries {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        for _ in 0..*mebibytes {
            writer.write_all(&zeros).unwrap();
        }
    }
    writer.finish().unwrap().into_inner()
}

fn crc32(data: &[u8]) -> u32 {
    let mut crc = !0;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}
