//! The Runtime API's client: one request at a time on one connection, head and body in one write.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

const PREFIX: &str = "/2018-06-01/runtime";

pub struct RuntimeApi {
    pub address: String,
    connection: Option<Connection>,
}

pub struct Invocation {
    pub id: String,
    pub headers: Vec<(String, String)>,
    pub event: Vec<u8>,
}

pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl RuntimeApi {
    pub fn new(address: String) -> Self {
        Self { address, connection: None }
    }

    pub fn next(&mut self) -> io::Result<Invocation> {
        let reply = self.send("GET", &format!("{PREFIX}/invocation/next"), &[], b"")?;
        if reply.status != 200 {
            return Err(io::Error::other(format!("status {}", reply.status)));
        }
        let id = reply.header("Lambda-Runtime-Aws-Request-Id").unwrap_or_default().to_owned();
        Ok(Invocation { id, headers: reply.headers, event: reply.body })
    }

    pub fn respond(&mut self, id: &str, body: &[u8]) -> io::Result<u16> {
        let headers = [("Content-Type", "application/json")];
        Ok(self.send("POST", &response_path(id), &headers, body)?.status)
    }

    pub fn error(&mut self, id: &str, kind: &str, message: &str) -> io::Result<u16> {
        self.post_error(&format!("{PREFIX}/invocation/{id}/error"), kind, message)
    }

    pub fn init_error(&mut self, kind: &str, message: &str) -> io::Result<u16> {
        self.post_error(&format!("{PREFIX}/init/error"), kind, message)
    }

    fn post_error(&mut self, path: &str, kind: &str, message: &str) -> io::Result<u16> {
        let body = serde_json::json!({ "errorMessage": message, "errorType": kind, "stackTrace": [] }).to_string();
        let headers = [("Lambda-Runtime-Function-Error-Type", kind), ("Content-Type", "application/json")];
        Ok(self.send("POST", path, &headers, body.as_bytes())?.status)
    }

    /// Any request. A connection that the server has closed meanwhile is replaced once.
    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Reply> {
        let message = message(method, path, &self.address, headers, body);
        if let Some(connection) = &mut self.connection {
            if let Ok(reply) = connection.exchange(&message) {
                return Ok(reply);
            }
        }
        let connection = self.connection.insert(Connection::open(&self.address)?);
        connection.exchange(&message)
    }
}

pub fn response_path(id: &str) -> String {
    format!("{PREFIX}/invocation/{id}/response")
}

pub fn message(method: &str, path: &str, host: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: probe\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if method == "POST" {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// One TCP connection, read as HTTP/1.1 with Content-Length.
pub struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    pub fn open(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    pub fn stream(&mut self) -> &mut TcpStream {
        self.reader.get_mut()
    }

    pub fn exchange(&mut self, message: &[u8]) -> io::Result<Reply> {
        self.stream().write_all(message)?;
        self.reply()
    }

    /// Reads one reply, an interim one (100) too.
    pub fn reply(&mut self) -> io::Result<Reply> {
        let start = self.line()?;
        let status = start.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("not a status line: {start:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            match line.split_once(':') {
                Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
                None => break,
            }
        }
        let mut reply = Reply { status, headers, body: Vec::new() };
        let length: usize = reply.header("Content-Length").and_then(|length| length.parse().ok()).unwrap_or(0);
        reply.body.resize(length, 0);
        self.reader.read_exact(&mut reply.body)?;
        Ok(reply)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}
