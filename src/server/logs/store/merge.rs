//! Several functions' logs, or all of them, as one: entry by entry in order of time. Blocks on the disk, so it runs on threads
//! that may.
//!
//! ```text
//! a round:   where does each log end now? ─▶ what is the time of each one's next entry? ─▶ the earliest is given, and so on
//! ```
//!
//! Of each log it keeps a place and a time, and no line: however many functions there are and however much they print, it holds
//! one block. What is written during a round is the next one's; the writer shows whole batches only, so that no round gives a line
//! that an earlier one should have given first. A function whose log begins between two rounds is found by the second.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::io;
use std::mem;

use super::reader::{Entry, Filter, Query, Reader, Seen};
use super::segments::{Catalogue, Position};
use crate::function::FunctionName;

/// Read at once of one log, most of which may be another's turn.
const BLOCK: u64 = 16 << 10;
/// What one look gives, and for how many blocks it searches: so whoever goes away is noticed.
const MOST: usize = 256 << 10;
const BLOCKS: usize = 256;

/// Whose logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Of all functions that have one, then or later.
    All,
    These(BTreeSet<FunctionName>),
}

pub struct Merge {
    catalogue: Catalogue,
    whose: Whose,
    query: Query,
    /// Where earlier readers were in some of them.
    places: HashMap<FunctionName, Position>,
    sources: HashMap<FunctionName, Source>,
    /// Logs of this round whose next entry has still to be found.
    unknown: Vec<FunctionName>,
    /// The time of the next entry of each log of this round, the earliest on top.
    heads: BinaryHeap<Reverse<(u64, FunctionName)>>,
    begun: bool,
}

struct Source {
    reader: Reader,
    /// In this round.
    end: Position,
}

/// Something that belongs into the log of this function, in this place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub function: FunctionName,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Entry(Entry),
    /// Entries may have been removed before they were read here.
    Gap(Position),
}

/// What one look at the logs gave.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Merged {
    pub items: Vec<Item>,
    /// There is nothing more for now; the next look begins another round.
    pub at_end: bool,
}

impl Merge {
    /// Of those in `places` it begins there, whatever the time; `query.after` has no meaning here.
    pub(super) fn new(catalogue: Catalogue, whose: Whose, query: Query, places: HashMap<FunctionName, Position>) -> Self {
        let (sources, unknown, heads) = (HashMap::new(), Vec::new(), BinaryHeap::new());
        Self { catalogue, whose, query, places, sources, unknown, heads, begun: false }
    }

    /// Reads on, some hundred KiB at most.
    pub fn read(&mut self) -> io::Result<Merged> {
        let mut merged = Merged::default();
        if self.unknown.is_empty() && self.heads.is_empty() {
            self.begin_round()?;
        }
        let mut bytes = 0;
        for _ in 0..BLOCKS {
            if bytes >= MOST {
                return Ok(merged);
            }
            if let Some(function) = self.unknown.pop() {
                self.look(function, &mut merged.items)?;
            } else if let Some(Reverse((_, function))) = self.heads.pop() {
                bytes += self.give(function, &mut merged.items)?;
            } else {
                merged.at_end = true;
                return Ok(merged);
            }
        }
        Ok(merged)
    }

    fn begin_round(&mut self) -> io::Result<()> {
        let ends = self.catalogue.ends().into_iter().filter(|(function, _)| match &self.whose {
            Whose::All => true,
            Whose::These(these) => these.contains(function),
        });
        let ends: HashMap<FunctionName, Position> = ends.collect();
        if !mem::replace(&mut self.begun, true) {
            self.place_all(&ends)?;
        }
        // Who has no log any more begins anew if it has one again.
        self.sources.retain(|function, _| ends.contains_key(function));
        for (function, end) in ends {
            if !self.sources.contains_key(&function) {
                let reader = match self.places.remove(&function) {
                    Some(place) => self.reader_from(&function, place),
                    None => self.reader(&function, Position::default()),
                };
                self.sources.insert(function.clone(), Source { reader, end });
            }
            let Some(source) = self.sources.get_mut(&function) else { continue };
            source.end = end;
            if source.has_more() {
                self.unknown.push(function);
            }
        }
        Ok(())
    }

    /// Where the first round begins in each log, if that is not at its beginning: before the last so many entries of all of them.
    fn place_all(&mut self, ends: &HashMap<FunctionName, Position>) -> io::Result<()> {
        let Some(tail) = self.query.tail else { return Ok(()) };
        let mut last: BinaryHeap<Reverse<(u64, &FunctionName, Position)>> = BinaryHeap::new();
        for (function, end) in ends {
            let reader = self.reader(function, *end);
            reader.backwards(*end, |time_ms, at| {
                let is_older = |Reverse((oldest, ..)): &Reverse<(u64, &FunctionName, Position)>| time_ms < *oldest;
                if last.len() >= tail && last.peek().is_none_or(is_older) {
                    return false;
                }
                last.push(Reverse((time_ms, function, at)));
                if last.len() > tail {
                    last.pop();
                }
                true
            })?;
        }
        let mut places = ends.clone();
        for Reverse((_, function, at)) in last {
            if let Some(place) = places.get_mut(function) {
                *place = at.min(*place);
            }
        }
        for (function, at) in places {
            let end = ends.get(&function).copied().unwrap_or(at);
            let reader = self.reader(&function, at);
            self.sources.insert(function, Source { reader, end });
        }
        Ok(())
    }

    fn reader(&self, function: &FunctionName, at: Position) -> Reader {
        let filter = self.query.filter.clone();
        Reader::at(self.catalogue.clone(), function.clone(), filter, at).in_blocks_of(BLOCK)
    }

    /// From where somebody was: what comes behind that is newer, also where the clock was set back since.
    fn reader_from(&self, function: &FunctionName, place: Position) -> Reader {
        let filter = Filter { since_ms: None, ..self.query.filter.clone() };
        Reader::at(self.catalogue.clone(), function.clone(), filter, place).in_blocks_of(BLOCK)
    }

    /// Looks for the time of a log's next entry, within a block.
    fn look(&mut self, function: FunctionName, items: &mut Vec<Item>) -> io::Result<()> {
        let Some(source) = self.sources.get_mut(&function) else { return Ok(()) };
        let mut head = None;
        source.read_while(items, &function, |seen| {
            head = Some(seen.time_ms);
            false
        })?;
        match head {
            Some(time_ms) => self.heads.push(Reverse((time_ms, function))),
            None if source.has_more() => self.unknown.push(function),
            None => {}
        }
        Ok(())
    }

    /// Gives entries of this log until one is later than another log's next; how many bytes that was.
    fn give(&mut self, function: FunctionName, items: &mut Vec<Item>) -> io::Result<usize> {
        let Some(source) = self.sources.get_mut(&function) else { return Ok(0) };
        let until = self.heads.peek().map(|Reverse((time_ms, _))| *time_ms);
        let (mut head, mut bytes, mut given) = (None, 0, Vec::new());
        source.read_while(items, &function, |seen| {
            let takes = until.is_none_or(|until| seen.time_ms <= until);
            match takes {
                true => {
                    bytes += seen.json.len();
                    given.push(Entry { json: seen.json.to_vec(), after: seen.after });
                }
                false => head = Some(seen.time_ms),
            }
            takes
        })?;
        items.extend(given.into_iter().map(|entry| Item { function: function.clone(), what: What::Entry(entry) }));
        match head {
            Some(time_ms) => self.heads.push(Reverse((time_ms, function))),
            None if source.has_more() => self.unknown.push(function),
            None => {}
        }
        Ok(bytes)
    }
}

impl Source {
    /// A block, and of that only what is of this round.
    fn read_while(
        &mut self,
        items: &mut Vec<Item>,
        function: &FunctionName,
        mut takes: impl FnMut(&Seen<'_>) -> bool,
    ) -> io::Result<()> {
        let end = self.end;
        let found = self.reader.read_while(|seen| seen.after <= end && takes(seen))?;
        if found.gap {
            items.push(Item { function: function.clone(), what: What::Gap(self.reader.position()) });
        }
        if found.at_end {
            // Whatever is left is torn, or was removed.
            self.end = self.reader.position();
        }
        Ok(())
    }

    fn has_more(&self) -> bool {
        self.reader.position() < self.end
    }
}

#[cfg(test)]
mod tests;
