//! Where `kiln logs` is in what it shows, so that after a restart of kilnd nothing is lost and nothing comes twice.
//!
//! In one function's log that is a cursor. In several it is a time: one goes on a little before the last line that was seen, and
//! passes over what was seen already. Of each function the last cursor is kept, and no line.

use std::collections::HashMap;

use super::Entry;
use crate::cli::client::Stream;

/// Lines of several functions are written in order of time but for what a few threads of kilnd's do at the same moment.
const OVERLAP_MS: i64 = 60_000;

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
    /// The last cursor of each function.
    seen: HashMap<String, (u64, u64)>,
}

impl Place {
    /// kilnd has answered once: it will be there again.
    pub fn is_known(&self) -> bool {
        match self {
            Self::One(cursor) => cursor.is_some(),
            Self::Several(several) => several.floor_ms.is_some(),
        }
    }

    /// Where to go on, as a query says it. `None`: nothing was answered yet.
    pub fn query(&self) -> Option<String> {
        match self {
            Self::One(cursor) => cursor.as_ref().map(|cursor| format!("after={cursor}")),
            Self::Several(several) => {
                several.floor_ms.map(|floor| format!("since_ms={}", floor.max(several.last_ms - OVERLAP_MS)))
            }
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
    fn takes(&mut self, entry: &Entry) -> bool {
        let (segment, offset) = entry.cursor.split_once(':').unwrap_or_default();
        let (Ok(segment), Ok(offset)) = (segment.parse(), offset.parse()) else { return true };
        if self.seen.get(&entry.function).is_some_and(|last| (segment, offset) <= *last) {
            return false;
        }
        self.seen.insert(entry.function.clone(), (segment, offset));
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
    fn in_several_logs_one_goes_on_a_little_earlier_and_takes_nothing_twice() {
        let mut place = Several { floor_ms: Some(1_000_000), ..Several::default() };
        // Of the last lines, which were before the beginning.
        assert!(place.takes(&entry("f", "5:10", 900_000)));
        assert!(place.takes(&entry("g", "5:10", 900_001)));
        let query = |place: Several| Place::Several(place).query();
        let copy = |place: &Several| Several { seen: place.seen.clone(), ..*place };
        assert_eq!(query(copy(&place)).unwrap(), "since_ms=900000", "nothing that was not among them");
        assert!(place.takes(&entry("f", "5:20", 2_000_000)) && !place.takes(&entry("f", "0:0", 0)));
        assert_eq!(query(copy(&place)).unwrap(), "since_ms=1940000");
        for (function, cursor, is_new) in
            [("f", "5:20", false), ("g", "5:10", false), ("g", "5:11", true), ("f", "6:1", true), ("h", "1:1", true)]
        {
            assert_eq!(place.takes(&entry(function, cursor, 2_000_001)), is_new, "{function} {cursor}");
        }
    }
}
