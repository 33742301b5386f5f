//! Goal: what the accounts decide takes effect in the chat at once. Method: the real binary; people
//! with live WebSockets, long polls and streams of events, and what becomes of these.

use std::thread;
use std::time::{Duration, Instant};

use chatring_wire::{ErrorCode, InstallationId, Subprotocol};
use serde_json::{Value, json};
use sqlx::Executor as _;

use crate::common::raw::{Raw, hello};
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
    let ways: [(&str, EndOne); 2] = [
        ("removed", |kept, gone| {
            let path = format!("/v1/me/devices/{}", gone.installation);
            kept.http.ask("DELETE", &path, "", None).status
        }),
        ("logged out", |_, gone| gone.http.ask("DELETE", "/v1/sessions/current", "", None).status),
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
    // A new log-in is as good as ever, also of the same installation.
    let body = json!({
        "handle": "alice", "password": PASSWORD, "installation": other.installation,
    });
    let again = Http::connect(node.http()).post("/v1/sessions", &body).json;
    other.token = again["access_token"].as_str().expect("a token").to_owned();
    other.session(&node).expect_alive();
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
