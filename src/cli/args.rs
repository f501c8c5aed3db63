//! The command line, and the help that it prints.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

const EXIT_CODES: &str = "\
Exit codes:
  0 done  1 failed  2 wrong usage  3 kilnd not reachable  4 no such function  5 throttled  6 the function failed";

const EXAMPLES: &str = "\
Examples:
  kiln function create hello --runtime nodejs8.10 --handler index.handler --dir examples/node-tutorial
  kiln invoke hello --payload '{\"name\": \"World\"}' --log
  kiln pool

Exit codes:
  0 done  1 failed  2 wrong usage  3 kilnd not reachable  4 no such function  5 throttled  6 the function failed";

const CREATE_EXAMPLES: &str = "\
Examples:
  kiln function create hello --runtime nodejs8.10 --handler index.handler --zip hello.zip
  kiln function create hello --runtime provided.al2023 --handler bootstrap --dir target/hello \\
      --memory 512 --timeout 30 --env TABLE=orders --env LEVEL=debug";

const UPDATE_EXAMPLES: &str = "\
Examples:
  kiln function update hello --dir examples/node-tutorial
  kiln function update hello --memory 1024 --timeout 60
  kiln function update hello --env TABLE=orders     (replaces all variables)
  kiln function update hello --layer tools:1        (replaces all layers)";

const CONCURRENCY_EXAMPLES: &str = "\
A reserve is the function's own: nobody else can use it up, and the function never runs more at once.

Examples:
  kiln function concurrency hello               (shows it)
  kiln function concurrency hello --reserve 5
  kiln function concurrency hello --reserve 0   (switches the function off)
  kiln function concurrency hello --none        (removes the reserve)";

const LAYER_EXAMPLES: &str = "\
A layer is a zip that functions see below /opt: bin/ is on PATH, lib/ on LD_LIBRARY_PATH, nodejs/node_modules/ and
python/ are where those languages look for libraries. Each publishing makes a new version, which never changes.

Examples:
  kiln layer publish tools --dir tools/
  kiln layer publish lodash --zip lodash.zip --runtime nodejs22.x --description 'lodash 4.17'
  kiln function update hello --layer tools:1 --layer lodash:1
  kiln layer list
  kiln layer list tools
  kiln layer delete tools:1                     (functions that have it keep it)";

const INVOKE_EXAMPLES: &str = "\
The result goes to stdout, the log (with --log) to stderr.

Examples:
  kiln invoke hello
  kiln invoke hello --payload '{\"name\": \"World\"}'
  kiln invoke hello --payload @event.json --log
  jq -n '{n: 1}' | kiln invoke hello --payload - | jq .";

/// Run AWS Lambda functions on this host.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
pub struct Arguments {
    /// The run directory of the instance to talk to
    #[arg(long, value_name = "DIR", env = "KILN_RUN_DIR", default_value = "/run/kiln", global = true)]
    pub run: PathBuf,
    /// Print JSON with stable names
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create, show, change and delete functions
    #[command(subcommand, after_help = EXIT_CODES)]
    Function(FunctionCommand),
    /// Run a function and print what it returns
    #[command(after_help = INVOKE_EXAMPLES)]
    Invoke(Invoke),
    /// Publish, show and delete layers: what functions share below /opt
    #[command(subcommand, after_help = LAYER_EXAMPLES)]
    Layer(LayerCommand),
    /// Show every execution environment
    #[command(after_help = EXIT_CODES)]
    Pool,
}

#[derive(Debug, Subcommand)]
pub enum FunctionCommand {
    /// Show or set how many invocations at once are the function's own
    #[command(after_help = CONCURRENCY_EXAMPLES)]
    Concurrency(Concurrency),
    /// Make a function from a zip or a directory
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Create),
    /// Show all functions
    List,
    /// Show one function
    Get {
        /// Name or ARN
        name: String,
    },
    /// Change a function's code, its configuration, or both
    #[command(after_help = UPDATE_EXAMPLES)]
    Update(Update),
    /// Delete a function
    Delete {
        /// Name or ARN
        name: String,
    },
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
    /// Make the next version of a layer from a zip or a directory
    #[command(after_help = LAYER_EXAMPLES)]
    Publish(Publish),
    /// Show all layers with their latest version, or all versions of one
    List {
        /// Name or ARN of one layer
        name: Option<String>,
    },
    /// Show one version of a layer
    Get {
        /// NAME:VERSION or the version's ARN
        #[arg(value_name = "NAME:VERSION")]
        layer: String,
    },
    /// Delete one version of a layer; functions that have it keep it
    Delete {
        /// NAME:VERSION or the version's ARN
        #[arg(value_name = "NAME:VERSION")]
        layer: String,
    },
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
#[group(required = true, multiple = false)]
pub struct Code {
    /// The function's zip
    #[arg(long, value_name = "FILE")]
    pub zip: Option<PathBuf>,
    /// A directory: its contents are zipped
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Settings {
    /// Memory in MB: 128 to 3008 in steps of 64 [default at creation: 128]
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
    /// The function's new zip
    #[arg(long, value_name = "FILE", conflicts_with = "dir")]
    pub zip: Option<PathBuf>,
    /// A directory: its contents are zipped
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
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
    #[arg(long)]
    pub log: bool,
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
    fn code_is_a_zip_or_a_directory_and_never_both() {
        let parse = |words: &str| Arguments::try_parse_from(words.split(' '));
        assert!(parse("kiln function create f --runtime r --handler h --zip z").is_ok());
        assert!(parse("kiln function create f --runtime r --handler h").is_err());
        assert!(parse("kiln function create f --runtime r --handler h --zip z --dir d").is_err());
        assert!(parse("kiln function update f --zip z --dir d").is_err());
    }
}
