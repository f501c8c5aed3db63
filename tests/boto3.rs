//! boto3, unmodified but for the socket it opens, before whole instances: what Lambda's own client makes of every answer.
//!
//! The checks are Python (`tests/boto3`), one function for each behaviour. Here they are given an instance, and counted:
//! every check that a file declares must say that it went well, so that none is lost on the way. Needs what `tests/engine`
//! needs, and a Python with boto3: `scripts/test` makes one in `target/venv`; `KILN_TEST_PYTHON` names another.

#[allow(dead_code)] // serves several test programs; each uses its part
#[path = "engine/host/mod.rs"]
mod host;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use host::{Instance, Options, code};

fn checks() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/boto3")
}

/// A Python that has boto3, if there is one.
fn python() -> Option<PathBuf> {
    let ours = || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python");
    let python = std::env::var_os("KILN_TEST_PYTHON").map_or_else(ours, PathBuf::from);
    let has = Command::new(&python).args(["-c", "import boto3"]).output().is_ok_and(|output| output.status.success());
    if !has {
        let lacking =
            format!("boto3 in {}: scripts/test installs it, or name a Python that has it by KILN_TEST_PYTHON", python.display());
        assert!(std::env::var_os("KILN_TESTS_MUST_RUN").is_none(), "this test must run here, but needs {lacking}");
        eprintln!("SKIP: needs {lacking}");
    }
    has.then_some(python)
}

/// What a module's source declares.
fn declared(module: &str) -> BTreeSet<String> {
    let source = fs::read_to_string(checks().join(format!("{module}.py"))).expect("read the checks");
    let mut lines = source.lines();
    let mut names = BTreeSet::new();
    while let Some(line) = lines.next() {
        if line == "@check" {
            let function = lines.next().and_then(|line| line.strip_prefix("def ")).and_then(|line| line.split('(').next());
            names.insert(format!("{module}.{}", function.expect("a function follows @check")));
        }
    }
    assert!(!names.is_empty(), "{module}.py declares no check");
    names
}

/// Runs all checks of these modules on one instance.
fn all_go_well(config: &str, modules: &[&str]) {
    if !host::ready() {
        return;
    }
    let Some(python) = python() else { return };
    let instance = Instance::start_with(Options { config: config.into(), ..Options::default() });
    let probe = instance.dir.path().join("probe.zip");
    fs::write(&probe, code::probe_zip()).expect("write the probe's zip");
    let output = Command::new(python)
        // No compiled files of root's in the checkout.
        .arg("-B")
        .arg(checks().join("main.py"))
        .arg(instance.run_dir().join("kiln.sock"))
        .arg(&probe)
        .args(modules)
        .output()
        .expect("run Python");
    let told = String::from_utf8_lossy(&output.stdout);
    print!("{told}");
    let well: BTreeSet<String> =
        told.lines().filter_map(|line| line.strip_prefix("ok ")?.split(' ').next().map(str::to_owned)).collect();
    let wanted: BTreeSet<String> = modules.iter().flat_map(|module| declared(module)).collect();
    let missing: Vec<_> = wanted.difference(&well).collect();
    assert!(
        missing.is_empty() && output.status.success(),
        "{} of {} checks did not go well: {missing:?}\n{told}{}",
        missing.len(),
        wanted.len(),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn boto3_manages_functions_as_on_lambda() {
    all_go_well("", &["managing", "naming", "mistakes"]);
}

#[test]
fn boto3_invokes_functions_as_on_lambda() {
    all_go_well("", &["invoking"]);
}

#[test]
fn boto3_shares_layers_and_reserves_concurrency_as_on_lambda() {
    all_go_well("", &["sharing"]);
}

#[test]
fn boto3_meets_todays_limits_and_the_throttle() {
    all_go_well("profile = 'current'\nconcurrency = 1\ncapacity_wait_s = 1\n", &["current"]);
}
