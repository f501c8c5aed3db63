//! The engine, whole: a real kilnd with its launchers, server and containers, asked through its sockets.
//!
//! Needs root, the built runtimes (`scripts/build-runtimes`) and kilnd's users (`scripts/users`): `scripts/test`
//! sees to all of it and sets KILN_TESTS_MUST_RUN=1, under which a missing condition fails instead of skipping.

#[allow(dead_code)] // the module serves several test programs; each uses its part
mod host;

mod causes;
mod code;
mod commands;
mod concurrency;
mod contained;
mod counts;
mod hands;
mod inside;
mod layers;
mod life;
mod limits;
mod looking;
mod processes;
mod roles;
mod runtimes;
mod told;
mod updates;
