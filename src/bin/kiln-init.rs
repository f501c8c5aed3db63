//! kiln-init: pid 1 of a container. The program is [`inside::init`]; this file only names its parts.
//!
//! Runs with the least of all: the function's own user, no capability, its seccomp filter. It has no
//! standard library, because it is on the path of every cold start (1 kB instead of 1 MB and 36 page faults).

#![no_std]
#![no_main]
#![deny(unsafe_code)]

#[path = "../sys/bare.rs"]
mod bare;
#[path = "../inside/init/mod.rs"]
mod init;
#[path = "../wire/init.rs"]
mod words;

/// The same names as in the library, so that a line reads alike in both.
mod inside {
    pub(crate) use crate::init;
}
mod sys {
    pub(crate) use crate::bare;
}
mod wire {
    pub(crate) use crate::words as init;
}

/// Called by `_start` ([`sys::bare`]).
fn main() -> ! {
    inside::init::run()
}
