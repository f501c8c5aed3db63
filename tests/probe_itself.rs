//! The probe does what it says: what other tests conclude from it is worth as much as this file.
//!
//! It runs here as a plain process against a Runtime API of a few lines, which hands out one event at a time.

#[path = "probe/built.rs"]
mod built;

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use std::{fs, thread};

use built::built_probe;
use serde_json::{Value, json};

/// No answer takes longer, or the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn an_event_is_echoed_byte_for_byte() {
    let function = Function::start("ok");
    let odd = br#"{ "do" : "echo",  "x":1.50, "s":"\u00e9" }"#;
    assert_eq!(function.invoke_bytes(odd).body, odd);
}

#[test]
fn globals_live_as_long_as_the_process_and_the_counter_runs() {
    let function = Function::start("spin:20");
    let (first, count) = (function.invoke(json!({"do": "global"})), function.invoke(json!({"do": "count"})));
    let (second, later) =
        (function.invoke(json!({"do": "global"})), function.invoke(json!({"steps": [{"sleep": 50}, {"do": "count"}]})));
    assert_eq!((&first["invocations"], &second["invocations"]), (&json!(1), &json!(3)));
    assert_eq!((&first["pid"], &first["start"]), (&second["pid"], &second["start"]));
    assert!(first["init_iterations"].as_u64() > Some(1000));
    assert!(later[1]["counter"].as_u64() >= count["counter"].as_u64().map(|n| n + 10), "{count} then {later}");
}

#[test]
fn memory_is_touched_or_held_as_told() {
    let function = Function::start("ok");
    function.invoke(json!({"do": "count"})); // by now it is the probe, no longer the shell
    let before = function.status_kib("VmRSS");
    // The kernel counts in batches for each CPU, so that a number may be out by some hundred KiB.
    let grown = |name: &str| (function.status_kib(name) + 1024).saturating_sub(before) >> 10;
    function.invoke(json!({"touch_mib": 60}));
    assert!(grown("VmHWM") >= 60);
    assert!(grown("VmRSS") < 30, "given back");
    function.invoke(json!({"hold_mib": 40}));
    assert_eq!(function.invoke(json!({"do": "hold_mib", "mib": 10}))["held_mib"], 50);
    assert!(grown("VmRSS") >= 50);
    let shared = function.invoke(json!({"children_mib": [5, 6, 7, 8]}));
    assert_eq!(shared, json!({"all_at_once": true, "ends": ["exit 0", "exit 0", "exit 0", "exit 0"]}));
}

#[test]
fn limits_are_reached_and_told() {
    let function = Function::start("ok");
    assert_eq!(function.invoke(json!({"threads": 20}))["started"], 20);
    assert_eq!(function.invoke(json!({"processes": 5}))["started"], 5);
    // `ulimit -n` of the starting shell, see Function::start.
    let opened = function.invoke(json!({"fds": 100}));
    assert_eq!(opened["error"], "EMFILE");
    assert!(opened["opened"].as_u64() < Some(64));
    assert_eq!(function.invoke(json!({"fds": 0}))["opened"], 0);
    assert_eq!(function.invoke_bytes(br#"{"respond_bytes": 65537}"#).body.len(), 65_537);
    assert_eq!(function.invoke(json!({"connect": "127.0.0.1:1"}))["error"], "ECONNREFUSED");
    assert_eq!(function.invoke(json!({"read": "/no/such/file"}))["error"], "ENOENT");
}

#[test]
fn a_daemon_outlives_its_function() {
    let function = Function::start("ok");
    let pid = function.invoke(json!({"do": "daemon"}))["pid"].as_i64().expect("a pid");
    drop(function);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the daemon lives");
    // It may not have come to its sleep yet.
    assert!(["(probe) S", "(probe) R"].iter().any(|state| stat.contains(state)), "{stat}");
    // SAFETY: signals the process that this test has made, which only this line ends.
    assert_eq!(unsafe { libc::kill(pid as i32, libc::SIGKILL) }, 0);
}

#[test]
fn an_error_and_an_unknown_wish_are_posted_as_errors() {
    let function = Function::start("ok");
    let failed = function.invoke_bytes(br#"{"do": "error", "type": "Some.Kind", "message": "why"}"#);
    assert!(failed.path.ends_with("/error"), "{}", failed.path);
    let body: Value = serde_json::from_slice(&failed.body).unwrap();
    assert_eq!((&body["errorType"], &body["errorMessage"]), (&json!("Some.Kind"), &json!("why")));
    assert!(function.invoke_bytes(br#"{"do": "what?"}"#).path.ends_with("/error"));
}

#[test]
fn it_ends_as_told() {
    let end = |event: Value| {
        let function = Function::start("ok");
        function.hand_out(event.to_string().as_bytes());
        function.end()
    };
    assert_eq!(end(json!({"exit": 7})).code(), Some(7));
    assert_eq!(end(json!({"signal": libc::SIGSEGV})).signal(), Some(libc::SIGSEGV));
    assert_eq!(end(json!({"do": "signal", "n": libc::SIGKILL})).signal(), Some(libc::SIGKILL));
}

#[test]
fn its_init_goes_as_told() {
    assert_eq!(Function::start("exit:3").end().code(), Some(3));
    assert_eq!(Function::start("signal:11").end().signal(), Some(libc::SIGSEGV));
    let function = Function::start("error");
    assert!(function.answer().path.ends_with("/runtime/init/error"));
    assert_eq!(function.end().code(), Some(1));
}

/// The probe as a function's bootstrap, killed when dropped.
struct Function {
    child: Option<Child>,
    queue: Arc<(Mutex<VecDeque<Vec<u8>>>, Condvar)>,
    answers: Receiver<Posted>,
}

/// What the function has posted.
struct Posted {
    path: String,
    body: Vec<u8>,
}

impl Function {
    fn start(init: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let queue = Arc::<(Mutex<VecDeque<Vec<u8>>>, Condvar)>::default();
        let (say, answers) = channel();
        let events = queue.clone();
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (events, say) = (events.clone(), say.clone());
                thread::spawn(move || serve(connection, &events, &say));
            }
        });
        let child = Command::new("bash")
            .args(["-c", "ulimit -n 64; exec \"$0\""])
            .arg(built_probe())
            .env("AWS_LAMBDA_RUNTIME_API", address)
            .env("PROBE_INIT", init)
            .stdin(Stdio::null())
            .spawn()
            .expect("start the probe");
        Self { child: Some(child), queue, answers }
    }

    fn hand_out(&self, event: &[u8]) {
        self.queue.0.lock().unwrap().push_back(event.to_vec());
        self.queue.1.notify_all();
    }

    #[track_caller]
    fn answer(&self) -> Posted {
        self.answers.recv_timeout(PATIENCE).expect("an answer")
    }

    #[track_caller]
    fn invoke_bytes(&self, event: &[u8]) -> Posted {
        self.hand_out(event);
        self.answer()
    }

    #[track_caller]
    fn invoke(&self, event: Value) -> Value {
        serde_json::from_slice(&self.invoke_bytes(event.to_string().as_bytes()).body).expect("JSON")
    }

    fn end(mut self) -> ExitStatus {
        self.child.take().expect("running").wait().expect("wait")
    }

    fn status_kib(&self, name: &str) -> u64 {
        let pid = self.child.as_ref().expect("running").id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        let line = status.lines().find(|line| line.starts_with(name)).expect("a line");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// One connection of the function: `next` waits for an event, everything else is accepted and passed to the test.
fn serve(connection: TcpStream, events: &(Mutex<VecDeque<Vec<u8>>>, Condvar), say: &Sender<Posted>) {
    let mut reader = BufReader::new(connection);
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            match reader.read_line(&mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) if line.trim().is_empty() => break,
                Ok(_) => lines.push(line.trim().to_owned()),
            }
        }
        let length = lines.iter().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("the body");
        let path = lines[0].split(' ').nth(1).expect("a path").to_owned();
        let (head, content) = if path.ends_with("/next") {
            let waiting = events.1.wait_while(events.0.lock().unwrap(), |queue| queue.is_empty()).unwrap();
            let event = { waiting }.pop_front().expect("not empty");
            ("200 OK\r\nLambda-Runtime-Aws-Request-Id: 1-2-3", event)
        } else {
            let _ = say.send(Posted { path, body });
            ("202 Accepted", b"{\"status\":\"OK\"}\n".to_vec())
        };
        let reply = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n", content.len());
        let _ = reader.get_mut().write_all(&[reply.as_bytes(), &content].concat());
    }
}
