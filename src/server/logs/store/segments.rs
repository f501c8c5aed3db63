//! Segments on the disk: who has how many, what is appended where, what must go. One thread's; no queue, no clock.
//!
//! ```text
//! state_dir/logs/<function>/<milliseconds at its beginning>.jsonl      the last one grows, the first ones go
//! ```
//!
//! A segment is closed when it is large or a day old, and removed whole: when its function has more than its share, when
//! all functions together have too much (then the largest gives, so that a noisy one does not cost a quiet one its log), or
//! when it is older than logs are kept. What a crash or a full disk has torn is cut off before anything is appended; until
//! then readers skip it. A file is open only while it is written, so functions cost no descriptors.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fs::{self, File};
use std::io;
use std::mem;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::record;
use crate::function::FunctionName;

/// A new segment each day, so that what is kept for so many days goes after so many and one.
const SPAN_MS: u64 = 24 * 3600 * 1000;
/// Where the end of a torn segment is looked for: more than the largest record ([`super::super::MAX_LINE`], each byte of
/// it escaped by six).
const LARGEST_RECORD: u64 = 2 << 20;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Of one segment, in bytes; it may be a record larger.
    pub segment: u64,
    /// Of one function.
    pub function: u64,
    /// Of all functions.
    pub total: u64,
    pub age: Duration,
}

/// A place in a function's log: a segment, and how many of its bytes lie before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub segment: u64,
    pub offset: u64,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.segment, self.offset)
    }
}

impl Position {
    pub fn parse(text: &str) -> Option<Self> {
        let (segment, offset) = text.split_once(':')?;
        Some(Self { segment: segment.parse().ok()?, offset: offset.parse().ok()? })
    }
}

/// What readers know of the segments: a copy that the writer keeps up to date. Cheap to clone.
#[derive(Clone)]
pub struct Catalogue {
    root: Arc<Path>,
    /// Each function's segments with their sizes, oldest first. Taken for one copy; nothing else is taken inside.
    extents: Arc<Mutex<HashMap<FunctionName, Vec<Extent>>>>,
}

/// A segment that readers may read up to `size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub id: u64,
    pub size: u64,
}

impl Catalogue {
    pub fn extents(&self, function: &FunctionName) -> Vec<Extent> {
        self.lock().get(function).cloned().unwrap_or_default()
    }

    /// Where the function's log ends. `None`: it has none.
    pub fn end(&self, function: &FunctionName) -> Option<Position> {
        self.lock().get(function)?.last().map(|extent| Position { segment: extent.id, offset: extent.size })
    }

    /// Where the logs of all functions end, at one moment between two batches of the writer's.
    pub fn ends(&self) -> Vec<(FunctionName, Position)> {
        let extents = self.lock();
        let end = |extent: &Extent| Position { segment: extent.id, offset: extent.size };
        extents.iter().filter_map(|(name, of)| Some((name.clone(), of.last().map(end)?))).collect()
    }

    pub fn path(&self, function: &FunctionName, segment: u64) -> PathBuf {
        self.root.join(function.as_str()).join(file_name(segment))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FunctionName, Vec<Extent>>> {
        self.extents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module docs.
pub struct Segments {
    root: PathBuf,
    bounds: Bounds,
    functions: BTreeMap<FunctionName, VecDeque<Segment>>,
    total: u64,
    catalogue: Catalogue,
    /// What was appended to since the catalogue was brought up to date.
    changed: BTreeSet<FunctionName>,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    /// Milliseconds since 1970 when it was begun, or a little more: unique and ascending.
    id: u64,
    size: u64,
    /// When it was written last.
    last_ms: u64,
    /// Whether `size` is known to be the end of a whole record.
    whole: bool,
}

impl Segments {
    /// Finds what is there. What does not look like ours is left alone.
    pub fn open(root: &Path, bounds: Bounds) -> io::Result<Self> {
        let extents = Arc::default();
        let catalogue = Catalogue { root: root.into(), extents };
        let mut segments =
            Self { root: root.to_owned(), bounds, functions: BTreeMap::new(), total: 0, catalogue, changed: BTreeSet::new() };
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            let name = entry.file_name().to_str().and_then(|name| FunctionName::parse(name).ok());
            let Some(name) = name.filter(|_| entry.file_type().is_ok_and(|kind| kind.is_dir())) else { continue };
            let mut found = segments_in(&entry.path())?;
            found.sort_by_key(|segment| segment.id);
            // Only the last one can be torn.
            for closed in found.iter_mut().rev().skip(1) {
                closed.whole = true;
            }
            segments.total += found.iter().map(|segment| segment.size).sum::<u64>();
            segments.functions.insert(name.clone(), found.into());
            segments.publish(&name);
        }
        Ok(segments)
    }

    pub fn catalogue(&self) -> Catalogue {
        self.catalogue.clone()
    }

    /// Appends whole records, for readers to see when the batch is [`Self::over`]. When this fails, nothing of them is in the log.
    pub fn append(&mut self, function: &FunctionName, records: &[u8], now_ms: u64) -> io::Result<()> {
        let last = self.functions.get(function).and_then(|of| of.back().copied());
        let mended = match last {
            Some(last) => self.mend(function, last)?,
            None => None,
        };
        let goes_on = mended.filter(|last| last.size < self.bounds.segment && now_ms.saturating_sub(last.id) < SPAN_MS);
        let mut segment = goes_on.unwrap_or_else(|| {
            let id = last.map_or(now_ms, |last| now_ms.max(last.id + 1));
            Segment { id, size: 0, last_ms: now_ms, whole: true }
        });
        let of = self.functions.entry(function.clone()).or_default();
        let path = self.catalogue.path(function, segment.id);
        if let Err(error) = write(&path, &segment, records) {
            if goes_on.is_none() {
                // Nobody knows of it, so it would be counted in no bound, and the next try makes another one.
                let _ = fs::remove_file(&path);
            }
            return Err(error);
        }
        segment.size += records.len() as u64;
        segment.last_ms = now_ms;
        match (goes_on, of.back_mut()) {
            (Some(_), Some(last)) => *last = segment,
            _ => of.push_back(segment),
        }
        self.total += records.len() as u64;
        self.changed.insert(function.clone());
        self.keep_within_bounds(function);
        Ok(())
    }

    /// Readers see what was appended: of all functions at once, so that whoever reads several of them in order of time finds, of
    /// one moment, the lines of all or of none.
    pub fn over(&mut self) {
        let mut extents = self.catalogue.lock();
        for function in mem::take(&mut self.changed) {
            if let Some(of) = self.functions.get(&function) {
                extents.insert(function, published(of));
            }
        }
    }

    /// The last segment as it really is: without the record that an earlier process left half written. `None`: somebody else
    /// has removed or cut it, and it is forgotten.
    fn mend(&mut self, function: &FunctionName, last: Segment) -> io::Result<Option<Segment>> {
        let path = self.catalogue.path(function, last.id);
        let length = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        let Some(of) = self.functions.get_mut(function) else { return Ok(None) };
        if length < last.size || length == 0 {
            of.pop_back();
            self.total -= last.size;
            return Ok(None);
        }
        if !last.whole {
            let size = end_of_whole_records(&path, last.size)?;
            self.total -= last.size - size;
            if let Some(segment) = of.back_mut() {
                (segment.size, segment.whole) = (size, true);
            }
        }
        Ok(of.back().copied())
    }

    /// Keeps so much from now on; what is too much goes.
    pub fn bound(&mut self, bounds: Bounds) {
        self.bounds = bounds;
        for function in self.functions.keys().cloned().collect::<Vec<_>>() {
            self.keep_within_bounds(&function);
        }
    }

    fn keep_within_bounds(&mut self, function: &FunctionName) {
        while self.functions.get(function).is_some_and(|of| of.len() > 1 && size(of) > self.bounds.function) {
            self.remove_oldest(function);
        }
        while self.total > self.bounds.total {
            let largest = self.functions.iter().max_by_key(|(_, of)| size(of)).map(|(name, _)| name.clone());
            let Some(largest) = largest else { break };
            self.remove_oldest(&largest);
        }
    }

    /// Removes what is older than logs are kept.
    pub fn expire(&mut self, now_ms: u64) {
        let age = u64::try_from(self.bounds.age.as_millis()).unwrap_or(u64::MAX);
        let names: Vec<_> = self.functions.keys().cloned().collect();
        for name in names {
            let old = |of: &VecDeque<Segment>| of.front().is_some_and(|first| now_ms.saturating_sub(first.last_ms) > age);
            while self.functions.get(&name).is_some_and(old) {
                self.remove_oldest(&name);
            }
        }
    }

    /// The whole log of a function.
    pub fn remove(&mut self, function: &FunctionName) {
        while self.functions.contains_key(function) {
            self.remove_oldest(function);
        }
    }

    fn remove_oldest(&mut self, function: &FunctionName) {
        let Some(of) = self.functions.get_mut(function) else { return };
        if let Some(segment) = of.pop_front() {
            self.total -= segment.size;
            // Gone already, or it cannot be removed: forgotten either way, and found again at the next start.
            if let Err(error) = fs::remove_file(self.catalogue.path(function, segment.id)) {
                tracing::warn!(%function, segment = segment.id, %error, "a log segment could not be removed");
            }
        }
        if of.is_empty() {
            self.functions.remove(function);
            // Somebody else's file in it keeps it.
            let _ = fs::remove_dir(self.root.join(function.as_str()));
        }
        self.publish(function);
    }

    fn publish(&self, function: &FunctionName) {
        let mut extents = self.catalogue.lock();
        match self.functions.get(function) {
            Some(of) => drop(extents.insert(function.clone(), published(of))),
            None => drop(extents.remove(function)),
        }
    }
}

fn published(of: &VecDeque<Segment>) -> Vec<Extent> {
    of.iter().map(|segment| Extent { id: segment.id, size: segment.size }).collect()
}

fn size(of: &VecDeque<Segment>) -> u64 {
    of.iter().map(|segment| segment.size).sum()
}

fn file_name(segment: u64) -> String {
    format!("{segment:013}.jsonl")
}

fn segments_in(directory: &Path) -> io::Result<Vec<Segment>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let id = entry.file_name().to_str().and_then(|name| name.strip_suffix(".jsonl")?.parse().ok());
        let (Some(id), true) = (id, entry.file_type()?.is_file()) else { continue };
        let metadata = entry.metadata()?;
        let last_ms = metadata.modified().map_or(id, record::millis);
        found.push(Segment { id, size: metadata.len(), last_ms, whole: false });
    }
    Ok(found)
}

/// The end of the last whole record within the first `length` bytes.
fn end_of_whole_records(path: &Path, length: u64) -> io::Result<u64> {
    let from = length.saturating_sub(LARGEST_RECORD);
    let mut end = vec![0; (length - from) as usize];
    File::open(path)?.read_exact_at(&mut end, from)?;
    Ok(end.iter().rposition(|byte| *byte == b'\n').map_or(from, |last| from + last as u64 + 1))
}

/// Appends to the file at exactly `segment.size`; what lies behind was torn, by a crash or by a full disk.
fn write(path: &Path, segment: &Segment, records: &[u8]) -> io::Result<()> {
    let open = || File::options().create(true).truncate(false).write(true).mode(0o600).open(path);
    let file = match (open(), path.parent()) {
        (Err(error), Some(directory)) if error.kind() == io::ErrorKind::NotFound => {
            fs::DirBuilder::new().mode(0o700).create(directory)?;
            open()?
        }
        (file, _) => file?,
    };
    if file.metadata()?.len() != segment.size {
        file.set_len(segment.size)?;
    }
    file.write_all_at(records, segment.size)
}
