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
}

/// An entry, and the place behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As [`Record`] has it, without its line end.
    pub json: Vec<u8>,
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
        let mut reader = Self { catalogue, function, filter: query.filter, at: Position::default() };
        reader.at = match (query.after, query.tail) {
            (Some(after), _) => after,
            (None, Some(tail)) => reader.back(tail)?,
            (None, None) => Position::default(),
        };
        Ok(reader)
    }

    /// Everything before it was read.
    pub fn position(&self) -> Position {
        self.at
    }

    /// Reads on, at most a block.
    pub fn read(&mut self) -> io::Result<Found> {
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
            self.at.offset += line.len() as u64;
            let line = &line[..line.len() - 1];
            if self.filter.wants(line) {
                found.entries.push(Entry { json: line.to_vec(), after: self.at });
            }
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
        let mut length = left.min(BLOCK);
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
        let mut missing = count;
        let mut first = extents.last().map_or_else(Position::default, |last| Position { segment: last.id, offset: last.size });
        for extent in extents.iter().rev() {
            if missing == 0 {
                break;
            }
            // A segment that lies wholly before has been passed.
            if self.filter.since_ms.is_some_and(|since| extents.iter().any(|next| next.id > extent.id && next.id <= since)) {
                break;
            }
            let reader = Reader { at: Position { segment: extent.id, offset: 0 }, ..self.copy() };
            let Some(block) = reader.whole(*extent)? else { continue };
            let mut end = block.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            while missing > 0 && end > 0 {
                let begin = block[..end - 1].iter().rposition(|byte| *byte == b'\n').map_or(0, |before| before + 1);
                if self.filter.wants(&block[begin..end - 1]) {
                    first = Position { segment: extent.id, offset: begin as u64 };
                    missing -= 1;
                }
                end = begin;
            }
        }
        Ok(first)
    }

    fn whole(&self, extent: Extent) -> io::Result<Option<Vec<u8>>> {
        match File::open(self.catalogue.path(&self.function, extent.id)) {
            Ok(file) => {
                let mut block = vec![0; extent.size as usize];
                let read = read_at_most(&file, &mut block, 0)?;
                block.truncate(read);
                Ok(Some(block))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn copy(&self) -> Self {
        let Self { catalogue, function, filter, at } = self;
        Self { catalogue: catalogue.clone(), function: function.clone(), filter: filter.clone(), at: *at }
    }
}

impl Filter {
    fn wants(&self, line: &[u8]) -> bool {
        let Some(record) = Record::parse(line) else { return false };
        // Containers are counted from one again after each start; a stream's name, or the end of it, means one of them only.
        let unique = record.stream.rsplit_once(']').map(|(_, unique)| unique);
        let names = [record.container.as_deref(), Some(&*record.stream), unique];
        let is = |wanted: &Option<String>, found: &[Option<&str>]| {
            wanted.as_deref().is_none_or(|wanted| found.contains(&Some(wanted)))
        };
        self.since_ms.is_none_or(|since| record.time_ms >= since)
            && is(&self.request, &[record.request.as_deref()])
            && is(&self.container, &names)
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
