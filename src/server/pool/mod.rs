//! Who is warm, who is next, who must go.
//!
//! Server process, floor 3. Called by `dispatch` only. Knows no namespace, no process id, no path and no
//! function's bytes: a slot has a function's name, a [`crate::function::Stamp`] and sizes.
//!
//! [`core`] decides (pure, property-tested) with the numbers of [`policy`], the queues of [`waiting`] and what [`failing`]
//! knows of failed inits and [`ends`] of the last ends; [`driver`] holds the environments and carries the decisions out, and tells of them. A loan is a value, [`Lease`]; a
//! start is reserved before anything is built, as a [`Permit`].

pub mod core;
mod driver;
mod ends;
mod failing;
mod policy;
mod slot;
mod snapshot;
mod waiting;

pub use driver::{Ending, Entered, Facts, Held, Lease, NoTurn, NotEntered, Permit, Pool, Pooled, Turn};
pub use policy::Limits;
pub use slot::{Retire, SlotId, Usage, Want};
pub use snapshot::{Dismissed, Drained, Reserve, Seen, SeenState, Snapshot};
