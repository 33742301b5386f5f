//! Goal: nobody gets through any endpoint of the HTTP API who should not. Method: the table below
//! has a row for each operation of the server's own description and a column for each way to be
//! nobody, somebody else, or unwelcome; each cell is tried against the real binary. An operation
//! without a row fails the test, and so does a row without an operation.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::hmac;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use crate::common::{Http, Node, NodeOptions};

const PASSWORD: &str = "correct horse battery";
/// Issuers with users of their own.
const IDP: &str = "https://idp.example.com";
const OTHER_IDP: &str = "https://other.example.com";
const AUDIENCE: &str = "chat";
const SECRET: &str = "a secret of the other provider, 32 bytes or more";

/// What an operation asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// Nothing: what comes as a token is not looked at.
    Nothing,
    /// A good token.
    Token,
    /// The token of a log-in.
    LogIn,
}
use Needs::{LogIn, Nothing, Token};

/// An operation and who gets what. `foreign` is the answer to carol, who has an account and asks
/// for what is alice's; `blocked` that to bob, whom alice has blocked after they had talked.
struct Row {
    operation: &'static str,
    needs: Needs,
    body: Option<&'static str>,
    foreign: (u16, &'static str),
    blocked: (u16, &'static str),
}

const fn row(
    operation: &'static str,
    needs: Needs,
    body: Option<&'static str>,
    foreign: (u16, &'static str),
    blocked: (u16, &'static str),
) -> Row {
    Row { operation, needs, body, foreign, blocked }
}

const OK: (u16, &str) = (200, "");
const DONE: (u16, &str) = (204, "");
const NO_CHANNEL: (u16, &str) = (404, "unknown_channel");
const NO_DEVICE: (u16, &str) = (404, "unknown_device");
const BLOCKED: (u16, &str) = (403, "blocked");
const WRONG_PW: (u16, &str) = (401, "wrong_credentials");
const INVALID: (u16, &str) = (400, "invalid");
const DEAD: (u16, &str) = (401, "invalid_token");

const WRONG: Option<&str> = Some(r#"{"password":"not the password"}"#);
const WRONG_NEW: Option<&str> = Some(r#"{"password":"not it","new_password":"another horse"}"#);
const GUESS: Option<&str> = Some(r#"{"handle":"alice","password":"not the password"}"#);
const EMPTY: Option<&str> = Some("{}");
const REFRESH: Option<&str> = Some(r#"{"refresh_token":"x"}"#);
const READ: Option<&str> = Some(r#"{"read":1}"#);
const OPEN: Option<&str> = Some(r#"{"kind":"direct","with":"alice"}"#);
const TEXT: Option<&str> = Some(r#"{"text":"hello"}"#);

#[rustfmt::skip]
const TABLE: &[Row] = &[
    //  operation                             needs    body       foreign      blocked
    row("POST /v1/accounts",                  Nothing, EMPTY,     INVALID,     INVALID),
    row("POST /v1/sessions",                  Nothing, GUESS,     WRONG_PW,    WRONG_PW),
    row("POST /v1/sessions/refresh",          Nothing, REFRESH,   DEAD,        DEAD),
    row("DELETE /v1/sessions/current",        LogIn,   None,      DONE,        DONE),
    row("DELETE /v1/sessions",                LogIn,   None,      DONE,        DONE),
    row("GET /v1/me",                         Token,   None,      OK,          OK),
    row("PATCH /v1/me",                       LogIn,   EMPTY,     OK,          OK),
    row("DELETE /v1/me",                      LogIn,   WRONG,     WRONG_PW,    WRONG_PW),
    row("PUT /v1/me/password",                LogIn,   WRONG_NEW, WRONG_PW,    WRONG_PW),
    row("GET /v1/me/export",                  Token,   None,      OK,          OK),
    row("GET /v1/me/devices",                 LogIn,   None,      OK,          OK),
    row("DELETE /v1/me/devices/{id}",         LogIn,   None,      NO_DEVICE,   NO_DEVICE),
    row("GET /v1/users/{handle}",             Token,   None,      OK,          OK),
    row("GET /v1/friends",                    LogIn,   None,      OK,          OK),
    // Who is blocked does not learn it here: alice is not shown the request.
    row("PUT /v1/friends/{handle}",           LogIn,   None,      OK,          OK),
    row("DELETE /v1/friends/{handle}",        LogIn,   None,      DONE,        DONE),
    row("GET /v1/blocks",                     LogIn,   None,      OK,          OK),
    row("PUT /v1/blocks/{handle}",            LogIn,   None,      DONE,        DONE),
    row("DELETE /v1/blocks/{handle}",         LogIn,   None,      DONE,        DONE),
    row("POST /v1/channels",                  Token,   OPEN,      OK,          OK),
    row("GET /v1/channels",                   Token,   None,      OK,          OK),
    row("GET /v1/channels/{id}",              Token,   None,      NO_CHANNEL,  OK),
    row("POST /v1/channels/{id}/messages",    Token,   TEXT,      NO_CHANNEL,  BLOCKED),
    row("GET /v1/channels/{id}/messages",     Token,   None,      NO_CHANNEL,  OK),
    row("PUT /v1/channels/{id}/markers",      Token,   READ,      NO_CHANNEL,  DONE),
    row("POST /v1/channels/{id}/typing",      Token,   None,      NO_CHANNEL,  BLOCKED),
    row("GET /v1/sync",                       Token,   None,      OK,          OK),
    row("GET /v1/events",                     Token,   None,      OK,          OK),
    row("GET /v1/nodes",                      Token,   None,      OK,          OK),
];

/// A way to have no good token, with every form of it, and what it is answered.
struct Column {
    name: &'static str,
    tokens: Vec<String>,
    answer: &'static str,
}

/// What signs tokens.
struct Keys {
    own: Ed25519KeyPair,
    idp: Ed25519KeyPair,
    stranger: Ed25519KeyPair,
}

fn generate() -> Ed25519KeyPair {
    let random = ring::rand::SystemRandom::new();
    let document = Ed25519KeyPair::generate_pkcs8(&random).expect("random bytes");
    Ed25519KeyPair::from_pkcs8(document.as_ref()).expect("a key")
}

/// The public key in PEM (RFC 8410).
fn public_pem(key: &Ed25519KeyPair) -> String {
    let mut der = vec![0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    der.extend_from_slice(key.public_key().as_ref());
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
}

fn message(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

fn eddsa(key: &Ed25519KeyPair, header: &Value, claims: &Value) -> String {
    let message = message(header, claims);
    let signature = URL_SAFE_NO_PAD.encode(key.sign(message.as_bytes()).as_ref());
    format!("{message}.{signature}")
}

fn hs256(secret: &[u8], header: &Value, claims: &Value) -> String {
    let message = message(header, claims);
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag))
}

fn now_s() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().expect("a clock").as_secs()
}

fn claims(issuer: &str, subject: &str, more: &Value) -> Value {
    let now_s = now_s();
    let mut claims = json!({ "iss": issuer, "sub": subject, "iat": now_s, "exp": now_s + 3_600 });
    for (name, value) in more.as_object().expect("claims") {
        claims[name] = value.clone();
    }
    claims
}

/// Every column but those of good tokens. `own` are the claims of alice with the deployment.
fn columns(keys: &Keys, own: &Value, revoked: String) -> Vec<Column> {
    let (ed, hs, none) =
        (json!({ "alg": "EdDSA" }), json!({ "alg": "HS256" }), json!({ "alg": "none" }));
    let public = keys.own.public_key().as_ref();
    let idp = claims(IDP, "alice", &json!({ "aud": AUDIENCE }));
    let other_idp = claims(OTHER_IDP, "alice", &json!({}));
    let past = |claims: &Value| {
        let mut claims = claims.clone();
        (claims["iat"], claims["exp"]) = (json!(now_s() - 7_200), json!(now_s() - 3_600));
        claims
    };
    let unsigned = |header: &Value| format!("{}.", message(header, own));
    let no_kid = |kid: &str| json!({ "alg": "EdDSA", "kid": kid });
    let meant_for = |aud: Value| eddsa(&keys.idp, &ed, &claims(IDP, "alice", &aud));
    let own_for_others = {
        let mut claims = own.clone();
        claims["aud"] = json!(AUDIENCE);
        eddsa(&keys.own, &ed, &claims)
    };
    vec![
        Column {
            name: "no token",
            tokens: vec![String::new(), "a.b.c".to_owned(), "a".repeat(9_000)],
            answer: "invalid_token",
        },
        Column {
            name: "expired",
            tokens: vec![
                eddsa(&keys.own, &ed, &past(own)),
                eddsa(&keys.idp, &ed, &past(&idp)),
                hs256(SECRET.as_bytes(), &hs, &past(&other_idp)),
            ],
            answer: "expired_token",
        },
        Column { name: "revoked device", tokens: vec![revoked], answer: "revoked_token" },
        Column {
            name: "wrong audience",
            tokens: vec![
                meant_for(json!({})),
                meant_for(json!({ "aud": "shop" })),
                meant_for(json!({ "aud": ["shop", "bank"] })),
                meant_for(json!({ "aud": 1 })),
                own_for_others,
            ],
            answer: "invalid_token",
        },
        Column {
            name: "alg confusion",
            tokens: vec![
                unsigned(&none),
                unsigned(&ed),
                unsigned(&hs),
                // What is public is no secret, in whatever form.
                hs256(public, &hs, own),
                hs256(public_pem(&keys.own).as_bytes(), &hs, own),
                hs256(public_pem(&keys.idp).as_bytes(), &hs, &idp),
                eddsa(&keys.own, &json!({ "alg": "RS256" }), own),
                eddsa(&keys.own, &none, own),
            ],
            answer: "invalid_token",
        },
        Column {
            name: "key confusion",
            tokens: vec![
                // One issuer's key speaks for no other issuer.
                eddsa(&keys.idp, &ed, own),
                eddsa(&keys.own, &ed, &idp),
                hs256(SECRET.as_bytes(), &hs, own),
                hs256(SECRET.as_bytes(), &hs, &idp),
                eddsa(&keys.own, &ed, &other_idp),
                // Nor does a key that is brought along, or named, or nobody's.
                eddsa(&keys.stranger, &ed, own),
                eddsa(&keys.stranger, &no_kid("idp"), &idp),
                eddsa(&keys.idp, &no_kid("nobody's"), &idp),
                eddsa(
                    &keys.stranger,
                    &json!({ "alg": "EdDSA", "jwk": {
                        "kty": "OKP", "crv": "Ed25519",
                        "x": URL_SAFE_NO_PAD.encode(keys.stranger.public_key()),
                    } }),
                    own,
                ),
                eddsa(&keys.idp, &ed, &claims("https://nobody.example.com", "a", &json!({}))),
            ],
            answer: "invalid_token",
        },
    ]
}

/// A server that knows two issuers besides its own users.
fn start(idp: &Ed25519KeyPair) -> (Node, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("idp.pem"), public_pem(idp)).expect("a file");
    std::fs::write(path("secret"), SECRET).expect("a file");
    let config = format!(
        "[accounts]\npassword_memory_kib = 64\npassword_passes = 1\n\
         log_ins_per_ip_burst = 10000\nlog_ins_per_handle_burst = 10000\n\
         [[auth.issuers]]\nname = \"{IDP}\"\naudience = \"{AUDIENCE}\"\n\
         [[auth.issuers.keys]]\nid = \"idp\"\nalgorithm = \"EdDSA\"\nfile = \"{}\"\n\
         [[auth.issuers]]\nname = \"{OTHER_IDP}\"\n\
         [[auth.issuers.keys]]\nalgorithm = \"HS256\"\nfile = \"{}\"\n",
        path("idp.pem"),
        path("secret"),
    );
    (Node::start_with(NodeOptions { config: Some(config), ..NodeOptions::default() }), folder)
}

/// A log-in of a user, always of the same installation unless another is named.
fn log_in(node: &Node, handle: &str, installation: char) -> Value {
    let installation = installation.to_string().repeat(32);
    let body = json!({ "handle": handle, "password": PASSWORD, "installation": installation });
    let mut http = Http::connect(node.http());
    let mut answer = http.post("/v1/sessions", &body);
    if answer.status == 401 {
        answer = http.post("/v1/accounts", &body);
    }
    assert!(matches!(answer.status, 200 | 201), "{answer:?}");
    answer.json
}

fn token_of(session: &Value) -> String {
    session["access_token"].as_str().expect("a token").to_owned()
}

/// Everything that the operations of the table speak of is alice's.
struct Scene {
    node: Node,
    channel: String,
    alice: Value,
}

impl Scene {
    fn path(&self, row: &Row) -> (&'static str, String) {
        let (method, path) = row.operation.split_once(' ').expect("a method and a path");
        let id = match path.contains("/devices/") {
            true => "a".repeat(32),
            false => self.channel.clone(),
        };
        (method, path.replace("{id}", &id).replace("{handle}", "alice"))
    }

    /// Tries a cell: the status, the problem, and all that was said.
    fn cell(&self, row: &Row, token: &str) -> (u16, String, String) {
        let (method, path) = self.path(row);
        let headers = match token {
            "" => String::new(),
            token => format!("authorization: Bearer {token}\r\n"),
        };
        let mut http = Http::connect(self.node.http());
        if path == "/v1/events" {
            http.write(format!("GET {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n").as_bytes());
            let head = http.head();
            if head.starts_with("http/1.1 200") {
                return (200, String::new(), String::new());
            }
            http = Http::connect(self.node.http());
        }
        let answer = http.ask(method, &path, &headers, row.body);
        let said = format!("{} {}", answer.head, answer.json);
        let problem = if answer.status < 400 { "" } else { answer.problem() };
        (answer.status, problem.to_owned(), said)
    }
}

#[test]
fn each_cell_of_the_authorisation_matrix_holds() {
    let (idp, stranger) = (generate(), generate());
    let (node, _folder) = start(&idp);
    let pem = std::fs::read_to_string(node.data().join("token_key.pem")).expect("a key");
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = STANDARD.decode(base64).expect("base64");
    let own = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).expect("a key");
    let keys = Keys { own, idp, stranger };

    let (alice, bob) = (log_in(&node, "alice", 'a'), log_in(&node, "bob", 'b'));
    log_in(&node, "carol", 'c');
    let revoked = token_of(&log_in(&node, "alice", 'd'));
    let mut as_alice = Http::connect(node.http()).token(&token_of(&alice));
    let removed = as_alice.ask("DELETE", &format!("/v1/me/devices/{}", "d".repeat(32)), "", None);
    assert_eq!(removed.status, 204, "{removed:?}");
    let opened = as_alice.post("/v1/channels", &json!({ "kind": "direct", "with": "bob" }));
    let channel = opened.json["id"].as_str().expect("an id").to_owned();
    let messages = format!("/v1/channels/{channel}/messages");
    for http in [&mut as_alice, &mut Http::connect(node.http()).token(&token_of(&bob))] {
        assert_eq!(http.post(&messages, &json!({ "text": "hello" })).status, 201);
    }
    let subject = alice["user"]["id"].as_str().expect("an id");
    let columns = columns(&keys, &claims("chatring", subject, &json!({})), revoked);
    let account = log_in(&node, "alice", 'a');
    let scene = Scene { node, channel, alice: account };

    every_operation_has_a_row(&scene);
    tokens_that_are_no_good(&scene, &columns);
    somebody_without_an_account(&scene, &keys);
    somebody_else(&scene);
    somebody_blocked(&scene, &messages);

    // Nothing of alice's has changed.
    let mut as_alice = Http::connect(scene.node.http()).token(&token_of(&scene.alice));
    assert_eq!(as_alice.get("/v1/me").json["user"], scene.alice["user"]);
    let history = as_alice.get(&messages).json;
    assert_eq!(history["messages"].as_array().map(Vec::len), Some(2), "{history}");
}

fn every_operation_has_a_row(scene: &Scene) {
    let document = Http::connect(scene.node.http()).get("/v1/openapi.json").json;
    let mut operations = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let signed_in = operation["security"].as_array().is_some_and(|all| !all.is_empty());
            operations.push((format!("{} {path}", method.to_uppercase()), signed_in));
        }
    }
    let row = |row: &Row| (row.operation.to_owned(), row.needs != Nothing);
    let mut rows: Vec<_> = TABLE.iter().map(row).collect();
    operations.sort();
    rows.sort();
    assert_eq!(operations, rows, "the description (left) and the table");
}

fn tokens_that_are_no_good(scene: &Scene, columns: &[Column]) {
    for row in TABLE {
        let without = scene.cell(row, "");
        for Column { name, tokens, answer } in columns {
            for token in tokens {
                let (status, problem, said) = scene.cell(row, token);
                let cell = format!("{} × {name} ({token}): {said}", row.operation);
                if row.needs == Nothing {
                    assert_eq!((status, &problem), (without.0, &without.1), "{cell}");
                    continue;
                }
                assert_eq!((status, &*problem), (401, *answer), "{cell}");
                assert!(said.contains("www-authenticate: bearer"), "{cell}");
            }
        }
    }
}

/// Users of other issuers are let in where a token is asked for, and nowhere else.
fn somebody_without_an_account(scene: &Scene, keys: &Keys) {
    let (ed, hs) = (json!({ "alg": "EdDSA", "kid": "idp" }), json!({ "alg": "HS256" }));
    let tokens = [
        eddsa(&keys.idp, &ed, &claims(IDP, "alice", &json!({ "aud": ["shop", AUDIENCE] }))),
        hs256(SECRET.as_bytes(), &hs, &claims(OTHER_IDP, "alice", &json!({}))),
        scene.node.token("alice"),
    ];
    for row in TABLE.iter().filter(|row| row.needs != Nothing) {
        for token in &tokens {
            let (status, problem, said) = scene.cell(row, token);
            let cell = format!("{} × no account: {said}", row.operation);
            match row.needs {
                LogIn => assert_eq!((status, &*problem), (401, "invalid_token"), "{cell}"),
                _ => assert_eq!((status, &*problem), row.foreign, "{cell}"),
            }
            is_not_told(scene, &said, &cell);
        }
    }
}

/// Each cell has a log-in of its own, for some of them end it.
fn somebody_else(scene: &Scene) {
    for row in TABLE {
        let token = token_of(&log_in(&scene.node, "carol", 'c'));
        let (status, problem, said) = scene.cell(row, &token);
        let cell = format!("{} × foreign user: {said}", row.operation);
        assert_eq!((status, &*problem), row.foreign, "{cell}");
        is_not_told(scene, &said, &cell);
    }
}

/// A profile is everybody's; channels and devices are not.
fn is_not_told(scene: &Scene, said: &str, cell: &str) {
    for secret in [&scene.channel, &"a".repeat(32)] {
        assert!(!said.contains(secret), "{cell} tells {secret}");
    }
}

fn somebody_blocked(scene: &Scene, messages: &str) {
    let mut as_alice = Http::connect(scene.node.http()).token(&token_of(&scene.alice));
    for row in TABLE {
        // Some cells block alice, or lift that; hers is to hold whatever they do.
        assert_eq!(as_alice.ask("PUT", "/v1/blocks/bob", "", None).status, 204);
        let token = token_of(&log_in(&scene.node, "bob", 'b'));
        let (status, problem, said) = scene.cell(row, &token);
        let cell = format!("{} × blocked: {said}", row.operation);
        assert_eq!((status, &*problem), row.blocked, "{cell}");
    }
    let friends = as_alice.get("/v1/friends").json;
    assert!(!friends.to_string().contains("bob"), "{friends}");
    let history = as_alice.get(messages).json;
    assert_eq!(history["messages"].as_array().map(Vec::len), Some(2), "{history}");
}
