//! `parked`: requests that wait for news, very many at once: what each takes of the node's memory,
//! and what a message to each of them in turn costs.
//!
//! ```text
//!  sign in, open a channel each ─▶ memory ─▶ park all, hold ─▶ memory ─▶ a message to each in turn
//!                                                                        rows read, latencies
//! ```

mod helpers;
mod lot;
mod node;

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde::Serialize;

use self::lot::{Clients, Lot};
use self::node::{Counts, Node, busy};
use super::{RunError, SOCKETS, Stall};
use crate::cli;
use crate::latency::Percentiles;
use crate::limits::START_STALLED;
use crate::ready::Ready;
use crate::report::environment::{Machine, Versions};
use crate::threads::{self, Line, Order};

/// How often a waiting thread looks.
const LOOK: Duration = Duration::from_millis(20);
/// After everything has arrived: time for what should not arrive.
const QUIET: Duration = Duration::from_millis(300);

/// What it comes to.
#[derive(Clone, Debug, Serialize)]
pub struct Parked {
    /// What wrote this.
    pub versions: Versions,
    /// Where.
    pub machine: Machine,
    /// `longpoll` or `sse`.
    pub mode: String,
    /// Requests that were parked at once, each of a user.
    pub users: u32,
    /// The node's memory, if it is a process of this machine.
    pub memory: Option<Memory>,
    /// Messages a second that were asked for.
    pub rate_per_s: u32,
    /// What became of them.
    pub messages: Messages,
    /// Rows that the node's store gave, for each message.
    pub rows_per_message: f64,
    /// Reads of a user's whole inbox meanwhile.
    pub inbox_reads: u64,
    /// Requests that waited at the end.
    pub parked_at_end: u64,
    /// How busy the machine's cores were meanwhile, in percent of all.
    pub busy_percent: f64,
    /// What the node did that it must not do, or why the run ended early.
    pub fault: Option<String>,
    /// Bars that were asked for and are not kept.
    pub missed: Vec<String>,
}

/// Resident bytes of the node's process.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    /// Before anything was asked.
    pub before: u64,
    /// Users and their channels are known; nobody waits.
    pub known: u64,
    /// All wait.
    pub parked: u64,
    /// After a message to each.
    pub after: u64,
    /// KiB that a parked request takes: what came between `known` and `parked`.
    pub kib_each: f64,
    /// The same from `before` on: with its user, its channel and what else was remembered.
    pub kib_each_in_all: f64,
}

/// Messages and what became of them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Messages {
    /// Sent, and answered as stored.
    pub acked: u64,
    /// Given to the one they were for.
    pub delivered: u64,
    /// Acked, and not given.
    pub lost: u64,
    /// Given once more.
    pub duplicates: u64,
    /// Given to somebody else.
    pub strays: u64,
    /// Waits that ended by their time, and were begun again.
    pub renewed: u64,
    /// From the intended send to the answer.
    pub ack_us: Percentiles,
    /// From the intended send to what the parked request was given.
    pub deliver_us: Percentiles,
    /// Sends a second that were acked.
    pub acked_per_s: f64,
}

impl Parked {
    /// Whether everybody got what was theirs once, and the bars are kept.
    pub fn is_good(&self) -> bool {
        let Messages { acked, delivered, lost, duplicates, strays, .. } = self.messages;
        let whole = acked == u64::from(self.users) && delivered == acked;
        whole && lost + duplicates + strays == 0 && self.fault.is_none() && self.missed.is_empty()
    }
}

impl fmt::Display for Parked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let messages = &self.messages;
        let Messages { acked, delivered, lost, duplicates, strays, renewed, .. } = messages;
        writeln!(f, "parked     {} at once, by {}", self.users, self.mode)?;
        if let Some(memory) = &self.memory {
            let mib = |bytes| bytes as f64 / f64::from(1 << 20);
            let Memory { before, known, parked, after, kib_each, kib_each_in_all } = *memory;
            writeln!(
                f,
                "memory     {kib_each:.1} KiB each, {kib_each_in_all:.1} KiB with user and channel \
                 ({:.1}, {:.1}, {:.1}, at the end {:.1} MiB)",
                mib(before),
                mib(known),
                mib(parked),
                mib(after),
            )?;
        }
        writeln!(
            f,
            "messages   {acked} acked at {:.0}/s of {}, {delivered} delivered, {lost} lost, \
             {duplicates} doubled, {strays} astray; {renewed} waits renewed",
            messages.acked_per_s, self.rate_per_s,
        )?;
        for (what, us) in [("ack    ", messages.ack_us), ("deliver", messages.deliver_us)] {
            let Percentiles { p50, p99, max, .. } = us;
            writeln!(
                f,
                "{what}    p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
                p50 / 1e3,
                p99 / 1e3,
                max / 1e3
            )?;
        }
        writeln!(
            f,
            "store      {:.2} rows read a message, {} inboxes read",
            self.rows_per_message, self.inbox_reads
        )?;
        writeln!(
            f,
            "machine    {:.0} % busy meanwhile; {} parked at the end",
            self.busy_percent, self.parked_at_end
        )?;
        for reason in self.fault.iter().chain(&self.missed) {
            writeln!(f, "FAULT      {reason}")?;
        }
        writeln!(f, "verdict    {}", if self.is_good() { "good" } else { "FAILED" })
    }
}

/// Runs it.
///
/// # Errors
/// Not all requests came to be parked.
pub fn run(options: &cli::Parked) -> Result<Parked, RunError> {
    let results = threads::run(1, |_, line| whole(options, line));
    let mut results = results.map_err(RunError::io("threads and signals"))?;
    results.pop().expect("one thread has one result")
}

async fn whole(options: &cli::Parked, mut line: Line) -> Result<Parked, RunError> {
    let ready = Ready::read(&options.node)?;
    let node = Node::new(&ready)?;
    let before = node.memory()?;
    let clients = Rc::new(Clients {
        lot: RefCell::new(Lot::new(options, &ready.token_key()?)),
        turns: crate::turns::Turns::new().map_err(RunError::io(SOCKETS))?,
    });
    connect_helpers(&clients, &node).await?;
    let turns = tokio::task::spawn_local({
        let clients = clients.clone();
        async move { clients.turns.run(&*clients).await }
    });
    clients.with(Lot::prepare);
    until(&clients, &line, "users and channels are known", |lot| lot.known() as u64).await?;
    let (known, parked_before) = (node.memory()?, node.counts()?.parked);
    for _ in 0..options.users {
        clients.with_key(node.connect().await?, Lot::add_watcher);
        if line.order() != Order::Prepare {
            return Err(RunError::Stopped);
        }
    }
    until_parked(&clients, &line, &node, parked_before).await?;
    let start = line.ready().await.ok_or(RunError::Stopped)?;
    tokio::time::sleep_until((start + options.hold).into()).await;
    let parked = node.memory()?;
    let memory = before.zip(known).zip(parked).map(|((before, known), parked)| {
        let each = |from: u64| {
            let kib = parked.saturating_sub(from) as f64 / 1024.0 / f64::from(options.users);
            (kib * 100.0).round() / 100.0
        };
        let (kib_each, kib_each_in_all) = (each(known), each(before));
        Memory { before, known, parked, after: parked, kib_each, kib_each_in_all }
    });
    let counts = node.counts()?;
    let (busy_before, at) = (busy(), Instant::now());
    connect_helpers(&clients, &node).await?;
    clients.with(|lot| lot.begin(options.rate));
    let cut_short = delivered(&clients, &mut line, options.patience).await;
    let (took, busy_after) = (at.elapsed(), busy());
    let counted = node.counts()?;
    let after = node.memory()?;
    // Those that were woken last park again.
    tokio::time::sleep(QUIET).await;
    let parked_at_end = node.counts()?.parked.saturating_sub(parked_before);
    clients.with(|lot| lot.is_over = true);
    // It ends with the last turn; a fault of its own would have ended the thread.
    let _ = turns.await;
    let mut lot = clients.lot.borrow_mut();
    let messages = lot.messages();
    let per_message = |after: u64, before: u64| {
        let rows = after.saturating_sub(before) as f64 / messages.acked.max(1) as f64;
        (rows * 100.0).round() / 100.0
    };
    let Counts { rows_read, inbox_reads, .. } = counted;
    let memory = memory.zip(after).map(|(memory, after)| Memory { after, ..memory });
    let rows_per_message = per_message(rows_read, counts.rows_read);
    let mut missed = Vec::new();
    if let (Some(bar), Some(memory)) = (options.max_kib, &memory)
        && memory.kib_each > bar
    {
        missed.push(format!("{} KiB each are more than {bar}", memory.kib_each));
    }
    if options.max_rows.is_some_and(|bar| rows_per_message > bar) {
        missed.push(format!("{rows_per_message} rows a message are more than asked for"));
    }
    let share = busy_after.saturating_sub(busy_before).as_secs_f64() / took.as_secs_f64();
    Ok(Parked {
        versions: Versions::of_this_build(),
        machine: Machine::look(&ready.token_key_file),
        mode: lot.mode_name().to_owned(),
        users: options.users,
        memory,
        rate_per_s: options.rate,
        rows_per_message,
        inbox_reads: inbox_reads.saturating_sub(counts.inbox_reads),
        parked_at_end,
        busy_percent: (share * 1_000.0 / node::cores() as f64).round() / 10.0,
        fault: lot.fault.take().or(cut_short),
        missed,
        messages,
    })
}

/// Gives connections to the helpers that have none: the node ends those that idle.
async fn connect_helpers(clients: &Clients, node: &Node) -> Result<(), RunError> {
    let down = clients.with(|lot| lot.helpers_down());
    for helper in down {
        clients.with_key(node.connect().await?, |lot, key| lot.add_helper(helper, key));
    }
    Ok(())
}

/// Waits until `so_far` counts all users.
async fn until(
    clients: &Clients,
    line: &Line,
    what: &str,
    so_far: impl Fn(&Lot) -> u64,
) -> Result<(), RunError> {
    let mut stall = Stall::new(START_STALLED);
    loop {
        let (count, all, fault) = {
            let lot = clients.lot.borrow();
            (so_far(&lot), lot.users(), lot.fault.clone())
        };
        if let Some(fault) = fault {
            return Err(RunError::Node(fault));
        }
        if count >= all {
            return Ok(());
        }
        if line.order() != Order::Prepare {
            return Err(RunError::Stopped);
        }
        if stall.is_stalled(count) {
            return Err(RunError::Node(format!("{count} of {all} {what}, then nothing")));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until the node says that all wait.
async fn until_parked(
    clients: &Clients,
    line: &Line,
    node: &Node,
    before: u64,
) -> Result<(), RunError> {
    let mut stall = Stall::new(START_STALLED);
    let all = clients.lot.borrow().users();
    loop {
        until(clients, line, "users are known", |lot| lot.known() as u64).await?;
        let parked = node.counts()?.parked.saturating_sub(before);
        if parked >= all {
            return Ok(());
        }
        if stall.is_stalled(parked) {
            let hint =
                "limits.http_connections_max, limits.calls_max and the open files bound them";
            let text = format!("{parked} of {all} requests are parked, then none ({hint})");
            return Err(RunError::Node(text));
        }
        tokio::time::sleep(10 * LOOK).await;
    }
}

/// Waits until everything is sent and given; says why it did not come to that.
async fn delivered(clients: &Clients, line: &mut Line, patience: Duration) -> Option<String> {
    let mut stall = Stall::new(patience);
    loop {
        let (count, is_whole, is_waiting, is_broken) = {
            let lot = clients.lot.borrow();
            (lot.progress(), lot.is_whole(), lot.has_to_come(), lot.fault.is_some())
        };
        if is_whole {
            tokio::time::sleep(QUIET).await;
            return None;
        }
        if is_broken {
            return None;
        }
        if is_waiting {
            stall = Stall::new(patience);
        }
        if stall.is_stalled(count) {
            return Some(format!("nothing came for {} s", patience.as_secs_f64()));
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = line.changed() => {}
        }
        if matches!(line.order(), Order::Stop | Order::Abort) {
            return Some("stopped by a signal".to_owned());
        }
    }
}
