//! Calls at a shard over the reference store, which answers when it is let to.

use std::collections::VecDeque;

use chatring_wire::InstallationId;
use chatring_wire::frame::{CacheAction, MessageKind, UserRef};
use chatring_wire::{Cmid, ServerFrame};

use super::*;
use crate::call::{Again, CallDevice, CallSync, Event, More};
use crate::cursor::Cursor;
use crate::effect::{Attach, Identity, Input, Now, SessionId, ShardId};
use crate::kv::Request;
use crate::kv::mem::{MemStore, SubmitterId};
use crate::limits::ShardLimits;
use crate::sabotage::Breaks;
use crate::shard::ShardConfig;

mod decided;
mod relations;
mod rows;

const STORE: SubmitterId = SubmitterId(1);

struct Node {
    shard: Shard,
    store: MemStore,
    now: Now,
    calls: u64,
    answers: VecDeque<(CallId, CallResult)>,
    said: Vec<ServerFrame>,
    closed: Vec<(SessionId, chatring_wire::CloseCode)>,
}

impl Node {
    fn new(limits: ShardLimits) -> Node {
        let now = Now { mono_ms: 1, unix_ms: 1 };
        let store = MemStore::new(now.mono_ms, Breaks::NONE);
        let shard = Shard::new(now, config(&store, limits, 1));
        let (answers, said, closed) = (VecDeque::new(), Vec::new(), Vec::new());
        let mut node = Node { shard, store, now, calls: 0, answers, said, closed };
        node.step(Input::Tick);
        node.settle();
        node
    }

    /// The process ends and another one starts on the same store.
    fn restart(&mut self, limits: ShardLimits) {
        self.store.forget(STORE);
        self.shard = Shard::new(self.now, config(&self.store, limits, 2));
        self.step(Input::Tick);
        self.settle();
    }

    fn step(&mut self, input: Input) {
        self.shard.step(self.now, input);
        while let Some(effect) = self.shard.poll_effect() {
            match effect {
                Effect::Store { ticket, request } => self.store.submit(STORE, request, ticket),
                Effect::Answer { call, answer } => self.answers.push_back((call, *answer)),
                Effect::ToShard { to, messages } => {
                    self.shard.step(self.now, Input::Shard { from: to, messages });
                }
                Effect::Send { frame, .. } => self.said.push(frame),
                Effect::Close { session, code } => self.closed.push((session, code)),
                _ => {}
            }
        }
    }

    /// The store does everything that it has been asked for.
    fn settle(&mut self) {
        loop {
            if self.store.queued() > 0 {
                self.store.begin_sync();
                self.store.publish();
            }
            let Some((_, completion)) = self.store.poll_completion() else { break };
            self.step(Input::Store(completion));
        }
    }

    fn pass(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.unix_ms += ms;
        self.store.advance(self.now.mono_ms);
        self.step(Input::Tick);
        self.settle();
    }

    /// Asks, and does not wait for an answer.
    fn ask(&mut self, subject: &str, request: CallRequest) -> CallId {
        let input = self.asking(subject, request);
        self.step(input);
        CallId(self.calls)
    }

    fn asking(&mut self, subject: &str, request: CallRequest) -> Input {
        self.calls += 1;
        let call = CallId(self.calls);
        let identity = Identity {
            issuer: String::new(),
            subject: subject.to_owned(),
            issued_at_s: 1,
            expires_at_s: 1 << 40,
            installation: None,
        };
        let what = Call { identity, candidate: 0, device: CallDevice::None, request };
        Input::Call { call, what: Box::new(what) }
    }

    fn result(&mut self, subject: &str, request: CallRequest) -> CallResult {
        let call = self.ask(subject, request);
        self.settle();
        let (answered, answer) = self.answers.pop_front().expect("an answer");
        assert_eq!(answered, call);
        answer
    }

    fn done(&mut self, subject: &str, request: CallRequest) -> Answer {
        self.result(subject, request).expect("no failure")
    }

    fn opened(&mut self, subject: &str, peer: &str) -> ChannelView {
        self.done(peer, CallRequest::SignIn);
        let with = UserRef::Subject { issuer: String::new(), subject: peer.to_owned() };
        match self.done(subject, CallRequest::Open(with)) {
            Answer::Channel(view) => *view,
            other => panic!("{other:?}"),
        }
    }

    fn sent(&mut self, subject: &str, send: CallSend) -> (Seq, Again) {
        match self.done(subject, CallRequest::Send(send)) {
            Answer::Sent { seq, again, .. } => (seq, again),
            other => panic!("{other:?}"),
        }
    }

    fn synced(&mut self, subject: &str, cursor: &Bytes, limit: u32) -> crate::call::Synced {
        let sync = CallSync { cursor: cursor.clone(), limit, wait_ms: 0 };
        match self.done(subject, CallRequest::Sync(sync)) {
            Answer::Synced(synced) => synced,
            other => panic!("{other:?}"),
        }
    }

    /// A session of this user resumes.
    fn attach(&mut self, subject: &str, session: SessionId, cursor: Bytes) {
        let identity = Identity {
            issuer: String::new(),
            subject: subject.to_owned(),
            issued_at_s: 1,
            expires_at_s: 1 << 40,
            installation: None,
        };
        let installation = InstallationId([1; 16]);
        let attach = Attach { identity, candidate: 0, installation, cursor };
        self.step(Input::Attach { session, attach });
        self.settle();
    }

    /// The positions in each page that sessions were given.
    fn pages(&self) -> Vec<Vec<u64>> {
        let page = |frame: &ServerFrame| match frame {
            ServerFrame::Page(page) => Some(page.rows.iter().map(|row| row.seq.0).collect()),
            _ => None,
        };
        self.said.iter().filter_map(page).collect()
    }
}

fn config(store: &MemStore, limits: ShardLimits, incarnation: u64) -> ShardConfig {
    ShardConfig {
        shard: ShardId(0),
        shards: 1,
        node: 0,
        incarnation,
        seed: [7; 40],
        kv: store.limits(),
        limits,
        breaks: Breaks::NONE,
    }
}

fn text(cid: Cid, number: u64, body: &str) -> CallSend {
    let mut cmid = [0; 16];
    cmid[8..].copy_from_slice(&number.to_be_bytes());
    let body = Bytes::copy_from_slice(body.as_bytes());
    CallSend { cid, cmid: Cmid(cmid), base: None, kind: MessageKind::TEXT, body }
}

fn wait(cursor: &Bytes) -> CallRequest {
    CallRequest::Sync(CallSync { cursor: cursor.clone(), limit: 0, wait_ms: 60_000 })
}

/// The positions of a channel's messages in events.
fn seqs(events: &[Event], of: Cid) -> Vec<u64> {
    let each = events.iter().flat_map(|event| match event {
        Event::Message { cid, row, .. } if *cid == of => vec![row.seq.0],
        Event::Page(page) if page.cid == of => page.rows.iter().map(|row| row.seq.0).collect(),
        _ => Vec::new(),
    });
    each.collect()
}

#[test]
fn a_message_answers_the_parked_calls_in_its_turn_and_costs_no_row() {
    let mut node = Node::new(ShardLimits::default());
    let cid = node.opened("alice", "bob").head.cid;
    for number in 0..300 {
        let cid = node.opened("bob", &format!("friend-{number}")).head.cid;
        node.sent("bob", text(cid, number, "hello"));
    }
    let mut cursor = Bytes::new();
    loop {
        let synced = node.synced("bob", &cursor, 0);
        cursor = synced.cursor;
        if synced.more == More::No {
            break;
        }
    }
    let rows = node.shard.counters().call_rows;
    for number in 1..=40 {
        let call = node.ask("bob", wait(&cursor));
        node.settle();
        assert!(node.answers.is_empty(), "nothing is new");
        node.ask("alice", text_request(cid, number));
        node.settle();
        let (first, _) = node.answers.front().expect("an answer");
        assert_eq!(*first, call, "the receiver knows before the sender does");
        let (_, answer) = node.answers.pop_front().expect("an answer");
        let Ok(Answer::Synced(synced)) = answer else { panic!("{answer:?}") };
        assert_eq!(seqs(&synced.events, cid), [number]);
        cursor = synced.cursor;
        node.answers.clear();
    }
    assert_eq!(node.shard.counters().call_rows, rows);
    assert_eq!(node.shard.counters().calls_parked, 0);
}

fn text_request(cid: Cid, number: u64) -> CallRequest {
    CallRequest::Send(text(cid, number, &format!("text {number}")))
}

#[test]
fn a_send_without_a_base_is_stored_once_weeks_later_and_after_a_restart() {
    let limits =
        || ShardLimits { recent_max: 2, channels_in_memory_max: 2, ..ShardLimits::default() };
    let mut node = Node::new(limits());
    let cid = node.opened("alice", "bob").head.cid;
    assert_eq!(node.sent("alice", text(cid, 1, "one")), (Seq(1), Again::First));
    assert_eq!(node.sent("alice", text(cid, 1, "one")), (Seq(1), Again::Repeat));
    for number in 2..10 {
        node.sent("alice", text(cid, number, "more"));
    }
    assert_eq!(node.sent("alice", text(cid, 1, "one")), (Seq(1), Again::Repeat));
    node.pass(30 * 86_400_000);
    node.restart(limits());
    assert_eq!(node.sent("alice", text(cid, 1, "one")), (Seq(1), Again::Repeat));
    let reused = node.result("alice", CallRequest::Send(text(cid, 1, "two")));
    assert_eq!(reused, Err(Failure::new(ErrorCode::CmidReused)));
    assert_eq!(node.sent("bob", text(cid, 1, "one")), (Seq(10), Again::First), "another sender");
    let foreign = node.result("carol", CallRequest::Send(text(cid, 1, "one")));
    assert_eq!(foreign, Err(Failure::new(ErrorCode::UnknownChannel)));
}

#[test]
fn the_sends_of_a_turn_are_looked_up_together_and_each_is_stored_once() {
    let limits = ShardLimits {
        recent_max: 128,
        sends_burst: 1_000,
        calls_per_user_max: 1_000,
        ..ShardLimits::default()
    };
    let mut node = Node::new(limits);
    let cid = node.opened("alice", "bob").head.cid;
    for number in 1..=200 {
        node.done("alice", text_request(cid, number));
    }
    // One is forgotten, 201 comes twice.
    for number in (201..=300).chain([201, 1]) {
        let input = node.asking("alice", text_request(cid, number));
        node.shard.step(node.now, input);
    }
    let mut reads = Vec::new();
    while let Some(effect) = node.shard.poll_effect() {
        let Effect::Store { ticket, request } = effect else { panic!("{effect:?}") };
        if let Request::Read(read) = &request {
            reads.push(read.gets.len());
        }
        node.store.submit(STORE, request, ticket);
    }
    assert_eq!(reads, [64, 38]);
    node.settle();
    let mut stored = Vec::new();
    for (_, answer) in std::mem::take(&mut node.answers) {
        let Ok(Answer::Sent { seq, again, .. }) = answer else { panic!("{answer:?}") };
        stored.push((seq.0, again));
    }
    stored.sort_by_key(|(seq, again)| (*seq, *again == Again::Repeat));
    let first = |seq| (seq, Again::First);
    let mut expected = vec![(1, Again::Repeat), first(201), (201, Again::Repeat)];
    expected.extend((202..=300).map(first));
    assert_eq!(stored, expected);
}

#[test]
fn a_sync_that_is_cut_by_its_limit_goes_on_where_it_was_without_gap_or_repeat() {
    let mut node = Node::new(ShardLimits::default());
    let (one, two) = (node.opened("alice", "bob").head.cid, node.opened("carol", "bob").head.cid);
    for number in 0..7 {
        node.sent("alice", text(one, number, "from alice"));
        node.sent("carol", text(two, number, "from carol"));
    }
    for restart in [false, true] {
        let (mut cursor, mut of_one, mut of_two) = (Bytes::new(), Vec::new(), Vec::new());
        for _ in 0..7 {
            let synced = node.synced("bob", &cursor, 3);
            of_one.extend(seqs(&synced.events, one));
            of_two.extend(seqs(&synced.events, two));
            cursor = synced.cursor;
            if synced.more == More::No {
                break;
            }
            // What comes meanwhile comes after the sync.
            if restart {
                node.restart(ShardLimits::default());
            }
        }
        let to = if restart { 8 } else { 7 };
        assert_eq!(of_one, (1..=to).collect::<Vec<_>>());
        assert_eq!(of_two, (1..=7).collect::<Vec<_>>());
        node.sent("alice", text(one, 100 + u64::from(restart), "later"));
        assert_eq!(seqs(&node.synced("bob", &cursor, 0).events, one).last(), Some(&(to + 1)));
        node.pass(1);
    }
}

#[test]
fn a_cursor_serves_a_session_and_a_session_s_cursor_serves_a_call() {
    let mut node = Node::new(ShardLimits::default());
    let cid = node.opened("alice", "bob").head.cid;
    node.sent("alice", text(cid, 1, "one"));
    let first = node.synced("bob", &Bytes::new(), 0);
    assert_eq!((first.cache, seqs(&first.events, cid)), (CacheAction::Replace, vec![1]));
    node.sent("alice", text(cid, 2, "two"));
    node.attach("bob", SessionId(1), first.cursor);
    assert_eq!(node.pages(), [vec![2]]);
    let Some(ServerFrame::Synced { cursor, .. }) = node.said.last().cloned() else {
        panic!("{:?}", node.said)
    };
    node.sent("alice", text(cid, 3, "three"));
    assert_eq!(seqs(&node.synced("bob", &cursor, 0).events, cid), [3]);
}

#[test]
fn a_session_is_not_given_again_what_its_cursor_lists() {
    let mut node = Node::new(ShardLimits::default());
    let cid = node.opened("alice", "bob").head.cid;
    let mut cursor = node.synced("bob", &Bytes::new(), 0).cursor;
    for number in 1..=3 {
        node.sent("alice", text(cid, number, "told"));
        let synced = node.synced("bob", &cursor, 0);
        assert_eq!(seqs(&synced.events, cid), [number]);
        cursor = synced.cursor;
    }
    let listed = Cursor::decode(cursor.clone()).expect("a cursor");
    assert_eq!(listed.given_of(cid), Seq(3));
    node.attach("bob", SessionId(1), cursor.clone());
    assert!(node.pages().is_empty(), "{:?}", node.said);
    assert!(node.said.iter().any(|frame| matches!(frame, ServerFrame::Synced { .. })));
    node.sent("alice", text(cid, 4, "pushed"));
    node.said.clear();
    node.attach("bob", SessionId(2), cursor);
    assert_eq!(node.pages(), [vec![4]]);
}

#[test]
fn channels_are_listed_by_pages_with_peer_last_message_and_unread() {
    let mut node = Node::new(ShardLimits::default());
    for number in 0..5 {
        let cid = node.opened("alice", &format!("peer-{number}")).head.cid;
        node.sent(&format!("peer-{number}"), text(cid, 1, &format!("from {number}")));
    }
    let (mut after, mut peers, mut pages) = (None, Vec::new(), 0);
    loop {
        let answer = node.done("alice", CallRequest::Channels { after, limit: 2 });
        let Answer::Channels { channels, next } = answer else { panic!("{answer:?}") };
        assert!(channels.len() <= 2);
        for ChannelView { head, peer, last } in channels {
            let last = last.expect("a message");
            assert_eq!((head.unread(), last.seq), (1, Seq(1)));
            let subject = peer.expect("a peer").subject;
            assert_eq!(subject.replace("peer-", "from ").as_bytes(), &last.body[..]);
            peers.push(subject);
        }
        pages += 1;
        after = next;
        if next.is_none() {
            break;
        }
    }
    peers.sort();
    assert_eq!((peers.len(), pages), (5, 3));
    peers.dedup();
    assert_eq!(peers.len(), 5);
}

#[test]
fn a_bound_token_speaks_for_its_installation_alone_and_not_after_its_removal() {
    let mut node = Node::new(ShardLimits::default());
    let cid = node.opened("alice", "bob").head.cid;
    let (bound, other) = (InstallationId([1; 16]), InstallationId([2; 16]));
    let mut ask = |device, request| {
        node.calls += 1;
        let call = CallId(node.calls);
        let identity = Identity {
            issuer: String::new(),
            subject: "alice".to_owned(),
            issued_at_s: 1,
            expires_at_s: 1 << 40,
            installation: Some(bound),
        };
        let what = Call { identity, candidate: 0, device, request };
        node.step(Input::Call { call, what: Box::new(what) });
        node.settle();
        node.answers.pop_front().expect("an answer").1
    };
    let signed_in = ask(CallDevice::None, CallRequest::SignIn);
    assert!(matches!(signed_in, Ok(Answer::SignedIn { device: DeviceId(1), .. })));
    let foreign = ask(CallDevice::Installation(other), CallRequest::SignIn);
    assert_eq!(foreign, Err(Failure::new(ErrorCode::InvalidToken)));
    let send = CallRequest::Send(text(cid, 1, "one"));
    assert!(ask(CallDevice::Installation(bound), send).is_ok());
    let remove = CallRequest::SignOut(SignOutScope::Device(DeviceId(1)));
    assert_eq!(ask(CallDevice::None, remove), Ok(Answer::Done));
    let revoked = ask(CallDevice::None, CallRequest::SignIn);
    assert_eq!(revoked, Err(Failure::new(ErrorCode::RevokedToken)));
}

#[test]
fn history_goes_either_way_and_a_foreign_channel_looks_like_none() {
    let mut node = Node::new(ShardLimits::default());
    let cid = node.opened("alice", "bob").head.cid;
    for number in 0..10 {
        node.sent("alice", text(cid, number, "text"));
    }
    let mut history = |before: Option<u64>, after: Option<u64>, limit| {
        let (before, after) = (before.map(Seq), after.map(Seq));
        let answer = node.done("bob", CallRequest::History { cid, before, after, limit });
        let Answer::History(page) = answer else { panic!("{answer:?}") };
        page.rows.iter().map(|row| row.seq.0).collect::<Vec<_>>()
    };
    assert_eq!(history(None, None, 3), [8, 9, 10]);
    assert_eq!(history(Some(8), None, 3), [5, 6, 7]);
    assert_eq!(history(None, Some(8), 5), [9, 10]);
    assert_eq!(history(Some(5), Some(2), 5), [3, 4]);
    assert_eq!(history(None, Some(10), 5), [0; 0]);
    let unknown = Err(Failure::new(ErrorCode::UnknownChannel));
    let typing = CallRequest::Typing(cid);
    let mark = CallRequest::Mark { cid, read: Seq(1), received: Seq(0) };
    let read = CallRequest::History { cid, before: None, after: None, limit: 0 };
    for foreign in [typing, mark, read, CallRequest::Channel(cid)] {
        assert_eq!(node.result("carol", foreign), unknown);
    }
}

#[test]
fn a_marker_is_answered_once_it_is_stored_and_told_to_who_waits() {
    let mut node = Node::new(ShardLimits::default());
    let cid = node.opened("alice", "bob").head.cid;
    node.sent("alice", text(cid, 1, "one"));
    let cursor = node.synced("bob", &Bytes::new(), 0).cursor;
    let waiting = node.ask("bob", wait(&cursor));
    node.settle();
    let mark = node.ask("bob", CallRequest::Mark { cid, read: Seq(1), received: Seq(1) });
    assert!(node.answers.is_empty(), "the store has not answered");
    node.settle();
    let answered: Vec<_> = node.answers.drain(..).collect();
    assert_eq!(answered.len(), 2);
    assert_eq!(answered[1], (mark, Ok(Answer::Done)));
    let (first, Ok(Answer::Synced(synced))) = &answered[0] else { panic!("{answered:?}") };
    assert_eq!(*first, waiting);
    assert!(matches!(synced.events[..], [Event::Marker { read: Seq(1), .. }]));
    let Answer::Channel(view) = node.done("bob", CallRequest::Channel(cid)) else { panic!() };
    assert_eq!((view.head.read, view.head.unread()), (Seq(1), 0));
}

#[test]
fn typing_reaches_who_waits_and_is_told_once() {
    let mut node = Node::new(ShardLimits::default());
    let cid = node.opened("alice", "bob").head.cid;
    let cursor = node.synced("bob", &Bytes::new(), 0).cursor;
    node.ask("bob", wait(&cursor));
    node.settle();
    node.ask("alice", CallRequest::Typing(cid));
    node.settle();
    assert_eq!(node.answers.pop_front().expect("an answer").1, Ok(Answer::Done));
    let (_, answer) = node.answers.pop_front().expect("an answer");
    let Ok(Answer::Synced(synced)) = answer else { panic!("{answer:?}") };
    assert!(matches!(synced.events[..], [Event::Typing { .. }]));
    node.answers.clear();
    assert_eq!(node.synced("bob", &synced.cursor, 0).events, []);
}

#[test]
fn waiting_ends_with_its_time_with_the_node_and_with_the_caller() {
    let mut node = Node::new(ShardLimits::default());
    node.opened("alice", "bob");
    let cursor = node.synced("bob", &Bytes::new(), 0).cursor;
    let call = node.ask("bob", wait(&cursor));
    node.pass(59_000);
    assert!(node.answers.is_empty());
    node.pass(1_000);
    assert!(matches!(node.answers.pop_front(), Some((late, Ok(_))) if late == call));
    let gone = node.ask("bob", wait(&cursor));
    node.settle();
    node.step(Input::CallGone { call: gone });
    assert_eq!((node.shard.counters().calls, node.shard.counters().calls_parked), (0, 0));
    let everywhere = CallRequest::SignOut(SignOutScope::Everywhere);
    let parked = node.ask("bob", wait(&cursor));
    node.settle();
    node.ask("bob", everywhere);
    node.settle();
    let revoked = Err(Failure::new(ErrorCode::RevokedToken));
    assert!(node.answers.drain(..).any(|answer| answer == (parked, revoked.clone())));
    assert_eq!(node.result("bob", CallRequest::SignIn), revoked);
    node.ask("alice", wait(&Bytes::new()));
    node.settle();
    node.step(Input::Drain);
    assert_eq!(node.answers.len(), 1);
    node.pass(200_000);
    assert_eq!((node.shard.counters().callers, node.shard.counters().users), (0, 0));
}
