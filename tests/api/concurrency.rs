//! Reserved concurrency, as far as it is asked for and stored; `tests/engine/concurrency.rs` has what it does.

use serde_json::{Value, json};

use crate::doors::{House, Reply, assert_status, call, create};
use crate::{ARN, function};

fn path(name: &str) -> String {
    format!("/2017-10-31/functions/{name}/concurrency")
}

async fn reserve(house: &House, name: &str, number: Value) -> Reply {
    call(house, "PUT", &path(name), json!({ "ReservedConcurrentExecutions": number }).to_string()).await
}

async fn reserved(house: &House, name: &str) -> Value {
    let reply = call(house, "GET", &format!("/2019-09-30/functions/{name}/concurrency"), "").await;
    assert_status(&reply, 200);
    reply.json()
}

#[tokio::test]
async fn a_reserve_is_stored_shown_told_to_the_engine_and_removed() {
    let house = House::open();
    create(&house, "f").await;
    let before = call(&house, "GET", &function("f"), "").await.json();
    assert_eq!((reserved(&house, "f").await, before.get("Concurrency")), (json!({}), None));
    for number in [900, 0] {
        let reply = reserve(&house, "f", number.into()).await;
        assert_status(&reply, 200);
        let told = json!({ "ReservedConcurrentExecutions": number });
        assert_eq!((reply.json(), reserved(&house, "f").await), (told.clone(), told.clone()));
        let shown = call(&house, "GET", &function("f"), "").await.json();
        assert_eq!((&shown["Concurrency"], &shown["Configuration"]), (&told, &before["Configuration"]), "nothing else changes");
    }
    let reply = call(&house, "DELETE", &path("f"), "").await;
    assert_eq!((reply.status, reply.body.len()), (204, 0));
    assert_eq!(reserved(&house, "f").await, json!({}));
    assert_eq!(call(&house, "GET", &function("f"), "").await.json(), before);
    assert_eq!(*house.fakes.changed.lock().unwrap(), ["f", "f", "f"]);
}

#[tokio::test]
async fn a_hundred_stay_unreserved_and_a_deleted_function_frees_its_own() {
    let house = House::open();
    create(&house, "f").await;
    create(&house, "g").await;
    assert_status(&reserve(&house, "f", 800.into()).await, 200);
    let refused = async |name: &str, number: i64| {
        let reply = reserve(&house, name, number.into()).await;
        assert_eq!((reply.status, reply.header("x-amzn-errortype")), (400, Some("InvalidParameterValueException")));
        assert_eq!(
            reply.json()["message"],
            "Specified ReservedConcurrentExecutions for function decreases account's UnreservedConcurrentExecution below its \
             minimum value of [100]."
        );
    };
    refused("g", 101).await;
    refused("f", 901).await;
    refused("g", 5_000_000_000).await;
    assert_status(&reserve(&house, "g", 100.into()).await, 200);
    assert_status(&call(&house, "DELETE", &function("f"), "").await, 204);
    assert_status(&reserve(&house, "g", 900.into()).await, 200);
    create(&house, "f").await;
    assert_eq!(reserved(&house, "f").await, json!({}), "a new function of that name has none");
}

#[tokio::test]
async fn mistakes_about_reserves_are_told_in_lambdas_words() {
    let house = House::open();
    create(&house, "f").await;
    let only = "This operation is permitted on Lambda functions only. Aliases and versions do not support this operation. Please \
                specify either a function name or an unqualified function ARN.";
    let arn = format!("{ARN}:f:$LATEST").replace(':', "%3A").replace('$', "%24");
    let unknown = format!("Function not found: {ARN}:nope");
    let get = |name: &str| format!("/2019-09-30/functions/{name}/concurrency");
    let rows = [
        ("PUT", path("f:1"), r#"{"ReservedConcurrentExecutions":1}"#, "InvalidParameterValueException", only),
        ("PUT", path(&arn), r#"{"ReservedConcurrentExecutions":1}"#, "InvalidParameterValueException", only),
        ("DELETE", path("f:alias"), "", "InvalidParameterValueException", only),
        ("GET", get("f:1"), "", "InvalidParameterValueException", only),
        ("PUT", path("nope"), r#"{"ReservedConcurrentExecutions":1}"#, "ResourceNotFoundException", unknown.as_str()),
        ("DELETE", path("nope"), "", "ResourceNotFoundException", unknown.as_str()),
        ("GET", get("nope"), "", "ResourceNotFoundException", unknown.as_str()),
        (
            "PUT",
            path("f"),
            r#"{"ReservedConcurrentExecutions":-1}"#,
            "ValidationException",
            "1 validation error detected: Value '-1' at 'reservedConcurrentExecutions' failed to satisfy constraint: Member must \
             have value greater than or equal to 0",
        ),
        (
            "PUT",
            path("f"),
            "{}",
            "ValidationException",
            "1 validation error detected: Value null at 'reservedConcurrentExecutions' failed to satisfy constraint: Member must \
             not be null",
        ),
        ("GET", path("f"), "", "MethodNotAllowedException", "GET is not an operation on /2017-10-31/functions/f/concurrency"),
    ];
    for (method, path, body, kind, text) in rows {
        let reply = call(&house, method, &path, body).await;
        assert_eq!(reply.header("x-amzn-errortype"), Some(kind), "{method} {path} {body}");
        let body = reply.json();
        assert_eq!(body.get("message").or(body.get("Message")).unwrap(), text, "{method} {path}");
    }
    assert_eq!(reserve(&house, "f", json!("many")).await.header("x-amzn-errortype"), Some("SerializationException"));
    assert_eq!(reserved(&house, "f").await, json!({}));
}
