//! Who is warm, who is next, who must go.
//!
//! Server process, floor 3. Called by `dispatch` only. Knows no namespace, no process id, no path and no
//! function's bytes: a slot has a function's name, a [`crate::function::Stamp`] and sizes.
//!
//! [`core`] decides (pure, property-tested); [`driver`] holds the environments and carries the decisions out. A loan is
//! a value, [`Lease`]; a start is reserved before anything is built, as a [`Permit`].

pub mod core;
mod driver;
mod snapshot;

pub use self::core::{Limits, SlotId, Usage, Want};
pub use driver::{Facts, Lease, Permit, Pool, Pooled, Turn};
pub use snapshot::{Reserve, Seen, SeenState, Snapshot};
