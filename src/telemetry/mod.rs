//! kilnd's own log: from the `tracing` events of supervisor, launchers and server to systemd's journal, or to stderr.
//!
//! A word, for every process with a log (unpack, which reads hostile bytes, has none). Blocks nobody: an event that the journal
//! cannot take at this moment is dropped, counted and told later. A text to stderr may block, as every program's does.
//!
//! [`fields`] the names · [`bucket`] so much a second and no more · [`journald`] the journal's native protocol · `events` what an event becomes there

pub mod bucket;
mod events;
pub mod fields;
pub mod journald;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::events::Events;
use self::journald::Journald;

/// Where a process's log goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Journal,
    Stderr,
}

/// Begins this process's log: into the journal where stderr is connected with it, else as text to stderr. `KILN_LOG` chooses
/// what is said: `debug`, `kiln::server=trace`, …
pub fn start() -> Place {
    // Before what is asked for, so that `kiln::server=trace` says more, and hides no error of the others.
    let filter = EnvFilter::builder().parse_lossy(format!("info,{}", std::env::var("KILN_LOG").unwrap_or_default()));
    // Without the socket (in somebody's container, say) stderr still arrives there, as text.
    if let Some(journal) = Journald::of_stderr() {
        tracing_subscriber::registry().with(filter).with(Events::new(journal)).init();
        return Place::Journal;
    }
    let ansi = std::io::stderr().is_terminal();
    // It would tell that a line could not be written by `eprintln!`, which panics then: a full disk must not end us.
    let quiet = tracing_subscriber::fmt().log_internal_errors(false);
    quiet.with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
    Place::Stderr
}
