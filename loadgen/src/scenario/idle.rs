//! `idle`: sessions that only heartbeat, for as long as asked from the last connection on.

use std::cell::RefCell;
use std::fmt::{self, Display};
use std::io::Write as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use chatring_client::token::TokenKey;
use chatring_client::{Config, Event, Keep, Millis, Session};

use super::{RunError, SOCKETS, Stall};
use crate::cli;
use crate::connection::Over;
use crate::limits::START_STALLED;
use crate::pool::{Pool, Script, Wakers, new_session};
use crate::ready::Ready;
use crate::threads::{self, Line, Order};

const LOOK: Duration = Duration::from_millis(10);
/// How long sessions may take to say goodbye.
const GOODBYE_MAX: Duration = Duration::from_secs(2);

/// What it comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Sessions that were asked for.
    pub users: usize,
    /// Sessions that were connected at the end.
    pub connected: usize,
    /// Connections lost while the sessions were held.
    pub dropped: u64,
    /// Connections lost before, and attempts that failed.
    pub failed_connects: u64,
    /// Protocol faults of the node, and heartbeats whose counts differed or stayed out.
    pub errors: u64,
    /// From the first attempt to the last connection.
    pub ramp: Duration,
    /// How long they were held.
    pub held: Duration,
    /// Why they were not held longer, if so.
    pub cut_short: Option<String>,
}

impl Held {
    /// Whether all sessions stayed.
    pub fn is_good(&self) -> bool {
        let stayed = self.connected == self.users && self.dropped == 0 && self.errors == 0;
        stayed && self.cut_short.is_none()
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Held { users, connected, dropped, failed_connects, errors, .. } = self;
        let (ramp, held) = (self.ramp.as_secs_f64(), self.held.as_secs_f64());
        writeln!(f, "sessions   {users}, connected within {ramp:.1} s, held for {held:.1} s")?;
        if let Some(reason) = &self.cut_short {
            writeln!(f, "CUT SHORT  {reason}")?;
        }
        writeln!(f, "at the end {connected} connected, {dropped} dropped while held")?;
        writeln!(f, "faults     {failed_connects} failed attempts, {errors} errors")?;
        writeln!(f, "verdict    {}", if self.is_good() { "good" } else { "FAILED" })
    }
}

/// Runs it; says on standard output when the holding begins.
///
/// # Errors
/// Not all sessions came up.
pub fn run(options: &cli::Idle) -> Result<Held, RunError> {
    let key = Ready::read(&options.node)?.token_key()?;
    let threads = options.threads.min(options.users);
    let origin = Instant::now();
    let parts = threads::run(threads, |number, line| {
        let users = (number..options.users).step_by(threads as usize).collect();
        thread(options, &key, users, origin, line, number == 0)
    });
    let mut total = Held::default();
    for part in parts.map_err(RunError::io("threads and signals"))? {
        let part = part?;
        total.users += part.users;
        total.connected += part.connected;
        total.dropped += part.dropped;
        total.failed_connects += part.failed_connects;
        total.errors += part.errors;
        total.ramp = total.ramp.max(part.ramp);
        total.held = total.held.max(part.held);
        total.cut_short = total.cut_short.or(part.cut_short);
    }
    Ok(total)
}

async fn thread(
    options: &cli::Idle,
    key: &TokenKey,
    users: Vec<u32>,
    origin: Instant,
    mut line: Line,
    speaks: bool,
) -> Result<Held, RunError> {
    let count = users.len();
    let wakers = Wakers::new(count);
    let script = Sleeper(RefCell::new(State::new(count)));
    let pool = Pool::new(script, wakers.clone(), &options.node, origin);
    let pool = Rc::new(pool.map_err(RunError::io(SOCKETS))?);
    let tasks: Vec<_> = users
        .into_iter()
        .enumerate()
        .map(|(place, user)| {
            let config = Config { keep: Keep::Nothing, ..Config::new("") };
            let session = new_session(key, &format!("idle-{user}"), "idle", config);
            tokio::task::spawn_local(pool.clone().carry(place, session))
        })
        .collect();
    come_up(&pool, &line, count).await?;
    let start = line.ready().await.ok_or(RunError::Stopped)?;
    let ramp = start.saturating_duration_since(origin);
    pool.script.0.borrow_mut().begin();
    if speaks {
        let (users, hold) = (options.users, options.hold.as_secs_f64());
        let mut out = std::io::stdout();
        // Nobody listening is no reason to stop.
        let _ = writeln!(out, "holding {users} sessions for {hold} s").and_then(|()| out.flush());
    }
    let end = start + options.hold;
    while Instant::now() < end && matches!(line.order(), Order::Go(_)) && !pool.is_fatal() {
        tokio::select! {
            () = tokio::time::sleep_until(end.min(Instant::now() + LOOK).into()) => {}
            () = line.changed() => {}
        }
    }
    let held = start.elapsed().min(options.hold);
    let cut_short = (held < options.hold).then(|| "stopped".to_owned());
    let mut part = {
        let mut state = pool.script.0.borrow_mut();
        state.leaving = true;
        let connected = state.up.iter().filter(|up| **up).count();
        let (dropped, errors) = (state.dropped, state.errors);
        let failed_connects = state.dropped_before + pool.failed_connects().0;
        let fatal = state.fatal.take();
        let cut_short = fatal.or(cut_short);
        Held { users: count, connected, dropped, failed_connects, errors, ramp, held, cut_short }
    };
    wakers.wake_all();
    let end = tokio::time::Instant::now() + GOODBYE_MAX;
    for task in tasks {
        if let Ok(Ok(session)) = tokio::time::timeout_at(end, task).await {
            part.errors += session.stats().count_mismatches + session.stats().timeouts;
        }
    }
    Ok(part)
}

async fn come_up(pool: &Pool<Sleeper>, line: &Line, count: usize) -> Result<(), RunError> {
    let mut stall = Stall::new(START_STALLED);
    loop {
        let (up, fatal) = {
            let state = pool.script.0.borrow();
            (state.up.iter().filter(|up| **up).count(), state.fatal.clone())
        };
        if let Some(reason) = fatal {
            return Err(RunError::Node(reason));
        }
        if up == count {
            return Ok(());
        }
        if line.order() != Order::Prepare {
            return Err(RunError::Stopped);
        }
        if stall.is_stalled(up as u64) {
            let reason = pool.failed_connects().1.unwrap_or_default();
            let text = format!("{up} of {count} sessions came up, then nothing: {reason}");
            return Err(RunError::Node(text));
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Pool<Sleeper> {
    fn is_fatal(&self) -> bool {
        self.script.0.borrow().fatal.is_some()
    }
}

struct Sleeper(RefCell<State>);

struct State {
    up: Vec<bool>,
    dropped: u64,
    dropped_before: u64,
    errors: u64,
    fatal: Option<String>,
    leaving: bool,
}

impl State {
    fn new(sessions: usize) -> State {
        State {
            up: vec![false; sessions],
            dropped: 0,
            dropped_before: 0,
            errors: 0,
            fatal: None,
            leaving: false,
        }
    }

    /// From here on losses count as drops.
    fn begin(&mut self) {
        self.dropped_before = std::mem::take(&mut self.dropped);
    }
}

impl Script for Sleeper {
    fn drive(&self, _place: usize, _session: &mut Session, _now: Millis) {}

    fn event(&self, place: usize, _session: &mut Session, event: Event, _at: Instant) {
        let state = &mut *self.0.borrow_mut();
        match event {
            Event::Synced => state.up[place] = true,
            Event::Disconnected { .. } if !state.leaving => {
                state.up[place] = false;
                state.dropped += 1;
            }
            _ => {}
        }
    }

    fn ended(&self, place: usize, why: &dyn Display) {
        let reason = format!("session {place} cannot go on: {why}");
        self.0.borrow_mut().fatal.get_or_insert(reason);
    }

    fn protocol_fault(&self, _place: usize, _fault: &Over) {
        self.0.borrow_mut().errors += 1;
    }

    fn is_finished(&self, _place: usize) -> bool {
        let state = self.0.borrow();
        state.leaving || state.fatal.is_some()
    }
}
