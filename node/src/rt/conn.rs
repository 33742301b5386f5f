//! What a shard knows of a connection, whichever driver moves its bytes.

use std::io::{Error as IoError, ErrorKind};
use std::net::TcpStream;
use std::os::fd::{OwnedFd, RawFd};

use bytes::BytesMut;
use chatring_client::tls::TlsSession;

use super::ring::RingSock;
use super::streams::StreamSock;
use super::tls::ConnTls;

/// Bytes that a connection being closed may still send into the void.
const LINGER_BYTES_MAX: usize = 1024 * 1024;
/// How long the peer is listened to after our last byte: closing at once would send a reset, which
/// may destroy what the peer has not read yet.
const LINGER_MS_MAX: u64 = 1_000;

/// A connection of this shard. Never used twice within a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    pub(super) slot: u32,
    pub(super) generation: u32,
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
    pub(super) fd: OwnedFd,
    /// What the handler has queued and the kernel has not taken.
    pub(super) unsent: BytesMut,
    /// What the kernel has given and the handler has not been given.
    pub(super) unread: BytesMut,
    pub(super) tls: Option<Box<ConnTls>>,
}

/// A connection for somebody who is no shard.
#[derive(Debug)]
pub struct Parted {
    /// The socket.
    pub stream: TcpStream,
    /// What was read from it and not handled, nor decrypted.
    pub unread: BytesMut,
    /// What is to be written to it. Empty without TLS, if the handler has queued nothing.
    pub unsent: BytesMut,
    /// Its TLS, if it speaks that.
    pub tls: Option<Box<TlsSession>>,
}

impl Released {
    /// Takes it apart for somebody who is no shard.
    pub fn part(self) -> Parted {
        let Released { fd, unsent, unread, tls } = self;
        Parted { stream: TcpStream::from(fd), unread, unsent, tls: tls.map(|tls| tls.session) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Bytes flow both ways.
    Open,
    /// What is queued is still written; what comes is dropped.
    Finishing { until_ms: u64 },
    /// Our direction has ended; what comes is dropped until the peer ends its own.
    Lingering { until_ms: u64, bytes: usize },
    /// To be reported as closed.
    Gone(Closed),
}

impl Life {
    /// Everything queued has been written to a connection that is to end: ends our direction.
    pub fn linger(fd: RawFd, now_ms: u64) -> Life {
        // SAFETY: shutdown touches no memory; the caller's socket keeps the descriptor open.
        match unsafe { libc::shutdown(fd, libc::SHUT_WR) } {
            0 => Life::Lingering { until_ms: now_ms + LINGER_MS_MAX, bytes: LINGER_BYTES_MAX },
            _ => Life::Gone(Closed::Broken(IoError::last_os_error().kind())),
        }
    }
}

/// One connection.
#[derive(Debug)]
pub struct Conn {
    pub life: Life,
    /// What is to be written: what the handler has queued since the last write, or what its TLS has
    /// made of that.
    pub out: BytesMut,
    pub tls: Option<Box<ConnTls>>,
    /// It stands in the list of those to be written.
    pub dirty: bool,
    /// The handler wants no bytes.
    pub paused: bool,
    /// The handler is to be called without new bytes.
    pub again: bool,
    /// The handler is to be told that everything queued is written.
    pub caught_up: bool,
    pub sock: Sock,
}

/// What the driver adds.
#[derive(Debug)]
pub enum Sock {
    /// Boxed because it is far larger than what the ring keeps.
    Stream(Box<StreamSock>),
    Ring(RingSock),
}

impl Conn {
    pub fn new(sock: Sock) -> Conn {
        Conn {
            life: Life::Open,
            out: BytesMut::new(),
            tls: None,
            dirty: false,
            paused: false,
            again: false,
            caught_up: false,
            sock,
        }
    }
}

/// The connections of a shard by number.
#[derive(Debug, Default)]
pub struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    live: usize,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    conn: Option<Box<Conn>>,
}

impl Table {
    pub fn insert(&mut self, conn: Conn) -> ConnId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).expect("fewer descriptors than 2^32")
        });
        let place = &mut self.slots[slot as usize];
        place.conn = Some(Box::new(conn));
        self.live += 1;
        ConnId { slot, generation: place.generation }
    }

    /// Takes a connection out. Its place is not given again before it is [freed](Table::free).
    pub fn take(&mut self, id: ConnId) -> Option<Box<Conn>> {
        let slot = self.slots.get_mut(id.slot()).filter(|s| s.generation == id.generation)?;
        let conn = slot.conn.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.live -= 1;
        Some(conn)
    }

    pub fn free(&mut self, slot: u32) {
        debug_assert!(self.slots[slot as usize].conn.is_none(), "it was taken out");
        self.free.push(slot);
    }

    pub fn get(&self, id: ConnId) -> Option<&Conn> {
        let slot = self.slots.get(id.slot()).filter(|s| s.generation == id.generation)?;
        slot.conn.as_deref()
    }

    pub fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        let slot = self.slots.get_mut(id.slot()).filter(|s| s.generation == id.generation)?;
        slot.conn.as_deref_mut()
    }

    pub fn live(&self) -> usize {
        self.live
    }

    pub fn clear(&mut self) {
        *self = Table::default();
    }
}
