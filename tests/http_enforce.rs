//! Goal: what the accounts decide takes effect in the chat at once. Method: the real binary; people
//! with live WebSockets, long polls and streams of events, and what becomes of these.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use chatring_wire::{Cid, ErrorCode, InstallationId, ServerFrame, Subprotocol};
use serde_json::{Value, json};
use sqlx::Executor as _;

use crate::common::raw::{Raw, hello, refused};
use crate::common::{Http, Node, NodeOptions, figure, run};

const PASSWORD: &str = "correct horse battery";
/// Time in which something must happen.
const PATIENCE: Duration = Duration::from_secs(30);
const LONG_POLL: &str = "/v1/sync?wait_ms=60000&cursor=";

/// A server on which hashing a password takes little.
fn node() -> Node {
    let config = "[accounts]\npassword_memory_kib = 64\npassword_passes = 1\n".to_owned();
    Node::start_with(NodeOptions { config: Some(config), ..NodeOptions::default() })
}

fn until(what: &str, happens: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !happens() {
        assert!(Instant::now() < until, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A log-in of a user, made if there is none.
struct LogIn {
    token: String,
    installation: String,
    http: Http,
}

impl LogIn {
    fn new(node: &Node, handle: &str) -> LogIn {
        let mut http = Http::connect(node.http());
        let body = json!({ "handle": handle, "password": PASSWORD });
        let mut answer = http.post("/v1/sessions", &body);
        if answer.status == 401 {
            answer = http.post("/v1/accounts", &body);
        }
        assert!(matches!(answer.status, 200 | 201), "{answer:?}");
        let text = |name: &str| answer.json[name].as_str().expect("a text").to_owned();
        let token = text("access_token");
        LogIn { http: http.token(&token), token, installation: text("installation") }
    }

    fn installation(&self) -> InstallationId {
        let id = u128::from_str_radix(&self.installation, 16).expect("32 digits");
        InstallationId(id.to_be_bytes())
    }

    fn session(&self, node: &Node) -> Raw {
        let hello = hello(&self.token, "");
        let installation = self.installation();
        let hello = chatring_wire::frame::Hello { installation, ..hello };
        Raw::sign_in_with(node, Subprotocol::Binary, hello)
    }

    /// A connection on which the answer to a long poll is to come.
    fn long_poll(&mut self, node: &Node) -> Http {
        let synced = self.http.get("/v1/sync");
        let cursor = synced.json["cursor"].as_str().expect("a cursor");
        let mut http = Http::connect(node.http());
        http.write(self.request(&format!("{LONG_POLL}{cursor}")).as_bytes());
        http
    }

    /// A connection on which a stream of events has begun.
    fn events(&self, node: &Node) -> Http {
        let mut http = Http::connect(node.http());
        http.write(self.request("/v1/events").as_bytes());
        assert!(http.head().starts_with("http/1.1 200"));
        http
    }

    fn request(&self, path: &str) -> String {
        let token = &self.token;
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n")
    }
}

/// Everything that a device can have open.
struct Live {
    session: Raw,
    long_poll: Http,
    events: Http,
}

impl Live {
    fn of(log_in: &mut LogIn, node: &Node) -> Live {
        Live {
            session: log_in.session(node),
            long_poll: log_in.long_poll(node),
            events: log_in.events(node),
        }
    }

    fn expect_end(mut self) {
        self.session.expect_error(ErrorCode::RevokedToken);
        let answer = self.long_poll.answer();
        assert_eq!((answer.status, answer.problem()), (401, "revoked_token"), "{answer:?}");
        loop {
            let line = self.events.line();
            assert!(!line.is_empty(), "the stream ended without a word");
            if line.contains("revoked_token") {
                break;
            }
        }
    }
}

fn waits(node: &Node, calls: f64) {
    until("calls wait", || figure(node, "chatring_calls_parked") == calls);
}

/// One log-in of a user, or the other by itself, ends the other.
type EndOne = fn(&mut LogIn, &mut LogIn) -> u16;

#[test]
fn whatever_ends_a_log_in_ends_what_it_has_open_and_nothing_else() {
    let node = node();
    let mut kept = LogIn::new(&node, "alice");
    let mut live = Live::of(&mut kept, &node);
    let ways: [(&str, EndOne); 3] = [
        ("removed", |kept, gone| {
            let path = format!("/v1/me/devices/{}", gone.installation);
            kept.http.ask("DELETE", &path, "", None).status
        }),
        ("logged out", |_, gone| gone.http.ask("DELETE", "/v1/sessions/current", "", None).status),
        ("a new password", |kept, _| {
            let body = json!({ "password": PASSWORD, "new_password": PASSWORD }).to_string();
            kept.http.ask("PUT", "/v1/me/password", "", Some(&body)).status
        }),
    ];
    for (what, end) in ways {
        let mut gone = LogIn::new(&node, "alice");
        let ended = Live::of(&mut gone, &node);
        waits(&node, 4.0);
        assert_eq!(end(&mut kept, &mut gone), 204, "{what}");
        ended.expect_end();
        live.session.expect_alive();
        waits(&node, 2.0);
    }
    let mut other = LogIn::new(&node, "alice");
    let others = Live::of(&mut other, &node);
    waits(&node, 4.0);
    assert_eq!(kept.http.ask("DELETE", "/v1/sessions", "", None).status, 204);
    live.expect_end();
    others.expect_end();
    // A new log-in is as good as ever, until there is no account.
    let mut last = LogIn::new(&node, "alice");
    let live = Live::of(&mut last, &node);
    waits(&node, 2.0);
    let body = json!({ "password": PASSWORD }).to_string();
    assert_eq!(last.http.ask("DELETE", "/v1/me", "", Some(&body)).status, 204);
    live.expect_end();
}

/// Runs a statement on the accounts of a server, beside it or after its end.
fn execute(node: &Node, statement: &str) {
    sqlx::any::install_default_drivers();
    let url = format!("sqlite://{}/accounts.sqlite", node.data().display());
    run(async {
        let mut database = <sqlx::AnyConnection as sqlx::Connection>::connect(&url).await;
        let database = database.as_mut().expect("a database");
        database.execute(sqlx::AssertSqlSafe(statement.to_owned())).await.expect("it is taken");
    });
}

fn account_of(log_in: &mut LogIn) -> String {
    let me: Value = log_in.http.get("/v1/me").json;
    me["user"]["id"].as_str().expect("an id").to_owned()
}

#[test]
fn what_was_committed_before_a_crash_is_enforced_after_it() {
    let mut node = node();
    let mut alice = LogIn::new(&node, "alice");
    let account = account_of(&mut alice);
    let mut session = alice.session(&node);
    // As a server leaves it that ends between its two steps, or another one on the same database.
    let removed = |installation: &str| {
        format!(
            "INSERT INTO outbox (topic, version, kind, account, other, friends, blocks, \
             changed_ms, taken_until_ms) VALUES ('device {account} {installation}', 9, \
             'device_removed', '{account}', '{installation}', 0, 0, 1, 0)"
        )
    };
    execute(&node, &removed(&alice.installation));
    session.expect_error(ErrorCode::RevokedToken);
    let done = |node: &Node| {
        until("the outbox is empty", || {
            figure(node, "chatring_accounts_outbox_rows") == 0.0
                && figure(node, "chatring_accounts_projections_total") >= 1.0
        });
    };
    done(&node);

    let second = LogIn::new(&node, "alice");
    second.session(&node).expect_alive();
    node.kill();
    execute(&node, &removed(&second.installation));
    node.restart();
    done(&node);
    // Nobody has ended its log-in, so that the chat alone can refuse it.
    let answer = Http::connect(node.http()).token(&second.token).get("/v1/channels");
    assert_eq!((answer.status, answer.problem()), (401, "revoked_token"), "{answer:?}");
}

/// The channel of a user with another one, by the other's account; its path and its id.
fn open(http: &mut Http, account: &str) -> (String, Cid) {
    let channel = http.post("/v1/channels", &json!({ "kind": "direct", "with": account }));
    assert_eq!(channel.status, 200, "{channel:?}");
    let id = channel.json["id"].as_str().expect("an id");
    let cid = Cid(u64::from_str_radix(id, 16).expect("16 digits"));
    (format!("/v1/channels/{id}"), cid)
}

fn say(http: &mut Http, channel: &str) -> (u16, String) {
    let answer = http.post(&format!("{channel}/messages"), &json!({ "text": "hello" }));
    (answer.status, answer.problem().to_owned())
}

/// Blocks somebody, or lifts that; asks again while the chat is too slow to say that it holds.
fn blocks(http: &mut Http, method: &str, whom: &str) {
    let until = Instant::now() + PATIENCE;
    loop {
        let answer = http.ask(method, &format!("/v1/blocks/{whom}"), "", None);
        match answer.status {
            204 => return,
            status => assert_eq!((status, answer.problem()), (503, "unavailable"), "{answer:?}"),
        }
        assert!(Instant::now() < until, "a block does not hold");
    }
}

/// Tells the threads of a scope to end, also when the test has failed.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn is_blocked(said: &(u16, String)) -> bool {
    *said == (403, "blocked".to_owned())
}

#[test]
fn a_block_holds_on_every_transport_until_it_is_lifted() {
    let mut node = node();
    let (mut alice, mut bob) = (LogIn::new(&node, "alice"), LogIn::new(&node, "bob"));
    // A block before there is a channel counts, too.
    blocks(&mut alice.http, "PUT", "bob");
    let (channel, cid) = open(&mut bob.http, "alice");
    assert_eq!(open(&mut alice.http, "bob").0, channel);
    let mut session = bob.session(&node);
    // Whoever has the user's own name with this deployment is that user, log-in or not.
    let account = account_of(&mut bob);
    let mut minted = Http::connect(node.ws()).token(&node.token(&account));
    for restarted in [false, true] {
        if restarted {
            node.restart();
            session = bob.session(&node);
            minted = Http::connect(node.ws()).token(&node.token(&account));
            bob.http = Http::connect(node.http()).token(&bob.token);
            alice.http = Http::connect(node.http()).token(&alice.token);
        }
        let cmid = 1 + u64::from(restarted);
        assert_eq!(refused(session.send(cid, cmid, 0, b"text")), ErrorCode::Blocked);
        for http in [&mut bob.http, &mut alice.http, &mut minted] {
            let said = say(http, &channel);
            assert!(is_blocked(&said), "{said:?}");
        }
        let typing = bob.http.ask("POST", &format!("{channel}/typing"), "", None);
        assert_eq!((typing.status, typing.problem()), (403, "blocked"), "{typing:?}");
        let history = bob.http.get(&format!("{channel}/messages"));
        assert_eq!(history.json["messages"], json!([]));
    }
    // Nobody else is held up, and teams with users of their own know no blocks.
    let mut carol = Http::connect(node.http()).token(&node.token("carol"));
    carol.get("/v1/sync");
    let (others, _) = open(&mut bob.http, "carol");
    assert_eq!(say(&mut bob.http, &others).0, 201);
    let foreign = carol.ask("PUT", "/v1/blocks/bob", "", None);
    assert_eq!((foreign.status, foreign.problem()), (401, "invalid_token"));

    // Both have to lift theirs.
    blocks(&mut bob.http, "PUT", "alice");
    blocks(&mut alice.http, "DELETE", "bob");
    assert!(is_blocked(&say(&mut bob.http, &channel)));
    blocks(&mut bob.http, "DELETE", "alice");
    assert_eq!(say(&mut bob.http, &channel).0, 201);
    assert!(matches!(session.send(cid, 3u64, 0, b"text"), ServerFrame::Sent { .. }));
}

#[test]
fn no_message_is_stored_between_the_answers_to_a_block_and_its_end() {
    let node = node();
    let (mut alice, mut bob) = (LogIn::new(&node, "alice"), LogIn::new(&node, "bob"));
    let (channel, cid) = open(&mut bob.http, "alice");
    open(&mut alice.http, "bob");
    let (over, stored, held) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let count = |blocked: bool| {
        let counter = if blocked { &held } else { &stored };
        counter.fetch_add(1, Ordering::SeqCst);
    };
    let rises = |what: &str, counter: &AtomicU64| {
        let enough = counter.load(Ordering::SeqCst) + 4;
        until(what, || counter.load(Ordering::SeqCst) >= enough);
    };
    thread::scope(|scope| {
        let _over = AtEnd(&over);
        scope.spawn(|| {
            let mut http = Http::connect(node.http()).token(&bob.token);
            while !over.load(Ordering::SeqCst) {
                let said = say(&mut http, &channel);
                assert!(said.0 == 201 || is_blocked(&said), "{said:?}");
                count(said.0 != 201);
            }
        });
        scope.spawn(|| {
            let mut session = bob.session(&node);
            let (mut cmid, mut base) = (0u64, 0);
            while !over.load(Ordering::SeqCst) {
                cmid += 1;
                match session.send(cid, cmid, base, b"text") {
                    ServerFrame::Sent { seq, .. } => {
                        base = seq.0;
                        count(false);
                    }
                    ServerFrame::Continue { checked_to, .. } => base = checked_to.0,
                    other => {
                        assert_eq!(refused(other), ErrorCode::Blocked);
                        count(true);
                    }
                }
            }
        });
        for _ in 0..15 {
            rises("messages are stored", &stored);
            blocks(&mut alice.http, "PUT", "bob");
            let head = alice.http.get(&channel).json["head"].clone();
            rises("messages are held up", &held);
            assert_eq!(alice.http.get(&channel).json["head"], head);
            blocks(&mut alice.http, "DELETE", "bob");
        }
    });
}
