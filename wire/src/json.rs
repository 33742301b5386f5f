//! The JSON form of the frames: stateless, every number written out.

use bytes::{Bytes, BytesMut};

use crate::error::WireError;
use crate::frame::{ClientFrame, ServerFrame};

const NOT_SPOKEN: WireError = WireError::Json("this build does not speak it");

/// Appends a client's frame.
///
/// # Errors
/// Always, as long as JSON is not spoken.
pub fn encode_client(_frame: &ClientFrame, _out: &mut BytesMut) -> Result<(), WireError> {
    Err(NOT_SPOKEN)
}

/// Appends a server's frame.
///
/// # Errors
/// Always, as long as JSON is not spoken.
pub fn encode_server(_frame: &ServerFrame, _out: &mut BytesMut) -> Result<(), WireError> {
    Err(NOT_SPOKEN)
}

/// Reads the frames of one message of a client.
///
/// # Errors
/// Always, as long as JSON is not spoken.
pub fn decode_client(
    _message: &Bytes,
    _on_frame: impl FnMut(ClientFrame),
) -> Result<u64, WireError> {
    Err(NOT_SPOKEN)
}

/// Reads the frames of one message of a server.
///
/// # Errors
/// Always, as long as JSON is not spoken.
pub fn decode_server(
    _message: &Bytes,
    _on_frame: impl FnMut(ServerFrame),
) -> Result<u64, WireError> {
    Err(NOT_SPOKEN)
}
