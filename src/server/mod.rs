//! Stand-in until the real server is merged: says that it is ready, beats, drains at once.

use std::os::fd::AsFd;
use std::time::Duration;

use crate::sys::{packet, spawn};
use crate::wire;
use crate::wire::supervisor::{ToServer, ToSupervisor};

pub fn run() -> anyhow::Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let [_config, _life, supervisor, _api, _control] = spawn::inherited()?;
    let say = |message| packet::send(supervisor.as_fd(), &wire::encode(&message).map_err(std::io::Error::other)?, &[]);
    let mut launchers = Vec::new();
    say(ToSupervisor::Ready)?;
    loop {
        let wait = PollTimeout::try_from(Duration::from_secs(wire::supervisor::HEARTBEAT_S))?;
        if poll(&mut [PollFd::new(supervisor.as_fd(), PollFlags::POLLIN)], wait)? == 0 {
            say(ToSupervisor::Heartbeat)?;
            continue;
        }
        let Some(packet) = packet::receive(supervisor.as_fd())? else { return Ok(()) };
        match wire::decode(&packet.bytes)? {
            ToServer::Drain => return Ok(()),
            ToServer::Launcher { .. } => launchers.extend(packet.descriptors),
            _ => {}
        }
    }
}
