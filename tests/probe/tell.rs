//! Everything that a process sees of itself and around itself, as one JSON object.
//!
//! Read from /proc and by plain calls; what cannot be read is told as its errno. No judgement here: tests judge.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::{env, io, thread};

use serde_json::{Map, Value, json};

use crate::places;

pub fn everything() -> Value {
    let status = status();
    let number = |name: &str, radix| status.get(name).and_then(|text| u64::from_str_radix(text, radix).ok());
    let list =
        |name: &str| status.get(name).map(|text| text.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<u32>>());
    json!({
        "pid": std::process::id(),
        "parent": number("PPid", 10),
        // Real, effective, saved, file system.
        "uids": list("Uid"),
        "gids": list("Gid"),
        "groups": list("Groups"),
        "uid_map": lines("/proc/self/uid_map"),
        "gid_map": lines("/proc/self/gid_map"),
        "namespaces": namespaces(),
        "capabilities": {
            "inheritable": number("CapInh", 16),
            "permitted": number("CapPrm", 16),
            "effective": number("CapEff", 16),
            "bounding": number("CapBnd", 16),
            "ambient": number("CapAmb", 16),
        },
        "securebits": prctl(libc::PR_GET_SECUREBITS),
        "no_new_privs": number("NoNewPrivs", 10),
        "seccomp": number("Seccomp", 10),
        "seccomp_filters": number("Seccomp_filters", 10),
        "dumpable": prctl(libc::PR_GET_DUMPABLE),
        "threads": number("Threads", 10),
        "umask": status.get("Umask"),
        "rlimits": rlimits(),
        "cgroup": lines("/proc/self/cgroup"),
        "cwd": env::current_dir().map(|path| path.display().to_string()).unwrap_or_default(),
        "hostname": fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim(),
        "arguments": env::args().collect::<Vec<_>>(),
        "env": env::vars().collect::<BTreeMap<_, _>>(),
        "mounts": mounts(),
        "writable": places::writable(),
        "descriptors": descriptors(),
        "processes": processes(),
        "listening": listening(),
        "interfaces": interfaces(),
        "cpus": thread::available_parallelism().map(usize::from).ok(),
        "init": init(),
        "sysctls": sysctls(),
    })
}

/// `ENOENT` and its like; numbers for what is rarer.
pub fn errno(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), errno_name)
}

pub fn errno_name(errno: i32) -> String {
    let name = match errno {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::ESRCH => "ESRCH",
        libc::EINTR => "EINTR",
        libc::EIO => "EIO",
        libc::ENXIO => "ENXIO",
        libc::E2BIG => "E2BIG",
        libc::EBADF => "EBADF",
        libc::ECHILD => "ECHILD",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EEXIST => "EEXIST",
        libc::ENODEV => "ENODEV",
        libc::ENOTDIR => "ENOTDIR",
        libc::EINVAL => "EINVAL",
        libc::EMFILE => "EMFILE",
        libc::ENOSPC => "ENOSPC",
        libc::ESPIPE => "ESPIPE",
        libc::EROFS => "EROFS",
        libc::EPIPE => "EPIPE",
        libc::ENAMETOOLONG => "ENAMETOOLONG",
        libc::ENOSYS => "ENOSYS",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::EPROTONOSUPPORT => "EPROTONOSUPPORT",
        libc::EAFNOSUPPORT => "EAFNOSUPPORT",
        libc::EADDRINUSE => "EADDRINUSE",
        libc::ENETUNREACH => "ENETUNREACH",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::ECONNREFUSED => "ECONNREFUSED",
        libc::EKEYREJECTED => "EKEYREJECTED",
        other => return format!("errno {other}"),
    };
    name.to_owned()
}

fn status() -> BTreeMap<String, String> {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    text.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

fn lines(path: &str) -> Value {
    match fs::read_to_string(path) {
        Ok(text) => text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect(),
        Err(error) => json!({ "error": errno(&error) }),
    }
}

/// Inode numbers, which are the namespaces' identities.
fn namespaces() -> Map<String, Value> {
    let names = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];
    let inode = |name: &str| {
        let link = fs::read_link(format!("/proc/self/ns/{name}")).ok()?;
        link.to_str()?.split(['[', ']']).nth(1)?.parse::<u64>().ok()
    };
    names.into_iter().map(|name| (name.to_owned(), json!(inode(name)))).collect()
}

fn prctl(option: i32) -> Value {
    // SAFETY: options that only return a number.
    match unsafe { libc::prctl(option, 0, 0, 0, 0) } {
        -1 => json!({ "error": errno(&io::Error::last_os_error()) }),
        value => json!(value),
    }
}

/// `[soft, hard]`; null is unlimited.
fn rlimits() -> Map<String, Value> {
    let known = [
        ("as", libc::RLIMIT_AS),
        ("core", libc::RLIMIT_CORE),
        ("cpu", libc::RLIMIT_CPU),
        ("data", libc::RLIMIT_DATA),
        ("fsize", libc::RLIMIT_FSIZE),
        ("locks", libc::RLIMIT_LOCKS),
        ("memlock", libc::RLIMIT_MEMLOCK),
        ("msgqueue", libc::RLIMIT_MSGQUEUE),
        ("nice", libc::RLIMIT_NICE),
        ("nofile", libc::RLIMIT_NOFILE),
        ("nproc", libc::RLIMIT_NPROC),
        ("rss", libc::RLIMIT_RSS),
        ("rtprio", libc::RLIMIT_RTPRIO),
        ("rttime", libc::RLIMIT_RTTIME),
        ("sigpending", libc::RLIMIT_SIGPENDING),
        ("stack", libc::RLIMIT_STACK),
    ];
    let told = known.into_iter().map(|(name, resource)| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the kernel fills the structure given.
        unsafe { libc::getrlimit(resource, &mut limit) };
        let value = |limit: u64| (limit != libc::RLIM_INFINITY).then_some(limit);
        (name.to_owned(), json!([value(limit.rlim_cur), value(limit.rlim_max)]))
    });
    told.collect()
}

/// proc_pid_mountinfo(5).
fn mounts() -> Vec<Value> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = |line: &str| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mount: Vec<&str> = mount.split(' ').collect();
        let mut file_system = file_system.splitn(3, ' ');
        Some(json!({
            "root": mount.get(3)?,
            "point": mount.get(4)?,
            "options": mount.get(5)?.split(',').collect::<Vec<_>>(),
            // shared:N, master:N: who gets to know of a mount.
            "propagation": mount.get(6..)?,
            "type": file_system.next()?,
            "source": file_system.next()?,
            "file_system_options": file_system.next()?.split(',').collect::<Vec<_>>(),
        }))
    };
    text.lines().filter_map(mount).collect()
}

fn descriptors() -> Vec<Value> {
    let Ok(open) = fs::read_dir("/proc/self/fd") else { return Vec::new() };
    let mut told: Vec<(u32, String)> = open
        .flatten()
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?.display().to_string();
            Some((entry.file_name().to_str()?.parse().ok()?, target))
        })
        // The directory that is being read.
        .filter(|(_, target)| target != &format!("/proc/{}/fd", std::process::id()))
        .collect();
    told.sort();
    told.into_iter().map(|(fd, target)| json!({ "fd": fd, "target": target })).collect()
}

fn processes() -> Vec<Value> {
    let Ok(proc) = fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<u32> = proc.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    let comm = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
    pids.into_iter().map(|pid| json!({ "pid": pid, "comm": comm(pid) })).collect()
}

/// TCP sockets that listen in this network namespace, whoever holds them.
fn listening() -> Vec<String> {
    let mut told = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        told.extend(text.lines().skip(1).filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (local, state) = (fields.next()?, fields.nth(1)?);
            (state == "0A").then(|| address(local)).flatten()
        }));
    }
    told
}

/// `0100007F:2329` is 127.0.0.1:9001: words in the machine's order, in hexadecimal.
fn address(text: &str) -> Option<String> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |i: usize| u32::from_str_radix(host.get(8 * i..8 * i + 8)?, 16).ok().map(u32::to_le_bytes);
    match host.len() {
        8 => Some(format!("{}:{port}", Ipv4Addr::from(word(0)?))),
        _ => {
            let bytes: Vec<u8> = (0..4).map(word).collect::<Option<Vec<_>>>()?.concat();
            Some(format!("[{}]:{port}", Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)))
        }
    }
}

fn interfaces() -> Vec<String> {
    let text = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    text.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

/// What of pid 1 can be read: its descriptors would be the control socket.
fn init() -> Map<String, Value> {
    let open = |name: &str| {
        let path = format!("/proc/1/{name}");
        let tried = match name {
            "fd" | "task" => fs::read_dir(&path).map(drop),
            "root" | "cwd" | "exe" => fs::read_link(&path).map(drop),
            "mem for writing" => File::options().write(true).open("/proc/1/mem").map(drop),
            // Opening succeeds for some; only reading is checked.
            _ => fs::read(&path).map(drop),
        };
        tried.map_or_else(|error| errno(&error), |()| "ok".to_owned())
    };
    let names = ["fd", "mem", "mem for writing", "environ", "maps", "root", "cwd", "exe", "cmdline", "status"];
    names.into_iter().map(|name| (name.to_owned(), json!(open(name)))).collect()
}

/// The locks behind seccomp: how many namespaces of each kind this user may make.
fn sysctls() -> Map<String, Value> {
    let Ok(limits) = fs::read_dir(Path::new("/proc/sys/user")) else { return Map::new() };
    let value = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    limits.flatten().map(|entry| (entry.file_name().to_string_lossy().into_owned(), json!(value(&entry.path())))).collect()
}
