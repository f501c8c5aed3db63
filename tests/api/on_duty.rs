//! The door for people on duty.

use std::os::unix::net::UnixStream;

use serde_json::json;

use crate::doors::{House, Reply, over, shown_pool, snapshot};

async fn ask(house: &House, method: &str, path: &str) -> Reply {
    over(UnixStream::connect(house.run_dir().join("control.sock")).unwrap(), method, path, &[], "").await
}

#[tokio::test]
async fn the_pool_is_shown_as_it_is() {
    let house = House::open();
    *house.fakes.snapshot.lock().unwrap() = snapshot();
    let reply = ask(&house, "GET", "/v1/pool").await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    assert_eq!(reply.json(), shown_pool());
}

#[tokio::test]
async fn who_answers_is_told() {
    let house = House::open();
    let status = ask(&house, "GET", "/v1/status").await.json();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&status["instance"], &status["server_pid"]), (&json!("test"), &json!(std::process::id())));
    assert!(status["uptime_s"].is_u64());
}

#[tokio::test]
async fn metrics_are_text_that_prometheus_reads() {
    let house = House::open();
    *house.fakes.snapshot.lock().unwrap() = snapshot();
    let reply = ask(&house, "GET", "/v1/metrics").await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/plain; version=0.0.4; charset=utf-8")));
    let text = String::from_utf8(reply.body.to_vec()).unwrap();
    assert!(text.contains("# TYPE kiln_memory_budget_bytes gauge\nkiln_memory_budget_bytes 0\n"), "{text}");
}

#[tokio::test]
async fn nothing_else_is_here_and_nothing_else_can_be_changed() {
    let house = House::open();
    for (method, path, status) in [
        ("GET", "/", 404),
        ("GET", "/v1/pool/x", 404),
        ("POST", "/v1/pool", 405),
        ("POST", "/v1/events", 405),
        ("GET", "/v1/events?kind=x", 400),
        ("GET", "/v1/events?since=1", 400),
        ("POST", "/v1/history", 405),
        ("GET", "/v1/history?limit=0", 400),
        ("DELETE", "/v1/status", 405),
        ("POST", "/v1/metrics", 405),
        ("GET", "/metrics", 404),
        ("GET", "/v1/functions/nope/logs", 404),
        ("GET", "/v1/functions/..%2f..%2fdb/logs", 404),
        ("POST", "/v1/functions/nope/logs", 405),
        ("POST", "/v1/functions/nope/drain", 404),
        ("POST", "/v1/functions/..%2fx/drain", 404),
        ("GET", "/v1/functions/hello/drain", 405),
        ("POST", "/v1/containers/3-18/kill", 404),
        ("POST", "/v1/containers/3-18/recycle", 404),
        ("POST", "/v1/containers/3-17/x/kill", 404),
        ("POST", "/v1/containers//kill", 404),
        ("GET", "/v1/containers/3-17/kill", 405),
        ("DELETE", "/v1/containers/3-17/recycle", 405),
        ("GET", "/2015-03-31/functions", 404),
    ] {
        assert_eq!(ask(&house, method, path).await.status, status, "{method} {path}");
    }
}

#[tokio::test]
async fn who_ends_something_is_told_what_became_of_it_and_is_named() {
    let house = House::open();
    let busy = || {
        let mut seen = snapshot();
        seen.environments[0].state = kiln::server::pool::SeenState::Busy;
        seen
    };
    let cases = [
        ("/v1/containers/3-17/recycle", snapshot(), json!({ "state": "idle", "ended": true })),
        ("/v1/containers/3-17/recycle", busy(), json!({ "state": "busy", "ended": false })),
        ("/v1/containers/3%2D17/kill", busy(), json!({ "state": "busy", "ended": true })),
        ("/v1/functions/hello/drain", busy(), json!({ "ended": 0, "leaving": 1 })),
    ];
    for (path, seen, mut expected) in cases {
        *house.fakes.snapshot.lock().unwrap() = seen;
        let reply = ask(&house, "POST", path).await;
        expected["function"] = json!("hello");
        if path.contains("containers") {
            expected["container"] = json!("3-17");
        }
        assert_eq!((reply.status, reply.json()), (200, expected), "{path}");
    }
    let uid = nix::unistd::geteuid();
    assert_eq!(*house.fakes.killed_by.lock().unwrap(), [format!("uid {uid} (kiln container kill)")]);
    let reply = ask(&house, "POST", "/v1/containers/3-18/kill").await;
    assert_eq!(reply.header("x-amzn-errortype"), Some("ResourceNotFoundException"));
}
