//! Carries a session over TCP and WebSocket: one tokio task, behind a handle with bounded queues.

mod socket;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use chatring_wire::frame::MessageKind;
use chatring_wire::{Cid, CloseCode, Cmid, InstallationId, Subprotocol};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::ClientConfig;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cache::{CacheError, CacheFile, CacheImage};
use crate::session::{Config, Disconnect, Event, Millis, SendError, Session, Wish};
use socket::Socket;
pub use socket::{ConnectError, UrlError, WsUrl};

/// Events that may wait for the application; above it the driver stops reading the socket.
pub const EVENTS_MAX: usize = 1024;
/// Calls of the application that may wait for the driver.
pub const CALLS_MAX: usize = 64;
/// How long a close, or what is left to send before it, may take.
const CLOSE_MS_MAX: u64 = 1_000;

/// Where to connect, and how.
#[derive(Debug)]
pub struct Options {
    /// URL of a node.
    pub url: WsUrl,
    /// What to speak.
    pub subprotocol: Subprotocol,
    /// Choices of the session.
    pub config: Config,
    /// Whom to trust at a `wss` URL; without it those cannot be reached.
    pub tls: Option<Arc<ClientConfig>>,
    /// The cache on disk with what it held, or none: then a new installation without memory.
    pub cache: Option<(CacheFile, CacheImage)>,
}

/// The application's end of a session that a task drives.
///
/// Dropping it ends the session; what is in a persistent outbox goes out the next time.
#[derive(Debug)]
pub struct Client {
    calls: mpsc::Sender<Call>,
    events: mpsc::Receiver<Event>,
    bytes: Arc<Counters>,
    task: JoinHandle<Result<(), CacheError>>,
}

/// The session is over: the task has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the session's task has ended")]
pub struct Gone;

/// Bytes on the sockets of a client so far, handshakes and headers included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketBytes {
    /// Received.
    pub received: u64,
    /// Sent.
    pub sent: u64,
}

#[derive(Debug, Default)]
struct Counters {
    received: AtomicU64,
    sent: AtomicU64,
}

type Call = Box<dyn FnOnce(&mut Session, Millis) + Send>;

impl Client {
    /// Starts a session in a task of the current runtime.
    pub fn spawn(options: Options) -> Client {
        let (calls, calls_out) = mpsc::channel(CALLS_MAX);
        let (events_in, events) = mpsc::channel(EVENTS_MAX);
        let bytes = Arc::new(Counters::default());
        let task = tokio::spawn(Driver::new(options, calls_out, events_in, bytes.clone()).run());
        Client { calls, events, bytes, task }
    }

    /// Runs a call on the session, for example `|session, now| session.open(now, with)`.
    ///
    /// # Errors
    /// The task has ended.
    pub async fn with<R: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Session, Millis) -> R + Send + 'static,
    ) -> Result<R, Gone> {
        let (answer, answered) = oneshot::channel();
        let call: Call = Box::new(move |session, now| {
            // Nobody waits any more if the caller was cancelled; that is its right.
            let _ = answer.send(call(session, now));
        });
        self.calls.send(call).await.map_err(|_| Gone)?;
        answered.await.map_err(|_| Gone)
    }

    /// Puts a message into the outbox under a new cmid, which the outcome will carry.
    ///
    /// # Errors
    /// The task has ended (outer), or the message was not taken (inner).
    pub async fn send(
        &self,
        cid: Cid,
        kind: MessageKind,
        body: Bytes,
    ) -> Result<Result<Cmid, SendError>, Gone> {
        let cmid = new_cmid();
        let call = move |session: &mut Session, now| {
            session.send(now, cid, kind, body, cmid).map(|()| cmid)
        };
        self.with(call).await
    }

    /// The next event; `None` once the task has ended. Cancel safe.
    pub async fn next_event(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Bytes on the sockets so far.
    pub fn socket_bytes(&self) -> SocketBytes {
        SocketBytes {
            received: self.bytes.received.load(Ordering::Relaxed),
            sent: self.bytes.sent.load(Ordering::Relaxed),
        }
    }

    /// Ends the session with a close frame and waits until that is done.
    ///
    /// # Errors
    /// The cache file failed, now or before.
    pub async fn close(self) -> Result<(), CacheError> {
        drop((self.calls, self.events));
        match self.task.await {
            Ok(outcome) => outcome,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_cancelled) => Ok(()),
        }
    }
}

/// A new message id: UUIDv7 of the time now.
pub fn new_cmid() -> Cmid {
    let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis());
    let mut id: [u8; 16] = random();
    id[..6].copy_from_slice(&(unix_ms as u64).to_be_bytes()[2..]);
    id[6] = 0x70 | id[6] & 0x0f;
    id[8] = 0x80 | id[8] & 0x3f;
    Cmid(id)
}

/// A new installation id.
pub fn new_installation() -> InstallationId {
    InstallationId(random())
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the system's random source works");
    bytes
}

/// The task's side.
struct Driver {
    options: Options,
    session: Session,
    file: Option<Arc<CacheFile>>,
    calls: mpsc::Receiver<Call>,
    events: mpsc::Sender<Event>,
    /// Events that found no room.
    waiting: VecDeque<Event>,
    bytes: Arc<Counters>,
    start: Instant,
}

/// Why a driver stops.
enum Stop {
    /// The application let go of its handle.
    LetGo,
    /// The cache file failed.
    Cache(CacheError),
}

/// What a connected driver waited for.
enum Turn {
    Io(Result<(), Disconnect>),
    Called(Option<Call>),
    Timeout,
    Room,
}

impl Driver {
    fn new(
        mut options: Options,
        calls: mpsc::Receiver<Call>,
        events: mpsc::Sender<Event>,
        bytes: Arc<Counters>,
    ) -> Driver {
        let (file, image) = match options.cache.take() {
            Some((file, image)) => (Some(Arc::new(file)), image),
            None => (None, CacheImage::new(new_installation())),
        };
        let config = Config { persist: file.is_some(), ..options.config.clone() };
        let session = Session::new(config, image);
        let (waiting, start) = (VecDeque::new(), Instant::now());
        Driver { options, session, file, calls, events, waiting, bytes, start }
    }

    async fn run(mut self) -> Result<(), CacheError> {
        match self.live().await {
            Stop::LetGo => Ok(()),
            Stop::Cache(error) => Err(error),
        }
    }

    async fn live(&mut self) -> Stop {
        loop {
            if let Err(stop) = self.settle().await {
                return stop;
            }
            let step = match self.session.wish() {
                Wish::ConnectAt(at) if at <= self.now() => self.connect().await,
                Wish::ConnectAt(at) => self.rest(Some(at)).await,
                Wish::Ended(_) => self.rest(None).await,
                Wish::Connected => self.disconnected(Disconnect::Lost).await,
            };
            if let Err(stop) = step {
                return stop;
            }
        }
    }

    /// Waits without a connection.
    async fn rest(&mut self, until: Option<Millis>) -> Result<(), Stop> {
        let until = until.map(|at| self.instant(at));
        let full = !self.waiting.is_empty();
        let call = tokio::select! {
            () = sleep_until(until) => return Ok(()),
            room = self.events.reserve(), if full => {
                give(room.ok(), &mut self.waiting);
                return Ok(());
            }
            call = self.calls.recv() => call,
        };
        self.call(call)
    }

    async fn connect(&mut self) -> Result<(), Stop> {
        let moved = self.session.moved_to().and_then(|url| url.parse::<WsUrl>().ok());
        let url = moved.unwrap_or_else(|| self.options.url.clone());
        let tls = self.options.tls.as_ref();
        let opening = Socket::open(&url, tls, self.options.subprotocol, self.bytes.clone());
        let mut socket = match opening.await {
            Ok(socket) => socket,
            Err(_error) => return self.disconnected(Disconnect::Unreachable).await,
        };
        let now = self.now();
        self.session.handle_connected(now);
        let how = loop {
            self.settle().await?;
            let mut fits = true;
            while let Some(frame) = self.session.poll_transmit() {
                fits &= socket.push(&frame).is_ok();
            }
            if !fits {
                // The session keeps the protocol's bounds but for the token, which is the caller's.
                break Disconnect::Closed(CloseCode::Never.number());
            }
            if let Some(code) = self.session.poll_close() {
                let _ = socket.close(code, Duration::from_millis(CLOSE_MS_MAX)).await;
                break Disconnect::Lost;
            }
            match self.turn(&mut socket).await {
                Turn::Io(Ok(())) => {
                    let now = self.now();
                    while let Some(frame) = socket.next_frame() {
                        self.session.handle_frame(now, frame);
                    }
                }
                Turn::Io(Err(how)) => {
                    // What came before the end counts.
                    let now = self.now();
                    while let Some(frame) = socket.next_frame() {
                        self.session.handle_frame(now, frame);
                    }
                    break how;
                }
                Turn::Called(None) => {
                    let _ =
                        socket.close(CloseCode::Normal, Duration::from_millis(CLOSE_MS_MAX)).await;
                    return Err(Stop::LetGo);
                }
                Turn::Called(call) => self.call(call)?,
                Turn::Timeout => {
                    let now = self.now();
                    self.session.handle_timeout(now);
                }
                Turn::Room => {}
            }
        };
        self.disconnected(how).await
    }

    /// Waits until there is something to do. Does not read while events wait for room.
    async fn turn(&mut self, socket: &mut Socket) -> Turn {
        let until = self.session.poll_timeout().map(|at| self.instant(at));
        let full = !self.waiting.is_empty();
        let call_room = socket.has_room();
        tokio::select! {
            io = socket.exchange(!full) => Turn::Io(io),
            call = self.calls.recv(), if call_room => Turn::Called(call),
            room = self.events.reserve(), if full => {
                give(room.ok(), &mut self.waiting);
                Turn::Room
            }
            () = sleep_until(until) => Turn::Timeout,
        }
    }

    async fn disconnected(&mut self, how: Disconnect) -> Result<(), Stop> {
        let now = self.now();
        self.session.handle_disconnected(now, how, u64::from_be_bytes(random()));
        self.settle().await
    }

    fn call(&mut self, call: Option<Call>) -> Result<(), Stop> {
        let call = call.ok_or(Stop::LetGo)?;
        let now = self.now();
        call(&mut self.session, now);
        Ok(())
    }

    /// Takes events, then makes what they and the calls changed durable.
    async fn settle(&mut self) -> Result<(), Stop> {
        while let Some(event) = self.session.poll_event() {
            self.waiting.push_back(event);
        }
        while !self.waiting.is_empty() {
            match self.events.try_reserve() {
                Ok(room) => give(Some(room), &mut self.waiting),
                Err(mpsc::error::TrySendError::Full(())) => break,
                Err(mpsc::error::TrySendError::Closed(())) => self.waiting.clear(),
            }
        }
        let writes = self.session.poll_writes();
        let Some(file) = self.file.clone().filter(|_| !writes.is_empty()) else { return Ok(()) };
        let writing = tokio::task::spawn_blocking(move || file.write(&writes));
        match writing.await {
            Ok(outcome) => outcome.map_err(Stop::Cache),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_cancelled) => Err(Stop::LetGo),
        }
    }

    fn now(&self) -> Millis {
        Millis(self.start.elapsed().as_millis() as u64)
    }

    fn instant(&self, at: Millis) -> Instant {
        self.start + Duration::from_millis(at.0)
    }
}

fn give(room: Option<mpsc::Permit<'_, Event>>, waiting: &mut VecDeque<Event>) {
    match room {
        Some(room) => {
            if let Some(event) = waiting.pop_front() {
                room.send(event);
            }
        }
        None => waiting.clear(),
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
