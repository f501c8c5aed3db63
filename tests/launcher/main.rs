//! A launcher, seen from its server's chair.
//!
//! Each test starts the real `kilnd launcher` as its supervisor would, and plays the server over the packet socket: what
//! it does for good orders (`life`), what is true inside (`inside`), who else may enter (`entering`), and what it does for a server that was taken over (`orders`,
//! `adopt`). Needs root.

mod adopt;
mod entering;
mod errands;
mod host;
mod inside;
mod life;
mod limits;
mod orders;
