//! Every metric: its name, what it says, and its labels. The only place that spells them.
//!
//! Names as Prometheus wants them: base units (seconds, bytes) in the name, `_total` for what only grows. All begin with `kiln_`, also
//! those that other programs call `process_…`: a node exporter that reads our text from a file has those itself, and refuses it.
//!
//! Labels have few values each, all listed here, but for `function`, which [`super`] bounds.

use prometheus::core::Collector;
use prometheus::{
    Counter, CounterVec, Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Half decades from a millisecond (the fastest warm calls take less than one) to more than the longest timeout, 900 s.
const DURATIONS: &[f64] = &[0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0];

/// All metrics of a server. The fields are what is counted; those of the second half are set when somebody asks.
pub struct Catalogue {
    pub registry: Registry,

    // Of each function.
    pub invocations: IntCounterVec,
    pub errors: IntCounterVec,
    pub throttles: IntCounterVec,
    pub cold_starts: IntCounterVec,
    pub init_failures: IntCounterVec,
    pub duration: HistogramVec,
    pub billed: CounterVec,
    pub function_environments: IntGaugeVec,
    pub function_charged: IntGaugeVec,
    // Of all.
    pub starts: IntCounterVec,
    pub cold_start: HistogramVec,
    pub wait: HistogramVec,

    // Asked for.
    pub environments: IntGaugeVec,
    pub retired: IntCounterVec,
    pub budget: IntGauge,
    pub charged: IntGauge,
    pub in_flight: IntGauge,
    pub concurrency: IntGauge,
    pub unreserved: IntGauge,
    pub waiting: IntGauge,
    pub parallel_starts: IntGauge,
    pub failing: IntGauge,
    pub told_again: IntCounter,
    pub launchers: IntGauge,
    pub launchers_wanted: IntGauge,
    pub launchers_restarted: IntCounter,
    pub servers_restarted: IntCounter,
    pub swept: IntCounterVec,
    pub not_cleared: IntCounter,
    pub log_lines: IntCounterVec,
    pub journal_lines: IntCounterVec,
    pub lost_rows: IntCounter,
    pub lost_environments: IntCounter,
    pub reloads: IntCounterVec,
    pub reload_good: IntGauge,
    pub waiting_keys: IntGauge,
    pub draining: IntGauge,
    pub build: IntGaugeVec,
    pub started: Gauge,
    pub cpu: Counter,
    pub resident: IntGauge,
    pub descriptors: IntGauge,
    pub descriptor_limit: IntGauge,
}

/// Registers one after the other.
struct Register(Registry);

impl Register {
    fn with<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        // A name that is no name, or comes twice, is a mistake in this file, which its test finds.
        let made = made.unwrap_or_else(|error| panic!("a metric of {}: {error}", file!()));
        if let Err(error) = self.0.register(Box::new(made.clone())) {
            panic!("a metric of {}: {error}", file!());
        }
        made
    }

    fn counter(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.with(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.with(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        self.with(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }
}

impl Catalogue {
    #[rustfmt::skip]
    pub fn new() -> Self {
        let registry = Registry::new();
        let of = Register(registry.clone());
        Self {
            invocations: of.counter("kiln_invocations_total", "Invocations that ended, well or not. Throttled ones are none.", &["function"]),
            errors: of.counter("kiln_invocation_errors_total", "Those of them that failed, by cause, as REPORT names it; what a handler reports is Runtime.Unknown.", &["function", "cause"]),
            throttles: of.counter("kiln_throttles_total", "Invocations that were refused with 429, by what was short.", &["function", "reason"]),
            cold_starts: of.counter("kiln_cold_starts_total", "Invocations that waited for an environment of their own.", &["function"]),
            init_failures: of.counter("kiln_init_failures_total", "Inits that failed, each try counted, by cause.", &["function", "cause"]),
            duration: of.histogram("kiln_invocation_duration_seconds", "What REPORT calls Duration: from the event to the runtime's next question, init not included.", &["function"], DURATIONS),
            billed: of.with(CounterVec::new(Opts::new("kiln_billed_byte_seconds_total", "Configured memory times billed duration; divided by 2^30 it is what kiln usage adds up, GB-seconds."), &["function"])),
            function_environments: of.gauge("kiln_function_environments", "Environments of each function, in whatever state.", &["function"]),
            function_charged: of.gauge("kiln_function_memory_charged_bytes", "What the environments of each function are charged against the memory budget.", &["function"]),
            starts: of.counter("kiln_environment_starts_total", "Environments that were begun to be built, by why no warm one could serve: first, busy, once, again (the first try of its init failed), or how the last one ended.", &["why"]),
            cold_start: of.histogram("kiln_cold_start_duration_seconds", "Steps of a start that went well: build (the container), init (the runtime and the function's own).", &["step"], DURATIONS),
            wait: of.histogram("kiln_capacity_wait_duration_seconds", "How long invocations waited for their turn, by whether it came.", &["outcome"], DURATIONS),

            environments: of.gauge("kiln_environments", "Environments by state.", &["state"]),
            retired: of.counter("kiln_environments_retired_total", "Environments that ended, by reason; memory and tmp are evictions.", &["reason"]),
            budget: of.with(IntGauge::new("kiln_memory_budget_bytes", "What all environments together may be charged.")),
            charged: of.with(IntGauge::new("kiln_memory_charged_bytes", "What they are charged: configured memory and /tmp in use, of frozen ones what they really use.")),
            in_flight: of.with(IntGauge::new("kiln_invocations_in_flight", "Invocations accepted and not answered, waiting ones included.")),
            concurrency: of.with(IntGauge::new("kiln_concurrency_limit", "How many there may be (the key concurrency).")),
            unreserved: of.with(IntGauge::new("kiln_concurrency_unreserved", "The part of it that no function has reserved.")),
            waiting: of.with(IntGauge::new("kiln_invocations_waiting", "Invocations that wait for capacity.")),
            parallel_starts: of.with(IntGauge::new("kiln_parallel_starts_limit", "How many environments may initialise at once.")),
            failing: of.with(IntGauge::new("kiln_functions_failing_init", "Functions whose last init failed: each is tried less and less often.")),
            told_again: of.with(IntCounter::new("kiln_invocations_told_again_total", "Invocations that were told their function's last init failure, which was too recent to try again.")),
            launchers: of.with(IntGauge::new("kiln_launchers", "Launchers that are there.")),
            launchers_wanted: of.with(IntGauge::new("kiln_launchers_wanted", "Launchers that there should be.")),
            launchers_restarted: of.with(IntCounter::new("kiln_launchers_restarted_total", "Launchers that died and were replaced, since the supervisor's start.")),
            servers_restarted: of.with(IntCounter::new("kiln_servers_restarted_total", "Servers that died and were replaced, since the supervisor's start.")),
            swept: of.counter("kiln_swept_total", "Leftovers that the supervisor has removed: found at its start, after a process had died, or while all ran (running), which is a leak.", &["when", "kind"]),
            not_cleared: of.with(IntCounter::new("kiln_containers_not_cleared_total", "Containers whose cgroups could not be removed: a leak until the launcher ends.")),
            log_lines: of.counter("kiln_log_lines_dropped_total", "Lines missing in functions' logs: more than one invocation may print (excess), faster than the disk (queue), or it is full or fails (disk).", &["reason"]),
            journal_lines: of.counter("kiln_journal_lines_dropped_total", "Functions' lines missing in systemd's journal: more than a function may write there (excess), or it took none (untaken).", &["reason"]),
            lost_rows: of.with(IntCounter::new("kiln_books_rows_lost_total", "Invocations that are missing in the books, and in kiln usage.")),
            lost_environments: of.with(IntCounter::new("kiln_history_rows_lost_total", "Environments that are missing in the history, and in kiln history.")),
            reloads: of.counter("kiln_config_reloads_total", "Times that the configuration was read again, by what became of it.", &["result"]),
            reload_good: of.with(IntGauge::new("kiln_config_last_reload_successful", "1, or 0 while the file is refused and the configuration of before holds.")),
            waiting_keys: of.with(IntGauge::new("kiln_config_keys_waiting_for_restart", "Keys whose value in the file is for the next start.")),
            draining: of.with(IntGauge::new("kiln_draining", "1 while kilnd stops: no new invocation is taken.")),
            build: of.gauge("kiln_build_info", "Always 1.", &["version", "kiln_instance"]),
            started: of.with(Gauge::new("kiln_server_start_time_seconds", "When the server started, in seconds since 1970; its counters began then.")),
            cpu: of.with(Counter::new("kiln_server_cpu_seconds_total", "CPU time of the server, its kernel's share included.")),
            resident: of.with(IntGauge::new("kiln_server_resident_memory_bytes", "Memory of the server.")),
            descriptors: of.with(IntGauge::new("kiln_server_open_descriptors", "Descriptors that the server has open: a dozen for each environment.")),
            descriptor_limit: of.with(IntGauge::new("kiln_server_descriptors_limit", "How many it may have.")),
            registry,
        }
    }
}
