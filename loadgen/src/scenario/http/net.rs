//! The lines of all users: which are connected, whose turn it is, and when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use chatring_bare::ring::{Key, Outs};
use chatring_wire::Subprotocol;

use super::super::direct::talk::State;
use super::super::direct::{Common, user_name};
use super::asks::Asker;
use super::news::Receiver;
use crate::cli::Receive;
use crate::connection::Connection;
use crate::http::answer::Answers;
use crate::limits::TOKEN_TTL_S;
use crate::link::Sealed;
use crate::pool::{fresh_random, installation, unix_ms};
use crate::stamp::Mixer;
use crate::tally::Tally;

/// Pauses between two attempts to connect.
const BACKOFF: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// What was asked for besides the load.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How messages are received.
    pub receive: Receive,
    /// Between two polls.
    pub poll_every: Duration,
    /// Between two changes of the way.
    pub change_every: Duration,
    /// Whether sends have a base instead of a key.
    pub base: bool,
}

impl Plan {
    /// The way of receiving in words.
    pub fn words(&self) -> String {
        match self.receive {
            Receive::Poll => format!("polls every {} ms", self.poll_every.as_millis()),
            Receive::Longpoll => "long polls".to_owned(),
            Receive::Sse => "server-sent events".to_owned(),
            Receive::Ws => "WebSocket".to_owned(),
            Receive::WsJson => "WebSocket in JSON".to_owned(),
            Receive::Mix => {
                format!("all ways in turns of {} ms", self.change_every.as_millis())
            }
        }
    }
}

/// What a line is to be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The API.
    Http,
    /// The WebSocket.
    Ws(Subprotocol),
}

/// What a line that is connected speaks through, besides its socket.
pub enum Way {
    /// The API's HTTP, sealed or not.
    Http(Option<Box<Sealed>>),
    /// A WebSocket, which seals for itself.
    Ws(Connection),
}

/// Which of a user's two lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one for requests.
    Asks,
    /// The one that news come on.
    News,
}

/// All lines of one thread.
pub struct Net {
    /// What was asked for.
    pub plan: Plan,
    /// By place.
    pub askers: Vec<Asker>,
    /// By place.
    pub receivers: Vec<Receiver>,
    /// Two for each place: asks, news.
    pub lines: Vec<Line>,
    /// Whose a socket is.
    owners: Vec<usize>,
    queue: Vec<usize>,
    alarms: BinaryHeap<Reverse<(Instant, usize)>>,
    /// Lines to connect, each with the generation that it is for.
    pub wanted: Vec<(usize, u32, Want)>,
    /// For pauses and changes.
    pub random: Mixer,
    /// Bytes.
    pub tally: Tally,
    /// Why the last attempt to connect failed.
    pub trouble: Option<String>,
}

/// A connection that is made again when it breaks.
#[derive(Default)]
pub struct Line {
    /// How it stands.
    pub link: Link,
    /// Rises whenever what was connected, or is being connected, is of no use any more.
    generation: u32,
    /// What comes over HTTP.
    pub answers: Answers,
    /// What HTTP is sealed with; a WebSocket has its own.
    tls: Option<Box<Sealed>>,
    /// What comes over a WebSocket.
    pub ws: Option<Connection>,
    /// Nothing is asked before.
    pub not_before: Option<Instant>,
    backoff: Duration,
    connections: u64,
    is_queued: bool,
    alarm: Option<Instant>,
}

/// How a line stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// It does not.
    #[default]
    Down,
    /// It is being connected.
    Connecting,
    /// It does.
    Up(Key),
}

impl Line {
    /// Says something over HTTP.
    pub fn say(&mut self, request: &str, out: &mut BytesMut) {
        match &mut self.tls {
            None => out.extend_from_slice(request.as_bytes()),
            Some(tls) => tls.seal(request.as_bytes(), out),
        }
    }
}

/// The number of a line.
pub const fn line_of(place: usize, side: Side) -> usize {
    2 * place + side as usize
}

impl Net {
    /// Nobody is connected yet; all want to.
    pub fn new(plan: Plan, common: &Common<'_>, state: &State) -> Net {
        let mut random = fresh_random(state.users.len() as u64);
        let issued_at_s = unix_ms() / 1_000;
        let (mut askers, mut receivers) = (Vec::new(), Vec::new());
        for user in &state.users {
            let name = user_name(user.number);
            let token = common.key.mint(&name, issued_at_s, TOKEN_TTL_S);
            askers.push(Asker::new(&token));
            receivers.push(Receiver::new(plan, token, installation(&name, "http"), &mut random));
        }
        let lines: Vec<_> =
            std::iter::repeat_with(Line::default).take(2 * state.users.len()).collect();
        let mut net = Net {
            plan,
            askers,
            receivers,
            lines,
            owners: Vec::new(),
            queue: Vec::new(),
            alarms: BinaryHeap::new(),
            wanted: Vec::new(),
            random,
            tally: Tally::default(),
            trouble: None,
        };
        net.wake_all();
        net
    }

    /// A user has something to ask.
    pub fn wake(&mut self, place: usize) {
        self.queue(line_of(place, Side::Asks));
    }

    /// All look for something to do.
    pub fn wake_all(&mut self) {
        (0..self.lines.len()).for_each(|line| self.queue(line));
    }

    /// A line has its turn soon.
    pub fn queue(&mut self, line: usize) {
        if !std::mem::replace(&mut self.lines[line].is_queued, true) {
            self.queue.push(line);
        }
    }

    /// A line has its turn at this time, if not before.
    pub fn alarm(&mut self, line: usize, at: Instant) {
        if self.lines[line].alarm.is_none_or(|alarm| at < alarm) {
            self.lines[line].alarm = Some(at);
            self.alarms.push(Reverse((at, line)));
        }
    }

    /// Whether a line waits for its turn.
    pub fn is_any_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// When the next one has it.
    pub fn next_alarm(&self) -> Option<Instant> {
        self.alarms.peek().map(|Reverse((at, _))| *at)
    }

    /// Connections after the first ones.
    pub fn reconnects(&self) -> u64 {
        self.lines.iter().map(|line| line.connections.saturating_sub(1)).sum()
    }

    /// All that are due have their turn.
    pub fn speak(&mut self, state: &mut State, outs: &mut Outs, now: Instant) {
        while let Some(Reverse((at, line))) = self.alarms.peek().copied()
            && at <= now
        {
            self.alarms.pop();
            // An alarm that an earlier one replaced rings for nobody.
            if self.lines[line].alarm == Some(at) {
                self.lines[line].alarm = None;
                self.queue(line);
            }
        }
        let mut queue = std::mem::take(&mut self.queue);
        for line in queue.drain(..) {
            self.lines[line].is_queued = false;
            match line % 2 == Side::Asks as usize {
                true => self.ask(state, outs, line / 2, now),
                false => self.listen(state, outs, line / 2, now),
            }
        }
        if self.queue.is_empty() {
            self.queue = queue;
        }
    }

    /// Bytes came.
    pub fn heard(
        &mut self,
        state: &mut State,
        outs: &mut Outs,
        key: Key,
        bytes: &[u8],
        at: Instant,
    ) {
        let line = self.owners[key.index()];
        let mut tls = self.lines[line].tls.take();
        let (opened, bytes) = match &mut tls {
            None => (Ok(()), bytes),
            Some(tls) => (tls.open(bytes), tls.opened()),
        };
        self.tally.received_bytes += bytes.len() as u64;
        let heard = match line % 2 == Side::Asks as usize {
            true => self.answers(state, line / 2, bytes, at),
            false => self.news(state, line / 2, bytes, at),
        };
        if let Some(tls) = &mut tls
            && tls.has_output()
            && let Some(out) = outs.out(key)
        {
            tls.seal(&[], out);
        }
        self.lines[line].tls = tls;
        if let Err(reason) = opened.map_err(|error| error.to_string()).and(heard) {
            outs.close(key);
            self.down(line, reason, at);
        }
        self.queue(line);
    }

    /// A socket is no more.
    pub fn ended(&mut self, key: Key, reason: String, at: Instant) {
        self.down(self.owners[key.index()], reason, at);
    }

    /// Has a line connected, unless it is too early.
    pub fn connect(&mut self, line: usize, want: Want, now: Instant) {
        if let Some(at) = self.lines[line].not_before.filter(|at| *at > now) {
            return self.alarm(line, at);
        }
        self.lines[line].link = Link::Connecting;
        self.wanted.push((line, self.lines[line].generation, want));
    }

    /// Whether a connection that was made is still of use.
    pub fn is_wanted(&self, line: usize, generation: u32) -> bool {
        self.lines[line].generation == generation
    }

    /// A line is connected.
    pub fn connected(&mut self, line: usize, key: Key, way: Way) {
        if self.owners.len() <= key.index() {
            self.owners.resize(key.index() + 1, usize::MAX);
        }
        self.owners[key.index()] = line;
        let own = &mut self.lines[line];
        own.link = Link::Up(key);
        (own.tls, own.ws) = match way {
            Way::Http(tls) => (tls, None),
            Way::Ws(ws) => (None, Some(ws)),
        };
        own.connections += 1;
        self.queue(line);
    }

    /// A line could not be connected.
    pub fn unreachable(&mut self, line: usize, generation: u32, reason: String, now: Instant) {
        if self.is_wanted(line, generation) {
            self.down(line, reason, now);
        }
    }

    /// Ends a line's connection, or the attempt.
    pub fn hang_up(&mut self, line: usize, outs: &mut Outs) {
        if let Link::Up(key) = self.lines[line].link {
            outs.close(key);
        }
        self.drop_link(line);
    }

    /// An answer was taken: the node is there.
    pub fn is_well(&mut self, line: usize) {
        self.lines[line].backoff = Duration::ZERO;
    }

    /// Nothing is asked on this line for a while.
    pub fn pause(&mut self, line: usize, pause: Duration, now: Instant) {
        // Those who were told the same time do not come together.
        let pause = pause.mul_f64(1.0 + (self.random.draw() % 512) as f64 / 1024.0);
        self.lines[line].not_before = Some(now + pause);
        self.alarm(line, now + pause);
    }

    /// A line broke, or does not come to stand.
    pub fn down(&mut self, line: usize, reason: String, now: Instant) {
        self.trouble = Some(reason);
        self.drop_link(line);
        let backoff = (self.lines[line].backoff * 2).clamp(BACKOFF, BACKOFF_MAX);
        self.lines[line].backoff = backoff;
        self.pause(line, backoff, now);
    }

    fn drop_link(&mut self, line: usize) {
        let own = &mut self.lines[line];
        own.link = Link::Down;
        own.generation += 1;
        own.answers = Answers::default();
        own.tls = None;
        own.ws = None;
        match line % 2 == Side::Asks as usize {
            true => self.askers[line / 2].broke(),
            false => self.receivers[line / 2].broke(),
        }
        self.queue(line);
    }
}
