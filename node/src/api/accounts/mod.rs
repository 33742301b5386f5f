//! Accounts: who there is, how they sign in, who their friends are. No HTTP in here.
//!
//! ```text
//!   HTTP ─▶ Accounts ─▶ limits (memory) ─▶ passwords (threads) ─▶ transaction ─▶ database
//!                                                                    │
//!          chat store ◀── who projects ◀── take_projections ◀──── outbox
//! ```
//!
//! What a function has answered is stored. Whatever the chat store must learn of it (friends,
//! blocks, devices that have ended) lies in the outbox since the same transaction, and is given to
//! its taker until that one says [`Accounts::done`]. A function that is dropped before it has
//! answered has done all of its work or none.
//!
//! An access token lives for minutes, is verified without the database, and is bound to its log-in
//! (claim `sid`) and its installation (claim `ins`). A log-in that ends is put into
//! [`Revocations`], which the verifier asks, so its tokens are refused at once here, and within
//! half a second by other processes on the same database.

mod db;
mod devices;
mod error;
mod friends;
mod handle;
mod limits;
mod metrics;
mod outbox;
mod password;
mod profile;
mod sessions;
mod sign_up;
mod tasks;
mod types;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use chatring_client::token::TokenKey;
use ring::rand::{SecureRandom as _, SystemRandom};
use thiserror::Error;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tracing::warn;

pub use self::db::DATABASE_FILE;
use self::db::{Db, Kind};
pub use self::error::{AccountError, DatabaseError};
pub use self::handle::{Handle, HandleError};
use self::limits::{
    ANSWER, LIMITER_KEYS_MAX, RELATION_CHANGES_BURST, RELATION_CHANGES_PER_MINUTE,
    REVOCATIONS_LOOK, TASKS_LOOK,
};
use self::metrics::Figures;
pub use self::outbox::{About, Backlog, Change, Projection};
use self::password::Passwords;
pub use self::tasks::{DeadTask, Tasks};
pub use self::types::{
    AccountId, Caller, Device, DeviceName, Friend, LogIn, Me, Page, Profile, ProfileChange, SignUp,
    SignedIn, SignedInState, SignedUp, Standing,
};
use crate::api::bucket::{Buckets, Rate};
use crate::auth::Revocations;
use crate::config;
use crate::metrics::Metric;

/// The accounts of a deployment. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Accounts {
    inner: Arc<Inner>,
}

/// Why the accounts cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The database cannot be reached, or is no good.
    #[error("accounts: {0}")]
    Database(DatabaseError),
    /// Its schema cannot be brought up to date.
    #[error("accounts: schema: {0}")]
    Schema(String),
    /// The data folder's path is no UTF-8.
    #[error("accounts: {}: not UTF-8", .0.display())]
    Path(PathBuf),
    /// The threads for passwords cannot be started, or their parameters are no good.
    #[error("accounts: passwords: {0}")]
    Passwords(String),
    /// The system gave no random bytes.
    #[error("the system's random source failed")]
    Random,
}

/// Gives Unix milliseconds.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The system's clock.
pub fn system_clock() -> Clock {
    Arc::new(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

struct Inner {
    db: Db,
    config: config::Accounts,
    key: Arc<TokenKey>,
    revocations: Arc<Revocations>,
    clock: Clock,
    passwords: Passwords,
    limits: Limiters,
    figures: Figures,
    /// Told when the outbox has got something.
    outbox: Notify,
    /// Told when there is a task.
    tasks: Notify,
}

/// How often one may try.
#[derive(Debug)]
struct Limiters {
    sign_ups: Buckets<std::net::IpAddr>,
    log_ins: Buckets<std::net::IpAddr>,
    /// By handle or account, whether there is one or not; with the installation, if it is one of
    /// the account's: so nobody can lock a user out of the devices that it has.
    passwords: Buckets<String>,
    relations: Buckets<AccountId>,
}

/// What runs beside the accounts; ends when it is dropped.
#[derive(Debug)]
pub struct Upkeep {
    tasks: Vec<JoinHandle<()>>,
}

impl Accounts {
    /// Opens the accounts within a tokio runtime; `data` is the data folder, in which SQLite keeps
    /// its file if the configuration names no other database. `revocations` are those of the
    /// verifier that looks at the tokens signed with `key`.
    pub async fn open(
        config: &config::Accounts,
        data: &Path,
        key: Arc<TokenKey>,
        revocations: Arc<Revocations>,
        clock: Clock,
    ) -> Result<Accounts, OpenError> {
        let passwords = Passwords::start(config)?;
        let db = Db::open(&config.database, data, config.database_connections_max).await?;
        let accounts = Accounts {
            inner: Arc::new(Inner {
                db,
                config: config.clone(),
                key,
                revocations,
                clock,
                passwords,
                limits: Limiters::new(config),
                figures: Figures::default(),
                outbox: Notify::new(),
                tasks: Notify::new(),
            }),
        };
        // Before anybody's token is looked at.
        accounts.read_revocations(0).await.map_err(|error| match error {
            AccountError::Database(error) => OpenError::Database(error),
            other => OpenError::Schema(other.to_string()),
        })?;
        Ok(accounts)
    }

    /// Starts what runs beside: tasks, what other processes have revoked, clearing away.
    pub fn upkeep(&self) -> Upkeep {
        let mut tasks = vec![tokio::spawn(self.clone().run_tasks())];
        if self.inner.db.kind() == Kind::Postgres {
            tasks.push(tokio::spawn(self.clone().follow_revocations()));
        }
        Upkeep { tasks }
    }

    /// Closes the database. Drop [`Upkeep`] before.
    pub async fn close(&self) {
        self.inner.db.close().await;
    }

    /// Whether the database answers within two seconds.
    pub async fn answers(&self) -> bool {
        let ask = sqlx::query("SELECT 1").execute(self.inner.db.pool());
        matches!(tokio::time::timeout(ANSWER, ask).await, Ok(Ok(_)))
    }

    /// The figures for `/metrics`, of this process.
    pub fn metrics(&self) -> Vec<Metric> {
        let passwords = &self.inner.passwords;
        self.inner.figures.metrics(passwords, self.inner.revocations.len())
    }

    /// Counts and logs what the database has failed of a sign-up, a log-in or an exchange.
    fn noted<T>(&self, done: Result<T, AccountError>) -> Result<T, AccountError> {
        if let Err(AccountError::Database(error)) = &done {
            self.inner.figures.database_errors.one();
            warn!(%error, "the accounts' database failed");
        }
        done
    }

    fn now_ms(&self) -> u64 {
        (self.inner.clock)()
    }

    async fn run_tasks(self) {
        loop {
            let look = tokio::time::timeout(TASKS_LOOK, self.inner.tasks.notified());
            let _ = look.await;
            if let Err(error) = self.run_due_tasks().await {
                warn!(%error, "the tasks of accounts were not looked at");
            }
            if let Err(error) = self.clear_away().await {
                warn!(%error, "what has expired was not cleared away");
            }
        }
    }

    async fn follow_revocations(self) {
        let mut newest_ms = 0;
        loop {
            tokio::time::sleep(REVOCATIONS_LOOK).await;
            match self.read_revocations(newest_ms).await {
                Ok(newest) => newest_ms = newest,
                Err(error) => warn!(%error, "revocations of other processes were not read"),
            }
        }
    }
}

impl Limiters {
    fn new(config: &config::Accounts) -> Limiters {
        let rate = |burst, per_hour| Rate { burst, per_hour };
        let relations = rate(RELATION_CHANGES_BURST, RELATION_CHANGES_PER_MINUTE * 60);
        let sign_ups = rate(config.sign_ups_per_ip_burst, config.sign_ups_per_ip_hour);
        let log_ins = rate(config.log_ins_per_ip_burst, config.log_ins_per_ip_hour);
        let passwords = rate(config.log_ins_per_handle_burst, config.log_ins_per_handle_hour);
        Limiters {
            sign_ups: Buckets::new(sign_ups, LIMITER_KEYS_MAX),
            log_ins: Buckets::new(log_ins, LIMITER_KEYS_MAX),
            passwords: Buckets::new(passwords, LIMITER_KEYS_MAX),
            relations: Buckets::new(relations, LIMITER_KEYS_MAX),
        }
    }
}

impl Upkeep {
    /// Ends one thing more when it is dropped.
    pub fn with(&mut self, task: JoinHandle<()>) {
        self.tasks.push(task);
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accounts").field("db", &self.db).finish_non_exhaustive()
    }
}

fn random<const N: usize>() -> Result<[u8; N], OpenError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| OpenError::Random)?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
