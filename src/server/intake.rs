//! Code on its way in, and out again: zip bytes → a sealed memfd → unpacked → adopted → a row may name it.
//!
//! The server can neither write nor list `code/`; it only says what should happen ([`Hands`]), and notes in the
//! registry which code may be there:
//!
//! ```text
//! keep(zip):  note the digest ──▶ unpack (supervisor) ──▶ adopt (launcher) ──▶ caller stores the row ──▶ Kept is dropped
//! release:    no row names it, no environment runs it ──▶ forget (launcher) ──▶ strike out the note
//! ```
//!
//! A kill anywhere leaves at most a noted digest that no row names; the next start forgets it. For each digest
//! there is one gate: code is not forgotten while somebody is about to store a row that names it. Whether there is room for
//! it is asked before anything is done ([`room`]); where there is too little, code that nobody uses goes first.

pub mod program;
pub mod room;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use room::{Pledge, Room};
use tokio::sync::{Mutex as Gate, Notify, OwnedMutexGuard, Semaphore, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::code::Digest;
use crate::function::Function;
use crate::registry::{Promise, Registry, RegistryError};
use crate::sys::memfd::sealed;
use crate::wire::launcher::StagingId;
use crate::wire::supervisor::{Unpacked, ZipRefusal};

/// Lambda's limit on an uploaded zip.
/// <https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>
pub const MAX_ZIP: usize = 52_428_800;

/// Zips unpacked at once: each may take 250 MB of disk and a CPU.
const PARALLEL: usize = 2;
/// Between two looks for code that nobody runs any more.
const SWEEP: Duration = Duration::from_secs(2);
/// Between two tries to remove the same code, which double from [`SWEEP`] on: its container may still be ending, the disk may
/// be full.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Those who may touch `code/`: the supervisor's `unpack` and the launchers.
pub trait Hands: Send + Sync + 'static {
    fn unpack(&self, staging: StagingId, zip: Arc<OwnedFd>) -> Promise<'_, Result<Unpacked, String>>;
    fn adopt(&self, staging: StagingId, code: Digest, zip: Arc<OwnedFd>) -> Promise<'_, Result<(), HandError>>;
    fn forget(&self, code: Digest) -> Promise<'_, Result<(), String>>;
}

/// Why code could not be adopted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandError {
    NoRoom,
    Other(String),
}

#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    #[error("the zip is refused: {0:?}")]
    Zip(ZipRefusal),
    #[error("unpack the zip: {0}")]
    Unpack(String),
    #[error("adopt the code: {0}")]
    Adopt(String),
    /// Lambda's limit on all code together.
    #[error("the code budget is used up: {0}")]
    Budget(room::OverBudget),
    /// With the disk, what is free on it, and the cure.
    #[error("{0}")]
    NoRoom(String),
    #[error("hand the zip over")]
    Memfd(#[from] io::Error),
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// See the module docs.
pub struct Intake {
    hands: Arc<dyn Hands>,
    registry: Arc<dyn Registry>,
    room: Room,
    running: Semaphore,
    /// `std` locks: held for a few map operations, never across an await; no other lock is taken inside.
    gates: Mutex<HashMap<Digest, Arc<Gate<Presence>>>>,
    leaving: Arc<Leaving>,
}

/// Whether this server knows the code to be adopted, and its unpacked size. Absent only means: adopt it (again, which
/// does no harm).
#[derive(Default)]
struct Presence {
    adopted: Option<u64>,
}

/// Code that may have become unused, with the function that ran it: while that value lives, an environment does.
#[derive(Default)]
struct Leaving {
    codes: Mutex<Vec<(Digest, Weak<Function>)>>,
    came: Notify,
}

/// Code that is there. Until this is dropped it is not forgotten: hold it until the row that names it is stored.
#[must_use]
pub struct Kept {
    pub code: Digest,
    /// Bytes of the zip, and of the tree that came out of it.
    pub size: u64,
    pub unpacked: u64,
    leaving: Arc<Leaving>,
    gate: Option<OwnedMutexGuard<Presence>>,
    /// Counted with the rows until there is one.
    _pledge: Pledge,
}

impl Drop for Kept {
    /// If no row has come to name it after all, the sweep finds that out.
    fn drop(&mut self) {
        drop(self.gate.take());
        self.leaving.add(self.code, Weak::new());
    }
}

impl Leaving {
    fn add(&self, code: Digest, runner: Weak<Function>) {
        lock(&self.codes).push((code, runner));
        self.came.notify_one();
    }
}

impl Intake {
    pub fn new(hands: Arc<dyn Hands>, registry: Arc<dyn Registry>, room: Room) -> Self {
        let (running, gates) = (Semaphore::new(PARALLEL), Mutex::default());
        Self { hands, registry, room, running, gates, leaving: Arc::default() }
    }

    /// Brings a zip's tree into `code/`, if it is not there yet.
    pub async fn keep(&self, zip: Vec<u8>) -> Result<Kept, IntakeError> {
        self.keep_instead_of(0, zip).await
    }

    /// The same for a row that names code of `freed` bytes until now.
    pub async fn keep_instead_of(&self, freed: u64, zip: Vec<u8>) -> Result<Kept, IntakeError> {
        let size = zip.len() as u64;
        let pledge = self.room.pledge(size, freed, self.registry.total_code_size()).map_err(IntakeError::Budget)?;
        let (code, zip) = tokio::task::spawn_blocking(move || (Digest::of(&zip), zip)).await.map_err(io::Error::from)?;
        let mut gate = self.gate(code).lock_owned().await;
        if gate.adopted.is_none() {
            // A row of an earlier server's is as good as having adopted it; one that knows no size is not.
            gate.adopted = self.registry.unpacked_size(&code);
        }
        let unpacked = match gate.adopted {
            Some(bytes) => bytes,
            None => {
                let _running = self.running.acquire().await;
                *gate.adopted.insert(self.bring_in(code, zip).await?)
            }
        };
        Ok(Kept { code, size, unpacked, leaving: self.leaving.clone(), gate: Some(gate), _pledge: pledge })
    }

    async fn bring_in(&self, code: Digest, zip: Vec<u8>) -> Result<u64, IntakeError> {
        let size = zip.len() as u64;
        if !self.room.has_for(size) {
            self.collect().await;
            if !self.room.has_for(size) {
                return Err(self.no_room());
            }
        }
        // First, so that nothing of it is ever on the disk without a note; and a disk without room for a note gets no tree.
        self.registry.expect_code(code).await.map_err(|error| self.registry_error(error))?;
        let brought = self.unpack_and_adopt(code, zip).await;
        if brought.is_err() {
            self.leaving.add(code, Weak::new());
        }
        brought
    }

    async fn unpack_and_adopt(&self, code: Digest, zip: Vec<u8>) -> Result<u64, IntakeError> {
        let zip = tokio::task::spawn_blocking(move || sealed(c"zip", &zip)).await.map_err(io::Error::from)??;
        let zip = Arc::new(zip);
        crate::kill_point!("intake-before-unpack");
        let (staging, bytes) = match self.unpack(zip.clone()).await? {
            Some(unpacked) => unpacked,
            // How much room a zip needs is only known when it is unpacked.
            None => {
                self.collect().await;
                self.unpack(zip.clone()).await?.ok_or_else(|| self.no_room())?
            }
        };
        info!(%code, bytes, "zip unpacked");
        crate::kill_point!("intake-before-adopt");
        match self.hands.adopt(staging, code, zip).await {
            Err(HandError::NoRoom) => Err(self.no_room()),
            Err(HandError::Other(what)) => Err(IntakeError::Adopt(what)),
            Ok(()) => Ok(bytes),
        }
    }

    /// The tree that rests in staging, and its size. `None`: there is too little room.
    async fn unpack(&self, zip: Arc<OwnedFd>) -> Result<Option<(StagingId, u64)>, IntakeError> {
        let staging = StagingId(uuid::Uuid::new_v4().as_u128());
        match self.hands.unpack(staging, zip).await.map_err(IntakeError::Unpack)? {
            Unpacked::Done { bytes } => Ok(Some((staging, bytes))),
            Unpacked::Refused(why) => Err(IntakeError::Zip(why)),
            Unpacked::NoRoom => Ok(None),
            Unpacked::Failed { what } => Err(IntakeError::Unpack(what)),
        }
    }

    /// Forgets now what the sweep would forget soon. What somebody is busy with stays.
    async fn collect(&self) {
        for code in self.unused() {
            let gate = self.gate(code).try_lock_owned();
            let forgotten = match gate {
                Ok(gate) => self.forget(code, gate).await,
                Err(_) => Err("somebody is busy with it".to_owned()),
            };
            if let Err(why) = forgotten {
                info!(%code, why, "unused code stays for now");
                self.leaving.add(code, Weak::new());
            }
        }
    }

    fn no_room(&self) -> IntakeError {
        IntakeError::NoRoom(self.room.full())
    }

    fn registry_error(&self, error: RegistryError) -> IntakeError {
        if error.is_full() { self.no_room() } else { error.into() }
    }

    /// Where code is kept, and how much of it there may be.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// The registry names `function`'s code and layers no more, or not for this function. They go once nobody runs them.
    pub fn release(&self, function: &Arc<Function>) {
        for code in function.layers.iter().chain([&function.code]) {
            self.leaving.add(*code, Arc::downgrade(function));
        }
    }

    /// The registry names this code no more as a layer's. It goes unless a function has it.
    pub fn let_go(&self, code: Digest) {
        self.leaving.add(code, Weak::new());
    }

    /// Forgets code that has become unused, for as long as the server runs. `ready` is set once there is a launcher.
    pub async fn sweep(&self, mut ready: watch::Receiver<bool>) {
        if ready.wait_for(|ready| *ready).await.is_err() {
            return;
        }
        match self.registry.unused_codes().await {
            Ok(codes) => codes.into_iter().for_each(|code| self.leaving.add(code, Weak::new())),
            Err(error) => warn!(%error, "unused code could not be looked for"),
        }
        let mut failed = HashMap::new();
        loop {
            for code in self.unused() {
                let gate = self.gate(code).lock_owned().await;
                match self.forget(code, gate).await {
                    Ok(()) => drop(failed.remove(&code)),
                    Err(why) => {
                        let pause = failed.get(&code).map_or(SWEEP, |(_, pause)| LONGEST_PAUSE.min(*pause * 2));
                        warn!(%code, why, again_s = pause.as_secs(), "unused code could not be removed");
                        failed.insert(code, (Instant::now() + pause, pause));
                    }
                }
            }
            self.next_look(failed.values().map(|(due, _)| *due).min()).await;
            let due = failed.iter().filter(|(_, (due, _))| *due <= Instant::now());
            due.for_each(|(code, _)| self.leaving.add(*code, Weak::new()));
        }
    }

    /// Waits until there may be something to forget: new codes, an environment's end, or the time to try again.
    async fn next_look(&self, again: Option<Instant>) {
        let again = async {
            match again {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let others = async {
            if lock(&self.leaving.codes).is_empty() {
                self.leaving.came.notified().await;
            }
            // What an environment still runs is looked at again and again; a pause also gathers what comes together.
            while !lock(&self.leaving.codes).is_empty() {
                tokio::time::sleep(SWEEP).await;
                if lock(&self.leaving.codes).iter().any(|(_, runner)| runner.strong_count() == 0) {
                    break;
                }
            }
        };
        tokio::select! {
            () = again => {}
            () = others => {}
        }
    }

    /// Takes out the codes that no environment runs any more.
    fn unused(&self) -> HashSet<Digest> {
        let mut codes = lock(&self.leaving.codes);
        let gone: HashSet<Digest> =
            codes.iter().filter(|(_, runner)| runner.strong_count() == 0).map(|(code, _)| *code).collect();
        codes.retain(|(_, runner)| runner.strong_count() > 0);
        // The same code may have been run under two stamps, and one of them still is.
        gone.into_iter().filter(|code| !codes.iter().any(|(other, _)| other == code)).collect()
    }

    async fn forget(&self, code: Digest, mut gate: OwnedMutexGuard<Presence>) -> Result<(), String> {
        if self.registry.uses_code(&code) {
            return Ok(());
        }
        gate.adopted = None;
        self.hands.forget(code).await?;
        self.registry.code_is_gone(code).await.map_err(|error| error.to_string())?;
        info!(%code, "unused code removed");
        // Whoever holds the gate's other end meanwhile adopts anew; an entry that nobody holds is of no use.
        let mut gates = lock(&self.gates);
        drop(gate);
        gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        Ok(())
    }

    fn gate(&self, code: Digest) -> Arc<Gate<Presence>> {
        lock(&self.gates).entry(code).or_default().clone()
    }
}

// A poisoned lock: a panic aborts the process, so nobody has ever seen one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
