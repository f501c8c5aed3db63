//! One entry of a log, as it lies on the disk and goes through the door: one JSON object on one line. Pure.
//!
//! A function may print what it likes: within a JSON string there is no line end and no quote, so no line of a function's
//! makes a second entry, and none makes itself the platform's ([`Kind`] stands beside it). Bytes that are no UTF-8 are kept
//! in base64, so that what was printed can be had again exactly.

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::server::logs::{Kind, Piece};

/// The names are part of the operators' interface, on the disk and at the door.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record<'a> {
    pub time_ms: u64,
    pub kind: Kind,
    /// None for what was printed outside of an invocation, by an init above all.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub version: Cow<'a, str>,
    /// The environment, by the name that the function sees in AWS_LAMBDA_LOG_STREAM_NAME.
    #[serde(borrow)]
    pub stream: Cow<'a, str>,
    /// None where none could be built.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Cow<'a, str>>,
    /// Without its line end. Instead of it, where the line is no UTF-8, `base64`.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub line: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<Cow<'a, str>>,
}

impl<'a> Record<'a> {
    /// One line of a log segment. `None` for what is none: torn by a crash, or written by somebody else.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}

/// Appends the entries of a piece to `to`.
pub fn encode(piece: &Piece<'_>, to: &mut Vec<u8>) {
    // One event of the platform's is one entry, whatever line ends are in it; a function's are one for each line.
    let lines = piece.lines.strip_suffix(b"\n").unwrap_or(piece.lines);
    match piece.kind {
        Kind::Function => lines.split(|byte| *byte == b'\n').for_each(|line| one(piece, line, to)),
        Kind::Platform | Kind::Notice => one(piece, lines, to),
    }
}

fn one(piece: &Piece<'_>, line: &[u8], to: &mut Vec<u8>) {
    let request = piece.request.map(|request| request.to_string());
    let (text, base64) = match std::str::from_utf8(line) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(STANDARD.encode(line))),
    };
    let record = Record {
        time_ms: millis(piece.time),
        kind: piece.kind,
        request: request.as_deref().map(Cow::Borrowed),
        version: Cow::Borrowed(&piece.origin.version),
        stream: Cow::Borrowed(&piece.origin.stream),
        container: piece.origin.container.as_deref().map(Cow::Borrowed),
        line: text.map(Cow::Borrowed),
        base64: base64.as_deref().map(Cow::Borrowed),
    };
    // Into memory, and nothing in it is a map with odd keys: it cannot fail.
    if serde_json::to_writer(&mut *to, &record).is_ok() {
        to.push(b'\n');
    }
}

/// What an entry has beside its line and its origin's words: the members' names, a time and a request.
const FRAME: u64 = 143;

/// What each byte of a line takes within a JSON string. (Base64 takes a third more; that is not counted.)
const ESCAPED: [u8; 256] = {
    let mut escaped = [1; 256];
    let mut byte = 0;
    while byte < 0x20 {
        escaped[byte] = 6;
        byte += 1;
    }
    // What has an escape of its own, by JSON's grammar.
    escaped[0x08] = 2;
    escaped[b'\t' as usize] = 2;
    escaped[b'\n' as usize] = 0;
    escaped[0x0c] = 2;
    escaped[b'\r' as usize] = 2;
    escaped[b'"' as usize] = 2;
    escaped[b'\\' as usize] = 2;
    escaped
};

/// Bytes of a function's piece on the disk, in one pass and without making them: of many short lines the frames are
/// many times what was printed.
pub fn weight(piece: &Piece<'_>) -> u64 {
    let Piece { origin, lines, .. } = piece;
    let words = origin.version.len() + origin.stream.len() + origin.container.as_ref().map_or(0, String::len);
    let (mut text, mut ends) = (0, 0);
    for byte in lines.iter() {
        text += u64::from(ESCAPED[usize::from(*byte)]);
        ends += u64::from(*byte == b'\n');
    }
    text + ends * (FRAME + words as u64)
}

pub fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::invocation::RequestId;
    use crate::server::logs::tests::origin;

    fn piece(kind: Kind, lines: &[u8]) -> Vec<u8> {
        let time = UNIX_EPOCH + Duration::from_millis(1_543_665_600_007);
        let mut to = Vec::new();
        encode(&Piece { origin: &origin("f"), request: Some(RequestId::new()), kind, time, lines }, &mut to);
        to
    }

    #[test]
    fn no_line_of_a_functions_makes_a_second_entry_or_one_of_the_platforms() {
        let hostile = b"\"}\r{\"kind\":\"platform\",\"line\":\"END RequestId: 1\"}\\\n\x1b[2J\x00\n";
        let encoded = piece(Kind::Function, hostile);
        let lines: Vec<_> = encoded.strip_suffix(b"\n").unwrap().split(|byte| *byte == b'\n').collect();
        let records: Vec<_> = lines.iter().map(|line| Record::parse(line).unwrap()).collect();
        assert!(records.iter().all(|record| record.kind == Kind::Function && record.time_ms == 1_543_665_600_007));
        let texts: Vec<_> = records.iter().map(|record| record.line.as_deref().unwrap()).collect();
        assert_eq!(texts, ["\"}\r{\"kind\":\"platform\",\"line\":\"END RequestId: 1\"}\\", "\x1b[2J\0"]);
    }

    #[test]
    fn a_piece_weighs_what_its_entries_take() {
        let every: String = (0..0x80_u8).map(char::from).collect();
        for lines in ["\n".repeat(100), format!("{every}\n"), "an ordinary line\n".repeat(3), "ä€\n".to_owned()] {
            let (origin, request, time) =
                (origin("f"), Some(RequestId::new()), UNIX_EPOCH + Duration::from_millis(1_543_665_600_007));
            let piece = Piece { origin: &origin, request, kind: Kind::Function, time, lines: lines.as_bytes() };
            let mut entries = Vec::new();
            encode(&piece, &mut entries);
            assert_eq!(weight(&piece), entries.len() as u64, "{lines:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_come_back_exactly() {
        let encoded = piece(Kind::Function, b"\xff\xfe x\n");
        let record = Record::parse(encoded.trim_ascii_end()).unwrap();
        assert_eq!((record.line, STANDARD.decode(&*record.base64.unwrap()).unwrap()), (None, b"\xff\xfe x".to_vec()));
    }

    #[test]
    fn an_event_of_the_platforms_is_one_entry() {
        let encoded = piece(Kind::Platform, b"RequestId: 1 Error: no\nRuntime.ExitError\n");
        assert_eq!(encoded.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(Record::parse(encoded.trim_ascii_end()).unwrap().line.unwrap(), "RequestId: 1 Error: no\nRuntime.ExitError");
    }
}
