//! To come.
mod snapshot;

pub use snapshot::{Seen, SeenState, Snapshot};
