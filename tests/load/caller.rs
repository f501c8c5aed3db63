//! A caller that believes nothing: HTTP/1.1 over a Unix socket, read to the last byte.
//!
//! An answer is whole or it is none; what comes behind the last one is a second answer, and a fault. So nobody's library decides
//! here what to overlook.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use crate::record::{Fate, Reply};

/// A connection that serves one request after the other.
pub struct Line {
    stream: UnixStream,
    /// Read, and not yet taken.
    bytes: Vec<u8>,
}

/// What is in the way of an answer.
enum Broken {
    Ended(String),
    Garbled(String),
}

impl Line {
    pub async fn open(socket: &Path) -> io::Result<Self> {
        loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => return Ok(Self { stream, bytes: Vec::new() }),
                // The listener's queue is full: nothing was sent, so this is nobody's fate yet.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(Duration::from_millis(5)).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// One request and its answer. `last`: the connection ends with it, and nothing may follow.
    pub async fn ask(&mut self, path: &str, body: &[u8], last: bool, patience: Duration) -> Fate {
        match timeout(patience, self.exchange(path, body, last)).await {
            Ok(Ok(reply)) => Fate::Answered(reply),
            Ok(Err(Broken::Ended(how))) => Fate::Cut(how),
            Ok(Err(Broken::Garbled(what))) => Fate::Garbled(what),
            Err(_) => Fate::Silent,
        }
    }

    async fn exchange(&mut self, path: &str, body: &[u8], last: bool) -> Result<Reply, Broken> {
        let connection = if last { "Connection: close\r\n" } else { "" };
        let head = format!("POST {path} HTTP/1.1\r\nHost: kiln\r\n{connection}Content-Length: {}\r\n\r\n", body.len());
        // A server that is killed meanwhile; or it has said something first, which is read below.
        let sent = self.stream.write_all(&[head.as_bytes(), body].concat()).await;
        let reply = match (self.answer().await, sent) {
            (Err(Broken::Ended(how)), Err(error)) => return Err(Broken::Ended(format!("{how}, after {error}"))),
            (reply, _) => reply?,
        };
        if last {
            while self.more().await? {}
        }
        match self.bytes.is_empty() {
            true => Ok(reply),
            false => Err(Broken::Garbled(format!("{} bytes behind the answer: {}", self.bytes.len(), shown(&self.bytes)))),
        }
    }

    /// Head and body, taken from what is read.
    async fn answer(&mut self) -> Result<Reply, Broken> {
        let end = loop {
            if let Some(at) = self.bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break at;
            }
            if !self.more().await? {
                return Err(Broken::Ended(format!("ended after {} bytes", self.bytes.len())));
            }
        };
        let head = String::from_utf8_lossy(&self.bytes[..end]).into_owned();
        let garbled = |what: &str| Broken::Garbled(format!("{what}: {}", shown(head.as_bytes())));
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
        let status = status.ok_or_else(|| garbled("no status line"))?;
        let headers: Vec<(String, &str)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim()))
            .collect();
        let header = |name: &str| headers.iter().find(|(known, _)| known == name).map(|(_, value)| (*value).to_owned());
        let length = header("content-length").and_then(|text| text.parse::<usize>().ok());
        let length = length.ok_or_else(|| garbled("no length"))?;
        while self.bytes.len() < end + 4 + length {
            if !self.more().await? {
                return Err(Broken::Ended(format!("ended in the body, after {} bytes", self.bytes.len())));
            }
        }
        let body = self.bytes.drain(..end + 4 + length).skip(end + 4).collect::<Vec<u8>>();
        let json: Option<Value> = serde_json::from_slice(&body).ok();
        let Some(request) = header("x-amzn-requestid") else { return Err(garbled("no request id")) };
        let failed = header("x-amz-function-error").is_some();
        let Some(json) = json.or((status != 200 && body.is_empty()).then_some(Value::Null)) else {
            return Err(Broken::Garbled(format!("status {status}, no JSON: {}", shown(&body))));
        };
        let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
        let message = text("errorMessage");
        // A handler that fails tells of itself in its message.
        let told = match failed {
            true => serde_json::from_str(&message).ok(),
            false if status == 200 => serde_json::from_value(json.clone()).ok(),
            false => None,
        };
        Ok(Reply {
            status,
            request,
            refusal: header("x-amzn-errortype"),
            error: failed.then(|| text("errorType")),
            reason: json["Reason"].as_str().map(str::to_owned),
            message,
            told,
        })
    }

    async fn more(&mut self) -> Result<bool, Broken> {
        match self.stream.read_buf(&mut self.bytes).await {
            Ok(read) => Ok(read > 0),
            Err(error) => Err(Broken::Ended(error.to_string())),
        }
    }
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "HTTP/1.1 200 OK\r\nx-amzn-requestid: r\r\n";
    const LONG: Duration = Duration::from_secs(60);

    /// What a caller makes of these bytes.
    fn fate(bytes: &str) -> Fate {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (stream, mut server) = UnixStream::pair().unwrap();
            let mut line = Line { stream, bytes: Vec::new() };
            server.write_all(bytes.as_bytes()).await.unwrap();
            let mut asked = vec![0; 1000];
            let ((), fate) = tokio::join!(
                async {
                    while !asked.ends_with(b"{}") {
                        let read = server.read(&mut asked).await.unwrap();
                        asked.truncate(read);
                    }
                    drop(server);
                },
                line.ask("/", b"{}", true, LONG)
            );
            fate
        })
    }

    #[test]
    fn one_whole_answer_is_one() {
        let Fate::Answered(reply) = fate(&format!("{HEAD}Content-Length: 11\r\n\r\n{{\"nonce\":1}}")) else { panic!("not one") };
        assert!((reply.status, reply.request.as_str(), reply.is_success()) == (200, "r", true));
    }

    #[test]
    fn two_answers_half_of_one_and_none_are_told_apart() {
        let whole = format!("{HEAD}Content-Length: 2\r\n\r\n{{}}");
        assert!(matches!(fate(&format!("{whole}{whole}")), Fate::Garbled(what) if what.contains("behind the answer")));
        assert!(matches!(fate(&format!("{HEAD}Content-Length: 9\r\n\r\n{{}}")), Fate::Cut(how) if how.contains("in the body")));
        assert!(matches!(fate(HEAD), Fate::Cut(_)));
        assert!(matches!(fate(""), Fate::Cut(_)));
        assert!(
            matches!(fate("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"), Fate::Garbled(what) if what.contains("request id"))
        );
        assert!(matches!(fate(&format!("{HEAD}Content-Length: 2\r\n\r\n{{x")), Fate::Garbled(what) if what.contains("no JSON")));
    }
}
