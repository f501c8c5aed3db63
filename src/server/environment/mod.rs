//! To come.
mod launchers;

pub use launchers::{LaunchError, Launchers};
