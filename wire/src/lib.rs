//! The Chatring protocol: ids, frames in binary and JSON, and the WebSocket codec below them.
//!
//! Nothing in here does I/O, reads a clock or draws random numbers: bytes go in and frames come
//! out, or the other way round. `docs/protocol.md` specifies every byte; its examples are checked
//! here.

#![forbid(unsafe_code)]

pub mod codec;
pub mod error;
pub mod frame;
pub mod id;
pub mod json;
pub mod limits;
#[cfg(feature = "link")]
pub mod link;
#[cfg(test)]
mod samples;
pub mod varint;
pub mod ws;

pub use codec::{ClientCodec, Outgoing, ServerCodec, Subprotocol};
pub use error::{CloseCode, ErrorClass, ErrorCode, WireError};
pub use frame::{ClientFrame, ServerFrame};
pub use id::{
    Cid, Cmid, DeviceId, HistoryId, InstallationId, MemberNumber, Ordinal, Seq, Uid, Vshard,
};
