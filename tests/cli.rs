//! The `kiln` command as people and scripts meet it: what it prints where, and its exit codes.

mod doors;
#[allow(dead_code)] // serves several test programs; each uses its part
mod eyes;
#[path = "cli/seat.rs"]
mod seat;
#[path = "cli/watching.rs"]
mod watching;

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use doors::{House, ended_environment, shown_pool, snapshot};
use kiln::function::FunctionName;
use kiln::invocation::Throttle;
use kiln::server::events::{Cold, Detail, Retire, Subject, What, When};
use kiln::server::logs::{Kind, LogSink, Origin, Piece};
use kiln::server::pool::SeenState;
use kiln::wire::supervisor::{Unpacked, ZipRefusal};
use serde_json::Value;

fn kiln(run_dir: &Path, words: &[&str]) -> Output {
    kiln_with_stdin(run_dir, words, "")
}

fn kiln_with_stdin(run_dir: &Path, words: &[&str], stdin: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(words).env("KILN_RUN_DIR", run_dir).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that reads no stdin may have ended already.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

#[track_caller]
fn ended(output: &Output, code: i32) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "stdout: {out}\nstderr: {err}");
    (out, err)
}

/// Makes a function from a directory, as the tutorial does.
fn create(house: &House, name: &str) {
    let code = tempfile::tempdir().unwrap();
    std::fs::write(code.path().join("index.js"), "exports.handler = async () => 1;\n").unwrap();
    let dir = code.path().to_str().unwrap();
    let words = ["function", "create", name, "--runtime", "nodejs8.10", "--handler", "index.handler", "--dir", dir];
    let (out, err) = ended(&kiln(house.run_dir(), &words), 0);
    assert_eq!((out.as_str(), err), ("", format!("function {name} created; try: kiln invoke {name}\n")));
}

#[test]
fn a_function_is_made_shown_run_changed_and_deleted() {
    let house = House::open();
    let run = house.run_dir();
    create(&house, "hello");

    let (out, _) = ended(&kiln(run, &["function", "get", "hello"]), 0);
    assert!(out.contains("handler     index.handler\n") && out.contains("state       Active\n"), "{out}");

    let (out, err) = ended(&kiln(run, &["invoke", "hello", "--payload", "{\"a\":1}", "--log"]), 0);
    assert_eq!(out, "{\"a\":1}", "exactly what the function returned");
    assert!(err.starts_with("START RequestId: "), "{err}");

    let words = ["function", "update", "hello", "--memory", "512", "--env", "KEY=a=b", "--timeout", "60"];
    ended(&kiln(run, &words), 0);
    let (out, _) = ended(&kiln(run, &["--json", "function", "get", "hello"]), 0);
    let configuration = &serde_json::from_str::<Value>(&out).unwrap()["Configuration"];
    assert_eq!((&configuration["MemorySize"], &configuration["Timeout"]), (&512.into(), &60.into()));
    assert_eq!(configuration["Environment"]["Variables"]["KEY"], "a=b");

    // Settings and code together: where the code is refused, the settings stay as they were.
    *house.fakes.unpacked.lock().unwrap() = Some(Unpacked::Refused(ZipRefusal::BadLink));
    let file = house.directory.path().join("index.js");
    std::fs::write(&file, "changed").unwrap();
    let words = ["function", "update", "hello", "--memory", "128", "--file", file.to_str().unwrap()];
    ended(&kiln(run, &words), 1);
    *house.fakes.unpacked.lock().unwrap() = None;

    let (out, _) = ended(&kiln(run, &["function", "list"]), 0);
    let cells: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().take(5).collect()).collect();
    assert_eq!(
        cells,
        [["NAME", "RUNTIME", "HANDLER", "MEMORY", "TIMEOUT"], ["hello", "nodejs8.10", "index.handler", "512", "60"]]
    );

    ended(&kiln(run, &["function", "delete", "hello"]), 0);
    let (out, _) = ended(&kiln(run, &["function", "list", "--json"]), 0);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), serde_json::json!({ "Functions": [] }));
}

#[test]
fn a_list_of_more_than_one_page_is_whole() {
    let house = House::open();
    for number in 0..52 {
        create(&house, &format!("f{number}"));
    }
    let (out, _) = ended(&kiln(house.run_dir(), &["function", "list"]), 0);
    assert_eq!(out.lines().count(), 53);
}

#[test]
fn a_payload_comes_from_the_command_line_a_file_or_stdin() {
    let house = House::open();
    create(&house, "echo");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[\"file\"]").unwrap();
    let at_file = format!("@{}", file.path().display());
    for (payload, result) in [("\"text\"", "\"text\""), (at_file.as_str(), "[\"file\"]"), ("-", "[\"stdin\"]")] {
        let output = kiln_with_stdin(house.run_dir(), &["invoke", "echo", "--payload", payload], "[\"stdin\"]");
        assert_eq!(ended(&output, 0).0, result);
    }
    assert_eq!(ended(&kiln(house.run_dir(), &["invoke", "echo"]), 0).0, "{}");
}

#[test]
fn every_exit_code_means_one_thing() {
    let house = House::open();
    let run = house.run_dir();
    for name in ["echo", "fails", "no-memory", "reserved", "broken"] {
        create(&house, name);
    }
    let nowhere = run.join("nowhere");
    let left_behind = tempfile::tempdir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(left_behind.path().join("kiln.sock")).unwrap());
    for (code, run, words, said) in [
        (0, run, &["invoke", "echo"][..], ""),
        (0, run, &["invoke", "fails", "--dry-run"][..], "function fails could be invoked so; it was not"),
        (0, run, &["--help"][..], ""),
        (1, run, &["invoke", "broken"][..], "ServiceException: a launcher said nothing"),
        (1, run, &["invoke", "echo", "--payload", "{"][..], "InvalidRequestContentException: Could not parse"),
        (1, run, &["invoke", "echo", "--payload", "@/nowhere"][..], "/nowhere cannot be read: "),
        (1, run, &["invoke", "echo", "--dry-run", "--payload", "{"][..], "InvalidRequestContentException: Could not parse"),
        (1, run, &["config", "check", "/nowhere"][..], "/nowhere cannot be read: "),
        (2, run, &["invoke"][..], "required arguments were not provided"),
        (2, run, &["function", "update", "echo"][..], "nothing to change"),
        (2, run, &["function", "create", "x", "--runtime", "r", "--handler", "h"][..], "--zip, --dir or --file"),
        (2, run, &["invoke", "echo", "--dry-run", "--log"][..], "cannot be used with"),
        (2, run, &["completions", "tcsh"][..], "invalid value 'tcsh'"),
        (2, run, &["config"][..], "Usage: kiln config"),
        (3, nowhere.as_path(), &["invoke", "echo"][..], "Kiln is not running, or runs elsewhere. Start it"),
        (3, left_behind.path(), &["invoke", "echo"][..], "kilnd has ended. Start it again"),
        (3, nowhere.as_path(), &["pool"][..], "control.sock: Kiln is not running, or runs elsewhere. Start it"),
        (4, run, &["invoke", "nope"][..], "Function not found: arn:aws:lambda:us-east-1:000000000000:function:nope:$LATEST"),
        (4, run, &["function", "get", "nope"][..], "Function not found: "),
        (4, run, &["function", "delete", "nope"][..], "Function not found: "),
        (4, run, &["invoke", "nope", "--dry-run"][..], "Function not found: "),
        (2, run, &["container", "kill"][..], "required arguments were not provided"),
        (2, run, &["function", "update", "echo", "--reuse", "sometimes"][..], "invalid value 'sometimes'"),
        (3, nowhere.as_path(), &["container", "list"][..], "control.sock: Kiln is not running"),
        (4, run, &["container", "kill", "3-99"][..], "there is no container 3-99, or it has ended: `kiln container list`"),
        (4, run, &["container", "recycle", "../x"][..], "there is no container ../x"),
        (4, run, &["function", "drain", "nope"][..], "there is no function nope"),
        (
            5,
            run,
            &["invoke", "no-memory"][..],
            "ConcurrentInvocationLimitExceeded: all capacity is in use, try again. `kiln pool`",
        ),
        (5, run, &["invoke", "reserved"][..], "its reserve allows (0 switches it off). `kiln function concurrency NAME` shows"),
        (6, run, &["invoke", "fails"][..], "the function fails failed"),
    ] {
        let (_, err) = ended(&kiln(run, words), code);
        assert!(err.contains(said), "{words:?}: {err}");
    }
}

#[test]
fn a_failed_functions_own_words_are_on_stdout() {
    let house = House::open();
    create(&house, "fails");
    let (out, _) = ended(&kiln(house.run_dir(), &["invoke", "fails"]), 6);
    assert_eq!(out, r#"{"errorType":"Error","errorMessage":"no"}"#);
    let (out, _) = ended(&kiln(house.run_dir(), &["invoke", "fails", "--json", "--log"]), 6);
    let whole: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&whole["function_error"], &whole["payload"]["errorMessage"]), (&"Unhandled".into(), &"no".into()));
    assert_eq!(whole["log"], format!("START RequestId: {}\n", whole["request_id"].as_str().unwrap()));
}

#[test]
fn a_pool_is_a_table_for_people_and_json_for_programs() {
    let house = House::open();
    *house.fakes.snapshot.lock().unwrap() = snapshot();
    let (out, _) = ended(&kiln(house.run_dir(), &["pool"]), 0);
    let heading: Vec<&str> = out.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        heading,
        ["FUNCTION", "VERSION", "STATE", "AGE", "IDLE", "MEMORY", "CHARGED", "PEAK", "CPU", "INVOCATIONS", "CONTAINER"]
    );
    assert!(out.contains("hello") && out.contains("3-17") && out.contains("1m15s"), "{out}");
    let (out, _) = ended(&kiln(house.run_dir(), &["pool", "--json"]), 0);
    let pool: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(pool, shown_pool());
}

#[test]
fn metrics_are_printed_or_written_whole() {
    let house = House::open();
    let (text, said) = ended(&kiln(house.run_dir(), &["metrics"]), 0);
    assert!(said.is_empty() && text.contains("\nkiln_invocations_total{function=\"hello\"} 1\n"), "{said}{text}");
    let path = house.run_dir().join("kiln.prom");
    let (out, said) = ended(&kiln(house.run_dir(), &["metrics", "--output", path.to_str().unwrap()]), 0);
    assert_eq!((out.as_str(), said.as_str()), ("", ""));
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(
        written.starts_with("# HELP kiln_") && written.contains("kiln_invocations_total{function=\"hello\"} 1\n"),
        "{written}"
    );
    let (_, said) = ended(&kiln(house.run_dir(), &["metrics", "--output", "/no/such/directory/kiln.prom"]), 1);
    assert!(said.contains("/no/such/directory/kiln.prom cannot be written"), "{said}");
}

#[test]
fn who_may_not_is_told_which_group_to_join() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("KILN_TESTS_MUST_RUN").is_none(), "needs root");
        eprintln!("SKIP: needs root, to run kiln as somebody else");
        return;
    }
    let house = House::open();
    // Where the program lies, others may not look; so they get a copy.
    let program = house.run_dir().join("kiln");
    // By another process: one that this one forks meanwhile, for another test, would hold the copy open for writing.
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_kiln")).arg(&program).status().unwrap().success());
    let nobody = |words: &[&str]| {
        let mut command = Command::new(&program);
        command.args(words).env("KILN_RUN_DIR", house.run_dir()).uid(4711).gid(4711).current_dir("/").output().unwrap()
    };
    let (_, err) = ended(&nobody(&["function", "list"]), 1);
    assert!(
        err.contains("is not authorized to perform: lambda:ListFunctions") && err.contains("usermod -aG kiln-admin"),
        "{err}"
    );
    std::fs::set_permissions(house.socket(), std::os::unix::fs::PermissionsExt::from_mode(0o660)).unwrap();
    let (_, err) = ended(&nobody(&["invoke", "hello"]), 3);
    assert!(err.contains("you may not open") && err.contains("usermod -aG "), "{err}");
}

#[test]
fn one_file_is_code_enough() {
    let house = House::open();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("index.js");
    std::fs::write(&file, "exports.handler = async () => 1;\n").unwrap();
    let file = file.to_str().unwrap();
    let words = ["function", "create", "one", "--runtime", "nodejs8.10", "--handler", "index.handler", "--file", file];
    ended(&kiln(house.run_dir(), &words), 0);
    ended(&kiln(house.run_dir(), &["function", "update", "one", "--file", file]), 0);
}

/// Every name in it, at any depth.
fn names(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => members.iter().for_each(|(name, below)| {
            found.push(name.clone());
            names(below, found);
        }),
        Value::Array(items) => items.iter().for_each(|item| names(item, found)),
        _ => {}
    }
}

#[test]
fn the_names_of_json_are_those_that_the_verbs_help_promises() {
    let house = House::open();
    *house.fakes.snapshot.lock().unwrap() = snapshot();
    create(&house, "echo");
    for words in [
        &["pool"][..],
        &["invoke", "echo", "--payload", "1"],
        &["doctor"],
        &["config", "check"],
        &["container", "list"],
        &["container", "recycle", "3-17"],
        &["container", "kill", "3-17"],
        &["function", "drain", "hello"],
    ] {
        *house.fakes.snapshot.lock().unwrap() = snapshot();
        let asked: Vec<&str> = words.iter().copied().chain(["--json"]).collect();
        let output = kiln(house.run_dir(), &asked);
        let mut printed = Vec::new();
        names(&serde_json::from_slice(&output.stdout).unwrap(), &mut printed);
        assert!(!printed.is_empty());
        let verb: Vec<&str> = words
            .iter()
            .copied()
            .take(if ["config", "container", "function"].contains(&words[0]) { 2 } else { 1 })
            .chain(["--help"])
            .collect();
        let (help, _) = ended(&kiln(house.run_dir(), &verb), 0);
        let json = help.split("With --json:").nth(1).unwrap().split("Exit codes:").next().unwrap();
        let documented: Vec<&str> = json.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        let missing: Vec<&String> = printed.iter().filter(|name| !documented.contains(&name.as_str())).collect();
        assert!(missing.is_empty(), "kiln {} --help does not tell {missing:?}", words[0]);
    }
}

/// One of each kind.
fn everything() -> Vec<What> {
    let text = || "text".to_owned();
    let retired = Detail { cause: Some(text()), text: Some(text()), by: Some(text()), needed_by: None };
    vec![
        What::Starting { why: Cold::First },
        What::Starting { why: Cold::Retired(Retire::Idle) },
        What::Ready { build_us: 1, init_us: 1 },
        What::InitFailed { cause: text(), text: text(), again: true, init_us: 1, peak_mib: 1 },
        What::Invoked { cold: true, waited_us: 5000 },
        What::TakenBack,
        What::Frozen,
        What::Thawed,
        What::Ended {
            duration_us: 1,
            billed_ms: 100,
            memory_mib: 128,
            max_memory_mib: 1,
            init_us: None,
            cold: true,
            cause: None,
        },
        What::Throttled { reason: Throttle::Memory, waited_us: 1, in_use: 1, limit: 1 },
        What::Retired { why: Retire::Failed, detail: retired, age_s: 1.0, invocations: 1, peak_mib: 1 },
        What::LauncherStarted { launcher: 1 },
        What::LauncherLost { launcher: 1 },
        What::Entered { by: text() },
        What::Left { by: text() },
        What::Swept { when: When::Running, cgroups: 1, staging: 0, code: 0 },
        What::Draining,
    ]
}

#[test]
fn events_and_the_history_are_lines_for_people_and_objects_for_programs_with_the_names_of_the_help() {
    let house = House::open();
    let run = house.run_dir();
    ended_environment(&house);
    let events = house.fakes.events.lock().unwrap().clone().unwrap();
    let of = Subject::environment(&FunctionName::parse("hello").unwrap(), "3-17");
    for what in everything() {
        events.emit(&of, None, what);
    }
    let told = |words: &[&str]| ended(&kiln(run, words), 0).0;
    let kinds: BTreeSet<&str> = everything().iter().map(What::name).collect();
    assert_eq!(kinds, What::NAMES.into(), "one of each kind");
    let lines = told(&["events"]);
    assert_eq!(lines.lines().count(), everything().len(), "{lines}");
    assert!(lines.contains("  hello         3-17   starting     cold: the last one ended: idle too long\n"), "{lines}");
    assert!(!lines.contains('\x1b'), "colours into a pipe");
    let mut objects: Vec<Value> =
        told(&["events", "--json"]).lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    assert_eq!(objects.len(), everything().len());
    assert_eq!(told(&["events", "--json", "--kind", "frozen", "--kind", "thawed", "-n", "1"]).lines().count(), 1);
    let (nothing, said) = ended(&kiln(run, &["events", "--function", "other"]), 0);
    assert!(nothing.is_empty() && said.contains("kiln history and kiln logs go further back"), "{said}");
    assert_eq!(ended(&kiln(run, &["events", "--function", "other", "--json"]), 0), (String::new(), String::new()));
    ended(&kiln(run, &["events", "--kind", "nothing"]), 2);
    ended(&kiln(run, &["events", "--since", "yesterday"]), 2);
    let lines = told(&["history"]);
    assert!(lines.contains("Sandbox.Timedout (Task timed out after 3.00 seconds)") && !lines.contains("3-18"), "{lines}");
    assert!(told(&["history", "--container", "3-18"]).contains("lives"));
    assert_eq!(told(&["history", "--function", "other"]), "no such environment has ended, as far as is kept\n");
    objects.push(serde_json::from_str(&told(&["history", "--json"])).unwrap());
    let (help, more) = (told(&["events", "--help"]), told(&["history", "--help"]));
    let json = |help: &str| help.split("With --json:").nth(1).unwrap().split("Exit codes:").next().unwrap().to_owned();
    let documented = json(&help) + &json(&more);
    let documented: Vec<&str> = documented.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let mut printed = Vec::new();
    objects.iter().for_each(|object| names(object, &mut printed));
    let missing: Vec<&String> = printed.iter().filter(|name| !documented.contains(&name.as_str())).collect();
    assert!(missing.is_empty(), "the help does not tell {missing:?}");
}

#[test]
fn a_shell_that_sources_its_completions_knows_every_verb() {
    let house = House::open();
    for (shell, mark) in [("bash", "complete -F _kiln"), ("zsh", "#compdef kiln"), ("fish", "complete -c kiln")] {
        let (script, err) = ended(&kiln(house.run_dir(), &["completions", shell]), 0);
        assert!(script.contains(mark) && err.is_empty(), "{shell}: {err}");
        for verb in ["function", "invoke", "pool", "doctor", "config", "container list --quiet", "function list --quiet"] {
            assert!(script.contains(verb), "{shell} does not know {verb}");
        }
    }
    let (zsh, _) = ended(&kiln(house.run_dir(), &["completions", "zsh"]), 0);
    assert!(zsh.contains(":_kiln_functions'") && zsh.contains(":_kiln_containers'"), "{zsh}");
    // Bash is on every machine that builds us, so what it makes of the script is asked.
    let (script, _) = ended(&kiln(house.run_dir(), &["completions", "bash"]), 0);
    let ask = format!("{script}\nCOMP_WORDS=(kiln func); COMP_CWORD=1; _kiln kiln func kiln; printf '%s' \"${{COMPREPLY[*]}}\"");
    let said = Command::new("bash").args(["--norc", "-c", &ask]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "function", "{}", String::from_utf8_lossy(&said.stderr));

    // Names and ids are kilnd's, and asked of it.
    *house.fakes.snapshot.lock().unwrap() = snapshot();
    create(&house, "echo");
    create(&house, "ends");
    let bin = Path::new(env!("CARGO_BIN_EXE_kiln")).parent().unwrap();
    let complete = |words: &str| {
        let last = words.split(' ').count() - 1;
        let ask = format!(
            "PATH={}:$PATH\n{script}\nCOMP_WORDS=({words}); COMP_CWORD={last}; _kiln_names kiln \"${{COMP_WORDS[{last}]}}\" x; \
             printf '%s' \"${{COMPREPLY[*]}}\"",
            bin.display()
        );
        let said = Command::new("bash").args(["--norc", "-c", &ask]).env("KILN_RUN_DIR", house.run_dir()).output().unwrap();
        String::from_utf8(said.stdout).unwrap()
    };
    let elsewhere = format!("kiln --run {} function get ec", house.run_dir().display());
    for (words, found) in [
        ("kiln container kill 3", "3-17"),
        ("kiln container recycle 3-1", "3-17"),
        ("kiln function drain e", "echo ends"),
        ("kiln invoke en", "ends"),
        ("kiln container rec", "recycle"),
        ("kiln container kill 4", ""),
        (&elsewhere, "echo"),
    ] {
        assert_eq!(complete(words), found, "{words}");
    }
}

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

#[test]
fn reuse_is_set_at_creation_and_by_an_update_and_shown() {
    let house = House::open();
    let run = house.run_dir();
    let file = tempfile::Builder::new().suffix(".js").tempfile().unwrap();
    std::fs::write(file.path(), "exports.handler = async () => 1;\n").unwrap();
    let words = ["function", "create", "f", "--runtime", "nodejs8.10", "--handler", "x.y", "--reuse", "never", "--file"];
    ended(&kiln(run, &[&words[..], &[file.path().to_str().unwrap()]].concat()), 0);
    let reuse = || {
        let (out, _) = ended(&kiln(run, &["function", "get", "f"]), 0);
        out.lines().find_map(|line| line.strip_prefix("reuse")).map(|value| value.trim().to_owned())
    };
    assert_eq!(reuse().as_deref(), Some("never"));
    let (_, err) = ended(&kiln(run, &["function", "update", "f", "--reuse", "always"]), 0);
    assert_eq!((reuse().as_deref(), err.as_str()), (Some("always"), "function f updated; try: kiln invoke f\n"));
    let (out, _) = ended(&kiln(run, &["function", "update", "f", "--reuse", "never", "--memory", "256", "--json"]), 0);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["MemorySize"], 256);
    assert_eq!(reuse().as_deref(), Some("never"));
}

/// Every verb that help shows has a page of its own, and every page says what its help says.
#[test]
fn each_verb_has_a_manual_page_made_of_its_help() {
    fn verbs(run: &Path, words: &[&str], found: &mut Vec<Vec<String>>) {
        let (help, _) = ended(&kiln(run, &[words, &["--help"]].concat()), 0);
        found.push(words.iter().map(|word| (*word).to_owned()).collect());
        let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
        for verb in lines.filter_map(|line| line.split_whitespace().next()).filter(|verb| *verb != "help") {
            verbs(run, &[words, &[verb]].concat(), found);
        }
    }
    let house = House::open();
    let run = house.run_dir();
    let mut found = Vec::new();
    verbs(run, &[], &mut found);
    assert!(found.len() > 20 && found.contains(&vec!["function".to_owned(), "create".to_owned()]), "{found:?}");

    let pages = tempfile::tempdir().unwrap();
    ended(&kiln(run, &["man", "--dir", pages.path().to_str().unwrap()]), 0);
    let mut names: Vec<String> =
        std::fs::read_dir(pages.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let title = |words: &Vec<String>| [vec!["kiln".to_owned()], words.clone()].concat().join("-");
    let mut wanted: Vec<String> = found.iter().map(|words| format!("{}.1", title(words))).collect();
    names.sort();
    wanted.sort();
    assert_eq!(names, wanted);
    for words in &found {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (page, _) = ended(&kiln(run, &[&["man"], &words[..]].concat()), 0);
        assert!(page.contains("\n.SH NAME\n") && page.contains("\n.SH SYNOPSIS\n"), "{page}");
        // The first example of its help, as roff writes it.
        let (help, _) = ended(&kiln(run, &[&words[..], &["--help"]].concat()), 0);
        if let Some(example) = help.split("Examples:\n  ").nth(1).and_then(|rest| rest.split("  ").next()?.lines().next()) {
            let first = example.replace('-', "\\-").replace('\'', "\\*(Aq");
            assert!(page.contains(first.trim()), "{first}\n{page}");
        }
    }
    let (_, err) = ended(&kiln(run, &["man", "functions"]), 2);
    assert!(err.contains("no verb functions"), "{err}");
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    let house = House::open();
    create(&house, "echo");
    for words in [
        &["function", "list"][..],
        &["function", "get", "echo", "--json"],
        &["invoke", "echo"],
        &["pool"],
        &["completions", "bash"],
        &["config", "sample"],
        &["--help"],
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kiln"))
            .args(words)
            .env("KILN_RUN_DIR", house.run_dir())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let (_, err) = ended(&child.wait_with_output().unwrap(), 0);
        assert_eq!(err, "", "{words:?}");
    }
}

/// What a function printed, as the house's log has it.
fn printed(house: &House, function: &str, kind: Kind, lines: &[u8]) {
    let origin = Arc::new(Origin {
        function: FunctionName::parse(function).unwrap(),
        version: "$LATEST".into(),
        stream: "2026/05/04/[$LATEST]0123456789abcdef0123456789abcdef".into(),
        container: Some("3-17".into()),
    });
    let logs = house.fakes.logs.lock().unwrap();
    let time = UNIX_EPOCH + Duration::from_millis(1_777_896_000_007);
    assert!(logs.as_ref().unwrap().append(&Piece { origin: &origin, request: None, kind, time, lines }));
}

#[test]
fn a_log_goes_into_a_pipe_as_it_was_and_to_a_terminal_without_its_commands() {
    let house = House::open();
    let run = house.run_dir();
    create(&house, "hello");
    assert_eq!(ended(&kiln(run, &["logs", "hello"]), 0).0, "", "it has not run yet");
    printed(&house, "hello", Kind::Platform, b"START RequestId: 1\n");
    printed(&house, "hello", Kind::Function, b"\x1b[2J\xff two\rlines\n");
    let raw = b"START RequestId: 1\n\x1b[2J\xff two\rlines\n";
    let piped = || kiln(run, &["logs", "hello"]).stdout;
    let until = std::time::Instant::now() + std::time::Duration::from_secs(120);
    // Both may come a moment apart.
    while piped() != raw && std::time::Instant::now() < until {
        std::thread::sleep(std::time::Duration::from_millis(20)); // the pace of looking
    }
    assert_eq!(piped(), raw);
    for name in ["hello:$LATEST", "000000000000:function:hello", "arn:aws:lambda:us-east-1:000000000000:function:hello"] {
        assert_eq!(kiln(run, &["logs", name]).stdout, raw, "{name}");
    }
    let (out, _) = ended(&kiln(run, &["logs", "hello", "--json", "-n", "1"]), 0);
    let entry: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&entry["kind"], &entry["base64"]), (&"function".into(), &"G1sySv8gdHdvDWxpbmVz".into()));
    let timed = kiln(run, &["logs", "hello", "--time", "-n", "2"]).stdout;
    assert!(timed.starts_with(b"2026-05-04T12:00:00.007Z START"), "{}", String::from_utf8_lossy(&timed));

    let careful = "\x1b[2mSTART RequestId: 1\x1b[0m\r\n\\x1b[2J\\xff two\r\n    lines\r\n";
    assert_eq!(on_a_terminal(run, &["logs", "hello"]), careful);
    let unquoted = on_a_terminal(run, &["logs", "hello", "--raw"]);
    assert!(unquoted.contains("\x1b[2J"), "{unquoted:?}");

    for (words, code, said) in [
        (&["logs", "nope"][..], 4, "no function nope, and no log of one"),
        (&["logs", "no pe"][..], 4, "no function no pe, and no log of one"),
        (&["logs", "--function", "hello", "--function", "nope"][..], 4, "no function nope, and no log of one"),
        (&["logs", "--delete"][..], 2, "NAME"),
        (&["logs", "-n", "70000"][..], 1, "of several functions it must be 0 to 65536"),
        (&["logs", "nope:$LATEST", "--delete"][..], 4, "no function nope:$LATEST, and no log of one"),
        (&["logs", "hello", "--since", "soon"][..], 2, "--since soon: write 90s"),
        (&["logs", "hello", "-n", "many"][..], 2, "a number of at most"),
    ] {
        let (_, err) = ended(&kiln(run, words), code);
        assert!(err.contains(said), "{err}");
    }
}

#[test]
fn what_an_invocation_printed_is_no_command_to_a_terminal_and_untouched_in_a_pipe() {
    let house = House::open();
    create(&house, "prints");
    let words = ["invoke", "prints", "--log", "--payload", "\"\u{9b}31m\""];
    let (out, err) = ended(&kiln(house.run_dir(), &words), 0);
    assert_eq!(out, "\"\u{9b}31m\"");
    assert!(err.ends_with("\n\x1b[2Jone\rtwo\n"), "{err:?}");
    let seen = on_a_terminal(house.run_dir(), &words);
    assert!(seen.starts_with("START RequestId: "), "{seen:?}");
    assert!(seen.ends_with("\r\n\\x1b[2Jone\r\n    two\r\n\"\\x9b31m\"\r\n"), "{seen:?}");
}

/// What a terminal gets to see (which makes CR LF of each line's end).
fn on_a_terminal(run_dir: &Path, words: &[&str]) -> String {
    let terminal = nix::pty::openpty(None, None).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(words).env("KILN_RUN_DIR", run_dir).env_remove("NO_COLOR").stdin(Stdio::null());
    command.stderr(terminal.slave.try_clone().unwrap()).stdout(terminal.slave);
    let status = command.status().unwrap();
    // The last handles of its other end, so that reading comes to an end (EIO, on Linux).
    drop(command);
    assert!(status.success());
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = nix::unistd::read(&terminal.master, &mut buffer) {
        seen.extend_from_slice(&buffer[..length]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

#[test]
fn layers_are_published_listed_given_to_functions_and_deleted() {
    let house = House::open();
    let run = house.run_dir();
    create(&house, "hello");
    let content = tempfile::tempdir().unwrap();
    std::fs::create_dir(content.path().join("bin")).unwrap();
    std::fs::write(content.path().join("bin/tool"), "#!/bin/sh\n").unwrap();
    let dir = content.path().to_str().unwrap();
    let words = ["layer", "publish", "tools", "--dir", dir, "--description", "my tools", "--runtime", "nodejs8.10"];
    let (out, err) = ended(&kiln(run, &words), 0);
    assert_eq!(
        (out.as_str(), err.as_str()),
        ("", "layer tools:1 published; try: kiln function update FUNCTION --layer tools:1\n")
    );
    ended(&kiln(run, &["layer", "publish", "tools", "--dir", dir]), 0);
    let (out, _) = ended(&kiln(run, &["layer", "list"]), 0);
    let cells: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().take(2).collect()).collect();
    assert_eq!(cells, [["NAME", "VERSION"], ["tools", "2"]]);
    let (out, _) = ended(&kiln(run, &["layer", "list", "tools"]), 0);
    assert!(out.lines().count() == 3 && out.contains("nodejs8.10") && out.contains("my tools"), "{out}");
    let (out, _) = ended(&kiln(run, &["layer", "get", "tools:1"]), 0);
    assert!(out.contains("arn         arn:aws:lambda:us-east-1:000000000000:layer:tools:1\n"), "{out}");

    let arn = "arn:aws:lambda:us-east-1:000000000000:layer:tools:2";
    for (words, layers) in [(&["--layer", "tools:1"][..], 1), (&["--layer", arn][..], 1), (&["--no-layers"][..], 0)] {
        ended(&kiln(run, &[&["function", "update", "hello"][..], words].concat()), 0);
        let (out, _) = ended(&kiln(run, &["function", "get", "hello"]), 0);
        assert_eq!(out.lines().filter(|line| line.starts_with("layer ")).count(), layers, "{out}");
    }
    for (words, variables) in [(&["--env", "AA=1", "--env", "BB=2"][..], 2), (&["--no-env"][..], 0)] {
        ended(&kiln(run, &[&["function", "update", "hello"][..], words].concat()), 0);
        let (out, _) = ended(&kiln(run, &["--json", "function", "get", "hello"]), 0);
        let whole: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        let kept = whole["Configuration"]["Environment"]["Variables"].as_object().map_or(0, |kept| kept.len());
        assert_eq!(kept, variables, "{out}");
    }
    let words = ["function", "create", "new", "--runtime", "nodejs8.10", "--handler", "h", "--dir", dir, "--layer", "tools:1"];
    ended(&kiln(run, &words), 0);
    ended(&kiln(run, &["layer", "delete", "tools:1"]), 0);
    for (code, words, said) in [
        (4, &["layer", "delete", "tools:1"][..], "there is no layer tools:1; `kiln layer list` shows all"),
        (4, &["layer", "get", "tools:7"][..], "there is no layer tools:7"),
        (4, &["layer", "list", "toools"][..], "there is no layer toools"),
        (4, &["function", "update", "hello", "--layer", "tools:1"][..], "there is no layer tools:1"),
        (2, &["function", "update", "hello", "--layer", "tools"][..], "NAME:VERSION, such as tools:1"),
        (2, &["layer", "get", "tools"][..], "NAME:VERSION, such as tools:1"),
        (2, &["function", "update", "hello", "--layer", "tools:2", "--no-layers"][..], "cannot be used with"),
        (2, &["layer", "publish", "tools"][..], "--zip"),
        (2, &["function", "update", "hello", "--env", "AA=1", "--no-env"][..], "cannot be used with"),
        (2, &["invoke", "hello", "--payload", "Cargo.toml"][..], "write --payload @Cargo.toml"),
    ] {
        let (_, err) = ended(&kiln(run, words), code);
        assert!(err.contains(said), "{words:?}: {err}");
    }
    let (out, _) = ended(&kiln(run, &["function", "get", "new"]), 0);
    assert!(out.contains("layer       arn:aws:lambda:us-east-1:000000000000:layer:tools:1"), "who has it keeps it: {out}");
}

#[test]
fn a_reserve_is_set_shown_and_removed() {
    let house = House::open();
    let run = house.run_dir();
    create(&house, "hello");
    let concurrency = |words: &[&str]| ended(&kiln(run, &[&["function", "concurrency", "hello"][..], words].concat()), 0);
    let said = |words: &str| (String::new(), format!("function hello {words}\n"));
    assert_eq!(concurrency(&["--reserve", "5"]), said("has reserved 5"));
    let (out, _) = ended(&kiln(run, &["function", "get", "hello"]), 0);
    assert!(out.contains("reserved    5 at once\n"), "{out}");
    assert_eq!(concurrency(&[]).0, "function hello has reserved 5\n");
    assert_eq!(concurrency(&["--json"]).0, "{\n  \"ReservedConcurrentExecutions\": 5\n}\n");
    assert_eq!(concurrency(&["--reserve", "0"]), said("is switched off: it has reserved 0"));
    assert_eq!(concurrency(&["--none"]), said("has no reserved concurrency"));
    let (out, _) = ended(&kiln(run, &["function", "get", "hello"]), 0);
    assert!(!out.contains("reserved"), "{out}");
    for (code, words, text) in [
        (1, &["hello", "--reserve", "901"][..], "below its minimum value of [100]"),
        (2, &["hello", "--reserve", "1", "--none"][..], "cannot be used with"),
        (2, &["hello", "--reserve", "many"][..], "--reserve"),
        (4, &["nope", "--reserve", "1"][..], "Function not found"),
    ] {
        let (_, err) = ended(&kiln(run, &[&["function", "concurrency"][..], words].concat()), code);
        assert!(err.contains(text), "{words:?}: {err}");
    }
}
