//! One shard: the users and channels of its vshards, and everything that is said about them.
//!
//! This file holds the state and the dispatch; what is done about each input stands in the files
//! named after the matter: `boot`, `attach`, `session`, `sync`, `marker`, `request`, `channel`.

use std::collections::VecDeque;

use chatring_wire::frame::{Failure, ServerFrame, SignOutScope};
use chatring_wire::{Cid, CloseCode, ErrorCode, HistoryId, Uid, Vshard};
use rustc_hash::FxHashMap;

use crate::boot::Boot;
use crate::call::CallId;
use crate::calls::OpenCall;
use crate::channel::{ChannelSlot, LoadStep};
use crate::counters::Counters;
use crate::effect::{Effect, FatalCause, Input, Now, SendRef, SessionId, ShardId, ShardMessage};
use crate::kv::{Completion, Limits, Outcome, Read, Request, Rows, Ticket, Version, Write};
use crate::lane::{Append, Lane, LaneOp, LaneOutput};
use crate::limits::ShardLimits;
use crate::once::LookUp;
use crate::placement::{DeploymentKey, shard_of};
use crate::poll::PollStep;
use crate::queue::{Queued, ShardQueue};
use crate::reach::Reach;
use crate::relation::{Related, Relating};
use crate::request::RequestStep;
use crate::sabotage::Breaks;
use crate::session::Session;
use crate::sync::SyncStep;
use crate::timers::{Timer, Timers};
use crate::user::User;
use crate::values::{StoreIncarnation, ValueError};

/// Pause before a read that the store did not answer is submitted again.
const READ_RETRY_MS: u64 = 20;

/// What a shard is told at its start.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Which shard this is.
    pub shard: ShardId,
    /// How many shards the node has.
    pub shards: u16,
    /// The node's number in its store (0 for the only one).
    pub node: u16,
    /// Unique to this start of the process, never 0: 64 random bits.
    pub incarnation: u64,
    /// Random bytes that become the deployment's key and history id if the store is new.
    pub seed: [u8; 40],
    /// The store's limits.
    pub kv: Limits,
    /// The shard's own.
    pub limits: ShardLimits,
    /// What is broken on purpose (tests).
    pub breaks: Breaks,
}

/// What all shards of a deployment share for ever.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// Derives ids.
    pub key: DeploymentKey,
    /// Changes only when a backup is restored.
    pub history: HistoryId,
    /// Which store's counting the stamps of new rows belong to.
    pub store: StoreIncarnation,
}

/// The machine of one shard. See the crate's documentation for how to drive it.
#[derive(Debug)]
pub struct Shard {
    pub(crate) config: ShardConfig,
    pub(crate) now: Now,
    pub(crate) boot: Boot,
    pub(crate) deployment: Option<Deployment>,
    pub(crate) lane: Option<Lane<Tag>>,
    /// Boxed, as the users are: half of a map's places are empty.
    pub(crate) sessions: FxHashMap<SessionId, Box<Session>>,
    /// Sessions that wait for their user's rows.
    pub(crate) attaching: FxHashMap<SessionId, Uid>,
    pub(crate) users: FxHashMap<Uid, Box<User>>,
    pub(crate) calls: FxHashMap<CallId, OpenCall>,
    /// Users of whom a relation is on its way into the rows, and those that wait for it.
    pub(crate) relating: FxHashMap<Uid, VecDeque<Box<Relating>>>,
    pub(crate) feeds_made: u64,
    pub(crate) reach: Reach,
    pub(crate) channels: FxHashMap<Cid, ChannelSlot>,
    pub(crate) channel_clock: VecDeque<Cid>,
    pub(crate) timers: Timers,
    pub(crate) counters: Counters,
    pub(crate) draining: bool,
    queues: Vec<ShardQueue>,
    local: VecDeque<ShardMessage>,
    asked: FxHashMap<Ticket, Asked>,
    next_ticket: u64,
    pub(crate) sync_generation: u64,
    effects: VecDeque<Effect>,
    /// Empty between the steps of the lane; kept for its memory.
    lane_out: Vec<LaneOutput<Tag>>,
    appends_held: bool,
    /// Sends of this turn whose rows are to be read.
    pub(crate) look_ups: Vec<LookUp>,
}

/// What to do when rows are stored.
#[derive(Debug)]
pub(crate) enum Tag {
    /// A message of a channel: the next one that waits for its commit.
    Message(Cid),
    /// The channel itself.
    Channel(Cid),
    /// The rows of a session's user and device.
    SignIn(Uid, SessionId),
    /// A user's markers of a channel.
    Marker(Uid, Cid),
    /// The rows of a caller's user and device.
    CallSignIn(Uid, CallId),
    /// A decision of the accounts.
    Decided(CallId),
    /// How a user stands to another one.
    Relation(Related),
    /// A channel with a block of a user.
    Block(Cid, Uid, SendRef),
    /// A user's or device's revocation.
    SignOut(Uid, SendRef, SignOutScope),
}

/// A request to the store that is under way, and who waits for it.
#[derive(Debug)]
struct Asked {
    by: Asker,
    /// Reads are submitted again until they are answered.
    read: Option<Read>,
}

/// Who waits for the store.
#[derive(Clone, Debug)]
pub(crate) enum Asker {
    /// The start of the shard.
    Boot,
    /// The lane.
    Lane(LaneOp),
    /// A channel that is being loaded or scanned.
    Channel(Cid, LoadStep),
    /// A user that is being loaded.
    User(Uid),
    /// A session's sync.
    Sync(SessionId, SyncStep),
    /// A request of a session.
    Request(SendRef, RequestStep),
    /// A user's markers of a channel.
    Marker(Uid, Cid),
    /// Sends without a base.
    LookUps(Vec<LookUp>),
    /// A user's relation.
    Relation(Box<Relating>),
    /// A sync of a call.
    Poll(CallId, PollStep),
}

impl Shard {
    /// A shard that has just started: it reads and claims what it needs before it is ready.
    pub fn new(now: Now, config: ShardConfig) -> Shard {
        let mut shard = Shard {
            queues: (0..config.shards)
                .map(|_| ShardQueue::new(config.limits.shard_queue_messages_max))
                .collect(),
            config,
            now,
            boot: Boot::Writing,
            deployment: None,
            lane: None,
            sessions: FxHashMap::default(),
            attaching: FxHashMap::default(),
            users: FxHashMap::default(),
            calls: FxHashMap::default(),
            relating: FxHashMap::default(),
            feeds_made: 0,
            reach: Reach::default(),
            channels: FxHashMap::default(),
            channel_clock: VecDeque::new(),
            timers: Timers::default(),
            counters: Counters::default(),
            draining: false,
            local: VecDeque::new(),
            asked: FxHashMap::default(),
            next_ticket: 0,
            sync_generation: 0,
            effects: VecDeque::new(),
            lane_out: Vec::new(),
            appends_held: false,
            look_ups: Vec::new(),
        };
        shard.start_boot();
        shard
    }

    /// Takes in what happened at `now`. May be called many times before the effects are drained:
    /// what the inputs of one turn produce for the store and for other shards then goes out
    /// together.
    pub fn step(&mut self, now: Now, input: Input) {
        self.now = now;
        match input {
            Input::Tick => self.fire_timers(),
            Input::Attach { session, attach } => self.attach(session, attach),
            Input::Frame { session, frame } => self.session_frame(session, frame),
            Input::Refreshed { session, request, identity } => {
                self.session_refreshed(session, request, identity);
            }
            Input::Detached { session } => self.remove_session(session),
            Input::Call { call, what } => self.call(call, what),
            Input::CallGone { call } => self.call_gone(call),
            Input::Store(completion) => self.completed(completion),
            Input::Shard { from, messages } => self.received(from, messages),
            Input::Drain => self.drain(),
        }
        while let Some(message) = self.local.pop_front() {
            self.shard_message(message);
        }
    }

    /// The next thing to do; `None` until the next `step`. Once the effects of the inputs are
    /// given, gathers what goes to the store and to other shards.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        if self.effects.is_empty() {
            self.flush();
        }
        self.effects.pop_front()
    }

    /// When to step with `Input::Tick` at the latest, on the monotonic clock.
    pub fn deadline_ms(&self) -> Option<u64> {
        let lane = self.lane.as_ref().and_then(Lane::deadline_ms);
        [lane, self.timers.deadline_ms()].into_iter().flatten().min()
    }

    /// What ids are derived from; `None` until the shard is ready to attach sessions.
    pub fn deployment(&self) -> Option<&Deployment> {
        self.deployment.as_ref().filter(|_| self.lane.is_some())
    }

    /// Whether nothing is in flight any more (asked after `Input::Drain`).
    pub fn is_drained(&self) -> bool {
        self.lane.as_ref().is_none_or(Lane::is_idle)
            && self.queues.iter().all(ShardQueue::is_empty)
            && self.users.values().all(|user| user.has_no_markers_to_write())
    }

    /// What it has counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The shard of this node that owns a vshard.
    pub(crate) fn owner_of(&self, vshard: Vshard) -> ShardId {
        shard_of(vshard, self.config.shards)
    }

    /// The deployment, in everything that runs after the start.
    pub(crate) fn ready(&self) -> &Deployment {
        self.deployment.as_ref().expect("sessions and channels exist only after the start")
    }

    pub(crate) fn effect(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    pub(crate) fn fatal(&mut self, cause: FatalCause) {
        self.effect(Effect::Fatal(cause));
    }

    /// Notes that a stored row does not parse. Whoever asked for it is refused; others go on.
    pub(crate) fn note_damage(&mut self, _: ValueError) {
        self.counters.rows_damaged += 1;
    }

    pub(crate) fn send(&mut self, session: SessionId, frame: ServerFrame) {
        self.effect(Effect::Send { session, frame });
    }

    /// Tells a connection why it is closed, and closes it.
    pub(crate) fn close_with(&mut self, session: SessionId, failure: Failure) {
        let code = failure.code.unwrap_or(ErrorCode::Internal);
        self.send(session, ServerFrame::Error(failure));
        self.effect(Effect::Close { session, code: CloseCode::for_error(code) });
        self.remove_session(session);
    }

    /// Submits a read that is repeated until the store answers it.
    pub(crate) fn read(&mut self, by: Asker, read: Read) {
        let request = Request::Read(read.clone());
        self.submit(by, Some(read), request);
    }

    /// Submits a request whose failure its asker settles.
    pub(crate) fn submit_once(&mut self, by: Asker, request: Request) {
        self.submit(by, None, request);
    }

    fn submit(&mut self, by: Asker, read: Option<Read>, request: Request) {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.asked.insert(ticket, Asked { by, read });
        self.counters.store_requests = self.asked.len() as u64;
        self.effect(Effect::Store { ticket, request });
    }

    /// Queues rows for the lane. Gives the tag back if it is full.
    pub(crate) fn append(&mut self, writes: Vec<Write>, tag: Tag) -> Result<(), Tag> {
        match &mut self.lane {
            Some(lane) => lane.push(Append { writes, tag }),
            None => Err(tag),
        }
    }

    /// Sends a message to a shard of this node. Gives `Refused` if it is a request and the queue is
    /// full.
    pub(crate) fn tell_shard(&mut self, to: ShardId, message: ShardMessage) -> Queued {
        if to == self.config.shard {
            self.local.push_back(message);
            return Queued::Yes;
        }
        let queued = self.queues[usize::from(to.0)].push(message);
        match queued {
            Queued::Yes => {}
            Queued::Collapsed => self.counters.notifications_collapsed += 1,
            Queued::Refused => self.counters.shard_queue_full += 1,
        }
        queued
    }

    fn completed(&mut self, completion: Completion) {
        let Some(asked) = self.asked.remove(&completion.ticket) else { return };
        self.counters.store_requests = self.asked.len() as u64;
        if completion.outcome == Outcome::Fatal {
            self.fatal(FatalCause::StoreFailed);
            return;
        }
        match (asked, completion.outcome) {
            (Asked { by, read: Some(_) }, Outcome::Rows(rows)) => self.rows_read(by, rows),
            (asked @ Asked { read: Some(_), .. }, _) => {
                let ticket = completion.ticket;
                self.asked.insert(ticket, asked);
                self.timers.set(self.now.mono_ms + READ_RETRY_MS, Timer::Retry(ticket));
            }
            (Asked { by: Asker::Boot, .. }, outcome) => self.boot_committed(outcome),
            (Asked { by: Asker::Lane(op), .. }, outcome) => {
                self.lane_step(|lane, now, out| lane.completed(now, op, outcome, out));
            }
            (Asked { .. }, _) => self.fatal(FatalCause::StoreBroken),
        }
    }

    fn rows_read(&mut self, by: Asker, rows: Rows) {
        match by {
            Asker::Boot => self.boot_rows(rows),
            Asker::Lane(_) => {}
            Asker::Channel(cid, step) => self.channel_rows(cid, step, rows),
            Asker::User(uid) => self.user_rows(uid, rows),
            Asker::Sync(session, step) => self.sync_rows(session, step, rows),
            Asker::Request(origin, step) => self.request_rows(origin, step, rows),
            Asker::Marker(uid, cid) => self.marker_rows(uid, cid, rows),
            Asker::LookUps(look_ups) => self.looked_up(look_ups, rows),
            Asker::Relation(relating) => self.relation_rows(*relating, rows),
            Asker::Poll(call, step) => self.poll_rows(call, step, rows),
        }
    }

    /// While appends are held none of them goes to the store, and they become one group.
    pub fn hold_appends(&mut self, held: bool) {
        self.appends_held = held;
    }

    fn flush(&mut self) {
        self.read_look_ups();
        if !self.appends_held {
            self.lane_step(|lane, now, out| lane.flush(now, out));
        }
        for index in 0..self.queues.len() {
            let messages = self.queues[index].take();
            if !messages.is_empty() {
                self.counters.shard_messages += messages.len() as u64;
                self.effects.push_back(Effect::ToShard { to: ShardId(index as u16), messages });
            }
        }
    }

    fn lane_step(&mut self, step: impl FnOnce(&mut Lane<Tag>, Now, &mut Vec<LaneOutput<Tag>>)) {
        let Some(lane) = &mut self.lane else { return };
        let mut out = std::mem::take(&mut self.lane_out);
        step(lane, self.now, &mut out);
        let (waiting, bytes) = lane.waiting();
        (self.counters.groups, self.counters.lane_settles) = lane.progress();
        self.counters.lane_appends = waiting as u64;
        self.counters.lane_append_bytes = bytes as u64;
        self.counters.lane_committing = lane.committing() as u64;
        for output in out.drain(..) {
            match output {
                LaneOutput::Submit(op, request) => self.submit_once(Asker::Lane(op), request),
                LaneOutput::Resume(lane) => self.effect(Effect::Resume(lane)),
                LaneOutput::Stored(version, tags) => {
                    self.counters.groups_committed += 1;
                    for tag in tags {
                        self.stored(version, tag);
                    }
                }
                LaneOutput::Lost(cause) => self.fatal(cause),
            }
        }
        self.lane_out = out;
        self.say_how_far();
        while let Some(message) = self.local.pop_front() {
            self.shard_message(message);
        }
    }

    fn stored(&mut self, version: Version, tag: Tag) {
        match tag {
            Tag::Message(cid) => self.message_stored(version, cid),
            Tag::Channel(cid) => self.channel_stored(cid),
            Tag::SignIn(uid, session) => self.sign_in_stored(uid, session),
            Tag::Marker(uid, cid) => self.marker_stored(uid, cid),
            Tag::CallSignIn(uid, call) => self.call_sign_in_stored(uid, call),
            Tag::Decided(call) => self.decision_stored(call),
            Tag::Relation(related) => self.relation_stored(related),
            Tag::Block(cid, uid, origin) => self.block_stored(cid, uid, origin),
            Tag::SignOut(uid, origin, scope) => self.sign_out_stored(uid, origin, scope),
        }
    }

    fn received(&mut self, from: ShardId, messages: Vec<ShardMessage>) {
        let mut counted = 0;
        for message in messages {
            counted += u32::from(!matches!(message, ShardMessage::Credit { .. }));
            match message {
                ShardMessage::Credit { messages } => {
                    self.queues[usize::from(from.0)].credited(messages);
                }
                message => self.shard_message(message),
            }
        }
        self.queues[usize::from(from.0)].received(counted);
    }

    fn shard_message(&mut self, message: ShardMessage) {
        match message {
            ShardMessage::OpenDirect { origin, uid, peer, candidate } => {
                self.open_direct(origin, uid, peer, candidate);
            }
            ShardMessage::Opened { origin, result } => self.channel_opened(origin, result),
            ShardMessage::Send(request) => self.channel_send(request),
            ShardMessage::Block(request) => self.channel_block(request),
            ShardMessage::BlockStored { origin, result } => self.block_answered(origin, result),
            ShardMessage::Answer { origin, cid, answer } => {
                self.send_answered(origin, cid, answer);
            }
            ShardMessage::Notify { uid, version, message } => {
                self.notified(uid, version, &message);
            }
            ShardMessage::NotifyCollapsed { uid, .. } => self.notifications_lost(uid),
            ShardMessage::Typing { uid, cid, from } => self.feed_typing(uid, cid, from),
            ShardMessage::HowFar { asker } => self.asked_how_far(asker),
            ShardMessage::ThusFar { claimed } => self.reached(claimed),
            ShardMessage::Credit { .. } => {}
        }
    }

    fn fire_timers(&mut self) {
        while let Some(timer) = self.timers.pop(self.now.mono_ms) {
            match timer {
                Timer::Boot => self.start_boot(),
                Timer::Session(id, kind) => self.session_timer(id, kind),
                Timer::Markers(uid) => self.write_markers(uid),
                Timer::Call(call) => self.call_is_late(call),
                Timer::Caller(uid) => self.let_caller_go(uid),
                Timer::Retry(ticket) => {
                    if let Some(Asked { by, read: Some(read) }) = self.asked.remove(&ticket) {
                        self.read(by, read);
                    }
                }
            }
        }
    }
}
