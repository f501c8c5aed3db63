//! Functions' logs for people on duty, a JSON object on each line: `GET /v1/functions/{name}/logs` has one function's, and
//! `GET /v1/logs` those of all functions, or of some, in order of time.
//!
//! | Query | |
//! |---|---|
//! | `function=NAME` | of this one; `/v1/logs` only, and as often as one likes |
//! | `tail=N` | begins N entries before the end |
//! | `since_ms=T` | entries of that time (milliseconds since 1970) and later |
//! | `request=ID`, `container=ID` | entries of one invocation; of one container, or of one log stream |
//! | `after=CURSOR` | begins behind the entry that bore this cursor; of one function only |
//! | `after=NAME@CURSOR` | the same of each function that it is said of, whatever `since_ms` is; `/v1/logs` only, without `tail` |
//! | `follow=1` | goes on with what is printed from now on, until the caller goes away or the server stops; functions that are made later are among all |
//!
//! Each object is a [record](super::super::logs::store::record::Record) with `function` and `cursor`; the header
//! `x-kiln-cursor` is the cursor at the beginning. Whoever goes on from the last cursor that they saw, after whatever
//! interruption, misses nothing and sees nothing twice. Of several functions the header is `x-kiln-time-ms`, the time at the
//! beginning: one goes on behind the last cursor of each function, and by `since_ms` in those of which one has seen none, or too
//! many to say, and passes over what one has seen: of one function, later cursors are greater.
//!
//! The disk is read on threads that may block, a block ahead of the caller and no more.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use http_body_util::Either;
use hyper::body::{Body, Frame};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tracing::warn;

use super::{Reply, message, not_found, reply};
use crate::function::FunctionName;
use crate::server::http::Stop;
use crate::server::logs::LogStore;
use crate::server::logs::store::merge::{Merge, What, Whose};
use crate::server::logs::store::reader::{Query, Reader};
use crate::server::logs::store::record;
use crate::server::logs::store::segments::Position;

/// Readers at once: each may have a thread and a block in memory.
const MAX_READERS: usize = 64;
/// What a search from the end may find: each costs memory until it is sent.
const MAX_TAIL: usize = 1 << 20;
/// Of several functions the places are looked for before anything is sent.
const MAX_TAIL_OF_SEVERAL: usize = 1 << 16;

type Known = dyn Fn(&FunctionName) -> bool + Send + Sync;

/// What the door needs of the logs.
pub struct Logs {
    store: LogStore,
    /// Whether there is such a function now.
    known: Box<Known>,
    stop: Stop,
    readers: Arc<Semaphore>,
}

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    query: Query,
    follow: bool,
    functions: BTreeSet<String>,
    /// Where one was in some of several logs.
    places: HashMap<FunctionName, Position>,
}

impl Logs {
    pub fn new(store: LogStore, known: impl Fn(&FunctionName) -> bool + Send + Sync + 'static, stop: Stop) -> Self {
        Self { store, known: Box::new(known), stop, readers: Arc::new(Semaphore::new(MAX_READERS)) }
    }

    pub(super) async fn show(&self, name: &str, query: &str) -> Reply {
        let Some(function) = self.function(name) else { return unknown(name) };
        let asked = match parse(query) {
            Ok(asked) if !asked.functions.is_empty() || !asked.places.is_empty() => {
                return message(StatusCode::BAD_REQUEST, "function, after=NAME@…: the path names one; there is /v1/logs".into());
            }
            Ok(asked) => asked,
            Err(what) => return message(StatusCode::BAD_REQUEST, what),
        };
        let Ok(permit) = self.readers.clone().try_acquire_owned() else { return too_many() };
        // Before the log is looked at, so that nothing written after that look goes unnoticed.
        let written = self.store.written();
        let end = (!asked.follow).then(|| self.store.end(&function));
        let (store, name) = (self.store.clone(), function.clone());
        let reader = match spawn_blocking(move || store.read(&name, asked.query)).await {
            Ok(Ok(reader)) => reader,
            Ok(Err(error)) => return failed(&function, &error),
            Err(error) => return failed(&function, &error.into()),
        };
        let cursor = reader.position();
        let follow = Follow { function, reader, end, written, stop: self.stop.clone(), _permit: permit };
        let mut response = lines(follow);
        if let Ok(cursor) = HeaderValue::from_str(&cursor.to_string()) {
            response.headers_mut().insert("x-kiln-cursor", cursor);
        }
        response
    }

    pub(super) fn show_several(&self, query: &str) -> Reply {
        let asked = match parse(query) {
            Ok(asked) if asked.query.after.is_some() => Err("after: of several functions it must be NAME@CURSOR".to_owned()),
            Ok(asked) if asked.query.tail.is_some() && !asked.places.is_empty() => {
                Err("after: has no meaning beside tail".to_owned())
            }
            Ok(asked) if asked.query.tail.is_some_and(|tail| tail > MAX_TAIL_OF_SEVERAL) => {
                Err(format!("tail: of several functions it must be 0 to {MAX_TAIL_OF_SEVERAL}"))
            }
            other => other,
        };
        let asked = match asked {
            Ok(asked) => asked,
            Err(what) => return message(StatusCode::BAD_REQUEST, what),
        };
        let mut these = BTreeSet::new();
        for name in &asked.functions {
            let Some(function) = self.function(name) else { return unknown(name) };
            these.insert(function);
        }
        let Ok(permit) = self.readers.clone().try_acquire_owned() else { return too_many() };
        let whose = if these.is_empty() { Whose::All } else { Whose::These(these) };
        let (now, written) = (record::millis(SystemTime::now()), self.store.written());
        let merge = self.store.merge(whose, asked.query, asked.places);
        let reading = Several { merge, follow: asked.follow, over: false, written, stop: self.stop.clone(), _permit: permit };
        let mut response = lines(reading);
        response.headers_mut().insert("x-kiln-time-ms", HeaderValue::from(now));
        response
    }

    pub(super) async fn remove(&self, name: &str) -> Reply {
        let Some(function) = self.function(name) else { return unknown(name) };
        self.store.remove(&function).await;
        reply(StatusCode::OK, json!({}))
    }

    /// One that exists, or has a log.
    fn function(&self, name: &str) -> Option<FunctionName> {
        FunctionName::parse(name).ok().filter(|function| (self.known)(function) || self.store.has(function))
    }
}

fn too_many() -> Reply {
    let text = format!("{MAX_READERS} others are reading logs; end one of them");
    message(StatusCode::SERVICE_UNAVAILABLE, text)
}

fn lines(pieces: impl Pieces) -> Reply {
    let mut response = Response::new(Either::Right(Lines::new(pieces)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/jsonl"));
    response
}

fn unknown(name: &str) -> Reply {
    not_found(format!("there is no function {name}, and no log of one"))
}

fn failed(function: &FunctionName, error: &io::Error) -> Reply {
    warn!(%function, %error, "a log could not be read");
    message(StatusCode::INTERNAL_SERVER_ERROR, format!("read the log of {function}: {error}"))
}

fn parse(query: &str) -> Result<Asked, String> {
    let mut asked = Asked::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decoded(value);
        let wrong = |rule: &str| Err(format!("{key}={value:?}: {rule}"));
        match key {
            "tail" => match value.parse() {
                Ok(tail) if tail <= MAX_TAIL => asked.query.tail = Some(tail),
                _ => return wrong(&format!("must be 0 to {MAX_TAIL}")),
            },
            "since_ms" => match value.parse() {
                Ok(since) => asked.query.filter.since_ms = Some(since),
                Err(_) => return wrong("must be milliseconds since 1970"),
            },
            "after" => {
                let (name, cursor) = value.split_once('@').map_or((None, &*value), |(name, cursor)| (Some(name), cursor));
                match (Position::parse(cursor), name.map(FunctionName::parse)) {
                    (Some(after), None) => asked.query.after = Some(after),
                    (Some(after), Some(Ok(function))) => drop(asked.places.insert(function, after)),
                    _ => return wrong("must be a cursor, as an entry bears it, or a function's name, @ and its cursor"),
                }
            }
            "function" => drop(asked.functions.insert(value)),
            "request" => asked.query.filter.request = Some(value.to_ascii_lowercase()),
            "container" => asked.query.filter.container = Some(value),
            "follow" => match value.as_str() {
                "1" | "true" => asked.follow = true,
                "0" | "false" => asked.follow = false,
                _ => return wrong("must be 1 or 0"),
            },
            _ => return Err(format!("{key}: there are tail, since_ms, after, function, request, container and follow")),
        }
    }
    Ok(asked)
}

/// Percent-encoding, as a log stream's name needs it. What is none stays as it is.
pub(super) fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = after.get(..2).and_then(|two| std::str::from_utf8(two).ok()).and_then(|two| u8::from_str_radix(two, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A reading of one function's log under way.
struct Follow {
    function: FunctionName,
    reader: Reader,
    /// Where to stop; `None` for who follows.
    end: Option<Position>,
    written: tokio::sync::watch::Receiver<()>,
    stop: Stop,
    _permit: OwnedSemaphorePermit,
}

impl Follow {
    async fn step(mut self) -> io::Result<Option<(Bytes, Self)>> {
        loop {
            if *self.stop.borrow() || self.end.is_some_and(|end| self.reader.position() >= end) {
                return Ok(None);
            }
            self.written.mark_unchanged();
            let mut reader = self.reader;
            let (back, found) = spawn_blocking(move || {
                let found = reader.read();
                (reader, found)
            })
            .await?;
            self.reader = back;
            let found = found.inspect_err(|error| warn!(function = %self.function, %error, "a log could not be read"))?;
            let mut lines = Vec::new();
            if found.gap {
                lines.extend(gap(&self.function, self.reader.position()));
            }
            for entry in found.entries.iter().filter(|entry| self.end.is_none_or(|end| entry.after <= end)) {
                lines.extend(shown(&self.function, &entry.json, entry.after));
            }
            if !lines.is_empty() {
                return Ok(Some((lines.into(), self)));
            }
            if found.at_end {
                if self.end.is_some() {
                    return Ok(None);
                }
                tokio::select! {
                    changed = self.written.changed() => if changed.is_err() { return Ok(None) },
                    _ = self.stop.wait_for(|stop| *stop) => return Ok(None),
                }
            }
        }
    }
}

/// A reading of several functions' logs under way.
struct Several {
    merge: Merge,
    follow: bool,
    /// What there was at the beginning is sent.
    over: bool,
    written: tokio::sync::watch::Receiver<()>,
    stop: Stop,
    _permit: OwnedSemaphorePermit,
}

impl Several {
    async fn step(mut self) -> io::Result<Option<(Bytes, Self)>> {
        loop {
            if *self.stop.borrow() || self.over {
                return Ok(None);
            }
            self.written.mark_unchanged();
            let mut merge = self.merge;
            let (back, merged) = spawn_blocking(move || {
                let merged = merge.read();
                (merge, merged)
            })
            .await?;
            self.merge = back;
            let merged = merged.inspect_err(|error| warn!(%error, "functions' logs could not be read"))?;
            let mut lines = Vec::new();
            for item in &merged.items {
                lines.extend(match &item.what {
                    What::Entry(entry) => shown(&item.function, &entry.json, entry.after),
                    What::Gap(at) => gap(&item.function, *at),
                });
            }
            self.over = merged.at_end && !self.follow;
            if !lines.is_empty() {
                return Ok(Some((lines.into(), self)));
            }
            if merged.at_end && self.follow {
                tokio::select! {
                    changed = self.written.changed() => if changed.is_err() { return Ok(None) },
                    _ = self.stop.wait_for(|stop| *stop) => return Ok(None),
                }
            }
        }
    }
}

/// A record with what is not in its file. Every record is an object, and none is empty.
fn shown(function: &FunctionName, json: &[u8], after: Position) -> Vec<u8> {
    let mut line = format!(r#"{{"cursor":"{after}","function":"{function}","#).into_bytes();
    line.extend_from_slice(json.strip_prefix(b"{").unwrap_or(json));
    line.push(b'\n');
    line
}

fn gap(function: &FunctionName, at: Position) -> Vec<u8> {
    let text = "KILN: lines may be missing here: older ones were removed before they were read";
    let notice = json!({ "time_ms": 0, "kind": "notice", "version": "", "stream": "", "line": text });
    shown(function, notice.to_string().as_bytes(), at)
}

/// Pieces of an answer, one after the other.
pub(super) trait Pieces: Send + Sized + 'static {
    /// The next piece, and itself for those after it. `None`: there are no more.
    fn step(self) -> impl Future<Output = io::Result<Option<(Bytes, Self)>>> + Send;
}

impl Pieces for Follow {
    async fn step(self) -> io::Result<Option<(Bytes, Self)>> {
        Self::step(self).await
    }
}

impl Pieces for Several {
    async fn step(self) -> io::Result<Option<(Bytes, Self)>> {
        Self::step(self).await
    }
}

type Step = Pin<Box<dyn Future<Output = io::Result<Option<(Bytes, Next)>>> + Send>>;
struct Next(Box<dyn FnOnce() -> Step + Send>);

fn step(pieces: impl Pieces) -> Step {
    Box::pin(async move {
        let next = |pieces| Next(Box::new(move || step(pieces)));
        Ok(pieces.step().await?.map(|(piece, rest)| (piece, next(rest))))
    })
}

/// The body of an answer: pieces as they are read.
pub struct Lines(Option<Step>);

impl Lines {
    pub(super) fn new(pieces: impl Pieces) -> Self {
        Self(Some(step(pieces)))
    }
}

impl Body for Lines {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let Some(step) = &mut self.0 else { return Poll::Ready(None) };
        let Poll::Ready(done) = step.as_mut().poll(cx) else { return Poll::Pending };
        Poll::Ready(match done {
            Ok(Some((lines, next))) => {
                self.0 = Some((next.0)());
                Some(Ok(Frame::data(lines)))
            }
            Ok(None) => {
                self.0 = None;
                None
            }
            Err(error) => {
                self.0 = None;
                Some(Err(error))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::logs::store::reader::Filter;

    #[test]
    fn a_query_is_read_whole_or_refused() {
        let asked = parse("tail=5&since_ms=7&request=ABC&container=2026/01/01/%5b$LATEST%5dab&after=12:34&follow=1").unwrap();
        let filter = Filter { since_ms: Some(7), request: Some("abc".into()), container: Some("2026/01/01/[$LATEST]ab".into()) };
        let query = Query { tail: Some(5), after: Some(Position { segment: 12, offset: 34 }), filter };
        assert_eq!(asked, Asked { query, follow: true, ..Asked::default() });
        assert_eq!(parse("function=b&function=a&function=b").unwrap().functions, BTreeSet::from(["a".into(), "b".into()]));
        let at = |segment, offset| Position { segment, offset };
        let places = [("f", at(12, 34)), ("g", at(5, 6))].map(|(name, at)| (FunctionName::parse(name).unwrap(), at));
        assert_eq!(parse("after=f@12:34&after=g%405:6").unwrap(), Asked { places: places.into(), ..Asked::default() });
        for wrong in ["tail=x", "tail=1048577", "since_ms=-1", "after=1", "after=f@1", "after=a b@1:1", "follow=yes", "fellow=1"]
        {
            assert!(parse(wrong).unwrap_err().contains(wrong.split('=').next().unwrap()), "{wrong}");
        }
    }
}
