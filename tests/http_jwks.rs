//! Goal: users of an identity provider are served by the keys that it publishes, through changes of
//! keys and failures, and nobody can have it flooded. Method: a provider of the test's own.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PKCS_ED25519};
use ring::signature::Ed25519KeyPair;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::common::api::{ApiServer, linked_node};
use crate::common::postgres::Postgres;
use crate::common::skip::skipped;
use crate::common::tls::Certificate;
use crate::common::{Http, Node, NodeOptions, figure, figure_at};

/// Time in which anything must have happened.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// Least time between two fetches.
const PAUSE_S: u64 = 1;

struct Signer {
    kid: String,
    key: Ed25519KeyPair,
    jwk: Value,
}

fn signer(kid: &str) -> Signer {
    let pair = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let x = URL_SAFE_NO_PAD.encode(pair.public_key_raw());
    let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x });
    let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&pair.serialize_der());
    Signer { kid: kid.to_owned(), key: key.expect("a key"), jwk }
}

impl Signer {
    fn token(&self, audience: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let header = json!({ "alg": "EdDSA", "kid": self.kid });
        let claims = json!({
            "iss": "idp", "sub": "alice", "aud": audience, "iat": now - 1, "exp": now + 3_600,
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(&header), part(&claims));
        let signature = self.key.sign(message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Publishes a set until it is dropped with the test's process.
struct Provider {
    url: String,
    asked: Arc<AtomicU64>,
    answer: Arc<Mutex<String>>,
}

impl Provider {
    /// With a certificate in `folder` it speaks TLS.
    fn start(folder: Option<&Path>) -> Provider {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let scheme = if folder.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://127.0.0.1:{port}/keys?v=1");
        let tls = folder.map(|folder| {
            let (certificate, key) = Certificate::paths(folder);
            let chain = CertificateDer::pem_file_iter(certificate).expect("a file");
            let chain = chain.collect::<Result<Vec<_>, _>>().expect("certificates");
            let key = PrivateKeyDer::from_pem_file(key).expect("a key");
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_no_client_auth()
                .with_single_cert(chain, key);
            Arc::new(config.expect("a pair"))
        });
        let (asked, answer) = (Arc::<AtomicU64>::default(), Arc::<Mutex<String>>::default());
        let (counted, answers) = (Arc::clone(&asked), Arc::clone(&answer));
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                counted.fetch_add(1, Ordering::Relaxed);
                let answer = answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let served = match &tls {
                    None => serve(socket, &answer),
                    Some(tls) => {
                        let session = ServerConnection::new(Arc::clone(tls)).expect("TLS");
                        serve(StreamOwned::new(session, socket), &answer)
                    }
                };
                // The server may have gone before the end.
                drop(served);
            }
        });
        Provider { url, asked, answer }
    }

    fn publish(&self, signers: &[&Signer]) {
        let keys: Vec<&Value> = signers.iter().map(|signer| &signer.jwk).collect();
        self.say("200 OK", &json!({ "keys": keys }).to_string());
    }

    fn say(&self, status: &str, body: &str) {
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = head + body;
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

fn serve(mut stream: impl Read + Write, answer: &str) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        request.push(byte[0]);
    }
    assert!(request.starts_with(b"GET /keys?v=1 HTTP/1.1\r\n"));
    stream.write_all(answer.as_bytes())?;
    stream.flush()
}

fn node(jwks: &str, more: &str) -> Node {
    let config = Some(config(jwks, more));
    Node::start_with(NodeOptions { config, ..NodeOptions::default() })
}

fn config(jwks: &str, more: &str) -> String {
    format!(
        "[auth]\njwks_refresh = \"{PAUSE_S}s\"\njwks_pause = \"{PAUSE_S}s\"\n{more}\n\
         [[auth.issuers]]\nname = \"idp\"\naudience = \"chat\"\njwks = {jwks:?}\n"
    )
}

fn status(node: &Node, token: &str) -> u16 {
    Http::connect(node.http()).token(token).get("/v1/me").status
}

fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < until, "{what} has not happened");
        std::thread::sleep(POLL);
    }
}

#[test]
fn keys_at_a_url_change_while_the_server_runs_and_a_failure_leaves_them() {
    let folder = tempfile::tempdir().expect("a folder");
    Certificate::make(2100).put(folder.path());
    let provider = Provider::start(Some(folder.path()));
    let (old, new) = (signer("old"), signer("new"));
    provider.publish(&[&old]);
    let node = node(&provider.url, &format!("ca = {:?}", Certificate::paths(folder.path()).0));
    until("the first fetch", || status(&node, &old.token("chat")) == 200);
    let mut http = Http::connect(node.http()).token(&old.token("chat"));
    assert_eq!(http.get("/v1/me").json["subject"], "alice");
    assert_eq!(status(&node, &old.token("bank")), 401, "meant for somebody else");

    // What is too large, no set, an error or a redirect leaves the keys as they were.
    let failures = |node: &Node| figure(node, "chatring_auth_jwks_failures_total");
    let large = "x".repeat(300 * 1024);
    for (status_line, body) in [("200 OK", &*large), ("200 OK", "{}"), ("302 Found", "")] {
        provider.say(status_line, body);
        let before = failures(&node);
        until("a failure", || failures(&node) > before);
        assert_eq!(status(&node, &old.token("chat")), 200);
    }
    provider.publish(&[&new]);
    until("the new key", || status(&node, &new.token("chat")) == 200);
    // Whoever was let in before is remembered by the token, so another one is asked with.
    assert_eq!(status(&node, &old.token("chat")), 401);
    assert_eq!(figure(&node, "chatring_auth_jwks_keys"), 1.0);
}

#[test]
fn a_flood_of_unknown_keys_does_not_reach_the_provider() {
    let provider = Provider::start(None);
    let known = signer("known");
    provider.publish(&[&known]);
    // So that all of them are looked at.
    let limits = "[limits]\nbad_tokens_per_ip_burst = 1000000000\n";
    let node = node(&provider.url, limits);
    until("the first fetch", || status(&node, &known.token("chat")) == 200);
    let (start, before) = (Instant::now(), provider.asked());
    let unknown = signer("unknown");
    let mut http = Http::connect(node.http());
    // Through several refreshes, each of which one of these could have asked for.
    while provider.asked() < before + 2 {
        assert!(start.elapsed() < PATIENCE, "it is not asked any more");
        for n in 0..100 {
            let header = json!({ "alg": "EdDSA", "kid": n.to_string() }).to_string();
            let token = unknown.token("chat");
            let (_, rest) = token.split_once('.').expect("a token");
            let token = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header));
            let line = format!("authorization: Bearer {token}\r\n");
            let answer = http.ask("GET", "/v1/me", &line, None);
            assert!([401, 503].contains(&answer.status), "{answer:?}");
        }
    }
    let most = 2 + start.elapsed().as_secs() / PAUSE_S;
    let asked = provider.asked() - before;
    assert!(asked <= most, "asked {asked} times in {:?}", start.elapsed());
    assert_eq!(status(&node, &known.token("chat")), 200);
}

#[test]
fn keys_in_a_file_are_read_at_the_start_and_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keys.json");
    let (old, new) = (signer("old"), signer("new"));
    let put = |signer: &Signer| {
        let next = folder.path().join("next");
        std::fs::write(&next, json!({ "keys": [signer.jwk] }).to_string()).expect("a file");
        std::fs::rename(next, &path).expect("a folder");
    };
    put(&old);
    let node = node(path.to_str().expect("text"), "");
    assert_eq!(status(&node, &old.token("chat")), 200);
    put(&new);
    until("the new key", || status(&node, &new.token("chat")) == 200);
    drop(node);

    let config = folder.path().join("c.toml");
    let text = format!("[[auth.issuers]]\nname = \"idp\"\njwks = {path:?}\n");
    std::fs::write(&config, text).expect("a file");
    let check = || {
        crate::common::chatring(&["config", "check", "--config", config.to_str().expect("text")])
    };
    assert!(check().status.success());
    std::fs::write(&path, "{}").expect("a file");
    assert!(crate::common::refusal(&check()).contains("keys.json"));
}

#[test]
fn an_api_server_alone_has_the_keys_and_tells_of_them() {
    let postgres = match Postgres::start() {
        Ok(postgres) => postgres,
        Err(reason) => return skipped(&format!("API servers alone: {reason}")),
    };
    let provider = Provider::start(None);
    let known = signer("known");
    provider.publish(&[&known]);
    let (node, linked) = linked_node(&postgres.url(), Vec::new());
    let api = ApiServer::start(&node, &(config(&provider.url, "") + &linked));
    let of_api = |name: &str| figure_at(api.http(), &format!("chatring_auth_jwks_{name}"));
    until("the first fetch", || of_api("keys") == 1.0);
    let served = Http::connect(api.http()).token(&known.token("chat")).get("/v1/channels").status;
    assert_eq!(served, 200);
    provider.say("500 Internal Server Error", "");
    until("a failure", || of_api("failures_total") >= 1.0);
    assert!(of_api("fetches_total") >= 2.0);
    assert_eq!(of_api("keys"), 1.0, "they stay");
}
