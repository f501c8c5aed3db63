//! A container's life, and whoever ends it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use kiln::invocation::ProcessEnd;
use kiln::wire::init::{EXEC_FAILED, EXITED, NO_BOOTSTRAP, STARTED};
use kiln::wire::launcher::{Handle, Order, Report};

use crate::host::{Container, Host, privileged, processes_of, readable, until};

/// The host's id of whoever runs in it.
fn user(container: &Container) -> u32 {
    let pid = container.read_cgroup(Handle::CgroupDir, "cgroup.procs");
    let status = fs::read_to_string(format!("/proc/{}/status", pid.lines().next().unwrap())).unwrap();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    uids.split_whitespace().next().unwrap().parse().unwrap()
}

/// Microseconds of CPU that it has used.
fn cpu_used(container: &Container) -> u64 {
    let text = container.read_cgroup(Handle::CgroupDir, "cpu.stat");
    text.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap().parse().unwrap()
}

#[test]
fn a_container_is_built_runs_and_ends_without_a_trace() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = launcher.build();
    container.run("cat /var/task/hello; echo to the log > /dev/stderr; exit 7");
    let (kind, candidate, _, descriptors) = container.init_says();
    assert_eq!((kind, candidate), (STARTED, 0));
    let [runtime] = &descriptors[..] else { panic!("the runtime's pidfd comes along") };
    assert_eq!(container.line(), "hello from the task");
    assert_eq!(container.line(), "to the log");
    assert!(readable(runtime), "a pidfd tells its process's end");
    let (kind, _, status, _) = container.init_says();
    assert_eq!((kind, status), (EXITED, 7 << 8));
    let (ended, _) = launcher.wait_for(|report| matches!(report, Report::InitEnded { .. }));
    assert_eq!(ended, Report::InitEnded { container: container.id, how: ProcessEnd::Exited(0) });

    launcher.end(container.id);
    assert!(launcher.close().success());
    assert_eq!(host.leftovers(), [""; 0]);
}

/// Each step's place has a reason (`launcher::launch`): a change of this list is a change of the design.
#[test]
fn a_launch_takes_its_steps_in_their_order() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let container = host.launcher(1).build();
    let steps: Vec<&str> = container.steps.iter().map(|step| step.step.as_str()).collect();
    let child = steps.iter().position(|step| *step == "child").expect("the child has told its times");
    assert_eq!(
        steps[child + 1..],
        [
            "version 1 cgroups",
            "network",
            "cgroup namespace",
            "host name",
            "memory shortage",
            "root",
            "attach trees",
            "null",
            "user namespace",
            "ids",
            "capabilities",
            "die with the launcher",
            "no new privileges",
            "descriptors",
            "resource limits",
            "signals",
            "seccomp",
            "cpu weight",
            "pidfd",
        ]
    );
}

/// As one has that is the parent of some thousand containers.
#[test]
fn a_launcher_with_more_descriptors_than_a_function_may_have_builds() {
    let Some(()) = privileged() else { return };
    let mut host = Host::new();
    host.descriptors = 1100;
    let mut launcher = host.launcher(1);
    let container = launcher.build();
    container.run("exit 0");
    assert_eq!(container.init_says().0, STARTED);
}

#[test]
fn a_launch_finds_a_seat_that_was_made_before() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    // A seat has a group in each hierarchy, all of one name.
    let name = |found: &String| found.strip_prefix("cgroup ")?.rsplit('/').next().map(str::to_owned);
    let seats = || host.leftovers().iter().filter_map(name).collect::<BTreeSet<_>>().len();
    until("the stock is full", || (seats() >= 4).then_some(()));
    let container = launcher.build();
    assert!(container.id.number <= 4, "{}", container.id);
    container.run("exit 0");
    assert_eq!(container.init_says().0, STARTED);
    assert_eq!(container.init_says().0, EXITED);
}

#[test]
fn a_running_container_and_a_frozen_one_are_ended_alike() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    for frozen in [false, true] {
        let container = launcher.build();
        container.run("sleep 1000 & sleep 1000");
        assert_eq!(container.init_says().0, STARTED);
        let user = user(&container);
        container.freeze(frozen);
        launcher.end(container.id);
        assert_eq!(processes_of(user), [0; 0]);
        let how = launcher.wait_for(|report| matches!(report, Report::InitEnded { container: id, .. } if *id == container.id));
        assert!(matches!(how.0, Report::InitEnded { how: ProcessEnd::Killed { signal: 9, .. }, .. }), "{how:?}");
    }
}

#[test]
fn a_frozen_container_makes_no_progress_and_goes_on_when_thawed() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = launcher.build();
    container.run("i=0; while :; do i=$((i+1)); done");
    assert_eq!(container.init_says().0, STARTED);
    until("it works", || (cpu_used(&container) > 20_000).then_some(()));

    container.freeze(true);
    let frozen = || container.read_cgroup(Handle::CgroupDir, "cgroup.events").contains("frozen 1");
    until("the kernel says frozen", || frozen().then_some(()));
    // Time must pass here: that nothing happens is the point. What a process used on its way to where it rests is counted
    // when its CPU looks up, and that of a test machine may be busy elsewhere.
    let passes = || {
        let before = cpu_used(&container);
        std::thread::sleep(Duration::from_millis(500));
        (before, cpu_used(&container))
    };
    let used = until("half a second goes by without any work", || {
        let (before, after) = passes();
        (before == after).then_some(after)
    });

    container.freeze(false);
    until("it works again", || (cpu_used(&container) > used + 20_000).then_some(()));
}

#[test]
fn a_killed_launcher_takes_its_containers_along() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let containers = [launcher.build(), launcher.build()];
    let users = containers.each_ref().map(user);
    containers[0].run("sleep 1000 & sleep 1000");
    assert_eq!(containers[0].init_says().0, STARTED);
    containers[0].freeze(true);

    launcher.child.kill().unwrap();
    launcher.wait();
    for (container, user) in containers.iter().zip(users) {
        assert!(readable(container.handle(Handle::InitPidfd)), "init has ended");
        until("its processes are gone", || processes_of(user).is_empty().then_some(()));
    }
    host.sweep();
}

#[test]
fn when_the_server_is_gone_the_launcher_cleans_up_and_exits_0() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let (running, frozen, resting) = (launcher.build(), launcher.build(), launcher.build());
    for container in [&running, &frozen] {
        container.run("sleep 1000");
        assert_eq!(container.init_says().0, STARTED);
    }
    frozen.freeze(true);
    let users = [&running, &frozen, &resting].map(user);
    assert!(launcher.close().success());
    assert!(users.into_iter().all(|user| processes_of(user).is_empty()));
    assert_eq!(host.leftovers(), [""; 0]);
}

#[test]
fn when_the_supervisor_is_gone_the_launcher_is_too() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = launcher.build();
    let user = user(&container);
    launcher.life = None;
    assert!(launcher.wait().success());
    assert_eq!(processes_of(user), [0; 0]);
    assert_eq!(host.leftovers(), [""; 0]);
}

#[test]
fn sigterm_is_not_for_the_launcher() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = launcher.build();
    let pid = nix::unistd::Pid::from_raw(launcher.child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
    launcher.end(container.id);
}

#[test]
fn a_step_that_fails_is_named_with_its_errno_and_undone() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    // In the launcher's half.
    let mut launcher = host.launcher(1);
    fs::rename(host.path(&format!("state/code/{}", host.code)), host.path("elsewhere")).unwrap();
    let build = launcher.build_order();
    launcher.send(&Order::Build(build.clone()), &[]);
    match launcher.answer(build.order).0 {
        Report::Failed { failure, .. } => {
            assert_eq!((failure.step.as_str(), failure.errno), ("mounts", libc::ENOENT));
            assert!(failure.what.contains(&host.code.to_string()), "{failure}");
        }
        other => panic!("{other:?}"),
    }
    fs::rename(host.path("elsewhere"), host.path(&format!("state/code/{}", host.code))).unwrap();
    launcher.build();
    assert!(launcher.close().success());
    assert_eq!(host.leftovers(), [""; 0]);

    // In the child's, as late as can be: a kiln-init that nobody may execute.
    let bin = host.path("bin");
    fs::create_dir(&bin).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_kilnd"), bin.join("kilnd")).unwrap();
    fs::write(bin.join("kiln-init"), "").unwrap();
    fs::set_permissions(bin.join("kiln-init"), fs::Permissions::from_mode(0o644)).unwrap();
    let mut launcher = host.launcher_from(&bin.join("kilnd"), 2);
    let build = launcher.build_order();
    launcher.send(&Order::Build(build.clone()), &[]);
    match launcher.answer(build.order).0 {
        Report::Failed { failure, .. } => assert_eq!((failure.step.as_str(), failure.errno), ("exec kiln-init", libc::EACCES)),
        other => panic!("{other:?}"),
    }
    assert!(launcher.close().success());
    assert_eq!(host.leftovers(), [""; 0]);
}

#[test]
fn the_first_candidate_that_is_a_file_is_started() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = launcher.build();
    // Neither there, nor a file; then one with its variables.
    container.start(&[&["/nothing"], &["/var/task"], &["/usr/bin/env"], &["/bin/sh"]], &["A=1", "B=two words"]);
    assert_eq!((container.init_says().0, container.line(), container.line()), (STARTED, "A=1".into(), "B=two words".into()));
}

#[test]
fn a_runtime_that_cannot_be_started_says_why() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = launcher.build();
    container.start(&[&["/var/task/bootstrap"], &["/tmp"]], &[]);
    assert_eq!(container.init_says().0, NO_BOOTSTRAP);

    let container = launcher.build();
    container.start(&[&["/var/task/hello"]], &[]);
    let (kind, candidate, errno, _) = container.init_says();
    assert_eq!((kind, candidate, errno), (EXEC_FAILED, 0, libc::EACCES));
}

#[test]
fn a_signal_that_ends_the_runtime_is_told() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = launcher.build();
    container.run("kill -SEGV $$");
    assert_eq!(container.init_says().0, STARTED);
    let (kind, _, status, _) = container.init_says();
    assert_eq!((kind, status & 0x7f), (EXITED, libc::SIGSEGV));
}

#[test]
fn when_the_server_closes_the_control_socket_the_container_ends() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let mut container = launcher.build();
    container.run("sleep 1000");
    assert_eq!(container.init_says().0, STARTED);
    container.handles.remove(&Handle::Control);
    launcher.wait_for(|report| matches!(report, Report::InitEnded { .. }));
}

#[test]
fn a_launcher_has_one_thread_and_no_listening_socket_of_its_own() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = launcher.build();
    let proc = format!("/proc/{}", launcher.child.id());
    let status = fs::read_to_string(format!("{proc}/status")).unwrap();
    assert!(status.contains("Threads:\t1\n"), "{status}");
    let sockets = || {
        let links = fs::read_dir(format!("{proc}/fd")).unwrap().flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
        let inode = |link: &Path| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned());
        links.filter_map(|link| inode(&link)).collect::<Vec<_>>()
    };
    // The container's own went to the server.
    let inodes = until("it has the server's socket only", || Some(sockets()).filter(|sockets| sockets.len() == 1));
    // In its own network namespace: tcp and unix, listening (state 0A; flag 00010000).
    for (table, listening) in [("tcp", " 0A "), ("tcp6", " 0A "), ("unix", " 00010000 ")] {
        let table = fs::read_to_string(Path::new(&proc).join("net").join(table)).unwrap_or_default();
        let ours = table.lines().filter(|line| line.contains(listening));
        let ours: Vec<_> = ours.filter(|line| line.split_whitespace().any(|word| inodes.iter().any(|i| i == word))).collect();
        assert_eq!(ours, [""; 0]);
    }
    drop(container);
}

/// Whoever may read a tree may lock it: any user of the host.
#[test]
fn somebody_elses_lock_on_a_tree_keeps_no_function_from_running() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let tree = fs::read_dir(host.path("runtimes/trees")).unwrap().next().unwrap().unwrap().path();
    let lock = |file: &fs::File| rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    let somebody = fs::File::open(&tree).unwrap();
    lock(&somebody).unwrap();
    let mut launcher = host.launcher(1);
    let container = launcher.build();
    container.run("exit 0");
    assert_eq!(container.init_says().0, STARTED);
    assert!(launcher.close().success());
    drop(somebody);

    // Where nobody has one, the builder sees by it that the tree is used.
    let mut launcher = host.launcher(2);
    launcher.build();
    let builders = fs::File::open(&tree).unwrap();
    assert_eq!(lock(&builders), Err(rustix::io::Errno::WOULDBLOCK));
    assert!(launcher.close().success());
    assert_eq!(lock(&builders), Ok(()));
}

/// As where the kernel holds a child up (its mounts, its network namespace). What the launcher itself does, it does one by one.
#[cfg(feature = "kill-points")]
#[test]
fn a_launch_that_hangs_holds_up_no_other() {
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    let Some(()) = privileged() else { return };
    let mut host = Host::new();
    let socket = host.path("kill.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let point = ("KILN_KILL_POINT", "child-before-exec@child".to_owned());
    host.environment = vec![point, ("KILN_KILL_SOCKET", socket.display().to_string())];
    let mut launcher = host.launcher(1);
    let first = launcher.build_order();
    launcher.send(&Order::Build(first.clone()), &[]);
    let (mut hangs, _) = until("the child is in its last step but one", || listener.accept().ok());
    // Everybody else passes.
    fs::remove_file(&socket).unwrap();
    let second = launcher.build_order();
    launcher.send(&Order::Build(second.clone()), &[]);
    let of = |report: &Report| match report {
        Report::Built { order, .. } | Report::Failed { order, .. } => Some(*order),
        _ => None,
    };
    let (report, _) = launcher.wait_for(|report| of(report).is_some());
    assert!(matches!(report, Report::Built { .. }) && of(&report) == Some(second.order), "{report:?}");
    // On a slow host its ten seconds may be over.
    let _ = hangs.write_all(b"k");
    let (report, _) = launcher.wait_for(|report| of(report).is_some());
    assert_eq!(of(&report), Some(first.order), "{report:?}");
    assert!(launcher.close().success());
    assert_eq!(host.leftovers(), [""; 0]);
}
