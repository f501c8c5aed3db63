//! From a file's text to a [`Config`], and everything that is wrong on the way: each fault with its place and its cure.
//!
//! A word, so `kilnd` at its start and `kiln config check` say the same.

use std::fmt;

use serde::Deserialize;
use toml::de::DeTable;

use super::Config;

/// Alike enough to be a slip of the pen: `drain_seconds` and `drain_s` are at 0.92, `color` and `account` at 0.45.
const ALIKE: f64 = 0.75;

/// One thing that is wrong in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// As written in the file; `None` where no key could be read.
    pub key: Option<String>,
    /// Line and column, from 1; `None` where the file does not say it (a default that breaks a rule beside another value).
    pub place: Option<(usize, usize)>,
    /// What, and what to write instead.
    pub text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some((line, column)) => write!(f, "{line}:{column}: {}", self.text),
            None => write!(f, " {}", self.text),
        }
    }
}

/// Takes what is right, leaves the default where something is wrong, and tells all that is wrong.
pub fn read(text: &str) -> (Config, Vec<Fault>) {
    let written = match DeTable::parse(text) {
        Ok(written) => written.into_inner(),
        Err(error) => {
            let place = error.span().map(|span| place(text, span.start));
            return (Config::default(), vec![Fault { key: None, place, text: format!("no TOML: {}", error.message()) }]);
        }
    };
    // The same text again, so this cannot fail; an empty table would only make every value its default.
    let values: toml::Table = toml::from_str(text).unwrap_or_default();
    let mut good = toml::Table::new();
    let mut faults = Vec::new();
    for (key, value) in written.iter() {
        let name: &str = key.get_ref();
        let mut wrong = |at: usize, text_of_it: String| {
            faults.push(Fault { key: Some(name.to_owned()), place: Some(place(text, at)), text: text_of_it });
        };
        let Some(default) = Config::keys().get(name).cloned() else {
            wrong(key.span().start, unknown(name));
            continue;
        };
        let Some(value_read) = values.get(name) else { continue };
        let alone = toml::Table::from_iter([(name.to_owned(), value_read.clone())]);
        match Config::deserialize(alone.clone()) {
            Ok(_) => good.extend(alone),
            Err(error) => {
                let what = error.message().lines().next().unwrap_or_default().to_owned();
                wrong(value.span().start, format!("`{name}` has {what}: write it like `{name} = {default}`"));
            }
        }
    }
    let config = Config::deserialize(good).unwrap_or_default();
    for (key, rule) in config.broken_rules() {
        let place = written.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| place(text, value.span().start));
        faults.push(Fault { key: Some(key.to_owned()), place, text: format!("`{key}` {rule}") });
    }
    faults.sort_by_key(|fault| fault.place.unwrap_or((usize::MAX, 0)));
    (config, faults)
}

/// A refused key, with the one that was probably meant.
fn unknown(name: &str) -> String {
    let known = Config::keys();
    let nearest = known.keys().map(|key| (strsim::jaro_winkler(name, key), key)).max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest.filter(|(alike, _)| *alike >= ALIKE) {
        Some((_, nearest)) => format!("unknown key `{name}`: did you mean `{nearest}`?"),
        None => format!("unknown key `{name}`: `kiln config sample` shows all that there are"),
    }
}

/// Line and column (in characters) of a byte, from 1.
fn place(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        read(text).1.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place_and_the_nearest_name() {
        assert_eq!(faults("# mine\n\n  drain_seconds = 600\n"), ["3:3: unknown key `drain_seconds`: did you mean `drain_s`?"]);
        for (wrong, right) in [
            ("memory_budget_mb", "memory_budget_mib"),
            ("rundir", "run_dir"),
            ("runtime_dir", "runtimes_dir"),
            ("concurency", "concurrency"),
            ("admins_group", "admin_group"),
            ("launcher", "launchers"),
        ] {
            assert!(faults(&format!("{wrong} = 1"))[0].ends_with(&format!("did you mean `{right}`?")), "{wrong}");
        }
        assert!(
            faults("tls = true")[0].contains("`kiln config sample` shows all"),
            "nothing is near: {:?}",
            faults("tls = true")
        );
        assert_eq!(faults("[limits]\ndrain_s = 1")[0].split(": ").next(), Some("1:2"), "a table is a key, too");
    }

    #[test]
    fn a_value_of_another_kind_says_how_to_write_it() {
        let found = faults("drain_s = \"10m\"");
        assert!(found[0].starts_with("1:11: `drain_s` has invalid type: string \"10m\""), "{found:?}");
        assert!(found[0].ends_with("write it like `drain_s = 30`"), "{found:?}");
        assert!(faults("launchers = -1")[0].contains("launchers"), "{:?}", faults("launchers = -1"));
    }

    #[test]
    fn all_faults_are_told_at_once_and_what_is_right_holds() {
        let (config, faults) = read("instance = 'A-b'\nconcurency = 3\nidle_max_s = true\ndrain_s = 7\n");
        let places: Vec<_> = faults.iter().map(|fault| fault.place.unwrap()).collect();
        assert_eq!(places, [(1, 12), (2, 1), (3, 14)]);
        assert_eq!((config.drain_s, config.idle_max_s), (7, Config::default().idle_max_s));
    }

    #[test]
    fn what_is_no_toml_has_its_place() {
        let found = faults("instance = 'a'\ndrain_s 3\n");
        assert!(found.len() == 1 && found[0].starts_with("2:") && found[0].contains("no TOML"), "{found:?}");
        assert_eq!(place("ä = 1\nöö = 2", 9), (2, 2), "columns are characters");
    }
}
