//! Ends of life of the service: it is stopped, restarted and reloaded while it works, and each of its processes is killed.

use std::collections::HashSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use serde_json::json;

use super::machine::{self, answers, command, configure, drop_in, eventually, invoke_at_once, patience, picture, property, run};

#[test]
fn a_stop_lets_twenty_invocations_finish() {
    let Some(kiln) = machine::enter_with("drain_s = 300\n") else { return };
    kiln.create_probe("slow", json!({ "Timeout": 180 }));
    let mut ms = 15_000;
    let callers = loop {
        let callers = invoke_at_once(&kiln, 20, "slow", &json!({ "do": "sleep", "ms": ms }));
        let mut all_run = false;
        eventually("twenty invocations run, or the first has ended", || {
            all_run = kiln.environments("busy") == 20;
            all_run || callers.iter().any(|caller| caller.is_finished())
        });
        if all_run {
            break callers;
        }
        // Too short for this host; next time their containers are there.
        answers(callers);
        ms *= 2;
        assert!(ms < 180_000, "twenty invocations do not run at once");
    };
    run("systemctl", &["stop", "kilnd"]);
    let slept = format!(r#"{{"slept_ms":{ms}}}"#);
    for answer in answers(callers) {
        assert_eq!((answer.status, answer.text().as_str()), (200, &*slept));
    }
    kiln.leave();
}

#[test]
fn a_stop_names_what_it_cuts_to_callers_and_in_the_journal() {
    let Some(kiln) = machine::enter_with("drain_s = 2\n") else { return };
    kiln.create_probe("endless", json!({ "Timeout": 900 }));
    let callers = invoke_at_once(&kiln, 20, "endless", &json!({ "do": "sleep", "ms": 600_000 }));
    eventually("twenty invocations run", || kiln.environments("busy") == 20);
    run("systemctl", &["stop", "kilnd"]);
    let journal = kiln.journal();
    for answer in answers(callers) {
        assert_eq!((answer.status, answer.header("x-amz-function-error")), (200, Some("Unhandled")), "{}", answer.text());
        assert_eq!(answer.json()["errorType"], "Sandbox.Stopped");
        let told = journal.lines().any(|line| line.contains("cut:") && line.contains(answer.request_id()));
        assert!(told, "{} is not named as cut:\n{journal}", answer.request_id());
    }
    assert_eq!(property("kilnd", "Result"), "success", "{journal}");
    kiln.leave();
}

/// Ten callers, each with a new connection for each request, until two restarts are over.
#[test]
fn a_restart_under_load_refuses_and_loses_no_caller() {
    let Some(kiln) = machine::enter() else { return };
    kiln.create_probe("echo", json!({ "Timeout": 60 }));
    let (over, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let caller = |number: usize| {
        let (api, over, served) = (kiln.api(), over.clone(), served.clone());
        thread::spawn(move || {
            let mut wrong = Vec::new();
            let mut requests = HashSet::new();
            for turn in 0.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let event = json!({ "do": "echo", "caller": number, "turn": turn });
                // One try: whoever is refused or reset is lost.
                match api.try_request("POST", "/2015-03-31/functions/echo/invocations", &[], event.to_string().as_bytes()) {
                    Ok(answer) if answer.status == 200 && answer.body == event.to_string().as_bytes() => {
                        assert!(requests.insert(answer.request_id().to_owned()), "one answer each");
                    }
                    Ok(answer) => wrong.push(format!("{event}: {} {}", answer.status, answer.text())),
                    Err(error) => wrong.push(format!("{event}: {error}")),
                }
                served.fetch_add(1, Ordering::Relaxed);
            }
            wrong
        })
    };
    let callers: Vec<_> = (0..10).map(caller).collect();
    for _ in 0..2 {
        let so_far = served.load(Ordering::Relaxed);
        eventually("all are at it", || served.load(Ordering::Relaxed) > so_far + 20);
        run("systemctl", &["restart", "kilnd"]);
    }
    let so_far = served.load(Ordering::Relaxed);
    eventually("and go on", || served.load(Ordering::Relaxed) > so_far + 20);
    over.store(true, Ordering::Relaxed);
    let wrong: Vec<String> = callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect();
    assert!(wrong.is_empty(), "of {}:\n{}\n{}", served.load(Ordering::Relaxed), wrong.join("\n"), kiln.journal());
    assert_eq!(property("kilnd", "NRestarts"), "0", "restarted by us, and not by a failure");
    kiln.leave();
}

#[test]
fn after_the_kill_of_any_process_invoking_works_again_by_itself() {
    let Some(kiln) = machine::enter() else { return };
    kiln.create_probe("f", json!({}));
    for victim in ["init", "launcher", "server", "supervisor"] {
        kiln.call("f", &json!({ "do": "echo" }));
        let (victims, containers) = (kiln.processes(victim), kiln.processes("init"));
        assert!(!victims.is_empty(), "{victim}");
        if victim == "supervisor" {
            // --kill-whom is an alias that systemd knows only since 252.
            run("systemctl", &["kill", "--signal=KILL", "--kill-who=main", "kilnd"]);
        } else {
            victims.iter().for_each(|pid| machine::kill(*pid));
        }
        // A signal is sent, not yet felt: until all are dead that die with it, an invocation may still begin in a container that
        // is about to end, and dies with it, and says so. From then on nobody may meet the dead.
        let all: Vec<u32> = victims.iter().copied().chain(containers).collect();
        eventually("the victims are dead", || all.iter().all(|pid| picture::process(*pid).is_none()));
        // At once: the caller waits for the repair.
        let answer = kiln.invoke("f", &json!({ "do": "echo", "after": victim }));
        assert_eq!(answer.status, 200, "after the end of a {victim}: {}\n{}", answer.text(), kiln.journal());
        assert_eq!(answer.json()["after"], victim, "{}\n{}", answer.text(), kiln.journal());
    }
    assert_eq!(property("kilnd", "NRestarts"), "1", "systemd had to help once");
    kiln.leave();
}

#[test]
fn a_supervisor_that_hangs_is_ended_and_replaced() {
    let Some(kiln) = machine::enter() else { return };
    drop_in("kilnd.service", "[Service]\nWatchdogSec=15\n");
    run("systemctl", &["restart", "kilnd"]);
    kiln.create_probe("f", json!({}));
    kiln.call("f", &json!({ "do": "echo" }));
    let hung = kiln.main_pid();
    machine::signal(hung, nix::sys::signal::Signal::SIGSTOP);
    eventually("systemd has replaced it", || {
        property("kilnd", "NRestarts") != "0" && property("kilnd", "SubState") == "running" && kiln.main_pid() != hung
    });
    assert!(kiln.journal().contains("Watchdog timeout"), "{}", kiln.journal());
    kiln.call("f", &json!({ "do": "echo" }));
    kiln.leave();
}

#[test]
fn a_reload_takes_effect_without_an_interruption_and_a_mistake_changes_nothing() {
    let Some(kiln) = machine::enter() else { return };
    kiln.create_probe("f", json!({ "Timeout": 120 }));
    let running = invoke_at_once(&kiln, 1, "f", &json!({ "do": "sleep", "ms": 4000 }));
    eventually("it runs", || kiln.environments("busy") == 1);
    let processes = || ["supervisor", "server", "launcher"].map(|role| kiln.processes(role));
    let before = processes();

    configure("memory_budget_mib = 1234\nlaunchers = 1\nmetrics_listen = '127.0.0.1:9150'\n");
    run("systemctl", &["reload", "kilnd"]);
    eventually("the budget is the new one", || kiln.pool()["budget_mib"] == 1234);
    kiln.await_journal("launchers");
    // On the host's own loopback, though the unit has a network of its own.
    eventually("metrics are served", || scrape().is_ok_and(|text| text.contains("\nkiln_build_info{")));

    configure("memory_budget_mib = 'much'\n");
    let refused = command("systemctl", &["reload", "kilnd"]);
    assert!(!refused.status.success(), "systemctl says that nothing was reloaded");
    kiln.await_journal("memory_budget_mib");
    assert_eq!(kiln.pool()["budget_mib"], 1234);
    assert!(scrape().is_ok(), "what was listened on, too");

    configure("");
    run("systemctl", &["reload", "kilnd"]);
    eventually("nobody listens there any more", || scrape().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused));

    assert_eq!(property("kilnd", "ActiveState"), "active");
    assert_eq!(processes(), before, "nobody was replaced");
    for answer in answers(running) {
        assert_eq!(answer.text(), r#"{"slept_ms":4000}"#);
    }
    kiln.leave();
}

/// What Prometheus would read.
fn scrape() -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", 9150))?;
    stream.set_read_timeout(Some(patience()))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: kiln\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn the_tutorials_function_runs_on_node() {
    let Some(kiln) = machine::enter() else { return };
    if !machine::runtimes().join("nodejs8.10.toml").exists() {
        return eprintln!("SKIP: needs the runtime nodejs8.10");
    }
    let code = std::fs::read(machine::repository().join("examples/node-tutorial/index.js")).expect("read the tutorial");
    let zip = machine::zip(&[("index.js", 0o644, &code)]);
    kiln.create("tutorial", "nodejs8.10", "index.handler", &zip, json!({ "Timeout": 60 }));
    let answer = kiln.call("tutorial", &json!({ "name": "Ada" }));
    assert!(answer.to_string().contains("Ada"), "{answer}");
    kiln.leave();
}
