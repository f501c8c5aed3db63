//! `kiln config sample|check`: what may be set, and whether a file is right on this host before kilnd reads it.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::ConfigCommand;
use super::doctor::{self, Finding, Host, Kilnd, State, Words, broken, ok};
use super::failure::Failure;
use super::output;
use crate::config::reading::Fault;
use crate::config::{self, Config, reading};

const WORDS: Words =
    Words { broken: "wrong", verdicts: ["kilnd can start with this", "kilnd would not start, or not work, with this"] };

pub fn execute(command: ConfigCommand, as_json: bool) -> Result<(), Failure> {
    match command {
        ConfigCommand::Sample if as_json => output::print_json(&json!(Config::keys())),
        ConfigCommand::Sample => output::print(config::SAMPLE.as_bytes()),
        ConfigCommand::Check { file, file_only } => check(file, file_only, as_json),
    }
}

fn check(file: Option<PathBuf>, file_only: bool, as_json: bool) -> Result<(), Failure> {
    let named = file.is_some();
    let path = file.unwrap_or_else(|| config::DEFAULT_PATH.into());
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !named => {
            output::say(&format!("there is no {}: every key has its default", path.display()));
            String::new()
        }
        Err(error) => return Err(Failure::Failed(format!("{} cannot be read: {error}", path.display()))),
    };
    let (config, faults) = reading::read(&text);
    // Nobody is asked who runs already: the file is for the next start.
    let host = Host::look(&config, Kilnd::default());
    let of_host = if file_only { Vec::new() } else { doctor::of_configuration(&host, &config) };
    let findings = examined(&path, &config, &faults, of_host);
    doctor::report(&findings, &WORDS, as_json, json!({ "file": path }))
}

/// Faults that belong to no key first, then a line for each key: its fault, or what the host says, or its value.
fn examined(path: &Path, config: &Config, faults: &[Fault], of_host: Vec<Finding>) -> Vec<Finding> {
    let wrong = |name: String, fault: &Fault| {
        // The text says what to write instead; the cure is to do it there.
        let cure = match fault.place {
            Some((line, _)) => format!("correct line {line} of {}", path.display()),
            None => format!("set it in {}", path.display()),
        };
        broken(name, format!("{}:{fault}", path.display()), cure)
    };
    let values = toml::Table::try_from(config).unwrap_or_default();
    let is_known = |fault: &Fault| fault.key.as_ref().is_some_and(|key| values.contains_key(key));
    let name = |fault: &Fault| fault.key.clone().unwrap_or_else(|| "file".into());
    let mut findings: Vec<Finding> =
        faults.iter().filter(|fault| !is_known(fault)).map(|fault| wrong(name(fault), fault)).collect();
    for (key, value) in &values {
        let mut of_key: Vec<Finding> =
            faults.iter().filter(|fault| fault.key.as_ref() == Some(key)).map(|fault| wrong(key.clone(), fault)).collect();
        if of_key.is_empty() {
            let about = of_host.iter().filter(|finding| finding.key == Some(key) && finding.state != State::Ok);
            of_key.extend(about.map(|finding| Finding { check: key.clone().into(), ..finding.clone() }));
        }
        if of_key.is_empty() {
            of_key.push(ok(key.clone(), value.to_string()));
        }
        findings.extend(of_key);
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_a_line_and_its_fault_hides_its_value() {
        let (config, faults) = reading::read("idle_max_s = 'x'\nlauncher = 3\n");
        let host = doctor::warn("run-dir", "small", "larger").about("run_dir");
        let findings = examined(Path::new("/f"), &config, &faults, vec![host]);
        let states = |name: &str| findings.iter().filter(|finding| finding.check == name).map(|f| f.state).collect::<Vec<_>>();
        assert_eq!(findings[0].check, "launcher", "what is no key comes first");
        assert!(
            findings[0].found.starts_with("/f:2:1: unknown key") && findings[0].cure.as_deref() == Some("correct line 2 of /f")
        );
        assert_eq!(
            (states("idle_max_s"), states("run_dir"), states("drain_s")),
            (vec![State::Broken], vec![State::Warn], vec![State::Ok])
        );
        assert_eq!(findings.len(), Config::keys().len() + 1);
    }
}
