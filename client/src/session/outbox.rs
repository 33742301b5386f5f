//! Sends without an outcome, in one queue per channel whose order never turns round.
//!
//! ```text
//!   front ─▶ open ─ open ─ open ─ queued ─ queued ◀─ back
//!                                   │
//!                                   the next to go out: everything before it is open
//! ```
//!
//! A send goes out only while all before it are open, and names the one before. If one comes back
//! (busy, unknown, out of order, to be looked for further) it is queued again in its place, and
//! until the front of the queue is through nothing else goes out: what is already under way is
//! refused by the channel's owner, for it does not know the one that it names. After that, each
//! send that is through lets one more be open.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use chatring_wire::frame::{MessageKind, RequestId, Send};
use chatring_wire::{Cid, Cmid, Seq};

use super::config::Millis;
use super::limits;
use super::out::Out;
use crate::cache::{CacheWrite, OutboxEntry};

/// All sends of a session.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queues: BTreeMap<Cid, Queue>,
    /// Channels with something to send, in turn.
    ready: VecDeque<Cid>,
    /// Channels that wait for a time before they send again.
    waiting: BTreeSet<(Millis, Cid)>,
    next_number: u64,
    entries: usize,
    bytes: usize,
    open: usize,
}

/// Which send an open request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SendKey {
    pub cid: Cid,
    pub number: u64,
}

#[derive(Debug, Default)]
struct Queue {
    entries: VecDeque<Entry>,
    place: Place,
    /// How many may be open at once: one after something came back, then one more with each that
    /// is through, so that a server that asks to wait is not flooded with what must follow.
    window: Window,
    /// Repeats of the front of the queue since something was stored.
    tries: u32,
}

/// How many sends of a channel may be open.
#[derive(Clone, Copy, Debug)]
struct Window(usize);

impl Window {
    const NARROW: Window = Window(1);

    fn widen(&mut self) {
        self.0 = self.0.saturating_add(1);
    }
}

impl Default for Window {
    /// Only the server's bound on open sends counts.
    fn default() -> Window {
        Window(usize::MAX)
    }
}

/// Where a queue stands in its turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Idle,
    Ready,
    Waiting(Millis),
}

#[derive(Debug)]
struct Entry {
    number: u64,
    cmid: Cmid,
    base: Option<Seq>,
    kind: MessageKind,
    body: Bytes,
    open: Option<RequestId>,
}

impl Entry {
    fn record(&self, cid: Cid) -> OutboxEntry {
        OutboxEntry {
            cid,
            cmid: self.cmid,
            base: self.base,
            kind: self.kind,
            body: self.body.clone(),
        }
    }
}

/// A send that is through.
#[derive(Debug)]
pub(super) struct Settled {
    pub cmid: Cmid,
    pub kind: MessageKind,
    pub body: Bytes,
}

impl Outbox {
    /// Takes a send from the cache; in ascending order of numbers.
    pub fn restore(&mut self, number: u64, entry: OutboxEntry) {
        self.next_number = self.next_number.max(number.saturating_add(1));
        self.insert(entry.cid, number, entry);
    }

    /// Takes a new send.
    pub fn push(&mut self, entry: OutboxEntry, out: &mut Out) {
        let number = self.next_number;
        self.next_number += 1;
        if out.persist {
            out.write(CacheWrite::OutboxPut { number, entry: entry.clone() });
        }
        self.insert(entry.cid, number, entry);
    }

    fn insert(&mut self, cid: Cid, number: u64, entry: OutboxEntry) {
        self.entries += 1;
        self.bytes += entry.body.len();
        let queue = self.queues.entry(cid).or_default();
        let OutboxEntry { cmid, base, kind, body, .. } = entry;
        queue.entries.push_back(Entry { number, cmid, base, kind, body, open: None });
        self.make_ready(cid);
    }

    pub const fn len(&self) -> usize {
        self.entries
    }

    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    pub const fn open(&self) -> usize {
        self.open
    }

    /// Whether a send to this channel is on the wire.
    pub fn is_open(&self, cid: Cid) -> bool {
        self.queues.get(&cid).is_some_and(|queue| queue.entries.iter().any(|e| e.open.is_some()))
    }

    /// When a waiting channel goes on.
    pub fn next_time(&self) -> Option<Millis> {
        self.waiting.first().map(|(time, _)| *time)
    }

    /// The connection is gone: everything is to be sent again, at once and in order.
    pub fn reset(&mut self) {
        self.open = 0;
        self.waiting.clear();
        self.ready.clear();
        for (cid, queue) in &mut self.queues {
            queue.tries = 0;
            queue.window = Window::default();
            queue.place = Place::Ready;
            self.ready.push_back(*cid);
            for entry in &mut queue.entries {
                entry.open = None;
            }
        }
    }

    /// Another history began: what was seen of channels means nothing any more.
    pub fn forget_bases(&mut self, out: &mut Out) {
        for (cid, queue) in &mut self.queues {
            for entry in &mut queue.entries {
                if entry.base.is_some() {
                    entry.base = Some(Seq(0));
                    let (number, entry) = (entry.number, entry.record(*cid));
                    out.write(CacheWrite::OutboxPut { number, entry });
                }
            }
        }
    }

    /// Moves channels on whose time has come.
    pub fn wake(&mut self, now: Millis) {
        while let Some((time, cid)) = self.waiting.first().copied() {
            if time > now {
                return;
            }
            self.waiting.remove(&(time, cid));
            if let Some(queue) = self.queues.get_mut(&cid) {
                queue.place = Place::Idle;
            }
            self.make_ready(cid);
        }
    }

    /// The next send to put on the wire as `request`, if there is one. `seen` gives the newest
    /// position seen of a channel.
    pub fn next_send(
        &mut self,
        request: RequestId,
        seen: impl Fn(Cid) -> Seq,
        out: &mut Out,
    ) -> Option<(SendKey, Send)> {
        while let Some(cid) = self.ready.pop_front() {
            let Some(queue) = self.queues.get_mut(&cid) else { continue };
            queue.place = Place::Idle;
            let Some(index) = queue.next_index() else { continue };
            let previous = index.checked_sub(1).and_then(|before| queue.entries[before].open);
            let entry = &mut queue.entries[index];
            let again = entry.base.is_some();
            let base = *entry.base.get_or_insert_with(|| seen(cid));
            entry.open = Some(request);
            self.open += 1;
            out.stats.sends += 1;
            out.stats.resends += u64::from(again);
            if !again && out.persist {
                let entry = entry.record(cid);
                let number = queue.entries[index].number;
                out.write(CacheWrite::OutboxPut { number, entry });
            }
            let entry = &queue.entries[index];
            let send = Send {
                request,
                cid,
                cmid: entry.cmid,
                base,
                previous,
                kind: entry.kind,
                body: entry.body.clone(),
            };
            let key = SendKey { cid, number: entry.number };
            self.make_ready(cid);
            return Some((key, send));
        }
        None
    }

    /// A send has its outcome.
    pub fn settle(&mut self, key: SendKey) -> Option<Settled> {
        let queue = self.queues.get_mut(&key.cid)?;
        let index = queue.index_of(key.number)?;
        let entry = queue.entries.remove(index)?;
        if index == 0 {
            queue.tries = 0;
            queue.window.widen();
        }
        self.entries -= 1;
        self.bytes -= entry.body.len();
        self.open -= usize::from(entry.open.is_some());
        if queue.entries.is_empty() {
            self.remove_queue(key.cid);
        } else {
            self.make_ready(key.cid);
        }
        Some(Settled { cmid: entry.cmid, kind: entry.kind, body: entry.body })
    }

    /// A send is to go out again with a new base.
    pub fn rebase(&mut self, key: SendKey, base: Seq, out: &mut Out) {
        let Some(queue) = self.queues.get_mut(&key.cid) else { return };
        let Some(index) = queue.index_of(key.number) else { return };
        let entry = &mut queue.entries[index];
        entry.base = Some(base);
        queue.window = Window::NARROW;
        self.open -= usize::from(entry.open.take().is_some());
        if out.persist {
            let entry = entry.record(key.cid);
            out.write(CacheWrite::OutboxPut { number: key.number, entry });
        }
        self.make_ready(key.cid);
    }

    /// A send is to go out again, not before `pause_ms` are over (none: at once, or later if it
    /// comes back again and again).
    pub fn requeue(&mut self, key: SendKey, now: Millis, pause_ms: Option<u64>) {
        let Some(queue) = self.queues.get_mut(&key.cid) else { return };
        let Some(index) = queue.index_of(key.number) else { return };
        self.open -= usize::from(queue.entries[index].open.take().is_some());
        queue.window = Window::NARROW;
        let pause = match pause_ms {
            Some(ms) => ms.clamp(1, limits::RETRY_MS_MAX),
            None if index > 0 || queue.tries == 0 => 0,
            None => (limits::RETRY_MS_MIN << queue.tries.min(6)).min(limits::RETRY_MS_MAX),
        };
        queue.tries += u32::from(index == 0);
        if pause == 0 {
            self.make_ready(key.cid);
            return;
        }
        let until = now.after(pause);
        match queue.place {
            Place::Waiting(time) => {
                self.waiting.remove(&(time, key.cid));
            }
            Place::Ready => self.ready.retain(|cid| *cid != key.cid),
            Place::Idle => {}
        }
        queue.place = Place::Waiting(until);
        self.waiting.insert((until, key.cid));
    }

    /// Gives a channel its turn, unless it has it, waits, or has nothing to send.
    fn make_ready(&mut self, cid: Cid) {
        let Some(queue) = self.queues.get_mut(&cid) else { return };
        if queue.place == Place::Idle && queue.next_index().is_some() {
            queue.place = Place::Ready;
            self.ready.push_back(cid);
        }
    }

    fn remove_queue(&mut self, cid: Cid) {
        if let Some(queue) = self.queues.remove(&cid) {
            match queue.place {
                Place::Waiting(time) => {
                    self.waiting.remove(&(time, cid));
                }
                Place::Ready => self.ready.retain(|other| *other != cid),
                Place::Idle => {}
            }
        }
    }
}

impl Queue {
    fn index_of(&self, number: u64) -> Option<usize> {
        self.entries.binary_search_by_key(&number, |entry| entry.number).ok()
    }

    /// The first that is not open, if it may go out.
    fn next_index(&self) -> Option<usize> {
        let index = self.entries.iter().position(|entry| entry.open.is_none())?;
        (index < self.window.0).then_some(index)
    }
}
