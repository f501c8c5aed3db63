//! The runtime's environment variables: what is set, and who wins (lambda-semantics 2.1, 2.2). Pure.
//!
//! From low to high: the recipe's defaults, the customer's own, credentials, the runtime group, the platform group.
//! The process gets exactly these; nothing is inherited from anywhere.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::function::Function;
use crate::runtime::Recipe;

/// Where the Runtime API is seen from inside. Nothing in a client depends on the value.
pub const RUNTIME_API: &str = "127.0.0.1:9001";

/// Switches clients to a protocol that we do not speak.
const NEVER: [&str; 1] = ["AWS_LAMBDA_MAX_CONCURRENCY"];

pub fn vars(function: &Function, recipe: &Recipe, region: &str, log_stream: &str) -> Vec<(String, String)> {
    let mut all: BTreeMap<&str, String> = BTreeMap::new();
    all.insert("AWS_XRAY_CONTEXT_MISSING", "LOG_ERROR".into());
    all.extend(recipe.vars.iter().map(|(name, value)| (name.as_str(), value.clone())));
    let customers = function.vars.iter().filter(|(name, _)| is_customers(name));
    all.extend(customers.map(|(name, value)| (name.as_str(), value.clone())));

    // Dummies: nothing here is an account of AWS's, but SDKs fail hard where they are unset.
    all.insert("AWS_ACCESS_KEY_ID", "KILNKILNKILNKILNKILN".into());
    all.insert("AWS_SECRET_ACCESS_KEY", "kiln".into());
    all.insert("AWS_SESSION_TOKEN", "kiln".into());

    all.insert("_HANDLER", function.handler.clone());
    if recipe.execution_env {
        all.insert("AWS_EXECUTION_ENV", format!("AWS_Lambda_{}", recipe.name));
    } else {
        all.remove("AWS_EXECUTION_ENV");
    }
    all.insert("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{}", function.name));
    all.insert("AWS_LAMBDA_LOG_STREAM_NAME", log_stream.into());
    all.insert("LAMBDA_TASK_ROOT", "/var/task".into());
    all.insert("LAMBDA_RUNTIME_DIR", "/var/runtime".into());

    all.insert("AWS_REGION", region.into());
    all.insert("AWS_DEFAULT_REGION", region.into());
    all.insert("AWS_LAMBDA_FUNCTION_NAME", function.name.to_string());
    all.insert("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST".into());
    all.insert("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", function.memory.mib().to_string());
    all.insert("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand".into());
    all.insert("AWS_LAMBDA_RUNTIME_API", RUNTIME_API.into());
    all.insert("AWS_XRAY_DAEMON_ADDRESS", "169.254.100.1:2000".into());
    all.insert("_AWS_XRAY_DAEMON_ADDRESS", "169.254.100.1".into());
    all.insert("_AWS_XRAY_DAEMON_PORT", "2000".into());
    all.insert("TZ", ":UTC".into());
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// `2018/12/01/[$LATEST]<32 hex>`: one stream for each environment.
pub fn log_stream(now: Timestamp, unique: u128) -> String {
    format!("{}/[$LATEST]{unique:032x}", now.strftime("%Y/%m/%d"))
}

/// Whatever got through the door's validation: no name of a client's or the platform's private kind, and nothing
/// that `NAME=value` ended by NUL cannot carry.
fn is_customers(name: &str) -> bool {
    let well_formed = !name.is_empty() && !name.contains(['=', '\0']);
    well_formed && !name.starts_with('_') && !NEVER.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::Digest;
    use crate::function::{FunctionName, Memory, Reuse, Stamp, Timeout, TmpSize};
    use crate::runtime::{RuntimeName, TreeId};

    fn seen(customers: &[(&str, &str)]) -> BTreeMap<String, String> {
        let function = Function {
            name: FunctionName::parse("hello").unwrap(),
            runtime: RuntimeName::parse("nodejs8.10").unwrap(),
            handler: "index.handler".into(),
            memory: Memory::from_mib(256).unwrap(),
            timeout: Timeout::from_secs(3).unwrap(),
            tmp: TmpSize::DEFAULT,
            vars: customers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            code: Digest::of(b""),
            layers: vec![],
            reuse: Reuse::Always,
            stamp: Stamp(1),
        };
        let recipe = Recipe {
            name: function.runtime.clone(),
            tree: TreeId(Digest::of(b"")),
            start: vec![],
            hot: vec![],
            execution_env: true,
            vars: [("PATH".to_owned(), "/var/lang/bin".to_owned()), ("LANG".into(), "en_US.UTF-8".into())].into(),
        };
        vars(&function, &recipe, "eu-west-1", "s").into_iter().collect()
    }

    #[test]
    fn a_customer_may_replace_defaults_and_nothing_else() {
        let vars = seen(&[
            ("PATH", "/mine"),
            ("MINE", "1"),
            ("TZ", "Europe/Berlin"),
            ("AWS_LAMBDA_RUNTIME_API", "evil:1"),
            ("_HANDLER", "x"),
            ("_LAMBDA_TELEMETRY_LOG_FD_PROVIDER_SOCKET", "x"),
            ("AWS_LAMBDA_MAX_CONCURRENCY", "4"),
            ("A=B", "x"),
        ]);
        let is = |name: &str| vars.get(name).map(String::as_str);
        assert_eq!((is("PATH"), is("MINE"), is("LANG")), (Some("/mine"), Some("1"), Some("en_US.UTF-8")));
        assert_eq!((is("TZ"), is("_HANDLER")), (Some(":UTC"), Some("index.handler")));
        assert_eq!(is("AWS_LAMBDA_RUNTIME_API"), Some("127.0.0.1:9001"));
        assert_eq!((is("AWS_LAMBDA_MAX_CONCURRENCY"), is("_LAMBDA_TELEMETRY_LOG_FD_PROVIDER_SOCKET")), (None, None));
        assert_eq!(is("A=B"), None);
    }

    #[test]
    fn the_platform_tells_what_clients_need() {
        let vars = seen(&[]);
        assert_eq!(vars["AWS_EXECUTION_ENV"], "AWS_Lambda_nodejs8.10");
        assert_eq!(vars["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"], "256");
        assert_eq!((&*vars["AWS_REGION"], &*vars["AWS_DEFAULT_REGION"]), ("eu-west-1", "eu-west-1"));
        assert_eq!(vars["AWS_LAMBDA_LOG_GROUP_NAME"], "/aws/lambda/hello");
        assert!(vars.contains_key("AWS_SESSION_TOKEN"));
    }

    #[test]
    fn a_log_stream_is_named_after_its_day() {
        let day = Timestamp::from_second(1_543_665_600).unwrap();
        assert_eq!(log_stream(day, 0xab), format!("2018/12/01/[$LATEST]{:032x}", 0xab));
    }
}
