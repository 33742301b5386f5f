//! Calls: who asks, what is done about it, and one answer for each.

use std::collections::VecDeque;

use bytes::Bytes;
use chatring_wire::frame::{
    Direction, Failure, Head, HeadRows, Member, RangeRequest, RequestId, Row, ServerFrame,
    SignOutScope,
};
use chatring_wire::{Cid, DeviceId, ErrorCode, MemberNumber, Seq, Uid};

use crate::attach::{Admitted, NotAdmitted};
use crate::call::{
    Answer, Call, CallDevice, CallId, CallRequest, CallResult, CallSend, ChannelView,
    LIST_CHANNELS_MAX,
};
use crate::decided::Known;
use crate::effect::{Effect, SendAnswer, SendRef, SendRequest, ShardMessage};
use crate::feed::Feed;
use crate::keys;
use crate::kv::{Order, RangeEnd, RangeRead, Read, ReadVersion, Rows};
use crate::marker::MarkTaken;
use crate::placement::CANDIDATES;
use crate::poll::{Scan, Wanted};
use crate::queue::Queued;
use crate::request::{RequestStep, opened};
use crate::session::{BUSY_RETRY_MS, DRAIN_SPREAD_MS, SEND_OPEN_MS_MAX, check_message};
use crate::shard::{Asker, Shard, Tag};
use crate::sync::{head_of, join};
use crate::timers::{Timer, TimerKey};
use crate::user::User;
use crate::values::{ChannelRow, MessageRow, UserRow, ValueError};

/// How long a user stays in memory after its last call, so that the next one finds its rows and
/// its feed there.
const KEPT_MS: u64 = 90_000;

/// A call that is not answered yet.
#[derive(Debug)]
pub(crate) struct OpenCall {
    pub(crate) uid: Uid,
    device: DeviceId,
    issued_at_s: u64,
    pub(crate) state: CallState,
    pub(crate) timer: Option<TimerKey>,
}

/// What a call waits for.
#[derive(Debug)]
pub(crate) enum CallState {
    /// The rows of its user, or that its own are stored.
    Entering(Box<Call>),
    /// The answer to something that was asked for it.
    Waiting,
    /// The owner of the channel that it sends to.
    Sending,
    /// Rows of its user's inbox.
    Scanning(Box<Scan>),
    /// Something new.
    Parked(Box<Wanted>),
}

/// What a user has of its calls.
#[derive(Debug, Default)]
pub(crate) struct Caller {
    /// The newest events; `None` before the first sync.
    pub(crate) feed: Option<Feed>,
    /// Syncs that wait for something new.
    pub(crate) parked: Vec<CallId>,
    /// Calls that wait for the user's rows.
    entering: VecDeque<CallId>,
    /// Calls that wait until markers are stored, up to where they said.
    marking: Vec<(CallId, Cid, Seq, Seq)>,
    /// All that are not answered yet.
    open: Vec<CallId>,
    kept_until_ms: u64,
    timer: Option<TimerKey>,
}

/// What a call wants of a channel, once it is known that its user is a member.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Then {
    View,
    Mark { read: Seq, received: Seq },
    Typing,
}

/// Whether views are an answer of their own or a page of a list.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Listing {
    One,
    Page { next: Option<Cid> },
}

/// Who calls.
impl Shard {
    pub(crate) fn call(&mut self, call: CallId, what: Box<Call>) {
        let limits = &self.config.limits;
        self.counters.calls_taken += 1;
        if self.draining || self.deployment().is_none() {
            let failure = Failure::new(ErrorCode::Draining).retry_after(DRAIN_SPREAD_MS);
            return self.refuse_call(call, failure);
        }
        let identity = &what.identity;
        let uid = self.ready().key.uid(&identity.issuer, &identity.subject, what.candidate);
        let (burst, now_ms) = (limits.sends_burst, self.now.mono_ms);
        let (calls_max, of_user_max) = (limits.calls_max, limits.calls_per_user_max);
        let user = self.users.entry(uid).or_insert_with(|| Box::new(User::new(burst, now_ms)));
        let (known, loading) = (user.rows.is_some(), user.loading);
        let callers = &mut self.counters.callers;
        let caller = user.calls.get_or_insert_with(|| {
            *callers += 1;
            Box::default()
        });
        let decided = matches!(what.request, CallRequest::Decided(_));
        let full = self.calls.len() >= calls_max || caller.open.len() >= of_user_max as usize;
        if full && !decided {
            self.refuse_call(call, Failure::new(ErrorCode::Busy).retry_after(BUSY_RETRY_MS));
            return self.let_caller_go(uid);
        }
        caller.open.push(call);
        if !known {
            caller.entering.push_back(call);
            user.loading = true;
        }
        let issued_at_s = identity.issued_at_s;
        let state = CallState::Entering(what);
        let open = OpenCall { uid, device: DeviceId(0), issued_at_s, state, timer: None };
        self.calls.insert(call, open);
        self.counters.calls = self.calls.len() as u64;
        self.counters.users = self.users.len() as u64;
        if known {
            self.enter_call(call);
        } else if !loading {
            self.load_user(uid);
        }
    }

    fn waiting_calls(&mut self, uid: Uid) -> VecDeque<CallId> {
        let caller = self.users.get_mut(&uid).and_then(|user| user.calls.as_mut());
        caller.map(|caller| std::mem::take(&mut caller.entering)).unwrap_or_default()
    }

    pub(crate) fn enter_waiting_calls(&mut self, uid: Uid) {
        for call in self.waiting_calls(uid) {
            self.enter_call(call);
        }
    }

    pub(crate) fn refuse_waiting_calls(&mut self, uid: Uid) {
        for call in self.waiting_calls(uid) {
            self.answer_call(call, Err(Failure::new(ErrorCode::Internal)));
        }
    }

    /// The user's rows are known.
    fn enter_call(&mut self, call: CallId) {
        let Some(open) = self.calls.get_mut(&call) else { return };
        let uid = open.uid;
        let CallState::Entering(what) = std::mem::replace(&mut open.state, CallState::Waiting)
        else {
            return;
        };
        if let CallRequest::Decided(decision) = &what.request {
            return match self.known(uid, &what.identity) {
                Known::Yes => {
                    let decision = decision.clone();
                    self.carry_out(call, uid, decision)
                }
                // It enters as callers do.
                Known::Nobody if decision.makes_known() => self.admit_call(call, uid, what),
                Known::Nobody => self.answer_call(call, Ok(Answer::Done)),
                Known::Another => self.call_elsewhere(call, what),
            };
        }
        self.admit_call(call, uid, what);
    }

    /// Lets a call in, once its user and device are known.
    fn admit_call(&mut self, call: CallId, uid: Uid, what: Box<Call>) {
        let Some(device) = device_of(&what) else {
            return self.answer_call(call, Err(Failure::new(ErrorCode::InvalidToken)));
        };
        let Admitted { device, writes } = match self.admit(uid, &what.identity, device) {
            Ok(admitted) => admitted,
            Err(NotAdmitted::Refused(failure)) => return self.answer_call(call, Err(failure)),
            Err(NotAdmitted::Elsewhere) => return self.call_elsewhere(call, what),
        };
        let Some(open) = self.calls.get_mut(&call) else { return };
        open.device = device;
        let Some(user) = self.users.get_mut(&uid) else { return };
        if writes.is_empty() && user.sign_ins_in_lane == 0 {
            return self.begin_call(call, uid, what.request);
        }
        // What this call relies on may be another one's that is still in the lane: it waits too.
        open.state = CallState::Entering(what);
        user.sign_ins_in_lane += 1;
        if self.append(writes, Tag::CallSignIn(uid, call)).is_err() {
            debug_assert!(false, "the lane had room");
        }
    }

    pub(crate) fn call_sign_in_stored(&mut self, uid: Uid, call: CallId) {
        if let Some(user) = self.users.get_mut(&uid) {
            user.sign_ins_in_lane -= 1;
        }
        if let Some(open) = self.calls.get_mut(&call)
            && let CallState::Entering(what) =
                std::mem::replace(&mut open.state, CallState::Waiting)
        {
            self.begin_call(call, uid, what.request);
        }
        self.drop_idle_user(uid);
    }

    fn call_elsewhere(&mut self, call: CallId, mut what: Box<Call>) {
        what.candidate += 1;
        if what.candidate >= CANDIDATES {
            return self.answer_call(call, Err(Failure::new(ErrorCode::Internal)));
        }
        let identity = &what.identity;
        let uid = self.ready().key.uid(&identity.issuer, &identity.subject, what.candidate);
        let to = self.owner_of(uid.vshard());
        self.call_gone(call);
        if to == self.config.shard {
            self.call(call, what);
        } else {
            self.effect(Effect::CallElsewhere { call, what, to });
        }
    }

    fn refuse_call(&mut self, call: CallId, failure: Failure) {
        self.counters.calls_refused += 1;
        self.effect(Effect::Answer { call, answer: Box::new(Err(failure)) });
    }

    /// Answers a call, which ends it.
    pub(crate) fn answer_call(&mut self, call: CallId, answer: CallResult) {
        if !self.calls.contains_key(&call) {
            return;
        }
        self.counters.calls_refused += u64::from(answer.is_err());
        self.effect(Effect::Answer { call, answer: Box::new(answer) });
        self.call_gone(call);
    }

    /// Forgets a call.
    pub(crate) fn call_gone(&mut self, call: CallId) {
        let Some(open) = self.calls.remove(&call) else { return };
        self.counters.calls = self.calls.len() as u64;
        if let Some(timer) = open.timer {
            self.timers.cancel(timer);
        }
        let now_ms = self.now.mono_ms;
        let user = self.users.get_mut(&open.uid);
        let Some(caller) = user.and_then(|user| user.calls.as_mut()) else { return };
        caller.open.retain(|other| *other != call);
        caller.kept_until_ms = now_ms + KEPT_MS;
        let parked = caller.parked.len();
        caller.parked.retain(|other| *other != call);
        self.counters.calls_parked -= (parked - caller.parked.len()) as u64;
        caller.entering.retain(|other| *other != call);
        caller.marking.retain(|(other, ..)| *other != call);
        if caller.timer.is_none() {
            caller.timer = Some(self.timers.set(now_ms + KEPT_MS, Timer::Caller(open.uid)));
        }
        if self.counters.callers > self.config.limits.callers_kept_max as u64 {
            self.let_caller_go(open.uid);
        }
    }

    /// Forgets what a user has of its calls if there are none, and the user was kept for long
    /// enough or there are too many of them.
    pub(crate) fn let_caller_go(&mut self, uid: Uid) {
        let now_ms = self.now.mono_ms;
        let crowded = self.counters.callers > self.config.limits.callers_kept_max as u64;
        let Some(user) = self.users.get_mut(&uid) else { return };
        let Some(caller) = &mut user.calls else { return };
        if caller.timer.is_some_and(|timer| timer.at_ms() <= now_ms) {
            caller.timer = None;
        }
        if caller.open.is_empty() && (crowded || caller.kept_until_ms <= now_ms) {
            if let Some(timer) = caller.timer {
                self.timers.cancel(timer);
            }
            user.calls = None;
            self.counters.callers -= 1;
            return self.drop_idle_user(uid);
        }
        if caller.timer.is_none() {
            let at_ms = caller.kept_until_ms.max(now_ms + KEPT_MS / 2);
            caller.timer = Some(self.timers.set(at_ms, Timer::Caller(uid)));
        }
    }

    pub(crate) fn call_is_late(&mut self, call: CallId) {
        let Some(open) = self.calls.get_mut(&call) else { return };
        open.timer = None;
        match open.state {
            CallState::Parked(_) => self.end_wait(call),
            CallState::Sending => {
                self.counters.sends_unknown += 1;
                self.answer_call(call, Ok(Answer::Unknown));
            }
            CallState::Entering(_) | CallState::Waiting | CallState::Scanning(_) => {}
        }
    }

    /// The node drains: nobody is kept waiting.
    pub(crate) fn end_parked(&mut self) {
        let parked = |(call, open): (&CallId, &OpenCall)| {
            matches!(open.state, CallState::Parked(_)).then_some(*call)
        };
        let mut calls: Vec<_> = self.calls.iter().filter_map(parked).collect();
        calls.sort_unstable();
        for call in calls {
            self.end_wait(call);
        }
    }

    /// The tokens or the device that calls were made with are not good any more.
    pub(crate) fn end_calls_of(&mut self, uid: Uid, scope: SignOutScope, revoked_before_s: u64) {
        self.end_waiting_calls(uid, |device, issued_at_s| match scope {
            SignOutScope::Everywhere => issued_at_s < revoked_before_s,
            SignOutScope::Device(one) => device == one,
        });
    }

    /// Ends those calls of a user, by their device and the time of their token, that wait for
    /// something new or have not begun. What is being carried out goes on to its answer.
    pub(crate) fn end_waiting_calls(&mut self, uid: Uid, ends: impl Fn(DeviceId, u64) -> bool) {
        let caller = self.users.get(&uid).and_then(|user| user.calls.as_ref());
        let Some(caller) = caller else { return };
        let ended = |call: &CallId| {
            self.calls.get(call).is_some_and(|open| {
                let waits = match &open.state {
                    CallState::Parked(_) | CallState::Scanning(_) => true,
                    CallState::Entering(what) => !matches!(what.request, CallRequest::Decided(_)),
                    CallState::Waiting | CallState::Sending => false,
                };
                waits && ends(open.device, open.issued_at_s)
            })
        };
        let calls: Vec<_> = caller.open.iter().copied().filter(ended).collect();
        for call in calls {
            self.answer_call(call, Err(Failure::new(ErrorCode::RevokedToken)));
        }
    }
}

/// What is asked.
impl Shard {
    fn begin_call(&mut self, call: CallId, uid: Uid, request: CallRequest) {
        let decided = matches!(request, CallRequest::Decided(_));
        if let Some(Err(failure)) = (!decided).then(|| self.take_token_of(uid)) {
            return self.answer_call(call, Err(failure));
        }
        let origin = SendRef::of_call(call);
        match request {
            CallRequest::SignIn => {
                let Some(open) = self.calls.get(&call) else { return };
                let device = open.device;
                self.answer_call(call, Ok(Answer::SignedIn { uid, device }));
            }
            CallRequest::Open(with) => self.open_for(origin, with),
            CallRequest::Send(send) => self.call_send(call, uid, send),
            CallRequest::Channels { after, limit } => self.call_list(origin, uid, after, limit),
            CallRequest::Channel(cid) => self.call_channel(origin, uid, cid, Then::View),
            CallRequest::History { cid, before, after, limit } => {
                let from = after.map_or(Seq(1), |after| Seq(after.0.saturating_add(1)));
                let to = before.map_or(Seq(u64::MAX - 1), |before| Seq(before.0.saturating_sub(1)));
                let direction = match after {
                    Some(_) => Direction::Ascending,
                    None => Direction::Descending,
                };
                let request = origin.request;
                self.range_for(origin, RangeRequest { request, cid, from, to, limit, direction });
            }
            CallRequest::Sync(sync) => self.call_sync(call, sync),
            CallRequest::Mark { cid, read, received } => {
                self.call_channel(origin, uid, cid, Then::Mark { read, received });
            }
            CallRequest::Typing(cid) => self.call_channel(origin, uid, cid, Then::Typing),
            CallRequest::SignOut(scope) => self.sign_out_for(origin, scope),
            CallRequest::Decided(decision) => self.carry_out(call, uid, decision),
        }
    }

    fn call_send(&mut self, call: CallId, uid: Uid, send: CallSend) {
        if let Err(code) = check_message(send.kind, &send.body) {
            return self.answer_call(call, Err(Failure::new(code)));
        }
        let at_ms = self.now.mono_ms + SEND_OPEN_MS_MAX;
        let Some(open) = self.calls.get_mut(&call) else { return };
        open.state = CallState::Sending;
        open.timer = Some(self.timers.set(at_ms, Timer::Call(call)));
        self.counters.sends += 1;
        let CallSend { cid, cmid, base, kind, body } = send;
        let request = SendRequest {
            origin: SendRef::of_call(call),
            cid,
            uid,
            device: open.device,
            cmid,
            base,
            previous: None,
            kind,
            body,
        };
        let owner = self.owner_of(cid.vshard());
        if self.tell_shard(owner, ShardMessage::Send(request)) == Queued::Refused {
            let failure = Failure::new(ErrorCode::Busy).retry_after(BUSY_RETRY_MS);
            self.counters.sends_refused += 1;
            self.answer_call(call, Err(failure));
        }
    }

    pub(crate) fn call_send_answered(&mut self, origin: SendRef, answer: SendAnswer) {
        let Some(call) = origin.call() else { return };
        let answer = match answer {
            SendAnswer::Stored { seq, time_ms, again } => Ok(Answer::Sent { seq, time_ms, again }),
            SendAnswer::Continue { checked_to } => Ok(Answer::Continue { checked_to }),
            SendAnswer::Refused { code, retry_after_ms } => {
                self.counters.sends_refused += 1;
                Err(Failure { retry_after_ms, ..Failure::new(code) })
            }
        };
        self.answer_call(call, answer);
    }

    /// What sessions are told in a frame.
    pub(crate) fn end_call_request(
        &mut self,
        origin: SendRef,
        answer: Result<ServerFrame, ErrorCode>,
    ) {
        let Some(call) = origin.call() else { return };
        let answer = match answer {
            Ok(ServerFrame::Opened { head, .. }) => {
                return self.call_views(origin, vec![head], Listing::One);
            }
            Ok(ServerFrame::Rows { page, .. }) => Ok(Answer::History(page)),
            Ok(_) => Ok(Answer::Done),
            Err(ErrorCode::Busy) => Err(Failure::new(ErrorCode::Busy).retry_after(BUSY_RETRY_MS)),
            Err(code) => Err(Failure::new(code)),
        };
        self.answer_call(call, answer);
    }

    fn call_channel(&mut self, origin: SendRef, uid: Uid, cid: Cid, then: Then) {
        let read = Read {
            gets: vec![keys::channel(cid), keys::inbox(uid, cid), keys::marker(uid, cid)],
            ranges: Vec::new(),
            version: ReadVersion::Fresh,
        };
        self.read(Asker::Request(origin, RequestStep::CallRows { cid, then }), read);
    }

    pub(crate) fn call_rows_read(
        &mut self,
        origin: SendRef,
        uid: Uid,
        cid: Cid,
        then: Then,
        rows: Rows,
    ) {
        self.counters.call_rows += rows.gets.iter().flatten().count() as u64;
        let peer = match peer_in(uid, &rows) {
            Ok(Some((_, true))) if matches!(then, Then::Typing) => {
                return self.end_request(origin, Err(ErrorCode::Blocked));
            }
            Ok(Some((peer, _))) => peer,
            Ok(None) => return self.end_request(origin, Err(ErrorCode::UnknownChannel)),
            Err(error) => return self.call_damaged(origin, error),
        };
        match then {
            Then::View => match opened(RequestId(0), uid, cid, rows) {
                Ok(frame) => self.end_request(origin, Ok(frame)),
                Err(error) => self.call_damaged(origin, error),
            },
            Then::Mark { read, received } => self.call_mark(origin, uid, cid, read, received),
            Then::Typing => {
                let owner = self.owner_of(peer.vshard());
                self.tell_shard(owner, ShardMessage::Typing { uid: peer, cid, from: uid });
                let request = origin.request;
                self.end_request(origin, Ok(ServerFrame::Done { request }));
            }
        }
    }

    fn call_damaged(&mut self, origin: SendRef, error: ValueError) {
        self.note_damage(error);
        self.end_request(origin, Err(ErrorCode::Internal));
    }

    fn call_mark(&mut self, origin: SendRef, uid: Uid, cid: Cid, read: Seq, received: Seq) {
        let Some(call) = origin.call() else { return };
        if self.mark_for(uid, cid, read, received) == MarkTaken::No {
            return self.end_request(origin, Err(ErrorCode::Busy));
        }
        if let Some(caller) = self.users.get_mut(&uid).and_then(|user| user.calls.as_mut()) {
            caller.marking.push((call, cid, read, received));
        }
        // Somebody waits for it.
        self.write_markers(uid);
    }

    /// Markers of a channel are stored up to here, or change nothing.
    pub(crate) fn calls_marked(&mut self, uid: Uid, cid: Cid, read: Seq, received: Seq) {
        let Some(user) = self.users.get_mut(&uid) else { return };
        let Some(caller) = &mut user.calls else { return };
        let stored = |(_, of, said_read, said_received): &mut (CallId, Cid, Seq, Seq)| {
            *of == cid && *said_read <= read && *said_received <= received
        };
        let done: Vec<_> = caller.marking.extract_if(.., stored).collect();
        for (call, ..) in done {
            self.answer_call(call, Ok(Answer::Done));
        }
    }

    fn call_list(&mut self, origin: SendRef, uid: Uid, after: Option<Cid>, limit: u32) {
        let rows_max = match limit {
            0 => LIST_CHANNELS_MAX,
            limit => limit.min(LIST_CHANNELS_MAX),
        };
        let range =
            |range| RangeRead { range, rows_max, bytes_max: u32::MAX, order: Order::Forward };
        let ranges =
            vec![range(keys::inbox_after(uid, after)), range(keys::markers_after(uid, after))];
        let read = Read { gets: Vec::new(), ranges, version: ReadVersion::Fresh };
        self.read(Asker::Request(origin, RequestStep::CallList), read);
    }

    pub(crate) fn call_list_read(&mut self, origin: SendRef, rows: Rows) {
        self.counters.call_rows +=
            rows.ranges.iter().map(|range| range.rows.len() as u64).sum::<u64>();
        let slice = match join(rows) {
            Ok(slice) => slice,
            Err(error) => return self.call_damaged(origin, error),
        };
        let next = slice.last.filter(|_| slice.end == RangeEnd::More);
        let heads = slice.channels.iter().map(|(cid, inbox, marker)| {
            let rows = HeadRows::Stale;
            Head { rows, ..head_of(*cid, inbox, marker.as_ref()) }
        });
        self.call_views(origin, heads.collect(), Listing::Page { next });
    }

    /// Reads the newest message and the peer of each of these channels.
    fn call_views(&mut self, origin: SendRef, heads: Vec<Head>, listing: Listing) {
        let of = |head: &Head| {
            let peer = head.peer.map(keys::user);
            [keys::message(head.cid, head.head), peer.unwrap_or_else(|| keys::channel(head.cid))]
        };
        let gets = heads.iter().flat_map(of).collect();
        let read = Read { gets, ranges: Vec::new(), version: ReadVersion::Fresh };
        self.read(Asker::Request(origin, RequestStep::CallViews(heads, listing)), read);
    }

    pub(crate) fn call_views_read(
        &mut self,
        origin: SendRef,
        heads: Vec<Head>,
        listing: Listing,
        rows: Rows,
    ) {
        self.counters.call_rows += rows.gets.iter().flatten().count() as u64;
        let Some(call) = origin.call() else { return };
        let of = |(head, rows): (Head, &[Option<Bytes>])| view(head, rows);
        let views: Result<Vec<_>, _> = heads.into_iter().zip(rows.gets.chunks(2)).map(of).collect();
        let mut channels = match views {
            Ok(channels) => channels,
            Err(error) => return self.call_damaged(origin, error),
        };
        let answer = match listing {
            Listing::Page { next } => Answer::Channels { channels, next },
            Listing::One => match channels.pop() {
                Some(view) => Answer::Channel(Box::new(view)),
                None => return,
            },
        };
        self.answer_call(call, Ok(answer));
    }
}

/// The device that a call comes from: that of its token, if it is bound to one.
fn device_of(call: &Call) -> Option<CallDevice> {
    let Some(bound) = call.identity.installation else { return Some(call.device) };
    let bound = CallDevice::Installation(bound);
    (call.device == CallDevice::None || call.device == bound).then_some(bound)
}

/// The other member of a channel that the user is in, and whether one of the two has blocked the
/// other; `None` for a foreign one.
fn peer_in(uid: Uid, rows: &Rows) -> Result<Option<(Uid, bool)>, ValueError> {
    let Some(channel) = rows.gets.first().cloned().flatten() else { return Ok(None) };
    let channel = ChannelRow::decode(channel)?;
    Ok(channel.member(uid).map(|me| (channel.peer(me), channel.is_blocked())))
}

fn view(head: Head, rows: &[Option<Bytes>]) -> Result<ChannelView, ValueError> {
    let [last, peer] = rows else { return Err(ValueError::Damaged) };
    let last = last.clone().map(|value| MessageRow::decode(head.head, value)).transpose()?;
    let last: Option<Row> = last.map(|message| message.row);
    let peer = match (head.peer, peer.clone()) {
        (Some(uid), Some(value)) => {
            let UserRow { issuer, subject, .. } = UserRow::decode(value)?;
            let number = MemberNumber(u32::from(head.me.0 == 0));
            Some(Member { number, uid, issuer, subject })
        }
        _ => None,
    };
    Ok(ChannelView { head, peer, last })
}

#[cfg(test)]
mod tests;
