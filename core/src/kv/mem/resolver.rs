//! Says whether a commit conflicts with what was written since its read version.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::kv::{KeyRange, READ_VERSION_AGE_MS_MAX, Version, Write};

/// What a resolver says about a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing stands against it.
    Free,
    /// One of its conflict keys was written since.
    Conflict,
    /// What was written since is no longer known in full.
    TooOld,
}

/// The last writes of keys and ranges within the window of 5 s.
#[derive(Clone, Debug)]
pub struct Resolver {
    /// Every write above this version is known.
    floor: Version,
    keys: BTreeMap<Bytes, Version>,
    ranges: VecDeque<(KeyRange, Version)>,
    /// Published groups: version, when, and the keys written.
    window: VecDeque<(Version, u64, Vec<Bytes>)>,
    /// Keys of groups that are not published yet.
    open: VecDeque<(Version, Vec<Bytes>)>,
}

impl Resolver {
    /// A resolver that knows nothing of what was written up to `floor`.
    pub fn new(floor: Version) -> Resolver {
        Resolver {
            floor,
            keys: BTreeMap::new(),
            ranges: VecDeque::new(),
            window: VecDeque::new(),
            open: VecDeque::new(),
        }
    }

    /// The oldest version that can still be judged.
    pub fn floor(&self) -> Version {
        self.floor
    }

    /// Judges a commit. One that names conflicts without a read version cannot be judged.
    pub fn judge(&self, read_version: Option<Version>, conflicts: &[KeyRange]) -> Verdict {
        if conflicts.is_empty() {
            return Verdict::Free;
        }
        let Some(known) = read_version.filter(|known| *known >= self.floor) else {
            return Verdict::TooOld;
        };
        let hit = conflicts.iter().any(|range| self.written_since(range, known));
        if hit { Verdict::Conflict } else { Verdict::Free }
    }

    /// Notes the writes of a commit that was accepted. Versions never go back.
    pub fn insert(&mut self, version: Version, writes: &[Write]) {
        if self.open.back().is_none_or(|(newest, _)| *newest != version) {
            self.open.push_back((version, Vec::new()));
        }
        let (_, written) = self.open.back_mut().expect("pushed above if it was missing");
        for write in writes {
            match write {
                Write::Set { key, .. } | Write::SetStamped { key, .. } | Write::Clear { key } => {
                    self.keys.insert(key.clone(), version);
                    written.push(key.clone());
                }
                Write::ClearRange(range) => self.ranges.push_back((range.clone(), version)),
            }
        }
    }

    /// Notes when the oldest open group was published; its age counts from then.
    pub fn publish(&mut self, now_ms: u64) {
        if let Some((version, keys)) = self.open.pop_front() {
            self.window.push_back((version, now_ms, keys));
        }
    }

    /// Forgets the groups that have left the window.
    pub fn advance(&mut self, now_ms: u64) {
        let left = |at_ms: u64| now_ms.saturating_sub(at_ms) > READ_VERSION_AGE_MS_MAX;
        while self.window.front().is_some_and(|(_, at_ms, _)| left(*at_ms)) {
            let Some((version, _, keys)) = self.window.pop_front() else { break };
            self.floor = version;
            for key in keys {
                if self.keys.get(&key) == Some(&version) {
                    self.keys.remove(&key);
                }
            }
            while self.ranges.front().is_some_and(|(_, at)| *at <= version) {
                self.ranges.pop_front();
            }
        }
    }

    fn written_since(&self, range: &KeyRange, known: Version) -> bool {
        if range.is_empty() {
            return false;
        }
        let mut keys = self.keys.range::<Bytes, _>(&range.start..&range.end);
        keys.any(|(_, at)| *at > known)
            || self.ranges.iter().any(|(cleared, at)| *at > known && overlap(cleared, range))
    }
}

fn overlap(a: &KeyRange, b: &KeyRange) -> bool {
    !a.is_empty() && !b.is_empty() && a.start < b.end && b.start < a.end
}
