//! Profiles: what users tell of themselves, and what is found of others.

use serde_json::{Map, Value};
use sqlx::any::AnyRow;

use super::Accounts;
use super::db::{number, retried, text};
use super::error::{AccountError, DatabaseError};
use super::handle::Handle;
use super::limits::{
    AVATAR_BYTES_MAX, NAME_BYTES_MAX, PROFILES_MAX, SETTINGS_BYTES_MAX, STATUS_BYTES_MAX,
};
use super::types::{AccountId, Caller, Me, Profile, ProfileChange};

/// The columns of a profile, for [`profile`].
pub(super) const PROFILE: &str = "a.id, a.handle, a.name, a.avatar, a.status";

impl Accounts {
    /// What the caller sees of itself. Errors: `UnknownUser` (the account is being deleted),
    /// `Database`.
    pub async fn me(&self, caller: &Caller) -> Result<Me, AccountError> {
        let find = "SELECT a.id, a.handle, a.name, a.avatar, a.status, a.settings, a.created_ms \
                    FROM accounts a WHERE a.id = $1 AND a.deleting = 0";
        let row = sqlx::query(find).bind(caller.account.as_str());
        let row = row.fetch_optional(self.inner.db.pool()).await?;
        let row = row.ok_or(AccountError::UnknownUser)?;
        let settings = text(&row, 5)?;
        let settings: Map<String, Value> = serde_json::from_str(&settings).map_err(|error| {
            AccountError::Database(DatabaseError::Failed(format!("settings: {error}")))
        })?;
        Ok(Me { profile: profile(&row)?, settings, created_ms: number(&row, 6)? })
    }

    /// Changes the caller's profile, and gives what it is then.
    ///
    /// Errors: `Invalid`, `UnknownUser`, `Database`.
    pub async fn change_profile(
        &self,
        caller: &Caller,
        change: &ProfileChange,
    ) -> Result<Me, AccountError> {
        let ProfileChange { name, avatar, status, settings } = change;
        for (field, value, min, max) in [
            ("name", name, 1, NAME_BYTES_MAX),
            ("avatar", avatar, 0, AVATAR_BYTES_MAX),
            ("status", status, 0, STATUS_BYTES_MAX),
        ] {
            if let Some(value) = value {
                check_text(field, value, min, max)?;
            }
        }
        let settings = settings.as_ref().map(settings_text).transpose()?;
        retried!(self.change_profile_once(caller, change, settings.as_deref()))?;
        self.me(caller).await
    }

    async fn change_profile_once(
        &self,
        caller: &Caller,
        change: &ProfileChange,
        settings: Option<&str>,
    ) -> Result<(), AccountError> {
        let mut tx = self.inner.db.begin().await?;
        let put = "UPDATE accounts SET name = COALESCE($2, name), avatar = COALESCE($3, avatar), \
                       status = COALESCE($4, status), settings = COALESCE($5, settings) \
                   WHERE id = $1 AND deleting = 0";
        let put = sqlx::query(put).bind(caller.account.as_str()).bind(change.name.as_deref());
        let put = put.bind(change.avatar.as_deref()).bind(change.status.as_deref()).bind(settings);
        if put.execute(tx.on()).await?.rows_affected() == 0 {
            return Err(AccountError::UnknownUser);
        }
        tx.commit().await
    }

    /// The user with this handle, in any of its spellings. Errors: `UnknownUser`, `Database`.
    pub async fn user(&self, handle: &str) -> Result<Profile, AccountError> {
        let handle = Handle::parse(handle).map_err(|_| AccountError::UnknownUser)?;
        let find = "SELECT a.id, a.handle, a.name, a.avatar, a.status FROM accounts a \
                    WHERE a.handle = $1 AND a.deleting = 0";
        let row = sqlx::query(find).bind(handle.as_str());
        let row = row.fetch_optional(self.inner.db.pool()).await?;
        profile(&row.ok_or(AccountError::UnknownUser)?)
    }

    /// The profiles of these accounts, in no order; those that are unknown or deleted are left out,
    /// and so is what is beyond the 200th.
    pub async fn profiles(&self, accounts: &[AccountId]) -> Result<Vec<Profile>, AccountError> {
        let accounts = &accounts[..accounts.len().min(PROFILES_MAX)];
        if accounts.is_empty() {
            return Ok(Vec::new());
        }
        let places: Vec<String> = (1..=accounts.len()).map(|n| format!("${n}")).collect();
        let find = format!(
            "SELECT {PROFILE} FROM accounts a WHERE a.id IN ({}) AND a.deleting = 0",
            places.join(", ")
        );
        // Nothing in it comes from outside.
        let mut rows = sqlx::query(sqlx::AssertSqlSafe(find)).persistent(false);
        for account in accounts {
            rows = rows.bind(account.as_str());
        }
        let rows = rows.fetch_all(self.inner.db.pool()).await?;
        rows.iter().map(profile).collect()
    }
}

/// A profile from a row that begins with the columns of [`PROFILE`].
pub(super) fn profile(row: &AnyRow) -> Result<Profile, AccountError> {
    Ok(Profile {
        account: AccountId(text(row, 0)?),
        handle: text(row, 1)?,
        name: text(row, 2)?,
        avatar: text(row, 3)?,
        status: text(row, 4)?,
    })
}

/// Refuses texts that are too short, too long, or have characters that are none to see.
pub(super) fn check_text(
    field: &'static str,
    text: &str,
    bytes_min: usize,
    bytes_max: usize,
) -> Result<(), AccountError> {
    if text.len() < bytes_min || text.len() > bytes_max {
        let reason = format!("must have {bytes_min} to {bytes_max} bytes");
        return Err(AccountError::invalid(field, reason));
    }
    if text.trim().len() < bytes_min {
        return Err(AccountError::invalid(field, "has nothing to see"));
    }
    if text.chars().any(is_unseen) {
        return Err(AccountError::invalid(field, "has a control character"));
    }
    Ok(())
}

/// Control characters, and those that turn the direction of what follows.
fn is_unseen(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn settings_text(settings: &Map<String, Value>) -> Result<String, AccountError> {
    let text = serde_json::to_string(settings).expect("a map with texts as keys is JSON");
    if text.len() > SETTINGS_BYTES_MAX {
        let reason = format!("has more than {SETTINGS_BYTES_MAX} bytes");
        return Err(AccountError::invalid("settings", reason));
    }
    // PostgreSQL's texts cannot hold it, and it is written so in JSON.
    if text.contains("\\u0000") {
        return Err(AccountError::invalid("settings", "has the character U+0000"));
    }
    Ok(text)
}
