//! What a `tracing` event becomes in the journal: MESSAGE as people read it, with all fields in it, and each field for
//! itself, so that `journalctl KILN_FUNCTION=…` finds it.
//!
//! Called by whoever says something, so nothing here blocks. systemd's own bound (LogRateLimit…) counts a whole unit and drops
//! what comes next, whatever it is; ours counts each place in the code for itself, so a storm of refusals hides no crash.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::bucket::Bucket;
use super::fields;
use super::journald::{Entry, Journald, Priority};

/// Events of one place in the code: so many at once, then so many a second.
const AT_ONCE: f64 = 1000.0;
const A_SECOND: f64 = 100.0;
/// Between two words about what was left out.
const TELL: Duration = Duration::from_secs(1);

/// Writes events into the journal.
pub struct Events {
    journal: Journald,
    /// Taken for each event, for a map operation; no other lock is taken inside.
    bounds: Mutex<Bounds>,
}

#[derive(Default)]
struct Bounds {
    /// By the event's place in the code, of which there are some hundred.
    places: HashMap<&'static str, Bucket>,
    left_out: u64,
    untaken: u64,
    told: Option<Instant>,
}

impl Events {
    pub fn new(journal: Journald) -> Self {
        Self { journal, bounds: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Bounds> {
        self.bounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, entry: &Entry) {
        let lost = self.journal.offer(entry).is_err();
        self.lock().untaken += u64::from(lost);
    }

    fn tell(&self, missing: &Missing) {
        let Missing { left_out, untaken } = missing;
        let message = format!(
            "{} of kilnd's events are missing here: {left_out} came faster than {A_SECOND} a second from one place, {untaken} the \
             journal did not take",
            left_out + untaken
        );
        let mut entry = Entry::new(fields::IDENTIFIER, Priority::Warning, message.as_bytes());
        entry.put(fields::MISSING, (left_out + untaken).to_string().as_bytes());
        if self.journal.offer(&entry).is_err() {
            let mut bounds = self.lock();
            bounds.left_out += left_out;
            bounds.untaken += untaken;
            bounds.told = None;
        }
    }
}

impl<S: Subscriber> Layer<S> for Events {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let (passes, missing) = self.lock().take(metadata.name(), Instant::now());
        if let Some(missing) = missing {
            self.tell(&missing);
        }
        if passes {
            let mut words = Words::default();
            event.record(&mut words);
            self.write(&words.entry(metadata));
        }
    }
}

/// Events that are not in the journal.
#[derive(Debug, PartialEq, Eq)]
struct Missing {
    left_out: u64,
    untaken: u64,
}

impl Bounds {
    /// Whether an event of this place may be written, and what is to be said before it.
    fn take(&mut self, place: &'static str, now: Instant) -> (bool, Option<Missing>) {
        let passes = self.places.entry(place).or_insert_with(|| Bucket::full(AT_ONCE, A_SECOND, now)).take(1.0, now);
        self.left_out += u64::from(!passes);
        let due = passes
            && self.left_out + self.untaken > 0
            && self.told.is_none_or(|told| now.saturating_duration_since(told) >= TELL);
        if due {
            self.told = Some(now);
        }
        let mut missing = || Missing { left_out: std::mem::take(&mut self.left_out), untaken: std::mem::take(&mut self.untaken) };
        (passes, due.then(&mut missing))
    }
}

/// An event's message and fields.
#[derive(Default)]
struct Words {
    message: String,
    /// ` name=value`, as the text on stderr has them.
    text: String,
    fields: Vec<(&'static str, String)>,
}

impl Words {
    fn field(&mut self, field: &Field, shown: fmt::Arguments<'_>, value: String) {
        if field.name() == "message" {
            self.message = value;
            return;
        }
        // Writing into a String cannot fail.
        let _ = write!(self.text, " {}={shown}", field.name());
        self.fields.push((field.name(), value));
    }

    fn entry(self, metadata: &Metadata<'_>) -> Entry {
        let priority = match *metadata.level() {
            Level::ERROR => Priority::Error,
            Level::WARN => Priority::Warning,
            Level::INFO => Priority::Info,
            Level::DEBUG | Level::TRACE => Priority::Debug,
        };
        let message = self.message + &self.text;
        let mut entry = Entry::new(fields::IDENTIFIER, priority, message.trim_start().as_bytes());
        let mut name = String::new();
        for (field, value) in self.fields {
            name.clear();
            fields::name(field, &mut name);
            entry.put(&name, value.as_bytes());
        }
        entry.put("TARGET", metadata.target().as_bytes());
        if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
            entry.put("CODE_FILE", file.as_bytes());
            entry.put("CODE_LINE", line.to_string().as_bytes());
        }
        entry
    }
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field, format_args!("{value:?}"), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        // A text with a blank in it has quotes, so that one sees where it ends; its field has none.
        match value.contains(char::is_whitespace) {
            true => self.field(field, format_args!("{value:?}"), value.to_owned()),
            false => self.field(field, format_args!("{value}"), value.to_owned()),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut chain = value.to_string();
        let mut source = value.source();
        while let Some(error) = source {
            let _ = write!(chain, ": {error}");
            source = error.source();
        }
        self.field(field, format_args!("{chain}"), chain.clone());
    }
}

#[cfg(test)]
mod tests {
    use tracing::{debug, error, info, trace, warn};
    use tracing_subscriber::layer::SubscriberExt;

    use super::super::journald::tests::Fake;
    use super::*;

    #[test]
    fn an_event_has_its_priority_its_text_and_each_of_its_fields() {
        let (fake, journal) = Fake::start();
        let subscriber = tracing_subscriber::registry().with(Events::new(journal));
        tracing::subscriber::with_default(subscriber, || {
            let (function, cause) = ("hello", "two words");
            warn!(%function, cause, number = 7, "it ended");
            error!(error = &std::io::Error::other("no\nreason") as &dyn std::error::Error, "our fault");
            info!("only words");
            debug!(a = ?Some(1), "d");
            trace!("t");
        });
        let entries = fake.entries();
        let field = |entry: usize, name: &str| entries[entry].get(name).map(String::as_str);
        let all =
            |name: &str| entries.iter().map(|entry| entry.get(name).map(String::as_str).unwrap_or_default()).collect::<Vec<_>>();
        assert_eq!(all("PRIORITY"), ["4", "3", "6", "7", "7"]);
        assert_eq!(
            all("MESSAGE"),
            [
                "it ended function=hello cause=\"two words\" number=7",
                "our fault error=no\nreason",
                "only words",
                "d a=Some(1)",
                "t",
            ]
        );
        assert_eq!(
            (field(0, "KILN_FUNCTION"), field(0, "KILN_CAUSE"), field(0, "KILN_NUMBER")),
            (Some("hello"), Some("two words"), Some("7"))
        );
        assert_eq!(field(1, "KILN_ERROR"), Some("no\nreason"));
        assert!(all("SYSLOG_IDENTIFIER").iter().all(|identifier| *identifier == "kilnd"));
        assert!(
            field(0, "CODE_FILE").is_some_and(|file| file.ends_with("telemetry/events.rs")) && field(0, "CODE_LINE").is_some()
        );
        assert!(field(0, "TARGET").is_some_and(|target| target.starts_with("kiln::telemetry")));
    }

    #[test]
    fn a_storm_from_one_place_is_bounded_and_counted_and_hides_nothing_else() {
        let (mut bounds, begin) = (Bounds::default(), Instant::now());
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let passed = (0..5000).filter(|_| bounds.take("storm", at(0)).0).count();
        assert_eq!(passed, 1000);
        assert_eq!(bounds.take("crash", at(0)), (true, Some(Missing { left_out: 4000, untaken: 0 })));
        let passed = (0..5000).filter(|n| bounds.take("storm", at(n / 5)).0).count();
        assert!((99..=100).contains(&passed), "{passed} in a second");
        let (_, missing) = bounds.take("crash", at(2000));
        assert_eq!(missing.map(|missing| missing.left_out), Some(5000 - passed as u64));
        assert_eq!(bounds.take("crash", at(4000)), (true, None), "it is told once");
    }

    #[test]
    fn what_a_stopped_journal_did_not_take_is_told_when_it_takes_something_again() {
        let (fake, journal) = Fake::start();
        let subscriber = tracing_subscriber::registry().with(Events::new(journal));
        tracing::subscriber::with_default(subscriber, || {
            // More than any queue of datagrams holds, from several places so that none is left out.
            (0..900).for_each(|_| info!("one"));
            (0..900).for_each(|_| info!("two"));
            let taken = fake.entries().len() as u64;
            assert!((1..1800).contains(&taken), "{taken}: net.unix.max_dgram_qlen bounds it");
            warn!("again");
            let entries = fake.entries();
            assert_eq!(entries[0]["KILN_MISSING"], (1800 - taken).to_string());
            assert_eq!((entries[0]["PRIORITY"].as_str(), entries[1]["MESSAGE"].as_str()), ("4", "again"));
        });
    }
}
