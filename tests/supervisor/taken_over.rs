//! Plays a server that was taken over: its process is stopped, and the test talks on its socket to the supervisor.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use kiln::sys::packet;
use kiln::wire;
use kiln::wire::launcher::{OrderId, StagingId};
use kiln::wire::supervisor::{ToServer, ToSupervisor, Unpacked, ZipRefusal};
use nix::sys::signal::Signal;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::instance::{ID_COUNT, Instance, children_of, end, eventually, field, ready, status};
use crate::zips::{deflated, file, megabytes, zip};

/// The server's own descriptor of its socket to the supervisor, as the contract numbers it.
const SUPERVISOR: i32 = 5;

struct TakenOver {
    instance: Instance,
    server: u32,
    socket: OwnedFd,
    next: u64,
}

impl TakenOver {
    fn start() -> Self {
        let instance = Instance::start();
        let server = instance.server();
        end(server, Signal::SIGSTOP);
        let pid = rustix::process::Pid::from_raw(server as i32).unwrap();
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let socket = pidfd_getfd(pidfd, SUPERVISOR, PidfdGetfdFlags::empty()).unwrap();
        // What was on its way to the server is not for us.
        Self { instance, server, socket, next: 1000 }
    }

    fn order(&mut self, staging: StagingId, descriptors: &[BorrowedFd<'_>]) -> OrderId {
        self.next += 1;
        let order = OrderId(self.next);
        self.say(&ToSupervisor::Heartbeat, &[]);
        self.say(&ToSupervisor::Unpack { order, staging }, descriptors);
        order
    }

    fn say(&self, message: &ToSupervisor, descriptors: &[BorrowedFd<'_>]) {
        packet::send(self.socket.as_fd(), &wire::encode(message).unwrap(), descriptors).unwrap();
    }

    /// The answer to `order`; a real unpack's may take a while, in which the supervisor must not miss us.
    #[track_caller]
    fn answer(&self, order: OrderId) -> Unpacked {
        let mut answer = None;
        rustix::io::ioctl_fionbio(&self.socket, true).unwrap();
        eventually("the order is answered", || {
            match packet::receive(self.socket.as_fd()) {
                Ok(Some(packet)) => {
                    if let Ok(ToServer::Unpacked { order: found, result }) = wire::decode(&packet.bytes) {
                        answer = (found == order).then_some(result);
                    }
                }
                Ok(None) => panic!("the supervisor has hung up"),
                Err(_) => self.say(&ToSupervisor::Heartbeat, &[]),
            }
            answer.is_some()
        });
        answer.unwrap()
    }

    fn unpack(&mut self, staging: StagingId, zip: &[u8]) -> Unpacked {
        let order = self.order(staging, &[memfd(zip, ALL).as_fd()]);
        self.answer(order)
    }

    fn staging(&self, staging: StagingId) -> std::path::PathBuf {
        self.instance.state_dir().join("staging").join(staging.to_string())
    }

    /// The ids of unpacks: the last 1024 of the range.
    fn uids(&self) -> std::ops::Range<u32> {
        let end = self.instance.first_id + ID_COUNT;
        end - 1024..end
    }
}

const ALL: SealFlags = SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK);

fn memfd(bytes: &[u8], seals: SealFlags) -> OwnedFd {
    let file = rustix::fs::memfd_create(c"zip", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    File::from(file.try_clone().unwrap()).write_all(bytes).unwrap();
    rustix::fs::fcntl_add_seals(&file, seals).unwrap();
    file
}

#[test]
fn a_zip_becomes_a_tree_that_belongs_to_nobody_else() {
    if !ready() {
        return;
    }
    let mut taken = TakenOver::start();
    let (first, second) = (StagingId(1), StagingId(2));
    let bytes = zip(&[file("index.js", "exports"), file("lib/a", "")]);
    assert_eq!(taken.unpack(first, &bytes), Unpacked::Done { bytes: 7 });
    assert_eq!(taken.unpack(second, &bytes), Unpacked::Done { bytes: 7 });
    let about = |staging| std::fs::metadata(taken.staging(staging)).unwrap();
    assert_eq!(about(first).mode() & 0o7777, 0o700);
    let owner = |staging| std::fs::metadata(taken.staging(staging).join("tree/index.js")).unwrap().uid();
    assert!(taken.uids().contains(&owner(first)));
    assert_ne!(owner(first), owner(second), "one unpack cannot touch another's tree");
    assert_eq!([about(first).uid(), about(second).uid()], [0, 0], "handed over, now that unpack is dead");
}

#[test]
fn a_refused_zip_leaves_no_staging_directory() {
    if !ready() {
        return;
    }
    let climbing = zip(&[file("ok", "x"), file("../up", "x")]);
    let bomb = deflated(&[("bomb", 300)]);
    let mut taken = TakenOver::start();
    assert_eq!(taken.unpack(StagingId(1), b"#!/bin/sh"), Unpacked::Refused(ZipRefusal::Unreadable));
    assert_eq!(taken.unpack(StagingId(2), &climbing), Unpacked::Refused(ZipRefusal::BadName));
    assert_eq!(taken.unpack(StagingId(3), &bomb), Unpacked::Refused(ZipRefusal::TooLarge));
    for staging in [1, 2, 3] {
        assert!(!taken.staging(StagingId(staging)).exists());
    }
}

#[test]
fn bad_orders_are_refused_and_good_ones_still_taken() {
    if !ready() {
        return;
    }
    let mut taken = TakenOver::start();
    let bytes = zip(&[file("a", "1")]);
    let good = memfd(&bytes, ALL);
    let open = |path: &str, flags| rustix::fs::open(path, flags, Mode::empty()).unwrap();
    let (shadow, directory, plain) =
        (open("/etc/shadow", OFlags::PATH), open("/", OFlags::RDONLY), open("/etc/passwd", OFlags::RDONLY));
    let half_sealed = memfd(&bytes, SealFlags::WRITE);
    let bad = [
        vec![],
        vec![good.as_fd(), good.as_fd()],
        vec![shadow.as_fd()],
        vec![directory.as_fd()],
        vec![plain.as_fd()],
        vec![half_sealed.as_fd()],
    ];
    for (number, descriptors) in bad.into_iter().enumerate() {
        let order = taken.order(StagingId(1), &descriptors);
        assert!(matches!(taken.answer(order), Unpacked::Failed { .. }), "bad order {number}");
        assert!(!taken.staging(StagingId(1)).exists(), "bad order {number}");
    }
    assert_eq!(taken.unpack(StagingId(1), &bytes), Unpacked::Done { bytes: 1 });
    assert!(matches!(taken.unpack(StagingId(1), &bytes), Unpacked::Failed { .. }), "the same directory twice");
    assert!(taken.staging(StagingId(1)).join("tree/a").exists(), "and the first one's tree is untouched");
}

#[test]
fn nonsense_costs_the_server_its_life_and_nobody_elses() {
    if !ready() {
        return;
    }
    let taken = TakenOver::start();
    packet::send(taken.socket.as_fd(), &[0xff; 100], &[]).unwrap();
    eventually("the server is replaced", || {
        let servers = taken.instance.children("server");
        servers.len() == 1 && servers[0].0 != taken.server
    });
    assert!(taken.instance.ask().starts_with("HTTP/1.1 404"));
}

#[test]
fn an_unpack_is_nobody_sees_nothing_and_may_do_nothing() {
    if !ready() {
        return;
    }
    // Large enough to be looked at while it works.
    let bytes = zip(&megabytes(200));
    let mut taken = TakenOver::start();
    let supervisor = taken.instance.supervisor();
    let order = taken.order(StagingId(1), &[memfd(&bytes, ALL).as_fd()]);
    let mut seen = None;
    eventually("the unpack has locked itself", || {
        let unpack = children_of(supervisor).into_iter().find(|(_, words)| words.get(1).is_some_and(|word| word == "unpack"));
        let Some((pid, _)) = unpack else { return false };
        let Ok(text) = status(pid) else { return false };
        if field(&text, "Seccomp") == "2" {
            end(pid, Signal::SIGSTOP);
            seen = Some((pid, text));
        }
        seen.is_some()
    });
    let (pid, text) = seen.unwrap();
    let uids: Vec<u32> = field(&text, "Uid").split('\t').map(|uid| uid.parse().unwrap()).collect();
    assert!(taken.uids().contains(&uids[0]) && uids == [uids[0]; 4], "{uids:?}");
    assert_eq!(field(&text, "Gid").split('\t').map(|gid| gid.parse().unwrap()).collect::<Vec<u32>>(), [uids[0]; 4]);
    assert_eq!(field(&text, "Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&text, set), "0000000000000000", "{set}");
    }
    assert_eq!(field(&text, "NoNewPrivs"), "1");
    assert_eq!(field(&text, "Threads"), "1");
    let link = |pid: u32, name: &str| std::fs::read_link(format!("/proc/{pid}/{name}")).unwrap();
    for namespace in ["ns/net", "ns/ipc", "ns/uts"] {
        assert_ne!(link(pid, namespace), link(supervisor, namespace), "{namespace}");
    }
    assert_eq!(std::fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
    // zip, staging, life pipe, size; and what it opens itself: the zip once more, the tree, a directory, a file.
    let numbers = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert!(numbers <= 3 + 4 + 4, "{numbers} descriptors");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    for (name, limit) in [("Max processes", "1"), ("Max core file size", "1"), ("Max file size", "262144000")] {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        assert_eq!(line.split_whitespace().next(), Some(limit), "{name}");
    }
    assert_eq!(std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap(), "500\n");
    end(pid, Signal::SIGCONT);
    assert_eq!(taken.answer(order), Unpacked::Done { bytes: 200_000_000 });
}

#[test]
fn a_killed_unpack_is_our_fault_and_leaves_no_directory() {
    if !ready() {
        return;
    }
    let bytes = zip(&megabytes(200));
    let mut taken = TakenOver::start();
    let order = taken.order(StagingId(1), &[memfd(&bytes, ALL).as_fd()]);
    let supervisor = taken.instance.supervisor();
    eventually("there is an unpack, and it is killed", || {
        let unpack = children_of(supervisor).into_iter().find(|(_, words)| words.get(1).is_some_and(|word| word == "unpack"));
        unpack.map(|(pid, _)| end(pid, Signal::SIGKILL)).is_some()
    });
    assert_eq!(taken.answer(order), Unpacked::Failed { what: "unpack was killed by signal 9".into() });
    assert!(!taken.staging(StagingId(1)).exists());
}
