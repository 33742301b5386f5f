//! Goal: whatever a handler does to its connections, each byte arrives once and in order, or its
//! connection ends. Method: peers send a known stream of bytes; the handler compares it, echoes it,
//! and at random pauses, moves the connection to the other shard, leaves bytes for later, asks for
//! another turn or closes; the peers compare what comes back. All from a seed.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::atomic::AtomicU64;

use super::*;

/// Rings so small that everything that can be full is full at times.
const TINY: RingSizes = RingSizes { submissions: 2, completions: 4, buffers: 2, buffer_bytes: 64 };
/// Peers at a time, each with one connection after another.
const PEERS: u64 = 8;
const BYTES_MAX: u64 = 60_000;

#[derive(Default)]
struct Tally {
    wrong: AtomicU64,
    opened: AtomicU64,
    closed: AtomicU64,
    moved: AtomicU64,
    paused: AtomicU64,
    finished: AtomicU64,
}

/// The byte at a place of a stream.
fn byte(stream: u64, at: u64) -> u8 {
    (stream ^ at).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(at >> 3).to_be_bytes()[0]
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

/// What the handler knows of a connection: the number of its stream (its first 8 bytes), how much
/// of it has come, and what it has left for later.
#[derive(Default)]
struct Talk {
    head: Vec<u8>,
    at: u64,
    kept: Vec<u8>,
}

struct Move(Released, Talk);

struct Chaos {
    shard: ShardId,
    posts: Arc<[Post<Move>]>,
    talks: HashMap<ConnId, Talk>,
    paused: Vec<ConnId>,
    random: Random,
    /// How rarely it closes connections.
    rarely: u64,
    tally: Arc<Tally>,
}

impl Chaos {
    fn start(driver: Driver, ring: RingSizes, seed: u64, tally: &Arc<Tally>) -> Runtime<Move> {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let gather = Duration::from_micros(100);
        let (backlog, shards, tls) = (1024, SHARDS, None);
        let config = RtConfig { listen, backlog, shards, driver, gather, ring, tls };
        let tally = tally.clone();
        let make = move |seat: Seat<Move>| Chaos {
            shard: seat.shard,
            posts: seat.posts,
            talks: HashMap::new(),
            paused: Vec::new(),
            random: Random(seed * 2 + u64::from(seat.shard.0) + 1),
            // The smaller the buffers, the more often it is called.
            rarely: 80_000 / u64::from(ring.buffer_bytes),
            tally: tally.clone(),
        };
        Runtime::start(&config, make).unwrap()
    }

    fn pause(&mut self, io: &mut Io, conn: ConnId) {
        self.tally.paused.fetch_add(1, Ordering::Relaxed);
        io.pause(conn);
        self.paused.push(conn);
    }

    fn eat(&mut self, io: &mut Io, conn: ConnId, bytes: &[u8]) -> Flow {
        let Some(talk) = self.talks.get_mut(&conn) else { return Flow::Wait };
        if io.is_paused(conn) {
            self.tally.wrong.fetch_add(1, Ordering::Relaxed);
        }
        let mut all = std::mem::take(&mut talk.kept);
        all.extend_from_slice(bytes);
        let later = self.random.below(4) == 0;
        if later {
            let now = self.random.below(all.len() as u64 + 1) as usize;
            talk.kept = all.split_off(now);
        }
        for &b in &all {
            if talk.head.len() < 8 {
                talk.head.push(b);
                continue;
            }
            let stream = u64::from_be_bytes(talk.head[..].try_into().unwrap());
            if b != byte(stream, talk.at) {
                self.tally.wrong.fetch_add(1, Ordering::Relaxed);
                io.close(conn);
                return Flow::Wait;
            }
            talk.at += 1;
        }
        let start = all.len() - all.len().min(talk.at as usize);
        io.send(conn, &all[start..]);
        match self.random.below(16) {
            0..3 => self.move_it(io, conn),
            3..5 => self.pause(io, conn),
            5 => io.turn_again(),
            8 => io.expect_post(true),
            9 => io.expect_post(false),
            6 if self.random.below(self.rarely) == 0 => {
                self.tally.finished.fetch_add(1, Ordering::Relaxed);
                io.finish(conn);
            }
            7 if self.random.below(self.rarely) == 0 => io.close(conn),
            _ if io.unsent(conn) > 16 << 10 => self.pause(io, conn),
            _ => {}
        }
        match later {
            true => Flow::Again,
            false => Flow::Wait,
        }
    }

    fn move_it(&mut self, io: &mut Io, conn: ConnId) {
        let Some(released) = io.release(conn) else { return };
        let talk = self.talks.remove(&conn).unwrap();
        self.tally.moved.fetch_add(1, Ordering::Relaxed);
        let to = usize::from(1 - self.shard.0);
        assert!(self.posts[to].try_post(vec![Move(released, talk)]).is_ok());
    }
}

impl Handler for Chaos {
    type Message = Move;

    fn opened(&mut self, io: &mut Io, conn: ConnId, _: SocketAddr) {
        self.tally.opened.fetch_add(1, Ordering::Relaxed);
        self.talks.insert(conn, Talk::default());
        if self.random.below(8) == 0 {
            self.pause(io, conn);
        }
    }

    fn received(&mut self, io: &mut Io, conn: ConnId, bytes: &[u8]) -> Flow {
        self.eat(io, conn, bytes)
    }

    fn drained(&mut self, io: &mut Io, conn: ConnId) {
        io.resume(conn);
    }

    fn closed(&mut self, _: &mut Io, conn: ConnId, _: Closed) {
        self.tally.closed.fetch_add(1, Ordering::Relaxed);
        assert!(self.talks.remove(&conn).is_some(), "closed once, and not after it has moved");
    }

    fn inbox(&mut self, io: &mut Io, batch: Vec<Move>) {
        for Move(released, talk) in batch {
            let conn = io.adopt(released);
            self.talks.insert(conn, talk);
            match self.random.below(3) {
                0 => self.pause(io, conn),
                1 => self.move_it(io, conn),
                _ => {}
            }
            io.call_again(conn);
        }
    }

    fn tick(&mut self, io: &mut Io, _: Now) {
        io.accept();
        for conn in std::mem::take(&mut self.paused) {
            io.resume(conn);
        }
    }

    fn turn_end(&mut self, _: &mut Io) {}
}

/// A connection of a peer, to its end. Answers whether it has got everything back.
fn talk(address: SocketAddr, stream: u64, random: &mut Random) -> Result<bool, String> {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    socket.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
    let length = random.below(BYTES_MAX);
    let leaves_at = if random.below(8) == 0 { random.below(length + 1) } else { length };
    let chunk_max = [1, 40, 700, 9_000][random.below(4) as usize];
    let mut chunks = Random(random.below(u64::MAX - 1) + 1);
    let mut writer = socket.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut bytes = stream.to_be_bytes().to_vec();
            bytes.extend((0..length).map(|at| byte(stream, at)));
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let n = (1 + chunks.below(chunk_max) as usize).min(rest.len());
                // The server may have closed it.
                if writer.write_all(&rest[..n]).is_err() {
                    return;
                }
                rest = &rest[n..];
                if chunks.below(20) == 0 {
                    std::thread::sleep(Duration::from_millis(chunks.below(5)));
                }
            }
        });
        let result = hear(&socket, stream, leaves_at);
        if leaves_at < length {
            socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
        }
        let _ = socket.shutdown(std::net::Shutdown::Both);
        result
    })
}

fn hear(mut socket: &TcpStream, stream: u64, until: u64) -> Result<bool, String> {
    let (mut heard, mut buffer) = (0, [0; 4_096]);
    while heard < until {
        let n = match socket.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
            Err(error) => return Err(format!("stream {stream} at {heard} of {until}: {error}")),
        };
        for &b in &buffer[..n] {
            if b != byte(stream, heard) {
                return Err(format!("stream {stream}: a wrong byte at {heard}"));
            }
            heard += 1;
        }
    }
    Ok(true)
}

fn run(driver: Driver, sizes: RingSizes, seed: u64, rounds: u64) -> StatValues {
    println!("seed {seed}");
    let tally = Arc::<Tally>::default();
    let runtime = Chaos::start(driver, sizes, seed, &tally);
    let address = runtime.local_addr();
    let whole: u64 = std::thread::scope(|scope| {
        let peers: Vec<_> = (0..PEERS)
            .map(|peer| {
                scope.spawn(move || {
                    let mut random = Random(seed * 1_000 + peer + 1);
                    let streams = (0..rounds).map(|round| peer * 1_000_000 + round);
                    streams.map(|s| u64::from(talk(address, s, &mut random).unwrap())).sum::<u64>()
                })
            })
            .collect();
        peers.into_iter().map(|peer| peer.join().expect("no wrong byte and no hang")).sum()
    });
    let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let until = Instant::now() + Duration::from_secs(30);
    while count(&tally.closed) < PEERS * rounds && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(count(&tally.wrong), 0);
    assert_eq!(count(&tally.opened), PEERS * rounds);
    assert_eq!(count(&tally.closed), PEERS * rounds, "each connection ends once");
    assert!(whole > PEERS * rounds / 2, "only {whole} got everything");
    let values = total(&runtime);
    assert_eq!(values.panics, 0);
    assert!(count(&tally.moved) > 0 && count(&tally.paused) > 0, "both were met");
    assert!(count(&tally.finished) > 0 || rounds < 10, "in a long run it is met");
    println!("{whole} whole, {} moved, {values:?}", count(&tally.moved));
    values
}

#[test]
fn no_byte_is_lost_doubled_or_swapped_on_streams() {
    run(Driver::Streams, RingSizes::default(), 1, 12);
}

#[test]
fn no_byte_is_lost_doubled_or_swapped_on_the_ring() {
    run(Driver::Ring, RingSizes::default(), 2, 25);
}

#[test]
fn no_byte_is_lost_doubled_or_swapped_on_a_ring_that_is_always_full() {
    for seed in 3..5 {
        let values = run(Driver::Ring, TINY, seed, 4);
        assert!(values.ring_no_buffers > 0 && values.ring_stops > 0, "{values:?}");
    }
}
