//! What the course has ordered, carried out: processes started and killed, words to the server, and what the dead have left removed.
//!
//! The other half of the loop: nothing here waits for anybody but the disk and the kernel's sweep of a dead group.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use tracing::{error, info, warn};

use super::{Ended, Server, Watch};
use crate::kill_point;
use crate::supervisor::children::ServerEnds;
use crate::supervisor::course::{Event, Order};
use crate::supervisor::sweep;
use crate::sys::packet;
use crate::wire;
use crate::wire::supervisor::ToServer;

impl Watch<'_> {
    pub(super) fn carry_out(&mut self, orders: Vec<Order>) -> Option<Ended> {
        let mut orders = VecDeque::from(orders);
        while let Some(order) = orders.pop_front() {
            // Each may wait for a slow disk.
            self.notify.alive(Instant::now());
            let failed = match order {
                Order::StartServer => self.start_server().err().map(|error| (error, Event::ServerEnded)),
                Order::StartLauncher { number, slot } => {
                    self.start_launcher(number, slot).err().map(|error| (error, Event::LauncherEnded { number }))
                }
                Order::BuryLauncher { number } => {
                    kill_point!("before-launcher-replace");
                    self.sweep_groups(&format!("kiln-{}-{number}-", self.places.instance));
                    self.sweep_workbench(number);
                    self.upkeep.launchers_restarted += 1;
                    self.tell_upkeep();
                    self.tell(&ToServer::LauncherGone { launcher: number }, &[]);
                    None
                }
                Order::SayReady => {
                    info!("ready");
                    // A server that had not taken it over yet had a successor that was started with it.
                    self.reload.pending = false;
                    self.say_ready();
                    None
                }
                Order::Drain => {
                    let within = self.settings.config.drain_s;
                    self.notify.stopping(&format!("draining: up to {within} s for running invocations"));
                    self.tell(&ToServer::Drain, &[]);
                    None
                }
                Order::Cut => {
                    self.notify.stopping("asked to stop twice: what still runs is cut");
                    self.tell(&ToServer::Cut, &[]);
                    None
                }
                Order::KillServer { why } => {
                    if let Some(server) = &self.server {
                        warn!(?why, pid = server.pid.as_raw(), "server killed");
                        let _ = kill(server.pid, Signal::SIGKILL);
                    }
                    None
                }
                Order::KillLaunchers { why } => {
                    for (number, pid) in &self.launchers {
                        warn!(?why, number, pid = pid.as_raw(), "launcher killed");
                        let _ = kill(*pid, Signal::SIGKILL);
                    }
                    None
                }
                Order::SweepAll => {
                    self.sweep_all();
                    None
                }
                Order::Finish(how) => return Some(Ended { how, clean: self.clean }),
            };
            if let Some((error, event)) = failed {
                error!(error = format!("{error:#}"), ?order, "not done");
                orders.extend(self.course.happened(event, Instant::now()));
            }
        }
        None
    }

    fn start_server(&mut self) -> Result<(), anyhow::Error> {
        let (ours, theirs) = packet::pair()?;
        // The loop must not wait for a server that does not read.
        rustix::io::ioctl_fionbio(&ours, true)?;
        let ends = ServerEnds { supervisor: theirs.as_fd(), api: self.doors.api.as_fd(), control: self.doors.control.as_fd() };
        let pid = self.children.start_server(&ends)?;
        info!(pid = pid.as_raw(), "server started");
        let first = !std::mem::replace(&mut self.started, true);
        self.upkeep.servers_restarted += u64::from(!first);
        self.server = Some(Server { pid, socket: Some(ours) });
        self.tell_upkeep();
        if self.metrics.address().is_some() {
            self.tell_metrics();
        }
        // What it was started with is in force; what waits it cannot know.
        if !self.reload.waiting.is_empty() {
            self.tell_config();
        }
        Ok(())
    }

    fn start_launcher(&mut self, number: u32, slot: u32) -> Result<(), anyhow::Error> {
        let (servers, launchers) = packet::pair()?;
        let pid = self.children.start_launcher(number, slot, launchers.as_fd())?;
        info!(number, slot, pid = pid.as_raw(), "launcher started");
        self.launchers.insert(number, pid);
        // Where there is no server, the launcher reads the end of its socket, and goes.
        self.tell(&ToServer::Launcher { launcher: number }, &[servers.as_fd()]);
        Ok(())
    }

    /// A server that does not take its messages is replaced: it would wait for what was lost for ever.
    pub(super) fn tell(&mut self, message: &ToServer, descriptors: &[BorrowedFd<'_>]) {
        let Some(socket) = self.server.as_ref().and_then(|server| server.socket.as_ref()) else { return };
        let sent =
            wire::encode(message).map_err(io::Error::other).and_then(|bytes| packet::send(socket.as_fd(), &bytes, descriptors));
        match sent {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.hang_up(&error),
            Err(error) => self.give_up(&error),
            Ok(()) => {}
        }
    }

    pub(super) fn hang_up(&mut self, why: &dyn std::fmt::Display) {
        if let Some(server) = &mut self.server {
            info!(%why, pid = server.pid.as_raw(), "the server is not talked to any more");
            server.socket = None;
            self.hung_up = true;
        }
    }

    pub(super) fn give_up(&mut self, why: &dyn std::fmt::Display) {
        if let Some(server) = &self.server {
            warn!(%why, pid = server.pid.as_raw(), "server killed");
            let _ = kill(server.pid, Signal::SIGKILL);
        }
        self.hang_up(why);
    }

    fn sweep_groups(&mut self, prefix: &str) {
        match sweep::groups(self.places.hierarchies.parents(), prefix) {
            Ok(0) => {}
            Ok(removed) => {
                self.upkeep.after_deaths.cgroups += removed as u64;
                info!(removed, prefix, "cgroups of the dead removed");
            }
            Err(error) => {
                (self.clean, self.unburied) = (false, true);
                error!(error = format!("{:#}", anyhow::Error::from(error)), prefix, "left for the next sweep");
            }
        }
    }

    fn sweep_workbench(&mut self, launcher: u32) {
        match sweep::workbench(&self.places.staging, launcher) {
            Ok(0) => {}
            Ok(removed) => {
                self.upkeep.after_deaths.staging += removed as u64;
                info!(removed, launcher, "staging directories of the dead removed");
            }
            Err(error) => {
                (self.clean, self.unburied) = (false, true);
                error!(error = format!("{:#}", anyhow::Error::from(error)), launcher, "left for the next sweep");
            }
        }
    }

    fn sweep_all(&mut self) {
        // Each full sweep makes good what an earlier one could not do.
        let swept = self.places.sweep_all();
        self.clean = swept.is_ok();
        self.unburied = swept.is_err();
        match swept {
            Ok(swept) => self.upkeep.after_deaths.add(swept),
            Err(error) => error!(error = format!("{error:#}"), "left for the next sweep"),
        }
    }
}
