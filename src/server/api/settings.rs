//! What a caller sets about a function: members of CreateFunction and UpdateFunctionConfiguration, checked.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tracing::error;

use super::error::{ApiError, Kind};
use super::tags;
use super::validation::Validation;
use crate::function::{FunctionName, Limits, Memory, NotALimit, Timeout, TmpSize};
use crate::registry::Draft;
use crate::runtime::{Recipe, RuntimeName};

/// Lambda's limits. <https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>
const MAX_VARS_BYTES: usize = 4096;
const MAX_DESCRIPTION: usize = 256;
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
    // Known, and not built yet: what would change how the function runs is refused rather than dropped.
    publish: Option<bool>,
    package_type: Option<String>,
    architectures: Option<Vec<String>>,
    layers: Option<Vec<String>>,
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
        self.tags.as_ref().map_or(Ok(()), tags::check_count)?;
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
        })
    }

    /// The model's constraints: pattern, length, range.
    fn check_members(&self, validation: &mut Validation, limits: Limits) {
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
            (self.layers.as_ref().is_some_and(|layers| !layers.is_empty()), "Layers"),
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
mod tests {
    use super::*;
    use crate::function::Profile;

    fn check(json: &str) -> Result<Checked, ApiError> {
        check_in(Profile::Of2018, json)
    }

    fn check_in(profile: Profile, json: &str) -> Result<Checked, ApiError> {
        let directory = tempfile::tempdir().unwrap();
        let recipe = format!("name='nodejs8.10'\ntree='{}'\nstart=[['/x']]", crate::code::Digest::of(b""));
        std::fs::write(directory.path().join("nodejs8.10.toml"), recipe).unwrap();
        let settings: Settings = serde_json::from_str(json).unwrap();
        let name = FunctionName::parse("f").unwrap();
        let rules = Rules { function: Some(&name), runtimes_dir: directory.path(), limits: profile.limits() };
        settings.check(Validation::default(), &rules)
    }

    #[track_caller]
    fn refused(json: &str, kind: Kind, text: &str) {
        refused_in(Profile::Of2018, json, kind, text);
    }

    #[track_caller]
    fn refused_in(profile: Profile, json: &str, kind: Kind, text: &str) {
        let error = check_in(profile, json).unwrap_err();
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
        refused(
            r#"{"Environment":{"Variables":{"A":"secret","B":"2"}}}"#,
            Model,
            "1 validation error detected: Value at 'environment.variables' failed to satisfy constraint: Map keys must satisfy \
             constraint: [Member must satisfy regular expression pattern: [a-zA-Z]([a-zA-Z0-9_])+]",
        );
        refused(
            r#"{"Environment":{"Variables":{"TZ":"x","AWS_REGION":"1"}}}"#,
            Parameter,
            "Reserved keys used in this request: AWS_REGION, TZ",
        );
        refused(r#"{"Environment":{"Variables":{"AA":"\u0000"}}}"#, Parameter, "NUL");
        refused(
            r#"{"EphemeralStorage":{"Size":511}}"#,
            Model,
            "Value '511' at 'ephemeralStorage.size' failed to satisfy constraint: Member must have value greater than or equal to 512",
        );
        refused(
            r#"{"Architectures":["sparc"]}"#,
            Model,
            "Value '[sparc]' at 'architectures' failed to satisfy constraint: Member must satisfy constraint: [Member must satisfy \
             enum value set: [x86_64, arm64], Member must not be null]",
        );
        refused(r#"{"Architectures":["x86_64","arm64"]}"#, Model, "Value '[x86_64, arm64]' at 'architectures'");
        for (json, field) in [
            (r#"{"PackageType":"Rpm"}"#, "packageType"),
            (r#"{"TracingConfig":{"Mode":"x"}}"#, "tracingConfig.mode"),
            (r#"{"SnapStart":{"ApplyOn":"x"}}"#, "snapStart.applyOn"),
            (r#"{"LoggingConfig":{"LogFormat":"x"}}"#, "loggingConfig.logFormat"),
            (r#"{"LoggingConfig":{"LogGroup":"a b"}}"#, "loggingConfig.logGroup"),
        ] {
            refused(json, Model, &format!("at '{field}' failed to satisfy constraint: Member must satisfy "));
        }
        let long = "x".repeat(129);
        refused(
            &format!(r#"{{"Tags":{{"{long}":"v"}}}}"#),
            Model,
            &format!(
                "Value '{{{long}=v}}' at 'tags' failed to satisfy constraint: Map keys must satisfy constraint: [Member must have \
                 length less than or equal to 128, Member must have length greater than or equal to 1]"
            ),
        );
        refused(&format!(r#"{{"Tags":{{"k":"{}"}}}}"#, "x".repeat(257)), Model, "Map value must satisfy constraint: ");
    }

    /// Value by value: taken in 2018's profile, taken in today's.
    #[test]
    fn each_profile_has_its_own_bounds() {
        for (json, of_2018, current) in [
            (r#"{"MemorySize":128}"#, true, true),
            (r#"{"MemorySize":129}"#, false, true),
            (r#"{"MemorySize":3008}"#, true, true),
            (r#"{"MemorySize":3009}"#, false, true),
            (r#"{"MemorySize":3072}"#, false, true),
            (r#"{"MemorySize":10240}"#, false, true),
            (r#"{"MemorySize":10241}"#, false, false),
            (r#"{"MemorySize":127}"#, false, false),
            (r#"{"EphemeralStorage":{"Size":512}}"#, true, true),
            (r#"{"EphemeralStorage":{"Size":513}}"#, false, true),
            (r#"{"EphemeralStorage":{"Size":10240}}"#, false, true),
            (r#"{"EphemeralStorage":{"Size":10241}}"#, false, false),
            (r#"{"EphemeralStorage":{"Size":511}}"#, false, false),
            (r#"{"Timeout":900}"#, true, true),
        ] {
            assert_eq!(check_in(Profile::Of2018, json).is_ok(), of_2018, "{json} in 2018");
            assert_eq!(check_in(Profile::Current, json).is_ok(), current, "{json} today");
        }
        let too_much = "failed to satisfy constraint: Member must have value less than or equal to";
        for (profile, json, text) in [
            (
                Profile::Of2018,
                r#"{"EphemeralStorage":{"Size":1024}}"#,
                format!("Value '1024' at 'ephemeralStorage.size' {too_much} 512"),
            ),
            (
                Profile::Current,
                r#"{"EphemeralStorage":{"Size":20000}}"#,
                format!("Value '20000' at 'ephemeralStorage.size' {too_much} 10240"),
            ),
            (Profile::Current, r#"{"MemorySize":10304}"#, format!("Value '10304' at 'memorySize' {too_much} 10240")),
        ] {
            refused_in(profile, json, Kind::Validation, &text);
        }
    }

    /// What the AWS CLI, SAM and Terraform send of their own accord.
    #[test]
    fn values_that_change_nothing_pass() {
        let checked = check(
            r#"{"Publish":false,"PackageType":"Zip","Architectures":["x86_64"],"Layers":[],"FileSystemConfigs":[],"KMSKeyArn":"",
            "VpcConfig":{"SubnetIds":[],"SecurityGroupIds":[],"Ipv6AllowedForDualStack":false},"DeadLetterConfig":{},
            "TracingConfig":{"Mode":"PassThrough"},"SnapStart":{"ApplyOn":"None"},"EphemeralStorage":{"Size":512},"Tags":{},
            "LoggingConfig":{"LogFormat":"Text","LogGroup":"/aws/lambda/f"},"ImageConfig":{},"CodeSigningConfigArn":"",
            "Environment":{"Variables":{}},"Description":"","TenancyConfig":null}"#,
        );
        checked.unwrap();
        check(r#"{"DeadLetterConfig":{"TargetArn":""},"VpcConfig":{},"TracingConfig":{},"LoggingConfig":{},"SnapStart":{}}"#)
            .unwrap();
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
            r#"{"Architectures":["arm64"]}"#,
            r#"{"Publish":true}"#,
            r#"{"Layers":["arn:x"]}"#,
            r#"{"VpcConfig":{"SubnetIds":["s"]}}"#,
            r#"{"DeadLetterConfig":{"TargetArn":"x"}}"#,
            r#"{"FileSystemConfigs":[{}]}"#,
            r#"{"SnapStart":{"ApplyOn":"PublishedVersions"}}"#,
            r#"{"LoggingConfig":{"LogFormat":"JSON"}}"#,
            r#"{"LoggingConfig":{"LogGroup":"/aws/lambda/another"}}"#,
            r#"{"LoggingConfig":{"SystemLogLevel":"INFO"}}"#,
            r#"{"KMSKeyArn":"x"}"#,
            r#"{"ImageConfig":{"Command":["x"]}}"#,
            r#"{"CodeSigningConfigArn":"x"}"#,
            r#"{"DurableConfig":{"ExecutionTimeout":1}}"#,
        ] {
            refused(json, Kind::InvalidParameterValue, "Kiln does not support this yet");
        }
    }
}
