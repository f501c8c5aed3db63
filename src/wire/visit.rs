//! kiln ⇄ server, while somebody is in a container: frames on the connection that `POST /v1/containers/{id}/exec` has turned into
//! this, after its answer 101.
//!
//! A frame is `[kind, length: u16 little-endian]` and so many bytes, at most [`MAX_FRAME`].
//!
//! ```text
//! kiln → server    STDIN bytes (none: the end)     the next only after TAKEN, so that the server always reads, and notices at once
//!                                                  when kiln is gone
//!                  SIZE  rows, columns: u16 LE     of the terminal
//! server → kiln    STDOUT, STDERR bytes            a terminal's are all STDOUT
//!                  TAKEN                           the program's stdin has the last STDIN
//!                  END   JSON of [`End`]           the last frame
//! ```

use serde::{Deserialize, Serialize};

pub use super::launcher::TerminalSize;

/// The connection's protocol after 101, as `Upgrade` names it.
pub const PROTOCOL: &str = "kiln-exec";

pub const STDIN: u8 = 1;
pub const SIZE: u8 = 2;
pub const STDOUT: u8 = 16;
pub const STDERR: u8 = 17;
pub const TAKEN: u8 = 18;
pub const END: u8 = 19;

pub const MAX_FRAME: usize = 32 << 10;
pub const HEADER: usize = 3;

/// The body of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// As root of the container's user namespace.
    #[serde(default)]
    pub root: bool,
    /// On a terminal of this size; otherwise on pipes.
    #[serde(default)]
    pub terminal: Option<TerminalSize>,
    /// Its TERM.
    #[serde(default)]
    pub term: Option<String>,
}

/// How it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The program has ended with this status.
    Exited(i32),
    /// It was ended by this signal.
    Signalled(i32),
    /// The container has ended, or had to: why, in a sentence.
    Ended(String),
}

pub fn header(kind: u8, length: usize) -> [u8; HEADER] {
    let [low, high] = u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes();
    [kind, low, high]
}

/// Kind and length. `None`: longer than any frame may be.
pub fn parse([kind, low, high]: [u8; HEADER]) -> Option<(u8, usize)> {
    let length = usize::from(u16::from_le_bytes([low, high]));
    (length <= MAX_FRAME).then_some((kind, length))
}

/// The bytes of [`SIZE`].
pub fn size(size: TerminalSize) -> [u8; 4] {
    let ([a, b], [c, d]) = (size.rows.to_le_bytes(), size.columns.to_le_bytes());
    [a, b, c, d]
}

pub fn parse_size(bytes: &[u8]) -> Option<TerminalSize> {
    let [a, b, c, d] = *bytes else { return None };
    Some(TerminalSize { rows: u16::from_le_bytes([a, b]), columns: u16::from_le_bytes([c, d]) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written_and_one_of_too_much_is_refused() {
        for length in [0, 1, 255, 256, MAX_FRAME] {
            assert_eq!(parse(header(STDOUT, length)), Some((STDOUT, length)));
        }
        assert_eq!(parse(header(STDIN, MAX_FRAME + 1)), None);
        let wide = TerminalSize { rows: 50, columns: 300 };
        assert_eq!((parse_size(&size(wide)), parse_size(b"123")), (Some(wide), None));
    }

    #[test]
    fn what_kiln_sends_is_what_is_written_in_the_help() {
        let asked: Asked = serde_json::from_str(r#"{ "command": ["ls", "-l"] }"#).unwrap();
        assert_eq!(asked, Asked { command: vec!["ls".into(), "-l".into()], root: false, terminal: None, term: None });
        assert!(serde_json::from_str::<Asked>(r#"{ "command": ["ls"], "user": "root" }"#).is_err());
        assert_eq!(serde_json::to_string(&End::Exited(7)).unwrap(), r#"{"exited":7}"#);
    }
}
