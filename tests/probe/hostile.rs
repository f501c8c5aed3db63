//! HTTP as no client should speak it, one case for each event: `{"do": "hostile", "case": …}`.
//!
//! A report is `{"case", "statuses": […]}`; where a connection was closed or broke, the error stands in the place of a
//! status. Cases marked "answers" end the invocation themselves; their report is logged and told by the next `report`.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::behave::Answer;
use crate::client::{Connection, RuntimeApi, message, response_path};

/// Lambda's limit for a response: 6 MiB and 100 bytes.
const LIMIT: usize = 6_291_556;
/// No case waits longer for the server.
const PATIENCE: Duration = Duration::from_secs(20);

pub fn case(api: &mut RuntimeApi, id: &str, event: &Value) -> Answer {
    let case = event["case"].as_str().unwrap_or_default().to_owned();
    let amount = |or: u64| event["n"].as_u64().unwrap_or(or) as usize;
    let hostile = Hostile { address: api.address.clone(), id: id.to_owned() };
    let (statuses, answers) = match case.as_str() {
        "headers" => (hostile.header_block(amount(2 << 20)), false),
        "many_headers" => (hostile.many_headers(amount(1000)), false),
        "slow" => (hostile.slow(amount(8)), false),
        "connections" => (hostile.connections(amount(40)), false),
        "garbage" => (vec![hostile.raw(b"\x16\x03\x01\x02\x00 no HTTP at all\r\n\r\n")], false),
        "unknown_path" => (vec![hostile.plain("GET", "/2018-06-01/runtime/nothing", b"")], false),
        "wrong_method" => (vec![hostile.plain("DELETE", "/2018-06-01/runtime/invocation/next", b"")], false),
        "late_init_error" => (vec![hostile.plain("POST", "/2018-06-01/runtime/init/error", b"{}")], false),
        "wrong_id" => (vec![hostile.plain("POST", &response_path("00000000-0000-0000-0000-000000000000"), b"{}")], false),
        "next_again" => (vec![hostile.next_again()], false),
        "pipelined" => (hostile.pipelined(), false),
        "short_body" => (vec![hostile.short_body()], false),
        "two_lengths" => (vec![hostile.two_lengths()], false),
        "double" => (vec![hostile.respond(b"\"first\""), hostile.respond(b"\"second\"")], true),
        "trailers" => (vec![hostile.trailers()], true),
        "expect" => (hostile.expect(), true),
        "limit" => (vec![hostile.respond(&vec![b'1'; LIMIT])], true),
        "over" => (vec![hostile.respond(&vec![b'1'; LIMIT + 1]), hostile.respond(b"\"after\"")], true),
        unknown => return Answer::Error { kind: "Probe.Unknown".into(), message: format!("no hostile case {unknown:?}") },
    };
    let report = json!({ "case": case, "statuses": statuses });
    if answers { Answer::Given(report) } else { Answer::Json(report) }
}

struct Hostile {
    address: String,
    id: String,
}

impl Hostile {
    fn open(&self) -> io::Result<Connection> {
        let mut connection = Connection::open(&self.address)?;
        connection.stream().set_read_timeout(Some(PATIENCE))?;
        connection.stream().set_write_timeout(Some(PATIENCE))?;
        Ok(connection)
    }

    /// Sends bytes as they are on a connection of their own. A server may answer and close before it has read all of
    /// them, so that writing fails and an answer is there all the same.
    fn raw(&self, bytes: &[u8]) -> Value {
        told(self.open().and_then(|mut connection| {
            let written = connection.stream().write_all(bytes);
            match (connection.reply(), written) {
                (Ok(reply), _) => Ok(reply.status),
                (Err(_), Err(error)) | (Err(error), Ok(())) => Err(error),
            }
        }))
    }

    fn plain(&self, method: &str, path: &str, body: &[u8]) -> Value {
        self.raw(&message(method, path, &self.address, &[], body))
    }

    fn respond(&self, body: &[u8]) -> Value {
        self.plain("POST", &response_path(&self.id), body)
    }

    fn header_block(&self, bytes: usize) -> Vec<Value> {
        let line = format!("X-Long: {}", "x".repeat(bytes));
        vec![self.raw(format!("GET /2018-06-01/ping HTTP/1.1\r\nHost: probe\r\n{line}\r\n\r\n").as_bytes())]
    }

    fn many_headers(&self, count: usize) -> Vec<Value> {
        let lines: String = (0..count).map(|i| format!("X-{i}: x\r\n")).collect();
        vec![self.raw(format!("GET /2018-06-01/ping HTTP/1.1\r\nHost: probe\r\n{lines}\r\n").as_bytes())]
    }

    /// One byte each 100 ms for so many seconds, never a whole head; tells after how long the server had enough.
    fn slow(&self, seconds: usize) -> Vec<Value> {
        let begin = Instant::now();
        let mut connection = match self.open() {
            Ok(connection) => connection,
            Err(error) => return vec![json!(error.to_string())],
        };
        let stream: &mut TcpStream = connection.stream();
        let endless = b"GET / HTTP/1.1\r\nX-Slow: ".iter().copied().chain(std::iter::repeat(b'x'));
        for byte in endless.take(seconds * 10) {
            if stream.write_all(&[byte]).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
        let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
        let ended = match stream.read(&mut [0; 512]) {
            Ok(0) => "closed".to_owned(),
            Ok(_) => "answered".to_owned(),
            Err(error) => error.to_string(),
        };
        vec![json!({ "end": ended, "after_ms": begin.elapsed().as_millis() as u64 })]
    }

    /// All opened before the first is used.
    fn connections(&self, count: usize) -> Vec<Value> {
        let ping = message("GET", "/2018-06-01/ping", &self.address, &[], b"");
        let open: Vec<_> = (0..count).map(|_| self.open()).collect();
        let ask = |connection: io::Result<Connection>| {
            let mut connection = connection?;
            connection.stream().set_read_timeout(Some(Duration::from_secs(1)))?;
            let status = connection.exchange(&ping)?.status;
            Ok((connection, status))
        };
        // Kept until the last has been asked.
        let answered: Vec<io::Result<(Connection, u16)>> = open.into_iter().map(ask).collect();
        answered.into_iter().map(|one| told(one.map(|(_, status)| status))).collect()
    }

    /// While an invocation runs, `next` gives the same one again.
    fn next_again(&self) -> Value {
        let next = message("GET", "/2018-06-01/runtime/invocation/next", &self.address, &[], b"");
        match self.open().and_then(|mut connection| connection.exchange(&next)) {
            Ok(reply) => {
                json!({ "status": reply.status, "same": reply.header("Lambda-Runtime-Aws-Request-Id") == Some(&self.id) })
            }
            Err(error) => json!(error.to_string()),
        }
    }

    fn pipelined(&self) -> Vec<Value> {
        let ping = message("GET", "/2018-06-01/ping", &self.address, &[], b"");
        let Ok(mut connection) = self.open() else { return vec![json!("not connected")] };
        if let Err(error) = connection.stream().write_all(&[ping.as_slice(), &ping].concat()) {
            return vec![json!(error.to_string())];
        }
        (0..2).map(|_| told(connection.reply().map(|reply| reply.status))).collect()
    }

    fn short_body(&self) -> Value {
        let head = format!("POST {} HTTP/1.1\r\nHost: probe\r\nContent-Length: 100\r\n\r\nshort", response_path(&self.id));
        told(self.open().and_then(|mut connection| {
            connection.stream().write_all(head.as_bytes())?;
            connection.stream().shutdown(Shutdown::Write)?;
            Ok(connection.reply()?.status)
        }))
    }

    /// How requests are smuggled.
    fn two_lengths(&self) -> Value {
        let path = response_path(&self.id);
        self.raw(format!("POST {path} HTTP/1.1\r\nHost: probe\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}x").as_bytes())
    }

    /// As Go's client sends it.
    fn trailers(&self) -> Value {
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: probe\r\nTransfer-Encoding: chunked\r\nTrailer: Lambda-Runtime-Function-Error-Type\r\n\r\n",
            response_path(&self.id)
        );
        self.raw(format!("{head}8\r\n\"chunked\r\n1\r\n\"\r\n0\r\nLambda-Runtime-Function-Error-Type: \r\n\r\n").as_bytes())
    }

    /// As libcurl sends it: the body waits for "100 Continue".
    fn expect(&self) -> Vec<Value> {
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: probe\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n",
            response_path(&self.id)
        );
        let Ok(mut connection) = self.open() else { return vec![json!("not connected")] };
        let interim = connection.exchange(head.as_bytes()).map(|reply| reply.status);
        let continues = matches!(interim, Ok(100));
        let mut statuses = vec![told(interim)];
        if continues {
            statuses.push(told(connection.exchange(b"1234").map(|reply| reply.status)));
        }
        statuses
    }
}

fn told(status: io::Result<u16>) -> Value {
    status.map_or_else(|error| json!(error.to_string()), |status| json!(status))
}
