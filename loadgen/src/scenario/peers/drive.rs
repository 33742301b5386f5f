//! The load itself: one thread, one epoll instance, every client connection in it.
//!
//! One loop for all protocols, so that what differs between two rows is the server and its protocol
//! and not the generator's runtime. A connection's bytes are gathered over a turn of the loop and
//! written once.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chatring_bare::cpu::thread_cpu_time;
use rustix::event::{Timespec, epoll};
use serde::Serialize;

use super::books::{Books, Counts, Progress, Workload};
use crate::latency::Percentiles;
use crate::limits::START_STALLED;
use crate::pool::fresh_random;
use crate::stamp::RunTag;

/// Bytes read from a socket at once.
const SCRATCH_BYTES: usize = 64 * 1024;
/// Longest part of a message that is kept until its rest arrives.
const PARTIAL_BYTES_MAX: usize = 1024 * 1024;
/// Connections that may be signing in at once: below the shortest accept queue of the servers.
const SIGNING_IN_MAX: usize = 64;
/// Sockets that one wait tells of.
const EVENTS_MAX: usize = 1024;
/// How often the loop looks at the clock when nothing happens, and clients at theirs.
const LOOK: Duration = Duration::from_millis(50);
/// After everything has arrived: time for what should not arrive (late duplicates).
const QUIET: Duration = Duration::from_millis(300);

/// What a client tells of what it received.
#[derive(Debug)]
pub enum Said<'a> {
    /// It is signed in and receives. Said once.
    Ready,
    /// The message with this number is acked.
    Acked(u32),
    /// A body arrived.
    Delivered(&'a [u8]),
}

/// One connection's side of a protocol, without I/O. Errors are for people.
pub trait Client {
    /// Writes what opens the conversation.
    fn open(&mut self, out: &mut Vec<u8>) -> Result<(), String>;

    /// Takes received bytes: the whole messages at the beginning of `input`. Gives how many bytes
    /// that were; the rest comes again with what follows it.
    fn receive(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        say: &mut dyn FnMut(Said<'_>),
    ) -> Result<usize, String>;

    /// Sends a message. The one before is acked.
    fn send(&mut self, number: u32, body: &[u8], out: &mut Vec<u8>) -> Result<(), String>;

    /// Called every 50 ms.
    fn tick(&mut self, _out: &mut Vec<u8>) -> Result<(), String> {
        Ok(())
    }
}

/// A client and whose it is. A user may have several connections, of which one sends.
#[derive(Debug)]
pub struct Seat<C> {
    /// The user.
    pub user: u32,
    /// Whether it sends the user's messages.
    pub sends: bool,
    /// The protocol.
    pub client: C,
}

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// Who sends to whom.
    pub workload: Workload,
    /// Length of a body.
    pub body_bytes: usize,
    /// Load before the measured time.
    pub warmup: Duration,
    /// The measured time.
    pub duration: Duration,
    /// How long to wait at the end while nothing that is outstanding arrives.
    pub patience: Duration,
    /// Set when everything is to end.
    pub stop: &'a AtomicBool,
}

/// CPU time that was used up to a moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// By the server.
    pub server: Duration,
    /// On the server's core, by anybody.
    pub core: Duration,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Outcome {
    /// Of the whole run with its warm-up.
    pub counts: Counts,
    /// Deliveries a second within the measured time.
    pub delivered_per_s: f64,
    /// Acks a second within the measured time.
    pub acked_per_s: f64,
    /// From the send to the ack, of messages sent within the measured time.
    pub ack: Percentiles,
    /// From the send to each delivery, of the same messages.
    pub deliver: Percentiles,
    /// The server's CPU time within the measured time ÷ deliveries, in microseconds.
    pub server_cpu_us: f64,
    /// The server's CPU time as a share of the measured time.
    pub server_cpu_percent: f64,
    /// What others took of the server's core, as a share of the measured time.
    pub others_percent: f64,
    /// The generator's CPU time as a share of the measured time.
    pub loadgen_cpu_percent: f64,
}

/// Signs everybody in, puts the load on, waits for what is outstanding. `usage` says what CPU time
/// has been used.
///
/// # Errors
/// A connection broke, a server broke its protocol or stopped answering while users signed in.
pub fn run<C: Client>(
    server: SocketAddr,
    seats: Vec<Seat<C>>,
    load: &Load<'_>,
    usage: impl Fn() -> Usage,
) -> Result<Outcome, String> {
    let mut drive = Drive::new(load, seats.len())?;
    drive.sign_in(server, seats)?;
    drive.talk(&usage)?;
    drive.drain()?;
    Ok(drive.outcome())
}

struct Drive<'a, C> {
    load: &'a Load<'a>,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    scratch: Vec<u8>,
    links: Vec<Link<C>>,
    /// By talk: the connection that sends in it.
    senders: Vec<usize>,
    /// Connections with something to write.
    dirty: Vec<usize>,
    state: State,
    ticked: Instant,
    samples: Vec<Sample>,
}

struct Link<C> {
    seat: Seat<C>,
    stream: TcpStream,
    partial: Vec<u8>,
    out: Vec<u8>,
    /// Whether the socket is waited for to take more.
    blocked: bool,
}

/// What received messages change.
struct State {
    origin: Instant,
    books: Books,
    ready: usize,
    /// Talks whose next message is due.
    due: VecDeque<u32>,
    workload: Workload,
}

#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    own_cpu: Duration,
    usage: Usage,
}

impl<'a, C: Client> Drive<'a, C> {
    fn new(load: &'a Load<'a>, links: usize) -> Result<Drive<'a, C>, String> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| e.to_string())?;
        let run = RunTag::new(fresh_random(links as u64).draw());
        let books = Books::new(load.workload, run, load.body_bytes);
        Ok(Drive {
            load,
            epoll,
            events: Vec::with_capacity(EVENTS_MAX),
            scratch: vec![0; SCRATCH_BYTES],
            links: Vec::with_capacity(links),
            senders: vec![usize::MAX; load.workload.talks() as usize],
            dirty: Vec::new(),
            state: State {
                origin: Instant::now(),
                books,
                ready: 0,
                due: VecDeque::new(),
                workload: load.workload,
            },
            ticked: Instant::now(),
            samples: Vec::new(),
        })
    }

    fn sign_in(&mut self, server: SocketAddr, seats: Vec<Seat<C>>) -> Result<(), String> {
        let all = seats.len();
        let mut seats = seats.into_iter();
        let mut moved = (0, Instant::now());
        while self.state.ready < all {
            while self.links.len() < self.state.ready + SIGNING_IN_MAX
                && let Some(seat) = seats.next()
            {
                self.connect(server, seat)?;
            }
            self.turn(LOOK)?;
            if self.state.ready != moved.0 {
                moved = (self.state.ready, Instant::now());
            }
            if moved.1.elapsed() > START_STALLED {
                return Err(format!("{} of {all} connections signed in, then nothing", moved.0));
            }
        }
        Ok(())
    }

    fn connect(&mut self, server: SocketAddr, mut seat: Seat<C>) -> Result<(), String> {
        let place = self.links.len();
        if seat.sends
            && let Some(talk) = self.state.workload.sends_in(seat.user)
        {
            self.senders[talk as usize] = place;
        }
        let stream = TcpStream::connect(server).map_err(|e| format!("connect: {e}"))?;
        stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true)).map_err(text)?;
        let data = epoll::EventData::new_u64(place as u64);
        epoll::add(&self.epoll, &stream, data, epoll::EventFlags::IN).map_err(text)?;
        let mut out = Vec::new();
        seat.client.open(&mut out)?;
        self.links.push(Link { seat, stream, partial: Vec::new(), out, blocked: false });
        self.dirty.push(place);
        Ok(())
    }

    /// Sends from now to the end of the measured time.
    fn talk(&mut self, usage: &impl Fn() -> Usage) -> Result<(), String> {
        let sample = || Sample { at: Instant::now(), own_cpu: thread_cpu_time(), usage: usage() };
        let from = Instant::now() + self.load.warmup;
        let to = from + self.load.duration;
        self.state.books.measure(self.state.ns(from)..self.state.ns(to));
        self.state.due.extend(0..self.load.workload.talks());
        loop {
            let now = Instant::now();
            if now >= from && self.samples.is_empty() {
                self.samples.push(sample());
            }
            if now >= to {
                self.samples.push(sample());
                return Ok(());
            }
            self.send_due()?;
            let next = if self.samples.is_empty() { from } else { to };
            self.turn(next.saturating_duration_since(now).min(LOOK))?;
        }
    }

    fn send_due(&mut self) -> Result<(), String> {
        while let Some(talk) = self.state.due.pop_front() {
            let place = self.senders[talk as usize];
            let link = self.links.get_mut(place).ok_or("a talk without a sender")?;
            let now_ns = self.state.origin.elapsed().as_nanos() as u64;
            let (number, body) = self.state.books.sending(talk, now_ns);
            link.seat.client.send(number, &body, &mut link.out)?;
            self.dirty.push(place);
        }
        Ok(())
    }

    /// Waits for what is outstanding, and a moment for what is not.
    fn drain(&mut self) -> Result<(), String> {
        let mut last = (u64::MAX, Instant::now());
        let mut done_since = None;
        loop {
            self.state.due.clear();
            let left = self.state.books.outstanding();
            if left != last.0 {
                last = (left, Instant::now());
            }
            if left == 0 {
                done_since.get_or_insert_with(Instant::now);
            }
            let quiet = done_since.is_some_and(|since: Instant| since.elapsed() >= QUIET);
            if quiet || last.1.elapsed() >= self.load.patience {
                return Ok(());
            }
            self.turn(LOOK)?;
        }
    }

    /// Writes what was gathered, waits once, and takes what came.
    fn turn(&mut self, longest: Duration) -> Result<(), String> {
        if self.load.stop.load(Ordering::Relaxed) {
            return Err("stopped".to_owned());
        }
        for place in self.dirty.drain(..) {
            self.links[place].flush(&self.epoll, place)?;
        }
        let timeout = Timespec {
            tv_sec: longest.as_secs() as i64,
            tv_nsec: i64::from(longest.subsec_nanos()),
        };
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut self.events),
            Some(&timeout),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.to_string()),
        }
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            let place = event.data.u64() as usize;
            let link = &mut self.links[place];
            link.receive(&mut self.scratch, &mut self.state)?;
            if !link.out.is_empty() {
                self.dirty.push(place);
            }
        }
        self.events = events;
        if self.ticked.elapsed() >= LOOK {
            self.ticked = Instant::now();
            for (place, link) in self.links.iter_mut().enumerate() {
                link.seat.client.tick(&mut link.out)?;
                if !link.out.is_empty() {
                    self.dirty.push(place);
                }
            }
        }
        Ok(())
    }

    fn outcome(&self) -> Outcome {
        let books = &self.state.books;
        let [from, to] = [self.samples[0], self.samples[1]];
        let seconds = (to.at - from.at).as_secs_f64();
        let server_cpu = to.usage.server.saturating_sub(from.usage.server).as_secs_f64();
        let core_cpu = to.usage.core.saturating_sub(from.usage.core).as_secs_f64();
        let own_cpu = (to.own_cpu - from.own_cpu).as_secs_f64();
        Outcome {
            counts: books.counts(),
            delivered_per_s: books.delivered_measured as f64 / self.load.duration.as_secs_f64(),
            acked_per_s: books.acked_measured as f64 / self.load.duration.as_secs_f64(),
            ack: books.ack.percentiles(),
            deliver: books.deliver.percentiles(),
            server_cpu_us: server_cpu * 1e6 / (books.delivered_measured.max(1) as f64),
            server_cpu_percent: server_cpu / seconds * 100.0,
            others_percent: (core_cpu - server_cpu).max(0.0) / seconds * 100.0,
            loadgen_cpu_percent: own_cpu / seconds * 100.0,
        }
    }
}

impl<C: Client> Link<C> {
    fn receive(&mut self, scratch: &mut [u8], state: &mut State) -> Result<(), String> {
        let count = match self.stream.read(scratch) {
            Ok(0) => return Err(format!("the server closed user {}'s connection", self.seat.user)),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(format!("user {}: {error}", self.seat.user)),
        };
        let now_ns = state.origin.elapsed().as_nanos() as u64;
        let user = self.seat.user;
        let mut say = |said: Said<'_>| state.said(user, &said, now_ns);
        if self.partial.is_empty() {
            let input = &scratch[..count];
            let used = self.seat.client.receive(input, &mut self.out, &mut say);
            let used = used.map_err(|fault| format!("user {user}: {fault}"))?;
            self.partial.extend_from_slice(&input[used..]);
        } else {
            self.partial.extend_from_slice(&scratch[..count]);
            let used = self.seat.client.receive(&self.partial, &mut self.out, &mut say);
            let used = used.map_err(|fault| format!("user {user}: {fault}"))?;
            self.partial.drain(..used);
        }
        match self.partial.len() > PARTIAL_BYTES_MAX {
            true => Err(format!("user {user}: a message without end")),
            false => Ok(()),
        }
    }

    fn flush(&mut self, epoll: &OwnedFd, place: usize) -> Result<(), String> {
        let mut written = 0;
        while written < self.out.len() {
            match self.stream.write(&self.out[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(format!("user {}: {error}", self.seat.user)),
            }
        }
        self.out.drain(..written);
        if self.out.is_empty() == self.blocked {
            self.blocked = !self.out.is_empty();
            let out =
                if self.blocked { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
            let data = epoll::EventData::new_u64(place as u64);
            epoll::modify(epoll, &self.stream, data, epoll::EventFlags::IN | out).map_err(text)?;
        }
        Ok(())
    }
}

impl State {
    fn said(&mut self, user: u32, said: &Said<'_>, now_ns: u64) {
        let (talk, progress) = match said {
            Said::Ready => {
                self.ready += 1;
                return;
            }
            Said::Acked(number) => match self.workload.sends_in(user) {
                Some(talk) => (talk, self.books.acked(talk, *number, now_ns)),
                None => return,
            },
            Said::Delivered(body) => self.books.delivered(user, body, now_ns),
        };
        if progress == Progress::Complete {
            self.due.push_back(talk);
        }
    }

    fn ns(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.origin).as_nanos() as u64
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests;
