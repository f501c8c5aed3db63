//! kilnd: the supervisor, and what it starts. One program with four roles; each role is a room of the library.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
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
    let ended = match arguments.role.unwrap_or(Role::Supervisor) {
        // Reads hostile bytes: no environment, no subscriber, an exit code of its own.
        Role::Unpack => return inside::unpack::run(),
        Role::Supervisor => {
            log();
            supervisor::run(arguments.config.as_deref())
        }
        Role::Launcher { number, slot } => {
            log();
            launcher::run(number, slot)
        }
        Role::Server => {
            log();
            server::run()
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kilnd: {error:#}");
            if supervisor::is_for_people(&error) { ExitCode::from(EX_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

/// To stderr, which is the journal under systemd. `KILN_LOG` chooses: `debug`, `kiln::server=trace`, …
fn log() {
    use std::io::IsTerminal;
    use tracing_subscriber::EnvFilter;

    let filter = EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .with_env_var("KILN_LOG")
        .from_env_lossy();
    let ansi = std::io::stderr().is_terminal();
    // It would tell that a line could not be written by `eprintln!`, which panics then: a full disk must not end us.
    let quiet = tracing_subscriber::fmt().log_internal_errors(false);
    quiet.with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
}
