//! The sessions of one thread: each is the real client session, carried over real sockets through
//! any number of connections, and told what to do by a script.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::hash_map::RandomState;
use std::fmt::Display;
use std::hash::BuildHasher as _;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use chatring_bare::ring::{Input, Key, Outs};
use chatring_client::token::TokenKey;
use chatring_client::{CacheImage, Config, Disconnect, Event, Millis, Session, Wish};
use chatring_wire::{CloseCode, Cmid, InstallationId, Subprotocol};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::sleep_until;

use crate::connection::{Connection, Over};
use crate::limits::{CONNECTS_IN_FLIGHT_MAX, TOKEN_TTL_S};
use crate::ready::Ready;
use crate::stamp::{Mixer, mix};
use crate::tally::Tally;
use crate::turns::{Speakers, Turns};

/// Bytes that may wait for a socket before further frames wait in the session.
const WAITING_BYTES_MAX: usize = 256 * 1024;
/// Longest pause between two attempts to connect: a node that restarts is found again soon.
const BACKOFF_MS_MAX: u64 = 1_000;

/// What the sessions of a scenario do. Called by their tasks, one at a time.
pub trait Script {
    /// The session may be given something to do. Called often: whenever anything happened to it,
    /// and after [`Wakers::wake`].
    fn drive(&self, place: usize, session: &mut Session, now: Millis);
    /// Something happened. `at` is when its bytes were read.
    fn event(&self, place: usize, session: &mut Session, event: Event, at: Instant);
    /// The session will not connect any more: it is not let in, or does not trust the node.
    fn ended(&self, place: usize, why: &dyn Display);
    /// The node broke the protocol.
    fn protocol_fault(&self, place: usize, fault: &Over);
    /// Whether the session has done what it should: it says goodbye then.
    fn is_finished(&self, place: usize) -> bool;
}

/// Has sessions of a pool look for something to do.
pub struct Wakers {
    /// Those that are woken and had no turn yet.
    woken: RefCell<Vec<usize>>,
    sessions: Vec<Waker>,
    turns: RefCell<Weak<Turns>>,
}

#[derive(Default)]
struct Waker {
    is_listed: Cell<bool>,
    /// Between connections.
    is_asleep: Cell<bool>,
    alarm: Notify,
}

impl Wakers {
    /// For so many sessions.
    pub fn new(sessions: usize) -> Rc<Wakers> {
        let sessions = std::iter::repeat_with(Waker::default).take(sessions).collect();
        let (woken, turns) = (RefCell::default(), RefCell::default());
        Rc::new(Wakers { woken, sessions, turns })
    }

    /// Wakes one.
    pub fn wake(&self, place: usize) {
        let waker = &self.sessions[place];
        if !waker.is_listed.replace(true) {
            self.woken.borrow_mut().push(place);
            if let Some(turns) = self.turns.borrow().upgrade() {
                turns.wake();
            }
        }
        if waker.is_asleep.get() {
            waker.alarm.notify_one();
        }
    }

    /// Wakes all.
    pub fn wake_all(&self) {
        (0..self.sessions.len()).for_each(|place| self.wake(place));
    }

    fn is_any_woken(&self) -> bool {
        !self.woken.borrow().is_empty()
    }

    fn take(&self, woken: &mut Vec<usize>) {
        for place in self.woken.borrow_mut().drain(..) {
            self.sessions[place].is_listed.set(false);
            woken.push(place);
        }
    }

    async fn sleep_until(&self, place: usize, at: Instant) {
        let waker = &self.sessions[place];
        waker.is_asleep.set(true);
        tokio::select! {
            () = sleep_until(at.into()) => {}
            () = waker.alarm.notified() => {}
        }
        waker.is_asleep.set(false);
    }
}

/// The sessions of one thread, by their place in it, and what they share.
pub struct Pool<S> {
    /// The scenario's part.
    pub script: S,
    ready_file: PathBuf,
    origin: Instant,
    connects: Semaphore,
    wakers: Rc<Wakers>,
    turns: Rc<Turns>,
    /// Sessions that are carried.
    carried: Cell<usize>,
    is_running: Cell<bool>,
    /// Those that are connected.
    seats: Vec<RefCell<Option<Seat>>>,
    /// Whose a socket is.
    places: RefCell<Vec<usize>>,
    queue: RefCell<Queue>,
    tally: RefCell<Tally>,
    /// Whether any connection has stood.
    has_connected: Cell<bool>,
    failed_connects: Cell<u64>,
    last_failure: RefCell<Option<String>>,
}

/// A connected session.
struct Seat {
    session: Session,
    connection: Connection,
    key: Key,
    /// The earliest time for which an alarm is set.
    alarm: Option<Millis>,
    is_due: bool,
    over: oneshot::Sender<(Session, Disconnect)>,
}

/// Which sessions have their turn, now and later.
#[derive(Default)]
struct Queue {
    due: Vec<usize>,
    /// Those whose socket takes no more at present.
    full: Vec<usize>,
    alarms: BinaryHeap<Reverse<(Millis, usize)>>,
}

impl<S: Script + 'static> Pool<S> {
    /// A pool without its tasks. `wakers` has one entry for each session.
    ///
    /// # Errors
    /// The machine has no io_uring as needed: Linux 6.1.
    pub fn new(
        script: S,
        wakers: Rc<Wakers>,
        ready_file: &Path,
        origin: Instant,
    ) -> io::Result<Pool<S>> {
        let turns = Rc::new(Turns::new()?);
        wakers.turns.replace(Rc::downgrade(&turns));
        Ok(Pool {
            script,
            ready_file: ready_file.to_owned(),
            origin,
            connects: Semaphore::new(CONNECTS_IN_FLIGHT_MAX),
            turns,
            carried: Cell::new(0),
            is_running: Cell::new(false),
            seats: wakers.sessions.iter().map(|_| RefCell::new(None)).collect(),
            wakers,
            places: RefCell::default(),
            queue: RefCell::default(),
            tally: RefCell::default(),
            has_connected: Cell::new(false),
            failed_connects: Cell::new(0),
            last_failure: RefCell::new(None),
        })
    }

    /// What went over the sockets up to now.
    pub fn tally(&self) -> Tally {
        *self.tally.borrow()
    }

    /// How many attempts to connect failed, and why the last one did.
    pub fn failed_connects(&self) -> (u64, Option<String>) {
        (self.failed_connects.get(), self.last_failure.borrow().clone())
    }

    /// Carries a session until its script is through with it; gives it back. Within a `LocalSet`.
    pub async fn carry(self: Rc<Self>, place: usize, mut session: Session) -> Session {
        self.carried.set(self.carried.get() + 1);
        if !self.is_running.replace(true) {
            tokio::task::spawn_local(self.clone().run());
        }
        let mut random = fresh_random(place as u64);
        while !self.script.is_finished(place) {
            match session.wish() {
                Wish::Ended(end) => {
                    self.script.ended(place, &end);
                    break;
                }
                Wish::ConnectAt(at) if at > self.now() => {
                    self.wakers.sleep_until(place, self.instant(at)).await;
                }
                Wish::ConnectAt(_) => session = self.connect(place, session, &mut random).await,
                Wish::Connected => {
                    // Between connections this is none; saying so again keeps the contract.
                    session.handle_disconnected(self.now(), Disconnect::Lost, random.draw());
                }
            }
        }
        self.carried.set(self.carried.get() - 1);
        self.turns.wake();
        session
    }

    /// Takes turns for all while any is carried.
    async fn run(self: Rc<Self>) {
        self.turns.run(&*self).await;
        self.is_running.set(false);
    }

    async fn connect(&self, place: usize, mut session: Session, random: &mut Mixer) -> Session {
        let permit = self.connects.acquire().await.expect("the semaphore is never closed");
        let outcome = match self.url(&session) {
            Ok(url) => {
                let random = Mixer(random.draw());
                let opened = Connection::open(&url, Subprotocol::Binary, random).await;
                opened.map_err(|error| {
                    if error.is_distrust() && !self.has_connected.get() {
                        self.script.ended(place, &error);
                    }
                    describe(error)
                })
            }
            Err(reason) => Err(reason),
        };
        drop(permit);
        let how = match outcome {
            Ok((socket, connection)) => {
                self.has_connected.set(true);
                session.handle_connected(self.now());
                let ended = self.seat(place, session, socket, connection);
                let how;
                (session, how) = ended.await.expect("a seat is left with a word");
                how
            }
            Err(reason) => {
                self.failed_connects.set(self.failed_connects.get() + 1);
                self.last_failure.replace(Some(reason));
                Disconnect::Unreachable
            }
        };
        session.handle_disconnected(self.now(), how, random.draw());
        self.take_events(place, &mut session, Instant::now());
        session
    }

    fn seat(
        &self,
        place: usize,
        session: Session,
        socket: std::net::TcpStream,
        connection: Connection,
    ) -> oneshot::Receiver<(Session, Disconnect)> {
        let key = self.turns.add(socket);
        let mut places = self.places.borrow_mut();
        if places.len() <= key.index() {
            places.resize(key.index() + 1, usize::MAX);
        }
        places[key.index()] = place;
        let (over, ended) = oneshot::channel();
        let seat = Seat { session, connection, key, alarm: None, is_due: false, over };
        self.seats[place].replace(Some(seat));
        self.wakers.wake(place);
        ended
    }

    /// The end of a connection: the session goes back to its task.
    fn leave(&self, place: usize, how: Disconnect, outs: &mut Outs) {
        if let Some(seat) = self.seats[place].take() {
            outs.close(seat.key);
            // The task is gone only if the whole run is.
            let _ = seat.over.send((seat.session, how));
        }
    }

    fn receive(&self, place: usize, bytes: &[u8], at: Instant) -> Result<(), Over> {
        let mut seat = self.seats[place].borrow_mut();
        let Some(Seat { session, connection, is_due, .. }) = seat.as_mut() else { return Ok(()) };
        let now = self.millis(at);
        let tally = &mut self.tally.borrow_mut();
        let received = connection.receive(bytes, tally, |frame| session.handle_frame(now, frame));
        self.take_events(place, session, at);
        if !std::mem::replace(is_due, true) {
            self.queue.borrow_mut().due.push(place);
        }
        received
    }

    /// One round of the session's contract: events, something to do, frames. Says how it ends, if
    /// it does.
    fn round(&self, place: usize, outs: &mut Outs, at: Instant) -> Option<Disconnect> {
        let mut seat = self.seats[place].borrow_mut();
        let seat = seat.as_mut()?;
        let Seat { session, connection, key, .. } = seat;
        seat.is_due = false;
        let now = self.millis(at);
        if session.poll_timeout().is_some_and(|due| due <= now) {
            session.handle_timeout(now);
        }
        self.take_events(place, session, at);
        self.script.drive(place, session, now);
        let has_room = outs.queued(*key) < WAITING_BYTES_MAX;
        while has_room && let Some(frame) = session.poll_transmit() {
            if let Err(over) = connection.send(&frame) {
                return Some(self.how(place, &over));
            }
        }
        let finished = self.script.is_finished(place).then_some(CloseCode::Normal);
        let close = session.poll_close().or(finished);
        if let Some(code) = close
            && let Some(out) = outs.out(*key)
        {
            connection.say_goodbye(code, out, &mut self.tally.borrow_mut());
        } else if connection.has_output()
            && let Some(out) = outs.out(*key)
        {
            connection.flush(out, &mut self.tally.borrow_mut());
        }
        let mut queue = self.queue.borrow_mut();
        if !has_room {
            queue.full.push(place);
        }
        let next = session.poll_timeout();
        if let Some(at) = next.filter(|at| seat.alarm.is_none_or(|alarm| *at < alarm)) {
            seat.alarm = Some(at);
            queue.alarms.push(Reverse((at, place)));
        }
        close.map(|_| Disconnect::Lost)
    }

    /// Whose turn it is.
    fn take_due(&self, now: Millis) -> Vec<usize> {
        let mut queue = self.queue.borrow_mut();
        let Queue { due, full, alarms } = &mut *queue;
        let mut due = std::mem::take(due);
        let before = due.len();
        due.append(full);
        self.wakers.take(&mut due);
        while let Some(Reverse((at, place))) = alarms.peek().copied()
            && at <= now
        {
            alarms.pop();
            let mut seat = self.seats[place].borrow_mut();
            // An alarm that an earlier one replaced rings for nobody.
            if let Some(seat) = seat.as_mut().filter(|seat| seat.alarm == Some(at)) {
                seat.alarm = None;
                due.push(place);
            }
        }
        // Those who are in the queue by themselves are not in it twice.
        let mut at = 0;
        due.retain(|place| {
            at += 1;
            let mut seat = self.seats[*place].borrow_mut();
            let seat = seat.as_mut();
            seat.is_some_and(|seat| at <= before || !std::mem::replace(&mut seat.is_due, true))
        });
        due
    }

    fn take_events(&self, place: usize, session: &mut Session, at: Instant) {
        while let Some(event) = session.poll_event() {
            self.script.event(place, session, event, at);
        }
        // Nothing is kept: every run starts from no local state.
        session.poll_writes();
    }

    fn how(&self, place: usize, over: &Over) -> Disconnect {
        match over {
            Over::Closed(Some(code)) => Disconnect::Closed(*code),
            Over::Closed(None) | Over::Lost(_) => Disconnect::Lost,
            Over::Tls(_) | Over::WebSocket(_) | Over::Wire(_) => {
                self.script.protocol_fault(place, over);
                Disconnect::Lost
            }
        }
    }

    /// Where the node listens now: a restart may have moved it.
    fn url(&self, session: &Session) -> Result<String, String> {
        match session.moved_to() {
            Some(url) => Ok(url.to_owned()),
            None => Ready::read(&self.ready_file).map(|ready| ready.ws).map_err(describe),
        }
    }

    fn now(&self) -> Millis {
        self.millis(Instant::now())
    }

    fn millis(&self, at: Instant) -> Millis {
        Millis(at.saturating_duration_since(self.origin).as_millis() as u64)
    }

    fn instant(&self, at: Millis) -> Instant {
        self.origin + Duration::from_millis(at.0)
    }
}

impl<S: Script + 'static> Speakers for Pool<S> {
    fn input(&self, outs: &mut Outs, key: Key, input: Input<'_>, at: Instant) {
        let place = self.places.borrow()[key.index()];
        let received = match input {
            Input::Bytes(bytes) => self.receive(place, bytes, at),
            Input::Ended(Some(error)) => Err(error.into()),
            Input::Ended(None) => Err(Over::Closed(None)),
            Input::Accepted => Ok(()),
        };
        let Err(over) = received else { return };
        if let Some(seat) = self.seats[place].borrow_mut().as_mut()
            && let Some(out) = outs.out(key)
        {
            // The answer to a close.
            seat.connection.flush(out, &mut self.tally.borrow_mut());
        }
        self.leave(place, self.how(place, &over), outs);
    }

    fn speak(&self, outs: &mut Outs, now: Instant) {
        let mut due = self.take_due(self.millis(now));
        for place in due.drain(..) {
            if let Some(how) = self.round(place, outs, now) {
                self.leave(place, how, outs);
            }
        }
        let queued = &mut self.queue.borrow_mut().due;
        if queued.is_empty() {
            // Its memory is for the next turn.
            *queued = due;
        }
    }

    fn wants_turn(&self) -> bool {
        self.wakers.is_any_woken() || !self.queue.borrow().due.is_empty()
    }

    fn deadline(&self) -> Option<Instant> {
        self.queue.borrow().alarms.peek().map(|Reverse((at, _))| self.instant(*at))
    }

    fn is_over(&self) -> bool {
        self.carried.get() == 0
    }

    fn failed(&self, outs: &mut Outs, error: &io::Error) {
        self.last_failure.replace(Some(describe(error)));
        (0..self.seats.len()).for_each(|place| self.leave(place, Disconnect::Lost, outs));
    }
}

/// A session without local state for the user `subject`. `part` names the scenario: the same user
/// keeps one installation in each, from run to run.
pub fn new_session(key: &TokenKey, subject: &str, part: &str, mut config: Config) -> Session {
    let issued_at_s = unix_ms() / 1_000;
    config.token = key.mint(subject, issued_at_s, TOKEN_TTL_S);
    config.backoff_ms_max = BACKOFF_MS_MAX;
    config.persist = false;
    Session::new(config, CacheImage::new(installation(subject, part)))
}

/// The installation of the user `subject` in the scenario `part`, the same from run to run.
pub fn installation(subject: &str, part: &str) -> InstallationId {
    let mut installation = [0; 16];
    let mut hash = 0;
    for byte in part.bytes().chain([0]).chain(subject.bytes()) {
        hash = mix(hash ^ u64::from(byte)).wrapping_add(1);
    }
    installation[..8].copy_from_slice(&hash.to_be_bytes());
    installation[8..].copy_from_slice(&mix(hash).to_be_bytes());
    InstallationId(installation)
}

/// A generator that starts somewhere else in every process.
pub fn fresh_random(salt: u64) -> Mixer {
    Mixer(RandomState::new().hash_one((salt, unix_ms(), std::process::id())))
}

/// A new message id (UUIDv7).
pub fn new_cmid(random: &mut Mixer) -> Cmid {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(unix_ms() << 16 | random.draw() & 0xffff).to_be_bytes());
    bytes[8..].copy_from_slice(&random.draw().to_be_bytes());
    bytes[6] = 0x70 | bytes[6] & 0x0f;
    bytes[8] = 0x80 | bytes[8] & 0x3f;
    Cmid(bytes)
}

/// The wall clock: Unix time in milliseconds.
pub fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

fn describe(error: impl Display) -> String {
    error.to_string()
}
