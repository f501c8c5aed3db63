//! `kiln container list|recycle|kill`: the containers that functions run in, one by one. `inspect` and `exec` have files of their own.

use hyper::Method;
use serde_json::{Value, json};

use super::args::{ContainerCommand, Containers, ListContainers, Sort};
use super::client::{Client, Socket};
use super::failure::Failure;
use super::function::{encoded, text};
use super::{exec, inspect, logs, output, pool};

pub async fn execute(client: &Client, command: ContainerCommand, as_json: bool) -> Result<(), Failure> {
    match command {
        ContainerCommand::Exec(program) => exec::execute(client, program).await,
        ContainerCommand::Inspect(which) => inspect::execute(client, which, as_json).await,
        ContainerCommand::Kill(containers) => end(client, "kill", containers, as_json).await,
        ContainerCommand::List(which) => list(client, which, as_json).await,
        ContainerCommand::Recycle(containers) => end(client, "recycle", containers, as_json).await,
    }
}

async fn list(client: &Client, which: ListContainers, as_json: bool) -> Result<(), Failure> {
    let wanted = which.function.as_deref().map(logs::name);
    if as_json {
        let reply = client.request(Socket::Control, Method::GET, "/v1/pool", &[], "").await?.json()?;
        let all = reply["environments"].as_array().into_iter().flatten();
        let found: Vec<&Value> = all.filter(|one| wanted.as_ref().is_none_or(|name| one["function"] == name.as_str())).collect();
        return output::print_json(&json!({ "containers": found }));
    }
    let mut environments = pool::look(client).await?.environments;
    environments.retain(|environment| wanted.as_ref().is_none_or(|name| environment.function == *name));
    pool::sort(&mut environments, Sort::Function);
    if which.quiet {
        let ids: String = environments
            .iter()
            .filter_map(|environment| environment.container.as_ref())
            .fold(String::new(), |ids, id| ids + &output::plain(id) + "\n");
        return output::print(ids.as_bytes());
    }
    if environments.is_empty() {
        output::say("there are no containers now");
        return Ok(());
    }
    output::print_line(&pool::table(&environments))
}

/// Tries each; fails with the first that could not be ended.
async fn end(client: &Client, verb: &str, containers: Containers, as_json: bool) -> Result<(), Failure> {
    let (mut done, mut failed) = (Vec::new(), None);
    for id in &containers.ids {
        let path = format!("/v1/containers/{}/{verb}", encoded(id));
        let reply = client.request(Socket::Control, Method::POST, &path, &[], "").await.and_then(|reply| reply.json());
        match reply {
            Ok(ended) => {
                if !as_json {
                    output::say(&said(verb, &ended));
                }
                done.push(ended);
            }
            Err(failure) if failed.is_none() => failed = Some(failure),
            Err(failure) => output::say(&format!("kiln: {failure}")),
        }
    }
    if as_json {
        output::print_json(&json!({ "containers": done }))?;
    }
    failed.map_or(Ok(()), Err)
}

fn said(verb: &str, ended: &Value) -> String {
    let (id, function, state) = (text(&ended["container"]), text(&ended["function"]), text(&ended["state"]));
    output::plain(&match (verb, ended["ended"].as_bool().unwrap_or(false)) {
        ("kill", _) if state == "busy" => format!("container {id} of {function} killed, and the invocation that it ran"),
        ("kill", _) => format!("container {id} of {function} killed"),
        (_, true) => format!("container {id} of {function} recycled"),
        (_, false) => format!("container {id} of {function} ends when its invocation does"),
    })
}
