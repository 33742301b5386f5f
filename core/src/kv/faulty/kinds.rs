//! The kinds of faults, how often each happens, and how often it did.

use crate::kv::prng::Prng;
use crate::kv::{Commit, InFlight, Outcome};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultKind {
    /// A commit with conflict keys fails as if one had been written.
    Conflict,
    /// A commit with a read version, or a read at one, is told that it is too old.
    TooOld,
    /// A commit or read is asked to wait.
    Throttled,
    /// A commit or read cannot reach the store.
    Unavailable,
    /// A commit's outcome is lost and it never happens: `Unknown(No)`.
    UnknownBefore,
    /// A commit's outcome is lost after the engine gave one: `Unknown(No)`.
    UnknownAfter,
    /// `Unknown(Maybe)`, and the commit lands later unless it conflicts then.
    UnknownLate,
    /// `Unknown(Maybe)`, and the commit never lands.
    UnknownLost,
    /// A commit reaches the engine late.
    SlowCommit,
    /// A read reaches the engine late.
    SlowRead,
    /// An answer comes late.
    SlowAnswer,
}

impl FaultKind {
    /// All kinds, in the order of the enum.
    pub const ALL: [FaultKind; 11] = [
        FaultKind::Conflict,
        FaultKind::TooOld,
        FaultKind::Throttled,
        FaultKind::Unavailable,
        FaultKind::UnknownBefore,
        FaultKind::UnknownAfter,
        FaultKind::UnknownLate,
        FaultKind::UnknownLost,
        FaultKind::SlowCommit,
        FaultKind::SlowRead,
        FaultKind::SlowAnswer,
    ];

    /// The kinds that decide what becomes of a commit; at most one of them meets it.
    const OF_COMMITS: [FaultKind; 8] = [
        FaultKind::Conflict,
        FaultKind::TooOld,
        FaultKind::Throttled,
        FaultKind::Unavailable,
        FaultKind::UnknownBefore,
        FaultKind::UnknownAfter,
        FaultKind::UnknownLate,
        FaultKind::UnknownLost,
    ];

    const OF_READS: [FaultKind; 3] =
        [FaultKind::TooOld, FaultKind::Throttled, FaultKind::Unavailable];

    /// What the submitter is told.
    pub(super) fn outcome(self) -> Outcome {
        match self {
            FaultKind::Conflict => Outcome::Conflict,
            FaultKind::TooOld => Outcome::TooOld,
            FaultKind::Throttled => Outcome::Throttled,
            FaultKind::UnknownBefore | FaultKind::UnknownAfter => Outcome::Unknown(InFlight::No),
            FaultKind::UnknownLate | FaultKind::UnknownLost => Outcome::Unknown(InFlight::Maybe),
            FaultKind::Unavailable
            | FaultKind::SlowCommit
            | FaultKind::SlowRead
            | FaultKind::SlowAnswer => Outcome::Unavailable,
        }
    }
}

/// How often each fault happens, and how long delays are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultRates {
    per_mille: [u16; FaultKind::ALL.len()],
    /// Longest delay of a slow request or answer, in milliseconds.
    pub delay_ms_max: u64,
    /// A late commit lands at most this long after it was carried out, in milliseconds.
    pub late_ms_max: u64,
}

impl FaultRates {
    /// No fault at all.
    pub fn none() -> FaultRates {
        FaultRates::default()
    }

    /// Every kind of fault `per_mille` times in a thousand, delays up to 50 ms, landings up to 1 s.
    pub fn all(per_mille: u16) -> FaultRates {
        let per_mille = [per_mille; FaultKind::ALL.len()];
        FaultRates { per_mille, delay_ms_max: 50, late_ms_max: 1_000 }
    }

    /// The same, but for one kind.
    #[must_use]
    pub fn with(mut self, kind: FaultKind, per_mille: u16) -> FaultRates {
        self.per_mille[kind as usize] = per_mille;
        self
    }

    /// How many times in a thousand this kind happens.
    pub fn of(&self, kind: FaultKind) -> u16 {
        self.per_mille[kind as usize]
    }

    /// The fault that meets a commit. Only one that it may have: writes alone never conflict.
    pub(super) fn draw_commit(&self, prng: &mut Prng, commit: &Commit) -> Option<FaultKind> {
        let fault = self.draw(prng, &FaultKind::OF_COMMITS)?;
        let judged = !commit.conflicts.is_empty() && commit.read_version.is_some();
        let needs_judge = matches!(fault, FaultKind::Conflict | FaultKind::TooOld);
        (judged || !needs_judge).then_some(fault)
    }

    /// The fault that meets a read. A fresh one is never too old.
    pub(super) fn draw_read(
        &self,
        prng: &mut Prng,
        at_version: bool,
    ) -> Option<(FaultKind, Outcome)> {
        let fault = self.draw(prng, &FaultKind::OF_READS)?;
        (at_version || fault != FaultKind::TooOld).then(|| (fault, fault.outcome()))
    }

    fn draw(&self, prng: &mut Prng, kinds: &[FaultKind]) -> Option<FaultKind> {
        let mut left = prng.below(1_000);
        for kind in kinds {
            let rate = u64::from(self.of(*kind));
            if left < rate {
                return Some(*kind);
            }
            left -= rate;
        }
        None
    }
}

/// How often each fault has happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts {
    counts: [u64; FaultKind::ALL.len()],
    /// Commits that landed after their submitter had been told that they may.
    pub landed: u64,
    /// Commits that met a conflict, or were too old, when they came to land.
    pub not_landed: u64,
}

impl FaultCounts {
    /// How often this one has.
    pub fn of(&self, kind: FaultKind) -> u64 {
        self.counts[kind as usize]
    }

    /// Every kind with its count.
    pub fn iter(&self) -> impl Iterator<Item = (FaultKind, u64)> + '_ {
        FaultKind::ALL.into_iter().map(|kind| (kind, self.of(kind)))
    }

    pub(super) fn note(&mut self, kind: FaultKind) {
        self.counts[kind as usize] += 1;
    }

    pub(super) fn note_landing(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Committed(_) => self.landed += 1,
            _ => self.not_landed += 1,
        }
    }
}
