//! Every request has one answer, which is its own, of the right code, and one that its function can give.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Row;
use crate::record::{Call, Change, Fate, Kill, Record, Reply, State, Victim};

pub fn answers(record: &Record) -> Vec<Row> {
    let mut rows = vec![one_answer(record), its_own(record), new_code(record), possible(record)];
    rows.push(each_kind(record));
    rows.push(roll_call(record));
    rows
}

fn named(record: &Record, call: &Call, what: &str) -> String {
    let fate = match &call.fate {
        Fate::Answered(Reply { status, request, error, message, refusal, .. }) => {
            let kind = error.as_deref().or(refusal.as_deref()).unwrap_or("success");
            format!("{status} {kind} {message:.120} (request {request})")
        }
        Fate::Cut(how) | Fate::Garbled(how) => how.clone(),
        Fate::HungUp | Fate::Silent => "nothing".into(),
    };
    let function = &record.functions[call.function];
    let (from, to) = (call.sent.as_secs_f64(), call.ended.as_secs_f64());
    format!("{} ({}), {from:.3} to {to:.3} s: {what}: {fate}", function.name, function.kind().name)
}

/// Those of whom an answer is due have one. A connection may be cut by the end of the process that it led to, and by nothing else.
fn one_answer(record: &Record) -> Row {
    let mut found = Vec::new();
    let (mut answered, mut cut, mut left) = (0, 0, 0);
    for call in &record.calls {
        match &call.fate {
            Fate::Answered(_) => answered += 1,
            Fate::HungUp => left += 1,
            Fate::Cut(_) if record.overlaps(call, Victim::cuts) => cut += 1,
            Fate::Cut(_) => found.push(named(record, call, "cut, and no server was killed")),
            Fate::Garbled(_) => found.push(named(record, call, "no whole answer, or two")),
            Fate::Silent => found.push(named(record, call, "no answer")),
        }
    }
    let due = record.calls.len() - left - cut;
    let seen = format!("{answered} answered, {cut} cut by kills, {left} hung up");
    Row::new("each request has one whole answer", seen, format!("{due} answered"), found)
}

/// The nonce comes back, from the function that was called, with all that was sent along.
fn its_own(record: &Record) -> Row {
    let (mut told, mut found) = (0, Vec::new());
    for call in &record.calls {
        let Fate::Answered(reply) = &call.fate else { continue };
        let name = &record.functions[call.function].name;
        match &reply.told {
            Some(own) if own.nonce == call.nonce && own.function == *name && own.pad == call.pad => told += 1,
            Some(other) => {
                let what = format!("asked {name} with {}, answered by {} with {}", call.nonce, other.function, other.nonce);
                found.push(named(record, call, &what));
            }
            None if reply.is_success() => found.push(named(record, call, "a success that says nothing of itself")),
            None => {}
        }
    }
    let requests = repeated(record.calls.iter().filter_map(|call| match &call.fate {
        Fate::Answered(reply) => Some(reply.request.as_str()),
        _ => None,
    }));
    found.extend(requests.into_iter().map(|request| format!("request id {request} was given out twice")));
    Row::new("an answer belongs to its request", format!("{told} nonces"), format!("{told} nonces"), found)
}

fn repeated<'a>(ids: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    ids.for_each(|id| *counts.entry(id).or_insert(0) += 1);
    counts.into_iter().filter(|(_, count)| *count > 1).map(|(id, _)| id.to_owned()).collect()
}

/// What the function may have been for an invocation of this time: what it was when it began, and what it became until it ended.
/// `None` stands for a function that is not there.
pub fn may_have_been(changes: &[Change], sent: Duration, ended: Duration) -> Vec<Option<State>> {
    let last = changes.iter().rposition(|change| change.ended <= sent);
    let before = if last.is_none() { vec![None] } else { Vec::new() };
    let later = changes[last.unwrap_or(0)..].iter().take_while(|change| change.begun <= ended);
    before.into_iter().chain(later.map(|change| change.to)).collect()
}

fn new_code(record: &Record) -> Row {
    let changes = record.changes_by_function();
    let (mut seen, mut found) = (0, Vec::new());
    for call in &record.calls {
        let Fate::Answered(Reply { told: Some(told), .. }) = &call.fate else { continue };
        let possible = may_have_been(changes.get(&call.function).map_or(&[], Vec::as_slice), call.sent, call.ended);
        match (told.code, told.round) {
            (Some(code), Some(round)) if possible.contains(&Some(State { code, round })) => seen += 1,
            (code, round) => {
                let what = format!("ran code {code:?} with configuration {round:?}, and could be {possible:?}");
                found.push(named(record, call, &what));
            }
        }
    }
    let expected = format!("{} changes", record.changes.len());
    Row::new("after an update nobody meets what was before", format!("{seen} answers"), expected, found)
}

/// No function ends as only another could, and Kiln's own faults have a reason in what was done to it.
fn possible(record: &Record) -> Row {
    let changes = record.changes_by_function();
    let (mut ends, mut found): (BTreeMap<String, usize>, _) = (BTreeMap::new(), Vec::new());
    for call in &record.calls {
        let Fate::Answered(reply) = &call.fate else { continue };
        if let Err(why) = may_end_so(record, &changes, call, reply) {
            found.push(named(record, call, &why));
        }
        let end = reply.error.as_deref().or(reply.refusal.as_deref()).unwrap_or("success");
        *ends.entry(end.to_owned()).or_insert(0) += 1;
    }
    Row::new("each ends as its kind can", format!("{} different ends", ends.len()), "no other", found)
}

fn may_end_so(record: &Record, changes: &BTreeMap<usize, Vec<Change>>, call: &Call, reply: &Reply) -> Result<(), String> {
    let kind = record.functions[call.function].kind();
    let over = |begun: Duration, ended: Duration| begun <= call.ended && call.sent <= ended;
    match (reply.status, reply.error.as_deref(), reply.refusal.as_deref()) {
        (200, None, _) if kind.succeeds => Ok(()),
        (200, None, _) => Err("it cannot succeed".into()),
        (200, Some(error), _) if kind.errors.contains(&error) => Ok(()),
        (200, Some("Runtime.ExitError"), _) if reply.message.ends_with("signal: killed") => {
            // Of a function whose init fails, the last failure is told again to who comes before the next try.
            let earlier = |kill: &Kill| kind.init_fails() && kill.begun <= call.ended;
            let mut of_it = record.kills.iter().filter(|kill| kill.function == call.function);
            let killed = of_it.any(|kill| over(kill.begun, kill.ended) || earlier(kill));
            if killed { Ok(()) } else { Err("killed, and nobody did it".into()) }
        }
        (200, Some("Sandbox.Failure"), _) if record.overlaps(call, |_| true) => Ok(()),
        (200, Some(error), _) => Err(format!("{error} of a {} function", kind.name)),
        (429, _, Some("TooManyRequestsException")) => match reply.reason.as_deref() {
            Some("ConcurrentInvocationLimitExceeded") => Ok(()),
            Some("ReservedFunctionConcurrentInvocationLimitExceeded") if kind.reserve.is_some() => Ok(()),
            reason => Err(format!("throttled by {reason:?}")),
        },
        (404, _, Some("ResourceNotFoundException")) => {
            let of = changes.get(&call.function).map_or(&[][..], Vec::as_slice);
            let gone = may_have_been(of, call.sent, call.ended).contains(&None);
            if gone { Ok(()) } else { Err("it was there all the time".into()) }
        }
        (status, _, refusal) => Err(format!("{status} {refusal:?}")),
    }
}

/// Kinds of functions of which no invocation was good, though it could have been.
fn each_kind(record: &Record) -> Row {
    let mut good: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for call in record.calls.iter().filter(|call| record.functions[call.function].kind().succeeds) {
        let (all, of) = good.entry(record.functions[call.function].kind().name).or_default();
        *all += 1;
        *of += usize::from(matches!(&call.fate, Fate::Answered(reply) if reply.is_success()));
    }
    let found = good.iter().filter(|(_, (_, good))| *good == 0).map(|(kind, (all, _))| format!("{kind}: 0 of {all}")).collect();
    let served = good.values().filter(|(_, good)| *good > 0).count();
    Row::new("no kind of function starves", format!("{served} kinds served"), format!("{} kinds", good.len()), found)
}

/// When all is calm, every function that can succeed does.
fn roll_call(record: &Record) -> Row {
    let able: Vec<usize> = (0..record.functions.len()).filter(|index| record.functions[*index].kind().succeeds).collect();
    let last = record.losses.iter().map(|loss| loss.ended).chain(record.changes.iter().map(|change| change.ended)).max();
    let good = |function: &usize| {
        let of = |call: &&Call| call.roll_call && call.function == *function && last.is_none_or(|last| call.sent >= last);
        let good = |call: &Call| matches!(&call.fate, Fate::Answered(reply) if reply.is_success());
        record.calls.iter().filter(of).any(good)
    };
    let (served, not): (Vec<usize>, Vec<usize>) = able.iter().partition(|function| good(function));
    let found = not.iter().map(|function| format!("{} does not answer any more", record.functions[*function].name)).collect();
    Row::new("afterwards every function works", format!("{} work", served.len()), format!("{} work", able.len()), found)
}
