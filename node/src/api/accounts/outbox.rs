//! What the chat store must learn: written with what it tells of, given out until it is done.
//!
//! There is one row for each thing that the chat store knows (how one user stands to another, a
//! device, an account), and a newer change takes the place of an older one. Versions rise within an
//! account. Taking a row leases it; a taker that dies lets another one have it when the lease is
//! over. So a row may be given twice, and each says how things are now: carry it out if its version
//! is above what was carried out for its topic, and then say `done`.

use std::time::Duration;

use chatring_wire::InstallationId;
use sqlx::any::AnyRow;

use super::db::{Tx, number, retried, stored, text};
use super::error::{AccountError, DatabaseError};
use super::limits::PROJECTIONS_MAX;
use super::types::{AccountId, installation_hex};
use super::{Accounts, from_hex};

/// One thing that the chat store must learn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projection {
    /// What it is about; equal for all changes of one thing.
    pub topic: String,
    /// Rises with each change of an account.
    pub version: u64,
    /// How it is now.
    pub change: Change,
    /// Unix milliseconds of the change.
    pub at_ms: u64,
}

/// How one thing is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// How one user stands to another, seen from `owner`. Both directions have a row of their own.
    Relation {
        /// Whose view it is.
        owner: AccountId,
        /// Of whom.
        peer: AccountId,
        /// Whether both want to be friends.
        friends: bool,
        /// Whether the owner has blocked the peer.
        blocked: bool,
    },
    /// A device was signed out: live sessions that it had before must end (a token made later than
    /// [`Projection::at_ms`] is of a new log-in). It may sign in again.
    DeviceSignedOut {
        /// Whose.
        account: AccountId,
        /// Which.
        installation: InstallationId,
    },
    /// A device was removed: its live sessions must end, and its installation does not come back.
    DeviceRemoved {
        /// Whose.
        account: AccountId,
        /// Which.
        installation: InstallationId,
    },
    /// An account was deleted: its sessions must end, and what is its own alone must go.
    AccountDeleted {
        /// Which.
        account: AccountId,
    },
}

/// What to look for among that which waits.
#[derive(Clone, Copy, Debug)]
pub enum About<'a> {
    /// The log-ins and devices of an account, and whether there is one.
    LogIns(&'a AccountId),
    /// How the first stands to the second.
    Relation(&'a AccountId, &'a AccountId),
}

/// How much waits for the chat store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Changes.
    pub rows: u64,
    /// Unix milliseconds of the oldest one; 0 if there is none.
    pub oldest_ms: u64,
}

impl Accounts {
    /// Takes up to `limit` changes (at most 256), the oldest first, for `lease`. What is not
    /// [`Accounts::done`] by then is given again.
    pub async fn take_projections(
        &self,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<Projection>, AccountError> {
        let limit = limit.min(PROJECTIONS_MAX);
        retried!(self.take_projections_once(limit, lease))
    }

    async fn take_projections_once(
        &self,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<Projection>, AccountError> {
        let now_ms = self.now_ms();
        let waiting = "SELECT topic, version, kind, account, other, friends, blocks, changed_ms \
                       FROM outbox \
                       WHERE taken_until_ms <= $1 ORDER BY changed_ms, topic LIMIT $2";
        // Mostly there is nothing, and then there is no need to be the writer.
        let waits = sqlx::query(waiting).bind(stored(now_ms)).bind(1_i64);
        if waits.fetch_optional(self.inner.db.pool()).await?.is_none() {
            return Ok(Vec::new());
        }
        let mut tx = self.inner.db.begin().await?;
        let rows = sqlx::query(waiting).bind(stored(now_ms)).bind(limit as i64);
        let rows = rows.fetch_all(tx.on()).await?;
        let taken: Vec<Projection> = rows.iter().map(projection).collect::<Result<_, _>>()?;
        let until_ms = now_ms.saturating_add(u64::try_from(lease.as_millis()).unwrap_or(u64::MAX));
        for one in &taken {
            let take = "UPDATE outbox SET taken_until_ms = $1 WHERE topic = $2";
            sqlx::query(take).bind(stored(until_ms)).bind(&*one.topic).execute(tx.on()).await?;
        }
        tx.commit().await?;
        Ok(taken)
    }

    /// What of this the chat store has not taken over yet, whether it is taken or not; at most 256.
    pub async fn waiting(&self, about: About<'_>) -> Result<Vec<Projection>, AccountError> {
        let (find, what) = match about {
            About::LogIns(account) => (
                "SELECT topic, version, kind, account, other, friends, blocks, changed_ms \
                 FROM outbox WHERE account = $1 AND kind <> 'relation' \
                 ORDER BY version LIMIT $2",
                account.to_string(),
            ),
            About::Relation(owner, peer) => (
                "SELECT topic, version, kind, account, other, friends, blocks, changed_ms \
                 FROM outbox WHERE topic = $1 LIMIT $2",
                format!("relation {owner} {peer}"),
            ),
        };
        let rows = sqlx::query(find).bind(what).bind(PROJECTIONS_MAX as i64);
        rows.fetch_all(self.inner.db.pool()).await?.iter().map(projection).collect()
    }

    /// How much waits for the chat store.
    pub async fn backlog(&self) -> Result<Backlog, AccountError> {
        let count = "SELECT COUNT(*), COALESCE(MIN(changed_ms), 0) FROM outbox";
        let row = sqlx::query(count).fetch_one(self.inner.db.pool()).await?;
        Ok(Backlog { rows: number(&row, 0)?, oldest_ms: number(&row, 1)? })
    }

    /// The chat store has taken these over. A change that has come meanwhile stays. Saying it twice
    /// does nothing.
    pub async fn done(&self, projections: &[Projection]) -> Result<(), AccountError> {
        if projections.is_empty() {
            return Ok(());
        }
        let gone = retried!(self.done_once(projections))?;
        self.inner.figures.projections.add(gone);
        Ok(())
    }

    async fn done_once(&self, projections: &[Projection]) -> Result<u64, AccountError> {
        let mut tx = self.inner.db.begin().await?;
        let mut gone = 0;
        for one in projections {
            let remove = "DELETE FROM outbox WHERE topic = $1 AND version = $2";
            let remove = sqlx::query(remove).bind(&*one.topic).bind(stored(one.version));
            gone += remove.execute(tx.on()).await?.rows_affected();
        }
        tx.commit().await?;
        Ok(gone)
    }

    /// Waits until this process has written a change, or `at_most` is over (others may have).
    pub async fn projections_wait(&self, at_most: Duration) {
        let _ = tokio::time::timeout(at_most, self.inner.outbox.notified()).await;
    }

    /// To be called after a transaction with [`tell`] is committed.
    pub(super) fn told(&self) {
        self.inner.outbox.notify_one();
    }
}

/// Writes a change into the outbox of a transaction.
pub(super) async fn tell(tx: &mut Tx, change: Change, now_ms: u64) -> Result<(), AccountError> {
    let row = Row::of(&change);
    let version = next_version(tx, row.account).await?;
    let put = "INSERT INTO outbox (topic, version, kind, account, other, friends, blocks, \
                   changed_ms, taken_until_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0) \
               ON CONFLICT (topic) DO UPDATE SET version = excluded.version, \
                   kind = excluded.kind, friends = excluded.friends, blocks = excluded.blocks, \
                   changed_ms = excluded.changed_ms, taken_until_ms = 0";
    let topic = format!("{} {} {}", row.topic, row.account, row.other);
    let put = sqlx::query(put).bind(topic).bind(version).bind(row.kind).bind(row.account.as_str());
    let put = put.bind(&*row.other).bind(i64::from(row.friends)).bind(i64::from(row.blocked));
    put.bind(stored(now_ms)).execute(tx.on()).await?;
    Ok(())
}

/// Takes the next version of an account. Its changes so come one after the other.
async fn next_version(tx: &mut Tx, account: &AccountId) -> Result<i64, AccountError> {
    let next = "UPDATE accounts SET version = version + 1 WHERE id = $1 RETURNING version";
    let row = sqlx::query(next).bind(account.as_str()).fetch_one(tx.on()).await?;
    Ok(stored(number(&row, 0)?))
}

/// A change as it is stored.
struct Row<'a> {
    topic: &'static str,
    kind: &'static str,
    account: &'a AccountId,
    other: String,
    friends: bool,
    blocked: bool,
}

impl<'a> Row<'a> {
    fn of(change: &'a Change) -> Row<'a> {
        let device = |kind, account, installation| Row {
            topic: "device",
            kind,
            account,
            other: installation_hex(installation),
            friends: false,
            blocked: false,
        };
        match change {
            Change::Relation { owner, peer, friends, blocked } => Row {
                topic: "relation",
                kind: "relation",
                account: owner,
                other: peer.to_string(),
                friends: *friends,
                blocked: *blocked,
            },
            Change::DeviceSignedOut { account, installation } => {
                device("device_signed_out", account, installation)
            }
            Change::DeviceRemoved { account, installation } => {
                device("device_removed", account, installation)
            }
            Change::AccountDeleted { account } => Row {
                topic: "account",
                kind: "account_deleted",
                account,
                other: String::new(),
                friends: false,
                blocked: false,
            },
        }
    }
}

fn projection(row: &AnyRow) -> Result<Projection, AccountError> {
    let (topic, kind, account, other) =
        (text(row, 0)?, text(row, 2)?, text(row, 3)?, text(row, 4)?);
    let account = AccountId(account);
    let installation = from_hex(&other).map(InstallationId);
    let change = match (&*kind, installation) {
        ("relation", _) => Change::Relation {
            owner: account,
            peer: AccountId(other),
            friends: number(row, 5)? != 0,
            blocked: number(row, 6)? != 0,
        },
        ("device_signed_out", Some(installation)) => {
            Change::DeviceSignedOut { account, installation }
        }
        ("device_removed", Some(installation)) => Change::DeviceRemoved { account, installation },
        ("account_deleted", _) => Change::AccountDeleted { account },
        _ => {
            let damage = format!("the outbox has a row {topic:?} of kind {kind:?}");
            return Err(AccountError::Database(DatabaseError::Failed(damage)));
        }
    };
    Ok(Projection { topic, version: number(row, 1)?, change, at_ms: number(row, 7)? })
}
