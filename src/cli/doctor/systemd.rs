//! What systemd says of kilnd's units: asked once, in one `systemctl show` for all; nothing is changed by that, and no unit started.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

/// All that the checks look at.
const PROPERTIES: &str = "Id,LoadState,ActiveState,SubState,Result,NRestarts,UnitFileState,NeedDaemonReload,FragmentPath,Type,NotifyAccess,\
    Delegate,KillMode,OOMPolicy,ProtectControlGroups,Slice,MemoryMax,MemoryHigh,TasksMax,LimitNOFILE";

/// A host with systemd as its first process, and what it says of the units of one instance.
#[derive(Clone, Debug, Default)]
pub struct Systemd {
    /// `None`: it does not say.
    pub version: Option<u32>,
    /// Of the instance; others are those of its doors.
    pub service: String,
    pub sockets: [String; 2],
    pub units: BTreeMap<String, Unit>,
}

/// Properties by their names in systemd.
#[derive(Clone, Debug, Default)]
pub struct Unit(pub BTreeMap<String, String>);

impl Unit {
    /// Empty for one that this systemd does not know.
    pub fn get(&self, property: &str) -> &str {
        self.0.get(property).map_or("", String::as_str)
    }

    /// A size or a count; none for `infinity`.
    pub fn number(&self, property: &str) -> Option<u64> {
        self.get(property).parse().ok().filter(|number| *number != u64::MAX)
    }

    pub fn is_installed(&self) -> bool {
        !matches!(self.get("LoadState"), "" | "not-found")
    }

    pub fn is_active(&self) -> bool {
        matches!(self.get("ActiveState"), "active" | "activating" | "reloading" | "deactivating")
    }
}

impl Systemd {
    /// `None` on a host without it. `running`: the unit that a kilnd which runs is in.
    pub fn look(instance: &str, running: Option<&str>) -> Option<Self> {
        if !Path::new("/run/systemd/system").is_dir() {
            return None;
        }
        let at = if instance == "default" { String::new() } else { format!("@{instance}") };
        let mut systemd = Self {
            version: version(),
            service: running.map_or_else(|| format!("kilnd{at}.service"), str::to_owned),
            sockets: [format!("kilnd{at}.socket"), format!("kilnd-control{at}.socket")],
            units: BTreeMap::new(),
        };
        let names = [&[systemd.service.clone()], &systemd.sockets[..]].concat();
        systemd.ask(&names);
        let slice = systemd.service().get("Slice").to_owned();
        if slice != "system.slice" && !slice.is_empty() {
            systemd.ask(&[slice]);
        }
        Some(systemd)
    }

    fn ask(&mut self, names: &[String]) {
        let mut command = Command::new("systemctl");
        command.args(["show", "--property", PROPERTIES, "--"]).args(names).env("LC_ALL", "C").stdin(Stdio::null());
        let answer = command.stderr(Stdio::null()).output().map(|answer| answer.stdout).unwrap_or_default();
        self.units.extend(units(&String::from_utf8_lossy(&answer)));
    }

    pub fn unit(&self, name: &str) -> Unit {
        self.units.get(name).cloned().unwrap_or_default()
    }

    pub fn service(&self) -> Unit {
        self.unit(&self.service)
    }

    /// Whether a kilnd that does not run would be started by whoever connects.
    pub fn waits_for_callers(&self) -> bool {
        !self.service().is_active() && self.sockets.iter().any(|socket| self.unit(socket).is_active())
    }

    /// The smallest limit on memory that the service will have, and the property that says so.
    pub fn memory_limit(&self) -> Option<(u64, String)> {
        let limits = self.units.iter().filter(|(name, _)| !self.sockets.contains(name)).flat_map(|(name, unit)| {
            let limit = |property: &str| Some((unit.number(property)?, format!("{property}= of {name}")));
            [limit("MemoryMax"), limit("MemoryHigh")].into_iter().flatten()
        });
        limits.min_by_key(|(bytes, _)| *bytes)
    }
}

fn version() -> Option<u32> {
    let answer = Command::new("systemctl").arg("--version").env("LC_ALL", "C").stdin(Stdio::null()).output().ok()?;
    version_in(&String::from_utf8_lossy(&answer.stdout))
}

/// `systemd 252 (252.39-1~deb12u1)` and more.
fn version_in(text: &str) -> Option<u32> {
    let number = text.strip_prefix("systemd ")?;
    number[..number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len())].parse().ok()
}

/// `systemctl show` of many: lines of `Name=value`, an empty line between units.
fn units(text: &str) -> impl Iterator<Item = (String, Unit)> {
    text.split("\n\n").filter_map(|block| {
        let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        let unit = Unit(block.lines().filter_map(pair).collect());
        Some((unit.0.get("Id")?.clone(), unit))
    })
}

/// The service in a text of /proc/PID/cgroup: the innermost one.
pub fn service_of(groups: &str) -> Option<&str> {
    let paths = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.flat_map(|path| path.rsplit('/')).find(|part| part.ends_with(".service"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_has_its_own_properties() {
        let text = "Id=kilnd.service\nMemoryMax=infinity\nDelegate=yes\n\nId=kiln.slice\nMemoryMax=1048576\n";
        let systemd = Systemd { service: "kilnd.service".into(), units: units(text).collect(), ..Systemd::default() };
        assert_eq!(systemd.service().get("Delegate"), "yes");
        assert_eq!(systemd.memory_limit(), Some((1 << 20, "MemoryMax= of kiln.slice".into())));
        assert!(!systemd.unit("kilnd.socket").is_installed());
    }

    #[test]
    fn its_version_is_the_first_number_it_says() {
        assert_eq!(version_in("systemd 252 (252.39-1~deb12u1)\n+PAM +AUDIT\n"), Some(252));
        assert_eq!(version_in("systemd 257.8-1\n"), Some(257));
        assert_eq!((version_in(""), version_in("systemd v\n"), version_in("busybox 1\n")), (None, None, None));
    }

    #[test]
    fn the_innermost_service_is_kilnds() {
        assert_eq!(service_of("0::/kiln.slice/kilnd@a.service/supervisor\n"), Some("kilnd@a.service"));
        assert_eq!(service_of("4:memory:/system.slice/kilnd.service\n0::/\n"), Some("kilnd.service"));
        assert_eq!(service_of("0::/user.slice/session-1.scope\n"), None);
    }
}
