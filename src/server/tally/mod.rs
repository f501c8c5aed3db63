//! What is counted, for Prometheus and for people who look: an observer of all events, and what others know at the moment that
//! somebody asks.
//!
//! Server process. Called with each event, on the event loop: one lookup and some additions, no wait, no allocation but for a
//! function's first event. Asked by `control`, on threads that may block. Decides nothing, and nobody waits for it.
//!
//! ```text
//! dispatch, pool … ── events ──▶ [`Tally::see`]  ┐
//! pool, logs, supervisor … ── asked ──▶ [`Reading`] ┴──▶ [`Tally::text`], [`Tally::functions`]
//! ```
//!
//! [`catalogue`] names every metric. What a caller or a function can choose is no label, but for functions' names, and of them
//! [`MOST`] at most have numbers of their own: the others' are added up under [`OTHERS`]. A function's go [`KEPT`] after it was
//! deleted, so that who asks every few minutes sees its last ones.

mod catalogue;
mod reading;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::core::{Atomic, GenericCounter};
use prometheus::{Counter, Histogram, IntCounter, IntGauge, TextEncoder};
use serde::Serialize;

use self::catalogue::Catalogue;
pub use self::reading::{Process, Reading};
use crate::function::FunctionName;
use crate::invocation::Throttle;
use crate::server::events::{Event, Observer, What};

/// Functions with numbers of their own. A function has some 22 lines of the text, so that one has 11,000 lines at most, which Prometheus
/// takes from one program without a thought.
pub const MOST: usize = 500;
/// What the rest of them are called, all together: nobody can call a function so.
pub const OTHERS: &str = "(others)";
/// How long a deleted function's numbers stay.
pub const KEPT: Duration = Duration::from_secs(15 * 60);

/// Causes with a number of their own: what Kiln says itself (no function can say `Sandbox.`), and what runtimes say of a function
/// that cannot start.
const CAUSES: &[&str] = &[
    "Function.ResponseSizeTooLarge",
    "Runtime.ExitError",
    "Runtime.HandlerNotFound",
    "Runtime.ImportModuleError",
    "Runtime.InvalidEntrypoint",
    "Runtime.InvalidResponseModeHeader",
    "Runtime.OutOfMemory",
    "Runtime.UserCodeSyntaxError",
    "Sandbox.Failure",
    "Sandbox.Stopped",
    "Sandbox.Timedout",
];
/// All others, which are the function's own words; REPORT calls most of them so, too.
const OWN_ERROR: &str = "Runtime.Unknown";

const MIB: f64 = 1_048_576.0;

/// Whether there is a function of this name.
type Known = Box<dyn Fn(&FunctionName) -> bool + Send + Sync>;

pub struct Tally {
    catalogue: Catalogue,
    most: usize,
    known: Known,
    /// Functions with numbers of their own. Taken for each event, for a lookup, and by who asks, for a walk over names; no other
    /// lock is taken inside but the catalogue's own.
    functions: Mutex<HashMap<FunctionName, Entry>>,
    others: Arc<Series>,
    /// Held while somebody asks: numbers of one answer are of one moment.
    asking: Mutex<()>,
}

struct Entry {
    series: Arc<Series>,
    /// Since when there is no such function.
    gone: Option<Instant>,
}

/// One function's numbers. What few events change is looked up when it does ([`Catalogue::errors`] and the like).
struct Series {
    name: String,
    invocations: IntCounter,
    cold_starts: IntCounter,
    duration: Histogram,
    billed: Counter,
    environments: IntGauge,
    charged: IntGauge,
    /// Over all causes and reasons.
    errors: AtomicU64,
    throttles: AtomicU64,
}

/// What `kiln top` makes rates of: totals since the server's start.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FunctionTotals {
    /// Or [`OTHERS`].
    pub function: String,
    pub invocations: u64,
    pub errors: u64,
    pub throttles: u64,
    pub cold_starts: u64,
    pub duration_ms: f64,
    pub billed_gb_s: f64,
}

impl Tally {
    /// `known` says whether a function still exists.
    pub fn new(instance: &str, known: impl Fn(&FunctionName) -> bool + Send + Sync + 'static) -> Self {
        Self::bounded(MOST, instance, known)
    }

    fn bounded(most: usize, instance: &str, known: impl Fn(&FunctionName) -> bool + Send + Sync + 'static) -> Self {
        let catalogue = Catalogue::new();
        catalogue.begin(instance);
        let others = Arc::new(Series::new(&catalogue, OTHERS));
        Self { catalogue, most, known: Box::new(known), functions: Mutex::default(), others, asking: Mutex::default() }
    }

    /// The exposition: Prometheus' text format 0.0.4. Takes milliseconds where there are many functions.
    pub fn text(&self, reading: &Reading) -> String {
        let _one = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        self.forget_gone(Instant::now());
        self.catalogue.take_over(reading);
        self.place_environments(reading);
        let families = self.catalogue.registry.gather();
        // It fails where a metric has no name or no sample; `gather` leaves those out.
        TextEncoder::new().encode_to_string(&families).unwrap_or_default()
    }

    /// Every function that has numbers of its own, and then the others, if there are any.
    pub fn functions(&self) -> Vec<FunctionTotals> {
        self.forget_gone(Instant::now());
        let mut series: Vec<Arc<Series>> = self.lock().values().map(|entry| entry.series.clone()).collect();
        series.sort_by(|one, other| one.name.cmp(&other.name));
        series.push(self.others.clone());
        let totals = series.iter().map(|series| series.totals());
        totals.filter(|of| of.function != OTHERS || of.invocations + of.throttles > 0).collect()
    }

    fn series(&self, function: &FunctionName) -> Arc<Series> {
        let mut functions = self.lock();
        if let Some(entry) = functions.get(function) {
            return entry.series.clone();
        }
        if functions.len() >= self.most {
            return self.others.clone();
        }
        let series = Arc::new(Series::new(&self.catalogue, function.as_str()));
        functions.insert(function.clone(), Entry { series: series.clone(), gone: None });
        series
    }

    /// Environments and what they are charged, of each function.
    fn place_environments(&self, reading: &Reading) {
        let all: Vec<Arc<Series>> = self.lock().values().map(|entry| entry.series.clone()).chain([self.others.clone()]).collect();
        for series in &all {
            series.environments.set(0);
            series.charged.set(0);
        }
        for seen in &reading.pool.environments {
            let series = self.series(&seen.function);
            series.environments.inc();
            series.charged.add(reading::bytes(seen.charged_mib));
        }
    }

    fn forget_gone(&self, now: Instant) {
        let mut functions = self.lock();
        functions.retain(|name, entry| {
            if (self.known)(name) {
                entry.gone = None;
                return true;
            }
            let stays = now.saturating_duration_since(*entry.gone.get_or_insert(now)) < KEPT;
            if !stays {
                entry.series.leave(&self.catalogue);
            }
            stays
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FunctionName, Entry>> {
        self.functions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Tally {
    fn see(&self, event: &Event) {
        let Some(function) = &event.function else { return };
        match &event.what {
            What::Ended { duration_us, billed_ms, memory_mib, cold, cause, .. } => {
                let series = self.series(function);
                series.invocations.inc();
                series.duration.observe(seconds(*duration_us));
                series.billed.inc_by(f64::from(*memory_mib) * MIB * *billed_ms as f64 / 1000.0);
                if *cold {
                    series.cold_starts.inc();
                }
                if let Some(cause) = cause {
                    series.errors.fetch_add(1, Ordering::Relaxed);
                    self.catalogue.errors.with_label_values(&[series.name.as_str(), known_cause(cause)]).inc();
                }
            }
            What::Throttled { reason, waited_us, .. } => {
                let series = self.series(function);
                series.throttles.fetch_add(1, Ordering::Relaxed);
                self.catalogue.throttles.with_label_values(&[series.name.as_str(), reading::throttle(*reason)]).inc();
                self.catalogue.wait.with_label_values(&["throttled"]).observe(seconds(*waited_us));
            }
            What::Invoked { waited_us, .. } => {
                self.catalogue.wait.with_label_values(&["served"]).observe(seconds(*waited_us));
            }
            What::Ready { build_us, init_us } => {
                self.catalogue.cold_start.with_label_values(&["build"]).observe(seconds(*build_us));
                self.catalogue.cold_start.with_label_values(&["init"]).observe(seconds(*init_us));
            }
            What::Starting { why } => self.catalogue.starts.with_label_values(&[why.to_string()]).inc(),
            What::InitFailed { cause, .. } => {
                let series = self.series(function);
                self.catalogue.init_failures.with_label_values(&[series.name.as_str(), known_cause(cause)]).inc();
            }
            // States and reasons are asked of the pool, which knows them all.
            _ => {}
        }
    }
}

impl Series {
    fn new(catalogue: &Catalogue, name: &str) -> Self {
        let of = [name];
        Self {
            name: name.to_owned(),
            invocations: catalogue.invocations.with_label_values(&of),
            cold_starts: catalogue.cold_starts.with_label_values(&of),
            duration: catalogue.duration.with_label_values(&of),
            billed: catalogue.billed.with_label_values(&of),
            environments: catalogue.function_environments.with_label_values(&of),
            charged: catalogue.function_charged.with_label_values(&of),
            errors: AtomicU64::new(0),
            throttles: AtomicU64::new(0),
        }
    }

    fn totals(&self) -> FunctionTotals {
        FunctionTotals {
            function: self.name.clone(),
            invocations: self.invocations.get(),
            errors: self.errors.load(Ordering::Relaxed),
            throttles: self.throttles.load(Ordering::Relaxed),
            cold_starts: self.cold_starts.get(),
            duration_ms: self.duration.get_sample_sum() * 1000.0,
            billed_gb_s: self.billed.get() / (1024.0 * MIB),
        }
    }

    /// Takes its lines out of the text. A line that is not there is none to take out.
    fn leave(&self, catalogue: &Catalogue) {
        let name = self.name.as_str();
        let _ = catalogue.invocations.remove_label_values(&[name]);
        let _ = catalogue.cold_starts.remove_label_values(&[name]);
        let _ = catalogue.duration.remove_label_values(&[name]);
        let _ = catalogue.billed.remove_label_values(&[name]);
        let _ = catalogue.function_environments.remove_label_values(&[name]);
        let _ = catalogue.function_charged.remove_label_values(&[name]);
        for cause in CAUSES.iter().chain([&OWN_ERROR]) {
            let _ = catalogue.errors.remove_label_values(&[name, cause]);
            let _ = catalogue.init_failures.remove_label_values(&[name, cause]);
        }
        for reason in Throttle::ALL {
            let _ = catalogue.throttles.remove_label_values(&[name, reading::throttle(reason)]);
        }
    }
}

fn known_cause(cause: &str) -> &'static str {
    CAUSES.iter().copied().find(|known| *known == cause).unwrap_or(OWN_ERROR)
}

fn seconds(us: u64) -> f64 {
    Duration::from_micros(us).as_secs_f64()
}

/// A counter that somebody else keeps; it never goes back.
fn follow<P: Atomic<T = u64>>(counter: &GenericCounter<P>, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

#[cfg(test)]
mod tests;
