//! One event, one behaviour.
//!
//! An event is `{"do": WHAT, …}`; where a behaviour has one value, `{"WHAT": VALUE}` is enough (`{"touch_mib": 200}`,
//! `{"exit": 7}`). `{"steps": [event, …]}` does several and answers with a list. Whoever adds one adds it to `act`.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, exit};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, process, thread};

use serde_json::{Value, json};

use crate::client::{Invocation, RuntimeApi};
use crate::{TICKS, heavy, hostile, marked, tell};

/// What lives as long as the runtime process: a function's globals.
pub struct Function {
    start: String,
    init_iterations: u64,
    invocations: u64,
    held: Vec<heavy::Pages>,
    open: Vec<File>,
    listening: Vec<TcpListener>,
    last_report: Value,
}

/// What goes to the Runtime API when a behaviour is done.
pub enum Answer {
    Json(Value),
    Bytes(Vec<u8>),
    Error {
        kind: String,
        message: String,
    },
    /// Hostile cases answer themselves; what they saw is logged and kept for `report`.
    Given(Value),
}

impl Function {
    pub fn new(init_iterations: u64) -> Self {
        let start = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default().trim().to_owned();
        Self {
            start,
            init_iterations,
            invocations: 0,
            held: Vec::new(),
            open: Vec::new(),
            listening: Vec::new(),
            last_report: Value::Null,
        }
    }

    pub fn invoke(&mut self, api: &mut RuntimeApi, invocation: &Invocation) {
        self.invocations += 1;
        let event: Value = serde_json::from_slice(&invocation.event).unwrap_or(Value::Null);
        let answered = match self.act(api, invocation, &event) {
            Answer::Json(value) => api.respond(&invocation.id, value.to_string().as_bytes()),
            Answer::Bytes(bytes) => api.respond(&invocation.id, &bytes),
            Answer::Error { kind, message } => api.error(&invocation.id, &kind, &message),
            Answer::Given(report) => {
                println!("probe: {report}");
                self.last_report = report;
                Ok(202)
            }
        };
        if !matches!(answered, Ok(202)) {
            eprintln!("probe: the answer was answered {answered:?}");
            self.last_report = json!({ "answer": format!("{answered:?}") });
        }
        match word(&event) {
            "never_next" => hang(),
            "late_print" => println!("{}", text(&event, "text", "late")),
            _ => {}
        }
    }

    fn act(&mut self, api: &mut RuntimeApi, invocation: &Invocation, event: &Value) -> Answer {
        let what = word(event);
        let value = |or: u64| {
            event[what].as_u64().or(event["n"].as_u64()).or(event["ms"].as_u64()).or(event["mib"].as_u64()).unwrap_or(or)
        };
        // What is touched and freed at once, nobody who looks every 10 ms can have seen.
        let held = Duration::from_millis(event["hold_ms"].as_u64().unwrap_or(0));
        let done = match what {
            "" | "echo" => return Answer::Bytes(invocation.event.clone()),
            "respond_bytes" => return Answer::Bytes(json_string_of(value(2) as usize)),
            "respond_text" => return Answer::Bytes(text(event, "respond_text", "").as_bytes().to_vec()),
            "error" => {
                let kind = text(event, "type", "Probe.Error").to_owned();
                return Answer::Error { kind, message: text(event, "message", "the probe was told to fail").to_owned() };
            }
            "hostile" => return hostile::case(api, &invocation.id, event),
            "steps" => {
                let steps = event["steps"].as_array().cloned().unwrap_or_default();
                return Answer::Json(steps.iter().map(|step| self.step(api, invocation, step)).collect());
            }
            "marked" => {
                let began = marked::begin(&self.start);
                let steps = event["steps"].as_array().cloned().unwrap_or_default();
                let done: Value = steps.iter().map(|step| self.step(api, invocation, step)).collect();
                let seen = marked::end(event, began, &self.start, self.invocations, done);
                return match event["fail"].as_bool() {
                    Some(true) => Answer::Error { kind: "Load.Error".into(), message: seen.to_string() },
                    _ => Answer::Json(seen),
                };
            }
            "report" => self.last_report.clone(),
            "tell" => tell::everything(),
            "syscalls" => syscalls_in_a_process_of_its_own(),
            "oom_score_adj" => {
                let file = "/proc/self/oom_score_adj";
                let found = fs::read_to_string(file).unwrap_or_default();
                json!({ "found": found.trim(), "refused": fs::write(file, "0").err().map(|error| error.to_string()) })
            }
            "env" => env::vars().collect::<BTreeMap<_, _>>().into_iter().collect(),
            "headers" => invocation.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), json!(value))).collect(),
            "context" => context(invocation),
            "native" => native(text(event, "library", "/var/task/answer.so")),
            // Of a thread that the one who answers does not know of.
            "unhandled" => {
                thread::spawn(|| process::abort());
                hang()
            }
            "count" => json!({ "counter": TICKS.load(Ordering::Relaxed) }),
            "global" => json!({
                "invocations": self.invocations, "pid": process::id(), "start": self.start, "init_iterations": self.init_iterations,
            }),
            "sleep" => {
                thread::sleep(Duration::from_millis(value(1000)));
                json!({ "slept_ms": value(1000) })
            }
            // Until somebody else has made this file.
            "until" => {
                while !std::path::Path::new(text(event, "until", "")).exists() {
                    thread::sleep(Duration::from_millis(5));
                }
                json!({ "saw": text(event, "until", "") })
            }
            "spin" => {
                let begin = Instant::now();
                let iterations = heavy::spin(Duration::from_millis(value(1000)));
                json!({ "iterations": iterations, "took_ms": begin.elapsed().as_millis() as u64 })
            }
            "touch_mib" => told(heavy::Pages::touch(value(1) as usize).map(|_pages| {
                thread::sleep(held);
                json!({ "touched_mib": value(1) })
            })),
            "hold_mib" => told(heavy::Pages::touch(value(1) as usize).map(|pages| {
                self.held.push(pages);
                json!({ "held_mib": self.held.iter().map(heavy::Pages::mib).sum::<usize>() })
            })),
            "children_mib" => {
                let each: Vec<usize> = numbers(&event["children_mib"]).or_else(|| numbers(&event["each"])).unwrap_or_default();
                told(heavy::children(&each, held))
            }
            "fill_tmp_mib" => heavy::fill_tmp(value(1)),
            "tmp_files" => heavy::make_tmp_files(value(1)),
            "exit" => exit(value(0) as i32),
            "signal" => heavy::die_by(value(9) as i32),
            "print" | "log" => told(print(event)),
            "print_ms" => told(print_for(Duration::from_millis(value(100)))),
            "daemon" => told(heavy::daemon().map(|pid| json!({ "pid": pid }))),
            "threads" => heavy::threads(value(1) as usize),
            "processes" => heavy::processes(value(1) as usize),
            "fds" => {
                self.open.clear();
                self.open_descriptors(value(1))
            }
            "leak_fds" => {
                let opened = self.open_descriptors(value(1));
                // But for some, by which it can still work.
                if opened["error"].is_string() {
                    self.open.truncate(self.open.len().saturating_sub(8));
                }
                opened
            }
            "listen" => self.listen(event),
            "connect" => connect(text(event, "connect", text(event, "to", "127.0.0.1:9001"))),
            "read" => {
                told(fs::read(text(event, "read", text(event, "path", ""))).map(|bytes| json!(String::from_utf8_lossy(&bytes))))
            }
            "write" => {
                let path = text(event, "write", text(event, "path", ""));
                told(fs::write(path, text(event, "text", "")).map(|()| json!({ "wrote": path })))
            }
            "list" => told(list(text(event, "list", text(event, "path", "/tmp")))),
            "never_next" | "late_print" => json!({ "then": what }),
            unknown => return Answer::Error { kind: "Probe.Unknown".into(), message: format!("the probe has no {unknown:?}") },
        };
        Answer::Json(done)
    }

    /// A step's answer as a value in the list of all.
    fn step(&mut self, api: &mut RuntimeApi, invocation: &Invocation, step: &Value) -> Value {
        match self.act(api, invocation, step) {
            Answer::Json(value) | Answer::Given(value) => value,
            Answer::Bytes(bytes) => json!(String::from_utf8_lossy(&bytes)),
            Answer::Error { kind, message } => json!({ "error": kind, "message": message }),
        }
    }

    /// Kept open, as a leak would.
    fn open_descriptors(&mut self, count: u64) -> Value {
        for _ in 0..count {
            match File::open("/dev/null") {
                Ok(file) => self.open.push(file),
                Err(error) => return json!({ "opened": self.open.len(), "error": tell::errno(&error) }),
            }
        }
        json!({ "opened": self.open.len() })
    }

    fn listen(&mut self, event: &Value) -> Value {
        let port = event["listen"].as_u64().or(event["port"].as_u64()).unwrap_or(8080);
        let address = text(event, "address", "127.0.0.1");
        told(TcpListener::bind(format!("{address}:{port}")).map(|listener| {
            self.listening.push(listener);
            json!({ "listening": port })
        }))
    }
}

/// What a client's context object would tell, from where clients take it.
fn context(invocation: &Invocation) -> Value {
    let header =
        |name: &str| invocation.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str());
    let var = |name: &str| env::var(name).unwrap_or_default();
    let deadline: i128 = header("Lambda-Runtime-Deadline-Ms").and_then(|ms| ms.parse().ok()).unwrap_or(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i128);
    let client: Option<Value> = header("Lambda-Runtime-Client-Context").and_then(|text| serde_json::from_str(text).ok());
    json!({
        "name": var("AWS_LAMBDA_FUNCTION_NAME"), "version": var("AWS_LAMBDA_FUNCTION_VERSION"),
        "memory": var("AWS_LAMBDA_FUNCTION_MEMORY_SIZE"), "group": var("AWS_LAMBDA_LOG_GROUP_NAME"),
        "stream": var("AWS_LAMBDA_LOG_STREAM_NAME"), "arn": header("Lambda-Runtime-Invoked-Function-Arn"),
        "id": invocation.id, "left": (deadline - now) as i64, "client": client.map(|client| client["custom"].clone()),
    })
}

/// Loads a shared library that the function brought, and asks it.
fn native(library: &str) -> Value {
    let Ok(library) = CString::new(library) else { return json!({ "error": "a NUL in the path" }) };
    // SAFETY: a library of the test's own, whose one function has this type.
    unsafe {
        let loaded = libc::dlopen(library.as_ptr(), libc::RTLD_NOW);
        if loaded.is_null() {
            return json!({ "error": CStr::from_ptr(libc::dlerror()).to_string_lossy() });
        }
        match libc::dlsym(loaded, c"kiln_answer".as_ptr()) {
            function if function.is_null() => json!({ "error": "it has no kiln_answer" }),
            function => json!(std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> i32>(function)()),
        }
    }
}

/// What an event asks for: its `do`, else its only (or first) key.
fn word(event: &Value) -> &str {
    let first = || event.as_object().and_then(|object| object.keys().next()).map(String::as_str);
    event["do"].as_str().or_else(first).unwrap_or("")
}

fn text<'a>(event: &'a Value, key: &str, or: &'a str) -> &'a str {
    event[key].as_str().unwrap_or(or)
}

fn numbers(value: &Value) -> Option<Vec<usize>> {
    value.as_array().map(|list| list.iter().filter_map(Value::as_u64).map(|n| n as usize).collect())
}

/// A failed operation is an answer too: `{"error": "ENOSPC"}`.
fn told(result: io::Result<Value>) -> Value {
    result.unwrap_or_else(|error| json!({ "error": tell::errno(&error) }))
}

/// A JSON text of exactly so many bytes.
fn json_string_of(bytes: usize) -> Vec<u8> {
    let mut text = vec![b'x'; bytes.max(2)];
    text[0] = b'"';
    *text.last_mut().expect("at least two bytes") = b'"';
    text
}

/// A single-threaded process, so that it can wait for its children by SIGCHLD.
fn syscalls_in_a_process_of_its_own() -> Value {
    let output = match Command::new("/proc/self/exe").arg("syscalls").output() {
        Ok(output) => output,
        Err(error) => return json!({ "error": tell::errno(&error) }),
    };
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| json!({ "error": error.to_string(), "status": output.status.to_string() }))
}

fn print(event: &Value) -> io::Result<Value> {
    let line = format!("{}\n", text(event, "text", "probe"));
    let times = event["times"].as_u64().unwrap_or(1);
    for _ in 0..times {
        match text(event, "to", "stdout") {
            "stderr" => io::stderr().write_all(line.as_bytes())?,
            _ => io::stdout().write_all(line.as_bytes())?,
        }
    }
    io::stdout().flush()?;
    Ok(json!({ "printed": times }))
}

/// Without end, for so long.
fn print_for(time: Duration) -> io::Result<Value> {
    let (line, end) = ("probe: on and on and on\n".repeat(40), Instant::now() + time);
    let mut printed = 0;
    while Instant::now() < end {
        io::stdout().write_all(line.as_bytes())?;
        printed += line.len();
    }
    io::stdout().flush()?;
    Ok(json!({ "printed_bytes": printed }))
}

fn connect(to: &str) -> Value {
    let Ok(address) = to.parse::<SocketAddr>() else { return json!({ "error": "not an address" }) };
    told(TcpStream::connect_timeout(&address, Duration::from_secs(2)).map(|_| json!({ "connected": to })))
}

fn list(path: &str) -> io::Result<Value> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(json!(names))
}

pub fn hang() -> ! {
    loop {
        thread::park();
    }
}
