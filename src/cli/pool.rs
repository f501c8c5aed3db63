//! `kiln pool`: who is warm, who works, and what bounds them; with `--watch` ([`watch`]) again and again.
//!
//! MEMORY is what the function uses at this moment (frozen ones are read, not woken) of what it may, /tmp not counted; CHARGED is its
//! part of what is in use of the budget: all that it may use while it works, what it uses when it is frozen; PEAK is the most that
//! was seen, as REPORT's Max Memory Used tells it; CPU is the time that its processes have had so far.

mod watch;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use hyper::Method;
use serde::Deserialize;

use super::args::{Pool as Arguments, Sort};
use super::client::{Client, Reply, Socket};
use super::failure::Failure;
use super::output;

/// What the operators' door says, as far as tables and [`super::top`] show it.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Pool {
    pub budget_mib: u64,
    pub charged_mib: u64,
    pub in_flight: u64,
    pub concurrency: u64,
    pub starting: u64,
    pub parallel_starts: u64,
    pub waiting: u64,
    /// Functions whose last init failed.
    pub failing: u64,
    /// Since kilnd's start, by reason.
    pub refused: BTreeMap<String, u64>,
    pub reserves: Vec<Reserve>,
    pub environments: Vec<Environment>,
    /// What each function did since kilnd's start.
    pub functions: Option<Vec<Counts>>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Reserve {
    function: String,
    reserved: u64,
    in_flight: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Environment {
    pub function: String,
    pub version: String,
    pub state: String,
    pub age_s: f64,
    pub idle_s: Option<f64>,
    pub memory_mib: u64,
    pub charged_mib: u64,
    pub used_mib: u64,
    pub peak_mib: u64,
    /// Of all its time; none where nobody counts.
    pub cpu_ms: Option<u64>,
    pub invocations: u64,
    pub container: Option<String>,
    /// Why it ends when its invocation does.
    pub leaving: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Counts {
    pub function: String,
    pub invocations: u64,
    pub errors: u64,
    pub throttles: u64,
    pub cold_starts: u64,
    pub duration_ms: f64,
}

const HEADINGS: &[&str] =
    &["FUNCTION", "VERSION", "STATE", "AGE", "IDLE", "MEMORY", "CHARGED", "PEAK", "CPU", "INVOCATIONS", "CONTAINER"];

pub async fn execute(client: &Client, arguments: Arguments, as_json: bool) -> Result<(), Failure> {
    if let Some(seconds) = arguments.watch {
        return watch::execute(client, arguments.sort, seconds, as_json).await;
    }
    let reply = client.request(Socket::Control, Method::GET, "/v1/pool", &[], "").await?;
    if as_json {
        return output::print_json(&reply.json()?);
    }
    let mut pool = read(&reply)?;
    sort(&mut pool.environments, arguments.sort);
    output::print_line(&shown(&pool))
}

pub async fn look(client: &Client) -> Result<Pool, Failure> {
    read(&client.request(Socket::Control, Method::GET, "/v1/pool", &[], "").await?)
}

fn read(reply: &Reply) -> Result<Pool, Failure> {
    serde_json::from_slice(&reply.body).map_err(|error| {
        Failure::Failed(format!("kilnd's answer is not understood ({error}): are kiln and kilnd of one version?"))
    })
}

/// The largest, oldest and busiest first; among equals, and without a wish, by function, and the busy ones first.
pub fn sort(environments: &mut [Environment], by: Sort) {
    let state = |environment: &Environment| ["busy", "initialising", "held", "idle"].iter().position(|s| *s == environment.state);
    environments.sort_by(|a, b| {
        a.function.cmp(&b.function).then_with(|| state(a).cmp(&state(b))).then_with(|| b.age_s.total_cmp(&a.age_s))
    });
    // Times in milliseconds: what has a fraction has no order of its own.
    let millis = |secs: f64| (secs * 1e3) as u64;
    match by {
        Sort::Function => {}
        Sort::Memory => environments.sort_by_key(|environment| Reverse(environment.used_mib)),
        Sort::Peak => environments.sort_by_key(|environment| Reverse(environment.peak_mib)),
        Sort::Cpu => environments.sort_by_key(|environment| Reverse(environment.cpu_ms)),
        Sort::Age => environments.sort_by_key(|environment| Reverse(millis(environment.age_s))),
        Sort::Idle => environments.sort_by_key(|environment| Reverse(environment.idle_s.map(millis))),
        Sort::Invocations => environments.sort_by_key(|environment| Reverse(environment.invocations)),
    }
}

fn shown(pool: &Pool) -> String {
    let (table, below) = parts(pool);
    if table.is_empty() { below } else { format!("{table}\n{below}") }
}

/// A line for each environment, and what bounds them all.
fn parts(pool: &Pool) -> (String, String) {
    let count = |state: &str| pool.environments.iter().filter(|environment| environment.state == state).count();
    let mut summary = format!(
        "{} busy, {} initialising, {} idle; {} of {} MB charged; {} of {} invocations running, {} starting, {} waiting",
        count("busy"),
        count("initialising"),
        count("idle"),
        pool.charged_mib,
        pool.budget_mib,
        pool.in_flight,
        pool.concurrency,
        pool.starting,
        pool.waiting
    );
    match count("held") {
        0 => {}
        held => summary += &format!("\n{held} held by people who are inside"),
    }
    if !pool.refused.is_empty() {
        let refused: Vec<_> = pool.refused.iter().map(|(reason, count)| format!("{count} for {reason}")).collect();
        summary += &format!("\nrefused since kilnd's start: {} (kiln events --kind throttled)", refused.join(", "));
    }
    for Reserve { function, reserved, in_flight } in &pool.reserves {
        summary += &format!("\n{function}: {in_flight} of its {reserved} reserved");
    }
    match pool.environments.is_empty() {
        true => (String::new(), format!("no execution environments; {summary}")),
        false => (table(&pool.environments), summary),
    }
}

/// One line for each.
pub fn table(environments: &[Environment]) -> String {
    let rows = environments.iter().map(|environment| {
        let time = |secs: f64| output::duration(Duration::try_from_secs_f64(secs).unwrap_or_default());
        vec![
            environment.function.clone(),
            environment.version.clone(),
            // Still at work, and not to be used again.
            environment.leaving.as_ref().map_or_else(|| environment.state.clone(), |why| format!("{}, {why}", environment.state)),
            time(environment.age_s),
            environment.idle_s.map_or_else(|| "-".into(), time),
            format!("{}/{} MB", environment.used_mib, environment.memory_mib),
            format!("{} MB", environment.charged_mib),
            format!("{} MB", environment.peak_mib),
            environment.cpu_ms.map_or_else(|| "-".into(), |ms| format!("{:.1}s", ms as f64 / 1e3)),
            environment.invocations.to_string(),
            environment.container.clone().unwrap_or_else(|| "-".into()),
        ]
    });
    output::table(HEADINGS, rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(function: &str, state: &str, used_mib: u64) -> Environment {
        Environment {
            function: function.into(),
            version: "$LATEST".into(),
            state: state.into(),
            age_s: 75.2,
            idle_s: (state == "idle").then_some(3.0),
            memory_mib: 128,
            charged_mib: used_mib,
            used_mib,
            peak_mib: 40,
            cpu_ms: Some(1234),
            invocations: 2,
            container: Some("3-17".into()),
            leaving: None,
        }
    }

    #[test]
    fn environments_are_in_an_order_that_does_not_change_by_itself() {
        let mut all = vec![environment("b", "idle", 1), environment("b", "busy", 2), environment("a", "idle", 3)];
        let order = |all: &[Environment]| all.iter().map(|one| one.used_mib).collect::<Vec<_>>();
        sort(&mut all, Sort::Function);
        assert_eq!(order(&all), [3, 2, 1]);
        all.reverse();
        sort(&mut all, Sort::Function);
        assert_eq!(order(&all), [3, 2, 1]);
        all[2].used_mib = 9;
        sort(&mut all, Sort::Memory);
        assert_eq!(order(&all), [9, 3, 2]);
        sort(&mut all, Sort::Idle);
        assert_eq!(order(&all), [3, 9, 2], "who is not idle comes last");
    }

    #[test]
    fn a_pool_is_a_table_and_its_bounds() {
        let mut pool = Pool {
            budget_mib: 3200,
            charged_mib: 36,
            concurrency: 1000,
            reserves: vec![Reserve { function: "hello".into(), reserved: 5, in_flight: 1 }],
            environments: vec![environment("hello", "idle", 36)],
            ..Pool::default()
        };
        let text = shown(&pool);
        let cells: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(
            cells,
            ["hello", "$LATEST", "idle", "1m15s", "3s", "36/128", "MB", "36", "MB", "40", "MB", "1.2s", "2", "3-17"]
        );
        assert!(text.ends_with("\nhello: 1 of its 5 reserved"), "{text}");
        let summary =
            "\n0 busy, 0 initialising, 1 idle; 36 of 3200 MB charged; 0 of 1000 invocations running, 0 starting, 0 waiting\n";
        assert!(text.contains(summary) && !text.contains("refused"), "{text}");
        pool.refused = [("memory".into(), 4), ("queue".into(), 1)].into();
        let refused = "\nrefused since kilnd's start: 4 for memory, 1 for queue (kiln events --kind throttled)\n";
        assert!(shown(&pool).contains(refused), "{}", shown(&pool));
        pool.environments.clear();
        assert!(shown(&pool).starts_with("no execution environments; 0 busy"));
    }
}
