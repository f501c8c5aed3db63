//! What a function is: its name, its limits, its revision.
//!
//! A word, known to server and launchers. Everything here is valid by construction: texts and
//! numbers from outside become these types at a door, or are refused there.

mod limits;
mod name;
mod profile;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::code::Digest;
use crate::runtime::RuntimeName;

pub use limits::{CPU_PERIOD, Memory, NotALimit, Timeout, TmpSize};
pub use name::{FunctionName, NotAName};
pub use profile::{Init, Limits, Profile};

/// A function as stored: what an environment is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    pub name: FunctionName,
    pub runtime: RuntimeName,
    pub handler: String,
    pub memory: Memory,
    pub timeout: Timeout,
    pub tmp: TmpSize,
    /// The customer's environment variables.
    pub vars: BTreeMap<String, String>,
    pub code: Digest,
    pub layers: Vec<Digest>,
    #[serde(default)]
    pub reuse: Reuse,
    pub stamp: Stamp,
}

/// Whether an environment serves one invocation after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reuse {
    #[default]
    Always,
    /// A fresh container for each invocation.
    Never,
}

impl Reuse {
    /// The tag that sets it: Lambda's API has no member for it, and every client can set tags.
    pub const TAG: &str = "kiln:reuse";

    /// What the tags ask for; `Err`: a value that means nothing.
    pub fn of_tags(tags: &BTreeMap<String, String>) -> Result<Self, &str> {
        match tags.get(Self::TAG).map(String::as_str) {
            None | Some("always") => Ok(Self::Always),
            Some("never") => Ok(Self::Never),
            Some(other) => Err(other),
        }
    }
}

/// Which state of a function an environment was made from. Grows with every change of code or
/// configuration and is never used twice, not even for a function deleted and created anew:
/// an environment with another stamp than the registry's is never lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stamp(pub u64);
