//! An ordered map that keeps what every commit made of every key.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::kv::{Order, RangeEnd, RangeRead, RangeRows, Read, Rows, Stamp, Version, Write};

/// What a commit left a key as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Which commit.
    pub stamp: Stamp,
    /// The value, or `None` if the commit removed the key.
    pub value: Option<Bytes>,
}

/// The keys with all that was committed to them, oldest first.
///
/// Removing a key that is not there leaves no trace, and of several writes of one commit to one key
/// only the last does.
#[derive(Clone, Debug, Default)]
pub struct History {
    keys: BTreeMap<Bytes, Vec<Written>>,
}

impl History {
    /// Carries out the writes of a commit, in their order. Stamps must ascend.
    pub fn apply(&mut self, stamp: Stamp, writes: &[Write]) {
        for write in writes {
            match write {
                Write::Set { key, value } => self.put(key, stamp, value.clone()),
                Write::SetStamped { key, value, offset } => {
                    self.put(key, stamp, stamped(value, *offset, stamp));
                }
                Write::Clear { key } => self.remove(key, stamp),
                Write::ClearRange(range) if range.is_empty() => {}
                Write::ClearRange(range) => {
                    let keys = self.keys.range_mut::<Bytes, _>(&range.start..&range.end);
                    keys.for_each(|(_, entries)| remove_last(entries, stamp));
                }
            }
        }
    }

    /// The value of a key at a version.
    pub fn get(&self, key: &[u8], at: Version) -> Option<&Bytes> {
        value_at(self.keys.get(key)?, at)
    }

    /// Answers a read as of a version.
    pub fn read(&self, read: &Read, at: Version) -> Rows {
        Rows {
            version: at,
            gets: read.gets.iter().map(|key| self.get(key, at).cloned()).collect(),
            ranges: read.ranges.iter().map(|range| self.read_range(range, at)).collect(),
        }
    }

    /// Answers a range read as of a version.
    pub fn read_range(&self, read: &RangeRead, at: Version) -> RangeRows {
        if read.range.is_empty() {
            return RangeRows { rows: Vec::new(), end: RangeEnd::Complete };
        }
        let keys = self.keys.range::<Bytes, _>(&read.range.start..&read.range.end);
        let live = keys.filter_map(|(key, entries)| Some((key, value_at(entries, at)?)));
        match read.order {
            Order::Forward => take_rows(live, read),
            Order::Reverse => take_rows(live.rev(), read),
        }
    }

    /// All rows as of a version, in key order.
    pub fn rows_at(&self, at: Version) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.keys.iter().filter_map(move |(key, entries)| Some((key, value_at(entries, at)?)))
    }

    /// What was committed to a key, oldest first.
    pub fn of_key(&self, key: &[u8]) -> &[Written] {
        self.keys.get(key).map_or(&[], Vec::as_slice)
    }

    /// What was committed to every key, in key order.
    pub fn of_all(&self) -> impl Iterator<Item = (&Bytes, &[Written])> {
        self.keys.iter().map(|(key, entries)| (key, entries.as_slice()))
    }

    /// Forgets what no read at this version or a later one can see.
    pub fn prune(&mut self, at: Version) {
        self.keys.retain(|_, entries| {
            let seen = entries.partition_point(|written| written.stamp.version <= at);
            entries.drain(..seen.saturating_sub(1));
            let removed = |written: &Written| written.value.is_none();
            if entries.first().is_some_and(|first| first.stamp.version <= at && removed(first)) {
                entries.remove(0);
            }
            !entries.is_empty()
        });
    }

    fn put(&mut self, key: &Bytes, stamp: Stamp, value: Bytes) {
        if let Some(entries) = self.keys.get_mut(key) {
            push(entries, Written { stamp, value: Some(value) });
        } else {
            self.keys.insert(key.clone(), vec![Written { stamp, value: Some(value) }]);
        }
    }

    fn remove(&mut self, key: &Bytes, stamp: Stamp) {
        if let Some(entries) = self.keys.get_mut(key) {
            remove_last(entries, stamp);
        }
    }
}

/// The value with the stamp at its place. The offset was checked when the commit was accepted.
fn stamped(value: &Bytes, offset: u32, stamp: Stamp) -> Bytes {
    let mut bytes = value.to_vec();
    let start = offset as usize;
    let stamp = stamp.to_bytes();
    bytes[start..start + stamp.len()].copy_from_slice(&stamp);
    bytes.into()
}

fn value_at(entries: &[Written], at: Version) -> Option<&Bytes> {
    let seen = entries.partition_point(|written| written.stamp.version <= at);
    entries[..seen].last()?.value.as_ref()
}

fn push(entries: &mut Vec<Written>, written: Written) {
    match entries.last_mut() {
        Some(last) if last.stamp == written.stamp => *last = written,
        Some(last) => {
            assert!(last.stamp < written.stamp, "stamps ascend");
            entries.push(written);
        }
        None => entries.push(written),
    }
}

fn remove_last(entries: &mut Vec<Written>, stamp: Stamp) {
    if entries.last().is_some_and(|last| last.value.is_some()) {
        push(entries, Written { stamp, value: None });
    }
}

fn take_rows<'a>(
    mut live: impl Iterator<Item = (&'a Bytes, &'a Bytes)>,
    read: &RangeRead,
) -> RangeRows {
    let mut rows = Vec::new();
    let mut bytes = 0;
    let end = loop {
        let Some((key, value)) = live.next() else { break RangeEnd::Complete };
        rows.push((key.clone(), value.clone()));
        bytes += key.len() + value.len();
        if rows.len() >= read.rows_max as usize || bytes >= read.bytes_max as usize {
            break RangeEnd::More;
        }
    };
    RangeRows { rows, end }
}
