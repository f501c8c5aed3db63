//! Code is taken in and out by helpers: a launcher builds meanwhile, and nothing of a helper outlives what it belongs to.
//!
//! A helper is held by SIGSTOP while it reads a zip of 200 MB: by then it has taken the tree, and nothing here depends on
//! how long anything takes.

use std::fs;
use std::os::fd::AsFd;

use kiln::code::Digest;
use kiln::wire::launcher::{Order, OrderId, Report, StagingId};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{Host, Launcher, privileged, sealed, slower, until};
use crate::orders::stage;

/// Long to read, a second and more on any host; zeros, since its content is nobody's business here.
struct Slow {
    zip: fs::File,
    code: Digest,
}

impl Slow {
    fn new() -> Self {
        let bytes = vec![0; 200_000_000 / slower() as usize];
        Self { zip: sealed(&bytes), code: Digest::of(&bytes) }
    }

    fn adopt(&self, host: &Host, launcher: &mut Launcher, staging: u128) -> OrderId {
        stage(host, staging, |tree| fs::write(tree.join("file"), "adopted").unwrap());
        let order = launcher.next_order();
        launcher.send(&Order::AdoptCode { order, staging: StagingId(staging), code: self.code }, &[self.zip.as_fd()]);
        order
    }
}

/// Children of a launcher that are launchers by their name: a container's init has another.
fn helpers(launcher: &Launcher) -> Vec<Pid> {
    let pid = launcher.child.id();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    pids.filter(|pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "kilnd\n"))
        .map(Pid::from_raw)
        .collect()
}

/// The helper that adopts `staging`; not one of `others`.
#[track_caller]
fn held_helper(host: &Host, launcher: &Launcher, staging: u128, others: &[Pid]) -> Pid {
    until("a helper has taken the tree", || staged(host).contains(&at_work(staging)).then_some(()));
    let helper = helpers(launcher).into_iter().find(|helper| !others.contains(helper)).expect("it reads for long");
    kill(helper, Signal::SIGSTOP).unwrap();
    until("the helper is held", || {
        let status = fs::read_to_string(format!("/proc/{helper}/status")).unwrap_or_default();
        status.contains("State:\tT").then_some(helper)
    })
}

fn at_work(staging: u128) -> String {
    format!("launcher-1-{}", StagingId(staging))
}

fn staged(host: &Host) -> Vec<String> {
    let names = fs::read_dir(host.path("state/staging")).unwrap().flatten();
    names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn while_code_is_adopted_containers_are_built_and_ended() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let slow = Slow::new();
    let adoption = slow.adopt(&host, &mut launcher, 1);
    let helper = held_helper(&host, &launcher, 1, &[]);

    for _ in 0..3 {
        let container = launcher.build();
        launcher.end(container.id);
    }
    assert!(!host.path(&format!("state/code/{}", slow.code)).exists(), "it is still being adopted");

    kill(helper, Signal::SIGCONT).unwrap();
    assert_eq!(launcher.answer(adoption).0, Report::Adopted { order: adoption });
    let mut build = launcher.build_order();
    build.code = slow.code;
    let container = launcher.build_as(build);
    launcher.end(container.id);
    assert!(launcher.close().success());
}

#[test]
fn a_helper_has_nothing_open_but_what_it_needs() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = launcher.build();
    let slow = Slow::new();
    let adoption = slow.adopt(&host, &mut launcher, 1);
    let helper = held_helper(&host, &launcher, 1, &[]);
    let mut open: Vec<String> = fs::read_dir(format!("/proc/{helper}/fd"))
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_str().unwrap().parse::<u32>().unwrap() > 2)
        .map(|entry| fs::read_link(entry.path()).unwrap().display().to_string())
        .collect();
    kill(helper, Signal::SIGCONT).unwrap();
    open.sort();
    let here = host.dir.path().display().to_string();
    let known =
        |name: &str| name.starts_with("/memfd:zip") || name.starts_with("pipe:[") || name.starts_with(&format!("{here}/state/"));
    assert!(open.iter().all(|name| known(name)), "{open:#?}");
    // To tell, and to see the launcher's end.
    assert_eq!(open.iter().filter(|name| name.starts_with("pipe:[")).count(), 2, "{open:#?}");
    assert_eq!(launcher.answer(adoption).0, Report::Adopted { order: adoption });
    launcher.end(container.id);
}

#[test]
fn a_killed_helper_is_told_and_leaves_nothing() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let slow = Slow::new();
    let adoption = slow.adopt(&host, &mut launcher, 1);
    let helper = held_helper(&host, &launcher, 1, &[]);
    assert_eq!(staged(&host), [at_work(1)]);
    kill(helper, Signal::SIGKILL).unwrap();
    let Report::Failed { failure, .. } = launcher.answer(adoption).0 else { panic!("a killed helper adopts nothing") };
    assert!(failure.what.contains("signal 9"), "{failure}");
    until("what it took is cleared", || staged(&host).is_empty().then_some(()));

    let again = slow.adopt(&host, &mut launcher, 2);
    assert_eq!(launcher.answer(again).0, Report::Adopted { order: again });
    assert_eq!(staged(&host), [""; 0]);
}

#[test]
fn a_helper_ends_with_its_launcher() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let slow = Slow::new();
    for sigkill in [true, false] {
        let mut launcher = host.launcher(1);
        slow.adopt(&host, &mut launcher, 1);
        let helper = held_helper(&host, &launcher, 1, &[]);
        let left = if sigkill {
            launcher.child.kill().unwrap();
            launcher.wait();
            // Seats that it made ahead, as many as it had time for.
            host.sweep();
            // The supervisor's to remove, by this name.
            vec![at_work(1)]
        } else {
            assert!(launcher.close().success(), "a launcher without a server ends its helpers and goes");
            vec![]
        };
        until("the helper is gone", || (!fs::exists(format!("/proc/{helper}")).unwrap()).then_some(()));
        assert!(!host.path(&format!("state/code/{}", slow.code)).exists());
        assert_eq!(staged(&host), left);
        left.iter().for_each(|name| fs::remove_dir_all(host.path(&format!("state/staging/{name}"))).unwrap());
    }
}

#[test]
fn two_helpers_work_at_once_and_no_endless_number_waits() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let slow = Slow::new();
    let first = slow.adopt(&host, &mut launcher, 1);
    let held = held_helper(&host, &launcher, 1, &[]);
    let second = slow.adopt(&host, &mut launcher, 2);
    let other = held_helper(&host, &launcher, 2, &[held]);
    let waiting: Vec<OrderId> = (0..64)
        .map(|at: u8| {
            let order = launcher.next_order();
            launcher.send(&Order::ForgetCode { order, code: Digest::of(&[at]) }, &[]);
            order
        })
        .collect();
    let too_many = launcher.next_order();
    launcher.send(&Order::ForgetCode { order: too_many, code: slow.code }, &[]);
    let Report::Refused { why, .. } = launcher.answer(too_many).0 else { panic!("a queue without an end") };
    assert!(why.contains("wait"), "{why}");
    assert_eq!(helpers(&launcher).len(), 2);

    // What is about to be removed is not built on.
    let mut build = launcher.build_order();
    (build.code, build.layers) = (Digest::of(&[63]), vec![]);
    let order = build.order;
    launcher.send(&Order::Build(build), &[]);
    let Report::Refused { why, .. } = launcher.answer(order).0 else { panic!("built on code that goes") };
    assert!(why.contains("removed"), "{why}");

    for helper in [held, other] {
        kill(helper, Signal::SIGCONT).unwrap();
    }
    for order in waiting {
        assert_eq!(launcher.answer(order).0, Report::Forgotten { order });
    }
    // The same zip twice: one brought it, the other found it.
    for order in [first, second] {
        assert_eq!(launcher.answer(order).0, Report::Adopted { order });
    }
    assert_eq!(staged(&host), [""; 0]);
}
