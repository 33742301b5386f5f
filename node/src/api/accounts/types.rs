//! What goes into the accounts and comes out of them.

use std::fmt;

use chatring_core::effect::Identity;
use chatring_wire::{DeviceId, InstallationId};
use serde_json::{Map, Value};

use super::hex;
use crate::auth::Family;

/// An account: the subject of its tokens (their issuer is the deployment's own). Random, never used
/// again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(pub(super) String);

impl AccountId {
    /// Its text, 32 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// From its text.
    pub fn parse(text: &str) -> Option<AccountId> {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (text.len() == 32 && text.bytes().all(digit)).then(|| AccountId(text.to_owned()))
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who asks: the holder of a good access token that [`super::Accounts`] gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The account.
    pub account: AccountId,
    /// Its session: the family of its tokens.
    pub family: Family,
    /// The installation that the token is bound to.
    pub installation: InstallationId,
}

impl Caller {
    /// Whom a verified token belongs to; `None` if it is not bound to a session, as the tokens of
    /// other issuers and of `chatring token` are not: those have no account here.
    pub fn of(identity: &Identity, family: Option<Family>) -> Option<Caller> {
        if !identity.issuer.is_empty() {
            return None;
        }
        let account = AccountId::parse(&identity.subject)?;
        Some(Caller { account, family: family?, installation: identity.installation? })
    }
}

/// A sign-up.
#[derive(Clone)]
pub struct SignUp {
    /// As the user typed it.
    pub handle: String,
    /// As the user typed it.
    pub password: String,
    /// Display name; the handle if there is none.
    pub name: Option<String>,
    /// With an installation the answer is a session, too.
    pub installation: Option<InstallationId>,
    /// What the device calls itself; empty for nothing.
    pub label: String,
}

/// A log-in.
#[derive(Clone)]
pub struct LogIn {
    /// As the user typed it.
    pub handle: String,
    /// As the user typed it.
    pub password: String,
    /// Which installation.
    pub installation: InstallationId,
    /// What the device calls itself; empty to keep what is known.
    pub label: String,
}

/// The answer to a sign-up.
#[derive(Clone, Debug)]
pub struct SignedUp {
    /// The new account.
    pub profile: Profile,
    /// A session, if the sign-up named an installation.
    pub session: Option<SignedIn>,
}

/// A session with its tokens.
#[derive(Clone)]
pub struct SignedIn {
    /// Whose it is.
    pub account: AccountId,
    /// Its installation.
    pub installation: InstallationId,
    /// Its family.
    pub family: Family,
    /// The device's number, if [`super::Accounts::number_device`] has told it.
    pub device: Option<DeviceId>,
    /// JWT for HTTP and for the WebSocket's `hello`, which must name the same installation.
    pub access_token: String,
    /// Exchanged for the next pair by [`super::Accounts::refresh`].
    pub refresh_token: String,
    /// Life of the access token, in seconds.
    pub expires_in_s: u64,
}

impl fmt::Debug for SignedIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (account, installation) = (&self.account, &self.installation);
        let mut out = f.debug_struct("SignedIn");
        out.field("account", account).field("installation", installation).finish_non_exhaustive()
    }
}

/// What everybody who is signed in may see of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The account.
    pub account: AccountId,
    /// Its handle, in its one spelling.
    pub handle: String,
    /// Display name.
    pub name: String,
    /// Reference to an avatar; empty for none.
    pub avatar: String,
    /// Status text; empty for none.
    pub status: String,
}

/// What a user sees of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Me {
    /// What others see.
    pub profile: Profile,
    /// Whatever the client keeps here, at most 16 KiB as JSON.
    pub settings: Map<String, Value>,
    /// Unix milliseconds of the sign-up.
    pub created_ms: u64,
}

/// What to change of one's profile; `None` leaves it as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProfileChange {
    /// 1 to 128 bytes.
    pub name: Option<String>,
    /// Up to 512 bytes.
    pub avatar: Option<String>,
    /// Up to 512 bytes.
    pub status: Option<String>,
    /// Replaces all settings.
    pub settings: Option<Map<String, Value>>,
}

/// A device of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Which installation.
    pub installation: InstallationId,
    /// Its number, if [`super::Accounts::number_device`] has told it.
    pub number: Option<DeviceId>,
    /// What it calls itself.
    pub label: String,
    /// Unix milliseconds of its first log-in.
    pub created_ms: u64,
    /// Unix milliseconds of its newest log-in or refresh.
    pub seen_ms: u64,
    /// Whether it is signed in.
    pub signed_in: SignedInState,
}

/// Whether a device is signed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignedInState {
    /// It asks right now.
    Current,
    /// It has a session.
    Yes,
    /// It has none.
    No,
}

/// Which device is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceName {
    /// By its number.
    Number(DeviceId),
    /// By its installation.
    Installation(InstallationId),
}

/// How two users stand, seen from one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing.
    None,
    /// I have asked; the other one has not answered.
    Requested,
    /// The other one has asked me.
    Asked,
    /// Friends.
    Friends,
}

/// One line of the list of friends and requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Friend {
    /// Who.
    pub profile: Profile,
    /// `Requested`, `Asked` or `Friends`.
    pub standing: Standing,
    /// Unix milliseconds since when.
    pub since_ms: u64,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// Its rows.
    pub rows: Vec<T>,
    /// Give this to get what follows; `None` at the end.
    pub next: Option<String>,
}

pub(super) fn installation_hex(installation: &InstallationId) -> String {
    hex(&installation.0)
}
