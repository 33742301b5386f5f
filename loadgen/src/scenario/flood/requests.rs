//! What is sent, as bytes.

use std::sync::Arc;

use bytes::Bytes;
use chatring_client::token::TokenKey;

use super::{Kind, Options, http2};
use crate::http::requests;
use crate::pool::{fresh_random, unix_ms};

/// Tokens that are made before, of each kind that has a signature.
const TOKENS: usize = 256;
/// Length of a large head.
const HEAD_BYTES: usize = 1 << 20;
/// Length that the head of a slow body tells.
const BODY_BYTES: usize = 1_000;
/// When tokens that have expired were made, and for how long, in seconds.
const EXPIRED_AGO_S: u64 = 7_200;
const EXPIRED_TTL_S: u64 = 60;

/// All requests of a flood.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    kind: Kind,
    addresses: u64,
    /// Keeps the names of this flood apart from those of others.
    run: u32,
    forged: Arc<[String]>,
    expired: Arc<[String]>,
    /// Requests that are the same each time, in turn.
    large: Arc<[Bytes]>,
}

impl Requests {
    /// `key` signs the node's tokens.
    pub(super) fn new(options: &Options, key: &TokenKey) -> Requests {
        let kind = options.kind;
        let now_s = unix_ms() / 1_000;
        let tokens = if kind == Kind::Tokens { TOKENS } else { 0 };
        let forged = (0..tokens).map(|n| forged(&key.mint(&format!("flood {n}"), now_s, 3_600)));
        let expired = (0..tokens).map(|n| {
            let name = format!("flood {n}");
            key.mint(&name, now_s.saturating_sub(EXPIRED_AGO_S), EXPIRED_TTL_S)
        });
        let large = match kind {
            Kind::Heads => vec![large_head()],
            Kind::Heads2 => vec![http2::long_head(HEAD_BYTES), http2::dense_head(HEAD_BYTES)],
            _ => Vec::new(),
        };
        Requests {
            kind,
            addresses: u64::from(options.addresses),
            run: (fresh_random(0).draw() >> 32) as u32,
            forged: forged.collect(),
            expired: expired.collect(),
            large: large.into(),
        }
    }

    /// The request of this number.
    pub(super) fn request(&self, number: u64) -> Bytes {
        let name = format!("{:08x}-{number}", self.run);
        match self.kind {
            Kind::Tokens => {
                let place = (number / 3) as usize % TOKENS;
                let garbage = format!("a.{name}.c");
                let token = match number % 3 {
                    0 => &garbage,
                    1 => &self.forged[place],
                    _ => &self.expired[place],
                };
                let from = self.from(number);
                let head = format!("host: flood\r\n{from}authorization: Bearer {token}\r\n");
                requests::get("/v1/me", &head).into()
            }
            Kind::Passwords => self.json(number, "/v1/sessions", &name, "a guess"),
            Kind::SignUps => self.json(number, "/v1/accounts", &name, "one of a flood"),
            Kind::Bodies => {
                let from = self.from(number);
                format!(
                    "POST /v1/sessions HTTP/1.1\r\nhost: flood\r\n{from}\
                     content-type: application/json\r\ncontent-length: {BODY_BYTES}\r\n\r\n{{"
                )
                .into()
            }
            Kind::Heads | Kind::Heads2 => {
                self.large[(number % self.large.len() as u64) as usize].clone()
            }
        }
    }

    fn json(&self, number: u64, path: &str, handle: &str, password: &str) -> Bytes {
        let body = format!(r#"{{"handle":"{handle}","password":"{password}"}}"#);
        let head = format!("host: flood\r\n{}", self.from(number));
        requests::post(path, &head, "", &body).into()
    }

    /// From whom it comes, as a proxy says it.
    fn from(&self, number: u64) -> String {
        if self.addresses == 0 {
            return String::new();
        }
        let [_, a, b, c] = ((number % self.addresses) as u32).to_be_bytes();
        format!("x-forwarded-for: 10.{a}.{b}.{c}\r\n")
    }
}

/// A token with another signature than its own.
fn forged(token: &str) -> String {
    let (head, signature) = token.rsplit_once('.').expect("a token has three parts");
    let (first, rest) = signature.split_at(1);
    let other = if first == "A" { "B" } else { "A" };
    format!("{head}.{other}{rest}")
}

fn large_head() -> Bytes {
    let long = "a".repeat(HEAD_BYTES);
    requests::get("/v1/me", &format!("host: flood\r\nlong: {long}\r\n")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(kind: Kind, addresses: u32) -> Vec<String> {
        let (key, _) = TokenKey::generate().unwrap();
        let options = Options {
            node: "ready.json".into(),
            kind,
            count: 1,
            duration: std::time::Duration::ZERO,
            connections: 1,
            addresses,
            json: None,
        };
        let requests = Requests::new(&options, &key);
        (0..4).map(|n| String::from_utf8(requests.request(n).to_vec()).unwrap()).collect()
    }

    #[test]
    fn tokens_are_bad_in_three_ways() {
        let all = requests(Kind::Tokens, 0);
        let token = |n: usize| all[n].split("Bearer ").nth(1).unwrap().trim_end().to_owned();
        assert!(token(0).starts_with("a.") && token(0) != token(3), "{}", token(0));
        let body = |n| token(n).split('.').nth(1).unwrap().to_owned();
        assert!(
            body(1) != body(2) && token(1).split('.').count() == 3,
            "{} {}",
            token(1),
            token(2)
        );
        assert!(!all[0].contains("forwarded"));
    }

    #[test]
    fn a_forged_token_differs_in_its_signature_alone() {
        for (token, other) in [("a.b.Acd", "a.b.Bcd"), ("a.b.xcd", "a.b.Acd")] {
            assert_eq!(forged(token), other);
        }
    }

    #[test]
    fn names_are_new_each_time_and_addresses_come_in_turn() {
        let all = requests(Kind::SignUps, 3);
        let of = |n: usize, mark: &str| {
            let rest = all[n].split_once(mark).unwrap().1;
            rest.split(['"', '\r']).next().unwrap().to_owned()
        };
        let (handle, from) = (r#""handle":""#, "x-forwarded-for: ");
        assert_ne!(of(0, handle), of(3, handle));
        assert_eq!(
            [0, 1, 2, 3].map(|n| of(n, from)),
            ["10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.0"]
        );
        let (head, body) = all[0].split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
    }
}
