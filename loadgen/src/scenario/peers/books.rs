//! Who talks to whom, and the books of a run in which each sender keeps one message in flight.

use serde::Serialize;

use crate::latency::Latencies;
use crate::stamp::{Parsed, RunTag, Stamp};

/// Who sends to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// User u sends to user u xor 1.
    Direct,
    /// The first of every so many users and one more sends to the others.
    FanOut {
        /// Receivers of each message.
        receivers: u32,
    },
}

/// A number of users and who of them sends to whom. A talk is one sender with its receivers; talks
/// are numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Who sends to whom.
    pub shape: Shape,
    talks: u32,
}

impl Workload {
    /// Of about this many users: as many whole talks as they make, at least one.
    pub fn new(shape: Shape, users: u32) -> Workload {
        let talks = match shape {
            Shape::Direct => (users / 2).max(1) * 2,
            Shape::FanOut { receivers } => (users / (receivers + 1)).max(1),
        };
        Workload { shape, talks }
    }

    /// How many users there are.
    pub fn users(self) -> u32 {
        match self.shape {
            Shape::Direct => self.talks,
            Shape::FanOut { receivers } => self.talks * (receivers + 1),
        }
    }

    /// How many talks there are.
    pub fn talks(self) -> u32 {
        self.talks
    }

    /// How many users receive each message.
    pub fn receivers(self) -> u32 {
        match self.shape {
            Shape::Direct => 1,
            Shape::FanOut { receivers } => receivers,
        }
    }

    /// The talk in which a user sends.
    pub fn sends_in(self, user: u32) -> Option<u32> {
        match self.shape {
            Shape::Direct => Some(user),
            Shape::FanOut { receivers } => {
                user.is_multiple_of(receivers + 1).then_some(user / (receivers + 1))
            }
        }
    }

    /// The talk in which a user receives, and which of its receivers the user is.
    pub fn receives_in(self, user: u32) -> Option<(u32, u32)> {
        match self.shape {
            Shape::Direct => Some((user ^ 1, 0)),
            Shape::FanOut { receivers } => {
                let place = user % (receivers + 1);
                place.checked_sub(1).map(|place| (user / (receivers + 1), place))
            }
        }
    }
}

/// What a run comes to. All but the first three are zero if all is well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Messages given to the server.
    pub sent: u64,
    /// Messages whose ack arrived.
    pub acked: u64,
    /// Deliveries, the first of each message at each receiver.
    pub delivered: u64,
    /// Deliveries of acked messages that had not come when the run ended.
    pub lost: u64,
    /// Deliveries and acks beyond the first.
    pub duplicated: u64,
    /// Bodies that were not sent to this receiver, or not like this, or never.
    pub corrupt: u64,
    /// Messages not acked when the run ended.
    pub unacked: u64,
}

impl Counts {
    /// Whether every message was acked, and delivered to each receiver exactly once.
    pub fn is_clean(&self) -> bool {
        self.lost + self.duplicated + self.corrupt + self.unacked == 0
    }
}

/// What has come of a talk's newest message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is acked and everywhere: the next one may be sent.
    Complete,
    /// Something is outstanding, or nothing new came.
    Pending,
}

/// The books.
#[derive(Debug)]
pub struct Books {
    workload: Workload,
    run: RunTag,
    body_bytes: usize,
    talks: Vec<Talk>,
    counts: Counts,
    measured_ns: std::ops::Range<u64>,
    /// Acks within the measured time.
    pub acked_measured: u64,
    /// Deliveries within the measured time.
    pub delivered_measured: u64,
    /// From the send to the ack, of messages sent within the measured time.
    pub ack: Latencies,
    /// From the send to each delivery, of the same messages.
    pub deliver: Latencies,
}

#[derive(Debug)]
struct Talk {
    /// Messages sent.
    sent: u32,
    sent_ns: u64,
    acked: bool,
    /// Deliveries of the newest message that are outstanding.
    left: u32,
    /// By receiver: the number of the message that comes next.
    next: Vec<u32>,
}

impl Books {
    /// Empty ones, which measure nothing yet.
    pub fn new(workload: Workload, run: RunTag, body_bytes: usize) -> Books {
        let receivers = workload.receivers() as usize;
        let talk = || Talk { sent: 0, sent_ns: 0, acked: true, left: 0, next: vec![0; receivers] };
        Books {
            workload,
            run,
            body_bytes,
            talks: std::iter::repeat_with(talk).take(workload.talks() as usize).collect(),
            counts: Counts::default(),
            measured_ns: 0..0,
            acked_measured: 0,
            delivered_measured: 0,
            ack: Latencies::new(),
            deliver: Latencies::new(),
        }
    }

    /// Sets the measured time, in nanoseconds from an origin of the caller's choice.
    pub fn measure(&mut self, measured_ns: std::ops::Range<u64>) {
        self.measured_ns = measured_ns;
    }

    /// The next message of a talk whose newest one is complete: its number and its body.
    pub fn sending(&mut self, talk: u32, now_ns: u64) -> (u32, bytes::Bytes) {
        let state = &mut self.talks[talk as usize];
        debug_assert!(state.acked && state.left == 0, "one message in flight");
        let number = state.sent;
        *state = Talk {
            sent: number + 1,
            sent_ns: now_ns,
            acked: false,
            left: self.workload.receivers(),
            next: std::mem::take(&mut state.next),
        };
        self.counts.sent += 1;
        let stamp = Stamp { run: self.run, sender: talk, number };
        (number, stamp.body(self.body_bytes))
    }

    /// The ack of this message of a talk arrived.
    pub fn acked(&mut self, talk: u32, number: u32, now_ns: u64) -> Progress {
        let state = &mut self.talks[talk as usize];
        if state.acked || number.wrapping_add(1) != state.sent {
            self.counts.duplicated += 1;
            return Progress::Pending;
        }
        state.acked = true;
        self.counts.acked += 1;
        self.acked_measured += u64::from(self.measured_ns.contains(&now_ns));
        if self.measured_ns.contains(&state.sent_ns) {
            self.ack.record(now_ns.saturating_sub(state.sent_ns));
        }
        state.progress()
    }

    /// A body arrived at a user. Gives the talk that it belongs to and how that one stands.
    pub fn delivered(&mut self, user: u32, body: &[u8], now_ns: u64) -> (u32, Progress) {
        let (talk, place) = self.workload.receives_in(user).unwrap_or((user, u32::MAX));
        let state = &mut self.talks[talk as usize % self.workload.talks() as usize];
        let next = state.next.get_mut(place as usize);
        let (Parsed::Whole(stamp), Some(next)) = (Stamp::parse(body), next) else {
            self.counts.corrupt += 1;
            return (talk, Progress::Pending);
        };
        let ours = stamp.run == self.run && stamp.sender == talk && body.len() == self.body_bytes;
        if !ours || stamp.number >= state.sent {
            self.counts.corrupt += 1;
            return (talk, Progress::Pending);
        }
        if stamp.number < *next {
            self.counts.duplicated += 1;
            return (talk, Progress::Pending);
        }
        *next = stamp.number + 1;
        state.left -= 1;
        self.counts.delivered += 1;
        self.delivered_measured += u64::from(self.measured_ns.contains(&now_ns));
        if self.measured_ns.contains(&state.sent_ns) {
            self.deliver.record(now_ns.saturating_sub(state.sent_ns));
        }
        (talk, state.progress())
    }

    /// Acks and deliveries that are outstanding.
    pub fn outstanding(&self) -> u64 {
        self.talks.iter().map(|talk| u64::from(talk.left) + u64::from(!talk.acked)).sum()
    }

    /// Counts of everything so far, with what is outstanding as lost.
    pub fn counts(&self) -> Counts {
        let mut counts = self.counts;
        for talk in &self.talks {
            if talk.acked {
                counts.lost += u64::from(talk.left);
            } else {
                counts.unacked += 1;
            }
        }
        counts
    }
}

impl Talk {
    fn progress(&self) -> Progress {
        match self.acked && self.left == 0 {
            true => Progress::Complete,
            false => Progress::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAN: Shape = Shape::FanOut { receivers: 3 };

    fn books(shape: Shape, users: u32) -> Books {
        let mut books = Books::new(Workload::new(shape, users), RunTag::new(7), 20);
        books.measure(100..200);
        books
    }

    #[test]
    fn everybody_has_a_place() {
        let direct = Workload::new(Shape::Direct, 5);
        assert_eq!((direct.users(), direct.talks(), direct.receivers()), (4, 4, 1));
        assert_eq!((direct.sends_in(3), direct.receives_in(3)), (Some(3), Some((2, 0))));
        let fan = Workload::new(FAN, 11);
        assert_eq!((fan.users(), fan.talks(), fan.receivers()), (8, 2, 3));
        assert_eq!((fan.sends_in(4), fan.receives_in(4)), (Some(1), None));
        assert_eq!((fan.sends_in(6), fan.receives_in(6)), (None, Some((1, 1))));
        assert_eq!(Workload::new(FAN, 1).users(), 4, "at least one talk");
    }

    #[test]
    fn a_message_is_complete_once_it_is_acked_and_everywhere() {
        let mut books = books(FAN, 4);
        let (number, body) = books.sending(0, 100);
        assert_eq!(books.delivered(1, &body, 110), (0, Progress::Pending));
        assert_eq!(books.acked(0, number, 120), Progress::Pending);
        assert_eq!(books.delivered(3, &body, 130), (0, Progress::Pending));
        assert_eq!(books.outstanding(), 1);
        assert_eq!(books.delivered(2, &body, 200), (0, Progress::Complete));
        assert!(books.counts().is_clean());
        assert_eq!((books.acked_measured, books.delivered_measured), (1, 2));
        assert_eq!((books.ack.count(), books.deliver.count()), (1, 3));
    }

    #[test]
    fn loss_duplicates_and_strange_bodies_are_counted() {
        let mut books = books(Shape::Direct, 2);
        let (number, body) = books.sending(0, 0);
        books.acked(0, number, 1);
        books.acked(0, number, 1);
        assert_eq!(books.counts(), Counts { sent: 1, acked: 1, lost: 1, duplicated: 1, ..none() });
        books.delivered(1, &body, 2);
        books.delivered(1, &body, 3);
        books.delivered(1, b"hello", 3);
        books.delivered(1, &body[..19], 3);
        books.delivered(0, &body, 3);
        let counts =
            Counts { sent: 1, acked: 1, delivered: 1, duplicated: 2, corrupt: 3, ..none() };
        assert_eq!(books.counts(), counts);
        books.sending(0, 4);
        assert_eq!(books.counts(), Counts { sent: 2, unacked: 1, ..counts });
        let never = Stamp { run: RunTag::new(7), sender: 0, number: 9 }.body(20);
        books.delivered(1, &never, 5);
        assert_eq!(books.counts().corrupt, 4);
    }

    fn none() -> Counts {
        Counts::default()
    }
}
