//! `kill -9` of any process of ours at any moment leaves nothing behind and damages no stored function.
//!
//! A cell is a named place in the code × a victim: when some process of ours arrives at the place, it waits, this
//! test kills the victim, and everything goes on. Afterwards the next invocation must work; every function that the
//! registry names must run; and once stopped, nothing may be there that was not there before the start.
//!
//! Its own program: the diff is of the whole host, so nothing else of Kiln may run beside it.

#[path = "../engine/host/mod.rs"]
#[allow(dead_code)] // the module serves several test programs; each uses its part
mod host;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use host::snapshot::{Snapshot, process};
use host::{Instance, Options, eventually};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde_json::json;

/// Every `kill_point!` of the code. [`every_kill_point_of_the_code_is_listed`] holds this list to it.
const POINTS: &[&str] = &[
    // supervisor
    "supervisor-started",
    "sweep-begin",
    "before-unpack-spawn",
    "after-unpack",
    "before-launcher-replace",
    // server
    "intake-before-unpack",
    "intake-before-adopt",
    "before-commit",
    "before-row",
    "after-row",
    "before-start",
    "init-running",
    "event-delivered",
    "before-thaw",
    "response-received",
    "before-freeze",
    "before-meter",
    "before-give-back",
    "before-delete-row",
    // launcher
    "order-received",
    "after-seat",
    "after-clone",
    "child-before-ids",
    "child-before-exec",
    "before-built",
    "before-end",
    "after-rmdir-one",
    "adopt-before-chown",
    "adopt-after-zip",
    "adopt-before-rename",
    "forget-before-rename",
    "forget-after-rename",
    "forget-before-remove",
];
const VICTIMS: &[&str] = &["supervisor", "launcher", "server", "init", "helper"];

/// The fewest cells in which a victim was really killed.
const FEWEST_CELLS: usize = 48;

#[test]
fn killing_any_process_at_any_point_leaves_nothing_behind() {
    if !host::ready() {
        return;
    }
    let only = std::env::var("KILN_TEST_CELL").unwrap_or_default();
    let (mut killed, mut failures) = (0, Vec::new());
    for point in POINTS {
        for victim in VICTIMS {
            let cell = format!("{point}@{victim}");
            // A helper lives for one errand: nobody else's point can be reached while it is sure to be there.
            let errand = point.starts_with("adopt-") || point.starts_with("forget-");
            if !cell.contains(&only) || *victim == "helper" && !errand {
                continue;
            }
            match std::panic::catch_unwind(|| run_cell(&cell, victim)) {
                Ok(true) => killed += 1,
                Ok(false) => println!("{cell}: no such victim at that moment"),
                Err(_) => failures.push(cell),
            }
        }
    }
    // To the handle itself: the test runner keeps what a passing test prints with println!.
    let _ = writeln!(std::io::stderr(), "kill points: {killed} cells, {} failed", failures.len());
    assert!(failures.is_empty(), "failed: {failures:?}");
    assert!(killed >= FEWEST_CELLS || !only.is_empty(), "only {killed} cells: at least {FEWEST_CELLS} are promised");
}

/// One cell. `false` when the victim did not exist at that moment.
fn run_cell(cell: &str, victim: &str) -> bool {
    let mut instance = Instance::prepare(Options::default());
    let before = Snapshot::of(&instance);
    let socket = instance.dir.path().join("kill.sock");
    let listener = UnixListener::bind(&socket).expect("bind the test's socket");
    // The server, as user kiln, connects too.
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o777)).expect("open the test's socket");
    instance.set_vars(vec![("KILN_KILL_POINT".into(), cell.into()), ("KILN_KILL_SOCKET".into(), socket.display().to_string())]);
    instance.launch();
    eventually("the diff can see an instance", || {
        Snapshot::of(&instance).since(&before).iter().any(|line| line.starts_with("process"))
    });

    let supervisor = instance.supervisor_pid();
    let (sender, arrived) = mpsc::channel();
    let victim_role = victim.to_owned();
    let lookup = Instance::lookup(supervisor);
    let killer = std::thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else { return };
        let mut text = [0; 200];
        let length = stream.read(&mut text).unwrap_or(0);
        assert!(length > 0, "the process at the point says its name");
        // By the kernel's word: in a new pid namespace a process believes to be 1.
        let reporter = getsockopt(&stream, PeerCredentials).ok().map(|peer| peer.pid() as u32);
        // Whoever comes later passes at once.
        drop(listener);
        let target = reporter.and_then(|reporter| choose(&victim_role, reporter, &lookup));
        if let Some(target) = target {
            host::kill(target);
        }
        let _ = sender.send(target);
        let _ = stream.write_all(b".");
    });

    // A day in the life, which passes every point; once the victim is dead, its steps may fail.
    let zip = host::code::probe_zip();
    let other = host::code::zip(&[("bootstrap", 0o755, &host::code::probe_program()), ("x", 0o644, b"x")]);
    let create = |instance: &Instance, name: &str, zip: &[u8]| {
        let body = json!({ "FunctionName": name, "Runtime": "provided.al2023", "Handler": "x", "Timeout": 10,
            "Role": "arn:aws:iam::000000000000:role/test", "Code": { "ZipFile": host::code::base64(zip) } });
        instance.api().try_request("POST", "/2015-03-31/functions", &[], body.to_string().as_bytes()).map(|answer| answer.status)
    };
    let invoke = |instance: &Instance, name: &str| {
        let path = format!("/2015-03-31/functions/{name}/invocations");
        instance.api().try_request("POST", &path, &[], br#"{"do":"echo"}"#).map(|answer| answer.status)
    };
    let mut died = None;
    // Nobody minds here what a step answers: the victim may be dead.
    let steps: [&dyn Fn(); 8] = [
        &|| drop(create(&instance, "keep", &zip)),
        &|| drop(invoke(&instance, "keep")),
        &|| drop(invoke(&instance, "keep")),
        &|| drop(create(&instance, "gone", &other)),
        &|| drop(invoke(&instance, "gone")),
        &|| drop(instance.api().try_request("DELETE", "/2015-03-31/functions/gone", &[], b"")),
        // Nobody passes that point on a day on which nobody dies; for the others, a launcher's end would hide theirs.
        &|| {
            let launcher = instance.processes("launcher").first().copied();
            launcher.filter(|_| cell.starts_with("before-launcher-replace")).into_iter().for_each(host::kill);
        },
        &|| drop(invoke(&instance, "keep")),
    ];
    // Before its doors are open, each step would fail at once.
    eventually("a door is open, or somebody has come to the point", || {
        died = arrived.try_recv().ok();
        died.is_some() || UnixStream::connect(instance.run_dir().join("kiln.sock")).is_ok()
    });
    for step in steps {
        if died.is_some() {
            break;
        }
        step();
        died = arrived.try_recv().ok();
    }
    // The last points are passed after the last answer.
    let target =
        died.unwrap_or_else(|| arrived.recv_timeout(host::patience()).unwrap_or_else(|_| panic!("nobody came to {cell}")));
    killer.join().expect("the killer ends");
    if target.is_none() {
        instance.stop();
        return false;
    }

    if victim == "supervisor" {
        instance.wait();
        // Everybody dies with it; what stays has a name in the design: cgroups, staging, sockets.
        eventually("all processes are gone", || {
            !Snapshot::of(&instance)
                .since(&before)
                .iter()
                .any(|line| line.starts_with("process") || line.starts_with("netns") || line.starts_with("mount"))
        });
        instance.set_vars(Vec::new());
        instance.launch();
    }
    instance.await_ready();
    // Its row may or may not have been written; both are whole states.
    match create(&instance, "keep", &zip).expect("create after the kill") {
        201 | 409 => {}
        status => panic!("create after the kill: {status}"),
    }
    eventually("the next invocation works", || invoke(&instance, "keep").is_ok_and(|status| status == 200));
    let known = instance.api().request("GET", "/2015-03-31/functions/gone", &[], b"").status;
    if known == 200 {
        assert_eq!(invoke(&instance, "gone").expect("invoke after the kill"), 200, "a stored function is damaged");
    }
    // Whole trees with their zips, of what is stored, and of nothing else: neither half-stored code nor unused code.
    eventually("code/ holds what functions name, and nothing else", || {
        let found = names(&instance.state_dir().join("code"));
        found == code_of_functions(&instance) && names(&instance.state_dir().join("staging")).is_empty()
    });
    let status = instance.stop();
    assert!(status.success(), "stopped with {status}");

    // What is in code/ has just been looked at.
    let kept = |line: &String| {
        line.starts_with("file ") && !line.contains("/staging/") && !line.contains("/run/") && !line.contains(".tmp-")
    };
    let mut left = Vec::new();
    eventually("nothing is left", || {
        left = Snapshot::of(&instance).since(&before).into_iter().filter(|line| !kept(line)).collect();
        left.is_empty()
    });
    true
}

fn names(directory: &std::path::Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).expect("list the state").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// What `code/` should hold.
fn code_of_functions(instance: &Instance) -> BTreeSet<String> {
    let list = instance.api().request("GET", "/2015-03-31/functions", &[], b"").json();
    let functions = list["Functions"].as_array().expect("a list of functions");
    let digests = functions.iter().map(|function| {
        let digest = function["CodeSha256"].as_str().and_then(|text| STANDARD.decode(text).ok()).expect("a digest in base64");
        digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    });
    digests.flat_map(|digest| [format!("{digest}.zip"), digest]).collect()
}

/// The pid to kill when `reporter` waits at the point.
fn choose(role: &str, reporter: u32, lookup: &dyn Fn(&str) -> Vec<u32>) -> Option<u32> {
    let candidates = lookup(role);
    // The one that waits, or (for a launcher's child before its exec) its parent, rather than a sibling.
    let parent = process(reporter).map(|process| process.parent);
    let near = candidates.iter().copied().find(|pid| *pid == reporter || Some(*pid) == parent);
    near.or_else(|| candidates.last().copied())
}

#[test]
fn every_kill_point_of_the_code_is_listed() {
    let mut named = Vec::new();
    collect(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut named);
    named.sort();
    named.dedup();
    let mut listed: Vec<_> = POINTS.iter().map(|point| (*point).to_owned()).collect();
    listed.sort();
    assert_eq!(named, listed);
    assert!(named.len() >= 12);
}

fn collect(dir: &std::path::Path, named: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).expect("read src").flatten() {
        if entry.path().is_dir() {
            collect(&entry.path(), named);
        } else if !entry.path().ends_with("kill_point.rs") {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            // The second is a place that a container's child reaches when the socket's path is gone.
            for place in ["kill_point!(\"", "Carried::connect(\""] {
                let named_here = text.split(place).skip(1).filter_map(|part| part.split('"').next());
                named.extend(named_here.map(str::to_owned));
            }
        }
    }
}
