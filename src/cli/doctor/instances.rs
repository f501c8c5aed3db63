//! Other instances of Kiln that run: what two have in common, the second refuses to start with.

use super::finding::{Finding, broken, ok};
use super::host::Host;
use super::leftovers::{INSTANCES, holder};
use crate::config::Config;

/// One finding for each key whose value is another running instance's.
///
/// Which one is another? A file is for the next start of its own instance, of which a key may have been changed. So who has this
/// one's `run_dir`, or both its name and its `state_dir`, is this one; who has one of the two stands in its way.
pub fn checks(host: &Host, config: &Config) -> Vec<Finding> {
    let locks = host.text("/proc/locks").unwrap_or_default();
    let mut findings = Vec::new();
    for line in host.text(INSTANCES).unwrap_or_default().lines() {
        let [name, _, _, run_dir, state_dir] = line.split(' ').collect::<Vec<_>>()[..] else { continue };
        if config.run_dir.to_str() == Some(run_dir) {
            continue;
        }
        let key = match (config.instance == name, config.state_dir.to_str() == Some(state_dir)) {
            (true, false) => "instance",
            (false, true) => "state_dir",
            _ => continue,
        };
        if holder(host, &locks, run_dir.as_ref()).is_none() {
            continue;
        }
        let found = format!("{key} is also that of the instance {name:?} of Kiln, which runs in {run_dir}");
        findings.push(
            broken("instances", found, format!("set {key} in the configuration to another, or stop that instance")).about(key),
        );
    }
    if findings.is_empty() {
        findings.push(ok("instances", "no other that runs has this one's name or directories").about("instance"));
    }
    findings
}
