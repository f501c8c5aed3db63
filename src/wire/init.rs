//! Server ⇄ kiln-init, on the container's control socket (SOCK_SEQPACKET, descriptor 3 in kiln-init).
//!
//! Constants only: kiln-init has no standard library and includes this file as it is.
//!
//! kiln-init → server, always 8 bytes: `[kind, detail, 0, 0, value: i32 little-endian]`.
//!
//! Server → kiln-init, one packet, at most 64 KiB: `[START, candidates: u8, vars: u16 LE]`, then for each
//! candidate one byte `argc` (at least 1), then all words (each candidate's argv in turn, then the vars as
//! `NAME=value`), each ended by NUL.

/// Server → init: start the runtime.
pub const START: u8 = 1;

/// init → server: at rest, waiting for START.
pub const RESTING: u8 = 16;
/// The runtime was started; `detail` is the candidate; its pidfd comes along.
pub const STARTED: u8 = 17;
/// No candidate is a regular file.
pub const NO_BOOTSTRAP: u8 = 18;
/// execve failed; `detail` is the candidate, `value` the errno.
pub const EXEC_FAILED: u8 = 19;
/// The runtime ended; `value` is the wait status as wait4(2) gives it. kiln-init exits after it.
pub const EXITED: u8 = 20;
/// START was malformed, or a system call of kiln-init's own failed (`value`: errno).
pub const BROKEN: u8 = 21;

/// Length of every message of kiln-init.
pub const MESSAGE: usize = 8;
/// Most words (arguments and variables) in START.
pub const MAX_WORDS: usize = 1024;
/// Where kiln-init finds its control socket.
pub const CONTROL_FD: i32 = 3;
