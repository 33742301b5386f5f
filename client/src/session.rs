//! The session of one device, without I/O, clock or randomness.

mod config;
mod event;
pub mod limits;

use std::collections::VecDeque;

use bytes::Bytes;
use chatring_wire::frame::{Direction, Head, MessageKind, Row, SignOutScope, UserRef};
use chatring_wire::{Cid, ClientFrame, CloseCode, Cmid, DeviceId, Seq, ServerFrame, Uid};

pub use config::{Config, Delivery, Keep, Millis, Start};
pub use event::{Disconnect, End, Event, OpenError, SendError, Stats, Ticket, Wish};

use crate::cache::{CacheImage, CacheWrite};

/// The session of one device: keeps a user's channels up to date and its sends going, over any
/// number of connections.
///
/// The calling contract:
///
/// 1. While [`wish`](Session::wish) says `ConnectAt`, connect at that time and call
///    [`handle_connected`](Session::handle_connected), or
///    [`handle_disconnected`](Session::handle_disconnected) if it does not work.
/// 2. Give every frame of the connection to [`handle_frame`](Session::handle_frame), call
///    [`handle_timeout`](Session::handle_timeout) when the time of
///    [`poll_timeout`](Session::poll_timeout) has come (it may be called at any time), and
///    [`handle_disconnected`](Session::handle_disconnected) once when the connection is over.
/// 3. After each of these calls, and after calls of the application, in this order: take all of
///    [`poll_event`](Session::poll_event); take [`poll_writes`](Session::poll_writes) and make the
///    batch durable, as one transaction; send all of
///    [`poll_transmit`](Session::poll_transmit); if [`poll_close`](Session::poll_close) gives a
///    code, close the connection with it. Several `handle_*` calls may share one such round.
///
/// So no frame speaks of a send that a crash could forget, and an event comes again after a crash
/// only if its effect on the cache was not yet durable: a message may come twice (drop it by its
/// seq), none is left out.
#[derive(Debug)]
pub struct Session {
    config: Config,
    image: CacheImage,
    stats: Stats,
    events: VecDeque<Event>,
    transmits: VecDeque<ClientFrame>,
}

impl Session {
    /// A session that goes on from this cache. It has no connection yet.
    pub fn new(config: Config, cache: CacheImage) -> Session {
        Session {
            config,
            image: cache,
            stats: Stats::default(),
            events: VecDeque::new(),
            transmits: VecDeque::new(),
        }
    }

    /// Whether and when the session wants to be connected.
    pub fn wish(&self) -> Wish {
        Wish::Connected
    }

    /// The URL of the node that the server sent us to, if it did; good for the next attempt.
    pub fn moved_to(&self) -> Option<&str> {
        None
    }

    /// A connection stands, subprotocol agreed.
    pub fn handle_connected(&mut self, _now: Millis) {}

    /// A frame came.
    pub fn handle_frame(&mut self, _now: Millis, _frame: ServerFrame) {}

    /// The connection is over, or never came about. `random` spreads the next attempt: any evenly
    /// spread number.
    pub fn handle_disconnected(&mut self, _now: Millis, _how: Disconnect, _random: u64) {}

    /// Time has passed.
    pub fn handle_timeout(&mut self, _now: Millis) {}

    /// Renews the token; also ends the state "the token was refused".
    pub fn set_token(&mut self, _now: Millis, token: String) {
        self.config.token = token;
    }

    /// Asks for the direct channel with a user. Answered by `Opened` or `AskRefused`, over as many
    /// connections as it takes.
    ///
    /// # Errors
    /// `Full` if too many requests are open.
    pub fn open(&mut self, _now: Millis, _with: UserRef) -> Result<Ticket, OpenError> {
        Err(OpenError::Full)
    }

    /// Puts a message into the outbox. `cmid` is new: a UUIDv7. It ends in exactly one `Stored` or
    /// `SendRefused`; messages of one channel are stored in the order of these calls.
    ///
    /// # Errors
    /// The message was not taken, with the reason.
    pub fn send(
        &mut self,
        _now: Millis,
        _cid: Cid,
        _kind: MessageKind,
        _body: Bytes,
        _cmid: Cmid,
    ) -> Result<(), SendError> {
        Err(SendError::UnknownChannel)
    }

    /// Says how far the user has read a channel and this device has received it; 0 leaves one as it
    /// is. Markers only rise.
    ///
    /// # Errors
    /// `UnknownChannel`, or `NoSuchPosition` above the newest message.
    pub fn mark(
        &mut self,
        _now: Millis,
        _cid: Cid,
        _read: Seq,
        _received: Seq,
    ) -> Result<(), OpenError> {
        Err(OpenError::UnknownChannel)
    }

    /// Reads stored messages, both ends included. Answered by `Rows` (perhaps with fewer: see its
    /// `gap`) or `AskRefused`.
    ///
    /// # Errors
    /// `Full`, `UnknownChannel`, or `NoSuchPosition` for an empty range.
    pub fn read(
        &mut self,
        _now: Millis,
        _cid: Cid,
        _from: Seq,
        _to: Seq,
        _direction: Direction,
    ) -> Result<Ticket, OpenError> {
        Err(OpenError::UnknownChannel)
    }

    /// Asks who the members of a direct channel are. Answered by `Members` or `AskRefused`.
    ///
    /// # Errors
    /// `Full` or `UnknownChannel`.
    pub fn members(&mut self, _now: Millis, _cid: Cid) -> Result<Ticket, OpenError> {
        Err(OpenError::UnknownChannel)
    }

    /// Signs out. Answered by `Done` or `AskRefused`, if this session lives on.
    ///
    /// # Errors
    /// `Full` if too many requests are open.
    pub fn sign_out(&mut self, _now: Millis, _scope: SignOutScope) -> Result<Ticket, OpenError> {
        Err(OpenError::Full)
    }

    /// The next frame to send.
    pub fn poll_transmit(&mut self) -> Option<ClientFrame> {
        self.transmits.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When `handle_timeout` is to be called; none while there is nothing to wait for.
    pub fn poll_timeout(&self) -> Option<Millis> {
        None
    }

    /// Whether the session wants the connection closed, once.
    pub fn poll_close(&mut self) -> Option<CloseCode> {
        None
    }

    /// Changes of the cache since the last call: one transaction.
    pub fn poll_writes(&mut self) -> Vec<CacheWrite> {
        Vec::new()
    }

    /// The user and device, once a `welcome` told them.
    pub fn identity(&self) -> Option<(Uid, DeviceId)> {
        None
    }

    /// Whether a connection stands and everything that changed before it is known.
    pub fn is_synced(&self) -> bool {
        false
    }

    /// The channels, in the order of their ids.
    pub fn channels(&self) -> impl Iterator<Item = Cid> {
        self.image.channels.keys().copied()
    }

    /// A channel as far as known. (`rows` has no meaning here.)
    pub fn channel(&self, _cid: Cid) -> Option<Head> {
        None
    }

    /// The messages kept of a channel, ascending, as they stand on the server.
    pub fn rows(&self, cid: Cid) -> impl DoubleEndedIterator<Item = &Row> {
        self.image.rows.range((cid, Seq(0))..=(cid, Seq(u64::MAX))).map(|(_, row)| row)
    }

    /// Every message of the channel up to here was given to the application or skipped.
    pub fn delivered(&self, _cid: Cid) -> Option<Seq> {
        None
    }

    /// Sends without an outcome.
    pub fn outbox_len(&self) -> usize {
        0
    }

    /// What this session counted.
    pub const fn stats(&self) -> &Stats {
        &self.stats
    }
}
