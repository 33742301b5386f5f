//! One WebSocket connection of a client: frames in, frames out, bytes counted.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use chatring_wire::limits::{FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX};
use chatring_wire::ws::{
    self, ClientHandshake, ClientHandshakeError, ClientProgress, ClientRequest, CloseHandshake,
    CloseState, Limits, MaskKey, MessageKind, Role,
};
use chatring_wire::{
    ClientCodec, ClientFrame, CloseCode, Outgoing, ServerFrame, Subprotocol, WireError,
};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;

use super::{Counters, random};
use crate::session::Disconnect;
use crate::tls::{MaybeTls, TlsError, TlsSession, TlsStream};

/// How long a connection may take to stand.
const CONNECT_MS_MAX: u64 = 10_000;
/// Bytes read at once.
const READ_BYTES: usize = 16 * 1024;
/// Bytes that may wait for the socket before the application's calls wait too.
const WAITING_BYTES_MAX: usize = 256 * 1024;

/// `ws://HOST[:PORT][/PATH]`, or the same with `wss`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WsUrl {
    /// Whom the certificate must name, with `wss`.
    server: Option<ServerName<'static>>,
    /// Host and port to connect to.
    address: String,
    /// What stands in the request's `Host`.
    host: String,
    path: String,
}

/// A URL that is none of ours.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0} is not of the form ws://HOST:PORT/PATH or wss://HOST:PORT/PATH")]
pub struct UrlError(String);

impl FromStr for WsUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<WsUrl, UrlError> {
        let wrong = || UrlError(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let port = match scheme {
            "ws" => 80,
            "wss" => 443,
            _ => return Err(wrong()),
        };
        let (host, path) = match rest.find('/') {
            Some(at) => (&rest[..at], &rest[at..]),
            None => (rest, "/"),
        };
        let name = host.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
        let address = match name {
            Some((_, port)) if port.parse::<u16>().is_err() => return Err(wrong()),
            Some(_) => host.to_owned(),
            None => format!("{host}:{port}"),
        };
        let printable = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if host.is_empty() || host.starts_with(':') || host.contains('@') || !printable(rest) {
            return Err(wrong());
        }
        let server = match scheme {
            "wss" => {
                let name = name.map_or(host, |(name, _)| name);
                let name = name.trim_start_matches('[').trim_end_matches(']').to_owned();
                Some(ServerName::try_from(name).map_err(|_| wrong())?)
            }
            _ => None,
        };
        Ok(WsUrl { server, address, host: host.to_owned(), path: path.to_owned() })
    }
}

impl fmt::Display for WsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_wss() { "wss" } else { "ws" };
        write!(f, "{scheme}://{}{}", self.host, self.path)
    }
}

impl WsUrl {
    /// Whether the connection is to be encrypted.
    pub fn is_wss(&self) -> bool {
        self.server.is_some()
    }
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The network says no.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The URL is one of `wss`, and nobody is trusted.
    #[error("a wss URL needs to be told whom to trust")]
    NoTls,
    /// TLS cannot begin.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The server does not take the upgrade.
    #[error(transparent)]
    Handshake(#[from] ClientHandshakeError),
    /// It took too long.
    #[error("no answer within {} s", CONNECT_MS_MAX / 1000)]
    Timeout,
    /// The server chose something that was not offered.
    #[error("the server does not speak {0}")]
    Subprotocol(&'static str),
}

/// A connection that stands.
#[derive(Debug)]
pub(super) struct Socket {
    reader: ReadHalf<MaybeTls>,
    writer: WriteHalf<MaybeTls>,
    decoder: ws::Decoder,
    codec: ClientCodec,
    close: CloseHandshake,
    /// Frames of this turn.
    outgoing: Outgoing,
    /// Bytes on their way to the socket.
    out: BytesMut,
    frames: VecDeque<ServerFrame>,
    scratch: BytesMut,
    bytes: Arc<Counters>,
}

impl Socket {
    pub async fn open(
        url: &WsUrl,
        tls: Option<&Arc<ClientConfig>>,
        subprotocol: Subprotocol,
        bytes: Arc<Counters>,
    ) -> Result<Socket, ConnectError> {
        let limit = Duration::from_millis(CONNECT_MS_MAX);
        tokio::time::timeout(limit, Socket::open_slowly(url, tls, subprotocol, bytes))
            .await
            .map_err(|_elapsed| ConnectError::Timeout)?
    }

    async fn open_slowly(
        url: &WsUrl,
        tls: Option<&Arc<ClientConfig>>,
        subprotocol: Subprotocol,
        bytes: Arc<Counters>,
    ) -> Result<Socket, ConnectError> {
        let mut stream = connect(url, tls).await?;
        let request =
            ClientRequest { host: &url.host, path: &url.path, subprotocols: &[subprotocol.name()] };
        let mut out = BytesMut::new();
        let mut handshake = ClientHandshake::start(&request, random(), &mut out)?;
        bytes.sent.fetch_add(out.len() as u64, Ordering::Relaxed);
        stream.write_all(&out).await?;
        stream.flush().await?;
        out.clear();
        let mut received = BytesMut::with_capacity(HANDSHAKE_BYTES_MAX);
        let head_bytes = loop {
            let count = stream.read_buf(&mut received).await?;
            if count == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            bytes.received.fetch_add(count as u64, Ordering::Relaxed);
            if let ClientProgress::Connected { subprotocol: chosen, head_bytes } =
                handshake.advance(&received)?
            {
                if chosen != Some(subprotocol.name()) {
                    return Err(ConnectError::Subprotocol(subprotocol.name()));
                }
                break head_bytes;
            }
        };
        received.advance(head_bytes);
        let (reader, writer) = tokio::io::split(stream);
        let mut socket = Socket {
            reader,
            writer,
            decoder: ws::Decoder::new(Role::Client, Limits::default()),
            codec: ClientCodec::new(subprotocol, FRAME_BYTES_MAX),
            close: CloseHandshake::default(),
            outgoing: Outgoing::new(),
            out,
            frames: VecDeque::new(),
            scratch: BytesMut::with_capacity(READ_BYTES),
            bytes,
        };
        if !received.is_empty() {
            // Frames may follow the response at once; a fault in them shows at the next read.
            let _ = socket.take_in(&received);
        }
        Ok(socket)
    }

    /// Puts a frame on its way.
    pub fn push(&mut self, frame: &ClientFrame) -> Result<(), WireError> {
        self.codec.encode(frame, &mut self.outgoing)
    }

    /// Whether the application may call on.
    pub fn has_room(&self) -> bool {
        self.out.len() < WAITING_BYTES_MAX
    }

    /// The next frame that came.
    pub fn next_frame(&mut self) -> Option<ServerFrame> {
        self.frames.pop_front()
    }

    /// Waits until bytes have come (if `read`) or gone. Cancel safe.
    pub async fn exchange(&mut self, read: bool) -> Result<(), Disconnect> {
        if !self.frames.is_empty() {
            return Ok(());
        }
        self.wrap_up();
        let writes = !self.out.is_empty();
        tokio::select! {
            biased;
            count = self.writer.write_buf(&mut self.out), if writes => {
                let count = count.map_err(|_| Disconnect::Lost)?;
                self.bytes.sent.fetch_add(count as u64, Ordering::Relaxed);
                Ok(())
            }
            count = self.reader.read_buf(&mut self.scratch), if read => {
                let count = count.map_err(|_| Disconnect::Lost)?;
                if count == 0 {
                    return Err(Disconnect::Lost);
                }
                self.bytes.received.fetch_add(count as u64, Ordering::Relaxed);
                let mut scratch = std::mem::take(&mut self.scratch);
                let outcome = self.take_in(&scratch);
                scratch.clear();
                self.scratch = scratch;
                outcome
            }
            else => std::future::pending().await,
        }
    }

    /// Sends what is left and a close frame, and waits for the server's, for so long at most.
    pub async fn close(&mut self, code: CloseCode, limit: Duration) -> io::Result<()> {
        self.wrap_up();
        self.close.start(&mut self.out, code, "", Some(mask()));
        let farewell = async {
            while !self.out.is_empty() {
                self.exchange_once().await?;
            }
            while self.close.state() != CloseState::Finished {
                self.frames.clear();
                if self.exchange(true).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        tokio::time::timeout(limit, farewell).await.unwrap_or(Ok(()))
    }

    async fn exchange_once(&mut self) -> io::Result<()> {
        let count = self.writer.write_buf(&mut self.out).await?;
        self.bytes.sent.fetch_add(count as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Makes WebSocket messages of the frames of this turn.
    fn wrap_up(&mut self) {
        let text = self.codec.subprotocol().is_text();
        let kind = if text { MessageKind::Text } else { MessageKind::Binary };
        if self.close.state() == CloseState::Open {
            for message in self.outgoing.messages() {
                ws::encode_message(&mut self.out, kind, message, Some(mask()));
            }
        }
        self.outgoing.clear();
    }

    fn take_in(&mut self, mut input: &[u8]) -> Result<(), Disconnect> {
        loop {
            match self.decoder.next(&mut input) {
                Ok(None) => return Ok(()),
                Ok(Some(ws::Event::Message { kind, payload })) => {
                    let text = kind == MessageKind::Text;
                    let frames = &mut self.frames;
                    let decoded = self.codec.decode(&payload, |frame| frames.push_back(frame));
                    if decoded.is_err() || text != self.codec.subprotocol().is_text() {
                        return Err(Disconnect::Lost);
                    }
                }
                Ok(Some(ws::Event::Ping(payload))) => {
                    if self.close.state() == CloseState::Open {
                        ws::encode_pong(&mut self.out, &payload, Some(mask()));
                    }
                }
                Ok(Some(ws::Event::Pong(_))) => {}
                Ok(Some(ws::Event::Close(close))) => {
                    self.close.received(&mut self.out, &close, Some(mask()));
                    return Err(close.code.map_or(Disconnect::Lost, Disconnect::Closed));
                }
                Err(error) => {
                    self.close.failed(&mut self.out, error, Some(mask()));
                    return Err(Disconnect::Lost);
                }
            }
        }
    }
}

async fn connect(url: &WsUrl, tls: Option<&Arc<ClientConfig>>) -> Result<MaybeTls, ConnectError> {
    let stream = TcpStream::connect(&url.address).await?;
    stream.set_nodelay(true)?;
    let Some(server) = &url.server else { return Ok(MaybeTls::Plain(stream)) };
    let tls = tls.ok_or(ConnectError::NoTls)?;
    let session = TlsSession::client(Arc::clone(tls), server.clone())?;
    let mut stream = TlsStream::new(stream, Box::new(session));
    stream.handshake().await?;
    Ok(MaybeTls::Tls(Box::new(stream)))
}

fn mask() -> MaskKey {
    MaskKey(random())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart_or_refused() {
        let url: WsUrl = "ws://127.0.0.1:8080/v1".parse().expect("a URL");
        assert_eq!((url.address.as_str(), url.path.as_str()), ("127.0.0.1:8080", "/v1"));
        let url: WsUrl = "ws://[::1]".parse().expect("a URL");
        assert_eq!((url.address.as_str(), url.path.as_str()), ("[::1]:80", "/"));
        let url: WsUrl = "wss://[::1]/v1".parse().expect("a URL");
        assert_eq!((url.address.as_str(), url.path.as_str()), ("[::1]:443", "/v1"));
        assert!(url.is_wss() && url.to_string() == "wss://[::1]/v1");
        assert!("wss://a_b!/".parse::<WsUrl>().is_err());
        for wrong in ["http://a/", "ws://", "ws://:1/", "ws://a:b/", "ws://a b/", "ws://u@h/"] {
            assert!(wrong.parse::<WsUrl>().is_err(), "{wrong}");
        }
    }
}
