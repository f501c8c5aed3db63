//! Cgroups that a test may call its own.
//!
//! On hybrid and v1 hosts Kiln makes its groups below whatever group the test runs in. On a unified host a group has
//! processes or children with limits, never both, so there systemd lends a scope.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const ROOT: &str = "/sys/fs/cgroup";

pub fn unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// `program`, in a group that it may call its own. systemd-run becomes the program, so the child's pid is the program's.
pub fn command(program: &str) -> Command {
    if !unified() {
        return Command::new(program);
    }
    let mut command = Command::new("systemd-run");
    command.args(["--quiet", "--scope", "--collect", "--property=Delegate=yes", program]);
    command
}

/// `program`, started as systemd starts a service whose socket units hold its doors: from descriptor 3 on, by name.
pub fn activated(program: impl AsRef<OsStr>, doors: &[(&str, &UnixListener)]) -> Command {
    let mut command = command("sh");
    let names: Vec<&str> = doors.iter().map(|(name, _)| *name).collect();
    let own = |door: &UnixListener| Stdio::from(OwnedFd::from(door.try_clone().expect("duplicate a door")));
    let mut ends = String::new();
    if let Some((_, door)) = doors.first() {
        command.stdin(own(door));
        ends += "3<&0";
    }
    if let Some((_, door)) = doors.get(1) {
        command.stdout(own(door));
        ends += " 4<&1";
    }
    // The variables name the process that they are for, so only that process can set them.
    let script = format!("exec {ends} </dev/null >/dev/null; export LISTEN_PID=$$; exec \"$@\"");
    command.args(["-c", &script, "sh"]).arg(program);
    command.env("LISTEN_FDS", doors.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
    command
}

/// A door as a socket unit makes it.
pub fn door(path: &Path, group: &str) -> UnixListener {
    let listener = UnixListener::bind(path).expect("bind a door");
    let group = nix::unistd::Group::from_name(group).expect("look up a group").expect("scripts/users has made the group");
    chown(path, Some(0), Some(group.gid.as_raw())).expect("give a door to its group");
    std::fs::set_permissions(path, Permissions::from_mode(0o660)).expect("open a door to its group");
    listener
}

/// A scope that lasts as long as this value, with its controllers enabled, for groups that the test makes itself.
pub struct Scope {
    /// Reads until the test ends, however it ends.
    keeper: Child,
    pub directory: PathBuf,
}

impl Scope {
    pub fn new() -> Self {
        // The scope's own process moves out of the way first, then enables what its siblings-to-be need.
        let script = "own=$(sed -n 's/^0:://p' /proc/self/cgroup); cd \"/sys/fs/cgroup$own\"; mkdir supervisor
            echo $$ > supervisor/cgroup.procs; echo '+cpu +memory +pids' > cgroup.subtree_control; pwd; exec cat > /dev/null";
        let mut command = command("bash");
        let mut keeper =
            command.args(["-euc", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start a scope");
        let mut directory = String::new();
        keeper.stdout.take().expect("just piped").read_to_string(&mut directory).expect("read the scope's directory");
        assert!(directory.starts_with(ROOT), "no scope was made: {directory:?}");
        Self { keeper, directory: directory.trim_end().into() }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
