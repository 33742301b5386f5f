//! Signing up, logging in, renewing tokens, logging out.

use axum::extract::State;
use bytes::Bytes;
use chatring_core::call::{Answer as CallAnswer, CallDevice, CallRequest, CallSync};
use chatring_core::cursor::Cursor;
use chatring_core::effect::Identity;
use chatring_wire::{DeviceId, ErrorCode, InstallationId};
use ring::rand::{SecureRandom as _, SystemRandom};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::profile::User;
use super::types::InstallationText;
use crate::api::Shared;
use crate::api::accounts::{self, About, Accounts, LogIn, SignUp, SignedIn};
use crate::api::extract::{Account, Answer, Db, IdempotencyKey, Json, Nothing, Peer, unix_s};
use crate::api::problem::Problem;

/// A sign-up.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SignUpBody {
    /// 2 to 32 characters: letters and digits of one script, `.`, `-` and `_` between them.
    handle: String,
    /// At least 8 characters.
    password: String,
    /// Display name; the handle if there is none.
    name: Option<String>,
    /// Which installation; without it the server makes a new one and tells it.
    installation: Option<InstallationText>,
    /// What the device calls itself.
    label: Option<String>,
}

/// A log-in.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogInBody {
    /// In any of its spellings.
    handle: String,
    /// The password.
    password: String,
    /// Which installation; without it the server makes a new one and tells it.
    installation: Option<InstallationText>,
    /// What the device calls itself.
    label: Option<String>,
}

/// A renewal of tokens.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RefreshBody {
    /// The newest one. It is good once; a repeat with the same `Idempotency-Key` gets the same
    /// answer.
    refresh_token: String,
}

/// A session of a device.
#[derive(Serialize, JsonSchema)]
pub(super) struct Session {
    /// For `Authorization: Bearer` and for the WebSocket's `hello`.
    access_token: String,
    /// Exchanged for the next pair at `POST /v1/sessions/refresh`.
    refresh_token: String,
    /// Life of the access token, in seconds.
    expires_in: u64,
    /// Whose it is.
    user: User,
    /// The device's number; null until the device has spoken to the chat.
    device: Option<u32>,
    /// The device's installation.
    installation: InstallationText,
    /// Where to chat.
    node: NodeOf,
}

/// A chat node.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(super) struct NodeOf {
    /// URL of its WebSocket; null while the API server knows none. It is in the next renewal then.
    ws: Option<String>,
    /// The history that the cursors of the node belong to. A client keeps it beside its cursor:
    /// while it is the same, the cursor is good here; otherwise all is given anew. Null if the
    /// chat could not be asked.
    resume: Option<String>,
}

pub(super) async fn sign_up(
    State(state): State<Shared>,
    Peer(from): Peer,
    Db(accounts): Db,
    Json(body): Json<SignUpBody>,
) -> Result<Answer<Session, 201>, Problem> {
    let sign_up = SignUp {
        handle: body.handle,
        password: body.password,
        name: body.name,
        installation: Some(installation_of(body.installation)?),
        label: body.label.unwrap_or_default(),
    };
    let signed_up = accounts.sign_up(from, &sign_up).await?;
    let user = User::from(signed_up.profile);
    let session = signed_up.session.ok_or(ErrorCode::Internal)?;
    Ok(Answer(session_of(&state, &accounts, session, user).await))
}

pub(super) async fn log_in(
    State(state): State<Shared>,
    Peer(from): Peer,
    Db(accounts): Db,
    Json(body): Json<LogInBody>,
) -> Result<Answer<Session>, Problem> {
    let log_in = LogIn {
        handle: body.handle,
        password: body.password,
        installation: installation_of(body.installation)?,
        label: body.label.unwrap_or_default(),
    };
    let signed_in = accounts.log_in(from, &log_in).await?;
    let user = user_of(&accounts, &signed_in).await?;
    Ok(Answer(session_of(&state, &accounts, signed_in, user).await))
}

pub(super) async fn refresh(
    State(state): State<Shared>,
    Db(accounts): Db,
    IdempotencyKey(key): IdempotencyKey,
    Json(body): Json<RefreshBody>,
) -> Result<Answer<Session>, Problem> {
    let signed_in = accounts.refresh(&body.refresh_token, key.as_deref()).await?;
    let user = user_of(&accounts, &signed_in).await?;
    Ok(Answer(session_of(&state, &accounts, signed_in, user).await))
}

pub(super) async fn log_out(
    State(state): State<Shared>,
    Db(accounts): Db,
    Account(caller): Account,
) -> Result<Nothing, Problem> {
    accounts.log_out(&caller).await?;
    end_live(&state, &accounts, &caller).await;
    Ok(Nothing)
}

pub(super) async fn log_out_everywhere(
    State(state): State<Shared>,
    Db(accounts): Db,
    Account(caller): Account,
) -> Result<Nothing, Problem> {
    accounts.log_out_everywhere(&caller).await?;
    end_live(&state, &accounts, &caller).await;
    Ok(Nothing)
}

/// Ends what lives of the caller's log-ins that have ended: to be called by whoever ends some. If
/// the chat cannot be asked now it follows as soon as it can; the tokens are refused already.
pub(super) async fn end_live(state: &Shared, accounts: &Accounts, caller: &accounts::Caller) {
    if let Err(problem) = state.follow(accounts, About::LogIns(&caller.account)).await {
        tracing::warn!(why = problem.code().name(), "live sessions do not end at once");
    }
}

async fn user_of(accounts: &Accounts, signed_in: &SignedIn) -> Result<User, Problem> {
    let profiles = accounts.profiles(std::slice::from_ref(&signed_in.account)).await?;
    let profile = profiles.into_iter().next();
    // Deleted in between.
    Ok(User::from(profile.ok_or(ErrorCode::UnknownUser)?))
}

async fn session_of(
    state: &Shared,
    accounts: &Accounts,
    signed_in: SignedIn,
    user: User,
) -> Session {
    let identity = identity_of(&signed_in);
    let device = match signed_in.device {
        Some(device) => Some(device),
        None => number_device(state, accounts, &signed_in, &identity).await.ok(),
    };
    let resume = resume_of(state, &identity).await;
    if let Some(tokens) = state.tokens() {
        tokens.remember(&signed_in.access_token, unix_s());
    }
    Session {
        access_token: signed_in.access_token,
        refresh_token: signed_in.refresh_token,
        expires_in: signed_in.expires_in_s,
        user,
        device: device.map(|device| device.0),
        installation: InstallationText(signed_in.installation),
        node: NodeOf { ws: state.ws(), resume },
    }
}

/// Makes the user and its device known to the chat, which gives the device its number. The log-in
/// is good without one, too: the next renewal tries again.
async fn number_device(
    state: &Shared,
    accounts: &Accounts,
    signed_in: &SignedIn,
    identity: &Identity,
) -> Result<DeviceId, Problem> {
    let SignedIn { account, installation, .. } = signed_in;
    let device = CallDevice::Installation(*installation);
    let device = state.chat()?.sign_in(identity, device).await?;
    accounts.number_device(account, installation, device).await?;
    Ok(device)
}

/// The history that the node's cursors belong to: that of the cursor of a sync that hardly gives
/// anything.
async fn resume_of(state: &Shared, identity: &Identity) -> Option<String> {
    let sync = CallSync { cursor: Bytes::new(), limit: 1, wait_ms: 0 };
    let call = state.chat().ok()?.call_as(identity, CallDevice::None, CallRequest::Sync(sync));
    let CallAnswer::Synced(synced) = call.await.ok()? else { return None };
    Cursor::decode(synced.cursor).map(|cursor| format!("{:016x}", cursor.history.0))
}

fn identity_of(signed_in: &SignedIn) -> Identity {
    let now_s = unix_s();
    Identity {
        issuer: String::new(),
        subject: signed_in.account.to_string(),
        issued_at_s: now_s,
        expires_at_s: now_s + signed_in.expires_in_s,
        installation: Some(signed_in.installation),
    }
}

/// The client's installation, or a new one, which the answer tells.
fn installation_of(given: Option<InstallationText>) -> Result<InstallationId, Problem> {
    if let Some(given) = given {
        return Ok(given.0);
    }
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| ErrorCode::Internal)?;
    Ok(InstallationId(bytes))
}
