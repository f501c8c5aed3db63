//! A plain HTTP client for tests: what comes back, byte by byte.

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Response {
    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        let row = self.head.lines().find_map(|line| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)));
        row.unwrap_or_else(|| panic!("no {name} in {}", self.head)).1
    }
}

pub async fn read_response(connection: &mut TcpStream) -> Response {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await.expect("the server closed the connection"));
    }
    let head = String::from_utf8(head).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut response = Response { status, head, body: Vec::new() };
    response.body = vec![0; response.header("content-length").parse().unwrap()];
    connection.read_exact(&mut response.body).await.unwrap();
    response
}
