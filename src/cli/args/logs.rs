//! The words of `kiln logs`.

use clap::Args;

pub(super) const LOGS_HELP: &str = help!(
    "  kiln logs hello                              the last 100 lines
  kiln logs hello -f                           and what comes from now on, over restarts of kilnd too
  kiln logs -f                                 of all functions, those made later too; each line begins with its function
  kiln logs --function hello --function bye    of some, in order of time
  kiln logs hello --since 10m --time
  kiln logs --request 8f50ee1c-2f3d-4a4e-9f63-0d9c5c6a7b1e
  kiln logs hello -n all --json | jq -r 'select(.kind == \"function\").line'

Lines go to stdout as the function printed them. On a terminal the platform's lines are dim and control characters are
spelled out; into a pipe or a file everything goes as it was. The log of a deleted function can be read until it is too old.",
    json: "  One object a line: time_ms, kind (function, platform, notice), line (or base64, where it is no UTF-8), request and
  container (where there is one), stream, version, function, cursor"
);

#[derive(Debug, Args)]
pub struct Logs {
    /// Name or ARN
    pub name: Option<String>,
    /// Of this function too; without any name, of all functions
    #[arg(long = "function", value_name = "NAME")]
    pub functions: Vec<String>,
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
    #[arg(long, requires = "name", conflicts_with_all = ["functions", "follow", "lines", "since", "request", "container"])]
    pub delete: bool,
}

fn lines(text: &str) -> Result<String, String> {
    match text.parse::<u32>() {
        Ok(0..=1_048_576) => Ok(text.to_owned()),
        _ if text == "all" => Ok(text.to_owned()),
        _ => Err("write a number of at most 1048576, or all".into()),
    }
}
