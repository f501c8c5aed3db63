//! The ring with real limits, and what its listeners hear; and the rules that every stream of events keeps, for tests of other
//! rooms.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::timeout;

use super::*;

fn some() -> Subject {
    Subject::environment(&FunctionName::parse("f").unwrap(), "1-1")
}

fn rare(number: u32) -> What {
    What::LauncherLost { launcher: number }
}

fn seqs(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.seq).collect()
}

#[tokio::test]
async fn what_happens_is_heard_in_order_and_by_those_who_asked_for_it() {
    let events = Events::default();
    let mut all = events.listen(Filter::default());
    let mut ends = events.listen(Filter { kinds: vec!["frozen".into()], ..Filter::default() });
    for what in [What::Thawed, What::Frozen, rare(1)] {
        events.emit(&some(), None, what);
    }
    let heard = all.next().await;
    assert_eq!(heard.events.iter().map(|event| event.what.name()).collect::<Vec<_>>(), ["thawed", "frozen", "launcher_lost"]);
    let heard = ends.next().await;
    assert_eq!((heard.events.len(), heard.lost), (1, 0));
    let later = timeout(Duration::from_millis(20), ends.next()).await;
    assert!(later.is_err(), "{later:?}");
    let (heard, ()) = tokio::join!(ends.next(), async { events.emit(&some(), None, What::Frozen) });
    assert_eq!(heard.events.len(), 1, "who waits is woken");
}

#[tokio::test]
async fn a_slow_listener_holds_nobody_up_and_is_told_how_many_it_has_lost() {
    let events = Events::default();
    let mut slow = events.listen(Filter::default());
    for _ in 0..20_000 {
        events.emit(&some(), None, What::Frozen);
    }
    events.emit(&Subject::NOBODY, None, rare(7));
    let (mut heard, mut lost) = (Vec::new(), 0);
    while let Some(more) = slow.heard() {
        heard.extend(more.events);
        lost += more.lost;
    }
    assert_eq!(heard.len() as u64 + lost, 20_001, "each is heard or counted");
    assert_eq!((heard.len(), lost), (8193, 20_000 - 8192));
    assert!(seqs(&heard).windows(2).all(|two| two[0] < two[1]));
}

#[test]
fn a_flood_of_invocations_washes_no_end_away() {
    let events = Events::default();
    events.emit(&Subject::NOBODY, None, rare(1));
    for _ in 0..30_000 {
        events.emit(&some(), None, What::Frozen);
    }
    let kept = events.kept(Filter { kinds: vec!["launcher_lost".into()], ..Filter::default() });
    assert_eq!(kept.len(), 1);
}

#[test]
fn who_goes_on_from_where_they_were_hears_the_rest_and_no_other_servers_number_confuses() {
    let events = Events::default();
    for number in 0..5 {
        events.emit(&Subject::NOBODY, None, rare(number));
    }
    let all = events.kept(Filter::default());
    let since = |since: u64| {
        let heard = events.listen_since(Some(since), Filter::default()).heard();
        heard.map(|heard| (seqs(&heard.events), heard.lost)).unwrap_or_default()
    };
    let numbers = seqs(&all);
    assert_eq!(since(numbers[3]), (numbers[3..].to_vec(), 0));
    assert_eq!(since(numbers[4] + 1), (vec![], 0), "all are seen");
    // Of a server before this one, or of a clock that was set back: everything here is news.
    for other in [0, 7, numbers[0] - 1, numbers[4] + 1_000_000] {
        assert_eq!(since(other), (numbers.clone(), 0));
    }
}

#[test]
fn events_are_flat_objects_with_the_names_of_the_help() {
    let events = Events::default();
    let f = FunctionName::parse("f").unwrap();
    events.emit(&Subject::function(&f), None, What::Starting { why: Cold::Retired(Retire::Idle) });
    events.emit(&Subject::function(&f), None, What::Starting { why: Cold::First });
    let detail = Detail { needed_by: Some(f.clone()), ..Detail::default() };
    events.emit(&some(), None, What::Retired { why: Retire::Memory, detail, age_s: 1.5, invocations: 2, peak_mib: 3 });
    let told: Vec<serde_json::Value> =
        events.kept(Filter::default()).iter().map(|event| serde_json::to_value(event).unwrap()).collect();
    let mut expected = serde_json::json!({
        "seq": told[0]["seq"], "time_ms": told[0]["time_ms"], "function": "f", "version": "$LATEST", "container": null,
        "request": null, "event": "starting", "why": "retired", "last_end": "idle",
    });
    assert_eq!(told[0], expected);
    expected["seq"] = told[1]["seq"].clone();
    expected["time_ms"] = told[1]["time_ms"].clone();
    expected["why"] = "first".into();
    expected.as_object_mut().unwrap().remove("last_end");
    assert_eq!(told[1], expected);
    assert_eq!(
        told[2],
        serde_json::json!({
            "seq": told[2]["seq"], "time_ms": told[2]["time_ms"], "function": "f", "version": "$LATEST", "container": "1-1",
            "request": null, "event": "retired", "why": "memory", "cause": null, "text": null, "by": null, "needed_by": "f",
            "age_s": 1.5, "invocations": 2, "peak_mib": 3,
        })
    );
}

proptest! {
    /// However emitting and reading take turns, and whatever falls out of the ring meanwhile: each event is heard or counted,
    /// once, in order.
    #[test]
    fn each_event_is_heard_once_or_counted_as_lost(turns in proptest::collection::vec((0..6000_u32, any::<bool>(), 0..3_usize), 1..12)) {
        let events = Events::default();
        let mut listener = events.listen(Filter::default());
        let (mut emitted, mut heard, mut lost) = (0_u64, Vec::new(), 0);
        let mut take = |more: Option<Heard>| if let Some(more) = more {
            heard.extend(seqs(&more.events));
            lost += more.lost;
        };
        for (count, is_rare, reads) in turns {
            for number in 0..count {
                events.emit(&some(), None, if is_rare { rare(number) } else { What::Frozen });
            }
            emitted += u64::from(count);
            for _ in 0..reads {
                take(listener.heard());
            }
        }
        while let Some(more) = listener.heard() {
            take(Some(more));
        }
        prop_assert_eq!(heard.len() as u64 + lost, emitted);
        prop_assert!(heard.windows(2).all(|two| two[0] < two[1]));
    }
}

/// Follows every event of a house, and holds them to the drawing at [`What`].
#[derive(Default)]
pub struct Rules(Mutex<Ruled>);

#[derive(Default)]
pub struct Ruled {
    pub seen: Vec<Event>,
    starting: HashMap<RequestId, u32>,
    /// Containers that are ready and not retired, and those that ever were.
    pub ready: HashSet<Arc<str>>,
    retired: HashSet<Arc<str>>,
    /// Requests that were invoked and have not ended, and in which container.
    pub running: HashMap<RequestId, Option<Arc<str>>>,
    ended: HashSet<RequestId>,
}

impl Rules {
    pub fn now(&self) -> MutexGuard<'_, Ruled> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names, of what is not frozen or thawed.
    pub fn names(&self) -> Vec<&'static str> {
        let names = self.now().seen.iter().map(|event| event.what.name()).collect::<Vec<_>>();
        names.into_iter().filter(|name| !["frozen", "thawed"].contains(name)).collect()
    }

    pub fn last(&self, name: &str) -> What {
        let held = self.now();
        held.seen.iter().rev().find(|event| event.what.name() == name).unwrap_or_else(|| panic!("no {name}")).what.clone()
    }
}

impl Observer for Rules {
    fn see(&self, event: &Event) {
        let mut held = self.now();
        let container = event.container.clone();
        let request = || event.request.expect("of a request");
        match &event.what {
            What::Starting { .. } => *held.starting.entry(request()).or_default() += 1,
            What::Ready { .. } => {
                let left = held.starting.get_mut(&request()).expect("it was starting");
                *left = left.checked_sub(1).expect("one Ready for one Starting");
                let container = container.expect("a container");
                assert!(!held.retired.contains(&container), "{container} is ready after its end");
                assert!(held.ready.insert(container), "ready twice: {event:?}");
            }
            What::InitFailed { .. } => {
                let left = held.starting.get_mut(&request()).expect("it was starting");
                *left = left.checked_sub(1).expect("one InitFailed for one Starting");
            }
            What::Invoked { .. } => {
                assert!(!held.ended.contains(&request()), "invoked after its end: {event:?}");
                assert!(held.running.insert(request(), container).is_none(), "invoked twice: {event:?}");
            }
            What::TakenBack => {
                assert_eq!(held.running.remove(&request()), Some(container), "{event:?}");
            }
            What::Ended { .. } => {
                assert_eq!(held.running.remove(&request()), Some(container), "ended, and did not run: {event:?}");
                assert!(held.ended.insert(request()), "ended twice: {event:?}");
            }
            // Whoever is in a container that is ended leaves after its end.
            What::Left { .. } => {}
            What::Entered { .. } | What::Frozen | What::Thawed => {
                assert!(held.ready.contains(&container.expect("a container")), "{event:?}")
            }
            What::Retired { .. } => {
                let container = container.expect("a container");
                assert!(held.ready.remove(&container), "{container} ended, and was not ready: {event:?}");
                assert!(held.retired.insert(container), "ended twice: {event:?}");
            }
            What::Throttled { .. }
            | What::LauncherStarted { .. }
            | What::LauncherLost { .. }
            | What::Swept { .. }
            | What::Draining => {}
        }
        held.seen.push(event.clone());
    }
}
