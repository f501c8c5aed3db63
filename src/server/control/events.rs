//! What happens, for people on duty: `GET /v1/events`, a JSON object on each line.
//!
//! | Query | |
//! |---|---|
//! | `follow=1` | goes on with what happens from now on, until the caller goes away or the server stops |
//! | `tail=N` | begins N events before the end; else with the first that is kept, some thousand before |
//! | `since_seq=N` | begins with this number: whoever goes on from the last they saw, and one, misses nothing that is kept |
//! | `since_ms=T` | of that time (milliseconds since 1970) and later |
//! | `function=F`, `kind=K` | of these functions, of these kinds; each may be said more than once |
//! | `container=ID`, `request=ID` | of one container, of one invocation |
//!
//! Each object is an [event](crate::server::events::Event). A listener that is slower than what happens holds nobody up: in place of
//! what it has lost it gets `{"event": "lost", "lost": N}`. The header `x-kiln-seq` is the number of the next event, `x-kiln-first-seq` that
//! of this server's first one: another one there is another server, which knows nothing of what was before.

use std::io;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::Either;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::logs::{Lines, Pieces, decoded};
use super::{Reply, message};
use crate::function::FunctionName;
use crate::server::events::{Events, Filter, Heard, Listener, What};
use crate::server::http::Stop;

/// Listeners at once: each takes a connection, and the time to write to it.
const MAX_LISTENERS: usize = 64;
/// Events of the past at most, so that nobody keeps the ring for long.
const MAX_TAIL: usize = 1 << 16;

/// What the door needs of the events.
pub struct Happenings {
    events: Events,
    stop: Stop,
    listeners: Arc<Semaphore>,
}

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    filter: Filter,
    follow: bool,
    tail: Option<usize>,
    since_seq: Option<u64>,
}

impl Happenings {
    pub fn new(events: Events, stop: Stop) -> Self {
        Self { events, stop, listeners: Arc::new(Semaphore::new(MAX_LISTENERS)) }
    }

    pub(super) fn show(&self, query: &str) -> Reply {
        let Asked { filter, follow, tail, since_seq } = match parse(query) {
            Ok(asked) => asked,
            Err(what) => return message(StatusCode::BAD_REQUEST, what),
        };
        let Ok(permit) = self.listeners.clone().try_acquire_owned() else {
            let text = format!("{MAX_LISTENERS} others are listening; end one of them");
            return message(StatusCode::SERVICE_UNAVAILABLE, text);
        };
        let (first, next) = self.events.seqs();
        let listener = match (since_seq, tail) {
            (None, Some(tail)) => self.events.listen_tail(tail, filter),
            (since, _) => self.events.listen_since(since, filter),
        };
        let stream = Happening { listener, follow, stop: self.stop.clone(), _permit: permit };
        let mut response = Response::new(Either::Right(Lines::new(stream)));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/jsonl"));
        response.headers_mut().insert("x-kiln-seq", HeaderValue::from(next));
        response.headers_mut().insert("x-kiln-first-seq", HeaderValue::from(first));
        response
    }
}

/// One listener's answer under way.
struct Happening {
    listener: Listener,
    follow: bool,
    stop: Stop,
    _permit: OwnedSemaphorePermit,
}

impl Pieces for Happening {
    async fn step(mut self) -> io::Result<Option<(Bytes, Self)>> {
        loop {
            let heard = match self.listener.heard() {
                Some(heard) => heard,
                None if !self.follow || *self.stop.borrow() => return Ok(None),
                None => tokio::select! {
                    heard = self.listener.next() => heard,
                    // What happened until then is still told.
                    _ = self.stop.wait_for(|stop| *stop) => continue,
                },
            };
            let lines = lines(&heard);
            if !lines.is_empty() {
                return Ok(Some((lines.into(), self)));
            }
            tokio::task::yield_now().await;
        }
    }
}

fn lines(heard: &Heard) -> Vec<u8> {
    let mut lines = Vec::new();
    if heard.lost > 0 {
        lines.extend(json!({ "event": "lost", "lost": heard.lost }).to_string().into_bytes());
        lines.push(b'\n');
    }
    for event in &heard.events {
        // Names, numbers and texts: nothing that JSON could not say.
        if serde_json::to_writer(&mut lines, event).is_ok() {
            lines.push(b'\n');
        }
    }
    lines
}

fn parse(query: &str) -> Result<Asked, String> {
    let mut asked = Asked::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decoded(value);
        let wrong = |rule: &str| Err(format!("{key}={value:?}: {rule}"));
        match key {
            "follow" => match value.as_str() {
                "1" | "true" => asked.follow = true,
                "0" | "false" => asked.follow = false,
                _ => return wrong("must be 1 or 0"),
            },
            "tail" => match value.parse() {
                Ok(tail) if tail <= MAX_TAIL => asked.tail = Some(tail),
                _ => return wrong(&format!("must be 0 to {MAX_TAIL}")),
            },
            "since_seq" => match value.parse() {
                Ok(since) => asked.since_seq = Some(since),
                Err(_) => return wrong("must be a number, as events bear it"),
            },
            "since_ms" => match value.parse().ok().and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms))) {
                Some(since) => asked.filter.since = Some(since),
                None => return wrong("must be milliseconds since 1970"),
            },
            "function" => match FunctionName::parse(&value) {
                Ok(function) => asked.filter.functions.push(function),
                Err(error) => return wrong(&error.to_string()),
            },
            "kind" if What::NAMES.contains(&value.as_str()) => asked.filter.kinds.push(value),
            "kind" => return wrong(&format!("must be one of {}", What::NAMES.join(", "))),
            "container" => asked.filter.container = Some(value),
            "request" => match serde_json::from_value(json!(value)) {
                Ok(request) => asked.filter.request = Some(request),
                Err(_) => return wrong("must be a request id"),
            },
            _ => {
                return Err(format!("{key}: there are follow, tail, since_seq, since_ms, function, kind, container and request"));
            }
        }
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_whole_or_refused() {
        let asked = parse("follow=1&tail=5&since_seq=7&since_ms=9&function=a&function=b&kind=retired&container=3%2d17").unwrap();
        let name = |text| FunctionName::parse(text).unwrap();
        let filter = Filter {
            functions: vec![name("a"), name("b")],
            container: Some("3-17".into()),
            request: None,
            kinds: vec!["retired".into()],
            since: Some(UNIX_EPOCH + Duration::from_millis(9)),
        };
        assert_eq!(asked, Asked { filter, follow: true, tail: Some(5), since_seq: Some(7) });
        for wrong in [
            "follow=yes",
            "tail=-1",
            "since_seq=x",
            "since_ms=99999999999999999999",
            "function=a%20b",
            "kind=x",
            "request=1",
            "x=1",
        ] {
            assert!(parse(wrong).unwrap_err().contains(wrong.split('=').next().unwrap()), "{wrong}");
        }
    }

    #[test]
    fn every_kind_has_its_name() {
        for name in What::NAMES {
            assert!(parse(&format!("kind={name}")).is_ok(), "{name}");
        }
    }
}
