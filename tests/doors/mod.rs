//! Both doors for real, on Unix sockets in a directory of their own, before a house whose engine and hands are fakes.
//!
//! For tests/api.rs and tests/cli.rs: nothing here needs privileges.

#![allow(dead_code, reason = "each of the two test programs uses its own part")]

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::HeaderMap;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use kiln::code::Digest;
use kiln::config::Config;
use kiln::database::Database;
use kiln::function::{Function, FunctionName, Memory, Profile, Reuse, Stamp, Timeout, TmpSize};
use kiln::invocation::{Answer, Cause, FunctionFailure, Invocation, LogType, Outcome, Refusal, Throttle};
use kiln::meter::history::{Begun, Change, History, Over};
use kiln::registry::sqlite::SqliteRegistry;
use kiln::registry::{Functions, Promise};
use kiln::runtime::RuntimeName;
use kiln::server::api::{Api, Engine};
use kiln::server::control::{
    Control, Environments, Happenings, Inspected, Logs, Loopback, Metrics, Shown, Stream, Visit, Visitor,
};
use kiln::server::dispatch::NoVisit;
use kiln::server::environment::{Sight, VisitError};
use kiln::server::events::{Cold, Event, Events, Observer, What};
use kiln::server::http;
use kiln::server::intake::room::Room;
use kiln::server::intake::{HandError, Hands, Intake};
use kiln::server::logs::LogStore;
use kiln::server::pool::{Dismissed, Drained, Retire, Seen, SeenState, Snapshot};
use kiln::server::tally::{Reading, Tally};
use kiln::wire::launcher::{CgroupPath, Description, MappedId, Mounted, Namespace, StagingId, Usage};
use kiln::wire::supervisor::Unpacked;
use kiln::wire::visit::{self, Asked, End};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::watch;

/// The group that the house takes for kiln-admin. No process of the test is in it unless it says so.
pub const ADMIN: u32 = 3_141_592;

pub struct House {
    pub directory: tempfile::TempDir,
    pub fakes: Arc<Fakes>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// What the fakes were asked, and what they shall say.
#[derive(Default)]
pub struct Fakes {
    pub invocations: Mutex<Vec<Invocation>>,
    pub changed: Mutex<Vec<String>>,
    pub orders: Mutex<Vec<&'static str>>,
    /// Said to the next zips instead of "done".
    pub unpacked: Mutex<Option<Unpacked>>,
    /// While true, zips wait.
    pub hold: (Mutex<bool>, Condvar),
    pub snapshot: Mutex<Snapshot>,
    pub killed_by: Mutex<Vec<String>>,
    pub entered: Mutex<Vec<(Asked, String)>>,
    /// The house's own, to write into.
    pub logs: Mutex<Option<LogStore>>,
    /// The house's own, to emit.
    pub events: Mutex<Option<Events>>,
}

impl House {
    pub fn open() -> Self {
        Self::open_with(Some(ADMIN))
    }

    pub fn open_with(admin_group: Option<u32>) -> Self {
        Self::open_in(Profile::default(), admin_group)
    }

    pub fn open_in(profile: Profile, admin_group: Option<u32>) -> Self {
        Self::open_as(admin_group, |config| config.profile = profile)
    }

    pub fn open_with_config(change: impl FnOnce(&mut Config)) -> Self {
        Self::open_as(Some(ADMIN), change)
    }

    fn open_as(admin_group: Option<u32>, change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let runtimes = directory.path().join("runtimes");
        std::fs::create_dir(&runtimes).unwrap();
        for name in ["nodejs8.10", "provided.al2023"] {
            let recipe = format!("name='{name}'\ntree='{}'\nstart=[['/x']]", Digest::of(name.as_bytes()));
            std::fs::write(runtimes.join(format!("{name}.toml")), recipe).unwrap();
        }
        let mut config = Config::default();
        change(&mut config);
        (config.run_dir, config.runtimes_dir) = (directory.path().to_owned(), runtimes);
        config.state_dir = directory.path().join("state");
        config.instance = "test".into();

        let fakes = Arc::new(Fakes::default());
        let (stop, stopping) = watch::channel(false);
        let (opened_tx, opened) = mpsc::channel();
        let theirs = fakes.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let (database, database_thread) = Database::open(&config.state_dir.join("db/kiln.db")).unwrap();
            runtime.block_on(serve(&config, admin_group, theirs, database, stopping, opened_tx));
            drop(runtime);
            database_thread.join();
        });
        opened.recv().unwrap();
        Self { directory, fakes, stop, thread: Some(thread) }
    }

    pub fn run_dir(&self) -> &Path {
        self.directory.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("kiln.sock")
    }

    /// Says "stop" to both doors, and goes on.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until both doors have served their last request.
    pub fn closed(&mut self) {
        self.thread.take().unwrap().join().unwrap();
    }

    /// Holds back every zip until the guard is dropped.
    pub fn hold_zips(&self) -> Hold {
        *self.fakes.hold.0.lock().unwrap() = true;
        Hold(self.fakes.clone())
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// One environment of `hello`, container 3-17, that ended, in the history.
pub fn ended_environment(house: &House) {
    let config = Config { state_dir: house.run_dir().join("state"), ..Config::default() };
    let (database, thread) = Database::open(&config.database()).unwrap();
    let some = |text: &str| Some(text.to_owned());
    let begun = Begun {
        id: 1,
        function: "hello".into(),
        version: "$LATEST".into(),
        container: some("3-17"),
        request: some("8f50ee1c-2f3d-4a4e-9f63-0d9c5c6a7b1e"),
        cold: "busy".into(),
        started: UNIX_EPOCH,
        build_us: Some(1000),
        init_us: Some(2000),
    };
    let over = Over {
        id: 1,
        ended: UNIX_EPOCH + Duration::from_secs(1),
        why: "failed".into(),
        cause: some("Sandbox.Timedout"),
        text: some("Task timed out after 3.00 seconds"),
        by: None,
        needed_by: None,
        invocations: 3,
        peak_mib: 128,
    };
    let lives = Begun { id: 2, container: some("3-18"), ..begun.clone() };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (history, ..) = History::open(database).await.unwrap();
        history.write(Arc::new(vec![Change::Begun(begun), Change::Over(over), Change::Begun(lives)])).await.unwrap();
    });
    thread.join();
}

pub struct Hold(Arc<Fakes>);

impl Drop for Hold {
    fn drop(&mut self) {
        *self.0.hold.0.lock().unwrap() = false;
        self.0.hold.1.notify_all();
    }
}

async fn serve(
    config: &Config,
    admin_group: Option<u32>,
    fakes: Arc<Fakes>,
    database: Database,
    stopping: watch::Receiver<bool>,
    opened: mpsc::Sender<()>,
) {
    let registry = Arc::new(SqliteRegistry::open(database).await.unwrap());
    let room = Room::new(config.state_dir.clone(), config.code_budget_mib);
    let intake = Arc::new(Intake::new(fakes.clone(), registry.clone(), room));
    let (seen, theirs, functions) = (fakes.clone(), fakes.clone(), registry.clone());
    let api = Api::new(config, admin_group, registry, intake, fakes);
    std::fs::create_dir_all(config.logs_dir()).unwrap();
    let (store, log_thread) = LogStore::open(config).unwrap();
    *theirs.logs.lock().unwrap() = Some(store.clone());
    let logs = Logs::new(store, move |name| functions.function(name).is_some(), stopping.clone());
    let events = Events::default();
    *theirs.events.lock().unwrap() = Some(events.clone());
    let happenings = Happenings::new(events, stopping.clone());
    let tally = Tally::new("test", |_| true);
    tally.see(&ended_well("hello"));
    let metrics = Arc::new(Metrics::new(Arc::new(tally), Reading::default));
    let shown = Shown { logs, happenings, loopback: Arc::new(Loopback::new(metrics.clone())), metrics };
    let control = Control::new(config, seen, shown, stopping.clone(), stopping.clone());
    let listen = |path: PathBuf| {
        let listener = UnixListener::bind(&path).unwrap();
        // Whoever may open the socket is the supervisor's affair; here everybody may.
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        listener
    };
    let (api_listener, control_listener) = (listen(config.api_socket()), listen(config.control_socket()));
    opened.send(()).unwrap();
    tokio::join!(
        http::serve("kiln.sock", api_listener, Arc::new(api), stopping.clone()),
        http::serve("control.sock", control_listener, Arc::new(control), stopping)
    );
    // The last handle but the control door's, which has just gone.
    theirs.logs.lock().unwrap().take();
    log_thread.join();
}

/// The one invocation that the house has counted.
fn ended_well(function: &str) -> Event {
    let what = What::Ended {
        duration_us: 2500,
        billed_ms: 100,
        memory_mib: 512,
        max_memory_mib: 30,
        init_us: None,
        cold: true,
        cause: None,
    };
    let (at, function) = (SystemTime::UNIX_EPOCH, FunctionName::parse(function).ok());
    Event { seq: 1, at, function, version: None, container: None, request: None, what }
}

/// The pool as the operators' door shows it.
pub fn shown_pool() -> Value {
    let mut shown = serde_json::to_value(snapshot()).unwrap();
    shown["functions"] = json!([{
        "function": "hello", "invocations": 1, "errors": 0, "throttles": 0, "cold_starts": 1, "duration_ms": 2.5, "billed_gb_s": 0.05,
    }]);
    shown
}

/// Does what the function's name says.
impl Engine for Fakes {
    fn invoke(&self, invocation: Invocation) -> Promise<'_, Result<Answer, Refusal>> {
        self.invocations.lock().unwrap().push(invocation.clone());
        Box::pin(async move {
            let success = |body: Bytes| Ok(Outcome::Success(body));
            let failed = |cause| Ok(Outcome::Failed(FunctionFailure::found(cause, invocation.request)));
            let outcome = match invocation.function.as_str() {
                "slow" => {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    success(Bytes::from_static(b"late"))
                }
                "fails" => {
                    let body = Bytes::from_static(br#"{"errorType":"Error","errorMessage":"no"}"#);
                    Ok(Outcome::Failed(FunctionFailure::reported(Cause::Reported { error_type: "Error".into() }, body)))
                }
                "times-out" => failed(Cause::Timeout(Duration::from_secs(3))),
                "no-memory" => Err(Refusal::Throttled(Throttle::Memory)),
                "no-starts" => Err(Refusal::Throttled(Throttle::Starts)),
                "too-many" => Err(Refusal::Throttled(Throttle::Concurrency)),
                "reserved" => Err(Refusal::Throttled(Throttle::Reserved)),
                "stopping" => Err(Refusal::Stopping),
                "broken" => Err(Refusal::Internal("a launcher said nothing".into())),
                "vanished" => Err(Refusal::UnknownFunction(invocation.function.clone())),
                _ => success(invocation.payload.clone()),
            };
            let tail = invocation.log_type == LogType::Tail;
            let printed = if invocation.function.as_str() == "prints" { "\x1b[2Jone\rtwo\n" } else { "" };
            let log = || format!("START RequestId: {}\n{printed}", invocation.request).into_bytes();
            let log_tail = if tail { log() } else { Vec::new() };
            outcome.map(|outcome| Answer { outcome, log_tail })
        })
    }

    fn function_changed(&self, name: &FunctionName) {
        self.changed.lock().unwrap().push(name.to_string());
    }
}

/// What it is asked to end leaves at the second look.
impl Environments for Fakes {
    fn measured(&self) -> Snapshot {
        let mut held = self.snapshot.lock().unwrap();
        let seen = held.clone();
        held.environments.retain(|environment| environment.leaving.is_none());
        seen
    }

    fn drain(&self, function: &FunctionName, _by: &str) -> Option<Drained> {
        let mut held = self.snapshot.lock().unwrap();
        let before = held.environments.len();
        let own = |environment: &Seen| environment.function == *function;
        if !held.environments.iter().any(own) {
            return None;
        }
        held.environments.retain(|environment| !own(environment) || environment.state != SeenState::Idle);
        let ended = before - held.environments.len();
        let leaving = held.environments.iter_mut().filter(|environment| own(environment));
        let leaving = leaving.map(|environment| environment.leaving = Some(Retire::Drained)).count();
        Some(Drained { function: function.clone(), ended, leaving })
    }

    fn recycle(&self, container: &str, _by: &str) -> Option<Dismissed> {
        let mut held = self.snapshot.lock().unwrap();
        let at = held.environments.iter().position(|environment| environment.container.as_deref() == Some(container))?;
        let Seen { function, state, .. } = held.environments[at].clone();
        let ended = state == SeenState::Idle;
        if ended {
            held.environments.remove(at);
        }
        Some(Dismissed { container: container.into(), function, state, ended })
    }

    fn inspect<'a>(&'a self, container: &'a str) -> Promise<'a, Option<Inspected>> {
        let held = self.snapshot.lock().unwrap();
        let found = held.environments.iter().find(|environment| environment.container.as_deref() == Some(container)).cloned();
        Box::pin(async move { found.map(inspected) })
    }

    fn enter<'a>(&'a self, container: &'a str, asked: &'a Asked, by: &'a str) -> Promise<'a, Result<Visit, NoVisit>> {
        let held = self.snapshot.lock().unwrap();
        let found = held.environments.iter().any(|environment| environment.container.as_deref() == Some(container));
        self.entered.lock().unwrap().push((asked.clone(), by.to_owned()));
        Box::pin(async move {
            let program = asked.command[0].clone();
            match program.as_str() {
                _ if !found => Err(NoVisit::Gone),
                "occupied" => Err(NoVisit::Occupied),
                "no-room" => Err(NoVisit::NoRoom),
                "no-such" => Err(NoVisit::Failed(VisitError::NoProgram { program, searched: Some("/bin".into()) })),
                "directory" => {
                    let error = std::io::Error::from_raw_os_error(13);
                    Err(NoVisit::Failed(VisitError::NotExecuted { program, error }))
                }
                _ => Ok((FunctionName::parse("hello").unwrap(), Box::new(Parrot(asked.clone())) as Box<dyn Visitor>)),
            }
        })
    }

    fn kill(&self, container: &str, by: &str) -> Option<Dismissed> {
        self.killed_by.lock().unwrap().push(by.to_owned());
        let mut held = self.snapshot.lock().unwrap();
        let at = held.environments.iter().position(|environment| environment.container.as_deref() == Some(container))?;
        let Seen { function, state, .. } = held.environments.remove(at);
        Some(Dismissed { container: container.into(), function, state, ended: true })
    }
}

/// `kiln`'s words come back as the program's, and its last argument is its exit code.
struct Parrot(Asked);

impl Visitor for Parrot {
    fn is_beside(&self) -> bool {
        self.0.command[0] == "beside"
    }

    fn talk(self: Box<Self>, mut stream: Box<dyn Stream>, _: watch::Receiver<bool>) -> Promise<'static, String> {
        Box::pin(async move {
            let frame = |kind: u8, bytes: &[u8]| [&visit::header(kind, bytes.len())[..], bytes].concat();
            if self.0.command[0] == "complain" {
                stream.write_all(&frame(visit::STDERR, b"no\n")).await.unwrap();
            }
            loop {
                let mut header = [0; visit::HEADER];
                // Gone before its end.
                let Ok(_) = stream.read_exact(&mut header).await else { return String::new() };
                let (kind, length) = visit::parse(header).unwrap();
                assert_eq!(kind, visit::STDIN);
                let mut bytes = vec![0; length];
                stream.read_exact(&mut bytes).await.unwrap();
                let answer = [frame(visit::STDOUT, &bytes), frame(visit::TAKEN, &[])].concat();
                if bytes.is_empty() {
                    break;
                }
                let Ok(()) = stream.write_all(&answer).await else { return String::new() };
            }
            let end = match self.0.command.last().unwrap().parse() {
                Ok(code) => End::Exited(code),
                Err(_) if self.0.command[0] == "killed" => End::Signalled(9),
                Err(_) => End::Ended("kilnd stops".into()),
            };
            if self.0.command[0] != "vanish" {
                stream.write_all(&frame(visit::END, &serde_json::to_vec(&end).unwrap())).await.unwrap();
            }
            stream.shutdown().await.unwrap();
            "as a parrot does".into()
        })
    }
}

/// A container that has been through something.
fn inspected(seen: Seen) -> Inspected {
    let container: Option<Arc<str>> = Some("3-17".into());
    let event = |seq: u64, what: What| Event {
        seq,
        at: std::time::UNIX_EPOCH + Duration::from_secs(seq),
        function: Some(seen.function.clone()),
        version: None,
        container: container.clone(),
        request: None,
        what,
    };
    let function = Function {
        name: seen.function.clone(),
        runtime: RuntimeName::parse("nodejs8.10").unwrap(),
        handler: "index.handler".into(),
        memory: Memory::from_mib(128).unwrap(),
        timeout: Timeout::from_secs(3).unwrap(),
        tmp: TmpSize::DEFAULT,
        vars: Default::default(),
        code: Digest::of(b"code"),
        layers: vec![],
        reuse: Reuse::Always,
        stamp: Stamp(1),
    };
    let description = Description {
        init: 4711,
        namespaces: vec![Namespace { kind: "mnt".into(), inode: 4_026_531_840 }],
        ids: vec![MappedId { uid_inside: 993, gid_inside: 990, outside: 1_879_113_728 }],
        cgroups: vec![CgroupPath { hierarchy: "unified".into(), path: "/kiln-test-3-17".into() }],
        mounts: vec![Mounted { at: "/tmp".into(), kind: "tmp".into(), what: "512 MiB".into(), options: "nosuid,nodev".into() }],
        usage: Usage { frozen: true, memory: Some(40 << 20), tasks: Some(12), ..Usage::default() },
    };
    let oci = br#"{"ociVersion":"1.2.0","hostname":"sandbox"}"#.to_vec();
    let sight = Sight { description, oci, function: Arc::new(function), runtime_pid: Some(4712), tmp: Some(3 << 20) };
    let timeline = vec![event(1, What::Starting { why: Cold::First }), event(2, What::Frozen)];
    Inspected { seen, why_cold: Cold::First, sight: Ok(sight), timeline }
}

impl Hands for Fakes {
    fn unpack(&self, _: StagingId, _: Arc<OwnedFd>) -> Promise<'_, Result<Unpacked, String>> {
        Box::pin(async {
            self.orders.lock().unwrap().push("unpack");
            // The house's only thread: so it polls instead of waiting on the condition.
            while *self.hold.0.lock().unwrap() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(self.unpacked.lock().unwrap().clone().unwrap_or(Unpacked::Done { bytes: 1 }))
        })
    }

    fn adopt(&self, _: StagingId, _: Digest, _: Arc<OwnedFd>) -> Promise<'_, Result<(), HandError>> {
        self.orders.lock().unwrap().push("adopt");
        Box::pin(async { Ok(()) })
    }

    fn forget(&self, _: Digest) -> Promise<'_, Result<(), String>> {
        self.orders.lock().unwrap().push("forget");
        Box::pin(async { Ok(()) })
    }
}

/// One environment to look at.
pub fn snapshot() -> Snapshot {
    let seen = Seen {
        function: FunctionName::parse("hello").unwrap(),
        version: "$LATEST".into(),
        state: SeenState::Idle,
        age_s: 75.0,
        idle_s: Some(3.0),
        memory_mib: 128,
        charged_mib: 36,
        used_mib: 36,
        peak_mib: 40,
        cpu_ms: Some(1200),
        invocations: 2,
        container: Some("3-17".into()),
        leaving: None,
    };
    Snapshot { budget_mib: 3200, charged_mib: 36, concurrency: 1000, environments: vec![seen], ..Snapshot::default() }
}

/// A response, taken apart.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// One request on a connection of its own.
pub async fn call(house: &House, method: &str, path: &str, body: impl Into<Bytes>) -> Reply {
    send(house, method, path, &[], body).await
}

pub async fn send(house: &House, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
    over(UnixStream::connect(house.socket()).unwrap(), method, path, headers, body).await
}

pub async fn over(stream: UnixStream, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
    stream.set_nonblocking(true).unwrap();
    let stream = tokio::net::UnixStream::from_std(stream).unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut request = Request::builder().method(method.parse::<Method>().unwrap()).uri(path).header("host", "test");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(Full::new(body.into())).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    drop(sender);
    let _ = connection.await.unwrap();
    Reply { status: head.status.as_u16(), headers: head.headers, body }
}

pub const FUNCTIONS: &str = "/2015-03-31/functions";
pub const ROLE: &str = "arn:aws:iam::000000000000:role/r";

/// The body of a good CreateFunction, with some members replaced (by null: removed).
pub fn creation(name: &str, changes: Value) -> String {
    let mut body = json!({
        "FunctionName": name, "Role": ROLE, "Runtime": "nodejs8.10", "Handler": "index.handler",
        // base64 of "zip"
        "Code": { "ZipFile": "emlw" },
    });
    let changes: HashMap<String, Value> = serde_json::from_value(changes).unwrap();
    for (member, value) in changes {
        match value {
            Value::Null => body.as_object_mut().unwrap().remove(&member),
            value => body.as_object_mut().unwrap().insert(member, value),
        };
    }
    body.to_string()
}

#[track_caller]
pub fn assert_status(reply: &Reply, status: u16) {
    assert_eq!(reply.status, status, "{}", String::from_utf8_lossy(&reply.body));
}

pub async fn create(house: &House, name: &str) -> Value {
    let reply = call(house, "POST", FUNCTIONS, creation(name, json!({}))).await;
    assert_status(&reply, 201);
    reply.json()
}
