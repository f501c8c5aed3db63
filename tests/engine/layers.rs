//! Layers inside of real containers: what lies on top, what finds it, and when its files go.

use std::path::Path;

use serde_json::{Value, json};

use crate::host::{self, Answer, Instance, code};

const LAYER_ARN: &str = "arn:aws:lambda:us-east-1:000000000000:layer";

/// Publishes the next version of a layer.
#[track_caller]
fn publish(instance: &Instance, name: &str, files: &[(&str, u32, &[u8])]) -> String {
    let body = json!({ "Content": { "ZipFile": code::base64(&code::zip(files)) } }).to_string();
    let answer = instance.api().request("POST", &format!("/2018-10-31/layers/{name}/versions"), &[], body.as_bytes());
    assert_eq!(answer.status, 201, "publish {name}: {}", answer.text());
    answer.json()["LayerVersionArn"].as_str().unwrap().to_owned()
}

#[track_caller]
fn delete(instance: &Instance, name: &str, version: u64) {
    let path = format!("/2018-10-31/layers/{name}/versions/{version}");
    assert_eq!(instance.api().request("DELETE", &path, &[], b"").status, 204);
}

#[track_caller]
fn configure(instance: &Instance, name: &str, settings: Value) -> Answer {
    let path = format!("/2015-03-31/functions/{name}/configuration");
    let answer = instance.api().request("PUT", &path, &[], settings.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

/// Tells what it finds: the library by NODE_PATH, the tool by PATH, files by name, and whether /opt can be written.
const SEEKER: &[u8] = br#"
const fs = require('fs'), child = require('child_process');
let calls = 0;
function attempt(work) { try { return String(work()).trim(); } catch (error) { return error.code || error.message; } }
exports.handler = async (event) => ({
    calls: ++calls,
    library: attempt(() => require('shared')),
    tool: attempt(() => child.execFileSync('tool')),
    files: (event.files || []).map(file => attempt(() => fs.readFileSync('/opt/' + file))),
    listed: attempt(() => fs.readdirSync('/opt').sort().join(' ')),
    write: attempt(() => fs.writeFileSync('/opt/new', 'x')),
    owner: attempt(() => fs.statSync('/opt').uid),
});
"#;

fn library(says: &str) -> Vec<u8> {
    format!("module.exports = '{says}';").into_bytes()
}

fn tool(says: &str) -> Vec<u8> {
    format!("#!/bin/sh\necho {says}\n").into_bytes()
}

#[test]
fn layers_are_merged_at_opt_in_their_order_and_found_by_path_and_by_node() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    let (library_a, tool_a, library_b) = (library("a"), tool("tool of a"), library("b"));
    let shared = "nodejs/node_modules/shared/index.js";
    let a = publish(&instance, "a", &[(shared, 0o644, &library_a), ("bin/tool", 0o755, &tool_a), ("a.txt", 0o644, b"1")]);
    let b = publish(&instance, "b", &[(shared, 0o644, &library_b), ("b.txt", 0o644, b"2")]);
    let zip = code::zip(&[("index.js", 0o644, SEEKER)]);
    let settings = json!({ "Timeout": 20, "MemorySize": 512, "Layers": [a, b] });
    instance.create("f", "nodejs8.10", "index.handler", &zip, settings);
    let event = json!({ "files": ["a.txt", "b.txt"] });
    let seen = instance.call("f", &event);
    assert_eq!(
        seen,
        json!({
            "calls": 1, "library": "b", "tool": "tool of a", "files": ["1", "2"], "listed": "a.txt b.txt bin nodejs",
            "write": "EROFS", "owner": "0",
        })
    );
    assert_eq!(instance.call("f", &event)["calls"], 2, "warm");
    // The other way round: a new container, and the other library.
    configure(&instance, "f", json!({ "Layers": [b, a] }));
    let seen = instance.call("f", &event);
    assert_eq!((&seen["calls"], &seen["library"]), (&json!(1), &json!("a")));
    configure(&instance, "f", json!({ "Layers": [b] }));
    let seen = instance.call("f", &event);
    assert_eq!((&seen["library"], &seen["tool"], &seen["files"]), (&json!("b"), &json!("ENOENT"), &json!(["ENOENT", "2"])));
    configure(&instance, "f", json!({ "Layers": [] }));
    let seen = instance.call("f", &event);
    assert_eq!((&seen["library"], &seen["listed"]), (&json!("MODULE_NOT_FOUND"), &json!("")));
}

#[test]
fn every_runtime_finds_what_a_layer_brings_where_lambda_says() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    let node = publish(&instance, "node", &[("nodejs/node_modules/shared/index.js", 0o644, &library("of node"))]);
    let source = b"exports.handler = async () => require('shared');";
    let zip = code::zip(&[("index.js", 0o644, source)]);
    instance.create("node", "nodejs22.x", "index.handler", &zip, json!({ "MemorySize": 512, "Timeout": 20, "Layers": [node] }));
    assert_eq!(instance.call("node", &json!({})), "of node");

    let packages = "python/lib/python3.13/site-packages/packed.py";
    let python =
        publish(&instance, "python", &[("python/plain.py", 0o644, b"says = 'plain'"), (packages, 0o644, b"says = 'packed'")]);
    let source = b"import plain, packed\ndef handler(event, context): return [plain.says, packed.says]\n";
    let zip = code::zip(&[("app.py", 0o644, source)]);
    instance.create("python", "python3.13", "app.handler", &zip, json!({ "MemorySize": 512, "Timeout": 20, "Layers": [python] }));
    assert_eq!(instance.call("python", &json!({})), json!(["plain", "packed"]));

    // A runtime of one's own, shared by functions that bring none.
    let own = publish(&instance, "own", &[("bootstrap", 0o755, &code::probe_program())]);
    let zip = code::zip(&[("mine.txt", 0o644, b"mine")]);
    instance.create("own", "provided.al2023", "x", &zip, json!({ "Timeout": 20, "Layers": [own] }));
    assert_eq!(instance.call("own", &json!({ "do": "read", "path": "/var/task/mine.txt" })), "mine");
}

#[test]
fn five_layers_are_mounted_even_when_two_of_them_are_the_same_zip() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    let layer = |name: &str, says: &str| publish(&instance, name, &[("who.txt", 0o644, says.as_bytes()), (says, 0o644, b"")]);
    let layers: Vec<String> = [("a", "twice"), ("b", "2"), ("c", "3"), ("d", "4"), ("e", "twice")]
        .iter()
        .map(|(name, says)| layer(name, says))
        .collect();
    instance.create_probe("f", json!({ "Timeout": 20, "Layers": layers }));
    let who = || instance.call("f", &json!({ "do": "read", "path": "/opt/who.txt" }));
    assert_eq!(who(), "twice", "the topmost");
    let others: Vec<&String> = layers[..4].iter().collect();
    configure(&instance, "f", json!({ "Layers": others }));
    assert_eq!(who(), "4");
}

#[test]
fn a_layer_outlives_its_deletion_and_a_sigkill_in_the_function_and_goes_with_it() {
    if !host::ready() {
        return;
    }
    let mut instance = Instance::start();
    let first = publish(&instance, "a", &[("v.txt", 0o644, b"first")]);
    let second = publish(&instance, "a", &[("v.txt", 0o644, b"second")]);
    instance.create_probe("f", json!({ "Timeout": 20, "Layers": [first] }));
    let path = json!({ "do": "read", "path": "/opt/v.txt" });
    assert_eq!(instance.call("f", &path), "first");
    delete(&instance, "a", 1);

    instance.kill_supervisor();
    instance.launch();
    instance.await_ready();
    assert_eq!(instance.call("f", &path), "first", "a new container, and the deleted version is there");
    let listed = instance.api().request("GET", "/2018-10-31/layers/a/versions", &[], b"").json();
    assert_eq!(listed["LayerVersions"][0]["LayerVersionArn"], second);
    assert_eq!(listed["LayerVersions"].as_array().unwrap().len(), 1);
    assert_eq!(publish(&instance, "a", &[("v.txt", 0o644, b"third")]), format!("{LAYER_ARN}:a:3"));

    configure(&instance, "f", json!({ "Layers": [second] }));
    assert_eq!(instance.call("f", &path), "second");
    let trees = || trees(&instance.state_dir().join("code"));
    host::eventually("only code that somebody has is there: f's, and two versions", || trees() == 3);
    delete(&instance, "a", 2);
    delete(&instance, "a", 3);
    assert_eq!(instance.api().request("DELETE", "/2015-03-31/functions/f", &[], b"").status, 204);
    host::eventually("nobody has any, and it is gone", || trees() == 0);
}

fn trees(code: &Path) -> usize {
    std::fs::read_dir(code).unwrap().filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir()).count()
}
