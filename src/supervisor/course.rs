//! What happens next: decides which children start, are replaced, are told, are killed. Does nothing itself: no clock,
//! no process, no I/O. [`super::watch`] tells it what has happened and carries out its orders.
//!
//! ```text
//!                 ┌──────────────── server ended, launchers gone, swept ◀──────────────┐
//!                 ▼                                                                    │
//!  (start) ──▶ Resting ──▶ Serving ──────────── server ended ─────────────────────▶ Clearing ──▶ Finished
//!            back-off over   │  ▲ └── a launcher ended: buried, replaced              ▲   │  launchers gone, swept
//!                            │  └──────────────────────────────────────┘             │   └─ (when asked to stop)
//!                            └──── stop asked ───▶ Draining ──── server ended ────────┘
//! ```
//!
//! Whoever has to be killed is killed once; the end of a process is always told by the kernel, never assumed.

use std::time::{Duration, Instant};

use crate::wire::supervisor::HEARTBEAT_S;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    ServerReady,
    Heartbeat,
    /// It has closed its socket: it is about to end, and its launchers see the same.
    ServerHungUp,
    /// Reaped, or could not be started.
    ServerEnded,
    /// Reaped, or could not be started.
    LauncherEnded {
        number: u32,
    },
    /// SIGTERM or SIGINT. The second one waits for no invocation, the third for nobody.
    StopAsked,
}

/// What is to be done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    StartServer,
    /// Start it and hand the other end of its socket to the server.
    StartLauncher {
        number: u32,
        slot: u32,
    },
    /// Remove what it left, then tell the server.
    BuryLauncher {
        number: u32,
    },
    /// Tell whoever started us that both doors are open, for the first time or again.
    SayReady,
    /// Tell whoever started us that we are stopping, and the server that it should.
    Drain,
    /// Tell the server to end what still runs, and to tell the callers so.
    Cut,
    KillServer {
        why: KillReason,
    },
    KillLaunchers {
        why: KillReason,
    },
    /// Nothing of ours runs: remove whatever the dead have left.
    SweepAll,
    Finish(Finish),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    /// Not one heartbeat for five times their interval.
    Silent,
    /// Its doors were not open in time.
    NeverReady,
    /// Invocations still ran when the drain's time was up.
    DrainedTooLong,
    /// The server is gone, and it has not followed.
    Lingered,
    /// A third signal, or a second one while no server can be told.
    Impatient,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    Stopped,
    /// The server has ended so often before it was ever ready that another try would be no better.
    NeverServed,
}

/// The time that things may take.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub launchers: u32,
    /// From SIGTERM to the server's end.
    pub drain: Duration,
    /// The same from the second one.
    pub cut: Duration,
}

/// A server opens its database and its doors in well under a second; a cold disk gets its time.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// As the wire promises: five missed ones.
const SILENCE: Duration = Duration::from_secs(5 * HEARTBEAT_S);
/// A launcher whose server is gone has to kill, reap and rmdir at most some hundred containers.
const CLEAR_WITHIN: Duration = Duration::from_secs(10);
/// A process that lived shorter has died quickly.
const QUICK: Duration = Duration::from_secs(10);
/// Quick deaths in a row that are repaired at once.
const FORGIVEN: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Quick deaths in a row after which a server that was never ready is given up.
const HOPELESS: u32 = 5;

/// How long to wait before the next try.
#[derive(Clone, Copy, Debug, Default)]
struct Backoff {
    quick_deaths: u32,
}

impl Backoff {
    fn after_a_life_of(&mut self, life: Duration) -> Duration {
        self.quick_deaths = if life < QUICK { self.quick_deaths.saturating_add(1) } else { 0 };
        match self.quick_deaths.checked_sub(FORGIVEN + 1) {
            None => Duration::ZERO,
            Some(more) => LONGEST_WAIT.min(FIRST_WAIT * 2u32.saturating_pow(more.min(8))),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Nothing of ours runs.
    Resting {
        until: Instant,
    },
    /// The server runs, and a launcher for each slot that does not rest.
    Serving {
        since: Instant,
        heard: Instant,
        ready: bool,
        doomed: bool,
    },
    /// The server was told to let running invocations finish, or to cut them; `None`: it has been killed.
    Draining {
        until: Option<Instant>,
        cut: bool,
    },
    /// The server is gone; launchers that run are cleaning up.
    Clearing {
        until: Option<Instant>,
        then: Then,
    },
    Finished,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Restart { server_lived: Duration },
    Stop,
}

/// One launcher's share of the ids; launchers come and go in it.
#[derive(Clone, Copy, Debug)]
struct Slot {
    state: SlotState,
    backoff: Backoff,
}

#[derive(Clone, Copy, Debug)]
enum SlotState {
    Empty,
    Running { number: u32, since: Instant },
    Resting { until: Instant },
}

#[derive(Debug)]
pub struct Course {
    rules: Rules,
    phase: Phase,
    slots: Vec<Slot>,
    /// No launcher gets a number twice, so that no container's name comes twice.
    next_number: u32,
    server: Backoff,
    /// Whether there is a server to be told, and to hand a launcher to.
    server_talks: bool,
    was_ready: bool,
}

impl Course {
    /// Nothing runs yet; the first [`Course::tick`] starts everything.
    pub fn new(rules: Rules, now: Instant) -> Self {
        let slot = Slot { state: SlotState::Empty, backoff: Backoff::default() };
        Self {
            rules,
            phase: Phase::Resting { until: now },
            slots: vec![slot; rules.launchers as usize],
            next_number: 1,
            server: Backoff::default(),
            server_talks: false,
            was_ready: false,
        }
    }

    /// From now on, a drain may take so long.
    pub fn set_drain(&mut self, drain: Duration) {
        self.rules.drain = drain;
    }

    /// Whether there will be no other server.
    pub fn is_stopping(&self) -> bool {
        matches!(self.phase, Phase::Draining { .. } | Phase::Clearing { then: Then::Stop, .. } | Phase::Finished)
    }

    /// Whether the server has opened both doors.
    pub fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving { ready: true, .. })
    }

    pub fn happened(&mut self, event: Event, now: Instant) -> Vec<Order> {
        match event {
            Event::ServerReady => self.server_ready(now),
            Event::Heartbeat => {
                if let Phase::Serving { heard, .. } = &mut self.phase {
                    *heard = now;
                }
                vec![]
            }
            Event::ServerHungUp => {
                self.server_talks = false;
                vec![]
            }
            Event::ServerEnded => self.server_ended(now),
            Event::LauncherEnded { number } => self.launcher_ended(number, now),
            Event::StopAsked => self.stop_asked(now),
        }
    }

    /// What the passing of time alone asks for.
    pub fn tick(&mut self, now: Instant) -> Vec<Order> {
        let due = |until: &Option<Instant>| until.is_some_and(|until| until <= now);
        match &mut self.phase {
            Phase::Resting { until } if *until <= now => {
                self.phase = Phase::Serving { since: now, heard: now, ready: false, doomed: false };
                self.server_talks = true;
                let mut orders = vec![Order::StartServer];
                orders.extend((0..self.slots.len()).map(|slot| self.start_launcher(slot, now)));
                orders
            }
            Phase::Serving { since, heard, ready, doomed } => {
                let (limit, from, why) = match ready {
                    true => (SILENCE, *heard, KillReason::Silent),
                    false => (READY_WITHIN, *since, KillReason::NeverReady),
                };
                if !*doomed && now.saturating_duration_since(from) >= limit {
                    *doomed = true;
                    self.server_talks = false;
                    return vec![Order::KillServer { why }];
                }
                self.start_rested(now)
            }
            Phase::Draining { until, .. } if due(until) => {
                *until = None;
                self.server_talks = false;
                vec![Order::KillServer { why: KillReason::DrainedTooLong }]
            }
            Phase::Draining { .. } => self.start_rested(now),
            Phase::Clearing { until, .. } if due(until) => {
                *until = None;
                vec![Order::KillLaunchers { why: KillReason::Lingered }]
            }
            _ => vec![],
        }
    }

    /// When [`Course::tick`] has something to do although nothing happens.
    pub fn next_deadline(&self) -> Option<Instant> {
        let rested = self.slots.iter().filter_map(|slot| match slot.state {
            SlotState::Resting { until } if self.server_talks => Some(until),
            _ => None,
        });
        match self.phase {
            Phase::Resting { until } => Some(until),
            Phase::Serving { doomed: true, .. } => rested.min(),
            Phase::Serving { since, ready: false, .. } => rested.chain([since + READY_WITHIN]).min(),
            Phase::Serving { heard, .. } => rested.chain([heard + SILENCE]).min(),
            Phase::Draining { until, .. } => rested.chain(until).min(),
            Phase::Clearing { until, .. } => until,
            Phase::Finished => None,
        }
    }

    fn server_ready(&mut self, now: Instant) -> Vec<Order> {
        let Phase::Serving { heard, ready, .. } = &mut self.phase else { return vec![] };
        (*heard, *ready) = (now, true);
        self.was_ready = true;
        vec![Order::SayReady]
    }

    fn server_ended(&mut self, now: Instant) -> Vec<Order> {
        self.server_talks = false;
        let then = match self.phase {
            Phase::Serving { since, .. } => Then::Restart { server_lived: now.saturating_duration_since(since) },
            Phase::Draining { .. } => Then::Stop,
            _ => return vec![],
        };
        for slot in &mut self.slots {
            if matches!(slot.state, SlotState::Resting { .. }) {
                slot.state = SlotState::Empty;
            }
        }
        self.phase = Phase::Clearing { until: Some(now + CLEAR_WITHIN), then };
        self.if_cleared(now)
    }

    fn launcher_ended(&mut self, number: u32, now: Instant) -> Vec<Order> {
        let runs = |slot: &Slot| matches!(slot.state, SlotState::Running { number: found, .. } if found == number);
        let Some(at) = self.slots.iter().position(runs) else { return vec![] };
        let slot = &mut self.slots[at];
        let SlotState::Running { since, .. } = slot.state else { return vec![] };
        // Nobody is left to be told; all is swept when the others are gone too.
        if !self.server_talks {
            slot.state = SlotState::Empty;
            return self.if_cleared(now);
        }
        let wait = slot.backoff.after_a_life_of(now.saturating_duration_since(since));
        slot.state = SlotState::Resting { until: now + wait };
        let mut orders = vec![Order::BuryLauncher { number }];
        orders.extend(self.start_rested(now));
        orders
    }

    fn stop_asked(&mut self, now: Instant) -> Vec<Order> {
        match &mut self.phase {
            Phase::Resting { .. } => self.finish(Finish::Stopped),
            Phase::Serving { .. } => {
                self.phase = Phase::Draining { until: Some(now + self.rules.drain), cut: false };
                vec![Order::Drain]
            }
            Phase::Draining { until: Some(until), cut } if !*cut && self.server_talks => {
                (*until, *cut) = ((*until).min(now + self.rules.cut), true);
                vec![Order::Cut]
            }
            Phase::Draining { until, .. } => {
                *until = None;
                self.server_talks = false;
                let why = KillReason::Impatient;
                vec![Order::KillServer { why }, Order::KillLaunchers { why }]
            }
            Phase::Clearing { until, then: Then::Stop } => {
                *until = None;
                vec![Order::KillLaunchers { why: KillReason::Impatient }]
            }
            Phase::Clearing { then, .. } => {
                *then = Then::Stop;
                vec![]
            }
            Phase::Finished => vec![],
        }
    }

    fn if_cleared(&mut self, now: Instant) -> Vec<Order> {
        let Phase::Clearing { then, .. } = self.phase else { return vec![] };
        if self.slots.iter().any(|slot| !matches!(slot.state, SlotState::Empty)) {
            return vec![];
        }
        let mut orders = vec![Order::SweepAll];
        match then {
            Then::Stop => orders.extend(self.finish(Finish::Stopped)),
            Then::Restart { server_lived } => {
                let wait = self.server.after_a_life_of(server_lived);
                if !self.was_ready && self.server.quick_deaths >= HOPELESS {
                    orders.extend(self.finish(Finish::NeverServed));
                } else {
                    self.phase = Phase::Resting { until: now + wait };
                }
            }
        }
        orders
    }

    fn start_rested(&mut self, now: Instant) -> Vec<Order> {
        let talks = self.server_talks;
        let due = |slot: &Slot| talks && matches!(slot.state, SlotState::Resting { until } if until <= now);
        let rested: Vec<usize> = (0..self.slots.len()).filter(|at| due(&self.slots[*at])).collect();
        rested.into_iter().map(|at| self.start_launcher(at, now)).collect()
    }

    fn start_launcher(&mut self, at: usize, now: Instant) -> Order {
        let number = self.next_number;
        self.next_number += 1;
        self.slots[at].state = SlotState::Running { number, since: now };
        Order::StartLauncher { number, slot: at as u32 }
    }

    fn finish(&mut self, how: Finish) -> Vec<Order> {
        self.phase = Phase::Finished;
        vec![Order::Finish(how)]
    }
}

#[cfg(test)]
mod tests;
