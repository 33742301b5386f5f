//! RFC 6455 for both ends, without I/O: handshake, frames, messages, closing.
//!
//! ```text
//!            bytes read, any chunking                       one buffer, one write
//!                     |                                              ^
//!    ServerHandshake / ClientHandshake  (once)                       |
//!                     | rest of the bytes                            |
//!                     v                                              |
//!   +---------------- Decoder ----------------+      +-------- BytesMut out --------+
//!   | next(&mut input) -> Message(kind, data) |----->| the caller's answers:        |
//!   |                     Ping(payload) ------|----->|   encode_pong                |
//!   |                     Pong(payload)       |      |   encode_message, OpenMessage|
//!   |                     Close(close) -------|----->|   CloseHandshake::received   |
//!   |                     Err(WsError) -------|----->|   CloseHandshake::failed     |
//!   +-----------------------------------------+      +------------------------------+
//! ```
//!
//! The contract is the same for both ends:
//!
//! 1. Read into any buffer (a server lends one per shard to all its connections) and call
//!    [`Decoder::next`] until it gives `None`: the bytes are used up then, and what belongs to an
//!    unfinished frame has been copied. The buffer is free for the next connection.
//! 2. Append answers and messages to one [`BytesMut`](bytes::BytesMut) and write it once. A server
//!    passes `None` as the mask, a client four fresh random bytes for each frame.
//! 3. Stop at an error or a close: [`CloseHandshake`] writes what the peer is owed and its state
//!    tells when the socket may go. Nothing may be sent after a close frame.
//!
//! A `Decoder` holds heap memory only inside a frame or a fragmented message.
//! Extensions are never agreed on, so reserved bits are errors.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod assembler;
mod close;
mod frame;
mod handshake;
mod mask;
#[cfg(test)]
mod oracle_tests;

use thiserror::Error;

pub use assembler::{Decoder, Event, Limits, decode_all};
pub use close::{CloseHandshake, CloseState, ReceivedClose};
pub use frame::{
    CLOSE_REASON_BYTES_MAX, CONTROL_BYTES_MAX, ControlPayload, FrameHeader, HEADER_BYTES_MAX,
    Opcode, OpenMessage, encode_close, encode_header, encode_message, encode_ping, encode_pong,
    wrap_message,
};
pub use handshake::{
    ClientHandshake, ClientHandshakeError, ClientProgress, ClientRequest, HandshakeError,
    HttpStatus, PlainRequest, ServerHandshake, ServerProgress, Upgrade,
};
pub use mask::MaskKey;

use crate::error::CloseCode;

/// Which end of a connection somebody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The end that connected; it masks what it sends.
    Client,
    /// The end that accepted.
    Server,
}

impl Role {
    /// The other end.
    pub const fn peer(self) -> Role {
        match self {
            Role::Client => Role::Server,
            Role::Server => Role::Client,
        }
    }
}

/// What a message carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// UTF-8, checked when it is received; whoever sends it has to see to it.
    Text,
    /// Any bytes.
    Binary,
}

/// Why a peer's bytes ended the connection. All of these are the peer's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WsError {
    /// A reserved bit without an extension that would give it a meaning.
    #[error("a reserved bit is set and no extension was agreed on")]
    ReservedBits,
    /// An opcode that the RFC does not define.
    #[error("opcode {0:#x} is reserved")]
    ReservedOpcode(u8),
    /// A client's frame without a mask.
    #[error("a frame of a client is not masked")]
    MaskMissing,
    /// A server's frame with a mask.
    #[error("a frame of a server is masked")]
    MaskForbidden,
    /// A length that is not in its shortest form, or has its top bit set.
    #[error("a length is not in its shortest form or above 2^63")]
    Length,
    /// A control frame that is not its message's last.
    #[error("a control frame is fragmented")]
    FragmentedControl,
    /// A control frame above 125 bytes.
    #[error("a control frame has more than {CONTROL_BYTES_MAX} bytes")]
    ControlTooLong,
    /// A continuation that continues nothing.
    #[error("a continuation without a message to continue")]
    UnexpectedContinuation,
    /// A new message before the last fragment of the one before.
    #[error("a new message inside a fragmented one")]
    ExpectedContinuation,
    /// A message above the bound; told by the header, before the payload is taken.
    #[error("a message of at least {actual} bytes, at most {max} are allowed")]
    MessageTooBig {
        /// Bytes of the message up to and including this frame.
        actual: u64,
        /// What is allowed.
        max: u64,
    },
    /// A message in too many fragments.
    #[error("a message in more than {0} fragments")]
    TooManyFragments(u32),
    /// Text (or a close reason) that is not UTF-8.
    #[error("text is not UTF-8")]
    NotUtf8,
    /// A close frame of one byte: half a code.
    #[error("a close frame holds half a code")]
    CloseTooShort,
    /// A close code that must not travel.
    #[error("close code {0} must not travel")]
    CloseCode(u16),
}

impl WsError {
    /// The close code that the peer is told.
    pub const fn close_code(self) -> CloseCode {
        match self {
            WsError::MessageTooBig { .. } | WsError::TooManyFragments(_) => CloseCode::TooBig,
            WsError::NotUtf8 => CloseCode::InvalidPayload,
            _ => CloseCode::Protocol,
        }
    }
}
