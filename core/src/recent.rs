//! The messages of a channel that a repeat is compared with before the store is asked.
//!
//! The map covers (`complete_from`, head]: a send with a base in there that is not in the map is
//! new.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, Hash, Hasher as _};

use chatring_wire::frame::MessageKind;
use chatring_wire::{Cmid, DeviceId, Seq, Uid};
use hashbrown::HashTable;
use rustc_hash::{FxBuildHasher, FxHasher};

/// What makes two sends the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SendKey {
    pub(crate) uid: Uid,
    pub(crate) device: DeviceId,
    pub(crate) cmid: Cmid,
}

/// A fingerprint of what was sent, to notice a client message id that is used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint(u64);

impl Fingerprint {
    pub(crate) fn of(kind: MessageKind, body: &[u8]) -> Fingerprint {
        let mut hasher = FxHasher::default();
        kind.hash(&mut hasher);
        body.hash(&mut hasher);
        Fingerprint(hasher.finish())
    }
}

/// A message that was given its position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) key: SendKey,
    pub(crate) seq: Seq,
    pub(crate) time_ms: u64,
    pub(crate) fingerprint: Fingerprint,
}

/// The map: what a channel keeps for each message, one behind the other, and four bytes a message
/// to find them by. A busy shard touches as many maps as it has channels, so it is what they take
/// in the processor's cache that costs.
#[derive(Debug)]
pub(crate) struct Recent {
    complete_from: Seq,
    /// In the order of their positions.
    entries: VecDeque<Entry>,
    /// The number of the first one. They are numbered as they come, round and round.
    first: u32,
    /// Their numbers, by the hashes of their keys.
    index: HashTable<u32>,
    entries_max: usize,
}

impl Recent {
    /// An empty map over a channel with this head.
    pub(crate) fn new(head: Seq, entries_max: usize) -> Recent {
        Recent {
            complete_from: head,
            entries: VecDeque::new(),
            first: 0,
            index: HashTable::new(),
            entries_max,
        }
    }

    /// Above this position the map is complete.
    pub(crate) fn complete_from(&self) -> Seq {
        self.complete_from
    }

    /// Looks a send up.
    pub(crate) fn get(&self, key: &SendKey) -> Option<&Entry> {
        let place = |number: &u32| number.wrapping_sub(self.first) as usize;
        let is_it = |number: &u32| self.entries[place(number)].key == *key;
        self.index.find(hash(key), is_it).map(|number| &self.entries[place(number)])
    }

    /// Adds the newest message; forgets the oldest ones up to the `stored` position above the
    /// bound. `forgetting` says whether the map then also stops to answer for their positions.
    pub(crate) fn insert(&mut self, entry: Entry, stored: Seq, forgetting: Forgetting) {
        while self.entries.len() >= self.entries_max {
            let Some(oldest) = self.entries.pop_front_if(|oldest| oldest.seq <= stored) else {
                break;
            };
            let is_it = |number: &u32| *number == self.first;
            if let Ok(number) = self.index.find_entry(hash(&oldest.key), is_it) {
                number.remove();
            }
            self.first = self.first.wrapping_add(1);
            if forgetting == Forgetting::Honest {
                self.complete_from = self.complete_from.max(oldest.seq);
            }
        }
        let Recent { entries, first, index, .. } = self;
        entries.push_back(entry);
        let number = first.wrapping_add(entries.len() as u32 - 1);
        let again = |number: &u32| hash(&entries[number.wrapping_sub(*first) as usize].key);
        index.insert_unique(hash(&entry.key), number, again);
    }
}

fn hash(key: &SendKey) -> u64 {
    FxBuildHasher.hash_one(key)
}

/// Whether the map admits what it has forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forgetting {
    /// Positions of forgotten messages are looked up in the store.
    Honest,
    /// A break for tests: the map claims to be complete.
    Denied,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u64) -> Entry {
        let mut cmid = [0; 16];
        cmid[..8].copy_from_slice(&n.to_be_bytes());
        let key = SendKey { uid: Uid(n % 2), device: DeviceId(1), cmid: Cmid(cmid) };
        Entry { key, seq: Seq(n), time_ms: n, fingerprint: Fingerprint(n) }
    }

    #[test]
    fn it_has_the_newest_messages_and_all_that_are_not_stored() {
        for (entries_max, not_stored) in [(1, 0), (1, 5), (2, 1), (7, 3), (7, 20), (100, 0)] {
            // The numbers come round early.
            let mut recent = Recent { first: u32::MAX - 9, ..Recent::new(Seq(0), entries_max) };
            let mut oldest = 1;
            for n in 1..=300 {
                let stored = n - 1 - not_stored.min(n - 1);
                recent.insert(entry(n), Seq(stored), Forgetting::Honest);
                while n - oldest >= entries_max as u64 && oldest <= stored {
                    oldest += 1;
                }
                assert_eq!(recent.complete_from(), Seq(oldest - 1));
                for known in 1..=n {
                    let found = recent.get(&entry(known).key).map(|entry| entry.seq);
                    assert_eq!(found, (known >= oldest).then_some(Seq(known)), "{known} of {n}");
                }
                assert!(recent.get(&entry(n + 1).key).is_none());
            }
        }
    }
}
