//! Frames to bytes and back: the two subprotocols, one codec per end that speaks either, and the
//! gathering of frames into WebSocket messages.
//!
//! ```text
//!  ServerFrame ─ServerCodec::encode─▶ Outgoing ─WebSocket─▶ ClientCodec::decode─▶ ServerFrame
//!  ClientFrame ─ClientCodec::encode─▶ Outgoing ─WebSocket─▶ ServerCodec::decode─▶ ClientFrame
//! ```

mod alias;
pub mod client;
mod fields;
mod outgoing;
mod page;
pub mod server;

use bytes::Bytes;

pub use client::{ClientEncoder, ServerDecoder};
pub(crate) use fields::{check_body, check_length, utf8};
pub use outgoing::Outgoing;
pub(crate) use page::check_page;
pub use server::{ClientDecoder, ServerEncoder};

use crate::error::WireError;
use crate::frame::{ClientFrame, ServerFrame};
use crate::json;

/// Name of the binary subprotocol in the WebSocket handshake.
pub const SUBPROTOCOL_BINARY: &str = "chatring.v1";
/// Name of the JSON subprotocol in the WebSocket handshake.
pub const SUBPROTOCOL_JSON: &str = "chatring.v1.json";

/// What both ends agreed to speak in the WebSocket handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subprotocol {
    /// `chatring.v1`, in binary WebSocket messages.
    Binary,
    /// `chatring.v1.json`, in text WebSocket messages.
    Json,
}

impl Subprotocol {
    /// The one with this name in the handshake.
    pub fn from_name(name: &str) -> Option<Subprotocol> {
        match name {
            SUBPROTOCOL_BINARY => Some(Subprotocol::Binary),
            SUBPROTOCOL_JSON => Some(Subprotocol::Json),
            _ => None,
        }
    }

    /// The first one of those that a client offers, in its order, that is known.
    pub fn choose<'a>(offered: impl IntoIterator<Item = &'a str>) -> Option<Subprotocol> {
        offered.into_iter().find_map(|name| Subprotocol::from_name(name.trim()))
    }

    /// Its name in the handshake.
    pub const fn name(self) -> &'static str {
        match self {
            Subprotocol::Binary => SUBPROTOCOL_BINARY,
            Subprotocol::Json => SUBPROTOCOL_JSON,
        }
    }

    /// Whether its messages are WebSocket text messages; the other kind is refused (close 1003).
    pub const fn is_text(self) -> bool {
        matches!(self, Subprotocol::Json)
    }
}

/// The server's end of a connection: encodes what the server says and decodes what the client says.
#[derive(Debug)]
pub enum ServerCodec {
    /// Speaks `chatring.v1`.
    Binary {
        /// Of the server's frames.
        encoder: ServerEncoder,
        /// Of the client's frames.
        decoder: ServerDecoder,
    },
    /// Speaks `chatring.v1.json`.
    Json,
}

impl ServerCodec {
    /// For a new connection; binary frames of the client above `frame_bytes_max` are refused.
    pub fn new(subprotocol: Subprotocol, frame_bytes_max: usize) -> ServerCodec {
        match subprotocol {
            Subprotocol::Binary => ServerCodec::Binary {
                encoder: ServerEncoder::new(),
                decoder: ServerDecoder::new(frame_bytes_max),
            },
            Subprotocol::Json => ServerCodec::Json,
        }
    }

    /// What it speaks.
    pub const fn subprotocol(&self) -> Subprotocol {
        match self {
            ServerCodec::Binary { .. } => Subprotocol::Binary,
            ServerCodec::Json => Subprotocol::Json,
        }
    }

    /// Appends a frame to `out`, which must be sent in full and in order.
    ///
    /// # Errors
    /// The frame is above a bound, or JSON cannot carry it. Codec and `out` are as they were.
    pub fn encode(&mut self, frame: &ServerFrame, out: &mut Outgoing) -> Result<(), WireError> {
        match self {
            ServerCodec::Binary { encoder, .. } => out.gather(|bytes| encoder.encode(frame, bytes)),
            ServerCodec::Json => out.alone(|bytes| json::encode_server(frame, bytes)),
        }
    }

    /// Gives the frames of one received WebSocket message to `on_frame`, in order; tells how many
    /// frames of a later version were skipped.
    ///
    /// # Errors
    /// The first frame that is not right, after those before it were given out: close the
    /// connection with [`WireError::code`].
    pub fn decode(
        &mut self,
        message: &Bytes,
        on_frame: impl FnMut(ClientFrame),
    ) -> Result<u64, WireError> {
        match self {
            ServerCodec::Binary { decoder, .. } => decoder.decode_message(message, on_frame),
            ServerCodec::Json => json::decode_client(message, on_frame),
        }
    }
}

/// The client's end of a connection: encodes what the client says and decodes what the server says.
#[derive(Debug)]
pub enum ClientCodec {
    /// Speaks `chatring.v1`.
    Binary {
        /// Of the client's frames.
        encoder: ClientEncoder,
        /// Of the server's frames.
        decoder: ClientDecoder,
    },
    /// Speaks `chatring.v1.json`.
    Json,
}

impl ClientCodec {
    /// For a new connection; `frame_bytes_max` is what the client announces in its `hello`.
    pub fn new(subprotocol: Subprotocol, frame_bytes_max: usize) -> ClientCodec {
        match subprotocol {
            Subprotocol::Binary => ClientCodec::Binary {
                encoder: ClientEncoder::new(),
                decoder: ClientDecoder::new(frame_bytes_max),
            },
            Subprotocol::Json => ClientCodec::Json,
        }
    }

    /// What it speaks.
    pub const fn subprotocol(&self) -> Subprotocol {
        match self {
            ClientCodec::Binary { .. } => Subprotocol::Binary,
            ClientCodec::Json => Subprotocol::Json,
        }
    }

    /// Appends a frame to `out`, which must be sent in full and in order.
    ///
    /// # Errors
    /// The frame is above a bound, or JSON cannot carry it. Codec and `out` are as they were.
    pub fn encode(&mut self, frame: &ClientFrame, out: &mut Outgoing) -> Result<(), WireError> {
        match self {
            ClientCodec::Binary { encoder, .. } => out.gather(|bytes| encoder.encode(frame, bytes)),
            ClientCodec::Json => out.alone(|bytes| json::encode_client(frame, bytes)),
        }
    }

    /// Gives the frames of one received WebSocket message to `on_frame`, in order; tells how many
    /// frames of a later version were skipped.
    ///
    /// # Errors
    /// The first frame that is not right, after those before it were given out: close the
    /// connection with [`WireError::code`].
    pub fn decode(
        &mut self,
        message: &Bytes,
        on_frame: impl FnMut(ServerFrame),
    ) -> Result<u64, WireError> {
        match self {
            ClientCodec::Binary { decoder, .. } => decoder.decode_message(message, on_frame),
            ClientCodec::Json => json::decode_server(message, on_frame),
        }
    }
}

#[cfg(test)]
mod tests;
