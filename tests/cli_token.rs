//! Goal: `chatring token` makes tokens of the data folder's key. Method: the real binary.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chatring_client::token::{TOKEN_KEY_FILE, TokenKey};

use crate::common::{chatring, refusal, stdout};

#[test]
fn it_prints_a_token_of_the_folders_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().to_str().expect("text");
    let (_, text) = TokenKey::generate().expect("random bytes");
    std::fs::write(folder.path().join(TOKEN_KEY_FILE), text).expect("a file");
    let output = chatring(&["token", "--data", data, "--user", "alice", "--ttl", "5m"]);
    assert!(output.status.success(), "{output:?}");
    let token = stdout(&output).trim_end();
    let claims = token.split('.').nth(1).expect("three parts");
    let claims = URL_SAFE_NO_PAD.decode(claims).expect("base64");
    let claims: serde_json::Value = serde_json::from_slice(&claims).expect("JSON");
    assert_eq!(claims["sub"], "alice");
    let life = claims["exp"].as_u64().zip(claims["iat"].as_u64()).map(|(exp, iat)| exp - iat);
    assert_eq!(life, Some(300));
}

#[test]
fn it_refuses_what_makes_no_token() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().to_str().expect("text");
    let token =
        |user: &str, ttl: &str| chatring(&["token", "--data", data, "--user", user, "--ttl", ttl]);
    assert!(refusal(&token("alice", "1h")).contains("no token key"));
    std::fs::write(folder.path().join(TOKEN_KEY_FILE), "broken").expect("a file");
    assert!(refusal(&token("alice", "1h")).contains("no Ed25519 private key"));
    assert!(refusal(&token("", "1h")).contains("--user"));
    assert!(refusal(&token(&"a".repeat(257), "1h")).contains("--user"));
    assert!(refusal(&token("alice", "0s")).contains("--ttl"));
    assert_eq!(token("alice", "soon").status.code(), Some(2));
}
