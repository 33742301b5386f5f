//! The script of `direct`: connects, opens the pair's channel, sends what is due, keeps the books.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::Display;
use std::rc::Rc;
use std::time::{Duration, Instant};

use chatring_bare::cpu::burn;
use chatring_client::{Event, Millis, SendError, Session};
use chatring_wire::frame::{Durability, Failure, MessageKind, UserRef};
use chatring_wire::{Cid, Cmid, ErrorCode, MemberNumber, Seq};

use super::super::words;
use super::user_name;
use crate::book::{Author, Book, Verdict};
use crate::connection::Over;
use crate::ledger::{LedgerWriter, Line};
use crate::limits::{FINDINGS_PRINTED_MAX, LATE_SEND};
use crate::pool::{Script, Wakers, new_cmid};
use crate::report::interval::Timed;
use crate::report::section::Sections;
use crate::stall::Stalls;
use crate::stamp::Mixer;

/// Sends of one user that may wait in the client; further ones wait here.
pub const OUTBOX_ENTRIES_MAX: usize = 1_024;

/// How far a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Sessions come up.
    Connecting,
    /// All are up; channels are opened.
    Opening,
    /// Messages are sent as planned.
    Talking,
    /// Nothing new is sent.
    Waiting,
    /// Sessions say goodbye.
    Leaving,
}

/// The sessions of one thread and their books.
pub struct Talk {
    state: RefCell<State>,
    wakers: Rc<Wakers>,
}

/// What the sessions of a thread share.
pub struct State {
    /// How far it is.
    pub phase: Phase,
    /// Users by place. Those who talk with each other are neighbours: place and place xor 1.
    pub users: Vec<User>,
    /// The books.
    pub book: Book,
    /// Sessions that were up once.
    pub synced: usize,
    /// Sessions whose channel is open.
    pub opened: usize,
    /// The measured time, in nanoseconds from the origin.
    pub measured_ns: std::ops::Range<u64>,
    /// Acks that came in the measured time.
    pub acked_measured: u64,
    /// Deliveries that came in the measured time.
    pub delivered_measured: u64,
    /// Times since the interval began.
    pub timed: Timed,
    /// Acks of the measured time that came late.
    pub stalls: Stalls,
    /// Sends of the measured time that the generator made late.
    pub lags: Stalls,
    /// Times of the sections of the load.
    pub sections: Sections,
    /// What the node says an ack stands for.
    pub durability: Option<Durability>,
    /// CPU time that is burnt for each message.
    pub burn: Duration,
    /// The ledger, if one is kept.
    pub ledger: Option<LedgerWriter>,
    /// Refusals and protocol faults.
    pub errors: u64,
    /// The first of them, for people.
    pub notes: Vec<String>,
    /// Why the run cannot go on.
    pub fatal: Option<String>,
    /// Whether a completed message makes room for the next one (the closed loop).
    pub closed_loop: bool,
    /// Times are counted from here.
    pub origin: Instant,
    /// For message ids.
    pub random: Mixer,
}

/// One user.
pub struct User {
    /// Its number.
    pub number: u32,
    was_synced: bool,
    asked: bool,
    me: Option<MemberNumber>,
    /// Intended times of messages that are due and not given to the client yet.
    pub due: VecDeque<u64>,
    /// Whether those have to wait for the node.
    pub is_held: bool,
    /// In the order of sending, which is mostly that of the acks.
    in_flight: VecDeque<Sent>,
}

/// A message that is not acked.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Its id.
    pub cmid: Cmid,
    /// Which of the sender's it is.
    pub number: u32,
    /// Its body.
    pub body: bytes::Bytes,
}

impl User {
    /// The user with this number.
    pub fn new(number: u32) -> User {
        User {
            number,
            was_synced: false,
            asked: false,
            me: None,
            due: VecDeque::new(),
            is_held: false,
            in_flight: VecDeque::new(),
        }
    }
}

impl User {
    fn landed(&mut self, cmid: Cmid) -> Option<Sent> {
        let at = self.in_flight.iter().position(|sent| sent.cmid == cmid)?;
        self.in_flight.remove(at)
    }
}

impl Talk {
    /// A script over this state.
    pub fn new(state: State, wakers: Rc<Wakers>) -> Talk {
        Talk { state: RefCell::new(state), wakers }
    }

    /// Changes the state or looks at it.
    pub fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.state.borrow_mut())
    }
}

impl Script for Talk {
    fn drive(&self, place: usize, session: &mut Session, now: Millis) {
        let state = &mut *self.state.borrow_mut();
        state.flush_ledger();
        let user = &mut state.users[place];
        if state.phase >= Phase::Opening && !user.asked {
            let subject = user_name(user.number ^ 1);
            let with = UserRef::Subject { issuer: String::new(), subject };
            user.asked = session.open(now, with).is_ok();
        }
        state.send_due(place, session, now);
    }

    fn event(&self, place: usize, session: &mut Session, event: Event, at: Instant) {
        let state = &mut *self.state.borrow_mut();
        let at_ns = at.duration_since(state.origin).as_nanos() as u64;
        let completed = match event {
            Event::Connected { durability, .. } => {
                state.durability = Some(durability);
                None
            }
            Event::Synced => {
                state.synced(place);
                None
            }
            Event::Opened { cid, .. } => {
                match session.channel(cid) {
                    Some(head) => state.opened(place, cid, head.me, head.head),
                    None => {
                        let reason = format!("the client does not know the channel {cid}");
                        state.fail(reason);
                    }
                }
                None
            }
            Event::AskRefused { error, .. } => {
                let user = state.users[place].number;
                state.fail(format!("user {user} cannot open the channel: {}", words(&error)));
                None
            }
            Event::Stored { cid, cmid, seq, time_ms } => {
                state.stored(place, cid, cmid, seq, time_ms, at_ns)
            }
            Event::SendRefused { cmid, error, .. } => state.refused(place, cmid, &error),
            Event::Message { cid, row } => {
                state.message(place, cid, (row.seq, row.sender), &row.body, at_ns)
            }
            Event::Disconnected { error } => {
                state.users[place].is_held = true;
                if let Some(error) = error {
                    state.disconnected(&error);
                }
                None
            }
            _ => None,
        };
        if let Some(sender) = completed
            && state.closed_loop
            && state.phase == Phase::Talking
        {
            state.users[sender].due.push_back(at_ns);
            self.wakers.wake(sender);
        }
    }

    fn ended(&self, place: usize, why: &dyn Display) {
        let state = &mut *self.state.borrow_mut();
        let user = state.users[place].number;
        state.fail(format!("user {user} cannot go on: {why}"));
    }

    fn protocol_fault(&self, place: usize, fault: &Over) {
        let state = &mut *self.state.borrow_mut();
        let user = state.users[place].number;
        state.error(format!("user {user}: the node broke the protocol: {fault}"));
    }

    fn is_finished(&self, _place: usize) -> bool {
        let state = self.state.borrow();
        state.phase == Phase::Leaving || state.fatal.is_some()
    }
}

impl State {
    /// Messages that are due and not given to the client yet.
    pub fn due(&self) -> u64 {
        self.users.iter().map(|user| user.due.len() as u64).sum()
    }

    /// Messages that are due or sent, and not both acked and delivered.
    pub fn backlog(&self) -> u64 {
        self.book.outstanding() + self.due()
    }

    /// Writes what the ledger holds.
    pub fn flush_ledger(&mut self) {
        if let Some(Err(error)) = self.ledger.as_mut().map(LedgerWriter::flush) {
            self.ledger = None;
            self.fail(format!("the ledger cannot be written: {error}"));
        }
    }

    fn send_due(&mut self, place: usize, session: &mut Session, now: Millis) {
        let user = &mut self.users[place];
        let Some(cid) = self.book.channel(user.number) else { return };
        if user.due.is_empty() {
            user.is_held = false;
            return;
        }
        while session.outbox_len() < OUTBOX_ENTRIES_MAX
            && let Some(intended_ns) = self.users[place].due.pop_front()
        {
            let sent = self.begin(place, intended_ns);
            match session.send(now, cid, MessageKind::TEXT, sent.body.clone(), sent.cmid) {
                Ok(()) => {}
                Err(error) => {
                    let user = &mut self.users[place];
                    user.landed(sent.cmid);
                    let number = user.number;
                    self.book.refused(number, sent.number);
                    return self.error(client_refusal(number, error));
                }
            }
        }
        let user = &mut self.users[place];
        user.is_held = !user.due.is_empty();
    }

    /// Takes the next message, which was to be sent at this time, into the books; it is in flight
    /// from here on.
    pub fn begin(&mut self, place: usize, intended_ns: u64) -> Sent {
        burn(self.burn);
        let user = &mut self.users[place];
        if self.measured_ns.contains(&intended_ns) {
            let now_ns = self.origin.elapsed().as_nanos() as u64;
            let lag_ns = now_ns.saturating_sub(intended_ns);
            note_lag(&mut self.timed, lag_ns, user.is_held);
            if !user.is_held {
                self.lags.answered(intended_ns, now_ns);
            }
        }
        let message = self.book.sending(user.number, intended_ns);
        let cmid = new_cmid(&mut self.random);
        let sent = Sent { cmid, number: message.number, body: message.body };
        user.in_flight.push_back(sent.clone());
        sent
    }

    /// The user knows where to go on from.
    pub fn synced(&mut self, place: usize) {
        self.synced += usize::from(!self.users[place].was_synced);
        self.users[place].was_synced = true;
    }

    /// The user knows the pair's channel.
    pub fn opened(&mut self, place: usize, cid: Cid, me: MemberNumber, head: Seq) {
        let user = &mut self.users[place];
        self.opened += usize::from(user.me.is_none());
        user.me = Some(me);
        self.book.opened(user.number, cid, head);
    }

    /// A message is acked. Gives the place of its sender if it is through.
    pub fn stored(
        &mut self,
        place: usize,
        cid: Cid,
        cmid: Cmid,
        seq: Seq,
        time_ms: u64,
        at_ns: u64,
    ) -> Option<usize> {
        let user = &mut self.users[place];
        let number = user.number;
        let Some(sent) = user.landed(cmid) else {
            self.error(format!("user {number}: an ack of a message that is not in flight"));
            return None;
        };
        let open_before = self.book.outstanding();
        let Verdict::Good { intended_ns } = self.book.acked(number, sent.number, seq) else {
            return None;
        };
        if let Some(ledger) = &mut self.ledger {
            ledger.add(&Line {
                from: user_name(number),
                to: user_name(number ^ 1),
                cid: cid.to_string(),
                seq: seq.0,
                time_ms,
                body: String::from_utf8_lossy(&sent.body).into_owned(),
            });
        }
        self.acked_measured += u64::from(self.measured_ns.contains(&at_ns));
        if self.measured_ns.contains(&intended_ns) {
            self.timed.ack.record(at_ns.saturating_sub(intended_ns));
            self.stalls.answered(intended_ns, at_ns);
            self.sections.acked(intended_ns, at_ns);
        }
        (self.book.outstanding() < open_before).then_some(place)
    }

    /// A message is refused for good. Gives the place of its sender.
    pub fn refused(&mut self, place: usize, cmid: Cmid, error: &Failure) -> Option<usize> {
        let user = &mut self.users[place];
        let number = user.number;
        let sent = user.landed(cmid)?;
        self.book.refused(number, sent.number);
        self.error(format!("user {number}: a send was refused: {}", words(error)));
        Some(place)
    }

    /// A message arrives. Gives the place of its sender if it is through.
    pub fn message(
        &mut self,
        place: usize,
        cid: Cid,
        (seq, sender): (Seq, MemberNumber),
        body: &[u8],
        at_ns: u64,
    ) -> Option<usize> {
        let user = &self.users[place];
        let author = match Some(sender) == user.me {
            true => Author::Receiver,
            false => Author::Other,
        };
        let open_before = self.book.outstanding();
        let verdict = self.book.delivered(user.number, cid, seq, author, body);
        let Verdict::Good { intended_ns } = verdict else { return None };
        self.delivered_measured += u64::from(self.measured_ns.contains(&at_ns));
        if self.measured_ns.contains(&intended_ns) {
            self.timed.deliver.record(at_ns.saturating_sub(intended_ns));
            self.sections.delivered(intended_ns, at_ns);
        }
        (self.book.outstanding() < open_before).then_some(place ^ 1)
    }

    /// A node that drains or is busy may say so; everything else is an error.
    fn disconnected(&mut self, error: &Failure) {
        let expected = matches!(error.code, Ok(ErrorCode::Draining | ErrorCode::Busy));
        if !expected {
            self.error(format!("a connection was closed: {}", words(error)));
        }
    }

    /// Counts what should not be, with a word for people.
    pub fn error(&mut self, note: String) {
        self.errors += 1;
        if self.notes.len() < FINDINGS_PRINTED_MAX {
            self.notes.push(note);
        }
    }

    /// The run cannot go on.
    pub fn fail(&mut self, reason: String) {
        self.fatal.get_or_insert(reason);
    }
}

fn client_refusal(user: u32, error: SendError) -> String {
    format!("user {user}: the client refused a send: {error}")
}

/// How late the generator is with a send. One that waited for the node is another matter.
fn note_lag(timed: &mut Timed, lag_ns: u64, is_held: bool) {
    if is_held {
        timed.held += 1;
    } else {
        timed.lag.record(lag_ns);
        timed.late += u64::from(u128::from(lag_ns) > LATE_SEND.as_nanos());
    }
}
