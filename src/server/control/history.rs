//! Environments that have ended, and why: `GET /v1/history`.
//!
//! | Query | |
//! |---|---|
//! | `function=NAME`, `container=ID` | of one function; of one container, be it alive or not |
//! | `since_ms=T` | that ended at that time (milliseconds since 1970) or later |
//! | `living=1` | those that live, too |
//! | `limit=N` | the latest N; 100 where nothing is said |

use hyper::StatusCode;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use super::{Reply, decoded, message, written};
use crate::function::FunctionName;
use crate::meter::history::{Asked, Environment, Past};

const LIMIT: u32 = 100;
/// As many as are kept.
const MOST: u32 = 100_000;

#[derive(Serialize)]
struct Answer {
    environments: Vec<Environment>,
}

/// What the door needs of the history.
pub struct HistoryDoor {
    /// One reader at a time: each may look at all rows.
    past: Mutex<Past>,
}

impl HistoryDoor {
    pub fn new(past: Past) -> Self {
        Self { past: Mutex::new(past) }
    }

    pub(super) async fn show(&self, query: &str) -> Reply {
        let asked = match parse(query) {
            Ok(asked) => asked,
            Err(what) => return message(StatusCode::BAD_REQUEST, what),
        };
        let past = self.past.lock().await;
        let read = past.clone();
        // As JSON, too, on the thread that may take its time: all that are kept are some forty megabytes of it.
        let read = spawn_blocking(move || {
            let environments = read.environments(&asked)?;
            Ok::<_, anyhow::Error>(serde_json::to_vec(&Answer { environments })?)
        });
        match async { read.await? }.await {
            Ok(json) => written(StatusCode::OK, json.into()),
            Err(error) => message(StatusCode::INTERNAL_SERVER_ERROR, format!("read the history: {error}")),
        }
    }
}

fn parse(query: &str) -> Result<Asked, String> {
    let mut asked = Asked { limit: LIMIT, ..Asked::default() };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decoded(value);
        let wrong = |rule: &str| Err(format!("{key}={value:?}: {rule}"));
        match key {
            "function" => match FunctionName::parse(&value) {
                Ok(function) => asked.function = Some(function.to_string()),
                Err(error) => return wrong(&error.to_string()),
            },
            "container" => {
                asked.container = Some(value);
                asked.living = true;
            }
            "since_ms" => match value.parse::<i64>() {
                Ok(since) if since >= 0 => asked.since_ms = Some(since),
                _ => return wrong("must be milliseconds since 1970"),
            },
            "living" => match value.as_str() {
                "1" | "true" => asked.living = true,
                "0" | "false" => asked.living = false,
                _ => return wrong("must be 1 or 0"),
            },
            "limit" => match value.parse() {
                Ok(limit @ 1..=MOST) => asked.limit = limit,
                _ => return wrong(&format!("must be 1 to {MOST}")),
            },
            _ => return Err(format!("{key}: there are function, container, since_ms, living and limit")),
        }
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_whole_or_refused() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(parse("").unwrap(), Asked { limit: 100, ..Asked::default() });
        let asked = parse("function=f&container=3%2d17&since_ms=1790000000000&limit=5").unwrap();
        let expected =
            Asked { function: some("f"), container: some("3-17"), since_ms: Some(1_790_000_000_000), living: true, limit: 5 };
        assert_eq!(asked, expected);
        for wrong in ["function=a%20b", "since_ms=-1", "living=yes", "limit=0", "limit=100001", "x=1"] {
            assert!(parse(wrong).unwrap_err().contains(wrong.split('=').next().unwrap()), "{wrong}");
        }
    }
}
