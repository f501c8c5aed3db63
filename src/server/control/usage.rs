//! The bill for people on duty: `GET /v1/usage`.
//!
//! | Query | |
//! |---|---|
//! | `month=2026-11` | the calendar month, UTC; this one, where nothing is said |
//! | `function=NAME` | of this function only; what is due stays the whole month's, as the free tier is |

use hyper::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use super::{Reply, message, reply};
use crate::bill::{Tariff, Usage};
use crate::config::reload::InForce;
use crate::function::FunctionName;
use crate::meter::month::{Books, FunctionMonth, Month};

/// What the door needs of the books.
pub struct UsageDoor {
    /// One reader at a time: each scans all rows, and they would only slow each other.
    books: Mutex<Books>,
    /// Whose prices are asked for each time.
    in_force: InForce,
}

impl UsageDoor {
    pub fn new(books: Books, in_force: InForce) -> Self {
        Self { books: Mutex::new(books), in_force }
    }

    pub(super) async fn show(&self, query: &str) -> Reply {
        let (month, function) = match parse(query) {
            Ok(asked) => asked,
            Err(what) => return message(StatusCode::BAD_REQUEST, what),
        };
        let month = month.unwrap_or_else(|| Month::of(Timestamp::now()));
        let books = self.books.lock().await;
        let read = books.clone();
        let read = async { Ok::<_, anyhow::Error>(spawn_blocking(move || read.month(month)).await??) };
        match read.await {
            Ok(rows) => reply(StatusCode::OK, bill(&self.in_force.now().tariff(), month, &rows, function.as_ref())),
            Err(error) => message(StatusCode::INTERNAL_SERVER_ERROR, format!("read the books: {error}")),
        }
    }
}

fn bill(tariff: &Tariff, month: Month, rows: &[FunctionMonth], function: Option<&FunctionName>) -> Value {
    let whole: Usage = rows.iter().map(|row| row.usage).sum();
    let wanted = |row: &&FunctionMonth| function.is_none_or(|name| name.as_str() == row.function);
    let functions: Vec<Value> = rows
        .iter()
        .filter(wanted)
        .map(|row| {
            json!({
                "function": row.function,
                "requests": row.usage.requests,
                "errors": row.errors,
                "cold_starts": row.cold,
                "billed_s": row.billed.as_secs_f64(),
                "gb_s": row.usage.gb_s(),
                "cost_usd": tariff.cost(&row.usage),
            })
        })
        .collect();
    json!({
        "month": month.to_string(),
        "functions": functions,
        "requests": whole.requests,
        "gb_s": whole.gb_s(),
        "cost_usd": tariff.cost(&whole),
        "due_usd": tariff.due(&whole),
        "tariff": tariff,
    })
}

fn parse(query: &str) -> Result<(Option<Month>, Option<FunctionName>), String> {
    let (mut month, mut function) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=').unwrap_or((pair, "")) {
            ("month", text) => month = Some(text.parse().map_err(|wrong| format!("month={text}: {wrong}"))?),
            ("function", name) => {
                function = Some(FunctionName::parse(name).map_err(|error| format!("function={name}: {error}"))?);
            }
            (key, _) => return Err(format!("{key}: there are month and function")),
        }
    }
    Ok((month, function))
}
