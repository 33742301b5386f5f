//! The sessions of one thread: each is the real client session, carried over real sockets through
//! any number of connections, and told what to do by a script.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use chatring_client::token::TokenKey;
use chatring_client::{CacheImage, Config, Disconnect, End, Event, Millis, Session, Wish};
use chatring_wire::{CloseCode, Cmid, InstallationId};
use tokio::sync::{Notify, Semaphore};
use tokio::time::sleep_until;

use crate::connection::{Connection, Over};
use crate::limits::{CONNECTS_IN_FLIGHT_MAX, TOKEN_TTL_S};
use crate::ready::Ready;
use crate::stamp::{Mixer, mix};
use crate::tally::Tally;

/// Bytes read from a socket at once.
const SCRATCH_BYTES: usize = 64 * 1024;
/// Longest pause between two attempts to connect: a node that restarts is found again soon.
const BACKOFF_MS_MAX: u64 = 1_000;
/// How often a session without a deadline looks around.
const IDLE_LOOK: Duration = Duration::from_secs(3_600);

/// What the sessions of a scenario do. Called by their tasks, one at a time.
pub trait Script {
    /// The session may be given something to do. Called often: whenever anything happened to it,
    /// and after [`Wakers::wake`].
    fn drive(&self, place: usize, session: &mut Session, now: Millis);
    /// Something happened. `at` is when its bytes were read.
    fn event(&self, place: usize, session: &mut Session, event: Event, at: Instant);
    /// The session will not connect any more.
    fn ended(&self, place: usize, end: &End);
    /// The node broke the protocol.
    fn protocol_fault(&self, place: usize, fault: &Over);
    /// Whether the session has done what it should: it says goodbye then.
    fn is_finished(&self, place: usize) -> bool;
}

/// Has tasks of a pool look for something to do.
#[derive(Debug)]
pub struct Wakers(Vec<Notify>);

impl Wakers {
    /// For so many sessions.
    pub fn new(sessions: usize) -> Rc<Wakers> {
        Rc::new(Wakers(std::iter::repeat_with(Notify::new).take(sessions).collect()))
    }

    /// Wakes one.
    pub fn wake(&self, place: usize) {
        self.0[place].notify_one();
    }

    /// Wakes all.
    pub fn wake_all(&self) {
        self.0.iter().for_each(Notify::notify_one);
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
    scratch: RefCell<Vec<u8>>,
    tally: Cell<Tally>,
    failed_connects: Cell<u64>,
    last_failure: RefCell<Option<String>>,
}

impl<S: Script> Pool<S> {
    /// A pool without its tasks. `wakers` has one entry for each session.
    pub fn new(script: S, wakers: Rc<Wakers>, ready_file: &Path, origin: Instant) -> Pool<S> {
        Pool {
            script,
            ready_file: ready_file.to_owned(),
            origin,
            connects: Semaphore::new(CONNECTS_IN_FLIGHT_MAX),
            wakers,
            scratch: RefCell::new(vec![0; SCRATCH_BYTES]),
            tally: Cell::new(Tally::default()),
            failed_connects: Cell::new(0),
            last_failure: RefCell::new(None),
        }
    }

    /// What went over the sockets up to now.
    pub fn tally(&self) -> Tally {
        self.tally.get()
    }

    /// How many attempts to connect failed, and why the last one did.
    pub fn failed_connects(&self) -> (u64, Option<String>) {
        (self.failed_connects.get(), self.last_failure.borrow().clone())
    }

    /// Carries a session until its script is through with it; gives it back.
    pub async fn carry(self: Rc<Self>, place: usize, mut session: Session) -> Session {
        let mut random = fresh_random(place as u64);
        while !self.script.is_finished(place) {
            match session.wish() {
                Wish::Ended(end) => {
                    self.script.ended(place, &end);
                    break;
                }
                Wish::ConnectAt(at) if at > self.now() => tokio::select! {
                    () = sleep_until(self.instant(at).into()) => {}
                    () = self.wakers.0[place].notified() => {}
                },
                Wish::ConnectAt(_) => self.connect(place, &mut session, &mut random).await,
                Wish::Connected => {
                    // Between connections this is none; saying so again keeps the contract.
                    session.handle_disconnected(self.now(), Disconnect::Lost, random.draw());
                }
            }
        }
        session
    }

    async fn connect(&self, place: usize, session: &mut Session, random: &mut Mixer) {
        let permit = self.connects.acquire().await.expect("the semaphore is never closed");
        let outcome = match self.url(session) {
            Ok(url) => Connection::open(&url, Mixer(random.draw())).await.map_err(describe),
            Err(reason) => Err(reason),
        };
        drop(permit);
        let how = match outcome {
            Ok(connection) => {
                session.handle_connected(self.now());
                self.converse(place, session, connection).await
            }
            Err(reason) => {
                self.failed_connects.set(self.failed_connects.get() + 1);
                self.last_failure.replace(Some(reason));
                Disconnect::Unreachable
            }
        };
        session.handle_disconnected(self.now(), how, random.draw());
        self.take_events(place, session);
    }

    /// Over one connection, from its start to its end.
    async fn converse(
        &self,
        place: usize,
        session: &mut Session,
        mut connection: Connection,
    ) -> Disconnect {
        loop {
            match self.round(place, session, &mut connection) {
                Ok(None) if self.script.is_finished(place) => {
                    self.with_tally(|tally| connection.say_goodbye(CloseCode::Normal, tally));
                    return Disconnect::Lost;
                }
                Ok(None) => {}
                Ok(Some(code)) => {
                    self.with_tally(|tally| connection.say_goodbye(code, tally));
                    return Disconnect::Lost;
                }
                Err(over) => return self.how(place, &over),
            }
            let deadline = match session.poll_timeout() {
                Some(at) => self.instant(at),
                None => Instant::now() + IDLE_LOOK,
            };
            let received = tokio::select! {
                biased;
                ready = connection.ready() => match ready {
                    Ok(ready) if ready.is_readable() || ready.is_read_closed() => {
                        self.receive(session, &mut connection)
                    }
                    Ok(_writable) => Ok(()),
                    Err(error) => Err(error.into()),
                },
                () = self.wakers.0[place].notified() => Ok(()),
                () = sleep_until(deadline.into()) => Ok(()),
            };
            if let Err(over) = received {
                self.take_events(place, session);
                return self.how(place, &over);
            }
        }
    }

    /// One round of the session's contract: events, something to do, frames.
    fn round(
        &self,
        place: usize,
        session: &mut Session,
        connection: &mut Connection,
    ) -> Result<Option<CloseCode>, Over> {
        let now = self.now();
        if session.poll_timeout().is_some_and(|at| at <= now) {
            session.handle_timeout(now);
        }
        self.take_events(place, session);
        self.script.drive(place, session, now);
        while connection.has_room()
            && let Some(frame) = session.poll_transmit()
        {
            connection.send(&frame)?;
        }
        self.with_tally(|tally| connection.flush(tally))?;
        Ok(session.poll_close())
    }

    fn receive(&self, session: &mut Session, connection: &mut Connection) -> Result<(), Over> {
        let now = self.now();
        let mut scratch = self.scratch.borrow_mut();
        self.with_tally(|tally| {
            connection.receive(&mut scratch, tally, |frame| session.handle_frame(now, frame))
        })
    }

    fn take_events(&self, place: usize, session: &mut Session) {
        let at = Instant::now();
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
            Over::WebSocket(_) | Over::Wire(_) => {
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

    fn with_tally<R>(&self, change: impl FnOnce(&mut Tally) -> R) -> R {
        let mut tally = self.tally.get();
        let result = change(&mut tally);
        self.tally.set(tally);
        result
    }

    fn now(&self) -> Millis {
        Millis(self.origin.elapsed().as_millis() as u64)
    }

    fn instant(&self, at: Millis) -> Instant {
        self.origin + Duration::from_millis(at.0)
    }
}

/// A session without local state for the user `subject`. `part` names the scenario: the same user
/// keeps one installation in each, from run to run.
pub fn new_session(key: &TokenKey, subject: &str, part: &str, mut config: Config) -> Session {
    let issued_at_s = unix_ms() / 1_000;
    config.token = key.mint(subject, issued_at_s, TOKEN_TTL_S);
    config.backoff_ms_max = BACKOFF_MS_MAX;
    config.persist = false;
    let mut installation = [0; 16];
    let mut hash = 0;
    for byte in part.bytes().chain([0]).chain(subject.bytes()) {
        hash = mix(hash ^ u64::from(byte)).wrapping_add(1);
    }
    installation[..8].copy_from_slice(&hash.to_be_bytes());
    installation[8..].copy_from_slice(&mix(hash).to_be_bytes());
    Session::new(config, CacheImage::new(InstallationId(installation)))
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

fn describe(error: impl std::fmt::Display) -> String {
    error.to_string()
}
