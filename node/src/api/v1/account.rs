//! The account as a whole: its password, and its end.

use axum::extract::State;
use schemars::JsonSchema;
use serde::Deserialize;

use super::sessions::end_live;
use crate::api::Shared;
use crate::api::accounts::AccountError;
use crate::api::extract::{Account, Db, Json, Nothing};
use crate::api::problem::Problem;

/// A change of the password.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PasswordChange {
    /// The one that is good until now.
    password: String,
    /// The one that is good from now on; at least 8 characters.
    new_password: String,
}

/// A deletion.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Deletion {
    /// The account's password: this cannot be undone.
    password: String,
}

pub(super) async fn change_password(
    State(state): State<Shared>,
    Account(caller): Account,
    Db(accounts): Db,
    Json(body): Json<PasswordChange>,
) -> Result<Nothing, Problem> {
    let PasswordChange { password, new_password } = body;
    let changed = accounts.change_password(&caller, &password, &new_password).await;
    changed.map_err(|error| match error {
        // Of the old one nothing is told but whether it is right.
        AccountError::Invalid { field: "password", reason } => {
            AccountError::Invalid { field: "new_password", reason }
        }
        error => error,
    })?;
    end_live(&state, &accounts, &caller).await;
    Ok(Nothing)
}

pub(super) async fn delete(
    State(state): State<Shared>,
    Account(caller): Account,
    Db(accounts): Db,
    Json(body): Json<Deletion>,
) -> Result<Nothing, Problem> {
    accounts.delete_account(&caller, &body.password).await?;
    end_live(&state, &accounts, &caller).await;
    Ok(Nothing)
}
