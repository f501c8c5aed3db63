//! Directories with their owners, and the two doors' sockets (DESIGN 10).
//!
//! ```text
//! run_dir    root:root 0755   kiln.sock root:kiln-invoke 0660, control.sock root:kiln-admin 0660, lock, cgroups, trees/
//! state_dir  root:kiln 0750   db/, logs/ kiln:kiln 0700, code/ root:kiln 0750, staging/ root:root 0700, lock
//! ```
//!
//! So the server reads code (GetFunction's zip) but writes only its database and the logs; what an unpack wrote is out of everybody's
//! reach until a launcher has walked over it; and no uid of a container can enter state_dir at all.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid};

use super::check::Identities;
use crate::config::Config;

#[derive(Debug, thiserror::Error)]
pub enum PremisesError {
    #[error("make the directory {path}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("open the socket {path}")]
    Socket { path: PathBuf, source: io::Error },
}

/// Both stay open as long as the supervisor lives: callers queue while the server is replaced.
#[derive(Debug)]
pub struct Doors {
    pub api: UnixListener,
    pub control: UnixListener,
}

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
    directory(&staging(config), 0o700, ROOT)
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

/// Opens both doors; a dead predecessor's socket files go first.
pub fn open_doors(config: &Config, ids: &Identities) -> Result<Doors, PremisesError> {
    Ok(Doors { api: door(&config.api_socket(), ids.invoke)?, control: door(&config.control_socket(), ids.admin)? })
}

fn door(path: &Path, group: Gid) -> Result<UnixListener, PremisesError> {
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

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// At a clean stop, all but the lock.
pub fn clear_run_dir(config: &Config) -> Result<(), PremisesError> {
    for path in [config.api_socket(), config.control_socket()] {
        remove_if_there(&path).map_err(|source| PremisesError::Socket { path, source })?;
    }
    match fs::remove_dir(config.run_dir.join("trees")) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(PremisesError::Directory { path: config.run_dir.join("trees"), source })
        }
        _ => Ok(()),
    }
}
