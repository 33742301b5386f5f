//! The messages of a channel that a repeat is compared with before the store is asked.
//!
//! The map covers (`complete_from`, head]: a send with a base in there that is not in the map is
//! new.

use std::collections::VecDeque;

use chatring_wire::frame::MessageKind;
use chatring_wire::{Cmid, DeviceId, Seq, Uid};
use rustc_hash::FxHashMap;
use std::hash::{Hash, Hasher};

use crate::effect::Origins;

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
        let mut hasher = rustc_hash::FxHasher::default();
        kind.hash(&mut hasher);
        body.hash(&mut hasher);
        Fingerprint(hasher.finish())
    }
}

/// A message that was given its position.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) seq: Seq,
    pub(crate) time_ms: u64,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) state: EntryState,
}

/// Whether a message is stored.
#[derive(Debug)]
pub(crate) enum EntryState {
    /// In the lane; these sends wait for it.
    Pending(Origins),
    /// Stored.
    Stored,
}

/// The map.
#[derive(Debug)]
pub(crate) struct Recent {
    complete_from: Seq,
    entries: FxHashMap<SendKey, Entry>,
    order: VecDeque<SendKey>,
    entries_max: usize,
}

impl Recent {
    /// An empty map over a channel with this head.
    pub(crate) fn new(head: Seq, entries_max: usize) -> Recent {
        Recent {
            complete_from: head,
            entries: FxHashMap::default(),
            order: VecDeque::new(),
            entries_max,
        }
    }

    /// Above this position the map is complete.
    pub(crate) fn complete_from(&self) -> Seq {
        self.complete_from
    }

    /// Looks a send up.
    pub(crate) fn get_mut(&mut self, key: &SendKey) -> Option<&mut Entry> {
        self.entries.get_mut(key)
    }

    /// Whether the send is known.
    pub(crate) fn contains(&self, key: &SendKey) -> bool {
        self.entries.contains_key(key)
    }

    /// Adds the newest message; forgets the oldest stored ones above the bound. `forgetting` says
    /// whether the map then also stops to answer for their positions.
    pub(crate) fn insert(&mut self, key: SendKey, entry: Entry, forgetting: Forgetting) {
        self.order.push_back(key);
        self.entries.insert(key, entry);
        while self.order.len() > self.entries_max {
            let stored = |key: &mut SendKey| {
                self.entries.get(key).is_none_or(|entry| matches!(entry.state, EntryState::Stored))
            };
            let Some(oldest) = self.order.pop_front_if(stored) else { break };
            if let Some(entry) = self.entries.remove(&oldest)
                && forgetting == Forgetting::Honest
            {
                self.complete_from = self.complete_from.max(entry.seq);
            }
        }
    }
}

/// Whether the map admits what it has forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forgetting {
    /// Positions of forgotten messages are looked up in the store.
    Honest,
    /// A break for tests: the map claims to be complete.
    Denied,
}
