//! `http-share`: which share of a bare HTTP handler the node's durable sends reach, in one command.
//!
//! ```text
//!  each round:  bare axum handler ─▶ chatring serve      the same requests, one in flight each
//!               (every server fresh, on its core; the generator on another one, in this process)
//! ```

mod posts;

use std::fmt;
use std::net::SocketAddr;

use chatring_client::token::TokenKey;
use serde::Serialize;

use self::posts::Target;
use super::share::{COME_UP_MAX, Measured, Middle, Place, Watch, Who};
use super::{RunError, share};
use crate::cli;
use crate::process::pin;
use crate::ready::Ready;

/// Share of the bare handler's rate that the node is to reach at least, in percent.
const RATE_PERCENT_MIN: f64 = 35.0;

/// All that was measured, in its order.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Rounds {
    /// Connections, each with one request in flight.
    pub users: u32,
    /// Measured time of each load.
    pub duration_s: f64,
    /// As fast as it is answered: each round has one of each.
    pub measured: Vec<Measured>,
    /// The same in the open loop; empty if it was not asked for.
    pub open: Vec<Measured>,
}

/// What the rounds come to.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Rate of the node as a share of the bare handler's in the same round, percent.
    pub rate_percent: Middle,
    /// CPU per request of the bare handler as a share of the node's in the same round, percent.
    pub cpu_percent: Middle,
    /// Whether the bar is kept by the median.
    pub kept: bool,
}

/// Runs it; says on standard output how each load went.
///
/// # Errors
/// A server does not come up, or a load never began.
pub fn run(options: &cli::HttpShare) -> Result<Rounds, RunError> {
    let place = Place::new(&options.place, &["chatring", "chatring-bare-http"])?;
    place.print_machine();
    pin(options.place.generator_core).map_err(RunError::io("the generator's core"))?;
    let (users, duration_s) = (options.users, options.place.duration.as_secs_f64());
    let mut rounds = Rounds { users, duration_s, ..Rounds::default() };
    for round in 1..=options.place.rounds {
        println!("round {round}");
        for who in [Who::BareHttp, Who::Chatring] {
            rounds.measured.push(measure(options, &place, who, None)?);
        }
    }
    let Some(rate) = options.rate else { return Ok(rounds) };
    for round in 1..=options.place.rounds {
        println!("round {round} at {rate}/s");
        for who in [Who::BareHttp, Who::Chatring] {
            rounds.open.push(measure(options, &place, who, Some(rate))?);
        }
    }
    Ok(rounds)
}

fn measure(
    options: &cli::HttpShare,
    place: &Place<'_>,
    who: Who,
    rate: Option<u32>,
) -> Result<Measured, RunError> {
    let measured = place.within_home(|home| match who {
        Who::Chatring => node(options, place, rate, home),
        _ => bare(options, place, rate),
    })?;
    println!("  {measured}");
    Ok(measured)
}

fn bare(
    options: &cli::HttpShare,
    place: &Place<'_>,
    rate: Option<u32>,
) -> Result<Measured, RunError> {
    let mut server = place.start("chatring-bare-http", &[])?;
    let line = server.first_line(COME_UP_MAX).map_err(RunError::io("the bare handler"))?;
    let address = line.trim_end().strip_prefix("listening on ");
    let address = address.and_then(|address| address.parse::<SocketAddr>().ok());
    let address = address.ok_or_else(|| RunError::Node(format!("no handler: {line}")))?;
    let watch = Watch::new(&server, options.place.server_core);
    // Nobody looks at its tokens, but they take their bytes.
    let (key, _) = TokenKey::generate().map_err(|error| RunError::Node(error.to_string()))?;
    let target = Target { address, key: &key, keeps: false };
    let posted = posts::run(options, &target, rate, &|moment| watch.look(moment))?;
    finish(Who::BareHttp, options, rate, posted, watch)
}

fn node(
    options: &cli::HttpShare,
    place: &Place<'_>,
    rate: Option<u32>,
    home: &std::path::Path,
) -> Result<Measured, RunError> {
    let (server, ready) = place.start_node(home)?;
    let ready = Ready::read(&ready)?;
    let (address, key) = (ready.plain_api()?, ready.token_key()?);
    let watch = Watch::new(&server, options.place.server_core);
    let target = Target { address, key: &key, keeps: true };
    let posted = posts::run(options, &target, rate, &|moment| watch.look(moment))?;
    finish(Who::Chatring, options, rate, posted, watch)
}

fn finish(
    who: Who,
    options: &cli::HttpShare,
    rate: Option<u32>,
    posted: posts::Posted,
    watch: Watch<'_>,
) -> Result<Measured, RunError> {
    let duration_s = options.place.duration.as_secs_f64();
    let (used, busy) = watch.used()?;
    share::whole(posted.cut_short.as_deref())?;
    let measured = Measured {
        who,
        offered_per_s: rate,
        acked_per_s: posted.acked as f64 / duration_s,
        server_us: 0.0,
        server_us_by_thread: Default::default(),
        ack: posted.ack.percentiles(),
        deliver: Default::default(),
        generator_percent: posted.cpu_percent,
        others_percent: 0.0,
        fault: posted.fault,
    };
    Ok(measured.with_cpu(&used, busy, duration_s))
}

impl Rounds {
    /// Whether every request of every load was answered as it should.
    pub fn is_good(&self) -> bool {
        self.measured.iter().chain(&self.open).all(|measured| measured.fault.is_none())
    }

    /// What they come to.
    pub fn verdict(&self) -> Verdict {
        let ratio = |what: fn(&Measured, &Measured) -> f64| {
            let pairs = of(&self.measured, Who::Chatring).zip(of(&self.measured, Who::BareHttp));
            Middle::of(pairs.map(|(node, bare)| what(node, bare)))
        };
        let rate_percent = ratio(|node, bare| 100.0 * node.acked_per_s / bare.acked_per_s);
        let cpu_percent = ratio(|node, bare| 100.0 * bare.server_us / node.server_us);
        let kept = rate_percent.median >= RATE_PERCENT_MIN;
        Verdict { rate_percent, cpu_percent, kept }
    }
}

fn of(list: &[Measured], who: Who) -> impl Iterator<Item = &Measured> {
    list.iter().filter(move |measured| measured.who == who)
}

/// The summary, after the lines of the rounds.
impl fmt::Display for Rounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = of(&self.measured, Who::Chatring).count();
        writeln!(f, "medians of {rounds} rounds (lowest–highest), {} connections", self.users)?;
        for (list, load) in [(&self.measured, "closed"), (&self.open, "open")] {
            for who in [Who::BareHttp, Who::Chatring] {
                if of(list, who).next().is_none() {
                    continue;
                }
                let middle = |what: fn(&Measured) -> f64| Middle::of(of(list, who).map(what));
                write!(f, "  {load:6} {} {:.0}/s", share::name(who), middle(|m| m.acked_per_s))?;
                write!(f, ", {:.1} µs of CPU a request", middle(|m| m.server_us))?;
                write!(f, ", answer p50 {:.0}", middle(|m| m.ack.p50))?;
                writeln!(f, ", p99 {:.0} µs", middle(|m| m.ack.p99))?;
            }
        }
        let Verdict { rate_percent, cpu_percent, kept } = self.verdict();
        writeln!(f, "of bare HTTP   {rate_percent:.0} % of the rate, {cpu_percent:.0} % by CPU")?;
        let word = if kept { "kept" } else { "MISSED" };
        writeln!(f, "bar    rate, at least {RATE_PERCENT_MIN} % of bare HTTP: {word}")
    }
}
