//! Callback, promise and context semantics of the Node runtimes: the table in `node/rows.rs`, run against our bootstraps.
//!
//! No root and no container: the built Node binary runs the files of `rootfs/` over a stub of the Runtime API, which is
//! this file. `scripts/build-runtimes` makes the binary; without it the tests skip, loudly. KILN_TEST_NODE names another Node for
//! `nodejs8.10`. Of 6.10 and today's, only the rows fail that ask for what those changed themselves: `async` on the one, an
//! unhandled rejection on the other.

#[path = "node/rows.rs"]
mod rows;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, fs};

use rows::{Answer, Call, NODE_8, NODE_22, ROWS, Row, Time};
use serde_json::{Value, json};

/// Far below the ten minutes of the timers that would hold up a wrong bootstrap, far above any honest answer.
const PATIENCE: Duration = Duration::from_secs(30);
const REQUEST_ID: &str = "8f507cfc-8c1f-4a3b-9a5e-000000000001";

#[test]
fn every_row_holds_on_node_8() {
    every_row_holds(NODE_8);
}

#[test]
fn every_row_holds_on_node_22() {
    every_row_holds(NODE_22);
}

fn every_row_holds(runtime: &'static str) {
    let Some(node) = node(runtime) else { return };
    let rows: Vec<&Row> = ROWS.iter().filter(|row| row.is_of(runtime)).collect();
    assert!(rows.len() >= 30);
    let failed: Vec<String> = rows
        .iter()
        .filter_map(|row| run(&node, row).err().map(|why| format!("{}:\n    {why}", row.name)))
        .inspect(|failure| eprintln!("{failure}"))
        .collect();
    assert!(failed.is_empty(), "{} of {} rows failed", failed.len(), rows.len());
}

#[test]
fn six_megabytes_go_in_and_out() {
    for runtime in [NODE_8, NODE_22] {
        let Some(node) = node(runtime) else { return };
        six_megabytes(&node);
    }
}

fn six_megabytes(node: &Node) {
    // Characters of one to four bytes, so that parts of the body end inside of one.
    let event = format!("\"{}\"", "aé語🦀".repeat(6 * 1024 * 1024 / 10));
    let mut environment =
        Environment::start(node, &[("index.js", "exports.handler = async event => event;")], "index.handler").unwrap();
    environment.api.give(&event).unwrap();
    let answer = environment.api.receive().unwrap();
    assert!(answer.path.ends_with("/response"));
    assert!(answer.body == event.as_bytes(), "{} bytes came back for {}", answer.body.len(), event.len());
}

#[test]
fn client_context_and_identity_reach_the_handler() {
    for runtime in [NODE_8, NODE_22] {
        let Some(node) = node(runtime) else { return };
        client_context(&node);
    }
}

fn client_context(node: &Node) {
    let source = "exports.handler = async (event, context) => [context.clientContext, context.identity];";
    let mut environment = Environment::start(node, &[("index.js", source)], "index.handler").unwrap();
    let headers = "Lambda-Runtime-Client-Context: {\"custom\":{\"who\":\"Zoë\"}}\r\nLambda-Runtime-Cognito-Identity: {\"cognitoIdentityId\":\"i\"}\r\n";
    environment.api.give_with(headers, "{}").unwrap();
    let answer = environment.api.receive().unwrap();
    let seen: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(seen, json!([{"custom": {"who": "Zoë"}}, {"cognitoIdentityId": "i"}]));
}

/// Plays one row; the error says what was wrong.
fn run(node: &Node, row: &Row) -> Result<(), String> {
    let mut environment = Environment::start(node, row.files, row.handler)?;
    let mut expected_lines: Vec<&str> = Vec::new();
    // Init has no request yet.
    let in_init = row.calls.iter().any(|call| matches!(call.answer, Answer::InitError { .. }));
    for (number, call) in row.calls.iter().enumerate() {
        play(node.runtime, &mut environment, call).map_err(|why| format!("call {}: {why}", number + 1))?;
        expected_lines.extend(call.logged);
    }
    let log = environment.end();
    match expected_lines.iter().find(|part| !log.split('\n').any(|line| line.contains(**part) && stamped(line, in_init))) {
        Some(part) => Err(format!("no line of the log holds {part:?}:\n{log}")),
        None => Ok(()),
    }
}

fn play(runtime: &str, environment: &mut Environment, call: &Call) -> Result<(), String> {
    let asked = Instant::now();
    if !matches!(call.answer, Answer::InitError { .. }) {
        environment.api.give(call.event)?;
    }
    if let Answer::Exit(code) = call.answer {
        return match environment.api.receive() {
            Ok(request) => Err(format!("expected the process to exit, got {request:?}")),
            Err(_) => environment.exited_with(code),
        };
    }
    let request = environment.api.receive()?;
    if let Time::NotBefore { ms } = call.time {
        if asked.elapsed() < Duration::from_millis(ms) {
            return Err(format!("answered after {:?}, before the event loop was empty", asked.elapsed()));
        }
    }
    let said: Value = serde_json::from_slice(&request.body).map_err(|error| format!("{error} in {request:?}"))?;
    let (path, right) = match &call.answer {
        Answer::Result(json) => ("/response", said == serde_json::from_str::<Value>(json).map_err(|error| error.to_string())?),
        Answer::Error { message, kind } => ("/error", rows::is_error(runtime, &said, message, *kind)),
        Answer::LastError { message, kind, .. } => ("/error", rows::is_error(runtime, &said, message, Some(kind))),
        Answer::InitError { holds, kind } => {
            ("/init/error", said["errorMessage"].as_str().is_some_and(|text| text.contains(holds)) && said["errorType"] == *kind)
        }
        Answer::Exit(_) => unreachable!("returned above"),
    };
    if !right || !request.path.ends_with(path) {
        return Err(format!("expected an answer to …{path}, got {request:?}"));
    }
    match call.answer {
        Answer::LastError { code, .. } => environment.exited_with(code),
        Answer::InitError { .. } => environment.exited_with(rows::init_exit(runtime)),
        _ => Ok(()),
    }
}

/// `<ISO time>\t<request id>\t…`, as Lambda's lines begin; before the first request the id is undefined.
fn stamped(line: &str, in_init: bool) -> bool {
    let mut parts = line.split('\t');
    let time = parts.next().is_some_and(|time| time.len() == 24 && time.ends_with('Z'));
    time && parts.next() == Some(if in_init { "undefined" } else { REQUEST_ID })
}

/// The bootstrap at work, and what it writes.
struct Environment {
    process: Child,
    api: Api,
    log: Option<JoinHandle<String>>,
    _task: tempfile::TempDir,
}

/// A built Node, and the runtime's files of `rootfs/` laid out as in its tree.
struct Node {
    runtime: &'static str,
    program: PathBuf,
    files: tempfile::TempDir,
}

impl Environment {
    fn start(node: &Node, files: &[(&str, &str)], handler: &str) -> Result<Self, String> {
        let task = tempfile::tempdir().map_err(|error| error.to_string())?;
        for (name, text) in files {
            let path = task.path().join(name);
            fs::create_dir_all(path.parent().ok_or("a file has no directory")?).map_err(|error| error.to_string())?;
            fs::write(path, text).map_err(|error| error.to_string())?;
        }
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
        let mut process = Command::new(&node.program)
            .args(["--expose-gc", "--max-semi-space-size=6", "--max-old-space-size=115"])
            .arg(node.files.path().join("bootstrap.js"))
            .current_dir(&task)
            .env_clear()
            .env("AWS_LAMBDA_RUNTIME_API", listener.local_addr().map_err(|error| error.to_string())?.to_string())
            .env("_HANDLER", handler)
            .env("LAMBDA_TASK_ROOT", task.path())
            .env("AWS_LAMBDA_FUNCTION_NAME", "tutorial")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128")
            .env("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/tutorial")
            .env("AWS_LAMBDA_LOG_STREAM_NAME", "2018/11/29/[$LATEST]0123456789abcdef0123456789abcdef")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("start {}: {error}", node.program.display()))?;
        let mut output = process.stdout.take().ok_or("no pipe")?;
        let log = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ended = output.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        Ok(Self { process, api: Api { listener, connection: None }, log: Some(log), _task: task })
    }

    /// Awaits the exit; what hangs instead is found by the connection, which ends with the process.
    fn exited_with(&mut self, code: i32) -> Result<(), String> {
        if let Ok(request) = self.api.receive() {
            return Err(format!("expected the process to exit, got {request:?}"));
        }
        // Closed, or silent for longer than anybody's patience.
        match self.process.try_wait() {
            Ok(Some(status)) if status.code() == Some(code) => Ok(()),
            Ok(None) => {
                let _gone = self.api.connection.take();
                let status = self.process.wait().map_err(|error| error.to_string())?;
                if status.code() == Some(code) { Ok(()) } else { Err(format!("ended with {status}, not with {code}")) }
            }
            other => Err(format!("ended with {other:?}, not with {code}")),
        }
    }

    fn end(&mut self) -> String {
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
        self.log.take().and_then(|log| log.join().ok()).unwrap_or_default()
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        self.end();
    }
}

/// The server's side of the Runtime API, one connection, one request at a time.
struct Api {
    listener: TcpListener,
    connection: Option<BufReader<TcpStream>>,
}

struct Request {
    method: String,
    path: String,
    body: Vec<u8>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.method, self.path, String::from_utf8_lossy(&self.body[..self.body.len().min(2000)]))
    }
}

impl Api {
    fn give(&mut self, event: &str) -> Result<(), String> {
        self.give_with("", event)
    }

    /// Waits for `next`, answers it.
    fn give_with(&mut self, headers: &str, event: &str) -> Result<(), String> {
        let request = self.read()?;
        if request.method != "GET" || request.path != "/2018-06-01/runtime/invocation/next" {
            return Err(format!("expected next, got {request:?}"));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?;
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{headers}\
             Lambda-Runtime-Aws-Request-Id: {REQUEST_ID}\r\nLambda-Runtime-Deadline-Ms: {}\r\n\
             Lambda-Runtime-Invoked-Function-Arn: arn:aws:lambda:us-east-1:000000000000:function:tutorial\r\n\
             Lambda-Runtime-Trace-Id: Root=1-5bf0a4e5-000000000000000000000000;Parent=0000000000000000;Sampled=0\r\n\r\n",
            event.len(),
            now.as_millis() + 3000
        );
        self.write(&[head.as_bytes(), event.as_bytes()].concat())
    }

    /// Waits for what the bootstrap posts, says 202.
    fn receive(&mut self) -> Result<Request, String> {
        let request = self.read()?;
        let body = "{\"status\":\"OK\"}\n";
        self.write(format!("HTTP/1.1 202 Accepted\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes())?;
        Ok(request)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        let connection = self.connection.as_mut().ok_or("no connection")?;
        connection.get_mut().write_all(bytes).map_err(|error| format!("write: {error}"))
    }

    fn read(&mut self) -> Result<Request, String> {
        if self.connection.is_none() {
            self.connection = Some(BufReader::new(accept(&self.listener)?));
        }
        let connection = self.connection.as_mut().ok_or("no connection")?;
        read_request(connection).map_err(|error| format!("the process asked for nothing: {error}"))
    }
}

fn accept(listener: &TcpListener) -> Result<TcpStream, String> {
    let fail = |error: std::io::Error| error.to_string();
    let mut poll = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(listener), nix::poll::PollFlags::POLLIN)];
    let ready = nix::poll::poll(&mut poll, 30_000u16).map_err(|errno| errno.to_string())?;
    if ready == 0 {
        return Err("the process never connected".into());
    }
    let stream = listener.accept().map_err(fail)?.0;
    stream.set_nodelay(true).map_err(fail)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
    Ok(stream)
}

fn read_request(connection: &mut BufReader<TcpStream>) -> std::io::Result<Request> {
    let bad = |what: String| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
    let mut first = String::new();
    if connection.read_line(&mut first)? == 0 {
        return Err(bad("the connection is closed".into()));
    }
    let mut words = first.split_whitespace().map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Err(bad(first)) };
    let mut length = 0;
    loop {
        let mut line = String::new();
        connection.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            None => break,
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().map_err(|_| bad(line.clone()))?;
            }
            Some(_) => {}
        }
    }
    let mut body = vec![0; length];
    connection.read_exact(&mut body)?;
    Ok(Request { method, path, body })
}

/// `None` prints why these tests do not run. With KILN_TESTS_MUST_RUN=1 (set by scripts/test) it panics instead.
fn node(runtime: &'static str) -> Option<Node> {
    let named = env::var_os("KILN_TEST_NODE").filter(|_| runtime == NODE_8).map(PathBuf::from);
    let Some(program) = named.or_else(|| built_node(&runtimes_dir(), runtime)) else {
        let why =
            format!("no {runtime} in {}: run scripts/build-runtimes --runtimes-dir target/runtimes", runtimes_dir().display());
        assert!(env::var_os("KILN_TESTS_MUST_RUN").is_none(), "{why}");
        eprintln!("SKIP: {why}");
        return None;
    };
    let rootfs = Path::new(env!("CARGO_MANIFEST_DIR")).join("rootfs");
    let files = tempfile::tempdir().expect("make a directory for the runtime's files");
    for file in [rootfs.join(runtime).join("bootstrap.js"), rootfs.join("node/client.js")] {
        fs::copy(&file, files.path().join(file.file_name().expect("a file's name"))).expect("copy a file of the runtime");
    }
    Some(Node { runtime, program, files })
}

fn runtimes_dir() -> PathBuf {
    env::var_os("KILN_TEST_RUNTIMES").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/runtimes"), PathBuf::from)
}

/// Through recipe and set, as the launcher finds it.
fn built_node(runtimes_dir: &Path, runtime: &str) -> Option<PathBuf> {
    let name = kiln::runtime::RuntimeName::parse(runtime).ok()?;
    let recipe = kiln::runtime::Recipe::read(runtimes_dir, &name).ok()??;
    let set = fs::read_to_string(runtimes_dir.join("sets").join(recipe.tree.to_string())).ok()?;
    let top = set.lines().next()?;
    Some(runtimes_dir.join("trees").join(top).join("var/lang/bin/node")).filter(|node| node.is_file())
}
