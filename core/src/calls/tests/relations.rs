//! A block holds from its answer to its end, whatever came when.

use super::*;
use crate::call::{Decision, Relation};
use crate::channel::ChannelSlot;

impl Node {
    /// Says how a user stands to another one, and does not wait for an answer.
    fn says(&mut self, subject: &str, of: &str, version: u64, blocked: bool) -> CallId {
        self.calls += 1;
        let call = CallId(self.calls);
        let (issuer, friends) = (String::new(), false);
        let relation = Relation { issuer, subject: of.to_owned(), version, friends, blocked };
        let decision = Decision::Relation(relation);
        let what = Box::new(Call::decided(String::new(), subject.to_owned(), decision));
        self.step(Input::Call { call, what });
        call
    }

    fn relates(&mut self, subject: &str, of: &str, version: u64, blocked: bool) {
        let call = self.says(subject, of, version, blocked);
        self.settle();
        assert_eq!(self.answers.pop_front(), Some((call, Ok(Answer::Done))));
        assert!(self.answers.is_empty());
    }
}

fn blocked() -> CallResult {
    Err(Failure::new(ErrorCode::Blocked))
}

#[test]
fn nobody_of_the_two_sends_from_the_answer_on_until_it_is_lifted() {
    let mut node = Node::new(ShardLimits::default());
    let cid = node.opened("alice", "bob").head.cid;
    let other = node.opened("carol", "bob").head.cid;
    node.sent("bob", text(cid, 1, "before"));
    let call = node.says("alice", "bob", 1, true);
    let before = node.ask("bob", text_request(cid, 2));
    assert!(node.answers.is_empty(), "neither the relation nor the channel is stored");
    node.settle();
    let answers: Vec<_> = node.answers.drain(..).collect();
    assert_eq!(answers[1], (call, Ok(Answer::Done)), "{answers:?}");
    assert_eq!((answers[0].0, answers[0].1.is_ok()), (before, true), "it came before the block");
    for (number, subject) in [(3, "bob"), (3, "alice"), (4, "bob")] {
        assert_eq!(node.result(subject, text_request(cid, number)), blocked());
    }
    assert_eq!(node.result("bob", CallRequest::Typing(cid)), blocked());
    assert_eq!(node.sent("bob", text(cid, 1, "before")), (Seq(1), Again::Repeat));
    assert_eq!(node.sent("bob", text(other, 1, "to carol")), (Seq(1), Again::First));
    node.restart(ShardLimits::default());
    assert_eq!(node.result("bob", text_request(cid, 3)), blocked(), "it is stored");
    node.relates("alice", "bob", 2, false);
    assert_eq!(node.sent("bob", text(cid, 3, "after")), (Seq(3), Again::First));
    node.restart(ShardLimits::default());
    assert_eq!(node.sent("alice", text(cid, 4, "after")), (Seq(4), Again::First));
}

#[test]
fn a_session_is_refused_with_the_same_number() {
    let mut node = Node::new(ShardLimits::default());
    let cid = node.opened("alice", "bob").head.cid;
    let identity = Identity {
        issuer: String::new(),
        subject: "bob".to_owned(),
        issued_at_s: 1,
        expires_at_s: 1 << 40,
        installation: None,
    };
    let (session, installation) = (SessionId(1), InstallationId([1; 16]));
    let attach = Attach { identity, candidate: 0, installation, cursor: Bytes::new() };
    node.step(Input::Attach { session, attach });
    node.settle();
    node.relates("alice", "bob", 1, true);
    let send = chatring_wire::frame::Send {
        request: RequestId(1),
        cid,
        cmid: Cmid([1; 16]),
        base: Seq(0),
        previous: None,
        kind: MessageKind::TEXT,
        body: Bytes::from_static(b"text"),
    };
    node.step(Input::Frame { session, frame: chatring_wire::ClientFrame::Send(send) });
    let error = Failure::new(ErrorCode::Blocked);
    let refused = ServerFrame::Refused { request: RequestId(1), error };
    assert_eq!(node.said.last(), Some(&refused));
}

#[test]
fn a_block_before_the_channel_exists_lies_in_the_channel_that_is_made() {
    let mut node = Node::new(ShardLimits::default());
    // Not even known to the chat are they.
    node.relates("alice", "bob", 7, true);
    node.restart(ShardLimits::default());
    let cid = node.opened("bob", "alice").head.cid;
    assert_eq!(node.result("bob", text_request(cid, 1)), blocked());
    let Answer::Channels { channels, .. } =
        node.done("alice", CallRequest::Channels { after: None, limit: 0 })
    else {
        panic!("no page")
    };
    assert_eq!(channels, [], "nobody sees that there is one");
    node.relates("alice", "bob", 8, false);
    assert_eq!(node.sent("bob", text(cid, 1, "one")), (Seq(1), Again::First));
}

#[test]
fn whoever_opens_a_channel_that_a_block_is_making_waits_until_it_is_stored() {
    let mut node = Node::new(ShardLimits::default());
    node.done("bob", CallRequest::SignIn);
    node.done("alice", CallRequest::SignIn);
    node.says("alice", "bob", 1, true);
    let in_lane = |node: &Node| {
        node.shard.channels.values().any(|slot| match slot {
            ChannelSlot::Loaded(channel) => channel.blocks_in_lane == 1,
            ChannelSlot::Loading(_) => false,
        })
    };
    while !in_lane(&node) {
        if node.store.queued() > 0 {
            node.store.sync_all();
        }
        let (_, completion) = node.store.poll_completion().expect("it goes on");
        node.step(Input::Store(completion));
    }
    let with = UserRef::Subject { issuer: String::new(), subject: "alice".to_owned() };
    node.ask("bob", CallRequest::Open(with));
    // The store reads, and makes nothing durable.
    while let Some((_, completion)) = node.store.poll_completion() {
        node.step(Input::Store(completion));
    }
    assert!(node.answers.is_empty() && in_lane(&node), "the channel is not stored");
    node.settle();
    let answers: Vec<_> = node.answers.drain(..).map(|(_, answer)| answer).collect();
    assert!(answers.len() == 2 && answers.iter().all(Result::is_ok), "{answers:?}");
}

#[test]
fn what_is_older_changes_nothing_in_whatever_order_it_comes() {
    let mut node = Node::new(ShardLimits::default());
    let cid = node.opened("alice", "bob").head.cid;
    node.relates("alice", "bob", 5, true);
    node.relates("alice", "bob", 4, false);
    let [alice, bob] = ["alice", "bob"].map(|name| node.shard.ready().key.uid("", name, 0));
    let history = node.store.history();
    assert_eq!(history.of_key(&keys::relation(alice, bob)).len(), 1);
    assert_eq!(node.result("bob", text_request(cid, 1)), blocked());
    // All of them at once, nobody waiting for the first.
    let gone = node.says("alice", "bob", 6, false);
    node.step(Input::CallGone { call: gone });
    let calls: Vec<_> = [9, 8, 7].map(|n| node.says("alice", "bob", n, n % 2 != 0)).into();
    node.settle();
    let answers: Vec<_> = node.answers.drain(..).collect();
    assert_eq!(answers.len(), 3, "{answers:?}");
    assert!(answers.iter().all(|(call, it)| calls.contains(call) && it.is_ok()), "{answers:?}");
    assert_eq!(node.result("bob", text_request(cid, 1)), blocked(), "9 is the newest");
    // Each of the two decides for itself.
    node.relates("bob", "alice", 1, true);
    node.relates("alice", "bob", 10, false);
    assert_eq!(node.result("bob", text_request(cid, 1)), blocked());
    node.relates("bob", "alice", 2, false);
    assert_eq!(node.sent("bob", text(cid, 1, "one")), (Seq(1), Again::First));
}

#[test]
fn what_was_never_blocked_leaves_no_row_in_any_channel() {
    let mut node = Node::new(ShardLimits::default());
    node.relates("alice", "bob", 1, false);
    let users = ["alice", "bob"].map(|name| node.shard.ready().key.uid("", name, 0));
    let cid = node.shard.ready().key.direct_cid(users[0], users[1], 0);
    let history = node.store.history();
    assert!(history.of_key(&keys::channel(cid)).is_empty());
    assert!(history.of_key(&keys::user(users[0])).is_empty(), "nobody is made known by it");
    let cid = node.opened("alice", "bob").head.cid;
    node.relates("alice", "bob", 2, false);
    assert_eq!(node.store.history().of_key(&keys::channel(cid)).len(), 1);
}

#[test]
fn a_block_costs_a_send_no_read() {
    let mut node = Node::new(ShardLimits::default());
    let cid = node.opened("alice", "bob").head.cid;
    node.relates("alice", "bob", 1, true);
    let mut send = text(cid, 1, "one");
    send.base = Some(Seq(0));
    let call = node.ask("bob", CallRequest::Send(send));
    assert_eq!(node.answers.pop_front(), Some((call, blocked())), "before the store does a thing");
}
