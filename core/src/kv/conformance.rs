//! One suite for every engine of the store interface.
//!
//! [`run_cases`] goes through the rules of [`crate::kv`] one by one; [`run_program`] lets several
//! clients do random things from a seed and then judges all that was answered against the reference
//! model. The model is replayed in the order of the stamps that the engine gave, so an engine is
//! free in its versions and groups, and every commit writes a marker row, so that the judge knows
//! of each one whether and where it happened, whatever its submitter was told.

mod cases;
mod judge;
mod program;
mod record;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::mem::SubmitterId;
use super::{Completion, LaneId, Request, Ticket};

pub use cases::{CASES, Case, cases, run_cases};
pub use program::{ProgramSize, run_program};

/// Whether a harness can do what it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supported {
    /// It has been done.
    Done,
    /// This engine cannot; what needs it is left out.
    No,
}

/// Whether the harness puts faults in front of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultsOn {
    /// Every refusal must have its reason.
    No,
    /// A commit or read may be refused, and an outcome be unknown, without one.
    Yes,
}

/// An engine under test.
pub trait Harness {
    /// Gives the engine a request of a submitter.
    fn submit(&mut self, submitter: SubmitterId, request: Request, ticket: Ticket);

    /// Lets a stopped lane go on.
    fn resume(&mut self, submitter: SubmitterId, lane: LaneId);

    /// Waits for answers. None at all means that nothing is open any more.
    fn wait(&mut self) -> Vec<(SubmitterId, Completion)>;

    /// Waits until commits that may land late have landed or never will.
    fn settle(&mut self) {}

    /// Closes the engine in order and opens it again. Called when nothing is open.
    fn reopen(&mut self);

    /// Kills the engine, whatever is open, and opens it again.
    fn crash(&mut self) -> Supported {
        Supported::No
    }

    /// Lets this much time pass.
    fn advance(&mut self, ms: u64) -> Supported;

    /// The time on the engine's monotonic clock.
    fn now_ms(&self) -> u64;

    /// Whether faults are injected.
    fn faults(&self) -> FaultsOn {
        FaultsOn::No
    }
}

/// How often each operation and outcome was met, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    counts: BTreeMap<&'static str, u64>,
}

impl Coverage {
    /// What every run of programs without faults must meet.
    pub const PLAIN: [&'static str; 14] = [
        "set",
        "set-stamped",
        "clear",
        "clear-range",
        "get",
        "range-forward",
        "range-reverse",
        "read-at",
        "reopen",
        "committed",
        "conflict",
        "too-large",
        "lane-stopped",
        "rows",
    ];

    /// What a run with every kind of fault must meet besides.
    pub const FAULTS: [&'static str; 5] =
        ["too-old", "throttled", "unavailable", "unknown-no", "unknown-maybe"];

    /// Counts one.
    pub fn note(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Adds what another run has met.
    pub fn add(&mut self, other: &Coverage) {
        for (what, count) in &other.counts {
            *self.counts.entry(what).or_default() += count;
        }
    }

    /// How often this one was met.
    pub fn of(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or_default()
    }

    /// Fails with the names of those that were never met.
    ///
    /// # Errors
    /// The missing names.
    pub fn require(&self, expected: &[&'static str]) -> Result<(), String> {
        let missing: Vec<_> = expected.iter().filter(|what| self.of(what) == 0).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("never met: {missing:?}")) }
    }
}
