//! The machine that these tests run in: its systemd, its journal, and the one Kiln that is installed in it.
//!
//! What `scripts/test-vm` says by variables:
//!
//! ```text
//! KILN_TEST_MACHINE    debian13, debian12, hybrid or v1; without it every test says SKIP
//! KILN_TEST_BINARIES   the directory of kilnd, kiln and kiln-init; else where cargo put them
//! KILN_TEST_RUNTIMES   runtimes, as scripts/build-runtimes lays them out
//! ```

#[path = "../engine/host/client.rs"]
#[allow(dead_code)] // serves several test programs; each uses its part
mod client;
#[path = "../eyes/mod.rs"]
#[allow(dead_code)]
mod eyes;
#[path = "picture.rs"]
pub mod picture;

use std::fs;
use std::io::{self, Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

pub use client::{Answer, Api};
pub use eyes::{eventually, patience, slower};
use picture::Picture;

pub const CONFIG: &str = "/etc/kiln/kiln.toml";

/// Only one test at a time: there is one Kiln in the machine.
static MACHINE: Mutex<()> = Mutex::new(());

/// Which machine this is; `None` says SKIP. For tests that install and uninstall themselves.
pub fn bare() -> Option<Bare> {
    let Some(kind) = std::env::var("KILN_TEST_MACHINE").ok().filter(|kind| !kind.is_empty()) else {
        eprintln!("SKIP: needs a machine of scripts/test-vm");
        return None;
    };
    // A test that failed has said so; the next one has the machine all the same.
    let alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    Some(Bare { kind, began: Instant::now(), alone: Some(alone) })
}

/// Starts the installed Kiln with its sample configuration, installing it first if need be, and with no function in it.
/// `None` says SKIP. A test ends with [`Kiln::leave`].
#[track_caller]
pub fn enter() -> Option<Kiln> {
    enter_with("")
}

/// With more lines in the configuration.
#[track_caller]
pub fn enter_with(more: &str) -> Option<Kiln> {
    let machine = bare()?;
    if !Path::new("/usr/local/lib/kiln/kilnd").exists() {
        machine.install(&["--runtimes", "none", "--no-start"]);
    }
    forget_drop_ins();
    // Those of a test that failed, too.
    let instances = ["kilnd@*.socket", "kilnd-control@*.socket", "kilnd@*.service"];
    run("systemctl", &[&["stop"], &instances[..], &["kilnd.service", "kilnd.socket", "kilnd-control.socket"]].concat());
    let _ = command("systemctl", &["reset-failed", "kilnd.service"]);
    // Of a test that failed.
    let _ = command("umount", &["/var/lib/kiln"]);
    configure(more);
    remove_state(Path::new("/var/lib/kiln"));
    run("systemctl", &["start", "kilnd.socket", "kilnd-control.socket"]);
    let before = Picture::take();
    let cursor = journal_cursor();
    run("systemctl", &["start", "kilnd.service"]);
    let kiln = Kiln { machine, unit: "kilnd.service", run_dir: "/run/kiln".into(), before, cursor };
    kiln.await_ready();
    Some(kiln)
}

/// So many invocations of one function, each from a thread and over a connection of its own.
pub fn invoke_at_once(kiln: &Kiln, count: usize, function: &str, event: &Value) -> Vec<JoinHandle<io::Result<Answer>>> {
    let path = format!("/2015-03-31/functions/{function}/invocations");
    let caller = |_| {
        let (api, path, event) = (kiln.api(), path.clone(), event.to_string());
        thread::spawn(move || api.try_request("POST", &path, &[], event.as_bytes()))
    };
    (0..count).map(caller).collect()
}

/// What all of them have got.
#[track_caller]
pub fn answers(callers: Vec<JoinHandle<io::Result<Answer>>>) -> Vec<Answer> {
    callers.into_iter().map(|caller| caller.join().unwrap().expect("an answer, and no closed connection")).collect()
}

pub struct Bare {
    pub kind: String,
    began: Instant,
    /// `None` for a second instance of the same test.
    alone: Option<MutexGuard<'static, ()>>,
}

/// What each test has taken, beside the other results of the machine.
impl Drop for Bare {
    fn drop(&mut self) {
        let Some(results) = std::env::var_os("RESULTS").filter(|_| self.alone.is_some()) else { return };
        let file = fs::OpenOptions::new().create(true).append(true).open(Path::new(&results).join("service-seconds"));
        let thread = thread::current();
        let line = format!("{:4.0} {}\n", self.began.elapsed().as_secs_f32(), thread.name().unwrap_or_default());
        if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
            eprintln!("write the seconds: {error}");
        }
    }
}

impl Bare {
    /// By `scripts/install`, as a user would.
    #[track_caller]
    pub fn install(&self, options: &[&str]) -> String {
        let script = repository().join("scripts/install");
        let binaries = binaries().display().to_string();
        let mut all = vec!["--binaries", &binaries];
        all.extend(options);
        run(&script.display().to_string(), &all)
    }

    #[track_caller]
    pub fn uninstall(&self, options: &[&str]) -> String {
        run(&repository().join("scripts/uninstall").display().to_string(), options)
    }

    pub fn systemd(&self) -> u32 {
        let text = run("systemctl", &["--version"]);
        text.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("systemd's version")
    }
}

/// The checkout, as far as it is in the machine: scripts/ at least.
pub fn repository() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

pub fn binaries() -> PathBuf {
    let built = || Path::new(env!("CARGO_BIN_EXE_kilnd")).parent().expect("the profile's directory").to_owned();
    std::env::var_os("KILN_TEST_BINARIES").map_or_else(built, PathBuf::from)
}

pub fn runtimes() -> PathBuf {
    std::env::var_os("KILN_TEST_RUNTIMES").map_or_else(|| repository().join("target/runtimes"), PathBuf::from)
}

/// Where the tests change the sample: the machine has little memory, and is slow.
#[track_caller]
pub fn configure(more: &str) {
    let mut lines = format!("runtimes_dir = '{}'\n", runtimes().display());
    for (key, value) in [("memory_budget_mib", "4000"), ("capacity_wait_s", "60")] {
        if !more.contains(key) {
            lines += &format!("{key} = {value}\n");
        }
    }
    fs::write(CONFIG, lines + more).expect("write the configuration");
}

/// Functions, code, logs, books; the runtimes may be below it.
fn remove_state(state_dir: &Path) {
    for part in ["db", "logs", "code", "staging"] {
        let _ = fs::remove_dir_all(state_dir.join(part));
    }
}

// ---- Commands ----------------------------------------------------------------------------------------------------------

pub fn command(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output();
    output.unwrap_or_else(|error| panic!("run {program}: {error}"))
}

/// What it printed; it has to succeed.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = command(program, arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {}: {}\n{out}{err}", arguments.join(" "), output.status);
    out.into_owned()
}

/// One property of a unit.
#[track_caller]
pub fn property(unit: &str, name: &str) -> String {
    run("systemctl", &["show", "-P", name, unit]).trim().to_owned()
}

/// A drop-in for a unit until [`forget_drop_ins`], which every test begins with.
#[track_caller]
pub fn drop_in(unit: &str, text: &str) {
    let directory = format!("/run/systemd/system/{unit}.d");
    fs::create_dir_all(&directory).unwrap();
    fs::write(format!("{directory}/test.conf"), text).unwrap();
    run("systemctl", &["daemon-reload"]);
}

#[track_caller]
pub fn forget_drop_ins() {
    let mut any = false;
    for entry in fs::read_dir("/run/systemd/system").into_iter().flatten().flatten() {
        let ours = entry.path().join("test.conf");
        if ours.exists() {
            any = true;
            fs::remove_file(&ours).unwrap();
            let _ = fs::remove_dir(entry.path());
        }
    }
    if any {
        run("systemctl", &["daemon-reload"]);
    }
}

/// A place in the journal; everything later is after it.
pub fn journal_cursor() -> String {
    let text = run("journalctl", &["--quiet", "-n", "1", "--output=cat", "--show-cursor"]);
    let cursor = text.lines().find_map(|line| line.strip_prefix("-- cursor: "));
    cursor.unwrap_or_else(|| panic!("the journal is empty: {text}")).to_owned()
}

pub fn kill(pid: u32) {
    signal(pid, Signal::SIGKILL);
}

/// Nobody minds here whether the process still lives.
pub fn signal(pid: u32, signal: Signal) {
    let _ = nix::sys::signal::kill(Pid::from_raw(pid as i32), signal);
}

// ---- The service -------------------------------------------------------------------------------------------------------

/// Cannot be left.
pub struct Another(Kiln);

impl std::ops::Deref for Another {
    type Target = Kiln;

    fn deref(&self) -> &Kiln {
        &self.0
    }
}

/// The Kiln of the machine.
pub struct Kiln {
    pub machine: Bare,
    pub unit: &'static str,
    pub run_dir: PathBuf,
    /// The machine without it.
    pub before: Picture,
    /// Where its journal begins.
    pub cursor: String,
}

impl Kiln {
    /// As it runs already, whoever has started it. Its machine is not looked at.
    #[track_caller]
    pub fn running(machine: Bare) -> Self {
        let before = Picture::take();
        let cursor = journal_cursor();
        let kiln = Self { machine, unit: "kilnd.service", run_dir: "/run/kiln".into(), before, cursor };
        kiln.await_ready();
        kiln
    }

    /// Another instance beside this one, to be asked; it is this one that is left.
    #[track_caller]
    pub fn another(&self, unit: &'static str, run_dir: &str) -> Another {
        let another = Another(Self {
            machine: Bare { kind: self.machine.kind.clone(), began: Instant::now(), alone: None },
            unit,
            run_dir: run_dir.into(),
            before: self.before.clone(),
            cursor: self.cursor.clone(),
        });
        another.await_ready();
        another
    }

    /// Stops the service; then the machine is as it was. Every test ends with it.
    #[track_caller]
    pub fn leave(self) {
        run("systemctl", &["stop", self.unit]);
        self.assert_nothing_left();
    }

    /// Of a stopped service.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        assert_eq!(property(self.unit, "ActiveState"), "inactive", "{}", self.journal());
        assert_eq!(property("kilnd.socket", "ActiveState"), "active", "callers can queue");
        let left = leftovers();
        assert!(left.is_empty(), "scripts/leftovers:\n{left}\n{}", self.journal());
        let mut more = Vec::new();
        // systemd looks after its sockets and units a moment after it has said that a unit is stopped.
        let end = Instant::now() + patience();
        loop {
            more.clone_from(&Picture::take().since(&self.before));
            if more.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "left:\n{}\n{}", more.join("\n"), self.journal());
            std::thread::sleep(Duration::from_millis(100)); // the pace of looking
        }
    }

    pub fn api(&self) -> Api {
        Api::new(self.run_dir.join("kiln.sock"))
    }

    pub fn control(&self) -> Api {
        Api::new(self.run_dir.join("control.sock"))
    }

    #[track_caller]
    pub fn await_ready(&self) {
        eventually("kilnd answers", || {
            self.api().try_request("GET", "/2015-03-31/functions/none", &[], b"").is_ok_and(|answer| answer.status == 404)
                && self.control().try_request("GET", "/v1/pool", &[], b"").is_ok_and(|answer| answer.status == 200)
        });
    }

    /// Everything that the unit has said since the test began.
    pub fn journal(&self) -> String {
        let _ = command("journalctl", &["--sync"]);
        run("journalctl", &["--quiet", "--no-pager", "--output=cat", "--after-cursor", &self.cursor, "--unit", self.unit])
    }

    /// Waits until the journal holds this.
    #[track_caller]
    pub fn await_journal(&self, words: &str) {
        let end = Instant::now() + patience();
        loop {
            let journal = self.journal();
            if journal.contains(words) {
                return;
            }
            assert!(Instant::now() < end, "waited in vain for {words:?} in the journal:\n{journal}");
            std::thread::sleep(Duration::from_millis(200)); // the pace of looking
        }
    }

    pub fn main_pid(&self) -> u32 {
        property(self.unit, "MainPID").parse().expect("a process id")
    }

    /// "supervisor", "server", "launcher" by their command line; "init" of containers.
    pub fn processes(&self, role: &str) -> Vec<u32> {
        let main = self.main_pid();
        let all = picture::processes();
        let children = |role: &str| -> Vec<u32> {
            all.iter().filter(|p| p.parent == main && p.cmdline.get(1).is_some_and(|w| w == role)).map(|p| p.pid).collect()
        };
        match role {
            "supervisor" => vec![main],
            "init" => {
                let launchers = children("launcher");
                all.iter().filter(|p| p.comm == "kiln-init" && launchers.contains(&p.parent)).map(|p| p.pid).collect()
            }
            role => children(role),
        }
    }

    /// The probe (`tests/probe`) as a function; "do" in the event chooses what it does.
    #[track_caller]
    pub fn create_probe(&self, name: &str, settings: Value) {
        self.create(name, "provided.al2023", "bootstrap", &probe_zip(), settings);
    }

    #[track_caller]
    pub fn create(&self, name: &str, runtime: &str, handler: &str, zip: &[u8], settings: Value) {
        self.api().create(name, runtime, handler, zip, &settings);
    }

    #[track_caller]
    pub fn configuration(&self, name: &str) -> Value {
        self.api().configuration(name)
    }

    /// As `kiln logs` prints it.
    #[track_caller]
    pub fn function_log(&self, name: &str) -> String {
        run("kiln", &["--run", &self.run_dir.display().to_string(), "logs", name])
    }

    /// Waits until the pool, which looks every second for what is idle too long, has looked so often.
    #[track_caller]
    pub fn await_looks(&self, looks: u32) {
        let idle = || {
            let pool = self.pool();
            let all = pool["environments"].as_array().into_iter().flatten();
            all.filter_map(|environment| environment["idle_s"].as_f64()).fold(0.0, f64::max)
        };
        let from = idle();
        eventually("time goes by", || idle() >= from + f64::from(looks) || self.environments("idle") == 0);
    }

    #[track_caller]
    pub fn invoke(&self, name: &str, event: &Value) -> Answer {
        self.api().invoke(name, event.to_string().as_bytes())
    }

    #[track_caller]
    pub fn call(&self, name: &str, event: &Value) -> Value {
        self.api().call(name, event)
    }

    #[track_caller]
    pub fn pool(&self) -> Value {
        self.control().pool()
    }

    #[track_caller]
    pub fn environments(&self, state: &str) -> usize {
        self.control().environments(state)
    }
}

/// What scripts/leftovers finds.
pub fn leftovers() -> String {
    let output = command(&repository().join("scripts/leftovers").display().to_string(), &[]);
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A zip of these files, with their modes.
pub fn zip(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, mode, bytes) in files {
        zip.start_file(*name, zip::write::SimpleFileOptions::default().unix_permissions(*mode)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

pub fn probe_zip() -> Vec<u8> {
    static ZIP: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let make = || {
        let path = binaries().join("examples/probe");
        let program = fs::read(&path).unwrap_or_else(|error| panic!("read the probe {}: {error}", path.display()));
        zip(&[("bootstrap", 0o755, &program)])
    };
    ZIP.get_or_init(make).clone()
}

/// A file with these bytes; its path.
pub fn save(bytes: &[u8], path: &str) -> String {
    fs::write(path, bytes).unwrap();
    path.to_owned()
}
