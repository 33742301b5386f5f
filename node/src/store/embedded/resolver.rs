//! The resolver: which keys were written lately, and at which version.
//!
//! ```text
//!   newest: hash of key ─▶ last version          single keys: one look-up
//!   keys:   (version, hash, key) in order        the window; range conflicts walk it from its end
//!   clears: (version, range) in order            every conflict walks it from its end
//!   oldest: a read version below cannot be judged: TooOld
//! ```
//!
//! Forgetting a write raises `oldest` to its version, so a full or expired window makes read
//! versions too old and never misses a conflict. Two keys with one 64-bit hash may cause a conflict
//! too many. Walking costs as many steps as there were writes since the read version.

use std::collections::VecDeque;
use std::hash::BuildHasher;

use chatring_core::kv::{KeyRange, Version};
use rustc_hash::{FxBuildHasher, FxHashMap};

use super::limits::{
    RESOLVER_BYTES_MAX, RESOLVER_KEYS_MAX, RESOLVER_RANGES_MAX, RESOLVER_WINDOW_VERSIONS,
};

/// What became of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was written since.
    Clear,
    /// Something was.
    Conflict,
    /// The window does not reach back so far.
    TooOld,
}

/// See the module.
#[derive(Debug)]
pub struct Resolver {
    newest: FxHashMap<u64, Version>,
    keys: VecDeque<KeyWrite>,
    key_bytes: usize,
    clears: VecDeque<(Version, KeyRange)>,
    oldest: Version,
    bounds: ResolverBounds,
}

/// How much a resolver remembers.
#[derive(Clone, Copy, Debug)]
pub struct ResolverBounds {
    /// Writes to single keys.
    pub keys_max: usize,
    /// Bytes of their keys.
    pub bytes_max: usize,
    /// Range clears.
    pub ranges_max: usize,
    /// Age, in versions.
    pub window_versions: u64,
}

impl Default for ResolverBounds {
    fn default() -> ResolverBounds {
        ResolverBounds {
            keys_max: RESOLVER_KEYS_MAX,
            bytes_max: RESOLVER_BYTES_MAX,
            ranges_max: RESOLVER_RANGES_MAX,
            window_versions: RESOLVER_WINDOW_VERSIONS,
        }
    }
}

#[derive(Debug)]
struct KeyWrite {
    version: Version,
    hash: u64,
    key: Box<[u8]>,
}

impl Resolver {
    /// An empty window: nothing was written since `start`, nothing is known about the time before.
    pub fn new(start: Version, bounds: ResolverBounds) -> Resolver {
        Resolver {
            newest: FxHashMap::default(),
            keys: VecDeque::new(),
            key_bytes: 0,
            clears: VecDeque::new(),
            oldest: start,
            bounds,
        }
    }

    /// Whether any of the conflict ranges was written above `read_version`.
    pub fn check(&self, read_version: Version, conflicts: &[KeyRange]) -> Verdict {
        if read_version < self.oldest {
            return Verdict::TooOld;
        }
        let written = conflicts.iter().any(|range| self.written(read_version, range));
        if written { Verdict::Conflict } else { Verdict::Clear }
    }

    /// Remembers a write to one key.
    pub fn wrote_key(&mut self, version: Version, key: &[u8]) {
        let hash = FxBuildHasher.hash_one(key);
        self.newest.insert(hash, version);
        self.key_bytes += key.len();
        self.keys.push_back(KeyWrite { version, hash, key: key.into() });
        while self.keys.len() > self.bounds.keys_max || self.key_bytes > self.bounds.bytes_max {
            self.forget_key();
        }
    }

    /// Remembers that a range was cleared.
    pub fn wrote_range(&mut self, version: Version, range: &KeyRange) {
        if range.is_empty() {
            return;
        }
        let owned = KeyRange {
            start: bytes::Bytes::copy_from_slice(&range.start),
            end: bytes::Bytes::copy_from_slice(&range.end),
        };
        self.clears.push_back((version, owned));
        while self.clears.len() > self.bounds.ranges_max {
            self.forget_clear();
        }
    }

    /// Forgets what is older than the window.
    pub fn expire(&mut self, now: Version) {
        let horizon = Version(now.0.saturating_sub(self.bounds.window_versions));
        while self.keys.front().is_some_and(|write| write.version < horizon) {
            self.forget_key();
        }
        while self.clears.front().is_some_and(|(version, _)| *version < horizon) {
            self.forget_clear();
        }
    }

    /// Writes remembered.
    pub(crate) fn len(&self) -> usize {
        self.keys.len() + self.clears.len()
    }

    fn written(&self, read_version: Version, range: &KeyRange) -> bool {
        if range.is_empty() {
            return false;
        }
        let cleared = self
            .clears
            .iter()
            .rev()
            .take_while(|(version, _)| *version > read_version)
            .any(|(_, clear)| clear.start < range.end && range.start < clear.end);
        if cleared {
            return true;
        }
        if is_single_key(range) {
            let hash = FxBuildHasher.hash_one(&*range.start);
            return self.newest.get(&hash).is_some_and(|version| *version > read_version);
        }
        let recent = self.keys.iter().rev().take_while(|write| write.version > read_version);
        recent.into_iter().any(|write| range.contains(&write.key))
    }

    fn forget_key(&mut self) {
        let Some(write) = self.keys.pop_front() else { return };
        self.key_bytes -= write.key.len();
        self.oldest = self.oldest.max(write.version);
        if self.newest.get(&write.hash) == Some(&write.version) {
            self.newest.remove(&write.hash);
        }
    }

    fn forget_clear(&mut self) {
        let Some((version, _)) = self.clears.pop_front() else { return };
        self.oldest = self.oldest.max(version);
    }
}

fn is_single_key(range: &KeyRange) -> bool {
    match range.end.split_last() {
        Some((0, head)) => *head == *range.start,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn key(key: &'static str) -> KeyRange {
        KeyRange::key(&Bytes::from_static(key.as_bytes()))
    }

    fn range(start: &'static str, end: &'static str) -> KeyRange {
        let (start, end) = (start.as_bytes(), end.as_bytes());
        KeyRange { start: Bytes::from_static(start), end: Bytes::from_static(end) }
    }

    fn resolver(keys_max: usize, ranges_max: usize) -> Resolver {
        let bounds = ResolverBounds { keys_max, ranges_max, ..ResolverBounds::default() };
        Resolver::new(Version(10), bounds)
    }

    #[test]
    fn a_key_conflicts_only_with_writes_above_the_read_version() {
        let mut resolver = resolver(100, 100);
        resolver.wrote_key(Version(20), b"k");
        assert_eq!(resolver.check(Version(19), &[key("k")]), Verdict::Conflict);
        assert_eq!(resolver.check(Version(20), &[key("k")]), Verdict::Clear);
        assert_eq!(resolver.check(Version(19), &[key("j"), key("l")]), Verdict::Clear);
    }

    #[test]
    fn a_cleared_range_conflicts_with_its_keys_and_overlaps() {
        let mut resolver = resolver(100, 100);
        resolver.wrote_range(Version(20), &range("b", "d"));
        resolver.wrote_range(Version(21), &range("x", "y"));
        assert_eq!(resolver.check(Version(15), &[key("c")]), Verdict::Conflict);
        assert_eq!(resolver.check(Version(15), &[key("d")]), Verdict::Clear);
        assert_eq!(resolver.check(Version(15), &[range("a", "c")]), Verdict::Conflict);
        assert_eq!(resolver.check(Version(15), &[range("a", "b")]), Verdict::Clear);
        assert_eq!(resolver.check(Version(20), &[range("a", "c")]), Verdict::Clear);
    }

    #[test]
    fn a_range_conflicts_with_a_key_written_inside() {
        let mut resolver = resolver(100, 100);
        resolver.wrote_key(Version(20), b"bb");
        resolver.wrote_key(Version(21), b"z");
        assert_eq!(resolver.check(Version(15), &[range("b", "c")]), Verdict::Conflict);
        assert_eq!(resolver.check(Version(15), &[range("c", "d")]), Verdict::Clear);
        assert_eq!(resolver.check(Version(20), &[range("b", "c")]), Verdict::Clear);
    }

    #[test]
    fn nothing_is_known_about_the_time_before_the_start() {
        let resolver = resolver(100, 100);
        assert_eq!(resolver.check(Version(9), &[key("k")]), Verdict::TooOld);
        assert_eq!(resolver.check(Version(10), &[key("k")]), Verdict::Clear);
    }

    #[test]
    fn a_full_window_turns_older_read_versions_too_old() {
        let mut resolver = resolver(2, 1);
        for (version, key) in [(20, b"a"), (21, b"b"), (22, b"c")] {
            resolver.wrote_key(Version(version), key);
        }
        assert_eq!(resolver.check(Version(19), &[key("a")]), Verdict::TooOld);
        assert_eq!(resolver.check(Version(20), &[key("b")]), Verdict::Conflict);
        resolver.wrote_range(Version(23), &range("f", "g"));
        resolver.wrote_range(Version(24), &range("h", "i"));
        assert_eq!(resolver.check(Version(22), &[key("f")]), Verdict::TooOld);
    }

    #[test]
    fn the_window_expires_and_keeps_later_writes_of_the_same_key() {
        let mut resolver = resolver(100, 100);
        resolver.wrote_key(Version(20), b"k");
        resolver.wrote_key(Version(30), b"k");
        resolver.expire(Version(25 + RESOLVER_WINDOW_VERSIONS));
        assert_eq!(resolver.check(Version(19), &[key("k")]), Verdict::TooOld);
        assert_eq!(resolver.check(Version(20), &[key("k")]), Verdict::Conflict);
        assert_eq!(resolver.len(), 1);
    }
}
