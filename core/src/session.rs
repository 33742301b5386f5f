//! A live session: what it may do, what it was given, and how far it may be given more.

use std::collections::VecDeque;

use bytes::Bytes;
use chatring_wire::frame::{Failure, MessageKind, RequestId, Send, ServerFrame};
use chatring_wire::limits::BODY_BYTES_MAX;
use chatring_wire::{Cid, ClientFrame, CloseCode, Cmid, DeviceId, ErrorCode, Uid};
use rustc_hash::FxHashMap;

use crate::cursor::Position;
use crate::effect::{
    Attach, Effect, Identity, SendAnswer, SendRef, SendRequest, SessionId, ShardMessage, Stored,
};
use crate::kv::Version;
use crate::queue::Queued;
use crate::sabotage::Break;
use crate::shard::Shard;
use crate::sync::Sync;
use crate::timers::{SessionTimer, Timer, TimerKey};

/// A send that is open for longer is answered with `unknown`.
pub const SEND_OPEN_MS_MAX: u64 = 10_000;
/// Requests other than sends that a session may have open.
pub const REQUESTS_OPEN_MAX: usize = 64;
/// Sends whose client message ids a session remembers, so that a later one may name them.
const SENT_MAX: usize = 512;
/// What a push costs in the window besides its body.
const PUSH_OVERHEAD_BYTES: u32 = 16;
/// Where reconnecting clients spread when the node drains.
pub(crate) const DRAIN_SPREAD_MS: u32 = 2_000;
/// When a request that met a full queue is worth another try.
pub(crate) const BUSY_RETRY_MS: u32 = 50;

/// A session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) uid: Uid,
    pub(crate) device: DeviceId,
    pub(crate) token: TokenTimes,
    pub(crate) phase: Phase,
    /// Whether pushes go out.
    pub(crate) flow: Flow,
    /// The sync under way.
    pub(crate) sync: Option<Box<Sync>>,
    /// The position last given.
    pub(crate) position: Position,
    /// Notifications at or below this version are covered by a sync.
    pub(crate) covered: Version,
    /// The newest version of what was pushed.
    pub(crate) pushed: Version,
    /// Requests other than sends that are open.
    pub(crate) requests: Vec<RequestId>,
    /// What an audit found missing; `None` if nothing.
    pub(crate) suspects: Option<Box<Suspects>>,
    window: Window,
    sends: FxHashMap<RequestId, OpenSend>,
    sent: VecDeque<SentBefore>,
    last_request: RequestId,
    timers: [Option<TimerKey>; SessionTimer::KINDS],
    heard_ms: u64,
}

// Thousands of sessions are idle, and the allocator's next size is a fifth more.
const _: () = assert!(size_of::<Session>() <= 320);

/// From when to when a session's token is good. Whose it is, the user's row says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenTimes {
    pub(crate) issued_at_s: u64,
    pub(crate) expires_at_s: u64,
}

impl From<&Identity> for TokenTimes {
    fn from(identity: &Identity) -> TokenTimes {
        let Identity { issued_at_s, expires_at_s, .. } = *identity;
        TokenTimes { issued_at_s, expires_at_s }
    }
}

/// Whether a session was welcomed.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Its user's and device's rows are being stored; then it resumes from the cursor.
    SigningIn { cursor: Box<Bytes> },
    /// It was welcomed.
    Attached,
}

/// Whether pushes go out to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// A sync's first read is under way: notifications wait there for its version.
    Held,
    /// Pushes go out.
    Live,
    /// Pushes stopped until the client pulls.
    Behind,
}

/// Messages that an audit found and of which the session was not told by then.
#[derive(Debug)]
pub(crate) struct Suspects {
    /// The version at which the audit read.
    pub(crate) version: Version,
    /// The newest of each channel.
    pub(crate) newest: Vec<(Cid, chatring_wire::Seq)>,
}

/// Pushes that the client has not acknowledged.
#[derive(Debug, Default)]
struct Window {
    sent: u64,
    acked: u64,
    bytes: u32,
    sizes: VecDeque<u32>,
}

/// A send that a later one may name as the one before it.
#[derive(Debug)]
struct SentBefore {
    request: RequestId,
    cmid: Cmid,
    fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Passed,
    Refused,
}

#[derive(Debug)]
struct OpenSend {
    cid: Cid,
    since_ms: u64,
}

impl Session {
    pub(crate) fn new(uid: Uid, device: DeviceId, attach: Attach, now_ms: u64) -> Session {
        Session {
            uid,
            device,
            token: TokenTimes::from(&attach.identity),
            phase: Phase::SigningIn { cursor: Box::new(attach.cursor) },
            flow: Flow::Held,
            sync: None,
            position: Position::START,
            covered: Version(0),
            pushed: Version(0),
            requests: Vec::new(),
            suspects: None,
            window: Window::default(),
            sends: FxHashMap::default(),
            sent: VecDeque::new(),
            last_request: RequestId(0),
            timers: [None; SessionTimer::KINDS],
            heard_ms: now_ms,
        }
    }

    /// Requests ascend within a connection, so that an answer is never taken for another's.
    fn take_request(&mut self, request: RequestId) -> Result<(), ErrorCode> {
        if request <= self.last_request {
            return Err(ErrorCode::Unexpected);
        }
        self.last_request = request;
        Ok(())
    }

    /// Whether a marker may be pushed. One that comes while a sync reads is not held back: what a
    /// device is told twice does no harm.
    pub(crate) fn takes_markers(&self) -> bool {
        matches!(self.phase, Phase::Attached) && self.flow != Flow::Behind
    }

    fn sent_before(&mut self, request: RequestId) -> Option<&mut SentBefore> {
        let index = self.sent.binary_search_by_key(&request, |sent| sent.request).ok()?;
        self.sent.get_mut(index)
    }
}

impl Shard {
    pub(crate) fn session_frame(&mut self, id: SessionId, frame: ClientFrame) {
        let now_ms = self.now.mono_ms;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.heard_ms = now_ms;
        if matches!(session.phase, Phase::SigningIn { .. }) {
            return self.close_with(id, Failure::new(ErrorCode::Unexpected));
        }
        let taken = match &frame {
            ClientFrame::Open { request, .. }
            | ClientFrame::Send(Send { request, .. })
            | ClientFrame::Sync { request, .. }
            | ClientFrame::Who { request, .. }
            | ClientFrame::SignOut { request, .. } => session.take_request(*request),
            ClientFrame::Range(range) => session.take_request(range.request),
            ClientFrame::Hello(_) | ClientFrame::Refresh { .. } => Err(ErrorCode::Unexpected),
            ClientFrame::Mark { .. }
            | ClientFrame::Ack { .. }
            | ClientFrame::More { .. }
            | ClientFrame::Ping { .. } => Ok(()),
        };
        if let Err(code) = taken {
            return self.close_with(id, Failure::new(code));
        }
        match frame {
            ClientFrame::Send(send) => self.session_send(id, send),
            ClientFrame::Ack { pushes } => self.acked(id, pushes),
            ClientFrame::Ping { pushes } => self.pinged(id, pushes),
            ClientFrame::Mark { cid, read, received } => self.mark(id, cid, read, received),
            ClientFrame::Sync { request, cursor } => self.pull(id, request, cursor),
            ClientFrame::More { request } => self.more(id, request),
            ClientFrame::Open { request, with } => self.open(id, request, with),
            ClientFrame::Range(range) => self.range(id, range),
            ClientFrame::Who { request, cid, members } => self.who(id, request, cid, members),
            ClientFrame::SignOut { request, scope } => self.sign_out(id, request, scope),
            ClientFrame::Hello(_) | ClientFrame::Refresh { .. } => {}
        }
    }

    fn session_send(&mut self, id: SessionId, send: Send) {
        let open_sends_max = self.config.limits.open_sends_max as usize;
        let now_ms = self.now.mono_ms;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let (request, uid) = (send.request, session.uid);
        if let Err(code) = check_message(send.kind, &send.body) {
            return self.refuse_request(id, request, Failure::new(code));
        }
        if self.draining {
            let failure = Failure::new(ErrorCode::Draining).retry_after(DRAIN_SPREAD_MS);
            return self.refuse_request(id, request, failure);
        }
        if session.sends.len() >= open_sends_max {
            let failure = Failure::new(ErrorCode::Busy).retry_after(BUSY_RETRY_MS);
            return self.refuse_request(id, request, failure);
        }
        // A send that follows one of an earlier time than this session remembers follows one that
        // was answered long ago; its owner looks for it all the same, under an id that nobody has.
        let before = send.previous.map(|previous| {
            session
                .sent_before(previous)
                .map_or((Cmid([0; 16]), Fate::Passed), |sent| (sent.cmid, sent.fate))
        });
        let out_of_order = matches!(before, Some((_, Fate::Refused)));
        if session.sent.len() >= SENT_MAX {
            session.sent.pop_front();
        }
        let fate = if out_of_order { Fate::Refused } else { Fate::Passed };
        session.sent.push_back(SentBefore { request, cmid: send.cmid, fate });
        // It costs no token and no way to the owner: what follows a refused send is refused.
        if out_of_order && !self.config.breaks.has(Break::OutOfOrderAccepted) {
            return self.refuse_request(id, request, Failure::new(ErrorCode::OutOfOrder));
        }
        // A timer that is set already comes no later than this send's; it sets the next one.
        let no_timer = session.timers[SessionTimer::OpenSends as usize].is_none();
        session.sends.insert(request, OpenSend { cid: send.cid, since_ms: now_ms });
        let device = session.device;
        if no_timer {
            self.set_timer(id, SessionTimer::OpenSends, now_ms + SEND_OPEN_MS_MAX);
        }
        if let Err(failure) = self.take_token(id) {
            return self.refuse_send(id, request, failure);
        }
        self.counters.sends += 1;
        let message = ShardMessage::Send(SendRequest {
            origin: SendRef { session: id, request },
            cid: send.cid,
            uid,
            device,
            cmid: send.cmid,
            base: Some(send.base),
            previous: before.map(|(cmid, _)| cmid),
            kind: send.kind,
            body: send.body,
        });
        let owner = self.owner_of(send.cid.vshard());
        if self.tell_shard(owner, message) == Queued::Refused {
            let failure = Failure::new(ErrorCode::Busy).retry_after(BUSY_RETRY_MS);
            self.refuse_send(id, request, failure);
        }
    }

    /// Counts a request against the rate of the session's user.
    pub(crate) fn take_token(&mut self, id: SessionId) -> Result<(), Failure> {
        match self.sessions.get(&id).map(|session| session.uid) {
            Some(uid) => self.take_token_of(uid),
            None => Ok(()),
        }
    }

    /// Counts a request against the rate of a user.
    pub(crate) fn take_token_of(&mut self, uid: Uid) -> Result<(), Failure> {
        let (now_ms, limits) = (self.now.mono_ms, &self.config.limits);
        let Some(user) = self.users.get_mut(&uid) else { return Ok(()) };
        let taken = user.bucket.take(now_ms, limits.sends_per_second, limits.sends_burst);
        taken.map_err(|wait_ms| {
            self.counters.rate_limited += 1;
            Failure::new(ErrorCode::Busy).retry_after(wait_ms)
        })
    }

    fn refuse_send(&mut self, id: SessionId, request: RequestId, failure: Failure) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.sends.remove(&request);
            if let Some(sent) = session.sent_before(request) {
                sent.fate = Fate::Refused;
            }
        }
        self.refuse_request(id, request, failure);
    }

    /// Tells a session that a request was surely not carried out.
    pub(crate) fn refuse_request(&mut self, id: SessionId, request: RequestId, error: Failure) {
        self.counters.sends_refused += 1;
        self.send(id, ServerFrame::Refused { request, error });
    }

    /// The channel's owner answers a send.
    pub(crate) fn send_answered(&mut self, origin: SendRef, cid: Cid, answer: SendAnswer) {
        let SendRef { session: id, request } = origin;
        let Some(session) = self.sessions.get_mut(&id) else {
            return self.call_send_answered(origin, answer);
        };
        if session.sends.remove(&request).is_none() {
            return;
        }
        match answer {
            SendAnswer::Stored { seq, time_ms, .. } => {
                self.send(id, ServerFrame::Sent { request, cid, seq, time_ms });
            }
            SendAnswer::Refused { code, retry_after_ms } => {
                if let Some(sent) = session.sent_before(request) {
                    sent.fate = Fate::Refused;
                }
                let error = Failure { retry_after_ms, ..Failure::new(code) };
                self.refuse_request(id, request, error);
            }
            SendAnswer::Continue { checked_to } => {
                self.send(id, ServerFrame::Continue { request, checked_to });
            }
        }
    }

    /// Sets a timer of a session in place of the one of its kind.
    pub(crate) fn set_timer(&mut self, id: SessionId, kind: SessionTimer, at_ms: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let key = self.timers.set(at_ms, Timer::Session(id, kind));
        if let Some(old) = session.timers[kind as usize].replace(key) {
            self.timers.cancel(old);
        }
    }

    pub(crate) fn session_timer(&mut self, id: SessionId, kind: SessionTimer) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.timers[kind as usize] = None;
        }
        match kind {
            SessionTimer::Heartbeat => self.check_heartbeat(id),
            SessionTimer::Expiry => self.check_expiry(id),
            SessionTimer::OpenSends => self.check_open_sends(id),
            SessionTimer::Audit => self.audit(id),
        }
    }

    fn check_open_sends(&mut self, id: SessionId) {
        let now_ms = self.now.mono_ms;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let mut late = Vec::new();
        let mut oldest_ms = u64::MAX;
        for (request, send) in &session.sends {
            if send.since_ms + SEND_OPEN_MS_MAX <= now_ms {
                late.push((*request, send.cid));
            } else {
                oldest_ms = oldest_ms.min(send.since_ms);
            }
        }
        late.sort_unstable();
        for (request, _) in &late {
            session.sends.remove(request);
        }
        if oldest_ms != u64::MAX {
            self.set_timer(id, SessionTimer::OpenSends, oldest_ms + SEND_OPEN_MS_MAX);
        }
        for (request, _) in late {
            self.counters.sends_unknown += 1;
            self.send(id, ServerFrame::Unknown { request });
        }
    }

    /// A message of one of the user's channels is stored.
    pub(crate) fn notified(&mut self, uid: Uid, version: Version, message: &Stored) {
        let Some(user) = self.users.get_mut(&uid) else { return };
        user.saw(message.cid, message.row.seq);
        // No session comes or goes meanwhile.
        let sessions = std::mem::take(&mut user.sessions);
        for id in &sessions {
            self.deliver(*id, version, message);
        }
        if let Some(user) = self.users.get_mut(&uid) {
            debug_assert!(user.sessions.is_empty(), "a delivery signs nobody in");
            user.sessions = sessions;
            if user.calls.is_some() {
                self.reach_grows(version);
                self.feed_message(uid, version, message);
            }
        }
    }

    /// Notifications of the user were lost to a full queue: its sessions have to pull.
    pub(crate) fn notifications_lost(&mut self, uid: Uid) {
        let Some(user) = self.users.get(&uid) else { return };
        for id in user.sessions.clone() {
            self.fall_behind(id);
        }
        self.feed_lost(uid);
    }

    /// Pushes a message to a session, or keeps it for later, or lets the session fall behind.
    pub(crate) fn deliver(&mut self, id: SessionId, version: Version, message: &Stored) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if matches!(session.phase, Phase::SigningIn { .. }) {
            // The sync that follows the welcome reads it.
            return;
        }
        match session.flow {
            Flow::Behind => return,
            Flow::Held => {
                let sync = session.sync.as_mut();
                if !sync.is_some_and(|sync| sync.hold(version, message)) {
                    self.fall_behind(id);
                }
                return;
            }
            Flow::Live => {}
        }
        let answered =
            |origin: &SendRef| origin.session == id && session.sends.contains_key(&origin.request);
        if version <= session.covered || message.origins.as_slice().iter().any(answered) {
            return;
        }
        session.pushed = session.pushed.max(version);
        let frame = push_frame(session, message);
        let size = message.row.body.len() as u32 + PUSH_OVERHEAD_BYTES;
        self.push(id, size, frame);
    }

    /// Sends a push within the window; at its end the session falls behind instead.
    pub(crate) fn push(&mut self, id: SessionId, size: u32, frame: ServerFrame) {
        let limits = &self.config.limits;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let window = &mut session.window;
        let full = window.sizes.len() >= limits.window_pushes as usize
            || window.bytes + size > limits.window_bytes && !window.sizes.is_empty();
        if full {
            return self.fall_behind(id);
        }
        window.sent += 1;
        window.bytes += size;
        window.sizes.push_back(size);
        self.counters.pushes += 1;
        self.send(id, frame);
    }

    fn fall_behind(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let welcomed = matches!(session.phase, Phase::Attached);
        if !welcomed || session.flow == Flow::Behind {
            return;
        }
        session.flow = Flow::Behind;
        self.counters.sessions_behind += 1;
        self.send(id, ServerFrame::Behind);
    }

    fn acked(&mut self, id: SessionId, pushes: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let window = &mut session.window;
        if pushes > window.sent {
            return self.close_with(id, Failure::new(ErrorCode::Invalid).text("acked too much"));
        }
        while window.acked < pushes {
            window.acked += 1;
            window.bytes -= window.sizes.pop_front().unwrap_or(0);
        }
        if window.sizes.is_empty() {
            window.sizes = VecDeque::new();
        }
    }

    fn pinged(&mut self, id: SessionId, pushes: u64) {
        self.acked(id, pushes);
        let Some(session) = self.sessions.get(&id) else { return };
        let pong = ServerFrame::Pong { pushes: session.window.sent, time_ms: self.now.unix_ms };
        self.send(id, pong);
    }

    /// The gateway has looked at a new token.
    pub(crate) fn session_refreshed(
        &mut self,
        id: SessionId,
        request: RequestId,
        identity: Result<Identity, ErrorCode>,
    ) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if matches!(session.phase, Phase::SigningIn { .. }) {
            return self.close_with(id, Failure::new(ErrorCode::Unexpected));
        }
        if let Err(code) = session.take_request(request) {
            return self.close_with(id, Failure::new(code));
        }
        let rows = self.users.get(&session.uid).and_then(|user| user.rows.as_ref());
        let user = rows.and_then(|rows| rows.user.as_ref());
        let of_device = |bound| {
            let device = rows.and_then(|rows| rows.devices.of(bound));
            device.is_some_and(|(device, _)| device == session.device)
        };
        let same = |new: &Identity| {
            user.is_some_and(|row| new.issuer == row.issuer && new.subject == row.subject)
                && new.installation.is_none_or(of_device)
        };
        let token = match identity {
            Ok(identity) if same(&identity) => TokenTimes::from(&identity),
            Ok(_) => {
                let failure = Failure::new(ErrorCode::InvalidToken);
                return self.refuse_request(id, request, failure);
            }
            Err(code) => return self.refuse_request(id, request, Failure::new(code)),
        };
        if user.is_some_and(|row| token.issued_at_s < row.revoked_before_s) {
            return self.refuse_request(id, request, Failure::new(ErrorCode::RevokedToken));
        }
        session.token = token;
        self.set_expiry(id, token.expires_at_s);
        self.send(id, ServerFrame::Done { request });
    }

    pub(crate) fn set_expiry(&mut self, id: SessionId, expires_at_s: u64) {
        let left_ms = expires_at_s.saturating_mul(1_000).saturating_sub(self.now.unix_ms);
        let at_ms = self.now.mono_ms.saturating_add(left_ms);
        self.set_timer(id, SessionTimer::Expiry, at_ms);
    }

    fn check_expiry(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else { return };
        let expires_at_s = session.token.expires_at_s;
        if self.now.unix_ms >= expires_at_s.saturating_mul(1_000) {
            self.close_with(id, Failure::new(ErrorCode::ExpiredToken));
        } else {
            self.set_expiry(id, expires_at_s);
        }
    }

    /// How long a session may be silent.
    pub(crate) fn silence_ms_max(&self) -> u64 {
        u64::from(self.config.limits.heartbeat_ms) * 5 / 2
    }

    fn check_heartbeat(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else { return };
        let due_ms = session.heard_ms + self.silence_ms_max();
        if due_ms <= self.now.mono_ms {
            self.close_with(id, Failure::new(ErrorCode::Timeout));
        } else {
            self.set_timer(id, SessionTimer::Heartbeat, due_ms);
        }
    }

    /// The connection is gone, or is about to be closed.
    pub(crate) fn remove_session(&mut self, id: SessionId) {
        if let Some(uid) = self.forget_session(id) {
            self.drop_idle_user(uid);
        }
        if let Some(uid) = self.attaching.remove(&id)
            && let Some(user) = self.users.get_mut(&uid)
        {
            user.waiting.retain(|(waiting, _)| *waiting != id);
        }
    }

    pub(crate) fn forget_session(&mut self, id: SessionId) -> Option<Uid> {
        let session = self.sessions.remove(&id)?;
        for timer in session.timers.into_iter().flatten() {
            self.timers.cancel(timer);
        }
        self.counters.sessions = self.sessions.len() as u64;
        if let Some(user) = self.users.get_mut(&session.uid) {
            user.sessions.retain(|live| *live != id);
        }
        Some(session.uid)
    }

    /// Ends sessions for a reason that their clients are told.
    pub(crate) fn end_sessions(&mut self, ids: Vec<SessionId>, code: CloseCode) {
        for id in ids {
            self.effect(Effect::Close { session: id, code });
            self.remove_session(id);
        }
    }

    /// The node is about to stop.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
        let mut ids: Vec<_> = self.sessions.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let drain = ServerFrame::Drain { after_ms: 0, spread_ms: DRAIN_SPREAD_MS };
            self.send(id, drain);
        }
        let mut users: Vec<_> = self.users.keys().copied().collect();
        users.sort_unstable();
        for uid in users {
            self.write_markers(uid);
        }
        self.end_parked();
    }
}

/// Whether anybody may send this.
pub(crate) fn check_message(kind: MessageKind, body: &Bytes) -> Result<(), ErrorCode> {
    if body.len() > BODY_BYTES_MAX {
        return Err(ErrorCode::BodyTooLarge);
    }
    // Later versions give the other kinds a meaning, which nobody may forge today.
    if kind.counts_as_unread() { Ok(()) } else { Err(ErrorCode::Invalid) }
}

/// A text goes as it is; a message whose fields the client needs goes with all of them.
fn push_frame(session: &Session, message: &Stored) -> ServerFrame {
    let Stored { cid, uid, row, .. } = message;
    let own_device = *uid == session.uid && row.device == session.device;
    if row.kind == MessageKind::TEXT && !own_device {
        ServerFrame::Text {
            cid: *cid,
            seq: row.seq,
            sender: row.sender,
            time_ms: row.time_ms,
            body: row.body.clone(),
        }
    } else {
        ServerFrame::Entry { cid: *cid, row: row.clone() }
    }
}

#[cfg(test)]
mod tests;
