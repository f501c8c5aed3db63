//! What the server holds of a container, and who can build one.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;

use super::cpu::Clock;
use super::freeze::Cgroup;
use super::wall::Gauge;
use crate::code::Digest;
use crate::function::{Function, Memory, TmpSize};
use crate::invocation::ProcessEnd;
use crate::runtime::TreeId;
use crate::wire::launcher::{ContainerId, Description, StepFailure, TerminalSize};

/// Builds containers. The real one is [`super::Launchers`]; tests bring a fake.
pub trait Launcher: Clone + Send + Sync + 'static {
    fn build(&self, plan: Plan) -> impl Future<Output = Result<Container, LaunchError>> + Send;
}

/// Who can tell of one container, and let people in: its launcher.
pub trait Keeper: Send + Sync {
    /// As it is at this moment, and its OCI runtime configuration, a JSON text. Wakes nobody.
    fn describe(&self) -> Promise<'_, Result<(Description, Vec<u8>), LaunchError>>;
    /// Puts somebody into it, who rests and waits for "start".
    fn enter(&self, root: bool, terminal: Option<TerminalSize>) -> Promise<'_, Result<Guest, LaunchError>>;
}

pub type Promise<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Somebody in a container, by the descriptors of their kiln-init.
#[derive(Debug)]
pub struct Guest {
    pub control: OwnedFd,
    /// `cgroup.kill` of their own group.
    pub kill: OwnedFd,
    pub stdio: Stdio,
}

/// The other ends of their 0, 1 and 2, not blocking.
#[derive(Debug)]
pub enum Stdio {
    Terminal(OwnedFd),
    Pipes { stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd },
}

/// What a container is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub tree: TreeId,
    pub code: Digest,
    pub layers: Vec<Digest>,
    pub memory: Memory,
    pub tmp: TmpSize,
}

impl Plan {
    pub fn of(function: &Function, tree: TreeId) -> Self {
        let Function { code, layers, memory, tmp, .. } = function;
        Self { tree, code: *code, layers: layers.clone(), memory: *memory, tmp: *tmp }
    }
}

/// An order that was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("the launcher refused the order: {0}")]
    Refused(String),
    #[error("launch failed in {0}")]
    Step(#[from] StepFailure),
    #[error("no launcher is there")]
    NoLauncher,
    #[error("launcher {0} died over the order")]
    Died(u32),
    #[error("launcher {launcher} said nothing for {seconds} s")]
    Silent { launcher: u32, seconds: u64 },
    #[error("talk to a launcher: {0}")]
    Io(#[from] io::Error),
    #[error("a message to a launcher: {0}")]
    Wire(#[from] crate::wire::WireError),
    #[error("a launcher's report does not fit the order: {0}")]
    Unexpected(&'static str),
}

/// One running container, by its descriptors. Its init rests and waits for "start".
pub struct Container {
    pub id: ContainerId,
    /// Ends the container when it is dropped.
    pub end: End,
    pub cgroup: Arc<Cgroup>,
    pub gauge: Gauge,
    /// None where the kernel does not count.
    pub clock: Option<Clock>,
    pub init: OwnedFd,
    pub listener: OwnedFd,
    pub log: OwnedFd,
    pub control: OwnedFd,
    pub keeper: Arc<dyn Keeper>,
    pub lost: watch::Receiver<Option<Lost>>,
}

/// What a launcher's side tells of a container that lives no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Its init has ended.
    Init(ProcessEnd),
    /// Its launcher is dead, and so is it.
    Launcher,
}

/// The end of a container: killed by its cgroup at once, cleared away by its launcher when that has time.
pub struct End {
    cgroup: Arc<Cgroup>,
    clear: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl End {
    pub fn new(cgroup: Arc<Cgroup>, clear: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self { cgroup, clear: Some(Box::new(clear)) }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.cgroup.kill();
        if let Some(clear) = self.clear.take() {
            clear();
        }
    }
}
