//! Where `kiln logs` is in what it shows, so that after a restart of kilnd nothing is lost and nothing comes twice.
//!
//! In one function's log that is a cursor, and in several a cursor of each that has shown a line. For those that have shown none,
//! and for those of which kilnd cannot be told as there are too many, it is a time: one goes on a little before the last line that was
//! seen, and passes over what was seen already. Of each function the last cursor is kept, and no line.

use std::collections::HashMap;

use super::Entry;
use crate::cli::client::Stream;

/// Lines of several functions are written in order of time but for what a few threads of kilnd's do at the same moment.
const OVERLAP_MS: i64 = 60_000;
/// Bytes of one question's path and query: kilnd reads heads of 16 KiB, and there are more words in it.
const MOST: usize = 12 << 10;

pub enum Place {
    /// The last cursor; none before the first answer.
    One(Option<String>),
    Several(Several),
}

#[derive(Default)]
pub struct Several {
    /// Nothing before it was asked for, or it was not among the last lines.
    floor_ms: Option<i64>,
    last_ms: i64,
    /// Of each function.
    seen: HashMap<String, Seen>,
    lines: u64,
}

struct Seen {
    cursor: (u64, u64),
    /// Which line of all that was.
    line: u64,
}

impl Place {
    /// kilnd has answered once: it will be there again.
    pub fn is_known(&self) -> bool {
        match self {
            Self::One(cursor) => cursor.is_some(),
            Self::Several(several) => several.floor_ms.is_some(),
        }
    }

    /// Where to go on, as a query says it that has so many bytes before it. `None`: nothing was answered yet.
    pub fn query(&self, before: usize) -> Option<String> {
        match self {
            Self::One(cursor) => cursor.as_ref().map(|cursor| format!("after={cursor}")),
            Self::Several(several) => several.query(MOST.saturating_sub(before)),
        }
    }

    /// An answer begins.
    pub fn begins(&mut self, stream: &Stream) {
        match self {
            Self::One(cursor) => {
                if let Some(begin) = stream.header("x-kiln-cursor") {
                    cursor.get_or_insert(begin.to_owned());
                }
            }
            Self::Several(several) => {
                let now = stream.header("x-kiln-time-ms").and_then(|text| text.parse().ok());
                several.floor_ms = several.floor_ms.or(now);
            }
        }
    }

    /// An entry has come. `false`: it was seen before.
    pub fn takes(&mut self, entry: &Entry) -> bool {
        match self {
            Self::One(cursor) => {
                *cursor = Some(entry.cursor.clone());
                true
            }
            Self::Several(several) => several.takes(entry),
        }
    }
}

impl Several {
    fn query(&self, room: usize) -> Option<String> {
        let mut query = format!("since_ms={}", self.floor_ms?.max(self.last_ms - OVERLAP_MS));
        let mut latest: Vec<(&String, &Seen)> = self.seen.iter().collect();
        latest.sort_by_key(|(_, seen)| std::cmp::Reverse(seen.line));
        for (function, Seen { cursor: (segment, offset), .. }) in latest {
            let after = format!("&after={function}@{segment}:{offset}");
            if query.len() + after.len() > room {
                break;
            }
            query += &after;
        }
        Some(query)
    }

    fn takes(&mut self, entry: &Entry) -> bool {
        let (segment, offset) = entry.cursor.split_once(':').unwrap_or_default();
        let (Ok(segment), Ok(offset)) = (segment.parse(), offset.parse()) else { return true };
        let cursor = (segment, offset);
        if self.seen.get(&entry.function).is_some_and(|last| cursor <= last.cursor) {
            return false;
        }
        self.lines += 1;
        self.seen.insert(entry.function.clone(), Seen { cursor, line: self.lines });
        // A word of kilnd's that lines may be missing has no time.
        if entry.time_ms > 0 {
            self.last_ms = self.last_ms.max(entry.time_ms);
            self.floor_ms = self.floor_ms.map(|floor| floor.min(entry.time_ms));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: &str, cursor: &str, time_ms: i64) -> Entry {
        let json =
            serde_json::json!({ "function": function, "cursor": cursor, "time_ms": time_ms, "kind": "function", "line": "x" });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn in_several_logs_one_goes_on_behind_what_was_seen_of_each_and_takes_nothing_twice() {
        let mut place = Several { floor_ms: Some(1_000_000), ..Several::default() };
        // Of the last lines, which were before the beginning.
        assert!(place.takes(&entry("f", "5:10", 900_000)));
        assert!(place.takes(&entry("g", "5:10", 900_001)));
        let query = place.query(MOST).unwrap();
        assert_eq!(query, "since_ms=900000&after=g@5:10&after=f@5:10", "nothing that was not among them");
        assert!(place.takes(&entry("f", "5:20", 2_000_000)) && !place.takes(&entry("f", "0:0", 0)));
        assert_eq!(place.query(MOST).unwrap(), "since_ms=1940000&after=f@5:20&after=g@5:10");
        for (function, cursor, is_new) in
            [("f", "5:20", false), ("g", "5:10", false), ("g", "5:11", true), ("f", "6:1", true), ("h", "1:1", true)]
        {
            assert_eq!(place.takes(&entry(function, cursor, 2_000_001)), is_new, "{function} {cursor}");
        }
    }
    #[test]
    fn of_too_many_functions_kilnd_is_told_the_latest() {
        let mut place = Several { floor_ms: Some(1_000_000), ..Several::default() };
        for number in 0..1000 {
            assert!(place.takes(&entry(&format!("function-{number}"), "1777896000007:123456", 2_000_000)));
        }
        let query = place.query(8000).unwrap();
        assert!(query.starts_with("since_ms=1940000&after=function-999@1777896000007:123456&"), "{query}");
        assert!((7900..=8000).contains(&query.len()) && !query.contains("function-1@"), "{}", query.len());
        // The names of those that were asked for take of the same room.
        assert_eq!(Place::Several(place).query(MOST).unwrap(), "since_ms=1940000");
        let mut place = Several { floor_ms: Some(1_000_000), last_ms: 2_000_000, ..Several::default() };
        assert!(place.takes(&entry("function-1", "1777896000007:123456", 2_000_000)));
        // The others' come again, and are passed over.
        assert!(!place.takes(&entry("function-1", "1777896000007:123456", 2_000_000)));
    }
}
