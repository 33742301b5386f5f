//! What the generator can do, one module per command.

pub mod bare;
pub mod direct;
pub mod flood;
pub mod http;
pub mod http_share;
pub mod idle;
pub mod knee;
pub mod parked;
pub mod peers;
pub mod share;
pub mod stalls;
pub mod verify;

use std::time::{Duration, Instant};

use chatring_wire::frame::Failure;
use thiserror::Error;

use crate::ledger::LedgerError;
use crate::ready::ReadyError;

/// What those who watch a server while it is loaded are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The measured time begins.
    Begin,
    /// It ends.
    End,
}

/// What a thread's sockets need.
const SOCKETS: &str = "sockets on an io-uring, which need Linux 6.1";

/// Why a command came to nothing.
#[derive(Debug, Error)]
pub enum RunError {
    /// The node's ready file or token key cannot be used.
    #[error(transparent)]
    Ready(#[from] ReadyError),
    /// A ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A file that was asked for cannot be written, or the machine refuses a thread or timer.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        error: std::io::Error,
    },
    /// The node does not do its part.
    #[error("{0}")]
    Node(String),
    /// The generator itself was the bottleneck, which is not to happen with `--strict`.
    #[error("the generator itself was the bottleneck (--strict)")]
    Bottleneck,
    /// The user stopped it before it had anything to tell.
    #[error("stopped")]
    Stopped,
}

impl RunError {
    /// Whether the node is at fault, and not the command line or this machine.
    pub fn is_of_node(&self) -> bool {
        matches!(self, RunError::Node(_) | RunError::Stopped)
    }

    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> RunError {
        let what = what.into();
        move |error| RunError::Io { what, error }
    }
}

/// Notices that something counted has not moved for too long.
#[derive(Debug)]
struct Stall {
    count: u64,
    since: Instant,
    patience: Duration,
}

impl Stall {
    fn new(patience: Duration) -> Stall {
        Stall { count: 0, since: Instant::now(), patience }
    }

    fn is_stalled(&mut self, count: u64) -> bool {
        if count != self.count {
            *self = Stall { count, ..Stall::new(self.patience) };
        }
        self.since.elapsed() >= self.patience
    }
}

/// A failure's name and text.
fn words(error: &Failure) -> String {
    let name = match error.code {
        Ok(code) => code.name().to_owned(),
        Err(number) => number.to_string(),
    };
    match error.text.as_str() {
        "" => name,
        text => format!("{name} ({text})"),
    }
}
