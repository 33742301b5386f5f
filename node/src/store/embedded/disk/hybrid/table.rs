//! A memtable: the rows of a stretch of the log, read at any of its records while more come in.
//!
//! ```text
//!   heads   hash of (space, id, kind) ─▶ sorted (rest of the key, places of its values)
//!   order   the heads in their order, for ranges over several
//!   records the log's own bytes: a place is a record and an offset
//! ```
//!
//! A record is one batch, and so one state: what a snapshot sees of a key is the last value whose
//! record is not above its own. Older values stay while a snapshot lies between them and the next.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use chatring_core::kv::{KeyRange, Order};
use rustc_hash::FxHashMap;

use super::record::{row_at, rows};
use super::slots::{Head, Place, Rest, Slot, Slots, Spot, Upserted};
use crate::store::embedded::disk::DiskError;

/// Bytes of memory of a row beside its record, measured: a slot in a leaf with room to grow.
const SLOT_BYTES: usize = 62;
/// The same of a value that is kept for snapshots.
const OLDER_BYTES: usize = 8;
/// The same of a head: entries of both maps.
const HEAD_BYTES: usize = 200;
/// The same of a record.
const RECORD_BYTES: usize = 64;

/// See the module.
pub(crate) struct Table {
    /// The sequence of its first record.
    first_sequence: u64,
    inner: RwLock<Inner>,
    /// Bytes of memory, estimated.
    bytes: AtomicU64,
    /// Tables in memory, this one among them.
    live: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Inner {
    records: Vec<Bytes>,
    heads: FxHashMap<Head, Slots>,
    order: BTreeSet<Head>,
}

/// A row as a range gives it: parts of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// The key.
    pub key: Bytes,
    /// The value, or none if the row is removed.
    pub value: Option<Bytes>,
}

/// What a table knows of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Its value.
    Value(Bytes),
    /// It was removed.
    Removed,
    /// Nothing: what is below decides.
    Nothing,
}

/// Rows that a table may give at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum More {
    /// There may be more.
    Maybe,
    /// There is none.
    None,
}

impl Table {
    /// An empty table for records from this sequence on, with room for so many heads.
    pub(crate) fn new(first_sequence: u64, heads: usize, live: &Arc<AtomicUsize>) -> Table {
        live.fetch_add(1, Relaxed);
        let mut inner = Inner::default();
        inner.heads.reserve(heads);
        let (inner, bytes) = (RwLock::new(inner), AtomicU64::new(0));
        Table { first_sequence, inner, bytes, live: Arc::clone(live) }
    }

    /// Adds the next record. `live` are the snapshots' sequences, ascending; the record before this
    /// one counts as live in any case.
    pub(crate) fn insert(&self, record: Bytes, live: &[u64]) -> Result<(), DiskError> {
        let mut guard = self.write();
        let inner = &mut *guard;
        let number = inner.records.len() as u32;
        let mut bytes = record.len() + RECORD_BYTES;
        inner.records.push(record.clone());
        let first = self.first_sequence;
        let is_seen = |from: u32, below: u32| {
            let from = first + u64::from(from);
            let next = live.partition_point(|sequence| *sequence < from);
            live.get(next).is_some_and(|sequence| *sequence < first + u64::from(below))
        };
        for row in rows(&record) {
            let row = row?;
            let head = Head::of(row.key);
            let place = Place { record: number, offset: row.offset };
            let slots = match inner.heads.get_mut(&head) {
                Some(slots) => slots,
                None => {
                    bytes += HEAD_BYTES;
                    inner.order.insert(head);
                    inner.heads.entry(head).or_default()
                }
            };
            bytes += match slots.upsert(row.key, place, &inner.records, is_seen) {
                Upserted::Added => SLOT_BYTES,
                Upserted::Replaced => OLDER_BYTES,
            };
        }
        drop(guard);
        self.bytes.fetch_add(bytes as u64, Relaxed);
        Ok(())
    }

    /// What is known of a key at a sequence.
    pub(crate) fn get(&self, key: &[u8], sequence: u64) -> Found {
        let Some(record) = self.record_of(sequence) else { return Found::Nothing };
        let inner = self.read();
        let slot = inner.heads.get(&Head::of(key));
        let slot = slot.and_then(|slots| slots.get(&Rest::of(key), &inner.records));
        let Some(place) = slot.and_then(|slot| slot.seen_at(record)) else {
            return Found::Nothing;
        };
        match inner.row(place).value {
            Some(value) => Found::Value(Bytes::copy_from_slice(value)),
            None => Found::Removed,
        }
    }

    /// Gathers the rows of a range at a sequence, removed ones among them, at most `rows_max`.
    pub(crate) fn gather(
        &self,
        range: &KeyRange,
        order: Order,
        sequence: u64,
        rows_max: usize,
        into: &mut Vec<Row>,
    ) -> More {
        let Some(record) = self.record_of(sequence) else { return More::None };
        let inner = self.read();
        let enough = into.len() + rows_max;
        let mut take = |slot: &Slot| {
            if let Some(place) = slot.seen_at(record) {
                into.push(inner.owned_row(place));
            }
            into.len() < enough
        };
        let heads = inner.order.range(Head::of(&range.start)..=Head::of(&range.end));
        let mut all = true;
        match order {
            Order::Forward => {
                for head in heads {
                    let (slots, mut at, end) = inner.span(*head, range);
                    while at < end && all {
                        let Some((slot, next)) = slots.at(at) else { break };
                        at = next;
                        all = take(slot);
                    }
                    if !all {
                        return More::Maybe;
                    }
                }
            }
            Order::Reverse => {
                for head in heads.rev() {
                    let (slots, start, mut at) = inner.span(*head, range);
                    while at > start && all {
                        let Some((slot, before)) = slots.before(at) else { break };
                        at = before;
                        all = take(slot);
                    }
                    if !all {
                        return More::Maybe;
                    }
                }
            }
        }
        More::None
    }

    /// Visits the newest row of every key in order; for a table that no more is added to.
    pub(crate) fn for_each(
        &self,
        mut visit: impl FnMut(&[u8], Option<&[u8]>) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let inner = self.read();
        for head in &inner.order {
            let slots = &inner.heads[head];
            let mut at = slots.start();
            while let Some((slot, next)) = slots.at(at) {
                let row = inner.row(slot.newest());
                visit(row.key, row.value)?;
                at = next;
            }
        }
        Ok(())
    }

    /// The sequence of the first record.
    pub(crate) fn first_sequence(&self) -> u64 {
        self.first_sequence
    }

    /// The sequence of the next record.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.first_sequence + self.read().records.len() as u64
    }

    /// Bytes of memory, estimated.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Heads in it.
    pub(crate) fn heads(&self) -> usize {
        self.read().heads.len()
    }

    /// The record that a sequence is, counted from the first, or the last one before it.
    fn record_of(&self, sequence: u64) -> Option<u32> {
        let record = sequence.checked_sub(self.first_sequence)?;
        Some(u32::try_from(record).unwrap_or(u32::MAX))
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Relaxed);
    }
}

impl Inner {
    fn row(&self, place: Place) -> super::record::RowAt<'_> {
        let record = &self.records[place.record as usize];
        row_at(record, place.offset as usize).expect("was parsed").0
    }

    fn owned_row(&self, place: Place) -> Row {
        let record = &self.records[place.record as usize];
        let row = self.row(place);
        Row {
            key: record.slice_ref(row.key),
            value: row.value.map(|value| record.slice_ref(value)),
        }
    }

    /// The rows of a head that lie in a range: from a spot to below another.
    fn span(&self, head: Head, range: &KeyRange) -> (&Slots, Spot, Spot) {
        let slots = &self.heads[&head];
        let start = match head == Head::of(&range.start) {
            true => slots.lower_bound(&Rest::of(&range.start), &self.records),
            false => slots.start(),
        };
        let end = match head == Head::of(&range.end) {
            true => slots.lower_bound(&Rest::of(&range.end), &self.records),
            false => slots.end(),
        };
        (slots, start, end)
    }
}
