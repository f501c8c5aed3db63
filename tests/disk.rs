//! A full disk is refused clearly and loses nothing: not a function, not an answer, and not its own cure.
//!
//! Each test has a `state_dir` on a disk of 32 MB, in a mount namespace of its own. The moment at which the disk gets full is
//! chosen by a kill point, at which nobody is killed here: whoever arrives waits until the disk is full.

#[path = "engine/host/mod.rs"]
#[allow(dead_code)] // serves several test programs; each uses its part
mod host;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use host::code::{base64, probe_program, probe_zip, zip};
use host::{Answer, Instance, Options, eventually};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

const FUNCTIONS: &str = "/2015-03-31/functions";

/// An instance whose state lies on a small disk of its own.
struct Small {
    instance: Instance,
}

impl Small {
    /// `options` as mount(8) takes them for a tmpfs.
    fn prepare(options: &str, vars: Vec<(String, String)>) -> Self {
        // This thread's alone: nobody else on the host sees the disk, and it ends with the namespace's last process.
        unshare(CloneFlags::CLONE_NEWNS).expect("make a mount namespace");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).expect("keep mounts to it");
        let instance = Instance::prepare(Options { vars, ..Options::default() });
        fs::create_dir(instance.state_dir()).expect("make the state directory");
        mount(Some("disk"), &instance.state_dir(), Some("tmpfs"), MsFlags::empty(), Some(options)).expect("mount a disk");
        Self { instance }
    }

    fn start(options: &str, vars: Vec<(String, String)>) -> Self {
        let mut small = Self::prepare(options, vars);
        small.instance.launch();
        small.instance.await_ready();
        small.instance.create_probe("keep", json!({}));
        small.invoke_keep();
        small
    }

    fn ballast(&self) -> PathBuf {
        self.instance.state_dir().join("ballast")
    }

    /// Leaves so many bytes free.
    fn fill(&self, left: u64) {
        fill(&self.ballast(), left);
    }

    fn make_room(&self) {
        fs::remove_file(self.ballast()).expect("make room");
    }

    #[track_caller]
    fn invoke_keep(&self) {
        let answer = self.instance.call("keep", &json!({ "do": "echo", "n": 7 }));
        assert_eq!(answer["n"], 7, "{answer}");
    }

    fn create(&self, name: &str, zip: &[u8]) -> Answer {
        create(&self.instance, name, zip)
    }

    fn update(&self, zip: &[u8]) -> Answer {
        let body = json!({ "ZipFile": base64(zip) });
        self.instance.api().request("PUT", &format!("{FUNCTIONS}/keep/code"), &[], body.to_string().as_bytes())
    }

    fn configure(&self, settings: Value) -> Answer {
        let path = format!("{FUNCTIONS}/keep/configuration");
        self.instance.api().request("PUT", &path, &[], settings.to_string().as_bytes())
    }

    fn functions(&self) -> Vec<String> {
        let list = self.instance.api().request("GET", FUNCTIONS, &[], b"").json();
        let names = list["Functions"].as_array().expect("a list").iter();
        names.map(|function| function["FunctionName"].as_str().expect("a name").to_owned()).collect()
    }

    fn below(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.instance.state_dir().join(directory)).expect("list the state").flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Nothing but `keep` is there, and it runs.
    #[track_caller]
    fn assert_nothing_was_lost_or_left(&self) {
        assert_eq!(self.functions(), ["keep"]);
        assert_eq!(self.instance.api().request("GET", &format!("{FUNCTIONS}/new"), &[], b"").status, 404);
        self.invoke_keep();
        eventually("nothing half-written is left", || self.below("staging").is_empty() && self.below("code").len() == 2);
    }

    /// With room again, and without a restart.
    #[track_caller]
    fn assert_works(&self) {
        let created = self.create("new", &other_zip());
        assert_eq!(created.status, 201, "{}", created.text());
        assert_eq!(self.instance.call("new", &json!({ "do": "echo", "n": 1 }))["n"], 1);
        assert_eq!(self.configure(json!({ "Timeout": 9 })).status, 200);
        self.invoke_keep();
    }

    fn end(mut self) {
        assert!(self.instance.stop().success(), "a full disk is no reason to end badly");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Else its directory could not be removed. Those who still use it have it until they end.
        let _ = umount2(&self.instance.state_dir(), MntFlags::MNT_DETACH);
    }
}

fn create(instance: &Instance, name: &str, zip: &[u8]) -> Answer {
    let body = json!({ "FunctionName": name, "Runtime": "provided.al2023", "Handler": "x", "Timeout": 10,
        "Role": "arn:aws:iam::000000000000:role/test", "Code": { "ZipFile": base64(zip) } });
    instance.api().request("POST", FUNCTIONS, &[], body.to_string().as_bytes())
}

fn fill(ballast: &Path, left: u64) {
    let mut file = File::options().create(true).append(true).open(ballast).expect("open the ballast");
    for piece in [1 << 20, 4096, 1] {
        while file.write_all(&vec![0xb5; piece]).is_ok() {}
    }
    if left > 0 {
        let length = file.metadata().expect("ask for the ballast's length").len();
        file.set_len(length - left).expect("leave some room");
    }
}

/// The probe, and a megabyte that does not shrink.
fn other_zip() -> Vec<u8> {
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    });
    let noise: Vec<u8> = noise.take(1 << 20).collect();
    zip(&[("bootstrap", 0o755, &probe_program()), ("noise", 0o644, &noise)])
}

#[track_caller]
fn assert_full(answer: &Answer, small: &Small) {
    assert_eq!(answer.status, 500, "{}", answer.text());
    assert_eq!(answer.header("x-amzn-errortype"), Some("ServiceException"));
    let state_dir = small.instance.state_dir().display().to_string();
    for part in ["disk", "full", "nothing was stored", "try again", &state_dir] {
        assert!(answer.text().contains(part), "{part:?} is not in {}", answer.text());
    }
}

fn at(point: &str, socket: &Path) -> Vec<(String, String)> {
    vec![("KILN_KILL_POINT".into(), format!("{point}@nobody")), ("KILN_KILL_SOCKET".into(), socket.display().to_string())]
}

/// Runs `act`; when somebody arrives at the point, `meanwhile` happens before it goes on.
fn when_reached<T: Send>(socket: &Path, meanwhile: impl FnOnce(), act: impl FnOnce() -> T + Send) -> T {
    let listener = UnixListener::bind(socket).expect("bind the point's socket");
    fs::set_permissions(socket, PermissionsExt::from_mode(0o777)).expect("let everybody connect");
    std::thread::scope(|scope| {
        let acting = scope.spawn(act);
        let (mut stream, _) = listener.accept().expect("somebody arrives");
        assert!(stream.read(&mut [0; 200]).is_ok_and(|length| length > 0), "it says its name");
        // Whoever comes later passes at once.
        drop(listener);
        fs::remove_file(socket).expect("remove the point's socket");
        meanwhile();
        stream.write_all(b".").expect("let it go on");
        acting.join().expect("the request ends")
    })
}

/// The socket cannot lie in the state, nor in what one instance's test removes.
fn socket() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("make a directory");
    fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).expect("let everybody in");
    let path = directory.path().join("point");
    (directory, path)
}

#[test]
fn a_disk_that_gets_full_at_any_step_refuses_and_loses_nothing() {
    if !host::ready() || !host::has(cfg!(feature = "kill-points"), "--features kill-points") {
        return;
    }
    // In the order in which a CreateFunction passes them; none comes after the commit of the function's row.
    let points = [
        "intake-before-unpack",
        "before-unpack-spawn",
        "after-unpack",
        "intake-before-adopt",
        "adopt-before-chown",
        "adopt-before-rename",
        "adopt-after-zip",
        "before-row",
        "before-commit",
    ];
    for point in points {
        println!("full at {point}");
        let (_directory, socket) = socket();
        // Each has its own namespace, on a thread that ends with it.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let small = Small::start("size=32m", at(point, &socket));
                let (instance, ballast) = (&small.instance, small.ballast());
                let other = other_zip();
                let answer = when_reached(&socket, || fill(&ballast, 0), || create(instance, "new", &other));
                assert_full(&answer, &small);
                small.assert_nothing_was_lost_or_left();
                // What was staged is gone, and has left some room.
                small.fill(0);
                assert_full(&small.update(&other), &small);
                assert_full(&small.configure(json!({ "Timeout": 9 })), &small);
                small.assert_nothing_was_lost_or_left();
                small.make_room();
                small.assert_works();
                small.end();
            });
        });
    }
}

#[test]
fn a_full_disk_refuses_before_it_takes_anything() {
    if !host::ready() {
        return;
    }
    let small = Small::start("size=32m", vec![]);
    small.fill(0);
    assert_full(&small.create("new", &other_zip()), &small);
    assert_full(&small.create("new", &probe_zip()), &small);
    small.assert_nothing_was_lost_or_left();
    small.make_room();
    small.assert_works();
    small.end();
}

#[test]
fn answers_go_out_where_the_books_have_no_room() {
    if !host::ready() || !host::has(cfg!(feature = "kill-points"), "--features kill-points") {
        return;
    }
    let (_directory, socket) = socket();
    let small = Small::start("size=32m", at("before-meter", &socket));
    let (instance, ballast) = (&small.instance, small.ballast());
    let answer = when_reached(&socket, || fill(&ballast, 0), || instance.invoke("keep", &json!({ "do": "echo", "n": 3 })));
    assert_eq!((answer.status, answer.json()["n"].clone()), (200, json!(3)));
    assert!(answer.log().contains("REPORT RequestId: "), "{}", answer.log());
    small.invoke_keep();
    for lost in ["lost=1", "lost=2"] {
        eventually("what is lost is counted in the log", || {
            let log = instance.log();
            log.lines().any(|line| line.contains("missing in the books") && line.contains(lost))
        });
    }
    small.make_room();
    small.assert_works();
    assert!(!small.instance.log().contains("lost=3"), "with room, the books are kept again");
    small.end();
}

#[test]
fn after_a_kill_on_a_full_disk_every_function_is_there() {
    if !host::ready() {
        return;
    }
    let mut small = Small::start("size=32m", vec![]);
    small.fill(0);
    assert_full(&small.create("new", &other_zip()), &small);
    for _ in 0..2 {
        small.instance.kill_supervisor();
        small.instance.launch();
        small.instance.await_ready();
        small.assert_nothing_was_lost_or_left();
    }
    assert_full(&small.create("new", &other_zip()), &small);
    small.make_room();
    small.assert_works();
    small.end();
}

#[test]
fn a_disk_without_inodes_is_full_too() {
    if !host::ready() {
        return;
    }
    let small = Small::start("size=32m,nr_inodes=400", vec![]);
    let many = small.instance.state_dir().join("many");
    fs::create_dir(&many).expect("make a directory");
    let made = (0..).take_while(|at: &u32| File::create(many.join(at.to_string())).is_ok()).count();
    assert!(made > 100, "{made}");
    assert_full(&small.create("new", &other_zip()), &small);
    small.assert_nothing_was_lost_or_left();
    fs::remove_dir_all(&many).expect("make room");
    small.assert_works();

    // More files than there are: seen by whoever writes them, when all are gone.
    let names: Vec<String> = (0..300).map(|at| format!("d{at}/e/f")).collect();
    let files: Vec<(&str, u32, &[u8])> = names.iter().map(|name| (&**name, 0o644, &b""[..])).collect();
    assert_full(&small.create("many", &zip(&files)), &small);
    small.invoke_keep();
    small.end();
}

/// Code may fill the disk up to a reserve, in which everything else goes on: above all what makes room again.
#[test]
fn code_leaves_room_for_its_own_deletion() {
    if !host::ready() {
        return;
    }
    let small = Small::start("size=32m", vec![]);
    assert_eq!(small.create("new", &other_zip()).status, 201);
    // Half of the reserve of a disk of 32 MB.
    small.fill(1 << 20);
    assert_full(&small.update(&zip(&[("bootstrap", 0o755, b"#!/bin/sh\n")])), &small);
    assert_eq!(small.configure(json!({ "Timeout": 9 })).status, 200);
    small.invoke_keep();
    let deleted = small.instance.api().request("DELETE", &format!("{FUNCTIONS}/new"), &[], b"");
    assert_eq!(deleted.status, 204, "{}", deleted.text());
    small.assert_nothing_was_lost_or_left();
    // The room that it took is enough for this one.
    assert_eq!(small.create("small", &zip(&[("bootstrap", 0o755, b"#!/bin/sh\n")])).status, 201);
    small.end();
}

#[test]
fn a_zip_that_inflates_beyond_the_disk_is_refused_and_leaves_nothing() {
    if !host::ready() {
        return;
    }
    let small = Small::start("size=32m", vec![]);
    let zeros = vec![0; 40 << 20];
    let bomb = zip(&[("bootstrap", 0o755, b"#!/bin/sh\n"), ("zeros", 0o644, &zeros)]);
    assert!(bomb.len() < 1 << 20, "it looks small");
    assert_full(&small.create("new", &bomb), &small);
    small.assert_nothing_was_lost_or_left();
    small.assert_works();
    small.end();
}
