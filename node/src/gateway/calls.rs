//! Calls from other threads to the shards: asked of the shard that owns the user, answered once.
//!
//! ```text
//!  Calls::call ─▶ inbox of the shard ─▶ its machine ─▶ … ─▶ answer ─▶ the waiting future
//!       └ dropped: the shard is told, and answers nobody
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chatring_core::call::{Call, CallDevice, CallId, CallRequest, CallResult, Decision};
use chatring_core::effect::{Identity, Input, ShardId};
use chatring_core::placement::shard_of;
use chatring_wire::ErrorCode;
use chatring_wire::frame::Failure;

use super::driver::Message;
use super::shard::{GatewayShard, Shared};
use crate::rt::{Io, Post};

/// When a call that found no room is worth another try.
const BUSY_RETRY_MS: u32 = 100;

/// Where callers without a session turn to. Cheap to clone, and usable from every thread and
/// runtime.
#[derive(Clone, Debug)]
pub struct Calls {
    posts: Arc<[Post<Message>]>,
    shared: Arc<Shared>,
    given: Arc<AtomicU64>,
}

/// A call on its way to its shard.
#[derive(Debug)]
pub struct Asked {
    pub call: CallId,
    pub what: Box<Call>,
    pub reply: Reply,
}

/// Where the answer goes. It has room for one.
pub type Reply = flume::Sender<CallResult>;

impl Calls {
    pub(super) fn new(posts: &[Post<Message>], shared: Arc<Shared>) -> Calls {
        Calls { posts: posts.into(), shared, given: Arc::default() }
    }

    /// Asks for something on behalf of the owner of a verified token. Dropping the future withdraws
    /// what waits; what was begun may still be carried out.
    ///
    /// # Errors
    /// The failure that the shard answers with; `busy` if it has no room, `draining` before the
    /// node is ready and when it ends.
    pub async fn call(
        &self,
        identity: Identity,
        device: CallDevice,
        request: CallRequest,
    ) -> CallResult {
        self.make(Call { identity, candidate: 0, device, request }).await
    }

    /// Has a decision of the accounts about a user of this deployment carried out.
    ///
    /// # Errors
    /// As for [`Calls::call`]: then it is to be asked again.
    pub async fn decide(&self, subject: &str, decision: Decision) -> CallResult {
        self.make(Call::decided(String::new(), subject.to_owned(), decision)).await
    }

    async fn make(&self, what: Call) -> CallResult {
        let draining = || Failure::new(ErrorCode::Draining).retry_after(BUSY_RETRY_MS);
        let Some(key) = self.shared.key.get() else { return Err(draining()) };
        let uid = key.uid(&what.identity.issuer, &what.identity.subject, 0);
        let owner = shard_of(uid.vshard(), self.shared.shards);
        let call = CallId(self.given.fetch_add(1, Ordering::Relaxed));
        let (reply, answer) = flume::bounded(1);
        let what = Box::new(what);
        let post = &self.posts[usize::from(owner.0)];
        let asked = Message::Call(Box::new(Asked { call, what, reply }));
        if post.try_post(vec![asked]).is_err() {
            return Err(Failure::new(ErrorCode::Busy).retry_after(BUSY_RETRY_MS));
        }
        let mut waiting = Waiting { post, call, over: false };
        let answer = answer.recv_async().await;
        waiting.over = true;
        answer.unwrap_or_else(|_| Err(draining()))
    }
}

/// Tells the shard when nobody waits any more.
struct Waiting<'a> {
    post: &'a Post<Message>,
    call: CallId,
    over: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.over {
            // With a full inbox the call goes on to its end, which is bounded in time.
            let _ = self.post.try_post(vec![Message::CallGone(self.call)]);
        }
    }
}

/// Calls at their shard.
impl GatewayShard {
    pub(super) fn call(&mut self, io: &mut Io, asked: Asked) {
        let Asked { call, what, reply } = asked;
        self.replies.insert(call, reply);
        self.step(io, Input::Call { call, what });
    }

    pub(super) fn call_gone(&mut self, io: &mut Io, call: CallId) {
        if self.replies.remove(&call).is_some() {
            self.step(io, Input::CallGone { call });
        }
    }

    pub(super) fn answer(&mut self, call: CallId, answer: CallResult) {
        if let Some(reply) = self.replies.remove(&call) {
            // Fails only when nobody waits any more.
            let _ = reply.try_send(answer);
        }
    }

    pub(super) fn call_elsewhere(&mut self, call: CallId, what: Box<Call>, to: ShardId) {
        let Some(reply) = self.replies.remove(&call) else { return };
        if self.driver.has_room(to) {
            self.driver.pass_on(to, Message::Call(Box::new(Asked { call, what, reply })));
        } else {
            let busy = Failure::new(ErrorCode::Busy).retry_after(BUSY_RETRY_MS);
            let _ = reply.try_send(Err(busy));
        }
    }
}
