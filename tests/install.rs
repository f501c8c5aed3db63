//! `scripts/install` and `scripts/uninstall` as far as any host can show them: below a DESTDIR, without root, without systemd.
//! What systemd makes of the units, and what is left of an installed Kiln, is tried in the machines: `tests/service/install.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln::config;
use tempfile::TempDir;

fn repo() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo").into()
}

/// Scripts of ours, and a directory for them to work in.
struct Place {
    dir: TempDir,
}

/// How a script ended, and all that it said.
struct Ended {
    code: Option<i32>,
    said: String,
}

impl Place {
    /// With programs to install: the real `kiln`, which is asked for its sample and completions, and something small for the others.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let programs = dir.path().join("programs");
        fs::create_dir(&programs).unwrap();
        symlink(env!("CARGO_BIN_EXE_kiln"), programs.join("kiln")).unwrap();
        let place = Self { dir };
        place.program("kilnd", "first");
        place.program("kiln-init", "first");
        place
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.dir.path().join("programs").join(name);
        fs::write(&path, format!("#!/bin/sh\necho {text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn destdir(&self) -> PathBuf {
        self.dir.path().join("host")
    }

    /// A path on the host as it would be.
    fn at(&self, path: &str) -> PathBuf {
        self.destdir().join(path.trim_start_matches('/'))
    }

    fn run(&self, script: &str, words: &[&str]) -> Ended {
        let mut command = Command::new(repo().join("scripts").join(script));
        // A umask that would keep others from what is installed.
        command.args(words).env("DESTDIR", self.destdir()).current_dir("/");
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        Ended { code: output.status.code(), said: String::from_utf8_lossy(&said).into_owned() }
    }

    fn install(&self, words: &[&str]) -> String {
        let programs = self.dir.path().join("programs");
        let ended = self.run("install", &[&["--binaries", programs.to_str().unwrap()], words].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.said);
        ended.said
    }

    fn uninstall(&self, words: &[&str]) -> String {
        let ended = self.run("uninstall", words);
        assert_eq!(ended.code, Some(0), "{}", ended.said);
        ended.said
    }

    /// Every path below DESTDIR, with what tells one state of it from another.
    fn found(&self) -> BTreeMap<String, (u32, u64, i64, Vec<u8>)> {
        let mut found = BTreeMap::new();
        let mut open = vec![self.destdir()];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                let path = entry.path();
                let about = fs::symlink_metadata(&path).unwrap();
                let content = match about.file_type() {
                    kind if kind.is_dir() => {
                        open.push(path.clone());
                        vec![]
                    }
                    kind if kind.is_symlink() => fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(),
                    _ => fs::read(&path).unwrap(),
                };
                let name = format!("/{}", path.strip_prefix(self.destdir()).unwrap().display());
                // A directory's own times change with what comes and goes beside us.
                let (inode, time) = if about.is_dir() { (0, 0) } else { (about.ino(), about.mtime_nsec() + about.mtime()) };
                found.insert(name, (about.mode(), inode, time, content));
            }
        }
        found
    }

    fn unit(&self, name: &str) -> String {
        fs::read_to_string(self.at("/usr/local/lib/systemd/system").join(name)).unwrap()
    }
}

const SERVICES: [&str; 2] = ["kilnd.service", "kilnd@.service"];
const UNITS: [&str; 7] = [
    "kiln.slice",
    "kilnd-control.socket",
    "kilnd-control@.socket",
    "kilnd.service",
    "kilnd.socket",
    "kilnd@.service",
    "kilnd@.socket",
];

// ---- Files -----------------------------------------------------------------------------------------------------------

#[test]
fn every_file_is_where_it_is_promised() {
    let place = Place::new();
    let said = place.install(&[]);
    let found = place.found();
    let mut promised: Vec<(String, u32)> = vec![];
    promised.extend(["kilnd", "kiln", "kiln-init"].map(|name| (format!("/usr/local/lib/kiln/{name}"), 0o100_755)));
    promised.extend(["bin/kiln", "sbin/kilnd"].map(|name| (format!("/usr/local/{name}"), 0o120_777)));
    promised.extend(UNITS.map(|name| (format!("/usr/local/lib/systemd/system/{name}"), 0o100_644)));
    promised.extend(["sysusers.d", "tmpfiles.d"].map(|name| (format!("/usr/local/lib/{name}/kiln.conf"), 0o100_644)));
    let scripts = ["build-runtimes", "users", "leftovers", "uninstall"];
    promised.extend(scripts.map(|name| (format!("/usr/local/share/kiln/scripts/{name}"), 0o100_755)));
    for file in [
        "README.md",
        "scripts/configuration",
        "rootfs/lock",
        "rootfs/base/recipe.toml",
        "rootfs/nodejs8.10/bootstrap.js",
        "manifest",
        "monitoring/dashboard.json",
        "monitoring/alerts.yml",
    ] {
        promised.push((format!("/usr/local/share/kiln/{file}"), 0o100_644));
    }
    let completions = ["bash-completion/completions/kiln", "zsh/site-functions/_kiln", "fish/vendor_completions.d/kiln.fish"];
    promised.extend(completions.map(|name| (format!("/usr/local/share/{name}"), 0o100_644)));
    promised.push(("/etc/kiln/kiln.toml".to_owned(), 0o100_644));
    for (path, mode) in &promised {
        assert_eq!(found.get(path).map(|about| about.0), Some(*mode), "{path}: {said}");
    }
    assert_eq!(found["/etc/kiln/kiln.toml"].3, config::SAMPLE.as_bytes());
    for link in ["/usr/local/bin/kiln", "/usr/local/sbin/kilnd"] {
        assert!(place.at(link).canonicalize().is_ok_and(|path| path.starts_with(place.at("/usr/local/lib/kiln"))), "{link}");
    }
    for (path, (mode, ..)) in &found {
        assert!(mode & 0o444 == 0o444 || mode & 0o170_000 == 0o120_000, "{path} is not for all to read: {mode:o}");
    }

    // The list is whole: uninstall goes by it.
    let manifest = fs::read_to_string(place.at("/usr/local/share/kiln/manifest")).unwrap();
    let listed: BTreeSet<&str> = manifest.lines().map(|line| line.split(' ').nth(3).unwrap()).collect();
    let unlisted: Vec<&String> = found.keys().filter(|path| !listed.contains(path.as_str())).collect();
    assert_eq!(unlisted, ["/usr/local/share/kiln/manifest"]);
    // What is left to do on the host where it will lie.
    for word in ["systemd-sysusers", "systemd-tmpfiles", "runtime add", "enable --now kilnd"] {
        assert!(said.contains(word), "{word}: {said}");
    }
}

#[test]
fn a_second_run_changes_nothing_and_says_so_and_an_upgrade_changes_what_is_new() {
    let place = Place::new();
    place.install(&[]);
    fs::write(place.at("/etc/kiln/kiln.toml"), "drain_s = 7\n").unwrap();
    let before = place.found();
    let said = place.install(&[]);
    assert!(said.contains("Nothing has changed"), "{said}");
    let mut after = place.found();
    let list = "/usr/local/share/kiln/manifest";
    assert_eq!(after[list].3, before[list].3, "the list");
    after.insert(list.into(), before[list].clone());
    assert_eq!(after, before);

    place.program("kilnd", "second");
    // Of an earlier version, which had a file more, in a directory of its own.
    let old = place.at("/usr/local/share/kiln/rootfs/old/old.py");
    fs::create_dir(old.parent().unwrap()).unwrap();
    fs::write(&old, "old").unwrap();
    let text = fs::read_to_string(place.at(list)).unwrap();
    let more = "d 755 - /usr/local/share/kiln/rootfs/old\nf 644 0 /usr/local/share/kiln/rootfs/old/old.py\n";
    fs::write(place.at(list), text + more).unwrap();
    let said = place.install(&[]);
    assert!(said.contains("Installed below") && said.contains(": 2 files"), "{said}");
    assert!(!old.parent().unwrap().exists(), "what an earlier version had stays");
    assert!(fs::read_to_string(place.at("/usr/local/lib/kiln/kilnd")).unwrap().contains("second"));
    assert_eq!(fs::read_to_string(place.at("/etc/kiln/kiln.toml")).unwrap(), "drain_s = 7\n", "the configuration is its owner's");
    assert!(!fs::read_to_string(place.at(list)).unwrap().contains("old.py"));
}

#[test]
fn uninstall_leaves_nothing_but_what_was_there_and_what_it_names() {
    let place = Place::new();
    // Of somebody else's.
    for other in ["/usr/local/bin/other", "/usr/local/lib/systemd/system/other.service"] {
        fs::create_dir_all(place.at(other).parent().unwrap()).unwrap();
        fs::write(place.at(other), "other").unwrap();
    }
    let before = place.found();
    place.install(&[]);
    // Beside what was installed, by the installed programs themselves.
    fs::write(place.at("/usr/local/share/kiln/rootfs/lock.new"), "").unwrap();
    let said = place.uninstall(&[]);
    assert_eq!(place.found(), before, "{said}");
    assert!(said.contains("Removed") && !said.contains("Kept"), "{said}");
    let said = place.uninstall(&[]);
    assert!(said.contains("Nothing is installed"), "{said}");

    place.install(&[]);
    fs::write(place.at("/etc/kiln/kiln.toml"), "drain_s = 7\n").unwrap();
    fs::write(place.at("/usr/local/share/kiln/rootfs/mine"), "").unwrap();
    let said = place.uninstall(&[]);
    let left: Vec<String> = place.found().into_keys().filter(|path| !before.contains_key(path)).collect();
    let share =
        ["/usr/local/share", "/usr/local/share/kiln", "/usr/local/share/kiln/rootfs", "/usr/local/share/kiln/rootfs/mine"];
    assert_eq!(left, [&["/etc", "/etc/kiln", "/etc/kiln/kiln.toml"][..], &share[..]].concat());
    assert!(said.contains("/etc/kiln/kiln.toml, because it was changed"), "{said}");
    assert!(said.contains("/usr/local/share/kiln/rootfs, because it holds what was not installed"), "{said}");
}

#[test]
fn an_interrupted_run_can_be_taken_away_and_done_again() {
    let place = Place::new();
    // A directory where a file shall be: the run fails in the middle.
    let stone = place.at("/usr/local/sbin/kilnd");
    fs::create_dir_all(stone.join("stone")).unwrap();
    let before = place.found();
    let programs = place.dir.path().join("programs");
    let ended = place.run("install", &["--binaries", programs.to_str().unwrap()]);
    assert_ne!(ended.code, Some(0));
    assert!(place.found().len() > before.len(), "it had not begun: {}", ended.said);
    place.uninstall(&[]);
    assert_eq!(place.found(), before);
    fs::remove_dir_all(&stone).unwrap();
    place.install(&[]);
    assert!(fs::read_link(&stone).is_ok());
}

#[test]
fn another_prefix_is_in_every_file_and_systemd_finds_the_units_there() {
    let place = Place::new();
    place.install(&["--prefix", "/opt/kiln"]);
    let found = place.found();
    let stray: Vec<&String> = found
        .keys()
        .filter(|path| !path.starts_with("/opt") && !path.starts_with("/etc/kiln") && found[*path].0 & 0o170_000 == 0o100_000)
        .collect();
    assert!(stray.is_empty(), "{stray:?}");
    for name in UNITS {
        let text = fs::read_to_string(place.at("/opt/kiln/lib/systemd/system").join(name)).unwrap();
        assert!(!text.contains("/usr/local"), "{name}");
        // systemd looks there, and not in /opt.
        let link = format!("/etc/systemd/system/{name}");
        assert_eq!(found[&link].3, format!("/opt/kiln/lib/systemd/system/{name}").into_bytes());
    }
    place.uninstall(&["--prefix", "/opt/kiln"]);
    assert!(place.found().is_empty(), "{:?}", place.found().keys());
    // Where Debian's packages put their files, systemd looks by itself.
    place.install(&["--prefix", "/usr"]);
    assert!(!place.at("/etc/systemd").exists());
}

#[test]
fn what_cannot_be_installed_is_refused_with_a_sentence_before_anything_is_touched() {
    let place = Place::new();
    let programs = place.dir.path().join("programs");
    let programs = programs.to_str().unwrap();
    for (words, code, why) in [
        (&["--binaries", "/nowhere"][..], 1, "there is no program kilnd in /nowhere"),
        (&["--binaries", programs, "--prefix", "here"], 1, "--prefix must be a full path"),
        (&["--binaries", programs, "--prefix", "/a b"], 1, "--prefix must be a full path"),
        (&["--binaries", programs, "--prefix", "/"], 1, "--prefix must be a full path"),
        (&["--binaries", programs, "--instance", "Two"], 1, "an instance's name is 1 to 16 of a-z and 0-9"),
        (&["--binaries", programs, "--instance", "two"], 1, "run scripts/install --instance two there"),
        (&["--binaries"], 2, "Run it again to upgrade"),
        (&["--what"], 2, "Run it again to upgrade"),
    ] {
        let ended = place.run("install", words);
        assert_eq!(ended.code, Some(code), "{words:?}: {}", ended.said);
        assert!(ended.said.contains(why), "{words:?}: {}", ended.said);
    }
    let ended = place.run("uninstall", &["--purge"]);
    assert!(ended.code == Some(1) && ended.said.contains("--purge is for the host where Kiln runs"), "{}", ended.said);
    assert!(!place.destdir().exists());
}

/// A script of ours that is only sourced, in a directory where `systemctl` is what this test makes of it.
fn sourced(script: &str, systemctl: &str, words: &str) -> Ended {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("systemctl");
    fs::write(&program, format!("#!/bin/sh\n{systemctl}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap_or_default());
    let text =
        format!("set -euo pipefail; shopt -s inherit_errexit; stop() {{ echo \"$*\"; exit 1; }}; . scripts/{script}; {words}");
    let output = Command::new("bash").arg("-c").arg(text).env("PATH", path).current_dir(repo()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    Ended { code: output.status.code(), said: String::from_utf8_lossy(&said).into_owned() }
}

#[test]
fn a_systemd_that_the_units_are_too_new_for_is_refused_with_a_sentence() {
    for (says, code) in [("systemd 249 (249.11-0ubuntu3.12)", 1), ("systemd 252 (252.39-1~deb12u1)", 0), ("systemd 257.8-1", 0)] {
        let ended = sourced("units", &format!("echo '{says}'; echo +PAM"), "refuse_old_systemd");
        assert_eq!(ended.code, Some(code), "{says}: {}", ended.said);
        assert!(
            code == 0 || ended.said.contains("systemd 249 is too old") && ended.said.contains("Ubuntu 24.04"),
            "{}",
            ended.said
        );
    }
    let ended = sourced("units", "exit 1", "refuse_old_systemd");
    assert!(ended.code == Some(1) && ended.said.contains("of an unknown version"), "{}", ended.said);
    // Before anything is built or touched.
    for script in ["install", "quickstart"] {
        let text = fs::read_to_string(repo().join("scripts").join(script)).unwrap();
        let place = |words: &str| text.find(words).unwrap_or_else(|| panic!("{script} has no {words:?}"));
        assert!(place("has_systemd || refuse_old_systemd") < place("cargo build"), "{script}");
    }
}

#[test]
fn of_a_drop_in_the_file_is_linked_and_its_directory_stays_its_owners() {
    let dir = tempfile::tempdir().unwrap();
    for path in ["kilnd.service", "kilnd.service.d/10-subgroup.conf", "kilnd@.service.d/10-subgroup.conf"] {
        fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
        fs::write(dir.path().join(path), "").unwrap();
    }
    let ended = sourced("units", "", &format!("unit_files {}", dir.path().display()));
    assert_eq!(ended.said, "kilnd.service\nkilnd.service.d/10-subgroup.conf\nkilnd@.service.d/10-subgroup.conf\n");
    // Of an earlier version that linked the directory.
    let place = Place::new();
    let words = ["--prefix", "/opt/kiln"];
    place.install(&words);
    let (manifest, link) = (place.at("/opt/kiln/share/kiln/manifest"), place.at("/etc/systemd/system"));
    fs::remove_dir_all(&link).unwrap();
    symlink("/nowhere", &link).unwrap();
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("d 755 - /etc/systemd/system\n", "l - /nowhere /etc/systemd/system\n")).unwrap();
    place.install(&words);
    assert!(fs::symlink_metadata(&link).unwrap().is_dir());
    assert!(fs::symlink_metadata(link.join("kilnd.service")).unwrap().is_symlink());
    place.uninstall(&words);
    assert!(place.found().is_empty(), "{:?}", place.found().keys());
}

#[test]
fn what_a_configuration_sets_is_read_as_kilnd_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.toml");
    let lines = [
        "# run_dir = '/comment'",
        "run_dir = '/run/a' # said here",
        "  state_dir=\"/srv/a b\"",
        "first_id = 1879244800",
        "state_directory = 'x'",
    ];
    fs::write(&file, lines.join("\n")).unwrap();
    let words =
        ["run_dir", "state_dir", "first_id", "runtimes_dir"].map(|key| format!("key {key} {} none", file.display())).join("; ");
    assert_eq!(sourced("configuration", "", &words).said, "/run/a\n/srv/a b\n1879244800\nnone\n");
    assert_eq!(sourced("configuration", "", "key run_dir /nowhere none").said, "none\n");
}

#[test]
fn the_ids_that_are_proposed_are_those_that_kiln_finds_free() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.toml");
    let free = |first: u64| {
        fs::write(&file, format!("instance = 'proposal'\nrun_dir = '/run/kiln-proposal'\nfirst_id = {first}\n")).unwrap();
        sourced("configuration", "", &format!("free_first_id {} {}", env!("CARGO_BIN_EXE_kiln"), file.display())).said
    };
    // The owner of all trees, as whom nobody may run.
    let proposed = free(1_879_048_192);
    let first: u64 = proposed.trim().parse().unwrap_or_else(|_| panic!("{proposed:?}"));
    assert!(first > 1_879_048_192 && first % 65_536 == 0, "{first}");
    assert_eq!(free(first), "", "and what is free stays as it is");
    for script in ["install", "quickstart"] {
        let text = fs::read_to_string(repo().join("scripts").join(script)).unwrap();
        assert!(text.contains("$(free_first_id "), "{script}");
    }
}

#[test]
fn an_installed_kiln_finds_its_builder_and_the_builder_its_recipes() {
    let place = Place::new();
    place.install(&[]);
    // Beside the installed library, and not where a checkout is.
    let kiln = Command::new(place.at("/usr/local/bin/kiln"))
        .args(["runtime", "add", "cobol.60", "--runtimes-dir"])
        .arg(place.dir.path().join("runtimes"))
        .arg("--cache-dir")
        .arg(place.dir.path().join("cache"))
        .env_remove("KILN_BUILDER")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&kiln.stderr);
    assert_eq!(kiln.status.code(), Some(1));
    if nix::unistd::geteuid().is_root() {
        assert!(said.contains("There is no recipe 'cobol.60'") && said.contains("nodejs8.10"), "{said}");
    } else {
        assert!(said.contains("only root can give"), "{said}");
    }
}

// ---- Units -----------------------------------------------------------------------------------------------------------

/// Directives of a unit without a comment right above them.
fn without_reason(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    let is_directive = |line: &str| line.contains('=') && !line.starts_with(['#', '[', ';']);
    let has_reason = |above: &str| above.starts_with("# ") && !above.starts_with("# --") && above.len() > 12;
    let bare = lines.iter().enumerate().filter(|(i, line)| is_directive(line) && (*i == 0 || !has_reason(lines[i - 1])));
    bare.map(|(_, line)| *line).collect()
}

#[test]
fn every_directive_has_its_reason() {
    let place = Place::new();
    place.install(&[]);
    let subgroup = fs::read_to_string(repo().join("scripts/systemd/subgroup.conf")).unwrap();
    for (name, text) in UNITS.map(|name| (name, place.unit(name))).into_iter().chain([("subgroup.conf", subgroup)]) {
        assert_eq!(without_reason(&text), Vec::<&str>::new(), "{name}");
        assert!(text.starts_with("# "), "{name} begins with its story");
        assert!(text.lines().all(|line| line.len() <= 140), "{name} is readable in a terminal");
    }
    // The users' and directories' lines too.
    for name in ["sysusers.conf", "tmpfiles.conf"] {
        let text = fs::read_to_string(repo().join("scripts/systemd").join(name)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.is_empty()) {
            assert!(lines[i - 1].starts_with("# "), "{name}: {line}");
        }
    }
    assert_eq!(without_reason("[Service]\n# Because of this and that.\nA=1\nB=2\n\n# ---- Next ------\nC=3\n"), ["B=2", "C=3"]);
}

/// `(section, key, value)` of a unit, without comments.
fn directives(text: &str) -> Vec<(String, String, String)> {
    let mut section = String::new();
    let mut found = vec![];
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        match line.split_once('=') {
            Some((key, value)) if !line.starts_with('[') => found.push((section.clone(), key.to_owned(), value.to_owned())),
            _ => section = line.to_owned(),
        }
    }
    found
}

fn values<'a>(all: &'a [(String, String, String)], key: &str) -> Vec<&'a str> {
    all.iter().filter(|(_, found, _)| found == key).map(|(.., value)| value.as_str()).collect()
}

#[test]
fn the_service_has_what_kilnd_relies_on_and_nothing_that_breaks_containers() {
    let place = Place::new();
    place.install(&[]);
    for name in SERVICES {
        let all = directives(&place.unit(name));
        for (key, value) in [
            ("Type", "notify"),
            ("NotifyAccess", "main"),
            ("Delegate", "yes"),
            ("KillMode", "mixed"),
            ("OOMPolicy", "continue"),
            ("TasksMax", "infinity"),
            ("Slice", "kiln.slice"),
            ("Restart", "on-failure"),
            ("RestartPreventExitStatus", "78"),
            ("LogRateLimitIntervalSec", "0"),
            ("ProtectSystem", "strict"),
            ("NoNewPrivileges", "yes"),
        ] {
            assert_eq!(values(&all, key), [value], "{name}: {key}");
        }
        // The file's own list of what was tried and breaks.
        for (broken, why) in [
            ("MemoryDenyWriteExecute", "just-in-time compilers"),
            ("RestrictNamespaces", "clone3"),
            ("RestrictSUIDSGID", "openat2"),
            ("ProtectHostname", "sethostname"),
            ("ProtectControlGroups", "limits of containers"),
            ("PrivateDevices", "CAP_MKNOD"),
            ("ProcSubset", "/proc/sys"),
            ("PrivateUsers", "root on the host"),
            ("User", "root on the host"),
            ("StateDirectory", "would chown the runtimes"),
            ("RuntimeDirectory", "would remove the sockets"),
            ("IPAddressDeny", "127.0.0.1:9001 of containers"),
            ("DelegateSubgroup", "unknown to systemd before 254"),
        ] {
            assert!(values(&all, broken).is_empty(), "{name}: {broken}: {why}");
        }
        // What the launchers ask for at start is allowed.
        let allowed = values(&all, "CapabilityBoundingSet").join(" ");
        let launcher = fs::read_to_string(repo().join("src/launcher/mod.rs")).unwrap();
        let needed: BTreeSet<&str> =
            launcher.split("Capability::").skip(1).filter_map(|rest| rest.split([',', ';', ' ', '\n']).next()).collect();
        assert!(needed.len() >= 9, "{needed:?}");
        for capability in needed.iter().filter(|word| word.starts_with("CAP_")) {
            assert!(allowed.split(' ').any(|word| word == *capability), "{name} lacks {capability}");
        }
        // No call that a function may make is taken away by group: an allow-list is Kiln's own.
        assert!(values(&all, "SystemCallFilter").iter().all(|value| value.starts_with('~')), "{name}");
    }
}

#[test]
fn the_template_differs_from_the_service_in_names_only() {
    let place = Place::new();
    place.install(&[]);
    for file in ["kilnd.service", "kilnd.socket", "kilnd-control.socket"] {
        let template = place.unit(&file.replace('.', "@."));
        let default = place.unit(file);
        let named = template
            .replace(" (%i)", "")
            .replace("@%i", "")
            .replace("/etc/kiln/%i.toml", "/etc/kiln/kiln.toml")
            .replace("-%i", "");
        assert_eq!(named, default, "{file}");
        assert_ne!(template, default);
    }
}

#[test]
fn units_name_only_what_is_installed_or_on_every_host() {
    let place = Place::new();
    place.install(&[]);
    let tmpfiles = fs::read_to_string(repo().join("scripts/systemd/tmpfiles.conf")).unwrap();
    // ExecStartPre makes the directories of an instance; the configuration is its owner's.
    let elsewhere = [
        "/usr/bin/mkdir",
        "/usr/bin/kill",
        "/run/lock",
        "/proc/sys/user",
        "/run/kiln-%i",
        "/var/lib/kiln-%i",
        "/etc/kiln/%i.toml",
    ];
    for name in UNITS {
        for (_, key, value) in directives(&place.unit(name)) {
            for word in value.split_whitespace().map(|word| word.trim_start_matches(['+', '-']).trim_start_matches("file:")) {
                if !word.starts_with('/') {
                    continue;
                }
                let dir = word.trim_end_matches("/kiln.sock").trim_end_matches("/control.sock");
                let is_there = place.at(word).exists()
                    || elsewhere.contains(&dir)
                    || tmpfiles.lines().any(|line| line.split(' ').nth(1) == Some(dir));
                assert!(is_there, "{name}: {key}={value}: nobody makes {word}");
            }
            for other in value.split_whitespace().filter(|word| word.ends_with(".socket") || word.ends_with(".service")) {
                assert!(UNITS.contains(&other.replace("%i", "").as_str()), "{name}: {key}={value}");
            }
        }
    }
}

#[test]
fn sockets_are_where_kilnd_and_kiln_look_for_them() {
    let place = Place::new();
    place.install(&[]);
    let config = config::Config::default();
    for (unit, path, name, group) in [
        ("kilnd.socket", config.api_socket(), "invoke", &config.invoke_group),
        ("kilnd-control.socket", config.control_socket(), "control", &config.admin_group),
    ] {
        let all = directives(&place.unit(unit));
        assert_eq!(values(&all, "ListenStream"), [path.to_str().unwrap()], "{unit}");
        assert_eq!(values(&all, "FileDescriptorName"), [name], "{unit}");
        assert_eq!(values(&all, "SocketGroup"), [group], "{unit}");
        assert_eq!(values(&all, "SocketMode"), ["0660"], "{unit}");
        assert_eq!(values(&all, "Service"), ["kilnd.service"], "{unit}");
    }
    let writable = directives(&place.unit("kilnd.service"));
    let writable = values(&writable, "ReadWritePaths").join(" ");
    for dir in [&config.run_dir, &config.state_dir] {
        assert!(writable.split(' ').any(|word| Path::new(word.trim_start_matches('-')) == dir), "{} is read-only", dir.display());
    }
    assert!(config.runtimes_dir.starts_with(&config.state_dir));
}

// ---- Users and directories -------------------------------------------------------------------------------------------

#[test]
fn sysusers_makes_what_scripts_users_makes() {
    let sysusers = fs::read_to_string(repo().join("scripts/systemd/sysusers.conf")).unwrap();
    let script = fs::read_to_string(repo().join("scripts/users")).unwrap();
    let lines = || sysusers.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let mut made: BTreeSet<(String, String)> = BTreeSet::new();
    for line in lines() {
        let mut words = line.split(' ');
        let (kind, name) = (words.next().unwrap(), words.next().unwrap().to_owned());
        if kind == "u" {
            made.insert(("user".into(), name.clone()));
        }
        // A user comes with a group of its name: sysusers.d(5).
        made.insert(("group".into(), name));
    }
    let by_script: BTreeSet<(String, String)> = script
        .lines()
        .filter_map(|line| line.strip_prefix("ensure "))
        .map(|line| line.split(' '))
        .map(|mut words| (words.next().unwrap().to_owned(), words.next().unwrap().to_owned()))
        .collect();
    assert_eq!(made, by_script);
    assert_eq!(by_script.len(), 4);
    let user = lines().find(|line| line.starts_with("u ")).unwrap();
    for part in ["\"Kiln's server\"", "/nonexistent"] {
        assert!(user.contains(part) && script.contains(part), "{part}");
    }
    let config = config::Config::default();
    for name in [&config.user, &config.invoke_group, &config.admin_group] {
        assert!(made.iter().any(|(_, made)| made == name), "{name} of the configuration");
    }
}

#[test]
fn tmpfiles_makes_what_kilnd_makes() {
    let tmpfiles = fs::read_to_string(repo().join("scripts/systemd/tmpfiles.conf")).unwrap();
    let line = |path: &Path| tmpfiles.lines().find(|line| line.split(' ').nth(1).map(Path::new) == Some(path)).unwrap();
    let config = config::Config::default();
    // As src/supervisor/premises.rs has it.
    let premises = fs::read_to_string(repo().join("src/supervisor/premises.rs")).unwrap();
    for (key, path, owner, mode) in
        [("run_dir", &config.run_dir, "root:root", "0755"), ("state_dir", &config.state_dir, "root:kiln", "0750")]
    {
        assert!(
            premises.lines().any(|line| line.starts_with(&format!("//! {key}")) && line.contains(&format!("{owner} {mode}")))
        );
        let (user, group) = owner.split_once(':').unwrap();
        assert_eq!(line(path), format!("d {} {mode} {user} {group} -", path.display()));
    }
    assert_eq!(line(&config.runtimes_dir), format!("d {} 0755 root root -", config.runtimes_dir.display()));
}
