//! Run with the least of all: kiln-init (its own binary, no standard library) and unpack.

pub mod unpack;

/// kiln-init's own files; only its parser is in the library too, for the tests and the fuzzers.
#[path = "init/start.rs"]
pub mod init_start;
