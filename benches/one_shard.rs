//! A node of one shard over the reference store, with everything in one thread.

use std::collections::VecDeque;

use bytes::Bytes;
use chatring_core::effect::{Attach, Effect, Identity, Input, Now, SessionId, ShardId};
use chatring_core::kv::mem::{MemStore, SubmitterId};
use chatring_core::kv::{Completion, Outcome, Request, Stamp, Version};
use chatring_core::limits::ShardLimits;
use chatring_core::sabotage::Breaks;
use chatring_core::shard::{Shard, ShardConfig};
use chatring_wire::frame::{MessageKind, RequestId, Send, UserRef};
use chatring_wire::{Cid, ClientFrame, Cmid, InstallationId, Seq, ServerFrame};

pub(crate) const SUBMITTER: SubmitterId = SubmitterId(1);
/// Messages between two acks of a receiver; a session's window holds 256.
const ACK_EVERY_MESSAGES: u64 = 64;
/// Devices, and with them sessions, that a user may have here.
const DEVICES_MAX: u32 = 2_048;
/// Messages after which the clock moves on by a millisecond.
const MESSAGES_PER_MS: u64 = 10;

/// Who answers commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// The reference store, which applies them.
    Store,
    /// Nobody applies them; each is answered at once. What is left is the machine's own work.
    AtOnce,
}

/// The shard, its store, and what it said.
pub struct OneShard {
    pub(crate) shard: Shard,
    pub(crate) store: MemStore,
    answers: Answers,
    pub(crate) now: Now,
    sessions: u64,
    requests: u32,
    said: VecDeque<(SessionId, ServerFrame)>,
    invented: Version,
}

/// Two users who are signed in and have a channel.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub(crate) from: SessionId,
    pub(crate) to: SessionId,
    pub(crate) cid: Cid,
    pub(crate) head: Seq,
}

impl OneShard {
    /// A shard that is ready.
    pub fn new() -> OneShard {
        let now = Now { mono_ms: 1, unix_ms: 1_800_000_000_000 };
        let store = MemStore::new(now.mono_ms, Breaks::NONE);
        let config = ShardConfig {
            shard: ShardId(0),
            shards: 1,
            node: 0,
            incarnation: 1,
            seed: [7; 40],
            kv: store.limits(),
            limits: ShardLimits {
                sends_per_second: u32::MAX,
                sends_burst: u32::MAX,
                devices_max: DEVICES_MAX,
                sessions_per_user_max: DEVICES_MAX,
                ..ShardLimits::default()
            },
            breaks: Breaks::NONE,
        };
        let mut one = OneShard {
            shard: Shard::new(now, config),
            store,
            answers: Answers::Store,
            now,
            sessions: 0,
            requests: 0,
            said: VecDeque::new(),
            invented: Version(u64::MAX / 2),
        };
        one.settle();
        assert!(one.shard.deployment().is_some(), "the shard is ready");
        one
    }

    /// From now on commits are answered this way.
    pub fn set_answers(&mut self, answers: Answers) {
        self.answers = answers;
    }

    /// Signs a user in from one of its devices; gives the session once it is synced, and what the
    /// sync gave. A device has one session at a time.
    pub fn sign_in(&mut self, subject: &str, device: u32, cursor: Bytes) -> (SessionId, Synced) {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let identity = Identity {
            issuer: String::new(),
            subject: subject.to_owned(),
            issued_at_s: 1,
            expires_at_s: u64::MAX / 4_000,
            installation: None,
        };
        let installation = InstallationId((u128::from(device) << 64 | 1).to_be_bytes());
        let attach = Attach { identity, candidate: 0, installation, cursor };
        self.step(Input::Attach { session, attach });
        let mut synced = Synced::default();
        while synced.cursor.is_empty() {
            self.settle();
            let (_, frame) = self.said.pop_front().expect("the sync goes on");
            match frame {
                ServerFrame::PageEnd { request } => {
                    self.step(Input::Frame { session, frame: ClientFrame::More { request } });
                }
                ServerFrame::Head(_) => synced.heads += 1,
                ServerFrame::Page(page) => synced.messages += page.rows.len(),
                ServerFrame::Synced { cursor, .. } => synced.cursor = cursor,
                _ => {}
            }
        }
        (session, synced)
    }

    /// Ends a session.
    pub fn sign_out(&mut self, session: SessionId) {
        self.step(Input::Detached { session });
        self.settle();
    }

    /// Signs two users in and opens their channel.
    pub fn pair(&mut self, one: &str, other: &str) -> Pair {
        let (to, _) = self.sign_in(other, 1, Bytes::new());
        let (from, _) = self.sign_in(one, 1, Bytes::new());
        self.open(from, to, other)
    }

    /// Opens the channel of a session's user with another one, who is signed in.
    pub fn open(&mut self, from: SessionId, to: SessionId, other: &str) -> Pair {
        let with = UserRef::Subject { issuer: String::new(), subject: other.to_owned() };
        let request = self.request();
        let frame = ClientFrame::Open { request, with };
        self.step(Input::Frame { session: from, frame });
        self.settle();
        let opened = self.said.drain(..).find_map(|(_, frame)| match frame {
            ServerFrame::Opened { head, .. } => Some(head),
            _ => None,
        });
        let head = opened.expect("the channel opens");
        Pair { from, to, cid: head.cid, head: head.head }
    }

    /// One message of each pair within one turn of the shard: send in, commit, ack and push out.
    pub fn talk(&mut self, pairs: &mut [Pair], body: &Bytes) {
        for pair in pairs.iter() {
            let request = self.request();
            let mut cmid = [0; 16];
            cmid[..8].copy_from_slice(&pair.cid.0.to_be_bytes());
            cmid[8..].copy_from_slice(&pair.head.0.to_be_bytes());
            let frame = ClientFrame::Send(Send {
                request,
                cid: pair.cid,
                cmid: Cmid(cmid),
                base: pair.head,
                previous: None,
                kind: MessageKind::TEXT,
                body: body.clone(),
            });
            self.step(Input::Frame { session: pair.from, frame });
        }
        self.settle();
        let (mut acks, mut pushes) = (0, 0);
        for (_, frame) in self.said.drain(..) {
            match frame {
                ServerFrame::Sent { .. } => acks += 1,
                ServerFrame::Text { .. } => pushes += 1,
                _ => {}
            }
        }
        assert!(acks == pairs.len() && pushes == pairs.len(), "{acks} acks, {pushes} pushes");
        for pair in pairs {
            pair.head = pair.head.next();
            if pair.head.0.is_multiple_of(ACK_EVERY_MESSAGES) {
                let frame = ClientFrame::Ack { pushes: pair.head.0 };
                self.step(Input::Frame { session: pair.to, frame });
            }
        }
        if u64::from(self.requests).is_multiple_of(MESSAGES_PER_MS) {
            self.now.mono_ms += 1;
            self.now.unix_ms += 1;
            self.store.advance(self.now.mono_ms);
        }
    }

    pub(crate) fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    fn step(&mut self, input: Input) {
        self.shard.step(self.now, input);
    }

    /// Carries effects out until there are none and every request is answered.
    fn settle(&mut self) {
        loop {
            while let Some(effect) = self.shard.poll_effect() {
                match effect {
                    Effect::Send { session, frame } => self.said.push_back((session, frame)),
                    Effect::Store { ticket, request: Request::Commit(_) }
                        if self.answers == Answers::AtOnce =>
                    {
                        self.invented.0 += 1;
                        let stamp = Stamp { version: self.invented, order: 0 };
                        let outcome = Outcome::Committed(stamp);
                        self.shard.step(self.now, Input::Store(Completion { ticket, outcome }));
                    }
                    Effect::Store { ticket, request } => {
                        self.store.submit(SUBMITTER, request, ticket);
                    }
                    Effect::Resume(lane) => self.store.resume(SUBMITTER, lane),
                    effect => panic!("not expected here: {effect:?}"),
                }
            }
            self.store.sync_all();
            let mut answered = false;
            while let Some((_, completion)) = self.store.poll_completion() {
                answered = true;
                self.shard.step(self.now, Input::Store(completion));
            }
            if !answered {
                return;
            }
        }
    }
}

impl Default for OneShard {
    fn default() -> OneShard {
        OneShard::new()
    }
}

/// What a sync gave.
#[derive(Clone, Debug, Default)]
pub struct Synced {
    /// Where to resume.
    pub cursor: Bytes,
    /// Channels.
    pub heads: usize,
    /// Messages.
    pub messages: usize,
}
