//! What the door says about code: too much of it, none, or code that cannot run here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln::code::Digest;
use kiln::wire::supervisor::{Unpacked, ZipRefusal};
use serde_json::{Value, json};

use crate::doors::{FUNCTIONS, House, Reply, assert_status, call, create, creation};

async fn create_with(house: &House, name: &str, zip: &[u8], settings: Value) -> Reply {
    let mut changes = json!({ "Code": { "ZipFile": STANDARD.encode(zip) } });
    for (member, value) in settings.as_object().into_iter().flatten() {
        changes[member] = value.clone();
    }
    call(house, "POST", FUNCTIONS, creation(name, changes)).await
}

#[track_caller]
fn assert_refused(reply: &Reply, status: u16, kind: &str, message: &str) {
    assert_status(reply, status);
    assert_eq!(reply.header("x-amzn-errortype"), Some(kind));
    let body = reply.json();
    let said = body["message"].as_str().or(body["Message"].as_str()).unwrap_or_default();
    assert!(said.contains(message), "{said}");
}

#[tokio::test]
async fn a_zip_is_smaller_than_50_mib_to_the_byte() {
    let house = House::open();
    let mut zip = vec![0; 52_428_800];
    let refused = create_with(&house, "large", &zip, json!({})).await;
    assert_refused(&refused, 413, "RequestEntityTooLargeException", "Zipped size must be smaller than 52428800 bytes");
    zip.pop();
    assert_status(&create_with(&house, "largest", &zip, json!({})).await, 201);
}

#[tokio::test]
async fn each_refusal_of_a_zip_has_lambdas_words() {
    let house = House::open();
    let invalid = "InvalidParameterValueException";
    let unzip = "Could not unzip uploaded file. Please check your file, then try to upload again.";
    for refusal in ZipRefusal::ALL {
        *house.fakes.unpacked.lock().unwrap() = Some(Unpacked::Refused(refusal));
        let message = match refusal {
            ZipRefusal::TooLarge => "Unzipped size must be smaller than 262144000 bytes",
            ZipRefusal::Empty => "Uploaded file must be a non-empty zip",
            _ => unzip,
        };
        assert_refused(&create_with(&house, "f", b"zip", json!({})).await, 400, invalid, message);
    }
    assert_refused(&create_with(&house, "f", b"", json!({})).await, 400, invalid, "Uploaded file must be a non-empty zip");
}

#[tokio::test]
async fn a_full_disk_is_our_fault_and_named_with_its_cure() {
    let house = House::open();
    *house.fakes.unpacked.lock().unwrap() = Some(Unpacked::NoRoom);
    let state = house.directory.path().join("state");
    for part in ["the disk of ", state.to_str().unwrap(), " is full (", "free on it", "nothing was stored", "try again"] {
        assert_refused(&create_with(&house, "f", b"zip", json!({})).await, 500, "ServiceException", part);
    }
    *house.fakes.unpacked.lock().unwrap() = None;
    assert_status(&create_with(&house, "f", b"zip", json!({})).await, 201);
}

#[tokio::test]
async fn code_beyond_the_budget_is_refused_as_lambda_does() {
    let house = House::open_with_config(|config| config.code_budget_mib = 1);
    assert_status(&create_with(&house, "f", &vec![1; 600 << 10], json!({})).await, 201);
    let refused = create_with(&house, "g", &vec![2; 600 << 10], json!({})).await;
    assert_refused(&refused, 400, "CodeStorageExceededException", "Code storage limit exceeded.");
    assert_eq!(*house.fakes.orders.lock().unwrap(), ["unpack", "adopt"], "refused before anything is unpacked");
    let update = json!({ "ZipFile": STANDARD.encode(vec![3; 700 << 10]) }).to_string();
    assert_status(&call(&house, "PUT", &format!("{FUNCTIONS}/f/code"), update).await, 200);
    let account = call(&house, "GET", "/2016-08-19/account-settings", "").await.json();
    assert_eq!(account["AccountLimit"]["TotalCodeSize"], 1 << 20);
    assert_eq!(account["AccountUsage"]["TotalCodeSize"], 700 << 10);
}

/// Lambda takes it, and fails at each invocation.
#[tokio::test]
async fn a_program_for_another_machine_is_refused_and_the_machine_named() {
    let house = House::open();
    let start = "start=[['/var/task/bootstrap'],['/opt/bootstrap']]";
    let recipe = format!("name='provided.al2023'\ntree='{}'\n{start}", Digest::of(b"provided.al2023"));
    std::fs::write(house.directory.path().join("runtimes/provided.al2023.toml"), recipe).unwrap();
    let program = |zip: &[u8], machine: u8| {
        let tree = house.directory.path().join(format!("state/code/{}", Digest::of(zip)));
        std::fs::create_dir_all(&tree).unwrap();
        let header = [b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0", &[machine, 0][..]].concat();
        std::fs::write(tree.join("bootstrap"), header).unwrap();
    };
    let other = if cfg!(target_arch = "x86_64") { (183, "arm64 (aarch64)") } else { (62, "x86_64") };
    program(b"other", other.0);
    program(b"own", if cfg!(target_arch = "x86_64") { 62 } else { 183 });
    let own_runtime = json!({ "Runtime": "provided.al2023" });
    let (kind, words) = ("InvalidParameterValueException", format!("bootstrap was built for {}, and this host runs", other.1));

    assert_refused(&create_with(&house, "f", b"other", own_runtime.clone()).await, 400, kind, &words);
    assert_status(&call(&house, "GET", &format!("{FUNCTIONS}/f"), "").await, 404);
    assert_status(&create_with(&house, "f", b"own", own_runtime).await, 201);
    let update = json!({ "ZipFile": STANDARD.encode("other") }).to_string();
    assert_refused(&call(&house, "PUT", &format!("{FUNCTIONS}/f/code"), update.clone()).await, 400, kind, &words);
    // A runtime with a program of its own does not mind, until it is changed.
    create(&house, "g").await;
    assert_status(&call(&house, "PUT", &format!("{FUNCTIONS}/g/code"), update).await, 200);
    let change = json!({ "Runtime": "provided.al2023" }).to_string();
    assert_refused(&call(&house, "PUT", &format!("{FUNCTIONS}/g/configuration"), change).await, 400, kind, &words);
}
