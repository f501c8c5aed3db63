//! The doors, from outside: bytes through a real Unix socket, and what Lambda's clients would make of the answers.

mod concurrency;
#[path = "../doors/mod.rs"]
mod doors;
mod invoking;
mod layers;
mod managing;
mod mistakes;
mod on_duty;
mod told;
mod who;
mod zips;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use doors::{FUNCTIONS, House, call, create};

const ARN: &str = "arn:aws:lambda:us-east-1:000000000000:function";

fn function(name: &str) -> String {
    format!("{FUNCTIONS}/{name}")
}

fn invocations(name: &str) -> String {
    format!("{FUNCTIONS}/{name}/invocations")
}

#[tokio::test]
async fn stopping_lets_running_requests_finish_and_takes_no_more() {
    let mut house = House::open();
    create(&house, "slow").await;
    let path = invocations("slow");
    let running = call(&house, "POST", &path, "");
    let meanwhile = async {
        while house.fakes.invocations.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        house.stop();
    };
    let (reply, ()) = tokio::join!(running, meanwhile);
    assert_eq!((reply.status, &reply.body[..]), (200, &b"late"[..]));
    house.closed();
    let refused = UnixStream::connect(house.socket()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

/// Bytes as they are, and what comes back before the connection is closed.
fn raw(house: &House, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(house.socket()).unwrap();
    // A refusal may close the connection while we still write.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn what_is_not_http_or_too_much_of_it_is_refused_and_the_door_stays_open() {
    let house = House::open();
    let long_header = format!("GET / HTTP/1.1\r\nhost: x\r\nlong: {}\r\n\r\n", "x".repeat(64 << 10));
    let many_headers = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(500));
    let two_lengths = "POST /2015-03-31/functions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello";
    for (bytes, status) in [
        ("\0\0\0\0\r\n\r\n", "400"),
        ("GET / HTTP/9.9\r\n\r\n", "400"),
        (long_header.as_str(), "431"),
        (many_headers.as_str(), "431"),
        (two_lengths, "400"),
    ] {
        let answer = raw(&house, bytes.as_bytes());
        assert_eq!(answer.split(' ').nth(1), Some(status), "{bytes:.80?}: {answer:?}");
    }
    let answer = raw(&house, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}
