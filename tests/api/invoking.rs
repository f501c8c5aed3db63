//! Invoke: what goes in comes out, and what the headers say.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::doors::{House, assert_status, call, create, send};
use crate::{ARN, invocations};

#[tokio::test]
async fn a_payload_goes_in_and_comes_out_byte_for_byte() {
    let house = House::open();
    create(&house, "echo").await;
    let payload = " {\"b\": 1,\n \"a\": \"\u{fc}\"} ";
    let context = STANDARD.encode("{\"client\":\n{}}");
    let trace = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=0";
    let headers = [("x-amz-client-context", context.as_str()), ("x-amzn-trace-id", trace), ("x-amz-log-type", "Tail")];
    let reply = send(&house, "POST", &format!("{}?Qualifier=$LATEST", invocations("echo")), &headers, payload).await;
    assert_status(&reply, 200);
    assert_eq!(reply.body, payload);
    let id = reply.header("x-amzn-requestid").unwrap();
    let log = format!("START RequestId: {id}\n");
    for (name, value) in [
        ("x-amz-executed-version", Some("$LATEST")),
        ("x-amz-function-error", None),
        ("x-amz-log-result", Some(STANDARD.encode(log).as_str())),
        ("x-amzn-trace-id", Some(trace)),
        ("content-type", Some("application/json")),
        ("x-amzn-remapped-content-length", Some("0")),
    ] {
        assert_eq!(reply.header(name), value, "{name}");
    }
    let invocations = house.fakes.invocations.lock().unwrap();
    let invocation = &invocations[0];
    assert_eq!(invocation.request.to_string(), id);
    assert_eq!(invocation.payload, payload);
    assert_eq!(invocation.client_context.as_deref(), Some("{\"client\": {}}"));
    assert_eq!(invocation.invoked_arn, format!("{ARN}:echo:$LATEST"));
    assert_eq!(invocation.trace, trace);
}

#[tokio::test]
async fn an_empty_body_is_an_empty_object_and_nothing_is_told_that_was_not_asked_for() {
    let house = House::open();
    create(&house, "echo").await;
    let reply = call(&house, "POST", &invocations("echo"), "").await;
    assert_eq!((reply.status, &reply.body[..]), (200, &b"{}"[..]));
    assert_eq!(reply.header("x-amz-log-result"), None);
}

#[tokio::test]
async fn a_failed_function_is_a_200_with_its_error() {
    let house = House::open();
    create(&house, "fails").await;
    create(&house, "times-out").await;
    let reply = call(&house, "POST", &invocations("fails"), "").await;
    assert_eq!((reply.status, reply.header("x-amz-function-error")), (200, Some("Unhandled")));
    assert_eq!(reply.body, r#"{"errorType":"Error","errorMessage":"no"}"#);
    let reply = call(&house, "POST", &invocations("times-out"), "").await;
    let id = reply.header("x-amzn-requestid").unwrap();
    assert_eq!(
        reply.body,
        format!(
            r#"{{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: {id} Error: Task timed out after 3.00 seconds"}}"#
        )
    );
}

#[tokio::test]
async fn a_dry_run_runs_nothing() {
    let house = House::open();
    create(&house, "f").await;
    let reply = send(&house, "POST", &invocations("f"), &[("x-amz-invocation-type", "DryRun")], "{}").await;
    assert_eq!((reply.status, reply.body.len()), (204, 0));
    assert!(house.fakes.invocations.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_payload_of_six_mebibytes_passes_and_one_byte_more_does_not() {
    let house = House::open();
    create(&house, "echo").await;
    let payload = |length: usize| format!("\"{}\"", "x".repeat(length - 2));
    assert_eq!(call(&house, "POST", &invocations("echo"), payload(6 << 20)).await.body.len(), 6 << 20);
    let reply = call(&house, "POST", &invocations("echo"), payload((6 << 20) + 1)).await;
    assert_eq!((reply.status, reply.header("x-amzn-errortype")), (413, Some("RequestTooLargeException")));
    assert_eq!(reply.json()["message"], "Request must be smaller than 6291456 bytes for the InvokeFunction operation");
    assert_eq!(house.fakes.invocations.lock().unwrap().len(), 1);
}
