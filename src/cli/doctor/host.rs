//! What the checks look at: files below a root, and what the few calls that no file answers have answered.
//!
//! So each check is a function of a [`Host`], and a test can hand it one that is broken in exactly one place.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use hyper::Method;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::utsname::uname;
use nix::unistd::{Group, Uid, User, getgid, getgroups};
use rustix::fs::CWD;
use rustix::mount::{FsOpenFlags, OpenTreeFlags, fsopen, open_tree};
use serde::Deserialize;
use serde_json::Value;
use tokio::net::UnixStream;

use super::systemd::{Systemd, service_of};
use crate::cli::client::{Client, Socket};
use crate::cli::failure::Failure;
use crate::config::Config;

/// A server that lives answers in milliseconds; one that is busy with a thousand callers in a second.
const PATIENCE: Duration = Duration::from_secs(5);

pub struct Host {
    /// What stands for `/`.
    pub root: PathBuf,
    /// `uname -r` and `uname -m`.
    pub release: String,
    pub machine: String,
    /// Who asks, with all groups.
    pub uid: u32,
    pub gids: Vec<u32>,
    pub users: Vec<Account>,
    pub groups: Vec<Account>,
    /// The hard limit that whoever starts kilnd from here hands on.
    pub descriptors: u64,
    pub user_namespaces: Probe,
    pub mounting: Probe,
    pub systemd: Option<Systemd>,
    pub kilnd: Kilnd,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub id: u32,
}

/// Something tried, that leaves no trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    Works,
    Refused(String),
    /// Only root is allowed to.
    NeedsRoot,
    /// For want of a program, say.
    NotTried(String),
}

/// Who answers at the two sockets.
#[derive(Debug, Default)]
pub struct Kilnd {
    /// Whether a connection was taken.
    pub api: Option<io::ErrorKind>,
    pub control: Option<io::ErrorKind>,
    /// What it says about itself, to those who may ask.
    pub status: Option<Status>,
    /// It took the connection, and then said this, or nothing.
    pub trouble: Option<String>,
    /// systemd listens, and would start it for whoever connects: so nobody did.
    pub waits: bool,
}

impl Kilnd {
    /// The units of the instance; those that the running one is in, whatever they are called.
    fn systemd(&self, config: &Config) -> Option<Systemd> {
        let pid = self.status.as_ref().map(|status| status.server_pid);
        let groups = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()).unwrap_or_default();
        Systemd::look(&config.instance, service_of(&groups))
    }
}

/// `GET /v1/status`. An older or newer kilnd may leave something out.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    pub version: String,
    pub server_pid: u32,
    /// Limit of open descriptors of the server.
    pub descriptors: Option<u64>,
    config: Value,
    /// Keys whose value in its file is for its next start.
    pub waiting_for_restart: Vec<String>,
    /// Where it serves metrics, besides control.sock.
    pub metrics: Option<String>,
    /// It takes nothing new, and will end.
    pub draining: bool,
}

impl Status {
    /// The configuration in force, if it is one that we know all keys of.
    pub fn config(&self) -> Option<Config> {
        Config::deserialize(&self.config).ok()
    }
}

impl Host {
    /// This one, as the caller may see it. `names` are users and groups that must be asked for by name, too: not every
    /// directory service lists all that it knows.
    pub fn look(config: &Config, kilnd: Kilnd) -> Self {
        let names = uname().ok();
        let name = |text: Option<&std::ffi::OsStr>| text.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
        let mut groups = accounts("group");
        for group in [&config.invoke_group, &config.admin_group] {
            if let Ok(Some(found)) = Group::from_name(group) {
                groups.push(Account { name: found.name, id: found.gid.as_raw() });
            }
        }
        let mut users = accounts("passwd");
        if let Ok(Some(found)) = User::from_name(&config.user) {
            users.push(Account { name: found.name, id: found.uid.as_raw() });
        }
        for list in [&mut users, &mut groups] {
            list.sort_by(|a, b| (a.id, &a.name).cmp(&(b.id, &b.name)));
            list.dedup();
        }
        let mut gids: Vec<u32> = getgroups().unwrap_or_default().into_iter().map(nix::unistd::Gid::as_raw).collect();
        gids.push(getgid().as_raw());
        Self {
            root: "/".into(),
            release: name(names.as_ref().map(|names| names.release())),
            machine: name(names.as_ref().map(|names| names.machine())),
            uid: Uid::effective().as_raw(),
            gids,
            users,
            groups,
            descriptors: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard),
            user_namespaces: user_namespaces(),
            mounting: mounting(),
            systemd: kilnd.systemd(config),
            kilnd,
        }
    }

    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    pub fn text(&self, path: impl AsRef<Path>) -> io::Result<String> {
        std::fs::read_to_string(self.path(path))
    }

    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).exists()
    }

    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    pub fn group(&self, name: &str) -> Option<u32> {
        self.groups.iter().find(|group| group.name == name).map(|group| group.id)
    }
}

/// All that the name services list. `getent` asks them as every program of the host does.
fn accounts(database: &str) -> Vec<Account> {
    let listed = Command::new("getent").arg(database).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let text = match listed {
        Ok(listed) if listed.status.success() => String::from_utf8_lossy(&listed.stdout).into_owned(),
        _ => std::fs::read_to_string(Path::new("/etc").join(database)).unwrap_or_default(),
    };
    text.lines().filter_map(account).collect()
}

/// `name:x:id:…`
fn account(line: &str) -> Option<Account> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    Some(Account { name, id: fields.nth(1)?.parse().ok()? })
}

/// In a process of its own: a user namespace is entered for good.
fn user_namespaces() -> Probe {
    let mut command = Command::new("unshare");
    let tried = command.args(["--user", "true"]).env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::null()).output();
    match tried {
        Ok(tried) if tried.status.success() => Probe::Works,
        Ok(tried) => Probe::Refused(String::from_utf8_lossy(&tried.stderr).trim().to_owned()),
        Err(error) => Probe::NotTried(format!("the program unshare cannot be started: {error}")),
    }
}

/// Makes a file system and a clone of a mount that nobody sees, and lets go of both.
fn mounting() -> Probe {
    if !Uid::effective().is_root() {
        return Probe::NeedsRoot;
    }
    let made = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| ("fsopen", errno)).and_then(|_| {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, "/", flags).map_err(|errno| ("open_tree", errno))
    });
    match made {
        Ok(_) => Probe::Works,
        Err((call, errno)) => Probe::Refused(format!("{call}: {}", io::Error::from(errno))),
    }
}

/// Knocks at both sockets, and asks for the status; unless that would start a kilnd.
pub async fn knock(client: &Client, config: &Config) -> Kilnd {
    let run_dir = &config.run_dir;
    if Systemd::look(&config.instance, None).is_some_and(|systemd| systemd.waits_for_callers()) {
        return Kilnd { waits: true, ..Kilnd::default() };
    }
    // Never blocks: where the queue of a server that hangs is full, that is the answer.
    let knock = |name| async move { UnixStream::connect(run_dir.join(name)).await.err().map(|error| error.kind()) };
    let mut kilnd = Kilnd { api: knock("kiln.sock").await, control: knock("control.sock").await, ..Kilnd::default() };
    if kilnd.control.is_some() {
        return kilnd;
    }
    let asked = tokio::time::timeout(PATIENCE, client.request(Socket::Control, Method::GET, "/v1/status", &[], "")).await;
    let answer = match asked {
        Ok(answer) => answer.and_then(|reply| reply.json()),
        Err(_) => Err(Failure::Unreachable(format!("it has not answered within {} s", PATIENCE.as_secs()))),
    };
    match answer {
        Ok(status) => kilnd.status = Status::deserialize(status).ok(),
        Err(failure) => kilnd.trouble = Some(failure.to_string()),
    }
    kilnd
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_passwd_or_group_is_an_account() {
        let kiln = Account { name: "kiln".into(), id: 990 };
        assert_eq!(account("kiln:x:990:991:Kiln's server:/nonexistent:/usr/sbin/nologin"), Some(kiln.clone()));
        assert_eq!(account("kiln:x:990:"), Some(kiln));
        assert_eq!(account("+::::::"), None);
    }
}
