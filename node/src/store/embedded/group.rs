//! The rows of a group: the writes of its commits laid over each other, last one wins.

use std::ops::ControlFlow;

use bytes::Bytes;
use chatring_core::kv::{KeyRange, Order, Stamp, Write};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::disk::{Batch, DiskError, DiskSnapshot, Value};
use super::limits::CLEAR_ROWS_MAX;
use super::resolver::KeyHash;

/// See the module.
#[derive(Default)]
pub(crate) struct GroupRows {
    rows: Vec<(Bytes, Option<Value>)>,
    /// Where the row of a key is, by its hash.
    index: HashTable<(KeyHash, usize)>,
    /// Range clears so far.
    pub clears: usize,
}

/// The keys on disk that a commit's range clears remove, one list per clear.
#[derive(Default)]
pub(crate) struct ClearedKeys(Vec<Vec<Bytes>>);

/// Why a range clear cannot be carried out.
pub(crate) enum ClearError {
    /// It removes more rows than a commit may.
    TooLarge,
    /// The disk failed to read.
    Disk(DiskError),
}

impl ClearedKeys {
    /// Looks the keys up, before anything of the commit is applied.
    pub(crate) fn find(
        writes: &[Write],
        snapshot: &dyn DiskSnapshot,
    ) -> Result<ClearedKeys, ClearError> {
        let mut found = 0;
        let mut lists = Vec::new();
        for write in writes {
            let Write::ClearRange(range) = write else { continue };
            let mut keys = Vec::new();
            let mut visit = |key: &[u8], _: &[u8]| {
                found += 1;
                if found > CLEAR_ROWS_MAX {
                    return ControlFlow::Break(());
                }
                keys.push(Bytes::copy_from_slice(key));
                ControlFlow::Continue(())
            };
            snapshot.range(range, Order::Forward, &mut visit).map_err(ClearError::Disk)?;
            if found > CLEAR_ROWS_MAX {
                return Err(ClearError::TooLarge);
            }
            lists.push(keys);
        }
        Ok(ClearedKeys(lists))
    }
}

impl GroupRows {
    /// No rows, with room for so many.
    pub(crate) fn with_capacity(rows: usize) -> GroupRows {
        let index = HashTable::with_capacity(rows);
        GroupRows { rows: Vec::with_capacity(rows), index, clears: 0 }
    }

    /// Applies a commit's writes in their order. Tells the key of each that names one.
    pub(crate) fn apply(
        &mut self,
        writes: Vec<Write>,
        cleared: ClearedKeys,
        stamp: Stamp,
        mut wrote: impl FnMut(&[u8], KeyHash),
    ) {
        let mut cleared = cleared.0.into_iter();
        for write in writes {
            let (key, value) = match write {
                Write::Set { key, value } => (key, Some(value.into())),
                Write::SetStamped { key, value, offset } => {
                    (key, Some(Value::stamped(value, offset, stamp)))
                }
                Write::Clear { key } => (key, None),
                Write::ClearRange(range) => {
                    let keys = cleared.next().expect("one list per range clear");
                    self.clear_range(&range, keys);
                    continue;
                }
            };
            let hash = KeyHash::of(&key);
            wrote(&key, hash);
            self.put(key, hash, value);
        }
    }

    /// Puts a row.
    pub(crate) fn put(&mut self, key: Bytes, hash: KeyHash, value: Option<Value>) {
        let is_row = |(of, row): &(KeyHash, usize)| *of == hash && self.rows[*row].0 == key;
        match self.index.entry(hash.0, is_row, |(of, _)| of.0) {
            Entry::Occupied(entry) => self.rows[entry.get().1].1 = value,
            Entry::Vacant(entry) => {
                entry.insert((hash, self.rows.len()));
                self.rows.push((key, value));
            }
        }
    }

    /// Rows so far.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// What goes to disk.
    pub(crate) fn into_batch(self) -> Batch {
        Batch { rows: self.rows }
    }

    fn clear_range(&mut self, range: &KeyRange, keys_on_disk: Vec<Bytes>) {
        self.clears += 1;
        for (key, value) in &mut self.rows {
            if range.contains(key) {
                *value = None;
            }
        }
        for key in keys_on_disk {
            let hash = KeyHash::of(&key);
            self.put(key, hash, None);
        }
    }
}
