//! What a running kilnd takes over from a changed file, and what has to wait for its next start.
//!
//! A word. The supervisor reads the file again at SIGHUP and asks here; `kiln doctor` says which of the two cures a difference
//! needs.

use std::sync::{Arc, PoisonError, RwLock};

use serde::Deserialize;

use super::Config;

/// Bounds, times and prices: nothing is built on them.
pub const RELOADABLE: &[&str] = &[
    "memory_budget_mib",
    "code_budget_mib",
    "concurrency",
    "parallel_starts",
    "capacity_wait_s",
    "idle_min_s",
    "idle_max_s",
    "max_age_s",
    "drain_s",
    "log_max_mib",
    "log_total_mib",
    "log_days",
    "journal",
    "books_days",
    "metrics_listen",
    "price_million_requests_usd",
    "price_gb_s_usd",
    "free_requests",
    "free_gb_s",
];

/// Names, places, ids, processes and threads: what is there was made with them.
pub const AT_START: &[&str] = &[
    "instance",
    "run_dir",
    "state_dir",
    "runtimes_dir",
    "user",
    "invoke_group",
    "admin_group",
    "region",
    "account",
    "profile",
    "first_id",
    "id_count",
    "launchers",
];

/// What reading the file again comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reload {
    /// From now on.
    pub config: Config,
    /// Keys that have another value now.
    pub changed: Vec<String>,
    /// Keys whose value in the file is for the next start.
    pub waiting: Vec<String>,
}

/// `in_force` is what runs, `file` is what was read; both as [`Config::settled`].
pub fn reload(in_force: &Config, file: &Config) -> Reload {
    // Flat structs of texts and numbers: they are tables, and come back from them.
    let table = |config: &Config| toml::Table::try_from(config).unwrap_or_default();
    let (mut now, file) = (table(in_force), table(file));
    let differ = |keys: &[&str], now: &toml::Table| -> Vec<String> {
        keys.iter().filter(|key| now.get(**key) != file.get(**key)).map(|key| (*key).to_owned()).collect()
    };
    let (changed, waiting) = (differ(RELOADABLE, &now), differ(AT_START, &now));
    for key in &changed {
        if let Some(value) = file.get(key) {
            now.insert(key.clone(), value.clone());
        }
    }
    let config = Config::deserialize(now).unwrap_or_else(|_| in_force.clone());
    Reload { config, changed, waiting }
}

/// The configuration that this process goes by at this moment. A clone is another handle to it.
#[derive(Clone, Debug)]
pub struct InForce(Arc<RwLock<State>>);

#[derive(Clone, Debug)]
struct State {
    config: Arc<Config>,
    waiting: Arc<[String]>,
}

impl InForce {
    pub fn now(&self) -> Arc<Config> {
        self.state().config
    }

    /// Keys whose value in the file is for the next start.
    pub fn waiting(&self) -> Arc<[String]> {
        self.state().waiting
    }

    pub fn set(&self, config: Config, waiting: Vec<String>) {
        // Held for one assignment or two counts, so nobody has ever seen it poisoned.
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = State { config: Arc::new(config), waiting: waiting.into() };
    }

    fn state(&self) -> State {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl From<&Config> for InForce {
    fn from(config: &Config) -> Self {
        let state = State { config: Arc::new(config.clone()), waiting: Arc::default() };
        Self(Arc::new(RwLock::new(state)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_reloaded_or_waits_for_a_start_and_never_both() {
        let mut listed: Vec<&str> = RELOADABLE.iter().chain(AT_START).copied().collect();
        listed.sort_unstable();
        let keys = Config::keys();
        let mut keys: Vec<&str> = keys.keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(listed, keys, "src/config/reload.rs must have each key of Config in one of its two lists");
    }

    #[test]
    fn bounds_change_and_names_wait() {
        let before = Config::default();
        let file = Config { drain_s: 60, region: "eu-west-1".into(), log_days: 3, first_id: 200_000, ..before.clone() };
        let Reload { config, changed, waiting } = reload(&before, &file);
        assert_eq!(config, Config { drain_s: 60, log_days: 3, ..before.clone() });
        assert_eq!(
            (changed, waiting),
            (vec!["drain_s".to_owned(), "log_days".into()], vec!["region".to_owned(), "first_id".into()])
        );
        let back = reload(&config, &Config { drain_s: 60, log_days: 3, ..before });
        assert_eq!((back.config, back.changed.len(), back.waiting.len()), (config, 0, 0), "nothing waits that was put back");
    }
}
