//! The only room with `unsafe`: one thin function per system call that the libraries lack, named like the call,
//! with owned descriptors and our own types. Policy lives elsewhere.
//!
//! Used by every process. `nix` and `rustix` come first; what is here either has no safe wrapper there or needs one
//! contract more than theirs.

#![allow(unsafe_code)] // the invariant of lib.rs: here, and nowhere else

pub mod descriptor;
pub mod heap;
pub mod interface;
pub mod memfd;
pub mod mount;
pub mod packet;
pub mod peer;
pub mod process;
pub mod seccomp;
pub mod socket;
pub mod tree;

// `bare` is kiln-init's alone (src/bin/kiln-init.rs includes it): system calls without a standard library.
