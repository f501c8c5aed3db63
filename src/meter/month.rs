//! A month of the books: what each function used in it.
//!
//! A word of the server, read through a connection of its own that can only read: a scan of a year's rows keeps no invocation
//! from being written down. Months are calendar months in UTC, as on Lambda's bill.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use rusqlite::{Connection, OpenFlags, params};

use crate::bill::Usage;

/// Written `2026-11`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Month(Date);

impl Month {
    pub fn of(time: Timestamp) -> Self {
        Self(time.to_zoned(TimeZone::UTC).date().first_of_month())
    }

    /// Its first millisecond, and the next month's.
    fn bounds_ms(self) -> Option<(i64, i64)> {
        let at = |date: Date| Some(date.to_zoned(TimeZone::UTC).ok()?.timestamp().as_millisecond());
        Some((at(self.0)?, at(self.0.checked_add(1.month()).ok()?)?))
    }
}

impl FromStr for Month {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "write a month as 2026-11";
        // Exactly so: jiff alone would take other spellings of a date too.
        let shape =
            text.len() == 7 && text.bytes().enumerate().all(|(at, b)| if at == 4 { b == b'-' } else { b.is_ascii_digit() });
        let month = format!("{text}-01").parse().map(Self).map_err(|_| wrong)?;
        if shape && month.bounds_ms().is_some() { Ok(month) } else { Err(wrong) }
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.0.year(), self.0.month())
    }
}

/// What one function did in a month.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionMonth {
    pub function: String,
    pub usage: Usage,
    /// Invocations that ended with an error of the function's or of its environment's.
    pub errors: u64,
    /// Invocations that had to wait for an init.
    pub cold: u64,
    pub billed: Duration,
}

/// The books, for reading.
#[derive(Clone, Debug)]
pub struct Books {
    path: PathBuf,
}

impl Books {
    /// Of the database at `path`, which its server has open.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Every function that ran in that month, by name. Blocks: about a second for some million rows.
    pub fn month(&self, month: Month) -> rusqlite::Result<Vec<FunctionMonth>> {
        let db = Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        db.busy_timeout(Duration::from_secs(5))?;
        let (from, to) = month.bounds_ms().unwrap_or((0, 0));
        let mut statement = db.prepare(
            "SELECT function, count(*), sum(billed_ms * memory_mib), count(error_type), count(init_us), sum(billed_ms) \
             FROM invocations WHERE start_ms >= ?1 AND start_ms < ?2 \
             GROUP BY function ORDER BY function",
        )?;
        let count = |row: &rusqlite::Row<'_>, at| row.get::<_, i64>(at).map(|n| u64::try_from(n).unwrap_or(0));
        let rows = statement.query_map(params![from, to], |row| {
            Ok(FunctionMonth {
                function: row.get(0)?,
                usage: Usage { requests: count(row, 1)?, mb_ms: count(row, 2)?.into() },
                errors: count(row, 3)?,
                cold: count(row, 4)?,
                billed: Duration::from_millis(count(row, 5)?),
            })
        })?;
        rows.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::database::Database;
    use crate::function::{FunctionName, Memory};
    use crate::invocation::RequestId;
    use crate::meter::sqlite::SqliteMeter;
    use crate::meter::{Meter, Row};

    fn month(text: &str) -> Month {
        text.parse().unwrap()
    }

    #[test]
    fn a_month_is_written_in_one_way_only() {
        assert_eq!(month("2026-11").to_string(), "2026-11");
        assert_eq!(Month::of("2026-12-31T23:59:59.9Z".parse().unwrap()), month("2026-12"));
        for wrong in ["", "2026", "2026-13", "2026-00", "2026-1", "202611", "2026-11-01", "+026-11", "2026/11", "20261101"] {
            wrong.parse::<Month>().unwrap_err();
        }
    }

    #[tokio::test]
    async fn a_month_has_every_row_that_began_in_it_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kiln.db");
        let (database, _thread) = Database::open(&path).unwrap();
        let meter = SqliteMeter::new(database);
        let ms = |text: &str| text.parse::<Timestamp>().unwrap().as_millisecond() as u64;
        let rows = [
            ("a", "2026-10-31T23:59:59.999Z", 128, 100, None, None),
            ("a", "2026-11-01T00:00:00Z", 128, 300, Some(5), None),
            ("a", "2026-11-30T23:59:59.999Z", 256, 100, None, Some("Sandbox.Timedout")),
            ("b", "2026-11-10T00:00:00Z", 3008, 900_000, None, None),
            ("b", "2026-12-01T00:00:00Z", 3008, 900_000, None, None),
        ];
        for (function, start, mib, billed, init, error) in rows {
            let row = Row {
                request: RequestId::new(),
                function: FunctionName::parse(function).unwrap(),
                version: "$LATEST".into(),
                start: UNIX_EPOCH + Duration::from_millis(ms(start)),
                duration: Duration::from_millis(1),
                billed: Duration::from_millis(billed),
                memory: Memory::from_mib(mib).unwrap(),
                max_memory_used_mib: 1,
                init: init.map(Duration::from_millis),
                error_type: error.map(str::to_owned),
            };
            meter.record(row).await.unwrap();
        }
        let books = Books::new(path);
        let shown = |function: &str, requests, mb_ms, errors, cold, billed| FunctionMonth {
            function: function.into(),
            usage: Usage { requests, mb_ms },
            errors,
            cold,
            billed: Duration::from_millis(billed),
        };
        let a = shown("a", 2, 128 * 300 + 256 * 100, 1, 1, 400);
        let b = shown("b", 1, 3008 * 900_000, 0, 0, 900_000);
        assert_eq!(books.month(month("2026-11")).unwrap(), [a, b]);
        assert_eq!(books.month(month("2025-11")).unwrap(), []);
    }
}
