//! As much of an HTTP client as the tests need.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use super::{Node, PATIENCE};

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
    stream.set_read_timeout(Some(PATIENCE)).expect("a time");
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let status = answer.get(9..12).and_then(|status| status.parse().ok());
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
    Answer { status: status.expect("a status"), body: body.to_owned() }
}

/// A figure of a node's `/metrics`, by its whole name.
pub fn figure(node: &Node, name: &str) -> f64 {
    figure_at(node.http(), name)
}

/// The same of any server, by its address.
pub fn figure_at(http: &str, name: &str) -> f64 {
    let text = get(http, "/metrics").body;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().expect("a number")
}

/// A kept-alive connection that speaks HTTP/1.1 in JSON.
#[derive(Debug)]
pub struct Http {
    stream: BufReader<TcpStream>,
    token: Option<String>,
}

/// What a server answered in full.
#[derive(Debug)]
pub struct Full {
    /// The status.
    pub status: u16,
    /// The head in lower case.
    pub head: String,
    /// The body; null if it is no JSON.
    pub json: Value,
}

impl Http {
    /// A connection to `http://HOST:PORT` or `ws://HOST:PORT/PATH`.
    pub fn connect(url: &str) -> Http {
        let (_, rest) = url.split_once("://").expect("an address");
        let addr = rest.split('/').next().expect("an address");
        let stream = TcpStream::connect(addr).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(90))).expect("a time");
        stream.set_nodelay(true).expect("a socket");
        Http { stream: BufReader::new(stream), token: None }
    }

    /// The same, with a token in each request.
    #[must_use]
    pub fn token(mut self, token: &str) -> Http {
        self.token = Some(token.to_owned());
        self
    }

    /// Asks.
    pub fn get(&mut self, path: &str) -> Full {
        self.ask("GET", path, "", None)
    }

    /// Asks with a body.
    pub fn post(&mut self, path: &str, body: &Value) -> Full {
        self.ask("POST", path, "", Some(&body.to_string()))
    }

    /// Asks with further lines of the head (each with its end), and maybe a body.
    pub fn ask(&mut self, method: &str, path: &str, headers: &str, body: Option<&str>) -> Full {
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\n{headers}");
        if let Some(token) = &self.token {
            request.push_str(&format!("authorization: Bearer {token}\r\n"));
        }
        if let Some(body) = body {
            let length = body.len();
            request.push_str("content-type: application/json\r\n");
            request.push_str(&format!("content-length: {length}\r\n\r\n{body}"));
        } else {
            request.push_str("\r\n");
        }
        self.write(request.as_bytes());
        self.answer()
    }

    /// Writes bytes as they are. The server may have closed already.
    pub fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.get_mut().write_all(bytes);
    }

    /// A line of what comes, with its end; empty at the end of the stream.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("a line");
        line
    }

    /// Reads the head of an answer, in lower case.
    pub fn head(&mut self) -> String {
        let mut head = String::new();
        loop {
            let line = self.line();
            assert!(!line.is_empty(), "the stream ended within a head: {head}");
            if line == "\r\n" {
                return head;
            }
            head.push_str(&line.to_ascii_lowercase());
        }
    }

    /// Reads an answer that has a length or comes in chunks.
    pub fn answer(&mut self) -> Full {
        let head = self.head();
        let status = head.get(9..12).and_then(|status| status.parse().ok()).expect("a status");
        if head.contains("transfer-encoding: chunked") {
            let body = self.chunks();
            return Full { status, head, json: serde_json::from_slice(&body).unwrap_or_default() };
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |length| length.parse().expect("a length"));
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).expect("a body");
        Full { status, head, json: serde_json::from_slice(&body).unwrap_or(Value::Null) }
    }

    /// Reads chunks to their end.
    fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let length = self.line();
            let length = usize::from_str_radix(length.trim_end(), 16).expect("a chunk's length");
            let from = body.len();
            body.resize(from + length + 2, 0);
            self.stream.read_exact(&mut body[from..]).expect("a chunk");
            body.truncate(from + length);
            if length == 0 {
                return body;
            }
        }
    }
}

impl Full {
    /// The name of the problem; empty if it is none.
    pub fn problem(&self) -> &str {
        self.json["name"].as_str().unwrap_or_default()
    }
}
