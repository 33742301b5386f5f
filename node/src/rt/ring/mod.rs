//! The driver on a private io_uring of the shard: receives that stay armed and share the shard's
//! buffers, and sends that are handed to the kernel together once a turn.
//!
//! ```text
//!  kernel ─▶ completions ─▶ received, drained, closed ─▶ turn_end ─▶ sends ─▶ kernel
//!    │                      (handler, in order)                        one entry into the kernel
//!    └─ eventfd, when nobody looks ─▶ glommio wakes the turn
//! ```
//!
//! A connection that idles holds no buffer and no task. glommio keeps the tasks, the inbox, the
//! listener and the clock.

mod kernel;
mod pool;
mod probe;
mod turn;

use std::collections::VecDeque;
use std::io::Error as IoError;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::BytesMut;

#[cfg(test)]
use self::kernel::Extracted;
use self::kernel::{Done, Ring, Stop};
use self::pool::Buf;
use super::conn::{Closed, Conn, ConnId, Life, Released, Sock};
use super::io::{Io, Net};
use super::post::Knock;
use super::stats::{ShardStats, count};

pub use self::probe::{Missing, probe};
pub use self::turn::{answer_bell, turns};

/// Bytes that came for a connection whose handler is busy with earlier ones, above which nothing is
/// received for it. What the kernel has received by then still comes: at most all buffers.
const UNREAD_BYTES_HIGH: usize = 64 << 10;

/// How large a shard's ring is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSizes {
    /// Entries of the submission queue. A full one is handed over early.
    pub submissions: u32,
    /// Entries of the completion queue. What it cannot take the kernel keeps aside.
    pub completions: u32,
    /// Buffers for received bytes, a power of two. Without a free one, bytes wait in their sockets.
    pub buffers: u16,
    /// Bytes of each.
    pub buffer_bytes: u32,
}

impl Default for RingSizes {
    /// An entry into the kernel yields some 40 receives, and each at most 32 buffers.
    fn default() -> RingSizes {
        RingSizes { submissions: 1_024, completions: 4_096, buffers: 512, buffer_bytes: 2_048 }
    }
}

/// What the driver keeps for a shard.
pub struct RingNet {
    ring: Ring,
    /// Connections to be looked at, each once.
    queue: VecDeque<ConnId>,
    /// Connections that found no buffer, to be armed again when some are free.
    starved: VecDeque<ConnId>,
}

/// What the driver keeps for a connection.
#[derive(Debug, Default)]
pub struct RingSock {
    queued: bool,
    /// Part of what was queued had to wait for the peer.
    slow: bool,
    /// Came while the handler wanted nothing.
    unread: BytesMut,
    /// How receiving ended.
    ended: Option<Closed>,
}

/// What the handler is to be told.
#[derive(Debug)]
enum Event {
    Bytes(ConnId, Buf),
    /// Bytes that had to wait.
    Unread(ConnId, BytesMut),
    /// It asked for it.
    Rest(ConnId),
    Drained(ConnId),
    Closed(ConnId, Closed),
}

/// Makes the ring of the calling thread, and gives the bell that [`answer_bell`] is to answer.
pub fn open(
    sizes: RingSizes,
    knock: &Arc<Knock>,
    stats: Arc<ShardStats>,
) -> Result<(RingNet, OwnedFd), IoError> {
    let bell = knock.bell().try_clone_to_owned()?;
    let mut ring = Ring::new(sizes, knock.clone(), stats)?;
    ring.watch();
    Ok((RingNet { ring, queue: VecDeque::new(), starved: VecDeque::new() }, bell))
}

impl RingNet {
    pub fn in_flight(&self, id: ConnId) -> usize {
        self.ring.in_flight(id)
    }

    pub fn retire(&mut self, id: ConnId) {
        self.ring.retire(id);
    }

    /// Closes every socket. Nothing is told of it and no place is given again: it is the end.
    pub fn shutdown(&mut self) {
        self.ring.shutdown();
    }
}

/// The operations that differ from driver to driver.
impl Io {
    pub(super) fn insert_ring(&mut self, fd: OwnedFd) -> ConnId {
        self.free_quiet();
        let id = self.conns.insert(Conn::new(Sock::Ring(RingSock::default())));
        let ring = self.ring();
        ring.insert(id, fd);
        ring.receive(id);
        self.mark_turn();
        id
    }

    pub(super) fn release_ring(&mut self, id: ConnId) -> Option<Released> {
        let extracted = self.ring().extract(id);
        let mut conn = self.conns.take(id)?;
        let extracted = extracted?;
        count(&self.stats.bytes_in, extracted.unread.len() as u64);
        let mut unread = std::mem::take(&mut conn.ring().unread);
        unread.unsplit(extracted.unread);
        let mut unsent = extracted.unsent;
        unsent.unsplit(std::mem::take(&mut conn.out));
        Some(Released { fd: extracted.fd, unsent, unread, tls: conn.tls.take() })
    }

    /// Bytes that came along with an adopted connection are given to its handler before others.
    pub(super) fn keep_unread(&mut self, id: ConnId, unread: BytesMut) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        match &mut conn.sock {
            Sock::Ring(sock) => sock.unread = unread,
            Sock::Stream(_) => unreachable!("a node has one driver"),
        }
        self.stir(id);
    }

    /// Has a connection looked at in the present turn or the next.
    pub(super) fn queue_ring(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id)
            && !std::mem::replace(&mut conn.ring().queued, true)
        {
            self.ring_net().queue.push_back(id);
        }
        self.mark_turn();
    }
}

/// For the shard's turns.
impl Io {
    fn ring_net(&mut self) -> &mut RingNet {
        match &mut self.net {
            Net::Ring(net) => net,
            Net::Streams(_) => unreachable!("a shard has one driver"),
        }
    }

    fn ring(&mut self) -> &mut Ring {
        &mut self.ring_net().ring
    }

    /// What the handler is to be told because of something that the kernel has done.
    fn next_done(&mut self) -> Option<Event> {
        loop {
            match self.ring().next()? {
                Done::Received(id, buf) => {
                    if let Some(event) = self.received(id, buf) {
                        return Some(event);
                    }
                }
                Done::Ended(id) => self.ended(id, Closed::ByPeer),
                Done::RecvFailed(id, error) => self.ended(id, Closed::Broken(error.kind())),
                Done::Stopped(id, Stop::Asked) => self.receive_if_wanted(id),
                Done::Stopped(id, Stop::NoBuffer) => self.ring_net().starved.push_back(id),
                Done::SentPart(id, taken) => {
                    self.count_write(taken);
                    if let Some(conn) = self.conns.get_mut(id) {
                        conn.ring().slow = true;
                    }
                }
                Done::Sent(id, taken) => {
                    self.count_write(taken);
                    self.sent(id);
                }
                Done::SendFailed(id, error) => self.end(id, Closed::Broken(error.kind())),
            }
        }
    }

    fn count_write(&self, taken: usize) {
        count(&self.stats.writes, 1);
        count(&self.stats.bytes_out, taken as u64);
    }

    fn received(&mut self, id: ConnId, buf: Buf) -> Option<Event> {
        let conn = self.conns.get_mut(id)?;
        let Conn { life, paused, again, sock, .. } = conn;
        let Sock::Ring(sock) = sock else { return None };
        match life {
            Life::Open => {
                count(&self.stats.reads, 1);
                count(&self.stats.bytes_in, buf.len() as u64);
                if !*paused && !*again && sock.unread.is_empty() {
                    self.receive_if_wanted(id);
                    return Some(Event::Bytes(id, buf));
                }
                sock.unread.extend_from_slice(&buf);
                if *paused || sock.unread.len() > UNREAD_BYTES_HIGH {
                    count(&self.stats.ring_stops, 1);
                    self.ring().stop(id);
                }
            }
            Life::Lingering { bytes, .. } => match bytes.checked_sub(buf.len()) {
                Some(left) => *bytes = left,
                None => self.end(id, Closed::ByUs),
            },
            Life::Finishing { .. } | Life::Gone(_) => {}
        }
        self.receive_if_wanted(id);
        None
    }

    fn ended(&mut self, id: ConnId, why: Closed) {
        if let Some(conn) = self.conns.get_mut(id) {
            conn.ring().ended.get_or_insert(why);
            self.queue_ring(id);
        }
    }

    /// Everything handed to the kernel is written.
    fn sent(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.queued() > 0 {
            return self.mark_dirty(id);
        }
        let slow = std::mem::take(&mut conn.ring().slow) || conn.paused;
        match conn.life {
            Life::Open if slow => {
                conn.caught_up = true;
                self.queue_ring(id);
            }
            Life::Finishing { .. } => self.written(id),
            _ => {}
        }
    }

    /// Nothing is left to write to a connection that is to end.
    fn written(&mut self, id: ConnId) {
        let now_ms = self.now.mono_ms;
        let Some(fd) = self.ring().fd(id) else { return };
        if let Some(conn) = self.conns.get_mut(id) {
            conn.life = Life::linger(fd, now_ms);
            self.queue_ring(id);
        }
    }

    /// Arms the receive of a connection whose handler takes bytes, or that is read until its end.
    fn receive_if_wanted(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let (life, paused) = (conn.life, conn.paused);
        let sock = conn.ring();
        let wanted = match life {
            Life::Open => !paused && sock.unread.len() <= UNREAD_BYTES_HIGH,
            Life::Finishing { .. } | Life::Lingering { .. } => true,
            Life::Gone(_) => false,
        };
        if wanted && sock.ended.is_none() {
            self.ring().receive(id);
        }
    }

    /// Looks at a connection of the queue.
    fn look_at(&mut self, id: ConnId) -> Option<Event> {
        let conn = self.conns.get_mut(id)?;
        let (life, paused) = (conn.life, conn.paused);
        conn.ring().queued = false;
        if std::mem::take(&mut conn.caught_up) {
            self.queue_ring(id);
            return Some(Event::Drained(id));
        }
        let ended = conn.ring().ended;
        let closed = match (life, ended) {
            (Life::Gone(why), _) => Some(why),
            (Life::Open, Some(Closed::Broken(kind))) if paused => Some(Closed::Broken(kind)),
            (Life::Open, Some(why)) if !paused && !conn.again && conn.ring().unread.is_empty() => {
                Some(why)
            }
            // A peer that only listens still gets what is queued.
            (Life::Finishing { .. }, Some(Closed::ByPeer)) => None,
            (Life::Finishing { .. } | Life::Lingering { .. }, Some(why)) => Some(why),
            _ => None,
        };
        if let Some(why) = closed {
            self.take(id);
            return Some(Event::Closed(id, why));
        }
        if life == Life::Open && !paused {
            if std::mem::take(&mut conn.again) {
                self.queue_ring(id);
                return Some(Event::Rest(id));
            }
            let unread = std::mem::take(&mut conn.ring().unread);
            if !unread.is_empty() {
                self.queue_ring(id);
                return Some(Event::Unread(id, unread));
            }
        }
        self.receive_if_wanted(id);
        None
    }

    /// Hands the kernel a send for each connection with queued bytes and none under way.
    fn flush_ring(&mut self) {
        let dirty = self.take_dirty();
        for &id in &dirty {
            let Some(conn) = self.conns.get_mut(id) else { continue };
            conn.dirty = false;
            if !matches!(conn.life, Life::Open | Life::Finishing { .. }) {
                continue;
            }
            conn.seal();
            let Net::Ring(net) = &mut self.net else { continue };
            if net.ring.is_sending(id) {
                // The rest follows when it is over.
                continue;
            }
            if conn.out.is_empty() {
                if let Life::Finishing { .. } = conn.life {
                    self.written(id);
                }
                continue;
            }
            net.ring.send(id, std::mem::take(&mut conn.out));
        }
        self.put_dirty(dirty);
    }

    /// Arms the receives of connections that found no buffer, as many as there are buffers now.
    fn feed_starved(&mut self) {
        for _ in 0..self.ring().free_buffers() {
            let Some(id) = self.ring_net().starved.pop_front() else { return };
            self.receive_if_wanted(id);
        }
    }

    /// The places of connections that the kernel has let go of can be given again.
    fn free_quiet(&mut self) {
        while let Some(slot) = self.ring().next_quiet() {
            self.conns.free(slot);
        }
    }

    /// Whether there is something to do before anything else has happened.
    fn ring_has_work(&mut self) -> bool {
        let net = self.ring_net();
        let queued = !net.queue.is_empty() || !net.starved.is_empty();
        queued || net.ring.has_done() || self.is_dirty() || self.wants_turn()
    }
}

impl Conn {
    fn ring(&mut self) -> &mut RingSock {
        match &mut self.sock {
            Sock::Ring(sock) => sock,
            Sock::Stream(_) => unreachable!("a shard has one driver"),
        }
    }
}

#[cfg(test)]
mod tests;
