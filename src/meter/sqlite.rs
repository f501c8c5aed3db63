//! The books in SQLite: the row is in the synced write-ahead log when `record` returns.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, params};
use tokio::sync::watch;

use super::{Meter, MeterError, Row, history};
use crate::database::{Database, DatabaseError};

/// See the module docs. Cheap to clone. Rows that wait together share one commit ([`crate::database`]).
#[derive(Clone)]
pub struct SqliteMeter(Database);

impl SqliteMeter {
    pub fn new(database: Database) -> Self {
        Self(database)
    }
}

/// Between two looks for rows that are old enough to go.
const RETAIN: Duration = Duration::from_secs(3600);
/// Rows that go in one transaction, and the pause before the next: a call that waits to be written into the books waits for
/// one of them at most.
const BATCH: u32 = 500;
const PAUSE: Duration = Duration::from_millis(100);

impl SqliteMeter {
    /// Lets rows go that are older than `age`, which may change. Never ends; a task of the server's.
    pub async fn retain(self: Arc<Self>, mut age: watch::Receiver<Duration>) {
        loop {
            let age_now = *age.borrow_and_update();
            let than = SystemTime::now().checked_sub(age_now).unwrap_or(UNIX_EPOCH);
            let removed = async {
                self.remove_older(than).await?;
                self.remove_older_environments(than).await
            };
            if let Err(error) = removed.await {
                tracing::warn!(%error, "old rows could not be removed from the books");
            }
            let changed = async {
                if age.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let _ = tokio::time::timeout(RETAIN, changed).await;
        }
    }

    /// Removes what began before `than`, batch by batch; says how many rows.
    async fn remove_older(&self, than: SystemTime) -> Result<usize, DatabaseError> {
        let than = millis(than);
        let mut removed = 0;
        loop {
            let work = move |db: &Connection| remove_batch(db, than);
            match self.0.write("remove old rows from the books", work, |_| ()).await? {
                0 => return Ok(removed),
                batch => removed += batch,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The same of environments that ended before `than`.
    async fn remove_older_environments(&self, than: SystemTime) -> Result<(), DatabaseError> {
        let than = millis(than);
        let work = move |db: &Connection| history::remove_batch(db, than, BATCH);
        while self.0.write("remove old rows from the history", work, |_| ()).await? > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}

/// Rows are written as invocations end, so old ones are first: no index is needed to find them, and an insert has none more to
/// care for. (A clock that was wrong for a while leaves its rows until the right time has passed them.)
fn remove_batch(db: &Connection, than_ms: i64) -> rusqlite::Result<usize> {
    db.prepare_cached("DELETE FROM invocations WHERE start_ms < ?1 AND id < (SELECT min(id) FROM invocations) + ?2")?
        .execute(params![than_ms, BATCH])
}

pub(super) fn millis(time: SystemTime) -> i64 {
    i64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(i64::MAX)
}

impl Meter for SqliteMeter {
    async fn record(&self, row: Row) -> Result<(), MeterError> {
        let request = row.request;
        let work = move |db: &Connection| insert(db, &row);
        self.0.write("write to the books", work, |()| ()).await.map_err(|error| MeterError { request, why: error.to_string() })
    }
}

fn insert(db: &Connection, row: &Row) -> rusqlite::Result<()> {
    let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    db.prepare_cached(
        "INSERT INTO invocations (request, function, version, start_ms, duration_us, billed_ms, memory_mib, \
         max_memory_used_mib, init_us, error_type) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?
    .execute(params![
        row.request.to_string(),
        row.function.as_str(),
        row.version,
        millis(row.start),
        micros(row.duration),
        micros(row.billed) / 1000,
        row.memory.mib(),
        i64::try_from(row.max_memory_used_mib).unwrap_or(i64::MAX),
        row.init.map(micros),
        row.error_type,
    ])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::function::{FunctionName, Memory};
    use crate::invocation::RequestId;

    fn row() -> Row {
        Row {
            request: RequestId::new(),
            function: FunctionName::parse("f").unwrap(),
            version: "$LATEST".into(),
            start: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            duration: Duration::from_micros(1_234),
            billed: Duration::from_millis(100),
            memory: Memory::from_mib(128).unwrap(),
            max_memory_used_mib: 36,
            init: Some(Duration::from_micros(110_100)),
            error_type: None,
        }
    }

    #[tokio::test]
    async fn a_row_is_readable_by_others_as_soon_as_it_is_recorded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kiln.db");
        let (database, _thread) = Database::open(&path).unwrap();
        let meter = SqliteMeter::new(database);
        let row = row();
        meter.record(row.clone()).await.unwrap();
        let other = Connection::open(&path).unwrap();
        let found: (String, i64, i64, i64, i64, Option<String>) = other
            .query_row("SELECT request, start_ms, duration_us, billed_ms, init_us, error_type FROM invocations", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?))
            })
            .unwrap();
        assert_eq!(found, (row.request.to_string(), 1_700_000_000_123, 1_234, 100, 110_100, None));
    }

    #[tokio::test]
    async fn old_rows_go_batch_by_batch_and_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kiln.db");
        let (database, _thread) = Database::open(&path).unwrap();
        let at = |day: u64| UNIX_EPOCH + Duration::from_secs(day * 86_400);
        let meter = SqliteMeter::new(database.clone());
        // More than two batches that are old, the last of them written among younger ones, as a long invocation's is.
        let days = [vec![1; 1100], vec![9, 1, 9], vec![9; 10]].concat();
        let work = move |db: &Connection| days.iter().try_for_each(|day| insert(db, &Row { start: at(*day), ..row() }));
        database.write("write many rows", work, |()| ()).await.unwrap();
        assert_eq!(meter.remove_older(at(5)).await.unwrap(), 1101);
        assert_eq!(meter.remove_older(at(5)).await.unwrap(), 0);
        let left: i64 =
            Connection::open(&path).unwrap().query_row("SELECT count(*) FROM invocations", [], |row| row.get(0)).unwrap();
        assert_eq!(left, 12);
    }

    #[tokio::test]
    async fn rows_go_as_soon_as_they_are_kept_for_fewer_days() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kiln.db");
        let (database, _thread) = Database::open(&path).unwrap();
        let meter = Arc::new(SqliteMeter::new(database));
        let days = |days: u64| Duration::from_secs(days * 86_400);
        // The first goes by the age that is told first: when it is gone, the second has been looked at, too.
        for start in [UNIX_EPOCH, SystemTime::now() - days(10)] {
            meter.record(Row { start, ..row() }).await.unwrap();
        }
        let (age, told) = watch::channel(days(20));
        let retaining = tokio::spawn(meter.retain(told));
        let other = Connection::open(&path).unwrap();
        let rows = || other.query_row("SELECT count(*) FROM invocations", [], |row| row.get::<_, i64>(0)).unwrap();
        let at_most = async |left: i64| {
            let gone = async {
                while rows() > left {
                    tokio::time::sleep(Duration::from_millis(5)).await; // the pace of looking
                }
            };
            tokio::time::timeout(Duration::from_secs(30), gone).await.expect("not after the hour, but at once");
        };
        at_most(1).await;
        assert_eq!(rows(), 1);
        age.send_replace(days(1));
        at_most(0).await;
        retaining.abort();
    }

    #[tokio::test]
    async fn a_full_disk_is_told_and_the_next_row_with_room_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let (database, _thread) = Database::open(&directory.path().join("kiln.db")).unwrap();
        let pages = |count: i64| {
            let work =
                move |db: &Connection| db.query_row(&format!("PRAGMA max_page_count = {count}"), [], |row| row.get::<_, i64>(0));
            database.write("bound the file", work, |_| ())
        };
        // SQLite's own bound on the file's size: the same SQLITE_FULL as a full disk's.
        pages(1).await.unwrap();
        let meter = SqliteMeter::new(database.clone());
        let mut refused = None;
        for _ in 0..1000 {
            if let Err(error) = meter.record(row()).await {
                refused = Some(error);
                break;
            }
        }
        assert!(refused.expect("a bounded file takes no endless books").why.contains("full"));
        pages(1 << 20).await.unwrap();
        meter.record(row()).await.unwrap();
    }
}
