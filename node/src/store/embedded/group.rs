//! The rows of a group: the writes of its commits laid over each other, last one wins.

use std::ops::ControlFlow;

use bytes::{Bytes, BytesMut};
use chatring_core::kv::{KeyRange, Order, STAMP_BYTES, Stamp, Write};
use rustc_hash::FxHashMap;

use super::disk::{Batch, DiskError, DiskSnapshot};
use super::limits::CLEAR_ROWS_MAX;

/// See the module.
#[derive(Default)]
pub(crate) struct GroupRows {
    rows: Vec<(Bytes, Option<Bytes>)>,
    index: FxHashMap<Bytes, usize>,
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
    /// Applies a commit's writes in their order.
    pub(crate) fn apply(&mut self, writes: Vec<Write>, cleared: ClearedKeys, stamp: Stamp) {
        let mut cleared = cleared.0.into_iter();
        for write in writes {
            match write {
                Write::Set { key, value } => self.put(key, Some(value)),
                Write::SetStamped { key, value, offset } => {
                    self.put(key, Some(stamped(&value, offset, stamp)));
                }
                Write::Clear { key } => self.put(key, None),
                Write::ClearRange(range) => {
                    let keys = cleared.next().expect("one list per range clear");
                    self.clear_range(&range, keys);
                }
            }
        }
    }

    /// Puts a row of the engine's own.
    pub(crate) fn put(&mut self, key: Bytes, value: Option<Bytes>) {
        match self.index.get(&key) {
            Some(index) => self.rows[*index].1 = value,
            None => {
                self.index.insert(key.clone(), self.rows.len());
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
            self.put(key, None);
        }
    }
}

/// The value with the stamp over ten bytes at the offset, which was checked at submission.
fn stamped(value: &Bytes, offset: u32, stamp: Stamp) -> Bytes {
    let mut value = BytesMut::from(&**value);
    let offset = offset as usize;
    value[offset..offset + STAMP_BYTES].copy_from_slice(&stamp.to_bytes());
    value.freeze()
}
