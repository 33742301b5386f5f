//! `http`: the load of `direct` over HTTP: each user posts on one kept-alive connection, and
//! receives by polling, waiting or listening on another one.
//!
//! ```text
//!  user ─┬─ asks ─▶ POST messages, under the same key until it is answered; history below gaps
//!        └─ news ◀─ sync (poll, long poll) · events (SSE) · WebSocket: one cursor for them all
//! ```

mod asks;
mod net;
mod news;
mod socket;

use std::cell::RefCell;
use std::rc::Rc;

use self::net::{Net, Plan};
use super::direct::talk::State;
use super::direct::{self, Carrier, Common};
use super::{Moment, RunError};
use crate::cli;
use crate::report::Report;
use crate::tally::Tally;

/// Runs it. The second part of the result are findings and notes for people.
///
/// # Errors
/// The run never began.
pub fn run(options: &cli::Http) -> Result<(Report, Vec<String>), RunError> {
    run_observed(options, &|_| {})
}

/// Runs it. `observer` is told when the measured time begins and ends.
///
/// # Errors
/// The run never began.
pub fn run_observed(
    options: &cli::Http,
    observer: &(dyn Fn(Moment) + Sync),
) -> Result<(Report, Vec<String>), RunError> {
    let plan = Plan {
        receive: options.receive,
        poll_every: options.poll_every,
        change_every: options.change_every,
        base: options.base,
    };
    let (mut report, notes) =
        direct::run_carried(&options.load, observer, |common, state| carry(common, plan, state))?;
    report.setup.load = format!("{} over HTTP, received by {}", report.setup.load, plan.words());
    Ok((report, notes))
}

struct Courier(Rc<socket::Clients>);

fn carry(common: &Common<'_>, plan: Plan, state: State) -> Result<Courier, RunError> {
    let net = Net::new(plan, common, &state);
    let clients = socket::Clients::new(&common.options.node, RefCell::new(state), net);
    let clients = clients.map_err(RunError::io(super::SOCKETS))?;
    tokio::task::spawn_local(clients.clone().run());
    Ok(Courier(clients))
}

impl Carrier for Courier {
    fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        self.0.with(change)
    }

    fn wake(&self, place: usize) {
        self.0.wake(place);
    }

    fn wake_all(&self) {
        self.0.wake_all();
    }

    fn tally(&self) -> Tally {
        self.0.net().tally
    }

    fn trouble(&self) -> Option<String> {
        self.0.net().trouble.clone()
    }

    async fn leave(&self) -> u64 {
        self.0.net().reconnects()
    }
}
