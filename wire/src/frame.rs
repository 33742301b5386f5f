//! The frames of `chatring.v1`, as both ends think of them: full ids and absolute numbers.
//!
//! Two codecs carry the same types: the binary one shortens channels to aliases and numbers to
//! differences; JSON writes them out. What a frame means does not depend on the codec.
//!
//! ```text
//!  client                                 server
//!    hello{token, installation, cursor} ──▶
//!                                     ◀── welcome
//!                                     ◀── syncing, head*, page*, (page_end, more)*, synced{cursor}
//!    open{subject}                      ──▶
//!                                     ◀── opened{head}
//!    send{cid, cmid, base, prev, body}  ──▶
//!                                     ◀── sent{seq, time}      after it is on disk, never before
//!                                     ◀── text{cid, seq, …}    pushes, counted
//!    ack{pushes}                        ──▶
//! ```

use bytes::Bytes;

use crate::error::ErrorCode;
use crate::id::{Cid, Cmid, DeviceId, HistoryId, InstallationId, MemberNumber, Ordinal, Seq, Uid};

/// A request's number: chosen by the client, ascending within one connection; answers carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u32);

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientFrame {
    /// The first frame of a connection, and only that.
    Hello(Hello),
    /// Renews the token in place. Answered by `done` or `refused`.
    Refresh {
        /// Number of the request.
        request: RequestId,
        /// The new token, of the same user.
        token: String,
    },
    /// Asks for the direct channel with a user. Answered by `opened` or `refused`.
    Open {
        /// Number of the request.
        request: RequestId,
        /// The other user.
        with: UserRef,
    },
    /// Sends a message. Answered by `sent`, `refused`, `unknown` or `continue`.
    Send(Send),
    /// Says how far the user has read and this device has received a channel. Not answered: a
    /// client says it again at attach until a `head` shows it. Markers only rise.
    Mark {
        /// The channel.
        cid: Cid,
        /// The newest message that the user has read; 0 leaves it as it is.
        read: Seq,
        /// The newest message that the device has received; 0 leaves it as it is.
        received: Seq,
    },
    /// How many pushes of this connection the client has taken in: a watermark, not a difference.
    Ack {
        /// Count of pushes since `welcome`.
        pushes: u64,
    },
    /// Asks for what changed since the cursor. Answered by `syncing` … `synced`.
    Sync {
        /// Number of the request.
        request: RequestId,
        /// The newest cursor that the client holds; empty for none.
        cursor: Bytes,
    },
    /// Asks for the next page of the sync that is under way, after a `page_end`.
    More {
        /// Number of the sync's request (0 for the one that `hello` started).
        request: RequestId,
    },
    /// Reads stored messages of a channel. Answered by `rows` or `refused`.
    Range(RangeRequest),
    /// Asks who the members of a channel are. Answered by `members` or `refused`.
    Who {
        /// Number of the request.
        request: RequestId,
        /// The channel.
        cid: Cid,
        /// The member numbers in question, at most 64; empty for all of a direct channel.
        members: Vec<MemberNumber>,
    },
    /// Signs out: ends sessions and makes tokens invalid. Answered by `done` (where the asking
    /// session itself lives on) and a close of every session that it ends.
    SignOut {
        /// Number of the request.
        request: RequestId,
        /// What to sign out.
        scope: SignOutScope,
    },
    /// A heartbeat. Answered by `pong`.
    Ping {
        /// Count of pushes taken in since `welcome`, as in `ack`.
        pushes: u64,
    },
}

/// The fields of `hello`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// JWT of the user, at most 8 KiB. It travels here and never in the URL.
    pub token: String,
    /// Which installation of a client this is.
    pub installation: InstallationId,
    /// Where to resume; empty for a first sync.
    pub cursor: Bytes,
    /// Bit set of optional features that the client understands; unknown bits are ignored.
    pub capabilities: u64,
    /// Largest frame that the client takes, at least 72 KiB.
    pub frame_bytes_max: u32,
}

/// Names a user, by what a person types or by id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserRef {
    /// By the pair that a token carries. An empty issuer means the deployment's own.
    Subject {
        /// `iss` of the user's tokens.
        issuer: String,
        /// `sub` of the user's tokens.
        subject: String,
    },
    /// By id.
    Uid(Uid),
}

/// What `sign_out` ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignOutScope {
    /// Every session; tokens made up to now are refused from now on.
    Everywhere,
    /// The sessions of one device, which must be given a new installation id to come back.
    Device(DeviceId),
}

/// A message on its way in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// Number of the request.
    pub request: RequestId,
    /// The channel.
    pub cid: Cid,
    /// The message's own id. A retry carries the same one, whatever the connection.
    pub cmid: Cmid,
    /// The newest seq of the channel that the client had seen when it first sent this cmid (or
    /// `checked_to` of the last `continue`); 0 for none. A retry carries the same one.
    pub base: Seq,
    /// The client's previous send to this channel on this connection, while it is still open.
    pub previous: Option<RequestId>,
    /// What kind of body it is.
    pub kind: MessageKind,
    /// At most 64 KiB. UTF-8 if the kind is `Text`.
    pub body: Bytes,
}

/// Kinds of messages. Numbers that a peer does not know are kept as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageKind(pub u8);

impl MessageKind {
    /// UTF-8 text. It counts as unread.
    pub const TEXT: MessageKind = MessageKind(0);
    /// Bytes whose meaning the clients agree on. It counts as unread.
    pub const DATA: MessageKind = MessageKind(1);

    /// Whether an entry of this kind counts as unread.
    pub const fn counts_as_unread(self) -> bool {
        matches!(self, MessageKind::TEXT | MessageKind::DATA)
    }
}

/// Asks for stored messages between two positions, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeRequest {
    /// Number of the request.
    pub request: RequestId,
    /// The channel.
    pub cid: Cid,
    /// Lowest position, from 1.
    pub from: Seq,
    /// Highest position; one above the head is taken as the head.
    pub to: Seq,
    /// At most this many messages (the server may give fewer; 0 takes the server's bound).
    pub limit: u32,
    /// From which end to start if not all fit.
    pub direction: Direction,
}

/// From which end a range is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Oldest first.
    Ascending,
    /// Newest first.
    Descending,
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerFrame {
    /// The answer to a `hello` that was taken.
    Welcome(Welcome),
    /// A request without further answer succeeded (`refresh`, `sign_out`).
    Done {
        /// Number of the request.
        request: RequestId,
    },
    /// The channel that `open` asked for.
    Opened {
        /// Number of the request.
        request: RequestId,
        /// The channel as it stands.
        head: Head,
    },
    /// The message is stored with the durability that `welcome` names. Also answers a repeat, with
    /// the position of the first. It is the push of this message for the sending session: it fills
    /// `seq` in the channel's order, but is not counted as one.
    Sent {
        /// Number of the request.
        request: RequestId,
        /// The channel of the send.
        cid: Cid,
        /// Position of the message.
        seq: Seq,
        /// Unix time of the message in milliseconds.
        time_ms: u64,
    },
    /// The request was surely not carried out.
    Refused {
        /// Number of the request.
        request: RequestId,
        /// Why.
        error: Failure,
    },
    /// Whether the message is stored is not known: send it again, with the same cmid and base.
    Unknown {
        /// Number of the request.
        request: RequestId,
    },
    /// No repeat was found up to `checked_to`: send again with that as the base.
    Continue {
        /// Number of the request.
        request: RequestId,
        /// The new base.
        checked_to: Seq,
    },
    /// A push: a text that counts as unread, by far the most frequent frame.
    Text {
        /// The channel.
        cid: Cid,
        /// Position of the message.
        seq: Seq,
        /// The sender's number in the channel.
        sender: MemberNumber,
        /// Unix time in milliseconds.
        time_ms: u64,
        /// UTF-8.
        body: Bytes,
    },
    /// A push: a message of another kind, or one whose sender's device wants to know its cmid.
    Entry {
        /// The channel.
        cid: Cid,
        /// The message with all its fields.
        row: Row,
    },
    /// A push: markers of the user that another device has moved.
    Marker {
        /// The channel.
        cid: Cid,
        /// How far the user has read.
        read: Seq,
        /// The ordinal of that message.
        read_ordinal: Ordinal,
        /// How far any device of the user has received.
        received: Seq,
    },
    /// Opens a sync.
    Syncing {
        /// The request that asked (0: the `hello`).
        request: RequestId,
        /// What the client does with what it has cached.
        cache: CacheAction,
    },
    /// A channel that changed since the cursor, in a sync.
    Head(Head),
    /// Messages of a channel that changed, in a sync.
    Page(Page),
    /// The server waits for `more` before it goes on with the sync.
    PageEnd {
        /// The request of the sync.
        request: RequestId,
    },
    /// The sync is complete: everything that it covers stands before this frame in the stream.
    Synced {
        /// The request of the sync (0: the `hello` or the server's own audit).
        request: RequestId,
        /// Where to resume from now on, at most 1 KiB, opaque.
        cursor: Bytes,
    },
    /// The window is full: pushes stop until the client has pulled with `sync`.
    Behind,
    /// The answer to `range`.
    Rows {
        /// Number of the request.
        request: RequestId,
        /// What was read. `gap` is set if the range was not read to its end.
        page: Page,
    },
    /// The answer to `who`.
    Members {
        /// Number of the request.
        request: RequestId,
        /// The channel.
        cid: Cid,
        /// Those of the asked members that exist.
        members: Vec<Member>,
    },
    /// The server is about to close: reconnect after a time drawn from the given span.
    Drain {
        /// Earliest, in milliseconds from now.
        after_ms: u32,
        /// Width of the span that clients spread over.
        spread_ms: u32,
    },
    /// The answer to `ping`.
    Pong {
        /// Count of pushes sent since `welcome`, before this frame.
        pushes: u64,
        /// The server's Unix time in milliseconds.
        time_ms: u64,
    },
    /// The connection is about to be closed because of this.
    Error(Failure),
}

impl ServerFrame {
    /// Whether this frame is a push: counted, and bounded by the credit window.
    pub const fn is_push(&self) -> bool {
        matches!(
            self,
            ServerFrame::Text { .. } | ServerFrame::Entry { .. } | ServerFrame::Marker { .. }
        )
    }
}

/// The fields of `welcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Who the server takes the client for.
    pub uid: Uid,
    /// The number of this installation.
    pub device: DeviceId,
    /// A client that holds another one drops its cache.
    pub history: HistoryId,
    /// The server's Unix time in milliseconds.
    pub time_ms: u64,
    /// The client pings at least this often; after two and a half times of silence it is closed.
    pub heartbeat_ms: u32,
    /// Pushes that may be unacknowledged.
    pub window_pushes: u32,
    /// Bytes of pushes that may be unacknowledged.
    pub window_bytes: u32,
    /// Largest frame that the server takes.
    pub frame_bytes_max: u32,
    /// Longest body.
    pub body_bytes_max: u32,
    /// Sends that may be open at once.
    pub open_sends_max: u32,
    /// What an ack stands for.
    pub durability: Durability,
}

/// What "stored" means on this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Durability {
    /// In memory only (tests).
    Memory = 0,
    /// Synced to this machine's disk.
    Fsync = 1,
    /// Held by a majority of a cluster.
    Replicated = 2,
}

impl Durability {
    /// The durability with this number.
    pub const fn from_number(number: u8) -> Option<Durability> {
        match number {
            0 => Some(Durability::Memory),
            1 => Some(Durability::Fsync),
            2 => Some(Durability::Replicated),
            _ => None,
        }
    }

    /// The name that JSON uses.
    pub const fn name(self) -> &'static str {
        match self {
            Durability::Memory => "memory",
            Durability::Fsync => "fsync",
            Durability::Replicated => "replicated",
        }
    }
}

/// Why a request or a connection was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Number of the error. One that this build does not know is kept as a number.
    pub code: Result<ErrorCode, u16>,
    /// For people, in English, at most 256 bytes; may be empty.
    pub text: String,
    /// When it is worth another try.
    pub retry_after_ms: Option<u32>,
    /// The WebSocket URL of the node to go to instead.
    pub moved_to: Option<String>,
}

impl Failure {
    /// A failure without text or advice.
    pub const fn new(code: ErrorCode) -> Failure {
        Failure { code: Ok(code), text: String::new(), retry_after_ms: None, moved_to: None }
    }

    /// The same, with the time after which it is worth another try.
    #[must_use]
    pub const fn retry_after(mut self, ms: u32) -> Failure {
        self.retry_after_ms = Some(ms);
        self
    }

    /// The same, with a word for people, cut to its bound.
    #[must_use]
    pub fn text(mut self, text: impl Into<String>) -> Failure {
        self.text = text.into();
        let mut end = self.text.len().min(crate::limits::ERROR_TEXT_BYTES_MAX);
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        self.text.truncate(end);
        self
    }
}

/// A channel as a user sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The channel.
    pub cid: Cid,
    /// What kind of channel.
    pub kind: ChannelKind,
    /// The other user of a direct channel.
    pub peer: Option<Uid>,
    /// The user's own member number.
    pub me: MemberNumber,
    /// The newest position; 0 while the channel is empty.
    pub head: Seq,
    /// The ordinal of the newest message.
    pub ordinal: Ordinal,
    /// The oldest position kept; 1 if nothing was trimmed.
    pub floor: Seq,
    /// How far the user has read.
    pub read: Seq,
    /// The ordinal up to which nothing counts as unread (read, joined, or sent by oneself).
    pub read_ordinal: Ordinal,
    /// How far any device of the user has received.
    pub received: Seq,
    /// What the client's cached messages of this channel are worth after this frame.
    pub rows: HeadRows,
}

impl Head {
    /// How many messages count as unread.
    pub const fn unread(&self) -> u64 {
        self.ordinal.0.saturating_sub(self.read_ordinal.0)
    }
}

/// What a `head` says about the messages of its channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadRows {
    /// No message changed since the cursor: cached ones stand.
    Unchanged,
    /// A `page` of this channel follows in the same sync.
    Follow,
    /// Messages changed and are not given: what is cached of this channel is stale and is
    /// read again (`range`) before it is shown.
    Stale,
}

/// Kinds of channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ChannelKind {
    /// Two users.
    Direct = 0,
    /// Many users.
    Group = 1,
    /// Few write, many read.
    Broadcast = 2,
}

impl ChannelKind {
    /// The kind with this number.
    pub const fn from_number(number: u8) -> Option<ChannelKind> {
        match number {
            0 => Some(ChannelKind::Direct),
            1 => Some(ChannelKind::Group),
            2 => Some(ChannelKind::Broadcast),
            _ => None,
        }
    }

    /// The name that JSON uses.
    pub const fn name(self) -> &'static str {
        match self {
            ChannelKind::Direct => "direct",
            ChannelKind::Group => "group",
            ChannelKind::Broadcast => "broadcast",
        }
    }
}

/// What a client does with its cache when a sync opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheAction {
    /// What follows is what changed.
    Keep,
    /// The cursor is of no use here: drop every channel, message and marker; what follows is all.
    Replace,
}

/// Consecutive messages of a channel, in ascending order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The channel.
    pub cid: Cid,
    /// Lowest position that the page covers.
    pub from: Seq,
    /// Highest position that the page covers; below `from` if it covers none.
    pub to: Seq,
    /// Whether more lies below `from` (in a sync: cached messages below are stale; in `rows`: on
    /// the far side of the reading direction, within the asked range).
    pub gap: bool,
    /// The messages `from` … `to`, each once.
    pub rows: Vec<Row>,
}

/// A stored message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Position.
    pub seq: Seq,
    /// How many messages up to this one count as unread.
    pub ordinal: Ordinal,
    /// What kind of body.
    pub kind: MessageKind,
    /// The sender's number in the channel.
    pub sender: MemberNumber,
    /// The sender's device; 0 for a send without an installation.
    pub device: DeviceId,
    /// The client's id of the message.
    pub cmid: Cmid,
    /// Unix time in milliseconds.
    pub time_ms: u64,
    /// At most 64 KiB.
    pub body: Bytes,
}

/// Who has a member number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The number in the channel.
    pub number: MemberNumber,
    /// The user.
    pub uid: Uid,
    /// `iss` of the user's tokens.
    pub issuer: String,
    /// `sub` of the user's tokens.
    pub subject: String,
}
