//! `kiln container …`

use clap::{Args, Subcommand};

const EXEC_HELP: &str = help!(
    "  kiln container exec 3-17 -- bash
  kiln container exec 3-17 -- ls -l /tmp
  kiln container exec 3-17 -- cat /tmp/cache.db > cache.db
  kiln container exec 3-17 --root -- cat /tmp/private
  kiln container exec $(kiln container list --quiet --function hello | head -1) -- env

Runs a program of the container's own file system as the function's user, with the function's variables, limits and system calls; on a
terminal if stdin and stdout are one. An idle container is nobody else's meanwhile, and ends afterwards, if the program could be started.
One that runs an invocation is entered beside it, and ends with it. Either ends at once, and the program with it, when kilnd stops or somebody ends it by hand. When
kiln ends, so does the program, with everything that it has started. The function's log and kilnd's log name the user id. Root gets none
of the function's variables, and a PATH of the runtime's own programs: give the paths of others.

Its exit code is the program's own: 128 and more for a signal's, 127 where there is no such program, 126 where it cannot be executed.
A hostile function can write to your terminal what it likes: pipe into `cat -v` what you do not trust.",
    json: "  The same: what the program prints is its own."
);

const INSPECT_HELP: &str = help!(
    "  kiln container inspect 3-17
  kiln container inspect 3-17 --oci > config.json
  sudo ls -l /proc/$(kiln container inspect 3-17 --json | jq .runtime_pid)/fd

Wakes nobody: a frozen container stays frozen.",
    json: "  container, function, version, state (initialising, idle, busy, held), leaving (null, or why it ends soon), age_s, idle_s,
  invocations, why_cold: { why, last_end }, runtime, handler, code_sha256, layers_sha256,
  init_pid, runtime_pid (as the host numbers them), frozen, ids: a list of { uid, gid (inside), host_id },
  namespaces: { cgroup, ipc, mnt, net, pid, user, uts } (inodes, as in /proc/PID/ns), cgroups: a list of { hierarchy, path },
  mounts: a list of { at, kind, what, options }, memory: { used_mib, peak_mib, limit_mib (the function's), charged_mib,
  kernel_bytes, kernel_peak_bytes, kernel_limit_bytes (with page cache and /tmp), oom_kills },
  tmp: { used_bytes, size_bytes }, cpu: { used_us, quota_us, period_us, throttled (periods), throttled_us },
  tasks: { processes, now, limit }, open_files: { most (of one process), limit }, timeline: a list of events (kiln events --help);
  unknown: instead of what its launcher would tell, why it does not"
);

const LIST_HELP: &str = help!(
    "  kiln container list
  kiln container list --function hello
  kiln container list --quiet                    (ids only)",
    json: "  containers: a list of { function, version, state, age_s, idle_s, memory_mib, charged_mib, used_mib (now), peak_mib,
  cpu_ms, invocations, container, leaving (null, or why it ends after its invocation) }"
);

const RECYCLE_HELP: &str = help!(
    "  kiln container recycle 3-17
  kiln container recycle $(kiln container list --quiet --function hello)

An idle one ends at once, another when its invocation does: nobody who invokes the function notices.",
    json: "  containers: a list of { container, function, state (as it was), ended (false: it ends after its invocation) }"
);

const KILL_HELP: &str = help!(
    "  kiln container kill 3-17

It ends at once. The caller of an invocation that it runs is told Runtime.ExitError, signal: killed; the function's log and
kilnd's log name the user id that did it. One that initialises is a failed init, and is tried once more in another container.",
    json: "  containers: a list of { container, function, state (as it was), ended }"
);

#[derive(Debug, Subcommand)]
pub enum ContainerCommand {
    /// Run a program in a container: look into it from inside
    #[command(after_help = EXEC_HELP)]
    Exec(Exec),
    /// Show everything of one container: processes, namespaces, limits and use, mounts, and its life so far
    #[command(after_help = INSPECT_HELP)]
    Inspect(Inspect),
    /// End containers now, and the invocations that they run
    #[command(after_help = KILL_HELP)]
    Kill(Containers),
    /// Show all containers, or those of one function
    #[command(after_help = LIST_HELP)]
    List(ListContainers),
    /// End containers as soon as they are idle
    #[command(after_help = RECYCLE_HELP)]
    Recycle(Containers),
}

#[derive(Debug, Args)]
pub struct Containers {
    /// Ids, as shown by kiln container list
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Exec {
    /// Id, as shown by kiln container list
    #[arg(value_name = "ID")]
    pub id: String,
    /// As root of the container's user namespace: reads the function's private files, and is nobody on the host
    #[arg(long)]
    pub root: bool,
    /// The program and its arguments
    #[arg(value_name = "COMMAND", required = true, last = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Inspect {
    /// Id, as shown by kiln container list
    #[arg(value_name = "ID")]
    pub id: String,
    /// As an OCI runtime configuration, config.json
    #[arg(long)]
    pub oci: bool,
}

#[derive(Debug, Args)]
pub struct ListContainers {
    /// Those of one function: name or ARN
    #[arg(long, value_name = "NAME")]
    pub function: Option<String>,
    /// Ids only, one a line
    #[arg(short, long)]
    pub quiet: bool,
}
