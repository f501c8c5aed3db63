//! The init phase: from a resting container to a runtime that asks for its first event.
//!
//! It runs at the launcher's CPU speed (at least one CPU); after it, the function gets what its memory buys.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::container::{Container, LaunchError, Launcher, Plan};
use super::recipes::Recipes;
use super::vars;
use super::wall::Wall;
use super::watch::{Control, Pulse, watch};
use super::{Environment, Facts, Grow, Perform, Run};
use crate::config::Config;
use crate::function::Function;
use crate::invocation::Cause;
use crate::runtime::{Recipe, WRAPPER_VAR};
use crate::server::events::{Events, Subject};
use crate::server::logs::lines::{self, Phase};
use crate::server::logs::{Journal, LogSink, Origin, Output};
use crate::server::readiness::set_nonblocking;
use crate::server::runtime_api::{self, Desk, Init};
use crate::wire::{MAX_MESSAGE, init};

/// Lambda's limit on an init phase outside of an invocation.
/// <https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtime-environment.html>
pub const INIT_LIMIT: Duration = Duration::from_secs(10);

/// Starts environments.
#[derive(Clone)]
pub struct Starter<L> {
    launcher: L,
    recipes: Arc<Recipes>,
    region: String,
    sink: Arc<dyn LogSink>,
    cut: watch::Receiver<Option<Duration>>,
    events: Events,
}

/// An init that failed. What was built is gone.
#[derive(Clone, Debug)]
pub struct InitFailure {
    pub cause: Cause,
    /// Who has killed it by hand, if anybody.
    pub by: Option<String>,
    /// What the runtime posted, verbatim.
    pub body: Option<Bytes>,
    pub took: Duration,
    /// The most memory in use, in bytes.
    pub peak: u64,
    /// Whose log tells of it.
    pub origin: Arc<Origin>,
    /// The end of what it printed.
    pub said: Vec<u8>,
}

impl<L: Launcher> Starter<L> {
    /// Once `cut` holds how long a drain has waited, everything that runs is ended for that.
    pub fn new(
        config: &Config,
        launcher: L,
        sink: Arc<dyn LogSink>,
        cut: watch::Receiver<Option<Duration>>,
        events: Events,
    ) -> Self {
        let recipes = Arc::new(Recipes::new(config.runtimes_dir.clone()));
        Self { launcher, recipes, region: config.region.clone(), sink, cut, events }
    }

    /// Builds a container and initialises it: within [`INIT_LIMIT`] from when it is built, or, `inside` of an invocation,
    /// within that one's time. `built` is told when there is a container; `died` is called if it ends by itself later.
    pub async fn start(
        &self,
        function: &Arc<Function>,
        inside: Option<Run>,
        grow: Grow<'_>,
        built: impl FnOnce(&Arc<Facts>),
        died: impl FnOnce() + Send + 'static,
    ) -> Result<Environment, InitFailure> {
        let began = Instant::now();
        let phase = if inside.is_some() { Phase::Invoke } else { Phase::Init };
        let stream = vars::log_stream(Timestamp::now(), uuid::Uuid::new_v4().as_u128());
        let origin = |container| {
            let version = "$LATEST".to_owned();
            Arc::new(Origin { function: function.name.clone(), version, stream: stream.clone(), container })
        };
        let nowhere = origin(None);
        let our_fault = |error: StartError| {
            let (cause, took) = (Cause::Sandbox { text: error.to_string() }, began.elapsed());
            let mut journal = Journal::new(nowhere.clone(), self.sink.clone());
            journal.platform(&lines::init_report(took, phase, &cause));
            InitFailure { cause, by: None, body: None, took, peak: 0, origin: nowhere.clone(), said: Vec::new() }
        };
        crate::kill_point!("before-start");
        let (recipe, container) = self.build(function).await.map_err(our_fault)?;
        let since = Instant::now();
        let (until, limit) = inside.map_or((since + INIT_LIMIT, INIT_LIMIT), |run| (run.until(), run.limit));
        let wrapper = function.vars.get(WRAPPER_VAR).map(String::as_str);
        let candidates = recipe.command_lines(function.memory, wrapper);
        let mut journal = Journal::new(origin(Some(container.id.to_string())), self.sink.clone());
        journal.init(inside.map(|run| run.request), &lines::init_start(&recipe, &self.region));
        let mut environment =
            self.assemble(function, (&recipe, &stream), &candidates, container, journal, died).map_err(our_fault)?;
        let message = self.start_message(function, &recipe, &candidates, &stream).map_err(our_fault)?;
        environment.control.start(&message).map_err(StartError::Io).map_err(our_fault)?;
        environment.build = since - began;
        built(&environment.facts);
        crate::kill_point!("init-running");

        let desk = environment.desk.clone();
        let performed = environment.perform(desk.init(), until, limit, grow).await;
        environment.init = since.elapsed();
        let (cause, body) = match performed {
            Perform::Done(Init::Ready) => match environment.cgroup.slow_down(function.memory) {
                Ok(()) => return Ok(environment),
                Err(error) => (Cause::Sandbox { text: format!("set the CPU quota: {error}") }, None),
            },
            Perform::Done(Init::Error { error_type, body }) => (Cause::Init { error_type }, Some(body)),
            Perform::Trouble(cause) => (cause, None),
        };
        environment.kill();
        environment.output.drain();
        // Before the line that follows it: the caller of an invocation that never began wants to see what it said.
        let said = environment.output.said();
        environment.output.platform(&lines::init_report(environment.init, phase, &cause));
        let (took, peak, origin) = (environment.init, environment.wall.peak(), environment.output.origin());
        let by = environment.facts.killed_by().map(str::to_owned);
        Err(InitFailure { cause, by, body, took, peak, origin, said })
    }

    async fn build(&self, function: &Function) -> Result<(Arc<Recipe>, Container), StartError> {
        let missing = || StartError::NotInstalled(function.runtime.to_string());
        let recipe = self.recipes.recipe(&function.runtime)?.ok_or_else(missing)?;
        let container = self.launcher.build(Plan::of(function, recipe.tree)).await?;
        Ok((recipe, container))
    }

    fn assemble(
        &self,
        function: &Arc<Function>,
        (recipe, stream): (&Arc<Recipe>, &str),
        candidates: &[Vec<String>],
        container: Container,
        journal: Journal,
        died: impl FnOnce() + Send + 'static,
    ) -> Result<Environment, StartError> {
        let Container { id, end, cgroup, gauge, clock, init, listener, log, control, keeper, lost } = container;
        let desk = Arc::new(Desk::default());
        let output = Output::new(journal, log)?;
        let gauge = Arc::new(gauge);
        let pulse = Pulse::new(init)?;
        let control = Control::new(control)?;
        set_nonblocking(&listener)?;
        let listener = TcpListener::from_std(listener.into())?;
        let (told, ended) = watch::channel(None);

        let mut tasks = JoinSet::new();
        tasks.spawn(runtime_api::serve(listener, desk.clone()));
        tasks.spawn(output.clone().read());
        tasks.spawn(watch(control.clone(), pulse.clone(), lost, told, died));
        let container = id.to_string();
        let subject = Arc::new(Subject::environment(&function.name, &container));
        Ok(Environment {
            _end: end,
            facts: Arc::new(Facts {
                container,
                used: AtomicU64::default(),
                peak: AtomicU64::default(),
                unfit: OnceLock::new(),
                by: OnceLock::new(),
                killer: OnceLock::new(),
                visitor: OnceLock::new(),
                ended: ended.clone(),
                function: function.clone(),
                recipe: recipe.clone(),
                region: self.region.clone(),
                stream: stream.to_owned(),
                keeper,
                pulse: pulse.clone(),
                gauge: gauge.clone(),
                clock,
                cgroup: cgroup.clone(),
                output: output.clone(),
            }),
            programs: candidates.iter().filter_map(|line| line.first().cloned()).collect(),
            cgroup,
            wall: Wall::new(gauge, function.memory),
            desk,
            output,
            control,
            pulse,
            ended,
            cut: self.cut.clone(),
            build: Duration::ZERO,
            init: Duration::ZERO,
            reported_init: false,
            frozen: false,
            events: self.events.clone(),
            subject,
            _tasks: tasks,
        })
    }

    fn start_message(
        &self,
        function: &Function,
        recipe: &Recipe,
        candidates: &[Vec<String>],
        stream: &str,
    ) -> Result<Vec<u8>, StartError> {
        let vars = vars::vars(function, recipe, &self.region, stream);
        encode_start(candidates, &vars).ok_or(StartError::TooManyWords)
    }
}

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("runtime {0} is not installed")]
    NotInstalled(String),
    #[error(transparent)]
    Recipe(#[from] crate::runtime::RecipeError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("take a container over: {0}")]
    Io(#[from] std::io::Error),
    #[error("start commands and variables are more than kiln-init takes")]
    TooManyWords,
}

/// START, as `wire::init` has it. `None` if it does not fit, or a word has a NUL.
pub fn encode_start(candidates: &[Vec<String>], vars: &[(String, String)]) -> Option<Vec<u8>> {
    let mut message = vec![init::START, u8::try_from(candidates.len()).ok()?];
    message.extend(u16::try_from(vars.len()).ok()?.to_le_bytes());
    for line in candidates {
        message.push(u8::try_from(line.len()).ok().filter(|words| *words > 0)?);
    }
    let vars: Vec<String> = vars.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let words: Vec<&String> = candidates.iter().flatten().chain(&vars).collect();
    for word in &words {
        message.extend_from_slice(word.as_bytes());
        message.push(0);
    }
    let fits = words.len() <= init::MAX_WORDS && message.len() <= MAX_MESSAGE && !words.iter().any(|word| word.contains('\0'));
    fits.then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[&str]) -> Vec<String> {
        line.iter().map(|word| word.to_string()).collect()
    }

    #[test]
    fn start_is_encoded_as_kiln_init_reads_it() {
        let message = encode_start(&[words(&["/a", "-x"]), words(&["/b"])], &[("N".into(), "v".into())]);
        assert_eq!(message.unwrap(), b"\x01\x02\x01\x00\x02\x01/a\0-x\0/b\0N=v\0");
    }

    #[test]
    fn what_kiln_init_would_refuse_is_not_sent() {
        assert!(encode_start(&[vec![]], &[]).is_none());
        assert!(encode_start(&[words(&["/a\0b"])], &[]).is_none());
        let long = [("N".to_owned(), "x".repeat(70_000))];
        assert!(encode_start(&[words(&["/a"])], &long).is_none());
        let many: Vec<_> = (0..1024).map(|n| (format!("N{n}"), String::new())).collect();
        assert!(encode_start(&[words(&["/a"])], &many).is_none());
    }
}
