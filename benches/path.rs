//! The whole path of our own code: bytes from sockets through WebSocket, codec and machine, and
//! bytes for sockets, all in one thread. Sockets, runtime and store are left out: a commit is
//! answered at the end of the turn that made it.

use bytes::{Bytes, BytesMut};
use chatring_core::effect::{Effect, Input, SessionId};
use chatring_core::kv::{Completion, Outcome, Request, Stamp, Version};
use chatring_node::gateway::GatewayCounters;
use chatring_node::gateway::bench_support::{Item, Opened, Opening, Talk};
use chatring_wire::frame::{MessageKind, RequestId, Send};
use chatring_wire::limits::FRAME_BYTES_MAX;
use chatring_wire::ws::{MaskKey, MessageKind as WsKind, encode_message};
use chatring_wire::{ClientCodec, ClientFrame, Cmid, Outgoing, Seq, Subprotocol};
use rustc_hash::FxHashMap;

use crate::one_shard::{OneShard, Pair, SUBMITTER};

const KEY: MaskKey = MaskKey([0x37, 0xfa, 0x21, 0x3d]);
/// Messages between two acks of a receiver; a session's window holds 256.
const ACK_EVERY_MESSAGES: u64 = 64;

/// What clients send to a node of one shard, and the node.
pub struct Path {
    node: OneShard,
    ends: Vec<End>,
    by_session: FxHashMap<SessionId, usize>,
    dirty: Vec<usize>,
    /// The store's answers to this turn.
    answers: Vec<Completion>,
    version: Version,
    counters: GatewayCounters,
    senders: Vec<usize>,
    receivers: Vec<usize>,
    turns: u64,
    bytes_out: u64,
}

/// One connection, and what its client is going to send.
struct End {
    session: SessionId,
    talk: Box<Talk>,
    dirty: bool,
    script: std::vec::IntoIter<Vec<u8>>,
}

impl Path {
    /// Pairs of users, of which one is going to send `turns` texts of 20 bytes to the other.
    pub fn of_pairs(pairs: usize, turns: u64, subprotocol: Subprotocol) -> Path {
        let mut node = OneShard::new();
        let mut pairs: Vec<Pair> =
            (0..pairs).map(|n| node.pair(&format!("from-{n}"), &format!("to-{n}"))).collect();
        // The first message of a channel looks for earlier ones.
        node.talk(&mut pairs, &body());
        let mut path = Path::over(node);
        for pair in &pairs {
            path.add_sender(pair, turns, subprotocol);
            path.add_receiver(pair.to, turns, subprotocol);
        }
        path
    }

    /// One user that is going to send `turns` texts to another one, who has so many sessions.
    pub fn to_sessions(sessions: u32, turns: u64) -> Path {
        let mut node = OneShard::new();
        let mut pair = node.pair("from", "to");
        node.talk(std::slice::from_mut(&mut pair), &body());
        let mut receivers = vec![pair.to];
        receivers.extend((2..=sessions).map(|n| node.sign_in("to", n, Bytes::new()).0));
        let mut path = Path::over(node);
        path.add_sender(&pair, turns, Subprotocol::Binary);
        for session in receivers {
            path.add_receiver(session, turns, Subprotocol::Binary);
        }
        path
    }

    /// One text of each sender: sends in, commits, acks and pushes out.
    pub fn turn(&mut self) {
        for n in 0..self.senders.len() {
            self.read(self.senders[n]);
        }
        self.end_turn();
        self.turns += 1;
        if self.turns.is_multiple_of(ACK_EVERY_MESSAGES) {
            for n in 0..self.receivers.len() {
                self.read(self.receivers[n]);
            }
            self.end_turn();
        }
        self.node.now.mono_ms += 1;
        self.node.now.unix_ms += 1;
    }

    /// Panics unless every text was acked and pushed to each receiver of its sender.
    pub fn assert_all_came(&self) {
        let senders = self.senders.len() as u64;
        let pushes = senders * self.turns * (self.receivers.len() as u64 / senders);
        assert_eq!(self.counters.frames_out, senders * self.turns + pushes);
        assert!(self.bytes_out > self.counters.frames_out * 8, "{} bytes", self.bytes_out);
    }

    fn over(node: OneShard) -> Path {
        Path {
            node,
            ends: Vec::new(),
            by_session: FxHashMap::default(),
            dirty: Vec::new(),
            answers: Vec::new(),
            version: Version(u64::MAX / 2),
            counters: GatewayCounters::default(),
            senders: Vec::new(),
            receivers: Vec::new(),
            turns: 0,
            bytes_out: 0,
        }
    }

    fn add_sender(&mut self, pair: &Pair, turns: u64, subprotocol: Subprotocol) {
        // Above all numbers that were used while the channel was made.
        let first = self.node.request().0 + 1_000_000;
        let frame = |turn: u64| {
            let mut cmid = [0; 16];
            cmid[..8].copy_from_slice(&pair.cid.0.to_be_bytes());
            cmid[8..].copy_from_slice(&(pair.head.0 + turn).to_be_bytes());
            ClientFrame::Send(Send {
                request: RequestId(first + turn as u32),
                cid: pair.cid,
                cmid: Cmid(cmid),
                base: Seq(pair.head.0 + turn),
                previous: None,
                kind: MessageKind::TEXT,
                body: body(),
            })
        };
        let end = self.add_end(pair.from, subprotocol, (0..turns).map(frame));
        self.senders.push(end);
    }

    fn add_receiver(&mut self, session: SessionId, turns: u64, subprotocol: Subprotocol) {
        let acks = (1..=turns / ACK_EVERY_MESSAGES)
            .map(|n| ClientFrame::Ack { pushes: n * ACK_EVERY_MESSAGES });
        let end = self.add_end(session, subprotocol, acks);
        self.receivers.push(end);
    }

    fn add_end(
        &mut self,
        session: SessionId,
        subprotocol: Subprotocol,
        frames: impl Iterator<Item = ClientFrame>,
    ) -> usize {
        let mut codec = ClientCodec::new(subprotocol, FRAME_BYTES_MAX);
        let kind = if subprotocol.is_text() { WsKind::Text } else { WsKind::Binary };
        let script: Vec<Vec<u8>> = frames
            .map(|frame| {
                let (mut out, mut bytes) = (Outgoing::new(), BytesMut::new());
                codec.encode(&frame, &mut out).expect("it can be encoded");
                out.messages().for_each(|m| encode_message(&mut bytes, kind, m, Some(KEY)));
                bytes.to_vec()
            })
            .collect();
        self.by_session.insert(session, self.ends.len());
        let (talk, script) = (upgraded(subprotocol), script.into_iter());
        self.ends.push(End { session, talk, dirty: false, script });
        self.ends.len() - 1
    }

    fn read(&mut self, n: usize) {
        let bytes = self.ends[n].script.next().expect("no more turns than were announced");
        let mut input = &bytes[..];
        loop {
            let end = &mut self.ends[n];
            let session = end.session;
            match end.talk.next(&mut input, None, &mut self.counters) {
                Item::Nothing => return,
                Item::Handled => {}
                Item::Frame(frame) => self.step(Input::Frame { session, frame }),
                Item::Finished | Item::Wrong(_) => panic!("the script is right"),
            }
        }
    }

    fn step(&mut self, input: Input) {
        self.node.shard.step(self.node.now, input);
        while let Some(effect) = self.node.shard.poll_effect() {
            match effect {
                Effect::Send { session, frame } => {
                    let n = self.by_session[&session];
                    self.ends[n].talk.send(&frame).expect("it can be encoded");
                    self.counters.frames_out += 1;
                    if !std::mem::replace(&mut self.ends[n].dirty, true) {
                        self.dirty.push(n);
                    }
                }
                Effect::Store { ticket, request: Request::Commit(_) } => {
                    self.version.0 += 1;
                    let stamp = Stamp { version: self.version, order: 0 };
                    let outcome = Outcome::Committed(stamp);
                    self.answers.push(Completion { ticket, outcome });
                }
                // The lane looks at its fence from time to time.
                Effect::Store { ticket, request } => {
                    self.node.store.submit(SUBMITTER, request, ticket);
                    while let Some((_, completion)) = self.node.store.poll_completion() {
                        self.answers.push(completion);
                    }
                }
                effect => panic!("not expected here: {effect:?}"),
            }
        }
    }

    fn end_turn(&mut self) {
        while !self.answers.is_empty() {
            for answer in std::mem::take(&mut self.answers) {
                self.step(Input::Store(answer));
            }
        }
        if self.node.shard.deadline_ms().is_some_and(|at| at <= self.node.now.mono_ms) {
            self.step(Input::Tick);
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        for n in dirty.drain(..) {
            let end = &mut self.ends[n];
            end.dirty = false;
            let mut out = BytesMut::new();
            end.talk.flush(&mut out);
            self.bytes_out += out.len() as u64;
        }
        self.dirty = dirty;
    }
}

fn body() -> Bytes {
    Bytes::from_static(b"twenty bytes of text")
}

fn upgraded(subprotocol: Subprotocol) -> Box<Talk> {
    let request = format!(
        "GET /v1/ws HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {}\r\n\r\n",
        subprotocol.name()
    );
    let mut out = BytesMut::new();
    match Opening::default().advance(request.as_bytes(), FRAME_BYTES_MAX, &mut out) {
        Opened::Upgraded(talk, rest) if rest.is_empty() => talk,
        other => panic!("a good request: {other:?}"),
    }
}
