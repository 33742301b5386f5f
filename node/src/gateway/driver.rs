//! Steps a shard's machine and carries its store requests and messages to other shards out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chatring_core::call::CallId;
use chatring_core::effect::{Attach, Effect, Input, Now, ShardId, ShardMessage};
use chatring_core::kv::{Completion, Kv, Limits};
use chatring_core::limits::ShardLimits;
use chatring_core::sabotage::Breaks;
use chatring_core::shard::{Shard, ShardConfig};
use ring::rand::{SecureRandom, SystemRandom};

use super::StoreSink;
use super::admission::Permit;
use super::calls::Asked;
use super::connection::Talk;
use super::limits::HANDOVERS_WAITING_MAX;
use crate::auth::Family;
use crate::rt::{Post, Released};

/// What comes into a shard's inbox.
#[derive(Debug)]
pub enum Message {
    /// The store has answered something.
    Completed,
    /// Another shard's machine.
    Shard { from: ShardId, messages: Vec<ShardMessage> },
    /// Somebody without a session asks for something.
    Call(Box<Asked>),
    /// Nobody waits for the answer to a call any more.
    CallGone(CallId),
    /// A connection whose user belongs here.
    Handover(Box<Handover>),
    /// The node is about to stop.
    Drain,
    /// Close every connection.
    CloseAll,
}

/// A connection on its way to the shard that owns its user.
#[derive(Debug)]
pub struct Handover {
    pub released: Released,
    pub permit: Permit,
    pub talk: Box<Talk>,
    pub attach: Attach,
    /// The log-in of its token.
    pub family: Option<Family>,
}

/// What all shards of this start of the process have in common.
#[derive(Clone, Debug)]
pub struct Random {
    incarnation: u64,
    source: SystemRandom,
}

impl Random {
    pub fn new() -> Random {
        let source = SystemRandom::new();
        let incarnation = u64::from_ne_bytes(bytes(&source)).max(1);
        Random { incarnation, source }
    }

    pub fn machine(&self, shard: ShardId, shards: u16, limits: ShardLimits, kv: Limits) -> Shard {
        let config = ShardConfig {
            shard,
            shards,
            node: 0,
            incarnation: self.incarnation,
            seed: bytes(&self.source),
            kv,
            limits,
            breaks: Breaks::NONE,
        };
        Shard::new(crate::rt::now(), config)
    }
}

fn bytes<const N: usize>(source: &SystemRandom) -> [u8; N] {
    let mut bytes = [0; N];
    source.fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}

/// Takes the store's completions in. Putting one in never blocks and never fails, because an engine
/// may answer from within `submit`, on the shard's own thread, and each answer must arrive. So the
/// queue has no bound of its own: each entry answers a request that the machine has under way, and
/// those are bounded by its lanes, sessions and loaded channels.
#[derive(Clone, Debug)]
pub struct Sink {
    sender: flume::Sender<Vec<Completion>>,
    receiver: flume::Receiver<Vec<Completion>>,
    told: Arc<AtomicBool>,
    post: Post<Message>,
}

impl Sink {
    pub fn new(post: Post<Message>) -> Sink {
        let (sender, receiver) = flume::unbounded(); // bound: the machine's open requests
        Sink { sender, receiver, told: Arc::default(), post }
    }

    pub fn store_sink(&self) -> StoreSink {
        let (sender, told, post) = (self.sender.clone(), self.told.clone(), self.post.clone());
        Arc::new(move |completions| {
            // Fails only when the shard has ended.
            let _ = sender.send(completions);
            if !told.swap(true, Ordering::AcqRel) {
                // A full inbox is looked at soon anyway, and each turn ends with a look in here.
                let _ = post.try_post(vec![Message::Completed]);
            }
        })
    }

    fn take(&self) -> Option<Vec<Completion>> {
        self.receiver.try_recv().ok()
    }
}

/// Appends that the store has yet to answer, above which each of them waits for longer than a turn
/// is put off, so that fuller turns delay nobody. Four times what there are at 15,000 messages a
/// second.
const COMMITTING_MUCH: u64 = 32;

/// The machine with its store and its way to the other shards.
pub struct Driver {
    pub shard: ShardId,
    machine: Shard,
    kv: Box<dyn Kv>,
    sink: Sink,
    posts: Arc<[Post<Message>]>,
    /// For each shard what it has not been given yet, in order.
    waiting: Vec<VecDeque<Message>>,
    /// What this shard's machine told itself or is to be told once its effects are carried out.
    own: VecDeque<Input>,
    stepping: bool,
}

impl Driver {
    pub fn new(
        shard: ShardId,
        machine: Shard,
        kv: Box<dyn Kv>,
        sink: Sink,
        posts: Arc<[Post<Message>]>,
    ) -> Driver {
        let waiting = posts.iter().map(|_| VecDeque::new()).collect();
        Driver { shard, machine, kv, sink, posts, waiting, own: VecDeque::new(), stepping: false }
    }

    pub fn machine(&self) -> &Shard {
        &self.machine
    }

    /// Something is to be stepped once the present effects are carried out.
    pub fn later(&mut self, input: Input) {
        self.own.push_back(input);
    }

    /// When the machine wants to be stepped.
    pub fn deadline_ms(&self) -> Option<u64> {
        self.machine.deadline_ms()
    }

    /// Whether the store is about to answer so many appends that the shard has enough to do.
    pub fn awaits_much(&self) -> bool {
        self.machine.counters().lane_committing >= COMMITTING_MUCH
    }

    /// Begins to step; false if that is under way already.
    pub fn begin(&mut self) -> bool {
        !std::mem::replace(&mut self.stepping, true)
    }

    /// Whether what the machine appends is to wait.
    pub fn hold_appends(&mut self, held: bool) {
        self.machine.hold_appends(held);
    }

    /// Everything is carried out.
    pub fn done(&mut self) {
        self.stepping = false;
    }

    /// Steps the machine with all that waits; false if nothing does.
    pub fn step_own(&mut self, now: Now) -> bool {
        let any = !self.own.is_empty();
        for input in self.own.drain(..) {
            self.machine.step(now, input);
        }
        any
    }

    /// Ends the process if a step or its effects panicked. Nobody can trust the machine's state
    /// then: going on with it could break what was promised about messages, so the process starts
    /// again from what is stored.
    pub fn assert_whole(&self) {
        if self.stepping {
            tracing::error!(shard = self.shard.0, "the shard's machine panicked: aborting");
            std::process::abort();
        }
    }

    /// The next effect that concerns a connection; the others are carried out on the way.
    pub fn next_effect(&mut self) -> Option<Effect> {
        loop {
            match self.machine.poll_effect()? {
                Effect::Store { ticket, request } => self.kv.submit(request, ticket),
                Effect::Resume(lane) => self.kv.resume(lane),
                Effect::ToShard { to, messages } if to == self.shard => {
                    self.own.push_back(Input::Shard { from: to, messages });
                }
                Effect::ToShard { to, messages } => self.queue(to, messages),
                Effect::Fatal(cause) => {
                    tracing::error!(shard = self.shard.0, %cause, "cannot go on: aborting");
                    std::process::abort();
                }
                effect => return Some(effect),
            }
        }
    }

    /// Whether one more connection may wait for another shard.
    pub fn has_room(&self, to: ShardId) -> bool {
        self.waiting[usize::from(to.0)].len() < HANDOVERS_WAITING_MAX
    }

    /// Queues a connection for another shard, which has room.
    pub fn hand_over(&mut self, to: ShardId, handover: Box<Handover>) {
        self.waiting[usize::from(to.0)].push_back(Message::Handover(handover));
    }

    /// Queues something else for another shard, which has room.
    pub fn pass_on(&mut self, to: ShardId, message: Message) {
        self.waiting[usize::from(to.0)].push_back(message);
    }

    /// Takes the store's answers.
    pub fn next_completions(&mut self) -> Option<Vec<Completion>> {
        // Before the look, so that what comes after it posts again.
        self.sink.told.store(false, Ordering::Release);
        self.sink.take()
    }

    /// Gives each shard what this turn has for it, as one batch. Answers how many inboxes were
    /// full; those are tried again at the next turn's end.
    pub fn post_all(&mut self) -> u64 {
        let mut full = 0;
        for (post, queue) in self.posts.iter().zip(&mut self.waiting) {
            if queue.is_empty() {
                continue;
            }
            if let Err(batch) = post.try_post(std::mem::take(queue).into()) {
                *queue = batch.into();
                full += 1;
            }
        }
        full
    }

    fn queue(&mut self, to: ShardId, mut messages: Vec<ShardMessage>) {
        let queue = &mut self.waiting[usize::from(to.0)];
        match queue.back_mut() {
            Some(Message::Shard { messages: last, .. }) => last.append(&mut messages),
            _ => queue.push_back(Message::Shard { from: self.shard, messages }),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use chatring_core::effect::{SendRef, SessionId};
    use chatring_core::kv::{LaneId, Outcome, Request, Ticket};
    use chatring_wire::frame::{Durability, RequestId};
    use chatring_wire::{Cid, ErrorCode};

    use super::*;

    /// Nothing is asked of it.
    struct NoStore;

    impl Kv for NoStore {
        fn submit(&mut self, _: Request, _: Ticket) {}

        fn resume(&mut self, _: LaneId) {}

        fn limits(&self) -> Limits {
            let durability = Durability::Fsync;
            Limits { lane_commits_max: 1, commit_bytes_target: 1 << 16, durability }
        }
    }

    fn message(number: u32) -> Vec<ShardMessage> {
        let origin = SendRef { session: SessionId(0), request: RequestId(number) };
        vec![ShardMessage::Opened { origin, result: Ok::<Cid, ErrorCode>(Cid(1)) }]
    }

    fn numbers(batch: Vec<Message>) -> Vec<u32> {
        let each = batch.into_iter().flat_map(|message| match message {
            Message::Shard { messages, .. } => messages,
            other => panic!("{other:?}"),
        });
        let number = |message| match message {
            ShardMessage::Opened { origin, .. } => origin.request.0,
            other => panic!("{other:?}"),
        };
        each.map(number).collect()
    }

    #[test]
    fn what_a_full_inbox_does_not_take_comes_later_and_in_order() {
        let (own, _own_inbox) = Post::with_inbox(1);
        let (other, inbox) = Post::with_inbox(1);
        let posts: Arc<[Post<Message>]> = Arc::new([own.clone(), other.clone()]);
        let machine =
            Random::new().machine(ShardId(0), 2, ShardLimits::default(), NoStore.limits());
        let mut driver = Driver::new(ShardId(0), machine, Box::new(NoStore), Sink::new(own), posts);
        other.try_post(Vec::new()).unwrap();
        for number in 1..=3 {
            driver.queue(ShardId(1), message(number));
            assert_eq!(driver.post_all(), 1, "the inbox is full");
        }
        assert!(inbox.try_recv().unwrap().is_empty());
        assert_eq!(driver.post_all(), 0);
        driver.queue(ShardId(1), message(4));
        assert_eq!(driver.post_all(), 1, "the inbox is full again");
        assert_eq!(numbers(inbox.try_recv().unwrap()), [1, 2, 3]);
        assert_eq!(driver.post_all(), 0);
        assert_eq!(numbers(inbox.try_recv().unwrap()), [4]);
    }

    #[test]
    fn a_completion_that_found_the_inbox_full_is_taken_at_the_end_of_a_turn() {
        let (own, inbox) = Post::with_inbox(1);
        let sink = Sink::new(own.clone());
        own.try_post(Vec::new()).unwrap();
        let completion = || Completion { ticket: Ticket(1), outcome: Outcome::Throttled };
        let store_sink = sink.store_sink();
        store_sink(vec![completion()]);
        let machine =
            Random::new().machine(ShardId(0), 1, ShardLimits::default(), NoStore.limits());
        let mut driver = Driver::new(ShardId(0), machine, Box::new(NoStore), sink, Arc::new([own]));
        assert!(driver.next_completions().is_some());
        assert!(driver.next_completions().is_none());
        assert!(inbox.try_recv().unwrap().is_empty());
        store_sink(vec![completion()]);
        assert_eq!(inbox.try_recv().unwrap().len(), 1, "the next one posts again");
    }
}
