//! Goal: `chatring chat` works in a pipe: lines go in, messages come out, and it ends when all is
//! stored. Method: the real binary on both ends.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::common::raw::Raw;
use crate::common::{Node, PATIENCE, executable};

/// A running `chatring chat`.
struct Chat {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    remarks: Receiver<String>,
}

impl Chat {
    fn start(node: &Node, user: &str, more: &[&str]) -> Chat {
        let token = node.token(user);
        let mut child = Command::new(executable())
            .args(["chat", "--url", node.ws(), "--token", &token])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the executable starts");
        let lines = lines_of(child.stdout.take().expect("it is piped"));
        let remarks = lines_of(child.stderr.take().expect("it is piped"));
        let stdin = child.stdin.take();
        Chat { child, stdin, lines, remarks }
    }

    fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("it has not ended");
        writeln!(stdin, "{line}").expect("it reads");
    }

    fn hears(&self, line: &str) {
        let heard = self.lines.recv_timeout(PATIENCE).expect("a line in time");
        assert_eq!(heard, line);
    }

    fn is_told(&self, remark: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let told = self.remarks.recv_timeout(left).expect("a remark in time");
            if told.contains(remark) {
                return;
            }
        }
    }

    /// Ends its input and waits until it has ended.
    fn end(&mut self) -> ExitStatus {
        drop(self.stdin.take());
        self.ends()
    }

    fn ends(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of this process") {
                return status;
            }
            assert!(Instant::now() < until, "it has not ended");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Chat {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines_of(pipe: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (lines, lines_out) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    lines_out
}

#[test]
fn alice_waits_for_bob_and_both_chat_until_their_input_ends() {
    let node = Node::start();
    let mut alice = Chat::start(&node, "alice", &["--to", "bob"]);
    // Bob has never signed in; what alice types waits.
    alice.say("hello, bob");
    alice.is_told("waiting until bob has signed in");
    let mut bob = Chat::start(&node, "bob", &[]);
    alice.is_told("talking to bob");
    bob.hears("alice: hello, bob");
    // Without --to lines go to whoever wrote last.
    bob.say("hello, alice");
    alice.hears("bob: hello, alice");
    alice.say("");
    alice.say("grüße \u{1f44b}");
    bob.hears("alice: grüße \u{1f44b}");
    assert_eq!(alice.end().code(), Some(0));
    bob.say("one more");
    assert_eq!(bob.end().code(), Some(0));
    // All of it is stored: the next one sees the history, own lines included.
    let mut again = Chat::start(&node, "alice", &["--to", "bob"]);
    let history = ["alice: hello, bob", "bob: hello, alice", "alice: grüße \u{1f44b}"];
    history.iter().for_each(|line| again.hears(line));
    again.hears("bob: one more");
    assert_eq!(again.end().code(), Some(0));
}

#[test]
fn the_end_of_the_input_waits_until_every_line_is_stored() {
    let node = Node::start();
    Raw::sign_in(&node, "bob").end();
    let mut alice = Chat::start(&node, "alice", &["--to", "bob"]);
    for n in 0..500 {
        alice.say(&format!("line {n}"));
    }
    assert_eq!(alice.end().code(), Some(0));
    let mut bob = Raw::sign_in(&node, "bob");
    assert_eq!(bob.open("alice").head.0, 500);
}

#[test]
fn lines_typed_while_the_server_is_away_are_sent_later() {
    let mut node = Node::start();
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path().join("cache.redb");
    let cache = cache.to_str().expect("text");
    let bob = Chat::start(&node, "bob", &[]);
    let mut alice = Chat::start(&node, "alice", &["--to", "bob", "--cache", cache]);
    alice.say("one");
    bob.hears("alice: one");
    node.kill();
    alice.is_told("not connected");
    alice.say("two");
    node.restart();
    bob.hears("alice: two");
    assert_eq!(alice.end().code(), Some(0));
    let mut again = Chat::start(&node, "alice", &["--to", "bob", "--cache", cache]);
    again.hears("alice: one");
    again.hears("alice: two");
    assert_eq!(again.end().code(), Some(0));
}

#[test]
fn what_cannot_be_sent_is_said_and_makes_the_exit_code_1() {
    let node = Node::start();
    let mut nobody = Chat::start(&node, "alice", &[]);
    nobody.say("to whom?");
    nobody.is_told("nobody has written yet");
    assert_eq!(nobody.end().code(), Some(1));
    Raw::sign_in(&node, "bob").end();
    let mut long = Chat::start(&node, "alice", &["--to", "bob"]);
    long.say(&"x".repeat(70_000));
    long.is_told("not sent");
    assert_eq!(long.end().code(), Some(1));
    let mut oneself = Chat::start(&node, "alice", &["--to", "alice"]);
    oneself.is_told("self_channel");
    assert_eq!(oneself.ends().code(), Some(1));
    let output = Command::new(executable())
        .args(["chat", "--url", node.ws(), "--token", "a.b.c", "--to", "bob"])
        .stdin(Stdio::null())
        .output()
        .expect("the executable runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("token"), "{output:?}");
}
