//! One WebSocket connection to a node, whose bytes are counted per kind of frame.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use chatring_wire::codec::{ClientCodec, Outgoing, SUBPROTOCOL_BINARY, Subprotocol};
use chatring_wire::frame::{ClientFrame, ServerFrame};
use chatring_wire::limits::{FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX};
use chatring_wire::ws::{
    self, ClientHandshake, ClientHandshakeError, ClientProgress, ClientRequest, CloseHandshake,
    MaskKey, MessageKind, Role, WsError,
};
use chatring_wire::{CloseCode, WireError};
use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest, Ready};
use tokio::net::TcpStream;

use crate::stamp::Mixer;
use crate::tally::{self, Tally};

/// How long a connection may take to stand.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Bytes that may wait for the socket before further frames wait in the session.
const WAITING_BYTES_MAX: usize = 256 * 1024;

/// A connection that stands.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    decoder: ws::Decoder,
    codec: ClientCodec,
    close: CloseHandshake,
    outgoing: Outgoing,
    /// Length of the body of each frame in `outgoing`; none for frames that send no message.
    bodies: Vec<Option<usize>>,
    /// Bytes on their way to the socket.
    waiting: BytesMut,
    frames: Vec<ServerFrame>,
    random: Mixer,
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The URL is not `ws://HOST:PORT/…`.
    #[error("{0} is not of the form ws://HOST:PORT/PATH")]
    Url(String),
    /// The network says no.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The node does not take the upgrade.
    #[error(transparent)]
    Handshake(#[from] ClientHandshakeError),
    /// It took longer than 10 s.
    #[error("no answer within {} s", CONNECT_MAX.as_secs())]
    Timeout,
}

/// How a connection ended.
#[derive(Debug, Error)]
pub enum Over {
    /// The node closed it, with a code if it gave one.
    #[error("closed with {0:?}")]
    Closed(Option<u16>),
    /// It broke.
    #[error(transparent)]
    Lost(#[from] io::Error),
    /// The node broke the WebSocket protocol.
    #[error(transparent)]
    WebSocket(#[from] WsError),
    /// The node broke the subprotocol.
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl Connection {
    /// Connects and agrees on `chatring.v1`.
    pub async fn open(url: &str, random: Mixer) -> Result<Connection, ConnectError> {
        match tokio::time::timeout(CONNECT_MAX, connect(url, random)).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(ConnectError::Timeout),
        }
    }

    /// Waits until bytes have come or, if some wait to go, can go.
    pub async fn ready(&self) -> io::Result<Ready> {
        let write = if self.waiting.is_empty() { None } else { Some(Interest::WRITABLE) };
        self.stream.ready(write.map_or(Interest::READABLE, |w| w | Interest::READABLE)).await
    }

    /// Reads once, and gives each frame that is complete to `on_frame`.
    pub fn receive(
        &mut self,
        scratch: &mut [u8],
        tally: &mut Tally,
        on_frame: impl FnMut(ServerFrame),
    ) -> Result<(), Over> {
        match self.stream.try_read(scratch) {
            Ok(0) => Err(Over::Closed(None)),
            Ok(count) => {
                tally.received_bytes += count as u64;
                self.take_in(&scratch[..count], tally, on_frame)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether another frame may be put on its way.
    pub fn has_room(&self) -> bool {
        self.waiting.len() + self.outgoing.bytes_len() < WAITING_BYTES_MAX
    }

    /// Puts a frame on its way.
    pub fn send(&mut self, frame: &ClientFrame) -> Result<(), Over> {
        self.codec.encode(frame, &mut self.outgoing)?;
        self.bodies.push(tally::sent_body_bytes(frame));
        Ok(())
    }

    /// Writes as much as the socket takes.
    pub fn flush(&mut self, tally: &mut Tally) -> Result<(), Over> {
        self.frame_outgoing(tally);
        while !self.waiting.is_empty() {
            match self.stream.try_write(&self.waiting) {
                Ok(count) => {
                    tally.sent_bytes += count as u64;
                    let _written = self.waiting.split_to(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        // An idle connection holds no buffer.
        self.waiting = BytesMut::new();
        Ok(())
    }

    /// Says goodbye, as far as the socket takes it at once.
    pub fn say_goodbye(mut self, code: CloseCode, tally: &mut Tally) {
        let mask = self.mask();
        self.close.start(&mut self.waiting, code, "", Some(mask));
        // The connection ends either way.
        let _ = self.flush(tally);
    }

    fn take_in(
        &mut self,
        mut input: &[u8],
        tally: &mut Tally,
        mut on_frame: impl FnMut(ServerFrame),
    ) -> Result<(), Over> {
        while let Some(event) = self.decoder.next(&mut input)? {
            match event {
                ws::Event::Message { payload, .. } => {
                    self.decode(&payload, tally)?;
                    self.frames.drain(..).for_each(&mut on_frame);
                }
                ws::Event::Ping(payload) => {
                    let mask = self.mask();
                    ws::encode_pong(&mut self.waiting, &payload, Some(mask));
                }
                ws::Event::Pong(_) => {}
                ws::Event::Close(close) => {
                    let mask = self.mask();
                    self.close.received(&mut self.waiting, &close, Some(mask));
                    // The reply is a courtesy; the connection is over.
                    let _ = self.flush(tally);
                    return Err(Over::Closed(close.code));
                }
            }
        }
        Ok(())
    }

    fn decode(&mut self, payload: &Bytes, tally: &mut Tally) -> Result<(), WireError> {
        let frames = &mut self.frames;
        self.codec.decode(payload, |frame| frames.push(frame))?;
        tally.received(payload, frames);
        Ok(())
    }

    /// Moves gathered frames behind their WebSocket headers.
    fn frame_outgoing(&mut self, tally: &mut Tally) {
        if self.outgoing.is_empty() {
            return;
        }
        let one_message = self.outgoing.messages().count() == 1;
        for message in self.outgoing.messages() {
            let mask = MaskKey((self.random.draw() as u32).to_be_bytes());
            ws::encode_message(&mut self.waiting, MessageKind::Binary, message, Some(mask));
            if one_message {
                tally.sent(message, self.bodies.iter().copied());
            }
        }
        self.bodies.clear();
        self.outgoing = Outgoing::new();
    }

    fn mask(&mut self) -> MaskKey {
        MaskKey((self.random.draw() as u32).to_be_bytes())
    }
}

async fn connect(url: &str, mut random: Mixer) -> Result<Connection, ConnectError> {
    let bad_url = || ConnectError::Url(url.to_owned());
    let rest = url.strip_prefix("ws://").ok_or_else(bad_url)?;
    let slash = rest.find('/').unwrap_or(rest.len());
    let (host, path) = rest.split_at(slash);
    let path = if path.is_empty() { "/" } else { path };
    let mut stream = TcpStream::connect(host).await?;
    stream.set_nodelay(true)?;
    let request = ClientRequest { host, path, subprotocols: &[SUBPROTOCOL_BINARY] };
    let nonce = (u128::from(random.draw()) << 64) | u128::from(random.draw());
    let mut out = BytesMut::new();
    let mut handshake = ClientHandshake::start(&request, nonce.to_be_bytes(), &mut out)?;
    stream.write_all(&out).await?;
    let mut connection = Connection {
        stream,
        decoder: ws::Decoder::new(Role::Client, ws::Limits::default()),
        codec: ClientCodec::new(Subprotocol::Binary, FRAME_BYTES_MAX),
        close: CloseHandshake::default(),
        outgoing: Outgoing::new(),
        bodies: Vec::new(),
        waiting: BytesMut::new(),
        frames: Vec::new(),
        random,
    };
    let mut head = Vec::new();
    loop {
        let mut bytes = [0; 512];
        // The server speaks only after `hello`, so nothing follows the head yet.
        let count = connection.stream.read(&mut bytes).await?;
        head.extend_from_slice(&bytes[..count]);
        match handshake.advance(&head)? {
            ClientProgress::Connected { head_bytes, .. } if head_bytes == head.len() => {
                return Ok(connection);
            }
            ClientProgress::Connected { .. } => {
                return Err(io::Error::other("the server spoke before the hello").into());
            }
            ClientProgress::Incomplete if count == 0 || head.len() > HANDSHAKE_BYTES_MAX => {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            ClientProgress::Incomplete => {}
        }
    }
}
