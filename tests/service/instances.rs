//! Two instances by the template, side by side and in each other's way.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::machine::{self, Kiln, command, property, run};

const CONFIG: &str = "/etc/kiln/two.toml";

/// `kilnd@two`, as `scripts/install --instance two` makes it.
fn second(kiln: &Kiln) {
    // Of a test that failed.
    if Path::new(CONFIG).exists() {
        remove_second();
    }
    kiln.machine.install(&["--runtimes", "none", "--no-start", "--instance", "two"]);
    let text = fs::read_to_string(CONFIG).unwrap();
    fs::write(CONFIG, text + "memory_budget_mib = 4000\ncapacity_wait_s = 60\n").unwrap();
}

fn remove_second() {
    run("systemctl", &["disable", "--now", "kilnd@two.service", "kilnd@two.socket", "kilnd-control@two.socket"]);
    let _ = command("systemctl", &["reset-failed", "kilnd@two.service"]);
    fs::remove_file(CONFIG).unwrap();
    for directory in ["/var/lib/kiln-two", "/run/kiln-two"] {
        if Path::new(directory).exists() {
            fs::remove_dir_all(directory).unwrap();
        }
    }
}

#[test]
fn two_instances_run_side_by_side_and_one_ends_alone() {
    let Some(kiln) = machine::enter() else { return };
    second(&kiln);
    run("systemctl", &["start", "kilnd@two"]);
    let two = kiln.another("kilnd@two.service", "/run/kiln-two");
    kiln.create_probe("f", json!({}));
    two.create_probe("f", json!({}));
    assert_eq!(kiln.call("f", &json!({ "do": "echo", "from": 1 }))["from"], 1);
    assert_eq!(two.call("f", &json!({ "do": "echo", "from": 2 }))["from"], 2);
    let main = kiln.main_pid();
    let warm = kiln.call("f", &json!({ "do": "global" }))["start"].clone();
    run("systemctl", &["stop", "kilnd@two"]);
    let left = machine::picture::cgroups("kiln-two-");
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(kiln.call("f", &json!({ "do": "global" }))["start"], warm, "the first does not feel the end of the second");
    assert_eq!(kiln.main_pid(), main);
    remove_second();
    kiln.leave();
}

#[test]
fn an_instance_whose_ids_overlap_says_the_cure_in_its_status() {
    let Some(kiln) = machine::enter() else { return };
    second(&kiln);
    let text = fs::read_to_string(CONFIG).unwrap();
    let overlapping: String = text
        .lines()
        .map(|line| if line.starts_with("first_id") { "first_id = 1879113728\n".into() } else { format!("{line}\n") })
        .collect();
    fs::write(CONFIG, overlapping).unwrap();
    let started = command("systemctl", &["start", "kilnd@two"]);
    assert!(!started.status.success());
    let _ = command("journalctl", &["--sync"]);
    let status = String::from_utf8_lossy(&command("systemctl", &["status", "--full", "kilnd@two"]).stdout).into_owned();
    assert!(status.contains("first_id"), "{status}");
    assert_ne!(property("kilnd@two", "ActiveState"), "active");
    kiln.create_probe("f", json!({}));
    kiln.call("f", &json!({ "do": "echo" }));
    remove_second();
    kiln.leave();
}
