//! The accounts of a run: who blocks whom, told to the node until it has answered, sometimes twice
//! or after something newer, and what must hold in between.

use std::collections::BTreeMap;

use chatring_core::call::{Answer, Call, CallId, CallResult, Decision, Relation};
use chatring_core::keys;
use chatring_core::kv::mem::MemStore;
use chatring_core::kv::prng::Prng;
use chatring_core::values::MessageRow;
use chatring_wire::{Seq, Uid};

use crate::check::Channels;
use crate::node::Node;
use crate::plan::Plan;

/// Calls of the accounts are numbered from here, so that no poller has one of them.
const FIRST_CALL: u64 = 1 << 40;
/// Virtual time after which an answer is not waited for any more.
const PATIENCE_MS: u64 = 3_000;
/// Blocks at a time, so that a run gets its messages stored.
const BLOCKS_MAX: usize = 2;

/// What the accounts say, and what they were answered.
pub struct Accounts {
    /// What was met, by name.
    pub met: BTreeMap<&'static str, u64>,
    dice: Prng,
    relations: BTreeMap<(usize, usize), State>,
    open: BTreeMap<CallId, Open>,
    held: Vec<Held>,
    next_ms: u64,
    calls: u64,
    enabled: bool,
}

/// How one user stands to another.
struct State {
    version: u64,
    blocked: bool,
    /// Whether the node has said that it holds.
    answered: bool,
    try_at_ms: u64,
}

struct Open {
    pair: (usize, usize),
    version: u64,
    give_up_ms: u64,
}

/// No message of the two was stored above the one version, up to the other.
struct Held {
    pair: (usize, usize),
    after: u64,
    up_to: u64,
}

impl Accounts {
    /// The accounts of a plan.
    pub fn new(plan: &Plan) -> Accounts {
        let mut dice = Prng::new(plan.seed ^ 0xb10c);
        Accounts {
            met: BTreeMap::new(),
            enabled: dice.happens(500),
            next_ms: 200 + dice.below(2_000),
            dice,
            relations: BTreeMap::new(),
            open: BTreeMap::new(),
            held: Vec::new(),
            calls: FIRST_CALL,
        }
    }

    /// When something happens next.
    pub fn next_ms(&self, quiet: bool) -> Option<u64> {
        let tries = self.relations.iter().filter(|(pair, state)| self.is_to_be_told(**pair, state));
        let tries = tries.map(|(_, state)| state.try_at_ms);
        let open = self.open.values().map(|open| open.give_up_ms);
        let decides = (self.enabled && !quiet).then_some(self.next_ms);
        tries.chain(open).chain(decides).min()
    }

    /// Whether the node has said that everything holds.
    pub fn are_settled(&self) -> bool {
        self.relations.values().all(|state| state.answered)
    }

    fn is_to_be_told(&self, pair: (usize, usize), state: &State) -> bool {
        let told = |open: &Open| open.pair == pair && open.version == state.version;
        !state.answered && !self.open.values().any(told)
    }

    /// They decide something, and tell the node what it has not answered.
    pub fn act(&mut self, now_ms: u64, quiet: bool, users: usize, node: &mut Node) {
        self.open.retain(|_, open| open.give_up_ms > now_ms);
        if self.enabled && !quiet && self.next_ms <= now_ms {
            self.next_ms = now_ms + 1 + self.dice.below(1_500);
            self.decide(now_ms, users, node);
        }
        let due: Vec<_> = self
            .relations
            .iter()
            .filter(|(pair, state)| state.try_at_ms <= now_ms && self.is_to_be_told(**pair, state))
            .map(|(pair, state)| (*pair, state.version, state.blocked))
            .collect();
        for (pair, version, blocked) in due {
            if !node.is_up() {
                if let Some(state) = self.relations.get_mut(&pair) {
                    state.try_at_ms = now_ms + 1 + self.dice.below(200);
                }
                continue;
            }
            self.tell(now_ms, pair, version, blocked, node);
            // Somebody else still has what was before.
            if version > 1 && self.dice.happens(300) {
                *self.met.entry("block: told late").or_default() += 1;
                self.tell(now_ms, pair, version - 1, !blocked, node);
            }
        }
    }

    fn decide(&mut self, now_ms: u64, users: usize, node: &Node) {
        let blocks: Vec<_> = self
            .relations
            .iter()
            .filter(|(_, state)| state.blocked)
            .map(|(pair, _)| *pair)
            .collect();
        let lifts = blocks.len() >= BLOCKS_MAX || (!blocks.is_empty() && self.dice.happens(500));
        let pair = match lifts {
            true => blocks[self.dice.below(blocks.len() as u64) as usize],
            false => {
                let user = self.dice.below(users as u64) as usize;
                let other = 1 + self.dice.below(users as u64 - 1) as usize;
                (user, (user + other) % users)
            }
        };
        let never = State { version: 0, blocked: false, answered: true, try_at_ms: 0 };
        let state = self.relations.entry(pair).or_insert(never);
        if state.blocked != lifts {
            return;
        }
        if lifts && state.answered {
            let held = self.held.iter_mut().rev().find(|held| held.pair == pair);
            if let Some(held) = held.filter(|held| held.up_to == u64::MAX) {
                held.up_to = node.store.newest().0;
            }
        }
        let blocked = !lifts;
        *state = State { version: state.version + 1, blocked, answered: false, try_at_ms: now_ms };
        let what = if blocked { "block" } else { "block: lifted" };
        *self.met.entry(what).or_default() += 1;
    }

    fn tell(
        &mut self,
        now_ms: u64,
        pair: (usize, usize),
        version: u64,
        blocked: bool,
        node: &mut Node,
    ) {
        self.calls += 1;
        let call = CallId(self.calls);
        let (issuer, subject) = (String::new(), format!("user-{}", pair.1));
        let relation = Relation { issuer, subject, version, friends: false, blocked };
        let decision = Decision::Relation(relation);
        self.open.insert(call, Open { pair, version, give_up_ms: now_ms + PATIENCE_MS });
        node.call(call, Call::decided(String::new(), format!("user-{}", pair.0), decision));
    }

    /// Whether an answer is one to the accounts.
    pub fn made(call: CallId) -> bool {
        call.0 >= FIRST_CALL
    }

    /// Takes in an answer.
    pub fn answered(&mut self, now_ms: u64, call: CallId, answer: &CallResult, node: &Node) {
        let Some(Open { pair, version, .. }) = self.open.remove(&call) else { return };
        let Some(state) = self.relations.get_mut(&pair) else { return };
        if state.version != version || state.answered {
            return;
        }
        if !matches!(answer, Ok(Answer::Done)) {
            state.try_at_ms = now_ms + 1 + self.dice.below(100);
            return;
        }
        state.answered = true;
        if state.blocked {
            *self.met.entry("block: holds").or_default() += 1;
            let after = node.store.newest().0;
            self.held.push(Held { pair, after, up_to: u64::MAX });
        }
    }

    /// The node died, and all calls with it.
    pub fn node_died(&mut self) {
        self.open.clear();
    }

    /// Nothing was stored of two while a block between them held.
    pub fn held(
        &self,
        store: &MemStore,
        channels: &Channels,
        uids: &BTreeMap<usize, Uid>,
    ) -> Result<(), String> {
        for held in &self.held {
            let (Some(one), Some(two)) = (uids.get(&held.pair.0), uids.get(&held.pair.1)) else {
                continue;
            };
            let pair = [*one.min(two), *one.max(two)];
            for (cid, _) in channels.iter().filter(|(_, users)| **users == pair) {
                for seq in 1.. {
                    let key = keys::message(*cid, Seq(seq));
                    let Some(first) = store.history().of_key(&key).first() else { break };
                    let version = first.stamp.version.0;
                    if version > held.after && version <= held.up_to {
                        let row = first.value.clone().map(|row| MessageRow::decode(Seq(seq), row));
                        return Err(format!(
                            "user-{} has blocked user-{} from {} to {}, but {row:?} was stored at \
                             {version}",
                            held.pair.0, held.pair.1, held.after, held.up_to
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}
