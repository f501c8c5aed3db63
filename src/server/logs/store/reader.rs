//! Reads one function's log from a place on, entry by entry. Blocks on the disk, so it runs on threads that may.
//!
//! It holds no file and no lock between two reads: a segment that is removed meanwhile is a gap, which it says. It never
//! sees half an entry of the writer's, whose catalogue tells how far a segment is whole; what an earlier process left half
//! written is no entry, and is skipped.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::record::Record;
use super::segments::{Catalogue, Extent, Position};
use crate::function::FunctionName;

/// Read at once, unless one entry is larger.
const BLOCK: u64 = 256 << 10;
/// The same for whoever looks for the end of a log.
const STEP_BACK: u64 = 64 << 10;

/// What is asked for. Empty: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Begins so many entries before the end. With `after` it has no meaning.
    pub tail: Option<usize>,
    /// Begins where an earlier reader was.
    pub after: Option<Position>,
    pub filter: Filter,
}

/// Which entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub since_ms: Option<u64>,
    pub request: Option<String>,
    pub container: Option<String>,
}

pub struct Reader {
    catalogue: Catalogue,
    function: FunctionName,
    filter: Filter,
    at: Position,
    block: u64,
}

/// An entry, and the place behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As [`Record`] has it, without its line end.
    pub json: Vec<u8>,
    pub after: Position,
}

/// An entry where it lies.
pub struct Seen<'a> {
    /// As [`Entry`] has it.
    pub json: &'a [u8],
    pub time_ms: u64,
    pub after: Position,
}

/// What one look at the log gave.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub entries: Vec<Entry>,
    /// Entries may have been removed before they were read here.
    pub gap: bool,
    /// There is nothing more for now.
    pub at_end: bool,
}

impl Reader {
    pub(super) fn open(catalogue: Catalogue, function: FunctionName, query: Query) -> io::Result<Self> {
        let mut reader = Self::at(catalogue, function, query.filter, Position::default());
        reader.at = match (query.after, query.tail) {
            (Some(after), _) => after,
            (None, Some(tail)) => reader.back(tail)?,
            (None, None) => Position::default(),
        };
        Ok(reader)
    }

    pub(super) fn at(catalogue: Catalogue, function: FunctionName, filter: Filter, at: Position) -> Self {
        Self { catalogue, function, filter, at, block: BLOCK }
    }

    /// Reads so much at once from now on, unless one entry is larger.
    pub(super) fn in_blocks_of(self, block: u64) -> Self {
        Self { block, ..self }
    }

    /// Everything before it was read.
    pub fn position(&self) -> Position {
        self.at
    }

    /// Reads on, at most a block.
    pub fn read(&mut self) -> io::Result<Found> {
        let mut entries = Vec::new();
        let found = self.read_while(|seen| {
            entries.push(Entry { json: seen.json.to_vec(), after: seen.after });
            true
        })?;
        Ok(Found { entries, ..found })
    }

    /// Reads on, at most a block, and not past the first entry that is not taken, which will be the next one. What is taken is
    /// the caller's affair: [`Found`] has no entries.
    pub(super) fn read_while(&mut self, mut takes: impl FnMut(&Seen<'_>) -> bool) -> io::Result<Found> {
        let mut found = Found::default();
        let extents = self.catalogue.extents(&self.function);
        let Some(extent) = self.next_extent(&extents, &mut found.gap) else {
            found.at_end = true;
            return Ok(found);
        };
        let next = extents.iter().find(|next| next.id > extent.id);
        let is_last = next.is_none();
        let Some(block) = self.block(extent)? else {
            // Removed since the look into the catalogue, or by somebody else.
            self.at = Position { segment: next.map_or(extent.id + 1, |next| next.id), offset: 0 };
            (found.gap, found.at_end) = (true, is_last);
            return Ok(found);
        };
        let whole = block.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for line in block[..whole].split_inclusive(|byte| *byte == b'\n') {
            let after = Position { offset: self.at.offset + line.len() as u64, ..self.at };
            let json = &line[..line.len() - 1];
            if let Some(time_ms) = self.filter.wants(json) {
                if !takes(&Seen { json, time_ms, after }) {
                    return Ok(found);
                }
            }
            self.at = after;
        }
        let over = self.at.offset >= extent.size || whole == 0;
        found.at_end = is_last && over;
        if let (true, Some(next)) = (over, next) {
            // Whatever is left is torn: the writer went on in another segment.
            self.at = Position { segment: next.id, offset: 0 };
        }
        Ok(found)
    }

    /// The segment to read from, where something may be left to read; `self.at` is put into it.
    fn next_extent(&mut self, extents: &[Extent], gap: &mut bool) -> Option<Extent> {
        let since = self.filter.since_ms.unwrap_or(0);
        let begun_before = |extent: &Extent| extent.id <= since;
        // A segment ends before the next one begins.
        let first = extents.iter().rposition(begun_before).unwrap_or(0);
        let extent = *extents[first.min(extents.len())..].iter().find(|extent| extent.id >= self.at.segment)?;
        if extent.id != self.at.segment {
            // It was in a segment that is gone, and perhaps not at the end of it, or others after it are gone too.
            *gap = self.at.segment > 0;
            self.at = Position { segment: extent.id, offset: 0 };
        }
        if self.at.offset > extent.size {
            // Cut by somebody else.
            (*gap, self.at.offset) = (true, extent.size);
        }
        Some(extent)
    }

    /// From `self.at` on, with a whole entry in it if there is one. `None`: the segment is gone.
    fn block(&self, extent: Extent) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.catalogue.path(&self.function, extent.id)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let left = extent.size.saturating_sub(self.at.offset);
        let mut length = left.min(self.block);
        loop {
            let mut block = vec![0; length as usize];
            let read = read_at_most(&file, &mut block, self.at.offset)?;
            block.truncate(read);
            if length == left || read < length as usize || block.contains(&b'\n') {
                return Ok(Some(block));
            }
            length = left.min(length * 2);
        }
    }

    /// The place before the last `count` entries that are wanted.
    fn back(&self, count: usize) -> io::Result<Position> {
        let extents = self.catalogue.extents(&self.function);
        let mut first = extents.last().map_or_else(Position::default, |last| Position { segment: last.id, offset: last.size });
        let mut missing = count;
        if missing > 0 {
            self.backwards(first, |_, at| {
                first = at;
                missing -= 1;
                missing > 0
            })?;
        }
        Ok(first)
    }

    /// Calls with the time of each entry that is wanted and the place before it, the last one before `end` first, for as long as
    /// that says so.
    pub(super) fn backwards(&self, end: Position, mut goes_on: impl FnMut(u64, Position) -> bool) -> io::Result<()> {
        let extents = self.catalogue.extents(&self.function);
        for extent in extents.iter().rev().filter(|extent| extent.id <= end.segment) {
            // A segment that lies wholly before has been passed.
            if self.filter.since_ms.is_some_and(|since| extents.iter().any(|next| next.id > extent.id && next.id <= since)) {
                break;
            }
            let size = if extent.id == end.segment { extent.size.min(end.offset) } else { extent.size };
            let file = match File::open(self.catalogue.path(&self.function, extent.id)) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if !self.lines_backwards(&file, extent.id, size, &mut goes_on)? {
                break;
            }
        }
        Ok(())
    }

    /// Within the first `size` bytes of one segment. `false`: that is enough.
    fn lines_backwards(
        &self,
        file: &File,
        segment: u64,
        size: u64,
        goes_on: &mut impl FnMut(u64, Position) -> bool,
    ) -> io::Result<bool> {
        // Whole lines that are passed already begin at `end`; what lies before it in `block`, at `from`, was read.
        let (mut end, mut from, mut step) = (size, size, STEP_BACK);
        let mut block: Vec<u8> = Vec::new();
        loop {
            let before = &block[..(end - from) as usize];
            // The line that ends at `end` begins behind the line end before its own, or with the file.
            let own = before.len().saturating_sub(usize::from(before.ends_with(b"\n")));
            match before[..own].iter().rposition(|byte| *byte == b'\n') {
                Some(at) => {
                    let begin = from + at as u64 + 1;
                    if !self.line_backwards(&before[at + 1..], Position { segment, offset: begin }, goes_on) {
                        return Ok(false);
                    }
                    (end, step) = (begin, STEP_BACK);
                }
                None if from == 0 => {
                    return Ok(before.is_empty() || self.line_backwards(before, Position { segment, offset: 0 }, goes_on));
                }
                None => {
                    // With what is left of the block behind it; for one line more each time, so that a long one is not copied for ever.
                    let next = from.saturating_sub(step);
                    let mut more = vec![0; (from - next) as usize];
                    let read = read_at_most(file, &mut more, next)?;
                    // Cut by somebody else meanwhile: no line ends there.
                    more.truncate(read);
                    more.resize((from - next) as usize, 0);
                    more.extend_from_slice(&block[..(end - from) as usize]);
                    (block, from, step) = (more, next, step * 2);
                }
            }
        }
    }

    /// A line without its end is torn, and no entry.
    fn line_backwards(&self, line: &[u8], at: Position, goes_on: &mut impl FnMut(u64, Position) -> bool) -> bool {
        let whole = line.strip_suffix(b"\n");
        whole.and_then(|line| self.filter.wants(line)).is_none_or(|time_ms| goes_on(time_ms, at))
    }
}

impl Filter {
    /// When it was printed, if it is an entry that is wanted.
    fn wants(&self, line: &[u8]) -> Option<u64> {
        let record = Record::parse(line)?;
        // Containers are counted from one again after each start; a stream's name, or the end of it, means one of them only.
        let unique = record.stream.rsplit_once(']').map(|(_, unique)| unique);
        let names = [record.container.as_deref(), Some(&*record.stream), unique];
        let is = |wanted: &Option<String>, found: &[Option<&str>]| {
            wanted.as_deref().is_none_or(|wanted| found.contains(&Some(wanted)))
        };
        let wanted = self.since_ms.is_none_or(|since| record.time_ms >= since)
            && is(&self.request, &[record.request.as_deref()])
            && is(&self.container, &names);
        wanted.then_some(record.time_ms)
    }
}

/// Less than asked for where the file ends.
fn read_at_most(file: &File, buffer: &mut [u8], from: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], from + read as u64) {
            Ok(0) => break,
            Ok(length) => read += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}
