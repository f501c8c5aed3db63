//! The callers' door, from outside: bytes through a real Unix socket, and what Lambda's clients would make of the answers.

mod doors;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use doors::{ADMIN, FUNCTIONS, House, ROLE, assert_status, call, create, creation, over, send};
use kiln::wire::supervisor::{Unpacked, ZipRefusal};
use serde_json::{Value, json};

const ARN: &str = "arn:aws:lambda:us-east-1:000000000000:function";

fn function(name: &str) -> String {
    format!("{FUNCTIONS}/{name}")
}

fn invocations(name: &str) -> String {
    format!("{FUNCTIONS}/{name}/invocations")
}

#[tokio::test]
async fn a_function_is_pending_in_the_answer_and_active_with_another_revision_afterwards() {
    let house = House::open();
    let body = creation("f", json!({ "Environment": { "Variables": { "KEY": "value" } }, "Tags": { "team": "a" } }));
    let reply = call(&house, "POST", FUNCTIONS, body).await;
    assert_status(&reply, 201);
    let mut created = reply.json();
    let (modified, revision) = (created["LastModified"].take(), created["RevisionId"].take());
    let modified = modified.as_str().unwrap();
    assert_eq!((modified.len(), &modified[23..]), (28, "+0000"), "{modified}");
    assert_eq!(created["RuntimeVersionConfig"].take()["RuntimeVersionArn"].as_str().unwrap().len(), 98);
    let architecture = if cfg!(target_arch = "x86_64") { "x86_64" } else { "arm64" };
    assert_eq!(
        created,
        json!({
            "FunctionName": "f", "FunctionArn": format!("{ARN}:f"), "Runtime": "nodejs8.10", "Role": ROLE,
            "Handler": "index.handler", "CodeSize": 3, "Description": "", "Timeout": 3, "MemorySize": 128, "LastModified": null,
            "CodeSha256": kiln::code::Digest::of(b"zip").base64(), "Version": "$LATEST",
            "Environment": { "Variables": { "KEY": "value" } }, "TracingConfig": { "Mode": "PassThrough" }, "RevisionId": null,
            "State": "Pending", "StateReason": "The function is being created.", "StateReasonCode": "Creating",
            "PackageType": "Zip", "Architectures": [architecture], "EphemeralStorage": { "Size": 512 },
            "SnapStart": { "ApplyOn": "None", "OptimizationStatus": "Off" }, "RuntimeVersionConfig": null,
            "LoggingConfig": { "LogFormat": "Text", "LogGroup": "/aws/lambda/f" },
        })
    );

    let shown = call(&house, "GET", &function("f"), "").await.json();
    let configuration = &shown["Configuration"];
    assert_eq!((&configuration["State"], &configuration["LastUpdateStatus"]), (&json!("Active"), &json!("Successful")));
    assert!(configuration.get("StateReason").is_none());
    assert_ne!(configuration["RevisionId"], revision);
    assert_eq!(shown["Tags"], json!({ "team": "a" }));
    assert!(shown["Code"]["Location"].as_str().unwrap().ends_with(".zip"));
    assert_eq!(&call(&house, "GET", &format!("{}/configuration", function("f")), "").await.json(), configuration);
}

#[tokio::test]
async fn the_arn_is_qualified_only_when_the_request_was() {
    let house = House::open();
    create(&house, "f").await;
    for (name, query, arn) in [
        ("f", "", format!("{ARN}:f")),
        ("f", "?Qualifier=$LATEST", format!("{ARN}:f:$LATEST")),
        ("f:$LATEST", "", format!("{ARN}:f:$LATEST")),
        ("arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Af", "", format!("{ARN}:f")),
        ("000000000000:function:f", "", format!("{ARN}:f")),
    ] {
        let reply = call(&house, "GET", &format!("{}/configuration{query}", function(name)), "").await;
        assert_eq!(reply.json()["FunctionArn"], json!(arn), "{name}{query}");
    }
}

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
            validation,
            bare(&format!(
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
            bare("1 validation error detected: Value '0' at 'maxItems'…"),
        ),
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
    assert_eq!((reply.status, reply.header("x-amzn-errortype")), (413, Some("RequestEntityTooLargeException")));
    assert_eq!(reply.json()["message"], "Request must be smaller than 6291456 bytes for the InvokeFunction operation");
    assert_eq!(house.fakes.invocations.lock().unwrap().len(), 1);
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

#[tokio::test]
async fn an_update_is_seen_by_the_next_reader_and_told_to_the_engine() {
    let house = House::open();
    create(&house, "f").await;
    let before = call(&house, "GET", &function("f"), "").await.json()["Configuration"].clone();
    let body = json!({ "ZipFile": STANDARD.encode("new zip"), "RevisionId": before["RevisionId"] }).to_string();
    let reply = call(&house, "PUT", &format!("{}/code", function("f")), body).await;
    assert_status(&reply, 200);
    assert_eq!(reply.json()["LastUpdateStatus"], "InProgress");
    assert_eq!(reply.json()["State"], "Active");
    let body = json!({ "MemorySize": 512, "Environment": {} }).to_string();
    assert_status(&call(&house, "PUT", &format!("{}/configuration", function("f")), body).await, 200);
    let after = call(&house, "GET", &function("f"), "").await.json()["Configuration"].clone();
    assert_eq!(after["CodeSha256"], kiln::code::Digest::of(b"new zip").base64());
    assert_eq!((&after["MemorySize"], &after["Timeout"], &after["CodeSize"]), (&json!(512), &json!(3), &json!(7)));
    assert_eq!(after["LastUpdateStatus"], "Successful");
    assert_ne!(after["RevisionId"], before["RevisionId"]);
    assert_eq!(*house.fakes.changed.lock().unwrap(), ["f", "f"]);
}

#[tokio::test]
async fn a_dry_run_of_an_update_changes_nothing() {
    let house = House::open();
    create(&house, "f").await;
    let before = call(&house, "GET", &function("f"), "").await.json();
    let body = json!({ "ZipFile": STANDARD.encode("new zip"), "DryRun": true }).to_string();
    assert_status(&call(&house, "PUT", &format!("{}/code", function("f")), body).await, 200);
    assert_eq!(call(&house, "GET", &function("f"), "").await.json(), before);
}

#[tokio::test]
async fn one_change_of_a_function_at_a_time() {
    let house = House::open();
    create(&house, "f").await;
    let hold = house.hold_zips();
    let update = |zip: &str| json!({ "ZipFile": STANDARD.encode(zip) }).to_string();
    let path = format!("{}/code", function("f"));
    let first = call(&house, "PUT", &path, update("one"));
    let meanwhile = async {
        while house.fakes.orders.lock().unwrap().len() < 3 {
            tokio::task::yield_now().await;
        }
        let reply = call(&house, "PUT", &path, update("two")).await;
        assert_eq!((reply.status, reply.header("x-amzn-errortype")), (409, Some("ResourceConflictException")));
        let text = format!("The operation cannot be performed at this time. An update is in progress for resource: {ARN}:f");
        assert_eq!(reply.json()["message"], text);
        drop(hold);
    };
    let (first, ()) = tokio::join!(first, meanwhile);
    assert_status(&first, 200);
    assert_status(&call(&house, "PUT", &path, update("two")).await, 200);
}

#[tokio::test]
async fn a_deleted_function_is_gone_and_its_name_is_free() {
    let house = House::open();
    create(&house, "f").await;
    let reply = call(&house, "DELETE", &function("f"), "").await;
    assert_eq!((reply.status, reply.body.len()), (204, 0));
    assert_status(&call(&house, "GET", &function("f"), "").await, 404);
    assert_status(&call(&house, "POST", &invocations("f"), "").await, 404);
    create(&house, "f").await;
}

#[tokio::test]
async fn a_zip_at_fault_is_told_so_and_nothing_is_stored() {
    let house = House::open();
    for (refusal, text) in [
        (ZipRefusal::TooLarge, "Unzipped size must be smaller than 262144000 bytes"),
        (ZipRefusal::Unreadable, "Could not unzip uploaded file. Please check your file, then try to upload again."),
        (ZipRefusal::BadName, "Could not unzip uploaded file. Please check your file, then try to upload again."),
    ] {
        *house.fakes.unpacked.lock().unwrap() = Some(Unpacked::Refused(refusal));
        let reply = call(&house, "POST", FUNCTIONS, creation("f", json!({}))).await;
        assert_eq!((reply.status, reply.header("x-amzn-errortype")), (400, Some("InvalidParameterValueException")));
        assert_eq!(reply.json()["message"], text);
    }
    *house.fakes.unpacked.lock().unwrap() = Some(Unpacked::Failed { what: "no space left on device".into() });
    let reply = call(&house, "POST", FUNCTIONS, creation("f", json!({}))).await;
    assert_eq!((reply.status, reply.header("x-amzn-errortype")), (500, Some("ServiceException")));
    assert!(reply.json()["Message"].as_str().unwrap().contains("no space left on device"));
    assert_status(&call(&house, "GET", &function("f"), "").await, 404);
}

#[tokio::test]
async fn a_zip_of_lambdas_limit_is_refused_by_its_own_text_and_a_larger_body_by_another() {
    let house = House::open();
    let zip = STANDARD.encode(vec![0; 52_428_800]);
    let reply = call(&house, "POST", FUNCTIONS, creation("f", json!({ "Code": { "ZipFile": zip } }))).await;
    assert_eq!((reply.status, reply.header("x-amzn-errortype")), (413, Some("RequestEntityTooLargeException")));
    assert_eq!(reply.json()["message"], "Zipped size must be smaller than 52428800 bytes");
    let reply = call(&house, "POST", FUNCTIONS, vec![b' '; 70_167_212]).await;
    assert_eq!(reply.status, 413);
    assert_eq!(reply.json()["message"], "Request must be smaller than 70167211 bytes for the CreateFunction operation");
}

#[tokio::test]
async fn lists_have_pages_and_leave_the_state_out() {
    let house = House::open();
    for number in 0..53 {
        create(&house, &format!("f{number:02}")).await;
    }
    let first = call(&house, "GET", &format!("{FUNCTIONS}?MaxItems=10000"), "").await.json();
    assert_eq!(first["Functions"].as_array().unwrap().len(), 50, "Lambda's page");
    let marker = first["NextMarker"].as_str().unwrap().replace('=', "%3D");
    let second = call(&house, "GET", &format!("{FUNCTIONS}?Marker={marker}"), "").await.json();
    let names: Vec<_> = second["Functions"].as_array().unwrap().iter().map(|f| f["FunctionName"].as_str().unwrap()).collect();
    assert_eq!(names, ["f50", "f51", "f52"]);
    assert!(second.get("NextMarker").is_none());
    let listed = &second["Functions"][0];
    assert!(
        listed.get("State").is_none() && listed.get("LastUpdateStatus").is_none() && listed.get("RuntimeVersionConfig").is_none()
    );
    assert_eq!(listed["Handler"], "index.handler");
}

/// A connection whose other end sees these ids. Only root may choose them; `None` says so loudly.
fn connect_as(house: &House, uid: u32, gid: u32, groups: &[u32]) -> Option<UnixStream> {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("KILN_TESTS_MUST_RUN").is_none(), "needs root");
        eprintln!("SKIP: needs root, to connect as somebody else");
        return None;
    }
    let path = house.socket();
    let groups: Vec<_> = groups.iter().map(|gid| rustix::thread::Gid::from_raw(*gid)).collect();
    let connecting = std::thread::spawn(move || {
        // These change the calling thread only; it ends here.
        let (uid, gid) = (rustix::thread::Uid::from_raw(uid), rustix::thread::Gid::from_raw(gid));
        rustix::thread::set_thread_groups(&groups).unwrap();
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        UnixStream::connect(path).unwrap()
    });
    Some(connecting.join().unwrap())
}

#[tokio::test]
async fn only_root_and_the_admin_group_manage_and_everybody_invokes() {
    let house = House::open();
    create(&house, "f").await;
    const USER: u32 = 4711;
    for (uid, gid, groups, manages) in [
        (0, 0, &[][..], true),
        (USER, USER, &[ADMIN][..], true),
        (USER, ADMIN, &[][..], true),
        (USER, USER, &[7; 100][..], false),
        (USER, USER, &[][..], false),
    ] {
        for (method, path, body, good) in [
            ("GET", FUNCTIONS.to_owned(), String::new(), 200),
            ("GET", function("f"), String::new(), 200),
            ("GET", format!("{}/configuration", function("f")), String::new(), 200),
            ("PUT", format!("{}/configuration", function("f")), "{}".to_owned(), 200),
            ("PUT", format!("{}/code", function("f")), r#"{"ZipFile":"emlw"}"#.to_owned(), 200),
            ("POST", FUNCTIONS.to_owned(), creation("new", json!({})), 201),
            ("DELETE", function("new"), String::new(), 204),
            ("POST", invocations("f"), "{}".to_owned(), 200),
        ] {
            let Some(stream) = connect_as(&house, uid, gid, groups) else { return };
            let reply = over(stream, method, &path, &[], body).await;
            let who = format!("uid {uid} gid {gid} groups {groups:?}: {method} {path}");
            if manages || path.ends_with("/invocations") {
                assert_eq!(reply.status, good, "{who}");
            } else {
                assert_eq!((reply.status, reply.header("x-amzn-errortype")), (403, Some("AccessDeniedException")), "{who}");
                let told = reply.json();
                assert!(told["Message"].as_str().unwrap().contains("is not authorized to perform: lambda:"), "{told}");
            }
        }
    }
}

#[tokio::test]
async fn without_an_admin_group_group_zero_is_nothing_special() {
    let house = House::open_with(None);
    let Some(stream) = connect_as(&house, 4711, 0, &[0]) else { return };
    assert_status(&over(stream, "GET", FUNCTIONS, &[], "").await, 403);
}

#[tokio::test]
async fn stopping_lets_running_requests_finish_and_takes_no_more() {
    let mut house = House::open();
    create(&house, "slow").await;
    let path = invocations("slow");
    let running = call(&house, "POST", &path, "");
    let meanwhile = async {
        while house.fakes.invocations.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        house.stop();
    };
    let (reply, ()) = tokio::join!(running, meanwhile);
    assert_eq!((reply.status, &reply.body[..]), (200, &b"late"[..]));
    house.closed();
    let refused = UnixStream::connect(house.socket()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

/// Bytes as they are, and what comes back before the connection is closed.
fn raw(house: &House, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(house.socket()).unwrap();
    // A refusal may close the connection while we still write.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn what_is_not_http_or_too_much_of_it_is_refused_and_the_door_stays_open() {
    let house = House::open();
    let long_header = format!("GET / HTTP/1.1\r\nhost: x\r\nlong: {}\r\n\r\n", "x".repeat(64 << 10));
    let many_headers = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(500));
    let two_lengths = "POST /2015-03-31/functions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello";
    for (bytes, status) in [
        ("\0\0\0\0\r\n\r\n", "400"),
        ("GET / HTTP/9.9\r\n\r\n", "400"),
        (long_header.as_str(), "431"),
        (many_headers.as_str(), "431"),
        (two_lengths, "400"),
    ] {
        let answer = raw(&house, bytes.as_bytes());
        assert_eq!(answer.split(' ').nth(1), Some(status), "{bytes:.80?}: {answer:?}");
    }
    let answer = raw(&house, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}
