//! What is printed, and how: results to stdout, words to stderr.

use std::io::{self, Write};
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;

use super::failure::Failure;

/// Results. A reader that has closed its end (`kiln … | head`) has what it wanted.
pub fn print(bytes: &[u8]) -> Result<(), Failure> {
    write(bytes).map(drop)
}

/// The same for who has more to come. `false`: nobody reads it any more.
pub fn write(bytes: &[u8]) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Failed(format!("the result cannot be written to stdout: {error}"))),
    }
}

pub fn print_line(text: &str) -> Result<(), Failure> {
    print(format!("{text}\n").as_bytes())
}

pub fn print_json(value: &Value) -> Result<(), Failure> {
    print_line(&format!("{value:#}"))
}

/// Words for people. There is nobody to tell when stderr is closed.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Rows under headings, in columns of equal width.
pub fn table(headings: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(headings.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| plain(cell)).collect::<Vec<_>>());
    }
    table.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>().join("\n")
}

/// The same, with every column but the first at its right edge, as numbers are read.
pub fn table_of_numbers(headings: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(headings.iter().copied()).add_rows(rows);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Without control characters: a description must not move the reader's cursor.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '·' } else { c }).collect()
}

/// In lines of at most `width` characters, broken at spaces; a word that is longer stays whole, so that it can be copied.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut filled = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if filled > 0 && filled + 1 + length > width {
            lines.push(String::new());
            filled = 0;
        } else if filled > 0 {
            lines.last_mut().into_iter().for_each(|line| line.push(' '));
            filled += 1;
        }
        lines.last_mut().into_iter().for_each(|line| line.push_str(word));
        filled += length;
    }
    lines
}

/// How wide the terminal is that stdout is; `None` into a pipe or a file, where lines stay whole.
pub fn terminal_width() -> Option<usize> {
    terminal_size().map(|(columns, _)| columns)
}

/// Columns and rows, likewise.
pub fn terminal_size() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col.into(), size.ws_row.into()))
}

/// What a terminal may be given: text and tabs. Everything that could command it, or turn text round, is spelled out.
pub fn careful(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\t' => text.push(c),
                // Python and Node write the lines of one event so.
                '\r' => text.push_str("\n    "),
                // Bidirectional overrides and isolates; line and paragraph separators.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}' => {
                    text.push_str(&format!("\\u{{{:x}}}", u32::from(c)));
                }
                c if c.is_control() => text.push_str(&format!("\\x{:02x}", u32::from(c))),
                c => text.push(c),
            }
        }
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

/// The same of many lines, whose ends stay.
pub fn careful_lines(bytes: &[u8]) -> String {
    bytes.split(|byte| *byte == b'\n').map(careful).collect::<Vec<_>>().join("\n")
}

/// `7s`, `3m20s`, `2h05m`, `4d3h`: the two largest units.
pub fn duration(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{}h", s / 86_400, s % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_keep_their_two_largest_units() {
        let text = |secs| duration(Duration::from_secs(secs));
        assert_eq!([text(7), text(200), text(7500), text(356_400)], ["7s", "3m20s", "2h05m", "4d3h"]);
    }

    #[test]
    fn text_is_broken_at_spaces_and_long_words_stay_whole() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("/a/long/path it is", 5), ["/a/long/path", "it is"]);
        assert_eq!(wrapped("short", 80), ["short"]);
        assert_eq!(wrapped("", 80), [""]);
    }

    #[test]
    fn columns_are_aligned_and_carry_no_control_characters() {
        let rows = vec![vec!["a".into(), "1".into()], vec!["long\u{1b}[2J".into(), "2".into()]];
        let text = table(&["NAME", "N"], rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        let columns: Vec<_> = lines.iter().map(|line| line.chars().count()).collect();
        assert_eq!(columns[0], columns[1], "{text}");
        assert!(!text.contains('\u{1b}'));
    }
}
