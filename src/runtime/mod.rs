//! What a runtime is: a recipe (data) and a tree of files.
//!
//! A word. The builder (`scripts/build-runtimes`) lays out `runtimes_dir`:
//!
//! ```text
//! owner                 R: the host uid (decimal) that owns every tree; "root as seen inside"
//! trees/<sha256>/       content: a base or a delta, owned by R
//! listings/<sha256>     what the tree of that name holds: its own SHA-256 is the name (read by `kiln runtime verify`)
//! sets/<sha256>         digests of trees, one a line, top layer first; the file is named by its own SHA-256
//! <name>.toml           the recipe as installed, read by the server ([`Recipe`])
//! ```
//!
//! The engine has no list of runtimes: whatever recipe is installed can be used, and no recipe adds a
//! `match` arm anywhere.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::code::Digest;
use crate::function::Memory;

/// R, where no builder has recorded it yet: the builder's own default (`rootfs/house.py`).
pub const OWNER: u32 = 1_879_048_192;

/// `nodejs8.10`, `provided.al2023`: 1 to 40 of `[a-z0-9.]`, beginning with a letter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RuntimeName(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a runtime name: 1 to 40 of a-z, 0-9 and '.', beginning with a letter")]
pub struct NotARuntimeName(String);

impl RuntimeName {
    pub fn parse(text: &str) -> Result<Self, NotARuntimeName> {
        let good = (1..=40).contains(&text.len())
            && text.as_bytes()[0].is_ascii_lowercase()
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.');
        if good { Ok(Self(text.to_owned())) } else { Err(NotARuntimeName(text.chars().take(80).collect())) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RuntimeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for RuntimeName {
    type Error = NotARuntimeName;
    fn try_from(text: String) -> Result<Self, NotARuntimeName> {
        Self::parse(&text)
    }
}

impl From<RuntimeName> for String {
    fn from(name: RuntimeName) -> String {
        name.0
    }
}

/// The set of trees that a container's root is made of: the digest of the file in `sets/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TreeId(pub Digest);

impl fmt::Display for TreeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a runtime is started, as `<name>.toml` says it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    pub name: RuntimeName,
    /// Digest of the file in `sets/`.
    #[serde(deserialize_with = "digest")]
    pub tree: TreeId,
    /// Command lines to try, in this order: the first whose program is a regular file is started.
    /// `{memory_mib:85%}` becomes that share of the configured memory in MiB.
    pub start: Vec<Vec<String>>,
    /// Files and directories of the trees that every start reads: `server::warming` keeps them in the page cache.
    #[serde(default)]
    pub hot: Vec<String>,
    /// Sets `AWS_EXECUTION_ENV=AWS_Lambda_<name>` (every runtime but `provided*`).
    #[serde(default)]
    pub execution_env: bool,
    /// Variables that a function's own may replace (PATH, LD_LIBRARY_PATH, …).
    #[serde(default)]
    pub vars: BTreeMap<String, String>,
}

fn digest<'de, D: serde::Deserializer<'de>>(text: D) -> Result<TreeId, D::Error> {
    let text = String::deserialize(text)?;
    text.parse().map(TreeId).map_err(serde::de::Error::custom)
}

#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("parse {path}")]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{path} is the recipe of {found}: a recipe's file bears its name")]
    Misnamed { path: PathBuf, found: RuntimeName },
    #[error("{path} is not the list of trees that its name says: it was changed")]
    BadSet { path: PathBuf },
}

impl Recipe {
    /// Reads one installed recipe. `Ok(None)` when this runtime is not installed.
    pub fn read(runtimes_dir: &Path, name: &RuntimeName) -> Result<Option<Self>, RecipeError> {
        let path = runtimes_dir.join(format!("{name}.toml"));
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RecipeError::Read { path, source }),
        };
        let recipe: Self =
            toml::from_str(&text).map_err(|source| RecipeError::Parse { path: path.clone(), source: Box::new(source) })?;
        if recipe.name != *name {
            return Err(RecipeError::Misnamed { path, found: recipe.name });
        }
        Ok(Some(recipe))
    }

    /// The trees that this runtime is made of, the top one first. The set's name is its own check.
    pub fn trees(&self, runtimes_dir: &Path) -> Result<Vec<Digest>, RecipeError> {
        let path = runtimes_dir.join("sets").join(self.tree.to_string());
        let text = fs::read(&path).map_err(|source| RecipeError::Read { path: path.clone(), source })?;
        let trees = std::str::from_utf8(&text).ok().filter(|_| Digest::of(&text) == self.tree.0);
        let trees = trees.and_then(|text| text.lines().map(str::parse).collect::<Result<Vec<_>, _>>().ok());
        trees.ok_or(RecipeError::BadSet { path })
    }

    /// The names of all installed runtimes, sorted.
    pub fn installed(runtimes_dir: &Path) -> Result<Vec<RuntimeName>, RecipeError> {
        let fail = |source| RecipeError::Read { path: runtimes_dir.to_owned(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(runtimes_dir).map_err(fail)? {
            let file = entry.map_err(fail)?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".toml")).map(RuntimeName::parse);
            names.extend(name.and_then(Result::ok));
        }
        names.sort();
        Ok(names)
    }

    /// The command lines of [`Recipe::start`] for a function with this memory, through its own `wrapper` where it has one:
    /// that program gets the runtime's command line as its arguments (`provided*` start the function's own program anyway).
    pub fn command_lines(&self, memory: Memory, wrapper: Option<&str>) -> Vec<Vec<String>> {
        let wrapper = wrapper.filter(|path| self.execution_env && !path.is_empty());
        let through = wrapper.map_or_else(Vec::new, |path| vec![EXEC_WRAPPER.to_owned(), path.to_owned()]);
        let fill = |word: &String| fill_memory(word, memory);
        self.start.iter().map(|line| through.iter().cloned().chain(line.iter().map(fill)).collect()).collect()
    }
}

/// The variable that names a function's own wrapper.
pub const WRAPPER_VAR: &str = "AWS_LAMBDA_EXEC_WRAPPER";
/// In the base tree. It ends with Lambda's words and exit codes where the wrapper is missing or not executable.
const EXEC_WRAPPER: &str = "/usr/libexec/exec-wrapper";

fn fill_memory(word: &str, memory: Memory) -> String {
    let filled = || {
        let (before, rest) = word.split_once("{memory_mib:")?;
        let (percent, after) = rest.split_once("%}")?;
        let percent: u32 = percent.parse().ok().filter(|p| *p <= 100)?;
        Some(format!("{before}{}{after}", memory.mib() * percent / 100))
    };
    filled().unwrap_or_else(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_name_is_never_a_path() {
        assert!(RuntimeName::parse("provided.al2023").is_ok());
        for text in ["", ".", "..", ".x", "a/b", "Node", &"a".repeat(41)] {
            assert!(RuntimeName::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_share_of_the_memory_is_filled_in() {
        let memory = Memory::from_mib(512).unwrap();
        assert_eq!(fill_memory("--max-old-space-size={memory_mib:85%}", memory), "--max-old-space-size=435");
        assert_eq!(fill_memory("/var/{memory_mib:x%}", memory), "/var/{memory_mib:x%}");
    }

    #[test]
    fn a_managed_runtime_is_started_through_the_functions_wrapper() {
        let lines = |execution_env: bool, wrapper: Option<&str>| {
            let text = format!(
                "name='a'\ntree='{}'\nstart=[['/x', '-m{{memory_mib:50%}}'], ['/y']]\nexecution_env={execution_env}",
                Digest::of(b"")
            );
            let recipe: Recipe = toml::from_str(&text).unwrap();
            recipe.command_lines(Memory::from_mib(128).unwrap(), wrapper)
        };
        assert_eq!(lines(true, Some("/opt/w")), [vec![EXEC_WRAPPER, "/opt/w", "/x", "-m64"], vec![EXEC_WRAPPER, "/opt/w", "/y"]]);
        assert_eq!(lines(true, Some("")), [vec!["/x", "-m64"], vec!["/y"]]);
        assert_eq!(lines(false, Some("/opt/w")), [vec!["/x", "-m64"], vec!["/y"]]);
    }

    #[test]
    fn an_unknown_key_of_a_recipe_is_refused() {
        let text = format!("name='a'\ntree='{}'\nstart=[['/x']]\nstrat=1", Digest::of(b""));
        assert!(toml::from_str::<Recipe>(&text).unwrap_err().to_string().contains("strat"));
    }
}
