//! The history: one row for each execution environment, from its start to its end, and why.
//!
//! Two halves, as of the books: [`History`] writes through the server's [`Database`], [`Past`] reads with a connection of its own,
//! for as long as it takes, and blocks. Bounded by age (as the books), by rows of one function, and by rows.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use serde::Serialize;

use super::sqlite::millis;
use crate::database::{Database, DatabaseError};

/// What kilnd could not tell any more of environments that died with it.
pub const WITH_KILND: &str = "with_kilnd";
/// Ended environments of one function that are kept, so that one which ends with each invocation leaves room for others.
const OF_ONE: u32 = 1000;
/// Of all functions: some 30 MB.
const OF_ALL: u32 = 100_000;
/// The whole table is counted after so many new rows.
const COUNT_EVERY: i64 = 1000;

/// An environment has been started (or could not be).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    pub id: i64,
    pub function: String,
    pub version: String,
    pub container: Option<String>,
    pub request: Option<String>,
    pub cold: String,
    pub started: SystemTime,
    pub build_us: Option<u64>,
    pub init_us: Option<u64>,
}

/// And it has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Over {
    pub id: i64,
    pub ended: SystemTime,
    pub why: String,
    pub cause: Option<String>,
    pub text: Option<String>,
    pub by: Option<String>,
    pub needed_by: Option<String>,
    pub invocations: u64,
    pub peak_mib: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Begun(Begun),
    Over(Over),
}

/// For writing. Cheap to clone.
#[derive(Clone)]
pub struct History(Database);

impl History {
    /// Tells the next row's number, too.
    pub async fn open(database: Database) -> Result<(Self, i64), DatabaseError> {
        let work = |db: &Connection| db.query_row("SELECT max(id) FROM environments", [], |row| row.get::<_, Option<i64>>(0));
        let last = database.write("read where the history ends", work, |_| ()).await?;
        Ok((Self(database), last.unwrap_or(0) + 1))
    }

    /// Closes what a server left open that died, below row `next`; tells how many environments those were.
    pub async fn close(&self, next: i64) -> Result<usize, DatabaseError> {
        let work = move |db: &Connection| {
            db.execute(
                "UPDATE environments SET ended_ms = max(?1, started_ms), why = ?2 WHERE ended_ms IS NULL AND id < ?3",
                params![millis(SystemTime::now()), WITH_KILND, next],
            )
        };
        self.0.write("close the history of a server that died", work, |_| ()).await
    }

    /// All of them or none; when it returns, they survive SIGKILL.
    pub async fn write(&self, changes: Arc<Vec<Change>>) -> Result<(), DatabaseError> {
        let work = move |db: &Connection| changes.iter().try_for_each(|change| apply(db, change));
        self.0.write("write to the history", work, |()| ()).await
    }
}

fn apply(db: &Connection, change: &Change) -> rusqlite::Result<()> {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    match change {
        Change::Begun(row) => {
            let statement = "INSERT INTO environments (id, function, version, container, request, cold, started_ms, build_us, init_us) \
                             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
            db.prepare_cached(statement)?.execute(params![
                row.id,
                row.function,
                row.version,
                row.container,
                row.request,
                row.cold,
                millis(row.started),
                row.build_us.map(number),
                row.init_us.map(number),
            ])?;
            bound(db, &row.function)?;
            if row.id % COUNT_EVERY == 0 {
                bound_all(db, OF_ALL)?;
            }
        }
        Change::Over(row) => {
            let statement = "UPDATE environments SET ended_ms = max(?2, started_ms), why = ?3, cause = ?4, text = ?5, by = ?6, needed_by = ?7, \
                             invocations = ?8, peak_mib = ?9 WHERE id = ?1";
            db.prepare_cached(statement)?.execute(params![
                row.id,
                millis(row.ended),
                row.why,
                row.cause,
                row.text,
                row.by,
                row.needed_by,
                number(row.invocations),
                number(row.peak_mib),
            ])?;
        }
    }
    Ok(())
}

/// Lets the oldest rows of a function go that are too many. An index holds a function's rows in the order of their numbers.
fn bound(db: &Connection, function: &str) -> rusqlite::Result<()> {
    let last = "SELECT id FROM environments WHERE function = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2";
    let last: Option<i64> = db.prepare_cached(last)?.query_row(params![function, OF_ONE], |row| row.get(0)).optional()?;
    if let Some(last) = last {
        let gone = "DELETE FROM environments WHERE function = ?1 AND id <= ?2 AND ended_ms IS NOT NULL";
        db.prepare_cached(gone)?.execute(params![function, last])?;
    }
    Ok(())
}

fn bound_all(db: &Connection, most: u32) -> rusqlite::Result<()> {
    let gone = "DELETE FROM environments WHERE id IN (SELECT id FROM environments WHERE ended_ms IS NOT NULL ORDER BY ended_ms \
                LIMIT max(0, (SELECT count(*) FROM environments) - ?1))";
    db.execute(gone, [most])?;
    Ok(())
}

/// Removes some that ended before; says how many.
pub(super) fn remove_batch(db: &Connection, than_ms: i64, most: u32) -> rusqlite::Result<usize> {
    let gone = "DELETE FROM environments WHERE id IN (SELECT id FROM environments WHERE ended_ms < ?1 LIMIT ?2)";
    db.prepare_cached(gone)?.execute(params![than_ms, most])
}

/// One environment, as people on duty see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Environment {
    pub function: String,
    pub version: String,
    pub container: Option<String>,
    pub request: Option<String>,
    /// Why no warm one could serve that request.
    pub cold: String,
    pub started_ms: i64,
    pub build_us: Option<i64>,
    pub init_us: Option<i64>,
    /// `None`: it lives.
    pub ended_ms: Option<i64>,
    pub why: Option<String>,
    pub cause: Option<String>,
    pub text: Option<String>,
    pub by: Option<String>,
    pub needed_by: Option<String>,
    pub invocations: Option<i64>,
    pub peak_mib: Option<i64>,
}

/// Which environments somebody wants to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub function: Option<String>,
    pub container: Option<String>,
    /// That ended then or later.
    pub since_ms: Option<i64>,
    /// Those that live, too.
    pub living: bool,
    /// The latest so many.
    pub limit: u32,
}

/// The history, for reading.
#[derive(Clone, Debug)]
pub struct Past {
    path: PathBuf,
}

impl Past {
    /// Of the database at `path`, which its server has open.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// In the order of their ends; those that live come last. Blocks.
    pub fn environments(&self, asked: &Asked) -> rusqlite::Result<Vec<Environment>> {
        let db = Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        db.busy_timeout(Duration::from_secs(5))?;
        let mut statement = db.prepare(
            "SELECT function, version, container, request, cold, started_ms, build_us, init_us, ended_ms, why, cause, text, by, \
             needed_by, invocations, peak_mib FROM environments \
             WHERE (?1 IS NULL OR function = ?1) AND (?2 IS NULL OR container = ?2) AND (?3 IS NULL OR ifnull(ended_ms, ?3) >= ?3) \
             AND (?4 OR ended_ms IS NOT NULL) ORDER BY ended_ms DESC NULLS FIRST, id DESC LIMIT ?5",
        )?;
        let asked = params![asked.function, asked.container, asked.since_ms, asked.living, asked.limit];
        let rows = statement.query_map(asked, |row| {
            Ok(Environment {
                function: row.get(0)?,
                version: row.get(1)?,
                container: row.get(2)?,
                request: row.get(3)?,
                cold: row.get(4)?,
                started_ms: row.get(5)?,
                build_us: row.get(6)?,
                init_us: row.get(7)?,
                ended_ms: row.get(8)?,
                why: row.get(9)?,
                cause: row.get(10)?,
                text: row.get(11)?,
                by: row.get(12)?,
                needed_by: row.get(13)?,
                invocations: row.get(14)?,
                peak_mib: row.get(15)?,
            })
        })?;
        let mut found = rows.collect::<rusqlite::Result<Vec<_>>>()?;
        found.reverse();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn begun(id: i64, function: &str) -> Change {
        Change::Begun(Begun {
            id,
            function: function.into(),
            version: "$LATEST".into(),
            container: Some(format!("1-{id}")),
            request: Some("r".into()),
            cold: "first".into(),
            started: UNIX_EPOCH + Duration::from_secs(id as u64),
            build_us: Some(1),
            init_us: Some(2),
        })
    }

    fn over(id: i64) -> Change {
        Change::Over(Over {
            id,
            ended: UNIX_EPOCH + Duration::from_secs(1_000_000 + id as u64),
            why: "idle".into(),
            cause: None,
            text: None,
            by: None,
            needed_by: None,
            invocations: 3,
            peak_mib: 36,
        })
    }

    fn all(path: &std::path::Path, asked: Asked) -> Vec<(String, Option<String>)> {
        let found = Past::new(path.to_owned()).environments(&Asked { limit: 10_000, ..asked }).unwrap();
        found.into_iter().map(|one| (one.container.unwrap(), one.why)).collect()
    }

    #[tokio::test]
    async fn what_lived_when_its_server_died_is_told_to_have_ended_with_it_and_new_rows_follow_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kiln.db");
        let (database, thread) = Database::open(&path).unwrap();
        let (history, next) = History::open(database).await.unwrap();
        assert_eq!((history.close(next).await.unwrap(), next), (0, 1));
        history.write(Arc::new(vec![begun(1, "a"), begun(2, "a"), over(1)])).await.unwrap();
        let living = Asked { living: true, ..Asked::default() };
        let why = |why: &str| Some(why.to_owned());
        assert_eq!(all(&path, living.clone()), [("1-1".into(), why("idle")), ("1-2".into(), None)]);
        assert_eq!(all(&path, Asked::default()), [("1-1".into(), why("idle"))]);
        drop(history);
        thread.join();
        let (database, _thread) = Database::open(&path).unwrap();
        let (history, next) = History::open(database).await.unwrap();
        history.write(Arc::new(vec![begun(next, "a")])).await.unwrap();
        assert_eq!((history.close(next).await.unwrap(), next), (1, 3));
        let old = [("1-1".into(), why("idle")), ("1-2".into(), why(WITH_KILND))];
        assert_eq!(all(&path, living), [&old[..], &[("1-3".into(), None)]].concat(), "what is this server's own lives on");
    }

    #[tokio::test]
    async fn a_function_that_ends_an_environment_with_each_invocation_pushes_no_other_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kiln.db");
        let (database, _thread) = Database::open(&path).unwrap();
        let (history, ..) = History::open(database.clone()).await.unwrap();
        history.write(Arc::new(vec![begun(1, "quiet"), over(1), begun(2, "busy")])).await.unwrap();
        let flood: Vec<_> = (3..=i64::from(OF_ONE) + 50).flat_map(|id| [begun(id, "busy"), over(id)]).collect();
        history.write(flood.into()).await.unwrap();
        let of = |function: &str| all(&path, Asked { function: Some(function.into()), living: true, ..Asked::default() });
        assert_eq!(of("quiet").len(), 1);
        let busy = of("busy");
        assert_eq!(busy.len(), OF_ONE as usize + 1, "and the one that lives");
        assert_eq!(busy.last().unwrap(), &("1-2".to_owned(), None));
        database.write("bound", |db| bound_all(db, 10), |()| ()).await.unwrap();
        assert_eq!(all(&path, Asked::default()).len(), 9, "the oldest ends go first, and no living one");
        let removed = |db: &Connection| remove_batch(db, i64::MAX, 5);
        assert_eq!(database.write("age", removed, |_| ()).await.unwrap(), 5);
    }

    #[tokio::test]
    async fn what_is_asked_for_is_found_and_the_latest_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kiln.db");
        let (database, _thread) = Database::open(&path).unwrap();
        let (history, ..) = History::open(database).await.unwrap();
        let changes = (1..=6).flat_map(|id| [begun(id, if id % 2 == 0 { "even" } else { "odd" }), over(id)]);
        history.write(Arc::new(changes.collect())).await.unwrap();
        let names = |asked: Asked| all(&path, asked).into_iter().map(|(container, _)| container).collect::<Vec<_>>();
        assert_eq!(names(Asked { function: Some("even".into()), ..Asked::default() }), ["1-2", "1-4", "1-6"]);
        assert_eq!(names(Asked { container: Some("1-3".into()), ..Asked::default() }), ["1-3"]);
        assert_eq!(names(Asked { since_ms: Some(1_000_005_000), ..Asked::default() }), ["1-5", "1-6"]);
        let found = Past::new(path).environments(&Asked { limit: 2, ..Asked::default() }).unwrap();
        assert_eq!(found.iter().map(|one| one.container.as_deref().unwrap()).collect::<Vec<_>>(), ["1-5", "1-6"]);
    }
}
