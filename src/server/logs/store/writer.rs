//! The writer: one thread, which alone changes what lies in `state_dir/logs`.
//!
//! It may wait for the disk as long as it takes; nobody waits for it. What it cannot write it counts, and says so in the
//! function's log as soon as that takes something again.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::statvfs::statvfs;
use tokio::sync::watch;
use tracing::{info, warn};

use super::queue::{Queue, Waiting};
use super::record::{self, encode};
use super::segments::Segments;
use crate::function::FunctionName;
use crate::server::logs::mirror::Mirror;
use crate::server::logs::missing::{Count, Why};
use crate::server::logs::{Kind, Lost, Origin, Piece};

/// Between two looks for what is too old.
const EXPIRE: Duration = Duration::from_secs(600);
/// Between two looks at how full the disk is.
const LOOK: Duration = Duration::from_secs(1);
/// Functions' output is not written into the last fiftieth of the disk: the database needs room when the log does.
const KEEP_FREE: u64 = 50;
/// Appended at once, so that no segment becomes much larger than it may.
const CHUNK: usize = 256 << 10;

pub struct Writer {
    pub segments: Segments,
    pub queue: Arc<Queue>,
    /// Changes whenever something was written.
    pub written: watch::Sender<()>,
    /// What each function's log could not take, and who printed it last.
    pub lost: HashMap<FunctionName, (Arc<Origin>, Lost)>,
    pub missing: Arc<Count>,
    pub disk: Disk,
    /// Where there is a journal.
    pub mirror: Option<Mirror>,
}

/// What is known of the room on the disk.
pub struct Disk {
    pub root: Box<Path>,
    pub looked: Option<Instant>,
    pub full: bool,
}

impl Writer {
    /// Until the queue is closed and empty.
    pub fn run(mut self) {
        let mut expired: Option<Instant> = None;
        loop {
            if expired.is_none_or(|at| at.elapsed() >= EXPIRE) {
                self.segments.expire(record::millis(SystemTime::now()));
                expired = Some(Instant::now());
            }
            let work = self.queue.take(EXPIRE);
            if !work.pieces.is_empty() {
                // First, since it does not wait for the disk: what is not in the log may still be read there.
                if let Some(mirror) = &self.mirror {
                    mirror.hand(&work.pieces);
                }
                self.write(&work.pieces);
                self.written.send_replace(());
            }
            for removal in work.removals {
                self.segments.remove(&removal.function);
                info!(function = %removal.function, "the log of a function was removed");
                let _ = removal.done.send(());
            }
            if let Some(bounds) = work.bounds {
                self.segments.bound(bounds);
                expired = None;
            }
            if work.closed {
                return;
            }
        }
    }

    fn write(&mut self, pieces: &[Waiting]) {
        let full = self.disk.is_full();
        let mut buffers: HashMap<&FunctionName, Buffer> = HashMap::new();
        for waiting in pieces {
            let function = &waiting.origin.function;
            if full && waiting.kind == Kind::Function {
                let lost = Lost::of(&waiting.lines);
                self.missing.add(Why::Disk, lost);
                self.lose(function, &waiting.origin, lost);
                continue;
            }
            let buffer = buffers.entry(function).or_default();
            // Where they are missing: before the next line that is not.
            if let Some((origin, lost)) = self.lost.remove(function) {
                buffer.told.add(lost);
                notice(&origin, lost, &mut buffer.records);
            }
            encode(&waiting.piece(), &mut buffer.records);
            buffer.origin = Some(&waiting.origin);
            buffer.lost.add(Lost::of(&waiting.lines));
            if buffer.records.len() >= CHUNK {
                let whole = std::mem::take(buffer);
                self.append(function, whole);
            }
        }
        for (function, buffer) in buffers {
            self.append(function, buffer);
        }
        self.segments.over();
    }

    fn append(&mut self, function: &FunctionName, buffer: Buffer<'_>) {
        if buffer.records.is_empty() {
            return;
        }
        let told = buffer.told.lines;
        match self.segments.append(function, &buffer.records, record::millis(SystemTime::now())) {
            // A full disk is said once for all functions, and not for each line.
            Ok(()) if told > 0 && !self.disk.full => {
                info!(%function, lines = told, "the log is written again; lines are missing")
            }
            Ok(()) => {}
            Err(error) => {
                if let Some(origin) = buffer.origin {
                    self.lose(function, origin, buffer.told);
                    self.missing.add(Why::Disk, buffer.lost);
                    self.lose(function, origin, buffer.lost);
                }
                if told == 0 && !self.disk.full {
                    warn!(%function, %error, "the log of a function cannot be written: its lines are dropped");
                }
            }
        }
    }

    fn lose(&mut self, function: &FunctionName, origin: &Arc<Origin>, lost: Lost) {
        self.lost.entry(function.clone()).or_insert_with(|| (origin.clone(), Lost::default())).1.add(lost);
    }
}

fn notice(origin: &Arc<Origin>, lost: Lost, records: &mut Vec<u8>) {
    let text = lost.notice("the log could not be written: the disk is full, or fails");
    encode(&Piece { origin, request: None, kind: Kind::Notice, time: SystemTime::now(), lines: text.as_bytes() }, records);
}

/// What goes into one function's log, and what is lost if it does not.
#[derive(Default)]
struct Buffer<'a> {
    records: Vec<u8>,
    origin: Option<&'a Arc<Origin>>,
    lost: Lost,
    /// Lost before, and told in `records`.
    told: Lost,
}

impl Disk {
    fn is_full(&mut self) -> bool {
        if self.looked.is_none_or(|at| at.elapsed() >= LOOK) {
            self.looked = Some(Instant::now());
            // Unreadable: then the write will tell.
            let full = statvfs(&*self.root).is_ok_and(|disk| disk.blocks_available() < disk.blocks() / KEEP_FREE);
            match (std::mem::replace(&mut self.full, full), full) {
                (false, true) => {
                    warn!("the disk is full but for a fiftieth: what functions print is dropped until there is room")
                }
                (true, false) => info!("the disk has room again: what functions print is kept"),
                _ => {}
            }
        }
        self.full
    }
}
