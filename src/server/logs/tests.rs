//! What of a function's output goes where, and what an invocation may print.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::*;

type KeptPiece = (Option<RequestId>, Kind, Vec<u8>);

/// A sink that keeps everything in memory.
pub struct Kept {
    pieces: Mutex<Vec<KeptPiece>>,
    full: AtomicBool,
    allowance: u64,
    missing: missing::Count,
}

impl Default for Kept {
    fn default() -> Self {
        Self { pieces: Mutex::default(), full: AtomicBool::new(false), allowance: 1 << 30, missing: missing::Count::default() }
    }
}

impl Kept {
    /// Everything, as it was printed.
    pub fn text(&self) -> String {
        let pieces = self.pieces.lock().unwrap();
        pieces.iter().map(|(_, _, lines)| String::from_utf8_lossy(lines).into_owned()).collect()
    }

    /// Whose invocations' the pieces are that hold this text.
    pub fn whose(&self, text: &str) -> Vec<Option<RequestId>> {
        let pieces = self.pieces.lock().unwrap();
        let holds = |lines: &[u8]| String::from_utf8_lossy(lines).contains(text);
        pieces.iter().filter(|(_, _, lines)| holds(lines)).map(|(request, ..)| *request).collect()
    }

    fn of(&self, wanted: Kind) -> Vec<String> {
        let pieces = self.pieces.lock().unwrap();
        let of = pieces.iter().filter(|(_, kind, _)| *kind == wanted);
        of.map(|(_, _, lines)| String::from_utf8_lossy(lines).into_owned()).collect()
    }
}

impl LogSink for Kept {
    fn append(&self, piece: &Piece<'_>) -> bool {
        let taken = !self.full.load(Ordering::SeqCst);
        if taken {
            self.pieces.lock().unwrap().push((piece.request, piece.kind, piece.lines.to_vec()));
        }
        taken
    }

    fn allowance(&self) -> u64 {
        self.allowance
    }

    fn weight(&self, piece: &Piece<'_>) -> u64 {
        piece.lines.len() as u64
    }

    fn missed(&self, why: missing::Why, lost: Lost) {
        self.missing.add(why, lost);
    }
}

pub fn origin(function: &str) -> Arc<Origin> {
    Arc::new(Origin {
        function: FunctionName::parse(function).unwrap(),
        version: "$LATEST".into(),
        stream: "2018/12/01/[$LATEST]0123456789abcdef0123456789abcdef".into(),
        container: Some("3-17".into()),
    })
}

fn output(kept: &Arc<Kept>) -> (Arc<Output>, std::fs::File) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
    (Output::new(Journal::new(origin("f"), kept.clone()), read).unwrap(), write.into())
}

#[tokio::test]
async fn a_tail_is_start_to_end_and_a_partial_line_is_ended() {
    let kept = Arc::<Kept>::default();
    let (output, mut function) = output(&kept);
    function.write_all(b"between\nhal").unwrap();
    output.begin(RequestId::new(), "START\n".into());
    output.drain();
    function.write_all(b"one\npart").unwrap();
    output.drain();
    output.platform("END\n");
    assert_eq!(output.end(), b"START\nbetween\nhal\none\npart\nEND\n");
    assert_eq!(kept.text(), "START\nbetween\nhal\none\npart\nEND\n");
}

#[tokio::test]
async fn lines_belong_to_the_invocation_that_runs_and_to_none_before_and_after() {
    let kept = Arc::<Kept>::default();
    let (output, mut function) = output(&kept);
    let request = RequestId::new();
    output.platform("INIT_START\n");
    function.write_all(b"init\n").unwrap();
    output.drain();
    output.begin(request, "START\n".into());
    function.write_all(b"work\n").unwrap();
    output.drain();
    output.platform("END\n");
    output.end();
    function.write_all(b"after\n").unwrap();
    output.drain();
    let whose: Vec<_> = kept.pieces.lock().unwrap().iter().map(|(request, ..)| *request).collect();
    assert_eq!(whose, [None, None, Some(request), Some(request), Some(request), None]);
}

#[tokio::test]
async fn a_tail_has_exactly_the_last_4096_bytes() {
    let (output, mut function) = output(&Arc::default());
    output.begin(RequestId::new(), "START\n".into());
    for n in 0..3000 {
        writeln!(function, "{n:9}").unwrap();
        output.drain();
    }
    output.platform("REPORT\t\n");
    let tail = output.end();
    assert_eq!(tail.len(), TAIL);
    assert!(tail.ends_with(b"     2999\nREPORT\t\n"));
}

#[tokio::test]
async fn a_function_that_prints_without_end_is_read_and_keeps_to_its_allowance() {
    let kept = Arc::new(Kept { allowance: 1 << 20, ..Kept::default() });
    let (output, mut function) = output(&kept);
    output.begin(RequestId::new(), "START\n".into());
    let reader = tokio::spawn(output.clone().read());
    let piece = [[b'x'; 1023].as_slice(), b"\n"].concat().repeat(4);
    for _ in 0..1000 {
        while function.write(&piece).is_err() {
            tokio::task::yield_now().await;
        }
    }
    drop(function);
    reader.await.unwrap();
    output.drain();
    output.platform("END\n");
    assert!(output.lock().partial.is_empty());
    let (printed, notices) = (kept.of(Kind::Function).concat(), kept.of(Kind::Notice));
    assert!(printed.len() <= (1 << 20) + (64 << 10), "{}", printed.len());
    assert_eq!(kept.of(Kind::Platform), ["START\n", "END\n"]);
    // What is told to be missing and what is there are all there was.
    let missing: usize = notices.iter().map(|notice| notice.split(' ').nth(1).unwrap().parse::<usize>().unwrap()).sum();
    assert_eq!(printed.lines().count() + missing, 4000, "{notices:?}");
    assert_eq!(kept.missing.now(), Missing { excess: missing as u64, ..Missing::default() }, "counted as well as told");
    assert_eq!(output.end().len(), TAIL, "the caller's tail is of everything");
}

#[tokio::test(start_paused = true)]
async fn an_allowance_comes_back_slowly_and_whole_with_the_next_invocation() {
    let kept = Arc::new(Kept { allowance: 1 << 20, ..Kept::default() });
    let mut journal = Journal::new(origin("f"), kept.clone());
    let line = [vec![b'x'; 1023], vec![b'\n']].concat();
    let print = |journal: &mut Journal| (0..2000).for_each(|_| journal.function(&line));
    journal.begin(RequestId::new(), "START\n".into());
    print(&mut journal);
    assert_eq!(kept.of(Kind::Function).len(), 1024);
    tokio::time::advance(Duration::from_secs(10)).await;
    print(&mut journal);
    assert_eq!(kept.of(Kind::Function).len(), 1034, "a KiB a second");
    journal.end();
    journal.begin(RequestId::new(), "START\n".into());
    print(&mut journal);
    assert_eq!(kept.of(Kind::Function).len(), 2058);
}

#[tokio::test]
async fn what_a_full_sink_refused_is_told_before_the_next_line() {
    let kept = Arc::<Kept>::default();
    let mut journal = Journal::new(origin("f"), kept.clone());
    journal.function(b"1\n");
    kept.full.store(true, Ordering::SeqCst);
    journal.function(b"2\n3\n");
    kept.full.store(false, Ordering::SeqCst);
    journal.platform("END\n");
    let notice = "KILN: 2 lines (4 bytes) were dropped here: they came faster than they could be written\n";
    assert_eq!(kept.text(), format!("1\n{notice}END\n"));
    assert_eq!(kept.missing.now(), Missing { queue: 2, ..Missing::default() });
}
