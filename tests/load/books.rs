//! What Kiln has written down: the rows of the books, the REPORT lines of the logs, and the bill.
//!
//! Read as somebody else would: the bill by `kiln usage` when nothing is under way; the database by SQLite and the logs from their
//! files when kilnd has stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use crate::host::{self, Instance};

/// Environments of one function that kilnd keeps in the history.
const OF_ONE: u32 = 1000;

#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// In the order in which they were written.
    pub rows: Vec<Entry>,
    pub reports: Vec<Entry>,
    /// Since when a function's log is whole, where that is not from the beginning.
    pub kept_since_ms: BTreeMap<String, u64>,
    /// Requests, cold starts and GB-seconds of each function.
    pub bill: BTreeMap<String, (u64, u64, f64)>,
    /// Environments, by container and by the request that they were started for: why they ended, if they have.
    pub history: BTreeMap<(String, String), Option<String>>,
    /// Functions of which the history has as many as it keeps: of these the oldest are not in it any more.
    pub full: BTreeSet<String>,
    /// What could not be read.
    pub strange: Vec<String>,
}

/// What a row and a REPORT have in common. Times in hundredths of a millisecond, as the line has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub function: String,
    pub request: String,
    /// When the event was handed over; a REPORT does not say.
    pub start_ms: u64,
    pub duration: u64,
    pub billed_ms: u64,
    pub memory_mib: u64,
    pub max_memory_mib: u64,
    pub init: Option<u64>,
    pub error: Option<String>,
}

impl Entry {
    /// What a handler reports of itself is in the books only.
    pub fn agrees(&self, report: &Self) -> bool {
        let handlers_own = report.error.is_none() && self.error.as_deref() == Some("Runtime.Unknown");
        let error = if handlers_own { None } else { self.error.clone() };
        Self { start_ms: report.start_ms, error, ..self.clone() } == *report
    }
}

impl Ledger {
    /// What only a running kilnd tells.
    pub fn bill_of(instance: &Instance) -> Self {
        let mut ledger = Self::default();
        ledger.read_rows(instance);
        ledger.read_bill(instance);
        ledger
    }

    /// The rest, when it has stopped: until then lines and ends of environments may be about to be written.
    pub fn read(&mut self, instance: &Instance, functions: &[String]) {
        self.read_rows(instance);
        for function in functions {
            self.read_log(&instance.state_dir().join("logs").join(function), function);
        }
        self.read_history(instance);
    }

    /// How many rows there are.
    pub fn rows_now(instance: &Instance) -> u64 {
        let count = || {
            let db = Connection::open_with_flags(instance.state_dir().join("db/kiln.db"), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            db.query_row("SELECT count(*) FROM invocations", [], |row| row.get::<_, i64>(0))
        };
        count().expect("count the rows of the books") as u64
    }

    fn read_history(&mut self, instance: &Instance) {
        let read = || -> rusqlite::Result<(BTreeSet<String>, BTreeMap<_, _>)> {
            let db = Connection::open_with_flags(instance.state_dir().join("db/kiln.db"), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            let mut full = db.prepare("SELECT function FROM environments GROUP BY function HAVING count(*) >= ?")?;
            let full = full.query_map([OF_ONE], |row| row.get(0))?.collect::<Result<_, _>>()?;
            let mut rows = db.prepare("SELECT container, request, why FROM environments WHERE container IS NOT NULL")?;
            let rows = rows.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), row.get(2)?)))?.collect::<Result<_, _>>()?;
            Ok((full, rows))
        };
        match read() {
            Ok((full, rows)) => (self.full, self.history) = (full, rows),
            Err(error) => self.strange.push(format!("read the history: {error}")),
        }
    }

    fn read_rows(&mut self, instance: &Instance) {
        match Self::rows_of(&instance.state_dir().join("db/kiln.db")) {
            Ok(rows) => self.rows = rows,
            Err(error) => self.strange.push(format!("read the books: {error}")),
        }
    }

    fn rows_of(path: &Path) -> rusqlite::Result<Vec<Entry>> {
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let mut statement = db.prepare(
            "SELECT function, request, start_ms, duration_us, billed_ms, memory_mib, max_memory_used_mib, init_us, error_type \
             FROM invocations ORDER BY id",
        )?;
        let hundredths = |us: i64| (us as u64 + 5) / 10;
        let rows = statement.query_map([], |row| {
            Ok(Entry {
                function: row.get(0)?,
                request: row.get(1)?,
                start_ms: row.get::<_, i64>(2)? as u64,
                duration: hundredths(row.get(3)?),
                billed_ms: row.get::<_, i64>(4)? as u64,
                memory_mib: row.get::<_, i64>(5)? as u64,
                max_memory_mib: row.get::<_, i64>(6)? as u64,
                init: row.get::<_, Option<i64>>(7)?.map(hundredths),
                error: row.get(8)?,
            })
        })?;
        rows.collect()
    }

    /// Segments are named by the time of their beginning.
    fn read_log(&mut self, directory: &Path, function: &str) {
        let mut files: Vec<_> = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        files.sort();
        // Lines come to the disk some time after their own: those of an invocation that began before the first file may have been in
        // one that is rotated away. Where one is, several are left.
        let named = |path: &std::path::PathBuf| path.file_stem()?.to_str()?.parse().ok();
        let cut = files.first().filter(|_| files.len() > 1).and_then(named).unwrap_or(0);
        let mut first = None;
        for path in files {
            let Ok(file) = File::open(&path) else { continue };
            for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
                // Most lines are a function's; JSON of each would take longer than the load.
                let platform = line.windows(17).take(60).any(|part| part == br#""kind":"platform""#);
                if first.is_some() && !platform {
                    continue;
                }
                let Ok(entry) = serde_json::from_slice::<Value>(&line) else {
                    self.strange.push(format!("{}: no entry: {:.200}", path.display(), String::from_utf8_lossy(&line)));
                    continue;
                };
                let text = entry["line"].as_str().unwrap_or_default();
                // START may be written later than it says.
                if first.is_none() && !(platform && text.starts_with("START ")) {
                    first = entry["time_ms"].as_u64();
                }
                if platform && text.starts_with("REPORT ") {
                    match report(function, text) {
                        Some(report) => self.reports.push(report),
                        None => self.strange.push(format!("{function}: not a REPORT: {text:?}")),
                    }
                }
            }
        }
        if let Some(since) = first {
            self.kept_since_ms.insert(function.to_owned(), since.max(cut));
        }
    }

    /// Of all months in which something was booked.
    fn read_bill(&mut self, instance: &Instance) {
        let month = |row: &Entry| {
            let time = jiff::Timestamp::from_millisecond(row.start_ms as i64).unwrap_or_default();
            time.strftime("%Y-%m").to_string()
        };
        let mut months: Vec<String> = self.rows.iter().map(month).collect();
        months.sort();
        months.dedup();
        for month in months {
            let (code, out, said) = host::kiln(instance, &["usage", "--json", "--month", &month]);
            let bill: Value = serde_json::from_str(&out).unwrap_or_default();
            if code != 0 {
                self.strange.push(format!("kiln usage ended with {code}: {said}"));
            }
            for line in bill["functions"].as_array().into_iter().flatten() {
                let sum = self.bill.entry(line["function"].as_str().unwrap_or_default().to_owned()).or_default();
                let number = |name: &str| line[name].as_u64().unwrap_or(0);
                *sum = (sum.0 + number("requests"), sum.1 + number("cold_starts"), sum.2 + line["gb_s"].as_f64().unwrap_or(0.0));
            }
        }
    }
}

/// `REPORT RequestId: …\tDuration: 3.01 ms\tBilled Duration: …`
pub fn report(function: &str, line: &str) -> Option<Entry> {
    let fields: BTreeMap<&str, &str> =
        line.trim_end_matches('\n').strip_prefix("REPORT ")?.split('\t').filter_map(|field| field.split_once(": ")).collect();
    let number = |name: &str, unit: &str| fields.get(name)?.strip_suffix(unit);
    let hundredths = |text: &str| {
        let (whole, rest) = text.split_once('.').filter(|(_, rest)| rest.len() == 2)?;
        Some(whole.parse::<u64>().ok()? * 100 + rest.parse::<u64>().ok()?)
    };
    let error = match (fields.get("Status").copied(), fields.get("Error Type")) {
        (None, None) => None,
        (Some("timeout"), None) => Some("Sandbox.Timedout".to_owned()),
        (Some("error"), Some(kind)) => Some((*kind).to_owned()),
        _ => return None,
    };
    Some(Entry {
        function: function.to_owned(),
        request: (*fields.get("RequestId")?).to_owned(),
        start_ms: 0,
        duration: hundredths(number("Duration", " ms")?)?,
        billed_ms: number("Billed Duration", " ms")?.parse().ok()?,
        memory_mib: number("Memory Size", " MB")?.parse().ok()?,
        max_memory_mib: number("Max Memory Used", " MB")?.parse().ok()?,
        init: match fields.contains_key("Init Duration") {
            true => Some(hundredths(number("Init Duration", " ms")?)?),
            false => None,
        },
        error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_began_before_the_first_file_that_is_left_may_be_rotated_away() {
        let directory = tempfile::tempdir().unwrap();
        let line = |time_ms: u64| format!("{{\"time_ms\":{time_ms},\"kind\":\"function\",\"line\":\"x\"}}\n");
        let since = || {
            let mut ledger = Ledger::default();
            ledger.read_log(directory.path(), "f");
            assert_eq!(ledger.strange, Vec::<String>::new());
            ledger.kept_since_ms["f"]
        };
        fs::write(directory.path().join("2000.jsonl"), line(1500)).unwrap();
        assert_eq!(since(), 1500, "nothing is rotated away, and the first line comes to the disk later than its time");
        fs::write(directory.path().join("3000.jsonl"), line(2900)).unwrap();
        assert_eq!(since(), 2000, "lines of other containers until then may have been in a file before");
    }
}
