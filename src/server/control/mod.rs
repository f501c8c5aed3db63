//! The door for people on duty: JSON on `control.sock`, which only the admin group can open.
//!
//! In the server process, without privileges. Shows, passes on what they want to end, and decides nothing itself:
//!
//! ```text
//! GET /v1/pool                      every environment, and what bounds them (server::pool's snapshot, memory measured now); what
//!                                   functions have done since the start (server::tally)
//! GET /v1/status                    who answers: version, instance, process id, since when, limit of descriptors,
//!                                   configuration in force, keys of it that wait for a restart, whether it drains
//! GET /v1/usage                     a month's bill ([`usage`])
//! GET /v1/metrics                   for Prometheus ([`metrics`], which has another door besides)
//! GET /v1/logs                      the logs of all functions, or of some, in order of time
//! GET /v1/events                    what happens, a JSON object on each line ([`events`])
//! GET /v1/history                   environments that have ended, and why ([`history`])
//! GET /v1/functions/{name}/logs     a function's log, also a deleted one's, a JSON object on each line ([`logs`])
//! DELETE /v1/functions/{name}/logs  removes it
//! POST /v1/functions/{name}/drain   its environments end: idle ones now, the others with their invocation
//! GET /v1/containers/{id}           one container: what it is, uses and has been through ([`containers`]); …/oci as OCI has it
//! POST /v1/containers/{id}/exec     runs a program in it
//! POST /v1/containers/{id}/recycle  the same for one environment
//! POST /v1/containers/{id}/kill     it ends now, and its invocation with it
//! ```
//!
//! Whoever ends something is named in kilnd's log, by the kernel's word.

mod containers;
mod events;
mod history;
mod logs;
mod metrics;
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
use tracing::info;

use super::dispatch::NoVisit;
use super::environment::Promise;
use super::http::{Door, Peer, Stop};
use super::pool::{Dismissed, Drained, Snapshot};
use crate::config::Config;
use crate::config::reload::InForce;
use crate::function::FunctionName;
use crate::meter::history::Past;
use crate::meter::month::Books;
use crate::wire::visit::Asked;

use logs::decoded;

pub use containers::{Inspected, Stream, Visitor};
pub use events::Happenings;
use history::HistoryDoor;
pub use logs::Logs;
pub use metrics::{Loopback, Metrics};
use usage::UsageDoor;

/// See the module docs.
pub struct Control {
    in_force: InForce,
    started: Instant,
    /// Set when it drains.
    draining: Stop,
    /// Set when the drain is over: nobody may stay.
    ending: Stop,
    environments: Arc<dyn Environments>,
    /// Held while somebody looks, so that people who look every second wait for each other and not the invocations for them.
    looking: Mutex<()>,
    logs: Logs,
    happenings: Happenings,
    history: HistoryDoor,
    usage: UsageDoor,
    metrics: Arc<Metrics>,
    /// Where else they are served.
    loopback: Arc<Loopback>,
}

/// What others keep and this door shows.
pub struct Shown {
    pub logs: Logs,
    pub happenings: Happenings,
    pub metrics: Arc<Metrics>,
    pub loopback: Arc<Loopback>,
}

/// A program in a container, and whose container that is.
pub type Visit = (FunctionName, Box<dyn Visitor>);

/// Who has the environments, seen from this door.
pub trait Environments: Send + Sync + 'static {
    /// With every environment's memory as it is now. Blocks for some milliseconds.
    fn measured(&self) -> Snapshot;

    /// Ends a function's environments: idle ones now, the others when their invocation ends. `by` is told with each end. `None`:
    /// there is no such function.
    fn drain(&self, function: &FunctionName, by: &str) -> Option<Drained>;

    /// Ends one environment: now if it is idle, else when its invocation ends. `None`: there is no such container.
    fn recycle(&self, container: &str, by: &str) -> Option<Dismissed>;

    /// Everything that is known of one environment. Wakes nobody. `None`: there is no such container.
    fn inspect<'a>(&'a self, container: &'a str) -> Promise<'a, Option<Inspected>>;

    /// Runs a program in a container, whose function this is. `by` is told in the function's log.
    fn enter<'a>(&'a self, container: &'a str, asked: &'a Asked, by: &'a str) -> Promise<'a, Result<Visit, NoVisit>>;

    /// Ends one environment, and its invocation, now. `by` is told in the function's log.
    fn kill(&self, container: &str, by: &str) -> Option<Dismissed>;
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
    /// The loopback address where metrics are served, too.
    metrics: Option<String>,
}

type Reply = Response<Either<Full<Bytes>, logs::Lines>>;

impl Control {
    pub fn new(
        in_force: impl Into<InForce>,
        environments: Arc<dyn Environments>,
        shown: Shown,
        draining: Stop,
        ending: Stop,
    ) -> Self {
        let in_force = in_force.into();
        let usage = UsageDoor::new(Books::new(in_force.now().database()), in_force.clone());
        let history = HistoryDoor::new(Past::new(in_force.now().database()));
        let (started, looking) = (Instant::now(), Mutex::default());
        let Shown { logs, happenings, metrics, loopback } = shown;
        Self { in_force, started, draining, ending, environments, looking, logs, happenings, history, usage, metrics, loopback }
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
            metrics: self.loopback.address(),
        })
    }

    async fn pool(&self) -> Reply {
        let _one = self.looking.lock().await;
        let environments = self.environments.clone();
        match tokio::task::spawn_blocking(move || environments.measured()).await {
            Ok(snapshot) => {
                let mut shown = json!(snapshot);
                shown["functions"] = json!(self.metrics.functions());
                reply(StatusCode::OK, shown)
            }
            Err(error) => message(StatusCode::INTERNAL_SERVER_ERROR, format!("look at the pool: {error}")),
        }
    }

    fn drain(&self, uid: u32, name: &str) -> Reply {
        let by = format!("uid {uid} (kiln function drain)");
        match FunctionName::parse(name).ok().and_then(|function| self.environments.drain(&function, &by)) {
            Some(Drained { function, ended, leaving }) => {
                info!(uid, %function, ended, leaving, "audit: a function was drained by hand");
                reply(StatusCode::OK, json!(Drained { function, ended, leaving }))
            }
            None => not_found(format!("there is no function {name}")),
        }
    }

    fn recycle(&self, uid: u32, container: &str) -> Reply {
        match self.environments.recycle(container, &format!("uid {uid} (kiln container recycle)")) {
            Some(dismissed) => {
                let Dismissed { function, ended, .. } = &dismissed;
                info!(uid, container, %function, ended, "audit: a container was recycled by hand");
                reply(StatusCode::OK, json!(dismissed))
            }
            None => no_container(container),
        }
    }

    fn kill(&self, uid: u32, container: &str) -> Reply {
        match self.environments.kill(container, &format!("uid {uid} (kiln container kill)")) {
            Some(dismissed) => {
                let Dismissed { function, state, .. } = &dismissed;
                info!(uid, container, %function, ?state, "audit: a container was killed by hand");
                reply(StatusCode::OK, json!(dismissed))
            }
            None => no_container(container),
        }
    }
}

impl Door for Control {
    type Answer = Either<Full<Bytes>, logs::Lines>;

    async fn answer(&self, peer: &Peer, head: &Parts, body: &mut Incoming) -> Reply {
        let path = head.uri.path();
        if let Some(name) = path.strip_prefix("/v1/functions/").and_then(|rest| rest.strip_suffix("/logs")) {
            return match head.method {
                Method::GET => self.logs.show(name, head.uri.query().unwrap_or_default()).await,
                Method::DELETE => {
                    let reply = self.logs.remove(name).await;
                    if reply.status().is_success() {
                        info!(uid = peer.uid, function = name, "audit: a function's log was removed by hand");
                    }
                    reply
                }
                _ => not_allowed("GET, DELETE"),
            };
        }
        let ends = |what: &str, verb: &str| {
            path.strip_prefix(what).and_then(|rest| rest.strip_suffix(verb)).filter(|name| !name.contains('/')).map(decoded)
        };
        if let Some(container) = ends("/v1/containers/", "/exec") {
            return match head.method {
                Method::POST => self.exec(peer.uid, &container, head, body).await,
                _ => not_allowed("POST"),
            };
        }
        for (container, oci) in [(ends("/v1/containers/", ""), false), (ends("/v1/containers/", "/oci"), true)] {
            match (container, &head.method, oci) {
                (Some(container), &Method::GET, false) => return self.inspect(&container).await,
                (Some(container), &Method::GET, true) => return self.oci(&container).await,
                (Some(_), _, _) => return not_allowed("GET"),
                (None, _, _) => {}
            }
        }
        for (named, end) in [
            (ends("/v1/functions/", "/drain"), Self::drain as fn(&Self, u32, &str) -> Reply),
            (ends("/v1/containers/", "/recycle"), Self::recycle),
            (ends("/v1/containers/", "/kill"), Self::kill),
        ] {
            match (named, &head.method) {
                (Some(name), &Method::POST) => return end(self, peer.uid, &name),
                (Some(_), _) => return not_allowed("POST"),
                (None, _) => {}
            }
        }
        match (&head.method, path) {
            (&Method::GET, "/v1/pool") => self.pool().await,
            (&Method::GET, "/v1/status") => reply(StatusCode::OK, self.status()),
            (&Method::GET, "/v1/usage") => self.usage.show(head.uri.query().unwrap_or_default()).await,
            (&Method::GET, "/v1/logs") => self.logs.show_several(head.uri.query().unwrap_or_default()),
            (&Method::GET, "/v1/events") => self.happenings.show(head.uri.query().unwrap_or_default()),
            (&Method::GET, "/v1/history") => self.history.show(head.uri.query().unwrap_or_default()).await,
            (&Method::GET, "/v1/metrics") => self.metrics.show().await.map(Either::Left),
            (_, "/v1/pool" | "/v1/status" | "/v1/usage" | "/v1/events" | "/v1/history" | "/v1/logs" | "/v1/metrics") => {
                not_allowed("GET")
            }
            (_, path) => message(StatusCode::NOT_FOUND, format!("there is no {path} here")),
        }
    }
}

fn reply(status: StatusCode, body: Value) -> Reply {
    written(status, body.to_string().into())
}

fn written(status: StatusCode, json: Bytes) -> Reply {
    let mut response = Response::new(Either::Left(Full::from(json)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn message(status: StatusCode, text: String) -> Reply {
    reply(status, json!({ "message": text }))
}

/// As at the other door, for the client that both have.
fn not_found(text: String) -> Reply {
    let mut response = message(StatusCode::NOT_FOUND, text);
    response.headers_mut().insert("x-amzn-errortype", HeaderValue::from_static("ResourceNotFoundException"));
    response
}

fn no_container(id: &str) -> Reply {
    let cure = format!("`kiln container list` shows those that there are, `kiln history --container {id}` why one ended");
    not_found(format!("there is no container {id}, or it has ended: {cure}"))
}

fn not_allowed(allowed: &'static str) -> Reply {
    let mut response = message(StatusCode::METHOD_NOT_ALLOWED, format!("only {allowed}"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}
