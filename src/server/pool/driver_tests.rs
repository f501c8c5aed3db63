//! The driver among tasks: lenders, launches that fail, and the clock, paused where time matters.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::function::{Memory, Reuse};
use crate::server::pool::Usage;

/// The core could pool these.
#[derive(Debug)]
struct Umbrella {
    whole: Arc<AtomicBool>,
    thrown_away: Arc<AtomicU64>,
}

impl Pooled for Umbrella {
    fn is_alive(&self) -> bool {
        self.whole.load(Ordering::Relaxed)
    }
    type Facts = Red;
    fn facts(&self) -> Arc<Red> {
        Arc::new(Red)
    }
}

#[derive(Debug)]
struct Red;

impl Facts for Red {
    fn name(&self) -> &str {
        "red"
    }
    fn used(&self) -> u64 {
        0
    }
    fn measure(&self) -> Option<u64> {
        Some(50 << 20)
    }
    fn cpu(&self) -> Option<Duration> {
        Some(Duration::from_micros(1_234_567))
    }
    fn peak(&self) -> u64 {
        0
    }
    fn kill(&self, _: &str) {}
    fn unwanted(&self, _: &str) {}
    fn ending(&self) -> Ending {
        Ending::default()
    }
}

impl Drop for Umbrella {
    fn drop(&mut self) {
        self.thrown_away.fetch_add(1, Ordering::Relaxed);
    }
}

struct Shop {
    pool: Pool<Umbrella>,
    whole: Arc<AtomicBool>,
    thrown_away: Arc<AtomicU64>,
}

impl Shop {
    fn new() -> Self {
        let limits = Limits {
            budget: 256 << 20,
            starts: 2,
            concurrency: 10,
            waiters: 4,
            idle_min: Duration::from_secs(60),
            idle_max: Duration::from_secs(60),
            max_age: None,
            settle: Duration::from_millis(10),
        };
        Self { pool: Pool::new(limits, Events::default()), whole: Arc::new(AtomicBool::new(true)), thrown_away: Arc::default() }
    }

    fn umbrella(&self) -> Umbrella {
        Umbrella { whole: self.whole.clone(), thrown_away: self.thrown_away.clone() }
    }

    fn thrown_away(&self) -> u64 {
        self.thrown_away.load(Ordering::Relaxed)
    }

    async fn acquire(&self) -> Result<Turn<Umbrella>, NoTurn> {
        self.pool.acquire(want()).await
    }

    #[track_caller]
    fn count(&self, state: SeenState) -> usize {
        self.pool.snapshot().environments.iter().filter(|seen| seen.state == state).count()
    }

    async fn lease(&self) -> Lease<Umbrella> {
        match self.acquire().await {
            Ok(Turn::Warm(lease)) => lease,
            Ok(Turn::Cold(permit)) => permit.install(self.umbrella()),
            Err(why) => panic!("refused: {why:?}"),
        }
    }
}

fn want() -> Want {
    Want {
        function: FunctionName::parse("rain").unwrap(),
        stamp: Stamp(1),
        memory: Memory::from_mib(128).unwrap(),
        reuse: Reuse::Always,
        until: Instant::now() + Duration::from_secs(5),
    }
}

const USAGE: Usage = Usage { now: 20 << 20, tmp: 0 };

#[tokio::test(start_paused = true)]
async fn what_was_given_back_is_lent_again() {
    let shop = Shop::new();
    shop.lease().await.give_back(USAGE, Some(Stamp(1)));
    assert!(matches!(shop.acquire().await, Ok(Turn::Warm(_))));
    assert_eq!(shop.thrown_away(), 1, "a dropped lease is not reused");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_permit_frees_its_start_and_its_memory() {
    let shop = Shop::new();
    drop(shop.acquire().await);
    assert_eq!((shop.pool.snapshot().charged_mib, shop.pool.snapshot().starting), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_being_built_is_seen_by_its_name_and_forgotten_with_its_permit() {
    let shop = Shop::new();
    let names = || shop.pool.snapshot().environments.into_iter().map(|seen| seen.container).collect::<Vec<_>>();
    let Ok(Turn::Cold(permit)) = shop.acquire().await else { panic!("nothing is warm yet") };
    assert_eq!((names(), shop.pool.find("red").is_none()), (vec![None], true));
    permit.building(Some(Arc::new(Red)));
    assert_eq!((names(), shop.count(SeenState::Initialising)), (vec![Some("red".into())], 1));
    assert_eq!(shop.pool.measured().environments[0].used_mib, 50);
    assert!(shop.pool.find("red").is_some());
    permit.building(None);
    assert_eq!(names(), [None]);
    permit.building(Some(Arc::new(Red)));
    drop(permit);
    assert!(names().is_empty() && shop.pool.0.lock().building.is_empty(), "nothing of it is kept");
    let Ok(Turn::Cold(permit)) = shop.acquire().await else { panic!("nothing is warm yet") };
    permit.building(Some(Arc::new(Red)));
    let _lease = permit.install(shop.umbrella());
    assert!(shop.pool.0.lock().building.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_start_that_goes_on_inside_its_request_makes_room_for_the_next_start() {
    let shop = Shop::new();
    let Ok(Turn::Cold(permit)) = shop.acquire().await else { panic!("nothing is warm yet") };
    permit.start_is_over();
    let seen = shop.pool.snapshot();
    assert_eq!((seen.starting, seen.charged_mib), (0, 128));
    drop(permit);
    assert_eq!(shop.pool.snapshot().charged_mib, 0);
}

#[tokio::test(start_paused = true)]
async fn one_that_died_while_idle_is_replaced_by_a_start_within_the_same_request() {
    let shop = Shop::new();
    shop.lease().await.give_back(USAGE, Some(Stamp(1)));
    shop.whole.store(false, Ordering::Relaxed);
    assert!(matches!(shop.acquire().await, Ok(Turn::Cold(_))));
    assert_eq!(shop.thrown_away(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_death_that_is_told_frees_the_slot_at_once() {
    let shop = Shop::new();
    let Ok(Turn::Cold(permit)) = shop.acquire().await else { panic!("nothing is warm yet") };
    let slot = permit.slot();
    let lease = permit.install(shop.umbrella());
    shop.pool.died(slot);
    assert_eq!(shop.count(SeenState::Busy), 1, "a loan is its holder's to end");
    lease.give_back(USAGE, Some(Stamp(1)));
    shop.pool.died(slot);
    assert_eq!(shop.pool.snapshot().environments.len(), 0);
    assert_eq!(shop.thrown_away(), 1);
    assert!(shop.pool.0.lock().facts.is_empty(), "nothing of it is kept");
}

#[tokio::test(start_paused = true)]
async fn an_old_stamp_does_not_come_back() {
    let shop = Shop::new();
    shop.lease().await.give_back(USAGE, Some(Stamp(2)));
    assert_eq!((shop.count(SeenState::Idle), shop.thrown_away()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn an_environment_idle_past_its_time_is_retired() {
    let shop = Shop::new();
    shop.lease().await.give_back(USAGE, Some(Stamp(1)));
    tokio::time::advance(Duration::from_secs(59)).await;
    shop.pool.tick();
    assert_eq!(shop.count(SeenState::Idle), 1);
    tokio::time::advance(Duration::from_secs(1)).await;
    shop.pool.tick();
    assert_eq!((shop.count(SeenState::Idle), shop.thrown_away()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_hears_what_was_missing() {
    let shop = Shop::new();
    let _two = (shop.acquire().await, shop.acquire().await);
    let began = Instant::now();
    assert_eq!(shop.acquire().await.unwrap_err(), NoTurn::Throttled(Throttle::Starts));
    assert_eq!(began.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn who_waits_gets_what_comes_back() {
    let shop = Shop::new();
    let (a, _b) = (shop.lease().await, shop.lease().await);
    let (turn, ()) = tokio::join!(shop.acquire(), async { a.give_back(USAGE, Some(Stamp(1))) });
    assert!(matches!(turn, Ok(Turn::Warm(_))));
}

#[tokio::test(start_paused = true)]
async fn who_is_about_to_come_back_is_worth_a_moment() {
    let shop = Shop::new();
    let lease = shop.lease().await;
    lease.answered();
    let began = Instant::now();
    let (turn, ()) = tokio::join!(shop.acquire(), async {
        tokio::time::sleep(Duration::from_millis(3)).await;
        lease.give_back(USAGE, Some(Stamp(1)));
    });
    assert!(matches!(turn, Ok(Turn::Warm(_))), "a cold start instead");
    assert_eq!(began.elapsed().as_millis(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_moment_is_not_for_ever() {
    let shop = Shop::new();
    let lease = shop.lease().await;
    lease.answered();
    let began = Instant::now();
    assert!(matches!(shop.acquire().await, Ok(Turn::Cold(_))));
    assert!(began.elapsed() < Duration::from_millis(20));
}

#[tokio::test(start_paused = true)]
async fn who_stops_waiting_leaves_the_queue() {
    let shop = Shop::new();
    let _two = (shop.acquire().await, shop.acquire().await);
    assert!(tokio::time::timeout(Duration::from_secs(1), shop.acquire()).await.is_err());
    assert_eq!(shop.pool.snapshot().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_looks_into_is_lent_to_nobody_and_ends_when_they_leave() {
    let shop = Shop::new();
    shop.lease().await.give_back(USAGE, Some(Stamp(1)));
    let Ok(Entered::Held(held)) = shop.pool.enter("red").await else { panic!("it is idle") };
    assert_eq!((shop.count(SeenState::Held), shop.pool.snapshot().charged_mib, shop.pool.snapshot().in_flight), (1, 128, 0));
    assert!(matches!(shop.acquire().await, Ok(Turn::Cold(_))), "a request gets another one");
    assert_eq!(shop.pool.enter("red").await.unwrap_err(), NotEntered::Occupied);
    drop(held);
    assert_eq!((shop.thrown_away(), shop.pool.snapshot().retired), (1, [(Retire::Init, 1), (Retire::Entered, 1)].into()));
    assert_eq!(shop.pool.enter("red").await.unwrap_err(), NotEntered::Gone);
    assert!(shop.pool.0.lock().visitors.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_nobody_got_into_after_all_serves_as_before() {
    let shop = Shop::new();
    shop.lease().await.give_back(USAGE, Some(Stamp(1)));
    let Ok(Entered::Held(held)) = shop.pool.enter("red").await else { panic!("it is idle") };
    held.not_entered(USAGE, Some(Stamp(1)));
    assert_eq!((shop.count(SeenState::Idle), shop.thrown_away()), (1, 0));
    assert!(shop.pool.0.lock().visitors.is_empty());
    assert!(matches!(shop.acquire().await, Ok(Turn::Warm(_))), "a request gets it");
    // Unless the function has changed meanwhile.
    let shop = Shop::new();
    shop.lease().await.give_back(USAGE, Some(Stamp(1)));
    let Ok(Entered::Held(held)) = shop.pool.enter("red").await else { panic!("it is idle") };
    held.not_entered(USAGE, Some(Stamp(2)));
    assert_eq!((shop.count(SeenState::Idle), shop.thrown_away()), (0, 1));
    assert_eq!(shop.pool.snapshot().retired, [(Retire::Updated, 1)].into());
}

/// While somebody was on their way in, it was ended by hand: nothing would ever end what is idle without a slot.
#[tokio::test(start_paused = true)]
async fn what_was_ended_before_nobody_got_into_it_is_not_put_back() {
    for why in [Retire::Drained, Retire::Recycled, Retire::Killed] {
        let shop = Shop::new();
        shop.lease().await.give_back(USAGE, Some(Stamp(1)));
        let Ok(Entered::Held(held)) = shop.pool.enter("red").await else { panic!("it is idle") };
        match why {
            Retire::Drained => drop(shop.pool.drain(&want().function, "x")),
            Retire::Recycled => drop(shop.pool.recycle("red", "x")),
            _ => drop(shop.pool.kill("red", "x")),
        }
        held.not_entered(USAGE, Some(Stamp(1)));
        assert_eq!(shop.thrown_away(), 1, "{why:?}");
        assert!(shop.pool.0.lock().idle.is_empty(), "{why:?}");
        assert_eq!(shop.pool.snapshot().retired, [(why, 1)].into(), "who ended it is not who was in it");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_looks_into_one_is_told_when_it_has_to_end() {
    for why in [Retire::Stopping, Retire::Drained, Retire::Recycled, Retire::Killed] {
        let shop = Shop::new();
        shop.lease().await.give_back(USAGE, Some(Stamp(1)));
        let Ok(Entered::Held(Held { lease, told })) = shop.pool.enter("red").await else { panic!("it is idle") };
        match why {
            Retire::Stopping => shop.pool.stop(),
            Retire::Drained => assert_eq!(shop.pool.drain(&want().function, "x").ended, 1),
            Retire::Recycled => assert!(shop.pool.recycle("red", "x").expect("it is there").ended),
            _ => assert!(shop.pool.kill("red", "x").is_some()),
        }
        assert_eq!(told.await, Ok(why));
        assert_eq!(shop.pool.snapshot().environments, [], "nothing waits for them to leave");
        drop(lease);
        assert_eq!(shop.thrown_away(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn one_at_work_is_entered_beside_and_does_not_come_back_and_one_that_settles_is_waited_for() {
    let shop = Shop::new();
    let lease = shop.lease().await;
    assert!(matches!(shop.pool.enter("red").await, Ok(Entered::Beside(_))));
    lease.give_back(USAGE, Some(Stamp(1)));
    assert_eq!((shop.thrown_away(), shop.pool.snapshot().retired), (1, [(Retire::Entered, 1)].into()));

    let lease = shop.lease().await;
    lease.answered();
    let (entered, ()) = tokio::join!(shop.pool.enter("red"), async {
        tokio::time::sleep(Duration::from_millis(3)).await;
        lease.give_back(USAGE, Some(Stamp(1)));
    });
    assert!(matches!(entered, Ok(Entered::Held(_))), "beside what is over in a moment");

    drop(entered);

    // One that never settles is entered all the same.
    let lease = shop.lease().await;
    lease.answered();
    assert!(matches!(shop.pool.enter("red").await, Ok(Entered::Beside(_))));
    drop(lease);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_woken_without_memory_for_it_and_nothing_dead_is_entered() {
    let shop = Shop::new();
    shop.lease().await.give_back(USAGE, Some(Stamp(1)));
    let memory = Memory::from_mib(200).unwrap();
    let other = FunctionName::parse("hail").unwrap();
    let large = shop.pool.acquire(Want { memory, function: other, ..want() }).await;
    assert!(matches!(large, Ok(Turn::Cold(_))));
    assert_eq!(shop.pool.enter("red").await.unwrap_err(), NotEntered::NoRoom);
    assert_eq!(shop.count(SeenState::Idle), 1, "it stays as it was");
    drop(large);
    shop.whole.store(false, Ordering::Relaxed);
    assert_eq!(shop.pool.enter("red").await.unwrap_err(), NotEntered::Gone);
    assert_eq!((shop.pool.snapshot().environments.len(), shop.thrown_away()), (0, 1));
}

#[tokio::test]
async fn who_measures_sees_memory_and_cpu_time_of_now_and_a_peak_that_is_no_less() {
    let shop = Shop::new();
    let lease = shop.lease().await;
    let memory = |snapshot: Snapshot| (snapshot.environments[0].used_mib, snapshot.environments[0].peak_mib);
    assert_eq!((memory(shop.pool.snapshot()), memory(shop.pool.measured())), ((0, 0), (50, 50)));
    let cpu = |snapshot: Snapshot| snapshot.environments[0].cpu_ms;
    assert_eq!((cpu(shop.pool.snapshot()), cpu(shop.pool.measured())), (None, Some(1234)));
    drop(lease);
}
