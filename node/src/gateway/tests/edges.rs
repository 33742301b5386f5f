//! What happens at bounds, with crossed ids, and after a panic.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};

use chatring_core::keys;
use chatring_core::kv::{
    Class, Commit, Outcome, Read as KvRead, ReadVersion, Request, Rows, Ticket,
};
use chatring_core::placement::{DeploymentKey, shard_of};
use chatring_core::values::{DeploymentRow, UserRow};
use chatring_wire::Cid;
use chatring_wire::frame::{Direction, RangeRequest, Welcome};
use chatring_wire::limits::BODY_BYTES_MAX;

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
    let head = alice.open("bob");
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

#[test]
fn answers_that_come_while_others_are_written_count_as_unsent() {
    const OPEN: u32 = 64;
    let brake = Arc::new(Brake::default());
    let braked = Arc::clone(&brake);
    let limits = GatewayLimits::default();
    let server = Server::start_on(limits, ShardLimits::default(), move |store, sink| {
        let brake = Arc::clone(&braked);
        let kv = Box::new(store.handle(move |completions| brake.tell(completions, &sink)));
        Box::new(Braked { kv, brake: Arc::clone(&braked) })
    });
    let mut reader = server.sign_in_on("alice", "reader");
    let mut others = ["one", "two"].map(|device| server.sign_in_on("alice", device));
    server.sign_in("bob");
    let head = reader.open("bob");
    reader.say(&[ClientFrame::Send(Send {
        request: RequestId(2),
        cid: head.cid,
        cmid: Cmid([1; 16]),
        base: Seq(0),
        previous: None,
        kind: BodyKind::TEXT,
        body: Bytes::from(vec![b'x'; BODY_BYTES_MAX]),
    })]);
    reader.until(|f| matches!(f, ServerFrame::Sent { .. }));
    let mut asked = 0;
    let mut ranges = |count| -> Vec<_> {
        asked += count;
        (asked - count..asked).map(|n| range(3 + n, head.cid)).collect()
    };
    let before = brake.asked.load(Ordering::Acquire);
    let is_answer =
        |f: &ServerFrame| matches!(f, ServerFrame::Rows { .. } | ServerFrame::Refused { .. });
    // Until the kernel takes no more; then it has room for some, and not for all that may be asked.
    let mut filling = 0;
    while brake.asked.load(Ordering::Acquire) == before + filling {
        reader.say(&ranges(1));
        filling += 1;
        let until = Instant::now() + Duration::from_millis(100);
        while brake.asked.load(Ordering::Acquire) < before + filling && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    (0..OPEN / 2).for_each(|_| _ = reader.until(is_answer));
    // As many requests as may be open, all read by the store, none told. The answer before may
    // still be on its way to the shard; then one of them is refused.
    brake.wait_until("answered", |b| {
        let all = b.asked.load(Ordering::Acquire) == before + filling;
        all && b.open.load(Ordering::Acquire) == 0
    });
    brake.holds.store(true, Ordering::Release);
    reader.say(&ranges(OPEN));
    brake.wait_until("held", |b| b.held() + 1 >= OPEN as usize);
    // In one turn: eight answers, more than a reader may leave unread and still be read from.
    brake.stops.store(1, Ordering::Release);
    others[0].say(&[range(1, head.cid)]);
    brake.wait_until("stopped", |b| b.stopped.load(Ordering::Acquire) == 1);
    brake.release(8);
    others[1].say(&[range(1, head.cid)]);
    reader.say(&ranges(OPEN));
    // In the next one, in which those are written: the others.
    brake.stops.store(2, Ordering::Release);
    brake.wait_until("stopped again", |b| b.stopped.load(Ordering::Acquire) == 2);
    brake.holds.store(false, Ordering::Release);
    brake.release(usize::MAX);
    brake.stops.store(0, Ordering::Release);
    // Time for what must not happen.
    std::thread::sleep(Duration::from_millis(200));
    (OPEN / 2..filling + 2 * OPEN).for_each(|_| _ = reader.until(is_answer));
    assert_eq!(server.counters().overflows, 0);
}

fn range(number: u32, cid: Cid) -> ClientFrame {
    ClientFrame::Range(RangeRequest {
        request: RequestId(number),
        cid,
        from: Seq(1),
        to: Seq(1),
        limit: 1,
        direction: Direction::Ascending,
    })
}

/// Holds what a store tells, and stops shards that ask for something.
#[derive(Default)]
struct Brake {
    holds: AtomicBool,
    held: std::sync::Mutex<Vec<(Completion, StoreSink)>>,
    /// Shards that ask are to stop while this is the number of those that have, and one.
    stops: AtomicUsize,
    stopped: AtomicUsize,
    /// Reads of ranges.
    asked: AtomicU32,
    /// Requests that the store has not completed yet.
    open: AtomicUsize,
}

impl Brake {
    fn tell(&self, completions: Vec<Completion>, sink: &StoreSink) {
        let told = completions.len();
        if !self.holds.load(Ordering::Acquire) {
            sink(completions);
            self.open.fetch_sub(told, Ordering::AcqRel);
            return;
        }
        let held = completions.into_iter().map(|completion| (completion, Arc::clone(sink)));
        self.held.lock().unwrap().extend(held);
    }

    fn held(&self) -> usize {
        self.held.lock().unwrap().len()
    }

    fn release(&self, most: usize) {
        let mut held = self.held.lock().unwrap();
        let count = held.len().min(most);
        held.drain(..count).for_each(|(completion, sink)| sink(vec![completion]));
    }

    fn stop(&self) {
        let turn = self.stopped.load(Ordering::Acquire) + 1;
        if self.stops.load(Ordering::Acquire) == turn {
            self.stopped.store(turn, Ordering::Release);
            while self.stops.load(Ordering::Acquire) == turn {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn wait_until(&self, what: &str, holds: impl Fn(&Brake) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < until, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

struct Braked {
    kv: Box<dyn Kv>,
    brake: Arc<Brake>,
}

impl Kv for Braked {
    fn submit(&mut self, request: Request, ticket: Ticket) {
        self.brake.stop();
        self.brake.open.fetch_add(1, Ordering::AcqRel);
        if let Request::Read(read) = &request
            && !read.ranges.is_empty()
        {
            self.brake.asked.fetch_add(1, Ordering::AcqRel);
        }
        self.kv.submit(request, ticket);
    }

    fn resume(&mut self, lane: chatring_core::kv::LaneId) {
        self.kv.resume(lane);
    }

    fn limits(&self) -> chatring_core::kv::Limits {
        self.kv.limits()
    }
}
