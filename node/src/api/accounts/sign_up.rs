//! Sign-up.

use std::net::IpAddr;

use super::Accounts;
use super::db::{Tx, retried, stored};
use super::error::AccountError;
use super::handle::Handle;
use super::limits::{LABEL_BYTES_MAX, NAME_BYTES_MAX};
use super::password::{Hashed, Password};
use super::profile::check_text;
use super::types::{AccountId, Profile, SignUp, SignedIn, SignedUp};
use super::{hex, random};
use crate::config::SignUps;
use crate::gateway::network_of;

/// A sign-up whose fields are good.
struct New<'a> {
    sign_up: &'a SignUp,
    handle: &'a Handle,
    skeleton: &'a str,
    name: &'a str,
    password: Hashed,
}

impl Accounts {
    /// Makes an account, for somebody at the address `from`. With an installation it signs in, too.
    ///
    /// Errors: `SignUpClosed`, `Limited`, `Invalid`, `Handle`, `HandleTaken`, `Busy`, `Database`.
    pub async fn sign_up(&self, from: IpAddr, sign_up: &SignUp) -> Result<SignedUp, AccountError> {
        let figures = &self.inner.figures;
        let done = self.sign_up_counted(from, sign_up).await;
        match &done {
            Ok(_) => figures.sign_ups.one(),
            Err(AccountError::Limited { .. }) => figures.sign_ups_limited.one(),
            Err(AccountError::Busy { .. }) => figures.busy.one(),
            Err(AccountError::Database(_)) => {}
            Err(_) => figures.sign_ups_refused.one(),
        }
        self.noted(done)
    }

    async fn sign_up_counted(
        &self,
        from: IpAddr,
        sign_up: &SignUp,
    ) -> Result<SignedUp, AccountError> {
        if self.inner.config.sign_up == SignUps::Closed {
            return Err(AccountError::SignUpClosed);
        }
        let now_ms = self.now_ms();
        let limited = |retry_after_ms| AccountError::Limited { retry_after_ms };
        self.inner.limits.sign_ups.take(&network_of(from), now_ms).map_err(limited)?;
        let handle = Handle::parse(&sign_up.handle)?;
        handle.check_free(&self.inner.config.reserved_handles)?;
        let name = sign_up.name.as_deref().unwrap_or(handle.as_str());
        check_text("name", name, 1, NAME_BYTES_MAX)?;
        check_text("label", &sign_up.label, 0, LABEL_BYTES_MAX)?;
        let password = Password::choose(&sign_up.password, &handle)?;
        let skeleton = handle.skeleton();
        // Before the hash, which is dear.
        self.check_not_taken(&handle, &skeleton).await?;
        let password = self.inner.passwords.hash(password).await?;
        let new = New { sign_up, handle: &handle, skeleton: &skeleton, name, password };
        retried!(self.sign_up_once(&new))
    }

    async fn check_not_taken(&self, handle: &Handle, skeleton: &str) -> Result<(), AccountError> {
        let taken = sqlx::query(TAKEN).bind(handle.as_str()).bind(skeleton);
        let taken = taken.bind(Handle::retired(skeleton));
        match taken.fetch_optional(self.inner.db.pool()).await? {
            Some(_) => Err(AccountError::HandleTaken),
            None => Ok(()),
        }
    }

    async fn sign_up_once(&self, new: &New<'_>) -> Result<SignedUp, AccountError> {
        let account = AccountId(hex(&random::<16>()
            .map_err(|_| AccountError::Busy { retry_after_ms: super::limits::BUSY_RETRY_MS })?));
        let now_ms = self.now_ms();
        let mut tx = self.inner.db.begin().await?;
        insert(&mut tx, &account, new, now_ms).await?;
        let session = match new.sign_up.installation {
            Some(installation) => {
                let label = &new.sign_up.label;
                let session = self.start_session(&mut tx, &account, installation, label, now_ms);
                Some(session.await?)
            }
            None => None,
        };
        tx.commit().await?;
        let session: Option<SignedIn> = session.map(|started| self.signed_in(started));
        let profile = Profile {
            account,
            handle: new.handle.as_str().to_owned(),
            name: new.name.to_owned(),
            avatar: String::new(),
            status: String::new(),
        };
        Ok(SignedUp { profile, session })
    }
}

/// Rows that stand in the way of a handle.
const TAKEN: &str = "SELECT 1 FROM accounts WHERE handle = $1 OR skeleton = $2 \
                     UNION ALL SELECT 1 FROM retired_handles WHERE hash = $3 LIMIT 1";

async fn insert(
    tx: &mut Tx,
    account: &AccountId,
    new: &New<'_>,
    now_ms: u64,
) -> Result<(), AccountError> {
    let taken = sqlx::query(TAKEN).bind(new.handle.as_str()).bind(new.skeleton);
    let taken = taken.bind(Handle::retired(new.skeleton)).fetch_optional(tx.on()).await?;
    if taken.is_some() {
        return Err(AccountError::HandleTaken);
    }
    let put = "INSERT INTO accounts (id, handle, skeleton, password, name, avatar, status, \
                   settings, created_ms, deleting, version) \
               VALUES ($1, $2, $3, $4, $5, '', '', '{}', $6, 0, 0)";
    let put = sqlx::query(put).bind(account.as_str()).bind(new.handle.as_str()).bind(new.skeleton);
    let put = put.bind(&*new.password).bind(new.name).bind(stored(now_ms));
    put.execute(tx.on()).await?;
    Ok(())
}
