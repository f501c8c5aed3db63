//! `kiln invoke`: the result to stdout, the log to stderr, and an exit code that tells a failed function from a
//! failed call.

use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::{fs, io};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use serde_json::{Value, json};

use super::args::Invoke;
use super::client::{Client, Reply, Socket};
use super::failure::Failure;
use super::function::path;
use super::output;

pub async fn execute(client: &Client, command: Invoke, as_json: bool) -> Result<(), Failure> {
    let payload = payload(&command.payload)?;
    let log_type = if command.log { "Tail" } else { "None" };
    let invocation_type = if command.dry_run { "DryRun" } else { "RequestResponse" };
    let path = format!("{}/invocations", path(&command.name));
    let headers = [("x-amz-log-type", log_type), ("x-amz-invocation-type", invocation_type)];
    let reply = client.request(Socket::Api, Method::POST, &path, &headers, payload).await?;
    let log = reply.header("x-amz-log-result").and_then(|log| STANDARD.decode(log).ok()).unwrap_or_default();
    if as_json {
        output::print_json(&whole(&reply, &log))?;
    } else if command.dry_run {
        output::say(&format!("function {} could be invoked so; it was not", command.name));
    } else {
        // A terminal takes what a function printed for commands, and a carriage return, as Python ends the lines of a
        // traceback, for one line over the other. Into a pipe everything goes as it was.
        let shown = |bytes: &[u8], is_terminal: bool| {
            if is_terminal { output::careful_lines(bytes).into_bytes() } else { bytes.to_vec() }
        };
        // Before the result, as it was written before it.
        let _ = io::stderr().write_all(&shown(&log, io::stderr().is_terminal()));
        output::print(&shown(&reply.body, io::stdout().is_terminal()))?;
        // A result has no line end of its own; a prompt needs one, and a program that reads us must not get it.
        if io::stdout().is_terminal() && !reply.body.ends_with(b"\n") {
            output::print(b"\n")?;
        }
    }
    match reply.header("x-amz-function-error") {
        Some(_) => Err(Failure::Function(format!("the function {} failed", command.name))),
        None => Ok(()),
    }
}

fn whole(reply: &Reply, log: &[u8]) -> Value {
    let text = || String::from_utf8_lossy(&reply.body).into();
    let payload = match &reply.body[..] {
        [] => Value::Null,
        body => serde_json::from_slice(body).unwrap_or_else(|_| text()),
    };
    json!({
        "request_id": reply.header("x-amzn-requestid"),
        "executed_version": reply.header("x-amz-executed-version"),
        "function_error": reply.header("x-amz-function-error"),
        "payload": payload,
        "log": String::from_utf8_lossy(log),
    })
}

/// JSON as written, a file's contents, or stdin's.
fn payload(text: &str) -> Result<Vec<u8>, Failure> {
    if text == "-" {
        let mut bytes = Vec::new();
        let read = io::stdin().lock().read_to_end(&mut bytes);
        return read.map(|_| bytes).map_err(|error| Failure::Failed(format!("stdin cannot be read: {error}")));
    }
    match text.strip_prefix('@') {
        Some(file) => fs::read(file).map_err(|error| Failure::Failed(format!("{file} cannot be read: {error}"))),
        // A file's name is no JSON, so it was meant as one.
        None if Path::new(text).is_file() && serde_json::from_str::<Value>(text).is_err() => {
            Err(Failure::Usage(format!("{text} is no JSON but a file: write --payload @{text}")))
        }
        None => Ok(text.as_bytes().to_vec()),
    }
}
