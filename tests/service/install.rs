//! An installed Kiln from its first minute to its last, as README's "Operations by hand" has it: installed, used by members of its
//! groups, reloaded, restarted, upgraded, a second instance beside it; uninstalled, and the host is as it was.
//!
//! `tests/install.rs` tries the same scripts on any host, below a DESTDIR.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::machine::{self, Api, Bare, CONFIG, command, property, repository, run};

const UNITS: [&str; 3] = ["kilnd.service", "kilnd.socket", "kilnd-control.socket"];

/// A machine without Kiln.
pub struct Before {
    machine: Bare,
    files: BTreeMap<PathBuf, String>,
}

/// Purges what an earlier test has left, then looks at every file. `None` says SKIP.
pub fn enter() -> Option<Before> {
    let machine = machine::bare()?;
    machine::forget_drop_ins();
    // It names runtimes that are not ours to remove.
    let _ = fs::remove_file(CONFIG);
    machine.uninstall(&["--purge"]);
    Some(Before { machine, files: files() })
}

impl Before {
    /// With Node 8.10 where an installed Kiln looks for it; the way of the builder itself is `tests/runtime.rs`.
    fn install(&self) {
        let said = self.machine.install(&["--runtimes", "none"]);
        assert!(said.contains("kilnd.service is running"), "without a runtime, too: {said}");
        copy_runtime("nodejs8.10");
        copy_runtime("provided.al2023");
    }

    /// Uninstalled with all that was kept, the host is as it was before, and systemd knows nothing of Kiln.
    pub fn leave(self) {
        self.machine.uninstall(&["--purge"]);
        assert_eq!(difference(&self.files, &files()), Vec::<String>::new());
        let left = command(&repository().join("scripts/leftovers").display().to_string(), &[]);
        assert_eq!((left.status.code(), told(&left)), (Some(0), String::new()));
        assert_eq!(run("systemctl", &["list-units", "--all", "--plain", "--no-legend", "kiln*"]), "");
        // It ends with 1 where there is none.
        assert_eq!(told(&command("systemctl", &["list-unit-files", "--plain", "--no-legend", "kiln*"])), "");
        let again = self.machine.uninstall(&["--purge"]);
        assert!(again.contains("Nothing is installed") && !again.contains("Removed") && !again.contains("Kept"), "{again}");
    }
}

/// What it printed, on both.
pub fn told(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

// ---- Files -----------------------------------------------------------------------------------------------------------

/// Every path on the machine's own disk and below /run, and what tells it from another; but logs, what systemd keeps for itself, and
/// the backups that the tools for users make.
fn files() -> BTreeMap<PathBuf, String> {
    let skipped = ["/run/systemd", "/run/log", "/run/results", "/run/udev", "/var/log", "/var/tmp", "/var/lib/systemd"];
    let backups =
        ["/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-", "/etc/subuid-", "/etc/subgid-", "/etc/.pwd.lock"];
    let mut found = BTreeMap::new();
    let mut open: Vec<PathBuf> = ["/etc", "/home", "/opt", "/root", "/run", "/srv", "/usr", "/var"].map(PathBuf::from).into();
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let is = |list: &[&str]| list.iter().any(|other| Path::new(other) == path);
            let Ok(about) = entry.metadata() else { continue };
            if is(&skipped) || is(&backups) {
                continue;
            }
            if about.is_dir() {
                open.push(path.clone());
            }
            // What a tool writes anew is the same if its contents are.
            let content = match path.starts_with("/etc") && about.is_file() {
                true => fs::read_to_string(&path).unwrap_or_default(),
                false if about.is_file() => format!("{} {}", about.size(), about.mtime()),
                false => String::new(),
            };
            found.insert(path, format!("{:o} {} {} {content}", about.mode(), about.uid(), about.gid()));
        }
    }
    found
}

fn difference(before: &BTreeMap<PathBuf, String>, after: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let gone = before.iter().filter(|(path, _)| !after.contains_key(*path)).map(|(path, _)| format!("gone: {}", path.display()));
    let changed = after.iter().filter_map(|(path, about)| match before.get(path) {
        None => Some(format!("new: {} {about}", path.display())),
        Some(was) if was != about => Some(format!("changed: {}: {was} -> {about}", path.display())),
        Some(_) => None,
    });
    gone.chain(changed).collect()
}

/// One runtime of those that the machine brought, with the trees that it is made of.
pub fn copy_runtime(name: &str) {
    let (from, to) = (machine::runtimes(), Path::new("/var/lib/kiln/runtimes"));
    let recipe = fs::read_to_string(from.join(format!("{name}.toml"))).expect("the machine has this runtime");
    let set = recipe.lines().find_map(|line| line.strip_prefix("tree = \"")).unwrap().trim_end_matches('"').to_owned();
    let trees = fs::read_to_string(from.join("sets").join(&set)).unwrap();
    for directory in ["sets", "trees"] {
        fs::create_dir_all(to.join(directory)).unwrap();
    }
    let all = trees.lines().map(|tree| format!("trees/{tree}"));
    for path in all.chain([format!("sets/{set}"), "owner".into(), format!("{name}.toml")]) {
        if to.join(&path).exists() {
            continue; // of the runtime before
        }
        run("cp", &["-a", from.join(&path).to_str().unwrap(), to.join(&path).to_str().unwrap()]);
    }
}

// ---- The whole life ----------------------------------------------------------------------------------------------------

fn kiln(words: &[&str]) -> String {
    run("kiln", words)
}

fn create_tutorial(more: &[&str]) {
    let dir = repository().join("examples/node-tutorial").display().to_string();
    let words = ["function", "create", "hello", "--runtime", "nodejs8.10", "--handler", "index.handler", "--dir", &dir];
    // Starting Node takes many times as long under emulation.
    kiln(&[more, &words, &["--memory", "256", "--timeout", "120"]].concat());
}

/// As somebody who logs in as this user.
pub fn as_user(user: &str, words: &[&str]) -> Output {
    let who = [&format!("--reuid={user}"), &format!("--regid={user}"), "--init-groups", "--reset-env"];
    command("setpriv", &[&who.map(|word| word as &str)[..], &["/usr/local/bin/kiln"], words].concat())
}

#[test]
fn installed_it_serves_its_groups_and_outlives_reload_restart_and_upgrade() {
    let Some(before) = enter() else { return };
    before.install();
    for unit in UNITS {
        assert_eq!(property(unit, "ActiveState"), "active", "{unit}");
        assert_eq!(property(unit, "UnitFileState"), "enabled", "{unit}");
    }
    run("systemctl", &["status", "--no-pager", "kilnd"]);
    assert_eq!(property("kilnd.service", "Slice"), "kiln.slice");
    units_are_as_systemd_wants_them();
    users_and_directories_are_as_everywhere();
    // All that is broken would be named, with its cure.
    kiln(&["doctor"]);

    create_tutorial(&[]);
    members_may_what_their_group_may();
    the_host_takes_functions_first();
    reload_takes_a_good_configuration_only();

    let pid = property("kilnd.service", "MainPID");
    let said = before.machine.install(&["--runtimes", "none"]);
    assert!(said.contains("Nothing has changed"), "{said}");
    assert_eq!(property("kilnd.service", "MainPID"), pid, "nothing has changed, and it was restarted");
    an_upgrade_refuses_nobody();
    assert_ne!(property("kilnd.service", "MainPID"), pid);

    // As the first time, but for what was kept.
    let said = before.machine.uninstall(&[]);
    for kept in
        ["/etc/kiln/kiln.toml, because it was changed", "/var/lib/kiln: functions", "/var/lib/kiln/runtimes", "the user kiln"]
    {
        assert!(said.contains(kept), "{kept}: {said}");
    }
    let new: Vec<String> = difference(&before.files, &files());
    let kept =
        ["/etc/kiln", "/var/lib/kiln", "/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "/run/lock/kiln-ids.lock"];
    let more: Vec<&String> = new.iter().filter(|line| !kept.iter().any(|path| line.contains(&format!(": {path}")))).collect();
    assert!(more.is_empty(), "kept, but not named: {more:?}");
    assert_eq!(run("systemctl", &["list-units", "--all", "--plain", "--no-legend", "kiln*"]), "");
    before.machine.install(&["--runtimes", "none"]);
    assert!(kiln(&["invoke", "hello", "--payload", r#"{"name": "again"}"#]).contains("Hello, again!"));
    before.leave();
}

fn units_are_as_systemd_wants_them() {
    let directory = Path::new("/usr/local/lib/systemd/system");
    let mut units: Vec<String> =
        fs::read_dir(directory).unwrap().flatten().map(|entry| entry.path().display().to_string()).collect();
    units.retain(|path| path.contains("/kiln") && !path.ends_with(".d"));
    assert_eq!(units.len(), 7, "{units:?}");
    for unit in &units {
        let verified = command("systemd-analyze", &["verify", unit]);
        assert_eq!((verified.status.code(), told(&verified)), (Some(0), String::new()), "{unit}");
    }
    let security = run("systemd-analyze", &["security", "--no-pager", "kilnd.service"]);
    let exposure = security.split("Overall exposure level").nth(1).and_then(|rest| {
        rest.split_whitespace().find_map(|word| word.trim_matches(|c: char| !c.is_ascii_digit()).parse::<f32>().ok())
    });
    assert!(exposure.is_some_and(|exposure| exposure < 5.0), "{security}");
    eprintln!("systemd-analyze security: {exposure:?}");
}

fn users_and_directories_are_as_everywhere() {
    run(&repository().join("scripts/users").display().to_string(), &["--check"]);
    let user = run("getent", &["passwd", "kiln"]);
    assert!(user.contains(":Kiln's server:/nonexistent:") && user.trim_end().ends_with("nologin"), "{user}");
    let expected = [("/run/kiln", 0o755, "root"), ("/var/lib/kiln", 0o750, "kiln"), ("/var/lib/kiln/runtimes", 0o755, "root")];
    let check = || {
        for (path, mode, group) in expected {
            let about = fs::metadata(path).unwrap();
            let found = run("stat", &["-c", "%U %G", path]);
            assert_eq!((about.permissions().mode() & 0o7777, found.trim()), (mode, &*format!("root {group}")), "{path}");
        }
    };
    check();
    // At the next boot, and whenever somebody runs it.
    run("systemd-tmpfiles", &["--create", "/usr/local/lib/tmpfiles.d/kiln.conf"]);
    check();
}

fn members_may_what_their_group_may() {
    for (user, group) in [("caller", "kiln-invoke"), ("duty", "kiln-admin"), ("stranger", "nogroup")] {
        run("useradd", &["--no-create-home", "--user-group", "--groups", group, user]);
    }
    let invoke = ["invoke", "hello", "--payload", r#"{"name": "World"}"#];
    for user in ["caller", "duty"] {
        let answer = as_user(user, &invoke);
        assert!(told(&answer).contains("Hello, World!"), "{user}: {}", told(&answer));
    }
    assert_eq!(as_user("duty", &["pool"]).status.code(), Some(0));
    for (user, words) in [("caller", &["pool"][..]), ("stranger", &invoke)] {
        let answer = as_user(user, words);
        assert_eq!(answer.status.code(), Some(3), "{user} {words:?}: {}", told(&answer));
    }
    for user in ["caller", "duty", "stranger"] {
        run("userdel", &[user]);
    }
}

/// `OOMScoreAdjust=` protects the supervisor and its like, and no function, which cannot take it either.
fn the_host_takes_functions_first() {
    let zip = Path::new("/run/kiln-probe.zip");
    fs::write(zip, machine::probe_zip()).unwrap();
    let words = ["--runtime", "provided.al2023", "--handler", "bootstrap", "--zip", zip.to_str().unwrap(), "--timeout", "60"];
    kiln(&[&["function", "create", "probe"], &words[..]].concat());
    fs::remove_file(zip).unwrap();
    let seen = kiln(&["invoke", "probe", "--payload", r#"{"do": "oom_score_adj"}"#]);
    assert!(
        seen.contains(r#""found":"500""#) && seen.contains("Read-only file system"),
        "a function takes the protection: {seen}"
    );
    let score = |pid: &str| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap_or_default().trim().to_owned();
    assert_eq!(score(&property("kilnd.service", "MainPID")), "-900");
    let functions: Vec<u32> = machine::picture::processes()
        .into_iter()
        .filter(|process| process.uid >= 1_879_113_728)
        .map(|process| process.pid)
        .collect();
    assert!(functions.len() >= 2, "a warm environment has an init and a runtime");
    for pid in functions {
        assert_eq!(score(&pid.to_string()), "500", "{pid}");
    }
}

fn reload_takes_a_good_configuration_only() {
    let pid = property("kilnd.service", "MainPID");
    fs::write(CONFIG, "idle_max_s = 700\n").unwrap();
    run("systemctl", &["reload", "kilnd"]);
    machine::eventually("kilnd has the new value", || configured(700));
    fs::write(CONFIG, "idle_max_s = 'long'\n").unwrap();
    assert!(!command("systemctl", &["reload", "kilnd"]).status.success(), "a wrong configuration was taken");
    assert!(
        run("journalctl", &["--quiet", "--no-pager", "-u", "kilnd", "-n", "80"]).contains("kiln.toml:1:"),
        "the line is named"
    );
    assert_eq!(property("kilnd.service", "MainPID"), pid);
    assert_eq!(property("kilnd.service", "ActiveState"), "active");
    assert!(configured(700), "what ran goes on as it was");
    fs::write(CONFIG, "idle_max_s = 700\n").unwrap();
    run("systemctl", &["restart", "kilnd"]);
    assert!(kiln(&["function", "list"]).contains("hello"));
}

/// Whether the kilnd that runs has this idle_max_s.
fn configured(idle_max_s: u64) -> bool {
    let answer = Api::new("/run/kiln/control.sock".into()).request("GET", "/v1/status", &[], b"");
    answer.json()["config"]["idle_max_s"] == idle_max_s
}

/// New programs, the same doors: whoever comes meanwhile waits.
fn an_upgrade_refuses_nobody() {
    let new = Path::new("/run/kiln-new");
    fs::create_dir(new).unwrap();
    for program in ["kilnd", "kiln", "kiln-init"] {
        fs::copy(machine::binaries().join(program), new.join(program)).unwrap();
    }
    // Another program as far as anybody can see; a few bytes behind its end do nothing.
    let kilnd = new.join("kilnd");
    fs::write(&kilnd, [fs::read(&kilnd).unwrap(), b"\0new".to_vec()].concat()).unwrap();
    let (over, script) = (AtomicBool::new(false), repository().join("scripts/install").display().to_string());
    let answers = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let api = Api::new("/run/kiln/kiln.sock".into());
                    let mut answers = vec![];
                    while !over.load(Ordering::SeqCst) {
                        let path = "/2015-03-31/functions/hello/invocations";
                        let answer = api.try_request("POST", path, &[], json!({ "name": "you" }).to_string().as_bytes());
                        answers.push(
                            answer
                                .map_or_else(|error| error.to_string(), |answer| format!("{} {}", answer.status, answer.text())),
                        );
                        // One call after the other would leave the script nothing of an emulated processor.
                        std::thread::sleep(Duration::from_millis(200));
                    }
                    answers
                })
            })
            .collect();
        let said = run(&script, &["--binaries", "/run/kiln-new", "--runtimes", "none"]);
        over.store(true, Ordering::SeqCst);
        assert!(said.contains("1 files") && said.contains("Restarting kilnd.service"), "{said}");
        callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect::<Vec<_>>()
    });
    fs::remove_dir_all(new).unwrap();
    assert!(answers.len() >= 3, "{answers:?}");
    let refused: Vec<&String> =
        answers.iter().filter(|answer| !answer.starts_with("200 ") || !answer.contains("Hello, you!")).collect();
    assert!(refused.is_empty(), "{} of {}: {refused:?}", refused.len(), answers.len());
}

#[test]
fn a_second_instance_is_installed_beside_the_first_and_both_are_uninstalled() {
    let Some(before) = enter() else { return };
    before.install();
    let said = before.machine.install(&["--runtimes", "none", "--instance", "two"]);
    assert!(said.contains("kilnd@two.service is running") && said.contains("--run /run/kiln-two"), "{said}");
    let config = fs::read_to_string("/etc/kiln/two.toml").unwrap();
    assert!(config.contains("first_id = 1879179264"), "behind the first one's: {config}");
    for unit in ["kilnd@two.service", "kilnd@two.socket", "kilnd-control@two.socket", "kilnd.service"] {
        assert_eq!(property(unit, "ActiveState"), "active", "{unit}");
    }
    let two = ["--run", "/run/kiln-two"];
    create_tutorial(&two);
    assert!(kiln(&[&two[..], &["invoke", "hello", "--payload", r#"{"name": "Two"}"#]].concat()).contains("Hello, Two!"));
    assert!(!kiln(&["function", "list"]).contains("hello"), "each has functions of its own");
    let pid = property("kilnd@two.service", "MainPID");
    let said = before.machine.install(&["--runtimes", "none", "--instance", "two"]);
    assert!(said.contains("Nothing has changed"), "{said}");
    assert_eq!(property("kilnd@two.service", "MainPID"), pid);
    run("systemctl", &["restart", "kilnd@two"]);
    // A configuration with a mistake is for people: systemd does not try again and again.
    fs::write("/etc/kiln/two.toml", config.clone() + "idle_max_s = 'long'\n").unwrap();
    assert!(!command("systemctl", &["restart", "kilnd@two"]).status.success());
    assert_eq!(property("kilnd@two.service", "ActiveState"), "failed");
    assert_eq!(property("kilnd@two.service", "ExecMainStatus"), "78");
    assert_eq!(property("kilnd.service", "ActiveState"), "active");
    fs::write("/etc/kiln/two.toml", config).unwrap();
    run("systemctl", &["start", "kilnd@two"]);
    before.leave();
}
