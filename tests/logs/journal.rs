//! What systemd's journal gets of kilnd, and that no journal, however slow, holds anybody up.
//!
//! The journal is the test's own: a datagram socket in the journal's place, in a mount namespace that only the instance shares.
//! What a real one makes of it is tests/service/journal.rs's.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{IoSliceMut, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};

use crate::host::{self, Instance, Options, eventually};
use crate::{entries, kiln, print, reported};

/// An entry's fields, by name.
type Entry = BTreeMap<String, Vec<u8>>;

/// The journal that an instance writes to.
struct Journal {
    entries: Arc<Mutex<Vec<Entry>>>,
    reads: Arc<AtomicBool>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Whether the instance's stderr is said to be the journal, and whether that one listens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum There {
    Both,
    OnlySocket,
    OnlyStream,
}

impl Journal {
    /// Starts the instance in it.
    fn launch(instance: &mut Instance, there: There) -> Self {
        let log = File::options().create(true).append(true).open(instance.dir.path().join("kilnd.log")).unwrap();
        let stderr = log.metadata().unwrap();
        let inode = stderr.ino() + u64::from(there == There::OnlySocket);
        instance.set_vars(vec![("JOURNAL_STREAM".into(), format!("{}:{inode}", stderr.dev()))]);
        let socket = thread::scope(|scope| scope.spawn(|| in_its_own_mounts(instance, there)).join().expect("launch kilnd"));
        let (entries, reads, ends) = (Arc::default(), Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let mut journal = Self { entries, reads, ends, thread: None };
        let (entries, reads, ends) = (journal.entries.clone(), journal.reads.clone(), journal.ends.clone());
        journal.thread = socket.map(|socket| thread::spawn(move || read(&socket, &entries, &reads, &ends)));
        instance.await_ready();
        journal
    }

    fn start(options: Options) -> (Instance, Self) {
        let mut instance = Instance::prepare(options);
        let journal = Self::launch(&mut instance, There::Both);
        (instance, journal)
    }

    /// From now on it takes nothing, as a journal that was stopped: its queue fills.
    fn stop_reading(&self, stop: bool) {
        self.reads.store(!stop, Ordering::SeqCst);
    }

    /// Entries that have all these values.
    fn find(&self, wanted: &[(&str, &str)]) -> Vec<Entry> {
        let has = |entry: &&Entry| wanted.iter().all(|(name, value)| entry.get(*name).is_some_and(|is| is == value.as_bytes()));
        self.entries.lock().unwrap().iter().filter(has).cloned().collect()
    }

    #[track_caller]
    fn await_one(&self, wanted: &[(&str, &str)]) -> Entry {
        eventually(&format!("the journal has {wanted:?}"), || !self.find(wanted).is_empty());
        self.find(wanted).remove(0)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// For a thread that ends with it: only what it starts sees these mounts.
fn in_its_own_mounts(instance: &mut Instance, there: There) -> Option<UnixDatagram> {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>).expect("slaves");
    let directory = Path::new("/run/systemd");
    // Elsewhere than /run itself, so that other instances' locks are seen.
    fs::create_dir_all(directory).expect("a place for the journal");
    mount(Some("kiln-test"), directory, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("mount a tmpfs");
    fs::create_dir(directory.join("journal")).unwrap();
    let path = directory.join("journal/socket");
    let socket = (there != There::OnlyStream).then(|| {
        let socket = UnixDatagram::bind(&path).expect("bind the journal's socket");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        socket
    });
    instance.launch();
    socket
}

fn read(socket: &UnixDatagram, entries: &Mutex<Vec<Entry>>, reads: &AtomicBool, ends: &AtomicBool) {
    while !ends.load(Ordering::SeqCst) {
        let mut ready = [PollFd::new(std::os::fd::AsFd::as_fd(socket), PollFlags::POLLIN)];
        // So that it looks whether it shall end, or read.
        let found = poll(&mut ready, PollTimeout::from(20_u8));
        if found == Ok(1) && reads.load(Ordering::SeqCst) {
            let entry = fields(&receive(socket));
            entries.lock().unwrap().push(entry);
        } else if found == Ok(1) {
            thread::sleep(Duration::from_millis(5)); // it is stopped: the pace of looking
        }
    }
}

fn receive(socket: &UnixDatagram) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    let mut space = cmsg_space!(RawFd);
    let mut pieces = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut pieces, Some(&mut space), MsgFlags::empty()).expect("receive");
    let rights = received.cmsgs().unwrap().find_map(|message| match message {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    let length = received.bytes;
    bytes.truncate(length);
    if let Some(descriptor) = rights {
        let mut memory = File::open(format!("/proc/self/fd/{descriptor}")).expect("open the memfd");
        nix::unistd::close(descriptor).unwrap();
        memory.read_to_end(&mut bytes).unwrap();
    }
    bytes
}

/// <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>
fn fields(mut entry: &[u8]) -> Entry {
    let mut found = Entry::new();
    while let Some(end) = entry.iter().position(|byte| *byte == b'\n') {
        let (name, rest) = (String::from_utf8(entry[..end].to_vec()).expect("a name"), &entry[end + 1..]);
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        assert_eq!(rest[8 + length], b'\n', "{name}");
        assert_eq!(found.insert(name, rest[8..8 + length].to_vec()), None, "a field comes once");
        entry = &rest[8 + length + 1..];
    }
    found
}

fn text<'a>(entry: &'a Entry, name: &str) -> &'a str {
    entry.get(name).map_or("-", |value| std::str::from_utf8(value).expect("a text"))
}

#[test]
fn an_invocation_and_each_bad_end_is_found_in_the_journal_by_its_fields() {
    if !host::ready() {
        return;
    }
    let (mut instance, journal) = Journal::start(Options::default());
    instance.create_probe("hello", json!({ "Timeout": 1, "MemorySize": 128 }));
    journal.await_one(&[("KILN_FUNCTION", "hello"), ("SYSLOG_IDENTIFIER", "kilnd"), ("PRIORITY", "6")]);
    let answer = instance.invoke("hello", &print("one\ntwo", "stdout"));
    let container = instance.pool()["environments"][0]["container"].as_str().unwrap().to_owned();
    let of = |request: &str| vec![("KILN_FUNCTION".to_owned(), "hello".to_owned()), ("KILN_REQUEST".into(), request.into())];
    let find = |request: &str, more: &[(&str, &str)]| {
        let base = of(request);
        let all: Vec<(&str, &str)> = base.iter().map(|(a, b)| (a.as_str(), b.as_str())).chain(more.iter().copied()).collect();
        journal.find(&all)
    };
    // Its lines, as its caller has them; nothing else has its id.
    eventually("the lines are there", || find(answer.request_id(), &[]).len() >= 5);
    let lines = find(answer.request_id(), &[("SYSLOG_IDENTIFIER", "kiln/hello"), ("PRIORITY", "6")]);
    let messages: String = lines.iter().map(|entry| text(entry, "MESSAGE").to_owned() + "\n").collect();
    assert_eq!((messages, find(answer.request_id(), &[]).len()), (answer.log(), 5));
    let streams: Vec<&str> = lines.iter().map(|entry| text(entry, "KILN_STREAM")).collect();
    assert_eq!(streams, ["platform", "function", "function", "platform", "platform"]);
    assert!(lines.iter().all(|entry| text(entry, "KILN_CONTAINER") == container && text(entry, "KILN_VERSION") == "$LATEST"));
    assert_eq!(journal.find(&[("KILN_CONTAINER", &container), ("KILN_STREAM", "platform")]).len(), 4, "INIT_START, too");

    // Each bad end is one event of kilnd's, with its cause; an error that the handler reports itself is none.
    let hold = json!({ "steps": [{ "hold_mib": 200 }, { "sleep": 10_000 }] });
    for (event, cause) in [
        (json!({ "sleep": 30_000 }), "Sandbox.Timedout"),
        (hold, "Runtime.OutOfMemory"),
        (json!({ "signal": 11 }), "Runtime.ExitError"),
    ] {
        // Emulated machines need longer than a second to fill memory.
        let timeout = if cause == "Sandbox.Timedout" { 1 } else { 60 };
        update(&instance, "hello", json!({ "Timeout": timeout }));
        let answer = instance.invoke("hello", &event);
        eventually(cause, || !find(answer.request_id(), &[("KILN_CAUSE", cause)]).is_empty());
        let events = find(answer.request_id(), &[("SYSLOG_IDENTIFIER", "kilnd")]);
        assert_eq!(events.len(), 1, "{cause}: {events:?}");
        assert_eq!((text(&events[0], "PRIORITY"), text(&events[0], "KILN_CAUSE")), ("4", cause));
        assert!(text(&events[0], "MESSAGE").contains(cause) && text(&events[0], "KILN_CONTAINER").contains('-'), "{events:?}");
        assert!(text(&events[0], "CODE_FILE").ends_with(".rs"));
    }
    let reported = instance.invoke("hello", &json!({ "do": "error", "type": "My.Error", "message": "because" }));
    eventually("it is reported", || {
        find(reported.request_id(), &[]).iter().any(|entry| text(entry, "MESSAGE").starts_with("REPORT "))
    });
    assert!(find(reported.request_id(), &[("SYSLOG_IDENTIFIER", "kilnd")]).is_empty());

    // An init that fails, twice; a function that may not run; and our own fault.
    update(&instance, "hello", json!({ "Environment": { "Variables": { "PROBE_INIT": "exit:3" } } }));
    let failed = instance.invoke("hello", &json!({}));
    let wanted = [("KILN_CAUSE", "Runtime.ExitError"), ("PRIORITY", "4")];
    eventually("a failed init", || !find(failed.request_id(), &wanted).is_empty());
    assert_eq!(find(failed.request_id(), &wanted).len(), 1);
    assert_eq!(find(failed.request_id(), &[("KILN_CAUSE", "Runtime.ExitError"), ("PRIORITY", "6")]).len(), 1, "the first try");
    let (code, _, said) = kiln(&instance, &["function", "concurrency", "hello", "--reserve", "0"]);
    assert_eq!(code, 0, "{said}");
    let refused = instance.invoke("hello", &json!({}));
    assert_eq!(refused.status, 429);
    eventually("a refusal", || {
        !find(refused.request_id(), &[("KILN_CAUSE", "Throttled.Reserved"), ("PRIORITY", "6")]).is_empty()
    });
    instance.create_probe("lost", json!({ "Timeout": 60 }));
    thread::scope(|scope| {
        let running = scope.spawn(|| instance.invoke("lost", &json!({ "sleep": 30_000 })));
        eventually("it runs", || instance.busy() == 1);
        instance.processes("launcher").into_iter().for_each(host::kill);
        assert!(running.join().unwrap().text().contains("Sandbox.Failure"));
    });
    let ours = journal.await_one(&[("KILN_FUNCTION", "lost"), ("KILN_CAUSE", "Sandbox.Failure")]);
    assert_eq!((text(&ours, "PRIORITY"), text(&ours, "SYSLOG_IDENTIFIER")), ("3", "kilnd"));

    // All of kilnd's processes, to their ends, and nothing of it on stderr.
    for (target, words) in
        [("kiln::supervisor", "supervisor started"), ("kiln::launcher", "launcher ready"), ("kiln::server", "ready")]
    {
        let said = |entry: &Entry| text(entry, "TARGET").starts_with(target) && text(entry, "MESSAGE").starts_with(words);
        assert!(journal.find(&[("PRIORITY", "6")]).iter().any(said), "{target}");
    }
    assert!(instance.stop().success());
    eventually("its last word", || journal.find(&[("MESSAGE", "stopped")]).len() == 1);
    assert_eq!(instance.log(), "");
}

#[track_caller]
fn update(instance: &Instance, function: &str, settings: Value) {
    let path = format!("/2015-03-31/functions/{function}/configuration");
    let answer = instance.api().request("PUT", &path, &[], settings.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn a_flood_of_lines_costs_the_journal_a_bounded_part_and_no_report() {
    if !host::ready() {
        return;
    }
    let (instance, journal) = Journal::start(Options::default());
    instance.create_probe("noisy", json!({ "Timeout": 120, "MemorySize": 1024 }));
    instance.create_probe("quiet", json!({ "Timeout": 20 }));
    let (lines, begin) = (30_000, Instant::now());
    let answer = instance.invoke("noisy", &json!({ "do": "print", "text": "x".repeat(99), "times": lines }));
    instance.call("quiet", &print("hello", "stdout"));
    reported(&instance, "noisy", 1);
    let of = |stream: &str| journal.find(&[("KILN_FUNCTION", "noisy"), ("KILN_STREAM", stream)]);
    let number = |notice: &Entry| text(notice, "MESSAGE").split(' ').nth(1).unwrap().parse::<usize>().unwrap();
    let missing = || of("notice").iter().map(number).sum::<usize>();
    eventually("every line is there, or told to be missing", || of("function").len() + missing() == lines);
    // A thousand at once, and then a hundred a second.
    let (kept, bound) = (of("function").len(), 1000 + (begin.elapsed().as_secs() as usize + 1) * 100);
    assert!((1000..=bound).contains(&kept), "{kept}, and at most {bound}");
    assert!(of("notice").iter().all(|notice| text(notice, "PRIORITY") == "4"));
    let platform: Vec<String> = of("platform").iter().map(|entry| text(entry, "MESSAGE")[..5].to_owned()).collect();
    assert_eq!(platform, ["INIT_", "START", "END R", "REPOR"]);
    assert!(answer.log().contains(text(&of("platform")[3], "MESSAGE")));
    // Its own log has far more of them, and nobody else's line is missing anywhere.
    let own = entries(&instance, "noisy").iter().filter(|entry| entry["kind"] == "function").count();
    assert!(own > 4 * kept, "{own} and {kept}");
    journal.await_one(&[("KILN_FUNCTION", "quiet"), ("MESSAGE", "hello")]);

    // The longest line there is goes whole, as a memfd.
    let long = "y".repeat((256 << 10) - 1);
    instance.call("quiet", &print(&long, "stdout"));
    eventually("the long line", || {
        let found = journal.find(&[("KILN_FUNCTION", "quiet"), ("KILN_STREAM", "function")]);
        found.iter().any(|entry| entry["MESSAGE"] == long.as_bytes())
    });
}

#[test]
fn a_journal_that_has_stopped_delays_no_answer_and_no_end() {
    if !host::ready() {
        return;
    }
    let (mut instance, journal) = Journal::start(Options::default());
    instance.create_probe("f", json!({}));
    instance.call("f", &print("before", "stdout"));
    journal.await_one(&[("KILN_FUNCTION", "f"), ("MESSAGE", "before")]);
    journal.stop_reading(true);
    // Many times what its queue holds, of functions' lines and of kilnd's own events, and for longer than the writer of
    // functions' lines waits; on a blocking socket the first that finds no room waits until the test is over.
    let (begin, mut calls) = (Instant::now(), 0);
    while begin.elapsed() < Duration::from_secs(4) || calls < 400 {
        instance.call("f", &print(&format!("line {calls}"), "stdout"));
        let (code, _, said) = kiln(&instance, &["function", "concurrency", "f", "--reserve", "50"]);
        assert_eq!(code, 0, "{said}");
        calls += 1;
    }
    reported(&instance, "f", calls + 1);
    let own = entries(&instance, "f");
    assert_eq!(own.iter().filter(|entry| entry["kind"] == "function").count(), calls + 1, "the function's own log has all");
    journal.stop_reading(false);
    let notice = journal.await_one(&[("KILN_FUNCTION", "f"), ("KILN_STREAM", "notice")]);
    assert!(text(&notice, "MESSAGE").contains("because the journal did not take them: `kiln logs f` has more"), "{notice:?}");
    instance.call("f", &print("after", "stdout"));
    journal.await_one(&[("KILN_FUNCTION", "f"), ("MESSAGE", "after")]);
    let (code, _, said) = kiln(&instance, &["function", "concurrency", "f", "--none"]);
    assert_eq!(code, 0, "{said}");
    eventually("kilnd's own missing events are told", || {
        journal.find(&[("SYSLOG_IDENTIFIER", "kilnd"), ("PRIORITY", "4")]).iter().any(|entry| entry.contains_key("KILN_MISSING"))
    });

    // A launcher and a server come and go as ever, though none of their words is taken.
    journal.stop_reading(true);
    (0..20).for_each(|_| drop(instance.call("f", &print("in vain", "stdout"))));
    instance.processes("launcher").into_iter().take(1).for_each(host::kill);
    host::kill(instance.processes("server")[0]);
    instance.await_ready();
    journal.stop_reading(false);
    instance.call("f", &print("again", "stdout"));
    journal.await_one(&[("KILN_FUNCTION", "f"), ("MESSAGE", "again")]);

    journal.stop_reading(true);
    (0..20).for_each(|_| drop(instance.call("f", &print("last", "stdout"))));
    let begin = Instant::now();
    assert!(instance.stop().success());
    assert!(begin.elapsed() < Duration::from_secs(20), "drain_s is 30: {:?}", begin.elapsed());
}

#[test]
fn without_a_journal_kilnds_log_is_text_on_stderr() {
    if !host::ready() {
        return;
    }
    // Another stream than stderr is the journal's; and a stderr that is, without a journal that can be reached.
    for there in [There::OnlySocket, There::OnlyStream] {
        let mut instance = Instance::prepare(Options::default());
        let journal = Journal::launch(&mut instance, there);
        instance.create_probe("f", json!({}));
        instance.call("f", &print("hello", "stdout"));
        reported(&instance, "f", 1);
        assert!(instance.stop().success());
        let log = instance.log();
        for line in ["supervisor started", "launcher ready", "function created function=f", "stopped"] {
            assert!(log.contains(line), "{line}: {log}");
        }
        assert!(!log.contains("hello") && journal.find(&[]).is_empty());
    }
}

#[test]
fn the_journal_gets_no_more_of_functions_than_the_configuration_says() {
    if !host::ready() {
        return;
    }
    for (value, streams) in [("platform", &["platform"][..]), ("none", &[])] {
        let (mut instance, journal) = Journal::start(Options { config: format!("journal = '{value}'"), ..Options::default() });
        instance.create_probe("f", json!({}));
        instance.call("f", &print("hello", "stdout"));
        reported(&instance, "f", 1);
        assert!(instance.stop().success());
        journal.await_one(&[("MESSAGE", "stopped")]);
        let all = journal.find(&[]);
        let mut found: Vec<&str> =
            all.iter().filter(|entry| entry.contains_key("KILN_STREAM")).map(|e| text(e, "KILN_STREAM")).collect();
        found.dedup();
        assert_eq!(found, streams, "{value}");
        assert!(!journal.find(&[("KILN_FUNCTION", "f"), ("SYSLOG_IDENTIFIER", "kilnd")]).is_empty(), "kilnd's own are there");
    }
}
