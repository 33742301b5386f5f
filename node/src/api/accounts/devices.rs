//! Devices: the installations that have signed in.
//!
//! The number of a device is given by the user's shard when the installation first signs in there;
//! here it is only noted, so that a device can be named by it. Removing a device ends its log-in
//! and marks its installation, which does not come back under the same id.

use chatring_wire::{DeviceId, InstallationId};
use sqlx::any::AnyRow;

use super::db::{Tx, number, retried, stored, text};
use super::error::AccountError;
use super::limits::{DEVICE_ROWS_MAX, DEVICES_MAX};
use super::outbox::{Change, tell};
use super::sessions::{Ends, device_number};
use super::types::{AccountId, Caller, Device, DeviceName, SignedInState, installation_hex};
use super::{Accounts, from_hex};
use crate::auth::Family;

impl Accounts {
    /// The caller's devices, those seen last first.
    pub async fn devices(&self, caller: &Caller) -> Result<Vec<Device>, AccountError> {
        let find = "SELECT d.installation, d.number, d.label, d.created_ms, d.seen_ms, \
                        COALESCE(s.family, '') \
                    FROM devices d LEFT JOIN sessions s \
                        ON s.account = d.account AND s.installation = d.installation \
                    WHERE d.account = $1 AND d.removed = 0 ORDER BY d.seen_ms DESC, d.installation";
        let rows = sqlx::query(find).bind(caller.account.as_str());
        let rows = rows.fetch_all(self.inner.db.pool()).await?;
        let devices = rows.iter().map(|row| device(row, caller).transpose());
        devices.flatten().collect()
    }

    /// Notes which number the user's shard has given an installation. Saying it again does nothing.
    pub async fn number_device(
        &self,
        account: &AccountId,
        installation: &InstallationId,
        device: DeviceId,
    ) -> Result<(), AccountError> {
        let put = "UPDATE devices SET number = $3 \
                   WHERE account = $1 AND installation = $2 AND number <> $3";
        retried!(async {
            let mut tx = self.inner.db.begin().await?;
            let put = sqlx::query(put).bind(account.as_str()).bind(installation_hex(installation));
            put.bind(i64::from(device.0)).execute(tx.on()).await?;
            tx.commit().await
        })
    }

    /// Removes a device: its log-in ends, and its installation does not come back.
    ///
    /// Errors: `UnknownDevice`, `Database`.
    pub async fn remove_device(
        &self,
        caller: &Caller,
        which: DeviceName,
    ) -> Result<Device, AccountError> {
        let devices = self.devices(caller).await?;
        let named = |device: &Device| match which {
            DeviceName::Number(number) => device.number == Some(number),
            DeviceName::Installation(installation) => device.installation == installation,
        };
        let device = devices.into_iter().find(named).ok_or(AccountError::UnknownDevice)?;
        let ended = retried!(self.remove_device_once(&caller.account, &device.installation))?;
        self.ended(&ended);
        Ok(device)
    }

    async fn remove_device_once(
        &self,
        account: &AccountId,
        installation: &InstallationId,
    ) -> Result<Vec<Family>, AccountError> {
        let now_ms = self.now_ms();
        let mut tx = self.inner.db.begin().await?;
        let ended = self.end_sessions(&mut tx, account, Ends::Device(installation), now_ms).await?;
        mark_removed(&mut tx, account, installation, now_ms).await?;
        tx.commit().await?;
        Ok(ended)
    }

    pub(super) async fn has_device(
        &self,
        account: &AccountId,
        installation: &InstallationId,
    ) -> Result<bool, AccountError> {
        let find = "SELECT 1 FROM devices \
                    WHERE account = $1 AND installation = $2 AND removed = 0";
        let row = sqlx::query(find).bind(account.as_str()).bind(installation_hex(installation));
        Ok(row.fetch_optional(self.inner.db.pool()).await?.is_some())
    }

    /// Finds or makes the device of an installation that signs in, and gives its number, if it is
    /// known. A user who has too many loses the one not seen for longest, with the log-in that is
    /// given.
    pub(super) async fn take_device(
        &self,
        tx: &mut Tx,
        account: &AccountId,
        installation: &InstallationId,
        label: &str,
        now_ms: u64,
    ) -> Result<(Option<DeviceId>, Vec<Family>), AccountError> {
        let find = "SELECT number, removed FROM devices WHERE account = $1 AND installation = $2";
        let name = installation_hex(installation);
        let found = sqlx::query(find).bind(account.as_str()).bind(&*name);
        if let Some(row) = found.fetch_optional(tx.on()).await? {
            if number(&row, 1)? != 0 {
                return Err(AccountError::InstallationRemoved);
            }
            let put = "UPDATE devices SET seen_ms = $3, \
                           label = CASE WHEN $4 = '' THEN label ELSE $4 END \
                       WHERE account = $1 AND installation = $2";
            let put = sqlx::query(put).bind(account.as_str()).bind(&*name);
            put.bind(stored(now_ms)).bind(label).execute(tx.on()).await?;
            return Ok((device_number(number(&row, 0)?), Vec::new()));
        }
        let ended = self.make_room(tx, account, now_ms).await?;
        let put = "INSERT INTO devices (account, installation, number, label, created_ms, \
                       seen_ms, removed) VALUES ($1, $2, 0, $3, $4, $4, 0)";
        let put = sqlx::query(put).bind(account.as_str()).bind(&*name).bind(label);
        put.bind(stored(now_ms)).execute(tx.on()).await?;
        Ok((None, ended))
    }

    async fn make_room(
        &self,
        tx: &mut Tx,
        account: &AccountId,
        now_ms: u64,
    ) -> Result<Vec<Family>, AccountError> {
        let find = "SELECT installation, removed FROM devices WHERE account = $1 \
                    ORDER BY removed, seen_ms DESC, installation";
        let rows = sqlx::query(find).bind(account.as_str()).fetch_all(tx.on()).await?;
        let (mut living, mut ended) = (Vec::new(), Vec::new());
        for row in &rows {
            if number(row, 1)? == 0 {
                living.push(text(row, 0)?);
            }
        }
        if let Some(oldest) = living.get(DEVICES_MAX - 1..).and_then(<[_]>::last)
            && let Some(installation) = from_hex(oldest).map(InstallationId)
        {
            ended = self.end_sessions(tx, account, Ends::Device(&installation), now_ms).await?;
            mark_removed(tx, account, &installation, now_ms).await?;
        }
        if rows.len() >= DEVICE_ROWS_MAX {
            let last = text(&rows[rows.len() - 1], 0)?;
            let remove = "DELETE FROM devices WHERE account = $1 AND installation = $2";
            let remove = sqlx::query(remove).bind(account.as_str()).bind(last);
            remove.execute(tx.on()).await?;
        }
        Ok(ended)
    }
}

async fn mark_removed(
    tx: &mut Tx,
    account: &AccountId,
    installation: &InstallationId,
    now_ms: u64,
) -> Result<(), AccountError> {
    let mark = "UPDATE devices SET removed = 1 WHERE account = $1 AND installation = $2";
    let mark = sqlx::query(mark).bind(account.as_str()).bind(installation_hex(installation));
    mark.execute(tx.on()).await?;
    let (account, installation) = (account.clone(), *installation);
    tell(tx, Change::DeviceRemoved { account, installation }, now_ms).await
}

fn device(row: &AnyRow, caller: &Caller) -> Result<Option<Device>, AccountError> {
    let Some(installation) = from_hex(&text(row, 0)?).map(InstallationId) else {
        return Ok(None);
    };
    let signed_in = match from_hex(&text(row, 5)?).map(Family) {
        Some(family) if family == caller.family => SignedInState::Current,
        Some(_) => SignedInState::Yes,
        None => SignedInState::No,
    };
    Ok(Some(Device {
        installation,
        number: device_number(number(row, 1)?),
        label: text(row, 2)?,
        created_ms: number(row, 3)?,
        seen_ms: number(row, 4)?,
        signed_in,
    }))
}
