//! The clients of the bare relay on one thread.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

use chatring_bare::frame::{self, BODY_BYTES, Frame, MESSAGE_BYTES, Splitter};
use chatring_bare::ring::{Input, Key, Outs};

use super::Relayed;
use crate::latency::Latencies;
use crate::stamp::{RunTag, Stamp};
use crate::turns::{Speakers, Turns};

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Messages are sent as planned.
    Talking,
    /// Nothing new is sent.
    Waiting,
    /// All is over.
    Leaving,
}

/// The clients and their sockets.
pub struct Clients {
    state: RefCell<State>,
    turns: Turns,
}

/// What is known about them.
pub struct State {
    /// How far the run is.
    pub phase: Phase,
    /// Users whom the relay has greeted.
    pub entered: u32,
    /// Why the run cannot go on.
    pub fatal: Option<String>,
    run: RunTag,
    clients: Vec<Client>,
    /// By key.
    users: Vec<usize>,
    /// Clients with something to say.
    queue: Vec<usize>,
    closed_loop: bool,
    origin: Instant,
    measured_ns: Range<u64>,
    sent: u64,
    acked: u64,
    delivered: u64,
    faults: u64,
    acked_measured: u64,
    delivered_measured: u64,
    ack: Latencies,
    deliver: Latencies,
}

struct Client {
    key: Key,
    splitter: Splitter,
    is_greeted: bool,
    is_queued: bool,
    /// Intended times of messages that are due and not sent yet.
    due: VecDeque<u64>,
    /// Intended times of messages that are not both acked and delivered, from number `first` on.
    open: VecDeque<u64>,
    first: u64,
    /// Numbers of the next ack, and of the next message that reaches the other user.
    next_ack: u64,
    next_delivery: u64,
}

impl Clients {
    /// None yet.
    pub fn new(state: State) -> io::Result<Clients> {
        Ok(Clients { state: RefCell::new(state), turns: Turns::new()? })
    }

    /// Adds the next user's connection.
    pub fn add(&self, user: u32, socket: TcpStream) {
        let key = self.turns.add(socket);
        self.with(|state| state.add(user as usize, key));
    }

    /// Takes turns until the run is over.
    pub async fn run(self: Rc<Self>) {
        self.turns.run(&*self).await;
    }

    /// Has a turn taken.
    pub fn wake(&self) {
        self.turns.wake();
    }

    /// Changes the state or looks at it.
    pub fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.state.borrow_mut())
    }
}

impl Speakers for Clients {
    fn input(&self, _outs: &mut Outs, key: Key, input: Input<'_>, at: Instant) {
        let state = &mut *self.state.borrow_mut();
        let user = state.users[key.index()];
        match input {
            Input::Bytes(bytes) => state.take(user, bytes, at),
            Input::Ended(error) => {
                let reason = error.map(|error| format!(": {error}")).unwrap_or_default();
                state.fail(format!("the relay ended the connection of user {user}{reason}"));
            }
            Input::Accepted => {}
        }
    }

    fn speak(&self, outs: &mut Outs, _now: Instant) {
        let state = &mut *self.state.borrow_mut();
        let mut queue = std::mem::take(&mut state.queue);
        for user in queue.drain(..) {
            state.say(user, outs);
        }
        state.queue = queue;
    }

    fn wants_turn(&self) -> bool {
        !self.state.borrow().queue.is_empty()
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn is_over(&self) -> bool {
        let state = self.state.borrow();
        state.phase == Phase::Leaving || state.fatal.is_some()
    }

    fn failed(&self, _outs: &mut Outs, error: &io::Error) {
        self.state.borrow_mut().fail(error.to_string());
    }
}

impl State {
    /// Before the first connection.
    pub fn new(run: RunTag, users: u32, closed_loop: bool, origin: Instant) -> State {
        State {
            phase: Phase::Waiting,
            entered: 0,
            fatal: None,
            run,
            clients: Vec::with_capacity(users as usize),
            users: Vec::new(),
            queue: Vec::new(),
            closed_loop,
            origin,
            measured_ns: 0..0,
            sent: 0,
            acked: 0,
            delivered: 0,
            faults: 0,
            acked_measured: 0,
            delivered_measured: 0,
            ack: Latencies::new(),
            deliver: Latencies::new(),
        }
    }

    fn add(&mut self, user: usize, key: Key) {
        assert_eq!(user, self.clients.len(), "users come in order");
        self.clients.push(Client {
            key,
            splitter: Splitter::default(),
            is_greeted: false,
            is_queued: true,
            due: VecDeque::new(),
            open: VecDeque::new(),
            first: 0,
            next_ack: 0,
            next_delivery: 0,
        });
        if self.users.len() <= key.index() {
            self.users.resize(key.index() + 1, usize::MAX);
        }
        self.users[key.index()] = user;
        self.queue.push(user);
    }

    /// The load begins; gives the start in nanoseconds.
    pub fn begin(&mut self, start: Instant, from: Instant, to: Instant) -> u64 {
        self.phase = Phase::Talking;
        self.measured_ns = self.ns(from)..self.ns(to);
        self.ns(start)
    }

    /// The closed loop's first messages.
    pub fn fill(&mut self, window: u32, at_ns: u64) {
        for user in 0..self.clients.len() {
            (0..window).for_each(|_| self.due(user, at_ns));
        }
    }

    /// A message is to be sent, meant for this time.
    pub fn due(&mut self, user: usize, at_ns: u64) {
        let client = &mut self.clients[user];
        client.due.push_back(at_ns);
        if !std::mem::replace(&mut client.is_queued, true) {
            self.queue.push(user);
        }
    }

    /// The load ends. What an open loop's plan asked for is still sent.
    pub fn end(&mut self, cut_short: bool) {
        self.phase = Phase::Waiting;
        if cut_short || self.closed_loop {
            self.clients.iter_mut().for_each(|client| client.due.clear());
        }
    }

    /// Messages outstanding, a count that moves if any of them does, and why the run cannot go on.
    pub fn progress(&self) -> (u64, u64, Option<String>) {
        let open = |client: &Client| (client.open.len() + client.due.len()) as u64;
        let left = self.clients.iter().map(open).sum();
        (left, self.acked + self.delivered, self.fatal.clone())
    }

    /// Enters what it came to; rates are counts yet.
    pub fn close(&mut self, relayed: &mut Relayed) {
        relayed.sent = self.sent;
        relayed.acked = self.acked;
        relayed.delivered = self.delivered;
        relayed.faults = self.faults;
        relayed.acked_per_s = self.acked_measured as f64;
        relayed.delivered_per_s = self.delivered_measured as f64;
        relayed.ack = self.ack.percentiles();
        relayed.deliver = self.deliver.percentiles();
        relayed.cut_short = relayed.cut_short.take().or(self.fatal.take());
    }

    fn say(&mut self, user: usize, outs: &mut Outs) {
        let client = &mut self.clients[user];
        client.is_queued = false;
        let Some(out) = outs.out(client.key) else { return };
        if !std::mem::replace(&mut client.is_greeted, true) {
            out.extend_from_slice(&frame::hello(user as u64));
        }
        while let Some(intended_ns) = client.due.pop_front() {
            let number = client.first + client.open.len() as u64;
            client.open.push_back(intended_ns);
            self.sent += 1;
            let body = body(self.run, user, number);
            out.extend_from_slice(&frame::message(number, &body));
        }
    }

    fn take(&mut self, user: usize, bytes: &[u8], at: Instant) {
        let at_ns = self.ns(at);
        let mut splitter = std::mem::take(&mut self.clients[user].splitter);
        let fed = splitter.feed(bytes, |frame| match frame {
            Frame::Hello { user: named } => {
                self.entered += 1;
                self.faults += u64::from(named != user as u64);
            }
            Frame::Ack { number } => self.take_ack(user, number, at_ns),
            Frame::Message(message) => self.take_message(user, message, at_ns),
        });
        self.clients[user].splitter = splitter;
        if fed.is_err() {
            self.fail(format!("the relay sent user {user} what is no frame"));
        }
    }

    fn take_ack(&mut self, user: usize, number: u64, at_ns: u64) {
        let client = &mut self.clients[user];
        let intended_ns = client.intended(number).filter(|_| number == client.next_ack);
        let Some(intended_ns) = intended_ns else {
            self.faults += 1;
            return;
        };
        client.next_ack += 1;
        self.acked += 1;
        self.acked_measured += u64::from(self.measured_ns.contains(&at_ns));
        if self.measured_ns.contains(&intended_ns) {
            self.ack.record(at_ns.saturating_sub(intended_ns));
        }
        self.settle(user, at_ns);
    }

    fn take_message(&mut self, receiver: usize, message: &[u8; MESSAGE_BYTES], at_ns: u64) {
        let sender = receiver ^ 1;
        let number = frame::number(message);
        let client = &mut self.clients[sender];
        let intended_ns = client.intended(number).filter(|_| number == client.next_delivery);
        let whole = frame::body(message) == body(self.run, sender, number);
        let Some(intended_ns) = intended_ns.filter(|_| whole) else {
            self.faults += 1;
            return;
        };
        client.next_delivery += 1;
        self.delivered += 1;
        self.delivered_measured += u64::from(self.measured_ns.contains(&at_ns));
        if self.measured_ns.contains(&intended_ns) {
            self.deliver.record(at_ns.saturating_sub(intended_ns));
        }
        self.settle(sender, at_ns);
    }

    /// Forgets messages that are through, each of which makes room for the next one in the closed
    /// loop.
    fn settle(&mut self, user: usize, at_ns: u64) {
        let client = &mut self.clients[user];
        let through = client.next_ack.min(client.next_delivery) - client.first;
        client.open.drain(..through as usize);
        client.first += through;
        if self.closed_loop && self.phase == Phase::Talking {
            (0..through).for_each(|_| self.due(user, at_ns));
        }
    }

    fn fail(&mut self, reason: String) {
        self.fatal.get_or_insert(reason);
    }

    fn ns(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.origin).as_nanos() as u64
    }
}

impl Client {
    fn intended(&self, number: u64) -> Option<u64> {
        self.open.get(number.checked_sub(self.first)? as usize).copied()
    }
}

fn body(run: RunTag, user: usize, number: u64) -> [u8; BODY_BYTES] {
    let stamp = Stamp { run, sender: user as u32, number: number as u32 };
    let mut bytes = [0; BODY_BYTES];
    stamp.fill(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two users of whom user 0 has sent three messages.
    fn talking() -> State {
        let mut state = State::new(RunTag::new(1), 2, false, Instant::now());
        let mut outs = chatring_bare::ring::Sockets::new().unwrap();
        for user in 0..2 {
            let pair = std::os::unix::net::UnixStream::pair().unwrap();
            let key = outs.add(pair.0);
            state.add(user, key);
        }
        (1..4).for_each(|at_ns| state.due(0, at_ns));
        let queue = std::mem::take(&mut state.queue);
        queue.into_iter().for_each(|user| state.say(user, outs.outs()));
        state
    }

    fn message(number: u64) -> [u8; MESSAGE_BYTES] {
        frame::message(number, &body(RunTag::new(1), 0, number))
    }

    fn take(state: &mut State, user: usize, bytes: &[u8]) {
        state.take(user, bytes, Instant::now());
    }

    #[test]
    fn what_comes_once_in_order_and_unchanged_is_good() {
        let mut state = talking();
        for number in 0..3 {
            assert_eq!(state.progress().0, 3 - number);
            take(&mut state, 1, &message(number));
            take(&mut state, 0, &frame::ack(&message(number)));
        }
        let mut relayed = Relayed::default();
        state.close(&mut relayed);
        assert!(relayed.is_good());
        assert_eq!((relayed.sent, relayed.acked, relayed.delivered), (3, 3, 3));
    }

    #[test]
    fn acks_and_messages_out_of_order_twice_or_changed_are_faults() {
        let mut changed = message(0);
        changed[MESSAGE_BYTES - 1] ^= 1;
        let cases: [(usize, Vec<Vec<u8>>); 6] = [
            (0, vec![frame::ack(&message(1)).to_vec()]),
            (0, vec![frame::ack(&message(0)).to_vec(); 2]),
            (0, vec![frame::ack(&message(7)).to_vec()]),
            (1, vec![message(1).to_vec()]),
            (1, vec![message(0).to_vec(); 2]),
            (1, vec![changed.to_vec()]),
        ];
        for (index, (user, frames)) in cases.into_iter().enumerate() {
            let mut state = talking();
            frames.iter().for_each(|frame| take(&mut state, user, frame));
            assert_eq!(state.faults, 1, "case {index}");
            let mut relayed = Relayed::default();
            state.close(&mut relayed);
            assert!(!relayed.is_good());
        }
    }
}
