//! `kiln runtime verify`: every byte of every tree against its name, and every owner against R.
//!
//! A tree's name is the SHA-256 of its listing, and the builder keeps the listing beside it: so the tree is read anew, the listing
//! made anew, and where the two differ, both say which file it is. This must list as `rootfs/tree.py` does.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::super::failure::Failure;
use super::super::output;
use super::unreadable;
use crate::code::Digest;
use crate::runtime::{Recipe, RuntimeName};

/// Differences of one tree that are printed; all are counted, and in the JSON.
const SHOWN: usize = 20;

/// Path in the tree → what the listing says of it (`type NUL mode NUL content`).
type Listing = BTreeMap<Vec<u8>, Vec<u8>>;

struct Verdict {
    digest: Digest,
    files: u64,
    bytes: u64,
    /// Path and what is wrong with it.
    wrong: Vec<(String, String)>,
}

pub fn execute(dir: &Path, names: &[RuntimeName], as_json: bool) -> Result<(), Failure> {
    let mut runtimes = Vec::new();
    let mut trees = Vec::new();
    for name in names {
        let recipe = Recipe::read(dir, name).map_err(|error| unreadable(dir, &error))?;
        let recipe = recipe.ok_or_else(|| Failure::Failed(format!("runtime {name} was removed just now")))?;
        let of_it = recipe.trees(dir).map_err(|error| unreadable(dir, &error))?;
        trees.extend(of_it.iter().copied().filter(|tree| !trees.contains(tree)).collect::<Vec<_>>());
        runtimes.push((name, of_it));
    }
    let owner = owner(dir)?;
    let bar = bar(dir, &trees);
    let verdicts = trees.iter().map(|tree| look(dir, *tree, owner, &bar)).collect::<Result<Vec<_>, _>>();
    bar.finish_and_clear();
    let verdicts: BTreeMap<Digest, Verdict> = verdicts?.into_iter().map(|verdict| (verdict.digest, verdict)).collect();
    let is_broken = |tree: &Digest| verdicts.get(tree).is_some_and(|verdict| !verdict.wrong.is_empty());
    let broken: Vec<&RuntimeName> =
        runtimes.iter().filter(|(_, of_it)| of_it.iter().any(is_broken)).map(|(name, _)| *name).collect();
    if as_json {
        output::print_json(&as_value(dir, &runtimes, &verdicts))?;
    } else {
        output::print_line(&as_text(&runtimes, &verdicts))?;
    }
    if broken.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = broken.iter().map(|name| name.as_str()).collect();
    Err(Failure::Failed(format!("broken: {}; sudo kiln runtime add builds each anew", names.join(", "))))
}

fn as_text(runtimes: &[(&RuntimeName, Vec<Digest>)], verdicts: &BTreeMap<Digest, Verdict>) -> String {
    let mut rows = Vec::new();
    let mut details = String::new();
    for (name, of_it) in runtimes {
        let of_it: Vec<&Verdict> = of_it.iter().filter_map(|tree| verdicts.get(tree)).collect();
        let wrong: usize = of_it.iter().map(|verdict| verdict.wrong.len()).sum();
        rows.push(vec![
            name.to_string(),
            of_it.iter().map(|verdict| verdict.files).sum::<u64>().to_string(),
            super::mib(of_it.iter().map(|verdict| verdict.bytes).sum()),
            if wrong == 0 { "ok".into() } else { format!("broken: {wrong} differences") },
        ]);
    }
    for verdict in verdicts.values().filter(|verdict| !verdict.wrong.is_empty()) {
        details += &format!("\n\ntree {}", verdict.digest);
        for (path, what) in verdict.wrong.iter().take(SHOWN) {
            details += &format!("\n  {}  {what}", output::plain(path));
        }
        if verdict.wrong.len() > SHOWN {
            details += &format!("\n  and {} more (--json has all)", verdict.wrong.len() - SHOWN);
        }
    }
    output::table(&["NAME", "FILES", "SIZE", "STATE"], rows) + &details
}

fn as_value(dir: &Path, runtimes: &[(&RuntimeName, Vec<Digest>)], verdicts: &BTreeMap<Digest, Verdict>) -> Value {
    let tree = |digest: &Digest| {
        let verdict = verdicts.get(digest)?;
        let differences: Vec<Value> = verdict.wrong.iter().map(|(path, what)| json!({ "path": path, "what": what })).collect();
        Some(json!({
            "tree": digest.to_string(), "ok": differences.is_empty(), "files": verdict.files, "bytes": verdict.bytes,
            "differences": differences,
        }))
    };
    let runtime = |(name, of_it): &(&RuntimeName, Vec<Digest>)| {
        let ok = of_it.iter().all(|digest| verdicts.get(digest).is_some_and(|verdict| verdict.wrong.is_empty()));
        json!({ "name": name, "ok": ok, "trees": of_it.iter().filter_map(tree).collect::<Vec<_>>() })
    };
    json!({ "runtimes_dir": dir, "runtimes": runtimes.iter().map(runtime).collect::<Vec<_>>() })
}

/// R, as the builder recorded it.
fn owner(dir: &Path) -> Result<u32, Failure> {
    let path = dir.join("owner");
    let text =
        fs::read_to_string(&path).map_err(|error| Failure::Failed(format!("{} cannot be read: {error}", path.display())))?;
    text.trim().parse().map_err(|_| Failure::Failed(format!("{} holds no user id", path.display())))
}

fn bar(dir: &Path, trees: &[Digest]) -> ProgressBar {
    let mut bytes = 0;
    for tree in trees {
        // What cannot be read is told later, with its reason.
        let _ = walk(&dir.join("trees").join(tree.to_string()), &mut |_, about| {
            bytes += if about.is_file() { about.len() } else { 0 }
        });
    }
    let bar = ProgressBar::new(bytes);
    let style =
        ProgressStyle::with_template("verify {bar:24} {bytes}/{total_bytes}").unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    bar
}

fn look(dir: &Path, digest: Digest, owner: u32, bar: &ProgressBar) -> Result<Verdict, Failure> {
    let root = dir.join("trees").join(digest.to_string());
    let mut verdict = Verdict { digest, files: 0, bytes: 0, wrong: Vec::new() };
    if fs::symlink_metadata(&root).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        verdict.wrong.push(("/".into(), "the whole tree is missing".into()));
        return Ok(verdict);
    }
    let mut found = Listing::new();
    let mut failed = None;
    let walked = walk(&root, &mut |path, about| {
        let place = place(&root, path);
        if about.is_file() {
            verdict.files += 1;
            verdict.bytes += about.len();
        }
        if (about.uid(), about.gid()) != (owner, owner) {
            let what = format!("belongs to {}:{}, and should to {owner}:{owner}", about.uid(), about.gid());
            verdict.wrong.push((shown(&place), what));
        }
        match row(path, about, bar) {
            Ok(row) => drop(found.insert(place, row)),
            Err(error) => failed = Some((path.to_owned(), error)),
        }
    });
    if let Some((path, error)) = walked.err().or(failed) {
        let cure = if error.kind() == io::ErrorKind::PermissionDenied { ": use sudo" } else { "" };
        return Err(Failure::Failed(format!("{} cannot be read: {error}{cure}", path.display())));
    }
    if listed(&found) != digest {
        let before = verdict.wrong.len();
        verdict.wrong.extend(differences(dir, digest, &found));
        if verdict.wrong.len() == before {
            verdict.wrong.push(("/".into(), "its content is not what its name says; which file it is cannot be told".into()));
        }
    }
    Ok(verdict)
}

/// Everything below `root`, and root itself; no link is followed.
pub fn walk(root: &Path, seen: &mut dyn FnMut(&Path, &Metadata)) -> Result<(), (PathBuf, io::Error)> {
    let failed = |error| (root.to_owned(), error);
    let about = fs::symlink_metadata(root).map_err(failed)?;
    if about.is_dir() {
        for entry in fs::read_dir(root).map_err(failed)? {
            walk(&entry.map_err(failed)?.path(), seen)?;
        }
    }
    seen(root, &about);
    Ok(())
}

/// `/usr/bin/sh`; `/` for the root itself.
fn place(root: &Path, path: &Path) -> Vec<u8> {
    let inner = path.strip_prefix(root).unwrap_or(path).as_os_str();
    [b"/", inner.as_bytes()].concat()
}

fn row(path: &Path, about: &Metadata, bar: &ProgressBar) -> io::Result<Vec<u8>> {
    let mode = format!("{:04o}", about.permissions().mode() & 0o7777).into_bytes();
    let kind = about.file_type();
    Ok(if kind.is_dir() {
        [b"d".as_slice(), &mode, b"-"].join(&0)
    } else if kind.is_symlink() {
        [b"l".as_slice(), b"-", &fs::read_link(path)?.into_os_string().into_vec()].join(&0)
    } else if kind.is_file() {
        [b"f".as_slice(), &mode, hash(path, bar)?.to_string().as_bytes()].join(&0)
    } else {
        b"neither file, directory nor link".to_vec()
    })
}

fn hash(path: &Path, bar: &ProgressBar) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut whole = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest::from_bytes(whole.finalize().into())),
            read => {
                whole.update(&buffer[..read]);
                bar.inc(read as u64);
            }
        }
    }
}

fn listed(listing: &Listing) -> Digest {
    let mut whole = Sha256::new();
    for (place, row) in listing {
        whole.update([place.as_slice(), b"\0", row, b"\n"].concat());
    }
    Digest::from_bytes(whole.finalize().into())
}

/// Against the listing that the builder kept, if that one still is what the tree's name says.
fn differences(dir: &Path, digest: Digest, found: &Listing) -> Vec<(String, String)> {
    let Ok(text) = fs::read(dir.join("listings").join(digest.to_string())) else { return Vec::new() };
    if Digest::of(&text) != digest {
        return Vec::new();
    }
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let wanted: Listing = lines
        .filter_map(|line| {
            let end = line.iter().position(|byte| *byte == 0)?;
            Some((line[..end].to_vec(), line[end + 1..].to_vec()))
        })
        .collect();
    let mut wrong = Vec::new();
    for (place, row) in &wanted {
        match found.get(place) {
            None => wrong.push((shown(place), "is missing".to_owned())),
            Some(found) if found != row => wrong.push((shown(place), changed(row, found))),
            Some(_) => {}
        }
    }
    wrong.extend(
        found.keys().filter(|place| !wanted.contains_key(*place)).map(|place| (shown(place), "does not belong there".into())),
    );
    wrong
}

fn changed(wanted: &[u8], found: &[u8]) -> String {
    let parts = |row: &[u8]| -> Vec<String> {
        row.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
    };
    let (wanted, found) = (parts(wanted), parts(found));
    let part = |row: &[String], n: usize| row.get(n).cloned().unwrap_or_default();
    match (part(&wanted, 0), part(&found, 0)) {
        (was, is) if was != is => format!("is of another kind ({is}, and should be {was})"),
        _ if part(&wanted, 1) != part(&found, 1) => format!("has mode {}, and should have {}", part(&found, 1), part(&wanted, 1)),
        (kind, _) if kind == "l" => format!("leads to {}, and should to {}", part(&found, 2), part(&wanted, 2)),
        _ => "its content was changed".into(),
    }
}

fn shown(place: &[u8]) -> String {
    OsStr::from_bytes(place).to_string_lossy().into_owned()
}
