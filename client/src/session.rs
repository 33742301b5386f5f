//! The session of one device, without I/O, clock or randomness.

mod asks;
mod channel;
mod config;
mod event;
pub mod limits;
mod link;
mod out;
mod outbox;
mod pump;
mod receive;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use chatring_wire::frame::{
    Direction, Head, HeadRows, MessageKind, RequestId, Row, SignOutScope, UserRef,
};
use chatring_wire::{
    Cid, ClientFrame, CloseCode, Cmid, DeviceId, HistoryId, InstallationId, Seq, Uid,
};

pub use config::{Config, Delivery, Keep, Millis, Start};
pub use event::{Disconnect, End, Event, OpenError, SendError, Stats, Ticket, Wish};

use crate::cache::{CacheImage, CacheWrite, OutboxEntry};
use asks::{Ask, Asks};
use channel::{Channel, Fill};
use link::{Link, Reconnect};
use out::{Out, Taken};
use outbox::{Outbox, SendKey};

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
    installation: InstallationId,
    uid: Option<Uid>,
    device: Option<DeviceId>,
    history: Option<HistoryId>,
    cursor: Bytes,
    cursor_write: Option<CacheWrite>,
    body_bytes_max: usize,

    channels: BTreeMap<Cid, Channel>,
    /// Channels whose record is to be written.
    dirty: BTreeSet<Cid>,
    /// Channels that pushes named and no head has introduced, with the newest position.
    strangers: BTreeMap<Cid, Seq>,
    /// Channels with a hole, by the time from which it may be read.
    fills: BTreeSet<(Millis, Cid)>,
    fills_open: usize,
    outbox: Outbox,
    asks: Asks,

    link: Link,
    reconnect: Reconnect,
    close: Option<CloseCode>,
    end: Option<End>,
    next_request: u32,
    requests: BTreeMap<RequestId, (Pending, Millis)>,
    sync: Option<SyncRun>,
    /// When another sync is to start, once the one under way is over.
    sync_at: Option<Millis>,
    /// Syncs seen so far.
    syncs: u64,

    out: Out,
    transmits: VecDeque<ClientFrame>,
}

/// What an open request is about.
#[derive(Clone, Copy, Debug)]
enum Pending {
    Send(SendKey),
    Ask(Ticket),
    Fill(Cid),
    Refresh,
}

/// A sync under way that this side asked for.
#[derive(Debug)]
struct SyncRun {
    request: RequestId,
    /// Number of the sync, if it replaces everything.
    replaces_since: Option<u64>,
    /// When something of it came last.
    progress: Millis,
}

impl Session {
    /// A session that goes on from this cache. It has no connection yet.
    pub fn new(config: Config, cache: CacheImage) -> Session {
        let mut out = Out { persist: config.persist, ..Out::default() };
        let mut channels: BTreeMap<Cid, Channel> = cache
            .channels
            .into_iter()
            .map(|(cid, record)| (cid, Channel::restore(&config, record)))
            .collect();
        for ((cid, _), row) in cache.rows {
            if let Some(channel) = channels.get_mut(&cid) {
                channel.restore_row(row);
            }
        }
        for channel in channels.values_mut() {
            channel.deliver(&mut out);
        }
        let mut outbox = Outbox::default();
        for (number, entry) in cache.outbox {
            outbox.restore(number, entry);
        }
        Session {
            config,
            installation: cache.installation,
            uid: cache.uid,
            device: None,
            history: cache.history,
            cursor: cache.cursor,
            cursor_write: None,
            body_bytes_max: chatring_wire::limits::BODY_BYTES_MAX,
            channels,
            dirty: BTreeSet::new(),
            strangers: BTreeMap::new(),
            fills: BTreeSet::new(),
            fills_open: 0,
            outbox,
            asks: Asks::default(),
            link: Link::Down { at: Millis(0) },
            reconnect: Reconnect::default(),
            close: None,
            end: None,
            next_request: 1,
            requests: BTreeMap::new(),
            sync: None,
            sync_at: None,
            syncs: 0,
            out,
            transmits: VecDeque::new(),
        }
    }

    /// Whether and when the session wants to be connected.
    pub fn wish(&self) -> Wish {
        self.link.wish()
    }

    /// The URL of the node that the server sent us to, if it did; good for the next attempt.
    pub fn moved_to(&self) -> Option<&str> {
        self.reconnect.moved_to.as_deref()
    }

    /// A connection stands, subprotocol agreed.
    pub fn handle_connected(&mut self, now: Millis) {
        self.link = Link::Hello { since: now };
        self.next_request = 1;
        self.close = None;
        self.transmits.clear();
        self.transmit_hello();
    }

    /// The connection is over, or never came about. `random` spreads the next attempt: any evenly
    /// spread number.
    pub fn handle_disconnected(&mut self, now: Millis, how: Disconnect, random: u64) {
        if matches!(self.link, Link::Ended(_)) {
            return;
        }
        let ours = matches!(self.link, Link::Closing);
        let error = self.reconnect.error.clone();
        let backoff = self.config.backoff_ms_max;
        self.link = self.reconnect.after_disconnect(now, how, ours, random, backoff);
        if let Some(end) = self.end.take() {
            self.link = Link::Ended(end);
        }
        self.out.stats.disconnections = self.out.stats.connections;
        self.close = None;
        self.sync = None;
        self.sync_at = None;
        self.requests.clear();
        self.transmits.clear();
        self.outbox.reset();
        self.asks.reset();
        self.fills.clear();
        self.fills_open = 0;
        for channel in self.channels.values_mut() {
            channel.fill = Fill::Idle;
        }
        self.out.event(Event::Disconnected { error });
        if let Link::Ended(end) = &self.link {
            self.out.event(Event::Ended(end.clone()));
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Millis) {
        let overdue = match &self.link {
            Link::Hello { since } => now.since(*since) >= limits::WELCOME_MS_MAX,
            Link::Live(live) => {
                live.is_silent(now) || self.answer_due().is_some_and(|due| due <= now)
            }
            Link::Down { .. } | Link::Closing | Link::Ended(_) => return,
        };
        if overdue {
            self.out.stats.timeouts += 1;
            self.close(CloseCode::Reconnect);
        }
        self.pump(now);
    }

    /// Renews the token; also ends the state "the token was refused".
    pub fn set_token(&mut self, now: Millis, token: String) {
        self.config.token.clone_from(&token);
        match &self.link {
            Link::Live(_) => {
                let request = RequestId(self.next_request);
                self.next_request += 1;
                self.requests.insert(request, (Pending::Refresh, now));
                self.transmits.push_back(ClientFrame::Refresh { request, token });
            }
            Link::Ended(End::Token(_)) => self.link = Link::Down { at: now },
            _ => {}
        }
    }

    /// Asks for the direct channel with a user. Answered by `Opened` or `AskRefused`, over as many
    /// connections as it takes.
    ///
    /// # Errors
    /// `Full` if too many requests are open, `NameTooLong`.
    pub fn open(&mut self, now: Millis, with: UserRef) -> Result<Ticket, OpenError> {
        if let UserRef::Subject { issuer, subject } = &with
            && issuer.len().max(subject.len()) > chatring_wire::limits::NAME_BYTES_MAX
        {
            return Err(OpenError::NameTooLong);
        }
        self.ask(now, Ask::Open(with))
    }

    /// Puts a message into the outbox. `cmid` is new: a UUIDv7. It ends in exactly one `Stored` or
    /// `SendRefused`; messages of one channel are stored in the order of these calls.
    ///
    /// # Errors
    /// The message was not taken, with the reason.
    pub fn send(
        &mut self,
        now: Millis,
        cid: Cid,
        kind: MessageKind,
        body: Bytes,
        cmid: Cmid,
    ) -> Result<(), SendError> {
        let (bytes, max) = (body.len(), self.body_bytes_max);
        if bytes > max {
            return Err(SendError::BodyTooLarge { bytes, max });
        }
        if kind == MessageKind::TEXT && std::str::from_utf8(&body).is_err() {
            return Err(SendError::NotUtf8);
        }
        if !self.channels.contains_key(&cid) {
            return Err(SendError::UnknownChannel);
        }
        if self.outbox.len() >= self.config.outbox_entries_max
            || self.outbox.bytes() + bytes > self.config.outbox_bytes_max
        {
            return Err(SendError::Full);
        }
        self.outbox.push(OutboxEntry { cid, cmid, base: None, kind, body }, &mut self.out);
        self.pump(now);
        Ok(())
    }

    /// Says how far the user has read a channel and this device has received it; 0 leaves one as it
    /// is. Markers only rise.
    ///
    /// # Errors
    /// `UnknownChannel`, or `NoSuchPosition` above the newest message.
    pub fn mark(
        &mut self,
        now: Millis,
        cid: Cid,
        read: Seq,
        received: Seq,
    ) -> Result<(), OpenError> {
        let channel = self.channels.get_mut(&cid).ok_or(OpenError::UnknownChannel)?;
        if read.max(received) > channel.record.head {
            return Err(OpenError::NoSuchPosition);
        }
        if !channel.mark(read, received) {
            return Ok(());
        }
        self.touch(cid);
        if matches!(&self.link, Link::Live(live) if live.attached) {
            self.transmits.push_back(ClientFrame::Mark { cid, read, received });
        }
        self.pump(now);
        Ok(())
    }

    /// Reads stored messages, both ends included. Answered by `Rows` (perhaps with fewer: see its
    /// `gap`) or `AskRefused`.
    ///
    /// # Errors
    /// `Full`, `UnknownChannel`, or `NoSuchPosition` for an empty range.
    pub fn read(
        &mut self,
        now: Millis,
        cid: Cid,
        from: Seq,
        to: Seq,
        direction: Direction,
    ) -> Result<Ticket, OpenError> {
        if !self.channels.contains_key(&cid) {
            return Err(OpenError::UnknownChannel);
        }
        if from.0 == 0 || from > to || to.0 >= limits::SEQ_MAX {
            return Err(OpenError::NoSuchPosition);
        }
        self.ask(now, Ask::Read { cid, from, to, direction })
    }

    /// Asks who the members of a direct channel are. Answered by `Members` or `AskRefused`.
    ///
    /// # Errors
    /// `Full` or `UnknownChannel`.
    pub fn members(&mut self, now: Millis, cid: Cid) -> Result<Ticket, OpenError> {
        if !self.channels.contains_key(&cid) {
            return Err(OpenError::UnknownChannel);
        }
        self.ask(now, Ask::Members(cid))
    }

    /// Signs out. Answered by `Done` or `AskRefused`, if this session lives on.
    ///
    /// # Errors
    /// `Full` if too many requests are open.
    pub fn sign_out(&mut self, now: Millis, scope: SignOutScope) -> Result<Ticket, OpenError> {
        self.ask(now, Ask::SignOut(scope))
    }

    /// The next frame to send.
    pub fn poll_transmit(&mut self) -> Option<ClientFrame> {
        self.transmits.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        let (event, taken) = self.out.events.pop_front()?;
        match taken {
            Taken::Nothing => {}
            Taken::Delivered { cid, seq, ordinal } => {
                if let Some(channel) = self.channels.get_mut(&cid) {
                    channel.taken = (seq, ordinal);
                    self.touch(cid);
                }
            }
            Taken::Settled { number } => self.out.write(CacheWrite::OutboxDrop { number }),
        }
        Some(event)
    }

    /// When `handle_timeout` is to be called; none while there is nothing to wait for.
    pub fn poll_timeout(&self) -> Option<Millis> {
        let live = match &self.link {
            Link::Hello { since } => return Some(since.after(limits::WELCOME_MS_MAX)),
            Link::Live(live) => live,
            Link::Down { .. } | Link::Closing | Link::Ended(_) => return None,
        };
        let fill = self.fills.first().map(|(at, _)| *at);
        let sync = self.sync_at.filter(|_| self.sync.is_none());
        [
            self.answer_due(),
            self.outbox.next_time(),
            self.asks.next_time(),
            fill.filter(|_| self.fills_open < limits::FILLS_MAX),
            sync,
        ]
        .into_iter()
        .flatten()
        .chain([live.next_time()])
        .min()
    }

    /// Whether the session wants the connection closed, once.
    pub fn poll_close(&mut self) -> Option<CloseCode> {
        self.close.take()
    }

    /// Changes of the cache since the last call: one transaction. Empty without `Config::persist`.
    pub fn poll_writes(&mut self) -> Vec<CacheWrite> {
        let mut writes = std::mem::take(&mut self.out.writes);
        for cid in std::mem::take(&mut self.dirty) {
            if let Some(channel) = self.channels.get(&cid) {
                writes.push(CacheWrite::Channel(channel.durable_record()));
            }
        }
        let cursor = self.cursor_write.take();
        if self.out.persist {
            writes.extend(cursor);
        }
        writes
    }

    /// The user and device, once a `welcome` told them.
    pub fn identity(&self) -> Option<(Uid, DeviceId)> {
        self.uid.zip(self.device)
    }

    /// Whether a connection stands and everything that changed before it is known.
    pub fn is_synced(&self) -> bool {
        matches!(&self.link, Link::Live(live) if live.attached) && self.sync.is_none()
    }

    /// The channels, in the order of their ids.
    pub fn channels(&self) -> impl Iterator<Item = Cid> {
        self.channels.keys().copied()
    }

    /// A channel as far as known. (`rows` has no meaning here.)
    pub fn channel(&self, cid: Cid) -> Option<Head> {
        let record = &self.channels.get(&cid)?.record;
        Some(Head {
            cid,
            kind: record.kind,
            peer: record.peer,
            me: record.me,
            head: record.head,
            ordinal: record.ordinal,
            floor: record.floor,
            read: record.read,
            read_ordinal: record.read_ordinal,
            received: record.received,
            rows: HeadRows::Unchanged,
        })
    }

    /// The messages kept of a channel, ascending, as they stand on the server.
    pub fn rows(&self, cid: Cid) -> impl DoubleEndedIterator<Item = &Row> {
        self.channels.get(&cid).into_iter().flat_map(Channel::kept)
    }

    /// Every message of the channel up to here was given to the application or skipped.
    pub fn delivered(&self, cid: Cid) -> Option<Seq> {
        self.channels.get(&cid).map(|channel| channel.record.delivered)
    }

    /// Sends without an outcome.
    pub const fn outbox_len(&self) -> usize {
        self.outbox.len()
    }

    /// What this session counted.
    pub const fn stats(&self) -> &Stats {
        &self.out.stats
    }

    fn ask(&mut self, now: Millis, ask: Ask) -> Result<Ticket, OpenError> {
        let ticket = self.asks.push(ask)?;
        self.pump(now);
        Ok(ticket)
    }

    /// When the oldest open request, or the sync under way, has waited for too long.
    fn answer_due(&self) -> Option<Millis> {
        let request = self.requests.values().next().map(|(_, asked)| *asked);
        let sync = self.sync.as_ref().map(|run| run.progress);
        request.into_iter().chain(sync).min().map(|since| since.after(limits::ANSWER_MS_MAX))
    }
}
