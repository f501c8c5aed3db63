//! People in a container: what they see of it, and the program that they run in it.
//!
//! Server process. A [`Visit`] is a second kiln-init in the container, which its launcher has put there: it is told what to start as
//! the first one was, and everything between the program and whoever looks at it goes through here, as bytes that mean nothing.
//! Nothing of the operator's is in the container but these bytes.
//!
//! ```text
//! Facts::enter ─▶ resting ─START─▶ started ─▶ Visit::relay ⇄ frames of [`crate::wire::visit`] ─▶ Over
//!                                               └ the program ends · whoever looks at it goes away · the container must end
//! ```
//!
//! A visit is a value: dropping it kills what runs in its group, and nothing else.

use std::fs::File;
use std::future::Future;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::container::{Guest, LaunchError, Stdio};
use super::init::encode_start;
use super::invoke::Frozen;
use super::vars::vars;
use super::watch::{Control, Ended, Word};
use super::{Environment, Facts, Grow};
use crate::function::{Function, FunctionName};
use crate::invocation::{Cause, ProcessEnd};
use crate::runtime::Recipe;
use crate::server::events::What;
use crate::server::logs::lines;
use crate::server::readiness::watched;
use crate::wire::launcher::{Description, TerminalSize};
use crate::wire::visit::{self, Asked, End, HEADER, MAX_FRAME};

/// A forgotten terminal must not hold a container for ever.
const LONGEST: Duration = Duration::from_secs(12 * 3600);
/// For kiln-init to start the program.
const START_LIMIT: Duration = Duration::from_secs(10);
/// For what a program has written when it is over already, and for its reader to take it.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// As much as a pipe may hold (pipe(7)).
const LAST_BYTES: usize = 1 << 20;
/// Where the function has no PATH: as Lambda has it.
const PATH: &str = "/var/lang/bin:/usr/local/bin:/usr/bin:/bin:/opt/bin";
/// Root's: the runtime's own programs, and nothing of a layer's.
const ROOTS_PATH: &str = "/var/lang/bin:/usr/local/bin:/usr/bin:/bin";
/// What a terminal's name may be: it becomes a variable of the program's.
const LONGEST_TERM: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum VisitError {
    #[error("{0}")]
    Launch(#[from] LaunchError),
    #[error("there is no {program} in this container{}", looked_in(.searched))]
    NoProgram { program: String, searched: Option<String> },
    #[error("{program} cannot be executed in this container: {error}")]
    NotExecuted { program: String, error: io::Error },
    #[error("the command and the function's variables are more than 1,024 words or 64 KiB, or a word has a NUL")]
    TooLong,
    #[error("nothing is to be executed: the command is empty")]
    NoCommand,
    #[error("the container ended meanwhile")]
    Ended,
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl VisitError {
    /// kiln-init itself says that it has executed nothing of the container's, or nobody was let in at all.
    pub fn nothing_ran(&self) -> bool {
        match self {
            Self::NoProgram { .. } | Self::NotExecuted { .. } | Self::TooLong | Self::NoCommand => true,
            Self::Launch(error) => matches!(error, LaunchError::Refused(_) | LaunchError::NoLauncher),
            Self::Ended | Self::Io(_) => false,
        }
    }
}

fn looked_in(searched: &Option<String>) -> String {
    searched.as_ref().map(|path| format!(", in none of {path}")).unwrap_or_default()
}

/// What can be seen of a container from outside.
#[derive(Debug)]
pub struct Sight {
    pub description: Description,
    /// Its OCI runtime configuration, a JSON text.
    pub oci: Vec<u8>,
    pub function: Arc<Function>,
    /// As the host numbers it.
    pub runtime_pid: Option<u32>,
    /// Bytes in use in /tmp.
    pub tmp: Option<u64>,
}

impl Facts {
    pub fn function(&self) -> &FunctionName {
        &self.function.name
    }

    /// Returns when its processes have ended, or are being ended.
    pub async fn ended(&self) {
        // A watcher that is gone was dropped with its environment.
        let _ = self.ended.clone().wait_for(Option::is_some).await.is_ok();
    }

    /// Looks at the container from outside, and wakes nobody.
    pub async fn look(&self) -> Result<Sight, LaunchError> {
        let (description, oci) = self.keeper.describe().await?;
        let (function, tmp) = (self.function.clone(), self.gauge.tmp().ok());
        Ok(Sight { description, oci, function, runtime_pid: self.pulse.runtime_pid(), tmp })
    }

    /// Starts a program in the container, which is awake. `by` is told in the function's log.
    pub async fn enter(&self, asked: &Asked, by: &str) -> Result<Visit, VisitError> {
        let (program, vars) = (asked.command.first().ok_or(VisitError::NoCommand)?, self.vars_for(asked));
        let path = vars.iter().find(|(name, _)| name == "PATH").map_or(PATH, |(_, path)| path.as_str());
        let candidates = candidates(&asked.command, path);
        let message = encode_start(&candidates, &vars).ok_or(VisitError::TooLong)?;
        let guest = self.keeper.enter(asked.root, asked.terminal).await?;
        let Guest { control, kill, stdio } = guest;
        // From here on, dropping it ends what is in its group.
        let visit = Visit { group: Group(kill.into()), control: Control::new(control)?, ends: Ends::of(stdio)? };
        let searched = (!program.contains('/')).then(|| path.to_owned());
        let started = timeout(START_LIMIT, visit.start(&message)).await.unwrap_or(Err(VisitError::Ended));
        started.map_err(|error| match error {
            VisitError::NoProgram { .. } => VisitError::NoProgram { program: program.clone(), searched },
            VisitError::NotExecuted { error, .. } => VisitError::NotExecuted { program: program.clone(), error },
            other => other,
        })?;
        self.output.platform(&lines::entered(&self.container, by));
        Ok(visit)
    }

    /// The function's, and the terminal's name.
    fn vars_for(&self, asked: &Asked) -> Vec<(String, String)> {
        let mut vars = match asked.root {
            true => roots_vars(&self.recipe),
            false => vars(&self.function, &self.recipe, &self.region, &self.stream),
        };
        let plain = |name: &&String| name.len() <= LONGEST_TERM && name.bytes().all(|byte| byte.is_ascii_graphic());
        if let (Some(_), Some(term)) = (asked.terminal, asked.term.as_ref().filter(plain)) {
            vars.retain(|(name, _)| name != "TERM");
            vars.push(("TERM".into(), term.clone()));
        }
        vars
    }
}

/// Nothing of the function's: who wrote it would choose what runs as root, by PATH, LD_LIBRARY_PATH (the runtime's own looks in
/// /var/task), LD_PRELOAD, BASH_ENV.
fn roots_vars(recipe: &Recipe) -> Vec<(String, String)> {
    let language = recipe.vars.get_key_value("LANG").map(|(name, language)| (name.clone(), language.clone()));
    language.into_iter().chain([("PATH".to_owned(), ROOTS_PATH.to_owned())]).collect()
}

/// The command with each path that its program may have: kiln-init starts the first that is a file.
fn candidates(command: &[String], path: &str) -> Vec<Vec<String>> {
    let Some((program, arguments)) = command.split_first() else { return Vec::new() };
    let line = |program: String| [&[program], arguments].concat();
    if program.contains('/') {
        return vec![line(program.clone())];
    }
    // As execvp(3): an empty part is the working directory.
    let parts = path.split(':').map(|part| if part.is_empty() { "." } else { part });
    parts.map(|part| line(format!("{}/{program}", part.trim_end_matches('/')))).collect()
}

impl Environment {
    /// For somebody who looks into it: its processes run again.
    pub fn wake(&mut self) {
        if std::mem::take(&mut self.frozen) {
            self.cgroup.thaw();
            self.events.emit(&self.subject, None, What::Thawed);
        }
    }

    /// Nobody came in: frozen again, for the next invocation. `None`: it is not fit for one.
    pub fn rest_again(&mut self, grow: Grow<'_>) -> Option<Frozen> {
        self.rest(None, grow)
    }

    /// While somebody is in it and no invocation is: waits for what must end it, memory and time above all.
    pub async fn trouble_inside(&mut self, grow: Grow<'_>) -> Cause {
        self.trouble(Instant::now() + LONGEST, LONGEST, grow).await
    }
}

/// A program that somebody runs in a container.
pub struct Visit {
    group: Group,
    control: Arc<Control>,
    ends: Ends,
}

/// What runs in it ends with it.
struct Group(File);

impl Group {
    fn kill(&self) {
        match (&self.0).write(b"1") {
            Err(error) if error.raw_os_error() != Some(libc::ENODEV) => warn!(%error, "end what somebody runs in a container"),
            _ => {}
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Our ends of the program's 0, 1 and 2. A terminal's is one descriptor, written and read.
struct Ends {
    stdin: AsyncFd<OwnedFd>,
    stdout: AsyncFd<OwnedFd>,
    stderr: Option<AsyncFd<OwnedFd>>,
    is_terminal: bool,
}

impl Ends {
    fn of(stdio: Stdio) -> io::Result<Self> {
        Ok(match stdio {
            Stdio::Terminal(ours) => {
                let stdin = watched(ours.try_clone()?)?;
                Self { stdin, stdout: watched(ours)?, stderr: None, is_terminal: true }
            }
            Stdio::Pipes { stdin, stdout, stderr } => {
                Self { stdin: watched(stdin)?, stdout: watched(stdout)?, stderr: Some(watched(stderr)?), is_terminal: false }
            }
        })
    }
}

/// What ended a visit.
#[derive(Debug)]
pub enum Over {
    Program(ProcessEnd),
    /// Whoever looked at it is gone.
    Gone,
    /// The container had to end, for this reason.
    Container(String),
}

impl Visit {
    async fn start(&self, message: &[u8]) -> Result<(), VisitError> {
        let nobody = || VisitError::NoProgram { program: String::new(), searched: None };
        let mut told = false;
        loop {
            match self.control.word().await?.ok_or(VisitError::Ended)? {
                Word::Resting if !told => {
                    told = true;
                    self.control.start(message)?;
                }
                Word::Started(_) => return Ok(()),
                Word::Ended(Ended::NoBootstrap) => return Err(nobody()),
                Word::Ended(Ended::NotStarted { errno, .. }) => {
                    let error = io::Error::from_raw_os_error(errno);
                    return Err(VisitError::NotExecuted { program: String::new(), error });
                }
                Word::Ended(Ended::Broken { errno }) => return Err(io::Error::from_raw_os_error(errno).into()),
                Word::Resting | Word::Ended(_) => return Err(VisitError::Ended),
            }
        }
    }

    /// Carries bytes between the program and `stream` until one of them ends, or `outside` says why both must. The last frame
    /// says how it was.
    pub async fn relay(self, stream: impl AsyncRead + AsyncWrite + Send, outside: impl Future<Output = String> + Send) -> Over {
        let Self { group, control, ends } = self;
        let Ends { stdin, stdout, stderr, is_terminal } = ends;
        let (reading, mut writing) = tokio::io::split(stream);
        let (frames, mut queue) = mpsc::channel::<Frame>(4);
        let (chunks, fed) = mpsc::channel(1);
        let (end_of_program, ended) = watch::channel(false);

        let mut heard = pin!(hear(reading, chunks, is_terminal.then_some(stdout.as_fd())));
        let mut feed = Box::pin(feed(fed, stdin, is_terminal, frames.clone()));
        let (out, err, last) = (frames.clone(), stderr.as_ref().map(|stderr| (stderr, frames.clone())), frames);
        let mut tell = Box::pin(async {
            let stderr = async {
                if let Some((stderr, frames)) = err {
                    tell(stderr, visit::STDERR, frames, ended.clone()).await;
                }
            };
            tokio::join!(tell(&stdout, visit::STDOUT, out, ended.clone()), stderr);
        });
        let mut write = pin!(async move {
            while let Some((kind, bytes)) = queue.recv().await {
                writing.write_all(&visit::header(kind, bytes.len())).await?;
                writing.write_all(&bytes).await?;
                writing.flush().await?;
            }
            writing.shutdown().await
        });
        let mut outside = pin!(outside);

        let (mut is_fed, mut is_told) = (false, false);
        let mut over = loop {
            tokio::select! {
                biased;
                why = &mut outside => break Over::Container(why),
                () = &mut heard => break Over::Gone,
                word = control.word() => match word {
                    Ok(Some(Word::Ended(Ended::Runtime(end)))) => break Over::Program(end),
                    Ok(Some(Word::Ended(_)) | None) | Err(_) => {
                        // Killed with the container, as a rule: whoever did that says why.
                        let why = timeout(LAST_WORDS, &mut outside).await;
                        break Over::Container(why.unwrap_or_else(|_| "it has ended".into()));
                    }
                    Ok(Some(_)) => {}
                },
                () = &mut feed, if !is_fed => is_fed = true,
                () = &mut tell, if !is_told => is_told = true,
                _ = &mut write => break Over::Gone,
            }
        };
        // What the program has left running goes with it; what it has said arrives, if its reader takes it.
        group.kill();
        drop(feed);
        end_of_program.send_replace(true);
        while let (Over::Program(_), false) = (&over, is_told) {
            tokio::select! {
                biased;
                why = &mut outside => over = Over::Container(why),
                () = &mut heard => over = Over::Gone,
                () = &mut tell => is_told = true,
                _ = &mut write => over = Over::Gone,
            }
        }
        drop(tell);
        if let Some(end) = over.end() {
            let end = serde_json::to_vec(&end).unwrap_or_default();
            let said = async {
                let _ = last.send((visit::END, end)).await;
                drop(last);
            };
            // A reader that takes nothing now has other worries.
            let _ = timeout(LAST_WORDS, async { tokio::join!(said, write) }).await;
        }
        over
    }
}

impl Over {
    /// `None`: there is nobody to be told.
    fn end(&self) -> Option<End> {
        match self {
            Self::Program(ProcessEnd::Exited(status)) => Some(End::Exited(*status)),
            Self::Program(ProcessEnd::Killed { signal, .. }) => Some(End::Signalled(*signal)),
            Self::Container(why) => Some(End::Ended(why.clone())),
            Self::Gone => None,
        }
    }
}

/// Kind and bytes.
type Frame = (u8, Vec<u8>);

/// What whoever looks at it sends. Ends when they are gone, or speak another language.
async fn hear(mut reading: impl AsyncRead + Unpin, chunks: mpsc::Sender<Vec<u8>>, terminal: Option<BorrowedFd<'_>>) {
    loop {
        let mut header = [0; HEADER];
        if reading.read_exact(&mut header).await.is_err() {
            return;
        }
        let Some((kind, length)) = visit::parse(header) else { return };
        let mut bytes = vec![0; length];
        if reading.read_exact(&mut bytes).await.is_err() {
            return;
        }
        match (kind, terminal) {
            (visit::STDIN, _) => match chunks.try_send(bytes) {
                // The program has closed its stdin, which is its own affair.
                Ok(()) | Err(TrySendError::Closed(_)) => {}
                // Before the last one was taken.
                Err(TrySendError::Full(_)) => return,
            },
            (visit::SIZE, Some(terminal)) => {
                let Some(TerminalSize { rows, columns }) = visit::parse_size(&bytes) else { return };
                let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                // The program sees another size, or goes on with the old one.
                let _ = tcsetwinsize(terminal, size);
            }
            _ => return,
        }
    }
}

/// To the program's stdin, which is closed when this ends.
async fn feed(mut fed: mpsc::Receiver<Vec<u8>>, stdin: AsyncFd<OwnedFd>, is_terminal: bool, frames: mpsc::Sender<Frame>) {
    while let Some(mut chunk) = fed.recv().await {
        match (chunk.is_empty(), is_terminal) {
            (false, _) => {}
            // A terminal's end is a character.
            (true, true) => chunk.push(END_OF_TRANSMISSION),
            (true, false) => return,
        }
        if write_all(&stdin, &chunk).await.is_err() || frames.send((visit::TAKEN, Vec::new())).await.is_err() {
            return;
        }
    }
}

/// Ctrl-D.
const END_OF_TRANSMISSION: u8 = 4;

/// From the program, until its end of this is closed (EIO of a terminal). When the program has `ended`, only for what it had written:
/// the function, which has the same user, may have opened its output, and keep it open or write without end.
async fn tell(from: &AsyncFd<OwnedFd>, kind: u8, frames: mpsc::Sender<Frame>, mut ended: watch::Receiver<bool>) {
    let mut buffer = vec![0; MAX_FRAME];
    loop {
        let length = tokio::select! {
            biased;
            // An error: whoever could say so is gone.
            _ = async { ended.wait_for(|ended| *ended).await.is_ok() } => break,
            length = read(from, &mut buffer) => length,
        };
        let Ok(length @ 1..) = length else { return };
        if frames.send((kind, buffer[..length].to_vec())).await.is_err() {
            return;
        }
    }
    let (mut patience, mut bytes) = (LAST_WORDS, LAST_BYTES);
    while bytes > 0 {
        let begun = Instant::now();
        let Ok(Ok(length @ 1..)) = timeout(patience, read(from, &mut buffer)).await else { return };
        patience = patience.saturating_sub(begun.elapsed());
        bytes = bytes.saturating_sub(length);
        // Its reader may be as slow as it likes.
        if frames.send((kind, buffer[..length].to_vec())).await.is_err() {
            return;
        }
    }
}

async fn read(from: &AsyncFd<OwnedFd>, into: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = from.readable().await?;
        if let Ok(read) = ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), into)?)) {
            return read;
        }
    }
}

async fn write_all(to: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = to.writable().await?;
        if let Ok(written) = ready.try_io(|fd| Ok(nix::unistd::write(fd.get_ref(), bytes)?)) {
            bytes = &bytes[written?..];
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;

    use super::*;
    use crate::server::environment::container::Stdio;
    use crate::sys::packet;
    use crate::wire::init::{EXITED, MESSAGE};

    #[test]
    fn a_program_is_looked_for_where_the_functions_path_says() {
        let command = ["ls", "-l"].map(str::to_owned);
        assert_eq!(candidates(&command, "/bin:/usr/bin/:"), [["/bin/ls", "-l"], ["/usr/bin/ls", "-l"], ["./ls", "-l"]]);
        assert_eq!(candidates(&["./tool".to_owned()], "/bin"), [["./tool"]]);
        assert!(candidates(&[], "/bin").is_empty());
    }

    #[test]
    fn root_has_nothing_that_the_functions_author_wrote() {
        let vars =
            [("LANG", "C.UTF-8"), ("PATH", "/opt/bin:/bin"), ("LD_LIBRARY_PATH", "/lib64:/var/task"), ("NODE_PATH", "/opt")];
        let recipe = Recipe {
            name: crate::runtime::RuntimeName::parse("provided.al2023").unwrap(),
            tree: crate::runtime::TreeId(crate::code::Digest::of(b"")),
            start: vec![],
            hot: vec![],
            execution_env: false,
            vars: vars.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        };
        let expected = [("LANG", "C.UTF-8"), ("PATH", ROOTS_PATH)].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(roots_vars(&recipe), expected);
    }

    /// A program without processes: its ends of everything.
    struct Program {
        control: OwnedFd,
        stdout: File,
        _stderr: File,
    }

    fn entered() -> (Visit, Program) {
        let (ours, control) = packet::pair().unwrap();
        // Nobody types.
        // Nobody else who is started meanwhile shall have a copy.
        let pipe = || pipe2(OFlag::O_CLOEXEC).unwrap();
        let (_, stdin) = pipe();
        let ((out, stdout), (err, stderr)) = (pipe(), pipe());
        for end in [&stdin, &out, &err] {
            crate::server::readiness::set_nonblocking(end).unwrap();
        }
        let group = Group(File::options().write(true).open("/dev/null").unwrap());
        let ends = Ends::of(Stdio::Pipes { stdin, stdout: out, stderr: err }).unwrap();
        let program = Program { control, stdout: stdout.into(), _stderr: stderr.into() };
        (Visit { group, control: Control::new(ours).unwrap(), ends }, program)
    }

    fn exits(program: &Program, status: u8) {
        let mut message = [0; MESSAGE];
        (message[0], message[5]) = (EXITED, status);
        packet::send(program.control.as_fd(), &message, &[]).unwrap();
    }

    /// What `relay` said, and the bytes of stdout that came out.
    async fn look_at(visit: Visit) -> (Over, usize) {
        let (theirs, mut ours) = tokio::io::duplex(64 << 10);
        let reader = async {
            let mut written = 0;
            loop {
                let mut header = [0; HEADER];
                ours.read_exact(&mut header).await.expect("the last frame is an END");
                let (kind, length) = visit::parse(header).unwrap();
                let mut bytes = vec![0; length];
                ours.read_exact(&mut bytes).await.unwrap();
                match kind {
                    visit::STDOUT => written += length,
                    visit::END => return written,
                    _ => {}
                }
            }
        };
        let both = async { tokio::join!(visit.relay(theirs, std::future::pending()), reader) };
        timeout(Duration::from_secs(120), both).await.expect("it ends with its program")
    }

    #[tokio::test]
    async fn all_that_a_program_has_said_arrives() {
        let (visit, program) = entered();
        (&program.stdout).write_all(&[b'x'; 60_000]).unwrap();
        exits(&program, 7);
        drop(program);
        let (over, written) = look_at(visit).await;
        assert!(matches!(over, Over::Program(ProcessEnd::Exited(7))), "{over:?}");
        assert_eq!(written, 60_000);
    }

    #[tokio::test]
    async fn a_function_that_holds_a_programs_output_holds_up_nobody() {
        let (visit, program) = entered();
        (&program.stdout).write_all(b"its last words").unwrap();
        exits(&program, 7);
        // Its ends stay open.
        let (over, written) = look_at(visit).await;
        assert!(matches!(over, Over::Program(ProcessEnd::Exited(7))), "{over:?}");
        assert_eq!(written, 14);
        drop(program);
    }

    #[tokio::test]
    async fn a_function_that_writes_without_end_into_a_programs_output_holds_up_nobody() {
        let (visit, program) = entered();
        exits(&program, 0);
        let mut stdout = program.stdout.try_clone().unwrap();
        // Until nobody can read it any more.
        let flood = thread::spawn(move || while stdout.write_all(&[b'x'; 4096]).is_ok() {});
        let (over, written) = look_at(visit).await;
        assert!(matches!(over, Over::Program(ProcessEnd::Exited(0))), "{over:?}");
        assert!(written <= 3 * LAST_BYTES, "{written}");
        flood.join().unwrap();
        drop(program);
    }
}
