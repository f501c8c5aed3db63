//! Tells systemd, or whoever else set NOTIFY_SOCKET, how it goes, in words for `systemctl status`: sd_notify(3).
//!
//! Which words there are, and what the environment says, is sd-notify's. The sending is ours: that library's waits for room in
//! the receiver's queue, where one who does not read would stop the supervisor, and it knows no abstract names.
//!
//! The watchdog is fed by the supervisor's loop and nothing else. When that stands still, systemd kills it and starts another;
//! a server that is silent is the supervisor's own business ([`super::course`]).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tracing::warn;

/// While it starts or stops, systemd is asked for so much more time, again and again as long as the loop runs: its limits are
/// for a service that has stopped making progress, and a drain takes as long as `drain_s` allows.
const MORE_TIME: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_secs(15);
/// Characters. The log has it whole.
const LONGEST_STATUS: usize = 800;

/// Whom to tell, if anybody, and when the next sign of life is due.
#[derive(Debug)]
pub struct Notify {
    to: Option<OsString>,
    /// How often the watchdog is fed.
    feed_every: Option<Duration>,
    fed: Option<Instant>,
    /// Starting or stopping, and when more time was asked for.
    on_the_clock: Option<Option<Instant>>,
    /// Said once that nobody hears.
    unheard: bool,
}

impl Notify {
    pub fn from_environment() -> Self {
        let to = std::env::var_os("NOTIFY_SOCKET").filter(|to| !to.is_empty());
        // Half of it is what systemd advises; a third leaves room for a loop that is held up for a moment.
        Self::new(to, sd_notify::watchdog_enabled().map(|limit| limit / 3))
    }

    fn new(to: Option<OsString>, feed_every: Option<Duration>) -> Self {
        Self { to, feed_every, fed: None, on_the_clock: Some(None), unheard: false }
    }

    pub fn status(&mut self, text: &str) {
        self.tell(&[NotifyState::Status(&one_line(text))]);
    }

    /// The doors are open; also the end of a reload.
    pub fn ready(&mut self, status: &str) {
        self.on_the_clock = None;
        self.tell(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    pub fn reloading(&mut self) {
        let now = NotifyState::monotonic_usec_now().ok();
        let states = [Some(NotifyState::Reloading), now, Some(NotifyState::Status("reading the configuration again"))];
        self.tell(&states.into_iter().flatten().collect::<Vec<_>>());
    }

    pub fn stopping(&mut self, status: &str) {
        self.on_the_clock = Some(None);
        self.tell(&[NotifyState::Stopping, NotifyState::Status(&one_line(status))]);
        self.alive(Instant::now());
    }

    /// The reason why it is about to end.
    pub fn failed(&mut self, error: &anyhow::Error) {
        let text = one_line(&format!("{error:#}"));
        let errno = errno(error).map(NotifyState::Errno);
        let states: Vec<_> = [Some(NotifyState::Status(&text)), errno].into_iter().flatten().collect();
        self.tell(&states);
    }

    /// To be called in every turn of the loop: it is alive.
    pub fn alive(&mut self, now: Instant) {
        let mut states = Vec::new();
        if let Some(asked) = &mut self.on_the_clock {
            if asked.is_none_or(|at| now.saturating_duration_since(at) >= ASK_EVERY) {
                *asked = Some(now);
                states.push(NotifyState::ExtendTimeoutUsec(MORE_TIME.as_micros() as u32));
            }
        }
        if self.feed_every.is_some_and(|every| self.fed.is_none_or(|at| now.saturating_duration_since(at) >= every)) {
            self.fed = Some(now);
            states.push(NotifyState::Watchdog);
        }
        if !states.is_empty() {
            self.tell(&states);
        }
    }

    /// When [`Self::alive`] is due, although nothing happens. `None` where nobody listens.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.to.as_ref()?;
        let more_time = self.on_the_clock.flatten().map(|at| at + ASK_EVERY);
        let food = self.fed.zip(self.feed_every).map(|(at, every)| at + every);
        [more_time, food].into_iter().flatten().min()
    }

    fn tell(&mut self, states: &[NotifyState<'_>]) {
        let text: Vec<String> = states.iter().map(ToString::to_string).collect();
        if let Err(error) = self.send(&text.join("\n")) {
            if !std::mem::replace(&mut self.unheard, true) {
                warn!(%error, "whoever started us (NOTIFY_SOCKET) does not hear how it goes");
            }
        }
    }

    fn send(&self, text: &str) -> io::Result<()> {
        let Some(to) = &self.to else { return Ok(()) };
        let address = match to.as_bytes() {
            // systemd's way to write an abstract socket.
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
        };
        let socket = UnixDatagram::unbound()?;
        // A full queue must not stop the supervisor; systemd reads its own quickly.
        socket.set_nonblocking(true)?;
        socket.send_to_addr(text.as_bytes(), &address).map(drop)
    }
}

/// A message has a line for each word. What a configuration's faults say comes in lines of its own.
fn one_line(text: &str) -> String {
    // A message of more than 4 KiB is not taken.
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ").chars().take(LONGEST_STATUS).collect()
}

/// What the kernel said first.
fn errno(error: &anyhow::Error) -> Option<u32> {
    let code = error.chain().find_map(|cause| {
        let of_io = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        of_io.or_else(|| cause.downcast_ref::<nix::Error>().map(|errno| *errno as i32))
    });
    u32::try_from(code?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that has been said.
    fn heard(by: &UnixDatagram) -> Vec<String> {
        by.set_nonblocking(true).unwrap();
        let mut text = [0; 4096];
        std::iter::from_fn(|| by.recv(&mut text).ok().map(|length| String::from_utf8_lossy(&text[..length]).into_owned()))
            .collect()
    }

    fn told(feed_every: Option<Duration>) -> (Notify, UnixDatagram, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        (Notify::new(Some(path.into()), feed_every), socket, directory)
    }

    #[test]
    fn a_path_and_an_abstract_name_both_hear() {
        let (mut notify, socket, _directory) = told(None);
        notify.ready("open");
        assert_eq!(heard(&socket), ["READY=1\nSTATUS=open"]);

        let name = format!("kiln-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Notify::new(Some(format!("@{name}").into()), None).status("two\n  lines");
        assert_eq!(heard(&socket), ["STATUS=two lines"]);
    }

    #[test]
    fn nobody_to_tell_is_no_error_and_wakes_nobody() {
        let mut notify = Notify::new(None, Some(Duration::from_secs(1)));
        notify.ready("open");
        notify.alive(Instant::now());
        assert_eq!(notify.next_deadline(), None);
        assert!(!notify.unheard);
    }

    #[test]
    fn the_watchdog_is_fed_when_it_is_due_and_not_more_often() {
        let every = Duration::from_secs(10);
        let (mut notify, socket, _directory) = told(Some(every));
        let now = Instant::now();
        notify.ready("open");
        heard(&socket);
        for seconds in [0, 1, 9, 10, 11, 20] {
            notify.alive(now + Duration::from_secs(seconds));
        }
        assert_eq!(heard(&socket), ["WATCHDOG=1"; 3]);
        assert_eq!(notify.next_deadline(), Some(now + Duration::from_secs(30)));
    }

    #[test]
    fn more_time_is_asked_for_while_it_starts_and_stops_only() {
        let (mut notify, socket, _directory) = told(None);
        let more = format!("EXTEND_TIMEOUT_USEC={}", MORE_TIME.as_micros());
        let now = Instant::now();
        notify.alive(now);
        notify.alive(now + ASK_EVERY / 2);
        notify.alive(now + ASK_EVERY);
        assert_eq!(heard(&socket), [more.as_str(); 2]);
        notify.ready("open");
        notify.alive(now + 5 * ASK_EVERY);
        assert_eq!((heard(&socket).len(), notify.next_deadline()), (1, None));
        notify.stopping("draining");
        assert_eq!(heard(&socket), ["STOPPING=1\nSTATUS=draining", &more]);
        assert!(notify.next_deadline().is_some_and(|at| at < now + MORE_TIME));
    }

    #[test]
    fn a_failure_is_told_with_its_errno() {
        let (mut notify, socket, _directory) = told(None);
        let error = anyhow::Error::new(io::Error::from_raw_os_error(libc::EADDRINUSE)).context("open the socket /run/x");
        notify.failed(&error);
        let text = heard(&socket).remove(0);
        assert!(text.starts_with("STATUS=open the socket /run/x: ") && text.ends_with("\nERRNO=98"), "{text}");
    }

    #[test]
    fn one_who_does_not_read_holds_up_nobody() {
        let (mut notify, _socket, _directory) = told(None);
        for _ in 0..100_000 {
            notify.status("again");
            if notify.unheard {
                return;
            }
        }
        panic!("its queue is never full");
    }
}
