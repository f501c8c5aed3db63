//! `kiln usage`: a month's bill.
//!
//! kilnd has the books and the prices, and reckons; this shows.

use hyper::Method;
use serde::Deserialize;

use super::args::Usage as Arguments;
use super::client::{Client, Socket};
use super::failure::Failure;
use super::function::encoded;
use super::output;

/// What the operators' door says.
#[derive(Deserialize)]
struct Bill {
    month: String,
    functions: Vec<Line>,
    requests: u64,
    gb_s: f64,
    cost_usd: f64,
    due_usd: f64,
    tariff: Tariff,
}

#[derive(Deserialize)]
struct Line {
    function: String,
    requests: u64,
    errors: u64,
    cold_starts: u64,
    billed_s: f64,
    gb_s: f64,
    cost_usd: f64,
}

#[derive(Deserialize)]
struct Tariff {
    million_requests_usd: f64,
    gb_s_usd: f64,
    free_requests: u64,
    free_gb_s: u64,
}

const HEADINGS: &[&str] = &["FUNCTION", "REQUESTS", "ERRORS", "COLD", "BILLED", "GB-SECONDS", "COST"];

pub async fn execute(client: &Client, arguments: Arguments, as_json: bool) -> Result<(), Failure> {
    let mut query = Vec::new();
    if let Some(month) = &arguments.month {
        query.push(format!("month={}", encoded(month)));
    }
    if let Some(function) = &arguments.function {
        query.push(format!("function={}", encoded(function)));
    }
    let reply = client.request(Socket::Control, Method::GET, &format!("/v1/usage?{}", query.join("&")), &[], "").await?;
    let said = reply.json()?;
    if as_json {
        return output::print_json(&said);
    }
    let bill: Bill = serde_json::from_value(said).map_err(|error| {
        Failure::Failed(format!("kilnd's answer is not understood ({error}): are kiln and kilnd of one version?"))
    })?;
    if arguments.csv {
        output::print(csv(&bill).as_bytes())
    } else {
        output::print_line(&shown(&bill, arguments.function.as_deref()))
    }
}

/// Names of functions and numbers: nothing in it needs quotes.
fn csv(bill: &Bill) -> String {
    let mut text = String::from("month,function,requests,errors,cold_starts,billed_s,gb_s,cost_usd\n");
    for Line { function, requests, errors, cold_starts, billed_s, gb_s, cost_usd } in &bill.functions {
        text += &format!("{},{function},{requests},{errors},{cold_starts},{billed_s},{gb_s},{cost_usd:.12}\n", bill.month);
    }
    text
}

fn shown(bill: &Bill, function: Option<&str>) -> String {
    let mut rows: Vec<Vec<String>> = bill
        .functions
        .iter()
        .map(|line| {
            vec![
                line.function.clone(),
                grouped(line.requests),
                grouped(line.errors),
                grouped(line.cold_starts),
                format!("{:.1} s", line.billed_s),
                format!("{:.3}", line.gb_s),
                dollars(line.cost_usd),
            ]
        })
        .collect();
    if rows.is_empty() {
        let who = function.map_or_else(|| "no function".to_owned(), |name| format!("{name} was not"));
        let ran = if function.is_some() { "invoked" } else { "was invoked" };
        return format!("{who} {ran} in {}", bill.month);
    }
    // A single row is its own sum, unless it is one of several.
    if rows.len() > 1 {
        let blank = String::new;
        let total = grouped(bill.requests);
        rows.push(vec!["all".into(), total, blank(), blank(), blank(), format!("{:.3}", bill.gb_s), dollars(bill.cost_usd)]);
    }
    let Tariff { million_requests_usd, gb_s_usd, free_requests, free_gb_s } = bill.tariff;
    // The free tier is the month's: no function's part of what is due can be told.
    let whose = if function.is_some() { ", all functions together" } else { "" };
    format!(
        "{}\n{}{whose}: ${} due, for {} requests and {:.3} GB-seconds\n\
         free:    {} requests and {} GB-seconds a month, over all functions\n\
         prices:  ${million_requests_usd:.2} a million requests, ${gb_s_usd:.8} a GB-second",
        output::table_of_numbers(HEADINGS, rows),
        bill.month,
        dollars(bill.due_usd),
        grouped(bill.requests),
        bill.gb_s,
        grouped(free_requests),
        grouped(free_gb_s),
    )
}

/// Six digits behind the point, as the smallest invocation costs 0.000000208.
fn dollars(usd: f64) -> String {
    format!("{usd:.6}")
}

/// `1,234,567`
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(function: &str, requests: u64, gb_s: f64, cost_usd: f64) -> Line {
        Line { function: function.into(), requests, errors: 1, cold_starts: 2, billed_s: 12.3, gb_s, cost_usd }
    }

    fn bill(functions: Vec<Line>) -> Bill {
        let tariff = Tariff { million_requests_usd: 0.2, gb_s_usd: 0.000_016_67, free_requests: 1_000_000, free_gb_s: 400_000 };
        let (requests, gb_s) = functions.iter().fold((0, 0.0), |(n, g), line| (n + line.requests, g + line.gb_s));
        Bill { month: "2026-11".into(), functions, requests, gb_s, cost_usd: 18.737, due_usd: 0.0, tariff }
    }

    #[test]
    fn numbers_stand_below_each_other_and_the_sum_last() {
        let text = shown(&bill(vec![line("hello", 3_000_000, 1_500_000.0, 25.6), line("a", 7, 0.4, 0.000_013)]), None);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 7, "{text}");
        assert_eq!(lines[0], "FUNCTION   REQUESTS  ERRORS  COLD  BILLED   GB-SECONDS       COST");
        assert_eq!(lines[1], "hello     3,000,000       1     2  12.3 s  1500000.000  25.600000");
        assert_eq!(lines[2], "a                 7       1     2  12.3 s        0.400   0.000013");
        assert_eq!(lines[3], "all       3,000,007                        1500000.400  18.737000");
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn what_is_due_is_said_to_be_all_functions_where_one_is_shown() {
        let one = || bill(vec![line("hello", 7, 0.4, 0.000_013)]);
        assert!(shown(&one(), Some("hello")).contains("\n2026-11, all functions together: $0.000000 due, for 7 requests"));
        assert!(shown(&one(), None).contains("\n2026-11: $0.000000 due"));
    }

    #[test]
    fn a_month_without_invocations_is_said() {
        assert_eq!(shown(&bill(vec![]), None), "no function was invoked in 2026-11");
        assert_eq!(shown(&bill(vec![]), Some("hello")), "hello was not invoked in 2026-11");
    }

    #[test]
    fn a_spreadsheet_gets_one_line_a_function() {
        assert_eq!(
            csv(&bill(vec![line("a", 7, 0.4, 0.000_013)])),
            "month,function,requests,errors,cold_starts,billed_s,gb_s,cost_usd\n2026-11,a,7,1,2,12.3,0.4,0.000013000000\n"
        );
    }
}
