//! Open-loop load: requests come when they come, whether or not those before are answered. All of it follows from a seed, but for
//! what the host's speed adds.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::caller::Line;
use crate::host;
use crate::kinds;
use crate::record::{Call, Fate, Record};

/// Connections at once: one user may have half of a door's 2048.
const MOST_AT_ONCE: usize = 400;
/// Of a thousand callers: those who go away before the answer, and those who ask several times on one connection.
const HANG_UP: u32 = 30;
const IN_LINE: u32 = 100;

/// What everybody who makes load shares.
#[derive(Clone)]
pub struct Scene {
    pub socket: PathBuf,
    pub record: Arc<Mutex<Record>>,
    nonces: Arc<AtomicU64>,
    pub in_flight: Arc<AtomicUsize>,
    /// Requests that were due when [`MOST_AT_ONCE`] were under way.
    pub held_back: Arc<AtomicUsize>,
    /// Somebody has pressed Ctrl-C.
    pub enough: Arc<AtomicBool>,
}

impl Scene {
    pub fn new(socket: PathBuf, record: Record) -> Self {
        Self {
            socket,
            record: Arc::new(Mutex::new(record)),
            nonces: Arc::default(),
            in_flight: Arc::default(),
            held_back: Arc::default(),
            enough: Arc::default(),
        }
    }

    /// Never held across an await.
    pub fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until a moment, or until somebody has had enough.
    pub async fn wait_until(&self, until: Instant) -> bool {
        while Instant::now() < until && !self.is_enough() {
            sleep_until(until.min(Instant::now() + Duration::from_millis(100))).await;
        }
        !self.is_enough()
    }

    pub fn is_enough(&self) -> bool {
        self.enough.load(Ordering::Relaxed)
    }

    /// One request on a connection, and what became of it.
    async fn ask(&self, line: &mut Option<Line>, function: usize, plan: Plan) -> bool {
        let nonce = self.nonces.fetch_add(1, Ordering::Relaxed);
        let mut event = plan.event;
        event["do"] = json!("marked");
        event["nonce"] = json!(nonce);
        let (sent, path) = {
            let record = self.record();
            (record.now(), format!("/2015-03-31/functions/{}/invocations", record.functions[function].name))
        };
        let fate = async {
            if line.is_none() {
                match Line::open(&self.socket).await {
                    Ok(opened) => *line = Some(opened),
                    Err(error) => return Fate::Cut(format!("connect: {error}")),
                }
            }
            match line {
                Some(line) => line.ask(&path, event.to_string().as_bytes(), plan.last, patience()).await,
                None => Fate::Silent,
            }
        };
        let fate = match plan.hangs_up {
            Some(after) => timeout(after, fate).await.unwrap_or(Fate::HungUp),
            None => fate.await,
        };
        let pad = event["pad"].as_str().map_or(0, str::len);
        let goes_on = matches!(fate, Fate::Answered(_));
        let good = matches!(&fate, Fate::Answered(reply) if reply.is_success());
        let mut record = self.record();
        let ended = record.now();
        record.calls.push(Call { function, nonce, pad, sent, ended, fate, roll_call: plan.roll_call });
        drop(record);
        if !goes_on || plan.last {
            *line = None;
        }
        if plan.roll_call { good } else { goes_on }
    }
}

struct Plan {
    event: serde_json::Value,
    last: bool,
    hangs_up: Option<Duration>,
    roll_call: bool,
}

/// Longer than anything takes that does not hang: nothing here depends on a host's speed.
fn patience() -> Duration {
    Duration::from_secs(600) * host::slower()
}

/// Requests at so many a second, and bursts between them, until `until`. Returns when the last is answered.
pub async fn flow(scene: &Scene, seed: u64, rate: f64, until: Instant) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut under_way = JoinSet::new();
    let functions: Vec<usize> = {
        // A function is in here as often as it has weight.
        let record = scene.record();
        let weighed = record.functions.iter().enumerate();
        weighed.flat_map(|(index, function)| std::iter::repeat_n(index, function.kind().weight as usize)).collect()
    };
    let mut due = Instant::now();
    let mut burst = due + Duration::from_secs_f64(rng.random_range(1.0..4.0));
    while !scene.is_enough() {
        // Exponential, as who does not know of each other comes.
        due += Duration::from_secs_f64(-f64::ln(1.0 - rng.random::<f64>()) / rate);
        if due >= until || !scene.wait_until(due).await {
            break;
        }
        let storms = due >= burst;
        let some = functions[rng.random_range(0..functions.len())];
        // One function's flood, or everybody at once.
        let (count, alone) = match storms {
            true => (rng.random_range(20..160), rng.random()),
            false => (1, true),
        };
        if storms {
            burst = due + Duration::from_secs_f64(rng.random_range(2.0..8.0));
        }
        for _ in 0..count {
            while under_way.try_join_next().is_some() {}
            if under_way.len() >= MOST_AT_ONCE {
                scene.held_back.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let function = if alone { some } else { functions[rng.random_range(0..functions.len())] };
            let (scene, mut rng) = (scene.clone(), SmallRng::seed_from_u64(rng.random()));
            under_way.spawn(async move {
                scene.in_flight.fetch_add(1, Ordering::Relaxed);
                visit(&scene, function, &mut rng).await;
                scene.in_flight.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }
    while under_way.join_next().await.is_some() {}
}

/// As much at once as can be, which costs a hundred megabytes while it lasts.
pub async fn flood(scene: &Scene, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let large: Vec<usize> = {
        let record = scene.record();
        record.functions.iter().enumerate().filter(|(_, function)| function.kind().name == "large").map(|(at, _)| at).collect()
    };
    let mut under_way = JoinSet::new();
    for number in 0..MOST_AT_ONCE {
        let (scene, function) = (scene.clone(), large[number % large.len()]);
        let event = json!({ "pad": "x".repeat(kinds::LARGEST), "steps": [{ "sleep": rng.random_range(0..300) }] });
        let plan = Plan { event, last: true, hangs_up: None, roll_call: false };
        under_way.spawn(async move { scene.ask(&mut None, function, plan).await });
    }
    while under_way.join_next().await.is_some() {}
}

/// One caller: as a rule one request.
async fn visit(scene: &Scene, function: usize, rng: &mut SmallRng) {
    let kind = scene.record().functions[function].kind();
    let requests = if rng.random_range(0..1000) < IN_LINE { rng.random_range(2..5) } else { 1 };
    let mut line = None;
    for left in (0..requests).rev() {
        let leaves = rng.random_range(0..1000) < HANG_UP;
        let hangs_up = leaves.then(|| Duration::from_millis(rng.random_range(0..400)));
        let plan = Plan { event: (kind.event)(rng), last: left == 0, hangs_up, roll_call: false };
        if !scene.ask(&mut line, function, plan).await {
            return;
        }
    }
}

/// Every function that can succeed does so once, a few at a time: each is asked until it does, or until it is clear that it will
/// not. Tells how long the good ones took, the median.
pub async fn roll_call(scene: &Scene, seed: u64) -> Duration {
    let able: Vec<usize> = {
        let record = scene.record();
        record.functions.iter().enumerate().filter(|(_, function)| function.kind().succeeds).map(|(index, _)| index).collect()
    };
    let mut under_way = JoinSet::new();
    let mut took = BTreeMap::new();
    for function in able {
        if under_way.len() >= 4 {
            took.extend(under_way.join_next().await.and_then(Result::ok).flatten());
        }
        let scene = scene.clone();
        under_way.spawn(async move {
            let mut rng = SmallRng::seed_from_u64(seed ^ function as u64);
            let kind = scene.record().functions[function].kind();
            let until = Instant::now() + host::PATIENCE * host::slower();
            while Instant::now() < until && !scene.is_enough() {
                let began = Instant::now();
                let plan = Plan { event: (kind.event)(&mut rng), last: true, hangs_up: None, roll_call: true };
                if scene.ask(&mut None, function, plan).await {
                    return Some((began.elapsed(), function));
                }
                sleep(Duration::from_millis(50)).await;
            }
            None
        });
    }
    while let Some(ended) = under_way.join_next().await {
        took.extend(ended.ok().flatten());
    }
    took.keys().nth(took.len() / 2).copied().unwrap_or_default()
}
