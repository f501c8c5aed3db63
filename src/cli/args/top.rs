//! `kiln top`

use std::time::Duration;

use clap::Args;

use super::{Sort, seconds};

pub const TOP_HELP: &str = help!(
    "  kiln top
  kiln top --sort memory
  kiln top --filter orders --interval 5

? in it shows its keys: sort, filter, pause, another interval; q or Ctrl-C ends it. Rates are those between the last two looks.
Looking wakes no frozen container. Without colours: NO_COLOR=1 kiln top.",
    json: "  Nothing: it is a screen, and needs a terminal. `kiln pool --watch --json` has the same numbers."
);

#[derive(Debug, Args)]
pub struct Top {
    /// Look every so many seconds
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    pub interval: Duration,
    /// What the environments' order is by
    #[arg(long, value_enum, default_value_t = Sort::Function)]
    pub sort: Sort,
    /// Only functions whose name has this in it
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub filter: String,
}
