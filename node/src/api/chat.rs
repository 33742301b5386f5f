//! Calls at the shards, as handlers make them.

use chatring_core::call::{Again, Answer, CallDevice, CallRequest, CallSend, Decision};
use chatring_core::effect::Identity;
use chatring_wire::frame::Failure;
use chatring_wire::{DeviceId, ErrorCode, Seq};

use super::problem::Problem;
use super::tokens::Owner;
use crate::link::Shards;

/// How often a send is made again because no repeat of it was found up to some position.
const CONTINUES_MAX: usize = 64;

/// The shards.
pub(super) struct Chat {
    shards: Shards,
}

/// Where a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub seq: Seq,
    pub time_ms: u64,
    pub again: Again,
}

impl Chat {
    pub(super) fn new(shards: Shards) -> Chat {
        Chat { shards }
    }

    /// Where they are.
    pub(super) fn shards(&self) -> &Shards {
        &self.shards
    }

    /// Makes a call for the holder of a token; from the installation that it is bound to, if it is.
    pub(super) async fn call(
        &self,
        owner: &Owner,
        request: CallRequest,
    ) -> Result<Answer, Problem> {
        self.call_as(&owner.identity, CallDevice::None, request).await
    }

    /// Makes a call for a user.
    pub(super) async fn call_as(
        &self,
        identity: &Identity,
        device: CallDevice,
        request: CallRequest,
    ) -> Result<Answer, Problem> {
        Ok(self.shards.call(identity.clone(), device, request).await?)
    }

    /// Sends a message.
    pub(super) async fn send(&self, owner: &Owner, mut send: CallSend) -> Result<Place, Problem> {
        for _ in 0..CONTINUES_MAX {
            match self.call(owner, CallRequest::Send(send.clone())).await? {
                Answer::Sent { seq, time_ms, again } => return Ok(Place { seq, time_ms, again }),
                Answer::Continue { checked_to } => send.base = Some(checked_to),
                Answer::Unknown => break,
                other => return Err(unexpected(&other)),
            }
        }
        let detail = "whether the message is stored is not known: send it again with the same key";
        Err(Problem::new(ErrorCode::Unavailable).detail(detail))
    }

    /// Has a decision of the accounts about a user carried out.
    pub(super) async fn decide(&self, subject: &str, decision: Decision) -> Result<(), Problem> {
        match self.shards.decide(subject, decision).await? {
            Answer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes a user and its device known to the chat. Answers the device's number.
    pub(super) async fn sign_in(
        &self,
        identity: &Identity,
        device: CallDevice,
    ) -> Result<DeviceId, Problem> {
        match self.call_as(identity, device, CallRequest::SignIn).await? {
            Answer::SignedIn { device, .. } => Ok(device),
            other => Err(unexpected(&other)),
        }
    }
}

/// An answer that does not belong to its call is a fault of ours.
pub(super) fn unexpected(answer: &Answer) -> Problem {
    tracing::error!(?answer, "a call got an answer that does not belong to it");
    ErrorCode::Internal.into()
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Problem {
        let problem = Problem::new(failure.code.unwrap_or(ErrorCode::Internal));
        let problem = problem.detail(failure.text);
        match failure.retry_after_ms {
            Some(ms) => problem.retry_after_ms(ms.into()),
            None => problem,
        }
    }
}
