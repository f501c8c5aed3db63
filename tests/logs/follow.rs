//! `kiln logs -f`: nothing is lost and nothing comes twice, and it ends without a word.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::host::{self, Instance, eventually};
use crate::{logs, print, reported};

/// A `kiln logs -f` under way, and what it has printed.
pub struct Follower {
    kiln: Child,
    lines: Arc<Mutex<String>>,
    reading: Option<JoinHandle<()>>,
}

impl Follower {
    pub fn start(instance: &Instance, words: &[&str]) -> Self {
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"))
            .arg("--run")
            .arg(instance.run_dir())
            .args([&["logs", "-f"], words].concat())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run kiln");
        let lines = Arc::<Mutex<String>>::default();
        let (mut out, theirs) = (BufReader::new(kiln.stdout.take().unwrap()), lines.clone());
        let reading = thread::spawn(move || {
            let mut line = String::new();
            while matches!(out.read_line(&mut line), Ok(1..)) {
                theirs.lock().unwrap().push_str(&line);
                line.clear();
            }
        });
        Self { kiln, lines, reading: Some(reading) }
    }

    pub fn seen(&self) -> String {
        self.lines.lock().unwrap().clone()
    }

    #[track_caller]
    pub fn sees(&self, what: &str) {
        eventually("the follower sees it", || self.seen().contains(what));
    }

    /// Sends the signal; what it said on stderr.
    pub fn end(mut self, signal: Signal) -> (std::process::ExitStatus, String) {
        host::signal(self.kiln.id(), signal);
        let status = self.kiln.wait().unwrap();
        self.reading.take().unwrap().join().unwrap();
        let mut said = String::new();
        self.kiln.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status, said)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.kiln.kill();
        let _ = self.kiln.wait();
    }
}

#[test]
fn a_follower_misses_nothing_and_sees_nothing_twice_when_the_server_is_replaced() {
    if !host::ready() {
        return;
    }
    let mut instance = Instance::start();
    instance.create_probe("f", json!({}));
    let mut invocations = 0;
    let mut run = |instance: &Instance| {
        for _ in 0..5 {
            instance.call("f", &print(&format!("line {invocations} end"), "stdout"));
            invocations += 1;
        }
        reported(instance, "f", invocations);
    };
    run(&instance);
    let follower = Follower::start(&instance, &["f", "-n", "all"]);
    follower.sees("line 4 end");
    run(&instance);
    follower.sees("line 9 end");
    host::kill(instance.processes("server")[0]);
    instance.await_ready();
    run(&instance);
    assert!(instance.stop().success());
    instance.launch();
    instance.await_ready();
    run(&instance);
    follower.sees("line 19 end");
    let all = logs(&instance, &["f", "-n", "all"]);
    eventually("the follower has seen it all", || follower.seen().len() >= all.len());
    assert_eq!(follower.seen(), all);
    let (status, said) = follower.end(Signal::SIGINT);
    assert_eq!(status.signal(), Some(Signal::SIGINT as i32), "as a shell expects it of Ctrl-C");
    assert!(said.lines().all(|line| line.starts_with("kiln: kilnd is ")), "{said}");
}

#[test]
fn a_long_invocation_is_seen_while_it_runs() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "Timeout": 60 }));
    let follower = Follower::start(&instance, &["f"]);
    thread::scope(|scope| {
        let caller = scope.spawn(|| {
            instance.invoke("f", &json!({ "steps": [{ "sleep": 1500 }, print("later", "stdout"), { "sleep": 1500 }] }))
        });
        follower.sees("START RequestId: ");
        assert!(!follower.seen().contains("later"), "START comes before anything was printed");
        follower.sees("later");
        assert!(!follower.seen().contains("END RequestId: "), "a line comes before the end");
        let answer = caller.join().expect("the caller's thread");
        follower.sees(&answer.log());
    });
    let (status, said) = follower.end(Signal::SIGINT);
    assert_eq!((status.signal(), said.as_str()), (Some(Signal::SIGINT as i32), ""));
}

#[test]
fn a_follower_whose_reader_goes_away_ends_by_itself_and_frees_its_place() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({}));
    instance.call("f", &print("hello", "stdout"));
    reported(&instance, "f", 1);
    // More than may follow at once: each that ends has to give its place back.
    for _ in 0..8 {
        let mut children: Vec<Child> = (0..12)
            .map(|_| {
                let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
                command.arg("--run").arg(instance.run_dir()).args(["logs", "-f", "f"]);
                command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run kiln")
            })
            .collect();
        for child in &mut children {
            // As `| head -1` does: one line, and the pipe is closed, while nothing more is printed.
            let mut first = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
            assert!(first.starts_with("INIT_START "), "{first:?}");
        }
        for mut child in children {
            let mut status = None;
            eventually("kiln ends", || {
                status = child.try_wait().unwrap();
                status.is_some()
            });
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            assert_eq!((status.unwrap().code(), said.as_str()), (Some(0), ""));
        }
    }
}

/// They hold nothing up, neither the drain nor the next server.
#[test]
fn followers_do_not_hold_up_a_stop() {
    if !host::ready() {
        return;
    }
    let mut instance = Instance::start();
    instance.create_probe("f", json!({}));
    instance.call("f", &print("hello", "stdout"));
    let followers: Vec<_> = (0..5).map(|_| Follower::start(&instance, &["f"])).collect();
    followers.iter().for_each(|follower| follower.sees("hello"));
    let begin = std::time::Instant::now();
    assert!(instance.stop().success());
    assert!(begin.elapsed().as_secs() < 10, "drain_s is 30: {:?}", begin.elapsed());
}
