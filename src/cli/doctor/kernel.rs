//! The kernel: its version, and what it must have been built with and must allow.

use super::finding::{Finding, broken, needs_root, ok, warn};
use super::host::{Host, Probe};

/// As the supervisor's own check, which refuses an older one.
const OLDEST: (u32, u32) = (5, 14);

/// Each with the option that gives it, and the sysctl that bounds it.
const NAMESPACES: [(&str, &str, &str); 7] = [
    ("user", "CONFIG_USER_NS", "user"),
    ("pid", "CONFIG_PID_NS", "pid"),
    ("net", "CONFIG_NET_NS", "net"),
    ("ipc", "CONFIG_IPC_NS", "ipc"),
    ("uts", "CONFIG_UTS_NS", "uts"),
    ("cgroup", "CONFIG_CGROUPS", "cgroup"),
    ("mnt", "CONFIG_NAMESPACES", "mnt"),
];

/// Fewer would not serve the containers of one busy minute.
const FEWEST: u64 = 64;

pub fn checks(host: &Host) -> Vec<Finding> {
    vec![
        version(host),
        architecture(host),
        namespaces(host),
        user_namespaces(host),
        seccomp(host),
        overlayfs(host),
        mounting(host),
    ]
}

fn version(host: &Host) -> Finding {
    let mut numbers = host.release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let found = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => (0, 0),
    };
    let text = format!("Linux {}; the oldest that serves is {}.{}", host.release, OLDEST.0, OLDEST.1);
    if found >= OLDEST {
        return ok("kernel", text);
    }
    broken("kernel", text, "boot a newer kernel: Debian 12 and 13 and Ubuntu 22.04 and later have one")
}

fn architecture(host: &Host) -> Finding {
    match host.machine.as_str() {
        "x86_64" => ok("architecture", "x86_64"),
        other => broken("architecture", other, "run Kiln on an x86_64 machine: its table of system calls is for no other"),
    }
}

fn namespaces(host: &Host) -> Finding {
    let lacking: Vec<&str> = NAMESPACES
        .iter()
        .filter(|(kind, ..)| std::fs::symlink_metadata(host.path(format!("/proc/self/ns/{kind}"))).is_err())
        .map(|(_, option, _)| *option)
        .collect();
    if !lacking.is_empty() {
        let found = format!("the kernel has no namespaces of {}", lacking.join(", "));
        return broken("namespaces", found, format!("boot a kernel that is built with {}", lacking.join(", ")));
    }
    let limits = NAMESPACES.iter().map(|(_, _, name)| format!("user.max_{name}_namespaces"));
    let low = limits.filter_map(|key| {
        let file = format!("/proc/sys/{}", key.replace('.', "/"));
        let limit: u64 = host.text(file).ok()?.trim().parse().ok()?;
        (limit < FEWEST).then(|| format!("{key} = {limit}"))
    });
    let low: Vec<String> = low.collect();
    if low.is_empty() {
        return ok("namespaces", "user, pid, net, ipc, uts, cgroup and mount, with room for containers");
    }
    let keys: Vec<String> = low.iter().map(|limit| format!("{}=15000", limit.split(' ').next().unwrap_or_default())).collect();
    let cure = format!("sysctl -w {}; write the same into /etc/sysctl.d/kiln.conf to keep it", keys.join(" "));
    broken("namespaces", format!("the host allows too few: {}", low.join(", ")), cure)
}

/// Launchers make them as root, so what hinders other users (Debian's and AppArmor's switches) does not hinder Kiln; it is
/// named all the same, since people look there first.
fn user_namespaces(host: &Host) -> Finding {
    let set = |file: &str, value: &str| host.text(file).is_ok_and(|text| text.trim() == value);
    let mut switches = Vec::new();
    if set("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        switches.push("kernel.unprivileged_userns_clone = 0");
    }
    if set("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        switches.push("kernel.apparmor_restrict_unprivileged_userns = 1");
    }
    let aside = if switches.is_empty() { String::new() } else { format!(" ({} hinders others, not root)", switches.join(", ")) };
    match &host.user_namespaces {
        Probe::Works => ok("user-namespaces", format!("one was made{aside}")),
        Probe::Refused(_) if !host.is_root() => {
            needs_root("user-namespaces", format!("refused to this user; root was not asked{aside}"))
        }
        Probe::Refused(why) => broken(
            "user-namespaces",
            format!("root may not make one: {why}"),
            "do not run kilnd in a chroot (pivot_root instead); in somebody else's container allow user namespaces (nesting)",
        ),
        Probe::NeedsRoot => needs_root("user-namespaces", "not tried"),
        Probe::NotTried(why) => warn("user-namespaces", format!("not tried: {why}"), "apt-get install util-linux"),
    }
}

fn seccomp(host: &Host) -> Finding {
    let file = "/proc/sys/kernel/seccomp/actions_avail";
    let actions = host.text(file).unwrap_or_default();
    let has = |action: &str| actions.split_whitespace().any(|found| found == action);
    if ["errno", "allow", "kill_process"].iter().all(|action| has(action)) {
        return ok("seccomp", "filters with every action that Kiln uses");
    }
    broken(
        "seccomp",
        format!("{file} names {:?}: no filters", actions.trim()),
        "boot a kernel that is built with CONFIG_SECCOMP and CONFIG_SECCOMP_FILTER",
    )
}

fn overlayfs(host: &Host) -> Finding {
    let known = host.text("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.split_whitespace().last() == Some("overlay")) {
        return ok("overlayfs", "in /proc/filesystems");
    }
    let modules = format!("/lib/modules/{}/modules.dep", host.release);
    if host.text(&modules).is_ok_and(|text| text.contains("/overlay.ko")) {
        // The kernel itself loads it at the first mount, whatever that process may do.
        let contained = ["/run/systemd/container", "/.dockerenv", "/run/.containerenv"].iter().any(|mark| host.exists(mark));
        let fixed = host.text("/proc/sys/kernel/modules_disabled").is_ok_and(|text| text.trim() == "1");
        if !contained && !fixed {
            return ok("overlayfs", "a module; the first mount loads it");
        }
        return warn(
            "overlayfs",
            "a module that is not loaded, and cannot be from here",
            "on the host: modprobe overlay; echo overlay > /etc/modules-load.d/kiln.conf loads it at every boot",
        );
    }
    broken(
        "overlayfs",
        format!("neither in /proc/filesystems nor in {modules}"),
        "modprobe overlay, if the modules of this kernel are elsewhere; else boot one that is built with CONFIG_OVERLAY_FS",
    )
}

fn mounting(host: &Host) -> Finding {
    match &host.mounting {
        Probe::Works => ok("mounting", "fsopen and open_tree work"),
        Probe::NeedsRoot => needs_root("mounting", "fsopen and open_tree were not tried"),
        Probe::Refused(why) | Probe::NotTried(why) => broken(
            "mounting",
            why,
            "start kilnd on the host itself; in somebody else's container it needs CAP_SYS_ADMIN and a seccomp filter that lets these calls through",
        ),
    }
}
