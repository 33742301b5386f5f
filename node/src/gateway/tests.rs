//! Behaviours of the gateway over real sockets, with the real machine and store.

#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::pin::pin;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use bytes::{Bytes, BytesMut};
use chatring_core::effect::Identity;
use chatring_wire::frame::{Head, Hello, Send, UserRef};
use chatring_wire::frame::{MessageKind as BodyKind, RequestId};
use chatring_wire::limits::FRAME_BYTES_MIN;
use chatring_wire::ws::{
    ClientHandshake, ClientProgress, ClientRequest, ControlPayload, Decoder, Event, Limits,
    MaskKey, MessageKind, Role, encode_message, encode_ping,
};
use chatring_wire::{
    ClientCodec, ClientFrame, Cmid, ErrorCode, InstallationId, Outgoing, Seq, ServerFrame,
    Subprotocol,
};

use super::*;
use crate::store::embedded::{EmbeddedConfig, EmbeddedStore};

mod calls;
mod edges;

const MASK: Option<MaskKey> = Some(MaskKey([1, 2, 3, 4]));
const PATIENCE: Duration = Duration::from_secs(30);

/// Takes the token as the user's name.
struct Trusting;

impl TokenVerifier for Trusting {
    fn verify(&self, token: &str, unix_s: u64) -> Result<Identity, ErrorCode> {
        match token {
            "expired" => Err(ErrorCode::ExpiredToken),
            subject => Ok(Identity {
                issuer: String::new(),
                subject: subject.to_owned(),
                issued_at_s: unix_s,
                expires_at_s: unix_s + 3_600,
                installation: None,
            }),
        }
    }
}

/// The environment's `CHATRING_TEST_DRIVER`, so that a second run can use the other one.
fn driver_under_test() -> Driver {
    match std::env::var("CHATRING_TEST_DRIVER").as_deref() {
        Ok("ring") => Driver::Ring,
        Ok("streams") => Driver::Streams,
        Ok(other) => panic!("no driver: {other}"),
        Err(_) => Driver::Auto,
    }
}

struct Server {
    gateway: Gateway,
    store: Arc<EmbeddedStore>,
    handed: flume::Receiver<PlainHttp>,
    carries: Option<Carries>,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start(limits: GatewayLimits) -> Server {
        Server::start_with(limits, ShardLimits::default(), |kv| kv)
    }

    /// With something put round each shard's handle of the store.
    fn start_with(
        limits: GatewayLimits,
        shard_limits: ShardLimits,
        wrap: impl Fn(Box<dyn Kv>) -> Box<dyn Kv> + Clone + std::marker::Send + 'static,
    ) -> Server {
        Server::start_on(limits, shard_limits, move |store, sink| {
            wrap(Box::new(store.handle(move |completions| sink(completions))))
        })
    }

    /// With what each shard makes of the store, and of where that is to tell its completions.
    fn start_on<M>(limits: GatewayLimits, shard_limits: ShardLimits, make: M) -> Server
    where
        M: Fn(&EmbeddedStore, StoreSink) -> Box<dyn Kv> + Clone + std::marker::Send + 'static,
    {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(dir.path(), EmbeddedConfig::default()).unwrap();
        let store = Arc::new(store);
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let driver = driver_under_test();
        let gather = Duration::from_micros(100);
        let (shards, tls) = (2, None);
        let config = GatewayConfig { listen, shards, driver, gather, tls, limits, shard_limits };
        let for_shards = store.clone();
        let stores = move |_: ShardId, sink: StoreSink| make(&for_shards, sink);
        let (hand, handed) = flume::bounded(8);
        let http: HttpSink = Arc::new(move |connection| hand.try_send(connection).unwrap());
        let gateway = start(&config, stores, Arc::new(Trusting), http).unwrap();
        gateway.wait_ready(PATIENCE).unwrap();
        let carries = Some(carry(gateway.calls()));
        Server { gateway, store, handed, carries, _dir: dir }
    }

    fn counters(&self) -> GatewayCounters {
        let mut sum = GatewayCounters::default();
        self.gateway.metrics().iter().for_each(|m| sum.add(&m.gateway));
        sum
    }

    fn socket(&self) -> TcpStream {
        let socket = TcpStream::connect(self.gateway.local_addr()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        socket
    }

    fn sign_in(&self, name: &str) -> Client {
        self.sign_in_on(name, name)
    }

    fn sign_in_on(&self, name: &str, device: &str) -> Client {
        let mut client = Client::connect(self, Subprotocol::Binary);
        client.say(&[hello_on(name, device)]);
        assert!(matches!(client.frame(), ServerFrame::Welcome(_)));
        client.until(|frame| matches!(frame, ServerFrame::Synced { .. }));
        client
    }
}

/// A thread that carries calls until this is dropped.
struct Carries {
    over: Arc<AtomicBool>,
    /// Whoever holds it lets calls gather.
    gate: Arc<std::sync::Mutex<()>>,
    thread: Thread,
}

fn carry(calls: Calls) -> Carries {
    let over = Arc::new(AtomicBool::new(false));
    let gate = Arc::new(std::sync::Mutex::new(()));
    let (told, passed) = (Arc::clone(&over), Arc::clone(&gate));
    let carries = std::thread::spawn(move || {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut carry = pin!(calls.carry());
        while !told.load(Ordering::Acquire) {
            let gate = passed.lock().unwrap();
            assert_eq!(carry.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Pending);
            drop(gate);
            std::thread::park();
        }
    });
    Carries { over, gate, thread: carries.thread().clone() }
}

impl Drop for Carries {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// What a client reads.
#[derive(Debug, PartialEq)]
enum Heard {
    Frame(ServerFrame),
    Pong,
    Close(Option<u16>),
    End,
}

struct Client {
    socket: TcpStream,
    decoder: Decoder,
    codec: ClientCodec,
    heard: VecDeque<Heard>,
}

impl Client {
    fn connect(server: &Server, subprotocol: Subprotocol) -> Client {
        let mut socket = server.socket();
        let mut out = BytesMut::new();
        let request =
            ClientRequest { host: "localhost", path: WS_PATH, subprotocols: &[subprotocol.name()] };
        let mut handshake = ClientHandshake::start(&request, [7; 16], &mut out).unwrap();
        socket.write_all(&out).unwrap();
        let mut head = Vec::new();
        loop {
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
            if let ClientProgress::Connected { .. } = handshake.advance(&head).unwrap() {
                break;
            }
        }
        Client {
            socket,
            decoder: Decoder::new(Role::Client, Limits::default()),
            codec: ClientCodec::new(subprotocol, FRAME_BYTES_MIN),
            heard: VecDeque::new(),
        }
    }

    fn bytes_of(&mut self, frames: &[ClientFrame]) -> BytesMut {
        let mut outgoing = Outgoing::new();
        frames.iter().for_each(|f| self.codec.encode(f, &mut outgoing).unwrap());
        let kind = match self.codec.subprotocol().is_text() {
            true => MessageKind::Text,
            false => MessageKind::Binary,
        };
        let mut out = BytesMut::new();
        outgoing.messages().for_each(|m| encode_message(&mut out, kind, m, MASK));
        out
    }

    fn say(&mut self, frames: &[ClientFrame]) {
        let out = self.bytes_of(frames);
        self.socket.write_all(&out).unwrap();
    }

    fn hear(&mut self) -> Heard {
        loop {
            if let Some(heard) = self.heard.pop_front() {
                return heard;
            }
            let mut buffer = [0; 4096];
            let read = match self.socket.read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                read => read.unwrap(),
            };
            if read == 0 {
                return Heard::End;
            }
            let mut input = &buffer[..read];
            while let Some(event) = self.decoder.next(&mut input).unwrap() {
                let heard = &mut self.heard;
                match event {
                    Event::Message { payload, .. } => {
                        let each = |frame| heard.push_back(Heard::Frame(frame));
                        self.codec.decode(&payload, each).unwrap();
                    }
                    Event::Pong(_) => heard.push_back(Heard::Pong),
                    Event::Close(close) => heard.push_back(Heard::Close(close.code)),
                    Event::Ping(_) => {}
                }
            }
        }
    }

    fn frame(&mut self) -> ServerFrame {
        match self.hear() {
            Heard::Frame(frame) => frame,
            other => panic!("{other:?}"),
        }
    }

    fn until(&mut self, wanted: impl Fn(&ServerFrame) -> bool) -> ServerFrame {
        loop {
            let frame = self.frame();
            if wanted(&frame) {
                return frame;
            }
        }
    }

    /// The head of the channel with somebody; request 1.
    fn open(&mut self, peer: &str) -> Head {
        let with = UserRef::Subject { issuer: String::new(), subject: peer.to_owned() };
        self.say(&[ClientFrame::Open { request: RequestId(1), with }]);
        let opened = self.until(|f| matches!(f, ServerFrame::Opened { .. }));
        let ServerFrame::Opened { head, .. } = opened else { unreachable!() };
        head
    }

    fn expect_error(&mut self, code: ErrorCode) {
        loop {
            match self.hear() {
                Heard::Frame(ServerFrame::Error(failure)) => {
                    assert_eq!(failure.code, Ok(code));
                    break;
                }
                Heard::Frame(_) => {}
                other => panic!("{other:?}"),
            }
        }
        let close = chatring_wire::CloseCode::for_error(code).number();
        assert_eq!(self.hear(), Heard::Close(Some(close)));
    }
}

fn hello(name: &str) -> ClientFrame {
    hello_on(name, name)
}

/// The hello of a user on a device.
fn hello_on(name: &str, device: &str) -> ClientFrame {
    let mut installation = [0; 16];
    let length = device.len().min(16);
    installation[..length].copy_from_slice(&device.as_bytes()[..length]);
    ClientFrame::Hello(Hello {
        token: name.to_owned(),
        installation: InstallationId(installation),
        cursor: Bytes::new(),
        capabilities: 0,
        frame_bytes_max: FRAME_BYTES_MIN as u32,
    })
}

fn ping() -> ClientFrame {
    ClientFrame::Ping { pushes: 0 }
}

#[test]
fn a_message_goes_from_one_user_to_another_wherever_they_live() {
    let server = Server::start(GatewayLimits::default());
    for pair in 0..4 {
        let (a, b) = (format!("a{pair}"), format!("b{pair}"));
        let mut alice = server.sign_in(&a);
        let mut bob = server.sign_in(&b);
        let head = alice.open(&b);
        for n in 1..=3 {
            let body = Bytes::from(format!("text {n}"));
            alice.say(&[ClientFrame::Send(Send {
                request: RequestId(1 + n),
                cid: head.cid,
                cmid: Cmid([n as u8; 16]),
                base: Seq(u64::from(n) - 1),
                previous: None,
                kind: BodyKind::TEXT,
                body: body.clone(),
            })]);
            alice.until(|f| matches!(f, ServerFrame::Sent { seq, .. } if seq.0 == u64::from(n)));
            bob.until(|f| matches!(f, ServerFrame::Text { body: got, .. } if *got == body));
        }
    }
    // A connection comes to the right shard by chance in one case of two, and counts come late.
    let found = (0..64).any(|n| {
        let _client = server.sign_in(&format!("c{n}"));
        std::thread::sleep(Duration::from_millis(20));
        server.counters().handovers > 0
    });
    assert!(found, "no connection was accepted by the other shard");
}

#[test]
fn frames_behind_the_hello_follow_it_to_the_shard_of_the_user() {
    let server = Server::start(GatewayLimits::default());
    for n in 0..16 {
        let mut client = Client::connect(&server, Subprotocol::Json);
        client.say(&[hello(&format!("user{n}")), ping(), ping()]);
        let first = client.frame();
        assert!(matches!(first, ServerFrame::Welcome(_)), "{first:?}");
        for _ in 0..2 {
            client.until(|f| matches!(f, ServerFrame::Pong { .. }));
        }
    }
}

#[test]
fn wrong_hellos_have_their_own_errors() {
    let server = Server::start(GatewayLimits::default());
    let small = |frame| match frame {
        ClientFrame::Hello(h) => ClientFrame::Hello(Hello { frame_bytes_max: 1_000, ..h }),
        other => other,
    };
    for (first, code) in [
        (hello("expired"), ErrorCode::ExpiredToken),
        (ping(), ErrorCode::Unexpected),
        (small(hello("a")), ErrorCode::FrameTooSmall),
    ] {
        let mut client = Client::connect(&server, Subprotocol::Binary);
        client.say(&[first]);
        client.expect_error(code);
    }
    let mut twice = server.sign_in("twice");
    twice.say(&[hello("twice")]);
    twice.expect_error(ErrorCode::Unexpected);
}

#[test]
fn garbage_closes_its_connection_and_harms_nobody_else() {
    let server = Server::start(GatewayLimits::default());
    let mut other = server.sign_in("other");
    let mut bad = server.sign_in("bad");
    let mut out = BytesMut::new();
    encode_message(&mut out, MessageKind::Binary, &[3, 0x9f, 1, 2], MASK);
    bad.socket.write_all(&out).unwrap();
    bad.expect_error(ErrorCode::UnknownOpcode);
    let mut text = server.sign_in("text");
    out.clear();
    encode_message(&mut out, MessageKind::Text, b"{}", MASK);
    text.socket.write_all(&out).unwrap();
    assert_eq!(text.hear(), Heard::Close(Some(1003)));
    let mut unmasked = server.sign_in("unmasked");
    unmasked.socket.write_all(&[0x82, 1, 0]).unwrap();
    assert_eq!(unmasked.hear(), Heard::Close(Some(1002)));
    assert_eq!(unmasked.hear(), Heard::End);
    let mut ping_out = BytesMut::new();
    encode_ping(&mut ping_out, &ControlPayload::new(&b"x"[..]).unwrap(), MASK);
    other.socket.write_all(&ping_out).unwrap();
    assert_eq!(other.hear(), Heard::Pong);
    other.say(&[ping()]);
    other.until(|f| matches!(f, ServerFrame::Pong { .. }));
}

#[test]
fn http_without_an_upgrade_is_handed_on_with_all_that_was_said() {
    let server = Server::start(GatewayLimits::default());
    let mut socket = server.socket();
    write!(socket, "GET {WS_PATH} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");

    for request in ["POST / HTTP/1.1\r\nHost: x\r\n\r\nbody", "PRI * HTTP/2.0\r\n\r\nSM"] {
        let (first, rest) = request.split_at(9);
        let mut socket = server.socket();
        socket.write_all(first.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        socket.write_all(rest.as_bytes()).unwrap();
        let mut handed = server.handed.recv_timeout(PATIENCE).unwrap();
        assert_eq!(handed.received, request);
        handed.stream.set_nonblocking(false).unwrap();
        socket.write_all(b" and more").unwrap();
        let mut more = [0; 9];
        handed.stream.read_exact(&mut more).unwrap();
        assert_eq!(&more, b" and more");
        handed.stream.write_all(b"heard").unwrap();
        drop(handed);
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "heard");
    }
}

#[test]
fn half_handshakes_time_out_and_are_bounded() {
    let limits = GatewayLimits {
        handshakes_per_ip_max: 2,
        handshake_ms_max: 3_000,
        ..GatewayLimits::default()
    };
    let server = Server::start(limits);
    let mut silent = Client::connect(&server, Subprotocol::Binary);
    // Which of these two is accepted first, and so has the second place, is the kernel's choice.
    let halves = [server.socket(), server.socket()];
    let mut answers = halves.map(|mut half| {
        half.write_all(b"GET /v1/ws HTT").unwrap();
        let mut answer = String::new();
        half.read_to_string(&mut answer).unwrap();
        answer
    });
    answers.sort();
    let [timed_out, refused] = answers;
    assert!(timed_out.is_empty(), "{timed_out}");
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    silent.expect_error(ErrorCode::Timeout);
    drop(silent);
    calls::until(|| server.gateway.metrics().iter().all(|shard| shard.gateway.connections == 0));
    server.sign_in("later");
}

#[test]
fn a_flood_of_tiny_frames_does_not_starve_others() {
    let server = Server::start(GatewayLimits::default());
    let mut flood = server.sign_in("flood");
    let mut other = server.sign_in("other");
    let frames = vec![ClientFrame::Ack { pushes: 0 }; 4_000];
    let block = flood.bytes_of(&frames);
    let mut socket = flood.socket.try_clone().unwrap();
    let writer = std::thread::spawn(move || (0..50).all(|_| socket.write_all(&block).is_ok()));
    let mut worst = Duration::ZERO;
    for _ in 0..20 {
        let start = Instant::now();
        other.say(&[ping()]);
        other.until(|f| matches!(f, ServerFrame::Pong { .. }));
        worst = worst.max(start.elapsed());
    }
    assert!(worst < Duration::from_secs(5), "{worst:?}");
    assert!(writer.join().unwrap(), "everything is read in the end");
}

#[test]
fn a_drain_tells_sessions_and_ends() {
    let server = Server::start(GatewayLimits::default());
    let mut client = server.sign_in("a");
    let deadline = Instant::now() + PATIENCE;
    std::thread::scope(|scope| {
        let drain = scope.spawn(|| server.gateway.drain(deadline));
        client.until(|f| matches!(f, ServerFrame::Drain { .. }));
        while client.hear() != Heard::End {}
        drain.join().unwrap().unwrap();
    });
    assert!(Instant::now() < deadline);
}
