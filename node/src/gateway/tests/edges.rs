//! What happens at bounds, with crossed ids, and after a panic.

use std::sync::atomic::AtomicBool;

use chatring_core::keys;
use chatring_core::kv::{
    Class, Commit, Outcome, Read as KvRead, ReadVersion, Request, Rows, Ticket,
};
use chatring_core::placement::{DeploymentKey, shard_of};
use chatring_core::values::{DeploymentRow, UserRow};
use chatring_wire::frame::Welcome;

use super::*;
use crate::own_process::{assert_aborted, in_own_process};

const SHARDS: u16 = 2;

#[test]
fn connections_of_one_address_are_bounded_and_their_places_come_back() {
    let limits = GatewayLimits { connections_per_ip_max: 2, ..GatewayLimits::default() };
    let server = Server::start(limits);
    let (first, _second) = (server.sign_in("a"), server.sign_in("b"));
    let mut answer = String::new();
    server.socket().read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    drop(first);
    let until = Instant::now() + PATIENCE;
    while server.gateway.shared.admission.connections() > 1 {
        assert!(Instant::now() < until, "the place comes back");
        std::thread::sleep(Duration::from_millis(5));
    }
    server.sign_in("c");
}

#[test]
fn those_without_a_place_are_refused_in_bounds_and_leave_nothing_behind() {
    let limits = GatewayLimits { connections_max: 1, ..GatewayLimits::default() };
    let server = Server::start(limits);
    let mut inside = server.sign_in("a");
    let before = descriptors();
    let crowd: Vec<TcpStream> = (0..1_500).map(|_| server.socket()).collect();
    let until = Instant::now() + PATIENCE;
    while server.counters().refused_full < 1_500 {
        assert!(Instant::now() < until, "{:?}", server.counters());
        std::thread::sleep(Duration::from_millis(5));
    }
    // Their own ends are in this process as well.
    let held = descriptors() - before - crowd.len();
    assert!(held <= 2 * limits::REFUSED_MAX, "{held} descriptors for refused connections");
    inside.say(&[ping()]);
    inside.until(|f| matches!(f, ServerFrame::Pong { .. }));
    drop(crowd);
    // Other tests of this process open descriptors, too: far fewer.
    let until = Instant::now() + PATIENCE;
    while descriptors() > before + 400 {
        assert!(Instant::now() < until, "{} descriptors left", descriptors() - before);
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_session_that_takes_nothing_is_closed_and_its_sender_goes_on() {
    let limits = GatewayLimits {
        unsent_bytes_high: 64 * 1024,
        unsent_bytes_max: 256 * 1024,
        ..GatewayLimits::default()
    };
    let shard_limits =
        ShardLimits { window_pushes: 100_000, window_bytes: 1 << 30, ..ShardLimits::default() };
    let server = Server::start_with(limits, shard_limits, |kv| kv);
    let mut alice = server.sign_in("alice");
    let mut bob = server.sign_in("bob");
    let with = UserRef::Subject { issuer: String::new(), subject: "bob".into() };
    alice.say(&[ClientFrame::Open { request: RequestId(1), with }]);
    let opened = alice.until(|f| matches!(f, ServerFrame::Opened { .. }));
    let ServerFrame::Opened { head, .. } = opened else { unreachable!() };
    let body = Bytes::from(vec![b'x'; 60_000]);
    // More than the kernel's buffers of both ends take.
    let mut sent = 0;
    while server.counters().overflows == 0 {
        assert!(sent < 400, "24 MB are held for a session that reads nothing");
        alice.say(&[ClientFrame::Send(Send {
            request: RequestId(2 + sent),
            cid: head.cid,
            cmid: Cmid(u128::from(sent).to_be_bytes()),
            base: Seq(u64::from(sent)),
            previous: None,
            kind: BodyKind::TEXT,
            body: body.clone(),
        })]);
        alice.until(|f| matches!(f, ServerFrame::Sent { .. }));
        sent += 1;
    }
    // It gets what was written before, and then the end.
    let _ = bob.socket.read_to_end(&mut Vec::new());
    alice.say(&[ping()]);
    alice.until(|f| matches!(f, ServerFrame::Pong { .. }));
    server.sign_in("bob");
}

#[test]
fn a_user_whose_id_is_taken_moves_on_to_the_shard_of_the_next_one() {
    let server = Server::start(GatewayLimits::default());
    let mut store = Store::new(&server);
    let row = store.get(keys::deployment()).expect("the deployment's row");
    let deployment = DeploymentRow::decode(row).unwrap();
    let key = DeploymentKey::new(&deployment.key);
    let shard =
        |subject: &str, candidate| shard_of(key.uid("", subject, candidate).vshard(), SHARDS);
    let crossed: Vec<String> = (0..64)
        .map(|n| format!("user{n}"))
        .filter(|name| shard(name, 0) != shard(name, 1))
        .take(8)
        .collect();
    assert_eq!(crossed.len(), 8);
    for name in &crossed {
        let taken = UserRow {
            issuer: "other".into(),
            subject: "other".into(),
            revoked_before_s: 0,
            rest: Bytes::new(),
        };
        store.write(taken.write(keys::user(key.uid("", name, 0)), deployment.incarnation));
        let mut client = Client::connect(&server, Subprotocol::Binary);
        client.say(&[hello(name), ping(), ping()]);
        let ServerFrame::Welcome(Welcome { uid, .. }) = client.frame() else { panic!("a welcome") };
        assert_eq!(uid, key.uid("", name, 1));
        for _ in 0..2 {
            client.until(|f| matches!(f, ServerFrame::Pong { .. }));
        }
    }
}

/// Reads and writes rows behind the server's back.
struct Store {
    kv: Box<dyn Kv>,
    answers: flume::Receiver<Vec<Completion>>,
}

impl Store {
    fn new(server: &Server) -> Store {
        let (sink, answers) = flume::bounded(1); // one request at a time
        let kv = server.store.handle(move |completions| sink.send(completions).unwrap());
        Store { kv: Box::new(kv), answers }
    }

    fn ask(&mut self, request: Request) -> Outcome {
        self.kv.submit(request, Ticket(1));
        self.answers.recv_timeout(PATIENCE).unwrap().remove(0).outcome
    }

    fn get(&mut self, key: Bytes) -> Option<Bytes> {
        let read = KvRead { gets: vec![key], ranges: Vec::new(), version: ReadVersion::Fresh };
        let Outcome::Rows(Rows { mut gets, .. }) = self.ask(Request::Read(read)) else {
            panic!("rows")
        };
        gets.remove(0)
    }

    fn write(&mut self, write: chatring_core::kv::Write) {
        let outcome = self.ask(Request::Commit(Commit {
            lane: None,
            class: Class::Interactive,
            read_version: None,
            conflicts: Vec::new(),
            writes: vec![write],
        }));
        assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
    }
}

#[test]
fn a_panic_of_the_machine_ends_the_process() {
    if let Some(output) =
        in_own_process("gateway::tests::edges::a_panic_of_the_machine_ends_the_process")
    {
        return assert_aborted(&output);
    }
    let armed = Arc::new(AtomicBool::new(false));
    let for_shards = armed.clone();
    let server = Server::start_with(GatewayLimits::default(), ShardLimits::default(), move |kv| {
        Box::new(Panicking { kv, armed: for_shards.clone() })
    });
    armed.store(true, Ordering::Relaxed);
    let mut client = Client::connect(&server, Subprotocol::Binary);
    client.say(&[hello("a")]);
    std::thread::sleep(Duration::from_secs(10));
}

/// Stands for a defect in a machine: its effects are carried out within the same step.
struct Panicking {
    kv: Box<dyn Kv>,
    armed: Arc<AtomicBool>,
}

impl Kv for Panicking {
    fn submit(&mut self, request: Request, ticket: Ticket) {
        assert!(!self.armed.load(Ordering::Relaxed), "asked for");
        self.kv.submit(request, ticket);
    }

    fn resume(&mut self, lane: chatring_core::kv::LaneId) {
        self.kv.resume(lane);
    }

    fn limits(&self) -> chatring_core::kv::Limits {
        self.kv.limits()
    }
}
