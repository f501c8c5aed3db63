//! The sentence: function → pool → environment → outcome → books → give back.
//!
//! Server process, floor 4; called by the doors. An invocation runs in a task of its own, so it goes on if its caller
//! goes away. Who asked for the tail of the log waits for REPORT; everybody else has the answer as soon as the runtime
//! has posted it, while the environment settles (until the runtime asks for more) behind the caller's back.

mod budget;
mod ends;
mod pooled;
mod remembered;
mod starting;
mod visiting;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{error, warn};

use self::remembered::Remembered;
use self::starting::Starting;
pub use self::visiting::{NoVisit, Visiting};
use crate::config::Config;
use crate::config::reload::InForce;
use crate::function::{Function, FunctionName, Profile};
use crate::invocation::{Answer, Cause, FunctionFailure, Invocation, LogType, Outcome, Refusal, RequestId, Throttle};
use crate::meter::{Meter, Row, billed};
use crate::registry::Functions;
use crate::server::environment::{
    Environment, Facts, InitFailure, Invoked, Launcher, Launchers, Run, Settled, Starter, max_memory_used_mib,
};
use crate::server::events::{Cold, Events, Retire, Subject, What};
use crate::server::logs::{Journal, LogSink, lines};
use crate::server::pool::{Dismissed, Drained, Lease, Limits, NoTurn, Permit, Pool, Snapshot, Turn, Want};

/// Requests of one function that may wait for capacity: each holds its payload.
const WAITERS: usize = 100;
/// How long a request waits for an environment that has answered and is about to come back.
const SETTLE: Duration = Duration::from_millis(10);

/// Cheap to clone: all clones are one.
pub struct Dispatch<F, M, L = Launchers>(Arc<Parts<F, M, L>>);

struct Parts<F, M, L> {
    functions: Arc<F>,
    meter: Arc<M>,
    starter: Starter<L>,
    pool: Pool<Environment>,
    remembered: Remembered,
    logs: Arc<dyn LogSink>,
    events: Events,
    in_force: InForce,
    profile: Profile,
    stopping: AtomicBool,
    /// What still runs is to end now: so long has a drain waited for it.
    cut: watch::Sender<Option<Duration>>,
    /// Invocations that have not ended, settling ones included.
    running: watch::Sender<usize>,
    lost_rows: AtomicU64,
}

impl<F, M, L> Clone for Dispatch<F, M, L> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<F: Functions, M: Meter, L: Launcher> Dispatch<F, M, L> {
    pub fn new(
        in_force: impl Into<InForce>,
        functions: Arc<F>,
        meter: Arc<M>,
        launchers: L,
        logs: Arc<dyn LogSink>,
        events: Events,
    ) -> Self {
        let in_force = in_force.into();
        let config = &*in_force.now();
        let pool = Pool::new(limits(config), events.clone());
        let (cut, told) = watch::channel(None);
        for (function, reserve) in functions.reserves() {
            pool.reserve(&function, Some(reserve as usize));
        }
        warn_if_nothing_is_left(config, &*functions);
        Self(Arc::new(Parts {
            functions,
            meter,
            starter: Starter::new(config, launchers, logs.clone(), told, events.clone()),
            pool,
            remembered: Remembered::default(),
            logs,
            events,
            profile: config.profile,
            in_force,
            stopping: AtomicBool::new(false),
            cut,
            running: watch::Sender::new(0),
            lost_rows: AtomicU64::new(0),
        }))
    }

    /// The configuration has changed.
    pub fn reload(&self) {
        let config = self.0.in_force.now();
        self.0.pool.bound(limits(&config));
        warn_if_nothing_is_left(&config, &*self.0.functions);
    }

    /// Runs one invocation. It goes on if the caller goes away.
    pub async fn invoke(&self, invocation: Invocation) -> Result<Answer, Refusal> {
        let (caller, answer) = oneshot::channel();
        let running = Running::begin(self.clone())?;
        tokio::spawn(async move {
            running.0.run(invocation, Caller(Some(caller))).await;
        });
        answer.await.unwrap_or_else(|_| Err(Refusal::Internal("the invocation's task has ended".into())))
    }

    async fn run(&self, invocation: Invocation, mut caller: Caller) {
        let mut cut = self.0.cut.subscribe();
        let ready = tokio::select! {
            biased;
            // Its function has not seen it: the caller may try again.
            _ = cut.wait_for(Option::is_some) => Err(Refusal::Stopping),
            ready = self.ready(&invocation) => ready,
        };
        let Ready { function, waited, warm, environment } = match ready {
            Ok(ready) => ready,
            Err(refusal) => return caller.hears(Err(refusal)),
        };
        let (events, request) = (self.0.events.clone(), Some(invocation.request));
        let invoked = What::Invoked { cold: !warm, waited_us: micros(waited) };
        let (mut lease, run) = match environment {
            Ok(ready) => ready,
            Err(failed) => return self.never_started(&invocation, &function, failed, waited, caller).await,
        };
        let subject = lease.subject().clone();
        events.emit(&subject, request, invoked);
        let (environment, grow) = lease.parts();
        let outcome = match environment.invoke(&invocation, run, &grow).await {
            // It died idle, a moment before it could be noticed. Each time, one idle environment fewer is left.
            Invoked::NeverRead(_) if warm => {
                environment.take_back();
                drop(grow);
                events.emit(&subject, request, What::TakenBack);
                lease.end(Retire::Died);
                return Box::pin(self.run(invocation, caller)).await;
            }
            Invoked::NeverRead(outcome) | Invoked::Ended(outcome) => outcome,
        };
        drop(grow);
        if let Some(Cause::Cut(_)) = outcome.cause() {
            warn!(function = %invocation.function, request = %invocation.request, "cut: it ran longer than the drain waits");
        }
        lease.answered();
        if invocation.log_type == LogType::None {
            caller.hears(Ok(Answer { outcome: outcome.clone(), log_tail: Vec::new() }));
        }
        let (environment, grow) = lease.parts();
        let settled = environment.settle(&invocation, &outcome, run, &grow).await;
        drop(grow);
        let cause = reported(&outcome, settled.trouble.as_ref());
        if let Some(cause) = cause {
            ends::invocation_failed(&lease.output().origin(), invocation.request, cause);
        }
        let row = self.row(&invocation, &function, cause, run.start, settled.took, lease.peak(), lease.init_to_report());
        crate::kill_point!("before-meter");
        self.enter(&row).await;
        lease.output().platform(&lines::end(invocation.request));
        lease.output().platform(&lines::report(&row, cause));
        let log_tail = lease.output().end();
        events.emit(&subject, request, ended(&row, !warm));
        crate::kill_point!("before-give-back");
        self.give_back(lease, &function.name, &outcome, &settled);
        caller.hears(Ok(Answer { outcome, log_tail }));
    }

    /// Everything before the event can be handed over.
    async fn ready(&self, invocation: &Invocation) -> Result<Ready, Refusal> {
        let began = Instant::now();
        let (function, found) = self.turn(invocation).await.inspect_err(|refusal| {
            if let Refusal::Throttled(reason) = *refusal {
                let (in_use, limit) = self.0.pool.shortage(&invocation.function, reason);
                let throttled = What::Throttled { reason, waited_us: micros(began.elapsed()), in_use, limit };
                self.0.events.emit(&Subject::function(&invocation.function), Some(invocation.request), throttled);
            }
        })?;
        let waited = began.elapsed();
        let warm = matches!(found, Ok(Turn::Warm(_)));
        let environment = match found {
            Ok(turn) => self.environment(&function, invocation.request, turn).await,
            Err(failed) => Err(failed),
        };
        Ok(Ready { function, waited, warm, environment })
    }

    /// Waits for a turn; if the function changes meanwhile, for one of its new self.
    async fn turn(&self, invocation: &Invocation) -> Result<(Arc<Function>, Found), Refusal> {
        let until = Instant::now() + self.0.in_force.now().capacity_wait();
        loop {
            let function = self.function(&invocation.function)?;
            let (name, stamp, memory, reuse) = (function.name.clone(), function.stamp, function.memory, function.reuse);
            let turn = self.0.pool.acquire(Want { function: name, stamp, memory, reuse, until }).await;
            let current = self.0.functions.function(&invocation.function).map(|function| function.stamp);
            match turn {
                Ok(turn) if current == Some(stamp) => return Ok((function, Ok(turn))),
                Ok(turn) => turn.unused(current),
                Err(NoTurn::Throttled(why)) => return Err(Refusal::Throttled(why)),
                Err(NoTurn::TellAgain) if current == Some(stamp) => match self.0.remembered.recall(&function) {
                    Some((failure, ago)) => {
                        let run = Run::begin(invocation.request, function.timeout.duration());
                        return Ok((function, Err(NeverStarted { failure, run, ago: Some(ago) })));
                    }
                    // Another's init has been good since; and if not, this ends some time, and is no tight loop until then.
                    None if Instant::now() < until => tokio::time::sleep(SETTLE).await,
                    None => return Err(Refusal::Throttled(Throttle::Starts)),
                },
                Err(NoTurn::TellAgain) => {}
            }
        }
    }

    fn function(&self, name: &FunctionName) -> Result<Arc<Function>, Refusal> {
        self.0.functions.function(name).ok_or_else(|| Refusal::UnknownFunction(name.clone()))
    }

    /// An environment that waits for the event: a warm one, or a new one, whose init is tried twice. The second
    /// time it runs inside of the invocation, in a new container, under the function's timeout.
    async fn environment(&self, function: &Arc<Function>, request: RequestId, turn: Turn<Environment>) -> Readied {
        let limit = function.timeout.duration();
        let permit = match turn {
            Turn::Warm(lease) => return Ok((lease, Run::begin(request, limit))),
            Turn::Cold(permit) => permit,
        };
        let starting = Starting::begin(&self.0.events, function, request, permit.why());
        let first = match self.start(function, &permit, None).await {
            Ok(environment) => {
                starting.ready(&environment);
                self.0.remembered.forget(function);
                return Ok((permit.install(environment), Run::begin(request, limit)));
            }
            Err(failure) => failure,
        };
        starting.failed(&first, true);
        ends::init_failed(&first.origin, request, &first.cause);
        // It may take as long as the function's timeout: others must be able to start meanwhile.
        permit.start_is_over();
        let run = Run::begin(request, limit);
        let starting = Starting::begin(&self.0.events, function, request, Cold::Again);
        match self.start(function, &permit, Some(run)).await {
            Ok(mut environment) => {
                starting.ready(&environment);
                self.0.remembered.forget(function);
                environment.init_was_inside();
                Ok((permit.install(environment), run))
            }
            Err(failure) => {
                starting.failed(&failure, false);
                // Before the pool hears of it, which may send somebody to ask.
                let current = self.0.functions.function(&function.name).map(|function| function.stamp);
                if self.0.remembered.keep(function, &failure, current) {
                    permit.failed(current);
                }
                Err(NeverStarted { failure, run, ago: None })
            }
        }
    }

    async fn start(
        &self,
        function: &Arc<Function>,
        permit: &Permit<Environment>,
        inside: Option<Run>,
    ) -> Result<Environment, InitFailure> {
        let (pool, slot) = (self.0.pool.clone(), permit.slot());
        let built = |facts: &Arc<Facts>| permit.building(Some(facts.clone()));
        let started = self.0.starter.start(function, inside, &|tmp| permit.grow(tmp), built, move || pool.died(slot)).await;
        if started.is_err() {
            permit.building(None);
        }
        started
    }

    /// Both inits failed, now or a moment ago: the invocation ends with the second one's error.
    async fn never_started(
        &self,
        invocation: &Invocation,
        function: &Function,
        failed: NeverStarted,
        waited: Duration,
        mut caller: Caller,
    ) {
        let NeverStarted { failure, run, ago } = failed;
        // A failure of before is another request's container's.
        let container = failure.origin.container.as_deref().filter(|_| ago.is_none()).map(Into::into);
        let (of, cold) = (Subject { container, ..Subject::function(&function.name) }, ago.is_none());
        let request = Some(invocation.request);
        self.0.events.emit(&of, request, What::Invoked { cold, waited_us: micros(waited) });
        ends::invocation_failed(&failure.origin, invocation.request, &failure.cause);
        let timed_out = failure.cause.report_type() == "Sandbox.Timedout" && ago.is_none();
        let took = if timed_out { run.limit } else { run.began.elapsed() };
        let outcome = Outcome::Failed(match failure.body {
            Some(body) => FunctionFailure::reported(failure.cause, body),
            None => FunctionFailure::found(failure.cause, invocation.request),
        });
        let mut journal = Journal::new(failure.origin, self.0.logs.clone());
        journal.begin(invocation.request, lines::start(invocation.request, "$LATEST"));
        journal.quote(&failure.said);
        if let Some(ago) = ago {
            journal.platform(&lines::not_tried_again(ago));
        }
        if let Some(cause) = outcome.cause() {
            journal.platform(&lines::failure(invocation.request, cause, SystemTime::now()));
        }
        let row = self.row(invocation, function, outcome.cause(), run.start, took, failure.peak, None);
        self.enter(&row).await;
        journal.platform(&lines::end(invocation.request));
        journal.platform(&lines::report(&row, outcome.cause()));
        self.0.events.emit(&of, request, ended(&row, cold));
        caller.hears(Ok(Answer { outcome, log_tail: journal.end() }));
    }

    #[allow(clippy::too_many_arguments, reason = "each is one column")]
    fn row(
        &self,
        invocation: &Invocation,
        function: &Function,
        cause: Option<&Cause>,
        start: SystemTime,
        duration: Duration,
        peak: u64,
        init: Option<Duration>,
    ) -> Row {
        Row {
            request: invocation.request,
            function: function.name.clone(),
            version: "$LATEST".into(),
            start,
            duration,
            billed: billed(self.0.profile, duration, function.timeout.duration(), init),
            memory: function.memory,
            max_memory_used_mib: max_memory_used_mib(peak),
            init,
            error_type: cause.map(|cause| cause.report_type().to_owned()),
        }
    }

    /// Into the books. If they cannot be written the answer still goes out.
    async fn enter(&self, row: &Row) {
        if let Err(error) = self.0.meter.record(row.clone()).await {
            let lost = self.0.lost_rows.fetch_add(1, Ordering::Relaxed) + 1;
            error!(function = %row.function, request = %row.request, %error, lost, "an invocation is missing in the books");
        }
    }

    fn give_back(&self, lease: Lease<Environment>, name: &FunctionName, outcome: &Outcome, settled: &Settled) {
        let current = self.0.functions.function(name).map(|function| function.stamp);
        match settled.reusable {
            Some(usage) if !self.0.stopping.load(Ordering::SeqCst) => lease.give_back(usage.into(), current),
            Some(_) => lease.end(Retire::Stopping),
            None if is_cut(outcome) || settled.trouble.as_ref().is_some_and(|cause| matches!(cause, Cause::Cut(_))) => {
                lease.end(Retire::Stopping)
            }
            None => drop(lease),
        }
    }

    /// Somebody was refused before they came here, as so much of so much was in use: told and counted as others are.
    pub fn refused_before(
        &self,
        function: &FunctionName,
        request: RequestId,
        reason: Throttle,
        waited: Duration,
        (in_use, limit): (u64, u64),
    ) {
        self.0.pool.refused_before(reason);
        let throttled = What::Throttled { reason, waited_us: micros(waited), in_use, limit };
        self.0.events.emit(&Subject::function(function), Some(request), throttled);
    }

    pub fn snapshot(&self) -> Snapshot {
        self.0.pool.snapshot()
    }

    /// With every environment's memory as it is now. For a thread that may block.
    pub fn measured(&self) -> Snapshot {
        self.0.pool.measured()
    }

    /// How many invocations have not ended, as it changes.
    pub fn running(&self) -> watch::Receiver<usize> {
        self.0.running.subscribe()
    }

    /// Rows that are missing in the books since the start.
    pub fn lost_rows(&self) -> u64 {
        self.0.lost_rows.load(Ordering::Relaxed)
    }

    /// Call after a function or its reserve was changed or deleted in the registry: idle environments of older stamps end
    /// now, busy ones when their invocation ends; the reserve counts from now on.
    pub fn function_changed(&self, name: &FunctionName) {
        let current = self.0.functions.function(name).map(|function| function.stamp);
        self.0.pool.function_changed(name, current);
        self.0.remembered.forget_other(name, current);
        self.0.pool.reserve(name, self.0.functions.reserved(name).map(|reserve| reserve as usize));
    }

    /// Ends all environments of a function, as `by` wants: idle ones now, the others when their invocation ends. `None`: there is neither
    /// such a function nor an environment of one.
    pub fn drain_function(&self, name: &FunctionName, by: &str) -> Option<Drained> {
        let drained = self.0.pool.drain(name, by);
        let known = self.0.functions.function(name).is_some() || drained.ended + drained.leaving > 0;
        known.then_some(drained)
    }

    /// Ends one environment when it is idle. `by`: who wants so. `None`: there is none in this container.
    pub fn recycle_container(&self, container: &str, by: &str) -> Option<Dismissed> {
        self.0.pool.recycle(container, by)
    }

    /// Ends one environment now, and the invocation that it runs. `by`: who wants so.
    pub fn kill_container(&self, container: &str, by: &str) -> Option<Dismissed> {
        self.0.pool.kill(container, by)
    }

    /// Recycles what is idle too long, looking every second. Never ends; a task of the server's.
    pub async fn recycle(self) {
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            seconds.tick().await;
            self.0.pool.tick();
        }
    }

    /// Takes no new invocation, waits until the running ones have ended, ends all environments.
    /// Drop the future to stop waiting, and [`Self::cut`] what is left.
    pub async fn drain(&self) {
        self.0.stopping.store(true, Ordering::SeqCst);
        self.0.pool.stop();
        let mut running = self.0.running.subscribe();
        // The sender is ours: it cannot be gone.
        let _ = running.wait_for(|running| *running == 0).await;
        self.0.pool.stop();
    }

    /// The drain has waited so long: ends every invocation that still runs, with this cause in its answer, its log and the
    /// books. Those whose function has not seen them are refused. Wait for all by another [`Self::drain`].
    pub fn cut(&self, waited: Duration) {
        self.0.stopping.store(true, Ordering::SeqCst);
        let running = *self.0.running.borrow();
        warn!(running, waited_s = waited.as_secs(), "the drain is over: what still runs is cut");
        self.0.cut.send_replace(Some(waited));
    }
}

/// What an invocation has before its event is handed over.
struct Ready {
    function: Arc<Function>,
    /// How long it waited for its turn.
    waited: Duration,
    warm: bool,
    environment: Readied,
}

/// An environment that waits for the event, or why there is none.
type Readied = Result<(Lease<Environment>, Run), NeverStarted>;

fn limits(config: &Config) -> Limits {
    let (idle_min, idle_max) = config.idle();
    Limits {
        budget: budget::of(config),
        starts: config.parallel_starts as usize,
        concurrency: config.concurrency as usize,
        waiters: WAITERS,
        idle_min,
        idle_max,
        max_age: config.max_age(),
        settle: SETTLE,
    }
}

/// Only when `concurrency` was lowered: no reserve is taken that leaves so little.
fn warn_if_nothing_is_left(config: &Config, functions: &impl Functions) {
    let reserved: u64 = functions.reserves().iter().map(|(_, reserve)| u64::from(*reserve)).sum();
    let concurrency = config.concurrency;
    if reserved >= u64::from(concurrency) {
        warn!(reserved, concurrency, "functions without reserved concurrency cannot run: raise `concurrency`, or lower reserves");
    }
}

/// What an invocation found: its turn, or that its function's init is not tried again yet.
type Found = Result<Turn<Environment>, NeverStarted>;

/// An invocation without an environment.
struct NeverStarted {
    failure: InitFailure,
    run: Run,
    /// How long ago the init failed, where it was not tried again.
    ago: Option<Duration>,
}

/// One invocation counted as running, for as long as this lives.
struct Running<F: Functions, M: Meter, L: Launcher>(Dispatch<F, M, L>);

impl<F: Functions, M: Meter, L: Launcher> Running<F, M, L> {
    fn begin(dispatch: Dispatch<F, M, L>) -> Result<Self, Refusal> {
        // Counted before the look, so that a drain which begins in between sees it.
        dispatch.0.running.send_modify(|running| *running += 1);
        let running = Self(dispatch);
        if running.0.0.stopping.load(Ordering::SeqCst) { Err(Refusal::Stopping) } else { Ok(running) }
    }
}

impl<F: Functions, M: Meter, L: Launcher> Drop for Running<F, M, L> {
    fn drop(&mut self) {
        self.0.0.running.send_modify(|running| *running -= 1);
    }
}

/// Hears the first answer only; may have gone away.
struct Caller(Option<oneshot::Sender<Result<Answer, Refusal>>>);

impl Caller {
    fn hears(&mut self, answer: Result<Answer, Refusal>) {
        if let Some(caller) = self.0.take() {
            let _ = caller.send(answer);
        }
    }
}

/// What REPORT and the books name: what ended the environment. The handler's own error ends none; an exit or a timeout
/// after the answer does, though its caller has long heard something else.
fn reported<'a>(outcome: &'a Outcome, trouble: Option<&'a Cause>) -> Option<&'a Cause> {
    match outcome.cause() {
        None | Some(Cause::Reported { .. }) => trouble.or(outcome.cause()),
        first => first,
    }
}

fn is_cut(outcome: &Outcome) -> bool {
    matches!(outcome.cause(), Some(Cause::Cut(_)))
}

/// The row of the books, as an event.
fn ended(row: &Row, cold: bool) -> What {
    What::Ended {
        duration_us: micros(row.duration),
        billed_ms: u64::try_from(row.billed.as_millis()).unwrap_or(u64::MAX),
        memory_mib: row.memory.mib(),
        max_memory_mib: row.max_memory_used_mib,
        init_us: row.init.map(micros),
        cold,
        cause: row.error_type.clone(),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
