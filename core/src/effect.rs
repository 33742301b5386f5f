//! What happens to a shard and what it wants done: the whole border between `core` and a driver.

use bytes::Bytes;
use chatring_wire::frame::{MessageKind, RequestId, Row, ServerFrame};
use chatring_wire::{
    Cid, ClientFrame, CloseCode, Cmid, DeviceId, ErrorCode, InstallationId, Seq, Uid,
};
use thiserror::Error;

use crate::call::{Again, Call, CallId, CallResult};
use crate::kv::{Completion, LaneId, Request, Ticket, Version};
use crate::values::{Block, ValueError};

/// Two clocks, both in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Never goes back; counts suspended time too. Timers use it.
    pub mono_ms: u64,
    /// Unix time. It may jump either way. Messages carry it.
    pub unix_ms: u64,
}

/// A core of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

/// A live session. Given by the driver, below 2^63, never used twice within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Who a verified token belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `iss`.
    pub issuer: String,
    /// `sub`.
    pub subject: String,
    /// `iat`, Unix seconds.
    pub issued_at_s: u64,
    /// `exp`, Unix seconds.
    pub expires_at_s: u64,
    /// The only installation that the token is good for; any, if there is none.
    pub installation: Option<InstallationId>,
}

/// A `hello` whose token was found good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    /// Whose token it was.
    pub identity: Identity,
    /// Which of the user's four candidate ids this shard is asked to try, from 0.
    pub candidate: u8,
    /// Which installation.
    pub installation: InstallationId,
    /// Where to resume; empty for a first sync.
    pub cursor: Bytes,
}

/// What happens to a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// A connection said a good `hello`, and this shard owns the candidate id.
    Attach {
        /// The new session.
        session: SessionId,
        /// What it said.
        attach: Attach,
    },
    /// A session said something. `hello` and `refresh` never come this way.
    Frame {
        /// Which session.
        session: SessionId,
        /// What it said.
        frame: ClientFrame,
    },
    /// A session sent `refresh` and its token was looked at.
    Refreshed {
        /// Which session.
        session: SessionId,
        /// Number of the request.
        request: RequestId,
        /// Whose token it is, or why it is none.
        identity: Result<Identity, ErrorCode>,
    },
    /// The connection is gone.
    Detached {
        /// Which session.
        session: SessionId,
    },
    /// Somebody without a session asks for something, and this shard owns the candidate id.
    Call {
        /// The new call.
        call: CallId,
        /// Who asks for what.
        what: Box<Call>,
    },
    /// Nobody waits for the answer to a call any more. What it began may still be carried out.
    CallGone {
        /// Which call.
        call: CallId,
    },
    /// The store answers.
    Store(Completion),
    /// Another shard of this node (or this one) sent something.
    Shard {
        /// Which one.
        from: ShardId,
        /// What, in the order in which it was said.
        messages: Vec<ShardMessage>,
    },
    /// The node is about to stop: tell sessions, refuse new ones, finish what is in flight.
    Drain,
}

/// What a shard wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a frame to a session.
    Send {
        /// Which session.
        session: SessionId,
        /// What.
        frame: ServerFrame,
    },
    /// Close a session's connection after what was sent before. No `Detached` is owed for it.
    Close {
        /// Which session.
        session: SessionId,
        /// With which code.
        code: CloseCode,
    },
    /// Submit a request to the store.
    Store {
        /// Comes back with the completion.
        ticket: Ticket,
        /// What to submit.
        request: Request,
    },
    /// Let a stopped lane go on.
    Resume(LaneId),
    /// Give messages to another shard; the driver keeps their order.
    ToShard {
        /// Which one.
        to: ShardId,
        /// What.
        messages: Vec<ShardMessage>,
    },
    /// The user's candidate id is somebody else's: hand the connection to the shard that owns the
    /// next candidate and attach it there.
    Rehome {
        /// Which session. It is gone from this shard.
        session: SessionId,
        /// What to attach with.
        attach: Attach,
        /// Where.
        to: ShardId,
    },
    /// The answer to a call, which ends with it.
    Answer {
        /// Which call.
        call: CallId,
        /// The answer, or why there is none.
        answer: Box<CallResult>,
    },
    /// The caller's candidate id is somebody else's: give the call to the shard that owns the next
    /// candidate.
    CallElsewhere {
        /// Which call. It is gone from this shard.
        call: CallId,
        /// Who asks for what, with the next candidate.
        what: Box<Call>,
        /// Where.
        to: ShardId,
    },
    /// Nothing more can be promised: end the process.
    Fatal(FatalCause),
}

/// Why a shard cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FatalCause {
    /// The store has failed for good.
    #[error("the store has failed")]
    StoreFailed,
    /// A stored row does not parse, or rows that must be there are not.
    #[error("stored rows are damaged: {0}")]
    Damaged(ValueError),
    /// Another process has taken this core's place in the store.
    #[error("another process has taken this core's place in the store")]
    FenceTaken,
    /// The store broke its contract.
    #[error("the store gave an answer that its contract does not allow")]
    StoreBroken,
}

/// A send or other request that is open at a user's shard, as other shards name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SendRef {
    /// The session; for a call its number with the top bit set, which no session's has.
    pub session: SessionId,
    /// The request within the session.
    pub request: RequestId,
}

impl SendRef {
    const CALL: u64 = 1 << 63;

    /// Names a call.
    pub const fn of_call(call: CallId) -> SendRef {
        SendRef { session: SessionId(call.0 | Self::CALL), request: RequestId(0) }
    }

    /// The call, if it is one.
    pub const fn call(self) -> Option<CallId> {
        match self.session.0 & Self::CALL {
            0 => None,
            _ => Some(CallId(self.session.0 & !Self::CALL)),
        }
    }
}

/// What shards tell one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardMessage {
    /// A session's shard asks the channel's owner for the direct channel of two users.
    OpenDirect {
        /// Who asks.
        origin: SendRef,
        /// The user who asks.
        uid: Uid,
        /// The other one.
        peer: Uid,
        /// Which of the pair's candidate ids this owner is asked to try, from 0.
        candidate: u8,
    },
    /// The owner's answer: the channel is stored, or why not.
    Opened {
        /// Who asked.
        origin: SendRef,
        /// The channel.
        result: Result<Cid, ErrorCode>,
    },
    /// A session's shard passes a send to the channel's owner.
    Send(SendRequest),
    /// The owner's answer.
    Answer {
        /// Which send.
        origin: SendRef,
        /// Of which channel.
        cid: Cid,
        /// What became of it.
        answer: SendAnswer,
    },
    /// A user's shard asks the channel's owner to put a block there, or to lift it.
    Block(BlockRequest),
    /// The owner's answer: it is stored, or why not.
    BlockStored {
        /// Who asked.
        origin: SendRef,
        /// What became of it.
        result: Result<(), ErrorCode>,
    },
    /// The owner tells a member's shard about a message that is stored.
    Notify {
        /// The member.
        uid: Uid,
        /// The version at or below which the message was committed.
        version: Version,
        /// The message.
        message: Stored,
    },
    /// Stands for notifications of a channel that the queue between two shards could not hold.
    NotifyCollapsed {
        /// The member.
        uid: Uid,
        /// The channel.
        cid: Cid,
        /// The newest of them.
        seq: Seq,
        /// Its version.
        version: Version,
    },
    /// A member's shard tells the other one's that somebody is typing. A full queue drops it.
    Typing {
        /// The member that is told.
        uid: Uid,
        /// The channel.
        cid: Cid,
        /// Who is typing.
        from: Uid,
    },
    /// A shard wants to know once all that was submitted up to now is stored and notified. One at a
    /// time from each.
    HowFar {
        /// Which one.
        asker: ShardId,
    },
    /// It is, as far as this shard goes. No notification comes after this that was to come before.
    ThusFar {
        /// Commits of an earlier process in this shard's place lie below this version.
        claimed: Version,
    },
    /// The receiver has taken in this many messages: the sender may send as many more.
    Credit {
        /// How many.
        messages: u32,
    },
}

/// A send on its way from a session's shard to the channel's owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendRequest {
    /// Who waits for the answer.
    pub origin: SendRef,
    /// The channel.
    pub cid: Cid,
    /// The sender.
    pub uid: Uid,
    /// Its device.
    pub device: DeviceId,
    /// The message's own id.
    pub cmid: Cmid,
    /// What the sender had seen of the channel; `None` if it does not say.
    pub base: Option<Seq>,
    /// The send that must be known before this one.
    pub previous: Option<Cmid>,
    /// What kind of body.
    pub kind: MessageKind,
    /// At most 64 KiB.
    pub body: Bytes,
}

/// How a user stands to the other one of a direct channel, on its way to the channel's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRequest {
    /// Who waits for the answer.
    pub origin: SendRef,
    /// The user.
    pub uid: Uid,
    /// The other one.
    pub peer: Uid,
    /// Which of the pair's candidate ids this owner is asked to try, from 0.
    pub candidate: u8,
    /// Whether the user has blocked the other one.
    pub block: Block,
}

/// What became of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendAnswer {
    /// Stored, now or by the first of its repeats.
    Stored {
        /// Position.
        seq: Seq,
        /// Unix time in milliseconds.
        time_ms: u64,
        /// Whether it was this send that stored it.
        again: Again,
    },
    /// Surely not stored.
    Refused {
        /// Why.
        code: ErrorCode,
        /// When it is worth another try.
        retry_after_ms: Option<u32>,
    },
    /// Not found up to here: send again with this base.
    Continue {
        /// The new base.
        checked_to: Seq,
    },
}

/// A message that is stored, as it goes from its owner to the members' shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The channel.
    pub cid: Cid,
    /// Who sent it.
    pub uid: Uid,
    /// The message.
    pub row: Row,
    /// The sends that are answered with this message: while they are open, it is no push for them.
    pub origins: Origins,
}

/// The sends that one message answers. Nearly always there is one, which takes no memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origins {
    /// None.
    #[default]
    None,
    /// One.
    One(SendRef),
    /// Several, in the order in which they came.
    Many(Vec<SendRef>),
}

impl Origins {
    /// Adds a send.
    pub fn push(&mut self, origin: SendRef) {
        match self {
            Origins::None => *self = Origins::One(origin),
            Origins::One(first) => *self = Origins::Many(vec![*first, origin]),
            Origins::Many(origins) => origins.push(origin),
        }
    }

    /// All of them.
    pub fn as_slice(&self) -> &[SendRef] {
        match self {
            Origins::None => &[],
            Origins::One(origin) => std::slice::from_ref(origin),
            Origins::Many(origins) => origins,
        }
    }
}
