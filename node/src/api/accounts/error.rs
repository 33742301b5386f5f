//! What can go wrong with accounts, and whose fault it is.

use sqlx::Error as SqlError;
use thiserror::Error;

use super::handle::HandleError;

/// Why something was not done. Texts are for people who use the API; they hold no secret and do not
/// tell whether a handle exists, but for [`AccountError::HandleTaken`], which sign-up must tell.
#[derive(Debug, Error)]
pub enum AccountError {
    /// A field is not as it must be (the caller's fault).
    #[error("{field}: {reason}")]
    Invalid {
        /// Its name in requests.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The handle is no handle, or a reserved one.
    #[error("handle: {0}")]
    Handle(#[from] HandleError),
    /// The handle is taken, or one that looks like it.
    #[error("this handle is taken, or one that looks like it")]
    HandleTaken,
    /// Wrong handle, wrong password, or no such account: which one is not told.
    #[error("wrong handle or password")]
    WrongCredentials,
    /// The token is none, has expired, was exchanged before, or its session has ended.
    #[error("the token is not good, or not any more")]
    DeadToken,
    /// The installation was removed from the account's devices; it must make a new id.
    #[error("this installation was removed from the devices; make a new installation id")]
    InstallationRemoved,
    /// Sign-up is switched off.
    #[error("sign-up is closed")]
    SignUpClosed,
    /// There is no such user, or it is not for the caller to see.
    #[error("there is no such user")]
    UnknownUser,
    /// There is no such device.
    #[error("there is no such device")]
    UnknownDevice,
    /// The caller has blocked the user that it asks for friendship.
    #[error("you have blocked this user")]
    Blocked,
    /// It would be more than a user may have.
    #[error("more than {max} {what}")]
    LimitReached {
        /// Of what.
        what: &'static str,
        /// The most.
        max: usize,
    },
    /// Too many attempts; the caller may try again.
    #[error("too many attempts")]
    Limited {
        /// After so long.
        retry_after_ms: u64,
    },
    /// The node has too much to do; nothing was done.
    #[error("the server is busy")]
    Busy {
        /// After so long it may be better.
        retry_after_ms: u64,
    },
    /// The database failed. What was to be written may be stored or not.
    #[error("the accounts cannot be reached")]
    Database(#[source] DatabaseError),
}

/// What the database said, for the log.
#[derive(Debug, Error)]
pub enum DatabaseError {
    /// Others got in the way; the same transaction may succeed when it is tried again.
    #[error("conflict: {0}")]
    Conflict(String),
    /// No connection in time.
    #[error("no connection: {0}")]
    Unreachable(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl AccountError {
    pub(super) fn invalid(field: &'static str, reason: impl Into<String>) -> AccountError {
        AccountError::Invalid { field, reason: reason.into() }
    }

    /// Whether the same transaction may succeed if it is tried again.
    pub(super) fn is_conflict(&self) -> bool {
        matches!(self, AccountError::Database(DatabaseError::Conflict(_)))
    }
}

impl From<SqlError> for AccountError {
    fn from(error: SqlError) -> AccountError {
        AccountError::Database(error.into())
    }
}

impl From<SqlError> for DatabaseError {
    fn from(error: SqlError) -> DatabaseError {
        let text = error.to_string();
        match &error {
            SqlError::Database(said) => {
                // PostgreSQL: serialization failure, deadlock; SQLite: busy, in its forms. A row
                // that is there already was not there when the transaction looked.
                let code = said.code();
                let busy = matches!(
                    code.as_deref(),
                    Some("40001" | "40P01" | "55P03" | "5" | "261" | "517" | "6" | "262")
                );
                if busy || said.is_unique_violation() {
                    DatabaseError::Conflict(text)
                } else {
                    DatabaseError::Failed(text)
                }
            }
            SqlError::PoolTimedOut | SqlError::PoolClosed | SqlError::Io(_) | SqlError::Tls(_) => {
                DatabaseError::Unreachable(text)
            }
            _ => DatabaseError::Failed(text),
        }
    }
}
