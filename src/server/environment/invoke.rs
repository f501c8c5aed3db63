//! One invocation in one environment: the event in, the answer out, and back to rest.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::HeaderMap;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::{Environment, Grow, Perform};
use crate::invocation::{Cause, FunctionFailure, Invocation, Outcome, RequestId};
use crate::server::events::What;
use crate::server::logs::lines;
use crate::server::runtime_api::{AfterWrite, Event, Reply};

/// Within so long the connections of a killed runtime are over.
const CONNECTION_ENDS: Duration = Duration::from_secs(1);

/// The time of one invocation.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub request: RequestId,
    pub began: Instant,
    /// The same moment, as clocks on the wall show it.
    pub start: SystemTime,
    /// The function's timeout.
    pub limit: Duration,
}

impl Run {
    pub fn begin(request: RequestId, limit: Duration) -> Self {
        Self { request, began: Instant::now(), start: SystemTime::now(), limit }
    }

    pub(super) fn until(&self) -> Instant {
        self.began + self.limit
    }
}

/// What became of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invoked {
    Ended(Outcome),
    /// The runtime was dead before it had read the event; nobody has seen it. With what it died of.
    NeverRead(Outcome),
}

/// How an invoke phase ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// REPORT's Duration.
    pub took: Duration,
    /// What ended the environment, where the answer did not.
    pub trouble: Option<Cause>,
    /// Frozen, and fit for another invocation.
    pub reusable: Option<Frozen>,
}

/// What a frozen environment really uses, in bytes; it cannot grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// Everything that is charged to its container.
    pub memory: u64,
    /// /tmp alone.
    pub tmp: u64,
}

impl Environment {
    /// Hands the event over and waits for the answer. After a failure that the runtime did not report itself,
    /// the container is killed; [`Environment::settle`] still has to be called.
    pub async fn invoke(&mut self, invocation: &Invocation, run: Run, grow: Grow<'_>) -> Invoked {
        self.output.begin(invocation.request, lines::start(invocation.request, "$LATEST"));
        let cgroup = self.cgroup.clone();
        let was_frozen = std::mem::take(&mut self.frozen);
        let (events, subject, request) = (self.events.clone(), self.subject.clone(), invocation.request);
        // The event first: it is in the socket when the runtime runs again.
        let thaw = AfterWrite::new(move || {
            crate::kill_point!("before-thaw");
            cgroup.thaw();
            if was_frozen {
                events.emit(&subject, Some(request), What::Thawed);
            }
        });
        let desk = self.desk.clone();
        if let Err(error) = desk.deliver(event(invocation, run), thaw) {
            self.kill();
            return Invoked::Ended(failed(Cause::Sandbox { text: error.to_string() }, invocation));
        }
        crate::kill_point!("event-delivered");
        Invoked::Ended(match self.perform(desk.reply(), run.until(), run.limit, grow).await {
            Perform::Done(Reply::Response(body)) => Outcome::Success(body),
            Perform::Done(Reply::Error { error_type, body }) => {
                Outcome::Failed(FunctionFailure::reported(Cause::Reported { error_type }, body))
            }
            Perform::Done(Reply::TooLarge) => failed(Cause::ResponseTooLarge, invocation),
            Perform::Done(Reply::InvalidMode) => failed(Cause::InvalidResponseMode, invocation),
            Perform::Trouble(cause) => {
                self.kill();
                // Who told of the end may have been faster than the runtime's own: its connection says what it has read.
                if self.ended.borrow().is_some() && timeout(CONNECTION_ENDS, desk.never_read()).await.unwrap_or(false) {
                    return Invoked::NeverRead(failed(cause, invocation));
                }
                failed(cause, invocation)
            }
        })
    }

    /// Instead of [`Environment::settle`], when the invocation goes to another environment.
    pub fn take_back(&self) {
        self.output.take_back();
    }

    /// Waits for the end of the invoke phase: the runtime asks for more, or is over. Then takes in the rest of the
    /// output, writes a failure's lines and, if the environment is fit for it, freezes it.
    pub async fn settle(&mut self, invocation: &Invocation, outcome: &Outcome, run: Run, grow: Grow<'_>) -> Settled {
        let fatal = outcome.cause().filter(|cause| !cause.leaves_environment_usable()).cloned();
        let desk = self.desk.clone();
        let (trouble, reusable) = match fatal {
            Some(cause) => (Some(cause), false),
            None => match self.perform(desk.asked_again(), run.until(), run.limit, grow).await {
                Perform::Done(()) => (None, true),
                Perform::Trouble(cause) => (Some(cause), false),
            },
        };
        if let (Some(cause), false) = (&trouble, reusable) {
            self.unfit(cause.clone());
        }
        let took = match trouble {
            Some(Cause::Timeout(limit)) => limit,
            _ => run.began.elapsed(),
        };
        if !reusable {
            self.kill();
        }
        self.output.drain();
        // The caller has its answer, whatever comes after it.
        let trouble = trouble.filter(|cause| outcome.cause() != Some(cause));
        for cause in [outcome.cause(), trouble.as_ref()].into_iter().flatten() {
            self.output.platform(&lines::failure(invocation.request, cause, SystemTime::now()));
        }
        Settled { took, trouble, reusable: if reusable { self.rest(Some(invocation.request), grow) } else { None } }
    }

    /// It will serve nobody any more, and that is why.
    fn unfit(&self, cause: Cause) {
        let _ = self.facts.unfit.set(cause);
        self.facts.peak.store(self.wall.peak(), Ordering::Relaxed);
    }

    /// The last look at the wall, then the freeze. `None`: not fit to be used again.
    pub(super) fn rest(&mut self, request: Option<RequestId>, grow: Grow<'_>) -> Option<Frozen> {
        let rested = self.try_to_rest(grow).unwrap_or_else(|error| {
            let origin = self.output.origin();
            warn!(function = %origin.function, container = origin.container, %error, "an environment could not be rested");
            Err(Cause::Sandbox { text: format!("it could not be rested: {error}") })
        });
        match rested {
            Ok(frozen) => {
                self.frozen = true;
                self.events.emit(&self.subject, request, What::Frozen);
                Some(frozen)
            }
            Err(cause) => {
                self.unfit(cause);
                None
            }
        }
    }

    fn try_to_rest(&mut self, grow: Grow<'_>) -> io::Result<Result<Frozen, Cause>> {
        let (sample, verdict) = self.wall.sample()?;
        self.facts.used.store(sample.used, Ordering::Relaxed);
        if let Some(cause) = self.judge(verdict, grow) {
            return Ok(Err(cause));
        }
        crate::kill_point!("before-freeze");
        self.cgroup.freeze()?;
        Ok(Ok(Frozen { memory: sample.current, tmp: sample.tmp }))
    }
}

fn failed(cause: Cause, invocation: &Invocation) -> Outcome {
    Outcome::Failed(FunctionFailure::found(cause, invocation.request))
}

/// The event as `next` delivers it. A header whose value cannot be one is left out, like one without a value.
fn event(invocation: &Invocation, run: Run) -> Event {
    let mut headers = HeaderMap::with_capacity(6);
    let mut set = |name: &'static str, value: &str| {
        if let (Ok(value), false) = (HeaderValue::from_bytes(value.as_bytes()), value.is_empty()) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    let left = run.until().saturating_duration_since(Instant::now());
    let deadline = (SystemTime::now() + left).duration_since(UNIX_EPOCH).unwrap_or_default();
    set("lambda-runtime-aws-request-id", &invocation.request.to_string());
    set("lambda-runtime-deadline-ms", &deadline.as_millis().to_string());
    set("lambda-runtime-invoked-function-arn", &invocation.invoked_arn);
    set("lambda-runtime-trace-id", &invocation.trace);
    if let Some(context) = &invocation.client_context {
        // JSON has line breaks only between its tokens.
        set("lambda-runtime-client-context", &context.replace(['\r', '\n'], " "));
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Event { request: invocation.request, headers, payload: invocation.payload.clone() }
}
