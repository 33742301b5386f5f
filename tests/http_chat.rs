//! Goal: over HTTP alone people chat as over the WebSocket: exactly once, in order, from any
//! cursor. Method: the real binary; polls, long polls and server-sent events against what was sent.

use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use chatring_wire::limits::BODY_BYTES_MAX;
use chatring_wire::{ServerFrame, Subprotocol};
use serde_json::{Value, json};

use crate::common::raw::{Raw, hello};
use crate::common::{Http, Node, NodeOptions};

/// A user of the deployment's own tokens, at the address of the WebSocket.
fn user(node: &Node, name: &str) -> Http {
    Http::connect(node.ws()).token(&node.token(name))
}

/// Opens the channel with somebody who has been here, and gives its path.
fn open(http: &mut Http, with: &str) -> String {
    let channel = http.post("/v1/channels", &json!({ "kind": "direct", "with": with }));
    assert_eq!(channel.status, 200, "{channel:?}");
    format!("/v1/channels/{}", channel.json["id"].as_str().expect("an id"))
}

fn send(http: &mut Http, channel: &str, text: &str) -> u64 {
    let sent = http.post(&format!("{channel}/messages"), &json!({ "text": text }));
    assert_eq!(sent.status, 201, "{sent:?}");
    sent.json["seq"].as_u64().expect("a seq")
}

/// The texts among events, with their seq.
fn texts(events: &Value) -> Vec<(u64, String)> {
    let events = events["events"].as_array().expect("events").iter();
    let texts = events.filter(|event| event["type"] == "message").map(|event| {
        let seq = event["seq"].as_u64().expect("a seq");
        (seq, event["text"].as_str().expect("a text").to_owned())
    });
    texts.collect()
}

#[test]
fn a_send_that_is_repeated_is_stored_once_and_answered_the_same() {
    let node = Node::start();
    let (mut alice, mut bob) = (user(&node, "alice"), user(&node, "bob"));
    let unknown = alice.post("/v1/channels", &json!({ "kind": "direct", "with": "bob" }));
    assert_eq!((unknown.status, unknown.problem()), (404, "unknown_user"));
    assert_eq!(bob.get("/v1/sync").status, 200);
    let channel = open(&mut alice, "bob");
    assert_eq!(open(&mut bob, "alice"), channel);

    let path = format!("{channel}/messages");
    let key = "idempotency-key: order-1\r\n";
    let first = alice.ask("POST", &path, key, Some(r#"{"text":"one"}"#));
    assert_eq!((first.status, first.json["seq"].as_u64()), (201, Some(1)), "{first:?}");
    assert_eq!(first.json["durability"], "fsync");
    for _ in 0..3 {
        let again = alice.ask("POST", &path, key, Some(r#"{"text":"one"}"#));
        assert_eq!((again.status, &again.json), (200, &first.json));
    }
    let other = alice.ask("POST", &path, key, Some(r#"{"text":"two"}"#));
    assert_eq!((other.status, other.problem()), (422, "cmid_reused"));
    let cmid = "0123456789abcdef0123456789abcdef";
    let data = json!({ "body_base64": URL_SAFE_NO_PAD.encode([0, 255]), "cmid": cmid });
    let sent = alice.post(&path, &data);
    assert_eq!((sent.status, sent.json["cmid"].as_str()), (201, Some(cmid)), "{sent:?}");
    assert_eq!(alice.post(&path, &data).status, 200);

    let large = json!({ "text": "a".repeat(BODY_BYTES_MAX + 1) });
    for (body, status, name) in [
        (large, 413, "body_too_large"),
        (json!({}), 400, "invalid"),
        (json!({ "text": "a", "body_base64": "AA" }), 400, "invalid"),
        (json!({ "text": "a", "kind": 1 }), 400, "invalid"),
        (json!({ "body_base64": "AA", "kind": 0 }), 400, "invalid"),
        (json!({ "body_base64": "?" }), 400, "invalid"),
        (json!({ "text": "a", "cmid": "12" }), 400, "invalid"),
        (json!({ "text": "a", "base": 1_u64 << 53 }), 400, "invalid"),
    ] {
        let answer = alice.post(&path, &body);
        assert_eq!((answer.status, answer.problem()), (status, name), "{answer:?}");
    }
    let mut carol = user(&node, "carol");
    let foreign = carol.post(&path, &json!({ "text": "let me in" }));
    assert_eq!((foreign.status, foreign.problem()), (404, "unknown_channel"));
    assert_eq!(carol.get(&path).problem(), "unknown_channel");
    assert_eq!(carol.get(&channel).problem(), "unknown_channel");
    let history = bob.get(&path).json;
    assert_eq!(history["messages"].as_array().map(Vec::len), Some(2), "{history}");
    assert_eq!(history["messages"][1]["body_base64"], "AP8");
}

#[test]
fn history_is_read_either_way_and_markers_count_what_is_unread() {
    let node = Node::start();
    let (mut alice, mut bob) = (user(&node, "alice"), user(&node, "bob"));
    bob.get("/v1/sync");
    let channel = open(&mut alice, "bob");
    for n in 1..=5 {
        assert_eq!(send(&mut alice, &channel, &format!("text {n}")), n);
    }
    let seqs = |http: &mut Http, query: &str| -> Vec<u64> {
        let page = http.get(&format!("{channel}/messages{query}"));
        let messages = page.json["messages"].as_array().cloned().unwrap_or_default();
        messages.iter().filter_map(|message| message["seq"].as_u64()).collect()
    };
    assert_eq!(seqs(&mut bob, ""), [1, 2, 3, 4, 5]);
    assert_eq!(seqs(&mut bob, "?limit=2"), [4, 5]);
    assert_eq!(seqs(&mut bob, "?limit=2&before=4"), [2, 3]);
    assert_eq!(seqs(&mut bob, "?limit=2&after=1"), [2, 3]);
    assert_eq!(bob.get(&format!("{channel}/messages?limit=0")).problem(), "invalid");

    let listed = bob.get("/v1/channels").json;
    let first = &listed["channels"][0];
    assert_eq!((first["unread"].as_u64(), first["head"].as_u64()), (Some(5), Some(5)), "{listed}");
    assert_eq!(first["peer"]["user"]["subject"], "alice");
    assert_eq!(first["last"]["text"], "text 5");
    let mark = bob.ask("PUT", &format!("{channel}/markers"), "", Some(r#"{"read":3}"#));
    assert_eq!(mark.status, 204, "{mark:?}");
    assert_eq!(bob.get(&channel).json["unread"], 2);
    assert_eq!(bob.ask("POST", &format!("{channel}/typing"), "", None).status, 204);
}

#[test]
fn a_long_poll_wakes_with_its_message_and_polls_lose_and_repeat_nothing() {
    let node = Node::start();
    let (mut alice, mut bob) = (user(&node, "alice"), user(&node, "bob"));
    let mut cursor = bob.get("/v1/sync").json["cursor"].as_str().expect("a cursor").to_owned();
    let channel = open(&mut alice, "bob");
    let waiting = std::thread::spawn(move || {
        let mut seen = Vec::new();
        while seen.len() < 20 {
            let news = bob.get(&format!("/v1/sync?wait_ms=30000&limit=3&cursor={cursor}"));
            assert_eq!(news.status, 200, "{news:?}");
            cursor = news.json["cursor"].as_str().expect("a cursor").to_owned();
            seen.extend(texts(&news.json));
        }
        (bob, cursor, seen)
    });
    let at = Instant::now();
    for n in 1..=20 {
        send(&mut alice, &channel, &format!("text {n}"));
        if n % 5 == 0 {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    let (mut bob, cursor, seen) = waiting.join().expect("no panic");
    assert!(at.elapsed() < Duration::from_secs(28), "{:?}", at.elapsed());
    let expected: Vec<_> = (1..=20).map(|n| (n, format!("text {n}"))).collect();
    assert_eq!(seen, expected);

    // Nothing comes: the time is over.
    let at = Instant::now();
    let nothing = bob.get(&format!("/v1/sync?wait_ms=300&cursor={cursor}"));
    assert_eq!(texts(&nothing.json), []);
    assert!(at.elapsed() >= Duration::from_millis(300));
    for bad in ["cursor=%21", "wait_ms=60001", "limit=257", "wait=1"] {
        assert_eq!(bob.get(&format!("/v1/sync?{bad}")).problem(), "invalid", "{bad}");
    }

    // The cursor is as good for a WebSocket.
    send(&mut alice, &channel, "text 21");
    let mut hello = hello(&node.token("bob"), "bob's phone");
    hello.cursor = Bytes::from(URL_SAFE_NO_PAD.decode(&cursor).expect("base64url"));
    let mut raw = Raw::upgraded(&node, Subprotocol::Binary);
    raw.say(&[chatring_wire::ClientFrame::Hello(hello)]);
    let page = raw.until(|frame| matches!(frame, ServerFrame::Page(_)));
    let ServerFrame::Page(page) = page else { unreachable!() };
    // What it may give again, a client drops by seq.
    assert_eq!(page.rows.last().map(|row| row.seq.0), Some(21));
}

#[test]
fn server_sent_events_go_on_where_the_last_one_ended() {
    let node = Node::start();
    let mut alice = user(&node, "alice");
    let mut bob = user(&node, "bob");
    let cursor = bob.get("/v1/sync").json["cursor"].as_str().expect("a cursor").to_owned();
    let channel = open(&mut alice, "bob");
    let (mut id, mut seen) = (cursor, Vec::new());
    for round in 0..3 {
        send(&mut alice, &channel, &format!("before {round}"));
        let mut events = Events::open(&node, "bob", &id);
        while seen.len() < 3 * round + 1 {
            events.next(&mut id, &mut seen);
        }
        for live in 2..=3 {
            send(&mut alice, &channel, &format!("live {round}"));
            while seen.len() < 3 * round + live {
                events.next(&mut id, &mut seen);
            }
        }
    }
    let seqs: Vec<u64> = seen.iter().map(|(seq, _)| *seq).collect();
    assert_eq!(seqs, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(seen[8].1, "live 2");
}

/// A stream of server-sent events.
struct Events(Http);

impl Events {
    fn open(node: &Node, user: &str, last: &str) -> Events {
        let mut http = Http::connect(node.http());
        let token = node.token(user);
        let request = format!(
            "GET /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\
             last-event-id: {last}\r\n\r\n"
        );
        http.write(request.as_bytes());
        let head = http.head();
        assert!(head.starts_with("http/1.1 200") && head.contains("text/event-stream"), "{head}");
        Events(http)
    }

    /// Takes the next event in; comments and the sizes of chunks are skipped.
    fn next(&mut self, id: &mut String, seen: &mut Vec<(u64, String)>) {
        let mut new_id = None;
        loop {
            let line = self.0.line();
            assert!(!line.is_empty(), "the stream ended");
            if let Some(value) = line.strip_prefix("id: ") {
                new_id = Some(value.trim_end().to_owned());
            } else if let Some(data) = line.strip_prefix("data: ") {
                seen.extend(texts(&serde_json::from_str(data).expect("JSON")));
                *id = new_id.expect("an id before the data");
                return;
            }
        }
    }
}

#[test]
fn the_lines_of_the_readme_run_as_they_stand() {
    if !crate::common::skip::succeeds(&["curl", "--version"]) {
        return crate::common::skip::skipped("curl is not installed");
    }
    let node = Node::start_with(NodeOptions::default());
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let readme = std::fs::read_to_string(readme).expect("the README");
    let lines: Vec<&str> = readme.lines().filter(|line| line.contains("curl -sS")).collect();
    assert_eq!(lines.len(), 5, "{lines:#?}");
    let script = format!("set -e\napi={}/v1\n{}\n", node.http(), lines.join("\n"));
    let output = Command::new("sh").args(["-c", &script]).output().expect("a shell");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{text}");
    assert!(text.contains(r#""seq":1"#) && text.contains("Hello, Bob"), "{text}");
}
