//! From bytes to messages: the decoder of one connection.

use bytes::Bytes;

use super::close::ReceivedClose;
use super::frame::{ControlPayload, FrameHeader, HEADER_BYTES_MAX, Opcode};
use super::{MessageKind, Role, WsError};
use crate::limits::{FRAGMENTS_MAX, MESSAGE_BYTES_MAX};

/// What a decoder takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest message, all fragments together.
    pub message_bytes_max: usize,
    /// Most frames of one message (empty ones count).
    pub fragments_max: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { message_bytes_max: MESSAGE_BYTES_MAX, fragments_max: FRAGMENTS_MAX as u32 }
    }
}

/// What came from the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A whole message. Text has been checked to be UTF-8.
    Message {
        /// Text or binary.
        kind: MessageKind,
        /// Its bytes, unmasked.
        payload: Bytes,
    },
    /// The peer wants a pong with this payload.
    Ping(ControlPayload),
    /// A pong.
    Pong(ControlPayload),
    /// The peer closes; whatever it sends after that is dropped.
    Close(ReceivedClose),
}

/// Turns the bytes of one direction of a connection into events.
///
/// Feed it slices of any size; see the contract in the [module](super). A message that arrives
/// whole in one slice is copied once; text is checked as it arrives, so that wrong text fails
/// before its frame is complete. Memory grows with the bytes that came, never with a length that
/// was merely announced, and none is held between messages.
#[derive(Debug)]
pub struct Decoder {
    peer: Role,
    limits: Limits,
    state: State,
    /// The beginning of a header whose end has not come.
    header: PartialHeader,
    /// The frame whose payload is being read.
    frame: Option<OpenFrame>,
    /// The message whose last fragment has not been read, and its bytes so far.
    message: Option<OpenMessage>,
    payload: Vec<u8>,
    /// The control frame whose end has not come: it may lie between two fragments.
    control: Vec<u8>,
}

impl Decoder {
    /// A decoder for an end in this role: it reads what the other role sends.
    pub const fn new(role: Role, limits: Limits) -> Decoder {
        Decoder {
            peer: role.peer(),
            limits,
            state: State::Open,
            header: PartialHeader { bytes: [0; HEADER_BYTES_MAX], len: 0 },
            frame: None,
            message: None,
            payload: Vec::new(),
            control: Vec::new(),
        }
    }

    /// The next event; takes what it read off the front of `input`. `None`: `input` is used up.
    ///
    /// After an error every further call answers the same error. After a close all input is
    /// dropped.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Event>, WsError> {
        match self.state {
            State::Open => {}
            State::Closed => {
                *input = &[];
                return Ok(None);
            }
            State::Failed(error) => return Err(error),
        }
        let outcome = self.advance(input);
        match &outcome {
            Ok(Some(Event::Close(_))) => self.end(State::Closed),
            Err(error) => self.end(State::Failed(*error)),
            Ok(_) => {}
        }
        outcome
    }

    /// Bytes of heap memory held now; 0 between messages.
    pub fn held_bytes(&self) -> usize {
        self.payload.capacity() + self.control.capacity()
    }

    fn advance(&mut self, input: &mut &[u8]) -> Result<Option<Event>, WsError> {
        loop {
            let frame = match self.frame.take() {
                Some(frame) => frame,
                None => match self.begin_frame(input)? {
                    Some(frame) => frame,
                    None => return Ok(None),
                },
            };
            match self.read_payload(frame, input)? {
                Step::Event(event) => return Ok(Some(event)),
                Step::FrameDone => {}
                Step::NeedInput(frame) => {
                    self.frame = Some(frame);
                    return Ok(None);
                }
            }
        }
    }

    fn begin_frame(&mut self, input: &mut &[u8]) -> Result<Option<OpenFrame>, WsError> {
        let Some(header) = self.header.read(input, self.peer)? else { return Ok(None) };
        if !header.opcode.is_control() {
            self.begin_fragment(&header)?;
        }
        Ok(Some(OpenFrame { header, done_bytes: 0 }))
    }

    fn begin_fragment(&mut self, header: &FrameHeader) -> Result<(), WsError> {
        let start = |kind| OpenMessage { kind, fragments: 0, utf8: Utf8Check::default() };
        let message = match (header.opcode, &mut self.message) {
            (Opcode::Continuation, Some(message)) => message,
            (Opcode::Continuation, None) => return Err(WsError::UnexpectedContinuation),
            (_, Some(_)) => return Err(WsError::ExpectedContinuation),
            (Opcode::Text, message) => message.insert(start(MessageKind::Text)),
            (_, message) => message.insert(start(MessageKind::Binary)),
        };
        message.fragments += 1;
        if message.fragments > self.limits.fragments_max {
            return Err(WsError::TooManyFragments(self.limits.fragments_max));
        }
        let actual = header.payload_bytes.saturating_add(self.payload.len() as u64);
        let max = self.limits.message_bytes_max as u64;
        if actual > max {
            return Err(WsError::MessageTooBig { actual, max });
        }
        Ok(())
    }

    fn read_payload(&mut self, mut frame: OpenFrame, input: &mut &[u8]) -> Result<Step, WsError> {
        let control = frame.header.opcode.is_control();
        let target = if control { &mut self.control } else { &mut self.payload };
        let chunk_at = target.len();
        frame.append_to(target, input);
        if let Some(message) = self.message.as_mut().filter(|_| !control) {
            message.check(&self.payload[chunk_at..])?;
        }
        if frame.missing_bytes() > 0 {
            return Ok(Step::NeedInput(frame));
        }
        if control {
            return self.finish_control(frame.header.opcode).map(Step::Event);
        }
        if !frame.header.fin {
            return Ok(Step::FrameDone);
        }
        let message = self.message.take().expect("begin_fragment opened one");
        message.check_end()?;
        let payload = Bytes::from(std::mem::take(&mut self.payload));
        Ok(Step::Event(Event::Message { kind: message.kind, payload }))
    }

    fn finish_control(&mut self, opcode: Opcode) -> Result<Event, WsError> {
        let payload = std::mem::take(&mut self.control);
        if opcode == Opcode::Close {
            return ReceivedClose::decode(&payload).map(Event::Close);
        }
        let payload = ControlPayload::new(payload).expect("the header was checked");
        Ok(if opcode == Opcode::Ping { Event::Ping(payload) } else { Event::Pong(payload) })
    }

    fn end(&mut self, state: State) {
        self.state = state;
        self.frame = None;
        self.message = None;
        self.payload = Vec::new();
        self.control = Vec::new();
    }
}

/// Decodes `bytes` in chunks of `chunk_bytes`: all events up to the first error, and that error.
///
/// The result does not depend on the chunks; tests and fuzzing hold the decoder to it.
pub fn decode_all(
    role: Role,
    limits: Limits,
    bytes: &[u8],
    chunk_bytes: usize,
) -> (Vec<Event>, Option<WsError>) {
    let mut decoder = Decoder::new(role, limits);
    let mut events = Vec::new();
    for mut chunk in bytes.chunks(chunk_bytes.max(1)) {
        loop {
            match decoder.next(&mut chunk) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(error) => return (events, Some(error)),
            }
        }
    }
    (events, None)
}

#[derive(Clone, Copy, Debug)]
enum State {
    Open,
    Closed,
    Failed(WsError),
}

enum Step {
    NeedInput(OpenFrame),
    FrameDone,
    Event(Event),
}

#[derive(Debug)]
struct PartialHeader {
    bytes: [u8; HEADER_BYTES_MAX],
    len: u8,
}

impl PartialHeader {
    fn read(&mut self, input: &mut &[u8], peer: Role) -> Result<Option<FrameHeader>, WsError> {
        if self.len == 0
            && let Some((header, used)) = FrameHeader::decode(input, peer)?
        {
            *input = &input[used..];
            return Ok(Some(header));
        }
        while let Some((&byte, rest)) = input.split_first() {
            *input = rest;
            self.bytes[usize::from(self.len)] = byte;
            self.len += 1;
            let bytes = &self.bytes[..usize::from(self.len)];
            if let Some((header, _)) = FrameHeader::decode(bytes, peer)? {
                self.len = 0;
                return Ok(Some(header));
            }
        }
        Ok(None)
    }
}

#[derive(Debug)]
struct OpenFrame {
    header: FrameHeader,
    done_bytes: u64,
}

impl OpenFrame {
    fn missing_bytes(&self) -> u64 {
        self.header.payload_bytes - self.done_bytes
    }

    /// Moves what `input` has of the payload to the end of `target`, unmasked.
    fn append_to(&mut self, target: &mut Vec<u8>, input: &mut &[u8]) {
        let missing = self.missing_bytes();
        let chunk_bytes = input.len().min(usize::try_from(missing).unwrap_or(usize::MAX));
        let (chunk, rest) = input.split_at(chunk_bytes);
        *input = rest;
        let start = target.len();
        // The last bytes need no room behind them; for a message that came whole this is the
        // one allocation, of exactly its size.
        if self.header.fin && chunk_bytes as u64 == missing {
            target.reserve_exact(chunk_bytes);
        }
        target.extend_from_slice(chunk);
        if let Some(key) = self.header.mask {
            key.apply(self.done_bytes, &mut target[start..]);
        }
        self.done_bytes += chunk_bytes as u64;
    }
}

#[derive(Debug)]
struct OpenMessage {
    kind: MessageKind,
    fragments: u32,
    utf8: Utf8Check,
}

impl OpenMessage {
    fn check(&mut self, chunk: &[u8]) -> Result<(), WsError> {
        match self.kind {
            MessageKind::Text => self.utf8.push(chunk),
            MessageKind::Binary => Ok(()),
        }
    }

    fn check_end(&self) -> Result<(), WsError> {
        if self.utf8.len == 0 { Ok(()) } else { Err(WsError::NotUtf8) }
    }
}

/// Checks UTF-8 across chunks: remembers the beginning of a character whose end has not come.
#[derive(Debug, Default)]
struct Utf8Check {
    bytes: [u8; 4],
    len: u8,
}

impl Utf8Check {
    fn push(&mut self, mut chunk: &[u8]) -> Result<(), WsError> {
        while self.len > 0 {
            let Some((&byte, rest)) = chunk.split_first() else { return Ok(()) };
            chunk = rest;
            self.bytes[usize::from(self.len)] = byte;
            self.len += 1;
            match std::str::from_utf8(&self.bytes[..usize::from(self.len)]) {
                Ok(_) => self.len = 0,
                Err(error) if error.error_len().is_some() => return Err(WsError::NotUtf8),
                Err(_) => {}
            }
        }
        let Err(error) = std::str::from_utf8(chunk) else { return Ok(()) };
        if error.error_len().is_some() {
            return Err(WsError::NotUtf8);
        }
        let begun = &chunk[error.valid_up_to()..];
        self.bytes[..begun.len()].copy_from_slice(begun);
        self.len = begun.len() as u8;
        Ok(())
    }
}

#[cfg(test)]
#[path = "assembler_tests.rs"]
mod tests;
