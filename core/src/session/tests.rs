//! A shard over the reference store, whose answers can be held back.

use chatring_wire::frame::{MessageKind, UserRef};
use chatring_wire::{InstallationId, Seq};

use super::*;
use crate::effect::{Input, Now, ShardId};
use crate::kv::mem::{MemStore, SubmitterId};
use crate::kv::{Request, Ticket};
use crate::limits::ShardLimits;
use crate::sabotage::Breaks;
use crate::shard::ShardConfig;

const STORE: SubmitterId = SubmitterId(1);
const ALICE: SessionId = SessionId(1);
const BOB: SessionId = SessionId(2);

struct Node {
    shard: Shard,
    store: MemStore,
    now: Now,
    /// What the store was not given yet.
    held: Vec<(Ticket, Request)>,
    said: Vec<(u64, ServerFrame)>,
    closed: Vec<SessionId>,
}

impl Node {
    /// Alice and Bob are signed in and have a channel.
    fn new() -> (Node, Cid) {
        let now = Now { mono_ms: 1, unix_ms: 1 };
        let store = MemStore::new(now.mono_ms, Breaks::NONE);
        let config = ShardConfig {
            shard: ShardId(0),
            shards: 1,
            node: 0,
            incarnation: 1,
            seed: [7; 40],
            kv: store.limits(),
            limits: ShardLimits::default(),
            breaks: Breaks::NONE,
        };
        let shard = Shard::new(now, config);
        let mut node =
            Node { shard, store, now, held: Vec::new(), said: Vec::new(), closed: Vec::new() };
        node.step(Input::Tick);
        node.settle();
        for (session, subject) in [(ALICE, "alice"), (BOB, "bob")] {
            let identity = Identity {
                issuer: String::new(),
                subject: subject.to_owned(),
                issued_at_s: 1,
                expires_at_s: 1 << 40,
                installation: None,
            };
            let installation = InstallationId([session.0 as u8; 16]);
            let attach = Attach { identity, candidate: 0, installation, cursor: Bytes::new() };
            node.step(Input::Attach { session, attach });
            node.settle();
        }
        let with = UserRef::Subject { issuer: String::new(), subject: "bob".to_owned() };
        node.says(ClientFrame::Open { request: RequestId(1), with });
        node.settle();
        let opened = node.said.iter().find_map(|(_, frame)| match frame {
            ServerFrame::Opened { head, .. } => Some(head.cid),
            _ => None,
        });
        (node, opened.expect("the channel opens"))
    }

    fn step(&mut self, input: Input) {
        self.shard.step(self.now, input);
        while let Some(effect) = self.shard.poll_effect() {
            match effect {
                Effect::Send { session: ALICE, frame } => {
                    self.said.push((self.now.mono_ms, frame));
                }
                Effect::Store { ticket, request } => self.held.push((ticket, request)),
                Effect::Close { session, .. } => self.closed.push(session),
                _ => {}
            }
        }
    }

    /// Alice says something.
    fn says(&mut self, frame: ClientFrame) {
        self.step(Input::Frame { session: ALICE, frame });
    }

    fn sends(&mut self, cid: Cid, request: u32) {
        self.says(ClientFrame::Send(Send {
            request: RequestId(request),
            cid,
            cmid: Cmid([request as u8; 16]),
            base: Seq(0),
            previous: None,
            kind: MessageKind::TEXT,
            body: Bytes::from_static(b"hello"),
        }));
    }

    /// Lets the store answer until nothing is asked any more.
    fn settle(&mut self) {
        while !self.held.is_empty() {
            for (ticket, request) in std::mem::take(&mut self.held) {
                self.store.submit(STORE, request, ticket);
            }
            self.store.sync_all();
            while let Some((_, completion)) = self.store.poll_completion() {
                self.step(Input::Store(completion));
            }
        }
    }

    /// Time passes; the shard is stepped when it wants to be.
    fn pass_until(&mut self, mono_ms: u64) {
        while let Some(at) = self.shard.deadline_ms().filter(|at| *at <= mono_ms) {
            self.now.mono_ms = at;
            self.step(Input::Tick);
        }
        self.now.mono_ms = mono_ms;
    }

    fn unknown(&self) -> Vec<(u64, RequestId)> {
        let unknown = self.said.iter().filter_map(|(at, frame)| match frame {
            ServerFrame::Unknown { request } => Some((*at, *request)),
            _ => None,
        });
        unknown.collect()
    }
}

#[test]
fn each_send_that_stays_open_is_told_so_after_its_own_time() {
    let (mut node, cid) = Node::new();
    node.pass_until(1_000);
    node.sends(cid, 2);
    node.settle();
    node.pass_until(5_000);
    node.sends(cid, 3);
    node.pass_until(6_000);
    node.sends(cid, 4);
    node.pass_until(30_000);
    node.sends(cid, 5);
    node.pass_until(60_000);
    let after = |at: u64, request| (at + SEND_OPEN_MS_MAX, RequestId(request));
    assert_eq!(node.unknown(), [after(5_000, 3), after(6_000, 4), after(30_000, 5)]);
}

#[test]
fn a_token_bound_to_an_installation_is_good_for_no_other() {
    let (mut node, _) = Node::new();
    let bound = |installation: u8| Identity {
        issuer: String::new(),
        subject: "alice".to_owned(),
        issued_at_s: 2,
        expires_at_s: 1 << 40,
        installation: Some(InstallationId([installation; 16])),
    };
    for (session, bound_to, installation) in [(7, 7, 8), (8, 9, 9)] {
        let identity = bound(bound_to);
        let installation = InstallationId([installation; 16]);
        let attach = Attach { identity, candidate: 0, installation, cursor: Bytes::new() };
        node.step(Input::Attach { session: SessionId(session), attach });
        node.settle();
    }
    assert_eq!(node.closed, [SessionId(7)]);

    // Alice's own installation has her session's number in each byte.
    for (request, bound_to) in [(2, ALICE.0 as u8), (3, 9), (4, 99)] {
        let request = RequestId(request);
        let identity = Ok(bound(bound_to));
        node.step(Input::Refreshed { session: ALICE, request, identity });
    }
    let answers = node.said.iter().filter_map(|(_, frame)| match frame {
        ServerFrame::Done { request } => Some((request.0, None)),
        ServerFrame::Refused { request, error } => Some((request.0, Some(error.code))),
        _ => None,
    });
    let refused = Some(Ok(chatring_wire::ErrorCode::InvalidToken));
    assert_eq!(answers.collect::<Vec<_>>(), [(2, None), (3, refused), (4, refused)]);
}

#[test]
fn appends_that_are_held_go_to_the_store_as_one_group() {
    let (mut node, cid) = Node::new();
    node.sends(cid, 2);
    node.settle();
    node.shard.hold_appends(true);
    node.sends(cid, 3);
    node.sends(cid, 4);
    assert!(node.held.is_empty(), "{:?}", node.held);
    node.shard.hold_appends(false);
    node.step(Input::Tick);
    assert_eq!(node.held.len(), 1, "{:?}", node.held);
    node.settle();
    let sent = node.said.iter().filter_map(|(_, frame)| match frame {
        ServerFrame::Sent { request, .. } => Some(request.0),
        _ => None,
    });
    assert_eq!(sent.collect::<Vec<_>>(), [2, 3, 4]);
}
