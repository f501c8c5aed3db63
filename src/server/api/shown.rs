//! A function as the API shows it: Lambda's `FunctionConfiguration`, in its order of members.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use uuid::Uuid;

use super::settings::{ARCHITECTURE, log_group};
use super::target::{Home, LATEST};
use crate::registry::Record;
use crate::runtime::Recipe;

/// Where a function is in being created or updated. What is stored is finished; the answer to the call itself shows
/// the moment before, as Lambda's does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Creating,
    Updating,
    Ready,
    /// In a list, which leaves the state out.
    Listed,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct FunctionConfiguration {
    function_name: String,
    function_arn: String,
    runtime: String,
    role: String,
    handler: String,
    code_size: u64,
    description: String,
    timeout: u32,
    memory_size: u32,
    last_modified: String,
    code_sha256: String,
    version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    environment: Option<Variables>,
    tracing_config: TracingConfig,
    revision_id: Uuid,
    #[serde(flatten)]
    state: Option<State>,
    package_type: &'static str,
    architectures: [&'static str; 1],
    ephemeral_storage: Size,
    snap_start: SnapStart,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    layers: Vec<Layer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime_version_config: Option<RuntimeVersion>,
    logging_config: LoggingConfig,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Variables {
    variables: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct TracingConfig {
    mode: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_reason_code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_update_status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_update_status_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_update_status_reason_code: Option<&'static str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    size: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct SnapStart {
    apply_on: &'static str,
    optimization_status: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Layer {
    arn: String,
    code_size: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct RuntimeVersion {
    runtime_version_arn: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct LoggingConfig {
    log_format: &'static str,
    log_group: String,
}

/// `arn` is the function's, qualified if the request was.
pub fn configuration(record: &Record, arn: String, phase: Phase, home: &Home, runtimes_dir: &Path) -> FunctionConfiguration {
    let function = &record.function;
    // The runtime's version is the digest of its trees. One that was uninstalled since has none to show.
    let tree = || Recipe::read(runtimes_dir, &function.runtime).ok().flatten().map(|recipe| recipe.tree);
    let version = if phase == Phase::Listed { None } else { tree() };
    FunctionConfiguration {
        function_name: function.name.to_string(),
        function_arn: arn,
        runtime: function.runtime.to_string(),
        role: record.role.clone(),
        handler: function.handler.clone(),
        code_size: record.code_size,
        description: record.description.clone(),
        timeout: function.timeout.secs(),
        memory_size: function.memory.mib(),
        last_modified: timestamp(record.modified_ms),
        code_sha256: function.code.base64(),
        version: LATEST,
        environment: (!function.vars.is_empty()).then(|| Variables { variables: function.vars.clone() }),
        tracing_config: TracingConfig { mode: "PassThrough" },
        revision_id: match phase {
            // The revision of the moment before: it is past when the caller reads it, as Lambda's is.
            Phase::Creating | Phase::Updating => Uuid::new_v4(),
            Phase::Ready | Phase::Listed => record.revision,
        },
        state: state(phase),
        package_type: "Zip",
        architectures: [ARCHITECTURE],
        ephemeral_storage: Size { size: function.tmp.mib() },
        snap_start: SnapStart { apply_on: "None", optimization_status: "Off" },
        layers: record
            .layers
            .iter()
            .map(|layer| Layer { arn: home.layer_version_arn(&layer.name, layer.version), code_size: layer.code_size })
            .collect(),
        runtime_version_config: version
            .map(|tree| RuntimeVersion { runtime_version_arn: format!("arn:aws:lambda:{}::runtime:{tree}", home.region) }),
        logging_config: LoggingConfig { log_format: "Text", log_group: log_group(function.name.as_str()) },
    }
}

fn state(phase: Phase) -> Option<State> {
    const CREATING: Option<&str> = Some("The function is being created.");
    let ready = State {
        state: "Active",
        state_reason: None,
        state_reason_code: None,
        last_update_status: Some("Successful"),
        last_update_status_reason: None,
        last_update_status_reason_code: None,
    };
    match phase {
        Phase::Creating => Some(State {
            state: "Pending",
            state_reason: CREATING,
            state_reason_code: Some("Creating"),
            last_update_status: None,
            ..ready
        }),
        Phase::Updating => Some(State {
            last_update_status: Some("InProgress"),
            last_update_status_reason: CREATING,
            last_update_status_reason_code: Some("Creating"),
            ..ready
        }),
        Phase::Ready => Some(ready),
        Phase::Listed => None,
    }
}

/// `2024-05-01T12:34:56.789+0000`
pub(super) fn timestamp(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%S%.3f+0000").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_lambdas() {
        assert_eq!(timestamp(1_714_566_896_789), "2024-05-01T12:34:56.789+0000");
        assert_eq!(timestamp(1_714_566_896_000), "2024-05-01T12:34:56.000+0000");
    }
}
