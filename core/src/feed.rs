//! What a user's shard remembers of the newest events for the syncs of calls.
//!
//! ```text
//!   taken by the cursor ◀──┐ hint{feed, number}
//!   … 7  8  9 10 11 12 13 14      a message is given if it lies past the cursor's position and
//!     └─ forgotten   └─ new ─┘    what the cursor lists; then the cursor lists it
//! ```
//!
//! A feed has every event since it was made. A cursor whose hint it covers needs no row of the
//! store; any other one is led into it by a read of the user's inbox that starts after it was made.
//! Once it is known that everything up to a version was notified ([`crate::reach`]), a cursor that
//! has taken all events up to then moves its position there, and lists only what lies past it.

use std::collections::VecDeque;

use chatring_wire::{Cid, Uid};

use crate::call::{Event, More};
use crate::cursor::{Cursor, GIVEN_MAX, Hint, Position};
use crate::effect::Stored;
use crate::kv::Version;
use crate::sabotage::Break;
use crate::shard::Shard;
use crate::values::MarkerRow;

/// Bytes of messages that a feed keeps.
const FEED_BYTES_MAX: usize = 32 * 1024;
/// For how long it is worth telling that somebody is typing.
const TYPING_MS: u64 = 6_000;
/// Places up to which everything is known to be notified that a feed keeps, for cursors that are at
/// different ones.
const REACHES_MAX: usize = 4;
/// What an event takes besides its body.
const EVENT_BYTES: usize = 160;

/// The newest events of a user.
#[derive(Debug)]
pub(crate) struct Feed {
    id: u64,
    made_ms: u64,
    /// The number of the oldest event kept, from 1.
    first: u64,
    events: VecDeque<Noted>,
    bytes: usize,
    /// The newest version of what is forgotten.
    forgotten: Version,
    /// Ascending: everything up to the version is among the events up to the number.
    reaches: VecDeque<(u64, Version)>,
    /// Whether it is one of those that wait for the next such place.
    pub(crate) awaits_reach: bool,
}

#[derive(Debug)]
struct Noted {
    /// Of messages: the version at or below which it was committed.
    version: Version,
    at_ms: u64,
    event: Event,
}

/// What a feed has for a cursor.
#[derive(Debug)]
pub(crate) enum News {
    /// These events, and the cursor behind them; there may be none.
    Events(Vec<Event>, Cursor, More),
    /// The inbox must be read.
    Lost,
}

impl Feed {
    /// A feed that knows nothing yet.
    pub(crate) fn new(id: u64, now_ms: u64) -> Feed {
        Feed {
            id,
            made_ms: now_ms,
            first: 1,
            events: VecDeque::new(),
            bytes: 0,
            forgotten: Version(0),
            reaches: VecDeque::new(),
            awaits_reach: false,
        }
    }

    /// Names what it has had so far.
    pub(crate) fn hint(&self) -> Hint {
        Hint { feed: self.id, number: self.first + self.events.len() as u64 - 1 }
    }

    fn note(&mut self, noted: Noted, events_max: usize) {
        self.bytes += bytes_of(&noted.event);
        self.events.push_back(noted);
        while self.events.len() > events_max || self.bytes > FEED_BYTES_MAX {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= bytes_of(&oldest.event);
            self.forgotten = self.forgotten.max(oldest.version);
            self.first += 1;
        }
    }

    /// Everything up to this version is among the events that there are now.
    pub(crate) fn reaches_to(&mut self, version: Version) {
        self.awaits_reach = false;
        if self.reaches.len() == REACHES_MAX {
            self.reaches.pop_front();
        }
        self.reaches.push_back((self.hint().number, version));
    }

    /// Moves a cursor as far as it has taken everything.
    fn advance(&self, cursor: &mut Cursor, from: Position) {
        let Some(hint) = cursor.hint else { return };
        let reach = self.reaches.iter().rev().find(|(number, _)| *number <= hint.number);
        let Some(&(_, version)) = reach else { return };
        let to = Position { version, ..from };
        // What is forgotten may be listed, and is to stay so while it lies past the position.
        if cursor.position < from || to <= cursor.position || self.forgotten > version {
            return;
        }
        let taken = (hint.number + 1 - self.first) as usize;
        let lies_past = |listed: Cid| {
            self.events.range(..taken).any(|noted| {
                let of =
                    |event: &Event| matches!(event, Event::Message { cid, .. } if *cid == listed);
                noted.version > version && of(&noted.event)
            })
        };
        cursor.given.retain(|(cid, _)| lies_past(*cid));
        cursor.position = to;
    }

    /// What is new for a cursor, at most `limit` events. Positions before `from` do not move.
    pub(crate) fn news(
        &self,
        mut cursor: Cursor,
        limit: usize,
        now_ms: u64,
        from: Position,
        position_moves: bool,
    ) -> News {
        let Some(hint) = cursor.hint else { return News::Lost };
        let known = self.first - 1..=self.hint().number;
        if hint.feed != self.id || !known.contains(&hint.number) || cursor.scan.is_some() {
            return News::Lost;
        }
        let mut events = Vec::new();
        let mut newest = cursor.position;
        let mut more = More::No;
        // The last place at which the list had room for all.
        let mut fits = None;
        let first = (hint.number + 1 - self.first) as usize;
        for noted in self.events.range(first..) {
            if events.len() >= limit {
                more = More::Yes;
                break;
            }
            let at = Position { version: noted.version, ..from };
            match &noted.event {
                Event::Message { .. } if at <= cursor.position => {}
                Event::Message { cid, row, .. } => {
                    let listed = cursor.given.iter_mut().find(|(listed, _)| listed == cid);
                    match listed.map(|(_, seq)| seq) {
                        Some(seq) if row.seq <= *seq => {}
                        // Only a fault of ours leaves one out. The inbox knows.
                        Some(seq) if row.seq > seq.next() => return News::Lost,
                        Some(seq) => {
                            *seq = row.seq;
                            events.push(noted.event.clone());
                        }
                        None => {
                            if cursor.given.len() == GIVEN_MAX {
                                self.advance(&mut cursor, from);
                            }
                            if cursor.given.len() == GIVEN_MAX {
                                fits = Some((cursor.clone(), events.len()));
                            }
                            cursor.given.push((*cid, row.seq));
                            events.push(noted.event.clone());
                        }
                    }
                    newest = newest.max(at);
                }
                Event::Typing { .. } if noted.at_ms + TYPING_MS < now_ms => {}
                event => events.push(event.clone()),
            }
            if let Some(hint) = &mut cursor.hint {
                hint.number += 1;
            }
        }
        self.advance(&mut cursor, from);
        if cursor.given.len() > GIVEN_MAX
            && let Some((until_then, count)) = fits
        {
            if count == 0 {
                return News::Lost;
            }
            (cursor, more) = (until_then, More::Yes);
            events.truncate(count);
        }
        if position_moves && newest > cursor.position {
            cursor.position = newest;
            cursor.given.clear();
        }
        News::Events(events, cursor, more)
    }

    /// Whether its time is over: the inbox is read again then, in case that something was missed.
    pub(crate) fn is_old(&self, now_ms: u64, audit_ms: u64) -> bool {
        now_ms >= self.made_ms + audit_ms
    }
}

impl Shard {
    /// The user's feed; a new one if there is none.
    pub(crate) fn feed_of(&mut self, uid: Uid) -> Option<&mut Feed> {
        let id = self.config.incarnation.wrapping_add(self.feeds_made);
        let now_ms = self.now.mono_ms;
        let calls = self.users.get_mut(&uid)?.calls.as_mut()?;
        if calls.feed.is_none() {
            self.feeds_made += 1;
            calls.feed = Some(Feed::new(id, now_ms));
        }
        calls.feed.as_mut()
    }

    fn note(&mut self, uid: Uid, version: Version, event: Event) {
        let (at_ms, events_max) = (self.now.mono_ms, self.config.limits.feed_events_max);
        let calls = self.users.get_mut(&uid).and_then(|user| user.calls.as_mut());
        let Some(feed) = calls.and_then(|calls| calls.feed.as_mut()) else { return };
        feed.note(Noted { version, at_ms, event }, events_max);
        if !self.config.breaks.has(Break::WakeUpDropped) {
            self.wake(uid);
        }
    }

    /// A message of one of the user's channels is stored.
    pub(crate) fn feed_message(&mut self, uid: Uid, version: Version, message: &Stored) {
        let Stored { cid, uid: sender, row, .. } = message;
        let event = Event::Message { cid: *cid, uid: *sender, row: row.clone() };
        self.note(uid, version, event);
    }

    pub(crate) fn feed_marker(&mut self, uid: Uid, cid: Cid, row: &MarkerRow) {
        let &MarkerRow { read, read_ordinal, received, .. } = row;
        self.note(uid, Version(0), Event::Marker { cid, read, read_ordinal, received });
    }

    pub(crate) fn feed_typing(&mut self, uid: Uid, cid: Cid, from: Uid) {
        self.note(uid, Version(0), Event::Typing { cid, uid: from });
    }

    /// Notifications of the user were lost: whoever waits has to read the inbox.
    pub(crate) fn feed_lost(&mut self, uid: Uid) {
        let Some(user) = self.users.get_mut(&uid) else { return };
        let Some(calls) = &mut user.calls else { return };
        if calls.feed.take().is_some() {
            self.counters.feeds_lost += 1;
            self.wake(uid);
        }
    }
}

fn bytes_of(event: &Event) -> usize {
    match event {
        Event::Message { row, .. } => EVENT_BYTES + row.body.len(),
        _ => EVENT_BYTES,
    }
}
