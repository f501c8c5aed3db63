//! What happens to functions and to Kiln itself while they are called: updates, deletes, drains, kills. A thread of its own, which
//! blocks; every change is insisted on until it is answered, since a server may be killed under it.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::heard::Counts;
use crate::host::{self, Api, Instance};
use crate::record::{Change, Kill, Loss, State, Victim};
use crate::traffic::Scene;

/// How many packages there are; functions share them.
const PACKAGES: u64 = 8;
/// Between two acts, on average.
const PAUSE: Duration = Duration::from_millis(160);

/// Everything that can be changed, by whoever changes it.
pub struct Hands<'a> {
    pub scene: Scene,
    pub instance: &'a Mutex<Instance>,
    api: Api,
    control: Api,
    /// In base64.
    packages: Vec<String>,
    /// What each function is now.
    states: Vec<State>,
}

/// What was done, by name.
pub type Done = std::collections::BTreeMap<&'static str, u64>;

impl<'a> Hands<'a> {
    pub fn new(scene: Scene, instance: &'a Mutex<Instance>) -> Self {
        let (api, control) = {
            let instance = lock(instance);
            (instance.api(), instance.control())
        };
        let probe = host::code::probe_program();
        let package = |number: u64| {
            let number = number.to_string();
            let files = [("bootstrap", 0o755, &probe[..]), ("version", 0o644, number.as_bytes())];
            host::code::base64(&host::code::zip(&files))
        };
        let packages = (0..PACKAGES).map(package).collect();
        let states = scene.record().functions.iter().map(|_| State { code: 0, round: 0 }).collect();
        Self { scene, instance, api, control, packages, states }
    }

    /// Makes all functions.
    pub fn create_all(&mut self, told: impl Fn(usize)) {
        for function in 0..self.states.len() {
            self.create(function, State { code: function as u64 % PACKAGES, round: 0 });
            told(function + 1);
        }
    }

    fn name(&self, function: usize) -> String {
        self.scene.record().functions[function].name.clone()
    }

    fn create(&mut self, function: usize, to: State) {
        let kind = self.scene.record().functions[function].kind();
        let name = self.name(function);
        let mut body = (kind.settings)();
        body["FunctionName"] = json!(name);
        body["Runtime"] = json!("provided.al2023");
        body["Handler"] = json!("x");
        body["Role"] = json!("arn:aws:iam::000000000000:role/load");
        body["Environment"] = variables(kind.init, to.round);
        body["Code"] = json!({ "ZipFile": self.packages[to.code as usize] });
        if kind.once {
            body["Tags"] = json!({ "kiln:reuse": "never" });
        }
        self.change(function, Some(to), "POST", "/2015-03-31/functions", &body, &[201], &[409]);
        if let Some(reserve) = kind.reserve {
            let path = format!("/2017-10-31/functions/{name}/concurrency");
            self.insist(&self.api, "PUT", &path, &json!({ "ReservedConcurrentExecutions": reserve }), &[200], &[]);
        }
    }

    #[allow(clippy::too_many_arguments, reason = "an HTTP request and what it is for")]
    fn change(
        &mut self,
        function: usize,
        to: Option<State>,
        method: &str,
        path: &str,
        body: &Value,
        good: &[u16],
        known: &[u16],
    ) {
        let begun = self.scene.record().now();
        self.insist(&self.api, method, path, body, good, known);
        let mut record = self.scene.record();
        let ended = record.now();
        record.changes.push(Change { function, begun, ended, to });
        if let Some(to) = to {
            self.states[function] = to;
        }
    }

    /// Asks until there is an answer. `known`: statuses that mean that an earlier try, which was cut, had been carried out.
    fn insist(&self, api: &Api, method: &str, path: &str, body: &Value, good: &[u16], known: &[u16]) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut cut = false;
        loop {
            match api.try_request(method, path, &[], body.as_bytes()) {
                Ok(answer) if good.contains(&answer.status) || cut && known.contains(&answer.status) => {
                    return serde_json::from_slice(&answer.body).unwrap_or_default();
                }
                Ok(answer) => {
                    let mut record = self.scene.record();
                    record.contradictions.push(format!("{method} {path}: {} {}", answer.status, answer.text()));
                    return Value::Null;
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    self.scene.record().contradictions.push(format!("{method} {path}: no answer"));
                    return Value::Null;
                }
                // A connection that was cut, which shows as an empty status line too.
                Err(_) => cut = true,
            }
            thread::sleep(Duration::from_millis(20)); // the pace of trying again
        }
    }

    /// Does mischief until told to stop. With `deaths`, Kiln's own processes die too, each kind at least once.
    pub fn play(&mut self, seed: u64, stop: &AtomicBool, deaths: &[(Instant, Victim)]) -> Done {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut done = Done::new();
        let mut deaths = deaths.iter().peekable();
        while !stop.load(Ordering::Relaxed) {
            if let Some((_, victim)) = deaths.next_if(|(at, _)| *at <= Instant::now()) {
                self.kill_own(*victim);
                let name = match victim {
                    Victim::Launcher => "launcher killed",
                    Victim::Server => "server killed",
                    Victim::Supervisor => "supervisor killed",
                };
                *done.entry(name).or_insert(0) += 1;
            }
            let function = rng.random_range(0..self.states.len());
            let what = self.act(function, &mut rng);
            *done.entry(what).or_insert(0) += 1;
            thread::sleep(PAUSE.mul_f64(rng.random_range(0.2..1.8)));
        }
        done
    }

    fn act(&mut self, function: usize, rng: &mut SmallRng) -> &'static str {
        let (name, now) = (self.name(function), self.states[function]);
        let kind = self.scene.record().functions[function].kind();
        let path = format!("/2015-03-31/functions/{name}");
        let next = State { code: (now.code + 1) % PACKAGES, ..now };
        match rng.random_range(0..100) {
            0..25 => {
                let body = json!({ "ZipFile": self.packages[next.code as usize] });
                self.change(function, Some(next), "PUT", &format!("{path}/code"), &body, &[200], &[]);
                "code updated"
            }
            25..45 => {
                let next = State { round: now.round + 1, ..now };
                let body = json!({ "Environment": variables(kind.init, next.round) });
                self.change(function, Some(next), "PUT", &format!("{path}/configuration"), &body, &[200], &[]);
                "configuration updated"
            }
            // Whose reserve is gone for a moment may run more often than it may: nothing could be said of it.
            45..55 if kind.reserve.is_none() => {
                self.change(function, None, "DELETE", &path, &Value::Null, &[204], &[404]);
                self.create(function, State { round: now.round + 1, ..next });
                "deleted and created"
            }
            55..75 => {
                self.insist(&self.control, "POST", &format!("/v1/functions/{name}/drain"), &Value::Null, &[200], &[]);
                "drained"
            }
            _ => self.end_container(rng),
        }
    }

    /// By the command, as a person would.
    fn end_container(&self, rng: &mut SmallRng) -> &'static str {
        let Some((id, name)) = self.some_container(rng) else { return "nothing to kill" };
        let Some(function) = self.scene.record().functions.iter().position(|function| function.name == name) else {
            return "nothing to kill";
        };
        let verb = if rng.random_range(0..4) == 0 { "recycle" } else { "kill" };
        let begun = self.scene.record().now();
        let (code, _, said) = host::kiln(&lock(self.instance), &["container", verb, &id]);
        let mut record = self.scene.record();
        let ended = record.now();
        if verb == "kill" {
            record.kills.push(Kill { function, begun, ended });
        }
        // It may have ended by itself.
        if ![0, 4].contains(&code) {
            record.contradictions.push(format!("kiln container {verb} {id} ended with {code}: {said}"));
        }
        if verb == "kill" { "container killed" } else { "container recycled" }
    }

    fn some_container(&self, rng: &mut SmallRng) -> Option<(String, String)> {
        let pool = self.control.try_request("GET", "/v1/pool", &[], b"").ok()?;
        let pool: Value = serde_json::from_slice(&pool.body).ok()?;
        let all = pool["environments"].as_array()?;
        let named: Vec<&Value> = all.iter().filter(|environment| environment["container"].is_string()).collect();
        let one = named.get(rng.random_range(0..named.len().max(1)))?;
        Some((one["container"].as_str()?.to_owned(), one["function"].as_str()?.to_owned()))
    }

    /// Waits until its successor works, and all launchers, by what kilnd says of itself.
    fn kill_own(&self, what: Victim) {
        let mut instance = lock(self.instance);
        let there = |instance: &Instance| instance.log().matches("launcher is there").count();
        let all_there = |instance: &Instance| {
            let counts = Counts::of(&instance.control());
            counts.sum("kiln_launchers") >= counts.sum("kiln_launchers_wanted")
        };
        // Else one that came late would be taken for the successor.
        host::eventually("all launchers are there", || all_there(&instance));
        let before = there(&instance);
        let begun = self.scene.record().now();
        match what {
            Victim::Launcher => {
                let Some(launcher) = instance.processes("launcher").first().copied() else { return };
                host::kill(launcher);
                host::eventually("another launcher is there", || there(&instance) > before && all_there(&instance));
            }
            Victim::Server => {
                let Some(server) = instance.processes("server").first().copied() else { return };
                host::kill(server);
                host::eventually("the server is another one", || {
                    instance.processes("server").first().is_some_and(|now| *now != server) && there(&instance) > before
                });
                instance.await_ready();
            }
            Victim::Supervisor => {
                instance.kill_supervisor();
                instance.launch();
                instance.await_ready();
            }
        }
        let mut record = self.scene.record();
        let ended = record.now();
        record.losses.push(Loss { what, begun, ended });
    }

    /// Ends all environments, and waits until nothing runs, waits or is charged. Tells what the pool says then.
    pub fn calm_down(&self) -> Value {
        let names: Vec<String> = self.scene.record().functions.iter().map(|function| function.name.clone()).collect();
        let look = || self.control.pool();
        let end = Instant::now() + host::PATIENCE * 10 * host::slower();
        loop {
            let pool = look();
            // Who hung up left an invocation behind, which goes on.
            if pool["in_flight"] == 0 {
                for name in &names {
                    self.insist(&self.control, "POST", &format!("/v1/functions/{name}/drain"), &Value::Null, &[200], &[]);
                }
            }
            let pool = look();
            let empty = pool["environments"].as_array().is_some_and(Vec::is_empty);
            if empty && pool["in_flight"] == 0 && pool["waiting"] == 0 || Instant::now() > end {
                return pool;
            }
            thread::sleep(Duration::from_millis(50)); // the pace of looking
        }
    }
}

fn variables(init: &str, round: u64) -> Value {
    json!({ "Variables": { "PROBE_INIT": init, "ROUND": round.to_string() } })
}

pub fn lock(instance: &Mutex<Instance>) -> std::sync::MutexGuard<'_, Instance> {
    instance.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Looks at the pool again and again, as somebody on duty would, for what cannot be.
pub fn look_on(scene: &Scene, control: &Api, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if let Ok(answer) = control.try_request("GET", "/v1/pool", &[], b"") {
            let found = crate::checks::pool_contradicts_itself(&serde_json::from_slice(&answer.body).unwrap_or_default());
            let mut record = scene.record();
            record.looks += 1;
            record.contradictions.extend(found);
        }
        thread::sleep(Duration::from_millis(200)); // the pace of looking
    }
}
