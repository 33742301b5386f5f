//! Goal: whatever comes before a good hello is refused as `docs/protocol.md` says, and nobody else
//! notices. Method: raw TCP against the real binary, while two people chat.

use std::io::Write as _;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use chatring_wire::frame::Hello;
use chatring_wire::limits::{
    CURSOR_BYTES_MAX, FRAME_BYTES_MIN, HANDSHAKE_BYTES_MAX, HANDSHAKE_HEADERS_MAX, TOKEN_BYTES_MAX,
};
use chatring_wire::ws::MessageKind;
use chatring_wire::{ClientFrame, CloseCode, ErrorCode, ServerFrame, Subprotocol};

use crate::common::raw::{Heard, Raw, hello};
use crate::common::{Bystanders, Node, NodeOptions, PATIENCE, run};

const UPGRADE: &str = "Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[test]
fn requests_that_are_no_upgrade_of_ours_get_a_status_and_an_end() {
    let node = Node::start();
    let bystanders = Bystanders::start(&node);
    let binary = "Sec-WebSocket-Protocol: chatring.v1\r\n";
    let long = format!("X: {}\r\n", "a".repeat(HANDSHAKE_BYTES_MAX));
    let many = "X: y\r\n".repeat(HANDSHAKE_HEADERS_MAX);
    let cases: [(u16, String); 14] = [
        (404, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".to_owned()),
        (404, format!("GET /v1/other HTTP/1.1\r\n{UPGRADE}{binary}")),
        (404, format!("GET /v1/ws/ HTTP/1.1\r\n{UPGRADE}{binary}")),
        (426, "GET /v1/ws HTTP/1.1\r\nHost: x\r\n".to_owned()),
        (426, "POST /v1/ws HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n".to_owned()),
        // No subprotocol, and none that is known.
        (400, format!("GET /v1/ws HTTP/1.1\r\n{UPGRADE}")),
        (400, format!("GET /v1/ws HTTP/1.1\r\n{UPGRADE}Sec-WebSocket-Protocol: chat, v2\r\n")),
        (405, format!("POST /v1/ws HTTP/1.1\r\n{UPGRADE}{binary}")),
        (400, format!("GET /v1/ws HTTP/1.0\r\n{UPGRADE}{binary}")),
        (400, format!("GET /v1/ws HTTP/1.1\r\n{UPGRADE}{binary}Content-Length: 4\r\n")),
        (400, format!("GET /v1/ws HTTP/1.1\r\n{}{binary}", UPGRADE.replace("dGhl", "dG"))),
        (426, format!("GET /v1/ws HTTP/1.1\r\n{}{binary}", UPGRADE.replace("13", "12"))),
        (431, format!("GET /v1/ws HTTP/1.1\r\n{UPGRADE}{binary}{long}")),
        (431, format!("GET /v1/ws HTTP/1.1\r\n{UPGRADE}{binary}{many}")),
    ];
    for (status, request) in cases {
        let answer = node.exchange(format!("{request}\r\n").as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}\n{answer}");
    }
    for garbage in [&b"\x16\x03\x01\x02\x00\x01"[..], b"\0\0\0\0\r\n\r\n", &[0xff; 9_000]] {
        let answer = node.exchange(garbage);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    bystanders.check();
}

#[test]
fn the_first_subprotocol_that_is_known_is_taken() {
    let node = Node::start();
    for (offer, taken) in [
        ("v0, chatring.v1.json, chatring.v1", "chatring.v1.json"),
        ("chatring.v1", "chatring.v1"),
        ("chatring.v1,chatring.v1.json", "chatring.v1"),
    ] {
        let mut socket = node.tcp();
        let request =
            format!("GET /v1/ws HTTP/1.1\r\n{UPGRADE}Sec-WebSocket-Protocol: {offer}\r\n");
        // Permessage-deflate is never agreed to, and an origin is of no matter.
        let more = "Sec-WebSocket-Extensions: permessage-deflate\r\nOrigin: https://x.example\r\n";
        write!(socket, "{request}{more}\r\n").expect("it reads");
        let head = read_head(&mut socket);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains(&format!("Sec-WebSocket-Protocol: {taken}\r\n")), "{head}");
        assert!(!head.to_lowercase().contains("extensions"), "{head}");
        assert!(head.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
    }
}

#[test]
fn a_handshake_may_come_byte_by_byte_and_with_frames_behind_it() {
    let node = Node::start();
    let request =
        format!("GET /v1/ws HTTP/1.1\r\n{UPGRADE}Sec-WebSocket-Protocol: chatring.v1\r\n\r\n");
    let hello = ClientFrame::Hello(hello(&node.token("slow"), "slow"));
    let ping = ClientFrame::Ping { pushes: 0 };
    for chunk_bytes in [1, usize::MAX] {
        let mut socket = node.tcp();
        let mut frames = Raw::over(socket.try_clone().expect("a socket"), Subprotocol::Binary);
        // One message with two frames, and one more message behind it.
        let message = frames.bytes_of(&[hello.clone(), ping.clone()]);
        let behind = frames.bytes_of(std::slice::from_ref(&ping));
        let bytes = [request.as_bytes(), &message, &behind].concat();
        for chunk in bytes.chunks(chunk_bytes.min(bytes.len())) {
            socket.write_all(chunk).expect("it reads");
        }
        assert!(read_head(&mut socket).starts_with("HTTP/1.1 101 "));
        let mut raw = Raw::over(socket, Subprotocol::Binary);
        assert!(matches!(raw.frame(), ServerFrame::Welcome(_)));
        raw.until(|frame| matches!(frame, ServerFrame::Pong { .. }));
        raw.until(|frame| matches!(frame, ServerFrame::Pong { .. }));
    }
}

#[test]
fn who_says_no_hello_in_time_is_closed() {
    let config = "[limits]\nhandshake = \"3s\"\n".to_owned();
    let node = Node::start_with(NodeOptions { config: Some(config), ..NodeOptions::default() });
    let bystanders = Bystanders::start(&node);
    let half = node.tcp();
    (&half).write_all(b"GET /v1/ws HTTP/1.1\r\nHost: ").expect("it reads");
    let mut silent = Raw::upgraded(&node, Subprotocol::Binary);
    let mut pinging = Raw::upgraded(&node, Subprotocol::Json);
    let start = Instant::now();
    // A WebSocket ping is no hello.
    while start.elapsed() < Duration::from_secs(1) {
        pinging.write(&[0x89, 0x80, 0, 0, 0, 0]);
        std::thread::sleep(Duration::from_millis(20));
    }
    silent.expect_error(ErrorCode::Timeout);
    pinging_ends(&mut pinging);
    assert_eq!(Raw::over(half, Subprotocol::Binary).hear(), Heard::End);
    bystanders.check();
}

fn pinging_ends(pinging: &mut Raw) {
    loop {
        match pinging.hear() {
            Heard::Pong => {}
            Heard::Frame(ServerFrame::Error(failure)) => {
                assert_eq!(failure.code, Ok(ErrorCode::Timeout));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    pinging.expect_close(CloseCode::Timeout);
}

#[test]
fn a_first_frame_that_is_no_good_hello_is_refused() {
    let node = Node::start();
    let bystanders = Bystanders::start(&node);
    let good = hello(&node.token("first"), "first");
    let small = Hello { frame_bytes_max: FRAME_BYTES_MIN as u32 - 1, ..good.clone() };
    for subprotocol in [Subprotocol::Binary, Subprotocol::Json] {
        for (frame, code) in [
            (ClientFrame::Ping { pushes: 0 }, ErrorCode::Unexpected),
            (ClientFrame::Ack { pushes: 0 }, ErrorCode::Unexpected),
            (ClientFrame::Hello(small.clone()), ErrorCode::FrameTooSmall),
        ] {
            let mut raw = Raw::upgraded(&node, subprotocol);
            // Nothing behind a hello that was not accepted is looked at.
            raw.say(&[frame, ClientFrame::Hello(good.clone()), ClientFrame::Ping { pushes: 9 }]);
            raw.expect_error(code);
            raw.end();
            assert_eq!(raw.hear(), Heard::End);
        }
        let mut twice = Raw::sign_in_with(&node, subprotocol, good.clone());
        twice.say(&[ClientFrame::Hello(good.clone())]);
        twice.expect_error(ErrorCode::Unexpected);
        let mut at_once = Raw::upgraded(&node, subprotocol);
        at_once.say(&[ClientFrame::Hello(good.clone()), ClientFrame::Hello(good.clone())]);
        at_once.expect_error(ErrorCode::Unexpected);
    }
    bystanders.check();
}

#[test]
fn tokens_and_cursors_above_their_bounds_close_the_connection() {
    let node = Node::start();
    for (token_bytes, cursor_bytes, code) in [
        (TOKEN_BYTES_MAX, 0, ErrorCode::InvalidToken),
        (TOKEN_BYTES_MAX + 1, 0, ErrorCode::TooLarge),
        (10, CURSOR_BYTES_MAX, ErrorCode::InvalidToken),
        (10, CURSOR_BYTES_MAX + 1, ErrorCode::TooLarge),
    ] {
        let payload = hello_bytes(&"a".repeat(token_bytes), &vec![1; cursor_bytes]);
        let mut raw = Raw::upgraded(&node, Subprotocol::Binary);
        raw.say_payload(MessageKind::Binary, &payload);
        raw.expect_error(code);
        let cursor = "AQ".repeat(cursor_bytes / 2);
        let json = serde_json::json!({
            "type": "hello",
            "token": "a".repeat(token_bytes),
            "installation": "00".repeat(16),
            "cursor": cursor,
        });
        if cursor_bytes == 0 {
            let mut raw = Raw::upgraded(&node, Subprotocol::Json);
            raw.say_payload(MessageKind::Text, json.to_string().as_bytes());
            raw.expect_error(code);
        }
    }
}

#[test]
fn the_welcome_tells_the_largest_frame_that_the_server_takes() {
    let config = "[limits]\nframe_bytes_max = 80000\n".to_owned();
    let node = Node::start_with(NodeOptions { config: Some(config), ..NodeOptions::default() });
    let mut raw = Raw::upgraded(&node, Subprotocol::Binary);
    raw.say(&[ClientFrame::Hello(hello(&node.token("a"), "a"))]);
    match raw.frame() {
        ServerFrame::Welcome(welcome) => assert_eq!(welcome.frame_bytes_max, 80_000),
        other => panic!("{other:?}"),
    }
    // A frame of a later version, which is skipped, may be as large; one byte more is too large.
    raw.say_payload(MessageKind::Binary, &skippable(80_000));
    raw.expect_alive();
    raw.say_payload(MessageKind::Binary, &skippable(80_001));
    raw.expect_error(ErrorCode::TooLarge);
}

#[test]
fn a_second_session_of_an_installation_replaces_the_first() {
    let node = Node::start();
    let mut first = Raw::sign_in(&node, "same");
    let mut second = Raw::sign_in(&node, "same");
    first.expect_close(CloseCode::Replaced);
    second.expect_alive();
}

#[test]
fn connections_above_the_bounds_are_refused_and_their_places_given_back() {
    let config = "[limits]\nconnections_max = 4\nsessions_per_user_max = 2\n".to_owned();
    let node = Node::start_with(NodeOptions { config: Some(config), ..NodeOptions::default() });
    let token = node.token("many");
    let sign_in = |name: &str| Raw::sign_in_with(&node, Subprotocol::Binary, hello(&token, name));
    let mut sessions = [sign_in("one"), sign_in("two")];
    let mut third = Raw::upgraded(&node, Subprotocol::Binary);
    third.say(&[ClientFrame::Hello(hello(&token, "three"))]);
    third.expect_error(ErrorCode::LimitReached);
    drop(third);
    let others: Vec<_> = (0..2).map(|_| connect_in_the_end(&node)).collect();
    let answer = node.exchange(b"");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    drop(others);
    run(async {
        // The places are free again, so somebody else gets in.
        let mut late = crate::common::Person::new(&node, "late");
        late.synced().await;
        late.leave().await;
    });
    sessions.iter_mut().for_each(Raw::expect_alive);
}

/// An upgraded connection; tries again while places are still being given back.
fn connect_in_the_end(node: &Node) -> Raw {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut socket = node.tcp();
        let request =
            format!("GET /v1/ws HTTP/1.1\r\n{UPGRADE}Sec-WebSocket-Protocol: chatring.v1\r\n\r\n");
        let _ = socket.write_all(request.as_bytes());
        if read_head(&mut socket).starts_with("HTTP/1.1 101 ") {
            return Raw::over(socket, Subprotocol::Binary);
        }
        assert!(Instant::now() < until, "no place becomes free");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The head of an answer, or what came of it before the end.
fn read_head(socket: &mut std::net::TcpStream) -> String {
    use std::io::Read as _;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && matches!(socket.read(&mut byte), Ok(1)) {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// A hello with any token and cursor, beyond what the codec would write.
fn hello_bytes(token: &str, cursor: &[u8]) -> Bytes {
    let mut fields = BytesMut::from(&[0x81][..]);
    fields.extend_from_slice(&[7; 16]);
    fields.extend_from_slice(&[0, 0x80, 0x80, 8]);
    put_varint(&mut fields, token.len());
    fields.extend_from_slice(token.as_bytes());
    put_varint(&mut fields, cursor.len());
    fields.extend_from_slice(cursor);
    let mut frame = BytesMut::new();
    put_varint(&mut frame, fields.len());
    frame.extend_from_slice(&fields);
    frame.freeze()
}

/// A frame of a later version whose length field says so many bytes.
fn skippable(bytes: usize) -> Vec<u8> {
    let mut frame = BytesMut::new();
    put_varint(&mut frame, bytes);
    frame.extend_from_slice(&[0x7f]);
    frame.resize(frame.len() + bytes - 1, 0);
    frame.to_vec()
}

fn put_varint(out: &mut BytesMut, value: usize) {
    chatring_wire::varint::put(out, value as u64);
}
