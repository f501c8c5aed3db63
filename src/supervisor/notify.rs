//! Tells systemd (or whoever set NOTIFY_SOCKET) that the doors are open, and that they will close: sd_notify(3).

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Whom to tell, if anybody.
#[derive(Debug)]
pub struct Notify {
    to: Option<OsString>,
}

impl Notify {
    pub fn from_environment() -> Self {
        Self { to: std::env::var_os("NOTIFY_SOCKET").filter(|to| !to.is_empty()) }
    }

    pub fn ready(&self) -> io::Result<()> {
        self.say("READY=1")
    }

    pub fn stopping(&self) -> io::Result<()> {
        self.say("STOPPING=1")
    }

    fn say(&self, state: &str) -> io::Result<()> {
        let Some(to) = &self.to else { return Ok(()) };
        let address = match to.as_bytes() {
            // systemd's way to write an abstract socket.
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
        };
        let socket = UnixDatagram::unbound()?;
        // A full queue must not stop the supervisor; systemd reads its own quickly.
        socket.set_nonblocking(true)?;
        socket.send_to_addr(state.as_bytes(), &address).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_an_abstract_name_both_hear() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let heard = UnixDatagram::bind(&path).unwrap();
        Notify { to: Some(path.into()) }.ready().unwrap();
        let mut text = [0; 16];
        assert_eq!(heard.recv(&mut text).unwrap(), 7);
        assert_eq!(&text[..7], b"READY=1");

        let name = format!("kiln-test-{}", std::process::id());
        let heard = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Notify { to: Some(format!("@{name}").into()) }.stopping().unwrap();
        assert_eq!(heard.recv(&mut text).unwrap(), 10);
    }

    #[test]
    fn nobody_to_tell_is_no_error() {
        Notify { to: None }.ready().unwrap();
    }
}
