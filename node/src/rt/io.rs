//! The connections of one shard, as its handler uses them.

use std::io::{Error as IoError, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use futures_io::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;

use chatring_core::effect::Now;

use super::clock;
use super::stats::{ShardStats, count};

/// Bytes that a connection being closed may still send into the void.
const LINGER_BYTES_MAX: usize = 1024 * 1024;
/// How long a connection being closed may take to write out what is queued.
const FINISH_MS_MAX: u64 = 5_000;
/// How long the peer is listened to after our last byte: closing at once would send a reset, which
/// may destroy what the peer has not read yet.
const LINGER_MS_MAX: u64 = 1_000;
/// A connection of this shard. Never used twice within a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    slot: u32,
    generation: u32,
}

impl ConnId {
    /// The index of its place: small, and given to another connection after this one.
    pub const fn slot(self) -> usize {
        self.slot as usize
    }
}

/// Why a connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The peer ended its stream.
    ByPeer,
    /// Reading or writing failed.
    Broken(ErrorKind),
    /// The handler asked for it.
    ByUs,
    /// The handler panicked with it.
    Panicked,
}

/// A live connection on its way to another shard.
#[derive(Debug)]
pub struct Released {
    fd: OwnedFd,
    peer: SocketAddr,
    unsent: BytesMut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// Bytes flow both ways.
    Open,
    /// What is queued is still written; what comes is dropped.
    Finishing { until_ms: u64 },
    /// Our direction has ended; what comes is dropped until the peer ends its own.
    Lingering { until_ms: u64, bytes: usize },
    /// To be reported as closed.
    Gone(Closed),
}

#[derive(Debug)]
struct Conn {
    stream: TcpStream,
    peer: SocketAddr,
    life: Life,
    out: BytesMut,
    waker: Option<Waker>,
    dirty: bool,
    blocked: bool,
    paused: bool,
    again: bool,
    /// The handler is to be told that everything queued is written.
    caught_up: bool,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    conn: Option<Box<Conn>>,
}

/// The operations of a shard's handler on its connections, and its clock.
pub struct Io {
    now: Now,
    slots: Vec<Slot>,
    free: Vec<u32>,
    dirty: Vec<ConnId>,
    ending: Vec<ConnId>,
    turn: bool,
    turn_again: bool,
    flusher: Option<Waker>,
    accepting: Accepting,
    spawn: Box<dyn Fn(ConnId)>,
    stats: Arc<ShardStats>,
}

/// Whether new connections are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accepting {
    NotYet,
    Yes,
    NoMore,
}

/// What a connection's task does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    /// The handler is to be called for what was left over.
    Rest,
    /// So many bytes stand in the scratch buffer.
    Bytes(usize),
    /// Bytes came that nobody wants.
    Dropped,
    /// A slow peer has taken what was queued.
    Drained,
    /// It is closed: tell the handler.
    Closed(Closed),
    /// It is no connection of this shard any more.
    Gone,
}

impl Io {
    pub(super) fn new(spawn: Box<dyn Fn(ConnId)>, stats: Arc<ShardStats>) -> Io {
        Io {
            now: clock::now(),
            slots: Vec::new(),
            free: Vec::new(),
            dirty: Vec::new(),
            ending: Vec::new(),
            turn: false,
            turn_again: false,
            flusher: None,
            accepting: Accepting::NotYet,
            spawn,
            stats,
        }
    }

    /// What time it was when the present call into the handler began.
    pub fn now(&self) -> Now {
        self.now
    }

    /// Begins to take new connections.
    pub fn accept(&mut self) {
        if self.accepting == Accepting::NotYet {
            self.accepting = Accepting::Yes;
        }
    }

    /// Takes no more new connections, for good.
    pub fn stop_accepting(&mut self) {
        self.accepting = Accepting::NoMore;
    }

    /// Queues bytes; they are written at the end of the turn. Dropped if the connection is closing.
    pub fn send(&mut self, conn: ConnId, bytes: &[u8]) {
        if let Some(out) = self.out(conn) {
            out.extend_from_slice(bytes);
        }
    }

    /// Where to append bytes that are to be written; `None` if the connection is closing.
    pub fn out(&mut self, id: ConnId) -> Option<&mut BytesMut> {
        self.mark_turn();
        let slot = self.slots.get_mut(id.slot()).filter(|s| s.generation == id.generation)?;
        let conn = slot.conn.as_deref_mut().filter(|c| c.life == Life::Open)?;
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(id);
        }
        Some(&mut conn.out)
    }

    /// Bytes queued and not yet taken by the kernel.
    pub fn unsent(&self, id: ConnId) -> usize {
        self.conn_ref(id).map_or(0, |c| c.out.len())
    }

    /// Stops reading from a connection.
    pub fn pause(&mut self, id: ConnId) {
        if let Some(conn) = self.conn(id) {
            conn.paused = true;
        }
    }

    /// Goes on reading from a connection.
    pub fn resume(&mut self, id: ConnId) {
        if let Some(conn) = self.conn(id)
            && std::mem::take(&mut conn.paused)
        {
            conn.wake();
        }
    }

    /// Whether reading is stopped.
    pub fn is_paused(&self, id: ConnId) -> bool {
        self.conn_ref(id).is_some_and(|c| c.paused)
    }

    /// Writes what is queued (for 5 s at most), then closes. What comes meanwhile is dropped.
    pub fn finish(&mut self, id: ConnId) {
        let until_ms = self.now.mono_ms + FINISH_MS_MAX;
        let Some(conn) = self.conn(id).filter(|c| c.life == Life::Open) else { return };
        conn.life = Life::Finishing { until_ms };
        conn.wake();
        if !std::mem::replace(&mut conn.dirty, true) {
            self.dirty.push(id);
        }
        self.ending.push(id);
        self.mark_turn();
    }

    /// Closes at once; what is queued is lost.
    pub fn close(&mut self, id: ConnId) {
        self.end(id, Closed::ByUs);
    }

    /// Has [`received`](super::Handler::received) called without new bytes, for what came along
    /// with an adopted connection.
    pub fn call_again(&mut self, id: ConnId) {
        if let Some(conn) = self.conn(id) {
            conn.again = true;
            conn.wake();
        }
    }

    /// The same, asked for by the connection's own task, which looks at it after its pause. It must
    /// not be woken for it: a task that runs on before its pause is over sees it ended by the time
    /// that others took, and a few of them would keep the reactor from its turn.
    pub(super) fn rest_is_left(&mut self, id: ConnId) {
        if let Some(conn) = self.conn(id) {
            conn.again = true;
        }
    }

    /// Lets go of a live connection, which another shard may [`Io::adopt`]. `None` if it is
    /// closing.
    pub fn release(&mut self, id: ConnId) -> Option<Released> {
        let conn = self.conn(id).filter(|c| c.life == Life::Open)?;
        // SAFETY: the stream owns the descriptor and lives until after the borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(conn.stream.as_raw_fd()) };
        // The stream cannot give its descriptor away, and a poll of it may be under way.
        let fd = fd.try_clone_to_owned();
        let mut conn = self.take(id)?;
        conn.wake();
        let peer = conn.peer;
        match fd {
            Ok(fd) => Some(Released { fd, peer, unsent: std::mem::take(&mut conn.out) }),
            Err(error) => {
                tracing::warn!(%error, "a connection could not change its shard and is closed");
                None
            }
        }
    }

    /// Takes a connection over. The handler is not told that it was `opened`.
    pub fn adopt(&mut self, released: Released) -> ConnId {
        count(&self.stats.adopted, 1);
        let Released { fd, peer, unsent } = released;
        let id = self.insert(fd, peer);
        self.send(id, &unsent);
        id
    }

    /// Asks for one more end of turn after the present one.
    pub fn turn_again(&mut self) {
        self.turn_again = true;
        self.mark_turn();
    }

    /// How many connections there are, closing ones included.
    pub fn connections(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

/// For the shard's tasks.
impl Io {
    pub(super) fn refresh(&mut self) {
        self.now = clock::now();
    }

    /// Something happened in this turn: wakes the flusher, once a turn.
    pub(super) fn mark_turn(&mut self) {
        if !std::mem::replace(&mut self.turn, true)
            && let Some(waker) = &self.flusher
        {
            waker.wake_by_ref();
        }
    }

    /// The turn is over; answers whether its end asked for another one.
    pub(super) fn turn_over(&mut self) -> bool {
        self.turn = std::mem::take(&mut self.turn_again);
        self.turn
    }

    pub(super) fn accepting(&self) -> Accepting {
        self.accepting
    }

    pub(super) fn insert(&mut self, fd: OwnedFd, peer: SocketAddr) -> ConnId {
        // SAFETY: the descriptor is owned and passes to the stream.
        let stream = unsafe { TcpStream::from_raw_fd(fd.into_raw_fd()) };
        let conn = Box::new(Conn {
            stream,
            peer,
            life: Life::Open,
            out: BytesMut::new(),
            waker: None,
            dirty: false,
            blocked: false,
            paused: false,
            again: false,
            caught_up: false,
        });
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).expect("fewer descriptors than 2^32")
        });
        let place = &mut self.slots[slot as usize];
        place.conn = Some(conn);
        let id = ConnId { slot, generation: place.generation };
        (self.spawn)(id);
        id
    }

    /// What a connection's task is to do; registers its waker if there is nothing.
    pub(super) fn poll_conn(
        &mut self,
        cx: &mut Context<'_>,
        id: ConnId,
        scratch: &mut [u8],
    ) -> Poll<Ready> {
        let now_ms = self.now.mono_ms;
        let stats = self.stats.clone();
        let Some(conn) = self.conn(id) else { return Poll::Ready(Ready::Gone) };
        if conn.waker.as_ref().is_none_or(|w| !w.will_wake(cx.waker())) {
            conn.waker = Some(cx.waker().clone());
        }
        if conn.blocked {
            conn.write(cx, now_ms, &stats);
        }
        if std::mem::take(&mut conn.caught_up) {
            return Poll::Ready(Ready::Drained);
        }
        if let Life::Gone(why) = conn.life {
            self.take(id);
            return Poll::Ready(Ready::Closed(why));
        }
        let conn = self.conn(id).expect("it was there and not taken");
        if conn.paused && conn.life == Life::Open {
            return Poll::Pending;
        }
        if conn.again && conn.life == Life::Open {
            conn.again = false;
            return Poll::Ready(Ready::Rest);
        }
        conn.life = match Pin::new(&mut conn.stream).poll_read(cx, scratch) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(0)) => Life::Gone(Closed::ByPeer),
            Poll::Ready(Ok(read)) => match &mut conn.life {
                Life::Open => {
                    count(&stats.reads, 1);
                    count(&stats.bytes_in, read as u64);
                    return Poll::Ready(Ready::Bytes(read));
                }
                Life::Finishing { .. } => return Poll::Ready(Ready::Dropped),
                Life::Lingering { bytes, .. } if *bytes >= read => {
                    *bytes -= read;
                    return Poll::Ready(Ready::Dropped);
                }
                _ => Life::Gone(Closed::ByUs),
            },
            Poll::Ready(Err(error)) if error.kind() == ErrorKind::Interrupted => {
                return Poll::Ready(Ready::Dropped);
            }
            Poll::Ready(Err(error)) => Life::Gone(Closed::Broken(error.kind())),
        };
        let Some(Life::Gone(why)) = self.take(id).map(|c| c.life) else {
            return Poll::Ready(Ready::Gone);
        };
        Poll::Ready(Ready::Closed(why))
    }

    /// Waits for the end of a turn that has something in it.
    pub(super) fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.turn {
            return Poll::Ready(());
        }
        if self.flusher.as_ref().is_none_or(|w| !w.will_wake(cx.waker())) {
            self.flusher = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Writes each connection with queued bytes once.
    pub(super) fn flush(&mut self) {
        let now_ms = self.now.mono_ms;
        let stats = self.stats.clone();
        let mut dirty = std::mem::take(&mut self.dirty);
        for id in dirty.drain(..) {
            let Some(conn) = self.conn(id) else { continue };
            conn.dirty = false;
            if conn.blocked {
                continue;
            }
            let Some(waker) = conn.waker.clone() else {
                // Its task has not run yet: it writes when it does.
                conn.blocked = true;
                continue;
            };
            conn.write(&mut Context::from_waker(&waker), now_ms, &stats);
            if conn.life != Life::Open || conn.caught_up {
                conn.wake();
            }
        }
        self.dirty = dirty;
    }

    /// Ends connections that take too long to close.
    pub(super) fn expire(&mut self) {
        let now_ms = self.now.mono_ms;
        let mut ending = std::mem::take(&mut self.ending);
        ending.retain(|&id| match self.conn(id).map(|c| c.life) {
            Some(Life::Finishing { until_ms } | Life::Lingering { until_ms, .. }) => {
                let over = now_ms >= until_ms;
                if over {
                    self.end(id, Closed::ByUs);
                }
                !over
            }
            _ => false,
        });
        self.ending = ending;
    }

    pub(super) fn end(&mut self, id: ConnId, why: Closed) {
        if let Some(conn) = self.conn(id) {
            if !matches!(conn.life, Life::Gone(_)) {
                conn.life = Life::Gone(why);
            }
            conn.wake();
        }
    }

    /// Forgets a connection; its descriptor is closed.
    pub(super) fn drop_conn(&mut self, id: ConnId) {
        self.take(id);
    }

    /// Closes everything. Streams must go while the executor still runs.
    pub(super) fn clear(&mut self) {
        self.slots.clear();
        self.free.clear();
    }

    fn conn(&mut self, id: ConnId) -> Option<&mut Conn> {
        let slot = self.slots.get_mut(id.slot()).filter(|s| s.generation == id.generation)?;
        slot.conn.as_deref_mut()
    }

    fn conn_ref(&self, id: ConnId) -> Option<&Conn> {
        let slot = self.slots.get(id.slot()).filter(|s| s.generation == id.generation)?;
        slot.conn.as_deref()
    }

    fn take(&mut self, id: ConnId) -> Option<Box<Conn>> {
        let slot = self.slots.get_mut(id.slot()).filter(|s| s.generation == id.generation)?;
        let conn = slot.conn.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.slot);
        Some(conn)
    }
}

impl Conn {
    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// Writes until the kernel takes no more.
    fn write(&mut self, cx: &mut Context<'_>, now_ms: u64, stats: &ShardStats) {
        if matches!(self.life, Life::Gone(_) | Life::Lingering { .. }) {
            return;
        }
        while !self.out.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.out) {
                Poll::Ready(Ok(0)) => {
                    self.life = Life::Gone(Closed::Broken(ErrorKind::WriteZero));
                    return;
                }
                Poll::Ready(Ok(taken)) => {
                    count(&stats.writes, 1);
                    count(&stats.bytes_out, taken as u64);
                    self.out.advance(taken);
                }
                Poll::Ready(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => {
                    self.life = Life::Gone(Closed::Broken(error.kind()));
                    return;
                }
                Poll::Pending => {
                    self.blocked = true;
                    return;
                }
            }
        }
        // An idle connection holds no buffer.
        self.out = BytesMut::new();
        if let Life::Finishing { .. } = self.life {
            self.life = match self.shutdown() {
                Ok(()) => {
                    Life::Lingering { until_ms: now_ms + LINGER_MS_MAX, bytes: LINGER_BYTES_MAX }
                }
                Err(error) => Life::Gone(Closed::Broken(error.kind())),
            };
        }
        let slow = std::mem::take(&mut self.blocked) || self.paused;
        self.caught_up = slow && self.life == Life::Open;
    }

    fn shutdown(&self) -> Result<(), IoError> {
        // SAFETY: the stream owns the descriptor, which stays open during the call.
        match unsafe { libc::shutdown(self.stream.as_raw_fd(), libc::SHUT_WR) } {
            0 => Ok(()),
            _ => Err(IoError::last_os_error()),
        }
    }
}
