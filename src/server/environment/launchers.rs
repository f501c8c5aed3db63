//! The real launchers: orders out, reports in, over one packet socket each.
//!
//! Any launcher may build any container; the one with the fewest outstanding orders gets the next. Launchers come
//! and go: what a dead one had on its desk ends with an error at once (a build is tried once more, on another), and its
//! containers are told lost, since they died with it.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle as Runtime;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use super::container::{Container, End, Guest, Keeper, LaunchError, Launcher, Lost, Plan, Promise, Stdio};
use super::cpu::Clock;
use super::freeze::{Cgroup, CpuFiles};
use super::wall::Gauge;
use crate::code::Digest;
use crate::server::readiness::{set_nonblocking, watched};
use crate::sys::packet::{self, Packet};
use crate::wire::launcher::{
    Build, CgroupLayout, ContainerId, Description, Enter, Handle, Order, OrderId, Report, StagingId, TerminalSize,
};
use crate::wire::{decode, encode};

/// How long an order waits for a launcher to come (one is being replaced).
const ARRIVAL: Duration = Duration::from_secs(5);
/// Within so long a launcher builds a container, or it hangs. Longer than it waits for a child (10 s): it knows what held it up.
const BUILD_LIMIT: Duration = Duration::from_secs(15);
/// The same of who enters.
const ENTER_LIMIT: Duration = BUILD_LIMIT;
/// Within so long it tells what a container is, or lets the reader of that wait no longer.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// Of an OCI runtime configuration.
const MAX_CONFIGURATION: u64 = 1 << 20;
/// Checking and owning a tree of 250 MB, or removing it.
const CODE_LIMIT: Duration = Duration::from_secs(60);

/// The launchers that live now. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Launchers(Arc<Fleet>);

struct Fleet {
    runtime: Runtime,
    /// Taken to add, find and remove a launcher. A link's own lock may be taken inside.
    links: Mutex<BTreeMap<u32, Arc<Link>>>,
    arrived: Notify,
    /// Containers whose cgroups could not be removed.
    not_cleared: AtomicU64,
}

/// One launcher.
struct Link {
    number: u32,
    socket: AsyncFd<OwnedFd>,
    /// Taken for single map operations; no other lock is taken inside.
    desk: Mutex<Desk>,
}

#[derive(Default)]
struct Desk {
    last_order: u64,
    outstanding: HashMap<OrderId, oneshot::Sender<Answer>>,
    containers: HashMap<ContainerId, watch::Sender<Option<Lost>>>,
    closed: bool,
}

struct Answer {
    report: Report,
    descriptors: Vec<OwnedFd>,
}

impl Launchers {
    /// None at first. Must be called inside the runtime.
    pub fn new() -> Self {
        let fleet = Fleet {
            runtime: Runtime::current(),
            links: Mutex::default(),
            arrived: Notify::new(),
            not_cleared: AtomicU64::new(0),
        };
        Self(Arc::new(fleet))
    }

    /// A launcher has come: `socket` is the server's end of its pair.
    pub fn add(&self, number: u32, socket: OwnedFd) -> io::Result<()> {
        set_nonblocking(&socket)?;
        let _inside = self.0.runtime.enter();
        let link = Arc::new(Link { number, socket: watched(socket)?, desk: Mutex::default() });
        self.lock().insert(number, link.clone());
        self.0.arrived.notify_waiters();
        let launchers = self.clone();
        // Ends with the socket: when the launcher is gone, or `gone` has shut it down.
        self.0.runtime.spawn(async move {
            let why = link.listen(&launchers).await;
            info!(launcher = number, %why, "a launcher's socket is closed");
            launchers.gone(number);
        });
        Ok(())
    }

    /// This launcher is dead, and its containers with it.
    pub fn gone(&self, number: u32) {
        let link = self.lock().remove(&number);
        if let Some(link) = link {
            link.close();
        }
    }

    /// Lets a launcher check the unpacked tree and make it `code/<code>`; the zip is kept beside it.
    pub async fn adopt(&self, staging: StagingId, code: Digest, zip: BorrowedFd<'_>) -> Result<(), LaunchError> {
        match self.ask_any(|order| Order::AdoptCode { order, staging, code }, &[zip]).await? {
            Report::Adopted { .. } => Ok(()),
            other => Err(unwelcome(other)),
        }
    }

    pub async fn forget(&self, code: Digest) -> Result<(), LaunchError> {
        match self.ask_any(|order| Order::ForgetCode { order, code }, &[]).await? {
            Report::Forgotten { .. } => Ok(()),
            other => Err(unwelcome(other)),
        }
    }

    /// An order about code. Where a launcher dies over it another one is asked: it finds what the dead one had not begun.
    async fn ask_any(&self, order: impl Fn(OrderId) -> Order, descriptors: &[BorrowedFd<'_>]) -> Result<Report, LaunchError> {
        let link = self.pick(None).await?;
        let answer = match link.ask(&order, descriptors, CODE_LIMIT).await {
            Err(LaunchError::Died(number)) => self.pick(Some(number)).await?.ask(&order, descriptors, CODE_LIMIT).await?,
            answer => answer?,
        };
        Ok(answer.report)
    }

    /// The launcher with the fewest outstanding orders, but for the one that has just failed.
    async fn pick(&self, but: Option<u32>) -> Result<Arc<Link>, LaunchError> {
        let until = Instant::now() + ARRIVAL;
        loop {
            let arrival = self.0.arrived.notified();
            let least = {
                let links = self.lock();
                let others = links.values().filter(|link| Some(link.number) != but);
                others.min_by_key(|link| link.lock().outstanding.len()).cloned()
            };
            if let Some(link) = least {
                return Ok(link);
            }
            timeout_at(until, arrival).await.map_err(|_| LaunchError::NoLauncher)?;
        }
    }

    async fn build_on(&self, link: &Arc<Link>, plan: &Plan) -> Result<Container, LaunchError> {
        let order = |order| {
            let Plan { tree, code, layers, memory, tmp } = plan.clone();
            Order::Build(Build { order, tree, code, layers, memory, tmp })
        };
        let Answer { report, descriptors } = link.ask(order, &[], BUILD_LIMIT).await?;
        match report {
            Report::Built { container, cgroups, handles, .. } => self.container(link, container, cgroups, handles, descriptors),
            other => Err(unwelcome(other)),
        }
    }

    fn container(
        &self,
        link: &Arc<Link>,
        id: ContainerId,
        layout: CgroupLayout,
        handles: Vec<Handle>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Container, LaunchError> {
        if handles.len() != descriptors.len() {
            self.clear(link, id);
            return Err(LaunchError::Unexpected("a container with more or fewer descriptors than handles"));
        }
        let mut handles: HashMap<Handle, OwnedFd> = handles.into_iter().zip(descriptors).collect();
        let mut take = |handle, name| handles.remove(&handle).ok_or(LaunchError::Unexpected(name));
        let parts = (|| {
            let kill = take(Handle::CgroupKill, "no cgroup.kill")?;
            let freeze = take(Handle::CgroupFreeze, "no cgroup.freeze")?;
            let cpu = CpuFiles {
                quota: take(Handle::CpuQuota, "no CPU quota")?,
                burst: take(Handle::CpuBurst, "").ok(),
                weight: take(Handle::CpuWeight, "no CPU weight")?,
            };
            let group = take(Handle::CgroupDir, "no cgroup")?;
            // Nobody's life depends on it.
            let clock = Clock::open(&group).ok();
            let memory = match layout {
                CgroupLayout::Unified => group,
                CgroupLayout::Split => take(Handle::MemoryDir, "no memory cgroup")?,
            };
            let gauge = Gauge::open(layout, memory, take(Handle::Tmp, "no /tmp")?)?;
            Ok::<_, LaunchError>((Arc::new(Cgroup::new(layout, kill, freeze, cpu)), gauge, clock))
        })();
        let (cgroup, gauge, clock) = parts.inspect_err(|_| self.clear(link, id))?;
        // From here on, dropping `end` is what clears the container away.
        let (launchers, its_link) = (self.clone(), link.clone());
        let end = End::new(cgroup.clone(), move || launchers.clear(&its_link, id));
        let lost = link.watch(id);
        Ok(Container {
            id,
            end,
            keeper: Arc::new(Keeping { link: link.clone(), container: id }),
            cgroup,
            gauge,
            clock,
            init: take(Handle::InitPidfd, "no pidfd")?,
            listener: take(Handle::Listener, "no listener")?,
            log: take(Handle::Log, "no log pipe")?,
            control: take(Handle::Control, "no control socket")?,
            lost,
        })
    }

    /// Orders the end of a container; nobody waits for it.
    fn clear(&self, link: &Arc<Link>, container: ContainerId) {
        link.lock().containers.remove(&container);
        let (link, launchers) = (link.clone(), self.clone());
        // Ends with the report, or with the launcher, which clears everything of its own away when it ends.
        self.0.runtime.spawn(async move {
            let ended = link.ask(|order| Order::End { order, container }, &[], CODE_LIMIT).await;
            match ended.map(|answer| answer.report) {
                Ok(Report::Ended { .. }) | Err(LaunchError::Died(_)) => {}
                Ok(other) => launchers.not_cleared(container, &unwelcome(other)),
                Err(error) => launchers.not_cleared(container, &error),
            }
        });
    }

    fn not_cleared(&self, container: ContainerId, error: &LaunchError) {
        warn!(%container, %error, "end a container");
        self.0.not_cleared.fetch_add(1, Ordering::Relaxed);
    }

    /// How many launchers there are, and how many containers they could not clear away so far.
    pub fn count(&self) -> (usize, u64) {
        (self.lock().len(), self.0.not_cleared.load(Ordering::Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Link>>> {
        self.0.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Launchers {
    fn default() -> Self {
        Self::new()
    }
}

impl Launcher for Launchers {
    async fn build(&self, plan: Plan) -> Result<Container, LaunchError> {
        let link = self.pick(None).await?;
        match self.build_on(&link, &plan).await {
            Err(LaunchError::Died(number)) => {
                let link = self.pick(Some(number)).await?;
                self.build_on(&link, &plan).await
            }
            done => done,
        }
    }
}

/// One container's launcher.
struct Keeping {
    link: Arc<Link>,
    container: ContainerId,
}

impl Keeper for Keeping {
    fn describe(&self) -> Promise<'_, Result<(Description, Vec<u8>), LaunchError>> {
        Box::pin(async {
            let container = self.container;
            let Answer { report, descriptors } =
                self.link.ask(|order| Order::Describe { order, container }, &[], LOOK_LIMIT).await?;
            let Report::Described { description, .. } = report else { return Err(unwelcome(report)) };
            let text = descriptors.into_iter().next().ok_or(LaunchError::Unexpected("no configuration"))?;
            let (mut text, mut whole) = (File::from(text), Vec::new());
            // A file in memory: this waits for nobody.
            text.rewind()?;
            text.take(MAX_CONFIGURATION).read_to_end(&mut whole)?;
            Ok((*description, whole))
        })
    }

    fn enter(&self, root: bool, terminal: Option<TerminalSize>) -> Promise<'_, Result<Guest, LaunchError>> {
        Box::pin(async move {
            let container = self.container;
            let order = |order| Order::Enter(Enter { order, container, root, terminal });
            let Answer { report, descriptors } = self.link.ask(order, &[], ENTER_LIMIT).await?;
            let Report::Entered { handles, .. } = report else { return Err(unwelcome(report)) };
            if handles.len() != descriptors.len() {
                return Err(LaunchError::Unexpected("a guest with more or fewer descriptors than handles"));
            }
            let mut handles: HashMap<Handle, OwnedFd> = handles.into_iter().zip(descriptors).collect();
            let mut take = |handle, name| handles.remove(&handle).ok_or(LaunchError::Unexpected(name));
            let (control, kill) = (take(Handle::Control, "no control socket")?, take(Handle::CgroupKill, "no cgroup.kill")?);
            let stdio = match terminal {
                Some(_) => Stdio::Terminal(take(Handle::Terminal, "no terminal")?),
                None => Stdio::Pipes {
                    stdin: take(Handle::Stdin, "no stdin")?,
                    stdout: take(Handle::Stdout, "no stdout")?,
                    stderr: take(Handle::Stderr, "no stderr")?,
                },
            };
            Ok(Guest { control, kill, stdio })
        })
    }
}

impl Link {
    /// Sends one order and waits for its report.
    async fn ask(
        &self,
        order: impl FnOnce(OrderId) -> Order,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<Answer, LaunchError> {
        let (tell, told) = oneshot::channel();
        let id = {
            let mut desk = self.lock();
            if desk.closed {
                return Err(LaunchError::Died(self.number));
            }
            desk.last_order += 1;
            let id = OrderId(desk.last_order);
            desk.outstanding.insert(id, tell);
            id
        };
        let asked = async {
            self.send(&encode(&order(id))?, descriptors).await?;
            told.await.map_err(|_| LaunchError::Died(self.number))
        };
        let outcome = timeout(limit, asked).await;
        self.lock().outstanding.remove(&id);
        match outcome {
            // A socket that broke is a launcher that died.
            Ok(Err(LaunchError::Io(_))) if self.lock().closed => Err(LaunchError::Died(self.number)),
            // Reset: it died with orders that it had not read.
            Ok(Err(LaunchError::Io(error)))
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                Err(LaunchError::Died(self.number))
            }
            Ok(outcome) => outcome,
            Err(_) => Err(LaunchError::Silent { launcher: self.number, seconds: limit.as_secs() }),
        }
    }

    async fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            let mut ready = self.socket.writable().await?;
            match ready.try_io(|socket| packet::send(socket.get_ref().as_fd(), bytes, descriptors)) {
                Ok(sent) => return sent,
                Err(_full) => {}
            }
        }
    }

    /// Takes reports in until the socket closes; returns why it did.
    async fn listen(self: &Arc<Self>, launchers: &Launchers) -> String {
        loop {
            let mut ready = match self.socket.readable().await {
                Ok(ready) => ready,
                Err(error) => return error.to_string(),
            };
            let packet = match ready.try_io(|socket| packet::receive(socket.get_ref().as_fd())) {
                Err(_not_yet) => continue,
                Ok(Ok(Some(packet))) => packet,
                Ok(Ok(None)) => return "the launcher has ended".into(),
                Ok(Err(error)) => return error.to_string(),
            };
            if let Err(error) = self.take_in(packet, launchers) {
                return error.to_string();
            }
        }
    }

    fn take_in(self: &Arc<Self>, packet: Packet, launchers: &Launchers) -> Result<(), LaunchError> {
        let report: Report = decode(&packet.bytes)?;
        let order = match &report {
            Report::InitEnded { container, how } => {
                if let Some(lost) = self.lock().containers.get(container) {
                    lost.send_replace(Some(Lost::Init(*how)));
                }
                return Ok(());
            }
            Report::Built { order, .. }
            | Report::Adopted { order }
            | Report::Forgotten { order }
            | Report::Ended { order, .. }
            | Report::Described { order, .. }
            | Report::Entered { order, .. }
            | Report::Refused { order, .. }
            | Report::Failed { order, .. } => *order,
        };
        let built = match &report {
            Report::Built { container, .. } => Some(*container),
            _ => None,
        };
        let who = self.lock().outstanding.remove(&order);
        let unheard = match who {
            Some(who) => who.send(Answer { report, descriptors: packet.descriptors }).is_err(),
            None => true,
        };
        // Nobody waits for this container any more: it must not stay.
        if let (true, Some(container)) = (unheard, built) {
            launchers.clear(self, container);
        }
        Ok(())
    }

    fn watch(&self, container: ContainerId) -> watch::Receiver<Option<Lost>> {
        let mut desk = self.lock();
        let (tell, told) = watch::channel(desk.closed.then_some(Lost::Launcher));
        desk.containers.insert(container, tell);
        told
    }

    /// Ends everything that waits for this launcher.
    fn close(&self) {
        let (outstanding, containers) = {
            let mut desk = self.lock();
            desk.closed = true;
            (std::mem::take(&mut desk.outstanding), std::mem::take(&mut desk.containers))
        };
        drop(outstanding);
        for lost in containers.into_values() {
            lost.send_replace(Some(Lost::Launcher));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unwelcome(report: Report) -> LaunchError {
    match report {
        Report::Refused { why, .. } => LaunchError::Refused(why),
        Report::Failed { failure, .. } => LaunchError::Step(failure),
        _ => LaunchError::Unexpected("another order's kind of report"),
    }
}

#[cfg(test)]
#[path = "launchers_tests.rs"]
mod tests;
