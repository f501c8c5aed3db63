//! Directories with their owners, and the two doors' sockets.
//!
//! ```text
//! run_dir    root:root 0755   kiln.sock root:kiln-invoke 0660 (and kiln-admin, by an ACL), control.sock root:kiln-admin 0660,
//!                             lock, cgroups, trees/
//! state_dir  root:kiln 0750   db/, logs/ kiln:kiln 0700, code/ root:kiln 0750, staging/ root:root 0700, lock
//! ```
//!
//! So the server reads code (GetFunction's zip) but writes only its database and the logs; what an unpack wrote is out of everybody's
//! reach until a launcher has walked over it; and no uid of a container can enter state_dir at all.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid};
use rustix::fs::{XattrFlags, setxattr};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use tracing::warn;

use super::check::Identities;
use super::given::{CONTROL, Given, GivenError, INVOKE, Wanted};
use crate::config::Config;

#[derive(Debug, thiserror::Error)]
pub enum PremisesError {
    #[error("make the directory {path}{}", cure(source))]
    Directory { path: PathBuf, source: io::Error },
    #[error("open the socket {path}")]
    Socket { path: PathBuf, source: io::Error },
    #[error(
        "somebody else listens on {path}: stop it first. Where systemd holds the door, start kilnd by systemctl start kilnd, or \
         systemctl stop kilnd.socket kilnd-control.socket"
    )]
    Taken { path: PathBuf },
    #[error(transparent)]
    Given(#[from] GivenError),
}

/// Under systemd everything is read-only but what the unit names.
fn cure(why: &io::Error) -> &'static str {
    match why.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            " (run by systemd? A directory of your own needs `ReadWritePaths=` in a drop-in: systemctl edit kilnd)"
        }
        _ => "",
    }
}

/// Both stay open as long as the supervisor lives: callers queue while the server is replaced.
#[derive(Debug)]
pub struct Doors {
    pub api: UnixListener,
    pub control: UnixListener,
    /// The socket files that we made, and have to remove. The others are whose who passed them.
    pub own: Vec<PathBuf>,
}

/// A predecessor that was killed leaves a server that is dying, too.
const STILL_HELD: Duration = Duration::from_secs(5);

const ROOT: (Uid, Gid) = (Uid::from_raw(0), Gid::from_raw(0));

/// Before the locks, which live in them.
pub fn outer_directories(config: &Config, ids: &Identities) -> Result<(), PremisesError> {
    directory(&config.run_dir, 0o755, ROOT)?;
    directory(&config.state_dir, 0o750, (ROOT.0, ids.server.1))
}

/// After the locks: nobody else works here.
pub fn inner_directories(config: &Config, ids: &Identities) -> Result<(), PremisesError> {
    directory(&config.run_dir.join("trees"), 0o700, ROOT)?;
    directory(&config.state_dir.join("db"), 0o700, ids.server)?;
    directory(&config.logs_dir(), 0o700, ids.server)?;
    directory(&code(config), 0o750, (ROOT.0, ids.server.1))?;
    directory(&staging(config), 0o700, ROOT)?;
    // Where nothing has been built yet, launchers hold what the builder will fill. What is there is the builder's, or other instances'.
    let runtimes = [config.runtimes_dir.clone(), config.runtimes_dir.join("sets"), config.runtimes_dir.join("trees")];
    runtimes.iter().filter(|path| !path.is_dir()).try_for_each(|path| directory(path, 0o755, ROOT))
}

pub fn code(config: &Config) -> PathBuf {
    config.state_dir.join("code")
}

pub fn staging(config: &Config) -> PathBuf {
    config.state_dir.join("staging")
}

/// `path` as a directory with this mode and owner; parents are made for all to enter.
fn directory(path: &Path, mode: u32, (uid, gid): (Uid, Gid)) -> Result<(), PremisesError> {
    let make = || {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        match fs::DirBuilder::new().mode(mode).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && fs::symlink_metadata(path)?.is_dir() => {}
            made => made?,
        }
        chown(path, Some(uid.as_raw()), Some(gid.as_raw()))?;
        // Again: the umask had its say, and an older directory its own mode.
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    make().map_err(|source| PremisesError::Directory { path: path.to_owned(), source })
}

/// Takes the doors that were passed, and opens what is missing of the two; a dead predecessor's socket files go first.
pub fn open_doors(config: &Config, ids: &Identities, mut given: Given) -> Result<Doors, PremisesError> {
    let mut own = Vec::new();
    let mut open = |name, path: PathBuf, group: (&str, Gid)| {
        let wanted = Wanted { name, path, group };
        if let Some(listener) = given.door(&wanted)? {
            return Ok(listener);
        }
        let listener = door(&wanted.path, group.1)?;
        own.push(wanted.path);
        Ok::<_, PremisesError>(listener)
    };
    let api = open(INVOKE, config.api_socket(), (&config.invoke_group, ids.invoke))?;
    let control = open(CONTROL, config.control_socket(), (&config.admin_group, ids.admin))?;
    // Whoever may manage functions comes by the same door as who may invoke them, and need not be in both groups. No socket unit
    // can say so.
    match open_to(&config.api_socket(), ids.admin) {
        Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {
            let (admin, invoke) = (&config.admin_group, &config.invoke_group);
            warn!("run_dir's file system has no ACLs: members of {admin} need to be in {invoke} too");
        }
        opened => opened.map_err(|source| PremisesError::Socket { path: config.api_socket(), source })?,
    }
    Ok(Doors { api, control, own })
}

/// Adds a second group to those who may open the socket at `path`: an ACL as acl(5) describes it, in the kernel's own
/// form (linux/posix_acl_xattr.h): a version, then { tag, permissions, id } for each entry, all in little endian.
///
/// Where the owning group may not open it, somebody wants it for root alone.
fn open_to(path: &Path, group: Gid) -> io::Result<()> {
    if fs::symlink_metadata(path)?.permissions().mode() & 0o020 == 0 {
        return Ok(());
    }
    const VERSION: u32 = 2;
    const OWNER: u16 = 0x01;
    const OWNING_GROUP: u16 = 0x04;
    const GROUP: u16 = 0x08;
    const MASK: u16 = 0x10;
    const OTHERS: u16 = 0x20;
    const READ_WRITE: u16 = 6;
    const NOBODY: u32 = u32::MAX;
    let mut acl = VERSION.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (OWNER, READ_WRITE, NOBODY),
        (OWNING_GROUP, READ_WRITE, NOBODY),
        (GROUP, READ_WRITE, group.as_raw()),
        (MASK, READ_WRITE, NOBODY),
        (OTHERS, 0, NOBODY),
    ] {
        acl.extend(tag.to_le_bytes().into_iter().chain(permissions.to_le_bytes()).chain(id.to_le_bytes()));
    }
    Ok(setxattr(path, "system.posix_acl_access", &acl, XattrFlags::empty())?)
}

fn door(path: &Path, group: Gid) -> Result<UnixListener, PremisesError> {
    let until = Instant::now() + STILL_HELD;
    while listens(path) {
        if Instant::now() >= until {
            return Err(PremisesError::Taken { path: path.to_owned() });
        }
        thread::sleep(Duration::from_millis(50));
    }
    let open = || {
        remove_if_there(path)?;
        // Nobody can connect between bind and chown.
        let before = umask(Mode::from_bits_truncate(0o777));
        let listener = UnixListener::bind(path);
        umask(before);
        let listener = listener?;
        chown(path, Some(0), Some(group.as_raw()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
        Ok(listener)
    };
    open().map_err(|source| PremisesError::Socket { path: path.to_owned(), source })
}

/// Whether a living process has this door. Its callers would lose it if we took its name away.
fn listens(path: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connected = SocketAddrUnix::new(path)
        .and_then(|address| connect(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?, &address));
    // AGAIN: its queue is full.
    matches!(connected, Ok(()) | Err(Errno::AGAIN))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// At a clean stop, all but the lock, and the doors that are not ours (`own` are).
pub fn clear_run_dir(run_dir: &Path, own: &[PathBuf]) -> Result<(), PremisesError> {
    for path in own {
        remove_if_there(path).map_err(|source| PremisesError::Socket { path: path.clone(), source })?;
    }
    match fs::remove_dir(run_dir.join("trees")) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(PremisesError::Directory { path: run_dir.join("trees"), source })
        }
        _ => Ok(()),
    }
}
