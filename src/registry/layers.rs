//! Layers: numbered versions of a zip that functions see at /opt.
//!
//! A version never changes. Deleting one leaves alone the functions that use it: what they need of it is in their own
//! records ([`LayerUse`]).

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Promise, RegistryError};
use crate::code::Digest;

/// Publishing, finding and deleting versions of layers, as durable as functions are.
pub trait Layers: Send + Sync + 'static {
    fn layer(&self, name: &LayerName, version: u64) -> Option<Arc<LayerVersion>>;

    /// All versions, of one layer or of all, in the order of names and numbers.
    fn layers(&self, of: Option<&LayerName>) -> Vec<Arc<LayerVersion>>;

    /// The draft's number and time are set here. No number comes twice, not even after its version was deleted.
    fn publish_layer(&self, draft: LayerVersion) -> Promise<'_, Result<Arc<LayerVersion>, RegistryError>>;

    /// `None`: there was no such version.
    fn delete_layer(&self, name: &LayerName, version: u64) -> Promise<'_, Result<Option<Arc<LayerVersion>>, RegistryError>>;
}

/// A layer's bare name: 1 to 140 of `[a-zA-Z0-9-_]`. ARNs are taken apart at the door.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerName(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a layer's name has 1 to {} characters of [a-zA-Z0-9-_]", LayerName::MAX)]
pub struct NotALayerName;

/// One version of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerVersion {
    pub name: LayerName,
    pub version: u64,
    pub code: Digest,
    /// Bytes of the zip, and of the tree that came out of it.
    pub code_size: u64,
    pub unpacked: u64,
    pub description: String,
    pub license: Option<String>,
    /// What its author says it is for. Kept, shown, listed by; it forbids nothing.
    pub runtimes: Vec<String>,
    pub architectures: Vec<String>,
    /// Milliseconds since 1970, UTC.
    pub created_ms: i64,
}

/// A layer's version in a function, with all that the function needs of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerUse {
    pub name: LayerName,
    pub version: u64,
    pub code: Digest,
    pub code_size: u64,
    pub unpacked: u64,
}

impl LayerName {
    pub const MAX: usize = 140;

    pub fn parse(text: &str) -> Result<Self, NotALayerName> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if (1..=Self::MAX).contains(&text.len()) && text.bytes().all(word) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotALayerName)
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for LayerName {
    type Error = NotALayerName;
    fn try_from(text: String) -> Result<Self, NotALayerName> {
        Self::parse(&text)
    }
}

impl From<LayerName> for String {
    fn from(name: LayerName) -> String {
        name.0
    }
}

impl From<&LayerVersion> for LayerUse {
    fn from(layer: &LayerVersion) -> Self {
        let LayerVersion { name, version, code, code_size, unpacked, .. } = layer;
        Self { name: name.clone(), version: *version, code: *code, code_size: *code_size, unpacked: *unpacked }
    }
}

/// What is mounted at /opt, the bottom one first. Two layers may be one and the same zip; the file system takes it once,
/// and the upper place counts.
pub fn mounted(layers: &[LayerUse]) -> Vec<Digest> {
    let later = |at: usize| layers[at + 1..].iter().any(|other| other.code == layers[at].code);
    (0..layers.len()).filter(|at| !later(*at)).map(|at| layers[at].code).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zip_that_is_two_layers_is_mounted_once_in_its_upper_place() {
        let layer = |name: &str, zip: &[u8]| LayerUse {
            name: LayerName::parse(name).unwrap(),
            version: 1,
            code: Digest::of(zip),
            code_size: 1,
            unpacked: 1,
        };
        let layers = [layer("a", b"1"), layer("b", b"2"), layer("c", b"1"), layer("d", b"3")];
        assert_eq!(mounted(&layers), [Digest::of(b"2"), Digest::of(b"1"), Digest::of(b"3")]);
    }

    #[test]
    fn only_lambdas_characters_make_a_layers_name() {
        assert!(LayerName::parse("my-Layer_1").is_ok() && LayerName::parse(&"x".repeat(140)).is_ok());
        for text in ["", "a:1", "a/b", "a.b", "ä", &"x".repeat(141)] {
            assert!(LayerName::parse(text).is_err(), "{text}");
        }
    }
}
