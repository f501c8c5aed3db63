//! `kiln doctor`: looks at everything that Kiln needs of a host, and says for each what it saw and what cures it.
//!
//! Changes nothing; what it tries leaves no trace. As root it sees all; as anybody else it says where only root can look.
//! It needs no kilnd, and asks the one that runs, if the caller may. Each check is a function of what [`Host`] holds:
//!
//! ```text
//! kernel      version, namespaces, seccomp, overlayfs, mounting
//! cgroups     hierarchies, controllers, delegation, swap, what is optional, pressure
//! unit        under systemd: the service's state and settings, its file, its sockets
//! ids         the range of containers, the owner of the trees
//! instances   others that run, under this one's name or in its directories
//! accounts    the server's user, the two groups, the caller
//! room        disk, inodes, descriptors, memory
//! runtimes    recipes, sets, trees and their owner
//! doors       the sockets, versions, the configuration in force
//! leftovers   of instances that died
//! ```
//!
//! `kiln config check` asks those that are about a key of the configuration ([`of_configuration`]).

mod accounts;
mod cgroups;
mod doors;
mod finding;
mod host;
mod ids;
mod instances;
mod kernel;
mod leftovers;
mod room;
mod runtimes;
mod systemd;
mod unit;

use std::path::{Path, PathBuf};

use serde_json::json;

pub use self::finding::{Finding, State, Words, broken, ok, report, warn};
pub use self::host::{Account, Host, Kilnd, Probe, Status};
pub use self::systemd::{Systemd, Unit};
use super::client::Client;
use super::failure::Failure;
use crate::config::{self, Config, reading};

const WORDS: Words =
    Words { broken: "broken", verdicts: ["Everything that Kiln needs is there", "Kiln cannot work here until that is cured"] };

/// `file` is what the caller named, `run` the run_dir that they named.
pub async fn execute(file: Option<&Path>, run: Option<&Path>, as_json: bool) -> Result<(), Failure> {
    let (mut config, of_file) = configuration(file)?;
    if let Some(run) = run {
        config.run_dir = run.to_owned();
    }
    let kilnd = host::knock(&Client::new(&config.run_dir), &config).await;
    let mut compare = Some(config.clone()).filter(|_| file.is_some());
    // Who names no file means the instance that runs: what it has in force is what counts.
    let in_force = kilnd.status.as_ref().and_then(Status::config).filter(|_| file.is_none());
    let mut findings = vec![of_file];
    if let Some(in_force) = in_force {
        findings = vec![ok("configuration", "as the running kilnd has it")];
        compare = None;
        config = in_force;
    }
    let host = Host::look(&config, kilnd);
    findings.extend(examine(&host, &config, compare.as_ref()));
    report(&findings, &WORDS, as_json, json!({ "run_dir": config.run_dir }))
}

/// Every check, in the order in which a person would cure them.
pub fn examine(host: &Host, config: &Config, compare: Option<&Config>) -> Vec<Finding> {
    let mut findings = kernel::checks(host);
    findings.extend(cgroups::checks(host));
    findings.extend(unit::checks(host));
    findings.extend(of_configuration(host, config));
    findings.extend(doors::checks(host, config, compare));
    findings.push(accounts::caller(host, config));
    findings.push(leftovers::check(host, config));
    findings
}

/// Every check of a key's value against the host.
pub fn of_configuration(host: &Host, config: &Config) -> Vec<Finding> {
    let mut findings = accounts::checks(host, config);
    findings.extend(ids::checks(host, config));
    findings.extend(instances::checks(host, config));
    findings.extend(room::checks(host, config));
    findings.extend(runtimes::checks(host, config));
    findings
}

/// What the file says as far as it is right, and what the doctor says about it.
fn configuration(file: Option<&Path>) -> Result<(Config, Finding), Failure> {
    let path = file.map_or_else(|| PathBuf::from(config::DEFAULT_PATH), Path::to_owned);
    let shown = path.display();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => {
            return Ok((Config::default(), ok("configuration", format!("there is no {shown}: every key has its default"))));
        }
        Err(error) if file.is_none() => {
            let finding = warn("configuration", format!("{shown} cannot be read ({error}): defaults are assumed"), "use sudo");
            return Ok((Config::default(), finding));
        }
        Err(error) => return Err(Failure::Failed(format!("{shown} cannot be read: {error}"))),
    };
    let (config, faults) = reading::read(&text);
    let finding = match &faults[..] {
        [] => ok("configuration", shown.to_string()),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(", and {} more", rest.len()) };
            broken("configuration", format!("{shown}:{first}{more}"), format!("kiln config check {shown} shows each fault"))
        }
    };
    Ok((config, finding))
}
