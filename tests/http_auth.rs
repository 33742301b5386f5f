//! Goal: no endpoint lets in whom it should not. Method: every operation of the server's own
//! description, each with every kind of token that is no good; and channels of others.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chatring_client::token::TokenKey;
use serde_json::{Value, json};

use crate::common::{Http, Node};

const PASSWORD: &str = "correct horse battery";

/// Every operation: method and path, with something in place of its parameters, and whether it
/// needs a token.
fn operations(node: &Node) -> Vec<(String, String, bool)> {
    let document = Http::connect(node.http()).get("/v1/openapi.json").json;
    let paths = document["paths"].as_object().expect("paths");
    let mut found = Vec::new();
    for (path, methods) in paths {
        let path = path.replace("{id}", "00000000000000aa").replace("{handle}", "bob");
        for (method, operation) in methods.as_object().expect("methods") {
            let signed_in = operation["security"].as_array().is_some_and(|all| !all.is_empty());
            found.push((method.to_uppercase(), path.clone(), signed_in));
        }
    }
    found
}

/// A token of the right form, with a header and claims of the caller's.
fn forged(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{}", part(header), part(claims), URL_SAFE_NO_PAD.encode(signature))
}

#[test]
fn every_endpoint_refuses_every_token_that_is_no_good() {
    let node = Node::start();
    let now_s = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock").as_secs();
    let key = std::fs::read_to_string(node.data().join("token_key.pem")).expect("a key");
    let key = TokenKey::from_pem(&key).expect("a key");
    let (other, _) = TokenKey::generate().expect("a key");
    let claims = json!({ "iss": "chatring", "sub": "alice", "iat": now_s, "exp": now_s + 600 });
    let none = json!({ "alg": "none", "typ": "JWT" });
    let hmac = json!({ "alg": "HS256", "typ": "JWT" });
    let good = key.mint("alice", now_s, 600);
    let signed_by_public_key = {
        use ring::hmac::{HMAC_SHA256, Key, sign};
        let token = forged(&hmac, &claims, b"");
        let message = token.trim_end_matches('.');
        let tag = sign(&Key::new(HMAC_SHA256, key.public_key()), message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag))
    };
    let cut = &good[..good.len() - 4];
    let tokens = [
        ("none", String::new(), "invalid_token"),
        ("garbage", "abc".to_owned(), "invalid_token"),
        ("expired", key.mint("alice", now_s - 600, 60), "expired_token"),
        ("of the future", key.mint("alice", now_s + 600, 600), "invalid_token"),
        ("another key", other.mint("alice", now_s, 600), "invalid_token"),
        ("cut off", cut.to_owned(), "invalid_token"),
        ("alg none", forged(&none, &claims, b""), "invalid_token"),
        ("alg none, signed", forged(&none, &claims, &[0; 64]), "invalid_token"),
        ("the public key as secret", signed_by_public_key, "invalid_token"),
        ("too long", "a".repeat(9_000), "invalid_token"),
    ];
    let operations = operations(&node);
    assert!(operations.len() >= 25, "{operations:?}");
    let open = operations.iter().filter(|(_, _, signed_in)| !signed_in).count();
    assert_eq!(open, 3, "sign up, log in, renew: {operations:?}");
    let mut http = Http::connect(node.http());
    for (method, path, _) in operations.iter().filter(|(_, _, signed_in)| *signed_in) {
        for (what, token, name) in &tokens {
            let headers = match token.as_str() {
                "" => String::new(),
                token => format!("authorization: Bearer {token}\r\n"),
            };
            let answer = http.ask(method, path, &headers, None);
            let case = format!("{method} {path}, {what}: {answer:?}");
            assert_eq!((answer.status, answer.problem()), (401, *name), "{case}");
            assert!(answer.head.contains("www-authenticate: bearer"), "{case}");
        }
        // With a good one it is let in, or told what else is wrong.
        let headers = format!("authorization: Bearer {good}\r\n");
        if path == "/v1/events" {
            continue;
        }
        let answer = http.ask(method, path, &headers, None);
        assert_ne!(answer.problem(), "expired_token", "{method} {path}: {answer:?}");
        assert!(answer.status < 500, "{method} {path}: {answer:?}");
    }
}

#[test]
fn the_token_of_a_removed_device_is_refused_everywhere() {
    let node = Node::start();
    let mut http = Http::connect(node.http());
    let body = json!({ "handle": "alice", "password": PASSWORD });
    let first = http.post("/v1/accounts", &body).json;
    let second = http.post("/v1/sessions", &body).json;
    let token = |session: &Value| session["access_token"].as_str().expect("a token").to_owned();
    let mut one = Http::connect(node.http()).token(&token(&first));
    let mut two = Http::connect(node.http()).token(&token(&second));
    // The server remembers a token that was good; it must not be let in for that.
    assert_eq!(two.get("/v1/me").status, 200);
    let id = second["device"].as_u64().expect("a number");
    assert_eq!(one.ask("DELETE", &format!("/v1/me/devices/{id}"), "", None).status, 204);
    for (method, path, signed_in) in operations(&node) {
        if signed_in {
            let answer = two.ask(&method, &path, "", None);
            let case = format!("{method} {path}: {answer:?}");
            assert_eq!((answer.status, answer.problem()), (401, "revoked_token"), "{case}");
        }
    }
    assert_eq!(one.get("/v1/me").status, 200);
}

#[test]
fn channels_of_others_look_as_if_they_were_not_there() {
    let node = Node::start();
    let user = |name: &str| Http::connect(node.http()).token(&node.token(name));
    let (mut alice, mut bob, mut carol) = (user("alice"), user("bob"), user("carol"));
    bob.get("/v1/sync");
    carol.get("/v1/sync");
    let opened = alice.post("/v1/channels", &json!({ "kind": "direct", "with": "bob" })).json;
    let id = opened["id"].as_str().expect("an id");
    for path in [id, "00000000000000aa"] {
        let channel = format!("/v1/channels/{path}");
        for (method, path, body) in [
            ("GET", channel.clone(), None),
            ("GET", format!("{channel}/messages"), None),
            ("POST", format!("{channel}/messages"), Some(r#"{"text":"a"}"#)),
            ("PUT", format!("{channel}/markers"), Some(r#"{"read":1}"#)),
            ("POST", format!("{channel}/typing"), None),
        ] {
            let answer = carol.ask(method, &path, "", body);
            let case = format!("{method} {path}: {answer:?}");
            assert_eq!((answer.status, answer.problem()), (404, "unknown_channel"), "{case}");
        }
    }
}
