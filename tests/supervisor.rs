//! The supervisor keeps its instance alive, to itself, and the host clean. Needs root and the user kiln.
//!
//! No function runs here: what is inside of containers is tests/engine's, and each kill point has its cell in
//! tests/kill_points.

#[path = "supervisor/instance.rs"]
mod instance;
#[path = "supervisor/service_manager.rs"]
mod service_manager;
#[path = "supervisor/taken_over.rs"]
mod taken_over;
#[path = "unpack/zips.rs"]
#[allow(dead_code)] // serves two test programs; each uses its part
mod zips;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::Command;

use instance::{Instance, cgroup_mounts, end, eventually, field, is_alive, ready, status};
use nix::sys::signal::Signal;

#[test]
fn two_instances_run_side_by_side_and_leave_nothing() {
    if !ready() {
        return;
    }
    let mut both = [Instance::start(), Instance::start()];
    for instance in &mut both {
        assert!(instance.ask().starts_with("HTTP/1.1 404"), "it answers");
        instance.signal(Signal::SIGTERM);
        instance.await_word("STOPPING=1");
        assert_eq!(instance.wait().code(), Some(0), "{}", instance.log());
        assert!(!instance.run_dir().exists(), "sockets, locks and all");
        assert_eq!(instance.cgroups(), [""; 0].map(std::path::PathBuf::from));
        let mut state: Vec<_> = fs::read_dir(instance.state_dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        state.sort();
        assert_eq!(state, ["code", "db", "lock", "logs", "staging"]);
        assert!(!fs::read_to_string("/run/lock/kiln-ids.lock").unwrap().contains(&instance.name));
    }
}

/// Reads its configuration, which is the first that a start does, from a pipe: so it is at that point for as long as we like.
struct Starting {
    instance: Instance,
    configuration: fs::File,
    text: Vec<u8>,
}

impl Starting {
    fn launch() -> Self {
        let mut instance = Instance::prepare();
        let path = instance.path("kiln.toml");
        let text = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        instance.launch();
        let mut configuration = None;
        eventually("it has opened the other end", || {
            let nonblocking = nix::fcntl::OFlag::O_NONBLOCK.bits();
            configuration = fs::File::options().write(true).custom_flags(nonblocking).open(&path).ok();
            configuration.is_some()
        });
        let configuration = configuration.unwrap();
        // For whoever reads it again.
        fs::remove_file(&path).unwrap();
        fs::write(&path, &text).unwrap();
        Self { instance, configuration, text }
    }

    fn go_on(mut self) -> Instance {
        self.configuration.write_all(&self.text).unwrap();
        self.instance
    }
}

#[test]
fn a_reload_that_is_asked_for_in_the_first_moment_is_done_and_ends_nobody() {
    if !ready() {
        return;
    }
    let starting = Starting::launch();
    starting.instance.signal(Signal::SIGHUP);
    let mut instance = starting.go_on();
    instance.await_ready();
    assert!(instance.log().contains("asked to read the configuration again"), "{}", instance.log());
    assert!(instance.ask().starts_with("HTTP/1.1 404"), "it answers");
    // Launchers block some of their own.
    let blocked = field(&status(instance.server()).unwrap(), "SigBlk");
    assert_eq!(blocked, "0000000000000000", "it could not be told to end");
    instance.signal(Signal::SIGTERM);
    assert_eq!(instance.wait().code(), Some(0), "{}", instance.log());
}

#[test]
fn a_stop_that_is_asked_for_in_the_first_moment_leaves_nothing() {
    if !ready() {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let starting = Starting::launch();
        starting.instance.signal(signal);
        let mut instance = starting.go_on();
        assert_eq!(instance.wait().code(), Some(0), "{}", instance.log());
        assert!(!instance.run_dir().exists(), "sockets, locks and all");
        assert_eq!(instance.cgroups(), [""; 0].map(std::path::PathBuf::from));
        assert!(!instance.log().contains("server started"), "{}", instance.log());
    }
}

#[test]
fn a_log_that_nothing_can_be_written_to_ends_nobody() {
    if !ready() {
        return;
    }
    let mut instance = Instance::prepare();
    instance.launch_with_log(fs::File::options().write(true).open("/dev/full").unwrap());
    instance.await_ready();
    assert!(instance.ask().starts_with("HTTP/1.1 404"), "it answers");
    instance.signal(Signal::SIGTERM);
    instance.await_word("STOPPING=1");
    assert_eq!(instance.wait().code(), Some(0));
}

#[test]
fn directories_and_sockets_have_their_owners() {
    if !ready() {
        return;
    }
    let instance = Instance::start();
    let group = |name: &str| nix::unistd::Group::from_name(name).unwrap().unwrap().gid.as_raw();
    let user = nix::unistd::User::from_name("kiln").unwrap().unwrap().uid.as_raw();
    for (path, uid, gid, mode) in [
        ("run", 0, 0, 0o755),
        ("run/kiln.sock", 0, group("kiln-invoke"), 0o660),
        ("run/control.sock", 0, group("kiln-admin"), 0o660),
        ("run/trees", 0, 0, 0o700),
        ("state", 0, group("kiln"), 0o750),
        ("state/db", user, group("kiln"), 0o700),
        ("state/code", 0, group("kiln"), 0o750),
        ("state/staging", 0, 0, 0o700),
    ] {
        let about = fs::symlink_metadata(instance.path(path)).unwrap();
        assert_eq!((about.uid(), about.gid(), about.mode() & 0o7777), (uid, gid, mode), "{path}");
    }
}

/// Starts a second instance that must be refused. Returns what it says.
#[track_caller]
fn refused(second: &Instance, code: i32) -> String {
    let output = second.command().output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_another_instance_holds_is_refused_with_its_pid() {
    if !ready() {
        return;
    }
    let first = Instance::start();
    let second = Instance::prepare();
    let overlapping = first.first_id + instance::ID_COUNT - 1;
    for taken in [
        format!("first_id = {overlapping}"),
        format!("instance = '{}'", first.name),
        format!("run_dir = '{}'", first.run_dir().display()),
        format!("state_dir = '{}'", first.state_dir().display()),
    ] {
        second.configure(&taken);
        let said = refused(&second, 1);
        assert!(said.contains(&format!("in use by the process {}", first.supervisor())), "{taken}: {said}");
    }
    assert!(first.ask().starts_with("HTTP/1.1 404"), "the first one is none the worse");
}

#[test]
fn a_missing_user_is_refused_with_its_cure() {
    if !ready() {
        return;
    }
    let instance = Instance::prepare();
    for missing in ["user = 'kiln-nobody'", "invoke_group = 'kiln-nobody'", "admin_group = 'kiln-nobody'"] {
        instance.configure(missing);
        // EX_CONFIG: systemd does not try again.
        let said = refused(&instance, 78);
        assert!(said.contains("kiln-nobody") && said.contains("scripts/users"), "{said}");
        assert!(!instance.run_dir().exists(), "nothing is made before the check");
    }
}

#[test]
fn the_server_is_nobody_and_launchers_are_alone() {
    if !ready() {
        return;
    }
    let instance = Instance::start();
    let server = status(instance.server()).unwrap();
    let user = nix::unistd::User::from_name("kiln").unwrap().unwrap();
    assert_eq!(field(&server, "Uid").split('\t').collect::<Vec<_>>(), vec![user.uid.to_string(); 4]);
    assert_eq!(field(&server, "Groups"), user.gid.to_string(), "no group but its own");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&server, set), "0000000000000000", "{set}");
    }
    assert_eq!(field(&server, "NoNewPrivs"), "1");
    for (pid, _) in instance.children("launcher") {
        assert_eq!(field(&status(pid).unwrap(), "Threads"), "1");
    }
    assert_eq!(field(&status(instance.supervisor()).unwrap(), "Threads"), "1");
}

#[test]
fn a_killed_launcher_is_replaced_under_a_new_number() {
    if !ready() {
        return;
    }
    let instance = Instance::start();
    let server = instance.server();
    let (killed, words) = instance.children("launcher").remove(0);
    let number = |words: &[String]| words[3].clone();
    end(killed, Signal::SIGKILL);
    eventually("there are two launchers, and the dead one's number is gone", || {
        let launchers = instance.children("launcher");
        launchers.len() == 2 && launchers.iter().all(|(pid, theirs)| *pid != killed && number(theirs) != number(&words))
    });
    let slots = instance.children("launcher").into_iter().map(|(_, words)| words[5].clone());
    assert_eq!(slots.collect::<std::collections::BTreeSet<_>>(), ["0", "1"].map(String::from).into());
    eventually("nothing of the dead one's is left", || {
        let prefix = format!("kiln-{}-{}-", instance.name, number(&words));
        !instance.cgroups().iter().any(|group| group.display().to_string().contains(&prefix))
    });
    assert_eq!(instance.server(), server, "the server lives on");
}

#[test]
fn callers_queue_while_a_killed_server_is_replaced() {
    if !ready() {
        return;
    }
    let instance = Instance::start();
    let (server, launchers) = (instance.server(), instance.children("launcher"));
    // Stopped first, so that the caller is surely in the queue of the one that dies.
    end(server, Signal::SIGSTOP);
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| instance.ask());
        end(server, Signal::SIGKILL);
        assert!(answer.join().unwrap().starts_with("HTTP/1.1 404"));
    });
    assert_ne!(instance.server(), server);
    eventually("the launchers are fresh, too", || {
        let fresh = instance.children("launcher");
        fresh.len() == 2 && fresh.iter().all(|launcher| !launchers.contains(launcher))
    });
}

#[test]
fn a_server_that_is_silent_is_replaced() {
    if !ready() {
        return;
    }
    let instance = Instance::start();
    let server = instance.server();
    end(server, Signal::SIGSTOP);
    eventually("it is gone", || !is_alive(server));
    assert!(instance.ask().starts_with("HTTP/1.1 404"));
}

#[test]
fn everybody_dies_with_the_supervisor_and_the_next_start_sweeps() {
    if !ready() {
        return;
    }
    let mut instance = Instance::start();
    let all: Vec<u32> = ["server", "launcher"].iter().flat_map(|role| instance.children(role)).map(|(pid, _)| pid).collect();
    assert_eq!(all.len(), 3);
    instance.signal(Signal::SIGKILL);
    instance.wait();
    eventually("all are gone", || !all.iter().any(|pid| is_alive(*pid)));

    let private = PrivateMount::where_needed(&instance);
    let leftovers = plant(&instance, private.as_ref());
    drop(private);
    let foreign = cgroup_mounts()[0].join(format!("kiln-{}x-1-1", instance.name));
    fs::create_dir(&foreign).unwrap();
    let printed = leftovers_of(&instance);
    for kind in ["socket", "staging", "code", "cgroup", "process"] {
        assert!(printed.iter().any(|line| line.starts_with(kind)), "scripts/leftovers names no {kind}: {printed:#?}");
    }

    instance.launch();
    instance.await_ready();
    let private = PrivateMount::where_needed(&instance);
    for path in &leftovers.paths {
        assert!(!path.exists(), "{} is left", path.display());
    }
    drop(private);
    assert!(leftovers.kept.iter().all(|path| path.exists()), "whole code stays");
    let mut process = leftovers.process;
    eventually("the process in the cgroup is dead", || process.try_wait().unwrap().is_some());
    assert!(foreign.exists(), "another instance's group is not ours to remove");
    fs::remove_dir(&foreign).unwrap();

    assert_eq!(leftovers_of(&instance), [""; 0], "a running instance has no leftovers");
    instance.signal(Signal::SIGTERM);
    assert_eq!(instance.wait().code(), Some(0));
    assert_eq!(leftovers_of(&instance), [""; 0]);
}

struct Leftovers {
    paths: Vec<std::path::PathBuf>,
    kept: Vec<std::path::PathBuf>,
    process: std::process::Child,
}

/// cgroup2 where only kilnd and its children see it (version 1 hosts), to look at what they have there. Not while a kilnd starts:
/// it would take it for the host's.
struct PrivateMount(std::path::PathBuf);

impl PrivateMount {
    fn where_needed(instance: &Instance) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        if mounts.contains(" - cgroup2 ") {
            return None;
        }
        let path = instance.path("cgroup2");
        fs::create_dir_all(&path).unwrap();
        nix::mount::mount(Some("none"), &path, Some("cgroup2"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
        Some(Self(path))
    }
}

impl Drop for PrivateMount {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

/// Everything that a SIGKILL can leave, and a process that should not be there at all.
fn plant(instance: &Instance, private: Option<&PrivateMount>) -> Leftovers {
    let digest = |letter: &str| letter.repeat(64);
    let code = instance.state_dir().join("code");
    let mut paths = vec![
        instance.state_dir().join("staging/00000000000000000000000000000001"),
        code.join(".tmp-17"),
        code.join(digest("a")),
        code.join(digest("b") + ".zip"),
    ];
    fs::create_dir_all(paths[0].join("tree/deep/er")).unwrap();
    fs::create_dir_all(paths[2].join("tree")).unwrap();
    for file in [&paths[1], &paths[3], &paths[0].join("tree/file")] {
        fs::write(file, "x").unwrap();
    }
    let kept = vec![code.join(digest("c")), code.join(digest("c") + ".zip")];
    fs::create_dir(&kept[0]).unwrap();
    fs::write(&kept[1], "x").unwrap();

    let record = fs::read_to_string(instance.run_dir().join("cgroups")).unwrap();
    // Its uid is a container's: the mark by which scripts/leftovers knows it.
    let process = Command::new("sleep").arg("1000").uid(instance.first_id).gid(instance.first_id).spawn().unwrap();
    for (controller, parent) in record.lines().filter_map(|line| line.split_once(' ')) {
        let parent = std::path::Path::new(parent);
        let parent = match (private, parent.strip_prefix(instance.run_dir().join("cgroup2"))) {
            (Some(mount), Ok(below)) => mount.0.join(below),
            _ => parent.to_owned(),
        };
        let group = parent.join(format!("kiln-{}-9-1", instance.name));
        fs::create_dir_all(group.join("inner")).unwrap();
        if controller == "unified" {
            fs::write(group.join("inner/cgroup.procs"), process.id().to_string()).unwrap();
            fs::write(group.join("cgroup.freeze"), "1").unwrap();
        }
        paths.push(group);
    }
    Leftovers { paths, kept, process }
}

/// What scripts/leftovers prints about this instance; others may run their tests at the same time.
fn leftovers_of(instance: &Instance) -> Vec<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/leftovers");
    let output =
        Command::new(script).arg("--run").arg(instance.run_dir()).arg("--state").arg(instance.state_dir()).output().unwrap();
    assert!(output.status.code().is_some_and(|code| code < 2), "{}", String::from_utf8_lossy(&output.stderr));
    let directory = instance.path("").display().to_string();
    let ours = |line: &&str| {
        let group = format!("/kiln-{}-", instance.name);
        let uid = format!(" uid {} ", instance.first_id);
        line.contains(&directory) || line.contains(&group) || line.contains(&uid)
    };
    String::from_utf8_lossy(&output.stdout).lines().filter(ours).map(str::to_owned).collect()
}

#[test]
fn a_stale_socket_does_not_stop_a_start() {
    if !ready() {
        return;
    }
    let mut instance = Instance::prepare();
    fs::create_dir_all(instance.run_dir()).unwrap();
    for name in ["kiln.sock", "control.sock"] {
        drop(UnixListener::bind(instance.run_dir().join(name)).unwrap());
    }
    instance.launch();
    instance.await_ready();
    assert!(instance.ask().starts_with("HTTP/1.1 404"));
}

#[test]
fn before_any_runtime_is_built_it_starts_and_keeps_a_place_for_them() {
    if !ready() {
        return;
    }
    let mut instance = Instance::prepare();
    fs::remove_dir_all(instance.path("runtimes")).unwrap();
    instance.launch();
    instance.await_ready();
    assert!(instance.ask().starts_with("HTTP/1.1 404"));
    for place in ["runtimes/trees", "runtimes/sets"] {
        let found = fs::metadata(instance.path(place)).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o7777), (0, 0o755), "{place}");
    }
    instance.signal(Signal::SIGTERM);
    assert_eq!(instance.wait().code(), Some(0));
    // Not its own to take away.
    assert!(instance.path("runtimes/trees").exists());
}

#[test]
fn a_server_that_can_never_start_is_given_up() {
    if !ready() {
        return;
    }
    let mut instance = Instance::prepare();
    // Its database is a directory.
    fs::create_dir_all(instance.state_dir().join("db/kiln.db")).unwrap();
    instance.launch();
    assert_eq!(instance.wait().code(), Some(1));
    assert!(instance.log().contains("before it was ready"), "{}", instance.log());
    assert!(!instance.run_dir().exists());
}
