//! Goal: floods and slow peers over HTTP cost bounded memory and threads, are answered as it is
//! documented, and disturb nobody who chats. Method: `flood` of the load generator and raw TCP
//! against the real binary, while two people chat over the WebSocket.

use std::path::PathBuf;
use std::time::Duration;

use chatring_loadgen::scenario::flood::{self, Flooded, Kind, Outcome};
use serde_json::{Value, json};

use crate::common::{Bystanders, Full, Http, Node, NodeOptions, THREADS_MORE_MAX, figure};

/// What a flood may add to the server's memory. Each test could send several times as much.
const GROWTH_KIB_MAX: u64 = 96 * 1024;
const UNAUTHORIZED: Outcome = Outcome::Status(401);
const BUSY: Outcome = Outcome::Status(429);
const CREATED: Outcome = Outcome::Status(201);
const TIMEOUT: Outcome = Outcome::Status(408);
const PASSWORD: &str = "correct horse battery";

/// A flood of so many requests over so many connections.
#[derive(Clone, Debug)]
struct Flood {
    ready: PathBuf,
    kind: Kind,
    count: u64,
    connections: u32,
    /// How many it says to come from; a server trusts the proxy that it pretends to be.
    addresses: u32,
}

impl Flood {
    fn new(node: &Node, kind: Kind, count: u64, connections: u32) -> Flood {
        Flood { ready: node.ready_file(), kind, count, connections, addresses: 0 }
    }

    fn from(self, addresses: u32) -> Flood {
        Flood { addresses, ..self }
    }

    /// Runs it, and checks what it has cost.
    fn run(self) -> Flooded {
        let flooded = flood::run(&flood::Options {
            node: self.ready,
            kind: self.kind,
            count: self.count,
            duration: Duration::ZERO,
            connections: self.connections,
            addresses: self.addresses,
            json: None,
        });
        let flooded = flooded.expect("it begins");
        assert!(flooded.is_good(), "{flooded}");
        let usage = flooded.node.expect("the server is on this machine");
        assert!(usage.grown_kib() < GROWTH_KIB_MAX, "{flooded}");
        assert!(usage.grown_threads() <= THREADS_MORE_MAX, "{flooded}");
        flooded
    }
}

/// A server that believes whoever says from whom a request comes, and hashes one password at a
/// time.
fn node(accounts: &str) -> Node {
    let config = format!(
        "[server]\ntrusted_proxies = ['127.0.0.1']\n\
         [accounts]\npassword_threads = 1\npassword_queue_max = 16\n{accounts}\n"
    );
    Node::start_with(NodeOptions { config: Some(config), ..NodeOptions::default() })
}

/// Requests of all floods that came to this.
fn sum(floods: &[Flooded], outcome: Outcome) -> u64 {
    floods.iter().map(|flooded| flooded.of(outcome)).sum()
}

fn counted(node: &Node, names: &[&str]) -> u64 {
    let figure = |name: &&str| figure(node, &format!("chatring_accounts_{name}_total"));
    names.iter().map(figure).sum::<f64>() as u64
}

fn sign_up(http: &mut Http, handle: &str, from: &str) -> Full {
    let body = json!({ "handle": handle, "password": PASSWORD }).to_string();
    http.ask("POST", "/v1/accounts", &format!("x-forwarded-for: {from}\r\n"), Some(&body))
}

#[test]
fn a_flood_of_sign_ups_is_held_up_and_leaves_room_for_others() {
    let node = node("sign_ups_per_ip_burst = 20\nsign_ups_per_ip_hour = 1");
    let bystanders = Bystanders::start(&node);
    // From one address, by several clients with many connections each.
    let mut floods = std::thread::scope(|scope| {
        let flood = || Flood::new(&node, Kind::SignUps, 500, 40).run();
        let floods = [0; 3].map(|_| scope.spawn(flood));
        bystanders.check();
        floods.map(|flood| flood.join().expect("no panic")).to_vec()
    });
    let made = sum(&floods, CREATED);
    assert!((1..=20).contains(&made), "{made} sign-ups of an address that has 20");
    // From ever new ones, none of which has used up what it may.
    floods.push(std::thread::scope(|scope| {
        let many = Flood::new(&node, Kind::SignUps, 600, 150).from(1 << 20);
        let flood = scope.spawn(|| many.run());
        bystanders.check();
        flood.join().expect("no panic")
    }));
    let last = floods.last().expect("some");
    assert!(last.of(CREATED) > 0 && last.of(BUSY) > 0, "{last}");
    assert_eq!(sum(&floods, CREATED), counted(&node, &["sign_ups"]));
    assert_eq!(sum(&floods, BUSY), counted(&node, &["sign_ups_limited", "busy"]));

    let mut http = Http::connect(node.http());
    let late = sign_up(&mut http, "mallory", "127.0.0.1");
    assert_eq!((late.status, late.problem()), (429, "busy"), "{late:?}");
    assert!(late.head.contains("retry-after: "), "{late:?}");
    let alice = sign_up(&mut http, "alice", "192.0.2.1");
    assert_eq!(alice.status, 201, "an address with room: {alice:?}");
    let token = alice.json["access_token"].as_str().expect("a token");
    let me = Http::connect(node.http()).token(token).get("/v1/me");
    assert_eq!(me.json["user"]["handle"], "alice", "{me:?}");
    bystanders.check();
}

#[test]
fn floods_of_guessed_passwords_are_held_up_and_do_not_lock_out() {
    let node = node("log_ins_per_ip_burst = 30\nlog_ins_per_ip_hour = 1");
    let bystanders = Bystanders::start(&node);
    let mut http = Http::connect(node.http());
    assert_eq!(sign_up(&mut http, "alice", "192.0.2.1").status, 201);
    let one = Flood::new(&node, Kind::Passwords, 2_000, 60).run();
    assert!((1..=30).contains(&one.of(UNAUTHORIZED)), "{one}");
    let many = Flood::new(&node, Kind::Passwords, 600, 150).from(1 << 20).run();
    assert!(many.of(UNAUTHORIZED) > 0 && many.of(BUSY) > 0, "{many}");
    let floods = [one, many];
    assert_eq!(sum(&floods, UNAUTHORIZED), counted(&node, &["log_ins_wrong"]));
    assert_eq!(sum(&floods, BUSY), counted(&node, &["log_ins_limited", "busy"]));
    let body = json!({ "handle": "alice", "password": PASSWORD }).to_string();
    let late = http.ask("POST", "/v1/sessions", "", Some(&body));
    assert_eq!((late.status, late.problem()), (429, "busy"), "{late:?}");
    assert!(late.head.contains("retry-after: "), "{late:?}");
    let headers = "x-forwarded-for: 192.0.2.1\r\n";
    assert_eq!(http.ask("POST", "/v1/sessions", headers, Some(&body)).status, 200);
    bystanders.check();
}

#[test]
fn floods_of_bad_tokens_are_held_up_and_known_ones_go_on() {
    let node = node("");
    let bystanders = Bystanders::start(&node);
    let mut known = Http::connect(node.http()).token(&node.token("alice"));
    assert_eq!(known.get("/v1/me").status, 200);
    let one = Flood::new(&node, Kind::Tokens, 6_000, 60).run();
    assert!(one.of(UNAUTHORIZED) >= 1_000 && one.of(BUSY) > 0, "{one}");
    assert_eq!(one.of(BUSY) as f64, figure(&node, "chatring_http_tokens_limited_total"));
    assert_eq!(known.get("/v1/me").status, 200, "whoever was there before");
    let headers = "authorization: Bearer a.b.c\r\n";
    let late = Http::connect(node.http()).ask("GET", "/v1/me", headers, None);
    assert_eq!(late.head.contains("retry-after: "), late.status == 429, "{late:?}");
    // More networks than are remembered, none of which has used up what it may.
    let many = Flood::new(&node, Kind::Tokens, 6_000, 60).from(1 << 20).run();
    assert_eq!(many.of(UNAUTHORIZED), 6_000, "{many}");
    bystanders.check();
}

#[test]
fn slow_bodies_are_given_up_and_large_heads_refused() {
    let node = node("");
    let bystanders = Bystanders::start(&node);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| Flood::new(&node, Kind::Bodies, 300, 300).run());
        for url in [node.http(), node.ws()] {
            for (kind, count) in [(Kind::Heads, 100), (Kind::Heads2, 100)] {
                let large = Flood::new(&node, kind, count, 20);
                let flooded = Flood { ready: ready_at(&node, url), ..large }.run();
                assert_eq!(flooded.requests, count, "{flooded}");
            }
        }
        bystanders.check();
        let slow = slow.join().expect("no panic");
        assert_eq!(slow.of(TIMEOUT), 300, "{slow}");
    });
    assert_eq!(figure(&node, "chatring_http_bodies_bytes"), 0.0);
    bystanders.check();
}

/// A ready file that says that HTTP is at this address.
fn ready_at(node: &Node, url: &str) -> PathBuf {
    let mut ready = node.ready().clone();
    let host = url.split('/').nth(2).expect("an address");
    ready["http"] = Value::from(format!("http://{host}"));
    let path = node.folder().join("flood.json");
    std::fs::write(&path, ready.to_string()).expect("a file");
    path
}
