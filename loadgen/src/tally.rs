//! What messages cost on the socket: bytes per kind of frame, WebSocket headers included.
//!
//! A WebSocket message may carry many frames; its header is shared equally among them.

use bytes::Bytes;
use chatring_wire::frame::{ClientFrame, ServerFrame};
use chatring_wire::varint;

use crate::report::Wire;

/// Bytes and frames of one thread's connections. Counts only rise; a measured time is the
/// difference of two copies.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// All bytes received from sockets.
    pub received_bytes: u64,
    /// All bytes written to sockets.
    pub sent_bytes: u64,
    pushes: Kind,
    sends: Kind,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Kind {
    frames: u64,
    frame_bytes: u64,
    header_bytes: f64,
    body_bytes: u64,
}

impl Tally {
    /// A WebSocket message of these frames came.
    pub fn received(&mut self, message: &Bytes, frames: &[ServerFrame]) {
        let Some(sizes) = frame_sizes(message, frames.len()) else { return };
        let share = header_bytes(message.len()) as f64 / frames.len() as f64;
        for (frame, size) in frames.iter().zip(sizes) {
            if let Some(body_bytes) = pushed_body_bytes(frame) {
                self.pushes.add(size, share, body_bytes);
            }
        }
    }

    /// A WebSocket message goes out; `bodies` has an entry per frame, see [`sent_body_bytes`].
    pub fn sent(&mut self, message: &[u8], bodies: impl ExactSizeIterator<Item = Option<usize>>) {
        let count = bodies.len();
        let Some(sizes) = frame_sizes(message, count) else { return };
        let share = (header_bytes(message.len()) + MASK_BYTES) as f64 / count as f64;
        for (body_bytes, size) in bodies.zip(sizes) {
            if let Some(body_bytes) = body_bytes {
                self.sends.add(size, share, body_bytes);
            }
        }
    }

    /// A send over HTTP, whose request has so many bytes.
    pub fn posted(&mut self, request_bytes: usize, body_bytes: usize) {
        self.sends.add(request_bytes, 0.0, body_bytes);
    }

    /// A message over HTTP, with its share of the answer's bytes.
    pub fn answered(&mut self, share_bytes: f64, body_bytes: usize) {
        self.pushes.add(0, share_bytes, body_bytes);
    }

    /// What came since an earlier copy.
    pub fn since(&self, earlier: &Tally) -> Tally {
        Tally {
            received_bytes: self.received_bytes - earlier.received_bytes,
            sent_bytes: self.sent_bytes - earlier.sent_bytes,
            pushes: self.pushes.since(&earlier.pushes),
            sends: self.sends.since(&earlier.sends),
        }
    }

    /// Adds that of another thread.
    pub fn merge(&mut self, other: &Tally) {
        self.received_bytes += other.received_bytes;
        self.sent_bytes += other.sent_bytes;
        self.pushes.merge(&other.pushes);
        self.sends.merge(&other.sends);
    }

    /// The means that a report gives.
    pub fn wire(&self) -> Wire {
        Wire {
            delivered_overhead_bytes: self.pushes.overhead(),
            sent_overhead_bytes: self.sends.overhead(),
            received_bytes: self.received_bytes,
            sent_bytes: self.sent_bytes,
        }
    }
}

impl Kind {
    fn add(&mut self, frame_bytes: usize, header_bytes: f64, body_bytes: usize) {
        self.frames += 1;
        self.frame_bytes += frame_bytes as u64;
        self.header_bytes += header_bytes;
        self.body_bytes += body_bytes as u64;
    }

    fn since(&self, earlier: &Kind) -> Kind {
        Kind {
            frames: self.frames - earlier.frames,
            frame_bytes: self.frame_bytes - earlier.frame_bytes,
            header_bytes: self.header_bytes - earlier.header_bytes,
            body_bytes: self.body_bytes - earlier.body_bytes,
        }
    }

    fn merge(&mut self, other: &Kind) {
        self.frames += other.frames;
        self.frame_bytes += other.frame_bytes;
        self.header_bytes += other.header_bytes;
        self.body_bytes += other.body_bytes;
    }

    fn overhead(&self) -> Option<f64> {
        let bytes = self.frame_bytes as f64 + self.header_bytes - self.body_bytes as f64;
        (self.frames > 0).then(|| (bytes / self.frames as f64 * 100.0).round() / 100.0)
    }
}

/// Length of the body of a frame that sends a message.
pub fn sent_body_bytes(frame: &ClientFrame) -> Option<usize> {
    match frame {
        ClientFrame::Send(send) => Some(send.body.len()),
        _ => None,
    }
}

fn pushed_body_bytes(frame: &ServerFrame) -> Option<usize> {
    match frame {
        ServerFrame::Text { body, .. } => Some(body.len()),
        ServerFrame::Entry { row, .. } => Some(row.body.len()),
        _ => None,
    }
}

const MASK_BYTES: usize = 4;

/// Bytes of a WebSocket header without mask, of a message in one piece.
const fn header_bytes(payload_bytes: usize) -> usize {
    match payload_bytes {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    }
}

/// Size of each frame of a message, its length prefix included; `None` if there are not exactly
/// `count` (one was skipped, so sizes and frames cannot be matched).
fn frame_sizes(message: &[u8], count: usize) -> Option<impl Iterator<Item = usize>> {
    let mut left = message;
    let next = move || {
        let (length, prefix) = varint::take(left).ok()?;
        let size = usize::try_from(length).ok()?.checked_add(prefix)?;
        left = left.get(size..)?;
        Some(size)
    };
    let sizes = std::iter::from_fn(next);
    // Looked at twice rather than kept: there are one or two.
    let whole = sizes.clone().sum::<usize>() == message.len() && sizes.clone().count() == count;
    whole.then_some(sizes)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use chatring_wire::codec::{ClientEncoder, ServerEncoder};
    use chatring_wire::frame::{MessageKind, RequestId, Send};
    use chatring_wire::{Cid, Cmid, MemberNumber, Seq};

    use super::*;

    fn text(seq: u64) -> ServerFrame {
        ServerFrame::Text {
            cid: Cid(5),
            seq: Seq(seq),
            sender: MemberNumber(1),
            time_ms: 1_700_000_000_000 + seq,
            body: Bytes::from_static(&[b'x'; 20]),
        }
    }

    fn message(encoder: &mut ServerEncoder, frames: &[ServerFrame]) -> Bytes {
        let mut out = BytesMut::new();
        for frame in frames {
            encoder.encode(frame, &mut out).unwrap();
        }
        out.freeze()
    }

    #[test]
    fn a_push_costs_its_frame_and_header_less_its_body() {
        let mut encoder = ServerEncoder::new();
        let first = [text(1)];
        let mut tally = Tally::default();
        let payload = message(&mut encoder, &first);
        tally.received(&payload, &first);
        let alone = (payload.len() + 2 - 20) as f64;
        assert_eq!(tally.wire().delivered_overhead_bytes, Some(alone));
        let before = tally;
        // An answer in the same message takes its share of the header and is not counted.
        let second = [text(2), ServerFrame::Done { request: RequestId(1) }];
        let payload = message(&mut encoder, &second);
        tally.received(&payload, &second);
        let done = message(&mut encoder, &second[1..]).len();
        let expected = (payload.len() - done + 1 - 20) as f64;
        assert_eq!(tally.since(&before).wire().delivered_overhead_bytes, Some(expected));
    }

    #[test]
    fn a_send_costs_its_mask_too_and_a_ping_is_no_send() {
        let send = ClientFrame::Send(Send {
            request: RequestId(1),
            cid: Cid(5),
            cmid: Cmid([7; 16]),
            base: Seq(0),
            previous: None,
            kind: MessageKind::TEXT,
            body: Bytes::from_static(&[b'x'; 20]),
        });
        let frames = [send, ClientFrame::Ping { pushes: 0 }];
        let mut encoder = ClientEncoder::new();
        let mut out = BytesMut::new();
        encoder.encode(&frames[0], &mut out).unwrap();
        let send_bytes = out.len();
        encoder.encode(&frames[1], &mut out).unwrap();
        let mut tally = Tally::default();
        tally.sent(&out, frames.iter().map(sent_body_bytes));
        let expected = send_bytes as f64 + 6.0 / 2.0 - 20.0;
        assert_eq!(tally.wire().sent_overhead_bytes, Some(expected));
        assert_eq!(tally.wire().delivered_overhead_bytes, None);
    }

    #[test]
    fn threads_are_added_up() {
        let mut encoder = ServerEncoder::new();
        let frames = [text(1)];
        let payload = message(&mut encoder, &frames);
        let mut one = Tally::default();
        one.received(&payload, &frames);
        let mut both = one;
        both.merge(&one);
        assert_eq!(both.wire(), one.wire());
        assert_eq!(both.pushes.frames, 2);
    }

    #[test]
    fn a_message_with_a_skipped_frame_is_not_attributed() {
        let mut encoder = ServerEncoder::new();
        let frames = [text(1)];
        let mut payload = message(&mut encoder, &frames).to_vec();
        payload.extend_from_slice(&[2, 0x7f, 0]);
        let mut tally = Tally::default();
        tally.received(&payload.into(), &frames);
        assert_eq!(tally, Tally::default());
    }
}
