//! The probe's broken HTTP against the real Runtime API: each case, the statuses it gets, and that the environment
//! goes on with the next event as if nothing had been.

#[path = "probe/built.rs"]
mod built;

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use built::built_probe;
use bytes::Bytes;
use hyper::HeaderMap;
use kiln::invocation::RequestId;
use kiln::server::runtime_api::{AfterWrite, Desk, Event, Init, MAX_CONNECTIONS, Reply, serve};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::timeout;

/// No case takes longer, or the test fails.
const PATIENCE: Duration = Duration::from_secs(60);
/// 6 MiB and 100 bytes.
const LIMIT: usize = 6_291_556;

#[tokio::test]
async fn every_hostile_case_gets_its_status_and_harms_nothing() {
    let mut function = Function::start().await;
    // The case, what the function sees, and what the caller gets where the case answers the invocation itself.
    let cases: [(Value, Value, Option<Reply>); 18] = [
        // A client may send 1 MiB in a header, see lambda-semantics: the function's X-Ray cause.
        (json!({"case": "headers", "n": 1 << 20}), json!([200]), None),
        // hyper looks at its bound after each read, and a read may be as large as the bound: what is sure is twice of it.
        (json!({"case": "headers", "n": 5 << 20}), json!([431]), None),
        (json!({"case": "many_headers", "n": 100}), json!([200]), None),
        (json!({"case": "many_headers", "n": 1000}), json!([431]), None),
        (json!({"case": "garbage"}), json!([400]), None),
        (json!({"case": "unknown_path"}), json!([404]), None),
        (json!({"case": "wrong_method"}), json!([405]), None),
        (json!({"case": "late_init_error"}), json!([403]), None),
        (json!({"case": "wrong_id"}), json!([400]), None),
        (json!({"case": "next_again"}), json!([{"status": 200, "same": true}]), None),
        (json!({"case": "pipelined"}), json!([200, 200]), None),
        (json!({"case": "short_body"}), json!([400]), None),
        (json!({"case": "two_lengths"}), json!([400]), None),
        (json!({"case": "double"}), json!([202, 403]), Some(Reply::Response("\"first\"".into()))),
        (json!({"case": "trailers"}), json!([202]), Some(Reply::Response("\"chunked\"".into()))),
        (json!({"case": "expect"}), json!([100, 202]), Some(Reply::Response("1234".into()))),
        (json!({"case": "limit"}), json!([202]), Some(Reply::Response(vec![b'1'; LIMIT].into()))),
        (json!({"case": "over"}), json!([413, 403]), Some(Reply::TooLarge)),
    ];
    for (case, statuses, answer) in cases {
        let (reply, report) = function.hostile(&case).await;
        assert_eq!(report["statuses"], statuses, "{case}");
        if let Some(answer) = answer {
            assert!(reply == answer, "{case}: the caller gets something else");
        }
        let echo = br#"{"do": "echo"}"#;
        assert_eq!(function.invoke(echo).await, Reply::Response(Bytes::from_static(echo)), "after {case}");
    }
}

#[tokio::test]
async fn connections_are_bounded() {
    let mut function = Function::start().await;
    let (_, report) = function.hostile(&json!({"case": "connections", "n": MAX_CONNECTIONS + 8})).await;
    let statuses = report["statuses"].as_array().expect("a list");
    // The function's own connection, on which it got this event, is one of them.
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), MAX_CONNECTIONS - 1, "{statuses:?}");
}

#[tokio::test]
async fn a_head_that_trickles_is_cut_and_a_resting_connection_is_not() {
    let mut function = Function::start().await;
    let (_, report) = function.hostile(&json!({"case": "slow", "n": 30})).await;
    let after = report["statuses"][0]["after_ms"].as_u64().expect("a time");
    // Meanwhile the connection of the function's own client rested as long.
    assert!((9_000..15_000).contains(&after), "{report}");
    assert!(matches!(function.invoke(b"{}").await, Reply::Response(_)));
}

/// The probe as a runtime, and the environment's end of its Runtime API.
struct Function {
    desk: Arc<Desk>,
    runtime: Child,
}

impl Function {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let desk = Arc::new(Desk::default());
        tokio::spawn(serve(listener, desk.clone()));
        let runtime = Command::new(built_probe())
            .env("AWS_LAMBDA_RUNTIME_API", address)
            .stdin(Stdio::null())
            .spawn()
            .expect("start the probe");
        assert_eq!(timeout(PATIENCE, desk.init()).await.expect("its init"), Init::Ready);
        Self { desk, runtime }
    }

    async fn invoke(&mut self, event: &[u8]) -> Reply {
        let request = RequestId::new();
        let mut headers = HeaderMap::new();
        headers.insert("lambda-runtime-aws-request-id", request.to_string().parse().unwrap());
        let event = Event { request, headers, payload: Bytes::copy_from_slice(event) };
        self.desk.deliver(event, AfterWrite::new(|| ())).expect("the runtime asks");
        let reply = timeout(PATIENCE, self.desk.reply()).await.expect("a reply");
        timeout(PATIENCE, self.desk.asked_again()).await.expect("asks again");
        reply
    }

    /// The caller's reply and the function's report, which are the same unless the case answers itself.
    async fn hostile(&mut self, case: &Value) -> (Reply, Value) {
        let mut event = case.clone();
        event["do"] = "hostile".into();
        let reply = self.invoke(event.to_string().as_bytes()).await;
        let parsed = |reply: &Reply| match reply {
            Reply::Response(body) => serde_json::from_slice(body).ok().filter(|told: &Value| told["statuses"].is_array()),
            _ => None,
        };
        let report = match parsed(&reply) {
            Some(report) => report,
            None => parsed(&self.invoke(br#"{"do": "report"}"#).await).expect("a report"),
        };
        (reply, report)
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        let _ = self.runtime.kill();
        let _ = self.runtime.wait();
    }
}
