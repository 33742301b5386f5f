//! Commit versions: they grow with the monotonic clock from the last one on disk.
//!
//! The wall clock is not asked: a jump of it neither stops nor races them. A restart goes on from
//! the version that the last group wrote with its rows, so none is given out twice.

use std::time::Duration;

use chatring_core::kv::{VERSIONS_PER_SECOND, Version};

/// Gives out versions, each above all before it.
#[derive(Debug)]
pub(crate) struct VersionClock {
    base: u64,
    last: u64,
}

impl VersionClock {
    /// A clock that goes on from the last version on disk, at elapsed time zero.
    pub(crate) fn new(persisted: Version) -> VersionClock {
        VersionClock { base: persisted.0, last: persisted.0 }
    }

    /// The version of the moment, without giving it out: the scale of the resolver's window.
    pub(crate) fn now(&self, elapsed: Duration) -> Version {
        let grown = u128::from(VERSIONS_PER_SECOND) * elapsed.as_micros() / 1_000_000;
        let grown = u64::try_from(grown).expect("584,000 years have not passed");
        Version(self.last.max(self.base.saturating_add(grown)))
    }

    /// The next version: of the moment, but above the last one in any case.
    pub(crate) fn next(&mut self, elapsed: Duration) -> Version {
        let next = Version(self.now(elapsed).0.max(self.last + 1));
        self.last = next.0;
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_follow_the_elapsed_time() {
        let mut clock = VersionClock::new(Version(1_000));
        assert_eq!(clock.next(Duration::from_secs(2)), Version(2_001_000));
    }

    #[test]
    fn a_stopped_or_reversed_clock_does_not_repeat_versions() {
        let mut clock = VersionClock::new(Version(7));
        assert_eq!(clock.next(Duration::ZERO), Version(8));
        assert_eq!(clock.next(Duration::ZERO), Version(9));
        let later = clock.next(Duration::from_secs(1));
        assert!(clock.next(Duration::from_millis(10)) > later);
    }

    #[test]
    fn a_restart_goes_on_above_everything_persisted() {
        let mut clock = VersionClock::new(Version(7));
        let last = clock.next(Duration::from_secs(60));
        let mut restarted = VersionClock::new(last);
        assert!(restarted.next(Duration::ZERO) > last);
    }
}
