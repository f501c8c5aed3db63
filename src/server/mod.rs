//! The server: everything from outside is parsed here, and nothing here may do anything.
//!
//! User kiln, no capability, one thread of tokio (for a warm call one CPU is faster than two) and one of SQLite.
//! The supervisor starts it with everything it has: the configuration, the socket to the supervisor, and both doors'
//! listening sockets, which stay when the server is replaced, so that callers queue meanwhile.
//!
//! ```text
//!   api, control        doors: callers · people on duty        http: what both have in common
//!   dispatch            one invocation, from acceptance to answer
//!   pool                who is warm, who is next, who must go
//!   environment         one execution environment
//!   runtime_api, logs   the function's door · its output
//!   events              what happens, told as it happens
//!   tally               what is counted of it, for Prometheus
//!   intake              code on its way into and out of code/
//!   supervisor_link     orders to the supervisor, and its answers
//!   warming             the runtimes' hot files into the page cache
//!   readiness           sockets and processes, as tokio waits for them
//! ```
//!
//! This file puts them together, and ends them:
//!
//! ```text
//! checks itself ─▶ database ─▶ doors ─▶ first launcher ─▶ Ready … Heartbeat … ─▶ Drain ─▶ doors close, invocations
//!                                                                                         finish, environments end;
//!                                                                                         control.sock closes last
//! ```

pub mod api;
pub mod control;
pub mod dispatch;
pub mod environment;
pub mod events;
pub mod http;
pub mod intake;
pub mod logs;
pub mod pool;
pub mod readiness;
pub mod runtime_api;
pub mod supervisor_link;
pub mod tally;
pub mod warming;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use self::api::{Api, Engine, NoRoom};
use self::control::{Control, Environments, Happenings, Inspected, Logs, Loopback, Metrics, Shown, Stream, Visit, Visitor};
use self::dispatch::{Dispatch, NoVisit, Visiting};
use self::environment::{LaunchError, Launcher, Launchers};
use self::events::{Events, Historian, Subject, What, swept};
use self::http::Stop;
use self::intake::room::Room;
use self::intake::{HandError, Hands, Intake};
use self::logs::LogStore;
use self::logs::missing::Count;
use self::pool::{Dismissed, Drained, Snapshot};
use self::supervisor_link::{Event, SupervisorLink};
use self::tally::{Process, Reading, Tally};
use self::warming::Warming;
use crate::code::Digest;
use crate::config::Config;
use crate::config::reload::InForce;
use crate::database::Database;
use crate::function::FunctionName;
use crate::invocation::{Answer, Invocation, Refusal, RequestId, Throttle};
use crate::meter::Meter;
use crate::meter::sqlite::SqliteMeter;
use crate::registry::sqlite::SqliteRegistry;
use crate::registry::{Functions, Promise};
use crate::sys::{descriptor, heap};
use crate::wire::launcher::{StagingId, StepFailure};
use crate::wire::supervisor::{HEARTBEAT_S, ToSupervisor, Unpacked, Upkeep};
use crate::wire::visit::Asked;

/// What the supervisor leaves to the server, by number.
const CONFIG: i32 = 3;
const LIFE: i32 = 4;
const SUPERVISOR: i32 = 5;
const API: i32 = 6;
const CONTROL: i32 = 7;

/// For invocations that were cut to end, and their callers to be told of it; with [`LAST_WORDS`] less than the supervisor's own
/// patience after the drain.
const CUT_WITHIN: Duration = Duration::from_secs(6);
/// So long without any invocation, and memory that none needs is given back.
const CALM: Duration = Duration::from_secs(5);
/// For telling people on duty that it is over.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// `kilnd server`. Returns when the supervisor asked for it and everything is over.
pub fn run() -> anyhow::Result<()> {
    check_powerless().context("the server must be started by the supervisor")?;
    let take = |number, what| descriptor::inherited(number).with_context(|| format!("take over {what} (descriptor {number})"));
    // Read by its number, so it is taken, and closed, afterwards.
    let config = Config::read(Path::new("/proc/self/fd/3"))?;
    drop(take(CONFIG, "the configuration")?);
    let life = take(LIFE, "the life pipe")?;
    ensure!(!is_over(&life)?, "the supervisor is gone already");
    let inherited = Inherited {
        supervisor: take(SUPERVISOR, "the socket to the supervisor")?,
        api: take(API, "kiln.sock")?,
        control: take(CONTROL, "control.sock")?,
    };
    raise_descriptor_limit()?;
    // A burst of payloads costs its memory while it lasts.
    heap::give_back_large_pieces().context("set how memory is given back")?;

    let (database, thread) = Database::open(&config.database())?;
    let (logs, log_thread) = LogStore::open(&config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the event loop")?;
    let ended = runtime.block_on(serve(config, inherited, database, logs));
    // Drops what still runs, and with it the last handles of the database and the logs; then their files are closed in order.
    drop(runtime);
    log_thread.join();
    thread.join();
    ended
}

struct Inherited {
    supervisor: OwnedFd,
    api: OwnedFd,
    control: OwnedFd,
}

async fn serve(config: Config, inherited: Inherited, database: Database, logs: LogStore) -> anyhow::Result<()> {
    let registry = Arc::new(SqliteRegistry::open(database.clone()).await?);
    let historian = Arc::new(Historian::open(database.clone()).await?);
    let meter = Arc::new(SqliteMeter::new(database));
    let launchers = Launchers::new();
    let in_force = InForce::from(&config);
    let functions = registry.clone();
    let tally = Arc::new(Tally::new(&config.instance, move |name| functions.function(name).is_some()));
    let events = Events::new(vec![tally.clone(), historian.clone()]);
    let dispatch = Dispatch::new(
        in_force.clone(),
        registry.clone(),
        meter.clone(),
        launchers.clone(),
        Arc::new(logs.clone()),
        events.clone(),
    );
    let link = SupervisorLink::new(inherited.supervisor).context("use the socket to the supervisor")?;
    let hands = HostHands { link: link.clone(), launchers: launchers.clone() };
    let room = Room::new(config.state_dir.clone(), config.code_budget_mib);
    let intake = Arc::new(Intake::new(Arc::new(hands), registry.clone(), room));
    let admin_group = group(&config.admin_group);
    let (stop, stopping) = watch::channel(false);
    let (cut, mut impatient) = watch::channel(false);
    // People on duty watch a drain to its end.
    let (end, ending) = watch::channel(false);
    let functions = registry.clone();
    let (books, age) = watch::channel(config.books());
    let reload =
        Reload { in_force: in_force.clone(), dispatch: dispatch.clone(), logs: logs.clone(), intake: intake.clone(), books };
    let (tell_upkeep, upkeep) = watch::channel(Upkeep::default());
    let known = Known {
        in_force: in_force.clone(),
        dispatch: dispatch.clone(),
        launchers: launchers.clone(),
        missing: logs.missing(),
        historian: historian.clone(),
        upkeep,
        draining: stopping.clone(),
    };
    let metrics = Arc::new(Metrics::new(tally, move || known.read()));
    let loopback = Arc::new(Loopback::new(metrics.clone()));
    let logs = Logs::new(logs, move |name| functions.function(name).is_some(), ending.clone());
    let happenings = Happenings::new(events.clone(), ending.clone());
    let shown = Shown { logs, happenings, metrics, loopback: loopback.clone() };
    let control = Control::new(in_force.clone(), Arc::new(dispatch.clone()), shown, stopping.clone(), ending.clone());
    let api = Api::new(in_force.clone(), admin_group, registry, intake.clone(), Arc::new(dispatch.clone()));
    let (ready, when_ready) = watch::channel(false);
    let (mut callers, mut on_duty) = (Tasks::default(), Tasks::default());
    callers.spawn("kiln.sock", http::serve("kiln.sock", listener(inherited.api)?, Arc::new(api), stopping));
    on_duty.spawn("control.sock", http::serve("control.sock", listener(inherited.control)?, Arc::new(control), ending));
    let _warming = Warming::start(config.runtimes_dir.clone()).context("start the thread that warms the page cache")?;
    let mut background = Tasks::default();
    background.spawn("heartbeat", heartbeat(link.clone()));
    background.spawn("recycling", dispatch.clone().recycle());
    background.spawn("the end of old books", meter.retain(age));
    background.spawn("history", historian.clone().write());
    background.spawn("memory for others", give_back_memory(dispatch.running()));
    background.spawn("sweep of unused code", async move { intake.sweep(when_ready).await });

    // The supervisor's word is followed to the end: during a drain launchers may still come and go.
    let told = Told { stop: &stop, cut: &cut, ready: &ready, upkeep: &tell_upkeep, loopback: &loopback, reload: &reload };
    let follow = follow(&link, &launchers, &told, &events);
    tokio::pin!(follow);
    let drain = async {
        let mut told = stop.subscribe();
        // `stop` outlives this wait, so it can only end by being set.
        let _ = told.wait_for(|stop| *stop).await;
        let within = in_force.now().drain();
        info!(limit_s = within.as_secs(), "draining");
        events.emit(&Subject::NOBODY, None, What::Draining);
        // The doors first: whoever had come through one before it closed is served like everybody before.
        let (began, finished) = (Instant::now(), async {
            callers.all().await;
            dispatch.drain().await;
        });
        let waited = tokio::select! {
            biased;
            () = finished => None,
            () = sleep(within) => Some(within),
            // `cut` outlives this wait, too.
            _ = impatient.wait_for(|cut| *cut) => Some(began.elapsed()),
        };
        if let Some(waited) = waited {
            dispatch.cut(waited);
            let answered = timeout(CUT_WITHIN, async { tokio::join!(callers.all(), dispatch.drain()) });
            if answered.await.is_err() {
                // The launchers end their containers when they see that the server is gone.
                warn!("not everybody could be told: what is left ends with the server");
            }
        }
        if !historian.flush().await {
            historian.gives_up();
        }
        end.send_replace(true);
        let _ = timeout(LAST_WORDS, on_duty.all()).await;
    };
    tokio::select! {
        gone = &mut follow => gone.and_then(|()| bail!("the supervisor is gone")),
        name = background.first() => bail!("the task {name:?} has ended"),
        () = drain => Ok(()),
    }
}

/// Carries out what the supervisor says. Ends when the supervisor does.
async fn follow(link: &SupervisorLink, launchers: &Launchers, told: &Told<'_>, events: &Events) -> anyhow::Result<()> {
    let mut last = None;
    while let Some(event) = link.event().await.context("read from the supervisor")? {
        match event {
            Event::Launcher { number, socket } => {
                launchers.add(number, socket).with_context(|| format!("use the socket to launcher {number}"))?;
                info!(launcher = number, "launcher is there");
                events.emit(&Subject::NOBODY, None, What::LauncherStarted { launcher: number });
                if !told.ready.send_replace(true) {
                    link.send(&ToSupervisor::Ready, &[]).await.context("write to the supervisor")?;
                    info!("ready");
                }
            }
            Event::LauncherGone { number } => {
                warn!(launcher = number, "launcher is gone, and its containers with it");
                launchers.gone(number);
                events.emit(&Subject::NOBODY, None, What::LauncherLost { launcher: number });
            }
            Event::Reload { config, waiting } => {
                told.reload.to(*config, waiting);
                link.send(&ToSupervisor::Reloaded, &[]).await.context("write to the supervisor")?;
            }
            Event::Metrics { listener } => told.loopback.listen(listener),
            Event::Upkeep(upkeep) => {
                for what in swept(last.replace(upkeep), &upkeep) {
                    events.emit(&Subject::NOBODY, None, what);
                }
                told.upkeep.send_replace(upkeep);
            }
            Event::Drain => {
                told.stop.send_replace(true);
            }
            Event::Cut => {
                told.cut.send_replace(true);
            }
        }
    }
    Ok(())
}

/// Whom the supervisor's word concerns.
struct Told<'a> {
    stop: &'a watch::Sender<bool>,
    cut: &'a watch::Sender<bool>,
    ready: &'a watch::Sender<bool>,
    upkeep: &'a watch::Sender<Upkeep>,
    loopback: &'a Loopback,
    reload: &'a Reload,
}

/// Everybody who knows something that is asked for with the counts.
struct Known {
    in_force: InForce,
    dispatch: Dispatch<SqliteRegistry, SqliteMeter>,
    launchers: Launchers,
    missing: Arc<Count>,
    historian: Arc<Historian>,
    upkeep: watch::Receiver<Upkeep>,
    draining: Stop,
}

impl Known {
    /// Blocks for some milliseconds.
    fn read(&self) -> Reading {
        let (launchers, not_cleared) = self.launchers.count();
        Reading {
            pool: self.dispatch.snapshot(),
            upkeep: *self.upkeep.borrow(),
            launchers,
            launchers_wanted: self.in_force.now().launchers,
            not_cleared,
            missing: self.missing.now(),
            lost_rows: self.dispatch.lost_rows(),
            lost_environments: self.historian.lost(),
            waiting_keys: self.in_force.waiting().len(),
            draining: *self.draining.borrow(),
            process: Process::look(),
        }
    }
}

/// Everybody who goes by a key that can change while the server runs.
struct Reload {
    in_force: InForce,
    dispatch: Dispatch<SqliteRegistry, SqliteMeter>,
    logs: LogStore,
    intake: Arc<Intake>,
    books: watch::Sender<Duration>,
}

impl Reload {
    fn to(&self, config: Config, waiting: Vec<String>) {
        self.logs.reload(&config);
        self.intake.room().bound(config.code_budget_mib);
        self.books.send_if_modified(|age| std::mem::replace(age, config.books()) != config.books());
        self.in_force.set(config, waiting);
        self.dispatch.reload();
        info!("goes by the new configuration");
    }
}

/// From the event loop itself: when that hangs, so does the heart.
async fn heartbeat(link: Arc<SupervisorLink>) {
    let mut beat = tokio::time::interval(Duration::from_secs(HEARTBEAT_S));
    loop {
        beat.tick().await;
        if let Err(error) = link.send(&ToSupervisor::Heartbeat, &[]).await {
            return warn!(%error, "the heartbeat could not be sent");
        }
    }
}

/// What a storm has left of the heap, once it is over: when nothing has begun or ended for a while, and nothing runs.
async fn give_back_memory(mut running: watch::Receiver<usize>) {
    let mut looks = tokio::time::interval(CALM);
    let mut stormy = false;
    loop {
        looks.tick().await;
        // Looked at, not waited for: no request wakes this task.
        match running.has_changed() {
            Ok(true) => {
                running.mark_unchanged();
                stormy = true;
            }
            _ if stormy && *running.borrow() == 0 => {
                heap::give_back_free_pages();
                stormy = false;
            }
            _ => {}
        }
    }
}

/// Tasks with their names. Dropping them ends them.
#[derive(Default)]
struct Tasks {
    set: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.set.spawn(task).id();
        self.names.insert(id, name);
    }

    /// The first that ends; never, when there is none.
    async fn first(&mut self) -> &'static str {
        match self.set.join_next_with_id().await {
            Some(Ok((id, ()))) => self.names.remove(&id).unwrap_or_default(),
            Some(Err(error)) => self.names.remove(&error.id()).unwrap_or_default(),
            None => std::future::pending().await,
        }
    }

    async fn all(&mut self) {
        while self.set.join_next().await.is_some() {}
    }
}

impl<F: Functions, M: Meter, L: Launcher> Engine for Dispatch<F, M, L> {
    fn invoke(&self, invocation: Invocation) -> Promise<'_, Result<Answer, Refusal>> {
        Box::pin(Dispatch::invoke(self, invocation))
    }

    fn function_changed(&self, name: &FunctionName) {
        Dispatch::function_changed(self, name);
    }

    fn no_room_for_payload(&self, function: &FunctionName, request: RequestId, waited: Duration, none: NoRoom) {
        self.refused_before(function, request, Throttle::Payloads, waited, (none.in_use_mib, none.limit_mib));
    }
}

impl<F: Functions, M: Meter, L: Launcher> Environments for Dispatch<F, M, L> {
    fn measured(&self) -> Snapshot {
        Dispatch::measured(self)
    }

    fn drain(&self, function: &FunctionName, by: &str) -> Option<Drained> {
        self.drain_function(function, by)
    }

    fn recycle(&self, container: &str, by: &str) -> Option<Dismissed> {
        self.recycle_container(container, by)
    }

    fn kill(&self, container: &str, by: &str) -> Option<Dismissed> {
        self.kill_container(container, by)
    }

    fn inspect<'a>(&'a self, container: &'a str) -> Promise<'a, Option<Inspected>> {
        Box::pin(async move {
            let (seen, why_cold, sight) = self.look_into(container).await?;
            Some(Inspected { seen, why_cold, sight, timeline: self.timeline(container) })
        })
    }

    fn enter<'a>(&'a self, container: &'a str, asked: &'a Asked, by: &'a str) -> Promise<'a, Result<Visit, NoVisit>> {
        Box::pin(async move {
            let visiting = self.visit(container, asked, by).await?;
            Ok((visiting.function().clone(), Box::new(visiting) as Box<dyn Visitor>))
        })
    }
}

impl Visitor for Visiting {
    fn is_beside(&self) -> bool {
        Visiting::is_beside(self)
    }

    fn talk(self: Box<Self>, stream: Box<dyn Stream>, stop: Stop) -> Promise<'static, String> {
        Box::pin(Visiting::talk(*self, stream, stop))
    }
}

/// Who really may touch `code/`.
struct HostHands {
    link: Arc<SupervisorLink>,
    launchers: Launchers,
}

impl Hands for HostHands {
    fn unpack(&self, staging: StagingId, zip: Arc<OwnedFd>) -> Promise<'_, Result<Unpacked, String>> {
        Box::pin(async move { self.link.unpack(staging, zip.as_fd()).await })
    }

    fn adopt(&self, staging: StagingId, code: Digest, zip: Arc<OwnedFd>) -> Promise<'_, Result<(), HandError>> {
        Box::pin(async move { self.launchers.adopt(staging, code, zip.as_fd()).await.map_err(hand_error) })
    }

    fn forget(&self, code: Digest) -> Promise<'_, Result<(), String>> {
        Box::pin(async move { self.launchers.forget(code).await.map_err(|error| error.to_string()) })
    }
}

fn hand_error(error: LaunchError) -> HandError {
    match error {
        LaunchError::Step(StepFailure { errno: libc::ENOSPC | libc::EDQUOT, .. }) => HandError::NoRoom,
        other => HandError::Other(other.to_string()),
    }
}

/// Everything from outside is parsed in this process, so it must have nothing to lose.
fn check_powerless() -> anyhow::Result<()> {
    ensure!(!nix::unistd::getuid().is_root() && !nix::unistd::geteuid().is_root(), "it runs as root");
    for set in [caps::CapSet::Permitted, caps::CapSet::Bounding] {
        let left = caps::read(None, set).with_context(|| format!("read the capability set {set:?}"))?;
        ensure!(left.is_empty(), "its capability set {set:?} holds {left:?}");
    }
    ensure!(nix::sys::prctl::get_no_new_privs().context("read no_new_privs")?, "it could gain privileges by exec");
    Ok(())
}

/// PDEATHSIG kills the server when the supervisor dies, but not if that was before it was set: one look afterwards.
fn is_over(life: &OwnedFd) -> anyhow::Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut looked = [PollFd::new(life.as_fd(), PollFlags::empty())];
    poll(&mut looked, PollTimeout::ZERO).context("look at the life pipe")?;
    Ok(looked[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)))
}

/// An environment takes a dozen descriptors, a caller one; the soft limit's 1,024 are for programs that use select(2).
fn raise_descriptor_limit() -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("read the limit of descriptors")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise the limit of descriptors")
}

fn listener(socket: OwnedFd) -> anyhow::Result<UnixListener> {
    let listener = std::os::unix::net::UnixListener::from(socket);
    listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener)).context("use a listening socket")
}

/// Whose members manage functions. Without such a group only root does.
fn group(name: &str) -> Option<u32> {
    match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => Some(group.gid.as_raw()),
        Ok(None) => {
            warn!(group = name, "there is no such group: only root may manage functions");
            None
        }
        Err(error) => {
            warn!(group = name, %error, "the group could not be looked up: only root may manage functions");
            None
        }
    }
}
