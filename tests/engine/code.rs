//! Code on the whole path: it goes when nobody needs it, and not before; and what cannot run is refused with a reason.

use std::collections::BTreeSet;
use std::fs;

use serde_json::json;

use crate::host::code::{base64, probe_program, probe_zip, zip};
use crate::host::{self, Instance, eventually};

const FUNCTIONS: &str = "/2015-03-31/functions";

fn below(instance: &Instance, directory: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(instance.state_dir().join(directory)).expect("list the state").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn update(instance: &Instance, name: &str, zip: &[u8]) -> host::Answer {
    let body = json!({ "ZipFile": base64(zip) }).to_string();
    instance.api().request("PUT", &format!("{FUNCTIONS}/{name}/code"), &[], body.as_bytes())
}

#[test]
fn old_code_goes_with_the_last_environment_that_runs_it_and_its_zip_too() {
    if !host::ready() {
        return;
    }
    let mut instance = Instance::start();
    instance.create_probe("f", json!({ "Timeout": 60 }));
    let old = below(&instance, "code");
    assert_eq!(old.len(), 2, "a tree and its zip: {old:?}");
    let third = zip(&[("bootstrap", 0o755, b"#!/bin/sh\n")]);
    instance.create("other", "provided.al2023", "x", &third, json!({}));
    let new = zip(&[("bootstrap", 0o755, &probe_program()), ("new", 0o644, b"new")]);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| instance.call("f", &json!({ "do": "sleep", "ms": 10_000 })));
        eventually("the old code runs", || instance.busy() == 1);
        assert_eq!(update(&instance, "f", &new).status, 200);
        // Another environment, of the new code, serves meanwhile.
        instance.call("f", &json!({ "do": "echo" }));
        // Nobody runs this one: when it is gone, the sweep has looked at all that was to go.
        instance.api().request("DELETE", &format!("{FUNCTIONS}/other"), &[], b"");
        eventually("the sweep has looked around", || below(&instance, "code").len() == 4);
        let seen = below(&instance, "code");
        assert!(old.is_subset(&seen), "an environment runs the old code still: {seen:?}");
        assert!(!running.is_finished(), "the old code ran on all the time");
        running.join().expect("the old code ends its work");
    });
    eventually("the old code is gone", || below(&instance, "code").is_disjoint(&old));
    assert_eq!(below(&instance, "code").len(), 2);

    // Two functions of one zip: it stays for the second.
    instance.create("g", "provided.al2023", "x", &new, json!({}));
    for (name, left) in [("f", 2), ("g", 0)] {
        let deleted = instance.api().request("DELETE", &format!("{FUNCTIONS}/{name}"), &[], b"");
        assert_eq!(deleted.status, 204);
        if name == "f" {
            instance.call("g", &json!({ "do": "echo" }));
        }
        eventually("what is unused is gone", || below(&instance, "code").len() == left);
    }
    eventually("nothing is left in staging", || below(&instance, "staging").is_empty());
    assert!(instance.stop().success());
}

#[test]
fn links_that_lead_nowhere_harm_nobody_and_a_bootstrap_may_be_a_link() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    for (name, target) in [("ring/a", "b"), ("ring/b", "a"), ("dangling", "no/where"), ("bootstrap", "bin/program")] {
        writer.add_symlink(name, target, options).expect("write a link");
    }
    writer.start_file("bin/program", options.unix_permissions(0o755)).expect("write a file");
    std::io::Write::write_all(&mut writer, &probe_program()).expect("write a file");
    let zip = writer.finish().expect("end the zip").into_inner();
    instance.create("f", "provided.al2023", "x", &zip, json!({}));
    assert_eq!(instance.call("f", &json!({ "do": "echo", "n": 1 }))["n"], 1);
}

#[test]
fn a_bootstrap_for_another_machine_is_refused_and_goes_again() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    let mut foreign = probe_program();
    // The machine's number; no processor is both.
    foreign[18..20].copy_from_slice(&if cfg!(target_arch = "x86_64") { 183_u16 } else { 62 }.to_le_bytes());
    let body = json!({ "FunctionName": "f", "Runtime": "provided.al2023", "Handler": "x",
        "Role": "arn:aws:iam::000000000000:role/test",
        "Code": { "ZipFile": base64(&zip(&[("bootstrap", 0o755, &foreign)])) } });
    let answer = instance.api().request("POST", FUNCTIONS, &[], body.to_string().as_bytes());
    assert_eq!((answer.status, answer.header("x-amzn-errortype")), (400, Some("InvalidParameterValueException")));
    assert!(answer.text().contains("bootstrap was built for"), "{}", answer.text());
    eventually("its code is gone", || below(&instance, "code").is_empty());
    instance.create("f", "provided.al2023", "x", &probe_zip(), json!({}));
    assert_eq!(update(&instance, "f", &zip(&[("bootstrap", 0o755, &foreign)])).status, 400);
    assert_eq!(instance.call("f", &json!({ "do": "echo", "n": 2 }))["n"], 2);
}
