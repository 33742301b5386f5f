//! The opening handshake (RFC 6455, section 4): one HTTP request and its answer.

mod client;
mod server;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, BytesMut};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

pub use client::{ClientHandshake, ClientHandshakeError, ClientProgress, ClientRequest};
pub use server::{HandshakeError, PlainRequest, ServerHandshake, ServerProgress, Upgrade};

/// Answers of a server that does not go on to speak WebSocket; all close the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum HttpStatus {
    /// The request is wrong.
    BadRequest = 400,
    /// The origin is not welcome.
    Forbidden = 403,
    /// Nothing is served at this path.
    NotFound = 404,
    /// An upgrade by another method than `GET`.
    MethodNotAllowed = 405,
    /// Only WebSocket of version 13 is spoken here; the answer says so.
    UpgradeRequired = 426,
    /// Too many connections or attempts.
    TooManyRequests = 429,
    /// The head of the request is above the bound.
    HeadTooLarge = 431,
    /// The server drains or is full.
    Unavailable = 503,
}

impl HttpStatus {
    /// The number that travels.
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// Appends the whole response: a status line, `Connection: close`, no body.
    pub fn write_response(self, out: &mut BytesMut) {
        let reason = match self {
            HttpStatus::BadRequest => "Bad Request",
            HttpStatus::Forbidden => "Forbidden",
            HttpStatus::NotFound => "Not Found",
            HttpStatus::MethodNotAllowed => "Method Not Allowed",
            HttpStatus::UpgradeRequired => "Upgrade Required",
            HttpStatus::TooManyRequests => "Too Many Requests",
            HttpStatus::HeadTooLarge => "Request Header Fields Too Large",
            HttpStatus::Unavailable => "Service Unavailable",
        };
        out.put_slice(format!("HTTP/1.1 {} {reason}\r\n", self.number()).as_bytes());
        match self {
            HttpStatus::UpgradeRequired => {
                out.put_slice(b"Upgrade: websocket\r\nConnection: Upgrade, close\r\n");
                out.put_slice(b"Sec-WebSocket-Version: 13\r\n");
            }
            HttpStatus::MethodNotAllowed => {
                out.put_slice(b"Allow: GET\r\nConnection: close\r\n");
            }
            _ => out.put_slice(b"Connection: close\r\n"),
        }
        out.put_slice(b"Content-Length: 0\r\n\r\n");
    }
}

/// Finds the empty line that ends a head, looking at each byte once however slowly it comes.
#[derive(Debug, Default)]
struct HeadScan {
    scanned_bytes: usize,
}

impl HeadScan {
    /// Whether an empty line came among the bytes that were not looked at before.
    fn has_new_end(&mut self, received: &[u8]) -> bool {
        let new = self.scanned_bytes.min(received.len())..received.len();
        self.scanned_bytes = received.len();
        new.into_iter().any(|at| {
            let line = &received[..at];
            received[at] == b'\n' && (line.ends_with(b"\n") || line.ends_with(b"\n\r"))
        })
    }
}

fn accept_key(key: &[u8]) -> String {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat()))
}

/// The values of all headers of this name.
fn values<'h, 'b: 'h>(
    headers: &'h [httparse::Header<'b>],
    name: &'h str,
) -> impl Iterator<Item = &'b [u8]> + 'h {
    headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        .map(|header| header.value.trim_ascii())
}

/// The members of a comma-separated list that may be spread over several headers.
fn members<'h, 'b: 'h>(
    headers: &'h [httparse::Header<'b>],
    name: &'h str,
) -> impl Iterator<Item = &'b [u8]> + 'h {
    values(headers, name)
        .flat_map(|value| value.split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}

fn has_member(headers: &[httparse::Header<'_>], name: &str, member: &str) -> bool {
    members(headers, name).any(|found| found.eq_ignore_ascii_case(member.as_bytes()))
}

/// The value of a header that must not come twice.
fn single<'b>(headers: &[httparse::Header<'b>], name: &str) -> Result<Option<&'b [u8]>, Repeated> {
    let mut values = values(headers, name);
    let first = values.next();
    if values.next().is_some() { Err(Repeated) } else { Ok(first) }
}

struct Repeated;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_the_accept_key_of_the_rfc() {
        assert_eq!(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn the_end_of_a_head_is_found_across_reads() {
        for head in ["A\r\nHost: a\r\n\r\n", "A\nHost: a\n\n", "A\r\nHost: a\n\r\n"] {
            for cut in 0..head.len() {
                let mut scan = HeadScan::default();
                assert!(!scan.has_new_end(&head.as_bytes()[..cut]));
                assert!(scan.has_new_end(head.as_bytes()));
            }
        }
    }

    #[test]
    fn every_status_ends_its_head() {
        let mut out = BytesMut::new();
        HttpStatus::UpgradeRequired.write_response(&mut out);
        assert!(out.starts_with(b"HTTP/1.1 426 Upgrade Required\r\n"));
        assert!(out.ends_with(b"Content-Length: 0\r\n\r\n"));
    }
}
