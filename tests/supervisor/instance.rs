//! An instance of Kiln with its own directories, name and ids, and with no runtime: these tests run no function.

#[path = "../eyes/mod.rs"]
mod eyes;

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use eyes::patience;
pub use eyes::{cgroup_mounts, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The smallest range that is allowed, so that many fit.
pub const ID_COUNT: u32 = 4096;

#[track_caller]
pub fn ready() -> bool {
    eyes::can_run(eyes::lacking())
}

#[path = "../engine/host/scope.rs"]
#[allow(dead_code)] // serves several test programs; each uses its part
pub mod scope;

pub struct Instance {
    pub name: String,
    pub first_id: u32,
    directory: tempfile::TempDir,
    notify: UnixDatagram,
    child: Option<Child>,
}

impl Instance {
    /// Everything but the process.
    pub fn prepare() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = tempfile::Builder::new().prefix("kiln-sup-").tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let runtimes = directory.path().join("runtimes");
        for part in ["trees", "sets"] {
            fs::create_dir_all(runtimes.join(part)).unwrap();
        }
        fs::write(runtimes.join("owner"), "1879048192\n").unwrap();
        let notify = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        notify.set_read_timeout(Some(patience())).unwrap();
        let instance = Self {
            // The process id keeps two runs of these tests apart.
            name: format!("sup{}x{number}", std::process::id()),
            first_id: 1_883_000_000 + (std::process::id() % 128 * 32 + number) * ID_COUNT,
            directory,
            notify,
            child: None,
        };
        instance.configure("");
        instance
    }

    pub fn start() -> Self {
        let mut instance = Self::prepare();
        instance.launch();
        instance.await_ready();
        instance
    }

    /// Writes the configuration; `more` comes last, so it may not repeat a key.
    pub fn configure(&self, more: &str) {
        let mut lines = vec![format!("runtimes_dir = '{}'", self.path("runtimes").display()), "launchers = 2".to_owned()];
        for (key, value) in [
            ("instance", format!("'{}'", self.name)),
            ("run_dir", format!("'{}'", self.run_dir().display())),
            ("state_dir", format!("'{}'", self.state_dir().display())),
            ("first_id", self.first_id.to_string()),
            ("id_count", ID_COUNT.to_string()),
            ("drain_s", "5".to_owned()),
        ] {
            if !more.contains(&format!("{key} =")) {
                lines.push(format!("{key} = {value}"));
            }
        }
        fs::write(self.path("kiln.toml"), lines.join("\n") + "\n" + more).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.path("state")
    }

    pub fn command(&self) -> Command {
        let mut command = scope::command(env!("CARGO_BIN_EXE_kilnd"));
        command.arg("--config").arg(self.path("kiln.toml")).env("NOTIFY_SOCKET", self.path("notify")).stdin(Stdio::null());
        command
    }

    pub fn launch(&mut self) {
        self.launch_by(self.command());
    }

    /// A command that becomes kilnd.
    pub fn launch_by(&mut self, mut command: Command) {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    pub fn launch_with_log(&mut self, log: fs::File) {
        self.child = Some(self.command().stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// What [`Self::command`] made, with more to it.
    pub fn launch_command(&mut self, mut command: Command) {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        self.child = Some(command.stderr(log).spawn().unwrap());
    }

    /// As systemd does where socket units hold the doors.
    pub fn activated(&self, doors: &[(&str, &UnixListener)]) -> Command {
        let mut command = scope::activated(env!("CARGO_BIN_EXE_kilnd"), doors);
        command.arg("--config").arg(self.path("kiln.toml")).env("NOTIFY_SOCKET", self.path("notify"));
        command
    }

    /// As systemd does.
    #[track_caller]
    pub fn await_ready(&self) {
        self.await_word("READY=1");
    }

    /// The next message that has this word as one of its lines, or as the beginning of one.
    #[track_caller]
    pub fn await_word(&self, word: &str) -> String {
        loop {
            let message = self.notified();
            if message.lines().any(|line| line.starts_with(word)) {
                return message;
            }
        }
    }

    /// All that was said and not yet read.
    pub fn said(&self) -> Vec<String> {
        self.notify.set_nonblocking(true).unwrap();
        let mut text = [0; 4096];
        let next = || self.notify.recv(&mut text).ok().map(|length| String::from_utf8_lossy(&text[..length]).into_owned());
        let said = std::iter::from_fn(next).collect();
        self.notify.set_nonblocking(false).unwrap();
        said
    }

    #[track_caller]
    pub fn notified(&self) -> String {
        let mut text = [0; 4096];
        let length = self.notify.recv(&mut text).unwrap_or_else(|error| panic!("nobody notified: {error}\n{}", self.log()));
        String::from_utf8_lossy(&text[..length]).into_owned()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub fn supervisor(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// The children in one role, with their command lines' other words.
    pub fn children(&self, role: &str) -> Vec<(u32, Vec<String>)> {
        children_of(self.supervisor()).into_iter().filter(|(_, words)| words.get(1).is_some_and(|word| word == role)).collect()
    }

    #[track_caller]
    pub fn server(&self) -> u32 {
        let mut pid = 0;
        eventually("there is one server", || {
            let servers = self.children("server");
            pid = servers.first().map_or(0, |server| server.0);
            servers.len() == 1
        });
        pid
    }

    /// Connects like a caller, and gets an answer, however long the doors' owner takes to come back.
    #[track_caller]
    pub fn ask(&self) -> String {
        self.ask_at("kiln.sock", "/2015-03-31/functions/none")
    }

    #[track_caller]
    pub fn ask_at(&self, socket: &str, path: &str) -> String {
        let mut stream = UnixStream::connect(self.run_dir().join(socket)).unwrap();
        stream.set_read_timeout(Some(patience())).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.supervisor() as i32), signal).unwrap();
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let mut status = None;
        eventually("the supervisor ends", || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Directories of this instance in all cgroup hierarchies.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        eyes::cgroups(&format!("kiln-{}-", self.name))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = Pid::from_raw(child.id() as i32);
            let end = Instant::now() + patience();
            // The second one, and every other, is impatient; two at once may arrive as one.
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
                let _ = kill(pid, Signal::SIGTERM);
                std::thread::sleep(Duration::from_millis(50));
            }
            if let Ok(None) = child.try_wait() {
                let _ = child.kill();
                let _ = child.wait();
                assert!(std::thread::panicking(), "the supervisor had to be killed:\n{}", self.log());
            }
            let left = self.cgroups();
            assert!(left.is_empty() || std::thread::panicking(), "left: {left:?}\n{}", self.log());
        }
        if std::thread::panicking() {
            eprintln!("---- log of {} ----\n{}", self.name, self.log());
        }
    }
}

/// Living children (no zombies) of a process, with their command lines.
pub fn children_of(parent: u32) -> Vec<(u32, Vec<String>)> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let child = |pid: u32| {
        let status = status(pid).ok()?;
        let ours = field(&status, "PPid") == parent.to_string() && !field(&status, "State").starts_with('Z');
        let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words = words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        ours.then_some((pid, words))
    };
    pids.filter_map(child).collect()
}

pub fn status(pid: u32) -> io::Result<String> {
    fs::read_to_string(format!("/proc/{pid}/status"))
}

/// One line of a status, without its name; empty if there is none.
pub fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

pub fn is_alive(pid: u32) -> bool {
    status(pid).is_ok_and(|status| !field(&status, "State").starts_with('Z'))
}

pub fn end(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).unwrap();
}
