//! Keeps the history: makes rows of events ([`crate::meter::history`]), and has them written, behind everybody's back.
//!
//! Seeing an event costs a few map operations, and for those of invocations nothing. What is seen is written as soon as what was
//! seen before is: what waits together shares a commit. Where the disk is full, what was seen waits until there is room again, in
//! its order; past [`MOST`] starts are lost, and counted, and their ends with them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::{info, warn};

use super::{Cold, Event, Observer, What};
use crate::database::{Database, DatabaseError};
use crate::invocation::RequestId;
use crate::meter::history::{Begun, Change, History, Over};

/// Changes that wait, and no more starts are added to them. A thousand environments may begin or end at once. (An end is always taken:
/// a row that has none would be shown as living.)
const MOST: usize = 10_000;
/// Changes in one transaction, so that a call which waits to be written into the books waits for few of them.
const BATCH: usize = 500;
/// Between two tries to write to a full disk.
const AGAIN: Duration = Duration::from_secs(5);

pub struct Historian {
    history: History,
    /// Taken for some map operations; no other lock is taken inside.
    notes: Mutex<Notes>,
    more: Notify,
    /// Held while changes are written, so that they are in their order. Rows below this one, if any, that a server before left open
    /// are still to be closed.
    writing: tokio::sync::Mutex<Option<i64>>,
}

struct Notes {
    /// Starts under way, by the request that they are for.
    starting: HashMap<RequestId, (SystemTime, Cold)>,
    /// Rows of environments that live.
    living: HashMap<Arc<str>, i64>,
    next: i64,
    changes: Vec<Change>,
    /// Starts that are missing.
    lost: u64,
    /// That the disk is full was said.
    told_full: bool,
}

impl Historian {
    /// What lived when a server before this one died, ends now in the history; where the disk is full, as soon as it has room.
    pub async fn open(database: Database) -> Result<Self, DatabaseError> {
        let (history, next) = History::open(database).await?;
        let (starting, living) = (HashMap::new(), HashMap::new());
        let notes = Notes { starting, living, next, changes: Vec::new(), lost: 0, told_full: false };
        let (more, writing) = (Notify::new(), tokio::sync::Mutex::new(Some(next)));
        let historian = Self { history, notes: Mutex::new(notes), more, writing };
        historian.close(&mut *historian.writing.lock().await).await;
        Ok(historian)
    }

    /// `false`: the disk is full, so what is to be written has to wait, too.
    async fn close(&self, before: &mut Option<i64>) -> bool {
        let Some(next) = *before else { return true };
        match self.history.close(next).await {
            Ok(left) => {
                *before = None;
                if left > 0 {
                    info!(environments = left, "ended with the kilnd before this one: they are closed in the history");
                }
                true
            }
            Err(error) => {
                let is_full = error.is_full();
                if !(is_full && std::mem::replace(&mut self.notes().told_full, true)) {
                    warn!(%error, "the history still shows as living what ended with the kilnd before this one");
                }
                !is_full
            }
        }
    }

    /// Writes what was seen, as long as it lives. A task of the server's.
    pub async fn write(self: Arc<Self>) {
        loop {
            self.more.notified().await;
            while !self.flush().await {
                sleep(AGAIN).await;
            }
        }
    }

    /// It ends now, whatever still waits for room: that is missing for good.
    pub fn gives_up(&self) {
        let mut notes = self.notes();
        let waiting = std::mem::take(&mut notes.changes);
        if !waiting.is_empty() {
            notes.lost += environments(&waiting);
            warn!(lost = notes.lost, "kilnd ends on a full disk: starts and ends of environments are missing in the history");
        }
    }

    /// Environments that are missing in the history, or whose end is, since the start.
    pub fn lost(&self) -> u64 {
        self.notes().lost
    }

    /// What was seen before is written when this returns; `false`: not all of it, as the disk is full.
    pub async fn flush(&self) -> bool {
        let mut unclosed = self.writing.lock().await;
        if self.notes().changes.is_empty() {
            return true;
        }
        if !self.close(&mut unclosed).await {
            return false;
        }
        let mut changes = std::mem::take(&mut self.notes().changes);
        while !changes.is_empty() {
            let rest = changes.split_off(changes.len().min(BATCH));
            let batch = Arc::new(std::mem::replace(&mut changes, rest));
            match self.history.write(batch.clone()).await {
                Ok(()) => {}
                Err(error) if error.is_full() => {
                    let mut notes = self.notes();
                    let newer = std::mem::take(&mut notes.changes);
                    notes.changes = batch.iter().cloned().chain(changes).chain(newer).collect();
                    if !std::mem::replace(&mut notes.told_full, true) {
                        warn!(%error, waiting = notes.changes.len(), "the history is written when the disk has room again");
                    }
                    return false;
                }
                Err(error) => {
                    let lost = {
                        let mut notes = self.notes();
                        notes.lost += environments(&batch);
                        notes.lost
                    };
                    warn!(%error, lost, "starts and ends of environments are missing in the history");
                }
            }
        }
        if std::mem::take(&mut self.notes().told_full) {
            info!("the history is written again");
        }
        true
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of how many environments these changes are.
fn environments(changes: &[Change]) -> u64 {
    let ids = changes.iter().map(|change| match change {
        Change::Begun(begun) => begun.id,
        Change::Over(over) => over.id,
    });
    ids.collect::<HashSet<_>>().len() as u64
}

impl Observer for Historian {
    fn see(&self, event: &Event) {
        if event.what.is_frequent() {
            return;
        }
        let mut notes = self.notes();
        let before = notes.changes.len();
        notes.see(event);
        let changed = notes.changes.len() > before;
        drop(notes);
        if changed {
            self.more.notify_one();
        }
    }
}

impl Notes {
    fn see(&mut self, event: &Event) {
        match &event.what {
            What::Starting { why } => {
                if let Some(request) = event.request {
                    self.starting.insert(request, (event.at, *why));
                }
            }
            What::Ready { build_us, init_us } => {
                let id = self.begin(event, Some(*build_us), Some(*init_us));
                if let (Some(id), Some(container)) = (id, &event.container) {
                    self.living.insert(container.clone(), id);
                }
            }
            What::InitFailed { cause, text, by, init_us, peak_mib, .. } => {
                let Some(id) = self.begin(event, None, Some(*init_us)) else { return };
                self.changes.push(Change::Over(Over {
                    id,
                    ended: event.at,
                    why: "init".into(),
                    cause: Some(cause.clone()),
                    text: Some(text.clone()),
                    by: by.clone(),
                    needed_by: None,
                    invocations: 0,
                    peak_mib: *peak_mib,
                }));
            }
            What::Retired { why, detail, invocations, peak_mib, .. } => {
                let Some(id) = event.container.as_ref().and_then(|container| self.living.remove(container)) else { return };
                self.changes.push(Change::Over(Over {
                    id,
                    ended: event.at,
                    why: why.to_string(),
                    cause: detail.cause.clone(),
                    text: detail.text.clone(),
                    by: detail.by.clone(),
                    needed_by: detail.needed_by.as_ref().map(ToString::to_string),
                    invocations: *invocations,
                    peak_mib: *peak_mib,
                }));
            }
            _ => {}
        }
    }

    fn begin(&mut self, event: &Event, build_us: Option<u64>, init_us: Option<u64>) -> Option<i64> {
        let (started, cold) = event.request.and_then(|request| self.starting.remove(&request))?;
        if !self.has_room() {
            return None;
        }
        let id = self.next;
        self.next += 1;
        self.changes.push(Change::Begun(Begun {
            id,
            function: event.function.as_ref()?.to_string(),
            version: event.version.as_deref().unwrap_or_default().into(),
            container: event.container.as_deref().map(Into::into),
            request: event.request.map(|request| request.to_string()),
            cold: cold.to_string(),
            started,
            build_us,
            init_us,
        }));
        Some(id)
    }

    /// Only a disk that is full, or hangs, lets so many wait.
    fn has_room(&mut self) -> bool {
        let room = self.changes.len() < MOST;
        self.lost += u64::from(!room);
        room
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rusqlite::Connection;

    use super::*;
    use crate::database::DatabaseThread;
    use crate::function::FunctionName;
    use crate::meter::history::{Asked, Environment, Past};
    use crate::server::events::{Detail, Events, Retire, Subject};

    struct House {
        directory: tempfile::TempDir,
        historian: Arc<Historian>,
        events: Events,
        database: Database,
        _thread: DatabaseThread,
    }

    impl House {
        async fn open() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let (database, thread) = Database::open(&directory.path().join("kiln.db")).unwrap();
            let historian = Arc::new(Historian::open(database.clone()).await.unwrap());
            let events = Events::new(vec![historian.clone()]);
            Self { directory, historian, events, database, _thread: thread }
        }

        /// SQLite's own bound on the file's size: the same SQLITE_FULL as a full disk's.
        async fn pages(&self, count: i64) {
            let work =
                move |db: &Connection| db.query_row(&format!("PRAGMA max_page_count = {count}"), [], |row| row.get::<_, i64>(0));
            self.database.write("bound the file", work, |_| ()).await.unwrap();
        }

        /// With lives until the next one has no room; how many there were.
        async fn fills_its_disk(&self) -> usize {
            self.pages(1).await;
            let mut lives = 0;
            while self.historian.flush().await {
                assert!(lives < 10_000, "a bounded file takes no endless history");
                lives += 1;
                self.life(&format!("2-{lives}"), Some(Retire::Failed));
            }
            lives
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("kiln.db")
        }

        async fn all(&self) -> Vec<Environment> {
            self.historian.flush().await;
            Past::new(self.path()).environments(&Asked { living: true, limit: 1_000_000, ..Asked::default() }).unwrap()
        }

        fn life(&self, container: &str, end: Option<Retire>) {
            let f = FunctionName::parse("f").unwrap();
            let (of, request) = (Subject::environment(&f, container), Some(RequestId::new()));
            self.events.emit(&Subject::function(&f), request, What::Starting { why: Cold::Retired(Retire::Idle) });
            self.events.emit(&of, request, What::Ready { build_us: 7, init_us: 8 });
            self.events.emit(&of, request, What::Frozen);
            if let Some(why) = end {
                let detail = Detail { by: Some("uid 0".into()), needed_by: Some(f), ..Detail::default() };
                self.events.emit(&of, None, What::Retired { why, detail, age_s: 1.0, invocations: 5, peak_mib: 36 });
            }
        }
    }

    #[tokio::test]
    async fn each_environment_has_one_row_from_its_start_to_its_end() {
        let house = House::open().await;
        house.life("1-1", Some(Retire::Killed));
        house.life("1-2", None);
        let (of, request) = (Subject::function(&FunctionName::parse("g").unwrap()), Some(RequestId::new()));
        house.events.emit(&of, request, What::Starting { why: Cold::First });
        let failed = What::InitFailed {
            cause: "Sandbox.Failure".into(),
            text: "no".into(),
            by: None,
            again: true,
            init_us: 9,
            peak_mib: 0,
        };
        house.events.emit(&of, request, failed);
        let rows = house.all().await;
        let shown: Vec<_> = rows.iter().map(|row| (row.container.as_deref(), row.cold.as_str(), row.why.as_deref())).collect();
        assert_eq!(shown, [(Some("1-1"), "idle", Some("killed")), (None, "first", Some("init")), (Some("1-2"), "idle", None)]);
        assert_eq!(
            (rows[0].build_us, rows[0].init_us, rows[0].invocations, rows[0].peak_mib),
            (Some(7), Some(8), Some(5), Some(36))
        );
        assert_eq!((rows[0].by.as_deref(), rows[0].needed_by.as_deref()), (Some("uid 0"), Some("f")));
        assert_eq!((rows[1].cause.as_deref(), rows[1].text.as_deref()), (Some("Sandbox.Failure"), Some("no")));
        assert!(rows[0].started_ms <= rows[0].ended_ms.unwrap());
        // A later supervisor's containers begin at the same ids.
        house.life("1-2", Some(Retire::Idle));
        assert_eq!(house.all().await.len(), 4);
    }

    #[tokio::test]
    async fn what_waits_for_a_full_disk_when_kilnd_ends_is_counted_as_missing() {
        let house = House::open().await;
        let written = house.fills_its_disk().await - 1;
        house.life("3-1", None);
        house.historian.gives_up();
        assert_eq!((house.historian.lost(), house.all().await.len()), (2, written), "the one that did not fit, and the next");
        house.historian.gives_up();
        assert_eq!(house.historian.lost(), 2, "each once");
    }

    #[tokio::test]
    async fn what_happens_while_the_disk_is_full_is_in_the_history_when_it_has_room() {
        let house = House::open().await;
        house.life("1-1", None);
        assert_eq!(house.all().await.len(), 1);
        let lives = house.fills_its_disk().await;
        let end = What::Retired { why: Retire::Killed, detail: Detail::default(), age_s: 1.0, invocations: 1, peak_mib: 1 };
        house.events.emit(&Subject::environment(&FunctionName::parse("f").unwrap(), "1-1"), None, end);
        assert!(!house.historian.flush().await);
        house.pages(1 << 20).await;
        assert!(house.historian.flush().await);
        let rows = house.all().await;
        assert_eq!((rows.len(), house.historian.lost()), (lives + 1, 0));
        assert!(rows.iter().all(|row| row.why.is_some()), "none is told to live that has ended");
        let first = rows.iter().find(|row| row.container.as_deref() == Some("1-1"));
        assert_eq!(first.unwrap().why.as_deref(), Some("killed"));
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_bounded_and_what_comes_later_is_kept() {
        let house = House::open().await;
        let _disk_that_hangs = house.historian.writing.lock().await;
        for number in 0..MOST {
            house.life(&format!("1-{number}"), Some(Retire::Once));
        }
        assert_eq!(house.historian.notes().changes.len(), MOST);
        assert!(house.historian.notes().lost > 0);
        drop(_disk_that_hangs);
        house.historian.flush().await;
        house.life("2-1", Some(Retire::Idle));
        assert!(house.all().await.iter().any(|row| row.container.as_deref() == Some("2-1")));
        assert!(house.historian.notes().starting.is_empty() && house.historian.notes().living.is_empty());
    }
}
