//! Behaviours of an API server's end, against a node of the test's own: real sockets, no shards.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use chatring_core::call::{Again, CallSend, CallSync};
use chatring_wire::frame::MessageKind;
use chatring_wire::link::format1::{Outcome, Request, ToApi, ToNode, Welcome};
use chatring_wire::link::{
    Agreed, ClusterKey, Formats, KEY_BYTES, NONCE_BYTES, NodeHandshake, OPENING_BYTES, PROOF_BYTES,
};
use chatring_wire::{Cid, Cmid, Seq};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::limits::UNSENT_BYTES_HIGH;
use super::*;
use crate::metrics::MetricValue;

/// Time in which whatever a test waits for must happen.
const PATIENCE: Duration = Duration::from_secs(30);

fn key(byte: u8) -> ClusterKey {
    ClusterKey::new(&[byte; KEY_BYTES])
}

/// An API server's end, and the listener of its node.
struct World {
    links: Links,
    node: TcpListener,
    keeping: JoinHandle<()>,
}

impl World {
    async fn new(calls_max: usize) -> World {
        let node = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let config = LinksConfig {
            node: node.local_addr().expect("bound").to_string(),
            key: key(1),
            token_key: "ours".to_owned(),
            calls_max,
        };
        let links = Links::new(config);
        let keeping = tokio::spawn(links.clone().keep());
        World { links, node, keeping }
    }

    async fn accept(&self) -> TcpStream {
        let accepted = tokio::time::timeout(PATIENCE, self.node.accept()).await;
        accepted.expect("it comes in time").expect("a connection").0
    }

    /// The node's end of the next link, which is up at the other end, too.
    async fn link(&self) -> NodeEnd {
        let mut node = NodeEnd::of(self.accept().await, &key(1), Formats::OWN, "ours").await;
        assert!(node.agreed.is_some(), "{:?}", node.refused);
        node.flush().await;
        self.until(|links| links.is_up()).await;
        node
    }

    async fn until(&self, holds: impl Fn(&Links) -> bool) {
        until(|| holds(&self.links)).await;
    }

    fn call(&self, request: CallRequest) -> JoinHandle<CallResult> {
        let shards = Shards::Linked(self.links.clone());
        tokio::spawn(async move { shards.call(identity(), CallDevice::None, request).await })
    }

    fn figure(&self, name: &str) -> u64 {
        let name = format!("chatring_link_{name}");
        let metric = self.links.metrics().into_iter().find(|metric| metric.name == name);
        match metric.expect("it is there").value {
            MetricValue::Counter(value) | MetricValue::Gauge(value) => value,
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

/// A node's end of a link.
struct NodeEnd {
    stream: TcpStream,
    agreed: Option<Agreed>,
    refused: Option<LinkError>,
    received: BytesMut,
    out: BytesMut,
}

impl NodeEnd {
    async fn of(stream: TcpStream, key: &ClusterKey, formats: Formats, token_key: &str) -> NodeEnd {
        let (received, out) = (BytesMut::new(), BytesMut::new());
        let mut node = NodeEnd { stream, agreed: None, refused: None, received, out };
        match node.shake_hands(key, formats).await {
            Ok(agreed) => node.agreed = agreed,
            Err(refused) => node.refused = Some(refused),
        }
        if node.agreed.is_some() {
            node.say(&ToApi::Welcome(Welcome {
                ws: "ws://node".to_owned(),
                version: "9".to_owned(),
                token_key: token_key.to_owned(),
                durability: 1,
                calls_max: 1_000_000,
            }));
        }
        node
    }

    /// None if the other side has closed.
    async fn shake_hands(
        &mut self,
        key: &ClusterKey,
        formats: Formats,
    ) -> Result<Option<Agreed>, LinkError> {
        let mut opening = [0; OPENING_BYTES];
        self.stream.read_exact(&mut opening).await.expect("an opening");
        let answered = NodeHandshake::answer(key, formats, &opening, &[5; NONCE_BYTES])?;
        self.stream.write_all(&answered.reply).await.expect("it is taken");
        let handshake = answered.next?;
        let mut proof = [0; PROOF_BYTES];
        match self.stream.read_exact(&mut proof).await {
            Ok(_) => handshake.finish(&proof).map(Some),
            Err(_) => Ok(None),
        }
    }

    fn say(&mut self, what: &ToApi) {
        let agreed = self.agreed.as_mut().expect("a link");
        agreed.writer.put(&what.archive(), &mut self.out).expect("short");
    }

    async fn flush(&mut self) {
        let out = self.out.split();
        self.stream.write_all(&out).await.expect("it is taken");
    }

    async fn hear(&mut self) -> ToNode {
        tokio::time::timeout(PATIENCE, self.next()).await.expect("it comes in time")
    }

    async fn next(&mut self) -> ToNode {
        loop {
            let agreed = self.agreed.as_mut().expect("a link");
            if let Some(archive) = agreed.reader.next(&mut self.received).expect("good") {
                match ToNode::read(&archive).expect("good") {
                    ToNode::Ping => {
                        self.say(&ToApi::Pong);
                        self.flush().await;
                    }
                    other => return other,
                }
            } else {
                let got = self.stream.read_buf(&mut self.received).await.expect("bytes");
                assert!(got > 0, "the link has ended");
            }
        }
    }

    async fn hear_call(&mut self) -> (u64, Request) {
        match self.hear().await {
            ToNode::Call(call) => (call.ticket, call.request),
            other => panic!("{other:?}"),
        }
    }
}

fn identity() -> Identity {
    Identity {
        issuer: String::new(),
        subject: "alice".to_owned(),
        issued_at_s: 1,
        expires_at_s: 2,
        installation: None,
    }
}

fn send(body: Bytes) -> CallRequest {
    let (cid, cmid) = (Cid(7), Cmid([8; 16]));
    CallRequest::Send(CallSend { cid, cmid, base: None, kind: MessageKind::TEXT, body })
}

fn wait_for_news() -> CallRequest {
    CallRequest::Sync(CallSync { cursor: Bytes::new(), limit: 0, wait_ms: 60_000 })
}

async fn until(holds: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < end, "it did not come true in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(test);
}

#[test]
fn answers_find_their_calls_in_whatever_order_they_come() {
    run(async {
        let world = World::new(100).await;
        let mut node = world.link().await;
        let calls: Vec<_> = (0..5).map(|n| world.call(send(Bytes::from(n.to_string())))).collect();
        let mut heard = Vec::new();
        for _ in 0..5 {
            let (ticket, request) = node.hear_call().await;
            let Request::Send(send) = request else { panic!("{request:?}") };
            heard.push((ticket, send.body[0] - b'0'));
        }
        for (ticket, n) in heard.into_iter().rev() {
            let outcome = Outcome::Sent { seq: n.into(), time_ms: 9 };
            node.say(&ToApi::Answer { ticket, outcome });
        }
        node.flush().await;
        for (n, call) in calls.into_iter().enumerate() {
            let sent = Answer::Sent { seq: Seq(n as u64), time_ms: 9, again: Again::First };
            assert_eq!(call.await.expect("no panic"), Ok(sent));
        }
        assert_eq!(world.links.node().ws.as_deref(), Some("ws://node"));
        assert_eq!(world.figure("calls_in_flight"), 0);
    });
}

#[test]
fn a_call_that_nobody_waits_for_any_more_is_withdrawn() {
    run(async {
        let world = World::new(100).await;
        let mut node = world.link().await;
        let waiting = world.call(wait_for_news());
        let (ticket, _) = node.hear_call().await;
        waiting.abort();
        assert_eq!(node.hear().await, ToNode::Withdraw { ticket });
        assert_eq!(world.figure("calls_in_flight"), 0);
        // An answer that was on its way is nobody's.
        node.say(&ToApi::Answer { ticket, outcome: Outcome::Done });
        node.flush().await;
        let after = world.call(CallRequest::SignIn);
        let (ticket, _) = node.hear_call().await;
        node.say(&ToApi::Answer { ticket, outcome: Outcome::Done });
        node.flush().await;
        assert_eq!(after.await.expect("no panic"), Ok(Answer::Done));
    });
}

#[test]
fn a_broken_link_leaves_sends_unknown_and_all_else_unavailable_and_is_made_again() {
    run(async {
        let world = World::new(100).await;
        let without = world.call(CallRequest::SignIn).await.expect("no panic");
        assert_eq!(without.expect_err("no link").code, Ok(ErrorCode::Unavailable));
        let mut node = world.link().await;
        let (sent, waits) = (world.call(send(Bytes::new())), world.call(wait_for_news()));
        node.hear_call().await;
        node.hear_call().await;
        drop(node);
        assert_eq!(sent.await.expect("no panic"), Ok(Answer::Unknown));
        let failure = waits.await.expect("no panic").expect_err("no answer");
        assert_eq!(failure.code, Ok(ErrorCode::Unavailable));
        assert!(failure.retry_after_ms.is_some(), "{failure:?}");
        let mut node = world.link().await;
        let again = world.call(send(Bytes::new()));
        let (ticket, _) = node.hear_call().await;
        node.say(&ToApi::Answer { ticket, outcome: Outcome::SentBefore { seq: 1, time_ms: 2 } });
        node.flush().await;
        let before = Answer::Sent { seq: Seq(1), time_ms: 2, again: Again::Repeat };
        assert_eq!(again.await.expect("no panic"), Ok(before));
        assert_eq!((world.figure("made"), world.figure("calls_broken")), (2, 2));
    });
}

#[test]
fn a_node_that_takes_nothing_costs_a_bounded_amount_and_callers_are_told_busy() {
    run(async {
        let world = World::new(1_000_000).await;
        let node = world.link().await;
        let body = Bytes::from(vec![b'x'; 64 * 1024]);
        let mut calls = Vec::new();
        // Many times more than the sockets hold.
        for _ in 0..1_000 {
            calls.push(world.call(send(body.clone())));
            tokio::task::yield_now().await;
        }
        until(|| world.figure("calls_refused") > 0).await;
        let most = UNSENT_BYTES_HIGH as u64 + 80 * 1024;
        assert!(world.figure("unsent_bytes") <= most, "{}", world.figure("unsent_bytes"));
        let mut busy = 0;
        for call in calls {
            if call.is_finished() {
                let failure = call.await.expect("no panic").expect_err("nobody answers");
                assert_eq!(failure.code, Ok(ErrorCode::Busy));
                busy += 1;
            } else {
                call.abort();
            }
        }
        assert!(busy > 500, "{busy}");
        drop(node);
    });
}

#[test]
fn no_more_calls_are_under_way_than_may_be() {
    run(async {
        let world = World::new(3).await;
        let mut node = world.link().await;
        let parked: Vec<_> = (0..3).map(|_| world.call(wait_for_news())).collect();
        let (ticket, _) = node.hear_call().await;
        until(|| world.figure("calls_in_flight") == 3).await;
        let refused = world.call(CallRequest::SignIn).await.expect("no panic");
        let failure = refused.expect_err("no room");
        assert_eq!((failure.code, failure.retry_after_ms.is_some()), (Ok(ErrorCode::Busy), true));
        node.say(&ToApi::Answer { ticket, outcome: Outcome::Done });
        node.flush().await;
        until(|| world.figure("calls_in_flight") == 2).await;
        let _taken = world.call(CallRequest::SignIn);
        until(|| world.figure("calls_in_flight") == 3).await;
        drop(parked);
    });
}

#[test]
fn nodes_with_another_key_another_format_or_another_token_key_are_refused() {
    run(async {
        let world = World::new(10).await;
        let other = NodeEnd::of(world.accept().await, &key(2), Formats::OWN, "ours").await;
        assert!(other.agreed.is_none() && other.refused.is_none(), "it closes before its proof");
        let newer = Formats { newest: 3, oldest: 2 };
        let refused = NodeEnd::of(world.accept().await, &key(1), newer, "ours").await.refused;
        assert!(matches!(refused, Some(LinkError::NoCommonFormat { .. })), "{refused:?}");
        let mut theirs = NodeEnd::of(world.accept().await, &key(1), Formats::OWN, "theirs").await;
        theirs.flush().await;
        until(|| world.figure("failed") == 3).await;
        assert!(!world.links.is_up());
        world.link().await;
    });
}

#[test]
fn whatever_a_node_says_wrong_ends_the_link_and_nothing_else() {
    run(async {
        let world = World::new(10).await;
        for wrong in 0..4 {
            let mut node = world.link().await;
            match wrong {
                0 => node.out.extend_from_slice(b"HTTP/1.1 200 OK\r\n\r\n"),
                1 => {
                    let agreed = node.agreed.as_mut().expect("a link");
                    agreed.writer.put(b"no archive", &mut node.out).expect("short");
                }
                2 => {
                    node.say(&ToApi::Pong);
                    let last = node.out.len() - 1;
                    node.out[last] ^= 1;
                }
                _ => {
                    let mut big = BytesMut::from(&b"CRLK\x01\0\0\0"[..]);
                    big.extend_from_slice(&u32::MAX.to_le_bytes());
                    big.extend_from_slice(&[0; 4]);
                    node.out = big;
                }
            }
            let waits = world.call(wait_for_news());
            node.hear_call().await;
            node.flush().await;
            let failure = waits.await.expect("no panic").expect_err("the link has ended");
            assert_eq!(failure.code, Ok(ErrorCode::Unavailable));
        }
        world.link().await;
    });
}
