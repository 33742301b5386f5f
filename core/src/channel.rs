//! Channels at their owner: every send gets the next number once, goes to the lane, and is told to
//! its sender and to the members only when it is stored.

use std::collections::VecDeque;

use bytes::BytesMut;
use chatring_wire::frame::Row;
use chatring_wire::{Cid, ErrorCode, MemberNumber, Ordinal, Seq, Uid};

use crate::call::Again;
use crate::effect::{
    BlockRequest, Origins, SendAnswer, SendRef, SendRequest, ShardMessage, Stored,
};
use crate::keys;
use crate::kv::{Order, RangeEnd, RangeRead, RangeRows, Read, ReadVersion, Rows, Version, Write};
use crate::once::sent_row;
use crate::placement::CANDIDATES;
use crate::recent::{Entry, Fingerprint, Forgetting, Recent, SendKey};
use crate::sabotage::Break;
use crate::shard::{Asker, Shard, Tag};
use crate::values::{
    ChannelRow, INBOX_BYTES, InboxRow, MESSAGE_BYTES, MessageRow, STAMP_OFFSET, StoreIncarnation,
    TrimRow, UNSTAMPED, ValueError,
};

/// Requests that may wait for a channel's load or scan.
const WAITING_MAX: usize = 1_024;
/// Message rows that one scan for a repeat reads.
const SCAN_ROWS_MAX: u64 = 4_096;
/// Bytes that one read of a scan asks for.
const SCAN_BYTES_MAX: u32 = 4 * 1024 * 1024;
/// A message's time follows the channel's last one unless that lies further ahead than this.
const TIME_AHEAD_MS_MAX: u64 = 5_000;
/// When a send that met a full queue is worth another try.
const BUSY_RETRY_MS: u32 = 50;

/// A channel of this shard.
#[derive(Debug)]
pub(crate) enum ChannelSlot {
    /// Its rows are being read.
    Loading(VecDeque<Waiting>),
    /// It is in memory.
    Loaded(Box<Channel>),
}

/// What waits for a channel.
#[derive(Debug)]
pub(crate) enum Waiting {
    /// A send.
    Send(SendRequest),
    /// Somebody opens the direct channel of a pair.
    Open { origin: SendRef, uid: Uid, peer: Uid, candidate: u8 },
    /// A block is to be put there or lifted.
    Block(BlockRequest),
}

/// What of a channel is being read.
#[derive(Clone, Debug)]
pub(crate) enum LoadStep {
    /// The channel's row, its floor and its newest message.
    Rows,
    /// The members' inbox rows, when the rest is known.
    Inbox(Box<Loaded>),
    /// Messages above this position and up to that one, in search of a repeat.
    Scan { after: Seq, to: Seq },
}

/// What the first read of a load found.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    row: ChannelRow,
    floor: Seq,
    head: Seq,
    ordinal: Ordinal,
    time_ms: u64,
}

impl Loaded {
    /// A channel without messages.
    pub(crate) fn empty(row: ChannelRow) -> Loaded {
        Loaded { row, floor: Seq(1), head: Seq(0), ordinal: Ordinal(0), time_ms: 0 }
    }
}

/// A channel in memory.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) row: ChannelRow,
    floor: Seq,
    /// The newest position given, stored or not yet.
    head: Seq,
    ordinal: Ordinal,
    time_ms: u64,
    own_ordinal: [Ordinal; 2],
    recent: Recent,
    /// Messages in the lane, oldest first.
    in_lane: VecDeque<InLane>,
    /// What came while a scan was under way, with the send that it is for in front.
    waiting: VecDeque<Waiting>,
    scanning: bool,
    /// Who waits for the channel's own row to be stored.
    openers: Vec<(Uid, SendRef)>,
    /// Blocks whose row is in the lane.
    pub(crate) blocks_in_lane: u32,
    /// Whether it was used since the clock of evictions last passed.
    used: bool,
}

#[derive(Debug)]
struct InLane {
    uid: Uid,
    row: Row,
    /// The sends that wait for it.
    origins: Origins,
}

impl Channel {
    pub(crate) fn new(loaded: Loaded, own_ordinal: [Ordinal; 2], recent_max: usize) -> Channel {
        let Loaded { row, floor, head, ordinal, time_ms } = loaded;
        Channel {
            row,
            floor,
            head,
            ordinal,
            time_ms,
            own_ordinal,
            recent: Recent::new(head, recent_max),
            in_lane: VecDeque::new(),
            waiting: VecDeque::new(),
            scanning: false,
            openers: Vec::new(),
            blocks_in_lane: 0,
            used: true,
        }
    }

    /// Everything up to here is stored.
    pub(crate) fn stored_head(&self) -> Seq {
        self.in_lane.front().map_or(self.head, |first| Seq(first.row.seq.0 - 1))
    }

    /// Whether every message above a position is in the map of recent ones.
    pub(crate) fn remembers_above(&self, seq: Seq) -> bool {
        self.recent.complete_from() <= seq
    }

    /// The answer to a repeat of a known send; `None` if it now waits for the first one.
    fn repeat_of(
        &mut self,
        entry: &Entry,
        fingerprint: Fingerprint,
        origin: SendRef,
    ) -> Option<SendAnswer> {
        if entry.fingerprint != fingerprint {
            let code = ErrorCode::CmidReused;
            return Some(SendAnswer::Refused { code, retry_after_ms: None });
        }
        let (seq, time_ms) = (entry.seq, entry.time_ms);
        match self.in_lane.binary_search_by_key(&seq, |message| message.row.seq) {
            Err(_) => Some(SendAnswer::Stored { seq, time_ms, again: Again::Repeat }),
            Ok(place) if self.in_lane[place].origins.as_slice().len() < WAITING_MAX => {
                self.in_lane[place].origins.push(origin);
                None
            }
            Ok(_) => {
                let (code, retry_after_ms) = (ErrorCode::Busy, Some(BUSY_RETRY_MS));
                Some(SendAnswer::Refused { code, retry_after_ms })
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.in_lane.is_empty()
            && self.waiting.is_empty()
            && !self.scanning
            && self.openers.is_empty()
            && self.blocks_in_lane == 0
    }
}

impl Shard {
    /// Finds or makes the direct channel of a pair, for a session of one of the two.
    pub(crate) fn open_direct(&mut self, origin: SendRef, uid: Uid, peer: Uid, candidate: u8) {
        let cid = self.ready().key.direct_cid(uid, peer, candidate);
        let open = Waiting::Open { origin, uid, peer, candidate };
        if let Some(open) = self.wait_for_channel(cid, open) {
            self.handle_waiting(cid, open);
        }
    }

    /// Takes a send that a session's shard has passed on.
    pub(crate) fn channel_send(&mut self, request: SendRequest) {
        let cid = request.cid;
        if let Some(send) = self.wait_for_channel(cid, Waiting::Send(request)) {
            self.handle_waiting(cid, send);
        }
    }

    /// Gives the request back if the channel can take it at once; else it waits or is refused.
    pub(crate) fn wait_for_channel(&mut self, cid: Cid, request: Waiting) -> Option<Waiting> {
        let queue = match self.channels.get_mut(&cid) {
            Some(ChannelSlot::Loaded(channel)) => {
                channel.used = true;
                if !channel.scanning && channel.waiting.is_empty() {
                    return Some(request);
                }
                &mut channel.waiting
            }
            Some(ChannelSlot::Loading(waiting)) => waiting,
            None => {
                self.load_channel(cid, request);
                return None;
            }
        };
        if queue.len() < WAITING_MAX {
            queue.push_back(request);
        } else {
            self.refuse_waiting(request, ErrorCode::Busy);
        }
        None
    }

    fn load_channel(&mut self, cid: Cid, request: Waiting) {
        self.make_room_for_channel();
        self.channels.insert(cid, ChannelSlot::Loading(VecDeque::from([request])));
        self.channel_clock.push_back(cid);
        self.counters.channels = self.channels.len() as u64;
        let read = Read {
            gets: vec![keys::channel(cid), keys::trim(cid)],
            ranges: vec![RangeRead {
                range: keys::messages(cid, Seq(1), Seq(u64::MAX)),
                rows_max: 1,
                bytes_max: 1,
                order: Order::Reverse,
            }],
            version: ReadVersion::Fresh,
        };
        self.read(Asker::Channel(cid, LoadStep::Rows), read);
    }

    /// Drops a channel that was not used lately if there are too many in memory.
    fn make_room_for_channel(&mut self) {
        let mut looked_at = 0;
        while self.channels.len() >= self.config.limits.channels_in_memory_max
            && looked_at < self.channel_clock.len()
        {
            looked_at += 1;
            let Some(cid) = self.channel_clock.pop_front() else { break };
            match self.channels.get_mut(&cid) {
                Some(ChannelSlot::Loaded(channel)) if channel.is_idle() && !channel.used => {
                    self.channels.remove(&cid);
                }
                Some(ChannelSlot::Loaded(channel)) => {
                    channel.used = false;
                    self.channel_clock.push_back(cid);
                }
                Some(ChannelSlot::Loading(_)) => self.channel_clock.push_back(cid),
                None => {}
            }
        }
    }

    pub(crate) fn channel_rows(&mut self, cid: Cid, step: LoadStep, rows: Rows) {
        match step {
            LoadStep::Rows => match loaded(&rows) {
                Ok(Some(loaded)) => {
                    let gets = loaded.row.pair.iter().map(|uid| keys::inbox(*uid, cid)).collect();
                    let read = Read { gets, ranges: Vec::new(), version: ReadVersion::Fresh };
                    self.read(Asker::Channel(cid, LoadStep::Inbox(Box::new(loaded))), read);
                }
                Ok(None) => self.channel_missing(cid),
                Err(error) => self.channel_damaged(cid, error),
            },
            LoadStep::Inbox(loaded) => {
                let mut own_ordinal = [Ordinal(0); 2];
                for (own, value) in own_ordinal.iter_mut().zip(rows.gets) {
                    match value.map(InboxRow::decode) {
                        Some(Ok(row)) => *own = row.own_ordinal,
                        Some(Err(error)) => return self.channel_damaged(cid, error),
                        None => {}
                    }
                }
                let channel = Channel::new(*loaded, own_ordinal, self.config.limits.recent_max);
                self.channel_in_memory(cid, channel);
            }
            LoadStep::Scan { after, to } => self.scanned(cid, after, to, rows),
        }
    }

    /// The channel's rows do not parse: whoever wants something of it is refused.
    fn channel_damaged(&mut self, cid: Cid, error: ValueError) {
        self.note_damage(error);
        let waiting = match self.channels.remove(&cid) {
            Some(ChannelSlot::Loading(waiting)) => waiting,
            Some(ChannelSlot::Loaded(_)) | None => return,
        };
        self.counters.channels = self.channels.len() as u64;
        for request in waiting {
            self.refuse_waiting(request, ErrorCode::Internal);
        }
    }

    fn channel_in_memory(&mut self, cid: Cid, channel: Channel) {
        let slot = ChannelSlot::Loaded(Box::new(channel));
        if let Some(ChannelSlot::Loading(waiting)) = self.channels.insert(cid, slot)
            && let Some(ChannelSlot::Loaded(channel)) = self.channels.get_mut(&cid)
        {
            channel.waiting = waiting;
        }
        self.handle_all_waiting(cid);
    }

    /// The channel is not stored: whoever opens it makes it, sends to it are refused.
    fn channel_missing(&mut self, cid: Cid) {
        let Some(ChannelSlot::Loading(mut waiting)) = self.channels.remove(&cid) else { return };
        self.counters.channels = self.channels.len() as u64;
        while let Some(request) = waiting.pop_front() {
            match request {
                Waiting::Open { origin, uid, peer, .. } => {
                    match self.make_direct(cid, origin, uid, peer) {
                        Ok(channel) => {
                            self.channel_in_memory_with(cid, channel, waiting);
                            return;
                        }
                        Err(code) => self.answer_open(uid, origin, Err(code)),
                    }
                }
                send @ Waiting::Send(_) => self.refuse_waiting(send, ErrorCode::UnknownChannel),
                Waiting::Block(block) => {
                    if let Some(channel) = self.block_missing(&block) {
                        waiting.push_front(Waiting::Block(block));
                        return self.channel_in_memory_with(cid, channel, waiting);
                    }
                }
            }
        }
    }

    fn channel_in_memory_with(
        &mut self,
        cid: Cid,
        mut channel: Channel,
        waiting: VecDeque<Waiting>,
    ) {
        channel.waiting = waiting;
        self.channels.insert(cid, ChannelSlot::Loaded(Box::new(channel)));
        self.counters.channels = self.channels.len() as u64;
        self.handle_all_waiting(cid);
    }

    fn make_direct(
        &mut self,
        cid: Cid,
        origin: SendRef,
        uid: Uid,
        peer: Uid,
    ) -> Result<Channel, ErrorCode> {
        let row = ChannelRow::direct(uid, peer);
        let write = row.write(keys::channel(cid), self.ready().store);
        self.append(vec![write], Tag::Channel(cid)).map_err(|_| ErrorCode::Busy)?;
        let mut channel =
            Channel::new(Loaded::empty(row), [Ordinal(0); 2], self.config.limits.recent_max);
        channel.openers.push((uid, origin));
        Ok(channel)
    }

    pub(crate) fn channel_stored(&mut self, cid: Cid) {
        let Some(ChannelSlot::Loaded(channel)) = self.channels.get_mut(&cid) else { return };
        for (uid, origin) in std::mem::take(&mut channel.openers) {
            self.answer_open(uid, origin, Ok(cid));
        }
    }

    fn handle_all_waiting(&mut self, cid: Cid) {
        while let Some(ChannelSlot::Loaded(channel)) = self.channels.get_mut(&cid) {
            if channel.scanning {
                break;
            }
            let Some(request) = channel.waiting.pop_front() else { break };
            self.handle_waiting(cid, request);
        }
    }

    pub(crate) fn handle_waiting(&mut self, cid: Cid, request: Waiting) {
        match request {
            Waiting::Send(send) => self.take_send(send, Checked::No),
            Waiting::Block(block) => self.put_block(cid, block),
            Waiting::Open { origin, uid, peer, candidate } => {
                let Some(ChannelSlot::Loaded(channel)) = self.channels.get_mut(&cid) else {
                    return;
                };
                if channel.row.pair != [uid.min(peer), uid.max(peer)] {
                    self.try_next_candidate(origin, uid, peer, candidate);
                } else if channel.openers.is_empty() && channel.blocks_in_lane == 0 {
                    self.answer_open(uid, origin, Ok(cid));
                } else if channel.openers.len() < WAITING_MAX {
                    channel.openers.push((uid, origin));
                } else {
                    self.answer_open(uid, origin, Err(ErrorCode::Busy));
                }
            }
        }
    }

    /// The id belongs to another pair: the next one, which may lie with another shard.
    fn try_next_candidate(&mut self, origin: SendRef, uid: Uid, peer: Uid, candidate: u8) {
        let candidate = candidate + 1;
        if candidate >= CANDIDATES {
            self.answer_open(uid, origin, Err(ErrorCode::Internal));
            return;
        }
        let cid = self.ready().key.direct_cid(uid, peer, candidate);
        let owner = self.owner_of(cid.vshard());
        let open = ShardMessage::OpenDirect { origin, uid, peer, candidate };
        if self.tell_shard(owner, open) == crate::queue::Queued::Refused {
            self.answer_open(uid, origin, Err(ErrorCode::Busy));
        }
    }

    pub(crate) fn take_send(&mut self, request: SendRequest, checked: Checked) {
        let breaks = self.config.breaks;
        let Some(ChannelSlot::Loaded(channel)) = self.channels.get_mut(&request.cid) else {
            return;
        };
        let Some(member) = channel.row.member(request.uid) else {
            return self.refuse(&request, ErrorCode::UnknownChannel);
        };
        let SendRequest { uid, device, cmid, .. } = request;
        let fingerprint = Fingerprint::of(request.kind, &request.body);
        let known = channel.recent.get(&SendKey { uid, device, cmid }).copied();
        if let Some(entry) = known.filter(|_| !breaks.has(Break::NoDedupe)) {
            let answer = channel.repeat_of(&entry, fingerprint, request.origin);
            self.counters.sends_repeated += 1;
            if let Some(answer) = answer {
                self.answer(request.uid, request.origin, request.cid, answer);
            }
            return;
        }
        if let Some(previous) = request.previous
            && !breaks.has(Break::OutOfOrderAccepted)
            && channel.recent.get(&SendKey { uid, device, cmid: previous }).is_none()
        {
            return self.refuse(&request, ErrorCode::OutOfOrder);
        }
        let Some(base) = request.base else {
            return match checked {
                Checked::No if !breaks.has(Break::NoDedupe) => self.look_up(request),
                Checked::No | Checked::UpToTheMap => self.store_send(request, member, fingerprint),
            };
        };
        if base.next() < channel.floor {
            return self.refuse(&request, ErrorCode::RetryExpired);
        }
        let complete_from = channel.recent.complete_from();
        if checked == Checked::No && base < complete_from && !breaks.has(Break::NoDedupe) {
            let to = complete_from.min(Seq(base.0 + SCAN_ROWS_MAX));
            return self.start_scan(request, base, to);
        }
        self.store_send(request, member, fingerprint);
    }

    fn start_scan(&mut self, request: SendRequest, after: Seq, to: Seq) {
        self.counters.dedupe_scans += 1;
        let cid = request.cid;
        if let Some(ChannelSlot::Loaded(channel)) = self.channels.get_mut(&cid) {
            channel.scanning = true;
            channel.waiting.push_front(Waiting::Send(request));
        }
        self.read_scan(cid, after, to);
    }

    fn read_scan(&mut self, cid: Cid, after: Seq, to: Seq) {
        let range = RangeRead {
            range: keys::messages(cid, after.next(), to),
            rows_max: SCAN_ROWS_MAX as u32,
            bytes_max: SCAN_BYTES_MAX,
            order: Order::Forward,
        };
        let read = Read { gets: Vec::new(), ranges: vec![range], version: ReadVersion::Fresh };
        self.read(Asker::Channel(cid, LoadStep::Scan { after, to }), read);
    }

    fn scanned(&mut self, cid: Cid, after: Seq, to: Seq, rows: Rows) {
        let Some(ChannelSlot::Loaded(channel)) = self.channels.get_mut(&cid) else { return };
        let Some(Waiting::Send(request)) = channel.waiting.front() else { return };
        let range = rows.ranges.into_iter().next();
        let same = |message: &MessageRow| {
            message.uid == request.uid
                && message.row.device == request.device
                && message.row.cmid == request.cmid
        };
        let (found, reached, end) = match range.ok_or(ValueError::Damaged).and_then(|range| {
            let end = range.end;
            find_in(range, same).map(|(found, reached)| (found, reached.unwrap_or(after), end))
        }) {
            Ok(found) => found,
            Err(error) => return self.scan_damaged(cid, error),
        };
        if found.is_none() && end == RangeEnd::More && reached > after {
            return self.read_scan(cid, reached, to);
        }
        let complete_from = channel.recent.complete_from();
        channel.scanning = false;
        let Some(Waiting::Send(request)) = channel.waiting.pop_front() else { return };
        if let Some(row) = found {
            self.counters.sends_repeated += 1;
            let same = Fingerprint::of(row.kind, &row.body)
                == Fingerprint::of(request.kind, &request.body);
            let answer = if same {
                SendAnswer::Stored { seq: row.seq, time_ms: row.time_ms, again: Again::Repeat }
            } else {
                SendAnswer::Refused { code: ErrorCode::CmidReused, retry_after_ms: None }
            };
            self.answer(request.uid, request.origin, cid, answer);
        } else if to < complete_from {
            let answer = SendAnswer::Continue { checked_to: to };
            self.answer(request.uid, request.origin, cid, answer);
        } else {
            self.take_send(request, Checked::UpToTheMap);
        }
        self.handle_all_waiting(cid);
    }

    /// Whether the send was stored before cannot be told any more.
    fn scan_damaged(&mut self, cid: Cid, error: ValueError) {
        self.note_damage(error);
        let Some(ChannelSlot::Loaded(channel)) = self.channels.get_mut(&cid) else { return };
        channel.scanning = false;
        if let Some(request) = channel.waiting.pop_front() {
            self.refuse_waiting(request, ErrorCode::Internal);
        }
        self.handle_all_waiting(cid);
    }

    /// Gives a send that is surely new its number, and puts its rows into the lane.
    fn store_send(&mut self, request: SendRequest, member: MemberNumber, print: Fingerprint) {
        let store = self.ready().store;
        let unix_ms = self.now.unix_ms;
        let Some(ChannelSlot::Loaded(channel)) = self.channels.get_mut(&request.cid) else {
            return;
        };
        if channel.row.is_blocked() && !self.config.breaks.has(Break::BlockNotChecked) {
            return self.refuse(&request, ErrorCode::Blocked);
        }
        let ahead = channel.time_ms > unix_ms + TIME_AHEAD_MS_MAX;
        let time_ms = if ahead { unix_ms } else { unix_ms.max(channel.time_ms) };
        let counts = u64::from(request.kind.counts_as_unread());
        let row = Row {
            seq: channel.head.next(),
            ordinal: Ordinal(channel.ordinal.0 + counts),
            kind: request.kind,
            sender: member,
            device: request.device,
            cmid: request.cmid,
            time_ms,
            body: request.body.clone(),
        };
        let mut own_ordinal = channel.own_ordinal;
        own_ordinal[usize::from(member.0 != 0)] = row.ordinal;
        let mut writes =
            rows_of_message(&channel.row, request.cid, request.uid, &row, own_ordinal, store);
        let key = SendKey { uid: request.uid, device: request.device, cmid: request.cmid };
        if request.base.is_none() && !self.config.breaks.has(Break::SentRowForgotten) {
            writes.push(sent_row(&request, &row));
        }
        if self.append(writes, Tag::Message(request.cid)).is_err() {
            return self.refuse(&request, ErrorCode::Busy);
        }
        let Some(ChannelSlot::Loaded(channel)) = self.channels.get_mut(&request.cid) else {
            return;
        };
        channel.head = row.seq;
        channel.ordinal = row.ordinal;
        channel.time_ms = time_ms;
        channel.own_ordinal = own_ordinal;
        let origins = Origins::One(request.origin);
        let entry = Entry { key, seq: row.seq, time_ms, fingerprint: print };
        let forgetting = if self.config.breaks.has(Break::StaleDedupeMap) {
            Forgetting::Denied
        } else {
            Forgetting::Honest
        };
        channel.in_lane.push_back(InLane { uid: key.uid, row, origins });
        channel.recent.insert(entry, channel.stored_head(), forgetting);
    }

    /// The oldest message of the channel that was in the lane is stored: tell everybody.
    pub(crate) fn message_stored(&mut self, version: Version, cid: Cid) {
        let Some(ChannelSlot::Loaded(channel)) = self.channels.get_mut(&cid) else { return };
        let Some(InLane { uid: sender, row, origins }) = channel.in_lane.pop_front() else {
            return;
        };
        let pair = channel.row.pair;
        self.counters.sends_stored += 1;
        for uid in pair {
            self.counters.notifications += 1;
            let own = if uid == sender { origins.clone() } else { Origins::default() };
            let message = Stored { cid, uid: sender, row: row.clone(), origins: own };
            let owner = self.owner_of(uid.vshard());
            self.tell_shard(owner, ShardMessage::Notify { uid, version, message });
        }
        let (seq, time_ms, mut again) = (row.seq, row.time_ms, Again::First);
        for origin in origins.as_slice() {
            self.answer(sender, *origin, cid, SendAnswer::Stored { seq, time_ms, again });
            again = Again::Repeat;
        }
    }

    fn refuse_waiting(&mut self, request: Waiting, code: ErrorCode) {
        match request {
            Waiting::Send(send) => self.refuse(&send, code),
            Waiting::Open { origin, uid, .. } => self.answer_open(uid, origin, Err(code)),
            Waiting::Block(block) => self.answer_block(block.uid, block.origin, Err(code)),
        }
    }

    pub(crate) fn refuse(&mut self, request: &SendRequest, code: ErrorCode) {
        let retry_after_ms = (code == ErrorCode::Busy).then_some(BUSY_RETRY_MS);
        let answer = SendAnswer::Refused { code, retry_after_ms };
        self.answer(request.uid, request.origin, request.cid, answer);
    }

    pub(crate) fn answer(&mut self, uid: Uid, origin: SendRef, cid: Cid, answer: SendAnswer) {
        let owner = self.owner_of(uid.vshard());
        self.tell_shard(owner, ShardMessage::Answer { origin, cid, answer });
    }

    fn answer_open(&mut self, uid: Uid, origin: SendRef, result: Result<Cid, ErrorCode>) {
        let owner = self.owner_of(uid.vshard());
        self.tell_shard(owner, ShardMessage::Opened { origin, result });
    }
}

/// Whether a send was compared with what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    No,
    UpToTheMap,
}

/// The three rows of a direct message. Their keys and values share one piece of memory: each is
/// copied once by the store, and until then taking, cloning and dropping them costs next to
/// nothing.
fn rows_of_message(
    channel: &ChannelRow,
    cid: Cid,
    sender: Uid,
    row: &Row,
    own_ordinal: [Ordinal; 2],
    store: StoreIncarnation,
) -> Vec<Write> {
    let inboxes_bytes = 2 * (keys::ROW_KEY_BYTES + INBOX_BYTES);
    let message_bytes = keys::ROW_KEY_BYTES + MESSAGE_BYTES + row.body.len();
    let mut out = BytesMut::with_capacity(message_bytes + inboxes_bytes);
    // Where the key and the value of each row end.
    let mut ends = [(0, 0); 3];
    keys::put_message(&mut out, cid, row.seq);
    ends[0].0 = out.len();
    MessageRow::put(&mut out, store, sender, row);
    ends[0].1 = out.len();
    for (number, uid) in channel.pair.into_iter().enumerate() {
        let me = MemberNumber(number as u32);
        let inbox = InboxRow {
            stamp: UNSTAMPED,
            kind: channel.kind,
            peer: channel.peer(me),
            me,
            joined: Seq(1),
            joined_ordinal: Ordinal(0),
            last: row.seq,
            ordinal: row.ordinal,
            own_ordinal: own_ordinal[number],
            rest: Default::default(),
        };
        keys::put_inbox(&mut out, uid, cid);
        ends[number + 1].0 = out.len();
        inbox.put(&mut out, store);
        ends[number + 1].1 = out.len();
    }
    let (rows, mut start) = (out.freeze(), 0);
    let write = |(key_end, end)| {
        let (key, value) = (rows.slice(start..key_end), rows.slice(key_end..end));
        start = end;
        Write::SetStamped { key, value, offset: STAMP_OFFSET }
    };
    ends.map(write).into()
}

/// The first message that fits, and the newest one looked at.
fn find_in(
    range: RangeRows,
    fits: impl Fn(&MessageRow) -> bool,
) -> Result<(Option<Row>, Option<Seq>), ValueError> {
    let mut reached = None;
    for (key, value) in range.rows {
        let seq = keys::seq_of_message(&key).ok_or(ValueError::Damaged)?;
        let message = MessageRow::decode(seq, value)?;
        reached = Some(seq);
        if fits(&message) {
            return Ok((Some(message.row), reached));
        }
    }
    Ok((None, reached))
}

/// What the first read of a load says; `None` if there is no such channel.
fn loaded(rows: &Rows) -> Result<Option<Loaded>, ValueError> {
    let [Some(channel), trim] = rows.gets.as_slice() else { return Ok(None) };
    let row = ChannelRow::decode(channel.clone())?;
    let trim = trim.clone().map(TrimRow::decode).transpose()?;
    let newest = rows.ranges.first().and_then(|range| range.rows.first());
    let newest = match newest {
        Some((key, value)) => {
            let seq = keys::seq_of_message(key).ok_or(ValueError::Damaged)?;
            Some(MessageRow::decode(seq, value.clone())?.row)
        }
        None => None,
    };
    let floor = trim.map_or(Seq(1), |trim| trim.floor);
    let (head, ordinal, time_ms) = match (newest, trim) {
        (Some(row), _) => (row.seq, row.ordinal, row.time_ms),
        (None, Some(trim)) => (trim.last, trim.ordinal, trim.time_ms),
        (None, None) => (Seq(0), Ordinal(0), 0),
    };
    Ok(Some(Loaded { row, floor, head, ordinal, time_ms }))
}
