//! The smallest HTTP client that a test needs: one request on one Unix connection, blocking.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use base64::Engine as _;
use serde_json::{Value, json};

pub struct Api {
    socket: PathBuf,
}

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Api {
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    #[track_caller]
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        match self.try_request(method, path, headers, body) {
            Ok(answer) => answer,
            Err(error) => panic!("{method} {path} on {}: {error}", self.socket.display()),
        }
    }

    pub fn try_request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Answer> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(super::patience() * 2))?;
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nHost: kiln\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(head.as_bytes())?;
        stream.write_all(b"\r\n")?;
        // The server may refuse a body before it has read it all; its answer counts, not the broken pipe.
        let _ = stream.write_all(body);
        read_answer(BufReader::new(stream))
    }

    /// Creates a function and waits until it is Active.
    #[track_caller]
    pub fn create(&self, name: &str, runtime: &str, handler: &str, zip: &[u8], settings: &Value) {
        let mut body = json!({
            "FunctionName": name, "Runtime": runtime, "Handler": handler, "Role": "arn:aws:iam::000000000000:role/test",
            "Code": { "ZipFile": base64::engine::general_purpose::STANDARD.encode(zip) },
        });
        for (key, value) in settings.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        // A short one is what the test is about.
        let (seconds, slower) = (body["Timeout"].as_u64(), u64::from(super::slower()));
        if seconds.is_none_or(|seconds| seconds >= 10) && slower > 1 {
            body["Timeout"] = json!((seconds.unwrap_or(3) * slower).min(900));
        }
        let answer = self.request("POST", "/2015-03-31/functions", &[], body.to_string().as_bytes());
        assert_eq!(answer.status, 201, "create {name}: {}", answer.text());
        super::eventually("the function is Active", || self.configuration(name)["State"] == "Active");
    }

    #[track_caller]
    pub fn configuration(&self, name: &str) -> Value {
        let answer = self.request("GET", &format!("/2015-03-31/functions/{name}"), &[], b"");
        assert_eq!(answer.status, 200, "get {name}: {}", answer.text());
        answer.json()["Configuration"].clone()
    }

    /// Invokes with the log's tail.
    #[track_caller]
    pub fn invoke(&self, name: &str, payload: &[u8]) -> Answer {
        self.request("POST", &format!("/2015-03-31/functions/{name}/invocations"), &[("X-Amz-Log-Type", "Tail")], payload)
    }

    /// Invokes and expects the function's own answer.
    #[track_caller]
    pub fn call(&self, name: &str, event: &Value) -> Value {
        let answer = self.invoke(name, event.to_string().as_bytes());
        let (failed, text) = (answer.header("x-amz-function-error"), answer.text());
        assert!(answer.status == 200 && failed.is_none(), "invoke {name} {event}: {} {text}\n{}", answer.status, answer.log());
        answer.json()
    }

    /// The pool as people on duty see it, by their door.
    #[track_caller]
    pub fn pool(&self) -> Value {
        let answer = self.request("GET", "/v1/pool", &[], b"");
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// How many environments are in this state: "busy", "idle", "initialising".
    #[track_caller]
    pub fn environments(&self, state: &str) -> usize {
        let pool = self.pool();
        pool["environments"].as_array().into_iter().flatten().filter(|environment| environment["state"] == state).count()
    }
}

fn read_answer(mut from: impl BufRead) -> io::Result<Answer> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut line = String::new();
    from.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| bad(&format!("status line {line:?}")))?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        match line.trim_end() {
            "" => break,
            header => {
                let (name, value) = header.split_once(':').ok_or_else(|| bad("a header without colon"))?;
                headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
    }
    let find = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let mut body = Vec::new();
    if find("transfer-encoding") == Some("chunked") {
        loop {
            let mut size = String::new();
            from.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim(), 16).map_err(|_| bad("a chunk's size"))?;
            let mut chunk = vec![0; size + 2];
            from.read_exact(&mut chunk)?;
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = find("content-length") {
        body = vec![0; length.parse().map_err(|_| bad("content-length"))?];
        from.read_exact(&mut body)?;
    } else {
        from.read_to_end(&mut body)?;
    }
    Ok(Answer { status, headers, body })
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text()))
    }

    /// The decoded `X-Amz-Log-Result`.
    pub fn log(&self) -> String {
        let bytes = self.header("x-amz-log-result").map(|text| base64::engine::general_purpose::STANDARD.decode(text));
        bytes.and_then(Result::ok).map_or_else(String::new, |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    pub fn request_id(&self) -> &str {
        self.header("x-amzn-requestid").unwrap_or_default()
    }

    /// One field of the REPORT line, such as "Max Memory Used".
    pub fn report(&self, field: &str) -> Option<String> {
        let log = self.log();
        let line = log.lines().find(|line| line.starts_with("REPORT "))?;
        line.split('\t').find_map(|part| part.strip_prefix(field)?.strip_prefix(": ").map(str::to_owned))
    }

    /// A number from the REPORT line, without its unit.
    #[track_caller]
    pub fn report_number(&self, field: &str) -> f64 {
        let text = self.report(field).unwrap_or_else(|| panic!("no {field:?} in\n{}", self.log()));
        text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{field}: {text}"))
    }
}
