//! As much of an HTTP client as the tests need.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use super::Node;

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// Asks for `path` at `http://HOST:PORT`.
pub fn get(http: &str, path: &str) -> Answer {
    let addr = http.strip_prefix("http://").expect("an HTTP address");
    let mut stream = TcpStream::connect(addr).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time");
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let status = answer.get(9..12).and_then(|status| status.parse().ok());
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
    Answer { status: status.expect("a status"), body: body.to_owned() }
}

/// A figure of a server's `/metrics`, by its whole name.
pub fn figure(node: &Node, name: &str) -> f64 {
    let text = get(node.http(), "/metrics").body;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().expect("a number")
}
