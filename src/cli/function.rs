//! `kiln function create|list|get|update|delete`; `concurrency` and `drain` have a file each.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use serde_json::{Map, Value, json};

use super::args::{Create, FunctionCommand, Reuse, Settings, Update};
use super::client::{Client, Socket};
use super::failure::Failure;
use super::{concurrency, drain, layer, output, package};
use crate::function;

const FUNCTIONS: &str = "/2015-03-31/functions";

pub async fn execute(client: &Client, command: FunctionCommand, as_json: bool) -> Result<(), Failure> {
    match command {
        FunctionCommand::Concurrency(command) => concurrency::execute(client, command, as_json).await,
        FunctionCommand::Create(create) => self::create(client, create, as_json).await,
        FunctionCommand::Drain(command) => drain::execute(client, command, as_json).await,
        FunctionCommand::List { quiet } => list(client, quiet, as_json).await,
        FunctionCommand::Get { name } => get(client, &name, as_json).await,
        FunctionCommand::Update(update) => self::update(client, update, as_json).await,
        FunctionCommand::Delete { name } => delete(client, &name).await,
    }
}

async fn create(client: &Client, create: Create, as_json: bool) -> Result<(), Failure> {
    let zip = package::read(&create.code)?;
    let zip = zip.ok_or_else(|| Failure::Usage("give the code with --zip, --dir or --file".into()))?;
    let mut body = settings(&create.settings);
    if !create.settings.layer.is_empty() {
        body.insert("Layers".into(), layer::arns(client, &create.settings.layer).await?.into());
    }
    if let Some(reuse) = create.settings.reuse {
        body.insert("Tags".into(), tags(reuse));
    }
    body.insert("FunctionName".into(), create.name.into());
    body.insert("Runtime".into(), create.runtime.into());
    body.insert("Handler".into(), create.handler.into());
    body.insert("Role".into(), create.role.into());
    body.insert("Code".into(), json!({ "ZipFile": STANDARD.encode(zip) }));
    let created = call(client, Method::POST, FUNCTIONS, Value::Object(body)).await?;
    changed("created", &created, as_json)
}

async fn update(client: &Client, update: Update, as_json: bool) -> Result<(), Failure> {
    let path = path(&update.name);
    let mut configuration = settings(&update.settings);
    for (member, value) in [("Runtime", update.runtime), ("Handler", update.handler), ("Role", update.role)] {
        if let Some(value) = value {
            configuration.insert(member.into(), value.into());
        }
    }
    if update.no_env {
        configuration.insert("Environment".into(), json!({ "Variables": {} }));
    }
    if update.no_layers || !update.settings.layer.is_empty() {
        configuration.insert("Layers".into(), layer::arns(client, &update.settings.layer).await?.into());
    }
    let zip = package::read(&update.code)?;
    let reuse = update.settings.reuse;
    if zip.is_none() && configuration.is_empty() && reuse.is_none() {
        return Err(Failure::Usage(
            "nothing to change: give --zip, --dir, --file, --memory, --timeout, --env, … (see --help)".into(),
        ));
    }
    let code = zip.map(|zip| json!({ "ZipFile": STANDARD.encode(zip) }));
    let code_path = format!("{path}/code");
    // Both or nothing: settings are not changed for code that will be refused.
    if let Some(mut code) = code.clone().filter(|_| !configuration.is_empty() || reuse.is_some()) {
        code["DryRun"] = true.into();
        call(client, Method::PUT, &code_path, code).await?;
    }
    // Code last: a new handler without its new code would fail every call in between the longer.
    let mut result = Value::Null;
    if let Some(reuse) = reuse {
        result = call(client, Method::GET, &format!("{path}/configuration"), Value::Null).await?;
        let resource = format!("/2017-03-31/tags/{}", encoded(&text(&result["FunctionArn"])));
        client.request(Socket::Api, Method::POST, &resource, &[], json!({ "Tags": tags(reuse) }).to_string()).await?;
        // It has another revision now.
        if configuration.is_empty() && code.is_none() {
            result = call(client, Method::GET, &format!("{path}/configuration"), Value::Null).await?;
        }
    }
    if !configuration.is_empty() {
        result = call(client, Method::PUT, &format!("{path}/configuration"), Value::Object(configuration)).await?;
    }
    if let Some(code) = code {
        result = call(client, Method::PUT, &code_path, code).await?;
    }
    changed("updated", &result, as_json)
}

async fn get(client: &Client, name: &str, as_json: bool) -> Result<(), Failure> {
    let function = call(client, Method::GET, &path(name), Value::Null).await?;
    if as_json { output::print_json(&function) } else { output::print_line(&described(&function)) }
}

async fn list(client: &Client, quiet: bool, as_json: bool) -> Result<(), Failure> {
    let mut functions = Vec::new();
    let mut marker: Option<String> = None;
    loop {
        let query = marker.map(|marker| format!("?Marker={}", encoded(&marker))).unwrap_or_default();
        let mut page = call(client, Method::GET, &format!("{FUNCTIONS}{query}"), Value::Null).await?;
        if let Value::Array(found) = page["Functions"].take() {
            functions.extend(found);
        }
        marker = page["NextMarker"].as_str().map(str::to_owned);
        if marker.is_none() {
            break;
        }
    }
    if as_json {
        return output::print_json(&json!({ "Functions": functions }));
    }
    if quiet {
        let names: String = functions.iter().map(|function| text(&function["FunctionName"]) + "\n").collect();
        return output::print(names.as_bytes());
    }
    let rows = functions.iter().map(|function| {
        ["FunctionName", "Runtime", "Handler", "MemorySize", "Timeout", "LastModified"]
            .map(|member| text(&function[member]))
            .to_vec()
    });
    output::print_line(&output::table(&["NAME", "RUNTIME", "HANDLER", "MEMORY", "TIMEOUT", "MODIFIED"], rows.collect()))
}

async fn delete(client: &Client, name: &str) -> Result<(), Failure> {
    client.request(Socket::Api, Method::DELETE, &path(name), &[], "").await?;
    output::say(&format!("function {name} deleted"));
    Ok(())
}

pub async fn call(client: &Client, method: Method, path: &str, body: Value) -> Result<Value, Failure> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    client.request(Socket::Api, method, path, &[], body).await?.json()
}

fn changed(what: &str, function: &Value, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return output::print_json(function);
    }
    let name = text(&function["FunctionName"]);
    output::say(&format!("function {name} {what}; try: kiln invoke {name}"));
    Ok(())
}

fn settings(settings: &Settings) -> Map<String, Value> {
    let mut body = Map::new();
    if let Some(memory) = settings.memory {
        body.insert("MemorySize".into(), memory.into());
    }
    if let Some(timeout) = settings.timeout {
        body.insert("Timeout".into(), timeout.into());
    }
    if let Some(description) = &settings.description {
        body.insert("Description".into(), description.as_str().into());
    }
    if !settings.env.is_empty() {
        let vars: Map<String, Value> = settings.env.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        body.insert("Environment".into(), json!({ "Variables": vars }));
    }
    body
}

/// Lambda's API has no member for it.
fn tags(reuse: Reuse) -> Value {
    let value = match reuse {
        Reuse::Always => "always",
        Reuse::Never => "never",
    };
    json!({ function::Reuse::TAG: value })
}

/// One line for each thing that people look for.
fn described(whole: &Value) -> String {
    let reserved = text(&whole["Concurrency"]["ReservedConcurrentExecutions"]);
    let reuse = text(&whole["Tags"][function::Reuse::TAG]);
    let function = &whole["Configuration"];
    let rows = [
        ("name", text(&function["FunctionName"])),
        ("arn", text(&function["FunctionArn"])),
        ("description", text(&function["Description"])),
        ("runtime", text(&function["Runtime"])),
        ("handler", text(&function["Handler"])),
        ("memory", format!("{} MB", function["MemorySize"])),
        ("timeout", format!("{} s", function["Timeout"])),
        ("reserved", if reserved.is_empty() { reserved } else { format!("{reserved} at once") }),
        ("reuse", reuse),
        ("state", text(&function["State"])),
        ("modified", text(&function["LastModified"])),
        ("code", format!("{} bytes, sha256 {}", function["CodeSize"], text(&function["CodeSha256"]))),
        ("revision", text(&function["RevisionId"])),
    ];
    let mut lines: Vec<String> =
        rows.iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| line(key, value)).collect();
    for layer in function["Layers"].as_array().into_iter().flatten() {
        lines.push(line("layer", &text(&layer["Arn"])));
    }
    // Values are shown to whoever may manage the function, as Lambda does.
    for (name, value) in function["Environment"]["Variables"].as_object().into_iter().flatten() {
        lines.push(line("variable", &format!("{name}={}", text(value))));
    }
    lines.join("\n")
}

pub fn line(key: &str, value: &str) -> String {
    format!("{key:<12}{}", output::plain(value))
}

pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

pub fn path(name: &str) -> String {
    format!("{FUNCTIONS}/{}", encoded(name))
}

/// Everything that is not plain in a path's segment becomes %XX.
pub fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
