//! Events and counts tell what happened: each once, and nothing else.

use std::collections::BTreeMap;

use super::Row;
use crate::books::{Entry, Ledger};
use crate::heard::{Container, Counts, Heard, Server};
use crate::record::{Fate, Record, Reply};

pub fn events(record: &Record, ledger: &Ledger, heard: &Heard) -> Vec<Row> {
    vec![numbers(record, heard), ends(record, ledger, heard), lives(heard), history(ledger, heard)]
}

/// One after the other; what came faster than it was read is told.
fn numbers(record: &Record, heard: &Heard) -> Row {
    let mut found = heard.strange.clone();
    for server in &heard.servers {
        // Of a server that was killed, the loss of events may be told and these events not be heard any more.
        if server.missing() > server.lost {
            let (missing, lost, first) = (server.missing(), server.lost, server.first);
            found.push(format!("after event {first} {missing} are missing, and {lost} are told to be lost"));
        }
    }
    let (servers, kills) = (heard.servers.len(), record.losses.iter().filter(|loss| loss.what.cuts()).count());
    if servers > kills + 1 {
        found.push(format!("events of {servers} servers: so their numbers had {} holes", servers - kills - 1));
    }
    let sum = |of: fn(&Server) -> u64| heard.servers.iter().map(of).sum::<u64>();
    let seen = format!("{} events of {servers} servers, {} lost", sum(|server| server.events), sum(|server| server.lost));
    Row::new("no event is missing untold", seen, format!("{} servers at most", kills + 1), found)
}

/// An `ended` is of a row in the books and has its figures. Of the last server, which was heard to its end, each row and each
/// refusal was told.
fn ends(record: &Record, ledger: &Ledger, heard: &Heard) -> Row {
    let rows: BTreeMap<&str, &Entry> = ledger.rows.iter().map(|row| (row.request.as_str(), row)).collect();
    let (mut told, mut found) = (0_usize, Vec::new());
    for (request, life) in heard.servers.iter().flat_map(|server| &server.requests) {
        told += life.ended.len();
        for ended in &life.ended {
            match rows.get(request.as_str()) {
                None => found.push(format!("{} {request} has ended, and is not in the books", ended.function)),
                Some(row) if Entry { start_ms: 0, ..(*row).clone() } == *ended => {}
                Some(row) => found.push(format!("the books have {row:?}, its event {ended:?}")),
            }
        }
        if life.ended.len() > 1 {
            found.push(format!("{request} has ended {} times", life.ended.len()));
        }
        if life.throttled.len() > 1 || life.throttled.len() + life.ended.len() > 1 {
            found.push(format!("{request} has ended {} times, refused for {:?}", life.ended.len(), life.throttled));
        }
    }
    let killed = record.losses.iter().filter(|loss| loss.what.cuts()).map(|loss| loss.ended).max();
    let mut untold = Vec::new();
    if let Some(last) = heard.servers.last() {
        let life = |request: &str| last.requests.get(request);
        // Between a kill and the successor's first answer it may have been either.
        let sure = killed.map_or(0, |killed| record.origin_ms + killed.as_millis() as u64 + 1);
        for row in ledger.rows.iter().filter(|row| row.start_ms > sure) {
            if life(&row.request).is_none_or(|life| life.ended.is_empty()) {
                untold.push(format!("{} {} is in the books, and its end was not told", row.function, row.request));
            }
        }
        for call in record.calls.iter().filter(|call| killed.is_none_or(|killed| call.sent > killed)) {
            let Fate::Answered(Reply { status: 429, request, .. }) = &call.fate else { continue };
            if life(request).is_none_or(|life| life.throttled.is_empty()) {
                let function = &record.functions[call.function].name;
                untold.push(format!("{function} {request} was refused, and why was not told"));
            }
        }
        // These may be among those that were lost.
        found.extend(if untold.len() as u64 > last.lost { untold } else { Vec::new() });
    } else {
        found.push("nothing was heard".into());
    }
    let seen = format!("{told} ends told");
    Row::new("each end and refusal is told once, as booked", seen, format!("{} rows at most", ledger.rows.len()), found)
}

/// What begins, ends: starts, environments, invocations; and who was cold was told why. Of the last server, as with others the
/// end may be missing.
fn lives(heard: &Heard) -> Row {
    let (mut containers, mut found) = (0, Vec::new());
    for server in heard.servers.last().iter().filter(|server| server.lost == 0) {
        containers += server.containers.len();
        if server.starting != server.started {
            found.push(format!("{} were starting, {} were ready or failed", server.starting, server.started));
        }
        for (container, Container { ready, retired, .. }) in &server.containers {
            if (ready.len(), retired.len()) != (1, 1) {
                let (ready, retired) = (ready.len(), retired.len());
                found.push(format!("container {container} was ready {ready} times, and ended {retired} times"));
            }
        }
        for (request, life) in &server.requests {
            let over = life.taken_back + life.ended.len() as u64;
            if life.invoked != over {
                found.push(format!("{request} was handed over {} times, and {over} times it ended or came back", life.invoked));
            }
            if life.cold && life.starting == 0 {
                found.push(format!("{request} was cold, and why was not told"));
            }
        }
    }
    Row::new("whose beginning is told, their end is", format!("{containers} containers"), "one beginning, one end", found)
}

/// Whoever asks later why a container has ended finds what was told then; and nothing in it lives on.
fn history(ledger: &Ledger, heard: &Heard) -> Row {
    let mut told = 0;
    let open = ledger.history.iter().filter(|(_, why)| why.is_none());
    let mut found: Vec<String> =
        open.map(|((container, _), _)| format!("container {container} has no end in the history")).collect();
    for server in &heard.servers {
        for (container, Container { function, ready, retired }) in &server.containers {
            // Of one that was ready before a loss of events, the request is not known.
            let (Some(request), Some(why)) = (ready.first(), retired.first()) else { continue };
            told += 1;
            match ledger.history.get(&(container.clone(), request.clone())) {
                Some(Some(kept)) if kept == why => {}
                // What was told a moment before a server was killed was not written any more.
                None if ledger.full.contains(function) => {}
                _ if server.last != heard.servers.last().map_or(0, |last| last.last) => {}
                kept => found.push(format!("container {container} ended for {why:?}, and the history has {kept:?}")),
            }
        }
    }
    let seen = format!("{} containers", ledger.history.len());
    Row::new("the history has each end as it was told", seen, format!("{told} told"), found)
}

/// The counts at two moments with nothing under way, of one server; so many rows were booked between them. `from` is the number of
/// calls at the first.
pub fn counts(record: &Record, from: usize, booked: u64, before: &Counts, after: &Counts, last: &Counts) -> Vec<Row> {
    let grown = |metric: &str| (after.sum(metric) - before.sum(metric)) as i64;
    let (mut throttled, mut left) = (0, 0);
    for call in &record.calls[from..] {
        match &call.fate {
            Fate::Answered(reply) if reply.status == 429 => throttled += 1,
            Fate::HungUp => left += 1,
            _ => {}
        }
    }
    let mut found = Vec::new();
    let invocations = grown("kiln_invocations_total");
    if invocations != booked as i64 {
        found.push(format!("{invocations} invocations were counted, and {booked} booked"));
    }
    let durations = grown("kiln_invocation_duration_seconds_count");
    if durations != invocations {
        found.push(format!("{durations} durations of {invocations} invocations"));
    }
    let refused = grown("kiln_throttles_total");
    if !(throttled..=throttled + left).contains(&refused) {
        found.push(format!("{refused} throttles were counted, {throttled} were answered, {left} hung up"));
    }
    for metric in ["kiln_invocations_in_flight", "kiln_invocations_waiting", "kiln_environments", "kiln_memory_charged_bytes"] {
        if after.sum(metric) != 0.0 {
            found.push(format!("{metric} is {} with nothing under way", after.sum(metric)));
        }
    }
    let seen = format!("{invocations} invocations, {refused} throttles");
    let expected = format!("{booked} rows, {throttled} to {} throttles", throttled + left);
    let counted = Row::new("what is counted is what happened", seen, expected, found);

    // At the end, of all the time since the supervisor's start; of the last server's for what only it knows.
    let running = last.of_metric("kiln_swept_total").filter(|(series, _)| series.contains("when=\"running\""));
    let others = ["kiln_containers_not_cleared_total", "kiln_books_rows_lost_total", "kiln_history_rows_lost_total"];
    let leaks: Vec<(&str, f64)> = running.chain(others.iter().flat_map(|metric| last.of_metric(metric))).collect();
    let mut found: Vec<String> =
        leaks.iter().filter(|(_, value)| *value != 0.0).map(|(series, value)| format!("{series} is {value}")).collect();
    if leaks.len() < 6 {
        found.push(format!("not all that should be 0 is counted: {leaks:?}"));
    }
    let sum: f64 = leaks.iter().map(|(_, value)| value).sum();
    vec![counted, Row::new("nothing was found leaked or lost", format!("{sum} of {} kinds", leaks.len()), "0", found)]
}
