//! What one check found, and how findings are shown: one line each in columns, the cure below.

use std::borrow::Cow;
use std::io::IsTerminal;

use serde_json::{Value, json};

use crate::cli::failure::Failure;
use crate::cli::output;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Ok,
    /// It works, but not as well or not as long as one would wish; or it is only not there yet.
    Warn,
    /// Kiln cannot do its work.
    Broken,
    /// Only root can look.
    NeedsRoot,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// A stable name: programs may look for it.
    pub check: Cow<'static, str>,
    /// The key of the configuration that it is about.
    pub key: Option<&'static str>,
    pub state: State,
    /// What was looked at, and what was seen.
    pub found: String,
    /// What to do; every warning and everything broken has one.
    pub cure: Option<String>,
}

pub fn ok(check: impl Into<Cow<'static, str>>, found: impl Into<String>) -> Finding {
    Finding { check: check.into(), key: None, state: State::Ok, found: found.into(), cure: None }
}

pub fn warn(check: impl Into<Cow<'static, str>>, found: impl Into<String>, cure: impl Into<String>) -> Finding {
    Finding { state: State::Warn, cure: Some(cure.into()), ..ok(check, found) }
}

pub fn broken(check: impl Into<Cow<'static, str>>, found: impl Into<String>, cure: impl Into<String>) -> Finding {
    Finding { state: State::Broken, ..warn(check, found, cure) }
}

pub fn needs_root(check: impl Into<Cow<'static, str>>, found: impl Into<String>) -> Finding {
    Finding { state: State::NeedsRoot, ..ok(check, found) }
}

impl Finding {
    pub fn about(self, key: &'static str) -> Self {
        Self { key: Some(key), ..self }
    }
}

/// The word for each state, in its column.
pub struct Words {
    pub broken: &'static str,
    /// Said when nothing is broken, and when something is.
    pub verdicts: [&'static str; 2],
}

/// Prints all, and fails when something is broken. `head` is shown to programs beside the checks.
pub fn report(findings: &[Finding], words: &Words, as_json: bool, head: Value) -> Result<(), Failure> {
    let count = |state| findings.iter().filter(|finding| finding.state == state).count();
    let broken = count(State::Broken);
    if as_json {
        output::print_json(&in_json(findings, head))?;
    } else {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        output::print_line(&shown(findings, words, colours, output::terminal_width()))?;
    }
    let (warnings, unseen) = (count(State::Warn), count(State::NeedsRoot));
    let mut more = String::new();
    for (number, what) in [(warnings, "to watch"), (unseen, "that only root can look at")] {
        if number > 0 {
            more += &format!(", {number} {what}");
        }
    }
    if broken > 0 {
        return Err(Failure::Failed(format!("{} ({broken} {}{more})", words.verdicts[1], words.broken)));
    }
    if !as_json {
        output::print_line(&format!("{}{more}", words.verdicts[0]))?;
    }
    Ok(())
}

fn in_json(findings: &[Finding], head: Value) -> Value {
    let state = |state| match state {
        State::Ok => "ok",
        State::Warn => "warn",
        State::Broken => "broken",
        State::NeedsRoot => "needs-root",
    };
    let one = |finding: &Finding| {
        json!({
            "check": finding.check, "key": finding.key, "state": state(finding.state), "found": finding.found, "cure": finding.cure,
        })
    };
    let mut whole = head;
    whole["ok"] = (!findings.iter().any(|finding| finding.state == State::Broken)).into();
    whole["checks"] = findings.iter().map(one).collect();
    whole
}

/// Below this a column of text reads worse than lines that the terminal breaks.
const NARROWEST: usize = 30;

fn shown(findings: &[Finding], words: &Words, colours: bool, terminal: Option<usize>) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let room = terminal.map(|terminal| terminal.saturating_sub(10 + 2 + width + 2)).filter(|room| *room >= NARROWEST);
    let broken = |text: String| match room {
        Some(room) => output::wrapped(&output::plain(&text), room),
        None => vec![output::plain(&text)],
    };
    let mut lines = Vec::new();
    for finding in findings {
        let (word, colour) = match finding.state {
            State::Ok => ("ok", "32"),
            State::Warn => ("warn", "33"),
            State::Broken => (words.broken, "1;31"),
            State::NeedsRoot => ("needs root", "2"),
        };
        let state = if colours { format!("\x1b[{colour}m{word:<10}\x1b[0m") } else { format!("{word:<10}") };
        let mut head = [state, finding.check.to_string()];
        for text in
            broken(finding.found.clone()).into_iter().chain(finding.cure.iter().flat_map(|cure| broken(format!("cure: {cure}"))))
        {
            let [state, check] = std::mem::take(&mut head);
            lines.push(format!("{state:<10}  {check:<width$}  {text}"));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_aligned_the_cure_is_below_and_colours_do_not_move_columns() {
        let findings = [ok("kernel", "Linux 6.1"), broken("user-namespaces", "refused\u{7}", "allow them")];
        let words = Words { broken: "broken", verdicts: ["well", "not well"] };
        let text = shown(&findings, &words, false, None);
        assert_eq!(
            text,
            "ok          kernel           Linux 6.1\n\
             broken      user-namespaces  refused·\n\
             \u{20}                            cure: allow them"
        );
        let coloured = shown(&findings, &words, true, None);
        assert!(coloured.starts_with("\x1b[32mok        \x1b[0m  kernel  "), "{coloured:?}");
    }

    #[test]
    fn on_a_terminal_lines_end_at_its_width_and_go_on_below_their_text() {
        let long = "a sentence that is longer than what is left of the line";
        let words = Words { broken: "broken", verdicts: ["well", "not well"] };
        let text = shown(&[broken("kernel", long, long)], &words, false, Some(52));
        assert_eq!(
            text,
            "broken      kernel  a sentence that is longer than\n\
             \u{20}                   what is left of the line\n\
             \u{20}                   cure: a sentence that is longer\n\
             \u{20}                   than what is left of the line"
        );
        assert_eq!(shown(&[broken("kernel", long, long)], &words, false, Some(40)).lines().count(), 2, "too narrow for columns");
    }

    #[test]
    fn programs_get_stable_names() {
        let whole = in_json(&[warn("ids", "few", "more").about("first_id")], json!({ "file": "f" }));
        let one = json!({ "check": "ids", "key": "first_id", "state": "warn", "found": "few", "cure": "more" });
        assert_eq!(whole, json!({ "file": "f", "ok": true, "checks": [one] }));
    }
}
