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
