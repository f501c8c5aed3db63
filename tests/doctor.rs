//! `kiln doctor` and `kiln config check`: each check with its thing broken, in a made-up root or for real, and its cure.

#[path = "doctor/broken.rs"]
mod broken;
mod doors;
#[path = "eyes/mod.rs"]
#[allow(dead_code)] // serves several test programs; each uses its part
mod eyes;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use doors::House;
use serde_json::Value;

/// A directory with a `kiln.toml` that names only things in it, and nothing wrong.
fn premises(more: &str) -> tempfile::TempDir {
    let home = tempfile::Builder::new().prefix("kiln-doctor-").tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for part in ["runtimes/sets", "runtimes/trees", "state"] {
        fs::create_dir_all(home.path().join(part)).unwrap();
    }
    let key = |name: &str, part: &str| format!("{name} = '{}'\n", home.path().join(part).display());
    let mut lines = key("run_dir", "run") + &key("runtimes_dir", "runtimes");
    if !more.contains("state_dir") {
        lines += &key("state_dir", "state");
    }
    fs::write(home.path().join("kiln.toml"), lines + more).unwrap();
    home
}

fn kiln(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(words).env_remove("KILN_RUN_DIR");
    command
}

fn doctor(home: &Path) -> Command {
    kiln(&["doctor", "--config", home.join("kiln.toml").to_str().unwrap()])
}

/// The finding's line, and the one with its cure.
#[track_caller]
fn line<'a>(out: &'a str, check: &str) -> [&'a str; 2] {
    let lines: Vec<&str> = out.lines().collect();
    let named = |line: &&str| line.get(10..).is_some_and(|rest| rest.split_whitespace().next() == Some(check));
    let at = lines.iter().position(named).unwrap_or_else(|| panic!("no line about {check}:\n{out}"));
    [lines[at], lines.get(at + 1).copied().unwrap_or_default()]
}

#[track_caller]
fn says(output: &Output, code: i32) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(output.status.code(), Some(code), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[track_caller]
fn assert_broken(out: &str, check: &str, found: &str, cure: &str) {
    let [line, below] = line(out, check);
    assert!(line.starts_with("broken ") && line.contains(found), "{line}");
    assert!(below.trim_start().starts_with("cure: ") && below.contains(cure), "{below}");
}

#[test]
fn a_missing_group_is_told_by_doctor_check_and_kilnd_alike() {
    let home = premises("admin_group = 'kiln-nobodies'\n");
    let out = says(&doctor(home.path()).output().unwrap(), 1);
    assert_broken(&out, "admin-group", "there is no group \"kiln-nobodies\"", "groupadd --system kiln-nobodies");

    let config = home.path().join("kiln.toml");
    let out = says(&kiln(&["config", "check", config.to_str().unwrap()]).output().unwrap(), 1);
    let [found, below] = line(&out, "admin_group");
    assert!(found.starts_with("wrong ") && below.contains("cure: sudo scripts/users"), "{out}");
}

#[test]
fn kilnd_says_a_fault_in_the_same_words_as_the_check() {
    let home = premises("# a comment\ndrain_seconds = 600\n");
    let config = home.path().join("kiln.toml");
    let words = format!("{}:5:1: unknown key `drain_seconds`: did you mean `drain_s`?", config.display());
    let out = says(&kiln(&["config", "check", config.to_str().unwrap()]).output().unwrap(), 1);
    assert!(out.contains(&words) && out.contains("cure: correct line 5 of "), "{out}");
    let refused = Command::new(env!("CARGO_BIN_EXE_kilnd")).arg("--config").arg(&config).output().unwrap();
    let err = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(78) && err.contains(&words) && err.contains("kiln config check"), "{err}");
    let out = says(&doctor(home.path()).output().unwrap(), 1);
    assert_broken(&out, "configuration", "did you mean `drain_s`?", "kiln config check");
}

#[test]
fn the_sample_is_a_configuration_and_json_tells_each_key() {
    let sample = says(&kiln(&["config", "sample"]).output().unwrap(), 0);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &sample).unwrap();
    let output = kiln(&["config", "check", file.path().to_str().unwrap(), "--json"]).output().unwrap();
    let whole: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = whole["checks"].as_array().unwrap();
    assert_eq!(whole["file"], file.path().to_str().unwrap());
    assert_eq!(checks.len(), kiln::config::Config::keys().len());
    assert_eq!(output.status.code(), Some(if whole["ok"] == true { 0 } else { 1 }), "{whole}");
    assert!(checks.iter().any(|check| check["check"] == "drain_s" && check["found"] == "30" && check["cure"].is_null()));
}

#[test]
fn a_tree_of_the_wrong_owner_is_named() {
    let home = premises("");
    let runtimes = home.path().join("runtimes");
    let tree = "a".repeat(64);
    fs::create_dir_all(runtimes.join("trees").join(&tree).join("bin")).unwrap();
    let set = format!("{tree}\n");
    let digest = kiln::code::Digest::of(set.as_bytes());
    fs::write(runtimes.join(format!("sets/{digest}")), &set).unwrap();
    fs::write(runtimes.join("r1.toml"), format!("name = 'r1'\ntree = '{digest}'\nstart = [['/x']]\n")).unwrap();
    fs::write(runtimes.join("owner"), "1879048192\n").unwrap();
    let out = says(&doctor(home.path()).output().unwrap(), 1);
    let ours = nix::unistd::geteuid();
    let found = format!("r1: trees/{tree} belongs to {ours}, and should to 1879048192");
    assert_broken(&out, "runtime", &found, "sudo scripts/build-runtimes --runtimes-dir ");

    // Whoever changes a set changes what every function of that runtime sees.
    fs::write(runtimes.join("owner"), format!("{ours}\n")).unwrap();
    fs::write(runtimes.join(format!("sets/{digest}")), format!("{tree}\n\n")).unwrap();
    let out = says(&doctor(home.path()).output().unwrap(), 1);
    assert_broken(&out, "runtime", "is not what its name says", "scripts/build-runtimes");
}

#[test]
fn sockets_that_nobody_listens_on_are_told_from_no_sockets() {
    let home = premises("");
    let out = String::from_utf8(doctor(home.path()).output().unwrap().stdout).unwrap();
    let [found, cure] = line(&out, "kilnd");
    assert!(
        found.starts_with("warn ") && found.contains("not running: there is no socket in") && cure.contains("start it"),
        "{out}"
    );

    let run = home.path().join("run");
    fs::create_dir(&run).unwrap();
    for name in ["kiln.sock", "control.sock"] {
        drop(std::os::unix::net::UnixListener::bind(run.join(name)).unwrap());
    }
    let out = says(&doctor(home.path()).output().unwrap(), 1);
    assert_broken(&out, "kiln.sock", "nobody listens: kilnd was killed", "start kilnd again");
    assert_broken(&out, "control.sock", "nobody listens: kilnd was killed", "start kilnd again");
}

#[test]
fn a_kilnd_whose_queue_is_full_does_not_hold_up_the_doctor() {
    let home = premises("");
    let run = home.path().join("run");
    fs::create_dir(&run).unwrap();
    // Nobody accepts, and there is room for one.
    let _listeners = ["kiln.sock", "control.sock"].map(|name| {
        let listener = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Unix,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        let address = nix::sys::socket::UnixAddr::new(&run.join(name)).unwrap();
        nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&listener), &address).unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        (listener, std::os::unix::net::UnixStream::connect(run.join(name)).unwrap())
    });
    let out = says(&doctor(home.path()).output().unwrap(), 1);
    assert_broken(&out, "kiln.sock", "its queue is full", "kilnd's log");
    assert_broken(&out, "control.sock", "its queue is full", "kilnd's log");
}

#[test]
fn a_running_kilnd_tells_its_own_configuration_and_a_file_that_differs_is_named() {
    let house = House::open();
    let run = house.run_dir().to_str().unwrap();
    let out = String::from_utf8(kiln(&["doctor", "--run", run]).output().unwrap().stdout).unwrap();
    assert!(line(&out, "kilnd")[0].starts_with("ok ") && line(&out, "kilnd")[0].contains(run), "{out}");
    assert!(line(&out, "configuration")[0].contains("as the running kilnd has it"), "{out}");
    assert!(line(&out, "runtime")[0].contains("nodejs8.10"), "its runtimes_dir was looked into: {out}");
    assert!(line(&out, "versions")[0].starts_with("ok "), "{out}");

    let file = house.run_dir().join("kiln.toml");
    fs::write(&file, format!("instance = 'test'\nrun_dir = '{run}'\ndrain_s = 7\n")).unwrap();
    let output = kiln(&["doctor", "--config", file.to_str().unwrap(), "--json"]).output().unwrap();
    let whole: Value = serde_json::from_slice(&output.stdout).unwrap();
    let in_force = whole["checks"].as_array().unwrap().iter().find(|check| check["check"] == "in-force").unwrap();
    assert_eq!(in_force["state"], "warn");
    let found = in_force["found"].as_str().unwrap();
    assert!(found.contains("other values of drain_s") && found.contains("state_dir"), "{found}");
    assert!(in_force["cure"].as_str().unwrap().starts_with("restart kilnd"));
}

#[test]
fn a_configuration_that_is_not_there_is_no_finding_but_a_failure() {
    let output = kiln(&["doctor", "--config", "/nowhere/kiln.toml"]).output().unwrap();
    assert_eq!(says(&output, 1), "");
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere/kiln.toml cannot be read"));
}

/// Whoever names a file means its instance; whoever says a directory, that one.
#[test]
fn the_run_dir_is_the_files_whatever_the_environment_says_and_a_word_counts_more() {
    let home = premises("");
    let run_dir = |command: &mut Command| {
        let output = command.arg("--json").env("KILN_RUN_DIR", "/nowhere/run").output().unwrap();
        let whole: Value = serde_json::from_slice(&output.stdout).unwrap();
        whole["run_dir"].as_str().unwrap().to_owned()
    };
    assert_eq!(run_dir(&mut doctor(home.path())), home.path().join("run").to_str().unwrap());
    assert_eq!(run_dir(doctor(home.path()).args(["--run", "/asked/for"])), "/asked/for");
    assert_eq!(run_dir(&mut kiln(&["doctor"])), "/nowhere/run");
}

#[test]
fn lines_end_at_the_terminals_width_and_stay_whole_in_a_pipe() {
    let home = premises("admin_group = 'kiln-nobodies'\n");
    let size = nix::pty::Winsize { ws_row: 24, ws_col: 72, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = nix::pty::openpty(Some(&size), None).unwrap();
    let mut command = doctor(home.path());
    command.env("NO_COLOR", "1").stdout(pty.slave).stderr(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    drop(command); // its copy of the slave: the last one but the child's
    let (mut out, mut master) = (Vec::new(), fs::File::from(pty.master));
    // A terminal whose other end is closed answers EIO.
    let _ = std::io::Read::read_to_end(&mut master, &mut out);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let out = String::from_utf8(out).unwrap();
    for line in out.lines().map(str::trim_end) {
        let is_one_word = !line.get(28..).unwrap_or_default().trim().contains(' ');
        assert!(line.chars().count() <= 72 || is_one_word, "{line:?}\n{out}");
    }
    let [found, _] = line(&out, "admin-group");
    assert!(found.contains("there is no group") && out.contains("cure: sudo scripts/users, or: groupadd"), "{out}");

    let piped = says(&doctor(home.path()).output().unwrap(), 1);
    assert_broken(&piped, "admin-group", "there is no group \"kiln-nobodies\"", "or correct admin_group in the configuration");
}

// ---- With root: the thing broken for real, where nobody else sees it -------------------------------------------------

fn root() -> bool {
    eyes::can_run((!nix::unistd::geteuid().is_root()).then_some("root"))
}

/// Runs the doctor in a mount namespace of its own, after `prepare`.
fn doctor_after(prepare: &str, home: &Path) -> Output {
    let script = format!("set -e; {prepare}\nexec \"$@\"");
    let words = doctor(home);
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
    command.arg(words.get_program()).args(words.get_args()).env_remove("KILN_RUN_DIR").output().unwrap()
}

#[test]
fn a_range_that_subuid_promises_to_somebody_is_named_with_a_free_one() {
    if !root() {
        return;
    }
    let home = premises("");
    let subuid = home.path().join("subuid");
    fs::write(&subuid, "alice:100000:65536\nbob:1879150000:65536\n").unwrap();
    let out = says(&doctor_after(&format!("touch /etc/subuid; mount --bind {} /etc/subuid", subuid.display()), home.path()), 1);
    assert_broken(&out, "ids", "what /etc/subuid promises bob (bob:1879150000:65536)", "set first_id = ");
    assert_broken(&out, "ids", "1879113728 to 1879179263 overlap", "or take that line out of /etc/subuid");
}

#[test]
fn a_disk_without_room_is_named() {
    if !root() {
        return;
    }
    let home = premises("");
    let state = home.path().join("state");
    let mount = format!("mount -t tmpfs -o size=1m none {0}; head -c 900000 /dev/zero > {0}/full", state.display());
    let out = says(&doctor_after(&mount, home.path()), 1);
    assert_broken(&out, "state-dir", "nothing can be stored", "make room there (df -h, df -i)");
    let no_inodes = format!("mount -t tmpfs -o size=2g,nr_inodes=100 none {}", state.display());
    let out = says(&doctor_after(&no_inodes, home.path()), 1);
    assert_broken(&out, "state-dir", "inodes free: nothing can be stored", "set state_dir in the configuration");
    let read_only = format!("mount -t tmpfs -o ro none {}", state.display());
    assert_broken(&says(&doctor_after(&read_only, home.path()), 1), "state-dir", "mounted read-only", "mount it writable");
}

#[test]
fn user_namespaces_that_are_refused_in_a_chroot_are_named() {
    if !root() {
        return;
    }
    let home = premises("");
    let words = doctor(home.path());
    // The same files, but another root directory than the mount namespace's: there the kernel refuses.
    let new = home.path().join("root");
    fs::create_dir(&new).unwrap();
    let script = format!("mount --rbind / {0} && exec chroot {0} \"$@\"", new.display());
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
    let output = command.arg(words.get_program()).args(words.get_args()).env_remove("KILN_RUN_DIR").output().unwrap();
    assert_broken(&says(&output, 1), "user-namespaces", "root may not make one", "do not run kilnd in a chroot");
}

#[test]
fn somebody_without_rights_sees_what_they_may_and_is_told_the_rest() {
    if !root() {
        return;
    }
    let home = premises("");
    let program = home.path().join("kiln");
    // By another process: a fork of another test, at that moment, would hold a copy of ours open for writing (ETXTBSY).
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_kiln")).arg(&program).status().unwrap().success());
    fs::set_permissions(home.path().join("runtimes"), fs::Permissions::from_mode(0o700)).unwrap();
    let mut command = Command::new(&program);
    command.args(["doctor", "--config"]).arg(home.path().join("kiln.toml")).env_remove("KILN_RUN_DIR");
    let output = command.uid(4711).gid(4711).current_dir("/").output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    for check in ["mounting", "leftovers", "runtimes"] {
        assert!(line(&out, check)[0].starts_with("needs root "), "{out}");
    }
    let [found, cure] = line(&out, "caller");
    assert!(found.starts_with("warn ") && cure.contains("usermod -aG kiln-invoke $USER"), "{out}");
}
