//! The client's side of the handshake.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, BytesMut};
use thiserror::Error;

use super::{HeadScan, accept_key, has_member, single, values};
use crate::limits::{HANDSHAKE_BYTES_MAX, HANDSHAKE_HEADERS_MAX};

/// What a client asks for.
#[derive(Clone, Copy, Debug)]
pub struct ClientRequest<'a> {
    /// Host and, unless it is the scheme's own, port.
    pub host: &'a str,
    /// Path and query, from the slash on.
    pub path: &'a str,
    /// Subprotocols, the dearest first; if there are any, the server must take one.
    pub subprotocols: &'a [&'static str],
}

/// Writes the request and checks the server's response.
#[derive(Debug)]
pub struct ClientHandshake {
    accept: String,
    subprotocols: Vec<&'static str>,
    scan: HeadScan,
}

/// How far a response is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientProgress {
    /// The head has not ended yet.
    Incomplete,
    /// The server speaks WebSocket.
    Connected {
        /// The subprotocol it took; `None` only if none was asked for.
        subprotocol: Option<&'static str>,
        /// Length of the response; the bytes after it are frames.
        head_bytes: usize,
    },
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ClientHandshakeError {
    /// Our caller's fault: a host, path or subprotocol that cannot stand in a request.
    #[error("the {0} holds characters that cannot stand in a request")]
    Unsendable(&'static str),
    /// The server does not answer with HTTP/1.
    #[error("the response is not HTTP/1: {0}")]
    Http(httparse::Error),
    /// The response's head is above [`HANDSHAKE_BYTES_MAX`].
    #[error("the response's head has more than {HANDSHAKE_BYTES_MAX} bytes")]
    HeadTooLong,
    /// The server refused; 429 and 503 are worth another attempt later.
    #[error("the server answered with HTTP status {0}")]
    Status(u16),
    /// A header that is missing, repeated, or has no valid value.
    #[error("the header {0} of the response is missing, repeated or not valid")]
    Header(&'static str),
}

impl ClientHandshake {
    /// Appends the request to `out`. `nonce` are 16 fresh random bytes.
    pub fn start(
        request: &ClientRequest<'_>,
        nonce: [u8; 16],
        out: &mut BytesMut,
    ) -> Result<ClientHandshake, ClientHandshakeError> {
        let sendable = |name, text: &str| {
            let fits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
            if fits { Ok(()) } else { Err(ClientHandshakeError::Unsendable(name)) }
        };
        sendable("host", request.host)?;
        sendable("path", request.path)?;
        for subprotocol in request.subprotocols {
            sendable("subprotocol", subprotocol)?;
        }
        let key = STANDARD.encode(nonce);
        for part in ["GET ", request.path, " HTTP/1.1\r\nHost: ", request.host] {
            out.put_slice(part.as_bytes());
        }
        out.put_slice(b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n");
        out.put_slice(b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ");
        out.put_slice(key.as_bytes());
        if !request.subprotocols.is_empty() {
            out.put_slice(b"\r\nSec-WebSocket-Protocol: ");
            out.put_slice(request.subprotocols.join(", ").as_bytes());
        }
        out.put_slice(b"\r\n\r\n");
        Ok(ClientHandshake {
            accept: accept_key(key.as_bytes()),
            subprotocols: request.subprotocols.to_vec(),
            scan: HeadScan::default(),
        })
    }

    /// Looks at everything received so far.
    pub fn advance(&mut self, received: &[u8]) -> Result<ClientProgress, ClientHandshakeError> {
        let first = self.scan.scanned_bytes == 0;
        let ended = self.scan.has_new_end(received);
        if ended || first {
            let head = &received[..received.len().min(HANDSHAKE_BYTES_MAX)];
            let progress = self.parse(head)?;
            if progress != ClientProgress::Incomplete {
                return Ok(progress);
            }
        }
        if received.len() >= HANDSHAKE_BYTES_MAX {
            return Err(ClientHandshakeError::HeadTooLong);
        }
        Ok(ClientProgress::Incomplete)
    }

    fn parse(&self, head: &[u8]) -> Result<ClientProgress, ClientHandshakeError> {
        let mut headers = [httparse::EMPTY_HEADER; HANDSHAKE_HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(head).map_err(ClientHandshakeError::Http)?;
        let httparse::Status::Complete(head_bytes) = parsed else {
            return Ok(ClientProgress::Incomplete);
        };
        let headers = &*response.headers;
        match response.code {
            Some(101) => {}
            code => return Err(ClientHandshakeError::Status(code.unwrap_or_default())),
        }
        for (name, member) in [("Upgrade", "websocket"), ("Connection", "Upgrade")] {
            if !has_member(headers, name, member) {
                return Err(ClientHandshakeError::Header(name));
            }
        }
        if value(headers, "Sec-WebSocket-Accept")? != Some(self.accept.as_bytes()) {
            return Err(ClientHandshakeError::Header("Sec-WebSocket-Accept"));
        }
        if values(headers, "Sec-WebSocket-Extensions").next().is_some() {
            return Err(ClientHandshakeError::Header("Sec-WebSocket-Extensions"));
        }
        let subprotocol = self.subprotocol(value(headers, "Sec-WebSocket-Protocol")?)?;
        Ok(ClientProgress::Connected { subprotocol, head_bytes })
    }

    fn subprotocol(
        &self,
        taken: Option<&[u8]>,
    ) -> Result<Option<&'static str>, ClientHandshakeError> {
        let known = self.subprotocols.iter().find(|name| Some(name.as_bytes()) == taken);
        match (known, taken) {
            (Some(name), _) => Ok(Some(name)),
            (None, None) if self.subprotocols.is_empty() => Ok(None),
            _ => Err(ClientHandshakeError::Header("Sec-WebSocket-Protocol")),
        }
    }
}

fn value<'b>(
    headers: &[httparse::Header<'b>],
    name: &'static str,
) -> Result<Option<&'b [u8]>, ClientHandshakeError> {
    single(headers, name).map_err(|_| ClientHandshakeError::Header(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{SUBPROTOCOL_BINARY, SUBPROTOCOL_JSON};
    use crate::ws::{ServerHandshake, ServerProgress};

    const REQUEST: ClientRequest<'static> = ClientRequest {
        host: "localhost:7",
        path: "/v1?a=b",
        subprotocols: &[SUBPROTOCOL_BINARY, SUBPROTOCOL_JSON],
    };

    fn start(request: &ClientRequest<'_>) -> (ClientHandshake, Vec<u8>) {
        let mut out = BytesMut::new();
        let client = ClientHandshake::start(request, *b"the sample nonce", &mut out).unwrap();
        (client, out.to_vec())
    }

    fn response(request: &[u8], subprotocols: &[&str]) -> String {
        let progress = ServerHandshake::default().advance(request, subprotocols).unwrap();
        let ServerProgress::Upgrade(upgrade) = progress else { panic!("refused") };
        assert_eq!(upgrade.head_bytes, request.len());
        let mut out = BytesMut::new();
        upgrade.write_response(&mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn both_ends_agree_at_every_cut() {
        let (_, request) = start(&REQUEST);
        let response = response(&request, &[SUBPROTOCOL_JSON]);
        for cut in 0..response.len() {
            let (mut client, _) = start(&REQUEST);
            let early = client.advance(&response.as_bytes()[..cut]).unwrap();
            assert_eq!(early, ClientProgress::Incomplete);
            let whole = client.advance(format!("{response}frames").as_bytes()).unwrap();
            let expected = ClientProgress::Connected {
                subprotocol: Some(SUBPROTOCOL_JSON),
                head_bytes: response.len(),
            };
            assert_eq!(whole, expected);
        }
    }

    #[test]
    fn each_wrong_response_is_told() {
        let (_, request) = start(&REQUEST);
        let good = response(&request, &[SUBPROTOCOL_BINARY]);
        let error = |from: &str, to: &str| {
            assert!(good.contains(from));
            let (mut client, _) = start(&REQUEST);
            client.advance(good.replacen(from, to, 1).as_bytes()).unwrap_err()
        };
        assert_eq!(error("101", "503"), ClientHandshakeError::Status(503));
        let header = ClientHandshakeError::Header;
        assert_eq!(error("websocket", "h2c"), header("Upgrade"));
        assert_eq!(error("Connection: Upgrade", "Connection: close"), header("Connection"));
        assert_eq!(error("s3p", "S3p"), header("Sec-WebSocket-Accept"));
        assert_eq!(error("chatring.v1", "chatring.v2"), header("Sec-WebSocket-Protocol"));
        assert_eq!(error("Sec-WebSocket-Protocol", "X"), header("Sec-WebSocket-Protocol"));
        let extension = "Connection: Upgrade\r\nSec-WebSocket-Extensions: permessage-deflate";
        assert_eq!(error("Connection: Upgrade", extension), header("Sec-WebSocket-Extensions"));
        assert!(matches!(error("HTTP/1.1", "SSH-2.0"), ClientHandshakeError::Http(_)));
    }

    #[test]
    fn nothing_slips_into_the_request() {
        for (host, path) in [("a\r\nX: y", "/"), ("a", "/ HTTP/1.1\r\n"), ("", "/"), ("a", "")] {
            let request = ClientRequest { host, path, subprotocols: &[] };
            let mut out = BytesMut::new();
            let outcome = ClientHandshake::start(&request, [0; 16], &mut out);
            assert!(matches!(outcome, Err(ClientHandshakeError::Unsendable(_))));
            assert!(out.is_empty());
        }
    }

    #[test]
    fn a_response_without_end_is_refused() {
        let (mut client, _) = start(&REQUEST);
        let endless = format!("HTTP/1.1 101 A\r\nA: {}", "a".repeat(HANDSHAKE_BYTES_MAX));
        let outcome = client.advance(endless.as_bytes());
        assert_eq!(outcome, Err(ClientHandshakeError::HeadTooLong));
    }
}
