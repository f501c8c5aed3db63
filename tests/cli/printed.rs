//! What functions printed, in a pipe as it was, and on a terminal without its commands: `kiln logs` and `kiln invoke --log`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use kiln::function::FunctionName;
use kiln::server::logs::{Kind, LogSink, Origin, Piece};
use serde_json::Value;

use crate::doors::House;
use crate::{create, ended, kiln};

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
