//! What is true inside of a container, and whether it is what the launcher says it does.

use std::fs::{self, File};
use std::io::{Read, Seek};

use kiln::wire::init::STARTED;
use kiln::wire::launcher::{CgroupLayout, CgroupPath, Description, Handle, Namespace, Order, Report};
use serde_json::Value;

use crate::host::{Container, Host, privileged};

/// Runs a script and collects its lines up to `end`.
fn lines(container: &Container, script: &str) -> Vec<String> {
    container.run(&format!("{{ {script}; }} 2>&1; echo end; sleep 1000"));
    assert_eq!(container.init_says().0, STARTED);
    std::iter::from_fn(|| Some(container.line()).filter(|line| line != "end")).collect()
}

#[test]
fn a_function_is_nobody_and_can_become_nobody_else() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let seen = lines(&launcher.build(), "id; cat /proc/self/status /proc/self/uid_map /proc/sys/user/max_user_namespaces");
    assert_eq!(seen[0], "uid=993 gid=990 groups=990");
    for wanted in ["CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(seen.iter().any(|line| line == wanted), "{wanted}: {seen:#?}");
    }
    assert!(seen.iter().any(|line| line.starts_with("Groups:") && line.trim_end() == "Groups:"), "{seen:#?}");
    assert_eq!(seen.last().unwrap(), "0", "no namespace can be made inside");
}

#[test]
fn pid_1_is_closed_to_the_function() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let seen = lines(&launcher.build(), "cat /proc/1/environ; cat /proc/1/maps; cat /proc/1/mem; cd /proc/1/fd");
    assert!(seen.len() >= 4 && seen.iter().all(|line| line.contains("denied") || line.contains("can't cd")), "{seen:#?}");
}

#[test]
fn only_tmp_can_be_written() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let script = "for d in / /dev /etc /opt /var /var/task /var/lang /bin /proc /tmp; do echo x > $d/kiln-test && echo $d; done";
    let written: Vec<_> =
        lines(&launcher.build(), script).into_iter().filter(|line| line.starts_with('/') && !line.contains(':')).collect();
    assert_eq!(written, ["/tmp"]);
}

#[test]
fn devices_are_these_and_work() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let script = "cd /dev; echo *; echo x > null && echo x > full; read line < null; echo $?; echo to stderr > /dev/stderr";
    let seen = lines(&launcher.build(), script);
    assert_eq!(seen[0], "fd full null random stderr stdin stdout tty urandom zero");
    // The shell's words for ENOSPC.
    assert!(seen[1].contains("I/O error"), "{seen:#?}");
    assert_eq!(seen[2..], ["1", "to stderr"]);
}

#[test]
fn processes_that_lost_their_parent_are_reaped() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    // `cat` reads each status after the orphans have ended; a zombie would say so.
    let script = "for i in 1 2 3; do (sleep 0 &); done; sleep 0.2; cat /proc/[0-9]*/status";
    let seen = lines(&launcher.build(), script);
    let states: Vec<_> = seen.iter().filter(|line| line.starts_with("State:")).collect();
    assert!(states.len() >= 2 && !states.iter().any(|state| state.contains("zombie")), "{states:#?}");
}

#[test]
fn signals_are_as_a_fresh_process_expects_them() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let seen = lines(&launcher.build(), "cat /proc/self/status");
    for wanted in ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"] {
        assert!(seen.iter().any(|line| line == wanted), "{wanted}: {seen:#?}");
    }
}

#[test]
fn descriptors_are_three_and_stdin_is_empty() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = launcher.build();
    container.run("cd /proc/self/fd; echo *; read x; echo $?");
    assert_eq!(container.init_says().0, STARTED);
    // The fourth is the directory that the shell reads to find out.
    assert_eq!((container.line(), container.line()), ("0 1 2 3".into(), "1".into()));
}

#[test]
fn stdin_is_of_the_containers_own_dev() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let seen = lines(&launcher.build(), "cat /proc/self/fdinfo/0 /proc/self/mountinfo");
    let mount = seen.iter().find_map(|line| line.strip_prefix("mnt_id:")).unwrap().trim();
    let found = seen.iter().find(|line| line.starts_with(&format!("{mount} "))).expect("a mount of the container's");
    assert_eq!(found.split(' ').nth(4), Some("/dev"));
}

#[test]
fn what_is_described_is_what_runs() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = launcher.build();
    let order = launcher.next_order();
    launcher.send(&Order::Describe { order, container: container.id }, &[]);
    let (report, text) = launcher.answer(order);
    let Report::Described { description, .. } = report else { panic!("not described: {report:?}") };
    let mut file = File::from(text.into_iter().next().unwrap());
    file.rewind().unwrap();
    let mut json = String::new();
    file.read_to_string(&mut json).unwrap();
    let spec: Value = serde_json::from_str(&json).unwrap();

    let seen = lines(&container, "cat /proc/self/mountinfo /proc/self/limits /proc/self/uid_map /proc/sys/kernel/hostname");
    compare_mounts(&spec, &seen);
    assert_eq!(seen.last().unwrap(), spec["hostname"].as_str().unwrap());
    for (name, kind) in [
        ("Max open files", "RLIMIT_NOFILE"),
        ("Max core file size", "RLIMIT_CORE"),
        ("Max locked memory", "RLIMIT_MEMLOCK"),
        ("Max realtime priority", "RLIMIT_RTPRIO"),
        ("Max nice priority", "RLIMIT_NICE"),
    ] {
        let limits = spec["process"]["rlimits"].as_array().unwrap().iter().find(|limit| limit["type"] == kind).unwrap();
        let line = seen.iter().find(|line| line.starts_with(name)).unwrap();
        let found: Vec<_> = line[name.len()..].split_whitespace().take(2).collect();
        assert_eq!(found, [limits["soft"].to_string(), limits["hard"].to_string()]);
    }
    for mapping in spec["linux"]["uidMappings"].as_array().unwrap() {
        let wanted = ["containerID", "hostID", "size"].map(|key| mapping[key].to_string());
        assert!(seen.iter().any(|line| line.split_whitespace().eq(wanted.iter())), "{wanted:?}");
    }
    compare_limits(&spec["linux"]["resources"], &container);
    compare_description(&description, &spec);
}

/// The same container, in the words that people are told: against /proc of the process that it names.
fn compare_description(description: &Description, spec: &Value) {
    let init = description.init;
    assert_eq!(fs::read_to_string(format!("/proc/{init}/comm")).unwrap(), "kiln-init\n");
    for Namespace { kind, inode } in &description.namespaces {
        let link = fs::read_link(format!("/proc/{init}/ns/{kind}")).unwrap();
        assert_eq!(link.to_str().unwrap(), format!("{kind}:[{inode}]"));
    }
    let kinds: Vec<_> = description.namespaces.iter().map(|namespace| namespace.kind.as_str()).collect();
    assert_eq!(kinds, ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]);
    let groups = fs::read_to_string(format!("/proc/{init}/cgroup")).unwrap();
    for CgroupPath { hierarchy, path } in &description.cgroups {
        let names = if hierarchy == "unified" { "" } else { hierarchy };
        assert!(groups.lines().any(|line| line.ends_with(&format!(":{names}:{path}"))), "{hierarchy} {path}: {groups}");
    }
    let unified = description.cgroups.iter().find(|group| group.hierarchy == "unified").unwrap();
    assert_eq!(spec["linux"]["cgroupsPath"], unified.path.as_str());
    let ids: Vec<_> = spec["linux"]["uidMappings"].as_array().unwrap().iter().map(|id| id["hostID"].as_u64().unwrap()).collect();
    assert_eq!(description.ids.iter().map(|id| u64::from(id.outside)).collect::<Vec<_>>(), ids);
    assert_eq!(description.mounts.len(), spec["mounts"].as_array().unwrap().len() + 1);
    let usage = &description.usage;
    // kiln-init, which rested then.
    assert_eq!((usage.frozen, usage.processes, usage.tasks), (false, 1, Some(1)));
    assert_eq!((usage.memory_limit, usage.tasks_limit, usage.open_files_limit), (Some(640 << 20), Some(1025), Some(1024)));
    assert_eq!((usage.cpu_quota_us, usage.cpu_period_us), (Some(100_000), Some(100_000)));
    assert!(usage.cpu_us > Some(0) && usage.memory > Some(0) && usage.open_files >= Some(3), "{usage:?}");
}

/// Each mount that the description has, with its options, and no other.
fn compare_mounts(spec: &Value, seen: &[String]) {
    let mounted: Vec<(&str, &str)> = seen
        .iter()
        .filter(|line| line.contains(" - "))
        .map(|line| (line.split(' ').nth(4).unwrap(), line.split(' ').nth(5).unwrap()))
        .collect();
    let described = spec["mounts"].as_array().unwrap();
    assert_eq!(mounted.len(), described.len() + 1, "the root and these: {mounted:#?}");
    assert!(mounted.iter().any(|(at, options)| *at == "/" && options.starts_with("ro,")) && spec["root"]["readonly"] == true);
    for mount in described {
        let (_, options) = mounted.iter().find(|(at, _)| mount["destination"] == *at).unwrap_or_else(|| panic!("{mount}"));
        for flag in ["ro", "nosuid", "nodev", "noexec"] {
            let wanted = mount["options"].as_array().unwrap().iter().any(|option| option == flag);
            assert_eq!(options.split(',').any(|option| option == flag), wanted, "{flag} at {}", mount["destination"]);
        }
    }
}

fn compare_limits(resources: &Value, container: &Container) {
    let files: &[(Handle, &str, &Value)] = match container.cgroups {
        CgroupLayout::Split => &[(Handle::MemoryDir, "memory.limit_in_bytes", &resources["memory"]["limit"])],
        CgroupLayout::Unified => &[
            (Handle::CgroupDir, "memory.max", &resources["memory"]["limit"]),
            (Handle::CgroupDir, "pids.max", &resources["pids"]["limit"]),
        ],
    };
    for (directory, file, wanted) in files {
        assert_eq!(container.read_cgroup(*directory, file).trim(), wanted.to_string(), "{file}");
    }
    let (file, cpu) = (container.handle(Handle::CpuQuota), &resources["cpu"]["quota"]);
    let path = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file))).unwrap();
    let quota = std::fs::read_to_string(path).unwrap();
    assert_eq!(quota.split_whitespace().next().unwrap(), cpu.to_string());
}
