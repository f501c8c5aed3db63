//! `kiln runtime …`

use std::path::PathBuf;

use clap::{Args, Subcommand};

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
