//! Who a container's processes are, inside and outside: host ids, the user namespace, and giving up every power.
//!
//! Two ids exist inside. 0 is R outside: the owner of all trees, as whom nothing runs but what an operator starts with `kiln container
//! exec --root`, in a container where all trees are read-only. 993 is U outside: this
//! container's own, unique among the living and not taken again soon. The user namespace is made ahead of orders and
//! entered last of all namespaces, so that the others belong to the host's.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Gid, Uid, close, pipe2, setgroups, setresgid, setresuid};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};

use crate::config::Config;
use crate::runtime::OWNER;
use crate::sys::process::{SingleThreaded, clone3};

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("read the owner of the trees from {path}")]
    Owner { path: String, source: io::Error },
    #[error("slot {slot} has no share of {id_count} ids")]
    NoShare { slot: u32, id_count: u32 },
    #[error("{step} of a user namespace's first process")]
    Helper { step: &'static str, source: io::Error },
    #[error("write {text:?} to {file}")]
    Map { file: String, text: String, source: io::Error },
    #[error("{0}")]
    Call(&'static str, #[source] io::Error),
    #[error("the launcher is gone")]
    Orphaned(#[source] io::Error),
}

/// `sbx_user1051` and its group, as Lambda numbers them.
pub const UID_INSIDE: u32 = 993;
pub const GID_INSIDE: u32 = 990;

/// R, as the builder of the trees recorded it; where nothing has been built yet, as it will.
pub fn owner(runtimes_dir: &Path) -> Result<u32, IdentityError> {
    let path = runtimes_dir.join("owner");
    let read = fs::read_to_string(&path).and_then(|text| text.trim().parse().map_err(io::Error::other));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(OWNER),
        Ok(0) => Err(io::Error::other("root may not own the trees")),
        other => other,
    }
    .map_err(|source| IdentityError::Owner { path: path.display().to_string(), source })
}

/// The host ids of one slot.
#[derive(Debug)]
pub struct Ids {
    first: u32,
    count: u32,
    next: u32,
    taken: BTreeSet<u32>,
}

/// The end of the range, which belongs to `unpack`.
pub const UNPACK_IDS: u32 = 1024;

impl Ids {
    /// `number` decides where to begin, so that a launcher that takes a dead one's slot does not begin with the dead
    /// one's latest ids.
    pub fn of_slot(config: &Config, slot: u32, number: u32) -> Result<Self, IdentityError> {
        let launchers = config.launcher_count().max(1);
        let count = config.id_count.saturating_sub(UNPACK_IDS) / launchers;
        if slot >= launchers || count == 0 {
            return Err(IdentityError::NoShare { slot, id_count: config.id_count });
        }
        Ok(Self { first: config.first_id + slot * count, count, next: number.wrapping_mul(257) % count, taken: BTreeSet::new() })
    }

    /// The id that was given back longest ago, or never taken. `None` when all are taken.
    pub fn take(&mut self) -> Option<u32> {
        let free = (0..self.count).map(|i| (self.next + i) % self.count).find(|id| !self.taken.contains(id))?;
        self.taken.insert(free);
        self.next = (free + 1) % self.count;
        Some(self.first + free)
    }

    pub fn give_back(&mut self, id: u32) {
        self.taken.remove(&(id - self.first));
    }
}

/// One extent of an id map: one id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    pub inside: u32,
    pub outside: u32,
}

/// The id maps of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maps {
    pub uids: [Mapped; 2],
    pub gids: [Mapped; 2],
}

impl Maps {
    pub fn of(owner: u32, user: u32) -> Self {
        let root = Mapped { inside: 0, outside: owner };
        let mapped = |inside| [root, Mapped { inside, outside: user }];
        Self { uids: mapped(UID_INSIDE), gids: mapped(GID_INSIDE) }
    }
}

fn text(map: &[Mapped; 2]) -> String {
    map.iter().map(|one| format!("{} {} 1\n", one.inside, one.outside)).collect()
}

/// A user namespace, held by descriptor.
#[derive(Debug)]
pub struct UserNamespace {
    namespace: File,
}

/// Inside, no namespace of any kind can be made: a second lock, behind seccomp.
const LOCKED: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

impl UserNamespace {
    /// A namespace needs a first process. It waits until its ids are mapped, then locks the namespace from within and ends.
    pub fn create(alone: &SingleThreaded, maps: &Maps) -> Result<Self, IdentityError> {
        let helper = |step| move |source: io::Error| IdentityError::Helper { step, source };
        let (mapped, mapping) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| helper("pipe")(errno.into()))?;
        let child = clone3(alone, CloneFlags::CLONE_NEWUSER, None, |_| {
            // Its own copy of the write end would hide the launcher's death from it.
            let _ = close(mapping.as_raw_fd());
            match lock_after(&mapped) {
                Ok(()) => 0,
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            }
        })
        .map_err(helper("start"))?;
        let made = open_and_map(child.pid.as_raw(), maps);
        // Also after a failure: the end of the pipe lets the helper go on, and it fails or does no harm.
        if made.is_ok() {
            nix::unistd::write(&mapping, b"m").map_err(|errno| helper("release")(errno.into()))?;
        }
        drop(mapping);
        let ended = waitid(Id::PIDFd(child.pidfd.as_fd()), WaitPidFlag::WEXITED).map_err(io::Error::from);
        match ended.map_err(helper("wait"))? {
            WaitStatus::Exited(_, 0) => made,
            WaitStatus::Exited(_, errno) => made.and(Err(helper("lock")(io::Error::from_raw_os_error(errno)))),
            _ => made.and(Err(helper("lock")(io::Error::from_raw_os_error(libc::EINTR)))),
        }
    }
}

/// Helper: one byte says that the maps are there; the end of the pipe, that they never will be.
fn lock_after(mapped: &OwnedFd) -> io::Result<()> {
    if nix::unistd::read(mapped, &mut [0])? == 0 {
        return Err(io::Error::from_raw_os_error(libc::EOWNERDEAD));
    }
    LOCKED.iter().try_for_each(|kind| fs::write(format!("/proc/sys/user/max_{kind}_namespaces"), "0"))
}

fn open_and_map(pid: i32, maps: &Maps) -> Result<UserNamespace, IdentityError> {
    let namespace = File::open(format!("/proc/{pid}/ns/user"))
        .map_err(|source| IdentityError::Helper { step: "open the namespace", source })?;
    for (file, map) in [("uid_map", &maps.uids), ("gid_map", &maps.gids)] {
        let (file, text) = (format!("/proc/{pid}/{file}"), text(map));
        fs::write(&file, &text).map_err(|source| IdentityError::Map { file, text, source })?;
    }
    Ok(UserNamespace { namespace })
}

/// Child of a launcher, on its way into a running container whose init `process` is: the user namespace of that one.
pub fn follow_into_user_namespace(process: BorrowedFd<'_>) -> Result<(), IdentityError> {
    setns(process, CloneFlags::CLONE_NEWUSER).map_err(|errno| IdentityError::Call("setns", errno.into()))
}

/// Child. Refills the capabilities and the bounding set, and clears the securebits, of whoever enters.
pub fn enter_user_namespace(user: &UserNamespace) -> Result<(), IdentityError> {
    setns(&user.namespace, CloneFlags::CLONE_NEWUSER).map_err(|errno| IdentityError::Call("setns", errno.into()))
}

/// Child. Takes no capability away: host uid 0, which it leaves, is not root inside, because it is not mapped.
pub fn become_user(uid: u32, gid: u32) -> Result<(), IdentityError> {
    let call = |name| move |errno: nix::Error| IdentityError::Call(name, errno.into());
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setgroups(&[]).map_err(call("setgroups"))?;
    setresgid(gid, gid, gid).map_err(call("setresgid"))?;
    setresuid(uid, uid, uid).map_err(call("setresuid"))
}

/// What root of a container's user namespace keeps: to look at and to end what belongs to the function's user. Each counts for files
/// and processes of the two ids that exist inside, and for nothing else.
pub const ROOT_INSIDE: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::FOWNER).union(CapabilitySet::KILL);

/// Child: no way back to any capability, then none at all.
pub fn drop_all_capabilities() -> Result<(), IdentityError> {
    keep_capabilities(CapabilitySet::empty())
}

/// Child: no way back to any capability but these, which stay across every exec. The order is forced: the bits and the
/// bounding set need CAP_SETPCAP, and once the bits are locked nothing becomes ambient.
pub fn keep_capabilities(kept: CapabilitySet) -> Result<(), IdentityError> {
    let call = |name| move |errno: rustix::io::Errno| IdentityError::Call(name, errno.into());
    if !kept.is_empty() {
        let all = rustix::thread::capabilities(None).map_err(call("capget"))?;
        rustix::thread::set_capabilities(None, CapabilitySets { inheritable: kept, ..all }).map_err(call("capset"))?;
        for capability in kept.iter() {
            rustix::thread::configure_capability_in_ambient_set(capability, true).map_err(call("raise ambient capabilities"))?;
        }
    }
    let bits = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    rustix::thread::set_capabilities_secure_bits(bits).map_err(call("lock securebits"))?;
    for capability in (0..64).map(|number| CapabilitySet::from_bits_retain(1 << number)) {
        if kept.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Behind the last one that this kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            Err(errno) => return Err(call("drop the bounding set")(errno)),
        }
    }
    rustix::thread::set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: kept })
        .map_err(call("capset"))
}

/// Child: dies with the launcher. After the last change of ids, which clears this silently; then one look whether the
/// launcher died before. `life` is the read end of the pipe whose only write end is the launcher's: the child has closed its copy.
pub fn die_with_launcher(life: BorrowedFd<'_>) -> Result<(), IdentityError> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|errno| IdentityError::Call("PR_SET_PDEATHSIG", errno.into()))?;
    let mut look = [PollFd::new(life, PollFlags::POLLIN)];
    let ended = poll(&mut look, PollTimeout::ZERO).map_err(|errno| IdentityError::Call("poll", errno.into()))?;
    if ended == 0 { Ok(()) } else { Err(IdentityError::Orphaned(io::Error::from_raw_os_error(libc::EOWNERDEAD))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(number: u32) -> Ids {
        let config = Config { first_id: 100_000, id_count: 4096, launchers: 2, ..Config::default() };
        Ids::of_slot(&config, 1, number).unwrap()
    }

    #[test]
    fn before_anything_is_built_trees_will_be_rs_and_never_roots() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(owner(directory.path()).unwrap(), OWNER);
        for (text, good) in [("7\n", true), ("0\n", false), ("R\n", false)] {
            fs::write(directory.path().join("owner"), text).unwrap();
            assert_eq!(owner(directory.path()).is_ok(), good, "{text}");
        }
    }

    #[test]
    fn an_id_is_not_taken_again_soon() {
        let mut ids = ids(0);
        let first = ids.take().unwrap();
        ids.give_back(first);
        let later: Vec<u32> = (1..ids.count).map(|_| ids.take().unwrap()).collect();
        assert!(!later.contains(&first));
        assert_eq!(ids.take(), Some(first));
        assert_eq!(ids.take(), None);
    }

    #[test]
    fn slots_share_the_range_and_leave_the_end_to_unpack() {
        let mut ids = ids(7);
        while let Some(id) = ids.take() {
            assert!((100_000 + 1536..100_000 + 3072).contains(&id), "{id}");
        }
    }

    #[test]
    fn a_slot_beyond_the_configured_ones_is_refused() {
        let config = Config { launchers: 2, ..Config::default() };
        assert!(Ids::of_slot(&config, 2, 0).is_err());
    }

    #[test]
    fn maps_have_two_ids_each() {
        let maps = Maps::of(7, 8);
        assert_eq!(text(&maps.uids), "0 7 1\n993 8 1\n");
        assert_eq!(text(&maps.gids), "0 7 1\n990 8 1\n");
    }
}
