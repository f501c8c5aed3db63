//! The loop: waits for signals, messages and deadlines, tells [`Course`] what has happened, and has its orders carried out
//! ([`orders`]).
//!
//! One thread; every wait is the one poll in [`Watch::run`]. Messages are read before any deadline is looked at, so that
//! a supervisor that was held up itself does not take its own delay for a silent server.

mod orders;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tracing::{debug, error, info, warn};

use super::children::Children;
use super::course::{Course, Event, Finish};
use super::listen::MetricsDoor;
use super::notify::Notify;
use super::premises::Doors;
use super::unpacking::{Answer, Unpacking};
use super::{Places, Settings};
use crate::config::Config;
use crate::config::reload::{Reload, reload};
use crate::invocation::ProcessEnd;
use crate::kill_point;
use crate::sys::packet;
use crate::wire;
use crate::wire::supervisor::{ToServer, ToSupervisor, Upkeep};

/// Messages read in one turn; the rest waits for the next, after signals had theirs.
const IN_ONE_TURN: usize = 64;

/// Between two looks for what belongs to nobody: a directory's names, read.
const LOOK: Duration = Duration::from_secs(10);

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub how: Finish,
    /// Whether the last sweep went through.
    pub clean: bool,
}

pub struct Watch<'a> {
    pub course: Course,
    pub children: Children,
    pub doors: Doors,
    pub places: Places,
    pub unpacking: Unpacking,
    pub upkeep: Upkeep,
    settings: Settings,
    notify: &'a mut Notify,
    server: Option<Server>,
    /// By number.
    launchers: HashMap<u32, Pid>,
    signals: SignalFd,
    clean: bool,
    /// Of what died, something is left for the look at strays.
    unburied: bool,
    announced: bool,
    /// There has been a server.
    started: bool,
    /// The server was hung up on since the course was last told.
    hung_up: bool,
    reload: Reloading,
    metrics: MetricsDoor,
    /// When to look for what belongs to nobody.
    look: Instant,
}

/// What became of the configuration file when it was last read again.
#[derive(Default)]
struct Reloading {
    /// The server has not said yet that it goes by it.
    pending: bool,
    /// Keys of the file that are for the next start.
    waiting: Vec<String>,
    /// Why the file was not taken.
    refused: Option<String>,
}

struct Server {
    pid: Pid,
    /// `None` once it has hung up, or cannot be talked to.
    socket: Option<OwnedFd>,
}

/// Blocks the signals that the loop reads: from here on they wait for it, and neither end nor interrupt anything. Children get an
/// empty mask ([`super::spawn`]).
pub fn block_signals() -> io::Result<SignalFd> {
    let mask = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    mask.thread_block()?;
    Ok(SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

impl<'a> Watch<'a> {
    pub fn new(
        signals: SignalFd,
        course: Course,
        children: Children,
        doors: Doors,
        places: Places,
        settings: Settings,
        notify: &'a mut Notify,
    ) -> Self {
        let config = &settings.config;
        let first = config.first_id + config.id_count - super::unpacking::IDS;
        let mut metrics = MetricsDoor::default();
        metrics.follow(config);
        Self {
            unpacking: Unpacking::new(places.staging.clone(), first),
            course,
            children,
            doors,
            places,
            settings,
            notify,
            reload: Reloading::default(),
            metrics,
            upkeep: Upkeep::default(),
            look: Instant::now() + LOOK,
            server: None,
            launchers: HashMap::new(),
            signals,
            clean: true,
            unburied: false,
            announced: false,
            started: false,
            hung_up: false,
        }
    }

    pub fn run(&mut self) -> io::Result<Ended> {
        loop {
            self.wait()?;
            let ended = self.signals().or_else(|| self.messages()).or_else(|| self.leaving()).or_else(|| self.time());
            if let Some(ended) = ended {
                self.unpacking.abandon();
                return Ok(ended);
            }
        }
    }

    fn wait(&self) -> io::Result<()> {
        let look = self.is_whole().then_some(self.look);
        let deadlines = [self.course.next_deadline(), self.unpacking.next_deadline(), self.notify.next_deadline(), look];
        let deadline = deadlines.into_iter().flatten().min();
        let timeout = match deadline {
            None => PollTimeout::NONE,
            // One more than the rest: poll counts whole milliseconds, and waking early would spin.
            Some(at) => {
                let millis = at.saturating_duration_since(Instant::now()).as_millis() + 1;
                PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut sources = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if let Some(socket) = self.server.as_ref().and_then(|server| server.socket.as_ref()) {
            sources.push(PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut sources, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn signals(&mut self) -> Option<Ended> {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            let ended = match Signal::try_from(signal.ssi_signo as i32) {
                Ok(Signal::SIGTERM | Signal::SIGINT) => {
                    info!(signal = signal.ssi_signo, from = signal.ssi_pid, "asked to stop");
                    self.happened(Event::StopAsked)
                }
                Ok(Signal::SIGCHLD) => self.reap(),
                _ => {
                    info!(from = signal.ssi_pid, "asked to read the configuration again");
                    self.read_again();
                    None
                }
            };
            if ended.is_some() {
                return ended;
            }
        }
        None
    }

    /// One SIGCHLD may stand for many ends. Only children are waited for here, so a pid in our tables is never stale.
    fn reap(&mut self) -> Option<Ended> {
        loop {
            let (pid, how) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, ProcessEnd::Exited(code)),
                Ok(WaitStatus::Signaled(pid, signal, core)) => (pid, ProcessEnd::Killed { signal: signal as i32, core }),
                Ok(WaitStatus::StillAlive) | Err(_) => return None,
                Ok(_) => continue,
            };
            let ended = self.child_ended(pid, how);
            if ended.is_some() {
                return ended;
            }
        }
    }

    fn child_ended(&mut self, pid: Pid, how: ProcessEnd) -> Option<Ended> {
        if self.server.as_ref().is_some_and(|server| server.pid == pid) {
            self.server = None;
            self.hung_up = false;
            report_end("server", pid, how);
            self.unpacking.abandon();
            self.notify.status(match self.course.is_stopping() {
                true => "stopping: removing the last containers",
                false => "the server ended, another one is started; callers queue meanwhile",
            });
            return self.happened(Event::ServerEnded);
        }
        if let Some(number) = self.launchers.iter().find(|(_, found)| **found == pid).map(|(number, _)| *number) {
            self.launchers.remove(&number);
            report_end("launcher", pid, how);
            return self.happened(Event::LauncherEnded { number });
        }
        // As pid 1 of somebody's container, we are also given strangers' orphans; reaping was all they need.
        let answer = self.unpacking.ended(pid, how);
        self.answer(answer);
        None
    }

    fn messages(&mut self) -> Option<Ended> {
        for _ in 0..IN_ONE_TURN {
            let socket = self.server.as_ref()?.socket.as_ref()?;
            match packet::receive(socket.as_fd()) {
                Ok(Some(packet)) => match wire::decode(&packet.bytes) {
                    Ok(message) => {
                        let ended = self.heard(message, packet.descriptors);
                        if ended.is_some() {
                            return ended;
                        }
                    }
                    Err(error) => self.give_up(&error),
                },
                // On its way out: it may still have books to write, and the course gives it its time.
                Ok(None) => self.hang_up(&"it has closed its socket"),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.give_up(&error),
            }
        }
        None
    }

    fn heard(&mut self, message: ToSupervisor, descriptors: Vec<OwnedFd>) -> Option<Ended> {
        match message {
            ToSupervisor::Ready => self.happened(Event::ServerReady),
            ToSupervisor::Heartbeat => self.happened(Event::Heartbeat),
            ToSupervisor::Reloaded => {
                if std::mem::take(&mut self.reload.pending) {
                    self.say_ready();
                }
                None
            }
            ToSupervisor::Unpack { order, staging } => {
                debug!(order = order.0, %staging, "unpack ordered");
                let answer = self.unpacking.take(order, staging, descriptors);
                self.answer(answer);
                None
            }
        }
    }

    /// Before any launcher that follows its server is reaped, and taken for one that died alone.
    fn leaving(&mut self) -> Option<Ended> {
        if std::mem::take(&mut self.hung_up) { self.happened(Event::ServerHungUp) } else { None }
    }

    fn time(&mut self) -> Option<Ended> {
        let now = Instant::now();
        self.notify.alive(now);
        self.unpacking.tick(now);
        let failed = self.unpacking.start(&self.children, now);
        self.answer(failed);
        let orders = self.course.tick(now);
        let ended = self.carry_out(orders);
        if self.is_whole() && self.look <= now {
            self.look_for_strays();
            // From its end on: a disk that is slow is not asked without end.
            self.look = Instant::now() + LOOK;
        }
        if !std::mem::replace(&mut self.announced, true) {
            kill_point!("supervisor-started");
        }
        ended
    }

    /// Takes over from the file what a running instance can, or nothing where anything is wrong with it.
    fn read_again(&mut self) {
        if self.course.is_stopping() {
            return info!("stopping: the configuration is not read any more");
        }
        self.notify.reloading();
        match super::read_config(self.settings.path.as_deref()).and_then(|file| self.take_over(&file)) {
            Ok(()) => {
                self.reload.refused = None;
                self.upkeep.reloads += 1;
            }
            Err(error) => {
                self.upkeep.reloads_refused += 1;
                let error = format!("{error:#}");
                error!(error, "the configuration was not taken: the one of before holds");
                self.reload.refused = Some(error);
            }
        }
        self.upkeep.reload_refused = self.reload.refused.is_some();
        self.tell_upkeep();
        // Else when the server has said that it goes by it, or its successor is ready.
        if !self.reload.pending {
            self.say_ready();
        }
    }

    fn take_over(&mut self, file: &Config) -> anyhow::Result<()> {
        let Reload { config, changed, waiting } = reload(&self.settings.config, file);
        self.children.configure(&config)?;
        self.course.set_drain(super::drain(&config));
        self.settings.config = config;
        info!(changed = changed.join(", "), "the configuration was read again");
        if !waiting.is_empty() {
            warn!(keys = waiting.join(", "), "these keys take effect at the next restart");
        }
        self.reload.waiting = waiting;
        if self.metrics.follow(&self.settings.config) {
            self.tell_metrics();
        }
        self.reload.pending = self.tell_config();
        Ok(())
    }

    /// Where the server is to serve metrics, but for control.sock.
    fn tell_metrics(&mut self) {
        let listen = self.metrics.address().map(|address| address.to_string());
        // Another descriptor of it, as whoever is told here may be hung up on.
        let listener = self.metrics.listener().map(|listener| listener.as_fd().try_clone_to_owned()).transpose();
        match listener {
            Ok(listener) => {
                let listener: Vec<BorrowedFd<'_>> = listener.iter().map(AsFd::as_fd).collect();
                self.tell(&ToServer::Metrics { listen }, &listener);
            }
            Err(error) => error!(%error, "metrics' socket could not be handed on"),
        }
    }

    fn tell_upkeep(&mut self) {
        self.tell(&ToServer::Upkeep(self.upkeep), &[]);
    }

    /// Everybody who may have something lives, or was buried: what else is there is nobody's.
    fn is_whole(&self) -> bool {
        self.course.is_serving() && self.server.as_ref().is_some_and(|server| server.socket.is_some())
    }

    fn look_for_strays(&mut self) {
        let lives = |number: u32| self.launchers.contains_key(&number);
        match self.places.sweep_strays(lives) {
            Ok(found) if found.is_nothing() => {}
            Ok(found) => {
                // What a burial had to leave is a dead one's still.
                let of = if std::mem::take(&mut self.unburied) {
                    &mut self.upkeep.after_deaths
                } else {
                    &mut self.upkeep.while_running
                };
                of.add(found);
                self.tell_upkeep();
            }
            // It is there the next time, too.
            Err(error) => warn!(error = format!("{:#}", anyhow::Error::from(error)), "look for what belongs to nobody"),
        }
    }

    /// `false`: nobody is there to be told.
    fn tell_config(&mut self) -> bool {
        let (config, waiting) = (Box::new(self.settings.config.clone()), self.reload.waiting.clone());
        self.tell(&ToServer::Reload { config, waiting }, &[]);
        self.server.as_ref().is_some_and(|server| server.socket.is_some())
    }

    /// What `systemctl status` shows as long as nothing happens.
    fn say_ready(&mut self) {
        let (run_dir, launchers) = (self.settings.config.run_dir.display(), self.launchers.len());
        let passed = if self.doors.own.is_empty() { " (sockets of systemd's)" } else { "" };
        let mut text = format!("serving on kiln.sock and control.sock in {run_dir}{passed}, {launchers} launchers");
        if !self.reload.waiting.is_empty() {
            text += &format!("; waiting for a restart: {}", self.reload.waiting.join(", "));
        }
        if let Some(refused) = &self.reload.refused {
            text += &format!("; the file was not taken, the configuration of before holds: {refused}");
        }
        if self.course.is_serving() {
            self.notify.ready(&text);
        }
    }

    fn happened(&mut self, event: Event) -> Option<Ended> {
        let orders = self.course.happened(event, Instant::now());
        self.carry_out(orders)
    }

    fn answer(&mut self, answers: impl IntoIterator<Item = Answer>) {
        for (order, result) in answers {
            debug!(order = order.0, ?result, "unpack ended");
            self.tell(&ToServer::Unpacked { order, result }, &[]);
        }
    }
}

fn report_end(role: &'static str, pid: Pid, how: ProcessEnd) {
    let pid = pid.as_raw();
    match how {
        ProcessEnd::Exited(0) => info!(role, pid, "ended"),
        ProcessEnd::Exited(code) => warn!(role, pid, code, "ended"),
        ProcessEnd::Killed { signal, .. } => warn!(role, pid, signal, "ended"),
    }
}
