//! A launcher, seen from its server's chair.
//!
//! Each test starts the real `kilnd launcher` as its supervisor would, and plays the server over the packet socket. Needs root.

mod host;

use host::{Host, privileged};
use kiln::wire::init::{EXITED, STARTED};
use kiln::wire::launcher::{Handle, Report};

#[test]
fn a_container_is_built_runs_as_nobody_and_ends_without_a_trace() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    let container = launcher.build();
    container.run("id; cat /var/task/hello; exit 7");
    assert_eq!(container.init_says().0, STARTED);
    assert_eq!(container.line(), "uid=993 gid=990 groups=990");
    assert_eq!(container.line(), "hello from the task");
    let (kind, _, status, _) = container.init_says();
    assert_eq!((kind, status), (EXITED, 7 << 8));
    launcher.wait_for(|report| matches!(report, Report::InitEnded { .. }));
    for step in &container.steps { println!("{:>6} {}", step.micros, step.step); }
    launcher.end(container.id);
    assert!(launcher.close().success());
    assert_eq!(host.leftovers(), [""; 0]);
}
