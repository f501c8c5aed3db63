//! Layers: published, shown, listed and deleted, and given to functions.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln::code::Digest;
use kiln::wire::supervisor::{Unpacked, ZipRefusal};
use serde_json::{Value, json};

use crate::doors::{FUNCTIONS, House, assert_status, call, create, creation};
use crate::function;

const LAYERS: &str = "/2018-10-31/layers";
const ARN: &str = "arn:aws:lambda:us-east-1:000000000000:layer";

fn versions(layer: &str) -> String {
    format!("{LAYERS}/{layer}/versions")
}

/// Publishes the next version of a layer: its zip is the text.
async fn publish(house: &House, name: &str, zip: &str, more: Value) -> Value {
    let mut body = json!({ "Content": { "ZipFile": STANDARD.encode(zip) } });
    for (member, value) in more.as_object().unwrap() {
        body[member] = value.clone();
    }
    let reply = call(house, "POST", &versions(name), body.to_string()).await;
    assert_status(&reply, 201);
    reply.json()
}

async fn configure(house: &House, name: &str, settings: Value) -> crate::doors::Reply {
    call(house, "PUT", &format!("{}/configuration", function(name)), settings.to_string()).await
}

async fn layers_of(house: &House, name: &str) -> Value {
    call(house, "GET", &format!("{}/configuration", function(name)), "").await.json()["Layers"].clone()
}

/// `bytes` is what the next zips unpack to.
fn unpacks_to(house: &House, bytes: u64) {
    *house.fakes.unpacked.lock().unwrap() = Some(Unpacked::Done { bytes });
}

#[tokio::test]
async fn a_layer_is_published_shown_by_name_and_by_arn_and_deleted() {
    let house = House::open();
    let more = json!({
        "Description": "shared", "LicenseInfo": "MIT", "CompatibleRuntimes": ["nodejs8.10", "nodejs4.3-edge"],
        "CompatibleArchitectures": ["x86_64"],
    });
    let published = publish(&house, "lib", "layer", more).await;
    let mut expected = published.clone();
    let created = expected["CreatedDate"].take();
    assert_eq!((created.as_str().unwrap().len(), &created.as_str().unwrap()[23..]), (28, "+0000"));
    assert!(expected["Content"]["Location"].take().as_str().unwrap().ends_with(&format!("code/{}.zip", Digest::of(b"layer"))));
    assert_eq!(
        expected,
        json!({
            "Content": { "Location": null, "CodeSha256": Digest::of(b"layer").base64(), "CodeSize": 5 },
            "LayerArn": format!("{ARN}:lib"), "LayerVersionArn": format!("{ARN}:lib:1"), "Description": "shared", "CreatedDate": null,
            "Version": 1, "CompatibleRuntimes": ["nodejs8.10", "nodejs4.3-edge"], "CompatibleArchitectures": ["x86_64"],
            "LicenseInfo": "MIT",
        })
    );
    let by_arn = format!("{LAYERS}?find=LayerVersion&Arn={}", format!("{ARN}:lib:1").replace(':', "%3A"));
    let arn_as_name = versions(&format!("{ARN}:lib").replace(':', "%3A"));
    for path in [format!("{}/1", versions("lib")), by_arn.clone(), format!("{arn_as_name}/1")] {
        let reply = call(&house, "GET", &path, "").await;
        assert_status(&reply, 200);
        assert_eq!(reply.json(), published, "{path}");
    }
    for _ in 0..2 {
        let reply = call(&house, "DELETE", &format!("{}/1", versions("lib")), "").await;
        assert_eq!((reply.status, reply.body.len()), (204, 0), "also when there is none");
    }
    assert_status(&call(&house, "GET", &by_arn, "").await, 404);
    assert_eq!(publish(&house, "lib", "layer", json!({})).await["Version"], 2, "no number comes twice");
}

#[tokio::test]
async fn members_that_nobody_gave_are_absent() {
    let house = House::open();
    let published = publish(&house, "lib", "layer", json!({})).await;
    let members: Vec<&str> = published.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, ["Content", "CreatedDate", "Description", "LayerArn", "LayerVersionArn", "Version"]);
    assert_eq!(published["Description"], "");
}

#[tokio::test]
async fn lists_have_pages_filters_and_the_latest_first() {
    let house = House::open();
    for (name, runtime) in [("a", "nodejs8.10"), ("a", "python3.13"), ("b", "python3.13"), ("c", "nodejs8.10")] {
        publish(&house, name, "zip", json!({ "CompatibleRuntimes": [runtime], "CompatibleArchitectures": ["arm64"] })).await;
    }
    let list = async |query: &str| call(&house, "GET", &format!("{LAYERS}{query}"), "").await.json();
    let shown = |page: &Value| -> Vec<String> {
        let layers = page["Layers"].as_array().unwrap().iter();
        layers
            .map(|layer| format!("{}:{}", layer["LayerName"].as_str().unwrap(), layer["LatestMatchingVersion"]["Version"]))
            .collect()
    };
    let all = list("").await;
    assert_eq!(shown(&all), ["a:2", "b:1", "c:1"]);
    assert_eq!(all["Layers"][0]["LayerArn"], format!("{ARN}:a"));
    let latest = &all["Layers"][0]["LatestMatchingVersion"];
    assert!(latest.get("Content").is_none() && latest["LayerVersionArn"] == format!("{ARN}:a:2"), "{latest}");
    assert_eq!(shown(&list("?CompatibleRuntime=nodejs8.10").await), ["a:1", "c:1"]);
    assert_eq!(shown(&list("?CompatibleArchitecture=x86_64").await), [""; 0]);
    let first = list("?MaxItems=2").await;
    let marker = first["NextMarker"].as_str().unwrap().replace('=', "%3D");
    assert_eq!((shown(&first).len(), shown(&list(&format!("?MaxItems=2&Marker={marker}")).await)), (2, vec!["c:1".to_owned()]));

    let page = call(&house, "GET", &format!("{}?MaxItems=1", versions("a")), "").await.json();
    assert_eq!(page["LayerVersions"][0]["Version"], 2);
    let marker = page["NextMarker"].as_str().unwrap().replace('=', "%3D");
    let page = call(&house, "GET", &format!("{}?MaxItems=1&Marker={marker}", versions("a")), "").await.json();
    assert_eq!((&page["LayerVersions"][0]["Version"], page.get("NextMarker")), (&json!(1), None));
    assert_eq!(call(&house, "GET", &versions("nope"), "").await.json(), json!({ "LayerVersions": [] }));
}

#[tokio::test]
async fn a_functions_layers_are_kept_in_order_replaced_and_removed() {
    let house = House::open();
    for (name, zip) in [("a", "one"), ("b", "second"), ("a", "three")] {
        publish(&house, name, zip, json!({})).await;
    }
    let arns = |names: &[&str]| names.iter().map(|name| format!("{ARN}:{name}")).collect::<Vec<_>>();
    let reply = call(&house, "POST", FUNCTIONS, creation("f", json!({ "Layers": arns(&["b:1", "a:1"]) }))).await;
    assert_status(&reply, 201);
    let shown = json!([{ "Arn": format!("{ARN}:b:1"), "CodeSize": 6 }, { "Arn": format!("{ARN}:a:1"), "CodeSize": 3 }]);
    assert_eq!(reply.json()["Layers"], shown);
    assert_eq!(call(&house, "GET", FUNCTIONS, "").await.json()["Functions"][0]["Layers"], shown);
    assert_status(&configure(&house, "f", json!({ "MemorySize": 256 })).await, 200);
    assert_eq!(layers_of(&house, "f").await, shown, "what is not given stays");
    assert_status(&configure(&house, "f", json!({ "Layers": arns(&["a:2"]) })).await, 200);
    assert_eq!(layers_of(&house, "f").await, json!([{ "Arn": format!("{ARN}:a:2"), "CodeSize": 5 }]));
    assert_eq!(*house.fakes.changed.lock().unwrap(), ["f", "f"], "idle environments have the old ones");
    assert_status(&call(&house, "DELETE", &format!("{}/2", versions("a")), "").await, 204);
    assert_eq!(layers_of(&house, "f").await[0]["CodeSize"], 5, "who has it keeps it");
    assert_status(&configure(&house, "f", json!({ "Layers": [] })).await, 200);
    assert_eq!(layers_of(&house, "f").await, Value::Null);
    let reply = configure(&house, "f", json!({ "Layers": arns(&["a:2"]) })).await;
    assert_eq!(reply.json()["message"], format!("Layer version {ARN}:a:2 does not exist."));
}

#[tokio::test]
async fn layers_that_a_function_cannot_have_are_refused_in_lambdas_words() {
    let house = House::open();
    for name in ["a", "a", "b", "c", "d", "e", "f"] {
        publish(&house, name, "zip", json!({})).await;
    }
    create(&house, "f").await;
    let west = "arn:aws:lambda:eu-west-1:000000000000:layer:a:1";
    let foreign = "arn:aws:lambda:us-east-1:111111111111:layer:a:1";
    let six: Vec<String> = ["a", "b", "c", "d", "e", "f"].iter().map(|name| format!("{ARN}:{name}:1")).collect();
    let rows = [
        (json!(six), "InvalidParameterValueException", "Cannot reference more than 5 layers.".to_owned()),
        (
            json!([format!("{ARN}:a:9")]),
            "InvalidParameterValueException",
            format!("Layer version {ARN}:a:9 does not exist."),
        ),
        (
            json!([format!("{ARN}:a:1"), format!("{ARN}:b:1"), format!("{ARN}:a:2")]),
            "InvalidParameterValueException",
            format!(
                "Two different versions of the same layer are not allowed to be referenced in the same function. {ARN}:a:1 and \
                 {ARN}:a:2 are versions of the same layer."
            ),
        ),
        (
            json!([format!("{ARN}:b:1"), format!("{ARN}:b:1")]),
            "InvalidParameterValueException",
            format!(
                "Two different versions of the same layer are not allowed to be referenced in the same function. {ARN}:b:1 and \
                 {ARN}:b:1 are versions of the same layer."
            ),
        ),
        (
            json!([west]),
            "InvalidParameterValueException",
            "Layers are not in the same region as the function. Layers are expected to be in region us-east-1.".to_owned(),
        ),
        (
            json!([foreign]),
            "AccessDeniedException",
            format!(
                "User is not authorized to perform: lambda:GetLayerVersion on resource: {foreign} because no resource-based policy \
                 allows the lambda:GetLayerVersion action"
            ),
        ),
        (
            json!(["arn:aws:lambda:::awslayer:AmazonLinux1803"]),
            "InvalidParameterValueException",
            "Layer version arn:aws:lambda:::awslayer:AmazonLinux1803 does not exist.".to_owned(),
        ),
        (
            json!(["a:1"]),
            "ValidationException",
            "1 validation error detected: Value '[a:1]' at 'layers' failed to satisfy constraint: Member must satisfy constraint: "
                .to_owned(),
        ),
    ];
    for (layers, kind, text) in rows {
        let created = call(&house, "POST", FUNCTIONS, creation("new", json!({ "Layers": layers }))).await;
        for reply in [created, configure(&house, "f", json!({ "Layers": layers })).await] {
            assert_eq!(reply.header("x-amzn-errortype"), Some(kind), "{layers}");
            let body = reply.json();
            let message = body.get("message").or(body.get("Message")).unwrap().as_str().unwrap();
            assert!(message == text || (text.ends_with(": ") && message.starts_with(&text)), "{message}");
        }
    }
    assert_eq!((layers_of(&house, "f").await, call(&house, "GET", &function("new"), "").await.status), (Value::Null, 404));
}

#[tokio::test]
async fn code_and_layers_together_may_unpack_to_250_mb() {
    let house = House::open();
    unpacks_to(&house, 100_000_000);
    publish(&house, "big", "layer", json!({})).await;
    let layers = json!({ "Layers": [format!("{ARN}:big:1")] });
    unpacks_to(&house, 162_144_001);
    let text = "Function code combined with layers exceeds the maximum allowed size of 262144000 bytes. The actual size is 262144001 bytes.";
    let refused = |reply: crate::doors::Reply| {
        assert_eq!((reply.status, reply.header("x-amzn-errortype")), (400, Some("InvalidParameterValueException")));
        assert_eq!(reply.json()["message"], text);
    };
    // At creation, when the layers come later, and when the code comes later.
    refused(call(&house, "POST", FUNCTIONS, creation("f", layers.clone())).await);
    create(&house, "f").await;
    refused(configure(&house, "f", layers.clone()).await);
    unpacks_to(&house, 162_144_000);
    let code = |zip: &str| json!({ "ZipFile": STANDARD.encode(zip) }).to_string();
    let path = format!("{}/code", function("f"));
    assert_status(&call(&house, "PUT", &path, code("fits")).await, 200);
    assert_status(&configure(&house, "f", layers).await, 200);
    unpacks_to(&house, 162_144_001);
    refused(call(&house, "PUT", &path, code("does not fit")).await);
    assert_eq!(call(&house, "GET", &function("f"), "").await.json()["Configuration"]["CodeSha256"], Digest::of(b"fits").base64());
}

#[tokio::test]
async fn mistakes_about_layers_are_told_in_lambdas_words() {
    let house = House::open();
    publish(&house, "lib", "zip", json!({})).await;
    let gone = "The resource you requested does not exist.";
    let zip = json!({ "ZipFile": "emlw" });
    let body = |more: Value| {
        let mut body = json!({ "Content": zip });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body.to_string()
    };
    let version = |number: &str| format!("{}/{number}", versions("lib"));
    let by_arn = |arn: &str| format!("{LAYERS}?find=LayerVersion&Arn={arn}");
    let post = |more: Value| ("POST", versions("lib"), body(more));
    let get = |path: String| ("GET", path, String::new());
    let rows = [
        (get(version("2")), 404, "ResourceNotFoundException", gone),
        (get(format!("{}/1", versions("nope"))), 404, "ResourceNotFoundException", gone),
        (get(by_arn(&format!("{ARN}:lib:2"))), 404, "ResourceNotFoundException", gone),
        (get(by_arn("arn:aws:lambda:us-east-1:111111111111:layer:lib:1")), 404, "ResourceNotFoundException", gone),
        (
            get(by_arn(&format!("{ARN}:lib"))),
            400,
            "ValidationException",
            "at 'arn' failed to satisfy constraint: Member must satisfy",
        ),
        (get(version("0")), 400, "InvalidParameterValueException", "Layer Version Cannot be less than 1"),
        (("DELETE", version("-1"), String::new()), 400, "InvalidParameterValueException", "Layer Version Cannot be less than 1"),
        (get(version("x")), 400, "ValidationException", "Value 'x' at 'versionNumber'"),
        (get(versions("a%20b")), 400, "ValidationException", "Value 'a b' at 'layerName'"),
        (get(versions(&"x".repeat(141))), 400, "ValidationException", "Member must have length less than or equal to 140"),
        (get(format!("{LAYERS}?MaxItems=51")), 400, "ValidationException", "Value '51' at 'maxItems'"),
        (get(format!("{LAYERS}?MaxItems=0")), 400, "ValidationException", "Value '0' at 'maxItems'"),
        (get(format!("{LAYERS}?MaxItems=-1")), 400, "ValidationException", "Member must have value greater than or equal to 1"),
        (get(format!("{LAYERS}?MaxItems=ten")), 400, "SerializationException", "can not be converted to an Integer"),
        (get(format!("{LAYERS}?Marker=x")), 400, "InvalidParameterValueException", "The Marker"),
        (get(format!("{LAYERS}?CompatibleArchitecture=vax")), 400, "ValidationException", "enum value set: [x86_64, arm64]"),
        (("PUT", versions("lib"), String::new()), 405, "MethodNotAllowedException", "PUT is not an operation"),
        (get(format!("{LAYERS}/lib/policy")), 404, "UnknownOperationException", "Kiln has no operation"),
        (("POST", versions("lib"), "{}".to_owned()), 400, "ValidationException", "Value null at 'content'"),
        (post(json!({ "Content": { "S3Bucket": "b" } })), 400, "InvalidParameterValueException", "S3 Error Code: NoSuchBucket"),
        (post(json!({ "Content": {} })), 400, "InvalidParameterValueException", "Please provide a source"),
        (post(json!({ "Description": "x".repeat(257) })), 400, "ValidationException", "less than or equal to 256"),
        (post(json!({ "LicenseInfo": "x".repeat(513) })), 400, "ValidationException", "less than or equal to 512"),
        (post(json!({ "CompatibleRuntimes": ["Node"] })), 400, "ValidationException", "Value '[Node]' at 'compatibleRuntimes'"),
        (post(json!({ "CompatibleRuntimes": vec!["a"; 16] })), 400, "ValidationException", "less than or equal to 15"),
        (
            post(json!({ "CompatibleRuntimes": [""], "CompatibleArchitectures": ["vax"] })),
            400,
            "ValidationException",
            "2 validation errors detected: Value '[]' at 'compatibleRuntimes'",
        ),
    ];
    for ((method, path, body), status, kind, text) in rows {
        let reply = call(&house, method, &path, body).await;
        assert_eq!((reply.status, reply.header("x-amzn-errortype")), (status, Some(kind)), "{method} {path}");
        let body = reply.json();
        let message = body.get("message").or(body.get("Message")).unwrap().as_str().unwrap();
        assert!(message.contains(text), "{method} {path}: {message}");
    }
    *house.fakes.unpacked.lock().unwrap() = Some(Unpacked::Refused(ZipRefusal::BadLink));
    let hostile = json!({ "Content": { "ZipFile": STANDARD.encode("hostile") } }).to_string();
    let reply = call(&house, "POST", &versions("lib"), hostile).await;
    assert_eq!(reply.json()["message"], "Could not unzip uploaded file. Please check your file, then try to upload again.");
    assert_eq!(call(&house, "GET", &versions("lib"), "").await.json()["LayerVersions"].as_array().unwrap().len(), 1);
}
