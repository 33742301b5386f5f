//! What the decoder takes and refuses, at every chunking.

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::ws::{MaskKey, encode_close, encode_header, encode_message, encode_ping, encode_pong};

const KEY: MaskKey = MaskKey([0x37, 0xfa, 0x21, 0x3d]);
const SMALL: Limits = Limits { message_bytes_max: 1000, fragments_max: 5 };

/// Frames of a client, as (fin, opcode, payload).
fn frames(frames: &[(bool, Opcode, &[u8])]) -> Vec<u8> {
    let mut out = BytesMut::new();
    for &(fin, opcode, payload) in frames {
        encode_header(&mut out, fin, opcode, payload.len(), Some(KEY));
        let start = out.len();
        out.extend_from_slice(payload);
        KEY.apply(0, &mut out[start..]);
    }
    out.to_vec()
}

/// What a server makes of the bytes; the same whatever the chunks.
fn decode(bytes: &[u8]) -> (Vec<Event>, Option<WsError>) {
    let whole = decode_all(Role::Server, SMALL, bytes, usize::MAX);
    for chunk_bytes in 1..bytes.len().min(40) {
        let chunked = decode_all(Role::Server, SMALL, bytes, chunk_bytes);
        assert_eq!(chunked, whole, "chunks of {chunk_bytes} bytes");
    }
    whole
}

fn text(payload: &'static str) -> Event {
    Event::Message { kind: MessageKind::Text, payload: Bytes::from_static(payload.as_bytes()) }
}

fn control(payload: &'static [u8]) -> ControlPayload {
    ControlPayload::new(payload).unwrap()
}

#[test]
fn reads_the_examples_of_the_rfc() {
    let from_server = |bytes: &[u8]| decode_all(Role::Client, SMALL, bytes, 1);
    assert_eq!(from_server(b"\x81\x05Hello"), (vec![text("Hello")], None));
    assert_eq!(from_server(b"\x01\x03Hel\x80\x02lo"), (vec![text("Hello")], None));
    assert_eq!(from_server(b"\x89\x05Hello"), (vec![Event::Ping(control(b"Hello"))], None));
    let masked = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(decode(&masked), (vec![text("Hello")], None));
    let pong = [0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(decode(&pong), (vec![Event::Pong(control(b"Hello"))], None));
}

#[test]
fn control_frames_may_come_between_fragments() {
    let bytes = frames(&[
        (false, Opcode::Text, b"a\xc3"),
        (true, Opcode::Ping, b"p"),
        (false, Opcode::Continuation, b""),
        (true, Opcode::Pong, b""),
        (true, Opcode::Continuation, b"\xa9"),
        (true, Opcode::Text, b""),
    ]);
    let expected =
        vec![Event::Ping(control(b"p")), Event::Pong(control(b"")), text("aé"), text("")];
    assert_eq!(decode(&bytes), (expected, None));
}

#[test]
fn fragments_must_follow_their_message() {
    let (_, error) = decode(&frames(&[(true, Opcode::Continuation, b"a")]));
    assert_eq!(error, Some(WsError::UnexpectedContinuation));
    let two = frames(&[(false, Opcode::Text, b"a"), (true, Opcode::Text, b"b")]);
    assert_eq!(decode(&two), (vec![], Some(WsError::ExpectedContinuation)));
    let ended = frames(&[
        (false, Opcode::Text, b"a"),
        (true, Opcode::Continuation, b"b"),
        (true, Opcode::Continuation, b"c"),
    ]);
    assert_eq!(decode(&ended), (vec![text("ab")], Some(WsError::UnexpectedContinuation)));
}

#[test]
fn size_is_bounded_over_all_fragments_and_told_by_the_header() {
    let whole = frames(&[(true, Opcode::Binary, &[0; 1000])]);
    assert_eq!(decode(&whole).1, None);
    let over = frames(&[(true, Opcode::Binary, &[0; 1001])]);
    let error = WsError::MessageTooBig { actual: 1001, max: 1000 };
    assert_eq!(decode(&over[..8]), (vec![], Some(error)));
    let parts =
        frames(&[(false, Opcode::Binary, &[0; 600]), (true, Opcode::Continuation, &[0; 401])]);
    assert_eq!(decode(&parts[..616]), (vec![], Some(error)));
    let huge = [&[0x82, 0xff, 0x7f][..], &[0xff; 7], &[0; 4]].concat();
    let max = WsError::MessageTooBig { actual: (1 << 63) - 1, max: 1000 };
    assert_eq!(decode(&huge), (vec![], Some(max)));
}

#[test]
fn fragments_are_bounded_by_count_even_if_empty() {
    let with = |continuations: usize| {
        let mut all = vec![(false, Opcode::Text, &b""[..])];
        all.extend(vec![(false, Opcode::Continuation, &b""[..]); continuations]);
        decode(&frames(&all)).1
    };
    assert_eq!(with(4), None);
    assert_eq!(with(5), Some(WsError::TooManyFragments(5)));
}

#[test]
fn wrong_text_fails_before_its_frame_is_complete() {
    let bytes = frames(&[(true, Opcode::Text, b"ok\xf4\x90 and more that never comes")]);
    let up_to_fault = 6 + 4;
    assert_eq!(decode(&bytes[..up_to_fault]), (vec![], Some(WsError::NotUtf8)));
    assert_eq!(decode(&bytes[..up_to_fault - 1]), (vec![], None));
    let cut = frames(&[(true, Opcode::Text, b"a\xe2\x82")]);
    assert_eq!(decode(&cut), (vec![], Some(WsError::NotUtf8)));
    let cut = frames(&[(false, Opcode::Text, b"\xe2\x82"), (true, Opcode::Continuation, b"")]);
    assert_eq!(decode(&cut), (vec![], Some(WsError::NotUtf8)));
    let binary = frames(&[(true, Opcode::Binary, b"\xff")]);
    assert_eq!(decode(&binary).1, None);
}

#[test]
fn what_follows_a_close_is_dropped() {
    let mut out = BytesMut::new();
    encode_close(&mut out, Some(4008), "late", Some(KEY));
    out.extend_from_slice(b"\xff\xff garbage");
    let close = ReceivedClose { code: Some(4008), reason: "late".to_owned() };
    assert_eq!(decode(&out), (vec![Event::Close(close)], None));
}

#[test]
fn an_error_stays() {
    let mut decoder = Decoder::new(Role::Server, SMALL);
    let wrong = frames(&[(true, Opcode::Continuation, b"")]);
    assert_eq!(decoder.next(&mut &wrong[..]), Err(WsError::UnexpectedContinuation));
    let good = frames(&[(true, Opcode::Text, b"")]);
    assert_eq!(decoder.next(&mut &good[..]), Err(WsError::UnexpectedContinuation));
}

#[test]
fn memory_is_held_only_inside_a_message_and_grows_with_what_came() {
    let limits = Limits { message_bytes_max: 1 << 30, fragments_max: 5 };
    let mut decoder = Decoder::new(Role::Server, limits);
    let mut announced = BytesMut::new();
    encode_header(&mut announced, true, Opcode::Binary, 1 << 30, Some(KEY));
    assert_eq!(decoder.next(&mut &announced[..]), Ok(None));
    assert_eq!(decoder.held_bytes(), 0);
    assert_eq!(decoder.next(&mut &[0; 100][..]), Ok(None));
    assert!((100..=256).contains(&decoder.held_bytes()));

    let mut decoder = Decoder::new(Role::Server, limits);
    let bytes = frames(&[(true, Opcode::Ping, b"ping"), (true, Opcode::Binary, &[1; 300])]);
    for byte in bytes.chunks(1) {
        decoder.next(&mut &*byte).unwrap();
    }
    assert_eq!(decoder.held_bytes(), 0);
    assert!(size_of::<Decoder>() <= 160, "{} bytes for each session", size_of::<Decoder>());
}

#[test]
fn a_message_that_comes_whole_takes_exactly_its_size() {
    let mut decoder = Decoder::new(Role::Server, SMALL);
    let bytes = frames(&[(true, Opcode::Binary, &[1; 300])]);
    let Ok(Some(Event::Message { payload, .. })) = decoder.next(&mut &bytes[..]) else {
        panic!("no message")
    };
    assert_eq!(payload.try_into_mut().unwrap().capacity(), 300);
}

#[derive(Clone, Debug)]
enum Sent {
    Message(bool, Vec<Vec<u8>>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
}

fn sent() -> impl Strategy<Value = Sent> {
    let bytes = |max| proptest::collection::vec(any::<u8>(), 0..max);
    let text = proptest::collection::vec(".{0,40}".prop_map(String::into_bytes), 1..5);
    prop_oneof![
        text.prop_map(|parts| Sent::Message(true, parts)),
        proptest::collection::vec(bytes(200), 1..5).prop_map(|parts| Sent::Message(false, parts)),
        bytes(126).prop_map(Sent::Ping),
        bytes(126).prop_map(Sent::Pong),
    ]
}

fn encode_sent(out: &mut BytesMut, sent: &Sent, mask: Option<MaskKey>) -> Event {
    let payload = |bytes: &Vec<u8>| ControlPayload::new(bytes.clone()).unwrap();
    match sent {
        Sent::Ping(bytes) => {
            encode_ping(out, &payload(bytes), mask);
            Event::Ping(payload(bytes))
        }
        Sent::Pong(bytes) => {
            encode_pong(out, &payload(bytes), mask);
            Event::Pong(payload(bytes))
        }
        Sent::Message(text, parts) => {
            let kind = if *text { MessageKind::Text } else { MessageKind::Binary };
            if let [payload] = &parts[..] {
                encode_message(out, kind, payload, mask);
            } else {
                encode_fragments(out, kind, parts, mask);
            }
            Event::Message { kind, payload: parts.concat().into() }
        }
    }
}

fn encode_fragments(
    out: &mut BytesMut,
    kind: MessageKind,
    parts: &[Vec<u8>],
    mask: Option<MaskKey>,
) {
    for (index, part) in parts.iter().enumerate() {
        let opcode = if index == 0 { kind.into() } else { Opcode::Continuation };
        encode_header(out, index + 1 == parts.len(), opcode, part.len(), mask);
        let start = out.len();
        out.extend_from_slice(part);
        if let Some(key) = mask {
            key.apply(0, &mut out[start..]);
        }
    }
}

proptest! {
    #[test]
    fn what_one_end_sends_the_other_reads_at_any_chunking(
        all in proptest::collection::vec(sent(), 0..8),
        key: Option<[u8; 4]>,
        chunk_bytes in 1usize..300,
    ) {
        let mut out = BytesMut::new();
        let mask = key.map(MaskKey);
        let events: Vec<_> = all.iter().map(|sent| encode_sent(&mut out, sent, mask)).collect();
        let role = if mask.is_some() { Role::Server } else { Role::Client };
        let decoded = decode_all(role, Limits::default(), &out, chunk_bytes);
        prop_assert_eq!(decoded, (events, None));
    }

    #[test]
    fn any_bytes_mean_the_same_at_any_chunking(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        tame: bool,
        chunk_bytes in 1usize..20,
    ) {
        if let (true, [first, second, ..]) = (tame, &mut bytes[..]) {
            *first &= 0x8f;
            *second |= 0x80;
        }
        let whole = decode_all(Role::Server, SMALL, &bytes, usize::MAX);
        prop_assert_eq!(decode_all(Role::Server, SMALL, &bytes, chunk_bytes), whole);
    }
}
