//! Run with the least of all: kiln-init (its own binary, no standard library) and unpack.
pub mod unpack;
