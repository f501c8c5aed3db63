//! Cgroups that a test may call its own.
//!
//! On hybrid and v1 hosts Kiln makes its groups below whatever group the test runs in. On a unified host a group has
//! processes or children with limits, never both, so there systemd lends a scope.

use std::io::Read;
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
