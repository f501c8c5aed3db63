//! `kiln man [VERB …]`: the manual page of kiln or of one verb, and with `--dir` all of them as files.
//!
//! Made from what `--help` prints, so that the two can't differ.

use std::io::IsTerminal;
use std::path::Path;
use std::process::{Command as Process, Stdio};

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use super::args::{Arguments, ManPages};
use super::failure::Failure;
use super::output;

pub fn execute(asked: &ManPages) -> Result<(), Failure> {
    let mut kiln = Arguments::command();
    kiln.build();
    match &asked.dir {
        Some(directory) => write_all(&kiln, directory),
        None => {
            let page = page(named(&kiln, &asked.verb)?)?;
            if std::io::stdout().is_terminal() { show(&page) } else { output::print(&page) }
        }
    }
}

fn named<'a>(kiln: &'a Command, verb: &[String]) -> Result<&'a Command, Failure> {
    verb.iter().try_fold(kiln, |command, word| {
        let found = command.find_subcommand(word).filter(|found| !found.is_hide_set());
        found.ok_or_else(|| Failure::Usage(format!("there is no verb {}; `kiln --help` shows all", verb.join(" "))))
    })
}

/// Its name is `kiln-function-create.1` for `kiln function create`.
fn write_all(kiln: &Command, directory: &Path) -> Result<(), Failure> {
    let fail = |path: &Path, error| Failure::Failed(format!("write {}: {error}", path.display()));
    std::fs::create_dir_all(directory).map_err(|error| fail(directory, error))?;
    let mut rest = vec![kiln];
    while let Some(command) = rest.pop() {
        let path = directory.join(format!("{}.1", title(command)));
        std::fs::write(&path, page(command)?).map_err(|error| fail(&path, error))?;
        rest.extend(command.get_subcommands().filter(|verb| !verb.is_hide_set() && verb.get_name() != "help"));
    }
    Ok(())
}

fn title(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

fn page(command: &Command) -> Result<Vec<u8>, Failure> {
    let mut page = Vec::new();
    // No version of its own but kiln's, and no date: two builds of one source are equal.
    let man = Man::new(command.clone().version(env!("CARGO_PKG_VERSION"))).title(title(command)).manual("Kiln").source("Kiln");
    man.render(&mut page).map_err(|error| Failure::Failed(format!("make the manual page: {error}")))?;
    Ok(page)
}

/// By man, as other pages are; without it, as it is.
fn show(page: &[u8]) -> Result<(), Failure> {
    let Ok(mut man) = Process::new("man").args(["--local-file", "-"]).stdin(Stdio::piped()).spawn() else {
        return output::print(page);
    };
    if let Some(mut stdin) = man.stdin.take() {
        // A reader who leaves early has seen enough.
        let _ = std::io::Write::write_all(&mut stdin, page);
    }
    let _ = man.wait();
    Ok(())
}
