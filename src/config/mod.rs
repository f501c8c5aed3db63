//! The configuration: one TOML file, every key with its default here and its explanation in [`SAMPLE`].
//!
//! A word. The supervisor reads the file; its children read the same text from a descriptor that they inherit, and
//! `kiln config check` and `kiln doctor` read it to say what is wrong with it. Looks at no host: whether a group exists or
//! an id is free is asked by those two, and by the supervisor.

pub mod reading;
pub mod reload;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, fs, io};

use serde::{Deserialize, Serialize};

use self::reading::Fault;
use crate::bill::{Tariff, Usd};
use crate::function::{Memory, Profile};

/// Where `kilnd` looks without `--config`.
pub const DEFAULT_PATH: &str = "/etc/kiln/kiln.toml";

/// Every key, commented out with its default, unit and reason: `kiln config sample`.
pub const SAMPLE: &str = include_str!("kiln.toml");

/// `sun_path` has 108 bytes, the last of them zero.
const LONGEST_SOCKET: usize = 107;

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
    /// Whose limits and billing hold: Lambda's of 2018, or today's.
    pub profile: Profile,
    /// First host uid (and gid) of the range that containers and `unpack` use; no other user may own one of them.
    pub first_id: u32,
    pub id_count: u32,
    /// Launcher processes; 0 is one for each CPU.
    pub launchers: u32,
    /// Memory that all environments together may use; 0 is four fifths of the host's.
    pub memory_budget_mib: u64,
    /// Zips of all functions and layers together, each counted as often as it is used.
    pub code_budget_mib: u64,
    /// Invocations at once, over all functions.
    pub concurrency: u32,
    /// Environments that may initialise at once.
    pub parallel_starts: u32,
    /// How long a caller waits for capacity before it gets 429.
    pub capacity_wait_s: u64,
    /// An environment idle for so long is recycled: the shorter time when memory is scarce, the longer when it is not.
    pub idle_min_s: u64,
    pub idle_max_s: u64,
    /// So old an environment is recycled though it is used; 0 is never.
    pub max_age_s: u64,
    /// How long running invocations may go on after SIGTERM.
    pub drain_s: u64,
    /// What is kept of one function's log; the oldest goes first.
    pub log_max_mib: u64,
    /// Of all functions' logs together; the largest gives first.
    pub log_total_mib: u64,
    /// Older lines go, those of deleted functions too.
    pub log_days: u64,
    /// What of functions' logs systemd's journal gets, too.
    pub journal: Mirrored,
    /// Older rows of the books go.
    pub books_days: u64,
    /// Where Prometheus may ask for metrics, besides control.sock: a loopback address and a port; empty is nowhere.
    pub metrics_listen: String,
    /// What `kiln usage` reckons with: a million requests; a GB-second; and what of both a month has for nothing.
    pub price_million_requests_usd: Usd,
    pub price_gb_s_usd: Usd,
    pub free_requests: u64,
    pub free_gb_s: u64,
}

/// What of functions' logs goes to systemd's journal as well, where kilnd runs under one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mirrored {
    /// All lines, but for what is more than the journal should take of one function.
    #[default]
    Auto,
    /// The platform's lines: START, END, REPORT, causes.
    Platform,
    None,
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
            // What the documentation that Kiln is measured by describes.
            profile: Profile::Of2018,
            // Above every range that distributions, systemd (1879048191 and below) or subuid hand out;
            // 1879048192 itself is R, the owner of the trees.
            first_id: 1_879_113_728,
            id_count: 65_536,
            launchers: 0,
            memory_budget_mib: 0,
            // Lambda's 80,530,636,800 bytes.
            code_budget_mib: 76_800,
            concurrency: 1000,
            parallel_starts: 8,
            capacity_wait_s: 5,
            // Lambda's own are gone after 5 to 15 minutes.
            idle_min_s: 300,
            idle_max_s: 900,
            // Lambda replaces its own every few hours.
            max_age_s: 14_400,
            drain_s: 30,
            // A quarter of a million lines of an ordinary length.
            log_max_mib: 64,
            // Sixty-four noisy functions; a small host's disk has room for it.
            log_total_mib: 4096,
            // What was wrong last week can be looked up this week, after a holiday too.
            log_days: 14,
            // Where people have a journal they look there first; what a function may write there is bounded.
            journal: Mirrored::Auto,
            // A year's bill can be checked a month later.
            books_days: 400,
            // Whoever reaches it reads the names of all functions, so it is nobody's before somebody wants it.
            metrics_listen: String::new(),
            // Lambda's own prices and free tier.
            price_million_requests_usd: Usd::from_pico(200_000_000_000),
            price_gb_s_usd: Usd::from_pico(16_670_000),
            free_requests: 1_000_000,
            free_gb_s: 400_000,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read the configuration {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("the configuration is wrong (`kiln config check {path}` tries it):\n{}", Faults(.path, .faults))]
    Wrong { path: PathBuf, faults: Vec<Fault> },
}

/// One fault a line, as compilers write them: an editor jumps there.
struct Faults<'a>(&'a Path, &'a [Fault]);

impl fmt::Display for Faults<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.1.iter().map(|fault| format!("  {}:{fault}", self.0.display())).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl Config {
    /// Reads and checks one file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        match reading::read(&text) {
            (config, faults) if faults.is_empty() => Ok(config),
            (_, faults) => Err(ConfigError::Wrong { path: path.to_owned(), faults }),
        }
    }

    /// With what is settled once for all processes: how many launchers 0 is.
    pub fn settled(mut self) -> Self {
        self.launchers = self.launcher_count();
        self
    }

    /// Every key with its default, as the file spells them.
    pub fn keys() -> toml::Table {
        // A flat struct of texts and numbers: nothing in it that TOML could not write.
        toml::Table::try_from(Self::default()).unwrap_or_default()
    }

    /// Every rule that a value breaks, with its key. What it says begins with "must".
    pub fn broken_rules(&self) -> Vec<(&'static str, &'static str)> {
        let mut broken = Vec::new();
        let mut rule = |holds: bool, key, rule| {
            if !holds {
                broken.push((key, rule));
            }
        };
        let named = (1..=16).contains(&self.instance.len())
            && self.instance.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        rule(named, "instance", "must be 1 to 16 of a-z and 0-9");
        for (key, path) in [("run_dir", &self.run_dir), ("state_dir", &self.state_dir), ("runtimes_dir", &self.runtimes_dir)] {
            rule(path.is_absolute(), key, "must be an absolute path");
        }
        // They are written into files of one record a line (run_dir/cgroups, the list of instances).
        for (key, path) in [("run_dir", &self.run_dir), ("state_dir", &self.state_dir)] {
            let plain = |byte: &u8| !byte.is_ascii_whitespace() && !byte.is_ascii_control();
            rule(
                path.as_os_str().as_encoded_bytes().iter().all(plain),
                key,
                "must be a path without blanks or control characters",
            );
        }
        let socket = self.control_socket().as_os_str().len();
        rule(socket <= LONGEST_SOCKET, "run_dir", "must be shorter: a socket in it may have a path of 107 bytes");
        rule(self.run_dir != self.state_dir, "state_dir", "must not be run_dir, which is emptied at stop");
        for (key, name) in [("user", &self.user), ("invoke_group", &self.invoke_group), ("admin_group", &self.admin_group)] {
            rule(!name.is_empty(), key, "must name one");
        }
        let region = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        rule(!self.region.is_empty() && self.region.bytes().all(region), "region", "must be of a-z, 0-9 and -, like us-east-1");
        let account = self.account.len() == 12 && self.account.bytes().all(|b| b.is_ascii_digit());
        rule(account, "account", "must be 12 digits, in quotes");
        let within =
            self.first_id >= 65_536 && self.first_id.checked_add(self.id_count).is_some_and(|end| end <= i32::MAX as u32);
        rule(within, "first_id", "must leave the whole range between 65536 and 2147483647");
        rule(self.id_count >= 4096, "id_count", "must be at least 4096");
        rule(self.launchers <= 64, "launchers", "must be at most 64");
        let smallest = u64::from(Memory::MIN);
        rule(
            self.memory_budget_mib == 0 || self.memory_budget_mib >= smallest,
            "memory_budget_mib",
            "must be 0, or at least 128",
        );
        rule(self.code_budget_mib >= 1, "code_budget_mib", "must be at least 1");
        for (key, seconds) in [("capacity_wait_s", self.capacity_wait_s), ("drain_s", self.drain_s)] {
            rule(seconds <= 86_400, key, "must be at most 86400, a day");
        }
        for (key, seconds) in [("idle_max_s", self.idle_max_s), ("max_age_s", self.max_age_s)] {
            rule(seconds <= 31_536_000, key, "must be at most 31536000, a year");
        }
        rule(self.concurrency >= 1, "concurrency", "must be at least 1");
        rule(self.parallel_starts >= 1, "parallel_starts", "must be at least 1");
        rule(self.idle_min_s >= 1, "idle_min_s", "must be at least 1");
        rule(self.idle_max_s >= self.idle_min_s, "idle_max_s", "must be at least idle_min_s");
        rule(self.max_age_s == 0 || self.max_age_s >= 60, "max_age_s", "must be 0 (never), or at least 60");
        // A segment is a sixteenth of it, and holds the largest line several times.
        rule((16..=1 << 20).contains(&self.log_max_mib), "log_max_mib", "must be 16 to 1048576");
        let total = self.log_max_mib..=1 << 24;
        rule(total.contains(&self.log_total_mib), "log_total_mib", "must be at least log_max_mib, and at most 16777216");
        for (key, days) in [("log_days", self.log_days), ("books_days", self.books_days)] {
            rule((1..=36_500).contains(&days), key, "must be 1 to 36500");
        }
        let loopback = |address: SocketAddr| address.ip().is_loopback() && address.port() != 0;
        rule(
            self.metrics_listen.is_empty() || self.metrics_listen.parse().is_ok_and(loopback),
            "metrics_listen",
            "must be a loopback address with a port, like 127.0.0.1:9150 or [::1]:9150, since it asks nobody who they are; \
             or empty, for none",
        );
        broken
    }

    pub fn logs_dir(&self) -> PathBuf {
        self.state_dir.join("logs")
    }

    pub fn capacity_wait(&self) -> Duration {
        Duration::from_secs(self.capacity_wait_s)
    }

    /// How long an environment may be idle: when memory is scarce, and when it is not.
    pub fn idle(&self) -> (Duration, Duration) {
        (Duration::from_secs(self.idle_min_s), Duration::from_secs(self.idle_max_s))
    }

    pub fn max_age(&self) -> Option<Duration> {
        Some(Duration::from_secs(self.max_age_s)).filter(|age| !age.is_zero())
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

    pub fn tariff(&self) -> Tariff {
        Tariff {
            million_requests_usd: self.price_million_requests_usd,
            gb_s_usd: self.price_gb_s_usd,
            free_requests: self.free_requests,
            free_gb_s: self.free_gb_s,
        }
    }

    /// Where the metrics are served besides control.sock.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_listen.parse().ok()
    }

    /// The registry and the books.
    pub fn database(&self) -> PathBuf {
        self.state_dir.join("db/kiln.db")
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

    /// The sample with every key in force. A key's line is `#name = value`; everything else is "# words".
    fn uncommented() -> String {
        let key = |line: &str| {
            line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase())).map(str::to_owned)
        };
        SAMPLE.lines().map(|line| key(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
    }

    #[test]
    fn the_sample_uncommented_is_the_default_and_has_every_key_once() {
        let text = uncommented();
        let (config, faults) = reading::read(&text);
        assert_eq!((faults, config), (vec![], Config::default()));
        let shown: toml::Table = toml::from_str(&text).expect("a key that is there twice is no TOML");
        let keys = |table: &toml::Table| table.keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&shown), keys(&Config::keys()), "src/config/kiln.toml must have a line for each key of Config");
    }

    #[test]
    fn the_sample_as_it_is_sets_nothing_and_explains_each_key() {
        assert_eq!(toml::from_str::<toml::Table>(SAMPLE).unwrap().len(), 0);
        let lines: Vec<&str> = SAMPLE.lines().collect();
        for (number, line) in lines.iter().enumerate().filter(|(_, line)| line.starts_with('#') && line.contains(" = ")) {
            assert!(lines[number - 1].starts_with("# "), "no reason above {line}");
        }
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(reading::read(""), (Config::default(), vec![]));
    }

    #[test]
    fn a_refusal_has_a_line_for_each_fault_that_an_editor_can_follow() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "drain_ms = 3\naccount = '1'\n").unwrap();
        let text = Config::read(file.path()).unwrap_err().to_string();
        let at = |place: &str| format!("\n  {}:{place}: ", file.path().display());
        assert!(text.contains(&at("1:1")) && text.contains("did you mean `drain_s`?") && text.contains(&at("2:11")), "{text}");
    }

    #[test]
    fn a_profile_is_one_of_two() {
        let profile = |text: &str| toml::from_str::<Config>(&format!("profile = {text}")).map(|config| config.profile);
        assert_eq!(profile("'2018'").unwrap(), Profile::Of2018);
        assert_eq!(profile("'current'").unwrap(), Profile::Current);
        let error = profile("'2019'").unwrap_err().to_string();
        assert!(error.contains("`2018` or `current`"), "{error}");
    }

    #[test]
    fn the_journal_gets_all_or_the_platforms_lines_or_none() {
        let journal = |text: &str| toml::from_str::<Config>(&format!("journal = {text}")).map(|config| config.journal);
        assert_eq!(journal("'auto'").unwrap(), Config::default().journal);
        assert_eq!((journal("'platform'").unwrap(), journal("'none'").unwrap()), (Mirrored::Platform, Mirrored::None));
        let (_, faults) = reading::read("journal = 'all'");
        let said = faults[0].to_string();
        assert!(said.contains("`auto`, `platform`, `none`") && said.contains("journal = \"auto\""), "{said}");
    }

    #[test]
    fn metrics_are_served_on_any_loopback_address_and_on_no_other() {
        for (text, address) in [("127.0.0.1:9150", true), ("127.3.2.1:1", true), ("[::1]:9150", true), ("", false)] {
            let config = Config { metrics_listen: text.into(), ..Config::default() };
            assert_eq!((config.broken_rules(), config.metrics_address().is_some()), (vec![], address), "{text}");
        }
    }

    #[test]
    fn a_bad_value_is_refused_with_its_rule() {
        let long = format!("run_dir = '/{}'", "x".repeat(100));
        for (text, key) in [
            ("instance = 'A-b'", "instance"),
            ("run_dir = 'x'", "run_dir"),
            ("run_dir = '/a b'", "run_dir"),
            (&long, "run_dir"),
            ("state_dir = '/run/kiln'", "state_dir"),
            ("user = ''", "user"),
            ("region = 'us east'", "region"),
            ("account = '1'", "account"),
            ("first_id = 1000", "first_id"),
            ("id_count = 100", "id_count"),
            ("launchers = 65", "launchers"),
            ("log_max_mib = 15", "log_max_mib"),
            ("log_total_mib = 63", "log_total_mib"),
            ("log_days = 0", "log_days"),
            ("books_days = 40000", "books_days"),
            ("metrics_listen = '0.0.0.0:9150'", "metrics_listen"),
            ("metrics_listen = '192.168.1.2:9150'", "metrics_listen"),
            ("metrics_listen = '[::]:9150'", "metrics_listen"),
            ("metrics_listen = '127.0.0.1:0'", "metrics_listen"),
            ("metrics_listen = '127.0.0.1'", "metrics_listen"),
            ("metrics_listen = 'localhost:9150'", "metrics_listen"),
            ("metrics_listen = ' '", "metrics_listen"),
            ("memory_budget_mib = 64", "memory_budget_mib"),
            ("code_budget_mib = 0", "code_budget_mib"),
            ("capacity_wait_s = 86401", "capacity_wait_s"),
            ("drain_s = 100000", "drain_s"),
            ("idle_max_s = 31536001", "idle_max_s"),
            ("max_age_s = 31536001", "max_age_s"),
            ("concurrency = 0", "concurrency"),
            ("parallel_starts = 0", "parallel_starts"),
            ("idle_min_s = 0", "idle_min_s"),
            ("idle_max_s = 299", "idle_max_s"),
            ("max_age_s = 59", "max_age_s"),
        ] {
            let config: Config = toml::from_str(text).unwrap();
            let broken = config.broken_rules();
            assert!(broken.len() == 1 && broken[0].0 == key && broken[0].1.starts_with("must"), "{text}: {broken:?}");
        }
        assert_eq!(Config::default().broken_rules(), []);
    }
}
