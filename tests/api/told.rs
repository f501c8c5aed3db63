//! Events and the history at the door for people on duty.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use kiln::function::FunctionName;
use kiln::server::events::{Cold, Events, Subject, What};
use serde_json::{Value, json};

use crate::doors::{House, ended_environment, over};

fn events(house: &House) -> Events {
    house.fakes.events.lock().unwrap().clone().unwrap()
}

fn of(function: &str) -> Subject {
    Subject::environment(&FunctionName::parse(function).unwrap(), "3-17")
}

fn objects(text: &str) -> Vec<Value> {
    text.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn ask(house: &House, path: &str) -> Vec<Value> {
    let reply = over(UnixStream::connect(house.run_dir().join("control.sock")).unwrap(), "GET", path, &[], "").await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/jsonl")), "{path}");
    objects(std::str::from_utf8(&reply.body).unwrap())
}

/// One that reads as it likes: a request, then its answer's lines (in chunks; a chunk's length is no object).
fn listen(house: &House, query: &str) -> BufReader<UnixStream> {
    let mut stream = UnixStream::connect(house.run_dir().join("control.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(stream, "GET /v1/events?{query} HTTP/1.1\r\nHost: kiln\r\n\r\n").unwrap();
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
    }
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("x-kiln-seq: "), "{head}");
    reader
}

fn next(reader: &mut BufReader<UnixStream>) -> Value {
    loop {
        let mut line = String::new();
        assert!(reader.read_line(&mut line).unwrap() > 0, "the stream has ended");
        if line.starts_with('{') {
            return serde_json::from_str(&line).unwrap();
        }
    }
}

#[tokio::test]
async fn what_is_kept_is_told_by_function_kind_and_place() {
    let house = House::open();
    let emit = |function: &str, what| events(&house).emit(&of(function), None, what);
    emit("a", What::Starting { why: Cold::First });
    emit("a", What::Frozen);
    emit("b", What::Frozen);
    emit("c", What::Thawed);
    let names = |told: Vec<Value>| -> Vec<String> {
        told.iter().map(|event| format!("{} {}", event["function"].as_str().unwrap(), event["event"].as_str().unwrap())).collect()
    };
    let all = ask(&house, "/v1/events").await;
    let third = all[2]["seq"].as_u64().unwrap();
    assert_eq!(names(all), ["a starting", "a frozen", "b frozen", "c thawed"]);
    assert_eq!(names(ask(&house, "/v1/events?function=a&function=c").await), ["a starting", "a frozen", "c thawed"]);
    assert_eq!(names(ask(&house, "/v1/events?kind=frozen&tail=1").await), ["b frozen"]);
    assert_eq!(names(ask(&house, &format!("/v1/events?since_seq={third}")).await), ["b frozen", "c thawed"]);
    assert_eq!(ask(&house, "/v1/events?container=3-18").await, [] as [Value; 0]);
    assert_eq!(ask(&house, "/v1/events?since_ms=32503680000000").await, [] as [Value; 0]);
}

#[test]
fn a_follower_hears_at_once_and_its_stream_ends_whole_when_the_house_stops() {
    let mut house = House::open();
    let events = events(&house);
    events.emit(&of("old"), None, What::Frozen);
    let mut reader = listen(&house, "follow=1&tail=0");
    for function in ["a", "b"] {
        events.emit(&of(function), None, What::Frozen);
        assert_eq!(next(&mut reader)["function"], function);
    }
    events.emit(&Subject::NOBODY, None, What::Draining);
    house.stop();
    let mut rest = String::new();
    reader.read_to_string(&mut rest).expect("an end, no reset");
    assert_eq!(objects(&rest).len(), 1, "{rest}");
    assert!(rest.ends_with("\r\n0\r\n\r\n"), "the last chunk: {rest:?}");
    drop(events);
    house.closed();
}

#[test]
fn a_listener_that_does_not_read_holds_nobody_up_and_is_told_how_many_it_missed() {
    let house = House::open();
    let events = events(&house);
    let mut reader = listen(&house, "follow=1&tail=0");
    // Far more than what the socket, both ends of the connection and the ring take.
    let emitted: u64 = 60_000;
    for _ in 0..emitted {
        events.emit(&of("flood"), None, What::Frozen);
    }
    events.emit(&of("flood"), None, What::Thawed);
    let (mut heard, mut lost) = (0, 0);
    loop {
        let event = next(&mut reader);
        match event["event"].as_str().unwrap() {
            "lost" => lost += event["lost"].as_u64().unwrap(),
            "thawed" => break,
            _ => heard += 1,
        }
    }
    assert!(lost > 0);
    assert_eq!(heard + lost, emitted, "each is heard or counted");
}

#[test]
fn listeners_are_bounded_and_one_that_goes_away_makes_room() {
    let house = House::open();
    let mut readers: Vec<_> = (0..64).map(|_| listen(&house, "follow=1")).collect();
    let asked = || {
        let mut stream = UnixStream::connect(house.run_dir().join("control.sock")).unwrap();
        write!(stream, "GET /v1/events HTTP/1.1\r\nHost: kiln\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(asked().starts_with("HTTP/1.1 503 "));
    readers.pop();
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while !asked().starts_with("HTTP/1.1 200 ") {
        assert!(std::time::Instant::now() < until, "the place of who went away stays taken");
        std::thread::sleep(Duration::from_millis(5)); // the pace of looking
    }
}

#[test]
fn the_history_is_told_by_function_and_container() {
    let house = House::open();
    ended_environment(&house);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ask = |query: &str| {
        let reply = runtime.block_on(async {
            let stream = UnixStream::connect(house.run_dir().join("control.sock")).unwrap();
            over(stream, "GET", &format!("/v1/history?{query}"), &[], "").await
        });
        assert_eq!(reply.status, 200);
        reply.json()["environments"].as_array().unwrap().clone()
    };
    assert_eq!(
        ask("function=hello"),
        [json!({
            "function": "hello", "version": "$LATEST", "container": "3-17", "request": "8f50ee1c-2f3d-4a4e-9f63-0d9c5c6a7b1e",
            "cold": "busy", "started_ms": 0, "build_us": 1000, "init_us": 2000, "ended_ms": 1000, "why": "failed",
            "cause": "Sandbox.Timedout", "text": "Task timed out after 3.00 seconds", "by": null, "needed_by": null,
            "invocations": 3, "peak_mib": 128,
        })]
    );
    assert_eq!(ask("function=other"), [] as [Value; 0]);
    assert_eq!(ask("container=3-18")[0]["ended_ms"], Value::Null, "it lives");
    assert_eq!(ask("living=1").len(), 2);
    assert_eq!(ask("living=1&limit=1")[0]["container"], "3-18");
    assert_eq!(ask("since_ms=1001"), [] as [Value; 0]);
}
