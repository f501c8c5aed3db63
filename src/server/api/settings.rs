//! What a caller sets about a function: members of CreateFunction and UpdateFunctionConfiguration, checked.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tracing::error;

use super::error::{ApiError, Kind};
use super::layers;
use super::tags;
use super::validation::Validation;
use crate::function::{FunctionName, Limits, Memory, NotALimit, Reuse, Timeout, TmpSize};
use crate::registry::Draft;
use crate::runtime::{Recipe, RuntimeName};

/// Lambda's limits. <https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>
const MAX_VARS_BYTES: usize = 4096;
pub(super) const MAX_DESCRIPTION: usize = 256;
const MAX_HANDLER: usize = 128;
const MAX_LOG_GROUP: usize = 512;

const ROLE_PATTERN: &str = r"arn:(aws[a-zA-Z-]*)?:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+";
const VAR_PATTERN: &str = r"[a-zA-Z]([a-zA-Z0-9_])+";
const LOG_GROUP_PATTERN: &str = r"[\.\-_/#A-Za-z0-9]+";

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
    image_config: Option<Value>,
    code_signing_config_arn: Option<String>,
    publish_to: Option<String>,
    tenancy_config: Option<Value>,
    capacity_provider_config: Option<Value>,
    durable_config: Option<Value>,
}

/// What settings are checked against.
pub struct Rules<'a> {
    /// Whose settings they are; `None` where the name itself is at fault.
    pub function: Option<&'a FunctionName>,
    pub runtimes_dir: &'a Path,
    pub limits: Limits,
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
        if let Some(tags) = self.tags {
            // Checked.
            draft.function.reuse = Reuse::of_tags(&tags).unwrap_or_default();
            draft.tags = tags;
        }
    }
}

impl Settings {
    /// Those that are members of UpdateFunctionCode; Lambda ignores the others there.
    pub fn with_code(self) -> Self {
        let Self { publish, architectures, revision_id, .. } = self;
        Self { publish, architectures, revision_id, ..Self::default() }
    }

    /// Those that are members of UpdateFunctionConfiguration.
    pub fn without_code(self) -> Self {
        Self { tags: None, publish: None, package_type: None, architectures: None, code_signing_config_arn: None, ..self }
    }

    /// `validation` may hold failures of other members already: they are told together.
    pub fn check(self, mut validation: Validation, rules: &Rules) -> Result<Checked, ApiError> {
        self.check_members(&mut validation, rules.limits);
        self.check_enums(&mut validation);
        validation.finish()?;
        // From here on it is Lambda's own rules rather than its model's, and they are told one at a time.
        self.refuse_unsupported(rules.function)?;
        let runtime = self.runtime.as_deref().map(|text| installed(text, rules.runtimes_dir)).transpose()?;
        let memory = self.memory_size.map(|mib| check_memory(mib, rules.limits)).transpose()?;
        let vars = self.environment.map(|environment| environment.variables.unwrap_or_default());
        vars.as_ref().map_or(Ok(()), check_vars)?;
        self.tags.as_ref().map_or(Ok(()), tags::check)?;
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
    fn check_members(&self, validation: &mut Validation, limits: Limits) {
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
            // A smaller bound than the model's is a rule of the account's: see `check_memory`.
            let modelled = if limits.memory_max_mib < Memory::MAX { in_range(mib).min(Memory::MAX) } else { in_range(mib) };
            validation.limit("memorySize", mib, Memory::from_mib(modelled));
        }
        if let Some(size) = self.ephemeral_storage.as_ref().map(|storage| storage.size) {
            let max = limits.tmp_max_mib;
            match TmpSize::from_mib(in_range(size)) {
                Ok(tmp) if tmp.mib() <= max => {}
                Err(error) if in_range(size) <= max => validation.fail("ephemeralStorage.size", size, error.constraint),
                _ => {
                    let constraint = format!("Member must have value less than or equal to {max}");
                    validation.fail("ephemeralStorage.size", size, constraint);
                }
            }
        }
        let variables = self.environment.iter().flat_map(|environment| environment.variables.iter().flatten());
        if variables.map(|(name, _)| name).any(|name| !is_var_name(name)) {
            validation.secret(
                "environment.variables",
                format!("Map keys must satisfy constraint: [Member must satisfy regular expression pattern: {VAR_PATTERN}]"),
            );
        }
        self.tags.iter().for_each(|tags| tags::check_lengths(tags, validation));
    }

    /// Members with few values; which of those Kiln can do is another question.
    fn check_enums(&self, validation: &mut Validation) {
        let member = |value: &Option<Value>, member: &str| {
            value.as_ref().and_then(|value| value.get(member)).and_then(Value::as_str).map(str::to_owned)
        };
        let group = member(&self.logging_config, "LogGroup");
        for (field, value, set) in [
            ("packageType", self.package_type.clone(), &["Zip", "Image"][..]),
            ("tracingConfig.mode", member(&self.tracing_config, "Mode"), &["Active", "PassThrough"]),
            ("snapStart.applyOn", member(&self.snap_start, "ApplyOn"), &["PublishedVersions", "None"]),
            ("loggingConfig.logFormat", member(&self.logging_config, "LogFormat"), &["JSON", "Text"]),
        ] {
            if let Some(value) = value.filter(|value| !set.contains(&value.as_str())) {
                validation.fail(field, value, format!("Member must satisfy enum value set: [{}]", set.join(", ")));
            }
        }
        if let Some(given) = &self.architectures {
            let shown = format!("[{}]", given.join(", "));
            match &given[..] {
                [] => validation.fail("architectures", shown, "Member must have length greater than or equal to 1"),
                [one] if ["x86_64", "arm64"].contains(&one.as_str()) => {}
                [_] => validation.fail(
                    "architectures",
                    shown,
                    "Member must satisfy constraint: [Member must satisfy enum value set: [x86_64, arm64], Member must not be null]",
                ),
                _ => validation.fail("architectures", shown, "Member must have length less than or equal to 1"),
            }
        }
        match group {
            Some(group) if group.is_empty() => {
                validation.fail("loggingConfig.logGroup", group, "Member must have length greater than or equal to 1");
            }
            Some(group) if group.len() > MAX_LOG_GROUP => {
                let constraint = format!("Member must have length less than or equal to {MAX_LOG_GROUP}");
                validation.fail("loggingConfig.logGroup", group, constraint);
            }
            Some(group) if !group.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_/#".contains(&b)) => {
                let constraint = format!("Member must satisfy regular expression pattern: {LOG_GROUP_PATTERN}");
                validation.fail("loggingConfig.logGroup", group, constraint);
            }
            _ => {}
        }
    }

    /// Anything that the function would run differently by, and that Kiln does not do yet.
    fn refuse_unsupported(&self, function: Option<&FunctionName>) -> Result<(), ApiError> {
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
        let given = |value: &Option<Value>| match value {
            None | Some(Value::Null) => false,
            Some(Value::Object(members)) => !members.is_empty(),
            Some(_) => true,
        };
        let named = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let own_group = function.map(|name| log_group(name.as_str()));
        let group = self.logging_config.as_ref().and_then(|config| config.get("LogGroup")).and_then(Value::as_str);
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
            (group.is_some() && group != own_group.as_deref(), "another LogGroup than the function's own in LoggingConfig"),
            (
                holds(&self.logging_config, "ApplicationLogLevel") || holds(&self.logging_config, "SystemLogLevel"),
                "log levels in LoggingConfig",
            ),
            (named(&self.kms_key_arn), "KMSKeyArn"),
            (given(&self.image_config), "ImageConfig"),
            (named(&self.code_signing_config_arn), "CodeSigningConfigArn"),
            (named(&self.publish_to), "PublishTo"),
            (given(&self.tenancy_config), "TenancyConfig"),
            (given(&self.capacity_provider_config), "CapacityProviderConfig"),
            (given(&self.durable_config), "DurableConfig"),
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

/// Where a log goes that nobody sent elsewhere.
pub fn log_group(function: &str) -> String {
    format!("/aws/lambda/{function}")
}

fn check_memory(mib: i64, limits: Limits) -> Result<Memory, ApiError> {
    let (mib, max, step) = (in_range(mib), limits.memory_max_mib, limits.memory_step_mib);
    if mib > max {
        return Err(Kind::InvalidParameterValue.with(format!(
            "'MemorySize' value failed to satisfy constraint: Member must have value less than or equal to {max}"
        )));
    }
    if mib % step != 0 {
        return Err(Validation::only("memorySize", mib, format!("Member must be a multiple of {step}")));
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
mod tests;
