//! The door for Prometheus: a listening socket on the host's loopback, where the configuration wants one (`metrics_listen`).
//!
//! In the supervisor, because a socket belongs to the network that it was made in: kilnd's service has a private one, in which
//! nobody would ever ask. So the socket is made in the network of whoever started us (systemd's), and the server, which stays
//! without any, gets it by descriptor. It is kept while servers come and go, and whoever asks meanwhile waits.
//!
//! Metrics are not worth a function's life: where the address cannot be had, kilnd says why and starts without.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::unistd::{Pid, getppid};
use tracing::{error, info};

use crate::config::Config;

#[derive(Debug, thiserror::Error)]
enum ListenError {
    #[error(
        "somebody else listens on {address} (`ss -ltnp 'sport = :{port}'` tells who): stop it, or choose another port; then \
         systemctl reload kilnd",
        port = address.port()
    )]
    Taken { address: SocketAddr },
    #[error("listen on {address}; with a port above 1023 of an address that this host has (127.0.0.1), systemctl reload kilnd")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("enter the network of the process {parent}, which started us, since kilnd's own has nobody else in it")]
    Enter { parent: Pid, source: io::Error },
}

/// Where metrics are asked for, if anywhere.
#[derive(Debug, Default)]
pub struct MetricsDoor(Option<(SocketAddr, TcpListener)>);

impl MetricsDoor {
    /// Opens what `config` wants, and closes what it does not want any more. What is open already stays; what could not be opened
    /// is tried again. Whether anything has changed.
    pub fn follow(&mut self, config: &Config) -> bool {
        let (is, wanted) = (self.address(), config.metrics_address());
        if is == wanted {
            return false;
        }
        self.0 = wanted.and_then(|address| match open(address) {
            Ok(listener) => {
                info!(%address, "metrics are served here, too");
                Some((address, listener))
            }
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                error!(%address, error, "metrics are served on control.sock only");
                None
            }
        });
        is != self.address()
    }

    pub fn address(&self) -> Option<SocketAddr> {
        self.0.as_ref().map(|(address, _)| *address)
    }

    pub fn listener(&self) -> Option<&TcpListener> {
        self.0.as_ref().map(|(_, listener)| listener)
    }
}

fn open(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let listen = || match TcpListener::bind(address) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(ListenError::Taken { address }),
        Err(source) => Err(ListenError::Listen { address, source }),
    };
    if !has_loopback_only(&fs::read_to_string("/proc/self/net/dev").unwrap_or_default()) {
        return listen();
    }
    let parent = getppid();
    let enter = |source| ListenError::Enter { parent, source };
    let theirs = File::open(format!("/proc/{parent}/ns/net")).map_err(enter)?;
    let there = || {
        setns(&theirs, CloneFlags::CLONE_NEWNET).map_err(|errno| enter(errno.into()))?;
        listen()
    };
    // A thread for that moment, since it alone goes there and nobody has to come back: what this process starts later stays in its own.
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, there).map_err(enter)?;
        thread.join().unwrap_or_else(|_| Err(enter(io::ErrorKind::Other.into())))
    })
}

/// Whether a network has no device but its own loopback (systemd's `PrivateNetwork=yes`). One that somebody has put us into with
/// purpose has more, and there we listen; a host without any other is its parent's too.
///
/// `devices` is /proc/net/dev: two lines of headings, then a line for each. Where it cannot be read, there are more.
fn has_loopback_only(devices: &str) -> bool {
    let mut names = devices.lines().skip(2).filter_map(|line| line.split(':').next()).peekable();
    names.peek().is_some() && names.all(|name| name.trim() == "lo")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanting(address: &str) -> Config {
        Config { metrics_listen: address.into(), ..Config::default() }
    }

    /// A port that was free a moment ago.
    fn free() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    #[test]
    fn the_door_follows_the_configuration_and_stays_where_it_is_the_same() {
        let mut door = MetricsDoor::default();
        assert!(!door.follow(&wanting("")), "none is wanted, and none is there");
        let address = free();
        assert!(door.follow(&wanting(&address.to_string())));
        assert!(!door.follow(&wanting(&address.to_string())), "it is there");
        assert!(std::net::TcpStream::connect(address).is_ok());
        assert!(door.follow(&wanting("")));
        assert!(door.listener().is_none());
        assert_eq!(std::net::TcpStream::connect(address).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_port_that_somebody_has_is_named_with_its_cure_and_tried_again() {
        let somebody = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = somebody.local_addr().unwrap();
        let said = open(address).unwrap_err().to_string();
        assert!(said.contains(&format!("somebody else listens on {address}")) && said.contains("reload kilnd"), "{said}");
        let (mut door, config) = (MetricsDoor::default(), wanting(&address.to_string()));
        assert!(!door.follow(&config) && door.listener().is_none());
        drop(somebody);
        assert!(door.follow(&config) && door.address() == Some(address));
    }

    #[test]
    fn an_address_that_this_host_has_not_is_named() {
        // 192.0.2.0/24 is for documentation: no host has it.
        let said = format!("{:#}", anyhow::Error::from(open("192.0.2.1:9150".parse().unwrap()).unwrap_err()));
        assert!(said.contains("listen on 192.0.2.1:9150"), "{said}");
    }

    #[test]
    fn a_network_of_its_own_has_no_device_but_lo() {
        let headings = "Inter-|   Receive\n face |bytes\n";
        assert!(has_loopback_only(&format!("{headings}    lo:       0       0\n")));
        assert!(!has_loopback_only(&format!("{headings}    lo: 0\n  eth0: 0\n")));
        assert!(!has_loopback_only(""), "nothing is known of it");
    }
}
