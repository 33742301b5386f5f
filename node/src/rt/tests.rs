//! Behaviours of the runtime over real sockets, with a handler that echoes; each on both drivers.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use chatring_core::effect::Now;

use super::*;
use crate::own_process::{assert_aborted, in_own_process};

mod chaos;
mod pressed;

const SHARDS: u16 = 2;
/// Unsent bytes above which the echo stops reading.
const UNSENT_HIGH: usize = 64 * 1024;
/// Bytes that the echo handles in one call.
const BUDGET: usize = 4 * 1024;

/// More bytes than sockets hold.
const MUCH: usize = 16 << 20;

enum Moved {
    Conn(Released, Vec<u8>),
    Panic,
    Stall,
}

/// Echoes bytes, preceded by nothing. `!` panics, `>` moves the connection with the bytes behind it
/// to the other shard, `?` answers the number of the shard, `*` a lot, `.` ends the connection.
struct Echo {
    shard: ShardId,
    posts: Arc<[Post<Moved>]>,
    rest: std::collections::HashMap<ConnId, Vec<u8>>,
    accept_at: Instant,
}

impl Echo {
    fn start(driver: Driver) -> Runtime<Moved> {
        Echo::start_accepting_at(driver, Instant::now())
    }

    fn start_accepting_at(driver: Driver, accept_at: Instant) -> Runtime<Moved> {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let ring = RingSizes::default();
        let gather = Duration::from_micros(100);
        let (backlog, shards, tls) = (1024, SHARDS, None);
        let config = RtConfig { listen, backlog, shards, driver, gather, ring, tls };
        let make = move |seat: Seat<Moved>| Echo {
            shard: seat.shard,
            posts: seat.posts,
            rest: Default::default(),
            accept_at,
        };
        Runtime::start(&config, make).unwrap()
    }

    fn eat(&mut self, io: &mut Io, conn: ConnId, mut bytes: Vec<u8>) -> Flow {
        let rest = bytes.split_off(bytes.len().min(BUDGET));
        for at in 0..bytes.len() {
            match bytes[at] {
                b'!' => panic!("asked for"),
                b'?' => io.send(conn, &[b'0' + self.shard.0 as u8]),
                b'.' => io.finish(conn),
                b'*' => io.send(conn, &[b'*'; MUCH]),
                b'>' => {
                    let mut unread = bytes.split_off(at + 1);
                    unread.extend(rest);
                    let to = usize::from(1 - self.shard.0);
                    let moved = Moved::Conn(io.release(conn).unwrap(), unread);
                    assert!(self.posts[to].try_post(vec![moved]).is_ok());
                    return Flow::Wait;
                }
                byte => io.send(conn, &[byte]),
            }
        }
        if io.unsent(conn) > UNSENT_HIGH {
            io.pause(conn);
        }
        if rest.is_empty() {
            return Flow::Wait;
        }
        self.rest.insert(conn, rest);
        Flow::Again
    }
}

impl Handler for Echo {
    type Message = Moved;

    fn opened(&mut self, _: &mut Io, _: ConnId, _: SocketAddr) {}

    fn received(&mut self, io: &mut Io, conn: ConnId, bytes: &[u8]) -> Flow {
        let mut all = self.rest.remove(&conn).unwrap_or_default();
        all.extend_from_slice(bytes);
        self.eat(io, conn, all)
    }

    fn drained(&mut self, io: &mut Io, conn: ConnId) {
        io.resume(conn);
    }

    fn closed(&mut self, _: &mut Io, conn: ConnId, _: Closed) {
        self.rest.remove(&conn);
    }

    fn inbox(&mut self, io: &mut Io, batch: Vec<Moved>) {
        for message in batch {
            match message {
                Moved::Conn(released, unread) => {
                    let conn = io.adopt(released);
                    assert_eq!(self.eat(io, conn, unread), Flow::Wait);
                }
                Moved::Panic => panic!("asked for"),
                Moved::Stall => std::thread::sleep(Duration::from_secs(60)),
            }
        }
    }

    fn tick(&mut self, io: &mut Io, _: Now) {
        if self.accept_at <= Instant::now() {
            io.accept();
        }
    }

    fn turn_end(&mut self, _: &mut Io) {}
}

/// The client side of a connection, which fails instead of hanging.
fn connect(runtime: &Runtime<Moved>) -> TcpStream {
    let stream = TcpStream::connect(runtime.local_addr()).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

fn ask(stream: &mut TcpStream, say: &[u8], answer: &mut [u8]) {
    stream.write_all(say).unwrap();
    stream.read_exact(answer).unwrap();
}

fn total<M: Send + 'static>(runtime: &Runtime<M>) -> StatValues {
    let mut sum = StatValues::default();
    runtime.stats().iter().for_each(|s| sum.add(&s.values()));
    sum
}

/// Tests that take the driver as an argument.
macro_rules! on_both_drivers {
    ($($test:ident)*) => {
        mod on_the_ring {
            $(#[test] fn $test() { super::$test(super::Driver::Ring); })*
        }
        mod on_streams {
            $(#[test] fn $test() { super::$test(super::Driver::Streams); })*
        }
    };
}

on_both_drivers! {
    both_shards_accept_and_answer
    a_connection_moves_between_shards_with_its_unread_and_unsent_bytes
    a_panic_closes_its_connection_and_harms_nobody_else
    peers_that_reset_before_they_are_accepted_hold_nobody_up
    without_descriptors_accepting_pauses_and_goes_on_later
    a_panic_outside_of_a_connection_ends_the_process
    a_shard_that_stands_still_ends_the_process
    a_slow_reader_stops_being_read
    what_was_queued_before_the_end_arrives_though_the_peer_sent_more
    a_peer_that_only_listens_gets_what_was_queued_before_the_end
    ping_pong_under_cpu_load_never_hangs
}

/// The name of a test on both drivers.
fn path(driver: Driver, test: &str) -> String {
    let module = if driver == Driver::Ring { "on_the_ring" } else { "on_streams" };
    format!("rt::tests::{module}::{test}")
}

fn both_shards_accept_and_answer(driver: Driver) {
    let runtime = Echo::start(driver);
    let mut seen = [0; 2];
    for _ in 0..64 {
        let mut answer = [0];
        ask(&mut connect(&runtime), b"?", &mut answer);
        seen[usize::from(answer[0] - b'0')] += 1;
    }
    assert!(seen[0] > 0 && seen[1] > 0, "connections are spread: {seen:?}");
    assert_eq!(total(&runtime).accepted, 64);
}

fn a_connection_moves_between_shards_with_its_unread_and_unsent_bytes(driver: Driver) {
    let runtime = Echo::start(driver);
    let mut stream = connect(&runtime);
    let mut before = [0];
    ask(&mut stream, b"?", &mut before);
    for _ in 0..200 {
        let mut answer = [0; 9];
        ask(&mut stream, b"a?b>c?>d?e", &mut answer[..8]);
        let here = before[0];
        let there = b'0' + b'1' - here;
        assert_eq!(&answer[..8], &[b'a', here, b'b', b'c', there, b'd', here, b'e']);
    }
    assert_eq!(total(&runtime).adopted, 400);
}

fn a_panic_closes_its_connection_and_harms_nobody_else(driver: Driver) {
    let runtime = Echo::start(driver);
    let mut others = (0..8).map(|_| connect(&runtime)).collect::<Vec<_>>();
    for _ in 0..4 {
        let mut bad = connect(&runtime);
        bad.write_all(b"!").unwrap();
        // Unlike `read` it goes on after a signal.
        assert_eq!(bad.read_to_end(&mut Vec::new()).unwrap(), 0, "the connection is closed");
    }
    for other in &mut others {
        ask(other, b"x", &mut [0]);
    }
    assert_eq!(total(&runtime).panics, 4);
}

fn peers_that_reset_before_they_are_accepted_hold_nobody_up(driver: Driver) {
    const RESETS: u64 = 200;
    let accept_at = Instant::now() + Duration::from_secs(3);
    let runtime = Echo::start_accepting_at(driver, accept_at);
    for _ in 0..RESETS {
        let stream = connect(&runtime);
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
    assert!(Instant::now() < accept_at, "they were to be reset before");
    ask(&mut connect(&runtime), b"x", &mut [0]);
    assert!(total(&runtime).accept_errors > RESETS / 4, "resets were met: {:?}", total(&runtime));
}

fn without_descriptors_accepting_pauses_and_goes_on_later(driver: Driver) {
    let test = path(driver, "without_descriptors_accepting_pauses_and_goes_on_later");
    if let Some(output) = in_own_process(&test) {
        return assert!(output.status.success(), "{output:?}");
    }
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(128);
    setrlimit(Resource::Nofile, limit).unwrap();
    let runtime = Echo::start(driver);
    let mut fill = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        fill.push(file);
    }
    fill.pop();
    let mut waiting = connect(&runtime);
    std::thread::sleep(Duration::from_millis(500));
    let errors = total(&runtime).accept_errors;
    let most = 15 * u64::from(SHARDS);
    assert!(
        (1..=most).contains(&errors),
        "{errors} failed accepts in 500 ms {:?}",
        total(&runtime)
    );
    drop(fill);
    ask(&mut waiting, b"x", &mut [0]);
}

fn a_panic_outside_of_a_connection_ends_the_process(driver: Driver) {
    let test = path(driver, "a_panic_outside_of_a_connection_ends_the_process");
    if let Some(output) = in_own_process(&test) {
        return assert_aborted(&output);
    }
    let runtime = Echo::start(driver);
    runtime.posts()[0].post(vec![Moved::Panic]);
    std::thread::sleep(Duration::from_secs(10));
}

fn a_shard_that_stands_still_ends_the_process(driver: Driver) {
    let test = path(driver, "a_shard_that_stands_still_ends_the_process");
    let start = Instant::now();
    if let Some(output) = in_own_process(&test) {
        assert_aborted(&output);
        return assert!(start.elapsed() >= Duration::from_secs(5), "{:?}", start.elapsed());
    }
    let runtime = Echo::start(driver);
    runtime.posts()[1].post(vec![Moved::Stall]);
    std::thread::sleep(Duration::from_secs(30));
}

#[test]
fn the_watchdog_wakes_a_shard_that_does_not_tick() {
    const PULSES: u64 = 5;
    let stats = [Arc::<ShardStats>::default(), Arc::default()];
    let stop = AtomicBool::new(false);
    let pulsed = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            watchdog::watch(&stats, &stop, |shard| {
                pulsed.fetch_add(u64::from(shard == 1), Ordering::Relaxed);
            });
        });
        let until = Instant::now() + Duration::from_secs(30);
        while pulsed.load(Ordering::Relaxed) < PULSES && Instant::now() < until {
            stats::count(&stats[0].ticks, 1);
            std::thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let pulses = stats.each_ref().map(|stats| stats.values().pulses);
    assert!(pulses[1] >= PULSES && pulses[0] < PULSES, "{pulses:?}");
}

fn a_slow_reader_stops_being_read(driver: Driver) {
    let runtime = Echo::start(driver);
    let mut slow = connect(&runtime);
    slow.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let block = vec![b'x'; 64 * 1024];
    let mut sent = 0;
    while let Ok(n) = slow.write(&block) {
        sent += n;
        assert!(sent < 64 << 20, "the server reads on though nobody takes its answers");
    }
    ask(&mut connect(&runtime), b"x", &mut [0]);
    let mut left = sent;
    let mut buffer = block;
    while left > 0 {
        let take = left.min(buffer.len());
        slow.read_exact(&mut buffer[..take]).unwrap();
        left -= take;
    }
}

fn what_was_queued_before_the_end_arrives_though_the_peer_sent_more(driver: Driver) {
    let runtime = Echo::start(driver);
    for _ in 0..20 {
        let mut stream = connect(&runtime);
        let mut say = b"bye.".to_vec();
        say.resize(300_000, b'x');
        let _ = stream.write_all(&say);
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"bye");
    }
}

fn a_peer_that_only_listens_gets_what_was_queued_before_the_end(driver: Driver) {
    let runtime = Echo::start(driver);
    for _ in 0..10 {
        let mut stream = connect(&runtime);
        stream.write_all(b"*.").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), MUCH);
    }
}

fn ping_pong_under_cpu_load_never_hangs(driver: Driver) {
    let runtime = Echo::start(driver);
    let stop = Arc::new(AtomicBool::new(false));
    let burn = (0..2).map(|_| {
        let stop = stop.clone();
        std::thread::spawn(move || while !stop.load(Ordering::Relaxed) {})
    });
    let burn = burn.collect::<Vec<_>>();
    let address = runtime.local_addr();
    let end = Instant::now() + Duration::from_secs(8);
    let clients = (0..4).map(|_| {
        std::thread::spawn(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut trips = 0;
            while Instant::now() < end {
                ask(&mut stream, b"x", &mut [0]);
                trips += 1;
            }
            trips
        })
    });
    let clients = clients.collect::<Vec<_>>();
    let trips: u32 = clients.into_iter().map(|c| c.join().expect("no trip hangs")).sum();
    stop.store(true, Ordering::Relaxed);
    burn.into_iter().for_each(|b| b.join().unwrap());
    assert!(trips > 1_000, "only {trips} round trips");
    println!("{trips} round trips, {} pulses", total(&runtime).pulses);
}
