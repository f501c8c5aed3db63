//! What callers are told who make mistakes, or come at a bad time.

use serde_json::{Value, json};

use crate::doors::{FUNCTIONS, House, call, create, creation};
use crate::doors::{assert_status, send};
use crate::{ARN, function, invocations};

/// One bad request and what it gets: status, type, and the body's members (a message ending in `…` is a beginning).
struct Bad<'a> {
    method: &'a str,
    path: String,
    body: String,
    status: u16,
    kind: &'a str,
    told: Value,
}

#[tokio::test]
async fn every_mistake_has_lambdas_status_type_and_text() {
    let house = House::open();
    create(&house, "f").await;
    let new = |changes: Value| creation("new", changes);
    let upper = |text: &str| json!({ "Type": "User", "Message": text });
    let lower = |text: &str| json!({ "Type": "User", "message": text });
    let bare = |text: &str| json!({ "message": text });
    let bad = |method, path: &str, body: String, status, kind, told| Bad { method, path: path.into(), body, status, kind, told };
    let (parameter, content) = ("InvalidParameterValueException", "InvalidRequestContentException");
    let (missing, validation) = ("ResourceNotFoundException", "ValidationException");
    let none = String::new;
    let tags = |name: &str| format!("/2017-03-31/tags/{ARN}:{name}");
    let table = [
        bad("GET", &function("nope"), none(), 404, missing, upper(&format!("Function not found: {ARN}:nope"))),
        bad("DELETE", &function("nope"), none(), 404, missing, upper(&format!("Function not found: {ARN}:nope"))),
        bad("POST", &invocations("nope"), none(), 404, missing, upper(&format!("Function not found: {ARN}:nope:$LATEST"))),
        bad("POST", &invocations("f:7"), none(), 404, missing, upper(&format!("Function not found: {ARN}:f:7"))),
        bad(
            "POST",
            &format!("{}?Qualifier=live", invocations("f")),
            none(),
            404,
            missing,
            upper(&format!("Function not found: {ARN}:f:live")),
        ),
        bad(
            "GET",
            &function("arn:aws:lambda:eu-west-1:000000000000:function:f"),
            none(),
            404,
            missing,
            upper("Functions from 'eu-west-1' are not reachable in this region ('us-east-1')"),
        ),
        bad(
            "GET",
            &format!("{}?Qualifier=2", function("f:1")),
            none(),
            400,
            parameter,
            lower("The derived qualifier from the function name does not match the specified qualifier."),
        ),
        bad(
            "GET",
            &function("a%20b"),
            none(),
            400,
            validation,
            bare(
                "1 validation error detected: Value 'a b' at 'functionName' failed to satisfy constraint: Member must satisfy regular expression pattern: …",
            ),
        ),
        bad(
            "DELETE",
            &format!("{}?Qualifier=$LATEST", function("f")),
            none(),
            400,
            parameter,
            lower("$LATEST version cannot be deleted without deleting the function."),
        ),
        bad("POST", FUNCTIONS, creation("f", json!({})), 409, "ResourceConflictException", lower("Function already exist: f")),
        bad("POST", FUNCTIONS, "{".into(), 400, content, lower("Could not parse request body into json: …")),
        bad("POST", FUNCTIONS, new(json!({ "Timeout": "3" })), 400, "SerializationException", upper("invalid type: string…")),
        bad(
            "POST",
            FUNCTIONS,
            new(json!({ "Role": null })),
            400,
            validation,
            bare("1 validation error detected: Value null at 'role' failed to satisfy constraint: Member must not be null"),
        ),
        bad(
            "POST",
            FUNCTIONS,
            "{}".into(),
            400,
            validation,
            bare("3 validation errors detected: Value null at 'functionName' failed…"),
        ),
        bad(
            "POST",
            FUNCTIONS,
            creation(&"x".repeat(65), json!({})),
            400,
            parameter,
            lower(&format!(
                "1 validation error detected: Value '{}' at 'functionName' failed to satisfy constraint: Member must have length less than or equal to 64",
                "x".repeat(65)
            )),
        ),
        bad(
            "POST",
            FUNCTIONS,
            new(json!({ "Handler": null })),
            400,
            parameter,
            lower("Runtime and Handler are mandatory parameters for functions created with deployment packages."),
        ),
        bad(
            "POST",
            FUNCTIONS,
            new(json!({ "Runtime": "node99" })),
            400,
            parameter,
            lower(
                "Value node99 at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: [nodejs8.10, provided.al2023] or be a valid ARN",
            ),
        ),
        bad(
            "POST",
            FUNCTIONS,
            new(json!({ "MemorySize": 3072 })),
            400,
            parameter,
            lower("'MemorySize' value failed to satisfy constraint: Member must have value less than or equal to 3008"),
        ),
        bad(
            "POST",
            FUNCTIONS,
            new(json!({ "FunctionName": "new:1" })),
            400,
            validation,
            bare(
                "1 validation error detected: Value 'new:1' at 'functionName' failed to satisfy constraint: Member must satisfy regular…",
            ),
        ),
        bad(
            "POST",
            FUNCTIONS,
            new(json!({ "FunctionName": "111111111111:function:new" })),
            403,
            "AccessDeniedException",
            upper("not authorized to create a function in account 111111111111: this is account 000000000000"),
        ),
        bad(
            "POST",
            FUNCTIONS,
            new(json!({ "Code": { "ZipFile": "" } })),
            400,
            parameter,
            lower("Uploaded file must be a non-empty zip"),
        ),
        bad(
            "POST",
            FUNCTIONS,
            new(json!({ "Code": { "ZipFile": "emlw", "S3Bucket": "b" } })),
            400,
            parameter,
            lower("Please do not provide other FunctionCode parameters when providing a ZipFile."),
        ),
        bad("POST", FUNCTIONS, new(json!({ "Code": {} })), 400, parameter, lower("Please provide a source for function code.")),
        bad(
            "POST",
            FUNCTIONS,
            new(json!({ "Code": { "S3Bucket": "b", "S3Key": "k" } })),
            400,
            parameter,
            lower(
                "Error occurred while GetObject. S3 Error Code: NoSuchBucket. S3 Error Message: The specified bucket does not exist",
            ),
        ),
        bad(
            "POST",
            FUNCTIONS,
            new(json!({ "Code": { "ZipFile": "§" } })),
            400,
            "SerializationException",
            upper("ZipFile is not base64: …"),
        ),
        bad(
            "PUT",
            &format!("{}/code", function("f")),
            r#"{"ZipFile":"emlw","RevisionId":"nope"}"#.into(),
            412,
            "PreconditionFailedException",
            lower(
                "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to retrieve the latest Revision Id",
            ),
        ),
        bad(
            "PUT",
            &format!("{}/configuration", function("f")),
            r#"{"RevisionId":"nope"}"#.into(),
            412,
            "PreconditionFailedException",
            lower("The Revision Id provided does not match the latest Revision Id. …"),
        ),
        bad(
            "PUT",
            &format!("{}/code", function("nope")),
            r#"{"ZipFile":"emlw"}"#.into(),
            404,
            missing,
            upper(&format!("Function not found: {ARN}:nope")),
        ),
        bad(
            "POST",
            &invocations("f"),
            "{'a':1}".into(),
            400,
            content,
            lower("Could not parse request body into json: Could not parse payload into json: …"),
        ),
        bad(
            "GET",
            &format!("{FUNCTIONS}?MaxItems=0"),
            none(),
            400,
            validation,
            bare(
                "1 validation error detected: Value '0' at 'maxItems' failed to satisfy constraint: Member must have value greater than or equal to 1",
            ),
        ),
        bad(
            "GET",
            &format!("{FUNCTIONS}?MaxItems=10001"),
            none(),
            400,
            validation,
            bare(
                "1 validation error detected: Value '10001' at 'maxItems' failed to satisfy constraint: Member must have value less than or equal to 10000",
            ),
        ),
        bad(
            "GET",
            &format!("{FUNCTIONS}?MaxItems=x"),
            none(),
            400,
            "SerializationException",
            upper("STRING_VALUE can not be converted to an Integer"),
        ),
        bad(
            "GET",
            &format!("{FUNCTIONS}?FunctionVersion=7"),
            none(),
            400,
            validation,
            bare(
                "1 validation error detected: Value '7' at 'functionVersion' failed to satisfy constraint: Member must satisfy enum value set: [ALL]",
            ),
        ),
        bad(
            "GET",
            &format!("{}/policy", function("f")),
            none(),
            404,
            missing,
            upper("The resource you requested does not exist."),
        ),
        bad(
            "GET",
            &format!("{}/policy", function("nope")),
            none(),
            404,
            missing,
            upper(&format!("Function not found: {ARN}:nope")),
        ),
        bad(
            "GET",
            &format!("{}/versions", function("nope")),
            none(),
            404,
            missing,
            upper(&format!("Function not found: {ARN}:nope")),
        ),
        bad(
            "GET",
            "/2020-06-30/functions/nope/code-signing-config",
            none(),
            404,
            missing,
            upper(&format!("Function not found: {ARN}:nope")),
        ),
        bad("GET", &tags("nope"), none(), 404, missing, upper(&format!("Function not found: {ARN}:nope"))),
        bad(
            "GET",
            "/2017-03-31/tags/f",
            none(),
            400,
            validation,
            bare(
                "1 validation error detected: Value 'f' at 'resource' failed to satisfy constraint: Member must satisfy regular expression pattern: arn:…",
            ),
        ),
        bad(
            "GET",
            &tags("f:$LATEST"),
            none(),
            400,
            parameter,
            lower("Tags on function aliases and versions are not supported. Please specify a function ARN."),
        ),
        bad(
            "POST",
            &tags("f"),
            r#"{"Tags":{}}"#.into(),
            400,
            parameter,
            lower("An error occurred and the request cannot be processed."),
        ),
        bad("POST", &tags("f"), "{}".into(), 400, validation, bare("1 validation error detected: Value null at 'tags'…")),
        bad("DELETE", &tags("f"), none(), 400, validation, bare("1 validation error detected: Value null at 'tagKeys'…")),
        bad("PUT", &tags("f"), none(), 405, "MethodNotAllowedException", lower("PUT is not an operation on …")),
        bad("GET", "/kiln/code/../../db/kiln.db", none(), 404, "UnknownOperationException", lower("Kiln has no operation GET …")),
        bad("GET", "/kiln/code/..%2Fdb%2Fkiln.db", none(), 404, missing, upper("no function's code is named ../db/kiln.db")),
        bad(
            "GET",
            &format!("{FUNCTIONS}?Marker=x"),
            none(),
            400,
            parameter,
            lower("The Marker is not one that ListFunctions has given"),
        ),
        bad("PATCH", &function("f"), none(), 405, "MethodNotAllowedException", lower("PATCH is not an operation on …")),
        bad("GET", "/", none(), 404, "UnknownOperationException", lower("Kiln has no operation GET …")),
    ];
    for bad in table {
        let what = format!("{} {} {}", bad.method, bad.path, bad.body);
        let reply = call(&house, bad.method, &bad.path, bad.body).await;
        assert_eq!((reply.status, reply.header("x-amzn-errortype")), (bad.status, Some(bad.kind)), "{what}: {reply:?}");
        assert_eq!(reply.header("content-type"), Some("application/json"), "{what}");
        assert!(reply.header("x-amzn-requestid").is_some_and(|id| id.len() == 36), "{what}");
        assert_told(&reply.json(), &bad.told, &what);
    }
    assert_eq!(house.fakes.invocations.lock().unwrap().len(), 0, "no mistake reached the engine");
    assert_eq!(*house.fakes.orders.lock().unwrap(), ["unpack", "adopt"], "no mistake reached the disk");
}

#[track_caller]
fn assert_told(told: &Value, expected: &Value, what: &str) {
    let (told, expected) = (told.as_object().unwrap(), expected.as_object().unwrap());
    assert_eq!(told.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    for (member, expected) in expected {
        let (told, expected) = (told[member].as_str().unwrap(), expected.as_str().unwrap());
        match expected.strip_suffix('…') {
            Some(beginning) => assert!(told.starts_with(beginning), "{what}: {told}"),
            None => assert_eq!(told, expected, "{what}"),
        }
    }
}

#[tokio::test]
async fn a_refused_invocation_has_its_reason() {
    let house = House::open();
    let rows = [
        ("no-memory", 429, "TooManyRequestsException", Some("ConcurrentInvocationLimitExceeded")),
        ("no-starts", 429, "TooManyRequestsException", Some("ConcurrentInvocationLimitExceeded")),
        ("too-many", 429, "TooManyRequestsException", Some("ConcurrentInvocationLimitExceeded")),
        ("reserved", 429, "TooManyRequestsException", Some("ReservedFunctionConcurrentInvocationLimitExceeded")),
        ("stopping", 500, "ServiceException", None),
        ("broken", 500, "ServiceException", None),
        ("vanished", 404, "ResourceNotFoundException", None),
    ];
    for (name, status, kind, reason) in rows {
        create(&house, name).await;
        let reply = call(&house, "POST", &invocations(name), "").await;
        assert_eq!((reply.status, reply.header("x-amzn-errortype")), (status, Some(kind)), "{name}");
        assert_eq!(reply.header("retry-after"), (status == 429).then_some("1"), "{name}");
        let body = reply.json();
        assert_eq!(body.get("Reason").and_then(Value::as_str), reason, "{name}");
        assert_eq!(body["Type"], if status == 500 { "Service" } else { "User" }, "{name}");
        if status == 429 {
            assert_eq!(body["message"], "Rate Exceeded.", "{name}");
        }
    }
}

#[tokio::test]
async fn of_several_mistakes_the_first_in_lambdas_order_is_told() {
    let house = House::open();
    create(&house, "f").await;
    let large = "x".repeat((6 << 20) + 1);
    let wrong_type = [("x-amz-invocation-type", "Later")];
    for (path, headers, body, status) in [
        (invocations("a%20b"), &wrong_type[..], large.as_str(), 400),
        (invocations("nope"), &wrong_type[..], "{", 400),
        (invocations("nope"), &[], large.as_str(), 404),
        (invocations("nope"), &[], "{", 404),
        (invocations("f"), &[], large.as_str(), 413),
        (invocations("f"), &[], "{", 400),
    ] {
        assert_status(&send(&house, "POST", &path, headers, body.to_owned()).await, status);
    }
}
