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
//! there is one gate: code is not forgotten while somebody is about to store a row that names it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Mutex as Gate, Notify, OwnedMutexGuard, Semaphore, watch};
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

/// Those who may touch `code/`: the supervisor's `unpack` and the launchers.
pub trait Hands: Send + Sync + 'static {
    fn unpack(&self, staging: StagingId, zip: Arc<OwnedFd>) -> Promise<'_, Result<Unpacked, String>>;
    fn adopt(&self, staging: StagingId, code: Digest, zip: Arc<OwnedFd>) -> Promise<'_, Result<(), String>>;
    fn forget(&self, code: Digest) -> Promise<'_, Result<(), String>>;
}

#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    #[error("the zip is refused: {0:?}")]
    Zip(ZipRefusal),
    #[error("unpack the zip: {0}")]
    Unpack(String),
    #[error("adopt the code: {0}")]
    Adopt(String),
    #[error("hand the zip over")]
    Memfd(#[from] io::Error),
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// See the module docs.
pub struct Intake {
    hands: Arc<dyn Hands>,
    registry: Arc<dyn Registry>,
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
    pub fn new(hands: Arc<dyn Hands>, registry: Arc<dyn Registry>) -> Self {
        let (running, gates) = (Semaphore::new(PARALLEL), Mutex::default());
        Self { hands, registry, running, gates, leaving: Arc::default() }
    }

    /// Brings a zip's tree into `code/`, if it is not there yet.
    pub async fn keep(&self, zip: Vec<u8>) -> Result<Kept, IntakeError> {
        let size = zip.len() as u64;
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
        Ok(Kept { code, size, unpacked, leaving: self.leaving.clone(), gate: Some(gate) })
    }

    async fn bring_in(&self, code: Digest, zip: Vec<u8>) -> Result<u64, IntakeError> {
        // First, so that nothing of it is ever on the disk without a note; and a disk without room for a note gets no tree.
        self.registry.expect_code(code).await?;
        let brought = self.unpack_and_adopt(code, zip).await;
        if brought.is_err() {
            self.leaving.add(code, Weak::new());
        }
        brought
    }

    async fn unpack_and_adopt(&self, code: Digest, zip: Vec<u8>) -> Result<u64, IntakeError> {
        let zip = tokio::task::spawn_blocking(move || sealed(c"zip", &zip)).await.map_err(io::Error::from)??;
        let zip = Arc::new(zip);
        let staging = StagingId(uuid::Uuid::new_v4().as_u128());
        crate::kill_point!("intake-before-unpack");
        let bytes = match self.hands.unpack(staging, zip.clone()).await.map_err(IntakeError::Unpack)? {
            Unpacked::Done { bytes } => bytes,
            Unpacked::Refused(why) => return Err(IntakeError::Zip(why)),
            Unpacked::Failed { what } => return Err(IntakeError::Unpack(what)),
        };
        info!(%code, bytes, "zip unpacked");
        crate::kill_point!("intake-before-adopt");
        self.hands.adopt(staging, code, zip).await.map_err(IntakeError::Adopt)?;
        Ok(bytes)
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
        loop {
            for code in self.unused() {
                if let Err(why) = self.forget(code).await {
                    // It stays noted: the next start tries again.
                    warn!(%code, why, "unused code could not be removed");
                }
            }
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

    async fn forget(&self, code: Digest) -> Result<(), String> {
        let mut gate = self.gate(code).lock_owned().await;
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
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::database::Database;
    use crate::function::{FunctionName, Memory, Stamp, Timeout, TmpSize};
    use crate::registry::sqlite::SqliteRegistry;
    use crate::registry::{Draft, LayerName, LayerUse, LayerVersion, Layers};
    use crate::runtime::RuntimeName;

    /// A supervisor and a launcher in memory, which write down what they were told.
    #[derive(Default)]
    struct FakeHands {
        orders: Mutex<Vec<String>>,
        refuse: Mutex<Option<Unpacked>>,
        adopting_fails: Mutex<bool>,
        came: Notify,
    }

    impl FakeHands {
        fn told(&self, order: String) {
            lock(&self.orders).push(order);
            self.came.notify_one();
        }

        fn orders(&self) -> Vec<String> {
            lock(&self.orders).clone()
        }

        async fn until(&self, order: &str) {
            while !lock(&self.orders).iter().any(|told| told == order) {
                self.came.notified().await;
            }
        }
    }

    impl Hands for FakeHands {
        fn unpack(&self, _: StagingId, _: Arc<OwnedFd>) -> Promise<'_, Result<Unpacked, String>> {
            self.told("unpack".into());
            let result = lock(&self.refuse).clone().unwrap_or(Unpacked::Done { bytes: 1 });
            Box::pin(async move { Ok(result) })
        }

        fn adopt(&self, _: StagingId, _: Digest, _: Arc<OwnedFd>) -> Promise<'_, Result<(), String>> {
            self.told("adopt".into());
            let fails = *lock(&self.adopting_fails);
            Box::pin(async move { if fails { Err("disk full".into()) } else { Ok(()) } })
        }

        fn forget(&self, code: Digest) -> Promise<'_, Result<(), String>> {
            self.told(format!("forget {code}"));
            Box::pin(async { Ok(()) })
        }
    }

    struct House {
        intake: Arc<Intake>,
        hands: Arc<FakeHands>,
        registry: Arc<SqliteRegistry>,
        _directory: tempfile::TempDir,
    }

    async fn house() -> House {
        let directory = tempfile::tempdir().unwrap();
        let (database, _thread) = Database::open(&directory.path().join("kiln.db")).unwrap();
        let registry = Arc::new(SqliteRegistry::open(database).await.unwrap());
        let hands = Arc::new(FakeHands::default());
        let intake = Arc::new(Intake::new(hands.clone(), registry.clone()));
        House { intake, hands, registry, _directory: directory }
    }

    impl House {
        /// As the door does it: code, row, and only then the code is let go of.
        async fn create(&self, name: &str, zip: &[u8]) -> Arc<Function> {
            self.create_with(name, zip, &[]).await
        }

        async fn publish(&self, name: &str, zip: &[u8]) -> LayerVersion {
            let kept = self.intake.keep(zip.to_vec()).await.unwrap();
            let draft = LayerVersion {
                name: LayerName::parse(name).unwrap(),
                version: 0,
                code: kept.code,
                code_size: kept.size,
                unpacked: kept.unpacked,
                description: String::new(),
                license: None,
                runtimes: Vec::new(),
                architectures: Vec::new(),
                created_ms: 0,
            };
            LayerVersion::clone(&*self.registry.publish_layer(draft).await.unwrap())
        }

        async fn unpublish(&self, layer: &LayerVersion) {
            assert!(self.registry.delete_layer(&layer.name, layer.version).await.unwrap().is_some());
            self.intake.let_go(layer.code);
        }

        async fn create_with(&self, name: &str, zip: &[u8], layers: &[LayerVersion]) -> Arc<Function> {
            let kept = self.intake.keep(zip.to_vec()).await.unwrap();
            let function = Function {
                name: FunctionName::parse(name).unwrap(),
                runtime: RuntimeName::parse("r").unwrap(),
                handler: "h".into(),
                memory: Memory::from_mib(128).unwrap(),
                timeout: Timeout::from_secs(3).unwrap(),
                tmp: TmpSize::DEFAULT,
                vars: BTreeMap::new(),
                code: kept.code,
                layers: Vec::new(),
                stamp: Stamp(0),
            };
            let (role, description, tags) = (String::new(), String::new(), BTreeMap::new());
            let (code_size, unpacked, layers) = (kept.size, kept.unpacked, layers.iter().map(LayerUse::from).collect());
            let draft = Draft { function, role, description, code_size, unpacked, layers, tags };
            self.registry.create(draft).await.unwrap().function.clone()
        }

        async fn delete(&self, function: Arc<Function>) {
            let record = self.registry.delete(&function.name).await.unwrap();
            self.intake.release(&record.function);
        }

        fn sweep(&self) -> tokio::task::JoinHandle<()> {
            let (ready, when_ready) = watch::channel(true);
            let intake = self.intake.clone();
            tokio::spawn(async move {
                intake.sweep(when_ready).await;
                drop(ready);
            })
        }
    }

    #[tokio::test]
    async fn the_same_code_is_unpacked_once() {
        let house = house().await;
        house.create("a", b"zip").await;
        house.create("b", b"zip").await;
        house.create("c", b"other zip").await;
        assert_eq!(house.hands.orders(), ["unpack", "adopt", "unpack", "adopt"]);
    }

    #[tokio::test]
    async fn the_same_code_at_the_same_time_is_unpacked_once() {
        let house = house().await;
        tokio::join!(house.create("a", b"zip"), house.create("b", b"zip"));
        assert_eq!(house.hands.orders(), ["unpack", "adopt"]);
    }

    #[tokio::test]
    async fn a_zip_at_fault_is_noted_and_its_note_goes() {
        let house = house().await;
        *lock(&house.hands.refuse) = Some(Unpacked::Refused(ZipRefusal::BadName));
        let refused = house.intake.keep(b"zip".to_vec()).await;
        assert!(matches!(refused, Err(IntakeError::Zip(ZipRefusal::BadName))));
        assert_eq!(house.registry.unused_codes().await.unwrap(), [Digest::of(b"zip")], "noted before it was unpacked");
        let sweep = house.sweep();
        house.hands.until(&format!("forget {}", Digest::of(b"zip"))).await;
        while !house.registry.unused_codes().await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        sweep.abort();
    }

    #[tokio::test]
    async fn code_that_could_not_be_adopted_is_cleared_away_and_may_come_again() {
        let house = house().await;
        *lock(&house.hands.adopting_fails) = true;
        assert!(matches!(house.intake.keep(b"zip".to_vec()).await, Err(IntakeError::Adopt(_))));
        let sweep = house.sweep();
        house.hands.until(&format!("forget {}", Digest::of(b"zip"))).await;
        *lock(&house.hands.adopting_fails) = false;
        house.create("a", b"zip").await;
        sweep.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn code_goes_when_its_last_function_and_its_last_environment_are_gone() {
        let house = house().await;
        let function = house.create("a", b"zip").await;
        let environment = function.clone();
        house.delete(function).await;
        let sweep = house.sweep();
        tokio::time::sleep(10 * SWEEP).await;
        assert_eq!(house.hands.orders(), ["unpack", "adopt"], "an environment still runs it");
        drop(environment);
        house.hands.until(&format!("forget {}", Digest::of(b"zip"))).await;
        sweep.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn code_stays_while_another_function_has_it() {
        let house = house().await;
        let function = house.create("a", b"zip").await;
        house.create("b", b"zip").await;
        house.delete(function).await;
        let sweep = house.sweep();
        tokio::time::sleep(10 * SWEEP).await;
        assert_eq!(house.hands.orders(), ["unpack", "adopt"]);
        sweep.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_layers_code_stays_until_its_version_its_last_function_and_its_last_environment_are_gone() {
        let house = house().await;
        let layer = house.publish("a", b"layer").await;
        let function = house.create_with("f", b"zip", std::slice::from_ref(&layer)).await;
        let environment = function.clone();
        let sweep = house.sweep();
        let forget = format!("forget {}", Digest::of(b"layer"));
        let looked = || async {
            tokio::time::sleep(10 * SWEEP).await;
            house.hands.orders().contains(&forget)
        };
        house.unpublish(&layer).await;
        assert!(!looked().await, "a function has it still");
        house.delete(function).await;
        assert!(!looked().await, "an environment runs it still");
        drop(environment);
        house.hands.until(&forget).await;
        sweep.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_zip_that_is_a_layer_is_unpacked_once_and_goes_with_the_layer() {
        let house = house().await;
        let layer = house.publish("a", b"zip").await;
        house.publish("a", b"zip").await;
        let sweep = house.sweep();
        house.unpublish(&layer).await;
        tokio::time::sleep(10 * SWEEP).await;
        assert_eq!(house.hands.orders(), ["unpack", "adopt"], "its second version has it still");
        house.unpublish(&LayerVersion { version: 2, ..layer }).await;
        house.hands.until(&format!("forget {}", Digest::of(b"zip"))).await;
        sweep.abort();
    }

    #[tokio::test]
    async fn code_from_before_sizes_were_noted_is_unpacked_once_more() {
        let house = house().await;
        let function = house.create("a", b"zip").await;
        house.registry.update(&function.name, None, Box::new(|draft| draft.unpacked = 0)).await.unwrap();
        let restarted = Intake::new(house.hands.clone(), house.registry.clone());
        assert_eq!(restarted.keep(b"zip".to_vec()).await.unwrap().unpacked, 1);
        assert_eq!(house.hands.orders(), ["unpack", "adopt", "unpack", "adopt"]);
        house.registry.update(&function.name, None, Box::new(|draft| draft.unpacked = 1)).await.unwrap();
        let restarted = Intake::new(house.hands.clone(), house.registry.clone());
        assert_eq!(restarted.keep(b"zip".to_vec()).await.unwrap().unpacked, 1);
        assert_eq!(house.hands.orders().len(), 4, "a row that knows the size is as good as having adopted it");
    }

    #[tokio::test(start_paused = true)]
    async fn code_run_under_two_stamps_stays_until_both_are_gone() {
        let house = house().await;
        let first = house.create("a", b"zip").await;
        let environment = first.clone();
        house.delete(first).await;
        let second = house.create("a", b"zip").await;
        house.delete(second).await;
        let sweep = house.sweep();
        tokio::time::sleep(10 * SWEEP).await;
        assert!(!house.hands.orders().iter().any(|order| order.starts_with("forget")));
        drop(environment);
        house.hands.until(&format!("forget {}", Digest::of(b"zip"))).await;
        sweep.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn code_that_is_run_longer_than_other_code_goes_in_the_end() {
        let house = house().await;
        let (short, long) = (house.create("a", b"short").await, house.create("b", b"long").await);
        let environments = (short.clone(), long.clone());
        house.delete(short).await;
        house.delete(long).await;
        let sweep = house.sweep();
        // Its first look is over when only what still runs is left.
        while lock(&house.intake.leaving.codes).len() > 2 {
            tokio::task::yield_now().await;
        }
        drop(environments.0);
        house.hands.until(&format!("forget {}", Digest::of(b"short"))).await;
        drop(environments.1);
        house.hands.until(&format!("forget {}", Digest::of(b"long"))).await;
        sweep.abort();
    }

    #[tokio::test]
    async fn a_start_forgets_what_a_killed_predecessor_had_adopted_without_a_row() {
        let house = house().await;
        let orphan = Digest::of(b"orphan");
        house.registry.expect_code(orphan).await.unwrap();
        let sweep = house.sweep();
        house.hands.until(&format!("forget {orphan}")).await;
        while !house.registry.unused_codes().await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        sweep.abort();
    }
}
