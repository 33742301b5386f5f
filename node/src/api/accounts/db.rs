//! The database: SQLite in the data folder, or PostgreSQL by its URL, spoken to in one way.
//!
//! A transaction that writes is serializable on both: SQLite has one writer at a time (they queue
//! here, not at the file's lock), PostgreSQL runs them `SERIALIZABLE` and refuses those that got
//! into each other's way, which [`retried`] tries again.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions, AnyRow};
use sqlx::{Any, AnyConnection, AnyPool, ConnectOptions as _, Row as _, Transaction};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{AccountError, DatabaseError};
use super::limits::{
    CLOSE_TIMEOUT, CONNECT_TIMEOUT, STATEMENT_MS_MAX, TRANSACTION_PAUSE_MS,
    TRANSACTION_PAUSE_MS_MAX,
};
use super::{OpenError, random};

/// Name of SQLite's file in the data folder.
pub const DATABASE_FILE: &str = "accounts.sqlite";

/// The statements that make each version of the schema out of the one before. Versions are never
/// edited, only added.
const SCHEMA: &[&str] = &[include_str!("schema.sql"), include_str!("schema_2.sql")];

/// Tries a transaction again that others got in the way of, a bounded number of times.
macro_rules! retried {
    ($attempt:expr) => {{
        let mut attempt = 0;
        loop {
            match $attempt.await {
                Err(error) if $crate::api::accounts::db::may_retry(&error, attempt) => {
                    $crate::api::accounts::db::pause(attempt).await;
                    attempt += 1;
                }
                done => break done,
            }
        }
    }};
}
pub(super) use retried;

/// Which database it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Sqlite,
    Postgres,
}

#[derive(Debug)]
pub(super) struct Db {
    pool: AnyPool,
    kind: Kind,
    /// SQLite's one writer.
    writer: Arc<Semaphore>,
}

/// A transaction that writes; rolled back unless it is committed.
pub(super) struct Tx {
    inner: Transaction<'static, Any>,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Db {
    /// Opens the database (`url` empty: SQLite in the folder `data`) and brings its schema up to
    /// date.
    pub(super) async fn open(
        url: &str,
        data: &Path,
        connections_max: u32,
    ) -> Result<Db, OpenError> {
        sqlx::any::install_default_drivers();
        let kind = if url.is_empty() { Kind::Sqlite } else { Kind::Postgres };
        if kind == Kind::Sqlite {
            make_private(&data.join(DATABASE_FILE))?;
        }
        let url = match kind {
            Kind::Sqlite => format!("sqlite://{}?mode=rwc", escaped(&data.join(DATABASE_FILE))?),
            Kind::Postgres => url.to_owned(),
        };
        let error = |error: sqlx::Error| OpenError::Database(error.into());
        let options = url.parse::<AnyConnectOptions>().map_err(error)?.disable_statement_logging();
        // One to SQLite is a thread and two files: what it will take at most, it takes at once.
        let connections_min = if kind == Kind::Sqlite { connections_max } else { 0 };
        let pool = AnyPoolOptions::new()
            .min_connections(connections_min)
            .max_connections(connections_max)
            .acquire_timeout(CONNECT_TIMEOUT)
            .after_connect(move |connection, _| Box::pin(set_up(connection, kind)))
            .connect_with(options)
            .await
            .map_err(error)?;
        let db = Db { pool, kind, writer: Arc::new(Semaphore::new(1)) };
        retried!(db.migrate()).map_err(|error| match error {
            AccountError::Database(error) => OpenError::Database(error),
            other => OpenError::Schema(other.to_string()),
        })?;
        Ok(db)
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// For reads of one statement.
    pub(super) fn pool(&self) -> &AnyPool {
        &self.pool
    }

    pub(super) async fn begin(&self) -> Result<Tx, AccountError> {
        let turn = match self.kind {
            Kind::Sqlite => {
                let turn =
                    tokio::time::timeout(CONNECT_TIMEOUT, Arc::clone(&self.writer).acquire_owned());
                let late = |_| DatabaseError::Unreachable("too many writers".to_owned());
                let turn = turn.await.map_err(late).map_err(AccountError::Database)?;
                Some(turn.expect("the semaphore is never closed"))
            }
            Kind::Postgres => None,
        };
        let statement = match self.kind {
            Kind::Sqlite => "BEGIN IMMEDIATE",
            Kind::Postgres => "BEGIN ISOLATION LEVEL SERIALIZABLE",
        };
        Ok(Tx { inner: self.pool.begin_with(statement).await?, _turn: turn })
    }

    /// Closes the connections; those still in use end with what uses them.
    pub(super) async fn close(&self) {
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.pool.close()).await;
    }

    async fn migrate(&self) -> Result<(), AccountError> {
        let mut tx = self.begin().await?;
        let make =
            "CREATE TABLE IF NOT EXISTS schema_versions (version BIGINT NOT NULL PRIMARY KEY)";
        sqlx::query(make).execute(tx.on()).await?;
        if self.kind == Kind::Postgres {
            let lock = "LOCK TABLE schema_versions IN ACCESS EXCLUSIVE MODE";
            sqlx::query(lock).execute(tx.on()).await?;
        }
        let newest = "SELECT COALESCE(MAX(version), 0) FROM schema_versions";
        let has: i64 = sqlx::query(newest).fetch_one(tx.on()).await?.try_get(0)?;
        let has = usize::try_from(has).unwrap_or(usize::MAX);
        if has > SCHEMA.len() {
            return Err(AccountError::Database(DatabaseError::Failed(format!(
                "the accounts have format {has}, this build knows {}",
                SCHEMA.len()
            ))));
        }
        for (n, text) in SCHEMA.iter().enumerate().skip(has) {
            for statement in statements(text) {
                sqlx::query(statement).execute(tx.on()).await?;
            }
            let note = "INSERT INTO schema_versions (version) VALUES ($1)";
            sqlx::query(note).bind(n as i64 + 1).execute(tx.on()).await?;
        }
        tx.commit().await
    }
}

impl Tx {
    /// What statements run on.
    pub(super) fn on(&mut self) -> &mut AnyConnection {
        &mut self.inner
    }

    pub(super) async fn commit(self) -> Result<(), AccountError> {
        Ok(self.inner.commit().await?)
    }
}

/// A column's whole number. What is stored is never negative.
pub(super) fn number(row: &AnyRow, column: usize) -> Result<u64, AccountError> {
    let number: i64 = row.try_get(column)?;
    let damaged = |_| DatabaseError::Failed(format!("column {column} is negative"));
    u64::try_from(number).map_err(damaged).map_err(AccountError::Database)
}

/// A column's text.
pub(super) fn text(row: &AnyRow, column: usize) -> Result<String, AccountError> {
    Ok(row.try_get(column)?)
}

/// As the databases keep it.
pub(super) fn stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn may_retry(error: &AccountError, attempt: u32) -> bool {
    error.is_conflict() && attempt + 1 < super::limits::TRANSACTION_ATTEMPTS_MAX
}

/// Half of the pause is chance, so that those who met do not meet again.
pub(super) async fn pause(attempt: u32) {
    let pause_ms = (TRANSACTION_PAUSE_MS << attempt.min(16)).min(TRANSACTION_PAUSE_MS_MAX);
    let chance = random::<2>().map_or(0, u16::from_le_bytes);
    let chance_us = pause_ms * 500 * u64::from(chance) / u64::from(u16::MAX);
    tokio::time::sleep(Duration::from_micros(pause_ms * 500 + chance_us)).await;
}

async fn set_up(connection: &mut AnyConnection, kind: Kind) -> Result<(), sqlx::Error> {
    let settings: &[&str] = match kind {
        // FULL: an answer means that it is on disk.
        Kind::Sqlite => &[
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "PRAGMA foreign_keys = ON",
            "PRAGMA busy_timeout = 5000",
            "PRAGMA journal_size_limit = 16777216",
        ],
        Kind::Postgres => &["SET client_min_messages = warning"],
    };
    for setting in settings {
        sqlx::query(*setting).execute(&mut *connection).await?;
    }
    if kind == Kind::Postgres {
        let limit = "SELECT set_config('statement_timeout', $1, false)";
        let limit = sqlx::query(limit).bind(STATEMENT_MS_MAX.to_string());
        limit.execute(&mut *connection).await?;
    }
    Ok(())
}

/// The statements of a schema: each ends with a semicolon and its line, and nothing else does.
fn statements(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.split(";\n").map(str::trim).filter(|statement| {
        statement.lines().any(|line| !line.trim().is_empty() && !line.trim().starts_with("--"))
    })
}

/// Makes the file, if it is not there, so that only its owner can read it; SQLite gives its other
/// files the same rights.
fn make_private(path: &Path) -> Result<(), OpenError> {
    let open = File::options().append(true).create(true).mode(0o600).open(path);
    open.map(drop).map_err(|error| {
        let reason = format!("{}: {error}", path.display());
        OpenError::Database(DatabaseError::Unreachable(reason))
    })
}

/// An absolute path within a URL.
fn escaped(path: &Path) -> Result<String, OpenError> {
    let path = std::path::absolute(path).map_err(|_| OpenError::Path(path.to_owned()))?;
    let text = path.to_str().ok_or_else(|| OpenError::Path(path.to_owned()))?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '%' | '?' | '#' | ':' => out.push_str(&format!("%{:02X}", c as u32)),
            c => out.push(c),
        }
    }
    Ok(out)
}
