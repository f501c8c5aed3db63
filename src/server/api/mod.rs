//! The callers' door: the Lambda API on `kiln.sock`.
//!
//! In the server process, without privileges. Whoever stands here may be clumsy and may flood; everything they send is
//! bounded ([`super::http`]), parsed here, and goes on as a type that cannot be wrong. Who may do what is decided by the
//! kernel's word about the peer: uid 0 and members of the admin group manage functions, everybody who could connect
//! at all may invoke them.
//!
//! ```text
//! request ─ route ─▶ Operation ─ role ─▶ target ─▶ manage ─▶ intake, registry
//!                                          └──────▶ invoke ─▶ Engine (dispatch)
//! ```

mod error;
mod invoke;
mod manage;
mod route;
mod settings;
mod shown;
mod target;
mod validation;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::Semaphore;

use self::error::{ApiError, Kind};
use self::manage::Changing;
use self::route::Operation;
use self::target::Home;
use super::http::{BodyError, Door, Peer};
use super::intake::Intake;
use crate::config::Config;
use crate::function::FunctionName;
use crate::invocation::{Answer, Invocation, Refusal, RequestId};
use crate::registry::{Promise, Registry};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// For a payload of 6 MB, and for a zip of 50 MB. A caller on the same host needs a fraction of a second.
const INVOKE_BODY_TIME: Duration = Duration::from_secs(60);
const MANAGE_BODY_TIME: Duration = Duration::from_secs(120);
/// Large bodies read at once.
const LARGE_BODIES: usize = 4;

/// What runs functions, seen from the door.
pub trait Engine: Send + Sync + 'static {
    /// Goes on when its caller goes away.
    fn invoke(&self, invocation: Invocation) -> Promise<'_, Result<Answer, Refusal>>;

    /// The registry has another function of this name, or none.
    fn function_changed(&self, name: &FunctionName);
}

/// See the module docs.
pub struct Api {
    home: Home,
    runtimes_dir: PathBuf,
    state_dir: PathBuf,
    /// The gid whose members may manage functions; `None` where there is no such group.
    admin_group: Option<u32>,
    registry: Arc<dyn Registry>,
    intake: Arc<Intake>,
    engine: Arc<dyn Engine>,
    changing: Changing,
    large_bodies: Semaphore,
}

impl Api {
    pub fn new(
        config: &Config,
        admin_group: Option<u32>,
        registry: Arc<dyn Registry>,
        intake: Arc<Intake>,
        engine: Arc<dyn Engine>,
    ) -> Self {
        Self {
            home: Home::new(config),
            runtimes_dir: config.runtimes_dir.clone(),
            state_dir: config.state_dir.clone(),
            admin_group,
            registry,
            intake,
            engine,
            changing: Changing::default(),
            large_bodies: Semaphore::new(LARGE_BODIES),
        }
    }

    async fn operate(
        &self,
        id: RequestId,
        peer: &Peer,
        head: &Parts,
        body: &mut Incoming,
    ) -> Result<Response<Full<Bytes>>, ApiError> {
        let operation = Operation::parse(&head.method, &head.uri)?;
        let invokes = matches!(operation, Operation::Invoke(_));
        if !invokes && !self.may_manage(peer) {
            return Err(Kind::AccessDenied.with(format!(
                "User: uid {} is not authorized to perform: lambda:{}; members of the admin group and root are",
                peer.uid,
                operation.name()
            )));
        }
        match operation {
            Operation::Invoke(named) => self.invoke(id, named, &head.headers, body).await,
            Operation::CreateFunction => self.create_function(body).await,
            Operation::ListFunctions { marker, max_items } => self.list_functions(marker.as_deref(), max_items.as_deref()),
            Operation::GetFunction(named) => self.get_function(&named),
            Operation::GetFunctionConfiguration(named) => self.get_function_configuration(&named),
            Operation::UpdateFunctionCode(named) => self.update_function_code(&named, body).await,
            Operation::UpdateFunctionConfiguration(named) => self.update_function_configuration(&named, body).await,
            Operation::DeleteFunction(named) => self.delete_function(&named).await,
        }
    }

    fn may_manage(&self, peer: &Peer) -> bool {
        peer.uid == 0 || self.admin_group.is_some_and(|admin| peer.groups.contains(&admin))
    }
}

impl Door for Api {
    async fn answer(&self, peer: &Peer, head: &Parts, body: &mut Incoming) -> Response<Full<Bytes>> {
        let id = RequestId::new();
        let mut response = self.operate(id, peer, head, body).await.unwrap_or_else(ApiError::into_response);
        // A UUID is always a header value.
        if let Ok(id) = HeaderValue::try_from(id.to_string()) {
            response.headers_mut().insert("x-amzn-requestid", id);
        }
        response
    }
}

fn json_response(status: StatusCode, body: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(body) {
        Ok(bytes) => {
            let mut response = Response::new(Full::from(bytes));
            *response.status_mut() = status;
            response.headers_mut().insert(CONTENT_TYPE, JSON);
            response
        }
        Err(error) => Kind::Service.with(error.to_string()).into_response(),
    }
}

fn body_error(error: BodyError, kind: Kind, too_large: &str) -> ApiError {
    match error {
        BodyError::TooLarge => kind.with(too_large),
        BodyError::TooSlow => Kind::RequestTimeout.with("the body did not come in time"),
        BodyError::Broken => Kind::InvalidRequestContent.with("the body ended early"),
    }
}
