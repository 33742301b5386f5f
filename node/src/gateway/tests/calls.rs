//! Calls from other threads, answered by the shards that own their users.

use std::sync::atomic::AtomicUsize;
use std::thread;

use chatring_core::call::{Again, Answer, CallDevice, CallRequest, CallSend, CallSync, Event};
use chatring_core::kv::{LaneId, Limits as KvLimits, Request, Ticket};
use chatring_wire::Cid;

use super::*;

#[test]
fn calls_are_answered_by_the_shards_of_their_users() {
    let server = Server::start(GatewayLimits::default());
    let calls = server.gateway.calls();
    // So many users that some channels cross between the shards, whatever the deployment's key.
    for number in 0..30 {
        let peer = format!("bob-{number}");
        let cid = open(&calls, "alice", &peer);
        let first = ask(&calls, "alice", send(cid, number));
        assert!(
            matches!(first, Answer::Sent { seq: Seq(1), again: Again::First, .. }),
            "{first:?}"
        );
        let again = ask(&calls, "alice", send(cid, number));
        assert!(
            matches!(again, Answer::Sent { seq: Seq(1), again: Again::Repeat, .. }),
            "{again:?}"
        );
    }
    // A shard tells its figures at the end of a turn, which may come after the answer.
    until(|| server.gateway.metrics().iter().all(|shard| shard.core.calls_taken > 0));
}

#[test]
fn a_message_ends_the_wait_of_a_call() {
    let server = Server::start(GatewayLimits::default());
    let calls = server.gateway.calls();
    for number in 0..6 {
        let peer = format!("bob-{number}");
        let cid = open(&calls, "alice", &peer);
        let cursor = cursor_of(&calls, &peer);
        let waited = thread::scope(|scope| {
            let waiting = scope.spawn(|| ask(&calls, &peer, sync(&cursor, 30_000)));
            until(|| parked(&server) == 1);
            ask(&calls, "alice", send(cid, number));
            waiting.join().unwrap()
        });
        let Answer::Synced(synced) = waited else { panic!("{waited:?}") };
        assert!(matches!(synced.events[..], [Event::Message { .. }]), "{synced:?}");
    }
}

#[test]
fn a_call_that_nobody_waits_for_any_more_is_withdrawn() {
    let server = Server::start(GatewayLimits::default());
    let calls = server.gateway.calls();
    let cursor = cursor_of(&calls, "alice");
    {
        let waiting = calls.call(identity("alice"), CallDevice::None, sync(&cursor, 30_000));
        let mut waiting = pin!(waiting);
        let asked = waiting.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(asked, Poll::Pending);
        until(|| parked(&server) == 1);
    }
    until(|| parked(&server) == 0);
}

#[test]
fn whoever_asks_has_numbers_of_its_own() {
    let server = Server::start(GatewayLimits::default());
    let (ours, theirs) = (server.gateway.calls(), server.gateway.calls());
    let cursor = cursor_of(&ours, "alice");
    let mut waiting = pin!(ours.call(identity("alice"), CallDevice::None, sync(&cursor, 30_000)));
    assert_eq!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending);
    until(|| parked(&server) == 1);
    // Some of them at alice's shard.
    for number in 0..20 {
        ask(&theirs, &format!("bob-{number}"), CallRequest::SignIn);
    }
    let answered = waiting.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert_eq!(answered, Poll::Pending, "nothing has come");
}

#[test]
fn a_caller_that_is_not_polled_holds_nobody_up() {
    let server = Server::start(GatewayLimits::default());
    let calls = server.gateway.calls();
    let cursor = cursor_of(&calls, "alice");
    let mut first = pin!(calls.call(identity("alice"), CallDevice::None, sync(&cursor, 0)));
    assert_eq!(first.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending);
    for number in 0..20 {
        ask(&calls, &format!("bob-{number}"), CallRequest::SignIn);
    }
    assert!(matches!(block_on(first), Ok(Answer::Synced(_))));
}

#[test]
fn calls_end_when_nobody_carries_them() {
    let mut server = Server::start(GatewayLimits::default());
    let calls = server.gateway.calls();
    let cursor = cursor_of(&calls, "alice");
    let ended = thread::scope(|scope| {
        let request = sync(&cursor, 30_000);
        let waiting = calls.call(identity("alice"), CallDevice::None, request);
        let waiting = scope.spawn(|| block_on(waiting));
        until(|| parked(&server) == 1);
        server.carries = None;
        until(|| {
            let call = calls.call(identity("alice"), CallDevice::None, CallRequest::SignIn);
            block_on(call).is_err_and(|failure| failure.code == Ok(ErrorCode::Draining))
        });
        server.gateway.drain(Instant::now() + PATIENCE).unwrap();
        waiting.join().unwrap()
    });
    let failure = ended.unwrap_err();
    assert_eq!(failure.code, Ok(ErrorCode::Draining));
}

/// They were not, as each call was stepped to its end before the next one.
#[test]
fn sends_that_come_together_are_looked_up_together() {
    let reads = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&reads);
    let server = Server::start_with(GatewayLimits::default(), ShardLimits::default(), move |kv| {
        Box::new(CountsReads { kv, reads: Arc::clone(&counted) })
    });
    let calls = server.gateway.calls();
    let cid = open(&calls, "alice", "bob");
    ask(&calls, "alice", send(cid, 0));
    let before = reads.load(Ordering::Relaxed);
    let gate = server.carries.as_ref().unwrap().gate.lock().unwrap();
    let mut sends: Vec<_> = (1..=40)
        .map(|number| Box::pin(calls.call(identity("alice"), CallDevice::None, send(cid, number))))
        .collect();
    for send in &mut sends {
        let asked = send.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(asked, Poll::Pending);
    }
    drop(gate);
    for send in sends {
        let answer = block_on(send);
        assert!(matches!(answer, Ok(Answer::Sent { again: Again::First, .. })), "{answer:?}");
    }
    assert_eq!(reads.load(Ordering::Relaxed) - before, 1);
}

struct CountsReads {
    kv: Box<dyn Kv>,
    reads: Arc<AtomicUsize>,
}

impl Kv for CountsReads {
    fn submit(&mut self, request: Request, ticket: Ticket) {
        if let Request::Read(_) = request {
            self.reads.fetch_add(1, Ordering::Relaxed);
        }
        self.kv.submit(request, ticket);
    }

    fn resume(&mut self, lane: LaneId) {
        self.kv.resume(lane);
    }

    fn limits(&self) -> KvLimits {
        self.kv.limits()
    }
}

/// Makes both users and their channel.
fn open(calls: &Calls, subject: &str, peer: &str) -> Cid {
    ask(calls, peer, CallRequest::SignIn);
    let with = UserRef::Subject { issuer: String::new(), subject: peer.to_owned() };
    let answer = ask(calls, subject, CallRequest::Open(with));
    let Answer::Channel(view) = answer else { panic!("{answer:?}") };
    view.head.cid
}

fn cursor_of(calls: &Calls, subject: &str) -> Bytes {
    let answer = ask(calls, subject, sync(&Bytes::new(), 0));
    let Answer::Synced(synced) = answer else { panic!("{answer:?}") };
    synced.cursor
}

fn ask(calls: &Calls, subject: &str, request: CallRequest) -> Answer {
    block_on(calls.call(identity(subject), CallDevice::None, request)).unwrap()
}

fn identity(subject: &str) -> Identity {
    Trusting.verify(subject, 1_800_000_000).unwrap()
}

fn send(cid: Cid, number: u8) -> CallRequest {
    let (cmid, body) = (Cmid([number; 16]), Bytes::from_static(b"hello"));
    CallRequest::Send(CallSend { cid, cmid, base: None, kind: BodyKind::TEXT, body })
}

fn sync(cursor: &Bytes, wait_ms: u32) -> CallRequest {
    CallRequest::Sync(CallSync { cursor: cursor.clone(), limit: 0, wait_ms })
}

fn parked(server: &Server) -> u64 {
    server.gateway.metrics().iter().map(|shard| shard.core.calls_parked).sum()
}

pub(super) fn until(holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "it did not come true in time");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for a future on this thread.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    let end = Instant::now() + PATIENCE;
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        assert!(Instant::now() < end, "no answer in time");
        thread::park_timeout(PATIENCE);
    }
}
