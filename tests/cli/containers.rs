//! `kiln container` and `kiln function drain` before a house: containers are listed, shown, entered, ended.

use std::process::Command;

use kiln::server::pool::SeenState;
use serde_json::Value;

use crate::doors::{House, snapshot};
use crate::{ended, kiln};

#[test]
fn containers_are_listed_recycled_and_killed_and_a_function_is_drained() {
    let house = House::open();
    let run = house.run_dir();
    let shows = |state: SeenState| {
        let mut seen = snapshot();
        seen.environments[0].state = state;
        *house.fakes.snapshot.lock().unwrap() = seen;
    };
    shows(SeenState::Idle);
    let (out, _) = ended(&kiln(run, &["container", "list"]), 0);
    assert!(out.starts_with("FUNCTION") && out.contains("hello") && out.contains("3-17"), "{out}");
    assert_eq!(ended(&kiln(run, &["container", "list", "-q"]), 0).0, "3-17\n");
    assert_eq!(ended(&kiln(run, &["container", "list", "-q", "--function", "other"]), 0).0, "");
    let (out, err) = ended(&kiln(run, &["container", "list", "--function", "other"]), 0);
    assert_eq!((out.as_str(), err.as_str()), ("", "there are no containers now\n"));

    let (_, err) = ended(&kiln(run, &["container", "recycle", "3-99", "3-17"]), 4);
    assert!(err.contains("container 3-17 of hello recycled") && err.contains("no container 3-99"), "each is tried: {err}");
    for (state, verb, said) in [
        (SeenState::Busy, "recycle", "container 3-17 of hello ends when its invocation does\n"),
        (SeenState::Busy, "kill", "container 3-17 of hello killed, and the invocation that it ran\n"),
        (SeenState::Idle, "kill", "container 3-17 of hello killed\n"),
    ] {
        shows(state);
        assert_eq!(ended(&kiln(run, &["container", verb, "3-17"]), 0), (String::new(), said.into()));
    }

    // The fake's drained environments end when they have been looked at.
    shows(SeenState::Busy);
    let (_, err) = ended(&kiln(run, &["function", "drain", "hello"]), 0);
    assert_eq!(err, "waiting for 1 running of hello\nfunction hello drained: 0 idle ended, 1 after their invocation\n");
    shows(SeenState::Busy);
    let (_, err) = ended(&kiln(run, &["function", "drain", "hello", "--no-wait"]), 0);
    assert_eq!(err, "function hello drained: 0 idle ended, 1 end after their invocation\n");
    let (out, _) = ended(&kiln(run, &["container", "list"]), 0);
    assert!(out.contains("busy, drained"), "{out}");
    shows(SeenState::Idle);
    let (out, _) = ended(&kiln(run, &["function", "drain", "arn:aws:lambda:us-east-1:000000000000:function:hello", "--json"]), 0);
    assert_eq!(
        serde_json::from_str::<Value>(&out).unwrap(),
        serde_json::json!({ "function": "hello", "ended": 1, "leaving": 0 })
    );
}

#[test]
fn a_program_in_a_container_has_our_stdin_and_we_have_its_output_and_its_exit_code() {
    let house = House::open();
    let run = house.run_dir();
    *house.fakes.snapshot.lock().unwrap() = snapshot();
    // More than one frame, and more than any pipe holds.
    let long = "all that was typed\n".repeat(20_000);
    for (program, code, err) in [("sh", 0, ""), ("sh", 7, ""), ("complain", 1, "no\n")] {
        let typed = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(typed.path(), &long).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.args(["container", "exec", "3-17", "--", program, "-c", &code.to_string()]).env("KILN_RUN_DIR", run);
        // A file, so that nobody here has to write while nobody reads.
        let output = command.stdin(typed.reopen().unwrap()).output().unwrap();
        let (out, said) = ended(&output, code);
        assert!(out == long && said == err, "{} bytes of {}, {said}", out.len(), long.len());
    }
    let (asked, by) = house.fakes.entered.lock().unwrap()[0].clone();
    assert_eq!((asked.command, asked.root, asked.terminal), (vec!["sh".into(), "-c".into(), "0".into()], false, None));
    assert_eq!(by, format!("uid {} (kiln container exec)", nix::unistd::getuid()));
    ended(&kiln(run, &["container", "exec", "3-17", "--root", "--", "sh", "0"]), 0);
    let (asked, by) = house.fakes.entered.lock().unwrap().last().unwrap().clone();
    assert!(asked.root && by.ends_with("(kiln container exec --root)"), "{by}");

    let exec = |id: &str, program: &str, code: i32| ended(&kiln(run, &["container", "exec", id, "--", program, "x"]), code).1;
    exec("3-17", "killed", 137);
    assert_eq!(exec("3-17", "sh", 1), "kiln: container 3-17 has ended, and with it what ran in it: kilnd stops\n");
    assert!(exec("3-17", "vanish", 3).contains("kilnd went away"));
    assert!(exec("3-17", "beside", 1).starts_with("container 3-17 runs an invocation, and ends with it: so will this\n"));
    assert_eq!(exec("3-17", "no-such", 127), "kiln: container 3-17: there is no no-such in this container, in none of /bin\n");
    assert!(exec("3-17", "directory", 126).contains("directory cannot be executed in this container: Permission denied"));
    assert!(exec("3-17", "occupied", 1).contains("somebody is in it already"));
    assert!(exec("3-17", "no-room", 1).contains("`kiln pool` shows who has it"));
    let gone = exec("3-18", "sh", 4);
    assert!(gone.contains("there is no container 3-18, or it has ended: `kiln container list`"), "{gone}");
    assert_eq!(kiln(run, &["container", "exec", "3-17"]).status.code(), Some(2), "a command is needed");
    assert_eq!(kiln(run, &["container", "exec", "3-17", "ls"]).status.code(), Some(2), "and stands behind --");
}

#[test]
fn whoever_closes_our_output_has_what_they_wanted_of_a_program_in_a_container() {
    let house = House::open();
    *house.fakes.snapshot.lock().unwrap() = snapshot();
    let script = "yes | \"$0\" container exec 3-17 -- sh x | head -n 1";
    let mut command = Command::new("bash");
    let output = command.args(["-c", script, env!("CARGO_BIN_EXE_kiln")]).env("KILN_RUN_DIR", house.run_dir()).output().unwrap();
    assert_eq!(ended(&output, 0), ("y\n".into(), String::new()));
}

#[test]
fn a_container_is_shown_on_a_page_and_as_json_and_as_oci_has_it() {
    let house = House::open();
    let run = house.run_dir();
    *house.fakes.snapshot.lock().unwrap() = snapshot();
    let (out, _) = ended(&kiln(run, &["container", "inspect", "3-17"]), 0);
    for line in [
        "3-17 of hello $LATEST\n",
        "  state       idle for 3s, frozen\n",
        "  cold        its function had none before, since kilnd's start\n",
        "  runtime     nodejs8.10, index.handler\n",
        "  memory      36 of 128 MiB, 40 at the most; 36 against the budget\n",
        "  /tmp        3 MiB of 512 MiB\n",
        "  processes   kiln-init 4711, runtime 4712\n",
        "  user        1879113728 is 993 inside\n",
        "  cgroup      unified /kiln-test-3-17\n",
        "  namespaces  mnt 4026531840\n",
        "  /tmp        tmp 512 MiB (nosuid,nodev)\n",
        "\nlife\n  1970-01-01T00:00:01.000Z  starting\n",
    ] {
        assert!(out.contains(line), "{line:?}: {out}");
    }
    let json = |words: &[&str]| serde_json::from_str::<Value>(&ended(&kiln(run, words), 0).0).unwrap();
    let found = json(&["container", "inspect", "3-17", "--json"]);
    assert_eq!((&found["namespaces"]["mnt"], &found["why_cold"]["why"]), (&4_026_531_840_u64.into(), &"first".into()));
    assert_eq!((&found["timeline"][0]["event"], &found["tasks"]["now"]), (&"starting".into(), &12.into()));
    // Every field is named in the help, so that scripts may rely upon them.
    let help = ended(&kiln(run, &["container", "inspect", "--help"]), 0).0;
    for (name, value) in found.as_object().unwrap() {
        assert!(help.contains(name.as_str()), "{name} is not in the help");
        for inner in value.as_object().into_iter().flatten().map(|(inner, _)| inner) {
            assert!(help.contains(inner.as_str()), "{name}.{inner} is not in the help");
        }
    }
    assert_eq!(json(&["container", "inspect", "3-17", "--oci"])["hostname"], "sandbox");
    for words in [&["container", "inspect", "3-18"][..], &["container", "inspect", "3-18", "--oci"]] {
        let (_, err) = ended(&kiln(run, words), 4);
        assert!(err.contains("`kiln container list` shows those that there are"), "{err}");
    }
}
