//! How many entries a zip claims to have, before anybody makes room for them.
//!
//! The `zip` library believes the number (and reserves memory for that many), and it keeps one entry of each name, the
//! last. So the claim is read here first: too large is refused, and what the library then finds must agree with it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The end record with the longest comment, and what zip64 puts before it.
const TAIL: u64 = 22 + 65_535 + 20 + 56;

const END: &[u8] = b"PK\x05\x06";
const LOCATOR: &[u8] = b"PK\x06\x07";
const END_64: &[u8] = b"PK\x06\x06";

/// The number in the end record. `None`: the zip does not end with one, or with two at once (one in the other's comment), so
/// that it depends on the reader which of them counts.
pub fn claimed_entries(zip: &File) -> io::Result<Option<u64>> {
    let length = zip.metadata()?.len();
    let start = length.saturating_sub(TAIL);
    let mut tail = vec![0; (length - start) as usize];
    zip.read_exact_at(&mut tail, start)?;
    Ok(claimed(&tail))
}

fn claimed(tail: &[u8]) -> Option<u64> {
    let reaches_the_end = |at: &usize| {
        let comment = u16::from_le_bytes([tail[at + 20], tail[at + 21]]);
        tail[*at..].starts_with(END) && at + 22 + usize::from(comment) == tail.len()
    };
    let mut records = (0..tail.len().checked_sub(21)?).rev().filter(reaches_the_end);
    let at = records.next().filter(|_| records.next().is_none())?;
    let short = u16::from_le_bytes(tail[at + 10..at + 12].try_into().ok()?);
    // zip64 (APPNOTE 4.3.14): a locator lies right before the end record, and its record somewhere before that.
    let before = &tail[..at];
    let locator = before.len().checked_sub(20).filter(|at| before[*at..].starts_with(LOCATOR));
    let Some(locator) = locator else { return Some(short.into()) };
    let record = (0..locator).rev().find(|at| tail[*at..].starts_with(END_64))?;
    Some(u64::from_le_bytes(tail.get(record + 32..record + 40)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(entries: u16, comment: &[u8]) -> Vec<u8> {
        let mut record = END.to_vec();
        record.extend([0, 0, 0, 0]);
        record.extend(entries.to_le_bytes());
        record.extend(entries.to_le_bytes());
        record.extend([0; 8]);
        record.extend((comment.len() as u16).to_le_bytes());
        record.extend(comment);
        record
    }

    #[test]
    fn the_number_is_read_with_and_without_a_comment() {
        assert_eq!(claimed(&end(3, b"")), Some(3));
        assert_eq!(claimed(&end(4, &[7; 65_535])), Some(4));
    }

    #[test]
    fn the_number_of_zip64_wins() {
        let mut tail = END_64.to_vec();
        tail.extend([0; 28]);
        tail.extend(4_000_000_000u64.to_le_bytes());
        tail.extend([0; 16]);
        tail.extend(LOCATOR);
        tail.extend([0; 16]);
        tail.extend(end(0xffff, b""));
        assert_eq!(claimed(&tail), Some(4_000_000_000));
    }

    #[test]
    fn two_records_at_one_end_have_no_number() {
        assert_eq!(claimed(&end(3, &end(4, b""))), None);
        assert_eq!(claimed(&[end(3, b""), end(4, b"")].concat()), Some(4), "only one of them is at the end");
        assert_eq!(claimed(&[&end(3, b"")[..], b"\n"].concat()), None);
    }

    #[test]
    fn what_is_no_zip_has_no_number() {
        for tail in [&b""[..], b"PK\x05\x06", b"hello, I am a shell script, believe me"] {
            assert_eq!(claimed(tail), None);
        }
    }
}
