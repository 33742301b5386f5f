//! What a session asks besides sending: open a channel, read its messages, who is in it, sign out.

use bytes::Bytes;
use chatring_wire::frame::{
    Direction, Failure, Head, Member, Page, RangeRequest, RequestId, Row, ServerFrame,
    SignOutScope, UserRef,
};
use chatring_wire::limits::{NAME_BYTES_MAX, ROWS_PER_FRAME_MAX, WHO_MEMBERS_MAX};
use chatring_wire::{Cid, CloseCode, ErrorCode, MemberNumber, Seq, Uid};

use crate::calls::{Listing, Then};
use crate::effect::{SendRef, SessionId, ShardMessage};
use crate::keys;
use crate::kv::{Order, RangeEnd, RangeRead, Read, ReadVersion, Rows};
use crate::placement::CANDIDATES;
use crate::queue::Queued;
use crate::session::{BUSY_RETRY_MS, REQUESTS_OPEN_MAX};
use crate::shard::{Asker, Shard, Tag};
use crate::sync::{PAGE_BYTES_MAX, ROW_BYTES, empty_head, head_of};
use crate::values::{
    ChannelRow, DeviceStanding, InboxRow, MarkerRow, MessageRow, TrimRow, UserRow, ValueError,
};

/// What of a request is being read.
#[derive(Clone, Debug)]
pub(crate) enum RequestStep {
    /// The rows of the user that is to be talked to, under each of its candidate ids.
    OpenPeer { candidates: Vec<Uid>, wanted: Option<(String, String)> },
    /// The opener's own rows of the channel.
    OpenRows { cid: Cid },
    /// The rows of a channel that a call speaks of.
    CallRows { cid: Cid, then: Then },
    /// A page of a user's channels.
    CallList,
    /// What views of these channels show.
    CallViews(Vec<Head>, Listing),
    /// Messages and the channel that they belong to.
    Range(RangeRequest),
    /// The channel whose members are asked for.
    WhoChannel { cid: Cid, members: Vec<MemberNumber> },
    /// The users of these members.
    WhoUsers { cid: Cid, members: Vec<(MemberNumber, Uid)> },
}

impl Shard {
    /// Notes a request, or refuses it if too many are open.
    fn begin_request(&mut self, id: SessionId, request: RequestId) -> Option<SendRef> {
        let session = self.sessions.get_mut(&id)?;
        if session.requests.len() >= REQUESTS_OPEN_MAX {
            let failure = Failure::new(ErrorCode::Busy).retry_after(BUSY_RETRY_MS);
            self.refuse_request(id, request, failure);
            return None;
        }
        if let Err(failure) = self.take_token(id) {
            self.refuse_request(id, request, failure);
            return None;
        }
        self.sessions.get_mut(&id)?.requests.push(request);
        Some(SendRef { session: id, request })
    }

    /// Ends a request with its answer, if anybody still waits for it.
    pub(crate) fn end_request(&mut self, origin: SendRef, answer: Result<ServerFrame, ErrorCode>) {
        let Some(session) = self.sessions.get_mut(&origin.session) else {
            return self.end_call_request(origin, answer);
        };
        let open = session.requests.len();
        session.requests.retain(|request| *request != origin.request);
        if session.requests.len() == open {
            return;
        }
        match answer {
            Ok(frame) => self.send(origin.session, frame),
            Err(code) => {
                self.refuse_request(origin.session, origin.request, Failure::new(code));
            }
        }
    }

    pub(crate) fn open(&mut self, id: SessionId, request: RequestId, with: UserRef) {
        if let Some(origin) = self.begin_request(id, request) {
            self.open_for(origin, with);
        }
    }

    pub(crate) fn open_for(&mut self, origin: SendRef, with: UserRef) {
        let key = &self.ready().key;
        let (candidates, wanted) = match with {
            UserRef::Uid(uid) => (vec![uid], None),
            UserRef::Subject { issuer, subject } => {
                if subject.is_empty() || subject.len().max(issuer.len()) > NAME_BYTES_MAX {
                    return self.end_request(origin, Err(ErrorCode::Invalid));
                }
                let uids = (0..CANDIDATES).map(|n| key.uid(&issuer, &subject, n)).collect();
                (uids, Some((issuer, subject)))
            }
        };
        let read = Read {
            gets: candidates.iter().map(|uid| keys::user(*uid)).collect(),
            ranges: Vec::new(),
            version: ReadVersion::Fresh,
        };
        let step = RequestStep::OpenPeer { candidates, wanted };
        self.read(Asker::Request(origin, step), read);
    }

    pub(crate) fn request_rows(&mut self, origin: SendRef, step: RequestStep, rows: Rows) {
        let Some(uid) = self.asker(origin) else { return };
        let answer = match step {
            RequestStep::CallRows { cid, then } => {
                return self.call_rows_read(origin, uid, cid, then, rows);
            }
            RequestStep::CallList => return self.call_list_read(origin, rows),
            RequestStep::CallViews(heads, listing) => {
                return self.call_views_read(origin, heads, listing, rows);
            }
            RequestStep::OpenPeer { candidates, wanted } => {
                match find_user(&candidates, wanted.as_ref(), rows) {
                    Ok(Some(peer)) => return self.open_with(origin, uid, peer),
                    Ok(None) => Ok(Err(ErrorCode::UnknownUser)),
                    Err(error) => Err(error),
                }
            }
            RequestStep::OpenRows { cid } => opened(origin.request, uid, cid, rows).map(Ok),
            RequestStep::Range(range) => ranged(range, uid, rows),
            RequestStep::WhoChannel { cid, members } => match members_of(uid, members, rows) {
                Ok(Ok(members)) => return self.who_users(origin, cid, members),
                Ok(Err(code)) => Ok(Err(code)),
                Err(error) => Err(error),
            },
            RequestStep::WhoUsers { cid, members } => {
                named(origin.request, cid, members, rows).map(Ok)
            }
        };
        match answer {
            Ok(answer) => self.end_request(origin, answer),
            Err(error) => {
                self.note_damage(error);
                self.end_request(origin, Err(ErrorCode::Internal));
            }
        }
    }

    /// The user who asks, if it still waits for the answer.
    fn asker(&self, origin: SendRef) -> Option<Uid> {
        match origin.call() {
            Some(call) => self.calls.get(&call).map(|call| call.uid),
            None => self.sessions.get(&origin.session).map(|session| session.uid),
        }
    }

    fn open_with(&mut self, origin: SendRef, uid: Uid, peer: Uid) {
        if uid == peer {
            return self.end_request(origin, Err(ErrorCode::SelfChannel));
        }
        let cid = self.ready().key.direct_cid(uid, peer, 0);
        let owner = self.owner_of(cid.vshard());
        let open = ShardMessage::OpenDirect { origin, uid, peer, candidate: 0 };
        if self.tell_shard(owner, open) == Queued::Refused {
            self.end_request(origin, Err(ErrorCode::Busy));
        }
    }

    /// The channel's owner has found or made it: now the opener's own rows of it.
    pub(crate) fn channel_opened(&mut self, origin: SendRef, result: Result<Cid, ErrorCode>) {
        let Some(uid) = self.asker(origin) else { return };
        let cid = match result {
            Ok(cid) => cid,
            Err(code) => return self.end_request(origin, Err(code)),
        };
        let read = Read {
            gets: vec![keys::channel(cid), keys::inbox(uid, cid), keys::marker(uid, cid)],
            ranges: Vec::new(),
            version: ReadVersion::Fresh,
        };
        self.read(Asker::Request(origin, RequestStep::OpenRows { cid }), read);
    }

    pub(crate) fn range(&mut self, id: SessionId, range: RangeRequest) {
        if let Some(origin) = self.begin_request(id, range.request) {
            self.range_for(origin, range);
        }
    }

    pub(crate) fn range_for(&mut self, origin: SendRef, range: RangeRequest) {
        if range.from.0 == 0 || range.from > range.to {
            return self.end_request(origin, Err(ErrorCode::Invalid));
        }
        let rows_max = match range.limit {
            0 => ROWS_PER_FRAME_MAX as u32,
            limit => limit.min(ROWS_PER_FRAME_MAX as u32),
        };
        let read = Read {
            gets: vec![keys::channel(range.cid), keys::trim(range.cid)],
            ranges: vec![RangeRead {
                range: keys::messages(range.cid, range.from, range.to),
                rows_max,
                bytes_max: PAGE_BYTES_MAX as u32,
                order: match range.direction {
                    Direction::Ascending => Order::Forward,
                    Direction::Descending => Order::Reverse,
                },
            }],
            version: ReadVersion::Fresh,
        };
        self.read(Asker::Request(origin, RequestStep::Range(range)), read);
    }

    pub(crate) fn who(
        &mut self,
        id: SessionId,
        request: RequestId,
        cid: Cid,
        members: Vec<MemberNumber>,
    ) {
        let Some(origin) = self.begin_request(id, request) else { return };
        if members.len() > WHO_MEMBERS_MAX {
            return self.end_request(origin, Err(ErrorCode::Invalid));
        }
        let read = Read {
            gets: vec![keys::channel(cid)],
            ranges: Vec::new(),
            version: ReadVersion::Fresh,
        };
        self.read(Asker::Request(origin, RequestStep::WhoChannel { cid, members }), read);
    }

    fn who_users(&mut self, origin: SendRef, cid: Cid, members: Vec<(MemberNumber, Uid)>) {
        let read = Read {
            gets: members.iter().map(|(_, uid)| keys::user(*uid)).collect(),
            ranges: Vec::new(),
            version: ReadVersion::Fresh,
        };
        self.read(Asker::Request(origin, RequestStep::WhoUsers { cid, members }), read);
    }

    /// Makes tokens or a device invalid; the sessions end once that is stored.
    pub(crate) fn sign_out(&mut self, id: SessionId, request: RequestId, scope: SignOutScope) {
        if let Some(origin) = self.begin_request(id, request) {
            self.sign_out_for(origin, scope);
        }
    }

    pub(crate) fn sign_out_for(&mut self, origin: SendRef, scope: SignOutScope) {
        let Some(uid) = self.asker(origin) else { return };
        let store = self.ready().store;
        let next_s = self.now.unix_ms / 1_000 + 1;
        if !self.lane.as_ref().is_some_and(|lane| lane.has_room()) {
            return self.end_request(origin, Err(ErrorCode::Busy));
        }
        let rows = self.users.get_mut(&uid).and_then(|user| user.rows.as_mut());
        let Some(rows) = rows else { return self.end_request(origin, Err(ErrorCode::Internal)) };
        let write = match scope {
            SignOutScope::Everywhere => rows.user.as_mut().map(|row| {
                row.revoked_before_s = row.revoked_before_s.max(next_s);
                row.write(keys::user(uid), store)
            }),
            SignOutScope::Device(device) => rows.devices.get_mut(device).map(|row| {
                row.standing = DeviceStanding::Revoked;
                row.write(keys::device(uid, device), store)
            }),
        };
        let Some(write) = write else { return self.end_request(origin, Err(ErrorCode::Invalid)) };
        if self.append(vec![write], Tag::SignOut(uid, origin, scope)).is_err() {
            debug_assert!(false, "the lane had room");
        }
    }

    pub(crate) fn sign_out_stored(&mut self, uid: Uid, origin: SendRef, scope: SignOutScope) {
        self.end_request(origin, Ok(ServerFrame::Done { request: origin.request }));
        let Some(user) = self.users.get(&uid) else { return };
        let revoked_before_s = user
            .rows
            .as_ref()
            .and_then(|rows| rows.user.as_ref())
            .map_or(0, |row| row.revoked_before_s);
        let ended = |id: &SessionId| {
            self.sessions.get(id).is_some_and(|session| match scope {
                SignOutScope::Everywhere => session.token.issued_at_s < revoked_before_s,
                SignOutScope::Device(device) => session.device == device,
            })
        };
        let ids = user.sessions.iter().copied().filter(ended).collect();
        self.end_sessions(ids, CloseCode::Auth);
        self.end_calls_of(uid, scope, revoked_before_s);
    }
}

/// Which of the candidates is the wanted user.
fn find_user(
    candidates: &[Uid],
    wanted: Option<&(String, String)>,
    rows: Rows,
) -> Result<Option<Uid>, ValueError> {
    for (uid, value) in candidates.iter().zip(rows.gets) {
        let Some(row) = value.map(UserRow::decode).transpose()? else { break };
        let same =
            wanted.is_none_or(|(issuer, subject)| row.issuer == *issuer && row.subject == *subject);
        if same {
            return Ok(Some(*uid));
        }
    }
    Ok(None)
}

pub(crate) fn opened(
    request: RequestId,
    uid: Uid,
    cid: Cid,
    rows: Rows,
) -> Result<ServerFrame, ValueError> {
    let [channel, inbox, marker]: [Option<Bytes>; 3] =
        rows.gets.try_into().map_err(|_| ValueError::Damaged)?;
    let channel = ChannelRow::decode(channel.ok_or(ValueError::Damaged)?)?;
    let marker = marker.map(MarkerRow::decode).transpose()?;
    let head = match inbox.map(InboxRow::decode).transpose()? {
        Some(inbox) => head_of(cid, &inbox, marker.as_ref()),
        None => {
            let me = channel.member(uid).ok_or(ValueError::Damaged)?;
            empty_head(cid, me, channel.peer(me))
        }
    };
    Ok(ServerFrame::Opened { request, head })
}

type Answer<T> = Result<Result<T, ErrorCode>, ValueError>;

fn ranged(range: RangeRequest, uid: Uid, rows: Rows) -> Answer<ServerFrame> {
    let [channel, trim]: [Option<Bytes>; 2] =
        rows.gets.try_into().map_err(|_| ValueError::Damaged)?;
    let Some(channel) = channel.map(ChannelRow::decode).transpose()? else {
        return Ok(Err(ErrorCode::UnknownChannel));
    };
    if channel.member(uid).is_none() {
        return Ok(Err(ErrorCode::UnknownChannel));
    }
    let trim = trim.map(TrimRow::decode).transpose()?;
    if range.to < trim.map_or(Seq(1), |trim| trim.floor) {
        return Ok(Err(ErrorCode::Expired));
    }
    let read = rows.ranges.into_iter().next().ok_or(ValueError::Damaged)?;
    let mut gap = read.end == RangeEnd::More;
    let mut found: Vec<Row> = Vec::with_capacity(read.rows.len());
    let mut bytes = 0;
    for (key, value) in read.rows {
        let seq = keys::seq_of_message(&key).ok_or(ValueError::Damaged)?;
        let row = MessageRow::decode(seq, value)?.row;
        bytes += row.body.len() + ROW_BYTES;
        if bytes > PAGE_BYTES_MAX && !found.is_empty() {
            gap = true;
            break;
        }
        found.push(row);
    }
    if range.direction == Direction::Descending {
        found.reverse();
    }
    let (from, to) = match (found.first(), found.last()) {
        (Some(first), Some(last)) => (first.seq, last.seq),
        _ => (range.from, Seq(range.from.0 - 1)),
    };
    let page = Page { cid: range.cid, from, to, gap, rows: found };
    Ok(Ok(ServerFrame::Rows { request: range.request, page }))
}

/// The asked members that exist, for a user who is one of them.
fn members_of(uid: Uid, asked: Vec<MemberNumber>, rows: Rows) -> Answer<Vec<(MemberNumber, Uid)>> {
    let channel = rows.gets.into_iter().next().flatten();
    let Some(channel) = channel.map(ChannelRow::decode).transpose()? else {
        return Ok(Err(ErrorCode::UnknownChannel));
    };
    if channel.member(uid).is_none() {
        return Ok(Err(ErrorCode::UnknownChannel));
    }
    let all = channel.pair.into_iter().enumerate();
    let numbered = all.map(|(number, uid)| (MemberNumber(number as u32), uid));
    let wanted = |(number, _): &(MemberNumber, Uid)| asked.is_empty() || asked.contains(number);
    Ok(Ok(numbered.filter(wanted).collect()))
}

fn named(
    request: RequestId,
    cid: Cid,
    members: Vec<(MemberNumber, Uid)>,
    rows: Rows,
) -> Result<ServerFrame, ValueError> {
    let mut named = Vec::with_capacity(members.len());
    for ((number, uid), value) in members.into_iter().zip(rows.gets) {
        let Some(row) = value.map(UserRow::decode).transpose()? else { continue };
        named.push(Member { number, uid, issuer: row.issuer, subject: row.subject });
    }
    Ok(ServerFrame::Members { request, cid, members: named })
}
