//! The connections of one shard, as its handler uses them.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use rustls::ServerConfig;

use chatring_core::effect::Now;

use super::clock;
use super::conn::{Closed, Conn, ConnId, Life, Released, Sock, Table};
use super::ring::RingNet;
use super::stats::{ShardStats, count};
use super::streams::StreamNet;
use super::tls::ShardTls;

/// How long a connection being closed may take to write out what is queued.
const FINISH_MS_MAX: u64 = 5_000;

/// The operations of a shard's handler on its connections, and its clock.
pub struct Io {
    pub(super) now: Now,
    pub(super) conns: Table,
    pub(super) net: Net,
    pub(super) stats: Arc<ShardStats>,
    /// If the connections speak it.
    pub(super) tls: Option<ShardTls>,
    dirty: Vec<ConnId>,
    ending: Vec<ConnId>,
    turn: bool,
    turn_again: bool,
    pub(super) post_expected: bool,
    /// Whether there was something to do all the time that the shard last stayed in its ring.
    pub(super) busy: bool,
    /// See [`Io::is_pressed`].
    pub(super) pressed: bool,
    flusher: Option<Waker>,
    accepting: Accepting,
}

/// What moves the bytes.
pub(super) enum Net {
    Streams(StreamNet),
    Ring(Box<RingNet>),
}

/// Whether new connections are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accepting {
    NotYet,
    Yes,
    NoMore,
}

impl Io {
    pub(super) fn new(net: Net, stats: Arc<ShardStats>, tls: Option<Arc<ServerConfig>>) -> Io {
        Io {
            now: clock::now(),
            conns: Table::default(),
            net,
            stats,
            tls: tls.map(ShardTls::new),
            dirty: Vec::new(),
            ending: Vec::new(),
            turn: false,
            turn_again: false,
            post_expected: false,
            busy: false,
            pressed: false,
            flusher: None,
            accepting: Accepting::NotYet,
        }
    }

    /// What time it was when the present call into the handler began (with the ring driver: when
    /// the shard last took from the kernel).
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
        let conn = self.conns.get_mut(id).filter(|c| c.life == Life::Open)?;
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(id);
        }
        Some(conn.queue())
    }

    /// Bytes queued and not yet taken by the kernel.
    pub fn unsent(&self, id: ConnId) -> usize {
        let queued = self.conns.get(id).map_or(0, Conn::queued);
        match &self.net {
            Net::Streams(_) => queued,
            Net::Ring(net) => queued + net.in_flight(id),
        }
    }

    /// Stops reading from a connection. What the kernel has given already is kept until
    /// [`Io::resume`].
    pub fn pause(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.paused = true;
        }
    }

    /// Goes on reading from a connection.
    pub fn resume(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id)
            && std::mem::take(&mut conn.paused)
        {
            self.stir(id);
        }
    }

    /// Whether reading is stopped.
    pub fn is_paused(&self, id: ConnId) -> bool {
        self.conns.get(id).is_some_and(|c| c.paused)
    }

    /// Writes what is queued (for 5 s at most), then closes. What comes meanwhile is dropped.
    pub fn finish(&mut self, id: ConnId) {
        let until_ms = self.now.mono_ms + FINISH_MS_MAX;
        let Some(conn) = self.conns.get_mut(id).filter(|c| c.life == Life::Open) else { return };
        conn.life = Life::Finishing { until_ms };
        if !std::mem::replace(&mut conn.dirty, true) {
            self.dirty.push(id);
        }
        self.ending.push(id);
        self.stir(id);
        self.mark_turn();
    }

    /// Closes at once; what is queued is lost.
    pub fn close(&mut self, id: ConnId) {
        self.end(id, Closed::ByUs);
    }

    /// Has [`received`](super::Handler::received) called without new bytes, for what came along
    /// with an adopted connection.
    pub fn call_again(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.again = true;
            self.stir(id);
        }
    }

    /// Lets go of a live connection, which another shard may [`Io::adopt`]. `None` if it is
    /// closing.
    pub fn release(&mut self, id: ConnId) -> Option<Released> {
        self.conns.get_mut(id).filter(|c| c.life == Life::Open)?.seal();
        match &self.net {
            Net::Streams(_) => self.release_stream(id),
            Net::Ring(_) => self.release_ring(id),
        }
    }

    /// Takes a connection over. The handler is not told that it was `opened`.
    pub fn adopt(&mut self, released: Released) -> ConnId {
        count(&self.stats.adopted, 1);
        let Released { fd, unsent, unread, tls } = released;
        let id = self.insert(fd);
        if let Some(conn) = self.conns.get_mut(id) {
            // It is sealed already, if it must be.
            conn.out = unsent;
            conn.tls = tls;
        }
        self.mark_turn();
        self.mark_dirty(id);
        if !unread.is_empty() {
            self.keep_unread(id, unread);
        }
        id
    }

    /// Whether the inbox is about to get what the handler waits for. If so, what comes from sockets
    /// may wait for that, for a moment, so that the next turn has more in it.
    pub fn expect_post(&mut self, expected: bool) {
        self.post_expected = expected;
    }

    /// Whether the shard has more to do than time, so that what can be put off becomes more at
    /// once. A turn without this follows as soon as there is nothing else to do, and within two
    /// milliseconds. Never so with streams.
    pub fn is_pressed(&self) -> bool {
        self.pressed
    }

    /// Asks for one more end of turn after the present one.
    pub fn turn_again(&mut self) {
        self.turn_again = true;
        self.mark_turn();
    }

    /// How many connections there are, closing ones included.
    pub fn connections(&self) -> usize {
        self.conns.live()
    }
}

/// For the shard's tasks, whatever the driver.
impl Io {
    pub(super) fn refresh(&mut self) {
        self.now = clock::now();
    }

    /// Something happened in this turn: wakes whoever ends turns, once a turn.
    pub(super) fn mark_turn(&mut self) {
        if !std::mem::replace(&mut self.turn, true)
            && let Some(waker) = &self.flusher
        {
            waker.wake_by_ref();
        }
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

    /// The end of the turn that may have been asked for.
    pub(super) fn begin_turn_end(&mut self) {
        self.turn_again = false;
    }

    /// Whether another end of turn was asked for.
    pub(super) fn wants_turn(&self) -> bool {
        self.turn_again
    }

    /// The turn is over; answers whether another one begins at once, because something is `left` or
    /// because it was asked for.
    pub(super) fn turn_over(&mut self, left: bool) -> bool {
        self.turn = std::mem::take(&mut self.turn_again) || left;
        self.turn
    }

    pub(super) fn accepting(&self) -> Accepting {
        self.accepting
    }

    pub(super) fn insert(&mut self, fd: OwnedFd) -> ConnId {
        match &self.net {
            Net::Streams(_) => self.insert_stream(fd),
            Net::Ring(_) => self.insert_ring(fd),
        }
    }

    /// The connections with something queued, each once, to be written by the driver. Give the list
    /// back with [`Io::put_dirty`].
    pub(super) fn take_dirty(&mut self) -> Vec<ConnId> {
        std::mem::take(&mut self.dirty)
    }

    /// Gives the emptied list back; what came into a new one meanwhile stays.
    pub(super) fn put_dirty(&mut self, mut list: Vec<ConnId>) {
        list.clear();
        list.append(&mut self.dirty);
        self.dirty = list;
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub(super) fn mark_dirty(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id)
            && !std::mem::replace(&mut conn.dirty, true)
        {
            self.dirty.push(id);
        }
    }

    /// Ends connections that take too long to close.
    pub(super) fn expire(&mut self) {
        let now_ms = self.now.mono_ms;
        let mut ending = std::mem::take(&mut self.ending);
        ending.retain(|&id| match self.conns.get(id).map(|c| c.life) {
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
        if let Some(conn) = self.conns.get_mut(id) {
            if !matches!(conn.life, Life::Gone(_)) {
                conn.life = Life::Gone(why);
            }
            self.stir(id);
        }
    }

    /// Has the driver look at a connection.
    pub(super) fn stir(&mut self, id: ConnId) {
        match self.conns.get_mut(id).map(|c| &mut c.sock) {
            Some(Sock::Stream(sock)) => sock.wake(),
            Some(Sock::Ring(_)) => self.queue_ring(id),
            None => {}
        }
    }

    /// Forgets a connection; its descriptor is closed.
    pub(super) fn drop_conn(&mut self, id: ConnId) {
        self.take(id);
    }

    /// Takes a connection out of the table; its place is free once the driver has let go of it.
    pub(super) fn take(&mut self, id: ConnId) -> Option<Box<Conn>> {
        let conn = self.conns.take(id)?;
        match &mut self.net {
            Net::Streams(_) => self.conns.free(id.slot),
            Net::Ring(net) => net.retire(id),
        }
        Some(conn)
    }

    /// Closes everything, while the executor still runs.
    pub(super) fn clear(&mut self) {
        match &mut self.net {
            Net::Streams(_) => self.conns.clear(),
            // The ring has places of its own, so the table stays as it is.
            Net::Ring(net) => net.shutdown(),
        }
    }
}
