//! Function names.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A function's bare name: 1 to 64 of `[a-zA-Z0-9-_]`. ARNs and qualifiers are taken apart at the door. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FunctionName(Arc<str>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAName {
    #[error("Member must have length greater than or equal to 1")]
    Empty,
    #[error("Member must have length less than or equal to 64")]
    TooLong,
    #[error("Member must satisfy regular expression pattern: [a-zA-Z0-9-_]+")]
    Characters,
}

impl FunctionName {
    pub fn parse(text: &str) -> Result<Self, NotAName> {
        match text.len() {
            0 => Err(NotAName::Empty),
            _ if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') => Err(NotAName::Characters),
            1..=64 => Ok(Self(text.into())),
            _ => Err(NotAName::TooLong),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for FunctionName {
    type Error = NotAName;
    fn try_from(text: String) -> Result<Self, NotAName> {
        Self::parse(&text)
    }
}

impl From<FunctionName> for String {
    fn from(name: FunctionName) -> String {
        name.0.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lambdas_characters_make_a_name() {
        assert!(FunctionName::parse("my-Function_1").is_ok());
        assert_eq!(FunctionName::parse(""), Err(NotAName::Empty));
        assert_eq!(FunctionName::parse(&"x".repeat(65)), Err(NotAName::TooLong));
        for text in ["../x", "a b", "ä", "a/b", "a\0", "a:1", "a."] {
            assert_eq!(FunctionName::parse(text), Err(NotAName::Characters), "{text:?}");
        }
    }
}
