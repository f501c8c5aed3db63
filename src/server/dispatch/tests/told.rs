//! What is told of it all as events. That each thing told to begin is told to end, once, every house of these tests looks at.

use super::*;
use crate::server::events::{Detail, Event};

fn whys(house: &House) -> Vec<Cold> {
    let told = house.rules.now();
    told.seen.iter().filter_map(|event| if let What::Starting { why } = event.what { Some(why) } else { None }).collect()
}

fn ends(house: &House) -> Vec<(Retire, Detail, u64)> {
    let told = house.rules.now();
    let end = |event: &Event| match &event.what {
        What::Retired { why, detail, invocations, .. } => Some((*why, detail.clone(), *invocations)),
        _ => None,
    };
    told.seen.iter().filter_map(end).collect()
}

fn detail(cause: &str, text: &str) -> Detail {
    Detail { cause: Some(cause.into()), text: Some(text.into()), ..Detail::default() }
}

/// The second and all later invocations sleep; the clock is paused, so that costs nothing.
async fn slow(mut inside: Inside) -> Word {
    loop {
        let (id, payload) = inside.next().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        inside.respond(&id, &payload).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_life_is_told_from_its_start_to_its_end() {
    let house = House::new(echo);
    house.tail().await;
    house.tail().await;
    house.dispatch.drain().await;
    let told = house.rules.now();
    let names: Vec<_> = told.seen.iter().map(|event| event.what.name()).collect();
    let warm = ["invoked", "thawed", "frozen", "ended"];
    assert_eq!(names, [&["starting", "ready", "invoked", "frozen", "ended"][..], &warm, &["retired"]].concat());
    assert!(told.seen.windows(2).all(|two| two[0].seq + 1 == two[1].seq && two[0].at <= two[1].at));
    assert!(told.seen.iter().all(|event| event.function == Some(name()) && event.version.as_deref() == Some("$LATEST")));
    assert!(told.seen[1..].iter().all(|event| event.container.as_deref() == Some("1-1")), "{:#?}", told.seen);
    let requests: Vec<_> = told.seen.iter().map(|event| event.request).collect();
    assert!(requests[..5].iter().all(|request| *request == requests[0]) && requests[0].is_some(), "{requests:?}");
    assert!(requests[5..9].iter().all(|request| *request == requests[5]) && requests[5] != requests[0], "{requests:?}");
    let rows = house.books.rows.lock().unwrap().clone();
    let ended: Vec<_> = [4, 8].iter().map(|at| told.seen[*at].what.clone()).collect();
    assert_eq!(ended, [super::super::ended(&rows[0], true), super::super::ended(&rows[1], false)], "as the books have it");
}

#[tokio::test(start_paused = true)]
async fn every_cold_start_says_why_no_warm_environment_was_there() {
    let house = House::new(slow);
    assert_eq!(whys(&house), []);
    tokio::join!(house.tail(), house.tail());
    assert_eq!(whys(&house), [Cold::First, Cold::Busy]);
    house.dispatch.drain_function(&name(), "uid 7");
    house.tail().await;
    house.store(2);
    house.tail().await;
    let container = house.dispatch.snapshot().environments[0].container.clone().unwrap();
    house.dispatch.kill_container(&container, "uid 8");
    house.tail().await;
    house.store_with(3, Reuse::Never);
    house.tail().await;
    let last = |why| Cold::Retired(why);
    let expected = [last(Retire::Drained), last(Retire::Updated), last(Retire::Killed), Cold::Once];
    assert_eq!(whys(&house)[2..], expected);
    // An older one still runs, and cannot be used.
    house.store(4);
    tokio::join!(house.tail(), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        house.store(5);
        house.tail().await;
    });
    assert_eq!(whys(&house)[6..], [last(Retire::Once), last(Retire::Updated)]);
    house.settled().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_environment_that_died_is_why_the_next_one_starts_and_says_what_it_died_of() {
    let house = House::new(echo);
    house.tail().await;
    house.launcher.die();
    house.tail().await;
    let cause = detail("Sandbox.Failure", "the launcher of the container died");
    assert_eq!(ends(&house), [(Retire::Died, cause, 1)]);
    assert_eq!(whys(&house)[1..], [Cold::Retired(Retire::Died)]);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_was_never_read_is_told_to_be_taken_back_and_ends_once() {
    let house = House::new(|mut inside: Inside| async move {
        if inside.number > 1 {
            return echo(inside).await;
        }
        let (id, payload) = inside.next().await;
        inside.respond(&id, &payload).await;
        inside.next_and_die().await;
        Word::Nothing
    });
    house.tail().await;
    house.tail().await;
    let names = house.rules.names();
    let again = ["invoked", "taken_back", "retired", "starting", "ready", "invoked", "ended"];
    assert_eq!(names[4..], again, "{names:?}");
    assert!(matches!(house.rules.last("ended"), What::Ended { cold: true, cause: None, .. }));
}

type Script = fn(Inside) -> std::pin::Pin<Box<dyn Future<Output = Word> + Send>>;

#[tokio::test(start_paused = true)]
async fn an_end_names_the_cause_of_the_invocation_that_it_came_with() {
    let hangs: Script = |inside| Box::pin(once(inside, async |_, _| std::future::pending().await));
    let grows: Script = |inside| {
        Box::pin(once(inside, async |inside, _| {
            inside.uses(200 << 20, 0, 0);
            std::future::pending().await
        }))
    };
    let exits: Script = |inside| Box::pin(once(inside, async |_, _| Word::Exited(3 << 8)));
    for (script, cause, text) in [
        (hangs, "Sandbox.Timedout", "Task timed out after 3.00 seconds"),
        (grows, "Runtime.OutOfMemory", "Runtime exited with error: signal: killed"),
        (exits, "Runtime.ExitError", "Runtime exited with error: exit status 3"),
    ] {
        let house = House::new(script);
        house.tail().await;
        assert_eq!(ends(&house), [(Retire::Failed, detail(cause, text), 1)]);
        let What::Ended { cause: ended, .. } = house.rules.last("ended") else { panic!("{cause}") };
        assert_eq!(ended.as_deref(), Some(cause));
    }
}

#[tokio::test(start_paused = true)]
async fn who_ends_an_environment_by_hand_is_named() {
    let house = House::new(slow);
    let container = |house: &House| house.dispatch.snapshot().environments[0].container.clone().unwrap();
    house.tail().await;
    house.dispatch.recycle_container(&container(&house), "uid 7").unwrap();
    house.tail().await;
    house.dispatch.drain_function(&name(), "uid 8").unwrap();
    let (killed, ()) = tokio::join!(house.invoke(LogType::Tail), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        house.dispatch.kill_container(&container(&house), "uid 9").unwrap();
    });
    assert!(killed.1.unwrap().outcome.cause().is_some());
    let told: Vec<_> = ends(&house).into_iter().map(|(why, detail, _)| (why, detail.by.unwrap())).collect();
    let by = |why, who: &str| (why, who.to_owned());
    assert_eq!(told, [by(Retire::Recycled, "uid 7"), by(Retire::Drained, "uid 8"), by(Retire::Killed, "uid 9")]);
}

#[tokio::test(start_paused = true)]
async fn an_eviction_names_the_function_that_needed_the_memory() {
    let house = House::with(Config { memory_budget_mib: 150, ..Config::default() }, echo);
    house.tail().await;
    let other = FunctionName::parse("hungry").unwrap();
    let function = Function { name: other.clone(), ..(*house.registry.function(&name()).unwrap()).clone() };
    house.registry.0.lock().unwrap().insert(other.clone(), Arc::new(function));
    let invocation = Invocation { function: other.clone(), ..invocation() };
    house.dispatch.invoke(invocation).await.unwrap();
    house.settled().await;
    let (why, detail, invocations) = ends(&house).remove(0);
    assert_eq!((why, detail.needed_by, invocations), (Retire::Memory, Some(other), 1));
    house.tail().await;
    assert_eq!(whys(&house)[2..], [Cold::Retired(Retire::Memory)]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_says_what_was_short_how_much_there_is_and_how_long_it_waited() {
    let config = Config { memory_budget_mib: 128, capacity_wait_s: 1, ..Config::default() };
    let house = House::with(config, |inside| once(inside, async |_, _| std::future::pending().await));
    let (_, (_, late)) = tokio::join!(house.invoke(LogType::None), async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        house.invoke(LogType::None).await
    });
    late.unwrap_err();
    let What::Throttled { reason, waited_us, in_use, limit } = house.rules.last("throttled") else { panic!() };
    assert_eq!((reason, in_use, limit), (Throttle::Memory, 128, 128));
    assert!((1_000_000..1_500_000).contains(&waited_us), "{waited_us}");

    house.registry.1.lock().unwrap().insert(name(), 0);
    house.dispatch.function_changed(&name());
    house.invoke(LogType::None).await.1.unwrap_err();
    let What::Throttled { reason, in_use, limit, .. } = house.rules.last("throttled") else { panic!() };
    assert_eq!((reason, in_use, limit), (Throttle::Reserved, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_before_the_queue_is_told_and_counted_like_others() {
    let house = House::new(echo);
    let waited = Duration::from_secs(5);
    house.dispatch.refused_before(&name(), RequestId::new(), Throttle::Payloads, waited, (252, 256));
    let told = house.rules.last("throttled");
    assert_eq!(told, What::Throttled { reason: Throttle::Payloads, waited_us: 5_000_000, in_use: 252, limit: 256 });
    assert_eq!(house.dispatch.snapshot().refused, [(Throttle::Payloads, 1)].into());
}

#[tokio::test(start_paused = true)]
async fn an_init_that_fails_is_told_each_time_and_its_invocation_ends_all_the_same() {
    let house = House::new(|mut inside: Inside| async move {
        inside.init_error("Runtime.ImportModuleError", b"{}").await;
        Word::Exited(1 << 8)
    });
    for _ in 0..3 {
        house.tail().await;
    }
    let tried = ["starting", "init_failed", "starting", "init_failed", "invoked", "ended"];
    assert_eq!(house.rules.names(), [&tried[..], &tried, &["invoked", "ended"]].concat(), "the third was not tried");
    assert_eq!(whys(&house), [Cold::First, Cold::Again, Cold::Retired(Retire::Init), Cold::Again]);
    let told = house.rules.now();
    let failed = told
        .seen
        .iter()
        .filter(|event| matches!(&event.what, What::InitFailed { cause, .. } if cause == "Runtime.ImportModuleError"));
    assert_eq!(failed.filter_map(|event| event.container.as_deref()).collect::<Vec<_>>(), ["1-1", "1-2", "1-3", "1-4"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_drain_cuts_is_told_to_end_whether_it_starts_or_runs() {
    let starts: Script = |_| Box::pin(std::future::pending());
    let runs: Script = |inside| Box::pin(once(inside, async |_, _| std::future::pending().await));
    let last = |house: &House| house.rules.now().seen.last().map(|event| event.what.clone());
    for script in [starts, runs] {
        let house = House::new(script);
        let (_answer, ()) = tokio::join!(house.invoke(LogType::Tail), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            house.dispatch.cut(Duration::from_secs(1));
            house.dispatch.drain().await;
        });
        let told = match last(&house) {
            Some(What::InitFailed { cause, again, .. }) => (cause, again),
            Some(What::Retired { why: Retire::Stopping, detail, .. }) => (detail.cause.unwrap(), false),
            other => panic!("{other:?}"),
        };
        assert_eq!(told, ("Sandbox.Stopped".to_owned(), false));
    }
}

fn invocation() -> Invocation {
    Invocation {
        request: RequestId::new(),
        function: name(),
        payload: Bytes::from_static(b"{}"),
        client_context: None,
        invoked_arn: "arn".into(),
        trace: String::new(),
        log_type: LogType::None,
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_initialises_is_seen_by_its_container_and_a_kill_of_it_is_a_failed_init() {
    let first = AtomicBool::new(true);
    let house = House::new(move |inside| {
        let hangs = first.swap(false, Ordering::SeqCst);
        async move {
            if hangs {
                std::future::pending::<()>().await;
            }
            echo(inside).await
        }
    });
    let (answer, state) = tokio::join!(house.tail(), async {
        let container = loop {
            let seen = house.dispatch.snapshot().environments;
            if let Some(container) = seen.first().and_then(|seen| seen.container.clone()) {
                break container;
            }
            tokio::task::yield_now().await;
        };
        let (seen, ..) = house.dispatch.look_into(&container).await.expect("it can be looked into");
        house.dispatch.kill_container(&container, "uid 8").expect("it can be killed");
        seen.state
    });
    assert_eq!((answer.0.as_str(), state), ("{}", SeenState::Initialising));
    assert_eq!(house.rules.names(), ["starting", "init_failed", "starting", "ready", "invoked", "ended"]);
    let What::InitFailed { by, .. } = house.rules.last("init_failed") else { panic!("it was told") };
    assert_eq!(by.as_deref(), Some("uid 8"));
    house.settled().await;
    let left = house.dispatch.snapshot().environments;
    assert_eq!(left.iter().map(|seen| (seen.state, seen.leaving)).collect::<Vec<_>>(), [(SeenState::Idle, None)]);
}
