//! The same behaviours of every runtime: one table of what functions rely upon, asked of each in a container.
//!
//! [`ROWS`] is the table, [`RUNTIMES`] is who is asked. A runtime's function understands `{"do": …}` with the words that the rows use
//! (`behaviours/<language>/`, and the probe for `provided`); what may differ between runtimes (the shape of an error, the form of a
//! line, what becomes of an exception that nobody catches) stands with the runtime, and nowhere else. To add one: a line in
//! [`RUNTIMES`], a folder with its handler, a test that calls [`behaves`].
//!
//! Needs what `tests/engine` needs, and a C compiler for the native dependency.

#[path = "engine/host/mod.rs"]
#[allow(dead_code)] // serves several test programs; each uses its part
mod host;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use base64::Engine as _;
use host::{Answer, Instance, code};
use serde_json::{Value, json};

type Files = Vec<(&'static str, u32, Vec<u8>)>;

/// One runtime, its function, and what is its own.
struct Runtime {
    /// A language where several are deployed on one.
    name: &'static str,
    handler: &'static str,
    files: fn() -> Files,
    /// Keys of an error's payload, in order, and the type that its function throws.
    error: (&'static [&'static str], &'static str),
    unhandled: Unhandled,
    /// The error of an init that throws: its type, and a part of what is logged.
    init_error: (&'static str, &'static str),
    /// A line of its log function (`log`), around text and request id.
    line: fn(text: &str, id: &str) -> Vec<String>,
    /// AWS_EXECUTION_ENV; `None` where Lambda sets none.
    execution_env: Option<&'static str>,
}

/// What becomes of an exception that no handler can catch.
enum Unhandled {
    /// Reported as the invocation's error, then the process ends.
    Reported,
    /// Printed; the invocation goes on and answers "went on".
    Printed,
    /// The process dies by a signal, with these words.
    Dies(&'static str),
}

impl Runtime {
    /// What the function is deployed on.
    fn on(&self) -> &'static str {
        if matches!(self.name, "rust" | "go") { "provided.al2023" } else { self.name }
    }
}

const RUNTIMES: &[Runtime] = &[
    Runtime {
        name: "nodejs8.10",
        handler: "index.handler",
        files: node_files,
        error: (&["errorMessage", "errorType", "stackTrace"], "RangeError"),
        unhandled: Unhandled::Reported,
        init_error: ("RangeError", r#"{"errorMessage":"init was told to fail","errorType":"RangeError""#),
        line: |text, id| vec![format!("\t{id}\t{text}")],
        execution_env: Some("AWS_Lambda_nodejs8.10"),
    },
    Runtime {
        name: "nodejs22.x",
        handler: "index.handler",
        files: node_files,
        error: (&["errorType", "errorMessage", "trace"], "RangeError"),
        unhandled: Unhandled::Reported,
        init_error: (
            "RangeError",
            "\tERROR\tInit Error \t{\"errorType\":\"RangeError\",\"errorMessage\":\"init was told to fail\"",
        ),
        line: |text, id| vec![format!("\t{id}\tINFO\t{text}")],
        execution_env: Some("AWS_Lambda_nodejs22.x"),
    },
    Runtime {
        name: "python3.13",
        handler: "index.handler",
        files: || with_answer(vec![("index.py", 0o644, source("python/index.py"))]),
        error: (&["errorMessage", "errorType", "requestId", "stackTrace"], "ValueError"),
        unhandled: Unhandled::Printed,
        init_error: ("ValueError", "[ERROR] ValueError: init was told to fail\rTraceback (most recent call last):\r"),
        line: |text, id| vec!["[WARNING]\t".into(), format!("Z\t{id}\t{text}")],
        execution_env: Some("AWS_Lambda_python3.13"),
    },
    Runtime {
        name: "provided.al2023",
        handler: "bootstrap",
        files: || with_answer(vec![("bootstrap", 0o755, code::probe_program())]),
        error: (&["errorMessage", "errorType", "stackTrace"], "RangeError"),
        unhandled: Unhandled::Dies("signal: aborted"),
        init_error: ("Probe.Init", "probe: fails its init, as it was told"),
        line: |text, _| vec![text.into()],
        execution_env: None,
    },
    // lambda_runtime and aws-lambda-go have no word for an init that fails: the process ends.
    Runtime {
        name: "rust",
        handler: "bootstrap",
        files: || vec![("bootstrap", 0o755, compiled("rust"))],
        error: (&["errorType", "errorMessage"], "RangeError"),
        unhandled: Unhandled::Printed,
        init_error: ("Runtime.ExitError", "init was told to fail"),
        line: |text, _| vec![text.into()],
        execution_env: None,
    },
    Runtime {
        name: "go",
        handler: "bootstrap",
        files: || vec![("bootstrap", 0o755, compiled("go"))],
        error: (&["errorMessage", "errorType"], "RangeError"),
        unhandled: Unhandled::Reported,
        init_error: ("Runtime.ExitError", "init was told to fail"),
        line: |text, _| vec![text.into()],
        execution_env: None,
    },
];

#[test]
fn nodejs_8_10_behaves() {
    behaves("nodejs8.10");
}

#[test]
fn nodejs_22_behaves() {
    behaves("nodejs22.x");
}

#[test]
fn python_3_13_behaves() {
    behaves("python3.13");
}

#[test]
fn provided_behaves() {
    behaves("provided.al2023");
}

#[test]
fn rust_behaves() {
    behaves("rust");
}

#[test]
fn go_behaves() {
    behaves("go");
}

/// lambda_runtime catches it: the caller hears of it, and the environment serves on.
#[test]
fn a_panic_in_rust_is_an_error_of_its_invocation() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create("f", "provided.al2023", "bootstrap", &code::zip(&[("bootstrap", 0o755, &compiled("rust"))]), json!({}));
    let answer = instance.invoke("f", &json!({ "do": "panic", "message": "no such thing" }));
    assert_eq!(answer.header("x-amz-function-error"), Some("Unhandled"), "{}", answer.text());
    let message = answer.json()["errorMessage"].as_str().unwrap_or_default().to_owned();
    assert!(message.contains("no such thing"), "{message}");
    assert!(answer.log().contains("panicked at"), "{}", answer.log());
    assert_eq!(instance.call("f", &json!({ "do": "global" })), json!({ "invocations": 2 }));
}

/// Asks every row of one runtime, and says all that failed.
fn behaves(name: &str) {
    if !host::ready() {
        return;
    }
    let runtime = RUNTIMES.iter().find(|runtime| runtime.name == name).expect("a runtime of the table");
    let instance = Instance::start();
    let files = (runtime.files)();
    let files: Vec<_> = files.iter().map(|(name, mode, bytes)| (*name, *mode, bytes.as_slice())).collect();
    let bench = Bench { runtime, instance: &instance, zip: code::zip(&files) };
    let mut failures = Vec::new();
    for (row, ask) in ROWS {
        if let Err(why) = ask(&bench) {
            failures.push(format!("{row}: {why}"));
        }
    }
    assert!(failures.is_empty(), "{} of {} rows on {name}:\n{}", failures.len(), ROWS.len(), failures.join("\n\n"));
}

type Asked = Result<(), String>;
type Row = (&'static str, fn(&Bench) -> Asked);

/// What a function relies upon → how it is asked.
const ROWS: &[Row] = &[
    ("an event comes back as it went", echo),
    ("unicode goes through unchanged", unicode),
    ("six megabytes go in and out", six_megabytes),
    ("a response may have 6291556 bytes, and not one more", largest_response),
    ("what the handler throws has the runtime's shape, and the environment serves on", handler_error),
    ("what nobody catches is named", unhandled),
    ("an init that throws is named, and its log shown", init_error),
    ("an invocation that takes too long is named", timeout),
    ("memory beyond the function's is named", out_of_memory),
    ("a process that exits is named", exit),
    ("a process that dies by a signal is named", signal),
    ("globals survive while the environment is warm", globals),
    ("/tmp survives while the environment is warm", tmp),
    ("each line belongs to its request", log_lines),
    ("the context tells about function and request", context),
    ("the caller's client context arrives", client_context),
    ("variables are the function's and the platform's", variables),
    ("reserved variables are refused", reserved_variables),
    ("a native library of the function's loads", native),
];

fn echo(bench: &Bench) -> Asked {
    let function = bench.function("echo", json!({}));
    let object = json!({ "do": "echo", "a": [1, 2.5, null, true], "b": {} });
    for event in [object, json!({}), json!([]), json!("text"), json!(null), json!(0)] {
        let answer = function.ask(&event)?;
        same("the answer", &answer, &event)?;
    }
    Ok(())
}

fn unicode(bench: &Bench) -> Asked {
    let event = json!({ "do": "echo", "text": "Ünïcödé żółw 語 🦀🐢 e\u{301} \u{0} \u{7f} \u{2028} \"\\/" });
    same("the answer", &bench.function("unicode", json!({})).ask(&event)?, &event)
}

fn six_megabytes(bench: &Bench) -> Asked {
    let function = bench.function("large", json!({ "MemorySize": 1792, "Timeout": 30 }));
    let event = format!(r#"{{"do":"echo","x":"{}"}}"#, "é".repeat((6_291_456 - 20) / 2));
    let answer = function.raw(event.as_bytes());
    let came: Value = serde_json::from_slice(&answer.body).map_err(|error| format!("{error}: {}", answer.text()))?;
    let went: Value = serde_json::from_str(&event).map_err(|error| error.to_string())?;
    check(answer.status == 200 && came == went, || format!("{} and {} bytes came back", answer.status, answer.body.len()))
}

fn largest_response(bench: &Bench) -> Asked {
    let function = bench.function("response", json!({ "MemorySize": 1792, "Timeout": 30 }));
    let respond = |n: u32| function.invoke(&json!({ "do": "respond_bytes", "n": n }));
    let answer = respond(6_291_556);
    check(answer.body.len() == 6_291_556, || {
        format!("{} bytes: {}", answer.body.len(), answer.text().chars().take(300).collect::<String>())
    })?;
    let text = r#"{"errorType":"Function.ResponseSizeTooLarge","errorMessage":"Response payload size exceeded maximum allowed payload size (6291556 bytes)."}"#;
    same_text("the answer", &respond(6_291_557).text(), text)?;
    function.ask(&json!({ "do": "echo" })).map(drop)
}

fn handler_error(bench: &Bench) -> Asked {
    let function = bench.function("error", json!({}));
    let (keys, kind) = bench.runtime.error;
    let event = json!({ "do": "error", "type": "RangeError", "message": "too far: ünï" });
    let answer = function.failed(&event)?;
    let body = answer.json();
    same_text("the payload's keys", &keys_of(&answer.text()).join(" "), &keys.join(" "))?;
    same_text("the type", body["errorType"].as_str().unwrap_or_default(), kind)?;
    same_text("the message", body["errorMessage"].as_str().unwrap_or_default(), "too far: ünï")?;
    // Compiled languages have none.
    if let [_, _, .., trace] = keys {
        let trace = body[*trace].as_array();
        check(trace.is_some_and(|trace| trace.iter().all(Value::is_string)), || format!("no trace in {body}"))?;
    }
    // The probe only says that it failed; the others' runtimes log what their function threw.
    if bench.runtime.execution_env.is_some() {
        check(answer.log().contains("too far: ünï"), || format!("nothing is logged of it:\n{}", answer.log()))?;
    }
    check(answer.report("Status").is_none(), || format!("the environment is well:\n{}", answer.log()))?;
    same("invocations so far", &function.ask(&json!({ "do": "global" }))?["invocations"], &json!(2))
}

fn unhandled(bench: &Bench) -> Asked {
    let function = bench.function("unhandled", json!({}));
    let event = json!({ "do": "unhandled", "message": "behind your back" });
    let (_, kind) = bench.runtime.error;
    match bench.runtime.unhandled {
        Unhandled::Reported => {
            let answer = function.failed(&event)?;
            same_text("the type", answer.json()["errorType"].as_str().unwrap_or_default(), kind)?;
            same_text("the message", answer.json()["errorMessage"].as_str().unwrap_or_default(), "behind your back")?;
            function.begins_anew()
        }
        Unhandled::Printed => {
            let answer = function.invoke(&event);
            same_text("the answer", &answer.text(), r#""went on""#)?;
            check(answer.log().contains("behind your back"), || format!("nothing is logged of it:\n{}", answer.log()))
        }
        Unhandled::Dies(how) => {
            function.exits(&event, how)?;
            function.begins_anew()
        }
    }
}

fn init_error(bench: &Bench) -> Asked {
    let function = bench.function("init", json!({ "Environment": { "Variables": { "PROBE_INIT": "error" } } }));
    let (kind, logged) = bench.runtime.init_error;
    let answer = function.failed(&json!({}))?;
    same_text("the type", answer.json()["errorType"].as_str().unwrap_or_default(), kind)?;
    let message = answer.json()["errorMessage"].as_str().unwrap_or_default().to_owned();
    let words = if kind == "Runtime.ExitError" { "Runtime exited with error: exit status 1" } else { "was told to fail" };
    check(message.contains(words), || message.clone())?;
    check(answer.log().contains(logged), || format!("no {logged:?} in\n{}", answer.log()))?;
    same_text("the REPORT's status", &answer.report("Status").unwrap_or_default(), "error")
}

fn timeout(bench: &Bench) -> Asked {
    let function = bench.function("timeout", json!({ "Timeout": 1 }));
    let answer = function.failed(&json!({ "do": "sleep", "ms": 30_000 }))?;
    let text = r#"{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: <id> Error: Task timed out after 1.00 seconds"}"#;
    same_text("the payload", &answer.text(), &text.replace("<id>", answer.request_id()))?;
    same_text("the REPORT's status", &answer.report("Status").unwrap_or_default(), "timeout")?;
    function.begins_anew()
}

fn out_of_memory(bench: &Bench) -> Asked {
    let function = bench.function("memory", json!({ "MemorySize": 192, "Timeout": 20 }));
    let answer = function.exits(&json!({ "do": "hold_mib", "n": 400 }), "signal: killed")?;
    same_text("the REPORT's error type", &answer.report("Error Type").unwrap_or_default(), "Runtime.OutOfMemory")?;
    same_text("Max Memory Used", &answer.report("Max Memory Used").unwrap_or_default(), "192 MB")?;
    function.begins_anew()
}

fn exit(bench: &Bench) -> Asked {
    let function = bench.function("exit", json!({}));
    function.exits(&json!({ "do": "exit", "n": 7 }), "exit status 7")?;
    function.begins_anew()
}

fn signal(bench: &Bench) -> Asked {
    let function = bench.function("signal", json!({}));
    function.exits(&json!({ "do": "signal", "n": 11 }), "signal: segmentation fault")?;
    function.begins_anew()
}

fn globals(bench: &Bench) -> Asked {
    let function = bench.function("globals", json!({}));
    for count in 1..=3 {
        same("invocations so far", &function.ask(&json!({ "do": "global" }))?["invocations"], &json!(count))?;
    }
    Ok(())
}

fn tmp(bench: &Bench) -> Asked {
    let function = bench.function("tmp", json!({}));
    function.ask(&json!({ "do": "write", "path": "/tmp/kept", "text": "for later" }))?;
    same("what was written", &function.ask(&json!({ "do": "read", "path": "/tmp/kept" }))?, &json!("for later"))
}

fn log_lines(bench: &Bench) -> Asked {
    let function = bench.function("log", json!({}));
    for number in 1..=2 {
        let text = format!("line of number {number}");
        let answer = function.invoke(&json!({ "do": "log", "text": text }));
        let (log, id) = (answer.log(), answer.request_id());
        let parts = (bench.runtime.line)(&text, id);
        let place = log.lines().position(|line| parts.iter().all(|part| line.contains(part)));
        let begins = |word: &str| log.lines().position(|line| line.starts_with(&format!("{word} RequestId: {id}")));
        let order = [begins("START"), place, begins("END"), begins("REPORT")];
        check(order.iter().all(Option::is_some) && order.is_sorted(), || format!("START, {parts:?}, END, REPORT in\n{log}"))?;
        check(log.matches("line of number").count() == 1, || format!("a line of another request in\n{log}"))?;
    }
    let answer = function.invoke(&json!({ "do": "print", "text": "raw words", "to": "stderr" }));
    check(answer.log().lines().any(|line| line == "raw words"), || format!("stderr is not in\n{}", answer.log()))
}

fn context(bench: &Bench) -> Asked {
    let function = bench.function("context", json!({ "MemorySize": 256, "Timeout": 20 }));
    let answer = function.invoke(&json!({ "do": "context" }));
    let told = answer.json();
    let name = function.name.as_str();
    let wanted = [
        ("name", json!(name)),
        ("version", json!("$LATEST")),
        ("arn", json!(format!("arn:aws:lambda:us-east-1:000000000000:function:{name}"))),
        ("memory", json!("256")),
        ("id", json!(answer.request_id())),
        ("group", json!(format!("/aws/lambda/{name}"))),
    ];
    for (field, wanted) in wanted {
        same(field, &told[field], &wanted)?;
    }
    let stream = told["stream"].as_str().unwrap_or_default();
    let (day, rest) = stream.split_once("[$LATEST]").unwrap_or_default();
    check(day.len() == 11 && rest.len() == 32 && rest.bytes().all(|b| b.is_ascii_hexdigit()), || {
        format!("the stream is {stream:?}")
    })?;
    let left = told["left"].as_i64().unwrap_or_default();
    check((15_000..=20_000).contains(&left), || format!("{left} ms are left of 20 s"))
}

fn client_context(bench: &Bench) -> Asked {
    let function = bench.function("client", json!({}));
    // As a phone sends it: the one in Rust takes no part of `client` without the others.
    let client = json!({
        "installation_id": "i", "app_title": "t", "app_version_name": "1.0", "app_version_code": "1", "app_package_name": "p",
    });
    let sent = json!({ "client": client, "custom": { "who": "Zoë", "n": "1" }, "env": { "locale": "de" } }).to_string();
    let header = base64::engine::general_purpose::STANDARD.encode(sent);
    let path = format!("/2015-03-31/functions/{}/invocations", function.name);
    let answer = bench.instance.api().request("POST", &path, &[("X-Amz-Client-Context", &header)], br#"{"do":"context"}"#);
    same("the custom part", &answer.json()["client"], &json!({ "who": "Zoë", "n": "1" }))?;
    // The next one has none.
    same("the next one's", &function.ask(&json!({ "do": "context" }))?["client"], &Value::Null)
}

fn variables(bench: &Bench) -> Asked {
    let settings = json!({ "Environment": { "Variables": { "MINE": "ünï =1", "LANG": "de_DE.UTF-8" } }, "MemorySize": 256 });
    let function = bench.function("vars", settings);
    let vars = function.ask(&json!({ "do": "env" }))?;
    let wanted = [
        ("MINE", json!("ünï =1")),
        ("LANG", json!("de_DE.UTF-8")),
        ("TZ", json!(":UTC")),
        ("_HANDLER", json!(bench.runtime.handler)),
        ("AWS_REGION", json!("us-east-1")),
        ("AWS_LAMBDA_FUNCTION_NAME", json!(function.name)),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", json!("256")),
        ("AWS_LAMBDA_RUNTIME_API", json!("127.0.0.1:9001")),
        ("LAMBDA_TASK_ROOT", json!("/var/task")),
        ("AWS_EXECUTION_ENV", json!(bench.runtime.execution_env)),
    ];
    for (name, wanted) in wanted {
        same(name, &vars[name], &wanted)?;
    }
    // The client sets it for each invocation; the probe is its own client and does not.
    let traced = vars["_X_AMZN_TRACE_ID"].as_str().is_some_and(|trace| trace.starts_with("Root=1-"));
    check(traced || bench.runtime.execution_env.is_none(), || format!("_X_AMZN_TRACE_ID is {}", vars["_X_AMZN_TRACE_ID"]))
}

fn reserved_variables(bench: &Bench) -> Asked {
    for name in ["AWS_REGION", "AWS_LAMBDA_RUNTIME_API", "LAMBDA_TASK_ROOT"] {
        let body = bench.request("reserved", json!({ "Environment": { "Variables": { name: "mine" } } }));
        let answer = bench.instance.api().request("POST", "/2015-03-31/functions", &[], body.to_string().as_bytes());
        same_text("the error", answer.header("x-amzn-errortype").unwrap_or_default(), "InvalidParameterValueException")?;
        check(answer.text().contains(name), || answer.text())?;
    }
    Ok(())
}

fn native(bench: &Bench) -> Asked {
    same("the library's answer", &bench.function("native", json!({})).ask(&json!({ "do": "native" }))?, &json!(42))
}

// ---- What is one language's own ------------------------------------------------------------------------------------------

/// As Lambda has them: the function's package, layers, the runtime, then Python's library.
#[test]
fn python_finds_modules_in_lambdas_order() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    let files: &[(&str, u32, &[u8])] = &[
        ("pkg/__init__.py", 0o644, b""),
        (
            "pkg/inner.py",
            0o644,
            b"import helper, sys\n\ndef handler(event, context):\n    return [helper.NAME, __name__, sys.path]\n",
        ),
        ("helper.py", 0o644, b"NAME = 'beside'\n"),
        ("extra.pth", 0o644, b"/var/task/vendored\n"),
        ("vendored/found.py", 0o644, b""),
        ("bad.py", 0o644, b"def handler(:\n"),
        ("absent.py", 0o644, b"import no_such_thing\n"),
    ];
    let zip = code::zip(files);
    let mut number = 0;
    let mut ask = |handler: &str, settings: Value| {
        number += 1;
        instance.create(&format!("f{number}"), "python3.13", handler, &zip, settings);
        instance.invoke(&format!("f{number}"), &json!({})).json()
    };
    for handler in ["pkg.inner.handler", "pkg/inner.handler"] {
        let told = ask(handler, json!({}));
        assert_eq!((&told[0], &told[1]), (&json!("beside"), &json!("pkg.inner")), "{told}");
        let path: Vec<&str> = told[2].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let wanted = ["/var/task", "/opt/python/lib/python3.13/site-packages", "/opt/python", "/var/runtime"];
        assert_eq!(path[..4], wanted);
        assert_eq!(path[4..6], ["/var/lang/lib/python313.zip", "/var/lang/lib/python3.13"]);
        assert_eq!(path.last(), Some(&"/var/task/vendored"), "a .pth file of the function's is read: {path:?}");
    }
    let own = ask("pkg.inner.handler", json!({ "Environment": { "Variables": { "PYTHONPATH": "/tmp/mine" } } }));
    assert_eq!(own[2].as_array().unwrap()[..3], [json!("/var/task"), json!("/var/runtime"), json!("/tmp/mine")], "{own}");
    let errors = [
        ("bad.handler", "Runtime.UserCodeSyntaxError", "Syntax error in module 'bad'"),
        ("absent.handler", "Runtime.ImportModuleError", "Unable to import module 'absent': No module named 'no_such_thing'"),
        ("helper.handler", "Runtime.HandlerNotFound", "Handler 'handler' missing on module 'helper'"),
        ("helper", "Runtime.MalformedHandlerName", "Bad handler 'helper': not enough values to unpack (expected 2, got 1)"),
    ];
    for (handler, kind, message) in errors {
        let told = ask(handler, json!({}));
        assert_eq!(told["errorType"], kind, "{told}");
        assert!(told["errorMessage"].as_str().unwrap().starts_with(message), "{told}");
    }
}

/// Where each language looks in layers, and what comes first: the function's own, then the directory that names the version.
#[test]
fn layers_are_found_where_each_language_looks() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    let layer: &[(&str, u32, &[u8])] = &[
        ("python/plain.py", 0o644, b"SAYS = 'plain'"),
        ("python/both.py", 0o644, b"SAYS = 'plain'"),
        ("python/own.py", 0o644, b"SAYS = 'layer'"),
        ("python/lib/python3.13/site-packages/both.py", 0o644, b"SAYS = 'of 3.13'"),
        ("nodejs/node_modules/plain/index.js", 0o644, b"exports.says = 'plain';"),
        ("nodejs/node_modules/both/index.js", 0o644, b"exports.says = 'plain';"),
        ("nodejs/node22/node_modules/both/index.js", 0o644, b"exports.says = 'of 22';"),
        ("nodejs/node_modules/own/index.js", 0o644, b"exports.says = 'layer';"),
        ("bin/tool", 0o755, b"#!/bin/sh\necho tool\n"),
        ("wrap", 0o755, b"#!/bin/sh\nWRAPPED=yes exec \"$@\"\n"),
    ];
    let body = json!({ "Content": { "ZipFile": code::base64(&code::zip(layer)) } }).to_string();
    let answer = instance.api().request("POST", "/2018-10-31/layers/shared/versions", &[], body.as_bytes());
    assert_eq!(answer.status, 201, "{}", answer.text());
    let settings = json!({
        "Timeout": 20, "Layers": [answer.json()["LayerVersionArn"]],
        "Environment": { "Variables": { "AWS_LAMBDA_EXEC_WRAPPER": "/opt/wrap" } },
    });

    let python: &[(&str, u32, &[u8])] = &[
        ("own.py", 0o644, b"SAYS = 'function'"),
        (
            "index.py",
            0o644,
            b"import both, os, own, plain, subprocess\ndef handler(event, context):\n    tool = subprocess.check_output(['tool'], text=True)\n    return [plain.SAYS, both.SAYS, own.SAYS, tool.strip(), os.environ['WRAPPED']]\n",
        ),
    ];
    instance.create("python", "python3.13", "index.handler", &code::zip(python), settings.clone());
    assert_eq!(instance.call("python", &json!({})), json!(["plain", "of 3.13", "function", "tool", "yes"]));

    let node: &[(&str, u32, &[u8])] = &[
        ("node_modules/own/index.js", 0o644, b"exports.says = 'function';"),
        (
            "index.js",
            0o644,
            b"const { execFileSync } = require('child_process'), says = ['plain', 'both', 'own'].map(name => require(name).says);\nexports.handler = async () => [...says, execFileSync('tool').toString().trim(), process.env.WRAPPED];",
        ),
    ];
    instance.create("node", "nodejs22.x", "index.handler", &code::zip(node), settings);
    assert_eq!(instance.call("node", &json!({})), json!(["plain", "of 22", "function", "tool", "yes"]));
}

/// NODE_OPTIONS are the customer's; NODE_PATH has Lambda's order unless they replace it.
#[test]
fn node_takes_its_customers_options() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    let files: &[(&str, u32, &[u8])] = &[
        ("index.js", 0o644, b"exports.handler = async () => [global.before, process.env.NODE_PATH, require('bare').name];"),
        ("before.js", 0o644, b"global.before = 'loaded first';"),
        // Found by NODE_PATH, which ends with the function's own directory.
        ("bare.js", 0o644, b"exports.name = 'bare';"),
    ];
    for (number, (runtime, version)) in [("nodejs8.10", "8"), ("nodejs22.x", "22")].into_iter().enumerate() {
        let name = format!("f{number}");
        let settings = json!({ "Environment": { "Variables": { "NODE_OPTIONS": "--require /var/task/before.js" } } });
        instance.create(&name, runtime, "index.handler", &code::zip(files), settings);
        let path = format!(
            "/opt/nodejs/node{version}/node_modules:/opt/nodejs/node_modules:/var/runtime/node_modules:/var/runtime:/var/task"
        );
        assert_eq!(instance.call(&name, &json!({})), json!(["loaded first", path, "bare"]));
    }
}

/// Lambda's own way to start a runtime differently, or another client altogether.
#[test]
fn a_wrapper_starts_the_runtime() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    let wrapper = b"#!/bin/bash\nexport WRAPPED=\"$*\"\nexec \"$@\"\n";
    let rows = [
        ("nodejs22.x", "index.js", "exports.handler = async () => process.env.WRAPPED;", "/var/lang/bin/node --expose-gc"),
        (
            "python3.13",
            "index.py",
            "import os\ndef handler(event, context):\n    return os.environ['WRAPPED']",
            "/var/runtime/bootstrap",
        ),
    ];
    for (number, (runtime, file, source, command)) in rows.into_iter().enumerate() {
        let zip = code::zip(&[(file, 0o644, source.as_bytes()), ("wrap", 0o755, wrapper), ("plain", 0o644, wrapper)]);
        let create = |name: &str, path: &str| {
            let name = format!("{name}{number}");
            let settings = json!({ "Environment": { "Variables": { "AWS_LAMBDA_EXEC_WRAPPER": path } } });
            instance.create(&name, runtime, "index.handler", &zip, settings);
            instance.invoke(&name, &json!({}))
        };
        let answer = create("wrapped", "/var/task/wrap");
        assert!(answer.json().as_str().is_some_and(|line| line.starts_with(command)), "{runtime}: {}", answer.text());
        for (name, path, status, words) in [
            ("missing", "/opt/nothing", 127, "/opt/nothing: does not exist"),
            ("plain", "/var/task/plain", 126, "/var/task/plain: is not an executable"),
        ] {
            let answer = create(name, path);
            let text = format!("Runtime exited with error: exit status {status}");
            assert!(answer.text().contains(&text), "{runtime}, {name}: {}", answer.text());
            assert!(answer.log().lines().any(|line| line == words), "{runtime}, {name}:\n{}", answer.log());
        }
    }
}

// ---- The bench -----------------------------------------------------------------------------------------------------------

struct Bench<'a> {
    runtime: &'static Runtime,
    instance: &'a Instance,
    zip: Vec<u8>,
}

struct Function<'a> {
    bench: &'a Bench<'a>,
    name: String,
}

impl<'a> Bench<'a> {
    /// A function of this row's own: a fresh environment.
    fn function(&'a self, name: &str, settings: Value) -> Function<'a> {
        let mut all = json!({ "MemorySize": 512, "Timeout": 20 });
        for (key, value) in settings.as_object().into_iter().flatten() {
            all[key] = value.clone();
        }
        self.instance.create(name, self.runtime.on(), self.runtime.handler, &self.zip, all);
        Function { bench: self, name: name.into() }
    }

    /// The body of a CreateFunction.
    fn request(&self, name: &str, settings: Value) -> Value {
        let mut body = json!({
            "FunctionName": name, "Runtime": self.runtime.on(), "Handler": self.runtime.handler,
            "Role": "arn:aws:iam::000000000000:role/test", "Code": { "ZipFile": code::base64(&self.zip) },
        });
        for (key, value) in settings.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        body
    }
}

impl Function<'_> {
    fn invoke(&self, event: &Value) -> Answer {
        self.raw(event.to_string().as_bytes())
    }

    fn raw(&self, event: &[u8]) -> Answer {
        self.bench.instance.invoke_bytes(&self.name, event)
    }

    /// The function's own answer.
    fn ask(&self, event: &Value) -> Result<Value, String> {
        let answer = self.invoke(event);
        let well = answer.status == 200 && answer.header("x-amz-function-error").is_none();
        check(well, || format!("{event} was answered {} {}\n{}", answer.status, answer.text(), answer.log()))?;
        serde_json::from_slice(&answer.body).map_err(|error| format!("{error}: {}", answer.text()))
    }

    /// An answer that says that the function failed.
    fn failed(&self, event: &Value) -> Result<Answer, String> {
        let answer = self.invoke(event);
        let failed = (answer.status, answer.header("x-amz-function-error")) == (200, Some("Unhandled"));
        check(failed, || format!("{event} was answered {} {}\n{}", answer.status, answer.text(), answer.log()))?;
        Ok(answer)
    }

    /// The runtime process ends in this way, and everybody hears it in Lambda's words.
    fn exits(&self, event: &Value, how: &str) -> Result<Answer, String> {
        let answer = self.failed(event)?;
        let words = format!("RequestId: {} Error: Runtime exited with error: {how}", answer.request_id());
        same_text("the payload", &answer.text(), &format!(r#"{{"errorType":"Runtime.ExitError","errorMessage":"{words}"}}"#))?;
        check(answer.log().lines().any(|line| line == words), || format!("no line {words:?} in\n{}", answer.log()))?;
        Ok(answer)
    }

    /// What ended so is never lent again.
    fn begins_anew(&self) -> Asked {
        same("invocations of the next environment", &self.ask(&json!({ "do": "global" }))?["invocations"], &json!(1))
    }
}

fn check(good: bool, why: impl FnOnce() -> String) -> Asked {
    if good { Ok(()) } else { Err(why()) }
}

fn same(what: &str, found: &Value, wanted: &Value) -> Asked {
    check(found == wanted, || format!("{what} is {found}, not {wanted}"))
}

fn same_text(what: &str, found: &str, wanted: &str) -> Asked {
    check(found == wanted, || format!("{what} is {found:?}, not {wanted:?}"))
}

/// The keys of a flat JSON object, in the order in which they are written.
fn keys_of(text: &str) -> Vec<String> {
    let Ok(Value::Object(object)) = serde_json::from_str(text) else { return Vec::new() };
    let mut keys: Vec<(usize, String)> =
        object.keys().map(|key| (text.find(&format!("\"{key}\"")).unwrap_or(usize::MAX), key.clone())).collect();
    keys.sort();
    keys.into_iter().map(|(_, key)| key).collect()
}

// ---- Functions -----------------------------------------------------------------------------------------------------------

fn node_files() -> Files {
    vec![("index.js", 0o644, source("node/index.js")), ("answer.node", 0o755, library(Library::NodeAddon))]
}

fn with_answer(mut files: Files) -> Files {
    files.push(("answer.so", 0o755, library(Library::Plain)));
    files
}

/// What `behaviours/build` has made.
fn compiled(language: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/behaviours").join(language).join("bootstrap");
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; run tests/behaviours/build", path.display()))
}

fn source(file: &str) -> Vec<u8> {
    std::fs::read(behaviours(file)).unwrap_or_else(|error| panic!("read {file}: {error}"))
}

fn behaviours(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/behaviours").join(file)
}

#[derive(Clone, Copy)]
enum Library {
    Plain,
    NodeAddon,
}

/// A native dependency, compiled once by the host's compiler.
fn library(which: Library) -> Vec<u8> {
    static BUILT: [OnceLock<Vec<u8>>; 2] = [OnceLock::new(), OnceLock::new()];
    let build = || {
        let made = tempfile::NamedTempFile::new().expect("make a file for the library");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-nostdlib", "-o"]).arg(made.path()).arg(behaviours("native/answer.c"));
        if let Library::NodeAddon = which {
            compiler.arg("-DNODE_ADDON");
        }
        let status = compiler.status().expect("run cc (a C compiler)");
        assert!(status.success(), "cc: {status}");
        std::fs::read(made.path()).expect("read the library")
    };
    BUILT[which as usize].get_or_init(build).clone()
}
