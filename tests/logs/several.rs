//! `kiln logs` of several functions: every line with its function, in order of time, whoever is made or replaced meanwhile.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::follow::Follower;
use crate::host::{self, Instance, kiln};
use crate::{logs, print, reported};

/// Lines that a function printed.
fn printed(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.contains("line ")).collect()
}

#[test]
fn without_a_name_the_lines_of_all_functions_are_shown_in_order_of_time_each_with_its_function() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    for name in ["f", "g", "h"] {
        instance.create_probe(name, json!({}));
    }
    let mut requests = Vec::new();
    for number in 0..9 {
        let name = ["g", "f", "h"][number % 3];
        requests.push(instance.invoke(name, &print(&format!("line {number}"), "stdout")));
        reported(&instance, name, number / 3 + 1);
    }
    let expected: Vec<String> = (0..9).map(|number| format!("{} line {number}", ["g", "f", "h"][number % 3])).collect();
    let all = logs(&instance, &["-n", "all"]);
    assert_eq!(printed(&all), expected);
    assert!(all.lines().all(|line| ["f ", "g ", "h "].iter().any(|name| line.starts_with(name))), "{all}");
    // As JSON it is what each function's own log has.
    let entries = |words: &[&str]| -> Vec<Value> {
        let text = logs(&instance, &[words, &["--json"]].concat());
        text.lines().map(|line| serde_json::from_str(line).expect("an entry is JSON")).collect()
    };
    let json = entries(&["-n", "all"]);
    for name in ["f", "g", "h"] {
        let of_one: Vec<&Value> = json.iter().filter(|entry| entry["function"] == name).collect();
        assert_eq!(of_one, entries(&[name, "-n", "all"]).iter().collect::<Vec<_>>(), "{name}");
    }
    let times: Vec<u64> = json.iter().map(|entry| entry["time_ms"].as_u64().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");

    let some = logs(&instance, &["f", "--function", "h", "-n", "all"]);
    assert_eq!(printed(&some), expected.iter().filter(|line| !line.starts_with('g')).collect::<Vec<_>>());
    // One alone is shown as it was printed.
    assert_eq!(logs(&instance, &["--function", "f", "-n", "all"]), logs(&instance, &["f", "-n", "all"]));
    assert_eq!(entries(&["-n", "3"]), json[json.len() - 3..]);
    // Whoever has an invocation's id need not know whose it was.
    let of_request = logs(&instance, &["--request", requests[4].request_id()]);
    assert_eq!(of_request, requests[4].log().lines().map(|line| format!("f {line}\n")).collect::<String>());
    let since = jiff::Timestamp::from_millisecond(times[times.len() - 1] as i64).unwrap().to_string();
    assert_eq!(entries(&["--since", &since]).last(), json.last());
    assert_eq!(kiln(&instance, &["logs", "--function", "f", "--function", "nope"]).0, 4);
}

#[test]
fn a_follower_of_all_finds_functions_made_later_and_sees_nothing_twice_when_the_server_is_replaced() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    let mut invocations = std::collections::BTreeMap::new();
    let mut call = |name: &'static str| {
        let count = invocations.entry(name).or_insert(0);
        instance.call(name, &print(&format!("line {count} end"), "stdout"));
        *count += 1;
        reported(&instance, name, *count);
    };
    instance.create_probe("f", json!({}));
    call("f");
    let follower = Follower::start(&instance, &["-n", "all"]);
    follower.sees("f line 0 end");
    instance.create_probe("later", json!({}));
    call("later");
    follower.sees("later line 0 end");
    call("f");
    follower.sees("f line 1 end");
    host::kill(instance.processes("server")[0]);
    instance.await_ready();
    for name in ["later", "f", "later"] {
        call(name);
    }
    follower.sees("later line 2 end");
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let all = logs(&instance, &["-n", "all"]);
    host::eventually("the follower has seen it all", || follower.seen().len() >= all.len());
    assert_eq!(sorted(&follower.seen()), sorted(&all));
    let (_, said) = follower.end(Signal::SIGINT);
    assert!(said.lines().all(|line| line.starts_with("kiln: kilnd is ")), "{said}");
}
