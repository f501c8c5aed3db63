//! What callers, log and books get, cause by cause: real rooms, a fake launcher, a paused clock.

mod again;
mod causes;
mod inside;
mod life;
mod told;

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use bytes::Bytes;

use super::*;
use crate::code::Digest;
use crate::function::{Memory, Reuse, Stamp, Timeout, TmpSize};
use crate::invocation::{RequestId, Throttle};
use crate::meter::MeterError;
use crate::runtime::RuntimeName;
use crate::server::environment::fake::{FakeLauncher, Inside, Word};
use crate::server::events::tests::Rules;
use crate::server::logs::tests::Kept;
use crate::server::pool::SeenState;

const MIB: u64 = 1 << 20;

#[derive(Default)]
struct Registry(Mutex<HashMap<FunctionName, Arc<Function>>>, Mutex<HashMap<FunctionName, u32>>);

impl Functions for Registry {
    fn function(&self, name: &FunctionName) -> Option<Arc<Function>> {
        self.0.lock().unwrap().get(name).cloned()
    }
    fn reserved(&self, name: &FunctionName) -> Option<u32> {
        self.1.lock().unwrap().get(name).copied()
    }
    fn reserves(&self) -> Vec<(FunctionName, u32)> {
        self.1.lock().unwrap().clone().into_iter().collect()
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
    kept: Arc<Kept>,
    rules: Arc<Rules>,
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
        let kept = Arc::<Kept>::default();
        let rules = Arc::<Rules>::default();
        let events = Events::new(vec![rules.clone()]);
        let dispatch = Dispatch::new(&config, registry.clone(), books.clone(), launcher.clone(), kept.clone(), events);
        let house = Self { dispatch, registry, books, launcher, kept, rules, _runtimes: runtimes };
        house.store(1);
        house
    }

    fn store(&self, stamp: u64) {
        self.store_with(stamp, Reuse::Always);
    }

    fn store_with(&self, stamp: u64, reuse: Reuse) {
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
            reuse,
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
        self.kept.text()
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

/// Whatever a test did: what has begun and not ended, by its events, is what there still is.
impl Drop for House {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let told = self.rules.now();
        let there = self.dispatch.snapshot().environments.into_iter().filter_map(|seen| seen.container);
        assert_eq!(told.ready, there.map(Into::into).collect(), "{:#?}", told.seen);
        let running = *self.dispatch.0.running.borrow();
        assert!(told.running.len() <= running, "{:?} of {running} are said to run: {:#?}", told.running, told.seen);
        let rows = self.books.rows.lock().unwrap().len();
        let ended = told.seen.iter().filter(|event| event.what.name() == "ended").count();
        assert!(rows == ended || self.books.full.load(Ordering::SeqCst), "{rows} rows, {ended} ended: {:#?}", told.seen);
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
