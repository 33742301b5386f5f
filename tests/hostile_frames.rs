//! Goal: each kind of broken bytes closes its own connection with the code that `docs/protocol.md`
//! names, and nobody else notices. Method: live sessions that go bad, while two people chat.

use bytes::{BufMut as _, BytesMut};
use chatring_wire::frame::{MessageKind as BodyKind, RequestId};
use chatring_wire::limits::{
    FRAGMENTS_MAX, FRAME_BYTES_MAX, FRAMES_PER_MESSAGE_MAX, MESSAGE_BYTES_MAX,
};
use chatring_wire::ws::{MessageKind, Opcode, encode_header};
use chatring_wire::{Cid, ClientFrame, CloseCode, ErrorCode, ServerFrame, Subprotocol};

use crate::common::raw::{Heard, MASK, Raw, hello, text};
use crate::common::{Bystanders, Node};

#[test]
fn broken_websocket_frames_close_with_the_code_of_the_rfc() {
    let node = Node::start();
    let bystanders = Bystanders::start(&node);
    let mask = [0u8; 4];
    let masked = |first: u8, length: u8| [&[first, 0x80 | length][..], &mask].concat();
    let too_big =
        [&[0x82, 0xff][..], &(MESSAGE_BYTES_MAX as u64 + 1).to_be_bytes(), &mask].concat();
    let cases: Vec<(&str, Vec<u8>, CloseCode)> = vec![
        ("unmasked", vec![0x82, 1, 0], CloseCode::Protocol),
        ("a reserved bit", masked(0xc2, 0), CloseCode::Protocol),
        ("a reserved opcode", masked(0x83, 0), CloseCode::Protocol),
        ("a fragmented ping", masked(0x09, 0), CloseCode::Protocol),
        ("a long ping", [&[0x89, 0xfe, 0, 126][..], &mask].concat(), CloseCode::Protocol),
        ("a length not in its shortest form", vec![0x82, 0xfe, 0, 1], CloseCode::Protocol),
        ("a continuation of nothing", masked(0x80, 0), CloseCode::Protocol),
        (
            "a message inside a fragmented one",
            [masked(0x02, 0), masked(0x82, 0)].concat(),
            CloseCode::Protocol,
        ),
        ("half a close code", [masked(0x88, 1), vec![3]].concat(), CloseCode::Protocol),
        ("a close code that must not travel", [masked(0x88, 2), vec![3, 0xed]].concat(), {
            CloseCode::Protocol
        }),
        ("a message above the bound", too_big, CloseCode::TooBig),
        ("a length above 2^63", [&[0x82, 0xff][..], &[0xff; 8], &mask].concat(), {
            CloseCode::Protocol
        }),
        (
            "too many fragments",
            [masked(0x02, 0), masked(0, 0).repeat(FRAGMENTS_MAX)].concat(),
            CloseCode::TooBig,
        ),
        ("text on binary", masked(0x81, 0), CloseCode::Unsupported),
        ("garbage", vec![0xff; 200], CloseCode::Protocol),
    ];
    for (what, bytes, code) in cases {
        let mut raw = Raw::sign_in(&node, "broken");
        raw.write(&bytes);
        assert_eq!(raw.close_code(), Some(code.number()), "{what}");
        raw.end();
        assert_eq!(raw.hear(), Heard::End, "{what}");
        bystanders.check();
    }
    let json = hello(&node.token("json"), "json");
    let mut raw = Raw::sign_in_with(&node, Subprotocol::Json, json.clone());
    raw.say_payload(MessageKind::Binary, b"{\"type\":\"ping\",\"pushes\":0}");
    raw.expect_close(CloseCode::Unsupported);
    let mut raw = Raw::sign_in_with(&node, Subprotocol::Json, json);
    raw.say_payload(MessageKind::Text, b"\"\xff\xff\"");
    raw.expect_close(CloseCode::InvalidPayload);
    bystanders.check();
}

#[test]
fn broken_binary_frames_are_told_what_is_wrong() {
    let node = Node::start();
    let bystanders = Bystanders::start(&node);
    let cid = [0u8; 8];
    let cmid = [1u8; 16];
    let head = [&[0x84, 1][..]].concat();
    let too_many: Vec<u8> = [1, 0x7f].repeat(FRAMES_PER_MESSAGE_MAX + 1);
    let mut too_large = BytesMut::new();
    chatring_wire::varint::put(&mut too_large, FRAME_BYTES_MAX as u64 + 1);
    let cases: Vec<(&str, Vec<u8>, ErrorCode)> = vec![
        ("an empty frame", vec![0], ErrorCode::Malformed),
        ("a frame that ends early", vec![9, 0x8d, 0], ErrorCode::Malformed),
        ("a field that ends early", framed(&[0x84, 1, 1, 0, 0]), ErrorCode::Malformed),
        ("half a length", vec![0x80], ErrorCode::Malformed),
        ("a long length", vec![0x82, 0, 0x8d, 0], ErrorCode::Malformed),
        ("a long varint in a field", framed(&[0x8d, 0x80, 0]), ErrorCode::Malformed),
        ("a varint of 11 bytes", framed(&[&[0x8d][..], &[0xff; 11]].concat()), {
            ErrorCode::Malformed
        }),
        ("bytes behind the last field", framed(&[0x8d, 0, 0]), ErrorCode::Malformed),
        ("a request above 2^32", framed(&[0x89, 0xff, 0xff, 0xff, 0xff, 0x1f]), {
            ErrorCode::Malformed
        }),
        ("an opcode that must be understood", framed(&[0x9f, 1, 2]), ErrorCode::UnknownOpcode),
        ("an opcode of the server", framed(&[0xd2, 0, 0]), ErrorCode::UnknownOpcode),
        ("an alias that nobody defined", framed(&[&head[..], &[2], &cmid, &[0, 0]].concat()), {
            ErrorCode::UnknownAlias
        }),
        (
            "a previous request below 1",
            framed(&[&head[..], &[0], &cid, &cmid, &[0, 9]].concat()),
            ErrorCode::Malformed,
        ),
        (
            "a text that is not UTF-8",
            { framed(&[&head[..], &[0], &cid, &cmid, &[0, 0, 0xff]].concat()) },
            ErrorCode::Malformed,
        ),
        ("tags out of order", framed(&[0x89, 1, 5, 0, 4, 0]), ErrorCode::Malformed),
        (
            "a direction that is none",
            framed(&{ [&[0x8a, 1][..], &cid, &[1, 2, 0, 7]].concat() }),
            ErrorCode::Malformed,
        ),
        ("a frame above the bound", too_large.to_vec(), ErrorCode::TooLarge),
        ("too many frames in a message", too_many, ErrorCode::TooLarge),
    ];
    for (what, payload, code) in cases {
        let mut raw = Raw::sign_in(&node, "broken");
        raw.say_payload(MessageKind::Binary, &payload);
        match raw.until(|frame| matches!(frame, ServerFrame::Error(_))) {
            ServerFrame::Error(failure) => assert_eq!(failure.code, Ok(code), "{what}"),
            _ => unreachable!(),
        }
        assert_eq!(raw.close_code(), Some(CloseCode::for_error(code).number()), "{what}");
    }
    bystanders.check();
}

#[test]
fn frames_of_later_versions_are_skipped_and_good_ones_before_a_broken_one_count() {
    let node = Node::start();
    let mut raw = Raw::sign_in(&node, "later");
    let later = [&framed(&[0x41, 1, 2, 3])[..], &framed(&[0x7f]), &framed(&[0x8d, 0])].concat();
    raw.say_payload(MessageKind::Binary, &later);
    raw.until(|frame| matches!(frame, ServerFrame::Pong { .. }));
    // A tail grows with tags that are not known.
    raw.say_payload(MessageKind::Binary, &framed(&[0x89, 0, 200, 1, 2, 9, 9]));
    // An empty message, and one in fragments with a ping between them.
    raw.say_payload(MessageKind::Binary, &[]);
    let mut out = BytesMut::new();
    let ping = framed(&[0x8d, 0]);
    for (n, byte) in ping.iter().enumerate() {
        let opcode = if n == 0 { Opcode::Binary } else { Opcode::Continuation };
        encode_header(&mut out, n + 1 == ping.len(), opcode, 1, Some(MASK));
        out.put_u8(byte ^ MASK.0[0]);
        encode_header(&mut out, true, Opcode::Ping, 0, Some(MASK));
    }
    raw.write(&out);
    let mut pongs = 0;
    loop {
        match raw.hear() {
            Heard::Pong => pongs += 1,
            Heard::Frame(ServerFrame::Pong { .. }) => break,
            Heard::Frame(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(pongs, ping.len(), "control frames stand between fragments");
    raw.say_payload(MessageKind::Binary, &[framed(&[0x8d, 0]), vec![0]].concat());
    raw.until(|frame| matches!(frame, ServerFrame::Pong { .. }));
    raw.expect_error(ErrorCode::Malformed);
    raw.end();

    let json = hello(&node.token("json"), "json");
    let mut raw = Raw::sign_in_with(&node, Subprotocol::Json, json);
    let later = br#"[{"type":"poke","skip":true,"x":[{}]},{"type":"ping","pushes":0,"new":null}]"#;
    raw.say_payload(MessageKind::Text, later);
    raw.until(|frame| matches!(frame, ServerFrame::Pong { .. }));
    // What is skipped may be as deep as a message is long: nobody descends into it.
    let (open, close) = ("[".repeat(100_000), "]".repeat(100_000));
    let deep = format!(r#"{{"type":"ping","pushes":0,"new":{open}{close}}}"#);
    raw.say_payload(MessageKind::Text, deep.as_bytes());
    raw.until(|frame| matches!(frame, ServerFrame::Pong { .. }));
}

#[test]
fn broken_json_is_told_what_is_wrong() {
    let node = Node::start();
    let bystanders = Bystanders::start(&node);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let later = r#"{"type":"x","skip":true}"#;
    let many = format!("[{}{later}]", format!("{later},").repeat(FRAMES_PER_MESSAGE_MAX));
    let cases: Vec<(String, ErrorCode)> = vec![
        (String::new(), ErrorCode::Malformed),
        ("{".to_owned(), ErrorCode::Malformed),
        ("nonsense".to_owned(), ErrorCode::Malformed),
        ("7".to_owned(), ErrorCode::Malformed),
        (r#"{"type":"ping"}"#.to_owned(), ErrorCode::Malformed),
        (r#"{"pushes":0}"#.to_owned(), ErrorCode::Malformed),
        (r#"{"type":"ping","pushes":0} x"#.to_owned(), ErrorCode::Malformed),
        (r#"{"type":"ping","pushes":0,"pushes":0}"#.to_owned(), ErrorCode::Malformed),
        (r#"{"type":"ping","pushes":-1}"#.to_owned(), ErrorCode::Malformed),
        (r#"{"type":"ping","pushes":0.5}"#.to_owned(), ErrorCode::Malformed),
        (r#"{"type":"ping","pushes":1e999}"#.to_owned(), ErrorCode::Malformed),
        (r#"{"type":"ping","pushes":9007199254740992}"#.to_owned(), ErrorCode::Malformed),
        (format!(r#"{{"type":"ping","pushes":{}}}"#, "9".repeat(90_000)), ErrorCode::Malformed),
        (r#"{"type":"ping","pushes":"0"}"#.to_owned(), ErrorCode::Malformed),
        (r#"{"type":"more","request":4294967296}"#.to_owned(), ErrorCode::Malformed),
        (r#"{"type":"who","request":1,"cid":"xyz"}"#.to_owned(), ErrorCode::Malformed),
        (r#"{"type":"poke"}"#.to_owned(), ErrorCode::UnknownOpcode),
        (r#"{"type":"poke","skip":false}"#.to_owned(), ErrorCode::UnknownOpcode),
        (deep, ErrorCode::Malformed),
        (many, ErrorCode::TooLarge),
    ];
    for (payload, code) in cases {
        let start = &payload[..payload.len().min(80)];
        let json = hello(&node.token("json"), "json");
        let mut raw = Raw::sign_in_with(&node, Subprotocol::Json, json);
        raw.say_payload(MessageKind::Text, payload.as_bytes());
        match raw.until(|frame| matches!(frame, ServerFrame::Error(_))) {
            ServerFrame::Error(failure) => assert_eq!(failure.code, Ok(code), "{start}"),
            _ => unreachable!(),
        }
        assert_eq!(raw.close_code(), Some(CloseCode::for_error(code).number()), "{start}");
    }
    bystanders.check();
}

#[test]
fn requests_that_repeat_or_fall_and_acks_above_what_was_pushed_close_the_connection() {
    let node = Node::start();
    let bystanders = Bystanders::start(&node);
    let who =
        |number| ClientFrame::Who { request: RequestId(number), cid: Cid(7), members: Vec::new() };
    for numbers in [[5, 5], [5, 4], [1, 0]] {
        let mut raw = Raw::sign_in(&node, "numbers");
        raw.say(&[who(numbers[0]), who(numbers[1])]);
        raw.expect_error(ErrorCode::Unexpected);
    }
    let mut zero = Raw::sign_in(&node, "numbers");
    zero.say(&[who(0)]);
    zero.expect_error(ErrorCode::Unexpected);
    for ack in [ClientFrame::Ack { pushes: 1 }, ClientFrame::Ping { pushes: u64::MAX }] {
        let mut raw = Raw::sign_in(&node, "acks");
        raw.say(&[ack]);
        raw.expect_error(ErrorCode::Invalid);
    }
    // Numbers may leave gaps and end at the largest one; then there is none left.
    let mut last = Raw::sign_in(&node, "numbers");
    last.say(&[who(u32::MAX)]);
    last.until(|frame| matches!(frame, ServerFrame::Refused { .. }));
    last.say(&[ClientFrame::Send(text(RequestId(u32::MAX), Cid(7), 1u8, 0, b"x"))]);
    last.expect_error(ErrorCode::Unexpected);
    bystanders.check();
}

#[test]
fn numbers_at_their_ends_do_no_harm() {
    let node = Node::start();
    let bystanders = Bystanders::start(&node);
    Raw::sign_in(&node, "other").end();
    let mut raw = Raw::sign_in(&node, "ends");
    let cid = raw.open("other").cid;
    let bases = [u64::MAX, u64::MAX - 1, 1 << 63, 1 << 53];
    for (n, base) in bases.into_iter().enumerate() {
        let sent = raw.send(cid, 1 + n as u8, base, b"from the future");
        assert!(matches!(sent, ServerFrame::Sent { seq, .. } if seq.0 == n as u64 + 1), "{sent:?}");
    }
    let end = chatring_wire::Seq(u64::MAX);
    raw.say(&[ClientFrame::Mark { cid, read: end, received: end }]);
    let marker = raw.until(|frame| matches!(frame, ServerFrame::Marker { .. }));
    assert!(
        matches!(marker, ServerFrame::Marker { read, received, .. }
            if read.0 == bases.len() as u64 && received == read),
        "{marker:?}"
    );
    let range = |request, from, to| {
        ClientFrame::Range(chatring_wire::frame::RangeRequest {
            request,
            cid,
            from: chatring_wire::Seq(from),
            to: chatring_wire::Seq(to),
            limit: u32::MAX,
            direction: chatring_wire::frame::Direction::Descending,
        })
    };
    for from in [1, 3, u64::MAX] {
        match raw.ask(|request| range(request, from, u64::MAX)) {
            ServerFrame::Rows { page, .. } => {
                assert_eq!(page.rows.len() as u64, 5u64.saturating_sub(from));
            }
            other => panic!("{other:?}"),
        }
    }
    let mut kinds = text(raw.next_request(), cid, 99u8, 0, b"\xff\x00");
    kinds.kind = BodyKind(255);
    raw.say(&[ClientFrame::Send(kinds)]);
    let answer = raw.until(|frame| matches!(frame, ServerFrame::Refused { .. }));
    let ServerFrame::Refused { error, .. } = answer else { panic!("{answer:?}") };
    assert_eq!(error.code, Ok(ErrorCode::Invalid), "a kind without a meaning");
    bystanders.check();
}

/// A frame with its length before it.
fn framed(body: &[u8]) -> Vec<u8> {
    let mut frame = BytesMut::new();
    chatring_wire::varint::put(&mut frame, body.len() as u64);
    frame.extend_from_slice(body);
    frame.to_vec()
}
