//! One connection from its first byte to its last: bytes in, frames out, without a machine.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use chatring_wire::frame::Failure;
use chatring_wire::limits::{HANDSHAKE_BYTES_MAX, MESSAGE_BYTES_MAX};
use chatring_wire::ws::{
    CloseHandshake, CloseState, Decoder, Event, HandshakeError, HttpStatus, Limits, MessageKind,
    Role, ServerHandshake, ServerProgress, WsError, encode_message, encode_pong, wrap_message,
};
use chatring_wire::{
    ClientFrame, CloseCode, ErrorCode, Outgoing, ServerCodec, ServerFrame, Subprotocol, WireError,
};

use super::WS_PATH;
use super::metrics::GatewayCounters;

/// Unsent pongs that a connection may cause; further pings are not answered until it reads.
const PONG_UNSENT_BYTES_MAX: usize = 64 * 1024;

/// What a client that speaks HTTP/2 says first (RFC 9113, 3.4). It never asks for a WebSocket.
const HTTP2_START: &[u8] = b"PRI * HTTP/2.0\r\n";

/// A connection that does not speak WebSocket yet.
#[derive(Debug, Default)]
pub struct Opening {
    handshake: ServerHandshake,
    head: Vec<u8>,
}

/// What an opening connection has come to.
#[derive(Debug)]
pub enum Opened {
    /// The request has not ended.
    Incomplete,
    /// It speaks WebSocket now; the answer is written. What follows the request is returned.
    Upgraded(Box<Talk>, Vec<u8>),
    /// It asks for something else over HTTP. All that was received is returned.
    Plain(Vec<u8>),
    /// It was answered and is to be closed.
    Answered,
}

impl Opening {
    /// Takes bytes of the request.
    pub fn advance(&mut self, bytes: &[u8], frame_bytes_max: usize, out: &mut BytesMut) -> Opened {
        self.head.extend_from_slice(bytes);
        if self.head.starts_with(HTTP2_START) {
            return Opened::Plain(std::mem::take(&mut self.head));
        }
        let names = [Subprotocol::Binary.name(), Subprotocol::Json.name()];
        let status = match self.handshake.advance(&self.head, &names) {
            Ok(ServerProgress::Incomplete) => return Opened::Incomplete,
            Ok(ServerProgress::NotWebSocket(request)) if is_ours(&request.path) => {
                HttpStatus::UpgradeRequired
            }
            Ok(ServerProgress::NotWebSocket(_)) => {
                return Opened::Plain(std::mem::take(&mut self.head));
            }
            Ok(ServerProgress::Upgrade(upgrade)) => {
                let chosen = upgrade.subprotocol.and_then(Subprotocol::from_name);
                match chosen {
                    _ if !is_ours(&upgrade.path) => HttpStatus::NotFound,
                    None => HandshakeError::NoSubprotocol.status(),
                    Some(subprotocol) => {
                        upgrade.write_response(out);
                        let rest = self.head.split_off(upgrade.head_bytes);
                        let talk = Box::new(Talk::new(subprotocol, frame_bytes_max));
                        return Opened::Upgraded(talk, rest);
                    }
                }
            }
            Err(error) => error.status(),
        };
        status.write_response(out);
        Opened::Answered
    }
}

fn is_ours(target: &str) -> bool {
    target.split('?').next() == Some(WS_PATH)
}

/// A connection that speaks WebSocket.
#[derive(Debug)]
pub struct Talk {
    decoder: Decoder,
    codec: ServerCodec,
    close: CloseHandshake,
    out: Outgoing,
    /// Bytes that wait for the connection's next turn.
    rest: Vec<u8>,
    /// Frames of the newest message that wait for their turn.
    frames: VecDeque<ClientFrame>,
    /// What is wrong with the newest message, behind those frames.
    wrong: Option<Wrong>,
}

/// Why a connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// The WebSocket itself.
    Socket(WsError),
    /// A frame.
    Frame(WireError),
    /// Text where binary was agreed, or the reverse.
    Kind,
}

/// What comes next from a connection.
#[derive(Debug)]
pub enum Item {
    /// Nothing until bytes arrive.
    Nothing,
    /// Something that needs nothing further (a pong, a message without frames).
    Handled,
    /// A frame.
    Frame(ClientFrame),
    /// The peer closes (or has answered our close): flush and end.
    Finished,
    /// Say so and close.
    Wrong(Wrong),
}

impl Talk {
    fn new(subprotocol: Subprotocol, frame_bytes_max: usize) -> Talk {
        Talk {
            decoder: Decoder::new(Role::Server, Limits::default()),
            codec: ServerCodec::new(subprotocol, frame_bytes_max),
            close: CloseHandshake::default(),
            out: Outgoing::new(),
            rest: Vec::new(),
            frames: VecDeque::new(),
            wrong: None,
        }
    }

    /// The next thing that the peer said. Takes what it used off the front of `input`; answers to
    /// control frames go to `out`.
    pub fn next(
        &mut self,
        input: &mut &[u8],
        out: Option<&mut BytesMut>,
        counters: &mut GatewayCounters,
    ) -> Item {
        if let Some(frame) = self.frames.pop_front() {
            if self.frames.is_empty() {
                self.frames = VecDeque::new();
            }
            counters.frames_in += 1;
            return Item::Frame(frame);
        }
        if let Some(wrong) = self.wrong.take() {
            return Item::Wrong(wrong);
        }
        let event = match self.decoder.next(input) {
            Ok(None) => return Item::Nothing,
            Ok(Some(event)) => event,
            Err(error) => return Item::Wrong(Wrong::Socket(error)),
        };
        match event {
            Event::Message { kind, payload } => self.take(kind, &payload, counters),
            Event::Ping(payload) => {
                if let Some(out) = out.filter(|o| o.len() < PONG_UNSENT_BYTES_MAX)
                    && self.close.state() == CloseState::Open
                {
                    counters.pings += 1;
                    encode_pong(out, &payload, None);
                }
                Item::Handled
            }
            Event::Pong(_) => Item::Handled,
            Event::Close(close) => {
                if let Some(out) = out {
                    self.close.received(out, &close, None);
                }
                Item::Finished
            }
        }
    }

    /// Queues a frame for the end of the turn. Answers how many bytes are queued.
    pub fn send(&mut self, frame: &ServerFrame) -> Result<usize, WireError> {
        self.codec.encode(frame, &mut self.out)?;
        Ok(self.queued())
    }

    /// Bytes of the frames that are queued for the end of the turn.
    pub fn queued(&self) -> usize {
        self.out.bytes_len()
    }

    /// Makes messages of what is queued. Answers how many.
    pub fn flush(&mut self, out: &mut BytesMut) -> u64 {
        let kind = match self.codec.subprotocol().is_text() {
            true => MessageKind::Text,
            false => MessageKind::Binary,
        };
        if self.close.state() != CloseState::Open {
            // Nothing may follow a close frame.
            self.out = Outgoing::new();
        }
        if out.is_empty()
            && let Some(mut message) = self.out.take_only()
        {
            wrap_message(&mut message, kind);
            *out = message;
            return 1;
        }
        let mut messages = 0;
        for message in self.out.messages() {
            encode_message(out, kind, message, None);
            messages += 1;
        }
        // An idle connection holds no buffer.
        self.out = Outgoing::new();
        messages
    }

    /// Says why, unless nothing can be said any more, and begins to close.
    pub fn fail(&mut self, wrong: Wrong, out: &mut BytesMut) {
        match wrong {
            Wrong::Socket(error) => {
                self.flush(out);
                self.close.failed(out, error, None);
            }
            Wrong::Frame(error) => {
                let failure = Failure::new(error.code()).text(error.to_string());
                self.refuse(failure, CloseCode::for_error(error.code()), out);
            }
            Wrong::Kind => self.close(CloseCode::Unsupported, out),
        }
    }

    /// Sends an `error` frame, then begins to close.
    pub fn refuse(&mut self, failure: Failure, code: CloseCode, out: &mut BytesMut) {
        // The frame is below every bound; if it were not, the close code still tells.
        let _ = self.codec.encode(&ServerFrame::Error(failure), &mut self.out);
        self.close(code, out);
    }

    /// Begins to close after what was sent before.
    pub fn close(&mut self, code: CloseCode, out: &mut BytesMut) {
        self.flush(out);
        self.close.start(out, code, "", None);
        self.frames = VecDeque::new();
        self.wrong = None;
    }

    /// Whether nothing is to be waited for any more.
    pub fn is_finished(&self) -> bool {
        self.close.state() == CloseState::Finished
    }

    /// Keeps what could not be handled in this turn.
    pub fn keep(&mut self, rest: &[u8]) {
        self.rest = rest.to_vec();
    }

    /// What was kept.
    pub fn kept(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.rest)
    }

    fn take(&mut self, kind: MessageKind, payload: &Bytes, counters: &mut GatewayCounters) -> Item {
        counters.messages_in += 1;
        if (kind == MessageKind::Text) != self.codec.subprotocol().is_text() {
            return Item::Wrong(Wrong::Kind);
        }
        // Most messages hold one frame, which needs no queue.
        let (mut first, frames) = (None, &mut self.frames);
        let decoded = self.codec.decode(payload, |frame| match first {
            None => first = Some(frame),
            Some(_) => frames.push_back(frame),
        });
        match decoded {
            Ok(skipped) => counters.frames_skipped += skipped,
            Err(error) => self.wrong = Some(Wrong::Frame(error)),
        }
        match first {
            Some(frame) => {
                counters.frames_in += 1;
                Item::Frame(frame)
            }
            None => Item::Handled,
        }
    }
}

/// The failure that a refused `hello` is told.
pub fn refusal(code: ErrorCode) -> (Failure, CloseCode) {
    (Failure::new(code), CloseCode::for_error(code))
}

const _: () = assert!(HANDSHAKE_BYTES_MAX <= MESSAGE_BYTES_MAX);
