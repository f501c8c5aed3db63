//! kiln: the command for function authors and people on duty. Everything is in [`kiln::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    kiln::cli::run()
}
