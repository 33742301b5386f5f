//! One side of a WebSocket connection to a node, whose bytes are counted per kind of frame.

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
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::stamp::Mixer;
use crate::tally::{self, Tally};

/// How long a connection may take to stand.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// What one side of a connection that stands knows; its bytes are carried by others.
#[derive(Debug)]
pub struct Connection {
    decoder: ws::Decoder,
    codec: ClientCodec,
    close: CloseHandshake,
    outgoing: Outgoing,
    /// Length of the body of each frame in `outgoing`; none for frames that send no message.
    bodies: Vec<Option<usize>>,
    /// Answers to the node's WebSocket frames.
    answers: BytesMut,
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
    /// Connects and agrees on `chatring.v1`. The socket is in blocking mode.
    ///
    /// # Errors
    /// There is no connection, with the reason.
    pub async fn open(
        url: &str,
        random: Mixer,
    ) -> Result<(std::net::TcpStream, Connection), ConnectError> {
        match tokio::time::timeout(CONNECT_MAX, connect(url, random)).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(ConnectError::Timeout),
        }
    }

    fn new(random: Mixer) -> Connection {
        Connection {
            decoder: ws::Decoder::new(Role::Client, ws::Limits::default()),
            codec: ClientCodec::new(Subprotocol::Binary, FRAME_BYTES_MAX),
            close: CloseHandshake::default(),
            outgoing: Outgoing::new(),
            bodies: Vec::new(),
            answers: BytesMut::new(),
            frames: Vec::new(),
            random,
        }
    }

    /// Takes bytes of the node, and gives each frame that is complete to `on_frame`.
    ///
    /// # Errors
    /// The node broke a protocol, or closes.
    pub fn receive(
        &mut self,
        mut input: &[u8],
        tally: &mut Tally,
        mut on_frame: impl FnMut(ServerFrame),
    ) -> Result<(), Over> {
        tally.received_bytes += input.len() as u64;
        while let Some(event) = self.decoder.next(&mut input)? {
            match event {
                ws::Event::Message { payload, .. } => {
                    self.decode(&payload, tally)?;
                    self.frames.drain(..).for_each(&mut on_frame);
                }
                ws::Event::Ping(payload) => {
                    let mask = self.mask();
                    ws::encode_pong(&mut self.answers, &payload, Some(mask));
                }
                ws::Event::Pong(_) => {}
                ws::Event::Close(close) => {
                    let mask = self.mask();
                    self.close.received(&mut self.answers, &close, Some(mask));
                    return Err(Over::Closed(close.code));
                }
            }
        }
        Ok(())
    }

    /// Puts a frame on its way.
    ///
    /// # Errors
    /// It cannot be said.
    pub fn send(&mut self, frame: &ClientFrame) -> Result<(), Over> {
        self.codec.encode(frame, &mut self.outgoing)?;
        self.bodies.push(tally::sent_body_bytes(frame));
        Ok(())
    }

    /// Whether something is on its way that [`Connection::flush`] writes.
    pub fn has_output(&self) -> bool {
        !self.outgoing.is_empty() || !self.answers.is_empty()
    }

    /// Writes all that is on its way.
    pub fn flush(&mut self, out: &mut BytesMut, tally: &mut Tally) {
        let before = out.len();
        out.extend_from_slice(&self.answers);
        self.answers.clear();
        self.frame_outgoing(out, tally);
        tally.sent_bytes += (out.len() - before) as u64;
    }

    /// Writes all that is on its way, and goodbye.
    pub fn say_goodbye(&mut self, code: CloseCode, out: &mut BytesMut, tally: &mut Tally) {
        let mask = self.mask();
        self.close.start(&mut self.answers, code, "", Some(mask));
        self.frame_outgoing(out, tally);
        self.flush(out, tally);
    }

    fn decode(&mut self, payload: &Bytes, tally: &mut Tally) -> Result<(), WireError> {
        let frames = &mut self.frames;
        self.codec.decode(payload, |frame| frames.push(frame))?;
        tally.received(payload, frames);
        Ok(())
    }

    /// Moves gathered frames behind their WebSocket headers.
    fn frame_outgoing(&mut self, out: &mut BytesMut, tally: &mut Tally) {
        if self.outgoing.is_empty() {
            return;
        }
        let one_message = self.outgoing.messages().count() == 1;
        for message in self.outgoing.messages() {
            let mask = MaskKey((self.random.draw() as u32).to_be_bytes());
            ws::encode_message(out, MessageKind::Binary, message, Some(mask));
            if one_message {
                tally.sent(message, self.bodies.iter().copied());
            }
        }
        self.bodies.clear();
        self.outgoing.clear();
    }

    fn mask(&mut self) -> MaskKey {
        MaskKey((self.random.draw() as u32).to_be_bytes())
    }
}

async fn connect(
    url: &str,
    mut random: Mixer,
) -> Result<(std::net::TcpStream, Connection), ConnectError> {
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
    let mut head = Vec::new();
    loop {
        let mut bytes = [0; 512];
        // The server speaks only after `hello`, so nothing follows the head yet.
        let count = stream.read(&mut bytes).await?;
        head.extend_from_slice(&bytes[..count]);
        match handshake.advance(&head)? {
            ClientProgress::Connected { head_bytes, .. } if head_bytes == head.len() => {
                let stream = stream.into_std()?;
                stream.set_nonblocking(false)?;
                return Ok((stream, Connection::new(random)));
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
