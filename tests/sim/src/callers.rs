//! The pollers of a run, and the way of their calls and answers, which come late or never.

use std::collections::{BTreeMap, BTreeSet};

use chatring_core::call::{Again, Answer, Call, CallId, CallRequest, CallResult};
use chatring_core::effect::SessionId;
use chatring_core::kv::prng::Prng;
use chatring_wire::frame::{CacheAction, Hello};
use chatring_wire::limits::FRAME_BYTES_MAX;
use chatring_wire::{Cid, Cmid, ServerFrame};

use crate::accounts::Accounts;
use crate::check::Channels;
use crate::node::{Node, Said};
use crate::plan::Plan;
use crate::poller::{Asked, Means, Poller};

/// Sessions of pollers are numbered from here, so that no device has one of them.
const FIRST_SESSION: u64 = 1 << 40;
/// How long a poller stays connected if its sync does not end.
const VISIT_MS_MAX: u64 = 20_000;

/// All pollers.
pub struct Callers {
    /// They.
    pub pollers: Vec<Poller>,
    /// Messages whose senders were told that they are stored.
    pub acks: u64,
    /// What was met, by name.
    pub met: BTreeMap<&'static str, u64>,
    /// Channels opened, with both users, since this was last taken.
    pub opened: Vec<(Cid, usize, usize)>,
    /// Answers to calls of the accounts.
    pub to_accounts: Vec<(CallId, CallResult)>,
    dice: Prng,
    to_node: Vec<(u64, Asked)>,
    to_pollers: Vec<(u64, usize, CallId, CallResult)>,
    said: Vec<(u64, SessionId, Said)>,
    visits: BTreeMap<SessionId, Visit>,
    /// Who made which call, and for sends the message's id.
    made_by: BTreeMap<CallId, (usize, Option<Cmid>)>,
    stored_first: BTreeSet<Cmid>,
    calls: u64,
    sessions: u64,
}

/// A poller that goes on with its cursor over a connection until it is synced.
struct Visit {
    poller: usize,
    until_ms: u64,
}

impl Callers {
    /// The pollers of a plan.
    pub fn new(plan: &Plan) -> Callers {
        let mut dice = Prng::new(plan.seed ^ 0xca11);
        let poller = |number| Poller::new(dice.below(plan.users as u64) as usize, number);
        Callers {
            pollers: (0..plan.pollers).map(poller).collect(),
            acks: 0,
            met: BTreeMap::new(),
            opened: Vec::new(),
            to_accounts: Vec::new(),
            dice,
            to_node: Vec::new(),
            to_pollers: Vec::new(),
            said: Vec::new(),
            visits: BTreeMap::new(),
            made_by: BTreeMap::new(),
            stored_first: BTreeSet::new(),
            calls: 0,
            sessions: FIRST_SESSION,
        }
    }

    /// When something happens next.
    pub fn next_ms(&self, quiet: bool) -> Option<u64> {
        let pollers = self.pollers.iter().map(|poller| poller.next_ms(quiet));
        pollers
            .chain(self.to_node.iter().map(|(at, ..)| *at))
            .chain(self.to_pollers.iter().map(|(at, ..)| *at))
            .chain(self.said.iter().map(|(at, ..)| *at))
            .chain(self.visits.values().map(|visit| visit.until_ms))
            .min()
    }

    /// Whether nobody has anything left to do but to wait for what is new.
    pub fn are_settled(&self) -> bool {
        self.pollers.iter().all(Poller::is_settled)
    }

    /// Those that are not settled.
    pub fn unsettled(&self) -> Vec<&str> {
        let unsettled = self.pollers.iter().filter(|poller| !poller.is_settled());
        unsettled.map(|poller| poller.name.as_str()).collect()
    }

    fn note(&mut self, what: &'static str) {
        *self.met.entry(what).or_default() += 1;
    }

    /// The pollers act, and their calls reach the node.
    pub fn act(&mut self, now_ms: u64, quiet: bool, plan: &Plan, node: &mut Node) {
        for index in 0..self.pollers.len() {
            for call in self.pollers[index].give_up(now_ms, &mut self.dice) {
                self.note("call: given up");
                node.call_gone(call);
            }
            let acts = !quiet && self.pollers[index].next_ms(false) <= now_ms;
            if acts && self.dice.happens(plan.call_change) {
                self.visit(now_ms, index, node);
            } else if acts && let Some(left) = self.pollers[index].goes_back(&mut self.dice) {
                self.note("call: older cursor");
                left.into_iter().for_each(|call| node.call_gone(call));
            }
            let (dice, call) = (&mut self.dice, &mut self.calls);
            let mut means = Means { dice, call, action_ms: plan.action_ms * 2 };
            let asked = self.pollers[index].asks(now_ms, quiet, plan.users, &mut means);
            for (call, what) in asked {
                self.made_by.insert(call, (index, cmid_of(&what)));
                self.to_node.push((now_ms + 1 + self.dice.below(4), (call, what)));
            }
        }
        for (_, (call, what)) in self.to_node.extract_if(.., |(at, _)| *at <= now_ms) {
            let poller = &mut self.pollers[self.made_by[&call].0];
            let Some(open) = poller.open.iter_mut().find(|open| open.call == call) else {
                continue;
            };
            if node.is_up() {
                node.call(call, what);
            } else {
                // Nobody listens.
                open.give_up_ms = now_ms + 1 + self.dice.below(200);
            }
        }
        self.end_visits(now_ms, node);
    }

    /// What the node said reaches the pollers, or gets lost.
    pub fn hear(
        &mut self,
        now_ms: u64,
        quiet: bool,
        plan: &Plan,
        node: &mut Node,
        channels: &Channels,
    ) -> Result<(), String> {
        while let Some((call, answer)) = node.poll_answer() {
            if Accounts::made(call) {
                self.to_accounts.push((call, answer));
                continue;
            }
            let Some((index, cmid)) = self.made_by.remove(&call) else {
                return Err(format!(
                    "{call:?} was answered {answer:?}, the second time or unasked"
                ));
            };
            if let (Ok(Answer::Sent { again: Again::First, .. }), Some(cmid)) = (&answer, cmid)
                && !self.stored_first.insert(cmid)
            {
                return Err(format!("{cmid:?} was stored for the first time twice"));
            }
            if !quiet && self.dice.happens(plan.call_loss) {
                self.note("call: answer lost");
                let notices_ms = now_ms + 1 + self.dice.below(1_500);
                let mut open = self.pollers[index].open.iter_mut();
                if let Some(open) = open.find(|open| open.call == call) {
                    open.give_up_ms = notices_ms;
                }
                continue;
            }
            self.to_pollers.push((now_ms + 1 + self.dice.below(4), index, call, answer));
        }
        let due: Vec<_> = self.to_pollers.extract_if(.., |(at, ..)| *at <= now_ms).collect();
        for (_, index, call, answer) in due {
            let synced = matches!(answer, Ok(Answer::Synced(_)));
            let stored = matches!(answer, Ok(Answer::Sent { .. }));
            let Some(took) = self.pollers[index].answered(now_ms, call, answer)? else {
                self.note("call: answered too late");
                continue;
            };
            self.note(took.what);
            self.opened.extend(took.opened);
            self.acks += u64::from(stored);
            if synced {
                self.is_honest(index, node, channels)?;
            }
        }
        self.hear_visits(now_ms, node, channels)
    }

    fn is_honest(&self, index: usize, node: &Node, channels: &Channels) -> Result<(), String> {
        let poller = &self.pollers[index];
        let Some(uid) = poller.uid else { return Ok(()) };
        let honest = poller.seen.is_honest(&node.store, channels, uid);
        honest.map_err(|what| format!("{}: {what}", poller.name))
    }

    /// The node died, and all calls with it. Some notice at once, some later.
    pub fn node_died(&mut self, now_ms: u64) {
        self.made_by.clear();
        self.said.clear();
        for visit in self.visits.values_mut() {
            visit.until_ms = now_ms + self.dice.below(300);
        }
        let arriving: BTreeSet<_> = self.to_pollers.iter().map(|(_, _, call, _)| *call).collect();
        for open in self.pollers.iter_mut().flat_map(|poller| &mut poller.open) {
            if !arriving.contains(&open.call) {
                open.give_up_ms = now_ms + 1 + self.dice.below(300);
            }
        }
        self.to_node.clear();
    }
}

/// Pollers that use a connection for a while.
impl Callers {
    fn visit(&mut self, now_ms: u64, index: usize, node: &mut Node) {
        let poller = &mut self.pollers[index];
        if poller.is_connected || poller.uid.is_none() || !node.is_up() {
            return;
        }
        poller.is_connected = true;
        for call in poller.stops_syncing() {
            node.call_gone(call);
        }
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let hello = Hello {
            token: poller.identity().subject,
            installation: poller.installation,
            cursor: poller.seen.cursor.clone(),
            capabilities: 0,
            frame_bytes_max: FRAME_BYTES_MAX as u32,
        };
        node.hello(session, hello);
        self.visits.insert(session, Visit { poller: index, until_ms: now_ms + VISIT_MS_MAX });
    }

    /// Something was said to a session that is no device's.
    pub fn said(&mut self, now_ms: u64, session: SessionId, said: Said) {
        if self.visits.contains_key(&session) {
            self.said.push((now_ms + 2, session, said));
        }
    }

    fn hear_visits(
        &mut self,
        now_ms: u64,
        node: &mut Node,
        channels: &Channels,
    ) -> Result<(), String> {
        let due: Vec<_> = self.said.extract_if(.., |(at, ..)| *at <= now_ms).collect();
        for (_, session, said) in due {
            let Some(visit) = self.visits.get_mut(&session) else { continue };
            let index = visit.poller;
            let poller = &mut self.pollers[index];
            match said {
                Said::Frame(ServerFrame::Syncing { cache: CacheAction::Replace, .. })
                    if !poller.seen.cursor.is_empty() =>
                {
                    return Err(format!("{}: its cursor was not taken", poller.name));
                }
                Said::Frame(ServerFrame::Head(head)) => poller.seen.head(&head),
                Said::Frame(ServerFrame::Page(page)) => {
                    let taken = poller.seen.page(page);
                    taken.map_err(|what| format!("{}, connected: {what}", poller.name))?;
                }
                Said::Frame(ServerFrame::Synced { cursor, .. }) => {
                    poller.seen.cursor = cursor;
                    visit.until_ms = now_ms;
                    self.is_honest(index, node, channels)?;
                    self.note("call: synced over a connection");
                    self.end_visits(now_ms, node);
                }
                Said::Frame(_) => {}
                Said::Close(_) => visit.until_ms = now_ms,
            }
        }
        self.end_visits(now_ms, node);
        Ok(())
    }

    /// Whoever is synced, or was closed, goes on with calls.
    fn end_visits(&mut self, now_ms: u64, node: &mut Node) {
        let over = |_: &SessionId, visit: &mut Visit| visit.until_ms <= now_ms;
        for (session, visit) in self.visits.extract_if(.., over) {
            node.detached(session);
            let poller = &mut self.pollers[visit.poller];
            poller.is_connected = false;
            poller.sync_at_ms = now_ms + 1 + self.dice.below(100);
        }
    }
}

fn cmid_of(call: &Call) -> Option<Cmid> {
    match &call.request {
        CallRequest::Send(send) => Some(send.cmid),
        _ => None,
    }
}
