//! Starts the other processes: each is this same program, by descriptor, with exactly the descriptors and the
//! privileges of its role.
//!
//! The steps run in the child, between fork and exec. Their order is forced by the kernel: the bounding set needs
//! CAP_SETPCAP, groups need CAP_SETGID, and both are lost with the user id; the signal at the parent's death is
//! cleared by a change of ids, so it comes after them.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use caps::CapSet;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Pid, Uid, getppid, setgroups, setresgid, setresuid, setsid};
use rustix::fs::{Mode, OFlags};

use super::check::Identities;
use super::spawn::{Exec, SpawnError, StepError, spawn};
use crate::config::Config;
use crate::sys::memfd::sealed;
use crate::sys::process::go_first_when_memory_is_short;

/// Limit of Lambda on an unpacked function: <https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>.
/// The wall behind `inside::unpack`'s own count, for one file.
const UNPACKED: u64 = 262_144_000;

/// Server and launchers hold up to sixteen descriptors for each container.
const DESCRIPTORS: u64 = 65_536;

/// What every child is started from.
#[derive(Debug)]
pub struct Children {
    /// This program as it was when the supervisor started: an upgrade on the disk does not mix two versions.
    program: OwnedFd,
    /// The configuration in force, sealed.
    config: OwnedFd,
    life: OwnedFd,
    /// Never passed on: every read end reports POLLHUP when this process dies.
    _alive: OwnedFd,
    environment: Vec<CString>,
    supervisor: Pid,
    server: (Uid, Gid),
}

/// What the server gets beside its configuration and its life pipe.
pub struct ServerEnds<'a> {
    pub supervisor: BorrowedFd<'a>,
    pub api: BorrowedFd<'a>,
    pub control: BorrowedFd<'a>,
}

/// What an unpack gets beside its life pipe.
pub struct UnpackEnds<'a> {
    pub zip: BorrowedFd<'a>,
    pub staging: BorrowedFd<'a>,
    pub size: BorrowedFd<'a>,
}

impl Children {
    pub fn new(config: &Config, ids: &Identities) -> io::Result<Self> {
        let (life, alive) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok(Self {
            program: rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?,
            config: written(config)?,
            life,
            _alive: alive,
            environment: environment(std::env::vars_os()),
            supervisor: nix::unistd::getpid(),
            server: ids.server,
        })
    }

    /// Children that are started from now on go by this one.
    pub fn configure(&mut self, config: &Config) -> io::Result<()> {
        self.config = written(config)?;
        Ok(())
    }

    pub fn start_server(&self, ends: &ServerEnds<'_>) -> Result<Pid, SpawnError> {
        let (uid, gid) = self.server;
        let descriptors = [self.config.as_fd(), self.life.as_fd(), ends.supervisor, ends.api, ends.control];
        self.start(&[c"kilnd", c"server"], &self.environment, &descriptors, || {
            step("session", || setsid().map(drop))?;
            step("limits", raise_descriptors)?;
            become_nobody_but(uid, gid, &[gid])?;
            self.die_with_parent()
        })
    }

    pub fn start_launcher(&self, number: u32, slot: u32, server: BorrowedFd<'_>) -> Result<Pid, SpawnError> {
        let (number, slot) = (number.to_string(), slot.to_string());
        let words = ["kilnd", "launcher", "--number", &number, "--slot", &slot].map(c_string);
        let words: Vec<&std::ffi::CStr> = words.iter().map(CString::as_c_str).collect();
        self.start(&words, &self.environment, &[self.config.as_fd(), self.life.as_fd(), server], || {
            step("session", || setsid().map(drop))?;
            step("limits", raise_descriptors)?;
            self.die_with_parent()
        })
    }

    /// `uid` is nobody else's: neither another unpack's nor a container's.
    pub fn start_unpack(&self, uid: Uid, ends: &UnpackEnds<'_>) -> Result<Pid, SpawnError> {
        let descriptors = [ends.zip, ends.staging, self.life.as_fd(), ends.size];
        // No environment: nothing in it is meant for one who reads hostile bytes.
        self.start(&[c"kilnd", c"unpack"], &[], &descriptors, || {
            step("session", || setsid().map(drop))?;
            // A second wall behind its seccomp filter, which allows no socket and no IPC. No mount namespace: without
            // a new root it would hide nothing, and Landlock does that.
            step("namespaces", || unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS))?;
            step("limits", limit_unpack)?;
            step("memory shortage", go_first_when_memory_is_short)?;
            become_nobody_but(uid, Gid::from_raw(uid.as_raw()), &[])?;
            self.die_with_parent()
        })
    }

    fn start(
        &self,
        words: &[&std::ffi::CStr],
        environment: &[CString],
        descriptors: &[BorrowedFd<'_>],
        steps: impl FnOnce() -> Result<(), StepError>,
    ) -> Result<Pid, SpawnError> {
        let arguments: Vec<CString> = words.iter().map(|word| CString::from(*word)).collect();
        spawn(&Exec { program: self.program.as_fd(), arguments: &arguments, environment, descriptors }, steps)
    }

    /// After the ids: changing them clears it, silently (prctl(2), PR_SET_PDEATHSIG).
    fn die_with_parent(&self) -> Result<(), StepError> {
        step("die with parent", || prctl::set_pdeathsig(Signal::SIGKILL))?;
        // It may have died before; the child is in no new pid namespace, so that shows.
        match getppid() {
            parent if parent == self.supervisor => Ok(()),
            _ => Err(StepError { step: "die with parent", source: io::Error::from_raw_os_error(libc::ESRCH) }),
        }
    }
}

fn written(config: &Config) -> io::Result<OwnedFd> {
    sealed(c"kiln-config", toml::to_string(config).map_err(io::Error::other)?.as_bytes())
}

/// Gives up root for good: nothing in the bounding set, so no exec can ever give a capability back.
fn become_nobody_but(uid: Uid, gid: Gid, groups: &[Gid]) -> Result<(), StepError> {
    step("bounding set", || caps::clear(None, CapSet::Bounding).map_err(io::Error::other))?;
    step("groups", || setgroups(groups))?;
    step("gid", || setresgid(gid, gid, gid))?;
    step("uid", || setresuid(uid, uid, uid))?;
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        step("capabilities", || caps::clear(None, set).map_err(io::Error::other))?;
    }
    step("no new privileges", prctl::set_no_new_privs)
}

fn raise_descriptors() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let limit = hard.max(DESCRIPTORS);
    // Root without CAP_SYS_RESOURCE (in somebody's container) has to do with what it was given.
    setrlimit(Resource::RLIMIT_NOFILE, limit, limit).or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
}

/// Walls behind what `inside::unpack` checks itself.
fn limit_unpack() -> nix::Result<()> {
    for (resource, limit) in [
        // A central directory of 50 MB holds a million entries; the library keeps some 500 bytes for each.
        (Resource::RLIMIT_AS, 1 << 30),
        (Resource::RLIMIT_FSIZE, UNPACKED),
        // Inflating 250 MB takes 2 s; the supervisor's own deadline counts the wall clock.
        (Resource::RLIMIT_CPU, 60),
        (Resource::RLIMIT_NOFILE, 64),
        // As for containers (`launcher::plan`): 0 would let the host's program for cores have it.
        (Resource::RLIMIT_CORE, 1),
        // Itself.
        (Resource::RLIMIT_NPROC, 1),
        (Resource::RLIMIT_MEMLOCK, 0),
    ] {
        setrlimit(resource, limit, limit)?;
    }
    Ok(())
}

fn step<T, E: Into<io::Error>>(step: &'static str, act: impl FnOnce() -> Result<T, E>) -> Result<T, StepError> {
    act().map_err(|error| StepError { step, source: error.into() })
}

/// What server and launchers inherit of our environment: our own switches, and what their stderr is. Not LD_PRELOAD, not
/// NOTIFY_SOCKET.
fn environment(all: impl Iterator<Item = (std::ffi::OsString, std::ffi::OsString)>) -> Vec<CString> {
    let ours = |name: &str| name.starts_with("KILN_") || matches!(name, "RUST_LOG" | "RUST_BACKTRACE" | "JOURNAL_STREAM");
    let kept = all.filter(|(name, _)| name.to_str().is_some_and(ours));
    kept.filter_map(|(name, value)| Some(c_string(&format!("{}={}", name.to_str()?, value.to_str()?)))).collect()
}

/// Of texts that cannot hold a NUL: numbers, and what came from an environment.
fn c_string(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    #[test]
    fn children_inherit_our_switches_and_no_one_elses() {
        let all = [("KILN_KILL_POINT", "a@b"), ("LD_PRELOAD", "/x.so"), ("NOTIFY_SOCKET", "/n"), ("JOURNAL_STREAM", "9:1")];
        let kept = environment(all.into_iter().map(|(name, value)| (name.into(), value.into())));
        assert_eq!(kept, [c"KILN_KILL_POINT=a@b".to_owned(), c"JOURNAL_STREAM=9:1".to_owned()]);
    }

    #[test]
    fn the_configuration_that_children_read_cannot_be_changed() {
        let file = written(&Config::default()).unwrap();
        assert!(File::from(file.try_clone().unwrap()).write_all(b"x").is_err());
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        assert_eq!(Config::read(path.as_ref()).unwrap(), Config::default());
    }
}
