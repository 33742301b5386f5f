//! The server's side of the handshake.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, BytesMut};
use thiserror::Error;

use super::{HeadScan, HttpStatus, accept_key, has_member, members, single, values};
use crate::limits::{HANDSHAKE_BYTES_MAX, HANDSHAKE_HEADERS_MAX};

/// Reads a client's request.
///
/// ```text
/// read more -> advance(all bytes so far, my subprotocols) -> Incomplete, read more
///                |-> Upgrade: write_response, then feed the decoder from head_bytes on
///                |-> NotWebSocket: HttpStatus::UpgradeRequired, or hand the bytes on
///                '-> error: error.status().write_response, then close
/// ```
#[derive(Debug, Default)]
pub struct ServerHandshake {
    scan: HeadScan,
}

/// How far a request is.
#[derive(Debug)]
pub enum ServerProgress<'s> {
    /// The head has not ended yet.
    Incomplete,
    /// A client that wants to speak WebSocket.
    Upgrade(Upgrade<'s>),
    /// HTTP that does not ask for WebSocket.
    NotWebSocket(PlainRequest),
}

/// A valid request for an upgrade.
#[derive(Debug)]
pub struct Upgrade<'s> {
    /// The request's target: path and query.
    pub path: String,
    /// The header `Host`.
    pub host: String,
    /// The header `Origin`, which browsers send.
    pub origin: Option<String>,
    /// The subprotocol: the first of the client's that the server has. `None`: none in common.
    pub subprotocol: Option<&'s str>,
    /// Length of the request; the bytes after it are frames.
    pub head_bytes: usize,
    accept: String,
}

impl Upgrade<'_> {
    /// Appends the response that agrees.
    pub fn write_response(&self, out: &mut BytesMut) {
        out.put_slice(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n");
        out.put_slice(b"Connection: Upgrade\r\nSec-WebSocket-Accept: ");
        out.put_slice(self.accept.as_bytes());
        if let Some(subprotocol) = self.subprotocol {
            out.put_slice(b"\r\nSec-WebSocket-Protocol: ");
            out.put_slice(subprotocol.as_bytes());
        }
        out.put_slice(b"\r\n\r\n");
    }
}

/// A request that is no upgrade.
#[derive(Debug, PartialEq, Eq)]
pub struct PlainRequest {
    /// Its method.
    pub method: String,
    /// Its target: path and query.
    pub path: String,
    /// Length of its head; a body may follow.
    pub head_bytes: usize,
}

/// Why a request was refused. All of these are the client's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HandshakeError {
    /// Not HTTP/1.
    #[error("the request is not HTTP/1: {0}")]
    Http(httparse::Error),
    /// The head is above [`HANDSHAKE_BYTES_MAX`].
    #[error("the request's head has more than {HANDSHAKE_BYTES_MAX} bytes")]
    HeadTooLong,
    /// More headers than [`HANDSHAKE_HEADERS_MAX`].
    #[error("the request has more than {HANDSHAKE_HEADERS_MAX} headers")]
    TooManyHeaders,
    /// An upgrade by another method than `GET`.
    #[error("an upgrade needs the method GET")]
    Method,
    /// A version of WebSocket other than 13.
    #[error("only version 13 of WebSocket is supported")]
    Version,
    /// A header that is missing, repeated, or has no valid value.
    #[error("the header {0} is missing, repeated or not valid")]
    Header(&'static str),
    /// No subprotocol in common. `advance` never gives it: it is for callers that insist on one.
    #[error("none of the client's subprotocols is supported")]
    NoSubprotocol,
}

impl HandshakeError {
    /// The status to answer with.
    pub const fn status(self) -> HttpStatus {
        match self {
            HandshakeError::HeadTooLong | HandshakeError::TooManyHeaders => {
                HttpStatus::HeadTooLarge
            }
            HandshakeError::Method => HttpStatus::MethodNotAllowed,
            HandshakeError::Version => HttpStatus::UpgradeRequired,
            HandshakeError::Http(_) | HandshakeError::Header(_) | HandshakeError::NoSubprotocol => {
                HttpStatus::BadRequest
            }
        }
    }
}

impl ServerHandshake {
    /// Looks at everything received so far; `subprotocols` are those the server has.
    ///
    /// Cheap however slowly the bytes come: the head is parsed on the first call, which finds
    /// garbage early, and when it is complete.
    pub fn advance<'s>(
        &mut self,
        received: &[u8],
        subprotocols: &[&'s str],
    ) -> Result<ServerProgress<'s>, HandshakeError> {
        let first = self.scan.scanned_bytes == 0;
        let ended = self.scan.has_new_end(received);
        if ended || first {
            let head = &received[..received.len().min(HANDSHAKE_BYTES_MAX)];
            let progress = parse(head, subprotocols)?;
            if !matches!(progress, ServerProgress::Incomplete) {
                return Ok(progress);
            }
        }
        if received.len() >= HANDSHAKE_BYTES_MAX {
            return Err(HandshakeError::HeadTooLong);
        }
        Ok(ServerProgress::Incomplete)
    }
}

fn parse<'s>(head: &[u8], supported: &[&'s str]) -> Result<ServerProgress<'s>, HandshakeError> {
    let mut headers = [httparse::EMPTY_HEADER; HANDSHAKE_HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let head_bytes = match request.parse(head) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) => return Ok(ServerProgress::Incomplete),
        Err(httparse::Error::TooManyHeaders) => return Err(HandshakeError::TooManyHeaders),
        Err(error) => return Err(HandshakeError::Http(error)),
    };
    let method = request.method.unwrap_or_default();
    let path = request.path.unwrap_or_default().to_owned();
    let headers = &*request.headers;
    if !has_member(headers, "Upgrade", "websocket") {
        let method = method.to_owned();
        return Ok(ServerProgress::NotWebSocket(PlainRequest { method, path, head_bytes }));
    }
    if method != "GET" {
        return Err(HandshakeError::Method);
    }
    if request.version != Some(1) {
        return Err(HandshakeError::Http(httparse::Error::Version));
    }
    if !has_member(headers, "Connection", "Upgrade") {
        return Err(HandshakeError::Header("Connection"));
    }
    refuse_body(headers)?;
    if text(headers, "Sec-WebSocket-Version")? != Some("13") {
        return Err(HandshakeError::Version);
    }
    let key = text(headers, "Sec-WebSocket-Key")?
        .filter(|key| STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16))
        .ok_or(HandshakeError::Header("Sec-WebSocket-Key"))?;
    let host = text(headers, "Host")?.ok_or(HandshakeError::Header("Host"))?.to_owned();
    let origin = text(headers, "Origin")?.map(str::to_owned);
    let subprotocol = members(headers, "Sec-WebSocket-Protocol")
        .find_map(|offered| supported.iter().find(|name| name.as_bytes() == offered).copied());
    let accept = accept_key(key.as_bytes());
    Ok(ServerProgress::Upgrade(Upgrade { path, host, origin, subprotocol, head_bytes, accept }))
}

/// A body would be taken for frames.
fn refuse_body(headers: &[httparse::Header<'_>]) -> Result<(), HandshakeError> {
    if values(headers, "Transfer-Encoding").next().is_some() {
        return Err(HandshakeError::Header("Transfer-Encoding"));
    }
    if values(headers, "Content-Length").any(|value| value != b"0") {
        return Err(HandshakeError::Header("Content-Length"));
    }
    Ok(())
}

fn text<'b>(
    headers: &[httparse::Header<'b>],
    name: &'static str,
) -> Result<Option<&'b str>, HandshakeError> {
    let value = single(headers, name).map_err(|_| HandshakeError::Header(name))?;
    let text = value.map(std::str::from_utf8).transpose();
    text.map_err(|_| HandshakeError::Header(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{SUBPROTOCOL_BINARY, SUBPROTOCOL_JSON};

    const RFC_REQUEST: &str = "GET /chat HTTP/1.1\r\nHost: server.example.com\r\n\
        Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://example.com\r\n\
        Sec-WebSocket-Protocol: other, chatring.v1.json\r\n\
        Sec-WebSocket-Protocol: chatring.v1\r\nSec-WebSocket-Version: 13\r\n\r\n";
    const BOTH: &[&str] = &[SUBPROTOCOL_BINARY, SUBPROTOCOL_JSON];

    fn advance(request: &str) -> Result<ServerProgress<'static>, HandshakeError> {
        ServerHandshake::default().advance(request.as_bytes(), BOTH)
    }

    fn error(request: &str) -> HandshakeError {
        advance(request).unwrap_err()
    }

    #[test]
    fn accepts_the_request_of_the_rfc_at_every_cut() {
        let bytes = format!("{RFC_REQUEST}frames");
        for cut in 0..RFC_REQUEST.len() {
            let mut handshake = ServerHandshake::default();
            let early = handshake.advance(&bytes.as_bytes()[..cut], BOTH).unwrap();
            assert!(matches!(early, ServerProgress::Incomplete));
            let ServerProgress::Upgrade(upgrade) =
                handshake.advance(bytes.as_bytes(), BOTH).unwrap()
            else {
                panic!("not accepted, cut at {cut}");
            };
            assert_eq!((&*upgrade.path, &*upgrade.host), ("/chat", "server.example.com"));
            assert_eq!(upgrade.origin.as_deref(), Some("http://example.com"));
            assert_eq!(upgrade.subprotocol, Some(SUBPROTOCOL_JSON));
            assert_eq!(upgrade.head_bytes, RFC_REQUEST.len());
            let mut out = BytesMut::new();
            upgrade.write_response(&mut out);
            let response = std::str::from_utf8(&out).unwrap();
            assert!(response.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
            assert!(response.contains("Sec-WebSocket-Protocol: chatring.v1.json\r\n"));
        }
    }

    #[test]
    fn tells_plain_http_from_a_bad_upgrade() {
        let plain = "GET /healthz?a=b HTTP/1.1\r\nHost: a\r\n\r\n";
        let Ok(ServerProgress::NotWebSocket(request)) = advance(plain) else { panic!("{plain}") };
        let expected = PlainRequest {
            method: "GET".to_owned(),
            path: "/healthz?a=b".to_owned(),
            head_bytes: plain.len(),
        };
        assert_eq!(request, expected);
    }

    #[test]
    fn each_fault_has_its_status() {
        let changed = |from: &str, to: &str| {
            assert!(RFC_REQUEST.contains(from));
            error(&RFC_REQUEST.replacen(from, to, 1))
        };
        assert_eq!(changed("GET", "POST").status(), HttpStatus::MethodNotAllowed);
        assert_eq!(changed(": 13", ": 8").status(), HttpStatus::UpgradeRequired);
        assert_eq!(changed("HTTP/1.1", "HTTP/1.0").status(), HttpStatus::BadRequest);
        assert_eq!(changed("Host", "Hose"), HandshakeError::Header("Host"));
        assert_eq!(changed("keep-alive, Upgrade", "close"), HandshakeError::Header("Connection"));
        let key = HandshakeError::Header("Sec-WebSocket-Key");
        assert_eq!(changed("dGhl", "aGhlaGhl"), key);
        assert_eq!(changed("dGhl", "*"), key);
        assert_eq!(changed("Origin: http://example.com", "Sec-WebSocket-Key: a"), key);
        let length = changed("Origin: http://example.com", "Content-Length: 5");
        assert_eq!(length, HandshakeError::Header("Content-Length"));
        assert_eq!(error("\x16\x03\x01").status(), HttpStatus::BadRequest);
    }

    #[test]
    fn a_head_above_its_bounds_is_refused() {
        let long = format!("GET / HTTP/1.1\r\nA: {}", "a".repeat(HANDSHAKE_BYTES_MAX));
        assert_eq!(error(&long), HandshakeError::HeadTooLong);
        assert_eq!(error(&format!("{long}\r\n\r\n")), HandshakeError::HeadTooLong);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(65));
        assert_eq!(error(&many), HandshakeError::TooManyHeaders);
        let fits = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(64));
        assert!(advance(&fits).is_ok());
    }

    #[test]
    fn without_a_common_subprotocol_none_is_chosen() {
        let mut handshake = ServerHandshake::default();
        let progress = handshake.advance(RFC_REQUEST.as_bytes(), &["unheard"]).unwrap();
        let ServerProgress::Upgrade(upgrade) = progress else { panic!("not accepted") };
        assert_eq!(upgrade.subprotocol, None);
    }
}
