//! systemd's journal by its native protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>): one datagram an entry, fields with
//! their lengths, so that bytes of any kind and line ends pass as they are; what is too large for a datagram goes as a memfd.
//!
//! Not by a library: those that there are (tracing-journald, libsystemd) send on a blocking socket, and a journal that has
//! stopped with a full queue would stop the sender with it, the server's event loop and the supervisor included.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::stat::fstat;
use nix::sys::time::{TimeVal, TimeValLike};

use crate::sys::memfd::sealed;

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// Syslog's priorities, as the journal sorts by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    Error = 3,
    Warning = 4,
    Info = 6,
    Debug = 7,
}

/// One entry as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry(Vec<u8>);

impl Entry {
    pub fn new(identifier: &str, priority: Priority, message: &[u8]) -> Self {
        let mut entry = Self(Vec::with_capacity(256 + message.len()));
        entry.put("PRIORITY", (priority as u8).to_string().as_bytes());
        entry.put("SYSLOG_IDENTIFIER", identifier.as_bytes());
        entry.put("MESSAGE", message);
        entry
    }

    /// `name` is of A-Z, 0-9 and _ and begins with a letter; the value may be anything.
    pub fn put(&mut self, name: &str, value: &[u8]) {
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'\n');
        self.0.extend_from_slice(&(value.len() as u64).to_le_bytes());
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }
}

/// A way into the journal.
pub struct Journald {
    socket: OwnedFd,
    /// Looked up for each entry: a journal that was replaced is found again.
    address: UnixAddr,
}

impl Journald {
    /// The journal that stderr is connected with; `None` where it is not, or cannot be reached natively.
    pub fn of_stderr() -> Option<Self> {
        let stream = std::env::var("JOURNAL_STREAM").ok()?;
        let stderr = fstat(io::stderr()).ok()?;
        let is_journal = is_stream(&stream, stderr.st_dev, stderr.st_ino);
        let listens = || std::fs::metadata(SOCKET).is_ok_and(|file| file.file_type().is_socket());
        if is_journal && listens() { Self::at(Path::new(SOCKET)).ok() } else { None }
    }

    /// A journal that listens there.
    pub fn at(path: &Path) -> io::Result<Self> {
        let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Self { socket, address: UnixAddr::new(path)? })
    }

    /// Never blocks: `WouldBlock` when the journal's queue is full.
    pub fn offer(&self, entry: &Entry) -> io::Result<()> {
        self.send_with(entry, MsgFlags::MSG_DONTWAIT)
    }

    /// Waits until the journal has room, at most as long as [`Self::wait_at_most`] says. For a thread that may.
    pub fn send(&self, entry: &Entry) -> io::Result<()> {
        self.send_with(entry, MsgFlags::empty())
    }

    /// How long [`Self::send`] waits; without it, without end.
    pub fn wait_at_most(&self, limit: Duration) -> io::Result<()> {
        let limit = TimeVal::milliseconds(i64::try_from(limit.as_millis()).unwrap_or(i64::MAX));
        Ok(setsockopt(&self.socket, sockopt::SendTimeout, &limit)?)
    }

    fn send_with(&self, entry: &Entry, flags: MsgFlags) -> io::Result<()> {
        let flags = flags | MsgFlags::MSG_NOSIGNAL;
        let send = |bytes: &[IoSlice<'_>], control: &[ControlMessage<'_>]| loop {
            match sendmsg(self.socket.as_raw_fd(), bytes, control, flags, Some(&self.address)) {
                Err(Errno::EINTR) => {}
                other => return other.map(drop),
            }
        };
        match send(&[IoSlice::new(&entry.0)], &[]) {
            // Larger than a datagram may be, or than there is memory for in one piece.
            Err(Errno::EMSGSIZE | Errno::ENOBUFS) => {
                let memory = sealed(c"kiln-journal-entry", &entry.0)?;
                Ok(send(&[], &[ControlMessage::ScmRights(&[memory.as_fd().as_raw_fd()])])?)
            }
            other => Ok(other?),
        }
    }
}

/// `$JOURNAL_STREAM` is device and inode of what systemd has connected with the journal (systemd.exec(5)): by then it may be
/// something else.
fn is_stream(variable: &str, device: u64, inode: u64) -> bool {
    variable.split_once(':').is_some_and(|(dev, ino)| dev.parse() == Ok(device) && ino.parse() == Ok(inode))
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeMap;
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::RawFd;
    use std::os::unix::net::UnixDatagram;
    use std::time::Instant;

    use nix::cmsg_space;
    use nix::sys::socket::{ControlMessageOwned, recvmsg};

    use super::*;

    #[test]
    fn stderr_is_the_journal_only_if_it_is_that_very_stream() {
        assert!(is_stream("9:1234", 9, 1234));
        for other in ["9:1235", "8:1234", "9", "", "9:", "9:1234:", "a:b", "9:1234 "] {
            assert!(!is_stream(other, 9, 1234), "{other:?}");
        }
    }

    #[test]
    fn bytes_of_any_kind_pass_and_so_does_what_is_larger_than_a_datagram() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listening = UnixDatagram::bind(&path).unwrap();
        let journal = Journald::at(&path).unwrap();
        let large = [b"\xff\n".repeat(128 << 10), vec![0]].concat();
        for message in [b"a\nMESSAGE=b\n\xff\0".to_vec(), Vec::new(), large] {
            let mut entry = Entry::new("kilnd", Priority::Info, &message);
            entry.put("KILN_FUNCTION", b"f");
            journal.offer(&entry).unwrap();
            let (got, was_memory) = receive(&listening);
            assert_eq!(got, entry.0);
            assert_eq!(was_memory, message.len() > 200 << 10, "{}", message.len());
        }
    }

    /// A datagram socket's queue holds `net.unix.max_dgram_qlen` entries; who sends one more on a blocking socket waits for ever.
    #[test]
    fn a_journal_that_has_stopped_blocks_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let stopped = UnixDatagram::bind(&path).unwrap();
        let journal = Journald::at(&path).unwrap();
        let entry = Entry::new("kilnd", Priority::Info, b"x");
        let begin = Instant::now();
        let full = (0..1_000_000).map(|_| journal.offer(&entry)).find_map(Result::err).expect("a queue is bounded");
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(journal.offer(&Entry::new("kilnd", Priority::Info, &[b'x'; 1 << 20])).unwrap_err().kind(), full.kind());
        journal.wait_at_most(Duration::from_millis(20)).unwrap();
        assert_eq!(journal.send(&entry).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
        drop(stopped);
        assert!(journal.offer(&entry).is_err(), "nobody listens");
        std::fs::remove_file(&path).unwrap();
        let again = UnixDatagram::bind(&path).unwrap();
        journal.offer(&entry).expect("a new journal is found");
        assert_eq!(receive(&again).0, entry.0);
    }

    /// What a journal would see: the entry, and whether it came as a memfd.
    fn receive(listening: &UnixDatagram) -> (Vec<u8>, bool) {
        let mut bytes = vec![0; 1 << 20];
        let mut space = cmsg_space!(RawFd);
        let mut pieces = [std::io::IoSliceMut::new(&mut bytes)];
        let received =
            recvmsg::<()>(listening.as_raw_fd(), &mut pieces, Some(&mut space), MsgFlags::empty()).expect("receive an entry");
        let rights = received.cmsgs().unwrap().find_map(|message| match message {
            ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
            _ => None,
        });
        let length = received.bytes;
        match rights {
            None => {
                bytes.truncate(length);
                (bytes, false)
            }
            Some(descriptor) => {
                let mut memory = File::open(format!("/proc/self/fd/{descriptor}")).unwrap();
                nix::unistd::close(descriptor).unwrap();
                let mut bytes = Vec::new();
                memory.read_to_end(&mut bytes).unwrap();
                (bytes, true)
            }
        }
    }

    /// The fields of an entry, by name. The same name may come twice.
    pub fn fields(mut entry: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut found = Vec::new();
        while !entry.is_empty() {
            let end = entry.iter().position(|byte| *byte == b'\n').expect("a name ends its line");
            let (name, rest) = (String::from_utf8(entry[..end].to_vec()).unwrap(), &entry[end + 1..]);
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8 + length], b'\n');
            found.push((name, rest[8..8 + length].to_vec()));
            entry = &rest[8 + length + 1..];
        }
        found
    }

    /// A journal of the test's own: what was written is read again by [`Fake::entries`].
    pub struct Fake {
        _directory: tempfile::TempDir,
        listening: UnixDatagram,
    }

    impl Fake {
        pub fn start() -> (Self, Journald) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("socket");
            let listening = UnixDatagram::bind(&path).unwrap();
            listening.set_nonblocking(true).unwrap();
            (Self { _directory: directory, listening }, Journald::at(&path).unwrap())
        }

        /// What waits, in order; each entry's fields as texts.
        pub fn entries(&self) -> Vec<BTreeMap<String, String>> {
            std::iter::from_fn(|| self.next()).collect()
        }

        /// The first of them.
        pub fn next(&self) -> Option<BTreeMap<String, String>> {
            let mut bytes = vec![0; 1 << 20];
            let length = self.listening.recv(&mut bytes).ok()?;
            let text = |value: Vec<u8>| String::from_utf8_lossy(&value).into_owned();
            Some(fields(&bytes[..length]).into_iter().map(|(name, value)| (name, text(value))).collect())
        }
    }
}
