//! How a command fails: one plain sentence with its cure, and an exit code that scripts may rely upon.

use std::fmt;

/// What clap itself ends with for a command line that it does not understand.
pub const USAGE: u8 = 2;

#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// 1: it was tried and did not work.
    Failed(String),
    /// 2: it was not asked for correctly.
    Usage(String),
    /// 3: no kilnd could be talked to.
    Unreachable(String),
    /// 4: there is no such function or container.
    NotFound(String),
    /// 5: no capacity now; try again.
    Throttled(String),
    /// 6: the function ran, and failed. Its own words are on stdout already.
    Function(String),
    /// A program ran in a container, or could not: its own exit code, and what there is to say about it, which may be nothing.
    Program(u8, String),
}

impl Failure {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => USAGE,
            Self::Unreachable(_) => 3,
            Self::NotFound(_) => 4,
            Self::Throttled(_) => 5,
            Self::Function(_) => 6,
            Self::Program(code, _) => *code,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Failed(text)
        | Self::Usage(text)
        | Self::Unreachable(text)
        | Self::NotFound(text)
        | Self::Throttled(text)
        | Self::Function(text)
        | Self::Program(_, text)) = self;
        f.write_str(text)
    }
}
