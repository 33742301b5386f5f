//! Goal: a message to somebody who waits over HTTP costs few rows, however many channels it is one
//! of, and each of many who wait is given its own. Method: the real binary with two shards, whose
//! figures are read before and after; the load generator's `parked`, small.

use std::ffi::OsString;

use chatring_loadgen::cli::{Cli, Command};
use chatring_loadgen::scenario::parked;
use clap::Parser as _;
use serde_json::{Value, json};

use crate::common::{Http, Node, figure};

/// Rows that a message may cost.
const ROWS_MAX: f64 = 20.0;

#[test]
fn a_message_to_one_of_300_channels_reads_few_rows_and_no_inbox() {
    const CHANNELS: usize = 300;
    const MESSAGES: usize = 120;
    let node = Node::start();
    let user = |name: &str| Http::connect(node.http()).token(&node.token(name));
    let mut bob = user("bob");
    let channels: Vec<String> = (0..CHANNELS)
        .map(|number| {
            let friend = format!("friend-{number}");
            assert_eq!(user(&friend).get("/v1/sync").status, 200);
            let with =
                json!({ "kind": "direct", "with_user": { "issuer": "", "subject": friend } });
            let opened = bob.post("/v1/channels", &with);
            opened.json["id"].as_str().expect("a channel").to_owned()
        })
        .collect();
    let mut friends: Vec<Http> =
        (0..MESSAGES).map(|number| user(&format!("friend-{number}"))).collect();
    let mut say = |number: usize, text: &str| {
        let path = format!("/v1/channels/{}/messages", channels[number]);
        let key = format!("idempotency-key: {text}-{number}\r\n");
        let body = json!({ "text": text }).to_string();
        assert_eq!(friends[number].ask("POST", &path, &key, Some(&body)).status, 201);
    };
    // So that the channels are in memory, and their inbox rows not the first ones.
    (0..MESSAGES).for_each(|number| say(number, "before"));
    let mut cursor = String::new();
    loop {
        let news = bob.get(&format!("/v1/sync?cursor={cursor}"));
        news.json["cursor"].as_str().expect("a cursor").clone_into(&mut cursor);
        if news.json["more"] == false {
            break;
        }
    }
    let figures = || {
        let names = ["chatring_store_rows_read_total", "chatring_call_syncs_total"];
        names.map(|name| figure(&node, name))
    };
    let parked = |count: f64| while figure(&node, "chatring_calls_parked") != count {};
    // The shards tell of their figures now and then; the friends and Bob have read theirs.
    while figures()[1] < 1.0 + CHANNELS as f64 {}
    for way in ["poll", "stream"] {
        let [rows, inboxes] = figures();
        let mut stream = user("bob");
        if way == "stream" {
            stream.write(&get(&format!("/v1/events?cursor={cursor}"), &node.token("bob")));
            assert!(stream.head().starts_with("http/1.1 200"));
        }
        for (number, channel) in channels.iter().enumerate().take(MESSAGES) {
            if way == "poll" {
                let path = format!("/v1/sync?wait_ms=60000&cursor={cursor}");
                bob.write(&get(&path, &node.token("bob")));
            }
            parked(1.0);
            say(number, way);
            let news = if way == "poll" { bob.answer().json } else { event(&mut stream) };
            let events = news["events"].as_array().expect("events");
            assert_eq!(events.len(), 1, "{events:?}");
            assert_eq!(events[0]["channel"], **channel);
            assert_eq!(events[0]["text"], way);
            news["cursor"].as_str().expect("a cursor").clone_into(&mut cursor);
        }
        drop(stream);
        parked(0.0);
        let [rows_after, inboxes_after] = figures();
        assert_eq!(inboxes_after, inboxes, "inboxes were read for a {way}");
        let rows = (rows_after - rows) / MESSAGES as f64;
        assert!(rows <= ROWS_MAX, "{rows} rows a message to a {way}");
    }
}

fn get(path: &str, token: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n").into()
}

/// The next event of a stream.
fn event(stream: &mut Http) -> Value {
    loop {
        let line = stream.line();
        assert!(!line.is_empty(), "the stream ended");
        if let Some(data) = line.strip_prefix("data: ") {
            return serde_json::from_str(data).expect("JSON");
        }
    }
}

#[test]
fn each_of_many_parked_requests_is_given_its_own_message_once() {
    let node = Node::start();
    for mode in ["longpoll", "sse"] {
        let words = ["chatring-loadgen", "parked", "--users", "60", "--hold", "100ms"];
        let words = words.into_iter().chain(["--rate", "100", "--mode", mode, "--node"]);
        let words = words.map(OsString::from).chain([node.ready_file().into_os_string()]);
        let Command::Parked(options) = Cli::parse_from(words).command else { unreachable!() };
        let parked = parked::run(&options).expect("all are parked");
        assert!(parked.is_good(), "{parked}\n{}", node.log());
        assert_eq!((parked.messages.delivered, parked.parked_at_end), (60, 60), "{parked}");
        assert_eq!(parked.inbox_reads, 0, "{parked}");
        assert!(parked.rows_per_message <= ROWS_MAX, "{parked}");
        let memory = parked.memory.expect("it is on this machine");
        assert!(memory.parked > 0 && memory.known <= memory.parked, "{memory:?}");
    }
}
