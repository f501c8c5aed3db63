//! What the tables are, and how they came to be so. Forward only.
//!
//! A step that has been released is never changed: a later one is added below it.

use std::path::Path;

use rusqlite::Connection;

use super::DatabaseError;

/// "KILN" in SQLite's header, so that `file` and we know whose file it is.
pub const APPLICATION_ID: i64 = 0x4b49_4c4e;

/// The schema that this program reads and writes.
pub const SCHEMA_VERSION: i64 = STEPS.len() as i64;

const STEPS: &[&str] = &[
    "
    -- One row for each function. `record` is JSON (crate::registry::Record).
    CREATE TABLE functions (
        name   TEXT PRIMARY KEY,
        stamp  INTEGER NOT NULL UNIQUE,
        code   TEXT NOT NULL,
        record TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX functions_by_code ON functions (code);

    -- The last stamp given out. Kept apart from the functions, so that deleting them all brings none back.
    CREATE TABLE stamps (last INTEGER NOT NULL) STRICT;
    INSERT INTO stamps (last) VALUES (0);

    -- Code that is, or may be, in code/: written before it is adopted, removed after it is forgotten.
    CREATE TABLE codes (digest TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;

    -- The books: one row for each attempt of an invocation.
    CREATE TABLE invocations (
        id                  INTEGER PRIMARY KEY,
        request             TEXT NOT NULL,
        function            TEXT NOT NULL,
        version             TEXT NOT NULL,
        start_ms            INTEGER NOT NULL,  -- since 1970, UTC
        duration_us         INTEGER NOT NULL,
        billed_ms           INTEGER NOT NULL,
        memory_mib          INTEGER NOT NULL,
        max_memory_used_mib INTEGER NOT NULL,
        init_us             INTEGER,           -- only where an init ran outside of the invocation
        error_type          TEXT               -- NULL for success
    ) STRICT;
    CREATE INDEX invocations_by_function ON invocations (function, start_ms);
",
    "
    -- One row for each version of a layer. `record` is JSON (crate::registry::LayerVersion).
    CREATE TABLE layers (
        name    TEXT NOT NULL,
        version INTEGER NOT NULL,
        code    TEXT NOT NULL,
        record  TEXT NOT NULL,
        PRIMARY KEY (name, version)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX layers_by_code ON layers (code);

    -- The last version given out of each layer. Kept apart from the versions, so that deleting them brings none back.
    CREATE TABLE layer_numbers (name TEXT PRIMARY KEY, last INTEGER NOT NULL) STRICT, WITHOUT ROWID;

    -- Code that functions have as layers, be the layer's version deleted or not.
    CREATE TABLE function_layers (function TEXT NOT NULL, code TEXT NOT NULL, PRIMARY KEY (function, code)) STRICT, WITHOUT ROWID;
    CREATE INDEX function_layers_by_code ON function_layers (code);

    -- Reserved concurrency. Beside the functions: it is no part of what an environment is made from.
    CREATE TABLE reserves (function TEXT PRIMARY KEY, reserved INTEGER NOT NULL) STRICT, WITHOUT ROWID;
",
    "
    -- One row for each execution environment (crate::meter::history). Those without an end live, or did when their server died.
    CREATE TABLE environments (
        id          INTEGER PRIMARY KEY,
        function    TEXT NOT NULL,
        version     TEXT NOT NULL,
        container   TEXT,              -- NULL where none could be built
        request     TEXT,              -- for which it was started
        cold        TEXT NOT NULL,     -- why no other could serve that
        started_ms  INTEGER NOT NULL,  -- since 1970, UTC
        build_us    INTEGER,
        init_us     INTEGER,
        ended_ms    INTEGER,
        why         TEXT,
        cause       TEXT,
        text        TEXT,
        by          TEXT,
        needed_by   TEXT,
        invocations INTEGER,
        peak_mib    INTEGER
    ) STRICT;
    CREATE INDEX environments_by_function ON environments (function);
    CREATE INDEX environments_by_container ON environments (container);
    CREATE INDEX environments_by_end ON environments (ended_ms);
",
];

/// Refuses a database that is not ours or that a newer Kiln has written. Changes nothing.
pub fn check(connection: &Connection, path: &Path) -> Result<(), DatabaseError> {
    let fail = |source| DatabaseError::Open { path: path.to_owned(), source };
    let owner: i64 = connection.query_row("PRAGMA application_id", [], |row| row.get(0)).map_err(fail)?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(fail)?;
    let fresh = owner == 0 && tables == 0;
    if owner != APPLICATION_ID && !fresh {
        return Err(DatabaseError::Foreign { path: path.to_owned(), found: owner });
    }
    let version = version(connection).map_err(fail)?;
    if version > SCHEMA_VERSION {
        return Err(DatabaseError::Newer { path: path.to_owned(), found: version });
    }
    Ok(())
}

/// Brings the schema up to date, each step in one transaction together with its number.
pub fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let done = version(connection)?;
    for (step, number) in STEPS.iter().zip(1_i64..).skip(done as usize) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.execute_batch(&format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number};"))?;
        transaction.commit()?;
    }
    Ok(())
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}
