//! Texts of real hosts (shortened), and what must come out of them.

use super::*;

#[track_caller]
fn detect(mountinfo: &str, own_groups: &str) -> Hierarchies {
    Hierarchies::detect(mountinfo, own_groups).unwrap()
}

const HYBRID: &str = "\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:7 master:1 - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

#[test]
fn a_hybrid_host_gives_each_controller_its_own_parent() {
    let found = detect(HYBRID, "9:name=systemd:/\n8:pids:/\n4:memory:/api/3077\n2:cpuacct:/\n1:cpu:/\n0::/\n");
    assert_eq!(found.layout(), CgroupLayout::Split);
    assert_eq!(found.of(Controller::Memory), Path::new("/sys/fs/cgroup/memory/api/3077"));
    assert_eq!(found.of(Controller::Pids), Path::new("/sys/fs/cgroup/pids"));
    assert_eq!(found.unified, Path::new("/sys/fs/cgroup/unified"));
    assert_eq!(found.parents().len(), 4);
}

const LEGACY: &str = "\
26 18 0:24 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
27 18 0:25 / /sys/fs/cgroup/memory rw,nosuid shared:10 - cgroup cgroup rw,memory
28 18 0:26 / /sys/fs/cgroup/pids rw,nosuid shared:11 - cgroup cgroup rw,pids
";
const LEGACY_GROUPS: &str = "6:pids:/system.slice/kiln.service\n4:memory:/system.slice/kiln.service\n\
                             3:cpu,cpuacct:/system.slice/kiln.service\n1:name=systemd:/system.slice/kiln.service\n";

#[test]
fn a_v1_host_without_cgroup2_says_so() {
    assert_eq!(Hierarchies::detect(LEGACY, LEGACY_GROUPS), Err(HierarchyError::NoUnified));
}

#[test]
fn controllers_mounted_together_share_a_parent() {
    let with_ours = format!("{LEGACY}90 18 0:40 / /run/kiln/cgroup2 rw - cgroup2 none rw\n");
    let found = detect(&with_ours, &format!("{LEGACY_GROUPS}0::/\n"));
    assert_eq!(found.layout(), CgroupLayout::Split);
    let together = Path::new("/sys/fs/cgroup/cpu,cpuacct/system.slice/kiln.service");
    assert_eq!(found.of(Controller::Cpu), together);
    assert_eq!(found.unified, Path::new("/run/kiln/cgroup2"));
    assert_eq!(found.parents().len(), 4);
}

const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

#[test]
fn a_unified_host_has_one_parent_for_everything() {
    let found = detect(UNIFIED, "0::/system.slice/kiln.service\n");
    assert_eq!(found.layout(), CgroupLayout::Unified);
    assert_eq!(found.parents(), [Path::new("/sys/fs/cgroup/system.slice/kiln.service")]);
    assert_eq!(found.of(Controller::Memory), found.unified);
}

#[test]
fn a_delegated_scope_with_a_subgroup_is_stepped_out_of() {
    let found = detect(UNIFIED, "0::/user.slice/run-u12.scope/supervisor\n");
    assert_eq!(found.unified, Path::new("/sys/fs/cgroup/user.slice/run-u12.scope"));
}

#[test]
fn a_group_that_only_ends_like_ours_is_not_stepped_out_of() {
    let found = detect(UNIFIED, "0::/a/my-supervisor\n");
    assert_eq!(found.unified, Path::new("/sys/fs/cgroup/a/my-supervisor"));
}

#[test]
fn a_container_sees_its_part_of_the_hierarchy_only() {
    let mounts = "\
50 40 0:26 /docker/ab\\040c /sys/fs/cgroup rw - cgroup2 cgroup rw
51 50 0:32 /docker/ab\\040c /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
52 50 0:33 /docker/ab\\040c /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct
53 50 0:34 /docker/ab\\040c /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
";
    let groups = "4:memory:/docker/ab c/x\n3:cpu,cpuacct:/docker/ab c\n2:pids:/docker/ab c\n0::/docker/ab c\n";
    let found = detect(mounts, groups);
    assert_eq!(found.of(Controller::Memory), Path::new("/sys/fs/cgroup/memory/x"));
    assert_eq!(found.unified, Path::new("/sys/fs/cgroup"));
}

#[test]
fn a_mount_that_shows_our_group_is_preferred_to_one_that_does_not() {
    let mounts = format!("20 19 0:26 /other /elsewhere rw - cgroup2 cgroup2 rw\n{UNIFIED}");
    assert_eq!(detect(&mounts, "0::/a\n").unified, Path::new("/sys/fs/cgroup/a"));
}

#[test]
fn a_group_outside_of_the_namespace_is_refused() {
    let refused = Hierarchies::detect(UNIFIED, "0::/../../host.slice\n");
    assert!(matches!(refused, Err(HierarchyError::GroupOutside { .. })), "{refused:?}");
}

#[test]
fn a_hierarchy_that_can_only_be_read_is_refused_unless_it_is_mounted_writable_too() {
    let read_only = UNIFIED.replace(" rw,nosuid", " ro,nosuid");
    let point = PathBuf::from("/sys/fs/cgroup");
    let refused = HierarchyError::ReadOnly { hierarchy: "cgroup2".into(), point };
    assert!(refused.to_string().contains("ProtectControlGroups"), "{refused}");
    assert_eq!(Hierarchies::detect(&read_only, "0::/a\n"), Err(refused));
    let too = format!("{read_only}40 23 0:26 / /mnt rw - cgroup2 cgroup2 rw\n");
    assert_eq!(detect(&too, "0::/a\n").unified, Path::new("/mnt/a"));
    // One that was mounted over another hides it, and all that is on it.
    let over = format!("{UNIFIED}41 30 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n");
    assert!(matches!(Hierarchies::detect(&over, "0::/a\n"), Err(HierarchyError::ReadOnly { .. })));
    let emptied = format!("{HYBRID}90 31 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs rw\n");
    assert_eq!(Hierarchies::detect(&emptied, "0::/\n"), Err(HierarchyError::NoUnified));
    // The whole file system, not this mount of it; and one of v1's.
    let superblock = HYBRID.replace("cgroup rw,pids", "cgroup ro,pids");
    assert!(
        matches!(Hierarchies::detect(&superblock, "0::/\n"), Err(HierarchyError::ReadOnly { hierarchy, .. }) if hierarchy == "pids")
    );
}

#[test]
fn a_host_with_half_of_v1_is_refused_by_the_missing_controller() {
    let mounts: String = HYBRID.lines().filter(|line| !line.ends_with("pids")).map(|line| format!("{line}\n")).collect();
    assert_eq!(Hierarchies::detect(&mounts, "0::/\n"), Err(HierarchyError::ControllerMissing(Controller::Pids)));
}

#[test]
fn the_record_survives_its_text_form() {
    for found in [detect(HYBRID, "4:memory:/a b\n0::/\n"), detect(UNIFIED, "0::/k\n")] {
        assert_eq!(Hierarchies::from_record(&found.record()), Ok(found));
    }
}

#[test]
fn a_damaged_record_is_refused_with_its_line() {
    for text in ["unified /a\nmemory", "unified /a\nmemory b", "unified /a\nblkio /b"] {
        let line = text.lines().last().unwrap().to_owned();
        assert_eq!(Hierarchies::from_record(text), Err(HierarchyError::Record(line)));
    }
    assert_eq!(Hierarchies::from_record(""), Err(HierarchyError::NoUnified));
}
