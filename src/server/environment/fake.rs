//! A launcher without containers: its "runtime" is a script, a task of the test, which talks over real sockets.
//!
//! Everything the server holds of a container is there: a listener on loopback, a log pipe, a control socket with a
//! kiln-init behind it, pipes in place of cgroup files (what is written there happens: a kill ends the script, a freeze
//! stops it), plain files in place of memory statistics.

use std::future::Future;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;

use super::container::{Container, End, Guest, Keeper, LaunchError, Launcher, Lost, Plan, Promise, Stdio};
use super::cpu::Clock;
use super::freeze::{Cgroup, CpuFiles};
use super::wall::Gauge;
use crate::invocation::ProcessEnd;
use crate::server::readiness::{set_nonblocking, watched};
use crate::server::runtime_api::client::{Response, read_response};
use crate::sys::packet;
use crate::wire::init;
use crate::wire::launcher::{CgroupLayout, ContainerId, Description, StepFailure, TerminalSize};

type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What the function does. Returns a wait status, or [`Word`].
type Script = dyn Fn(Inside) -> Task<Word> + Send + Sync;

/// What kiln-init says in the end.
pub enum Word {
    Exited(i32),
    NoBootstrap,
    ExecFailed(i32),
    /// Nothing: it was killed with the rest (or by the kernel).
    Nothing,
}

#[derive(Clone)]
pub struct FakeLauncher(Arc<Shared>);

struct Shared {
    script: Box<Script>,
    built: AtomicU32,
    /// What was done to containers, in order: `1 freeze`, `1 thaw`, `1 kill`, `1 quota 7235 100000`, `1 clear`.
    trace: Mutex<Vec<String>>,
    lost: Mutex<Vec<watch::Sender<Option<Lost>>>>,
    fail_next: AtomicU32,
    takes: Mutex<Duration>,
}

impl FakeLauncher {
    pub fn new<F>(script: impl Fn(Inside) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Word> + Send + 'static,
    {
        Self(Arc::new(Shared {
            script: Box::new(move |inside| Box::pin(script(inside))),
            built: AtomicU32::new(0),
            trace: Mutex::default(),
            lost: Mutex::default(),
            fail_next: AtomicU32::new(0),
            takes: Mutex::default(),
        }))
    }

    /// Containers built so far.
    pub fn built(&self) -> u32 {
        self.0.built.load(Ordering::SeqCst)
    }

    pub fn trace(&self) -> Vec<String> {
        self.0.trace.lock().unwrap().clone()
    }

    /// Waits until something was done to a container. (What is written to a control file is seen a task switch later.)
    pub async fn saw(&self, what: &str) {
        for _ in 0..1000 {
            if self.trace().iter().any(|done| done == what) {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("never saw {what:?}: {:?}", self.trace());
    }

    /// So many builds fail in step "mount".
    pub fn fail(&self, builds: u32) {
        self.0.fail_next.store(builds, Ordering::SeqCst);
    }

    /// From now on a build takes so long.
    pub fn take(&self, time: Duration) {
        *self.0.takes.lock().unwrap() = time;
    }

    /// The launcher dies, and its containers with it.
    pub fn die(&self) {
        for lost in self.0.lost.lock().unwrap().drain(..) {
            lost.send_replace(Some(Lost::Launcher));
        }
    }

    fn note(&self, container: u32, what: &str) {
        self.0.trace.lock().unwrap().push(format!("{container} {what}"));
    }
}

impl Launcher for FakeLauncher {
    async fn build(&self, _plan: Plan) -> Result<Container, LaunchError> {
        let fail = self.0.fail_next.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if fail.is_ok() {
            return Err(StepFailure { step: "mount".into(), what: "mount overlay".into(), errno: libc::ENODEV }.into());
        }
        let takes = *self.0.takes.lock().unwrap();
        tokio::time::sleep(takes).await;
        let number = self.0.built.fetch_add(1, Ordering::SeqCst) + 1;
        let (kill, killed) = pipe();
        let (freeze, frozen) = pipe();
        let (quota, quotas) = pipe();
        let (burst, bursts) = pipe();
        let (weight, weights) = pipe();
        let (init_life, init) = life();
        let (log, log_read) = {
            let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
            (write, read)
        };
        let (control, far_control) = packet::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let api = listener.local_addr().unwrap();
        let statistics = Statistics::new();
        let gauge = Gauge::open(
            CgroupLayout::Unified,
            std::fs::File::open(statistics.dir.path()).unwrap(),
            // No blocks are in use there.
            std::fs::File::open("/proc").unwrap().into(),
        )?;
        let clock = Clock::open(std::fs::File::open(statistics.dir.path()).unwrap())?;
        let (tell_lost, lost) = watch::channel(None);
        self.0.lost.lock().unwrap().push(tell_lost.clone());
        let cgroup = Arc::new(Cgroup::new(CgroupLayout::Unified, kill, freeze, CpuFiles { quota, burst: Some(burst), weight }));
        let launcher = self.clone();
        let end = End::new(cgroup.clone(), move || launcher.note(number, "clear"));

        for (pipe, name) in [(quotas, "quota"), (bursts, "burst"), (weights, "weight")] {
            let launcher = self.clone();
            tokio::spawn(each_write(pipe, move |value| launcher.note(number, &format!("{name} {value}"))));
        }
        let (freezing, is_frozen) = watch::channel(false);
        let launcher = self.clone();
        tokio::spawn(each_write(frozen, move |values| {
            // Two writes may be read as one.
            for value in values.chars() {
                launcher.note(number, if value == '1' { "freeze" } else { "thaw" });
                freezing.send_replace(value == '1');
            }
        }));
        let inside = Inside { number, api, connection: None, log: log.into(), statistics };
        tokio::spawn(self.clone().init(far_control, inside, init_life, killed, is_frozen, tell_lost));
        Ok(Container {
            id: ContainerId { launcher: 1, number },
            end,
            keeper: Arc::new(FakeKeeper(self.clone(), number)),
            cgroup,
            gauge,
            clock: Some(clock),
            init,
            listener: listener.into(),
            log: log_read,
            control,
            lost,
        })
    }
}

impl FakeLauncher {
    /// kiln-init and the runtime.
    async fn init(
        self,
        control: OwnedFd,
        inside: Inside,
        life: OwnedFd,
        killed: Receiver,
        frozen: watch::Receiver<bool>,
        lost: watch::Sender<Option<Lost>>,
    ) {
        set_nonblocking(&control).unwrap();
        let control = watched(control).unwrap();
        let number = inside.number;
        say(&control, init::RESTING, 0, 0, None);
        let (runtime_life, runtime) = self::life();
        let run = async {
            let start = hear(&control).await;
            assert_eq!(start.first(), Some(&init::START));
            say(&control, init::STARTED, 0, 0, Some(runtime));
            freezable((self.0.script)(inside), frozen).await
        };
        let word = tokio::select! {
            biased;
            () = first_write(killed) => { self.note(number, "kill"); Word::Nothing }
            word = run => word,
        };
        match word {
            Word::Exited(status) => say(&control, init::EXITED, 0, status, None),
            Word::NoBootstrap => say(&control, init::NO_BOOTSTRAP, 0, 0, None),
            Word::ExecFailed(errno) => say(&control, init::EXEC_FAILED, 0, errno, None),
            Word::Nothing => {}
        }
        drop((runtime_life, life, control));
        lost.send_if_modified(|lost| {
            let first = lost.is_none();
            lost.get_or_insert(Lost::Init(ProcessEnd::Killed { signal: 9, core: false }));
            first
        });
    }
}

/// Lets people in: to a `sh` that gives back what it is told, until it is told `exit` (with 7), or nothing more (with 0).
struct FakeKeeper(FakeLauncher, u32);

impl Keeper for FakeKeeper {
    fn describe(&self) -> Promise<'_, Result<(Description, Vec<u8>), LaunchError>> {
        Box::pin(async { Ok((Description { init: self.1, ..Description::default() }, b"{}".to_vec())) })
    }

    fn enter(&self, root: bool, _: Option<TerminalSize>) -> Promise<'_, Result<Guest, LaunchError>> {
        Box::pin(async move {
            self.0.note(self.1, if root { "root enters" } else { "a guest enters" });
            let (control, far_control) = packet::pair()?;
            let (kill, killed) = pipe();
            let (stdin, told) = pipe();
            let (stdout, says) = life();
            let (_, stderr) = life();
            let launcher = self.0.clone();
            let number = self.1;
            tokio::spawn(async move {
                tokio::select! {
                    biased;
                    () = first_write(killed) => launcher.note(number, "the guest is killed"),
                    () = guest(far_control, told, stdout) => {}
                }
            });
            set_nonblocking(&says).and_then(|()| set_nonblocking(&stderr))?;
            Ok(Guest { control, kill, stdio: Stdio::Pipes { stdin, stdout: says, stderr } })
        })
    }
}

async fn guest(control: OwnedFd, mut told: Receiver, says: OwnedFd) {
    set_nonblocking(&control).unwrap();
    let control = watched(control).unwrap();
    say(&control, init::RESTING, 0, 0, None);
    let start = hear(&control).await;
    if !start.windows(7).any(|word| word == b"/bin/sh") {
        return say(&control, init::NO_BOOTSTRAP, 0, 0, None);
    }
    say(&control, init::STARTED, 0, 0, None);
    let mut says = std::fs::File::from(says);
    let mut buffer = [0; 256];
    loop {
        let length = told.read(&mut buffer).await.unwrap();
        let status = match &buffer[..length] {
            b"" => 0,
            b"exit" => 7 << 8,
            text => {
                says.write_all(text).unwrap();
                continue;
            }
        };
        return say(&control, init::EXITED, 0, status, None);
    }
}

/// The script's side of the container.
pub struct Inside {
    pub number: u32,
    api: SocketAddr,
    connection: Option<TcpStream>,
    log: std::fs::File,
    statistics: Statistics,
}

impl Inside {
    /// Asks for an event; returns its request id and payload.
    pub async fn next(&mut self) -> (String, Vec<u8>) {
        let response = self.call("GET", "/2018-06-01/runtime/invocation/next", "", b"").await;
        assert_eq!(response.status, 200, "{}", response.head);
        (response.header("lambda-runtime-aws-request-id").to_owned(), response.body)
    }

    pub async fn respond(&mut self, id: &str, body: &[u8]) -> u16 {
        self.call("POST", &format!("/2018-06-01/runtime/invocation/{id}/response"), "", body).await.status
    }

    pub async fn error(&mut self, id: &str, kind: &str, body: &[u8]) -> u16 {
        let header = format!("Lambda-Runtime-Function-Error-Type: {kind}\r\n");
        self.call("POST", &format!("/2018-06-01/runtime/invocation/{id}/error"), &header, body).await.status
    }

    pub async fn init_error(&mut self, kind: &str, body: &[u8]) -> u16 {
        let header = format!("Lambda-Runtime-Function-Error-Type: {kind}\r\n");
        self.call("POST", "/2018-06-01/runtime/init/error", &header, body).await.status
    }

    /// Asks for an event, and closes the connection when it comes, unread.
    pub async fn next_and_die(&mut self) {
        let connection = self.connection.as_mut().expect("it has called before");
        connection.write_all(b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        // Past tokio's memory of what was readable before; and what it peeks at stays unread.
        connection.peek(&mut [0]).await.unwrap();
        self.connection = None;
    }

    /// One plain HTTP call on the kept-alive connection.
    pub async fn call(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) -> Response {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => TcpStream::connect(self.api).await.unwrap(),
        };
        let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
        connection.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
        let response = read_response(&mut connection).await;
        self.connection = Some(connection);
        response
    }

    pub fn print(&mut self, text: &str) {
        self.log.write_all(text.as_bytes()).unwrap();
    }

    /// From now on the statistics say so.
    pub fn uses(&self, current: u64, file: u64, shmem: u64) {
        self.statistics.write("memory.stat", &format!("file {file:020}\nshmem {shmem:020}\n"));
        self.statistics.write("memory.current", &format!("{current:020}\n"));
    }

    pub fn kernel_kills(&self, count: u64) {
        self.statistics.write("memory.events", &format!("oom_kill {count:020}\n"));
    }
}

struct Statistics {
    dir: tempfile::TempDir,
}

impl Statistics {
    fn new() -> Self {
        let statistics = Self { dir: tempfile::tempdir().unwrap() };
        statistics.write("memory.stat", &format!("file {:020}\nshmem {:020}\n", 0, 0));
        statistics.write("memory.current", &format!("{:020}\n", 30 << 20));
        statistics.write("cpu.stat", &format!("usage_usec {:020}\n", 0));
        statistics.write("memory.events", &format!("oom_kill {:020}\n", 0));
        statistics
    }

    /// Values have one width, so that no reader sees half of a change.
    fn write(&self, name: &str, value: &str) {
        let path: &Path = self.dir.path();
        let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(path.join(name)).unwrap();
        file.write_all_at(value.as_bytes(), 0).unwrap();
    }
}

/// Stands for a process: the second descriptor becomes readable when the first is closed.
fn life() -> (OwnedFd, OwnedFd) {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
    (write, read)
}

/// A control file, and who sees what is written there.
fn pipe() -> (OwnedFd, Receiver) {
    let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
    (write, Receiver::from_owned_fd(read).unwrap())
}

async fn each_write(mut pipe: Receiver, mut act: impl FnMut(String)) {
    let mut buffer = [0; 64];
    while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
        act(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
}

async fn first_write(mut pipe: Receiver) {
    if !matches!(pipe.read(&mut [0; 8]).await, Ok(1..)) {
        std::future::pending().await
    }
}

/// Runs only while not frozen.
async fn freezable<T>(script: impl Future<Output = T>, mut frozen: watch::Receiver<bool>) -> T {
    let mut script = pin!(script);
    loop {
        if *frozen.borrow_and_update() {
            // The sender lives as long as the container's cgroup; without it nobody thaws any more.
            if frozen.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            continue;
        }
        tokio::select! {
            biased;
            Ok(()) = frozen.changed() => {}
            done = &mut script => return done,
        }
    }
}

fn say(control: &AsyncFd<OwnedFd>, kind: u8, detail: u8, value: i32, descriptor: Option<OwnedFd>) {
    let mut message = [kind, detail, 0, 0, 0, 0, 0, 0];
    message[4..].copy_from_slice(&value.to_le_bytes());
    let descriptors: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
    // The server may have let go already.
    let _ = packet::send(control.get_ref().as_fd(), &message, &descriptors);
}

async fn hear(control: &AsyncFd<OwnedFd>) -> Vec<u8> {
    loop {
        let mut ready = control.readable().await.unwrap();
        match ready.try_io(|socket| packet::receive(socket.get_ref().as_fd())) {
            Ok(packet) => return packet.unwrap().map(|packet| packet.bytes).unwrap_or_default(),
            Err(_not_yet) => {}
        }
    }
}
