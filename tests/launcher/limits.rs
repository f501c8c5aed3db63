//! What the kernel's files say of a live container, in whichever layout this host has: every limit is really set, controllers are
//! enabled where they must be, and processes are nowhere that they must not be.

use std::fs;
use std::path::{Path, PathBuf};

use kiln::function::{Memory, TmpSize};
use kiln::wire::launcher::CgroupLayout;

use crate::host::{Container, Host, privileged};

const MIB: u64 = 1 << 20;

/// The directories of one container, cgroup2's and (on hybrid and v1 hosts) each of v1's.
fn groups(host: &Host, container: &Container) -> Vec<PathBuf> {
    let name = format!("kiln-{}-{}", host.instance, container.id);
    let found = host.leftovers().into_iter().filter_map(|line| line.strip_prefix("cgroup ").map(PathBuf::from));
    found.filter(|group| group.ends_with(&name)).collect()
}

#[track_caller]
fn read(group: &Path, file: &str) -> String {
    let text = fs::read_to_string(group.join(file)).unwrap_or_else(|error| panic!("{}/{file}: {error}", group.display()));
    text.trim().to_owned()
}

/// Every process in there, by /proc as the process itself is told.
fn processes(group: &Path) -> Vec<String> {
    read(group, "cgroup.procs").lines().map(str::to_owned).collect()
}

#[test]
fn every_limit_of_a_container_is_in_the_kernels_files() {
    let Some(()) = privileged() else { return };
    let host = Host::new();
    let mut launcher = host.launcher(1);
    // Less than one CPU's worth, and more; a small /tmp, and a large one.
    for (memory, tmp, quota, weight) in [(128, 512, 100_000, [100, 1024]), (3008, 1024, 170_039, [170, 1741])] {
        let mut build = launcher.build_order();
        build.memory = Memory::from_mib(memory).unwrap();
        build.tmp = TmpSize::from_mib(tmp).unwrap();
        let container = launcher.build_as(build);
        let wall = (u64::from(memory) + u64::from(tmp)) * MIB;
        let found = groups(&host, &container);
        match container.cgroups {
            CgroupLayout::Unified => {
                let [group] = &found[..] else { panic!("one hierarchy, one group: {found:?}") };
                unified(group, wall, quota, weight[0]);
            }
            CgroupLayout::Split => v1(&found, wall, quota, weight[1]),
        }
        // Born in there: init and nobody else, before it was started.
        let inside: Vec<_> = found.iter().map(|group| processes(group)).collect();
        assert!(inside.iter().all(|pids| pids.len() == 1 && *pids == inside[0]), "{inside:?}");
        launcher.end(container.id);
        assert!(found.iter().all(|group| !group.exists()), "{found:?}");
    }
}

#[track_caller]
fn unified(group: &Path, wall: u64, quota: u64, weight: u64) {
    let expected = [
        ("memory.max", wall.to_string()),
        ("memory.swap.max", "0".into()),
        ("memory.oom.group", "1".into()),
        ("memory.high", "max".into()),
        ("pids.max", "1025".into()),
        ("cpu.max", format!("{quota} 100000")),
        ("cpu.max.burst", quota.to_string()),
        ("cpu.weight", weight.to_string()),
        ("cgroup.type", "domain".into()),
        ("cgroup.freeze", "0".into()),
        // The container's own processes are in it, so it passes nothing on.
        ("cgroup.subtree_control", String::new()),
    ];
    for (file, value) in expected {
        assert_eq!(read(group, file), value, "{file}");
    }
    let parent = group.parent().unwrap();
    for controller in ["cpu", "memory", "pids"] {
        let is_in = |file: &str, group: &Path| read(group, file).split(' ').any(|found| found == controller);
        assert!(is_in("cgroup.subtree_control", parent), "{controller} is passed on");
        assert!(is_in("cgroup.controllers", group), "{controller} has arrived");
    }
    // No internal processes: whoever is in the parent would keep the kernel from limiting anybody below.
    assert!(processes(parent).is_empty(), "{:?}", processes(parent));
}

/// Each limit is in one of them; controllers may be mounted together.
#[track_caller]
fn v1(groups: &[PathBuf], wall: u64, quota: u64, shares: u64) {
    let expected = [
        ("memory.limit_in_bytes", wall),
        ("pids.max", 1025),
        ("cpu.cfs_period_us", 100_000),
        ("cpu.cfs_quota_us", quota),
        ("cpu.cfs_burst_us", quota),
        ("cpu.shares", shares),
    ];
    for (file, value) in expected {
        let at: Vec<_> = groups.iter().filter(|group| group.join(file).exists()).collect();
        let [group] = at[..] else { panic!("{file} is in one hierarchy: {groups:?}") };
        assert_eq!(read(group, file), value.to_string(), "{file}");
    }
    let has = |file: &str| groups.iter().find(|group| group.join(file).exists());
    let memory = has("memory.limit_in_bytes").unwrap();
    match has("memory.memsw.limit_in_bytes") {
        Some(group) => assert_eq!(read(group, "memory.memsw.limit_in_bytes"), wall.to_string(), "no swap beside it"),
        None => assert_eq!(read(memory, "memory.swappiness"), "0"),
    }
    let unified = has("cgroup.kill").expect("ended by cgroup2");
    assert!(read(unified, "cpu.stat").starts_with("usage_usec "), "and its CPU time counted there");
}
