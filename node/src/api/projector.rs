//! Has the chat store follow what the accounts decide.
//!
//! ```text
//!   handler ─▶ transaction with outbox ─▶ committed ─▶ follow ─▶ owner of the user ─▶ done
//!                                   └─▶ loop: take ─▶ the same, until it succeeds ─▶ done
//! ```
//!
//! The handler's way is the quick one; the loop makes sure, whatever ends in between. Both may
//! carry the same change out, in any order: the chat store tells which one is newer.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chatring_core::call::{Decision, Relation};
use chatring_wire::ErrorCode;
use tokio::task::JoinSet;
use tracing::warn;

use super::accounts::{About, AccountError, Accounts, Backlog, Change, Projection};
use super::extract::unix_ms;
use super::limits::{
    PROJECTION_GRACE, PROJECTION_LEASE, PROJECTION_LOOK, PROJECTION_PAUSE, PROJECTION_TIME_MAX,
    PROJECTIONS_AT_ONCE,
};
use super::problem::Problem;
use super::{Phase, Shared, State};
use crate::metrics::{Metric, MetricValue};

/// What the loop has seen and done, for the scraper.
#[derive(Debug, Default)]
pub(super) struct Figures {
    rows: AtomicU64,
    oldest_ms: AtomicU64,
    failed: AtomicU64,
}

impl State {
    /// Has the chat store take over what was just committed about this, and does not wait for long:
    /// the loop goes on with what was not done.
    ///
    /// # Errors
    /// Why not all of it was taken over: the database, or the shards.
    pub(super) async fn follow(&self, accounts: &Accounts, what: About<'_>) -> Result<(), Problem> {
        let follow = async {
            let waiting = accounts.waiting(what).await?;
            for one in &waiting {
                self.carry_out(one).await?;
            }
            Ok(accounts.done(&waiting).await?)
        };
        within(follow).await
    }

    async fn carry_out(&self, projection: &Projection) -> Result<(), Problem> {
        let at_s = projection.at_ms / 1_000;
        let (account, decision) = match &projection.change {
            Change::DeviceSignedOut { account, installation } => {
                (account, Decision::DeviceSignedOut { installation: *installation, at_s })
            }
            Change::DeviceRemoved { account, installation } => {
                (account, Decision::DeviceRemoved { installation: *installation })
            }
            Change::AccountDeleted { account } => (account, Decision::AccountDeleted { at_s }),
            Change::Relation { owner, peer, friends, blocked } => {
                let (issuer, subject) = (String::new(), peer.to_string());
                let (version, friends, blocked) = (projection.version, *friends, *blocked);
                let relation = Relation { issuer, subject, version, friends, blocked };
                (owner, Decision::Relation(relation))
            }
        };
        self.chat()?.decide(account.as_str(), decision).await
    }
}

async fn within(follow: impl Future<Output = Result<(), Problem>>) -> Result<(), Problem> {
    match tokio::time::timeout(PROJECTION_TIME_MAX, follow).await {
        Ok(followed) => followed,
        Err(_) => Err(ErrorCode::Unavailable.into()),
    }
}

/// Carries out what lies in the outbox, for as long as it is polled.
pub(super) async fn run(state: Shared, accounts: Accounts) {
    let mut phase = state.phase.subscribe();
    // The sender lives as long as the state.
    let _ = phase.wait_for(|phase| *phase == Phase::Ready).await;
    loop {
        match round(&state, &accounts).await {
            Ok(Round::Done) => {
                accounts.projections_wait(PROJECTION_LOOK).await;
                tokio::time::sleep(PROJECTION_GRACE).await;
            }
            Ok(Round::More) => {}
            Ok(Round::Failed) => tokio::time::sleep(PROJECTION_PAUSE).await,
            Err(error) => {
                warn!(%error, "what the chat store must learn was not read");
                tokio::time::sleep(PROJECTION_PAUSE).await;
            }
        }
    }
}

/// How a round went.
enum Round {
    /// There may be more.
    More,
    /// There was nothing.
    Done,
    /// Some was not taken over, and is given again later.
    Failed,
}

async fn round(state: &Shared, accounts: &Accounts) -> Result<Round, AccountError> {
    let taken = accounts.take_projections(PROJECTIONS_AT_ONCE, PROJECTION_LEASE).await?;
    state.projected.saw(accounts.backlog().await?);
    if taken.is_empty() {
        return Ok(Round::Done);
    }
    let (count, mut under_way) = (taken.len(), JoinSet::new());
    for one in taken {
        let state = Shared::clone(state);
        under_way.spawn(async move {
            let carried_out = within(state.carry_out(&one)).await;
            carried_out.map(|()| one).map_err(|problem| problem.code())
        });
    }
    let mut done = Vec::with_capacity(count);
    let mut failed = None;
    while let Some(one) = under_way.join_next().await {
        match one {
            Ok(Ok(one)) => done.push(one),
            Ok(Err(code)) => failed = Some(code),
            Err(_) => failed = Some(ErrorCode::Internal),
        }
    }
    accounts.done(&done).await?;
    let Some(code) = failed else { return Ok(Round::More) };
    let not_done = count - done.len();
    state.projected.failed.fetch_add(not_done as u64, Ordering::Relaxed);
    warn!(not_done, why = code.name(), "the chat store has not followed the accounts");
    Ok(Round::Failed)
}

impl Figures {
    fn saw(&self, backlog: Backlog) {
        self.rows.store(backlog.rows, Ordering::Relaxed);
        self.oldest_ms.store(backlog.oldest_ms, Ordering::Relaxed);
    }

    /// For the scraper.
    pub(super) fn metrics(&self) -> [Metric; 3] {
        let oldest_ms = self.oldest_ms.load(Ordering::Relaxed);
        let age_ms = if oldest_ms == 0 { 0 } else { unix_ms().saturating_sub(oldest_ms) };
        let age = Duration::from_millis(age_ms).as_secs_f64();
        [
            (
                "chatring_accounts_outbox_rows",
                "changes that the chat store has not taken over, at the last look",
                MetricValue::Gauge(self.rows.load(Ordering::Relaxed)),
            ),
            (
                "chatring_accounts_outbox_age_seconds",
                "age of the oldest of them",
                MetricValue::GaugeF(age),
            ),
            (
                "chatring_accounts_projections_failed",
                "attempts to have the chat store follow that failed",
                MetricValue::Counter(self.failed.load(Ordering::Relaxed)),
            ),
        ]
        .map(|(name, help, value)| Metric::new(name, help, value))
    }
}
