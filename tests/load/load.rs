//! Load on a whole instance, while everything that can happen to it happens; then a table of what must hold whatever was.
//!
//! An example, so that cargo builds it beside the tests and `scripts/load` can run it as a program; with its unit tests. Runs as
//! root, beside its own kilnd, and asks it by its sockets only. Phases:
//!
//! ```text
//! create ─▶ roll call ─▶ storm ──────▶ warm-up ─▶ calm: how it stands ─▶ flood, steady ─▶ calm: how it stands ─▶ roll call ─▶ stop
//!           (the pace)   mischief, and                                   mischief;
//!                        Kiln's own processes                            nothing of Kiln's own is killed:
//!                        are killed                                      what grows here is a leak
//! ◀──────────────────────────── somebody listens to all events ─────────────────────────────────────────────────────────────▶
//! ```
//!
//! [`kinds`] of functions · [`traffic`] and its [`caller`] · [`mischief`] · [`record`] of what was seen · [`books`], [`heard`] and
//! [`standing`]: what Kiln wrote down, what it told, and what it holds of the host · [`checks`]: the invariants, pure · [`table`]

mod books;
mod caller;
mod checks;
mod heard;
#[path = "../engine/host/mod.rs"]
#[allow(dead_code)] // the module serves several test programs; each uses its part
mod host;
mod kinds;
mod mischief;
mod record;
mod standing;
mod table;
mod traffic;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use indicatif::ProgressBar;

use books::Ledger;
use heard::{Counts, Ear};
use host::{Instance, Options};
use mischief::{Done, Hands, lock};
use record::{Function, Record, Victim};
use standing::{Course, Disk, Standing};
use table::{Figures, Steady};
use traffic::Scene;

/// Load on an instance of its own, mischief meanwhile, and a table of what must hold. Run by scripts/load.
#[derive(Parser)]
struct Args {
    /// For so long there is load (with what is before and after it, a run takes longer)
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(4..))]
    seconds: u64,
    /// The same in minutes
    #[arg(long, conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..))]
    minutes: Option<u64>,
    /// So many functions, of all kinds
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(17..=2000))]
    functions: u64,
    /// Requests a second, without the bursts; by default what this host seems to bear
    #[arg(long)]
    rate: Option<f64>,
    /// The same seed makes the same requests and the same mischief
    #[arg(long)]
    seed: Option<u64>,
    /// The supervisor is killed once, too
    #[arg(long)]
    kill_supervisor: bool,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
    /// Gets the instance's directory, for whoever has to end it if this program cannot
    #[arg(long, hide = true)]
    instance_file: Option<PathBuf>,
}

/// The instance's bounds, low enough that they are met.
pub const CONCURRENCY: usize = 150;
const LOG_TOTAL_MIB: u64 = 512;

fn main() -> ExitCode {
    let args = Args::parse();
    if !host::ready() {
        return ExitCode::from(2);
    }
    let seed = args
        .seed
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64 % 1_000_000);
    eprintln!("seed {seed}");
    let functions = kinds::mixed(args.functions as usize).into_iter().enumerate();
    let named = |(number, kind): (usize, usize)| Function { name: format!("{}-{number}", kinds::KINDS[kind].name), kind };
    let run = Run::new(args, seed, functions.map(named).collect());
    if run.judge() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn config() -> String {
    format!(
        "memory_budget_mib = {}\nconcurrency = {CONCURRENCY}\nparallel_starts = 6\ncapacity_wait_s = 4\nidle_min_s = 3\n\
         idle_max_s = 20\nmax_age_s = 60\nlog_max_mib = 16\nlog_total_mib = {LOG_TOTAL_MIB}\n",
        budget_mib()
    )
}

/// A part of what is free, so that the host bears it; and little enough to run short.
fn budget_mib() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available =
        meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    (available.unwrap_or(2 << 20) / 1024 / 2).clamp(1024, 3072)
}

struct Run {
    args: Args,
    seed: u64,
    scene: Scene,
    instance: Mutex<Instance>,
    runtime: tokio::runtime::Runtime,
}

/// What is known when it is over.
struct Outcome {
    record: Record,
    ledger: Ledger,
    figures: Figures,
    rows: Vec<checks::Row>,
}

impl Run {
    fn new(args: Args, seed: u64, functions: Vec<Function>) -> Self {
        let mut instance = Instance::prepare(Options { config: config(), ..Options::default() });
        instance.launch();
        if let Some(file) = &args.instance_file {
            fs::write(file, instance.dir.path().display().to_string()).expect("say which instance runs");
        }
        instance.await_ready();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("start the callers' event loop");
        let scene = Scene::new(instance.run_dir().join("kiln.sock"), Record::new(functions));
        Self { args, seed, scene, instance: Mutex::new(instance), runtime }
    }

    /// Runs all of it, prints it, and tells whether everything held.
    fn judge(self) -> bool {
        let (json, log) = (self.args.json, std::env::temp_dir().join(format!("kiln-load-{}.log", self.seed)));
        let Outcome { record, ledger, figures, rows } = self.run(&log);
        let good = rows.iter().all(checks::Row::ok);
        match json {
            true => table::print_json(&record, &ledger, &figures, &rows),
            false => table::print(&record, &ledger, &figures, &rows),
        }
        if !good {
            eprintln!("kilnd's log is kept: {}", log.display());
        }
        good
    }

    fn run(self, log: &Path) -> Outcome {
        let began = Instant::now();
        let bar = table::bar(self.scene.record().functions.len() as u64);
        let control = lock(&self.instance).control();
        let ear = Ear::open(lock(&self.instance).run_dir().join("control.sock"));
        let mut hands = Hands::new(self.scene.clone(), &self.instance);
        bar.set_prefix("create");
        hands.create_all(|made| bar.set_position(made as u64));
        let pace = self.shown(&bar, "roll call", None, || self.runtime.block_on(traffic::roll_call(&self.scene, self.seed)));
        let rate = self.args.rate.unwrap_or_else(|| rate(pace));
        let seconds = self.args.minutes.map_or(self.args.seconds, |minutes| minutes * 60) as f64;
        let ctrl_c = self.scene.clone();
        self.runtime.spawn(async move {
            while tokio::signal::ctrl_c().await.is_ok() {
                ctrl_c.enough.store(true, Ordering::Relaxed);
            }
        });

        let (mut done, mut course) = (Done::new(), Course::new());
        let mut phase = |name: &'static str, part: f64, deaths: bool, hands: &mut Hands| {
            let length = Duration::from_secs_f64(seconds * part);
            let (did, held) = self.phase(&bar, name, length, rate, deaths, hands);
            did.into_iter().for_each(|(what, count)| *done.entry(what).or_insert(0) += count);
            course = held;
        };
        phase("storm", 0.4, true, &mut hands);
        phase("warm-up", 0.15, false, &mut hands);
        let before = self.shown(&bar, "calm", None, || hands.calm_down());
        let stood = Standing::at_rest(&lock(&self.instance), |_| true);
        let calls = self.scene.record().calls.len();
        let (rows, counted) = (Ledger::rows_now(&lock(&self.instance)), Counts::of(&control));
        self.shown(&bar, "flood", None, || self.runtime.block_on(traffic::flood(&self.scene, self.seed)));
        phase("steady", 0.45, false, &mut hands);
        let after = self.shown(&bar, "calm", None, || hands.calm_down());
        let as_before = |now: &Standing| checks::growth(&stood, now).iter().all(checks::Row::ok);
        let stands = Standing::at_rest(&lock(&self.instance), as_before);
        let steady = (self.scene.record().calls.len() - calls) as u64;
        let (booked, counts) = (Ledger::rows_now(&lock(&self.instance)) - rows, Counts::of(&control));
        let adds_up = checks::adds_up(&self.scene.record(), calls, &before, &after);

        self.scene.enough.store(false, Ordering::Relaxed);
        self.shown(&bar, "roll call", None, || self.runtime.block_on(traffic::roll_call(&self.scene, self.seed + 1)));
        let last = self.shown(&bar, "calm", None, || hands.calm_down());
        bar.set_prefix("checks");
        bar.set_message("");
        let (disk, mut ledger) = {
            let instance = lock(&self.instance);
            (Disk::of(&instance, LOG_TOTAL_MIB), Ledger::bill_of(&instance))
        };
        let at_last = Counts::of(&control);
        ear.last_server();
        let left = self.stop();
        let heard = ear.close();
        let names: Vec<String> = self.scene.record().functions.iter().map(|function| function.name.clone()).collect();
        ledger.read(&lock(&self.instance), &names);
        bar.finish_and_clear();

        let record = self.scene.record().clone();
        let mut rows = checks::answers(&record);
        rows.extend(checks::containers(&record));
        rows.extend(checks::ledger(&record, &ledger));
        rows.extend([adds_up, checks::empty(&last)]);
        rows.extend(checks::events(&record, &ledger, &heard));
        rows.extend(checks::counts(&record, calls, booked, &counted, &counts, &at_last));
        rows.extend(checks::growth(&stood, &stands));
        rows.push(checks::trend(&course));
        rows.extend(checks::afterwards(&disk, ledger.rows.len() as u64, left));
        let held_back = self.scene.held_back.load(Ordering::Relaxed);
        let (refused, retired) = (last["refused"].clone(), last["retired"].clone());
        let seconds = began.elapsed().as_secs_f64();
        let steady = Steady { requests: steady, before: stood, after: stands };
        let figures = Figures { seed: self.seed, seconds, rate, held_back, done, refused, retired, steady };
        // With everything else of the instance it would be gone in a moment.
        if !rows.iter().all(checks::Row::ok) {
            fs::write(log, lock(&self.instance).log()).expect("keep kilnd's log");
        }
        Outcome { record, ledger, figures, rows }
    }

    /// Traffic, mischief, and somebody who looks on; until all requests of it are answered.
    fn phase(
        &self,
        bar: &ProgressBar,
        name: &'static str,
        length: Duration,
        rate: f64,
        deaths: bool,
        hands: &mut Hands,
    ) -> (Done, Course) {
        let seed = self.seed ^ name.bytes().fold(0, |sum, byte| sum * 31 + u64::from(byte));
        let until = Instant::now() + length;
        let deaths = if deaths { self.deaths(length) } else { Vec::new() };
        let (stop, control) = (AtomicBool::new(false), lock(&self.instance).control());
        let measured_every = (length / 200).max(Duration::from_millis(500));
        self.shown(bar, name, Some(until), || {
            thread::scope(|scope| {
                let mischief = scope.spawn(|| hands.play(seed, &stop, &deaths));
                scope.spawn(|| mischief::look_on(&self.scene, &control, &stop));
                let measured = scope.spawn(|| self.measure(measured_every, &stop));
                self.runtime.block_on(traffic::flow(&self.scene, seed, rate, until.into()));
                stop.store(true, Ordering::Relaxed);
                (mischief.join().expect("the mischief's thread"), measured.join().expect("the measuring thread"))
            })
        })
    }

    /// What Kiln's processes hold, every so often.
    fn measure(&self, every: Duration, stop: &AtomicBool) -> Course {
        let mut course = Course::new();
        let (mut next, began) = (Instant::now(), Instant::now());
        while !stop.load(Ordering::Relaxed) {
            thread::sleep(next.saturating_duration_since(Instant::now()).min(Duration::from_millis(100))); // so that it soon ends
            if Instant::now() >= next {
                let supervisor = lock(&self.instance).supervisor_pid();
                course.push((began.elapsed(), standing::held_now(supervisor)));
                next = Instant::now() + every;
            }
        }
        course
    }

    /// Launchers and servers, in turn: twice each, and in long runs every 20 seconds one.
    fn deaths(&self, length: Duration) -> Vec<(Instant, Victim)> {
        let now = Instant::now();
        let count = (length.as_secs() / 20).max(4) as u32;
        let each = |number: u32| {
            let victim = if number % 2 == 0 { Victim::Launcher } else { Victim::Server };
            (now + length * (number + 1) / (count + 1), victim)
        };
        let mut deaths: Vec<_> = (0..count).map(each).collect();
        if self.args.kill_supervisor {
            deaths.insert(1, (now + length / 3, Victim::Supervisor));
        }
        deaths
    }

    /// `what`, with the bar moving.
    fn shown<T>(&self, bar: &ProgressBar, name: &str, until: Option<Instant>, what: impl FnOnce() -> T) -> T {
        let since = {
            let record = self.scene.record();
            (record.calls.len(), record.now())
        };
        let began = Instant::now();
        if let Some(until) = until {
            bar.set_length((until - began).as_secs());
        }
        bar.set_prefix(name.to_owned());
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    if until.is_some() {
                        bar.set_position(began.elapsed().as_secs().min(bar.length().unwrap_or(0)));
                    }
                    bar.set_message(table::rates(&self.scene, since));
                    thread::park_timeout(Duration::from_millis(250));
                }
            });
            let result = what();
            over.store(true, Ordering::Relaxed);
            result
        })
    }

    /// SIGTERM; tells what is left.
    fn stop(&self) -> Vec<String> {
        let mut instance = lock(&self.instance);
        let status = instance.stop();
        let end = Instant::now() + host::PATIENCE * host::slower();
        let mut left = standing::left_by(&instance);
        while !left.is_empty() && Instant::now() < end {
            thread::sleep(Duration::from_millis(100)); // the pace of looking
            left = standing::left_by(&instance);
        }
        if !status.success() {
            left.push(format!("kilnd ended with {status}"));
        }
        let log = instance.log();
        left.extend(log.lines().filter(|line| line.contains("panicked")).map(str::to_owned));
        left
    }
}

/// Requests a second, from what a cold one took when four were under way: as many as are bearable with all the mischief.
fn rate(pace: Duration) -> f64 {
    (2.0 / pace.as_secs_f64().max(0.001)).clamp(4.0, 100.0)
}
