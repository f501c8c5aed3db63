//! `kiln function drain`: ends all execution environments of a function, and waits for those that run.

use std::time::Duration;

use hyper::Method;
use serde_json::json;

use super::args::Drain;
use super::client::{Client, Socket};
use super::failure::Failure;
use super::{logs, output, pool};

/// Between two looks at those that still run.
const PAUSE: Duration = Duration::from_millis(250);

pub async fn execute(client: &Client, drain: Drain, as_json: bool) -> Result<(), Failure> {
    let function = logs::name(&drain.name);
    let reply =
        client.request(Socket::Control, Method::POST, &format!("/v1/functions/{function}/drain"), &[], "").await?.json()?;
    let number = |name: &str| reply[name].as_u64().unwrap_or(0);
    let (ended, leaving) = (number("ended"), number("leaving"));
    let mut left = leaving;
    if !drain.no_wait {
        let mut said = None;
        while left > 0 {
            if said.replace(left) != Some(left) && !as_json {
                output::say(&format!("waiting for {left} running of {function}"));
            }
            tokio::time::sleep(PAUSE).await;
            let environments = pool::look(client).await?.environments;
            let own = environments.iter().filter(|environment| environment.function == function);
            left = own.filter(|environment| environment.leaving.as_deref() == Some("drained")).count() as u64;
        }
    }
    let after = leaving.saturating_sub(left);
    if as_json {
        return output::print_json(&json!({ "function": function, "ended": ended + after, "leaving": left }));
    }
    let later = match (after, left) {
        (0, 0) => String::new(),
        (after, 0) => format!(", {after} after their invocation"),
        (_, left) => format!(", {left} end after their invocation"),
    };
    output::say(&format!("function {function} drained: {ended} idle ended{later}"));
    Ok(())
}
