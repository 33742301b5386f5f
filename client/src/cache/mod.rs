//! What of a session survives a restart: an image in memory, and its changes as data.
//!
//! A session starts from a [`CacheImage`] and hands out [`CacheWrite`]s; applied to an image (or to
//! a [`CacheFile`]) batch by batch they give the image that the session would go on from. A batch
//! is one transaction: a cursor is never kept without the messages that it covers.

mod file;
mod record;

use std::collections::BTreeMap;

use bytes::Bytes;
use chatring_wire::frame::{ChannelKind, MessageKind, Row};
use chatring_wire::{Cid, Cmid, HistoryId, InstallationId, MemberNumber, Ordinal, Seq, Uid};

pub use file::{CacheError, CacheFile};

/// Everything that a session keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheImage {
    /// Which installation this is; made once by the caller.
    pub installation: InstallationId,
    /// Whose cache it is; none before the first `welcome`.
    pub uid: Option<Uid>,
    /// Which history the cache is of.
    pub history: Option<HistoryId>,
    /// Where to resume; empty for none.
    pub cursor: Bytes,
    /// The channels.
    pub channels: BTreeMap<Cid, ChannelRecord>,
    /// Messages that are known as they stand on the server.
    pub rows: BTreeMap<(Cid, Seq), Row>,
    /// Sends without an outcome, by their number.
    pub outbox: BTreeMap<u64, OutboxEntry>,
}

impl CacheImage {
    /// An empty cache of a new installation.
    pub const fn new(installation: InstallationId) -> CacheImage {
        CacheImage {
            installation,
            uid: None,
            history: None,
            cursor: Bytes::new(),
            channels: BTreeMap::new(),
            rows: BTreeMap::new(),
            outbox: BTreeMap::new(),
        }
    }

    /// Carries out a batch of changes.
    pub fn apply(&mut self, writes: &[CacheWrite]) {
        for write in writes {
            self.apply_one(write);
        }
    }

    fn apply_one(&mut self, write: &CacheWrite) {
        match write {
            CacheWrite::Owner { uid, history } => {
                self.uid = Some(*uid);
                self.history = Some(*history);
            }
            CacheWrite::Cursor(cursor) => self.cursor = cursor.clone(),
            CacheWrite::Channel(record) => {
                self.channels.insert(record.cid, *record);
            }
            CacheWrite::DropChannel(cid) => {
                self.channels.remove(cid);
                self.drop_rows(*cid, Seq(0), Seq(u64::MAX));
            }
            CacheWrite::Row { cid, row } => {
                self.rows.insert((*cid, row.seq), row.clone());
            }
            CacheWrite::DropRows { cid, from, to } => self.drop_rows(*cid, *from, *to),
            CacheWrite::OutboxPut { number, entry } => {
                self.outbox.insert(*number, entry.clone());
            }
            CacheWrite::OutboxDrop { number } => {
                self.outbox.remove(number);
            }
        }
    }

    fn drop_rows(&mut self, cid: Cid, from: Seq, to: Seq) {
        if from > to {
            return;
        }
        let doomed: Vec<_> =
            self.rows.range((cid, from)..=(cid, to)).map(|(key, _)| *key).collect();
        for key in doomed {
            self.rows.remove(&key);
        }
    }
}

/// What is kept of a channel beside its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelRecord {
    /// The channel.
    pub cid: Cid,
    /// What kind of channel.
    pub kind: ChannelKind,
    /// The other user of a direct channel.
    pub peer: Option<Uid>,
    /// One's own member number.
    pub me: MemberNumber,
    /// The newest position known of.
    pub head: Seq,
    /// The ordinal of the newest message, as far as known.
    pub ordinal: Ordinal,
    /// The oldest position kept by the server.
    pub floor: Seq,
    /// How far the user has read.
    pub read: Seq,
    /// The ordinal up to which nothing counts as unread.
    pub read_ordinal: Ordinal,
    /// How far any device of the user has received.
    pub received: Seq,
    /// Markers of this device that no sync has shown yet: read and received.
    pub marks: (Seq, Seq),
    /// Every message up to here was given to the application.
    pub delivered: Seq,
    /// The ordinal there.
    pub delivered_ordinal: Ordinal,
}

/// A send without an outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxEntry {
    /// The channel.
    pub cid: Cid,
    /// The message's own id.
    pub cmid: Cmid,
    /// The newest position seen when it first went out; none before that.
    pub base: Option<Seq>,
    /// What kind of body.
    pub kind: MessageKind,
    /// The body.
    pub body: Bytes,
}

/// One change of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheWrite {
    /// Whose cache it is and of which history.
    Owner {
        /// The user.
        uid: Uid,
        /// The history.
        history: HistoryId,
    },
    /// Where to resume.
    Cursor(Bytes),
    /// A channel came or changed.
    Channel(ChannelRecord),
    /// A channel and its messages go.
    DropChannel(Cid),
    /// A message came or changed.
    Row {
        /// The channel.
        cid: Cid,
        /// The message.
        row: Row,
    },
    /// Messages go, both ends included.
    DropRows {
        /// The channel.
        cid: Cid,
        /// The first.
        from: Seq,
        /// The last.
        to: Seq,
    },
    /// A send came, or its base changed.
    OutboxPut {
        /// Its number, ascending.
        number: u64,
        /// The send.
        entry: OutboxEntry,
    },
    /// A send has its outcome, and the application knows.
    OutboxDrop {
        /// Its number.
        number: u64,
    },
}
