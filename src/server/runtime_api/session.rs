//! Which call is legal when: the state machine of the Runtime API, pure.
//!
//! ```text
//! Started ──next──▶ Ready ──event──▶ Running ──response──▶ InvocationResponse ─────┐
//!    │                ▲                │  ▲                                     body complete
//!    │                │          next: │  │ body broken                              ▼
//!    │                │      same event└──┴───error──▶ InvocationErrorResponse ──▶ RuntimeResponseSent
//!    └─init/error─▶ InitError (terminal)                                           │
//!                     └───────────────────────────── next ─────────────────────────┘
//! ```
//!
//! Everything else is refused with the reference implementation's words.

use std::fmt;

use crate::invocation::RequestId;

/// Where the runtime is. Named as the reference implementation names them in its errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The process runs its initialisation.
    Started,
    /// It reported that its initialisation failed.
    InitError,
    /// It waits for an event.
    Ready,
    /// It has the event, or may fetch it any moment.
    Running,
    /// Its answer is being received.
    InvocationResponse,
    InvocationErrorResponse,
    /// It has answered, and has not asked for more yet.
    RuntimeResponseSent,
}

/// Which kind of answer a call brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answering {
    Response,
    Error,
}

/// What `next` means now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait for an event.
    Wait,
    /// The event in progress is handed out again.
    Again,
}

/// A call that is not legal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    #[error("Invalid request ID")]
    RequestId,
    #[error("State transition from {from} to {to} failed for runtime. Error: State transition is not allowed")]
    Transition { from: State, to: State },
}

#[derive(Debug)]
pub struct Machine {
    state: State,
    /// The invocation that the runtime may answer, from its event to the following `next`.
    request: Option<RequestId>,
}

impl Default for Machine {
    fn default() -> Self {
        Self { state: State::Started, request: None }
    }
}

impl Machine {
    pub fn state(&self) -> State {
        self.state
    }

    pub fn call_next(&mut self) -> Result<Next, Illegal> {
        match self.state {
            State::Started | State::RuntimeResponseSent => {
                self.state = State::Ready;
                self.request = None;
                Ok(Next::Wait)
            }
            State::Running => Ok(Next::Again),
            _ => self.refuse(State::Ready),
        }
    }

    /// An event for a runtime that is ready.
    pub fn event(&mut self, request: RequestId) -> Result<(), Illegal> {
        if self.state != State::Ready {
            return self.refuse(State::Running);
        }
        self.state = State::Running;
        self.request = Some(request);
        Ok(())
    }

    /// Whether a call's path names the invocation in progress. Always checked first.
    pub fn names_request(&self, id: &str) -> Result<(), Illegal> {
        let named = self.request.is_some_and(|request| request.to_string() == id);
        if named { Ok(()) } else { Err(Illegal::RequestId) }
    }

    /// An answer begins; its body follows.
    pub fn answer(&mut self, kind: Answering) -> Result<(), Illegal> {
        let to = match kind {
            Answering::Response => State::InvocationResponse,
            Answering::Error => State::InvocationErrorResponse,
        };
        if self.state != State::Running {
            return self.refuse(to);
        }
        self.state = to;
        Ok(())
    }

    /// The answer's body is complete, or as much of it as is allowed.
    pub fn answered(&mut self) {
        if matches!(self.state, State::InvocationResponse | State::InvocationErrorResponse) {
            self.state = State::RuntimeResponseSent;
        }
    }

    /// The connection broke inside of the answer's body: the runtime may try again. (Mostly it is dead.)
    pub fn broken(&mut self) {
        if matches!(self.state, State::InvocationResponse | State::InvocationErrorResponse) {
            self.state = State::Running;
        }
    }

    /// The runtime's initialisation failed.
    pub fn init_error(&mut self) -> Result<(), Illegal> {
        if self.state != State::Started {
            return self.refuse(State::InitError);
        }
        self.state = State::InitError;
        Ok(())
    }

    /// As [`Machine::broken`], for the body of `init/error`.
    pub fn init_error_broken(&mut self) {
        if self.state == State::InitError {
            self.state = State::Started;
        }
    }

    fn refuse<T>(&self, to: State) -> Result<T, Illegal> {
        Err(Illegal::Transition { from: self.state, to })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn running() -> (Machine, RequestId) {
        let (mut machine, request) = (Machine::default(), RequestId::new());
        machine.call_next().unwrap();
        machine.event(request).unwrap();
        (machine, request)
    }

    #[test]
    fn next_while_running_is_the_same_event_again() {
        let (mut machine, _) = running();
        assert_eq!(machine.call_next(), Ok(Next::Again));
        assert_eq!(machine.state(), State::Running);
    }

    #[test]
    fn a_second_answer_is_a_wrong_transition_and_after_next_a_wrong_id() {
        let (mut machine, request) = running();
        machine.answer(Answering::Response).unwrap();
        machine.answered();
        assert_eq!(machine.names_request(&request.to_string()), Ok(()));
        assert_eq!(
            machine.answer(Answering::Response).unwrap_err().to_string(),
            "State transition from RuntimeResponseSent to InvocationResponse failed for runtime. \
             Error: State transition is not allowed"
        );
        machine.call_next().unwrap();
        assert_eq!(machine.names_request(&request.to_string()), Err(Illegal::RequestId));
    }

    #[test]
    fn init_error_is_legal_only_before_the_first_next() {
        let mut machine = Machine::default();
        machine.call_next().unwrap();
        assert!(machine.init_error().is_err());
        let mut machine = Machine::default();
        machine.init_error().unwrap();
        assert!(machine.call_next().is_err());
    }

    #[test]
    fn a_broken_answer_may_be_repeated() {
        let (mut machine, _) = running();
        machine.answer(Answering::Response).unwrap();
        machine.broken();
        assert_eq!(machine.answer(Answering::Error), Ok(()));
    }

    proptest! {
        /// Whatever a hostile runtime calls in whatever order: each event is answered at most once, only
        /// in its own time, and only a runtime that asked for an event gets one.
        #[test]
        fn no_order_of_calls_answers_twice(calls in proptest::collection::vec(0..8u8, 0..200)) {
            let mut machine = Machine::default();
            let (mut delivered, mut answered, mut asked) = (0, 0, 0);
            for call in calls {
                let before = machine.state();
                match call {
                    0 | 1 => asked += usize::from(machine.call_next() == Ok(Next::Wait)),
                    2 => delivered += usize::from(machine.event(RequestId::new()).is_ok()),
                    3 => { let _ = machine.answer(Answering::Response); }
                    4 => { let _ = machine.answer(Answering::Error); }
                    5 => { machine.answered(); answered += usize::from(machine.state() != before); }
                    6 => machine.broken(),
                    _ => { let _ = machine.init_error(); }
                }
                prop_assert!(answered <= delivered && delivered <= asked);
                prop_assert!(asked <= answered + 1);
                prop_assert!(before != State::InitError || machine.state() == State::InitError);
                let has_request = machine.request.is_some();
                let expected = !matches!(machine.state(), State::Started | State::Ready | State::InitError);
                prop_assert_eq!(has_request, expected);
            }
        }
    }
}
