//! Cause × { payload bytes, log lines, REPORT status }.

use super::*;

#[track_caller]
fn assert_report(log: &str, lines: &str, fields: &str) {
    let (before, report) = log.split_once("REPORT ").unwrap_or_else(|| panic!("no REPORT: {log}"));
    assert_eq!(before, format!("START RequestId: <id> Version: $LATEST\n{lines}END RequestId: <id>\n"));
    let (_, rest) = report.split_once("\tMax Memory Used: ").unwrap();
    let (_, rest) = rest.split_once(" MB\t").unwrap();
    let rest = rest.split_once(" ms\t").filter(|(init, _)| init.starts_with("Init Duration: ")).map_or(rest, |(_, rest)| rest);
    assert_eq!(rest, format!("{fields}\n"), "in {report:?}");
}

const EXITED: &str = "Runtime exited with error: ";

fn error(kind: &str, text: &str) -> String {
    format!(r#"{{"errorType":"{kind}","errorMessage":"RequestId: <id> Error: {text}"}}"#)
}

#[tokio::test(start_paused = true)]
async fn a_success_is_the_responses_bytes_and_a_plain_report() {
    let house = House::new(echo);
    let (id, answer) = house.invoke_with(b" {\"a\" : 1}\n", LogType::Tail).await;
    let answer = answer.unwrap();
    assert_eq!(answer.outcome, Outcome::Success(Bytes::from_static(b" {\"a\" : 1}\n")));
    assert_report(&String::from_utf8(answer.log_tail).unwrap().replace(&id, "<id>"), "working\n", "");
    let rows = house.books.rows.lock().unwrap();
    assert_eq!((rows[0].request.to_string(), rows[0].max_memory_used_mib, &rows[0].error_type), (id, 30, &None));
    assert_eq!(rows[0].billed.as_millis() % 100, 0);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_is_named_and_kills() {
    let house = House::new(|inside| once(inside, async |_, _| std::future::pending().await));
    let (body, log) = house.tail().await;
    assert_eq!(body, error("Sandbox.Timedout", "Task timed out after 3.00 seconds"));
    let line = log.lines().nth(1).unwrap().to_owned();
    let (time, rest) = line.split_once(' ').unwrap();
    assert!(time.ends_with('Z') && time.len() == "2018-12-01T12:00:00.000Z".len(), "{time}");
    assert_eq!(rest, "<id> Task timed out after 3.00 seconds");
    assert_report(&log, &format!("{line}\n\n"), "Status: timeout");
    assert!(log.contains("Duration: 3000.00 ms\tBilled Duration: 3000 ms\t"), "{log}");
    house.launcher.saw("1 kill").await;
    house.launcher.saw("1 clear").await;
    assert_eq!(house.dispatch.snapshot().environments, []);
}

#[tokio::test(start_paused = true)]
async fn an_end_of_the_runtime_is_named_as_go_names_it() {
    for (status, text) in [
        (0, "Runtime exited without providing a reason".to_owned()),
        (7 << 8, format!("{EXITED}exit status 7")),
        (11, format!("{EXITED}signal: segmentation fault")),
        (9, format!("{EXITED}signal: killed")),
    ] {
        let house = House::new(move |inside| {
            once(inside, async move |inside, _| {
                inside.print("last words");
                Word::Exited(status)
            })
        });
        let (body, log) = house.tail().await;
        assert_eq!(body, error("Runtime.ExitError", &text));
        let lines = format!("last words\nRequestId: <id> Error: {text}\nRuntime.ExitError\n");
        assert_report(&log, &lines, "Status: error\tError Type: Runtime.ExitError");
        assert_eq!(house.dispatch.snapshot().environments, [], "never reused");
    }
}

#[tokio::test(start_paused = true)]
async fn an_init_killed_from_outside_is_signal_killed() {
    let house = House::new(|inside| once(inside, async |_, _| Word::Nothing));
    let (body, log) = house.tail().await;
    assert_eq!(body, error("Runtime.ExitError", &format!("{EXITED}signal: killed")));
    assert!(log.ends_with("Status: error\tError Type: Runtime.ExitError\n"), "{log}");
}

#[tokio::test(start_paused = true)]
async fn the_inner_wall_is_out_of_memory() {
    let house = House::new(|inside| {
        once(inside, async |inside, _| {
            inside.uses(129 * MIB, 0, 0);
            std::future::pending().await
        })
    });
    let (body, log) = house.tail().await;
    assert_eq!(body, error("Runtime.ExitError", &format!("{EXITED}signal: killed")));
    let lines = format!("RequestId: <id> Error: {EXITED}signal: killed\nRuntime.ExitError\n");
    assert_report(&log, &lines, "Status: error\tError Type: Runtime.OutOfMemory");
    assert!(log.contains("Max Memory Used: 128 MB"), "{log}");
}

#[tokio::test(start_paused = true)]
async fn page_cache_is_not_the_functions_memory() {
    let house = House::new(|mut inside: Inside| async move {
        let (id, _) = inside.next().await;
        inside.uses(400 * MIB, 300 * MIB, 0);
        tokio::time::sleep(Duration::from_millis(50)).await;
        inside.respond(&id, b"1").await;
        inside.next().await;
        Word::Nothing
    });
    let (body, log) = house.tail().await;
    assert_eq!(body, "1");
    assert!(log.contains("Max Memory Used: 100 MB"), "{log}");
}

#[tokio::test(start_paused = true)]
async fn the_outer_wall_is_out_of_memory() {
    let house = House::new(|inside| {
        once(inside, async |inside, _| {
            inside.kernel_kills(1);
            Word::Exited(9)
        })
    });
    let (body, log) = house.tail().await;
    assert_eq!(body, error("Runtime.ExitError", &format!("{EXITED}signal: killed")));
    assert!(log.ends_with("Status: error\tError Type: Runtime.OutOfMemory\n"), "{log}");
    assert!(log.contains("Memory Size: 128 MB\tMax Memory Used: 128 MB\t"), "{log}");
}

#[tokio::test(start_paused = true)]
async fn a_reported_error_is_the_callers_verbatim_and_leaves_the_environment_warm() {
    let house = House::new(|mut inside: Inside| async move {
        loop {
            let (id, _) = inside.next().await;
            inside.error(&id, "<script>", b"{\"errorMessage\" : \"no\"}").await;
        }
    });
    let (body, log) = house.tail().await;
    assert_eq!(body, "{\"errorMessage\" : \"no\"}");
    assert_report(&log, "", "");
    assert_eq!(house.books.rows.lock().unwrap()[0].error_type.as_deref(), Some("Runtime.Unknown"));
    house.tail().await;
    assert_eq!(house.launcher.built(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_response_too_large_is_named_and_leaves_the_environment_warm() {
    let house = House::new(|mut inside: Inside| async move {
        let (id, _) = inside.next().await;
        assert_eq!(inside.respond(&id, &vec![b'1'; 6_291_557]).await, 413);
        let (id, _) = inside.next().await;
        assert_eq!(inside.respond(&id, &vec![b'1'; 6_291_556]).await, 202);
        inside.next().await;
        Word::Nothing
    });
    let (body, log) = house.tail().await;
    assert_eq!(
        body,
        r#"{"errorType":"Function.ResponseSizeTooLarge","errorMessage":"Response payload size exceeded maximum allowed payload size (6291556 bytes)."}"#
    );
    assert!(log.ends_with("Status: error\tError Type: Function.ResponseSizeTooLarge\n"), "{log}");
    assert_eq!(house.tail().await.0.len(), 6_291_556);
    assert_eq!(house.launcher.built(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_init_error_is_tried_again_in_a_new_container_and_is_the_callers_verbatim() {
    let house = House::new(|mut inside: Inside| async move {
        inside.print("Traceback\n");
        inside.init_error("Runtime.ImportModuleError", format!("{{\"try\":{}}}", inside.number).as_bytes()).await;
        Word::Exited(1 << 8)
    });
    let (body, log) = house.tail().await;
    assert_eq!(body, "{\"try\":2}");
    assert_report(&log, "Traceback\n", "Status: error\tError Type: Runtime.ImportModuleError");
    let all = house.log();
    let reports: Vec<_> = all.lines().filter(|line| line.starts_with("INIT_REPORT")).collect();
    assert!(reports[0].ends_with(" ms\tPhase: init\tStatus: error\tError Type: Runtime.ImportModuleError"), "{all}");
    assert!(reports[1].ends_with(" ms\tPhase: invoke\tStatus: error\tError Type: Runtime.ImportModuleError"), "{all}");
    assert_eq!((reports.len(), house.launcher.built()), (2, 2));
    let request = Some(house.books.rows.lock().unwrap()[0].request);
    assert_eq!(house.kept.whose("Traceback"), [None, request], "the second try is the invocation's own");
}

#[tokio::test(start_paused = true)]
async fn the_last_words_of_a_failed_init_are_in_the_log() {
    let house = House::new(|mut inside: Inside| async move {
        inside.print("cannot find module");
        Word::Exited(1 << 8)
    });
    house.tail().await;
    assert_eq!(house.log().matches("cannot find module\nINIT_REPORT ").count(), 2, "{}", house.log());
}

#[tokio::test(start_paused = true)]
async fn an_init_that_hangs_has_ten_seconds_and_then_the_functions_timeout() {
    let house = House::new(|_inside| std::future::pending());
    let began = Instant::now();
    let (body, log) = house.tail().await;
    assert_eq!(began.elapsed().as_secs(), 13);
    assert_eq!(body, error("Sandbox.Timedout", "Task timed out after 3.00 seconds"));
    assert!(log.ends_with("Status: timeout\n"), "{log}");
    assert!(house.log().contains("INIT_REPORT Init Duration: 10000"), "{}", house.log());
    assert!(house.log().contains("\tPhase: init\tStatus: timeout\n"), "{}", house.log());
    assert_eq!(house.dispatch.snapshot().environments, []);
}

#[tokio::test(start_paused = true)]
async fn the_ten_seconds_of_an_init_begin_when_its_container_is_there() {
    let house = House::new(|inside| async {
        tokio::time::sleep(Duration::from_secs(9)).await;
        echo(inside).await
    });
    house.launcher.take(Duration::from_secs(4));
    let (body, log) = house.tail().await;
    assert!(body == "{}" && log.contains("Init Duration: 9"), "{log}");
    assert_eq!(house.launcher.built(), 1, "no second try");
}

#[tokio::test(start_paused = true)]
async fn a_second_init_that_succeeds_is_the_invocations_time() {
    let house = House::new(|mut inside: Inside| async move {
        if inside.number == 1 {
            return Word::Exited(1 << 8);
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (id, _) = inside.next().await;
        inside.respond(&id, b"1").await;
        inside.next().await;
        Word::Nothing
    });
    let (body, log) = house.tail().await;
    assert_eq!(body, "1");
    assert!(!log.contains("Init Duration"), "{log}");
    assert!(house.books.rows.lock().unwrap()[0].duration >= Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_started_is_an_invalid_entrypoint() {
    for (errno, text) in [
        (None, "Couldn't find valid bootstrap(s): [/var/task/bootstrap /opt/bootstrap]"),
        (Some(libc::EACCES), "fork/exec /var/task/bootstrap: permission denied"),
        (Some(libc::ENOEXEC), "fork/exec /var/task/bootstrap: exec format error"),
    ] {
        let house = House::new(move |_| async move { errno.map_or(Word::NoBootstrap, Word::ExecFailed) });
        let (body, log) = house.tail().await;
        assert_eq!(body, error("Runtime.InvalidEntrypoint", text));
        let lines = format!("RequestId: <id> Error: {text}\nRuntime.InvalidEntrypoint\n");
        assert_report(&log, &lines, "Status: error\tError Type: Runtime.InvalidEntrypoint");
    }
}

#[tokio::test(start_paused = true)]
async fn a_launch_that_fails_reaches_the_log_by_its_step() {
    let house = House::new(echo);
    house.launcher.fail(2);
    let (body, log) = house.tail().await;
    assert!(body.contains("Sandbox.Failure"), "{body}");
    assert!(log.contains("step \"mount\": mount overlay: No such device"), "{log}");
    house.launcher.fail(1);
    assert_eq!(house.tail().await.0, "{}", "one failure is overcome by the second try");
}

#[tokio::test(start_paused = true)]
async fn a_dead_launcher_is_our_fault() {
    let house = House::new(|inside| {
        once(inside, async |_, _| {
            tokio::time::sleep(Duration::from_millis(100)).await;
            std::future::pending().await
        })
    });
    let (answer, ()) = tokio::join!(house.tail(), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        house.launcher.die();
    });
    assert!(answer.0.contains("Sandbox.Failure"), "{}", answer.0);
    assert!(answer.1.ends_with("Status: error\tError Type: Sandbox.Failure\n"), "{}", answer.1);
}
