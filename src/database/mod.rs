//! The server's database: one SQLite file, one connection, one thread.
//!
//! A word of the server; [`crate::registry`] and [`crate::meter`] keep their tables in it. SQLite blocks, so
//! it has a thread of its own, and everybody else sends it work:
//!
//! ```text
//! room ── write(work, publish) ──▶ [bounded queue] ──▶ thread:  BEGIN
//!                                                                 savepoint: work 1
//!                                                                 savepoint: work 2 …   whatever waits, up to a batch
//!                                                               COMMIT  (write-ahead log, synced)
//! room ◀── the work's own result ───────────────────────────── publish 1, publish 2 …  in the order of the commits
//! ```
//!
//! Group commit: a sync costs 0.3 ms whatever is in it, so works that wait together share one. A work that fails
//! undoes itself only. Nothing is answered, and nothing is published to memory, before it is on the disk; and
//! what is published becomes visible in the order in which it became durable.

mod schema;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::{fs, io};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

pub use schema::SCHEMA_VERSION;

/// Works that may wait. Whoever sends one more waits too, and no queue is unbounded.
const QUEUE: usize = 1024;
/// Works that share one commit at most, so that the first of them is not kept waiting by the last.
const BATCH: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("create the directory {path}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("open the database {path}")]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error("start the database's thread")]
    Thread { source: io::Error },
    #[error(
        "the database {path} has schema version {found}, and this kilnd knows up to {SCHEMA_VERSION}: a newer Kiln has \
         written it. Start that version again, or restore the state directory from a backup"
    )]
    Newer { path: PathBuf, found: i64 },
    #[error("the database {path} belongs to another program (application id {found})")]
    Foreign { path: PathBuf, found: i64 },
    /// Nothing of this work was stored.
    #[error("{attempt}: {source}")]
    Work { attempt: &'static str, source: rusqlite::Error },
    /// Nothing of this work, nor of those that shared its commit, was stored.
    #[error("commit to the database: {source}")]
    Commit { source: Arc<rusqlite::Error> },
    #[error("the database is closed")]
    Closed,
}

impl DatabaseError {
    /// The disk or a quota is full: what was asked for may work once there is room again.
    pub fn is_full(&self) -> bool {
        let code = match self {
            Self::Work { source, .. } => source.sqlite_error_code(),
            Self::Commit { source } => source.sqlite_error_code(),
            _ => None,
        };
        code == Some(rusqlite::ErrorCode::DiskFull)
    }
}

/// A handle to the thread; cheap to clone. The thread ends when the last one is dropped.
#[derive(Clone)]
pub struct Database {
    works: mpsc::Sender<Box<dyn Work>>,
}

/// Joins the thread, so that the last commit and SQLite's own clean-up are over before the process ends.
pub struct DatabaseThread(JoinHandle<()>);

impl DatabaseThread {
    /// Waits until every [`Database`] is dropped and the file is closed.
    pub fn join(self) {
        // A panic aborts the process, so there is no other result than the unit.
        let _ = self.0.join();
    }
}

impl Database {
    /// Opens `path`, brings its schema up to date, and starts the thread.
    pub fn open(path: &Path) -> Result<(Self, DatabaseThread), DatabaseError> {
        let connection = connect(path)?;
        let (works, queue) = mpsc::channel(QUEUE);
        let thread = thread::Builder::new()
            .name("database".into())
            .spawn(move || serve(connection, queue))
            .map_err(|source| DatabaseError::Thread { source })?;
        Ok((Self { works }, DatabaseThread(thread)))
    }

    /// Does `work` in a transaction; when this returns `Ok`, it is on the disk. `publish` runs after the commit and before the
    /// answer, on the database's thread, in the order of the commits: for the copy in memory that readers see.
    pub async fn write<T: Send + 'static>(
        &self,
        attempt: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
        publish: impl FnOnce(&T) + Send + 'static,
    ) -> Result<T, DatabaseError> {
        let (reply, answer) = oneshot::channel();
        let work = Write { attempt, work: Some(work), done: None, publish, reply };
        self.works.send(Box::new(work)).await.map_err(|_| DatabaseError::Closed)?;
        answer.await.map_err(|_| DatabaseError::Closed)?
    }
}

/// A work with its type forgotten, so that one queue holds them all.
trait Work: Send {
    /// Inside of the transaction and of a savepoint of its own. `Err` means: undo this work.
    fn run(&mut self, connection: &Connection) -> Result<(), ()>;
    /// After the commit, or after it failed.
    fn finish(self: Box<Self>, commit: Result<(), Arc<rusqlite::Error>>);
}

struct Write<W, T, P> {
    attempt: &'static str,
    work: Option<W>,
    done: Option<Result<T, rusqlite::Error>>,
    publish: P,
    reply: oneshot::Sender<Result<T, DatabaseError>>,
}

impl<W, T, P> Work for Write<W, T, P>
where
    W: FnOnce(&Connection) -> rusqlite::Result<T> + Send,
    T: Send,
    P: FnOnce(&T) + Send,
{
    fn run(&mut self, connection: &Connection) -> Result<(), ()> {
        if let Some(work) = self.work.take() {
            self.done = Some(work(connection));
        }
        if matches!(self.done, Some(Ok(_))) { Ok(()) } else { Err(()) }
    }

    fn finish(self: Box<Self>, commit: Result<(), Arc<rusqlite::Error>>) {
        let answer = match (self.done, commit) {
            (Some(Ok(value)), Ok(())) => {
                (self.publish)(&value);
                Ok(value)
            }
            (Some(Err(source)), _) => Err(DatabaseError::Work { attempt: self.attempt, source }),
            (_, Err(source)) => Err(DatabaseError::Commit { source }),
            (None, Ok(())) => Err(DatabaseError::Closed),
        };
        // Nobody may be waiting any more; what was committed stays committed.
        let _ = self.reply.send(answer);
    }
}

/// The thread: takes what waits, commits it as one, answers.
fn serve(connection: Connection, mut queue: mpsc::Receiver<Box<dyn Work>>) {
    while let Some(first) = queue.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH {
            match queue.try_recv() {
                Ok(work) => batch.push(work),
                Err(_) => break,
            }
        }
        let commit = transact(&connection, &mut batch).map_err(Arc::new);
        for work in batch {
            work.finish(commit.clone());
        }
    }
}

fn transact(connection: &Connection, batch: &mut [Box<dyn Work>]) -> rusqlite::Result<()> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let done = batch.iter_mut().try_for_each(|work| {
        connection.execute_batch("SAVEPOINT work")?;
        if work.run(connection).is_err() {
            // Some errors (a full disk) have undone the whole transaction already; then this fails, and so does the batch.
            connection.execute_batch("ROLLBACK TO work")?;
        }
        connection.execute_batch("RELEASE work")
    });
    let committed = done.and_then(|()| {
        kill_point!("before-commit");
        connection.execute_batch("COMMIT")
    });
    if committed.is_err() && !connection.is_autocommit() {
        // The first error is the one to tell; if this fails as well, the next BEGIN will say so.
        let _ = connection.execute_batch("ROLLBACK");
    }
    committed
}

fn connect(path: &Path) -> Result<Connection, DatabaseError> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(|source| DatabaseError::Directory { path: directory.to_owned(), source })?;
    }
    let fail = |source| DatabaseError::Open { path: path.to_owned(), source };
    let mut connection = Connection::open(path).map_err(fail)?;
    // Before anything is written, the journal mode included.
    schema::check(&connection, path)?;
    // FULL: a commit in WAL mode is synced, so it survives a power cut as well as a SIGKILL.
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF;",
        )
        .map_err(fail)?;
    schema::migrate(&mut connection).map_err(fail)?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn open(directory: &tempfile::TempDir) -> (Database, DatabaseThread) {
        Database::open(&directory.path().join("db/kiln.db")).unwrap()
    }

    async fn bump(database: &Database) -> Result<i64, DatabaseError> {
        let work = |db: &Connection| db.query_row("UPDATE stamps SET last = last + 1 RETURNING last", [], |row| row.get(0));
        database.write("bump", work, |_: &i64| ()).await
    }

    #[tokio::test]
    async fn a_newer_database_is_refused_and_left_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kiln.db");
        Connection::open(&path)
            .unwrap()
            .execute_batch(&format!("PRAGMA application_id = {}; PRAGMA user_version = 4711;", schema::APPLICATION_ID))
            .unwrap();
        let before = fs::read(&path).unwrap();
        let error = Database::open(&path).err().unwrap();
        assert!(matches!(error, DatabaseError::Newer { found: 4711, .. }), "{error}");
        assert!(error.to_string().contains("a newer Kiln"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[tokio::test]
    async fn another_programs_database_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kiln.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE recipes (name TEXT)").unwrap();
        assert!(matches!(Database::open(&path), Err(DatabaseError::Foreign { .. })));
    }

    #[tokio::test]
    async fn a_reopened_database_goes_on_where_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let (database, thread) = open(&directory);
        assert_eq!(bump(&database).await.unwrap(), 1);
        drop(database);
        thread.join();
        let (database, _thread) = open(&directory);
        assert_eq!(bump(&database).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_work_that_fails_undoes_only_itself() {
        let directory = tempfile::tempdir().unwrap();
        let (database, _thread) = open(&directory);
        let bad = |db: &Connection| {
            db.execute("UPDATE stamps SET last = 100", [])?;
            db.execute("INSERT INTO nowhere VALUES (1)", [])
        };
        let (good, bad, also_good) =
            tokio::join!(bump(&database), database.write("insert into nowhere", bad, |_| ()), bump(&database));
        assert!(matches!(bad, Err(DatabaseError::Work { attempt: "insert into nowhere", .. })));
        assert_eq!((good.unwrap(), also_good.unwrap()), (1, 2));
    }

    #[tokio::test]
    async fn works_that_wait_together_share_a_commit_and_are_published_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let (database, _thread) = open(&directory);
        let (entered_tx, entered) = oneshot::channel();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let history = Arc::new(Mutex::new(Vec::new()));
        // Holds the thread, so that the others pile up behind it.
        let block = move |_: &Connection| {
            entered_tx.send(()).unwrap();
            wait.recv().unwrap();
            Ok(())
        };
        let blocked = database.write("block", block, |()| ());
        let others = async {
            entered.await.unwrap();
            let mut writes = tokio::task::JoinSet::new();
            for number in 0..50 {
                let (database, ran, published) = (database.clone(), history.clone(), history.clone());
                writes.spawn(async move {
                    let work = move |db: &Connection| {
                        ran.lock().unwrap().push(("ran", number));
                        db.execute("UPDATE stamps SET last = ?1", [number])
                    };
                    let publish = move |_: &usize| published.lock().unwrap().push(("published", number));
                    database.write("set", work, publish).await.unwrap()
                });
            }
            while database.works.capacity() > QUEUE - 50 {
                tokio::task::yield_now().await;
            }
            go.send(()).unwrap();
            writes.join_all().await;
        };
        let (done, ()) = tokio::join!(blocked, others);
        done.unwrap();
        let once = |what| (0..50).map(move |number| (what, number));
        let expected: Vec<_> = once("ran").chain(once("published")).collect();
        assert_eq!(*history.lock().unwrap(), expected);
    }
}
