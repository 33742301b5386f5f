//! Users who do nothing but post, one request in flight on each connection: the next one when the
//! last is answered, or as a plan has it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use chatring_bare::cpu::thread_cpu_time;
use chatring_bare::ring::{Input, Key, Outs};
use chatring_client::token::TokenKey;

use super::super::direct::user_name;
use super::super::{Moment, RunError, SOCKETS, Stall};
use crate::cli;
use crate::http::answer::{Answers, Heard};
use crate::http::{bodies, requests};
use crate::latency::Latencies;
use crate::limits::{START_STALLED, TOKEN_TTL_S};
use crate::machine::FineTimer;
use crate::plan::{OpenLoop, Rate, Segment};
use crate::pool::{fresh_random, unix_ms};
use crate::stamp::{RunTag, Stamp};
use crate::threads::{self, Line, Order};
use crate::turns::{Speakers, Turns};

/// How often a waiting thread looks.
const LOOK: Duration = Duration::from_millis(5);
/// Decides whose turn it is in the open loop.
const SEED: u64 = 1;
/// How long one connection may take to stand.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// To whom is posted.
pub struct Target<'a> {
    /// Where it listens.
    pub address: SocketAddr,
    /// Signs the tokens.
    pub key: &'a TokenKey,
    /// Whether it keeps messages: then users have to be there, and channels.
    pub keeps: bool,
}

/// What came of it.
#[derive(Default)]
pub struct Posted {
    /// Requests answered in the measured time.
    pub acked: u64,
    /// From the request, or the time that it was intended for, to its answer.
    pub ack: Latencies,
    /// CPU time of the generator, as a share of the measured time.
    pub cpu_percent: f64,
    /// The first answer that was not as it should be.
    pub fault: Option<String>,
    /// Why the load ended early, if it did.
    pub cut_short: Option<String>,
}

/// Posts for as long as asked for, at this rate or as fast as it is answered.
///
/// # Errors
/// The load never began.
pub fn run(
    options: &cli::HttpShare,
    target: &Target<'_>,
    rate: Option<u32>,
    observer: &(dyn Fn(Moment) + Sync),
) -> Result<Posted, RunError> {
    let results = threads::run(1, |_, line| post(options, target, rate, observer, line));
    let mut results = results.map_err(RunError::io("threads and signals"))?;
    results.pop().expect("one thread has one result")
}

async fn post(
    options: &cli::HttpShare,
    target: &Target<'_>,
    rate: Option<u32>,
    observer: &(dyn Fn(Moment) + Sync),
    mut line: Line,
) -> Result<Posted, RunError> {
    let posters = Rc::new(Posters {
        state: RefCell::new(State::new(options, target, rate.is_some())),
        turns: Turns::new().map_err(RunError::io(SOCKETS))?,
    });
    for user in 0..options.users as usize {
        let stream = TcpStream::connect_timeout(&target.address, CONNECT_MAX);
        let stream = stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
        let stream = stream.map_err(|error| RunError::Node(format!("no connection: {error}")))?;
        let key = posters.turns.add(stream);
        posters.state.borrow_mut().add(user, key);
    }
    let turns = tokio::task::spawn_local({
        let posters = posters.clone();
        async move { posters.turns.run(&*posters).await }
    });
    // All are known to the node before any opens a channel.
    until(&posters, &line, Step::Open).await?;
    posters.with(|state| state.all(Say::Open));
    until(&posters, &line, Step::Ready).await?;
    if rate.is_none() {
        posters.with(|state| state.all(Say::Post));
    }
    let start = line.ready().await.ok_or(RunError::Stopped)?;
    let from = start + options.place.warmup;
    let to = from + options.place.duration;
    posters.with(|state| state.begin(from..to));
    let mut plan = rate.map(|per_s| {
        let length = options.place.warmup + options.place.duration;
        let segments = vec![Segment::steady(per_s, length)];
        OpenLoop::new(&Rate { segments, all_users: options.users, seed: SEED }, options.users, 0, 1)
    });
    let mut timer = FineTimer::new().map_err(RunError::io("a timer"))?;
    let mut began = None;
    let mut cut_short = None;
    loop {
        let now = Instant::now();
        let since_start = now.saturating_duration_since(start).as_nanos() as u64;
        while let Some(send) = plan.as_mut().and_then(|plan| plan.due(since_start)) {
            let at = start + Duration::from_nanos(send.at_ns);
            posters.with(|state| state.due(send.user as usize, at));
        }
        if (now >= from || cut_short.is_some()) && began.is_none() {
            observer(Moment::Begin);
            began = Some((Instant::now(), thread_cpu_time()));
        }
        if now >= to || cut_short.is_some() {
            break;
        }
        let next = plan.as_ref().and_then(OpenLoop::next_at_ns).map(Duration::from_nanos);
        let next = next.map_or(now + LOOK * 20, |next| start + next);
        let next = next.min(if began.is_none() { from } else { to });
        tokio::select! {
            slept = timer.sleep(next.saturating_duration_since(Instant::now())) => {
                slept.map_err(RunError::io("the timer"))?;
            }
            () = line.changed() => {}
        }
        tokio::task::yield_now().await;
        let stopped = matches!(line.order(), Order::Stop | Order::Abort);
        cut_short = stopped.then(|| "stopped by a signal".to_owned());
        cut_short = cut_short.or_else(|| posters.with(|state| state.fault.clone()));
    }
    observer(Moment::End);
    let share = began.map_or(0.0, |(at, cpu)| {
        (thread_cpu_time() - cpu).as_secs_f64() / at.elapsed().as_secs_f64()
    });
    if cut_short.is_none() && rate.is_some() {
        // What was intended within the measured time is in the latencies, however late it comes.
        cut_short = answered(&posters, &line).await;
    }
    posters.with(|state| state.is_over = true);
    // It ends with the last turn; a fault of its own would have ended the thread.
    let _ = turns.await;
    let mut state = posters.state.borrow_mut();
    Ok(Posted {
        acked: state.acked,
        ack: std::mem::take(&mut state.ack),
        cpu_percent: (share * 1_000.0).round() / 10.0,
        fault: state.fault.take(),
        cut_short,
    })
}

async fn until(posters: &Posters, line: &Line, step: Step) -> Result<(), RunError> {
    let mut stall = Stall::new(START_STALLED);
    loop {
        let (so_far, all, fault) = posters.with(|state| {
            let so_far = state.users.iter().filter(|user| user.step >= step).count();
            (so_far, state.users.len(), state.fault.clone())
        });
        if let Some(fault) = fault {
            return Err(RunError::Node(fault));
        }
        if so_far == all {
            return Ok(());
        }
        if line.order() != Order::Prepare {
            return Err(RunError::Stopped);
        }
        if stall.is_stalled(so_far as u64) {
            return Err(RunError::Node(format!("{so_far} of {all} users are ready")));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits for what is outstanding; says why it gave up, if it did.
async fn answered(posters: &Posters, line: &Line) -> Option<String> {
    let mut stall = Stall::new(START_STALLED);
    loop {
        let (left, fault) = posters.with(|state| {
            let busy = state.users.iter().filter(|user| user.busy);
            (busy.map(|user| 1 + user.due.len()).sum::<usize>(), state.fault.clone())
        });
        if left == 0 || fault.is_some() || line.order() == Order::Abort {
            return fault;
        }
        if stall.is_stalled(left as u64) {
            return Some(format!("{left} requests outstanding, no progress"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

struct Posters {
    state: RefCell<State>,
    turns: Turns,
}

struct State {
    users: Vec<Poster>,
    /// By key.
    owners: Vec<usize>,
    queue: Vec<(usize, Say)>,
    keeps: bool,
    /// Whether a plan says when to post.
    planned: bool,
    run: RunTag,
    run_text: String,
    heads: Vec<String>,
    body_bytes: usize,
    measured: Option<Range<Instant>>,
    acked: u64,
    ack: Latencies,
    fault: Option<String>,
    is_over: bool,
}

struct Poster {
    key: Key,
    answers: Answers,
    step: Step,
    path: String,
    number: u32,
    asked_at: Instant,
    newest: u64,
    /// In the open loop: whether a request is under way, and when the next ones should have been.
    busy: bool,
    due: VecDeque<Instant>, // bound: what the plan has for one user
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Sync,
    Open,
    Ready,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Say {
    Sync,
    Open,
    Post,
}

impl Posters {
    fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let result = change(&mut self.state.borrow_mut());
        self.turns.wake();
        result
    }
}

impl State {
    fn new(options: &cli::HttpShare, target: &Target<'_>, planned: bool) -> State {
        let run = fresh_random(u64::from(options.users)).draw();
        let head = |user| {
            let token = target.key.mint(&user_name(user), unix_ms() / 1_000, TOKEN_TTL_S);
            requests::head(&token)
        };
        State {
            users: Vec::new(),
            owners: Vec::new(),
            queue: Vec::new(),
            keeps: target.keeps,
            planned,
            run: RunTag::new(run),
            run_text: format!("{run:016x}"),
            heads: (0..options.users).map(head).collect(),
            body_bytes: options.body,
            measured: None,
            acked: 0,
            ack: Latencies::new(),
            fault: None,
            is_over: false,
        }
    }

    fn add(&mut self, user: usize, key: Key) {
        let step = if self.keeps { Step::Sync } else { Step::Ready };
        if self.keeps {
            self.queue.push((user, Say::Sync));
        }
        self.users.push(Poster {
            key,
            answers: Answers::default(),
            step,
            path: format!("/v1/channels/{user:016x}/messages"),
            number: 0,
            asked_at: Instant::now(),
            newest: 0,
            busy: false,
            due: VecDeque::new(),
        });
        if self.owners.len() <= key.index() {
            self.owners.resize(key.index() + 1, usize::MAX);
        }
        self.owners[key.index()] = user;
    }

    fn all(&mut self, say: Say) {
        if self.keeps || say == Say::Post {
            self.queue.extend((0..self.users.len()).map(|user| (user, say)));
        }
    }

    /// A post is intended for this time.
    fn due(&mut self, user: usize, at: Instant) {
        let poster = &mut self.users[user];
        if std::mem::replace(&mut poster.busy, true) {
            poster.due.push_back(at);
        } else {
            poster.asked_at = at;
            self.queue.push((user, Say::Post));
        }
    }

    fn begin(&mut self, measured: Range<Instant>) {
        self.measured = Some(measured);
    }

    fn say(&mut self, user: usize, say: Say, out: &mut BytesMut, now: Instant) {
        let (head, poster) = (&self.heads[user], &mut self.users[user]);
        let request = match say {
            Say::Sync => requests::get("/v1/sync", head),
            Say::Open => requests::open_channel(&user_name(user as u32 ^ 1), head),
            Say::Post => {
                let stamp = Stamp { run: self.run, sender: user as u32, number: poster.number };
                let body = stamp.body(self.body_bytes);
                let text = std::str::from_utf8(&body).expect("stamps are ASCII");
                let (run, number) = (&self.run_text, poster.number);
                let key = format!("idempotency-key: {run}-{user}-{number}\r\n");
                poster.number += 1;
                if !self.planned {
                    poster.asked_at = now;
                }
                requests::post(&poster.path, head, &key, &format!(r#"{{"text":"{text}"}}"#))
            }
        };
        out.extend_from_slice(request.as_bytes());
    }

    fn take(&mut self, user: usize, bytes: &[u8], at: Instant) -> Result<(), String> {
        let mut answers = std::mem::take(&mut self.users[user].answers);
        let mut outcome = Ok(());
        let fed = answers.feed(bytes, |heard| {
            let Heard::Answer { status, body, .. } = heard else { return };
            if let Err(reason) = self.answer(user, status, body, at) {
                outcome = Err(reason);
            }
        });
        self.users[user].answers = answers;
        fed.map_err(|error| error.to_string()).and(outcome)
    }

    fn answer(&mut self, user: usize, status: u16, body: &[u8], at: Instant) -> Result<(), String> {
        let wrong = |error: serde_json::Error| error.to_string();
        let poster = &mut self.users[user];
        match (poster.step, status) {
            (Step::Sync, 200) => poster.step = Step::Open,
            (Step::Open, 200) => {
                let channel: bodies::Channel<'_> = serde_json::from_slice(body).map_err(wrong)?;
                poster.path = format!("/v1/channels/{}/messages", channel.id);
                poster.step = Step::Ready;
            }
            (Step::Ready, 201) => {
                if self.keeps {
                    let sent: bodies::Sent<'_> = serde_json::from_slice(body).map_err(wrong)?;
                    if sent.seq <= poster.newest {
                        return Err(format!("position {} after {}", sent.seq, poster.newest));
                    }
                    poster.newest = sent.seq;
                }
                let asked_at = poster.asked_at;
                let is_measured = |at: &Instant| {
                    self.measured.as_ref().is_some_and(|measured| measured.contains(at))
                };
                self.acked += u64::from(is_measured(&at));
                if is_measured(&asked_at) {
                    self.ack.record((at - asked_at).as_nanos() as u64);
                }
                if self.planned {
                    match poster.due.pop_front() {
                        Some(at) => poster.asked_at = at,
                        None => {
                            poster.busy = false;
                            return Ok(());
                        }
                    }
                }
                self.queue.push((user, Say::Post));
            }
            _ => {
                let body = String::from_utf8_lossy(body);
                return Err(format!("user {user} was answered {status}: {body}"));
            }
        }
        Ok(())
    }
}

impl Speakers for Posters {
    fn input(&self, _outs: &mut Outs, key: Key, input: Input<'_>, at: Instant) {
        let state = &mut *self.state.borrow_mut();
        let user = state.owners[key.index()];
        let taken = match input {
            Input::Bytes(bytes) => state.take(user, bytes, at),
            Input::Ended(_) => Err(format!("the connection of user {user} was ended")),
            Input::Accepted => Ok(()),
        };
        if let Err(reason) = taken {
            state.fault.get_or_insert(reason);
        }
    }

    fn speak(&self, outs: &mut Outs, now: Instant) {
        let state = &mut *self.state.borrow_mut();
        let mut queue = std::mem::take(&mut state.queue);
        for (user, say) in queue.drain(..) {
            if let Some(out) = outs.out(state.users[user].key) {
                state.say(user, say, out, now);
            }
        }
        state.queue = queue;
    }

    fn wants_turn(&self) -> bool {
        !self.state.borrow().queue.is_empty()
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn is_over(&self) -> bool {
        let state = self.state.borrow();
        state.is_over || state.fault.is_some()
    }

    fn failed(&self, _outs: &mut Outs, error: &io::Error) {
        self.state.borrow_mut().fault.get_or_insert(error.to_string());
    }
}
