//! Goal: requests for what one may not have, or that are wrong, get their own errors, and the
//! session lives on. Method: raw sessions against the real binary, while two people chat.

use bytes::Bytes;
use chatring_wire::frame::{
    CacheAction, Direction, MessageKind as BodyKind, RangeRequest, RequestId, Send, UserRef,
};
use chatring_wire::limits::{BODY_BYTES_MAX, NAME_BYTES_MAX, WHO_MEMBERS_MAX};
use chatring_wire::ws::MessageKind;
use chatring_wire::{
    Cid, ClientFrame, ErrorCode, MemberNumber, Seq, ServerFrame, Subprotocol, Uid,
};

use crate::common::raw::{Raw, answers, hello, named, refused, text};
use crate::common::{Bystanders, Node, NodeOptions};

fn range(request: RequestId, cid: Cid, from: u64, to: u64) -> ClientFrame {
    let (from, to, direction) = (Seq(from), Seq(to), Direction::Ascending);
    ClientFrame::Range(RangeRequest { request, cid, from, to, limit: 0, direction })
}

fn who(request: RequestId, cid: Cid, members: Vec<MemberNumber>) -> ClientFrame {
    ClientFrame::Who { request, cid, members }
}

#[test]
fn a_channel_of_others_and_one_that_is_none_look_the_same() {
    let node = Node::start();
    let bystanders = Bystanders::start(&node);
    Raw::sign_in(&node, "alice").end();
    let mut bob = Raw::sign_in(&node, "bob");
    let theirs = bob.open("alice").cid;
    let empty = {
        Raw::sign_in(&node, "zoe").end();
        bob.open("zoe").cid
    };
    bob.send(theirs, 1u8, 0, b"for alice alone");
    let mut eve = Raw::sign_in(&node, "eve");
    for cid in [theirs, empty, Cid(0), Cid(u64::MAX), Cid(theirs.0 ^ 1)] {
        assert_eq!(refused(eve.send(cid, 9u8, 0, b"let me in")), ErrorCode::UnknownChannel);
        let answer = eve.ask(|request| range(request, cid, 1, 10));
        assert_eq!(refused(answer), ErrorCode::UnknownChannel);
        let answer = eve.ask(|request| who(request, cid, Vec::new()));
        assert_eq!(refused(answer), ErrorCode::UnknownChannel);
        eve.say(&[ClientFrame::Mark { cid, read: Seq(1), received: Seq(1) }]);
        eve.expect_alive();
    }
    // Nothing of it came to be: bob is next, and hears nothing of eve.
    let sent = bob.send(theirs, 2u8, 1, b"still alone");
    assert!(matches!(sent, ServerFrame::Sent { seq: Seq(2), .. }), "{sent:?}");
    bystanders.check();
}

#[test]
fn opening_nobody_or_oneself_is_refused() {
    let node = Node::start();
    let mut eve = Raw::sign_in(&node, "eve");
    let uid = eve.welcome().uid;
    let subject = |issuer: &str, subject: &str| UserRef::Subject {
        issuer: issuer.to_owned(),
        subject: subject.to_owned(),
    };
    for (with, code) in [
        (named("eve"), ErrorCode::SelfChannel),
        (UserRef::Uid(uid), ErrorCode::SelfChannel),
        (named("nobody"), ErrorCode::UnknownUser),
        (subject("https://else.example", "eve"), ErrorCode::UnknownUser),
        (UserRef::Uid(Uid(1)), ErrorCode::UnknownUser),
        (named(""), ErrorCode::Invalid),
        (named(&"n".repeat(NAME_BYTES_MAX)), ErrorCode::UnknownUser),
    ] {
        let answer = eve.ask(|request| ClientFrame::Open { request, with: with.clone() });
        assert_eq!(refused(answer), code, "{with:?}");
    }
    eve.expect_alive();
    // A name above its bound does not even parse.
    let mut json = Raw::sign_in_with(&node, Subprotocol::Json, hello(&node.token("eve"), "json"));
    let name = "n".repeat(NAME_BYTES_MAX + 1);
    let open = format!(r#"{{"type":"open","request":1,"with":{{"subject":"{name}"}}}}"#);
    json.say_payload(MessageKind::Text, open.as_bytes());
    json.expect_error(ErrorCode::TooLarge);
}

#[test]
fn ranges_and_members_that_cannot_be_are_invalid() {
    let node = Node::start();
    Raw::sign_in(&node, "bob").end();
    let mut alice = Raw::sign_in(&node, "alice");
    let cid = alice.open("bob").cid;
    alice.send(cid, 1u8, 0, b"one");
    for (from, to) in [(0, 0), (0, 5), (2, 1)] {
        let answer = alice.ask(|request| range(request, cid, from, to));
        assert_eq!(refused(answer), ErrorCode::Invalid, "{from} to {to}");
    }
    match alice.ask(|request| range(request, cid, 1, 1_000)) {
        ServerFrame::Rows { page, .. } => {
            assert_eq!((page.from, page.to, page.gap), (Seq(1), Seq(1), false));
            assert_eq!(page.rows.len(), 1);
        }
        other => panic!("{other:?}"),
    }
    match alice.ask(|request| range(request, cid, 2, 1_000)) {
        ServerFrame::Rows { page, .. } => {
            assert!(page.rows.is_empty() && page.to < page.from && !page.gap, "{page:?}");
        }
        other => panic!("{other:?}"),
    }
    let numbers = [0, 1, 2, u32::MAX].map(MemberNumber).to_vec();
    match alice.ask(|request| who(request, cid, numbers)) {
        ServerFrame::Members { members, .. } => {
            let mut names: Vec<_> = members.iter().map(|member| &*member.subject).collect();
            names.sort_unstable();
            assert_eq!(names, ["alice", "bob"]);
        }
        other => panic!("{other:?}"),
    }
    let many = vec![MemberNumber(0); WHO_MEMBERS_MAX];
    let answer = alice.ask(|request| who(request, cid, many));
    assert!(matches!(answer, ServerFrame::Members { .. }), "{answer:?}");
}

#[test]
fn a_body_may_have_its_bound_and_not_a_byte_more() {
    let node = Node::start();
    let bystanders = Bystanders::start(&node);
    let mut bob = Raw::sign_in(&node, "bob");
    for (n, subprotocol) in [Subprotocol::Binary, Subprotocol::Json].into_iter().enumerate() {
        let hello = hello(&node.token("alice"), &format!("alice {n}"));
        let mut alice = Raw::sign_in_with(&node, subprotocol, hello);
        let cid = alice.open("bob").cid;
        // Bytes that JSON has to escape or to encode.
        for (kind, byte, cmid) in [(0, b'x', 1), (0, 1, 2), (1, 0xff, 3)] {
            let body = vec![byte; BODY_BYTES_MAX];
            let request = alice.next_request();
            let mut send = text(request, cid, cmid + 10 * n as u8, 0, &body);
            send.kind = BodyKind(kind);
            alice.say(&[ClientFrame::Send(send)]);
            alice.until(|frame| matches!(frame, ServerFrame::Sent { .. }));
            let pushed = bob.until(|frame| frame.is_push());
            let pushed = match pushed {
                ServerFrame::Text { body, .. } => body,
                ServerFrame::Entry { row, .. } => row.body,
                other => panic!("{other:?}"),
            };
            assert!(pushed == body, "the body came as it was sent");
            let pushes = 3 * n as u64 + u64::from(cmid);
            bob.say(&[ClientFrame::Ack { pushes }]);
        }
        // One byte more is above what the receiver checks while it reads.
        send_above_the_bound(&mut alice, subprotocol, cid);
        alice.expect_error(ErrorCode::TooLarge);
    }
    bystanders.check();
}

/// A text of one byte above the bound, which the codec would not write.
fn send_above_the_bound(raw: &mut Raw, subprotocol: Subprotocol, cid: Cid) {
    let request = raw.next_request();
    let body = "x".repeat(BODY_BYTES_MAX + 1);
    match subprotocol {
        Subprotocol::Json => {
            let send = serde_json::json!({
                "type": "send",
                "request": request.0,
                "cid": cid.to_string(),
                "cmid": "00".repeat(16),
                "text": body,
            });
            raw.say_payload(MessageKind::Text, send.to_string().as_bytes());
        }
        Subprotocol::Binary => {
            let mut fields = vec![0x84, request.0 as u8, 0];
            fields.extend_from_slice(&cid.0.to_be_bytes());
            fields.extend_from_slice(&[0; 16]);
            fields.extend_from_slice(&[0, 0]);
            fields.extend_from_slice(body.as_bytes());
            let mut frame = bytes::BytesMut::new();
            chatring_wire::varint::put(&mut frame, fields.len() as u64);
            frame.extend_from_slice(&fields);
            raw.say_payload(MessageKind::Binary, &frame);
        }
    }
}

#[test]
fn a_message_id_is_good_for_one_body() {
    let node = Node::start();
    Raw::sign_in(&node, "bob").end();
    let mut alice = Raw::sign_in(&node, "alice");
    let cid = alice.open("bob").cid;
    let first = alice.send(cid, 1u8, 0, b"one");
    let ServerFrame::Sent { seq, time_ms, .. } = first else { panic!("{first:?}") };
    for base in [0, 1, 99] {
        match alice.send(cid, 1u8, base, b"one") {
            ServerFrame::Sent { seq: again, time_ms: then, .. } => {
                assert_eq!((again, then), (seq, time_ms), "the first one's place");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(refused(alice.send(cid, 1u8, base, b"two")), ErrorCode::CmidReused);
    }
    let mut kind = text(alice.next_request(), cid, 1u8, 0, b"one");
    kind.kind = BodyKind::DATA;
    alice.say(&[ClientFrame::Send(kind)]);
    let answer = alice.until(|frame| matches!(frame, ServerFrame::Refused { .. }));
    assert_eq!(refused(answer), ErrorCode::CmidReused);
    // Another device of the same user may use the same id: it is unique within a device.
    let token = node.token("alice");
    let mut other = Raw::sign_in_with(&node, Subprotocol::Binary, hello(&token, "other"));
    let sent = other.send(cid, 1u8, 0, b"two");
    assert!(matches!(sent, ServerFrame::Sent { seq: Seq(2), .. }), "{sent:?}");
    // After a restart it is found in what is stored.
    let mut node = node;
    node.restart();
    let mut alice = Raw::sign_in(&node, "alice");
    assert_eq!(refused(alice.send(cid, 1u8, 0, b"two")), ErrorCode::CmidReused);
    let sent = alice.send(cid, 1u8, 0, b"one");
    assert!(matches!(sent, ServerFrame::Sent { seq: Seq(1), .. }), "{sent:?}");
}

#[test]
fn what_follows_a_refused_send_is_out_of_order() {
    let node = Node::start();
    Raw::sign_in(&node, "bob").end();
    let mut alice = Raw::sign_in(&node, "alice");
    let cid = alice.open("bob").cid;
    let send = |request: RequestId, cmid: u8, body: &'static [u8], previous| {
        ClientFrame::Send(Send { previous, ..text(request, cid, cmid, 0, body) })
    };
    let numbers: Vec<RequestId> = (0..5).map(|_| alice.next_request()).collect();
    alice.say(&[
        send(numbers[1], 1, b"one", None),
        // Follows a send that never was, so it is refused, and with it what follows it.
        send(numbers[2], 2, b"two", Some(numbers[0])),
        send(numbers[3], 3, b"three", Some(numbers[2])),
        send(numbers[4], 4, b"four", Some(numbers[3])),
    ]);
    let mut refused = Vec::new();
    for _ in 1..numbers.len() {
        match alice.until(|frame| answers(frame).is_some()) {
            ServerFrame::Refused { request, error } => {
                assert_eq!(error.code, Ok(ErrorCode::OutOfOrder));
                refused.push(request);
            }
            answer => {
                assert!(matches!(answer, ServerFrame::Sent { seq: Seq(1), .. }), "{answer:?}");
            }
        }
    }
    refused.sort_unstable();
    assert_eq!(refused, numbers[2..]);
    match alice.ask(|request| range(request, cid, 1, 9)) {
        ServerFrame::Rows { page, .. } => {
            let bodies: Vec<_> = page.rows.iter().map(|row| row.body.clone()).collect();
            assert_eq!(bodies, [Bytes::from_static(b"one")]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn more_open_requests_than_allowed_are_refused_one_by_one() {
    let config = "[limits]\nopen_sends_max = 8\nsends_per_second = 1\nsends_burst = 20\n\
                  [store]\ncommit_gap = \"20ms\"\n";
    let node =
        Node::start_with(NodeOptions { config: Some(config.to_owned()), ..NodeOptions::default() });
    Raw::sign_in(&node, "bob").end();
    let mut alice = Raw::sign_in(&node, "alice");
    assert_eq!(alice.welcome().open_sends_max, 8);
    let cid = alice.open("bob").cid;
    let frames: Vec<_> =
        (0..40u8).map(|n| ClientFrame::Send(text(alice.next_request(), cid, n, 0, b"x"))).collect();
    alice.say(&frames);
    let (mut sent, mut busy) = (0, 0);
    for _ in 0..40 {
        match alice.until(|frame| answers(frame).is_some()) {
            ServerFrame::Sent { .. } => sent += 1,
            ServerFrame::Refused { error, .. } => {
                assert_eq!(error.code, Ok(ErrorCode::Busy));
                assert!(error.retry_after_ms.is_some(), "it says when to try again");
                busy += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(sent >= 8 && busy >= 8, "{sent} sent, {busy} refused");
    // Faster than a user may: the burst is over, and the rest is told to wait.
    let mut waits = 0;
    for n in 40..65u8 {
        if let ServerFrame::Refused { error, .. } = alice.send(cid, n, 0, b"x") {
            assert_eq!(error.code, Ok(ErrorCode::Busy));
            waits += u32::from(error.retry_after_ms.is_some());
        }
    }
    // The rate counts all requests; how many may be open is seen where the rate is generous.
    let node = Node::start();
    Raw::sign_in(&node, "bob").end();
    let mut alice = Raw::sign_in(&node, "alice");
    let opens: Vec<_> = (0..400)
        .map(|_| ClientFrame::Open { request: alice.next_request(), with: named("bob") })
        .collect();
    alice.say(&opens);
    let mut full = 0;
    for _ in 0..400 {
        match alice.until(|frame| answers(frame).is_some()) {
            ServerFrame::Opened { .. } => {}
            ServerFrame::Refused { error, .. } => {
                assert_eq!(error.code, Ok(ErrorCode::Busy));
                full += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(waits > 0 && full > 0, "{waits} waits, {full} above the bound");
    alice.expect_alive();
}

#[test]
fn a_cursor_that_is_no_use_costs_a_first_sync() {
    let node = Node::start();
    let other_node = Node::start();
    Raw::sign_in(&node, "bob").end();
    let mut alice = Raw::sign_in(&node, "alice");
    let cid = alice.open("bob").cid;
    alice.send(cid, 1u8, 0, b"one");
    let cursor_of = |node: &Node| {
        let mut raw = Raw::upgraded(node, Subprotocol::Binary);
        raw.say(&[ClientFrame::Hello(hello(&node.token("alice"), "cursor"))]);
        match raw.until(|frame| matches!(frame, ServerFrame::Synced { .. })) {
            ServerFrame::Synced { cursor, .. } => cursor,
            other => panic!("{other:?}"),
        }
    };
    let good = cursor_of(&node);
    // A version far above what the store has reached: bytes 11 to 18.
    let mut ahead = good.to_vec();
    ahead[11] = 0x70;
    let cases: [(&str, Bytes, CacheAction); 7] = [
        ("good", good.clone(), CacheAction::Keep),
        ("none", Bytes::new(), CacheAction::Replace),
        ("of another history", cursor_of(&other_node), CacheAction::Replace),
        ("cut", good.slice(..good.len() - 1), CacheAction::Replace),
        ("of a later format", [&[9][..], &good[1..]].concat().into(), CacheAction::Replace),
        ("ahead", ahead.into(), CacheAction::Replace),
        ("garbage", vec![0xff; 1_024].into(), CacheAction::Replace),
    ];
    for (what, cursor, wanted) in cases {
        let at_hello = chatring_wire::frame::Hello {
            cursor: cursor.clone(),
            ..hello(&node.token("alice"), "again")
        };
        let mut raw = Raw::upgraded(&node, Subprotocol::Json);
        raw.say(&[ClientFrame::Hello(at_hello)]);
        expect_sync(&mut raw, what, wanted);
        let request = raw.next_request();
        raw.say(&[ClientFrame::Sync { request, cursor }]);
        expect_sync(&mut raw, what, wanted);
    }
}

/// A sync that begins so, and has the one message if it replaces the cache.
fn expect_sync(raw: &mut Raw, what: &str, wanted: CacheAction) {
    match raw.until(|frame| matches!(frame, ServerFrame::Syncing { .. })) {
        ServerFrame::Syncing { cache, .. } => assert_eq!(cache, wanted, "{what}"),
        other => panic!("{other:?}"),
    }
    let mut rows = 0;
    loop {
        match raw.frame() {
            ServerFrame::Page(page) => rows += page.rows.len(),
            ServerFrame::Synced { .. } => break,
            _ => {}
        }
    }
    assert_eq!(rows, usize::from(wanted == CacheAction::Replace), "{what}");
}
