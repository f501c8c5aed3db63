//! `kiln layer publish|list|get|delete`, and the layers that functions are given by name.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use serde_json::{Value, json};

use super::args::{LayerCommand, Publish};
use super::client::{Client, Socket};
use super::failure::Failure;
use super::function::{call, encoded, line, text};
use super::{output, package};

const LAYERS: &str = "/2018-10-31/layers";

pub async fn execute(client: &Client, command: LayerCommand, as_json: bool) -> Result<(), Failure> {
    match command {
        LayerCommand::Publish(publish) => self::publish(client, publish, as_json).await,
        LayerCommand::List { name } => list(client, name.as_deref(), as_json).await,
        LayerCommand::Get { layer } => {
            let found = get(client, &layer).await?;
            if as_json { output::print_json(&found) } else { output::print_line(&described(&found)) }
        }
        LayerCommand::Delete { layer } => delete(client, &layer).await,
    }
}

/// The ARNs of these versions, each written as `NAME:VERSION` or as an ARN.
pub async fn arns(client: &Client, layers: &[String]) -> Result<Vec<Value>, Failure> {
    let mut arns = Vec::new();
    for layer in layers {
        // An ARN is passed on as it is: whatever is wrong with it, kilnd says.
        let arn =
            if layer.starts_with("arn:") { layer.as_str().into() } else { get(client, layer).await?["LayerVersionArn"].take() };
        arns.push(arn);
    }
    Ok(arns)
}

async fn publish(client: &Client, publish: Publish, as_json: bool) -> Result<(), Failure> {
    let zip = package::read(&publish.code)?;
    let zip = zip.ok_or_else(|| Failure::Usage("give the layer's content with --zip, --dir or --file".into()))?;
    let mut body = json!({ "Content": { "ZipFile": STANDARD.encode(zip) } });
    for (member, text) in [("Description", publish.description), ("LicenseInfo", publish.license)] {
        if let Some(text) = text {
            body[member] = text.into();
        }
    }
    for (member, list) in [("CompatibleRuntimes", publish.runtime), ("CompatibleArchitectures", publish.architecture)] {
        if !list.is_empty() {
            body[member] = list.into();
        }
    }
    let published = call(client, Method::POST, &format!("{LAYERS}/{}/versions", encoded(&publish.name)), body).await?;
    if as_json {
        return output::print_json(&published);
    }
    let (name, version) = (name_of(&published), text(&published["Version"]));
    output::say(&format!("layer {name}:{version} published; try: kiln function update FUNCTION --layer {name}:{version}"));
    Ok(())
}

async fn list(client: &Client, name: Option<&str>, as_json: bool) -> Result<(), Failure> {
    let (path, member) = match name {
        Some(name) => (format!("{LAYERS}/{}/versions", encoded(name)), "LayerVersions"),
        None => (LAYERS.to_owned(), "Layers"),
    };
    let mut all = Vec::new();
    let mut marker: Option<String> = None;
    loop {
        let query = marker.map(|marker| format!("?Marker={}", encoded(&marker))).unwrap_or_default();
        let mut page = call(client, Method::GET, &format!("{path}{query}"), Value::Null).await?;
        if let Value::Array(found) = page[member].take() {
            all.extend(found);
        }
        marker = page["NextMarker"].as_str().map(str::to_owned);
        if marker.is_none() {
            break;
        }
    }
    // To Lambda a layer without versions is an empty list, like one that never was; people have mistyped it.
    if let Some(name) = name.filter(|_| all.is_empty()) {
        return Err(Failure::NotFound(format!("there is no layer {name}; `kiln layer list` shows all")));
    }
    if as_json {
        return output::print_json(&json!({ member: all }));
    }
    let rows = all.iter().map(|item| {
        let version = if name.is_some() { item } else { &item["LatestMatchingVersion"] };
        let cells = [version["Version"].clone(), version["CreatedDate"].clone()].map(|value| text(&value));
        let [number, created] = cells;
        vec![name_of(version), number, created, words(&version["CompatibleRuntimes"]), text(&version["Description"])]
    });
    output::print_line(&output::table(&["NAME", "VERSION", "CREATED", "RUNTIMES", "DESCRIPTION"], rows.collect()))
}

async fn get(client: &Client, layer: &str) -> Result<Value, Failure> {
    match call(client, Method::GET, &path(layer)?, Value::Null).await {
        Err(Failure::NotFound(_)) => Err(Failure::NotFound(format!("there is no layer {layer}; `kiln layer list` shows all"))),
        other => other,
    }
}

async fn delete(client: &Client, layer: &str) -> Result<(), Failure> {
    // Deleting what is not there is no error to Lambda; people have mistyped it.
    get(client, layer).await?;
    client.request(Socket::Api, Method::DELETE, &path(layer)?, &[], "").await?;
    output::say(&format!("layer {layer} deleted; functions that have it keep it"));
    Ok(())
}

/// Of one version, written as `NAME:VERSION` or as its ARN.
fn path(layer: &str) -> Result<String, Failure> {
    let (name, version) =
        layer.rsplit_once(':').filter(|(name, version)| !name.is_empty() && !version.is_empty()).ok_or_else(|| {
            Failure::Usage(format!("write a layer's version as NAME:VERSION, such as {}:1", layer.trim_end_matches(':')))
        })?;
    Ok(format!("{LAYERS}/{}/versions/{}", encoded(name), encoded(version)))
}

/// `arn:aws:lambda:<region>:<account>:layer:<name>:<version>`
fn name_of(version: &Value) -> String {
    text(&version["LayerVersionArn"]).split(':').nth(6).unwrap_or_default().to_owned()
}

fn words(list: &Value) -> String {
    let words: Vec<&str> = list.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    words.join(" ")
}

/// One line for each thing that people look for.
fn described(layer: &Value) -> String {
    let rows = [
        ("name", name_of(layer)),
        ("version", text(&layer["Version"])),
        ("arn", text(&layer["LayerVersionArn"])),
        ("description", text(&layer["Description"])),
        ("license", text(&layer["LicenseInfo"])),
        ("runtimes", words(&layer["CompatibleRuntimes"])),
        ("machines", words(&layer["CompatibleArchitectures"])),
        ("created", text(&layer["CreatedDate"])),
        ("code", format!("{} bytes, sha256 {}", layer["Content"]["CodeSize"], text(&layer["Content"]["CodeSha256"]))),
    ];
    let lines: Vec<String> = rows.iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| line(key, value)).collect();
    lines.join("\n")
}
