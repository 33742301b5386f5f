//! One side of a WebSocket connection to a node, whose bytes are counted per kind of frame.

use std::io;

use bytes::{Bytes, BytesMut};
use chatring_client::tls::TlsError;
use chatring_wire::codec::{ClientCodec, Outgoing, Subprotocol};
use chatring_wire::frame::{ClientFrame, ServerFrame};
use chatring_wire::limits::{FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX};
use chatring_wire::ws::{
    self, ClientHandshake, ClientHandshakeError, ClientProgress, ClientRequest, CloseHandshake,
    MaskKey, MessageKind, Role, WsError,
};
use chatring_wire::{CloseCode, WireError};
use thiserror::Error;

use crate::link::{CONNECT_MAX, Link, LinkError, Sealed};
use crate::stamp::Mixer;
use crate::tally::{self, Tally};

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
    tls: Option<Box<Sealed>>,
    frames: Vec<ServerFrame>,
    random: Mixer,
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The URL is not `ws://HOST:PORT/…` or `wss://HOST:PORT/…`.
    #[error("{0} is not of the form ws://HOST:PORT/PATH or wss://HOST:PORT/PATH")]
    Url(String),
    /// There is no way there.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The node does not take the upgrade.
    #[error(transparent)]
    Handshake(#[from] ClientHandshakeError),
    /// It took longer than 10 s.
    #[error("no answer within {} s", CONNECT_MAX.as_secs())]
    Timeout,
}

impl ConnectError {
    /// See [`LinkError::is_distrust`].
    pub fn is_distrust(&self) -> bool {
        matches!(self, ConnectError::Link(error) if error.is_distrust())
    }
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
    /// The node broke TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The node broke the WebSocket protocol.
    #[error(transparent)]
    WebSocket(#[from] WsError),
    /// The node broke the subprotocol.
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl Connection {
    /// Connects and agrees on the subprotocol. The socket is in blocking mode.
    ///
    /// # Errors
    /// There is no connection, with the reason.
    pub async fn open(
        url: &str,
        subprotocol: Subprotocol,
        random: Mixer,
    ) -> Result<(std::net::TcpStream, Connection), ConnectError> {
        match tokio::time::timeout(CONNECT_MAX, connect(url, subprotocol, random)).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(ConnectError::Timeout),
        }
    }

    fn new(subprotocol: Subprotocol, random: Mixer, tls: Option<Box<Sealed>>) -> Connection {
        Connection {
            decoder: ws::Decoder::new(Role::Client, ws::Limits::default()),
            codec: ClientCodec::new(subprotocol, FRAME_BYTES_MAX),
            close: CloseHandshake::default(),
            outgoing: Outgoing::new(),
            bodies: Vec::new(),
            answers: BytesMut::new(),
            tls,
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
        input: &[u8],
        tally: &mut Tally,
        on_frame: impl FnMut(ServerFrame),
    ) -> Result<(), Over> {
        let Some(mut tls) = self.tls.take() else {
            return self.receive_plain(input, tally, on_frame);
        };
        let opened = tls.open(input);
        let received = self.receive_plain(tls.opened(), tally, on_frame);
        self.tls = Some(tls);
        opened?;
        received
    }

    fn receive_plain(
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
        let sealed = self.tls.as_ref().is_some_and(|tls| tls.has_output());
        !self.outgoing.is_empty() || !self.answers.is_empty() || sealed
    }

    /// Writes all that is on its way.
    pub fn flush(&mut self, out: &mut BytesMut, tally: &mut Tally) {
        self.sealed(out, |connection, out| connection.flush_plain(out, tally));
    }

    fn flush_plain(&mut self, out: &mut BytesMut, tally: &mut Tally) {
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
        self.sealed(out, |connection, out| {
            connection.frame_outgoing(out, tally);
            connection.flush_plain(out, tally);
        });
        if let Some(tls) = &mut self.tls {
            tls.close(out);
        }
    }

    /// Seals what `write` writes, if the connection has TLS.
    fn sealed(&mut self, out: &mut BytesMut, write: impl FnOnce(&mut Connection, &mut BytesMut)) {
        let Some(mut tls) = self.tls.take() else { return write(self, out) };
        let mut plain = BytesMut::new();
        write(self, &mut plain);
        tls.seal(&plain, out);
        self.tls = Some(tls);
    }

    fn decode(&mut self, payload: &Bytes, tally: &mut Tally) -> Result<(), WireError> {
        let frames = &mut self.frames;
        self.codec.decode(payload, |frame| frames.push(frame))?;
        if !self.codec.subprotocol().is_text() {
            tally.received(payload, frames);
        }
        Ok(())
    }

    /// Moves gathered frames behind their WebSocket headers.
    fn frame_outgoing(&mut self, out: &mut BytesMut, tally: &mut Tally) {
        if self.outgoing.is_empty() {
            return;
        }
        let is_text = self.codec.subprotocol().is_text();
        let kind = if is_text { MessageKind::Text } else { MessageKind::Binary };
        let one_message = self.outgoing.messages().count() == 1 && !is_text;
        for message in self.outgoing.messages() {
            let mask = MaskKey((self.random.draw() as u32).to_be_bytes());
            ws::encode_message(out, kind, message, Some(mask));
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
    subprotocol: Subprotocol,
    mut random: Mixer,
) -> Result<(std::net::TcpStream, Connection), ConnectError> {
    let bad_url = || ConnectError::Url(url.to_owned());
    let (scheme, rest) = url.split_once("://").ok_or_else(bad_url)?;
    let slash = rest.find('/').unwrap_or(rest.len());
    let (host, path) = rest.split_at(slash);
    let path = if path.is_empty() { "/" } else { path };
    let has_tls = match scheme {
        "ws" => false,
        "wss" => true,
        _ => return Err(bad_url()),
    };
    let mut link = Link::open(host, has_tls).await?;
    let request = ClientRequest { host, path, subprotocols: &[subprotocol.name()] };
    let nonce = (u128::from(random.draw()) << 64) | u128::from(random.draw());
    let mut out = BytesMut::new();
    let mut handshake = ClientHandshake::start(&request, nonce.to_be_bytes(), &mut out)?;
    link.write(out).await?;
    let mut head = Vec::new();
    loop {
        // The server speaks only after `hello`, so nothing follows the head yet.
        let count = link.read(&mut head).await?;
        match handshake.advance(&head)? {
            ClientProgress::Connected { head_bytes, .. } if head_bytes == head.len() => {
                let (stream, tls) = link.into_parts().map_err(LinkError::Io)?;
                return Ok((stream, Connection::new(subprotocol, random, tls)));
            }
            ClientProgress::Connected { .. } => {
                return Err(
                    LinkError::Io(io::Error::other("the server spoke before the hello")).into()
                );
            }
            ClientProgress::Incomplete if count == 0 || head.len() > HANDSHAKE_BYTES_MAX => {
                return Err(LinkError::Io(io::ErrorKind::UnexpectedEof.into()).into());
            }
            ClientProgress::Incomplete => {}
        }
    }
}
