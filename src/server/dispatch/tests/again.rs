//! Inits that fail again and again, environments that serve once, and those that people end by hand.

use super::*;
use crate::server::pool::Retire;

/// Fails to initialise until it is told otherwise.
fn failing(good: Arc<AtomicBool>) -> impl Fn(Inside) -> std::pin::Pin<Box<dyn Future<Output = Word> + Send>> + Send + Sync {
    move |mut inside: Inside| {
        let good = good.clone();
        Box::pin(async move {
            if good.load(Ordering::SeqCst) {
                return echo(inside).await;
            }
            inside.init_error("Runtime.ImportModuleError", b"{\"errorMessage\":\"no\"}").await;
            Word::Exited(1 << 8)
        })
    }
}

#[tokio::test(start_paused = true)]
async fn an_init_that_fails_again_and_again_is_told_again_with_the_same_error_and_tried_later() {
    let good = Arc::new(AtomicBool::new(false));
    let house = House::new(failing(good.clone()));
    let first = house.tail().await;
    let second = house.tail().await;
    assert_eq!(house.launcher.built(), 4, "each of the first two is tried, twice");
    let third = house.tail().await;
    assert_eq!(house.launcher.built(), 4, "not in a tight loop");
    assert_eq!([&second.0, &third.0], [&first.0; 2], "what the caller is told does not change");
    assert!(third.1.contains("it fails again and again, so it was not tried this time\nEND"), "{}", third.1);
    assert!(third.1.ends_with("\tStatus: error\tError Type: Runtime.ImportModuleError\n"), "{}", third.1);
    let rows = house.books.rows.lock().unwrap().clone();
    assert_eq!(rows.len(), 3, "it is in the books");
    assert_eq!(rows[2].error_type, rows[0].error_type);
    assert!(rows[2].duration < Duration::from_millis(100), "{:?}", rows[2].duration);

    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(house.tail().await.0, first.0);
    assert_eq!(house.launcher.built(), 6, "after a pause it is tried");
    good.store(true, Ordering::SeqCst);
    assert_eq!(house.tail().await.0, first.0, "the next pause is longer");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(house.tail().await.0, "{}");
    assert_eq!(house.tail().await.0, "{}");
    assert_eq!(house.dispatch.snapshot().failing, 0);
}

#[tokio::test(start_paused = true)]
async fn new_code_is_tried_at_once_whatever_failed_before() {
    let good = Arc::new(AtomicBool::new(false));
    let house = House::new(failing(good.clone()));
    for _ in 0..3 {
        house.tail().await;
    }
    good.store(true, Ordering::SeqCst);
    house.store(2);
    assert_eq!(house.tail().await.0, "{}");
}

#[tokio::test(start_paused = true)]
async fn an_init_that_timed_out_is_told_again_at_once() {
    let house = House::new(|_| std::future::pending());
    let first = house.tail().await.0;
    assert!(first.contains("Sandbox.Timedout"), "{first}");
    house.tail().await;
    let began = Instant::now();
    let (body, log) = house.tail().await;
    assert_eq!(body, first);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(log.contains("\tStatus: timeout\n"), "{log}");
}

#[tokio::test(start_paused = true)]
async fn kilns_own_faults_are_tried_each_time() {
    let house = House::new(echo);
    house.launcher.fail(8);
    for _ in 0..4 {
        assert!(house.tail().await.0.contains("Sandbox.Failure"));
    }
    assert_eq!(house.tail().await.0, "{}");
}

#[tokio::test(start_paused = true)]
async fn a_function_without_reuse_gets_a_fresh_container_for_each_invocation() {
    let house = House::new(echo);
    house.store_with(2, Reuse::Never);
    for n in 1..=3 {
        assert_eq!(house.tail().await.0, "{}");
        assert_eq!((house.launcher.built(), house.dispatch.snapshot().environments.len()), (n, 0));
    }
    assert_eq!(house.dispatch.snapshot().retired[&Retire::Once], 3);
}

/// Runs one invocation, does something to its container while it runs.
async fn meanwhile(house: &House, act: impl FnOnce(&str)) -> (String, String) {
    let (answer, ()) = tokio::join!(house.tail(), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let seen = house.dispatch.snapshot().environments;
        act(seen[0].container.as_deref().expect("it is there"));
    });
    answer
}

async fn slow(mut inside: Inside) -> Word {
    loop {
        let (id, _) = inside.next().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        inside.respond(&id, inside.number.to_string().as_bytes()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_killed_container_ends_its_invocation_as_lambda_words_it_and_the_log_says_who_did_it() {
    let house = House::new(slow);
    let (body, log) = meanwhile(&house, |container| {
        let killed = house.dispatch.kill_container(container, "uid 7").unwrap();
        assert!(killed.ended && killed.state == SeenState::Busy);
    })
    .await;
    assert!(body.contains("Runtime.ExitError") && body.contains("signal: killed"), "{body}");
    assert!(log.contains(" was killed by uid 7\n"), "{log}");
    assert_eq!(house.dispatch.snapshot().retired, [(Retire::Killed, 1)].into());
    assert_eq!(house.tail().await.0, "2");
    assert_eq!(house.dispatch.kill_container("nobody", "uid 7"), None);
}

#[tokio::test(start_paused = true)]
async fn a_recycled_container_ends_after_its_invocation_and_an_idle_one_at_once() {
    let house = House::new(slow);
    let (body, _) = meanwhile(&house, |container| {
        let recycled = house.dispatch.recycle_container(container, "uid 7").unwrap();
        assert!(!recycled.ended && recycled.state == SeenState::Busy);
        assert_eq!(house.dispatch.snapshot().environments[0].leaving, Some(Retire::Recycled));
    })
    .await;
    assert_eq!((body.as_str(), house.dispatch.snapshot().environments.len()), ("1", 0));
    assert_eq!(house.tail().await.0, "2");
    let idle = house.dispatch.snapshot().environments[0].container.clone().unwrap();
    assert!(house.dispatch.recycle_container(&idle, "uid 7").unwrap().ended);
    assert_eq!(house.tail().await.0, "3");
}

#[tokio::test(start_paused = true)]
async fn a_drained_function_goes_on_in_new_environments() {
    let house = House::new(slow);
    assert_eq!(house.dispatch.drain_function(&FunctionName::parse("nobody").unwrap(), "uid 7"), None);
    let (body, _) = meanwhile(&house, |_| {
        let drained = house.dispatch.drain_function(&name(), "uid 7").unwrap();
        assert_eq!((drained.ended, drained.leaving), (0, 1));
    })
    .await;
    assert_eq!((body.as_str(), house.dispatch.snapshot().environments.len()), ("1", 0));
    assert_eq!(house.tail().await.0, "2");
    assert_eq!(house.dispatch.drain_function(&name(), "uid 7").unwrap().ended, 1);
}

/// On a host with few places for starts.
#[tokio::test(start_paused = true)]
async fn a_function_whose_init_hangs_does_not_keep_others_from_starting() {
    let config = Config { memory_budget_mib: 2048, parallel_starts: 2, ..Config::default() };
    let house = House::with(config, |inside: Inside| async move {
        if inside.number <= 2 { std::future::pending().await } else { echo(inside).await }
    });
    let other =
        Function { name: FunctionName::parse("g").unwrap(), ..Function::clone(&house.registry.0.lock().unwrap()[&name()]) };
    house.registry.0.lock().unwrap().insert(other.name.clone(), Arc::new(other.clone()));
    let recycling = tokio::spawn(house.dispatch.clone().recycle());
    let began = Instant::now();
    let (_, _, (answer, took)) = tokio::join!(house.invoke(LogType::None), house.invoke(LogType::None), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let answer = house.dispatch.invoke(invocation(&other.name)).await;
        (answer, began.elapsed())
    });
    assert!(answer.unwrap().outcome.cause().is_none());
    assert!(took < Duration::from_secs(4), "{took:?}");
    recycling.abort();
}

fn invocation(function: &FunctionName) -> Invocation {
    Invocation {
        request: RequestId::new(),
        function: function.clone(),
        payload: Bytes::from_static(b"{}"),
        client_context: None,
        invoked_arn: "arn".into(),
        trace: String::new(),
        log_type: LogType::None,
    }
}
