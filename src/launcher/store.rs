//! Where the trees of files are: runtimes, functions' code and layers. Everything is found by digest below a directory
//! that was opened at start, so nothing that the server sends is ever part of a path.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, ResolveFlags, flock, fstat, openat, openat2};
use rustix::io::Errno;

use crate::code::Digest;
use crate::runtime::TreeId;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("open {path}")]
    Open { path: String, source: io::Error },
    #[error("read {path}")]
    Read { path: String, source: io::Error },
    #[error("lock {path}")]
    Lock { path: String, source: io::Error },
    #[error("{path} belongs to {found}, not to the owner of the trees")]
    NotOurs { path: String, found: u32, source: io::Error },
    #[error("sets/{0} is not the list of digests that its name says")]
    BadSet(TreeId),
}

#[derive(Debug)]
pub struct Store {
    pub(super) code: OwnedFd,
    pub(super) staging: OwnedFd,
    sets: OwnedFd,
    trees: OwnedFd,
    /// R, who owns every tree.
    pub(super) owner: u32,
}

/// Most trees of one runtime. They are named in one mount option of at most 255 bytes.
const MAX_TREES: usize = 10;
/// So long the builder has a tree for itself, at the most: for one rename, which removes it.
const BUILDERS_TIME: Duration = Duration::from_millis(100);
/// A longer file is no set: a digest has 64 digits and a line end.
const MAX_SET: u64 = 65 * MAX_TREES as u64;

impl Store {
    /// In the launcher's own mount namespace: a directory of another one's could not be cloned.
    pub fn open(state_dir: &Path, runtimes_dir: &Path, owner: u32) -> Result<Self, StoreError> {
        let open = |path: &Path| {
            openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| StoreError::Open { path: path.display().to_string(), source: errno.into() })
        };
        Ok(Self {
            code: open(&state_dir.join("code"))?,
            staging: open(&state_dir.join("staging"))?,
            sets: open(&runtimes_dir.join("sets"))?,
            trees: open(&runtimes_dir.join("trees"))?,
            owner,
        })
    }

    /// The tree of a function's code, or of a layer.
    pub fn code(&self, digest: Digest) -> Result<OwnedFd, StoreError> {
        self.tree(&self.code, "code", digest)
    }

    /// The trees of a runtime, the top one first. As long as these are open, the builder removes none of them: each holds a
    /// shared lock.
    pub fn trees(&self, tree: TreeId) -> Result<Vec<OwnedFd>, StoreError> {
        self.set(tree)?.into_iter().map(|digest| self.held_tree(digest)).collect()
    }

    fn held_tree(&self, digest: Digest) -> Result<OwnedFd, StoreError> {
        let path = format!("trees/{digest}");
        let failed = |errno: Errno| StoreError::Lock { path: path.clone(), source: errno.into() };
        let until = Instant::now() + BUILDERS_TIME;
        loop {
            // By its name, each time: what the builder has removed is not there any more.
            let found = self.tree(&self.trees, "trees", digest)?;
            // O_PATH cannot be locked.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let found = openat(&found, ".", flags, Mode::empty()).map_err(failed)?;
            match flock(&found, FlockOperation::NonBlockingLockShared) {
                Ok(()) => return Ok(found),
                Err(Errno::WOULDBLOCK) if Instant::now() < until => thread::sleep(BUILDERS_TIME / 20),
                Err(Errno::WOULDBLOCK) => {
                    // Everybody who may read a tree may lock it, and must not keep functions from running.
                    tracing::warn!(
                        path,
                        "somebody has locked a runtime's tree for themselves: what runs from it has no lock on it"
                    );
                    return Ok(found);
                }
                Err(errno) => return Err(failed(errno)),
            }
        }
    }

    fn set(&self, tree: TreeId) -> Result<Vec<Digest>, StoreError> {
        let path = format!("sets/{tree}");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file =
            beneath(&self.sets, &tree.to_string(), flags).map_err(|source| StoreError::Open { path: path.clone(), source })?;
        let mut bytes = Vec::new();
        let read = File::from(file).take(MAX_SET + 1).read_to_end(&mut bytes);
        read.map_err(|source| StoreError::Read { path, source })?;
        // The name is its own check: a file cut short or changed is not the set that was asked for.
        let good = bytes.len() as u64 <= MAX_SET && Digest::of(&bytes) == tree.0;
        let lines = std::str::from_utf8(&bytes).ok().filter(|_| good).map(|text| text.lines().map(str::parse));
        let digests = lines.and_then(|lines| lines.collect::<Result<Vec<_>, _>>().ok());
        digests.filter(|digests| !digests.is_empty()).ok_or(StoreError::BadSet(tree))
    }

    fn tree(&self, directory: &OwnedFd, room: &str, digest: Digest) -> Result<OwnedFd, StoreError> {
        let path = format!("{room}/{digest}");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let tree =
            beneath(directory, &digest.to_string(), flags).map_err(|source| StoreError::Open { path: path.clone(), source })?;
        let found = fstat(&tree).map_err(|errno| StoreError::Read { path: path.clone(), source: errno.into() })?.st_uid;
        if found == self.owner {
            Ok(tree)
        } else {
            Err(StoreError::NotOurs { path, found, source: io::Error::from_raw_os_error(libc::EPERM) })
        }
    }
}

/// Opens one entry of `directory`, through no link and no other file system.
pub(super) fn beneath(directory: impl AsFd, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    Ok(openat2(directory, name, flags | OFlags::NOFOLLOW, Mode::empty(), resolve)?)
}
