//! Log-ins: their tokens, how those rotate, and how log-ins end.
//!
//! ```text
//!   log in ─▶ family, R1, A1      R1 ─▶ R2, A2      R2 ─▶ R3, A3 ...
//!                                 R1 again: somebody has a copy ─▶ the family ends
//! ```
//!
//! A device has one log-in, a *family* of tokens. Access tokens (A) are JWTs that live for minutes.
//! A refresh token (R) is exchanged once; only its hash is stored. Whoever shows one that was
//! exchanged before ends the family, for it or the one who exchanged it has stolen it. **The grace
//! for a lost answer** is a proof and not a span of time: who exchanges a token may name a key of
//! its own (`Idempotency-Key`), and a repeat of the same token with the same key gets the same
//! answer, as long as the new token was not used. A thief of R1 does not know the key. R2 is a
//! function of R1 and the deployment's key, so nothing but hashes need be kept for that.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chatring_wire::{DeviceId, InstallationId};
use ring::digest;

use super::db::{Tx, number, retried, stored, text};
use super::error::AccountError;
use super::handle::Handle;
use super::limits::{
    BUSY_RETRY_MS, CLOCK_SKEW_MS_MAX, LABEL_BYTES_MAX, REFRESH_TOKEN_BYTES_MAX, RETRY_KEY_BYTES_MAX,
};
use super::outbox::{Change, tell};
use super::password::{Hashed, Password, Verdict};
use super::profile::check_text;
use super::types::{AccountId, Caller, LogIn, SignedIn, installation_hex};
use super::{Accounts, from_hex, hex, random};
use crate::auth::Family;
use crate::gateway::network_of;

/// Bytes of a refresh token's secret.
const SECRET_BYTES: usize = 32;
/// What the next secret is derived for.
const REFRESH_PURPOSE: &str = "refresh token";

/// A session that is written but not committed yet.
pub(super) struct Started {
    account: AccountId,
    installation: InstallationId,
    family: Family,
    device: Option<DeviceId>,
    secret: [u8; SECRET_BYTES],
    /// Log-ins that have ended for it.
    ended: Vec<Family>,
}

/// Which log-ins to end.
#[derive(Clone, Copy)]
pub(super) enum Ends<'a> {
    /// All of the account.
    All,
    /// All but this one.
    AllBut(&'a Family),
    /// This one.
    One(&'a Family),
    /// That of an installation.
    Device(&'a InstallationId),
}

/// What is stored of an account for signing in.
struct Known {
    account: AccountId,
    password: Hashed,
}

/// How an exchange went, decided in its transaction.
enum Exchanged {
    Next(Started),
    Repeated(Started),
    /// It was exchanged before: the family has ended.
    Reused(Family),
    /// It has expired, or is none.
    Dead,
}

impl Accounts {
    /// Signs in from the address `from`. The device's older log-in, if there is one, ends.
    ///
    /// Wrong handles and wrong passwords get the same answer after the same time. Errors:
    /// `WrongCredentials`, `InstallationRemoved`, `Limited`, `Busy`, `Invalid`, `Database`.
    pub async fn log_in(&self, from: IpAddr, log_in: &LogIn) -> Result<SignedIn, AccountError> {
        self.noted(self.log_in_unnoted(from, log_in).await)
    }

    async fn log_in_unnoted(&self, from: IpAddr, log_in: &LogIn) -> Result<SignedIn, AccountError> {
        check_text("label", &log_in.label, 0, LABEL_BYTES_MAX)?;
        let now_ms = self.now_ms();
        let limited = |retry_after_ms| {
            self.inner.figures.log_ins_limited.one();
            AccountError::Limited { retry_after_ms }
        };
        self.inner.limits.log_ins.take(&network_of(from), now_ms).map_err(limited)?;
        let handle = Handle::parse(&log_in.handle).ok();
        let known = match &handle {
            Some(handle) => self.find(handle).await?,
            None => None,
        };
        // Whoever knows an installation of the account is not held up by those who guess.
        let device = match &known {
            Some(known) => self.has_device(&known.account, &log_in.installation).await?,
            None => false,
        };
        let mut bucket = format!("handle {}", handle.as_ref().map_or("", Handle::as_str));
        if device {
            bucket.push_str(&installation_hex(&log_in.installation));
        }
        let stored = known.as_ref().map(|known| known.password.clone());
        let verdict = self.compare(&bucket, &log_in.password, stored).await;
        let (known, renewed) = match (verdict, known) {
            (Ok(renewed), Some(known)) => (known, renewed),
            (Ok(_), None) => return Err(AccountError::WrongCredentials),
            (Err(error), _) => return Err(error),
        };
        let started = retried!(self.log_in_once(&known, renewed.as_ref(), log_in))?;
        self.told();
        self.inner.figures.log_ins.one();
        Ok(self.signed_in(started))
    }

    async fn log_in_once(
        &self,
        known: &Known,
        renewed: Option<&Hashed>,
        log_in: &LogIn,
    ) -> Result<Started, AccountError> {
        let now_ms = self.now_ms();
        let mut tx = self.inner.db.begin().await?;
        // The password may have been changed, or the account deleted, while it was compared.
        let same = "SELECT 1 FROM accounts WHERE id = $1 AND password = $2 AND deleting = 0";
        let same = sqlx::query(same).bind(known.account.as_str()).bind(&*known.password);
        if same.fetch_optional(tx.on()).await?.is_none() {
            return Err(AccountError::WrongCredentials);
        }
        if let Some(renewed) = renewed {
            let put = "UPDATE accounts SET password = $2 WHERE id = $1";
            let put = sqlx::query(put).bind(known.account.as_str()).bind(&**renewed);
            put.execute(tx.on()).await?;
        }
        let LogIn { installation, label, .. } = log_in;
        let account = &known.account;
        let started = self.start_session(&mut tx, account, *installation, label, now_ms).await?;
        tx.commit().await?;
        Ok(started)
    }

    /// Exchanges a refresh token for the next pair. `retry_key` is the caller's name for this very
    /// request: a repeat with the same key gets the same answer.
    ///
    /// Errors: `DeadToken` (also for a token that was exchanged before, whose family ends),
    /// `Invalid`, `Database`.
    pub async fn refresh(
        &self,
        token: &str,
        retry_key: Option<&str>,
    ) -> Result<SignedIn, AccountError> {
        if retry_key.is_some_and(|key| key.len() > RETRY_KEY_BYTES_MAX) {
            let reason = format!("has more than {RETRY_KEY_BYTES_MAX} bytes");
            return Err(AccountError::invalid("idempotency_key", reason));
        }
        let figures = &self.inner.figures;
        let Some((family, secret)) = parse_refresh_token(token) else {
            figures.refreshes_dead.one();
            return Err(AccountError::DeadToken);
        };
        match self.noted(retried!(self.refresh_once(family, &secret, retry_key)))? {
            Exchanged::Next(started) => {
                figures.refreshes.one();
                Ok(self.signed_in(started))
            }
            Exchanged::Repeated(started) => {
                figures.refreshes_repeated.one();
                Ok(self.signed_in(started))
            }
            Exchanged::Reused(family) => {
                figures.refresh_reuses.one();
                self.revoked_now(&[family]);
                Err(AccountError::DeadToken)
            }
            Exchanged::Dead => {
                figures.refreshes_dead.one();
                Err(AccountError::DeadToken)
            }
        }
    }

    async fn refresh_once(
        &self,
        family: Family,
        secret: &[u8; SECRET_BYTES],
        retry_key: Option<&str>,
    ) -> Result<Exchanged, AccountError> {
        let now_ms = self.now_ms();
        let mut tx = self.inner.db.begin().await?;
        let find = "SELECT s.account, s.installation, s.refresh_hash, s.previous_hash, \
                        s.retry_hash, s.expires_ms, d.number \
                    FROM sessions s JOIN devices d \
                        ON d.account = s.account AND d.installation = s.installation \
                    WHERE s.family = $1";
        let row = sqlx::query(find).bind(hex(&family.0)).fetch_optional(tx.on()).await?;
        let Some(row) = row else { return Ok(Exchanged::Dead) };
        if number(&row, 5)? <= now_ms {
            return Ok(Exchanged::Dead);
        }
        let account = AccountId(text(&row, 0)?);
        let installation = from_hex(&text(&row, 1)?).map(InstallationId);
        let Some(installation) = installation else { return Ok(Exchanged::Dead) };
        let (current, previous, retry) = (text(&row, 2)?, text(&row, 3)?, text(&row, 4)?);
        let device = device_number(number(&row, 6)?);
        let hash = hash_of(secret);
        let next = self.inner.key.derive(REFRESH_PURPOSE, &[&family.0[..], secret].concat());
        let ended = Vec::new();
        let started = Started { account, installation, family, device, secret: next, ended };
        let key_hash = retry_key.map(|key| hash_of(key.as_bytes())).unwrap_or_default();
        if hash == current {
            let put = "UPDATE sessions SET refresh_hash = $2, previous_hash = $3, \
                           retry_hash = $4, used_ms = $5, expires_ms = $6 WHERE family = $1";
            let put = sqlx::query(put).bind(hex(&family.0)).bind(hash_of(&next)).bind(hash);
            let expires_ms = now_ms.saturating_add(self.inner.config.refresh_ttl.as_ms());
            let put = put.bind(key_hash).bind(stored(now_ms)).bind(stored(expires_ms));
            put.execute(tx.on()).await?;
            let seen = "UPDATE devices SET seen_ms = $3 WHERE account = $1 AND installation = $2";
            let seen = sqlx::query(seen).bind(started.account.as_str());
            let seen = seen.bind(installation_hex(&installation)).bind(stored(now_ms));
            seen.execute(tx.on()).await?;
            tx.commit().await?;
            return Ok(Exchanged::Next(started));
        }
        if hash == previous && !key_hash.is_empty() && key_hash == retry {
            return Ok(Exchanged::Repeated(started));
        }
        // Whatever else names the family and is not its token: an older one, or a guess by
        // somebody who has seen an older one.
        let ended =
            self.end_sessions(&mut tx, &started.account, Ends::One(&family), now_ms).await?;
        tx.commit().await?;
        self.told();
        debug_assert_eq!(ended, [family]);
        Ok(Exchanged::Reused(family))
    }

    /// Ends the caller's log-in.
    pub async fn log_out(&self, caller: &Caller) -> Result<(), AccountError> {
        self.end(&caller.account, Ends::One(&caller.family)).await
    }

    /// Ends all log-ins of the caller, its own too.
    pub async fn log_out_everywhere(&self, caller: &Caller) -> Result<(), AccountError> {
        self.end(&caller.account, Ends::All).await
    }

    async fn end(&self, account: &AccountId, which: Ends<'_>) -> Result<(), AccountError> {
        let ended = retried!(self.end_once(account, which))?;
        self.ended(&ended);
        Ok(())
    }

    async fn end_once(
        &self,
        account: &AccountId,
        which: Ends<'_>,
    ) -> Result<Vec<Family>, AccountError> {
        let now_ms = self.now_ms();
        let mut tx = self.inner.db.begin().await?;
        let ended = self.end_sessions(&mut tx, account, which, now_ms).await?;
        tx.commit().await?;
        Ok(ended)
    }

    /// Changes the password; all other log-ins of the account end.
    ///
    /// Errors: `WrongCredentials` (the old password is not the account's), `Limited`, `Busy`,
    /// `Invalid`, `Database`.
    pub async fn change_password(
        &self,
        caller: &Caller,
        old: &str,
        new: &str,
    ) -> Result<(), AccountError> {
        let (handle, known) = self.known(&caller.account).await?;
        let handle = Handle::parse(&handle).map_err(|_| AccountError::UnknownUser)?;
        let new = Password::choose(new, &handle)?;
        self.compare(&password_bucket(caller), old, Some(known.password.clone())).await?;
        let hashed = self.inner.passwords.hash(new).await.inspect_err(|_| {
            self.inner.figures.busy.one();
        })?;
        let ended = retried!(self.change_password_once(caller, &known, &hashed))?;
        self.ended(&ended);
        Ok(())
    }

    async fn change_password_once(
        &self,
        caller: &Caller,
        known: &Known,
        hashed: &Hashed,
    ) -> Result<Vec<Family>, AccountError> {
        let now_ms = self.now_ms();
        let mut tx = self.inner.db.begin().await?;
        let put = "UPDATE accounts SET password = $3 \
                   WHERE id = $1 AND password = $2 AND deleting = 0";
        let put = sqlx::query(put).bind(caller.account.as_str()).bind(&*known.password);
        if put.bind(&**hashed).execute(tx.on()).await?.rows_affected() == 0 {
            return Err(AccountError::WrongCredentials);
        }
        let others = Ends::AllBut(&caller.family);
        let ended = self.end_sessions(&mut tx, &caller.account, others, now_ms).await?;
        tx.commit().await?;
        Ok(ended)
    }

    /// Checks the caller's password once more, before something that cannot be undone.
    pub(super) async fn check_password(
        &self,
        caller: &Caller,
        password: &str,
    ) -> Result<Hashed, AccountError> {
        let (_, known) = self.known(&caller.account).await?;
        self.compare(&password_bucket(caller), password, Some(known.password.clone())).await?;
        Ok(known.password)
    }

    /// Compares a password within the limits of `bucket`; gives the renewed form, if there is one.
    async fn compare(
        &self,
        bucket: &String,
        password: &str,
        stored: Option<Hashed>,
    ) -> Result<Option<Hashed>, AccountError> {
        let figures = &self.inner.figures;
        if let Err(retry_after_ms) = self.inner.limits.passwords.take(bucket, self.now_ms()) {
            figures.log_ins_limited.one();
            return Err(AccountError::Limited { retry_after_ms });
        }
        // One that is too long is nobody's, and told apart by its sender alone.
        let verdict = match Password::given(password) {
            Some(password) => self.inner.passwords.verify(password, stored).await,
            None => Ok(Verdict::Wrong),
        };
        match verdict {
            Ok(Verdict::Good { renewed }) => {
                self.inner.limits.passwords.give_back(bucket);
                Ok(renewed)
            }
            Ok(Verdict::Wrong) => {
                figures.log_ins_wrong.one();
                Err(AccountError::WrongCredentials)
            }
            Err(error) => {
                figures.busy.one();
                self.inner.limits.passwords.give_back(bucket);
                Err(error)
            }
        }
    }

    async fn find(&self, handle: &Handle) -> Result<Option<Known>, AccountError> {
        let find = "SELECT id, password FROM accounts WHERE handle = $1 AND deleting = 0";
        let row = sqlx::query(find).bind(handle.as_str());
        let row = row.fetch_optional(self.inner.db.pool()).await?;
        let known =
            |row| Ok(Known { account: AccountId(text(&row, 0)?), password: text(&row, 1)? });
        row.map(known).transpose()
    }

    async fn known(&self, account: &AccountId) -> Result<(String, Known), AccountError> {
        let find = "SELECT handle, password FROM accounts WHERE id = $1 AND deleting = 0";
        let row = sqlx::query(find).bind(account.as_str());
        let row = row.fetch_optional(self.inner.db.pool()).await?;
        let row = row.ok_or(AccountError::UnknownUser)?;
        Ok((text(&row, 0)?, Known { account: account.clone(), password: text(&row, 1)? }))
    }

    /// Makes the session of a device in the place of its older one.
    pub(super) async fn start_session(
        &self,
        tx: &mut Tx,
        account: &AccountId,
        installation: InstallationId,
        label: &str,
        now_ms: u64,
    ) -> Result<Started, AccountError> {
        let (device, mut ended) =
            self.take_device(tx, account, &installation, label, now_ms).await?;
        // The device goes on: its new token ends its older live session by itself.
        let replaced = "SELECT family FROM sessions WHERE account = $1 AND installation = $2";
        let replaced = sqlx::query(replaced).bind(account.as_str());
        let replaced = replaced.bind(installation_hex(&installation));
        if let Some(row) = replaced.fetch_optional(tx.on()).await? {
            let family = text(&row, 0)?;
            self.revoke(tx, &family, now_ms).await?;
            ended.extend(from_hex(&family).map(Family));
        }
        let busy = |_| AccountError::Busy { retry_after_ms: BUSY_RETRY_MS };
        let family = Family(random::<16>().map_err(busy)?);
        let secret = random::<SECRET_BYTES>().map_err(busy)?;
        let expires_ms = now_ms.saturating_add(self.inner.config.refresh_ttl.as_ms());
        let put = "INSERT INTO sessions (family, account, installation, refresh_hash, \
                       previous_hash, retry_hash, created_ms, used_ms, expires_ms) \
                   VALUES ($1, $2, $3, $4, '', '', $5, $5, $6)";
        let put = sqlx::query(put).bind(hex(&family.0)).bind(account.as_str());
        let put = put.bind(installation_hex(&installation)).bind(hash_of(&secret));
        put.bind(stored(now_ms)).bind(stored(expires_ms)).execute(tx.on()).await?;
        Ok(Started { account: account.clone(), installation, family, device, secret, ended })
    }

    /// Ends log-ins within a transaction, and tells the chat store of their devices.
    pub(super) async fn end_sessions(
        &self,
        tx: &mut Tx,
        account: &AccountId,
        which: Ends<'_>,
        now_ms: u64,
    ) -> Result<Vec<Family>, AccountError> {
        let find = "SELECT family, installation FROM sessions WHERE account = $1";
        let rows = sqlx::query(find).bind(account.as_str()).fetch_all(tx.on()).await?;
        let mut ended = Vec::new();
        for row in rows {
            let (name, device) = (text(&row, 0)?, text(&row, 1)?);
            let (Some(family), Some(installation)) = (from_hex(&name), from_hex(&device)) else {
                continue;
            };
            let (family, installation) = (Family(family), InstallationId(installation));
            let meant = match which {
                Ends::All => true,
                Ends::AllBut(kept) => family != *kept,
                Ends::One(one) => family == *one,
                Ends::Device(one) => installation == *one,
            };
            if meant {
                self.revoke(tx, &name, now_ms).await?;
                let account = account.clone();
                tell(tx, Change::DeviceSignedOut { account, installation }, now_ms).await?;
                ended.push(family);
            }
        }
        Ok(ended)
    }

    async fn revoke(&self, tx: &mut Tx, family: &str, now_ms: u64) -> Result<(), AccountError> {
        let remove = "DELETE FROM sessions WHERE family = $1";
        sqlx::query(remove).bind(family).execute(tx.on()).await?;
        let until_ms = now_ms.saturating_add(self.access_life_ms());
        let put = "INSERT INTO revocations (family, at_ms, until_ms) VALUES ($1, $2, $3) \
                   ON CONFLICT (family) DO NOTHING";
        let put = sqlx::query(put).bind(family).bind(stored(now_ms)).bind(stored(until_ms));
        put.execute(tx.on()).await?;
        Ok(())
    }

    /// After the commit: from here on the tokens are refused.
    pub(super) fn ended(&self, families: &[Family]) {
        self.revoked_now(families);
        self.inner.figures.log_outs.add(families.len() as u64);
        self.told();
    }

    fn revoked_now(&self, families: &[Family]) {
        let now_ms = self.now_ms();
        let until_s = (now_ms + self.access_life_ms()) / 1_000 + 1;
        for family in families {
            self.inner.revocations.revoke(*family, until_s, now_ms / 1_000);
        }
    }

    /// Reads what was revoked at or after `newest_ms`, as far as clocks agree; gives the newest.
    pub(super) async fn read_revocations(&self, newest_ms: u64) -> Result<u64, AccountError> {
        let now_ms = self.now_ms();
        let find = "SELECT family, at_ms, until_ms FROM revocations \
                    WHERE at_ms >= $1 AND until_ms > $2";
        let since_ms = newest_ms.saturating_sub(CLOCK_SKEW_MS_MAX);
        let rows = sqlx::query(find).bind(stored(since_ms)).bind(stored(now_ms));
        let mut newest_ms = newest_ms;
        for row in rows.fetch_all(self.inner.db.pool()).await? {
            newest_ms = newest_ms.max(number(&row, 1)?);
            if let Some(family) = from_hex(&text(&row, 0)?) {
                let until_s = number(&row, 2)? / 1_000 + 1;
                self.inner.revocations.revoke(Family(family), until_s, now_ms / 1_000);
            }
        }
        Ok(newest_ms)
    }

    /// How long a token that was just made may be taken for good, at most, whatever the verifier's
    /// leeway is.
    fn access_life_ms(&self) -> u64 {
        self.inner.config.access_ttl.as_ms() + CLOCK_SKEW_MS_MAX + 300_000
    }

    /// The tokens of a session that is stored.
    pub(super) fn signed_in(&self, started: Started) -> SignedIn {
        let Started { account, installation, family, device, secret, ended } = started;
        self.revoked_now(&ended);
        let expires_in_s = self.inner.config.access_ttl.as_s();
        let (session, bound) = (hex(&family.0), installation_hex(&installation));
        let now_s = self.now_ms() / 1_000;
        let access_token =
            self.inner.key.mint_bound(account.as_str(), now_s, expires_in_s, &session, &bound);
        let refresh_token = URL_SAFE_NO_PAD.encode([&family.0[..], &secret].concat());
        SignedIn {
            account,
            installation,
            family,
            device,
            access_token,
            refresh_token,
            expires_in_s,
        }
    }
}

/// Those who change a password or delete an account have a session: nobody else's attempts count.
fn password_bucket(caller: &Caller) -> String {
    format!("account {}", caller.account)
}

fn parse_refresh_token(token: &str) -> Option<(Family, [u8; SECRET_BYTES])> {
    if token.len() > REFRESH_TOKEN_BYTES_MAX {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (family, secret) = bytes.split_first_chunk::<16>()?;
    Some((Family(*family), secret.try_into().ok()?))
}

/// Secrets have 256 bits of chance, so a plain hash tells nothing of them.
fn hash_of(secret: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, secret).as_ref())
}

pub(super) fn device_number(stored: u64) -> Option<DeviceId> {
    u32::try_from(stored).ok().filter(|number| *number > 0).map(DeviceId)
}
