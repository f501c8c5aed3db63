//! What is counted: known invocations and known deaths, and exactly these in the metrics; and where metrics are served.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::host::{self, Instance, Options, snapshot};

/// Each series, `name{label="value",…}`, with its value.
#[derive(Debug)]
struct Counts(BTreeMap<String, f64>);

impl Counts {
    #[track_caller]
    fn of(instance: &Instance) -> Self {
        let answer = instance.control().request("GET", "/v1/metrics", &[], b"");
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/plain; version=0.0.4; charset=utf-8")));
        let text = answer.text();
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        Self(samples.map(|(series, value)| (series.to_owned(), value.parse().unwrap())).collect())
    }

    /// A series that is not there counts nothing.
    fn get(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or(0.0)
    }

    /// All that begins so, and is not 0.
    fn all(&self, beginning: &str) -> Vec<(&str, f64)> {
        let counted = self.0.iter().filter(|(series, value)| series.starts_with(beginning) && **value != 0.0);
        counted.map(|(series, value)| (&series[beginning.len()..], *value)).collect()
    }
}

#[test]
fn what_happened_is_what_was_counted() {
    if !host::ready() {
        return;
    }
    let instance = Instance::start();
    let failing = json!({ "Timeout": 10, "Environment": { "Variables": { "PROBE_INIT": "exit:3" } } });
    for (name, settings) in [
        ("fine", json!({ "MemorySize": 256, "Timeout": 10 })),
        ("wrong", json!({ "MemorySize": 128, "Timeout": 10 })),
        ("late", json!({ "MemorySize": 128, "Timeout": 1 })),
        ("fat", json!({ "MemorySize": 128, "Timeout": 20 })),
        ("stillborn", failing),
        ("off", json!({ "MemorySize": 128 })),
    ] {
        instance.create_probe(name, settings);
    }
    let reserve = instance.api().request(
        "PUT",
        "/2017-10-31/functions/off/concurrency",
        &[],
        json!({ "ReservedConcurrentExecutions": 0 }).to_string().as_bytes(),
    );
    assert_eq!(reserve.status, 200, "{}", reserve.text());
    let before = Counts::of(&instance);
    for family in
        ["kiln_invocations_total", "kiln_environments_retired_total", "kiln_swept_total", "kiln_environment_starts_total"]
    {
        assert_eq!(before.all(family), [], "nothing has happened yet");
    }

    // With the log's tail each answer waits until its invocation is over.
    let mut billed_ms = 0.0;
    for _ in 0..3 {
        let answer = instance.invoke("fine", &json!({ "do": "echo" }));
        assert_eq!((answer.status, answer.header("x-amz-function-error")), (200, None), "{}", answer.log());
        billed_ms += answer.report_number("Billed Duration");
    }
    for (name, event) in [
        ("wrong", json!({ "do": "error", "type": "My.Error", "message": "because" })),
        ("late", json!({ "sleep": 30_000 })),
        ("fat", json!({ "hold_mib": 2000 })),
        ("stillborn", json!({})),
    ] {
        let answer = instance.invoke(name, &event);
        assert_eq!((answer.status, answer.header("x-amz-function-error")), (200, Some("Unhandled")), "{name}: {}", answer.log());
    }
    for _ in 0..2 {
        assert_eq!(instance.invoke("off", &json!({})).status, 429);
    }

    let after = Counts::of(&instance);
    let of = |name: &str, rest: &[(&'static str, f64)]| (name.to_owned(), rest.to_vec());
    for (family, expected) in [
        of(
            "kiln_invocations_total",
            &[
                ("{function=\"fat\"}", 1.0),
                ("{function=\"fine\"}", 3.0),
                ("{function=\"late\"}", 1.0),
                ("{function=\"stillborn\"}", 1.0),
                ("{function=\"wrong\"}", 1.0),
            ],
        ),
        of(
            "kiln_invocation_errors_total",
            &[
                ("{cause=\"Runtime.ExitError\",function=\"stillborn\"}", 1.0),
                ("{cause=\"Runtime.OutOfMemory\",function=\"fat\"}", 1.0),
                ("{cause=\"Runtime.Unknown\",function=\"wrong\"}", 1.0),
                ("{cause=\"Sandbox.Timedout\",function=\"late\"}", 1.0),
            ],
        ),
        of("kiln_throttles_total", &[("{function=\"off\",reason=\"reserved\"}", 2.0)]),
        of("kiln_init_failures_total", &[("{cause=\"Runtime.ExitError\",function=\"stillborn\"}", 2.0)]),
        of("kiln_environment_starts_total", &[("{why=\"again\"}", 1.0), ("{why=\"first\"}", 5.0)]),
        of("kiln_cold_start_duration_seconds_count", &[("{step=\"build\"}", 4.0), ("{step=\"init\"}", 4.0)]),
        of("kiln_capacity_wait_duration_seconds_count", &[("{outcome=\"served\"}", 7.0), ("{outcome=\"throttled\"}", 2.0)]),
        of("kiln_environments_retired_total", &[("{reason=\"failed\"}", 2.0), ("{reason=\"init\"}", 1.0)]),
        of("kiln_environments{", &[("state=\"idle\"}", 2.0)]),
        of("kiln_function_environments", &[("{function=\"fine\"}", 1.0), ("{function=\"wrong\"}", 1.0)]),
        of("kiln_swept_total", &[]),
        of("kiln_containers_not_cleared_total", &[]),
        of("kiln_books_rows_lost_total", &[]),
        of("kiln_log_lines_dropped_total", &[]),
        of("kiln_invocations_in_flight", &[]),
        of("kiln_config_last_reload_successful", &[("", 1.0)]),
    ] {
        assert_eq!(after.all(&family), expected, "{family}");
    }
    for (name, invocations) in [("fine", 3.0), ("late", 1.0)] {
        let count = after.get(&format!("kiln_invocation_duration_seconds_count{{function=\"{name}\"}}"));
        let everything = after.get(&format!("kiln_invocation_duration_seconds_bucket{{function=\"{name}\",le=\"+Inf\"}}"));
        assert_eq!((count, everything), (invocations, invocations), "{name}");
    }
    let late = after.get("kiln_invocation_duration_seconds_sum{function=\"late\"}");
    assert!((1.0..3.0).contains(&late), "a timeout of one second: {late}");
    assert_eq!(after.get("kiln_invocation_duration_seconds_bucket{function=\"late\",le=\"0.3\"}"), 0.0);
    let billed = after.get("kiln_billed_byte_seconds_total{function=\"fine\"}") / f64::from(1 << 30);
    assert!((billed - billed_ms / 1000.0 * 0.25).abs() < 1e-9, "{billed} is not {billed_ms} ms of 256 MB");
    assert!(after.get("kiln_memory_charged_bytes") > 0.0);
    assert!(after.get("kiln_memory_charged_bytes") <= after.get("kiln_memory_budget_bytes"));
    assert!(after.get("kiln_server_open_descriptors") > 10.0);
    assert!(after.get("kiln_server_open_descriptors") < after.get("kiln_server_descriptors_limit"));

    // What `kiln top` sees is the same.
    let pool = instance.pool();
    let seen = |name: &str| -> Value {
        let functions = pool["functions"].as_array().expect("a list of functions");
        functions.iter().find(|function| function["function"] == name).unwrap_or_else(|| panic!("no {name} in {pool}")).clone()
    };
    let numbers = |name: &str| ["invocations", "errors", "throttles", "cold_starts"].map(|key| seen(name)[key].as_u64().unwrap());
    assert_eq!(numbers("fine")[..3], [3, 0, 0]);
    assert_eq!(numbers("off"), [0, 0, 2, 0]);
    assert_eq!(numbers("wrong")[..3], [1, 1, 0]);
    assert_eq!(after.get("kiln_cold_starts_total{function=\"fine\"}"), 1.0, "the second and third were warm");
    assert_eq!(numbers("fine")[3], 1);
    assert!((seen("fine")["billed_gb_s"].as_f64().unwrap() - billed).abs() < 1e-9);
    assert!(seen("late")["duration_ms"].as_f64().unwrap() >= 1000.0);
    // The verb prints the same text.
    let (code, text, said) = host::kiln(&instance, &["metrics"]);
    assert_eq!((code, said.as_str()), (0, ""));
    assert!(text.contains("\nkiln_invocations_total{function=\"fine\"} 3\n"), "{text}");
}

#[test]
fn what_died_and_what_it_left_is_counted_and_a_leak_is_told_from_it() {
    if !host::ready() {
        return;
    }
    let mut instance = Instance::start_with(Options { config: "launchers = 2".into(), ..Options::default() });
    instance.create_probe("f", json!({ "MemorySize": 128, "Timeout": 10 }));
    instance.call("f", &json!({ "do": "echo" }));
    assert_eq!(Counts::of(&instance).all("kiln_swept_total"), [], "a first start finds nothing");

    // A launcher that is killed leaves cgroups, and that is no leak.
    let launcher = instance.processes("launcher")[0];
    host::kill(launcher);
    host::eventually("the launcher is replaced", || {
        Counts::of(&instance).get("kiln_launchers_restarted_total") == 1.0 && !instance.processes("launcher").contains(&launcher)
    });
    let swept = |counts: &Counts, when: &str| counts.get(&format!("kiln_swept_total{{kind=\"cgroup\",when=\"{when}\"}}"));
    let counts = Counts::of(&instance);
    assert!(swept(&counts, "death") >= 1.0, "seats that were kept ready: {:?}", counts.all("kiln_swept_total"));
    assert_eq!((swept(&counts, "running"), swept(&counts, "start")), (0.0, 0.0));

    // What belongs to a launcher that there never was is one.
    let known = snapshot::cgroups(&format!("kiln-{}-", instance.name));
    let parent = Path::new(known.first().expect("seats are kept ready")).parent().unwrap().to_owned();
    let stray = parent.join(format!("kiln-{}-4000-1", instance.name));
    fs::create_dir(&stray).unwrap();
    host::eventually("the stray group is found, and removed", || swept(&Counts::of(&instance), "running") == 1.0);
    assert!(!stray.exists());
    let told = |instance: &Instance| {
        let said = instance.control().request("GET", "/v1/events?kind=swept", &[], b"").text();
        let told: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        told.into_iter().map(|event| (event["when"].clone(), event["cgroups"].clone())).collect::<Vec<_>>()
    };
    let events = told(&instance);
    assert_eq!(events.last(), Some(&(json!("running"), json!(1))), "{events:?}");
    assert!(events.iter().any(|(when, cgroups)| when == "death" && cgroups.as_u64() >= Some(1)), "{events:?}");

    // The supervisor's own counts outlive the server; the server's begin anew.
    host::kill(instance.processes("server")[0]);
    host::eventually("another server counts", || {
        instance.control().try_request("GET", "/v1/metrics", &[], b"").is_ok_and(|answer| answer.status == 200)
            && Counts::of(&instance).get("kiln_servers_restarted_total") == 1.0
    });
    instance.await_ready();
    let counts = Counts::of(&instance);
    // A launcher that saw the server's end before the supervisor did was replaced, too.
    assert!(counts.get("kiln_launchers_restarted_total") >= 1.0, "{counts:?}");
    assert_eq!(swept(&counts, "running"), 1.0);
    assert_eq!(counts.get("kiln_invocations_total{function=\"f\"}"), 0.0);
    instance.call("f", &json!({ "do": "echo" }));
    assert_eq!(Counts::of(&instance).get("kiln_invocations_total{function=\"f\"}"), 1.0);

    // What a kilnd that was killed left is found at the start, and that is no leak either.
    instance.kill_supervisor();
    host::eventually("its children are gone, too", || {
        snapshot::processes().iter().all(|process| !process.cmdline.iter().any(|word| word.contains(&instance.name)))
    });
    instance.launch();
    instance.await_ready();
    let counts = Counts::of(&instance);
    assert!(swept(&counts, "start") >= 1.0, "{:?}", counts.all("kiln_swept_total"));
    let events = told(&instance);
    assert!(events.len() == 1 && events[0].0 == "start" && events[0].1.as_u64() >= Some(1), "{events:?}");
    assert_eq!((swept(&counts, "running"), counts.get("kiln_launchers_restarted_total")), (0.0, 0.0));
}

/// Nobody else's: each test program has a loopback address of its own.
fn address() -> SocketAddr {
    let id = std::process::id();
    SocketAddr::from(([127, 78, (id >> 8) as u8, (id as u8).max(1)], 9150))
}

fn scrape(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(host::PATIENCE * host::slower()))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: kiln\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn is_served(address: SocketAddr) -> bool {
    scrape(address).is_ok_and(|text| text.starts_with("HTTP/1.1 200") && text.contains("\nkiln_build_info{"))
}

#[test]
fn metrics_are_served_on_the_hosts_loopback_though_kilnd_has_a_network_of_its_own() {
    if !host::ready() {
        return;
    }
    let address = address();
    // Somebody was faster.
    let somebody = TcpListener::bind(address).expect("an address of this test's own");
    let config = format!("metrics_listen = '{address}'");
    let mut instance = Instance::start_with(Options { config, private_network: true, ..Options::default() });
    let own = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_ne!(own(instance.supervisor_pid()), own(std::process::id()), "it is in a network of its own");
    let log = instance.log();
    assert!(log.contains(&format!("somebody else listens on {address}")), "{log}");
    let status = |instance: &Instance| instance.control().request("GET", "/v1/status", &[], b"").json();
    assert_eq!(status(&instance)["metrics"], Value::Null);
    instance.create_probe("f", json!({ "MemorySize": 128, "Timeout": 10 }));
    instance.call("f", &json!({ "do": "echo" }));

    // The port is free now, and a reload tries again.
    drop(somebody);
    host::signal(instance.supervisor_pid(), Signal::SIGHUP);
    host::eventually("metrics are served", || is_served(address));
    assert_eq!(status(&instance)["metrics"], json!(address.to_string()));
    for pid in [instance.processes("server"), instance.processes("launcher")].concat() {
        assert_eq!(own(pid), own(instance.supervisor_pid()), "nobody but the socket is in the host's network");
    }
    // The address is the supervisor's, so it outlives a server.
    host::kill(instance.processes("server")[0]);
    host::eventually("the next server serves them", || is_served(address));
    instance.call("f", &json!({ "do": "echo" }));

    // And a reload ends it.
    let text = fs::read_to_string(instance.config_path()).unwrap();
    fs::write(instance.config_path(), text.replace("metrics_listen", "#metrics_listen")).unwrap();
    host::signal(instance.supervisor_pid(), Signal::SIGHUP);
    let refused = || TcpStream::connect(address).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    host::eventually("nobody listens there any more", refused);
    assert_eq!(status(&instance)["metrics"], Value::Null);
    assert!(instance.stop().success());
}
