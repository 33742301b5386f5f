//! A poller: a client without a connection. It asks by calls, each answered once or never, and goes
//! on with the newest cursor that it was given.

use std::collections::BTreeMap;

use bytes::Bytes;
use chatring_core::call::{
    Again, Answer, Call, CallDevice, CallId, CallRequest, CallResult, CallSend, CallSync, More,
};
use chatring_core::effect::Identity;
use chatring_core::kv::prng::Prng;
use chatring_wire::frame::{Failure, MessageKind, UserRef};
use chatring_wire::{Cid, Cmid, ErrorCode, InstallationId, Seq, Uid};

use crate::device::{Outcome, Sent};
use crate::seen::Seen;

/// Sends that a poller has open at most.
const SENDS_OPEN_MAX: usize = 3;
/// How long it waits for an answer, beside what it asked the node to wait.
const PATIENCE_MS: u64 = 30_000;
/// How long its polls are parked at most.
const WAIT_MS_MAX: u64 = 60_000;
/// An answer with news that took longer was waited for.
const WOKEN_MS_MIN: u64 = 20;

/// A client of a user that polls.
pub struct Poller {
    /// For messages about it.
    pub name: String,
    /// Which user.
    pub user: usize,
    /// Who the server says it is.
    pub uid: Option<Uid>,
    /// Which installation it is when it connects.
    pub installation: InstallationId,
    /// What it sent.
    pub sends: Vec<Sent>,
    /// How far it was told that what it said it has read is stored.
    pub marks: BTreeMap<Cid, Seq>,
    /// What it was given.
    pub seen: Seen,
    /// Whether it uses a connection now, and does not sync by calls.
    pub is_connected: bool,
    /// Calls that it waits for.
    pub open: Vec<Open>,
    /// An older state, to which it may be set back.
    kept: Option<Seen>,
    device: CallDevice,
    channels: Vec<Cid>,
    sending: Vec<Sending>,
    /// When it syncs again.
    pub sync_at_ms: u64,
    next_action_ms: u64,
}

/// A call that is not answered yet.
pub struct Open {
    /// Its id.
    pub call: CallId,
    /// When the poller gives up.
    pub give_up_ms: u64,
    asked_ms: u64,
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    SignIn,
    Open(usize),
    Send(usize),
    Mark(Cid, Seq),
    Missing,
    Sync,
    Typing,
}

/// A message without an outcome, by its index among the sends.
struct Sending {
    index: usize,
    base: Option<Seq>,
    at_ms: u64,
}

/// What an answer was taken for.
pub struct Took {
    /// To be counted.
    pub what: &'static str,
    /// The channel that was opened, with both users.
    pub opened: Option<(Cid, usize, usize)>,
}

/// What a poller asks means.
pub struct Means<'a> {
    /// Its luck.
    pub dice: &'a mut Prng,
    /// The last call's number.
    pub call: &'a mut u64,
    /// Milliseconds between its actions, on average.
    pub action_ms: u64,
}

/// A call to be carried to the node.
pub type Asked = (CallId, Call);

impl Poller {
    /// A poller of a user.
    pub fn new(user: usize, number: usize) -> Poller {
        let mut installation = [0xff; 16];
        installation[0] = user as u8 + 1;
        installation[1] = number as u8 + 128;
        let installation = InstallationId(installation);
        let as_device = CallDevice::Installation(installation);
        Poller {
            name: format!("poller-{number} of user-{user}"),
            user,
            uid: None,
            installation,
            sends: Vec::new(),
            marks: BTreeMap::new(),
            seen: Seen::default(),
            is_connected: false,
            open: Vec::new(),
            kept: None,
            device: if number.is_multiple_of(2) { CallDevice::None } else { as_device },
            channels: Vec::new(),
            sending: Vec::new(),
            sync_at_ms: 0,
            next_action_ms: 0,
        }
    }

    /// Whose token it has.
    pub fn identity(&self) -> Identity {
        Identity {
            issuer: String::new(),
            subject: format!("user-{}", self.user),
            issued_at_s: 1,
            expires_at_s: u64::MAX / 4_000,
            installation: None,
        }
    }

    /// When it does something by itself.
    pub fn next_ms(&self, quiet: bool) -> u64 {
        let sends = self.sending.iter().filter(|send| !self.waits_for(What::Send(send.index)));
        let open = self.open.iter().map(|open| open.give_up_ms);
        let mut next = open.chain(sends.map(|send| send.at_ms)).min().unwrap_or(u64::MAX);
        if self.uid.is_some() && !self.is_connected && !self.waits_for(What::Sync) {
            next = next.min(self.sync_at_ms);
        }
        if quiet { next } else { next.min(self.next_action_ms) }
    }

    /// Whether it has nothing left to do but to wait for what is new.
    pub fn is_settled(&self) -> bool {
        let waits = |open: &Open| open.what == What::Sync;
        self.uid.is_some()
            && self.sending.is_empty()
            && !self.open.is_empty()
            && self.open.iter().all(waits)
            && self.seen.missing().is_none()
    }

    fn waits_for(&self, what: What) -> bool {
        self.open.iter().any(|open| open.what == what)
    }

    fn ask(&mut self, now_ms: u64, call: &mut u64, what: What, request: CallRequest) -> Asked {
        *call += 1;
        let id = CallId(*call);
        let waits_ms = match &request {
            CallRequest::Sync(sync) => u64::from(sync.wait_ms),
            _ => 0,
        };
        let give_up_ms = now_ms + PATIENCE_MS + waits_ms;
        self.open.push(Open { call: id, give_up_ms, asked_ms: now_ms, what });
        let (identity, device) = (self.identity(), self.device);
        (id, Call { identity, candidate: 0, device, request })
    }

    /// Gives up what took too long; the calls are withdrawn.
    pub fn give_up(&mut self, now_ms: u64, dice: &mut Prng) -> Vec<CallId> {
        let late: Vec<_> = self.open.extract_if(.., |open| open.give_up_ms <= now_ms).collect();
        for open in &late {
            let pause_ms = if dice.happens(100) { 20_000 } else { 800 };
            self.later(open.what, now_ms, dice.below(pause_ms));
        }
        late.into_iter().map(|open| open.call).collect()
    }

    /// Syncs and sends are made again; what else is needed is asked for anew.
    fn later(&mut self, what: What, now_ms: u64, in_ms: u64) {
        let at_ms = now_ms + 1 + in_ms;
        match what {
            What::Sync => self.sync_at_ms = at_ms,
            What::Send(index) => {
                for send in self.sending.iter_mut().filter(|send| send.index == index) {
                    send.at_ms = at_ms;
                }
            }
            _ => {}
        }
    }

    /// What it asks for now.
    pub fn asks(
        &mut self,
        now_ms: u64,
        quiet: bool,
        users: usize,
        means: &mut Means,
    ) -> Vec<Asked> {
        let mut asked = Vec::new();
        if self.uid.is_none() {
            if self.open.is_empty() {
                asked.push(self.ask(now_ms, means.call, What::SignIn, CallRequest::SignIn));
            }
            return asked;
        }
        let syncs = !self.is_connected && !self.waits_for(What::Sync);
        if syncs && self.sync_at_ms <= now_ms {
            let at_once = !quiet && means.dice.happens(300);
            let wait_ms = match quiet {
                true => WAIT_MS_MAX,
                false if at_once => 0,
                false => means.dice.below(WAIT_MS_MAX),
            };
            let limit = if means.dice.happens(700) { 0 } else { 1 + means.dice.below(40) as u32 };
            let cursor = self.seen.cursor.clone();
            let sync = CallSync { cursor, limit, wait_ms: wait_ms as u32 };
            asked.push(self.ask(now_ms, means.call, What::Sync, CallRequest::Sync(sync)));
        }
        if !self.waits_for(What::Missing)
            && let Some((cid, after, before)) = self.seen.missing()
        {
            let (after, before) = (Some(after), Some(before));
            let request = CallRequest::History { cid, before, after, limit: 0 };
            asked.push(self.ask(now_ms, means.call, What::Missing, request));
        }
        if !quiet && self.next_action_ms <= now_ms {
            self.next_action_ms = now_ms + 1 + means.dice.below(means.action_ms * 2);
            asked.extend(self.acts(now_ms, users, means));
        }
        for at in 0..self.sending.len() {
            let Sending { index, base, at_ms } = self.sending[at];
            if at_ms <= now_ms && !self.waits_for(What::Send(index)) {
                let Sent { cid, cmid, body, .. } = &self.sends[index];
                let (cid, cmid, body) = (*cid, *cmid, Bytes::from(body.clone()));
                let send = CallSend { cid, cmid, base, kind: MessageKind::TEXT, body };
                asked.push(self.ask(
                    now_ms,
                    means.call,
                    What::Send(index),
                    CallRequest::Send(send),
                ));
            }
        }
        asked
    }

    fn acts(&mut self, now_ms: u64, users: usize, means: &mut Means) -> Option<Asked> {
        let dice = &mut *means.dice;
        if self.channels.is_empty() || dice.happens(30) {
            let peer = dice.below(users as u64) as usize;
            let what = What::Open(peer);
            if peer == self.user || self.waits_for(what) {
                return None;
            }
            let subject = format!("user-{peer}");
            let request = CallRequest::Open(UserRef::Subject { issuer: String::new(), subject });
            return Some(self.ask(now_ms, means.call, what, request));
        }
        let choice = dice.below(self.channels.len() as u64);
        let cid = self.channels[dice.below(choice + 1) as usize];
        if dice.happens(40) {
            return Some(self.ask(now_ms, means.call, What::Typing, CallRequest::Typing(cid)));
        }
        if dice.happens(80) {
            let read = self.seen.tips.get(&cid).copied().unwrap_or_default();
            let request = CallRequest::Mark { cid, read, received: read };
            return Some(self.ask(now_ms, means.call, What::Mark(cid, read), request));
        }
        if self.sending.len() < SENDS_OPEN_MAX {
            let tip = self.seen.tips.get(&cid).copied().unwrap_or_default();
            let base = means.dice.happens(200).then_some(tip);
            self.send(now_ms, cid, base);
        }
        None
    }

    fn send(&mut self, now_ms: u64, cid: Cid, base: Option<Seq>) {
        let number = self.sends.len() as u64 + 1;
        let mut cmid = [0xff; 16];
        cmid[..2].copy_from_slice(&self.installation.0[..2]);
        cmid[8..].copy_from_slice(&number.to_be_bytes());
        let body = format!("{}#{number}", self.name);
        self.sending.push(Sending { index: self.sends.len(), base, at_ms: now_ms });
        self.sends.push(Sent { cid, cmid: Cmid(cmid), body, outcome: Outcome::Open });
    }

    /// Sometimes goes back to an older state, or keeps the present one for that. Gives the calls
    /// that it does not want any more if it went back.
    pub fn goes_back(&mut self, dice: &mut Prng) -> Option<Vec<CallId>> {
        if self.is_connected || !dice.happens(15) {
            return None;
        }
        let Some(kept) = &self.kept else {
            self.kept = Some(self.seen.clone());
            return None;
        };
        if dice.happens(500) {
            self.seen = kept.clone();
        } else {
            self.seen = Seen::default();
            self.kept = None;
        }
        Some(self.stops_syncing())
    }

    /// Leaves what it asked for to go on with its cursor: another way is taken.
    pub fn stops_syncing(&mut self) -> Vec<CallId> {
        let syncs = |open: &mut Open| matches!(open.what, What::Sync | What::Missing);
        self.open.extract_if(.., syncs).map(|open| open.call).collect()
    }

    /// Takes in an answer; one to a call that it gave up means nothing.
    pub fn answered(
        &mut self,
        now_ms: u64,
        call: CallId,
        answer: CallResult,
    ) -> Result<Option<Took>, String> {
        let Some(at) = self.open.iter().position(|open| open.call == call) else {
            return Ok(None);
        };
        let open = self.open.remove(at);
        let mut opened = None;
        let what = match answer {
            Ok(Answer::Channel(view)) => {
                self.knows(view.head.cid);
                if let What::Open(peer) = open.what {
                    opened = Some((view.head.cid, self.user, peer));
                }
                "call: open"
            }
            Ok(answer) => self.takes(now_ms, open, answer)?,
            Err(failure) => self.refused(now_ms, open.what, failure)?,
        };
        Ok(Some(Took { what, opened }))
    }

    fn takes(&mut self, now_ms: u64, open: Open, answer: Answer) -> Result<&'static str, String> {
        Ok(match (open.what, answer) {
            (What::SignIn, Answer::SignedIn { uid, .. }) => {
                self.uid = Some(uid);
                "call: sign in"
            }
            (What::Send(index), Answer::Sent { seq, again, .. }) => {
                self.sends[index].outcome = Outcome::Stored(seq);
                self.sending.retain(|send| send.index != index);
                if again == Again::Repeat { "call: send repeated" } else { "call: send" }
            }
            (What::Send(_), Answer::Unknown) => {
                self.later(open.what, now_ms, 100);
                "call: unknown"
            }
            (What::Send(index), Answer::Continue { checked_to }) => {
                for send in self.sending.iter_mut().filter(|send| send.index == index) {
                    (send.base, send.at_ms) = (Some(checked_to), now_ms);
                }
                "call: continue"
            }
            (What::Mark(cid, read), Answer::Done) => {
                let marked = self.marks.entry(cid).or_default();
                *marked = read.max(*marked);
                "call: mark"
            }
            (What::Typing, Answer::Done) => "call: typing",
            (What::Missing, Answer::History(page)) => {
                self.seen.rows(page)?;
                "call: history"
            }
            (What::Sync, Answer::Synced(synced)) => {
                let waited = now_ms >= open.asked_ms + WOKEN_MS_MIN;
                let what = match (synced.events.is_empty(), synced.more) {
                    (_, More::Yes) => "call: sync with more",
                    (false, More::No) if waited => "call: sync woken",
                    (false, More::No) => "call: sync",
                    (true, More::No) => "call: sync of nothing",
                };
                self.seen.synced(synced).map_err(|what| format!("{}: {what}", self.name))?;
                if self.seen.log.len() > self.channels.len() {
                    let unknown: Vec<_> = self.seen.log.keys().copied().collect();
                    unknown.into_iter().for_each(|cid| self.knows(cid));
                }
                self.sync_at_ms = now_ms;
                what
            }
            (_, answer) => return Err(format!("{} was answered {answer:?}", self.name)),
        })
    }

    fn refused(&mut self, now_ms: u64, what: What, why: Failure) -> Result<&'static str, String> {
        self.later(what, now_ms, u64::from(why.retry_after_ms.unwrap_or(50)));
        match why.code {
            Ok(ErrorCode::Busy | ErrorCode::Unavailable) => Ok("call: busy"),
            Ok(ErrorCode::Draining | ErrorCode::Internal) => Ok("call: not now"),
            Ok(ErrorCode::UnknownUser) if matches!(what, What::Open(_)) => Ok("call: unknown user"),
            Ok(ErrorCode::Blocked) => match what {
                What::Send(index) => {
                    self.sends[index].outcome = Outcome::Refused;
                    self.sending.retain(|send| send.index != index);
                    Ok("call: blocked")
                }
                What::Typing => Ok("call: typing blocked"),
                _ => Err(format!("{} was refused as blocked", self.name)),
            },
            code => Err(format!("{} was refused: {code:?}", self.name)),
        }
    }

    fn knows(&mut self, cid: Cid) {
        if !self.channels.contains(&cid) {
            self.channels.push(cid);
        }
    }
}
