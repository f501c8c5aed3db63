//! The callers' door with all that lies behind it but containers: any bytes from a caller who may do everything.
//!
//! Bytes go through the real socket into hyper, routes, names, settings, the registry and its database.

#![no_main]

#[path = "../../tests/doors/mod.rs"]
mod doors;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

use doors::House;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

static HOUSE: LazyLock<House> = LazyLock::new(House::open);

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    /// As it is.
    Bytes(&'a [u8]),
    /// A request that gets past the parser of HTTP.
    Request { method: Method, path: Path<'a>, query: Option<&'a str>, headers: Vec<Header<'a>>, body: Body<'a> },
}

#[derive(Debug, Arbitrary)]
enum Method {
    Get,
    Post,
    Put,
    Delete,
}

#[derive(Debug, Arbitrary)]
enum Path<'a> {
    Functions,
    /// A function, and what of it.
    Function(Name<'a>, What<'a>),
    Any(&'a str),
}

#[derive(Debug, Arbitrary)]
enum Name<'a> {
    Hello,
    Other,
    Arn(&'a str),
    Any(&'a str),
}

#[derive(Debug, Arbitrary)]
enum What<'a> {
    Itself,
    Configuration,
    Code,
    Invocations,
    Concurrency,
    Any(&'a str),
}

#[derive(Debug, Arbitrary)]
enum Header<'a> {
    InvocationType(&'a str),
    LogType(&'a str),
    ClientContext(&'a str),
    Trace(&'a str),
    Raw(&'a str),
}

#[derive(Debug, Arbitrary)]
enum Body<'a> {
    Raw(&'a [u8]),
    /// A good CreateFunction with one member replaced, or one more.
    Create {
        name: Name<'a>,
        member: &'a str,
        value: Json<'a>,
    },
    Member {
        member: Member<'a>,
        value: Json<'a>,
    },
}

#[derive(Debug, Arbitrary)]
enum Member<'a> {
    MemorySize,
    Timeout,
    Handler,
    Runtime,
    Role,
    Environment,
    Tags,
    Layers,
    EphemeralStorage,
    RevisionId,
    ZipFile,
    ReservedConcurrentExecutions,
    Any(&'a str),
}

#[derive(Debug, Arbitrary)]
enum Json<'a> {
    Text(&'a str),
    Number(i64),
    List(Vec<&'a str>),
    Map(Vec<(&'a str, &'a str)>),
    Variables(Vec<(&'a str, &'a str)>),
    Size(i64),
    Null,
}

impl Json<'_> {
    fn value(&self) -> Value {
        match self {
            Self::Text(text) => (*text).into(),
            Self::Number(number) => (*number).into(),
            Self::List(list) => list.clone().into(),
            Self::Map(map) => map.iter().copied().collect(),
            Self::Variables(map) => serde_json::json!({ "Variables": map.iter().copied().collect::<Value>() }),
            Self::Size(size) => serde_json::json!({ "Size": size }),
            Self::Null => Value::Null,
        }
    }
}

impl Name<'_> {
    fn text(&self) -> String {
        match self {
            Self::Hello => "hello".to_owned(),
            Self::Other => "other".to_owned(),
            Self::Arn(rest) => format!("arn:aws:lambda:us-east-1:000000000000:function:{rest}"),
            // What the fakes fail for on purpose is none of the fuzzer's.
            Self::Any("broken") => "broken2".to_owned(),
            Self::Any(text) => (*text).to_owned(),
        }
    }
}

impl Member<'_> {
    fn text(&self) -> &str {
        match self {
            Self::MemorySize => "MemorySize",
            Self::Timeout => "Timeout",
            Self::Handler => "Handler",
            Self::Runtime => "Runtime",
            Self::Role => "Role",
            Self::Environment => "Environment",
            Self::Tags => "Tags",
            Self::Layers => "Layers",
            Self::EphemeralStorage => "EphemeralStorage",
            Self::RevisionId => "RevisionId",
            Self::ZipFile => "ZipFile",
            Self::ReservedConcurrentExecutions => "ReservedConcurrentExecutions",
            Self::Any(text) => text,
        }
    }
}

impl Input<'_> {
    fn bytes(&self) -> Vec<u8> {
        let Self::Request { method, path, query, headers, body } = self else {
            let Self::Bytes(bytes) = self else { unreachable!("two variants") };
            return bytes.to_vec();
        };
        let method = match method {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
        };
        let path = match path {
            Path::Functions => doors::FUNCTIONS.to_owned(),
            Path::Function(name, what) => {
                let what = match what {
                    What::Itself => "",
                    What::Configuration => "/configuration",
                    What::Code => "/code",
                    What::Invocations => "/invocations",
                    What::Concurrency => "/concurrency",
                    What::Any(text) => text,
                };
                format!("{}/{}{what}", doors::FUNCTIONS, name.text())
            }
            Path::Any(text) => (*text).to_owned(),
        };
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        let mut request = format!("{method} {path}{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        for header in headers {
            request += &match header {
                Header::InvocationType(text) => format!("X-Amz-Invocation-Type: {text}\r\n"),
                Header::LogType(text) => format!("X-Amz-Log-Type: {text}\r\n"),
                Header::ClientContext(text) => format!("X-Amz-Client-Context: {text}\r\n"),
                Header::Trace(text) => format!("X-Amzn-Trace-Id: {text}\r\n"),
                Header::Raw(line) => format!("{line}\r\n"),
            };
        }
        let body = match body {
            Body::Raw(bytes) => bytes.to_vec(),
            Body::Create { name, member, value } => {
                let changes = serde_json::json!({ *member: value.value() });
                doors::creation(&name.text(), changes).into_bytes()
            }
            Body::Member { member, value } => serde_json::json!({ member.text(): value.value() }).to_string().into_bytes(),
        };
        request += &format!("Content-Length: {}\r\n\r\n", body.len());
        [request.as_bytes(), &body].concat()
    }
}

fuzz_target!(|input: Input| {
    let mut caller = UnixStream::connect(HOUSE.socket()).expect("the door is open");
    // A refusal may close the connection while we still write.
    let _ = caller.write_all(&input.bytes());
    let _ = caller.shutdown(Shutdown::Write);
    let mut answers = Vec::new();
    let _ = caller.read_to_end(&mut answers);
    check(&answers);
});

/// Whatever was asked, the fault is the caller's: a 500 is ours.
fn check(answers: &[u8]) {
    let mut rest = answers;
    while !rest.is_empty() {
        let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") else { panic!("half a head: {}", shown(rest)) };
        let head = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest = &rest[end + 4..];
        let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
        if status == "100" {
            continue;
        }
        let header = |name: &str| {
            let line = head.lines().find_map(|line| line.split_once(':').filter(|(n, _)| n.eq_ignore_ascii_case(name)));
            line.map(|(_, value)| value.trim().to_owned())
        };
        let length: usize = header("content-length").map_or(0, |length| length.parse().expect("a length"));
        assert!(length <= rest.len(), "half a body: {}", shown(answers));
        let (body, behind) = rest.split_at(length);
        rest = behind;
        assert!(!status.starts_with('5'), "{}", shown(answers));
        // hyper's own refusals have no body; all others are Lambda's, with their names.
        if header("x-amzn-requestid").is_some() && status.starts_with('4') {
            let told: Value = serde_json::from_slice(body).unwrap_or_else(|error| panic!("{error}: {}", shown(answers)));
            assert!(header("x-amzn-errortype").is_some(), "{}", shown(answers));
            assert!(told.get("Message").or(told.get("message")).is_some(), "{}", shown(answers));
        }
    }
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned()
}
