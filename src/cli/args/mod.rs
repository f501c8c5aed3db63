//! The command line, and the help that it prints; verbs with verbs of their own have a file each.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The end of every verb's help.
macro_rules! help {
    ($examples:literal, json: $json:literal) => {
        concat!(
            "Examples:\n",
            $examples,
            "\n\nWith --json:\n",
            $json,
            "\n\nExit codes:\n  0 done  1 failed  2 wrong usage  3 kilnd not reachable  4 no such function or container  5 throttled  6 the function failed"
        )
    };
}

// After the macro, which they use.
mod container;
mod events;
mod function;
mod layer;
mod logs;
mod metrics;
mod runtime;
mod top;
mod usage;

pub use self::container::{ContainerCommand, Containers, Exec, Inspect, ListContainers};
pub use self::events::{Events, History};
pub use self::function::{Code, Concurrency, Create, Drain, FunctionCommand, Reuse, Settings, Update};
pub use self::layer::{LayerCommand, Publish};
pub use self::logs::Logs;
pub use self::metrics::Metrics;
pub use self::runtime::{AddRuntime, RuntimeCommand, WhichRuntimes};
pub use self::top::Top;
pub use self::usage::Usage;

const HELP: &str = help!(
    "  kiln doctor
  kiln function create hello --runtime nodejs8.10 --handler index.handler --dir examples/node-tutorial
  kiln invoke hello --payload '{\"name\": \"World\"}' --log
  kiln logs hello -f
  kiln pool",
    json: "  Each verb's own help says what it prints (kiln pool --help)."
);

const COMPLETIONS_HELP: &str = help!(
    "  kiln completions bash > ~/.local/share/bash-completion/completions/kiln
  kiln completions zsh > ~/.zfunc/_kiln          (with fpath+=~/.zfunc before compinit in .zshrc)
  kiln completions fish > ~/.config/fish/completions/kiln.fish",
    json: "  The same: a shell's script is no JSON."
);

const CONFIG_CHECK_HELP: &str = help!(
    "  sudo kiln config check
  kiln config check ./kiln.toml",
    json: "  file, ok, checks: a list of { check, key, state (ok, warn, broken, needs-root), found, cure }; check is the key's name"
);

const CONFIG_SAMPLE_HELP: &str = help!(
    "  kiln config sample | sudo tee /etc/kiln/kiln.toml",
    json: "  Every key with its default."
);

const DOCTOR_HELP: &str = help!(
    "  sudo kiln doctor
  sudo kiln doctor --config /etc/kiln/kiln.toml     (also before kilnd's first start)
  kiln doctor --json | jq '.checks[] | select(.state == \"broken\")'",
    json: "  run_dir, ok, checks: a list of { check, key, state (ok, warn, broken, needs-root), found, cure }
Ends with 0 when nothing is broken, with 1 when something is."
);

const INVOKE_HELP: &str = help!(
    "  kiln invoke hello
  kiln invoke hello --payload '{\"name\": \"World\"}'
  kiln invoke hello --payload @event.json --log
  jq -n '{n: 1}' | kiln invoke hello --payload - | jq .
  kiln invoke hello --dry-run                       (may I, and is the event JSON? the function does not run)

The result goes to stdout, the log (with --log) to stderr. On a terminal control characters are spelled out;
into a pipe or a file everything goes as it was.",
    json: "  request_id, executed_version, function_error (null, or Unhandled), payload, log"
);

const MAN_HELP: &str = help!(
    "  kiln man
  kiln man function create
  kiln man invoke | less
  sudo kiln man --dir /usr/local/share/man/man1",
    json: "  The same: a manual page is no JSON."
);

const POOL_HELP: &str = help!(
    "  kiln pool
  kiln pool --sort memory
  kiln pool --watch                                (every 2 s, in place, until Ctrl-C)
  kiln pool --watch 10 --json >> pool.jsonl        (a snapshot per line)
  kiln pool --json | jq '.environments[] | select(.state == \"busy\") | .function'",
    json: "  budget_mib, charged_mib, concurrency, in_flight, parallel_starts, starting, unreserved, waiting,
  failing (functions whose last init failed), reserves: a list of { function, reserved, in_flight },
  since kilnd's start: retired (environments by reason: idle, age, memory, tmp, updated, deleted, once, drained, recycled,
  killed, entered, died, init, failed, stopping), refused (invocations by reason: memory, starts, concurrency, reserved, queue,
  payloads), told_again (invocations whose function's init had just failed), functions: a list of { function, invocations, errors,
  throttles, cold_starts, duration_ms (all together), billed_gb_s }; environments: a list of { function, version, state, age_s,
  idle_s, memory_mib, charged_mib, used_mib (now), peak_mib, cpu_ms (of all its time, or null), invocations, container,
  leaving (why it ends soon, or null) }"
);

/// Run AWS Lambda functions on this host.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, after_help = HELP, subcommand_required = true, arg_required_else_help = true)]
pub struct Arguments {
    /// The run directory of the instance to talk to [default: /run/kiln]
    #[arg(long, value_name = "DIR", env = "KILN_RUN_DIR", global = true)]
    pub run: Option<PathBuf>,
    /// Print JSON with stable names
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print a shell's completions of kiln's words
    #[command(after_help = COMPLETIONS_HELP)]
    Completions { shell: CompletionShell },
    /// Show what may be configured, and try a configuration on this host
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Show, enter, recycle and kill the containers that functions run in
    #[command(subcommand)]
    Container(ContainerCommand),
    /// Look at everything that Kiln needs of this host, with the cure for what is wrong
    #[command(after_help = DOCTOR_HELP)]
    Doctor {
        /// The configuration to look at [default: that of the running kilnd, else /etc/kiln/kiln.toml]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Show what happens: starts and their reasons, invocations, refusals, ends
    #[command(after_help = events::EVENTS_HELP)]
    Events(Events),
    /// Create, show, change and delete functions
    #[command(subcommand)]
    Function(FunctionCommand),
    /// Show which execution environments have ended, and why
    #[command(after_help = events::HISTORY_HELP)]
    History(History),
    /// Run a function and print what it returns
    #[command(after_help = INVOKE_HELP)]
    Invoke(Invoke),
    /// Publish, show and delete layers: what functions share below /opt
    #[command(subcommand)]
    Layer(LayerCommand),
    /// Show what a function printed, and the platform's lines around it
    #[command(after_help = logs::LOGS_HELP)]
    Logs(Logs),
    /// Show the manual page of kiln or of a verb, or write all of them
    #[command(after_help = MAN_HELP)]
    Man(ManPages),
    /// Print what kilnd counts, for Prometheus
    #[command(after_help = metrics::METRICS_HELP)]
    Metrics(Metrics),
    /// Show every execution environment
    #[command(after_help = POOL_HELP)]
    Pool(Pool),
    /// Show, build and check the runtimes that functions run in
    #[command(subcommand)]
    Runtime(RuntimeCommand),
    /// Watch functions and their environments, live: rates, memory, CPU
    #[command(after_help = top::TOP_HELP)]
    Top(Top),
    /// Show a month's bill: requests, GB-seconds and what they cost
    #[command(after_help = usage::USAGE_HELP)]
    Usage(Usage),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum CompletionShell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Try a configuration on this host: every key, every fault, and its cure
    #[command(after_help = CONFIG_CHECK_HELP)]
    Check {
        /// What kilnd would read [default: /etc/kiln/kiln.toml]
        file: Option<PathBuf>,
        /// Only the file itself: look at nothing of this host
        #[arg(long)]
        file_only: bool,
    },
    /// Print a configuration with every key, its default, unit and reason
    #[command(after_help = CONFIG_SAMPLE_HELP)]
    Sample,
}

#[derive(Debug, Args)]
pub struct Invoke {
    /// Name or ARN
    pub name: String,
    /// The event: JSON, @FILE, or - for stdin
    #[arg(long, value_name = "JSON|@FILE|-", default_value = "{}")]
    pub payload: String,
    /// Print the end of the invocation's log to stderr
    #[arg(long, conflicts_with = "dry_run")]
    pub log: bool,
    /// Ask whether it could be invoked so, and do not run it
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct ManPages {
    /// The verb, in as many words as it has
    pub verb: Vec<String>,
    /// Write the pages of all verbs into this directory
    #[arg(long, value_name = "DIR", conflicts_with = "verb")]
    pub dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Pool {
    /// What the order is by
    #[arg(long, value_enum, default_value_t = Sort::Function)]
    pub sort: Sort,
    /// Again and again, every so many seconds, until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = false, default_missing_value = "2", value_parser = seconds)]
    pub watch: Option<Duration>,
}

/// How often somebody looks: half a second to a minute. More often it would cost kilnd more than it tells.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.5..=60.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "from 0.5 to 60 seconds".into())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    Function,
    Memory,
    Peak,
    Cpu,
    Age,
    Idle,
    Invocations,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_has_no_contradictions() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn code_is_one_of_three_and_never_two() {
        let parse = |words: &str| Arguments::try_parse_from(words.split(' '));
        assert!(parse("kiln function create f --runtime r --handler h --zip z").is_ok());
        assert!(parse("kiln function create f --runtime r --handler h --file f").is_ok());
        assert!(parse("kiln function create f --runtime r --handler h --zip z --dir d").is_err());
        assert!(parse("kiln function update f --file z --dir d").is_err());
    }

    #[test]
    fn every_verb_has_examples_says_what_json_it_prints_and_names_the_exit_codes() {
        fn leaves(command: &clap::Command, found: &mut Vec<clap::Command>) {
            if command.get_subcommands().next().is_none() {
                found.push(command.clone());
            }
            command.get_subcommands().for_each(|below| leaves(below, found));
        }
        let mut found = Vec::new();
        leaves(&Arguments::command(), &mut found);
        assert!(found.len() >= 10);
        for verb in found {
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            for part in ["Examples:\n  ", "\nWith --json:\n  ", "\nExit codes:\n  0 done"] {
                assert!(help.contains(part), "{} has no {part:?} in its help", verb.get_name());
            }
        }
    }
}
