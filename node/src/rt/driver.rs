//! Which of the two drivers moves the bytes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ring::{self, RingSizes};
use super::{RtConfig, StartError};

/// What moves the bytes of the sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// The ring if the kernel can, else the streams.
    #[default]
    Auto,
    /// A private io_uring of each shard.
    Ring,
    /// The streams of glommio.
    Streams,
}

/// What a shard is told to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moves {
    /// So large, and waiting for so long for a post that is expected.
    Ring(RingSizes, Duration),
    Streams,
}

/// Tries what the ring needs, unless it is not wanted. Answers also what to tell the operator.
pub fn choose(config: &RtConfig) -> Result<(Moves, String), StartError> {
    if config.driver == Driver::Streams {
        return Ok((Moves::Streams, "streams".to_owned()));
    }
    match (ring::probe(), config.driver) {
        (Ok(()), _) => Ok((Moves::Ring(config.ring, config.gather), "ring".to_owned())),
        (Err(missing), Driver::Ring) => Err(StartError::Ring(missing)),
        (Err(missing), _) => Ok((Moves::Streams, format!("streams ({missing})"))),
    }
}
