//! The sync of a call: what the user's feed has for its cursor, or else what the inbox says.
//!
//! ```text
//!  cursor ─▶ the feed covers it? ─ yes ─▶ events ─▶ answer        none ─▶ parked ─▶ … an event
//!                 │ no                                              ▲
//!                 ▼                                                 │ nothing changed
//!            a slice of inbox and markers at R ─▶ pages ─▶ … ─▶ the end: position R
//!                                                   └─ limit ─▶ answer; the cursor says how far
//! ```
//!
//! The feed is there before the inbox is read: what is committed above R is notified to it. So
//! messages above R are left out of the pages, and nothing is given twice or not at all.

use std::collections::VecDeque;

use chatring_wire::frame::{CacheAction, Failure, HeadRows, Page, Row};
use chatring_wire::{Cid, ErrorCode, Seq, Uid};

use crate::call::{
    Answer, CallId, CallSync, Event, More, SYNC_EVENTS_MAX, SYNC_WAIT_MS_MAX, Synced,
};
use crate::calls::CallState;
use crate::cursor::{Cursor, GIVEN_MAX, Hint, Position, Scanned};
use crate::feed::News;
use crate::keys;
use crate::kv::{Order, RangeEnd, RangeRead, RangeRows, Read, ReadVersion, Rows};
use crate::sabotage::Break;
use crate::shard::{Asker, Shard};
use crate::sync::{Changed, MessagesChanged, PAGE_BYTES_MAX, PAGE_ROWS_MAX, PART_BYTES_MAX};
use crate::sync::{ROW_BYTES, changed, join};
use crate::timers::Timer;
use crate::values::{MessageRow, ValueError};

/// Rows of each kind in one slice of a user's inbox.
const SLICE_ROWS_MAX: u32 = 512;
/// Bytes of each kind in one slice.
const SLICE_BYTES_MAX: u32 = 256 * 1024;
/// Channels listed in a cursor from which on it is made shorter again.
const LISTED_LONG: usize = 4;
/// Channels whose pages are read at once.
const PAGES_PER_READ: usize = 4;

/// What a sync wants.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    cursor: Cursor,
    cache: CacheAction,
    limit: u32,
    until_ms: u64,
}

/// A read of a user's inbox for a sync.
#[derive(Debug)]
pub(crate) struct Scan {
    wanted: Wanted,
    /// What of the feed the result covers.
    hint: Option<Hint>,
    /// Where it leads to: the version of the first read.
    at: Option<Position>,
    /// The last channel that was dealt with.
    after: Option<Cid>,
    /// The last channel of the slices so far, and whether there are more.
    sliced: (Option<Cid>, RangeEnd),
    todo: VecDeque<Changed>,
    events: Vec<Event>,
    left: usize,
    bytes: usize,
}

/// What of a call's sync is being read.
#[derive(Clone, Debug)]
pub(crate) enum PollStep {
    /// A slice of the inbox.
    Slice,
    /// Messages of these channels.
    Pages(Vec<Changed>),
}

impl Shard {
    pub(crate) fn call_sync(&mut self, call: CallId, sync: CallSync) {
        let history = self.ready().history;
        let cursor = Cursor::decode(sync.cursor).filter(|cursor| cursor.history == history);
        let limit = match sync.limit {
            0 => SYNC_EVENTS_MAX,
            limit => limit.min(SYNC_EVENTS_MAX),
        };
        let until_ms = self.now.mono_ms + u64::from(sync.wait_ms.min(SYNC_WAIT_MS_MAX));
        let (cursor, cache) = match cursor {
            Some(cursor) => (cursor, CacheAction::Keep),
            None => (Cursor::at(history, Position::START), CacheAction::Replace),
        };
        self.follow(call, Wanted { cursor, cache, limit, until_ms });
    }

    /// Answers with what the feed has, or waits for it, or reads the inbox.
    fn follow(&mut self, call: CallId, mut wanted: Wanted) {
        let Some(uid) = self.calls.get(&call).map(|open| open.uid) else { return };
        let (now_ms, audit_ms) = (self.now.mono_ms, self.config.limits.audit_ms);
        let from = Position { incarnation: self.ready().store, version: self.reach.claimed };
        let moves = self.config.breaks.has(Break::PositionMovedByNews);
        let Some(user) = self.users.get_mut(&uid) else { return };
        let Some(calls) = &mut user.calls else { return };
        if calls.feed.as_ref().is_some_and(|feed| feed.is_old(now_ms, audit_ms)) {
            calls.feed = None;
        }
        let news = match &calls.feed {
            Some(feed) => {
                feed.news(wanted.cursor.clone(), wanted.limit as usize, now_ms, from, moves)
            }
            None => News::Lost,
        };
        if let News::Events(_, cursor, _) = &news
            && cursor.given.len() >= LISTED_LONG
        {
            self.want_reach(uid);
        }
        match news {
            News::Lost => self.begin_scan(call, uid, wanted),
            News::Events(events, cursor, more) if !events.is_empty() => {
                self.counters.call_events += events.len() as u64;
                wanted.cursor = cursor;
                self.give(call, wanted, events, more);
            }
            News::Events(_, cursor, _) => {
                wanted.cursor = cursor;
                if wanted.until_ms <= now_ms {
                    self.give(call, wanted, Vec::new(), More::No);
                } else {
                    self.park(call, uid, wanted);
                }
            }
        }
    }

    fn give(&mut self, call: CallId, wanted: Wanted, events: Vec<Event>, more: More) {
        let (cache, cursor) = (wanted.cache, wanted.cursor.encode());
        self.answer_call(call, Ok(Answer::Synced(Synced { cache, events, cursor, more })));
    }

    fn park(&mut self, call: CallId, uid: Uid, wanted: Wanted) {
        let Some(open) = self.calls.get_mut(&call) else { return };
        if open.timer.is_none() {
            open.timer = Some(self.timers.set(wanted.until_ms, Timer::Call(call)));
        }
        open.state = CallState::Parked(Box::new(wanted));
        if let Some(calls) = self.users.get_mut(&uid).and_then(|user| user.calls.as_mut()) {
            calls.parked.push(call);
            self.counters.calls_parked += 1;
        }
    }

    /// Something has come for whoever is parked.
    pub(crate) fn wake(&mut self, uid: Uid) {
        let calls = self.users.get_mut(&uid).and_then(|user| user.calls.as_mut());
        let Some(calls) = calls else { return };
        let parked = std::mem::take(&mut calls.parked);
        self.counters.calls_parked -= parked.len() as u64;
        for call in parked {
            if let Some(wanted) = self.unparked(call) {
                self.follow(call, wanted);
            }
        }
    }

    fn unparked(&mut self, call: CallId) -> Option<Wanted> {
        let open = self.calls.get_mut(&call)?;
        match std::mem::replace(&mut open.state, CallState::Waiting) {
            CallState::Parked(wanted) => Some(*wanted),
            other => {
                open.state = other;
                None
            }
        }
    }

    /// The time of a parked call is over, or the node drains.
    pub(crate) fn end_wait(&mut self, call: CallId) {
        if let Some(wanted) = self.unparked(call) {
            self.give(call, wanted, Vec::new(), More::No);
        }
    }

    fn begin_scan(&mut self, call: CallId, uid: Uid, wanted: Wanted) {
        self.counters.call_syncs += 1;
        // What the feed has up to now is covered by the read that follows.
        let Some(hint) = self.feed_of(uid).map(|feed| feed.hint()) else { return };
        let scanned = wanted.cursor.scan;
        let after = scanned.map(|scanned| scanned.after);
        let scan = Scan {
            hint: if scanned.is_some() { wanted.cursor.hint } else { Some(hint) },
            at: scanned.map(|scanned| scanned.at),
            after,
            sliced: (after, RangeEnd::More),
            todo: VecDeque::new(),
            events: Vec::new(),
            left: wanted.limit as usize,
            bytes: 0,
            wanted,
        };
        self.scan_goes_on(call, uid, Box::new(scan));
    }

    /// Takes the next step of a scan, or answers.
    fn scan_goes_on(&mut self, call: CallId, uid: Uid, mut scan: Box<Scan>) {
        if scan.left == 0 || scan.bytes >= PART_BYTES_MAX {
            return self.scan_ends(call, *scan);
        }
        while let Some(next) = scan.todo.front()
            && next.messages == MessagesChanged::No
            && scan.left > 0
        {
            let head = next.head;
            scan.events.push(Event::Channel(head));
            scan.left -= 1;
            scan.after = Some(head.cid);
            scan.todo.pop_front();
        }
        if !scan.todo.is_empty() && scan.left == 0 {
            return self.scan_ends(call, *scan);
        }
        let (step, read) = if scan.todo.is_empty() {
            if scan.sliced.1 == RangeEnd::Complete {
                return self.scan_ends(call, *scan);
            }
            (PollStep::Slice, slice_read(uid, scan.sliced.0))
        } else {
            let mut of = Vec::new();
            while of.len() < PAGES_PER_READ.min(scan.left)
                && let Some(next) =
                    scan.todo.pop_front_if(|next| next.messages == MessagesChanged::Yes)
            {
                of.push(next);
            }
            let read = pages_read(&scan, &of);
            (PollStep::Pages(of), read)
        };
        if let Some(open) = self.calls.get_mut(&call) {
            open.state = CallState::Scanning(scan);
            self.read(Asker::Poll(call, step), read);
        }
    }

    pub(crate) fn poll_rows(&mut self, call: CallId, step: PollStep, rows: Rows) {
        let store = self.ready().store;
        let history = self.ready().history;
        let Some(open) = self.calls.get_mut(&call) else { return };
        let uid = open.uid;
        let CallState::Scanning(mut scan) = std::mem::replace(&mut open.state, CallState::Waiting)
        else {
            return;
        };
        self.counters.call_rows +=
            rows.ranges.iter().map(|range| range.rows.len() as u64).sum::<u64>();
        let done = match step {
            PollStep::Slice => {
                let now = Position { incarnation: store, version: rows.version };
                let at = scan.at.unwrap_or(now);
                if scan.wanted.cursor.position > now || at > now {
                    let cursor = Cursor::at(history, Position::START);
                    let wanted = Wanted { cursor, cache: CacheAction::Replace, ..scan.wanted };
                    return self.begin_scan(call, uid, wanted);
                }
                scan.at = Some(at);
                scan.slice(rows)
            }
            PollStep::Pages(of) => scan.pages(of, rows),
        };
        match done {
            Ok(()) => self.scan_goes_on(call, uid, scan),
            Err(error) => {
                self.note_damage(error);
                self.answer_call(call, Err(Failure::new(ErrorCode::Internal)));
            }
        }
    }

    /// Everything was read, or as much as fits into the answer.
    fn scan_ends(&mut self, call: CallId, scan: Scan) {
        let Scan { mut wanted, hint, at, after, sliced, todo, events, .. } = scan;
        let Some(at) = at else { return };
        wanted.cursor.hint = hint;
        if !todo.is_empty() || sliced.1 == RangeEnd::More {
            let after = if todo.is_empty() { sliced.0 } else { after };
            let after = after.unwrap_or(Cid(0));
            wanted.cursor.scan = Some(Scanned { at, after });
            return self.give(call, wanted, events, More::Yes);
        }
        wanted.cursor = Cursor { hint, ..Cursor::at(wanted.cursor.history, at) };
        if events.is_empty() && wanted.cache == CacheAction::Keep {
            self.follow(call, wanted);
        } else {
            self.give(call, wanted, events, More::No);
        }
    }
}

impl Scan {
    fn given(&self, cid: Cid) -> Seq {
        self.wanted.cursor.given_of(cid)
    }

    fn slice(&mut self, rows: Rows) -> Result<(), ValueError> {
        let slice = join(rows)?;
        let since = self.wanted.cursor.position;
        for (cid, inbox, marker) in slice.channels {
            let Some(mut changed) = changed(cid, &inbox, marker.as_ref(), since) else { continue };
            if changed.messages == MessagesChanged::Yes && inbox.last <= self.given(cid) {
                if !marker.is_some_and(|marker| marker.stamp.is_after(since)) {
                    continue;
                }
                changed.messages = MessagesChanged::No;
            }
            self.todo.push_back(changed);
        }
        self.sliced = (slice.last.or(self.sliced.0), slice.end);
        Ok(())
    }

    fn pages(&mut self, of: Vec<Changed>, rows: Rows) -> Result<(), ValueError> {
        let mut of = of.into_iter().zip(rows.ranges);
        while let Some((mut changed, range)) = of.next() {
            let whole = self.page(&mut changed, range)?;
            if whole && self.left > 0 {
                self.after = Some(changed.head.cid);
                continue;
            }
            if whole {
                self.after = Some(changed.head.cid);
            } else {
                self.after = Some(Cid(changed.head.cid.0 - 1));
                self.left = 0;
                self.todo.push_front(changed);
            }
            for (changed, _) in of.by_ref().collect::<Vec<_>>().into_iter().rev() {
                self.todo.push_front(changed);
            }
        }
        Ok(())
    }

    /// Gives a channel with its newest messages. Whether it was given to the end.
    fn page(&mut self, changed: &mut Changed, range: RangeRows) -> Result<bool, ValueError> {
        let (head, at) = (&mut changed.head, self.at.unwrap_or(Position::START));
        let (since, given) = (self.wanted.cursor.position, self.given(head.cid));
        let floor = head.floor.max(given.next());
        let mut gap = range.end == RangeEnd::More;
        let (mut to, mut bytes) = (head.head, 0);
        let mut rows: VecDeque<Row> = VecDeque::with_capacity(range.rows.len());
        for (key, value) in range.rows {
            let seq = keys::seq_of_message(&key).ok_or(ValueError::Damaged)?;
            let message = MessageRow::decode(seq, value)?;
            if message.stamp.is_after(at) {
                to = Seq(seq.0 - 1);
                continue;
            }
            bytes += message.row.body.len() + ROW_BYTES;
            if !message.stamp.is_after(since) {
                gap = false;
                break;
            }
            if bytes > PAGE_BYTES_MAX && !rows.is_empty() {
                gap = true;
                break;
            }
            rows.push_front(message.row);
        }
        gap &= rows.front().map_or(to.next(), |row| row.seq) > floor;
        self.bytes += bytes;
        if rows.is_empty() && !gap {
            return Ok(true);
        }
        let given = &mut self.wanted.cursor.given;
        let listed = given.iter().position(|(cid, _)| *cid == head.cid);
        let may_split = head.cid.0 > 0 && (listed.is_some() || given.len() < GIVEN_MAX);
        let whole = rows.len() <= self.left || !may_split;
        if !whole {
            rows.truncate(self.left);
            to = rows.back().map_or(to, |row| row.seq);
            match listed {
                Some(index) => given[index].1 = to,
                None => given.push((head.cid, to)),
            }
        }
        head.rows = HeadRows::Follow;
        let from = rows.front().map_or(to.next(), |row| row.seq);
        self.left = self.left.saturating_sub(rows.len().max(1));
        self.events.push(Event::Channel(*head));
        self.events.push(Event::Page(Page { cid: head.cid, from, to, gap, rows: rows.into() }));
        Ok(whole)
    }
}

fn slice_read(uid: Uid, after: Option<Cid>) -> Read {
    let range = |range| RangeRead {
        range,
        rows_max: SLICE_ROWS_MAX,
        bytes_max: SLICE_BYTES_MAX,
        order: Order::Forward,
    };
    let ranges = vec![range(keys::inbox_after(uid, after)), range(keys::markers_after(uid, after))];
    Read { gets: Vec::new(), ranges, version: ReadVersion::Fresh }
}

fn pages_read(scan: &Scan, of: &[Changed]) -> Read {
    let ranges = of.iter().map(|Changed { head, .. }| RangeRead {
        range: keys::messages(head.cid, head.floor.max(scan.given(head.cid).next()), head.head),
        rows_max: PAGE_ROWS_MAX,
        bytes_max: PAGE_BYTES_MAX as u32,
        order: Order::Reverse,
    });
    Read { gets: Vec::new(), ranges: ranges.collect(), version: ReadVersion::Fresh }
}
