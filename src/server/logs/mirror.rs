//! Functions' lines in systemd's journal, beside their own log: `journalctl KILN_FUNCTION=hello`.
//!
//! ```text
//! writer's thread ── hand ──▶ [queue, bounded] ──▶ this thread, bounded for each function ──▶ journal
//! ```
//!
//! A thread of its own, because the journal may be slow or stopped: neither the event loop nor the functions' own logs wait
//! for it. One function that prints without end costs the journal [`LINES`] and [`BYTES`] a second and no more; what was left out
//! is counted, and told where it is missing. The platform's lines (a REPORT above all) are never left out for that. At the end
//! the journal gets [`LAST`] for what waits, and then a word of how much it did not take.

use std::collections::HashMap;
use std::io;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use tracing::warn;

use super::missing::{Count, Why};
use super::store::queue::{Queue, Waiting};
use super::{Kind, Lost, Origin, Piece};
use crate::config::Mirrored;
use crate::function::FunctionName;
use crate::invocation::RequestId;
use crate::telemetry::bucket::Bucket;
use crate::telemetry::fields;
use crate::telemetry::journald::{Entry, Journald, Priority};

/// What one function may write into the journal in a second: a busy function's ordinary lines, and for days no danger to what
/// else is in the journal.
const LINES: f64 = 100.0;
const BYTES: f64 = 128.0 * 1024.0;
/// So many seconds' worth at once: a stack trace, a start's lines, or one line as long as a line can be.
const BURST: f64 = 10.0;
/// How long the journal may take for one entry, before it counts as stopped: then nothing waits for it until it takes one.
const PATIENCE: Duration = Duration::from_secs(1);
/// For all that is left when the writer has ended. A journal that is slow, and not stopped, would hold up the server's end for
/// hours; what it has not taken by then is dropped and counted.
const LAST: Duration = Duration::from_secs(2);
/// Between two looks for what is to be told of functions that print nothing more.
const TELL: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(3600);

/// The writer's end; dropping it ends the thread when everything is written.
pub struct Mirror {
    shared: Arc<Shared>,
    wanted: Wanted,
    missing: Arc<Count>,
}

/// Between the writer's thread and this one.
#[derive(Default)]
struct Shared {
    queue: Queue,
    /// What found no room in the queue, and whose the last of it was. Taken for each such piece, and by the thread in each round;
    /// no other lock is taken inside.
    refused: Mutex<HashMap<FunctionName, (Arc<Origin>, Lost)>>,
    /// Since when nothing more comes.
    closed: OnceLock<Instant>,
}

/// What of functions' logs the journal gets. A clone is another handle to it.
#[derive(Clone)]
pub struct Wanted(Arc<Mutex<Mirrored>>);

impl Wanted {
    pub fn new(what: Mirrored) -> Self {
        Self(Arc::new(Mutex::new(what)))
    }

    pub fn set(&self, what: Mirrored) {
        *self.lock() = what;
    }

    fn now(&self) -> Mirrored {
        *self.lock()
    }

    // Held for one copy.
    fn lock(&self) -> MutexGuard<'_, Mirrored> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn refused(&self) -> MutexGuard<'_, HashMap<FunctionName, (Arc<Origin>, Lost)>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        // Only the mirror closes it, once.
        let _ = self.closed.set(Instant::now());
        self.queue.close();
    }

    /// Once it is closed: the rest of [`LAST`].
    fn left(&self) -> Option<Duration> {
        self.closed.get().map(|at| LAST.saturating_sub(at.elapsed()))
    }
}

impl Mirror {
    pub fn start(journal: Journald, wanted: Wanted, missing: Arc<Count>) -> io::Result<(Self, JoinHandle<()>)> {
        journal.wait_at_most(PATIENCE)?;
        let shared = Arc::<Shared>::default();
        let writer = Writer::new(journal, shared.clone(), missing.clone());
        let thread = thread::Builder::new().name("journal".into()).spawn(move || writer.run())?;
        Ok((Self { shared, wanted, missing }, thread))
    }

    /// Never waits.
    pub fn hand(&self, pieces: &[Waiting]) {
        let what = self.wanted.now();
        for piece in pieces {
            let wanted = what == Mirrored::Auto || what == Mirrored::Platform && piece.kind == Kind::Platform;
            if wanted && !self.shared.queue.push(&piece.piece()) {
                let lost = Lost::of(&piece.lines);
                self.missing.add(Why::JournalUntaken, lost);
                let mut refused = self.shared.refused();
                let of = refused.entry(piece.origin.function.clone());
                of.or_insert_with(|| (piece.origin.clone(), Lost::default())).1.add(lost);
            }
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// The thread.
struct Writer {
    journal: Journald,
    shared: Arc<Shared>,
    shares: HashMap<FunctionName, Share>,
    missing: Arc<Count>,
    /// The journal did not take the last entry in time.
    stopped: bool,
}

/// What one function may still write, and what is missing of it.
struct Share {
    lines: Bucket,
    bytes: Bucket,
    /// More than it may write.
    excess: Lost,
    /// Not taken by the journal, or by the queue before it.
    untaken: Lost,
    /// Whose the last missing line was.
    origin: Arc<Origin>,
    request: Option<RequestId>,
}

impl Writer {
    fn new(journal: Journald, shared: Arc<Shared>, missing: Arc<Count>) -> Self {
        Self { journal, shared, shares: HashMap::new(), missing, stopped: false }
    }

    fn run(mut self) {
        loop {
            let missing = self.shares.values().any(Share::is_missing_something);
            let work = self.shared.queue.take(if missing { TELL } else { IDLE });
            let now = Instant::now();
            let refused = mem::take(&mut *self.shared.refused());
            for (function, (origin, lost)) in refused {
                share(&mut self.shares, &function, &origin, now).untaken.add(lost);
            }
            for waiting in &work.pieces {
                self.piece(&waiting.piece(), now);
            }
            if work.pieces.is_empty() || work.closed {
                self.tell_all(now);
            }
            if work.closed {
                return self.last_word();
            }
            // Who has its whole share again needs no account.
            self.shares.retain(|_, share| !share.is_whole(now) || share.is_missing_something());
        }
    }

    fn piece(&mut self, piece: &Piece<'_>, now: Instant) {
        let lines = piece.lines.strip_suffix(b"\n").unwrap_or(piece.lines);
        match piece.kind {
            Kind::Function => lines.split(|byte| *byte == b'\n').for_each(|line| self.line(piece, line, now)),
            // One event of the platform's is one entry, as in the function's own log.
            Kind::Platform | Kind::Notice => {
                self.tell(&piece.origin.function, now);
                self.write(piece, lines, now);
            }
        }
    }

    fn line(&mut self, piece: &Piece<'_>, line: &[u8], now: Instant) {
        let share = share(&mut self.shares, &piece.origin.function, piece.origin, now);
        if !share.take(line.len(), now) {
            let lost = Lost { lines: 1, bytes: line.len() as u64 + 1 };
            self.missing.add(Why::JournalExcess, lost);
            share.excess.add(lost);
            (share.origin, share.request) = (piece.origin.clone(), piece.request);
            return;
        }
        if share.is_missing_something() {
            self.tell(&piece.origin.function, now);
        }
        self.write(piece, line, now);
    }

    fn write(&mut self, piece: &Piece<'_>, line: &[u8], now: Instant) {
        if !self.send(&entry(piece, line)) {
            let share = share(&mut self.shares, &piece.origin.function, piece.origin, now);
            let lost = Lost { lines: 1, bytes: line.len() as u64 + 1 };
            self.missing.add(Why::JournalUntaken, lost);
            share.untaken.add(lost);
            (share.origin, share.request) = (piece.origin.clone(), piece.request);
        }
    }

    fn tell_all(&mut self, now: Instant) {
        let missing = self.shares.iter().filter(|(_, share)| share.is_missing_something());
        let functions: Vec<FunctionName> = missing.map(|(function, _)| function.clone()).collect();
        functions.iter().for_each(|function| self.tell(function, now));
    }

    /// That lines are missing, if so: before the function's next entry, and when it prints nothing more.
    fn tell(&mut self, function: &FunctionName, now: Instant) {
        let Some(share) = self.shares.get_mut(function).filter(|share| share.is_missing_something()) else { return };
        let (excess, untaken) = (mem::take(&mut share.excess), mem::take(&mut share.untaken));
        let (origin, request) = (share.origin.clone(), share.request);
        let text = notice(function, excess, untaken);
        let piece = Piece { origin: &origin, request, kind: Kind::Notice, time: SystemTime::now(), lines: text.as_bytes() };
        if !self.send(&entry(&piece, text.as_bytes())) {
            let share = self::share(&mut self.shares, function, &origin, now);
            share.excess.add(excess);
            share.untaken.add(untaken);
        }
    }

    /// What the journal did not take to the very end: in kilnd's own name, and counted for all functions together.
    fn last_word(&self) {
        let mut lost = Lost::default();
        for share in self.shares.values() {
            lost.add(share.excess);
            lost.add(share.untaken);
        }
        let Lost { lines, bytes } = lost;
        if lines == 0 {
            return;
        }
        let text = format!(
            "at kilnd's end the journal did not take {lines} lines ({bytes} bytes) of functions in time: `kiln logs` has them"
        );
        let mut entry = Entry::new(fields::IDENTIFIER, Priority::Warning, text.as_bytes());
        entry.put(fields::MISSING, lines.to_string().as_bytes());
        let waited = self.journal.wait_at_most(PATIENCE).and_then(|()| self.journal.send(&entry));
        if let Err(error) = waited {
            warn!(%error, lines, bytes, "the journal did not take all lines of functions: they are in their own logs only");
        }
    }

    /// Waits for a slow journal, and not for one that has stopped; at the end only so long.
    fn send(&mut self, entry: &Entry) -> bool {
        if let Some(left) = self.shared.left() {
            // In whole milliseconds, of which none would be without end.
            if left < Duration::from_millis(1) || self.journal.wait_at_most(left.min(PATIENCE)).is_err() {
                return false;
            }
        }
        let sent = if self.stopped { self.journal.offer(entry) } else { self.journal.send(entry) };
        if let (Err(error), false) = (&sent, self.stopped) {
            warn!(%error, "the journal takes no lines of functions: they are in their own logs only");
        }
        self.stopped = sent.is_err();
        sent.is_ok()
    }
}

fn share<'a>(
    shares: &'a mut HashMap<FunctionName, Share>,
    function: &FunctionName,
    origin: &Arc<Origin>,
    now: Instant,
) -> &'a mut Share {
    shares.entry(function.clone()).or_insert_with(|| Share {
        lines: Bucket::full(LINES * BURST, LINES, now),
        bytes: Bucket::full(BYTES * BURST, BYTES, now),
        excess: Lost::default(),
        untaken: Lost::default(),
        origin: origin.clone(),
        request: None,
    })
}

impl Share {
    /// Whether a line of this length may be written now.
    fn take(&mut self, bytes: usize, now: Instant) -> bool {
        // Both or none of them.
        self.bytes.holds(bytes as f64, now) && self.lines.take(1.0, now) && self.bytes.take(bytes as f64, now)
    }

    fn is_whole(&mut self, now: Instant) -> bool {
        self.lines.is_full(now) && self.bytes.is_full(now)
    }

    fn is_missing_something(&self) -> bool {
        self.excess.lines + self.untaken.lines > 0
    }
}

fn notice(function: &FunctionName, excess: Lost, untaken: Lost) -> String {
    let mut why = Vec::new();
    if excess.lines > 0 {
        let (lines, kib) = (LINES, BYTES / 1024.0);
        why.push(format!("{} because a function may write {lines} lines and {kib} KiB a second here", excess.lines));
    }
    if untaken.lines > 0 {
        why.push(format!("{} because the journal did not take them", untaken.lines));
    }
    let (lines, bytes, why) = (excess.lines + untaken.lines, excess.bytes + untaken.bytes, why.join(", "));
    format!("KILN: {lines} lines ({bytes} bytes) are missing in the journal, {why}: `kiln logs {function}` has more")
}

fn entry(piece: &Piece<'_>, line: &[u8]) -> Entry {
    let (stream, priority) = match piece.kind {
        Kind::Function => ("function", Priority::Info),
        Kind::Platform => ("platform", Priority::Info),
        Kind::Notice => ("notice", Priority::Warning),
    };
    let function = piece.origin.function.as_str();
    let mut entry = Entry::new(&fields::identifier(function), priority, line);
    entry.put(fields::FUNCTION, function.as_bytes());
    entry.put(fields::VERSION, piece.origin.version.as_bytes());
    entry.put(fields::STREAM, stream.as_bytes());
    if let Some(request) = piece.request {
        entry.put(fields::REQUEST, request.to_string().as_bytes());
    }
    if let Some(container) = &piece.origin.container {
        entry.put(fields::CONTAINER, container.as_bytes());
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::logs::tests::origin;
    use crate::telemetry::journald::tests::Fake;

    fn writer(journal: Journald) -> Writer {
        Writer::new(journal, Arc::default(), Arc::default())
    }

    fn piece<'a>(origin: &'a Arc<Origin>, kind: Kind, lines: &'a [u8]) -> Piece<'a> {
        Piece { origin, request: None, kind, time: SystemTime::UNIX_EPOCH, lines }
    }

    /// A journal's queue may hold ten entries only: read while writing.
    fn write(writer: &mut Writer, fake: &Fake, piece: &Piece<'_>, now: Instant, seen: &mut Vec<String>) {
        writer.piece(piece, now);
        seen.extend(fake.entries().into_iter().map(|entry| entry["MESSAGE"].clone()));
    }

    #[test]
    fn a_line_has_its_functions_fields_and_a_forged_one_stays_a_message() {
        let (fake, journal) = Fake::start();
        let (mut writer, origin, request) = (writer(journal), origin("hello"), RequestId::new());
        let hostile = b"\xff\x00KILN_FUNCTION=other\r\nPRIORITY=0\n";
        let now = Instant::now();
        writer.piece(&Piece { request: Some(request), ..piece(&origin, Kind::Function, hostile) }, now);
        writer.piece(
            &Piece { request: Some(request), ..piece(&origin, Kind::Platform, b"RequestId: 1 Error: x\nRuntime.ExitError\n") },
            now,
        );
        writer.piece(&piece(&origin, Kind::Notice, b"KILN: 3 lines\n"), now);
        let entries = fake.entries();
        let all = |name: &str| entries.iter().map(|entry| entry.get(name).map_or("-", String::as_str)).collect::<Vec<_>>();
        assert_eq!(
            all("MESSAGE"),
            ["\u{fffd}\0KILN_FUNCTION=other\r", "PRIORITY=0", "RequestId: 1 Error: x\nRuntime.ExitError", "KILN: 3 lines"]
        );
        assert_eq!(all("PRIORITY"), ["6", "6", "6", "4"]);
        assert_eq!(all("KILN_STREAM"), ["function", "function", "platform", "notice"]);
        assert_eq!((all("KILN_FUNCTION"), all("KILN_CONTAINER")), (vec!["hello"; 4], vec!["3-17"; 4]));
        assert_eq!((all("KILN_VERSION"), all("SYSLOG_IDENTIFIER")), (vec!["$LATEST"; 4], vec!["kiln/hello"; 4]));
        let request = request.to_string();
        assert_eq!(all("KILN_REQUEST"), [&request, &request, &request, "-"]);
    }

    #[test]
    fn who_prints_without_end_writes_so_many_lines_and_its_report_and_the_rest_is_counted() {
        let (fake, journal) = Fake::start();
        let (mut writer, noisy, quiet, begin) = (writer(journal), origin("noisy"), origin("quiet"), Instant::now());
        let mut seen = Vec::new();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        for ms in 0..2000 {
            write(&mut writer, &fake, &piece(&noisy, Kind::Function, b"x\ny\nz\n"), at(ms), &mut seen);
            if ms % 100 == 0 {
                write(&mut writer, &fake, &piece(&quiet, Kind::Function, b"hello\n"), at(ms), &mut seen);
            }
        }
        write(&mut writer, &fake, &piece(&noisy, Kind::Platform, b"REPORT\n"), at(2000), &mut seen);
        let count = |text: &str| seen.iter().filter(|line| *line == text).count();
        let kept = count("x") + count("y") + count("z");
        assert!((1190..=1200).contains(&kept), "a thousand at once, and a hundred a second: {kept}");
        assert_eq!((count("hello"), count("REPORT")), (20, 1));
        let number =
            |line: &&String| line.strip_prefix("KILN: ").map(|rest| rest.split(' ').next().unwrap().parse::<usize>().unwrap());
        let missing: usize = seen.iter().filter_map(|line| number(&line)).sum();
        assert_eq!(kept + missing, 6000, "every line is there, or told to be missing");
        assert_eq!(writer.missing.now().journal_excess, missing as u64, "and counted");
        assert!(
            seen[seen.len() - 2].starts_with("KILN: ") && seen[seen.len() - 2].contains("`kiln logs noisy` has more"),
            "before REPORT"
        );
    }

    #[test]
    fn long_lines_are_bounded_by_their_bytes_and_the_longest_passes_whole() {
        let (fake, journal) = Fake::start();
        let (mut writer, origin, now) = (writer(journal), origin("f"), Instant::now());
        let line = [vec![b'x'; 256 << 10], vec![b'\n']].concat();
        let mut passed = 0;
        for _ in 0..20 {
            let before = writer.shares.get(&origin.function).map_or(0, |share| share.excess.lines);
            writer.piece(&piece(&origin, Kind::Function, &line), now);
            passed += u64::from(writer.shares[&origin.function].excess.lines == before);
            // A memfd has no bytes in its datagram.
            let _ = fake.entries();
        }
        assert_eq!(passed, 5);
        assert!(!writer.stopped);
    }

    #[test]
    fn a_stopped_journal_costs_one_wait_and_what_it_did_not_take_is_told_when_it_takes_again() {
        let (fake, journal) = Fake::start();
        journal.wait_at_most(Duration::from_millis(50)).unwrap();
        let (mut writer, origin, begin) = (writer(journal), origin("f"), Instant::now());
        for _ in 0..900 {
            writer.piece(&piece(&origin, Kind::Platform, b"REPORT\n"), begin);
        }
        assert!(writer.stopped && begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
        let taken = fake.entries().len() as u64;
        assert_eq!(writer.shares[&origin.function].untaken.lines, 900 - taken);
        assert_eq!(writer.missing.now().journal_untaken, 900 - taken);
        writer.tell_all(begin);
        let told = fake.entries();
        assert!(told[0]["MESSAGE"].contains("because the journal did not take them"), "{told:?}");
        assert_eq!(told[0]["PRIORITY"], "4");
        assert!(!writer.stopped && !writer.shares[&origin.function].is_missing_something());
    }

    #[test]
    fn the_thread_writes_all_it_was_handed_before_it_ends_and_only_what_is_wanted() {
        let waiting = |kind, lines: &[u8]| Waiting {
            origin: origin("f"),
            request: None,
            kind,
            time: SystemTime::UNIX_EPOCH,
            lines: lines.to_vec(),
        };
        let (fake, journal) = Fake::start();
        let wanted = Wanted::new(Mirrored::Auto);
        let (mirror, thread) = Mirror::start(journal, wanted.clone(), Arc::default()).unwrap();
        for what in [Mirrored::Auto, Mirrored::Platform, Mirrored::None] {
            wanted.set(what);
            let line = format!("{what:?}\n");
            mirror.hand(&[waiting(Kind::Function, line.as_bytes()), waiting(Kind::Platform, b"END\n")]);
        }
        drop(mirror);
        thread.join().unwrap();
        let messages: Vec<String> = fake.entries().into_iter().map(|mut entry| entry.remove("MESSAGE").unwrap()).collect();
        assert_eq!(messages, ["Auto", "END", "END"]);
    }

    #[test]
    fn what_found_no_room_in_the_queue_is_told() {
        let (fake, journal) = Fake::start();
        let (writer, origin) = (writer(journal), origin("f"));
        writer.shared.refused().insert(origin.function.clone(), (origin.clone(), Lost { lines: 3, bytes: 9 }));
        writer.shared.close();
        writer.run();
        assert!(fake.entries()[0]["MESSAGE"].starts_with("KILN: 3 lines (9 bytes) are missing in the journal"));
    }

    /// Takes an entry only now and then, so that each is taken within the patience for one.
    #[test]
    fn a_journal_that_is_slow_holds_up_the_end_for_some_seconds_and_what_it_did_not_take_is_counted() {
        const HANDED: usize = 5000;
        const SLOWLY: Duration = Duration::from_millis(50);
        let (fake, journal) = Fake::start();
        let (mirror, thread) = Mirror::start(journal, Wanted::new(Mirrored::Auto), Arc::default()).unwrap();
        let report = Waiting {
            origin: origin("f"),
            request: None,
            kind: Kind::Platform,
            time: SystemTime::UNIX_EPOCH,
            lines: b"REPORT\n".to_vec(),
        };
        (0..HANDED).for_each(|_| mirror.hand(std::slice::from_ref(&report)));
        let begin = Instant::now();
        drop(mirror);
        let mut seen = Vec::new();
        while !thread.is_finished() {
            thread::sleep(SLOWLY);
            seen.extend(fake.next());
        }
        thread.join().unwrap();
        // Its patience would last for all of them.
        assert!(begin.elapsed() < SLOWLY * HANDED as u32 / 2, "{:?}", begin.elapsed());
        seen.extend(fake.entries());
        let last = seen.pop().unwrap();
        let missing: usize = last["KILN_MISSING"].parse().unwrap();
        let reports = seen.iter().filter(|entry| entry["MESSAGE"] == "REPORT").count();
        // In the last moment one may be refused, and told before the next.
        let told =
            seen.iter().filter_map(|entry| entry["MESSAGE"].strip_prefix("KILN: ")?.split(' ').next()?.parse::<usize>().ok());
        assert!(missing > 0 && reports > 0);
        assert_eq!(reports + missing + told.sum::<usize>(), HANDED, "every line is there, or counted: {last:?}");
        assert!(last["MESSAGE"].contains("did not take") && last["SYSLOG_IDENTIFIER"] == "kilnd", "{last:?}");
    }
}
