//! To come.

pub mod api;
pub mod control;
pub mod dispatch;
pub mod environment;
mod http;
pub mod intake;
pub mod logs;
pub mod pool;
pub mod runtime_api;
mod supervisor_link;
