//! The server's user, the two groups, and whether the caller is in one of them.

use super::finding::{Finding, broken, ok, warn};
use super::host::Host;
use crate::config::Config;

pub fn checks(host: &Host, config: &Config) -> Vec<Finding> {
    vec![
        user(host, config),
        group(host, "invoke-group", "invoke_group", &config.invoke_group),
        group(host, "admin-group", "admin_group", &config.admin_group),
    ]
}

fn user(host: &Host, config: &Config) -> Finding {
    let name = &config.user;
    let finding = match host.users.iter().find(|user| user.name == *name) {
        Some(user) if user.id == 0 => broken(
            "user",
            format!("the server would run as {name}, which is root: it parses what strangers send"),
            "set user in the configuration to one that can do nothing else; scripts/users makes kiln",
        ),
        Some(user) => ok("user", format!("{name} ({})", user.id)),
        None => broken(
            "user",
            format!("there is no user {name:?}"),
            format!(
                "sudo scripts/users, or: groupadd --system {name} && useradd --system --gid {name} --no-create-home \
                 --shell /usr/sbin/nologin {name}"
            ),
        ),
    };
    finding.about("user")
}

fn group(host: &Host, check: &'static str, key: &'static str, name: &str) -> Finding {
    let finding = match host.group(name) {
        Some(id) => ok(check, format!("{name} ({id})")),
        None => broken(
            check,
            format!("there is no group {name:?}"),
            format!("sudo scripts/users, or: groupadd --system {name}; or correct {key} in the configuration"),
        ),
    };
    finding.about(key)
}

/// What the caller may do, by their groups as they are in force now: joining one needs a new login.
pub fn caller(host: &Host, config: &Config) -> Finding {
    let in_group = |name: &str| host.group(name).is_some_and(|id| host.gids.contains(&id));
    if host.is_root() {
        ok("caller", "root: may do everything")
    } else if in_group(&config.admin_group) {
        ok("caller", format!("in {}: may manage functions, invoke and look into the pools", config.admin_group))
    } else if in_group(&config.invoke_group) {
        ok("caller", format!("in {}: may invoke, and nothing else", config.invoke_group))
    } else {
        let (invoke, admin) = (&config.invoke_group, &config.admin_group);
        warn(
            "caller",
            format!("neither in {invoke} nor in {admin}: may do nothing"),
            format!("sudo usermod -aG {invoke} $USER (to invoke) or -aG {admin} (to manage), and log in again"),
        )
    }
}
