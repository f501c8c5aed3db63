//! kilnd in groups as hosts hand them out: those that it can keep its limits in it takes, all others it refuses by name, with the cure, before
//! it has made anything. For real, in whichever layout this host has. Needs root and the user kiln; on unified hosts systemd.

#[path = "supervisor/instance.rs"]
#[allow(dead_code)] // serves several test programs; each uses its part
mod instance;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use instance::{Instance, cgroup_mounts, eventually, is_alive, ready};
use nix::sys::signal::Signal;
use serde_json::Value;

fn unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// kilnd as the last words of a script, which prepares the group that it is in; `$own` is that group on unified hosts.
fn kilnd_after(instance: &Instance, script: &str, scope: &[&str]) -> Command {
    let mut command = if unified() {
        let mut command = Command::new("systemd-run");
        command.args(["--quiet", "--scope", "--collect"]).args(scope).arg("bash");
        command
    } else {
        Command::new("bash")
    };
    let script = format!("own=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup); {script}");
    command.args(["-euc", &script, "bash", env!("CARGO_BIN_EXE_kilnd"), "--config"]).arg(instance.path("kiln.toml"));
    command.env("NOTIFY_SOCKET", instance.path("notify")).stdin(Stdio::null());
    command
}

const DELEGATED: &[&str] = &["--property=Delegate=yes"];

/// Ends with 78, after which systemd does not try again (no try would be better), says `words`, and has neither answered nor left a group.
#[track_caller]
fn assert_refused(script: &str, scope: &[&str], words: &[&str]) {
    let mut instance = Instance::prepare();
    instance.launch_by(kilnd_after(&instance, script, scope));
    let code = instance.wait().code();
    let told = instance.log();
    assert_eq!(code, Some(78), "{script}: {told}");
    for word in words {
        assert!(told.contains(word), "{script}: {word:?} is not in: {told}");
    }
    assert!(!instance.run_dir().join("kiln.sock").exists() && !instance.run_dir().join("cgroups").exists(), "{script}");
    assert_eq!(instance.cgroups(), [""; 0].map(PathBuf::from), "{script}");
}

/// Starts, answers, and ends without a trace.
#[track_caller]
fn assert_served(script: &str, scope: &[&str], meanwhile: impl FnOnce(&Instance)) {
    let mut instance = Instance::prepare();
    instance.launch_by(kilnd_after(&instance, script, scope));
    instance.await_ready();
    assert!(instance.ask().starts_with("HTTP/1.1 404"), "{script}");
    meanwhile(&instance);
    instance.signal(Signal::SIGTERM);
    assert_eq!(instance.wait().code(), Some(0), "{script}: {}", instance.log());
    assert_eq!(instance.cgroups(), [""; 0].map(PathBuf::from));
}

/// This process's group in cgroup2.
fn group(pid: u32) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    PathBuf::from(format!("/sys/fs/cgroup{path}"))
}

// ---- Unified ---------------------------------------------------------------------------------------------------------

#[test]
fn a_group_that_systemd_does_not_delegate_is_refused() {
    if !ready() || !unified() {
        return;
    }
    assert_refused("exec \"$@\"", &[], &["systemd does not leave our group", "Delegate=yes in kilnd's unit"]);
}

#[test]
fn a_group_with_somebody_else_in_it_is_refused_and_one_beside_it_is_none_of_ours() {
    if !ready() || !unified() {
        return;
    }
    // The shell itself: it waits.
    assert_refused("\"$@\"; exit $?", DELEGATED, &["another process (", "lives in our group", "Delegate=yes"]);
}

#[test]
fn each_controller_that_does_not_arrive_is_refused_by_its_name_and_by_who_withholds_it() {
    if !ready() || !unified() {
        return;
    }
    for (lacking, passed) in [("memory", "+cpu +pids"), ("cpu", "+memory +pids"), ("pids", "+cpu +memory")] {
        let script = format!(
            "mkdir $own/aside $own/kiln; echo $$ > $own/aside/cgroup.procs; echo '{passed}' > $own/cgroup.subtree_control
             echo $$ > $own/kiln/cgroup.procs; exec \"$@\""
        );
        let missing = format!("the controller {lacking} is not available in");
        assert_refused(&script, DELEGATED, &[&missing, ".scope does not pass it on", "Delegate=yes"]);
    }
}

#[test]
fn a_threaded_group_is_refused() {
    if !ready() || !unified() {
        return;
    }
    let script = "mkdir $own/kiln; echo threaded > $own/kiln/cgroup.type; echo $$ > $own/kiln/cgroup.procs; exec \"$@\"";
    assert_refused(script, DELEGATED, &["is \"threaded\", where neither memory nor processes can be limited"]);
}

#[test]
fn an_own_group_that_is_there_already_is_used_with_a_stranger_in_it_or_without() {
    if !ready() || !unified() {
        return;
    }
    let in_own_place = |instance: &Instance| {
        let own = group(instance.supervisor());
        assert!(own.ends_with("supervisor"), "{}", own.display());
        let parent = own.parent().unwrap();
        assert!(parent.to_str().unwrap().ends_with(".scope"), "{}: no deeper than that", parent.display());
        assert_eq!(fs::read_to_string(parent.join("cgroup.procs")).unwrap(), "", "no internal processes");
        let passed = fs::read_to_string(parent.join("cgroup.subtree_control")).unwrap();
        assert!(["cpu", "memory", "pids"].iter().all(|name| passed.split_whitespace().any(|found| found == *name)), "{passed}");
        // Server and launchers come and go beside it.
        let children = ["server", "launcher"].map(|role| instance.children(role)).concat();
        assert!(children.len() >= 3 && children.iter().all(|(pid, _)| group(*pid) == own), "{children:?}");
    };
    // As systemd 254 and later start it; as older ones do; and where an earlier kilnd has left a process.
    assert_served("mkdir $own/supervisor; echo $$ > $own/supervisor/cgroup.procs; exec \"$@\"", DELEGATED, in_own_place);
    assert_served("exec \"$@\"", DELEGATED, in_own_place);
    let stale = "mkdir $own/supervisor; sleep 1000 & echo $! > $own/supervisor/cgroup.procs; exec \"$@\"";
    assert_served(stale, DELEGATED, |instance| {
        in_own_place(instance);
        let stranger = instance.children("1000")[0].0;
        instance::end(stranger, Signal::SIGKILL);
        eventually("it is gone", || !is_alive(stranger));
    });
}

#[test]
fn a_cgroup_namespace_with_its_own_mount_is_as_good_as_the_host() {
    if !ready() || !unified() {
        return;
    }
    let script = "exec unshare --cgroup --mount bash -euc 'umount -l /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; exec \"$@\"' bash \"$@\"";
    assert_served(script, DELEGATED, |instance| {
        assert!(group(instance.supervisor()).parent().unwrap().join("cgroup.subtree_control").exists());
    });
}

// ---- Every layout ----------------------------------------------------------------------------------------------------

#[test]
fn cgroups_that_can_only_be_read_are_refused() {
    if !ready() {
        return;
    }
    for mount in cgroup_mounts() {
        // Only those that we need.
        let name = mount.file_name().unwrap().to_string_lossy().into_owned();
        if !["cgroup", "unified", "memory", "cpu", "cpu,cpuacct", "pids"].contains(&name.as_str()) {
            continue;
        }
        let script = format!(
            "exec unshare --mount bash -euc 'mount --bind {0} {0}; mount -o remount,bind,ro {0}; exec \"$@\"' bash \"$@\"",
            mount.display()
        );
        assert_refused(&script, DELEGATED, &["is mounted read-only at", "ProtectControlGroups"]);
    }
}

#[test]
fn a_v1_controller_that_is_not_mounted_is_refused_by_its_name() {
    if !ready() || unified() {
        return;
    }
    for mount in cgroup_mounts() {
        let Some(name) = mount.file_name().and_then(|name| name.to_str()).filter(|name| ["memory", "pids"].contains(name)) else {
            continue;
        };
        let script = format!("exec unshare --mount bash -euc 'umount -l {}; exec \"$@\"' bash \"$@\"", mount.display());
        assert_refused(
            &script,
            &[],
            &[&format!("the v1 cgroup controller {name} is not mounted, although others are; boot with")],
        );
    }
}

/// A group of one v1 hierarchy that goes away with this value.
struct V1Group(PathBuf);

impl V1Group {
    fn of(instance: &str, controller: &str, file: &str, value: &str) -> Self {
        let is_it =
            |mount: &PathBuf| mount.to_string_lossy().rsplit('/').next().unwrap().split(',').any(|name| name == controller);
        let group = cgroup_mounts().into_iter().find(is_it).unwrap().join(format!("test-{instance}"));
        fs::create_dir(&group).unwrap();
        fs::write(group.join(file), value).unwrap();
        Self(group)
    }
}

impl Drop for V1Group {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            eventually("the group is empty", || fs::remove_dir(&self.0).is_ok());
        }
    }
}

#[test]
fn in_v1_a_quota_below_one_cpu_is_refused_since_no_container_could_have_its_own() {
    if !ready() || unified() {
        return;
    }
    let group = V1Group::of(&format!("{}-quota", std::process::id()), "cpu", "cpu.cfs_quota_us", "50000");
    let script = format!("echo 0 > {}/tasks; exec \"$@\"", group.0.display());
    assert_refused(&script, &[], &["cpu.cfs_quota_us leaves less than one CPU", "CPUQuota="]);
}

#[test]
fn the_memory_budget_is_four_fifths_of_the_smallest_limit_above() {
    if !ready() {
        return;
    }
    let budget = |instance: &Instance| {
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        kiln.arg("--run").arg(instance.run_dir()).args(["pool", "--json"]);
        let output = kiln.output().unwrap();
        let pool: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(pool["budget_mib"], 400, "{}", instance.log());
        // The doctor says the same, and whose limit it is.
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        let output = kiln.arg("--run").arg(instance.run_dir()).args(["doctor", "--json"]).output().unwrap();
        let whole: Value = serde_json::from_slice(&output.stdout).unwrap();
        let memory = whole["checks"].as_array().unwrap().iter().find(|check| check["check"] == "memory").unwrap();
        let found = memory["found"].as_str().unwrap();
        assert!(found.starts_with("400 of the 500 MiB that ") && found.contains("allows"), "{found}");
    };
    if unified() {
        assert_served("exec \"$@\"", &["--property=Delegate=yes", "--property=MemoryMax=500M"], budget);
    } else {
        let group = V1Group::of(&format!("{}-memory", std::process::id()), "memory", "memory.limit_in_bytes", "500M");
        // On the group above kilnd's own, as a slice's would be.
        let script = format!("mkdir {0}/below; echo 0 > {0}/below/tasks; exec \"$@\"", group.0.display());
        assert_served(&script, &[], budget);
        fs::remove_dir(group.0.join("below")).unwrap();
    }
}
