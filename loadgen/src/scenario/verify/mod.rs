//! `verify`: signs in again as the users of ledgers, with no local state, reads their channels in
//! full and compares.

mod check;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chatring_client::token::TokenKey;
use chatring_client::{Config, Event, Keep, Millis, OpenError, Session};
use chatring_wire::frame::{Direction, Page};
use chatring_wire::{Cid, MemberNumber, Seq};
use tokio::sync::Semaphore;

pub use self::check::Readings;
use self::check::{Expected, Reading};
use super::{RunError, SOCKETS, Stall, words};
use crate::cli;
use crate::connection::Over;
use crate::ledger::Ledgers;
use crate::limits::{READERS_AT_ONCE_MAX, START_STALLED};
use crate::pool::{Pool, Script, Wakers, new_session};
use crate::ready::Ready;
use crate::threads::{self, Line, Order};

const LOOK: Duration = Duration::from_millis(20);

/// What a verification comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Lines of all ledgers.
    pub lines: usize,
    /// Ledgers whose last line is torn.
    pub torn: usize,
    /// Lines at the position of another line of the same channel.
    pub repeated: u64,
    /// Channels that the lines name.
    pub channels: usize,
    /// Users who signed in again.
    pub users: usize,
    /// What they read; both users of a channel read all of it.
    pub readings: Readings,
}

impl Verified {
    /// Whether every line is there exactly once, in order, with its body.
    pub fn is_good(&self) -> bool {
        self.repeated == 0 && self.readings.is_clean()
    }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verified { lines, torn, repeated, channels, users, readings } = self;
        writeln!(f, "ledgers    {lines} lines, {repeated} repeated, {torn} torn at their end")?;
        writeln!(f, "read       {channels} channels, each in full by both of its users ({users})")?;
        let Readings { found, other, missing, wrong, duplicated, reordered, gaps } = readings;
        writeln!(f, "readings   {found} lines found, {other} messages of others or not acked")?;
        writeln!(f, "faults     {missing} missing, {wrong} wrong, {duplicated} duplicated,")?;
        writeln!(f, "           {reordered} reordered, {gaps} gaps")?;
        writeln!(f, "verdict    {}", if self.is_good() { "good" } else { "FAILED" })
    }
}

/// Runs it.
///
/// # Errors
/// A ledger or the ready file cannot be used, or the node does not answer.
pub fn run(options: &cli::Verify) -> Result<Verified, RunError> {
    let mut ledgers = Ledgers::default();
    for path in &options.ledger {
        ledgers.read(path)?;
    }
    // The node is asked for even if there is nothing to compare: a wrong path should not pass.
    let key = Ready::read(&options.node)?.token_key()?;
    let (lines, torn) = (ledgers.lines.len(), ledgers.torn);
    let mut channels: BTreeMap<String, Expected> = BTreeMap::new();
    for line in ledgers.lines {
        match channels.get_mut(&line.cid) {
            Some(expected) => expected.add(line),
            None => channels.entry(line.cid.clone()).or_default().add(line),
        }
    }
    let repeated = channels.values().map(Expected::repeated).sum();
    let count = channels.len();
    let readers = readers(channels);
    let results = threads::run(1, |_, line| read_all(options, &key, &readers, line));
    let results = results.map_err(RunError::io("threads and signals"))?;
    let users = readers.len();
    let mut verified =
        Verified { lines, torn, repeated, channels: count, users, ..Verified::default() };
    for readings in results {
        verified.readings += readings?;
    }
    Ok(verified)
}

/// What a user reads. A channel whose id is none cannot be on any node: its lines are missing.
type Todo = Vec<(Option<Cid>, Arc<Expected>)>;

fn readers(channels: BTreeMap<String, Expected>) -> BTreeMap<String, Todo> {
    let mut readers: BTreeMap<String, Todo> = BTreeMap::new();
    for (name, expected) in channels {
        let cid = u64::from_str_radix(&name, 16).ok().map(Cid);
        let expected = Arc::new(expected);
        for user in expected.users() {
            readers.entry(user.to_owned()).or_default().push((cid, expected.clone()));
        }
    }
    readers
}

async fn read_all(
    options: &cli::Verify,
    key: &TokenKey,
    readers: &BTreeMap<String, Todo>,
    line: Line,
) -> Result<Readings, RunError> {
    let users = readers.len();
    let new = |(name, todo): (&String, &Todo)| Reader::new(name.clone(), todo.clone());
    let state = State {
        readers: readers.iter().map(new).collect(),
        readings: Readings::default(),
        steps: 0,
        done: 0,
        fatal: None,
    };
    let script = Verifier(RefCell::new(state));
    let pool = Pool::new(script, Wakers::new(users), &options.node, Instant::now());
    let pool = Rc::new(pool.map_err(RunError::io(SOCKETS))?);
    let turns = Rc::new(Semaphore::new(READERS_AT_ONCE_MAX));
    for (place, name) in readers.keys().enumerate() {
        let config = Config { keep: Keep::Nothing, ..Config::new("") };
        let session = new_session(key, name, "verify", config);
        let (pool, turns) = (pool.clone(), turns.clone());
        tokio::task::spawn_local(async move {
            let _turn = turns.acquire().await;
            pool.carry(place, session).await;
        });
    }
    let mut stall = Stall::new(START_STALLED);
    loop {
        let (done, steps, fatal) = {
            let state = pool.script.0.borrow();
            (state.done, state.steps, state.fatal.clone())
        };
        if let Some(reason) = fatal {
            return Err(RunError::Node(reason));
        }
        if done == users {
            return Ok(pool.script.0.borrow().readings);
        }
        if line.order() != Order::Prepare {
            return Err(RunError::Stopped);
        }
        if stall.is_stalled(steps) {
            let reason = pool.failed_connects().1.unwrap_or_default();
            let text = format!("{done} of {users} users have read, then nothing: {reason}");
            return Err(RunError::Node(text));
        }
        tokio::time::sleep(LOOK).await;
    }
}

struct Verifier(RefCell<State>);

struct State {
    readers: Vec<Reader>,
    readings: Readings,
    /// Rises with everything that happens.
    steps: u64,
    done: usize,
    fatal: Option<String>,
}

struct Reader {
    name: String,
    synced: bool,
    todo: Todo,
    /// The channel being read, its head when that began, and what was read.
    now: Option<(Cid, Seq, Reading)>,
    /// Whether the next range is to be asked for.
    ask: bool,
    done: bool,
}

impl Reader {
    fn new(name: String, todo: Todo) -> Reader {
        Reader { name, synced: false, todo, now: None, ask: false, done: false }
    }

    /// Turns to the next channel; readings of channels that the node does not know are added to
    /// `readings` at once.
    fn begin(&mut self, session: &Session, readings: &mut Readings) {
        while self.now.is_none()
            && let Some((cid, expected)) = self.todo.pop()
        {
            let head = cid.and_then(|cid| session.channel(cid));
            let me = head.map_or(MemberNumber(0), |head| head.me);
            let reading = Reading::new(expected, self.name.clone(), me);
            match (cid, head) {
                (Some(cid), Some(head)) if head.head > Seq(0) => {
                    self.now = Some((cid, head.head, reading));
                    self.ask = true;
                }
                _ => *readings += reading.finish(Seq(0)),
            }
        }
        self.done = self.now.is_none();
    }

    /// Takes a page; gives what the channel came to when it is read to its end.
    fn page(&mut self, page: &Page) -> Result<Option<Readings>, String> {
        let name = &self.name;
        let Some((cid, head, mut reading)) = self.now.take() else {
            return Err(format!("user {name} got messages that nobody asked for"));
        };
        if page.cid != cid || page.from != reading.next() || page.to < page.from {
            let (from, to, next) = (page.from.0, page.to.0, reading.next().0);
            return Err(format!("user {name} got {from} to {to} of {cid} instead of {next} on"));
        }
        page.rows.iter().for_each(|row| reading.row(row));
        if page.to >= head {
            return Ok(Some(reading.finish(head)));
        }
        self.now = Some((cid, head, reading));
        self.ask = true;
        Ok(None)
    }
}

impl Script for Verifier {
    fn drive(&self, place: usize, session: &mut Session, now: Millis) {
        let state = &mut *self.0.borrow_mut();
        let reader = &mut state.readers[place];
        if !reader.synced || reader.done {
            return;
        }
        if reader.now.is_none() {
            reader.begin(session, &mut state.readings);
            state.done += usize::from(reader.done);
        }
        if let Some((cid, head, reading)) = &reader.now
            && reader.ask
        {
            let asked = session.read(now, *cid, reading.next(), *head, Direction::Ascending);
            match asked {
                Ok(_) => reader.ask = false,
                Err(OpenError::Full) => {}
                Err(error) => {
                    let (name, cid) = (&reader.name, *cid);
                    state.fatal = Some(format!("user {name} cannot read {cid}: {error}"));
                }
            }
        }
    }

    fn event(&self, place: usize, _session: &mut Session, event: Event, _at: Instant) {
        let state = &mut *self.0.borrow_mut();
        state.steps += 1;
        let reader = &mut state.readers[place];
        match event {
            Event::Synced => reader.synced = true,
            Event::Rows { page, .. } => match reader.page(&page) {
                Ok(readings) => state.readings += readings.unwrap_or_default(),
                Err(reason) => state.fatal = Some(reason),
            },
            Event::AskRefused { error, .. } => {
                let name = &reader.name;
                state.fatal = Some(format!("user {name} may not read: {}", words(&error)));
            }
            _ => {}
        }
    }

    fn ended(&self, place: usize, why: &dyn Display) {
        let state = &mut *self.0.borrow_mut();
        let name = &state.readers[place].name;
        state.fatal = Some(format!("user {name} cannot go on: {why}"));
    }

    fn protocol_fault(&self, place: usize, fault: &Over) {
        let state = &mut *self.0.borrow_mut();
        let name = &state.readers[place].name;
        state.fatal = Some(format!("user {name}: the node broke the protocol: {fault}"));
    }

    fn is_finished(&self, place: usize) -> bool {
        let state = self.0.borrow();
        state.readers[place].done || state.fatal.is_some()
    }
}
