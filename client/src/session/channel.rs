//! One channel as a device knows it: markers, messages, and how far they were delivered.

use std::collections::BTreeMap;

use chatring_wire::frame::{Head, HeadRows, Page, Row};
use chatring_wire::{Cid, Ordinal, Seq};

use super::config::{Config, Delivery, Keep, Millis, Start};
use super::event::Event;
use super::limits;
use super::out::{Out, Taken};
use crate::cache::{CacheWrite, ChannelRecord};

/// A channel. Messages up to `record.delivered` were given out (some are kept); those above wait
/// for what is missing between.
#[derive(Debug)]
pub(super) struct Channel {
    /// What is kept of it; `delivered` is what was given out, not what the caller has taken.
    pub record: ChannelRecord,
    /// What the caller has taken: this is what a cache may remember.
    pub taken: (Seq, Ordinal),
    /// What was given out when the connection came up.
    pub delivered_at_attach: Seq,
    /// Number of the newest sync that named it.
    pub seen_in: u64,
    /// Whether a page must come before a hole is judged.
    pub page_expected: bool,
    /// Where the repair of a hole stands.
    pub fill: Fill,
    /// Whether delivery has not begun (only between a first head and its page).
    fresh: bool,
    rows: BTreeMap<Seq, Held>,
    keep: usize,
    newest_first: bool,
}

/// Where the repair of a hole stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// There is none.
    Idle,
    /// It may be asked for from this time on.
    At(Millis),
    /// It was asked for.
    Asked,
}

/// Where a head came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadSource {
    /// A sync.
    Sync,
    /// A sync that replaces everything: positions may have fallen.
    Replace,
    /// `opened`: it says nothing about messages.
    Opened,
}

#[derive(Debug)]
struct Held {
    row: Row,
    /// Whether the row's ordinal is the server's; otherwise it follows from the one before.
    exact: bool,
}

impl Channel {
    /// A channel that the cache did not know. `first` says whether no sync was ever complete.
    pub fn new(config: &Config, head: &Head, source: HeadSource, first: bool) -> Channel {
        let oldest = Seq(head.floor.0.saturating_sub(1));
        let follows = source != HeadSource::Opened && head.rows == HeadRows::Follow;
        let newest_first = config.delivery == Delivery::Newest;
        let delivered = match config.delivery {
            Delivery::Dense(Start::Head) if first => head.head,
            Delivery::Dense(_) => oldest,
            Delivery::Newest if follows => oldest,
            Delivery::Newest => head.head,
        };
        let ordinal = if delivered == head.head { head.ordinal } else { Ordinal(0) };
        let record = ChannelRecord {
            cid: head.cid,
            kind: head.kind,
            peer: head.peer,
            me: head.me,
            head: head.head,
            ordinal: head.ordinal,
            floor: head.floor,
            read: head.read,
            read_ordinal: head.read_ordinal,
            received: head.received,
            marks: (Seq(0), Seq(0)),
            delivered,
            delivered_ordinal: ordinal,
        };
        let mut channel = Channel::restore(config, record);
        channel.fresh = newest_first && follows;
        channel.page_expected = follows;
        channel
    }

    /// A channel as the cache kept it, still without messages.
    pub fn restore(config: &Config, record: ChannelRecord) -> Channel {
        Channel {
            record,
            taken: (record.delivered, record.delivered_ordinal),
            delivered_at_attach: record.delivered,
            seen_in: 0,
            page_expected: false,
            fill: Fill::Idle,
            fresh: false,
            rows: BTreeMap::new(),
            keep: match config.keep {
                Keep::Nothing => 0,
                Keep::Rows(rows) => rows,
            },
            newest_first: config.delivery == Delivery::Newest,
        }
    }

    /// Takes a message from the cache.
    pub fn restore_row(&mut self, row: Row) {
        self.rows.insert(row.seq, Held { row, exact: true });
    }

    /// The record as the cache may have it.
    pub fn durable_record(&self) -> ChannelRecord {
        let (delivered, delivered_ordinal) = self.taken;
        ChannelRecord { delivered, delivered_ordinal, ..self.record }
    }

    /// The messages kept.
    pub fn kept(&self) -> impl DoubleEndedIterator<Item = &Row> {
        self.rows.range(..=self.record.delivered).map(|(_, held)| &held.row)
    }

    /// Takes in what a head says.
    pub fn update(&mut self, head: &Head, source: HeadSource, out: &mut Out) {
        let record = &mut self.record;
        if source == HeadSource::Replace && head.head < self.delivered_at_attach {
            self.delivered_at_attach = head.head;
            record.delivered = head.head;
            record.delivered_ordinal = head.ordinal;
            record.head = head.head;
            self.taken = (head.head, head.ordinal);
        }
        if head.head >= record.head {
            record.head = head.head;
            record.ordinal = record.ordinal.max(head.ordinal);
        }
        record.floor = record.floor.max(head.floor);
        record.read = record.read.max(head.read);
        record.read_ordinal = record.read_ordinal.max(head.read_ordinal);
        record.received = record.received.max(head.received);
        self.clear_shown_marks(head.read, head.received);
        if source != HeadSource::Opened {
            match head.rows {
                HeadRows::Unchanged => {}
                HeadRows::Follow => self.page_expected = true,
                HeadRows::Stale => {
                    self.drop_rows_below(Seq(limits::SEQ_MAX), out);
                    if self.newest_first {
                        self.skip_to(head.head, head.ordinal, out);
                    }
                }
            }
        }
        let oldest = Seq(self.record.floor.0.saturating_sub(1));
        self.skip_to(oldest, Ordinal(0), out);
        self.deliver(out);
    }

    /// Takes in a page of a sync. It was checked.
    pub fn take_page(&mut self, page: Page, out: &mut Out) {
        self.page_expected = false;
        if page.gap {
            self.drop_rows_below(page.from, out);
        }
        let below = Seq(page.from.0.saturating_sub(1));
        if self.fresh && below > self.record.delivered {
            self.fresh = false;
            self.record.delivered = below;
            self.taken = (below, Ordinal(0));
        } else if self.newest_first && page.gap {
            self.skip_to(below, Ordinal(0), out);
        }
        self.fresh = false;
        for row in page.rows {
            self.take_stored_row(row, out);
        }
    }

    /// Takes in a message as the server has it stored: it wins over what is kept.
    pub fn take_stored_row(&mut self, row: Row, out: &mut Out) {
        if row.seq > self.record.delivered {
            self.accept(row, true, out);
        } else if self.keep > 0 && row.seq > self.oldest_to_keep() {
            self.store(&row, out);
            self.rows.insert(row.seq, Held { row, exact: true });
        }
    }

    /// Ends the wait for a page that did not come.
    pub fn page_missed(&mut self, out: &mut Out) {
        self.page_expected = false;
        if self.fresh {
            self.fresh = false;
            let (head, ordinal) = (self.record.head, self.record.ordinal);
            self.skip_to(head, ordinal, out);
        }
    }

    /// Takes in a message; `exact` says whether its ordinal is the server's.
    pub fn accept(&mut self, row: Row, exact: bool, out: &mut Out) {
        let seq = row.seq;
        if seq <= self.record.delivered {
            out.stats.duplicates += 1;
            return;
        }
        self.record.head = self.record.head.max(seq);
        if seq == self.record.delivered.next() && self.rows.is_empty() && self.keep == 0 {
            self.give(row, exact, out);
            return;
        }
        if let Some(held) = self.rows.get_mut(&seq) {
            out.stats.duplicates += 1;
            if exact && !held.exact {
                *held = Held { row, exact };
            }
        } else if seq == self.record.delivered.next()
            || self.rows.range(self.record.delivered.next()..).count() < limits::HELD_ROWS_MAX
        {
            self.rows.insert(seq, Held { row, exact });
        }
        self.deliver(out);
    }

    /// Raises markers by the user's will; says whether one rose.
    pub fn mark(&mut self, read: Seq, received: Seq) -> bool {
        let record = &mut self.record;
        let rises = read > record.read || received > record.received;
        if read > record.read {
            record.read = read;
            record.marks.0 = read;
            let ordinal = if read >= record.delivered {
                Some(record.delivered_ordinal)
            } else {
                self.rows.get(&read).map(|held| held.row.ordinal)
            };
            record.read_ordinal = record.read_ordinal.max(ordinal.unwrap_or_default());
        }
        if received > record.received {
            record.received = received;
            record.marks.1 = received;
        }
        rises
    }

    /// Learns that the channel reaches at least this far.
    pub fn reaches(&mut self, seq: Seq) {
        if seq > self.record.head {
            self.record.head = seq;
        }
    }

    /// The hole before the next message: first and last position missing.
    pub fn hole(&self) -> Option<(Seq, Seq)> {
        let from = self.record.delivered.next();
        if self.page_expected || self.record.head < from {
            return None;
        }
        let to = match self.rows.range(from..).next() {
            Some((seq, _)) => Seq(seq.0 - 1),
            None => self.record.head,
        };
        Some((from, to))
    }

    /// Goes on behind `seq` without what lies before it.
    pub fn skip_to(&mut self, seq: Seq, ordinal: Ordinal, out: &mut Out) {
        let from = self.record.delivered.next();
        if seq < from {
            return;
        }
        let (cid, to) = (self.record.cid, seq);
        self.drop_held_up_to(seq, out);
        self.record.delivered = seq;
        self.record.delivered_ordinal = ordinal;
        self.record.head = self.record.head.max(seq);
        let taken = Taken::Delivered { cid, seq, ordinal };
        out.events.push_back((Event::Skipped { cid, from, to }, taken));
        self.deliver(out);
    }

    /// Drops every message: none is known to stand any more.
    pub fn drop_rows(&mut self, out: &mut Out) {
        self.drop_rows_below(Seq(limits::SEQ_MAX), out);
        self.page_expected = false;
    }

    /// Gives out what is next, as long as there is something.
    pub fn deliver(&mut self, out: &mut Out) {
        while let Some(held) = self.rows.remove(&self.record.delivered.next()) {
            let row = self.give(held.row, held.exact, out);
            if let Some(row) = row {
                self.rows.insert(row.seq, Held { row, exact: true });
            }
        }
        self.prune(out);
    }

    /// Makes the next message an event; gives it back if it is to be kept.
    fn give(&mut self, mut row: Row, exact: bool, out: &mut Out) -> Option<Row> {
        let record = &mut self.record;
        if !exact {
            let counts = u64::from(row.kind.counts_as_unread());
            row.ordinal = Ordinal(record.delivered_ordinal.0.saturating_add(counts));
        }
        record.delivered = row.seq;
        record.delivered_ordinal = row.ordinal;
        record.ordinal = record.ordinal.max(row.ordinal);
        if row.sender == record.me {
            record.read_ordinal = record.read_ordinal.max(row.ordinal);
        }
        let cid = record.cid;
        let taken = Taken::Delivered { cid, seq: row.seq, ordinal: row.ordinal };
        if self.keep == 0 {
            out.events.push_back((Event::Message { cid, row }, taken));
            return None;
        }
        self.store(&row, out);
        out.events.push_back((Event::Message { cid, row: row.clone() }, taken));
        Some(row)
    }

    fn store(&self, row: &Row, out: &mut Out) {
        if out.persist {
            let cid: Cid = self.record.cid;
            out.write(CacheWrite::Row { cid, row: row.clone() });
        }
    }

    fn oldest_to_keep(&self) -> Seq {
        Seq(self.record.delivered.0.saturating_sub(self.keep as u64))
    }

    fn prune(&mut self, out: &mut Out) {
        let limit = self.oldest_to_keep();
        let oldest = self.rows.keys().next().copied();
        if oldest.is_some_and(|seq| seq <= limit) {
            self.drop_rows_below(limit.next(), out);
        }
    }

    fn drop_rows_below(&mut self, seq: Seq, out: &mut Out) {
        if self.rows.is_empty() {
            return;
        }
        self.rows = self.rows.split_off(&seq);
        let (cid, to) = (self.record.cid, Seq(seq.0.saturating_sub(1)));
        out.write(CacheWrite::DropRows { cid, from: Seq(0), to });
    }

    fn drop_held_up_to(&mut self, seq: Seq, out: &mut Out) {
        let first = self.record.delivered.next();
        let doomed: Vec<Seq> = self.rows.range(first..=seq).map(|(seq, _)| *seq).collect();
        for seq in doomed {
            self.rows.remove(&seq);
            let cid = self.record.cid;
            out.write(CacheWrite::DropRows { cid, from: seq, to: seq });
        }
    }

    fn clear_shown_marks(&mut self, read: Seq, received: Seq) {
        let marks = &mut self.record.marks;
        if read >= marks.0 {
            marks.0 = Seq(0);
        }
        if received >= marks.1 {
            marks.1 = Seq(0);
        }
    }
}
