//! The layers' rows, and their copy in memory.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};

use super::{Records, SqliteRegistry, now_ms, unreadable};
use crate::database::Database;
use crate::registry::{LayerName, LayerUse, LayerVersion, Layers, Promise, RegistryError};

impl Layers for SqliteRegistry {
    fn layer(&self, name: &LayerName, version: u64) -> Option<Arc<LayerVersion>> {
        self.records.read(|held| held.layers.get(&(name.clone(), version)).cloned())
    }

    fn layers(&self, of: Option<&LayerName>) -> Vec<Arc<LayerVersion>> {
        self.records.read(|held| match of {
            Some(name) => {
                held.layers.range((name.clone(), 0)..=(name.clone(), u64::MAX)).map(|(_, layer)| layer.clone()).collect()
            }
            None => held.layers.values().cloned().collect(),
        })
    }

    fn publish_layer(&self, mut draft: LayerVersion) -> Promise<'_, Result<Arc<LayerVersion>, RegistryError>> {
        let copy = self.records.clone();
        let work =
            move |db: &Connection| {
                let number = "INSERT INTO layer_numbers VALUES (?1, 1) ON CONFLICT DO UPDATE SET last = last + 1 RETURNING last";
                let number: i64 = db.prepare_cached(number)?.query_row([draft.name.as_str()], |row| row.get(0))?;
                (draft.version, draft.created_ms) = (number as u64, now_ms());
                let text =
                    serde_json::to_string(&draft).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
                db.prepare_cached("INSERT INTO layers (name, version, code, record) VALUES (?1, ?2, ?3, ?4)")?
                    .execute(params![draft.name.as_str(), number, draft.code.to_string(), text])?;
                Ok(Arc::new(draft))
            };
        let publish = move |layer: &Arc<LayerVersion>| {
            let _ = copy.change(|held| held.layers.insert((layer.name.clone(), layer.version), layer.clone()));
        };
        Box::pin(async move { Ok(self.database.write("store a layer's version", work, publish).await?) })
    }

    fn delete_layer(&self, name: &LayerName, version: u64) -> Promise<'_, Result<Option<Arc<LayerVersion>>, RegistryError>> {
        let (copy, key) = (self.records.clone(), (name.clone(), version));
        let found = self.layer(name, version);
        let (name, number) = (name.clone(), as_row(version));
        let work = move |db: &Connection| {
            db.execute("DELETE FROM layers WHERE name = ?1 AND version = ?2", params![name.as_str(), number])
        };
        let publish = move |_: &usize| {
            let _ = copy.change(|held| held.layers.remove(&key));
        };
        Box::pin(async move {
            let deleted = self.database.write("delete a layer's version", work, publish).await?;
            Ok(found.filter(|_| deleted > 0))
        })
    }
}

/// The first of these layers that is neither published nor among those that the function has already. Looked up within the
/// transaction that stores the function: a version that is deleted later leaves its code to it.
pub(super) fn missing(db: &Connection, layers: &[LayerUse], before: &[LayerUse]) -> rusqlite::Result<Option<RegistryError>> {
    for layer in layers.iter().filter(|layer| !before.contains(layer)) {
        let found = db
            .prepare_cached("SELECT 1 FROM layers WHERE name = ?1 AND version = ?2 AND code = ?3")?
            .query_row(params![layer.name.as_str(), as_row(layer.version), layer.code.to_string()], |_| Ok(()))
            .optional()?;
        if found.is_none() {
            return Ok(Some(RegistryError::NoLayer { name: layer.name.clone(), version: layer.version }));
        }
    }
    Ok(None)
}

/// Reads all layers into memory.
pub(super) async fn load(database: &Database, copy: Arc<Records>) -> Result<(), RegistryError> {
    let publish = move |found: &Result<Vec<Arc<LayerVersion>>, RegistryError>| {
        let layers = found.iter().flatten().map(|layer| ((layer.name.clone(), layer.version), layer.clone()));
        copy.change(|held| held.layers.extend(layers));
    };
    database.write("read the layers", read_all, publish).await??;
    Ok(())
}

/// As with functions: a record that cannot be read stops the start.
fn read_all(db: &Connection) -> rusqlite::Result<Result<Vec<Arc<LayerVersion>>, RegistryError>> {
    let mut query = db.prepare("SELECT name, version, record FROM layers")?;
    let rows = query.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, String>(2)?)))?;
    let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    let read = |(name, version, text): (String, i64, String)| {
        let damaged = |why: String| RegistryError::Damaged { name: format!("{name}:{version}"), why };
        match serde_json::from_str::<LayerVersion>(&text).map_err(unreadable) {
            Ok(layer) if layer.name.as_str() == name && as_row(layer.version) == version => Ok(Arc::new(layer)),
            Ok(layer) => Err(damaged(format!("it is that of {}:{}", layer.name, layer.version))),
            Err(error) => Err(damaged(error.to_string())),
        }
    };
    Ok(rows.into_iter().map(read).collect())
}

/// SQLite counts to 2^63; no version was ever given a number beyond.
fn as_row(version: u64) -> i64 {
    i64::try_from(version).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{draft, name, open};
    use super::*;
    use crate::code::Digest;
    use crate::function::Function;
    use crate::registry::{Functions, Registry};

    fn layer(text: &str, zip: &[u8]) -> LayerVersion {
        LayerVersion {
            name: LayerName::parse(text).unwrap(),
            version: 0,
            code: Digest::of(zip),
            code_size: zip.len() as u64,
            unpacked: 100,
            description: "what for".into(),
            license: Some("MIT".into()),
            runtimes: vec!["nodejs8.10".into()],
            architectures: vec!["x86_64".into()],
            created_ms: 0,
        }
    }

    fn layers_of(function: &Function) -> usize {
        function.layers.len()
    }

    #[tokio::test]
    async fn a_layer_survives_a_restart_and_no_number_comes_twice() {
        let directory = tempfile::tempdir().unwrap();
        let (registry, thread) = open(&directory).await;
        let first = registry.publish_layer(layer("a", b"1")).await.unwrap();
        let second = registry.publish_layer(layer("a", b"2")).await.unwrap();
        assert_eq!((first.version, second.version), (1, 2));
        assert_eq!(registry.publish_layer(layer("b", b"1")).await.unwrap().version, 1, "each layer counts for itself");
        assert_eq!(registry.delete_layer(&second.name, 2).await.unwrap(), Some(second.clone()));
        assert_eq!(registry.delete_layer(&second.name, 2).await.unwrap(), None);
        drop(registry);
        thread.join();
        let (registry, _thread) = open(&directory).await;
        assert_eq!(registry.layers(Some(&first.name)), std::slice::from_ref(&first));
        assert_eq!(registry.publish_layer(layer("a", b"3")).await.unwrap().version, 3);
        let all: Vec<_> = registry.layers(None).iter().map(|layer| format!("{}:{}", layer.name, layer.version)).collect();
        assert_eq!(all, ["a:1", "a:3", "b:1"]);
    }

    #[tokio::test]
    async fn code_of_a_layer_is_used_by_its_versions_and_by_the_functions_that_have_it() {
        let directory = tempfile::tempdir().unwrap();
        let (registry, thread) = open(&directory).await;
        let code = Digest::of(b"1");
        registry.expect_code(code).await.unwrap();
        let published = registry.publish_layer(layer("a", b"1")).await.unwrap();
        assert!(registry.uses_code(&code) && registry.unused_codes().await.unwrap().is_empty());
        assert_eq!(registry.unpacked_size(&code), Some(100));
        let mut function = draft("f");
        function.layers = vec![LayerUse::from(&*published)];
        assert_eq!(registry.create(function).await.unwrap().function.layers, [code]);
        registry.delete_layer(&published.name, 1).await.unwrap();
        assert!(registry.uses_code(&code) && registry.unused_codes().await.unwrap().is_empty(), "the function has it still");
        assert_eq!(registry.unpacked_size(&code), Some(100));
        drop(registry);
        thread.join();
        let (registry, _thread) = open(&directory).await;
        assert_eq!(registry.function(&name("f")).map(|function| layers_of(&function)), Some(1));
        let kept = registry.update(&name("f"), None, Box::new(|draft| draft.description = "kept".into())).await.unwrap();
        assert_eq!(kept.layers, [LayerUse::from(&*published)], "a change of something else leaves a deleted layer alone");
        registry.update(&name("f"), None, Box::new(|draft| draft.layers.clear())).await.unwrap();
        assert!(!registry.uses_code(&code));
        assert_eq!(registry.unused_codes().await.unwrap(), [code]);
    }

    #[tokio::test]
    async fn a_layer_that_is_deleted_meanwhile_comes_into_no_function() {
        let directory = tempfile::tempdir().unwrap();
        let (registry, _thread) = open(&directory).await;
        let published = registry.publish_layer(layer("a", b"1")).await.unwrap();
        registry.create(draft("old")).await.unwrap();
        let mut function = draft("new");
        function.layers = vec![LayerUse::from(&*published)];
        let layers = function.layers.clone();
        let change = Box::new(move |draft: &mut crate::registry::Draft| draft.layers = layers);
        let (deleted, created, old) = (name("old"), registry.create(function), name("old"));
        // In this order they reach the database.
        let (gone, created, updated) =
            tokio::join!(registry.delete_layer(&published.name, 1), created, registry.update(&old, None, change));
        assert!(gone.unwrap().is_some());
        assert!(matches!(created, Err(RegistryError::NoLayer { version: 1, .. })));
        assert!(matches!(updated, Err(RegistryError::NoLayer { version: 1, .. })));
        assert!(registry.function(&name("new")).is_none() && layers_of(&registry.function(&deleted).unwrap()) == 0);
    }
}
