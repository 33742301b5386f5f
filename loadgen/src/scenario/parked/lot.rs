//! The users who wait, and the books of what they were given.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use chatring_bare::ring::{Input, Key, Outs};
use chatring_client::token::TokenKey;

use super::Messages;
use super::helpers::{self, Helper, Task, helper_of, sender_name, user_name};
use crate::cli::{self, ParkedMode};
use crate::http::answer::{Answers, Heard};
use crate::http::events::Events;
use crate::http::{bodies, requests};
use crate::latency::Latencies;
use crate::limits::TOKEN_TTL_S;
use crate::pool::{fresh_random, unix_ms};
use crate::stamp::{Parsed, RunTag, Stamp};
use crate::turns::{Speakers, Turns};

/// How long a long poll waits: as long as the node lets it.
const WAIT_MS: u32 = 60_000;
/// Length of a message.
const BODY_BYTES: usize = 20;

/// Everybody on one thread's sockets.
pub struct Clients {
    pub lot: RefCell<Lot>,
    pub turns: Turns,
}

/// All users and helpers.
pub struct Lot {
    mode: ParkedMode,
    run: RunTag,
    users: Vec<Watcher>,
    helpers: Vec<Helper>,
    /// By key.
    owners: Vec<Option<Owner>>,
    /// Heads of the helpers' requests as senders.
    senders: Vec<String>,
    /// What each helper has to do.
    tasks: Vec<VecDeque<Task>>,
    /// Helpers that may have something to say, and users who are to be parked.
    ready: Vec<Owner>,
    known: usize,
    connected: usize,
    /// When the first message is due, the time between two, and how many are on their way.
    plan: Option<(Instant, Duration, usize)>,
    acked: u64,
    last_ack: Option<Instant>,
    delivered: u64,
    duplicates: u64,
    strays: u64,
    renewed: u64,
    ack: Latencies,
    deliver: Latencies,
    /// The first thing that was not as it should be.
    pub fault: Option<String>,
    pub is_over: bool,
}

#[derive(Clone, Copy)]
enum Owner {
    Helper(usize),
    User(usize),
}

/// A user who waits.
struct Watcher {
    key: Option<Key>,
    answers: Answers,
    stream: Events,
    token: String,
    cursor: String,
    channel: String,
    due: Option<Instant>,
    is_acked: bool,
    given: u32,
}

impl Clients {
    /// Changes the lot, or looks at it.
    pub fn with<R>(&self, change: impl FnOnce(&mut Lot) -> R) -> R {
        let result = change(&mut self.lot.borrow_mut());
        self.turns.wake();
        result
    }

    /// Gives it a connection.
    pub fn with_key(&self, stream: std::net::TcpStream, take: impl FnOnce(&mut Lot, Key)) {
        let key = self.turns.add(stream);
        self.with(|lot| take(lot, key));
    }
}

impl Lot {
    /// Nobody is connected yet.
    pub fn new(options: &cli::Parked, key: &TokenKey) -> Lot {
        let token = |name: &str| key.mint(name, unix_ms() / 1_000, TOKEN_TTL_S);
        let watcher = |user| Watcher {
            key: None,
            answers: Answers::default(),
            stream: Events::default(),
            token: token(&user_name(user)),
            cursor: String::new(),
            channel: String::new(),
            due: None,
            is_acked: false,
            given: 0,
        };
        let senders =
            (0..helpers::COUNT).map(|helper| requests::head(&token(&sender_name(helper))));
        Lot {
            mode: options.mode,
            run: RunTag::new(fresh_random(u64::from(options.users)).draw()),
            users: (0..options.users as usize).map(watcher).collect(),
            helpers: std::iter::repeat_with(Helper::default).take(helpers::COUNT).collect(),
            owners: Vec::new(),
            senders: senders.collect(),
            tasks: vec![VecDeque::new(); helpers::COUNT],
            ready: Vec::new(),
            known: 0,
            connected: 0,
            plan: None,
            acked: 0,
            last_ack: None,
            delivered: 0,
            duplicates: 0,
            strays: 0,
            renewed: 0,
            ack: Latencies::new(),
            deliver: Latencies::new(),
            fault: None,
            is_over: false,
        }
    }

    /// How many wait.
    pub fn users(&self) -> u64 {
        self.users.len() as u64
    }

    /// Of how many the channel is open.
    pub fn known(&self) -> usize {
        self.known
    }

    /// Rises while anything goes on.
    pub fn progress(&self) -> u64 {
        self.acked + self.delivered
    }

    /// Whether everything was sent and given.
    pub fn is_whole(&self) -> bool {
        self.acked == self.users() && self.delivered == self.users()
    }

    /// Whether more is to be sent later on.
    pub fn has_to_come(&self) -> bool {
        self.plan.is_some_and(|(.., sent)| sent < self.users.len())
    }

    /// How they wait.
    pub fn mode_name(&self) -> &'static str {
        match self.mode {
            ParkedMode::Longpoll => "longpoll",
            ParkedMode::Sse => "sse",
        }
    }

    /// What became of the messages.
    pub fn messages(&self) -> Messages {
        let begun = self.plan.map(|(from, ..)| from);
        let took = begun.zip(self.last_ack).map(|(from, to)| (to - from).as_secs_f64());
        let is_lost = |user: &&Watcher| user.is_acked && user.given == 0;
        Messages {
            acked: self.acked,
            delivered: self.delivered,
            lost: self.users.iter().filter(is_lost).count() as u64,
            duplicates: self.duplicates,
            strays: self.strays,
            renewed: self.renewed,
            ack_us: self.ack.percentiles(),
            deliver_us: self.deliver.percentiles(),
            acked_per_s: took.map_or(0.0, |s| (self.acked as f64 / s * 10.0).round() / 10.0),
        }
    }

    /// Helpers that need a connection.
    pub fn helpers_down(&self) -> Vec<usize> {
        (0..helpers::COUNT).filter(|helper| self.helpers[*helper].key.is_none()).collect()
    }

    /// A connection for requests.
    pub fn add_helper(&mut self, helper: usize, key: Key) {
        self.own(key, Owner::Helper(helper));
        self.helpers[helper] = Helper { key: Some(key), ..Helper::default() };
    }

    /// A connection for the next user, who is parked on it.
    pub fn add_watcher(&mut self, key: Key) {
        let user = self.connected;
        self.connected += 1;
        self.own(key, Owner::User(user));
        self.users[user].key = Some(key);
        self.ready.push(Owner::User(user));
    }

    fn own(&mut self, key: Key, owner: Owner) {
        if self.owners.len() <= key.index() {
            self.owners.resize(key.index() + 1, None);
        }
        self.owners[key.index()] = Some(owner);
    }

    /// Has everybody made known, and every channel opened.
    pub fn prepare(&mut self) {
        for user in 0..self.users.len() {
            self.tasks[helper_of(user)].push_back(Task::SignIn(user));
        }
        self.ready.extend((0..self.helpers.len()).map(Owner::Helper));
    }

    /// Sends a message to each from now on.
    pub fn begin(&mut self, rate_per_s: u32) {
        self.plan = Some((Instant::now(), Duration::from_secs(1) / rate_per_s, 0));
    }

    /// What is due by now goes to its helper.
    fn send_due(&mut self, now: Instant) {
        while let Some((from, every, sent)) = self.plan
            && sent < self.users.len()
            && from + every * sent as u32 <= now
        {
            let due = from + every * sent as u32;
            self.plan = Some((from, every, sent + 1));
            self.users[sent].due = Some(due);
            self.tasks[helper_of(sent)].push_back(Task::Send(sent, due));
            self.ready.push(Owner::Helper(helper_of(sent)));
        }
    }

    fn helper_says(&mut self, helper: usize, outs: &mut Outs) {
        if self.helpers[helper].asked.is_some() {
            return;
        }
        let Some(task) = self.tasks[helper].pop_front() else { return };
        let key = self.helpers[helper].key;
        let Some(out) = key.and_then(|key| outs.out(key)) else { return };
        let sender = &self.senders[helper];
        let request = match task {
            Task::SignIn(user) => {
                let Watcher { token, cursor, .. } = &self.users[user];
                let path = match cursor.as_str() {
                    "" => "/v1/sync".to_owned(),
                    cursor => format!("/v1/sync?cursor={cursor}"),
                };
                requests::get(&path, &requests::head(token))
            }
            Task::Open(user) => requests::open_channel(&user_name(user), sender),
            Task::Send(user, _) => {
                let stamp = Stamp { run: self.run, sender: helper as u32, number: user as u32 };
                let body = stamp.body(BODY_BYTES);
                let text = std::str::from_utf8(&body).expect("stamps are ASCII");
                let path = format!("/v1/channels/{}/messages", self.users[user].channel);
                let key = format!("idempotency-key: {text}\r\n");
                requests::post(&path, sender, &key, &format!(r#"{{"text":"{text}"}}"#))
            }
        };
        out.extend_from_slice(request.as_bytes());
        self.helpers[helper].asked = Some(task);
    }

    fn helper_hears(
        &mut self,
        helper: usize,
        status: u16,
        body: &[u8],
        at: Instant,
    ) -> Result<(), String> {
        let Some(task) = self.helpers[helper].asked.take() else {
            return Err(format!("{status} was answered to nobody"));
        };
        self.ready.push(Owner::Helper(helper));
        let wrong = |error: serde_json::Error| error.to_string();
        match (task, status) {
            (Task::SignIn(user), 200) => {
                let sync: bodies::Sync<'_> = serde_json::from_slice(body).map_err(wrong)?;
                sync.cursor.clone_into(&mut self.users[user].cursor);
                // What came before this run is to be behind the cursor.
                let next = if sync.more { Task::SignIn(user) } else { Task::Open(user) };
                self.tasks[helper].push_front(next);
            }
            (Task::Open(user), 200) => {
                let channel: bodies::Channel<'_> = serde_json::from_slice(body).map_err(wrong)?;
                channel.id.clone_into(&mut self.users[user].channel);
                self.known += 1;
            }
            (Task::Send(user, due), 201) => {
                self.users[user].is_acked = true;
                self.acked += 1;
                self.last_ack = Some(at);
                self.ack.record(at.saturating_duration_since(due).as_nanos() as u64);
            }
            _ => {
                let body = String::from_utf8_lossy(body);
                return Err(format!("{task:?} was answered {status}: {body}"));
            }
        }
        Ok(())
    }

    fn park(&mut self, user: usize, outs: &mut Outs) {
        let Watcher { key, token, cursor, .. } = &self.users[user];
        let Some(out) = key.and_then(|key| outs.out(key)) else { return };
        let path = match self.mode {
            ParkedMode::Longpoll => format!("/v1/sync?wait_ms={WAIT_MS}&cursor={cursor}"),
            ParkedMode::Sse => format!("/v1/events?cursor={cursor}"),
        };
        out.extend_from_slice(requests::get(&path, &requests::head(token)).as_bytes());
    }

    fn user_hears(&mut self, user: usize, bytes: &[u8], at: Instant) -> Result<(), String> {
        let mut answers = std::mem::take(&mut self.users[user].answers);
        let mut outcome = Ok(());
        let fed = answers.feed(bytes, |heard| {
            let heard = match heard {
                Heard::Answer { status: 200, body, .. } => {
                    self.ready.push(Owner::User(user));
                    self.news(user, body, at)
                }
                Heard::Begun { status: 200 } => Ok(()),
                Heard::Piece(piece) => self.piece(user, piece, at),
                Heard::Answer { status, .. } | Heard::Begun { status } => {
                    Err(format!("a parked request was answered {status}"))
                }
                Heard::End => Err("a stream of events was ended".to_owned()),
            };
            if outcome.is_ok() {
                outcome = heard;
            }
        });
        self.users[user].answers = answers;
        fed.map_err(|error| error.to_string()).and(outcome)
    }

    fn piece(&mut self, user: usize, piece: &[u8], at: Instant) -> Result<(), String> {
        let mut stream = std::mem::take(&mut self.users[user].stream);
        let mut outcome = Ok(());
        let fed = stream.feed(piece, |data, _| {
            let heard = self.news(user, data, at);
            if outcome.is_ok() {
                outcome = heard;
            }
        });
        self.users[user].stream = stream;
        fed.map_err(|error| error.to_string()).and(outcome)
    }

    fn news(&mut self, user: usize, body: &[u8], at: Instant) -> Result<(), String> {
        let sync: bodies::Sync<'_> = serde_json::from_slice(body).map_err(|e| e.to_string())?;
        if sync.replace {
            return Err("a cursor was not taken".to_owned());
        }
        sync.cursor.clone_into(&mut self.users[user].cursor);
        self.renewed += u64::from(sync.events.is_empty());
        for event in &sync.events {
            if event.r#type != "message" {
                continue;
            }
            let text = event.text.as_deref().unwrap_or_default();
            let own = Stamp { run: self.run, sender: helper_of(user) as u32, number: user as u32 };
            let watcher = &mut self.users[user];
            let is_own = Stamp::parse(text.as_bytes()) == Parsed::Whole(own)
                && event.channel == Some(&*watcher.channel);
            match (watcher.due, is_own) {
                (Some(due), true) => {
                    watcher.given += 1;
                    if watcher.given > 1 {
                        self.duplicates += 1;
                    } else {
                        self.delivered += 1;
                        let late = at.saturating_duration_since(due);
                        self.deliver.record(late.as_nanos() as u64);
                    }
                }
                _ => self.strays += 1,
            }
        }
        Ok(())
    }
}

impl Speakers for Clients {
    fn input(&self, _outs: &mut Outs, key: Key, input: Input<'_>, at: Instant) {
        let lot = &mut *self.lot.borrow_mut();
        let Some(owner) = lot.owners.get(key.index()).copied().flatten() else { return };
        let taken = match (owner, input) {
            (_, Input::Accepted) => Ok(()),
            (Owner::Helper(helper), Input::Ended(_)) if lot.helpers[helper].asked.is_none() => {
                lot.helpers[helper].key = None;
                Ok(())
            }
            (_, Input::Ended(error)) => {
                let how = error.map_or("it was closed".to_owned(), |error| error.to_string());
                Err(format!("a connection was lost: {how}"))
            }
            (Owner::User(user), Input::Bytes(bytes)) => lot.user_hears(user, bytes, at),
            (Owner::Helper(helper), Input::Bytes(bytes)) => {
                let mut answers = std::mem::take(&mut lot.helpers[helper].answers);
                let mut outcome = Ok(());
                let fed = answers.feed(bytes, |heard| {
                    if let Heard::Answer { status, body, .. } = heard
                        && let Err(reason) = lot.helper_hears(helper, status, body, at)
                    {
                        outcome = Err(reason);
                    }
                });
                lot.helpers[helper].answers = answers;
                fed.map_err(|error| error.to_string()).and(outcome)
            }
        };
        if let Err(reason) = taken {
            lot.fault.get_or_insert(reason);
        }
    }

    fn speak(&self, outs: &mut Outs, now: Instant) {
        let lot = &mut *self.lot.borrow_mut();
        lot.send_due(now);
        let mut ready = std::mem::take(&mut lot.ready);
        for owner in ready.drain(..) {
            match owner {
                Owner::Helper(helper) => lot.helper_says(helper, outs),
                Owner::User(user) => lot.park(user, outs),
            }
        }
        lot.ready = ready;
    }

    fn wants_turn(&self) -> bool {
        !self.lot.borrow().ready.is_empty()
    }

    fn deadline(&self) -> Option<Instant> {
        let lot = self.lot.borrow();
        let (from, every, sent) = lot.plan?;
        (sent < lot.users.len()).then(|| from + every * sent as u32)
    }

    fn is_over(&self) -> bool {
        self.lot.borrow().is_over
    }

    fn failed(&self, _outs: &mut Outs, error: &io::Error) {
        self.lot.borrow_mut().fault.get_or_insert(error.to_string());
    }
}
