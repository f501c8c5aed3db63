//! The door for people on duty: JSON on `control.sock`, which only the admin group can open.
//!
//! In the server process, without privileges. Shows, and decides nothing:
//!
//! ```text
//! GET /v1/pool      every environment, and what bounds them (server::pool's snapshot)
//! GET /v1/status    who answers: version, instance, process id, since when, limit of descriptors, configuration in force
//! ```

use std::time::Instant;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use nix::sys::resource::{Resource, getrlimit};
use serde::Serialize;
use serde_json::json;

use super::http::{Door, Peer};
use super::pool::Snapshot;
use crate::config::Config;

/// See the module docs.
pub struct Control {
    config: Config,
    started: Instant,
    pool: Box<dyn Fn() -> Snapshot + Send + Sync>,
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
}

impl Control {
    pub fn new(config: &Config, pool: impl Fn() -> Snapshot + Send + Sync + 'static) -> Self {
        Self { config: config.clone(), started: Instant::now(), pool: Box::new(pool) }
    }

    fn status(&self) -> Status<'_> {
        Status {
            version: env!("CARGO_PKG_VERSION"),
            instance: &self.config.instance,
            server_pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            descriptors: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
            config: &self.config,
        }
    }
}

impl Door for Control {
    async fn answer(&self, _peer: &Peer, head: &Parts, _body: &mut Incoming) -> Response<Full<Bytes>> {
        let (status, body) = match (&head.method, head.uri.path()) {
            (&Method::GET, "/v1/pool") => (StatusCode::OK, json!((self.pool)())),
            (&Method::GET, "/v1/status") => (StatusCode::OK, json!(self.status())),
            (_, "/v1/pool" | "/v1/status") => (StatusCode::METHOD_NOT_ALLOWED, json!({ "message": "only GET" })),
            (_, path) => (StatusCode::NOT_FOUND, json!({ "message": format!("there is no {path} here") })),
        };
        let mut response = Response::new(Full::from(body.to_string()));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        }
        response
    }
}
