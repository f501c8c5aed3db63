//! Random histories against a shadow that is too simple to be wrong.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::cases::limits;
use super::*;
use crate::function::Memory;
use crate::server::pool::policy::PLACE;
use crate::server::pool::slot::Cold;

const MIB: u64 = 1 << 20;
const FUNCTIONS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Request { function: usize, patience_ms: u64 },
    Started { pick: usize },
    Failed { pick: usize },
    InitFailed { pick: usize },
    InitGoesOn { pick: usize },
    Drain { function: usize },
    Recycle { pick: usize },
    Budget { mib: u64 },
    Answered { pick: usize },
    GiveBack { pick: usize, now: u64, tmp: u64 },
    Dirty { pick: usize },
    Grow { pick: usize, tmp: u64 },
    Change { function: usize },
    DeadWhenLent,
    Died { pick: usize },
    Abandon { pick: usize },
    Reserve { function: usize, reserve: Option<usize> },
    Enter { pick: usize, patiently: bool },
    Leave { pick: usize },
    NotEntered { pick: usize, now: u64, tmp: u64 },
    Pass { ms: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let pick = any::<usize>;
    prop_oneof![
        6 => (0..FUNCTIONS, 1..50u64).prop_map(|(function, patience_ms)| Step::Request { function, patience_ms }),
        4 => pick().prop_map(|pick| Step::Started { pick }),
        1 => pick().prop_map(|pick| Step::Failed { pick }),
        1 => pick().prop_map(|pick| Step::InitFailed { pick }),
        1 => pick().prop_map(|pick| Step::InitGoesOn { pick }),
        1 => (0..FUNCTIONS).prop_map(|function| Step::Drain { function }),
        1 => pick().prop_map(|pick| Step::Recycle { pick }),
        1 => (0..3u64).prop_map(|n| Step::Budget { mib: 512 << n }),
        2 => pick().prop_map(|pick| Step::Answered { pick }),
        5 => (pick(), 1..700 * MIB, 0..300 * MIB).prop_map(|(pick, now, tmp)| Step::GiveBack { pick, now, tmp }),
        1 => pick().prop_map(|pick| Step::Dirty { pick }),
        1 => (pick(), 0..300 * MIB).prop_map(|(pick, tmp)| Step::Grow { pick, tmp }),
        1 => (0..FUNCTIONS).prop_map(|function| Step::Change { function }),
        1 => Just(Step::DeadWhenLent),
        1 => pick().prop_map(|pick| Step::Died { pick }),
        1 => pick().prop_map(|pick| Step::Abandon { pick }),
        1 => (0..FUNCTIONS, prop::option::weighted(0.7, 0..5usize))
            .prop_map(|(function, reserve)| Step::Reserve { function, reserve }),
        2 => (pick(), any::<bool>()).prop_map(|(pick, patiently)| Step::Enter { pick, patiently }),
        1 => pick().prop_map(|pick| Step::Leave { pick }),
        1 => (pick(), 1..700 * MIB, 0..300 * MIB).prop_map(|(pick, now, tmp)| Step::NotEntered { pick, now, tmp }),
        3 => (1..30u64).prop_map(|ms| Step::Pass { ms }),
        1 => (900..2100u64).prop_map(|ms| Step::Pass { ms }),
    ]
}

/// What must be true, kept without looking into the core.
struct Shadow {
    core: Core,
    now: Instant,
    stamps: [Stamp; FUNCTIONS],
    next_stamp: u64,
    waiting: BTreeMap<Ticket, Want>,
    /// Since when each of them waits.
    since: BTreeMap<Ticket, Instant>,
    reserves: [Option<usize>; FUNCTIONS],
    starting: BTreeMap<SlotId, (Want, Instant)>,
    /// Granted steps of /tmp.
    tmp: BTreeMap<SlotId, u64>,
    /// When each slot was born, for as long as it is there.
    born: BTreeMap<SlotId, Instant>,
    /// Those that serve nobody after this.
    leaving: BTreeSet<SlotId>,
    /// By function: its last init failed.
    failing: BTreeSet<FunctionName>,
    budget: u64,
    retired: u64,
    /// What the core told of ends: each slot once, and whose they were.
    gone: BTreeSet<SlotId>,
    had: BTreeSet<FunctionName>,
    refused: u64,
    told_again: u64,
    /// Slots on loan, and whether their request is answered.
    busy: BTreeMap<SlotId, (Want, bool)>,
    /// In order of their return.
    idle: Vec<(SlotId, Want)>,
    /// Those that somebody looks into.
    entered: BTreeMap<SlotId, Want>,
    ended: usize,
    requested: usize,
    dead_when_lent: bool,
}

impl Shadow {
    fn new() -> Self {
        Self {
            core: Core::new(limits()),
            now: Instant::now(),
            stamps: std::array::from_fn(|n| Stamp(n as u64)),
            next_stamp: 100,
            waiting: BTreeMap::new(),
            since: BTreeMap::new(),
            reserves: [None; FUNCTIONS],
            starting: BTreeMap::new(),
            tmp: BTreeMap::new(),
            born: BTreeMap::new(),
            leaving: BTreeSet::new(),
            failing: BTreeSet::new(),
            budget: limits().budget,
            retired: 0,
            gone: BTreeSet::new(),
            had: BTreeSet::new(),
            refused: 0,
            told_again: 0,
            busy: BTreeMap::new(),
            idle: Vec::new(),
            entered: BTreeMap::new(),
            ended: 0,
            requested: 0,
            dead_when_lent: false,
        }
    }

    fn name(function: usize) -> FunctionName {
        FunctionName::parse(&format!("f{function}")).unwrap()
    }

    fn number(function: &FunctionName) -> usize {
        function.as_str()[1..].parse().unwrap()
    }

    fn current(&self, function: &FunctionName) -> Stamp {
        self.stamps[Self::number(function)]
    }

    fn reserve(&self, function: &FunctionName) -> Option<usize> {
        self.reserves[Self::number(function)]
    }

    /// Slots that run for the function, settling ones included.
    fn running(&self, function: &FunctionName) -> usize {
        let starting = self.starting.values().map(|(want, _)| want);
        starting.chain(self.busy.values().map(|(want, _)| want)).filter(|want| want.function == *function).count()
    }

    /// What they are charged.
    fn held(&self, function: &FunctionName) -> u64 {
        let starting = self.starting.iter().map(|(slot, (want, _))| (slot, want));
        let own = starting.chain(self.busy.iter().map(|(slot, (want, _))| (slot, want)));
        let own = own.filter(|(_, want)| want.function == *function);
        own.map(|(slot, want)| self.charge(*slot, want)).sum()
    }

    fn charge(&self, slot: SlotId, want: &Want) -> u64 {
        want.memory.bytes() + self.tmp.get(&slot).copied().unwrap_or(0) * TMP_STEP
    }

    /// Memory that a start could have, if all that is idle went.
    fn room(&self) -> u64 {
        let names = (0..FUNCTIONS).map(Self::name);
        let entered = self.entered.iter().map(|(slot, want)| self.charge(*slot, want)).sum::<u64>();
        self.budget.saturating_sub(names.map(|name| self.held(&name)).sum::<u64>() + entered)
    }

    fn is_late(&self, born: Instant) -> bool {
        born + PLACE <= self.now
    }

    /// Whether the request could start now, but for memory: it hopes for nothing else, its function has no late start
    /// and was never in doubt, and its reserve has room.
    fn only_lacks_memory(&self, ticket: Ticket, want: &Want) -> bool {
        let most = self.reserve(&want.function);
        self.since[&ticket] + limits().settle <= self.now
            && most.is_none_or(|most| self.running(&want.function) < most)
            && !self.failing.contains(&want.function)
            && !self.starting.values().any(|(other, born)| other.function == want.function && self.is_late(*born))
    }

    fn places(&self) -> usize {
        self.starting.values().filter(|(_, born)| !self.is_late(*born)).count()
    }

    /// Requests at once of all functions that draw on the same as this one: its own reserve, or what nobody has reserved.
    fn in_flight_beside(&self, function: &FunctionName) -> usize {
        let unanswered = self.busy.values().filter(|(_, answered)| !answered).map(|(want, _)| want);
        let starting = self.starting.values().map(|(want, _)| want);
        let all = self.waiting.values().chain(starting).chain(unanswered);
        all.filter(|want| want.function == *function || self.reserve(function).or(self.reserve(&want.function)).is_none()).count()
    }

    /// How many of them there may be.
    fn share(&self, function: &FunctionName) -> usize {
        let reserved: usize = self.reserves.iter().flatten().sum();
        self.reserve(function).unwrap_or(limits().concurrency.saturating_sub(reserved))
    }

    fn obey(&mut self, orders: Vec<Order>) {
        let mut dead = None;
        for Gone { id, slot, why, needed_by } in self.core.take_gone() {
            assert!(self.gone.insert(id), "it ended twice");
            assert!(needed_by.is_none() || why == Retire::Memory, "{why} for {needed_by:?}");
            self.had.insert(slot.function);
        }
        for order in orders {
            match order {
                Order::Lend { ticket, slot } => {
                    let want = self.waiting.remove(&ticket).expect("only who waits is served");
                    self.within_its_reserve(&want);
                    let at = self.idle.iter().position(|(idle, _)| *idle == slot).expect("only what is idle is lent");
                    let (_, made_for) = self.idle.remove(at);
                    assert!(!self.leaving.contains(&slot) && made_for.reuse == Reuse::Always, "it was to end");
                    assert_eq!((&made_for.function, made_for.stamp), (&want.function, want.stamp), "a stale or foreign slot");
                    self.first_of_its_kind(ticket, &want);
                    if std::mem::take(&mut self.dead_when_lent) {
                        // What was decided together with this loan did not overtake it.
                        self.gone(slot);
                        dead = Some((slot, ticket, want));
                        continue;
                    }
                    let younger =
                        self.idle[at..].iter().any(|(_, idle)| (&idle.function, idle.stamp) == (&want.function, want.stamp));
                    assert!(!younger, "the most recently used is lent first");
                    assert!(self.busy.insert(slot, (want, false)).is_none(), "two requests in one slot");
                }
                Order::Start { ticket, slot } => {
                    let want = self.waiting.remove(&ticket).expect("only who waits is served");
                    self.within_its_reserve(&want);
                    self.first_of_its_kind(ticket, &want);
                    self.in_its_turn(&want);
                    self.cold_for_a_reason(slot, &want);
                    self.born.insert(slot, self.now);
                    assert!(self.starting.insert(slot, (want, self.now)).is_none());
                    assert!(self.places() <= limits().starts, "a storm");
                }
                Order::TellAgain { ticket } => {
                    let want = self.waiting.remove(&ticket).expect("only who waits is told");
                    assert!(self.failing.contains(&want.function), "its init was good");
                    self.told_again += 1;
                    self.ended += 1;
                }
                Order::Refuse { ticket, why } => {
                    let want = self.waiting.remove(&ticket).expect("only who waits is refused");
                    let reserved = self.reserve(&want.function).is_some();
                    match why {
                        Throttle::Reserved => assert!(reserved, "refused for a reserve that is not there"),
                        Throttle::Concurrency => assert!(!reserved, "others have used the reserve up"),
                        Throttle::Memory | Throttle::Starts | Throttle::Queue => {}
                        Throttle::Payloads => panic!("the core knows no payloads"),
                    }
                    self.refused += 1;
                    self.ended += 1;
                }
                Order::Retire { slot, why } if self.entered.remove(&slot).is_some() => {
                    assert!(matches!(why, Retire::Drained | Retire::Recycled), "{why} ends what somebody looks into");
                    self.gone(slot);
                }
                Order::Retire { slot, why } => {
                    let at = self.idle.iter().position(|(idle, _)| *idle == slot);
                    let (_, want) = self.idle.remove(at.expect("only what is idle is retired"));
                    let old = self.born[&slot] + limits().max_age.unwrap() * 7 / 8 <= self.now;
                    match why {
                        Retire::Age => assert!(old, "too young to go"),
                        Retire::Once => assert_eq!(want.reuse, Reuse::Never),
                        Retire::Updated => assert_ne!(want.stamp, self.current(&want.function)),
                        Retire::Drained | Retire::Recycled | Retire::Entered => {}
                        Retire::Idle | Retire::Memory | Retire::Tmp => {}
                        other => panic!("{other} is not for the core to decide"),
                    }
                    self.gone(slot);
                }
            }
        }
        if let Some((slot, ticket, want)) = dead {
            self.waiting.insert(ticket, want.clone());
            self.since.insert(ticket, self.now);
            let orders = self.core.replace(slot, ticket, want, self.now);
            return self.obey(orders);
        }
        self.check();
    }

    /// A slot is no more.
    fn gone(&mut self, slot: SlotId) {
        self.born.remove(&slot);
        self.tmp.remove(&slot);
        self.leaving.remove(&slot);
        self.retired += 1;
    }

    /// Why it is started says nothing that is not so.
    fn cold_for_a_reason(&self, slot: SlotId, want: &Want) {
        let why = self.core.slot(slot).expect("it has just been started").why;
        let of = |other: &Want| other.function == want.function;
        let others = self.starting.values().any(|(other, _)| of(other))
            || self.busy.values().any(|(other, _)| of(other))
            || self.idle.iter().any(|(_, other)| of(other))
            || self.entered.values().any(of);
        assert_eq!(why == Cold::Once, want.reuse == Reuse::Never);
        match why {
            Cold::First => assert!(!others && !self.had.contains(&want.function), "there was one before"),
            Cold::Busy => assert!(others, "there is no other"),
            Cold::Retired(_) => assert!(others || self.had.contains(&want.function), "none has ended"),
            Cold::Once => {}
            Cold::Again => panic!("not for the core to say"),
        }
    }

    /// Whoever holds less, and could start, lacks the memory for it.
    fn in_its_turn(&self, chosen: &Want) {
        let held = self.held(&chosen.function);
        for (ticket, want) in self.waiting.iter().filter(|(_, want)| want.function != chosen.function) {
            let before = self.held(&want.function) < held && self.only_lacks_memory(*ticket, want);
            assert!(!before || want.memory.bytes() > self.room(), "{want:?} was passed by {chosen:?}");
        }
    }

    fn first_of_its_kind(&self, ticket: Ticket, want: &Want) {
        let alike = |(other, w): (&Ticket, &Want)| *other < ticket && (&w.function, w.stamp) == (&want.function, want.stamp);
        assert!(!self.waiting.iter().any(alike), "a later request overtook an earlier one for the same");
    }

    fn within_its_reserve(&self, want: &Want) {
        let most = self.reserve(&want.function);
        assert!(most.is_none_or(|most| self.running(&want.function) < most), "more than the reserve would run");
    }

    fn check(&self) {
        // A budget that was lowered may be exceeded by those who run.
        let fits = self.core.charged() <= self.budget || self.idle.is_empty();
        assert!(fits, "over budget: {}", self.core.charged() / MIB);
        let unanswered = self.busy.values().filter(|(_, answered)| !answered).count();
        let in_flight = self.waiting.len() + self.starting.len() + unanswered;
        for want in self.waiting.values() {
            let beside = self.in_flight_beside(&want.function);
            assert!(beside <= self.share(&want.function), "{beside} at once, one of them waiting");
        }
        self.nobody_waits_for_nothing();
        assert_eq!((self.core.in_flight(), self.core.waiting()), (in_flight, self.waiting.len()));
        for function in 0..FUNCTIONS {
            let waiters = self.waiting.values().filter(|want| want.function == Self::name(function)).count();
            assert!(waiters <= limits().waiters + 1, "a replaced request is the only one over the bound");
        }
        let all = self.starting.keys().chain(self.busy.keys()).chain(self.entered.keys()).copied();
        let all: BTreeSet<SlotId> = all.chain(self.idle.iter().map(|(slot, _)| *slot)).collect();
        assert_eq!(all, self.core.slots().map(|(id, _)| id).collect(), "a slot was lost or invented");
    }

    /// Who need not hope for a settling slot any more, and may run, lacks something, or gives way to who claims memory.
    fn nobody_waits_for_nothing(&self) {
        if self.core.claim.is_some() {
            return;
        }
        for (ticket, want) in &self.waiting {
            let lacks = self.places() >= limits().starts || want.memory.bytes() > self.room();
            assert!(lacks || !self.only_lacks_memory(*ticket, want), "{want:?} waits for nothing");
        }
    }

    fn act(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Request { function, patience_ms } => {
                let want = Want {
                    function: Self::name(function),
                    stamp: self.stamps[function],
                    memory: Memory::from_mib([128, 256, 512][self.stamps[function].0 as usize % 3]).unwrap(),
                    reuse: if self.stamps[function].0 % 5 == 4 { Reuse::Never } else { Reuse::Always },
                    until: now + Duration::from_millis(patience_ms),
                };
                self.requested += 1;
                let fits = self.in_flight_beside(&want.function) < self.share(&want.function);
                let (ticket, orders) = self.core.request(want.clone(), now);
                let refused = orders.iter().any(|order| {
                    matches!(order, Order::Refuse { why: Throttle::Reserved | Throttle::Concurrency, ticket: one } if *one == ticket)
                });
                // A bound on waiters may refuse as well, and says what was short: a reserve whose slots settle.
                let settles = self.reserve(&want.function).is_some_and(|most| self.running(&want.function) >= most);
                assert!(refused != fits || (refused && settles), "its share has room: {fits}, refused: {refused}");
                self.waiting.insert(ticket, want);
                self.since.insert(ticket, now);
                self.obey(orders);
            }
            Step::Started { pick } => {
                if let Some((slot, (want, _))) = remove_nth(&mut self.starting, pick) {
                    if self.current(&want.function) == want.stamp {
                        self.failing.remove(&want.function);
                    }
                    self.busy.insert(slot, (want, false));
                    let orders = self.core.started(slot, now);
                    self.obey(orders);
                }
            }
            Step::Failed { pick } => {
                if let Some((slot, _)) = remove_nth(&mut self.starting, pick) {
                    self.ended += 1;
                    self.gone(slot);
                    let orders = self.core.remove(slot, Retire::Init, now);
                    self.obey(orders);
                }
            }
            Step::InitFailed { pick } => {
                if let Some((slot, (want, _))) = remove_nth(&mut self.starting, pick) {
                    self.ended += 1;
                    self.gone(slot);
                    let current = self.current(&want.function);
                    if current == want.stamp {
                        self.failing.insert(want.function);
                    }
                    let orders = self.core.init_failed(slot, Some(current), now);
                    self.obey(orders);
                }
            }
            Step::InitGoesOn { pick } => {
                if let Some((slot, (want, _))) = remove_nth(&mut self.starting, pick) {
                    self.busy.insert(slot, (want, false));
                    let orders = self.core.start_is_over(slot, now);
                    self.obey(orders);
                }
            }
            Step::Drain { function } => {
                let name = Self::name(function);
                let starting = self.starting.iter().map(|(slot, (want, _))| (slot, want));
                let own = starting.chain(self.busy.iter().map(|(slot, (want, _))| (slot, want)));
                let own: Vec<SlotId> = own.filter(|(_, want)| want.function == name).map(|(slot, _)| *slot).collect();
                self.leaving.extend(&own);
                let (later, orders) = self.core.drain(&name, now);
                assert_eq!(later, own.len());
                self.obey(orders);
            }
            Step::Recycle { pick } => {
                let all: Vec<SlotId> = self.core.slots().map(|(id, _)| id).collect();
                if let Some(slot) = all.get(pick % all.len().max(1)).copied() {
                    let idle = self.idle.iter().any(|(other, _)| *other == slot) || self.entered.contains_key(&slot);
                    if !idle {
                        self.leaving.insert(slot);
                    }
                    let (at_once, orders) = self.core.dismiss(slot, Retire::Recycled, now);
                    assert_eq!(at_once, idle);
                    self.obey(orders);
                }
            }
            Step::Budget { mib } => {
                self.budget = mib * MIB;
                let orders = self.core.bound(Limits { budget: self.budget, ..limits() }, now);
                self.obey(orders);
            }
            Step::Answered { pick } => {
                if let Some(slot) = nth(&self.busy, pick) {
                    if let Some((_, answered)) = self.busy.get_mut(&slot) {
                        *answered = true;
                    }
                    self.core.answered(slot);
                }
            }
            Step::GiveBack { pick, now: used, tmp } => {
                if let Some((slot, (want, _))) = remove_nth(&mut self.busy, pick) {
                    self.ended += 1;
                    let current = self.current(&want.function);
                    let steps = if self.leaving.contains(&slot) { 0 } else { tmp.div_ceil(TMP_STEP) };
                    self.tmp.insert(slot, steps);
                    // It was lent with what was current; whether the core keeps it is seen from its orders.
                    self.idle.push((slot, want));
                    let orders = self.core.give_back(slot, Usage { now: used, tmp }, Some(current), now);
                    self.obey(orders);
                }
            }
            Step::Dirty { pick } => {
                if let Some((slot, _)) = remove_nth(&mut self.busy, pick) {
                    self.ended += 1;
                    self.gone(slot);
                    let orders = self.core.remove(slot, Retire::Failed, now);
                    self.obey(orders);
                }
            }
            Step::Grow { pick, tmp } => {
                if let Some(slot) = nth(&self.busy, pick) {
                    let (granted, orders) = self.core.grow(slot, tmp);
                    if granted {
                        let steps = self.tmp.entry(slot).or_default();
                        *steps = (*steps).max(tmp.div_ceil(TMP_STEP));
                    } else {
                        self.leaving.insert(slot);
                    }
                    assert!(granted || self.idle.is_empty() || orders.is_empty(), "evicted for nothing");
                    self.obey(orders);
                }
            }
            Step::Change { function } => {
                self.next_stamp += 1;
                self.stamps[function] = Stamp(self.next_stamp);
                self.failing.remove(&Self::name(function));
                let orders = self.core.function_changed(&Self::name(function), Some(self.stamps[function]), now);
                self.obey(orders);
                assert!(!self.idle.iter().any(|(_, want)| want.function == Self::name(function)), "a stale slot stayed");
            }
            Step::DeadWhenLent => self.dead_when_lent = true,
            Step::Died { pick } => {
                if !self.idle.is_empty() {
                    let (slot, _) = self.idle.remove(pick % self.idle.len());
                    self.gone(slot);
                    let orders = self.core.remove(slot, Retire::Died, now);
                    self.obey(orders);
                }
            }
            Step::Abandon { pick } => {
                if let Some((ticket, _)) = remove_nth(&mut self.waiting, pick) {
                    self.ended += 1;
                    let orders = self.core.abandon(ticket, now);
                    self.obey(orders);
                }
            }
            Step::Reserve { function, reserve } => {
                self.reserves[function] = reserve;
                let orders = self.core.reserve(&Self::name(function), reserve, now);
                self.obey(orders);
            }
            Step::Enter { pick, patiently } => {
                let all: Vec<SlotId> = self.core.slots().map(|(id, _)| id).collect();
                let Some(slot) = all.get(pick % all.len().max(1)).copied() else { return };
                let (entry, orders) = self.core.enter(slot, patiently, now);
                match entry {
                    Entry::Held => {
                        let at = self.idle.iter().position(|(idle, _)| *idle == slot).expect("only what is idle is held");
                        let (_, want) = self.idle.remove(at);
                        self.entered.insert(slot, want);
                        assert!(self.core.charged() <= self.budget, "it is awake now, and that is not paid for");
                    }
                    Entry::Beside => {
                        let (_, answered) = self.busy.get(&slot).expect("only what works is entered beside");
                        assert!(!answered || !patiently, "it would have been idle in a moment");
                        self.leaving.insert(slot);
                    }
                    Entry::Settling => {
                        let settles = self.busy.get(&slot).is_some_and(|(_, answered)| *answered && patiently);
                        assert!(settles || self.starting.contains_key(&slot), "nothing to wait for");
                    }
                    Entry::Occupied => assert!(self.entered.contains_key(&slot), "nobody is there"),
                    Entry::NoRoom => {
                        let (_, want) = self.idle.iter().find(|(idle, _)| *idle == slot).expect("only a thaw takes memory");
                        assert!(self.charge(slot, want) > self.room(), "it would have fitted");
                    }
                    Entry::Gone => panic!("it is there"),
                }
                self.obey(orders);
            }
            Step::Leave { pick } => {
                if let Some((slot, _)) = remove_nth(&mut self.entered, pick) {
                    self.gone(slot);
                    let orders = self.core.remove(slot, Retire::Entered, now);
                    self.obey(orders);
                }
            }
            Step::NotEntered { pick, now: used, tmp } => {
                if let Some((slot, want)) = remove_nth(&mut self.entered, pick) {
                    let current = self.current(&want.function);
                    self.tmp.insert(slot, tmp.div_ceil(TMP_STEP));
                    self.idle.push((slot, want));
                    let orders = self.core.not_entered(slot, Usage { now: used, tmp }, Some(current), now);
                    self.obey(orders);
                }
            }
            Step::Pass { ms } => {
                self.now += Duration::from_millis(ms);
                let orders = self.core.tick(self.now);
                self.obey(orders);
                assert!(self.waiting.values().all(|want| want.until > self.now), "who is late is refused");
            }
        }
    }
}

fn nth<K: Copy + Ord, V>(map: &BTreeMap<K, V>, pick: usize) -> Option<K> {
    map.keys().nth(pick % map.len().max(1)).copied()
}

fn remove_nth<K: Copy + Ord, V>(map: &mut BTreeMap<K, V>, pick: usize) -> Option<(K, V)> {
    let key = nth(map, pick)?;
    map.remove_entry(&key)
}

proptest! {
    // PROPTEST_CASES makes it a longer search.
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(512), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_history_breaks_a_promise(steps in proptest::collection::vec(step(), 1..120)) {
        let mut shadow = Shadow::new();
        for step in steps {
            shadow.act(step);
        }
        // Whatever happened: when all loans end and time passes, nothing is left and everybody was told.
        while !(shadow.starting.is_empty() && shadow.busy.is_empty() && shadow.waiting.is_empty()) {
            shadow.act(Step::Started { pick: 0 });
            shadow.act(Step::GiveBack { pick: 0, now: MIB, tmp: 0 });
            shadow.act(Step::Leave { pick: 0 });
            shadow.act(Step::Pass { ms: 1 });
        }
        prop_assert_eq!(shadow.ended, shadow.requested);
        while !shadow.entered.is_empty() {
            shadow.act(Step::Leave { pick: 0 });
        }
        shadow.act(Step::Pass { ms: 60 });
        prop_assert_eq!((shadow.core.charged(), shadow.idle.len()), (0, 0));
        prop_assert_eq!(shadow.gone.len() as u64, shadow.retired, "each end is told, once");
        let tally = shadow.core.tally();
        prop_assert_eq!((tally.retired.values().sum::<u64>(), tally.told_again), (shadow.retired, shadow.told_again));
        prop_assert_eq!(tally.refused.values().sum::<u64>(), shadow.refused, "each end has its reason");
    }
}
