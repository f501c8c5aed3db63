//! The logs of all functions, durable: files under `state_dir/logs`, found again by function, time, request and container.
//!
//! ```text
//! environments ── append ──▶ [queue, bounded] ──▶ writer's thread ──▶ segments on the disk ──▶ readers, following ones too
//!                    └ no room: refused, counted, told in the log itself      └──▶ the mirror in the journal
//! ```
//!
//! [`record`] one entry · [`segments`] the files, what is kept of them · [`queue`] what waits · `writer` the thread ·
//! [`reader`] who asks, on threads that may block · [`merge`] who asks for several functions' logs as one.
//!
//! What is in a file survives SIGKILL of every process of ours; it is not synced, so a power cut may cost the last seconds (the
//! books are synced). A line is in its file some 10 ms after it was printed.

pub mod merge;
pub mod queue;
pub mod reader;
pub mod record;
pub mod segments;
mod writer;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use tokio::sync::{oneshot, watch};

use self::merge::{Merge, Whose};
use self::queue::{Queue, Removal};
use self::reader::{Query, Reader};
use self::segments::{Bounds, Catalogue, Position, Segments};
use self::writer::{Disk, Writer};
use super::mirror::{Mirror, Wanted};
use super::missing::{Count, Why};
use super::{LogSink, Lost, Piece};
use crate::config::{Config, Mirrored};
use crate::function::FunctionName;
use crate::telemetry::journald::Journald;

/// A function's log is so many segments, so that what goes when it is full is a small part.
const SEGMENTS: u64 = 16;
/// What one invocation may print at once fills a quarter of its function's log: its START stays, and so do those before it.
const ALLOWANCE: u64 = 4;

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("read the logs in {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("start the logs' thread")]
    Thread { source: io::Error },
}

/// A handle to the logs; cheap to clone. When the last one is dropped the thread writes what waits, and ends.
#[derive(Clone)]
pub struct LogStore(Arc<Shared>);

struct Shared {
    queue: Arc<Queue>,
    catalogue: Catalogue,
    written: watch::Receiver<()>,
    allowance: AtomicU64,
    /// By the mirror, where there is one.
    wanted: Wanted,
    missing: Arc<Count>,
}

/// Joins the threads, so that what was printed is in its file (and in the journal) before the process ends.
pub struct LogThread {
    writer: JoinHandle<()>,
    mirror: Option<JoinHandle<()>>,
}

impl LogThread {
    /// Waits until every [`LogStore`] is dropped and everything is written.
    pub fn join(self) {
        // A panic aborts the process, so there is no other result than the unit.
        let _ = self.writer.join();
        let _ = self.mirror.map(JoinHandle::join);
    }
}

impl LogStore {
    /// The logs in `state_dir/logs`, which the supervisor has made.
    pub fn open(config: &Config) -> Result<(Self, LogThread), LogError> {
        Self::open_mirrored(&config.logs_dir(), bounds(config), Journald::of_stderr(), config.journal)
    }

    /// The configuration has changed: the threads keep to it from their next turn on, environments from their next invocation on.
    pub fn reload(&self, config: &Config) {
        let bounds = bounds(config);
        self.0.allowance.store(allowance(&bounds), Ordering::Relaxed);
        self.0.queue.bound(bounds);
        self.0.wanted.set(config.journal);
    }

    /// Without a journal.
    pub fn open_with(root: &Path, bounds: Bounds) -> Result<(Self, LogThread), LogError> {
        Self::open_mirrored(root, bounds, None, Mirrored::None)
    }

    fn open_mirrored(
        root: &Path,
        bounds: Bounds,
        journal: Option<Journald>,
        what: Mirrored,
    ) -> Result<(Self, LogThread), LogError> {
        let fail = |source| LogError::Open { path: root.to_owned(), source };
        let segments = Segments::open(root, bounds).map_err(fail)?;
        let (catalogue, queue) = (segments.catalogue(), Arc::<Queue>::default());
        let (tell, written) = watch::channel(());
        let disk = Disk { root: root.into(), looked: None, full: false };
        let wanted = Wanted::new(what);
        let missing = Arc::<Count>::default();
        let started = journal.map(|journal| Mirror::start(journal, wanted.clone(), missing.clone())).transpose();
        let (mirror, mirroring) = started.map_err(|source| LogError::Thread { source })?.unzip();
        let writer = Writer {
            segments,
            queue: queue.clone(),
            written: tell,
            lost: HashMap::new(),
            missing: missing.clone(),
            disk,
            mirror,
        };
        let thread = thread::Builder::new()
            .name("logs".into())
            .spawn(move || writer.run())
            .map_err(|source| LogError::Thread { source })?;
        let allowance = AtomicU64::new(allowance(&bounds));
        let threads = LogThread { writer: thread, mirror: mirroring };
        Ok((Self(Arc::new(Shared { queue, catalogue, written, allowance, wanted, missing })), threads))
    }

    /// What counts lines that are missing. Keeps no log open.
    pub fn missing(&self) -> Arc<Count> {
        self.0.missing.clone()
    }

    /// Whether anything is kept of this function, which may have been deleted since.
    pub fn has(&self, function: &FunctionName) -> bool {
        self.0.catalogue.end(function).is_some()
    }

    /// Where the function's log ends now.
    pub fn end(&self, function: &FunctionName) -> Position {
        self.0.catalogue.end(function).unwrap_or_default()
    }

    /// Blocks: for a thread that may.
    pub fn read(&self, function: &FunctionName, query: Query) -> io::Result<Reader> {
        Reader::open(self.0.catalogue.clone(), function.clone(), query)
    }

    /// Several functions' logs as one. Reads nothing yet.
    pub fn merge(&self, whose: Whose, query: Query, places: HashMap<FunctionName, Position>) -> Merge {
        Merge::new(self.0.catalogue.clone(), whose, query, places)
    }

    /// Changes whenever something is written from now on, to whichever log.
    pub fn written(&self) -> watch::Receiver<()> {
        let mut written = self.0.written.clone();
        written.mark_unchanged();
        written
    }

    /// Removes the whole log of a function.
    pub async fn remove(&self, function: &FunctionName) {
        let (done, removed) = oneshot::channel();
        self.0.queue.remove(Removal { function: function.clone(), done });
        // Without an answer the server is about to end.
        let _ = removed.await;
    }
}

fn bounds(config: &Config) -> Bounds {
    let function = config.log_max_mib << 20;
    Bounds { segment: function / SEGMENTS, function, total: config.log_total_mib << 20, age: config.logs() }
}

fn allowance(bounds: &Bounds) -> u64 {
    bounds.function / ALLOWANCE
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl LogSink for LogStore {
    fn append(&self, piece: &Piece<'_>) -> bool {
        self.0.queue.push(piece)
    }

    fn allowance(&self) -> u64 {
        self.0.allowance.load(Ordering::Relaxed)
    }

    fn weight(&self, piece: &Piece<'_>) -> u64 {
        record::weight(piece)
    }

    fn missed(&self, why: Why, lost: Lost) {
        self.0.missing.add(why, lost);
    }
}

#[cfg(test)]
mod tests;
