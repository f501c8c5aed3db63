//! What kilnd tells in lines of JSON, printed as it comes: for `kiln logs` and `kiln events`.
//!
//! With `-f` it goes on when the server is replaced, from where it was; and it ends when nobody reads what it prints any more, also
//! while there is nothing to print.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use http_body_util::BodyExt;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::client::{Client, Stream};
use super::failure::Failure;
use super::output;

/// Between two tries to reach a server that is away, and between two looks whether anybody still reads what we print.
const PAUSE: Duration = Duration::from_millis(500);

/// What is followed, and where one is in it.
pub trait Followed {
    /// Bytes: more than the longest line.
    const MAX_LINE: usize;

    /// Path and query, with where to begin or to go on.
    fn question(&self) -> String;

    /// kilnd has answered once: it will be there again.
    fn was_answered(&self) -> bool;

    /// An answer begins.
    fn begins(&mut self, stream: &Stream);

    /// A line has come, with its end: what there is to print of it.
    fn line(&mut self, json: &[u8], to: &mut Vec<u8>) -> serde_json::Result<()>;

    /// The server went away in the middle of its answer.
    fn is_cut(&mut self) {}
}

/// Why it is over.
pub enum Over {
    /// All was told.
    Whole,
    /// Nobody reads our stdout any more.
    Reader,
}

/// Prints what is told now, or `on` and on. `what` it is, for who is told that it was cut.
pub async fn follow(client: &Client, what: &str, on: bool, followed: &mut impl Followed) -> Result<Over, Failure> {
    let mut away = false;
    loop {
        match client.stream(&followed.question()).await {
            Ok(stream) => {
                if std::mem::take(&mut away) {
                    output::say("kiln: kilnd is back");
                }
                followed.begins(&stream);
                match copy(stream, followed).await? {
                    Ended::Reader => return Ok(Over::Reader),
                    Ended::Whole if !on => return Ok(Over::Whole),
                    Ended::Cut if !on => {
                        return Err(Failure::Unreachable(format!("kilnd went away in the middle of the {what}")));
                    }
                    Ended::Whole => {}
                    Ended::Cut => followed.is_cut(),
                }
            }
            Err(Failure::Unreachable(_)) if followed.was_answered() => {
                if !std::mem::replace(&mut away, true) {
                    output::say("kiln: kilnd is away; waiting for it");
                }
            }
            Err(failure) => return Err(failure),
        }
        if !has_reader() {
            return Ok(Over::Reader);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Why a stream is over.
enum Ended {
    Whole,
    /// The server went away.
    Cut,
    /// Nobody reads our stdout any more.
    Reader,
}

/// Prints whole lines as they come.
async fn copy<F: Followed>(mut stream: Stream, followed: &mut F) -> Result<Ended, Failure> {
    let mut rest: Vec<u8> = Vec::new();
    loop {
        let frame = tokio::select! {
            frame = stream.body.frame() => frame,
            () = tokio::time::sleep(PAUSE) => {
                if has_reader() { continue } else { return Ok(Ended::Reader) }
            }
        };
        let data = match frame {
            None => return Ok(Ended::Whole),
            Some(Err(_)) => return Ok(Ended::Cut),
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
        };
        rest.extend_from_slice(&data);
        let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let mut text = Vec::new();
        for line in rest[..whole].split_inclusive(|byte| *byte == b'\n') {
            followed.line(line, &mut text).map_err(|error| not_understood(&error.to_string()))?;
        }
        rest.drain(..whole);
        if rest.len() > F::MAX_LINE {
            return Err(not_understood("an endless line"));
        }
        if !output::write(&text)? {
            return Ok(Ended::Reader);
        }
    }
}

fn not_understood(why: &str) -> Failure {
    Failure::Failed(format!("kilnd's answer is not understood ({why}): are kiln and kilnd of one version?"))
}

/// Whether the other end of our stdout is open, as far as that can be known without writing.
fn has_reader() -> bool {
    let stdout = io::stdout();
    let mut looked = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    let closed = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| events.contains(PollFlags::POLLERR));
    !(poll(&mut looked, PollTimeout::ZERO).is_ok() && looked.iter().any(closed))
}
