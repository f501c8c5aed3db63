//! Seats: what a container needs and no order decides, made ahead while no order waits.
//!
//! A network namespace may take milliseconds (it waits for a grace period), a user namespace takes a process; a launch that
//! finds a seat takes neither. Where the stock is empty, the seat is made at once.

use crate::hierarchy::Hierarchies;
use crate::kill_point;
use crate::launcher::cgroup::{self, CgroupError, Groups};
use crate::launcher::identity::{IdentityError, Ids, Maps, UserNamespace};
use crate::launcher::network::{self, Network, NetworkError};
use crate::sys::process::SingleThreaded;
use crate::wire::launcher::ContainerId;

/// Everything of a container that does not know its function.
#[derive(Debug)]
pub struct Seat {
    pub container: ContainerId,
    /// U: the host id of its processes.
    pub user: u32,
    pub maps: Maps,
    pub user_namespace: UserNamespace,
    pub network: Network,
    pub groups: Groups,
}

#[derive(Debug, thiserror::Error)]
pub enum StockError {
    #[error("no host id is left in this launcher's share")]
    NoId,
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// Seats kept ready: as many as one launcher starts while it refills one.
const DEPTH: usize = 4;

#[derive(Debug)]
pub struct Stock {
    seats: Vec<Seat>,
    instance: String,
    launcher: u32,
    last_number: u32,
    ids: Ids,
    owner: u32,
    parents: Hierarchies,
    host: network::Host,
}

impl Stock {
    pub fn new(instance: String, launcher: u32, ids: Ids, owner: u32, parents: Hierarchies) -> Result<Self, StockError> {
        let host = network::Host::open()?;
        Ok(Self { seats: Vec::new(), instance, launcher, last_number: 0, ids, owner, parents, host })
    }

    pub fn is_full(&self) -> bool {
        self.seats.len() >= DEPTH
    }

    /// The launcher's number.
    pub fn launcher(&self) -> u32 {
        self.launcher
    }

    pub fn host(&self) -> &network::Host {
        &self.host
    }

    pub fn parents(&self) -> &Hierarchies {
        &self.parents
    }

    /// A seat, ready or made now.
    pub fn take(&mut self, alone: &SingleThreaded) -> Result<Seat, StockError> {
        match self.seats.pop() {
            Some(seat) => Ok(seat),
            None => self.make(alone),
        }
    }

    /// Makes one seat.
    pub fn refill(&mut self, alone: &SingleThreaded) -> Result<(), StockError> {
        let seat = self.make(alone)?;
        self.seats.push(seat);
        Ok(())
    }

    /// The container that had this id is dead.
    pub fn give_back(&mut self, user: u32) {
        self.ids.give_back(user);
    }

    /// The seats that nobody has taken, to be removed.
    pub fn empty(&mut self) -> Vec<Seat> {
        std::mem::take(&mut self.seats)
    }

    fn make(&mut self, alone: &SingleThreaded) -> Result<Seat, StockError> {
        let user = self.ids.take().ok_or(StockError::NoId)?;
        let made = self.make_for(alone, user);
        if made.is_err() {
            self.ids.give_back(user);
        }
        made
    }

    fn make_for(&mut self, alone: &SingleThreaded, user: u32) -> Result<Seat, StockError> {
        let maps = Maps::of(self.owner, user);
        let user_namespace = UserNamespace::create(alone, &maps)?;
        let network = self.host.create_network()?;
        // Last, because it alone has a name that would have to be removed again.
        self.last_number += 1;
        let container = ContainerId { launcher: self.launcher, number: self.last_number };
        let groups = Groups::create(&self.parents, &cgroup::name(&self.instance, container))?;
        kill_point!("after-seat");
        Ok(Seat { container, user, maps, user_namespace, network, groups })
    }
}
