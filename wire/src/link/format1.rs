//! Format 1: calls at the nodes, and their answers. Released; never edited.
//!
//! The types mirror what a node is asked and answers, in fixed-width numbers and nothing but. An
//! archive is read where it lies, after its bytes were checked.

// What the derives make has no words of its own for the fields of tuple variants.
#![allow(missing_docs)]

use bytes::Bytes;
use rkyv::rancor::Failure as Refused;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

use super::LinkError;

/// The number of this format.
pub const NUMBER: u16 = 1;

/// Writes an archive.
macro_rules! archives {
    ($name:ident) => {
        impl $name {
            /// The archive.
            pub fn archive(&self) -> AlignedVec {
                rkyv::to_bytes::<Refused>(self).expect("memory is all that it takes")
            }

            /// Checks an archive and reads it.
            ///
            /// # Errors
            /// `Archive`.
            pub fn read(archive: &[u8]) -> Result<$name, LinkError> {
                rkyv::from_bytes::<$name, Refused>(archive).map_err(|_| LinkError::Archive)
            }
        }
    };
}

/// What an API server says to a node.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum ToNode {
    /// A call, answered by one `Answer` with its ticket.
    Call(Call),
    /// Nobody waits for the answer of a call any more; none need come.
    Withdraw {
        /// The call's.
        ticket: u64,
    },
    /// Asks for `Pong`, to see that the node lives.
    Ping,
}

/// What a node says to an API server.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum ToApi {
    /// The first archive of a link, and only that.
    Welcome(Welcome),
    /// The answer to a call.
    Answer {
        /// The call's.
        ticket: u64,
        /// What it comes to.
        outcome: Outcome,
    },
    /// The answer to `Ping`.
    Pong,
}

archives!(ToNode);
archives!(ToApi);

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Welcome {
    /// URL of its WebSocket, as clients reach it.
    pub ws: String,
    /// The version of what runs there.
    pub version: String,
    /// The id of the key whose tokens are the deployment's own.
    pub token_key: String,
    /// What "stored" means there, by its number in the WebSocket's `welcome`.
    pub durability: u8,
    /// Calls of this link that may be under way.
    pub calls_max: u32,
}

/// A call.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Call {
    /// Names the call on this link; ascending.
    pub ticket: u64,
    /// Whose token it was.
    pub identity: Identity,
    /// From which device.
    pub device: Device,
    /// What is asked.
    pub request: Request,
}

/// Who a verified token belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Identity {
    /// `iss`.
    pub issuer: String,
    /// `sub`.
    pub subject: String,
    /// `iat`, Unix seconds.
    pub issued_at_s: u64,
    /// `exp`, Unix seconds.
    pub expires_at_s: u64,
    /// The only installation that the token is good for.
    pub installation: Option<[u8; 16]>,
}

/// A device of the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Device {
    /// None.
    None,
    /// By its number.
    Number(u32),
    /// By its installation.
    Installation([u8; 16]),
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Request {
    /// Makes the user and device known.
    SignIn,
    /// Finds or makes the direct channel with a user.
    Open(User),
    /// Sends a message.
    Send(Send),
    /// A page of the user's channels.
    Channels {
        /// The last channel of the page before.
        after: Option<u64>,
        /// At most so many; 0 for the most.
        limit: u32,
    },
    /// One channel.
    Channel(u64),
    /// Stored messages.
    History {
        /// The channel.
        cid: u64,
        /// Only older ones.
        before: Option<u64>,
        /// Only newer ones.
        after: Option<u64>,
        /// At most so many; 0 for the most.
        limit: u32,
    },
    /// What is new since a cursor.
    Sync {
        /// The cursor; empty for none.
        cursor: Bytes,
        /// At most so many events; 0 for the most.
        limit: u32,
        /// How long to wait if there is nothing.
        wait_ms: u32,
    },
    /// Markers of a channel.
    Mark {
        /// The channel.
        cid: u64,
        /// How far it is read.
        read: u64,
        /// How far it is received.
        received: u64,
    },
    /// The user is typing in a channel.
    Typing(u64),
    /// Ends all sessions.
    SignOutEverywhere,
    /// Ends the sessions of a device.
    SignOutDevice(u32),
    /// The accounts have decided: a device was signed out.
    DeviceSignedOut {
        /// Which.
        installation: [u8; 16],
        /// What it had up to this Unix second.
        at_s: u64,
    },
    /// The accounts have decided: a device was removed.
    DeviceRemoved {
        /// Which.
        installation: [u8; 16],
    },
    /// The accounts have decided: the user's account was deleted.
    AccountDeleted {
        /// What there was up to this Unix second.
        at_s: u64,
    },
    /// The accounts have decided: how the user stands to another one.
    Relation {
        /// `iss` of the other one.
        issuer: String,
        /// `sub` of the other one.
        subject: String,
        /// Rises with each change of the user's relations.
        version: u64,
        /// Whether the two are friends.
        friends: bool,
        /// Whether the user has blocked the other one.
        blocked: bool,
    },
}

/// Names a user.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum User {
    /// By the pair that a token carries.
    Subject {
        /// `iss`; empty for the deployment's own.
        issuer: String,
        /// `sub`.
        subject: String,
    },
    /// By id.
    Uid(u64),
}

/// A message on its way in.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Send {
    /// The channel.
    pub cid: u64,
    /// The message's own id.
    pub cmid: [u8; 16],
    /// The newest seq that the client had seen, if it keeps one.
    pub base: Option<u64>,
    /// What kind of body.
    pub kind: u8,
    /// The body.
    pub body: Bytes,
}

/// What a call comes to.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Outcome {
    /// It was carried out.
    Done,
    /// The user and device are known.
    SignedIn {
        /// The user's id.
        uid: u64,
        /// The device's number; 0 without one.
        device: u32,
    },
    /// A channel.
    Channel(ChannelView),
    /// The message is stored now.
    Sent {
        /// Position.
        seq: u64,
        /// Unix time in milliseconds.
        time_ms: u64,
    },
    /// The message was stored before.
    SentBefore {
        /// Position.
        seq: u64,
        /// Unix time in milliseconds.
        time_ms: u64,
    },
    /// Whether the message is stored is not known.
    Unknown,
    /// Send again with this base.
    Continue {
        /// The new base.
        checked_to: u64,
    },
    /// A page of channels.
    Channels {
        /// By id.
        channels: Vec<ChannelView>,
        /// Where the next page starts.
        next: Option<u64>,
    },
    /// Stored messages.
    History(Page),
    /// What is new.
    Synced(Synced),
    /// It was surely not carried out.
    Failed(Failure),
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Failure {
    /// Number of the error.
    pub code: u16,
    /// For people.
    pub text: String,
    /// When it is worth another try.
    pub retry_after_ms: Option<u32>,
    /// The WebSocket URL of the node to go to instead.
    pub moved_to: Option<String>,
}

/// A channel with what a list shows of it.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ChannelView {
    /// The channel.
    pub head: Head,
    /// The other member of a direct channel.
    pub peer: Option<Member>,
    /// The newest message.
    pub last: Option<Row>,
}

/// A channel as a user sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Head {
    /// The channel.
    pub cid: u64,
    /// What kind of channel, by its number.
    pub kind: u8,
    /// The other user of a direct channel.
    pub peer: Option<u64>,
    /// The user's own member number.
    pub me: u32,
    /// The newest position.
    pub head: u64,
    /// The ordinal of the newest message.
    pub ordinal: u64,
    /// The oldest position kept.
    pub floor: u64,
    /// How far the user has read.
    pub read: u64,
    /// The ordinal up to which nothing counts as unread.
    pub read_ordinal: u64,
    /// How far any device of the user has received.
    pub received: u64,
    /// What cached messages are worth.
    pub rows: HeadRows,
}

/// What a head says about the messages of its channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum HeadRows {
    /// Cached ones stand.
    Unchanged,
    /// A page follows.
    Follow,
    /// Cached ones are stale.
    Stale,
}

/// A member of a channel.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Member {
    /// The number in the channel.
    pub number: u32,
    /// The user.
    pub uid: u64,
    /// `iss`.
    pub issuer: String,
    /// `sub`.
    pub subject: String,
}

/// Consecutive messages of a channel.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Page {
    /// The channel.
    pub cid: u64,
    /// Lowest position covered.
    pub from: u64,
    /// Highest position covered.
    pub to: u64,
    /// Whether more lies below.
    pub gap: bool,
    /// Ascending.
    pub rows: Vec<Row>,
}

/// A stored message.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Row {
    /// Position.
    pub seq: u64,
    /// How many messages up to this one count as unread.
    pub ordinal: u64,
    /// What kind of body.
    pub kind: u8,
    /// The sender's number in the channel.
    pub sender: u32,
    /// The sender's device.
    pub device: u32,
    /// The client's id of the message.
    pub cmid: [u8; 16],
    /// Unix time in milliseconds.
    pub time_ms: u64,
    /// The body.
    pub body: Bytes,
}

/// What is new since a cursor.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Synced {
    /// Whether everything cached is to be dropped before the events.
    pub replace: bool,
    /// In their order.
    pub events: Vec<Event>,
    /// Where to go on.
    pub cursor: Bytes,
    /// Whether it is worth asking again at once.
    pub more: bool,
}

/// Something new.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Event {
    /// A channel that changed.
    Channel(Head),
    /// Messages of a channel.
    Page(Page),
    /// A message.
    Message {
        /// The channel.
        cid: u64,
        /// Who sent it.
        uid: u64,
        /// The message.
        row: Row,
    },
    /// The user's markers have moved.
    Marker {
        /// The channel.
        cid: u64,
        /// How far the user has read.
        read: u64,
        /// The ordinal of that message.
        read_ordinal: u64,
        /// How far any device of the user has received.
        received: u64,
    },
    /// Somebody is typing.
    Typing {
        /// The channel.
        cid: u64,
        /// Who.
        uid: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> ToNode {
        ToNode::Call(Call {
            ticket: 7,
            identity: Identity {
                issuer: String::new(),
                subject: "alice".to_owned(),
                issued_at_s: 1,
                expires_at_s: 2,
                installation: Some([3; 16]),
            },
            device: Device::None,
            request: Request::Send(Send {
                cid: 0x0102_0304_0506_0708,
                cmid: [9; 16],
                base: None,
                kind: 0,
                body: Bytes::from_static(b"a text that is long enough to lie out of line"),
            }),
        })
    }

    #[test]
    fn an_archive_reads_back_as_what_it_was_at_any_address() {
        let archive = call().archive();
        for shift in 0..8 {
            let mut moved = vec![0; shift];
            moved.extend_from_slice(&archive);
            assert_eq!(ToNode::read(&moved[shift..]), Ok(call()));
        }
    }

    #[test]
    fn each_byte_turned_or_cut_is_an_error_or_another_message_and_never_a_panic() {
        let archive = call().archive();
        for at in 0..archive.len() {
            let _ = ToNode::read(&archive[..at]);
            for turn in [1, 0x80, 0xff] {
                let mut turned = archive.to_vec();
                turned[at] ^= turn;
                let _ = ToNode::read(&turned);
                let _ = ToApi::read(&turned);
            }
        }
        assert_eq!(ToNode::read(b""), Err(LinkError::Archive));
        assert_eq!(ToNode::read(&[0xff; 64]), Err(LinkError::Archive));
    }

    const CALL: &str = concat!(
        "6120746578742074686174206973206c6f6e6720656e6f75676820746f206c6965206f757420",
        "6f66206c696e65000700000000000000ffffffffffffffff616c696365ffffff010000000000",
        "0000020000000000000001030303030303030303030303030303030000000000000000000000",
        "0000000000000208070605040302010909090909090909090909090909090900000000000000",
        "00000065ffffff2d000000",
    );
    const ANSWER: &str = concat!(
        "0107000000000000000305000000000000000600000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000000000000000000",
        "00000000000000000000000000000000",
    );

    /// The bytes are the format: an edit of a type, or another version of the library, that changes
    /// them needs a format of its own.
    #[test]
    fn the_bytes_of_the_format_are_what_they_were() {
        let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
        let answer = ToApi::Answer { ticket: 7, outcome: Outcome::Sent { seq: 5, time_ms: 6 } };
        assert_eq!(hex(&call().archive()), CALL);
        assert_eq!(hex(&answer.archive()), ANSWER);
    }
}
