//! Runs `unpack` for the server: checks the order, makes the staging directory, keeps the time, says how it ended.
//!
//! At most [`AT_ONCE`] run, each under a user id that nobody else has; others wait in a queue with an end. The answer
//! goes out only when no process with that id lives, so that whoever adopts the tree is alone with it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fs, io};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, Uid};
use rustix::fs::{SealFlags, fcntl_get_seals};

use super::children::{Children, UnpackEnds};
use super::sweep;
use crate::invocation::ProcessEnd;
use crate::kill_point;
use crate::wire::launcher::{OrderId, StagingId};
use crate::wire::supervisor::{NO_ROOM, Unpacked, ZipRefusal};

/// Unpacking is bound by the disk; more at once only take memory.
const AT_ONCE: usize = 2;
/// The server takes a CreateFunction only with its zip in memory; this many of 50 MB are more than it will hold.
const WAITING: usize = 64;
/// 250 MB and 50,000 files take 5 s on a slow disk.
const DEADLINE: Duration = Duration::from_secs(60);
/// What was killed is gone by then, if the disk answers at all.
const REAP: Duration = Duration::from_secs(5);
/// A zip may be as large as what it may unpack to (from S3; through the API it is 50 MB).
const LARGEST_ZIP: u64 = 262_144_000;
/// The last ids of the range belong to us.
pub const IDS: u32 = 1024;

#[derive(Debug)]
pub struct Unpacking {
    directory: PathBuf,
    first_uid: u32,
    /// Taken in turn, so that an id is not used again soon.
    next: u32,
    running: Vec<Running>,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    order: OrderId,
    staging: StagingId,
    zip: OwnedFd,
}

#[derive(Debug)]
struct Running {
    order: OrderId,
    staging: StagingId,
    pid: Pid,
    uid: Uid,
    size: OwnedFd,
    until: Instant,
    late: bool,
}

/// An order that has been answered.
pub type Answer = (OrderId, Unpacked);

impl Unpacking {
    pub fn new(directory: PathBuf, first_uid: u32) -> Self {
        Self { directory, first_uid, next: 0, running: vec![], waiting: VecDeque::new() }
    }

    /// Takes an order; the answer comes now only if it is refused.
    pub fn take(&mut self, order: OrderId, staging: StagingId, descriptors: Vec<OwnedFd>) -> Option<Answer> {
        let refused = |what: String| Some((order, Unpacked::Failed { what }));
        if self.waiting.len() >= WAITING {
            return refused(format!("{WAITING} zips wait already"));
        }
        match sealed_zip(descriptors) {
            Ok(zip) => self.waiting.push_back(Waiting { order, staging, zip }),
            Err(what) => return refused(what),
        }
        None
    }

    /// Starts what may start. Those that cannot are answered at once.
    pub fn start(&mut self, children: &Children, now: Instant) -> Vec<Answer> {
        let mut failed = Vec::new();
        while self.running.len() < AT_ONCE {
            let Some(waiting) = self.waiting.pop_front() else { break };
            let order = waiting.order;
            match self.start_one(waiting, children, now) {
                Ok(running) => self.running.push(running),
                Err(error) if error.is_full() => failed.push((order, Unpacked::NoRoom)),
                Err(error) => failed.push((order, Unpacked::Failed { what: chain(&error) })),
            }
        }
        failed
    }

    fn start_one(&mut self, waiting: Waiting, children: &Children, now: Instant) -> Result<Running, StartError> {
        let Waiting { order, staging, zip } = waiting;
        let uid = self.take_uid();
        let path = self.directory.join(staging.to_string());
        let failed = |source| StartError::Staging { path: path.clone(), source };
        // Fails if it exists: an id that comes twice would show one function's code to another's unpack.
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        let started = || {
            chown(&path, Some(uid.as_raw()), Some(uid.as_raw())).map_err(failed)?;
            let directory = File::open(&path).map_err(failed)?;
            let (size, tell_size) = pipe().map_err(failed)?;
            kill_point!("before-unpack-spawn");
            let ends = UnpackEnds { zip: zip.as_fd(), staging: directory.as_fd(), size: tell_size.as_fd() };
            let pid = children.start_unpack(uid, &ends)?;
            Ok(Running { order, staging, pid, uid, size, until: now + DEADLINE, late: false })
        };
        let started = started();
        if started.is_err() {
            self.remove(staging);
        }
        started
    }

    fn take_uid(&mut self) -> Uid {
        loop {
            let uid = Uid::from_raw(self.first_uid + self.next % IDS);
            self.next = self.next.wrapping_add(1);
            if self.running.iter().all(|running| running.uid != uid) {
                return uid;
            }
        }
    }

    /// A process of ours was reaped. `None`: not one of these.
    pub fn ended(&mut self, pid: Pid, how: ProcessEnd) -> Option<Answer> {
        let at = self.running.iter().position(|running| running.pid == pid)?;
        let running = self.running.swap_remove(at);
        kill_point!("after-unpack");
        let mut result = outcome(how, size(running.size), running.late);
        if let Err(what) = end_all_of(running.uid) {
            result = Unpacked::Failed { what };
        }
        if let (Unpacked::Done { .. }, Err(what)) = (&result, self.hand_over(running.staging)) {
            result = Unpacked::Failed { what };
        }
        if !matches!(result, Unpacked::Done { .. }) {
            self.remove(running.staging);
        }
        Some((running.order, result))
    }

    /// Root's now: the sign for a launcher that nobody writes there any more, whatever the server says.
    fn hand_over(&self, staging: StagingId) -> Result<(), String> {
        let handed = chown(self.directory.join(staging.to_string()), Some(0), Some(0));
        handed.map_err(|error| format!("hand the tree over: {error}"))
    }

    /// Kills who is over time; its end is reported like any other.
    pub fn tick(&mut self, now: Instant) {
        for running in self.running.iter_mut().filter(|running| !running.late && running.until <= now) {
            running.late = true;
            let _ = kill(running.pid, Signal::SIGKILL);
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.running.iter().filter(|running| !running.late).map(|running| running.until).min()
    }

    /// The server that asked is gone: everything is forgotten, and everybody dead before staging is swept.
    pub fn abandon(&mut self) {
        self.waiting.clear();
        for running in self.running.drain(..) {
            let _ = kill(running.pid, Signal::SIGKILL);
            let until = Instant::now() + REAP;
            while let Ok(WaitStatus::StillAlive) = waitpid(running.pid, Some(WaitPidFlag::WNOHANG)) {
                if Instant::now() > until {
                    tracing::error!(pid = running.pid.as_raw(), "an unpack does not die");
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            if let Err(what) = end_all_of(running.uid) {
                tracing::error!(what, "an unpack does not die");
            }
        }
    }

    fn remove(&self, staging: StagingId) {
        if let Err(error) = sweep::remove_tree(&self.directory, &staging.to_string()) {
            tracing::warn!(error = %chain(&error), "a staging directory is left for the next sweep");
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("prepare {path}")]
    Staging { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Spawn(#[from] super::spawn::SpawnError),
}

impl StartError {
    fn is_full(&self) -> bool {
        matches!(self, Self::Staging { source, .. } if matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)))
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    // Not blocking: whoever holds the other end must not be able to hold us.
    let flags = rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK;
    Ok(rustix::pipe::pipe_with(flags)?)
}

/// The one descriptor of an order, if it is what it has to be: a memfd that nobody can change any more.
///
/// Only a memfd can carry these seals. So a server that was taken over cannot have us open a door, a terminal or
/// somebody's file for it, nor change the zip between unpack's check and the launcher's.
fn sealed_zip(descriptors: Vec<OwnedFd>) -> Result<OwnedFd, String> {
    let [zip] = <[OwnedFd; 1]>::try_from(descriptors)
        .map_err(|wrong| format!("{} descriptors came with the order; it takes one", wrong.len()))?;
    let needed = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK;
    if !fcntl_get_seals(&zip).is_ok_and(|seals| seals.contains(needed)) {
        return Err("the zip is not a sealed memfd".into());
    }
    let length = File::from(zip.try_clone().map_err(|error| error.to_string())?).metadata().map(|about| about.len());
    match length {
        Ok(0..=LARGEST_ZIP) => Ok(zip),
        Ok(length) => Err(format!("a zip of {length} bytes")),
        Err(error) => Err(error.to_string()),
    }
}

/// What an unpack told before it ended, if it told everything.
fn size(pipe: OwnedFd) -> Option<u64> {
    let mut bytes = [0; 8];
    File::from(pipe).read_exact(&mut bytes).ok().map(|()| u64::from_le_bytes(bytes))
}

fn outcome(how: ProcessEnd, size: Option<u64>, late: bool) -> Unpacked {
    let failed = |what: String| Unpacked::Failed { what };
    match (how, size) {
        (_, _) if late => failed(format!("unpack took longer than {} s", DEADLINE.as_secs())),
        (ProcessEnd::Exited(0), Some(bytes)) => Unpacked::Done { bytes },
        (ProcessEnd::Exited(0), None) => failed("unpack ended without telling a size".into()),
        (ProcessEnd::Exited(code), _) if code == i32::from(NO_ROOM) => Unpacked::NoRoom,
        (ProcessEnd::Exited(code), _) => match refusal(code) {
            Some(refusal) => Unpacked::Refused(refusal),
            None => failed(format!("unpack ended with code {code}")),
        },
        (ProcessEnd::Killed { signal, .. }, _) => failed(format!("unpack was killed by signal {signal}")),
    }
}

/// As the wire says: 64 plus the variant's place.
fn refusal(code: i32) -> Option<ZipRefusal> {
    let place = usize::try_from(code.checked_sub(64)?).ok()?;
    ZipRefusal::ALL.get(place).copied()
}

/// Kills until no process has this id. The filter of unpack allows no fork; one that broke out of it may have.
fn end_all_of(uid: Uid) -> Result<(), String> {
    let until = Instant::now() + REAP;
    loop {
        let left = processes_of(uid).map_err(|error| format!("look for processes of {uid}: {error}"))?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(format!("{} processes of unpack's user {uid} do not die", left.len()));
        }
        for pid in left {
            let _ = kill(pid, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn processes_of(uid: Uid) -> io::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // One that ends meanwhile is not found, which is what we want to know.
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        if has_uid(&status, uid) && !status.contains("\nState:\tZ") {
            found.push(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

/// Real, effective, saved or file system id.
fn has_uid(status: &str, uid: Uid) -> bool {
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    ids.is_some_and(|ids| ids.split_whitespace().any(|id| id.parse() == Ok(uid.as_raw())))
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text += &format!(": {next}");
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, Mode, OFlags, fcntl_add_seals, memfd_create};

    use super::*;

    fn memfd(seals: SealFlags) -> OwnedFd {
        let file = memfd_create(c"zip", MemfdFlags::ALLOW_SEALING).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        file
    }

    #[test]
    fn only_a_sealed_memfd_is_taken() {
        let all = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK;
        assert!(sealed_zip(vec![memfd(all)]).is_ok());
        assert!(sealed_zip(vec![]).is_err());
        assert!(sealed_zip(vec![memfd(all), memfd(all)]).is_err());
        for missing in [SealFlags::WRITE, SealFlags::GROW, SealFlags::SHRINK] {
            assert!(sealed_zip(vec![memfd(all - missing)]).is_err(), "without {missing:?}");
        }
        for (path, flags) in [("/etc/passwd", OFlags::PATH), ("/etc/passwd", OFlags::RDONLY), ("/dev/shm", OFlags::RDONLY)] {
            let file = rustix::fs::open(path, flags, Mode::empty()).unwrap();
            assert!(sealed_zip(vec![file]).is_err(), "{path}");
        }
        assert!(sealed_zip(vec![pipe().unwrap().0]).is_err());
    }

    #[test]
    fn a_zip_over_the_limit_is_not_taken() {
        let file = memfd_create(c"zip", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&file, LARGEST_ZIP + 1).unwrap();
        fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK).unwrap();
        assert!(sealed_zip(vec![file]).unwrap_err().contains("262144001"));
    }

    #[test]
    fn each_end_has_its_meaning() {
        let exited = |code| outcome(ProcessEnd::Exited(code), Some(7), false);
        assert_eq!(exited(0), Unpacked::Done { bytes: 7 });
        for (place, refusal) in ZipRefusal::ALL.into_iter().enumerate() {
            assert_eq!(exited(64 + place as i32), Unpacked::Refused(refusal));
        }
        assert_eq!(exited(i32::from(NO_ROOM)), Unpacked::NoRoom);
        for code in [1, 63, 64 + ZipRefusal::ALL.len() as i32, 127, -1] {
            assert!(matches!(exited(code), Unpacked::Failed { .. }), "{code}");
        }
        assert!(matches!(outcome(ProcessEnd::Exited(0), None, false), Unpacked::Failed { .. }));
        assert!(matches!(outcome(ProcessEnd::Exited(0), Some(7), true), Unpacked::Failed { .. }));
        let killed = ProcessEnd::Killed { signal: 31, core: false };
        assert!(matches!(outcome(killed, Some(7), false), Unpacked::Failed { .. }));
    }

    #[test]
    fn the_queue_has_an_end() {
        let mut unpacking = Unpacking::new("/nowhere".into(), 1);
        let zip = memfd(SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK);
        for number in 0..WAITING as u64 {
            assert_eq!(unpacking.take(OrderId(number), StagingId(0), vec![zip.try_clone().unwrap()]), None);
        }
        let refused = unpacking.take(OrderId(99), StagingId(0), vec![zip]);
        assert!(matches!(refused, Some((OrderId(99), Unpacked::Failed { .. }))));
    }

    #[test]
    fn a_process_is_found_by_any_of_its_ids() {
        let status = "Name:\tx\nUid:\t0\t7\t0\t0\nGid:\t8\t8\t8\t8\n";
        assert!(has_uid(status, Uid::from_raw(7)));
        assert!(!has_uid(status, Uid::from_raw(8)));
    }
}
