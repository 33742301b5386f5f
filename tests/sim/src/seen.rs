//! What a poller has taken in, and the cursor that stands for it.

use std::collections::BTreeMap;

use bytes::Bytes;
use chatring_core::call::{Event, Synced};
use chatring_core::cursor::Cursor;
use chatring_core::kv::mem::MemStore;
use chatring_wire::frame::{CacheAction, Head, HeadRows, Page};
use chatring_wire::{Cid, Seq, Uid};

use crate::check::{self, Channels};

/// What a client knows at a cursor.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Where to go on.
    pub cursor: Bytes,
    /// The newest message of each channel that it was given or told of.
    pub tips: BTreeMap<Cid, Seq>,
    /// How far its user has read, as told.
    pub read: BTreeMap<Cid, Seq>,
    /// The messages.
    pub log: BTreeMap<Cid, BTreeMap<Seq, Bytes>>,
}

impl Seen {
    /// Takes in the answer to a sync. What is missing, out of order or not what the server said
    /// before is a violation.
    pub fn synced(&mut self, synced: Synced) -> Result<(), String> {
        if synced.cache == CacheAction::Replace && !self.cursor.is_empty() {
            return Err(format!("the cursor {:?} was not taken", Cursor::decode(synced.cursor)));
        }
        for event in synced.events {
            self.event(event)?;
        }
        self.cursor = synced.cursor;
        Ok(())
    }

    fn event(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Message { cid, row, .. } => {
                let tip = self.tips.entry(cid).or_default();
                if row.seq > tip.next() {
                    return Err(format!("{:?} of {cid:?} came after {tip:?}", row.seq));
                }
                *tip = row.seq.max(*tip);
                self.row(cid, row.seq, row.body)
            }
            Event::Channel(head) => {
                self.head(&head);
                Ok(())
            }
            Event::Page(page) => self.page(page),
            Event::Marker { cid, read, .. } => {
                self.reads(cid, read);
                Ok(())
            }
            Event::Typing { .. } => Ok(()),
        }
    }

    /// A channel that changed.
    pub fn head(&mut self, head: &Head) {
        self.reads(head.cid, head.read);
        if head.rows == HeadRows::Stale {
            let tip = self.tips.entry(head.cid).or_default();
            *tip = head.head.max(*tip);
        }
    }

    /// Messages of a channel in a sync. Only a gap excuses what is missing below.
    pub fn page(&mut self, page: Page) -> Result<(), String> {
        let tip = self.tips.entry(page.cid).or_default();
        if page.from > tip.next() && !page.gap {
            let (from, cid) = (page.from, page.cid);
            return Err(format!("a page of {cid:?} from {from:?} after {tip:?} marks no gap"));
        }
        *tip = page.to.max(*tip);
        self.rows(page)
    }

    /// Messages of a channel that were asked for.
    pub fn rows(&mut self, page: Page) -> Result<(), String> {
        page.rows.into_iter().try_for_each(|row| self.row(page.cid, row.seq, row.body))
    }

    fn row(&mut self, cid: Cid, seq: Seq, body: Bytes) -> Result<(), String> {
        let log = self.log.entry(cid).or_default();
        match log.insert(seq, body.clone()) {
            Some(known) if known != body => {
                Err(format!("{seq:?} of {cid:?} was {known:?} and is {body:?}"))
            }
            _ => Ok(()),
        }
    }

    fn reads(&mut self, cid: Cid, read: Seq) {
        let known = self.read.entry(cid).or_default();
        *known = read.max(*known);
    }

    /// The first messages that were skipped: after the one, before the other.
    pub fn missing(&self) -> Option<(Cid, Seq, Seq)> {
        let empty = BTreeMap::new();
        self.tips.iter().find_map(|(cid, tip)| {
            let log = self.log.get(cid).unwrap_or(&empty);
            if log.len() as u64 == tip.0 {
                return None;
            }
            let mut after = Seq(0);
            for seq in log.keys() {
                if *seq > after.next() {
                    return Some((*cid, after, *seq));
                }
                after = *seq;
            }
            (after < *tip).then_some((*cid, after, tip.next()))
        })
    }

    /// The cursor claims no more than what was given.
    pub fn is_honest(&self, store: &MemStore, channels: &Channels, uid: Uid) -> Result<(), String> {
        let cursor = Cursor::decode(self.cursor.clone()).ok_or("a cursor does not parse")?;
        let tip = |cid: &Cid| self.tips.get(cid).copied().unwrap_or_default();
        if let Some((cid, seq)) = cursor.given.iter().find(|(cid, seq)| *seq > tip(cid)) {
            return Err(format!("a cursor says that {seq:?} of {cid:?} was given"));
        }
        if let Some(scan) = cursor.scan {
            let given = Cursor::at(cursor.history, scan.at);
            let up_to = channels.range(..=scan.after).map(|(cid, pair)| (*cid, *pair)).collect();
            check::position_is_covered(store, &up_to, uid, &self.tips, &given)?;
        }
        check::position_is_covered(store, channels, uid, &self.tips, &cursor)
    }
}
