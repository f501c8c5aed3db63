//! `kiln container exec`: a program in a container, for whoever is on duty.
//!
//! Runs as whoever called it, and enters nothing itself: the program's bytes come and go over the operators' socket
//! ([`crate::wire::visit`]), so that no descriptor and no terminal of this host gets into a container. When this process ends,
//! however it does, the connection ends, and kilnd ends the program.

use std::io::{self, IsTerminal, Read, Write};

use bytes::Bytes;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};

use super::args::Exec;
use super::client::{Client, Conversation};
use super::failure::Failure;
use super::function::encoded;
use super::output;
use crate::wire::visit::{self, Asked, End, HEADER, MAX_FRAME, TerminalSize};

pub async fn execute(client: &Client, exec: Exec) -> Result<(), Failure> {
    // A terminal inside only where both ends of it are here: into a pipe or a file goes what the program wrote.
    let on_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let terminal = on_terminal.then(size);
    let term = terminal.and_then(|_| std::env::var("TERM").ok());
    let asked = Asked { command: exec.command, root: exec.root, terminal, term };
    let body = serde_json::to_vec(&asked).map_err(|error| Failure::Usage(format!("this cannot be asked for: {error}")))?;
    let path = format!("/v1/containers/{}/exec", encoded(&exec.id));
    let talk = client.converse(&path, visit::PROTOCOL, Bytes::from(body)).await?;
    if talk.header("x-kiln-beside") == Some("1") {
        output::say(&format!("container {} runs an invocation, and ends with it: so will this", exec.id));
    }
    let raw = if on_terminal { Some(Raw::enter()?) } else { None };
    let end = relay(talk, on_terminal).await;
    // Before anything is said.
    drop(raw);
    let exit = |code: i32| match u8::try_from(code) {
        Ok(0) => Ok(()),
        Ok(code) => Err(Failure::Program(code, String::new())),
        Err(_) => Err(Failure::Program(u8::MAX, String::new())),
    };
    match end? {
        Some(End::Exited(code)) => exit(code),
        Some(End::Signalled(signal)) => exit(128 + signal),
        Some(End::Ended(why)) => {
            Err(Failure::Failed(format!("container {} has ended, and with it what ran in it: {why}", exec.id)))
        }
        // Whoever reads us has what they wanted.
        None => Ok(()),
    }
}

fn size() -> TerminalSize {
    let size = tcgetwinsize(io::stdout()).map(|size| (size.ws_row, size.ws_col));
    let (rows, columns) = size.ok().filter(|(rows, columns)| *rows > 0 && *columns > 0).unwrap_or((24, 80));
    TerminalSize { rows, columns }
}

/// The terminal hands every key on as it is, Ctrl-C too, until this is dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Self, Failure> {
        let failed = |errno| Failure::Failed(format!("the terminal cannot be set to hand all keys on: {errno}"));
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Until the program ends. `None`: nobody reads what it writes.
async fn relay(talk: Conversation, on_terminal: bool) -> Result<Option<End>, Failure> {
    let (mut reading, mut writing) = tokio::io::split(talk.stream);
    let listen = |kind| signal(kind).map_err(|error| Failure::Failed(format!("signals cannot be waited for: {error}")));
    let mut resized = listen(SignalKind::window_change())?;
    let (mut ended, mut hung_up) = (listen(SignalKind::terminate())?, listen(SignalKind::hangup())?);
    let taken = Notify::new();
    let mut typed = typed();
    let up = async {
        let (mut may, mut is_over) = (true, false);
        loop {
            let sent = tokio::select! {
                chunk = typed.recv(), if may && !is_over => {
                    let chunk = chunk.unwrap_or_default();
                    (may, is_over) = (false, chunk.is_empty());
                    send(&mut writing, visit::STDIN, &chunk).await
                }
                () = taken.notified() => {
                    may = true;
                    Ok(())
                }
                Some(()) = resized.recv(), if on_terminal => send(&mut writing, visit::SIZE, &visit::size(size())).await,
            };
            if sent.is_err() {
                // What kilnd has said before it went is still to be read.
                return std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        biased;
        end = down(&mut reading, &taken) => end,
        () = up => Ok(None),
        _ = ended.recv() => Err(Failure::Program(128 + 15, "ended, and with it what ran in the container".into())),
        _ = hung_up.recv() => Err(Failure::Program(128 + 1, "the terminal is gone, and with it what ran in the container".into())),
    }
}

/// Everything from stdin, in pieces; an empty one, or nothing more, is its end. A thread reads, since not every stdin can be waited
/// for; it is not waited for in the end.
fn typed() -> mpsc::Receiver<Vec<u8>> {
    let (tell, told) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut buffer = vec![0; MAX_FRAME];
        loop {
            let length = match io::stdin().read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => 0,
            };
            if tell.blocking_send(buffer[..length].to_vec()).is_err() || length == 0 {
                return;
            }
        }
    });
    told
}

async fn send(to: &mut (impl AsyncWrite + Unpin), kind: u8, bytes: &[u8]) -> io::Result<()> {
    to.write_all(&visit::header(kind, bytes.len())).await?;
    to.write_all(bytes).await?;
    to.flush().await
}

/// What the program writes, and how it was.
async fn down(from: &mut (impl AsyncRead + Unpin), taken: &Notify) -> Result<Option<End>, Failure> {
    loop {
        let Ok((kind, bytes)) = frame(from).await else {
            let text = "kilnd went away, and with it what ran in the container: it was stopped, or is being restarted";
            return Err(Failure::Unreachable(text.into()));
        };
        let written = match kind {
            visit::STDOUT => write(io::stdout().lock(), &bytes),
            visit::STDERR => write(io::stderr().lock(), &bytes),
            visit::TAKEN => {
                taken.notify_one();
                Ok(())
            }
            visit::END => {
                let unknown = |error| Failure::Failed(format!("kilnd's last word is not understood: {error}"));
                return serde_json::from_slice(&bytes).map(Some).map_err(unknown);
            }
            _ => Ok(()),
        };
        if written.is_err() {
            return Ok(None);
        }
    }
}

async fn frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<(u8, Vec<u8>)> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header).await?;
    let (kind, length) = visit::parse(header).ok_or(io::ErrorKind::InvalidData)?;
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    Ok((kind, bytes))
}

fn write(mut to: impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}
