//! A throw-away Kiln instance for one test, and what a test needs around it.
//!
//! Each instance has its own directory, name and id range, so tests run side by side. What must be absent after it is
//! looked up from outside ([`snapshot`]).

pub mod client;
pub mod code;
#[path = "../../eyes/mod.rs"]
#[allow(dead_code)] // serves several test programs; each uses its part
mod eyes;
pub mod scope;
pub mod snapshot;

use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

pub use client::{Answer, Api};
#[allow(unused_imports)] // serves several test programs; each uses its part
pub use eyes::{PATIENCE, eventually, patience, slower};

/// One of Kiln's own programs, as cargo has built it beside this one.
pub fn program(name: &str) -> PathBuf {
    // What is no test (scripts/load) is told nothing by cargo; like a test, it lies one directory below them.
    let beside = || std::env::current_exe().ok()?.parent()?.parent().map(Path::to_owned);
    let told = option_env!("CARGO_BIN_EXE_kilnd").and_then(|kilnd| Path::new(kilnd).parent()).map(Path::to_owned);
    told.or_else(beside).expect("a directory of programs").join(name)
}

/// Runtimes as `scripts/build-runtimes` lays them out.
pub fn runtimes_dir() -> PathBuf {
    std::env::var_os("KILN_TEST_RUNTIMES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/runtimes"), PathBuf::from)
}

/// Whether this host can run the engine.
#[track_caller]
pub fn ready() -> bool {
    let built = runtimes_dir().join("provided.al2023.toml").exists();
    eyes::can_run(eyes::lacking().or((!built).then_some("the runtimes: scripts/build-runtimes")))
}

/// Whether what this test needs besides is there.
#[track_caller]
pub fn has(there: bool, what: &str) -> bool {
    eyes::can_run((!there).then_some(what))
}

/// One running kilnd and its directories.
pub struct Instance {
    pub name: String,
    pub dir: tempfile::TempDir,
    pub first_id: u32,
    supervisor: Option<Child>,
    options: Options,
}

/// What differs between the tests' instances.
#[derive(Clone, Default)]
pub struct Options {
    /// Lines of kiln.toml, added to the test's own.
    pub config: String,
    /// Variables of the supervisor's environment.
    pub vars: Vec<(String, String)>,
    /// Runtimes of the test's own.
    pub runtimes_dir: Option<PathBuf>,
    /// As the service's unit has it: nobody else is in kilnd's network.
    pub private_network: bool,
}

/// How many ids each test's instance gets. Real ranges are larger; the smallest allowed is 4096.
pub const ID_COUNT: u32 = 4096;

impl Instance {
    /// Starts an instance with the usual settings and waits until it answers.
    pub fn start() -> Self {
        Self::start_with(Options::default())
    }

    pub fn start_with(options: Options) -> Self {
        let mut instance = Self::prepare(options);
        instance.launch();
        instance.await_ready();
        instance
    }

    /// Everything but the process.
    pub fn prepare(options: Options) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // The process id keeps two test programs apart that run side by side.
        let number = std::process::id() % 4096 * 64 + NEXT.fetch_add(1, Ordering::Relaxed) % 64;
        let instance = Self {
            name: format!("t{number}"),
            // Not below target/: a socket's path has at most 107 bytes, and the state must be reachable for uid kiln.
            dir: tempfile::Builder::new().prefix("kiln-test-").tempdir_in("/var/tmp").expect("make the instance's directory"),
            // 48,000 ranges side by side end below 2^31.
            first_id: 1_900_000_000 + number % 48_000 * ID_COUNT,
            supervisor: None,
            options,
        };
        fs::set_permissions(instance.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let config = format!(
            "instance = '{}'\nrun_dir = '{}'\nstate_dir = '{}'\nruntimes_dir = '{}'\nfirst_id = {}\nid_count = {ID_COUNT}\n{}",
            instance.name,
            instance.run_dir().display(),
            instance.state_dir().display(),
            instance.options.runtimes_dir.clone().unwrap_or_else(runtimes_dir).display(),
            instance.first_id,
            instance.options.config,
        );
        fs::write(instance.config_path(), config).expect("write the instance's configuration");
        instance
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn config_path(&self) -> PathBuf {
        self.dir.path().join("kiln.toml")
    }

    /// kilnd's own log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("kilnd.log")).unwrap_or_default()
    }

    /// Starts the supervisor (again).
    pub fn launch(&mut self) {
        // With the umask that the service's unit has.
        let mut command = match self.options.private_network {
            false => scope::command("sh"),
            true => {
                let mut command = scope::command("unshare");
                command.args(["--net", "sh"]);
                command
            }
        };
        command.args(["-c", r#"umask 077; exec "$0" "$@""#]).arg(program("kilnd"));
        command.stdin(Stdio::null()).stdout(self.log_file());
        self.launch_command(command);
    }

    /// The same where socket units hold the doors ([`scope::door`]).
    pub fn launch_activated(&mut self, invoke: &UnixListener, control: &UnixListener) {
        self.launch_command(scope::activated(program("kilnd"), &[("invoke", invoke), ("control", control)]));
    }

    fn log_file(&self) -> File {
        File::options().create(true).append(true).open(self.dir.path().join("kilnd.log")).unwrap()
    }

    fn launch_command(&mut self, mut command: Command) {
        assert!(self.supervisor.is_none(), "this instance already runs");
        let child = command
            .args(["supervisor", "--config"])
            .arg(self.config_path())
            .envs(self.options.vars.iter().cloned())
            .stderr(self.log_file())
            // A terminal's Ctrl-C is for the test program: it must not drain the instance under it.
            .process_group(0)
            .spawn()
            .expect("start kilnd");
        self.supervisor = Some(child);
    }

    /// Variables for the next [`Instance::launch`].
    pub fn set_vars(&mut self, vars: Vec<(String, String)>) {
        self.options.vars = vars;
    }

    /// Waits until the server answers on both doors. The sockets exist before that: callers queue on them.
    #[track_caller]
    pub fn await_ready(&self) {
        eventually("kilnd answers", || {
            self.api().try_request("GET", "/2015-03-31/functions/none", &[], b"").is_ok_and(|answer| answer.status == 404)
                && self.control().try_request("GET", "/v1/pool", &[], b"").is_ok_and(|answer| answer.status == 200)
        });
    }

    pub fn api(&self) -> Api {
        Api::new(self.run_dir().join("kiln.sock"))
    }

    pub fn control(&self) -> Api {
        Api::new(self.run_dir().join("control.sock"))
    }

    pub fn supervisor_pid(&self) -> u32 {
        self.supervisor.as_ref().expect("the supervisor runs").id()
    }

    /// Creates a function of the probe ("do" in the event chooses what it does).
    #[track_caller]
    pub fn create_probe(&self, name: &str, settings: Value) {
        self.create(name, "provided.al2023", "bootstrap", &code::probe_zip(), settings);
    }

    #[track_caller]
    pub fn create(&self, name: &str, runtime: &str, handler: &str, zip: &[u8], settings: Value) {
        self.api().create(name, runtime, handler, zip, &settings);
    }

    #[track_caller]
    pub fn configuration(&self, name: &str) -> Value {
        self.api().configuration(name)
    }

    #[track_caller]
    pub fn invoke(&self, name: &str, event: &Value) -> Answer {
        self.invoke_bytes(name, event.to_string().as_bytes())
    }

    #[track_caller]
    pub fn invoke_bytes(&self, name: &str, payload: &[u8]) -> Answer {
        self.api().invoke(name, payload)
    }

    #[track_caller]
    pub fn call(&self, name: &str, event: &Value) -> Value {
        self.api().call(name, event)
    }

    #[track_caller]
    pub fn pool(&self) -> Value {
        self.control().pool()
    }

    /// How many environments run an invocation right now.
    #[track_caller]
    pub fn busy(&self) -> usize {
        self.control().environments("busy")
    }

    /// SIGTERM, then wait: the drain.
    pub fn stop(&mut self) -> ExitStatus {
        signal(self.supervisor_pid(), Signal::SIGTERM);
        self.wait()
    }

    /// SIGKILL of the supervisor, then wait.
    pub fn kill_supervisor(&mut self) -> ExitStatus {
        self.supervisor.as_mut().expect("the supervisor runs").kill().expect("kill the supervisor");
        self.wait()
    }

    /// Waits for the supervisor's end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.supervisor.take().expect("the supervisor runs");
        let mut status = None;
        eventually("the supervisor ends", || {
            status = child.try_wait().expect("wait for the supervisor");
            status.is_some()
        });
        status.expect("just seen")
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(mut child) = self.supervisor.take() {
            // A second SIGTERM does not wait for invocations; two at once may arrive as one, so they go on coming. A
            // supervisor that is killed instead leaves its cgroups on the host.
            let end = Instant::now() + patience();
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
                signal(child.id(), Signal::SIGTERM);
                std::thread::sleep(Duration::from_millis(50)); // a bounded wait: Drop must not hang
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        let left = snapshot::cgroups(&format!("kiln-{}-", self.name));
        assert!(left.is_empty() || std::thread::panicking(), "left: {left:?}\n{}", self.log());
        if std::thread::panicking() {
            eprintln!("---- kilnd's log of {} ----\n{}", self.name, self.log());
        }
    }
}

impl Instance {
    /// Processes of this instance in one role: "launcher" and "server" by their command line, "init" by its name, "helper"
    /// as a launcher's child that is still called as it is.
    pub fn processes(&self, role: &str) -> Vec<u32> {
        Self::lookup(self.supervisor_pid())(role)
    }

    /// The same for a thread that has no instance at hand.
    pub fn lookup(supervisor: u32) -> impl Fn(&str) -> Vec<u32> + Send {
        move |role| {
            let all = snapshot::processes();
            let named = |word: &str| -> Vec<u32> {
                let own = all.iter().filter(|p| p.parent == supervisor && p.cmdline.get(1).is_some_and(|w| w == word));
                own.map(|p| p.pid).collect()
            };
            match role {
                "supervisor" => vec![supervisor],
                "init" => {
                    let launchers = named("launcher");
                    all.iter().filter(|p| p.comm == "kiln-init" && launchers.contains(&p.parent)).map(|p| p.pid).collect()
                }
                "helper" => {
                    let launchers = named("launcher");
                    all.iter().filter(|p| p.comm == "kilnd" && launchers.contains(&p.parent)).map(|p| p.pid).collect()
                }
                role => named(role),
            }
        }
    }
}

/// SIGKILL.
pub fn kill(pid: u32) {
    signal(pid, Signal::SIGKILL);
}

/// Nobody minds here whether the process still lives.
pub fn signal(pid: u32, signal: Signal) {
    let _ = nix::sys::signal::kill(Pid::from_raw(pid as i32), signal);
}

/// `kiln`'s exit code, stdout and stderr.
pub fn kiln(instance: &Instance, words: &[&str]) -> (i32, String, String) {
    let output = Command::new(program("kiln")).arg("--run").arg(instance.run_dir()).args(words).output();
    let output = output.expect("run kiln");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}
