//! The `kiln` command as people and scripts meet it: what it prints where, and its exit codes.

#[path = "cli/containers.rs"]
mod containers;
mod doors;
#[allow(dead_code)] // serves several test programs; each uses its part
mod eyes;
#[path = "cli/printed.rs"]
mod printed;
#[path = "cli/seat.rs"]
mod seat;
#[path = "cli/watching.rs"]
mod watching;

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use doors::{House, ended_environment, shown_pool, snapshot};
use kiln::function::FunctionName;
use kiln::invocation::Throttle;
use kiln::server::events::{Cold, Detail, Retire, Subject, What, When};
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
        What::InitFailed { cause: text(), text: text(), by: Some(text()), again: true, init_us: 1, peak_mib: 1 },
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
