//! What `/v1/pool` says agrees with itself, with the answers, and with an empty house at the end.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Row;
use crate::record::{Fate, Record};

/// What is wrong in one look at the pool.
pub fn pool_contradicts_itself(pool: &Value) -> Vec<String> {
    let Some(environments) = pool["environments"].as_array() else { return vec![format!("no pool: {pool}")] };
    let number = |name: &str| pool[name].as_u64().unwrap_or(u64::MAX);
    let of = |state: &str| environments.iter().filter(|environment| environment["state"] == state).count() as u64;
    let charged: u64 = environments.iter().filter_map(|environment| environment["charged_mib"].as_u64()).sum();
    let names: Vec<&str> = environments.iter().filter_map(|environment| environment["container"].as_str()).collect();
    let mut found = Vec::new();
    let mut holds = |holds: bool, what: &str| {
        if !holds {
            found.push(format!("/v1/pool: {what}: {pool}"));
        }
    };
    holds(number("charged_mib") <= number("budget_mib"), "more is charged than there is");
    // Each is rounded down by itself.
    let most = charged + environments.len() as u64;
    holds(charged <= number("charged_mib") && number("charged_mib") <= most, "the charges are not the sum");
    holds(number("starting") == of("initialising"), "those that start are not those that initialise");
    // Who is answered is busy until it has settled, and in flight no more.
    holds(number("in_flight") <= of("initialising") + of("busy") + number("waiting"), "more is in flight than runs and waits");
    holds(number("in_flight") <= number("concurrency"), "more is in flight than may be");
    holds(names.iter().collect::<BTreeSet<_>>().len() == names.len(), "a container is there twice");
    let exceeded = |reserve: &Value| reserve["in_flight"].as_u64() > reserve["reserved"].as_u64();
    holds(!pool["reserves"].as_array().is_some_and(|all| all.iter().any(exceeded)), "more is in flight than reserved");
    found
}

pub fn empty(pool: &Value) -> Row {
    let environments = pool["environments"].as_array().map_or(usize::MAX, Vec::len);
    let numbers = ["charged_mib", "in_flight", "waiting", "starting"];
    let left = numbers.iter().filter(|name| pool[**name] != 0).map(|name| format!("{name} is {}", pool[*name]));
    let mut found: Vec<String> = left.collect();
    if environments > 0 {
        found.push(format!("environments are left: {}", pool["environments"]));
    }
    let seen = format!("{} MiB, {environments} environments", pool["charged_mib"]);
    Row::new("when all is drained nothing is charged", seen, "0 MiB, 0 environments", found)
}

/// `before` and `after` are of one server, with nothing under way; `from` is the number of calls at `before`.
pub fn adds_up(record: &Record, from: usize, before: &Value, after: &Value) -> Row {
    let sum =
        |pool: &Value, name: &str| pool[name].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum::<u64>();
    let of = |name: &str| sum(after, name).saturating_sub(sum(before, name));
    let again = after["told_again"].as_u64().unwrap_or(0) - before["told_again"].as_u64().unwrap_or(0);
    let (mut throttled, mut left, mut processes) = (0, 0, BTreeSet::new());
    for call in &record.calls[from..] {
        match &call.fate {
            Fate::Answered(reply) if reply.status == 429 => throttled += 1,
            Fate::Answered(reply) => processes.extend(reply.told.as_ref().map(|told| &told.start)),
            Fate::HungUp => left += 1,
            _ => {}
        }
    }
    let (refused, retired) = (of("refused"), of("retired"));
    let mut found = record.contradictions.clone();
    // Whoever went away may have been refused too; and an init that is not tried again for long enough is a refusal, at last.
    if refused > throttled + left || throttled > refused + again {
        found.push(format!("{refused} were refused, by the pool; {throttled} were throttled, by their answers, {left} hung up"));
    }
    if retired < processes.len() as u64 {
        found.push(format!("{retired} environments were retired, and {} processes have answered", processes.len()));
    }
    let seen = format!("{} looks, {refused} refused, {retired} retired", record.looks);
    let expected = format!("{throttled} to {} refused, {} or more retired", throttled + left, processes.len());
    Row::new("/v1/pool adds up", seen, expected, found)
}
