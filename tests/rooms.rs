//! Holds the code to the plan of the house: `src/lib.rs`'s invariants, and who may use whose rooms.
//!
//! Reads the source, not the compiler's view of it: every path that begins with `crate::`, `super::`, `self::`, `kiln::`
//! or a dependency's name, `use` trees spelled out. Comments, strings and `#[cfg(test)]` items are left out: tests
//! may know more than the code does. A new room first gets its line in one of the tables below.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::{env, fs};

/// Rooms of one process, by floor: a file uses its own room and rooms on lower floors only. `mod` is what composes
/// the process, and what it offers to `src/bin`.
#[rustfmt::skip]
const FLOORS: &[(&str, &[(&str, u32)])] = &[
    ("server", &[
        ("mod", 60),
        ("api", 50), ("control", 50), ("delivery", 50),
        ("intake", 45),
        ("dispatch", 40),
        // Above `pool`, which lends whatever implements its trait and could pool umbrellas.
        ("environment", 30),
        ("tally", 25),
        ("pool", 20),
        ("runtime_api", 10), ("logs", 10), ("events", 10), ("relay", 10), ("supervisor_link", 10), ("warming", 10),
        ("http", 5), ("readiness", 5),
    ]),
    ("launcher", &[
        ("mod", 60),
        ("service", 50),
        ("errand", 45), ("visit", 45), ("describe", 45),
        ("launch", 40), ("adopt", 40),
        ("container", 30), ("order", 30),
        ("plan", 20), ("stock", 20),
        ("cgroup", 10), ("network", 10), ("identity", 10), ("seccomp", 10), ("store", 10),
        ("steps", 5), ("outbox", 5),
    ]),
];

/// Each is a process of its own. `inside` is two: init and unpack never meet.
const PROCESSES: &[&str] = &["server", "supervisor", "launcher", "inside::init", "inside::unpack", "cli"];

/// Below everything, and what all processes may know.
const WORDS: &[&str] =
    &["invocation", "function", "runtime", "code", "bill", "wire", "config", "hierarchy", "kill_point", "telemetry"];

/// Words that keep things in the database, so nothing for the root side.
const STORES: &[&str] = &["registry", "queue", "meter", "database"];

/// What parses bytes from outside, or holds a runtime: never in a process that could mount file systems.
const NOT_FOR_ROOT: &[&str] = &["tokio", "hyper", "hyper_util", "http_body_util", "rusqlite", "serde_json"];

/// What `pool` must not know; it could pool umbrellas.
const NOT_FOR_POOL: &[&str] = &["crate::sys", "std::path", "std::fs", "std::process", "std::os", "nix", "libc", "rustix"];

/// Where an HTTP status is spelled (`cli` reads them, on the other side).
const DOORS: &[&str] = &["server::api", "server::control", "server::runtime_api", "server::http", "cli"];

#[test]
fn the_code_keeps_to_its_rooms() {
    let files = sources();
    assert!(files.len() > 10, "no sources found");
    let found = violations(&files);
    assert!(found.is_empty(), "{} violations:\n  {}", found.len(), found.join("\n  "));
}

fn violations(files: &[(String, String)]) -> Vec<String> {
    let mut found = BTreeSet::new();
    for (path, source) in files {
        let Some(module) = module_of(path) else { continue };
        let room = match room_of_file(&module) {
            Some(room) => room,
            None => {
                found.insert(format!("{path}: no table in tests/rooms.rs knows this room"));
                continue;
            }
        };
        let tokens = without_tests(tokens(source));
        for used in paths(&tokens, &module) {
            found.extend(objection(&room, &used).map(|why| format!("{path}: uses {}: {why}", used.join("::"))));
        }
        if room != "sys" && tokens.iter().any(|token| token == "unsafe") {
            found.insert(format!("{path}: `unsafe` belongs to src/sys"));
        }
        if tokens.iter().any(|token| token == "StatusCode") && !DOORS.contains(&room.as_str()) {
            found.insert(format!("{path}: only the doors know HTTP status codes"));
        }
    }
    found.into_iter().collect()
}

/// Why a file of `room` may not use this path, if so.
fn objection(room: &str, used: &[String]) -> Option<String> {
    let text = used.join("::");
    let begins = |list: &[&str]| list.iter().any(|name| text == *name || text.starts_with(&format!("{name}::")));
    if room == "server::pool" && begins(NOT_FOR_POOL) {
        return Some("the pool knows no namespace, no process and no path".into());
    }
    if is_root_side(room) && begins(NOT_FOR_ROOT) {
        return Some("the root side has no tokio, HTTP, SQL or JSON".into());
    }
    let target = room_of(used.strip_prefix(&["crate".to_owned()])?)?;
    if target == room {
        return None;
    }
    if is_root_side(room) && STORES.contains(&target.as_str()) {
        return Some("it keeps its things by SQL, which the root side has not".into());
    }
    let theirs = process_of(&target)?;
    let Some(ours) = process_of(room) else { return Some(format!("{room} lies below every process")) };
    if ours != theirs {
        return Some(format!("{ours} and {theirs} are two processes; they meet in wire"));
    }
    match (floor(room), floor(&target)) {
        (Some(from), Some(to)) if to >= from => Some(format!("{target} is not on a lower floor than {room}")),
        _ => None,
    }
}

fn is_root_side(room: &str) -> bool {
    // `invocation` spells Lambda's payloads; of it, the root side only says how a process ended.
    let below = room == "sys" || WORDS.contains(&room) && room != "invocation";
    process_of(room).map_or(below, |process| process != "server" && process != "cli")
}

fn process_of(room: &str) -> Option<&'static str> {
    PROCESSES.iter().copied().find(|process| room == *process || room.starts_with(&format!("{process}::")))
}

fn floor(room: &str) -> Option<u32> {
    let (process, name) = room.split_once("::")?;
    let rooms = FLOORS.iter().find(|(with, _)| *with == process)?.1;
    rooms.iter().find(|(with, _)| *with == name).map(|(_, floor)| *floor)
}

/// `server::pool` for a path into it, `server::mod` for what `server/mod.rs` offers itself.
fn room_of<S: AsRef<str>>(path: &[S]) -> Option<String> {
    let first = path.first()?.as_ref();
    let second = path.get(1).map_or("", AsRef::as_ref);
    if let Some((_, rooms)) = FLOORS.iter().find(|(process, _)| *process == first) {
        let name = rooms.iter().map(|(room, _)| *room).find(|room| *room == second).unwrap_or("mod");
        return Some(format!("{first}::{name}"));
    }
    let whole = format!("{first}::{second}");
    let known = |list: &[&str], room: &str| list.contains(&room);
    if known(PROCESSES, &whole) {
        return Some(whole);
    }
    let single = known(PROCESSES, first) || known(WORDS, first) || known(STORES, first) || ["sys", "inside"].contains(&first);
    single.then(|| first.to_owned())
}

/// The room of a file; here a module that no table knows is not taken for a part of `mod`.
fn room_of_file(module: &[String]) -> Option<String> {
    room_of(module).filter(|room| !room.ends_with("::mod") || module.len() == 1)
}

/// `src/server/pool/core.rs` is `[server, pool, core]`. `None` for what composes (`lib.rs`, `bin/`) and for tests.
fn module_of(path: &str) -> Option<Vec<String>> {
    let inner = path.strip_prefix("src/")?.strip_suffix(".rs")?;
    let module: Vec<String> = inner.strip_suffix("/mod").unwrap_or(inner).split('/').map(str::to_owned).collect();
    let is_test = |part: &String| part == "tests" || part.ends_with("_tests");
    let composes = inner == "lib" || module[0] == "bin";
    (!composes && !module.iter().any(is_test)).then_some(module)
}

// ---- Reading Rust ----------------------------------------------------------------------------------------------------

/// Names, `::` and single characters; no comments, no strings, no lifetimes.
fn tokens(source: &str) -> Vec<String> {
    let chars: Vec<char> = source.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let (mut found, mut i) = (Vec::new(), 0);
    while i < chars.len() {
        let start = i;
        match at(i) {
            '/' if at(i + 1) == '/' => i = (i..chars.len()).find(|&j| at(j) == '\n').unwrap_or(chars.len()),
            '/' if at(i + 1) == '*' => i = after_block_comment(&chars, i),
            '"' => i = after_string(&chars, i),
            '\'' if at(i + 1) == '\\' => i = (i + 3..chars.len()).find(|&j| at(j) == '\'').unwrap_or(chars.len()) + 1,
            '\'' if at(i + 2) == '\'' => i += 3,
            '\'' => i += 1 + chars[i + 1..].iter().take_while(|c| c.is_alphanumeric() || **c == '_').count(),
            ':' if at(i + 1) == ':' => {
                found.push("::".into());
                i += 2;
            }
            c if c.is_alphabetic() || c == '_' => {
                i += chars[i..].iter().take_while(|c| c.is_alphanumeric() || **c == '_').count();
                let word: String = chars[start..i].iter().collect();
                match (word.as_str(), at(i)) {
                    ("r" | "br" | "cr", '"' | '#') => i = after_raw_string(&chars, i),
                    // The string or character itself comes next.
                    ("b" | "c", '"' | '\'') => {}
                    _ => found.push(word),
                }
            }
            c if c.is_whitespace() => i += 1,
            c => {
                found.push(c.to_string());
                i += 1;
            }
        }
    }
    found
}

fn after_block_comment(chars: &[char], mut i: usize) -> usize {
    let mut depth = 0;
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                i += 1;
                continue;
            }
        }
        i += 2;
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

fn after_string(chars: &[char], mut i: usize) -> usize {
    i += 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// `i` is at the first `#` or `"`. A raw identifier (`r#type`) comes back as it was.
fn after_raw_string(chars: &[char], i: usize) -> usize {
    let hashes = chars[i..].iter().take_while(|c| **c == '#').count();
    if chars.get(i + hashes) != Some(&'"') {
        return i + hashes;
    }
    let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    (i + hashes + 1..chars.len()).find(|&j| chars[j..].starts_with(&end)).map_or(chars.len(), |j| j + end.len())
}

/// Drops each item under `#[cfg(test)]`, up to its closing brace or semicolon.
fn without_tests(tokens: Vec<String>) -> Vec<String> {
    let mark = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut kept, mut i) = (Vec::new(), 0);
    while i < tokens.len() {
        if !tokens[i..].iter().zip(mark).all(|(token, wanted)| token == wanted) || tokens.len() - i < mark.len() {
            kept.push(tokens[i].clone());
            i += 1;
            continue;
        }
        let mut depth = 0;
        i += mark.len();
        while i < tokens.len() {
            match tokens[i].as_str() {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth -= 1,
                _ => {}
            }
            i += 1;
            if depth == 0 && matches!(tokens[i - 1].as_str(), "}" | ";") {
                break;
            }
        }
    }
    kept
}

/// Every path the file names, `use` trees spelled out, `super` and `self` resolved: `[crate, server, pool, …]`.
fn paths(tokens: &[String], module: &[String]) -> Vec<Vec<String>> {
    let (mut found, mut i) = (Vec::new(), 0);
    while i < tokens.len() {
        let is_name = tokens[i].starts_with(|c: char| c.is_alphabetic() || c == '_');
        let begins_path = tokens.get(i + 1).is_some_and(|next| next == "::");
        let bare_use = i > 0 && (tokens[i - 1] == "use" || tokens[i - 1] == "crate") && tokens[i] != "crate";
        if !is_name || !(begins_path || bare_use) {
            i += 1;
            continue;
        }
        let mut trees = Vec::new();
        i = spell_out(tokens, i, Vec::new(), &mut trees);
        found.extend(trees.into_iter().map(|path| resolve(path, module)));
    }
    found
}

/// Reads one tree from `i`; returns where it ends.
fn spell_out(tokens: &[String], mut i: usize, mut path: Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    while let Some(token) = tokens.get(i) {
        if token == "{" {
            i += 1;
            while tokens.get(i).is_some_and(|token| token != "}") {
                i = spell_out(tokens, i, path.clone(), found);
                // "as name", then the comma.
                while tokens.get(i).is_some_and(|token| token != "," && token != "}") {
                    i += 1;
                }
                i += usize::from(tokens.get(i).is_some_and(|token| token == ","));
            }
            return i + 1;
        }
        path.push(token.clone());
        i += 1;
        if tokens.get(i).is_none_or(|next| next != "::") || tokens.get(i + 1).is_some_and(|next| next == "<") {
            break;
        }
        i += 1;
    }
    found.push(path);
    i
}

fn resolve(path: Vec<String>, module: &[String]) -> Vec<String> {
    let ups = path.iter().take_while(|part| *part == "super").count();
    let absolute = |kept: &[String], rest: &[String]| ["crate".to_owned()].iter().chain(kept).chain(rest).cloned().collect();
    match path[0].as_str() {
        "super" => absolute(&module[..module.len().saturating_sub(ups)], &path[ups..]),
        "self" => absolute(module, &path[1..]),
        "kiln" => absolute(&[], &path[1..]),
        _ => path,
    }
}

fn sources() -> Vec<(String, String)> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo"));
    let (mut found, mut open) = (Vec::new(), vec![root.join("src")]);
    while let Some(directory) = open.pop() {
        let entries: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        for path in entries {
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

// ---- Each rule must be able to fail ----------------------------------------------------------------------------------

#[track_caller]
fn assert_refused(path: &str, source: &str, why: &str) {
    let found = violations(&[(path.to_owned(), source.to_owned())]);
    assert!(found.len() == 1 && found[0].contains(why), "{path} {source:?} gave {found:?}");
}

#[track_caller]
fn assert_allowed(path: &str, source: &str) {
    let found = violations(&[(path.to_owned(), source.to_owned())]);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn a_process_that_uses_anothers_room_is_found() {
    assert_refused("src/server/pool/mod.rs", "use crate::launcher::cgroup::Cgroup;", "two processes");
    assert_refused("src/supervisor/sweep.rs", "fn f() { crate::server::start(); }", "two processes");
    assert_refused("src/cli/mod.rs", "use crate::{wire::A, server::{http::{B as C}}};", "two processes");
    assert_refused("src/inside/init/mod.rs", "use super::unpack::limits;", "two processes");
    assert_refused("src/launcher/launch/child.rs", "use kiln::supervisor::Course;", "two processes");
    assert_allowed(
        "src/server/pool/mod.rs",
        "//! See [`crate::launcher::cgroup`].\nconst TEXT: &str = \"crate::launcher::cgroup\";",
    );
}

#[test]
fn a_lower_floor_that_uses_a_higher_one_is_found() {
    assert_refused("src/server/pool/core.rs", "use super::super::dispatch::Dispatch;", "not on a lower floor");
    assert_refused("src/server/environment/mod.rs", "use crate::server::{logs, dispatch::Dispatch};", "not on a lower floor");
    assert_refused("src/server/api/mod.rs", "use super::control::Page;", "not on a lower floor");
    assert_refused("src/server/logs/mod.rs", "use super::Server;", "not on a lower floor");
    assert_refused("src/launcher/cgroup/v1.rs", "use crate::launcher::launch::Plan;", "not on a lower floor");
    assert_allowed(
        "src/server/dispatch.rs",
        "use super::pool::Lease; use crate::server::environment; use crate::function::Memory;",
    );
    assert_allowed("src/server/pool/driver.rs", "use super::core::{Core, Order}; use self::x::Y;");
}

#[test]
fn a_word_that_uses_a_process_is_found() {
    assert_refused("src/wire/launcher.rs", "use crate::launcher::container::Plan;", "lies below every process");
    assert_refused("src/sys/mount.rs", "use crate::launcher::steps::Step;", "lies below every process");
    assert_refused("src/registry/sqlite.rs", "use crate::server::api::Fault;", "lies below every process");
}

#[test]
fn a_root_process_that_parses_json_or_stores_rows_is_found() {
    assert_refused("src/launcher/mod.rs", "let order: Order = serde_json::from_slice(&bytes)?;", "the root side has no tokio");
    assert_refused("src/supervisor/mod.rs", "use tokio;", "the root side has no tokio");
    assert_refused("src/inside/unpack/mod.rs", "use rusqlite::{Connection};", "the root side has no tokio");
    assert_refused("src/wire/mod.rs", "use hyper::body::Bytes;", "the root side has no tokio");
    assert_refused("src/supervisor/mod.rs", "use crate::registry::Functions;", "keeps its things by SQL");
    assert_allowed(
        "src/server/api/mod.rs",
        "use serde_json::Value; use tokio::net::UnixListener; use crate::registry::Functions;",
    );
    assert_allowed(
        "src/launcher/mod.rs",
        "#[cfg(test)]\nmod tests { use serde_json::json; fn f() {} }\nuse crate::wire::launcher::Order;",
    );
}

#[test]
fn unsafe_outside_sys_is_found() {
    assert_refused("src/launcher/mod.rs", "fn f() { unsafe { g() } }", "belongs to src/sys");
    assert_allowed("src/sys/mount.rs", "pub unsafe fn f() {}");
    assert_allowed(
        "src/launcher/mod.rs",
        "// unsafe\n#![deny(unsafe_code)] const A: &str = r#\"unsafe \" \"#; const B: char = '\"'; fn f<'a>() {} /* unsafe /* */ */",
    );
}

#[test]
fn a_pool_that_knows_the_host_is_found() {
    assert_refused("src/server/pool/mod.rs", "use crate::sys::pidfd;", "knows no namespace");
    assert_refused("src/server/pool/mod.rs", "use std::{time::Instant, path::Path};", "knows no namespace");
}

#[test]
fn a_status_code_away_from_the_doors_is_found() {
    assert_refused("src/server/pool/mod.rs", "fn f() -> hyper::StatusCode { todo!() }", "only the doors");
    assert_allowed("src/server/api/error.rs", "use hyper::StatusCode;");
}

#[test]
fn a_room_that_no_table_knows_is_found() {
    assert_refused("src/utils/mod.rs", "", "no table");
    assert_refused("src/server/manager/mod.rs", "", "no table");
    assert_refused("src/launcher/helpers.rs", "", "no table");
}
