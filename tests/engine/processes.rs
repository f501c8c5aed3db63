//! Kiln's own processes hold no more privilege than their work needs.

use std::collections::HashMap;
use std::fs;

use crate::host::{self, Instance};

fn status(pid: u32) -> HashMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("read the process's status");
    text.lines().filter_map(|line| line.split_once(":\t")).map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}

#[test]
fn the_server_has_no_privilege() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    let servers = instance.processes("server");
    assert_eq!(servers.len(), 1);
    let status = status(servers[0]);
    let kiln = nix::unistd::User::from_name("kiln").unwrap().expect("user kiln");
    assert_eq!(status["Uid"].split('\t').collect::<Vec<_>>(), vec![kiln.uid.to_string(); 4]);
    assert_eq!(status["Gid"].split('\t').collect::<Vec<_>>(), vec![kiln.gid.to_string(); 4]);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{set}");
    }
    assert_eq!(status["NoNewPrivs"], "1");
}

#[test]
fn a_launcher_has_one_thread_and_no_listening_socket() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    instance.create_probe("f", serde_json::json!({}));
    instance.call("f", &serde_json::json!({ "do": "echo" }));
    let launchers = instance.processes("launcher");
    assert!(!launchers.is_empty());
    let listening = listening_sockets();
    for pid in launchers {
        assert_eq!(status(pid)["Threads"], "1");
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).expect("the launcher lives").flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default().display().to_string();
            let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            assert!(!inode.is_some_and(|inode| listening.contains(&inode.to_owned())), "launcher {pid} listens on {target}");
        }
    }
}

/// Inodes of listening sockets: TCP in this network namespace, and Unix.
fn listening_sockets() -> Vec<String> {
    let mut found = Vec::new();
    for file in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(file).unwrap_or_default().lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            if fields.get(3) == Some(&"0A") {
                found.extend(fields.get(9).map(|inode| (*inode).to_owned()));
            }
        }
    }
    for line in fs::read_to_string("/proc/net/unix").unwrap_or_default().lines().skip(1) {
        let fields: Vec<_> = line.split_whitespace().collect();
        // __SO_ACCEPTCON
        if fields.get(3).is_some_and(|flags| u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & 0x10000 != 0)) {
            found.extend(fields.get(6).map(|inode| (*inode).to_owned()));
        }
    }
    assert!(!found.is_empty(), "the server listens, so this test can see listening sockets");
    found
}

#[test]
fn when_the_hosts_memory_is_short_a_function_goes_first_and_not_what_starts_it() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    let score = |pid: u32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("it lives").trim().to_owned();
    instance.create_probe("f", serde_json::json!({}));
    let seen = instance.call("f", &serde_json::json!({ "do": "oom_score_adj" }));
    assert_eq!(seen["found"], "500");
    assert!(seen["refused"].is_string(), "a function lowers it again: {seen}");
    let own = score(std::process::id());
    for pid in [instance.processes("launcher"), instance.processes("server"), vec![instance.supervisor_pid()]].concat() {
        assert_eq!(score(pid), own, "{pid}");
    }
}

#[test]
fn every_process_dies_with_its_parent() {
    if !host::ready() {
        return;
    }
    let mut instance = Instance::start();
    let all: Vec<u32> = ["launcher", "server"].iter().flat_map(|role| instance.processes(role)).collect();
    assert!(all.len() >= 2);
    instance.kill_supervisor();
    host::eventually("they are gone", || all.iter().all(|pid| host::snapshot::process(*pid).is_none()));
    // Whose cgroups nobody removes but the next start.
    instance.launch();
    instance.await_ready();
    assert!(instance.stop().success());
}
