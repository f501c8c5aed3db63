//! The local header of an entry, which says again what the central directory says. Where it says something else, the zip is
//! one thing to those who read it from the front and another to those who read it from the end: whoever checked it may
//! have read the other one.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use zip::CompressionMethod;
use zip::read::ZipFile;

use crate::wire::supervisor::ZipRefusal;

/// Of the header, before the name (APPNOTE 4.3.7).
const FIXED: usize = 30;
/// Of an entry of the central directory: before the name, and where the name's length stands (APPNOTE 4.3.12).
const CENTRAL: u64 = 46;
const CENTRAL_LENGTH: u64 = 28;
const ENCRYPTED: u16 = 1;
/// Sizes and checksum follow the data.
const DESCRIPTOR: u16 = 1 << 3;
/// In a field of 32 bits: the number stands in zip64's extra field.
const ELSEWHERE: u32 = u32::MAX;

/// Compares what decides about the tree: name, method, length.
pub fn check<R: Read>(zip: &File, entry: &ZipFile<'_, R>) -> Result<(), ZipRefusal> {
    let read = |into: &mut [u8], at: u64| zip.read_exact_at(into, at).map_err(|_| ZipRefusal::Unreadable);
    // Not the library's name: that may come out of an extra field which says it in Unicode.
    let (directory, mut length) = (entry.central_header_start(), [0; 2]);
    read(&mut length, directory.saturating_add(CENTRAL_LENGTH))?;
    let mut central_name = vec![0; u16::from_le_bytes(length).into()];
    read(&mut central_name, directory.saturating_add(CENTRAL))?;
    let mut header = vec![0; FIXED + central_name.len()];
    read(&mut header, entry.header_start())?;
    let (fixed, name) = header.split_at(FIXED);
    let at = |at: usize| u16::from_le_bytes([fixed[at], fixed[at + 1]]);
    let (flags, method, length, name_length) = (at(6), at(8), u32::from(at(18)) | u32::from(at(20)) << 16, at(26));
    let same_method = match entry.compression() {
        CompressionMethod::Stored => method == 0,
        CompressionMethod::Deflated => method == 8,
        // Refused for what it is.
        _ => true,
    };
    let same_length = flags & DESCRIPTOR != 0 || length == ELSEWHERE || u64::from(length) == entry.compressed_size();
    let same_name = usize::from(name_length) == name.len() && name == central_name;
    let same_secrecy = (flags & ENCRYPTED != 0) == entry.encrypted();
    if same_method && same_length && same_name && same_secrecy { Ok(()) } else { Err(ZipRefusal::Overlapping) }
}
