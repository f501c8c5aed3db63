//! The policy as data: which system calls exist inside a container, and who needs them.
//!
//! Three lists that together name every call of x86_64, each once: [`allowed`] (rows by topic), [`CONDITIONS`]
//! (allowed if their arguments say so) and [`DENIED`]. What is in none of them, because Linux got it later, answers
//! ENOSYS like the denied ones: programs know that answer from older kernels and fall back.
//!
//! A reason stands on at most three calls and names who calls them, so that each can be asked "still?". "glibc" is
//! 2.17 to 2.41; the runtimes are Node 6 to 24, Python 2.7 to 3.14, Java 8 to 21, .NET Core 1 and later, Go, Rust
//! with tokio, Ruby, and bash with coreutils.

use libc::c_long;

mod conditions;
mod denied;
mod descriptors;
mod files;
mod memory;
mod network;
mod processes;
mod signals;

pub use conditions::{Arg, CONDITIONS, Condition, Test};
pub use denied::{DENIED, Denied, PAST_EVERY_FILTER};

/// One system call of x86_64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Call {
    symbol: &'static str,
    pub number: u32,
}

/// Calls that are allowed whatever their arguments.
#[derive(Debug)]
pub struct Row {
    pub calls: &'static [Call],
    pub why: &'static str,
}

/// `calls![SYS_read, SYS_write]`: names and numbers from `libc`, so that neither can be mistyped.
macro_rules! calls {
    ($($sys:ident),* $(,)?) => {
        &[$($crate::launcher::seccomp::table::Call::new(stringify!($sys), $sys)),*]
    };
}
use calls;

impl Call {
    const fn new(symbol: &'static str, number: c_long) -> Self {
        Self { symbol, number: number as u32 }
    }

    /// As its manual page is named.
    pub fn name(&self) -> &'static str {
        self.symbol.strip_prefix("SYS_").unwrap_or(self.symbol)
    }
}

/// All rows, by topic.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    [memory::ROWS, descriptors::ROWS, files::ROWS, processes::ROWS, signals::ROWS, network::ROWS].into_iter().flatten()
}

/// Every call that is allowed whatever its arguments.
pub fn allowed() -> impl Iterator<Item = Call> {
    rows().flat_map(|row| row.calls).copied()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// The programs that a reason may name.
    const CALLERS: &[&str] = &[
        "glibc",
        "Node",
        "V8",
        "libuv",
        "npm",
        "JVM",
        "Java",
        "Go",
        "Python",
        ".NET",
        "Ruby",
        "Rust",
        "tokio",
        "bash",
        "coreutils",
        "kiln-init",
        "launcher",
        "SQLite",
        "PostgreSQL",
        "libsodium",
        "tar",
        "git",
        "GLib",
        "fakeroot",
        "every runtime",
        "every HTTP client",
    ];

    fn reasons() -> Vec<(&'static [Call], &'static str)> {
        let conditions = CONDITIONS.iter().map(|condition| (std::slice::from_ref(&condition.call), condition.why));
        rows().map(|row| (row.calls, row.why)).chain(conditions).collect()
    }

    #[test]
    fn a_reason_stands_on_at_most_three_calls() {
        let mut calls: BTreeMap<&str, usize> = BTreeMap::new();
        for (named, why) in reasons() {
            *calls.entry(why).or_default() += named.len();
        }
        let crowded: Vec<_> = calls.iter().filter(|(_, count)| !(1..=3).contains(*count)).collect();
        assert!(crowded.is_empty(), "{crowded:#?}");
    }

    #[test]
    fn a_reason_names_who_calls() {
        let nobody: Vec<_> =
            reasons().into_iter().filter(|(_, why)| !CALLERS.iter().any(|caller| why.contains(caller))).collect();
        assert!(nobody.is_empty(), "{nobody:#?}");
    }

    #[test]
    fn no_call_is_named_twice_and_none_is_forgotten() {
        let denied = DENIED.iter().flat_map(|row| row.calls).copied();
        let mut named: Vec<Call> = allowed().chain(CONDITIONS.iter().map(|condition| condition.call)).chain(denied).collect();
        named.sort_by_key(|call| call.number);
        for pair in named.windows(2) {
            assert!(pair[0].number != pair[1].number && pair[0].name() != pair[1].name(), "{pair:?}");
        }
        // Linux 6.19's table for x86_64: 337 to 423 were left free when all architectures agreed on numbers.
        let numbers: BTreeSet<u32> = named.iter().map(|call| call.number).collect();
        assert_eq!(numbers, (0..=336).chain(424..=470).collect());
    }

    #[test]
    fn every_denial_says_why() {
        assert!(DENIED.iter().all(|row| !row.calls.is_empty() && row.why.len() > 10));
    }
}
