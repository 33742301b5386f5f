//! What a shard has to look at later, by time.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use chatring_wire::Uid;

use crate::call::CallId;
use crate::effect::SessionId;
use crate::kv::Ticket;

/// What to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// The start of the shard goes on.
    Boot,
    /// Something of a session. Goes when the session goes.
    Session(SessionId, SessionTimer),
    /// The user's markers are to be written.
    Markers(Uid),
    /// A call has waited long enough.
    Call(CallId),
    /// A user may be kept for calls no longer.
    Caller(Uid),
    /// A read that the store did not answer is to be submitted again.
    Retry(Ticket),
}

/// What of a session to look at; a session has at most one timer of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SessionTimer {
    /// Whether it has been heard of.
    Heartbeat,
    /// Whether its token is over.
    Expiry,
    /// Whether sends are open for too long.
    OpenSends,
    /// Its audit is due, or what the audit missed may have come meanwhile.
    Audit,
}

impl SessionTimer {
    /// How many kinds there are.
    pub(crate) const KINDS: usize = 4;
}

/// Where a timer stands, to take it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TimerKey {
    at_ms: u64,
    /// Never 0, so that a timer that is not set costs a session no more room than one that is.
    number: NonZeroU64,
}

impl TimerKey {
    /// When it is due.
    pub(crate) const fn at_ms(self) -> u64 {
        self.at_ms
    }
}

/// Timers in the order of their times; those of one time in the order in which they were set.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    timers: BTreeMap<TimerKey, Timer>,
    set: u64,
}

impl Timers {
    /// Sets a timer on the monotonic clock.
    pub(crate) fn set(&mut self, at_ms: u64, timer: Timer) -> TimerKey {
        let number = NonZeroU64::MIN.saturating_add(self.set);
        self.set += 1;
        let key = TimerKey { at_ms, number };
        self.timers.insert(key, timer);
        key
    }

    /// Takes a timer back.
    pub(crate) fn cancel(&mut self, key: TimerKey) {
        self.timers.remove(&key);
    }

    /// When the next one is due.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        self.timers.first_key_value().map(|(key, _)| key.at_ms)
    }

    /// The next one that is due.
    pub(crate) fn pop(&mut self, now_ms: u64) -> Option<Timer> {
        let first = self.timers.first_entry()?;
        (first.key().at_ms <= now_ms).then(|| first.remove())
    }
}
