//! The rows of one head of keys: sorted, in leaves, each with the values that snapshots still need.

use std::cmp::Ordering;

use bytes::Bytes;

use super::record::row_at;

/// Rows of a leaf. A head has one leaf, mostly; above it, inserting would move too much.
const LEAF_ROWS_MAX: usize = 256;
/// Bytes of the fixed head of a key: space, id, kind.
const HEAD_BYTES: usize = 10;

/// The fixed head of a key: its first ten bytes and how many of them it has. Ordered as keys are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Head(u128);

impl Head {
    /// The head of a key.
    pub(crate) fn of(key: &[u8]) -> Head {
        let used = key.len().min(HEAD_BYTES);
        let mut bytes = [0; 16];
        bytes[..used].copy_from_slice(&key[..used]);
        bytes[HEAD_BYTES] = used as u8;
        Head(u128::from_be_bytes(bytes))
    }

    /// What a key has behind its head.
    pub(crate) fn rest(key: &[u8]) -> &[u8] {
        key.get(HEAD_BYTES..).unwrap_or_default()
    }
}

/// Where a row is: the record, counted from the table's first, and the offset in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub record: u32,
    pub offset: u32,
}

impl Place {
    /// The row's key.
    pub(crate) fn key<'a>(&self, records: &'a [Bytes]) -> &'a [u8] {
        row_at(&records[self.record as usize], self.offset as usize).expect("was parsed").0.key
    }
}

/// A key and the places of its values.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    /// The first eight bytes of the rest, then its length: these order most.
    prefix: u64,
    rest_bytes: u16,
    newest: Place,
    /// The value before the newest: the state before the newest record is always seen.
    before: Option<Place>,
    /// Values before that one which a snapshot may see, oldest first.
    older: Vec<Place>,
}

impl Slot {
    /// The place of the value that was the newest when this record was.
    pub(crate) fn seen_at(&self, record: u32) -> Option<Place> {
        if self.newest.record <= record {
            return Some(self.newest);
        }
        let mut earlier = self.before.iter().chain(self.older.iter().rev());
        earlier.find(|place| place.record <= record).copied()
    }

    /// The place of the last value.
    pub(crate) fn newest(&self) -> Place {
        self.newest
    }

    /// Values that are kept.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> usize {
        1 + usize::from(self.before.is_some()) + self.older.len()
    }

    fn compare(&self, rest: &Rest<'_>, records: &[Bytes]) -> Ordering {
        self.prefix.cmp(&rest.prefix).then_with(|| {
            if usize::from(self.rest_bytes).max(rest.bytes.len()) <= 8 {
                return usize::from(self.rest_bytes).cmp(&rest.bytes.len());
            }
            Head::rest(self.newest.key(records)).cmp(rest.bytes)
        })
    }
}

/// What a key has behind its head, ready to be compared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest<'a> {
    prefix: u64,
    bytes: &'a [u8],
}

impl<'a> Rest<'a> {
    /// The rest of a key.
    pub(crate) fn of(key: &'a [u8]) -> Rest<'a> {
        let bytes = Head::rest(key);
        let prefix = match bytes.first_chunk::<8>() {
            Some(first) => u64::from_be_bytes(*first),
            None => {
                let mut first = [0; 8];
                first[..bytes.len()].copy_from_slice(bytes);
                u64::from_be_bytes(first)
            }
        };
        Rest { prefix, bytes }
    }
}

/// The rows of one head.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    /// The lowest rows; all, mostly.
    first: Vec<Slot>,
    /// The others. No leaf is empty.
    more: Vec<Vec<Slot>>,
}

/// A place among the rows: leaf and row in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Spot {
    leaf: usize,
    row: usize,
}

/// What an upsert did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upserted {
    /// The key is new.
    Added,
    /// The key had a value, which is kept for snapshots.
    Replaced,
}

impl Slots {
    /// Puts a key's new value. `is_seen` tells whether a snapshot lies at or above the first record
    /// and below the second.
    pub(crate) fn upsert(
        &mut self,
        key: &[u8],
        place: Place,
        records: &[Bytes],
        is_seen: impl Fn(u32, u32) -> bool,
    ) -> Upserted {
        let rest = Rest::of(key);
        let spot = match self.find(&rest, records) {
            Ok(spot) => {
                let slot = &mut self.leaf_mut(spot.leaf)[spot.row];
                if let Some(before) = slot.before
                    && is_seen(before.record, slot.newest.record)
                {
                    slot.older.push(before);
                }
                slot.before = Some(slot.newest);
                slot.newest = place;
                return Upserted::Replaced;
            }
            Err(spot) => spot,
        };
        let (prefix, rest_bytes) = (rest.prefix, rest.bytes.len() as u16);
        self.insert(
            spot,
            Slot { prefix, rest_bytes, newest: place, before: None, older: Vec::new() },
        );
        Upserted::Added
    }

    /// The first row at or above the rest.
    pub(crate) fn lower_bound(&self, rest: &Rest<'_>, records: &[Bytes]) -> Spot {
        let spot = self.find(rest, records).unwrap_or_else(|spot| spot);
        match spot.row == self.leaf(spot.leaf).len() {
            true => Spot { leaf: spot.leaf + 1, row: 0 },
            false => spot,
        }
    }

    /// The row of exactly this rest.
    pub(crate) fn get(&self, rest: &Rest<'_>, records: &[Bytes]) -> Option<&Slot> {
        self.find(rest, records).ok().map(|spot| &self.leaf(spot.leaf)[spot.row])
    }

    /// Before the first row.
    pub(crate) fn start(&self) -> Spot {
        Spot { leaf: 0, row: 0 }
    }

    /// Behind the last row.
    pub(crate) fn end(&self) -> Spot {
        Spot { leaf: 1 + self.more.len(), row: 0 }
    }

    /// The row at a spot and the spot behind it.
    pub(crate) fn at(&self, spot: Spot) -> Option<(&Slot, Spot)> {
        if spot >= self.end() {
            return None;
        }
        let leaf = self.leaf(spot.leaf);
        let next = match spot.row + 1 < leaf.len() {
            true => Spot { leaf: spot.leaf, row: spot.row + 1 },
            false => Spot { leaf: spot.leaf + 1, row: 0 },
        };
        Some((leaf.get(spot.row)?, next))
    }

    /// The row before a spot and its own spot.
    pub(crate) fn before(&self, spot: Spot) -> Option<(&Slot, Spot)> {
        let spot = match spot {
            Spot { leaf: 0, row: 0 } => return None,
            Spot { leaf, row: 0 } => {
                Spot { leaf: leaf - 1, row: self.leaf(leaf - 1).len().checked_sub(1)? }
            }
            Spot { leaf, row } => Spot { leaf, row: row - 1 },
        };
        Some((&self.leaf(spot.leaf)[spot.row], spot))
    }

    /// The spot of a rest, or where it belongs: within a leaf or at its end.
    fn find(&self, rest: &Rest<'_>, records: &[Bytes]) -> Result<Spot, Spot> {
        let mut leaf = 0;
        if !self.more.is_empty() {
            let starts_at_or_below =
                |rows: &Vec<Slot>| rows[0].compare(rest, records) != Ordering::Greater;
            leaf = self.more.partition_point(starts_at_or_below);
        }
        let rows = self.leaf(leaf);
        // Messages of a channel come in their order.
        if let Some(last) = rows.last()
            && last.compare(rest, records) == Ordering::Less
        {
            return Err(Spot { leaf, row: rows.len() });
        }
        rows.binary_search_by(|slot| slot.compare(rest, records))
            .map(|row| Spot { leaf, row })
            .map_err(|row| Spot { leaf, row })
    }

    fn insert(&mut self, spot: Spot, slot: Slot) {
        let rows = self.leaf_mut(spot.leaf);
        if rows.is_empty() {
            // Many heads never have a second row: that of a user or a device.
            rows.reserve_exact(1);
        }
        if rows.len() < LEAF_ROWS_MAX {
            return rows.insert(spot.row, slot);
        }
        // Rows that come in order leave full leaves behind.
        let split = if spot.row == rows.len() { rows.len() } else { rows.len() / 2 };
        let mut upper = rows.split_off(split);
        match spot.row > split || upper.is_empty() {
            true => upper.insert(spot.row - split, slot),
            false => rows.insert(spot.row, slot),
        }
        self.more.insert(spot.leaf, upper);
    }

    fn leaf(&self, leaf: usize) -> &Vec<Slot> {
        match leaf {
            0 => &self.first,
            leaf => &self.more[leaf - 1],
        }
    }

    fn leaf_mut(&mut self, leaf: usize) -> &mut Vec<Slot> {
        match leaf {
            0 => &mut self.first,
            leaf => &mut self.more[leaf - 1],
        }
    }
}
