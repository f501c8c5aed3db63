//! What a request holds while its turn lasts: an environment on loan, or the right to build one. Both end by being dropped.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use tokio::time::Instant;

use super::{Held, Pooled, Shared, Turn};
use crate::function::Stamp;
use crate::server::pool::core::Core;
use crate::server::pool::slot::{Cold, Order, Retire, SlotId, Usage};

/// An environment on loan to one request.
///
/// Dropping a lease *retires* the environment; reuse takes an explicit [`Lease::give_back`]. So a panic, a timeout
/// or a forgotten branch costs a cold start, never a dirty reuse.
#[must_use]
pub struct Lease<E: Pooled> {
    pub(super) reserved: Reserved<E>,
    /// `None` only while the lease ends.
    pub(super) environment: Option<E>,
}

/// The right to build one environment: memory and a start are reserved. Dropping it frees both.
#[must_use]
#[derive(Debug)]
pub struct Permit<E: Pooled> {
    pub(super) reserved: Reserved<E>,
    pub(super) why: Cold,
}

/// A slot of the core that ends with this value.
pub(super) struct Reserved<E: Pooled> {
    pub(super) slot: SlotId,
    /// `None` once the slot is no longer ours to end.
    pub(super) pool: Option<Arc<Shared<E>>>,
}

impl<E: Pooled> Turn<E> {
    /// It came too late: the function has changed (`current`) while it was waited for.
    pub fn unused(self, current: Option<Stamp>) {
        let reserved = match &self {
            Self::Warm(lease) => &lease.reserved,
            Self::Cold(permit) => &permit.reserved,
        };
        if let Some(pool) = &reserved.pool {
            let why = if current.is_some() { Retire::Updated } else { Retire::Deleted };
            pool.change(|inner, now| inner.core.dismiss(reserved.slot, why, now));
        }
    }
}

impl<E: Pooled> Permit<E> {
    /// For [`Pool::died`].
    pub fn slot(&self) -> SlotId {
        self.reserved.slot
    }

    /// Why nothing warm was there.
    pub fn why(&self) -> Cold {
        self.why
    }

    /// The environment uses so many bytes of /tmp. `false`: the budget has no room for them.
    pub fn grow(&self, tmp: u64) -> bool {
        self.reserved.grow(tmp)
    }

    /// What people can be shown while it is being built, or that there is nothing any more.
    pub fn building(&self, facts: Option<Arc<E::Facts>>) {
        if let Some(pool) = &self.reserved.pool {
            let former = match (&mut pool.lock().building, facts) {
                (building, Some(facts)) => building.insert(self.reserved.slot, facts),
                (building, None) => building.remove(&self.reserved.slot),
            };
            drop(former);
        }
    }

    /// It goes on inside of its request's own time, which nobody else has to wait for: the start is over,
    /// the memory stays reserved.
    pub fn start_is_over(&self) {
        if let Some(pool) = &self.reserved.pool {
            pool.change(|inner, now| ((), inner.core.start_is_over(self.reserved.slot, now)));
        }
    }

    /// Its init has failed for good, by the function's own fault: it is not tried again without end. `current` is the
    /// function's stamp now.
    pub fn failed(mut self, current: Option<Stamp>) {
        if let Some(pool) = self.reserved.pool.take() {
            pool.change(|inner, now| ((), inner.core.init_failed(self.reserved.slot, current, now)));
        }
    }

    /// It is ready; it is lent to the request that it was built for.
    pub fn install(self, environment: E) -> Lease<E> {
        let slot = self.reserved.slot;
        if let Some(pool) = &self.reserved.pool {
            let facts = environment.facts();
            pool.change(|inner, now| {
                inner.building.remove(&slot);
                inner.facts.insert(slot, facts);
                ((), inner.core.started(slot, now))
            });
        }
        Lease { reserved: self.reserved, environment: Some(environment) }
    }
}

impl<E: Pooled> Lease<E> {
    pub fn grow(&self, tmp: u64) -> bool {
        self.reserved.grow(tmp)
    }

    /// The environment, and what [`Self::grow`] needs, at once.
    pub fn parts(&mut self) -> (&mut E, impl Fn(u64) -> bool + Send + Sync + '_) {
        let reserved = &self.reserved;
        (self.environment.as_mut().expect(HELD), move |tmp| reserved.grow(tmp))
    }

    /// The request has its answer, and the environment will be back soon: the next request waits a little for it.
    pub fn answered(&self) {
        if let Some(pool) = &self.reserved.pool {
            pool.lock().core.answered(self.reserved.slot);
        }
    }

    /// It is clean and frozen. It goes back unless it is dead or its function has changed (`current`).
    pub fn give_back(self, usage: Usage, current: Option<Stamp>) {
        self.put_back(|core, slot, now| core.give_back(slot, usage, current, now));
    }

    fn put_back(mut self, decide: impl FnOnce(&mut Core, SlotId, Instant) -> Vec<Order>) {
        let Some(environment) = self.environment.take_if(|environment| environment.is_alive()) else {
            return self.end(Retire::Died);
        };
        let Some(pool) = self.reserved.pool.take() else { return };
        let slot = self.reserved.slot;
        let too_late = pool.change(|inner, now| {
            if inner.core.slot(slot).is_none() {
                // Held, it was ended by hand meanwhile. Whatever is idle has a slot, else nobody would ever end it.
                return (Some(environment), Vec::new());
            }
            // Before the core decides, since it may lend it at once.
            inner.idle.insert(slot, environment);
            inner.visitors.remove(&slot);
            (None, decide(&mut inner.core, slot, now))
        });
        // Not under the lock: this is the kill.
        drop(too_late);
    }
}

impl<E: Pooled> Held<E> {
    /// Nobody has been in it, and it is frozen again: it serves as before.
    pub fn not_entered(self, usage: Usage, current: Option<Stamp>) {
        self.lease.put_back(|core, slot, now| core.not_entered(slot, usage, current, now));
    }
}

impl<E: Pooled> Lease<E> {
    /// It is not given back, for this reason.
    pub fn end(mut self, why: Retire) {
        // The kill comes before the slot's memory counts as free.
        drop(self.environment.take());
        if let Some(pool) = self.reserved.pool.take() {
            pool.change(|inner, now| ((), inner.core.remove(self.reserved.slot, why, now)));
        }
    }
}

const HELD: &str = "only give_back and drop take it, and both end the lease";

impl<E: Pooled> Deref for Lease<E> {
    type Target = E;

    fn deref(&self) -> &E {
        self.environment.as_ref().expect(HELD)
    }
}

impl<E: Pooled> DerefMut for Lease<E> {
    fn deref_mut(&mut self) -> &mut E {
        self.environment.as_mut().expect(HELD)
    }
}

impl<E: Pooled> Reserved<E> {
    fn grow(&self, tmp: u64) -> bool {
        let Some(pool) = &self.pool else { return true };
        pool.change(|inner, _| inner.core.grow(self.slot, tmp))
    }
}

impl<E: Pooled> Drop for Lease<E> {
    fn drop(&mut self) {
        // The kill comes before the slot's memory counts as free.
        drop(self.environment.take());
    }
}

impl<E: Pooled> Drop for Reserved<E> {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.change(|inner, now| {
                // What was installed has facts.
                let why = if inner.facts.contains_key(&self.slot) { Retire::Failed } else { Retire::Init };
                ((), inner.core.remove(self.slot, why, now))
            });
        }
    }
}

impl<E: Pooled> fmt::Debug for Reserved<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reserved({})", self.slot.0)
    }
}

impl<E: Pooled> fmt::Debug for Lease<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({})", self.reserved.slot.0)
    }
}
