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
    /// What the local header says, if something else.
    pub local: Local,
    /// Extra fields, in both.
    pub extra: Vec<u8>,
    /// Bytes behind the data: where a descriptor would be.
    pub behind: Vec<u8>,
    /// The system that `mode` is of: 3 is Unix, 0 is DOS.
    pub system: u8,
}

#[derive(Clone, Default)]
pub struct Local {
    pub name: Option<Vec<u8>>,
    pub method: Option<u16>,
    pub flags: Option<u16>,
    pub crc: Option<u32>,
    pub length: Option<u32>,
    pub size: Option<u32>,
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
        local: Local::default(),
        extra: vec![],
        behind: vec![],
        system: 3,
        data,
    }
}

/// One extra field.
pub fn extra(id: u16, data: &[u8]) -> Vec<u8> {
    [&id.to_le_bytes()[..], &(data.len() as u16).to_le_bytes(), data].concat()
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
        let Entry { flags, method, crc, size, .. } = *entry;
        let (length, local) = (entry.data.len() as u32, &entry.local);
        let common = |flags: u16, method: u16, crc: u32, length: u32, size: u32, name: &[u8]| {
            let mut common = Vec::new();
            common.extend(flags.to_le_bytes());
            common.extend(method.to_le_bytes());
            common.extend([0, 0, 0x21, 0x28]); // midnight, 1 January 2000
            common.extend(crc.to_le_bytes());
            common.extend(length.to_le_bytes());
            common.extend(size.to_le_bytes());
            common.extend((name.len() as u16).to_le_bytes());
            common.extend((entry.extra.len() as u16).to_le_bytes());
            common
        };
        if entry.offset.is_none() {
            let name = local.name.as_ref().unwrap_or(&entry.name);
            bytes.extend(b"PK\x03\x04\x14\0");
            bytes.extend(common(
                local.flags.unwrap_or(flags),
                local.method.unwrap_or(method),
                local.crc.unwrap_or(crc),
                local.length.unwrap_or(length),
                local.size.unwrap_or(size),
                name,
            ));
            bytes.extend(name);
            bytes.extend(&entry.extra);
            bytes.extend(&entry.data);
            bytes.extend(&entry.behind);
        }
        directory.extend(b"PK\x01\x02\x14");
        directory.push(entry.system);
        directory.extend([0x14, 0]);
        directory.extend(common(flags, method, crc, length, size, &entry.name));
        directory.extend([0; 6]);
        directory.extend((entry.mode << 16).to_le_bytes());
        directory.extend(offset.to_le_bytes());
        directory.extend(&entry.name);
        directory.extend(&entry.extra);
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

/// The same, of texts.
pub fn deflated_text(entries: &[(&str, &str)]) -> Vec<u8> {
    use std::io::Write;
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, text) in entries {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(text.as_bytes()).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

pub fn crc32(data: &[u8]) -> u32 {
    let mut crc = !0;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}
