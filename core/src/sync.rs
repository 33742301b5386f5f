//! Sync: brings a session up to date after any absence, and audits the live ones.
//!
//! ```text
//!  cursor P ──▶ read a slice of inbox and marker rows at R ──▶ more … ──▶ heads, newest first
//!                    │ the first slice's R becomes the position                     │
//!                    ▼                                                              ▼
//!               held notifications ≤ R drop, the others are pushed    pages of the newest channels
//!                                                                                   │
//!                                                              synced{cursor at R} ◀┘
//! ```
//!
//! Only a read moves a position, never a push: two owners commit in one order and may notify in the
//! other. Every read is at a fresh version at or above R, so that nothing up to R is missed.

use std::cmp::Reverse;
use std::collections::VecDeque;

use bytes::Bytes;
use chatring_wire::frame::{
    CacheAction, Failure, Head, HeadRows, Page, RequestId, Row, ServerFrame,
};
use chatring_wire::limits::BODY_BYTES_MAX;
use chatring_wire::{Cid, ErrorCode, Ordinal, Seq, Uid};

use crate::cursor::{Cursor, Position};
use crate::effect::{SessionId, Stored};
use crate::keys;
use crate::kv::{Order, RangeEnd, RangeRead, RangeRows, Read, ReadVersion, Rows, Version};
use crate::sabotage::Break;
use crate::session::{Flow, Suspects};
use crate::shard::{Asker, Shard};
use crate::timers::SessionTimer;
use crate::user::read_ordinal;
use crate::values::{InboxRow, MarkerRow, MessageRow, RowStamp, ValueError};

/// Rows of each kind in one slice of a user's inbox.
const SLICE_ROWS_MAX: u32 = 512;
/// Bytes of each kind in one slice.
const SLICE_BYTES_MAX: u32 = 256 * 1024;
/// Changed channels that a sync keeps until it knows the newest of them.
const CHANGED_MAX: usize = 1_024;
/// Notifications that wait until a session's first read tells which of them it covers.
const HELD_MAX: usize = 256;
/// Channels of which a sync gives messages; of the others it gives heads.
const PAGES_MAX: usize = 64;
/// Messages in one page.
pub(crate) const PAGE_ROWS_MAX: u32 = 20;
/// Channels whose pages are read at once.
const PAGES_PER_READ: usize = 8;
/// Bytes of messages in a page or in the answer to a range, so that every client's largest frame
/// holds one.
pub(crate) const PAGE_BYTES_MAX: usize = BODY_BYTES_MAX + 1024;
/// Bytes after which a sync waits for `more`.
pub(crate) const PART_BYTES_MAX: usize = 64 * 1024;
/// What a head costs on the wire, at most.
const HEAD_BYTES: usize = 80;
/// What a row costs on the wire besides its body, at most.
pub(crate) const ROW_BYTES: usize = 64;
/// Notifications that an audit misses get this long to come in.
const AUDIT_GRACE_MS: u64 = 2_000;

const _: () = assert!(
    PAGE_BYTES_MAX + ROW_BYTES * (PAGE_ROWS_MAX as usize) + 64
        <= chatring_wire::limits::FRAME_BYTES_MIN
);

/// A sync under way.
#[derive(Debug)]
pub(crate) struct Sync {
    generation: u64,
    purpose: Purpose,
    request: RequestId,
    cursor: Option<Cursor>,
    since: Position,
    /// The version of the first read.
    at: Option<Version>,
    /// The last channel of the slices so far.
    after: Option<Cid>,
    changed: Vec<Changed>,
    pages: VecDeque<PageOf>,
    part_bytes: usize,
    next: Next,
    /// What the client asked for while a read of this sync was under way: it comes instead.
    pull: Option<(RequestId, Bytes)>,
    reading: bool,
    /// Notifications that came before the first read.
    held: VecDeque<(Version, Stored)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// The client is brought up to date.
    Resume,
    /// The server looks whether the client missed something.
    Audit,
}

/// What comes when the client asks for more, or at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Slice,
    Pages,
    Done,
}

/// A channel that changed since a position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Changed {
    pub(crate) head: Head,
    pub(crate) stamp: RowStamp,
    pub(crate) messages: MessagesChanged,
}

/// Whether it has other messages, or only other markers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MessagesChanged {
    Yes,
    No,
}

/// A channel whose newest messages are to be given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageOf {
    cid: Cid,
    floor: Seq,
    head: Seq,
}

/// What of a sync is being read.
#[derive(Clone, Debug)]
pub(crate) enum SyncStep {
    /// A slice of the inbox.
    Slice { generation: u64 },
    /// Messages of these channels.
    Pages { generation: u64, of: Vec<PageOf> },
}

impl Sync {
    /// Keeps a notification until the first read tells whether it is covered; false if there are
    /// too many.
    pub(crate) fn hold(&mut self, version: Version, message: &Stored) -> bool {
        let has_room = self.held.len() < HELD_MAX;
        if has_room {
            self.held.push_back((version, message.clone()));
        }
        has_room
    }
}

impl Shard {
    /// Starts to bring a session up to date.
    pub(crate) fn start_sync(&mut self, id: SessionId, request: RequestId, cursor: Bytes) {
        self.counters.syncs += 1;
        let history = self.ready().history;
        let cursor = Cursor::decode(cursor).filter(|cursor| cursor.history == history);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.flow = Flow::Held;
        }
        let since = cursor.as_ref().map_or(Position::START, |cursor| cursor.position);
        self.begin(id, Purpose::Resume, request, cursor, since);
    }

    /// A client pulls: because it is behind, or because it missed something.
    pub(crate) fn pull(&mut self, id: SessionId, request: RequestId, cursor: Bytes) {
        if let Err(failure) = self.take_token(id) {
            return self.refuse_request(id, request, failure);
        }
        let Some(session) = self.sessions.get_mut(&id) else { return };
        match &mut session.sync {
            Some(sync) if sync.reading => sync.pull = Some((request, cursor)),
            Some(_) | None => self.start_sync(id, request, cursor),
        }
    }

    fn begin(
        &mut self,
        id: SessionId,
        purpose: Purpose,
        request: RequestId,
        cursor: Option<Cursor>,
        since: Position,
    ) {
        self.sync_generation += 1;
        let generation = self.sync_generation;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.sync = Some(Box::new(Sync {
            generation,
            purpose,
            request,
            cursor,
            since,
            at: None,
            after: None,
            changed: Vec::new(),
            pages: VecDeque::new(),
            part_bytes: 0,
            next: Next::Slice,
            pull: None,
            reading: false,
            held: VecDeque::new(),
        }));
        self.read_slice(id);
    }

    fn read_slice(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let (uid, Some(sync)) = (session.uid, &mut session.sync) else { return };
        sync.reading = true;
        let range = |range| RangeRead {
            range,
            rows_max: SLICE_ROWS_MAX,
            bytes_max: SLICE_BYTES_MAX,
            order: Order::Forward,
        };
        let read = Read {
            gets: Vec::new(),
            ranges: vec![
                range(keys::inbox_after(uid, sync.after)),
                range(keys::markers_after(uid, sync.after)),
            ],
            version: ReadVersion::Fresh,
        };
        let step = SyncStep::Slice { generation: sync.generation };
        self.read(Asker::Sync(id, step), read);
    }

    pub(crate) fn sync_rows(&mut self, id: SessionId, step: SyncStep, rows: Rows) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let generation = match &step {
            SyncStep::Slice { generation } | SyncStep::Pages { generation, .. } => *generation,
        };
        let Some(sync) = session.sync.as_mut().filter(|sync| sync.generation == generation) else {
            return;
        };
        sync.reading = false;
        if let Some((request, cursor)) = sync.pull.take() {
            return self.start_sync(id, request, cursor);
        }
        self.counters.sync_rows +=
            rows.ranges.iter().map(|range| range.rows.len() as u64).sum::<u64>();
        let done = match step {
            SyncStep::Slice { .. } => self.slice_read(id, rows),
            SyncStep::Pages { of, .. } => self.pages_read(id, &of, rows),
        };
        match done {
            Ok(()) => self.go_on(id),
            Err(error) => {
                self.note_damage(error);
                self.close_with(id, Failure::new(ErrorCode::Internal));
            }
        }
    }

    fn slice_read(&mut self, id: SessionId, rows: Rows) -> Result<(), ValueError> {
        self.first_version_known(id, rows.version);
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        let Some(sync) = &mut session.sync else { return Ok(()) };
        let slice = join(rows)?;
        for (inbox_cid, inbox, marker) in slice.channels {
            if let Some(changed) = changed(inbox_cid, &inbox, marker.as_ref(), sync.since) {
                sync.changed.push(changed);
            }
        }
        sync.after = slice.last.or(sync.after);
        sync.next = if slice.end == RangeEnd::Complete { Next::Pages } else { Next::Slice };
        if sync.purpose == Purpose::Audit {
            return Ok(());
        }
        if sync.next == Next::Pages {
            self.give_heads(id);
        } else {
            self.give_oldest_heads(id);
        }
        Ok(())
    }

    /// The first read's version is the position that the sync leads to, and tells which
    /// notifications it covers.
    fn first_version_known(&mut self, id: SessionId, at: Version) {
        let store = self.ready().store;
        let now = Position { incarnation: store, version: at };
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(sync) = &mut session.sync else { return };
        if sync.at.is_some() {
            return;
        }
        sync.at = Some(at);
        if sync.purpose == Purpose::Audit {
            return;
        }
        let foreign = sync.cursor.is_none() || sync.since > now;
        if foreign {
            sync.since = Position::START;
            sync.cursor = None;
        }
        let request = sync.request;
        session.covered = session.covered.max(at);
        let mut held = std::mem::take(&mut sync.held);
        match session.flow {
            Flow::Held => session.flow = Flow::Live,
            // It has lost some of them.
            Flow::Behind => held.clear(),
            Flow::Live => {}
        }
        let cache = if foreign { CacheAction::Replace } else { CacheAction::Keep };
        if foreign {
            self.counters.syncs_replaced += 1;
        }
        self.send(id, ServerFrame::Syncing { request, cache });
        if self.config.breaks.has(Break::PositionWithFirstPage) {
            self.give_position(id, request, now);
        }
        for (version, message) in held {
            self.deliver(id, version, &message);
        }
    }

    /// Too many channels changed to keep them all: the oldest are given as heads alone.
    fn give_oldest_heads(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(sync) = &mut session.sync else { return };
        if sync.changed.len() <= CHANGED_MAX {
            return;
        }
        sync.changed.sort_by_key(|changed| (Reverse(changed.stamp), changed.head.cid));
        let oldest = sync.changed.split_off(PAGES_MAX);
        sync.part_bytes += oldest.len() * HEAD_BYTES;
        for Changed { mut head, messages, .. } in oldest {
            head.rows = match messages {
                MessagesChanged::Yes => HeadRows::Stale,
                MessagesChanged::No => HeadRows::Unchanged,
            };
            self.send(id, ServerFrame::Head(head));
        }
    }

    /// Every slice was read: the heads, newest channels first, and which of them get pages.
    fn give_heads(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(sync) = &mut session.sync else { return };
        let mut changed = std::mem::take(&mut sync.changed);
        changed.sort_by_key(|changed| (Reverse(changed.stamp), changed.head.cid));
        sync.part_bytes += changed.len() * HEAD_BYTES;
        for Changed { head, messages, .. } in &mut changed {
            // What a cursor of HTTP lists past its position the client has.
            let given = sync.cursor.as_ref().map_or(Seq(0), |cursor| cursor.given_of(head.cid));
            head.rows = match messages {
                MessagesChanged::No => HeadRows::Unchanged,
                MessagesChanged::Yes if head.head <= given => HeadRows::Unchanged,
                MessagesChanged::Yes if sync.pages.len() < PAGES_MAX => {
                    sync.pages.push_back(PageOf {
                        cid: head.cid,
                        floor: head.floor.max(given.next()),
                        head: head.head,
                    });
                    HeadRows::Follow
                }
                MessagesChanged::Yes => HeadRows::Stale,
            };
        }
        for Changed { head, .. } in changed {
            self.send(id, ServerFrame::Head(head));
        }
    }

    /// Takes the next step of a sync, or waits for the client to ask for it.
    fn go_on(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(sync) = &mut session.sync else { return };
        if sync.purpose == Purpose::Audit {
            return match sync.next {
                Next::Slice => self.read_slice(id),
                Next::Pages | Next::Done => self.audited(id),
            };
        }
        if sync.next == Next::Pages && sync.pages.is_empty() {
            sync.next = Next::Done;
        }
        if sync.next != Next::Done && sync.part_bytes >= PART_BYTES_MAX {
            let request = sync.request;
            return self.send(id, ServerFrame::PageEnd { request });
        }
        match sync.next {
            Next::Slice => self.read_slice(id),
            Next::Pages => self.read_pages(id),
            Next::Done => self.synced(id),
        }
    }

    /// The client asks for the next part of its sync. Too early or too late it means nothing.
    pub(crate) fn more(&mut self, id: SessionId, request: RequestId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if let Some(sync) = &mut session.sync
            && sync.request == request
            && sync.part_bytes >= PART_BYTES_MAX
        {
            sync.part_bytes = 0;
            self.go_on(id);
        }
    }

    fn read_pages(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(sync) = &mut session.sync else { return };
        sync.reading = true;
        let count = sync.pages.len().min(PAGES_PER_READ);
        let of: Vec<PageOf> = sync.pages.drain(..count).collect();
        let ranges = of.iter().map(|page| RangeRead {
            range: keys::messages(page.cid, page.floor, page.head),
            rows_max: PAGE_ROWS_MAX,
            bytes_max: (PART_BYTES_MAX / PAGES_PER_READ) as u32,
            order: Order::Reverse,
        });
        let read = Read { gets: Vec::new(), ranges: ranges.collect(), version: ReadVersion::Fresh };
        let step = SyncStep::Pages { generation: sync.generation, of };
        self.read(Asker::Sync(id, step), read);
    }

    fn pages_read(&mut self, id: SessionId, of: &[PageOf], rows: Rows) -> Result<(), ValueError> {
        let gap_not_marked = self.config.breaks.has(Break::GapNotMarked);
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        let Some(sync) = &mut session.sync else { return Ok(()) };
        let mut pages = Vec::with_capacity(of.len());
        for (page_of, range) in of.iter().zip(rows.ranges) {
            let mut page = page(page_of, range, sync.since)?;
            page.gap &= !gap_not_marked;
            sync.part_bytes +=
                page.rows.iter().map(|row| row.body.len() + ROW_BYTES).sum::<usize>();
            pages.push(page);
        }
        for page in pages {
            self.send(id, ServerFrame::Page(page));
        }
        Ok(())
    }

    fn synced(&mut self, id: SessionId) {
        let store = self.ready().store;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(sync) = session.sync.take() else { return };
        let at = sync.at.expect("a sync ends after its first read");
        self.give_position(id, sync.request, Position { incarnation: store, version: at });
        self.set_audit(id);
    }

    fn give_position(&mut self, id: SessionId, request: RequestId, position: Position) {
        let history = self.ready().history;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.position = position;
        let cursor = Cursor::at(history, position).encode();
        self.send(id, ServerFrame::Synced { request, cursor });
    }

    fn set_audit(&mut self, id: SessionId) {
        let audit_ms = self.config.limits.audit_ms;
        // Sessions that attached together are audited apart.
        let spread_ms = id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (audit_ms / 4 + 1);
        self.set_timer(id, SessionTimer::Audit, self.now.mono_ms + audit_ms + spread_ms);
    }

    /// Starts an audit, or ends the one whose time of grace is over.
    pub(crate) fn audit(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        match session.suspects.take() {
            Some(suspects) => self.finish_audit(id, *suspects),
            None => self.start_audit(id),
        }
    }

    /// Looks whether a live session was told of everything, and moves its position.
    fn start_audit(&mut self, id: SessionId) {
        let store = self.ready().store;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.sync.is_some() || session.flow != Flow::Live {
            return self.set_audit(id);
        }
        self.counters.audits += 1;
        if self.config.breaks.has(Break::PositionMovedByPush) {
            let version = session.pushed.max(session.position.version);
            self.give_position(id, RequestId(0), Position { incarnation: store, version });
            return self.set_audit(id);
        }
        let since = session.position;
        self.begin(id, Purpose::Audit, RequestId(0), None, since);
    }

    /// Every slice of an audit was read: what is newer than any notification is suspect.
    fn audited(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(sync) = session.sync.take() else { return };
        let version = sync.at.expect("an audit ends after its first read");
        let (mut newest, mut markers) = (Vec::new(), Vec::new());
        for Changed { mut head, messages, .. } in sync.changed {
            match messages {
                MessagesChanged::Yes => newest.push((head.cid, head.head)),
                MessagesChanged::No => {
                    head.rows = HeadRows::Unchanged;
                    markers.push(head);
                }
            }
        }
        // A marker's own push may have been on its way when its row was read; saying it again is
        // cheap, and missing it would be for good.
        for head in markers {
            self.send(id, ServerFrame::Head(head));
        }
        let mut suspects = Suspects { version, newest };
        self.drop_seen(id, &mut suspects);
        if suspects.newest.is_empty() {
            return self.finish_audit(id, suspects);
        }
        if let Some(session) = self.sessions.get_mut(&id) {
            session.suspects = Some(Box::new(suspects));
        }
        self.set_timer(id, SessionTimer::Audit, self.now.mono_ms + AUDIT_GRACE_MS);
    }

    fn drop_seen(&self, id: SessionId, suspects: &mut Suspects) {
        let Some(session) = self.sessions.get(&id) else { return };
        let Some(user) = self.users.get(&session.uid) else { return };
        suspects.newest.retain(|(cid, seq)| !user.has_seen(*cid, *seq));
    }

    /// Ends an audit: what is still missing is given by a sync.
    fn finish_audit(&mut self, id: SessionId, mut suspects: Suspects) {
        let store = self.ready().store;
        self.drop_seen(id, &mut suspects);
        let Suspects { version, newest } = suspects;
        let missing = newest.len() as u64;
        let Some(session) = self.sessions.get(&id) else { return };
        if session.sync.is_some() || session.flow != Flow::Live {
            return self.set_audit(id);
        }
        let (position, history) = (session.position, self.ready().history);
        if missing == 0 {
            let at = Position { incarnation: store, version };
            self.give_position(id, RequestId(0), at.max(position));
            return self.set_audit(id);
        }
        self.counters.audit_repairs += missing;
        self.start_sync(id, RequestId(0), Cursor::at(history, position).encode());
    }
}

/// A slice of a user's inbox, joined with the markers.
pub(crate) struct Slice {
    pub(crate) channels: Vec<(Cid, InboxRow, Option<MarkerRow>)>,
    /// The last channel that the slice has read of both kinds.
    pub(crate) last: Option<Cid>,
    pub(crate) end: RangeEnd,
}

/// Joins inbox and marker rows by channel, up to where both were read.
pub(crate) fn join(rows: Rows) -> Result<Slice, ValueError> {
    let [inbox, markers]: [RangeRows; 2] =
        rows.ranges.try_into().map_err(|_| ValueError::Damaged)?;
    let read_to = |range: &RangeRows| match (range.end, range.rows.last()) {
        (RangeEnd::More, Some((key, _))) => keys::channel_of_row(key),
        _ => None,
    };
    let last = [read_to(&inbox), read_to(&markers)].into_iter().flatten().min();
    let within = |cid: Cid| last.is_none_or(|last| cid <= last);
    let mut markers = markers.rows.into_iter().peekable();
    let mut channels = Vec::with_capacity(inbox.rows.len());
    for (key, value) in inbox.rows {
        let cid = keys::channel_of_row(&key).ok_or(ValueError::Damaged)?;
        if !within(cid) {
            break;
        }
        let before = |(key, _): &(Bytes, Bytes)| {
            keys::channel_of_row(key).is_some_and(|marker| marker < cid)
        };
        while markers.next_if(before).is_some() {}
        let same = |(key, _): &(Bytes, Bytes)| keys::channel_of_row(key) == Some(cid);
        let marker =
            markers.next_if(same).map(|(_, value)| MarkerRow::decode(value)).transpose()?;
        channels.push((cid, InboxRow::decode(value)?, marker));
    }
    let end = if last.is_some() { RangeEnd::More } else { RangeEnd::Complete };
    Ok(Slice { channels, last, end })
}

/// The channel as the user sees it, if it changed since the position.
pub(crate) fn changed(
    cid: Cid,
    inbox: &InboxRow,
    marker: Option<&MarkerRow>,
    since: Position,
) -> Option<Changed> {
    let messages = if inbox.stamp.is_after(since) {
        MessagesChanged::Yes
    } else if marker.is_some_and(|marker| marker.stamp.is_after(since)) {
        MessagesChanged::No
    } else {
        return None;
    };
    Some(Changed { head: head_of(cid, inbox, marker), stamp: inbox.stamp, messages })
}

/// A channel as its user sees it.
pub(crate) fn head_of(cid: Cid, inbox: &InboxRow, marker: Option<&MarkerRow>) -> Head {
    Head {
        cid,
        kind: inbox.kind,
        peer: Some(inbox.peer),
        me: inbox.me,
        head: inbox.last,
        ordinal: inbox.ordinal,
        floor: inbox.joined,
        read: marker.map_or(Seq(0), |marker| marker.read),
        read_ordinal: read_ordinal(marker, inbox.joined_ordinal, inbox.own_ordinal),
        received: marker.map_or(Seq(0), |marker| marker.received),
        rows: HeadRows::Unchanged,
    }
}

/// The newest messages of a channel back to the position, as many as a page holds.
fn page(of: &PageOf, range: RangeRows, since: Position) -> Result<Page, ValueError> {
    let mut gap = range.end == RangeEnd::More;
    let mut rows: Vec<Row> = Vec::with_capacity(range.rows.len());
    let mut bytes = 0;
    for (key, value) in range.rows {
        let seq = keys::seq_of_message(&key).ok_or(ValueError::Damaged)?;
        let message = MessageRow::decode(seq, value)?;
        if !message.stamp.is_after(since) {
            gap = false;
            break;
        }
        bytes += message.row.body.len();
        if bytes > PAGE_BYTES_MAX && !rows.is_empty() {
            gap = true;
            break;
        }
        rows.push(message.row);
    }
    rows.reverse();
    let from = rows.first().map_or(of.head.next(), |row| row.seq);
    Ok(Page { cid: of.cid, from, to: of.head, gap: gap && from > of.floor, rows })
}

/// A user's member of an inbox row, for whoever shows a channel without markers.
pub(crate) fn empty_head(cid: Cid, me: chatring_wire::MemberNumber, peer: Uid) -> Head {
    Head {
        cid,
        kind: chatring_wire::frame::ChannelKind::Direct,
        peer: Some(peer),
        me,
        head: Seq(0),
        ordinal: Ordinal(0),
        floor: Seq(1),
        read: Seq(0),
        read_ordinal: Ordinal(0),
        received: Seq(0),
        rows: HeadRows::Unchanged,
    }
}
