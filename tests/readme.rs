//! Holds README.md to the code: it promises nothing that no test keeps, names nothing that is not there, and leaves out no
//! key, operation or verb.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use kiln::config::Config;
use kiln::config::reload::RELOADABLE;

/// What Lambda's API model has, by its own names.
const OPERATIONS: &[&str] = &[
    "AddLayerVersionPermission",
    "AddPermission",
    "CreateAlias",
    "CreateCodeSigningConfig",
    "CreateEventSourceMapping",
    "CreateFunction",
    "CreateFunctionUrlConfig",
    "DeleteAlias",
    "DeleteCodeSigningConfig",
    "DeleteEventSourceMapping",
    "DeleteFunction",
    "DeleteFunctionCodeSigningConfig",
    "DeleteFunctionConcurrency",
    "DeleteFunctionEventInvokeConfig",
    "DeleteFunctionUrlConfig",
    "DeleteLayerVersion",
    "DeleteProvisionedConcurrencyConfig",
    "GetAccountSettings",
    "GetAlias",
    "GetCodeSigningConfig",
    "GetEventSourceMapping",
    "GetFunction",
    "GetFunctionCodeSigningConfig",
    "GetFunctionConcurrency",
    "GetFunctionConfiguration",
    "GetFunctionEventInvokeConfig",
    "GetFunctionRecursionConfig",
    "GetFunctionUrlConfig",
    "GetLayerVersion",
    "GetLayerVersionByArn",
    "GetLayerVersionPolicy",
    "GetPolicy",
    "GetProvisionedConcurrencyConfig",
    "GetRuntimeManagementConfig",
    "Invoke",
    "InvokeAsync",
    "InvokeWithResponseStream",
    "ListAliases",
    "ListCodeSigningConfigs",
    "ListEventSourceMappings",
    "ListFunctionEventInvokeConfigs",
    "ListFunctionUrlConfigs",
    "ListFunctions",
    "ListFunctionsByCodeSigningConfig",
    "ListLayerVersions",
    "ListLayers",
    "ListProvisionedConcurrencyConfigs",
    "ListTags",
    "ListVersionsByFunction",
    "PublishLayerVersion",
    "PublishVersion",
    "PutFunctionCodeSigningConfig",
    "PutFunctionConcurrency",
    "PutFunctionEventInvokeConfig",
    "PutFunctionRecursionConfig",
    "PutProvisionedConcurrencyConfig",
    "PutRuntimeManagementConfig",
    "RemoveLayerVersionPermission",
    "RemovePermission",
    "TagResource",
    "UntagResource",
    "UpdateAlias",
    "UpdateCodeSigningConfig",
    "UpdateEventSourceMapping",
    "UpdateFunctionCode",
    "UpdateFunctionConfiguration",
    "UpdateFunctionEventInvokeConfig",
    "UpdateFunctionUrlConfig",
];

/// Served, but no operation of Lambda's.
const OWN: &str = "DownloadCode";

fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo").into()
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).unwrap()
}

/// The rows of a section's first table, without its heading, as cells.
fn table(text: &str, section: &str) -> Vec<Vec<String>> {
    let body = text.split(&format!("\n## {section}\n")).nth(1).unwrap_or_else(|| panic!("no section {section:?}"));
    let body = body.split("\n## ").next().unwrap_or_default();
    let rows = body.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

// ---- Promises --------------------------------------------------------------------------------------------------------

/// What is wrong with the promises of this text; `read` gives a file's contents.
fn unkept(text: &str, read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    for row in table(text, "Promises") {
        let names = quoted(&row[1]);
        let (paths, tests): (Vec<&str>, Vec<&str>) = names.into_iter().partition(|name| name.contains('/'));
        if paths.is_empty() {
            wrong.push(format!("{:?} names no test", row[0]));
        }
        let files: Vec<Option<String>> = paths.iter().map(|path| read(path)).collect();
        for (path, file) in paths.iter().zip(&files) {
            match file {
                None => wrong.push(format!("there is no {path}")),
                Some(file)
                    if path.ends_with(".rs")
                        && !file.contains("test]")
                        && !file.contains("test(")
                        && !path.ends_with("rows.rs") =>
                {
                    wrong.push(format!("{path} holds no test"));
                }
                Some(_) => {}
            }
        }
        for test in tests.into_iter().filter(|name| name.matches('_').count() >= 2) {
            let defined = |file: &&Option<String>| file.as_ref().is_some_and(|file| file.contains(&format!("fn {test}(")));
            if !files.iter().any(|file| defined(&file)) {
                wrong.push(format!("{test} is in none of {paths:?}"));
            }
        }
    }
    wrong
}

fn file(path: &str) -> Option<String> {
    fs::read_to_string(root().join(path)).ok()
}

#[test]
fn every_promise_names_tests_that_exist() {
    let text = readme();
    assert!(table(&text, "Promises").len() >= 15);
    assert_eq!(unkept(&text, file), Vec::<String>::new());
}

#[test]
fn a_promise_without_its_test_is_found() {
    let text = |row: &str| format!("\n## Promises\n\n| Promise | Kept by |\n|---|---|\n| P | {row} |\n\n## Next\n");
    let found = |row: &str| unkept(&text(row), |path| (path == "tests/a.rs").then(|| "#[test]\nfn it_is_so() {}".into()));
    assert_eq!(found("`tests/a.rs` (`it_is_so`)"), Vec::<String>::new());
    assert!(found("`tests/a.rs` (`it_was_so`)")[0].contains("it_was_so is in none"));
    assert!(found("`tests/b.rs`")[0].contains("there is no tests/b.rs"));
    assert!(found("careful people")[0].contains("names no test"));
}

// ---- Operations, keys, verbs, scripts --------------------------------------------------------------------------------

/// The variants of an enum in a source file.
fn variants(source: &str, name: &str) -> BTreeSet<String> {
    let body = source.split(&format!("pub enum {name} {{\n")).nth(1).unwrap().split("\n}").next().unwrap();
    let at_first_level = body.lines().filter(|line| line.starts_with("    ") && line.as_bytes()[4].is_ascii_uppercase());
    at_first_level.map(|line| line.trim().split(|c: char| !c.is_alphanumeric()).next().unwrap().to_owned()).collect()
}

#[test]
fn every_operation_of_lambda_has_one_row_and_those_said_to_be_served_are() {
    let served = variants(&file("src/server/api/route.rs").unwrap(), "Operation");
    let mut said = Vec::new();
    for row in table(&readme(), "Operations of Lambda's API") {
        for name in row[0].split(", ") {
            let is_served = served.contains(name);
            match row[1].as_str() {
                "yes" | "partly" => {
                    assert!(is_served, "{name} is said to be served, and src/server/api/route.rs does not know it")
                }
                "no" => assert!(!is_served, "{name} is served, and README says no"),
                other => panic!("{name}: {other:?} is neither yes, partly nor no"),
            }
            assert!(row[1] != "partly" || !row[2].is_empty(), "{name}: which part?");
            said.push(name.to_owned());
        }
    }
    said.sort();
    assert_eq!(said, OPERATIONS, "each operation once");
    let unknown: Vec<&String> = served.iter().filter(|name| !OPERATIONS.contains(&name.as_str()) && *name != OWN).collect();
    assert!(unknown.is_empty(), "{unknown:?} are no operations of Lambda's");
}

#[test]
fn the_table_of_keys_is_the_configuration() {
    let said: Vec<(String, String)> =
        table(&readme(), "Configuration").iter().map(|row| (quoted(&row[0]).concat(), quoted(&row[1]).concat())).collect();
    let mut sorted = said.clone();
    sorted.sort();
    let keys: Vec<(String, String)> = Config::keys().iter().map(|(key, value)| (key.clone(), value.to_string())).collect();
    assert_eq!(sorted, keys);
}

#[test]
fn the_table_of_keys_marks_what_a_reload_takes_over() {
    for row in table(&readme(), "Configuration") {
        let key = quoted(&row[0]).concat();
        let by = if RELOADABLE.contains(&key.as_str()) { "reload" } else { "restart" };
        assert_eq!(row[2].trim(), by, "{key}");
    }
}

#[test]
fn every_verb_is_told() {
    let help = Command::new(env!("CARGO_BIN_EXE_kiln")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let verbs = help.split("Commands:\n").nth(1).unwrap().lines().take_while(|line| line.starts_with("  "));
    let verbs: BTreeSet<&str> = verbs.filter_map(|line| line.split_whitespace().next()).filter(|verb| *verb != "help").collect();
    assert!(verbs.len() >= 6, "{help}");
    let rows = table(&readme(), "The command");
    let told: BTreeSet<&str> = rows.iter().filter_map(|row| quoted(&row[0])[0].strip_prefix("kiln ")).collect();
    assert_eq!(told, verbs);
}

#[test]
fn scripts_and_files_that_are_named_are_there_and_the_page_is_readable() {
    let text = readme();
    let begins = |word: &&str| ["scripts/", "examples/", "src/", "tests/"].iter().any(|start| word.starts_with(start));
    let words = text.split(|c: char| c.is_whitespace() || "`()|,;:".contains(c)).filter(begins);
    for word in words {
        let path = word.trim_end_matches(['.', '/']);
        assert!(root().join(path).exists(), "README names {path}, which is not there");
    }
    let lines = text.lines().count();
    assert!(lines <= 350, "{lines} lines: nobody reads that");
}
