//! One environment's end of its Runtime API: where events are handed over and answers are picked up.
//!
//! Between [`super::calls`] (what the runtime says) and `server::environment` (what is to be done).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hyper::HeaderMap;
use tokio::sync::{Notify, oneshot};

use super::session::{Answering, Illegal, Machine, Next, State};
use crate::invocation::RequestId;

/// An event as the runtime gets it.
#[derive(Clone, Debug)]
pub struct Event {
    pub request: RequestId,
    pub headers: HeaderMap,
    pub payload: Bytes,
}

/// What the runtime answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Response(Bytes),
    /// `error_type` is checked; the body is the runtime's own.
    Error {
        error_type: String,
        body: Bytes,
    },
    TooLarge,
    InvalidMode,
}

/// What the runtime said about its initialisation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Init {
    /// It asked for its first event.
    Ready,
    Error {
        error_type: String,
        body: Bytes,
    },
}

/// Done as soon as the first bytes of the event are in the socket, or when it is clear that they will not be:
/// the thaw. Runs exactly once, at the latest when it is dropped.
pub struct AfterWrite(Option<Box<dyn FnOnce() + Send>>);

impl AfterWrite {
    pub fn new(act: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(act)))
    }
}

impl Drop for AfterWrite {
    fn drop(&mut self) {
        if let Some(act) = self.0.take() {
            act();
        }
    }
}

#[derive(Default)]
pub struct Desk {
    /// Taken by each call for a few assignments; no other lock is taken inside.
    inner: Mutex<Inner>,
    /// Something of `inner` changed. One listener: the environment.
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    machine: Machine,
    /// The event in progress, for a `next` that comes again.
    event: Option<Event>,
    /// The `next` that waits.
    waiter: Option<oneshot::Sender<Handed>>,
    init: Option<Init>,
    reply: Option<Reply>,
    /// The runtime asks for more, and has no event yet.
    asking: bool,
    way: Way,
}

/// How far the event in progress has come.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Way {
    /// The connection that asked for it is gone; nobody has asked again.
    #[default]
    Unclaimed,
    /// A connection has it.
    Sent,
    /// That connection is over, and the runtime had closed its end before it had read all.
    Unread,
    /// Over, and read as far as anybody can tell.
    Read,
}

/// An event on its way to the call that waits for it. Dropped with that call, it tells the desk that nobody has it.
pub struct Handed {
    what: Option<(Event, AfterWrite)>,
    desk: Arc<Desk>,
}

impl Handed {
    pub fn take(mut self) -> Option<(Event, AfterWrite)> {
        self.what.take()
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        if let Some((event, _)) = &self.what {
            self.desk.over(event.request, Way::Unclaimed);
        }
    }
}

/// What a call of `next` gets.
pub enum Turn {
    Wait(oneshot::Receiver<Handed>),
    Again(Event),
}

/// For the environment.
impl Desk {
    /// Waits until the runtime's initialisation is over.
    pub async fn init(&self) -> Init {
        self.until(|inner| inner.init.take()).await
    }

    /// Hands an event over. Legal only when the runtime asks for one.
    pub fn deliver(self: &Arc<Self>, event: Event, then: AfterWrite) -> Result<(), Illegal> {
        let mut inner = self.lock();
        inner.machine.event(event.request)?;
        inner.event = Some(event.clone());
        inner.reply = None;
        inner.asking = false;
        let waiter = inner.waiter.take();
        inner.way = if waiter.is_some() { Way::Sent } else { Way::Unclaimed };
        drop(inner);
        // If nobody waits (the connection is gone) then a later `next` gets the event, and `then` happens right here.
        if let Some(waiter) = waiter {
            let _ = waiter.send(Handed { what: Some((event, then)), desk: self.clone() });
        }
        Ok(())
    }

    /// Waits for the answer to the event.
    pub async fn reply(&self) -> Reply {
        self.until(|inner| inner.reply.take()).await
    }

    /// Waits until the runtime has asked for another event.
    pub async fn asked_again(&self) {
        self.until(|inner| inner.asking.then_some(())).await
    }

    /// Whether the runtime ended before it had read the event to its end. Waits until the connection that has the event is
    /// over, so only to be asked when the runtime is dead, or killed.
    pub async fn never_read(&self) -> bool {
        self.until(|inner| (inner.way != Way::Sent).then_some(inner.way != Way::Read)).await
    }

    async fn until<T>(&self, mut ready: impl FnMut(&mut Inner) -> Option<T>) -> T {
        loop {
            if let Some(what) = ready(&mut self.lock()) {
                return what;
            }
            self.changed.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For the runtime's calls.
impl Desk {
    pub fn next(&self) -> Result<Turn, Illegal> {
        let mut inner = self.lock();
        // A client that lost patience closes its connection and asks anew: that is no second call.
        let deserted = inner.waiter.as_ref().is_some_and(oneshot::Sender::is_closed);
        let turn = if deserted { Ok(Next::Wait) } else { inner.machine.call_next() };
        match turn? {
            Next::Again => {
                inner.way = Way::Read;
                match inner.event.clone() {
                    Some(event) => Ok(Turn::Again(event)),
                    None => Err(Illegal::RequestId),
                }
            }
            Next::Wait => {
                let (waiter, turn) = oneshot::channel();
                inner.waiter = Some(waiter);
                inner.event = None;
                inner.init.get_or_insert(Init::Ready);
                inner.asking = true;
                drop(inner);
                self.changed.notify_one();
                Ok(Turn::Wait(turn))
            }
        }
    }

    pub fn names_request(&self, id: &str) -> Result<(), Illegal> {
        self.lock().machine.names_request(id)
    }

    pub fn answer(&self, kind: Answering) -> Result<(), Illegal> {
        self.lock().machine.answer(kind)
    }

    /// Over the connection that the event went over, the runtime has said something else.
    pub fn was_read(&self, request: RequestId) {
        self.over(request, Way::Read);
    }

    /// The connection over which this event went is over.
    pub fn connection_over(&self, request: RequestId, unread: bool) {
        self.over(request, if unread { Way::Unread } else { Way::Read });
    }

    fn over(&self, request: RequestId, way: Way) {
        let mut inner = self.lock();
        let ours = inner.event.as_ref().is_some_and(|event| event.request == request);
        // The runtime may have asked again meanwhile, over another one, or answered without reading.
        if ours && inner.way == Way::Sent {
            inner.way = if inner.machine.state() == State::Running { way } else { Way::Read };
            drop(inner);
            self.changed.notify_one();
        }
    }

    pub fn answered(&self, reply: Reply) {
        let mut inner = self.lock();
        inner.machine.answered();
        inner.reply = Some(reply);
        drop(inner);
        self.changed.notify_one();
    }

    pub fn broken(&self) {
        self.lock().machine.broken();
    }

    pub fn init_error(&self) -> Result<(), Illegal> {
        self.lock().machine.init_error()
    }

    pub fn init_failed(&self, error_type: String, body: Bytes) {
        self.lock().init = Some(Init::Error { error_type, body });
        self.changed.notify_one();
    }

    pub fn init_error_broken(&self) {
        self.lock().machine.init_error_broken();
    }
}
