//! One container, for people on duty: what it is, and a way into it.
//!
//! ```text
//! GET  /v1/containers/{id}        everything that is known of it ([`Inspected`]); nobody is woken for that
//! GET  /v1/containers/{id}/oci    as an OCI runtime configuration
//! POST /v1/containers/{id}/exec   runs a program in it ([`crate::wire::visit`]): 101, and then its bytes on this connection
//! ```

use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::info;

use super::{Control, Reply, message, no_container, reply};
use crate::function::FunctionName;
use crate::server::dispatch::NoVisit;
use crate::server::environment::{Promise, Sight};
use crate::server::events::{Cold, Event};
use crate::server::http::{BodyError, Stop, Talk, read_body};
use crate::server::pool::Seen;
use crate::wire::launcher::{Description, MappedId, Usage};
use crate::wire::visit::{Asked, PROTOCOL};

/// A command, and nothing else.
const MAX_ASKED: usize = 64 << 10;
const ASKING_TIME: Duration = Duration::from_secs(10);
/// Of a command in kilnd's log.
const LONGEST_COMMAND: usize = 300;

/// What is known of one container.
pub struct Inspected {
    pub seen: Seen,
    /// Why no warm one was there when it was started.
    pub why_cold: Cold,
    /// Or why its launcher says nothing.
    pub sight: Result<Sight, String>,
    /// Its events, as far as they are remembered.
    pub timeline: Vec<Event>,
}

/// Both ways of a connection.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Somebody whose program runs in a container.
pub trait Visitor: Send {
    /// An invocation runs there, too, and ends it.
    fn is_beside(&self) -> bool;
    /// Until it is over; tells how it was.
    fn talk(self: Box<Self>, stream: Box<dyn Stream>, stop: Stop) -> Promise<'static, String>;
}

impl Control {
    pub(super) async fn inspect(&self, container: &str) -> Reply {
        match self.environments.inspect(container).await {
            Some(inspected) => reply(StatusCode::OK, shown(container, &inspected)),
            None => no_container(container),
        }
    }

    pub(super) async fn oci(&self, container: &str) -> Reply {
        let Some(inspected) = self.environments.inspect(container).await else { return no_container(container) };
        let text = inspected.sight.and_then(|sight| serde_json::from_slice(&sight.oci).map_err(|error| error.to_string()));
        match text {
            Ok(configuration) => reply(StatusCode::OK, configuration),
            Err(why) => {
                message(StatusCode::SERVICE_UNAVAILABLE, format!("the launcher of {container} does not describe it: {why}"))
            }
        }
    }

    pub(super) async fn exec(&self, uid: u32, container: &str, head: &Parts, body: &mut Incoming) -> Reply {
        if head.headers.get(UPGRADE).is_none_or(|protocol| protocol != PROTOCOL) {
            let text = format!("this needs `Connection: upgrade` and `Upgrade: {PROTOCOL}`: use `kiln container exec`");
            return message(StatusCode::UPGRADE_REQUIRED, text);
        }
        let asked = match read_body(body, MAX_ASKED, ASKING_TIME).await {
            Ok(bytes) => serde_json::from_slice::<Asked>(&bytes).map_err(|error| error.to_string()),
            Err(BodyError::TooLarge) => Err(format!("the command is larger than {MAX_ASKED} bytes")),
            Err(BodyError::TooSlow | BodyError::Broken) => Err("the command did not arrive".to_owned()),
        };
        let asked = match asked {
            Ok(asked) => asked,
            Err(why) => return message(StatusCode::BAD_REQUEST, why),
        };
        let by = format!("uid {uid} (kiln container exec{})", if asked.root { " --root" } else { "" });
        match self.environments.enter(container, &asked, &by).await {
            Ok((function, visitor)) => self.let_in(uid, container, &asked, function, visitor),
            Err(NoVisit::Gone) => no_container(container),
            Err(why @ NoVisit::Occupied) => message(StatusCode::CONFLICT, format!("container {container}: {why}")),
            Err(why @ (NoVisit::NoRoom | NoVisit::Stopping)) => {
                message(StatusCode::SERVICE_UNAVAILABLE, format!("container {container}: {why}"))
            }
            Err(NoVisit::Failed(why)) => refused(container, &why),
        }
    }

    fn let_in(&self, uid: u32, container: &str, asked: &Asked, function: FunctionName, visitor: Box<dyn Visitor>) -> Reply {
        let (root, beside, command) = (asked.root, visitor.is_beside(), logged(&asked.command));
        info!(uid, container, %function, root, beside, command, "audit: a container was entered by hand");
        let (stop, container) = (self.ending.clone(), container.to_owned());
        let talk = Talk::new(move |connection| {
            Box::pin(async move {
                let how = visitor.talk(Box::new(TokioIo::new(connection)), stop).await;
                info!(uid, container, %function, how, "audit: a container that was entered by hand was left");
            })
        });
        let mut response = Response::new(http_body_util::Either::Left(http_body_util::Full::default()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
        headers.insert("x-kiln-beside", HeaderValue::from_static(if beside { "1" } else { "0" }));
        response.extensions_mut().insert(talk);
        response
    }
}

/// With the status that tells a program that is not there from one that cannot be executed, as shells do by 127 and 126.
fn refused(container: &str, why: &crate::server::environment::VisitError) -> Reply {
    use crate::server::environment::VisitError;
    let (status, code) = match why {
        VisitError::NoProgram { .. } => (StatusCode::UNPROCESSABLE_ENTITY, 127),
        VisitError::NotExecuted { .. } => (StatusCode::UNPROCESSABLE_ENTITY, 126),
        VisitError::TooLong | VisitError::NoCommand => (StatusCode::BAD_REQUEST, 2),
        VisitError::Launch(_) | VisitError::Ended | VisitError::Io(_) => (StatusCode::SERVICE_UNAVAILABLE, 1),
    };
    reply(status, json!({ "message": format!("container {container}: {why}"), "exit_code": code }))
}

/// On one line, and not without end.
fn logged(command: &[String]) -> String {
    let text = command.join(" ");
    text.chars().map(|c| if c.is_control() { '·' } else { c }).take(LONGEST_COMMAND).collect()
}

fn shown(container: &str, inspected: &Inspected) -> Value {
    let Inspected { seen, why_cold, sight, timeline } = inspected;
    let mut all = json!({
        "container": container,
        "function": seen.function,
        "version": seen.version,
        "state": seen.state,
        "leaving": seen.leaving,
        "age_s": seen.age_s,
        "idle_s": seen.idle_s,
        "invocations": seen.invocations,
        "why_cold": why_cold,
        "timeline": timeline,
    });
    let more = match sight {
        Ok(sight) => sighted(seen, sight),
        Err(why) => Map::from_iter([("unknown".to_owned(), json!(why))]),
    };
    if let Value::Object(all) = &mut all {
        all.extend(more);
    }
    all
}

fn sighted(seen: &Seen, sight: &Sight) -> Map<String, Value> {
    let Sight { description, function, runtime_pid, tmp, .. } = sight;
    let Description { init, namespaces, ids, cgroups, mounts, usage } = description;
    let ids = ids
        .iter()
        .map(|MappedId { uid_inside, gid_inside, outside }| json!({ "uid": uid_inside, "gid": gid_inside, "host_id": outside }));
    let namespaces: Map<String, Value> = namespaces.iter().map(|one| (one.kind.clone(), json!(one.inode))).collect();
    let Usage { frozen, processes, .. } = usage;
    let fields = json!({
        "runtime": function.runtime,
        "handler": function.handler,
        "code_sha256": function.code,
        "layers_sha256": function.layers,
        "init_pid": init,
        "runtime_pid": runtime_pid,
        "frozen": frozen,
        "ids": ids.collect::<Vec<_>>(),
        "namespaces": namespaces,
        "cgroups": cgroups,
        "mounts": mounts,
        "memory": {
            "used_mib": seen.used_mib,
            "peak_mib": seen.peak_mib,
            "limit_mib": seen.memory_mib,
            "charged_mib": seen.charged_mib,
            "kernel_bytes": usage.memory,
            "kernel_peak_bytes": usage.memory_peak,
            "kernel_limit_bytes": usage.memory_limit,
            "oom_kills": usage.oom_kills,
        },
        "tmp": { "used_bytes": tmp, "size_bytes": function.tmp.bytes() },
        "cpu": {
            "used_us": usage.cpu_us,
            "quota_us": usage.cpu_quota_us,
            "period_us": usage.cpu_period_us,
            "throttled": usage.throttled,
            "throttled_us": usage.throttled_us,
        },
        "tasks": { "processes": processes, "now": usage.tasks, "limit": usage.tasks_limit },
        "open_files": { "most": usage.open_files, "limit": usage.open_files_limit },
    });
    match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}
