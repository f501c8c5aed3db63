//! What was answered is kept: a process that stores functions and books is killed at any moment, and its database is
//! opened again.
//!
//! The test is its own victim: started with `KILN_TEST_WRITE`, it writes for as long as it lives, and prints a line
//! for each thing that the registry or the books have said is durable: functions with their layers and reserves, versions
//! of layers, rows.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use kiln::code::Digest;
use kiln::database::Database;
use kiln::function::{Function, FunctionName, Memory, Reuse, Stamp, Timeout, TmpSize};
use kiln::invocation::RequestId;
use kiln::meter::sqlite::SqliteMeter;
use kiln::meter::{Meter, Row};
use kiln::registry::sqlite::SqliteRegistry;
use kiln::registry::{Draft, LayerName, LayerUse, LayerVersion, Layers, Registry};
use kiln::runtime::RuntimeName;

/// Before each kill: few lines and many, so that kills fall into the first commit and into later ones.
const LINES: [usize; 8] = [1, 2, 3, 5, 8, 40, 90, 200];

#[test]
fn functions_and_books_survive_sigkill_at_any_moment() {
    if let Some(path) = std::env::var_os("KILN_TEST_WRITE") {
        return write_for_ever(Path::new(&path));
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kiln.db");
    let mut expected = Expected::default();
    for lines in LINES {
        write_and_kill(&path, lines, &mut expected);
        check(&path, &mut expected);
    }
}

/// What the victims have been told is durable.
#[derive(Default)]
struct Expected {
    /// Name → description, `None` once deleted.
    functions: BTreeMap<String, Option<String>>,
    /// Name and number → whether it is there still.
    layers: BTreeMap<(String, u64), bool>,
    /// Of the functions that have one.
    reserves: BTreeMap<String, u32>,
    rows: u64,
    last_stamp: u64,
}

fn write_and_kill(path: &Path, lines: usize, expected: &mut Expected) {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "functions_and_books_survive_sigkill_at_any_moment", "--nocapture"])
        .env("KILN_TEST_WRITE", path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let told = BufReader::new(victim.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut told = told.filter_map(|line| line.strip_prefix("durable ").map(str::to_owned));
    let mut take = |line: String| {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["stored", name, description, stamp] => {
                expected.functions.insert(name.into(), Some(description.into()));
                expected.last_stamp = expected.last_stamp.max(stamp.parse().unwrap());
            }
            ["deleted", name] => {
                expected.functions.insert(name.into(), None);
                expected.reserves.remove(name);
            }
            ["reserved", name, number] => drop(expected.reserves.insert(name.into(), number.parse().unwrap())),
            ["published", name, number] => drop(expected.layers.insert((name.into(), number.parse().unwrap()), true)),
            ["unpublished", name, number] => drop(expected.layers.insert((name.into(), number.parse().unwrap()), false)),
            ["row"] => expected.rows += 1,
            _ => panic!("{line}"),
        }
    };
    told.by_ref().take(lines).for_each(&mut take);
    victim.kill().unwrap();
    // What it said before it died counts, too.
    told.for_each(take);
    victim.wait().unwrap();
}

fn check(path: &Path, expected: &mut Expected) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (database, thread) = Database::open(path).unwrap();
    runtime.block_on(async {
        let registry = SqliteRegistry::open(database).await.unwrap();
        let mut undone = 0;
        for (name, description) in &mut expected.functions {
            let record = registry.record(&FunctionName::parse(name).unwrap());
            let found = record.as_ref().map(|record| record.description.clone());
            // The victim works on one thing at a time: only that one may be further than it has said.
            undone += usize::from(found != *description);
            *description = found;
        }
        for ((name, number), there) in &mut expected.layers {
            let found = registry.layer(&LayerName::parse(name).unwrap(), *number).is_some();
            undone += usize::from(found != *there);
            *there = found;
        }
        for layer in registry.layers(None) {
            let unsaid = expected.layers.insert((layer.name.to_string(), layer.version), true).is_none();
            undone += usize::from(unsaid);
        }
        for record in registry.page(None, usize::MAX) {
            let (name, found) = (record.function.name.to_string(), record.reserved_concurrency);
            undone += usize::from(expected.reserves.get(&name).copied() != found);
            found.map(|number| expected.reserves.insert(name, number));
            assert_eq!(record.function.layers.len(), record.layers.len());
            assert!(record.function.layers.iter().all(|code| registry.uses_code(code)));
        }
        expected.reserves.retain(|name, _| registry.record(&FunctionName::parse(name).unwrap()).is_some());
        assert!(undone <= 1, "{undone} things are not as they were said to be");
        let published = registry.publish_layer(layer("l0")).await.unwrap();
        let last = expected.layers.keys().filter(|(name, _)| name == "l0").map(|(_, number)| *number).max();
        assert!(Some(published.version) > last, "a layer's number came twice: {} after {last:?}", published.version);
        registry.delete_layer(&published.name, published.version).await.unwrap();
        expected.layers.insert(("l0".into(), published.version), false);
        let newest = registry.page(None, usize::MAX).iter().map(|record| record.function.stamp.0).max().unwrap_or(0);
        expected.last_stamp = expected.last_stamp.max(newest);
        let probe = registry.create(draft("probe", "x")).await.unwrap();
        assert!(probe.function.stamp.0 > expected.last_stamp, "a stamp came twice");
        expected.last_stamp = probe.function.stamp.0;
        registry.delete(&probe.function.name).await.unwrap();
    });
    drop(runtime);
    thread.join();
    let (rows, broken): (u64, String) = rusqlite::Connection::open(path)
        .unwrap()
        .query_row(
            "SELECT (SELECT count(*) FROM invocations), (SELECT group_concat(integrity_check) FROM pragma_integrity_check)",
            [],
            |row| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?)),
        )
        .unwrap();
    assert_eq!(broken, "ok");
    assert!(rows == expected.rows || rows == expected.rows + 1, "{rows} rows, {} were said to be kept", expected.rows);
    expected.rows = rows;
}

fn write_for_ever(path: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (database, _thread) = Database::open(path).unwrap();
    runtime.block_on(async {
        let registry = SqliteRegistry::open(database.clone()).await.unwrap();
        let meter = SqliteMeter::new(database);
        for turn in 0_u64.. {
            let published = registry.publish_layer(layer(&format!("l{}", turn % 2))).await.unwrap();
            println!("durable published {} {}", published.name, published.version);
            let name = format!("f{}", turn % 7);
            let known = FunctionName::parse(&name).unwrap();
            let description = uuid::Uuid::new_v4().to_string();
            let record = match registry.record(&known) {
                None => registry.create(draft(&name, &description)).await.unwrap(),
                Some(_) if turn % 3 == 0 => {
                    registry.delete(&known).await.unwrap();
                    println!("durable deleted {name}");
                    continue;
                }
                Some(_) => {
                    let (text, layers) = (description.clone(), vec![LayerUse::from(&*published)]);
                    let change = |draft: &mut Draft| (draft.description, draft.layers) = (text, layers);
                    registry.update(&known, None, Box::new(change)).await.unwrap()
                }
            };
            println!("durable stored {name} {description} {}", record.function.stamp.0);
            if turn % 4 < 2 {
                registry.delete_layer(&published.name, published.version).await.unwrap();
                println!("durable unpublished {} {}", published.name, published.version);
            }
            let reserve = turn as u32 % 10;
            registry.set_reserve(&known, Some(reserve), 900).await.unwrap();
            println!("durable reserved {name} {reserve}");
            meter.record(row(known)).await.unwrap();
            println!("durable row");
        }
    });
}

fn draft(name: &str, description: &str) -> Draft {
    let function = Function {
        name: FunctionName::parse(name).unwrap(),
        runtime: RuntimeName::parse("nodejs8.10").unwrap(),
        handler: "index.handler".into(),
        memory: Memory::from_mib(128).unwrap(),
        timeout: Timeout::from_secs(3).unwrap(),
        tmp: TmpSize::DEFAULT,
        vars: BTreeMap::new(),
        code: Digest::of(name.as_bytes()),
        layers: Vec::new(),
        reuse: Reuse::Always,
        stamp: Stamp(0),
    };
    let (role, description, layers, tags) = (String::new(), description.into(), Vec::new(), BTreeMap::new());
    Draft { function, role, description, code_size: 1, unpacked: 1, layers, tags }
}

fn layer(name: &str) -> LayerVersion {
    LayerVersion {
        name: LayerName::parse(name).unwrap(),
        version: 0,
        code: Digest::of(name.as_bytes()),
        code_size: 1,
        unpacked: 1,
        description: String::new(),
        license: None,
        runtimes: Vec::new(),
        architectures: Vec::new(),
        created_ms: 0,
    }
}

fn row(function: FunctionName) -> Row {
    Row {
        request: RequestId::new(),
        function,
        version: "$LATEST".into(),
        start: SystemTime::now(),
        duration: Duration::from_millis(1),
        billed: Duration::from_millis(100),
        memory: Memory::from_mib(128).unwrap(),
        max_memory_used_mib: 1,
        init: None,
        error_type: None,
    }
}
