//! The words of `kiln metrics`.

use std::path::PathBuf;

use clap::Args;

pub(super) const METRICS_HELP: &str = help!(
    "  kiln metrics
  kiln metrics | grep kiln_invocation_errors_total
  kiln metrics --output /var/lib/prometheus/node-exporter/kiln.prom

Prometheus' text format: each metric says what it is. Functions' and containers' own numbers are counted since the server's start.
With --output the file is written beside its place and then moved there, so that who reads it (a node exporter's textfile
collector) never finds half of one: run that each minute, by cron or a timer. Where metrics_listen is set in the configuration,
Prometheus asks kilnd itself, at http://127.0.0.1:9150/metrics.",
    json: "  The same: Prometheus' text is no JSON."
);

#[derive(Debug, Args)]
pub struct Metrics {
    /// Write into this file, and only whole
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}
