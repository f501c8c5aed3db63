//! Functions are made, shown, changed and deleted.

use std::io::Write;
use std::os::unix::net::UnixStream;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln::wire::supervisor::{Unpacked, ZipRefusal};
use serde_json::json;

use crate::doors::{FUNCTIONS, House, ROLE, assert_status, call, create, creation};
use crate::{ARN, function, invocations};

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
    assert_eq!(shown["Code"]["RepositoryType"], "S3");
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

/// Where it leads through a whole instance, `tests/boto3` looks; here, what is served and what is not.
#[tokio::test]
async fn the_location_leads_to_the_zip_of_a_function_and_to_no_other_file() {
    let house = House::open();
    create(&house, "f").await;
    let code = house.directory.path().join("state/code");
    std::fs::create_dir(&code).unwrap();
    let digest = kiln::code::Digest::of(b"zip");
    std::fs::write(code.join(format!("{digest}.zip")), "zip").unwrap();
    let shown = call(&house, "GET", &function("f"), "").await.json();
    let path = format!("/kiln/code/{digest}.zip");
    assert_eq!(shown["Code"]["Location"], format!("http://test{path}"), "by the name that the caller came by");
    let reply = call(&house, "GET", &path, "").await;
    assert_eq!((reply.status, reply.header("content-type"), &reply.body[..]), (200, Some("application/zip"), &b"zip"[..]));
    // It is there, and no function is made from it.
    let other = kiln::code::Digest::of(b"other");
    std::fs::write(code.join(format!("{other}.zip")), "other").unwrap();
    assert_status(&call(&house, "GET", &format!("/kiln/code/{other}.zip"), "").await, 404);
    assert_status(&call(&house, "GET", &format!("/kiln/code/{digest}"), "").await, 404);
    // Many more than may be held at once: each gives its place back.
    for _ in 0..20 {
        assert_status(&call(&house, "GET", &path, "").await, 200);
    }
    assert_status(&call(&house, "DELETE", &function("f"), "").await, 204);
    assert_status(&call(&house, "GET", &path, "").await, 404);
}

#[tokio::test]
async fn the_account_shows_what_is_allowed_and_what_is_used() {
    let house = House::open();
    for name in ["a", "b"] {
        create(&house, name).await;
    }
    for path in ["/2016-08-19/account-settings", "/2016-08-19/account-settings/"] {
        let reply = call(&house, "GET", path, "").await;
        assert_status(&reply, 200);
        assert_eq!(
            reply.json(),
            json!({
                "AccountLimit": {
                    "TotalCodeSize": 80_530_636_800_u64, "CodeSizeUnzipped": 262_144_000, "CodeSizeZipped": 52_428_800,
                    "ConcurrentExecutions": 1000, "UnreservedConcurrentExecutions": 1000,
                },
                "AccountUsage": { "TotalCodeSize": 6, "FunctionCount": 2 },
            })
        );
    }
}

#[tokio::test]
async fn the_tag_of_reuse_is_never_or_always_and_environments_start_anew_for_it() {
    let house = House::open();
    let path = format!("/2017-03-31/tags/{}", format!("{ARN}:f").replace(':', "%3A"));
    let tagged = |value: &str| json!({ "Tags": { "kiln:reuse": value } });
    let wrong = "The tag kiln:reuse must be never or always.";
    let reply = call(&house, "POST", FUNCTIONS, creation("f", tagged("sometimes"))).await;
    assert_eq!((reply.status, &reply.json()["message"]), (400, &json!(wrong)));
    assert_status(&call(&house, "POST", FUNCTIONS, creation("f", tagged("never"))).await, 201);
    let shown = call(&house, "GET", &function("f"), "").await.json();
    assert_eq!(shown["Tags"], tagged("never")["Tags"]);

    // What the pools hear of is the only sign at this door that there is another stamp.
    let reply = call(&house, "POST", &path, tagged("Never").to_string()).await;
    assert_eq!((reply.status, &reply.json()["message"]), (400, &json!(wrong)));
    let before = call(&house, "GET", &function("f"), "").await.json()["Configuration"]["LastModified"].clone();
    tokio::time::sleep(std::time::Duration::from_millis(2)).await; // the time is told in milliseconds
    assert_status(&call(&house, "DELETE", &format!("{path}?tagKeys=kiln%3Areuse"), "").await, 204);
    let after = call(&house, "GET", &function("f"), "").await.json()["Configuration"]["LastModified"].clone();
    assert_ne!(before, after, "it is another function to the pools");
}

#[tokio::test]
async fn tags_come_and_go_and_change_nothing_but_the_revision() {
    let house = House::open();
    create(&house, "f").await;
    let path = format!("/2017-03-31/tags/{}", format!("{ARN}:f").replace(':', "%3A"));
    assert_eq!(call(&house, "GET", &path, "").await.json(), json!({ "Tags": {} }));
    let before = call(&house, "GET", &function("f"), "").await.json()["Configuration"].clone();
    let tags = json!({ "Tags": { "team": "a", "stage": "x y", "owner": "me" } }).to_string();
    assert_status(&call(&house, "POST", &path, tags).await, 204);
    assert_status(&call(&house, "DELETE", &format!("{path}?tagKeys=owner&tagKeys=nobody&tagKeys=stage"), "").await, 204);
    assert_eq!(call(&house, "GET", &path, "").await.json(), json!({ "Tags": { "team": "a" } }));
    let shown = call(&house, "GET", &function("f"), "").await.json();
    assert_eq!(shown["Tags"], json!({ "team": "a" }));
    assert_ne!(shown["Configuration"]["RevisionId"], before["RevisionId"]);
    assert_eq!(shown["Configuration"]["LastModified"], before["LastModified"]);
    // Once more what is so already, as whoever describes a function in a file does.
    assert_status(&call(&house, "POST", &path, json!({ "Tags": { "team": "a" } }).to_string()).await, 204);
    assert_status(&call(&house, "DELETE", &format!("{path}?tagKeys=nobody"), "").await, 204);
    assert_eq!(call(&house, "GET", &function("f"), "").await.json(), shown, "the very same function, and not started anew");
    let many: serde_json::Map<_, _> = (0..50).map(|n| (format!("key{n}"), json!("v"))).collect();
    let reply = call(&house, "POST", &path, json!({ "Tags": many }).to_string()).await;
    assert_eq!((reply.status, &reply.json()["message"]), (400, &json!("Number of tags exceeds resource tag limit.")));
    assert_eq!(call(&house, "GET", &path, "").await.json(), json!({ "Tags": { "team": "a" } }));
}

#[tokio::test]
async fn what_tools_ask_for_beside_a_function_is_answered() {
    let house = House::open();
    create(&house, "f").await;
    let versions = call(&house, "GET", &format!("{}/versions?MaxItems=10000", function("f")), "").await.json();
    assert!(versions.get("NextMarker").is_none());
    let versions = versions["Versions"].as_array().unwrap().clone();
    assert_eq!(versions.len(), 1);
    assert_eq!((&versions[0]["Version"], &versions[0]["FunctionArn"]), (&json!("$LATEST"), &json!(format!("{ARN}:f:$LATEST"))));
    assert!(versions[0].get("State").is_none());
    let signing = call(&house, "GET", "/2020-06-30/functions/f/code-signing-config", "").await.json();
    assert_eq!(signing, json!({ "FunctionName": "f" }));
    let listed = call(&house, "GET", &format!("{FUNCTIONS}?FunctionVersion=ALL&MasterRegion=ALL"), "").await.json();
    assert_eq!(listed["Functions"][0]["FunctionArn"], format!("{ARN}:f:$LATEST"));
}

#[tokio::test]
async fn todays_profile_takes_todays_sizes() {
    let house = House::open_in(kiln::function::Profile::Current, None);
    let sizes = json!({ "MemorySize": 10240, "EphemeralStorage": { "Size": 2048 } });
    let reply = call(&house, "POST", FUNCTIONS, creation("f", sizes)).await;
    assert_status(&reply, 201);
    assert_eq!((&reply.json()["MemorySize"], &reply.json()["EphemeralStorage"]), (&json!(10240), &json!({ "Size": 2048 })));
    let update = json!({ "MemorySize": 129 }).to_string();
    assert_status(&call(&house, "PUT", &format!("{}/configuration", function("f")), update).await, 200);
}

#[tokio::test]
async fn a_dry_run_of_an_update_opens_the_zip_and_says_what_is_wrong_with_it() {
    let house = House::open();
    create(&house, "f").await;
    *house.fakes.unpacked.lock().unwrap() = Some(Unpacked::Refused(ZipRefusal::Unreadable));
    let body = json!({ "ZipFile": STANDARD.encode("new zip"), "DryRun": true }).to_string();
    let reply = call(&house, "PUT", &format!("{}/code", function("f")), body).await;
    assert_eq!((reply.status, reply.header("x-amzn-errortype")), (400, Some("InvalidParameterValueException")));
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

#[tokio::test]
async fn a_change_goes_on_when_its_caller_goes_away() {
    let house = House::open();
    let hold = house.hold_zips();
    let body = creation("f", json!({}));
    let mut caller = UnixStream::connect(house.socket()).unwrap();
    write!(caller, "POST {FUNCTIONS} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    while house.fakes.orders.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    drop(caller);
    // Once it answers others, the house has seen that the caller is gone.
    assert_status(&call(&house, "GET", &function("f"), "").await, 404);
    drop(hold);
    while call(&house, "GET", &function("f"), "").await.status != 200 {
        tokio::task::yield_now().await;
    }
    assert_eq!(*house.fakes.orders.lock().unwrap(), ["unpack", "adopt"]);
}
