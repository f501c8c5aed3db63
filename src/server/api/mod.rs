//! The callers' door: the Lambda API on `kiln.sock`.
//!
//! In the server process, without privileges. Whoever stands here may be clumsy and may flood; everything they send is
//! bounded ([`super::http`]), parsed here, and goes on as a type that cannot be wrong. Who may do what is decided by the
//! kernel's word about the peer: uid 0 and members of the admin group manage functions, everybody who could connect
//! at all may invoke them.
//!
//! ```text
//! request ─ route ─▶ Operation ─ role ─▶ target ─▶ manage, layers, concurrency ─▶ intake, registry
//!                                          └──────▶ invoke ─▶ Engine (dispatch)
//! ```

mod account;
mod attached;
mod concurrency;
mod download;
mod error;
mod invoke;
mod layers;
mod manage;
mod payloads;
mod route;
mod settings;
mod shown;
mod tags;
mod target;
mod validation;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::download::Downloads;
use self::error::{ApiError, Kind};
use self::manage::Changing;
pub use self::payloads::NoRoom;
use self::payloads::Payloads;
use self::route::Operation;
use self::target::{Home, Target};
use super::http::{BodyError, Door, Peer, read_body};
use super::intake::Intake;
use crate::config::reload::InForce;
use crate::function::{FunctionName, Profile};
use crate::invocation::{self, Invocation, Refusal, RequestId};
use crate::registry::{Promise, Registry};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// For a payload of 6 MB, and for a zip of 50 MB. A caller on the same host needs a fraction of a second.
const INVOKE_BODY_TIME: Duration = Duration::from_secs(60);
const MANAGE_BODY_TIME: Duration = Duration::from_secs(120);
/// Lambda's limit on a request that brings code: a zip of 50 MB in base64, and its settings.
const MAX_CODE_BODY: usize = 70_167_211;
/// Settings alone: 4 KB of variables, 50 tags, …
const MAX_SETTINGS_BODY: usize = 256 << 10;
/// Requests that bring code, at once: each may take three times its body's 70 MB while it is read and decoded.
const CODE_REQUESTS: usize = 4;

type Answer = Result<Response<Full<Bytes>>, ApiError>;

/// What runs functions, seen from the door.
pub trait Engine: Send + Sync + 'static {
    /// Goes on when its caller goes away.
    fn invoke(&self, invocation: Invocation) -> Promise<'_, Result<invocation::Answer, Refusal>>;

    /// The registry has another function of this name, or none.
    fn function_changed(&self, name: &FunctionName);

    /// The door has refused it.
    fn no_room_for_payload(&self, _function: &FunctionName, _request: RequestId, _waited: Duration, _none: NoRoom) {}
}

/// See the module docs. A clone is another handle to the same door.
#[derive(Clone)]
pub struct Api {
    home: Arc<Home>,
    runtimes_dir: Arc<Path>,
    profile: Profile,
    in_force: InForce,
    state_dir: Arc<Path>,
    /// The gid whose members may manage functions; `None` where there is no such group.
    admin_group: Option<u32>,
    registry: Arc<dyn Registry>,
    intake: Arc<Intake>,
    engine: Arc<dyn Engine>,
    changing: Changing,
    code_requests: Arc<Semaphore>,
    downloads: Downloads,
    payloads: Payloads,
}

impl Api {
    pub fn new(
        in_force: impl Into<InForce>,
        admin_group: Option<u32>,
        registry: Arc<dyn Registry>,
        intake: Arc<Intake>,
        engine: Arc<dyn Engine>,
    ) -> Self {
        let in_force = in_force.into();
        let config = &*in_force.now();
        Self {
            home: Arc::new(Home::new(config)),
            runtimes_dir: config.runtimes_dir.as_path().into(),
            profile: config.profile,
            state_dir: config.state_dir.as_path().into(),
            admin_group,
            registry,
            intake,
            engine,
            changing: Changing::default(),
            code_requests: Arc::new(Semaphore::new(CODE_REQUESTS)),
            downloads: Downloads::default(),
            payloads: Payloads::default(),
            in_force,
        }
    }

    async fn operate(&self, id: RequestId, peer: &Peer, head: &Parts, body: &mut Incoming) -> Answer {
        let operation = Operation::parse(&head.method, &head.uri)?;
        let invokes = matches!(operation, Operation::Invoke(_));
        if !invokes && !self.may_manage(peer) {
            return Err(Kind::AccessDenied.with(format!(
                "User: uid {} is not authorized to perform: lambda:{}; members of the admin group and root are",
                peer.uid,
                operation.name()
            )));
        }
        let api = self.clone();
        match operation {
            Operation::Invoke(named) => self.invoke((id, peer.uid), named, &head.headers, body).await,
            Operation::ListFunctions { page, version } => self.list_functions(&page, version.as_deref()),
            Operation::GetFunction(named) => self.get_function(&named, &head.headers),
            Operation::GetFunctionConfiguration(named) => self.get_function_configuration(&named),
            Operation::CreateFunction => {
                let (body, permit) = self.code_body(body, "CreateFunction").await?;
                to_its_end(holding(permit, api.create_function(body))).await
            }
            Operation::UpdateFunctionCode(named) => {
                let (target, _) = self.find(&named)?;
                let (body, permit) = self.code_body(body, "UpdateFunctionCode").await?;
                to_its_end(holding(permit, api.update_function_code(target, body))).await
            }
            Operation::UpdateFunctionConfiguration(named) => {
                let (target, _) = self.find(&named)?;
                let body = settings_body(body, "UpdateFunctionConfiguration").await?;
                to_its_end(api.update_function_configuration(target, body)).await
            }
            Operation::DeleteFunction(named) => {
                let target = Target::parse(&named.function, named.qualifier.as_deref(), &self.home)?;
                to_its_end(api.delete_function(target)).await
            }
            Operation::GetAccountSettings => self.account_settings(),
            Operation::ListVersionsByFunction(named, page) => self.list_versions(&named, &page),
            Operation::GetPolicy(named) => self.get_policy(&named),
            Operation::GetFunctionCodeSigningConfig(named) => self.get_code_signing_config(&named),
            Operation::ListTags(resource) => self.list_tags(&resource),
            Operation::TagResource(resource) => {
                let body = settings_body(body, "TagResource").await?;
                to_its_end(api.tag_resource(resource, body)).await
            }
            Operation::UntagResource(resource, keys) => to_its_end(api.untag_resource(resource, keys)).await,
            Operation::DownloadCode(file) => self.download_code(&file).await,
            Operation::PutFunctionConcurrency(named) => {
                let body = settings_body(body, "PutFunctionConcurrency").await?;
                to_its_end(async move { api.put_function_concurrency(&named, &body).await }).await
            }
            Operation::GetFunctionConcurrency(named) => self.get_function_concurrency(&named),
            Operation::DeleteFunctionConcurrency(named) => {
                to_its_end(async move { api.delete_function_concurrency(&named).await }).await
            }
            Operation::PublishLayerVersion(layer) => {
                let (name, headers) = (self.layer_name(&layer)?, head.headers.clone());
                let (body, permit) = self.code_body(body, "PublishLayerVersion").await?;
                to_its_end(holding(permit, api.publish_layer_version(name, headers, body))).await
            }
            Operation::GetLayerVersion { layer, version } => self.get_layer_version(&layer, &version, &head.headers),
            Operation::GetLayerVersionByArn(arn) => self.get_layer_version_by_arn(&arn, &head.headers),
            Operation::ListLayers(filter, page) => self.list_layers(&filter, &page),
            Operation::ListLayerVersions(layer, filter, page) => self.list_layer_versions(&layer, &filter, &page),
            Operation::DeleteLayerVersion { layer, version } => to_its_end(api.delete_layer_version(layer, version)).await,
        }
    }

    /// A body with code, and the permit that bounds how many there are: keep it until the code is stored.
    async fn code_body(&self, body: &mut Incoming, operation: &str) -> Result<(Bytes, OwnedSemaphorePermit), ApiError> {
        let permit = self.code_requests.clone().acquire_owned().await;
        let permit = permit.map_err(|_| Kind::Service.with("kilnd is stopping, try again"))?;
        let body = read_body(body, MAX_CODE_BODY, MANAGE_BODY_TIME).await;
        Ok((body.map_err(|error| body_error(error, Kind::RequestEntityTooLarge, MAX_CODE_BODY, operation))?, permit))
    }

    fn may_manage(&self, peer: &Peer) -> bool {
        peer.uid == 0 || self.admin_group.is_some_and(|admin| peer.groups.contains(&admin))
    }
}

impl Door for Api {
    type Answer = Full<Bytes>;

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

async fn settings_body(body: &mut Incoming, operation: &str) -> Result<Bytes, ApiError> {
    let body = read_body(body, MAX_SETTINGS_BODY, MANAGE_BODY_TIME).await;
    body.map_err(|error| body_error(error, Kind::RequestEntityTooLarge, MAX_SETTINGS_BODY, operation))
}

fn body_error(error: BodyError, too_large: Kind, limit: usize, operation: &str) -> ApiError {
    match error {
        BodyError::TooLarge => {
            too_large.with(format!("Request must be smaller than {limit} bytes for the {operation} operation"))
        }
        BodyError::TooSlow => Kind::RequestTimeout.with("the body did not come in time"),
        BodyError::Broken => Kind::InvalidRequestContent.with("the body ended early"),
    }
}

/// A change goes on when its caller goes away: environments, code and row belong together. It ends within the deadlines
/// of those who carry it out; a server that ends before does what a kill does, and a kill may come anywhere.
async fn to_its_end(change: impl Future<Output = Answer> + Send + 'static) -> Answer {
    tokio::spawn(change).await.unwrap_or_else(|_| Err(Kind::Service.with("kilnd is stopping, try again")))
}

async fn holding(permit: OwnedSemaphorePermit, change: impl Future<Output = Answer>) -> Answer {
    let answer = change.await;
    drop(permit);
    answer
}
