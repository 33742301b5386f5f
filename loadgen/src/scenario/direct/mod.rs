//! `direct`: pairs of users talk, in the open or the closed loop, and every message is accounted
//! for.
//!
//! ```text
//!  connect all ─▶ open all channels ─▶ (all threads ready) ─▶ warm up ─▶ measure ─▶ wait for what
//!                                                                                   is outstanding
//! ```

mod load;
mod meter;
mod sessions;
pub(super) mod talk;

use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use chatring_bare::cpu::thread_cpu_time;
use chatring_client::token::TokenKey;
use chatring_wire::frame::Durability;

use self::meter::Meter;
use self::sessions::Sessions;
use self::talk::{Phase, State, User};
use super::{Moment, RunError, Stall};
use crate::book::{Book, Counts};
use crate::cli;
use crate::evidence::{Found, Watch, Watched};
use crate::ledger::LedgerWriter;
use crate::limits::{LAG_EVIDENCE, PARTS_QUEUED_MAX, START_STALLED};
use crate::machine::{FineTimer, thread_wait_time};
use crate::plan::{OpenLoop, Rate};
use crate::pool::fresh_random;
use crate::ready::Ready;
use crate::report::collect::{Collected, Collector, Said};
use crate::report::environment::{Machine, Versions};
use crate::report::hdr_log::HdrLog;
use crate::report::interval::{Grid, Timed};
use crate::report::section::Sections;
use crate::report::stalls::StallReport;
use crate::report::{Backlog, Curves, Generator, Report, Setup};
use crate::stall::Stalls;
use crate::stamp::RunTag;
use crate::tally::Tally;
use crate::threads::{self, Line, Order};

/// How often waiting threads look.
const LOOK: Duration = Duration::from_millis(5);
/// After everything has arrived: time for what should not arrive (late duplicates).
const QUIET: Duration = Duration::from_millis(300);

/// The name (`sub`) of a user, the same from run to run.
pub fn user_name(number: u32) -> String {
    format!("loadgen-{number}")
}

/// Runs it. The second part of the result are findings and notes for people.
///
/// # Errors
/// The run never began.
pub fn run(options: &cli::Direct) -> Result<(Report, Vec<String>), RunError> {
    run_observed(options, &|_| {})
}

/// Runs it. `observer` is told when the measured time begins and ends.
///
/// # Errors
/// The run never began.
pub fn run_observed(
    options: &cli::Direct,
    observer: &(dyn Fn(Moment) + Sync),
) -> Result<(Report, Vec<String>), RunError> {
    run_carried(options, observer, Sessions::carry)
}

/// Who carries the messages of a thread's users to the node and back.
pub(super) trait Carrier {
    /// Changes the users' state or looks at it.
    fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R;
    /// Has a user look for something to do.
    fn wake(&self, place: usize);
    /// The same for all.
    fn wake_all(&self);
    /// What went over the sockets up to now.
    fn tally(&self) -> Tally;
    /// Why the last attempt to connect failed.
    fn trouble(&self) -> Option<String>;
    /// Ends all connections, within a bounded time; gives how many came after the first ones.
    async fn leave(&self) -> u64;
}

/// Runs the load of `direct`, carried by what `carry` makes for each thread of its users.
pub(super) fn run_carried<C: Carrier>(
    options: &cli::Direct,
    observer: &(dyn Fn(Moment) + Sync),
    carry: impl Fn(&Common<'_>, State) -> Result<C, RunError> + Sync,
) -> Result<(Report, Vec<String>), RunError> {
    if let Some(path) = &options.ledger {
        LedgerWriter::create(path).map_err(RunError::io(path.display().to_string()))?;
    }
    let log = match &options.output.hdr_log {
        Some(path) => {
            let log = HdrLog::create(path);
            Some(log.map_err(RunError::io(path.display().to_string()))?)
        }
        None => None,
    };
    let threads = options.threads.min(options.users / 2);
    let mut random = fresh_random(u64::from(options.users));
    let (out, parts) = sync_channel(PARTS_QUEUED_MAX);
    let ready = Ready::read(&options.node)?;
    let common = Common {
        options,
        observer,
        threads,
        key: ready.token_key()?,
        run: RunTag::new(random.draw()),
        origin: Instant::now(),
        origin_wall: SystemTime::now(),
        grid: Grid::new(options.warmup, options.duration),
    };
    let watched =
        Watched { pid: ready.pid, core: options.probe_core, folder: options.probe_dir.clone() };
    let watch = Watch::start(&watched).map_err(RunError::io("a probe of the machine"))?;
    let collector = Collector::new(common.grid, threads)
        .with_log(log)
        .with_progress(options.output.shows_progress());
    let (results, collected) = std::thread::scope(|scope| {
        let collector = scope.spawn(|| collector.run(parts));
        let work = |number, line| common.thread(number, line, out.clone(), &carry);
        let results = threads::run(threads, work);
        // It ends when nobody can say anything any more.
        drop(out);
        (results, collector.join().expect("collecting does not panic"))
    });
    let mut total = Part::default();
    for part in results.map_err(RunError::io("threads and signals"))? {
        total.merge(part?);
    }
    let found = watch.end();
    let machine = Machine::look(&ready.token_key_file);
    Ok(common.report(total, collected, found, machine))
}

/// What all threads share.
pub(super) struct Common<'a> {
    /// What was asked for.
    pub options: &'a cli::Direct,
    observer: &'a (dyn Fn(Moment) + Sync),
    threads: u32,
    /// Signs the users' tokens.
    pub key: TokenKey,
    run: RunTag,
    /// Times are counted from here.
    pub origin: Instant,
    /// The same on the wall clock.
    origin_wall: SystemTime,
    grid: Grid,
}

/// What one thread comes to.
#[derive(Default)]
struct Part {
    counts: Counts,
    notes: Vec<String>,
    errors: u64,
    reconnects: u64,
    acked_measured: u64,
    delivered_measured: u64,
    stalls: Stalls,
    lags: Stalls,
    measured_from_ns: u64,
    sections: Sections,
    tally: Tally,
    cpu_percent: f64,
    wait_percent: f64,
    backlog: Backlog,
    durability: Option<Durability>,
    cut_short: Option<String>,
}

/// CPU time and bytes at one moment.
#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    cpu: Duration,
    wait: Duration,
    backlog: u64,
    tally: Tally,
}

impl Part {
    fn merge(&mut self, other: Part) {
        self.counts += other.counts;
        self.notes.extend(other.notes);
        self.errors += other.errors;
        self.reconnects += other.reconnects;
        self.acked_measured += other.acked_measured;
        self.delivered_measured += other.delivered_measured;
        self.stalls.merge(other.stalls);
        self.lags.merge(other.lags);
        self.measured_from_ns = self.measured_from_ns.max(other.measured_from_ns);
        self.sections.merge(other.sections);
        self.tally.merge(&other.tally);
        self.cpu_percent = self.cpu_percent.max(other.cpu_percent);
        self.wait_percent = self.wait_percent.max(other.wait_percent);
        self.backlog.start += other.backlog.start;
        self.backlog.end += other.backlog.end;
        self.durability = self.durability.or(other.durability);
        self.cut_short = self.cut_short.take().or(other.cut_short);
    }
}

impl Common<'_> {
    async fn thread<C: Carrier>(
        &self,
        number: u32,
        mut line: Line,
        out: SyncSender<Said>,
        carry: &impl Fn(&Common<'_>, State) -> Result<C, RunError>,
    ) -> Result<Part, RunError> {
        let carrier = carry(self, self.state(number)?)?;
        let users = self.numbers(number).count();
        self.wait(&carrier, &line, "connected", users, |state| state.synced).await?;
        carrier.with(|state| state.phase = Phase::Opening);
        carrier.wake_all();
        self.wait(&carrier, &line, "have their channel", users, |state| state.opened).await?;
        let start = line.ready().await.ok_or(RunError::Stopped)?;
        let mut meter = Meter::new(self.grid, number, out, start);
        let talked = self.talk(number, start, &carrier, &mut line, &mut meter).await;
        let (samples, mut cut_short) = talked?;
        if let Some(reason) = self.drain(&carrier, &line, &mut meter).await {
            cut_short.get_or_insert(reason);
        }
        carrier.with(|state| meter.finish(state));
        carrier.with(|state| state.phase = Phase::Leaving);
        carrier.wake_all();
        let reconnects = carrier.leave().await;
        let mut part = Part { reconnects, cut_short, ..Part::default() };
        let [from, to] = samples;
        part.tally = to.tally.since(&from.tally);
        let wall = (to.at - from.at).as_secs_f64();
        part.cpu_percent = (to.cpu - from.cpu).as_secs_f64() / wall * 100.0;
        part.wait_percent = (to.wait - from.wait).as_secs_f64() / wall * 100.0;
        part.backlog = Backlog { start: from.backlog, end: to.backlog };
        self.close(&carrier, part)
    }

    /// The users of a thread: pairs are dealt out in turn.
    fn numbers(&self, thread: u32) -> impl Iterator<Item = u32> {
        let pairs = (thread..self.options.users / 2).step_by(self.threads as usize);
        pairs.flat_map(|pair| [2 * pair, 2 * pair + 1])
    }

    fn state(&self, thread: u32) -> Result<State, RunError> {
        let ledger = match &self.options.ledger {
            Some(path) => {
                let writer = LedgerWriter::open(path);
                Some(writer.map_err(RunError::io(path.display().to_string()))?)
            }
            None => None,
        };
        Ok(State {
            phase: Phase::Connecting,
            users: self.numbers(thread).map(User::new).collect(),
            book: Book::new(self.run, self.options.users, self.options.body),
            synced: 0,
            opened: 0,
            measured_ns: 0..0,
            acked_measured: 0,
            delivered_measured: 0,
            timed: Timed::default(),
            stalls: Stalls::new(self.options.stall_ms.saturating_mul(1_000_000)),
            lags: Stalls::new(LAG_EVIDENCE.as_nanos() as u64),
            sections: Sections::default(),
            durability: None,
            burn: Duration::from_micros(u64::from(self.options.burn_us)),
            ledger,
            errors: 0,
            notes: Vec::new(),
            fatal: None,
            closed_loop: self.options.window.is_some(),
            origin: self.origin,
            random: fresh_random(u64::from(thread)),
        })
    }

    /// Waits until `count` sessions are so far.
    async fn wait(
        &self,
        carrier: &impl Carrier,
        line: &Line,
        what: &str,
        count: usize,
        so_far: impl Fn(&State) -> usize,
    ) -> Result<(), RunError> {
        let mut stall = Stall::new(START_STALLED);
        loop {
            let (done, fatal) = carrier.with(|state| (so_far(state), state.fatal.clone()));
            if let Some(reason) = fatal {
                return Err(RunError::Node(reason));
            }
            if done == count {
                return Ok(());
            }
            if line.order() != Order::Prepare {
                return Err(RunError::Stopped);
            }
            if stall.is_stalled(done as u64) {
                let reason = carrier.trouble().unwrap_or_default();
                let text = format!("{done} of {count} users {what}, then nothing: {reason}");
                return Err(RunError::Node(text));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Sends as planned, from the common start to the end of the measured time.
    async fn talk(
        &self,
        thread: u32,
        start: Instant,
        carrier: &impl Carrier,
        line: &mut Line,
        meter: &mut Meter,
    ) -> Result<([Sample; 2], Option<String>), RunError> {
        let from = start + self.options.warmup;
        let to = from + self.options.duration;
        let ns = |at: Instant| at.duration_since(self.origin).as_nanos() as u64;
        carrier.with(|state| {
            state.measured_ns = ns(from)..ns(to);
            state.sections = Sections::new(load::spans(self.options, ns(from)));
            state.phase = Phase::Talking;
        });
        let mut timer = FineTimer::new().map_err(RunError::io("a timer"))?;
        timer.sleep(start.saturating_duration_since(Instant::now())).await.ok();
        let mut plan = self.plan(thread, carrier, ns(start));
        let mut first = None;
        loop {
            let now = Instant::now();
            let since_start = now.saturating_duration_since(start).as_nanos() as u64;
            carrier.with(|state| {
                while let Some(send) = plan.as_mut().and_then(|plan| plan.due(since_start)) {
                    state.users[send.user as usize].due.push_back(ns(start) + send.at_ns);
                    carrier.wake(send.user as usize);
                }
                state.flush_ledger();
                meter.tick(state, now);
            });
            if now >= from && first.is_none() {
                self.tell(thread, Moment::Begin);
                first = Some(sample(carrier));
            }
            let fatal = carrier.with(|state| state.fatal.clone());
            let stopped = matches!(line.order(), Order::Stop | Order::Abort)
                .then(|| "stopped by a signal or another thread".to_owned());
            let cut_short = fatal.or(stopped);
            if now >= to || cut_short.is_some() {
                let last = sample(carrier);
                self.tell(thread, Moment::End);
                self.end_of_talk(carrier, cut_short.is_some());
                return Ok(([first.unwrap_or(last), last], cut_short));
            }
            let next = plan.as_ref().and_then(OpenLoop::next_at_ns).map(Duration::from_nanos);
            let next = next.map_or(to, |next| start + next);
            let next = if first.is_none() { next.min(from) } else { next.min(to) };
            let next = next.min(meter.end());
            tokio::select! {
                slept = timer.sleep(next.saturating_duration_since(Instant::now())) => {
                    slept.map_err(RunError::io("the timer"))?;
                }
                () = line.changed() => {}
            }
            // Sessions have their turn, however late the plan is.
            tokio::task::yield_now().await;
        }
    }

    /// The first thread speaks for all.
    fn tell(&self, thread: u32, moment: Moment) {
        if thread == 0 {
            (self.observer)(moment);
        }
    }

    /// The open loop's plan; in the closed loop the first messages are due now.
    fn plan(&self, thread: u32, carrier: &impl Carrier, start_ns: u64) -> Option<OpenLoop> {
        let users = self.numbers(thread).count() as u32;
        if let Some(segments) = load::segments(self.options) {
            let all_users = self.options.users;
            let rate = Rate { segments, all_users, seed: self.options.seed };
            return Some(OpenLoop::new(&rate, users, thread, self.threads));
        }
        let window = self.options.window.unwrap_or(1);
        carrier.with(|state| {
            for user in &mut state.users {
                user.due.extend((0..window).map(|_| start_ns));
            }
        });
        carrier.wake_all();
        None
    }

    fn end_of_talk(&self, carrier: &impl Carrier, cut_short: bool) {
        carrier.with(|state| {
            state.phase = Phase::Waiting;
            if cut_short || self.options.window.is_some() {
                state.users.iter_mut().for_each(|user| user.due.clear());
            }
        });
    }

    /// Waits for what is outstanding; says why it gave up, if it did.
    async fn drain(
        &self,
        carrier: &impl Carrier,
        line: &Line,
        meter: &mut Meter,
    ) -> Option<String> {
        let mut stall = Stall::new(self.options.patience);
        loop {
            let (left, moved, fatal) = carrier.with(|state| {
                state.flush_ledger();
                meter.tick(state, Instant::now());
                let counts = state.book.counts();
                let moved = counts.sent + counts.acked + counts.delivered + counts.refused;
                (state.backlog(), moved, state.fatal.clone())
            });
            if left == 0 || fatal.is_some() || line.order() == Order::Abort {
                tokio::time::sleep(QUIET).await;
                return fatal;
            }
            if stall.is_stalled(moved) {
                let reason = carrier.trouble();
                let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
                return Some(format!("{left} messages outstanding, no progress{reason}"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Closes a thread's books.
    fn close(&self, carrier: &impl Carrier, mut part: Part) -> Result<Part, RunError> {
        carrier.with(|state| {
            state.flush_ledger();
            let empty = Book::new(self.run, 0, self.options.body);
            let (counts, findings) = std::mem::replace(&mut state.book, empty).finish();
            part.counts = counts;
            part.notes = std::mem::take(&mut state.notes);
            part.notes.extend(findings);
            part.errors = state.errors;
            part.acked_measured = state.acked_measured;
            part.delivered_measured = state.delivered_measured;
            part.stalls = std::mem::take(&mut state.stalls);
            part.lags = std::mem::take(&mut state.lags);
            part.measured_from_ns = state.measured_ns.start;
            part.sections = std::mem::take(&mut state.sections);
            part.durability = state.durability;
            part.cut_short = part.cut_short.take().or_else(|| state.fatal.clone());
        });
        Ok(part)
    }

    fn report(
        &self,
        total: Part,
        collected: Collected,
        found: Found,
        machine: Machine,
    ) -> (Report, Vec<String>) {
        let options = self.options;
        let stalls = StallReport::new(
            options.stall_ms as f64,
            &total.stalls,
            &total.lags,
            found,
            unix_us_of(self.origin_wall),
            total.measured_from_ns,
        );
        let seconds = options.duration.as_secs_f64();
        let log_error = collected.log_error;
        let log_error = log_error.map(|error| format!("the interval log is incomplete: {error}"));
        let setup = Setup {
            users: options.users,
            load: load::words(options),
            rate_per_s: options.rate,
            window: options.window,
            body_bytes: options.body,
            warmup_s: options.warmup.as_secs_f64(),
            duration_s: seconds,
            threads: self.threads,
            seed: options.seed,
            burn_us: options.burn_us,
            cut_short: total.cut_short.or(log_error),
        };
        let counts = total.counts;
        let found = counts.corrupt + counts.conflicting + counts.gaps + counts.unacked;
        let percent = |share: f64| (share * 10.0).round() / 10.0;
        let Timed { ack, deliver, lag, late, held } = collected.timed;
        let cpu_percent = percent(total.cpu_percent);
        let sends = lag.count() + held;
        let is_open = options.window.is_none();
        let generator = Generator {
            bottleneck: Generator::judge(cpu_percent, late, sends, is_open),
            wait_percent: percent(total.wait_percent),
            lag: lag.percentiles(),
            sends,
            late,
            held,
        };
        let report = Report {
            setup,
            counts,
            errors: total.errors + found,
            reconnects: total.reconnects,
            acked_per_s: total.acked_measured as f64 / seconds,
            delivered_per_s: total.delivered_measured as f64 / seconds,
            loadgen_cpu_percent: cpu_percent,
            ack: ack.percentiles(),
            deliver: deliver.percentiles(),
            wire: total.tally.wire(),
            generator,
            backlog: total.backlog,
            sections: total.sections.report(),
            stalls,
            durability: total.durability.map(|durability| format!("{durability:?}").to_lowercase()),
            started_unix_ms: collected.measured_from.map_or(0, unix_ms_of),
            command: std::env::args().collect(),
            machine,
            versions: Versions::of_this_build(),
            curves: Curves { ack: ack.curve(), deliver: deliver.curve() },
            series: collected.series,
        };
        (report, total.notes)
    }
}

fn sample(carrier: &impl Carrier) -> Sample {
    Sample {
        at: Instant::now(),
        cpu: thread_cpu_time(),
        wait: thread_wait_time(),
        backlog: carrier.with(|state| state.backlog()),
        tally: carrier.tally(),
    }
}

fn unix_ms_of(at: SystemTime) -> u64 {
    unix_us_of(at) / 1_000
}

fn unix_us_of(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}
