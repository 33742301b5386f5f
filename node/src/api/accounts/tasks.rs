//! Work for later that a crash does not lose: deletions; and the export of an account.
//!
//! A task is a row. It vests at a time, is tried, and vests again later if it fails; after twelve
//! attempts it is a dead letter, which stays until somebody has looked. Its last step and its end
//! are one transaction, so what it does is done once.

use serde_json::{Value, json};
use sqlx::any::AnyRow;
use tracing::{error, info};

use super::db::{Tx, number, retried, stored, text};
use super::error::{AccountError, DatabaseError};
use super::handle::Handle;
use super::limits::{
    BUSY_RETRY_MS, DELETE_ROWS_MAX, PAGE_ROWS_MAX, TASK_ATTEMPTS_MAX, TASK_LEASE_MS, TASK_RETRY_MS,
    TASK_RETRY_MS_MAX, TASKS_PER_LOOK_MAX,
};
use super::outbox::{Change, tell};
use super::sessions::Ends;
use super::types::{AccountId, Caller};
use super::{Accounts, hex, random};
use crate::auth::Family;

/// The kind of task that deletes an account.
const DELETE_ACCOUNT: &str = "delete_account";

/// How the tasks stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tasks {
    /// Those that are yet to be done.
    pub waiting: u64,
    /// Those that have failed too often, at most 200.
    pub dead: Vec<DeadTask>,
}

/// A task that has failed too often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadTask {
    /// Its id, for [`Accounts::retry_task`].
    pub id: String,
    /// What it should have done.
    pub kind: String,
    /// To which account.
    pub account: String,
    /// Why the last attempt failed.
    pub last_error: String,
}

/// A task that is being tried.
struct Task {
    id: String,
    kind: String,
    account: AccountId,
    attempts: u64,
}

/// Whether a task needs another step.
#[derive(PartialEq, Eq)]
enum Step {
    More,
    Done,
}

impl Accounts {
    /// Deletes the caller's account. From the answer on nobody can sign in to it or find it, and
    /// its tokens are refused; its rows go by a task soon after. Its handle is never given again.
    ///
    /// Errors: `WrongCredentials`, `Limited`, `Busy`, `UnknownUser`, `Database`.
    pub async fn delete_account(
        &self,
        caller: &Caller,
        password: &str,
    ) -> Result<(), AccountError> {
        let hashed = self.check_password(caller, password).await?;
        let ended = retried!(self.delete_account_once(&caller.account, &hashed))?;
        self.ended(&ended);
        self.inner.tasks.notify_one();
        Ok(())
    }

    async fn delete_account_once(
        &self,
        account: &AccountId,
        hashed: &str,
    ) -> Result<Vec<Family>, AccountError> {
        let now_ms = self.now_ms();
        let mut tx = self.inner.db.begin().await?;
        let mark = "UPDATE accounts SET deleting = 1 \
                    WHERE id = $1 AND password = $2 AND deleting = 0";
        let mark = sqlx::query(mark).bind(account.as_str()).bind(hashed.to_owned());
        if mark.execute(tx.on()).await?.rows_affected() == 0 {
            return Err(AccountError::WrongCredentials);
        }
        let ended = self.end_sessions(&mut tx, account, Ends::All, now_ms).await?;
        tell(&mut tx, Change::AccountDeleted { account: account.clone() }, now_ms).await?;
        add_task(&mut tx, DELETE_ACCOUNT, account, now_ms).await?;
        tx.commit().await?;
        Ok(ended)
    }

    /// Everything of the caller that is kept here, as JSON. Passwords and tokens are kept as hashes
    /// and are not in it; messages are the chat store's.
    pub async fn export(&self, caller: &Caller) -> Result<Value, AccountError> {
        let me = self.me(caller).await?;
        let devices = self.devices(caller).await?.into_iter().map(|device| {
            json!({
                "installation": hex(&device.installation.0),
                "number": device.number.map(|number| number.0),
                "label": device.label,
                "created_ms": device.created_ms,
                "seen_ms": device.seen_ms,
            })
        });
        let devices: Vec<Value> = devices.collect();
        let (mut friends, mut blocks) = (Vec::new(), Vec::new());
        let mut after = None;
        loop {
            let page = self.friends(caller, after.as_deref(), PAGE_ROWS_MAX).await?;
            friends.extend(page.rows.into_iter().map(|friend| {
                json!({
                    "user": friend.profile.account.as_str(),
                    "handle": friend.profile.handle,
                    "standing": format!("{:?}", friend.standing).to_lowercase(),
                    "since_ms": friend.since_ms,
                })
            }));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        loop {
            let page = self.blocks(caller, after.as_deref(), PAGE_ROWS_MAX).await?;
            blocks.extend(page.rows.into_iter().map(
                |blocked| json!({ "user": blocked.account.as_str(), "handle": blocked.handle }),
            ));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        Ok(json!({
            "user": me.profile.account.as_str(),
            "handle": me.profile.handle,
            "name": me.profile.name,
            "avatar": me.profile.avatar,
            "status": me.profile.status,
            "settings": me.settings,
            "created_ms": me.created_ms,
            "devices": devices,
            "sessions": self.export_sessions(caller).await?,
            "friends": friends,
            "blocks": blocks,
        }))
    }

    async fn export_sessions(&self, caller: &Caller) -> Result<Vec<Value>, AccountError> {
        let find = "SELECT installation, created_ms, used_ms, expires_ms FROM sessions \
                    WHERE account = $1 ORDER BY created_ms";
        let rows = sqlx::query(find).bind(caller.account.as_str());
        let rows = rows.fetch_all(self.inner.db.pool()).await?;
        let session = |row: &AnyRow| {
            Ok(json!({
                "installation": text(row, 0)?,
                "created_ms": number(row, 1)?,
                "used_ms": number(row, 2)?,
                "expires_ms": number(row, 3)?,
            }))
        };
        rows.iter().map(session).collect()
    }

    /// How the tasks stand, for operators.
    pub async fn tasks(&self) -> Result<Tasks, AccountError> {
        let count = "SELECT COUNT(*) FROM tasks WHERE dead = 0";
        let waiting = sqlx::query(count).fetch_one(self.inner.db.pool()).await?;
        let find = "SELECT id, kind, account, last_error FROM tasks WHERE dead = 1 \
                    ORDER BY vests_ms LIMIT $1";
        let rows = sqlx::query(find).bind(PAGE_ROWS_MAX as i64);
        let rows = rows.fetch_all(self.inner.db.pool()).await?;
        let dead = |row: &AnyRow| {
            let (id, kind, account) = (text(row, 0)?, text(row, 1)?, text(row, 2)?);
            Ok(DeadTask { id, kind, account, last_error: text(row, 3)? })
        };
        let dead = rows.iter().map(dead).collect::<Result<_, AccountError>>()?;
        Ok(Tasks { waiting: number(&waiting, 0)?, dead })
    }

    /// Lets a dead task be tried again.
    pub async fn retry_task(&self, id: &str) -> Result<(), AccountError> {
        retried!(async {
            let mut tx = self.inner.db.begin().await?;
            let put = "UPDATE tasks SET dead = 0, attempts = 0, vests_ms = 0 WHERE id = $1";
            sqlx::query(put).bind(id.to_owned()).execute(tx.on()).await?;
            tx.commit().await
        })?;
        self.inner.tasks.notify_one();
        Ok(())
    }

    /// Tries the tasks that have vested. [`super::Upkeep`] does this.
    pub(super) async fn run_due_tasks(&self) -> Result<(), AccountError> {
        let find = "SELECT id, kind, account, attempts FROM tasks \
                    WHERE dead = 0 AND vests_ms <= $1 ORDER BY vests_ms LIMIT $2";
        let due = sqlx::query(find).bind(stored(self.now_ms())).bind(TASKS_PER_LOOK_MAX as i64);
        for row in due.fetch_all(self.inner.db.pool()).await? {
            let task = Task {
                id: text(&row, 0)?,
                kind: text(&row, 1)?,
                account: AccountId(text(&row, 2)?),
                attempts: number(&row, 3)?,
            };
            if !retried!(self.lease(&task))? {
                continue;
            }
            match self.carry_out(&task).await {
                Ok(()) => self.inner.figures.tasks_done.one(),
                Err(failure) => retried!(self.note_failure(&task, &failure))?,
            }
        }
        Ok(())
    }

    /// Whether the task is mine to try now: no other process has begun it meanwhile.
    async fn lease(&self, task: &Task) -> Result<bool, AccountError> {
        let mut tx = self.inner.db.begin().await?;
        let take = "UPDATE tasks SET vests_ms = $3, attempts = attempts + 1 \
                    WHERE id = $1 AND attempts = $2 AND dead = 0";
        let take = sqlx::query(take).bind(&*task.id).bind(stored(task.attempts));
        let until_ms = self.now_ms().saturating_add(TASK_LEASE_MS);
        let taken = take.bind(stored(until_ms)).execute(tx.on()).await?.rows_affected();
        tx.commit().await?;
        Ok(taken == 1)
    }

    async fn carry_out(&self, task: &Task) -> Result<(), AccountError> {
        match &*task.kind {
            DELETE_ACCOUNT => {
                while retried!(self.delete_step(task))? == Step::More {}
                info!(account = %task.account, "deleted an account");
                Ok(())
            }
            kind => {
                let unknown = format!("no task is of kind {kind:?}");
                Err(AccountError::Database(DatabaseError::Failed(unknown)))
            }
        }
    }

    async fn note_failure(&self, task: &Task, failure: &AccountError) -> Result<(), AccountError> {
        let attempts = task.attempts + 1;
        let dead = attempts >= u64::from(TASK_ATTEMPTS_MAX);
        let pause_ms = (TASK_RETRY_MS << (attempts - 1).min(30)).min(TASK_RETRY_MS_MAX);
        let mut tx = self.inner.db.begin().await?;
        let put = "UPDATE tasks SET vests_ms = $2, last_error = $3, dead = $4 WHERE id = $1";
        let put = sqlx::query(put).bind(&*task.id).bind(stored(self.now_ms() + pause_ms));
        let reason = match failure {
            AccountError::Database(error) => error.to_string(),
            other => other.to_string(),
        };
        put.bind(&*reason).bind(i64::from(dead)).execute(tx.on()).await?;
        tx.commit().await?;
        self.inner.figures.tasks_failed.one();
        if dead {
            self.inner.figures.tasks_dead.one();
            error!(id = task.id, kind = task.kind, reason, "a task has failed for good");
        }
        Ok(())
    }

    /// Removes some rows of an account; the last step removes the account itself and the task.
    async fn delete_step(&self, task: &Task) -> Result<Step, AccountError> {
        let me = &task.account;
        let now_ms = self.now_ms();
        let mut tx = self.inner.db.begin().await?;
        let find = "SELECT owner, peer FROM relations WHERE owner = $1 OR peer = $1 LIMIT $2";
        let rows = sqlx::query(find).bind(me.as_str()).bind(DELETE_ROWS_MAX as i64);
        let rows = rows.fetch_all(tx.on()).await?;
        for row in &rows {
            let (owner, peer) = (AccountId(text(row, 0)?), AccountId(text(row, 1)?));
            let remove = "DELETE FROM relations WHERE owner = $1 AND peer = $2";
            let remove = sqlx::query(remove).bind(owner.as_str()).bind(peer.as_str());
            remove.execute(tx.on()).await?;
            let change = Change::Relation { owner, peer, friends: false, blocked: false };
            tell(&mut tx, change, now_ms).await?;
        }
        if rows.len() == DELETE_ROWS_MAX {
            tx.commit().await?;
            return Ok(Step::More);
        }
        let find = "SELECT skeleton FROM accounts WHERE id = $1";
        let account = sqlx::query(find).bind(me.as_str()).fetch_optional(tx.on()).await?;
        if let Some(row) = account {
            let retire = "INSERT INTO retired_handles (hash) VALUES ($1) ON CONFLICT DO NOTHING";
            let hash = Handle::retired(&text(&row, 0)?);
            sqlx::query(retire).bind(hash).execute(tx.on()).await?;
        }
        for remove in [
            "DELETE FROM sessions WHERE account = $1",
            "DELETE FROM devices WHERE account = $1",
            "DELETE FROM accounts WHERE id = $1",
        ] {
            sqlx::query(remove).bind(me.as_str()).execute(tx.on()).await?;
        }
        let done = "DELETE FROM tasks WHERE id = $1";
        sqlx::query(done).bind(&*task.id).execute(tx.on()).await?;
        tx.commit().await?;
        self.told();
        Ok(Step::Done)
    }

    /// Removes log-ins and revocations that have expired.
    pub(super) async fn clear_away(&self) -> Result<(), AccountError> {
        let now_ms = self.now_ms();
        self.inner.revocations.forget(now_ms / 1_000);
        for (find, remove) in [
            (
                "SELECT 1 FROM sessions WHERE expires_ms <= $1 LIMIT 1",
                "DELETE FROM sessions WHERE expires_ms <= $1",
            ),
            (
                "SELECT 1 FROM revocations WHERE until_ms <= $1 LIMIT 1",
                "DELETE FROM revocations WHERE until_ms <= $1",
            ),
        ] {
            let some = sqlx::query(find).bind(stored(now_ms));
            if some.fetch_optional(self.inner.db.pool()).await?.is_some() {
                retried!(async {
                    let mut tx = self.inner.db.begin().await?;
                    sqlx::query(remove).bind(stored(now_ms)).execute(tx.on()).await?;
                    tx.commit().await
                })?;
            }
        }
        Ok(())
    }
}

async fn add_task(
    tx: &mut Tx,
    kind: &str,
    account: &AccountId,
    now_ms: u64,
) -> Result<(), AccountError> {
    let busy = |_| AccountError::Busy { retry_after_ms: BUSY_RETRY_MS };
    let id = hex(&random::<16>().map_err(busy)?);
    let put = "INSERT INTO tasks (id, kind, account, vests_ms, attempts, last_error, dead) \
               VALUES ($1, $2, $3, $4, 0, '', 0)";
    let put = sqlx::query(put).bind(id).bind(kind.to_owned()).bind(account.as_str());
    put.bind(stored(now_ms)).execute(tx.on()).await?;
    Ok(())
}
