//! Both ends of the binary codec against each other, and against bytes that are wrong.

use bytes::{BufMut, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::frame::{Failure, RequestId};
use crate::id::{Cid, MemberNumber, Seq};
use crate::limits::{BODY_BYTES_MAX, FRAME_BYTES_MAX, FRAMES_PER_MESSAGE_MAX};
use crate::samples::{client_frame, server_frame};

const CID: Cid = Cid(0xabc0_0000_0000_0001);
const WEBSOCKET_HEADER_BYTES: usize = 2;

fn text(seq: u64, time_ms: u64, body: &'static str) -> ServerFrame {
    let body = Bytes::from_static(body.as_bytes());
    ServerFrame::Text { cid: CID, seq: Seq(seq), sender: MemberNumber(1), time_ms, body }
}

fn decode_server(message: &[u8]) -> Result<Vec<ServerFrame>, WireError> {
    let mut frames = Vec::new();
    let message = Bytes::copy_from_slice(message);
    ClientDecoder::new(FRAME_BYTES_MAX).decode_message(&message, |frame| frames.push(frame))?;
    Ok(frames)
}

fn decode_client(message: &[u8]) -> Result<Vec<ClientFrame>, WireError> {
    let mut frames = Vec::new();
    let message = Bytes::copy_from_slice(message);
    ServerDecoder::new(FRAME_BYTES_MAX).decode_message(&message, |frame| frames.push(frame))?;
    Ok(frames)
}

#[test]
fn a_delivered_text_of_20_bytes_costs_at_most_12_more() {
    let mut encoder = ServerEncoder::new();
    let time_ms = 1_800_000_000_000;
    let mut out = BytesMut::new();
    for cid in 0..200 {
        let mut first = text(41, time_ms, "the first one");
        if let ServerFrame::Text { cid: in_frame, .. } = &mut first {
            *in_frame = Cid(cid);
        }
        encoder.encode(&first, &mut out).expect("within bounds");
    }
    encoder.encode(&text(41, time_ms, "x"), &mut out).expect("within bounds");
    out.clear();
    // Alias 200, so 2 bytes of it; 15 minutes later, so 3 bytes of time.
    let next = text(42, time_ms + 900_000, "twenty bytes of text");
    encoder.encode(&next, &mut out).expect("within bounds");
    assert!(out.len() - 20 + WEBSOCKET_HEADER_BYTES <= 12, "{} bytes", out.len());
    let soon = text(43, time_ms + 900_020, "twenty bytes of text");
    out.clear();
    encoder.encode(&soon, &mut out).expect("within bounds");
    assert_eq!(out.len() - 20 + WEBSOCKET_HEADER_BYTES, 9);
}

#[test]
fn a_frame_that_cannot_be_encoded_defines_no_alias_and_leaves_no_byte() {
    let mut encoder = ServerEncoder::new();
    let mut out = BytesMut::new();
    let body = Bytes::from(vec![b'a'; BODY_BYTES_MAX + 1]);
    let (seq, sender) = (Seq(1), MemberNumber(0));
    let long = ServerFrame::Text { cid: CID, seq, sender, time_ms: 5, body };
    encoder.encode(&long, &mut out).expect_err("above the bound");
    assert!(out.is_empty());
    encoder.encode(&text(1, 5, "a"), &mut out).expect("within bounds");
    assert_eq!(decode_server(&out), Ok(vec![text(1, 5, "a")]));
}

#[test]
fn a_body_of_the_largest_size_travels_and_is_a_slice_of_the_message() {
    let body = Bytes::from(vec![b'a'; BODY_BYTES_MAX]);
    let (seq, sender) = (Seq(1), MemberNumber(0));
    let frame = ServerFrame::Text { cid: CID, seq, sender, time_ms: 5, body };
    let mut out = BytesMut::new();
    ServerEncoder::new().encode(&frame, &mut out).expect("within bounds");
    let message = out.freeze();
    let inside = message.as_ptr_range();
    let mut bodies = Vec::new();
    ClientDecoder::new(FRAME_BYTES_MAX)
        .decode_message(&message, |frame| {
            if let ServerFrame::Text { body, .. } = frame {
                bodies.push(body);
            }
        })
        .expect("valid");
    assert_eq!(bodies[0].len(), BODY_BYTES_MAX);
    assert!(inside.contains(&bodies[0].as_ptr()));
}

#[test]
fn a_text_that_is_not_utf8_is_refused() {
    let not_utf8 = [15, 0xc0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2, 2, 1, 0xff, b'a'];
    assert_eq!(decode_server(&not_utf8), Err(WireError::NotUtf8 { field: "body" }));
}

#[test]
fn unknown_frames_are_skipped_or_refused_as_their_top_bit_says() {
    let message = Bytes::from_static(&[3, 0x21, 9, 9, 2, 0x87, 5]);
    let mut frames = Vec::new();
    let skipped =
        ServerDecoder::new(FRAME_BYTES_MAX).decode_message(&message, |frame| frames.push(frame));
    assert_eq!((skipped, frames), (Ok(1), vec![ClientFrame::Ack { pushes: 5 }]));
    assert_eq!(decode_client(&[2, 0xa1, 9]), Err(WireError::UnknownOpcode(0xa1)));
}

#[test]
fn unknown_fields_at_the_end_are_skipped_where_the_frame_may_grow() {
    // `done` with a field 9 of two bytes; `pong` may not grow.
    let done = decode_server(&[6, 0xc5, 7, 9, 2, 1, 1]);
    assert_eq!(done, Ok(vec![ServerFrame::Done { request: RequestId(7) }]));
    assert_eq!(decode_server(&[5, 0xd2, 7, 9, 0, 0]), Err(WireError::TrailingBytes(2)));
    // Tags ascend, each at most once.
    let twice = decode_server(&[6, 0xc5, 7, 9, 0, 9, 0]);
    assert_eq!(twice, Err(WireError::OutOfRange { field: "tag" }));
}

#[test]
fn bounds_are_checked_before_anything_is_taken() {
    let too_large = |bytes: &[u8]| match decode_client(bytes) {
        Err(WireError::TooLarge { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(too_large(&[0xff, 0xff, 0xff, 0x7f]), "frame");
    assert_eq!(too_large(&[8, 0x82, 1, 0xff, 0xff, 0xff, 0xff, 0x7f, 0]), "token");
    assert_eq!(too_large(&[13, 0x8b, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0x7f, 0]), "members");
    let flood = [1, 0x21].repeat(FRAMES_PER_MESSAGE_MAX + 1);
    assert_eq!(decode_client(&flood), Err(WireError::TooManyFrames(FRAMES_PER_MESSAGE_MAX)));
    assert_eq!(decode_client(&[0]), Err(WireError::Truncated));
}

#[test]
fn failures_of_a_later_version_keep_their_number() {
    let frame = ServerFrame::Error(Failure {
        code: Err(999),
        text: "later".into(),
        retry_after_ms: Some(250),
        moved_to: Some("wss://other.example/".into()),
    });
    let mut out = BytesMut::new();
    ServerEncoder::new().encode(&frame, &mut out).expect("within bounds");
    assert_eq!(decode_server(&out), Ok(vec![frame]));
}

proptest! {
    #[test]
    fn what_a_client_says_arrives(frames in vec(client_frame(u64::MAX), 1..12)) {
        let mut encoder = ClientEncoder::new();
        let mut out = BytesMut::new();
        for frame in &frames {
            encoder.encode(frame, &mut out).expect("within bounds");
        }
        prop_assert_eq!(decode_client(&out), Ok(frames));
    }

    #[test]
    fn what_a_server_says_arrives(frames in vec(server_frame(u64::MAX), 1..12)) {
        let mut encoder = ServerEncoder::new();
        let mut out = BytesMut::new();
        for frame in &frames {
            encoder.encode(frame, &mut out).expect("within bounds");
        }
        prop_assert_eq!(decode_server(&out), Ok(frames));
    }

    #[test]
    fn a_message_that_ends_early_is_an_error(
        client in client_frame(u64::MAX),
        server in server_frame(u64::MAX),
    ) {
        let mut out = BytesMut::new();
        ClientEncoder::new().encode(&client, &mut out).expect("within bounds");
        for end in 1..out.len().min(600) {
            prop_assert!(decode_client(&out[..end]).is_err());
        }
        out.clear();
        ServerEncoder::new().encode(&server, &mut out).expect("within bounds");
        for end in 1..out.len().min(600) {
            prop_assert!(decode_server(&out[..end]).is_err());
        }
    }

    #[test]
    fn a_frame_cut_short_within_its_length_never_panics(
        client in client_frame(u64::MAX),
        server in server_frame(u64::MAX),
        flip in any::<(u16, u8)>(),
    ) {
        let mut out = BytesMut::new();
        ClientEncoder::new().encode(&client, &mut out).expect("within bounds");
        let fields = out.split_off(varint_bytes(&out)).freeze();
        out.clear();
        ServerEncoder::new().encode(&server, &mut out).expect("within bounds");
        let server_fields = out.split_off(varint_bytes(&out)).freeze();
        for fields in [fields, server_fields] {
            for end in 0..fields.len().min(300) {
                let mut message = BytesMut::new();
                crate::varint::put(&mut message, end as u64);
                message.put_slice(&fields[..end]);
                let at = usize::from(flip.0) % message.len();
                let _ = (decode_client(&message), decode_server(&message));
                message[at] ^= flip.1;
                let _ = (decode_client(&message), decode_server(&message));
            }
        }
    }

    #[test]
    fn any_bytes_give_frames_or_an_error(bytes in vec(any::<u8>(), 0..200)) {
        let _ = (decode_client(&bytes), decode_server(&bytes));
    }
}

fn varint_bytes(message: &[u8]) -> usize {
    crate::varint::take(message).expect("a frame opens with its length").1
}
