//! To come.

pub mod dispatch;
pub mod environment;
pub mod logs;
pub mod pool;
pub mod runtime_api;
