//! The door for people on duty: JSON on `control.sock`, which only the admin group can open.
//!
//! In the server process, without privileges. Shows, and decides nothing:
//!
//! ```text
//! GET /v1/pool                      every environment, and what bounds them (server::pool's snapshot, memory measured now)
//! GET /v1/status                    who answers: version, instance, process id, since when, limit of descriptors,
//!                                   configuration in force, keys of it that wait for a restart, whether it drains
//! GET /v1/usage                     a month's bill ([`usage`])
//! GET /v1/functions/{name}/logs     a function's log, also a deleted one's, a JSON object on each line ([`logs`])
//! DELETE /v1/functions/{name}/logs  removes it
//! ```

mod logs;
mod usage;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use nix::sys::resource::{Resource, getrlimit};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::http::{Door, Peer, Stop};
use super::pool::Snapshot;
use crate::config::Config;
use crate::config::reload::InForce;
use crate::meter::month::Books;

pub use logs::Logs;
use usage::UsageDoor;

/// See the module docs.
pub struct Control {
    in_force: InForce,
    started: Instant,
    /// Set when it drains.
    draining: Stop,
    /// Blocks for some milliseconds. Held while it is asked, so that people who look every second wait for each other and
    /// not the invocations for them.
    pool: Mutex<Arc<dyn Fn() -> Snapshot + Send + Sync>>,
    logs: Logs,
    usage: UsageDoor,
}

#[derive(Serialize)]
struct Status<'a> {
    version: &'static str,
    instance: &'a str,
    server_pid: u32,
    uptime_s: u64,
    /// How many this process may have open, which bounds how many environments there can be.
    descriptors: u64,
    config: &'a Config,
    /// Keys whose value in the file is for the next start.
    waiting_for_restart: &'a [String],
    /// No new invocation is taken; those that run may finish.
    draining: bool,
}

type Reply = Response<Either<Full<Bytes>, logs::Lines>>;

impl Control {
    pub fn new(
        in_force: impl Into<InForce>,
        pool: impl Fn() -> Snapshot + Send + Sync + 'static,
        logs: Logs,
        draining: Stop,
    ) -> Self {
        let in_force = in_force.into();
        let config = in_force.now();
        let usage = UsageDoor::new(Books::new(config.database()), config.tariff());
        Self { in_force, started: Instant::now(), draining, pool: Mutex::new(Arc::new(pool)), logs, usage }
    }

    fn status(&self) -> Value {
        let (config, waiting) = (self.in_force.now(), self.in_force.waiting());
        json!(Status {
            version: env!("CARGO_PKG_VERSION"),
            instance: &config.instance,
            server_pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            descriptors: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
            config: &config,
            waiting_for_restart: &waiting,
            draining: *self.draining.borrow(),
        })
    }

    async fn pool(&self) -> Reply {
        let pool = self.pool.lock().await;
        let look = pool.clone();
        match tokio::task::spawn_blocking(move || look()).await {
            Ok(snapshot) => reply(StatusCode::OK, json!(snapshot)),
            Err(error) => message(StatusCode::INTERNAL_SERVER_ERROR, format!("look at the pool: {error}")),
        }
    }
}

impl Door for Control {
    type Answer = Either<Full<Bytes>, logs::Lines>;

    async fn answer(&self, _peer: &Peer, head: &Parts, _body: &mut Incoming) -> Reply {
        let path = head.uri.path();
        if let Some(name) = path.strip_prefix("/v1/functions/").and_then(|rest| rest.strip_suffix("/logs")) {
            return match head.method {
                Method::GET => self.logs.show(name, head.uri.query().unwrap_or_default()).await,
                Method::DELETE => self.logs.remove(name).await,
                _ => not_allowed("GET, DELETE"),
            };
        }
        match (&head.method, path) {
            (&Method::GET, "/v1/pool") => self.pool().await,
            (&Method::GET, "/v1/status") => reply(StatusCode::OK, self.status()),
            (&Method::GET, "/v1/usage") => self.usage.show(head.uri.query().unwrap_or_default()).await,
            (_, "/v1/pool" | "/v1/status" | "/v1/usage") => not_allowed("GET"),
            (_, path) => message(StatusCode::NOT_FOUND, format!("there is no {path} here")),
        }
    }
}

fn reply(status: StatusCode, body: Value) -> Reply {
    let mut response = Response::new(Either::Left(Full::from(body.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn message(status: StatusCode, text: String) -> Reply {
    reply(status, json!({ "message": text }))
}

fn not_allowed(allowed: &'static str) -> Reply {
    let mut response = message(StatusCode::METHOD_NOT_ALLOWED, format!("only {allowed}"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}
