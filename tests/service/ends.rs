//! Ends of life: of the service, of each of its processes, of the memory, of the machine.

use serde_json::json;

use super::machine;

#[test]
fn a_function_runs_in_an_installed_kiln() {
    let Some(kiln) = machine::enter() else { return };
    kiln.create_probe("echo", json!({}));
    assert_eq!(kiln.call("echo", &json!({ "hello": 1 })), json!({ "hello": 1 }));
    kiln.leave();
}
