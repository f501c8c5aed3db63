//! The doors that a service manager holds and lends us: systemd's socket units, by the rules of sd_listen_fds(3).
//!
//! In the supervisor, before anything else is opened. Callers queue on such a socket while kilnd is not there, so it is
//! never closed for good, removed or given another owner here: what is wrong with it is refused, with the unit's line that
//! cures it.
//!
//! Who may open a door is its whole protection, and systemd's own default lets everybody. So a door that lets in more than the
//! configuration says is refused; one that lets in fewer is told.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::unistd::Gid;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use tracing::{info, warn};

use crate::sys::descriptor;

/// Names by which the units pass them: FileDescriptorName=.
pub const INVOKE: &str = "invoke";
pub const CONTROL: &str = "control";

#[derive(Debug, thiserror::Error)]
pub enum GivenError {
    #[error("read which sockets were passed (LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES; systemd sets them)")]
    Variables(#[source] io::Error),
    #[error("take over the socket {name:?} that was passed as descriptor {number}")]
    Descriptor { name: String, number: i32, source: io::Error },
    #[error(
        "a socket named {name:?} was passed: kilnd takes {INVOKE:?} and {CONTROL:?}. Set FileDescriptorName= in its socket unit"
    )]
    Unknown { name: String },
    #[error("two sockets named {name:?} were passed: a socket unit of Kiln's has one ListenStream=, and each unit its own name")]
    Twice { name: &'static str },
    #[error("what was passed as {name:?} is no listening Unix stream socket: {unit} needs ListenStream={path} and Accept=no")]
    Kind { name: &'static str, unit: &'static str, path: PathBuf },
    #[error(
        "the socket that was passed as {name:?} is bound to {found}, and run_dir makes it {path}: set ListenStream={path} in {unit}, \
         or run_dir = {:?} in the configuration",
        .found.parent().unwrap_or(Path::new("/"))
    )]
    Elsewhere { name: &'static str, unit: &'static str, found: PathBuf, path: PathBuf },
    #[error("nobody can reach the socket that was passed as {name:?}: {path} is not there any more. systemctl restart {unit}")]
    Gone { name: &'static str, unit: &'static str, path: PathBuf },
    #[error(
        "{path} lets in more than the group {group:?} (user {uid}, group {gid}, mode {mode:04o}): set SocketUser=root, \
         SocketGroup={group} and SocketMode=0660 in {unit}, then systemctl daemon-reload, systemctl restart {unit}"
    )]
    Open { path: PathBuf, unit: &'static str, group: String, uid: u32, gid: u32, mode: u32 },
}

/// What was passed, not yet looked at.
#[derive(Debug, Default)]
pub struct Given {
    invoke: Option<OwnedFd>,
    control: Option<OwnedFd>,
}

/// One of the two doors, as the configuration wants it.
pub struct Wanted<'a> {
    pub name: &'static str,
    pub path: PathBuf,
    pub group: (&'a str, Gid),
}

impl Given {
    /// From the environment. Nothing, where the variables are not for this process.
    pub fn take() -> Result<Self, GivenError> {
        let mut given = Self::default();
        // Asked first: for names that are somebody else's the library has no answer but an error.
        if sd_notify::listen_fds().map_err(GivenError::Variables)?.len() == 0 {
            return Ok(given);
        }
        for (number, name) in sd_notify::listen_fds_with_names().map_err(GivenError::Variables)? {
            let taken = descriptor::inherited(number);
            let socket = taken.map_err(|source| GivenError::Descriptor { name: name.clone(), number, source })?;
            let (place, name) = match &*name {
                INVOKE => (&mut given.invoke, INVOKE),
                CONTROL => (&mut given.control, CONTROL),
                _ => return Err(GivenError::Unknown { name }),
            };
            if place.replace(socket).is_some() {
                return Err(GivenError::Twice { name });
            }
        }
        Ok(given)
    }

    /// The door of this name, if it was passed and is what is wanted.
    pub fn door(&mut self, wanted: &Wanted<'_>) -> Result<Option<UnixListener>, GivenError> {
        let (socket, unit) = match wanted.name {
            INVOKE => (self.invoke.take(), "kilnd.socket"),
            _ => (self.control.take(), "kilnd-control.socket"),
        };
        let Some(socket) = socket else { return Ok(None) };
        let listener = listening(socket, unit, wanted)?;
        opens_to(unit, wanted)?;
        info!(name = wanted.name, path = %wanted.path.display(), "the door was passed to us, and stays when we stop");
        Ok(Some(listener))
    }
}

/// It listens, and where it should.
fn listening(socket: OwnedFd, unit: &'static str, wanted: &Wanted<'_>) -> Result<UnixListener, GivenError> {
    let (name, path) = (wanted.name, wanted.path.clone());
    let right = socket_domain(&socket) == Ok(AddressFamily::UNIX)
        && socket_type(&socket) == Ok(SocketType::STREAM)
        && socket_acceptconn(&socket) == Ok(true);
    if !right {
        return Err(GivenError::Kind { name, unit, path });
    }
    let listener = UnixListener::from(socket);
    let found = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned)).unwrap_or_default();
    // /var/run is /run on most hosts.
    let real = |path: &Path| Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    if found != path && (real(&found).is_none() || real(&found) != real(&path)) {
        return Err(GivenError::Elsewhere { name, unit, found, path });
    }
    Ok(listener)
}

fn opens_to(unit: &'static str, wanted: &Wanted<'_>) -> Result<(), GivenError> {
    let (path, (group, id)) = (&wanted.path, wanted.group);
    let about = match std::fs::symlink_metadata(path) {
        Ok(about) if about.file_type().is_socket() => about,
        _ => return Err(GivenError::Gone { name: wanted.name, unit, path: path.clone() }),
    };
    let (uid, gid, mode) = (about.uid(), about.gid(), about.mode() & 0o777);
    // Connecting takes the right to write.
    let to_group = mode & 0o020 != 0;
    if mode & 0o002 != 0 || uid != 0 || to_group && gid != id.as_raw() && gid != 0 {
        return Err(GivenError::Open { path: path.clone(), unit, group: group.to_owned(), uid, gid, mode });
    }
    if !to_group || gid != id.as_raw() {
        let cure = format!("set SocketGroup={group} and SocketMode=0660 in {unit}, and restart it");
        warn!(path = %path.display(), gid, mode = format!("{mode:04o}"), cure, "members of {group} cannot open this door");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn wanted(path: &Path) -> Wanted<'static> {
        Wanted { name: INVOKE, path: path.to_owned(), group: ("kiln-invoke", nix::unistd::getgid()) }
    }

    fn refusal(socket: impl Into<OwnedFd>, path: &Path) -> String {
        let mut given = Given { invoke: Some(socket.into()), control: None };
        given.door(&wanted(path)).expect_err("this one must be refused").to_string()
    }

    #[test]
    fn what_is_no_door_is_refused_with_the_line_of_the_unit_that_cures_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kiln.sock");
        let line = format!("ListenStream={}", path.display());
        let connected = std::os::unix::net::UnixStream::pair().unwrap().0;
        assert!(refusal(connected, &path).contains(&line), "a stream that does not listen");
        let datagrams = std::os::unix::net::UnixDatagram::bind(directory.path().join("datagram")).unwrap();
        assert!(refusal(datagrams, &path).contains(&line), "datagrams");
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(refusal(tcp, &path).contains(&line), "a TCP socket");
        assert!(refusal(std::fs::File::open("/dev/null").unwrap(), &path).contains(&line), "no socket at all");
        let elsewhere = UnixListener::bind(directory.path().join("other.sock")).unwrap();
        let told = refusal(elsewhere, &path);
        assert!(told.contains(&line) && told.contains("other.sock") && told.contains("kilnd.socket"), "{told}");
    }

    #[test]
    fn a_door_whose_file_is_gone_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kiln.sock");
        let socket = UnixListener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(refusal(socket, &path).contains("systemctl restart kilnd.socket"));
    }

    #[test]
    fn a_door_that_is_open_to_everybody_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kiln.sock");
        let socket = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        let told = refusal(socket, &path);
        assert!(told.contains("SocketGroup=kiln-invoke") && told.contains("mode 0666"), "{told}");
    }

    #[test]
    fn nothing_that_was_passed_is_no_fault() {
        assert!(Given::default().door(&wanted(Path::new("/nowhere/kiln.sock"))).unwrap().is_none());
    }
}
