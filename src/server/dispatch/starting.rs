//! A start under way, and that its end is told whatever becomes of it.

use super::micros;
use crate::function::Function;
use crate::invocation::RequestId;
use crate::server::environment::{Environment, InitFailure, max_memory_used_mib};
use crate::server::events::{Cold, Events, Subject, What};

/// Tells that an environment is being built. Dropped without another word, it was cut by the end of a drain.
pub struct Starting<'a> {
    events: &'a Events,
    of: Subject,
    request: Option<RequestId>,
    told: bool,
}

impl<'a> Starting<'a> {
    pub fn begin(events: &'a Events, function: &Function, request: RequestId, why: Cold) -> Self {
        let (of, request) = (Subject::function(&function.name), Some(request));
        events.emit(&of, request, What::Starting { why });
        Self { events, of, request, told: false }
    }

    pub fn ready(mut self, environment: &Environment) {
        self.told = true;
        let (build, init) = environment.started_within();
        let ready = What::Ready { build_us: micros(build), init_us: micros(init) };
        self.events.emit(environment.subject(), self.request, ready);
    }

    /// `again`: it is tried once more.
    pub fn failed(mut self, failure: &InitFailure, again: bool) {
        self.told = true;
        let of = Subject { container: failure.origin.container.as_deref().map(Into::into), ..self.of.clone() };
        let (cause, text) = (failure.cause.report_type().to_owned(), failure.cause.text());
        let peak_mib = max_memory_used_mib(failure.peak);
        let init_us = micros(failure.took);
        let by = failure.by.clone();
        self.events.emit(&of, self.request, What::InitFailed { cause, text, by, again, init_us, peak_mib });
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        if !self.told {
            let (cause, text) = ("Sandbox.Stopped".to_owned(), "kilnd stopped before it was ready".to_owned());
            let failed = What::InitFailed { cause, text, by: None, again: false, init_us: 0, peak_mib: 0 };
            self.events.emit(&self.of, self.request, failed);
        }
    }
}
