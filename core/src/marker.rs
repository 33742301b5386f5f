//! Markers: how far a user has read and received, merged in memory, written coalesced, and told to
//! the user's other devices once they are stored.

use chatring_wire::frame::ServerFrame;
use chatring_wire::{Cid, Ordinal, Seq, Uid};

use crate::effect::SessionId;
use crate::keys;
use crate::kv::{Read, ReadVersion, Rows};
use crate::shard::{Asker, Shard, Tag};
use crate::timers::Timer;
use crate::user::{Marker, MarkerState};
use crate::values::{InboxRow, MarkerRow, MessageRow, UNSTAMPED, ValueError};

/// Markers that move within this time are written once.
const WRITE_MS: u64 = 250;
/// Markers of a user that may wait to be written; further ones are dropped, and said again by the
/// client at its next attach.
const MARKERS_MAX: usize = 1_024;
/// What a marker costs in the window of pushes.
const PUSH_BYTES: u32 = 24;

impl Shard {
    /// A client says how far its user has read and received.
    pub(crate) fn mark(&mut self, id: SessionId, cid: Cid, read: Seq, received: Seq) {
        let Some(session) = self.sessions.get(&id) else { return };
        let uid = session.uid;
        self.mark_for(uid, cid, read, received);
    }

    /// Notes a marker, unless too many wait to be written.
    pub(crate) fn mark_for(&mut self, uid: Uid, cid: Cid, read: Seq, received: Seq) -> MarkTaken {
        let Some(user) = self.users.get_mut(&uid) else { return MarkTaken::No };
        if user.markers.len() >= MARKERS_MAX && !user.markers.contains_key(&cid) {
            return MarkTaken::No;
        }
        let marker = user.markers.entry(cid).or_insert(Marker {
            read: Seq(0),
            received: Seq(0),
            state: MarkerState::Dirty,
        });
        marker.read = marker.read.max(read);
        marker.received = marker.received.max(received);
        if !std::mem::replace(&mut user.markers_due, true) {
            self.timers.set(self.now.mono_ms + WRITE_MS, Timer::Markers(uid));
        }
        MarkTaken::Yes
    }

    /// Reads what the user's dirty markers depend on; the writing follows.
    pub(crate) fn write_markers(&mut self, uid: Uid) {
        let Some(user) = self.users.get_mut(&uid) else { return };
        user.markers_due = false;
        let mut dirty = Vec::new();
        for (cid, marker) in &mut user.markers {
            if matches!(marker.state, MarkerState::Dirty) {
                marker.state = MarkerState::Reading { read: marker.read };
                dirty.push((*cid, marker.read));
            }
        }
        for (cid, read) in dirty {
            let read = Read {
                gets: vec![keys::inbox(uid, cid), keys::marker(uid, cid), keys::message(cid, read)],
                ranges: Vec::new(),
                version: ReadVersion::Fresh,
            };
            self.read(Asker::Marker(uid, cid), read);
        }
    }

    pub(crate) fn marker_rows(&mut self, uid: Uid, cid: Cid, rows: Rows) {
        let store = self.ready().store;
        let Some(user) = self.users.get_mut(&uid) else { return };
        let Some(marker) = user.markers.get_mut(&cid) else { return };
        let MarkerState::Reading { read } = marker.state else { return };
        let next = match next_row(rows, read, marker.received) {
            Ok(next) => next,
            Err(_) => {
                self.counters.rows_damaged += 1;
                None
            }
        };
        let Some(row) = next else {
            return self.marker_done(uid, cid, read, Seq(u64::MAX));
        };
        let write = row.write(keys::marker(uid, cid), store);
        marker.state = MarkerState::InLane { row, read };
        if self.append(vec![write], Tag::Marker(uid, cid)).is_err()
            && let Some(user) = self.users.get_mut(&uid)
            && let Some(marker) = user.markers.get_mut(&cid)
        {
            marker.state = MarkerState::Dirty;
            self.write_markers_later(uid);
        }
    }

    pub(crate) fn marker_stored(&mut self, uid: Uid, cid: Cid) {
        let Some(user) = self.users.get_mut(&uid) else { return };
        let Some(marker) = user.markers.get_mut(&cid) else { return };
        let MarkerState::InLane { row, read } = &marker.state else { return };
        let (row, read) = (row.clone(), *read);
        self.counters.markers_written += 1;
        let sessions = user.sessions.clone();
        for id in sessions {
            let frame = ServerFrame::Marker {
                cid,
                read: row.read,
                read_ordinal: row.read_ordinal,
                received: row.received,
            };
            self.push_marker(id, frame);
        }
        self.feed_marker(uid, cid, &row);
        self.marker_done(uid, cid, read, row.received);
    }

    /// A marker is stored up to here, or needs no storing: forget it if it has not moved on.
    fn marker_done(&mut self, uid: Uid, cid: Cid, read: Seq, received: Seq) {
        self.calls_marked(uid, cid, read, received);
        let Some(user) = self.users.get_mut(&uid) else { return };
        let Some(marker) = user.markers.get_mut(&cid) else { return };
        if marker.read > read || marker.received > received {
            marker.state = MarkerState::Dirty;
            self.write_markers_later(uid);
        } else {
            user.markers.remove(&cid);
            self.drop_idle_user(uid);
        }
    }

    fn write_markers_later(&mut self, uid: Uid) {
        let Some(user) = self.users.get_mut(&uid) else { return };
        if !std::mem::replace(&mut user.markers_due, true) {
            let wait_ms = if self.draining { 1 } else { WRITE_MS };
            self.timers.set(self.now.mono_ms + wait_ms, Timer::Markers(uid));
        }
    }

    fn push_marker(&mut self, id: SessionId, frame: ServerFrame) {
        let live = self.sessions.get(&id).is_some_and(|session| session.takes_markers());
        if live {
            self.push(id, PUSH_BYTES, frame);
        }
    }
}

/// Whether a marker was noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MarkTaken {
    Yes,
    No,
}

/// The row that a marker leads to; `None` if it changes nothing or the user is not in the channel.
fn next_row(rows: Rows, read: Seq, received: Seq) -> Result<Option<MarkerRow>, ValueError> {
    let [inbox, marker, message]: [Option<bytes::Bytes>; 3] =
        rows.gets.try_into().map_err(|_| ValueError::Damaged)?;
    let Some(inbox) = inbox.map(InboxRow::decode).transpose()? else { return Ok(None) };
    let old = marker.map(MarkerRow::decode).transpose()?;
    let message = message.map(|value| MessageRow::decode(read, value)).transpose()?;
    let known = old.clone().unwrap_or(MarkerRow {
        stamp: UNSTAMPED,
        read: Seq(0),
        read_ordinal: Ordinal(0),
        received: Seq(0),
        rest: Default::default(),
    });
    // Above the head there is nothing to have read.
    let (read, read_ordinal) = match message {
        Some(message) => (read, message.row.ordinal),
        None if read >= inbox.last => (inbox.last, inbox.ordinal),
        None => (Seq(0), Ordinal(0)),
    };
    let mut next = known.clone();
    if read > next.read {
        (next.read, next.read_ordinal) = (read, read_ordinal);
    }
    next.received = next.received.max(received.min(inbox.last)).max(next.read);
    Ok((next != known).then_some(next))
}
