//! The intake before a supervisor and a launcher in memory.

use std::collections::BTreeMap;

use super::*;
use crate::database::Database;
use crate::function::{FunctionName, Memory, Reuse, Stamp, Timeout, TmpSize};
use crate::registry::sqlite::SqliteRegistry;
use crate::registry::{Draft, LayerName, LayerUse, LayerVersion, Layers};
use crate::runtime::RuntimeName;

/// A supervisor and a launcher in memory, which write down what they were told.
#[derive(Default)]
struct FakeHands {
    forgetting_fails: Mutex<u32>,
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

    fn adopt(&self, _: StagingId, _: Digest, _: Arc<OwnedFd>) -> Promise<'_, Result<(), HandError>> {
        self.told("adopt".into());
        let fails = *lock(&self.adopting_fails);
        Box::pin(async move { if fails { Err(HandError::Other("no luck".into())) } else { Ok(()) } })
    }

    fn forget(&self, code: Digest) -> Promise<'_, Result<(), String>> {
        self.told(format!("forget {code}"));
        let (mut refuse, mut fails) = (lock(&self.refuse), lock(&self.forgetting_fails));
        if *fails > 0 {
            *fails -= 1;
            return Box::pin(async { Err("a container uses this code".into()) });
        }
        if *refuse == Some(Unpacked::NoRoom) {
            *refuse = None;
        }
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
    let room = Room::new(directory.path().to_owned(), 10);
    let intake = Arc::new(Intake::new(hands.clone(), registry.clone(), room));
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
            reuse: Reuse::Always,
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
async fn code_that_could_not_be_removed_is_tried_again_and_ever_more_rarely() {
    let house = house().await;
    let (first, second) = (house.create("a", b"first").await, house.create("b", b"second").await);
    let begun = Instant::now();
    *lock(&house.hands.forgetting_fails) = 3;
    house.delete(first).await;
    let sweep = house.sweep();
    let forget = |zip: &[u8]| format!("forget {}", Digest::of(zip));
    let tries = || house.hands.orders().iter().filter(|order| **order == forget(b"first")).count();
    while !house.registry.unused_codes().await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(tries(), 4);
    assert!(begun.elapsed() >= (1 + 2 + 4) * SWEEP, "{:?}", begun.elapsed());
    tokio::time::sleep(2 * LONGEST_PAUSE).await;
    assert_eq!(tries(), 4, "and no more when it is gone");
    house.delete(second).await;
    house.hands.until(&forget(b"second")).await;
    sweep.abort();
}

#[tokio::test]
async fn what_goes_beyond_the_budget_is_refused_before_it_is_unpacked() {
    let house = house().await;
    let zip = |mib: usize, byte: u8| vec![byte; mib << 20];
    house.create("a", &zip(6, 1)).await;
    let refused = house.intake.keep(zip(5, 2)).await;
    assert!(matches!(refused, Err(IntakeError::Budget(_))));
    // The same zip counts twice, as two functions' code does at Lambda.
    assert!(matches!(house.intake.keep(zip(6, 1)).await, Err(IntakeError::Budget(_))));
    assert_eq!(house.hands.orders(), ["unpack", "adopt"]);
    assert!(house.intake.keep_instead_of(6 << 20, zip(10, 3)).await.is_ok(), "an update frees what it replaces");
    // Two that fit alone do not fit together, also while neither has a row.
    let (first, second) = tokio::join!(house.intake.keep(zip(3, 4)), house.intake.keep(zip(3, 5)));
    assert_eq!([first.is_ok(), second.is_ok()], [true, false]);
}

#[tokio::test]
async fn where_there_is_no_room_unused_code_goes_first() {
    let house = house().await;
    let function = house.create("a", b"old").await;
    house.delete(function).await;
    *lock(&house.hands.refuse) = Some(Unpacked::NoRoom);
    house.create("b", b"new").await;
    let forget = format!("forget {}", Digest::of(b"old"));
    assert_eq!(house.hands.orders(), ["unpack", "adopt", "unpack", &forget, "unpack", "adopt"]);
    // Now there is nothing that could go.
    *lock(&house.hands.refuse) = Some(Unpacked::NoRoom);
    let refused = house.intake.keep(b"newer".to_vec()).await.map(drop);
    assert!(matches!(&refused, Err(IntakeError::NoRoom(text)) if text.contains("is full")), "{refused:?}");
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
    let restarted = Intake::new(house.hands.clone(), house.registry.clone(), Room::new("/".into(), 10));
    assert_eq!(restarted.keep(b"zip".to_vec()).await.unwrap().unpacked, 1);
    assert_eq!(house.hands.orders(), ["unpack", "adopt", "unpack", "adopt"]);
    house.registry.update(&function.name, None, Box::new(|draft| draft.unpacked = 1)).await.unwrap();
    let restarted = Intake::new(house.hands.clone(), house.registry.clone(), Room::new("/".into(), 10));
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
