//! The configuration: one TOML file, every key with its default here.
//!
//! A word. The supervisor reads the file; its children read the same text from a descriptor that they inherit.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use serde::{Deserialize, Serialize};

/// Where `kilnd` looks without `--config`.
pub const DEFAULT_PATH: &str = "/etc/kiln/kiln.toml";

/// Units are in the names: `_mib`, `_s`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Names this instance's cgroups: 1 to 16 of a-z and 0-9.
    pub instance: String,
    /// Sockets and locks. Emptied at stop.
    pub run_dir: PathBuf,
    /// Functions, code, books. Survives everything.
    pub state_dir: PathBuf,
    /// Root file systems of the runtimes; instances may share it.
    pub runtimes_dir: PathBuf,
    /// The server's own user.
    pub user: String,
    /// May invoke.
    pub invoke_group: String,
    /// May manage functions and look into the pools.
    pub admin_group: String,
    /// ARNs need a region and an account.
    pub region: String,
    pub account: String,
    /// First host uid (and gid) of the range that containers and `unpack` use; no other user may own one of them.
    pub first_id: u32,
    pub id_count: u32,
    /// Launcher processes; 0 is one for each CPU.
    pub launchers: u32,
    /// Memory that all environments together may use; 0 is four fifths of the host's.
    pub memory_budget_mib: u64,
    /// Invocations at once, over all functions.
    pub concurrency: u32,
    /// Environments that may initialise at once.
    pub parallel_starts: u32,
    /// How long a caller waits for capacity before it gets 429.
    pub capacity_wait_s: u64,
    /// An environment idle for so long is recycled.
    pub idle_s: u64,
    /// How long running invocations may go on after SIGTERM.
    pub drain_s: u64,
    /// What is kept of one function's log; the oldest goes first.
    pub log_max_mib: u64,
    /// Of all functions' logs together; the largest gives first.
    pub log_total_mib: u64,
    /// Older lines go, those of deleted functions too.
    pub log_days: u64,
    /// Older rows of the books go.
    pub books_days: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            instance: "default".into(),
            run_dir: "/run/kiln".into(),
            state_dir: "/var/lib/kiln".into(),
            runtimes_dir: "/var/lib/kiln/runtimes".into(),
            user: "kiln".into(),
            invoke_group: "kiln-invoke".into(),
            admin_group: "kiln-admin".into(),
            region: "us-east-1".into(),
            account: "000000000000".into(),
            // Above every range that distributions, systemd (1879048191 and below) or subuid hand out;
            // 1879048192 itself is R, the owner of the trees.
            first_id: 1_879_113_728,
            id_count: 65_536,
            launchers: 0,
            memory_budget_mib: 0,
            concurrency: 1000,
            parallel_starts: 8,
            capacity_wait_s: 5,
            idle_s: 600,
            drain_s: 30,
            // A quarter of a million lines of an ordinary length.
            log_max_mib: 64,
            // Sixty-four noisy functions; a small host's disk has room for it.
            log_total_mib: 4096,
            // What was wrong last week can be looked up this week, after a holiday too.
            log_days: 14,
            // A year's bill can be checked a month later.
            books_days: 400,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read the configuration {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("the configuration {path} is wrong: {source}")]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("the configuration {path} is wrong: {key} {rule}")]
    Value { path: PathBuf, key: &'static str, rule: &'static str },
}

impl Config {
    /// Reads and checks one file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config: Self =
            toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        config.check().map_err(|(key, rule)| ConfigError::Value { path: path.to_owned(), key, rule })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let named = (1..=16).contains(&self.instance.len())
            && self.instance.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !named {
            return Err(("instance", "must be 1 to 16 of a-z and 0-9"));
        }
        for (key, path) in [("run_dir", &self.run_dir), ("state_dir", &self.state_dir), ("runtimes_dir", &self.runtimes_dir)] {
            if !path.is_absolute() {
                return Err((key, "must be an absolute path"));
            }
        }
        if self.account.len() != 12 || !self.account.bytes().all(|b| b.is_ascii_digit()) {
            return Err(("account", "must be 12 digits"));
        }
        if self.first_id < 65_536 || self.first_id.checked_add(self.id_count).is_none_or(|end| end > i32::MAX as u32) {
            return Err(("first_id", "must leave the whole range between 65536 and 2147483647"));
        }
        if self.id_count < 4096 {
            return Err(("id_count", "must be at least 4096"));
        }
        if self.launchers > 64 {
            return Err(("launchers", "must be at most 64"));
        }
        if self.parallel_starts == 0 || self.concurrency == 0 {
            return Err(("parallel_starts", "and concurrency must be at least 1"));
        }
        // A segment is a sixteenth of it, and holds the largest line several times.
        if !(16..=1 << 20).contains(&self.log_max_mib) {
            return Err(("log_max_mib", "must be 16 to 1048576"));
        }
        if self.log_total_mib < self.log_max_mib || self.log_total_mib > 1 << 24 {
            return Err(("log_total_mib", "must be at least log_max_mib, and at most 16777216"));
        }
        for (key, days) in [("log_days", self.log_days), ("books_days", self.books_days)] {
            if !(1..=36_500).contains(&days) {
                return Err((key, "must be 1 to 36500"));
            }
        }
        Ok(())
    }

    pub fn logs_dir(&self) -> PathBuf {
        self.state_dir.join("logs")
    }

    pub fn capacity_wait(&self) -> Duration {
        Duration::from_secs(self.capacity_wait_s)
    }

    pub fn idle(&self) -> Duration {
        Duration::from_secs(self.idle_s)
    }

    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_s)
    }

    pub fn launcher_count(&self) -> u32 {
        match self.launchers {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get() as u32).min(64),
            n => n,
        }
    }

    pub fn logs(&self) -> Duration {
        Duration::from_secs(self.log_days * 24 * 3600)
    }

    pub fn books(&self) -> Duration {
        Duration::from_secs(self.books_days * 24 * 3600)
    }

    pub fn api_socket(&self) -> PathBuf {
        self.run_dir.join("kiln.sock")
    }

    pub fn control_socket(&self) -> PathBuf {
        self.run_dir.join("control.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(toml::from_str::<Config>("").unwrap(), Config::default());
        Config::default().check().unwrap();
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = toml::from_str::<Config>("idle_ms = 3").unwrap_err().to_string();
        assert!(error.contains("idle_ms"), "{error}");
    }

    #[test]
    fn a_bad_value_is_refused_with_its_rule() {
        for (text, key) in [
            ("instance = 'A-b'", "instance"),
            ("run_dir = 'x'", "run_dir"),
            ("account = '1'", "account"),
            ("first_id = 1000", "first_id"),
            ("launchers = 65", "launchers"),
            ("log_max_mib = 15", "log_max_mib"),
            ("log_total_mib = 63", "log_total_mib"),
            ("log_days = 0", "log_days"),
            ("books_days = 40000", "books_days"),
        ] {
            let config: Config = toml::from_str(text).unwrap();
            assert_eq!(config.check().unwrap_err().0, key);
        }
    }
}
