//! What the accounts have decided takes effect at once on what lives and waits.

use chatring_wire::CloseCode;

use super::*;
use crate::call::Decision;

const ONE: InstallationId = InstallationId([1; 16]);
const TWO: InstallationId = InstallationId([2; 16]);

fn identity(installation: InstallationId, issued_at_s: u64) -> Identity {
    Identity {
        issuer: String::new(),
        subject: "alice".to_owned(),
        issued_at_s,
        expires_at_s: 1 << 40,
        installation: Some(installation),
    }
}

impl Node {
    fn attached(&mut self, session: u64, installation: InstallationId, issued_at_s: u64) {
        let identity = identity(installation, issued_at_s);
        let attach = Attach { identity, candidate: 0, installation, cursor: Bytes::new() };
        self.step(Input::Attach { session: SessionId(session), attach });
    }

    fn parked(&mut self, installation: InstallationId, issued_at_s: u64) -> CallId {
        let cursor = self.synced("alice", &Bytes::new(), 0).cursor;
        self.calls += 1;
        let call = CallId(self.calls);
        let identity = identity(installation, issued_at_s);
        let (device, request) = (CallDevice::None, wait(&cursor));
        self.step(Input::Call {
            call,
            what: Box::new(Call { identity, candidate: 0, device, request }),
        });
        self.settle();
        call
    }

    fn decide(&mut self, decision: Decision) -> CallId {
        self.calls += 1;
        let call = CallId(self.calls);
        let what = Box::new(Call::decided(String::new(), "alice".to_owned(), decision));
        self.step(Input::Call { call, what });
        call
    }

    fn ended(&mut self) -> Vec<u64> {
        let closed = self.closed.drain(..);
        closed
            .map(|(session, code)| {
                assert_eq!(code, CloseCode::Auth);
                session.0
            })
            .collect()
    }
}

#[test]
fn a_device_that_was_signed_out_loses_what_lives_of_older_tokens_and_nothing_else() {
    let mut node = Node::new(ShardLimits { calls_per_user_max: 4, ..ShardLimits::default() });
    node.attached(1, ONE, 10);
    node.attached(2, TWO, 10);
    node.settle();
    let (one, two) = (node.parked(ONE, 10), node.parked(TWO, 10));
    let newer = node.parked(ONE, 11);
    // No bound on what users ask holds it up.
    node.parked(TWO, 10);
    node.decide(Decision::DeviceSignedOut { installation: ONE, at_s: 10 });
    let revoked = Err(Failure::new(ErrorCode::RevokedToken));
    let answers: Vec<_> = node.answers.drain(..).collect();
    assert_eq!(answers.len(), 2, "the other device and the newer token wait on: {answers:?}");
    assert_eq!(answers[0], (one, revoked));
    assert_eq!(answers[1].1, Ok(Answer::Done));
    assert_eq!(node.ended(), [1]);
    assert!(matches!(node.said.last(), Some(ServerFrame::Error(why))
        if why.code == Ok(ErrorCode::RevokedToken)));
    // It comes back with a token of a new log-in; saying it again does not end that.
    node.attached(3, ONE, 11);
    node.settle();
    node.decide(Decision::DeviceSignedOut { installation: ONE, at_s: 10 });
    assert_eq!(node.ended(), [0; 0]);
    assert!(node.shard.calls.contains_key(&two) && node.shard.calls.contains_key(&newer));
}

#[test]
fn a_session_that_is_still_signing_in_is_ended_too() {
    let mut node = Node::new(ShardLimits::default());
    node.attached(1, ONE, 10);
    node.decide(Decision::DeviceSignedOut { installation: ONE, at_s: 10 });
    assert!(node.closed.is_empty(), "its user's rows are being read");
    node.settle();
    assert_eq!(node.ended(), [1]);
}

#[test]
fn a_removed_device_is_gone_for_good_once_that_is_answered() {
    let mut node = Node::new(ShardLimits::default());
    node.attached(1, ONE, 10);
    node.attached(2, TWO, 10);
    node.settle();
    let (parked, other) = (node.parked(ONE, 10), node.parked(TWO, 10));
    let decided = node.decide(Decision::DeviceRemoved { installation: ONE });
    assert_eq!(node.ended(), [1], "at once");
    assert_eq!(node.answers.len(), 1, "not before it is stored");
    assert_eq!(node.answers.pop_front().map(|(call, _)| call), Some(parked));
    let again = node.decide(Decision::DeviceRemoved { installation: ONE });
    assert!(node.answers.is_empty(), "it relies on what is in the lane");
    node.settle();
    let answers: Vec<_> = node.answers.drain(..).collect();
    assert_eq!(answers, [(decided, Ok(Answer::Done)), (again, Ok(Answer::Done))]);
    node.restart(ShardLimits::default());
    node.attached(3, ONE, 1_000);
    node.settle();
    assert_eq!(node.ended(), [3], "whatever its token is");
    assert!(!node.shard.calls.contains_key(&other), "the process ended");
    node.decide(Decision::DeviceRemoved { installation: InstallationId([9; 16]) });
    node.settle();
    assert_eq!(node.answers.pop_front().map(|(_, answer)| answer), Some(Ok(Answer::Done)));
}

#[test]
fn the_tokens_of_a_deleted_account_are_refused_and_nobody_is_made_known_by_it() {
    let mut node = Node::new(ShardLimits::default());
    node.decide(Decision::AccountDeleted { at_s: 10 });
    node.settle();
    assert_eq!(node.answers.pop_front().map(|(_, answer)| answer), Some(Ok(Answer::Done)));
    let with = UserRef::Subject { issuer: String::new(), subject: "alice".to_owned() };
    let unknown = Err(Failure::new(ErrorCode::UnknownUser));
    assert_eq!(node.result("bob", CallRequest::Open(with)), unknown);

    node.attached(1, ONE, 10);
    node.attached(2, TWO, 10);
    node.settle();
    let parked = node.parked(TWO, 10);
    node.decide(Decision::AccountDeleted { at_s: 10 });
    node.settle();
    assert_eq!(node.ended(), [1, 2]);
    assert_eq!(node.answers.pop_front().map(|(call, _)| call), Some(parked));
    node.restart(ShardLimits::default());
    node.attached(3, ONE, 10);
    node.settle();
    assert_eq!(node.ended(), [3]);
}
