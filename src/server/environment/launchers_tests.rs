//! The test plays the launchers, at the other end of their sockets.

use std::fs::File;

use super::*;
use crate::function::{Memory, TmpSize};
use crate::invocation::ProcessEnd;
use crate::runtime::TreeId;
use crate::wire::launcher::StepFailure;

/// A launcher process.
struct Far(AsyncFd<OwnedFd>);

impl Far {
    fn join(launchers: &Launchers, number: u32) -> Self {
        let (near, far) = packet::pair().unwrap();
        launchers.add(number, near).unwrap();
        set_nonblocking(&far).unwrap();
        Self(watched(far).unwrap())
    }

    async fn hear(&self) -> (Order, Vec<OwnedFd>) {
        loop {
            let mut ready = self.0.readable().await.unwrap();
            if let Ok(packet) = ready.try_io(|socket| packet::receive(socket.get_ref().as_fd())) {
                let packet = packet.unwrap().expect("the server closed the socket");
                return (decode(&packet.bytes).unwrap(), packet.descriptors);
            }
        }
    }

    async fn hear_build(&self) -> OrderId {
        match self.hear().await.0 {
            Order::Build(build) => build.order,
            other => panic!("{other:?}"),
        }
    }

    async fn hear_end(&self) -> ContainerId {
        match self.hear().await.0 {
            Order::End { container, order } => {
                self.say(&Report::Ended { order, container }, &[]);
                container
            }
            other => panic!("{other:?}"),
        }
    }

    fn say(&self, report: &Report, descriptors: &[BorrowedFd<'_>]) {
        packet::send(self.0.get_ref().as_fd(), &encode(report).unwrap(), descriptors).unwrap();
    }

    /// A container of plain files; returns the file that stands for cgroup.kill.
    fn built(&self, order: OrderId, container: ContainerId, dir: &tempfile::TempDir) {
        for name in ["memory.current", "memory.stat", "memory.events"] {
            std::fs::write(dir.path().join(name), "0\n").unwrap();
        }
        let plain = |name: &str| File::create(dir.path().join(name)).unwrap();
        let (directory, kill) = (File::open(dir.path()).unwrap(), plain("kill"));
        let other = plain("other");
        let handles = vec![
            Handle::InitPidfd,
            Handle::Listener,
            Handle::Log,
            Handle::Control,
            Handle::Tmp,
            Handle::CgroupDir,
            Handle::CgroupKill,
            Handle::CgroupFreeze,
            Handle::CpuQuota,
            Handle::CpuWeight,
        ];
        let descriptors: Vec<BorrowedFd<'_>> = handles
            .iter()
            .map(|handle| match handle {
                Handle::CgroupDir => directory.as_fd(),
                Handle::CgroupKill => kill.as_fd(),
                _ => other.as_fd(),
            })
            .collect();
        let report = Report::Built { order, container, cgroups: CgroupLayout::Unified, handles, steps: vec![] };
        self.say(&report, &descriptors);
    }
}

fn plan() -> Plan {
    Plan {
        tree: TreeId(Digest::of(b"tree")),
        code: Digest::of(b"code"),
        layers: vec![],
        memory: Memory::from_mib(128).unwrap(),
        tmp: TmpSize::DEFAULT,
    }
}

fn id(launcher: u32, number: u32) -> ContainerId {
    ContainerId { launcher, number }
}

#[tokio::test]
async fn a_container_is_killed_and_cleared_away_when_it_is_dropped() {
    let (launchers, dir) = (Launchers::new(), tempfile::tempdir().unwrap());
    let far = Far::join(&launchers, 1);
    let (container, ()) = tokio::join!(launchers.build(plan()), async {
        let order = far.hear_build().await;
        far.built(order, id(1, 7), &dir);
    });
    drop(container.unwrap());
    assert_eq!(std::fs::read(dir.path().join("kill")).unwrap(), b"1");
    assert_eq!(far.hear_end().await, id(1, 7));
}

#[tokio::test]
async fn a_build_whose_launcher_dies_is_tried_once_more_on_another() {
    let (launchers, dir) = (Launchers::new(), tempfile::tempdir().unwrap());
    let first = Far::join(&launchers, 1);
    let (container, ()) = tokio::join!(launchers.build(plan()), async {
        first.hear_build().await;
        let second = Far::join(&launchers, 2);
        drop(first);
        let order = second.hear_build().await;
        second.built(order, id(2, 1), &dir);
    });
    assert_eq!(container.unwrap().id, id(2, 1));
}

/// Its socket then says "reset", and not "broken pipe".
#[tokio::test]
async fn what_a_launcher_that_died_with_unread_orders_had_is_no_leak() {
    let (launchers, dir) = (Launchers::new(), tempfile::tempdir().unwrap());
    let far = Far::join(&launchers, 1);
    let (container, ()) = tokio::join!(launchers.build(plan()), async {
        let order = far.hear_build().await;
        far.built(order, id(1, 1), &dir);
    });
    let container = container.unwrap();
    let mut lost = container.lost.clone();
    let mut unread = std::pin::pin!(launchers.build(plan()));
    tokio::select! {
        biased;
        _ = unread.as_mut() => panic!("nobody has read it"),
        () = std::future::ready(()) => {}
    }
    drop(far);
    drop(container);
    let _ = lost.wait_for(Option::is_some).await.is_ok();
    tokio::task::yield_now().await;
    assert_eq!(launchers.count().1, 0);
}

#[tokio::test]
async fn a_dead_launchers_containers_are_lost() {
    let (launchers, dir) = (Launchers::new(), tempfile::tempdir().unwrap());
    let far = Far::join(&launchers, 1);
    let (container, ()) = tokio::join!(launchers.build(plan()), async {
        let order = far.hear_build().await;
        far.built(order, id(1, 1), &dir);
    });
    let mut container = container.unwrap();
    drop(far);
    assert_eq!(*container.lost.wait_for(Option::is_some).await.unwrap(), Some(Lost::Launcher));
    assert!(launchers.lock().is_empty());
}

#[tokio::test]
async fn what_the_launcher_says_of_an_init_reaches_its_container_only() {
    let (launchers, dirs) = (Launchers::new(), [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()]);
    let far = Far::join(&launchers, 1);
    let (one, other, ()) = tokio::join!(launchers.build(plan()), launchers.build(plan()), async {
        for (number, dir) in dirs.iter().enumerate() {
            let order = far.hear_build().await;
            far.built(order, id(1, number as u32), dir);
        }
    });
    let (mut one, other) = (one.unwrap(), other.unwrap());
    let how = ProcessEnd::Killed { signal: 9, core: false };
    far.say(&Report::InitEnded { container: one.id, how }, &[]);
    assert_eq!(*one.lost.wait_for(Option::is_some).await.unwrap(), Some(Lost::Init(how)));
    assert_eq!(*other.lost.borrow(), None);
}

#[tokio::test]
async fn refusals_and_failed_steps_are_told() {
    let launchers = Launchers::new();
    let far = Far::join(&launchers, 1);
    let (refused, ()) = tokio::join!(launchers.build(plan()), async {
        let order = far.hear_build().await;
        far.say(&Report::Refused { order, why: "unknown tree".into() }, &[]);
    });
    assert!(matches!(refused, Err(LaunchError::Refused(why)) if why == "unknown tree"));
    let failure = StepFailure { step: "root".into(), what: "pivot".into(), errno: libc::EINVAL };
    let (failed, ()) = tokio::join!(launchers.build(plan()), async {
        let order = far.hear_build().await;
        far.say(&Report::Failed { order, failure }, &[]);
    });
    assert!(failed.err().unwrap().to_string().contains("\"root\": pivot: Invalid argument"));
}

#[tokio::test]
async fn a_container_that_nobody_waits_for_any_more_is_cleared_away() {
    let (launchers, dir) = (Launchers::new(), tempfile::tempdir().unwrap());
    let far = Far::join(&launchers, 1);
    let order = tokio::select! {
        _ = launchers.build(plan()) => panic!("nothing was built"),
        order = far.hear_build() => order,
    };
    far.built(order, id(1, 3), &dir);
    assert_eq!(far.hear_end().await, id(1, 3));
}

#[tokio::test]
async fn a_container_without_its_descriptors_is_cleared_away() {
    let launchers = Launchers::new();
    let far = Far::join(&launchers, 1);
    let (built, ()) = tokio::join!(launchers.build(plan()), async {
        let order = far.hear_build().await;
        let cgroups = CgroupLayout::Unified;
        far.say(&Report::Built { order, container: id(1, 1), cgroups, handles: vec![], steps: vec![] }, &[]);
        assert_eq!(far.hear_end().await, id(1, 1));
    });
    assert!(matches!(built, Err(LaunchError::Unexpected(_))));
}

#[tokio::test]
async fn the_launcher_with_the_fewest_orders_gets_the_next() {
    let launchers = Launchers::new();
    let (a, b) = (Far::join(&launchers, 1), Far::join(&launchers, 2));
    let build = || {
        tokio::spawn({
            let launchers = launchers.clone();
            async move { launchers.build(plan()).await.map(|_| ()) }
        })
    };
    let (_one, _two) = (build(), build());
    tokio::join!(a.hear_build(), b.hear_build());
}

#[tokio::test(start_paused = true)]
async fn an_order_waits_for_a_launcher_to_come_but_not_for_ever() {
    let launchers = Launchers::new();
    assert!(matches!(launchers.build(plan()).await, Err(LaunchError::NoLauncher)));
    let (forgotten, ()) = tokio::join!(launchers.forget(Digest::of(b"x")), async {
        let far = Far::join(&launchers, 1);
        let (Order::ForgetCode { order, code }, _) = far.hear().await else { panic!("another order") };
        assert_eq!(code, Digest::of(b"x"));
        far.say(&Report::Forgotten { order }, &[]);
    });
    forgotten.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_launcher_that_hangs_is_not_waited_for_for_ever() {
    let launchers = Launchers::new();
    let _silent = Far::join(&launchers, 1);
    assert!(matches!(launchers.build(plan()).await, Err(LaunchError::Silent { launcher: 1, seconds: 15 })));
}

#[tokio::test]
async fn adopting_code_passes_the_zip_on() {
    let launchers = Launchers::new();
    let far = Far::join(&launchers, 1);
    let zip = tempfile::tempfile().unwrap();
    let (adopted, ()) = tokio::join!(launchers.adopt(StagingId(5), Digest::of(b"zip"), zip.as_fd()), async {
        let (Order::AdoptCode { order, staging, .. }, descriptors) = far.hear().await else { panic!("another order") };
        assert_eq!((staging, descriptors.len()), (StagingId(5), 1));
        far.say(&Report::Adopted { order }, &[]);
    });
    adopted.unwrap();
}
