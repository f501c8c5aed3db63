//! The power is cut in the middle of work, and the machine comes up again over what is on its disk.
//!
//! Two boots of `scripts/vm/boot --boots 2`, with KILN_TEST_REBOOT set, run the one test here: `$BOOT` says which half. Without
//! it the test says SKIP. A machine with all of Debian's own units (`--full`) is the one to believe.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::machine::{self, Kiln, answers, command, eventually, invoke_at_once, property, run};

/// On the root disk, which lasts; the payload's comes after kilnd at a boot.
const RUNTIMES: &str = "/var/lib/kiln/runtimes";
/// What had been answered when the power went.
const KNOWN: &str = "/var/lib/known.json";

#[test]
fn a_power_cut_in_the_middle_of_work_costs_nothing_that_was_answered() {
    if std::env::var_os("KILN_TEST_REBOOT").is_none() {
        return eprintln!("SKIP: needs KILN_TEST_REBOOT, and two boots over one disk");
    }
    match std::env::var("BOOT").as_deref() {
        Ok("1") => work_until_the_power_is_cut(),
        Ok("2") => everything_is_whole(),
        other => panic!("BOOT is {other:?}"),
    }
}

fn work_until_the_power_is_cut() {
    let Some(machine) = machine::bare() else { return };
    fs::create_dir_all(RUNTIMES).unwrap();
    for name in ["owner", "sets", "trees", "provided.al2023.toml"] {
        run("cp", &["-a", &machine::runtimes().join(name).display().to_string(), RUNTIMES]);
    }
    // Enabled, and started; as a user has it.
    machine.install(&["--runtimes", "none"]);
    let kiln = Kiln::running(machine);
    kiln.create_probe("kept", json!({ "Timeout": 900, "Environment": { "Variables": { "NUMBER": "1" } } }));
    kiln.create_probe("removed", json!({}));
    assert_eq!(kiln.api().request("DELETE", "/2015-03-31/functions/removed", &[], b"").status, 204);
    let row = kiln.invoke("kept", &json!({ "do": "echo" }));
    // Everything so far was answered, so it has to be there afterwards. The disk's own cache is the machine's.
    run("sync", &[]);
    let known = json!({ "request": row.request_id(), "sha256": kiln.configuration("kept")["CodeSha256"] });
    fs::write(KNOWN, known.to_string()).unwrap();
    run("sync", &[KNOWN]);
    // And now work of every kind is under way when the power goes: invocations, code that is being stored, containers.
    drop(invoke_at_once(&kiln, 4, "kept", &json!({ "do": "sleep", "ms": 600_000 })));
    eventually("it works", || kiln.environments("busy") == 4);
    let zip = machine::save(&machine::zip(&[("bootstrap", 0o755, &vec![7; 8 << 20])]), "/var/tmp/large.zip");
    let store = format!("while :; do kiln function create n$((++n)) --runtime provided.al2023 --handler h --zip {zip}; done");
    run("systemd-run", &["--unit=storing", "bash", "-c", &store]);
    eventually("code is being stored", || {
        fs::read_dir("/var/lib/kiln/staging").is_ok_and(|mut entries| entries.next().is_some())
            || property("storing", "SubState") != "running"
    });
    assert_eq!(property("storing", "SubState"), "running", "{}", run("journalctl", &["-u", "storing", "--no-pager"]));
    // No leave(): the rig cuts the power as soon as this program has ended.
}

fn everything_is_whole() {
    let Some(machine) = machine::bare() else { return };
    let known: Value = serde_json::from_slice(&fs::read(KNOWN).expect("what the first boot knew")).unwrap();
    // Nobody starts anything here: the units are enabled.
    eventually("kilnd was started by the boot", || property("kilnd", "SubState") == "running");
    let kiln = Kiln::running(machine);
    assert_eq!(kiln.configuration("kept")["CodeSha256"], known["sha256"]);
    assert_eq!(kiln.configuration("kept")["Environment"]["Variables"]["NUMBER"], "1");
    assert_eq!(kiln.api().request("GET", "/2015-03-31/functions/removed", &[], b"").status, 404);
    let log = kiln.function_log("kept");
    assert!(log.contains(known["request"].as_str().unwrap()), "the line of an answered invocation is there:\n{log}");
    let answer = kiln.call("kept", &json!({ "do": "echo", "boot": 2 }));
    assert_eq!(answer["boot"], 2);
    for answer in answers(invoke_at_once(&kiln, 4, "kept", &json!({ "do": "echo" }))) {
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    // All that was being stored is there or is not, and what is there can be read.
    let listed = kiln.api().request("GET", "/2015-03-31/functions/", &[], b"").json();
    for function in listed["Functions"].as_array().unwrap() {
        let name = function["FunctionName"].as_str().unwrap();
        let digest = kiln.configuration(name)["CodeSha256"].clone();
        assert_eq!(digest, function["CodeSha256"]);
    }
    let doctor = command("kiln", &["doctor"]);
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(!doctor.contains("\nbroken"), "{doctor}");
    // Nothing of the first boot's is left: not half of a zip, not a directory of staging.
    run("systemctl", &["stop", "kilnd"]);
    let staging = fs::read_dir(Path::new("/var/lib/kiln/staging")).map_or(0, Iterator::count);
    assert_eq!(staging, 0);
    let left = machine::leftovers();
    assert!(left.is_empty(), "{left}");
}
