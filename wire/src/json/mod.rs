//! The JSON form of the frames: stateless, every number written out, for people and scripts.
//!
//! A message is one object or an array of them. Each has a `type`, the frame's name. Ids are
//! strings of hexadecimal digits, bytes are base64url without padding, a text's body is a plain
//! string, numbers lie below 2^53, and keys that are not known are skipped.

mod read;
mod read_server;
mod write;

pub use read::{decode_client, decode_server};
pub use write::{encode_client, encode_server};

#[cfg(test)]
mod tests;
