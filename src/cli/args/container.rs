//! `kiln container …`

use clap::{Args, Subcommand};

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
kilnd's log name the user id that did it.",
    json: "  containers: a list of { container, function, state (as it was), ended }"
);

#[derive(Debug, Subcommand)]
pub enum ContainerCommand {
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
pub struct ListContainers {
    /// Those of one function: name or ARN
    #[arg(long, value_name = "NAME")]
    pub function: Option<String>,
    /// Ids only, one a line
    #[arg(short, long)]
    pub quiet: bool,
}
