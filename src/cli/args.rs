//! The command line, and the help that it prints.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The end of every verb's help.
macro_rules! help {
    ($examples:literal, json: $json:literal) => {
        concat!(
            "Examples:\n",
            $examples,
            "\n\nWith --json:\n",
            $json,
            "\n\nExit codes:\n  0 done  1 failed  2 wrong usage  3 kilnd not reachable  4 no such function  5 throttled  6 the function failed"
        )
    };
}

const HELP: &str = help!(
    "  kiln doctor
  kiln function create hello --runtime nodejs8.10 --handler index.handler --dir examples/node-tutorial
  kiln invoke hello --payload '{\"name\": \"World\"}' --log
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

const CREATE_HELP: &str = help!(
    "  kiln function create hello --runtime nodejs8.10 --handler index.handler --zip hello.zip
  kiln function create hello --runtime nodejs8.10 --handler index.handler --file index.js
  kiln function create hello --runtime provided.al2023 --handler bootstrap --dir target/hello \\
      --memory 512 --timeout 30 --env TABLE=orders --env LEVEL=debug",
    json: "  Lambda's FunctionConfiguration: FunctionName, FunctionArn, Runtime, Handler, MemorySize, State, RevisionId, …"
);

const LIST_HELP: &str = help!(
    "  kiln function list
  kiln function list --json | jq -r '.Functions[].FunctionName'",
    json: "  Functions: a list of Lambda's FunctionConfiguration"
);

const GET_HELP: &str = help!(
    "  kiln function get hello
  kiln function get hello --json | jq .Configuration.MemorySize",
    json: "  As Lambda's GetFunction: Configuration (a FunctionConfiguration), Code"
);

const UPDATE_HELP: &str = help!(
    "  kiln function update hello --dir examples/node-tutorial
  kiln function update hello --memory 1024 --timeout 60
  kiln function update hello --env TABLE=orders     (replaces all variables)
  kiln function update hello --layer tools:1        (replaces all layers)",
    json: "  Lambda's FunctionConfiguration, after the change"
);

const CONCURRENCY_HELP: &str = help!(
    "  kiln function concurrency hello               (shows it)
  kiln function concurrency hello --reserve 5
  kiln function concurrency hello --reserve 0   (switches the function off)
  kiln function concurrency hello --none        (removes the reserve)

A reserve is the function's own: nobody else can use it up, and the function never runs more at once.",
    json: "  ReservedConcurrentExecutions, absent where there is no reserve; nothing with --none"
);

const PUBLISH_HELP: &str = help!(
    "  kiln layer publish tools --dir tools/
  kiln layer publish lodash --zip lodash.zip --runtime nodejs22.x --description 'lodash 4.17'
  kiln function update hello --layer tools:1 --layer lodash:1

A layer is seen below /opt: its bin/ is on PATH, its lib/ on LD_LIBRARY_PATH, and Node finds nodejs/node_modules/, Python
python/. Each publishing makes a new version, which never changes.",
    json: "  As Lambda's PublishLayerVersion: LayerVersionArn, Version, Content, CreatedDate, …"
);

const LAYER_LIST_HELP: &str = help!(
    "  kiln layer list
  kiln layer list tools",
    json: "  Layers: a list of { LayerName, LayerArn, LatestMatchingVersion }; of one layer LayerVersions"
);

const LAYER_GET_HELP: &str = help!("  kiln layer get tools:1", json: "  As Lambda's GetLayerVersion");

const LAYER_DELETE_HELP: &str = help!(
    "  kiln layer delete tools:1     (functions that have it keep it)",
    json: "  Nothing: the exit code says it."
);

const DELETE_HELP: &str = help!("  kiln function delete hello", json: "  Nothing: the exit code says it.");

const INVOKE_HELP: &str = help!(
    "  kiln invoke hello
  kiln invoke hello --payload '{\"name\": \"World\"}'
  kiln invoke hello --payload @event.json --log
  jq -n '{n: 1}' | kiln invoke hello --payload - | jq .
  kiln invoke hello --dry-run                       (may I, and is the event JSON? the function does not run)

The result goes to stdout, the log (with --log) to stderr.",
    json: "  request_id, executed_version, function_error (null, or Unhandled), payload, log"
);

const POOL_HELP: &str = help!(
    "  kiln pool
  kiln pool --json | jq '.environments[] | select(.state == \"busy\") | .function'",
    json: "  budget_mib, charged_mib, concurrency, in_flight, parallel_starts, starting, unreserved, waiting,
  reserves: a list of { function, reserved, in_flight }, environments: a list of
  { function, version, state, age_s, idle_s, memory_mib, charged_mib, used_mib, peak_mib, invocations, container }"
);

const ADD_RUNTIME_HELP: &str = help!(
    "  sudo kiln runtime add python3.13
  sudo kiln runtime add ./my-runtime      (a folder with a recipe.toml)
  sudo kiln runtime add nodejs22.x --prune

The builder is scripts/build-runtimes: what KILN_BUILDER names, else the one beside kiln or in the checkout that kiln lies in.",
    json: "  name, tree, trees, bytes, start, execution_env; the builder's words go to stderr"
);

const LIST_RUNTIMES_HELP: &str = help!(
    "  kiln runtime list
  kiln runtime list --json | jq -r '.runtimes[].name'",
    json: "  runtimes_dir, runtimes: a list of { name, tree, trees, bytes, start, execution_env }"
);

const VERIFY_HELP: &str = help!(
    "  kiln runtime verify
  kiln runtime verify python3.13
  kiln runtime verify --json | jq '.runtimes[] | select(.ok | not) | .name'",
    json: "  runtimes_dir, runtimes: a list of { name, ok, trees: a list of { tree, ok, files, bytes, differences: a list of
  { path, what } } }
Ends with 1 when anything differs."
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
    /// Look at everything that Kiln needs of this host, with the cure for what is wrong
    #[command(after_help = DOCTOR_HELP)]
    Doctor {
        /// The configuration to look at [default: that of the running kilnd, else /etc/kiln/kiln.toml]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Create, show, change and delete functions
    #[command(subcommand)]
    Function(FunctionCommand),
    /// Run a function and print what it returns
    #[command(after_help = INVOKE_HELP)]
    Invoke(Invoke),
    /// Publish, show and delete layers: what functions share below /opt
    #[command(subcommand)]
    Layer(LayerCommand),
    /// Show every execution environment
    #[command(after_help = POOL_HELP)]
    Pool,
    /// Show, build and check the runtimes that functions run in
    #[command(subcommand)]
    Runtime(RuntimeCommand),
}

#[derive(Debug, Subcommand)]
pub enum RuntimeCommand {
    /// Build a runtime and install it; functions can use it at once
    #[command(after_help = ADD_RUNTIME_HELP)]
    Add(AddRuntime),
    /// Show the installed runtimes
    #[command(after_help = LIST_RUNTIMES_HELP)]
    List {
        #[command(flatten)]
        which: WhichRuntimes,
    },
    /// Compare every file of the installed runtimes with what was built
    #[command(after_help = VERIFY_HELP)]
    Verify {
        /// One runtime [default: all]
        name: Option<String>,
        #[command(flatten)]
        which: WhichRuntimes,
    },
}

#[derive(Debug, Args)]
pub struct AddRuntime {
    /// The name of a recipe that comes with Kiln, or a folder with a recipe.toml
    #[arg(value_name = "NAME|DIR")]
    pub recipe: PathBuf,
    #[command(flatten)]
    pub which: WhichRuntimes,
    /// Where exact source files are kept [default: /var/cache/kiln]
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Remove now what no recipe names any more (trees otherwise after 7 days; never one that a running kilnd uses)
    #[arg(long)]
    pub prune: bool,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct WhichRuntimes {
    /// The configuration to read [default: that of the running kilnd, else /etc/kiln/kiln.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A runtimes_dir, whatever is configured
    #[arg(long, value_name = "DIR")]
    pub runtimes_dir: Option<PathBuf>,
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
    },
    /// Print a configuration with every key, its default, unit and reason
    #[command(after_help = CONFIG_SAMPLE_HELP)]
    Sample,
}

#[derive(Debug, Subcommand)]
pub enum FunctionCommand {
    /// Show or set how many invocations at once are the function's own
    #[command(after_help = CONCURRENCY_HELP)]
    Concurrency(Concurrency),
    /// Make a function from a zip, a directory or one file
    #[command(after_help = CREATE_HELP)]
    Create(Create),
    /// Delete a function
    #[command(after_help = DELETE_HELP)]
    Delete {
        /// Name or ARN
        name: String,
    },
    /// Show one function
    #[command(after_help = GET_HELP)]
    Get {
        /// Name or ARN
        name: String,
    },
    /// Show all functions
    #[command(after_help = LIST_HELP)]
    List,
    /// Change a function's code, its configuration, or both
    #[command(after_help = UPDATE_HELP)]
    Update(Update),
}

#[derive(Debug, Args)]
pub struct Concurrency {
    /// Name or ARN
    pub name: String,
    /// Invocations at once that are kept for the function, and bound it; 0 switches it off
    #[arg(long, value_name = "N", conflicts_with = "none")]
    pub reserve: Option<u32>,
    /// Remove the reserve: share with all others what nobody has reserved
    #[arg(long)]
    pub none: bool,
}

#[derive(Debug, Subcommand)]
pub enum LayerCommand {
    /// Delete one version of a layer; functions that have it keep it
    #[command(after_help = LAYER_DELETE_HELP)]
    Delete {
        /// NAME:VERSION or the version's ARN
        #[arg(value_name = "NAME:VERSION")]
        layer: String,
    },
    /// Show one version of a layer
    #[command(after_help = LAYER_GET_HELP)]
    Get {
        /// NAME:VERSION or the version's ARN
        #[arg(value_name = "NAME:VERSION")]
        layer: String,
    },
    /// Show all layers with their latest version, or all versions of one
    #[command(after_help = LAYER_LIST_HELP)]
    List {
        /// Name or ARN of one layer
        name: Option<String>,
    },
    /// Make the next version of a layer from a zip, a directory or one file
    #[command(after_help = PUBLISH_HELP)]
    Publish(Publish),
}

#[derive(Debug, Args)]
pub struct Publish {
    /// 1 to 140 of a-z, A-Z, 0-9, - and _
    pub name: String,
    #[command(flatten)]
    pub code: Code,
    /// What the layer holds
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// Its licence: an SPDX name, an address, or the text
    #[arg(long, value_name = "TEXT")]
    pub license: Option<String>,
    /// A runtime that it is made for; give it once for each
    #[arg(long, value_name = "NAME")]
    pub runtime: Vec<String>,
    /// An architecture that it is made for: x86_64 or arm64
    #[arg(long, value_name = "NAME")]
    pub architecture: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Create {
    /// 1 to 64 of a-z, A-Z, 0-9, - and _
    pub name: String,
    /// An installed runtime, such as nodejs8.10 or provided.al2023
    #[arg(long, value_name = "NAME")]
    pub runtime: String,
    /// What is run: for Node index.handler is `exports.handler` in index.js
    #[arg(long, value_name = "TEXT")]
    pub handler: String,
    #[command(flatten)]
    pub code: Code,
    #[command(flatten)]
    pub settings: Settings,
    /// The ARN of the execution role; Kiln keeps and shows it
    #[arg(long, value_name = "ARN", default_value = "arn:aws:iam::000000000000:role/kiln")]
    pub role: String,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct Code {
    /// The function's zip
    #[arg(long, value_name = "FILE")]
    pub zip: Option<PathBuf>,
    /// A directory: its contents are zipped
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// One file: it is zipped by its own name
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Settings {
    /// Memory in MB: 128 to 3008 in steps of 64; with `profile = "current"` 128 to 10240 [default at creation: 128]
    #[arg(long, value_name = "MB")]
    pub memory: Option<u32>,
    /// Seconds that an invocation may take: 1 to 900 [default at creation: 3]
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u32>,
    /// An environment variable; give it once for each
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// A layer's version, seen below /opt; give it once for each, at most five: a later one covers files of an earlier one
    #[arg(long, value_name = "NAME:VERSION|ARN")]
    pub layer: Vec<String>,
    /// What the function is for
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
}

#[derive(Debug, Args)]
pub struct Update {
    /// Name or ARN
    pub name: String,
    #[command(flatten)]
    pub code: Code,
    /// Another installed runtime
    #[arg(long, value_name = "NAME")]
    pub runtime: Option<String>,
    /// Another handler
    #[arg(long, value_name = "TEXT")]
    pub handler: Option<String>,
    #[command(flatten)]
    pub settings: Settings,
    /// Remove all layers
    #[arg(long, conflicts_with = "layer")]
    pub no_layers: bool,
    /// Another role
    #[arg(long, value_name = "ARN")]
    pub role: Option<String>,
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

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".into()),
    }
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
