//! The rows of one head of keys: sorted, in leaves, each with the values that snapshots still need.

use std::cmp::Ordering;

use bytes::Bytes;

use super::record::row_at;

/// Rows of a leaf. A head has one leaf, mostly; above it, inserting would move too much.
const LEAF_ROWS_MAX: usize = 128;
/// Bytes of the fixed head of a key: space, id, kind.
const HEAD_BYTES: usize = 10;
/// Bytes of the rest of a key that a leaf searches by. With its length they order most.
const PREFIX_BYTES: usize = size_of::<u64>();

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
    /// That of no row.
    const NOWHERE: Place = Place { record: u32::MAX, offset: u32::MAX };

    /// The row's key.
    pub(crate) fn key<'a>(&self, records: &'a [Bytes]) -> &'a [u8] {
        row_at(&records[self.record as usize], self.offset as usize).expect("was parsed").0.key
    }
}

/// The places of a key's values. The key is that of any of them.
#[derive(Debug)]
pub(crate) struct Slot {
    newest: Place,
    /// The value before the newest: the state before the newest record is always seen.
    before: Place,
    /// Most rows have none.
    older: Option<Box<Older>>,
    /// Bytes of the key's rest.
    rest_bytes: u16,
}

/// Values before the last two which a snapshot may see, oldest first.
#[derive(Debug, Default)]
struct Older(Vec<Place>);

impl Slot {
    fn new(newest: Place, rest_bytes: u16) -> Slot {
        Slot { newest, before: Place::NOWHERE, older: None, rest_bytes }
    }

    /// The place of the value that was the newest when this record was.
    pub(crate) fn seen_at(&self, record: u32) -> Option<Place> {
        let older = self.older.iter().flat_map(|older| older.0.iter().rev());
        let mut places = [&self.newest, &self.before].into_iter().chain(older);
        places.find(|place| place.record <= record && **place != Place::NOWHERE).copied()
    }

    /// The place of the last value.
    pub(crate) fn newest(&self) -> Place {
        self.newest
    }

    /// Values that are kept.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> usize {
        let older = self.older.as_ref().map_or(0, |older| older.0.len());
        1 + usize::from(self.before != Place::NOWHERE) + older
    }

    fn replace(&mut self, place: Place, is_seen: impl Fn(u32, u32) -> bool) {
        if self.before != Place::NOWHERE && is_seen(self.before.record, self.newest.record) {
            self.older.get_or_insert_default().0.push(self.before);
        }
        self.before = std::mem::replace(&mut self.newest, place);
    }

    /// How the key compares, if both have the same prefix.
    fn compare(&self, rest: &Rest<'_>, records: &[Bytes]) -> Ordering {
        if usize::from(self.rest_bytes).max(rest.bytes.len()) <= PREFIX_BYTES {
            return usize::from(self.rest_bytes).cmp(&rest.bytes.len());
        }
        Head::rest(self.newest.key(records)).cmp(rest.bytes)
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
        let prefix = match bytes.first_chunk::<PREFIX_BYTES>() {
            Some(first) => u64::from_be_bytes(*first),
            None => {
                let mut first = [0; PREFIX_BYTES];
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
    first: Leaf,
    /// The others, each behind a copy of its lowest row's prefix, so that one is found without a
    /// look into others. Its lowest row stays that; no leaf is empty.
    more: Vec<(u64, Leaf)>,
}

/// Rows in their order. What is searched lies apart, so that a search touches little memory.
#[derive(Debug, Default)]
struct Leaf {
    prefixes: Vec<u64>,
    slots: Vec<Slot>,
}

impl Leaf {
    /// How the key of a row compares.
    fn compare(&self, row: usize, rest: &Rest<'_>, records: &[Bytes]) -> Ordering {
        let prefixes = self.prefixes[row].cmp(&rest.prefix);
        prefixes.then_with(|| self.slots[row].compare(rest, records))
    }

    /// The row of a rest, or where it belongs.
    fn find(&self, rest: &Rest<'_>, records: &[Bytes]) -> Result<usize, usize> {
        // Messages of a channel come in their order.
        if let Some(last) = self.slots.len().checked_sub(1)
            && self.compare(last, rest, records) == Ordering::Less
        {
            return Err(self.slots.len());
        }
        let from = self.prefixes.partition_point(|prefix| *prefix < rest.prefix);
        let alike = self.prefixes[from..].iter().take_while(|prefix| **prefix == rest.prefix);
        let alike = &self.slots[from..from + alike.count()];
        let found = alike.binary_search_by(|slot| slot.compare(rest, records));
        found.map(|row| from + row).map_err(|row| from + row)
    }

    fn insert(&mut self, row: usize, prefix: u64, slot: Slot) {
        if self.slots.is_empty() {
            // Many heads never have a second row: that of a user or a device.
            self.prefixes.reserve_exact(1);
            self.slots.reserve_exact(1);
        }
        self.prefixes.insert(row, prefix);
        self.slots.insert(row, slot);
    }

    fn split_off(&mut self, row: usize) -> Leaf {
        Leaf { prefixes: self.prefixes.split_off(row), slots: self.slots.split_off(row) }
    }
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
                self.leaf_mut(spot.leaf).slots[spot.row].replace(place, is_seen);
                return Upserted::Replaced;
            }
            Err(spot) => spot,
        };
        let rest_bytes = rest.bytes.len() as u16;
        self.insert(spot, rest.prefix, Slot::new(place, rest_bytes));
        Upserted::Added
    }

    /// The first row at or above the rest.
    pub(crate) fn lower_bound(&self, rest: &Rest<'_>, records: &[Bytes]) -> Spot {
        let spot = self.find(rest, records).unwrap_or_else(|spot| spot);
        match spot.row == self.leaf(spot.leaf).slots.len() {
            true => Spot { leaf: spot.leaf + 1, row: 0 },
            false => spot,
        }
    }

    /// The row of exactly this rest.
    pub(crate) fn get(&self, rest: &Rest<'_>, records: &[Bytes]) -> Option<&Slot> {
        self.find(rest, records).ok().map(|spot| &self.leaf(spot.leaf).slots[spot.row])
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
        let slots = &self.leaf(spot.leaf).slots;
        let next = match spot.row + 1 < slots.len() {
            true => Spot { leaf: spot.leaf, row: spot.row + 1 },
            false => Spot { leaf: spot.leaf + 1, row: 0 },
        };
        Some((slots.get(spot.row)?, next))
    }

    /// The row before a spot and its own spot.
    pub(crate) fn before(&self, spot: Spot) -> Option<(&Slot, Spot)> {
        let spot = match spot {
            Spot { leaf: 0, row: 0 } => return None,
            Spot { leaf, row: 0 } => {
                Spot { leaf: leaf - 1, row: self.leaf(leaf - 1).slots.len().checked_sub(1)? }
            }
            Spot { leaf, row } => Spot { leaf, row: row - 1 },
        };
        Some((&self.leaf(spot.leaf).slots[spot.row], spot))
    }

    /// The spot of a rest, or where it belongs: within a leaf or at its end.
    fn find(&self, rest: &Rest<'_>, records: &[Bytes]) -> Result<Spot, Spot> {
        let starts_at_or_below = |(start, leaf): &(u64, Leaf)| {
            let order = start.cmp(&rest.prefix);
            order.then_with(|| leaf.slots[0].compare(rest, records)) != Ordering::Greater
        };
        let leaf = self.more.partition_point(starts_at_or_below);
        let found = self.leaf(leaf).find(rest, records);
        found.map(|row| Spot { leaf, row }).map_err(|row| Spot { leaf, row })
    }

    fn insert(&mut self, spot: Spot, prefix: u64, slot: Slot) {
        let leaf = self.leaf_mut(spot.leaf);
        let rows = leaf.slots.len();
        if rows < LEAF_ROWS_MAX {
            return leaf.insert(spot.row, prefix, slot);
        }
        // Rows that come in order leave full leaves behind.
        let split = if spot.row == rows { rows } else { rows / 2 };
        let mut upper = leaf.split_off(split);
        match spot.row > split || split == rows {
            true => upper.insert(spot.row - split, prefix, slot),
            false => leaf.insert(spot.row, prefix, slot),
        }
        self.more.insert(spot.leaf, (upper.prefixes[0], upper));
    }

    fn leaf(&self, leaf: usize) -> &Leaf {
        match leaf {
            0 => &self.first,
            leaf => &self.more[leaf - 1].1,
        }
    }

    fn leaf_mut(&mut self, leaf: usize) -> &mut Leaf {
        match leaf {
            0 => &mut self.first,
            leaf => &mut self.more[leaf - 1].1,
        }
    }
}
