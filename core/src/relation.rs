//! How one user stands to another, as the accounts say: a row `f` of the user, and for a block the
//! direct channel, whose owner alone can say from when on nothing slips through.
//!
//! ```text
//!  user's owner:     who is the peer? how was it? ─▶ row f ─▶ stored ─┐
//!  channel's owner:  ┌──────────────── Block ◀────────────────────────┘
//!                    ▼
//!            channel's row with the block ─▶ stored ─▶ BlockStored ─▶ Done
//! ```
//!
//! Of one user only one relation is between its read and its row at a time, so that what is newer
//! is never overwritten by what is older, however late that comes.

use std::collections::VecDeque;

use chatring_wire::frame::Failure;
use chatring_wire::{Cid, ErrorCode, Ordinal, Uid};

use crate::call::{Answer, CallId, Relation};
use crate::channel::{Channel, ChannelSlot, Loaded, Waiting};
use crate::effect::{BlockRequest, SendRef, ShardMessage};
use crate::keys;
use crate::kv::{Read, ReadVersion, Rows};
use crate::placement::CANDIDATES;
use crate::queue::Queued;
use crate::sabotage::Break;
use crate::session::BUSY_RETRY_MS;
use crate::shard::{Asker, Shard, Tag};
use crate::values::{Block, ChannelRow, RelationRow, UserRow, ValueError};

/// Relations of one user that wait for the one before them.
const RELATIONS_WAITING_MAX: usize = 256;

/// A relation on its way into the user's rows.
#[derive(Clone, Debug)]
pub(crate) struct Relating {
    call: CallId,
    uid: Uid,
    relation: Relation,
}

/// One that is stored, or was before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Related {
    call: CallId,
    uid: Uid,
    peer: Uid,
    block: Block,
}

/// At the user's owner.
impl Shard {
    pub(crate) fn relate(&mut self, call: CallId, uid: Uid, relation: Relation) {
        let relating = Box::new(Relating { call, uid, relation });
        match self.relating.get_mut(&uid) {
            Some(waiting) if waiting.len() < RELATIONS_WAITING_MAX => waiting.push_back(relating),
            Some(_) => self.refuse_decision(call, ErrorCode::Busy),
            None => {
                self.relating.insert(uid, VecDeque::new());
                self.read_relation(relating);
            }
        }
    }

    /// Reads who the peer is, and how the user stands to each whom it may be.
    fn read_relation(&mut self, relating: Box<Relating>) {
        let peers = self.candidates_of(&relating.relation);
        let uid = relating.uid;
        let users = peers.iter().map(|peer| keys::user(*peer));
        let gets = users.chain(peers.iter().map(|peer| keys::relation(uid, *peer))).collect();
        let read = Read { gets, ranges: Vec::new(), version: ReadVersion::Fresh };
        self.read(Asker::Relation(relating), read);
    }

    fn candidates_of(&self, relation: &Relation) -> Vec<Uid> {
        let key = &self.ready().key;
        (0..CANDIDATES).map(|n| key.uid(&relation.issuer, &relation.subject, n)).collect()
    }

    pub(crate) fn relation_rows(&mut self, relating: Relating, rows: Rows) {
        let Relating { call, uid, ref relation } = relating;
        let store = self.ready().store;
        let found = find_peer(relation, &self.candidates_of(relation), rows);
        let (peer, stored) = match found {
            Ok(Some(found)) => found,
            Ok(None) => {
                self.refuse_decision(call, ErrorCode::Internal);
                return self.next_relation(uid);
            }
            Err(error) => {
                self.note_damage(error);
                self.refuse_decision(call, ErrorCode::Internal);
                return self.next_relation(uid);
            }
        };
        if let Some(stored) = stored.as_ref().filter(|row| row.version >= relation.version) {
            // It may have ended in between: the channel is asked again.
            let block = Block::new(stored.version, stored.blocked);
            self.pass_block_on(Related { call, uid, peer, block });
            return self.next_relation(uid);
        }
        let Relation { version, friends, blocked, .. } = *relation;
        let rest = stored.map(|row| row.rest).unwrap_or_default();
        let row = RelationRow { version, friends, blocked, rest };
        let related = Related { call, uid, peer, block: Block::new(version, blocked) };
        let write = row.write(keys::relation(uid, peer), store);
        if self.append(vec![write], Tag::Relation(related)).is_err() {
            self.refuse_decision(call, ErrorCode::Busy);
            self.next_relation(uid);
        }
    }

    pub(crate) fn relation_stored(&mut self, related: Related) {
        self.pass_block_on(related);
        self.next_relation(related.uid);
    }

    fn next_relation(&mut self, uid: Uid) {
        let Some(waiting) = self.relating.get_mut(&uid) else { return };
        match waiting.pop_front() {
            Some(relating) => self.read_relation(relating),
            None => {
                self.relating.remove(&uid);
            }
        }
    }

    fn pass_block_on(&mut self, related: Related) {
        let Related { call, uid, peer, block } = related;
        if uid == peer {
            return self.answer_call(call, Ok(Answer::Done));
        }
        let origin = SendRef::of_call(call);
        self.ask_for_block(BlockRequest { origin, uid, peer, candidate: 0, block });
    }

    fn ask_for_block(&mut self, request: BlockRequest) {
        let BlockRequest { origin, uid, peer, candidate, .. } = request;
        let cid = self.ready().key.direct_cid(uid, peer, candidate);
        let owner = self.owner_of(cid.vshard());
        if self.tell_shard(owner, ShardMessage::Block(request)) == Queued::Refused {
            self.answer_block(uid, origin, Err(ErrorCode::Busy));
        }
    }

    /// The channel's owner has answered.
    pub(crate) fn block_answered(&mut self, origin: SendRef, result: Result<(), ErrorCode>) {
        let Some(call) = origin.call() else { return };
        match result {
            Ok(()) => self.answer_call(call, Ok(Answer::Done)),
            Err(code) => self.refuse_decision(call, code),
        }
    }

    fn refuse_decision(&mut self, call: CallId, code: ErrorCode) {
        let retry_after_ms = (code == ErrorCode::Busy).then_some(BUSY_RETRY_MS);
        self.answer_call(call, Err(Failure { retry_after_ms, ..Failure::new(code) }));
    }
}

/// At the channel's owner.
impl Shard {
    pub(crate) fn channel_block(&mut self, request: BlockRequest) {
        let BlockRequest { uid, peer, candidate, .. } = request;
        let cid = self.ready().key.direct_cid(uid, peer, candidate);
        if let Some(block) = self.wait_for_channel(cid, Waiting::Block(request)) {
            self.handle_waiting(cid, block);
        }
    }

    /// Puts a block into a channel that is in memory. From here on no send is taken against it; the
    /// answer comes once the channel's lane has stored it.
    pub(crate) fn put_block(&mut self, cid: Cid, mut request: BlockRequest) {
        let BlockRequest { origin, uid, peer, block, .. } = request;
        let early = self.config.breaks.has(Break::BlockAnsweredEarly);
        let store = self.ready().store;
        let Some(ChannelSlot::Loaded(channel)) = self.channels.get_mut(&cid) else { return };
        let member = channel.row.member(uid).filter(|_| channel.row.member(peer).is_some());
        let Some(member) = member else {
            // The id belongs to another pair: the next one, which may lie with another shard.
            request.candidate += 1;
            return match request.candidate < CANDIDATES {
                true => self.ask_for_block(request),
                false => self.answer_block(uid, origin, Err(ErrorCode::Internal)),
            };
        };
        let held = &mut channel.row.blocks[usize::from(member.0 != 0)];
        let before = *held;
        let mut writes = Vec::new();
        if block.version() > before.version() {
            *held = block;
            // What was never blocked needs no row to say so.
            if block.is_on() || before != Block::NONE {
                writes.push(channel.row.write(keys::channel(cid), store));
            }
        }
        if writes.is_empty() && channel.blocks_in_lane == 0 {
            return self.answer_block(uid, origin, Ok(()));
        }
        // Without a row, too: what this one finds is in the lane.
        channel.blocks_in_lane += 1;
        if self.append(writes, Tag::Block(cid, uid, origin)).is_err() {
            if let Some(ChannelSlot::Loaded(channel)) = self.channels.get_mut(&cid) {
                channel.blocks_in_lane -= 1;
                channel.row.blocks[usize::from(member.0 != 0)] = before;
            }
            self.answer_block(uid, origin, Err(ErrorCode::Busy));
        } else if early {
            self.answer_block(uid, origin, Ok(()));
        }
    }

    /// There is no such channel. A block makes it, so that it lies there before anybody sends;
    /// nobody sees a channel without messages that it has not opened. `None` if it is not needed.
    pub(crate) fn block_missing(&mut self, request: &BlockRequest) -> Option<Channel> {
        let BlockRequest { origin, uid, peer, block, .. } = *request;
        if !block.is_on() {
            self.answer_block(uid, origin, Ok(()));
            return None;
        }
        if !self.lane.as_ref().is_some_and(|lane| lane.has_room()) {
            self.answer_block(uid, origin, Err(ErrorCode::Busy));
            return None;
        }
        let row = ChannelRow::direct(uid, peer);
        Some(Channel::new(Loaded::empty(row), [Ordinal(0); 2], self.config.limits.recent_max))
    }

    pub(crate) fn block_stored(&mut self, cid: Cid, uid: Uid, origin: SendRef) {
        if let Some(ChannelSlot::Loaded(channel)) = self.channels.get_mut(&cid) {
            channel.blocks_in_lane -= 1;
        }
        // The channel's row was stored with it, if it was not before.
        self.channel_stored(cid);
        self.answer_block(uid, origin, Ok(()));
    }

    pub(crate) fn answer_block(
        &mut self,
        uid: Uid,
        origin: SendRef,
        result: Result<(), ErrorCode>,
    ) {
        let owner = self.owner_of(uid.vshard());
        self.tell_shard(owner, ShardMessage::BlockStored { origin, result });
    }
}

type Found = Option<(Uid, Option<RelationRow>)>;

/// The peer's id: the one that it has, or would get; with how the user stands to it.
fn find_peer(relation: &Relation, peers: &[Uid], rows: Rows) -> Result<Found, ValueError> {
    let mut rows = rows.gets.into_iter();
    let users: Vec<_> = rows.by_ref().take(peers.len()).collect();
    for ((peer, user), stored) in peers.iter().zip(users).zip(rows) {
        let other = match user.map(UserRow::decode).transpose()? {
            Some(row) => row.issuer != relation.issuer || row.subject != relation.subject,
            None => false,
        };
        if !other {
            return Ok(Some((*peer, stored.map(RelationRow::decode).transpose()?)));
        }
    }
    Ok(None)
}
