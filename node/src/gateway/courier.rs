//! Between callers on one runtime and the shards: what callers want in one round of their runtime
//! goes to a shard as one batch, and what a shard answers in one turn comes back with one wake-up.
//!
//! ```text
//!  callers ─▶ gathered, for each shard ─▶ carry ─▶ inbox of the shard
//!  callers ◀── reply of each call ◀────── carry ◀─ answered, of all shards
//! ```
//!
//! A wake-up from another thread costs a system call, and a shard that is woken for each call by
//! itself takes the core from those that were about to make the next ones.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use chatring_core::call::CallResult;
use chatring_wire::ErrorCode;
use chatring_wire::frame::Failure;
use futures_channel::oneshot;

use super::driver::Message;
use super::limits::{CALL_RETRY_MS, GATHERED_MAX};
use crate::rt::Post;

/// Where the answer to a call goes.
pub type Reply = oneshot::Sender<CallResult>;

/// What waits to be carried. Shared by the callers, the shards and the task that carries.
#[derive(Debug)]
pub struct Courier {
    waiting: Mutex<Waiting>,
    /// Something waits that did not a moment ago: once said, it need not be said again.
    want: flume::Sender<()>,
    wanted: flume::Receiver<()>,
    counts: Counts,
}

#[derive(Debug)]
struct Waiting {
    gathered: Vec<Vec<Message>>,
    /// As many as there are calls under way, at most.
    answered: Vec<(Reply, CallResult)>,
    /// Nobody carries any more.
    over: bool,
}

#[derive(Debug, Default)]
struct Counts {
    batches: AtomicU64,
    messages: AtomicU64,
    full: AtomicU64,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallCounters {
    /// Batches given to shards.
    pub batches: u64,
    /// Calls and withdrawals in them.
    pub messages: u64,
    /// Calls and withdrawals that found no room.
    pub full: u64,
}

impl Courier {
    pub fn new(shards: u16) -> Courier {
        let gathered = (0..shards).map(|_| Vec::new()).collect();
        let waiting = Waiting { gathered, answered: Vec::new(), over: false };
        let (want, wanted) = flume::bounded(1);
        Courier { waiting: Mutex::new(waiting), want, wanted, counts: Counts::default() }
    }

    /// Takes something for a shard.
    ///
    /// # Errors
    /// `busy` if too much waits for that shard, `draining` when nobody carries any more.
    pub fn send(&self, shard: usize, message: Message) -> Result<(), Failure> {
        let mut waiting = self.waiting();
        if waiting.over {
            return Err(draining());
        }
        let gathered = &mut waiting.gathered[shard];
        if gathered.len() >= GATHERED_MAX {
            self.counts.full.fetch_add(1, Ordering::Relaxed);
            return Err(busy());
        }
        gathered.push(message);
        let first = gathered.len() == 1;
        drop(waiting);
        if first {
            let _ = self.want.try_send(());
        }
        Ok(())
    }

    /// Takes what a shard has answered in a turn.
    pub fn answer(&self, answers: &mut Vec<(Reply, CallResult)>) {
        if answers.is_empty() {
            return;
        }
        let mut waiting = self.waiting();
        if waiting.over {
            return answers.clear();
        }
        let first = waiting.answered.is_empty();
        waiting.answered.append(answers);
        drop(waiting);
        if first {
            let _ = self.want.try_send(());
        }
    }

    /// Carries for ever. To be run once, on the runtime of the callers; when it is dropped, whoever
    /// waits is told so.
    pub async fn carry(&self, posts: &[Post<Message>]) {
        let _over = Over(self);
        while self.wanted.recv_async().await.is_ok() {
            let answered = std::mem::take(&mut self.waiting().answered);
            for (reply, answer) in answered {
                // Fails only when nobody waits any more.
                let _ = reply.send(answer);
            }
            // Everybody who is ready makes their calls before they are carried.
            let_others().await;
            for (shard, post) in posts.iter().enumerate() {
                let batch = std::mem::take(&mut self.waiting().gathered[shard]);
                self.post(post, batch);
            }
        }
    }

    fn post(&self, post: &Post<Message>, batch: Vec<Message>) {
        if batch.is_empty() {
            return;
        }
        let messages = batch.len() as u64;
        match post.try_post(batch) {
            Ok(()) => {
                self.counts.batches.fetch_add(1, Ordering::Relaxed);
                self.counts.messages.fetch_add(messages, Ordering::Relaxed);
            }
            Err(batch) => {
                self.counts.full.fetch_add(messages, Ordering::Relaxed);
                for message in batch {
                    // Without its withdrawal a call goes on to its end, which is bounded in time.
                    if let Message::Call(asked) = message {
                        let _ = asked.reply.send(Err(busy()));
                    }
                }
            }
        }
    }

    pub fn counters(&self) -> CallCounters {
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        let Counts { batches, messages, full } = &self.counts;
        CallCounters { batches: count(batches), messages: count(messages), full: count(full) }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Comes last among the tasks that are ready.
async fn let_others() {
    let mut comes_last = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut comes_last, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

pub fn busy() -> Failure {
    Failure::new(ErrorCode::Busy).retry_after(CALL_RETRY_MS)
}

pub fn draining() -> Failure {
    Failure::new(ErrorCode::Draining).retry_after(CALL_RETRY_MS)
}

/// Lets go of all that wait, once nothing is carried any more.
struct Over<'a>(&'a Courier);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting();
        waiting.over = true;
        waiting.gathered.iter_mut().for_each(Vec::clear);
        waiting.answered.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::pin::pin;
    use std::task::{Context, Waker};

    use chatring_core::call::{Answer, Call, CallDevice, CallId, CallRequest};
    use chatring_core::effect::Identity;

    use super::super::calls::Asked;
    use super::*;

    /// Rounds of the runtime after which all is carried.
    const ROUNDS: usize = 4;

    fn call(number: u64) -> (Message, oneshot::Receiver<CallResult>) {
        let (reply, answer) = oneshot::channel();
        let identity = Identity {
            issuer: String::new(),
            subject: "alice".to_owned(),
            issued_at_s: 0,
            expires_at_s: 0,
            installation: None,
        };
        let (device, request) = (CallDevice::None, CallRequest::SignIn);
        let what = Box::new(Call { identity, candidate: 0, device, request });
        (Message::Call(Box::new(Asked { call: CallId(number), what, reply })), answer)
    }

    fn gone(number: u64) -> Message {
        Message::CallGone(CallId(number))
    }

    fn numbers(batch: Vec<Message>) -> Vec<u64> {
        let number = |message| match message {
            Message::Call(asked) => asked.call.0,
            Message::CallGone(call) => call.0,
            other => panic!("{other:?}"),
        };
        batch.into_iter().map(number).collect()
    }

    fn rounds(carry: &mut std::pin::Pin<&mut impl Future<Output = ()>>) {
        for _ in 0..ROUNDS {
            let polled = carry.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(polled, Poll::Pending);
        }
    }

    #[test]
    fn what_is_asked_in_one_round_is_one_batch_for_each_shard_in_order() {
        let courier = Courier::new(2);
        let ((first, one), (second, two)) = (Post::with_inbox(8), Post::with_inbox(8));
        let posts = [first, second];
        let mut carry = pin!(courier.carry(&posts));
        let mut answers = Vec::new();
        for number in 1..=3 {
            let (message, answer) = call(number);
            courier.send(0, message).unwrap();
            answers.push(answer);
            if number == 1 {
                // The round goes on with the others.
                assert_eq!(
                    carry.as_mut().poll(&mut Context::from_waker(Waker::noop())),
                    Poll::Pending
                );
            }
        }
        courier.send(1, gone(7)).unwrap();
        courier.send(0, gone(2)).unwrap();
        rounds(&mut carry);
        assert_eq!(numbers(one.try_recv().unwrap()), [1, 2, 3, 2]);
        assert_eq!(numbers(two.try_recv().unwrap()), [7]);
        assert!(one.is_empty() && two.is_empty());
        courier.send(0, gone(4)).unwrap();
        rounds(&mut carry);
        assert_eq!(numbers(one.try_recv().unwrap()), [4]);
        let expected = CallCounters { batches: 3, messages: 6, full: 0 };
        assert_eq!(courier.counters(), expected);
    }

    #[test]
    fn each_answer_of_a_turn_reaches_its_own_caller() {
        let courier = Courier::new(1);
        let posts = [Post::with_inbox(8).0];
        let mut carry = pin!(courier.carry(&posts));
        let (replies, mut callers): (Vec<_>, Vec<_>) = (0..3).map(|_| oneshot::channel()).unzip();
        drop(callers.remove(1));
        let failure = |ms| Failure::new(ErrorCode::Busy).retry_after(ms);
        let results = [Ok(Answer::Done), Err(failure(1)), Err(failure(2))];
        let mut answers: Vec<_> = replies.into_iter().zip(results.clone()).collect();
        courier.answer(&mut answers);
        assert!(answers.is_empty());
        rounds(&mut carry);
        assert_eq!(callers[0].try_recv(), Ok(Some(results[0].clone())));
        assert_eq!(callers[1].try_recv(), Ok(Some(results[2].clone())));
    }

    #[test]
    fn calls_for_which_there_is_no_room_are_refused() {
        let courier = Courier::new(2);
        let ((full, _kept), (other, inbox)) = (Post::with_inbox(1), Post::with_inbox(1));
        full.try_post(Vec::new()).unwrap();
        let posts = [full, other];
        let mut carry = pin!(courier.carry(&posts));
        let (message, mut answer) = call(1);
        courier.send(0, message).unwrap();
        courier.send(0, gone(1)).unwrap();
        rounds(&mut carry);
        assert_eq!(answer.try_recv(), Ok(Some(Err(busy()))));
        for number in 0..GATHERED_MAX as u64 {
            courier.send(1, gone(number)).unwrap();
        }
        let (message, _) = call(1);
        assert_eq!(courier.send(1, message), Err(busy()));
        let (message, _answer) = call(1);
        assert_eq!(courier.send(0, message), Ok(()), "another shard's room");
        assert_eq!(courier.counters().full, 3);
        rounds(&mut carry);
        assert_eq!(inbox.try_recv().unwrap().len(), GATHERED_MAX);
    }

    #[test]
    fn once_nothing_is_carried_whoever_waits_is_let_go() {
        let courier = Courier::new(1);
        let posts = [Post::with_inbox(1).0];
        let (message, asked) = call(1);
        let (reply, answered) = oneshot::channel();
        let (late, too_late) = oneshot::channel();
        {
            let mut carry = pin!(courier.carry(&posts));
            rounds(&mut carry);
            courier.send(0, message).unwrap();
            courier.answer(&mut vec![(reply, Ok(Answer::Done))]);
        }
        courier.answer(&mut vec![(late, Ok(Answer::Done))]);
        for mut answer in [asked, answered, too_late] {
            assert_eq!(answer.try_recv(), Err(oneshot::Canceled));
        }
        assert_eq!(courier.send(0, gone(1)), Err(draining()));
    }
}
