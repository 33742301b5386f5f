//! Own book-keeping of one run: what was sent, what was acked, what arrived, and what is wrong.
//!
//! It believes no counter of client or server. A delivery counts only if its body is, byte by byte,
//! one that this run sent in that channel from the other user; the position of the ack and that of
//! the delivery must agree; positions seen in a channel must leave no hole. What is complete is
//! forgotten, so its memory is bounded by what is outstanding.

use std::collections::{BTreeSet, VecDeque};
use std::ops::AddAssign;

use bytes::Bytes;
use chatring_wire::id::{Cid, Seq};
use serde::{Deserialize, Serialize};

use crate::limits::FINDINGS_PRINTED_MAX;
use crate::stamp::{Parsed, RunTag, Stamp};

/// Positions of one channel that may be known above a hole before the hole counts as one.
const AHEAD_MAX: usize = 65_536;

/// The books of the users of one thread. Users come in pairs: u and u xor 1 share a channel.
#[derive(Debug)]
pub struct Book {
    run: RunTag,
    body_bytes: usize,
    users: Vec<UserBook>,
    channels: Vec<Option<ChannelBook>>,
    counts: Counts,
    open: u64,
    findings: Vec<String>,
}

/// What a run comes to. All but the first four and `foreign` are zero if all is well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Messages given to the client.
    pub sent: u64,
    /// Messages whose ack arrived.
    pub acked: u64,
    /// Messages that arrived at the other user, each counted once.
    pub delivered: u64,
    /// Messages of others that arrived in the same channels. They are nobody's fault.
    pub foreign: u64,
    /// Acked and not delivered when the run ended.
    pub lost: u64,
    /// Deliveries or acks beyond the first of the same message.
    pub duplicated: u64,
    /// Deliveries behind a later message of the same sender, or at a lower position than before.
    pub reordered: u64,
    /// Bodies that this run never sent there, although they bear its mark.
    pub corrupt: u64,
    /// Acks and deliveries that contradict each other about a position or an outcome.
    pub conflicting: u64,
    /// Positions below the highest known one of a channel that nobody has seen.
    pub gaps: u64,
    /// Not acked when the run ended.
    pub unacked: u64,
    /// Refused by the server or the client: surely not stored.
    pub refused: u64,
}

impl Counts {
    /// Whether every message was stored and delivered exactly once, in order and unchanged.
    pub fn is_clean(&self) -> bool {
        self.faults() + self.lost + self.gaps + self.unacked + self.refused == 0
    }

    /// Faults that are found while the run goes on.
    pub fn faults(&self) -> u64 {
        self.duplicated + self.reordered + self.corrupt + self.conflicting
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.sent += other.sent;
        self.acked += other.acked;
        self.delivered += other.delivered;
        self.foreign += other.foreign;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.corrupt += other.corrupt;
        self.conflicting += other.conflicting;
        self.gaps += other.gaps;
        self.unacked += other.unacked;
        self.refused += other.refused;
    }
}

/// A message that is about to be given to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMessage {
    /// Which message of its sender it is.
    pub number: u32,
    /// Its body.
    pub body: Bytes,
}

/// Who sent a message, as the node says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    /// The user who received it.
    Receiver,
    /// Somebody else.
    Other,
}

/// What an ack or a delivery means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The first one of this message, which was meant to be sent at this time.
    Good {
        /// As given to [`Book::sending`].
        intended_ns: u64,
    },
    /// Not a message of this run, or one's own message read back: nothing to count.
    Other,
    /// Counted as a fault.
    Fault,
}

#[derive(Debug, Default)]
struct UserBook {
    /// Number of the first entry.
    first: u32,
    /// Messages that this user sent, from the first one that is not complete.
    entries: VecDeque<Entry>,
    /// The highest number that arrived at the other user.
    newest_arrived: Option<u32>,
    /// The highest position at which this user has seen a message of this run.
    seen_to: Seq,
}

#[derive(Debug)]
struct Entry {
    intended_ns: u64,
    seq: Option<Seq>,
    acked: bool,
    delivered: bool,
    refused: bool,
}

#[derive(Debug)]
struct ChannelBook {
    cid: Cid,
    /// The lowest position that nobody has seen.
    next: u64,
    ahead: BTreeSet<u64>,
    /// Positions in holes that were given up as faults.
    given_up: u64,
}

impl Book {
    /// Books for the users below `users`, whose bodies have `body_bytes` bytes.
    pub fn new(run: RunTag, users: u32, body_bytes: usize) -> Book {
        let channels = users.div_ceil(2) as usize;
        Book {
            run,
            body_bytes,
            users: std::iter::repeat_with(UserBook::default).take(users as usize).collect(),
            channels: std::iter::repeat_with(|| None).take(channels).collect(),
            counts: Counts::default(),
            open: 0,
            findings: Vec::new(),
        }
    }

    /// The channel of a user's pair as the server gives it, before anything of this run is in it.
    pub fn opened(&mut self, user: u32, cid: Cid, head: Seq) {
        let channel = &mut self.channels[(user / 2) as usize];
        let known = channel.get_or_insert_with(|| ChannelBook {
            cid,
            next: head.0 + 1,
            ahead: BTreeSet::new(),
            given_up: 0,
        });
        if known.cid != cid {
            let other = known.cid;
            self.counts.conflicting += 1;
            self.find(format!("user {user} has channel {cid}, the other user {other}"));
        }
    }

    /// The channel of a user's pair, once it was opened.
    pub fn channel(&self, user: u32) -> Option<Cid> {
        self.channels[(user / 2) as usize].as_ref().map(|channel| channel.cid)
    }

    /// Enters the user's next message, meant to be sent at `intended_ns`.
    pub fn sending(&mut self, user: u32, intended_ns: u64) -> NewMessage {
        let book = &mut self.users[user as usize];
        let number = book.first + book.entries.len() as u32;
        book.entries.push_back(Entry {
            intended_ns,
            seq: None,
            acked: false,
            delivered: false,
            refused: false,
        });
        self.counts.sent += 1;
        self.open += 1;
        let body = Stamp { run: self.run, sender: user, number }.body(self.body_bytes);
        NewMessage { number, body }
    }

    /// The client says that the user's message is stored at this position.
    pub fn acked(&mut self, user: u32, number: u32, seq: Seq) -> Verdict {
        let Some(entry) = self.users[user as usize].entry(number) else {
            return self.duplicate(user, number, seq, "acked");
        };
        if entry.refused {
            return self.contradiction(user, number, seq, "acked");
        }
        if entry.acked {
            return self.duplicate(user, number, seq, "acked");
        }
        entry.acked = true;
        let intended_ns = entry.intended_ns;
        self.counts.acked += 1;
        self.claim(user, number, seq);
        self.settle(user, number);
        Verdict::Good { intended_ns }
    }

    /// The client says that the user's message was refused for good.
    pub fn refused(&mut self, user: u32, number: u32) -> Verdict {
        let entry = self.users[user as usize].entry(number);
        let Some(entry) = entry.filter(|entry| !entry.acked && !entry.refused) else {
            self.counts.conflicting += 1;
            self.find(format!("message {number} of user {user} was refused after its ack"));
            return Verdict::Fault;
        };
        entry.refused = true;
        let intended_ns = entry.intended_ns;
        self.counts.refused += 1;
        self.settle(user, number);
        Verdict::Good { intended_ns }
    }

    /// The client of `receiver` gives a message of a channel.
    pub fn delivered(
        &mut self,
        receiver: u32,
        cid: Cid,
        seq: Seq,
        author: Author,
        body: &[u8],
    ) -> Verdict {
        let stamp = match Stamp::parse(body) {
            Parsed::Whole(stamp) if stamp.run == self.run => stamp,
            Parsed::Damaged(run) if run == self.run => return self.corrupt(receiver, seq, body),
            _ => return self.foreign(receiver, cid, seq),
        };
        let ours = self.channel(receiver) == Some(cid);
        let misnamed = (stamp.sender == receiver) != (author == Author::Receiver);
        if !ours || misnamed || body.len() != self.body_bytes || stamp.sender / 2 != receiver / 2 {
            return self.corrupt(receiver, seq, body);
        }
        let Some(sender) = self.users.get_mut(stamp.sender as usize) else {
            return self.corrupt(receiver, seq, body);
        };
        if stamp.number >= sender.first + sender.entries.len() as u32 {
            return self.corrupt(receiver, seq, body);
        }
        if stamp.sender == receiver {
            return self.echo(receiver, stamp.number, seq);
        }
        let Some(entry) = sender.entry(stamp.number).filter(|entry| !entry.delivered) else {
            return self.duplicate(stamp.sender, stamp.number, seq, "delivered");
        };
        if entry.refused {
            return self.contradiction(stamp.sender, stamp.number, seq, "delivered");
        }
        entry.delivered = true;
        let intended_ns = entry.intended_ns;
        self.counts.delivered += 1;
        self.check_order(receiver, stamp, seq);
        self.claim(stamp.sender, stamp.number, seq);
        self.settle(stamp.sender, stamp.number);
        Verdict::Good { intended_ns }
    }

    /// How many messages are neither refused nor both acked and delivered.
    pub fn outstanding(&self) -> u64 {
        self.open
    }

    /// The counts up to now; what is outstanding is not judged yet.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Closes the books: what is outstanding now is lost or unacked.
    pub fn finish(mut self) -> (Counts, Vec<String>) {
        let users = std::mem::take(&mut self.users);
        for (user, book) in users.iter().enumerate() {
            for (offset, entry) in book.entries.iter().enumerate() {
                let number = book.first as usize + offset;
                if entry.acked && !entry.delivered {
                    self.counts.lost += 1;
                    let seq = entry.seq.unwrap_or_default().0;
                    self.find(format!("message {number} of user {user}, acked at {seq}, is lost"));
                } else if !entry.acked && !entry.refused {
                    self.counts.unacked += 1;
                    self.find(format!("message {number} of user {user} was never acked"));
                }
            }
        }
        let channels = std::mem::take(&mut self.channels);
        for channel in channels.iter().flatten() {
            let holes = channel.holes();
            self.counts.gaps += holes;
            if holes > 0 {
                let (cid, next) = (channel.cid, channel.next);
                self.find(format!("channel {cid} has {holes} holes, the first at {next}"));
            }
        }
        (self.counts, self.findings)
    }

    /// A delivery must be above everything that arrived before, and its number above that of
    /// everything that this sender sent before.
    fn check_order(&mut self, receiver: u32, stamp: Stamp, seq: Seq) {
        let below = self.is_below(receiver, seq);
        let sender = &mut self.users[stamp.sender as usize];
        let behind = sender.newest_arrived.is_some_and(|newest| stamp.number < newest);
        sender.newest_arrived = sender.newest_arrived.max(Some(stamp.number));
        if below || behind {
            self.counts.reordered += 1;
            let Stamp { sender, number, .. } = stamp;
            self.find(format!("message {number} of user {sender} at {} is late", seq.0));
        }
    }

    /// Whether a position is not above all that this user has seen; it counts as seen now.
    fn is_below(&mut self, user: u32, seq: Seq) -> bool {
        let seen = &mut self.users[user as usize].seen_to;
        let below = seq <= *seen;
        *seen = (*seen).max(seq);
        below
    }

    /// One's own message read back: it takes part in the order of what this user sees.
    fn echo(&mut self, user: u32, number: u32, seq: Seq) -> Verdict {
        if self.is_below(user, seq) {
            self.counts.reordered += 1;
            self.find(format!("own message {number} of user {user} at {} is late", seq.0));
        }
        if self.users[user as usize].entry(number).is_some() {
            self.claim(user, number, seq);
        }
        Verdict::Other
    }

    /// Ties a message to its position, or finds it tied to another one.
    fn claim(&mut self, user: u32, number: u32, seq: Seq) {
        let Some(entry) = self.users[user as usize].entry(number) else { return };
        let before = entry.seq;
        entry.seq.get_or_insert(seq);
        let fault = match before {
            Some(before) => before != seq,
            None => match &mut self.channels[(user / 2) as usize] {
                Some(channel) => channel.fill(seq) == Filled::Already,
                None => true,
            },
        };
        if fault {
            self.counts.conflicting += 1;
            let before = before.map(|seq| seq.0);
            let seq = seq.0;
            self.find(format!("message {number} of user {user}: position {seq}, not {before:?}"));
        }
    }

    fn contradiction(&mut self, user: u32, number: u32, seq: Seq, what: &str) -> Verdict {
        self.counts.conflicting += 1;
        let seq = seq.0;
        self.find(format!("message {number} of user {user}, refused, was {what} at {seq}"));
        Verdict::Fault
    }

    fn duplicate(&mut self, user: u32, number: u32, seq: Seq, what: &str) -> Verdict {
        self.counts.duplicated += 1;
        self.find(format!("message {number} of user {user} was {what} again at {}", seq.0));
        Verdict::Fault
    }

    fn corrupt(&mut self, receiver: u32, seq: Seq, body: &[u8]) -> Verdict {
        self.counts.corrupt += 1;
        let start = String::from_utf8_lossy(&body[..body.len().min(32)]).into_owned();
        self.find(format!("user {receiver} got a forged body at {}: {start:?}", seq.0));
        Verdict::Fault
    }

    fn foreign(&mut self, receiver: u32, cid: Cid, seq: Seq) -> Verdict {
        self.counts.foreign += 1;
        if let Some(channel) = &mut self.channels[(receiver / 2) as usize]
            && channel.cid == cid
        {
            channel.fill(seq);
        }
        Verdict::Other
    }

    /// Forgets complete messages from the front.
    fn settle(&mut self, user: u32, number: u32) {
        let book = &mut self.users[user as usize];
        if book.entry(number).is_some_and(|entry| entry.is_complete()) {
            self.open -= 1;
        }
        while book.entries.front().is_some_and(Entry::is_complete) {
            book.entries.pop_front();
            book.first += 1;
        }
    }

    fn find(&mut self, finding: String) {
        if self.findings.len() < FINDINGS_PRINTED_MAX {
            self.findings.push(finding);
        }
    }
}

impl UserBook {
    /// `None` for a message that is complete or was never sent.
    fn entry(&mut self, number: u32) -> Option<&mut Entry> {
        self.entries.get_mut(number.checked_sub(self.first)? as usize)
    }
}

impl Entry {
    fn is_complete(&self) -> bool {
        self.refused || (self.acked && self.delivered)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filled {
    Now,
    Already,
}

impl ChannelBook {
    fn fill(&mut self, seq: Seq) -> Filled {
        if seq.0 < self.next || !self.ahead.insert(seq.0) {
            return Filled::Already;
        }
        if self.ahead.len() > AHEAD_MAX
            && let Some(first) = self.ahead.first()
        {
            self.given_up += first - self.next;
            self.next = *first;
        }
        while self.ahead.remove(&self.next) {
            self.next += 1;
        }
        Filled::Now
    }

    fn holes(&self) -> u64 {
        let span = self.ahead.last().map_or(0, |last| last + 1 - self.next);
        self.given_up + span - self.ahead.len() as u64
    }
}

#[cfg(test)]
mod tests;
