//! Goal: floods and slow peers over HTTP cost bounded memory and time, and disturb nobody who
//! chats. Method: raw TCP against the real binary, while two people chat over the WebSocket.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::{Bystanders, Http, Node, figure};

#[test]
fn slow_bodies_are_given_up_and_large_heads_refused() {
    let node = Node::start();
    let bystanders = Bystanders::start(&node);
    let token = node.token("alice");
    let head = format!(
        "POST /v1/channels HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: 1000\r\n\r\n{{"
    );
    let at = Instant::now();
    let mut slow: Vec<Http> = (0..50).map(|_| Http::connect(node.http())).collect();
    slow.iter_mut().for_each(|http| http.write(head.as_bytes()));
    for http in [node.http(), node.ws()] {
        let mut large = Http::connect(http);
        large.write(b"GET /v1/me HTTP/1.1\r\nhost: x\r\nx: ");
        large.write(&vec![b'a'; 1 << 20]);
        let line = large.try_line();
        assert!(line.is_empty() || line.contains(" 431 "), "{line}");
    }
    for http in &mut slow {
        let answer = http.answer();
        assert_eq!((answer.status, answer.problem()), (408, "timeout"), "{answer:?}");
    }
    assert!(at.elapsed() < Duration::from_secs(30), "{:?}", at.elapsed());
    assert_eq!(figure(&node, "chatring_http_bodies_bytes"), 0.0);
    bystanders.check();
}

#[test]
fn bad_tokens_and_wrong_passwords_by_the_thousand_take_no_memory() {
    let node = Node::start();
    let bystanders = Bystanders::start(&node);
    let mut http = Http::connect(node.http());
    http.get("/v1/me");
    let mut known = Http::connect(node.http()).token(&node.token("alice"));
    assert_eq!(known.get("/v1/me").status, 200);
    let before = figure(&node, "chatring_process_resident_bytes");
    let mut statuses = BTreeMap::new();
    for n in 0..5_000 {
        let headers = format!("authorization: Bearer a.b{n}.c\r\n");
        let answer = http.ask("GET", "/v1/me", &headers, None);
        assert_eq!(answer.head.contains("retry-after: "), answer.status == 429, "{answer:?}");
        *statuses.entry(answer.status).or_insert(0) += 1;
    }
    assert!(statuses[&401] >= 1_000, "{statuses:?}");
    assert_eq!(statuses[&401] + statuses[&429], 5_000, "{statuses:?}");
    assert_eq!(f64::from(statuses[&429]), figure(&node, "chatring_http_tokens_limited_total"));
    assert_eq!(known.get("/v1/me").status, 200, "whoever was there before");
    let mut statuses = BTreeMap::new();
    for n in 0..200 {
        let guess = json!({ "handle": format!("nobody{n}"), "password": "guess" });
        *statuses.entry(http.post("/v1/sessions", &guess).status).or_insert(0) += 1;
    }
    assert!(statuses.keys().all(|status| [401, 429].contains(status)), "{statuses:?}");
    let after = figure(&node, "chatring_process_resident_bytes");
    // Argon2's own 19 MiB for each of its threads, and what the bystanders need.
    assert!(after - before < 96.0 * 1024.0 * 1024.0, "{before} {after}");
    bystanders.check();
}
