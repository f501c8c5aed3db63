//! The registry in SQLite, with a copy of every record in memory.
//!
//! Reads come from the copy and never wait. Writes go through [`Database`]: durable first, then, still on the
//! database's thread and in the order of the commits, into the copy.

mod layers;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::layers::mounted;
use super::{Change, Draft, Functions, LayerName, LayerVersion, Promise, Record, Registry, RegistryError};
use crate::code::Digest;
use crate::database::Database;
use crate::function::{Function, FunctionName, Stamp};

/// See the module docs. Cheap to clone.
#[derive(Clone)]
pub struct SqliteRegistry {
    database: Database,
    records: Arc<Records>,
}

/// The copy in memory. `std` lock: held for one map operation, never across an await; no other lock is taken inside.
/// Written by the database's thread only, read by everybody.
#[derive(Default)]
struct Records(RwLock<Held>);

/// Behind one lock, so that no look falls between a function that takes a layer and that layer's deletion.
#[derive(Default)]
struct Held {
    functions: BTreeMap<FunctionName, Arc<Record>>,
    layers: BTreeMap<(LayerName, u64), Arc<LayerVersion>>,
}

/// A record as its row holds it.
#[derive(Serialize, Deserialize)]
struct Stored {
    draft: Draft,
    revision: String,
    modified_ms: i64,
}

/// What a work found; rusqlite's own errors travel outside of it. The transaction is committed for both, and
/// for a refusal it is empty.
type Found = Result<Arc<Record>, RegistryError>;

impl SqliteRegistry {
    /// Reads all records into memory.
    pub async fn open(database: Database) -> Result<Self, RegistryError> {
        let records = Arc::new(Records::default());
        let copy = records.clone();
        let loaded = database.write("read the functions", read_all, move |found| {
            if let Ok(found) = found {
                copy.change(|held| held.functions.extend(found.iter().cloned()));
            }
        });
        loaded.await??;
        layers::load(&database, records.clone()).await?;
        Ok(Self { database, records })
    }

    async fn change(
        &self,
        attempt: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<Found> + Send + 'static,
    ) -> Found {
        let copy = self.records.clone();
        let publish = move |found: &Found| {
            if let Ok(record) = found {
                let _ = copy.change(|held| held.functions.insert(record.function.name.clone(), record.clone()));
            }
        };
        self.database.write(attempt, work, publish).await?
    }
}

impl Functions for SqliteRegistry {
    fn function(&self, name: &FunctionName) -> Option<Arc<Function>> {
        self.records.read(|held| held.functions.get(name).map(|record| record.function.clone()))
    }

    fn reserved(&self, name: &FunctionName) -> Option<u32> {
        self.records.read(|held| held.functions.get(name).and_then(|record| record.reserved_concurrency))
    }

    fn reserves(&self) -> Vec<(FunctionName, u32)> {
        let reserve = |(name, record): (&FunctionName, &Arc<Record>)| Some((name.clone(), record.reserved_concurrency?));
        self.records.read(|held| held.functions.iter().filter_map(reserve).collect())
    }
}

impl Registry for SqliteRegistry {
    fn record(&self, name: &FunctionName) -> Option<Arc<Record>> {
        self.records.read(|held| held.functions.get(name).cloned())
    }

    fn page(&self, after: Option<&FunctionName>, limit: usize) -> Vec<Arc<Record>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.records.read(|held| {
            let behind = held.functions.range::<FunctionName, _>((from, Bound::Unbounded));
            behind.take(limit).map(|(_, record)| record.clone()).collect()
        })
    }

    fn create(&self, draft: Draft) -> Promise<'_, Found> {
        Box::pin(self.change("store a function", move |db| {
            if read(db, &draft.function.name)?.is_some() {
                return Ok(Err(RegistryError::Exists(draft.function.name)));
            }
            match layers::missing(db, &draft.layers, &[])? {
                Some(missing) => Ok(Err(missing)),
                None => write(db, draft).map(Ok),
            }
        }))
    }

    fn update(&self, name: &FunctionName, expected: Option<Uuid>, change: Change) -> Promise<'_, Found> {
        let name = name.clone();
        Box::pin(self.change("update a function", move |db| {
            let Some(stored) = read(db, &name)? else { return Ok(Err(RegistryError::Unknown(name))) };
            if expected.is_some_and(|expected| expected.to_string() != stored.revision) {
                return Ok(Err(RegistryError::Stale(name)));
            }
            let mut draft = stored.draft.clone();
            change(&mut draft);
            // A change never renames: the row's key and the record must agree.
            draft.function.name = name;
            if let Some(missing) = layers::missing(db, &draft.layers, &stored.draft.layers)? {
                return Ok(Err(missing));
            }
            // Tags are nothing that an environment is made from: those that are warm stay so.
            let mut retagged = stored.draft;
            if retagged.tags != draft.tags {
                retagged.tags.clone_from(&draft.tags);
                if retagged == draft {
                    return rewrite(db, draft, stored.modified_ms).map(Ok);
                }
            }
            write(db, draft).map(Ok)
        }))
    }

    fn delete(&self, name: &FunctionName) -> Promise<'_, Found> {
        let name = name.clone();
        let (copy, removed) = (self.records.clone(), Arc::new(Mutex::new(None)));
        let work = move |db: &Connection| {
            let Some(stored) = read(db, &name)? else { return Ok(Err(RegistryError::Unknown(name))) };
            for table in [
                "DELETE FROM functions WHERE name = ?1",
                "DELETE FROM function_layers WHERE function = ?1",
                "DELETE FROM reserves WHERE function = ?1",
            ] {
                db.execute(table, [name.as_str()])?;
            }
            stored.into_record(None).map(|record| Ok(Arc::new(record)))
        };
        // Given back is the value that readers have seen, not another one like it: who still holds it runs it.
        let seen = removed.clone();
        let publish = move |found: &Found| {
            if let Ok(record) = found {
                let record = copy.change(|held| held.functions.remove(&record.function.name));
                *seen.lock().unwrap_or_else(PoisonError::into_inner) = record;
            }
        };
        Box::pin(async move {
            let record = self.database.write("delete a function", work, publish).await??;
            Ok(removed.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or(record))
        })
    }

    fn set_reserve(&self, name: &FunctionName, reserve: Option<u32>, most: u32) -> Promise<'_, Result<(), RegistryError>> {
        let (name, wanted, copy) = (name.clone(), name.clone(), self.records.clone());
        let work = move |db: &Connection| {
            if read(db, &wanted)?.is_none() {
                return Ok(Err(RegistryError::Unknown(wanted)));
            }
            let Some(reserve) = reserve else {
                db.execute("DELETE FROM reserves WHERE function = ?1", [wanted.as_str()])?;
                return Ok(Ok(()));
            };
            let others: i64 = db
                .prepare_cached("SELECT coalesce(sum(reserved), 0) FROM reserves WHERE function != ?1")?
                .query_row([wanted.as_str()], |row| row.get(0))?;
            let grows = read_reserve(db, &wanted)?.unwrap_or(0) < reserve;
            if grows && others + i64::from(reserve) > i64::from(most) {
                return Ok(Err(RegistryError::TooMuchReserved { most }));
            }
            db.execute("INSERT OR REPLACE INTO reserves VALUES (?1, ?2)", params![wanted.as_str(), reserve])?;
            Ok(Ok(()))
        };
        let publish = move |done: &Result<(), RegistryError>| {
            if done.is_ok() {
                copy.change(|held| {
                    if let Some(record) = held.functions.get_mut(&name) {
                        // The same function: who holds its value runs it, and it has not changed.
                        *record = Arc::new(Record { reserved_concurrency: reserve, ..Record::clone(record) });
                    }
                });
            }
        };
        Box::pin(async move { self.database.write("store a reserve", work, publish).await? })
    }

    fn total_code_size(&self) -> u64 {
        self.records.read(|held| {
            let functions = held.functions.values().map(|record| record.code_size);
            functions.chain(held.layers.values().map(|layer| layer.code_size)).sum()
        })
    }

    fn uses_code(&self, code: &Digest) -> bool {
        self.records.read(|held| {
            let uses = |function: &Function| function.code == *code || function.layers.contains(code);
            held.functions.values().any(|record| uses(&record.function)) || held.layers.values().any(|layer| layer.code == *code)
        })
    }

    fn unpacked_size(&self, code: &Digest) -> Option<u64> {
        self.records.read(|held| {
            let own = held.functions.values().map(|record| (record.function.code, record.unpacked));
            let used = held.functions.values().flat_map(|record| &record.layers).map(|layer| (layer.code, layer.unpacked));
            let published = held.layers.values().map(|layer| (layer.code, layer.unpacked));
            own.chain(used).chain(published).find(|(other, size)| other == code && *size > 0).map(|(_, size)| size)
        })
    }

    fn expect_code(&self, code: Digest) -> Promise<'_, Result<(), RegistryError>> {
        Box::pin(async move {
            let work = move |db: &Connection| db.execute("INSERT OR IGNORE INTO codes VALUES (?1)", [code.to_string()]);
            self.database.write("note down code", work, |_| ()).await?;
            Ok(())
        })
    }

    fn code_is_gone(&self, code: Digest) -> Promise<'_, Result<(), RegistryError>> {
        Box::pin(async move {
            let work = move |db: &Connection| db.execute("DELETE FROM codes WHERE digest = ?1", [code.to_string()]);
            self.database.write("strike out code", work, |_| ()).await?;
            Ok(())
        })
    }

    fn unused_codes(&self) -> Promise<'_, Result<Vec<Digest>, RegistryError>> {
        let work = |db: &Connection| {
            let mut query = db.prepare_cached(
                "SELECT digest FROM codes WHERE digest NOT IN \
                 (SELECT code FROM functions UNION SELECT code FROM function_layers UNION SELECT code FROM layers)",
            )?;
            let digests = query.query_map([], |row| row.get_ref(0)?.as_str().map(str::parse).map_err(Into::into))?;
            digests.collect::<rusqlite::Result<Vec<Result<Digest, _>>>>()
        };
        Box::pin(async move {
            let found = self.database.write("look for unused code", work, |_| ()).await?;
            Ok(found.into_iter().filter_map(Result::ok).collect())
        })
    }
}

impl Records {
    // A poisoned lock: a panic aborts the process, so nobody has ever seen one.
    fn read<T>(&self, look: impl FnOnce(&Held) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Held) -> T) -> T {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Stored {
    fn into_record(self, reserved_concurrency: Option<u32>) -> rusqlite::Result<Record> {
        let Draft { function, role, description, code_size, unpacked, layers, tags } = self.draft;
        let (function, revision) = (Arc::new(function), Uuid::parse_str(&self.revision).map_err(unreadable)?);
        let modified_ms = self.modified_ms;
        Ok(Record { function, role, description, code_size, unpacked, layers, tags, reserved_concurrency, revision, modified_ms })
    }
}

fn read(db: &Connection, name: &FunctionName) -> rusqlite::Result<Option<Stored>> {
    let text: Option<String> = db
        .prepare_cached("SELECT record FROM functions WHERE name = ?1")?
        .query_row([name.as_str()], |row| row.get(0))
        .optional()?;
    text.map(|text| serde_json::from_str(&text).map_err(unreadable)).transpose()
}

fn read_reserve(db: &Connection, name: &FunctionName) -> rusqlite::Result<Option<u32>> {
    db.prepare_cached("SELECT reserved FROM reserves WHERE function = ?1")?
        .query_row([name.as_str()], |row| row.get(0))
        .optional()
}

/// Gives the draft its stamp, revision and time, and stores it in place of what was there.
fn write(db: &Connection, mut draft: Draft) -> rusqlite::Result<Arc<Record>> {
    let stamp: i64 = db.prepare_cached("UPDATE stamps SET last = last + 1 RETURNING last")?.query_row([], |row| row.get(0))?;
    draft.function.stamp = Stamp(stamp as u64);
    draft.function.layers = mounted(&draft.layers);
    rewrite(db, draft, now_ms())
}

/// Stores the draft under the stamp that it has, with another revision.
fn rewrite(db: &Connection, draft: Draft, modified_ms: i64) -> rusqlite::Result<Arc<Record>> {
    let stored = Stored { draft, revision: Uuid::new_v4().to_string(), modified_ms };
    let text = serde_json::to_string(&stored).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    let function = &stored.draft.function;
    db.prepare_cached("INSERT OR REPLACE INTO functions (name, stamp, code, record) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![function.name.as_str(), function.stamp.0 as i64, function.code.to_string(), text])?;
    db.execute("DELETE FROM function_layers WHERE function = ?1", [function.name.as_str()])?;
    for layer in &function.layers {
        db.prepare_cached("INSERT INTO function_layers VALUES (?1, ?2)")?
            .execute([function.name.as_str(), &layer.to_string()])?;
    }
    let reserve = read_reserve(db, &function.name)?;
    stored.into_record(reserve).map(Arc::new)
}

type All = Result<Vec<(FunctionName, Arc<Record>)>, RegistryError>;

/// A record that cannot be read stops the start: leaving it out would also throw its code away.
fn read_all(db: &Connection) -> rusqlite::Result<All> {
    let mut query = db.prepare("SELECT name, record, reserved FROM functions LEFT JOIN reserves ON function = name")?;
    let rows = query.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get(2)?)))?;
    let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(rows
        .into_iter()
        .map(|(name, text, reserve)| {
            let stored: Result<Stored, _> = serde_json::from_str(&text);
            let record =
                stored.map_err(|error| error.to_string()).and_then(|s| s.into_record(reserve).map_err(|e| e.to_string()));
            match record {
                Ok(record) if record.function.name.as_str() == name => Ok((record.function.name.clone(), Arc::new(record))),
                Ok(record) => Err(RegistryError::Damaged { name, why: format!("it is that of {}", record.function.name) }),
                Err(why) => Err(RegistryError::Damaged { name, why }),
            }
        })
        .collect())
}

fn unreadable(error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::DatabaseThread;
    use crate::function::{Memory, Reuse, Timeout, TmpSize};
    use crate::runtime::RuntimeName;

    pub(super) async fn open(directory: &tempfile::TempDir) -> (SqliteRegistry, DatabaseThread) {
        let (database, thread) = Database::open(&directory.path().join("kiln.db")).unwrap();
        (SqliteRegistry::open(database).await.unwrap(), thread)
    }

    pub(super) fn name(text: &str) -> FunctionName {
        FunctionName::parse(text).unwrap()
    }

    pub(super) fn draft(text: &str) -> Draft {
        let function = Function {
            name: name(text),
            runtime: RuntimeName::parse("nodejs8.10").unwrap(),
            handler: "index.handler".into(),
            memory: Memory::from_mib(128).unwrap(),
            timeout: Timeout::from_secs(3).unwrap(),
            tmp: TmpSize::DEFAULT,
            vars: BTreeMap::new(),
            code: Digest::of(text.as_bytes()),
            layers: Vec::new(),
            reuse: Reuse::Always,
            stamp: Stamp(0),
        };
        Draft {
            function,
            role: "arn:aws:iam::000000000000:role/r".into(),
            description: String::new(),
            code_size: 5,
            unpacked: 7,
            layers: Vec::new(),
            tags: BTreeMap::new(),
        }
    }

    #[tokio::test]
    async fn a_function_survives_a_restart_unchanged() {
        let directory = tempfile::tempdir().unwrap();
        let (registry, thread) = open(&directory).await;
        let record = registry.create(draft("a")).await.unwrap();
        drop(registry);
        thread.join();
        let (registry, _thread) = open(&directory).await;
        assert_eq!(registry.record(&name("a")), Some(record));
    }

    #[tokio::test]
    async fn a_stamp_is_never_used_twice_not_even_after_delete_and_restart() {
        let directory = tempfile::tempdir().unwrap();
        let (registry, thread) = open(&directory).await;
        let first = registry.create(draft("a")).await.unwrap().function.stamp;
        registry.delete(&name("a")).await.unwrap();
        drop(registry);
        thread.join();
        let (registry, _thread) = open(&directory).await;
        let second = registry.create(draft("a")).await.unwrap().function.stamp;
        let third = registry.update(&name("a"), None, Box::new(|_| ())).await.unwrap().function.stamp;
        assert!(first < second && second < third, "{first:?} {second:?} {third:?}");
    }

    #[tokio::test]
    async fn a_name_is_given_once() {
        let directory = tempfile::tempdir().unwrap();
        let (registry, _thread) = open(&directory).await;
        let (one, two) = tokio::join!(registry.create(draft("a")), registry.create(draft("a")));
        assert!(one.is_ok());
        assert!(matches!(two, Err(RegistryError::Exists(_))));
    }

    #[tokio::test]
    async fn of_two_updates_of_one_revision_the_second_is_stale() {
        let directory = tempfile::tempdir().unwrap();
        let (registry, _thread) = open(&directory).await;
        let revision = registry.create(draft("a")).await.unwrap().revision;
        let a = name("a");
        let update =
            |text: &'static str| registry.update(&a, Some(revision), Box::new(move |draft| draft.description = text.into()));
        let (one, two) = tokio::join!(update("one"), update("two"));
        assert_eq!(one.unwrap().description, "one");
        assert!(matches!(two, Err(RegistryError::Stale(_))));
        assert_eq!(registry.record(&a).unwrap().description, "one");
    }

    #[tokio::test]
    async fn tags_alone_give_a_new_revision_and_leave_stamp_and_time() {
        let directory = tempfile::tempdir().unwrap();
        let (registry, _thread) = open(&directory).await;
        let before = registry.create(draft("a")).await.unwrap();
        let tag = |draft: &mut Draft| drop(draft.tags.insert("k".into(), "v".into()));
        let tagged = registry.update(&name("a"), None, Box::new(tag)).await.unwrap();
        assert_eq!((&tagged.function, tagged.modified_ms), (&before.function, before.modified_ms));
        assert!(tagged.tags["k"] == "v" && tagged.revision != before.revision);
        let described = |draft: &mut Draft| (draft.description, draft.tags) = ("new".into(), BTreeMap::new());
        let described = registry.update(&name("a"), None, Box::new(described)).await.unwrap();
        assert!(described.function.stamp > before.function.stamp, "who describes a function anew wants new environments");
    }

    #[tokio::test]
    async fn a_deleted_function_is_unknown_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let (registry, _thread) = open(&directory).await;
        registry.create(draft("a")).await.unwrap();
        let seen = registry.function(&name("a")).unwrap();
        let deleted = registry.delete(&name("a")).await.unwrap();
        assert!(Arc::ptr_eq(&seen, &deleted.function), "whoever holds the value holds the one that readers saw");
        assert!(registry.function(&name("a")).is_none());
        assert!(matches!(registry.delete(&name("a")).await, Err(RegistryError::Unknown(_))));
        assert!(matches!(registry.update(&name("a"), None, Box::new(|_| ())).await, Err(RegistryError::Unknown(_))));
    }

    #[tokio::test]
    async fn pages_follow_the_names() {
        let directory = tempfile::tempdir().unwrap();
        let (registry, _thread) = open(&directory).await;
        for text in ["c", "a", "b"] {
            registry.create(draft(text)).await.unwrap();
        }
        let names = |page: Vec<Arc<Record>>| page.iter().map(|record| record.function.name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(registry.page(None, 2)), ["a", "b"]);
        assert_eq!(names(registry.page(Some(&name("b")), 2)), ["c"]);
    }

    #[tokio::test]
    async fn code_is_unused_until_a_row_names_it_and_again_when_none_does() {
        let directory = tempfile::tempdir().unwrap();
        let (registry, _thread) = open(&directory).await;
        let code = draft("a").function.code;
        registry.expect_code(code).await.unwrap();
        assert_eq!(registry.unused_codes().await.unwrap(), [code]);
        registry.create(draft("a")).await.unwrap();
        assert!(registry.unused_codes().await.unwrap().is_empty() && registry.uses_code(&code));
        registry.delete(&name("a")).await.unwrap();
        assert_eq!(registry.unused_codes().await.unwrap(), [code]);
        registry.code_is_gone(code).await.unwrap();
        assert!(registry.unused_codes().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn reserves_survive_updates_and_restarts_and_go_with_their_function() {
        let directory = tempfile::tempdir().unwrap();
        let (registry, thread) = open(&directory).await;
        let before = registry.create(draft("a")).await.unwrap();
        registry.set_reserve(&name("a"), Some(5), 10).await.unwrap();
        let after = registry.record(&name("a")).unwrap();
        assert_eq!(*after, Record { reserved_concurrency: Some(5), ..Record::clone(&before) }, "nothing else has changed");
        assert!(Arc::ptr_eq(&after.function, &before.function), "whoever holds the value holds the one that runs");
        registry.update(&name("a"), None, Box::new(|_| ())).await.unwrap();
        assert_eq!(registry.reserved(&name("a")), Some(5));
        drop(registry);
        thread.join();
        let (registry, _thread) = open(&directory).await;
        assert_eq!(registry.reserves(), [(name("a"), 5)]);
        registry.delete(&name("a")).await.unwrap();
        registry.create(draft("a")).await.unwrap();
        assert_eq!((registry.reserved(&name("a")), registry.reserves().len()), (None, 0));
    }

    #[tokio::test]
    async fn reserves_together_stay_within_their_bound_and_may_always_shrink() {
        let directory = tempfile::tempdir().unwrap();
        let (registry, _thread) = open(&directory).await;
        for text in ["a", "b"] {
            registry.create(draft(text)).await.unwrap();
        }
        let (a, b) = (name("a"), name("b"));
        registry.set_reserve(&a, Some(6), 10).await.unwrap();
        assert!(matches!(registry.set_reserve(&b, Some(5), 10).await, Err(RegistryError::TooMuchReserved { most: 10 })));
        registry.set_reserve(&b, Some(4), 10).await.unwrap();
        registry.set_reserve(&a, Some(5), 3).await.unwrap();
        registry.set_reserve(&a, Some(0), 3).await.unwrap();
        registry.set_reserve(&b, None, 0).await.unwrap();
        assert_eq!((registry.reserved(&a), registry.reserved(&b)), (Some(0), None));
        assert!(matches!(registry.set_reserve(&name("c"), None, 0).await, Err(RegistryError::Unknown(_))));
    }

    #[tokio::test]
    async fn a_damaged_record_stops_the_start_and_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let (registry, thread) = open(&directory).await;
        registry.create(draft("a")).await.unwrap();
        drop(registry);
        thread.join();
        let path = directory.path().join("kiln.db");
        Connection::open(&path).unwrap().execute("UPDATE functions SET record = '{}'", []).unwrap();
        let (database, _thread) = Database::open(&path).unwrap();
        let error = SqliteRegistry::open(database).await.err().unwrap();
        assert!(matches!(&error, RegistryError::Damaged { name, .. } if name == "a"), "{error}");
    }
}
