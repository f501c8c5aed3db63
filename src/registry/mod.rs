//! Which functions exist.
//!
//! A word of the server. The store behind it is a trait, so that a fleet can share one later;
//! the embedded one is SQLite.

use std::sync::Arc;

use crate::function::{Function, FunctionName};

/// Looking a function up, on every invocation's path: from memory, without waiting.
pub trait Functions: Send + Sync + 'static {
    /// The function as it is now. An environment with another [`crate::function::Stamp`] than this one's is not lent.
    fn function(&self, name: &FunctionName) -> Option<Arc<Function>>;
}
