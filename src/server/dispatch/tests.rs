//! What callers, log and books get, cause by cause: real rooms, a fake launcher, a paused clock.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use bytes::Bytes;

use super::*;
use crate::code::Digest;
use crate::function::{Memory, Stamp, Timeout, TmpSize};
use crate::invocation::{RequestId, Throttle};
use crate::meter::MeterError;
use crate::runtime::RuntimeName;
use crate::server::environment::fake::{FakeLauncher, Inside, Word};
use crate::server::pool::SeenState;

const MIB: u64 = 1 << 20;

#[derive(Default)]
struct Registry(Mutex<HashMap<FunctionName, Arc<Function>>>);

impl Functions for Registry {
    fn function(&self, name: &FunctionName) -> Option<Arc<Function>> {
        self.0.lock().unwrap().get(name).cloned()
    }
}

#[derive(Default)]
struct Books {
    rows: Mutex<Vec<Row>>,
    full: AtomicBool,
}

impl Meter for Books {
    async fn record(&self, row: Row) -> Result<(), MeterError> {
        if self.full.load(Ordering::SeqCst) {
            return Err(MeterError { request: row.request, why: "disk full".into() });
        }
        self.rows.lock().unwrap().push(row);
        Ok(())
    }
}

struct House {
    dispatch: Dispatch<Registry, Books, FakeLauncher>,
    registry: Arc<Registry>,
    books: Arc<Books>,
    launcher: FakeLauncher,
    _runtimes: tempfile::TempDir,
}

impl House {
    fn new<F>(script: impl Fn(Inside) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Word> + Send + 'static,
    {
        Self::with(Config { memory_budget_mib: 2048, ..Config::default() }, script)
    }

    fn with<F>(config: Config, script: impl Fn(Inside) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Word> + Send + 'static,
    {
        let runtimes = tempfile::tempdir().unwrap();
        let recipe = format!(
            "name = 'provided.al2023'\ntree = '{}'\nstart = [['/var/task/bootstrap'], ['/opt/bootstrap']]\n",
            Digest::of(b"tree")
        );
        std::fs::write(runtimes.path().join("provided.al2023.toml"), recipe).unwrap();
        let config = Config { runtimes_dir: runtimes.path().to_owned(), ..config };
        let (registry, books, launcher) = (Arc::new(Registry::default()), Arc::new(Books::default()), FakeLauncher::new(script));
        let dispatch = Dispatch::new(&config, registry.clone(), books.clone(), launcher.clone());
        let house = Self { dispatch, registry, books, launcher, _runtimes: runtimes };
        house.store(1);
        house
    }

    fn store(&self, stamp: u64) {
        let function = Function {
            name: name(),
            runtime: RuntimeName::parse("provided.al2023").unwrap(),
            handler: "h".into(),
            memory: Memory::from_mib(128).unwrap(),
            timeout: Timeout::from_secs(3).unwrap(),
            tmp: TmpSize::DEFAULT,
            vars: BTreeMap::new(),
            code: Digest::of(b"code"),
            layers: vec![],
            stamp: Stamp(stamp),
        };
        self.registry.0.lock().unwrap().insert(name(), Arc::new(function));
        self.dispatch.function_changed(&name());
    }

    async fn invoke(&self, log_type: LogType) -> (String, Result<Answer, Refusal>) {
        self.invoke_with(b"{}", log_type).await
    }

    async fn invoke_with(&self, payload: &'static [u8], log_type: LogType) -> (String, Result<Answer, Refusal>) {
        let request = RequestId::new();
        let invocation = Invocation {
            request,
            function: name(),
            payload: Bytes::from_static(payload),
            client_context: None,
            invoked_arn: "arn:aws:lambda:us-east-1:000000000000:function:f".into(),
            trace: "Root=1-0-0;Parent=0;Sampled=0".into(),
            log_type,
        };
        (request.to_string(), self.dispatch.invoke(invocation).await)
    }

    /// What a Tail caller gets: body and log, with `<id>` for the request and without the numbers that vary.
    async fn tail(&self) -> (String, String) {
        let (id, answer) = self.invoke(LogType::Tail).await;
        let answer = answer.unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap().replace(&id, "<id>");
        (text(answer.outcome.body()), text(&answer.log_tail))
    }

    fn log(&self) -> String {
        String::from_utf8(self.dispatch.recent_log(&name())).unwrap()
    }

    fn count(&self, state: SeenState) -> usize {
        self.dispatch.snapshot().environments.iter().filter(|seen| seen.state == state).count()
    }

    /// Until the invocations behind answered callers are over.
    async fn settled(&self) {
        let mut running = self.dispatch.0.running.subscribe();
        running.wait_for(|running| *running == 0).await.unwrap();
    }
}

fn name() -> FunctionName {
    FunctionName::parse("f").unwrap()
}

/// Echoes for ever.
async fn echo(mut inside: Inside) -> Word {
    loop {
        let (id, payload) = inside.next().await;
        inside.print("working\n");
        inside.respond(&id, &payload).await;
    }
}

/// Gets one event, then does as told.
async fn once(mut inside: Inside, end: impl AsyncFnOnce(&mut Inside, String) -> Word) -> Word {
    let (id, _) = inside.next().await;
    end(&mut inside, id).await
}

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

#[tokio::test(start_paused = true)]
async fn the_cpu_is_full_until_the_init_is_over_and_burst_goes_first() {
    let house = House::new(echo);
    house.tail().await;
    house.launcher.saw("1 quota 7235 100000").await;
    let trace = house.launcher.trace();
    let cpu: Vec<_> = trace.iter().filter(|what| what.contains("burst") || what.contains("quota")).collect();
    assert_eq!(cpu, ["1 burst 7235", "1 quota 7235 100000"]);
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

/// Cause × { payload, log lines, REPORT status }.
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
    assert_report(&log, "", "Status: error\tError Type: Runtime.Unknown");
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
    assert_report(&log, "", "Status: error\tError Type: Runtime.ImportModuleError");
    let all = house.log();
    let reports: Vec<_> = all.lines().filter(|line| line.starts_with("INIT_REPORT")).collect();
    assert!(reports[0].ends_with(" ms\tPhase: init\tStatus: error\tError Type: Runtime.ImportModuleError"), "{all}");
    assert!(reports[1].ends_with(" ms\tPhase: invoke\tStatus: error\tError Type: Runtime.ImportModuleError"), "{all}");
    assert_eq!((reports.len(), house.launcher.built()), (2, 2));
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
    assert!(log.ends_with(" MB\tInit Duration: 0.00 ms\t\n") || log.ends_with(" ms\t\n"), "the first cause is a success: {log}");
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
    assert!(log.ends_with("Error Type: Runtime.Panic\n"), "{log}");
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
