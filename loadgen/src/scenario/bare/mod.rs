//! `bare`: the load of `direct` on the bare relay, over the same sockets, plan and clock.
//!
//! Nothing of a chat is left in it: frames of 40 bytes instead of sessions, and books that only
//! check that acks and messages come once, in order and unchanged.

mod clients;

use std::fmt;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use chatring_bare::cpu::thread_cpu_time;
use serde::Serialize;

use self::clients::{Clients, Phase, State};
use super::{Moment, RunError, SOCKETS, Stall};
use crate::cli;
use crate::latency::Percentiles;
use crate::limits::START_STALLED;
use crate::machine::FineTimer;
use crate::plan::{OpenLoop, Rate, Segment};
use crate::pool::fresh_random;
use crate::stamp::RunTag;
use crate::threads::{self, Line, Order};

/// How often a waiting thread looks.
const LOOK: Duration = Duration::from_millis(5);
/// How long one connection may take to stand.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long to wait at the end while nothing that is outstanding arrives.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a run comes to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Relayed {
    /// Connections.
    pub users: u32,
    /// Messages a second that the plan asked for, in the open loop.
    pub rate_per_s: Option<u32>,
    /// Messages in flight per user, in the closed loop.
    pub window: Option<u32>,
    /// Length of the measured time.
    pub duration_s: f64,
    /// Messages sent, warm-up included, as the next ones.
    pub sent: u64,
    /// Messages acked.
    pub acked: u64,
    /// Messages that reached the other user.
    pub delivered: u64,
    /// Acks and messages that were not the next one of their sender, or not as they were sent.
    pub faults: u64,
    /// Acks that arrived in the measured time, a second.
    pub acked_per_s: f64,
    /// Messages that arrived in the measured time, a second.
    pub delivered_per_s: f64,
    /// CPU time of the generator, as a share of the measured time.
    pub loadgen_cpu_percent: f64,
    /// From the intended send time to the ack.
    pub ack: Percentiles,
    /// From the intended send time to the arrival at the other user.
    pub deliver: Percentiles,
    /// Why the run ended before its plan did, if so.
    pub cut_short: Option<String>,
}

impl Relayed {
    /// Whether everything came once, in order and unchanged.
    pub fn is_good(&self) -> bool {
        let whole = self.acked == self.sent && self.delivered == self.sent;
        whole && self.faults == 0 && self.cut_short.is_none()
    }
}

/// The form for people.
impl fmt::Display for Relayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Relayed { users, duration_s, sent, acked, delivered, faults, .. } = self;
        writeln!(f, "{users} users, {duration_s} s measured, 40-byte messages")?;
        if let Some(reason) = &self.cut_short {
            writeln!(f, "  CUT SHORT: {reason}")?;
        }
        writeln!(f, "messages   {sent} sent, {acked} acked, {delivered} delivered")?;
        writeln!(f, "faults     {faults}")?;
        let (acked, delivered) = (self.acked_per_s, self.delivered_per_s);
        writeln!(f, "rate       {acked:.0} acked/s, {delivered:.0} delivered/s")?;
        for (name, p) in [("ack", &self.ack), ("deliver", &self.deliver)] {
            let Percentiles { p50, p90, p99, p999, max, .. } = p;
            write!(f, "{name:10} p50 {p50:.0}, p90 {p90:.0}, p99 {p99:.0}, p99.9 {p999:.0}, ")?;
            writeln!(f, "max {max:.0} µs")?;
        }
        writeln!(f, "generator  {:.0} % of its core", self.loadgen_cpu_percent)?;
        writeln!(f, "verdict    {}", if self.is_good() { "good" } else { "FAILED" })
    }
}

/// Runs it. `observer` is told when the measured time begins and ends.
///
/// # Errors
/// The run never began.
pub fn run(options: &cli::Bare, observer: &(dyn Fn(Moment) + Sync)) -> Result<Relayed, RunError> {
    let results = threads::run(1, |_, line| talk(options, observer, line));
    let mut results = results.map_err(RunError::io("threads and signals"))?;
    results.pop().expect("one thread has one result")
}

async fn talk(
    options: &cli::Bare,
    observer: &(dyn Fn(Moment) + Sync),
    mut line: Line,
) -> Result<Relayed, RunError> {
    let origin = Instant::now();
    let run = RunTag::new(fresh_random(u64::from(options.users)).draw());
    let state = State::new(run, options.users, options.window.is_some(), origin);
    let clients = Rc::new(Clients::new(state).map_err(RunError::io(SOCKETS))?);
    for user in 0..options.users {
        clients.add(user, connect(options.relay)?);
    }
    let turns = tokio::task::spawn_local(clients.clone().run());
    until_entered(&clients, &line, options.users).await?;
    let start = line.ready().await.ok_or(RunError::Stopped)?;
    let mut relayed = load(options, observer, &clients, start, &mut line).await?;
    let stalled = drain(&clients, &line).await;
    clients.with(|state| state.phase = Phase::Leaving);
    clients.wake();
    // It ends with the last turn; a fault of its own would have ended the thread.
    let _ = turns.await;
    clients.with(|state| state.close(&mut relayed));
    relayed.users = options.users;
    relayed.rate_per_s = options.rate;
    relayed.window = options.window;
    relayed.duration_s = options.duration.as_secs_f64();
    relayed.acked_per_s /= relayed.duration_s;
    relayed.delivered_per_s /= relayed.duration_s;
    relayed.cut_short = relayed.cut_short.or(stalled);
    Ok(relayed)
}

fn connect(relay: SocketAddr) -> Result<TcpStream, RunError> {
    let stream = TcpStream::connect_timeout(&relay, CONNECT_MAX);
    let stream = stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
    stream.map_err(|error| RunError::Node(format!("no relay at {relay}: {error}")))
}

async fn until_entered(clients: &Clients, line: &Line, users: u32) -> Result<(), RunError> {
    let mut stall = Stall::new(START_STALLED);
    loop {
        let (entered, fatal) = clients.with(|state| (state.entered, state.fatal.clone()));
        if let Some(reason) = fatal {
            return Err(RunError::Node(reason));
        }
        if entered == users {
            return Ok(());
        }
        if line.order() != Order::Prepare {
            return Err(RunError::Stopped);
        }
        if stall.is_stalled(u64::from(entered)) {
            return Err(RunError::Node(format!("{entered} of {users} users entered")));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Sends as planned, from the start to the end of the measured time.
async fn load(
    options: &cli::Bare,
    observer: &(dyn Fn(Moment) + Sync),
    clients: &Clients,
    start: Instant,
    line: &mut Line,
) -> Result<Relayed, RunError> {
    let from = start + options.warmup;
    let to = from + options.duration;
    let mut timer = FineTimer::new().map_err(RunError::io("a timer"))?;
    timer.sleep(start.saturating_duration_since(Instant::now())).await.ok();
    let start_ns = clients.with(|state| state.begin(start, from, to));
    let mut plan = options.rate.map(|per_s| {
        let length = options.warmup + options.duration;
        let segments = vec![Segment::steady(per_s, length)];
        let rate = Rate { segments, all_users: options.users, seed: options.seed };
        OpenLoop::new(&rate, options.users, 0, 1)
    });
    if let Some(window) = options.window {
        clients.with(|state| state.fill(window, start_ns));
        clients.wake();
    }
    let mut relayed = Relayed::default();
    let mut began = None;
    loop {
        let now = Instant::now();
        let since_start = now.saturating_duration_since(start).as_nanos() as u64;
        let mut any = false;
        while let Some(send) = plan.as_mut().and_then(|plan| plan.due(since_start)) {
            clients.with(|state| state.due(send.user as usize, start_ns + send.at_ns));
            any = true;
        }
        if any {
            clients.wake();
        }
        if now >= from && began.is_none() {
            observer(Moment::Begin);
            began = Some((Instant::now(), thread_cpu_time()));
        }
        let fatal = clients.with(|state| state.fatal.clone());
        let stopped = matches!(line.order(), Order::Stop | Order::Abort);
        let cut_short = fatal.or(stopped.then(|| "stopped by a signal".to_owned()));
        if now >= to || cut_short.is_some() {
            observer(Moment::End);
            if let Some((at, cpu)) = began {
                let share = (thread_cpu_time() - cpu).as_secs_f64() / at.elapsed().as_secs_f64();
                relayed.loadgen_cpu_percent = (share * 1_000.0).round() / 10.0;
            }
            clients.with(|state| state.end(cut_short.is_some()));
            relayed.cut_short = cut_short;
            return Ok(relayed);
        }
        let next = plan.as_ref().and_then(OpenLoop::next_at_ns).map(Duration::from_nanos);
        let next = next.map_or(to, |next| start + next);
        let next = if began.is_none() { next.min(from) } else { next.min(to) };
        tokio::select! {
            slept = timer.sleep(next.saturating_duration_since(Instant::now())) => {
                slept.map_err(RunError::io("the timer"))?;
            }
            () = line.changed() => {}
        }
        tokio::task::yield_now().await;
    }
}

/// Waits for what is outstanding; says why it gave up, if it did.
async fn drain(clients: &Clients, line: &Line) -> Option<String> {
    let mut stall = Stall::new(PATIENCE);
    loop {
        let (left, moved, fatal) = clients.with(|state| state.progress());
        if left == 0 || fatal.is_some() || line.order() == Order::Abort {
            return fatal;
        }
        if stall.is_stalled(moved) {
            return Some(format!("{left} messages outstanding, no progress"));
        }
        tokio::time::sleep(LOOK).await;
    }
}
