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
  kiln logs hello -f
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
  kiln function update hello --env TABLE=orders     (replaces all variables)";

const INVOKE_EXAMPLES: &str = "\
The result goes to stdout, the log (with --log) to stderr.

Examples:
  kiln invoke hello
  kiln invoke hello --payload '{\"name\": \"World\"}'
  kiln invoke hello --payload @event.json --log
  jq -n '{n: 1}' | kiln invoke hello --payload - | jq .";

const LOGS_EXAMPLES: &str = "\
Lines go to stdout as the function printed them. On a terminal the platform's lines are dim and control characters are
spelled out; into a pipe or a file everything goes as it was. The log of a deleted function can be read until it is too old.

Examples:
  kiln logs hello                              the last 100 lines
  kiln logs hello -f                           and what comes from now on, over restarts of kilnd too
  kiln logs hello --since 10m --time
  kiln logs hello --request 8f50ee1c-2f3d-4a4e-9f63-0d9c5c6a7b1e
  kiln logs hello -n all --json | jq -r 'select(.kind == \"function\") | .line'";

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
    /// Show what a function printed, and the platform's lines around it
    #[command(after_help = LOGS_EXAMPLES)]
    Logs(Logs),
    /// Show every execution environment
    #[command(after_help = EXIT_CODES)]
    Pool,
}

#[derive(Debug, Subcommand)]
pub enum FunctionCommand {
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

#[derive(Debug, Args)]
pub struct Logs {
    /// Name or ARN
    pub name: String,
    /// Go on with what is printed from now on
    #[arg(short, long)]
    pub follow: bool,
    /// The last so many lines, or all [default: 100; all with --since, --request or --container]
    #[arg(short = 'n', long, value_name = "LINES", value_parser = lines)]
    pub lines: Option<String>,
    /// From so long ago (90s, 10m, 2h, 3d), or from a time of RFC 3339
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Of one invocation, by its request id
    #[arg(long, value_name = "ID")]
    pub request: Option<String>,
    /// Of one container, or of one log stream
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,
    /// When each line was printed, before it
    #[arg(long)]
    pub time: bool,
    /// Control characters as they were printed, on a terminal too
    #[arg(long)]
    pub raw: bool,
    /// Remove the whole log
    #[arg(long, conflicts_with_all = ["follow", "lines", "since", "request", "container"])]
    pub delete: bool,
}

fn lines(text: &str) -> Result<String, String> {
    match text.parse::<u32>() {
        Ok(0..=1_048_576) => Ok(text.to_owned()),
        _ if text == "all" => Ok(text.to_owned()),
        _ => Err("write a number of at most 1048576, or all".into()),
    }
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
