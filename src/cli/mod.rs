//! The `kiln` command: talks to a running kilnd over its two sockets, prints, and ends with an exit code for scripts. `doctor`
//! and `config` look at the host itself, and need no kilnd.
//!
//! Runs as whoever called it, with their rights and no others: what they may do is decided at the sockets.
//! Results go to stdout, everything said about them to stderr.

mod args;
mod client;
mod completions;
mod concurrency;
mod config;
mod container;
pub mod doctor;
mod drain;
mod events;
mod exec;
mod failure;
mod follow;
mod function;
mod history;
mod inspect;
mod invoke;
mod layer;
mod logs;
mod man;
mod metrics;
mod output;
mod package;
mod pool;
mod runtime;
mod top;
mod usage;

use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches};

use self::args::{Arguments, Command};
use self::client::Client;
use self::failure::Failure;

/// Where an instance is that says nothing else: the default of `config`.
const DEFAULT_RUN_DIR: &str = "/run/kiln";

/// Reads the command line and does what it says.
pub fn run() -> ExitCode {
    let parsed = Arguments::command().try_get_matches().and_then(|words| {
        // Who names a file means that file's instance, whatever the environment says; a word of theirs means more than either.
        let asked = words.value_source("run") == Some(ValueSource::CommandLine);
        Arguments::from_arg_matches(&words).map(|arguments| (arguments, asked))
    });
    let (arguments, asked) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            // Help and version are no errors; clap knows where each is printed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { failure::USAGE } else { 0 });
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return end(&Failure::Failed(format!("the event loop cannot be started: {error}"))),
    };
    match runtime.block_on(execute(arguments, asked)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => end(&failure),
    }
}

/// `run_asked`: `--run` was among the words.
async fn execute(arguments: Arguments, run_asked: bool) -> Result<(), Failure> {
    let (run, as_json) = (arguments.run, arguments.json);
    let run_dir = run.clone().unwrap_or_else(|| DEFAULT_RUN_DIR.into());
    let client = Client::new(&run_dir);
    match arguments.command {
        Command::Completions { shell } => completions::execute(shell),
        Command::Config(command) => config::execute(command, as_json),
        Command::Container(command) => container::execute(&client, command, as_json).await,
        Command::Doctor { config } => {
            let run = run.filter(|_| config.is_none() || run_asked);
            doctor::execute(config.as_deref(), run.as_deref(), as_json).await
        }
        Command::Events(asked) => events::execute(&client, asked, as_json).await,
        Command::Function(command) => function::execute(&client, command, as_json).await,
        Command::History(asked) => history::execute(&client, asked, as_json).await,
        Command::Invoke(command) => invoke::execute(&client, command, as_json).await,
        Command::Layer(command) => layer::execute(&client, command, as_json).await,
        Command::Logs(command) => logs::execute(&client, command, as_json).await,
        Command::Man(asked) => man::execute(&asked),
        Command::Metrics(asked) => metrics::execute(&client, asked).await,
        Command::Pool(arguments) => pool::execute(&client, arguments, as_json).await,
        Command::Runtime(command) => runtime::execute(&client, command, as_json).await,
        Command::Top(arguments) => top::execute(&client, &run_dir.display().to_string(), arguments, as_json).await,
        Command::Usage(asked) => usage::execute(&client, asked, as_json).await,
    }
}

fn end(failure: &Failure) -> ExitCode {
    // Some of it may be a function's own words: its PATH, where a program was not found.
    let text = output::careful_lines(failure.to_string().as_bytes());
    if !text.is_empty() {
        output::say(&format!("kiln: {text}"));
    }
    ExitCode::from(failure.exit_code())
}
