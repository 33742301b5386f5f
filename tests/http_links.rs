//! Goal: API servers of their own are as good as the one inside a node, however they, the node and
//! the links between them come and go. Method: the real binary, on PostgreSQL.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use chatring_wire::link::format1::{Call, Device, Identity, Request, ToNode};
use chatring_wire::link::{ApiHandshake, ClusterKey, Formats, LinkError, NONCE_BYTES};
use serde_json::{Value, json};

use crate::common::api::{ApiServer, attempt, linked_node};
use crate::common::line::{Line, Trap};
use crate::common::postgres::Postgres;
use crate::common::skip::{no_strace, skipped, strace};
use crate::common::{Http, Node, chatring, figure, get, refusal};

const PASSWORD: &str = "correct horse battery";
const PATIENCE: Duration = Duration::from_secs(60);

/// A node with API servers on a database of its own.
struct World {
    apis: Vec<ApiServer>,
    node: Node,
    config: String,
    _postgres: Postgres,
}

fn postgres() -> Option<Postgres> {
    let postgres = Postgres::start();
    postgres.inspect_err(|reason| skipped(&format!("API servers alone: {reason}"))).ok()
}

fn world(apis: usize) -> Option<World> {
    let postgres = postgres()?;
    let (node, config) = linked_node(&postgres.url(), Vec::new());
    let apis = (0..apis).map(|_| ApiServer::start(&node, &config)).collect();
    Some(World { apis, node, config, _postgres: postgres })
}

fn sign_up(http: &str, handle: &str) -> Value {
    let body = json!({ "handle": handle, "password": PASSWORD });
    let answer = Http::connect(http).post("/v1/accounts", &body);
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json
}

fn token(session: &Value) -> &str {
    session["access_token"].as_str().expect("a token")
}

fn open(http: &str, session: &Value, with: &str) -> String {
    let body = json!({ "kind": "direct", "with": with });
    let answer = Http::connect(http).token(token(session)).post("/v1/channels", &body);
    assert!(answer.status < 300, "{answer:?}");
    answer.json["id"].as_str().expect("an id").to_owned()
}

/// Sends a message until somebody says that it is stored, first to one server, then the next.
fn send_until_stored(apis: &[&str], token: &str, channel: &str, text: &str) -> u64 {
    let until = Instant::now() + PATIENCE;
    let (path, key) =
        (format!("/v1/channels/{channel}/messages"), format!("idempotency-key: {text}\r\n"));
    let body = json!({ "text": text }).to_string();
    for api in apis.iter().cycle() {
        match attempt(api, Some(token), "POST", &path, &key, &body) {
            Some((200 | 201, body)) => return body["seq"].as_u64().expect("a position"),
            Some((429 | 503, _)) | None => {}
            Some(other) => panic!("{other:?}"),
        }
        assert!(Instant::now() < until, "{text} was never stored");
        std::thread::sleep(Duration::from_millis(20));
    }
    unreachable!("there is a server")
}

/// The texts of a channel from its beginning.
fn history(http: &str, session: &Value, channel: &str) -> Vec<String> {
    let mut http = Http::connect(http).token(token(session));
    let (mut texts, mut after) = (Vec::new(), 0);
    loop {
        let page = http.get(&format!("/v1/channels/{channel}/messages?after={after}"));
        assert_eq!(page.status, 200, "{page:?}");
        let messages = page.json["messages"].as_array().cloned().unwrap_or_default();
        let Some(last) = messages.last() else { return texts };
        after = last["seq"].as_u64().expect("a position");
        texts.extend(messages.iter().map(|m| m["text"].as_str().expect("a text").to_owned()));
        assert_eq!(texts.len() as u64, after, "dense");
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what} did not come true in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn readiness(http: &str) -> (u16, String) {
    let answer = get(http, "/readyz");
    (answer.status, answer.body)
}

#[test]
fn two_api_servers_are_one_to_their_users() {
    let Some(mut world) = world(2) else { return };
    let (first, second) = (world.apis[0].http().to_owned(), world.apis[1].http().to_owned());
    let (alice, bob) = (sign_up(&first, "alice"), sign_up(&second, "bob"));
    assert_eq!(alice["node"]["ws"].as_str(), Some(world.node.ws()));
    assert!(alice["device"].is_u64(), "{alice}");
    let channel = open(&second, &alice, "bob");
    let mut bob_there = Http::connect(&first).token(token(&bob));
    let cursor = bob_there.get("/v1/sync").json["cursor"].as_str().expect("a cursor").to_owned();
    let waiting = std::thread::spawn(move || {
        bob_there.get(&format!("/v1/sync?wait_ms=60000&cursor={cursor}"))
    });
    until("a parked call", || figure(&world.node, "chatring_links_calls_in_flight") >= 1.0);
    let path = format!("/v1/channels/{channel}/messages");
    let mut alice_there = Http::connect(&second).token(token(&alice));
    let body = Some(r#"{"text":"Hello"}"#);
    let sent = alice_there.ask("POST", &path, "idempotency-key: one\r\n", body);
    assert_eq!((sent.status, sent.json["durability"].as_str()), (201, Some("fsync")), "{sent:?}");
    let woken = waiting.join().expect("no panic");
    assert_eq!(woken.json["events"][0]["text"], "Hello", "{woken:?}");
    let mut at_the_node = Http::connect(world.node.http()).token(token(&alice));
    let again = at_the_node.ask("POST", &path, "idempotency-key: one\r\n", body);
    assert_eq!((again.status, &again.json), (200, &sent.json), "the key is known everywhere");

    let nodes = Http::connect(&first).token(token(&alice)).get("/v1/nodes").json;
    assert_eq!(nodes["nodes"][0]["up"], true, "{nodes}");
    assert_eq!(nodes["nodes"][0]["ws"].as_str(), Some(world.node.ws()));
    let figures = get(&first, "/metrics").body;
    assert!(figures.contains("chatring_link_up 1"), "{figures}");

    // A log-out at one is one everywhere.
    let out = alice_there.ask("DELETE", "/v1/sessions/current", "", None);
    assert_eq!(out.status, 204, "{out:?}");
    for server in [&first, &second, world.node.http()] {
        until("the end of a log-in", || {
            Http::connect(server).token(token(&alice)).get("/v1/channels").status == 401
        });
    }
    assert_eq!(readiness(&second), (200, "ready\n".to_owned()));
    assert_eq!(world.apis[1].stop().code(), Some(0));
    assert_eq!(history(&first, &bob, &channel), ["Hello"]);
}

#[test]
fn server_sent_events_come_over_links() {
    let Some(world) = world(1) else { return };
    let api = world.apis[0].http();
    let (alice, bob) = (sign_up(api, "alice"), sign_up(api, "bob"));
    let channel = open(api, &alice, "bob");
    let mut events = Http::connect(api);
    let request = format!(
        "GET /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        token(&bob)
    );
    events.write(request.as_bytes());
    assert!(events.head().contains("text/event-stream"));
    send_until_stored(&[api], token(&alice), &channel, "news");
    loop {
        let line = events.line();
        assert!(!line.is_empty(), "the stream ended");
        if line.starts_with("data: ") && line.contains("\"news\"") {
            break;
        }
    }
}

#[test]
fn an_api_server_that_is_killed_loses_and_repeats_nothing() {
    let Some(mut world) = world(2) else { return };
    let urls: Vec<String> = world.apis.iter().map(|api| api.http().to_owned()).collect();
    let (alice, bob) = (sign_up(&urls[0], "alice"), sign_up(&urls[0], "bob"));
    let channel = open(&urls[0], &alice, "bob");
    let (done, urls) = (AtomicBool::new(false), [&*urls[0], &*urls[1]]);
    std::thread::scope(|scope| {
        let sends = scope.spawn(|| {
            let sent = |n| send_until_stored(&urls, token(&alice), &channel, &format!("m{n}"));
            let seqs: Vec<u64> = (0..120).map(sent).collect();
            done.store(true, Ordering::Release);
            seqs
        });
        let sign_ups = scope.spawn(|| (0..40).map(|n| sign_up_somewhere(&urls, n)).count());
        while !done.load(Ordering::Acquire) {
            world.apis[0].restart();
        }
        assert_eq!(sends.join().expect("no panic"), (1..=120).collect::<Vec<_>>());
        assert_eq!(sign_ups.join().expect("no panic"), 40);
    });
    let expected: Vec<String> = (0..120).map(|n| format!("m{n}")).collect();
    assert_eq!(history(urls[1], &bob, &channel), expected);
    for n in 0..40 {
        let body = json!({ "handle": format!("user{n}"), "password": PASSWORD });
        let answer = Http::connect(urls[1]).post("/v1/sessions", &body);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// Signs somebody up, at a server that may be killed meanwhile: then it is not known whether it was
/// done, and it is tried elsewhere.
fn sign_up_somewhere(urls: &[&str], n: usize) {
    let body = json!({ "handle": format!("user{n}"), "password": PASSWORD }).to_string();
    let end = Instant::now() + PATIENCE;
    for url in urls.iter().cycle() {
        match attempt(url, None, "POST", "/v1/accounts", "", &body) {
            Some((201 | 409, _)) => return,
            Some((429 | 503, _)) | None => {}
            Some(other) => panic!("{other:?}"),
        }
        assert!(Instant::now() < end, "user{n} never got in");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_node_that_is_killed_comes_back_to_its_api_servers_and_repeats_are_stored_once() {
    let Some(mut world) = world(2) else { return };
    let urls: Vec<String> = world.apis.iter().map(|api| api.http().to_owned()).collect();
    let (alice, bob) = (sign_up(&urls[0], "alice"), sign_up(&urls[1], "bob"));
    let channel = open(&urls[0], &alice, "bob");
    let (done, urls) = (AtomicBool::new(false), [&*urls[0], &*urls[1]]);
    std::thread::scope(|scope| {
        let sends = scope.spawn(|| {
            let sent = |n| send_until_stored(&urls, token(&alice), &channel, &format!("m{n}"));
            let seqs: Vec<u64> = (0..120).map(sent).collect();
            done.store(true, Ordering::Release);
            seqs
        });
        while !done.load(Ordering::Acquire) {
            world.node.restart();
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(sends.join().expect("no panic"), (1..=120).collect::<Vec<_>>());
    });
    let expected: Vec<String> = (0..120).map(|n| format!("m{n}")).collect();
    for url in urls {
        until("readiness", || readiness(url).0 == 200);
        assert_eq!(history(url, &bob, &channel), expected);
    }

    world.node.kill();
    until("unreadiness", || readiness(urls[0]) == (503, "no link to a node\n".to_owned()));
    let mut http = Http::connect(urls[0]).token(token(&alice));
    let refused = http.get("/v1/channels");
    assert_eq!((refused.status, refused.problem()), (503, "unavailable"), "{refused:?}");
    assert!(refused.head.contains("retry-after: "), "{}", refused.head);
    assert_eq!(http.get("/v1/me").status, 200, "what needs no node is served");
    let session = json!({ "handle": "alice", "password": PASSWORD });
    assert_eq!(http.post("/v1/sessions", &session).status, 200, "so are log-ins");
    world.node.restart();
    until("readiness", || readiness(urls[0]).0 == 200);
}

/// A node whose disk is slow, so that there is time between what it knows and what is stored, and
/// two API servers whose lines to it can be broken.
fn world_on_lines() -> Option<(World, [Line; 2])> {
    let postgres = postgres()?;
    let words = ["-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_exit=50000"];
    let wrapper = match no_strace() {
        None => strace(Path::new("/dev/null"), &words),
        Some(reason) => {
            skipped(&format!("a slow disk: {reason}"));
            Vec::new()
        }
    };
    let (node, config) = linked_node(&postgres.url(), wrapper);
    let link = node.ready()["link"].as_str().expect("an address");
    let lines = [Line::to(link), Line::to(link)];
    let nodes = |addr: &str| format!("nodes = [\"{addr}\"]");
    let api = |line: &Line| {
        let config = config.replace(&nodes(link), &nodes(&line.addr().to_string()));
        ApiServer::start(&node, &config)
    };
    let apis = lines.iter().map(api).collect();
    Some((World { apis, node, config, _postgres: postgres }, lines))
}

/// What the maker of a block was told so far: how many changes were begun and answered.
#[derive(Default)]
struct Told(AtomicU64);

/// How it stands while nothing is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    Free,
    Blocked,
    /// A change has no answer yet.
    Changing,
}

impl Told {
    /// A change is begun, or answered.
    fn goes_on(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// Does something; gives how it stood from before that until after it.
    fn during<T>(&self, what: impl FnOnce() -> T) -> (Stands, T) {
        let before = self.0.load(Ordering::SeqCst);
        let done = what();
        let stands = match before % 4 {
            _ if self.0.load(Ordering::SeqCst) != before => Stands::Changing,
            0 => Stands::Free,
            2 => Stands::Blocked,
            _ => Stands::Changing,
        };
        (stands, done)
    }
}

/// Somebody who sends one message after the other, each until it is known what became of it.
struct Sender<'a> {
    api: &'a str,
    token: &'a str,
    channel: &'a str,
    told: &'a Told,
    over: &'a AtomicBool,
    stored: AtomicU64,
    held_up: AtomicU64,
}

impl Sender<'_> {
    /// Gives what was stored, in this order.
    fn send(&self) -> Vec<String> {
        let mut stored = Vec::new();
        let mut n = 0;
        while !self.over.load(Ordering::SeqCst) {
            let text = format!("m{n}");
            match self.send_one(&text) {
                true => {
                    stored.push(text);
                    self.stored.fetch_add(1, Ordering::SeqCst);
                }
                false => {
                    self.held_up.fetch_add(1, Ordering::SeqCst);
                }
            }
            n += 1;
        }
        stored
    }

    /// Whether it was stored, and not held up.
    fn send_one(&self, text: &str) -> bool {
        let (path, key) = (
            format!("/v1/channels/{}/messages", self.channel),
            format!("idempotency-key: {text}\r\n"),
        );
        let body = json!({ "text": text }).to_string();
        let end = Instant::now() + PATIENCE;
        loop {
            let ask = || attempt(self.api, Some(self.token), "POST", &path, &key, &body);
            match self.told.during(ask) {
                // What was begun after the answer to a block and is stored has slipped through.
                (Stands::Blocked, Some((201, body))) => panic!("{text} slipped through: {body}"),
                (Stands::Free, Some((403, body))) => panic!("{text} was held up: {body}"),
                (_, Some((200 | 201, _))) => return true,
                (_, Some((403, body))) => {
                    assert_eq!(body["name"], "blocked", "{body}");
                    return false;
                }
                (_, Some((429 | 503, _)) | None) => {}
                (_, other) => panic!("{other:?}"),
            }
            assert!(Instant::now() < end, "nobody says what became of {text}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Sets this when it is dropped, also if the test fails.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Asks until there is the answer that is wanted; whoever is asked may have no link meanwhile.
fn ask_until(http: &str, session: &Value, status: u16, method: &str, path: &str) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let pause_ms = match attempt(http, Some(token(session)), method, path, "", "") {
            Some((is, body)) if is == status => return body,
            // Each attempt to block counts, whatever becomes of it.
            Some((429, body)) => body["retry_after_ms"].as_u64().expect("a time"),
            Some((503, _)) | None => 100,
            Some(other) => panic!("{other:?}"),
        };
        assert!(Instant::now() < end, "{method} {path} is not answered");
        std::thread::sleep(Duration::from_millis(pause_ms));
    }
}

#[test]
fn a_block_holds_from_its_answer_on_wherever_the_link_breaks_and_whenever_the_node_dies() {
    let Some((mut world, lines)) = world_on_lines() else { return };
    let urls: Vec<String> = world.apis.iter().map(|api| api.http().to_owned()).collect();
    let (alice, bob) = (sign_up(&urls[0], "alice"), sign_up(&urls[1], "bob"));
    let channel = open(&urls[0], &alice, "bob");
    let (over, told) = (AtomicBool::new(false), Told::default());
    let sender = Sender {
        api: &urls[1],
        token: token(&bob),
        channel: &channel,
        told: &told,
        over: &over,
        stored: AtomicU64::new(0),
        held_up: AtomicU64::new(0),
    };
    let rises = |what: &str, count: &AtomicU64| {
        let enough = count.load(Ordering::SeqCst) + 3;
        until(what, || over.load(Ordering::SeqCst) || count.load(Ordering::SeqCst) >= enough);
    };
    let path = format!("/v1/channels/{channel}");
    let head = || ask_until(&urls[1], &alice, 200, "GET", &path)["head"].clone();
    let after = |ms| move |pid| Trap::KilledAfterCall(pid, Duration::from_millis(ms));
    let traps: [&dyn Fn(_) -> Trap; 8] = [
        &|_| Trap::CallLost,
        &|_| Trap::CallArrived,
        &|_| Trap::AnswerLost,
        &after(0),
        &after(60),
        &after(120),
        &Trap::KilledAfterAnswer,
        &Trap::KilledAfterAnswer,
    ];
    let stored = std::thread::scope(|scope| {
        let _over = AtEnd(&over);
        let sends = scope.spawn(|| {
            let _over = AtEnd(&over);
            sender.send()
        });
        for (round, trap) in traps.iter().enumerate() {
            let mut at_block = Value::Null;
            for method in ["PUT", "DELETE"] {
                rises("messages", if method == "PUT" { &sender.stored } else { &sender.held_up });
                if method == "DELETE" {
                    assert_eq!(head(), at_block, "round {round}: nothing is stored meanwhile");
                }
                let trap = trap(world.node.pid());
                lines[1].set(Trap::CallArrived);
                lines[0].set(trap);
                told.goes_on();
                let change = scope.spawn(|| {
                    ask_until(&urls[0], &alice, 204, method, "/v1/blocks/bob");
                    told.goes_on();
                });
                if matches!(trap, Trap::KilledAfterCall(..) | Trap::KilledAfterAnswer(_)) {
                    until("an end of the node", || lines[0].is_sprung());
                    world.node.restart();
                }
                change.join().expect("an answer");
                at_block = head();
            }
        }
        rises("messages", &sender.stored);
        over.store(true, Ordering::SeqCst);
        sends.join().expect("all is as it was told")
    });
    assert_eq!(history(&urls[0], &bob, &channel), stored);
    let blocks = ask_until(&urls[0], &alice, 200, "GET", "/v1/blocks");
    assert_eq!(blocks["users"], json!([]), "the last answer counts");
}

#[test]
fn whoever_waits_is_told_when_a_node_or_an_api_server_drains() {
    let Some(mut world) = world(2) else { return };
    let urls: Vec<String> = world.apis.iter().map(|api| api.http().to_owned()).collect();
    let alice = sign_up(&urls[0], "alice");
    let waiting = |url: &str| {
        let mut http = Http::connect(url).token(token(&alice));
        let cursor = http.get("/v1/sync").json["cursor"].as_str().expect("a cursor").to_owned();
        std::thread::spawn(move || http.get(&format!("/v1/sync?wait_ms=60000&cursor={cursor}")))
    };
    let (first, second) = (waiting(&urls[0]), waiting(&urls[1]));
    let parked = |calls| figure(&world.node, "chatring_links_calls_in_flight") == calls;
    until("two parked calls", || parked(2.0));
    assert_eq!(world.apis[1].stop().code(), Some(0));
    let told = second.join().expect("no panic");
    assert_eq!((told.status, told.problem()), (503, "draining"), "{told:?}");
    until("one parked call", || parked(1.0));
    assert_eq!(world.node.stop().code(), Some(0));
    let told = first.join().expect("no panic");
    // The shard may be quicker than the link, and says that nothing was new.
    let nothing_new = told.status == 200 && told.json["events"] == json!([]);
    assert!(nothing_new || (told.status, told.problem()) == (503, "draining"), "{told:?}");
    until("unreadiness", || readiness(&urls[0]).0 == 503);
}

#[test]
fn what_an_api_server_cannot_run_on_is_refused_in_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, data) = (folder.path().join("api.toml"), folder.path().join("data"));
    let run = |config: &str| {
        std::fs::write(&file, config).expect("a file");
        let (file, data) = (file.to_str().expect("text"), data.to_str().expect("text"));
        let output = chatring(&["api", "--config", file, "--data", data, "--http", "127.0.0.1:0"]);
        refusal(&output).to_owned()
    };
    assert!(run("").contains("cluster.nodes must name"));
    assert!(run("[cluster]\nnodes = [\"a:1\", \"b:1\"]").contains("one node has all users"));
    let sqlite = run("[cluster]\nnodes = [\"127.0.0.1:1\"]");
    assert!(sqlite.contains("accounts.database must be"), "{sqlite}");
    let postgres = "[accounts]\ndatabase = \"postgres://x@127.0.0.1:1/x\"\n";
    let keys = run(&format!("{postgres}[cluster]\nnodes = [\"127.0.0.1:1\"]"));
    assert!(keys.contains("token_key.pem"), "{keys}");
    assert!(run("[cluster]\nnode = \"a:1\"").contains("unknown field"));
}

#[test]
fn an_api_server_with_another_cluster_key_gets_no_link() {
    let Some(world) = world(0) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let token_key = world.node.data().join("token_key.pem");
    std::fs::copy(token_key, folder.path().join("token_key.pem")).expect("a copy");
    let mut other = world.node.data().join("cluster.key");
    let text = std::fs::read_to_string(&other).expect("the key").replace(|c| c != '\n', "7");
    other = folder.path().join("cluster.key");
    std::fs::write(&other, text).expect("a file");
    std::fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("allowed");
    let mut api = ApiServer::launch(folder.path().to_owned(), &world.config);
    until("a refusal", || api.log().contains("the other side has another cluster key"));
    assert_eq!(figure(&world.node, "chatring_links_made_total"), 0.0);
    assert_eq!(api.stop().code(), Some(0), "a signal ends it although it was never ready");
}

/// The end of a link that is no API server of ours.
struct Raw {
    stream: std::net::TcpStream,
}

impl Raw {
    fn connect(node: &Node) -> Raw {
        let addr = node.ready()["link"].as_str().expect("an address");
        let stream = std::net::TcpStream::connect(addr).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        Raw { stream }
    }

    /// Whether it was taken.
    fn say(&mut self, bytes: &[u8]) -> bool {
        use std::io::Write as _;
        self.stream.write_all(bytes).is_ok()
    }

    fn hear<const N: usize>(&mut self) -> Option<[u8; N]> {
        use std::io::Read as _;
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).ok().map(|()| bytes)
    }

    fn is_closed(&mut self) -> bool {
        self.hear::<1>().is_none()
    }
}

fn key(node: &Node) -> ClusterKey {
    let text = std::fs::read_to_string(node.data().join("cluster.key")).expect("the key");
    let digits = text.trim().as_bytes().chunks_exact(2);
    let bytes: Vec<u8> = digits
        .map(|pair| std::str::from_utf8(pair).expect("digits"))
        .map(|pair| u8::from_str_radix(pair, 16).expect("digits"))
        .collect();
    ClusterKey::new(&bytes.try_into().expect("32 bytes"))
}

#[test]
fn a_peer_that_is_no_api_server_of_this_cluster_is_closed_with_a_clear_word() {
    let Some(world) = world(1) else { return };
    let key = key(&world.node);
    for garbage in [&b"GET / HTTP/1.1\r\nhost: x\r\nx-long: 0123456789\r\n\r\n"[..], &[0; 48]] {
        let mut raw = Raw::connect(&world.node);
        raw.say(garbage);
        assert!(raw.is_closed());
    }
    let newer = Formats { newest: 9, oldest: 8 };
    let handshake = ApiHandshake::new(&key, newer, &[1; NONCE_BYTES]);
    let mut raw = Raw::connect(&world.node);
    raw.say(handshake.opening());
    let reply = raw.hear().expect("a reply that tells");
    let refused = handshake.finish(&reply).expect_err("no common format");
    assert!(matches!(refused, LinkError::NoCommonFormat { .. }), "{refused}");
    assert!(raw.is_closed());
    let word = "no common format: it speaks formats 8 to 9, we speak format 1";
    until("a word in the log", || world.node.log().contains(word));

    let mut raw = Raw::connect(&world.node);
    let handshake = ApiHandshake::new(&key, Formats::OWN, &[2; NONCE_BYTES]);
    raw.say(handshake.opening());
    let reply = raw.hear().expect("a reply");
    assert!(handshake.finish(&reply).is_ok());
    raw.say(&[7; 32]);
    assert!(raw.is_closed(), "a wrong proof");
    assert_eq!(figure(&world.node, "chatring_links_made_total"), 1.0, "that of the API server");
    assert_eq!(figure(&world.node, "chatring_links_refused_total"), 4.0);
    assert_eq!(readiness(world.apis[0].http()).0, 200);
}

#[test]
fn an_api_server_that_takes_no_answers_costs_the_node_a_bounded_amount() {
    let Some(world) = world(1) else { return };
    let api = world.apis[0].http();
    let (alice, bob) = (sign_up(api, "alice"), sign_up(api, "bob"));
    let channel = open(api, &alice, "bob");
    let body = json!({ "text": "x".repeat(60_000) });
    let mut http = Http::connect(api).token(token(&alice));
    assert_eq!(http.post(&format!("/v1/channels/{channel}/messages"), &body).status, 201);

    let mut raw = Raw::connect(&world.node);
    let handshake = ApiHandshake::new(&key(&world.node), Formats::OWN, &[3; NONCE_BYTES]);
    raw.say(handshake.opening());
    let (proof, mut agreed) = handshake.finish(&raw.hear().expect("a reply")).expect("ours");
    raw.say(&proof);
    raw.stream.set_write_timeout(Some(Duration::from_secs(1))).expect("a time");
    let resident = || figure(&world.node, "chatring_process_resident_bytes");
    let before = resident();
    let user = alice["user"]["id"].as_str();
    let identity = Identity {
        issuer: String::new(),
        subject: user.expect("an id").to_owned(),
        issued_at_s: 1 << 40,
        expires_at_s: 1 << 41,
        installation: None,
    };
    let cid = u64::from_str_radix(&channel, 16).expect("an id");
    let mut say = |raw: &mut Raw, tickets: std::ops::Range<u64>| {
        for ticket in tickets {
            let request = Request::History { cid, before: None, after: None, limit: 0 };
            let call = Call { ticket, identity: identity.clone(), device: Device::None, request };
            let mut out = BytesMut::new();
            agreed.writer.put(&ToNode::Call(call).archive(), &mut out).expect("short");
            raw.say(&out);
        }
    };
    // Answers of 60 KB each, and in the end 120 MB of them, if the node took the calls. A user may
    // have 64 under way.
    let of_node = |name: &str| figure(&world.node, &format!("chatring_links_{name}"));
    let mut tickets = 0;
    until("more unsent than the node lets grow", || {
        say(&mut raw, tickets..tickets + 32);
        tickets += 32;
        until("answers", || of_node("calls_in_flight") == 0.0 || of_node("unsent_bytes") > 4e6);
        of_node("unsent_bytes") > 4.2e6 || of_node("open") == 1.0
    });
    for _ in 0..60 {
        say(&mut raw, tickets..tickets + 32);
        tickets += 32;
        let unsent = of_node("unsent_bytes");
        assert!(unsent < 34e6, "{unsent}");
    }
    assert!(resident() < before + 200e6, "{} above {before}", resident());
    // The others are served.
    assert_eq!(history(api, &bob, &channel).len(), 1);
    drop(raw);
    until("the end of the link", || figure(&world.node, "chatring_links_open") == 1.0);
    until("the end of its calls", || figure(&world.node, "chatring_links_calls_in_flight") == 0.0);
}
