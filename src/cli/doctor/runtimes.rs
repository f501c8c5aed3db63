//! Installed runtimes: each recipe readable, its set true to its name, its trees there and owned by R.
//!
//! A quick look, at the top of each tree. The deep one, over every file, is `kiln runtime verify`.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::finding::{Finding, broken, needs_root, ok, warn};
use super::host::Host;
use super::ids::owner;
use crate::code::Digest;
use crate::config::Config;
use crate::runtime::{Recipe, RuntimeName};

/// What is wrong with one runtime, and whether it is only hidden from us.
enum Wrong {
    Hidden,
    Because(String),
}

pub fn checks(host: &Host, config: &Config) -> Vec<Finding> {
    let build = format!("sudo scripts/build-runtimes --runtimes-dir {}", config.runtimes_dir.display());
    let key = "runtimes_dir";
    let dir = host.path(&config.runtimes_dir);
    let names = match Recipe::installed(&dir) {
        Ok(names) => names,
        Err(_) if is_hidden(&dir) => return vec![needs_root("runtimes", config.runtimes_dir.display().to_string()).about(key)],
        Err(_) => {
            let found = format!("there is no {}: no function can be made", config.runtimes_dir.display());
            return vec![broken("runtimes", found, build).about(key)];
        }
    };
    if names.is_empty() {
        let found = format!("{} holds none: no function can be made", config.runtimes_dir.display());
        return vec![warn("runtimes", found, build).about(key)];
    }
    let mut findings = vec![];
    for name in &names {
        findings.push(match look(host, config, &dir, name) {
            Ok(trees) => ok("runtime", format!("{name}: {trees} trees, owned by {}", owner(host, config))),
            Err(Wrong::Hidden) => needs_root("runtime", name.to_string()),
            Err(Wrong::Because(why)) => broken("runtime", format!("{name}: {why}"), build.clone()).about(key),
        });
    }
    findings
}

fn is_hidden(path: &Path) -> bool {
    std::fs::read_dir(path).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// How many trees it is made of.
fn look(host: &Host, config: &Config, dir: &Path, name: &RuntimeName) -> Result<usize, Wrong> {
    let failed = |what: &str, error: &io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => Wrong::Hidden,
        io::ErrorKind::NotFound => Wrong::Because(format!("{what} is missing")),
        _ => Wrong::Because(format!("{what} cannot be read: {error}")),
    };
    let recipe = match Recipe::read(dir, name) {
        Ok(Some(recipe)) => recipe,
        Ok(None) => return Err(Wrong::Because("its recipe is gone".into())),
        Err(crate::runtime::RecipeError::Read { source, .. }) => return Err(failed("its recipe", &source)),
        Err(error) => return Err(Wrong::Because(format!("its recipe is wrong: {error}"))),
    };
    let owner_file = config.runtimes_dir.join("owner");
    host.text(&owner_file).map_err(|error| failed(&owner_file.display().to_string(), &error))?;
    let set = format!("sets/{}", recipe.tree);
    let text = std::fs::read(dir.join(&set)).map_err(|error| failed(&set, &error))?;
    if Digest::of(&text) != recipe.tree.0 {
        return Err(Wrong::Because(format!("{set} is not what its name says: it was changed")));
    }
    let text = String::from_utf8_lossy(&text);
    let mut trees = 0;
    for tree in text.lines() {
        let tree = format!("trees/{tree}");
        owned(&dir.join(&tree), &tree, owner(host, config)).map_err(|wrong| match wrong {
            Ok(why) => Wrong::Because(why),
            Err(error) => failed(&tree, &error),
        })?;
        trees += 1;
    }
    Ok(trees)
}

/// The tree's root and what lies at its top: a copy made by hand loses its owner everywhere.
fn owned(path: &Path, shown: &str, owner: u32) -> Result<(), Result<String, io::Error>> {
    let entries = std::fs::read_dir(path).map_err(Err)?;
    let mut paths = vec![path.to_owned()];
    for entry in entries {
        paths.push(entry.map_err(Err)?.path());
    }
    if paths.len() == 1 {
        return Err(Ok(format!("{shown} is empty")));
    }
    for path in paths {
        let about = std::fs::symlink_metadata(&path).map_err(Err)?;
        if about.uid() != owner {
            let part = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let part = if shown.ends_with(&part) { String::new() } else { format!("/{part}") };
            return Err(Ok(format!("{shown}{part} belongs to {}, and should to {owner}", about.uid())));
        }
    }
    Ok(())
}
