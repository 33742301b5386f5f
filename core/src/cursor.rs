//! What a client keeps to resume: opaque to it, the same on every transport and node.
//!
//! ```text
//!  [format 1] [history id 8] [incarnation 2] [version 8] [count 1] count × ([cid 8] [seq varint])
//!  [1] [feed 8] [number varint]                      what was taken from a shard's memory of news
//!  [2] [incarnation 2] [version 8] [channel 8]       a sync that was given up to this channel
//! ```
//!
//! The last two are hints, each there or not, in this order: who does not know them, or what they
//! speak of, starts at the position. Bytes that follow are a later build's hints and are skipped.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use chatring_wire::limits::CURSOR_BYTES_MAX;
use chatring_wire::{Cid, HistoryId, Seq, varint};

use crate::kv::Version;
use crate::values::StoreIncarnation;

/// Channels that a cursor can list as given past its position.
pub const GIVEN_MAX: usize = 32;
const FORMAT: u8 = 1;
const HINT: u8 = 1;
const SCAN: u8 = 2;
/// What the two hints take at most.
const HINTS_BYTES_MAX: usize = 19 + 19;

const _: () = assert!(20 + GIVEN_MAX * 18 + HINTS_BYTES_MAX <= CURSOR_BYTES_MAX);

/// "Every change up to here has been read."
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Which store's counting.
    pub incarnation: StoreIncarnation,
    /// The commit version.
    pub version: Version,
}

impl Position {
    /// Before every change.
    pub const START: Position = Position { incarnation: StoreIncarnation(0), version: Version(0) };
}

/// A decoded cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Of which history.
    pub history: HistoryId,
    /// What has been read.
    pub position: Position,
    /// Messages that were given past the position, at most [`GIVEN_MAX`] channels.
    pub given: Vec<(Cid, Seq)>,
    /// How much of a feed was taken.
    pub hint: Option<Hint>,
    /// The sync that was not given to its end.
    pub scan: Option<Scanned>,
}

/// How much a client has taken of what a user's shard remembers of the newest events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// Which memory; never used twice within a history.
    pub feed: u64,
    /// The number of the newest event taken.
    pub number: u64,
}

/// How far a sync was given: of channels up to `after`, every change up to `at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// Where the sync leads to.
    pub at: Position,
    /// The last channel that was given.
    pub after: Cid,
}

impl Cursor {
    /// A cursor without anything past its position.
    pub const fn at(history: HistoryId, position: Position) -> Cursor {
        Cursor { history, position, given: Vec::new(), hint: None, scan: None }
    }

    /// The newest message of a channel that was given past the position; 0 for none.
    pub fn given_of(&self, cid: Cid) -> Seq {
        let given = self.given.iter().find(|(listed, _)| *listed == cid);
        given.map_or(Seq(0), |(_, seq)| *seq)
    }

    /// The bytes that a client keeps, at most 1 KiB.
    pub fn encode(&self) -> Bytes {
        debug_assert!(self.given.len() <= GIVEN_MAX);
        let mut out = BytesMut::with_capacity(20 + self.given.len() * 18 + HINTS_BYTES_MAX);
        out.put_u8(FORMAT);
        out.put_u64(self.history.0);
        out.put_u16(self.position.incarnation.0);
        out.put_u64(self.position.version.0);
        out.put_u8(self.given.len() as u8);
        for (cid, seq) in &self.given {
            out.put_u64(cid.0);
            varint::put(&mut out, seq.0);
        }
        if let Some(hint) = self.hint {
            out.put_u8(HINT);
            out.put_u64(hint.feed);
            varint::put(&mut out, hint.number);
        }
        if let Some(scan) = self.scan {
            out.put_u8(SCAN);
            out.put_u16(scan.at.incarnation.0);
            out.put_u64(scan.at.version.0);
            out.put_u64(scan.after.0);
        }
        out.freeze()
    }

    /// From what a client gave; `None` if it is none of ours, which costs the client a first sync.
    pub fn decode(mut input: Bytes) -> Option<Cursor> {
        if input.try_get_u8().ok()? != FORMAT {
            return None;
        }
        let history = HistoryId(input.try_get_u64().ok()?);
        let incarnation = StoreIncarnation(input.try_get_u16().ok()?);
        let version = Version(input.try_get_u64().ok()?);
        let count = usize::from(input.try_get_u8().ok()?);
        if count > GIVEN_MAX {
            return None;
        }
        let mut given = Vec::with_capacity(count);
        for _ in 0..count {
            let cid = Cid(input.try_get_u64().ok()?);
            let (seq, length) = varint::take(&input).ok()?;
            input.advance(length);
            given.push((cid, Seq(seq)));
        }
        let position = Position { incarnation, version };
        let mut cursor = Cursor { history, position, given, hint: None, scan: None };
        cursor.take_hints(input);
        Some(cursor)
    }

    /// Takes the hints that parse.
    fn take_hints(&mut self, mut input: Bytes) -> Option<()> {
        if input.first() == Some(&HINT) {
            input.advance(1);
            let feed = input.try_get_u64().ok()?;
            let (number, length) = varint::take(&input).ok()?;
            input.advance(length);
            self.hint = Some(Hint { feed, number });
        }
        if input.first() == Some(&SCAN) {
            input.advance(1);
            let incarnation = StoreIncarnation(input.try_get_u16().ok()?);
            let version = Version(input.try_get_u64().ok()?);
            let after = Cid(input.try_get_u64().ok()?);
            self.scan = Some(Scanned { at: Position { incarnation, version }, after });
        }
        Some(())
    }
}
