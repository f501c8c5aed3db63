//! Kiln: a self-hosted execution engine for AWS Lambda functions.
//!
//! One invocation runs in one namespaced container, with Lambda's limits. The code is ordered by the
//! process it runs in, because a line's first question is *in which process, with which privilege*:
//!
//! ```text
//! systemd
//!  └─ supervisor       root. Opens both doors' sockets, starts and replaces the others, sweeps.
//!      ├─ launcher ×K  root, one thread, small. One order in, one container out; reaps it.
//!      │   └─ init     pid 1 of a container (kiln-init): starts the runtime, reaps, tells how it ended.
//!      ├─ server       user kiln, no capability, tokio. Parses everything that comes from outside.
//!      └─ unpack       short-lived, a uid of its own, seccomp: zip in by descriptor, tree out.
//! ```
//!
//! One invocation in order of time: `api → dispatch → function → pool → environment → (wire →
//! launcher) → runtime_api → function … → outcome → api`.
//!
//! Architecture invariant: only [`sys`] contains `unsafe`.
//!
//! Architecture invariant: the root side (`supervisor`, `launcher`) knows neither tokio nor HTTP nor
//! SQL nor JSON.
//!
//! Architecture invariant: `server::pool` knows no namespace, no process id and no path; it could
//! pool umbrellas.
//!
//! Architecture invariant: only the doors (`server::api`, `server::control`, `server::runtime_api`)
//! know HTTP status codes.
//!
//! Architecture invariant: only `server::runtime_api` and `server::logs` see bytes written by a
//! function before they are bounded.
//!
//! Architecture invariant: processes never use each other's rooms; they meet in [`wire`].
//!
//! `tests/rooms.rs` reads every `crate::` path and holds the code to this page.

#![deny(unsafe_code)]

#[cfg(all(feature = "kill-points", not(debug_assertions)))]
compile_error!("kill-points are for tests: build them without --release");

pub mod cli;
pub mod inside;
pub mod launcher;
pub mod server;
pub mod supervisor;

#[macro_use]
pub mod kill_point;

pub mod bill;
pub mod code;
pub mod config;
pub mod database;
pub mod function;
pub mod hierarchy;
pub mod invocation;
pub mod meter;
pub mod registry;
pub mod runtime;
pub mod telemetry;
pub mod wire;

pub mod sys;
