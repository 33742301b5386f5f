//! Who asks.

use schemars::JsonSchema;
use serde::Serialize;

use crate::api::extract::{Answer, Caller};

/// The user that the token belongs to.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Me {
    /// Who made the token; empty for this deployment.
    issuer: String,
    /// The user's name with the issuer.
    subject: String,
    /// Unix time at which the token ends, in seconds.
    token_expires_at_s: u64,
}

pub(super) async fn show(Caller(identity): Caller) -> Answer<Me> {
    Answer(Me {
        issuer: identity.issuer.clone(),
        subject: identity.subject.clone(),
        token_expires_at_s: identity.expires_at_s,
    })
}
