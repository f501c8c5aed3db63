//! Life and death of an instance: drain, recovery, two side by side.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use serde_json::json;

use crate::host::snapshot::{Snapshot, cgroups, process};
use crate::host::{self, Instance, Options, eventually, scope};

#[test]
fn sigterm_lets_running_invocations_finish_and_leaves_nothing() {
    if !host::ready() {
        return;
    }
    let mut instance = Instance::start();
    instance.create_probe("slow", json!({ "Timeout": 30 }));
    let (sender, answers) = mpsc::channel();
    let callers: Vec<_> = (0..5)
        .map(|_| {
            let (sender, api) = (sender.clone(), instance.api());
            thread::spawn(move || {
                let answer = api.request("POST", "/2015-03-31/functions/slow/invocations", &[], br#"{"do":"sleep","ms":2000}"#);
                sender.send((answer.status, answer.header("x-amz-function-error").map(str::to_owned))).unwrap();
            })
        })
        .collect();
    eventually("five invocations run", || instance.busy() == 5);
    let status = instance.stop();
    for caller in callers {
        caller.join().unwrap();
    }
    drop(sender);
    let answers: Vec<_> = answers.iter().collect();
    assert_eq!(answers, vec![(200, None); 5]);
    assert!(status.success(), "{status}");
    assert_eq!(cgroups(&format!("kiln-{}-", instance.name)), Vec::<String>::new());
    assert!(!instance.run_dir().exists(), "what kilnd made, it removes");
}

#[test]
fn sigterm_ends_what_runs_past_the_limit_and_tells_its_caller() {
    if !host::ready() {
        return;
    }
    let mut instance = Instance::start_with(Options { config: "drain_s = 1".into(), ..Options::default() });
    instance.create_probe("endless", json!({ "Timeout": 900 }));
    let api = instance.api();
    let caller = thread::spawn(move || {
        api.try_request("POST", "/2015-03-31/functions/endless/invocations", &[], br#"{"do":"sleep","ms":600000}"#)
    });
    eventually("it runs", || instance.busy() == 1);
    assert!(instance.stop().success());
    let answer = caller.join().unwrap().expect("an answer, and no closed connection");
    assert_eq!((answer.status, answer.header("x-amz-function-error")), (200, Some("Unhandled")), "{}", answer.text());
    assert_eq!(answer.json()["errorType"], "Sandbox.Stopped");
    assert!(instance.log().contains("what still runs is cut running=1"), "{}", instance.log());
    assert_eq!(cgroups(&format!("kiln-{}-", instance.name)), Vec::<String>::new());
}

#[test]
fn a_second_sigterm_cuts_at_once_and_tells_the_callers() {
    if !host::ready() {
        return;
    }
    let mut instance = Instance::start_with(Options { config: "drain_s = 600".into(), ..Options::default() });
    instance.create_probe("endless", json!({ "Timeout": 900 }));
    let api = instance.api();
    let caller = thread::spawn(move || {
        api.try_request("POST", "/2015-03-31/functions/endless/invocations", &[], br#"{"do":"sleep","ms":600000}"#)
    });
    eventually("it runs", || instance.busy() == 1);
    host::signal(instance.supervisor_pid(), nix::sys::signal::Signal::SIGTERM);
    eventually("it drains", || instance.control().request("GET", "/v1/status", &[], b"").json()["draining"] == true);
    host::signal(instance.supervisor_pid(), nix::sys::signal::Signal::SIGTERM);
    assert!(instance.wait().success(), "{}", instance.log());
    let answer = caller.join().unwrap().expect("an answer, and no closed connection");
    assert_eq!((answer.status, answer.header("x-amz-function-error")), (200, Some("Unhandled")), "{}", answer.text());
    assert_eq!(answer.json()["errorType"], "Sandbox.Stopped");
    assert!(!instance.log().contains("killed"), "nobody had to be: {}", instance.log());
    assert_eq!(cgroups(&format!("kiln-{}-", instance.name)), Vec::<String>::new());
}

#[test]
fn people_on_duty_see_a_drain_to_its_end() {
    if !host::ready() {
        return;
    }
    let mut instance = Instance::start();
    instance.create_probe("slow", json!({ "Timeout": 30 }));
    let api = instance.api();
    let caller = thread::spawn(move || {
        api.request("POST", "/2015-03-31/functions/slow/invocations", &[], br#"{"do":"sleep","ms":15000}"#).status
    });
    eventually("it runs", || instance.busy() == 1);
    let supervisor = instance.supervisor_pid();
    host::signal(supervisor, nix::sys::signal::Signal::SIGTERM);
    eventually("it says that it drains", || instance.control().request("GET", "/v1/status", &[], b"").json()["draining"] == true);
    assert_eq!(instance.busy(), 1, "and shows for whom");
    assert!(instance.wait().success());
    assert_eq!(caller.join().unwrap(), 200);
}

#[test]
fn who_was_let_in_before_a_stop_still_invokes() {
    if !host::ready() {
        return;
    }
    let mut instance = Instance::start();
    instance.create_probe("f", json!({ "Timeout": 30 }));
    let mut early = UnixStream::connect(instance.run_dir().join("kiln.sock")).unwrap();
    early.set_read_timeout(Some(host::patience())).unwrap();
    early.write_all(b"POST /2015-03-31/functions/f/invocations HTTP/1.1\r\nHost: x\r\n").unwrap();
    // Who comes later is let in later: when this one is answered, that one is in.
    instance.call("f", &json!({ "do": "echo" }));
    host::signal(instance.supervisor_pid(), nix::sys::signal::Signal::SIGTERM);
    eventually("it drains", || instance.control().request("GET", "/v1/status", &[], b"").json()["draining"] == true);
    early.write_all(b"Content-Length: 13\r\n\r\n{\"do\":\"echo\"}").unwrap();
    let mut answer = String::new();
    early.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    assert!(instance.wait().success());
}

#[test]
fn a_restart_under_load_loses_no_invocation_where_socket_units_hold_the_doors() {
    if !host::ready() {
        return;
    }
    let mut instance = Instance::prepare(Options::default());
    std::fs::create_dir(instance.run_dir()).unwrap();
    let invoke = scope::door(&instance.run_dir().join("kiln.sock"), "kiln-invoke");
    let control = scope::door(&instance.run_dir().join("control.sock"), "kiln-admin");
    instance.launch_activated(&invoke, &control);
    instance.await_ready();
    instance.create_probe("f", json!({ "Timeout": 60 }));
    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let callers: Vec<_> = (0..6)
            .map(|_| {
                let (api, over, answered) = (instance.api(), &over, &answered);
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        let path = "/2015-03-31/functions/f/invocations";
                        let answer = api.request("POST", path, &[], br#"{"do":"sleep","ms":50}"#);
                        assert_eq!(answer.status, 200, "{}", answer.text());
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for _ in 0..2 {
            let so_far = answered.load(Ordering::Relaxed);
            eventually("invocations are answered", || answered.load(Ordering::Relaxed) > so_far + 30);
            assert!(instance.stop().success());
            instance.launch_activated(&invoke, &control);
            instance.await_ready();
        }
        over.store(true, Ordering::Relaxed);
        callers.into_iter().for_each(|caller| caller.join().expect("no invocation was lost"));
    });
    assert!(instance.stop().success());
    let left: Vec<_> = std::fs::read_dir(instance.run_dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "the doors, and nothing else: {left:?}");
}

#[test]
fn after_kill_of_server_launcher_or_init_invoking_works_again_by_itself() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({}));
    for victim in ["init", "launcher", "server"] {
        instance.call("f", &json!({ "do": "echo" }));
        let victims = instance.processes(victim);
        // A launcher takes its containers along.
        let dying = [victims.clone(), if victim == "launcher" { instance.processes("init") } else { vec![] }].concat();
        victims.iter().copied().for_each(host::kill);
        // A signal is sent, not yet felt: until its victim is dead, an invocation may still begin with it, and dies with it (and
        // says so). From then on nobody may meet the dead.
        eventually("the victims are dead", || dying.iter().all(|pid| process(*pid).is_none()));
        let answer = instance.invoke("f", &json!({ "do": "echo", "after": victim }));
        assert_eq!(answer.status, 200, "after the end of a {victim}: {}", answer.text());
        assert_eq!(answer.json()["after"], victim, "the caller waits for the repair and gets an answer");
    }
}

#[test]
fn a_killed_supervisor_takes_everything_along_and_the_next_start_cleans_up() {
    if !host::ready() {
        return;
    }
    let mut instance = Instance::prepare(Options::default());
    let before = Snapshot::of(&instance);
    instance.launch();
    instance.await_ready();
    instance.create_probe("f", json!({}));
    instance.call("f", &json!({ "do": "echo" }));
    instance.kill_supervisor();
    eventually("no process is left", || !Snapshot::of(&instance).since(&before).iter().any(|line| line.starts_with("process")));
    instance.launch();
    instance.await_ready();
    instance.call("f", &json!({ "do": "echo" }));
    assert!(instance.stop().success());
    assert_eq!(cgroups(&format!("kiln-{}-", instance.name)), Vec::<String>::new());
}

#[test]
fn two_instances_run_side_by_side() {
    if !host::ready() {
        return;
    }
    let (one, mut two) = (Instance::start(), Instance::start());
    one.create_probe("f", json!({}));
    two.create_probe("f", json!({}));
    assert_eq!(one.call("f", &json!({ "do": "echo", "from": 1 }))["from"], 1);
    assert_eq!(two.call("f", &json!({ "do": "echo", "from": 2 }))["from"], 2);
    assert!(two.stop().success());
    assert_eq!(one.call("f", &json!({ "do": "echo", "from": 3 }))["from"], 3, "the first does not feel the end of the second");
}

#[test]
fn an_instance_that_overlaps_another_is_refused() {
    if !host::ready() {
        return;
    }
    let running = Instance::start();
    let mut second = Instance::prepare(Options::default());
    std::fs::copy(running.config_path(), second.config_path()).unwrap();
    second.launch();
    assert!(!second.wait().success());
    assert!(second.log().contains(&running.run_dir().display().to_string()), "{}", second.log());
}
