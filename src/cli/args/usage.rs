//! The words of `kiln usage`.

use clap::Args;

pub(super) const USAGE_HELP: &str = help!(
    "  kiln usage                                   this month
  kiln usage --month 2026-10
  kiln usage --function hello                  of one function; what is due stays the whole month's
  kiln usage --csv > november.csv              for a spreadsheet
  kiln usage --json | jq .due_usd

Time is billed as REPORT lines tell it, memory as configured: GB-seconds are memory / 1024 MB x billed seconds. COST is at the
prices of the configuration with nothing for free; the free tier is taken off the whole month once. Idle environments cost
nothing. Months are calendar months in UTC.",
    json: "  month, functions: a list of { function, requests, errors, cold_starts, billed_s, gb_s, cost_usd },
  of the whole month: requests, gb_s, cost_usd, due_usd,
  tariff: { million_requests_usd, gb_s_usd, free_requests, free_gb_s }"
);

#[derive(Debug, Args)]
pub struct Usage {
    /// A calendar month, such as 2026-11 [default: this one]
    #[arg(long, value_name = "YYYY-MM", value_parser = month)]
    pub month: Option<String>,
    /// Of this function only
    #[arg(long, value_name = "NAME")]
    pub function: Option<String>,
    /// Comma-separated values, with the names of --json
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
}

/// The shape only; which months there are, kilnd knows.
fn month(text: &str) -> Result<String, String> {
    let digits = |part: &str, length| part.len() == length && part.bytes().all(|b| b.is_ascii_digit());
    match text.split_once('-') {
        Some((year, month)) if digits(year, 4) && digits(month, 2) => Ok(text.to_owned()),
        _ => Err("write a month as 2026-11".into()),
    }
}
