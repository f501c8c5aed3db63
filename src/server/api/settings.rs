//! What a caller sets about a function: members of CreateFunction and UpdateFunctionConfiguration, checked.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tracing::error;

use super::error::{ApiError, Kind};
use super::layers;
use super::validation::Validation;
use crate::function::{Memory, NotALimit, Timeout, TmpSize};
use crate::registry::Draft;
use crate::runtime::{Recipe, RuntimeName};

/// Lambda's limits. <https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>
const MAX_VARS_BYTES: usize = 4096;
pub(super) const MAX_DESCRIPTION: usize = 256;
const MAX_HANDLER: usize = 128;
const MAX_TAGS: usize = 50;
const MAX_TAG_KEY: usize = 128;
const MAX_TAG_VALUE: usize = 256;
/// The 2018 profile's largest memory, and its step.
const MAX_MEMORY_MIB: u32 = 3008;
const MEMORY_STEP_MIB: u32 = 64;

const ROLE_PATTERN: &str = r"arn:(aws[a-zA-Z-]*)?:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+";
const VAR_PATTERN: &str = r"[a-zA-Z]([a-zA-Z0-9_])+";

/// Variables that belong to the platform: a function's own of this name could never be seen.
const RESERVED: &[&str] = &[
    "_HANDLER",
    "_X_AMZN_TRACE_ID",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_EXECUTION_ENV",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_VERSION",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    "AWS_LAMBDA_INITIALIZATION_TYPE",
    "AWS_LAMBDA_LOG_GROUP_NAME",
    "AWS_LAMBDA_LOG_STREAM_NAME",
    "AWS_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_LAMBDA_RUNTIME_API",
    "LAMBDA_TASK_ROOT",
    "LAMBDA_RUNTIME_DIR",
    "TZ",
];

/// Members as they come. Absent ones have their default at creation and stay as they are at an update; unknown
/// ones are ignored, as Lambda does.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Settings {
    pub role: Option<String>,
    pub runtime: Option<String>,
    pub handler: Option<String>,
    pub description: Option<String>,
    pub timeout: Option<i64>,
    pub memory_size: Option<i64>,
    pub environment: Option<Environment>,
    pub ephemeral_storage: Option<EphemeralStorage>,
    pub tags: Option<BTreeMap<String, String>>,
    pub revision_id: Option<String>,
    pub layers: Option<Vec<String>>,
    // Known, and not built yet: what would change how the function runs is refused rather than dropped.
    publish: Option<bool>,
    package_type: Option<String>,
    architectures: Option<Vec<String>>,
    vpc_config: Option<Value>,
    dead_letter_config: Option<Value>,
    file_system_configs: Option<Value>,
    snap_start: Option<Value>,
    tracing_config: Option<Value>,
    logging_config: Option<Value>,
    #[serde(rename = "KMSKeyArn")]
    kms_key_arn: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Environment {
    pub variables: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct EphemeralStorage {
    pub size: i64,
}

/// Settings that hold; `None` was not given.
#[derive(Debug, Default)]
pub struct Checked {
    pub role: Option<String>,
    pub runtime: Option<RuntimeName>,
    pub handler: Option<String>,
    pub description: Option<String>,
    pub timeout: Option<Timeout>,
    pub memory: Option<Memory>,
    pub vars: Option<BTreeMap<String, String>>,
    pub tmp: Option<TmpSize>,
    pub tags: Option<BTreeMap<String, String>>,
    /// Well formed; whether there are such layers is asked later.
    pub layers: Option<Vec<String>>,
}

impl Checked {
    /// Into a function's draft: what was given replaces what was there.
    pub fn apply(self, draft: &mut Draft) {
        fn set<T>(place: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *place = value;
            }
        }
        let function = &mut draft.function;
        set(&mut function.runtime, self.runtime);
        set(&mut function.handler, self.handler);
        set(&mut function.timeout, self.timeout);
        set(&mut function.memory, self.memory);
        set(&mut function.vars, self.vars);
        set(&mut function.tmp, self.tmp);
        set(&mut draft.role, self.role);
        set(&mut draft.description, self.description);
        set(&mut draft.tags, self.tags);
    }
}

impl Settings {
    /// `validation` may hold failures of other members already: they are told together.
    pub fn check(self, mut validation: Validation, runtimes_dir: &Path) -> Result<Checked, ApiError> {
        self.check_members(&mut validation);
        validation.finish()?;
        // From here on it is Lambda's own rules rather than its model's, and they are told one at a time.
        self.refuse_unsupported()?;
        let runtime = self.runtime.as_deref().map(|text| installed(text, runtimes_dir)).transpose()?;
        let memory = self.memory_size.map(check_memory).transpose()?;
        let vars = self.environment.map(|environment| environment.variables.unwrap_or_default());
        vars.as_ref().map_or(Ok(()), check_vars)?;
        if self.tags.as_ref().is_some_and(|tags| tags.len() > MAX_TAGS) {
            return Err(Kind::InvalidParameterValue.with("Number of tags exceeds resource tag limit."));
        }
        Ok(Checked {
            role: self.role,
            runtime,
            handler: self.handler,
            description: self.description,
            // Checked above; the types say it once more.
            timeout: self.timeout.and_then(|secs| Timeout::from_secs(in_range(secs)).ok()),
            memory,
            vars,
            tmp: self.ephemeral_storage.and_then(|storage| TmpSize::from_mib(in_range(storage.size)).ok()),
            tags: self.tags,
            layers: self.layers,
        })
    }

    /// The model's constraints: pattern, length, range.
    fn check_members(&self, validation: &mut Validation) {
        layers::check_arns(self.layers.as_deref().unwrap_or_default(), validation);
        if let Some(role) = self.role.as_ref().filter(|role| !is_role(role)) {
            validation.fail("role", role, format!("Member must satisfy regular expression pattern: {ROLE_PATTERN}"));
        }
        if let Some(handler) = &self.handler {
            if handler.len() > MAX_HANDLER {
                validation.fail("handler", handler, format!("Member must have length less than or equal to {MAX_HANDLER}"));
            } else if handler.is_empty() || handler.contains(|c: char| c.is_whitespace() || c.is_control()) {
                validation.fail("handler", handler, r"Member must satisfy regular expression pattern: [^\s]+");
            }
        }
        if let Some(text) = self.description.as_ref().filter(|text| text.chars().count() > MAX_DESCRIPTION) {
            validation.fail("description", text, format!("Member must have length less than or equal to {MAX_DESCRIPTION}"));
        }
        if let Some(secs) = self.timeout {
            validation.limit("timeout", secs, Timeout::from_secs(in_range(secs)));
        }
        if let Some(mib) = self.memory_size {
            validation.limit("memorySize", mib, Memory::from_mib(in_range(mib).min(Memory::MAX)));
        }
        if let Some(storage) = &self.ephemeral_storage {
            validation.limit("ephemeralStorage.size", storage.size, TmpSize::from_mib(in_range(storage.size)));
        }
        for name in self.environment.iter().flat_map(|environment| environment.variables.iter().flatten()).map(|(name, _)| name) {
            if !is_var_name(name) {
                let constraint =
                    format!("Map keys must satisfy constraint: [Member must satisfy regular expression pattern: {VAR_PATTERN}]");
                validation.fail("environment.variables", format!("{{{name}=...}}"), constraint);
            }
        }
        for (key, value) in self.tags.iter().flatten() {
            if key.is_empty() || key.chars().count() > MAX_TAG_KEY || value.chars().count() > MAX_TAG_VALUE {
                let constraint = format!(
                    "Map keys must satisfy constraint: [Member must have length less than or equal to {MAX_TAG_KEY}, Member must \
                     have length greater than or equal to 1]; map values: [Member must have length less than or equal to {MAX_TAG_VALUE}]"
                );
                validation.fail("tags", format!("{{{key}={value}}}"), constraint);
            }
        }
    }

    /// Anything that the function would run differently by, and that Kiln does not do yet.
    fn refuse_unsupported(&self) -> Result<(), ApiError> {
        let holds = |value: &Option<Value>, member: &str| {
            value.as_ref().and_then(|value| value.get(member)).is_some_and(|member| match member {
                Value::Array(list) => !list.is_empty(),
                Value::String(text) => !text.is_empty(),
                other => !other.is_null(),
            })
        };
        let says = |value: &Option<Value>, member: &str, wanted: &str| {
            value.as_ref().and_then(|value| value.get(member)).and_then(Value::as_str).is_some_and(|text| text == wanted)
        };
        let foreign = |architecture: &String| architecture != ARCHITECTURE;
        let rows = [
            (self.package_type.as_ref().is_some_and(|kind| kind != "Zip"), "PackageType Image"),
            (self.architectures.iter().flatten().any(foreign), "an architecture other than this host's"),
            (self.publish == Some(true), "Publish: versions"),
            (holds(&self.vpc_config, "SubnetIds") || holds(&self.vpc_config, "SecurityGroupIds"), "VpcConfig"),
            (holds(&self.dead_letter_config, "TargetArn"), "DeadLetterConfig"),
            (
                self.file_system_configs.as_ref().and_then(Value::as_array).is_some_and(|list| !list.is_empty()),
                "FileSystemConfigs",
            ),
            (says(&self.snap_start, "ApplyOn", "PublishedVersions"), "SnapStart"),
            (says(&self.tracing_config, "Mode", "Active"), "TracingConfig Active"),
            (says(&self.logging_config, "LogFormat", "JSON"), "LoggingConfig JSON"),
            (self.kms_key_arn.as_ref().is_some_and(|arn| !arn.is_empty()), "KMSKeyArn"),
        ];
        match rows.iter().find(|(given, _)| *given) {
            Some((_, what)) => Err(Kind::InvalidParameterValue.with(format!("Kiln does not support this yet: {what}"))),
            None => Ok(()),
        }
    }
}

/// Lambda's name of this host's architecture.
#[cfg(target_arch = "x86_64")]
pub const ARCHITECTURE: &str = "x86_64";
#[cfg(target_arch = "aarch64")]
pub const ARCHITECTURE: &str = "arm64";

impl Validation {
    fn limit<T>(&mut self, field: &str, value: i64, result: Result<T, NotALimit>) {
        if let Err(error) = result {
            self.fail(field, value, error.constraint);
        }
    }
}

/// A number of any size, as near as the limits' own type comes: what is out of it is out of every limit.
fn in_range(number: i64) -> u32 {
    u32::try_from(number.max(0)).unwrap_or(u32::MAX)
}

fn check_memory(mib: i64) -> Result<Memory, ApiError> {
    let mib = in_range(mib);
    if mib > MAX_MEMORY_MIB {
        return Err(Kind::InvalidParameterValue.with(format!(
            "'MemorySize' value failed to satisfy constraint: Member must have value less than or equal to {MAX_MEMORY_MIB}"
        )));
    }
    if mib % MEMORY_STEP_MIB != 0 {
        return Err(Validation::only("memorySize", mib, format!("Member must be a multiple of {MEMORY_STEP_MIB}")));
    }
    Memory::from_mib(mib).map_err(|error| Validation::only("memorySize", mib, error.constraint))
}

fn check_vars(vars: &BTreeMap<String, String>) -> Result<(), ApiError> {
    let reserved: Vec<&str> = vars.keys().map(String::as_str).filter(|name| RESERVED.contains(name)).collect();
    if !reserved.is_empty() {
        return Err(Kind::InvalidParameterValue.with(format!(
            "Lambda was unable to configure your environment variables because the environment variables you have provided \
             contains reserved keys that are currently not supported for modification. Reserved keys used in this request: {}",
            reserved.join(", ")
        )));
    }
    // A NUL would end the variable in the process's own view of it.
    if let Some(name) = vars.iter().find(|(_, value)| value.contains('\0')).map(|(name, _)| name) {
        return Err(Kind::InvalidParameterValue.with(format!(
            "Lambda was unable to configure your environment variables because the value of {name} contains a NUL character"
        )));
    }
    let text = serde_json::to_string(vars).unwrap_or_default();
    if text.len() > MAX_VARS_BYTES {
        return Err(Kind::InvalidParameterValue.with(format!(
            "Lambda was unable to configure your environment variables because the environment variables you have provided \
             exceeded the 4KB limit. String measured: {text}"
        )));
    }
    Ok(())
}

/// The runtime, if its recipe is installed.
fn installed(text: &str, runtimes_dir: &Path) -> Result<RuntimeName, ApiError> {
    let fail = |error| {
        error!(%error, "the installed runtimes could not be read");
        Kind::Service.with("the installed runtimes could not be read: kilnd's log says why")
    };
    if let Ok(name) = RuntimeName::parse(text) {
        if Recipe::read(runtimes_dir, &name).map_err(fail)?.is_some() {
            return Ok(name);
        }
    }
    let names: Vec<String> = Recipe::installed(runtimes_dir).map_err(fail)?.iter().map(ToString::to_string).collect();
    let text: String = text.chars().take(80).collect();
    Err(Kind::InvalidParameterValue.with(format!(
        "Value {text} at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: [{}] or be a valid ARN",
        names.join(", ")
    )))
}

fn is_role(text: &str) -> bool {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let ["arn", partition, "iam", "", account, resource] = parts[..] else { return false };
    let path = resource.strip_prefix("role").map(|path| path.strip_prefix('/').unwrap_or(path));
    (partition.is_empty() || partition.starts_with("aws"))
        && partition.bytes().all(|b| b.is_ascii_alphabetic() || b == b'-')
        && account.len() == 12
        && account.bytes().all(|b| b.is_ascii_digit())
        && path
            .is_some_and(|path| !path.is_empty() && path.bytes().all(|b| b.is_ascii_alphanumeric() || b"+=,.@-_/".contains(&b)))
}

/// At least two characters, as the pattern's `+` after the first one has it.
fn is_var_name(name: &str) -> bool {
    name.len() >= 2 && name.as_bytes()[0].is_ascii_alphabetic() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<Checked, ApiError> {
        let directory = tempfile::tempdir().unwrap();
        let recipe = format!("name='nodejs8.10'\ntree='{}'\nstart=[['/x']]", crate::code::Digest::of(b""));
        std::fs::write(directory.path().join("nodejs8.10.toml"), recipe).unwrap();
        let settings: Settings = serde_json::from_str(json).unwrap();
        settings.check(Validation::default(), directory.path())
    }

    #[track_caller]
    fn refused(json: &str, kind: Kind, text: &str) {
        let error = check(json).unwrap_err();
        assert_eq!(error.kind, kind, "{}", error.message);
        assert!(error.message.contains(text), "{}", error.message);
    }

    #[test]
    fn settings_within_the_limits_hold() {
        let json = r#"{"Role":"arn:aws:iam::000000000000:role/a/b","Runtime":"nodejs8.10","Handler":"a/b.handler","Timeout":900,
            "MemorySize":3008,"Environment":{"Variables":{"Ab":"ü"}},"Unknown":{"x":[1]},"Architectures":["x86_64"],
            "PackageType":"Zip","Publish":false,"Layers":[],"TracingConfig":{"Mode":"PassThrough"},"EphemeralStorage":{"Size":512}}"#;
        let checked = check(json).unwrap();
        assert_eq!(checked.memory.map(Memory::mib), Some(3008));
        assert_eq!(checked.timeout.map(Timeout::secs), Some(900));
    }

    #[test]
    fn each_limit_is_told_in_lambdas_words() {
        use Kind::{InvalidParameterValue as Parameter, Validation as Model};
        refused(
            r#"{"Timeout":0}"#,
            Model,
            "Value '0' at 'timeout' failed to satisfy constraint: Member must have value greater than or equal to 1",
        );
        refused(r#"{"Timeout":901}"#, Model, "less than or equal to 900");
        refused(r#"{"Timeout":-99999999999}"#, Model, "Value '-99999999999' at 'timeout'");
        refused(
            r#"{"MemorySize":127}"#,
            Model,
            "at 'memorySize' failed to satisfy constraint: Member must have value greater than or equal to 128",
        );
        refused(
            r#"{"MemorySize":3072}"#,
            Parameter,
            "'MemorySize' value failed to satisfy constraint: Member must have value less than or equal to 3008",
        );
        refused(r#"{"MemorySize":99999999999}"#, Parameter, "less than or equal to 3008");
        refused(
            r#"{"MemorySize":200}"#,
            Model,
            "Value '200' at 'memorySize' failed to satisfy constraint: Member must be a multiple of 64",
        );
        refused(r#"{"Handler":"a b"}"#, Model, r"[^\s]+");
        refused(r#"{"Role":"me"}"#, Model, "1 validation error detected: Value 'me' at 'role'");
        refused(r#"{"Timeout":0,"MemorySize":1}"#, Model, "2 validation errors detected: ");
        refused(
            r#"{"Runtime":"node99"}"#,
            Parameter,
            "Value node99 at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: [nodejs8.10] or be a valid ARN",
        );
        refused(r#"{"Runtime":"../x"}"#, Parameter, "[nodejs8.10]");
        refused(r#"{"Environment":{"Variables":{"A":"1"}}}"#, Model, "environment.variables");
        refused(
            r#"{"Environment":{"Variables":{"TZ":"x","AWS_REGION":"1"}}}"#,
            Parameter,
            "Reserved keys used in this request: AWS_REGION, TZ",
        );
        refused(r#"{"Environment":{"Variables":{"AA":"\u0000"}}}"#, Parameter, "NUL");
        refused(r#"{"EphemeralStorage":{"Size":511}}"#, Model, "ephemeralStorage.size");
    }

    #[test]
    fn variables_over_4096_bytes_are_refused_and_those_of_4096_taken() {
        let json = |length: usize| format!(r#"{{"Environment":{{"Variables":{{"AA":"{}"}}}}}}"#, "x".repeat(length));
        // {"AA":"…"} is nine bytes and the value.
        assert!(check(&json(4096 - 9)).is_ok());
        refused(&json(4096 - 8), Kind::InvalidParameterValue, "exceeded the 4KB limit. String measured: {\"AA\":\"xxx");
    }

    #[test]
    fn what_is_not_built_yet_is_refused_rather_than_dropped() {
        for json in [
            r#"{"PackageType":"Image"}"#,
            r#"{"Architectures":["sparc"]}"#,
            r#"{"Publish":true}"#,
            r#"{"VpcConfig":{"SubnetIds":["s"]}}"#,
            r#"{"DeadLetterConfig":{"TargetArn":"x"}}"#,
            r#"{"FileSystemConfigs":[{}]}"#,
            r#"{"SnapStart":{"ApplyOn":"PublishedVersions"}}"#,
            r#"{"LoggingConfig":{"LogFormat":"JSON"}}"#,
            r#"{"KMSKeyArn":"x"}"#,
        ] {
            refused(json, Kind::InvalidParameterValue, "Kiln does not support this yet");
        }
    }
}
