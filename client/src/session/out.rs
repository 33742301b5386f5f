//! What a session has to say and to keep, until its caller takes it.

use std::collections::VecDeque;

use chatring_wire::{Cid, Ordinal, Seq};

use super::event::{Event, Stats};
use crate::cache::CacheWrite;

/// Outputs that every part of the session adds to.
#[derive(Debug, Default)]
pub(super) struct Out {
    /// Events with what taking them means for the cache.
    pub events: VecDeque<(Event, Taken)>,
    /// Changes of the cache, in order; empty if nothing persists.
    pub writes: Vec<CacheWrite>,
    /// Whether changes are collected.
    pub persist: bool,
    /// Counters.
    pub stats: Stats,
}

/// What the cache may forget once the application has taken an event.
#[derive(Clone, Copy, Debug)]
pub(super) enum Taken {
    /// Nothing.
    Nothing,
    /// Messages of a channel up to this one.
    Delivered { cid: Cid, seq: Seq, ordinal: Ordinal },
    /// A send.
    Settled { number: u64 },
}

impl Out {
    pub fn event(&mut self, event: Event) {
        self.events.push_back((event, Taken::Nothing));
    }

    pub fn write(&mut self, write: CacheWrite) {
        if self.persist {
            self.writes.push(write);
        }
    }
}
