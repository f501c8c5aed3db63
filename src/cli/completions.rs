//! `kiln completions bash|zsh|fish`: what a shell needs to complete kiln's words.

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use super::args::{Arguments, CompletionShell};
use super::failure::Failure;
use super::output;

pub fn execute(shell: CompletionShell) -> Result<(), Failure> {
    let shell = match shell {
        CompletionShell::Bash => Shell::Bash,
        CompletionShell::Zsh => Shell::Zsh,
        CompletionShell::Fish => Shell::Fish,
    };
    // Into memory first: the generator panics where it cannot write, and a reader may have had enough.
    let mut script = Vec::new();
    generate(shell, &mut Arguments::command(), "kiln", &mut script);
    output::print(&script)
}
