//! Calls from other threads to the shards: asked of the shard that owns the user, answered once.
//!
//! ```text
//!  Calls::call ─▶ courier ─▶ inbox of the shard ─▶ its machine ─▶ … ─▶ courier ─▶ the future
//!       └ dropped: the shard is told, and answers nobody
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chatring_core::call::{Call, CallDevice, CallId, CallRequest, CallResult, Decision};
use chatring_core::effect::{Identity, Input, ShardId};
use chatring_core::placement::shard_of;
use futures_channel::oneshot;

use super::courier::{Courier, Reply, busy, draining};
use super::driver::Message;
use super::shard::{GatewayShard, Shared};
use crate::rt::{Io, Post};

/// Where callers without a session turn to, while [`Calls::carry`] runs. Cheap to clone, and usable
/// from every thread and runtime.
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

impl Calls {
    pub(super) fn new(posts: &[Post<Message>], shared: Arc<Shared>) -> Calls {
        Calls { posts: posts.into(), shared, given: Arc::default() }
    }

    /// Carries the calls and their answers, for ever. To be run once, on the runtime on which most
    /// calls are made; before that they wait, and once it is dropped they are `draining`.
    pub async fn carry(&self) {
        self.shared.courier.carry(&self.posts).await;
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
        let Some(key) = self.shared.key.get() else { return Err(draining()) };
        let uid = key.uid(&what.identity.issuer, &what.identity.subject, 0);
        let shard = usize::from(shard_of(uid.vshard(), self.shared.shards).0);
        let call = CallId(self.given.fetch_add(1, Ordering::Relaxed));
        let (reply, answer) = oneshot::channel();
        let asked = Asked { call, what: Box::new(what), reply };
        let courier = &self.shared.courier;
        courier.send(shard, Message::Call(Box::new(asked)))?;
        let mut waiting = Waiting { courier, shard, call, over: false };
        let answer = answer.await;
        waiting.over = true;
        answer.unwrap_or_else(|_| Err(draining()))
    }
}

/// Tells the shard when nobody waits any more.
struct Waiting<'a> {
    courier: &'a Courier,
    shard: usize,
    call: CallId,
    over: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.over {
            // Without room for it the call goes on to its end, which is bounded in time.
            let _ = self.courier.send(self.shard, Message::CallGone(self.call));
        }
    }
}

/// Calls at their shard.
impl GatewayShard {
    /// Those that come together are stepped together.
    pub(super) fn call(&mut self, asked: Asked) {
        let Asked { call, what, reply } = asked;
        self.replies.insert(call, reply);
        self.driver.later(Input::Call { call, what });
    }

    pub(super) fn call_gone(&mut self, io: &mut Io, call: CallId) {
        if self.replies.remove(&call).is_some() {
            self.step(io, Input::CallGone { call });
        }
    }

    pub(super) fn answer(&mut self, call: CallId, answer: CallResult) {
        if let Some(reply) = self.replies.remove(&call) {
            self.answered.push((reply, answer));
        }
    }

    pub(super) fn call_elsewhere(&mut self, call: CallId, what: Box<Call>, to: ShardId) {
        let Some(reply) = self.replies.remove(&call) else { return };
        if self.driver.has_room(to) {
            self.driver.pass_on(to, Message::Call(Box::new(Asked { call, what, reply })));
        } else {
            self.answered.push((reply, Err(busy())));
        }
    }
}
