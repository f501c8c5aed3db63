//! Who waits for whom, what is reused, what a drain leaves.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_warm_environment_is_frozen_and_lent_again_and_reports_no_init() {
    let house = House::new(echo);
    let (_, cold) = house.tail().await;
    assert!(cold.contains("\tInit Duration: "), "{cold}");
    assert_eq!(house.count(SeenState::Idle), 1);
    let (_, warm) = house.tail().await;
    assert!(!warm.contains("Init Duration"), "{warm}");
    assert_eq!(house.launcher.built(), 1);
    let frozen = |what: &&String| what.ends_with("freeze") || what.ends_with("thaw");
    house.launcher.saw("1 freeze").await;
    let trace = house.launcher.trace();
    let trace: Vec<_> = trace.iter().filter(frozen).collect();
    assert_eq!(trace[..3], ["1 thaw", "1 freeze", "1 thaw"], "{trace:?}");
}

/// On the real clock: the books' times are those of the wall.
#[tokio::test]
async fn an_invocation_starts_in_the_books_when_its_init_is_over() {
    let house = House::new(|inside| async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        echo(inside).await
    });
    let asked = SystemTime::now();
    house.tail().await;
    let start = house.books.rows.lock().unwrap()[0].start;
    assert!(start.duration_since(asked).unwrap() >= Duration::from_millis(300));
}

#[tokio::test(start_paused = true)]
async fn the_cpu_is_full_until_the_init_is_over_and_burst_goes_first() {
    let house = House::new(echo);
    house.tail().await;
    house.launcher.saw("1 quota 7235 100000").await;
    house.launcher.saw("1 weight 7").await;
    let trace = house.launcher.trace();
    let cpu: Vec<_> = trace.iter().filter(|what| what.contains("burst") || what.contains("quota")).collect();
    assert_eq!(cpu, ["1 burst 7235", "1 quota 7235 100000"]);
}

#[tokio::test(start_paused = true)]
async fn who_wants_no_log_does_not_wait_for_next() {
    let house = House::new(|inside| {
        once(inside, async |inside, id| {
            inside.respond(&id, b"early").await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            inside.print("behind the caller's back\n");
            inside.next().await;
            Word::Nothing
        })
    });
    let began = Instant::now();
    let (_, answer) = house.invoke(LogType::None).await;
    assert_eq!(answer.unwrap().outcome, Outcome::Success("early".into()));
    assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
    assert_eq!(house.count(SeenState::Busy), 1);
    house.settled().await;
    assert!(house.log().contains("behind the caller's back\nEND"), "{}", house.log());
    assert!(house.books.rows.lock().unwrap()[0].duration >= Duration::from_secs(1));
    assert_eq!(house.count(SeenState::Idle), 1);
}

#[tokio::test(start_paused = true)]
async fn who_never_calls_next_again_ends_at_the_timeout_and_the_caller_has_its_response() {
    let house = House::new(|inside| {
        once(inside, async |inside, id| {
            inside.respond(&id, b"1").await;
            std::future::pending().await
        })
    });
    let (body, log) = house.tail().await;
    assert_eq!(body, "1");
    assert!(log.contains("Task timed out after 3.00 seconds"), "{log}");
    assert!(log.ends_with(" ms\tStatus: timeout\n"), "the caller has a success, and the environment its end: {log}");
    assert_eq!(house.books.rows.lock().unwrap()[0].error_type.as_deref(), Some("Sandbox.Timedout"));
    assert_eq!(house.dispatch.snapshot().environments, []);
}

#[tokio::test(start_paused = true)]
async fn who_answers_and_exits_is_not_used_again() {
    let house = House::new(|inside| {
        once(inside, async |inside, id| {
            inside.error(&id, "Runtime.Panic", b"{}").await;
            Word::Exited(2 << 8)
        })
    });
    let (body, log) = house.tail().await;
    assert_eq!(body, "{}");
    assert!(log.contains("Error: Runtime exited with error: exit status 2\n"), "{log}");
    assert!(log.ends_with("\tStatus: error\tError Type: Runtime.ExitError\n"), "the handler's error ends nothing: {log}");
    assert_eq!(house.books.rows.lock().unwrap()[0].error_type.as_deref(), Some("Runtime.ExitError"));
    assert_eq!(house.tail().await.0, "{}");
    assert_eq!(house.launcher.built(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_idle_environment_that_dies_is_replaced_within_the_request() {
    let house = House::new(echo);
    house.tail().await;
    house.launcher.die();
    assert_eq!(house.tail().await.0, "{}");
    assert_eq!(house.launcher.built(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_a_dying_environment_never_read_goes_to_another() {
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
    let (body, log) = house.tail().await;
    assert_eq!(body, "{}");
    assert!(log.ends_with(" ms\t\n") && log.contains("Init Duration"), "a cold start within the same request: {log}");
    assert_eq!(house.launcher.built(), 2);
    assert_eq!(house.log().matches("\nSTART RequestId: ").count(), 2, "{}", house.log());
    assert_eq!(house.books.rows.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_new_stamp_never_meets_an_old_environment() {
    let house = House::new(|mut inside: Inside| async move {
        loop {
            let (id, _) = inside.next().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            inside.respond(&id, inside.number.to_string().as_bytes()).await;
        }
    });
    let (old, ()) = tokio::join!(house.tail(), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        house.store(2);
    });
    assert_eq!(old.0, "1", "what runs finishes with the old code");
    assert_eq!(house.count(SeenState::Idle), 0);
    assert_eq!(house.tail().await.0, "2");
    house.store(3);
    assert_eq!(house.count(SeenState::Idle), 0, "idle ones of old stamps go at once");
}

#[tokio::test(start_paused = true)]
async fn the_log_of_a_function_that_is_deleted_while_it_runs_is_whole_and_stays() {
    let house = House::new(|inside| {
        once(inside, async |inside, id| {
            tokio::time::sleep(Duration::from_millis(100)).await;
            inside.print("still here\n");
            inside.respond(&id, b"1").await;
            inside.next().await;
            Word::Nothing
        })
    });
    let ((body, log), ()) = tokio::join!(house.tail(), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        house.registry.0.lock().unwrap().remove(&name());
        house.dispatch.function_changed(&name());
    });
    assert!(body == "1" && log.contains("still here\nEND"), "what runs finishes: {log}");
    house.settled().await;
    assert!(house.log().contains("still here\nEND"), "{}", house.log());
}

#[tokio::test(start_paused = true)]
async fn an_environment_that_is_idle_too_long_is_recycled() {
    let house = House::new(echo);
    let recycling = tokio::spawn(house.dispatch.clone().recycle());
    house.tail().await;
    tokio::time::sleep(Duration::from_secs(899)).await;
    assert_eq!(house.count(SeenState::Idle), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(house.count(SeenState::Idle), 0);
    house.launcher.saw("1 clear").await;
    recycling.abort();
}

#[tokio::test(start_paused = true)]
async fn full_books_do_not_cost_the_caller_its_answer() {
    let house = House::new(echo);
    house.books.full.store(true, Ordering::SeqCst);
    let (body, log) = house.tail().await;
    assert_eq!(body, "{}");
    assert!(log.contains("REPORT"));
    assert_eq!(house.dispatch.lost_rows(), 1);
}

#[tokio::test(start_paused = true)]
async fn requests_at_once_get_an_environment_each_and_late_ones_hear_what_was_missing() {
    let config = Config { memory_budget_mib: 256, ..Config::default() };
    let house = House::with(config, |inside| once(inside, async |_, _| std::future::pending().await));
    let (a, b, c) = tokio::join!(house.invoke(LogType::None), house.invoke(LogType::None), async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        house.dispatch.invoke(Invocation { function: FunctionName::parse("g").unwrap(), ..some_invocation() }).await
    });
    assert!(a.1.is_ok() && b.1.is_ok());
    assert_eq!(c.unwrap_err(), Refusal::UnknownFunction(FunctionName::parse("g").unwrap()));
    assert_eq!(house.launcher.built(), 2);
}

fn some_invocation() -> Invocation {
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
async fn a_request_that_finds_no_memory_is_throttled_after_its_wait() {
    let config = Config { memory_budget_mib: 128, capacity_wait_s: 1, ..Config::default() };
    let house = House::with(config, |inside| once(inside, async |_, _| std::future::pending().await));
    let (_, (_, late)) = tokio::join!(house.invoke(LogType::None), async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        house.invoke(LogType::None).await
    });
    assert_eq!(late.unwrap_err(), Refusal::Throttled(Throttle::Memory));
}

#[tokio::test(start_paused = true)]
async fn a_reload_counts_for_who_comes_next() {
    let before = Config { memory_budget_mib: 128, capacity_wait_s: 60, ..Config::default() };
    let house = House::with(before.clone(), |inside| once(inside, async |_, _| std::future::pending().await));
    let ((), (_, late)) = tokio::join!(
        async {
            let _ = tokio::time::timeout(Duration::from_secs(2), house.invoke(LogType::None)).await;
        },
        async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            house.dispatch.0.in_force.set(Config { capacity_wait_s: 1, ..before.clone() }, vec![]);
            house.dispatch.reload();
            tokio::time::timeout(Duration::from_millis(1500), house.invoke(LogType::None))
                .await
                .expect("it waits for a second only")
        }
    );
    assert_eq!(late.unwrap_err(), Refusal::Throttled(Throttle::Memory));
    house.dispatch.0.in_force.set(Config { memory_budget_mib: 640, concurrency: 7, parallel_starts: 3, ..before }, vec![]);
    house.dispatch.reload();
    let seen = house.dispatch.snapshot();
    assert_eq!((seen.budget_mib, seen.concurrency, seen.parallel_starts), (640, 7, 3));
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_who_runs_and_refuses_who_comes() {
    let house = House::new(|inside| {
        once(inside, async |inside, id| {
            tokio::time::sleep(Duration::from_secs(2)).await;
            inside.respond(&id, b"done").await;
            inside.next().await;
            Word::Nothing
        })
    });
    let ((body, _), (), (_, late)) = tokio::join!(
        house.tail(),
        async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            house.dispatch.drain().await;
        },
        async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            house.invoke(LogType::None).await
        }
    );
    assert_eq!(body, "done");
    assert_eq!(late.unwrap_err(), Refusal::Stopping);
    assert_eq!(house.dispatch.snapshot().environments, []);
}

/// One invocation, and after a tenth of a second a drain that waits a second.
async fn cut(house: &House) -> (String, Result<Answer, Refusal>) {
    let (answer, ()) = tokio::join!(house.invoke(LogType::Tail), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let limit = Duration::from_secs(1);
        assert!(tokio::time::timeout(limit, house.dispatch.drain()).await.is_err());
        house.dispatch.cut(limit);
        house.dispatch.drain().await;
    });
    assert_eq!(house.dispatch.snapshot().environments, []);
    answer
}

#[tokio::test(start_paused = true)]
async fn what_a_drain_cuts_is_named_to_its_caller_in_its_log_and_in_the_books() {
    let house = House::new(|inside| {
        once(inside, async |inside, _| {
            inside.print("working\n");
            std::future::pending().await
        })
    });
    let (id, answer) = cut(&house).await;
    let answer = answer.unwrap();
    let words = "Invocation was cut: Kiln was stopped, and waited 1.00 seconds for it";
    let body = format!(r#"{{"errorType":"Sandbox.Stopped","errorMessage":"RequestId: {id} Error: {words}"}}"#);
    assert_eq!(answer.outcome.body(), &body);
    let log = String::from_utf8(answer.log_tail).unwrap();
    assert!(log.contains(&format!("working\nRequestId: {id} Error: {words}\nSandbox.Stopped\nEND RequestId: {id}\n")), "{log}");
    assert!(log.ends_with("Status: error\tError Type: Sandbox.Stopped\n"), "{log}");
    let rows = house.books.rows.lock().unwrap();
    assert_eq!(rows.iter().map(|row| row.error_type.as_deref()).collect::<Vec<_>>(), [Some("Sandbox.Stopped")]);
}

#[tokio::test(start_paused = true)]
async fn whom_a_drain_cuts_before_a_function_has_seen_them_may_try_again() {
    let house = House::new(|_| std::future::pending());
    let (_, answer) = cut(&house).await;
    assert_eq!(answer.unwrap_err(), Refusal::Stopping);
    assert_eq!(*house.books.rows.lock().unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_does_not_end_its_invocation() {
    let house = House::new(|inside| {
        once(inside, async |inside, id| {
            tokio::time::sleep(Duration::from_secs(1)).await;
            inside.respond(&id, b"1").await;
            inside.next().await;
            Word::Nothing
        })
    });
    assert!(tokio::time::timeout(Duration::from_millis(100), house.invoke(LogType::None)).await.is_err());
    house.settled().await;
    assert_eq!(house.books.rows.lock().unwrap().len(), 1);
    assert_eq!(house.count(SeenState::Idle), 1);
}
