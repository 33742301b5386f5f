//! Breaks that a test build can put into the code on purpose, to show that the tests find them.
//!
//! The names always exist, the breaks only with the feature `sabotage`: without it a [`Breaks`] has
//! no memory and [`Breaks::has`] is a constant `false`, so that the server cannot be broken.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// One way to break the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Break {
    /// A send is acknowledged before its commit is.
    AckBeforeCommit,
    /// A repeated send is stored again.
    NoDedupe,
    /// The map of recent sends is kept where it should be read again.
    StaleDedupeMap,
    /// Commits carry no conflict on the fence.
    NoFence,
    /// Groups are committed without their journal row.
    JournalForgotten,
    /// A push moves a session's position.
    PositionMovedByPush,
    /// The position is given with the first page of a sync instead of after the last.
    PositionWithFirstPage,
    /// The store gives fresh read versions from the clock.
    VersionFromClock,
    /// A send is accepted although the one before it is not known.
    OutOfOrderAccepted,
    /// A page does not say that rows are missing below it.
    GapNotMarked,
    /// The client message id of a send without a base is not kept.
    SentRowForgotten,
    /// The position in a call's cursor goes with the messages that were notified.
    PositionMovedByNews,
    /// Parked calls are not told of a message.
    WakeUpDropped,
    /// Sends are taken although one of the two has blocked the other.
    BlockNotChecked,
    /// A block is answered before it is stored.
    BlockAnsweredEarly,
    /// The session of a device that is removed goes on.
    RemovedGoesOn,
    /// That a device was removed is not stored.
    RemovalForgotten,
    /// A shard says that all is notified although commits are under way.
    ReachNotAwaited,
}

impl Break {
    /// All of them, in the order of the enum.
    pub const ALL: [Break; 18] = [
        Break::AckBeforeCommit,
        Break::NoDedupe,
        Break::StaleDedupeMap,
        Break::NoFence,
        Break::JournalForgotten,
        Break::PositionMovedByPush,
        Break::PositionWithFirstPage,
        Break::VersionFromClock,
        Break::OutOfOrderAccepted,
        Break::GapNotMarked,
        Break::SentRowForgotten,
        Break::PositionMovedByNews,
        Break::WakeUpDropped,
        Break::BlockNotChecked,
        Break::BlockAnsweredEarly,
        Break::RemovedGoesOn,
        Break::RemovalForgotten,
        Break::ReachNotAwaited,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Break::AckBeforeCommit => "ack-before-commit",
            Break::NoDedupe => "no-dedupe",
            Break::StaleDedupeMap => "stale-dedupe-map",
            Break::NoFence => "no-fence",
            Break::JournalForgotten => "journal-forgotten",
            Break::PositionMovedByPush => "position-moved-by-push",
            Break::PositionWithFirstPage => "position-with-first-page",
            Break::VersionFromClock => "version-from-clock",
            Break::OutOfOrderAccepted => "out-of-order-accepted",
            Break::GapNotMarked => "gap-not-marked",
            Break::SentRowForgotten => "sent-row-forgotten",
            Break::PositionMovedByNews => "position-moved-by-news",
            Break::WakeUpDropped => "wake-up-dropped",
            Break::BlockNotChecked => "block-not-checked",
            Break::BlockAnsweredEarly => "block-answered-early",
            Break::RemovedGoesOn => "removed-goes-on",
            Break::RemovalForgotten => "removal-forgotten",
            Break::ReachNotAwaited => "reach-not-awaited",
        }
    }
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Break {
    type Err = UnknownBreak;

    fn from_str(name: &str) -> Result<Break, UnknownBreak> {
        Break::ALL
            .into_iter()
            .find(|known| known.name() == name)
            .ok_or_else(|| UnknownBreak { name: name.to_owned() })
    }
}

/// There is no break of this name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("no break is called {name:?}")]
pub struct UnknownBreak {
    /// What was asked for.
    pub name: String,
}

/// The breaks that are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Breaks {
    #[cfg(feature = "sabotage")]
    bits: u32,
}

impl Breaks {
    /// No break at all.
    pub const NONE: Breaks = Breaks {
        #[cfg(feature = "sabotage")]
        bits: 0,
    };

    /// Whether this break is on.
    #[cfg(feature = "sabotage")]
    pub const fn has(self, which: Break) -> bool {
        self.bits & (1 << which as u32) != 0
    }

    /// Whether this break is on: never, in a build without the feature `sabotage`.
    #[cfg(not(feature = "sabotage"))]
    #[inline(always)]
    pub const fn has(self, _which: Break) -> bool {
        false
    }

    /// These breaks and one more.
    #[cfg(feature = "sabotage")]
    #[must_use]
    pub const fn with(self, which: Break) -> Breaks {
        Breaks { bits: self.bits | 1 << which as u32 }
    }
}

#[cfg(feature = "sabotage")]
impl FromIterator<Break> for Breaks {
    fn from_iter<I: IntoIterator<Item = Break>>(breaks: I) -> Breaks {
        breaks.into_iter().fold(Breaks::NONE, Breaks::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_break_is_found_by_its_name() {
        for each in Break::ALL {
            assert_eq!(each.name().parse(), Ok(each));
        }
        assert!("no-such-break".parse::<Break>().is_err());
    }

    #[cfg(feature = "sabotage")]
    #[test]
    fn a_set_has_what_was_put_in_and_nothing_else() {
        for each in Break::ALL {
            let breaks: Breaks = [each].into_iter().collect();
            for other in Break::ALL {
                assert_eq!(breaks.has(other), each == other);
            }
        }
    }

    #[cfg(not(feature = "sabotage"))]
    #[test]
    fn without_the_feature_nothing_is_broken() {
        assert_eq!(size_of::<Breaks>(), 0);
        assert!(Break::ALL.into_iter().all(|each| !Breaks::NONE.has(each)));
    }
}
