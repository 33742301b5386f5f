//! `flood`: requests that no well-meaning client makes, as fast as the node answers them, and what
//! that costs the node.
//!
//! ```text
//!  connections, one request in flight each ─▶ node's API      answers, counted by their kind
//!  a thread that looks                     ─▶ /proc/PID       memory and threads, now and at most
//! ```

mod http2;
mod requests;
mod watch;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::requests::Requests;
pub use self::watch::Usage;
use super::RunError;
use crate::cli;
use crate::http::answer::{Answers, Heard};
use crate::http::bodies::Problem;
use crate::limits::{FLOOD_CONNECTIONS_MAX, FLOOD_REQUESTS_MAX};
use crate::ready::Ready;
use crate::threads::{self, Line, Order};

/// How long an answer may take: longer than anything that the node waits for.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Pause after the node took no connection.
const NO_CONNECTION_PAUSE: Duration = Duration::from_millis(50);
/// Time between two bytes of a slow body.
const DRIP: Duration = Duration::from_secs(1);
/// What is read at once.
const READ_BYTES: usize = 16 * 1024;

/// The options of `flood`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Ready file of the node
    #[arg(long, value_name = "READY.json")]
    pub node: PathBuf,
    /// What of
    #[arg(long, value_enum, value_name = "KIND")]
    pub kind: Kind,
    /// Requests, at least
    #[arg(long, value_name = "N", default_value_t = 10_000,
          value_parser = clap::value_parser!(u64).range(..=FLOOD_REQUESTS_MAX))]
    pub count: u64,
    /// Time, at least: further requests are made until it is over
    #[arg(long, default_value = "0s", value_parser = cli::duration)]
    pub duration: Duration,
    /// Connections, each with one request in flight
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(FLOOD_CONNECTIONS_MAX)))]
    pub connections: u32,
    /// Says of so many addresses in turn that they ask, as a proxy would; a node believes it that
    /// has this machine among its `server.trusted_proxies`
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true,
          value_parser = clap::value_parser!(u32).range(..=1 << 24))]
    pub addresses: u32,
    /// Writes the result here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// What a flood is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Tokens in turn that are none, have a wrong signature, have expired
    Tokens,
    /// Log-ins with a guessed password, each of another handle
    Passwords,
    /// Sign-ups, each of another handle
    SignUps,
    /// Bodies that come byte by byte and never end
    Bodies,
    /// Heads of 1 MiB, each on a connection of its own
    Heads,
    /// The same over HTTP/2: in turns 1 MiB of bytes, and few that stand for 1 MiB
    Heads2,
}

/// What a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It was answered with this status.
    Status(u16),
    /// The node ended the connection of HTTP/2 with this error.
    GoAway(u32),
    /// The node ended the connection without an answer.
    Closed,
    /// The node took no connection.
    NoConnection,
    /// Nothing came for a minute, or nothing that is HTTP.
    NoAnswer,
}

/// What it comes to.
#[derive(Clone, Debug, Serialize)]
pub struct Flooded {
    /// What was sent.
    pub kind: Kind,
    /// How many requests were begun.
    pub requests: u64,
    /// From the first to the last.
    pub took_s: f64,
    /// What they came to.
    #[serde(serialize_with = "by_name")]
    pub outcomes: BTreeMap<Outcome, u64>,
    /// Answers "later" that did not say when.
    pub without_time: u64,
    /// Whether it was stopped before its end.
    pub is_cut_short: bool,
    /// The node's process meanwhile, if it is on this machine.
    pub node: Option<Usage>,
}

impl Kind {
    /// Whether a node may treat such a request so.
    fn allows(self, outcome: Outcome) -> bool {
        match (self, outcome) {
            (_, Outcome::Status(429 | 503)) => true,
            (Kind::Tokens | Kind::Passwords, Outcome::Status(401)) => true,
            (Kind::SignUps, Outcome::Status(201)) => true,
            (Kind::Bodies, Outcome::Status(408)) => true,
            // An answer may be lost when the node ends a connection from which more comes.
            (Kind::Heads | Kind::Heads2, Outcome::Status(431) | Outcome::Closed) => true,
            (Kind::Heads2, Outcome::GoAway(_)) => true,
            _ => false,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Status(status) => write!(f, "{status}"),
            Outcome::GoAway(error) => write!(f, "go away ({error})"),
            Outcome::Closed => write!(f, "closed"),
            Outcome::NoConnection => write!(f, "no connection"),
            Outcome::NoAnswer => write!(f, "no answer"),
        }
    }
}

impl Flooded {
    /// Requests that came to this.
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(&outcome).copied().unwrap_or_default()
    }

    /// Whether every request was answered as it should be.
    pub fn is_good(&self) -> bool {
        let is_whole = self.without_time == 0 && !self.is_cut_short;
        is_whole && self.outcomes.keys().all(|outcome| self.kind.allows(*outcome))
    }
}

impl fmt::Display for Flooded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Flooded { requests, took_s, without_time, .. } = self;
        writeln!(f, "requests   {requests} in {took_s:.1} s")?;
        let outcomes = self.outcomes.iter().map(|(outcome, count)| format!("{outcome}: {count}"));
        writeln!(f, "answers    {}", outcomes.collect::<Vec<_>>().join(", "))?;
        if *without_time > 0 {
            writeln!(f, "UNTIMED    {without_time} were told to come later and not when")?;
        }
        if self.is_cut_short {
            writeln!(f, "CUT SHORT  stopped by a signal")?;
        }
        if let Some(node) = &self.node {
            writeln!(f, "node       {node}")?;
        }
        writeln!(f, "verdict    {}", if self.is_good() { "good" } else { "FAILED" })
    }
}

/// Runs it.
///
/// # Errors
/// It never began.
pub fn run(options: &Options) -> Result<Flooded, RunError> {
    let ready = Ready::read(&options.node)?;
    let address = ready.plain_api()?;
    let requests = Requests::new(options, &ready.token_key()?);
    let watch = ready.pid.and_then(watch::Watch::start);
    let results = threads::run(1, |_, line| flood(options, address, requests.clone(), line));
    let mut results = results.map_err(RunError::io("threads and signals"))?;
    let mut flooded = results.pop().expect("one thread has one result")?;
    flooded.node = watch.map(watch::Watch::end);
    Ok(flooded)
}

async fn flood(
    options: &Options,
    address: SocketAddr,
    requests: Requests,
    mut line: Line,
) -> Result<Flooded, RunError> {
    let start = line.ready().await.ok_or(RunError::Stopped)?;
    // It lies a little ahead; before it would be more than was asked for.
    tokio::time::sleep_until(start.into()).await;
    let flood = Rc::new(Flood {
        address,
        requests,
        kind: options.kind,
        count: options.count,
        until: start + options.duration,
        sent: Cell::new(0),
        outcomes: RefCell::default(),
        without_time: Cell::new(0),
    });
    let mut is_cut_short = false;
    let mut connections = JoinSet::new();
    for _ in 0..options.connections {
        connections.spawn_local(Rc::clone(&flood).one_by_one());
    }
    loop {
        tokio::select! {
            ended = connections.join_next() => match ended {
                Some(Ok(())) => {}
                Some(Err(error)) if error.is_cancelled() => {}
                Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
                None => break,
            },
            () = line.changed() => {
                // Nothing outstanding is worth a wait: a slow body has ten seconds.
                is_cut_short |= matches!(line.order(), Order::Stop | Order::Abort);
                if is_cut_short {
                    connections.abort_all();
                }
            }
        }
    }
    Ok(Flooded {
        kind: options.kind,
        requests: flood.sent.get(),
        took_s: start.elapsed().as_secs_f64(),
        outcomes: flood.outcomes.take(),
        without_time: flood.without_time.get(),
        is_cut_short,
        node: None,
    })
}

struct Flood {
    address: SocketAddr,
    requests: Requests,
    kind: Kind,
    count: u64,
    until: Instant,
    sent: Cell<u64>,
    outcomes: RefCell<BTreeMap<Outcome, u64>>,
    without_time: Cell<u64>,
}

impl Flood {
    /// Makes requests on one connection, or on one after the other, until there are enough.
    async fn one_by_one(self: Rc<Flood>) {
        let mut kept: Option<Exchange> = None;
        while let Some(number) = self.next() {
            let connection = match kept.take() {
                Some(connection) => Ok(connection),
                None => Exchange::connect(self.address).await,
            };
            let outcome = match connection {
                Ok(mut connection) => {
                    let asked = timeout(ANSWER_MAX, self.ask(&mut connection, number)).await;
                    let outcome = asked.unwrap_or(Outcome::NoAnswer);
                    if connection.is_kept {
                        kept = Some(connection);
                    }
                    outcome
                }
                Err(_) => {
                    tokio::time::sleep(NO_CONNECTION_PAUSE).await;
                    Outcome::NoConnection
                }
            };
            *self.outcomes.borrow_mut().entry(outcome).or_default() += 1;
        }
    }

    fn next(&self) -> Option<u64> {
        let number = self.sent.get();
        if number >= self.count && Instant::now() >= self.until {
            return None;
        }
        self.sent.set(number + 1);
        Some(number)
    }

    async fn ask(&self, connection: &mut Exchange, number: u64) -> Outcome {
        let request = self.requests.request(number);
        match self.kind {
            Kind::Tokens | Kind::Passwords | Kind::SignUps => {
                if connection.stream.write_all(&request).await.is_err() {
                    return Outcome::Closed;
                }
                let Exchange { stream, answers, is_kept } = connection;
                let (outcome, is_timed) = answer(stream, answers).await;
                *is_kept = matches!(outcome, Outcome::Status(_));
                self.note(is_timed);
                outcome
            }
            Kind::Bodies | Kind::Heads => {
                let (mut reader, mut writer) = connection.stream.split();
                let answered = answer(&mut reader, &mut connection.answers);
                let written = async {
                    // The node may end the connection, or answer, before it has all.
                    let mut left = writer.write_all(&request).await;
                    while self.kind == Kind::Bodies && left.is_ok() {
                        tokio::time::sleep(DRIP).await;
                        left = writer.write_all(b" ").await;
                    }
                    std::future::pending().await
                };
                let (outcome, is_timed) = tokio::select! {
                    answered = answered => answered,
                    () = written => unreachable!("it only writes"),
                };
                self.note(is_timed);
                outcome
            }
            Kind::Heads2 => {
                let (mut reader, mut writer) = connection.stream.split();
                tokio::select! {
                    outcome = http2::answer(&mut reader) => outcome,
                    () = async {
                        let _ = writer.write_all(&request).await;
                        std::future::pending().await
                    } => unreachable!("it only writes"),
                }
            }
        }
    }

    fn note(&self, is_timed: bool) {
        self.without_time.set(self.without_time.get() + u64::from(!is_timed));
    }
}

/// A connection, and what has come on it.
struct Exchange {
    stream: TcpStream,
    answers: Answers,
    /// Whether it is good for another request.
    is_kept: bool,
}

impl Exchange {
    async fn connect(address: SocketAddr) -> io::Result<Exchange> {
        let stream = timeout(ANSWER_MAX, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(Exchange { stream, answers: Answers::default(), is_kept: false })
    }
}

/// Reads an answer of HTTP/1.1, and whether it says when to come if it says "later".
async fn answer(stream: &mut (impl AsyncRead + Unpin), answers: &mut Answers) -> (Outcome, bool) {
    let mut bytes = vec![0; READ_BYTES];
    loop {
        let read = match stream.read(&mut bytes).await {
            Ok(read @ 1..) => read,
            Ok(0) | Err(_) => return (Outcome::Closed, true),
        };
        let mut whole = None;
        let fed = answers.feed(&bytes[..read], |heard| match heard {
            Heard::Answer { status, body, .. } => {
                let is_timed = !matches!(status, 429 | 503) || tells_when(body);
                whole = Some((Outcome::Status(status), is_timed));
            }
            Heard::Begun { .. } | Heard::Piece(_) | Heard::End => {}
        });
        match (fed, whole) {
            (Err(_), _) => return (Outcome::NoAnswer, true),
            (Ok(()), Some(whole)) => return whole,
            (Ok(()), None) => {}
        }
    }
}

fn tells_when(body: &[u8]) -> bool {
    let problem: Result<Problem<'_>, _> = serde_json::from_slice(body);
    problem.is_ok_and(|problem| problem.retry_after_ms.is_some())
}

fn by_name<S: serde::Serializer>(
    outcomes: &BTreeMap<Outcome, u64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(outcomes.iter().map(|(outcome, count)| (outcome.to_string(), count)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_good_only_if_nothing_was_let_through() {
        let flooded = |kind, outcomes: &[(Outcome, u64)], without_time| Flooded {
            kind,
            requests: 1,
            took_s: 1.0,
            outcomes: outcomes.iter().copied().collect(),
            without_time,
            is_cut_short: false,
            node: None,
        };
        let refused = [(Outcome::Status(401), 7), (Outcome::Status(429), 2)];
        let good = flooded(Kind::Tokens, &refused, 0);
        assert!(good.is_good() && good.to_string().contains("401: 7, 429: 2"), "{good}");
        let json = serde_json::to_value(&good).unwrap();
        assert_eq!((&json["kind"], &json["outcomes"]["429"]), (&"tokens".into(), &2.into()));
        assert!(!flooded(Kind::Tokens, &refused, 1).is_good());
        for (kind, outcome) in [
            (Kind::Tokens, Outcome::Status(200)),
            (Kind::Passwords, Outcome::Status(200)),
            (Kind::SignUps, Outcome::Status(500)),
            (Kind::Bodies, Outcome::Closed),
            (Kind::Heads, Outcome::Status(401)),
            (Kind::Heads, Outcome::NoAnswer),
            (Kind::Heads2, Outcome::NoConnection),
        ] {
            assert!(!flooded(kind, &[(outcome, 1)], 0).is_good(), "{kind:?} {outcome}");
        }
    }
}
