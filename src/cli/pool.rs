//! `kiln pool`: who is warm, who works, and what bounds them.

use std::time::Duration;

use hyper::Method;
use serde::Deserialize;

use super::client::{Client, Socket};
use super::failure::Failure;
use super::output;

/// What the operators' door says, as far as the table shows it.
#[derive(Deserialize)]
struct Pool {
    budget_mib: u64,
    charged_mib: u64,
    in_flight: u64,
    concurrency: u64,
    starting: u64,
    waiting: u64,
    reserves: Vec<Reserve>,
    environments: Vec<Environment>,
}

#[derive(Deserialize)]
struct Reserve {
    function: String,
    reserved: u64,
    in_flight: u64,
}

#[derive(Deserialize)]
struct Environment {
    function: String,
    version: String,
    state: String,
    age_s: f64,
    idle_s: Option<f64>,
    memory_mib: u64,
    used_mib: u64,
    peak_mib: u64,
    invocations: u64,
    container: Option<String>,
}

const HEADINGS: &[&str] = &["FUNCTION", "VERSION", "STATE", "AGE", "IDLE", "MEMORY", "PEAK", "INVOCATIONS", "CONTAINER"];

pub async fn execute(client: &Client, as_json: bool) -> Result<(), Failure> {
    let reply = client.request(Socket::Control, Method::GET, "/v1/pool", &[], "").await?;
    if as_json {
        return output::print_json(&reply.json()?);
    }
    let pool: Pool = serde_json::from_slice(&reply.body).map_err(|error| {
        Failure::Failed(format!("kilnd's answer is not understood ({error}): are kiln and kilnd of one version?"))
    })?;
    output::print_line(&shown(&pool))
}

fn shown(pool: &Pool) -> String {
    let mut summary = format!(
        "{} of {} MB in use, {} of {} invocations running, {} starting, {} waiting",
        pool.charged_mib, pool.budget_mib, pool.in_flight, pool.concurrency, pool.starting, pool.waiting
    );
    for Reserve { function, reserved, in_flight } in &pool.reserves {
        summary += &format!("\n{function}: {in_flight} of its {reserved} reserved");
    }
    if pool.environments.is_empty() {
        return format!("no execution environments; {summary}");
    }
    let rows = pool.environments.iter().map(|environment| {
        let time = |secs: f64| output::duration(Duration::try_from_secs_f64(secs).unwrap_or_default());
        vec![
            environment.function.clone(),
            environment.version.clone(),
            environment.state.clone(),
            time(environment.age_s),
            environment.idle_s.map_or_else(|| "-".into(), time),
            format!("{}/{} MB", environment.used_mib, environment.memory_mib),
            format!("{} MB", environment.peak_mib),
            environment.invocations.to_string(),
            environment.container.clone().unwrap_or_else(|| "-".into()),
        ]
    });
    format!("{}\n{summary}", output::table(HEADINGS, rows.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_a_table_and_its_bounds() {
        let environment = Environment {
            function: "hello".into(),
            version: "$LATEST".into(),
            state: "idle".into(),
            age_s: 75.2,
            idle_s: Some(3.0),
            memory_mib: 128,
            used_mib: 36,
            peak_mib: 40,
            invocations: 2,
            container: Some("3-17".into()),
        };
        let mut pool = Pool {
            budget_mib: 3200,
            charged_mib: 36,
            in_flight: 0,
            concurrency: 1000,
            starting: 0,
            waiting: 0,
            reserves: vec![Reserve { function: "hello".into(), reserved: 5, in_flight: 1 }],
            environments: vec![environment],
        };
        let text = shown(&pool);
        let cells: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(cells, ["hello", "$LATEST", "idle", "1m15s", "3s", "36/128", "MB", "40", "MB", "2", "3-17"]);
        assert!(text.ends_with("\nhello: 1 of its 5 reserved"), "{text}");
        pool.environments.clear();
        assert!(shown(&pool).starts_with("no execution environments; 36 of 3200 MB in use"));
    }
}
