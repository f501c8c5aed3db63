//! People who enter a container: what they see, what they may do, and how they end.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use kiln::wire::init::{EXITED, NO_BOOTSTRAP, STARTED};
use kiln::wire::launcher::{ContainerId, Enter, Handle, Order, Report, TerminalSize};
use nix::unistd::write;

use crate::host::{Container, Host, Launcher, privileged, readable, slower, until};

const SIZE: TerminalSize = TerminalSize { rows: 24, columns: 80 };

/// A container whose function has left a file and waits.
fn occupied(launcher: &mut Launcher) -> Container {
    let container = launcher.build();
    container.run("umask 077; echo the function was here > /tmp/left; echo ready; exec sleep 1000");
    assert_eq!(container.init_says().0, STARTED);
    assert_eq!(container.line(), "ready");
    container
}

fn ask(launcher: &mut Launcher, container: ContainerId, root: bool, terminal: Option<TerminalSize>) -> (Report, Vec<OwnedFd>) {
    let order = launcher.next_order();
    launcher.send(&Order::Enter(Enter { order, container, root, terminal }), &[]);
    launcher.answer(order)
}

/// As a container of its own for the tests: its output is the log, its kiln-init the one with the control socket.
#[track_caller]
fn enter(launcher: &mut Launcher, container: &Container, root: bool, terminal: Option<TerminalSize>) -> Container {
    match ask(launcher, container.id, root, terminal) {
        (Report::Entered { handles, .. }, descriptors) => {
            let output = |handle| if matches!(handle, Handle::Stdout | Handle::Terminal) { Handle::Log } else { handle };
            let handles = handles.into_iter().map(output).zip(descriptors).collect();
            Container { id: container.id, cgroups: container.cgroups, steps: Vec::new(), handles }
        }
        (other, _) => panic!("not entered: {other:?}"),
    }
}

#[track_caller]
fn lines(visit: &Container, script: &str) -> Vec<String> {
    visit.run(&format!("{{ {script}; }} 2>&1; echo end; exec sleep 1000"));
    assert_eq!(visit.init_says().0, STARTED);
    std::iter::from_fn(|| Some(visit.line()).filter(|line| line != "end")).collect()
}

/// Of the process behind a pidfd, as this host numbers it.
fn pid(pidfd: &OwnedFd) -> i32 {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
    text.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap().trim().parse().unwrap()
}

fn is_gone(pidfd: &OwnedFd) -> bool {
    readable(pidfd)
}

#[test]
fn who_entered_sees_what_the_function_sees_and_may_do_no_more() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = occupied(&mut launcher);
    let visit = enter(&mut launcher, &container, false, None);
    let script = "id; cat /tmp/left /proc/sys/kernel/hostname; pwd; ulimit -n; cat /proc/self/status; cat /proc/1/environ; \
                  echo x > /etc/x; echo x > /dev/stderr; cd /proc/self/fd; echo *; cd /proc; echo [0-9]*";
    let seen = lines(&visit, script);
    assert_eq!(seen[..5], ["uid=993 gid=990 groups=990", "the function was here", "sandbox", "/var/task", "1024"]);
    for wanted in [
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "SigBlk:\t0000000000000000",
        "SigIgn:\t0000000000000000",
        "Groups:\t ",
    ] {
        assert!(seen.iter().any(|line| line.trim_end() == wanted.trim_end()), "{wanted}: {seen:#?}");
    }
    assert!(seen.iter().any(|line| line.starts_with("cat: /proc/1/environ:")), "{seen:#?}");
    assert!(seen.iter().any(|line| line.contains("/etc/x")), "{seen:#?}");
    // Its own two of the container's four: kiln-init, sleep; and kiln-init, sh.
    let [.., descriptors, processes] = &seen[..] else { panic!("{seen:#?}") };
    assert_eq!(
        descriptors, "0 1 10 2 3",
        "two are the shell's: its stderr of before the braces, and the directory that it reads"
    );
    assert_eq!(processes.split(' ').count(), 4, "{processes}");
    launcher.end(container.id);
}

#[test]
fn every_namespace_and_every_group_is_the_containers() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = occupied(&mut launcher);
    let init = pid(container.handle(Handle::InitPidfd));
    let visit = enter(&mut launcher, &container, false, None);
    visit.run("exec sleep 1000");
    let (kind, .., started) = visit.init_says();
    assert_eq!(kind, STARTED);
    let visitor = pid(&started[0]);
    for name in ["cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "user", "uts"] {
        let of = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_eq!(of(visitor), of(init), "{name}");
    }
    let groups = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let own = groups(visitor).replace("/visit-1\n", "\n");
    assert_eq!(own, groups(init), "below the container's own in cgroup2, and in it everywhere else");
    assert_ne!(own, groups(visitor));
    let of = |pid: i32, what: &str| fs::read_link(format!("/proc/{pid}/{what}")).unwrap();
    assert_eq!((of(visitor, "root"), of(visitor, "cwd")), ("/".into(), "/var/task".into()));
    launcher.end(container.id);
}

/// The function has the same user, and is awake: were kiln-init dumpable for one instruction, it could be taken over there. What belongs
/// to the host's root in its /proc was so from the exec on; what it does itself, later, would give it to the container's.
#[test]
fn nobody_can_read_kiln_init_before_it_has_begun() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = occupied(&mut launcher);
    let visit = enter(&mut launcher, &container, false, None);
    visit.run("exec sleep 1000");
    let (_, _, _, started) = visit.init_says();
    let status = fs::read_to_string(format!("/proc/{}/status", pid(&started[0]))).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().to_owned();
    for init in [parent, pid(container.handle(Handle::InitPidfd)).to_string()] {
        assert_eq!(fs::read_to_string(format!("/proc/{init}/comm")).unwrap(), "kiln-init\n");
        assert_eq!(fs::metadata(format!("/proc/{init}/exe")).unwrap().mode() & 0o777, 0o111);
        assert_eq!(fs::metadata(format!("/proc/{init}/environ")).unwrap().uid(), 0);
    }
    launcher.end(container.id);
}

#[test]
fn root_inside_reaches_the_functions_files_and_nothing_else() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = occupied(&mut launcher);
    let visit = enter(&mut launcher, &container, true, None);
    let script = "id; cat /tmp/left; cat /proc/self/status; echo x > /etc/x; echo x > /proc/sysrq-trigger; cat /proc/1/environ; \
                  echo x > /proc/sys/user/max_user_namespaces";
    let seen = lines(&visit, script);
    assert_eq!(seen[..2], ["uid=0 gid=0 groups=0", "the function was here"]);
    // DAC_OVERRIDE, FOWNER, KILL; and none can come to them.
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(seen.contains(&format!("{set}:\t000000000000002a")), "{set}: {seen:#?}");
    }
    assert!(seen.contains(&"NoNewPrivs:\t1".to_owned()) && seen.contains(&"Seccomp:\t2".to_owned()), "{seen:#?}");
    let refused = |of: &str| seen.iter().any(|line| line.contains(of));
    for of in ["/etc/x", "sysrq-trigger", "/proc/1/environ", "max_user_namespaces"] {
        assert!(refused(of), "{of}: {seen:#?}");
    }
    launcher.end(container.id);
}

#[test]
fn on_a_terminal_ctrl_c_reaches_the_program_and_the_size_is_the_readers() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = occupied(&mut launcher);
    let visit = enter(&mut launcher, &container, false, Some(SIZE));
    visit.run("test -t 0 && test -t 2 && : < /dev/tty && echo a terminal; exec sleep 1000");
    assert_eq!(visit.init_says().0, STARTED);
    let terminal = visit.handle(Handle::Log);
    assert_eq!(visit.line(), "a terminal\r");
    let size = rustix::termios::tcgetwinsize(terminal).unwrap();
    assert_eq!((size.ws_row, size.ws_col), (SIZE.rows, SIZE.columns));
    write(terminal, b"\x03").unwrap();
    let (kind, _, status, _) = visit.init_says();
    assert_eq!((kind, status), (EXITED, libc::SIGINT));
    // The function has noticed nothing.
    assert!(!is_ready_now(container.handle(Handle::InitPidfd)));
    launcher.end(container.id);
}

fn is_ready_now(fd: &OwnedFd) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() == 1
}

#[test]
fn a_program_that_is_not_there_is_told_and_the_function_goes_on() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = occupied(&mut launcher);
    let visit = enter(&mut launcher, &container, false, None);
    visit.start(&[&["/usr/bin/no-such-program"], &["/bin/no-such-program"]], &[]);
    assert_eq!(visit.init_says().0, NO_BOOTSTRAP);
    assert!(!is_ready_now(container.handle(Handle::InitPidfd)));
    launcher.end(container.id);
}

#[test]
fn they_are_ended_alone_with_all_that_they_left_and_the_function_lives() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = occupied(&mut launcher);
    let visit = enter(&mut launcher, &container, false, None);
    visit.run("(exec sleep 1000 &) ; (exec sleep 1000 &) ; echo ready; exec sleep 1000");
    let (_, _, _, started) = visit.init_says();
    assert_eq!(visit.line(), "ready");
    write(visit.handle(Handle::CgroupKill), b"1").unwrap();
    assert!(is_gone(&started[0]));
    // Its end is the end of the last one that could write into it.
    assert!(readable(visit.handle(Handle::Log)));
    assert_eq!(nix::unistd::read(visit.handle(Handle::Log), &mut [0]).unwrap(), 0);
    assert!(!is_ready_now(container.handle(Handle::InitPidfd)), "the container goes on");
    launcher.end(container.id);
    assert_eq!(host.leftovers().iter().filter(|left| left.ends_with(&format!("-{}", container.id))).count(), 0);
}

#[test]
fn they_end_with_the_container_and_with_the_launcher() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let first = occupied(&mut launcher);
    let visit = enter(&mut launcher, &first, false, None);
    visit.run("exec sleep 1000");
    let (_, _, _, started) = visit.init_says();
    launcher.end(first.id);
    assert!(is_gone(&started[0]));
    assert_eq!(host.leftovers().iter().filter(|left| left.ends_with(&format!("-{}", first.id))).count(), 0);
    // Nobody enters what is not there.
    assert!(matches!(ask(&mut launcher, first.id, false, None).0, Report::Refused { .. }));

    let second = occupied(&mut launcher);
    let (visit, root) = (enter(&mut launcher, &second, false, Some(SIZE)), enter(&mut launcher, &second, true, None));
    for visit in [&visit, &root] {
        visit.run("exec sleep 1000");
    }
    let started: Vec<OwnedFd> = [&visit, &root].into_iter().flat_map(|visit| visit.init_says().3).collect();
    launcher.child.kill().unwrap();
    launcher.wait();
    for process in &started {
        assert!(is_gone(process), "it outlived its launcher");
    }
    // What a SIGKILL leaves is the supervisor's to sweep: groups without processes.
    for left in host.leftovers().iter().filter_map(|left| left.strip_prefix("cgroup ")) {
        until("it is empty", || fs::read_to_string(format!("{left}/cgroup.procs")).ok().filter(|procs| procs.is_empty()));
    }
    sweep(&host);
}

/// As the supervisor does.
fn sweep(host: &Host) {
    let mut left: Vec<String> =
        host.leftovers().iter().filter_map(|left| left.strip_prefix("cgroup ")).map(str::to_owned).collect();
    left.sort_by_key(|path| std::cmp::Reverse(path.len()));
    for path in left {
        for inner in fs::read_dir(&path).into_iter().flatten().flatten() {
            if inner.file_type().is_ok_and(|kind| kind.is_dir()) {
                until("it can be removed", || fs::remove_dir(inner.path()).ok());
            }
        }
        until("it can be removed", || fs::remove_dir(&path).ok());
    }
}

#[test]
fn sixteen_at_once_enter_a_container_and_another_when_one_has_left() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = occupied(&mut launcher);
    let mut visits: Vec<Container> = (0..16).map(|_| enter(&mut launcher, &container, false, None)).collect();
    let (refused, _) = ask(&mut launcher, container.id, false, None);
    assert!(matches!(&refused, Report::Failed { failure, .. } if failure.what.contains("16 have entered")), "{refused:?}");
    let left = visits.swap_remove(7);
    left.run("exit 0");
    assert_eq!(left.init_says().0, STARTED);
    assert_eq!(left.init_says().0, EXITED);
    // Its kiln-init ends a moment after its last word.
    until("there is room", || match ask(&mut launcher, container.id, false, None) {
        (Report::Entered { .. }, _) => Some(()),
        _ => None,
    });
    launcher.end(container.id);
    assert_eq!(host.leftovers().iter().filter(|left| left.ends_with(&format!("-{}", container.id))).count(), 0);
}

/// As a function can do to whoever enters as its user: it stops them on their way, or leaves them no CPU time. A frozen group does
/// the same, and surely.
#[test]
fn who_is_held_up_on_their_way_in_holds_up_no_launcher() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = occupied(&mut launcher);
    container.freeze(true);
    let order = launcher.next_order();
    launcher.send(&Order::Enter(Enter { order, container: container.id, root: false, terminal: None }), &[]);
    // Whatever comes behind is served before.
    let other = launcher.build_order();
    let built = other.order;
    launcher.send(&Order::Build(other), &[]);
    let of = |report: &Report| match report {
        Report::Built { order, .. } | Report::Entered { order, .. } | Report::Failed { order, .. } => Some(*order),
        _ => None,
    };
    let (first, _) = launcher.wait_for(|report| of(report).is_some());
    assert!(matches!(first, Report::Built { .. }) && of(&first) == Some(built), "{first:?}");
    container.freeze(false);
    // On a slow host their ten seconds may be over.
    let (second, _) = launcher.wait_for(|report| of(report).is_some());
    assert_eq!(of(&second), Some(order), "{second:?}");

    // Nor for ever.
    container.freeze(true);
    let (given_up, _) = ask(&mut launcher, container.id, false, None);
    assert!(matches!(&given_up, Report::Failed { failure, .. } if failure.errno == libc::ETIMEDOUT), "{given_up:?}");
    container.freeze(false);
    assert!(!is_ready_now(container.handle(Handle::InitPidfd)), "the container goes on");
    launcher.end(container.id);
    assert_eq!(host.leftovers().iter().filter(|left| left.ends_with(&format!("-{}", container.id))).count(), 0);
}

/// Its init was reaped, so its number may be another process's by now.
#[test]
fn nothing_is_told_of_a_container_whose_init_has_ended() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = launcher.build();
    let describe = |launcher: &mut Launcher| {
        let order = launcher.next_order();
        launcher.send(&Order::Describe { order, container: container.id }, &[]);
        launcher.answer(order).0
    };
    let told = describe(&mut launcher);
    assert!(matches!(&told, Report::Described { .. }), "{told:?}");
    write(container.handle(Handle::CgroupKill), b"1").unwrap();
    launcher.wait_for(|report| matches!(report, Report::InitEnded { .. }));
    let told = describe(&mut launcher);
    assert!(matches!(&told, Report::Refused { .. }), "{told:?}");
    launcher.end(container.id);
}

#[test]
fn no_launcher_keeps_a_descriptor_of_those_who_entered() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = occupied(&mut launcher);
    let open = |launcher: &Launcher| fs::read_dir(format!("/proc/{}/fd", launcher.child.id())).unwrap().count();
    // The stock is full, so nothing else is opened meanwhile.
    let before = until("the stock is full", || {
        let one = open(&launcher);
        std::thread::sleep(std::time::Duration::from_millis(100) * slower());
        (open(&launcher) == one).then_some(one)
    });
    for terminal in [None, Some(SIZE)] {
        let visit = enter(&mut launcher, &container, false, terminal);
        visit.run("exit 7");
        assert_eq!(visit.init_says().0, STARTED);
        let (kind, _, status, _) = visit.init_says();
        assert_eq!((kind, status), (EXITED, 7 << 8));
    }
    until("those are closed", || (open(&launcher) == before).then_some(()));
    launcher.end(container.id);
}
