//! `scripts/quickstart` where systemd runs: a service of its own beside whatever is installed, README's first commands in it, and gone
//! without a trace. It builds nothing here: programs and runtimes come ready (`--binaries`).

use std::path::Path;
use std::process::{Command, Stdio};

use super::machine::{self, Api, property, repository, run};

/// A checkout as somebody has it who has just cloned: writable, and others may go in.
const CLONE: &str = "/srv/kiln";

#[test]
fn quickstart_runs_functions_in_a_service_of_its_own_and_is_gone_without_a_trace() {
    let Some(_machine) = machine::bare() else { return };
    let quickstart = |words: &str| {
        let text = format!("cd {CLONE} && scripts/quickstart {words}");
        let output = Command::new("bash").args(["-c", &text]).stdin(Stdio::null()).output().expect("run bash");
        let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{words}: {said}");
        said
    };
    let remains =
        || (machine::leftovers(), run("systemctl", &["list-units", "--all", "--plain", "--no-legend", "kiln-quickstart*"]));
    let _gone = Gone;
    let copy = format!(
        "mkdir -p {CLONE}/target/runtimes && tar -C {} -c --exclude=./target . | tar -xC {CLONE}",
        repository().display()
    );
    run("bash", &["-c", &copy]);
    run("mount", &["--bind", &machine::runtimes().display().to_string(), &format!("{CLONE}/target/runtimes")]);
    let ready = format!("--binaries {}", machine::binaries().display());

    let said = quickstart(&ready);
    assert!(said.contains(r#"{"greeting":"Hello, Ada!","#), "{said}");
    assert!(said.contains("It ran: the same connection answered twice"), "{said}");
    for unit in ["kiln-quickstart.service", "kiln-quickstart.socket", "kiln-quickstart-control.socket"] {
        assert_eq!(property(unit, "ActiveState"), "active", "{unit}");
    }
    readmes_first_commands();
    let pid = property("kiln-quickstart", "MainPID");
    quickstart(&ready);
    assert_eq!(property("kiln-quickstart", "MainPID"), pid, "nothing has changed, and it was restarted");

    let said = quickstart("--down");
    assert!(said.contains("Stopped and removed") && !Path::new(CLONE).join("target/quickstart").exists(), "{said}");
    assert_eq!(remains(), (String::new(), String::new()));
    assert!(!Path::new("/run/systemd/system/kiln-quickstart.service").exists());
}

/// The checkout goes, however the test ends; and if it has failed, what it has started, too.
struct Gone;

impl Drop for Gone {
    fn drop(&mut self) {
        let words = format!("{CLONE}/scripts/quickstart --down; umount {CLONE}/target/runtimes && rm -r {CLONE}");
        let output = machine::command("bash", &["-c", &words]);
        if !output.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// What README tells to type next, as it stands there.
fn readmes_first_commands() {
    let text = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let block = text.split("\n## Try it\n").nth(1).and_then(|chapter| chapter.split("```sh\n").nth(2)).expect("its second block");
    let block = block.split("```").next().unwrap();
    // There is no curl in this machine.
    let (curl, commands): (Vec<&str>, Vec<&str>) = block.lines().partition(|line| line.starts_with("curl "));
    let said = run("bash", &["-euc", &format!("cd {CLONE}\n{}", commands.join("\n"))]);
    assert!(said.contains("Hello, World!") && said.contains("hello"), "{said}");
    let [curl] = curl[..] else { panic!("one line with curl in\n{block}") };
    let rest =
        curl.strip_prefix("curl --unix-socket $KILN_RUN_DIR/kiln.sock -d '{}' http://kiln").expect("what this test knows to do");
    let answer = Api::new(Path::new(CLONE).join("target/quickstart/run/kiln.sock")).request("POST", rest, &[], b"{}");
    assert!(answer.status == 200 && answer.text().contains("Hello"), "{} {}", answer.status, answer.text());
}
