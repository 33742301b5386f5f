//! Profiles: mine and those of others, and my devices.

use axum::extract::State;
use chatring_wire::DeviceId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::sessions::end_live;
use super::types::{InstallationText, hex16};
use crate::api::Shared;
use crate::api::accounts::{Device, DeviceName, Me, Profile, ProfileChange, SignedInState};
use crate::api::extract::{Account, Answer, Caller, Db, InPath, Json, Nothing, account_of};
use crate::api::problem::Problem;

/// What everybody who is signed in may see of a user.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(super) struct User {
    /// The account: the subject of the user's tokens.
    id: String,
    /// Its handle, in its one spelling.
    handle: String,
    /// Display name.
    name: String,
    /// Reference to an avatar; empty for none.
    avatar: String,
    /// Status text; empty for none.
    status: String,
}

impl From<Profile> for User {
    fn from(profile: Profile) -> User {
        let Profile { account, handle, name, avatar, status } = profile;
        User { id: account.to_string(), handle, name, avatar, status }
    }
}

/// Who I am.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct MeBody {
    /// Who made the token; empty for this deployment.
    issuer: String,
    /// The user's name with the issuer.
    subject: String,
    /// Unix time at which the token ends, in seconds.
    token_expires_at_s: u64,
    /// The account; not there for users who have none here.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<User>,
    /// What the client keeps here.
    #[serde(skip_serializing_if = "Option::is_none")]
    settings: Option<Map<String, Value>>,
    /// Unix time of the sign-up, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    created_ms: Option<u64>,
}

/// What to change; what is left out stays.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MeChange {
    /// Display name, 1 to 128 bytes.
    name: Option<String>,
    /// Reference to an avatar, up to 512 bytes.
    avatar: Option<String>,
    /// Status text, up to 512 bytes.
    status: Option<String>,
    /// Replaces all settings; up to 16 KiB.
    settings: Option<Map<String, Value>>,
}

/// A handle.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct HandlePath {
    /// In any of its spellings.
    pub handle: String,
}

/// My devices, those seen last first.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Devices {
    /// Each installation that has signed in.
    devices: Vec<DeviceBody>,
}

/// A device of an account.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct DeviceBody {
    /// Its number; null until it has spoken to the chat.
    id: Option<u32>,
    /// Its installation.
    installation: InstallationText,
    /// What it calls itself.
    label: String,
    /// Unix time of its first log-in, in milliseconds.
    created_ms: u64,
    /// Unix time of its newest log-in or renewal, in milliseconds.
    seen_ms: u64,
    /// Whether it has a session.
    signed_in: bool,
    /// Whether it is the one that asks.
    current: bool,
}

/// Which device.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct DevicePath {
    /// Its number, or its installation.
    id: String,
}

pub(super) async fn show(
    Caller(owner): Caller,
    State(state): State<Shared>,
) -> Result<Answer<MeBody>, Problem> {
    let identity = &owner.identity;
    let mut body = MeBody {
        issuer: identity.issuer.clone(),
        subject: identity.subject.clone(),
        token_expires_at_s: identity.expires_at_s,
        user: None,
        settings: None,
        created_ms: None,
    };
    if let (Some(caller), Some(accounts)) = (account_of(&owner), state.accounts()) {
        let Me { profile, settings, created_ms } = accounts.me(&caller).await?;
        body.user = Some(User::from(profile));
        body.settings = Some(settings);
        body.created_ms = Some(created_ms);
    }
    Ok(Answer(body))
}

pub(super) async fn change(
    Account(caller): Account,
    Db(accounts): Db,
    Json(body): Json<MeChange>,
) -> Result<Answer<User>, Problem> {
    let MeChange { name, avatar, status, settings } = body;
    let change = ProfileChange { name, avatar, status, settings };
    let me = accounts.change_profile(&caller, &change).await?;
    Ok(Answer(User::from(me.profile)))
}

pub(super) async fn user(
    _: Caller,
    Db(accounts): Db,
    InPath(path): InPath<HandlePath>,
) -> Result<Answer<User>, Problem> {
    Ok(Answer(User::from(accounts.user(&path.handle).await?)))
}

pub(super) async fn devices(
    Account(caller): Account,
    Db(accounts): Db,
) -> Result<Answer<Devices>, Problem> {
    let devices = accounts.devices(&caller).await?;
    Ok(Answer(Devices { devices: devices.into_iter().map(device_body).collect() }))
}

pub(super) async fn remove_device(
    State(state): State<Shared>,
    Account(caller): Account,
    Db(accounts): Db,
    InPath(path): InPath<DevicePath>,
) -> Result<Nothing, Problem> {
    let number = path.id.parse().ok().map(|number| DeviceName::Number(DeviceId(number)));
    let which = match hex16(&path.id) {
        Some(id) => Some(DeviceName::Installation(chatring_wire::InstallationId(id))),
        None => number,
    };
    let which = which
        .ok_or_else(|| Problem::invalid("id", "must be a device's number or its installation"))?;
    accounts.remove_device(&caller, which).await?;
    end_live(&state, &accounts, &caller).await;
    Ok(Nothing)
}

fn device_body(device: Device) -> DeviceBody {
    DeviceBody {
        id: device.number.map(|number| number.0),
        installation: InstallationText(device.installation),
        label: device.label,
        created_ms: device.created_ms,
        seen_ms: device.seen_ms,
        signed_in: device.signed_in != SignedInState::No,
        current: device.signed_in == SignedInState::Current,
    }
}
