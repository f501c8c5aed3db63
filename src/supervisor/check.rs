//! What a host must have before anything is touched: root, a kernel, a user and two groups. Each refusal names its cure.

use nix::sys::utsname::uname;
use nix::unistd::{Gid, Group, Uid, User};

use crate::config::Config;

/// `cgroup.kill` came with it, and every other call that we make is older.
const OLDEST_KERNEL: (u32, u32) = (5, 14);

/// The server's own ids, and who may open which door.
#[derive(Clone, Copy, Debug)]
pub struct Identities {
    pub server: (Uid, Gid),
    pub invoke: Gid,
    pub admin: Gid,
}

#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("kilnd must be started as root (it gives up what it can in each of its processes)")]
    NotRoot,
    #[error("Linux {found} is too old: at least {}.{} is needed", OLDEST_KERNEL.0, OLDEST_KERNEL.1)]
    Kernel { found: String },
    #[error("there is no {kind} {name:?}; scripts/users makes it")]
    Missing { kind: &'static str, name: String },
    #[error("look up the {kind} {name:?}")]
    LookUp { kind: &'static str, name: String, source: nix::Error },
    #[error("the server's user {0:?} is root: choose another in the configuration")]
    ServerIsRoot(String),
}

pub fn host(config: &Config) -> Result<Identities, CheckError> {
    if !Uid::effective().is_root() {
        return Err(CheckError::NotRoot);
    }
    let release = uname().map(|names| names.release().to_string_lossy().into_owned()).unwrap_or_default();
    if version(&release).is_none_or(|found| found < OLDEST_KERNEL) {
        return Err(CheckError::Kernel { found: release });
    }
    let user = look_up("user", &config.user, User::from_name(&config.user))?;
    if user.uid.is_root() || user.gid.as_raw() == 0 {
        return Err(CheckError::ServerIsRoot(config.user.clone()));
    }
    let group = |name: &str| look_up("group", name, Group::from_name(name)).map(|group| group.gid);
    Ok(Identities { server: (user.uid, user.gid), invoke: group(&config.invoke_group)?, admin: group(&config.admin_group)? })
}

fn look_up<T>(kind: &'static str, name: &str, found: nix::Result<Option<T>>) -> Result<T, CheckError> {
    found
        .map_err(|source| CheckError::LookUp { kind, name: name.to_owned(), source })?
        .ok_or_else(|| CheckError::Missing { kind, name: name.to_owned() })
}

/// `6.1.0-18-amd64` is (6, 1).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_are_read() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.4.0"), Some((5, 4)));
        assert!((5, 9) < OLDEST_KERNEL && (6, 1) > OLDEST_KERNEL);
        assert_eq!(version(""), None);
    }
}
