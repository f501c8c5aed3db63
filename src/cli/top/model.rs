//! What two looks at the pool say together: rates, CPU in use, and the rows of both tables in their order.
//!
//! Pure: the looks and when they were come in.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::settings::{ByFunction, Settings};
use crate::cli::args::Sort;
use crate::cli::pool::{Counts, Environment, Pool};
use crate::function::{CPU_PERIOD, Memory};

/// Closer together, two looks say nothing about a rate.
const LEAST: Duration = Duration::from_millis(100);

/// One look, and when it was, from some moment on.
#[derive(Clone, Debug)]
pub struct Look {
    pub at: Duration,
    pub pool: Pool,
}

/// What is known: the last look and the one before.
#[derive(Clone, Debug)]
pub struct Known {
    pub last: Look,
    before: Option<Look>,
    /// Why kilnd could not be asked since then.
    pub lost: Option<String>,
}

/// Of one function.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FunctionRow {
    pub name: String,
    pub busy: usize,
    pub initialising: usize,
    pub idle: usize,
    /// What its environments are charged, as the heading is.
    pub charged_mib: u64,
    /// CPUs in use.
    pub cpu: Option<f64>,
    pub rates: Option<Rates>,
}

/// For a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    pub invocations: f64,
    pub errors: f64,
    pub cold_starts: f64,
    pub throttles: f64,
    /// None where there were no invocations.
    pub mean: Option<Duration>,
}

#[derive(Clone, Debug)]
pub struct EnvironmentRow<'a> {
    pub seen: &'a Environment,
    /// Stays the same while it lives: what a selection holds on to.
    pub key: String,
    /// CPUs in use, and how many it may use in the long run.
    pub cpu: Option<f64>,
    pub quota: f64,
}

impl EnvironmentRow<'_> {
    pub fn cpu_share(&self) -> Option<f64> {
        self.cpu.map(|cpu| cpu / self.quota)
    }
}

impl Known {
    pub fn new(first: Look) -> Self {
        Self { last: first, before: None, lost: None }
    }

    pub fn saw(&mut self, look: Look) {
        // Counts that went back are another server's.
        let counted = counted(&self.last);
        let mut functions = look.pool.functions.iter().flatten();
        let is_another = refused(&look) < refused(&self.last)
            || functions.any(|now| counted.get(now.function.as_str()).is_some_and(|then| now.invocations < then.invocations));
        let was_lost = self.lost.take().is_some();
        let before = std::mem::replace(&mut self.last, look);
        if is_another || was_lost {
            self.before = None;
        } else if self.last.at.saturating_sub(before.at) >= LEAST || self.before.is_none() {
            self.before = Some(before);
        }
    }

    pub fn lost(&mut self, why: String) {
        self.lost = Some(why);
    }

    /// The look before, and how long ago it was at the last one.
    fn past(&self) -> Option<(&Look, f64)> {
        let before = self.before.as_ref()?;
        let took = self.last.at.saturating_sub(before.at);
        (took >= LEAST).then_some((before, took.as_secs_f64()))
    }

    /// Of all functions together: those that kilnd counts each, and refusals in any case.
    pub fn rates(&self) -> Option<Rates> {
        let (before, took) = self.past()?;
        let throttles = refused(&self.last).saturating_sub(refused(before)) as f64 / took;
        // One by one: the counts of a function that was deleted are gone.
        let (counted, none) = (counted(before), Counts::default());
        let functions = self.last.pool.functions.iter().flatten();
        let each = functions.map(|now| rates(counted.get(now.function.as_str()).copied().unwrap_or(&none), now, took));
        Some(each.fold(Rates { throttles, ..Rates::default() }, |sum, one| Rates {
            invocations: sum.invocations + one.invocations,
            errors: sum.errors + one.errors,
            cold_starts: sum.cold_starts + one.cold_starts,
            ..sum
        }))
    }

    /// Those that the filter lets through, in the order of the settings; and how many there are without it.
    pub fn functions(&self, settings: &Settings) -> (Vec<FunctionRow>, usize) {
        let pool = &self.last.pool;
        let mut rows: BTreeMap<&str, FunctionRow> = BTreeMap::new();
        let past = self.past();
        let counted_before = past.map(|(before, _)| counted(before)).unwrap_or_default();
        for counts in pool.functions.iter().flatten() {
            let row = rows.entry(&counts.function).or_default();
            // Who was not counted before has counted from nothing.
            let none = Counts::default();
            let earlier = counted_before.get(counts.function.as_str()).copied().unwrap_or(&none);
            row.rates = past.map(|(_, took)| rates(earlier, counts, took));
        }
        for environment in self.seen() {
            let row = rows.entry(&environment.seen.function).or_default();
            match environment.seen.state.as_str() {
                "busy" => row.busy += 1,
                "initialising" => row.initialising += 1,
                // Held by people who are inside: none of its invocations runs.
                _ => row.idle += 1,
            }
            row.charged_mib += environment.seen.charged_mib;
            if let Some(cpu) = environment.cpu {
                *row.cpu.get_or_insert(0.0) += cpu;
            }
        }
        let all = rows.len();
        let rows = rows.into_iter().filter(|(name, _)| name.contains(&settings.filter));
        let mut rows: Vec<FunctionRow> = rows.map(|(name, row)| FunctionRow { name: name.to_owned(), ..row }).collect();
        // Stable: among equals, by name.
        rows.sort_by(|a, b| compare_functions(settings.by_function, a, b));
        if settings.reversed[0] {
            rows.reverse();
        }
        (rows, all)
    }

    /// The same of environments.
    pub fn environments(&self, settings: &Settings) -> (Vec<EnvironmentRow<'_>>, usize) {
        let mut rows = self.seen();
        let all = rows.len();
        rows.retain(|row| row.seen.function.contains(&settings.filter));
        let states = ["busy", "initialising", "held", "idle"];
        let state = |row: &EnvironmentRow<'_>| states.iter().position(|state| *state == row.seen.state);
        rows.sort_by(|a, b| {
            let in_name = a.seen.function.cmp(&b.seen.function).then_with(|| state(a).cmp(&state(b)));
            let first = match settings.by_environment {
                Sort::Function => Ordering::Equal,
                Sort::Memory => b.seen.used_mib.cmp(&a.seen.used_mib),
                Sort::Peak => b.seen.peak_mib.cmp(&a.seen.peak_mib),
                Sort::Cpu => number(b.cpu).total_cmp(&number(a.cpu)),
                Sort::Age => b.seen.age_s.total_cmp(&a.seen.age_s),
                Sort::Idle => number(b.seen.idle_s).total_cmp(&number(a.seen.idle_s)),
                Sort::Invocations => b.seen.invocations.cmp(&a.seen.invocations),
            };
            first.then(in_name).then_with(|| b.seen.age_s.total_cmp(&a.seen.age_s)).then_with(|| a.key.cmp(&b.key))
        });
        if settings.reversed[1] {
            rows.reverse();
        }
        (rows, all)
    }

    /// CPUs in use by all environments that are there.
    pub fn cpu(&self) -> Option<f64> {
        let known: Vec<f64> = self.seen().iter().filter_map(|row| row.cpu).collect();
        (!known.is_empty()).then(|| known.iter().sum())
    }

    fn seen(&self) -> Vec<EnvironmentRow<'_>> {
        let past = self.past();
        let before: HashMap<&str, &Environment> = past
            .iter()
            .flat_map(|(before, _)| &before.pool.environments)
            .filter_map(|environment| Some((environment.container.as_deref()?, environment)))
            .collect();
        let mut unnamed = 0;
        let environments = self.last.pool.environments.iter().map(|seen| {
            let earlier = seen.container.as_deref().and_then(|container| before.get(container).copied());
            let key = seen.container.clone().unwrap_or_else(|| {
                unnamed += 1;
                format!("{} {unnamed}", seen.function)
            });
            EnvironmentRow { seen, key, cpu: past.and_then(|_| cpu(seen, earlier)), quota: quota(seen) }
        });
        environments.collect()
    }
}

/// Invocations that were refused so far.
fn refused(look: &Look) -> u64 {
    look.pool.refused.values().sum()
}

/// What each function did so far.
fn counted(look: &Look) -> HashMap<&str, &Counts> {
    look.pool.functions.iter().flatten().map(|counts| (counts.function.as_str(), counts)).collect()
}

/// CPUs in use since the look before, or since its birth if it was not there then.
fn cpu(now: &Environment, earlier: Option<&Environment>) -> Option<f64> {
    let (cpu_ms, age_s) = earlier.map_or((Some(0), 0.0), |earlier| (earlier.cpu_ms, earlier.age_s));
    // By its own age: the server's clock, not ours.
    let span = now.age_s - age_s;
    let ms = now.cpu_ms?.checked_sub(cpu_ms?)?;
    (span >= LEAST.as_secs_f64()).then(|| ms as f64 / 1e3 / span)
}

/// CPUs that it may use: in proportion to memory, and one at least during its init.
fn quota(environment: &Environment) -> f64 {
    let memory = u32::try_from(environment.memory_mib).ok().and_then(|mib| Memory::from_mib(mib).ok());
    let share = memory.map_or(1.0, |memory| memory.cpu_quota().as_secs_f64() / CPU_PERIOD.as_secs_f64());
    if environment.state == "initialising" { share.max(1.0) } else { share }
}

fn rates(before: &Counts, now: &Counts, took: f64) -> Rates {
    let grown = |before: u64, now: u64| now.saturating_sub(before) as f64;
    let invocations = grown(before.invocations, now.invocations);
    let mean = (invocations > 0.0)
        .then(|| Duration::try_from_secs_f64((now.duration_ms - before.duration_ms) / 1e3 / invocations).ok())
        .flatten();
    Rates {
        invocations: invocations / took,
        errors: grown(before.errors, now.errors) / took,
        cold_starts: grown(before.cold_starts, now.cold_starts) / took,
        throttles: grown(before.throttles, now.throttles) / took,
        mean,
    }
}

/// The largest first.
fn compare_functions(by: ByFunction, a: &FunctionRow, b: &FunctionRow) -> Ordering {
    let rate = |row: &FunctionRow, of: fn(&Rates) -> f64| number(row.rates.as_ref().map(of));
    let by_rate = |of: fn(&Rates) -> f64| rate(b, of).total_cmp(&rate(a, of));
    let states = |row: &FunctionRow| (row.busy, row.initialising, row.idle);
    match by {
        ByFunction::Name => Ordering::Equal,
        ByFunction::States => states(b).cmp(&states(a)),
        ByFunction::Invocations => by_rate(|rates| rates.invocations).then_with(|| states(b).cmp(&states(a))),
        ByFunction::Duration => by_rate(|rates| rates.mean.map_or(0.0, |mean| mean.as_secs_f64())),
        ByFunction::Errors => by_rate(|rates| rates.errors),
        ByFunction::ColdStarts => by_rate(|rates| rates.cold_starts),
        ByFunction::Throttles => by_rate(|rates| rates.throttles),
        ByFunction::Cpu => number(b.cpu).total_cmp(&number(a.cpu)),
        ByFunction::Memory => b.charged_mib.cmp(&a.charged_mib),
    }
}

/// Below every number there is none.
fn number(number: Option<f64>) -> f64 {
    number.unwrap_or(-1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(at_ms: u64, invocations: u64, environments: &[(&str, f64, u64)]) -> Look {
        let environments = environments.iter().map(|(container, age_s, cpu_ms)| Environment {
            function: "f".into(),
            state: "busy".into(),
            container: Some((*container).into()),
            age_s: *age_s,
            cpu_ms: Some(*cpu_ms),
            memory_mib: 1769,
            ..Environment::default()
        });
        let counts = Counts { function: "f".into(), invocations, duration_ms: invocations as f64 * 20.0, ..Counts::default() };
        let pool = Pool { environments: environments.collect(), functions: Some(vec![counts]), ..Pool::default() };
        Look { at: Duration::from_millis(at_ms), pool }
    }

    fn cpu(known: &Known) -> Vec<Option<f64>> {
        known.environments(&Settings::default()).0.iter().map(|row| row.cpu_share()).collect()
    }

    #[test]
    fn one_look_has_no_rates_and_two_have() {
        let mut known = Known::new(look(0, 10, &[("1-1", 5.0, 100)]));
        assert_eq!((known.rates(), known.cpu(), known.functions(&Settings::default()).0[0].rates), (None, None, None));
        known.saw(look(2000, 50, &[("1-1", 7.0, 1100)]));
        let rates = known.functions(&Settings::default()).0[0].rates.unwrap();
        assert_eq!((rates.invocations, rates.mean), (20.0, Some(Duration::from_millis(20))));
        assert_eq!(known.rates().unwrap().invocations, 20.0);
        assert_eq!(cpu(&known), [Some(0.5)], "a second of two, of one CPU");
    }

    #[test]
    fn a_container_that_is_new_has_computed_since_its_birth_and_one_without_a_count_has_none() {
        let mut known = Known::new(look(0, 0, &[]));
        known.saw(look(2000, 0, &[("1-2", 0.5, 250)]));
        assert_eq!(cpu(&known), [Some(0.5)]);
        known.last.pool.environments[0].cpu_ms = None;
        assert_eq!((cpu(&known), known.cpu()), (vec![None], None));
    }

    #[test]
    fn counts_of_another_server_make_no_rates() {
        let mut known = Known::new(look(0, 1000, &[]));
        known.saw(look(2000, 3, &[]));
        assert_eq!(known.rates(), None, "it was started again between two looks");
        known.saw(look(4000, 5, &[]));
        assert_eq!(known.rates().unwrap().invocations, 1.0);
        known.lost("nobody answers".into());
        known.saw(look(8000, 500, &[]));
        assert_eq!((known.rates(), &known.lost), (None, &None), "it was away, and may be another");
    }

    #[test]
    fn a_function_that_is_deleted_takes_nothing_from_the_others() {
        let of = |function: &str, invocations| Counts { function: function.into(), invocations, ..Counts::default() };
        let mut before = look(0, 10, &[]);
        before.pool.functions.as_mut().unwrap().push(of("deleted", 1000));
        let mut known = Known::new(before);
        let mut after = look(1000, 30, &[]);
        after.pool.functions.as_mut().unwrap().push(of("new", 5));
        known.saw(after);
        assert_eq!(known.rates().unwrap().invocations, 25.0);
    }

    #[test]
    fn two_looks_at_nearly_the_same_moment_are_none_to_divide_by() {
        let mut known = Known::new(look(0, 10, &[]));
        known.saw(look(1000, 20, &[]));
        known.saw(look(1001, 30, &[]));
        let rates = known.rates().unwrap().invocations;
        assert!((rates - 20.0 / 1.001).abs() < 1e-9, "{rates}: from the one before");
    }

    #[test]
    fn init_has_one_cpu_at_least_and_a_large_one_its_share() {
        let environment = |state: &str, memory_mib| Environment { state: state.into(), memory_mib, ..Environment::default() };
        let quotas = [("initialising", 128), ("busy", 128), ("busy", 3538)].map(|(state, mib)| quota(&environment(state, mib)));
        assert!(
            (quotas[0] - 1.0).abs() < 1e-3 && (quotas[1] - 0.07235).abs() < 1e-3 && (quotas[2] - 2.0).abs() < 1e-3,
            "{quotas:?}"
        );
    }
}
