//! Functions that change while they are invoked: who came before finishes as it began, who comes after meets the new one.

use std::thread;

use serde_json::{Value, json};

use crate::host::{self, Answer, Instance, Options};

fn instance() -> Instance {
    let config = "parallel_starts = 20\ncapacity_wait_s = 60".to_owned();
    Instance::start_with(Options { config, ..Options::default() })
}

/// What each round's environments are: its number, and memory that goes with it.
fn settings(round: u32) -> Value {
    let memory = if round % 2 == 0 { 128 } else { 192 };
    json!({ "MemorySize": memory, "Timeout": 60 + round, "Environment": { "Variables": { "ROUND": round.to_string() } } })
}

/// The round that an answer comes from; memory and variables are of one.
#[track_caller]
fn round_of(answer: &Answer) -> u32 {
    assert_eq!((answer.status, answer.header("x-amz-function-error")), (200, None), "{}", answer.text());
    let seen = answer.json();
    let round: u32 = seen["ROUND"].as_str().and_then(|text| text.parse().ok()).expect("a round");
    let memory = settings(round)["MemorySize"].to_string();
    assert_eq!(seen["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"], memory.as_str(), "one environment of two configurations");
    let reported = answer.report("Memory Size").expect("a REPORT");
    assert_eq!(reported, format!("{memory} MB"), "and the books say the same");
    round
}

#[test]
fn a_new_configuration_is_met_whole_or_not_at_all_and_by_all_who_come_after_it() {
    if !host::ready() {
        return;
    }
    let instance = instance();
    instance.create_probe("f", settings(0));
    for round in 1..=5 {
        let answers = thread::scope(|scope| {
            let callers: Vec<_> = (0..6)
                .map(|_| scope.spawn(|| (0..3).map(|_| instance.invoke("f", &json!({ "do": "env" }))).collect::<Vec<_>>()))
                .collect();
            let body = settings(round).to_string();
            let answer = instance.api().request("PUT", "/2015-03-31/functions/f/configuration", &[], body.as_bytes());
            assert_eq!(answer.status, 200, "{}", answer.text());
            let after = round_of(&instance.invoke("f", &json!({ "do": "env" })));
            assert_eq!(after, round, "after the update is answered, only the new configuration runs");
            callers.into_iter().flat_map(|caller| caller.join().expect("a caller's thread")).collect::<Vec<_>>()
        });
        for answer in &answers {
            let ran = round_of(answer);
            assert!(ran == round || ran + 1 == round, "round {ran} while {round} was put in its place");
        }
    }
    host::eventually("only environments of the last configuration are left", || {
        let pool = instance.pool();
        let all = pool["environments"].as_array().cloned().unwrap_or_default();
        all.iter().all(|environment| environment["memory_mib"] == 192 && environment["state"] == "idle")
    });
    assert!(instance.pool()["retired"]["updated"].as_u64() >= Some(5), "{}", instance.pool()["retired"]);
}

#[test]
fn a_new_timeout_holds_for_those_who_come_after_it_and_not_for_who_runs() {
    if !host::ready() {
        return;
    }
    let instance = instance();
    instance.create_probe("f", json!({ "Timeout": 120 }));
    thread::scope(|scope| {
        let running = scope.spawn(|| instance.invoke("f", &json!({ "sleep": 4000 })));
        host::eventually("it runs", || instance.busy() == 1);
        let body = json!({ "Timeout": 1 }).to_string();
        let answer = instance.api().request("PUT", "/2015-03-31/functions/f/configuration", &[], body.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        let late = instance.invoke("f", &json!({ "sleep": 60_000 }));
        assert!(late.text().contains("Task timed out after 1.00 seconds"), "{}", late.text());
        let answer = running.join().expect("the caller's thread");
        assert_eq!((answer.status, answer.header("x-amz-function-error")), (200, None), "{}", answer.text());
    });
}

#[test]
fn a_function_that_is_deleted_and_made_anew_under_load_never_answers_as_the_one_before() {
    if !host::ready() {
        return;
    }
    let instance = instance();
    instance.create_probe("f", settings(0));
    for round in 1..=4 {
        let answers = thread::scope(|scope| {
            let callers: Vec<_> = (0..6)
                .map(|_| scope.spawn(|| (0..3).map(|_| instance.invoke("f", &json!({ "do": "env" }))).collect::<Vec<_>>()))
                .collect();
            assert_eq!(instance.api().request("DELETE", "/2015-03-31/functions/f", &[], b"").status, 204);
            instance.create_probe("f", settings(round));
            assert_eq!(round_of(&instance.invoke("f", &json!({ "do": "env" }))), round, "only the new one runs");
            callers.into_iter().flat_map(|caller| caller.join().expect("a caller's thread")).collect::<Vec<_>>()
        });
        for answer in answers.iter().filter(|answer| answer.status != 404) {
            let ran = round_of(answer);
            assert!(ran == round || ran + 1 == round, "round {ran} while {round} was put in its place");
        }
    }
    let retired = instance.pool()["retired"].clone();
    let stale = ["deleted", "updated"].iter().filter_map(|why| retired[*why].as_u64()).sum::<u64>();
    assert!(stale >= 4, "{retired}");
}
