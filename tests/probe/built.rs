//! Where the probe's program is, for the tests that start it.

use std::path::{Path, PathBuf};

/// `cargo test` builds examples beside the tests; `cargo test --test NAME` alone does not.
pub fn built_probe() -> PathBuf {
    let this = std::env::current_exe().expect("this test's path");
    let probe = this.parent().and_then(Path::parent).expect("target/debug").join("examples/probe");
    assert!(probe.exists(), "{} is missing: run `cargo build --example probe` first", probe.display());
    probe
}
