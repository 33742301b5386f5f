//! Frames of one turn on their way to one peer, gathered into as few messages as the bounds allow.

use bytes::BytesMut;

use crate::error::WireError;
use crate::limits::{FRAMES_PER_MESSAGE_MAX, MESSAGE_BYTES_MAX};

/// Room that is taken with the first frame of a turn: for an ack and a few short texts.
const FIRST_BYTES: usize = 128;

/// Payloads of the WebSocket messages that carry a turn's frames. Empty, it holds no memory.
///
/// Its owner encodes any number of frames into it, then writes each of [`Outgoing::messages`] with
/// a WebSocket header before it, and drops or clears it. Bounding how much one turn may gather is
/// the owner's part ([`Outgoing::bytes_len`]).
#[derive(Debug, Default)]
pub struct Outgoing {
    bytes: BytesMut,
    /// Where the messages before the last one end.
    ends: Vec<usize>,
    frames_in_last: usize,
}

impl Outgoing {
    /// Nothing to send.
    pub fn new() -> Outgoing {
        Outgoing::default()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes of all messages together, without WebSocket headers.
    pub fn bytes_len(&self) -> usize {
        self.bytes.len()
    }

    /// The payloads of the messages in order, each at most 256 KiB.
    pub fn messages(&self) -> impl Iterator<Item = &[u8]> {
        let ends = self.ends.iter().copied();
        let last = (!self.bytes.is_empty()).then_some(self.bytes.len());
        let mut start = 0;
        ends.chain(last).map(move |end| {
            let message = &self.bytes[start..end];
            start = end;
            message
        })
    }

    /// Takes the message with its memory out, if there is just one.
    pub fn take_only(&mut self) -> Option<BytesMut> {
        if !self.ends.is_empty() || self.bytes.is_empty() {
            return None;
        }
        self.frames_in_last = 0;
        Some(std::mem::take(&mut self.bytes))
    }

    /// Forgets what was sent and keeps the memory for the next turn.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.frames_in_last = 0;
    }

    /// Adds a frame to the last message, or to a new one if it does not fit into that.
    pub(super) fn gather(
        &mut self,
        encode: impl FnOnce(&mut BytesMut) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        let start = self.ends.last().copied().unwrap_or(0);
        let before = self.bytes.len();
        if before == 0 {
            self.bytes.reserve(FIRST_BYTES);
        }
        encode(&mut self.bytes)?;
        let fits = self.bytes.len() - start <= MESSAGE_BYTES_MAX
            && self.frames_in_last < FRAMES_PER_MESSAGE_MAX;
        if !fits && before > start {
            self.ends.push(before);
            self.frames_in_last = 0;
        }
        self.frames_in_last += 1;
        Ok(())
    }

    /// Adds a frame as a message of its own.
    pub(super) fn alone(
        &mut self,
        encode: impl FnOnce(&mut BytesMut) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        let before = self.bytes.len();
        encode(&mut self.bytes)?;
        if before > 0 {
            self.ends.push(before);
        }
        self.frames_in_last = 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(out: &mut Outgoing, bytes: usize) {
        out.gather(|buffer| {
            buffer.resize(buffer.len() + bytes, 7);
            Ok(())
        })
        .expect("cannot fail");
    }

    fn lengths(out: &Outgoing) -> Vec<usize> {
        out.messages().map(<[u8]>::len).collect()
    }

    #[test]
    fn frames_share_a_message_until_it_is_full() {
        let mut out = Outgoing::new();
        assert_eq!(lengths(&out), [0usize; 0]);
        for bytes in [100, MESSAGE_BYTES_MAX - 100, 1, MESSAGE_BYTES_MAX, 5] {
            put(&mut out, bytes);
        }
        assert_eq!(lengths(&out), [MESSAGE_BYTES_MAX, 1, MESSAGE_BYTES_MAX, 5]);
        assert_eq!(out.take_only(), None, "there are several");
        out.clear();
        put(&mut out, 3);
        assert_eq!(lengths(&out), [3]);
        assert_eq!(out.take_only().expect("there is one")[..], [7; 3]);
        assert_eq!(out.take_only(), None);
        put(&mut out, 2);
        assert_eq!(lengths(&out), [2]);
    }

    #[test]
    fn a_message_holds_a_bounded_number_of_frames() {
        let mut out = Outgoing::new();
        for _ in 0..2 * FRAMES_PER_MESSAGE_MAX + 1 {
            put(&mut out, 2);
        }
        assert_eq!(lengths(&out), [2 * FRAMES_PER_MESSAGE_MAX, 2 * FRAMES_PER_MESSAGE_MAX, 2]);
    }

    #[test]
    fn each_json_frame_is_a_message_of_its_own_and_a_failed_one_leaves_nothing() {
        let mut out = Outgoing::new();
        for byte in [1, 2] {
            let add = |buffer: &mut BytesMut| {
                buffer.extend_from_slice(&[byte; 4]);
                Ok(())
            };
            out.alone(add).expect("cannot fail");
            out.alone(|_| Err(WireError::Truncated)).expect_err("it failed");
        }
        assert_eq!(lengths(&out), [4, 4]);
    }
}
