//! What a session tells its caller.

use chatring_wire::frame::{Durability, Failure, Member, Page, Row};
use chatring_wire::{Cid, Cmid, DeviceId, Seq, Uid};
use thiserror::Error;

use super::config::Millis;

/// Names a request of the application; its answer carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The server took the `hello`.
    Connected {
        /// Who one is.
        uid: Uid,
        /// The number of this installation.
        device: DeviceId,
        /// The server's Unix time in milliseconds.
        time_ms: u64,
        /// What an ack stands for.
        durability: Durability,
    },
    /// The connection is gone; `Session::wish` says when to come back.
    Disconnected {
        /// What the server said before, if anything.
        error: Option<Failure>,
    },
    /// There will be no further connection, unless a new token mends it.
    Ended(End),
    /// The session is up to date: every channel's head is known.
    Synced,
    /// The server has another history, or none of the cached one: cached messages were dropped.
    CacheDropped,
    /// A channel came, or its head, markers or unread count changed by a sync, a push of another
    /// device's marker, or `open`.
    Channel {
        /// Which one.
        cid: Cid,
    },
    /// The answer to `open`. The channel is known from here on.
    Opened {
        /// The request.
        ticket: Ticket,
        /// The channel.
        cid: Cid,
    },
    /// The answer to `read`.
    Rows {
        /// The request.
        ticket: Ticket,
        /// What was read.
        page: Page,
    },
    /// The answer to `members`.
    Members {
        /// The request.
        ticket: Ticket,
        /// The channel.
        cid: Cid,
        /// Its members.
        members: Vec<Member>,
    },
    /// A request succeeded that has no other answer (`sign_out`).
    Done {
        /// The request.
        ticket: Ticket,
    },
    /// A request was surely not carried out, and trying again would not help.
    AskRefused {
        /// The request.
        ticket: Ticket,
        /// Why.
        error: Failure,
    },
    /// The next message of a channel, one's own included.
    Message {
        /// The channel.
        cid: Cid,
        /// The message. A live text of somebody else comes without cmid and device (zeros).
        row: Row,
    },
    /// Messages that delivery left out; they can be read.
    Skipped {
        /// The channel.
        cid: Cid,
        /// The first of them.
        from: Seq,
        /// The last of them.
        to: Seq,
    },
    /// A send is stored. The last event of this send.
    Stored {
        /// The channel.
        cid: Cid,
        /// Which send.
        cmid: Cmid,
        /// Its position.
        seq: Seq,
        /// Its Unix time in milliseconds.
        time_ms: u64,
    },
    /// A send is surely not stored, or (`retry_expired`) nobody can tell any more. The last event
    /// of this send.
    SendRefused {
        /// The channel.
        cid: Cid,
        /// Which send.
        cmid: Cmid,
        /// Why.
        error: Failure,
    },
}

/// Why there will be no further connection.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum End {
    /// The token is not taken (any more); a new one mends it.
    #[error("the token was refused: {0}")]
    Token(String),
    /// The server says that this client broke the protocol.
    #[error("the server closed the connection for good: {0}")]
    Never(String),
    /// The same installation connected again elsewhere.
    #[error("this installation connected a second time")]
    Replaced,
    /// The token belongs to another user than the cache does.
    #[error("the cache belongs to user {cached}, the token to user {given}")]
    OtherUser {
        /// Whose cache it is.
        cached: Uid,
        /// Who the server says one is.
        given: Uid,
    },
}

/// How a connection ended, or that it never came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disconnect {
    /// Nobody answered, or the answer was no WebSocket.
    Unreachable,
    /// It broke without a close frame.
    Lost,
    /// A close frame with this code came.
    Closed(u16),
}

/// Whether the session wants to be connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// It is connected, or being disconnected: call `handle_disconnected` when that is over.
    Connected,
    /// From this time on.
    ConnectAt(Millis),
    /// Not any more.
    Ended(End),
}

/// Why `send` did not take a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SendError {
    /// The channel is not known: `open` it first.
    #[error("the channel is not known")]
    UnknownChannel,
    /// The outbox is full; room comes with the next `Stored` or `SendRefused`.
    #[error("the outbox is full")]
    Full,
    /// The body is above the server's bound.
    #[error("the body has {bytes} bytes, at most {max} are allowed")]
    BodyTooLarge {
        /// Its length.
        bytes: usize,
        /// What is allowed.
        max: usize,
    },
    /// The kind is `Text` and the body is not UTF-8.
    #[error("the text is not UTF-8")]
    NotUtf8,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// Too many requests are open.
    #[error("too many requests are open")]
    Full,
    /// The channel is not known.
    #[error("the channel is not known")]
    UnknownChannel,
    /// An issuer or subject above 256 bytes.
    #[error("the name is too long")]
    NameTooLong,
    /// A position above the newest message, or an empty range.
    #[error("the position does not exist")]
    NoSuchPosition,
}

/// What a session counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// `welcome` frames.
    pub connections: u64,
    /// Connections that ended after their `welcome`.
    pub disconnections: u64,
    /// Pushes taken in.
    pub pushes: u64,
    /// Messages that were there already.
    pub duplicates: u64,
    /// Holes seen in a channel's pushes.
    pub gaps: u64,
    /// `range` requests that repaired holes.
    pub fills: u64,
    /// Times that the server said `behind`.
    pub behinds: u64,
    /// Sends that were put on the wire.
    pub sends: u64,
    /// Of these, repeats of one that was on the wire before.
    pub resends: u64,
    /// Heartbeats whose push counts differed.
    pub count_mismatches: u64,
    /// Connections given up because answers or heartbeats stayed out.
    pub timeouts: u64,
}
