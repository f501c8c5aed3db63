//! One request over one of the two sockets, and what to tell people when that does not work.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderMap, UPGRADE};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use nix::unistd::{Gid, Group};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::failure::Failure;

/// Longer than the longest invocation (900 s), its init and the wait for capacity.
const TIME: Duration = Duration::from_secs(1000);

pub struct Client {
    run_dir: PathBuf,
}

/// Which socket: the Lambda API, or the operators' own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    Api,
    Control,
}

/// An answer that is still coming. Dropping it ends the exchange.
pub struct Stream {
    headers: HeaderMap,
    pub body: Incoming,
    upgrade: OnUpgrade,
    /// Moves the bytes. Ends with the exchange: dropping a task's handle would not end it, dropping the set does.
    _driver: JoinSet<hyper::Result<()>>,
}

impl Stream {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A connection that is no HTTP any more. Dropping it ends it.
pub struct Conversation {
    headers: HeaderMap,
    pub stream: TokioIo<Upgraded>,
    _driver: JoinSet<hyper::Result<()>>,
}

impl Conversation {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// What kilnd answered with a status of 2xx.
pub struct Reply {
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Client {
    pub fn new(run_dir: &Path) -> Self {
        Self { run_dir: run_dir.to_owned() }
    }

    /// `path` is percent-encoded.
    pub async fn request(
        &self,
        socket: Socket,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Reply, Failure> {
        let mut request =
            Request::builder().method(method).uri(path).header(HOST, "kiln").header(CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request =
            request.body(Full::new(body.into())).map_err(|error| Failure::Usage(format!("this cannot be asked for: {error}")))?;
        let whole = async {
            let (status, stream) = self.exchange(socket, request).await?;
            Ok::<_, Failure>((status, stream.whole().await?))
        };
        let exchange = tokio::time::timeout(TIME, whole).await;
        let (status, reply) =
            exchange.map_err(|_| Failure::Unreachable(format!("kilnd did not answer within {} s", TIME.as_secs())))??;
        if status.is_success() { Ok(reply) } else { Err(refused(status, &reply)) }
    }

    /// What the operators' door has to tell for as long as it takes. `path` is percent-encoded.
    pub async fn stream(&self, path: &str) -> Result<Stream, Failure> {
        let request = Request::get(path).header(HOST, "kiln").body(Full::default());
        let request = request.map_err(|error| Failure::Usage(format!("this cannot be asked for: {error}")))?;
        let (status, stream) = self.exchange(Socket::Control, request).await?;
        if status.is_success() { Ok(stream) } else { Err(refused(status, &stream.whole().await?)) }
    }

    /// Asks the operators' door to turn the connection into something else.
    pub async fn converse(&self, path: &str, protocol: &'static str, body: Bytes) -> Result<Conversation, Failure> {
        let request = Request::post(path).header(HOST, "kiln").header(CONNECTION, "upgrade").header(UPGRADE, protocol);
        let request = request.header(CONTENT_TYPE, "application/json").body(Full::new(body));
        let request = request.map_err(|error| Failure::Usage(format!("this cannot be asked for: {error}")))?;
        let asked = async {
            let (status, stream) = self.exchange(Socket::Control, request).await?;
            if status != StatusCode::SWITCHING_PROTOCOLS {
                return Err(refused(status, &stream.whole().await?));
            }
            let Stream { headers, upgrade, _driver, .. } = stream;
            let stream = TokioIo::new(upgrade.await.map_err(lost)?);
            Ok(Conversation { headers, stream, _driver })
        };
        let exchange = tokio::time::timeout(TIME, asked).await;
        exchange.map_err(|_| Failure::Unreachable(format!("kilnd did not answer within {} s", TIME.as_secs())))?
    }

    async fn exchange(&self, socket: Socket, request: Request<Full<Bytes>>) -> Result<(StatusCode, Stream), Failure> {
        let path = self.run_dir.join(match socket {
            Socket::Api => "kiln.sock",
            Socket::Control => "control.sock",
        });
        let stream = UnixStream::connect(&path).await.map_err(|error| unreachable(&path, socket, &error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        let mut driver = JoinSet::new();
        driver.spawn(connection.with_upgrades());
        let mut response = sender.send_request(request).await.map_err(lost)?;
        let upgrade = hyper::upgrade::on(&mut response);
        let (head, body) = response.into_parts();
        Ok((head.status, Stream { headers: head.headers, body, upgrade, _driver: driver }))
    }
}

impl Stream {
    async fn whole(self) -> Result<Reply, Failure> {
        let body = self.body.collect().await.map_err(lost)?.to_bytes();
        Ok(Reply { headers: self.headers, body })
    }
}

fn lost(error: hyper::Error) -> Failure {
    Failure::Unreachable(format!(
        "kilnd went away before it answered ({error}): it was stopped, or is being restarted. Try again; `kiln doctor` says whether \
         it runs"
    ))
}

impl Reply {
    pub fn json(&self) -> Result<Value, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| Failure::Failed(format!("kilnd's answer is no JSON: {error}")))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A refusal in kilnd's words, with the exit code of its kind.
fn refused(status: StatusCode, reply: &Reply) -> Failure {
    let body = reply.json().unwrap_or_default();
    let message = body.get("message").or_else(|| body.get("Message")).and_then(Value::as_str).unwrap_or("no reason was given");
    let kind = reply.header("x-amzn-errortype").unwrap_or(status.as_str());
    match status {
        StatusCode::NOT_FOUND if kind == "ResourceNotFoundException" => Failure::NotFound(message.to_owned()),
        StatusCode::TOO_MANY_REQUESTS => {
            let reason = body.get("Reason").and_then(Value::as_str).unwrap_or_default();
            let cure = match reason {
                "ReservedFunctionConcurrentInvocationLimitExceeded" => {
                    "the function runs as often at once as its reserve allows (0 switches it off). `kiln function concurrency NAME` \
                     shows and sets it"
                }
                _ => {
                    "all capacity is in use, try again. `kiln pool` shows by whom, `kiln events --kind throttled` what was short"
                }
            };
            Failure::Throttled(format!("{message} {reason}: {cure}"))
        }
        StatusCode::UNPROCESSABLE_ENTITY => {
            let code = body.get("exit_code").and_then(Value::as_u64).and_then(|code| u8::try_from(code).ok());
            Failure::Program(code.unwrap_or(1), message.to_owned())
        }
        StatusCode::FORBIDDEN => Failure::Failed(format!(
            "{message}. Use sudo, or join the group (kiln-admin, unless the configuration says otherwise): \
             `sudo usermod -aG kiln-admin $USER`, and log in again"
        )),
        _ => Failure::Failed(format!("{kind}: {message}")),
    }
}

fn unreachable(path: &Path, socket: Socket, error: &io::Error) -> Failure {
    let path_text = path.display();
    Failure::Unreachable(match error.kind() {
        io::ErrorKind::NotFound => format!(
            "there is no {path_text}: Kiln is not running, or runs elsewhere. Start it (kilnd; scripts/quickstart does), or name \
             its run directory with --run DIR or KILN_RUN_DIR; `sudo kiln doctor` says what it needs"
        ),
        io::ErrorKind::ConnectionRefused => {
            format!(
                "nobody answers at {path_text}: kilnd has ended. Start it again (scripts/quickstart does, for its own instance)"
            )
        }
        io::ErrorKind::PermissionDenied => {
            let group = group_of(path).unwrap_or_else(|| if socket == Socket::Api { "kiln-invoke" } else { "kiln-admin" }.into());
            format!(
                "you may not open {path_text}: its group is {group}. Use sudo, or join it: `sudo usermod -aG {group} $USER`, and log \
                 in again"
            )
        }
        _ => format!("{path_text} cannot be opened: {error}"),
    })
}

fn group_of(path: &Path) -> Option<String> {
    let gid = std::fs::metadata(path).ok()?.gid();
    Group::from_gid(Gid::from_raw(gid)).ok().flatten().map(|group| group.name)
}
