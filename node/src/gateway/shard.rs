//! What one shard does with its connections, its machine and its inbox.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, OnceLock, TryLockError};

use chatring_core::call::{CallId, CallResult};
use chatring_core::effect::{Attach, Effect, Input, Now, SessionId, ShardId};
use chatring_core::placement::{DeploymentKey, shard_of};
use chatring_wire::frame::{Failure, Hello};
use chatring_wire::limits::FRAME_BYTES_MIN;
use chatring_wire::ws::HttpStatus;
use chatring_wire::{ClientFrame, CloseCode, ErrorCode, ServerFrame};
use rustc_hash::FxHashMap;

use super::admission::{Admission, Permit};
use super::connection::{Item, Opened, Opening, Talk, Wrong, refusal};
use super::courier::{Courier, Reply};
use super::driver::{Driver, Handover, Message};
use super::limits::{
    CLOSE_MS_MAX, FRAMES_PER_CALL_MAX, GatewayLimits, HANDOVER_RETRY_MS, REFUSED_MAX,
};
use super::metrics::{GatewayCounters, Published};
use super::{HttpPlace, HttpSink, PlainHttp, PlainTls};
use crate::auth::{Family, TokenVerifier, Verified};
use crate::rt::{Closed, ConnId, Flow, Handler, Io, Parted};

/// What the shards and the gateway's owner have in common.
pub struct Shared {
    pub shards: u16,
    pub limits: GatewayLimits,
    pub verifier: Arc<dyn TokenVerifier>,
    pub http: HttpSink,
    pub courier: Courier,
    /// Derives ids; not there before a shard is ready.
    pub key: OnceLock<DeploymentKey>,
    pub admission: Arc<Admission>,
    /// Shards that may attach sessions.
    pub ready: AtomicU16,
    /// Shards that have nothing in flight any more.
    pub drained: AtomicU16,
    pub published: Vec<Mutex<Published>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("shards", &self.shards).finish_non_exhaustive()
    }
}

struct Connection {
    id: ConnId,
    permit: Permit,
    phase: Phase,
    dirty: bool,
}

enum Phase {
    Opening(Opening),
    Hello(Box<Talk>),
    /// Said a good hello. Nothing is read from it until its machine welcomes it: what came behind
    /// the hello may have to follow it to another shard.
    Attaching(SessionId, Box<Talk>),
    Live(SessionId, Box<Talk>),
    Closing(Box<Talk>),
}

impl Connection {
    fn welcome(&mut self) {
        let phase = std::mem::replace(&mut self.phase, Phase::Opening(Opening::default()));
        self.phase = match phase {
            Phase::Attaching(session, talk) => Phase::Live(session, talk),
            phase => phase,
        };
    }
}

impl Phase {
    fn talk(&mut self) -> Option<&mut Talk> {
        match self {
            Phase::Opening(_) => None,
            Phase::Hello(talk)
            | Phase::Attaching(_, talk)
            | Phase::Live(_, talk)
            | Phase::Closing(talk) => Some(talk),
        }
    }
}

/// Whether the shard takes sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The machine has said what it wants first, and nobody has listened yet.
    New,
    Starting,
    /// Ready; others may not be.
    Ready,
    Accepting,
    Draining,
    Drained,
}

/// The handler of a shard.
pub struct GatewayShard {
    pub(super) driver: Driver,
    shared: Arc<Shared>,
    conns: Vec<Option<Connection>>,
    sessions: FxHashMap<SessionId, ConnId>,
    /// Who waits for the answers to the machine's calls; as many as those.
    pub(super) replies: FxHashMap<CallId, Reply>,
    /// What this turn has answered of them.
    pub(super) answered: Vec<(Reply, CallResult)>,
    sessions_given: u64,
    /// Connections with frames that are to be written.
    dirty: Vec<ConnId>,
    /// When handshakes and closes are over; each in order, because each lasts as long as another.
    opening: VecDeque<(u64, ConnId)>,
    closing: VecDeque<(u64, ConnId)>,
    /// Connections without a place that are not closed yet.
    refused: usize,
    stage: Stage,
    counters: GatewayCounters,
}

impl GatewayShard {
    pub fn new(driver: Driver, shared: Arc<Shared>) -> GatewayShard {
        GatewayShard {
            driver,
            shared,
            conns: Vec::new(),
            sessions: FxHashMap::default(),
            replies: FxHashMap::default(),
            answered: Vec::new(),
            sessions_given: 0,
            dirty: Vec::new(),
            opening: VecDeque::new(),
            closing: VecDeque::new(),
            refused: 0,
            stage: Stage::New,
            counters: GatewayCounters::default(),
        }
    }
}

impl Handler for GatewayShard {
    type Message = Message;

    fn opened(&mut self, io: &mut Io, conn: ConnId, peer: SocketAddr) {
        let Some(permit) = self.shared.admission.admit(peer) else {
            self.refused += 1;
            self.counters.refused_full += 1;
            // They are told so while they are few: each keeps a descriptor until it has read it.
            // Before a handshake nothing can be said, and one more of those is what is refused.
            if self.refused >= REFUSED_MAX || io.speaks_tls() {
                return io.close(conn);
            }
            if let Some(out) = io.out(conn) {
                HttpStatus::Unavailable.write_response(out);
            }
            return io.finish(conn);
        };
        self.opening.push_back((io.now().mono_ms + self.shared.limits.handshake_ms_max, conn));
        self.put(conn, permit, Phase::Opening(Opening::default()));
    }

    fn received(&mut self, io: &mut Io, conn: ConnId, bytes: &[u8]) -> Flow {
        let Some(connection) = find(&mut self.conns, conn) else { return Flow::Wait };
        if let Phase::Opening(opening) = &mut connection.phase {
            let Some(out) = io.out(conn) else { return Flow::Wait };
            match opening.advance(bytes, self.shared.limits.frame_bytes_max, out) {
                Opened::Incomplete => Flow::Wait,
                Opened::Answered => {
                    self.counters.http_answered += 1;
                    io.finish(conn);
                    Flow::Wait
                }
                Opened::Plain(received) => {
                    self.counters.http_handed += 1;
                    self.hand_to_api(io, conn, received);
                    Flow::Wait
                }
                Opened::Upgraded(talk, rest) => {
                    connection.phase = Phase::Hello(talk);
                    self.read(io, conn, &rest)
                }
            }
        } else {
            self.read(io, conn, bytes)
        }
    }

    fn drained(&mut self, io: &mut Io, conn: ConnId) {
        // More may have been queued since the last byte of what was written.
        if self.unsent(io, conn) > self.shared.limits.unsent_bytes_high {
            return;
        }
        // What waits for its welcome was not paused for being slow.
        let connection = find(&mut self.conns, conn);
        if !connection.is_some_and(|c| matches!(c.phase, Phase::Attaching(..))) {
            io.resume(conn);
        }
    }

    fn closed(&mut self, io: &mut Io, conn: ConnId, _: Closed) {
        self.driver.assert_whole();
        let Some(connection) = self.take(conn) else {
            self.refused = self.refused.saturating_sub(1);
            return;
        };
        if let Phase::Attaching(session, _) | Phase::Live(session, _) = connection.phase {
            self.sessions.remove(&session);
            self.step(io, Input::Detached { session });
        }
    }

    fn inbox(&mut self, io: &mut Io, batch: Vec<Message>) {
        self.driver.assert_whole();
        for message in batch {
            match message {
                Message::Completed => self.completions(io),
                Message::Shard { from, messages } => {
                    self.step(io, Input::Shard { from, messages });
                }
                Message::Call(asked) => self.call(*asked),
                Message::CallGone(call) => self.call_gone(io, call),
                Message::Handover(handover) => self.take_over(io, *handover),
                Message::Drain => self.drain(io),
                Message::CloseAll => self.close_all(io),
            }
        }
        self.step_all(io);
    }

    fn tick(&mut self, io: &mut Io, now: Now) {
        self.driver.assert_whole();
        self.expire(io, now.mono_ms);
        self.advance_stage(io);
        self.publish();
    }

    fn turn_end(&mut self, io: &mut Io) {
        self.driver.assert_whole();
        self.completions(io);
        if self.driver.deadline_ms().is_some_and(|at| at <= io.now().mono_ms) {
            self.step(io, Input::Tick);
        }
        // What a turn appends is one group; while the shard has more to do than time, what several
        // turns append.
        if !io.is_pressed() {
            self.let_appends_go(io);
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        for id in dirty.drain(..) {
            let Some(connection) = find(&mut self.conns, id) else { continue };
            connection.dirty = false;
            let Some(talk) = connection.phase.talk() else { continue };
            if let Some(out) = io.out(id) {
                self.counters.messages_out += talk.flush(out);
            }
        }
        self.dirty = dirty;
        self.shared.courier.answer(&mut self.answered);
        self.counters.posts_full += self.driver.post_all();
        io.expect_post(self.driver.awaits_much());
    }
}

/// What peers say.
impl GatewayShard {
    /// Handles a bounded number of frames; what is left waits for the connection's next turn.
    fn read(&mut self, io: &mut Io, id: ConnId, bytes: &[u8]) -> Flow {
        let Some(talk) = self.talk(id) else { return Flow::Wait };
        let mut kept = talk.kept();
        let mut input = match kept.is_empty() {
            true => bytes,
            false => {
                kept.extend_from_slice(bytes);
                &kept
            }
        };
        for _ in 0..FRAMES_PER_CALL_MAX {
            let Some(connection) = find(&mut self.conns, id) else { return Flow::Wait };
            if let Phase::Attaching(..) = connection.phase {
                break;
            }
            let Some(talk) = connection.phase.talk() else { return Flow::Wait };
            match talk.next(&mut input, io.out(id), &mut self.counters) {
                Item::Nothing => {
                    self.check_unsent(io, id);
                    return Flow::Wait;
                }
                Item::Handled => {}
                Item::Finished => {
                    self.end(io, id);
                    return Flow::Wait;
                }
                Item::Wrong(_) if matches!(connection.phase, Phase::Closing(_)) => {
                    io.finish(id);
                    return Flow::Wait;
                }
                Item::Wrong(wrong) => {
                    self.fail(io, id, wrong);
                    return Flow::Wait;
                }
                Item::Frame(frame) => match &connection.phase {
                    &Phase::Live(session, _) => self.frame(io, id, session, frame),
                    Phase::Hello(_) => {
                        // Bytes behind the hello go where the connection goes.
                        self.keep(id, &input);
                        if self.hello(io, id, frame) == Hellos::Moved {
                            return Flow::Wait;
                        }
                        return Flow::Again;
                    }
                    Phase::Attaching(..) | Phase::Closing(_) | Phase::Opening(_) => {}
                },
            }
        }
        self.keep(id, &input);
        self.check_unsent(io, id);
        Flow::Again
    }

    fn keep(&mut self, id: ConnId, input: &&[u8]) {
        if let Some(talk) = self.talk(id) {
            talk.keep(input);
        }
    }

    fn frame(&mut self, io: &mut Io, id: ConnId, session: SessionId, frame: ClientFrame) {
        match frame {
            ClientFrame::Hello(_) => {
                let (failure, code) = refusal(ErrorCode::Unexpected);
                self.refuse(io, id, failure, code);
            }
            ClientFrame::Refresh { request, token } => {
                let identity = self.shared.verifier.verify(&token, io.now().unix_ms / 1_000);
                self.step(io, Input::Refreshed { session, request, identity });
            }
            frame => self.step(io, Input::Frame { session, frame }),
        }
    }

    fn hello(&mut self, io: &mut Io, id: ConnId, frame: ClientFrame) -> Hellos {
        let (attach, family) = match self.attach_of(io, frame) {
            Ok(attach) => attach,
            Err(code) => {
                self.counters.hellos_refused += 1;
                let (failure, close) = refusal(code);
                self.refuse(io, id, failure, close);
                return Hellos::Stays;
            }
        };
        let Some(to) = self.owner(&attach) else { return Hellos::Stays };
        if to != self.driver.shard {
            self.hand_over(io, id, to, attach, family);
            return Hellos::Moved;
        }
        if let Some(connection) = self.take(id)
            && let Phase::Hello(talk) = connection.phase
        {
            self.attach(io, id, connection.permit, talk, attach);
        }
        Hellos::Stays
    }

    fn attach_of(
        &self,
        io: &Io,
        frame: ClientFrame,
    ) -> Result<(Attach, Option<Family>), ErrorCode> {
        let ClientFrame::Hello(hello) = frame else { return Err(ErrorCode::Unexpected) };
        let Hello { token, installation, cursor, frame_bytes_max, .. } = hello;
        if (frame_bytes_max as usize) < FRAME_BYTES_MIN {
            return Err(ErrorCode::FrameTooSmall);
        }
        if self.stage != Stage::Accepting {
            return Err(ErrorCode::Draining);
        }
        let verified = self.shared.verifier.verify_whole(&token, io.now().unix_ms / 1_000)?;
        let Verified { identity, family } = verified;
        Ok((Attach { identity, candidate: 0, installation, cursor }, family))
    }

    fn owner(&self, attach: &Attach) -> Option<ShardId> {
        let key = &self.driver.machine().deployment()?.key;
        let Attach { identity, candidate, .. } = attach;
        let uid = key.uid(&identity.issuer, &identity.subject, *candidate);
        Some(shard_of(uid.vshard(), self.shared.shards))
    }
}

/// Whether a connection is still here after its hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hellos {
    Stays,
    Moved,
}

/// Sessions and their shards.
impl GatewayShard {
    fn attach(
        &mut self,
        io: &mut Io,
        id: ConnId,
        mut permit: Permit,
        talk: Box<Talk>,
        attach: Attach,
    ) {
        permit.settle();
        // The shard's number keeps it from being given by another one.
        let session = SessionId(u64::from(self.driver.shard.0) << 48 | self.sessions_given);
        self.sessions_given += 1;
        self.sessions.insert(session, id);
        self.put(id, permit, Phase::Attaching(session, talk));
        io.pause(id);
        self.step(io, Input::Attach { session, attach });
    }

    fn hand_over(
        &mut self,
        io: &mut Io,
        id: ConnId,
        to: ShardId,
        attach: Attach,
        family: Option<Family>,
    ) {
        if !self.driver.has_room(to) {
            self.counters.refused_full += 1;
            let failure = Failure::new(ErrorCode::Busy).retry_after(HANDOVER_RETRY_MS);
            return self.refuse(io, id, failure, CloseCode::Later);
        }
        let Some(connection) = find(&mut self.conns, id) else { return };
        // What was queued for it goes along as bytes.
        if let (Some(talk), Some(out)) = (connection.phase.talk(), io.out(id)) {
            talk.flush(out);
        }
        let Some(connection) = self.take(id) else { return };
        let (Phase::Hello(talk) | Phase::Attaching(_, talk)) = connection.phase else { return };
        let Some(released) = io.release(id) else { return };
        self.counters.handovers += 1;
        let permit = connection.permit;
        let handover = Handover { released, permit, talk, attach, family };
        self.driver.hand_over(to, Box::new(handover));
    }

    /// Lets go of a connection that speaks HTTP, with what it has said.
    fn hand_to_api(&mut self, io: &mut Io, id: ConnId, received: Vec<u8>) {
        let Some(mut connection) = self.take(id) else { return };
        let Some(released) = io.release(id) else { return };
        connection.permit.settle();
        let Parted { stream, unread, unsent, tls } = released.part();
        let (received, tls) = match tls {
            None => ([&*received, &*unread].concat(), None),
            Some(session) => (received, Some(PlainTls { session, unread, unsent })),
        };
        let (received, place) = (received.into(), HttpPlace(connection.permit));
        (self.shared.http)(PlainHttp { stream, received, tls, place });
    }

    fn take_over(&mut self, io: &mut Io, handover: Handover) {
        let Handover { released, permit, talk, attach, family } = handover;
        let id = io.adopt(released);
        // Its log-in may have ended on the way: what that ends was looked for here before it came.
        let issued_at_s = attach.identity.issued_at_s;
        let ended = family.is_some_and(|it| self.shared.verifier.has_ended(it, issued_at_s));
        let refused = match self.stage {
            Stage::Ready | Stage::Accepting => ended.then_some(ErrorCode::RevokedToken),
            _ => Some(ErrorCode::Draining),
        };
        if let Some(code) = refused {
            self.put(id, permit, Phase::Hello(talk));
            let (failure, code) = refusal(code);
            return self.refuse(io, id, failure, code);
        }
        self.attach(io, id, permit, talk, attach);
        // Frames may have come along.
        io.call_again(id);
    }

    /// Steps the machine and carries out what it wants, to the end. An input that comes up on the
    /// way waits until then.
    pub(super) fn step(&mut self, io: &mut Io, input: Input) {
        self.driver.later(input);
        self.step_all(io);
    }

    /// The same for all inputs that wait. What they want of the store goes out together.
    fn step_all(&mut self, io: &mut Io) {
        if self.driver.begin() {
            self.carry_all_out(io);
            self.driver.done();
        }
    }

    fn let_appends_go(&mut self, io: &mut Io) {
        let begun = self.driver.begin();
        debug_assert!(begun, "no turn ends within a step");
        self.driver.hold_appends(false);
        self.carry_all_out(io);
        self.driver.hold_appends(true);
        self.driver.done();
    }

    fn carry_all_out(&mut self, io: &mut Io) {
        loop {
            while let Some(effect) = self.driver.next_effect() {
                self.carry_out(io, effect);
            }
            if !self.driver.step_own(io.now()) {
                return;
            }
        }
    }

    fn carry_out(&mut self, io: &mut Io, effect: Effect) {
        match effect {
            Effect::Send { session, frame } => self.send(io, session, &frame),
            Effect::Close { session, code } => {
                if let Some(id) = self.sessions.remove(&session) {
                    self.begin_close(io, id, |talk, out| talk.close(code, out));
                }
            }
            Effect::Answer { call, answer } => self.answer(call, *answer),
            Effect::CallElsewhere { call, what, to } => self.call_elsewhere(call, what, to),
            Effect::Rehome { session, attach, to } => {
                let Some(id) = self.sessions.remove(&session) else { return };
                self.hand_over(io, id, to, attach, None);
            }
            // The driver carries the others out.
            _ => {}
        }
    }

    fn send(&mut self, io: &mut Io, session: SessionId, frame: &ServerFrame) {
        let Some(&id) = self.sessions.get(&session) else { return };
        let Some(connection) = find(&mut self.conns, id) else { return };
        let Some(talk) = connection.phase.talk() else { return };
        let queued = talk.send(frame);
        if let ServerFrame::Welcome(_) = frame {
            connection.welcome();
            io.resume(id);
        }
        let queued = match queued {
            Ok(queued) => queued,
            Err(error) => {
                tracing::error!(%error, "a frame of ours cannot be encoded");
                let (failure, code) = refusal(ErrorCode::Internal);
                return self.refuse(io, id, failure, code);
            }
        };
        self.counters.frames_out += 1;
        if !std::mem::replace(&mut connection.dirty, true) {
            self.dirty.push(id);
        }
        let unsent = queued + io.unsent(id);
        if unsent > self.shared.limits.unsent_bytes_high && !io.is_paused(id) {
            self.counters.read_pauses += 1;
            io.pause(id);
        }
        if unsent > self.shared.limits.unsent_bytes_max {
            self.counters.overflows += 1;
            let failure = Failure::new(ErrorCode::Busy).text("too much is unread");
            self.refuse(io, id, failure, CloseCode::Later);
        }
    }

    fn completions(&mut self, io: &mut Io) {
        while let Some(completions) = self.driver.next_completions() {
            for completion in completions {
                self.driver.later(Input::Store(completion));
            }
            self.step_all(io);
        }
    }
}

/// Ends of connections, and of the shard.
impl GatewayShard {
    fn fail(&mut self, io: &mut Io, id: ConnId, wrong: Wrong) {
        self.counters.malformed += 1;
        self.begin_close(io, id, |talk, out| talk.fail(wrong, out));
    }

    fn refuse(&mut self, io: &mut Io, id: ConnId, failure: Failure, code: CloseCode) {
        self.begin_close(io, id, |talk, out| talk.refuse(failure, code, out));
    }

    /// Writes what `say` has to say and waits for the peer's close. A session that is still known
    /// is detached.
    fn begin_close(
        &mut self,
        io: &mut Io,
        id: ConnId,
        say: impl FnOnce(&mut Talk, &mut bytes::BytesMut),
    ) {
        let Some(connection) = find(&mut self.conns, id) else { return };
        let phase = std::mem::replace(&mut connection.phase, Phase::Opening(Opening::default()));
        let mut detached = None;
        let mut talk = match phase {
            Phase::Opening(_) => return io.close(id),
            Phase::Closing(talk) => {
                connection.phase = Phase::Closing(talk);
                return;
            }
            Phase::Hello(talk) => talk,
            Phase::Attaching(session, talk) | Phase::Live(session, talk) => {
                if self.sessions.remove(&session).is_some() {
                    detached = Some(session);
                }
                talk
            }
        };
        if let Some(out) = io.out(id) {
            say(&mut talk, out);
        }
        let finished = talk.is_finished();
        connection.phase = Phase::Closing(talk);
        io.resume(id);
        match finished {
            true => io.finish(id),
            false => self.closing.push_back((io.now().mono_ms + CLOSE_MS_MAX, id)),
        }
        if let Some(session) = detached {
            self.step(io, Input::Detached { session });
        }
    }

    /// The peer has said its last word.
    fn end(&mut self, io: &mut Io, id: ConnId) {
        self.begin_close(io, id, |_, _| {});
        io.finish(id);
    }

    /// Stops reading from a peer that does not take what it is sent.
    fn check_unsent(&mut self, io: &mut Io, id: ConnId) {
        if self.unsent(io, id) > self.shared.limits.unsent_bytes_high && !io.is_paused(id) {
            self.counters.read_pauses += 1;
            io.pause(id);
        }
    }

    /// Bytes that a peer has yet to take, those of this turn too.
    fn unsent(&mut self, io: &Io, id: ConnId) -> usize {
        self.talk(id).map_or(0, |talk| talk.queued()) + io.unsent(id)
    }

    fn expire(&mut self, io: &mut Io, now_ms: u64) {
        while let Some((_, id)) = self.opening.pop_front_if(|(at, _)| *at <= now_ms) {
            match find(&mut self.conns, id).map(|c| &c.phase) {
                Some(Phase::Opening(_)) => io.close(id),
                Some(Phase::Hello(_)) => {
                    let (failure, code) = refusal(ErrorCode::Timeout);
                    self.refuse(io, id, failure, code);
                }
                _ => continue,
            }
            self.counters.handshakes_timed_out += 1;
        }
        while let Some((_, id)) = self.closing.pop_front_if(|(at, _)| *at <= now_ms) {
            if find(&mut self.conns, id).is_some() {
                io.finish(id);
            }
        }
    }

    fn advance_stage(&mut self, io: &mut Io) {
        let shared = self.shared.clone();
        match self.stage {
            Stage::New => {
                self.stage = Stage::Starting;
                self.step(io, Input::Tick);
            }
            Stage::Starting if self.driver.machine().deployment().is_some() => {
                self.stage = Stage::Ready;
                if let Some(deployment) = self.driver.machine().deployment() {
                    // All shards have the same one.
                    shared.key.get_or_init(|| deployment.key.clone());
                }
                shared.ready.fetch_add(1, Ordering::AcqRel);
            }
            Stage::Ready if shared.ready.load(Ordering::Acquire) == shared.shards => {
                self.stage = Stage::Accepting;
                io.accept();
            }
            Stage::Draining if self.driver.machine().is_drained() => {
                self.stage = Stage::Drained;
                shared.drained.fetch_add(1, Ordering::AcqRel);
            }
            _ => {}
        }
    }

    fn drain(&mut self, io: &mut Io) {
        if matches!(self.stage, Stage::Draining | Stage::Drained) {
            return;
        }
        self.stage = Stage::Draining;
        io.stop_accepting();
        self.step(io, Input::Drain);
    }

    fn close_all(&mut self, io: &mut Io) {
        let ids: Vec<ConnId> = self.conns.iter().flatten().map(|c| c.id).collect();
        for id in ids {
            self.begin_close(io, id, |talk, out| talk.close(CloseCode::GoingAway, out));
            // Nothing is waited for: the peer reads the close frame before the end of the stream.
            io.finish(id);
        }
    }

    fn publish(&mut self) {
        let published = &self.shared.published[usize::from(self.driver.shard.0)];
        match published.try_lock() {
            Ok(mut published) => {
                published.gateway = self.counters;
                published.core = self.driver.machine().counters().clone();
            }
            // Somebody reads: the next tick publishes.
            Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => {}
        }
    }

    fn put(&mut self, id: ConnId, permit: Permit, phase: Phase) {
        if self.conns.len() <= id.slot() {
            self.conns.resize_with(id.slot() + 1, || None);
        }
        let before = self.conns[id.slot()].replace(Connection { id, permit, phase, dirty: false });
        debug_assert!(before.is_none(), "a place is given once");
        self.counters.connections += 1;
    }

    fn take(&mut self, id: ConnId) -> Option<Connection> {
        let connection = self.conns.get_mut(id.slot())?.take_if(|c| c.id == id)?;
        self.counters.connections -= 1;
        Some(connection)
    }

    fn talk(&mut self, id: ConnId) -> Option<&mut Talk> {
        find(&mut self.conns, id)?.phase.talk()
    }
}

fn find(conns: &mut [Option<Connection>], id: ConnId) -> Option<&mut Connection> {
    conns.get_mut(id.slot())?.as_mut().filter(|c| c.id == id)
}
