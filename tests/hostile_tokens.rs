//! Goal: who may not sign in is told why, and who loses the right loses its sessions.
//! Method: tokens of every wrong kind in `hello` and `refresh` against the real binary, while two
//! people chat.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chatring_client::token::TokenKey;
use chatring_wire::frame::SignOutScope;
use chatring_wire::{ClientFrame, CloseCode, DeviceId, ErrorCode, ServerFrame, Subprotocol};

use crate::common::raw::{Heard, Raw, hello, refused};
use crate::common::{Bystanders, Node, NodeOptions};

/// A node that takes tokens by the second.
fn strict() -> Node {
    let config = "[auth]\nleeway = \"0s\"\n".to_owned();
    Node::start_with(NodeOptions { config: Some(config), ..NodeOptions::default() })
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

fn refused_hello(node: &Node, token: &str, code: ErrorCode) {
    for subprotocol in [Subprotocol::Binary, Subprotocol::Json] {
        let mut raw = Raw::upgraded(node, subprotocol);
        raw.say(&[ClientFrame::Hello(hello(token, "x"))]);
        raw.expect_error_and(code, CloseCode::Auth);
    }
}

#[test]
fn wrong_tokens_are_told_apart() {
    let node = strict();
    let bystanders = Bystanders::start(&node);
    let key = node.token_key();
    let now_s = now_s();
    let good = key.mint("eve", now_s, 60);
    let (rest, signature) = good.rsplit_once('.').expect("three parts");
    let (foreign, _) = TokenKey::generate().expect("random bytes");
    let header = |text: &str| {
        let (_, claims) = rest.split_once('.').expect("two parts");
        format!("{}.{claims}.{signature}", URL_SAFE_NO_PAD.encode(text))
    };
    let wrong = [
        String::new(),
        "a.b.c".to_owned(),
        "\u{1f980}".to_owned(),
        rest.to_owned(),
        format!("{rest}."),
        format!("{rest}.{}", signature.replace(&signature[..4], "AAAA")),
        format!("{}{}", &good[..10], &good[11..]),
        // Signed by somebody else, also under the name of our key.
        foreign.mint("eve", now_s, 60),
        header(r#"{"alg":"none"}"#),
        header(r#"{"alg":"HS256"}"#),
        header(r#"{"alg":"EdDSA","crit":["x"]}"#),
        // A public key is no secret: nobody can sign with it.
        hs256(&key, rest),
        // From the future, without a name, with a long one.
        key.mint("eve", now_s + 3_600, 60),
        key.mint("", now_s, 60),
        key.mint(&"e".repeat(257), now_s, 60),
    ];
    for token in &wrong {
        refused_hello(&node, token, ErrorCode::InvalidToken);
    }
    refused_hello(&node, &key.mint("eve", now_s - 100, 50), ErrorCode::ExpiredToken);
    Raw::sign_in_with(&node, Subprotocol::Binary, hello(&good, "x")).expect_alive();
    // A time that no clock will show is a time all the same.
    let long = key.mint("eve", now_s, 8_999_999_999_999_999 - now_s);
    Raw::sign_in_with(&node, Subprotocol::Binary, hello(&long, "x")).expect_alive();
    bystanders.check();
}

/// The token signed with the public key as the secret of HS256, the oldest trick.
fn hs256(key: &TokenKey, rest: &str) -> String {
    let (_, claims) = rest.split_once('.').expect("two parts");
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
    let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key.public_key());
    let signed = format!("{header}.{claims}");
    let tag = ring::hmac::sign(&secret, signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
}

#[test]
fn a_session_ends_with_its_token_unless_it_is_refreshed_in_place() {
    let node = strict();
    let key = node.token_key();
    let sign_in = |name: &str| {
        let token = key.mint("brief", now_s(), 4);
        Raw::sign_in_with(&node, Subprotocol::Binary, hello(&token, name))
    };
    let mut kept = sign_in("kept");
    let mut left = sign_in("left");
    let mut wrong = sign_in("wrong");
    let start = Instant::now();
    let refresh =
        |raw: &mut Raw, token: String| raw.ask(|request| ClientFrame::Refresh { request, token });
    // Another user's token, an expired and a broken one change nothing.
    for (token, code) in [
        (key.mint("other", now_s(), 3_600), ErrorCode::InvalidToken),
        (key.mint("brief", now_s() - 9, 5), ErrorCode::ExpiredToken),
        ("a.b.c".to_owned(), ErrorCode::InvalidToken),
    ] {
        assert_eq!(refused(refresh(&mut wrong, token)), code);
    }
    let done = refresh(&mut kept, key.mint("brief", now_s(), 9));
    assert!(matches!(done, ServerFrame::Done { .. }), "{done:?}");
    for raw in [&mut left, &mut wrong] {
        raw.expect_error_and(ErrorCode::ExpiredToken, CloseCode::Auth);
    }
    kept.expect_alive();
    kept.expect_error_and(ErrorCode::ExpiredToken, CloseCode::Auth);
    assert!(start.elapsed() > Duration::from_millis(7_500), "{:?}", start.elapsed());
}

#[test]
fn signing_out_everywhere_ends_every_session_and_every_token() {
    let node = strict();
    let bystanders = Bystanders::start(&node);
    let key = node.token_key();
    let token = key.mint("gone", now_s() - 1, 3_600);
    let sign_in = |name: &str| Raw::sign_in_with(&node, Subprotocol::Binary, hello(&token, name));
    let (mut one, mut two, mut three) = (sign_in("one"), sign_in("two"), sign_in("three"));
    let mut other = Raw::sign_in(&node, "stays");
    let request = one.next_request();
    one.say(&[ClientFrame::SignOut { request, scope: SignOutScope::Everywhere }]);
    for raw in [&mut one, &mut two, &mut three] {
        raw.expect_close(CloseCode::Auth);
        raw.end();
        assert_eq!(raw.hear(), Heard::End);
    }
    other.expect_alive();
    refused_hello(&node, &token, ErrorCode::RevokedToken);
    // Also after a restart: it is stored.
    let mut node = node;
    drop(bystanders);
    node.restart();
    refused_hello(&node, &token, ErrorCode::RevokedToken);
    // A new token of the same user is good, from the next second on.
    std::thread::sleep(Duration::from_millis(1_100));
    let fresh = node.token_key().mint("gone", now_s(), 60);
    let mut back = Raw::sign_in_with(&node, Subprotocol::Binary, hello(&fresh, "one"));
    back.expect_alive();
    let refresh = back.ask(|request| ClientFrame::Refresh { request, token: token.clone() });
    assert_eq!(refused(refresh), ErrorCode::RevokedToken);
}

#[test]
fn signing_a_device_out_ends_its_session_and_bars_its_installation() {
    let node = Node::start();
    let token = node.token("home");
    let sign_in = |name: &str| Raw::sign_in_with(&node, Subprotocol::Binary, hello(&token, name));
    let (mut phone, mut laptop) = (sign_in("phone"), sign_in("laptop"));
    let scope = SignOutScope::Device(phone.welcome().device);
    let done = laptop.ask(|request| ClientFrame::SignOut { request, scope });
    assert!(matches!(done, ServerFrame::Done { .. }), "{done:?}");
    phone.expect_close(CloseCode::Auth);
    laptop.expect_alive();
    let mut again = Raw::upgraded(&node, Subprotocol::Binary);
    again.say(&[ClientFrame::Hello(hello(&token, "phone"))]);
    again.expect_error_and(ErrorCode::RevokedToken, CloseCode::Auth);
    // A new installation on the same phone is another device.
    let new = sign_in("phone, set up anew");
    assert_ne!(new.welcome().device, phone.welcome().device);
    let nobody = SignOutScope::Device(DeviceId(77));
    let answer = laptop.ask(|request| ClientFrame::SignOut { request, scope: nobody });
    assert_eq!(refused(answer), ErrorCode::Invalid);
}
