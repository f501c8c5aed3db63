//! People who look into an environment: who may, what it costs the environment, and how it ends.
//!
//! An idle environment is *held* for them: thawed, lent to nobody, and ended afterwards, since it is no longer what the function left.
//! Where their program could not be started, nobody was in it, and it is frozen again and serves as before.
//! One that runs an invocation is entered beside it, and ends with it, whether their program could be started or not: others may be
//! in it as well. Nothing waits for them: not a drain, not a stop, not the memory wall, which is watched as during an invocation
//! once they are in.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::Dispatch;
use crate::function::FunctionName;
use crate::invocation::{Cause, ProcessEnd};
use crate::meter::Meter;
use crate::registry::Functions;
use crate::server::environment::{Environment, Facts, Launcher, Over, Sight, Visit, VisitError};
use crate::server::events::{Cold, Event, Events, Filter, Retire, Subject, What};
use crate::server::pool::{Entered, Held, NotEntered, Seen};
use crate::wire::visit::Asked;

/// Why nobody gets in.
#[derive(Debug, thiserror::Error)]
pub enum NoVisit {
    #[error("there is no such container")]
    Gone,
    #[error("somebody is in it already, and has it for themselves until they leave")]
    Occupied,
    #[error("no memory of the budget is left to wake it: `kiln pool` shows who has it")]
    NoRoom,
    #[error("kilnd stops")]
    Stopping,
    #[error("{0}")]
    Failed(#[from] VisitError),
}

/// Somebody whose program runs in a container. Dropping it ends the program, and the environment if it was held.
pub struct Visiting {
    visit: Visit,
    place: Place,
    function: FunctionName,
    subject: Subject,
    events: Events,
    by: String,
}

enum Place {
    Held(Box<Held<Environment>>),
    Beside(Arc<Facts>),
}

impl<F: Functions, M: Meter, L: Launcher> Dispatch<F, M, L> {
    /// What is known of one environment, as the pool and as its launcher see it, and why it was started. `None`: there is none of
    /// this name.
    pub async fn look_into(&self, container: &str) -> Option<(Seen, Cold, Result<Sight, String>)> {
        let (mut seen, why, facts) = self.0.pool.find(container)?;
        if let Some(used) = facts.measure() {
            seen.used_mib = (used + (1 << 19)) >> 20;
            seen.peak_mib = seen.peak_mib.max(seen.used_mib);
        }
        let sight = facts.look().await.map_err(|error| error.to_string());
        Some((seen, why, sight))
    }

    /// What has happened in one container, as far as it is remembered.
    pub fn timeline(&self, container: &str) -> Vec<Event> {
        let mut life = self.0.events.kept(Filter { container: Some(container.to_owned()), ..Filter::default() });
        // When it was started, it had no container yet: only a request.
        if let Some(Event { seq, request: Some(request), .. }) = life.iter().find(|event| event.what.name() == "ready") {
            let starts = Filter { request: Some(*request), kinds: vec!["starting".into()], ..Filter::default() };
            let started = self.0.events.kept(starts).into_iter().rfind(|event| event.seq < *seq);
            life.splice(0..0, started);
        }
        life
    }

    /// Starts a program in a container. `by`: whose it is, for the logs.
    pub async fn visit(&self, container: &str, asked: &Asked, by: &str) -> Result<Visiting, NoVisit> {
        if self.0.stopping.load(Ordering::SeqCst) {
            return Err(NoVisit::Stopping);
        }
        let entered = self.0.pool.enter(container).await.map_err(|not| match not {
            NotEntered::Gone => NoVisit::Gone,
            NotEntered::Occupied => NoVisit::Occupied,
            NotEntered::NoRoom => NoVisit::NoRoom,
        })?;
        let (place, facts) = match entered {
            Entered::Held(mut held) => {
                held.lease.wake();
                let facts = held.lease.facts().clone();
                (Place::Held(Box::new(held)), facts)
            }
            Entered::Beside(facts) => (Place::Beside(facts.clone()), facts),
        };
        // Whatever else fails from here on, or whoever goes away, ends a held environment: it is awake, and somebody may have been in it.
        let inside = MayBeInside(&facts, by);
        let visit = match facts.enter(asked, by).await {
            Ok(visit) => visit,
            Err(error) => {
                if error.nothing_ran() {
                    if let Place::Held(held) = place {
                        inside.nobody_was();
                        self.not_entered(*held, facts.function());
                    }
                }
                return Err(error.into());
            }
        };
        drop(inside);
        let function = facts.function().clone();
        let subject = Subject::environment(&function, &facts.container);
        let events = self.0.events.clone();
        events.emit(&subject, None, What::Entered { by: by.to_owned() });
        Ok(Visiting { visit, place, function, subject, events, by: by.to_owned() })
    }

    fn not_entered(&self, mut held: Held<Environment>, function: &FunctionName) {
        let rests = {
            let (environment, grow) = held.lease.parts();
            environment.rest_again(&grow)
        };
        let current = self.0.functions.function(function).map(|function| function.stamp);
        match rests {
            Some(frozen) if !self.0.stopping.load(Ordering::SeqCst) => held.not_entered(frozen.into(), current),
            _ => drop(held),
        }
    }
}

/// Somebody on their way in. However that ends, they are named with the environment's end; unless nobody was in it.
struct MayBeInside<'a>(&'a Facts, &'a str);

impl MayBeInside<'_> {
    fn nobody_was(self) {
        std::mem::forget(self);
    }
}

impl Drop for MayBeInside<'_> {
    fn drop(&mut self) {
        self.0.visited(self.1);
    }
}

impl Visiting {
    pub fn function(&self) -> &FunctionName {
        &self.function
    }

    /// An invocation runs there, too, and ends it.
    pub fn is_beside(&self) -> bool {
        matches!(self.place, Place::Beside(_))
    }

    /// Until the program ends, its reader leaves, or the container has to end; `stop` when everybody has to. Tells how it was.
    pub async fn talk(self, stream: impl AsyncRead + AsyncWrite + Send, mut stop: watch::Receiver<bool>) -> String {
        let Self { visit, mut place, subject, events, by, .. } = self;
        let stopped = async {
            // Whoever could have told us is gone: that is being told, too.
            let _ = stop.wait_for(|stop| *stop).await.is_ok();
            "kilnd stops".to_owned()
        };
        let over = match &mut place {
            Place::Held(held) => {
                let Held { lease, told } = &mut **held;
                let (environment, grow) = lease.parts();
                let outside = async {
                    tokio::select! {
                        biased;
                        why = told => why.map_or_else(|_| "it has ended".to_owned(), ended),
                        why = stopped => why,
                        cause = environment.trouble_inside(&grow) => trouble(&cause),
                    }
                };
                visit.relay(stream, outside).await
            }
            Place::Beside(facts) => {
                let outside = async {
                    tokio::select! {
                        biased;
                        why = stopped => why,
                        () = facts.ended() => match facts.unwanted_by() {
                            Some(by) => format!("it ended with the invocation that it ran, as {by} wanted"),
                            None => "it ended with the invocation that it ran".to_owned(),
                        },
                    }
                };
                visit.relay(stream, outside).await
            }
        };
        events.emit(&subject, None, What::Left { by });
        if let Place::Held(held) = place {
            held.lease.end(Retire::Entered);
        }
        match over {
            Over::Program(ProcessEnd::Exited(status)) => format!("the program ended with status {status}"),
            Over::Program(ProcessEnd::Killed { signal, .. }) => format!("the program was ended by signal {signal}"),
            Over::Gone => "its reader went away".to_owned(),
            Over::Container(why) => why,
        }
    }
}

/// Why the pool ends what somebody holds.
fn ended(why: Retire) -> String {
    match why {
        Retire::Stopping => "kilnd stops".into(),
        Retire::Drained => "its function was drained by hand".into(),
        Retire::Recycled => "it was recycled by hand".into(),
        Retire::Killed => "it was killed by hand".into(),
        other => format!("it was ended ({other})"),
    }
}

fn trouble(cause: &Cause) -> String {
    match cause {
        Cause::OutOfMemory => "more memory was used than the function may".into(),
        Cause::Timeout(limit) => format!("nobody may stay longer than {} hours", limit.as_secs() / 3600),
        Cause::Exit(_) => "the function's runtime has ended".into(),
        Cause::Cut(_) => "kilnd stops".into(),
        other => other.text(),
    }
}
