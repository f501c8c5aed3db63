//! `kiln function concurrency`: shows or sets how many invocations at once are a function's own.

use hyper::Method;
use serde_json::{Value, json};

use super::args::Concurrency;
use super::client::{Client, Socket};
use super::failure::Failure;
use super::function::{call, encoded, text};
use super::output;

pub async fn execute(client: &Client, command: Concurrency, as_json: bool) -> Result<(), Failure> {
    let path = |date: &str| format!("/{date}/functions/{}/concurrency", encoded(&command.name));
    let name = &command.name;
    if command.none {
        client.request(Socket::Api, Method::DELETE, &path("2017-10-31"), &[], "").await?;
        output::say(&format!("function {name} has no reserved concurrency"));
        return Ok(());
    }
    let reply = match command.reserve {
        Some(reserve) => {
            call(client, Method::PUT, &path("2017-10-31"), json!({ "ReservedConcurrentExecutions": reserve })).await?
        }
        None => call(client, Method::GET, &path("2019-09-30"), Value::Null).await?,
    };
    if as_json {
        return output::print_json(&reply);
    }
    let words = match &reply["ReservedConcurrentExecutions"] {
        Value::Null => format!("function {name} has no reserved concurrency"),
        Value::Number(zero) if zero.as_u64() == Some(0) => format!("function {name} is switched off: it has reserved 0"),
        reserve => format!("function {name} has reserved {}", text(reserve)),
    };
    // What was asked for is a result; what was changed is said.
    if command.reserve.is_none() {
        return output::print_line(&words);
    }
    output::say(&words);
    Ok(())
}
