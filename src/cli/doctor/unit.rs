//! kilnd's units under systemd: whether they stand, whether what they say lets kilnd keep its promises, and whether systemd has read it.

use super::finding::{Finding, State, broken, ok, warn};
use super::host::Host;
use super::systemd::{Systemd, Unit};
use crate::wire::launcher::CgroupLayout;

/// What the units are written for.
const OLDEST: u32 = 252;

pub fn checks(host: &Host) -> Vec<Finding> {
    let Some(systemd) = &host.systemd else { return vec![ok("unit", "this host has no systemd")] };
    let mut findings = vec![version(host, systemd)];
    findings.extend(of_units(host, systemd));
    findings
}

fn version(host: &Host, systemd: &Systemd) -> Finding {
    let by_hand = host.kilnd.status.is_some() && !systemd.service().is_installed();
    match systemd.version {
        Some(version) if version < OLDEST && !by_hand => broken(
            "systemd",
            format!("{version}, and Kiln's units are for {OLDEST} and newer"),
            "use Debian 12, Ubuntu 24.04 or a newer one; or do without the units: systemd-run --scope -p Delegate=yes kilnd",
        ),
        Some(version) => ok("systemd", version.to_string()),
        None => ok("systemd", "of an unknown version"),
    }
}

fn of_units(host: &Host, systemd: &Systemd) -> Vec<Finding> {
    let (name, unit) = (&systemd.service, systemd.service());
    if !unit.is_installed() {
        let by_hand = if host.kilnd.status.is_some() { "kilnd was started without a unit" } else { "scripts/install brings it" };
        return vec![ok("unit", format!("there is no {name}: {by_hand}"))];
    }
    if unit.get("LoadState") != "loaded" {
        let found = format!("{name} cannot be loaded ({})", unit.get("LoadState"));
        let cure = format!("systemctl unmask {name}, if it is masked; else systemd-analyze verify {name} tells what is wrong");
        return vec![broken("unit", found, cure)];
    }
    let mut findings = vec![state(name, &unit), read_again(systemd)];
    findings.extend(settings(host, name, &unit));
    findings.extend(sockets(systemd));
    findings
}

fn state(name: &str, unit: &Unit) -> Finding {
    let (active, result, restarts) = (unit.get("ActiveState"), unit.get("Result"), unit.get("NRestarts"));
    let log = format!("journalctl -u {name} -n 50 tells why");
    if active == "failed" || result == "start-limit-hit" {
        let found = format!("{name} has failed ({result}, restarted {restarts} times)");
        return broken("unit", found, format!("{log}; when it is mended: systemctl reset-failed {name}; systemctl start {name}"));
    }
    if active == "activating"
        && (unit.get("SubState") == "auto-restart" || unit.number("NRestarts").is_some_and(|times| times > 0))
    {
        return warn("unit", format!("{name} ended and is started again ({result}, {restarts} times so far)"), log);
    }
    match unit.get("UnitFileState") {
        "disabled" => {
            let found = format!("{name} is {active}, and is not started at boot");
            warn("unit", found, format!("systemctl enable {name}"))
        }
        file => ok("unit", format!("{name} is {active}, {file}")),
    }
}

fn read_again(systemd: &Systemd) -> Finding {
    let stale: Vec<&str> =
        systemd.units.iter().filter(|(_, unit)| unit.get("NeedDaemonReload") == "yes").map(|(name, _)| name.as_str()).collect();
    if stale.is_empty() {
        return ok("unit-file", systemd.service().get("FragmentPath"));
    }
    let found = format!("{} changed on disk after systemd read it", stale.join(", "));
    warn("unit-file", found, format!("systemctl daemon-reload; systemctl restart {}", systemd.service))
}

/// Directives that another value of breaks a promise: what is wrong, and the line that is right.
fn settings(host: &Host, name: &str, unit: &Unit) -> Vec<Finding> {
    let unified = super::cgroups::hierarchies(host).is_none_or(|found| found.layout() == CgroupLayout::Unified);
    let is = |property: &str, values: &[&str]| values.contains(&unit.get(property));
    let mut wrong: Vec<(State, &str, &str)> = Vec::new();
    let mut when = |is_wrong: bool, state: State, why: &'static str, right: &'static str| {
        if is_wrong {
            wrong.push((state, why, right));
        }
    };
    let without = "systemd would take the limits of running functions back, so kilnd refuses to start";
    when(is("Delegate", &["no"]) && unified, State::Broken, without, "Delegate=yes");
    let hidden = "kilnd can make no group for its containers";
    when(is("ProtectControlGroups", &["yes", "private", "strict"]), State::Broken, hidden, "ProtectControlGroups=no");
    let oom = "when one function runs out of memory, systemd ends kilnd and all others";
    when(is("OOMPolicy", &["stop", "kill"]), State::Broken, oom, "OOMPolicy=continue");
    let left = "what kilnd leaves when it is killed is never ended";
    when(is("KillMode", &["process", "none"]), State::Broken, left, "KillMode=mixed");
    let cut = "at a stop running invocations are cut at once";
    when(is("KillMode", &["control-group"]), State::Warn, cut, "KillMode=mixed");
    let unready = "systemd does not wait until kilnd takes callers, and knows nothing of its watchdog";
    when(is("Type", &["simple", "exec", "forking", "oneshot", "idle"]), State::Warn, unready, "Type=notify");
    let anybody = "others than kilnd's first process could speak for it";
    when(is("NotifyAccess", &["all", "exec"]), State::Warn, anybody, "NotifyAccess=main");
    let few = "all functions together share that many processes, and each may have 1,024";
    when(unit.number("TasksMax").is_some(), State::Warn, few, "TasksMax=infinity");
    if wrong.is_empty() {
        let shown = ["Type", "Delegate", "KillMode", "OOMPolicy"].map(|property| format!("{property}={}", unit.get(property)));
        return vec![ok("unit-settings", shown.join(" "))];
    }
    let finding = |(state, why, right): (State, &str, &str)| {
        let property = right.split('=').next().unwrap_or_default();
        let found = format!("{property}={}: {why}", unit.get(property));
        Finding {
            state,
            ..broken("unit-settings", found, format!("{right} in [Service] (systemctl edit {name}), then restart it"))
        }
    };
    wrong.into_iter().map(finding).collect()
}

fn sockets(systemd: &Systemd) -> Option<Finding> {
    let units: Vec<(&String, Unit)> = systemd.sockets.iter().map(|name| (name, systemd.unit(name))).collect();
    if units.iter().all(|(_, unit)| !unit.is_installed()) {
        return None;
    }
    let names = |which: &dyn Fn(&Unit) -> bool| {
        let found: Vec<&str> = units.iter().filter(|(_, unit)| which(unit)).map(|(name, _)| name.as_str()).collect();
        found.join(" ")
    };
    let failed = names(&|unit| unit.get("ActiveState") == "failed");
    if !failed.is_empty() {
        let cure = format!(
            "journalctl -u {0} tells why; then systemctl reset-failed {0}; systemctl start {0}",
            failed.replace(' ', " -u ")
        );
        let cure = if failed.contains(' ') { format!("systemctl reset-failed {failed}; systemctl start {failed}") } else { cure };
        return Some(broken("sockets", format!("{failed} failed: callers are refused"), cure));
    }
    let inactive = names(&|unit| !unit.is_active());
    if !systemd.service().is_active() && units.iter().all(|(_, unit)| !unit.is_active()) {
        return Some(ok("sockets", "not active, as kilnd itself; they start with it"));
    }
    if inactive.is_empty() {
        return Some(ok("sockets", "systemd holds both doors: callers queue while kilnd restarts"));
    }
    let found = format!("{inactive} not active: callers are refused while kilnd restarts");
    Some(warn("sockets", found, format!("systemctl enable --now {inactive}; systemctl restart {}", systemd.service)))
}
