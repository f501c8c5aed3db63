//! The names of the journal's fields: `journalctl KILN_FUNCTION=hello`. They are part of the operators' interface.
//!
//! An event's field `function` becomes `KILN_FUNCTION`, and so on with every other; so what is the same thing has the same
//! name in every event. A test below reads the sources and holds them to it.

/// Before the name of every field of ours: without it they could be taken for the journal's own.
pub const PREFIX: &str = "KILN_";

/// The function's name.
pub const FUNCTION: &str = "KILN_FUNCTION";
/// `$LATEST`, or the number of the version that ran.
pub const VERSION: &str = "KILN_VERSION";
/// An invocation's id, as its caller has it in x-amzn-RequestId.
pub const REQUEST: &str = "KILN_REQUEST";
/// The container's id, as `kiln pool` shows it.
pub const CONTAINER: &str = "KILN_CONTAINER";
/// Why something ended or was refused: `Sandbox.Timedout`, `Runtime.OutOfMemory`, `Throttled.Memory`, …
pub const CAUSE: &str = "KILN_CAUSE";
/// Whose line: `function` (what it printed), `platform` (START, END, REPORT, …), `notice` (Kiln's own: lines are missing).
pub const STREAM: &str = "KILN_STREAM";
/// How many lines or events are not here.
pub const MISSING: &str = "KILN_MISSING";

/// Whose lines they are to `journalctl -t`.
pub const IDENTIFIER: &str = "kilnd";

/// Of a function's lines: no function can take the name of another program, whatever it is called itself.
pub fn identifier(function: &str) -> String {
    format!("kiln/{function}")
}

/// Appends the journal's name of an event's field: its own in capitals, prefixed. The journal takes A-Z, 0-9 and _.
pub fn name(field: &str, to: &mut String) {
    to.push_str(PREFIX);
    // In a sentence it reads better so.
    let field = if field == "why" { "cause" } else { field };
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    // Longer names are refused by the journal, with their whole entry.
    to.extend(field.chars().take(64 - PREFIX.len()).map(plain));
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    #[test]
    fn an_events_field_has_the_journals_form_and_our_prefix() {
        let named = |field: &str| {
            let mut to = String::new();
            name(field, &mut to);
            to
        };
        assert_eq!([named("function"), named("version"), named("request")], [FUNCTION, VERSION, REQUEST]);
        assert_eq!([named("container"), named("cause"), named("why")], [CONTAINER, CAUSE, CAUSE]);
        assert_eq!(named("error.kind"), "KILN_ERROR_KIND");
        assert_eq!(named(&"x".repeat(100)).len(), 64);
    }

    fn sources(below: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(below).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.is_dir() {
                true => sources(&entry, found),
                false if entry.extension().is_some_and(|extension| extension == "rs") => found.push(entry),
                false => {}
            }
        }
    }

    /// The words between the parentheses of every `info!(…)` and its like.
    fn events(source: &str) -> Vec<String> {
        let mut found = Vec::new();
        for kind in ["error!(", "warn!(", "info!(", "debug!(", "trace!("] {
            for (at, _) in source.match_indices(kind) {
                let rest = &source[at + kind.len()..];
                let mut depth = 1;
                let end = rest.find(|c| {
                    depth += match c {
                        '(' => 1,
                        ')' => -1,
                        _ => 0,
                    };
                    depth == 0
                });
                found.extend(end.map(|end| rest[..end].to_owned()));
            }
        }
        found
    }

    #[test]
    fn what_is_the_same_thing_has_the_same_name_in_every_event() {
        let mut files = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
        let (mut seen, mut wrong) = (0, Vec::new());
        for file in files {
            for event in events(&fs::read_to_string(&file).unwrap()) {
                seen += 1;
                let words: Vec<&str> = event.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
                for (alias, name) in [
                    ("request_id", "request"),
                    ("function_name", "function"),
                    ("container_id", "container"),
                    ("environment", "container"),
                ] {
                    let has_field = event.contains(&format!("{alias} =")) || event.contains(&format!("%{alias},"));
                    if words.contains(&alias) && (has_field || event.starts_with(&format!("{alias},"))) {
                        wrong.push(format!("{}: `{alias}` is `{name}` in {event:?}", file.display()));
                    }
                }
            }
        }
        assert!(seen > 50, "{seen} events were found");
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
