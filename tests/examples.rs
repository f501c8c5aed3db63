//! The examples, built by their languages' own tools (`scripts/examples`), deployed and asked as their READMEs say.
//!
//! What stands in a README is what is run here: its Deploy lines, and in Invoke each command with the answer below it.

#[path = "engine/host/mod.rs"]
#[allow(dead_code)] // the module serves several test programs; each uses its part
mod host;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use host::{Answer, Instance};
use serde_json::{Value, json};

/// Copies of `examples/*`, built.
fn built() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/examples")
}

/// A built example, and an instance that it is deployed to.
struct Example {
    directory: PathBuf,
    readme: String,
    instance: Instance,
}

impl Example {
    /// `None`, after a word why, if this host cannot run it.
    #[track_caller]
    fn deploy(name: &str) -> Option<Self> {
        let directory = built().join(name);
        let readme = fs::read_to_string(directory.join("README.md")).unwrap_or_default();
        let lines = section(&readme, "Deploy", "sh");
        let runtime = lines.split_whitespace().skip_while(|word| *word != "--runtime").nth(1).unwrap_or_default();
        let is_installed = host::runtimes_dir().join(format!("{runtime}.toml")).exists();
        let is_there = host::ready()
            && host::has(directory.exists(), "the built examples: scripts/examples")
            && host::has(is_installed, "the example's runtime: scripts/build-runtimes");
        if !is_there {
            return None;
        }
        let example = Self { directory, readme, instance: Instance::start() };
        let deployed = example.run(&lines);
        assert!(deployed.status.success(), "{name}: {}", String::from_utf8_lossy(&deployed.stderr));
        Some(example)
    }

    /// Runs a README's line as its reader would.
    fn run(&self, line: &str) -> Output {
        let kiln = Path::new(env!("CARGO_BIN_EXE_kiln")).parent().expect("the directory of kiln");
        let path = format!("{}:{}", kiln.display(), std::env::var("PATH").unwrap_or_default());
        Command::new("bash")
            .args(["-euo", "pipefail", "-c", line])
            .current_dir(&self.directory)
            .env("PATH", path)
            .env("KILN_RUN_DIR", self.instance.run_dir())
            .output()
            .expect("run bash")
    }

    /// Every answer in the section Invoke is the one that comes.
    #[track_caller]
    fn keeps_its_word(&self) {
        let section = section(&self.readme, "Invoke", "console");
        let mut asked = 0;
        for step in format!("\n{section}").split("\n$ ").skip(1) {
            let (command, expected) = step.split_once('\n').expect("a command has its answer below it");
            let said = self.run(command);
            let answer = String::from_utf8_lossy(&said.stdout).into_owned();
            let log = String::from_utf8_lossy(&said.stderr).into_owned();
            assert!(matches(expected.trim_end(), answer.trim_end()), "$ {command}\n{answer}\nand not\n{expected}\n{log}");
            asked += 1;
        }
        assert!(asked > 0, "a README shows at least one invocation");
    }

    fn invoke(&self, function: &str, event: &Value) -> Answer {
        self.instance.invoke(function, event)
    }
}

/// The fenced lines of one kind in one section.
#[track_caller]
fn section(readme: &str, title: &str, kind: &str) -> String {
    let text = readme.split("\n## ").find(|part| part.starts_with(title)).unwrap_or_default();
    let fenced = text.split_once(&format!("```{kind}\n")).and_then(|(_, rest)| rest.split_once("```"));
    fenced.map_or_else(String::new, |(lines, _)| lines.to_owned())
}

/// `…` stands for whatever differs from time to time.
fn matches(expected: &str, found: &str) -> bool {
    let mut pieces = expected.split('…');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = found.strip_prefix(first) else { return false };
    let mut pieces = pieces.peekable();
    while let Some(piece) = pieces.next() {
        let last = pieces.peek().is_none();
        let at = if last { rest.len().checked_sub(piece.len()).filter(|_| rest.ends_with(piece)) } else { rest.find(piece) };
        let Some(at) = at else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.is_empty()
}

/// A REPORT line with all that is billed for.
#[track_caller]
fn is_reported(answer: &Answer, memory: f64) {
    assert!(answer.report_number("Duration") > 0.0);
    assert!(answer.report_number("Billed Duration") >= 1.0);
    assert_eq!(answer.report_number("Memory Size"), memory);
    let used = answer.report_number("Max Memory Used");
    assert!(used >= 1.0 && used < memory, "{used} MB of {memory}");
}

/// A function error, its type and its words; and the function goes on in the same environment.
#[track_caller]
fn fails_as(answer: &Answer, error_type: &str, message: &str) {
    assert_eq!((answer.status, answer.header("x-amz-function-error")), (200, Some("Unhandled")), "{}", answer.text());
    let error = answer.json();
    assert_eq!(error["errorType"], error_type, "{error}");
    assert!(error["errorMessage"].as_str().is_some_and(|text| text.contains(message)), "{error}");
    assert!(answer.report("Duration").is_some(), "{}", answer.log());
}

#[test]
fn the_tutorial_in_node_keeps_its_connection_over_invocations() {
    let Some(example) = Example::deploy("node-tutorial") else { return };
    keeps_its_connection(&example);
}

#[test]
fn the_tutorial_in_python_keeps_its_connection_over_invocations() {
    let Some(example) = Example::deploy("python-tutorial") else { return };
    keeps_its_connection(&example);
}

#[track_caller]
fn keeps_its_connection(example: &Example) {
    example.keeps_its_word();
    let answer = example.invoke("tutorial", &json!({}));
    assert_eq!(answer.json()["queriesOnThisConnection"], 3);
    is_reported(&answer, 128.0);
}

#[test]
fn orders_in_node_are_checked_by_a_package_of_npm() {
    let Some(example) = Example::deploy("node-orders") else { return };
    example.keeps_its_word();
    let answer = example.invoke("orders", &json!({ "body": "not JSON" }));
    assert_eq!(answer.json()["statusCode"], 400);
    is_reported(&answer, 256.0);
    fails_as(&example.invoke("orders", &json!({ "body": 1 })), "TypeError", "the event has no body");
    let refused = example.invoke("orders", &json!({ "body": "{}" }));
    assert!(refused.log().contains("refused: / must have required property 'customer'"), "{}", refused.log());
}

#[test]
fn thumbnails_in_python_are_made_by_compiled_code_of_pypi() {
    let Some(example) = Example::deploy("python-thumbnails") else { return };
    example.keeps_its_word();
    let event: Value = serde_json::from_slice(&fs::read(example.directory.join("harbour.json")).unwrap()).unwrap();
    let answer = example.invoke("thumbnails", &event);
    is_reported(&answer, 512.0);
    assert!(answer.log().contains("320x240 -> 64x48"), "{}", answer.log());
    fails_as(&example.invoke("thumbnails", &json!({ "image": "", "width": 0 })), "ValueError", "width must be between");
    fails_as(&example.invoke("thumbnails", &json!({})), "KeyError", "image");
}

#[test]
fn words_in_rust_are_counted_in_any_script() {
    let Some(example) = Example::deploy("rust-word-count") else { return };
    example.keeps_its_word();
    let answer = example.invoke("word-count", &json!({ "text": "Ἐν ἀρχῇ ἦν ὁ λόγος, καὶ ὁ λόγος ἦν πρὸς τὸν θεόν", "top": 2 }));
    assert_eq!(answer.json()["most_frequent"], json!([["λόγος", 2], ["ἦν", 2]]), "{}", answer.text());
    assert!(answer.log().contains("\n12 words\n"), "{}", answer.log());
    is_reported(&answer, 128.0);
    fails_as(&example.invoke("word-count", &json!({ "text": "a", "top": 1000 })), "TooMany", "at most 100");
}

#[test]
fn webhooks_in_go_are_believed_if_they_are_signed() {
    let Some(example) = Example::deploy("go-webhook") else { return };
    example.keeps_its_word();
    let unsigned = example.invoke("webhook", &json!({ "body": "{}" }));
    assert_eq!(unsigned.json()["statusCode"], 401);
    assert!(unsigned.log().contains("refused: not signed with our secret"), "{}", unsigned.log());
    is_reported(&unsigned, 128.0);

    // A function that does not find what it needs ends in its init, and its caller reads why in the log.
    let without = example.run("kiln function create forgetful --runtime provided.al2023 --handler bootstrap --dir package");
    assert!(without.status.success(), "{}", String::from_utf8_lossy(&without.stderr));
    let answer = example.invoke("forgetful", &json!({}));
    fails_as(&answer, "Runtime.ExitError", "Runtime exited with error: exit status 1");
    assert!(answer.log().contains("WEBHOOK_SECRET is not set"), "{}", answer.log());
}

/// An example that nobody runs is not one.
#[test]
fn every_example_has_its_test() {
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/examples.rs")).unwrap();
    let mut seen = 0;
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(source.contains(&format!("Example::deploy({name:?})")), "{name}: no test deploys it");
        seen += 1;
    }
    assert!(seen >= 6, "only {seen} examples");
}

#[test]
fn dots_in_an_answer_stand_for_anything_and_nothing_else_does() {
    assert!(matches("a…c", "a b c") && matches("…", "") && matches("a", "a") && matches("…b…", "abc"));
    assert!(!matches("a…c", "a b d") && !matches("a", "ab") && !matches("a…b…c", "a c") && !matches("ab…ba", "aba"));
}
