//! `kiln function …`

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

const CREATE_HELP: &str = help!(
    "  kiln function create hello --runtime nodejs8.10 --handler index.handler --zip hello.zip
  kiln function create hello --runtime nodejs8.10 --handler index.handler --file index.js
  kiln function create hello --runtime provided.al2023 --handler bootstrap --dir target/hello \\
      --memory 512 --timeout 30 --env TABLE=orders --env LEVEL=debug",
    json: "  Lambda's FunctionConfiguration: FunctionName, FunctionArn, Runtime, Handler, MemorySize, State, RevisionId, …"
);

const LIST_HELP: &str = help!(
    "  kiln function list
  kiln function list --quiet      (names only)
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
  kiln function update hello --layer tools:1        (replaces all layers)
  kiln function update hello --reuse never          (a fresh container for each invocation)

Who may set tags can do the last by kiln:reuse, too: aws lambda tag-resource --resource ARN --tags kiln:reuse=never",
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

const DRAIN_HELP: &str = help!(
    "  kiln function drain hello
  kiln function drain hello --no-wait

All of its execution environments end: idle ones at once, the others when their invocation does, which is waited for. Who
invokes the function meanwhile is served by new ones. An interrupted wait changes nothing: they end all the same.",
    json: "  function, ended (how many environments), leaving (how many end later: with --no-wait)"
);

const DELETE_HELP: &str = help!("  kiln function delete hello", json: "  Nothing: the exit code says it.");

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
    /// End all execution environments of a function, and wait for those that run
    #[command(after_help = DRAIN_HELP)]
    Drain(Drain),
    /// Show one function
    #[command(after_help = GET_HELP)]
    Get {
        /// Name or ARN
        name: String,
    },
    /// Show all functions
    #[command(after_help = LIST_HELP)]
    List {
        /// Names only, one a line
        #[arg(short, long)]
        quiet: bool,
    },
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

#[derive(Debug, Args)]
pub struct Drain {
    /// Name or ARN
    pub name: String,
    /// Do not wait for those that run
    #[arg(long)]
    pub no_wait: bool,
}

/// Whether an execution environment serves one invocation after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Reuse {
    /// Warm ones are used again, as on Lambda
    Always,
    /// Each invocation gets a fresh container
    Never,
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
    /// Whether warm execution environments are used again [default at creation: always]
    #[arg(long, value_enum, value_name = "WHEN")]
    pub reuse: Option<Reuse>,
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
    /// Remove all environment variables
    #[arg(long, conflicts_with = "env")]
    pub no_env: bool,
    /// Remove all layers
    #[arg(long, conflicts_with = "layer")]
    pub no_layers: bool,
    /// Another role
    #[arg(long, value_name = "ARN")]
    pub role: Option<String>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".into()),
    }
}
