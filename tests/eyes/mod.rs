//! How tests of whole instances look at the host from outside: whether it can run them at all, how long they wait for
//! what they want to see, and which cgroups there are.

#[allow(dead_code)] // serves several test programs; each uses its part
pub mod processes;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest that any single wait of a test may take, before [`slower`].
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The longest that it may take on this host.
pub fn patience() -> Duration {
    PATIENCE * slower()
}

/// How many times longer than usual the host takes: `scripts/test-vm` says it, for limits that are there to be enough. A limit that
/// a test is about stays what it is.
pub fn slower() -> u32 {
    std::env::var("KILN_TEST_SLOWER").map_or(1, |times| times.parse().expect("KILN_TEST_SLOWER is a number"))
}

/// What every instance needs and this host lacks, with its cure.
pub fn lacking() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        Some("root")
    } else if !matches!(nix::unistd::User::from_name("kiln"), Ok(Some(_))) {
        Some("the user kiln: scripts/users")
    } else {
        None
    }
}

/// `false` says why; where it counts, a skip is a failure.
#[track_caller]
pub fn can_run(lacking: Option<&str>) -> bool {
    let Some(lacking) = lacking else { return true };
    assert!(std::env::var_os("KILN_TESTS_MUST_RUN").is_none(), "this test must run here, but needs {lacking}");
    eprintln!("SKIP: needs {lacking}");
    false
}

/// Polls until `done`, without a fixed sleep deciding anything; fails after [`patience`].
#[track_caller]
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let patience = patience();
    let end = Instant::now() + patience;
    while !done() {
        assert!(Instant::now() < end, "waited {patience:?} in vain: {what}");
        // The pace of looking, not the time to wait. Each look is work for a slow host, too.
        std::thread::sleep(Duration::from_millis(5) * slower());
    }
}

/// Where cgroup hierarchies are mounted, of either version.
pub fn cgroup_mounts() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read the mounts");
    let points = mounts.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    points.map(PathBuf::from).collect()
}

/// All cgroups whose name begins so, in every hierarchy.
pub fn cgroups(prefix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    cgroup_mounts().iter().for_each(|mount| groups_below(mount, prefix, &mut found));
    found
}

fn groups_below(directory: &Path, prefix: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                found.push(entry.path());
            }
            groups_below(&entry.path(), prefix, found);
        }
    }
}
