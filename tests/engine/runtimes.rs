//! Real runtimes inside containers, and the Runtime API under fire.

use serde_json::{Value, json};

use crate::host::{self, Instance, code};

#[path = "../node/rows.rs"]
#[allow(dead_code)] // serves two test programs; each uses its part
mod rows;

use rows::{Answer, NODE_8, NODE_22, ROWS, Time};

/// The rows of `tests/node.rs`, which knows the bootstraps alone, once more through the whole engine.
#[test]
fn node_8_keeps_its_promises_inside_a_container() {
    node_keeps_its_promises(NODE_8);
}

#[test]
fn node_22_keeps_its_promises_inside_a_container() {
    node_keeps_its_promises(NODE_22);
}

fn node_keeps_its_promises(runtime: &str) {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    let mut failures = Vec::new();
    for (number, row) in ROWS.iter().filter(|row| row.is_of(runtime)).enumerate() {
        let name = format!("row{number}");
        let files: Vec<_> = row.files.iter().map(|(name, text)| (*name, 0o644, text.as_bytes())).collect();
        let zip = code::zip(&files);
        instance.create(&name, runtime, row.handler, &zip, json!({ "MemorySize": 1792, "Timeout": 20 }));
        for call in row.calls {
            let begin = std::time::Instant::now();
            let answer = instance.invoke_bytes(&name, call.event.as_bytes());
            let took = begin.elapsed().as_millis() as u64;
            if let Err(why) = compare(runtime, call, &answer, took) {
                failures.push(format!("{}: {}: {why}\n{}\n{}", row.name, call.event, answer.text(), answer.log()));
            }
        }
    }
    assert!(failures.is_empty(), "{} of {} rows:\n{}", failures.len(), ROWS.len(), failures.join("\n"));
}

fn compare(runtime: &str, call: &rows::Call, answer: &host::Answer, took: u64) -> Result<(), String> {
    let body: Value = serde_json::from_slice(&answer.body).map_err(|error| format!("no JSON: {error}"))?;
    let failed = answer.header("x-amz-function-error").is_some();
    let message = body["errorMessage"].as_str().unwrap_or_default();
    let right = match &call.answer {
        Answer::Result(text) => !failed && serde_json::from_str::<Value>(text).is_ok_and(|wanted| wanted == body),
        Answer::Error { message, kind } => failed && rows::is_error(runtime, &body, message, *kind),
        Answer::LastError { message, kind, .. } => failed && rows::is_error(runtime, &body, message, Some(kind)),
        Answer::InitError { holds, kind } => failed && message.contains(holds) && body["errorType"] == *kind,
        Answer::Exit(code) => failed && message.ends_with(&format!("Runtime exited with error: exit status {code}")),
    };
    if !right {
        return Err("another answer was promised".into());
    }
    if let Time::NotBefore { ms } = call.time {
        if took < ms {
            return Err(format!("answered after {took} ms, {ms} were promised"));
        }
    }
    let log = answer.log();
    match call.logged.iter().find(|text| !log.contains(**text)) {
        Some(missing) => Err(format!("{missing:?} is not in the log")),
        None => Ok(()),
    }
}

#[test]
fn payloads_pass_byte_for_byte() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "MemorySize": 1792, "Timeout": 30 }));
    let odd = r#"  {"b" : 1, "a":"Ünïcödé 語 🦀" , "do":"echo"}  "#;
    assert_eq!(instance.invoke_bytes("f", odd.as_bytes()).text(), odd);
    assert_eq!(instance.invoke_bytes("f", b"").text(), "{}");
    for payload in ["null", "0"] {
        assert_eq!(instance.invoke_bytes("f", payload.as_bytes()).text(), payload);
    }
    let large = format!(r#"{{"do":"echo","x":"{}"}}"#, "é".repeat((6_291_456 - 21) / 2));
    assert!(large.len() <= 6_291_456);
    let answer = instance.invoke_bytes("f", large.as_bytes());
    assert!(answer.status == 200 && answer.body == large.as_bytes(), "6 MB come back as they went: {}", answer.status);
    let answer = instance.invoke_bytes("f", &vec![b'1'; 6_291_457]);
    assert_eq!((answer.status, answer.header("x-amzn-errortype")), (413, Some("RequestTooLargeException")));
    let answer = instance.invoke_bytes("f", b"{\"broken\":");
    assert_eq!((answer.status, answer.header("x-amzn-errortype")), (400, Some("InvalidRequestContentException")));
}

#[test]
fn the_runtime_api_keeps_its_rules_under_fire() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", json!({ "MemorySize": 1792, "Timeout": 60 }));
    let fire = |case: &str| instance.call("f", &json!({ "do": "hostile", "case": case }))["statuses"].clone();
    assert_eq!(fire("unknown_path"), json!([404]));
    assert_eq!(fire("wrong_method"), json!([405]));
    assert_eq!(fire("late_init_error"), json!([403]));
    assert_eq!(fire("wrong_id"), json!([400]));
    assert_eq!(fire("next_again"), json!([{ "status": 200, "same": true }]));
    assert_eq!(fire("pipelined"), json!([200, 200]));
    assert_eq!(fire("two_lengths"), json!([400]));
    // Bounded: refused or cut, and the invocation goes on.
    let header = |bytes: u32| instance.call("f", &json!({ "do": "hostile", "case": "headers", "n": bytes }))["statuses"].clone();
    assert_eq!(header(1 << 20), json!([200]), "clients send causes of 1 MiB in a header");
    assert_ne!(header(4 << 20), json!([200]), "4 MiB are over the bound");
    let connections = fire("connections");
    let served = connections.as_array().unwrap().iter().filter(|status| **status == json!(200)).count();
    assert!((1..=32).contains(&served), "{served} of 40 connections served");
    assert_ne!(fire("garbage"), json!([200]));
    // Cases that answer the invocation themselves; the next one tells what they saw.
    let answers =
        [("double", json!([202, 403])), ("trailers", json!([202])), ("expect", json!([100, 202])), ("limit", json!([202]))];
    for (case, statuses) in answers {
        let answer = instance.invoke("f", &json!({ "do": "hostile", "case": case }));
        assert_eq!((answer.status, answer.header("x-amz-function-error")), (200, None), "{case}: {}", answer.log());
        assert_eq!(instance.call("f", &json!({ "do": "report" }))["statuses"], statuses, "{case}");
    }
    let over = instance.invoke("f", &json!({ "do": "hostile", "case": "over" }));
    let text = r#"{"errorType":"Function.ResponseSizeTooLarge","errorMessage":"Response payload size exceeded maximum allowed payload size (6291556 bytes)."}"#;
    assert_eq!(over.text(), text);
    let report = instance.call("f", &json!({ "do": "report" }));
    assert_eq!(report["statuses"], json!([413, 403]), "the runtime lives on after 413: {report}");
}
