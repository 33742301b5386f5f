//! Links: API servers that run alone reach the shards of a node over them.
//!
//! ```text
//!   handler ─▶ Shards ─┬─ Here ───────────────────────────────────▶ Calls ─▶ shard
//!                      └─ Linked ─▶ Links ──── TCP ────▶ acceptor ─▶ Calls ─▶ shard
//!                                   (dial)               (accept)
//! ```
//!
//! Both ends run on the service thread of their process. A call over a link has a ticket, is
//! withdrawn when nobody waits for it any more, and fails typed: `busy` if there is no room,
//! `unavailable` while there is no link. A send whose answer a broken link has swallowed is
//! [`Answer::Unknown`], to be repeated under its key.

mod accept;
mod dial;
mod format1;
mod key;
mod limits;

use chatring_core::call::{Answer, CallDevice, CallRequest, CallResult, Decision};
use chatring_core::effect::Identity;
use chatring_wire::ErrorCode;
use chatring_wire::frame::{Durability, Failure};
use chatring_wire::link::LinkError;
use thiserror::Error;

pub use self::accept::{Acceptor, AcceptorConfig, NodeInfo};
pub use self::dial::{Links, LinksConfig};
pub use self::key::{CLUSTER_KEY_FILE, KeyError, own_key, read_key};
use crate::gateway::Calls;

/// Where the shards are.
#[derive(Clone, Debug)]
pub enum Shards {
    /// In this process.
    Here {
        /// They themselves.
        calls: Calls,
        /// URL of their WebSocket, as clients reach it.
        ws: String,
    },
    /// Behind links.
    Linked(Links),
}

/// A node as service discovery knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSeen {
    /// URL of its WebSocket; none before it was ever reached.
    pub ws: Option<String>,
    /// What runs there; none before it was ever reached.
    pub version: Option<String>,
    /// Whether it can be reached now.
    pub up: bool,
}

impl Shards {
    /// Asks for something on behalf of the owner of a verified token. Dropping the future withdraws
    /// what waits; what was begun may still be carried out.
    ///
    /// # Errors
    /// The failure that the shard answers with; `busy` if there is no room, `draining` before the
    /// node is ready and when it ends, `unavailable` without a link.
    pub async fn call(
        &self,
        identity: Identity,
        device: CallDevice,
        request: CallRequest,
    ) -> CallResult {
        match self {
            Shards::Here { calls, .. } => calls.call(identity, device, request).await,
            Shards::Linked(links) => links.call(identity, device, request).await,
        }
    }

    /// Has a decision of the accounts about a user of this deployment carried out.
    ///
    /// # Errors
    /// As for [`Shards::call`]: then it is to be asked again.
    pub async fn decide(&self, subject: &str, decision: Decision) -> CallResult {
        match self {
            Shards::Here { calls, .. } => calls.decide(subject, decision).await,
            Shards::Linked(links) => links.decide(subject, decision).await,
        }
    }

    /// The nodes that there are.
    pub fn nodes(&self) -> Vec<NodeSeen> {
        match self {
            Shards::Here { ws, .. } => vec![NodeSeen {
                ws: Some(ws.clone()),
                version: Some(env!("CARGO_PKG_VERSION").to_owned()),
                up: true,
            }],
            Shards::Linked(links) => vec![links.node()],
        }
    }

    /// URL of the WebSocket of the node where a user should connect; none while none is known.
    pub fn ws(&self) -> Option<String> {
        self.nodes().into_iter().next()?.ws
    }

    /// What "stored" means there.
    pub fn durability(&self) -> Durability {
        match self {
            // Of the embedded store, the only one of a server today.
            Shards::Here { .. } => Durability::Fsync,
            Shards::Linked(links) => links.durability(),
        }
    }
}

/// Why a link has ended, or was not made.
#[derive(Debug, Error)]
pub enum LinkEnd {
    /// The connection.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The protocol.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The other side has closed it.
    #[error("the other side has closed the connection")]
    Closed,
    /// The other side did not connect or shake hands in time.
    #[error("no handshake in time")]
    NoHandshake,
    /// The other side has been silent for too long.
    #[error("nothing was heard for {} s", limits::SILENCE_MS_MAX / 1_000)]
    Silent,
    /// The other side does not take what is sent to it.
    #[error("more than {} bytes were not taken", limits::UNSENT_BYTES_MAX)]
    Slow,
    /// The node verifies other tokens than this server signs.
    #[error("the node has another token key ({theirs}, here {ours}): copy its token_key.pem")]
    TokenKey {
        /// The id of ours.
        ours: String,
        /// The id of the node's.
        theirs: String,
    },
    /// The other side broke the rules of calls.
    #[error("{0}")]
    Rules(&'static str),
    /// The system gave no random bytes.
    #[error("the system's random source failed")]
    Random,
}

fn unavailable() -> Failure {
    Failure::new(ErrorCode::Unavailable)
        .text("no link to the chat node")
        .retry_after(limits::RETRY_AFTER_MS)
}

fn busy() -> Failure {
    Failure::new(ErrorCode::Busy).retry_after(limits::BUSY_RETRY_MS)
}

/// What a call comes to whose link breaks before its answer.
fn broken(is_send: bool) -> CallResult {
    match is_send {
        true => Ok(Answer::Unknown),
        false => Err(unavailable()),
    }
}

fn nonce() -> Result<[u8; chatring_wire::link::NONCE_BYTES], LinkEnd> {
    use ring::rand::{SecureRandom as _, SystemRandom};

    let mut nonce = [0; chatring_wire::link::NONCE_BYTES];
    SystemRandom::new().fill(&mut nonce).map_err(|_| LinkEnd::Random)?;
    Ok(nonce)
}

#[cfg(test)]
mod tests;
