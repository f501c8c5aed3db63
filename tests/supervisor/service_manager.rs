//! Plays systemd, on any host: passes the doors, hears what is notified, starves the watchdog, asks for a reload.
//!
//! The same inside a machine with a real systemd is tests/service's.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::instance::scope::door;
use crate::instance::{Instance, end, eventually, field, ready, status};

/// Both doors as the socket units make them. They outlive every kilnd.
struct Doors {
    invoke: UnixListener,
    control: UnixListener,
}

impl Doors {
    fn open(instance: &Instance) -> Self {
        fs::create_dir_all(instance.run_dir()).unwrap();
        let open = |name: &str, group: &str| door(&instance.run_dir().join(name), group);
        Self { invoke: open("kiln.sock", "kiln-invoke"), control: open("control.sock", "kiln-admin") }
    }

    fn both(&self) -> [(&str, &UnixListener); 2] {
        [("invoke", &self.invoke), ("control", &self.control)]
    }
}

/// An instance that was started with both doors.
fn started() -> (Instance, Doors) {
    let mut instance = Instance::prepare();
    let doors = Doors::open(&instance);
    instance.launch_command(instance.activated(&doors.both()));
    instance.await_ready();
    (instance, doors)
}

fn in_run_dir(instance: &Instance) -> Vec<String> {
    let entries = fs::read_dir(instance.run_dir()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.collect();
    names.sort();
    names
}

fn json(answer: &str) -> Value {
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

fn status_of(instance: &Instance) -> Value {
    json(&instance.ask_at("control.sock", "/v1/status"))
}

// ---- Doors -----------------------------------------------------------------------------------------------------------

#[test]
fn doors_that_were_passed_are_served_and_stay() {
    if !ready() {
        return;
    }
    let (mut instance, doors) = started();
    let run_dir = instance.run_dir();
    let inode = |name: &str| fs::symlink_metadata(run_dir.join(name)).unwrap().ino();
    let before = [inode("kiln.sock"), inode("control.sock")];
    assert!(instance.ask().starts_with("HTTP/1.1 404"), "it answers");
    assert!(instance.ask_at("control.sock", "/v1/status").starts_with("HTTP/1.1 200"));
    // Members of kiln-admin come by both; no socket unit can say so.
    let mut acl = [0u8; 256];
    let acl = rustix::fs::getxattr(instance.run_dir().join("kiln.sock"), "system.posix_acl_access", &mut acl);
    assert!(acl.is_ok_and(|length| length > 0), "kiln-admin may open kiln.sock");
    instance.signal(Signal::SIGTERM);
    assert_eq!(instance.wait().code(), Some(0), "{}", instance.log());
    assert_eq!(in_run_dir(&instance), ["control.sock", "kiln.sock"], "and nothing else");
    let about = fs::symlink_metadata(instance.run_dir().join("kiln.sock")).unwrap();
    assert_eq!((about.ino(), about.mode() & 0o777), (before[0], 0o660));
    // They still listen: who comes now is queued, and answered by the next one.
    let mut early = UnixStream::connect(instance.run_dir().join("kiln.sock")).unwrap();
    early.write_all(b"GET /2015-03-31/functions/none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    instance.launch_command(instance.activated(&doors.both()));
    let mut answer = String::new();
    early.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert_eq!(inode("control.sock"), before[1]);
}

#[test]
fn a_door_that_was_not_passed_is_opened_and_removed_and_the_other_stays() {
    if !ready() {
        return;
    }
    let mut instance = Instance::prepare();
    fs::create_dir_all(instance.run_dir()).unwrap();
    let control = door(&instance.run_dir().join("control.sock"), "kiln-admin");
    instance.launch_command(instance.activated(&[("control", &control)]));
    instance.await_ready();
    assert!(instance.ask().starts_with("HTTP/1.1 404"));
    assert!(instance.ask_at("control.sock", "/v1/status").starts_with("HTTP/1.1 200"));
    instance.signal(Signal::SIGTERM);
    assert_eq!(instance.wait().code(), Some(0));
    assert_eq!(in_run_dir(&instance), ["control.sock"]);
}

/// Starts what must be refused. Returns what it says, to the log and to systemd.
#[track_caller]
fn refused(instance: &Instance, mut command: Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let status = instance.said().pop().unwrap_or_default();
    // `systemctl status` shows the beginning of the same.
    assert!(status.starts_with("STATUS=") && status.lines().next().unwrap().len() > 20, "{status:?}: {said}");
    said
}

#[test]
fn what_is_wrong_with_a_passed_door_is_refused_with_the_line_that_cures_it() {
    if !ready() {
        return;
    }
    let instance = Instance::prepare();
    let doors = Doors::open(&instance);
    let path = instance.run_dir().join("kiln.sock");
    let start = |doors: &[(&str, &UnixListener)]| {
        let command = instance.activated(doors);
        refused(&instance, command)
    };

    let said = start(&[("kilnd.socket", &doors.invoke)]);
    assert!(said.contains("\"kilnd.socket\"") && said.contains("FileDescriptorName="), "{said}");
    let said = start(&[("invoke", &doors.invoke), ("invoke", &doors.control)]);
    assert!(said.contains("two sockets named \"invoke\""), "{said}");
    let said = start(&[("invoke", &doors.control)]);
    assert!(said.contains(&format!("ListenStream={}", path.display())) && said.contains("kilnd.socket"), "{said}");
    for (mode, group) in [(0o666, "kiln-invoke"), (0o660, "kiln-admin")] {
        let group = nix::unistd::Group::from_name(group).unwrap().unwrap();
        chown(&path, Some(0), Some(group.gid.as_raw())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let said = start(&doors.both());
        assert!(said.contains("SocketGroup=kiln-invoke") && said.contains("SocketMode=0660"), "{said}");
    }
    fs::remove_file(&path).unwrap();
    let said = start(&doors.both());
    assert!(said.contains("systemctl restart kilnd.socket"), "{said}");
    assert_eq!(doors.control.local_addr().unwrap().as_pathname(), Some(&*instance.run_dir().join("control.sock")));
    assert!(instance.run_dir().join("control.sock").exists(), "what was passed stays");
}

#[test]
fn a_door_that_somebody_else_holds_is_not_taken_from_it() {
    if !ready() {
        return;
    }
    let instance = Instance::prepare();
    let doors = Doors::open(&instance);
    // Its variables are for another process, as after a `su` in a shell of the service's.
    let mut command = instance.command();
    command.env("LISTEN_PID", "1").env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", "invoke:control");
    let said = refused(&instance, command);
    assert!(said.contains("somebody else listens on") && said.contains("systemctl stop kilnd.socket"), "{said}");
    assert!(UnixStream::connect(instance.run_dir().join("kiln.sock")).is_ok(), "it is still there");
    drop(doors);
}

#[test]
fn a_restart_under_load_loses_no_caller_while_the_doors_are_held() {
    if !ready() {
        return;
    }
    let (mut instance, doors) = started();
    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let path = instance.run_dir().join("kiln.sock");
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..8)
            .map(|number| {
                let (path, over, answered) = (&path, &over, &answered);
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        // Half of them keep their connections, and open a new one when the server has said that it closes.
                        answered.fetch_add(converse(path, if number % 2 == 0 { 1 } else { 50 }), Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for _ in 0..3 {
            let so_far = answered.load(Ordering::Relaxed);
            eventually("callers are answered", || answered.load(Ordering::Relaxed) > so_far + 100);
            instance.signal(Signal::SIGTERM);
            assert_eq!(instance.wait().code(), Some(0), "{}", instance.log());
            instance.launch_command(instance.activated(&doors.both()));
            instance.await_ready();
        }
        over.store(true, Ordering::Relaxed);
        for caller in callers {
            caller.join().expect("no caller was lost");
        }
    });
}

/// One connection, at most so many requests. Panics when one that was sent is not answered. Returns how many were.
fn converse(path: &Path, requests: usize) -> usize {
    let mut stream = UnixStream::connect(path).expect("nobody is refused");
    stream.set_read_timeout(Some(Duration::from_secs(300))).unwrap();
    for done in 0..requests {
        match stream.write_all(b"GET /2015-03-31/functions/none HTTP/1.1\r\nHost: x\r\n\r\n") {
            // Between two requests a server may close; then this one was never heard, and its caller knows.
            Err(error) if error.kind() == ErrorKind::BrokenPipe && done > 0 => return done,
            sent => sent.expect("send a request"),
        }
        let head = answer(&mut stream);
        assert!(head.starts_with("HTTP/1.1 404"), "request {done}: {head:?}");
        if head.contains("connection: close") {
            return done + 1;
        }
    }
    requests
}

/// One whole answer; only its head is given back.
fn answer(stream: &mut UnixStream) -> String {
    let (mut text, mut piece) = (String::new(), [0; 4096]);
    loop {
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if body.len() >= length.parse().unwrap() {
                return head.to_owned();
            }
        }
        match stream.read(&mut piece).expect("read the answer") {
            0 => return text,
            read => text += std::str::from_utf8(&piece[..read]).unwrap(),
        }
    }
}

// ---- Words and the watchdog ------------------------------------------------------------------------------------------

#[test]
fn every_phase_is_told_in_words_and_a_stop_asks_for_the_time_it_needs() {
    if !ready() {
        return;
    }
    let mut instance = Instance::prepare();
    instance.launch();
    assert!(instance.notified().contains("STATUS=starting"));
    let ready = instance.await_word("READY=1");
    assert!(ready.contains("\nSTATUS=serving on kiln.sock and control.sock in ") && ready.contains("2 launchers"), "{ready}");
    end(instance.server(), Signal::SIGKILL);
    let ended = instance.await_word("STATUS=the server ended");
    assert!(ended.contains("callers queue"), "{ended}");
    instance.await_word("STATUS=serving");
    instance.signal(Signal::SIGTERM);
    let stopping = instance.await_word("STOPPING=1");
    assert!(stopping.contains("\nSTATUS=draining: up to 5 s for running invocations"), "{stopping}");
    let more = instance.await_word("EXTEND_TIMEOUT_USEC=");
    let usec: u64 = more.lines().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC=")).unwrap().parse().unwrap();
    assert!(usec >= 30_000_000, "{more}");
    assert_eq!(instance.wait().code(), Some(0));
    assert_eq!(instance.said().pop().unwrap(), "STATUS=stopped; nothing is left behind");
}

#[test]
fn a_start_that_fails_tells_its_reason_and_errno() {
    if !ready() {
        return;
    }
    let instance = Instance::prepare();
    // EEXIST: it would have to be made in a file.
    fs::write(instance.path("file"), "").unwrap();
    instance.configure(&format!("state_dir = '{}'", instance.path("file/state").display()));
    let output = instance.command().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = instance.await_word("ERRNO=");
    assert!(told.starts_with("STATUS=make the directory ") && told.ends_with("ERRNO=17"), "{told}");
    instance.configure("idle_max_s = 'x'");
    // EX_CONFIG, after which systemd does not try again.
    assert_eq!(instance.command().output().unwrap().status.code(), Some(78));
    let told = instance.await_word("STATUS=the configuration is wrong");
    assert!(told.contains("write it like `idle_max_s = 900`"), "{told}");
}

#[test]
fn the_watchdog_is_fed_by_the_loop_and_starves_when_that_stands_still() {
    if !ready() {
        return;
    }
    let interval = Duration::from_millis(600);
    let mut instance = Instance::prepare();
    let mut command = instance.command();
    command.env("WATCHDOG_USEC", interval.as_micros().to_string());
    instance.launch_command(command);
    instance.await_ready();
    for _ in 0..5 {
        instance.await_word("WATCHDOG=1");
    }
    let supervisor = instance.supervisor();
    end(supervisor, Signal::SIGSTOP);
    eventually("it stands still", || field(&status(supervisor).unwrap(), "State").starts_with('T'));
    instance.said();
    let (since, mut heard) = (Instant::now(), Vec::new());
    while since.elapsed() < 3 * interval {
        heard.extend(instance.said());
        std::thread::sleep(interval / 10); // the pace of looking
    }
    assert_eq!(heard, [""; 0], "nobody else feeds it");
    end(supervisor, Signal::SIGCONT);
    instance.await_word("WATCHDOG=1");
}

#[test]
fn a_watchdog_that_is_for_another_process_is_not_fed() {
    if !ready() {
        return;
    }
    let mut instance = Instance::prepare();
    let mut command = instance.command();
    command.env("WATCHDOG_USEC", "600000").env("WATCHDOG_PID", "1");
    instance.launch_command(command);
    instance.await_ready();
    instance.signal(Signal::SIGTERM);
    instance.wait();
    let said = instance.said();
    assert!(said.iter().any(|message| message.contains("STOPPING=1")));
    assert!(!said.iter().any(|message| message.contains("WATCHDOG")), "{said:?}");
}

#[test]
fn a_second_sigterm_waits_for_no_invocation_and_a_third_for_nobody() {
    if !ready() {
        return;
    }
    let (mut instance, _doors) = started();
    instance.configure("drain_s = 600");
    instance.signal(Signal::SIGHUP);
    instance.await_word("READY=1");
    // One that never gets to its end.
    end(instance.server(), Signal::SIGSTOP);
    instance.signal(Signal::SIGTERM);
    let stopping = instance.await_word("STOPPING=1");
    assert!(stopping.contains("up to 600 s"), "{stopping}");
    instance.signal(Signal::SIGTERM);
    let stopping = instance.await_word("STOPPING=1");
    assert!(stopping.contains("what still runs is cut"), "{stopping}");
    instance.signal(Signal::SIGTERM);
    assert_eq!(instance.wait().code(), Some(0), "{}", instance.log());
    assert_eq!(in_run_dir(&instance), ["control.sock", "kiln.sock"]);
}

// ---- Reload ----------------------------------------------------------------------------------------------------------

/// Writes the file, asks for a reload and waits for its end; what is then told.
#[track_caller]
fn reloaded(instance: &Instance, more: &str) -> String {
    instance.configure(more);
    instance.said();
    instance.signal(Signal::SIGHUP);
    let begins = instance.await_word("RELOADING=1");
    assert!(begins.lines().any(|line| line.strip_prefix("MONOTONIC_USEC=").is_some_and(|usec| usec.parse::<u64>().is_ok())));
    instance.await_word("READY=1")
}

#[test]
fn a_reload_takes_over_what_it_can_and_names_what_waits_for_a_restart() {
    if !ready() {
        return;
    }
    let instance = Instance::start();
    let server = instance.server();
    let before = status_of(&instance);
    let told = reloaded(&instance, "idle_max_s = 777\nmemory_budget_mib = 512\nconcurrency = 40\nbooks_days = 3\nlog_days = 2\n");
    assert!(told.contains("STATUS=serving") && !told.contains("waiting"), "{told}");
    let after = status_of(&instance);
    for (key, value) in [("idle_max_s", 777), ("memory_budget_mib", 512), ("concurrency", 40), ("books_days", 3), ("log_days", 2)]
    {
        assert_eq!(after["config"][key], value, "{key}");
    }
    assert_eq!(after["waiting_for_restart"], Value::Array(vec![]));
    let pool = json(&instance.ask_at("control.sock", "/v1/pool"));
    assert_eq!((&pool["budget_mib"], &pool["concurrency"]), (&512.into(), &40.into()), "the pool goes by it");
    let account = instance.ask_at("kiln.sock", "/2016-08-19/account-settings");
    assert_eq!(json(&account)["AccountLimit"]["ConcurrentExecutions"], 40, "and so do the callers' door");

    let told = reloaded(&instance, "idle_max_s = 778\nregion = 'eu-west-1'\naccount = '123456789012'\n");
    assert!(told.contains("waiting for a restart: region, account"), "{told}");
    let partly = status_of(&instance);
    assert_eq!((&partly["config"]["idle_max_s"], &partly["config"]["region"]), (&778.into(), &before["config"]["region"]));
    assert_eq!(partly["waiting_for_restart"], serde_json::json!(["region", "account"]));
    assert_eq!(partly["config"]["concurrency"], before["config"]["concurrency"], "what was taken out has its default again");
    assert!(instance.log().contains("take effect at the next restart"), "{}", instance.log());
    let doctor = Command::new(env!("CARGO_BIN_EXE_kiln")).arg("doctor").arg("--run").arg(instance.run_dir()).output().unwrap();
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.contains("the file has other values of region, account"), "{doctor}");
    assert_eq!(instance.server(), server, "nobody was restarted for it");

    // Whoever replaces it goes by the same.
    end(server, Signal::SIGKILL);
    instance.await_word("STATUS=the server ended");
    instance.await_word("STATUS=serving");
    eventually("it knows what waits, too", || status_of(&instance)["waiting_for_restart"] == partly["waiting_for_restart"]);
    assert_eq!(status_of(&instance)["config"], partly["config"]);

    let told = reloaded(&instance, "idle_max_s = 778\n");
    assert!(!told.contains("waiting"), "what was put back waits no more: {told}");
}

#[test]
fn a_file_with_a_fault_changes_nothing_and_the_fault_is_told() {
    if !ready() {
        return;
    }
    let instance = Instance::start();
    let before = status_of(&instance);
    let told = reloaded(&instance, "idle_max_s = 777\nconcurrency = 0\ndrain_seconds = 4\n");
    for part in ["STATUS=serving", "the file was not taken", "did you mean `drain_s`", "must be at least 1"] {
        assert!(told.contains(part), "{part}: {told}");
        assert!(part.starts_with("STATUS") || part.contains("not taken") || instance.log().contains(part), "{part}");
    }
    assert_eq!(status_of(&instance)["config"], before["config"]);
    fs::remove_file(instance.path("kiln.toml")).unwrap();
    instance.signal(Signal::SIGHUP);
    let told = instance.await_word("READY=1");
    assert!(told.contains("read the configuration"), "{told}");
    let told = reloaded(&instance, "idle_max_s = 777\n");
    assert!(!told.contains("not taken"), "{told}");
    assert_eq!(status_of(&instance)["config"]["idle_max_s"], 777);
}

#[test]
fn a_reload_while_it_drains_is_not_taken() {
    if !ready() {
        return;
    }
    let mut instance = Instance::start();
    end(instance.server(), Signal::SIGSTOP);
    instance.signal(Signal::SIGTERM);
    instance.await_word("STOPPING=1");
    instance.signal(Signal::SIGHUP);
    eventually("it was heard", || instance.log().contains("not read any more"));
    instance.signal(Signal::SIGTERM);
    assert_eq!(instance.wait().code(), Some(0));
    assert!(!instance.said().iter().any(|message| message.contains("RELOADING") || message.contains("READY")));
}
