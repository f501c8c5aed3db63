//! kilnd: the supervisor, and what it starts. One program with four roles; each role is a room of the library.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kiln::telemetry::{self, Place};
use kiln::{inside, launcher, server, supervisor};

/// Executes AWS Lambda functions in containers of its own.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// The configuration [default: /etc/kiln/kiln.toml, if it exists]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

/// The hidden ones are started by the supervisor, with descriptors that nobody else has.
#[derive(Subcommand)]
enum Role {
    /// Start everything and stay (the default)
    Supervisor,
    #[command(hide = true)]
    Launcher {
        #[arg(long)]
        number: u32,
        #[arg(long)]
        slot: u32,
    },
    #[command(hide = true)]
    Server,
    #[command(hide = true)]
    Unpack,
}

/// sysexits(3). systemd does not try again after it (`RestartPreventExitStatus=`).
const EX_CONFIG: u8 = 78;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Started by descriptor, a process would bear the descriptor's number as its name before Linux 6.14.
    let _ = nix::sys::prctl::set_name(c"kilnd");
    match arguments.role.unwrap_or(Role::Supervisor) {
        // Reads hostile bytes: no environment, no subscriber, an exit code of its own.
        Role::Unpack => inside::unpack::run(),
        Role::Supervisor => logged(|| supervisor::run(arguments.config.as_deref())),
        Role::Launcher { number, slot } => logged(|| launcher::run(number, slot)),
        Role::Server => logged(server::run),
    }
}

/// Runs a role that has a log. What ends it is the last that it says there.
fn logged(run: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    let place = telemetry::start();
    let Err(error) = run() else { return ExitCode::SUCCESS };
    match place {
        Place::Journal => tracing::error!("{error:#}"),
        Place::Stderr => eprintln!("kilnd: {error:#}"),
    }
    if supervisor::is_for_people(&error) { ExitCode::from(EX_CONFIG) } else { ExitCode::FAILURE }
}
