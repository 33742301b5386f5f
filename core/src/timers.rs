//! What a shard has to look at later, by time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use chatring_wire::Uid;

use crate::effect::SessionId;
use crate::kv::Ticket;

/// What to look at. A timer is never taken back: whoever it is for looks whether it still matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// The start of the shard goes on.
    Boot,
    /// Whether the session has been heard of.
    Heartbeat(SessionId),
    /// Whether the session's token is over.
    Expiry(SessionId),
    /// Whether sends of the session are open for too long.
    OpenSends(SessionId),
    /// The session's audit is due.
    Audit(SessionId),
    /// What the session's audit missed may have come meanwhile.
    AuditAgain(SessionId),
    /// The user's markers are to be written.
    Markers(Uid),
    /// A read that the store did not answer is to be submitted again.
    Retry(Ticket),
}

/// Timers in the order of their times; those of one time in the order in which they were set.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(u64, u64, Timer)>>,
    set: u64,
}

impl Timers {
    /// Sets a timer on the monotonic clock.
    pub(crate) fn set(&mut self, at_ms: u64, timer: Timer) {
        self.set += 1;
        self.heap.push(Reverse((at_ms, self.set, timer)));
    }

    /// When the next one is due.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((at_ms, _, _))| *at_ms)
    }

    /// The next one that is due.
    pub(crate) fn pop(&mut self, now_ms: u64) -> Option<Timer> {
        if self.deadline_ms()? > now_ms {
            return None;
        }
        self.heap.pop().map(|Reverse((_, _, timer))| timer)
    }
}
