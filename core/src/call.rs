//! What somebody without a session asks of a user's shard, and what it is answered: one answer for
//! each call.
//!
//! ```text
//!  Input::Call ─▶ who is it? ─┬▶ open · send · list · read · mark ───────▶ Effect::Answer
//!                             └▶ sync: something new? it is the answer ──▶      ▲
//!                                nothing: parked until it comes, or the time is over
//!  Input::CallGone: nobody waits for the answer any more
//! ```
//!
//! A continuing stream is one sync after the other, each with the cursor of the last: what the
//! reader is slow to take stays in the store instead of in a queue.

use bytes::Bytes;
use chatring_wire::frame::{
    CacheAction, Failure, Head, Member, MessageKind, Page, Row, SignOutScope, UserRef,
};
use chatring_wire::{Cid, Cmid, DeviceId, InstallationId, Ordinal, Seq, Uid};

use crate::effect::Identity;

/// Channels that one page of a list has at most.
pub const LIST_CHANNELS_MAX: u32 = 50;
/// Events that one sync answers at most, and what 0 stands for.
pub const SYNC_EVENTS_MAX: u32 = 256;
/// How long a sync may be parked.
pub const SYNC_WAIT_MS_MAX: u32 = 60_000;

/// A call under way. Given by the driver, below 2^63, never used twice within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// Who asks for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Whose token it was.
    pub identity: Identity,
    /// Which of the user's four candidate ids this shard is asked to try, from 0.
    pub candidate: u8,
    /// From which device.
    pub device: CallDevice,
    /// What is asked.
    pub request: CallRequest,
}

/// How a user stands to another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// Issuer of the other user.
    pub issuer: String,
    /// Subject of the other user.
    pub subject: String,
    /// Rises with each change of the relations of the user: what is older than what is stored
    /// changes nothing.
    pub version: u64,
    /// Whether the two are friends.
    pub friends: bool,
    /// Whether the user has blocked the other one.
    pub blocked: bool,
}

impl Decision {
    /// Whether a user is made known to the chat by it who was not.
    pub(crate) fn makes_known(&self) -> bool {
        match self {
            Decision::Relation(relation) => relation.friends || relation.blocked,
            Decision::DeviceSignedOut { .. }
            | Decision::DeviceRemoved { .. }
            | Decision::AccountDeleted { .. } => false,
        }
    }
}

impl Call {
    /// A decision about a user, on nobody's behalf.
    pub fn decided(issuer: String, subject: String, decision: Decision) -> Call {
        let (issued_at_s, expires_at_s) = (u64::MAX, u64::MAX);
        let identity = Identity { issuer, subject, issued_at_s, expires_at_s, installation: None };
        let (device, request) = (CallDevice::None, CallRequest::Decided(decision));
        Call { identity, candidate: 0, device, request }
    }
}

/// From which of its devices a user asks. One that was removed is refused (`revoked_token`). With a
/// token that is bound to an installation it is that one: `None` stands for it, and any other than
/// its `Installation` is refused (`invalid_token`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallDevice {
    /// From none: sends carry device 0, which all such callers of a user share.
    None,
    /// From one that has been told its number.
    Number(DeviceId),
    /// From an installation, which gets a number if it has none.
    Installation(InstallationId),
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallRequest {
    /// Makes the user and device known, so that others can open a channel with the user. Answered
    /// by `SignedIn`. Every other call does so too.
    SignIn,
    /// Finds or makes the direct channel with a user. Answered by `Channel`.
    Open(UserRef),
    /// Sends a message. Answered by `Sent`, `Unknown` or `Continue`.
    Send(CallSend),
    /// The user's channels that have messages, by id. Answered by `Channels`.
    Channels {
        /// The last channel of the page before; `None` for the first page.
        after: Option<Cid>,
        /// At most so many; 0 or more than [`LIST_CHANNELS_MAX`] stands for that.
        limit: u32,
    },
    /// One channel. Answered by `Channel`.
    Channel(Cid),
    /// Stored messages of a channel. Answered by `History`.
    History {
        /// The channel.
        cid: Cid,
        /// Only older ones; the newest of them are given.
        before: Option<Seq>,
        /// Only newer ones; the oldest of them are given (also together with `before`).
        after: Option<Seq>,
        /// At most so many; 0 takes the server's bound. There may be fewer, with `gap` set.
        limit: u32,
    },
    /// What is new since a cursor. Answered by `Synced`.
    Sync(CallSync),
    /// Says how far the user has read and the device received a channel. Answered by `Done` once
    /// that is stored. Markers only rise, and never above the head.
    Mark {
        /// The channel.
        cid: Cid,
        /// The newest message that the user has read; 0 leaves it as it is.
        read: Seq,
        /// The newest message that the device has received; 0 leaves it as it is.
        received: Seq,
    },
    /// Tells the other member that the user is typing. Not stored. Answered by `Done`.
    Typing(Cid),
    /// Ends sessions and makes tokens invalid. Answered by `Done` once that is stored.
    SignOut(SignOutScope),
    /// Carries out what the accounts have decided about the user. Only the node itself asks this
    /// ([`Call::decided`]), so no bound on what users ask holds it up. Answered by `Done` once it
    /// is in force and stored.
    Decided(Decision),
}

/// What the accounts have decided about a user. To be asked again until it is answered by `Done`;
/// carrying it out once more changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A device was signed out: its live sessions end, and its calls that wait, whose tokens were
    /// made at or before that time. With a later one it may come back.
    DeviceSignedOut {
        /// Which.
        installation: InstallationId,
        /// Unix seconds.
        at_s: u64,
    },
    /// A device was removed: all that it has ends, and its installation does not come back.
    DeviceRemoved {
        /// Which.
        installation: InstallationId,
    },
    /// How the user stands to another one: answered once no later send slips through a block.
    Relation(Relation),
    /// The account was deleted: tokens made at or before that time are refused from now on, and
    /// what lives of them ends.
    AccountDeleted {
        /// Unix seconds.
        at_s: u64,
    },
}

/// A message on its way in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallSend {
    /// The channel.
    pub cid: Cid,
    /// The message's own id, unique for the device. A repeat carries the same one, and is answered
    /// with the position of the first; with another body it is `cmid_reused`.
    pub cmid: Cmid,
    /// The newest seq of the channel that the client had seen when it first sent this cmid. `None`
    /// for clients that do not keep one: the server then keeps the cmid instead. A repeat says the
    /// same.
    pub base: Option<Seq>,
    /// What kind of body it is.
    pub kind: MessageKind,
    /// At most 64 KiB. UTF-8 if the kind is `Text`.
    pub body: Bytes,
}

/// Asks for what is new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallSync {
    /// The newest cursor that the client holds, of whatever transport; empty for a first sync.
    pub cursor: Bytes,
    /// At most so many events, a page counting its messages; 0 or more than [`SYNC_EVENTS_MAX`]
    /// stands for that.
    pub limit: u32,
    /// How long to wait if nothing is new, at most [`SYNC_WAIT_MS_MAX`]; 0 answers at once.
    pub wait_ms: u32,
}

/// The answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was carried out, and there is nothing to say about it.
    Done,
    /// The user and its device are known.
    SignedIn {
        /// The user's id.
        uid: Uid,
        /// The device's number; 0 without one.
        device: DeviceId,
    },
    /// A channel.
    Channel(Box<ChannelView>),
    /// The message is stored, with the store's durability.
    Sent {
        /// Position.
        seq: Seq,
        /// Unix time in milliseconds.
        time_ms: u64,
        /// Whether this call stored it.
        again: Again,
    },
    /// Whether the message is stored is not known: send it again, with the same cmid and base.
    Unknown,
    /// No repeat was found up to `checked_to`: send again with that as the base.
    Continue {
        /// The new base.
        checked_to: Seq,
    },
    /// A page of the user's channels.
    Channels {
        /// By id.
        channels: Vec<ChannelView>,
        /// Where the next page starts (`after`); `None` if this is the last one.
        next: Option<Cid>,
    },
    /// Stored messages, ascending. `gap` is set if the range was not read to its end.
    History(Page),
    /// What is new.
    Synced(Synced),
}

/// What a call comes to: a failure says that it was surely not carried out.
pub type CallResult = Result<Answer, Failure>;

/// Whether a send is the first of its client message id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// It is: the message was stored for it.
    First,
    /// The message was there before.
    Repeat,
}

/// A channel with what a list shows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelView {
    /// The channel as its user sees it.
    pub head: Head,
    /// The other member of a direct channel.
    pub peer: Option<Member>,
    /// The newest message; `None` while there is none.
    pub last: Option<Row>,
}

/// What is new since a cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synced {
    /// What the client does with what it has cached, before the events.
    pub cache: CacheAction,
    /// In the order in which the client takes them in. Messages of a channel ascend.
    pub events: Vec<Event>,
    /// Where to go on, at most 1 KiB, opaque; as good for a session as for a call.
    pub cursor: Bytes,
    /// Whether it is worth asking again at once.
    pub more: More,
}

/// Whether a sync was given to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum More {
    /// There was no more when this was answered.
    No,
    /// The limit was reached.
    Yes,
}

/// Something new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A channel that changed, in a sync after an absence; its page follows if it has one.
    Channel(Head),
    /// Messages of a channel, in a sync after an absence: the newest ones. With `gap` set, messages
    /// that the client does not have may lie below, to be read as history.
    Page(Page),
    /// A message as it came.
    Message {
        /// The channel.
        cid: Cid,
        /// Who sent it.
        uid: Uid,
        /// The message.
        row: Row,
    },
    /// The user's markers of a channel have moved.
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
    /// Somebody is typing now.
    Typing {
        /// The channel.
        cid: Cid,
        /// Who.
        uid: Uid,
    },
}
