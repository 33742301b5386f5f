//! Goal: whoever has nothing but HTTP signs up, logs in, is let in with what that gave, and not any
//! more once it has ended. Method: the real binary with accounts in SQLite.

use serde_json::{Value, json};

use crate::common::{Http, Node, NodeOptions, figure};

const PASSWORD: &str = "correct horse battery";

/// A server on which hashing a password takes little.
fn node() -> Node {
    let config = "[accounts]\npassword_memory_kib = 64\npassword_passes = 1\n".to_owned();
    Node::start_with(NodeOptions { config: Some(config), ..NodeOptions::default() })
}

fn sign_up(http: &mut Http, handle: &str) -> Value {
    let answer = http.post("/v1/accounts", &json!({ "handle": handle, "password": PASSWORD }));
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json
}

fn log_in(http: &mut Http, handle: &str, installation: &str) -> Value {
    let body =
        json!({ "handle": handle, "password": PASSWORD, "installation": installation.repeat(32) });
    let answer = http.post("/v1/sessions", &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json
}

fn with_token(node: &Node, session: &Value) -> Http {
    Http::connect(node.http()).token(session["access_token"].as_str().expect("a token"))
}

#[test]
fn a_log_in_gives_what_scripts_rely_on_and_ends_when_it_is_told_to() {
    let mut node = node();
    let mut http = Http::connect(node.http());
    let alice = sign_up(&mut http, "Alice");
    assert_eq!(alice["user"]["handle"], "alice");
    let body = json!({ "handle": "ALICE", "password": PASSWORD });
    let taken = http.post("/v1/accounts", &body);
    assert_eq!((taken.status, taken.problem()), (409, "handle_taken"));

    let (first, second) = (log_in(&mut http, "alice", "a"), log_in(&mut http, "alice", "b"));
    assert_eq!(first["user"], alice["user"]);
    assert_eq!(first["node"]["ws"], node.ws());
    let resume = first["node"]["resume"].as_str().expect("the history");
    assert!(resume.len() == 16 && resume != "0000000000000000", "{resume}");
    assert!(first["expires_in"].as_u64().is_some_and(|s| s >= 60), "{first}");
    let mut one = with_token(&node, &first);
    assert_eq!(one.get("/v1/me").json["user"], alice["user"]);
    let devices = one.get("/v1/me/devices").json;
    assert_eq!(devices["devices"].as_array().map(Vec::len), Some(3), "{devices}");
    assert_eq!(devices["devices"][0]["id"], second["device"], "{devices}");

    // A restart of the server forgets nobody.
    node.restart();
    one = with_token(&node, &first);
    let mut two = with_token(&node, &second);
    http = Http::connect(node.http());
    let change = one.ask("PATCH", "/v1/me", "", Some(r#"{"name":"Alice A."}"#));
    assert_eq!((change.status, change.json["name"].as_str()), (200, Some("Alice A.")));

    let refresh = json!({ "refresh_token": first["refresh_token"] });
    let renewed = http.post("/v1/sessions/refresh", &refresh);
    assert_eq!(renewed.status, 200, "{renewed:?}");
    assert_eq!(renewed.json["node"], first["node"], "cursors of before are good");
    let again = http.post("/v1/sessions/refresh", &refresh);
    assert_eq!((again.status, again.problem()), (401, "invalid_token"), "its family ends");
    assert_eq!(one.get("/v1/me").problem(), "revoked_token");

    assert_eq!(two.ask("DELETE", "/v1/sessions/current", "", None).status, 204);
    assert_eq!(two.get("/v1/me").problem(), "revoked_token");

    let (first, second) = (log_in(&mut http, "alice", "c"), log_in(&mut http, "alice", "d"));
    (one, two) = (with_token(&node, &first), with_token(&node, &second));
    let path = format!("/v1/me/devices/{}", "d".repeat(32));
    assert_eq!(one.ask("DELETE", &path, "", None).status, 204);
    assert_eq!(two.get("/v1/me").problem(), "revoked_token");
    assert_eq!(one.ask("DELETE", "/v1/me/devices/77", "", None).problem(), "unknown_device");
    assert_eq!(one.ask("DELETE", "/v1/me/devices/x", "", None).problem(), "invalid");
    assert_eq!(one.ask("DELETE", "/v1/sessions", "", None).status, 204);
    assert_eq!(one.get("/v1/me").problem(), "revoked_token");
}

#[test]
fn what_is_wrong_with_a_sign_up_or_a_log_in_is_told_and_nothing_more() {
    let node = node();
    let mut http = Http::connect(node.http());
    sign_up(&mut http, "alice");
    let cases = [
        (json!({ "handle": "bob" }), "invalid", None),
        (json!({ "handle": "bob", "password": "short" }), "invalid", Some("password")),
        (json!({ "handle": "a b", "password": PASSWORD }), "invalid", Some("handle")),
        (json!({ "handle": "bob", "password": PASSWORD, "mail": 1 }), "invalid", Some("mail")),
        (
            json!({ "handle": "bob", "password": PASSWORD, "installation": "12" }),
            "invalid",
            Some("installation"),
        ),
    ];
    for (body, name, field) in cases {
        let answer = http.post("/v1/accounts", &body);
        assert_eq!((answer.status, answer.problem()), (400, name), "{body} {answer:?}");
        assert_eq!(answer.json["field"].as_str(), field, "{body} {answer:?}");
    }
    let wrong = |http: &mut Http, handle: &str| {
        let mut answer = http.post("/v1/sessions", &json!({ "handle": handle, "password": "x" }));
        assert_eq!((answer.status, answer.problem()), (401, "wrong_credentials"));
        answer.json.take()
    };
    assert_eq!(wrong(&mut http, "alice"), wrong(&mut http, "nobody.is.this"));
    let dead = http.post("/v1/sessions/refresh", &json!({ "refresh_token": "x" }));
    assert_eq!((dead.status, dead.problem()), (401, "invalid_token"));
    // A token without a log-in belongs to nobody who has an account.
    let mut minted = Http::connect(node.http()).token(&node.token("alice"));
    assert_eq!(minted.get("/v1/me").json["user"], Value::Null);
    assert_eq!(minted.get("/v1/friends").problem(), "invalid_token");
}

#[test]
fn guessing_is_held_up_and_told_when_to_come_back() {
    let node = node();
    let mut http = Http::connect(node.http());
    let mut limited = None;
    for _ in 0..40 {
        let guess = json!({ "handle": "alice", "password": "guess" });
        let answer = http.post("/v1/sessions", &guess);
        if answer.status == 429 {
            limited = Some(answer);
            break;
        }
    }
    let limited = limited.expect("guesses without end");
    assert_eq!(limited.problem(), "busy");
    assert!(limited.head.contains("retry-after: "), "{limited:?}");
}

#[test]
fn friends_and_blocks_go_both_ways() {
    let node = node();
    let mut http = Http::connect(node.http());
    sign_up(&mut http, "alice");
    sign_up(&mut http, "bob");
    let mut alice = with_token(&node, &log_in(&mut http, "alice", "a"));
    let mut bob = with_token(&node, &log_in(&mut http, "bob", "b"));
    let put = |http: &mut Http, path: &str| http.ask("PUT", path, "", None);

    assert_eq!(put(&mut alice, "/v1/friends/bob").json["standing"], "requested");
    assert_eq!(put(&mut bob, "/v1/friends/alice").json["standing"], "friends");
    let friends = alice.get("/v1/friends?limit=1").json;
    assert_eq!(friends["friends"][0]["user"]["handle"], "bob", "{friends}");
    assert_eq!(friends["next"], Value::Null);
    assert_eq!(put(&mut alice, "/v1/blocks/bob").status, 204);
    assert_eq!(alice.get("/v1/friends").json["friends"], json!([]));
    assert_eq!(alice.get("/v1/blocks").json["users"][0]["handle"], "bob");
    assert_eq!(alice.ask("DELETE", "/v1/blocks/bob", "", None).status, 204);
    let blocked = put(&mut alice, "/v1/friends/nobody.is.this");
    assert_eq!((blocked.status, blocked.problem()), (404, "unknown_user"));
    assert_eq!(alice.get("/v1/friends?limit=0").problem(), "invalid");
    assert_eq!(alice.get("/v1/users/BOB").json["handle"], "bob");
}

#[test]
fn a_new_password_ends_the_log_ins_of_other_devices_and_the_old_one() {
    let node = node();
    let mut http = Http::connect(node.http());
    sign_up(&mut http, "alice");
    let (first, second) = (log_in(&mut http, "alice", "a"), log_in(&mut http, "alice", "b"));
    let (mut one, mut two) = (with_token(&node, &first), with_token(&node, &second));
    let change = |http: &mut Http, old: &str, new: &str| {
        let body = json!({ "password": old, "new_password": new }).to_string();
        http.ask("PUT", "/v1/me/password", "", Some(&body))
    };
    let wrong = change(&mut one, "not the password", "another long one");
    assert_eq!((wrong.status, wrong.problem()), (401, "wrong_credentials"));
    let short = change(&mut one, PASSWORD, "short");
    assert_eq!((short.status, short.json["field"].as_str()), (400, Some("new_password")));
    assert_eq!(two.get("/v1/me").status, 200, "nothing has been changed");

    assert_eq!(change(&mut one, PASSWORD, "another long one").status, 204);
    assert_eq!(one.get("/v1/me").status, 200);
    assert_eq!(two.get("/v1/me").problem(), "revoked_token");
    let refresh = json!({ "refresh_token": second["refresh_token"] });
    assert_eq!(http.post("/v1/sessions/refresh", &refresh).problem(), "invalid_token");
    let refresh = json!({ "refresh_token": first["refresh_token"] });
    assert_eq!(http.post("/v1/sessions/refresh", &refresh).status, 200);
    let mut with = |password: &str| {
        http.post("/v1/sessions", &json!({ "handle": "alice", "password": password })).status
    };
    assert_eq!((with(PASSWORD), with("another long one")), (401, 200));
}

#[test]
fn a_deleted_account_is_gone_for_everybody_also_after_a_crash() {
    let mut node = node();
    let mut http = Http::connect(node.http());
    sign_up(&mut http, "alice");
    sign_up(&mut http, "bob");
    let session = log_in(&mut http, "alice", "a");
    let mut alice = with_token(&node, &session);
    let bob = log_in(&mut http, "bob", "b");
    let delete = |http: &mut Http, password: &str| {
        http.ask("DELETE", "/v1/me", "", Some(&json!({ "password": password }).to_string()))
    };
    assert_eq!(delete(&mut alice, "not the password").problem(), "wrong_credentials");
    assert_eq!(alice.get("/v1/me").json["user"]["handle"], "alice");
    assert_eq!(delete(&mut alice, PASSWORD).status, 204);
    // The rows may be gone or not: a restart knows.
    node.restart();
    let mut alice = with_token(&node, &session);
    let mut bob = with_token(&node, &bob);
    let mut http = Http::connect(node.http());
    assert_eq!(alice.get("/v1/me").problem(), "revoked_token");
    assert_eq!(bob.get("/v1/users/alice").problem(), "unknown_user");
    let again = json!({ "handle": "alice", "password": PASSWORD });
    assert_eq!(http.post("/v1/sessions", &again).problem(), "wrong_credentials");
    assert_eq!(http.post("/v1/accounts", &again).problem(), "handle_taken");
}

#[test]
fn an_export_has_the_account_and_every_message_once() {
    let node = node();
    let mut http = Http::connect(node.http());
    sign_up(&mut http, "alice");
    let alice = log_in(&mut http, "alice", "a");
    let mut alice = with_token(&node, &alice);
    let mut channels = Vec::new();
    // More channels than a page lists, and one with more messages and bytes than a page has.
    for n in 0..53 {
        let handle = format!("friend{n}");
        let with = json!({ "kind": "direct", "with_user": { "issuer": "", "subject": handle } });
        Http::connect(node.http()).token(&node.token(&handle)).get("/v1/channels");
        let id = alice.post("/v1/channels", &with).json["id"].as_str().expect("an id").to_owned();
        let sends = if n == 7 { 300 } else { n % 3 };
        for k in 0..sends {
            let text = format!("{n} {k} {}", "x".repeat(if n == 7 { 700 } else { 0 }));
            let sent = alice.post(&format!("/v1/channels/{id}/messages"), &json!({ "text": text }));
            assert_eq!(sent.status, 201, "{sent:?}");
        }
        if sends > 0 {
            channels.push((id, sends));
        }
    }
    let export = alice.get("/v1/me/export");
    assert_eq!(export.status, 200, "{}", export.head);
    let export = export.json;
    assert_eq!(export["account"]["handle"], "alice", "{export}");
    assert_eq!(export["subject"], export["account"]["user"]);
    assert!(!export.to_string().contains("argon2"));
    let found = export["channels"].as_array().expect("channels");
    let mut told: Vec<(String, u64)> = Vec::new();
    for channel in found {
        let messages = channel["messages"].as_array().expect("messages");
        let seqs: Vec<u64> = messages.iter().map(|one| one["seq"].as_u64().expect("a")).collect();
        let head = channel["head"].as_u64().expect("a number");
        assert_eq!(seqs, (1..=head).collect::<Vec<_>>(), "{}", channel["id"]);
        told.push((channel["id"].as_str().expect("an id").to_owned(), head));
    }
    channels.sort();
    assert_eq!(told, channels, "by id, each one once");

    // Whoever has no account here exports what was said, and nobody else's.
    let mut friend = Http::connect(node.http()).token(&node.token("friend7"));
    let export = friend.get("/v1/me/export").json;
    assert_eq!(export["account"], Value::Null);
    assert_eq!(export["channels"].as_array().map(Vec::len), Some(1));
    assert_eq!(export["channels"][0]["messages"].as_array().map(Vec::len), Some(300));
    assert_eq!(figure(&node, "chatring_http_exports"), 0.0);
}

/// The status of sign-ups that a proxy passes on for these addresses, or says that it does.
fn sign_ups_for(node: &Node, chains: &[&str]) -> Vec<u16> {
    let mut http = Http::connect(node.http());
    let sign_up = |(n, chain): (usize, &&str)| {
        let body = json!({ "handle": format!("user{n}"), "password": PASSWORD }).to_string();
        let headers = format!("x-forwarded-for: {chain}\r\n");
        http.ask("POST", "/v1/accounts", &headers, Some(&body)).status
    };
    chains.iter().enumerate().map(sign_up).collect()
}

#[test]
fn only_a_trusted_proxy_says_from_whom_a_request_comes() {
    let limits = "password_memory_kib = 64\npassword_passes = 1\n\
                  sign_ups_per_ip_burst = 2\nsign_ups_per_ip_hour = 1\n";
    let node = |server: &str| {
        let config = Some(format!("[server]\n{server}\n[accounts]\n{limits}"));
        Node::start_with(NodeOptions { config, ..NodeOptions::default() })
    };
    let chains = ["198.51.100.1", "198.51.100.2", "198.51.100.3"];
    for others in ["", "trusted_proxies = ['10.0.0.0/8']"] {
        assert_eq!(sign_ups_for(&node(others), &chains), [201, 201, 429], "{others}: ignored");
    }
    let trusting = node("trusted_proxies = ['10.0.0.0/8', '127.0.0.1']");
    let chains = [
        "198.51.100.1",
        "198.51.100.1, 10.0.0.7",
        // What the client itself has written makes no difference.
        "198.51.100.9, 198.51.100.1",
        "198.51.100.2",
    ];
    assert_eq!(sign_ups_for(&trusting, &chains), [201, 201, 429, 201]);
}
