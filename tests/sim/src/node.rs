//! The node: its shards, the store behind a fault wrapper, and what connects them.

use std::collections::VecDeque;

use chatring_core::call::{Call, CallId, CallResult};
use chatring_core::effect::{Attach, Effect, FatalCause, Identity, Input, Now, SessionId, ShardId};
use chatring_core::kv::faulty::Faulty;
use chatring_core::kv::mem::{MemStore, SubmitterId};
use chatring_core::kv::prng::Prng;
use chatring_core::placement::shard_of;
use chatring_core::shard::{Shard, ShardConfig};
use chatring_wire::frame::Hello;
use chatring_wire::{ClientFrame, CloseCode, ServerFrame};
use rustc_hash::FxHashMap;

use crate::plan::{Plan, StoreLife};

/// What the node says to a connection.
#[derive(Clone, Debug)]
pub enum Said {
    /// A frame.
    Frame(ServerFrame),
    /// A close.
    Close(CloseCode),
}

/// The node, dead or alive.
pub struct Node {
    /// The store; its disk survives every crash.
    pub store: MemStore,
    /// What goes wrong on the way to it.
    pub faulty: Faulty,
    shards: Vec<Shard>,
    homes: FxHashMap<SessionId, usize>,
    starts: u32,
    mail: VecDeque<(usize, Input)>,
    /// Messages between shards that are still under way, by time, in order for each pair.
    under_way: Vec<(u64, usize, Input)>,
    said: VecDeque<(SessionId, Said)>,
    call_homes: FxHashMap<CallId, usize>,
    answers: VecDeque<(CallId, CallResult)>,
    failed: Option<FatalCause>,
}

impl Node {
    /// A node that was never started, over an empty store.
    pub fn new(plan: &Plan) -> Node {
        Node {
            store: MemStore::new(0, plan.breaks),
            faulty: Faulty::new(plan.seed, plan.faults.clone()),
            shards: Vec::new(),
            homes: FxHashMap::default(),
            starts: 0,
            mail: VecDeque::new(),
            under_way: Vec::new(),
            said: VecDeque::new(),
            call_homes: FxHashMap::default(),
            answers: VecDeque::new(),
            failed: None,
        }
    }

    /// Starts the process.
    pub fn start(&mut self, now: Now, plan: &Plan, dice: &mut Prng) {
        self.starts += 1;
        self.failed = None;
        let mut seed = [0; 40];
        for byte in &mut seed {
            *byte = dice.next_u64() as u8;
        }
        self.shards = (0..plan.shards)
            .map(|shard| {
                let config = ShardConfig {
                    shard: ShardId(shard),
                    shards: plan.shards,
                    node: 0,
                    incarnation: dice.next_u64() | 1,
                    seed,
                    kv: plan.store_limits(self.store.limits()),
                    limits: plan.limits.clone(),
                    breaks: plan.breaks,
                };
                Shard::new(now, config)
            })
            .collect();
    }

    /// Kills the process, and with it the store if they share one.
    pub fn kill(&mut self, plan: &Plan, dice: &mut Prng) {
        let submitters: Vec<_> = (0..self.shards.len()).map(|n| self.submitter(n)).collect();
        self.shards.clear();
        self.homes.clear();
        self.mail.clear();
        self.under_way.clear();
        self.said.clear();
        self.call_homes.clear();
        self.answers.clear();
        match plan.store_life {
            StoreLife::WithNode => {
                let durable = dice.below(self.store.syncing() as u64 + 1) as usize;
                self.store.crash(durable);
                self.faulty.crash();
            }
            StoreLife::Apart => {
                for submitter in submitters {
                    self.faulty.forget(submitter);
                    self.store.forget(submitter);
                }
            }
        }
    }

    /// Whether the process runs and takes connections.
    pub fn is_up(&self) -> bool {
        !self.shards.is_empty() && self.shards.iter().all(|shard| shard.deployment().is_some())
    }

    /// Whether the process runs.
    pub fn is_running(&self) -> bool {
        !self.shards.is_empty()
    }

    /// Whether a shard asked for the end of the process.
    pub fn failure(&self) -> Option<FatalCause> {
        self.failed
    }

    /// A connection said `hello`: hands it to the shard that owns the user.
    pub fn hello(&mut self, session: SessionId, hello: Hello) {
        let identity = Identity {
            issuer: String::new(),
            subject: hello.token,
            issued_at_s: 1,
            expires_at_s: u64::MAX / 4_000,
            installation: None,
        };
        let attach = Attach {
            identity,
            candidate: 0,
            installation: hello.installation,
            cursor: hello.cursor,
        };
        let Some(deployment) = self.shards.first().and_then(Shard::deployment) else { return };
        let uid = deployment.key.uid("", &attach.identity.subject, 0);
        let home = usize::from(shard_of(uid.vshard(), self.shards.len() as u16).0);
        self.homes.insert(session, home);
        self.mail.push_back((home, Input::Attach { session, attach }));
    }

    /// A connection said something else.
    pub fn frame(&mut self, session: SessionId, frame: ClientFrame) {
        if let Some(home) = self.homes.get(&session) {
            self.mail.push_back((*home, Input::Frame { session, frame }));
        }
    }

    /// Whether a connection has said `hello`, and neither side has ended it.
    pub fn has(&self, session: SessionId) -> bool {
        self.homes.contains_key(&session)
    }

    /// The node learns that a connection is gone.
    pub fn detached(&mut self, session: SessionId) {
        if let Some(home) = self.homes.remove(&session) {
            self.mail.push_back((home, Input::Detached { session }));
        }
    }

    /// Somebody without a session asks for something.
    pub fn call(&mut self, call: CallId, what: Call) {
        let Some(deployment) = self.shards.first().and_then(Shard::deployment) else { return };
        let uid = deployment.key.uid("", &what.identity.subject, 0);
        let home = usize::from(shard_of(uid.vshard(), self.shards.len() as u16).0);
        self.call_homes.insert(call, home);
        self.mail.push_back((home, Input::Call { call, what: Box::new(what) }));
    }

    /// The node learns that nobody waits for a call any more.
    pub fn call_gone(&mut self, call: CallId) {
        if let Some(home) = self.call_homes.remove(&call) {
            self.mail.push_back((home, Input::CallGone { call }));
        }
    }

    /// The next answer to a call.
    pub fn poll_answer(&mut self) -> Option<(CallId, CallResult)> {
        let answer = self.answers.pop_front()?;
        self.call_homes.remove(&answer.0);
        Some(answer)
    }

    /// What the node says, in order.
    pub fn poll_said(&mut self) -> Option<(SessionId, Said)> {
        self.said.pop_front()
    }

    /// When the node has something to do by itself.
    pub fn deadline_ms(&self) -> Option<u64> {
        let shards = self.shards.iter().filter_map(Shard::deadline_ms);
        let under_way = self.under_way.iter().map(|(at, ..)| *at);
        shards.chain(self.faulty.deadline_ms()).chain(under_way).min()
    }

    /// Does everything that is due. Inputs of different shards are taken in a drawn order.
    pub fn work(&mut self, now: Now, dice: &mut Prng) {
        self.store.advance(now.mono_ms);
        self.faulty.advance(now.mono_ms);
        for index in 0..self.shards.len() {
            if self.shards[index].deadline_ms().is_some_and(|at| at <= now.mono_ms) {
                self.mail.push_back((index, Input::Tick));
            }
        }
        let (due, later) = self.under_way.drain(..).partition(|(at, ..)| *at <= now.mono_ms);
        self.under_way = later;
        let due: Vec<_> = due;
        self.mail.extend(due.into_iter().map(|(_, to, input)| (to, input)));
        loop {
            self.faulty.carry(&mut self.store);
            while let Some((submitter, completion)) = self.faulty.poll_completion() {
                if let Some(index) = self.shard_of_submitter(submitter) {
                    self.mail.push_back((index, Input::Store(completion)));
                }
            }
            // A turn of a shard takes in all that is there for it.
            let Some((first, _)) = self.mail.front() else { break };
            let turn = if dice.happens(500) { *first } else { self.some_shard(dice) };
            let (mine, others): (VecDeque<_>, VecDeque<_>) =
                self.mail.drain(..).partition(|(index, _)| *index == turn);
            self.mail = others;
            for (index, input) in mine {
                self.shards[index].step(now, input);
                if dice.happens(100) {
                    self.drain(turn, now, dice);
                }
            }
            // One that has more to do than time leaves its appends for a later turn.
            self.shards[turn].hold_appends(dice.happens(300));
            self.drain(turn, now, dice);
        }
        // What nobody stepped may still have something to flush.
        for index in 0..self.shards.len() {
            self.shards[index].hold_appends(false);
            self.drain(index, now, dice);
        }
    }

    fn some_shard(&self, dice: &mut Prng) -> usize {
        let at = dice.below(self.mail.len() as u64) as usize;
        self.mail[at].0
    }

    fn drain(&mut self, index: usize, now: Now, dice: &mut Prng) {
        while let Some(effect) = self.shards[index].poll_effect() {
            match effect {
                Effect::Send { session, frame } => {
                    self.said.push_back((session, Said::Frame(frame)));
                }
                Effect::Close { session, code } => {
                    self.homes.remove(&session);
                    self.said.push_back((session, Said::Close(code)));
                }
                Effect::Store { ticket, request } => {
                    self.faulty.submit(self.submitter(index), request, ticket);
                }
                Effect::Resume(lane) => self.faulty.resume(self.submitter(index), lane),
                Effect::ToShard { to, messages } => {
                    let from = ShardId(index as u16);
                    let (to, input) = (usize::from(to.0), Input::Shard { from, messages });
                    self.mail_to_shard(from, to, input, now, dice);
                }
                Effect::Rehome { session, attach, to } => {
                    self.homes.insert(session, usize::from(to.0));
                    self.mail.push_back((usize::from(to.0), Input::Attach { session, attach }));
                }
                Effect::Answer { call, answer } => self.answers.push_back((call, *answer)),
                Effect::CallElsewhere { call, what, to } => {
                    self.call_homes.insert(call, usize::from(to.0));
                    self.mail.push_back((usize::from(to.0), Input::Call { call, what }));
                }
                Effect::Fatal(cause) => self.failed = Some(cause),
            }
        }
    }

    /// A busy shard takes its mail late, but never out of its sender's order.
    fn mail_to_shard(&mut self, from: ShardId, to: usize, input: Input, now: Now, dice: &mut Prng) {
        let of_pair = |(_, other, input): &&(u64, usize, Input)| {
            *other == to && matches!(input, Input::Shard { from: sender, .. } if *sender == from)
        };
        let last_ms = self.under_way.iter().filter(of_pair).map(|(at, ..)| *at).max();
        let late_ms = if dice.happens(50) { dice.below(30) } else { 0 };
        let at_ms = last_ms.unwrap_or(0).max(now.mono_ms + late_ms);
        if at_ms > now.mono_ms {
            self.under_way.push((at_ms, to, input));
        } else {
            self.mail.push_back((to, input));
        }
    }

    /// Each start submits under its own names, so that no answer reaches a later one.
    fn submitter(&self, shard: usize) -> SubmitterId {
        SubmitterId(self.starts * 64 + shard as u32)
    }

    fn shard_of_submitter(&self, submitter: SubmitterId) -> Option<usize> {
        let shard = (submitter.0 % 64) as usize;
        (submitter.0 / 64 == self.starts && shard < self.shards.len()).then_some(shard)
    }
}
