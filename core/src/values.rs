//! Every value of the store: one format byte, then fields, then whatever a later build has added.
//!
//! ```text
//!  [format 1] [incarnation u16 | commit version u64 | order u16] fields … [unknown trailing bytes]
//!             └──────────── stamp, in values that sync reads ───┘
//! ```
//!
//! Numbers are varints unless a width is said. Trailing bytes that this build does not know are
//! kept when a row is rewritten.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use chatring_wire::frame::{ChannelKind, MessageKind, Row};
use chatring_wire::{
    Cmid, DeviceId, HistoryId, InstallationId, MemberNumber, Ordinal, Seq, Uid, varint,
};
use ring::digest::{Context, SHA256};
use thiserror::Error;

use crate::cursor::Position;
use crate::kv::{STAMP_BYTES, Stamp, Version, Write};

/// The format that this build writes, and the newest that it reads.
const FORMAT: u8 = 1;
/// Where a value's commit stamp stands: behind the format and the store's incarnation.
pub(crate) const STAMP_OFFSET: u32 = 3;
/// Longest name (issuer, subject) in a value.
const NAME_BYTES_MAX: u64 = 4096;

/// Enough for an inbox row's value without what a later build has added.
pub(crate) const INBOX_BYTES: usize = 64;
/// Enough for a message's value without its body.
pub(crate) const MESSAGE_BYTES: usize = 80;

/// A value that does not parse: the store is damaged or was written by a newer build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ValueError {
    /// Written by a newer build.
    #[error("value format {0} is newer than this build")]
    NewerFormat(u8),
    /// The bytes do not parse.
    #[error("a value does not parse")]
    Damaged,
}

/// Which store's counting a commit stamp belongs to: rises when data moves to another store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoreIncarnation(pub u16);

/// The stamp of a value: where in the store's history it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowStamp {
    /// Which store's counting.
    pub incarnation: StoreIncarnation,
    /// The commit.
    pub stamp: Stamp,
}

impl RowStamp {
    /// Whether somebody who has read every change up to `position` does not know this row yet.
    pub fn is_after(&self, position: Position) -> bool {
        Position { incarnation: self.incarnation, version: self.stamp.version } > position
    }
}

/// `12 I`: what all nodes of the deployment share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeploymentRow {
    /// Which store's counting the stamps of new rows belong to.
    pub incarnation: StoreIncarnation,
    /// Changes only when a backup is restored.
    pub history: HistoryId,
    /// Derives ids; never changes.
    pub key: [u8; 32],
}

/// `12 F`: who a core's fence belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FenceRow {
    /// The start of a process that holds the core.
    pub incarnation: u64,
    /// How often that process has written it, so that it can tell whether a write happened.
    pub writes: u64,
}

/// `14 J`: how far a lane has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalRow {
    /// When the newest group was committed.
    pub stamp: RowStamp,
    /// The start of the process that wrote it.
    pub incarnation: u64,
    /// The number of the newest group.
    pub group: u64,
}

/// `10 uid u`: a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRow {
    /// `iss` of the user's tokens.
    pub issuer: String,
    /// `sub` of the user's tokens.
    pub subject: String,
    /// Tokens made before this Unix second are refused; 0 for none.
    pub revoked_before_s: u64,
    /// What a later build has added.
    pub rest: Bytes,
}

/// `10 uid d dev`: a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRow {
    /// Which installation it is.
    pub installation: InstallationId,
    /// Whether it may still sign in.
    pub standing: DeviceStanding,
    /// The day of its last sign-in, counted from 1970-01-01 UTC.
    pub last_seen_day: u64,
    /// What a later build has added.
    pub rest: Bytes,
}

/// Whether a device may sign in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceStanding {
    /// It may.
    Active,
    /// It was removed; its installation must take a new id.
    Revoked,
}

/// `10 uid f peer`: how a user stands to another one, as the accounts say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationRow {
    /// Which change of the user's relations this is; they rise.
    pub version: u64,
    /// Whether the two are friends.
    pub friends: bool,
    /// Whether the user has blocked the other one.
    pub blocked: bool,
    /// What a later build has added.
    pub rest: Bytes,
}

/// `10 cid C`: a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelRow {
    /// What kind.
    pub kind: ChannelKind,
    /// The users of a direct channel, the lower id first: members 0 and 1.
    pub pair: [Uid; 2],
    /// Whether member 0 has blocked the other one, and member 1.
    pub blocks: [Block; 2],
    /// What a later build has added.
    pub rest: Bytes,
}

/// Whether a user has blocked another one, and since which version of its relations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block(u64);

impl Block {
    /// It never has.
    pub const NONE: Block = Block(0);

    /// As of a version, which is below 2^63.
    pub const fn new(version: u64, blocked: bool) -> Block {
        Block(version << 1 | blocked as u64)
    }

    /// Whether it is in force.
    pub const fn is_on(self) -> bool {
        self.0 & 1 != 0
    }

    /// The version.
    pub const fn version(self) -> u64 {
        self.0 >> 1
    }
}

impl ChannelRow {
    /// The direct channel of two users, without blocks.
    pub fn direct(one: Uid, other: Uid) -> ChannelRow {
        ChannelRow {
            kind: ChannelKind::Direct,
            pair: [one.min(other), one.max(other)],
            blocks: [Block::NONE; 2],
            rest: Bytes::new(),
        }
    }

    /// Whether one of the two has blocked the other.
    pub fn is_blocked(&self) -> bool {
        self.blocks[0].is_on() || self.blocks[1].is_on()
    }

    /// The member number of a user; `None` if it is not in the channel.
    pub fn member(&self, uid: Uid) -> Option<MemberNumber> {
        let number = self.pair.iter().position(|member| *member == uid)?;
        Some(MemberNumber(number as u32))
    }

    /// The other user of a direct channel.
    pub fn peer(&self, me: MemberNumber) -> Uid {
        self.pair[usize::from(me.0 == 0)]
    }
}

/// `10 cid H`: what a channel's rows cannot tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrimRow {
    /// The oldest position kept.
    pub floor: Seq,
    /// The newest position when this was written.
    pub last: Seq,
    /// Its ordinal.
    pub ordinal: Ordinal,
    /// Its time.
    pub time_ms: u64,
}

/// `10 uid m cid`: a channel in a user's inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboxRow {
    /// When it last changed. Ignored by [`InboxRow::encode`], which leaves room for a new one.
    pub stamp: RowStamp,
    /// What kind of channel.
    pub kind: ChannelKind,
    /// The other user of a direct channel.
    pub peer: Uid,
    /// The user's own number.
    pub me: MemberNumber,
    /// The first position that the user may see.
    pub joined: Seq,
    /// The ordinal below which nothing counts as unread for this member.
    pub joined_ordinal: Ordinal,
    /// The newest message.
    pub last: Seq,
    /// Its ordinal.
    pub ordinal: Ordinal,
    /// The ordinal of the user's own newest message.
    pub own_ordinal: Ordinal,
    /// What a later build has added.
    pub rest: Bytes,
}

/// `10 uid r cid`: a user's markers of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkerRow {
    /// When it last changed. Ignored by [`MarkerRow::encode`].
    pub stamp: RowStamp,
    /// How far the user has read.
    pub read: Seq,
    /// The ordinal of that message.
    pub read_ordinal: Ordinal,
    /// How far any device has received.
    pub received: Seq,
    /// What a later build has added.
    pub rest: Bytes,
}

/// `10 cid k hash`: a client message id that was used without a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentRow {
    /// Position of the message.
    pub seq: Seq,
    /// Its time.
    pub time_ms: u64,
    /// Tells another body from a repeat: see [`SentRow::print`].
    pub print: [u8; 16],
}

/// `10 cid x seq`: a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageRow {
    /// When it was stored. Ignored by [`MessageRow::encode`].
    pub stamp: RowStamp,
    /// Who sent it.
    pub uid: Uid,
    /// The message as it goes to clients. Its `seq` stands in the key.
    pub row: Row,
}

impl DeploymentRow {
    /// The value.
    pub fn encode(&self) -> Bytes {
        let mut out = start(64);
        out.put_u16(self.incarnation.0);
        out.put_u64(self.history.0);
        out.put_slice(&self.key);
        out.freeze()
    }

    /// From a value.
    pub fn decode(value: Bytes) -> Result<DeploymentRow, ValueError> {
        let mut input = open(value)?;
        Ok(DeploymentRow {
            incarnation: StoreIncarnation(u16::from_be_bytes(array(&mut input)?)),
            history: HistoryId(u64::from_be_bytes(array(&mut input)?)),
            key: array(&mut input)?,
        })
    }
}

impl FenceRow {
    /// The value.
    pub fn encode(&self) -> Bytes {
        let mut out = start(24);
        out.put_u64(self.incarnation);
        out.put_u64(self.writes);
        out.freeze()
    }

    /// From a value.
    pub fn decode(value: Bytes) -> Result<FenceRow, ValueError> {
        let mut input = open(value)?;
        Ok(FenceRow {
            incarnation: u64::from_be_bytes(array(&mut input)?),
            writes: u64::from_be_bytes(array(&mut input)?),
        })
    }
}

impl JournalRow {
    /// The write of a group's journal.
    pub fn write(key: Bytes, store: StoreIncarnation, incarnation: u64, group: u64) -> Write {
        let mut out = start_stamped(32, store);
        out.put_u64(incarnation);
        out.put_u64(group);
        stamped(key, out)
    }

    /// From a value.
    pub fn decode(value: Bytes) -> Result<JournalRow, ValueError> {
        let mut input = open(value)?;
        Ok(JournalRow {
            stamp: stamp(&mut input)?,
            incarnation: u64::from_be_bytes(array(&mut input)?),
            group: u64::from_be_bytes(array(&mut input)?),
        })
    }
}

impl UserRow {
    /// The write of this row.
    pub fn write(&self, key: Bytes, store: StoreIncarnation) -> Write {
        let mut out = start_stamped(64 + self.issuer.len() + self.subject.len(), store);
        put(&mut out, self.revoked_before_s);
        put_bytes(&mut out, self.issuer.as_bytes());
        put_bytes(&mut out, self.subject.as_bytes());
        out.put_slice(&self.rest);
        stamped(key, out)
    }

    /// From a value.
    pub fn decode(value: Bytes) -> Result<UserRow, ValueError> {
        let mut input = open(value)?;
        stamp(&mut input)?;
        Ok(UserRow {
            revoked_before_s: number(&mut input)?,
            issuer: name(&mut input)?,
            subject: name(&mut input)?,
            rest: input,
        })
    }
}

impl DeviceRow {
    /// The write of this row.
    pub fn write(&self, key: Bytes, store: StoreIncarnation) -> Write {
        let mut out = start_stamped(48, store);
        out.put_slice(&self.installation.0);
        out.put_u8(match self.standing {
            DeviceStanding::Active => 0,
            DeviceStanding::Revoked => 1,
        });
        put(&mut out, self.last_seen_day);
        out.put_slice(&self.rest);
        stamped(key, out)
    }

    /// From a value.
    pub fn decode(value: Bytes) -> Result<DeviceRow, ValueError> {
        let mut input = open(value)?;
        stamp(&mut input)?;
        Ok(DeviceRow {
            installation: InstallationId(array(&mut input)?),
            standing: match byte(&mut input)? {
                0 => DeviceStanding::Active,
                _ => DeviceStanding::Revoked,
            },
            last_seen_day: number(&mut input)?,
            rest: input,
        })
    }
}

impl RelationRow {
    /// The write of this row.
    pub fn write(&self, key: Bytes, store: StoreIncarnation) -> Write {
        let mut out = start_stamped(32, store);
        put(&mut out, self.version);
        out.put_u8(u8::from(self.friends) | u8::from(self.blocked) << 1);
        out.put_slice(&self.rest);
        stamped(key, out)
    }

    /// From a value.
    pub fn decode(value: Bytes) -> Result<RelationRow, ValueError> {
        let mut input = open(value)?;
        stamp(&mut input)?;
        let version = number(&mut input)?;
        let flags = byte(&mut input)?;
        let (friends, blocked) = (flags & 1 != 0, flags & 2 != 0);
        Ok(RelationRow { version, friends, blocked, rest: input })
    }
}

impl ChannelRow {
    /// The write of this row.
    pub fn write(&self, key: Bytes, store: StoreIncarnation) -> Write {
        let mut out = start_stamped(48, store);
        out.put_u8(self.kind as u8);
        out.put_u64(self.pair[0].0);
        out.put_u64(self.pair[1].0);
        for block in self.blocks {
            put(&mut out, block.0);
        }
        out.put_slice(&self.rest);
        stamped(key, out)
    }

    /// From a value.
    pub fn decode(value: Bytes) -> Result<ChannelRow, ValueError> {
        let mut input = open(value)?;
        stamp(&mut input)?;
        let kind = kind(&mut input)?;
        let pair = [id(&mut input)?, id(&mut input)?];
        let mut blocks = [Block::NONE; 2];
        // Rows of builds that knew no blocks end here.
        if !input.is_empty() {
            blocks = [Block(number(&mut input)?), Block(number(&mut input)?)];
        }
        Ok(ChannelRow { kind, pair, blocks, rest: input })
    }
}

impl TrimRow {
    /// The value.
    pub fn encode(&self) -> Bytes {
        let mut out = start(40);
        for field in [self.floor.0, self.last.0, self.ordinal.0, self.time_ms] {
            put(&mut out, field);
        }
        out.freeze()
    }

    /// From a value.
    pub fn decode(value: Bytes) -> Result<TrimRow, ValueError> {
        let mut input = open(value)?;
        Ok(TrimRow {
            floor: Seq(number(&mut input)?),
            last: Seq(number(&mut input)?),
            ordinal: Ordinal(number(&mut input)?),
            time_ms: number(&mut input)?,
        })
    }
}

impl InboxRow {
    /// The write of this row.
    pub fn write(&self, key: Bytes, store: StoreIncarnation) -> Write {
        let mut out = BytesMut::with_capacity(INBOX_BYTES + self.rest.len());
        self.put(&mut out, store);
        stamped(key, out)
    }

    /// Appends the value.
    pub(crate) fn put(&self, out: &mut BytesMut, store: StoreIncarnation) {
        put_start_stamped(out, store);
        out.put_u8(self.kind as u8);
        out.put_u64(self.peer.0);
        put(out, u64::from(self.me.0));
        for field in
            [self.joined.0, self.joined_ordinal.0, self.last.0, self.ordinal.0, self.own_ordinal.0]
        {
            put(out, field);
        }
        out.put_slice(&self.rest);
    }

    /// From a value.
    pub fn decode(value: Bytes) -> Result<InboxRow, ValueError> {
        let mut input = open(value)?;
        Ok(InboxRow {
            stamp: stamp(&mut input)?,
            kind: kind(&mut input)?,
            peer: id(&mut input)?,
            me: MemberNumber(small(&mut input)?),
            joined: Seq(number(&mut input)?),
            joined_ordinal: Ordinal(number(&mut input)?),
            last: Seq(number(&mut input)?),
            ordinal: Ordinal(number(&mut input)?),
            own_ordinal: Ordinal(number(&mut input)?),
            rest: input,
        })
    }
}

impl SentRow {
    /// The first 16 bytes of SHA-256(kind, body).
    pub fn print(kind: MessageKind, body: &[u8]) -> [u8; 16] {
        let mut context = Context::new(&SHA256);
        context.update(&[kind.0]);
        context.update(body);
        let mut print = [0; 16];
        print.copy_from_slice(&context.finish().as_ref()[..16]);
        print
    }

    /// The value.
    pub fn encode(&self) -> Bytes {
        let mut out = start(40);
        put(&mut out, self.seq.0);
        put(&mut out, self.time_ms);
        out.put_slice(&self.print);
        out.freeze()
    }

    /// From a value.
    pub fn decode(value: Bytes) -> Result<SentRow, ValueError> {
        let mut input = open(value)?;
        Ok(SentRow {
            seq: Seq(number(&mut input)?),
            time_ms: number(&mut input)?,
            print: array(&mut input)?,
        })
    }
}

impl MarkerRow {
    /// The write of this row.
    pub fn write(&self, key: Bytes, store: StoreIncarnation) -> Write {
        let mut out = start_stamped(48, store);
        for field in [self.read.0, self.read_ordinal.0, self.received.0] {
            put(&mut out, field);
        }
        out.put_slice(&self.rest);
        stamped(key, out)
    }

    /// From a value.
    pub fn decode(value: Bytes) -> Result<MarkerRow, ValueError> {
        let mut input = open(value)?;
        Ok(MarkerRow {
            stamp: stamp(&mut input)?,
            read: Seq(number(&mut input)?),
            read_ordinal: Ordinal(number(&mut input)?),
            received: Seq(number(&mut input)?),
            rest: input,
        })
    }
}

impl MessageRow {
    /// The write of a message.
    pub fn write(key: Bytes, store: StoreIncarnation, uid: Uid, row: &Row) -> Write {
        let mut out = BytesMut::with_capacity(MESSAGE_BYTES + row.body.len());
        MessageRow::put(&mut out, store, uid, row);
        stamped(key, out)
    }

    /// Appends the value of a message.
    pub(crate) fn put(out: &mut BytesMut, store: StoreIncarnation, uid: Uid, row: &Row) {
        put_start_stamped(out, store);
        put(out, row.ordinal.0);
        out.put_u8(row.kind.0);
        put(out, u64::from(row.sender.0));
        out.put_u64(uid.0);
        put(out, u64::from(row.device.0));
        out.put_slice(&row.cmid.0);
        put(out, row.time_ms);
        put_bytes(out, &row.body);
    }

    /// From a value; `seq` stands in its key.
    pub fn decode(seq: Seq, value: Bytes) -> Result<MessageRow, ValueError> {
        let mut input = open(value)?;
        let stamp = stamp(&mut input)?;
        let ordinal = Ordinal(number(&mut input)?);
        let kind = MessageKind(byte(&mut input)?);
        let sender = MemberNumber(small(&mut input)?);
        let uid = id(&mut input)?;
        let device = DeviceId(small(&mut input)?);
        let cmid = Cmid(array(&mut input)?);
        let time_ms = number(&mut input)?;
        let body = take(&mut input, u64::MAX)?;
        let row = Row { seq, ordinal, kind, sender, device, cmid, time_ms, body };
        Ok(MessageRow { stamp, uid, row })
    }
}

fn start(capacity: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(capacity);
    out.put_u8(FORMAT);
    out
}

fn start_stamped(capacity: usize, store: StoreIncarnation) -> BytesMut {
    let mut out = BytesMut::with_capacity(capacity);
    put_start_stamped(&mut out, store);
    out
}

fn put_start_stamped(out: &mut BytesMut, store: StoreIncarnation) {
    let mut bytes = [0; STAMP_OFFSET as usize + STAMP_BYTES];
    bytes[0] = FORMAT;
    bytes[1..3].copy_from_slice(&store.0.to_be_bytes());
    out.put_slice(&bytes);
}

fn stamped(key: Bytes, value: BytesMut) -> Write {
    Write::SetStamped { key, value: value.freeze(), offset: STAMP_OFFSET }
}

fn put(out: &mut BytesMut, number: u64) {
    varint::put(out, number);
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.put_slice(bytes);
}

fn open(mut value: Bytes) -> Result<Bytes, ValueError> {
    match byte(&mut value)? {
        0 => Err(ValueError::Damaged),
        FORMAT => Ok(value),
        newer => Err(ValueError::NewerFormat(newer)),
    }
}

fn byte(input: &mut Bytes) -> Result<u8, ValueError> {
    input.try_get_u8().map_err(|_| ValueError::Damaged)
}

fn array<const N: usize>(input: &mut Bytes) -> Result<[u8; N], ValueError> {
    let mut bytes = [0; N];
    input.try_copy_to_slice(&mut bytes).map_err(|_| ValueError::Damaged)?;
    Ok(bytes)
}

fn number(input: &mut Bytes) -> Result<u64, ValueError> {
    let (number, length) = varint::take(input).map_err(|_| ValueError::Damaged)?;
    input.advance(length);
    Ok(number)
}

fn small(input: &mut Bytes) -> Result<u32, ValueError> {
    u32::try_from(number(input)?).map_err(|_| ValueError::Damaged)
}

fn id(input: &mut Bytes) -> Result<Uid, ValueError> {
    Ok(Uid(u64::from_be_bytes(array(input)?)))
}

fn kind(input: &mut Bytes) -> Result<ChannelKind, ValueError> {
    ChannelKind::from_number(byte(input)?).ok_or(ValueError::Damaged)
}

fn take(input: &mut Bytes, bytes_max: u64) -> Result<Bytes, ValueError> {
    let length = number(input)?;
    if length > bytes_max || length > input.len() as u64 {
        return Err(ValueError::Damaged);
    }
    Ok(input.split_to(length as usize))
}

fn name(input: &mut Bytes) -> Result<String, ValueError> {
    let bytes = take(input, NAME_BYTES_MAX)?;
    String::from_utf8(bytes.into()).map_err(|_| ValueError::Damaged)
}

fn stamp(input: &mut Bytes) -> Result<RowStamp, ValueError> {
    let incarnation = StoreIncarnation(u16::from_be_bytes(array(input)?));
    Ok(RowStamp { incarnation, stamp: Stamp::from_bytes(array(input)?) })
}

/// A stamp for rows that are not stored yet.
pub(crate) const UNSTAMPED: RowStamp =
    RowStamp { incarnation: StoreIncarnation(0), stamp: Stamp { version: Version(0), order: 0 } };
