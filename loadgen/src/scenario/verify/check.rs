//! One user's reading of a channel against the lines of the ledgers.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;
use std::sync::Arc;

use chatring_wire::frame::Row;
use chatring_wire::{MemberNumber, Seq};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::ledger::Line;
use crate::stamp::{Parsed, RunTag, Stamp};

/// A channel's lines.
#[derive(Debug, Default)]
pub struct Expected {
    lines: BTreeMap<u64, Line>,
    runs: FxHashSet<RunTag>,
    repeated: u64,
}

impl Expected {
    /// Adds a line of this channel.
    pub fn add(&mut self, line: Line) {
        if let Parsed::Whole(stamp) = Stamp::parse(line.body.as_bytes()) {
            self.runs.insert(stamp.run);
        }
        // A second ack of one position contradicts the first, whatever it says.
        self.repeated += u64::from(self.lines.insert(line.seq, line).is_some());
    }

    /// The two users who talk in it.
    pub fn users(&self) -> BTreeSet<&str> {
        self.lines.values().flat_map(|line| [line.from.as_str(), line.to.as_str()]).collect()
    }

    /// Lines whose position another line has too.
    pub fn repeated(&self) -> u64 {
        self.repeated
    }
}

/// What readings come to. All but `found` and `other` are zero if all is well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readings {
    /// Lines that are stored as they were acked.
    pub found: u64,
    /// Messages that no line speaks of: of other runs, or not acked when the generator ended.
    pub other: u64,
    /// Lines without a message at their position.
    pub missing: u64,
    /// Positions with another body or sender than acked.
    pub wrong: u64,
    /// Messages that are stored more than once.
    pub duplicated: u64,
    /// Messages behind a later one of the same sender.
    pub reordered: u64,
    /// Positions below the head that hold nothing.
    pub gaps: u64,
}

impl Readings {
    /// Whether every line is there exactly once, in order and with its body.
    pub fn is_clean(&self) -> bool {
        self.missing + self.wrong + self.duplicated + self.reordered + self.gaps == 0
    }
}

impl AddAssign for Readings {
    fn add_assign(&mut self, other: Readings) {
        self.found += other.found;
        self.other += other.other;
        self.missing += other.missing;
        self.wrong += other.wrong;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.gaps += other.gaps;
    }
}

/// A reading that is under way.
#[derive(Debug)]
pub struct Reading {
    expected: Arc<Expected>,
    reader: String,
    me: MemberNumber,
    next: u64,
    seen: FxHashSet<Stamp>,
    newest: FxHashMap<(RunTag, u32), u32>,
    readings: Readings,
}

impl Reading {
    /// By `reader`, whose number in the channel is `me`.
    pub fn new(expected: Arc<Expected>, reader: String, me: MemberNumber) -> Reading {
        Reading {
            expected,
            reader,
            me,
            next: 1,
            seen: FxHashSet::default(),
            newest: FxHashMap::default(),
            readings: Readings::default(),
        }
    }

    /// The lowest position that was not read yet.
    pub fn next(&self) -> Seq {
        Seq(self.next)
    }

    /// Takes the next message.
    pub fn row(&mut self, row: &Row) {
        self.readings.gaps += u64::from(row.seq.0 != self.next);
        self.next = row.seq.0 + 1;
        let parsed = Stamp::parse(&row.body);
        match self.expected.lines.get(&row.seq.0) {
            Some(line) if self.is_as_acked(line, row) => self.readings.found += 1,
            Some(_) => self.readings.wrong += 1,
            None => self.readings.other += 1,
        }
        match parsed {
            Parsed::Whole(stamp) if self.expected.runs.contains(&stamp.run) => self.stamped(stamp),
            _ => {}
        }
    }

    /// Ends the reading at the channel's head.
    pub fn finish(mut self, head: Seq) -> Readings {
        self.readings.gaps += u64::from(self.next != head.0 + 1);
        let judged = self.readings.found + self.readings.wrong;
        self.readings.missing = (self.expected.lines.len() as u64).saturating_sub(judged);
        self.readings
    }

    fn is_as_acked(&self, line: &Line, row: &Row) -> bool {
        let own = row.sender == self.me;
        row.body == line.body.as_bytes() && own == (line.from == self.reader)
    }

    /// Every message of the runs in question is there once and in its sender's order, also one
    /// whose ack nobody saw.
    fn stamped(&mut self, stamp: Stamp) {
        if !self.seen.insert(stamp) {
            self.readings.duplicated += 1;
            return;
        }
        let newest = self.newest.entry((stamp.run, stamp.sender)).or_insert(stamp.number);
        self.readings.reordered += u64::from(stamp.number < *newest);
        *newest = stamp.number.max(*newest);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use chatring_wire::frame::MessageKind;
    use chatring_wire::{Cmid, DeviceId, Ordinal};

    use super::*;

    const RUN: RunTag = RunTag::new(3);

    fn body(sender: u32, number: u32) -> Bytes {
        Stamp { run: RUN, sender, number }.body(20)
    }

    fn line(seq: u64, number: u32) -> Line {
        Line {
            from: "loadgen-0".to_owned(),
            to: "loadgen-1".to_owned(),
            cid: "c".to_owned(),
            seq,
            time_ms: 0,
            body: String::from_utf8(body(0, number).to_vec()).unwrap(),
        }
    }

    fn row(seq: u64, body: Bytes) -> Row {
        Row {
            seq: Seq(seq),
            ordinal: Ordinal(seq),
            kind: MessageKind::TEXT,
            sender: MemberNumber(0),
            device: DeviceId(1),
            cmid: Cmid([0; 16]),
            time_ms: 0,
            body,
        }
    }

    /// Lines 0, 1, 2 … at the positions 1, 2, 3 …, and what the sender and the other user read.
    fn read(lines: u32, rows: &[Row], head: u64) -> [Readings; 2] {
        let mut expected = Expected::default();
        (0..lines).for_each(|number| expected.add(line(u64::from(number) + 1, number)));
        let expected = Arc::new(expected);
        ["loadgen-0", "loadgen-1"].map(|reader| {
            let me = MemberNumber(u32::from(reader == "loadgen-1"));
            let mut reading = Reading::new(expected.clone(), reader.to_owned(), me);
            rows.iter().for_each(|row| reading.row(row));
            reading.finish(Seq(head))
        })
    }

    fn rows(numbers: &[u32]) -> Vec<Row> {
        (1..).zip(numbers).map(|(seq, number)| row(seq, body(0, *number))).collect()
    }

    #[test]
    fn what_was_acked_is_found_among_other_messages() {
        let mut stored = rows(&[0, 1, 2, 3]);
        stored.push(row(5, Bytes::from_static(b"hello")));
        for readings in read(3, &stored, 5) {
            assert_eq!(readings, Readings { found: 3, other: 2, ..Readings::default() });
            assert!(readings.is_clean());
        }
    }

    #[test]
    fn missing_lines_are_caught() {
        for readings in read(3, &rows(&[0, 1]), 2) {
            assert_eq!((readings.missing, readings.found), (1, 2));
            assert!(!readings.is_clean());
        }
        for readings in read(3, &[], 0) {
            assert_eq!((readings.missing, readings.gaps), (3, 0), "an empty node");
        }
    }

    #[test]
    fn another_body_or_sender_is_caught() {
        let mut stored = rows(&[0, 1]);
        stored[1].body = Bytes::from_static(b"something else said");
        assert!(read(2, &stored, 2).iter().all(|readings| readings.wrong == 1));
        let mut stored = rows(&[0, 1]);
        stored[0].sender = MemberNumber(1);
        assert!(read(2, &stored, 2).iter().all(|readings| readings.wrong == 1));
    }

    #[test]
    fn a_message_stored_twice_is_caught_even_if_it_was_never_acked() {
        for numbers in [[0, 1, 1], [0, 2, 2]] {
            for readings in read(1, &rows(&numbers), 3) {
                assert_eq!((readings.found, readings.duplicated), (1, 1));
                assert!(!readings.is_clean());
            }
        }
    }

    #[test]
    fn a_wrong_order_is_caught() {
        let mut expected = Expected::default();
        expected.add(line(1, 1));
        expected.add(line(2, 0));
        let mut reading = Reading::new(Arc::new(expected), "loadgen-1".to_owned(), MemberNumber(1));
        rows(&[1, 0]).iter().for_each(|row| reading.row(row));
        let readings = reading.finish(Seq(2));
        assert_eq!((readings.found, readings.reordered), (2, 1));
    }

    #[test]
    fn holes_and_a_short_reading_are_caught() {
        let stored = [row(1, body(0, 0)), row(3, body(0, 2))];
        assert!(read(1, &stored, 3).iter().all(|readings| readings.gaps == 1));
        assert!(read(1, &rows(&[0]), 2).iter().all(|readings| readings.gaps == 1));
    }

    #[test]
    fn two_lines_at_one_position_are_caught() {
        let mut expected = Expected::default();
        expected.add(line(1, 0));
        expected.add(line(1, 0));
        assert_eq!(expected.repeated(), 1);
        assert_eq!(expected.users().len(), 2);
    }
}
