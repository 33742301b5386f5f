//! Frames of RFC 6455, section 5: headers both ways, and writers of whole messages.
//!
//! ```text
//!  byte 0           byte 1                 then                     then
//! +-+---+------+   +-+-------------+   +------------------+   +------------------+
//! |F|RSV|opcode|   |M|length 0..125|   | nothing          |   | mask key,        |
//! |I| 0 |      |   |A| 126 ->      |   | length as u16 BE |   | 4 bytes, if MASK |
//! |N|   |      |   |S| 127 ->      |   | length as u64 BE |   |                  |
//! |1| 3 |  4   |   |K|      7      |   | (shortest only)  |   |                  |
//! +-+---+------+   +-+-------------+   +------------------+   +------------------+
//! ```

use bytes::{BufMut, Bytes, BytesMut};

use super::{MaskKey, MessageKind, Role, WsError};

/// Longest header of a frame.
pub const HEADER_BYTES_MAX: usize = 14;
/// Longest payload of a control frame (RFC 6455, 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;
/// Longest reason in a close frame: a control payload less the code.
pub const CLOSE_REASON_BYTES_MAX: usize = CONTROL_BYTES_MAX - 2;

/// Room that [`OpenMessage`] leaves for the header: that of an unmasked medium-sized message.
const GAP_BYTES: usize = 4;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// A further fragment of a message.
    Continuation = 0x0,
    /// The first (or only) fragment of a text message.
    Text = 0x1,
    /// The first (or only) fragment of a binary message.
    Binary = 0x2,
    /// The peer closes.
    Close = 0x8,
    /// The peer wants a pong with the same payload.
    Ping = 0x9,
    /// The answer to a ping, or a heartbeat.
    Pong = 0xa,
}

impl Opcode {
    /// Whether it is a control frame: short, never fragmented, allowed between fragments.
    pub const fn is_control(self) -> bool {
        self as u8 >= 0x8
    }

    fn from_bits(bits: u8) -> Result<Opcode, WsError> {
        Ok(match bits {
            0x0 => Opcode::Continuation,
            0x1 => Opcode::Text,
            0x2 => Opcode::Binary,
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xa => Opcode::Pong,
            _ => return Err(WsError::ReservedOpcode(bits)),
        })
    }
}

impl From<MessageKind> for Opcode {
    fn from(kind: MessageKind) -> Opcode {
        match kind {
            MessageKind::Text => Opcode::Text,
            MessageKind::Binary => Opcode::Binary,
        }
    }
}

/// The header of a frame, checked on its own (not against the frames before it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Whether it is the last fragment of its message.
    pub fin: bool,
    /// What the frame is.
    pub opcode: Opcode,
    /// The key, if the payload is masked.
    pub mask: Option<MaskKey>,
    /// Length of the payload, below 2^63.
    pub payload_bytes: u64,
}

impl FrameHeader {
    /// Reads a header that `sender` sent; `None` if `input` ends inside of it.
    ///
    /// With it comes the header's own length. Errors are told as soon as the bytes that show
    /// them are there: reserved bits and opcodes, masks (required of clients, forbidden to
    /// servers), lengths that are not in their shortest form, long or fragmented control frames.
    pub fn decode(input: &[u8], sender: Role) -> Result<Option<(FrameHeader, usize)>, WsError> {
        let &[first, second, ref rest @ ..] = input else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(WsError::ReservedBits);
        }
        let fin = first & 0x80 != 0;
        let opcode = Opcode::from_bits(first & 0x0f)?;
        let masked = second & 0x80 != 0;
        match (sender, masked) {
            (Role::Client, false) => return Err(WsError::MaskMissing),
            (Role::Server, true) => return Err(WsError::MaskForbidden),
            _ => {}
        }
        let short = second & 0x7f;
        if opcode.is_control() {
            if !fin {
                return Err(WsError::FragmentedControl);
            }
            if usize::from(short) > CONTROL_BYTES_MAX {
                return Err(WsError::ControlTooLong);
            }
        }
        let Some((payload_bytes, rest)) = decode_length(short, rest)? else { return Ok(None) };
        let (mask, rest) = match (masked, rest.split_first_chunk::<4>()) {
            (false, _) => (None, rest),
            (true, Some((key, rest))) => (Some(MaskKey(*key)), rest),
            (true, None) => return Ok(None),
        };
        let header = FrameHeader { fin, opcode, mask, payload_bytes };
        Ok(Some((header, input.len() - rest.len())))
    }

    /// Appends the header.
    pub fn encode(&self, out: &mut BytesMut) {
        let (bytes, len) = self.to_bytes();
        out.put_slice(&bytes[..len]);
    }

    fn to_bytes(self) -> ([u8; HEADER_BYTES_MAX], usize) {
        debug_assert!(self.payload_bytes < 1 << 63, "no memory holds such a payload");
        let mut bytes = [0; HEADER_BYTES_MAX];
        bytes[0] = u8::from(self.fin) << 7 | self.opcode as u8;
        let mask_bit = u8::from(self.mask.is_some()) << 7;
        let mut len = match self.payload_bytes {
            0..=125 => {
                bytes[1] = mask_bit | self.payload_bytes as u8;
                2
            }
            126..=0xffff => {
                bytes[1] = mask_bit | 126;
                bytes[2..4].copy_from_slice(&(self.payload_bytes as u16).to_be_bytes());
                4
            }
            _ => {
                bytes[1] = mask_bit | 127;
                bytes[2..10].copy_from_slice(&self.payload_bytes.to_be_bytes());
                10
            }
        };
        if let Some(MaskKey(key)) = self.mask {
            bytes[len..len + 4].copy_from_slice(&key);
            len += 4;
        }
        (bytes, len)
    }
}

/// A payload short enough for a control frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlPayload(Bytes);

impl ControlPayload {
    /// Takes it over; `None` if it has more than [`CONTROL_BYTES_MAX`] bytes.
    pub fn new(bytes: impl Into<Bytes>) -> Option<ControlPayload> {
        let bytes = bytes.into();
        (bytes.len() <= CONTROL_BYTES_MAX).then_some(ControlPayload(bytes))
    }
}

impl AsRef<[u8]> for ControlPayload {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Appends a header: `mask` is the key of a client and `None` for a server.
///
/// The caller appends the payload itself, masked with [`MaskKey::apply`] if there is a key.
pub fn encode_header(
    out: &mut BytesMut,
    fin: bool,
    opcode: Opcode,
    payload_bytes: usize,
    mask: Option<MaskKey>,
) {
    FrameHeader { fin, opcode, mask, payload_bytes: payload_bytes as u64 }.encode(out);
}

/// Appends a whole message in one frame; copies the payload once.
pub fn encode_message(
    out: &mut BytesMut,
    kind: MessageKind,
    payload: &[u8],
    mask: Option<MaskKey>,
) {
    encode_frame(out, kind.into(), payload, mask);
}

/// Makes an unmasked message of a payload, in its own memory: the payload moves behind the header.
pub fn wrap_message(payload: &mut BytesMut, kind: MessageKind) {
    let payload_bytes = payload.len();
    let header = FrameHeader {
        fin: true,
        opcode: kind.into(),
        mask: None,
        payload_bytes: payload_bytes as u64,
    };
    let (bytes, header_bytes) = header.to_bytes();
    payload.put_bytes(0, header_bytes);
    payload.copy_within(..payload_bytes, header_bytes);
    payload[..header_bytes].copy_from_slice(&bytes[..header_bytes]);
}

/// Appends a ping.
pub fn encode_ping(out: &mut BytesMut, payload: &ControlPayload, mask: Option<MaskKey>) {
    encode_frame(out, Opcode::Ping, payload.as_ref(), mask);
}

/// Appends a pong: the answer to a ping with the same payload.
pub fn encode_pong(out: &mut BytesMut, payload: &ControlPayload, mask: Option<MaskKey>) {
    encode_frame(out, Opcode::Pong, payload.as_ref(), mask);
}

/// Appends a close frame; without a code it is empty and the reason is left out.
///
/// A reason above [`CLOSE_REASON_BYTES_MAX`] is cut at a character's border.
pub fn encode_close(out: &mut BytesMut, code: Option<u16>, reason: &str, mask: Option<MaskKey>) {
    let Some(code) = code else { return encode_frame(out, Opcode::Close, &[], mask) };
    let reason = &reason[..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)];
    let mut payload = [0; CONTROL_BYTES_MAX];
    let used = 2 + reason.len();
    payload[..2].copy_from_slice(&code.to_be_bytes());
    payload[2..used].copy_from_slice(reason.as_bytes());
    encode_frame(out, Opcode::Close, &payload[..used], mask);
}

/// A message that is being written straight into the output, its length not known yet.
///
/// ```text
/// out  [.. earlier frames ..|gap 4|payload as the caller appends it ..]
///                           ^ begin                                  ^ finish
/// ```
/// `finish` puts the header in front. Only a message whose header is not of the gap's size
/// moves: one below 126 bytes by 2 bytes, a masked one or one above 64 KiB by 4 to 10.
#[must_use = "the gap stays in the output unless the message is finished or abandoned"]
#[derive(Debug)]
pub struct OpenMessage {
    start: usize,
}

impl OpenMessage {
    /// Leaves a gap for the header; append the payload to `out` next.
    pub fn begin(out: &mut BytesMut) -> OpenMessage {
        let start = out.len();
        out.put_bytes(0, GAP_BYTES);
        OpenMessage { start }
    }

    /// Length of what was appended since.
    pub fn payload_bytes(&self, out: &BytesMut) -> usize {
        out.len() - self.start - GAP_BYTES
    }

    /// Writes the header, and masks the payload if there is a key.
    pub fn finish(self, out: &mut BytesMut, kind: MessageKind, mask: Option<MaskKey>) {
        let payload_bytes = self.payload_bytes(out);
        let header = FrameHeader {
            fin: true,
            opcode: kind.into(),
            mask,
            payload_bytes: payload_bytes as u64,
        };
        let (bytes, header_bytes) = header.to_bytes();
        let payload_at = self.start + GAP_BYTES;
        let moved_to = self.start + header_bytes;
        if moved_to > payload_at {
            out.put_bytes(0, moved_to - payload_at);
        }
        out.copy_within(payload_at..payload_at + payload_bytes, moved_to);
        out.truncate(moved_to + payload_bytes);
        out[self.start..moved_to].copy_from_slice(&bytes[..header_bytes]);
        if let Some(key) = mask {
            key.apply(0, &mut out[moved_to..]);
        }
    }

    /// Takes back the gap and what was appended since.
    pub fn abandon(self, out: &mut BytesMut) {
        out.truncate(self.start);
    }
}

fn decode_length(short: u8, rest: &[u8]) -> Result<Option<(u64, &[u8])>, WsError> {
    let (length, shortest, rest) = match short {
        126 => match rest.split_first_chunk::<2>() {
            Some((bytes, rest)) => (u64::from(u16::from_be_bytes(*bytes)), 126, rest),
            None => return Ok(None),
        },
        127 => match rest.split_first_chunk::<8>() {
            Some((bytes, rest)) => (u64::from_be_bytes(*bytes), 0x1_0000, rest),
            None => return Ok(None),
        },
        _ => (u64::from(short), 0, rest),
    };
    if length < shortest || length >= 1 << 63 {
        return Err(WsError::Length);
    }
    Ok(Some((length, rest)))
}

fn encode_frame(out: &mut BytesMut, opcode: Opcode, payload: &[u8], mask: Option<MaskKey>) {
    out.reserve(HEADER_BYTES_MAX + payload.len());
    encode_header(out, true, opcode, payload.len(), mask);
    let start = out.len();
    out.put_slice(payload);
    if let Some(key) = mask {
        key.apply(0, &mut out[start..]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: MaskKey = MaskKey([0x37, 0xfa, 0x21, 0x3d]);

    fn encoded(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
        let mut out = BytesMut::new();
        write(&mut out);
        out.to_vec()
    }

    #[test]
    fn writes_the_examples_of_the_rfc() {
        let hello = |mask| encoded(|out| encode_message(out, MessageKind::Text, b"Hello", mask));
        assert_eq!(hello(None), [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        assert_eq!(
            hello(Some(KEY)),
            [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]
        );
        let payload = ControlPayload::new(&b"Hello"[..]).unwrap();
        assert_eq!(
            encoded(|out| encode_ping(out, &payload, None)),
            [0x89, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]
        );
        assert_eq!(
            encoded(|out| encode_header(out, true, Opcode::Binary, 256, None)),
            [0x82, 0x7e, 0x01, 0x00]
        );
        assert_eq!(
            encoded(|out| encode_header(out, true, Opcode::Binary, 65536, None)),
            [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]
        );
    }

    #[test]
    fn refuses_what_a_header_must_not_be() {
        let from_server = |bytes: &[u8]| FrameHeader::decode(bytes, Role::Server).map(|_| ());
        for first in [0xc1, 0xa1, 0x91] {
            assert_eq!(from_server(&[first, 0]), Err(WsError::ReservedBits));
        }
        for opcode in [3, 4, 5, 6, 7, 0xb, 0xc, 0xd, 0xe, 0xf] {
            assert_eq!(from_server(&[0x80 | opcode, 0]), Err(WsError::ReservedOpcode(opcode)));
        }
        assert_eq!(from_server(&[0x81, 0x80]), Err(WsError::MaskForbidden));
        assert_eq!(FrameHeader::decode(&[0x81, 0], Role::Client), Err(WsError::MaskMissing));
        assert_eq!(from_server(&[0x09, 0]), Err(WsError::FragmentedControl));
        assert_eq!(from_server(&[0x89, 126]), Err(WsError::ControlTooLong));
        assert_eq!(from_server(&[0x82, 126, 0, 125]), Err(WsError::Length));
        assert_eq!(from_server(&[0x82, 126, 0, 126]), Ok(()));
        assert_eq!(from_server(&[0x82, 127, 0, 0, 0, 0, 0, 0, 255, 255]), Err(WsError::Length));
        assert_eq!(from_server(&[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]), Ok(()));
        assert_eq!(from_server(&[0x82, 127, 128, 0, 0, 0, 0, 0, 0, 0]), Err(WsError::Length));
    }

    #[test]
    fn cuts_a_close_reason_between_characters() {
        let long = format!("{}é", "a".repeat(CLOSE_REASON_BYTES_MAX - 1));
        let bytes = encoded(|out| encode_close(out, Some(1000), &long, None));
        assert_eq!(bytes.len(), 2 + 2 + CLOSE_REASON_BYTES_MAX - 1);
        assert_eq!(encoded(|out| encode_close(out, None, "x", None)), [0x88, 0]);
    }

    #[test]
    fn a_message_of_unknown_length_equals_one_of_known_length() {
        for size in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
            for mask in [None, Some(KEY)] {
                let payload = vec![7; size];
                let known = encoded(|out| encode_message(out, MessageKind::Binary, &payload, mask));
                let mut out = BytesMut::from(&b"before"[..]);
                let open = OpenMessage::begin(&mut out);
                out.put_slice(&payload);
                assert_eq!(open.payload_bytes(&out), size);
                open.finish(&mut out, MessageKind::Binary, mask);
                assert_eq!(out[..6], b"before"[..]);
                assert_eq!(out[6..], known[..], "{size} bytes");
                if mask.is_none() {
                    let mut wrapped = BytesMut::from(&payload[..]);
                    wrap_message(&mut wrapped, MessageKind::Binary);
                    assert_eq!(wrapped[..], known[..], "{size} bytes");
                }
                let open = OpenMessage::begin(&mut out);
                out.put_slice(b"never mind");
                open.abandon(&mut out);
                assert_eq!(out.len(), 6 + known.len());
            }
        }
    }

    proptest! {
        #[test]
        fn headers_come_back_and_every_prefix_is_incomplete(
            fin: bool,
            opcode in prop::sample::select(vec![
                Opcode::Continuation, Opcode::Text, Opcode::Binary,
                Opcode::Close, Opcode::Ping, Opcode::Pong,
            ]),
            key: Option<[u8; 4]>,
            shift in 0u32..64,
            number: u64,
        ) {
            let length = (number >> 1) >> shift;
            let control = opcode.is_control();
            let header = FrameHeader {
                fin: fin || control,
                opcode,
                mask: key.map(MaskKey),
                payload_bytes: if control { length % 126 } else { length },
            };
            let sender = if key.is_some() { Role::Client } else { Role::Server };
            let bytes = encoded(|out| header.encode(out));
            for len in 0..bytes.len() {
                prop_assert_eq!(FrameHeader::decode(&bytes[..len], sender), Ok(None));
            }
            let expected = Ok(Some((header, bytes.len())));
            prop_assert_eq!(FrameHeader::decode(&bytes, sender), expected);
        }
    }
}
