//! The door for people on duty.

use std::os::unix::net::UnixStream;

use serde_json::json;

use crate::doors::{House, Reply, over, snapshot};

async fn ask(house: &House, method: &str, path: &str) -> Reply {
    over(UnixStream::connect(house.run_dir().join("control.sock")).unwrap(), method, path, &[], "").await
}

#[tokio::test]
async fn the_pool_is_shown_as_it_is() {
    let house = House::open();
    *house.fakes.snapshot.lock().unwrap() = snapshot();
    let reply = ask(&house, "GET", "/v1/pool").await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    assert_eq!(reply.json(), serde_json::to_value(snapshot()).unwrap());
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
async fn nothing_else_is_here_and_nothing_can_be_changed() {
    let house = House::open();
    for (method, path, status) in [
        ("GET", "/", 404),
        ("GET", "/v1/pool/x", 404),
        ("POST", "/v1/pool", 405),
        ("DELETE", "/v1/status", 405),
        ("GET", "/v1/functions/nope/logs", 404),
        ("GET", "/v1/functions/..%2f..%2fdb/logs", 404),
        ("POST", "/v1/functions/nope/logs", 405),
        ("GET", "/2015-03-31/functions", 404),
    ] {
        assert_eq!(ask(&house, method, path).await.status, status, "{method} {path}");
    }
}
